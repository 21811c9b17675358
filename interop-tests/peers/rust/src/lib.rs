//! What both peers share: their command line, the blocks, and the lines they print.
//!
//! ```text
//! <peer> seed  <tcp|quic> <block bytes> <blocks>                    prints `listening <multiaddr>`, serves until stdin closes
//! <peer> leech <tcp|quic> <block bytes> <blocks> <window> <addr>…   prints `done <bytes> <nanoseconds>`: from the first request to the last block
//! ```
//!
//! `anypath-interop-tests`' own endpoints speak the same lines and make the same blocks (`src/compare/blocks.rs`).

use cid::Cid;
use multihash::Multihash;
use sha2::{Digest, Sha256};
use std::error::Error;
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// Any failure ends the process with its text on stderr.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Multicodec code of raw blocks.
const RAW: u64 = 0x55;
/// Multihash code of SHA-256.
const SHA2_256: u64 = 0x12;

/// One endpoint's task.
pub struct Task {
    /// Serve or fetch.
    pub role: Role,
    /// What carries the connection.
    pub transport: Transport,
    /// Size of each block in bytes, a multiple of 8.
    pub block_bytes: usize,
    /// How many blocks.
    pub blocks: u64,
}

/// Serve or fetch.
pub enum Role {
    /// Holds every block.
    Seed,
    /// Fetches every block from `addresses`, at most `window` at a time.
    Leech {
        /// Outstanding requests.
        window: usize,
        /// The seeds, with their `/p2p/`.
        addresses: Vec<String>,
    },
}

/// What carries the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP, Noise, Yamux.
    Tcp,
    /// QUIC.
    Quic,
}

impl Task {
    /// Reads the process's arguments.
    pub fn from_args() -> Result<Self> {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let [role, transport, block_bytes, blocks, rest @ ..] = args.as_slice() else {
            return Err("usage: seed|leech tcp|quic BLOCK_BYTES BLOCKS [WINDOW ADDRESS…]".into());
        };
        Ok(Self {
            role: match (role.as_str(), rest) {
                ("seed", []) => Role::Seed,
                ("leech", [window, addresses @ ..]) if !addresses.is_empty() => Role::Leech {
                    window: window.parse()?,
                    addresses: addresses.to_vec(),
                },
                _ => return Err("seed takes 3 arguments, leech 5 or more".into()),
            },
            transport: match transport.as_str() {
                "tcp" => Transport::Tcp,
                "quic" => Transport::Quic,
                other => return Err(format!("no transport {other}").into()),
            },
            block_bytes: block_bytes.parse()?,
            blocks: blocks.parse()?,
        })
    }

    /// All blocks with their CIDs.
    pub fn all(&self) -> impl Iterator<Item = (Cid, Vec<u8>)> + '_ {
        (0..self.blocks).map(|index| {
            let data = block(index, self.block_bytes);
            (cid_of(&data), data)
        })
    }
}

/// The `index`th block: SplitMix64 from the seed `index`, so nothing compresses and no two are equal.
fn block(index: u64, bytes: usize) -> Vec<u8> {
    let mut state = index.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let mut data = Vec::with_capacity(bytes);
    while data.len() < bytes {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        data.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    data.truncate(bytes);
    data
}

/// CIDv1, raw, SHA-256.
fn cid_of(data: &[u8]) -> Cid {
    let digest = Sha256::digest(data);
    Cid::new_v1(
        RAW,
        Multihash::wrap(SHA2_256, &digest).expect("32 bytes fit"),
    )
}

/// Tells `compare` where this seed listens.
pub fn announce(address: impl std::fmt::Display) {
    println!("listening {address}");
}

/// Tells `compare` what a fetch took.
pub fn report(bytes: u64, elapsed: Duration) {
    println!("done {bytes} {}", elapsed.as_nanos());
}

/// Resolves when the parent closes our stdin.
pub async fn stdin_closed() {
    let mut sink = [0; 64];
    while matches!(tokio::io::stdin().read(&mut sink).await, Ok(read) if read > 0) {}
}
