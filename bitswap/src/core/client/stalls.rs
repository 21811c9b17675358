//! Peers that do not answer: when they count as silent, and who gets their requests.

use std::time::Duration;

use web_time::Instant;

use super::{
    Client, Output,
    peer::{Peer, PeerKey},
    wantlist::Goal,
    wants::WantId,
    window::Window,
};

/// Least time after which a peer that owes answers is told to be silent.
const SILENCE: Duration = Duration::from_secs(1);

impl Client {
    /// When a peer with open requests counts as stalled.
    pub(super) fn stall_at(&self, peer: &Peer) -> Option<Instant> {
        let oldest = peer.requests.front()?;
        let since = oldest.mark.sent.max(peer.last_progress);
        let patience = peer.window.patience(self.config.answer_timeout());
        Some(since + patience * (1 << peer.stalls.min(4)))
    }

    /// When a peer with open requests is told to be silent: before it counts as stalled where much is on order, for to ask whether its
    /// connection is alive costs less than to wait.
    pub(super) fn silent_at(&self, peer: &Peer) -> Option<Instant> {
        let oldest = peer.requests.front()?;
        let since = oldest.mark.sent.max(peer.last_progress);
        let (since, times) = match peer.told_silent {
            Some((told, times)) => (since.max(told), times),
            None => (since, 0),
        };
        let round_trip = peer.window.rtt().unwrap_or_default();
        Some(since + SILENCE.max(4 * round_trip) * (1 << times.min(4)))
    }

    pub(super) fn tell_silent(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key) {
            let times = peer.told_silent.map_or(0, |(_, times)| times);
            peer.told_silent = Some((self.now, times.saturating_add(1)));
            let id = peer.id;
            if let Some(conn) = peer.asked_over {
                self.outputs.push_back(Output::Silent { peer: id, conn });
            }
        }
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
