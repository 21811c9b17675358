//! Our block store against what a disk can do and what else could hold blocks: `compare -- store`.
//!
//! Every run is a process and a directory of its own. All stores are called by the same threads through blocking calls, and all are
//! durable in the same way: a put returns after an fdatasync that covers it. Where a peer has one commit at a time, one thread commits
//! for all that wait (`group`). Runs of all stores alternate; one round before the counted ones is thrown away.

mod data;
mod file_per_block;
mod fjall;
mod get;
mod group;
mod hit_ratio;
mod many;
mod ours;
mod peer;
mod process;
mod put;
mod raw;
mod redb;
mod space;

use super::endpoint::Endpoint;
use super::figure::{Figure, Unit};
use super::{Effort, Error};
pub use peer::Peer;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// `compare -- store …`.
#[derive(Debug, Clone, PartialEq, Eq, Default, clap::Args)]
pub struct Options {
    /// Where the stores are made and removed again: on the file system that is to be measured. Default: the system's temporary
    /// directory, or /var/tmp where that is in memory
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Only figures whose name begins so, such as `store.get.4KiB`
    #[arg(long, default_value = "")]
    pub only: String,
    /// The folder with the recorded traces of `store.hit_ratio`. Default: ../shared/traces if it is there; without it only the generated
    /// traces are run
    #[arg(long)]
    pub traces: Option<PathBuf>,
}

/// One process of a measurement.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Task {
    /// Durable puts; prints `done <puts> <nanoseconds>`.
    Put(put::Put),
    /// Puts a data set for `get`; prints `filled <blocks>`.
    Fill(get::Fill),
    /// Random gets from the disk; prints `reads` and `done`.
    Get(get::Get),
    /// Asks for blocks that are not there; prints `absent`.
    Absent(get::Absent),
    /// Ingest, then rounds of deleting half and putting as much; prints `written` of each, in bytes.
    Churn(space::Churn),
    /// Opens many blocks and prints the `memory` that they take.
    Memory(many::Memory),
    /// Puts many small blocks, prints `full` and waits to be killed.
    Crowd(many::Crowd),
    /// Opens what `crowd` left; prints `done <blocks> <nanoseconds>`.
    Open(many::Open),
    /// Reads the bytes of the index once; prints `done <bytes> <nanoseconds>`.
    Index(many::Index),
}

impl Task {
    /// Runs the endpoint.
    ///
    /// # Errors
    ///
    /// Any failure of the store.
    pub fn run(self) -> Result<(), Error> {
        match self {
            Self::Put(task) => task.run(),
            Self::Fill(task) => task.run(),
            Self::Get(task) => task.run(),
            Self::Absent(task) => task.run(),
            Self::Churn(task) => task.run(),
            Self::Memory(task) => task.run(),
            Self::Crowd(task) => task.run(),
            Self::Open(task) => task.run(),
            Self::Index(task) => task.run(),
        }
    }
}

/// What the measuring side of a figure needs.
struct Bench<'a> {
    effort: Effort,
    directory: PathBuf,
    only: String,
    report: &'a mut dyn FnMut(Figure),
}

/// All figures of this area.
pub(super) async fn measure(
    options: Options,
    effort: Effort,
    report: &mut dyn FnMut(Figure),
) -> Result<(), Error> {
    let directory = match options.dir {
        Some(directory) => directory,
        None => {
            let usual = std::env::temp_dir();
            if process::is_tmpfs(&usual)? {
                PathBuf::from("/var/tmp")
            } else {
                usual
            }
        }
    };
    if process::is_tmpfs(&directory)? {
        eprintln!(
            "compare: {} is in memory (tmpfs): nothing there is durable, and these figures say nothing about disks",
            directory.display()
        );
    }
    let mut bench = Bench {
        effort,
        directory,
        only: options.only,
        report,
    };
    hit_ratio::measure(&mut bench, options.traces.as_deref())?;
    put::measure(&mut bench).await?;
    get::measure(&mut bench).await?;
    space::measure(&mut bench).await?;
    many::measure(&mut bench).await
}

impl Bench<'_> {
    fn wants(&self, figure: &str) -> bool {
        figure.starts_with(&self.only) || self.only.starts_with(figure)
    }

    /// A directory for one run.
    fn directory(&self) -> Result<Directory, Error> {
        Ok(Directory(
            tempfile::Builder::new()
                .prefix("anypath-compare-")
                .tempdir_in(&self.directory)?,
        ))
    }

    /// Hands out `[ours, peer]` of each round as a figure for each peer.
    fn report(&mut self, name: &str, unit: Unit, peers: &[Peer], rounds: &[Vec<f64>]) {
        for (number, peer) in peers.iter().enumerate() {
            let runs = rounds
                .iter()
                .filter_map(|round| Some((*round.first()?, *round.get(number + 1)?)))
                .collect();
            (self.report)(Figure::new(format!("{name}.{}", peer.name()), unit, runs));
        }
    }
}

/// Removed at the end, and the removal written, so that the next run does not pay for it.
struct Directory(tempfile::TempDir);

impl Directory {
    fn path(&self) -> &Path {
        self.0.path()
    }

    fn remove(self) -> Result<(), Error> {
        let parent = self.0.path().parent().map(Path::to_owned);
        self.0.close()?;
        parent.map_or(Ok(()), |parent| process::sync_file_system(&parent))
    }
}

fn start(role: &str, arguments: &[&dyn ToString]) -> Result<Endpoint, Error> {
    let arguments = arguments.iter().map(|argument| argument.to_string());
    Endpoint::start(
        None,
        ["store".to_owned(), role.to_owned()]
            .into_iter()
            .chain(arguments),
    )
}

/// The clock of all runs.
fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "it measures time")]
    Instant::now()
}

/// As figures name them: `4KiB`.
fn size_name(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 => format!("{}MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 => format!("{}KiB", bytes >> 10),
        bytes => format!("{bytes}B"),
    }
}
