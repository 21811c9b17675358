//! AutoNAT v2's server: tells peers whether they can be reached at the addresses that they name.
//!
//! [AutoNAT v2](https://github.com/libp2p/specs/blob/master/autonat/autonat-v2.md). In the place of libp2p-autonat's, which
//! - asks go-libp2p for an answer to its dial-back that QUIC mostly loses, and takes it for unreachable then,
//! - dials the last address of a request, whether it can or not, and takes what it cannot dial for unreachable,
//! - asks for data even if the address is where the client is,
//! - dials whatever it is told, as often as it is told, in its own network, too,
//! - and gives a request 10 s, as long as a dial takes that nobody answers, so that who asks from behind a NAT is told nothing.
//!
//! [`core`] decides; here are the dials. One that has not succeeded within [`PATIENCE`] has failed, and if it succeeds later, it is
//! nobody's.

mod core;
mod handler;
mod message;
mod protocol;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    convert::Infallible,
    error::Error,
    io,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, channel::mpsc};
use futures_timer::Delay;
use libp2p::{
    Multiaddr, PeerId, TransportError,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use web_time::Instant;

pub(crate) use self::core::{Limits, Transports};
use self::{
    core::{Core, Ongoing},
    handler::Handler,
    protocol::{Admission, Ask, DialBack, Outcome},
};
use crate::node::now;

/// What a dial takes at most: go-libp2p's for TCP. Of the 10 s that rust-libp2p's clients have, the rest is for the data that one may
/// have to send first.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Questions of all streams that wait for the behaviour.
const QUEUE: usize = 32;

/// The AutoNAT v2 server of the node.
pub(crate) struct Behaviour {
    core: Core,
    patience: Duration,
    asks: mpsc::Receiver<Ask>,
    /// For new connections.
    asker: mpsc::Sender<Ask>,
    /// Requests that are being answered.
    ongoing: Vec<(PeerId, Weak<()>)>,
    /// The first one is the first that has failed.
    dials: VecDeque<Dial>,
    timer: Option<Delay>,
}

/// A dial that neither succeeded nor failed.
struct Dial {
    deadline: Instant,
    connection: ConnectionId,
    dial_back: DialBack,
}

impl Behaviour {
    pub(crate) fn new(limits: Limits, transports: Transports, patience: Duration) -> Self {
        let (asker, asks) = mpsc::channel(QUEUE);
        Self {
            core: Core::new(limits, transports, rand::random()),
            patience,
            asks,
            asker,
            ongoing: Vec::new(),
            dials: VecDeque::new(),
            timer: None,
        }
    }

    fn handler(&self, peer: PeerId, from: &Multiaddr, dial_back: Option<DialBack>) -> Handler {
        Handler::new(peer, from.clone(), self.asker.clone(), dial_back)
    }

    fn take_dial(&mut self, connection: ConnectionId) -> Option<DialBack> {
        let at = self
            .dials
            .iter()
            .position(|dial| dial.connection == connection)?;
        self.dials.remove(at).map(|dial| dial.dial_back)
    }

    fn on_ask(&mut self, ask: Ask, now: Instant) -> Option<ToSwarm<Infallible, Infallible>> {
        match ask {
            Ask::Admit {
                peer,
                from,
                addresses,
                reply,
            } => {
                self.ongoing
                    .retain(|(_, ongoing)| ongoing.strong_count() > 0);
                let of_this_peer = self.ongoing.iter().filter(|(of, _)| *of == peer).count();
                let count = Ongoing {
                    all: self.ongoing.len(),
                    of_this_peer,
                };
                let answer = self.core.on_request(peer, &from, &addresses, count, now);
                let ongoing = Arc::new(());
                if matches!(answer, core::Answer::Dial { .. }) {
                    self.ongoing.push((peer, Arc::downgrade(&ongoing)));
                }
                // The stream may have gone.
                drop(reply.send(Admission { answer, ongoing }));
                None
            }
            // The stream has gone.
            Ask::Dial { dial_back, .. } if dial_back.reply.is_canceled() => None,
            Ask::Dial {
                peer,
                address,
                dial_back,
            } => {
                let opts = DialOpts::peer_id(peer)
                    .addresses(vec![address])
                    // Beside the one that it asks on, and from a port to which no NAT has a mapping for it.
                    .condition(PeerCondition::Always)
                    .allocate_new_port()
                    .build();
                self.dials.push_back(Dial {
                    deadline: now + self.patience,
                    connection: opts.connection_id(),
                    dial_back,
                });
                Some(ToSwarm::Dial { opts })
            }
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        while let Some(dial) = self.dials.pop_front_if(|dial| dial.deadline <= now) {
            dial.dial_back.end(Outcome::DialError);
        }
    }
}

/// What a dial that failed tells of the client.
fn outcome(error: &DialError) -> Outcome {
    match error {
        // This node has no room, or not the transport.
        DialError::Denied { .. } | DialError::Aborted | DialError::NoAddresses => Outcome::Unable,
        DialError::Transport(errors) if errors.iter().all(|(_, error)| is_ours(error)) => {
            Outcome::Unable
        }
        _ => Outcome::DialError,
    }
}

/// Whether this node cannot dial such addresses at all: without IPv6, for example.
fn is_ours(error: &TransportError<io::Error>) -> bool {
    let error = match error {
        TransportError::MultiaddrNotSupported(_) => return true,
        TransportError::Other(error) => error,
    };
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        cause = match error.downcast_ref::<io::Error>() {
            Some(error) if error.kind() == io::ErrorKind::NetworkUnreachable => return true,
            // What it wraps, which its `source` leaves out.
            Some(error) => error.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    false
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _connection: ConnectionId,
        peer: PeerId,
        _local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, remote, None))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        _role: Endpoint,
        _port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let dial_back = self.take_dial(connection);
        Ok(self.handler(peer, address, dial_back))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::DialFailure(failure) = event
            && let Some(dial_back) = self.take_dial(failure.connection_id)
        {
            dial_back.end(outcome(failure.error));
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _peer: PeerId,
        _connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            // Never closed: `asker` is here.
            if let Poll::Ready(Some(ask)) = self.asks.poll_next_unpin(cx) {
                if let Some(dial) = self.on_ask(ask, now()) {
                    return Poll::Ready(dial);
                }
                continue;
            }
            let Some(dial) = self.dials.front() else {
                self.timer = None;
                return Poll::Pending;
            };
            let timer = self
                .timer
                .get_or_insert_with(|| Delay::new(dial.deadline.saturating_duration_since(now())));
            std::task::ready!(timer.poll_unpin(cx));
            self.timer = None;
            self.handle_timeout(now());
        }
    }
}
