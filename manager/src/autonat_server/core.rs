//! Whom the server dials back, at which address, and for what price: no clock, no socket.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use web_time::Instant;

/// What the limits of [`Limits`] are counted over.
const WINDOW: Duration = Duration::from_secs(60);

/// Bytes that a client sends before an address is dialled which is not its own
/// ([amplification attack prevention](https://github.com/libp2p/specs/blob/master/autonat/autonat-v2.md#amplification-attack-prevention)).
const DATA: std::ops::RangeInclusive<u64> = 30_000..=100_000;

/// How long such a dial waits at most, by chance, so that many servers that are asked at once do not all dial at once. go-libp2p waits up
/// to 3 s, of the 10 s that the clients of rust-libp2p have.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// How much the server does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Requests in a minute.
    pub(crate) requests: usize,
    /// Those of one peer.
    pub(crate) of_one_peer: usize,
    /// Requests in a minute about an address that is not the client's own.
    pub(crate) about_others: usize,
    /// Requests that are answered at a time.
    pub(crate) at_a_time: usize,
    /// Those of one peer.
    pub(crate) of_one_peer_at_a_time: usize,
}

/// go-libp2p's are 60, 12, 12 and, of one peer at a time, 2, for clients that ask about many addresses in one request. Those of rust-libp2p,
/// ours among them, ask about each address in a request of its own, up to ten at a time.
impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 300,
            of_one_peer: 60,
            about_others: 60,
            at_a_time: 64,
            of_one_peer_at_a_time: 10,
        }
    }
}

/// What of an address this node can dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transports {
    pub(crate) quic: bool,
    pub(crate) websocket: bool,
    pub(crate) webrtc: bool,
}

/// Requests that are being answered.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ongoing {
    pub(super) all: usize,
    pub(super) of_this_peer: usize,
}

/// What a request comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Too many requests; later it may be another one.
    Rejected,
    /// None of the addresses is dialled for this client.
    Refused,
    /// This one is.
    Dial {
        /// Its place in the request.
        index: u32,
        address: Multiaddr,
        /// What the client does before.
        price: Option<Price>,
    },
}

/// What a client pays for a dial to where it is not itself, as far as we see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Price {
    /// It sends so many bytes,
    pub(super) bytes: u64,
    /// and waits.
    pub(super) wait: Duration,
}

pub(super) struct Core {
    limits: Limits,
    transports: Transports,
    rng: StdRng,
    /// Requests of the last minute, the oldest first.
    requests: VecDeque<(Instant, PeerId)>,
    about_others: VecDeque<Instant>,
}

impl Core {
    pub(super) fn new(limits: Limits, transports: Transports, seed: [u8; 32]) -> Self {
        Self {
            limits,
            transports,
            rng: StdRng::from_seed(seed),
            requests: VecDeque::new(),
            about_others: VecDeque::new(),
        }
    }

    /// `from` is where the client's connection comes from.
    pub(super) fn on_request(
        &mut self,
        peer: PeerId,
        from: &Multiaddr,
        addresses: &[Option<Multiaddr>],
        ongoing: Ongoing,
        now: Instant,
    ) -> Answer {
        self.forget(now);
        let of_this_peer = self.requests.iter().filter(|(_, of)| *of == peer).count();
        if self.requests.len() >= self.limits.requests
            || of_this_peer >= self.limits.of_one_peer
            || ongoing.all >= self.limits.at_a_time
            || ongoing.of_this_peer >= self.limits.of_one_peer_at_a_time
        {
            return Answer::Rejected;
        }
        self.requests.push_back((now, peer));
        let from = Origin::of(from);
        let Some((index, address, ip)) = self.first_dialable(peer, &from, addresses) else {
            return Answer::Refused;
        };
        let price = if from.ip == Some(ip) {
            None
        } else if self.about_others.len() < self.limits.about_others {
            self.about_others.push_back(now);
            Some(self.price())
        } else {
            return Answer::Rejected;
        };
        Answer::Dial {
            index,
            address,
            price,
        }
    }

    fn forget(&mut self, now: Instant) {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= WINDOW;
        while self.requests.pop_front_if(|(at, _)| is_old(*at)).is_some() {}
        while self.about_others.pop_front_if(|at| is_old(*at)).is_some() {}
    }

