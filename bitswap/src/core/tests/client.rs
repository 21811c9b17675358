use std::collections::HashSet;

use cid::Cid;
use web_time::Instant;

use super::sim::{
    Link, Network, block, cid, cids, link, millis, network, network_with, peer, secs,
};
use crate::{
    Config, Priority, SessionOptions, WantOptions,
    core::{
        ConnKey, Path,
        client::{Client, Output},
    },
    message::{Message, Presence, Version, WantType},
};

const MIB: usize = 1024 * 1024;
const CHUNK: usize = 256 * 1024;

/// Bytes of blocks that node 0 received and did not want (any more).
fn unwanted(sim: &Network) -> u64 {
    (0..sim.node_count())
        .filter_map(|other| sim.node(0).client.received(&sim.node(other).id))
        .map(|received| received.unwanted_bytes)
        .sum()
}

/// Share of the link's rate that a transfer of `count` chunks reaches.
fn utilisation(rtt_ms: u64, rate: f64, count: u64, bytes: usize) -> f64 {
    let mut sim = network(2);
    let wanted = cids(count);
    sim.give(1, &wanted, bytes);
    sim.connect(0, 1, link(rtt_ms, rate));
    let session = sim.session(0, &[1]);
    sim.want(0, session, &wanted);
    assert!(sim.run_until_got(0, wanted.len(), secs(600)));
    assert_eq!(unwanted(&sim), 0);
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
    let mut sim = network(2);
    let wanted = cids(96);
    sim.give(1, &wanted, CHUNK);
    sim.connect(0, 1, link(100, 1e9));
    let session = sim.session(0, &[1]);
    for (done, cid) in wanted[..64].iter().enumerate() {
        sim.want(0, session, &[*cid]);
        assert!(sim.run_until_got(0, done + 1, secs(1)));
    }
    let start = sim.now();
    sim.want(0, session, &wanted[64..]);
    assert!(sim.run_until_got(0, 96, secs(10)));
    // 8 MiB in one round trip: one block at a time said nothing about the peer's rate.
    assert!(sim.now() - start < millis(150), "{:?}", sim.now() - start);
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
        let mut sim = network(2);
        sim.give(1, &[cid(1)], 5000);
        sim.connect(0, 1, link(100, 1e9));
        let session = sim.session(0, if known { &[1] } else { &[] });
        sim.want(0, session, &[cid(1)]);
        assert!(sim.run_until_got(0, 1, secs(5)));
        let limit = millis(100 * round_trips + 5);
        assert!(sim.elapsed() <= limit, "{known}: {:?}", sim.elapsed());
    }
}

#[test]
fn equal_seeders_add_up_without_a_duplicate() {
    let mut sim = network(5);
    let wanted = cids(512);
    for seeder in 1..5 {
        sim.give(seeder, &wanted, CHUNK);
        sim.connect(0, seeder, link(20, 10e6));
    }
    let session = sim.session(0, &[1, 2, 3, 4]);
    sim.want(0, session, &wanted);
    assert!(sim.run_until_got(0, wanted.len(), secs(60)));
    sim.run_for(secs(1));
    let ideal = 512.0 * CHUNK as f64 / 40e6;
    let last = sim.node(0).got.last().unwrap().at;
    let took = sim.elapsed().as_secs_f64() - (sim.now() - last).as_secs_f64();
    assert!(ideal / took >= 0.9, "{:.3}", ideal / took);
    assert_eq!(unwanted(&sim), 0);
}

#[test]
fn unequal_seeders_are_used_according_to_their_speed() {
    let mut sim = network(5);
    let wanted = cids(1024);
    for (seeder, factor) in [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0)] {
        sim.give(seeder, &wanted, CHUNK);
        sim.connect(0, seeder, link(20, factor * 4e6));
    }
    let session = sim.session(0, &[1, 2, 3, 4]);
    sim.want(0, session, &wanted);
    assert!(sim.run_until_got(0, wanted.len(), secs(120)));
    let ideal = 1024.0 * CHUNK as f64 / 60e6;
    let reached = ideal / sim.elapsed().as_secs_f64();
    assert!(reached >= 0.85, "{reached:.3}");
}

