use std::{collections::HashSet, time::Duration};

use cid::Cid;

use super::sim::{Link, Sim, block, cid, cids, peer};
use crate::{
    Config, Priority, SessionOptions, WantOptions,
    core::{Path, client::Output},
    message::{Message, Presence, Version, WantType},
};

const MIB: usize = 1024 * 1024;
const CHUNK: usize = 256 * 1024;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Share of the link's rate that a transfer of `count` chunks reaches.
fn utilisation(rtt_ms: u64, rate: f64, count: u64, bytes: usize) -> f64 {
    let mut sim = Sim::new(2);
    let wanted = cids(count);
    sim.give(1, &wanted, bytes);
    sim.connect(0, 1, Link::new(rtt_ms, rate));
    let session = sim.session(0, &[1]);
    sim.want_all(0, session, &wanted);
    sim.run_until_got(0, wanted.len(), secs(600));
    assert_eq!(sim.unwanted_bytes(0), 0);
    (count as usize * bytes) as f64 / rate / sim.elapsed().as_secs_f64()
}

#[test]
fn the_window_fills_a_link_of_50_megabytes_at_any_round_trip() {
    for (rtt, least) in [(0, 0.97), (10, 0.95), (100, 0.90), (300, 0.80)] {
        let reached = utilisation(rtt, 50e6, 1024, CHUNK);
        assert!(reached >= least, "{rtt} ms: {reached:.3}");
    }
}

#[test]
fn a_slow_reader_at_first_may_ask_for_much_later() {
    let mut sim = Sim::new(2);
    let wanted = cids(96);
    sim.give(1, &wanted, CHUNK);
    sim.connect(0, 1, Link::new(100, 1e9));
    let session = sim.session(0, &[1]);
    for (done, cid) in wanted[..64].iter().enumerate() {
        sim.want_all(0, session, &[*cid]);
        sim.run_until_got(0, done + 1, secs(1));
    }
    let start = sim.now;
    sim.want_all(0, session, &wanted[64..]);
    sim.run_until_got(0, 96, secs(10));
    // 8 MiB in one round trip: one block at a time said nothing about the peer's rate.
    assert!(
        sim.now - start < Duration::from_millis(150),
        "{:?}",
        sim.now - start
    );
}

#[test]
fn small_blocks_fill_the_link_as_far_as_a_thousand_wants_reach() {
    // 1000 wants of 8 KiB a round trip of 10 ms could be 800 MB/s; the link gives 50.
    let reached = utilisation(10, 50e6, 8192, 8192);
    assert!(reached >= 0.9, "{reached:.3}");
}

#[test]
fn a_block_of_a_known_peer_takes_one_round_trip_and_of_an_unknown_one_two() {
    for (known, round_trips) in [(true, 1), (false, 2)] {
        let mut sim = Sim::new(2);
        sim.give(1, &[cid(1)], 5000);
        sim.connect(0, 1, Link::new(100, 1e9));
        let session = sim.session(0, if known { &[1] } else { &[] });
        sim.want_all(0, session, &[cid(1)]);
        sim.run_until_got(0, 1, secs(5));
        let limit = Duration::from_millis(100 * round_trips + 5);
        assert!(sim.elapsed() <= limit, "{known}: {:?}", sim.elapsed());
    }
}

#[test]
fn equal_seeders_add_up_without_a_duplicate() {
    let mut sim = Sim::new(5);
    let wanted = cids(512);
    for seeder in 1..5 {
        sim.give(seeder, &wanted, CHUNK);
        sim.connect(0, seeder, Link::new(20, 10e6));
    }
    let session = sim.session(0, &[1, 2, 3, 4]);
    sim.want_all(0, session, &wanted);
    sim.run_until_got(0, wanted.len(), secs(60));
    sim.run_for(secs(1));
    let ideal = 512.0 * CHUNK as f64 / 40e6;
    let last = sim.nodes[0].got.last().unwrap().0;
    let took = sim.elapsed().as_secs_f64() - (sim.now - last).as_secs_f64();
    assert!(ideal / took >= 0.9, "{:.3}", ideal / took);
    assert_eq!(sim.unwanted_bytes(0), 0);
}

