//! How close block exchange comes to a bare stream, and how it stands beside other implementations: one seed or four, one leech, over
//! loopback or over the lab's links. `foreign` has those that are not written in Rust.

mod far;
mod foreign;
mod ours;
mod raw;

pub use far::Far;
pub use foreign::Foreign;

use super::endpoint::{Endpoint, megabytes_per_second};
use super::figure::{Figure, Unit};
use super::peers::Peers;
use super::swarm::Transport;
use super::{Effort, Error};
use libp2p::multiaddr::Protocol;
use std::net::Ipv4Addr;
use std::path::Path;

/// `compare -- bitswap …`.
#[derive(Debug, Clone, PartialEq, Eq, Default, clap::Args)]
pub struct Options {
    /// Beside this one instead of the raw stream and the Rust peers; `install-peers` installs it, PEERS_DIR names where
    #[arg(long)]
    pub peer: Option<Foreign>,
}

/// What an endpoint of this executable runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Implementation {
    /// anypath-bitswap with a memory store.
    Ours,
    /// One libp2p stream whose receiver checks the SHA-256 of each block.
    Raw,
}

/// `endpoint bitswap …`: the same arguments that `peers/rust` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Task {
    /// Who runs.
    pub implementation: Implementation,
    /// Serve or fetch.
    #[command(subcommand)]
    pub role: Role,
}

/// Serve or fetch.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Role {
    /// Holds every block; prints `listening <multiaddr>`.
    Seed {
        /// What is served.
        #[command(flatten)]
        load: Load,
        /// Listen on this address instead of loopback.
        #[arg(long)]
        on: Option<Ipv4Addr>,
    },
    /// Fetches every block; prints `done <bytes> <nanoseconds>`, from the first request to the last block, and then
    /// `vain <bytes>`: what came of blocks that it had.
    Leech {
        /// What is fetched.
        #[command(flatten)]
        load: Load,
        /// Outstanding requests of a client that leaves them to its user. Ours sizes its own window, the raw stream has none.
        window: usize,
        /// The seeds. The raw stream has one.
        #[arg(required = true)]
        addresses: Vec<libp2p::Multiaddr>,
        /// Keep the blocks in memory, as a store does. The raw stream keeps none.
        #[arg(long)]
        keep: bool,
    },
}

/// What one run moves.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Load {
    /// What carries the connection.
    pub transport: Transport,
    /// Size of each block in bytes.
    pub block_bytes: usize,
    /// How many blocks.
    pub blocks: u64,
}

impl Task {
    /// Runs the endpoint.
    ///
    /// # Errors
    ///
    /// Any failure of the network.
    pub async fn run(self) -> Result<(), Error> {
        match (self.implementation, self.role) {
            (Implementation::Ours, Role::Seed { load, on }) => {
                ours::seed(load, address(load, on)).await
            }
            (
                Implementation::Ours,
                Role::Leech {
                    load,
                    addresses,
                    keep,
                    ..
                },
            ) => ours::leech(load, addresses, keep).await,
            (Implementation::Raw, Role::Seed { load, on }) => {
                raw::seed(load, address(load, on)).await
            }
            (
                Implementation::Raw,
                Role::Leech {
                    load, addresses, ..
                },
            ) => {
                let [address] = addresses
                    .try_into()
                    .map_err(|_| "the raw stream has one seed")?;
                raw::leech(load, address).await
            }
        }
    }
}

fn address(load: Load, on: Option<Ipv4Addr>) -> libp2p::Multiaddr {
    let loopback = load.transport.loopback();
    match on {
        None => loopback,
        Some(ip) => loopback
            .replace(0, |_| Some(Protocol::Ip4(ip)))
            .unwrap_or(loopback),
    }
}

/// Block sizes, with their name in figures and how many make a run of 64 to 256 MiB.
const SIZES: [(usize, &str, u64); 3] = [
    (8 << 10, "8KiB", 8192),
    (256 << 10, "256KiB", 1024),
    (1 << 20, "1MiB", 256),
];