#[test]
fn a_lost_seeder_is_replaced_and_asked_again_when_it_is_back() {
    let mut sim = network(3);
    let wanted = cids(200);
    sim.give(1, &wanted, CHUNK);
    sim.give(2, &wanted[..100], CHUNK);
    let first = sim.connect(0, 1, link(20, 20e6));
    sim.connect(0, 2, link(20, 20e6));
    let session = sim.session(0, &[1, 2]);
    sim.want(0, session, &wanted);
    assert!(sim.run_until_got(0, 20, secs(10)));
    sim.disconnect(first);
    sim.run_for(secs(20));
    let half: HashSet<Cid> = sim.node(0).got.iter().map(|got| got.cid).collect();
    assert!(wanted[..100].iter().all(|cid| half.contains(cid)));
    assert!(half.len() < 200);
    sim.connect(0, 1, link(20, 20e6));
    assert!(sim.run_until_got(0, 200, secs(10)));
}

#[test]
fn a_silent_seeder_loses_its_requests_to_the_others() {
    let mut sim = network(3);
    let wanted = cids(400);
    let mut conns = Vec::new();
    for seeder in [1, 2] {
        sim.give(seeder, &wanted, CHUNK);
        conns.push(sim.connect(0, seeder, link(20, 20e6)));
    }
    let session = sim.session(0, &[1, 2]);
    sim.want(0, session, &wanted);
    assert!(sim.run_until_got(0, 100, secs(10)));
    sim.stall(conns[0], 1);
    assert!(sim.run_until_got(0, 400, secs(30)));
}

#[test]
fn a_peer_that_owes_answers_and_is_silent_is_told_again_and_again() {
    let mut sim = network(2);
    let wanted = cids(400);
    sim.give(1, &wanted, CHUNK);
    let conn = sim.connect(0, 1, link(20, 20e6));
    let session = sim.session(0, &[1]);
    sim.want(0, session, &wanted);
    assert!(sim.run_until_got(0, 100, secs(10)));
    let told = |sim: &Network| {
        let events = sim.node(0).events.iter();
        let silent = events.filter(|(_, event)| match event {
            Output::Silent {
                peer: id,
                conn: over,
            } => (*id, *over) == (peer(1), conn),
            _ => false,
        });
        silent.count()
    };
    assert_eq!(told(&sim), 0);
    sim.stall(conn, 1);
    sim.run_for(secs(10));
    assert!((1..=10).contains(&told(&sim)), "{}", told(&sim));
    let before = told(&sim);
    sim.run_for(secs(60));
    assert!((before + 1..=20).contains(&told(&sim)), "{}", told(&sim));
}

/// One that has what is wanted and never sends it, of which nothing else is known: every deadline lies ahead of its handling.
#[test]
fn a_peer_that_never_answers_keeps_nobody_busy() {
    #[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
    let start = Instant::now();
    let mut client = Client::new(Config::default(), [7; 32], start);
    let mut now = start;
    client.on_connected(peer(1), ConnKey(1), Path::Direct, now);
    client.on_version(peer(1), ConnKey(1), Version::V1_2, now);
    let session = client.new_session(SessionOptions::default());
    client.want(session, cid(1), WantOptions::default(), now);
    let has_it = Message {
        presences: vec![Presence {
            cid: cid(1),
            have: true,
        }],
        ..Message::default()
    };
    let mut is_asked = false;
    let mut silent = 0;
    let mut calls = 0;
    let end = now + secs(600);
    while now < end {
        while let Some(output) = client.poll_output() {
            match output {
                Output::Send { peer, .. } => {
                    client.on_written(peer, now);
                    if !std::mem::replace(&mut is_asked, true) {
                        client.on_message(peer, ConnKey(1), &has_it, now);
                    }
                }
                Output::Silent { .. } => silent += 1,
                _ => {}
            }
        }
        let Some(at) = client.poll_timeout() else {
            break;
        };
        now = now.max(at);
        client.handle_timeout(now);
        calls += 1;
        assert!(calls < 2000, "{calls} after {:?}", now - start);
    }
    assert!((5..=100).contains(&silent), "{silent}");
}