#[test]
fn unequal_seeders_are_used_according_to_their_speed() {
    let mut sim = Sim::new(5);
    let wanted = cids(1024);
    for (seeder, factor) in [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0)] {
        sim.give(seeder, &wanted, CHUNK);
        sim.connect(0, seeder, Link::new(20, factor * 4e6));
    }
    let session = sim.session(0, &[1, 2, 3, 4]);
    sim.want_all(0, session, &wanted);
    sim.run_until_got(0, wanted.len(), secs(120));
    let ideal = 1024.0 * CHUNK as f64 / 60e6;
    let reached = ideal / sim.elapsed().as_secs_f64();
    assert!(reached >= 0.85, "{reached:.3}");
}

#[test]
fn a_lost_seeder_is_replaced_and_asked_again_when_it_is_back() {
    let mut sim = Sim::new(3);
    let wanted = cids(200);
    sim.give(1, &wanted, CHUNK);
    sim.give(2, &wanted[..100], CHUNK);
    let first = sim.connect(0, 1, Link::new(20, 20e6));
    sim.connect(0, 2, Link::new(20, 20e6));
    let session = sim.session(0, &[1, 2]);
    sim.want_all(0, session, &wanted);
    sim.run_until_got(0, 20, secs(10));
    sim.disconnect(0, 1, first);
    sim.run_for(secs(20));
    let half: HashSet<Cid> = sim.nodes[0].got.iter().map(|(_, _, cid, _)| *cid).collect();
    assert!(wanted[..100].iter().all(|cid| half.contains(cid)));
    assert!(half.len() < 200);
    sim.connect(0, 1, Link::new(20, 20e6));
    sim.run_until_got(0, 200, secs(10));
}

#[test]
fn a_silent_seeder_loses_its_requests_to_the_others() {
    let mut sim = Sim::new(3);
    let wanted = cids(400);
    let mut conns = Vec::new();
    for seeder in [1, 2] {
        sim.give(seeder, &wanted, CHUNK);
        conns.push(sim.connect(0, seeder, Link::new(20, 20e6)));
    }
    let session = sim.session(0, &[1, 2]);
    sim.want_all(0, session, &wanted);
    sim.run_until_got(0, 100, secs(10));
    sim.stall(1, 0, conns[0]);
    sim.run_until_got(0, 400, secs(30));
}

#[test]
fn a_seeder_that_talks_about_other_blocks_loses_its_requests_like_a_silent_one() {
    let mut sim = Sim::new(3);
    let wanted = cids(400);
    let mut conns = Vec::new();
    for seeder in [1, 2] {
        sim.give(seeder, &wanted, CHUNK);
        conns.push(sim.connect(0, seeder, Link::new(20, 20e6)));
    }
    let session = sim.session(0, &[1, 2]);
    sim.want_all(0, session, &wanted);
    sim.run_until_got(0, 100, secs(10));
    sim.stall(1, 0, conns[0]);
    let chatter = Message {
        presences: vec![Presence {
            cid: cid(1_000_000),
            have: true,
        }],
        blocks: vec![block(cid(1_000_001), 1)],
        ..Message::default()
    };
    for _ in 0..600 {
        let now = sim.now;
        let client = &mut sim.nodes[0].client;
        client.on_message(peer(1), conns[0], &chatter, now);
        sim.drain(0);
        sim.run_for(Duration::from_millis(50));
    }
    assert_eq!(sim.nodes[0].got.len(), 400);
}

