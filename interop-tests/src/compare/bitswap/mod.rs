//! One seed, one leech, loopback: how close block exchange comes to a bare stream, and how it stands beside other implementations.

mod ours;
mod raw;

use super::endpoint::{Endpoint, megabytes_per_second};
use super::figure::{Figure, Unit};
use super::peers::Peers;
use super::swarm::Transport;
use super::{Effort, Error};
use std::path::Path;

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
        /// What carries the connection.
        transport: Transport,
        /// Size of each block in bytes.
        block_bytes: usize,
        /// How many blocks.
        blocks: u64,
    },
    /// Fetches every block; prints `done <bytes> <nanoseconds>`, from the first request to the last block.
    Leech {
        /// What carries the connection.
        transport: Transport,
        /// Size of each block in bytes.
        block_bytes: usize,
        /// How many blocks.
        blocks: u64,
        /// Outstanding requests of a client that leaves them to its user. Ours sizes its own window, the raw stream has none.
        window: usize,
        /// The seed.
        address: libp2p::Multiaddr,
    },
}

impl Task {
    /// Runs the endpoint.
    ///
    /// # Errors
    ///
    /// Any failure of the network.
    pub async fn run(self) -> Result<(), Error> {
        match (self.implementation, self.role) {
            (
                Implementation::Ours,
                Role::Seed {
                    transport,
                    block_bytes,
                    blocks,
                },
            ) => ours::seed(transport, blocks, block_bytes).await,
            (
                Implementation::Ours,
                Role::Leech {
                    block_bytes,
                    blocks,
                    address,
                    ..
                },
            ) => ours::leech(address, blocks, block_bytes).await,
            (
                Implementation::Raw,
                Role::Seed {
                    transport,
                    block_bytes,
                    blocks,
                },
            ) => raw::seed(transport, blocks, block_bytes).await,
            (
                Implementation::Raw,
                Role::Leech {
                    block_bytes,
                    blocks,
                    address,
                    ..
                },
            ) => raw::leech(address, blocks, block_bytes).await,
        }
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

/// Who ours is compared with.
#[derive(Clone, Copy)]
enum Peer<'a> {
    Raw,
    Foreign(&'a str, &'a Path),
}

impl Peer<'_> {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw_stream_hashed",
            Self::Foreign("litep2p", _) => "litep2p",
            Self::Foreign(..) => "beetswap",
        }
    }
}

/// All figures of this area.
pub(super) async fn measure(effort: Effort, report: &mut dyn FnMut(Figure)) -> Result<(), Error> {
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
                    runs.push((load.run(None).await?, load.run(Some(peer)).await?));
                }
                let name = format!("bitswap.{}.{size}.{}", transport.name(), peer.name());
                report(Figure::new(name, Unit::MegabytesPerSecond, runs));
            }
        }
    }
    Ok(())
}

/// What one run moves.
#[derive(Clone, Copy)]
struct Load {
    transport: Transport,
    block_bytes: usize,
    blocks: u64,
}

impl Load {
    /// One run with fresh processes, ours for None, in MB/s.
    async fn run(self, peer: Option<Peer<'_>>) -> Result<f64, Error> {
        let (program, own) = match peer {
            None => (None, vec!["bitswap", "ours"]),
            Some(Peer::Raw) => (None, vec!["bitswap", "raw"]),
            Some(Peer::Foreign(_, path)) => (Some(path), vec![]),
        };
        let arguments = |role: &str| {
            let mut arguments: Vec<String> = own.iter().map(|&word| word.to_owned()).collect();
            arguments.push(role.to_owned());
            arguments.push(self.transport.name().to_owned());
            arguments.push(self.block_bytes.to_string());
            arguments.push(self.blocks.to_string());
            arguments
        };
        let mut seed = Endpoint::start(program, arguments("seed"))?;
        let address = seed.line("listening").await?;
        let mut leech = arguments("leech");
        leech.extend([WINDOW.to_string(), address]);
        let mut leech = Endpoint::start(program, leech)?;
        let done @ [bytes, _] = leech.numbers("done").await?;
        if bytes != self.blocks * self.block_bytes as u64 {
            return Err(format!("{bytes} bytes arrived of {} blocks", self.blocks).into());
        }
        leech.end().await?;
        seed.end().await?;
        Ok(megabytes_per_second(done))
    }
}