#[test]
fn a_seeder_that_talks_about_other_blocks_loses_its_requests_like_a_silent_one() {
    let mut sim = network(3);
    let wanted = cids(400);
    let mut conns = Vec::new();
    for seeder in [1, 2] {
        sim.give(seeder, &wanted, CHUNK);
        conns.push(sim.connect(0, seeder, link(20, 20e6)));
    }
    let session = sim.session(0, &[1, 2]);
    sim.want(0, session, &wanted);
    assert!(sim.run_until_got(0, 100, secs(10)));
    sim.stall(conns[0], 1);
    let chatter = Message {
        presences: vec![Presence {
            cid: cid(1_000_000),
            have: true,
        }],
        blocks: vec![block(cid(1_000_001), 1)],
        ..Message::default()
    };
    for _ in 0..600 {
        let now = sim.now();
        let client = &mut sim.node_mut(0).client;
        client.on_message(peer(1), conns[0], &chatter, now);
        sim.settle(0);
        sim.run_for(millis(50));
    }
    assert_eq!(sim.node(0).got.len(), 400);
}

#[test]
fn an_absent_block_is_fetched_from_whom_has_it() {
    let mut sim = network(4);
    sim.give(3, &[cid(1)], 1000);
    for other in [1, 2, 3] {
        sim.connect(0, other, link(10, 1e8));
    }
    let session = sim.session(0, &[1, 2, 3]);
    sim.want(0, session, &[cid(1)]);
    assert!(sim.run_until_got(0, 1, millis(100)));
    sim.run_for(secs(1));
    // Nobody keeps the want.
    for other in [1, 2, 3] {
        assert!(sim.node_mut(other).server.wantlist().is_empty());
    }
}

#[test]
fn providers_are_asked_for_at_once_when_nobody_is_connected() {
    let mut sim = network(2);
    sim.give(1, &[cid(1)], 1000);
    let session = sim.session(0, &[]);
    let ticket = sim.want(0, session, &[cid(1)])[0];
    let (at, event) = sim.node(0).events.last().unwrap();
    assert!(matches!(event, Output::ProvidersWanted { ticket: t, .. } if *t == ticket));
    assert_eq!(*at, sim.now());
    let provider = sim.node(1).id;
    let now = sim.now();
    sim.node_mut(0)
        .client
        .add_providers(ticket, [provider], now);
    sim.settle(0);
    assert!(matches!(sim.node(0).events.last(), Some((_, Output::Dial(id))) if *id == provider));
    sim.connect(0, 1, link(10, 1e8));
    assert!(sim.run_until_got(0, 1, millis(12)));
}

#[test]
fn the_search_is_repeated_until_it_is_cancelled() {
    let mut sim = network(1);
    let session = sim.session(0, &[]);
    let ticket = sim.want(0, session, &[cid(1)])[0];
    sim.run_for(secs(100));
    let asked = sim.node(0).events.len();
    assert_eq!(asked, 4, "at 0, 30, 60 and 90 s");
    let now = sim.now();
    sim.node_mut(0).client.cancel(ticket, now);
    sim.settle(0);
    sim.run_for(secs(100));
    assert_eq!(sim.node(0).events.len(), asked);
    sim.node_mut(0).client.end_session(session, now);
    assert_eq!(sim.node_mut(0).client.counters(), [0; 5]);
}

#[test]
fn a_block_that_appears_later_is_fetched() {
    let mut sim = network(2);
    sim.connect(0, 1, link(10, 1e8));
    let session = sim.session(0, &[1]);
    sim.want(0, session, &[cid(1)]);
    sim.run_for(secs(1));
    sim.put(1, &[cid(1)], 5000);
    assert!(sim.run_until_got(0, 1, millis(30)));
}

#[test]
fn a_peer_before_1_2_is_taken_to_lack_what_it_does_not_send() {
    let mut sim = network(3);
    sim.node_mut(1).setup.version = Version::V1_1;
    sim.give(2, &[cid(1)], 1000);
    sim.connect(0, 1, link(10, 1e8));
    let session = sim.session(0, &[1]);
    sim.want(0, session, &[cid(1)]);
    assert!(
        sim.node(0)
            .entries_sent
            .iter()
            .all(|entry| !entry.send_dont_have)
    );
    sim.run_for(secs(6));
    sim.connect(0, 2, link(10, 1e8));
    let id = sim.node(2).id;
    let now = sim.now();
    sim.node_mut(0).client.add_session_peer(session, id, now);
    sim.settle(0);
    assert!(sim.run_until_got(0, 1, secs(12)));
}

