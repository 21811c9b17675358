//! Dials and listens on `…/p2p-circuit` addresses and nothing else.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{
    AsyncRead, AsyncWrite, FutureExt as _, SinkExt as _, StreamExt as _,
    channel::{mpsc, oneshot},
    future::{BoxFuture, Ready, ready},
};
use libp2p_core::{
    Multiaddr,
    multiaddr::Protocol,
    transport::{DialOpts, ListenerId, TransportError as CoreError, TransportEvent},
};
use libp2p_identity::PeerId;
use libp2p_swarm::Stream;

use super::{LossReason, exchange::ExchangeError};
use crate::{
    InvalidRelayAddress, StatusCode,
    address::{CircuitAddress, RelayAddress, is_relayed},
};

/// Requests to the behaviour that wait at most; each dial has a place of its own besides.
const MAX_REQUESTS: usize = 64;

/// Notices from the behaviour that wait at most.
const MAX_NOTICES: usize = 64;

/// Dials and listens on relayed addresses; combine it with the transport that reaches the relays:
/// `relay_transport.or_transport(tcp)`.
///
/// The [`Behaviour`](super::Behaviour) that [`new`](super::new) returns with it does the work:
/// keep both in one swarm. Without the behaviour, dialling fails with
/// [`TransportError::NoBehaviour`].
///
/// Reservations need no listener: what the behaviour reserves appears as listen addresses by
/// itself. Listening on `<relay>/p2p-circuit` works all the same and means
/// [`add_relay`](super::Behaviour::add_relay); removing that listener means
/// [`remove_relay`](super::Behaviour::remove_relay).
pub struct Transport {
    /// Addresses of reservations that nobody listens on expressly.
    own: ListenerId,
    listeners: Vec<(ListenerId, PeerId)>,
    announced: Vec<Announced>,
    to_behaviour: mpsc::Sender<Request>,
    /// Relays that nobody listens on any more, which the behaviour has yet to hear: as many as there were listeners.
    ended: VecDeque<PeerId>,
    from_behaviour: mpsc::Receiver<Notice>,
    events: VecDeque<TransportEvent<Upgrade, TransportError>>,
}

type Upgrade = Ready<Result<Connection, TransportError>>;

struct Announced {
    listener: ListenerId,
    relay: PeerId,
    address: Multiaddr,
}

/// What the transport asks of the behaviour.
pub(crate) enum Request {
    Listen(ListenerId, RelayAddress),
    Unlisten(PeerId),
    Dial {
        address: CircuitAddress,
        reply: CircuitReply,
    },
}

/// What the behaviour tells the transport.
#[expect(
    clippy::large_enum_variant,
    reason = "few wait, and the large one is a circuit that moves once"
)]
pub(crate) enum Notice {
    Announce {
        relay: PeerId,
        address: Multiaddr,
    },
    Withdraw {
        address: Multiaddr,
    },
    /// The listener will never have an address.
    Refused {
        listener: ListenerId,
        error: InvalidRelayAddress,
    },
    Incoming {
        relay: RelayAddress,
        source: PeerId,
        circuit: Connection,
    },
}

pub(crate) type CircuitReply = oneshot::Sender<Result<Connection, CircuitError>>;

/// Why no circuit was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CircuitError {
    /// The relay could not be dialled.
    #[error("the relay could not be reached")]
    Unreachable,
    /// The connection to the relay ended, or too much time went by.
    #[error("the stream to the relay failed or took too long")]
    Stream,
    /// The relay said no.
    #[error("{0}")]
    Refused(StatusCode),
    /// The peer is no relay.
    #[error("the peer does not relay")]
    Unsupported,
    /// The relay broke the protocol.
    #[error("the relay violated the protocol")]
    ProtocolViolation,
    /// Too many circuits are being set up through this relay at this moment.
    #[error("too many circuits are being set up through this relay: try again later")]
    TooMany,
}

impl From<ExchangeError> for CircuitError {
    fn from(error: ExchangeError) -> Self {
        match LossReason::from(error) {
            LossReason::Refused(status) => Self::Refused(status),
            LossReason::Unsupported => Self::Unsupported,
            LossReason::ProtocolViolation => Self::ProtocolViolation,
            _ => Self::Stream,
        }
    }
}

