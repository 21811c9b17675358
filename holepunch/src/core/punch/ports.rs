//! Fresh local ports for the attempts after the first.
//!
//! A packet that reaches a NAT before its own host has sent may be answered by the box itself, as Linux
//! does: from then on the host's flow to that peer gets another public port, and no attempt on the same
//! pair of ports gets through; its later flows to others may get that port as well. A new port on that side
//! is not spoiled. That it does not fare like the
//! old one is a matter of order, not of clocks:
//!
//! 1. The new port sends to the addresses that the peer had in the attempt before, packets that die
//!    behind our own NAT. It is open for the peer then.
//! 2. A server tells which public port it has got.
//! 3. Only now the peer hears of it, in our `CONNECT`, dials it, and finds it open, however late. Nothing
//!    of ours arrives at the peer's NAT before the peer has sent.
//!
//! So it works with peers that know nothing of it, and each side does it on its own. The side that counts is
//! the one that was late, whose ports are spoiled; it does not know that it is, so both do it.

use std::time::Duration;

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;
use web_time::Instant;

use super::{As, Output, Punches, state::Stage};
use crate::{Role, Transport, address::ip_of, core::plan::Plan};

/// Names a port that was opened for one punch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PortId(pub(crate) u64);

/// A port to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) port: PortId,
    /// QUIC or TCP.
    pub(crate) transport: Transport,
    /// The circuit whose relay may tell what the port looks like from outside.
    pub(crate) relayed: ConnectionId,
    /// Where packets are sent that open our NAT for the peer; at most [`MAX_TOWARDS`], of this transport
    /// and one IP version.
    pub(crate) towards: Vec<Multiaddr>,
    /// Hops that they live for.
    pub(crate) ttl: u32,
}

/// A port of a punch.
#[derive(Debug)]
pub(super) struct Port {
    id: PortId,
    transport: Transport,
    /// The attempt that did not succeed.
    after: u8,
    towards: Vec<Multiaddr>,
    seen: Seen,
    /// Whether the peer was told of it, or is just being told.
    told: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    NotYet,
    At(Multiaddr),
    Never,
}

impl Punches {
    /// A port that was to be opened is seen at this public address; `None` if it is not to be had.
    pub(crate) fn on_port(&mut self, port: PortId, public: Option<Multiaddr>, now: Instant) {
        let mut punches = self.punches.iter_mut();
        let found = punches.find_map(|(peer, punch)| {
            let port = punch.ports.iter_mut().find(|other| other.id == port)?;
            port.seen = public.clone().map_or(Seen::Never, Seen::At);
            Some((*peer, punch))
        });
        let Some((peer, punch)) = found else {
            return;
        };
        tracing::debug!(%peer, ?port, ?public, "a fresh port");
        let ready = !punch.ports.iter().any(|port| port.seen == Seen::NotYet);
        if public.is_none() {
            // Its place is free for another one.
            punch.ports.retain(|other| other.id != port);
            self.outputs.push_back(Output::ClosePort(port));
        }
        if ready && matches!(punch.stage, Stage::Preparing { .. }) {
            self.talk(peer, now);
        }
    }

    /// The next attempt, from fresh ports where they can help.
    pub(super) fn retry(&mut self, peer: PeerId, now: Instant) {
        self.open_ports(peer);
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        let is_opening = punch.ports.iter().any(|port| port.seen == Seen::NotYet);
        match punch.role {
            Role::Initiator if is_opening => {
                punch.stage = Stage::Preparing {
                    until: now + PATIENCE,
                };
            }
            Role::Initiator => self.talk(peer, now),
            // It waits for the next exchange, if there can be one.
            Role::Responder => punch.stage = Stage::Talking,
        }
    }