#[test]
fn unacknowledged_blocks_stop_the_requests() {
    let config = Config::builder()
        .max_unacknowledged_bytes(4 * MIB as u64)
        .build()
        .unwrap();
    let mut sim = network_with(2, config);
    let wanted = cids(100);
    sim.give(1, &wanted, CHUNK);
    sim.connect(0, 1, link(10, 1e8));
    sim.node_mut(0).setup.takes = false;
    let session = sim.session(0, &[1]);
    let tickets = sim.want(0, session, &wanted);
    sim.run_for(secs(30));
    assert_eq!(sim.node(0).got.len(), 16);
    let now = sim.now();
    for got in sim.node(0).got.clone() {
        sim.node_mut(0).client.taken(got.ticket, CHUNK, now);
    }
    sim.node_mut(0).setup.takes = true;
    sim.settle(0);
    assert!(sim.run_until_got(0, tickets.len(), secs(30)));
}

#[test]
fn no_peer_holds_more_than_a_thousand_wants() {
    let mut sim = network(2);
    let wanted = cids(5000);
    sim.give(1, &wanted, 100);
    sim.connect(0, 1, link(100, 1e8));
    let session = sim.session(0, &[1]);
    sim.want(0, session, &wanted);
    while sim.node(0).got.len() < 5000 {
        let until = sim.now() + secs(10);
        assert!(sim.step(until));
        assert!(sim.node(1).server.counters()[1] <= 1000);
    }
    assert_eq!(unwanted(&sim), 0);
}

#[test]
fn new_wants_take_the_better_connection_and_the_rest_follows_when_the_worse_one_ends() {
    let mut sim = network(2);
    let wanted = cids(400);
    sim.give(1, &wanted, CHUNK);
    let slow = Link {
        path: Path::Relayed,
        ..link(100, 2e6)
    };
    let relayed = sim.connect(0, 1, slow);
    let session = sim.session(0, &[1]);
    sim.want(0, session, &wanted);
    assert!(sim.run_until_got(0, 2, secs(10)));
    let direct = sim.connect(0, 1, link(50, 50e6));
    sim.run_for(secs(1));
    let peer = sim.node(1).id;
    assert!(
        sim.node(0)
            .got
            .iter()
            .filter(|got| got.from.unwrap().1 == direct)
            .count()
            > 50
    );
    sim.disconnect(relayed);
    assert!(sim.run_until_got(0, 400, secs(20)));
    assert_eq!(sim.node_mut(0).client.wants_on(&peer, direct), 0);
}

#[test]
fn a_limited_circuit_carries_the_index_and_the_leaf_waits() {
    let mut sim = network(2);
    sim.give(1, &[cid(1)], 1000);
    sim.give(1, &[cid(2)], 20_000);
    sim.give(1, &[cid(3), cid(4)], CHUNK);
    let narrow = Link {
        path: Path::Limited(128 * 1024),
        ..link(100, 1e7)
    };
    sim.connect(0, 1, narrow);
    let session = sim.session(0, &[1]);
    sim.want(0, session, &[cid(1)]);
    assert!(sim.run_until_got(0, 1, secs(1)));
    sim.want(0, session, &[cid(2)]);
    assert!(sim.run_until_got(0, 2, secs(1)));
    let tickets = sim.want(0, session, &[cid(3), cid(4)]);
    sim.run_for(secs(3));
    assert_eq!(sim.node(0).got.len(), 2);
    let warned: Vec<_> = sim
        .node(0)
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            Output::WaitingForDirect { ticket, .. } => Some(*ticket),
            _ => None,
        })
        .collect();
    assert_eq!(warned, tickets, "each ticket once");
    sim.connect(0, 1, link(50, 1e7));
    assert!(sim.run_until_got(0, 4, secs(1)));
}

/// root → index → two leaves.
fn tree(sim: &mut Network, node: usize) {
    sim.give(node, &[cid(1)], 100);
    sim.give(node, &[cid(2)], 9000);
    sim.give(node, &[cid(3), cid(4)], CHUNK);
    sim.node_mut(node).links.insert(cid(1), vec![cid(2)]);
    sim.node_mut(node)
        .links
        .insert(cid(2), vec![cid(3), cid(4)]);
}

