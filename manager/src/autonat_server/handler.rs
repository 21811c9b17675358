//! AutoNAT v2's server on one connection: answers requests, and tells the nonce where it has dialled.

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt as _, channel::mpsc, future::BoxFuture};
use futures_bounded::FuturesSet;
use libp2p::{
    Multiaddr, PeerId,
    core::upgrade::ReadyUpgrade,
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, StreamProtocol, SubstreamProtocol,
        handler::{
            ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
        },
    },
};

use super::protocol::{Ask, DIAL_BACK, DIAL_REQUEST, DialBack, Outcome, ServeError, serve, tell};

/// Requests of one connection that are read or answered at a time, as in libp2p-autonat; a stream beyond is reset.
const MAX_REQUESTS: usize = 10;

/// How long a request takes at most: go-libp2p's `streamTimeout`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// How long the client may take to show that it has the nonce.
const TELL_TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) struct Handler {
    peer: PeerId,
    from: Multiaddr,
    asks: mpsc::Sender<Ask>,
    serving: FuturesSet<Result<(), ServeError>>,
    dial_back: Stage,
}

/// What a connection that was dialled for a client is for.
enum Stage {
    None,
    /// A stream is to be asked for.
    Due(DialBack),
    Opening(DialBack),
    Telling(BoxFuture<'static, ()>),
}

impl Handler {
    pub(super) fn new(
        peer: PeerId,
        from: Multiaddr,
        asks: mpsc::Sender<Ask>,
        dial_back: Option<DialBack>,
    ) -> Self {
        Self {
            peer,
            from,
            asks,
            serving: FuturesSet::new(
                || futures_bounded::Delay::futures_timer(REQUEST_TIMEOUT),
                MAX_REQUESTS,
            ),
            dial_back: dial_back.map_or(Stage::None, Stage::Due),
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(DIAL_REQUEST), ())
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: stream,
                ..
            }) => {
                let serve = serve(stream, self.peer, self.from.clone(), self.asks.clone());
                if self.serving.try_push(serve).is_err() {
                    tracing::debug!(peer = %self.peer, "too many AutoNAT requests");
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                ..
            }) => {
                if let Stage::Opening(dial_back) =
                    std::mem::replace(&mut self.dial_back, Stage::None)
                {
                    let told = tell(stream, dial_back.nonce, TELL_TIMEOUT);
                    let told = told.map(|outcome| dial_back.end(outcome));
                    self.dial_back = Stage::Telling(told.boxed());
                }
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                tracing::debug!(peer = %self.peer, %error, "no stream for AutoNAT's dial-back");
                if let Stage::Opening(dial_back) =
                    std::mem::replace(&mut self.dial_back, Stage::None)
                {
                    dial_back.end(Outcome::DialBackError);
                }
            }
            _ => {}
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Infallible>> {
        while let Poll::Ready(served) = self.serving.poll_unpin(cx) {
            let peer = self.peer;
            match served {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no answer to an AutoNAT request"),
                Err(timeout) => tracing::debug!(%peer, %timeout, "no answer to an AutoNAT request"),
            }
        }
        if let Stage::Telling(told) = &mut self.dial_back
            && told.poll_unpin(cx).is_ready()
        {
            self.dial_back = Stage::None;
        }
        match std::mem::replace(&mut self.dial_back, Stage::None) {
            Stage::Due(dial_back) => {
                self.dial_back = Stage::Opening(dial_back);
                let upgrade = ReadyUpgrade::new(DIAL_BACK);
                Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                    protocol: SubstreamProtocol::new(upgrade, ()),
                })
            }
            stage => {
                self.dial_back = stage;
                Poll::Pending
            }
        }
    }
}
