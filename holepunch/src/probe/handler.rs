//! The streams of `/anypath/nat-probe/1` on one connection.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    task::{Context, Poll},
    time::Duration,
};

use either::Either;
use futures::AsyncWriteExt as _;
use futures_bounded::{Delay, FuturesSet, FuturesTupleSet};
use libp2p_core::upgrade::{DeniedUpgrade, ReadyUpgrade};
use libp2p_swarm::{
    ConnectionHandler, ConnectionHandlerEvent, Stream, StreamProtocol, SubstreamProtocol,
    handler::{
        ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
        ProtocolsChange,
    },
};

use super::{
    message::{MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, Malformed, Request, Response},
    protocol::{PROBE_PROTOCOL_NAME, read, write},
};

/// Requests of one connection that are served at a time; more are dropped. Between two servers many
/// clients' requests meet; the rates of `core::probe::server` bind what comes of them.
const MAX_INBOUND: usize = 32;
/// Requests of ours at a time.
const MAX_OUTBOUND: usize = 32;
/// How long reading a request, writing an answer, or waiting for one may take: servers answer
/// within 2.5 s.
const TIMEOUT: Duration = Duration::from_secs(8);

/// A request of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct AskId(pub(crate) u64);

/// A request of the peer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct InboundId(u64);

/// What the behaviour wants of the handler.
#[derive(Debug)]
pub struct Order(pub(crate) FromBehaviour);

/// What the handler tells the behaviour.
#[derive(Debug)]
pub struct Report(pub(crate) ToBehaviour);

/// A request of ours on its way to a stream.
#[derive(Debug)]
pub struct PendingAsk {
    id: AskId,
    request: Request,
}

#[derive(Debug)]
pub(crate) enum FromBehaviour {
    Ask { id: AskId, request: Request },
    Answer { id: InboundId, response: Response },
}

#[derive(Debug)]
pub(crate) enum ToBehaviour {
    /// Whether the peer is a server.
    Server(bool),
    Asked {
        id: InboundId,
        request: Request,
    },
    /// `None`: it failed.
    Answered {
        id: AskId,
        response: Option<Response>,
    },
}

/// The probe protocol on one connection.
pub struct Handler {
    serves: bool,
    is_server: bool,
    asks: VecDeque<PendingAsk>,
    reading: FuturesSet<io::Result<(Stream, Request)>>,
    /// Streams whose answer is being found out.
    waiting: BTreeMap<InboundId, Stream>,
    next: u64,
    writing: FuturesSet<io::Result<()>>,
    asking: FuturesTupleSet<io::Result<Response>, AskId>,
    events: VecDeque<ToBehaviour>,
}

type Event = ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, PendingAsk, Report>;

impl Handler {
    /// `serves`: whether requests of the peer's are taken.
    pub(crate) fn new(serves: bool) -> Self {
        let delay = || Delay::futures_timer(TIMEOUT);
        Self {
            serves,
            is_server: false,
            asks: VecDeque::new(),
            reading: FuturesSet::new(delay, MAX_INBOUND),
            waiting: BTreeMap::new(),
            next: 0,
            writing: FuturesSet::new(delay, MAX_INBOUND),
            asking: FuturesTupleSet::new(delay, MAX_OUTBOUND),
            events: VecDeque::new(),
        }
    }

    fn on_inbound(&mut self, mut stream: Stream) {
        if self.waiting.len() >= MAX_INBOUND {
            return;
        }
        let request = async move {
            let message = read(&mut stream, MAX_REQUEST_BYTES).await?;
            let request = Request::decode(&message).map_err(invalid)?;
            Ok((stream, request))
        };
        if self.reading.try_push(request).is_err() {
            tracing::debug!("too many probe requests on one connection");
        }
    }

    fn on_outbound(&mut self, mut stream: Stream, id: AskId, request: &Request) {
        let message = request.encode();
        let exchange = async move {
            write(&mut stream, &message).await?;
            let response = read(&mut stream, MAX_RESPONSE_BYTES).await?;
            Response::decode(&response).map_err(invalid)
        };
        if self.asking.try_push(exchange, id).is_err() {
            let response = None;
            self.events
                .push_back(ToBehaviour::Answered { id, response });
        }
    }

    fn on_protocols(&mut self, change: &ProtocolsChange<'_>) {
        let is_server = match change {
            ProtocolsChange::Added(added) => {
                self.is_server || added.clone().any(|name| *name == PROBE_PROTOCOL_NAME)
            }
            ProtocolsChange::Removed(removed) => {
                self.is_server && !removed.clone().any(|name| *name == PROBE_PROTOCOL_NAME)
            }
        };
        if is_server != self.is_server {
            self.is_server = is_server;
            self.events.push_back(ToBehaviour::Server(is_server));
        }
    }
}

fn invalid(error: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Order;
    type ToBehaviour = Report;
    type InboundProtocol = Either<ReadyUpgrade<StreamProtocol>, DeniedUpgrade>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = PendingAsk;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        let protocol = if self.serves {
            Either::Left(ReadyUpgrade::new(PROBE_PROTOCOL_NAME))
        } else {
            Either::Right(DeniedUpgrade)
        };
        SubstreamProtocol::new(protocol, ())
    }

    fn on_behaviour_event(&mut self, Order(event): Order) {
        match event {
            FromBehaviour::Ask { id, request } => {
                self.asks.push_back(PendingAsk { id, request });
            }
            FromBehaviour::Answer { id, response } => {
                let Some(mut stream) = self.waiting.remove(&id) else {
                    return;
                };
                let message = response.encode();
                let answer = async move {
                    write(&mut stream, &message).await?;
                    stream.close().await
                };
                if self.writing.try_push(answer).is_err() {
                    tracing::debug!("too many probe answers on one connection");
                }
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(Report(event)));
            }
            if let Poll::Ready(read) = self.reading.poll_unpin(cx) {
                if let Ok(Ok((stream, request))) = read {
                    self.next += 1;
                    let id = InboundId(self.next);
                    self.waiting.insert(id, stream);
                    self.events.push_back(ToBehaviour::Asked { id, request });
                }
                continue;
            }
            if self.writing.poll_unpin(cx).is_ready() {
                continue;
            }
            if let Poll::Ready((answer, id)) = self.asking.poll_unpin(cx) {
                let response = answer.ok().and_then(Result::ok);
                self.events
                    .push_back(ToBehaviour::Answered { id, response });
                continue;
            }
            if let Some(ask) = self.asks.pop_front() {
                let upgrade = ReadyUpgrade::new(PROBE_PROTOCOL_NAME);
                return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                    protocol: SubstreamProtocol::new(upgrade, ask),
                });
            }
            return Poll::Pending;
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<
            '_,
            Self::InboundProtocol,
            Self::OutboundProtocol,
            Self::InboundOpenInfo,
            Self::OutboundOpenInfo,
        >,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol, ..
            }) => match protocol {
                futures::future::Either::Left(stream) => self.on_inbound(stream),
                futures::future::Either::Right(never) => match never {},
            },
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: PendingAsk { id, request },
            }) => self.on_outbound(stream, id, &request),
            ConnectionEvent::DialUpgradeError(DialUpgradeError {
                info: PendingAsk { id, .. },
                ..
            }) => {
                let response = None;
                self.events
                    .push_back(ToBehaviour::Answered { id, response });
            }
            ConnectionEvent::RemoteProtocolsChange(change) => self.on_protocols(&change),
            _ => {}
        }
    }
}
