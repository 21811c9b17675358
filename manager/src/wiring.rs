//! How the crates' answers reach each other: an event of one becomes commands to others.
//!
//! Pure: what an event means depends on the event and a few facts in [`Wiring`]. The driver executes
//! the commands.

use std::{collections::BTreeMap, time::Duration};

use anypath_bitswap::{self as bitswap, ProtocolViolation};
use anypath_dht as dht;
use anypath_discovery_mdns as mdns;
use anypath_discovery_pubsub as pubsub;
use anypath_holepunch::{self as holepunch, NatStatus};
use anypath_relay::{self as relay, client, server};
use bytes::Bytes;
use cid::Cid;
use libp2p::{Multiaddr, PeerId, StreamProtocol, gossipsub, identify, swarm::ConnectionId};

use crate::{
    autonat::Verdict,
    behaviour::BehaviourEvent,
    event::{Discovery, Event},
    strategy::{Path, best_transports},
    topic::Message,
};

/// The protocol by which DHT servers are recognised.
const KAD: StreamProtocol = StreamProtocol::new("/ipfs/kad/1.0.0");

/// A circuit that may last this long, with any number of bytes, carries the application's streams
/// like a direct connection does; a punch has long succeeded or failed by then.
const LONG_CIRCUIT: Duration = Duration::from_secs(60 * 60);

/// Tickets of one block's search that wait for the DHT at most.
const MAX_SEARCHES: usize = 4096;

/// What the driver has to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// holepunch: a peer saw us there.
    Observe {
        connection: ConnectionId,
        observer: PeerId,
        local: Option<Multiaddr>,
        observed: Multiaddr,
    },
    /// holepunch: an AutoNAT server's verdict.
    Verdict(Verdict),
    /// relay client: this peer relays.
    AddRelayCandidate {
        peer: PeerId,
        addresses: Vec<Multiaddr>,
    },
    /// relay client: a relay's own word, still to be verified.
    AddRelayAnnouncement { announcement: Bytes },
    /// relay client: all relays that announced themselves over gossipsub.
    AddAnnouncedRelays,
    /// dht: look for relays.
    FindRelays,
    /// dht: this node relays from now on, or no longer.
    ProvideRelay(bool),
    /// dht: a server of the DHT.
    AddDhtAddress {
        peer: PeerId,
        addresses: Vec<Multiaddr>,
    },
    /// dht and pubsub: look for providers of a block.
    FindProviders { ticket: bitswap::Ticket, cid: Cid },
    /// bitswap: these may have it.
    AddProviders {
        ticket: bitswap::Ticket,
        peers: Vec<PeerId>,
    },
    /// bitswap, streams, strategy: what a circuit may carry.
    SetCircuitLimit {
        peer: PeerId,
        connection: ConnectionId,
        limit: Option<bitswap::CircuitLimit>,
        limited: bool,
    },
    /// strategy: a peer that is worth a connection of its own accord.
    AutoConnect {
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        by: Discovery,
    },
    /// strategy: the punch failed.
    PunchFailed { peer: PeerId },
    /// holepunch: bitswap gets no further with a peer, although it `owes` something or is sent something.
    Doubt { peer: PeerId, owes: bool },
    /// holepunch: a peer does not answer on a direct connection; do the relays?
    DoubtRelays { peer: PeerId },
    /// strategy: a connection is of no use any more.
    ConnectionLost { connection: ConnectionId },
    /// Whether others can reach us: kad's mode follows.
    SetPublic(bool),
    /// Remember who a peer is.
    Identified { peer: PeerId, agent: String },
    /// fetch: a block came.
    Deliver {
        ticket: bitswap::Ticket,
        block: bitswap::Block,
        connection: Option<(PeerId, ConnectionId)>,
    },
    /// store: a block came that others want.
    Keep {
        ticket: bitswap::Ticket,
        block: bitswap::Block,
    },
    /// fetch: only a limited relay leads to the block.
    WaitingForDirect {
        ticket: bitswap::Ticket,
        peer: PeerId,
        allowed: u64,
    },
    /// fetch and commands: a DHT query is over.
    DhtFinished {
        ticket: dht::Ticket,
        result: Result<(), String>,
    },
    /// commands: a value is put into the DHT, at so many nodes, or is not.
    DhtPut {
        ticket: dht::Ticket,
        result: Result<usize, String>,
    },
    /// commands: what the DHT has for a key.
    DhtGot {
        ticket: dht::Ticket,
        result: Result<Option<Vec<u8>>, String>,
    },
    /// commands: providers that a DHT query found.
    DhtFound {
        ticket: dht::Ticket,
        providers: Vec<PeerId>,
    },
    /// topics: a message for those who listen.
    TopicMessage {
        topic: gossipsub::TopicHash,
        message: Message,
    },
    /// Disconnect a peer that breaks a protocol.
    Disconnect { peer: PeerId },
    /// Tell the application.
    Emit(Event),
}

