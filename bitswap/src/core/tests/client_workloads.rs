//! boxo's benchmark workloads (bitswap/benchmarks_test.go), simulated: blocks of 8000 bytes, the
//! first one of 800, 10 ms from peer to peer.
//!
//! Published figures: go-bitswap PR 281 (2020), for the rows that it names.

use std::time::Duration;

use cid::Cid;
use rand::{RngExt as _, SeedableRng, rngs::StdRng};

use super::sim::{Link, Network, Setup, cids, millis, secs};
use crate::{SessionId, message::Version};

/// Who has which blocks.
#[derive(Clone, Copy)]
enum Spread {
    AllToAll,
    /// The first three quarters, and the last.
    Overlap1,
    /// Even and odd ones, and every third at both.
    Overlap3,
    OnePeerPerBlock,
}

/// How they are fetched.
#[derive(Clone, Copy)]
enum Fetch {
    OneAtATime,
    BatchBy10,
    /// One call, or one a block: the same to us.
    BigBatch,
    /// 1, 10, and the rest.
    Unixfs,
    /// 1, 10, 89, then five times ten at a time.
    UnixfsLarge,
}

struct Row {
    name: &'static str,
    nodes: usize,
    blocks: u64,
    spread: Spread,
    fetch: Fetch,
    /// Milliseconds.
    published: Option<u64>,
}

struct Report {
    took: Duration,
    network: Network,
}

fn spread(network: &mut Network, spread: Spread, seeders: usize, wanted: &[Cid], bytes: usize) {
    let mut rng = StdRng::seed_from_u64(3);
    for (index, cid) in wanted.iter().enumerate() {
        let size = if index == 0 { bytes.min(800) } else { bytes };
        let third = index % 3 == 0;
        let has: Vec<usize> = match spread {
            Spread::AllToAll => (1..=seeders).collect(),
            Spread::Overlap1 => [(1, index < 75), (2, index >= 25)]
                .into_iter()
                .filter_map(|(node, has)| has.then_some(node))
                .collect(),
            Spread::Overlap3 => [(1, third || index % 2 == 0), (2, third || index % 2 == 1)]
                .into_iter()
                .filter_map(|(node, has)| has.then_some(node))
                .collect(),
            Spread::OnePeerPerBlock => vec![rng.random_range(1..=seeders)],
        };
        for node in has {
            network.give(node, &[*cid], size);
        }
    }
}

fn fetch(network: &mut Network, session: SessionId, how: Fetch, wanted: &[Cid]) {
    let rest = |from: usize| wanted.get(from..).unwrap_or_default();
    let batches: Vec<&[Cid]> = match how {
        Fetch::OneAtATime => wanted.chunks(1).collect(),
        Fetch::BatchBy10 => wanted.chunks(10).collect(),
        Fetch::BigBatch => vec![wanted],
        Fetch::Unixfs => vec![&wanted[..1], &wanted[1..11], rest(11)],
        Fetch::UnixfsLarge => {
            let mut batches = vec![&wanted[..1], &wanted[1..11], &wanted[11..100]];
            batches.extend(rest(100).chunks(50));
            batches
        }
    };
    for batch in batches {
        let before = network.node(0).got.len();
        network.want(0, session, batch);
        let done = network.run_until_got(0, before + batch.len(), secs(600));
        assert!(
            done,
            "{} of {}",
            network.node(0).got.len(),
            before + batch.len()
        );
    }
}

fn run(row: &Row) -> Report {
    let mut network = Network::new(5);
    network.add(Setup::default());
    let wanted = cids(row.blocks);
    let delay = Link::new(millis(20), f64::INFINITY);
    for node in 1..row.nodes {
        network.add(Setup::default());
        network.connect(0, node, delay);
    }
    spread(&mut network, row.spread, row.nodes - 1, &wanted, 8000);
    let session = network.session(0, &[]);
    fetch(&mut network, session, row.fetch, &wanted);
    let took = network.elapsed();
    network.run_for(secs(1));
    Report { took, network }
}

fn report(name: &str, report: &Report) {
    let traffic = report.network.node(0).traffic;
    println!(
        "{name:38} {:8.1} ms, {:4} blocks, {:3} twice, {:4} messages sent, {:4} received, {} want-haves",
        report.took.as_secs_f64() * 1e3,
        traffic.blocks_received,
        traffic.duplicates_received,
        traffic.messages_sent,
        traffic.messages_received,
        traffic.want_haves_sent,
    );
}

