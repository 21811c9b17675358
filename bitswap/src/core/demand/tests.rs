use std::{sync::Arc, time::Duration};

use cid::Cid;
use libp2p_identity::PeerId;
use multihash_codetable::{Code, MultihashDigest};
use proptest::prelude::*;
use web_time::Instant;

use super::heat::Heat;

const HOUR: Duration = Duration::from_secs(3600);

#[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
fn origin() -> Instant {
    Instant::now()
}

fn peer(index: u64) -> PeerId {
    let hash = Code::Sha2_256.digest(&index.to_le_bytes());
    PeerId::from_multihash(hash.resize().unwrap()).unwrap()
}

fn cid(index: u64) -> Arc<Cid> {
    Arc::new(Cid::new_v1(
        0x55,
        Code::Sha2_256.digest(&index.to_le_bytes()),
    ))
}

fn heat(capacity: usize) -> (Heat, Instant) {
    let now = origin();
    (Heat::new(capacity, HOUR, [7; 32], now), now)
}

#[test]
fn heat_counts_those_who_ask_and_halves_with_time() {
    let (mut heat, now) = heat(64);
    for (block, count) in [(1, 1), (2, 10), (3, 100), (4, 400)] {
        for index in 0..count {
            for _ in 0..3 {
                heat.touch(&peer(index), &cid(block), now);
            }
        }
        let found = heat.of(&cid(block), now);
        let expected = count as f64;
        assert!(
            (found / expected - 1.0).abs() < 0.25,
            "{found} for {count} peers"
        );
        let later = heat.of(&cid(block), now + 2 * HOUR);
        assert!((later / found - 0.25).abs() < 1e-9);
    }
    let ranking: Vec<Cid> = heat.hottest(now).map(|(cid, _)| *cid).collect();
    assert_eq!(ranking, [*cid(4), *cid(3), *cid(2), *cid(1)]);
    assert_eq!(heat.of(&cid(5), now), 0.0);
}

#[test]
fn what_was_hot_yesterday_is_colder_than_what_is_asked_for_now() {
    let (mut heat, now) = heat(64);
    for index in 0..100 {
        heat.touch(&peer(index), &cid(1), now);
    }
    for index in 0..5 {
        heat.touch(&peer(index), &cid(2), now + 6 * HOUR);
    }
    let (first, _) = heat.hottest(now + 6 * HOUR).next().unwrap();
    assert_eq!(*first, *cid(2));
}

proptest! {
    /// However often, and however cleverly timed.
    #[test]
    fn one_peer_never_heats_a_block_above_2(gaps in prop::collection::vec(0_u64..9000, 1..300)) {
        let (mut heat, mut now) = heat(64);
        for gap in gaps {
            now += Duration::from_secs(gap);
            heat.touch(&peer(1), &cid(1), now);
            prop_assert!(heat.of(&cid(1), now) <= 2.0);
        }
    }

    #[test]
    fn the_ranking_is_that_of_the_scores(touches in prop::collection::vec((0_u64..40, 0_u64..30, 0_u64..4000), 1..400)) {
        let (mut heat, mut now) = heat(16);
        for (from, block, gap) in touches {
            now += Duration::from_secs(gap);
            heat.touch(&peer(from), &cid(block), now);
            let ranking: Vec<(Cid, f64)> = heat.hottest(now).map(|(cid, heat)| (*cid, heat)).collect();
            prop_assert!(ranking.len() <= 16);
            prop_assert!(ranking.is_sorted_by(|a, b| a.1 >= b.1));
            for (cid, score) in ranking {
                prop_assert_eq!(heat.of(&cid, now), score);
            }
        }
    }
}

#[test]
fn a_flood_of_one_peer_pushes_out_neither_the_hot_nor_all_of_the_new() {
    let (mut heat, now) = heat(1024);
    for block in 0..100 {
        for index in 0..3 {
            heat.touch(&peer(index), &cid(block), now);
        }
    }
    // Asked for once so far.
    for block in 100..1000 {
        heat.touch(&peer(4), &cid(block), now);
    }
    for block in 1_000_000..1_100_000 {
        heat.touch(&peer(5), &cid(block), now);
    }
    let left = |heat: &Heat, blocks: std::ops::Range<u64>| {
        blocks
            .filter(|block| heat.of(&cid(*block), now) > 0.0)
            .count()
    };
    assert_eq!(heat.hottest(now).count(), 1024);
    assert_eq!(left(&heat, 0..100), 100);
    assert!(left(&heat, 100..1000) >= 900 - 1024 / 16);
    // Others can bring in new blocks all the same.
    heat.touch(&peer(6), &cid(2_000_000), now);
    assert!(heat.of(&cid(2_000_000), now) > 0.0);
}