#[test]
fn an_absent_block_is_fetched_from_whom_has_it() {
    let mut sim = Sim::new(4);
    sim.give(3, &[cid(1)], 1000);
    for other in [1, 2, 3] {
        sim.connect(0, other, Link::new(10, 1e8));
    }
    let session = sim.session(0, &[1, 2, 3]);
    sim.want_all(0, session, &[cid(1)]);
    sim.run_until_got(0, 1, Duration::from_millis(100));
    sim.run_for(secs(1));
    // Nobody keeps the want.
    for other in [1, 2, 3] {
        assert!(sim.nodes[other].server.wantlist().is_empty());
    }
}

#[test]
fn providers_are_asked_for_at_once_when_nobody_is_connected() {
    let mut sim = Sim::new(2);
    sim.give(1, &[cid(1)], 1000);
    let session = sim.session(0, &[]);
    let ticket = sim.want_all(0, session, &[cid(1)])[0];
    let wanted = sim.nodes[0].events.pop().unwrap();
    assert!(
        matches!(wanted, (at, Output::ProvidersWanted { ticket: t, .. }) if t == ticket && at == sim.now)
    );
    let provider = sim.nodes[1].id;
    let now = sim.now;
    sim.nodes[0].client.add_providers(ticket, [provider], now);
    sim.drain(0);
    assert!(matches!(sim.nodes[0].events.pop(), Some((_, Output::Dial(id))) if id == provider));
    sim.connect(0, 1, Link::new(10, 1e8));
    sim.run_until_got(0, 1, Duration::from_millis(12));
}

#[test]
fn the_search_is_repeated_until_it_is_cancelled() {
    let mut sim = Sim::new(1);
    let session = sim.session(0, &[]);
    let ticket = sim.want_all(0, session, &[cid(1)])[0];
    sim.run_for(secs(100));
    let asked = sim.nodes[0].events.len();
    assert_eq!(asked, 4, "at 0, 30, 60 and 90 s");
    let now = sim.now;
    sim.nodes[0].client.cancel(ticket, now);
    sim.run_for(secs(100));
    assert_eq!(sim.nodes[0].events.len(), asked);
    sim.nodes[0].client.end_session(session, now);
    assert_eq!(sim.nodes[0].client.counters(), [0; 5]);
}

#[test]
fn a_block_that_appears_later_is_fetched() {
    let mut sim = Sim::new(2);
    sim.connect(0, 1, Link::new(10, 1e8));
    let session = sim.session(0, &[1]);
    sim.want_all(0, session, &[cid(1)]);
    sim.run_for(secs(1));
    sim.give(1, &[cid(1)], 5000);
    let now = sim.now;
    sim.nodes[1]
        .server
        .on_new_blocks(&[cid(1)], &|_| Some(5000), now);
    sim.drain(1);
    sim.run_until_got(0, 1, Duration::from_millis(30));
}

#[test]
fn a_peer_before_1_2_is_taken_to_lack_what_it_does_not_send() {
    let mut sim = Sim::new(3);
    sim.nodes[1].version = Version::V1_1;
    sim.give(2, &[cid(1)], 1000);
    sim.connect(0, 1, Link::new(10, 1e8));
    let session = sim.session(0, &[1]);
    sim.want_all(0, session, &[cid(1)]);
    assert!(
        sim.nodes[0]
            .entries_sent
            .iter()
            .all(|entry| !entry.send_dont_have)
    );
    sim.run_for(secs(6));
    sim.connect(0, 2, Link::new(10, 1e8));
    let id = sim.nodes[2].id;
    let now = sim.now;
    sim.nodes[0].client.add_session_peer(session, id, now);
    sim.drain(0);
    sim.run_until_got(0, 1, secs(12));
}

