//! A node of ours: the behaviours of this workspace on one swarm, driven by a task of its own.

#![expect(
    clippy::disallowed_methods,
    reason = "a node for tests, which run on tokio"
)]

use super::{Error, Transport};
use anypath::{noise, yamux};
use anypath_bitswap as bitswap;
use anypath_bitswap::{Block, MemorySource};
use anypath_discovery_pubsub as pubsub;
use anypath_relay::{client, server};
use bytes::Bytes;
use cid::Cid;
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::core::upgrade::Version;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::{ConnectionId, NetworkBehaviour, SwarmEvent};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, Transport as _, gossipsub, identify,
    identity, ping, tcp, websocket,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// What no step takes on a busy machine unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// Often enough that a test which waits for one waits shortly.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes come back as they went; every peer of the suite answers it.
const ECHO: StreamProtocol = StreamProtocol::new("/anypath-interop/echo/1.0.0");

/// Events that nobody waited for yet.
const MAX_EVENTS: usize = 100_000;

#[expect(missing_docs, reason = "the derived event has the names of the fields")]
mod behaviour {
    use super::*;

    /// All that our node speaks.
    #[derive(NetworkBehaviour)]
    pub struct Behaviour {
        /// libp2p's, as the manager has it.
        pub identify: identify::Behaviour,
        /// libp2p's.
        pub ping: ping::Behaviour,
        /// Ours.
        pub relay_client: client::Behaviour,
        /// Ours.
        pub relay_server: server::Behaviour,
        /// Ours.
        pub bitswap: bitswap::Behaviour,
        /// Ours.
        pub pubsub: pubsub::Behaviour,
        /// Ours.
        pub dht: Toggle<anypath_dht::Behaviour>,
        /// Carries the echo.
        pub streams: libp2p_stream::Behaviour,
    }
}
pub use behaviour::{Behaviour, BehaviourEvent};

type Event = SwarmEvent<BehaviourEvent>;
type Act = Box<dyn FnOnce(&mut Swarm<Behaviour>) + Send>;

/// What a node is started with.
#[derive(Debug, Clone, Default)]
pub struct NodeSettings {
    /// Relays for others.
    pub relay: Option<server::Config>,
    /// Takes part in the DHT.
    pub dht: Option<anypath_dht::Mode>,
}

/// A running node. Dropping it ends it.
#[derive(Debug)]
pub struct Node {
    id: PeerId,
    address: Multiaddr,
    store: Arc<MemorySource>,
    acts: mpsc::Sender<Act>,
    events: mpsc::Receiver<Event>,
    seen: VecDeque<Event>,
}

