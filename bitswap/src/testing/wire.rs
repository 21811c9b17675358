//! A connection between two nodes: what each end has to send, and how fast the link takes it.

use std::{collections::VecDeque, time::Duration};

use cid::Cid;
use web_time::Instant;

use crate::{
    Block,
    core::Path,
    message::{Entry, Message, Presence},
};

/// As the connection handler: a message is closed at this size, or with one block.
const MAX_MESSAGE_BYTES: usize = 2 * 1024 * 1024;
/// Bytes of an entry, of a presence, and of what surrounds a block and a message, roughly: CIDs of
/// 36 bytes and their framing.
const ENTRY_BYTES: usize = 48;
const PRESENCE_BYTES: usize = 42;
const BLOCK_OVERHEAD: usize = 56;
const MESSAGE_OVERHEAD: usize = 8;

/// How a connection behaves, the same in both directions.
///
/// It is the model of a reliable transport: what is sent arrives, once and in order, unless the
/// connection ends. There are no flow control windows and no congestion control.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Time from one end to the other; half a round trip.
    pub delay: Duration,
    /// Bytes a second, in each direction. Infinity: messages take no time but `delay`.
    pub bytes_per_second: f64,
    /// Each message is late by a random time up to this.
    pub jitter: Duration,
    /// Share of packets of 1460 bytes that are lost, 0 to 1. A message of which one was lost
    /// arrives a round trip later, and what is behind it waits.
    pub loss: f64,
    /// What the cores are told about the connection.
    pub path: Path,
}

impl Link {
    /// A direct connection with a round trip of `round_trip` that carries `bytes_per_second`.
    pub fn new(round_trip: Duration, bytes_per_second: f64) -> Self {
        Self {
            delay: round_trip / 2,
            bytes_per_second,
            jitter: Duration::ZERO,
            loss: 0.0,
            path: Path::Direct,
        }
    }

    /// Sets [`jitter`](Self::jitter).
    #[must_use]
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// Sets [`loss`](Self::loss).
    #[must_use]
    pub fn loss(mut self, loss: f64) -> Self {
        self.loss = loss;
        self
    }

    /// Sets [`path`](Self::path).
    #[must_use]
    pub fn path(mut self, path: Path) -> Self {
        self.path = path;
        self
    }
}

/// Time that `bytes` take at a rate.
pub(super) fn span(bytes: u64, bytes_per_second: f64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / bytes_per_second.max(1.0))
}

/// Which end of a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    A,
    B,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) a: usize,
    pub(super) b: usize,
    pub(super) link: Link,
    pub(super) from_a: Lane,
    pub(super) from_b: Lane,
}

impl Wire {
    pub(super) fn new(a: usize, b: usize, link: Link, now: Instant) -> Self {
        Self {
            a,
            b,
            link,
            from_a: Lane::new(now),
            from_b: Lane::new(now),
        }
    }

    pub(super) fn end(&self, side: Side) -> usize {
        match side {
            Side::A => self.a,
            Side::B => self.b,
        }
    }

    pub(super) fn side(&self, node: usize) -> Side {
        if node == self.a { Side::A } else { Side::B }
    }

    /// What goes from that end to the other.
    pub(super) fn lane(&mut self, from: Side) -> &mut Lane {
        match from {
            Side::A => &mut self.from_a,
            Side::B => &mut self.from_b,
        }
    }
}

/// A message on its way into the link.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) message: Message,
    pub(super) left: u64,
    pub(super) wants: bool,
    pub(super) answers: bool,
}

/// One direction of a wire.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) outbox: Outbox,
    pub(super) sending: Option<Sending>,
    /// When the link has taken what was sent so far.
    pub(super) free: Instant,
    /// Nothing overtakes.
    pub(super) last_arrival: Instant,
    /// Takes nothing any more, and nobody notices.
    pub(super) stalled: bool,
}

impl Lane {
    fn new(now: Instant) -> Self {
        Self {
            outbox: Outbox::default(),
            sending: None,
            free: now,
            last_arrival: now,
            stalled: false,
        }
    }
}

/// What a node wants to send over a connection; makes messages as the real handler does.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) entries: Vec<Entry>,
    pub(super) full: bool,
    pub(super) presences: Vec<Presence>,
    pub(super) blocks: VecDeque<(Block, Option<Cid>)>,
    pub(super) pending_bytes: u64,
}

impl Outbox {
    /// The next message: control first, then blocks up to `target` bytes.
    pub(super) fn next(&mut self, target: usize) -> Option<Sending> {
        let wants = self.full || !self.entries.is_empty();
        let answers = !self.presences.is_empty();
        if !wants && !answers && self.blocks.is_empty() {
            return None;
        }
        let mut message = Message {
            entries: std::mem::take(&mut self.entries),
            full: std::mem::take(&mut self.full),
            presences: std::mem::take(&mut self.presences),
            pending_bytes: i32::try_from(self.pending_bytes).unwrap_or(i32::MAX),
            ..Message::default()
        };
        let control =
            message.entries.len() * ENTRY_BYTES + message.presences.len() * PRESENCE_BYTES;
        let mut bytes = MESSAGE_OVERHEAD + control;
        while let Some((block, _)) = self.blocks.front() {
            let next = bytes + block.data().len() + BLOCK_OVERHEAD;
            let room = match message.blocks.is_empty() {
                true => control == 0 || next <= MAX_MESSAGE_BYTES,
                false => next <= target,
            };
            if !room {
                break;
            }
            bytes = next;
            if let Some((block, promised)) = self.blocks.pop_front() {
                message.blocks.push(block);
                message.promised.extend(promised);
            }
        }
        message.frame_bytes = bytes;
        Some(Sending {
            message,
            left: bytes as u64,
            wants,
            answers,
        })
    }
}
