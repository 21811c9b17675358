//! Two direct connections where one is enough.

use std::time::Duration;

use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;
use web_time::Instant;

use super::{Output, Punches};

#[derive(Debug)]
pub(super) struct Reached {
    pub(super) peer: PeerId,
    pub(super) at: Instant,
    /// Whether it is on us to close what is too much.
    pub(super) is_ours_to_close: bool,
    /// What came second, and when it is closed.
    pub(super) superfluous: Vec<(Instant, ConnectionId)>,
}

impl Punches {
    /// Both sides' dials got through: one of the two nodes closes what came second.
    ///
    /// A moment after the first one came: closed at once, it could look like a failed dial to a side that does not have the first one yet.
    pub(super) fn collapse(&mut self, peer: PeerId, connection: ConnectionId, now: Instant) {
        let max = self.config.max_dials_per_peer();
        let mut reached = self.reached.iter_mut();
        if let Some(reached) = reached.find(|reached| reached.peer == peer)
            && reached.is_ours_to_close
            && now.saturating_duration_since(reached.at) < JUST_REACHED
            && self.config.close_duplicates()
            && reached.superfluous.len() < 2 * max
        {
            let due = if now.saturating_duration_since(reached.at) < SAME_PUNCH {
                now.max(reached.at + DUPLICATE_GRACE)
            } else {
                // Or the first one is dead: over QUIC it is asked, and lost by then.
                now + self.config.liveness_timeout() + DUPLICATE_GRACE
            };
            reached.superfluous.push((due, connection));
        }
    }

    /// Closes what is superfluous by now, unless it is all that is left.
    pub(super) fn close_superfluous(&mut self, now: Instant) {
        for reached in &mut self.reached {
            let peer = reached.peer;
            let Some(direct) = self.direct.get(&peer) else {
                reached.superfluous.clear();
                continue;
            };
            let mut left = direct.len();
            for (_, connection) in reached.superfluous.extract_if(.., |(at, _)| *at <= now) {
                if left > 1 && direct.contains(&connection) {
                    left -= 1;
                    self.outputs.push_back(Output::Close { peer, connection });
                }
            }
        }
    }
}

/// How long after the first connection a second one lives: both sides have the first one by then.
const DUPLICATE_GRACE: Duration = Duration::from_millis(500);

/// A dial that did not get through at once does so when it is sent again: over QUIC after 1 s (RFC 9002 §6.2.2).
const SAME_PUNCH: Duration = Duration::from_secs(2);

/// Connections that come up so long after the first one belong to the same punch: libp2p's dials
/// end after 10 s.
pub(super) const JUST_REACHED: Duration = Duration::from_secs(10);
