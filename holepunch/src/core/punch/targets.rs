//! Where to dial, and as what: the part of a punch that depends on what both sides stand behind.

use std::net::IpAddr;

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;

use crate::{
    Config, PrivateCandidates, Role, Transport,
    address::{Scope, ip_of, without_peer},
    core::{
        nat::report::NatReport,
        plan::{Client, NoPunch, Plan, Plans, Side},
    },
    message::Message,
};

/// How one address is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum As {
    /// From the port that we listen on, beginning the handshake: QUIC client, TCP dialer.
    Client,
    /// TCP from the port that we listen on, leaving the beginning to the peer: with the peer's
    /// SYN it becomes a simultaneous open, without it it opens our NAT.
    Server,
    /// TCP from another port, beginning the handshake. It reaches a peer that lets us in although
    /// our NAT gives this flow a port that nobody was told.
    Stranger,
    /// QUIC from the port that we listen on: random packets that open our NAT for the peer's.
    Opener,
}

/// One dial to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) address: Multiaddr,
    pub(crate) how: As,
    /// The peer is reachable there without a punch: no need to wait for it.
    pub(crate) at_once: bool,
}

/// What is known when the addresses of the peer arrive.
pub(crate) struct Situation<'a> {
    pub(crate) config: &'a Config,
    pub(crate) peer: PeerId,
    pub(crate) role: Role,
    pub(crate) attempt: u8,
    /// As it was told to the peer.
    pub(crate) nat: &'a NatReport,
    /// Our public candidates.
    pub(crate) candidates: &'a [Multiaddr],
    /// Our addresses in our own network.
    pub(crate) local: &'a [Multiaddr],
}

/// Dials, those most likely to succeed first; or why no dial is worth it.
pub(crate) fn targets(
    situation: &Situation<'_>,
    message: &Message,
) -> Result<Vec<Target>, NoPunch> {
    let Situation { role, attempt, .. } = *situation;
    let mut targets = same_network(situation, message);
    let plans = message
        .extras
        .as_ref()
        .map(|extras| Plans::new(role, situation.nat, &extras.nat));
    if let Some(no_punch) = plans.and_then(|plans| plans.no_punch())
        && targets.is_empty()
    {
        return Err(no_punch);
    }
    for address in usable(situation, &message.addresses) {
        let transport = Transport::of(&address);
        let plan = plans.map(|plans| plans.of(transport));
        // What was believed of the NATs did not work: the first attempt's roles are given up.
        let plan = plan.filter(|plan| attempt == 1 || !plan.is_attempt());
        let mut add = |how, at_once| {
            targets.push(Target {
                address: address.clone(),
                how,
                at_once,
            });
        };
        let quic = transport == Transport::Quic;
        match plan {
            // A mapped port lets in whoever comes.
            Some(Plan::Direct | Plan::MapPort { by: Side::Peer }) => add(As::Client, true),
            Some(Plan::RelayOnly(_)) => {}
            Some(Plan::Punch { client: Client::Us } | Plan::Predict { by: Side::Us, .. }) => {
                add(As::Client, false);
            }
            // What is believed open may be open to those alone that it was tested with: one packet
            // of ours costs nothing.
            Some(
                Plan::Reversal
                | Plan::MapPort { by: Side::Us }
                | Plan::Punch {
                    client: Client::Peer,
                }
                | Plan::Predict { by: Side::Peer, .. },
            ) => add(if quic { As::Opener } else { As::Server }, false),
            Some(Plan::Punch {
                client: Client::Both,
            })
            | None => match (quic, role) {
                (true, _) | (false, Role::Responder) => add(As::Client, false),
                (false, Role::Initiator) => {
                    add(As::Server, false);
                    add(As::Stranger, false);
                }
            },
        }
    }
    Ok(targets)
}

