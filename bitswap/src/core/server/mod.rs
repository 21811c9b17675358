//! The server: what to send to which peer, and when.
//!
//! Peers share the upload by byte-deficit round robin (Shreedhar and Varghese 1995), with peers that
//! have just become active served first (as in RFC 8290, FQ-CoDel): a peer that wants one block
//! does not queue behind those that want thousands. Inside a peer, priority and then age decide.
//! Blocks are read a few megabytes ahead of the socket, never more.

mod peer;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use cid::{Cid, multihash::Multihash};
use hashlink::LinkedHashMap;
use libp2p_identity::PeerId;
use smallvec::SmallVec;
use web_time::Instant;

use self::peer::{Descent, Peer, PeerKey, Status, Turn, Want};
use super::{ConnKey, Path, client::Received, paths::Paths};
use crate::{
    Block, Config, Ledger, Priority, WantlistEntry,
    message::{Entry, Message, Presence, WantType},
};

/// Bytes a peer of weight 1 may be sent in one turn.
const QUANTUM: f64 = 256.0 * 1024.0;
/// A peer that takes nothing for so long is stuck: while others wait for room in the pipelines it
/// gives back all but what is being written, and gets one block at a time until it reads again.
const STUCK: Duration = Duration::from_secs(1);
/// Links remembered of one descent.
const MAX_STACK: usize = 1024;
/// Answers to one peer that wait for its socket; above that the oldest are dropped.
const MAX_ANSWERS: usize = 4096;
/// Answers in one batch.
const ANSWER_BATCH: usize = 1024;

/// Tells the size of a block if we have it.
pub type Lookup<'a> = &'a dyn Fn(&Cid) -> Option<u32>;

/// A read of the block source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(u64);

/// What the server wants done.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields say who, over what, and what")]
pub enum Output {
    /// Read a block and call `on_read`, with its links if `links` is set.
    Read { id: ReadId, cid: Cid, links: bool },
    /// Send a block; answer with `on_written`.
    Block {
        peer: PeerId,
        conn: ConnKey,
        block: Block,
        promised: Option<Box<Cid>>,
        pending_bytes: u64,
    },
    /// Send answers without data; answer with `on_answers_written`.
    Presences {
        peer: PeerId,
        conn: ConnKey,
        presences: Vec<Presence>,
    },
    /// Take back what is not written on a connection, and call `on_returned`.
    Withdraw { peer: PeerId, conn: ConnKey },
}

#[derive(Debug)]
struct Read {
    peer: PeerKey,
    cid: Cid,
    size: u64,
}

/// The server core.
#[derive(Debug)]
pub struct Server {
    config: Config,
    now: Instant,
    next_id: u64,
    keys: HashMap<PeerId, PeerKey>,
    peers: BTreeMap<PeerKey, Peer>,
    /// Who wants a hash: the peer, and the number of its want.
    by_hash: HashMap<Multihash<64>, SmallVec<[(PeerKey, u64); 1]>>,
    reads: HashMap<ReadId, Read>,
    /// Peers with something to be sent: those that just became so, and the others.
    fresh: VecDeque<PeerKey>,
    old: VecDeque<PeerKey>,
    in_pipe: u64,
    sweep_at: Instant,
    dirty: bool,
    outputs: VecDeque<Output>,
    /// Of peers that are gone, the longest gone first.
    ledgers: LinkedHashMap<PeerId, Ledger>,
    weights: LinkedHashMap<PeerId, f64>,
}

