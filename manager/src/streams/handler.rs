use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Ready, ready},
    sync::{Arc, atomic::AtomicUsize},
    task::{Context, Poll, Waker},
};

use libp2p::{
    PeerId, StreamProtocol,
    core::UpgradeInfo,
    swarm::{
        self, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, StreamUpgradeError,
        SubstreamProtocol,
        handler::{
            ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
        },
    },
};

use super::{
    behaviour::{OpenRequest, Protocols, lock},
    stream::{Counted, Stream},
};
use crate::{error::OpenStreamError, strategy::Path};

/// What the behaviour tells a connection.
#[derive(Debug)]
pub(crate) enum Command {
    Open(OpenRequest),
    KeepAlive(bool),
}

/// Opens and accepts streams on one connection.
pub(crate) struct Handler {
    peer: PeerId,
    connection: ConnectionId,
    path: Path,
    protocols: Protocols,
    count: Arc<AtomicUsize>,
    keep_alive: bool,
    requests: VecDeque<OpenRequest>,
    waker: Option<Waker>,
}

impl Handler {
    pub(super) fn new(
        peer: PeerId,
        connection: ConnectionId,
        path: Path,
        protocols: Protocols,
        count: Arc<AtomicUsize>,
        keep_alive: bool,
    ) -> Self {
        Self {
            peer,
            connection,
            path,
            protocols,
            count,
            keep_alive,
            requests: VecDeque::new(),
            waker: None,
        }
    }

    fn stream(&self, inner: swarm::Stream) -> Stream {
        Stream::new(inner, self.connection, self.path, Counted::new(&self.count))
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Command;
    type ToBehaviour = Infallible;
    type InboundProtocol = AnyOf;
    type OutboundProtocol = AnyOf;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = OpenRequest;

    fn listen_protocol(&self) -> SubstreamProtocol<AnyOf> {
        SubstreamProtocol::new(AnyOf(lock(&self.protocols).keys().cloned().collect()), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep_alive
    }

    fn on_behaviour_event(&mut self, command: Command) {
        match command {
            Command::Open(request) => self.requests.push_back(request),
            Command::KeepAlive(keep_alive) => self.keep_alive = keep_alive,
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<AnyOf, OpenRequest, Infallible>> {
        if let Some(request) = self.requests.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(AnyOf(vec![request.protocol.clone()]), request),
            });
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, AnyOf, AnyOf, (), OpenRequest>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, protocol),
                ..
            }) => {
                let stream = self.stream(stream);
                // A full queue resets the stream: the application takes no more.
                if let Some(accept) = lock(&self.protocols).get(&protocol)
                    && accept.try_send((self.peer, stream)).is_err()
                {
                    tracing::debug!(peer = %self.peer, %protocol, "inbound stream dropped: queue full");
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, _),
                info,
            }) => {
                // The caller may have given up.
                let _ = info.reply.send(Ok(self.stream(stream)));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let error = match error {
                    StreamUpgradeError::NegotiationFailed => {
                        OpenStreamError::UnsupportedProtocol(info.protocol)
                    }
                    StreamUpgradeError::Timeout => OpenStreamError::Timeout,
                    StreamUpgradeError::Io(error) => OpenStreamError::Io(error),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                let _ = info.reply.send(Err(error));
            }
            _ => {}
        }
    }
}

/// Negotiates one of several protocols and hands the stream out as it is.
pub(crate) struct AnyOf(Vec<StreamProtocol>);

impl UpgradeInfo for AnyOf {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl libp2p::core::InboundUpgrade<swarm::Stream> for AnyOf {
    type Output = (swarm::Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: swarm::Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

impl libp2p::core::OutboundUpgrade<swarm::Stream> for AnyOf {
    type Output = (swarm::Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: swarm::Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}