#[rustfmt::skip]
const FIXED_DELAY: [Row; 18] = {
    use Fetch::*;
    use Spread::*;
    const fn row(name: &'static str, nodes: usize, blocks: u64, spread: Spread, fetch: Fetch, published: Option<u64>) -> Row {
        Row { name, nodes, blocks, spread, fetch, published }
    }
    [
        row("3Nodes-AllToAll-OneAtATime", 3, 100, AllToAll, OneAtATime, Some(2050)),
        row("3Nodes-AllToAll-BigBatch", 3, 100, AllToAll, BigBatch, Some(61)),
        row("3Nodes-Overlap1-OneAtATime", 3, 100, Overlap1, OneAtATime, Some(2573)),
        row("3Nodes-Overlap3-OneAtATime", 3, 100, Overlap3, OneAtATime, Some(2934)),
        row("3Nodes-Overlap3-BatchBy10", 3, 100, Overlap3, BatchBy10, Some(472)),
        row("3Nodes-Overlap3-AllConcurrent", 3, 100, Overlap3, BigBatch, Some(82)),
        row("3Nodes-Overlap3-BigBatch", 3, 100, Overlap3, BigBatch, Some(83)),
        row("3Nodes-Overlap3-UnixfsFetch", 3, 100, Overlap3, Unixfs, None),
        row("10Nodes-AllToAll-OneAtATime", 10, 100, AllToAll, OneAtATime, None),
        row("10Nodes-AllToAll-BatchFetchBy10", 10, 100, AllToAll, BatchBy10, None),
        row("10Nodes-AllToAll-BigBatch", 10, 100, AllToAll, BigBatch, None),
        row("10Nodes-AllToAll-AllConcurrent", 10, 100, AllToAll, BigBatch, None),
        row("10Nodes-AllToAll-UnixfsFetch", 10, 100, AllToAll, Unixfs, None),
        row("10Nodes-AllToAll-UnixfsFetchLarge", 10, 1000, AllToAll, UnixfsLarge, None),
        row("10Nodes-OnePeerPerBlock-OneAtATime", 10, 100, OnePeerPerBlock, OneAtATime, None),
        row("10Nodes-OnePeerPerBlock-BigBatch", 10, 100, OnePeerPerBlock, BigBatch, None),
        row("10Nodes-OnePeerPerBlock-UnixfsFetch", 10, 100, OnePeerPerBlock, Unixfs, None),
        row("200Nodes-AllToAll-BigBatch", 200, 20, AllToAll, BigBatch, None),
    ]
};

#[test]
fn the_fixed_delay_workloads_are_not_slower_than_published() {
    for row in &FIXED_DELAY {
        let result = run(row);
        report(row.name, &result);
        if let Some(published) = row.published {
            let limit = millis(published);
            assert!(result.took <= limit, "{}: {:?}", row.name, result.took);
        }
        // Nothing but the first block, which fits into a HAVE, comes more often than asked for.
        let traffic = result.network.node(0).traffic;
        let most = 800 * (row.nodes as u64 - 1);
        assert!(traffic.duplicate_bytes <= most, "{}: {traffic:?}", row.name);
    }
}

/// Seeders of boxo's BenchmarkRealWorld: everyone 60 ms away (normally distributed by 20), some
/// farther, and a rate for each link.
fn real_world(name: &str, medium: (f64, u64), far: (f64, u64), rate: (f64, f64)) -> Report {
    let mut network = Network::new(11);
    let mut rng = StdRng::seed_from_u64(11);
    network.add(Setup::default());
    let wanted = cids(200);
    // The sum of twelve uniform numbers is nearly normal (Irwin-Hall).
    let normal = move |rng: &mut StdRng| (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
    for node in 1..300 {
        network.add(Setup::default());
        let mut delay = 60.0 + 20.0 * normal(&mut rng).abs();
        let draw: f64 = rng.random();
        if draw < far.0 {
            delay += far.1 as f64;
        } else if draw < far.0 + medium.0 {
            delay += medium.1 as f64;
        }
        let rate = (rate.0 + rate.1 * normal(&mut rng)).max(rate.0 / 4.0);
        let round_trip = Duration::from_secs_f64(2.0 * delay / 1e3);
        network.connect(0, node, Link::new(round_trip, rate).jitter(millis(20)));
    }
    spread(&mut network, Spread::AllToAll, 299, &wanted, 8000);
    let session = network.session(0, &[]);
    fetch(&mut network, session, Fetch::BigBatch, &wanted);
    let took = network.elapsed();
    network.run_for(secs(20));
    let result = Report { took, network };
    report(name, &result);
    result
}

#[test]
fn the_real_world_workloads_finish_with_few_duplicates() {
    let rows = [
        ("FastNetwork", (0.0, 0), (0.0, 0), (1.25e6, 0.3e6)),
        (
            "AverageVariableSpeedNetwork",
            (0.3, 140),
            (0.3, 740),
            (0.5e6, 0.08e6),
        ),
        (
            "SlowVariableSpeedNetwork",
            (0.3, 140),
            (0.3, 3940),
            (0.1e6, 16.5e3),
        ),
    ];
    for (name, medium, far, rate) in rows {
        let result = real_world(name, medium, far, rate);
        let traffic = result.network.node(0).traffic;
        // 32 peers are asked for the first one, which fits into a HAVE: 31 copies of 800 bytes. Of the others
        // the session's two doubles, and what crossed its cancel.
        assert!(traffic.duplicates_received <= 31 + 6, "{traffic:?}");
        assert!(
            traffic.duplicate_bytes <= 31 * 800 + 6 * 8000,
            "{traffic:?}"
        );
        assert!(result.took < secs(30), "{:?}", result.took);
    }
}

#[test]
fn seeders_before_1_2_are_fetched_from_though_they_cannot_say_that_they_lack_a_block() {
    for (name, how) in [
        ("Overlap3-OneAtATime", Fetch::OneAtATime),
        ("Overlap3-AllConcurrent", Fetch::BigBatch),
    ] {
        let mut network = Network::new(5);
        network.add(Setup::default());
        let wanted = cids(10);
        for node in 1..3 {
            network.add(Setup {
                version: Version::V1_1,
                ..Setup::default()
            });
            network.connect(0, node, Link::new(millis(20), f64::INFINITY));
        }
        spread(&mut network, Spread::Overlap3, 2, &wanted, 8000);
        let session = network.session(0, &[]);
        fetch(&mut network, session, how, &wanted);
        let took = network.elapsed();
        let result = Report { took, network };
        report(name, &result);
        assert_eq!(result.network.node(0).traffic.want_haves_sent, 0);
    }
}
