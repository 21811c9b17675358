//! Random gets with a cold page cache, and the read calls that they take.
//!
//! A data set is made once for each store. Every run opens it in a new process, takes its files out of the page cache
//! (`posix_fadvise(POSIX_FADV_DONTNEED)`; nothing is dirty), and gets distinct blocks. What a store read into memory when it opened stays there,
//! and so do inodes and directories. The kernel's count of bytes from the device must show that the cache was cold.

use super::peer::Peer;
use super::process::{Io, drop_page_cache, sync_file_system};
use super::put::ample;
use super::{Bench, Directory, data, now, size_name, start};
use crate::compare::Error;
use crate::compare::figure::Unit;
use std::path::{Path, PathBuf};
use std::sync::Barrier;

/// Size of a block, blocks of the data set (1 GiB), gets of a run.
const CELLS: [(u64, u64, u64); 2] = [(256 << 10, 4096, 2048), (4 << 10, 262_144, 32_768)];

/// Threads that get.
const READERS: u64 = 8;

/// Questions for blocks that are not there.
const ABSENT: u64 = 1000;

/// `endpoint store fill`.
#[derive(Debug, Clone, clap::Args)]
pub struct Fill {
    /// Which store.
    peer: Peer,
    /// An empty directory.
    directory: PathBuf,
    /// Size of a block in bytes.
    bytes: usize,
    /// How many blocks.
    blocks: u64,
}

impl Fill {
    pub(super) fn run(self) -> Result<(), Error> {
        let capacity = ample(self.bytes, self.blocks);
        let store = self.peer.open(&self.directory, capacity, true)?;
        store.fill(&mut data::blocks(0..self.blocks, self.bytes))?;
        store.close()?;
        sync_file_system(&self.directory)?;
        println!("filled {}", self.blocks);
        Ok(())
    }
}

/// `endpoint store absent`. A process of its own: redb reads whole leaves for it, blocks and all, and keeps them.
#[derive(Debug, Clone, clap::Args)]
pub struct Absent {
    /// Which store.
    peer: Peer,
    /// What `fill` made.
    directory: PathBuf,
    /// Size of a block in bytes.
    bytes: usize,
    /// How many blocks there are.
    blocks: u64,
}

impl Absent {
    pub(super) fn run(self) -> Result<(), Error> {
        let capacity = ample(self.bytes, self.blocks);
        let store = self.peer.open(&self.directory, capacity, true)?;
        let absent: Vec<_> = (self.blocks..self.blocks + ABSENT).map(data::cid).collect();
        drop_page_cache(&self.directory)?;
        let before = Io::now()?;
        for cid in &absent {
            if store.has(cid)? {
                return Err("it has a block that was never put".into());
            }
        }
        println!("absent {} {}", before.reads_since()?, ABSENT);
        store.close()
    }
}

/// `endpoint store get`.
#[derive(Debug, Clone, clap::Args)]
pub struct Get {
    /// Which store.
    peer: Peer,
    /// What `fill` made.
    directory: PathBuf,
    /// Size of a block in bytes.
    bytes: usize,
    /// How many blocks there are.
    blocks: u64,
    /// How many to get.
    gets: u64,
    /// Threads that get them.
    readers: u64,
    /// Decides which ones, and in which order.
    seed: u64,
}