#[test]
fn descend_brings_the_first_leaf_in_one_round_trip() {
    let mut sim = network(2);
    tree(&mut sim, 1);
    sim.connect(0, 1, link(100, 1e8));
    let options = SessionOptions::default().descend(2);
    let session = sim.node_mut(0).client.new_session(options);
    let id = sim.node(1).id;
    let now = sim.now();
    sim.node_mut(0).client.add_session_peer(session, id, now);
    sim.want(0, session, &[cid(1)]);
    assert!(sim.run_until_got(0, 1, secs(1)));
    sim.want(0, session, &[cid(2)]);
    assert!(sim.run_until_got(0, 2, secs(1)));
    sim.want(0, session, &[cid(3)]);
    assert!(sim.run_until_got(0, 3, secs(1)));
    assert!(sim.elapsed() < millis(110), "{:?}", sim.elapsed());
    // Only the root was asked for, the leaf after the last was not pushed.
    let asked = sim
        .node(0)
        .entries_sent
        .iter()
        .filter(|entry| !entry.cancel);
    assert_eq!(asked.map(|entry| entry.cid).collect::<Vec<_>>(), [cid(1)]);
    sim.want(0, session, &[cid(4)]);
    assert!(sim.run_until_got(0, 4, secs(1)));
    assert!(sim.elapsed() > millis(200));
    assert_eq!(unwanted(&sim), 0);
}

#[test]
fn pushes_are_kept_only_up_to_what_was_asked_and_only_from_those_asked() {
    let mut sim = network(2);
    let conn = sim.connect(0, 1, link(10, 1e8));
    let session = sim.session(0, &[1]);
    let options = WantOptions::default().descend(1);
    let now = sim.now();
    sim.node_mut(0).client.want(session, cid(1), options, now);
    sim.settle(0);
    let pushed = Message {
        blocks: vec![block(cid(7), 100), block(cid(8), 200)],
        ..Message::default()
    };
    sim.node_mut(0)
        .client
        .on_message(peer(1), conn, &pushed, now);
    assert_eq!(unwanted(&sim), 200, "the second one exceeds the credit");
    sim.want(0, session, &[cid(7)]);
    assert_eq!(sim.node(0).got.len(), 1, "served from the stash");
}

#[test]
fn an_identity_cid_needs_nobody() {
    let mut sim = network(1);
    let hash = cid::multihash::Multihash::wrap(0, b"hello").unwrap();
    let session = sim.session(0, &[]);
    sim.want(0, session, &[Cid::new_v1(0x55, hash)]);
    assert_eq!(sim.node(0).got.len(), 1);
    assert!(sim.node(0).events.is_empty());
}

#[test]
fn the_deliverer_gets_a_cancel_too_and_other_peers_at_once() {
    let mut sim = network(3);
    sim.give(1, &[cid(1)], 5000);
    sim.connect(0, 1, link(10, 1e8));
    sim.connect(0, 2, link(10, 1e8));
    let session = sim.session(0, &[]);
    sim.want(0, session, &[cid(1)]);
    assert!(sim.run_until_got(0, 1, secs(1)));
    sim.run_for(secs(1));
    let cancels = sim
        .node(0)
        .entries_sent
        .iter()
        .filter(|entry| entry.cancel)
        .count();
    assert_eq!(cancels, 2);
    assert!(!sim.node_mut(0).client.is_busy(&peer(1)) && !sim.node_mut(0).client.is_busy(&peer(2)));
}

#[test]
fn a_search_asks_a_bounded_number_of_peers_with_want_have() {
    let config = Config::builder().search_peers(8).build().unwrap();
    let mut sim = network_with(40, config);
    for other in 1..40 {
        sim.connect(0, other, link(10, 1e8));
    }
    let session = sim.session(0, &[]);
    sim.want(0, session, &[cid(1)]);
    let sent = &sim.node(0).entries_sent;
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
    let mut sim = network_with(2, config);
    let wanted = cids(10);
    sim.give(1, &wanted, 1000);
    sim.connect(0, 1, link(10, 1e8));
    let session = sim.session(0, &[1]);
    let now = sim.now();
    for (index, cid) in wanted.iter().enumerate() {
        let options = WantOptions::default().priority(Priority(index as i32));
        sim.node_mut(0).client.want(session, *cid, options, now);
    }
    sim.settle(0);
    assert!(sim.run_until_got(0, 10, secs(10)));
    let order: Vec<Cid> = sim.node(0).got.iter().map(|got| got.cid).collect();
    assert_eq!(order, wanted.into_iter().rev().collect::<Vec<_>>());
}

