use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;

use super::*;
use crate::{Role, heat::SharedClock};

const KIB: u32 = 1024;

fn usage(percent: u64) -> Usage {
    Usage {
        used: percent << 20,
        limit: 100 << 20,
    }
}

#[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
fn start() -> Instant {
    Instant::now()
}

fn block(key: u32, clock: &Clock, reads: f32) -> Block<u32> {
    Block {
        key,
        bytes: 256 * KIB,
        heat: clock.fresh(reads),
    }
}

fn outputs(moves: &mut Moves<u32>) -> Vec<Move<u32>> {
    std::iter::from_fn(|| moves.poll_output()).collect()
}

#[test]
fn a_cold_block_is_promoted_at_the_threshold_and_not_before() {
    let (now, clock) = (start(), Clock::default());
    let mut moves = Moves::new(Policy::default(), now);
    moves.on_read(block(1, &clock, 1.9), &clock, usage(10), now);
    assert_eq!(outputs(&mut moves), []);
    moves.on_read(block(1, &clock, 2.0), &clock, usage(10), now);
    let promote = Move::Promote {
        key: 1,
        to: Tier::Disk,
    };
    assert_eq!(outputs(&mut moves), [promote]);
    moves.on_read(block(1, &clock, 3.0), &clock, usage(10), now);
    assert_eq!(outputs(&mut moves), [], "it is on its way");
}

#[test]
fn on_a_full_disk_a_block_must_be_hotter_than_what_left_by_the_hysteresis() {
    let (now, clock) = (start(), Clock::default());
    let mut moves = Moves::new(Policy::default(), now);
    moves.on_left(clock.fresh(4.0));
    moves.on_read(block(1, &clock, 7.9), &clock, usage(95), now);
    assert_eq!(outputs(&mut moves), []);
    moves.on_read(block(2, &clock, 8.1), &clock, usage(95), now);
    assert_eq!(outputs(&mut moves).len(), 1);
}

#[test]
fn the_cut_survives_the_start_over_of_the_clock() {
    let (now, clock) = (start(), SharedClock::default());
    let mut moves = Moves::new(Policy::default(), now);
    while clock.get().now() < 4096.0 {
        clock.tick(0);
    }
    moves.on_left(clock.get().fresh(4.0));
    let before = clock.get();
    moves.on_read(block(1, &before, 7.9), &before, usage(95), now);
    assert_eq!(outputs(&mut moves), []);
    clock.rebase().unwrap();
    let after = clock.get();
    moves.on_read(block(1, &after, 7.9), &after, usage(95), now);
    assert_eq!(outputs(&mut moves), []);
    moves.on_read(block(2, &after, 8.1), &after, usage(95), now);
    assert_eq!(outputs(&mut moves).len(), 1);
}

#[test]
fn demotion_starts_at_one_mark_and_ends_at_the_other() {
    let (now, clock) = (start(), Clock::default());
    let mut moves = Moves::new(Policy::default(), now);
    assert_eq!(moves.demand(usage(94), now), 0);
    assert_eq!(moves.demand(usage(96), now), 6 << 20);
    assert_eq!(moves.demand(usage(92), now), 2 << 20, "goes on below");
    let coldest = (0..100).map(|key| block(key, &clock, 1.0));
    moves.on_coldest(2 << 20, coldest);
    assert_eq!(outputs(&mut moves).len(), 8);
    assert_eq!(moves.demand(usage(92), now), 0, "enough is on its way");
    assert_eq!(moves.demand(usage(90), now), 0);
    assert_eq!(moves.demand(usage(94), now), 0, "and starts over");
}

#[test]
fn the_budget_holds_moves_back_unless_the_disk_is_full() {
    let mut now = start();
    let clock = Clock::default();
    let policy = Policy {
        move_bytes_per_second: 1 << 20,
        ..Policy::default()
    };
    let mut moves = Moves::new(policy, now);
    let (mut key, mut begun) = (0, 0);
    for _ in 0..100 {
        now += Duration::from_millis(100);
        for _ in 0..10 {
            key += 1;
            moves.on_read(block(key, &clock, 9.0), &clock, usage(10), now);
        }
        for output in outputs(&mut moves) {
            let Move::Promote { key, .. } = output else {
                panic!("{output:?}")
            };
            moves.on_done(&key, true, now);
            begun += 1;
        }
    }
    assert!(
        (40..=45).contains(&begun),
        "{begun} blocks of a quarter MiB in ten seconds at 1 MiB/s"
    );
    assert!(moves.stats().throttled > 900);
    assert_eq!(moves.demand(usage(99), now), 0);
    assert_eq!(moves.demand(usage(100), now), 10 << 20);
}

