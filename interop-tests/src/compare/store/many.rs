//! A million small blocks: the memory that each takes, and how fast a store that was killed opens.

use super::data::{Digest, digest};
use super::peer::Blocks as _;
use super::process::{anonymous_memory, drop_page_cache, files, sync_file_system};
use super::put::ample;
use super::{Bench, data, now, start};
use crate::compare::endpoint::stdin_closed;
use crate::compare::figure::{Figure, Unit};
use crate::compare::{Effort, Error};
use anypath_tiered_store::PutOptions;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ours::Ours;

/// How many.
const BLOCKS: u64 = 1_000_000;

/// Size of each.
const BYTES: usize = 256;

/// One in so many is pinned, and another one has a time to live.
const PINNED: u64 = 10;

/// `endpoint store crowd`.
#[derive(Debug, Clone, clap::Args)]
pub struct Crowd {
    /// An empty directory.
    directory: PathBuf,
    /// How many blocks.
    blocks: u64,
}

impl Crowd {
    pub(super) fn run(self) -> Result<(), Error> {
        let store = Ours::open(&self.directory, ample(BYTES, self.blocks))?;
        for (remainder, options) in [
            (0, PutOptions::pinned("set")),
            (
                1,
                PutOptions::default().with_ttl(Duration::from_secs(86_400)),
            ),
        ] {
            let some = (0..self.blocks).filter(|n| n % PINNED == remainder);
            store.fill_with(
                &mut some.flat_map(|n| data::blocks(n..n + 1, BYTES)),
                &options,
            )?;
        }
        let rest = (0..self.blocks).filter(|n| n % PINNED > 1);
        store.fill_with(
            &mut rest.flat_map(|n| data::blocks(n..n + 1, BYTES)),
            &PutOptions::default(),
        )?;
        sync_file_system(&self.directory)?;
        println!("full {}", self.blocks);
        futures::executor::block_on(stdin_closed());
        Err("it was to be killed".into())
    }
}

/// `endpoint store open`.
#[derive(Debug, Clone, clap::Args)]
pub struct Open {
    /// What `crowd` left.
    directory: PathBuf,
    /// How many blocks.
    blocks: u64,
    /// Read from the device, not from the page cache.
    #[arg(long)]
    cold: bool,
}

impl Open {
    pub(super) fn run(self) -> Result<(), Error> {
        if self.cold {
            drop_page_cache(&self.directory)?;
        }
        let began = now();
        let store = Ours::open(&self.directory, ample(BYTES, self.blocks))?;
        let nanoseconds = began.elapsed().as_nanos();
        let blocks = store.store.stats().disk.blocks;
        if blocks != self.blocks {
            return Err(format!("{blocks} blocks of {} are there", self.blocks).into());
        }
        println!("done {blocks} {nanoseconds}");
        Box::new(store).close()
    }
}

/// `endpoint store index`.
#[derive(Debug, Clone, clap::Args)]
pub struct Index {
    /// What `crowd` left.
    directory: PathBuf,
    /// Read from the device, not from the page cache.
    #[arg(long)]
    cold: bool,
}

impl Index {
    /// The newest checkpoint, footers of segments that were sealed after it, and the whole of those that have none.
    pub(super) fn run(self) -> Result<(), Error> {
        if self.cold {
            drop_page_cache(&self.directory)?;
        }
        let began = now();
        let all = files(&self.directory)?;
        let name = |path: &Path| path.file_name().unwrap_or_default().display().to_string();
        let checkpoint = all
            .iter()
            .filter(|path| name(path).starts_with("checkpoint-"))
            .max_by_key(|path| name(path));
        let written = match checkpoint {
            Some(path) => std::fs::metadata(path)?.modified()?,
            None => std::time::UNIX_EPOCH,
        };
        let (mut buffer, mut sum) = (vec![0; 1 << 20], 0);
        for path in &all {
            let file = File::open(path)?;
            let (end, changed) = (file.metadata()?.len(), file.metadata()?.modified()?);
            let mut at = if Some(path) == checkpoint {
                0
            } else if name(path).starts_with("segment-") && changed > written {
                footer(&file, end)?.map_or(0, |bytes| end - bytes)
            } else {
                continue;
            };
            while at < end {
                let take = usize::try_from((end - at).min(buffer.len() as u64))?;
                let part = buffer.get_mut(..take).unwrap_or_default();
                file.read_exact_at(part, at)?;
                std::hint::black_box(part);
                at += take as u64;
                sum += take;
            }
        }
        println!("done {sum} {}", began.elapsed().as_nanos());
        Ok(())
    }
}

