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

use anypath_relay::{client, server};
use futures::StreamExt;
use libp2p_core::{
    Multiaddr, Transport,
    multiaddr::Protocol,
    transport::{ListenerId, MemoryTransport},
    upgrade::Version,
};
use libp2p_identity::{Keypair, PeerId};
use libp2p_ping as ping;
use libp2p_swarm::{Config, NetworkBehaviour, Swarm, SwarmEvent};
use tokio::sync::mpsc;

/// No single step takes this long unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
pub struct Relay {
    pub relay: server::Behaviour,
    pub ping: ping::Behaviour,
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
pub struct Client {
    pub client: client::Behaviour,
    pub server: server::Behaviour,
    pub ping: ping::Behaviour,
}

type Command<B> = Box<dyn FnOnce(&mut Swarm<B>) + Send>;

/// A handle to a swarm that runs.
pub struct Running<B: NetworkBehaviour> {
    pub id: PeerId,
    listener: ListenerId,
    commands: mpsc::Sender<Command<B>>,
    events: mpsc::Receiver<SwarmEvent<B::ToSwarm>>,
}

impl<B> Running<B>
where
    B: NetworkBehaviour + Send,
    B::ToSwarm: Send + std::fmt::Debug,
{
    pub fn start(mut swarm: Swarm<B>, listen: Multiaddr) -> Self {
        let id = *swarm.local_peer_id();
        let listener = swarm.listen_on(listen).unwrap();
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
            listener,
            commands,
            events,
        }
    }

    /// Runs something on the swarm and returns its result.
    pub async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Swarm<B>) -> T + Send + 'static,
    ) -> T {
        let (tell, told) = tokio::sync::oneshot::channel();
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

    /// Ends the node and frees its address.
    pub async fn stop(self) {
        let listener = self.listener;
        assert!(
            self.with(move |swarm| swarm.remove_listener(listener))
                .await
        );
    }

    /// What happened so far and was not waited for.
    pub fn so_far(&mut self) -> Vec<SwarmEvent<B::ToSwarm>> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }
}

impl Running<Client> {
    pub async fn wait_client<T>(
        &mut self,
        what: &str,
        mut pick: impl FnMut(&client::Event) -> Option<T>,
    ) -> T {
        self.wait(what, |event| match event {
            SwarmEvent::Behaviour(ClientEvent::Client(event)) => pick(event),
            _ => None,
        })
        .await
    }

    /// Waits for a reservation and returns the relayed address and the limit.
    pub async fn reserved(&mut self) -> (Multiaddr, Option<anypath_relay::CircuitLimit>) {
        self.wait_client("reservation", |event| match event {
            client::Event::Reserved {
                address,
                renewal: false,
                limit,
                ..
            } => Some((address.clone(), *limit)),
            _ => None,
        })
        .await
    }
}

impl Running<Relay> {
    pub async fn wait_relay<T>(
        &mut self,
        what: &str,
        mut pick: impl FnMut(&server::Event) -> Option<T>,
    ) -> T {
        self.wait(what, |event| match event {
            SwarmEvent::Behaviour(RelayEvent::Relay(event)) => pick(event),
            _ => None,
        })
        .await
    }
}

/// A relay that is switched on, and its address with its id.
pub async fn relay(config: server::Config) -> (Running<Relay>, Multiaddr) {
    relay_as(
        &Keypair::generate_ed25519(),
        Protocol::Memory(0).into(),
        config,
    )
    .await
}

/// The same with a given identity and place.
pub async fn relay_as(
    keypair: &Keypair,
    listen: Multiaddr,
    config: server::Config,
) -> (Running<Relay>, Multiaddr) {
    relay_that_keeps_for(Duration::from_secs(10), keypair, listen, config).await
}

/// The same, and it closes connections that are of no use for so long.
pub async fn relay_that_keeps_for(
    idle: Duration,
    keypair: &Keypair,
    listen: Multiaddr,
    config: server::Config,
) -> (Running<Relay>, Multiaddr) {
    let id = keypair.public().to_peer_id();
    let transport = secured(MemoryTransport::default(), keypair);
    let mut behaviour = server::Behaviour::new(keypair, config);
    behaviour.set_status(server::Status::Enabled);
    let behaviour = Relay {
        relay: behaviour,
        ping: quick_ping(),
    };
    // Room for all pings of a swarm that pauses for some seconds.
    let config = Config::with_tokio_executor()
        .with_idle_connection_timeout(idle)
        .with_per_connection_event_buffer_size(1024);
    let swarm = Swarm::new(transport, behaviour, id, config);
    let mut relay = Running::start(swarm, listen);
    let address = listening(&mut relay).await;
    (relay, address)
}

/// A node that listens on memory, with a relay server that is switched off.
pub async fn client(config: client::Config) -> (Running<Client>, Multiaddr) {
    let keypair = Keypair::generate_ed25519();
    let id = keypair.public().to_peer_id();
    let (transport, behaviour) = client::new(id, config);
    let transport = secured(transport.or_transport(MemoryTransport::default()), &keypair);
    let behaviour = Client {
        client: behaviour,
        server: server::Behaviour::new(&keypair, server::Config::default()),
        ping: quick_ping(),
    };
    let config = Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(60))
        // As the manager builds its swarm.
        .with_substream_upgrade_protocol_override(Version::V1Lazy);
    let swarm = Swarm::new(transport, behaviour, id, config);
    let mut client = Running::start(swarm, Protocol::Memory(0).into());
    let address = listening(&mut client).await;
    (client, address)
}

async fn listening<B>(node: &mut Running<B>) -> Multiaddr
where
    B: NetworkBehaviour + Send,
    B::ToSwarm: Send + std::fmt::Debug,
{
    let id = node.id;
    node.wait("listen address", |event| match event {
        SwarmEvent::NewListenAddr { address, .. } => Some(address.clone()),
        _ => None,
    })
    .await
    .with(Protocol::P2p(id))
}

/// Plaintext and yamux over any transport of streams.
pub fn secured<T>(
    transport: T,
    keypair: &Keypair,
) -> libp2p_core::transport::Boxed<(PeerId, libp2p_core::muxing::StreamMuxerBox)>
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
        .boxed()
}

/// Enough traffic to use up a small limit.
fn quick_ping() -> ping::Behaviour {
    ping::Behaviour::new(ping::Config::new().with_interval(Duration::from_millis(20)))
}

/// Retries quickly enough for a test.
pub fn impatient() -> client::Config {
    client::Config::builder()
        .backoff_initial(Duration::from_millis(50))
        .build()
        .unwrap()
}
