//! The client's figures: rate, latency and duplicates of transfers over simulated links.

use std::time::Duration;

use super::sim::{Churn, Link, Network, Setup, cid, cids, link, millis, network, secs};
use crate::{SessionId, core::ConnKey};

const CHUNK: usize = 256 * 1024;
const MB: f64 = 1e6;

/// One leech (node 0) and a seeder for every link; all seeders have everything.
struct Transfer {
    network: Network,
    conns: Vec<ConnKey>,
    session: SessionId,
    blocks: usize,
}

impl Transfer {
    fn begin(seed: u64, links: &[Link], blocks: u64) -> Self {
        let mut network = Network::new(seed);
        let leech = network.add(Setup {
            records: false,
            ..Setup::default()
        });
        let wanted = cids(blocks);
        let mut conns = Vec::new();
        for link in links {
            let seeder = network.add(Setup::default());
            network.give(seeder, &wanted, CHUNK);
            conns.push(network.connect(leech, seeder, *link));
        }
        let seeders: Vec<usize> = (1..=links.len()).collect();
        let session = network.session(leech, &seeders);
        network.want(leech, session, &wanted);
        Self {
            network,
            conns,
            session,
            blocks: wanted.len(),
        }
    }

    /// Runs until all blocks are there; seconds since the network was made.
    fn finish(&mut self) -> f64 {
        let (got, limit) = (self.blocks, secs(3600));
        assert!(self.network.run_until_got(0, got, limit), "not finished");
        let took = self.network.elapsed().as_secs_f64();
        // What is still under way counts as duplicates.
        self.network.run_for(secs(20));
        took
    }

    fn duplicates(&self) -> f64 {
        self.network.node(0).traffic.duplicate_ratio()
    }

    /// Share of the time that the links at `rate` in all would take that was needed.
    fn utilisation(&mut self, rate: f64) -> f64 {
        (self.blocks * CHUNK) as f64 / rate / self.finish()
    }
}

#[test]
fn one_seeder_of_50_megabytes_a_second_is_used_up_to_a_round_trip_of_300_ms() {
    for (rtt, least) in [(10, 0.95), (100, 0.90), (300, 0.80)] {
        let mut transfer = Transfer::begin(1, &[link(rtt, 50.0 * MB)], 1024);
        let reached = transfer.utilisation(50.0 * MB);
        println!("{rtt} ms: {:.1} % of the link", reached * 100.0);
        assert!(reached >= least, "{rtt} ms: {reached:.3}");
        assert_eq!(transfer.duplicates(), 0.0);
    }
}

#[test]
fn the_first_block_takes_one_round_trip_from_a_provider_and_two_from_an_unknown_peer() {
    for rtt in [10, 100, 300] {
        for (known, others, round_trips) in [(true, 0, 1), (false, 0, 2), (false, 20, 2)] {
            let mut sim = network(2 + others);
            sim.give(1, &[cid(1)], CHUNK);
            for other in 1..2 + others {
                // The block itself takes 2.6 ms.
                sim.connect(0, other, link(rtt, 100.0 * MB));
            }
            let session = sim.session(0, if known { &[1] } else { &[] });
            sim.want(0, session, &[cid(1)]);
            assert!(sim.run_until_got(0, 1, secs(5)));
            let limit = millis(rtt * round_trips + 5);
            assert!(sim.elapsed() <= limit, "{rtt} ms: {:?}", sim.elapsed());
        }
    }
}

#[test]
fn equal_seeders_send_no_block_twice() {
    for seeders in [1, 2, 4, 8, 16] {
        for (rtt, rate) in [(20, 10.0 * MB), (100, 5.0 * MB)] {
            let mut transfer = Transfer::begin(1, &vec![link(rtt, rate); seeders], 512);
            let reached = transfer.utilisation(rate * seeders as f64);
            println!("{seeders} of {rate:.0} B/s at {rtt} ms: {reached:.3}");
            assert_eq!(transfer.duplicates(), 0.0, "{seeders} seeders at {rtt} ms");
        }
    }
}

#[test]
fn jittered_seeders_send_at_most_one_percent_twice() {
    for seed in 0..4 {
        let links: Vec<Link> = [100, 500, 1000, 250, 750, 100, 500, 1000]
            .into_iter()
            .map(|rtt| link(rtt, 5.0 * MB).jitter(millis(rtt)))
            .collect();
        for count in [2, 4, 8] {
            let mut transfer = Transfer::begin(seed, &links[..count], 512);
            transfer.finish();
            let duplicates = transfer.duplicates();
            println!(
                "{count} jittered seeders: {:.2} % twice",
                duplicates * 100.0
            );
            assert!(
                duplicates <= 0.01,
                "{count} seeders, {seed}: {duplicates:.4}"
            );
        }
    }
}

#[test]
fn seeders_of_which_a_tenth_is_lost_every_second_send_at_most_three_percent_twice() {
    for seed in 0..4 {
        let mut transfer = Transfer::begin(seed, &[link(50, 5.0 * MB); 8], 2048);
        let churn = Churn {
            breaks_per_second: 0.1,
            downtime: secs(1),
        };
        transfer.network.set_churn(Some(churn));
        let took = transfer.finish();
        let duplicates = transfer.duplicates();
        println!("churn: {took:.1} s, {:.2} % twice", duplicates * 100.0);
        assert!(duplicates <= 0.03, "{seed}: {duplicates:.4}");
    }
}

