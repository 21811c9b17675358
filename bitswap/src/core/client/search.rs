//! Searching for wants that no connected peer of their sessions is likely to have.

use std::{cmp::Reverse, collections::BTreeSet};

use rand::RngExt as _;

use super::{
    Client, Output, State, Want, WantId,
    peer::{Change, PeerKey},
};

impl Client {
    /// Gives searched-for wants their turn.
    pub(super) fn start_searches(&mut self) {
        let mut due: Vec<WantId> = Vec::new();
        for session in self.sessions.values() {
            let turn = session.searching.iter().take(self.config.search_wants());
            due.extend(turn.filter(|id| {
                matches!(
                    self.wants.get(id),
                    Some(Want {
                        state: State::Searching(None),
                        ..
                    })
                )
            }));
        }
        due.sort_unstable();
        due.dedup();
        if due.is_empty() {
            return;
        }
        let targets = self.search_targets();
        for id in due {
            self.search(id, &targets);
        }
    }

    fn search(&mut self, id: WantId, targets: &[PeerKey]) {
        let Some(want) = self.wants.get_mut(&id) else {
            return;
        };
        want.state = State::Searching(Some(self.now));
        let (cid, priority, tickets) = (want.cid, want.priority, want.tickets.clone());
        for ticket in tickets {
            self.outputs
                .push_back(Output::ProvidersWanted { ticket, cid });
        }
        let mut legacy = false;
        for key in targets {
            let Some(peer) = self.peers.get_mut(key) else {
                continue;
            };
            if !peer.presences {
                // Knows no want-have: it may be asked for the block itself.
                legacy = true;
                if let Some(want) = self.wants.get_mut(&id)
                    && !want.providers.contains(key)
                {
                    want.providers.push(*key);
                }
            } else if peer.outstanding() < self.config.max_outstanding_per_peer() {
                peer.asked.insert(id);
                peer.push(
                    id,
                    cid,
                    Change::Have {
                        priority,
                        dont_have: false,
                    },
                );
                if let Some(want) = self.wants.get_mut(&id) {
                    want.held_by(*key);
                }
            }
        }
        if legacy {
            self.set_state(id, State::Pending);
        }
        self.search_at
            .get_or_insert(self.now + self.config.search_interval());
    }

    /// Connected peers to search: the useful ones first, among equals at random.
    fn search_targets(&mut self) -> Vec<PeerKey> {
        let mut targets: Vec<(Reverse<u64>, u32, PeerKey)> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.paths.best().is_some() && peer.stalls == 0)
            .map(|(key, peer)| (Reverse(peer.useful), self.rng.random(), *key))
            .collect();
        targets.sort_unstable();
        targets.truncate(self.config.search_peers());
        targets.into_iter().map(|(.., key)| key).collect()
    }

    pub(super) fn repeat_searches(&mut self) {
        self.search_at = None;
        let all: BTreeSet<WantId> = self
            .sessions
            .values()
            .flat_map(|session| &session.searching)
            .copied()
            .collect();
        for id in all {
            if let Some(want) = self.wants.get_mut(&id) {
                // Who did not have it then may have it now.
                want.refused.clear();
                want.state = State::Searching(None);
            }
        }
    }

    /// A peer has just connected: it is asked what is being searched for.
    pub(super) fn ask_newcomer(&mut self, key: PeerKey) {
        let running: BTreeSet<WantId> = self
            .sessions
            .values()
            .flat_map(|session| session.searching.iter().take(self.config.search_wants()))
            .copied()
            .collect();
        for id in running {
            let Some(want) = self.wants.get_mut(&id) else {
                continue;
            };
            if !matches!(want.state, State::Searching(Some(_))) {
                continue;
            }
            want.held_by(key);
            let change = Change::Have {
                priority: want.priority,
                dont_have: false,
            };
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.asked.insert(id);
                peer.push(id, want.cid, change);
            }
        }
    }
}