/// Why a relayed address could not be dialled or listened on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The address names no relay that could be asked.
    #[error(transparent)]
    Address(#[from] InvalidRelayAddress),
    /// The relay opened no circuit.
    #[error("no circuit")]
    Circuit(#[source] CircuitError),
    /// The [`Behaviour`](super::Behaviour) that belongs to this transport is gone, or busy.
    #[error("the relay client's behaviour does not answer: put both into the same swarm")]
    NoBehaviour,
}

impl Transport {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Request>, mpsc::Sender<Notice>) {
        let (to_behaviour, requests) = mpsc::channel(MAX_REQUESTS);
        let (notices, from_behaviour) = mpsc::channel(MAX_NOTICES);
        let transport = Self {
            own: ListenerId::next(),
            listeners: Vec::new(),
            announced: Vec::new(),
            to_behaviour,
            ended: VecDeque::new(),
            from_behaviour,
            events: VecDeque::new(),
        };
        (transport, requests, notices)
    }

    /// Tells the behaviour what has ended, as far as it takes that.
    fn poll_ended(&mut self, cx: &mut Context<'_>) {
        while let Some(relay) = self.ended.front().copied() {
            match self.to_behaviour.poll_ready(cx) {
                Poll::Ready(Ok(())) => {
                    self.ended.pop_front();
                    // It was ready.
                    let _ = self.to_behaviour.start_send(Request::Unlisten(relay));
                }
                // Without the behaviour there is no reservation either.
                Poll::Ready(Err(_)) => self.ended.clear(),
                Poll::Pending => return,
            }
        }
    }

    fn listeners_of(&self, relay: PeerId) -> impl Iterator<Item = ListenerId> {
        self.listeners
            .iter()
            .filter(move |(_, of)| *of == relay)
            .map(|(listener, _)| *listener)
    }

    fn refuse(&mut self, listener: ListenerId, error: InvalidRelayAddress) {
        let listening = self.listeners.len();
        self.listeners.retain(|(known, _)| *known != listener);
        // It may have been removed meanwhile.
        if self.listeners.len() < listening {
            let error = TransportError::Address(error);
            self.events.push_back(TransportEvent::ListenerError {
                listener_id: listener,
                error: error.clone(),
            });
            self.close(listener, Err(error));
        }
    }

    /// Ends a listener. Its addresses go with it; the swarm forgets them, so that others that have them tell them again.
    fn close(&mut self, listener: ListenerId, reason: Result<(), TransportError>) {
        let (gone, left) = std::mem::take(&mut self.announced)
            .into_iter()
            .partition::<Vec<_>, _>(|announced| announced.listener == listener);
        self.announced = left;
        self.events.push_back(TransportEvent::ListenerClosed {
            listener_id: listener,
            reason,
        });
        for announced in &self.announced {
            if gone.iter().any(|gone| gone.address == announced.address) {
                self.events.push_back(TransportEvent::NewAddress {
                    listener_id: announced.listener,
                    listen_addr: announced.address.clone(),
                });
            }
        }
    }

    fn announce(&mut self, listener: ListenerId, relay: PeerId, address: Multiaddr) {
        self.events.push_back(TransportEvent::NewAddress {
            listener_id: listener,
            listen_addr: address.clone(),
        });
        self.announced.push(Announced {
            listener,
            relay,
            address,
        });
    }

    fn on_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Announce { relay, address } => {
                let mut listeners: Vec<_> = self.listeners_of(relay).collect();
                if listeners.is_empty() {
                    listeners.push(self.own);
                }
                for listener in listeners {
                    self.announce(listener, relay, address.clone());
                }
            }
            Notice::Refused { listener, error } => self.refuse(listener, error),
            Notice::Withdraw { address } => {
                let events = &mut self.events;
                self.announced.retain(|announced| {
                    let stays = announced.address != address;
                    if !stays {
                        events.push_back(TransportEvent::AddressExpired {
                            listener_id: announced.listener,
                            listen_addr: address.clone(),
                        });
                    }
                    stays
                });
            }
            Notice::Incoming {
                relay,
                source,
                circuit,
            } => {
                let listener = self.listeners_of(relay.relay).next();
                self.events.push_back(TransportEvent::Incoming {
                    listener_id: listener.unwrap_or(self.own),
                    upgrade: ready(Ok(circuit)),
                    local_addr: relay.listen(),
                    send_back_addr: Protocol::P2p(source).into(),
                });
            }
        }
    }
}

impl libp2p_core::Transport for Transport {
    type Output = Connection;
    type Error = TransportError;
    type ListenerUpgrade = Upgrade;
    type Dial = BoxFuture<'static, Result<Connection, TransportError>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), CoreError<TransportError>> {
        if !is_relayed(&address) {
            return Err(CoreError::MultiaddrNotSupported(address));
        }
        let other = |error| CoreError::Other(error);
        let address =
            RelayAddress::parse(&address).map_err(|error| other(TransportError::Address(error)))?;
        let relay = address.relay;
        self.to_behaviour
            .try_send(Request::Listen(id, address))
            .map_err(|_| other(TransportError::NoBehaviour))?;
        self.listeners.push((id, relay));
        self.ended.retain(|ended| *ended != relay);
        let mut held: Vec<_> = self
            .announced
            .iter()
            .filter(|announced| announced.relay == relay)
            .map(|announced| announced.address.clone())
            .collect();
        // Each of several listeners has them.
        held.sort_unstable();
        held.dedup();
        for address in held {
            self.announce(id, relay, address);
        }
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let position = self.listeners.iter().position(|(known, _)| *known == id);
        let Some(position) = position else {
            return false;
        };
        let (_, relay) = self.listeners.remove(position);
        self.close(id, Ok(()));
        if !self.listeners.iter().any(|(_, of)| *of == relay) {
            self.ended.push_back(relay);
        }
        true
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, CoreError<TransportError>> {
        // A punch goes beside the relay, never through it.
        if opts.role.is_listener() || !is_relayed(&address) {
            return Err(CoreError::MultiaddrNotSupported(address));
        }
        let address = CircuitAddress::parse(&address)
            .map_err(|error| CoreError::Other(TransportError::Address(error)))?;
        let mut to_behaviour = self.to_behaviour.clone();
        Ok(async move {
            let (reply, answer) = oneshot::channel();
            to_behaviour
                .send(Request::Dial { address, reply })
                .await
                .map_err(|_| TransportError::NoBehaviour)?;
            match answer.await {
                Ok(circuit) => circuit.map_err(TransportError::Circuit),
                // The connection to the relay took the request with it.
                Err(oneshot::Canceled) => Err(TransportError::Circuit(CircuitError::Stream)),
            }
        }
        .boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Upgrade, TransportError>> {
        self.poll_ended(cx);
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(event);
            }
            match self.from_behaviour.poll_next_unpin(cx) {
                Poll::Ready(Some(notice)) => self.on_notice(notice),
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// One circuit, before it is secured and multiplexed.
#[derive(Debug)]
pub struct Connection(Stream);

impl Connection {
    pub(crate) fn new(stream: Stream) -> Self {
        Self(stream)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &mut [io::IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read_vectored(cx, buffers)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