/// beetswap stalls for 30 s after every 1,024 served wants of a connection (measured): below that is its best case.
const BEETSWAP_BLOCKS: u64 = 1000;

/// Outstanding requests at which beetswap and litep2p did best over all sizes (measured with 32 and 1,000).
const WINDOW: usize = 32;

/// Seeds of the figures with several, and the blocks that they all hold.
const SEEDERS: (usize, u64) = (4, 512);

/// Past its 1,024 wants beetswap needs minutes: it is stopped after so long, and counts with what had come.
const STALLED_SECONDS: u64 = 65;

/// Who ours is compared with.
#[derive(Clone, Copy)]
enum Peer<'a> {
    Raw,
    Foreign(&'a str, &'a Path),
}

/// What ours does with the blocks it fetches: what the other does. The raw stream and litep2p's client check and forget them; beetswap's store
/// keeps them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blocks {
    Kept,
    Dropped,
}

impl Peer<'_> {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw_stream_hashed",
            Self::Foreign("litep2p", _) => "litep2p",
            Self::Foreign(..) => "beetswap",
        }
    }

    /// What ours does with its blocks beside this one.
    fn blocks(self) -> Blocks {
        match self {
            Self::Raw | Self::Foreign("litep2p", _) => Blocks::Dropped,
            Self::Foreign(..) => Blocks::Kept,
        }
    }
}

/// All figures of this area, or those beside one peer.
pub(super) async fn measure(
    options: Options,
    effort: Effort,
    report: &mut dyn FnMut(Figure),
) -> Result<(), Error> {
    if let Some(peer) = options.peer {
        return foreign::measure(peer, effort, report).await;
    }
    let peers = Peers::build().await?;
    let beetswap = Peer::Foreign("beetswap", &peers.beetswap);
    let litep2p = Peer::Foreign("litep2p", &peers.litep2p);
    for transport in Transport::ALL {
        for (block_bytes, size, blocks) in SIZES {
            let blocks = effort.scale(blocks);
            for (peer, blocks) in [
                (Some(Peer::Raw), blocks),
                (Some(beetswap), blocks.min(BEETSWAP_BLOCKS)),
                ((transport == Transport::Tcp).then_some(litep2p), blocks),
            ] {
                let Some(peer) = peer else { continue };
                let load = Load {
                    transport,
                    block_bytes,
                    blocks,
                };
                let mut runs = Vec::new();
                for _ in 0..effort.runs() {
                    let ours = load.run_ours(peer.blocks(), 1).await?;
                    let peer = load.run(peer, 1).await?;
                    runs.push((ours.megabytes_per_second, peer.megabytes_per_second));
                }
                let name = format!("bitswap.{}.{size}.{}", transport.name(), peer.name());
                report(Figure::new(name, Unit::MegabytesPerSecond, runs));
            }
        }
    }
    stalled(beetswap, report).await?;
    several(beetswap, effort, report).await?;
    far::measure(effort, report).await
}

/// More blocks than beetswap's server keeps wants: once, because nothing else takes so long.
async fn stalled(beetswap: Peer<'_>, report: &mut dyn FnMut(Figure)) -> Result<(), Error> {
    let load = Load {
        transport: Transport::Tcp,
        block_bytes: 8 << 10,
        blocks: 8192,
    };
    let ours = load.run_ours(Blocks::Kept, 1).await?;
    let peer = load.run(beetswap, 1).await?;
    report(Figure::new(
        "bitswap.tcp.8KiB.8192blocks.beetswap".to_owned(),
        Unit::MegabytesPerSecond,
        vec![(ours.megabytes_per_second, peer.megabytes_per_second)],
    ));
    Ok(())
}

