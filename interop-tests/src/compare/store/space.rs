//! What reaches the device for a byte of payload: while blocks come in, and while half of them go at random.

use super::peer::{Blocks, Peer};
use super::process::Io;
use super::{Bench, data, put, start};
use crate::compare::Error;
use crate::compare::figure::Unit;
use std::path::PathBuf;

/// Size of a block.
const BYTES: u64 = 256 << 10;

/// Capacity of our store; the peers grow as they like.
const CAPACITY: u64 = 1 << 30;

/// The part of the capacity that is in use after every round, in percent.
const USE: u64 = 75;

/// Times that half of all blocks go and as many come.
const ROUNDS: u64 = 3;

/// Peers that give space back, and can be compared by it.
const PEERS: [Peer; 2] = [Peer::Fjall, Peer::Redb];

/// `endpoint store churn`.
#[derive(Debug, Clone, clap::Args)]
pub struct Churn {
    /// Which store.
    peer: Peer,
    /// An empty directory.
    directory: PathBuf,
    /// Of our store, in bytes.
    capacity: u64,
    /// Blocks that are there after every round.
    blocks: u64,
}

impl Churn {
    pub(super) fn run(self) -> Result<(), Error> {
        let store = self.peer.open(&self.directory, self.capacity, false)?;
        let mut there: Vec<u64> = Vec::new();
        let mut next = 0;
        let mut written = Io::now()?.write_bytes;
        let mut phase = |rounds: u64, store: &dyn Blocks| -> Result<(), Error> {
            for round in 0..rounds {
                let half = data::shuffled(there.len() as u64, round);
                let half = half.get(..half.len() / 2).unwrap_or_default();
                let mut gone: Vec<u64> = half
                    .iter()
                    .filter_map(|at| there.get(usize::try_from(*at).ok()?).copied())
                    .collect();
                let cids: Vec<_> = gone.iter().copied().map(data::cid).collect();
                if !cids.is_empty() {
                    store.delete(&cids)?;
                }
                gone.sort_unstable();
                there.retain(|block| gone.binary_search(block).is_err());
                while (there.len() as u64) < self.blocks {
                    // As many at a time as memory should hold.
                    let more = (self.blocks - there.len() as u64).min(1024);
                    let blocks: Vec<_> = data::blocks(next..next + more, BYTES as usize).collect();
                    put::put(store, &blocks, 16)?;
                    there.extend(next..next + more);
                    next += more;
                }
            }
            Ok(())
        };
        phase(1, &*store)?;
        let ingested = Io::now()?.write_bytes;
        println!("ingest {} {}", self.blocks * BYTES, ingested - written);
        written = ingested;
        phase(ROUNDS, &*store)?;
        for block in there {
            if store.get(&data::cid(block))? != Some(BYTES as usize) {
                return Err("a block is missing or has another size".into());
            }
        }
        store.close()?;
        let user = ROUNDS * (self.blocks / 2) * BYTES;
        println!("deletes {user} {}", Io::now()?.write_bytes - written);
        Ok(())
    }
}

pub(super) async fn measure(bench: &mut Bench<'_>) -> Result<(), Error> {
    let names = [
        "store.write_amplification.ingest",
        "store.write_amplification.deletes50",
    ];
    if !names.iter().any(|name| bench.wants(name)) {
        return Ok(());
    }
    let capacity = bench.effort.scale(CAPACITY);
    let blocks = capacity * USE / 100 / BYTES;
    let (mut ingest, mut deletes) = (Vec::new(), Vec::new());
    // Bytes are counted, not time: one round tells as much as seven.
    for peer in std::iter::once(Peer::Ours).chain(PEERS) {
        let directory = bench.directory()?;
        let mut endpoint = start(
            "churn",
            &[
                &peer.name(),
                &directory.path().display(),
                &capacity,
                &blocks,
            ],
        )?;
        let factor = |[user, written]: [u64; 2]| written as f64 / user.max(1) as f64;
        ingest.push(factor(endpoint.numbers("ingest").await?));
        deletes.push(factor(endpoint.numbers("deletes").await?));
        endpoint.end().await?;
        directory.remove()?;
    }
    for (name, factors) in names.into_iter().zip([ingest, deletes]) {
        bench.report(name, Unit::Times, &PEERS, &[factors]);
    }
    Ok(())
}