impl Server {
    /// A server without peers.
    pub fn new(config: Config, now: Instant) -> Self {
        Self {
            sweep_at: now + config.want_ttl() / 4,
            config,
            now,
            next_id: 0,
            keys: HashMap::new(),
            peers: BTreeMap::new(),
            by_hash: HashMap::new(),
            reads: HashMap::new(),
            fresh: VecDeque::new(),
            old: VecDeque::new(),
            in_pipe: 0,
            dirty: false,
            outputs: VecDeque::new(),
            ledgers: LinkedHashMap::new(),
            weights: LinkedHashMap::new(),
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    // ---- connections ----

    /// A connection is up.
    pub fn on_connected(
        &mut self,
        peer: PeerId,
        conn: ConnKey,
        path: Path,
        lookup: Lookup<'_>,
        now: Instant,
    ) {
        self.now = now;
        let key = match self.keys.get(&peer) {
            Some(key) => *key,
            None => {
                let key = PeerKey(self.id());
                let ledger = self.ledgers.remove(&peer).unwrap_or_default();
                let weight = self.weights.get(&peer).copied().unwrap_or(1.0);
                self.keys.insert(peer, key);
                self.peers.insert(key, Peer::new(peer, weight, ledger, now));
                key
            }
        };
        self.change_paths(key, lookup, |paths| paths.insert(conn, path));
    }

    /// A connection turned out better or worse than it seemed.
    pub fn on_path(
        &mut self,
        peer: PeerId,
        conn: ConnKey,
        path: Path,
        lookup: Lookup<'_>,
        now: Instant,
    ) {
        self.now = now;
        if let Some(key) = self.keys.get(&peer).copied() {
            self.change_paths(key, lookup, |paths| paths.set_path(conn, path));
        }
    }

    /// The peer takes no bitswap messages on a connection.
    pub fn on_unsupported(
        &mut self,
        peer: PeerId,
        conn: ConnKey,
        lookup: Lookup<'_>,
        now: Instant,
    ) {
        self.now = now;
        if let Some(key) = self.keys.get(&peer).copied() {
            self.change_paths(key, lookup, |paths| paths.set_usable(conn, false));
        }
    }

    /// The peer speaks bitswap on a connection.
    pub fn on_version(&mut self, peer: PeerId, conn: ConnKey, now: Instant) {
        self.now = now;
        if let Some(peer) = self.keys.get(&peer).and_then(|key| self.peers.get_mut(key)) {
            peer.paths.set_usable(conn, true);
        }
    }

    /// The peer asks on this connection; call it before [`on_message`](Self::on_message). Answers go
    /// the same way unless there is a better one: of two equal connections (both ends dialled at
    /// once) the peer may be about to close the other, and after a crash the other is dead.
    pub fn on_asked(&mut self, peer: PeerId, conn: ConnKey, lookup: Lookup<'_>, now: Instant) {
        self.now = now;
        if let Some(key) = self.keys.get(&peer).copied() {
            self.change_paths(key, lookup, |paths| paths.prefer(conn));
        }
    }

    /// Applies a change; if another connection is the best one then, what is not written moves.
    fn change_paths(&mut self, key: PeerKey, lookup: Lookup<'_>, change: impl FnOnce(&mut Paths)) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let before = peer.paths.best();
        change(&mut peer.paths);
        let after = peer.paths.best();
        if before == after {
            return;
        }
        if let Some((old, _)) = before
            && after.is_some_and(|(new, _)| new != old)
            && peer.handed.get(&old).is_some_and(|bytes| *bytes > 0)
        {
            self.outputs.push_back(Output::Withdraw {
                peer: peer.id,
                conn: old,
            });
        }
        let withheld: Vec<Cid> = peer
            .order
            .values()
            .filter(|cid| {
                peer.wants
                    .get(*cid)
                    .is_some_and(|want| want.status == Status::Withheld)
            })
            .copied()
            .collect();
        for cid in withheld {
            self.evaluate(key, &cid, lookup, false);
        }
        self.activate(key);
    }

    /// A connection is gone; with the last one everything about the peer but its ledger.
    pub fn on_disconnected(&mut self, peer: PeerId, conn: ConnKey, now: Instant) {
        self.now = now;
        self.dirty = true;
        let Some(key) = self.keys.get(&peer).copied() else {
            return;
        };
        let Some(state) = self.peers.get_mut(&key) else {
            return;
        };
        state.paths.remove(conn);
        state.answering = false;
        let lost = state.handed.remove(&conn).unwrap_or(0);
        state.in_pipe = state.in_pipe.saturating_sub(lost);
        self.in_pipe = self.in_pipe.saturating_sub(lost);
        if !state.paths.is_empty() {
            self.activate(key);
            return;
        }
        for cid in state.order.values().copied().collect::<Vec<_>>() {
            self.forget(key, &cid);
        }
        self.keys.remove(&peer);
        if let Some(state) = self.peers.remove(&key) {
            self.in_pipe = self.in_pipe.saturating_sub(state.in_pipe);
            self.keep_ledger(peer, state.ledger);
        }
        self.fresh.retain(|other| *other != key);
        self.old.retain(|other| *other != key);
    }

    fn keep_ledger(&mut self, peer: PeerId, ledger: Ledger) {
        self.ledgers.insert(peer, ledger);
        while self.ledgers.len() > self.config.max_ledgers() {
            self.ledgers.pop_front();
        }
    }

    // ---- wantlists ----

    /// The wantlist changes of a message.
    pub fn on_message(
        &mut self,
        peer: PeerId,
        message: &Message,
        lookup: Lookup<'_>,
        now: Instant,
    ) {
        self.now = now;
        let Some(key) = self.keys.get(&peer).copied() else {
            return;
        };
        if message.full {
            self.replace_list(key, &message.entries);
        }
        for entry in &message.entries {
            if entry.cancel {
                self.forget(key, &entry.cid);
            } else {
                self.upsert(key, entry, lookup);
            }
        }
        if let Some(state) = self.peers.get_mut(&key) {
            let wants = message.entries.iter().filter(|entry| !entry.cancel).count();
            state.ledger.wants_received += wants as u64;
        }
        self.activate(key);
    }

    /// A full list: what is not in it is no longer wanted.
    fn replace_list(&mut self, key: PeerKey, entries: &[Entry]) {
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        let kept: std::collections::BTreeSet<&Cid> = entries.iter().map(|e| &e.cid).collect();
        let gone: Vec<Cid> = peer
            .order
            .values()
            .filter(|cid| !kept.contains(cid))
            .copied()
            .collect();
        for cid in gone {
            self.forget(key, &cid);
        }
    }

    fn upsert(&mut self, key: PeerKey, entry: &Entry, lookup: Lookup<'_>) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if let Some(want) = peer.wants.get_mut(&entry.cid) {
            want.refreshed = now;
            let coming = matches!(want.status, Status::Reading)
                || (matches!(want.status, Status::Ready(_)) && entry.want_type == WantType::Have);
            if coming {
                return;
            }
            want.kind = entry.want_type;
            want.send_dont_have = entry.send_dont_have;
            let status = want.status;
            peer.set(&entry.cid, status, entry.priority);
            self.evaluate(key, &entry.cid, lookup, true);
            return;
        }
        if peer.wants.len() >= self.config.max_wants_per_peer() {
            let ready = self.config.serve() && lookup(&entry.cid).is_some();
            match peer.victim(entry.priority, ready) {
                Some(victim) => self.refuse(key, &victim),
                None => {
                    if entry.send_dont_have {
                        self.answer(key, entry.cid, false);
                    }
                    return;
                }
            }
        }
        let descend = match entry.want_type {
            WantType::Block => entry.descend.min(self.config.max_descend()),
            WantType::Have => 0,
        };
        let descent = Descent {
            left: descend,
            stack: Vec::new(),
        };
        self.insert(
            key,
            entry.cid,
            entry.priority,
            entry.want_type,
            entry.send_dont_have,
            descent,
        );
        self.evaluate(key, &entry.cid, lookup, true);
    }

    fn insert(
        &mut self,
        key: PeerKey,
        cid: Cid,
        priority: i32,
        kind: WantType,
        send_dont_have: bool,
        descent: Descent,
    ) {
        let seq = self.id();
        if let Some(peer) = self.peers.get_mut(&key) {
            let want = Want {
                seq,
                priority,
                kind,
                send_dont_have,
                status: Status::Absent,
                since: self.now,
                refreshed: self.now,
                descent,
            };
            peer.insert(cid, want);
            self.by_hash
                .entry(*cid.hash())
                .or_default()
                .push((key, seq));
        }
    }

    /// Looks whether we have the block; `answer` if we lack it.
    fn evaluate(&mut self, key: PeerKey, cid: &Cid, lookup: Lookup<'_>, answer: bool) {
        let size = if self.config.serve() {
            lookup(cid)
        } else {
            None
        };
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(want) = peer.wants.get(cid) else {
            return;
        };
        let (kind, priority, told) = (want.kind, want.priority, want.status == Status::Withheld);
        let Some(size) = size else {
            let say_so = answer && want.send_dont_have;
            peer.set(cid, Status::Absent, priority);
            if say_so {
                self.answer(key, *cid, false);
            }
            return;
        };
        let send = kind == WantType::Block || size <= self.config.have_replacement_bytes();
        let best = peer.paths.best();
        let fits = best.is_none_or(|(_, path)| Paths::fits(path, size.into()));
        if send && fits {
            peer.set(cid, Status::Ready(size), priority);
        } else {
            peer.set(
                cid,
                if send { Status::Withheld } else { Status::Told },
                priority,
            );
            if !told {
                self.answer(key, *cid, true);
            }
        }
    }

    fn answer(&mut self, key: PeerKey, cid: Cid, have: bool) {
        if let Some(peer) = self.peers.get_mut(&key) {
            if peer.answers.len() >= MAX_ANSWERS {
                peer.answers.pop_front();
            }
            peer.answers.push_back(Presence { cid, have });
            self.dirty = true;
        }
    }

    /// Gives up a want, and says so.
    fn refuse(&mut self, key: PeerKey, cid: &Cid) {
        let say_so = self
            .peers
            .get(&key)
            .and_then(|peer| peer.wants.get(cid))
            .is_some_and(|want| want.send_dont_have && want.status != Status::Absent);
        self.forget(key, cid);
        if say_so {
            self.answer(key, *cid, false);
        }
    }

    fn forget(&mut self, key: PeerKey, cid: &Cid) -> Option<Want> {
        let want = self.peers.get_mut(&key)?.remove(cid)?;
        if let Some(wanting) = self.by_hash.get_mut(cid.hash()) {
            wanting.retain(|(other, seq)| (*other, *seq) != (key, want.seq));
            if wanting.is_empty() {
                self.by_hash.remove(cid.hash());
            }
        }
        Some(want)
    }

    /// Blocks are in the source now; who waits for them is served, or told.
    pub fn on_new_blocks(&mut self, cids: &[Cid], lookup: Lookup<'_>, now: Instant) {
        self.now = now;
        for cid in cids {
            let waiting = self.by_hash.get(cid.hash()).cloned().unwrap_or_default();
            for (key, seq) in waiting {
                let wanted = self.peers.get(&key).and_then(|peer| {
                    let cid = peer.order.get(&seq)?;
                    (peer.wants.get(cid)?.status == Status::Absent).then_some(*cid)
                });
                if let Some(wanted) = wanted {
                    self.evaluate(key, &wanted, lookup, false);
                    self.activate(key);
                }
            }
        }
    }

    // ---- sending ----

    fn activate(&mut self, key: PeerKey) {
        self.dirty = true;
        if let Some(peer) = self.peers.get_mut(&key)
            && peer.has_ready()
        {
            match peer.turn {
                Turn::Queued => return,
                Turn::Idle => {
                    peer.deficit = quantum(peer.weight);
                    self.fresh.push_back(key);
                }
                Turn::Blocked => self.old.push_back(key),
            }
            peer.turn = Turn::Queued;
        }
    }

    /// Starts reads for the peers in turn, as far as the pipelines have room.
    fn pump(&mut self) {
        while self.in_pipe < self.config.max_pipeline_bytes()
            && self.reads.len() < self.config.max_reads()
        {
            let (key, is_fresh) = match (self.fresh.front(), self.old.front()) {
                (Some(key), _) => (*key, true),
                (None, Some(key)) => (*key, false),
                (None, None) => return,
            };
            let ring = if is_fresh {
                &mut self.fresh
            } else {
                &mut self.old
            };
            let Some(peer) = self.peers.get_mut(&key) else {
                ring.pop_front();
                continue;
            };
            let Some((cid, size)) = peer.next_ready() else {
                ring.pop_front();
                if is_fresh {
                    // Not idle before a round among the others, or a peer with one want at a time
                    // would always be first.
                    self.old.push_back(key);
                } else {
                    peer.turn = Turn::Idle;
                }
                continue;
            };
            let limit = self.config.max_pipeline_bytes_per_peer();
            let room =
                peer.in_pipe == 0 || (!peer.stuck && peer.in_pipe + u64::from(size) <= limit);
            if !room || peer.paths.best().is_none() {
                // `activate` brings it back.
                peer.turn = Turn::Blocked;
                ring.pop_front();
                continue;
            }
            let best = peer.paths.best();
            if best.is_some_and(|(_, path)| !Paths::fits(path, peer.reading() + u64::from(size))) {
                // It did fit when it was asked for; others have used the circuit up since.
                let priority = peer.wants.get(&cid).map_or(0, |want| want.priority);
                peer.set(&cid, Status::Withheld, priority);
                self.answer(key, cid, true);
                continue;
            }
            if peer.deficit < u64::from(size) {
                peer.deficit += quantum(peer.weight);
                ring.pop_front();
                self.old.push_back(key);
                continue;
            }
            peer.deficit -= u64::from(size);
            self.start_read(key, cid, size);
        }
        self.reclaim();
    }

    /// When the next peer counts as stuck, if others wait for its room.
    fn reclaim_at(&self) -> Option<Instant> {
        let full = self.in_pipe >= self.config.max_pipeline_bytes();
        let waiting = !self.fresh.is_empty() || !self.old.is_empty();
        let holding = |peer: &&Peer| !peer.stuck && !peer.handed.is_empty();
        let last = || {
            self.peers
                .values()
                .filter(holding)
                .map(|peer| peer.taken_at)
        };
        (full && waiting)
            .then(last)
            .and_then(Iterator::min)
            .map(|at| at + STUCK)
    }

    /// Takes room in the pipelines from the peers that do not use it.
    fn reclaim(&mut self) {
        if self.reclaim_at().is_none_or(|at| self.now < at) {
            return;
        }
        for peer in self.peers.values_mut() {
            if peer.handed.is_empty() || peer.stuck || self.now < peer.taken_at + STUCK {
                continue;
            }
            peer.stuck = true;
            self.outputs
                .extend(peer.handed.keys().map(|conn| Output::Withdraw {
                    peer: peer.id,
                    conn: *conn,
                }));
        }
    }

    fn start_read(&mut self, key: PeerKey, cid: Cid, size: u32) {
        let id = ReadId(self.id());
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(want) = peer.wants.get(&cid) else {
            return;
        };
        let (links, priority) = (want.descent.left > 0, want.priority);
        peer.set(&cid, Status::Reading, priority);
        peer.in_pipe += u64::from(size);
        self.in_pipe += u64::from(size);
        self.reads.insert(
            id,
            Read {
                peer: key,
                cid,
                size: size.into(),
            },
        );
        self.outputs.push_back(Output::Read { id, cid, links });
    }

    /// A read has ended; `None`: the block is not there (any more). `links` as asked for.
    pub fn on_read(
        &mut self,
        id: ReadId,
        data: Option<Bytes>,
        links: Vec<Cid>,
        lookup: Lookup<'_>,
        now: Instant,
    ) {
        self.now = now;
        self.dirty = true;
        let Some(read) = self.reads.remove(&id) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&read.peer) else {
            return;
        };
        peer.in_pipe = peer.in_pipe.saturating_sub(read.size);
        self.in_pipe = self.in_pipe.saturating_sub(read.size);
        let wanted = peer
            .wants
            .get(&read.cid)
            .is_some_and(|w| w.status == Status::Reading);
        let conn = peer.paths.best().map(|(conn, _)| conn);
        if !wanted {
            self.activate(read.peer);
            return;
        }
        let (Some(data), Some(conn)) = (data, conn) else {
            self.refuse(read.peer, &read.cid);
            self.activate(read.peer);
            return;
        };
        let descent = self.forget(read.peer, &read.cid).map(|want| want.descent);
        let promised = descent.and_then(|descent| self.descend(read.peer, descent, links, lookup));
        self.hand(read.peer, conn, Block::trusted(read.cid, data), promised);
        self.activate(read.peer);
    }

