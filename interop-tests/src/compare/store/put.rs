//! Durable puts.

use super::data;
use super::peer::{Blocks, Peer};
use super::{Bench, now, size_name, start};
use crate::compare::figure::Unit;
use crate::compare::{Effort, Error};
use std::path::{Path, PathBuf};
use std::sync::Barrier;

/// Size of a block, writers, blocks of a run, whether CI measures it too.
const CELLS: [(u64, u64, u64, bool); 6] = [
    (256 << 10, 1, 1024, true),
    (256 << 10, 16, 3072, true),
    (4 << 10, 16, 65_536, true),
    (4 << 10, 64, 65_536, true),
    (1, 64, 65_536, false),
    (1 << 20, 16, 768, false),
];

/// `endpoint store put`.
#[derive(Debug, Clone, clap::Args)]
pub struct Put {
    /// Which store.
    pub(super) peer: Peer,
    /// An empty directory.
    pub(super) directory: PathBuf,
    /// Size of a block in bytes.
    pub(super) bytes: usize,
    /// How many blocks.
    pub(super) blocks: u64,
    /// Threads that put them.
    pub(super) writers: u64,
}

/// Capacity that is never an obstacle.
pub(super) fn ample(bytes: usize, blocks: u64) -> u64 {
    (blocks * (bytes as u64 + 256) * 2).max(1 << 30)
}

impl Put {
    pub(super) fn run(self) -> Result<(), Error> {
        let blocks: Vec<_> = data::blocks(0..self.blocks, self.bytes).collect();
        let capacity = ample(self.bytes, self.blocks);
        let store = self
            .peer
            .open(&self.directory, capacity, self.writers == 1)?;
        let nanoseconds = put(&*store, &blocks, self.writers)?;
        println!("done {} {nanoseconds}", self.blocks);
        store.close()
    }
}

/// `writers` threads put the blocks; from the first put to the last answer, in nanoseconds.
pub(super) fn put(
    store: &dyn Blocks,
    blocks: &[(cid::Cid, bytes::Bytes)],
    writers: u64,
) -> Result<u128, Error> {
    let writers = usize::try_from(writers.max(1))?;
    let barrier = Barrier::new(writers + 1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..writers)
            .map(|writer| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    for (cid, data) in blocks.iter().skip(writer).step_by(writers) {
                        store.put(cid, data)?;
                    }
                    Ok(())
                })
            })
            .collect();
        barrier.wait();
        let began = now();
        for thread in threads {
            let result: Result<(), Error> = thread.join().map_err(|_| "a writer panicked")?;
            result?;
        }
        Ok(began.elapsed().as_nanos())
    })
}

pub(super) async fn measure(bench: &mut Bench<'_>) -> Result<(), Error> {
    for (bytes, writers, blocks, quick) in CELLS {
        let name = format!("store.put.{}.{writers}w", size_name(bytes));
        if !bench.wants(&name) || (bench.effort == Effort::Quick && !quick) {
            continue;
        }
        let blocks = bench.effort.scale(blocks);
        let mut rounds = Vec::new();
        for round in 0..=bench.effort.runs() {
            let mut rates = Vec::new();
            for peer in std::iter::once(Peer::Ours).chain(Peer::OTHERS) {
                let directory = bench.directory()?;
                rates.push(run(peer, directory.path(), bytes, blocks, writers).await?);
                directory.remove()?;
            }
            if round > 0 {
                rounds.push(rates);
            }
        }
        bench.report(&name, Unit::PerSecond, &Peer::OTHERS, &rounds);
    }
    Ok(())
}

/// Puts a second.
async fn run(
    peer: Peer,
    directory: &Path,
    bytes: u64,
    blocks: u64,
    writers: u64,
) -> Result<f64, Error> {
    let mut endpoint = start(
        "put",
        &[
            &peer.name(),
            &directory.display(),
            &bytes,
            &blocks,
            &writers,
        ],
    )?;
    let [puts, nanoseconds] = endpoint.numbers("done").await?;
    endpoint.end().await?;
    Ok(puts as f64 * 1e9 / nanoseconds.max(1) as f64)
}
