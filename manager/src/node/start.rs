//! From a configuration to a driver that listens.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use anypath_tiered_store::Store;
use async_compat::Compat;
use futures::{StreamExt as _, future::Either};
use libp2p::{
    Multiaddr, PeerId, Swarm, TransportError,
    identity::Keypair,
    swarm::{self, SwarmEvent},
};
use tokio::sync::{broadcast, mpsc};

use super::{COMMANDS, EVENTS, Executor, Node, driver::Driver, listen};
use crate::{
    behaviour::{Behaviour, BehaviourEvent},
    bootstrap::{KnownPeers, known},
    config::Config,
    error::StartError,
    swarm_key, transport,
};

/// Long enough for a stream every now and then, short enough that strangers do not pile up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The interfaces report their addresses within milliseconds; a host without any starts all the same.
const LISTEN_WAIT: Duration = Duration::from_secs(2);

/// A listener on all interfaces reports them one after the other; this long after the last one the
/// list is taken for complete.
const LISTEN_SETTLE: Duration = Duration::from_millis(20);

/// What happens while the node waits for its listeners: more than that is a flood of connections.
const MAX_EARLY_EVENTS: usize = 1024;

/// Addresses of one peer that are dialled at the same time; go-libp2p's limit for one peer.
const DIAL_CONCURRENCY: std::num::NonZeroU8 = std::num::NonZeroU8::new(8).unwrap();

pub(super) async fn start(
    config: Config,
    keypair: Keypair,
    store: Store,
    executor: Arc<dyn Executor>,
) -> Result<Node, StartError> {
    let peer_id = keypair.public().to_peer_id();
    let known = match store.get_value(known::KEY).await {
        Ok(bytes) => KnownPeers::decode(&bytes.unwrap_or_default()),
        Err(error) => {
            tracing::warn!(%error, "the peers of the last run cannot be read");
            KnownPeers::default()
        }
    };
    let (commands, receiver) = mpsc::channel(COMMANDS);
    let (events, _) = broadcast::channel(EVENTS);
    let weak_events = events.downgrade();
    // On the heap: a swarm is tens of kilobytes, and whoever awaits this future would move them about on a small stack.
    let setup = Box::pin(async {
        let mut swarm = swarm(&config, &keypair, store.clone(), executor.clone())?;
        let (listening, early) = listen(&mut swarm, &config).await?;
        hint_at_small_udp_buffers(&listening);
        let mut driver = Driver::new(
            config,
            keypair,
            swarm,
            store.clone(),
            known,
            receiver,
            events,
        );
        driver.begin(early)?;
        Ok::<_, StartError>((driver, listening))
    });
    let (driver, listen_addrs) = Compat::new(setup).await?;
    executor(Box::pin(Compat::new(driver.run())));
    Ok(Node {
        peer_id,
        store,
        commands,
        events: weak_events,
        listen_addrs: listen_addrs.into(),
        sessions: Arc::default(),
    })
}

