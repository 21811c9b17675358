//! Peers that do not answer: when they count as silent, and who gets their requests.

use web_time::Instant;

use super::{
    Client, Output,
    peer::{Peer, PeerKey},
    wantlist::Goal,
    wants::WantId,
    window::Window,
};

impl Client {
    /// When a peer with open requests counts as stalled.
    pub(super) fn stall_at(&self, peer: &Peer) -> Option<Instant> {
        let oldest = peer.requests.front()?;
        let since = oldest.mark.sent.max(peer.last_progress);
        let patience = peer.window.patience(self.config.answer_timeout());
        Some(since + patience * (1 << peer.stalls.min(4)))
    }

    /// A silent peer: others get its requests; if there are no others it is asked again. From a peer
    /// that cannot say DONT_HAVE (before 1.2.0) silence says it.
    pub(super) fn on_stall(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let speaks = peer.presences;
        if speaks {
            peer.stalls += 1;
        }
        peer.last_progress = self.now;
        tracing::trace!(peer = %peer.id, requests = peer.requests.len(), "stalled");
        let requests: Vec<WantId> = peer.requests.iter().map(|request| request.want).collect();
        let mut announced = 0;
        for id in requests {
            if !speaks {
                self.drop_request(key, id);
                self.refuse(key, id);
                self.settle(id);
                continue;
            }
            if self.has_alternative(id, key) {
                self.drop_request(key, id);
                self.set_line(key, id, Goal::Cancel);
                self.settle(id);
                continue;
            }
            self.set_line(key, id, Goal::BlockNow);
            if announced < self.config.search_wants()
                && let Some(want) = self.wants.get(id.0)
            {
                announced += 1;
                let cid = want.cid;
                for ticket in self.tickets_of(id) {
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
        let Some(oldest) = peer.requests.front() else {
            return;
        };
        let patience = peer.window.patience(self.config.answer_timeout());
        let overtaken = peer.window.delivered_since(&oldest.mark)
            > 2 * Window::queued_before(&oldest.mark) + 4 * u64::from(oldest.estimate);
        if overtaken && self.now.duration_since(oldest.mark.sent) > patience {
            let id = oldest.want;
            self.drop_request(key, id);
            self.refuse(key, id);
            self.settle(id);
        }
    }

    fn has_alternative(&self, id: WantId, than: PeerKey) -> bool {
        let Some(want) = self.wants.get(id.0) else {
            return false;
        };
        self.candidates(id, want)
            .any(|key| key != than && self.peers.get(&key).is_some_and(|peer| peer.stalls == 0))
    }
}
