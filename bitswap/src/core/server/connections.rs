//! Connections that come, change and go, and what moves between them.

use libp2p_identity::PeerId;
use web_time::Instant;

use super::{
    Lookup, Output, Server,
    peer::{Peer, PeerKey, Status, Turn, WantKey},
};
use crate::core::{ConnKey, Path, give_back, paths::Paths};

impl Server {
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
                let standing = self.standings.get(&peer).copied().unwrap_or_default();
                self.keys.insert(peer, key);
                self.peers
                    .insert(key, Peer::new(peer, standing, ledger, now));
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
            && peer.handed.contains_key(&old)
        {
            self.outputs.push_back(Output::Withdraw {
                peer: peer.id,
                conn: old,
            });
        }
        let withheld = peer
            .wants
            .iter()
            .filter(|(_, want)| want.status == Status::Withheld);
        let withheld: Vec<WantKey> = withheld.map(|(want, _)| *want).collect();
        for want in withheld {
            self.evaluate(key, want, lookup, false);
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
        let lost = state.handed.remove(&conn);
        let lost = lost.map_or(0, |handed| handed.weight());
        state.in_pipe = state.in_pipe.saturating_sub(lost);
        self.in_pipe = self.in_pipe.saturating_sub(lost);
        if !state.paths.is_empty() {
            self.activate(key);
            return;
        }
        for want in state.wants.keys().copied().collect::<Vec<_>>() {
            self.forget(key, want);
        }
        self.talking.remove(&key);
        self.keys.remove(&peer);
        give_back(&mut self.keys);
        self.outputs.shrink_to(16);
        self.reads.shrink_to(16);
        if let Some(state) = self.peers.remove(&key) {
            self.in_pipe = self.in_pipe.saturating_sub(state.in_pipe);
            self.shaper.refund(state.class, state.reading, now);
            if state.turn == Turn::Queued {
                self.rings.of_mut(state.class).remove(key);
            }
            self.keep_ledger(peer, state.ledger);
        }
    }
}
