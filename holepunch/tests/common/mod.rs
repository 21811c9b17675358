//! Swarms over the memory transport, each driven by a task of its own.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "test code on tokio; each binary uses the part that it needs"
)]

use std::time::Duration;

use anypath_holepunch as holepunch;
use futures::StreamExt;
use libp2p_core::{
    Multiaddr, Transport,
    multiaddr::Protocol,
    transport::{Boxed, MemoryTransport},
    upgrade::Version,
};
use libp2p_identify as identify;
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{Config, NetworkBehaviour, Swarm, SwarmEvent};
use tokio::sync::{mpsc, oneshot};

/// No single step takes this long unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
pub struct Node {
    pub relay: libp2p_relay::client::Behaviour,
    pub holepunch: holepunch::Behaviour,
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
pub struct Relay {
    pub relay: libp2p_relay::Behaviour,
    pub identify: identify::Behaviour,
}

type Command<B> = Box<dyn FnOnce(&mut Swarm<B>) + Send>;

/// A handle to a swarm that runs.
pub struct Running<B: NetworkBehaviour> {
    pub id: PeerId,
    commands: mpsc::Sender<Command<B>>,
    events: mpsc::Receiver<SwarmEvent<B::ToSwarm>>,
}

impl<B> Running<B>
where
    B: NetworkBehaviour + Send,
    B::ToSwarm: Send + std::fmt::Debug,
{
    pub fn start(mut swarm: Swarm<B>) -> Self {
        let id = *swarm.local_peer_id();
        let (commands, mut to_do) = mpsc::channel::<Command<B>>(16);
        let (tell, events) = mpsc::channel(100_000);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    command = to_do.recv() => match command {
                        Some(command) => command(&mut swarm),
                        None => return,
                    },
                    event = swarm.select_next_some() => {
                        // A test that does not listen any more needs no more events.
                        let _ = tell.try_send(event);
                    }
                }
            }
        });
        Self {
            id,
            commands,
            events,
        }
    }

    /// Runs something on the swarm and returns its result.
    pub async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Swarm<B>) -> T + Send + 'static,
    ) -> T {
        let (tell, told) = oneshot::channel();
        let command: Command<B> = Box::new(move |swarm| {
            let _ = tell.send(act(swarm));
        });
        assert!(self.commands.send(command).await.is_ok(), "swarm is gone");
        told.await.expect("swarm is gone")
    }

    /// The first event that `pick` takes.
    pub async fn wait<T>(
        &mut self,
        what: &str,
        mut pick: impl FnMut(&SwarmEvent<B::ToSwarm>) -> Option<T>,
    ) -> T {
        let mut seen = Vec::new();
        let find = async {
            loop {
                let event = self.events.recv().await.expect("swarm is gone");
                if let Some(found) = pick(&event) {
                    return found;
                }
                seen.push(format!("{event:?}"));
            }
        };
        match tokio::time::timeout(PATIENCE, find).await {
            Ok(found) => found,
            Err(_) => panic!("no {what}; seen: {seen:#?}"),
        }
    }

    pub async fn listening(&mut self) -> Multiaddr {
        let id = self.id;
        self.wait("listen address", |event| match event {
            SwarmEvent::NewListenAddr { address, .. } => Some(address.clone()),
            _ => None,
        })
        .await
        .with(Protocol::P2p(id))
    }
}

impl Running<Node> {
    /// Waits for one outcome, which must be the only one until then.
    pub async fn outcome(&mut self) -> holepunch::Outcome {
        self.wait("outcome", |event| match event {
            SwarmEvent::Behaviour(NodeEvent::Holepunch(holepunch::Event::Outcome(outcome))) => {
                Some(outcome.clone())
            }
            _ => None,
        })
        .await
    }

