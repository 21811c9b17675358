//! What the client knows about one connected peer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cid::Cid;
use libp2p_identity::PeerId;
use web_time::Instant;

use super::{
    WantId,
    window::{Mark, Window},
};
use crate::{
    Config, SessionId,
    core::{ConnKey, paths::Paths},
    message::{Entry, WantType},
};

/// Promises remembered of one peer; a server promises at most `max_descend` blocks a want.
const MAX_PROMISES: usize = 256;

/// A peer, by a number that is never used again; smaller than a `PeerId` where there are many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PeerKey(pub(super) u64);

/// A want-block that a peer is expected to answer.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) want: WantId,
    pub(super) conn: ConnKey,
    pub(super) estimate: u64,
    pub(super) mark: Mark,
}

/// A change of our wantlist at the peer that is not sent yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Block {
        priority: i32,
        descend: u32,
    },
    Have {
        priority: i32,
        dont_have: bool,
    },
    /// `lazy`: may wait for company.
    Cancel {
        lazy: bool,
    },
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) paths: Paths,
    /// Speaks 1.2.0: answers want-have, and says DONT_HAVE.
    pub(super) presences: bool,
    /// Want-blocks on order, by the order they were sent in.
    pub(super) requests: BTreeMap<u64, Request>,
    /// Wants for which a want-have is out.
    pub(super) asked: BTreeSet<WantId>,
    /// Wants that the peer's server may hold for us, of whatever kind.
    pub(super) registered: BTreeSet<WantId>,
    pub(super) window: Window,
    /// The connection that `window` describes.
    pub(super) asked_over: Option<ConnKey>,
    outbox: BTreeMap<WantId, (Cid, Change)>,
    /// Changes in the outbox that must not wait.
    urgent: usize,
    /// Changes in the outbox that add an entry at the server, and that remove one.
    fresh: usize,
    leaving: usize,
    /// When the lazy changes must go.
    pub(super) flush_at: Option<Instant>,
    /// A message is on its way to the socket.
    pub(super) writing: bool,
    pub(super) sessions: BTreeSet<SessionId>,
    pub(super) last_progress: Instant,
    /// How many times in a row it was silent for too long.
    pub(super) stalls: u32,
    /// Share of our want-blocks answered with DONT_HAVE, lately.
    pub(super) miss_rate: f64,
    /// Blocks it delivered.
    pub(super) useful: u64,
    pub(super) unwanted_bytes: u64,
    pub(super) useful_bytes: u64,
    pub(super) reported_unwanted: bool,
    /// Blocks it may push, by session.
    pub(super) credit: BTreeMap<SessionId, u32>,
    promises: HashMap<Cid, ConnKey>,
}

impl Peer {
    pub(super) fn new(id: PeerId, config: &Config, now: Instant) -> Self {
        Self {
            id,
            paths: Paths::default(),
            presences: true,
            requests: BTreeMap::new(),
            asked: BTreeSet::new(),
            registered: BTreeSet::new(),
            window: Window::new(
                config.initial_window_bytes(),
                config.max_window_bytes(),
                now,
            ),
            asked_over: None,
            outbox: BTreeMap::new(),
            urgent: 0,
            fresh: 0,
            leaving: 0,
            flush_at: None,
            writing: false,
            sessions: BTreeSet::new(),
            last_progress: now,
            stalls: 0,
            miss_rate: 0.0,
            useful: 0,
            unwanted_bytes: 0,
            useful_bytes: 0,
            reported_unwanted: false,
            credit: BTreeMap::new(),
            promises: HashMap::new(),
        }
    }

    /// Entries of ours at its server once the outbox is sent.
    pub(super) fn outstanding(&self) -> usize {
        (self.registered.len() + self.fresh).saturating_sub(self.leaving)
    }

    /// Puts a change into the outbox; later changes of a want replace earlier ones.
    pub(super) fn push(&mut self, want: WantId, cid: Cid, change: Change) {
        if let Some((_, old)) = self.outbox.remove(&want) {
            self.count(want, old, false);
        }
        if matches!(change, Change::Cancel { .. }) && !self.registered.contains(&want) {
            return;
        }
        self.count(want, change, true);
        self.outbox.insert(want, (cid, change));
    }

    fn count(&mut self, want: WantId, change: Change, add: bool) {
        let counters = [
            (&mut self.urgent, is_urgent(change)),
            (&mut self.leaving, matches!(change, Change::Cancel { .. })),
            (
                &mut self.fresh,
                !matches!(change, Change::Cancel { .. }) && !self.registered.contains(&want),
            ),
        ];
        for (counter, _) in counters.into_iter().filter(|(_, counts)| *counts) {
            *counter = if add {
                *counter + 1
            } else {
                counter.saturating_sub(1)
            };
        }
    }

    pub(super) fn has_changes(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether the outbox is to be sent now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        !self.writing
            && !self.outbox.is_empty()
            && (self.urgent > 0
                || self.outbox.len() >= super::LAZY_CANCELS
                || self.flush_at.is_some_and(|at| at <= now))
    }

    /// Empties the outbox.
    pub(super) fn take_entries(&mut self) -> Vec<Entry> {
        let outbox = std::mem::take(&mut self.outbox);
        self.drop_changes();
        let mut entries = Vec::with_capacity(outbox.len());
        for (want, (cid, change)) in outbox {
            match change {
                Change::Cancel { .. } => self.registered.remove(&want),
                _ => self.registered.insert(want),
            };
            entries.push(entry(cid, change, self.presences));
        }
        entries
    }

    pub(super) fn drop_changes(&mut self) {
        self.outbox.clear();
        (self.urgent, self.fresh, self.leaving) = (0, 0, 0);
        self.flush_at = None;
    }

    pub(super) fn promise(&mut self, cid: Cid, conn: ConnKey) {
        if self.promises.len() < MAX_PROMISES {
            self.promises.insert(cid, conn);
        }
    }

    pub(super) fn take_promise(&mut self, cid: &Cid) -> Option<ConnKey> {
        self.promises.remove(cid)
    }

    pub(super) fn forget_promises_on(&mut self, conn: ConnKey) {
        self.promises.retain(|_, on| *on != conn);
    }
}

fn is_urgent(change: Change) -> bool {
    !matches!(change, Change::Cancel { lazy: true })
}

fn entry(cid: Cid, change: Change, presences: bool) -> Entry {
    let blank = Entry {
        cid,
        priority: 0,
        cancel: false,
        want_type: WantType::Block,
        send_dont_have: false,
        descend: 0,
    };
    match change {
        Change::Block { priority, descend } => Entry {
            priority,
            descend,
            send_dont_have: presences,
            ..blank
        },
        Change::Have {
            priority,
            dont_have,
        } => Entry {
            priority,
            want_type: WantType::Have,
            send_dont_have: dont_have,
            ..blank
        },
        Change::Cancel { .. } => Entry {
            cancel: true,
            ..blank
        },
    }
}