/// Both stand behind one NAT, by their public addresses: only then are private ones looked at, and
/// of those only the ones next to our own. The responder dials; the initiator, too, if that failed.
fn same_network(situation: &Situation<'_>, message: &Message) -> Vec<Target> {
    let Some(extras) = &message.extras else {
        return Vec::new();
    };
    let policy = situation.config.private_candidates();
    if policy == PrivateCandidates::Never || !shares_address(situation, &message.addresses) {
        return Vec::new();
    }
    if situation.role == Role::Initiator && situation.attempt == 1 {
        return Vec::new();
    }
    let ours: Vec<IpAddr> = situation.local.iter().filter_map(ip_of).collect();
    let near = extras.local.iter().filter(|address| {
        let theirs = ip_of(address);
        Scope::of(address) == Scope::Private
            && theirs.is_some_and(|theirs| ours.iter().any(|own| are_neighbours(*own, theirs)))
    });
    let mut targets: Vec<Target> = Vec::new();
    for transport in [Transport::Quic, Transport::Tcp] {
        let of_it = near
            .clone()
            .filter(|address| Transport::of(address) == transport)
            .take(situation.config.max_local_dials());
        targets.extend(of_it.map(|address| Target {
            address: without_peer(address),
            how: match transport {
                Transport::Quic => As::Client,
                _ => As::Stranger,
            },
            at_once: true,
        }));
    }
    targets
}

fn shares_address(situation: &Situation<'_>, addresses: &[Multiaddr]) -> bool {
    let theirs = addresses.iter().filter_map(ip_of);
    let ours: Vec<IpAddr> = situation.candidates.iter().filter_map(ip_of).collect();
    theirs.into_iter().any(|ip| ours.contains(&ip))
}

/// The peer's addresses that may be dialled, each once.
pub(super) fn usable(situation: &Situation<'_>, addresses: &[Multiaddr]) -> Vec<Multiaddr> {
    let config = situation.config;
    let mut own = situation.candidates.iter();
    let has_public = own.any(|address| Scope::of(address) == Scope::Public);
    let mut usable: Vec<Multiaddr> = Vec::new();
    for address in addresses.iter().take(config.max_candidates()) {
        let named = address.iter().find_map(|part| match part {
            Protocol::P2p(peer) => Some(peer),
            _ => None,
        });
        let bare = without_peer(address);
        let reachable = match Scope::of(&bare) {
            Scope::Public => true,
            Scope::Loopback => config.allow_loopback(),
            // Between hosts without public addresses private ones are all there is.
            Scope::Private => match config.private_candidates() {
                PrivateCandidates::Always => true,
                PrivateCandidates::WhenNoPublic => !has_public,
                PrivateCandidates::Never => false,
            },
            Scope::Useless => false,
        };
        if reachable
            && named.is_none_or(|named| named == situation.peer)
            && can_be_punched(&bare)
            && has_family(situation, &bare)
            && !situation.candidates.contains(&bare)
            && !usable.contains(&bare)
        {
            usable.push(bare);
        }
    }
    usable
}

/// Numeric TCP and QUIC addresses, and memory in tests: nothing that makes us ask a name server or
/// speak HTTP to somebody else's machine.
fn can_be_punched(address: &Multiaddr) -> bool {
    let parts: Vec<Protocol<'_>> = address.iter().collect();
    matches!(
        parts.as_slice(),
        [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Tcp(port)] if *port != 0
    ) || matches!(
        parts.as_slice(),
        [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Udp(port), Protocol::QuicV1] if *port != 0
    ) || matches!(parts.as_slice(), [Protocol::Memory(_)])
}

/// A host without IPv6 need not try it.
fn has_family(situation: &Situation<'_>, address: &Multiaddr) -> bool {
    let Some(theirs) = ip_of(address) else {
        return true;
    };
    let own = || situation.candidates.iter().chain(situation.local);
    let mut families = own().filter_map(ip_of).map(|ip| ip.is_ipv4()).peekable();
    families.peek().is_none() || families.any(|is_ipv4| is_ipv4 == theirs.is_ipv4())
}

/// One network of the usual size: 24 bits of IPv4, 64 of IPv6.
fn are_neighbours(one: IpAddr, other: IpAddr) -> bool {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            one.octets().first_chunk::<3>() == other.octets().first_chunk::<3>()
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            one.octets().first_chunk::<8>() == other.octets().first_chunk::<8>()
        }
        _ => false,
    }
}

#[cfg(test)]
#[path = "targets_tests.rs"]
mod tests;