    /// Closes every connection to `peer`, those included that come up meanwhile, and counts the
    /// outcomes until none is left.
    pub async fn outcomes_until_disconnected(&mut self, peer: PeerId) -> usize {
        let mut outcomes = 0;
        let mut connected = true;
        while connected {
            // It may have happened from the other side.
            let _ = self.with(move |swarm| swarm.disconnect_peer_id(peer)).await;
            connected = self
                .wait("disconnection", |event| match event {
                    SwarmEvent::Behaviour(NodeEvent::Holepunch(holepunch::Event::Outcome(_))) => {
                        outcomes += 1;
                        None
                    }
                    SwarmEvent::ConnectionEstablished { peer_id, .. } if *peer_id == peer => {
                        Some(true)
                    }
                    SwarmEvent::ConnectionClosed {
                        peer_id,
                        num_established: 0,
                        ..
                    } if *peer_id == peer => Some(false),
                    _ => None,
                })
                .await;
        }
        outcomes
    }

    /// Lets a peer observe this node at `address`.
    pub async fn observed_at(&mut self, address: Multiaddr) {
        self.with(move |swarm| {
            let observer = PeerId::random();
            let holepunch = &mut swarm.behaviour_mut().holepunch;
            holepunch.on_observation(observer, None, address);
        })
        .await;
        self.wait("candidate", |event| {
            matches!(event, SwarmEvent::NewExternalAddrCandidate { .. }).then_some(())
        })
        .await;
    }
}

/// A stock relay and its address with its id.
pub async fn relay() -> (Running<Relay>, Multiaddr) {
    let keypair = Keypair::generate_ed25519();
    let id = keypair.public().to_peer_id();
    let identify = identify::Config::new("/test".to_owned(), keypair.public());
    let behaviour = Relay {
        relay: libp2p_relay::Behaviour::new(id, libp2p_relay::Config::default()),
        identify: identify::Behaviour::new(identify),
    };
    let transport = secured(MemoryTransport::default(), &keypair);
    let mut swarm = Swarm::new(transport, behaviour, id, Config::with_tokio_executor());
    swarm.listen_on(Protocol::Memory(0).into()).unwrap();
    let mut relay = Running::start(swarm);
    let address = relay.listening().await;
    let external = address.clone();
    relay
        .with(move |swarm| swarm.add_external_address(external))
        .await;
    (relay, address)
}

/// A node that listens on memory, and its direct address without its id.
pub async fn node(config: holepunch::Config) -> (Running<Node>, Multiaddr) {
    let keypair = Keypair::generate_ed25519();
    let id = keypair.public().to_peer_id();
    let (transport, relay) = libp2p_relay::client::new(id);
    let transport = secured(transport.or_transport(MemoryTransport::default()), &keypair);
    let behaviour = Node {
        relay,
        holepunch: holepunch::Behaviour::new(id, config),
    };
    let swarm_config = Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(60))
        // As the manager builds its swarm.
        .with_substream_upgrade_protocol_override(Version::V1Lazy);
    let mut swarm = Swarm::new(transport, behaviour, id, swarm_config);
    swarm.listen_on(Protocol::Memory(0).into()).unwrap();
    let mut node = Running::start(swarm);
    let mut address = node.listening().await;
    address.pop();
    (node, address)
}

/// Reserves at the relay and returns the relayed address.
pub async fn reserve<B>(node: &mut Running<B>, relay: &Multiaddr) -> Multiaddr
where
    B: NetworkBehaviour + Send,
    B::ToSwarm: Send + std::fmt::Debug,
{
    let circuit = relay.clone().with(Protocol::P2pCircuit);
    node.with(move |swarm| swarm.listen_on(circuit))
        .await
        .unwrap();
    node.wait("reservation", |event| match event {
        SwarmEvent::NewListenAddr { address, .. } => Some(address.clone()),
        _ => None,
    })
    .await
}

/// Plaintext and yamux over any transport of streams.
pub fn secured<T>(
    transport: T,
    keypair: &Keypair,
) -> Boxed<(PeerId, libp2p_core::muxing::StreamMuxerBox)>
where
    T: Transport + Send + Unpin + 'static,
    T::Output: futures::AsyncRead + futures::AsyncWrite + Unpin + Send + 'static,
    T::Error: Send + Sync,
    T::Dial: Send,
    T::ListenerUpgrade: Send,
{
    transport
        .upgrade(Version::V1Lazy)
        .authenticate(libp2p_plaintext::Config::new(keypair))
        .multiplex(libp2p_yamux::Config::default())
        .timeout(Duration::from_secs(2))
        .boxed()
}
