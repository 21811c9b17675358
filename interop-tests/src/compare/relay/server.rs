//! Both relays, with every limit lifted that loopback would reach.

use crate::compare::Error;
use crate::compare::swarm::{self, Transport};
use anypath_relay::server;
use libp2p::swarm::NetworkBehaviour;
use libp2p::{Swarm, relay};
use std::time::Duration;

/// More than any measurement opens.
const PLENTY: usize = 1 << 16;
/// More than all peers of a measurement ask.
const ANY_RATE: server::RateLimit = server::RateLimit {
    burst: 1_000_000,
    interval: Duration::ZERO,
};
/// Longer than any measurement takes.
const LONG: Duration = Duration::from_secs(60 * 60);

pub(super) async fn ours(transport: Transport, defended: bool) -> Result<(), Error> {
    let config = server::Config::builder()
        .max_reservations(PLENTY)
        .max_reservations_per_peer(PLENTY)
        .max_circuits(PLENTY)
        .max_circuits_per_peer(PLENTY)
        .max_reservations_per_ip(None)
        .max_reservations_per_prefix(None)
        .max_circuits_per_ip(None)
        .max_circuits_per_prefix(None)
        .max_circuit_duration(LONG)
        .max_circuit_bytes(None)
        .rate_limits(defended)
        .requests_per_ip(ANY_RATE)
        .requests_per_prefix(ANY_RATE)
        .build()?;
    let swarm = swarm::direct_with(|key| {
        let mut behaviour = server::Behaviour::new(key, config);
        behaviour.set_status(server::Status::Enabled);
        behaviour
    })?;
    run(swarm, transport).await
}

pub(super) async fn stock(transport: Transport, defended: bool) -> Result<(), Error> {
    let limits = relay::Config::default();
    // The first limiter is the one for each peer.
    let reservation_rate_limiters = limits.reservation_rate_limiters.into_iter();
    let config = relay::Config {
        max_reservations: PLENTY,
        max_reservations_per_peer: PLENTY,
        reservation_rate_limiters: reservation_rate_limiters
            .take(usize::from(defended))
            .collect(),
        max_circuits: PLENTY,
        max_circuits_per_peer: PLENTY,
        max_circuit_duration: LONG,
        // Any number (copy_future.rs).
        max_circuit_bytes: 0,
        circuit_src_rate_limiters: Vec::new(),
        ..relay::Config::default()
    };
    run(
        swarm::direct_with(|key| relay::Behaviour::new(key.public().to_peer_id(), config))?,
        transport,
    )
    .await
}

async fn run<B: NetworkBehaviour>(mut swarm: Swarm<B>, transport: Transport) -> Result<(), Error> {
    let address = swarm::listen(&mut swarm, transport).await?;
    // A reservation lists the relay's external addresses; without one, stock clients drop it.
    swarm.add_external_address(address.clone());
    swarm::serve(&mut swarm, &address).await;
    Ok(())
}
