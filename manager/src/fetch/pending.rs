//! The driver's side of sessions: who waits for what.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anypath_bitswap::{Behaviour as Bitswap, Block, Priority, SessionId, SessionOptions, Ticket};
use bytes::Bytes;
use cid::Cid;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::oneshot;
use web_time::Instant;

use super::{Reply, SessionEvent, Shared};
use crate::{
    bootstrap::with_peer,
    error::FetchError,
    strategy::{BestPath, Path},
};

/// Blocks that a peer of our kind pushes after the first one of a session: those between the root and
/// the first leaf of a file of up to 174² chunks, and that leaf. Each saves a round trip before the
/// first bytes of the file.
const DESCEND: u32 = 2;

struct Want {
    ticket: Ticket,
    waiters: Vec<oneshot::Sender<Reply>>,
}

struct State {
    shared: Arc<Shared>,
    bitswap: SessionId,
    wants: BTreeMap<Cid, Want>,
    /// The best path to each of its peers, as far as it was told.
    peers: BTreeMap<PeerId, Option<Path>>,
    last_progress: Instant,
    /// Since when it waits for a direct path, and what the relay allows.
    waiting: Option<(Instant, u64)>,
}

/// A block on its way into the store.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) ticket: Ticket,
    pub(crate) cid: Cid,
    pub(crate) data: Bytes,
}

/// All sessions of a node.
pub(crate) struct Fetches {
    sessions: BTreeMap<u64, State>,
    tickets: BTreeMap<Ticket, (u64, Cid)>,
    /// Delivered, but not yet in the store.
    storing: BTreeMap<Cid, Bytes>,
    direct_path_timeout: Duration,
}

impl Fetches {
    pub(crate) fn new(direct_path_timeout: Duration) -> Self {
        Self {
            sessions: BTreeMap::new(),
            tickets: BTreeMap::new(),
            storing: BTreeMap::new(),
            direct_path_timeout,
        }
    }

    /// Opens a session unless it is open. The peers that have to be dialled for it.
    pub(crate) fn open(
        &mut self,
        shared: &Arc<Shared>,
        bitswap: &mut Bitswap,
        now: Instant,
    ) -> Vec<Multiaddr> {
        if self.sessions.contains_key(&shared.id) {
            return Vec::new();
        }
        let session = bitswap.new_session_with(SessionOptions::default().descend(DESCEND));
        let state = State {
            shared: shared.clone(),
            bitswap: session,
            wants: BTreeMap::new(),
            peers: BTreeMap::new(),
            last_progress: now,
            waiting: None,
        };
        self.sessions.insert(shared.id, state);
        shared.options.peers.clone()
    }

    /// A peer that probably has the session's blocks.
    pub(crate) fn add_peer(
        &mut self,
        session: u64,
        peer: PeerId,
        best: Option<BestPath>,
        bitswap: &mut Bitswap,
    ) {
        if let Some(state) = self.sessions.get_mut(&session) {
            bitswap.add_session_peer(state.bitswap, peer);
            state.peers.entry(peer).or_default();
            state.on_path(peer, best);
        }
    }

    /// Closes a session; the peers that were dialled for it.
    pub(crate) fn close(&mut self, session: u64, bitswap: &mut Bitswap) -> Vec<PeerId> {
        let Some(state) = self.sessions.remove(&session) else {
            return Vec::new();
        };
        for want in state.wants.values() {
            self.tickets.remove(&want.ticket);
        }
        bitswap.end_session(state.bitswap);
        let named = state.shared.options.peers.iter().filter_map(with_peer);
        named.map(|(peer, _)| peer).collect()
    }

    /// Somebody wants a block of a session that is open.
    pub(crate) fn want(
        &mut self,
        session: u64,
        cid: Cid,
        reply: oneshot::Sender<Reply>,
        bitswap: &mut Bitswap,
        now: Instant,
    ) {
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        if let Some(data) = self.storing.get(&cid) {
            state.shared.delivered(None, data.len(), now);
            let _ = reply.send(Reply::Block(data.clone()));
            return;
        }
        if state.wants.is_empty() {
            // The clock of a session that had nothing to do starts now.
            state.last_progress = now;
        }
        let want = state.wants.entry(cid).or_insert_with(|| {
            let priority = Priority(state.shared.options.priority);
            let ticket = bitswap.want(state.bitswap, cid, priority);
            self.tickets.insert(ticket, (session, cid));
            Want {
                ticket,
                waiters: Vec::new(),
            }
        });
        want.waiters.push(reply);
    }