/// The little that an event does not say itself.
#[derive(Debug, Default)]
pub(crate) struct Wiring {
    /// The node's end of each direct connection.
    locals: BTreeMap<ConnectionId, Option<Multiaddr>>,
    /// Which block's search a DHT query answers.
    searches: BTreeMap<dht::Ticket, bitswap::Ticket>,
    /// Blocks whose providers bitswap asked for, for those who announce them later.
    wanted: BTreeMap<Cid, bitswap::Ticket>,
    /// Whether relays are wanted at all.
    use_relays: bool,
    /// Whether relayed nodes can reach us anyway.
    public: bool,
}

impl Wiring {
    /// Nothing happened yet; `use_relays`: whether reservations are wanted at all.
    pub(crate) fn new(use_relays: bool) -> Self {
        Self {
            use_relays,
            ..Self::default()
        }
    }

    /// A direct connection came up; `local` is our end, where the transport knows it.
    pub(crate) fn on_direct(&mut self, connection: ConnectionId, local: Option<Multiaddr>) {
        self.locals.insert(connection, local);
    }

    /// A connection is gone.
    pub(crate) fn on_closed(&mut self, connection: ConnectionId) {
        self.locals.remove(&connection);
    }

    /// The DHT took up the search for a block.
    pub(crate) fn on_search(&mut self, query: dht::Ticket, ticket: bitswap::Ticket) {
        if self.searches.len() < MAX_SEARCHES {
            self.searches.insert(query, ticket);
        }
    }

    /// What follows from an event.
    pub(crate) fn on_event(&mut self, event: BehaviourEvent) -> Vec<Command> {
        match event {
            BehaviourEvent::Identify(event) => self.on_identify(event),
            BehaviourEvent::RelayClient(event) => self.on_relay_client(event),
            BehaviourEvent::RelayServer(server::Event::StatusChanged { enabled }) => {
                vec![Command::ProvideRelay(enabled)]
            }
            BehaviourEvent::Holepunch(event) => self.on_holepunch(event),
            BehaviourEvent::AutonatClient(verdict) => vec![Command::Verdict(verdict)],
            BehaviourEvent::Mdns(event) => on_mdns(event),
            BehaviourEvent::Pubsub(event) => self.on_pubsub(event),
            BehaviourEvent::Dht(event) => self.on_dht(event),
            BehaviourEvent::Bitswap(event) => {
                self.remember_wants(&event);
                on_bitswap(event)
            }
            // Counted by the driver's metrics; nobody else needs them.
            _ => Vec::new(),
        }
    }

    fn on_identify(&mut self, event: identify::Event) -> Vec<Command> {
        let identify::Event::Received {
            connection_id,
            peer_id,
            info,
        } = event
        else {
            return Vec::new();
        };
        let mut commands = vec![Command::Identified {
            peer: peer_id,
            agent: info.agent_version.clone(),
        }];
        if let Some(local) = self.locals.get(&connection_id) {
            commands.push(Command::Observe {
                connection: connection_id,
                observer: peer_id,
                local: local.clone(),
                observed: info.observed_addr.clone(),
            });
        }
        let addresses: Vec<_> = info
            .listen_addrs
            .into_iter()
            .filter(|address| Path::of(address) == Path::Direct)
            .collect();
        let addresses = best_transports(addresses);
        if info.protocols.contains(&KAD) {
            commands.push(Command::AddDhtAddress {
                peer: peer_id,
                addresses: addresses.clone(),
            });
        }
        if self.use_relays && !self.public && info.protocols.contains(&relay::HOP_PROTOCOL_NAME) {
            commands.push(Command::AddRelayCandidate {
                peer: peer_id,
                addresses,
            });
        }
        commands
    }

