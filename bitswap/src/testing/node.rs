//! One node: both cores, the blocks it has, and a record of what happened to it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use cid::Cid;
use libp2p_identity::PeerId;
use web_time::Instant;

use super::wire::Side;
use crate::{
    Config, Ticket,
    core::{
        ConnKey,
        client::{self, Client},
        server::Server,
    },
    message::{Entry, Message, Version},
};

/// How a node is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Configuration of both cores. Default: the defaults.
    pub config: Config,
    /// The version of bitswap it speaks. Default 1.2.0.
    pub version: Version,
    /// How long a read of its store takes. Default: no time.
    pub read_delay: Duration,
    /// Bytes a second that it can send over all its connections together; they share it packet by
    /// packet. Default: no limit but that of each link.
    pub upload: Option<f64>,
    /// Bytes a second that it can receive in all. Default: no limit.
    pub download: Option<f64>,
    /// Whether it acknowledges what it receives, stores it and serves it. Default true.
    pub takes: bool,
    /// Entries are kept in [`Node::entries_sent`]. Default true; turn it off for long runs.
    pub records: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            config: Config::default(),
            version: Version::V1_2,
            read_delay: Duration::ZERO,
            upload: None,
            download: None,
            takes: true,
            records: true,
        }
    }
}

/// A wanted block that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// When, in virtual time.
    pub at: Instant,
    /// Which want it ends.
    pub ticket: Ticket,
    /// The block.
    pub cid: Cid,
    /// Who delivered it over which connection.
    pub from: Option<(PeerId, ConnKey)>,
}

/// What went through a node's connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Messages sent, of any kind.
    pub messages_sent: u64,
    /// Messages received, of any kind.
    pub messages_received: u64,
    /// Want-block entries sent.
    pub want_blocks_sent: u64,
    /// Want-have entries sent.
    pub want_haves_sent: u64,
    /// Cancels sent.
    pub cancels_sent: u64,
    /// Blocks received, wanted or not.
    pub blocks_received: u64,
    /// Bytes of block data received, wanted or not.
    pub bytes_received: u64,
    /// Blocks received that had been received before.
    pub duplicates_received: u64,
    /// Their bytes.
    pub duplicate_bytes: u64,
    /// Bytes sent, framing included.
    pub bytes_sent: u64,
}

impl Traffic {
    /// Bytes that came again, as a share of those that came first. 0 if nothing came.
    pub fn duplicate_ratio(&self) -> f64 {
        let unique = self.bytes_received - self.duplicate_bytes;
        self.duplicate_bytes as f64 / (unique as f64).max(1.0)
    }
}

/// A node of a [`Network`](super::Network). Its cores may be called directly; follow with
/// [`Network::settle`](super::Network::settle).
#[derive(Debug)]
pub struct Node {
    /// Its identity.
    pub id: PeerId,
    /// How it was set up; may be changed at any time.
    pub setup: Setup,
    /// Its client core.
    pub client: Client,
    /// Its server core.
    pub server: Server,
    /// What it serves.
    pub blocks: HashMap<Cid, Bytes>,
    /// Links of its blocks, for `descend`.
    pub links: HashMap<Cid, Vec<Cid>>,
    /// Wanted blocks that have come.
    pub got: Vec<Delivery>,
    /// Outputs of the client that are not a message or a block, with their time.
    pub events: Vec<(Instant, client::Output)>,
    /// Entries that were handed to connections.
    pub entries_sent: Vec<Entry>,
    /// Counters.
    pub traffic: Traffic,
    pub(super) seen: HashSet<Cid>,
    /// Lanes that wait for the upload, each with a message begun.
    pub(super) uploads: VecDeque<(ConnKey, Side)>,
    pub(super) uploading: bool,
    pub(super) download_free: Instant,
    pub(super) armed: Option<Instant>,
}

impl Node {
    pub(super) fn new(id: PeerId, setup: Setup, seed: [u8; 32], now: Instant) -> Self {
        Self {
            id,
            client: Client::new(setup.config.clone(), seed, now),
            server: Server::new(setup.config.clone(), seed, now),
            setup,
            blocks: HashMap::new(),
            links: HashMap::new(),
            got: Vec::new(),
            events: Vec::new(),
            entries_sent: Vec::new(),
            traffic: Traffic::default(),
            seen: HashSet::new(),
            uploads: VecDeque::new(),
            uploading: false,
            download_free: now,
            armed: None,
        }
    }

    pub(super) fn count_received(&mut self, message: &Message) {
        self.traffic.messages_received += 1;
        for block in message.blocks.iter().chain(&message.legacy_blocks) {
            let bytes = block.data().len() as u64;
            self.traffic.blocks_received += 1;
            self.traffic.bytes_received += bytes;
            if !self.seen.insert(*block.cid()) {
                self.traffic.duplicates_received += 1;
                self.traffic.duplicate_bytes += bytes;
            }
        }
    }
}