#[test]
fn a_cold_tier_that_fails_is_left_alone_for_longer_and_longer() {
    let mut now = start();
    let clock = Clock::default();
    let mut moves = Moves::new(Policy::default(), now);
    let mut pauses = Vec::new();
    for key in 0..8 {
        assert!(moves.demand(usage(100), now) > 0);
        moves.on_coldest(1, [block(key, &clock, 1.0)]);
        moves.on_done(&key, false, now);
        let pause = (0..).find(|_| {
            let is_over = moves.demand(usage(100), now) > 0;
            now += Duration::from_secs(u64::from(!is_over));
            is_over
        });
        pauses.push(pause.unwrap());
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(moves.stats().failures, 8);
}

#[test]
fn what_is_under_way_is_bounded_whatever_is_offered() {
    let (now, clock) = (start(), Clock::default());
    let mut moves = Moves::new(Policy::default(), now);
    moves.on_coldest(u64::MAX, (0..).map(|key| block(key, &clock, 1.0)));
    assert_eq!(moves.under_way_bytes, MOST_UNDER_WAY);
    let mut moves = Moves::new(Policy::default(), now);
    let tiny = |key| Block {
        bytes: 1,
        ..block(key, &clock, 1.0)
    };
    moves.on_coldest(u64::MAX, (0..).map(tiny));
    assert_eq!(moves.under_way.len(), MOST_BLOCKS_UNDER_WAY);
}

/// Disk over cold, reads by a Zipf law: what moves once it is warm.
fn moved_share(role: Role, exponent: f64, seed: u64) -> f64 {
    const BLOCKS: usize = 20_000;
    const ACCESSES: usize = 1_000_000;
    const SIZE: u64 = 256 * 1024;
    let limit = SIZE * BLOCKS as u64 / 10;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut sum = 0.0;
    let cumulated: Vec<f64> = (1..=BLOCKS)
        .map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        })
        .collect();
    let mut now = start();
    let mut clock = Clock::default();
    let mut moves = Moves::new(role.preset().policy, now);
    let mut heats = vec![clock.fresh(1.0); BLOCKS];
    // A store that was filled: what came first is cold.
    let mut on_disk: BTreeMap<usize, ()> = BTreeMap::new();
    let mut at_half = MoveStats::default();
    for access in 0..ACCESSES {
        if access == ACCESSES / 2 {
            at_half = moves.stats();
        }
        now += Duration::from_millis(10);
        let draw = rng.random::<f64>() * sum;
        let key = cumulated.partition_point(|below| *below < draw);
        clock.tick(on_disk.len());
        heats[key] = clock.touched(heats[key]);
        let usage = |blocks: usize| Usage {
            used: blocks as u64 * SIZE,
            limit,
        };
        if !on_disk.contains_key(&key) {
            let read = Block {
                key: key as u32,
                bytes: SIZE as u32,
                heat: heats[key],
            };
            moves.on_read(read, &clock, usage(on_disk.len()), now);
        }
        let demand = moves.demand(usage(on_disk.len()), now);
        if demand > 0 {
            let mut coldest: Vec<usize> = on_disk.keys().copied().collect();
            coldest.sort_by(|a, b| heats[*a].total_cmp(&heats[*b]));
            let coldest = coldest.into_iter().map(|key| Block {
                key: key as u32,
                bytes: SIZE as u32,
                heat: heats[key],
            });
            moves.on_coldest(demand, coldest);
        }
        while let Some(output) = moves.poll_output() {
            let key = match output {
                Move::Promote { key, .. } => {
                    on_disk.insert(key as usize, ());
                    key
                }
                Move::Demote { key, .. } => {
                    on_disk.remove(&(key as usize));
                    key
                }
            };
            moves.on_done(&key, true, now);
        }
    }
    let end = moves.stats();
    let moved =
        end.promoted_bytes + end.demoted_bytes - at_half.promoted_bytes - at_half.demoted_bytes;
    moved as f64 / ((ACCESSES / 2) as u64 * SIZE) as f64
}

#[test]
fn a_stationary_zipf_load_moves_less_than_a_twentieth_of_what_users_read() {
    for role in [Role::Master, Role::Worker, Role::Leecher] {
        for exponent in [0.7, 0.9, 1.1] {
            let share = moved_share(role, exponent, 1);
            println!(
                "moved bytes / user bytes, zipf {exponent}, {role:?}: {:.2} %",
                share * 100.0
            );
            assert!(share <= 0.05, "{role:?}, zipf {exponent}: {share}");
        }
    }
}
