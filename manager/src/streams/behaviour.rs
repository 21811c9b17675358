use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    core::{ConnectedPoint, Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
    },
};
use tokio::sync::{mpsc, oneshot};

use super::{
    handler::{Command, Handler},
    stream::{IncomingStreams, Stream},
};
use crate::{
    error::{OpenStreamError, RegisterError},
    strategy::{BestPath, Path},
};

/// Streams that peers may have opened for one protocol before the application takes them.
const INCOMING_QUEUE: usize = 16;
/// Protocols that the application may register; multistream lists all of them to a peer that asks.
const MAX_PROTOCOLS: usize = 128;
/// Opens that may wait for a connection that is not limited.
const MAX_WAITING: usize = 256;

/// Who accepts streams of which protocol; shared with every connection.
pub(super) type Protocols = Arc<Mutex<HashMap<StreamProtocol, mpsc::Sender<(PeerId, Stream)>>>>;

/// A stream that is to be opened.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    pub(crate) peer: PeerId,
    pub(crate) protocol: StreamProtocol,
    pub(crate) reply: oneshot::Sender<Result<Stream, OpenStreamError>>,
}

struct Connection {
    path: Path,
    limited: bool,
}

/// Opens and accepts the application's streams.
#[derive(Default)]
pub(crate) struct Behaviour {
    protocols: Protocols,
    connections: BTreeMap<(PeerId, ConnectionId), Connection>,
    counts: BTreeMap<ConnectionId, Arc<AtomicUsize>>,
    kept_alive: BTreeSet<PeerId>,
    waiting: VecDeque<OpenRequest>,
    commands: VecDeque<ToSwarm<Infallible, Command>>,
    waker: Option<Waker>,
}

impl Behaviour {
    /// Opens a stream on the best connection to the peer; waits for one that is not limited, as long
    /// as the caller waits.
    pub(crate) fn open(&mut self, request: OpenRequest) {
        self.waiting.retain(|request| !request.reply.is_closed());
        match self.best(&request.peer) {
            Some(best) if !best.limited => self.send(request, best.connection),
            _ if self.waiting.len() < MAX_WAITING => self.waiting.push_back(request),
            _ => {
                let _ = request.reply.send(Err(OpenStreamError::TooManyWaiting));
            }
        }
    }

    /// Nobody can be reached there: those who wait hear it.
    pub(crate) fn fail_waiting(&mut self, peer: PeerId) {
        for request in std::mem::take(&mut self.waiting) {
            if request.peer == peer {
                let _ = request
                    .reply
                    .send(Err(OpenStreamError::Unreachable { peer }));
            } else {
                self.waiting.push_back(request);
            }
        }
    }

    /// Accepts streams of a protocol.
    pub(crate) fn register(
        &mut self,
        protocol: StreamProtocol,
    ) -> Result<IncomingStreams, RegisterError> {
        let mut protocols = lock(&self.protocols);
        protocols.retain(|_, sender| !sender.is_closed());
        if protocols.contains_key(&protocol) {
            return Err(RegisterError::Taken(protocol));
        }
        if protocols.len() >= MAX_PROTOCOLS {
            return Err(RegisterError::TooMany);
        }
        let (sender, receiver) = mpsc::channel(INCOMING_QUEUE);
        protocols.insert(protocol.clone(), sender);
        Ok(IncomingStreams { protocol, receiver })
    }

    /// What the relay lets through is known.
    pub(crate) fn set_limited(&mut self, peer: PeerId, connection: ConnectionId, limited: bool) {
        if let Some(connection) = self.connections.get_mut(&(peer, connection)) {
            connection.limited = limited;
            self.serve_waiting(peer);
        }
    }

    /// Whether connections to the peer stay open while nothing is on them.
    pub(crate) fn set_keep_alive(&mut self, peer: PeerId, keep_alive: bool) {
        let changed = if keep_alive {
            self.kept_alive.insert(peer)
        } else {
            self.kept_alive.remove(&peer)
        };
        if changed {
            let connections: Vec<_> = self.of(&peer).map(|(id, _)| id).collect();
            for connection in connections {
                self.notify(peer, connection, Command::KeepAlive(keep_alive));
            }
        }
    }

    /// Streams open on a connection.
    pub(crate) fn streams_on(&self, connection: ConnectionId) -> usize {
        self.counts
            .get(&connection)
            .map_or(0, |count| count.load(Ordering::Relaxed))
    }

    fn of<'a>(
        &'a self,
        peer: &'a PeerId,
    ) -> impl Iterator<Item = (ConnectionId, &'a Connection)> + 'a {
        let first = (*peer, ConnectionId::new_unchecked(0));
        self.connections
            .range(first..)
            .take_while(move |((of, _), _)| of == peer)
            .map(|((_, id), connection)| (*id, connection))
    }

    fn best(&self, peer: &PeerId) -> Option<BestPath> {
        self.of(peer)
            .map(|(id, connection)| BestPath {
                path: connection.path,
                limited: connection.limited,
                connection: id,
            })
            .min()
    }

    fn serve_waiting(&mut self, peer: PeerId) {
        let Some(best) = self.best(&peer).filter(|best| !best.limited) else {
            return;
        };
        for request in std::mem::take(&mut self.waiting) {
            if request.peer == peer {
                self.send(request, best.connection);
            } else {
                self.waiting.push_back(request);
            }
        }
    }

    fn send(&mut self, request: OpenRequest, connection: ConnectionId) {
        self.notify(request.peer, connection, Command::Open(request));
    }

    fn notify(&mut self, peer: PeerId, connection: ConnectionId, command: Command) {
        self.commands.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(connection),
            event: command,
        });
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn handler(&mut self, connection: ConnectionId, peer: PeerId, path: Path) -> Handler {
        let count = Arc::<AtomicUsize>::default();
        self.counts.insert(connection, count.clone());
        let keep_alive = self.kept_alive.contains(&peer);
        Handler::new(
            peer,
            connection,
            path,
            self.protocols.clone(),
            count,
            keep_alive,
        )
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        // The listener's own address names the relay; the remote's may not.
        Ok(self.handler(connection, peer, Path::of(local)))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(connection, peer, Path::of(address)))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => {
                let path = path_of(event.endpoint);
                // Until the relay's limit is known the circuit is taken for limited.
                let limited = path == Path::Relayed;
                self.connections.insert(
                    (event.peer_id, event.connection_id),
                    Connection { path, limited },
                );
                self.serve_waiting(event.peer_id);
            }
            FromSwarm::ConnectionClosed(event) => {
                self.connections
                    .remove(&(event.peer_id, event.connection_id));
                self.counts.remove(&event.connection_id);
            }
            // A connection that another behaviour refused after the handler was made.
            FromSwarm::DialFailure(event) => {
                self.counts.remove(&event.connection_id);
            }
            FromSwarm::ListenFailure(event) => {
                self.counts.remove(&event.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some(command) = self.commands.pop_front() {
            return Poll::Ready(command);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

pub(crate) fn path_of(endpoint: &ConnectedPoint) -> Path {
    if endpoint.is_relayed() {
        Path::Relayed
    } else {
        Path::Direct
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