impl Node {
    /// Starts a node that listens on loopback.
    ///
    /// # Errors
    ///
    /// The swarm cannot be built, or cannot listen.
    pub async fn start(transport: Transport, settings: NodeSettings) -> Result<Self, Error> {
        let store = Arc::new(MemorySource::new());
        let relays = settings.relay.is_some();
        let mut swarm = swarm(store.clone(), settings).map_err(Error::Other)?;
        let id = *swarm.local_peer_id();
        serve_echo(&mut swarm)?;
        // It reserves when it is told to, not at every relay that it meets.
        swarm.behaviour_mut().relay_client.on_reachability(true);
        swarm
            .listen_on(transport.loopback())
            .map_err(|error| Error::Other(error.into()))?;
        let (acts, mut to_do) = mpsc::channel::<Act>(16);
        let (tell, events) = mpsc::channel(MAX_EVENTS);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    act = to_do.recv() => match act {
                        Some(act) => act(&mut swarm),
                        None => return,
                    },
                    event = swarm.select_next_some() => {
                        // Whoever waits for it notices that it does not come.
                        let _ = tell.try_send(event);
                    }
                }
            }
        });
        let mut node = Self {
            id,
            address: Multiaddr::empty(),
            store,
            acts,
            events,
            seen: VecDeque::new(),
        };
        let listening = node
            .wait("listen address", |event| match event {
                SwarmEvent::NewListenAddr { address, .. } => Some(address.clone()),
                _ => None,
            })
            .await?;
        if relays {
            let external = listening.clone();
            node.with(move |swarm| swarm.add_external_address(external))
                .await?;
        }
        node.address = listening.with(Protocol::P2p(id));
        Ok(node)
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// Where it listens, ending in its name.
    #[must_use]
    pub fn address(&self) -> &Multiaddr {
        &self.address
    }

    /// Does something with the swarm.
    ///
    /// # Errors
    ///
    /// The node's task is gone.
    pub async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Swarm<Behaviour>) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let gone = || Error::Ended("our own node".to_owned());
        let (tell, told) = oneshot::channel();
        let act: Act = Box::new(move |swarm| {
            let _ = tell.send(act(swarm));
        });
        self.acts.send(act).await.map_err(|_| gone())?;
        told.await.map_err(|_| gone())
    }

    /// The first event, of those before and those to come, that `pick` takes; it is gone then.
    ///
    /// # Errors
    ///
    /// There was none.
    pub async fn wait<T>(
        &mut self,
        what: &str,
        mut pick: impl FnMut(&Event) -> Option<T>,
    ) -> Result<T, Error> {
        for index in 0..self.seen.len() {
            if let Some(found) = self.seen.get(index).and_then(&mut pick) {
                self.seen.remove(index);
                return Ok(found);
            }
        }
        let found = async {
            loop {
                let gone = || Error::Ended("our own node".to_owned());
                let event = self.events.recv().await.ok_or_else(gone)?;
                if let Some(found) = pick(&event) {
                    return Ok(found);
                }
                self.seen.push_back(event);
            }
        };
        tokio::time::timeout(PATIENCE, found)
            .await
            .unwrap_or_else(|_| {
                Err(Error::Timeout {
                    what: what.to_owned(),
                    within: PATIENCE,
                })
            })
    }

    /// Dials an address that ends in a name, relayed ones too.
    ///
    /// # Errors
    ///
    /// The dial failed.
    pub async fn dial(&mut self, address: Multiaddr) -> Result<(PeerId, ConnectionId), Error> {
        let Some(Protocol::P2p(peer)) = address.iter().last() else {
            return Err(Error::Wrong(format!("{address} names no peer")));
        };
        self.with(move |swarm| swarm.dial(address))
            .await?
            .map_err(|error| Error::Other(error.into()))?;
        self.wait("connection", |event| match event {
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } if *peer_id == peer && endpoint.is_dialer() => Some(Ok((peer, *connection_id))),
            SwarmEvent::OutgoingConnectionError {
                peer_id: Some(failed),
                error,
                ..
            } if *failed == peer => Some(Err(Error::Wrong(error.to_string()))),
            _ => None,
        })
        .await?
    }

    /// The connection that a peer dialled.
    ///
    /// # Errors
    ///
    /// It did not.
    pub async fn dialled_by(&mut self, peer: PeerId) -> Result<ConnectionId, Error> {
        self.wait("connection of the peer", |event| match event {
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } if *peer_id == peer && endpoint.is_listener() => Some(*connection_id),
            _ => None,
        })
        .await
    }

    /// Waits until a connection has ended.
    ///
    /// # Errors
    ///
    /// It has not.
    pub async fn closed(&mut self, connection: ConnectionId) -> Result<(), Error> {
        self.wait("end of the connection", |event| match event {
            SwarmEvent::ConnectionClosed { connection_id, .. } if *connection_id == connection => {
                Some(())
            }
            _ => None,
        })
        .await
    }

    /// What identify told us about a peer.
    ///
    /// # Errors
    ///
    /// Nothing, or that it failed.
    pub async fn identified(&mut self, peer: PeerId) -> Result<identify::Info, Error> {
        self.wait("identify", |event| match event {
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) if *peer_id == peer => Some(Ok(info.clone())),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Error {
                peer_id,
                error,
                ..
            })) if *peer_id == peer => Some(Err(Error::Wrong(error.to_string()))),
            _ => None,
        })
        .await?
    }

    /// The next ping over a connection.
    ///
    /// # Errors
    ///
    /// It failed.
    pub async fn ping(&mut self, connection: ConnectionId) -> Result<Duration, Error> {
        self.wait("ping", |event| match event {
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event {
                connection: over,
                result,
                ..
            })) if *over == connection => Some(
                result
                    .as_ref()
                    .map_err(|error| Error::Wrong(error.to_string()))
                    .copied(),
            ),
            _ => None,
        })
        .await?
    }

    /// Sends bytes to a connected peer and waits until they came back.
    ///
    /// Our direction ends once the first of them is back: js-libp2p loses an end that comes before its handler listens
    /// ([`ends_with_a_ping`](super::ends_with_a_ping)).
    ///
    /// # Errors
    ///
    /// The stream was reset, or other bytes came.
    pub async fn echo(&self, peer: PeerId, bytes: usize) -> Result<(), Error> {
        let mut control = self
            .with(|swarm| swarm.behaviour().streams.new_control())
            .await?;
        let echoed = async move {
            let stream = control
                .open_stream(peer, ECHO)
                .await
                .map_err(|error| Error::Wrong(error.to_string()))?;
            let sent: Vec<u8> = (0..bytes).map(|_| rand::random()).collect();
            let (mut reader, mut writer) = stream.split();
            let mut received = vec![0];
            let (waiting, answered) = oneshot::channel::<()>();
            // The first error ends both: multistream-select panics when a stream is closed whose negotiation has failed in a read.
            tokio::try_join!(
                async {
                    writer.write_all(&sent).await?;
                    writer.flush().await?;
                    let _dropped = answered.await;
                    writer.close().await
                },
                async {
                    reader.read_exact(&mut received).await?;
                    drop(waiting);
                    reader.read_to_end(&mut received).await
                }
            )?;
            if sent == received {
                Ok(())
            } else {
                let back = received.len();
                Err(Error::Wrong(format!(
                    "{bytes} bytes went, {back} came back, or others"
                )))
            }
        };
        tokio::time::timeout(PATIENCE, echoed)
            .await
            .unwrap_or_else(|_| {
                Err(Error::Timeout {
                    what: "echo".to_owned(),
                    within: PATIENCE,
                })
            })
    }

    /// Reserves at a relay; returns the address where others reach us, and what a circuit may carry.
    ///
    /// # Errors
    ///
    /// The relay did not want.
    pub async fn reserve(
        &mut self,
        relay: Multiaddr,
    ) -> Result<(Multiaddr, Option<anypath_relay::CircuitLimit>), Error> {
        let relay = self
            .with(move |swarm| {
                let client = &mut swarm.behaviour_mut().relay_client;
                client.on_reachability(false);
                client.add_relay(relay)
            })
            .await?
            .map_err(|error| Error::Other(error.into()))?;
        self.wait("reservation", |event| match event {
            SwarmEvent::Behaviour(BehaviourEvent::RelayClient(event)) => match event {
                client::Event::Reserved {
                    relay: at,
                    address,
                    limit,
                    ..
                } if *at == relay => Some(Ok((address.clone(), *limit))),
                client::Event::Failed { relay: at, why } if *at == relay => {
                    Some(Err(Error::Wrong(why.to_string())))
                }
                _ => None,
            },
            _ => None,
        })
        .await?
    }

    /// Serves a block from now on.
    ///
    /// # Errors
    ///
    /// The node's task is gone.
    pub async fn add(&self, block: Block) -> Result<(), Error> {
        let cid = *block.cid();
        self.store.insert(block);
        self.with(move |swarm| swarm.behaviour_mut().bitswap.notify_new_blocks(&[cid]))
            .await
    }

    /// Gets a block from a connected peer over bitswap.
    ///
    /// # Errors
    ///
    /// It did not come.
    pub async fn get(&mut self, cid: Cid, peer: PeerId) -> Result<Bytes, Error> {
        let (session, wanted) = self
            .with(move |swarm| {
                let bitswap = &mut swarm.behaviour_mut().bitswap;
                let session = bitswap.new_session();
                bitswap.add_session_peer(session, peer);
                let ticket = bitswap.want(session, cid, bitswap::Priority::default());
                (session, ticket)
            })
            .await?;
        let arrived = self
            .wait("block", |event| match event {
                SwarmEvent::Behaviour(BehaviourEvent::Bitswap(bitswap::Event::Block {
                    ticket,
                    block,
                    ..
                })) if *ticket == wanted => Some(block.data().clone()),
                _ => None,
            })
            .await;
        let bytes = arrived.as_ref().map_or(0, Bytes::len);
        self.with(move |swarm| {
            let bitswap = &mut swarm.behaviour_mut().bitswap;
            bitswap.taken(wanted, bytes);
            bitswap.end_session(session);
        })
        .await?;
        arrived
    }

    /// Subscribes to a topic.
    ///
    /// # Errors
    ///
    /// gossipsub's.
    pub async fn subscribe(&self, topic: &str) -> Result<(), Error> {
        let topic = gossipsub::IdentTopic::new(topic);
        self.with(move |swarm| {
            swarm
                .behaviour_mut()
                .pubsub
                .gossipsub_mut()
                .subscribe(&topic)
        })
        .await?
        .map_err(|error| Error::Other(error.into()))?;
        Ok(())
    }

    /// Waits until a peer says that it is subscribed to a topic.
    ///
    /// # Errors
    ///
    /// It does not.
    pub async fn subscribed(&mut self, peer: PeerId, topic: &str) -> Result<(), Error> {
        let topic = gossipsub::IdentTopic::new(topic).hash();
        self.wait("subscription of the peer", |event| match event {
            SwarmEvent::Behaviour(BehaviourEvent::Pubsub(pubsub::Event::Gossipsub(
                gossipsub::Event::Subscribed {
                    peer_id,
                    topic: subscribed,
                },
            ))) if *peer_id == peer && *subscribed == topic => Some(()),
            _ => None,
        })
        .await
    }

    /// Publishes on a topic.
    ///
    /// # Errors
    ///
    /// gossipsub's, such as that nobody is subscribed.
    pub async fn publish(&self, topic: &str, data: impl Into<Vec<u8>>) -> Result<(), Error> {
        let topic = gossipsub::IdentTopic::new(topic);
        let data = data.into();
        self.with(move |swarm| {
            swarm
                .behaviour_mut()
                .pubsub
                .gossipsub_mut()
                .publish(topic, data)
        })
        .await?
        .map_err(|error| Error::Other(error.into()))?;
        Ok(())
    }

    /// The next message on a topic: its author and what it says.
    ///
    /// # Errors
    ///
    /// None came.
    pub async fn message(&mut self, topic: &str) -> Result<(Option<PeerId>, Vec<u8>), Error> {
        let topic = gossipsub::IdentTopic::new(topic).hash();
        self.wait("message", |event| match event {
            SwarmEvent::Behaviour(BehaviourEvent::Pubsub(pubsub::Event::Gossipsub(
                gossipsub::Event::Message { message, .. },
            ))) if message.topic == topic => Some((message.source, message.data.clone())),
            _ => None,
        })
        .await
    }
}