    /// One port for each transport, as far as there is room, and once after an attempt.
    pub(super) fn open_ports(&mut self, peer: PeerId) {
        let max = self.config.max_fresh_ports();
        let mut open: usize = self.punches.values().map(|punch| punch.ports.len()).sum();
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        let after = punch.attempt;
        if punch.ports.iter().any(|port| port.after == after) {
            return;
        }
        let (ours, peers) = (punch.told, punch.peers.unwrap_or_default());
        for transport in [Transport::Quic, Transport::Tcp] {
            let (our_nat, peers_nat) = match transport {
                Transport::Quic => (&ours.udp, &peers.udp),
                _ => (&ours.tcp, &peers.tcp),
            };
            let towards = punch.towards(transport);
            if open >= max
                || !self.own.can_open.contains(&transport)
                || towards.is_empty()
                || !Plan::new(punch.role, our_nat, peers_nat)
                    .gains_by_fresh_ports(our_nat, peers_nat)
            {
                continue;
            }
            let port = PortId(self.next_port);
            self.next_port += 1;
            open += 1;
            let nats = if ours.double_nat == Some(true) { 2 } else { 1 };
            let ttl = 1 + nats + u32::from(punch.attempt.saturating_sub(1));
            punch.ports.push(Port {
                id: port,
                transport,
                after,
                towards: towards.clone(),
                seen: Seen::NotYet,
                told: false,
            });
            self.outputs.push_back(Output::OpenPort(Opening {
                port,
                transport,
                relayed: punch.relayed,
                towards,
                ttl,
            }));
        }
    }

    /// Fresh ports that the peer is told of, the latest first.
    pub(super) fn fresh_candidates(&self, peer: PeerId) -> Vec<Multiaddr> {
        let ports = self.punches.get(&peer).map(|punch| &punch.ports);
        let seen = ports.into_iter().flatten().rev();
        seen.filter_map(|port| match &port.seen {
            Seen::At(public) => Some(public.clone()),
            Seen::NotYet | Seen::Never => None,
        })
        .collect()
    }

    /// The peer is about to be told of the ports. Sockets of TCP begin to connect before: their first SYN
    /// dies behind our own NAT, and the same socket takes the peer's.
    pub(super) fn tell_ports(&mut self, peer: PeerId) {
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        let how = match punch.role {
            Role::Initiator => As::Server,
            Role::Responder => As::Client,
        };
        let mut dials = Vec::new();
        let seen = |port: &&mut Port| matches!(port.seen, Seen::At(_));
        for port in punch.ports.iter_mut().filter(seen) {
            if !std::mem::replace(&mut port.told, true) && port.transport == Transport::Tcp {
                dials.extend(port.departures());
            }
        }
        for (port, address) in dials {
            self.dial(peer, &address, how, Some(port));
        }
    }

    /// A listening QUIC socket needs no dial of its own where the peer dials. Some implementations leave it
    /// to the responder alone, and send packets that open their NAT: by now they have.
    pub(super) fn dial_from_quic_ports(&mut self, peer: PeerId) {
        let ports = self.punches.get(&peer).map(|punch| &punch.ports);
        let told = ports.into_iter().flatten();
        let told = told.filter(|port| port.transport == Transport::Quic && port.told);
        let dials: Vec<_> = told.flat_map(Port::departures).collect();
        for (port, address) in dials {
            self.dial(peer, &address, As::Client, Some(port));
        }
    }

    pub(super) fn close_ports(&mut self, ports: Vec<Port>) {
        let closed = ports.into_iter().map(|port| Output::ClosePort(port.id));
        self.outputs.extend(closed);
    }
}

impl Port {
    fn departures(&self) -> impl Iterator<Item = (PortId, Multiaddr)> {
        self.towards
            .iter()
            .map(|address| (self.id, address.clone()))
    }
}

impl super::state::Punch {
    /// Where the peer's NAT may let through what comes from it: its addresses of one IP version.
    fn towards(&self, transport: Transport) -> Vec<Multiaddr> {
        let of_it = || {
            let known = self.peers_at.iter();
            known.filter(|address| Transport::of(address) == transport)
        };
        let is_v4 = |address: &Multiaddr| ip_of(address).is_some_and(|address| address.is_ipv4());
        let any_v4 = of_it().any(is_v4);
        of_it()
            .filter(|address| is_v4(address) == any_v4)
            .take(MAX_TOWARDS)
            .cloned()
            .collect()
    }
}

/// A round trip for the handshake and one for identify, at 200 ms, and some.
const PATIENCE: Duration = Duration::from_millis(800);

/// Addresses of the peer that a fresh port is opened for: what it had, and a fresh port of its own.
const MAX_TOWARDS: usize = 2;

/// When a responder dials from a fresh QUIC port a peer that is not one of ours. By then the other side
/// has sent even if it is late.
pub(super) const HELD_BACK: Duration = Duration::from_millis(400);
