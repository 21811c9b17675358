//! What this node stands behind, and whether others can reach it without help.

mod classifier;
mod contacts;
mod endpoint;
mod ports;
pub(crate) mod report;
mod verdicts;

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;
use web_time::Instant;

use self::{
    classifier::{Classifier, LocalSocket, Sample},
    contacts::Acquaintance,
    verdicts::Verdicts,
};
use crate::{
    Config, Transport,
    address::without_peer,
    core::probe::{Outcome, server::Answer},
};

pub(crate) use classifier::{Gateway, Unreached};
pub(crate) use endpoint::{Endpoint, Prefix, Proto};
pub use verdicts::NatStatus;

use report::NatReport;

/// What the adapter is to do or to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// The address can be dialled from outside: confirm it to the swarm.
    Confirm(Multiaddr),
    /// It no longer can: withdraw it.
    Expire(Multiaddr),
    /// Whether others can reach this node is known, or no longer known.
    StatusChanged { old: NatStatus, new: NatStatus },
    /// What is known of the NATs has changed.
    ReportChanged { old: NatReport, new: NatReport },
    /// Ask all servers again, now.
    Reprobe,
}

/// How a connection came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Dialled; `own_port`: from the port that this node listens on.
    Outbound { own_port: bool },
    /// Accepted.
    Inbound,
}

/// Everything that this node knows of its NATs.
#[derive(Debug)]
pub(crate) struct Nat {
    config: Config,
    classifier: Classifier,
    verdicts: Verdicts,
    /// Direct connections that are up; the swarm limits them.
    flows: BTreeMap<ConnectionId, Flow>,
    /// Dials that are under way and to whom; the swarm limits them.
    dials: BTreeMap<ConnectionId, PeerId>,
    outputs: VecDeque<Output>,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    peer: PeerId,
    remote: Endpoint,
    direction: Direction,
    opened: Instant,
}

impl Nat {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            classifier: Classifier::new(config.clone()),
            verdicts: Verdicts::new(config.clone()),
            config,
            flows: BTreeMap::new(),
            dials: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// The node listens on this address of one of its interfaces.
    pub(crate) fn on_listening(&mut self, address: &Multiaddr, now: Instant) {
        if let Some(at) = Endpoint::of(address) {
            self.classifier.on_listening(at, now);
            self.settle(now);
        }
    }

    /// The node no longer listens there.
    pub(crate) fn on_not_listening(&mut self, address: &Multiaddr, now: Instant) {
        if let Some(at) = Endpoint::of(address) {
            self.classifier.on_not_listening(at, now);
            self.settle(now);
        }
    }

    /// A dial begins. Its addresses are known where the dialler named them; others that it gets are
    /// known when it ends.
    pub(crate) fn on_dial(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        now: Instant,
    ) {
        if let Some(peer) = peer {
            self.dials.insert(connection, peer);
        }
        for address in addresses {
            self.on_contact(address, now);
        }
    }