    /// Gives a block to a connection.
    fn hand(&mut self, key: PeerKey, conn: ConnKey, block: Block, promised: Option<Cid>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let bytes = block.data().len() as u64;
        if peer.handed.is_empty() {
            peer.taken_at = self.now;
        }
        peer.in_pipe += bytes;
        self.in_pipe += bytes;
        *peer.handed.entry(conn).or_insert(0) += bytes;
        // Sizes of what is still queued are not summed up; a block counts as a typical chunk.
        let pending_bytes = peer.in_pipe - bytes + peer.ready_count() as u64 * 256 * 1024;
        peer.paths.spend(conn, bytes);
        self.outputs.push_back(Output::Block {
            peer: peer.id,
            conn,
            block,
            promised: promised.map(Box::new),
            pending_bytes,
        });
    }

    /// Queues the next descendant to be pushed, and names it.
    fn descend(
        &mut self,
        key: PeerKey,
        mut descent: Descent,
        links: Vec<Cid>,
        lookup: Lookup<'_>,
    ) -> Option<Cid> {
        if descent.left == 0 {
            return None;
        }
        descent.left -= 1;
        let room = MAX_STACK.saturating_sub(descent.stack.len());
        descent.stack.extend(links.into_iter().take(room).rev());
        while let Some(cid) = descent.stack.pop() {
            let peer = self.peers.get_mut(&key)?;
            if let Some(want) = peer.wants.get_mut(&cid) {
                // Asked for already: it comes in its turn, and its descendants with it.
                if want.descent.left < descent.left {
                    want.descent = descent;
                }
                return None;
            }
            let size = lookup(&cid).filter(|_| self.config.serve());
            let path = peer.paths.best().map(|(_, path)| path);
            match (size, path) {
                (Some(size), Some(path))
                    if Paths::fits(path, peer.reading() + u64::from(size))
                        && peer.wants.len() < self.config.max_wants_per_peer() =>
                {
                    self.insert(key, cid, i32::MAX, WantType::Block, false, descent);
                    self.evaluate(key, &cid, lookup, false);
                    return Some(cid);
                }
                (None, Some(_)) => {}
                _ => return None,
            }
        }
        None
    }