#[test]
fn two_sessions_that_want_one_block_share_one_request() {
    let mut sim = network(2);
    sim.give(1, &[cid(1)], 5000);
    sim.connect(0, 1, link(10, 1e8));
    let (a, b) = (sim.session(0, &[1]), sim.session(0, &[]));
    sim.want(0, a, &[cid(1)]);
    sim.want(0, b, &[cid(1)]);
    assert!(sim.run_until_got(0, 2, secs(1)));
    assert_eq!(sim.node(1).traffic.messages_sent, 1);
}

#[test]
fn unwanted_blocks_never_reach_the_user_and_are_reported() {
    let mut sim = network(2);
    let conn = sim.connect(0, 1, link(10, 1e8));
    let now = sim.now();
    for index in 0..20 {
        let junk = Message {
            blocks: vec![block(cid(index), MIB)],
            ..Message::default()
        };
        sim.node_mut(0).client.on_message(peer(1), conn, &junk, now);
    }
    sim.settle(0);
    assert!(sim.node(0).got.is_empty());
    let reports = sim.node(0).events.iter();
    let reports = reports.filter(|(_, e)| matches!(e, Output::UnwantedBlocks { .. }));
    assert_eq!(reports.count(), 1);
}

#[test]
fn peers_coming_and_going_leave_nothing_behind() {
    let mut sim = network(6);
    let wanted = cids(2000);
    for seeder in 1..6 {
        sim.give(seeder, &wanted, 20_000);
    }
    let session = sim.session(0, &[1, 2, 3, 4, 5]);
    sim.want(0, session, &wanted);
    let mut conns: Vec<_> = (1..6)
        .map(|seeder| (seeder, sim.connect(0, seeder, link(30, 2e6))))
        .collect();
    for _ in 0..60 {
        sim.run_for(millis(150));
        let (seeder, conn) = conns.remove(0);
        sim.disconnect(conn);
        conns.push((seeder, sim.connect(0, seeder, link(30, 2e6))));
    }
    assert!(sim.run_until_got(0, 2000, secs(60)));
    let now = sim.now();
    sim.node_mut(0).client.end_session(session, now);
    for (_, conn) in conns {
        sim.disconnect(conn);
    }
    assert_eq!(sim.node_mut(0).client.counters(), [0; 5]);
    for seeder in 1..6 {
        assert_eq!(sim.node_mut(seeder).server.counters(), [0; 4]);
    }
    assert_eq!(sim.node(0).got.len(), 2000, "one terminal event a ticket");
}

#[test]
fn priorities_from_one_to_five_and_any_other_i32_travel_as_they_are_and_can_be_raised() {
    let mut sim = network(2);
    sim.connect(0, 1, link(10, 1e8));
    let session = sim.session(0, &[1]);
    let now = sim.now();
    let priorities = [1, 2, 3, 4, 5, i32::MAX, 0, -7, i32::MIN];
    for (index, priority) in priorities.into_iter().enumerate() {
        let options = WantOptions::default().priority(Priority(priority));
        let client = &mut sim.node_mut(0).client;
        client.want(session, cid(index as u64), options, now);
    }
    sim.settle(0);
    let sent = |sim: &Network| -> Vec<i32> {
        let entries = sim.node(0).entries_sent.iter();
        entries.map(|entry| entry.priority).collect()
    };
    let mut sorted = priorities;
    sorted.sort_unstable();
    sorted.reverse();
    assert_eq!(sent(&sim), sorted);
    // Wanted again, more urgently: the peer is told.
    let options = WantOptions::default().priority(Priority(4));
    let client = &mut sim.node_mut(0).client;
    client.want(session, cid(0), options, now);
    sim.run_for(millis(3));
    assert_eq!(sent(&sim).last(), Some(&4));
}

#[test]
fn blocks_for_prefetching_are_asked_for_when_nobody_waits_for_others() {
    let mut sim = network(2);
    let wanted = cids(20);
    sim.give(1, &wanted, CHUNK);
    sim.connect(0, 1, link(10, 1e7));
    let later = SessionOptions::default().background(true);
    let background = sim.session_with(0, &[1], later);
    let session = sim.session(0, &[1]);
    let first = sim.want(0, session, &wanted[..10]);
    sim.want(0, background, &wanted[10..]);
    assert!(sim.run_until_got(0, 20, secs(5)));
    let got = sim.node(0).got.iter().take(10);
    assert!(got.map(|got| got.ticket).eq(first));
}
