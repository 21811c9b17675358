//! The wantlists of peers: what they want, and whether we have it.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    hash::Hasher,
    sync::Arc,
    time::Duration,
};

use cid::{Cid, multihash::Multihash};
use libp2p_identity::PeerId;
use smallvec::SmallVec;
use web_time::Instant;

use super::{
    Lookup, Server,
    peer::{Descent, PeerKey, Status, Want, WantKey},
};
use crate::{
    Priority, WantlistEntry,
    core::paths::Paths,
    message::{Entry, Message, WantType},
};

/// Answers to one peer that wait for its socket; above that the oldest are dropped. As many as wants
/// are kept.
const MAX_ANSWERS: usize = 1024;
/// Wants of one peer whose descendants are pushed at a time; a session has one.
const MAX_DESCENTS: usize = 8;

/// A CID, found by its multihash: v0 and v1 name the same block.
#[derive(Debug)]
pub(super) struct Hash(Arc<Cid>);

impl Borrow<Multihash<64>> for Hash {
    fn borrow(&self) -> &Multihash<64> {
        self.0.hash()
    }
}

impl std::hash::Hash for Hash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let hash: &Multihash<64> = self.borrow();
        std::hash::Hash::hash(hash, state);
    }
}

impl PartialEq for Hash {
    fn eq(&self, other: &Self) -> bool {
        self.0.hash() == other.0.hash()
    }
}

impl Eq for Hash {}

/// Who wants a hash, and which of the peer's wants that is; sorted.
pub(super) type Requesters = SmallVec<[(PeerKey, WantKey); 1]>;

/// What a peer is told about a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stock {
    /// We do not serve it to this peer.
    Denied,
    Absent,
    /// So many bytes.
    Here(u32),
}