#[test]
fn lossy_links_send_nothing_twice_that_was_not_late() {
    let lossy = link(50, 5.0 * MB).loss(0.001);
    let mut transfer = Transfer::begin(1, &[lossy; 4], 512);
    transfer.finish();
    assert!(transfer.duplicates() <= 0.01, "{}", transfer.duplicates());
}

#[test]
fn four_seeders_of_10_megabytes_a_second_add_up() {
    let mut transfer = Transfer::begin(1, &[link(20, 10.0 * MB); 4], 1024);
    let reached = transfer.utilisation(40.0 * MB);
    println!("4 x 10 MB/s: {:.1} % of the sum", reached * 100.0);
    assert!(reached >= 0.95, "{reached:.3}");
    assert_eq!(transfer.duplicates(), 0.0);
}

#[test]
fn seeders_of_one_two_four_and_eight_parts_add_up() {
    let unequal = [1.0, 2.0, 4.0, 8.0].map(|factor| link(20, factor * 4.0 * MB));
    // 256 MiB, and so little that the slowest could hold up the end.
    for blocks in [1024, 256] {
        let mut transfer = Transfer::begin(1, &unequal, blocks);
        let reached = transfer.utilisation(60.0 * MB);
        println!(
            "1:2:4:8, {blocks} blocks: {:.1} % of the sum, {:.2} % twice",
            reached * 100.0,
            transfer.duplicates() * 100.0
        );
        assert!(reached >= 0.90, "{blocks}: {reached:.3}");
        assert!(transfer.duplicates() <= 0.01);
    }
}

#[test]
fn a_seeder_that_stalls_in_the_middle_of_a_block_costs_a_tenth_at_most() {
    // In the middle, near the end, and in the last blocks.
    for after in [3000, 6000, 6500] {
        let run = |stalls: bool| {
            let mut transfer = Transfer::begin(1, &[link(20, 10.0 * MB); 4], 1024);
            transfer.network.run_for(millis(after));
            let conn = transfer.conns[0];
            if stalls {
                transfer.network.stall(conn, 1);
            } else {
                transfer.network.disconnect(conn);
            }
            transfer.finish()
        };
        let (stalled, lost) = (run(true), run(false));
        println!("after {after} ms: {stalled:.2} s stalled, {lost:.2} s lost");
        assert!(stalled <= 1.1 * lost, "{stalled:.2} s and {lost:.2} s");
    }
}

#[test]
fn the_last_block_is_not_waited_for_longer_than_another_seeder_needs() {
    // One block at a seeder that hangs; the other one could deliver it in 20 ms.
    let mut sim = network(3);
    let wanted = cids(20);
    let mut conns = Vec::new();
    for seeder in [1, 2] {
        sim.give(seeder, &wanted, CHUNK);
        conns.push(sim.connect(0, seeder, link(20, 50.0 * MB)));
    }
    let session = sim.session(0, &[1, 2]);
    // Both are known to deliver.
    sim.want(0, session, &wanted[..16]);
    assert!(sim.run_until_got(0, 16, secs(1)));
    sim.want(0, session, &wanted[16..]);
    sim.stall(conns[0], 1);
    assert!(sim.run_until_got(0, 20, millis(400)), "hedged in time");
    sim.run_for(secs(1));
    let now = sim.now();
    sim.disconnect(conns[0]);
    assert!(now > sim.now() - Duration::from_secs(1));
    // The cancel reached the other one too: it holds nothing of ours.
    assert!(sim.node(2).server.wantlist().is_empty());
}

#[test]
fn a_session_that_ends_costs_no_more_than_what_is_on_the_link() {
    let mut transfer = Transfer::begin(1, &[link(100, 10.0 * MB)], 1024);
    transfer.network.run_for(secs(5));
    let now = transfer.network.now();
    let before = transfer.network.node(0).traffic.bytes_received;
    let session = transfer.session;
    transfer
        .network
        .node_mut(0)
        .client
        .end_session(session, now);
    transfer.network.settle(0);
    transfer.network.run_for(secs(20));
    let after = transfer.network.node(0).traffic.bytes_received - before;
    // A round trip, and the message that was being written.
    let most = 10.0 * MB * 0.1 + 2.0 * CHUNK as f64;
    assert!(after as f64 <= most, "{after} bytes");
}

#[test]
fn the_window_does_not_grow_with_the_queue_that_it_makes() {
    let mut transfer = Transfer::begin(1, &[link(20, 10.0 * MB)], 2400);
    let seeder = transfer.network.node(1).id;
    transfer.network.run_for(secs(2));
    for _ in 0..55 {
        transfer.network.run_for(secs(1));
        let client = &transfer.network.node(0).client;
        let on_order = client.wants_on(&seeder, transfer.conns[0]);
        // Twice 10 MB/s for 40 ms are three blocks; four is the least.
        assert!(on_order <= 6, "{on_order} blocks of 256 KiB");
    }
}

#[test]
fn a_link_that_becomes_longer_is_filled_again() {
    let mut transfer = Transfer::begin(1, &[link(10, 20.0 * MB)], 4096);
    transfer.network.run_for(secs(5));
    let conn = transfer.conns[0];
    transfer.network.set_link(conn, link(200, 20.0 * MB));
    // Time to notice.
    transfer.network.run_for(secs(15));
    let before = transfer.network.node(0).got.len();
    transfer.network.run_for(secs(10));
    let reached = (transfer.network.node(0).got.len() - before) as f64 * CHUNK as f64 / 10.0;
    assert!(reached >= 0.8 * 20.0 * MB, "{reached:.0} bytes a second");
}
