//! A swarm on virtual time: eight leeches fetch the 64 MiB that one seeder has.
//!
//! `cargo run --release -p anypath-bitswap --features testing --example simulate`

use std::time::Duration;

use anypath_bitswap::testing::{Link, Network, Setup, cids};

const LEECHES: usize = 8;
const BLOCK: usize = 256 * 1024;

fn main() {
    let mut network = Network::new(1);
    let wanted = cids(256);
    // 40 MB/s is all that the seeder can upload, to all of them together.
    let seeder = network.add(Setup {
        upload: Some(40e6),
        ..Setup::default()
    });
    network.give(seeder, &wanted, BLOCK);
    let leeches: Vec<usize> = (0..LEECHES)
        .map(|_| network.add(Setup::default()))
        .collect();
    let link = Link::new(Duration::from_millis(30), 20e6);
    for leech in &leeches {
        network.connect(*leech, seeder, link);
        let session = network.session(*leech, &[seeder]);
        network.want(*leech, session, &wanted);
    }
    for leech in &leeches {
        let done = network.run_until_got(*leech, wanted.len(), Duration::from_secs(60));
        let traffic = network.node(*leech).traffic;
        println!(
            "leech {leech}: {} after {:?}, {} blocks twice, {} messages sent",
            if done { "done" } else { "not done" },
            network.elapsed(),
            traffic.duplicates_received,
            traffic.messages_sent,
        );
    }
    let sent = network.node(seeder).traffic.bytes_sent as f64;
    println!(
        "the seeder sent {:.2} copies",
        sent / (wanted.len() * BLOCK) as f64
    );
}