impl Server {
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
        let mut cancelled: Vec<&Cid> = Vec::new();
        for entry in &message.entries {
            match (entry.cancel, self.find(key, &entry.cid)) {
                (true, Some(want)) => drop(self.forget(key, want)),
                // Sent, or about to be.
                (true, None) => cancelled.push(&entry.cid),
                (false, Some(want)) => self.renew(key, want, entry, lookup),
                (false, None) => self.add(key, entry, lookup),
            }
        }
        if let Some(state) = self.peers.get_mut(&key) {
            let wants = message.entries.iter().filter(|entry| !entry.cancel).count();
            state.ledger.wants_received += wants as u64;
        }
        self.take_back(key, &cancelled);
        self.activate(key);
    }

    /// Blocks are in the source now; who waits for them is served, or told.
    pub fn on_new_blocks(&mut self, cids: &[Cid], lookup: Lookup<'_>, now: Instant) {
        self.now = now;
        self.dirty = true;
        for cid in cids {
            self.demand.on_have(cid);
            let waiting = self.by_hash.get(cid.hash()).cloned().unwrap_or_default();
            for (key, want) in waiting {
                let absent = self.peers.get(&key).is_some_and(|peer| {
                    let want = peer.wants.get(&want);
                    want.is_some_and(|want| want.status == Status::Absent)
                });
                if absent {
                    self.evaluate(key, want, lookup, false);
                    self.activate(key);
                }
            }
        }
    }

    /// What others want from us, by CID.
    pub fn wantlist(&self) -> Vec<WantlistEntry> {
        let mut list: BTreeMap<Cid, WantlistEntry> = BTreeMap::new();
        for peer in self.peers.values() {
            for want in peer.wants.values() {
                let waiting = Duration::from_secs(self.seconds().saturating_sub(want.since).into());
                let entry = list.entry(*want.cid).or_insert_with(|| WantlistEntry {
                    cid: *want.cid,
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

    /// A full list: what is not in it is no longer wanted.
    fn replace_list(&mut self, key: PeerKey, entries: &[Entry]) {
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        let kept: BTreeSet<&Cid> = entries.iter().map(|entry| &entry.cid).collect();
        let gone = peer
            .wants
            .iter()
            .filter(|(_, want)| !kept.contains(&*want.cid));
        let gone: Vec<WantKey> = gone.map(|(want, _)| *want).collect();
        for want in gone {
            self.forget(key, want);
        }
    }

    /// The want of a peer for a CID.
    pub(super) fn find(&self, key: PeerKey, cid: &Cid) -> Option<WantKey> {
        let requesters = self.by_hash.get(cid.hash())?;
        let wants = &self.peers.get(&key)?.wants;
        let first = requesters.partition_point(|(other, _)| *other < key);
        let own = requesters
            .iter()
            .skip(first)
            .take_while(|(other, _)| *other == key);
        own.map(|(_, want)| *want)
            .find(|want| wants.get(want).is_some_and(|want| *want.cid == *cid))
    }

    pub(super) fn stock(&self, peer: &PeerId, cid: &Cid, lookup: Lookup<'_>) -> Stock {
        let denied = self.filter.as_ref().is_some_and(|may| !may(peer, cid));
        if denied || !self.config.serve() {
            return Stock::Denied;
        }
        lookup(cid).map_or(Stock::Absent, Stock::Here)
    }

    /// A new want.
    fn add(&mut self, key: PeerKey, entry: &Entry, lookup: Lookup<'_>) {
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        let stock = self.stock(&peer.id, &entry.cid, lookup);
        let full = peer.wants.len() >= self.config.max_wants_per_peer();
        let victim = peer.victim(entry.priority, matches!(stock, Stock::Here(_)));
        if stock == Stock::Denied || (full && victim.is_none()) {
            self.denied += u64::from(stock == Stock::Denied);
            if entry.send_dont_have {
                self.answer(key, self.shared(&entry.cid), false);
            }
            return;
        }
        if full && let Some(victim) = victim {
            self.refuse(key, victim);
        }
        let left = match entry.want_type {
            WantType::Block => entry.descend.min(self.max_descend(key)),
            WantType::Have => 0,
        };
        let descent = (left > 0).then(|| {
            Box::new(Descent {
                left,
                stack: Vec::new(),
            })
        });
        let cid = self.shared(&entry.cid);
        let want = Want {
            cid: Arc::clone(&cid),
            priority: entry.priority,
            kind: entry.want_type,
            send_dont_have: entry.send_dont_have,
            status: Status::Absent,
            since: self.seconds(),
            refreshed: self.seconds(),
            descent,
        };
        let want = self.insert(key, want);
        self.count_demand(key, &cid);
        self.settle_want(key, want, stock, true);
    }

    /// How many descendants a peer may ask for now.
    pub(super) fn max_descend(&self, key: PeerKey) -> u32 {
        let pushing = self.peers.get(&key).map_or(0, |peer| peer.descents());
        match self.config.role().pushes() && pushing < MAX_DESCENTS {
            true => self.config.max_descend(),
            false => 0,
        }
    }

    /// A want that is in the list already.
    fn renew(&mut self, key: PeerKey, want: WantKey, entry: &Entry, lookup: Lookup<'_>) {
        let now = self.seconds();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(state) = peer.wants.get_mut(&want) else {
            return;
        };
        state.refreshed = now;
        let coming = matches!(state.status, Status::Reading)
            || (matches!(state.status, Status::Ready(_)) && entry.want_type == WantType::Have);
        if coming {
            return;
        }
        state.kind = entry.want_type;
        state.send_dont_have = entry.send_dont_have;
        let status = state.status;
        peer.set(want, status, entry.priority);
        self.evaluate(key, want, lookup, true);
    }

    /// The one copy of a CID, if anybody wants it, else a new one.
    pub(super) fn shared(&self, cid: &Cid) -> Arc<Cid> {
        let known = self.by_hash.get_key_value(cid.hash());
        match known {
            Some((Hash(known), _)) if **known == *cid => Arc::clone(known),
            _ => Arc::new(*cid),
        }
    }

    pub(super) fn insert(&mut self, key: PeerKey, want: Want) -> WantKey {
        let number = WantKey(self.id());
        if let Some(peer) = self.peers.get_mut(&key) {
            let hash = Hash(Arc::clone(&want.cid));
            peer.insert(number, want);
            let requesters = self.by_hash.entry(hash).or_default();
            // Numbers grow: among those of a peer it is the last.
            let at = requesters.partition_point(|(other, _)| *other <= key);
            requesters.insert(at, (key, number));
        }
        number
    }

    /// Looks whether we have the block; `answer` if we lack it.
    pub(super) fn evaluate(
        &mut self,
        key: PeerKey,
        want: WantKey,
        lookup: Lookup<'_>,
        answer: bool,
    ) {
        let found = self
            .peers
            .get(&key)
            .and_then(|peer| Some((&peer.id, &peer.wants.get(&want)?.cid)));
        if let Some((peer, cid)) = found {
            let stock = self.stock(peer, cid, lookup);
            self.settle_want(key, want, stock, answer);
        }
    }

    fn settle_want(&mut self, key: PeerKey, want: WantKey, stock: Stock, answer: bool) {
        let replaced_bytes = match self.config.role().pushes() {
            true => self.config.have_replacement_bytes(),
            false => 0,
        };
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(state) = peer.wants.get(&want) else {
            return;
        };
        let (priority, told) = (state.priority, state.status == Status::Withheld);
        let (is_block, say_so) = (
            state.kind == WantType::Block,
            answer && state.send_dont_have,
        );
        match stock {
            Stock::Denied => {
                let gone = self.forget(key, want);
                self.denied += 1;
                if let Some(gone) = gone.filter(|_| say_so) {
                    self.answer(key, gone.cid, false);
                }
            }
            Stock::Absent => {
                let cid = Arc::clone(&state.cid);
                peer.set(want, Status::Absent, priority);
                if say_so {
                    self.answer(key, Arc::clone(&cid), false);
                }
                self.consider_prefetch(&cid);
            }
            Stock::Here(size) => {
                let send = is_block || size <= replaced_bytes;
                let best = peer.paths.best();
                let fits = best.is_none_or(|(_, path)| Paths::fits(path, size.into()));
                let status = match (send, fits) {
                    (true, true) => Status::Ready(size),
                    (true, false) => Status::Withheld,
                    (false, _) => Status::Told,
                };
                peer.set(want, status, priority);
                if !matches!(status, Status::Ready(_)) && !told {
                    self.answer_want(key, want, true);
                }
            }
        }
    }

    pub(super) fn answer_want(&mut self, key: PeerKey, want: WantKey, have: bool) {
        let want = self.peers.get(&key).and_then(|peer| peer.wants.get(&want));
        if let Some(want) = want {
            self.answer(key, Arc::clone(&want.cid), have);
        }
    }

    fn answer(&mut self, key: PeerKey, cid: Arc<Cid>, have: bool) {
        if let Some(peer) = self.peers.get_mut(&key) {
            if peer.answers.len() >= MAX_ANSWERS {
                peer.answers.pop_front();
            }
            peer.answers.push_back((cid, have));
            self.talking.insert(key);
            self.dirty = true;
        }
    }

    /// Gives up a want, and says so.
    pub(super) fn refuse(&mut self, key: PeerKey, want: WantKey) {
        if let Some(want) = self.forget(key, want)
            && want.send_dont_have
            && want.status != Status::Absent
        {
            self.answer(key, want.cid, false);
        }
    }

    pub(super) fn forget(&mut self, key: PeerKey, want: WantKey) -> Option<Want> {
        let state = self.peers.get_mut(&key)?.remove(want)?;
        let hash = state.cid.hash();
        if let Some(requesters) = self.by_hash.get_mut(hash) {
            if let Ok(at) = requesters.binary_search(&(key, want)) {
                requesters.remove(at);
            }
            if requesters.is_empty() {
                self.by_hash.remove(hash);
                self.demand.on_unwanted(&state.cid);
                // What a crowd once wanted takes no memory when it is gone.
                let (kept, room) = (self.by_hash.len(), self.by_hash.capacity());
                if room > 64 && kept < room / 3 {
                    self.by_hash.shrink_to(kept * 3 / 2);
                }
            }
        }
        Some(state)
    }

    /// Wants nobody renewed or cancelled for `want_ttl` are forgotten.
    pub(super) fn forget_old(&mut self) {
        let ttl = self.config.want_ttl();
        let renewed =
            |want: &Want| Duration::from_secs(self.seconds().saturating_sub(want.refreshed).into());
        let mut expired: Vec<(PeerKey, WantKey)> = Vec::new();
        for (key, peer) in &self.peers {
            let old = peer
                .wants
                .iter()
                .filter(|(_, want)| want.status != Status::Reading && renewed(want) >= ttl);
            expired.extend(old.map(|(want, _)| (*key, *want)));
        }
        for (key, want) in expired {
            self.forget(key, want);
        }
    }
}
