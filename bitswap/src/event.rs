//! What a user of the crate hears and says: ids, [`Event`], and the snapshots it can ask for.

use std::time::Duration;

use cid::Cid;
use libp2p_identity::PeerId;
#[cfg(feature = "swarm")]
use libp2p_swarm::ConnectionId;

#[cfg(feature = "swarm")]
use crate::ProtocolViolation;

/// A group of wants that belong together, such as the blocks of one file: peers that have one of
/// them are asked for the others first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub(crate) u64);

/// One `want`. Ends with one [`Event::Block`], or without an event after `cancel` or `end_session`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(crate) u64);

/// Urgency of a want; higher goes first, at the peers too (bitswap's i32). Default 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(pub i32);

impl Default for Priority {
    fn default() -> Self {
        Self(1)
    }
}

impl From<i32> for Priority {
    fn from(value: i32) -> Self {
        Self(value)
    }
}

/// How a session asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Ask peers to push this many descendants after each block wanted with
    /// [`WantOptions::descend`] unset: depth first along the links. Peers that do not know the
    /// extension ignore it. Default 0.
    pub descend: u32,
    /// Nobody waits for these blocks: they are asked for only while no session without this wants
    /// anything that could be asked for, or has something on order. Default false.
    pub background: bool,
}

impl SessionOptions {
    /// Sets [`background`](Self::background).
    #[must_use]
    pub fn background(mut self, background: bool) -> Self {
        self.background = background;
        self
    }

    /// Sets [`descend`](Self::descend).
    #[must_use]
    pub fn descend(mut self, blocks: u32) -> Self {
        self.descend = blocks;
        self
    }
}

/// How one block is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WantOptions {
    /// Urgency.
    pub priority: Priority,
    /// Descendants to push after this block; `None`: what the session says.
    pub descend: Option<u32>,
}

impl WantOptions {
    /// Sets [`priority`](Self::priority).
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Sets [`descend`](Self::descend).
    #[must_use]
    pub fn descend(mut self, blocks: u32) -> Self {
        self.descend = Some(blocks);
        self
    }
}

/// What a relay lets through a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CircuitLimit {
    /// Bytes in each direction; `None`: no limit.
    pub bytes: Option<u64>,
    /// Life of the circuit; `None`: no limit.
    pub duration: Option<Duration>,
}

/// Bitswap work on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transfers {
    /// Blocks asked for over this connection and not delivered yet.
    pub wants_sent: usize,
    /// Bytes of blocks handed to this connection and not written to its socket yet.
    pub serving_bytes: u64,
}

impl Transfers {
    /// Whether nothing would be lost if the connection closed.
    pub fn is_idle(&self) -> bool {
        self.wants_sent == 0 && self.serving_bytes == 0
    }
}

/// A block that others want from us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantlistEntry {
    /// The block.
    pub cid: Cid,
    /// The highest priority anyone gave it.
    pub priority: Priority,
    /// Who wants it.
    pub requesters: Vec<PeerId>,
    /// How long ago the oldest of the requests came.
    pub waiting: Duration,
    /// Whether we have the block.
    pub have: bool,
}

/// A block that was asked for much, lately.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MostWanted {
    /// The block.
    pub cid: Cid,
    /// How many peers asked for it, those [`heat_half_life`](crate::Config::heat_half_life) ago
    /// counting half. One peer never adds more than 2.
    pub heat: f64,
    /// How many wait for it now.
    pub requesters: usize,
    /// The highest priority any of these gave it; 0 if none.
    pub priority: Priority,
    /// Whether we have the block.
    pub have: bool,
}

/// What went to and came from one peer, since we first met it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Ledger {
    /// Bytes of blocks written to it.
    pub bytes_sent: u64,
    /// Blocks written to it.
    pub blocks_sent: u64,
    /// Bytes of wanted blocks it delivered.
    pub bytes_received: u64,
    /// Wanted blocks it delivered.
    pub blocks_received: u64,
    /// Bytes of blocks nobody wanted (any more).
    pub unwanted_bytes: u64,
    /// Wantlist entries it sent.
    pub wants_received: u64,
}

impl Ledger {
    /// Bytes sent for each byte received, as boxo counts it: what the peer owes us, if above 1. For
    /// information; nothing here depends on it.
    pub fn debt_ratio(&self) -> f64 {
        self.bytes_sent as f64 / (self.bytes_received as f64 + 1.0)
    }
}

/// What bitswap tells its user.
#[cfg(feature = "swarm")]
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The wanted block; ends the ticket. Store it, then call `taken`.
    Block {
        /// Which want.
        ticket: Ticket,
        /// The verified block.
        block: crate::Block,
        /// Who delivered it; `None` if it needed nobody (identity CID).
        peer: Option<PeerId>,
        /// Over which connection.
        connection: Option<ConnectionId>,
    },
    /// A block that others want has come, see [`Role`](crate::Role). Store it, call
    /// `notify_new_blocks`, then call `taken` with its ticket; a block that is not kept is not fetched again soon.
    Prefetched {
        /// For `taken`.
        ticket: Ticket,
        /// The verified block.
        block: crate::Block,
        /// Who delivered it.
        peer: Option<PeerId>,
    },
    /// No connected peer is likely to have the block: answer with `add_providers`. Repeated every
    /// `search_interval` while it stays so. Also comes for blocks that are prefetched.
    ProvidersWanted {
        /// Which want.
        ticket: Ticket,
        /// The block.
        cid: Cid,
    },
    /// The only way to a peer that has the block is a relayed circuit whose remaining bytes it does
    /// not fit; it is asked for as soon as a better connection is up. Once per ticket.
    WaitingForDirect {
        /// Which want.
        ticket: Ticket,
        /// Who has it.
        peer: PeerId,
        /// Bytes that are left on the circuit.
        allowed: u64,
    },
    /// A peer broke the protocol. It is up to the user to disconnect or score it.
    ProtocolViolation {
        /// The offender.
        peer: PeerId,
        /// What it did.
        violation: ProtocolViolation,
    },
    /// Bitswap gets no further on a connection for a second: it may be dead, and it is up to the user to find out. Repeated at growing
    /// intervals.
    PeerSilent {
        /// Who is at its other end.
        peer: PeerId,
        /// Which.
        connection: ConnectionId,
        /// The peer owes answers (for at least four round trips) and sends not even a part of a block, while nothing of ours is on its way to
        /// it. Otherwise it takes nothing of what is sent to it; then a question waits behind that, where a transport keeps all streams in
        /// one order.
        owes: bool,
    },
    /// A connection that had bitswap work has none now.
    TransfersEnded {
        /// The peer.
        peer: PeerId,
        /// The connection.
        connection: ConnectionId,
    },
}