    /// Blocks are written.
    pub fn on_written(
        &mut self,
        peer: PeerId,
        conn: ConnKey,
        blocks: u64,
        bytes: u64,
        now: Instant,
    ) {
        self.now = now;
        let Some(key) = self.keys.get(&peer).copied() else {
            return;
        };
        if let Some(state) = self.peers.get_mut(&key) {
            state.ledger.blocks_sent += blocks;
            state.ledger.bytes_sent += bytes;
            state.taken_at = now;
            state.stuck = false;
        }
        self.unhand(key, conn, bytes);
        self.activate(key);
    }

    fn unhand(&mut self, key: PeerKey, conn: ConnKey, bytes: u64) {
        if let Some(peer) = self.peers.get_mut(&key)
            && let Some(handed) = peer.handed.get_mut(&conn)
        {
            let done = bytes.min(*handed);
            *handed -= done;
            if *handed == 0 {
                peer.handed.remove(&conn);
            }
            peer.in_pipe = peer.in_pipe.saturating_sub(done);
            self.in_pipe = self.in_pipe.saturating_sub(done);
        }
    }

    /// The batch of answers is written.
    pub fn on_answers_written(&mut self, peer: PeerId, now: Instant) {
        self.now = now;
        self.dirty = true;
        if let Some(state) = self.keys.get(&peer).and_then(|key| self.peers.get_mut(key)) {
            state.answering = false;
        }
    }