/// Seeds that all hold everything.
async fn several(
    beetswap: Peer<'_>,
    effort: Effort,
    report: &mut dyn FnMut(Figure),
) -> Result<(), Error> {
    let (seeds, blocks) = SEEDERS;
    let load = Load {
        transport: Transport::Tcp,
        block_bytes: 256 << 10,
        blocks: effort.scale(blocks),
    };
    let (mut speed, mut vain) = (Vec::new(), Vec::new());
    for _ in 0..effort.runs() {
        let ours = load.run_ours(Blocks::Kept, seeds).await?;
        let peer = load.run(beetswap, seeds).await?;
        speed.push((ours.megabytes_per_second, peer.megabytes_per_second));
        vain.push((ours.vain_percent, peer.vain_percent));
    }
    let name = |what: &str| format!("bitswap.tcp.{seeds}seeders.256KiB{what}.beetswap");
    report(Figure::new(name(""), Unit::MegabytesPerSecond, speed));
    report(Figure::new(name(".duplicates"), Unit::Percent, vain));
    Ok(())
}

/// What a run gave.
struct Outcome {
    megabytes_per_second: f64,
    /// Bytes of blocks that came more than once, for a hundred that came first.
    vain_percent: f64,
}

impl Load {
    /// The endpoint's arguments.
    fn arguments(self, peer: Option<Peer<'_>>, role: &str) -> Vec<String> {
        let own: &[&str] = match peer {
            None => &["bitswap", "ours"],
            Some(Peer::Raw) => &["bitswap", "raw"],
            Some(Peer::Foreign(..)) => &[],
        };
        let load = [
            role.to_owned(),
            self.transport.name().to_owned(),
            self.block_bytes.to_string(),
            self.blocks.to_string(),
        ];
        own.iter()
            .map(|&word| word.to_owned())
            .chain(load)
            .collect()
    }

    fn bytes(self) -> u64 {
        self.blocks * self.block_bytes as u64
    }

    /// One run of ours with fresh processes.
    async fn run_ours(self, blocks: Blocks, seeds: usize) -> Result<Outcome, Error> {
        let keep = (blocks == Blocks::Kept).then(|| "--keep".to_owned());
        self.run_processes(None, keep, seeds).await
    }

    /// One run of `peer` with fresh processes.
    async fn run(self, peer: Peer<'_>, seeds: usize) -> Result<Outcome, Error> {
        self.run_processes(Some(peer), None, seeds).await
    }

    /// Ours for None.
    async fn run_processes(
        self,
        peer: Option<Peer<'_>>,
        option: Option<String>,
        seeds: usize,
    ) -> Result<Outcome, Error> {
        let program = match peer {
            Some(Peer::Foreign(_, path)) => Some(path),
            Some(Peer::Raw) | None => None,
        };
        let mut arguments = self.arguments(peer, "leech");
        arguments.extend(option);
        arguments.push(WINDOW.to_string());
        let mut running = Vec::new();
        for _ in 0..seeds {
            let mut seed = Endpoint::start(program, self.arguments(peer, "seed"))?;
            arguments.push(seed.line("listening").await?);
            running.push(seed);
        }
        let before = loopback_bytes()?;
        let mut leech = Endpoint::start(program, arguments)?;
        let [bytes, nanoseconds] = leech.numbers("done").await?;
        let stopped = nanoseconds >= STALLED_SECONDS * 1_000_000_000;
        if bytes != self.bytes() && !stopped {
            return Err(format!("{bytes} bytes arrived of {} blocks", self.blocks).into());
        }
        // Ours counts what came in vain; of others we see what crossed loopback, packet headers included.
        let vain = match program {
            None => leech.numbers::<1>("vain").await?[0],
            Some(_) => (loopback_bytes()? - before).saturating_sub(bytes),
        };
        leech.end().await?;
        for seed in running {
            seed.end().await?;
        }
        Ok(Outcome {
            megabytes_per_second: megabytes_per_second([bytes, nanoseconds]),
            vain_percent: 100.0 * vain as f64 / bytes.max(1) as f64,
        })
    }
}

/// Bytes that loopback has delivered so far.
fn loopback_bytes() -> Result<u64, Error> {
    let table = std::fs::read_to_string("/proc/net/dev")?;
    table
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("lo:"))
        .and_then(|counters| counters.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| "no counters of lo in /proc/net/dev".into())
}