fn swarm(
    config: &Config,
    keypair: &Keypair,
    store: Store,
    executor: Arc<dyn Executor>,
) -> Result<Swarm<Behaviour>, StartError> {
    let local = PeerId::from(keypair.public());
    let relays = usize::try_from(config.max_relay_reservations()).unwrap_or(usize::MAX);
    let relay_config = anypath_relay::client::Config::builder()
        .target_reservations(if config.enable_relay_client() {
            relays
        } else {
            0
        })
        .allow_private(config.private())
        .build()
        .map_err(|source| StartError::Setup {
            part: "the relay client",
            source: source.into(),
        })?;
    let swarm_key = match config.swarm_key_file() {
        Some(path) => Some(swarm_key::load(path)?),
        None => config.swarm_key(),
    };
    let (circuits, relay_client) = anypath_relay::client::new(local, relay_config);
    let ports = anypath_holepunch::transport::Ports::default();
    let transport = transport::build(keypair, circuits, swarm_key, &ports).map_err(|source| {
        StartError::Setup {
            part: "the transports",
            source: source.into(),
        }
    })?;
    #[cfg(feature = "webrtc")]
    let transport = match swarm_key {
        None => {
            // Who does not listen needs a certificate for the moment.
            let certificate = config.webrtc_certificate_file();
            let certificate = certificate.filter(|_| config.listens_over_webrtc());
            transport::with_webrtc(transport, keypair, certificate)?
        }
        Some(_) => transport,
    };
    let behaviour = Behaviour::new(config, keypair, swarm_key, store, relay_client, ports)?;
    let swarm_config =
        swarm::Config::with_executor(move |task| executor(Box::pin(Compat::new(task))))
            .with_idle_connection_timeout(IDLE_TIMEOUT)
            .with_dial_concurrency_factor(DIAL_CONCURRENCY)
            .with_substream_upgrade_protocol_override(libp2p::core::upgrade::Version::V1Lazy);
    Ok(Swarm::new(transport, behaviour, local, swarm_config))
}

/// Says so where the system's UDP receive buffer is too small for QUIC at link speed: a burst that does not
/// fit is lost, and the sender slows down. Measured in the NAT lab (64 MiB, 50 ms round trip): 10 MB/s with
/// the usual 208 KiB, 30 MB/s with 4 MiB. libp2p-quic binds its sockets itself, so only the system's default
/// can help.
fn hint_at_small_udp_buffers(listening: &[Multiaddr]) {
    const PATH: &str = "/proc/sys/net/core/rmem_default";
    const ENOUGH: u64 = 1024 * 1024;
    let quic = |address: &Multiaddr| {
        let mut protocols = address.iter();
        protocols.any(|protocol| protocol == libp2p::multiaddr::Protocol::QuicV1)
    };
    let bytes = std::fs::read_to_string(PATH)
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    if let Some(bytes) = bytes.filter(|bytes| *bytes < ENOUGH && listening.iter().any(quic)) {
        tracing::info!(
            bytes,
            "UDP receive buffers are small, QUIC will be slow over long paths: sysctl -w net.core.rmem_default=4194304"
        );
    }
}

/// Listens, and waits until every listener has an address: a dial before that would come from a port
/// that no hole punch could use. Returns the addresses, and what else happened meanwhile: who is found by mDNS in these
/// milliseconds is told of once.
async fn listen(
    swarm: &mut Swarm<Behaviour>,
    config: &Config,
) -> Result<(Vec<Multiaddr>, Vec<SwarmEvent<BehaviourEvent>>), StartError> {
    let mut early = Vec::new();
    let mut pending = BTreeSet::new();
    for address in listen::addresses(config)? {
        let listener = swarm.listen_on(address.clone()).map_err(|error| {
            let source = match error {
                TransportError::MultiaddrNotSupported(_) => {
                    io::Error::other("no transport of this node takes such an address")
                }
                TransportError::Other(error) => error,
            };
            StartError::Listen { address, source }
        })?;
        pending.insert(listener.to_string());
    }
    let mut timeout = futures_timer::Delay::new(LISTEN_WAIT);
    loop {
        match futures::future::select(swarm.next(), &mut timeout).await {
            Either::Left((Some(SwarmEvent::NewListenAddr { listener_id, .. }), _)) => {
                pending.remove(&listener_id.to_string());
                if pending.is_empty() {
                    timeout.reset(LISTEN_SETTLE);
                }
            }
            Either::Left((Some(SwarmEvent::ListenerError { error, .. }), _)) => {
                tracing::warn!(%error, "a listener failed");
            }
            Either::Left((Some(event), _)) if early.len() < MAX_EARLY_EVENTS => early.push(event),
            Either::Left(_) => {}
            Either::Right(_) => break,
        }
    }
    if !pending.is_empty() {
        tracing::warn!("some listeners have no address yet");
    }
    Ok((swarm.listeners().cloned().collect(), early))
}
