//! Everything that runs on the node's connections, as one behaviour.

use std::{io, num::NonZeroU64, time::Duration};

use anypath_discovery_pubsub::Service;
use anypath_holepunch::transport::Ports;
use anypath_tiered_store::Store;
use libp2p::{
    PeerId, autonat, identify,
    identity::Keypair,
    peer_store::{self, memory_store::MemoryStore},
    ping,
    pnet::PreSharedKey,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};
use libp2p_connection_limits as connection_limits;

use crate::{
    autonat as autonat_client, autonat_server, config::Config, error::StartError, streams,
    swarm_key, unrelayed::Unrelayed,
};

/// Name and version as identify sends it.
pub(crate) const AGENT: &str = concat!("anypath/", env!("CARGO_PKG_VERSION"));

/// Connections to one peer: two transports from each side, a relayed one, and some to spare.
const MAX_CONNECTIONS_PER_PEER: u32 = 8;

/// The node's behaviours. The order matters in one place: limits come first, so that a refused
/// connection is seen by nobody else.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    pub(crate) limits: connection_limits::Behaviour,
    pub(crate) peer_store: peer_store::Behaviour<MemoryStore>,
    pub(crate) identify: identify::Behaviour,
    pub(crate) ping: ping::Behaviour,
    pub(crate) relay_server: anypath_relay::server::Behaviour,
    pub(crate) relay_client: anypath_relay::client::Behaviour,
    pub(crate) holepunch: anypath_holepunch::Behaviour,
    pub(crate) autonat_client: Toggle<autonat_client::Behaviour>,
    pub(crate) autonat_server: Toggle<autonat_server::Behaviour>,
    pub(crate) autonat_v1: Toggle<autonat::v1::Behaviour>,
    pub(crate) mdns: Toggle<anypath_discovery_mdns::Behaviour>,
    pub(crate) pubsub: Toggle<Unrelayed<anypath_discovery_pubsub::Behaviour>>,
    pub(crate) dht: Toggle<Unrelayed<anypath_dht::Behaviour>>,
    pub(crate) bitswap: anypath_bitswap::Behaviour,
    pub(crate) streams: streams::Behaviour,
}

impl Behaviour {
    /// Needs a tokio reactor in the calling context (`async_compat`).
    pub(crate) fn new(
        config: &Config,
        keypair: &Keypair,
        swarm_key: Option<PreSharedKey>,
        store: Store,
        relay_client: anypath_relay::client::Behaviour,
        ports: Ports,
    ) -> Result<Self, StartError> {
        let local = keypair.public().to_peer_id();
        Ok(Self {
            limits: connection_limits::Behaviour::new(
                connection_limits::ConnectionLimits::default()
                    .with_max_established(Some(config.max_connections().get()))
                    .with_max_established_incoming(Some(max_incoming(config)))
                    .with_max_established_per_peer(Some(MAX_CONNECTIONS_PER_PEER))
                    .with_max_pending_incoming(Some(config.max_connections().get())),
            ),
            peer_store: peer_store::Behaviour::new(MemoryStore::new(
                peer_store::memory_store::Config::default(),
            )),
            // Without a signed peer record: rust-libp2p's has a domain of its own (rust-libp2p 6204), go ignores it,
            // and js throws the whole message away because of it.
            identify: identify::Behaviour::new(
                identify::Config::new("ipfs/0.1.0".to_owned(), keypair.public())
                    .with_agent_version(AGENT.to_owned())
                    .with_push_listen_addr_updates(true),
            ),
            ping: ping::Behaviour::default(),
            relay_server: relay_server(config, keypair)?,
            relay_client,
            holepunch: holepunch(config, local, ports)?,
            autonat_client: config
                .enable_autonat()
                .then(|| {
                    autonat_client::Behaviour::new(autonat_client::Timing::every(
                        config.autonat_query_interval(),
                    ))
                })
                .into(),
            autonat_server: config
                .enable_autonat()
                .then(|| {
                    autonat_server::Behaviour::new(
                        autonat_server::Limits::default(),
                        autonat_server::Transports {
                            quic: swarm_key.is_none(),
                            websocket: cfg!(feature = "websocket"),
                            webrtc: cfg!(feature = "webrtc") && swarm_key.is_none(),
                        },
                        autonat_server::PATIENCE,
                    )
                })
                .into(),
            autonat_v1: config.enable_autonat().then(|| autonat_v1(local)).into(),
            mdns: mdns(config, swarm_key, local)?.into(),
            pubsub: pubsub(config, keypair)?.map(Unrelayed::new).into(),
            dht: dht(config, local)?.map(Unrelayed::new).into(),
            bitswap: anypath_bitswap::Behaviour::new(
                bitswap_config(config)?,
                std::sync::Arc::new(store),
            ),
            streams: streams::Behaviour::default(),
        })
    }
}

fn bitswap_config(config: &Config) -> Result<anypath_bitswap::Config, StartError> {
    let limits = anypath_bitswap::UploadLimits {
        total: config.upload_limit().and_then(NonZeroU64::new),
        ..Default::default()
    };
    // On threads of their own: beside the tasks that read the sockets, hashes would hold those up, and a UDP socket loses what it has
    // no room for.
    let executor = anypath_bitswap::Executor::new(|hashing| {
        blocking::unblock(|| futures::executor::block_on(hashing)).detach();
    });
    anypath_bitswap::Config::builder()
        .executor(Some(executor))
        .role(config.role())
        .upload_limits(limits)
        .build()
        .map_err(setup("bitswap"))
}