    /// A block came; to be stored, and acknowledged with [`stored`](Self::stored). `None` if nobody
    /// waits any more.
    pub(crate) fn deliver(
        &mut self,
        ticket: Ticket,
        block: Block,
        path: Option<Path>,
        now: Instant,
    ) -> Option<Delivery> {
        let (session, cid) = self.tickets.remove(&ticket)?;
        let state = self.sessions.get_mut(&session)?;
        let want = state.wants.remove(&cid)?;
        let (_, data) = block.into_parts();
        state.last_progress = now;
        state.waiting = None;
        state.shared.delivered(path, data.len(), now);
        for waiter in want.waiters {
            // It may have given up.
            let _ = waiter.send(Reply::Block(data.clone()));
        }
        self.storing.insert(cid, data.clone());
        Some(Delivery { ticket, cid, data })
    }

    /// A delivered block is in the store, or cannot be stored.
    pub(crate) fn stored(&mut self, cid: &Cid) {
        self.storing.remove(cid);
    }

    /// Only a limited relay leads to a block.
    pub(crate) fn on_waiting(&mut self, ticket: Ticket, peer: PeerId, allowed: u64, now: Instant) {
        let Some((session, _)) = self.tickets.get(&ticket) else {
            return;
        };
        if let Some(state) = self.sessions.get_mut(session)
            && state.waiting.is_none()
        {
            state.waiting = Some((now, allowed));
            state
                .shared
                .emit(SessionEvent::WaitingForDirect { peer, allowed });
        }
    }

    /// The best path to a peer changed.
    pub(crate) fn on_path(&mut self, peer: PeerId, best: Option<BestPath>) {
        for state in self.sessions.values_mut() {
            state.on_path(peer, best);
        }
    }

    /// Withdraws what nobody waits for, fails what cannot be had. The sessions that have ended.
    pub(crate) fn sweep(&mut self, bitswap: &mut Bitswap, now: Instant) -> Vec<u64> {
        let mut ended = Vec::new();
        for (id, state) in &mut self.sessions {
            if state.shared.ended.load(Ordering::Relaxed) {
                ended.push(*id);
                continue;
            }
            let tickets = &mut self.tickets;
            state.wants.retain(|_, want| {
                want.waiters.retain(|waiter| !waiter.is_closed());
                let wanted = !want.waiters.is_empty();
                if !wanted {
                    tickets.remove(&want.ticket);
                    bitswap.cancel(want.ticket);
                }
                wanted
            });
            let timeout = self.direct_path_timeout;
            if let Some(failure) = state.failure(timeout, now) {
                for (cid, want) in std::mem::take(&mut state.wants) {
                    self.tickets.remove(&want.ticket);
                    bitswap.cancel(want.ticket);
                    for waiter in want.waiters {
                        let _ = waiter.send(Reply::Failed(failure.of(cid)));
                    }
                }
                state.waiting = None;
            }
        }
        ended
    }
}

/// Why all wants of a session fail.
enum Failure {
    NoProviders(Duration),
    WaitingForDirect { allowed: u64, waited: Duration },
}

impl Failure {
    fn of(&self, cid: Cid) -> FetchError {
        match *self {
            Self::NoProviders(waited) => FetchError::NoProviders { cid, waited },
            Self::WaitingForDirect { allowed, waited } => {
                FetchError::WaitingForDirect { allowed, waited }
            }
        }
    }
}

impl State {
    fn on_path(&mut self, peer: PeerId, best: Option<BestPath>) {
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        let path = best.map(|best| best.path);
        if *known != path {
            *known = path;
            match path {
                Some(Path::Relayed) => self.shared.emit(SessionEvent::Relayed { peer }),
                Some(Path::Direct) => self.shared.emit(SessionEvent::Direct { peer }),
                None => {}
            }
        }
        if path == Some(Path::Direct) {
            self.waiting = None;
        }
    }

    fn failure(&self, direct_path_timeout: Duration, now: Instant) -> Option<Failure> {
        if self.wants.is_empty() {
            return None;
        }
        if let Some((since, allowed)) = self.waiting {
            let waited = now.saturating_duration_since(since);
            return (waited >= direct_path_timeout)
                .then_some(Failure::WaitingForDirect { allowed, waited });
        }
        let waited = now.saturating_duration_since(self.last_progress);
        (waited >= self.shared.options.patience).then_some(Failure::NoProviders(waited))
    }
}