fn swarm(
    store: Arc<MemorySource>,
    settings: NodeSettings,
) -> Result<Swarm<Behaviour>, Box<dyn std::error::Error + Send + Sync>> {
    let key = identity::Keypair::generate_ed25519();
    let id = key.public().to_peer_id();
    let (circuits, relay_client) = client::new(id, client::Config::default());
    let mut relay_server = server::Behaviour::new(&key, settings.relay.clone().unwrap_or_default());
    relay_server.set_status(match settings.relay {
        Some(_) => server::Status::Enabled,
        None => server::Status::Disabled,
    });
    let pubsub = pubsub::Behaviour::new(
        key.clone(),
        pubsub::Config::builder()
            .announce_interval(Duration::from_secs(1))
            .allow_loopback(true)
            .build()?,
    )?;
    let dht = settings
        .dht
        .map(|mode| anypath_dht::Config::builder().mode(mode).build())
        .transpose()?
        .map(|config| anypath_dht::Behaviour::new(id, config).with_validator(VALUES, Greatest))
        .into();
    let swarm = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            noise::Config::new,
            yamux::Config::default,
        )?
        .with_quic()
        .with_other_transport(|key| {
            Ok(circuits
                .upgrade(Version::V1Lazy)
                .authenticate(noise::Config::new(key)?)
                .multiplex(yamux::Config::default()))
        })?
        .with_other_transport(|key| {
            let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
            Ok(websocket::Config::new(tcp)
                .upgrade(Version::V1Lazy)
                .authenticate(noise::Config::new(key)?)
                .multiplex(yamux::Config::default()))
        })?
        .with_other_transport(|key| Ok(anypath::webrtc::transport(key, None)?))?
        .with_behaviour(|key| Behaviour {
            identify: identify::Behaviour::new(
                identify::Config::new("ipfs/0.1.0".to_owned(), key.public())
                    .with_agent_version(AGENT.to_owned()),
            ),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL)),
            relay_client,
            relay_server,
            bitswap: bitswap::Behaviour::new(bitswap::Config::default(), store),
            pubsub,
            dht,
            streams: libp2p_stream::Behaviour::new(),
        })?
        // As the node has it: one round trip less for each stream.
        .with_swarm_config(|config| {
            config
                .with_substream_upgrade_protocol_override(Version::V1Lazy)
                .with_idle_connection_timeout(Duration::from_secs(60))
        })
        .build();
    Ok(swarm)
}

/// What our node calls itself to the peers.
pub(super) const AGENT: &str = concat!("anypath-interop/", env!("CARGO_PKG_VERSION"));

fn serve_echo(swarm: &mut Swarm<Behaviour>) -> Result<(), Error> {
    let mut incoming = swarm
        .behaviour()
        .streams
        .new_control()
        .accept(ECHO)
        .map_err(|error| Error::Other(error.into()))?;
    tokio::spawn(async move {
        while let Some((_, stream)) = incoming.next().await {
            tokio::spawn(async move {
                let (reader, mut writer) = stream.split();
                if futures::io::copy(reader, &mut writer).await.is_ok() {
                    let _ = writer.close().await;
                }
            });
        }
    });
    Ok(())
}

/// The namespace of values for peers that cannot name IPNS's.
pub const VALUES: &str = "anypath-interop";

/// Any value is valid; the greatest one is the best.
struct Greatest;

impl anypath_dht::Validator for Greatest {
    fn validate(&self, _: &[u8], _: &[u8]) -> Result<(), anypath_dht::InvalidValue> {
        Ok(())
    }

    fn compare(&self, _: &[u8], one: &[u8], other: &[u8]) -> std::cmp::Ordering {
        one.cmp(other)
    }
}
