//! Connections that come, change and go, and what is asked for again because of it.

use libp2p_identity::PeerId;
use smallvec::SmallVec;
use web_time::Instant;

use super::{
    Client,
    peer::{Peer, PeerKey},
    wants::WantId,
};
use crate::{
    SessionId,
    core::{ConnKey, Path, give_back},
    message::Version,
};

impl Client {
    /// A connection is up.
    pub fn on_connected(&mut self, peer: PeerId, conn: ConnKey, path: Path, now: Instant) {
        self.now = now;
        self.dirty = true;
        if let Some(known) = self.keys.get(&peer).and_then(|key| self.peers.get_mut(key)) {
            known.paths.insert(conn, path);
            return;
        }
        while self.peers.contains_key(&self.next_peer) {
            self.next_peer = self.next_peer.next();
        }
        let key = self.next_peer;
        self.next_peer = key.next();
        let mut state = Peer::new(peer, &self.config, now);
        state.paths.insert(conn, path);
        self.keys.insert(peer, key);
        self.peers.insert(key, state);
        let expecting: SmallVec<[SessionId; 4]> = self
            .sessions
            .iter_mut()
            .filter_map(|(id, session)| session.met(&peer).then_some(*id))
            .collect();
        for session in expecting {
            self.join(session, key);
            self.unpark(session, key);
        }
        self.ask_newcomer(key);
    }

    /// A connection is gone. What was on order over it is asked for again.
    pub fn on_disconnected(&mut self, peer: PeerId, conn: ConnKey, now: Instant) {
        self.now = now;
        self.dirty = true;
        let Some(key) = self.keys.get(&peer).copied() else {
            return;
        };
        self.lose_connection(key, conn, true);
        let Some(state) = self.peers.get_mut(&key) else {
            return;
        };
        state.paths.remove(conn);
        if !state.paths.is_empty() {
            return;
        }
        // Also what was on order over connections that closed without a word.
        let open: Vec<WantId> = state.requests.iter().map(|request| request.want).collect();
        let listed: Vec<WantId> = state.list.wants().collect();
        let sessions = std::mem::take(&mut state.sessions);
        for id in open {
            self.drop_request(key, id);
            self.settle(id);
        }
        for id in sessions {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.members.remove(&key);
                session.expect(peer);
            }
        }
        self.peers.remove(&key);
        self.keys.remove(&peer);
        give_back(&mut self.keys);
        self.changed.remove(&key);
        self.busy.remove(&key);
        self.promisers.remove(&key);
        for id in listed {
            self.on_line_gone(key, id);
        }
    }

    /// What is sent over a connection may not have arrived. What was on order over it is asked for
    /// again, of whoever is best; the rest of our wantlist is repeated, as a full list.
    fn lose_connection(&mut self, key: PeerKey, conn: ConnKey, closed: bool) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.writing = false;
        peer.probe = None;
        if closed {
            peer.forget_promises_on(conn);
            if !peer.has_promises() {
                self.promisers.remove(&key);
            }
        }
        let carried = peer.paths.best().is_none_or(|(best, _)| best == conn);
        let mut lost: Vec<WantId> = peer
            .requests
            .iter()
            .filter(|request| request.conn == conn)
            .map(|request| request.want)
            .collect();
        for id in &lost {
            self.drop_request(key, *id);
        }
        if carried && let Some(peer) = self.peers.get_mut(&key) {
            lost.sort_unstable();
            let dropped = peer.list.restart(&lost);
            if peer.list.has_changes() {
                self.changed.insert(key);
            }
            for id in dropped {
                self.on_line_gone(key, id);
            }
        }
        for id in lost {
            self.settle(id);
        }
    }

    /// A connection turned out better or worse than it seemed.
    pub fn on_path(&mut self, peer: PeerId, conn: ConnKey, path: Path, now: Instant) {
        self.now = now;
        self.dirty = true;
        if let Some(state) = self.keys.get(&peer).and_then(|key| self.peers.get_mut(key)) {
            state.paths.set_path(conn, path);
        }
    }

    /// The peer's version on a connection.
    pub fn on_version(&mut self, peer: PeerId, conn: ConnKey, version: Version, now: Instant) {
        self.now = now;
        self.dirty = true;
        if let Some(state) = self.keys.get(&peer).and_then(|key| self.peers.get_mut(key)) {
            state.presences = version.has_presences();
            state.paths.set_usable(conn, true);
        }
    }

    /// The peer speaks no bitswap on a connection.
    pub fn on_unsupported(&mut self, peer: PeerId, conn: ConnKey, now: Instant) {
        self.now = now;
        self.dirty = true;
        if let Some(key) = self.keys.get(&peer).copied() {
            self.lose_connection(key, conn, true);
            if let Some(state) = self.peers.get_mut(&key) {
                state.paths.set_usable(conn, false);
            }
        }
    }

    /// The outbound stream broke; the connection stands.
    pub fn on_stream_lost(&mut self, peer: PeerId, conn: ConnKey, now: Instant) {
        self.now = now;
        self.dirty = true;
        if let Some(key) = self.keys.get(&peer).copied() {
            self.lose_connection(key, conn, false);
        }
    }

    /// The entries of the last `Send` are written.
    pub fn on_written(&mut self, peer: PeerId, now: Instant) {
        self.now = now;
        if let Some(state) = self.keys.get(&peer).and_then(|key| self.peers.get_mut(key)) {
            state.writing = false;
        }
    }
}
