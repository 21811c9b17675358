//! Does what the wiring makes of the behaviours' events.

use std::time::Duration;

use anypath_bitswap as bitswap;
use anypath_dht as dht;
use futures::FutureExt as _;
use libp2p::{PeerId, swarm::ConnectionId};
use tokio::sync::oneshot;
use web_time::Instant;

use super::{Driver, housekeeping::Done, snapshots::transport_of};
use crate::{
    error::DhtError, fetch::Delivery, node::now, strategy::Path, unrelayed::Unrelayed, wiring,
};

/// How soon the relays are asked for a sign of life again.
const RELAYS_AGAIN: Duration = Duration::from_secs(10);

/// Who waits for a DHT query.
pub(super) enum DhtWaiter {
    Provide(oneshot::Sender<Result<(), DhtError>>),
    Find(Vec<PeerId>, oneshot::Sender<Result<Vec<PeerId>, DhtError>>),
    Put(oneshot::Sender<Result<usize, DhtError>>),
    Get(oneshot::Sender<Result<Option<Vec<u8>>, DhtError>>),
    /// The search for relays, see [`Driver::find_relays`].
    Relays,
}

impl Driver {
    pub(super) fn on_wiring(&mut self, command: wiring::Command) {
        use wiring::Command as Wire;
        let now = now();
        let failed = |reason: String| DhtError::Query(reason.into());
        let behaviour = self.swarm.behaviour_mut();
        match command {
            Wire::Observe {
                connection,
                observer,
                local,
                observed,
            } => {
                behaviour
                    .holepunch
                    .on_observed(connection, observer, local, observed);
                self.strategy.on_observed(now);
            }
            Wire::Verdict(verdict) => {
                behaviour
                    .holepunch
                    .on_autonat(verdict.server, verdict.address, verdict.reachable);
            }
            Wire::AddRelayCandidate { peer, addresses } => {
                behaviour.relay_client.add_candidate(peer, addresses);
            }
            Wire::AddRelayAnnouncement { announcement } => self.add_relay(&announcement),
            Wire::AddAnnouncedRelays => self.add_announced_relays(),
            Wire::FindRelays => self.find_relays(),
            Wire::ProvideRelay(relays) => self.provide_relay(relays),
            Wire::AddDhtAddress { peer, addresses } => {
                if let Some(dht) = behaviour.dht.as_mut().map(Unrelayed::inner_mut) {
                    for address in addresses {
                        dht.add_address(peer, address);
                    }
                }
            }
            Wire::FindProviders { ticket, cid } => {
                if let Some(pubsub) = behaviour.pubsub.as_ref().map(Unrelayed::inner) {
                    let peers: Vec<_> = pubsub.core().providers(&cid).copied().collect();
                    if !peers.is_empty() {
                        behaviour.bitswap.add_providers(ticket, peers);
                    }
                }
                if let Some(dht) = behaviour.dht.as_mut().map(Unrelayed::inner_mut) {
                    let query = dht.find_providers(cid);
                    self.wiring.on_search(query, ticket);
                }
            }
            Wire::AddProviders { ticket, peers } => behaviour.bitswap.add_providers(ticket, peers),
            Wire::SetCircuitLimit {
                peer,
                connection,
                limit,
                limited,
            } => {
                behaviour.bitswap.set_circuit_limit(connection, limit);
                behaviour.streams.set_limited(peer, connection, limited);
                self.strategy.on_circuit(connection, limited);
                if let Some(state) = self.peers.get_mut(&peer)
                    && let Some(connection) = state.connections.get_mut(&connection)
                {
                    connection.limited = limited;
                }
            }
            Wire::AutoConnect {
                peer,
                addresses,
                by,
            } => self.auto_connect(peer, addresses, by),
            Wire::PunchFailed { peer } => self.strategy.on_punch_failed(peer, now),
            Wire::Doubt { peer, owes } => self.doubt(peer, owes),
            Wire::DoubtRelays { peer } => self.doubt_relays(peer),
            Wire::ConnectionLost { connection } => self.strategy.on_lost(connection, now),
            Wire::SetPublic(public) => self.set_public(public),
            Wire::Identified { peer, agent } => {
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.agent = Some(agent);
                }
            }
            Wire::Deliver {
                ticket,
                block,
                connection,
            } => self.deliver(ticket, block, connection),
            Wire::Keep { ticket, block } => self.keep(ticket, block),
            Wire::WaitingForDirect {
                ticket,
                peer,
                allowed,
            } => {
                self.fetches.on_waiting(ticket, peer, allowed, now);
            }
            Wire::DhtFound { ticket, providers } => match self.dht_waiters.get_mut(&ticket) {
                Some(DhtWaiter::Find(found, _)) => found.extend(providers),
                Some(DhtWaiter::Relays) => self.on_relays_found(providers),
                Some(DhtWaiter::Provide(_) | DhtWaiter::Put(_) | DhtWaiter::Get(_)) | None => {}
            },
            Wire::DhtPut { ticket, result } => {
                if let Some(DhtWaiter::Put(reply)) = self.dht_waiters.remove(&ticket) {
                    drop(reply.send(result.map_err(failed)));
                }
            }
            Wire::DhtGot { ticket, result } => {
                if let Some(DhtWaiter::Get(reply)) = self.dht_waiters.remove(&ticket) {
                    drop(reply.send(result.map_err(failed)));
                }
            }
            Wire::DhtFinished { ticket, result } => {
                match self.dht_waiters.remove(&ticket) {
                    Some(DhtWaiter::Provide(reply)) => drop(reply.send(result.map_err(failed))),
                    // What was found counts, even if the search ended early.
                    Some(DhtWaiter::Find(found, reply)) if !found.is_empty() => {
                        drop(reply.send(Ok(found)));
                    }
                    Some(DhtWaiter::Find(found, reply)) => {
                        drop(reply.send(result.map(|()| found).map_err(failed)));
                    }
                    Some(DhtWaiter::Relays) => self.on_relay_search_finished(),
                    Some(DhtWaiter::Put(_) | DhtWaiter::Get(_)) | None => {}
                }
            }
            Wire::TopicMessage { topic, message } => {
                self.on_topic_message(topic.as_str(), message);
            }
            Wire::Disconnect { peer } => {
                let _ = self.swarm.disconnect_peer_id(peer);
            }
            Wire::Emit(event) => self.emit(event),
        }
    }

    /// Bitswap gets no further with a peer: the connection that it uses, and the others, would be next. Over QUIC a question overtakes whatever
    /// else is sent; where all streams have one order it is asked only on connections on which nothing else can be in the way of its answer.
    fn doubt(&mut self, peer: PeerId, owes: bool) {
        let Some(state) = self.peers.get(&peer) else {
            return;
        };
        let behaviour = self.swarm.behaviour_mut();
        let reservations = behaviour.relay_client.reservations();
        let is_relay = reservations.iter().any(|held| held.relay == peer);
        for (id, known) in &state.connections {
            let is_quic = known.path == Path::Direct && transport_of(&known.address) == "quic";
            let is_free = owes && !is_relay && behaviour.streams.streams_on(*id) == 0;
            if is_quic || is_free {
                behaviour.holepunch.doubt(peer, *id);
            }
        }
    }

    /// A peer does not answer. If that is not the peer's fault, nobody hears this node, and nobody reaches it over its relays either.
    fn doubt_relays(&mut self, peer: PeerId) {
        let now = now();
        let is_soon = |at: Instant| now.saturating_duration_since(at) < RELAYS_AGAIN;
        if self.relays_doubted.is_some_and(is_soon) {
            return;
        }
        self.relays_doubted = Some(now);
        let behaviour = self.swarm.behaviour_mut();
        for held in behaviour.relay_client.reservations() {
            let relay = held.relay;
            if relay == peer {
                continue;
            }
            let known = self.peers.get(&relay).into_iter();
            for (id, known) in known.flat_map(|state| &state.connections) {
                if transport_of(&known.address) == "quic" {
                    behaviour.holepunch.doubt(relay, *id);
                }
            }
        }
    }

    pub(super) fn set_public(&mut self, public: bool) {
        let public = public || !self.config.external_addrs().is_empty();
        self.swarm
            .behaviour_mut()
            .relay_client
            .on_reachability(public);
        if let Some(dht) = self.dht() {
            dht.set_mode(if public {
                dht::Mode::Server
            } else {
                dht::Mode::Client
            });
        }
    }

    /// Stores a block that others want.
    fn keep(&mut self, ticket: bitswap::Ticket, block: bitswap::Block) {
        let store = self.store.clone();
        let (cid, data) = block.into_parts();
        let bytes = data.len();
        self.jobs.push(
            async move {
                if let Err(error) = store.put(cid, data).await {
                    tracing::debug!(%cid, %error, "a prefetched block is not kept");
                }
                Done::Kept(ticket, cid, bytes)
            }
            .boxed(),
        );
    }

    fn deliver(
        &mut self,
        ticket: bitswap::Ticket,
        block: bitswap::Block,
        connection: Option<(PeerId, ConnectionId)>,
    ) {
        let bytes = block.data().len();
        let path = connection.and_then(|(peer, connection)| {
            Some(self.peers.get(&peer)?.connections.get(&connection)?.path)
        });
        match self.fetches.deliver(ticket, block, path, now()) {
            Some(Delivery { ticket, cid, data }) => {
                let store = self.store.clone();
                self.jobs.push(
                    async move {
                        // The block is delivered whether or not there is room for it.
                        if let Err(error) = store.put(cid, data).await {
                            tracing::debug!(%cid, %error, "a fetched block is not kept");
                        }
                        Done::Stored(ticket, cid, bytes)
                    }
                    .boxed(),
                );
            }
            None => self.swarm.behaviour_mut().bitswap.taken(ticket, bytes),
        }
    }
}
