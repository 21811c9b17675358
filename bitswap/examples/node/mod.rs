//! What the examples share: a swarm over TCP, Noise and Yamux with a key of its own.

use std::{error::Error, time::Duration};

use anypath_bitswap::Behaviour;
use libp2p_core::{Transport, upgrade::Version};
use libp2p_identity::Keypair;
use libp2p_swarm::{Config, Swarm};

pub(crate) fn swarm(bitswap: Behaviour) -> Result<Swarm<Behaviour>, Box<dyn Error>> {
    let key = Keypair::generate_ed25519();
    let transport = libp2p_tcp::tokio::Transport::default()
        .upgrade(Version::V1Lazy)
        .authenticate(libp2p_noise::Config::new(&key)?)
        .multiplex(libp2p_yamux::Config::default())
        .boxed();
    let config = Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(60))
        // The first want needs no round trip to agree on a protocol.
        .with_substream_upgrade_protocol_override(Version::V1Lazy);
    Ok(Swarm::new(
        transport,
        bitswap,
        key.public().to_peer_id(),
        config,
    ))
}