    fn on_relay_client(&mut self, event: client::Event) -> Vec<Command> {
        match event {
            client::Event::Circuit {
                connection,
                peer,
                limit,
                ..
            } => {
                let limit = limit.map(|limit| bitswap::CircuitLimit {
                    bytes: limit.bytes,
                    duration: limit.duration,
                });
                vec![Command::SetCircuitLimit {
                    peer,
                    connection,
                    limit,
                    limited: limit.is_some_and(|limit| {
                        limit.bytes.is_some()
                            || limit
                                .duration
                                .is_some_and(|duration| duration < LONG_CIRCUIT)
                    }),
                }]
            }
            client::Event::Reserved {
                relay,
                address,
                renewal: false,
                ..
            } => {
                vec![Command::Emit(Event::Reserved { relay, address })]
            }
            client::Event::CandidatesWanted { .. } => {
                vec![Command::AddAnnouncedRelays, Command::FindRelays]
            }
            client::Event::Lost { relay, why } => {
                tracing::info!(%relay, %why, "reservation lost");
                vec![Command::Emit(Event::ReservationLost { relay })]
            }
            client::Event::Failed { relay, why } => {
                tracing::debug!(%relay, %why, "no reservation");
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn on_pubsub(&self, event: pubsub::Event) -> Vec<Command> {
        match event {
            pubsub::Event::Discovered {
                peer, addresses, ..
            } => discovered(peer, addresses, Discovery::Pubsub),
            pubsub::Event::Relay { announcement, .. } if self.use_relays && !self.public => {
                vec![Command::AddRelayAnnouncement { announcement }]
            }
            pubsub::Event::Content { peer, items } => {
                let wanted = items.iter().filter_map(|item| self.wanted.get(&item.cid));
                wanted
                    .map(|ticket| Command::AddProviders {
                        ticket: *ticket,
                        peers: vec![peer],
                    })
                    .collect()
            }
            pubsub::Event::Gossipsub(gossipsub::Event::Message { message, .. }) => {
                // Only signed messages come here, so there is a source.
                let message = message.source.map(|from| Command::TopicMessage {
                    topic: message.topic,
                    message: Message {
                        from,
                        data: message.data.into(),
                    },
                });
                message.into_iter().collect()
            }
            pubsub::Event::ProtocolViolation {
                peer, violation, ..
            } => {
                tracing::debug!(%peer, %violation, "bad announcement");
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn remember_wants(&mut self, event: &bitswap::Event) {
        match event {
            bitswap::Event::ProvidersWanted { ticket, cid } => {
                if self.wanted.len() >= MAX_SEARCHES {
                    self.wanted.pop_first();
                }
                self.wanted.insert(*cid, *ticket);
            }
            bitswap::Event::Block { block, .. } | bitswap::Event::Prefetched { block, .. } => {
                self.wanted.remove(block.cid());
            }
            _ => {}
        }
    }

    fn on_holepunch(&mut self, event: holepunch::Event) -> Vec<Command> {
        match event {
            holepunch::Event::NatStatusChanged { new, .. } => {
                self.public = new == NatStatus::Public;
                vec![
                    Command::SetPublic(self.public),
                    Command::Emit(Event::NatStatusChanged {
                        status: new.as_str(),
                    }),
                ]
            }
            holepunch::Event::PortMapped(mapping) => {
                tracing::info!(address = %mapping.address, by = %mapping.protocol, "the gateway has mapped a port");
                Vec::new()
            }
            holepunch::Event::PortMappingLost(mapping) => {
                tracing::info!(address = %mapping.address, by = %mapping.protocol, "a mapped port is gone");
                Vec::new()
            }
            // Of a circuit it may be the relay's doing, which is found out otherwise.
            holepunch::Event::AnswerLate { peer, connection }
                if self.locals.contains_key(&connection) =>
            {
                vec![Command::DoubtRelays { peer }]
            }
            holepunch::Event::ConnectionLost { peer, connection } => {
                tracing::info!(%peer, %connection, "no sign of life on a connection");
                vec![Command::ConnectionLost { connection }]
            }
            holepunch::Event::Outcome(outcome) => {
                let punched = Command::Emit(Event::Punched {
                    peer: outcome.peer,
                    result: outcome.result.map(drop).map_err(|error| error.to_string()),
                    elapsed: outcome.elapsed,
                });
                match outcome.result {
                    Ok(_) => vec![punched],
                    Err(_) => vec![Command::PunchFailed { peer: outcome.peer }, punched],
                }
            }
            _ => Vec::new(),
        }
    }

    fn on_dht(&mut self, event: dht::Event) -> Vec<Command> {
        match event {
            dht::Event::ProvidersFound {
                ticket, providers, ..
            } => match self.searches.get(&ticket) {
                Some(want) => vec![Command::AddProviders {
                    ticket: *want,
                    peers: providers,
                }],
                None => vec![Command::DhtFound { ticket, providers }],
            },
            dht::Event::FindProvidersFinished { ticket, result, .. } => {
                self.searches.remove(&ticket);
                vec![Command::DhtFinished {
                    ticket,
                    result: text(result),
                }]
            }
            dht::Event::ProvideFinished { ticket, result, .. } => {
                vec![Command::DhtFinished {
                    ticket,
                    result: text(result),
                }]
            }
            dht::Event::PutValueFinished {
                ticket,
                stored,
                result,
                ..
            } => vec![Command::DhtPut {
                ticket,
                result: text(result).map(|()| stored),
            }],
            dht::Event::GetValueFinished {
                ticket,
                value,
                result,
                ..
            } => vec![Command::DhtGot {
                ticket,
                // What was found counts, even if the search ended early.
                result: match value {
                    Some(value) => Ok(Some(value)),
                    None => text(result).map(|()| None),
                },
            }],
            _ => Vec::new(),
        }
    }
}

fn text(result: Result<(), dht::QueryError>) -> Result<(), String> {
    result.map_err(|error| error.to_string())
}

fn on_mdns(event: mdns::Event) -> Vec<Command> {
    match event {
        mdns::Event::Discovered { peer, addresses } => discovered(peer, addresses, Discovery::Mdns),
        _ => Vec::new(),
    }
}

fn discovered(peer: PeerId, addresses: Vec<Multiaddr>, by: Discovery) -> Vec<Command> {
    vec![
        Command::Emit(Event::Discovered {
            peer,
            addresses: addresses.clone(),
            by,
        }),
        Command::AutoConnect {
            peer,
            addresses,
            by,
        },
    ]
}

fn on_bitswap(event: bitswap::Event) -> Vec<Command> {
    match event {
        bitswap::Event::Block {
            ticket,
            block,
            peer,
            connection,
        } => {
            vec![Command::Deliver {
                ticket,
                block,
                connection: peer.zip(connection),
            }]
        }
        bitswap::Event::Prefetched { ticket, block, .. } => vec![Command::Keep { ticket, block }],
        bitswap::Event::ProvidersWanted { ticket, cid } => {
            vec![Command::FindProviders { ticket, cid }]
        }
        bitswap::Event::WaitingForDirect {
            ticket,
            peer,
            allowed,
        } => {
            vec![Command::WaitingForDirect {
                ticket,
                peer,
                allowed,
            }]
        }
        bitswap::Event::PeerSilent { peer, owes, .. } => vec![Command::Doubt { peer, owes }],
        bitswap::Event::ProtocolViolation { peer, violation } => {
            tracing::info!(%peer, %violation, "a peer breaks bitswap");
            match violation {
                // Bugs rather than attacks, and bounded already.
                ProtocolViolation::TooManyStreams { .. } => Vec::new(),
                _ => vec![Command::Disconnect { peer }],
            }
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
