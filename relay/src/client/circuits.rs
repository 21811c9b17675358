//! The behaviour's part in circuits: dials through relays, circuits that relays bring, and their limits.

use libp2p_core::ConnectedPoint;
use libp2p_identity::PeerId;
use libp2p_swarm::{ConnectionId, ToSwarm};
use web_time::Instant;

use super::{
    Event,
    behaviour::{Behaviour, now},
    handler::Command,
    transport::{CircuitError, CircuitReply, Connection, Notice, Request},
};
use crate::{
    CircuitLimit,
    address::{CircuitAddress, RelayAddress, split_relayed},
    core::limits::Circuit,
};

/// Circuits that wait for one relay to be dialled.
const MAX_WAITING: usize = 64;

/// Notices for the transport that wait; beyond, inbound circuits are refused.
const MAX_NOTICES: usize = 256;

impl Behaviour {
    pub(super) fn on_request(&mut self, request: Request) {
        match request {
            Request::Listen(listener, address) => {
                if let Err(error) = self.name_relay(address) {
                    tracing::warn!(%error, "this relay is not listened on");
                    // One for each request, and those are bounded.
                    self.notices.push_back(Notice::Refused { listener, error });
                }
            }
            Request::Unlisten(relay) => {
                self.auto_relay.remove_relay(&relay, now());
            }
            Request::Dial { address, reply } => self.on_dial(address, reply),
        }
    }

    pub(super) fn on_dial(&mut self, address: CircuitAddress, reply: CircuitReply) {
        let CircuitAddress {
            relay,
            transport,
            destination,
        } = address;
        // A reservation's connection is known to live.
        let held = self
            .auto_relay
            .held()
            .find(|held| held.address.relay == relay)
            .map(|held| held.link);
        let newest = self
            .direct
            .get(&relay)
            .and_then(|links| links.last())
            .map(|link| link.id);
        if let Some(connection) = held.or(newest) {
            self.command(relay, connection, Command::Connect { destination, reply });
            return;
        }
        // A dial that is under way goes to every address of the relay that the core knows.
        let known = transport.is_empty()
            || self
                .auto_relay
                .addresses(&relay)
                .any(|address| *address == transport);
        let running = self.is_dialling(&relay);
        let waiting = self.waiting.entry(relay).or_default();
        let dialling = running && (known || !waiting.is_empty());
        waiting.retain(|(_, reply)| !reply.is_canceled());
        if waiting.len() >= MAX_WAITING {
            let _ = reply.send(Err(CircuitError::TooMany));
            return;
        }
        waiting.push((destination, reply));
        if !dialling {
            let addresses = if transport.is_empty() {
                Vec::new()
            } else {
                vec![transport]
            };
            self.dial(relay, addresses);
        }
    }

    pub(super) fn on_circuit(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        endpoint: &ConnectedPoint,
    ) {
        let (address, inbound) = match endpoint {
            ConnectedPoint::Dialer { address, .. } => (address, false),
            ConnectedPoint::Listener { local_addr, .. } => (local_addr, true),
        };
        let relay = split_relayed(address).and_then(|(_, relay)| relay);
        let Some(relay) = relay else {
            tracing::debug!(%peer, ?endpoint, "relayed connection through an unknown relay");
            self.circuits
                .insert(connection, Some(CircuitLimit::REFERENCE));
            return;
        };
        let circuit = Circuit {
            relay,
            peer,
            inbound,
        };
        let limit = self.limits.on_connection(circuit, now());
        self.circuits.insert(connection, limit);
        self.actions
            .push_back(ToSwarm::GenerateEvent(Event::Circuit {
                connection,
                peer,
                relay,
                limit,
            }));
    }

    pub(super) fn on_incoming(
        &mut self,
        relay: PeerId,
        connection: ConnectionId,
        source: PeerId,
        limit: Option<CircuitLimit>,
        circuit: Connection,
        now: Instant,
    ) {
        let at = self
            .direct
            .get(&relay)
            .into_iter()
            .flatten()
            .find(|link| link.id == connection)
            .and_then(|link| link.address.clone())
            .or_else(|| self.auto_relay.addresses(&relay).last().cloned());
        let Some(transport) = at else {
            return;
        };
        if self.notices.len() >= MAX_NOTICES {
            tracing::debug!(%relay, "too many circuits at once");
            return;
        }
        self.limits.on_circuit(
            Circuit {
                relay,
                peer: source,
                inbound: true,
            },
            limit,
            now,
        );
        self.notices.push_back(Notice::Incoming {
            relay: RelayAddress { relay, transport },
            source,
            circuit,
        });
    }
}