/// Strangers cannot take all connections: some are left for those that this node wants.
fn max_incoming(config: &Config) -> u32 {
    let max = config.max_connections().get();
    let reserved = (max / 8).max(1);
    (max - reserved).max(1)
}

fn setup<E: std::error::Error + Send + Sync + 'static>(
    part: &'static str,
) -> impl FnOnce(E) -> StartError {
    move |source| StartError::Setup {
        part,
        source: source.into(),
    }
}

fn relay_server(
    config: &Config,
    keypair: &Keypair,
) -> Result<anypath_relay::server::Behaviour, StartError> {
    Ok(anypath_relay::server::Behaviour::new(
        keypair,
        relay_server_config(config)?,
    ))
}

pub(crate) fn relay_server_config(
    config: &Config,
) -> Result<anypath_relay::server::Config, StartError> {
    let circuits = usize::try_from(config.max_relay_circuits().get()).unwrap_or(usize::MAX);
    // As long as the wire can say, where no limit is wanted.
    let forever = Duration::from_secs(u64::from(u32::MAX) - 1);
    let duration = config.relay_circuit_duration();
    anypath_relay::server::Config::builder()
        .max_circuits(circuits)
        .max_circuit_bytes(Some(config.relay_circuit_bytes()).filter(|bytes| *bytes > 0))
        .max_circuit_duration(if duration.is_zero() {
            forever
        } else {
            duration
        })
        .build()
        .map_err(setup("the relay server"))
}

fn holepunch(
    config: &Config,
    local: PeerId,
    ports: Ports,
) -> Result<anypath_holepunch::Behaviour, StartError> {
    let config = anypath_holepunch::Config::builder()
        .enabled(config.enable_dcutr())
        .map_ports(config.enable_port_mapping())
        .stun_servers(config.stun_servers().to_vec())
        // The strategy closes what is too much, and not before nothing is on it.
        .close_duplicates(false)
        .build()
        .map_err(setup("hole punching"))?;
    Ok(anypath_holepunch::Behaviour::new(local, config).with_fresh_ports(ports))
}

/// The first version's server, for nodes that know no other. Its client stays silent.
fn autonat_v1(local: PeerId) -> autonat::v1::Behaviour {
    let never = Duration::from_secs(365 * 24 * 60 * 60);
    autonat::v1::Behaviour::new(
        local,
        autonat::v1::Config {
            use_connected: false,
            boot_delay: never,
            retry_interval: never,
            refresh_interval: never,
            ..autonat::v1::Config::default()
        },
    )
}

fn mdns(
    config: &Config,
    swarm_key: Option<PreSharedKey>,
    local: PeerId,
) -> Result<Option<anypath_discovery_mdns::Behaviour>, StartError> {
    if !config.enable_mdns() {
        return Ok(None);
    }
    let mut builder =
        anypath_discovery_mdns::Config::builder().query_interval(config.mdns_query_interval());
    if let Some(key) = swarm_key {
        builder = builder.private_network(swarm_key::fingerprint(&key));
    }
    let config = builder.build().map_err(setup("mDNS"))?;
    Ok(without_network(
        "mDNS",
        anypath_discovery_mdns::Behaviour::new(local, config),
    ))
}

/// A host without multicast still runs a node.
fn without_network<T>(part: &str, started: io::Result<T>) -> Option<T> {
    started
        .inspect_err(|error| tracing::warn!(%error, "{part} is off"))
        .ok()
}

fn pubsub(
    config: &Config,
    keypair: &Keypair,
) -> Result<Option<anypath_discovery_pubsub::Behaviour>, StartError> {
    if !config.enable_pubsub_discovery() {
        return Ok(None);
    }
    let defaults = anypath_discovery_pubsub::Config::default();
    let interval = config.pubsub_announce_interval();
    let config = anypath_discovery_pubsub::Config::builder()
        .announce_interval(interval)
        // A peer that misses two announcements in a row is still there.
        .peer_ttl(defaults.peer_ttl().max(3 * interval))
        .services([Service::Content, Service::Relay])
        // A relay is the hub of those who come through it.
        .max_peers(if config.enable_relay_server() {
            4 * defaults.max_peers()
        } else {
            defaults.max_peers()
        })
        .allow_private(config.private())
        .build()
        .map_err(setup("discovery over gossipsub"))?;
    anypath_discovery_pubsub::Behaviour::new(keypair.clone(), config)
        .map(Some)
        .map_err(setup("discovery over gossipsub"))
}

fn dht(config: &Config, local: PeerId) -> Result<Option<anypath_dht::Behaviour>, StartError> {
    if !config.joins_public_dht() {
        return Ok(None);
    }
    let config = anypath_dht::Config::builder()
        .build()
        .map_err(setup("the DHT"))?;
    Ok(Some(anypath_dht::Behaviour::new(local, config)))
}