#[test]
fn unacknowledged_blocks_stop_the_requests() {
    let config = Config::builder()
        .max_unacknowledged_bytes(4 * MIB as u64)
        .build()
        .unwrap();
    let mut sim = Sim::with_config(2, config);
    let wanted = cids(100);
    sim.give(1, &wanted, CHUNK);
    sim.connect(0, 1, Link::new(10, 1e8));
    sim.nodes[0].takes = false;
    let session = sim.session(0, &[1]);
    let tickets = sim.want_all(0, session, &wanted);
    sim.run_for(secs(30));
    assert_eq!(sim.nodes[0].got.len(), 16);
    let now = sim.now;
    for (_, ticket, ..) in sim.nodes[0].got.clone() {
        sim.nodes[0].client.taken(ticket, CHUNK, now);
    }
    sim.nodes[0].takes = true;
    sim.drain(0);
    sim.run_until_got(0, tickets.len(), secs(30));
}

#[test]
fn no_peer_holds_more_than_a_thousand_wants() {
    let mut sim = Sim::new(2);
    let wanted = cids(5000);
    sim.give(1, &wanted, 100);
    sim.connect(0, 1, Link::new(100, 1e8));
    let session = sim.session(0, &[1]);
    sim.want_all(0, session, &wanted);
    while sim.nodes[0].got.len() < 5000 {
        let until = sim.now + secs(10);
        assert!(sim.step(until));
        assert!(sim.nodes[1].server.wantlist().len() <= 1000);
    }
    assert_eq!(sim.unwanted_bytes(0), 0);
}

#[test]
fn new_wants_take_the_better_connection_and_the_rest_follows_when_the_worse_one_ends() {
    let mut sim = Sim::new(2);
    let wanted = cids(400);
    sim.give(1, &wanted, CHUNK);
    let slow = Link {
        path: Path::Relayed,
        ..Link::new(100, 2e6)
    };
    let relayed = sim.connect(0, 1, slow);
    let session = sim.session(0, &[1]);
    sim.want_all(0, session, &wanted);
    sim.run_until_got(0, 2, secs(10));
    let direct = sim.connect(0, 1, Link::new(50, 50e6));
    sim.run_for(secs(1));
    let peer = sim.nodes[1].id;
    assert!(
        sim.nodes[0]
            .got
            .iter()
            .filter(|got| got.3.unwrap().1 == direct)
            .count()
            > 50
    );
    sim.disconnect(0, 1, relayed);
    sim.run_until_got(0, 400, secs(20));
    assert_eq!(sim.nodes[0].client.wants_on(&peer, direct), 0);
}

#[test]
fn a_limited_circuit_carries_the_index_and_the_leaf_waits() {
    let mut sim = Sim::new(2);
    sim.give(1, &[cid(1)], 1000);
    sim.give(1, &[cid(2)], 20_000);
    sim.give(1, &[cid(3), cid(4)], CHUNK);
    let narrow = Link {
        path: Path::Limited(128 * 1024),
        ..Link::new(100, 1e7)
    };
    sim.connect(0, 1, narrow);
    let session = sim.session(0, &[1]);
    sim.want_all(0, session, &[cid(1)]);
    sim.run_until_got(0, 1, secs(1));
    sim.want_all(0, session, &[cid(2)]);
    sim.run_until_got(0, 2, secs(1));
    let tickets = sim.want_all(0, session, &[cid(3), cid(4)]);
    sim.run_for(secs(3));
    assert_eq!(sim.nodes[0].got.len(), 2);
    let warned: Vec<_> = sim.nodes[0]
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            Output::WaitingForDirect { ticket, .. } => Some(*ticket),
            _ => None,
        })
        .collect();
    assert_eq!(warned, tickets, "each ticket once");
    sim.connect(0, 1, Link::new(50, 1e7));
    sim.run_until_got(0, 4, secs(1));
}

/// root → index → two leaves.
fn tree(sim: &mut Sim, node: usize) {
    sim.give(node, &[cid(1)], 100);
    sim.give(node, &[cid(2)], 9000);
    sim.give(node, &[cid(3), cid(4)], CHUNK);
    sim.nodes[node].links.insert(cid(1), vec![cid(2)]);
    sim.nodes[node].links.insert(cid(2), vec![cid(3), cid(4)]);
}

