//! Connections that come, change and go, and what is asked for again because of it.

use libp2p_identity::PeerId;
use smallvec::SmallVec;
use web_time::Instant;

use super::{
    Client, State, Want, WantId,
    peer::{Peer, PeerKey},
};
use crate::{
    SessionId,
    core::{ConnKey, Path},
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
        let key = PeerKey(self.id());
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
            self.unpark(session);
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
        let sessions = std::mem::take(&mut state.sessions);
        for id in sessions {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.peers.remove(&key);
                session.expect(peer);
            }
        }
        self.peers.remove(&key);
        self.keys.remove(&peer);
    }

    /// What is sent over a connection may not have arrived: all of it is asked for again.
    fn lose_connection(&mut self, key: PeerKey, conn: ConnKey, closed: bool) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.writing = false;
        if closed {
            peer.forget_promises_on(conn);
        }
        let only = !closed || peer.paths.best().is_none_or(|(best, _)| best == conn);
        if only {
            peer.registered.clear();
            peer.drop_changes();
            for want in std::mem::take(&mut peer.asked) {
                // Another round of the search asks again.
                if let Some(Want {
                    state: State::Searching(since),
                    ..
                }) = self.wants.get_mut(&want)
                {
                    *since = None;
                }
            }
        }
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        let lost: Vec<(u64, WantId)> = peer
            .requests
            .iter()
            .filter(|(_, request)| request.conn == conn)
            .map(|(number, request)| (*number, request.want))
            .collect();
        for (number, want) in lost {
            self.drop_request(key, number);
            self.set_state(want, State::Pending);
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
