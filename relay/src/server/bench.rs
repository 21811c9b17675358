//! What the crate's benches need of its inside. No part of the API.

use std::sync::Arc;

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;
use web_time::Instant;

use super::Config;
use crate::core::server::Server;

/// A relay's decisions, with a number of reservations held.
#[derive(Debug)]
pub struct Admission {
    server: Server,
    peer: fn() -> PeerId,
    now: Instant,
    held: usize,
    next: usize,
}

impl Admission {
    /// With `held` reservations of as many peers in as many networks; `peer` makes a new one.
    ///
    /// # Panics
    ///
    /// If one of them is refused.
    #[must_use]
    pub fn new(config: Config, held: usize, peer: fn() -> PeerId, now: Instant) -> Self {
        let mut server = Server::new(peer(), Arc::new(config));
        server.set_enabled(true);
        let mut admission = Self {
            server,
            peer,
            now,
            held: 0,
            next: 0,
        };
        for _ in 0..held {
            let connection = admission.connect();
            assert!(admission.server.reserve(connection, now).is_ok(), "refused");
            admission.held += 1;
        }
        admission.drain();
        admission
    }

    fn connect(&mut self) -> ConnectionId {
        let connection = ConnectionId::new_unchecked(self.next);
        let host = u32::try_from(self.next).unwrap_or_default();
        self.next += 1;
        let address = Multiaddr::from(Protocol::Ip4(host.wrapping_mul(2_654_435_761).into()));
        self.server
            .on_connected(connection, (self.peer)(), &address, false);
        connection
    }

    fn drain(&mut self) {
        while self.server.poll_output().is_some() {}
    }

    /// A peer comes, reserves and leaves. True if it got its reservation.
    pub fn newcomer(&mut self) -> bool {
        let connection = self.connect();
        let granted = self.server.reserve(connection, self.now).is_ok();
        self.server.on_disconnected(connection, self.now);
        self.drain();
        granted
    }

    /// The `index`th of those who have one asks again. True if it is granted.
    pub fn renewal(&mut self, index: usize) -> bool {
        let connection = ConnectionId::new_unchecked(index % self.held.max(1));
        let granted = self.server.reserve(connection, self.now).is_ok();
        self.drain();
        granted
    }
}
