//! A want between its first wish and its end: its state, and the queues of its sessions.

use std::cmp::Reverse;

use smallvec::SmallVec;

use super::{
    Client, LAZY_DELAY, State, Want, WantId,
    peer::{Change, PeerKey},
};
use crate::{SessionId, Ticket};

impl Client {
    pub(super) fn sessions_by(&self, tickets: &[Ticket]) -> SmallVec<[SessionId; 1]> {
        let mut sessions: SmallVec<[SessionId; 1]> = tickets
            .iter()
            .filter_map(|ticket| self.wishes.get(ticket))
            .map(|wish| wish.session)
            .collect();
        sessions.sort_unstable();
        sessions.dedup();
        sessions
    }

    pub(super) fn sessions_of(&self, id: WantId) -> SmallVec<[SessionId; 1]> {
        self.wants
            .get(&id)
            .map(|want| self.sessions_by(&want.tickets))
            .unwrap_or_default()
    }

    /// Puts a want into the queues that fit its state.
    pub(super) fn enqueue(&mut self, id: WantId) {
        let Some(want) = self.wants.get(&id) else {
            return;
        };
        let rank = (Reverse(want.priority), id);
        let searching = match want.state {
            State::Pending => false,
            State::Searching(_) => true,
            State::InFlight(..) => return,
        };
        for session in self.sessions_of(id) {
            if let Some(state) = self.sessions.get_mut(&session) {
                if searching {
                    state.searching.insert(id);
                } else {
                    state.pending.insert(rank);
                }
            }
        }
        self.dirty = true;
    }

    pub(super) fn dequeue(&mut self, id: WantId, sessions: &[SessionId]) {
        let Some(want) = self.wants.get(&id) else {
            return;
        };
        let rank = (Reverse(want.priority), id);
        for session in sessions {
            if let Some(state) = self.sessions.get_mut(session) {
                state.pending.remove(&rank);
                state.searching.remove(&id);
            }
        }
    }

    pub(super) fn rerank(&mut self, id: WantId, old: i32) {
        for session in self.sessions_of(id) {
            if let Some(state) = self.sessions.get_mut(&session) {
                state.pending.remove(&(Reverse(old), id));
            }
        }
    }

    pub(super) fn set_state(&mut self, id: WantId, state: State) {
        let sessions = self.sessions_of(id);
        self.dequeue(id, &sessions);
        if let Some(want) = self.wants.get_mut(&id) {
            want.state = state;
        }
        self.enqueue(id);
    }

    /// Removes a want that is answered or withdrawn; its `tickets` may be empty already, so the
    /// `sessions` are given. `by`: who delivered how much.
    pub(super) fn close(&mut self, id: WantId, sessions: &[SessionId], by: Option<(PeerKey, u64)>) {
        self.dequeue(id, sessions);
        let Some(want) = self.wants.remove(&id) else {
            return;
        };
        if let Some(ids) = self.by_hash.get_mut(want.cid.hash()) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_hash.remove(want.cid.hash());
            }
        }
        if let State::InFlight(key, number) = want.state
            && let Some(peer) = self.peers.get_mut(&key)
            && let Some(request) = peer.requests.remove(&number)
        {
            self.in_flight_bytes = self.in_flight_bytes.saturating_sub(request.estimate);
            match by {
                Some((deliverer, bytes)) if deliverer == key => {
                    peer.window
                        .on_delivered(&request.mark, request.estimate, bytes, self.now);
                }
                _ => peer.window.on_dropped(request.estimate),
            }
        }
        // To every peer that holds an entry of ours, the deliverer included: some servers keep a
        // served want until it is cancelled.
        let flush_at = self.now + LAZY_DELAY;
        for key in want.holders {
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            peer.asked.remove(&id);
            let lazy = by.is_some_and(|(deliverer, _)| deliverer == key);
            peer.push(id, want.cid, Change::Cancel { lazy });
            if lazy && peer.has_changes() {
                peer.flush_at.get_or_insert(flush_at);
            }
        }
    }

    pub(super) fn join(&mut self, session: SessionId, key: PeerKey) {
        if let Some(state) = self.sessions.get_mut(&session)
            && let Some(peer) = self.peers.get_mut(&key)
        {
            state.peers.entry(key).or_insert(0);
            peer.sessions.insert(session);
            self.dirty = true;
        }
    }

    /// A session has a new peer: what was searched for may be asked of it.
    pub(super) fn unpark(&mut self, session: SessionId) {
        let Some(state) = self.sessions.get(&session) else {
            return;
        };
        let parked: Vec<WantId> = state.searching.iter().copied().collect();
        for id in parked {
            let possible = self.wants.get(&id).is_some_and(|want| {
                self.candidates(want).any(|key| {
                    self.peers
                        .get(&key)
                        .is_some_and(|peer| peer.paths.best().is_some())
                })
            });
            if possible {
                self.set_state(id, State::Pending);
            }
        }
    }

    /// Peers that may have a want: those of its sessions and its providers, without those that
    /// refused.
    pub(super) fn candidates<'a>(&'a self, want: &'a Want) -> impl Iterator<Item = PeerKey> + 'a {
        let sessions = want
            .tickets
            .iter()
            .filter_map(|ticket| self.wishes.get(ticket))
            .filter_map(|wish| self.sessions.get(&wish.session));
        sessions
            .flat_map(|session| session.peers.keys())
            .chain(&want.providers)
            .copied()
            .filter(|key| !want.refused.contains(key))
    }
}