    /// "The server SHOULD dial the first address in the list that it is capable of dialing."
    fn first_dialable(
        &self,
        peer: PeerId,
        from: &Origin,
        addresses: &[Option<Multiaddr>],
    ) -> Option<(u32, Multiaddr, IpAddr)> {
        let addresses = addresses.iter().zip(0_u32..);
        addresses.into_iter().find_map(|(address, index)| {
            let address = address.as_ref()?;
            let ip = self.transports.takes(address, peer)?;
            (scope(ip)? >= from.scope).then(|| (index, address.clone(), ip))
        })
    }

    fn price(&mut self) -> Price {
        Price {
            bytes: self.rng.random_range(DATA),
            wait: self.rng.random_range(Duration::ZERO..=MAX_WAIT),
        }
    }
}

impl Transports {
    /// The host of an address that we can dial to find this peer: a number and a port, for what a name stands for is not known before
    /// it is dialled, and no relay.
    fn takes(self, address: &Multiaddr, peer: PeerId) -> Option<IpAddr> {
        let mut parts = address.iter();
        let ip = ip(&parts.next()?)?;
        let rest: Vec<_> = parts
            .filter(|part| !matches!(part, Protocol::P2p(id) if *id == peer))
            .collect();
        let (port, is_dialable) = match &rest[..] {
            [Protocol::Udp(port), Protocol::QuicV1] => (*port, self.quic),
            [
                Protocol::Udp(port),
                Protocol::WebRTCDirect,
                Protocol::Certhash(_),
            ] => (*port, self.webrtc),
            [Protocol::Tcp(port)] => (*port, true),
            [Protocol::Tcp(port), rest @ ..] => (*port, self.websocket && is_websocket(rest)),
            _ => return None,
        };
        (is_dialable && port != 0).then_some(ip)
    }
}

/// Whether this is WebSocket over what comes before it.
fn is_websocket(rest: &[Protocol<'_>]) -> bool {
    matches!(
        rest,
        [Protocol::Ws(_) | Protocol::Wss(_)]
            | [Protocol::Tls, Protocol::Ws(_)]
            | [Protocol::Tls, Protocol::Sni(_), Protocol::Ws(_)]
    )
}

/// Where a client is.
struct Origin {
    /// None behind a relay: the address is the relay's.
    ip: Option<IpAddr>,
    scope: Scope,
}

impl Origin {
    fn of(from: &Multiaddr) -> Self {
        let is_relayed = from.iter().any(|part| part == Protocol::P2pCircuit);
        let ip = from
            .iter()
            .next()
            .and_then(|part| ip(&part))
            .filter(|_| !is_relayed);
        Self {
            ip,
            scope: ip.and_then(scope).unwrap_or(Scope::Internet),
        }
    }
}

fn ip(part: &Protocol<'_>) -> Option<IpAddr> {
    match part {
        Protocol::Ip4(ip) => Some(IpAddr::V4(*ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(*ip).to_canonical()),
        _ => None,
    }
}

/// From where an address can be reached. Nobody is dialled nearer than the client is itself: who asks over the internet learns nothing
/// of this host's network, and who asks from there nothing of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Host,
    Network,
    Internet,
}

/// `None` for what is nowhere: unspecified, multicast, reserved.
fn scope(ip: IpAddr) -> Option<Scope> {
    match ip {
        IpAddr::V4(ip) => scope_v4(ip),
        IpAddr::V6(ip) => scope_v6(ip),
    }
}

fn scope_v4(ip: Ipv4Addr) -> Option<Scope> {
    match ip.octets() {
        [0 | 224..=255, ..] => None,
        [127, ..] => Some(Scope::Host),
        // Of carriers' NATs: RFC 6598.
        [100, 64..=127, ..] => Some(Scope::Network),
        _ if ip.is_private() || ip.is_link_local() => Some(Scope::Network),
        _ => Some(Scope::Internet),
    }
}

fn scope_v6(ip: Ipv6Addr) -> Option<Scope> {
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        scope_v4(Ipv4Addr::new(a, b, c, d))
    };
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(Scope::Host),
        // Unspecified, and IPv4-compatible ones, which nobody uses any more (RFC 4291).
        [0, 0, 0, 0, 0, 0, ..] | [0xff00..=0xffff, ..] => None,
        // NAT64 (RFC 6052) and 6to4 (RFC 3056).
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => embedded(high, low),
        // Local NAT64 (RFC 8215), unique local, link-local and site-local ones.
        [0x64, 0xff9b, 1, ..] | [0xfc00..=0xfdff | 0xfe80..=0xfeff, ..] => Some(Scope::Network),
        _ => Some(Scope::Internet),
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