#[test]
fn descend_brings_the_first_leaf_in_one_round_trip() {
    let mut sim = Sim::new(2);
    tree(&mut sim, 1);
    sim.connect(0, 1, Link::new(100, 1e8));
    let options = SessionOptions::default().descend(2);
    let session = sim.nodes[0].client.new_session(options);
    let id = sim.nodes[1].id;
    let now = sim.now;
    sim.nodes[0].client.add_session_peer(session, id, now);
    sim.want_all(0, session, &[cid(1)]);
    sim.run_until_got(0, 1, secs(1));
    sim.want_all(0, session, &[cid(2)]);
    sim.run_until_got(0, 2, secs(1));
    sim.want_all(0, session, &[cid(3)]);
    sim.run_until_got(0, 3, secs(1));
    assert!(
        sim.elapsed() < Duration::from_millis(110),
        "{:?}",
        sim.elapsed()
    );
    // Only the root was asked for, the leaf after the last was not pushed.
    let asked = sim.nodes[0]
        .entries_sent
        .iter()
        .filter(|entry| !entry.cancel);
    assert_eq!(asked.map(|entry| entry.cid).collect::<Vec<_>>(), [cid(1)]);
    sim.want_all(0, session, &[cid(4)]);
    sim.run_until_got(0, 4, secs(1));
    assert!(sim.elapsed() > Duration::from_millis(200));
    assert_eq!(sim.unwanted_bytes(0), 0);
}

#[test]
fn pushes_are_kept_only_up_to_what_was_asked_and_only_from_those_asked() {
    let mut sim = Sim::new(2);
    let conn = sim.connect(0, 1, Link::new(10, 1e8));
    let session = sim.session(0, &[1]);
    let options = WantOptions::default().descend(1);
    let now = sim.now;
    sim.nodes[0].client.want(session, cid(1), options, now);
    sim.drain(0);
    let pushed = Message {
        blocks: vec![block(cid(7), 100), block(cid(8), 200)],
        ..Message::default()
    };
    sim.nodes[0].client.on_message(peer(1), conn, &pushed, now);
    assert_eq!(
        sim.unwanted_bytes(0),
        200,
        "the second one exceeds the credit"
    );
    sim.want_all(0, session, &[cid(7)]);
    assert_eq!(sim.nodes[0].got.len(), 1, "served from the stash");
}

#[test]
fn an_identity_cid_needs_nobody() {
    let mut sim = Sim::new(1);
    let hash = cid::multihash::Multihash::wrap(0, b"hello").unwrap();
    let session = sim.session(0, &[]);
    sim.want_all(0, session, &[Cid::new_v1(0x55, hash)]);
    assert_eq!(sim.nodes[0].got.len(), 1);
    assert!(sim.nodes[0].events.is_empty());
}

#[test]
fn the_deliverer_gets_a_cancel_too_and_other_peers_at_once() {
    let mut sim = Sim::new(3);
    sim.give(1, &[cid(1)], 5000);
    sim.connect(0, 1, Link::new(10, 1e8));
    sim.connect(0, 2, Link::new(10, 1e8));
    let session = sim.session(0, &[]);
    sim.want_all(0, session, &[cid(1)]);
    sim.run_until_got(0, 1, secs(1));
    sim.run_for(secs(1));
    let cancels = sim.nodes[0]
        .entries_sent
        .iter()
        .filter(|entry| entry.cancel)
        .count();
    assert_eq!(cancels, 2);
    assert!(!sim.nodes[0].client.is_busy(&peer(1)) && !sim.nodes[0].client.is_busy(&peer(2)));
}

