//! AutoNAT v2's server, which answers in time.
//!
//! libp2p-autonat gives a request 10 s, and the node's transports take as long to give up a dial. So whoever asked from behind a NAT
//! that drops what it does not expect was never told that it cannot be reached. Here a dial that has not succeeded within
//! [`PATIENCE`] has failed, and if it succeeds later, it is nobody's.

use std::{
    collections::VecDeque,
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt as _;
use futures_timer::Delay;
use libp2p::{
    Multiaddr, PeerId,
    autonat::v2::server,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, DialError, DialFailure, FromSwarm, NetworkBehaviour,
        THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    },
};
use web_time::Instant;

use crate::node::now;

/// What a dial takes at most: go-libp2p's for TCP. The rest of the 10 s is for the data that a client may have to send first.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The AutoNAT v2 server of the node.
pub(crate) struct Behaviour {
    inner: server::Behaviour,
    patience: Duration,
    /// Dials that neither succeeded nor failed, and when they will have failed; the first one first.
    dials: VecDeque<(Instant, ConnectionId)>,
    timer: Option<Delay>,
}

impl Behaviour {
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            inner: server::Behaviour::new(rand::make_rng()),
            patience,
            dials: VecDeque::new(),
            timer: None,
        }
    }

    fn forget(&mut self, ended: ConnectionId) {
        self.dials.retain(|(_, dial)| *dial != ended);
    }

    fn handle_timeout(&mut self, now: Instant) {
        while let Some((_, connection_id)) =
            self.dials.pop_front_if(|(deadline, _)| *deadline <= now)
        {
            self.inner
                .on_swarm_event(FromSwarm::DialFailure(DialFailure {
                    peer_id: None,
                    error: &DialError::Aborted,
                    connection_id,
                }));
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = THandler<server::Behaviour>;
    type ToSwarm = server::Event;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner
            .handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.forget(connection);
        self.inner
            .handle_established_outbound_connection(connection, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::DialFailure(failure) = &event {
            self.forget(failure.connection_id);
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.inner
            .on_connection_handler_event(peer, connection, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Poll::Ready(action) = self.inner.poll(cx) {
                if let ToSwarm::Dial { opts } = &action {
                    let deadline = now() + self.patience;
                    self.dials.push_back((deadline, opts.connection_id()));
                }
                return Poll::Ready(action);
            }
            let Some((deadline, _)) = self.dials.front() else {
                self.timer = None;
                return Poll::Pending;
            };
            let timer = self
                .timer
                .get_or_insert_with(|| Delay::new(deadline.saturating_duration_since(now())));
            std::task::ready!(timer.poll_unpin(cx));
            self.timer = None;
            self.handle_timeout(now());
        }
    }
}

#[cfg(test)]
mod tests {
    use libp2p::{
        Swarm, SwarmBuilder,
        futures::StreamExt as _,
        identify, noise,
        swarm::{NewExternalAddrCandidate, SwarmEvent},
        tcp, yamux,
    };

    use super::*;
    use crate::autonat::{self, Timing, Verdict};

    #[derive(NetworkBehaviour)]
    struct Server {
        identify: identify::Behaviour,
        autonat: Behaviour,
    }

    #[derive(NetworkBehaviour)]
    struct Client {
        identify: identify::Behaviour,
        autonat: autonat::Behaviour,
    }

    fn swarm<B: NetworkBehaviour>(behaviour: impl FnOnce(identify::Behaviour) -> B) -> Swarm<B> {
        SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(
                tcp::Config::default(),
                noise::Config::new,
                yamux::Config::default,
            )
            .unwrap()
            .with_behaviour(|key| {
                let config = identify::Config::new("/test/1".to_owned(), key.public());
                behaviour(identify::Behaviour::new(config))
            })
            .unwrap()
            .with_swarm_config(|config| {
                config.with_idle_connection_timeout(Duration::from_secs(60))
            })
            .build()
    }

    #[tokio::test]
    async fn who_cannot_be_reached_is_told_while_it_listens() {
        let mut server = swarm(|identify| Server {
            identify,
            autonat: Behaviour::new(Duration::from_millis(200)),
        });
        let any: Multiaddr = "/ip4/127.0.0.1/tcp/0".parse().unwrap();
        server.listen_on(any).unwrap();
        let at = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = server.select_next_some().await {
                break address;
            }
        };
        let timing = Timing {
            tick: Duration::from_millis(100),
            ..Timing::every(Duration::from_secs(300))
        };
        let mut client = swarm(|identify| Client {
            identify,
            autonat: autonat::Behaviour::new(timing),
        });
        client.dial(at).unwrap();
        // The system takes the connection, and nobody ever says anything on it.
        let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = mute.local_addr().unwrap().port();
        let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
        client
            .behaviour_mut()
            .autonat
            .on_swarm_event(FromSwarm::NewExternalAddrCandidate(
                NewExternalAddrCandidate { addr: &address },
            ));
        let verdict = async {
            loop {
                tokio::select! {
                    _ = server.select_next_some() => {}
                    event = client.select_next_some() => {
                        // The port that it dialled from is a candidate, too.
                        if let SwarmEvent::Behaviour(ClientEvent::Autonat(verdict)) = event
                            && verdict.address == address
                        {
                            return verdict;
                        }
                    }
                }
            }
        };
        let verdict = tokio::time::timeout(Duration::from_secs(30), verdict).await;
        let expected = Verdict {
            server: *server.local_peer_id(),
            address: address.clone(),
            reachable: false,
        };
        assert_eq!(verdict.expect("a verdict"), expected);
        assert!(server.behaviour().autonat.dials.is_empty());
    }
}