    /// Blocks come back unwritten: they go to a better connection, if there is one, else into the queue.
    pub fn on_returned(&mut self, peer: PeerId, conn: ConnKey, blocks: Vec<Block>, now: Instant) {
        self.now = now;
        let Some(key) = self.keys.get(&peer).copied() else {
            return;
        };
        let bytes = blocks.iter().map(|block| block.data().len() as u64).sum();
        self.unhand(key, conn, bytes);
        let best = self.peers.get(&key).and_then(|state| state.paths.best());
        let better = best.filter(|(best, _)| *best != conn);
        for block in blocks {
            match better {
                Some((better, _)) => self.hand(key, better, block, None),
                None => self.requeue(key, &block),
            }
        }
        self.activate(key);
    }

    /// The block is wanted as before it was read.
    fn requeue(&mut self, key: PeerKey, block: &Block) {
        let cid = *block.cid();
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        let is_full = peer.wants.len() >= self.config.max_wants_per_peer();
        if let (Ok(size), false) = (u32::try_from(block.data().len()), is_full)
            && !peer.wants.contains_key(&cid)
        {
            self.insert(key, cid, 0, WantType::Block, true, Descent::default());
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.set(&cid, Status::Ready(size), 0);
            }
        }
    }

    // ---- time and outputs ----

    /// When old wants are looked for next, or room is to be taken from a stuck peer.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sweep = (!self.by_hash.is_empty()).then_some(self.sweep_at);
        sweep.into_iter().chain(self.reclaim_at()).min()
    }

    /// Time has passed: wants nobody renewed or cancelled for `want_ttl` are forgotten.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        self.dirty |= self.reclaim_at().is_some_and(|at| at <= now);
        if now < self.sweep_at {
            return;
        }
        let ttl = self.config.want_ttl();
        self.sweep_at = now + ttl / 4;
        let mut expired: Vec<(PeerKey, Cid)> = Vec::new();
        for (key, peer) in &self.peers {
            let old = peer.order.values().filter(|cid| {
                peer.wants.get(*cid).is_some_and(|want| {
                    want.status != Status::Reading && want.refreshed + ttl <= now
                })
            });
            expired.extend(old.map(|cid| (*key, *cid)));
        }
        for (key, cid) in expired {
            self.forget(key, &cid);
        }
    }

    /// What is to be done; call after every other `&mut` call until it gives `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        self.pump();
        for peer in self.peers.values_mut() {
            if peer.answering || peer.answers.is_empty() {
                continue;
            }
            if let Some((conn, _)) = peer.paths.best() {
                let batch = peer.answers.len().min(ANSWER_BATCH);
                peer.answering = true;
                self.outputs.push_back(Output::Presences {
                    peer: peer.id,
                    conn,
                    presences: peer.answers.drain(..batch).collect(),
                });
            }
        }
        self.outputs.pop_front()
    }

    // ---- what users ask ----

    /// What others want from us, by CID.
    pub fn wantlist(&self) -> Vec<WantlistEntry> {
        let mut list: BTreeMap<Cid, WantlistEntry> = BTreeMap::new();
        for peer in self.peers.values() {
            for cid in peer.order.values() {
                let Some(want) = peer.wants.get(cid) else {
                    continue;
                };
                let waiting = self.now.duration_since(want.since);
                let entry = list.entry(*cid).or_insert_with(|| WantlistEntry {
                    cid: *cid,
                    priority: Priority(want.priority),
                    requesters: Vec::new(),
                    waiting,
                    have: want.status != Status::Absent,
                });
                entry.priority = entry.priority.max(Priority(want.priority));
                entry.waiting = entry.waiting.max(waiting);
                entry.requesters.push(peer.id);
            }
        }
        list.into_values().collect()
    }

    /// What went to a peer.
    pub fn ledger(&self, peer: &PeerId) -> Option<Ledger> {
        let connected = self.keys.get(peer).and_then(|key| self.peers.get(key));
        connected
            .map(|peer| peer.ledger)
            .or_else(|| self.ledgers.get(peer).copied())
    }

    /// Adds what the client knows about a peer that is going to its ledger. Before the last
    /// `on_disconnected`.
    pub fn settle(&mut self, peer: &PeerId, received: Received) {
        if let Some(state) = self.keys.get(peer).and_then(|key| self.peers.get_mut(key)) {
            state.ledger.blocks_received += received.blocks;
            state.ledger.bytes_received += received.bytes;
            state.ledger.unwanted_bytes += received.unwanted_bytes;
        }
    }

    /// Share of a peer in the upload, relative to others; between 0.01 and 100.
    pub fn set_weight(&mut self, peer: PeerId, weight: f64) {
        let weight = if weight.is_finite() {
            weight.clamp(0.01, 100.0)
        } else {
            1.0
        };
        if let Some(state) = self.keys.get(&peer).and_then(|key| self.peers.get_mut(key)) {
            state.weight = weight;
        }
        self.weights.insert(peer, weight);
        while self.weights.len() > self.config.max_ledgers() {
            self.weights.pop_front();
        }
    }

    /// Bytes handed to a connection and not written.
    pub fn serving_on(&self, peer: &PeerId, conn: ConnKey) -> u64 {
        let peer = self.keys.get(peer).and_then(|key| self.peers.get(key));
        peer.and_then(|peer| peer.handed.get(&conn))
            .copied()
            .unwrap_or(0)
    }

    /// Whether a peer wants anything.
    pub fn is_busy(&self, peer: &PeerId) -> bool {
        let peer = self.keys.get(peer).and_then(|key| self.peers.get(key));
        peer.is_some_and(|peer| {
            !peer.wants.is_empty() || peer.in_pipe > 0 || !peer.answers.is_empty()
        })
    }

    /// Sizes of all collections: `[peers, wanted hashes, reads, bytes in pipelines]`. All zero
    /// when nobody is connected.
    pub fn counters(&self) -> [u64; 4] {
        [
            self.peers.len() as u64,
            self.by_hash.len() as u64,
            self.reads.len() as u64,
            self.in_pipe,
        ]
    }
}

fn quantum(weight: f64) -> u64 {
    (QUANTUM * weight).max(1.0) as u64
}