impl Get {
    pub(super) fn run(self) -> Result<(), Error> {
        let capacity = ample(self.bytes, self.blocks);
        let store = self.peer.open(&self.directory, capacity, true)?;
        let wanted: Vec<_> = data::shuffled(self.blocks, self.seed)
            .into_iter()
            .take(usize::try_from(self.gets)?)
            .map(data::cid)
            .collect();
        drop_page_cache(&self.directory)?;

        let readers = usize::try_from(self.readers.max(1))?;
        let barrier = Barrier::new(readers + 1);
        let before = Io::now()?;
        let nanoseconds = std::thread::scope(|scope| -> Result<u128, Error> {
            let threads: Vec<_> = (0..readers)
                .map(|reader| {
                    let (barrier, store, wanted) = (&barrier, &store, &wanted);
                    scope.spawn(move || -> Result<(), Error> {
                        barrier.wait();
                        for cid in wanted.iter().skip(reader).step_by(readers) {
                            if store.get(cid)? != Some(self.bytes) {
                                return Err("a block is missing or has another size".into());
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            barrier.wait();
            let began = now();
            for thread in threads {
                thread.join().map_err(|_| "a reader panicked")??;
            }
            Ok(began.elapsed().as_nanos())
        })?;
        println!("reads {} {}", before.reads_since()?, self.gets);
        let from_device = Io::now()?.read_bytes - before.read_bytes;
        println!("done {} {nanoseconds} {from_device}", self.gets);
        store.close()
    }
}

pub(super) async fn measure(bench: &mut Bench<'_>) -> Result<(), Error> {
    for (bytes, blocks, gets) in CELLS {
        let size = size_name(bytes);
        let (rate, hits, misses) = (
            format!("store.get.{size}.{READERS}r"),
            format!("store.reads.hit.{size}"),
            format!("store.reads.absent.{size}"),
        );
        if ![&rate, &hits, &misses].iter().any(|name| bench.wants(name)) {
            continue;
        }
        let (blocks, gets) = (bench.effort.scale(blocks), bench.effort.scale(gets));
        let mut sets: Vec<(Peer, Directory)> = Vec::new();
        for peer in std::iter::once(Peer::Ours).chain(Peer::OTHERS) {
            let directory = bench.directory()?;
            let mut endpoint = start(
                "fill",
                &[&peer.name(), &directory.path().display(), &bytes, &blocks],
            )?;
            endpoint.line("filled").await?;
            endpoint.end().await?;
            sets.push((peer, directory));
        }
        let (mut rates, mut reads, mut absent) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=bench.effort.runs() {
            let mut runs = Vec::new();
            for (peer, directory) in &sets {
                runs.push(run(*peer, directory.path(), bytes, blocks, gets, round).await?);
            }
            if round > 0 {
                rates.push(runs.iter().map(|run| run.rate).collect());
                reads.push(runs.iter().map(|run| run.reads).collect());
            }
        }
        for (peer, directory) in &sets {
            let directory = directory.path().display();
            let mut endpoint = start("absent", &[&peer.name(), &directory, &bytes, &blocks])?;
            absent.push(each(endpoint.numbers("absent").await?));
            endpoint.end().await?;
        }
        for (_, directory) in sets {
            directory.remove()?;
        }
        bench.report(&rate, Unit::PerSecond, &Peer::OTHERS, &rates);
        bench.report(&hits, Unit::Reads, &Peer::OTHERS, &reads);
        bench.report(&misses, Unit::Reads, &Peer::OTHERS, &[absent]);
    }
    Ok(())
}

struct Run {
    /// Gets a second.
    rate: f64,
    /// Read calls for a get.
    reads: f64,
}

async fn run(
    peer: Peer,
    directory: &Path,
    bytes: u64,
    blocks: u64,
    gets: u64,
    round: usize,
) -> Result<Run, Error> {
    let mut endpoint = start(
        "get",
        &[
            &peer.name(),
            &directory.display(),
            &bytes,
            &blocks,
            &gets,
            &READERS,
            &round,
        ],
    )?;
    let reads = endpoint.numbers("reads").await?;
    let [gets, nanoseconds, from_device] = endpoint.numbers("done").await?;
    endpoint.end().await?;
    // fjall keeps up to 64 MiB in memory after opening.
    if from_device < gets * bytes / 2 {
        eprintln!(
            "compare: {} got {gets} blocks of {bytes} bytes and read {from_device} bytes from the device: the page cache was not cold",
            peer.name()
        );
    }
    Ok(Run {
        rate: gets as f64 * 1e9 / nanoseconds.max(1) as f64,
        reads: each(reads),
    })
}

fn each([calls, operations]: [u64; 2]) -> f64 {
    calls as f64 / operations.max(1) as f64
}
