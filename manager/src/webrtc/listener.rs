//! One listening socket: its task hands datagrams to their connections, and new connections to the swarm.

use std::{
    collections::{HashMap, HashSet},
    future::poll_fn,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use futures::{FutureExt as _, Stream, StreamExt as _, channel::mpsc, future::BoxFuture};
use if_watch::{IfEvent, tokio::IfWatcher};
use libp2p::{
    Multiaddr, PeerId,
    core::transport::{ListenerId, TransportEvent},
    identity::Keypair,
};

use super::{
    Error,
    address::Address,
    certificate::Certificate,
    core::{Connection, ConnectionId, Path, Route, Router, Ufrag, router::MAX_HANDSHAKES},
    driver::{Driver, Source, now},
    muxer::Muxer,
    noise::{Role, upgrade},
    socket::{ReceiveBuffer, Socket},
};

/// Datagrams that wait for their connection; a batch of the system's has 64.
const MAX_WAITING: usize = 512;

/// What both ends of [`TransportEvent::Incoming`] have.
pub(super) type Upgrade = BoxFuture<'static, Result<(PeerId, Muxer), Error>>;

type Event = TransportEvent<Upgrade, Error>;

/// Somebody who begins.
struct Incoming {
    ufrag: Ufrag,
    path: Path,
    datagrams: mpsc::Receiver<(Path, Bytes)>,
    registration: Registration,
}

/// Who gets which datagrams.
#[derive(Default)]
struct Routing {
    router: Router,
    connections: HashMap<ConnectionId, mpsc::Sender<(Path, Bytes)>>,
    task: Option<Waker>,
}

/// A connection's place in the routing, for as long as it lives.
pub(super) struct Registration {
    routing: Arc<Mutex<Routing>>,
    id: ConnectionId,
}

fn lock(routing: &Mutex<Routing>) -> MutexGuard<'_, Routing> {
    routing.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registration {
    pub(super) fn on_authenticated(&self) {
        lock(&self.routing).router.on_authenticated(self.id);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut routing = lock(&self.routing);
        routing.router.on_closed(self.id);
        routing.connections.remove(&self.id);
        // It may have been the last.
        if let Some(task) = routing.task.take() {
            task.wake();
        }
    }
}

/// What the listener's task works with.
struct Task {
    socket: Arc<Socket>,
    routing: Arc<Mutex<Routing>>,
    incoming: mpsc::Sender<Incoming>,
}

impl Task {
    /// Ends when nobody listens any more and the last connection is gone.
    async fn run(mut self) {
        let mut buffer = ReceiveBuffer::default();
        let ended = poll_fn(|context| {
            {
                let mut routing = lock(&self.routing);
                if self.incoming.is_closed() && routing.connections.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                routing.task = Some(context.waker().clone());
            }
            loop {
                let socket = self.socket.clone();
                let received = socket.poll_receive(context, &mut buffer, |path, datagram| {
                    self.take(path, datagram);
                });
                if let Err(error) = ready!(received) {
                    return Poll::Ready(Err(error));
                }
            }
        });
        if let Err(error) = ended.await {
            tracing::warn!(%error, "a WebRTC socket has failed: its connections end");
            lock(&self.routing).connections.clear();
        }
    }

    fn take(&mut self, path: Path, datagram: &[u8]) {
        let mut routing = lock(&self.routing);
        match routing.router.route(path.remote, datagram) {
            Route::Drop => {}
            Route::Connection(id) => {
                if let Some(connection) = routing.connections.get_mut(&id) {
                    // A connection that does not keep up loses some, as on any link.
                    let _ = connection.try_send((path, Bytes::copy_from_slice(datagram)));
                }
            }
            Route::New(id, ufrag) => {
                let (mut sender, datagrams) = mpsc::channel(MAX_WAITING);
                let _ = sender.try_send((path, Bytes::copy_from_slice(datagram)));
                routing.connections.insert(id, sender);
                drop(routing);
                let incoming = Incoming {
                    ufrag,
                    path,
                    datagrams,
                    registration: Registration {
                        routing: self.routing.clone(),
                        id,
                    },
                };
                if self.incoming.try_send(incoming).is_err() {
                    tracing::debug!("nobody takes new WebRTC connections");
                }
            }
        }
    }
}

/// A listener, as a stream of its events.
pub(super) struct Listener {
    pub(super) id: ListenerId,
    socket: Arc<Socket>,
    routing: Arc<Mutex<Routing>>,
    incoming: mpsc::Receiver<Incoming>,
    keypair: Keypair,
    certificate: Certificate,
    interfaces: Option<IfWatcher>,
    announced: HashSet<IpAddr>,
    pending: Option<Event>,
    is_closed: bool,
    waker: Option<Waker>,
}

impl Listener {
    /// Needs a tokio runtime in the calling context.
    pub(super) fn new(
        id: ListenerId,
        address: Address,
        keypair: Keypair,
        certificate: Certificate,
    ) -> io::Result<Self> {
        let socket = Arc::new(Socket::bind(address.socket)?);
        let (sender, incoming) = mpsc::channel(MAX_HANDSHAKES);
        let routing = Arc::<Mutex<Routing>>::default();
        let task = Task {
            socket: socket.clone(),
            routing: routing.clone(),
            incoming: sender,
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "sockets are tokio's, as libp2p's own are; the task outlives the listener by its connections"
        )]
        tokio::spawn(task.run());
        let mut listener = Self {
            id,
            interfaces: None,
            announced: HashSet::new(),
            pending: None,
            is_closed: false,
            waker: None,
            socket,
            routing,
            incoming,
            keypair,
            certificate,
        };
        let ip = listener.socket.local().ip();
        if ip.is_unspecified() {
            listener.interfaces = Some(IfWatcher::new()?);
        } else {
            listener.pending = Some(TransportEvent::NewAddress {
                listener_id: id,
                listen_addr: listener.address(ip),
            });
        }
        Ok(listener)
    }

    /// Connections go on.
    pub(super) fn close(&mut self) {
        if self.is_closed {
            return;
        }
        self.is_closed = true;
        self.end_task();
        self.pending = Some(TransportEvent::ListenerClosed {
            listener_id: self.id,
            reason: Ok(()),
        });
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The socket is closed with the last connection, which may have been long ago.
    fn end_task(&mut self) {
        self.incoming.close();
        // Who waits there to be taken has a place in the routing until it is dropped.
        while let Ok(incoming) = self.incoming.try_recv() {
            drop(incoming);
        }
        let task = lock(&self.routing).task.take();
        if let Some(task) = task {
            task.wake();
        }
    }

    fn address(&self, ip: IpAddr) -> Multiaddr {
        let mut socket = self.socket.local();
        socket.set_ip(ip);
        let fingerprint = Some(self.certificate.fingerprint);
        Address {
            socket,
            fingerprint,
        }
        .into()
    }

    fn poll_interfaces(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        loop {
            let Some(interfaces) = &mut self.interfaces else {
                return Poll::Pending;
            };
            let listener_id = self.id;
            let event = match ready!(interfaces.poll_if_event(context)) {
                Ok(event) => event,
                Err(error) => {
                    return Poll::Ready(TransportEvent::ListenerError {
                        listener_id,
                        error: error.into(),
                    });
                }
            };
            let is_ipv4 = self.socket.local().is_ipv4();
            let is_ours = |ip: IpAddr| ip.is_ipv4() == is_ipv4;
            match event {
                IfEvent::Up(network)
                    if is_ours(network.addr()) && self.announced.insert(network.addr()) =>
                {
                    return Poll::Ready(TransportEvent::NewAddress {
                        listener_id,
                        listen_addr: self.address(network.addr()),
                    });
                }
                IfEvent::Down(network) if self.announced.remove(&network.addr()) => {
                    return Poll::Ready(TransportEvent::AddressExpired {
                        listener_id,
                        listen_addr: self.address(network.addr()),
                    });
                }
                _ => {}
            }
        }
    }

    fn accept(&self, incoming: Incoming) -> Event {
        let mut local = self.socket.local();
        if let Some(ip) = incoming.path.local {
            local.set_ip(ip);
        }
        let mut remote = incoming.path.remote;
        if local.ip().is_loopback() {
            // Of this machine, from whichever of its addresses: browsers check from all of them, and what neighbours on one machine may say
            // of themselves goes by this.
            remote.set_ip(local.ip());
        }
        let address = |socket, fingerprint| {
            Multiaddr::from(Address {
                socket,
                fingerprint,
            })
        };
        TransportEvent::Incoming {
            listener_id: self.id,
            local_addr: address(local, Some(self.certificate.fingerprint)),
            send_back_addr: address(remote, None),
            upgrade: self.upgrade(incoming),
        }
    }

    fn upgrade(&self, incoming: Incoming) -> Upgrade {
        let (socket, keypair) = (self.socket.clone(), self.keypair.clone());
        let certificate = self.certificate.der.clone();
        let now = now();
        async move {
            let core = Connection::accept(incoming.ufrag, &certificate, now);
            let core = core.ok_or(Error::Cryptography)?;
            let source = Source::Listener(incoming.datagrams, incoming.registration);
            upgrade(Driver::new(core, socket, source), Role::Server, keypair).await
        }
        .boxed()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.end_task();
    }
}

impl Stream for Listener {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if let Some(event) = self.pending.take() {
            return Poll::Ready(Some(event));
        }
        if self.is_closed {
            return Poll::Ready(None);
        }
        if let Poll::Ready(event) = self.poll_interfaces(context) {
            return Poll::Ready(Some(event));
        }
        match self.incoming.poll_next_unpin(context) {
            Poll::Ready(Some(incoming)) => Poll::Ready(Some(self.accept(incoming))),
            Poll::Ready(None) => {
                // Its socket has failed.
                self.close();
                Poll::Ready(self.pending.take())
            }
            Poll::Pending => {
                self.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