#[test]
fn a_search_asks_a_bounded_number_of_peers_with_want_have() {
    let config = Config::builder().search_peers(8).build().unwrap();
    let mut sim = Sim::with_config(40, config);
    for other in 1..40 {
        sim.connect(0, other, Link::new(10, 1e8));
    }
    let session = sim.session(0, &[]);
    sim.want_all(0, session, &[cid(1)]);
    let sent = &sim.nodes[0].entries_sent;
    assert_eq!(sent.len(), 8);
    assert!(
        sent.iter()
            .all(|entry| entry.want_type == WantType::Have && !entry.send_dont_have)
    );
}

#[test]
fn higher_priority_is_asked_for_first() {
    let config = Config::builder()
        .max_outstanding_per_peer(1)
        .build()
        .unwrap();
    let mut sim = Sim::with_config(2, config);
    let wanted = cids(10);
    sim.give(1, &wanted, 1000);
    sim.connect(0, 1, Link::new(10, 1e8));
    let session = sim.session(0, &[1]);
    let now = sim.now;
    for (index, cid) in wanted.iter().enumerate() {
        let options = WantOptions::default().priority(Priority(index as i32));
        sim.nodes[0].client.want(session, *cid, options, now);
    }
    sim.drain(0);
    sim.run_until_got(0, 10, secs(10));
    let order: Vec<Cid> = sim.nodes[0].got.iter().map(|(_, _, cid, _)| *cid).collect();
    assert_eq!(order, wanted.into_iter().rev().collect::<Vec<_>>());
}

#[test]
fn two_sessions_that_want_one_block_share_one_request() {
    let mut sim = Sim::new(2);
    sim.give(1, &[cid(1)], 5000);
    sim.connect(0, 1, Link::new(10, 1e8));
    let (a, b) = (sim.session(0, &[1]), sim.session(0, &[]));
    sim.want_all(0, a, &[cid(1)]);
    sim.want_all(0, b, &[cid(1)]);
    sim.run_until_got(0, 2, secs(1));
    assert_eq!(sim.nodes[1].messages_sent, 1);
}

#[test]
fn unwanted_blocks_never_reach_the_user_and_are_reported() {
    let mut sim = Sim::new(2);
    let conn = sim.connect(0, 1, Link::new(10, 1e8));
    let now = sim.now;
    for index in 0..20 {
        let junk = Message {
            blocks: vec![block(cid(index), MIB)],
            ..Message::default()
        };
        sim.nodes[0].client.on_message(peer(1), conn, &junk, now);
    }
    sim.drain(0);
    assert!(sim.nodes[0].got.is_empty());
    let reports = sim.nodes[0].events.iter();
    let reports = reports.filter(|(_, e)| matches!(e, Output::UnwantedBlocks { .. }));
    assert_eq!(reports.count(), 1);
}

#[test]
fn peers_coming_and_going_leave_nothing_behind() {
    let mut sim = Sim::new(6);
    let wanted = cids(2000);
    for seeder in 1..6 {
        sim.give(seeder, &wanted, 20_000);
    }
    let session = sim.session(0, &[1, 2, 3, 4, 5]);
    sim.want_all(0, session, &wanted);
    let mut conns: Vec<_> = (1..6)
        .map(|seeder| (seeder, sim.connect(0, seeder, Link::new(30, 2e6))))
        .collect();
    for _ in 0..60 {
        sim.run_for(Duration::from_millis(150));
        let (seeder, conn) = conns.remove(0);
        sim.disconnect(0, seeder, conn);
        conns.push((seeder, sim.connect(0, seeder, Link::new(30, 2e6))));
    }
    sim.run_until_got(0, 2000, secs(60));
    let now = sim.now;
    sim.nodes[0].client.end_session(session, now);
    for (seeder, conn) in conns {
        sim.disconnect(0, seeder, conn);
    }
    assert_eq!(sim.nodes[0].client.counters(), [0; 5]);
    for seeder in 1..6 {
        assert_eq!(sim.nodes[seeder].server.counters(), [0; 4]);
    }
    assert_eq!(sim.nodes[0].got.len(), 2000, "one terminal event a ticket");
}