    /// A dial failed, or got through after it had failed at these addresses.
    pub(crate) fn on_dial_failed<'a>(
        &mut self,
        connection: ConnectionId,
        addresses: impl IntoIterator<Item = &'a Multiaddr>,
        now: Instant,
    ) {
        self.dials.remove(&connection);
        for address in addresses {
            self.on_contact(address, now);
        }
    }

    /// Packets leave for this address: a dial, or what opens a NAT for one.
    pub(crate) fn on_contact(&mut self, address: &Multiaddr, now: Instant) {
        if let Some(to) = Endpoint::of(address) {
            self.classifier.on_contact(to, now);
            self.settle(now);
        }
    }

    /// A connection is up.
    pub(crate) fn on_connected(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        direction: Direction,
        now: Instant,
    ) {
        let Some(remote) = Endpoint::of(remote) else {
            return;
        };
        self.flows.insert(
            connection,
            Flow {
                peer,
                remote,
                direction,
                opened: now,
            },
        );
        self.dials.remove(&connection);
        // Whom we are dialling at unknown addresses may come through the hole that this made.
        let is_dialled = self.dials.values().any(|dialled| *dialled == peer);
        if direction == Direction::Inbound && !is_dialled {
            self.classifier.on_inbound(remote, now);
        }
        // Answers leave for there from now on.
        self.classifier.on_contact(remote, now);
        self.classifier.on_answer(remote, now);
        self.settle(now);
    }

    /// A connection is gone.
    pub(crate) fn on_closed(&mut self, connection: ConnectionId, now: Instant) {
        if let Some(flow) = self.flows.remove(&connection) {
            self.classifier.on_closed(flow.remote, now);
            self.settle(now);
        }
    }

    /// The peer at the other end of a connection saw this node there.
    pub(crate) fn on_observed(
        &mut self,
        connection: ConnectionId,
        observed: &Multiaddr,
        now: Instant,
    ) {
        let (Some(flow), Some(observed)) = (self.flows.get(&connection), Endpoint::of(observed))
        else {
            return;
        };
        // Who dialled us saw the address that it dialled.
        if flow.direction == (Direction::Outbound { own_port: true })
            && observed.proto == flow.remote.proto
        {
            let sample = Sample {
                socket: LocalSocket::Node,
                destination: flow.remote,
                observed: observed.socket,
                opened: flow.opened,
            };
            self.classifier.on_sample(sample, now);
            self.settle(now);
        }
    }

    /// A server tried an address.
    pub(crate) fn on_verdict(
        &mut self,
        server: PeerId,
        address: &Multiaddr,
        reachable: bool,
        now: Instant,
    ) {
        self.verdicts.on_verdict(server, address, reachable, now);
        // What got through was seen as a connection. That an address fails which nobody saw us at
        // says nothing; nor does it of WebRTC, which most servers do not speak.
        let target = Endpoint::of(address).filter(|at| {
            let unreached = !reachable && Transport::of(address) != Transport::WebRtc;
            unreached && (self.classifier.is_public_socket(*at) || self.classifier.is_own(at.ip()))
        });
        if let (Some(target), Some(from)) = (target, self.address_of(server)) {
            let dialled_from = Endpoint {
                proto: target.proto,
                socket: (from, 0).into(),
            };
            let is_stranger = self.classifier.acquaintance(dialled_from) == Acquaintance::Stranger;
            let unreached = Unreached {
                from_other_port: !is_stranger,
                from_other_address: is_stranger,
            };
            self.classifier.on_unreached(from, target, unreached, now);
        }
        self.settle(now);
    }

    /// A server at the other end of a connection said that it, or another one that it asked, could
    /// not get in to `target`.
    pub(crate) fn on_unreached(
        &mut self,
        connection: ConnectionId,
        target: Endpoint,
        unreached: Unreached,
        now: Instant,
    ) {
        if let Some(server) = self.flows.get(&connection).map(|flow| flow.remote.ip()) {
            self.classifier.on_unreached(server, target, unreached, now);
            self.settle(now);
        }
    }

    /// A server at the other end of a connection, which it had been asked over to dial back, told
    /// what came of it.
    pub(crate) fn on_probed(
        &mut self,
        connection: ConnectionId,
        observed: Option<&Multiaddr>,
        answer: &Answer,
        now: Instant,
    ) {
        let Some(flow) = self.flows.get(&connection).copied() else {
            return;
        };
        if let Some(observed) = observed {
            self.on_observed(connection, observed, now);
        }
        let helper = answer.helper.map(|ip| Endpoint {
            proto: flow.remote.proto,
            socket: (ip, 0).into(),
        });
        // What got through was seen as a connection. The helper's failure counts if it is a stranger.
        let is_stranger =
            helper.is_some_and(|from| self.classifier.acquaintance(from) == Acquaintance::Stranger);
        let unreached = Unreached {
            from_other_port: answer.from_other_port == Outcome::Unreached,
            from_other_address: answer.from_other_address == Outcome::Unreached && is_stranger,
        };
        if unreached != Unreached::default() {
            self.on_unreached(connection, flow.remote, unreached, now);
        }
    }

    /// A STUN server saw a socket that is not the node's.
    pub(crate) fn on_stun(
        &mut self,
        local_port: u16,
        server: SocketAddr,
        observed: SocketAddr,
        now: Instant,
    ) {
        let sample = Sample {
            socket: LocalSocket::Probe(local_port),
            destination: Endpoint {
                proto: Proto::Udp,
                socket: server,
            },
            observed,
            opened: now,
        };
        self.classifier.on_sample(sample, now);
        self.settle(now);
    }

    /// A STUN server tried to get in to a socket that had sent to it alone.
    #[cfg(feature = "stun")]
    pub(crate) fn on_stun_filtering(
        &mut self,
        server: SocketAddr,
        filtering: report::Filtering,
        now: Instant,
    ) {
        self.classifier.on_filtering(server.ip(), filtering, now);
        self.settle(now);
    }

    /// What the gateway tells of itself.
    pub(crate) fn on_gateway(&mut self, gateway: Gateway, now: Instant) {
        self.classifier.on_gateway(gateway, now);
        self.settle(now);
    }

    /// The gateway sends what arrives there to this node, or no longer does.
    pub(crate) fn on_port_mapped(&mut self, address: &Multiaddr, mapped: bool, now: Instant) {
        if let Some(at) = Endpoint::of(address) {
            self.classifier.on_port_mapped(at, mapped, now);
            self.settle(now);
        }
    }

    /// A packet to our own public address came back, or did not.
    pub(crate) fn on_hairpin(&mut self, works: bool, now: Instant) {
        self.classifier.on_hairpin(works, now);
        self.settle(now);
    }

    /// The operator vouches for an external address.
    pub(crate) fn on_configured(&mut self, address: &Multiaddr, now: Instant) {
        self.verdicts.on_configured(address);
        self.note_confirmed(address, true, now);
        self.settle(now);
    }

    /// The operator, or the swarm, withdrew an external address.
    pub(crate) fn on_withdrawn(&mut self, address: &Multiaddr, now: Instant) {
        self.verdicts.on_withdrawn(address);
        self.note_confirmed(address, false, now);
        self.settle(now);
    }

    fn note_confirmed(&mut self, address: &Multiaddr, confirmed: bool, now: Instant) {
        if let Some(at) = Endpoint::of(address) {
            self.classifier.on_confirmed(at, confirmed, now);
        }
    }

    /// Something may be due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.verdicts.handle_timeout(now);
        self.classifier.handle_timeout(now);
        self.settle(now);
    }

    /// Drain after every call that changes something.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let due = [self.verdicts.poll_timeout(), self.classifier.poll_timeout()];
        due.into_iter().flatten().min()
    }

    pub(crate) fn status(&self) -> NatStatus {
        self.verdicts.status()
    }

    pub(crate) fn report(&self) -> &NatReport {
        self.classifier.report()
    }

    /// Where the next flows will come from, behind a NAT that counts its ports up, the likeliest
    /// first: `address`, one that this node was seen at, with other ports.
    pub(crate) fn predicted(&self, address: &Multiaddr) -> Vec<Multiaddr> {
        let Some(at) = Endpoint::of(address).filter(|at| at.socket.is_ipv4()) else {
            return Vec::new();
        };
        let flows = self.classifier.flows(at.proto);
        let ports = ports::predict(&flows, self.config.predicted_ports());
        ports
            .into_iter()
            .map(|port| with_port(address, port))
            .collect()
    }

    fn address_of(&self, peer: PeerId) -> Option<IpAddr> {
        let mut flows = self.flows.values();
        flows
            .find(|flow| flow.peer == peer)
            .map(|flow| flow.remote.ip())
    }

    /// Brings the verdicts up to what the classifier knows, and collects what both tell.
    fn settle(&mut self, now: Instant) {
        let (config, classifier) = (&self.config, &self.classifier);
        self.verdicts.judge(|address| {
            config.believe_contacted_servers()
                || Endpoint::of(address)
                    .is_none_or(|at| classifier.is_own(at.ip()) || classifier.lets_strangers_in(at))
        });
        while let Some(output) = self.verdicts.poll_output() {
            let output = match output {
                verdicts::Output::Confirm(address) => {
                    self.note_confirmed(&address, true, now);
                    Output::Confirm(address)
                }
                verdicts::Output::Expire(address) => {
                    self.note_confirmed(&address, false, now);
                    Output::Expire(address)
                }
                verdicts::Output::StatusChanged { old, new } => Output::StatusChanged { old, new },
            };
            self.outputs.push_back(output);
        }
        while let Some(output) = self.classifier.poll_output() {
            self.outputs.push_back(match output {
                classifier::Output::Changed { old, new } => Output::ReportChanged { old, new },
                classifier::Output::Reprobe => Output::Reprobe,
            });
        }
    }
}

/// The address with another port, where it has one.
fn with_port(address: &Multiaddr, port: u16) -> Multiaddr {
    without_peer(address)
        .iter()
        .map(|protocol| match protocol {
            Protocol::Udp(_) => Protocol::Udp(port),
            Protocol::Tcp(_) => Protocol::Tcp(port),
            same => same,
        })
        .collect()
}

#[cfg(test)]
mod simulation;