/// Bytes of a segment's footer, as tiered-store/src/disk/segment.rs describes it.
fn footer(file: &File, end: u64) -> Result<Option<u64>, Error> {
    const TRAILER: u64 = 24;
    let Some(at) = end.checked_sub(TRAILER) else {
        return Ok(None);
    };
    let mut trailer = [0; TRAILER as usize];
    file.read_exact_at(&mut trailer, at)?;
    let (items, magic) = (trailer.first_chunk().copied(), trailer.last_chunk());
    Ok(match (items, magic) {
        (Some(items), Some(b"ANYPFOOT")) => Some(u64::from(u32::from_le_bytes(items)) + TRAILER),
        _ => None,
    })
}

/// `endpoint store memory`.
#[derive(Debug, Clone, clap::Args)]
pub struct Memory {
    /// What `crowd` left; without it, a hash map of digests and places.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// How many blocks.
    blocks: u64,
}

impl Memory {
    pub(super) fn run(self) -> Result<(), Error> {
        let before = anonymous_memory()?;
        let memory = if let Some(directory) = self.directory {
            let store = Ours::open(&directory, ample(BYTES, self.blocks))?;
            let memory = anonymous_memory()?;
            let index = store.store.stats().disk.index_bytes;
            println!("index {index} {}", self.blocks);
            Box::new(store).close()?;
            memory
        } else {
            let map: HashMap<Digest, (u32, u32, u32)> =
                (0..self.blocks).map(|n| (digest(n), (0, 0, 0))).collect();
            let memory = anonymous_memory()?;
            std::hint::black_box(map);
            memory
        };
        println!("memory {} {}", memory - before, self.blocks);
        Ok(())
    }
}

pub(super) async fn measure(bench: &mut Bench<'_>) -> Result<(), Error> {
    let (memory, index, open) = (
        "store.memory.block",
        "store.memory.index",
        "store.reopen.1M",
    );
    if ![memory, index, open].iter().any(|name| bench.wants(name)) {
        return Ok(());
    }
    let crowd = bench.directory()?;
    let mut endpoint = start("crowd", &[&crowd.path().display(), &BLOCKS])?;
    endpoint.line("full").await?;
    endpoint.kill().await?;

    let mut rounds: [Vec<(f64, f64)>; 2] = Default::default();
    for round in 0..=bench.effort.runs() {
        for (cold, rounds) in [true, false].into_iter().zip(&mut rounds) {
            // Opening repairs; each round opens what the kill left.
            let directory = bench.directory()?;
            copy(crowd.path(), directory.path())?;
            sync_file_system(directory.path())?;
            let cold: &[&str] = if cold { &["--cold"] } else { &[] };
            let raw = timed("index", directory.path(), None, cold).await?;
            let ours = timed("open", directory.path(), Some(BLOCKS), cold).await?;
            directory.remove()?;
            if round > 0 {
                rounds.push((ours, raw));
            }
        }
    }
    let [cold, warm] = rounds;
    let figure = |name: String, runs| Figure::new(name, Unit::Milliseconds, runs);
    (bench.report)(figure(format!("{open}.raw_read"), cold));
    (bench.report)(figure(format!("{open}.raw_read_warm"), warm));

    let (mut blocks, mut indexes) = (Vec::new(), Vec::new());
    let runs = match bench.effort {
        Effort::Full => 3,
        Effort::Quick => 1,
    };
    for _ in 0..runs {
        let directory = bench.directory()?;
        copy(crowd.path(), directory.path())?;
        let directory_argument = format!("--directory={}", directory.path().display());
        let mut ours = start("memory", &[&directory_argument, &BLOCKS])?;
        let of_index = each(ours.numbers("index").await?);
        let of_ours = each(ours.numbers("memory").await?);
        ours.end().await?;
        directory.remove()?;
        let mut map = start("memory", &[&BLOCKS])?;
        let of_map = each(map.numbers("memory").await?);
        map.end().await?;
        blocks.push((of_ours, of_map));
        indexes.push((of_index, of_map));
    }
    for (name, runs) in [(memory, blocks), (index, indexes)] {
        (bench.report)(Figure::new(format!("{name}.hash_map"), Unit::Bytes, runs));
    }
    crowd.remove()
}

fn each([bytes, blocks]: [u64; 2]) -> f64 {
    bytes as f64 / blocks.max(1) as f64
}

/// Milliseconds.
async fn timed(
    role: &str,
    directory: &Path,
    blocks: Option<u64>,
    flags: &[&str],
) -> Result<f64, Error> {
    let directory = directory.display();
    let mut arguments: Vec<&dyn ToString> = vec![&directory];
    if let Some(blocks) = &blocks {
        arguments.push(blocks);
    }
    for flag in flags {
        arguments.push(flag);
    }
    let mut endpoint = start(role, &arguments)?;
    let [_, nanoseconds] = endpoint.numbers("done").await?;
    endpoint.end().await?;
    Ok(nanoseconds as f64 / 1e6)
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let copy = to.join(entry.file_name());
        std::fs::copy(entry.path(), &copy)?;
        // `Index` tells by it what the checkpoint has.
        let file = File::options().write(true).open(copy)?;
        file.set_modified(entry.metadata()?.modified()?)?;
    }
    Ok(())
}
