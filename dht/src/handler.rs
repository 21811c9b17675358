//! Learns from identify whether the remote answers this DHT's protocol.
//!
//! kad takes every peer that *asks* in this protocol for one that answers, so that clients would end up in
//! routing tables; what the peer itself lists is the truth.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use libp2p_core::upgrade::DeniedUpgrade;
use libp2p_swarm::{
    ConnectionHandler, ConnectionHandlerEvent, StreamProtocol, SubstreamProtocol,
    SupportedProtocols, handler::ConnectionEvent,
};

/// What the remote says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// Answers the protocol.
    Server,
    /// Does not.
    Client,
}

/// Watches one connection; opens and accepts no streams.
pub struct Watcher {
    protocol: StreamProtocol,
    remote: SupportedProtocols,
    reported: Option<Listed>,
    unreported: Option<Listed>,
}

impl Watcher {
    pub(crate) fn new(protocol: StreamProtocol) -> Self {
        Self {
            protocol,
            remote: SupportedProtocols::default(),
            reported: None,
            unreported: None,
        }
    }
}

impl ConnectionHandler for Watcher {
    type FromBehaviour = Infallible;
    type ToBehaviour = Listed;
    type InboundProtocol = DeniedUpgrade;
    type OutboundProtocol = DeniedUpgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(DeniedUpgrade, ())
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        if let ConnectionEvent::RemoteProtocolsChange(change) = event {
            self.remote.on_protocols_change(change);
            let lists = self
                .remote
                .iter()
                .any(|protocol| *protocol == self.protocol);
            let listed = if lists {
                Listed::Server
            } else {
                Listed::Client
            };
            self.unreported = (self.reported != Some(listed)).then_some(listed);
        }
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<DeniedUpgrade, (), Listed>> {
        // The connection polls its handlers after every event.
        match self.unreported.take() {
            Some(listed) => {
                self.reported = Some(listed);
                Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(listed))
            }
            None => Poll::Pending,
        }
    }
}
