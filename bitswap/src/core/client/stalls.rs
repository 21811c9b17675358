//! Peers that do not answer: when they count as silent, and who gets their requests.

use web_time::Instant;

use super::{
    Client, Output, State, WantId,
    peer::{Change, Peer, PeerKey},
    window::Window,
};

impl Client {
    /// When a peer with open requests counts as stalled.
    pub(super) fn stall_at(&self, peer: &Peer) -> Option<Instant> {
        let (_, oldest) = peer.requests.first_key_value()?;
        let since = oldest.mark.sent.max(peer.last_progress);
        let patience = peer.window.patience(self.config.answer_timeout());
        Some(since + patience * (1 << peer.stalls.min(4)))
    }

    /// A silent peer: others get its requests; if there are no others it is asked again.
    pub(super) fn on_stall(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.stalls += 1;
        peer.last_progress = self.now;
        let requests: Vec<(u64, WantId)> = peer
            .requests
            .iter()
            .map(|(number, request)| (*number, request.want))
            .collect();
        let mut announced = 0;
        for (number, id) in requests {
            if self.has_alternative(id, key) {
                self.drop_request(key, number);
                self.withdraw(key, id, false);
                self.set_state(id, State::Pending);
                continue;
            }
            let Some(want) = self.wants.get_mut(&id) else {
                continue;
            };
            want.held_by(key);
            let change = Change::Block {
                priority: want.priority,
                descend: want.descend,
            };
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.push(id, want.cid, change);
            }
            if announced < self.config.search_wants() {
                announced += 1;
                let (cid, tickets) = (want.cid, want.tickets.clone());
                for ticket in tickets {
                    self.outputs
                        .push_back(Output::ProvidersWanted { ticket, cid });
                }
            }
        }
    }

    /// A request that was overtaken by far will not be answered (peers before 1.2.0 say nothing
    /// when they lack a block).
    pub(super) fn check_oldest(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        let Some((number, oldest)) = peer.requests.first_key_value() else {
            return;
        };
        let patience = peer.window.patience(self.config.answer_timeout());
        let overtaken = peer.window.delivered_since(&oldest.mark)
            > 2 * Window::queued_before(&oldest.mark) + 4 * oldest.estimate;
        if overtaken && self.now.duration_since(oldest.mark.sent) > patience {
            let (number, id) = (*number, oldest.want);
            self.drop_request(key, number);
            self.refuse(key, id);
            self.set_state(id, State::Pending);
        }
    }

    fn has_alternative(&self, id: WantId, than: PeerKey) -> bool {
        let Some(want) = self.wants.get(&id) else {
            return false;
        };
        self.candidates(want).any(|key| {
            key != than
                && self
                    .peers
                    .get(&key)
                    .is_some_and(|peer| peer.stalls == 0 && peer.paths.best().is_some())
        })
    }

    fn withdraw(&mut self, key: PeerKey, id: WantId, lazy: bool) {
        let Some(want) = self.wants.get(&id) else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.push(id, want.cid, Change::Cancel { lazy });
        }
    }
}
