//! What this node announces over gossipsub, and what it makes of the announcements of others.

use std::time::Duration;

use anypath_discovery_pubsub::{self as pubsub, Content};
use anypath_relay::{Announcement, Load};
use futures::{FutureExt as _, StreamExt as _};
use libp2p::Multiaddr;

use super::Driver;
use crate::{
    behaviour::relay_server_config,
    error::AnnounceError,
    node::now,
    strategy::{Path, best_transports},
    unrelayed::Unrelayed,
};

/// How often this node's relay is described anew: its load changes.
const RELAY_INTERVAL: Duration = Duration::from_secs(60);
/// How long that description holds: five of them, as discovery-pubsub remembers it.
const RELAY_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// How long a goodbye may take to leave.
const GOODBYE: Duration = Duration::from_millis(100);

impl Driver {
    pub(super) fn pubsub(&mut self) -> Option<&mut pubsub::Behaviour> {
        self.swarm
            .behaviour_mut()
            .pubsub
            .as_mut()
            .map(Unrelayed::inner_mut)
    }

    pub(super) fn announce(&mut self, content: Content) -> Result<(), AnnounceError> {
        if !self.config.announce_content() {
            return Err(AnnounceError::Disabled);
        }
        let pubsub = self.pubsub().ok_or(AnnounceError::Disabled)?;
        pubsub
            .announce_content(content)
            .map_err(|source| AnnounceError::Refused(source.into()))
    }

    pub(super) fn discover(&mut self, rendezvous: &str) -> Result<bool, AnnounceError> {
        let topic = pubsub::rendezvous_topic(rendezvous);
        let pubsub = self.pubsub().ok_or(AnnounceError::Disabled)?;
        pubsub
            .add_topic(&topic)
            .map_err(|source| AnnounceError::Refused(source.into()))
    }

    /// Describes this node's relay to others from time to time, if others can reach it.
    pub(super) fn announce_relay(&mut self) {
        let now = now();
        if now < self.next_relay_announcement {
            return;
        }
        self.next_relay_announcement = now + RELAY_INTERVAL;
        if self.pubsub().is_none() {
            return;
        }
        let direct = self
            .swarm
            .external_addresses()
            .filter(|address| Path::of(address) == Path::Direct);
        let addresses = best_transports(direct.cloned().collect());
        let relays = self.swarm.behaviour().relay_server.is_enabled() && !addresses.is_empty();
        let announcement = relays
            .then(|| self.relay_announcement(&addresses))
            .flatten();
        if let Some(pubsub) = self.pubsub()
            && let Err(error) = pubsub.set_relay(announcement.map(Into::into))
        {
            tracing::debug!(%error, "this relay is not announced");
        }
    }

    fn relay_announcement(&self, addresses: &[Multiaddr]) -> Option<Vec<u8>> {
        let limits = relay_server_config(&self.config).ok()?;
        let server = &self.swarm.behaviour().relay_server;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let load = Load {
            reservations: count(server.reservations()),
            max_reservations: count(limits.max_reservations()),
            circuits: count(server.circuits()),
            max_circuits: count(limits.max_circuits()),
        };
        let (limit, now) = (limits.circuit_limit(), wall_clock());
        Announcement::sign(&self.keypair, addresses, load, limit, now, RELAY_LIFETIME)
            .inspect_err(|error| tracing::debug!(%error, "this relay cannot sign"))
            .ok()
    }

    /// A relay announced itself: a candidate, if its signature holds.
    pub(super) fn add_relay(&mut self, announcement: &[u8]) {
        match Announcement::verify(announcement, wall_clock()) {
            Ok(announcement) => self
                .swarm
                .behaviour_mut()
                .relay_client
                .add_announcement(announcement),
            Err(error) => tracing::debug!(%error, "a relay's announcement is not used"),
        }
    }

    /// All relays that announced themselves: others are not enough.
    pub(super) fn add_announced_relays(&mut self) {
        let Some(pubsub) = self.pubsub() else { return };
        let announcements: Vec<_> = pubsub
            .core()
            .relays()
            .map(|(_, announcement)| announcement.clone())
            .collect();
        for announcement in announcements {
            self.add_relay(&announcement);
        }
    }

    /// Tells those who listen that this node goes.
    pub(super) async fn say_goodbye(&mut self) {
        let Some(pubsub) = self.pubsub() else { return };
        pubsub.shutdown();
        if self.swarm.connected_peers().next().is_none() {
            return;
        }
        let mut end = futures_timer::Delay::new(GOODBYE).fuse();
        loop {
            futures::select! {
                _ = self.swarm.select_next_some() => {}
                () = end => return,
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "announcements carry wall-clock time"
)]
fn wall_clock() -> std::time::SystemTime {
    std::time::SystemTime::now()
}
