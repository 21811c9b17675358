//! The wantlists of peers: what they want, and whether we have it.

use std::collections::BTreeMap;

use cid::Cid;
use libp2p_identity::PeerId;
use web_time::Instant;

use super::{
    Lookup, Server,
    peer::{Descent, PeerKey, Status, Want},
};
use crate::{
    Priority, WantlistEntry,
    core::paths::Paths,
    message::{Entry, Message, Presence, WantType},
};

/// Answers to one peer that wait for its socket; above that the oldest are dropped.
const MAX_ANSWERS: usize = 4096;

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

    pub(super) fn insert(
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
    pub(super) fn evaluate(&mut self, key: PeerKey, cid: &Cid, lookup: Lookup<'_>, answer: bool) {
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

    pub(super) fn answer(&mut self, key: PeerKey, cid: Cid, have: bool) {
        if let Some(peer) = self.peers.get_mut(&key) {
            if peer.answers.len() >= MAX_ANSWERS {
                peer.answers.pop_front();
            }
            peer.answers.push_back(Presence { cid, have });
            self.dirty = true;
        }
    }

    /// Gives up a want, and says so.
    pub(super) fn refuse(&mut self, key: PeerKey, cid: &Cid) {
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

    pub(super) fn forget(&mut self, key: PeerKey, cid: &Cid) -> Option<Want> {
        let want = self.peers.get_mut(&key)?.remove(cid)?;
        if let Some(wanting) = self.by_hash.get_mut(cid.hash()) {
            wanting.retain(|(other, seq)| (*other, *seq) != (key, want.seq));
            if wanting.is_empty() {
                self.by_hash.remove(cid.hash());
            }
        }
        Some(want)
    }
}
