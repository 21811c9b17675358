//! How gossipsub scores those who pass announcements on.
//!
//! The stock parameters are made for one busy topic. On topics with a message each ten seconds they
//! punish the honest: for few deliveries (P3), for sharing an address with ten others behind one NAT (P6),
//! and, where js and Rust meet, for promises that were kept under another message id (P7). What is left
//! here: time in the mesh and first deliveries count a little for a peer, invalid messages of its own
//! count much against it, and so does a flood of grafts.

use std::{collections::HashMap, time::Duration};

use libp2p_gossipsub::{
    PeerScoreParams, PeerScoreThresholds, TopicHash, TopicScoreParams, score_parameter_decay,
};

/// Below it a peer's messages are dropped unread.
const GRAYLIST: f64 = -80.0;

/// Thresholds for [`peer_score_params`]: three invalid messages at once pass all of them, one does not pass
/// any.
pub fn peer_score_thresholds() -> PeerScoreThresholds {
    PeerScoreThresholds {
        gossip_threshold: -20.0,
        publish_threshold: -40.0,
        graylist_threshold: GRAYLIST,
        accept_px_threshold: 10.0,
        opportunistic_graft_threshold: 1.0,
    }
}

/// Parameters for a gossipsub that carries these topics, beside others.
pub fn peer_score_params<'a>(topics: impl IntoIterator<Item = &'a str>) -> PeerScoreParams {
    let topics: HashMap<_, _> = topics
        .into_iter()
        .map(|topic| (TopicHash::from_raw(topic), topic_score_params()))
        .collect();
    PeerScoreParams {
        topics,
        // However many topics: good conduct does not buy many invalid messages.
        topic_score_cap: 20.0,
        app_specific_weight: 1.0,
        // A whole office comes from one address, and all relayed peers from the relay's.
        ip_colocation_factor_weight: 0.0,
        // Promises broken because the other implementation names messages otherwise are at most ten in a
        // heartbeat (`max_ihave_messages`), 12.5 with this decay: they stay free. Grafts are not limited, and a
        // flood of them is punished.
        behaviour_penalty_weight: -1.0,
        behaviour_penalty_threshold: 20.0,
        behaviour_penalty_decay: 0.2,
        // Slow is not hostile.
        slow_peer_weight: 0.0,
        retain_score: Duration::from_secs(600),
        ..PeerScoreParams::default()
    }
}

/// Parameters of one topic of announcements.
pub fn topic_score_params() -> TopicScoreParams {
    TopicScoreParams {
        topic_weight: 1.0,
        // A point for five minutes in the mesh.
        time_in_mesh_weight: 0.01,
        time_in_mesh_quantum: Duration::from_secs(3),
        time_in_mesh_cap: 100.0,
        // Up to five points for those who bring news.
        first_message_deliveries_weight: 0.1,
        first_message_deliveries_decay: score_parameter_decay(Duration::from_secs(600)),
        first_message_deliveries_cap: 50.0,
        // Announcements are too few to tell a lazy peer by.
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        // -10, -40, -90 for one, two, three at once. One every ten seconds stays at -13: a peer that speaks another
        // format in good faith is not cut off (ipfs_kit_py's JSON on js-libp2p's topic).
        invalid_message_deliveries_weight: -10.0,
        invalid_message_deliveries_decay: 0.8,
        ..TopicScoreParams::default()
    }
}

/// Whether a peer of this score is graylisted.
pub(crate) fn is_graylisted(score: f64) -> bool {
    score < GRAYLIST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gossipsub_takes_the_parameters() {
        assert_eq!(peer_score_params(["a", "b"]).validate(), Ok(()));
        assert_eq!(peer_score_thresholds().validate(), Ok(()));
    }

    /// The arithmetic that the comments state, as gossipsub does it each second.
    #[test]
    fn one_mistake_is_forgiven_and_a_flood_is_not() {
        let params = topic_score_params();
        let thresholds = peer_score_thresholds();
        let score = |mistakes: &dyn Fn(u32) -> u32| {
            let mut counter = 0.0;
            let mut worst = 0.0_f64;
            for second in 0..600 {
                counter += f64::from(mistakes(second));
                worst = worst.min(counter * counter * params.invalid_message_deliveries_weight);
                counter *= params.invalid_message_deliveries_decay;
            }
            worst
        };
        let good_faith = score(&|second| u32::from(second % 10 == 0));
        assert!(good_faith > thresholds.gossip_threshold, "{good_faith}");
        let flood = score(&|_| 3);
        assert!(is_graylisted(flood), "{flood}");
        // The best conduct does not outweigh it.
        assert!(is_graylisted(flood + peer_score_params([]).topic_score_cap));
    }
}
