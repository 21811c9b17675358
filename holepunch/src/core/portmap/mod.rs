//! Asks the gateway to send what arrives at public ports to this node, and keeps the mappings.
//!
//! One gateway, the default route's, is asked at once by PCP, NAT-PMP and UPnP; of those that answer the
//! first of that order maps the ports, and where it refuses, the next. Whatever else answers is not
//! listened to. A gateway that restarted gives itself away by its epoch (PCP, NAT-PMP) or by not knowing
//! the mapping (UPnP), and is asked again.

mod nat_pmp;
mod pcp;
mod session;
pub(crate) mod upnp;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use web_time::Instant;

use self::{
    session::{Session, Verdict},
    upnp::{Answer, Call, Service},
};
use crate::{
    Config,
    address::{Scope, is_beyond_nats, without_peer},
    core::nat::{Endpoint, Gateway, Proto},
};

/// Where gateways listen for PCP and NAT-PMP (RFC 6887 §19.3).
pub(crate) const SERVER_PORT: u16 = 5351;
/// Listen addresses that are looked at, and ports of them that are mapped.
const MAX_LISTENERS: usize = 64;
const MAX_PORTS: usize = 16;
/// When a probe is sent: at once, and twice more if nothing answers (RFC 6886 §3.1 begins with 250 ms).
const PROBES: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(250),
    Duration::from_millis(750),
];
/// How long PCP may answer after NAT-PMP did.
const PCP_GRACE: Duration = Duration::from_millis(300);
/// How long either may answer before UPnP is taken.
const DATAGRAM_GRACE: Duration = Duration::from_secs(1);
/// How long UPnP may take until its description is read: the answers to a search may be a second late (`MX`).
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// After a first failure, and at most, until the gateway is asked again.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

/// How a gateway was asked for a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum MappingProtocol {
    /// Port Control Protocol, [RFC 6887](https://www.rfc-editor.org/rfc/rfc6887).
    Pcp,
    /// NAT Port Mapping Protocol, [RFC 6886](https://www.rfc-editor.org/rfc/rfc6886).
    NatPmp,
    /// UPnP Internet Gateway Device.
    Upnp,
}

impl MappingProtocol {
    /// A short name for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pcp => "pcp",
            Self::NatPmp => "nat-pmp",
            Self::Upnp => "upnp",
        }
    }
}

impl fmt::Display for MappingProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The gateway sends what arrives at `address` to `local`. That it says so; whether it is true AutoNAT
/// servers find out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct PortMapping {
    /// How it was asked.
    pub protocol: MappingProtocol,
    /// The public address, without `/p2p/…`.
    pub address: Multiaddr,
    /// The listen address that it leads to.
    pub local: Multiaddr,
}

/// A port of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortKey {
    pub(crate) proto: Proto,
    pub(crate) number: u16,
}

/// The default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) gateway: Ipv4Addr,
    /// This host's address there.
    pub(crate) local: Ipv4Addr,
}

/// What the adapter is to do or to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// Find the default route and answer with [`PortMapper::on_route`].
    FindRoute,
    /// Send this to [`SERVER_PORT`] of the gateway.
    Send(Vec<u8>),
    /// Make the call and answer with [`PortMapper::on_answer`]. The latest alone counts.
    Call(Call),
    Mapped(PortMapping),
    Lost(PortMapping),
    /// What the gateway is good for.
    Gateway(Gateway),
}

#[derive(Debug)]
pub(crate) struct PortMapper {
    config: Config,
    /// Unknown to everybody else: PCP's nonces come from it.
    secret: pcp::Nonce,
    listeners: BTreeSet<Multiaddr>,
    state: State,
    /// Rounds in a row in which nothing was mapped.
    failures: u32,
    /// The gateway's address on the far side, as it told last.
    outer: Option<Ipv4Addr>,
    told: Vec<PortMapping>,
    told_gateway: Gateway,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
enum State {
    /// There is no port to map.
    Idle,
    /// The adapter looks up the default route.
    Finding,
    Probing(Probe),
    Mapping(Box<Session>),
    /// Nothing maps ports here; it is tried again.
    Waiting {
        until: Instant,
    },
    /// For good.
    Closed,
}

impl PortMapper {
    /// `secret`: at random.
    pub(crate) fn new(config: Config, secret: pcp::Nonce) -> Self {
        Self {
            config,
            secret,
            listeners: BTreeSet::new(),
            state: State::Idle,
            failures: 0,
            outer: None,
            told: Vec::new(),
            told_gateway: Gateway::default(),
            outputs: VecDeque::new(),
        }
    }

    /// What the gateway has mapped.
    pub(crate) fn mappings(&self) -> &[PortMapping] {
        &self.told
    }

    /// The node listens there. Only private IPv4 addresses have ports to map.
    pub(crate) fn on_listening(&mut self, address: &Multiaddr, now: Instant) {
        let address = without_peer(address);
        if is_mappable(&address) && self.listeners.len() < MAX_LISTENERS {
            self.listeners.insert(address);
            self.on_listeners_changed(now);
        }
    }

    /// It no longer does.
    pub(crate) fn on_not_listening(&mut self, address: &Multiaddr, now: Instant) {
        if self.listeners.remove(&without_peer(address)) {
            self.on_listeners_changed(now);
        }
    }

    fn on_listeners_changed(&mut self, now: Instant) {
        match &self.state {
            State::Idle | State::Waiting { .. } => self.find(),
            // Another network: its gateway knows nothing of our mappings, and the old one is out of reach.
            State::Mapping(session)
                if self.ports(session.local()).is_empty() && !self.listeners.is_empty() =>
            {
                self.find();
            }
            State::Mapping(_) | State::Finding | State::Probing(_) | State::Closed => {}
        }
        self.drive(now);
    }

    fn find(&mut self) {
        if self.listeners.is_empty() {
            self.state = State::Idle;
        } else {
            self.state = State::Finding;
            self.outputs.push_back(Output::FindRoute);
        }
    }

    /// The answer to [`Output::FindRoute`].
    pub(crate) fn on_route(&mut self, route: Option<Route>, now: Instant) {
        if !matches!(self.state, State::Finding) {
            return;
        }
        match route.filter(|route| !self.ports(route.local).is_empty()) {
            Some(route) => {
                self.outputs.push_back(Output::Call(Call::Search));
                self.state = State::Probing(Probe::new(route, now));
            }
            None => self.give_up(now),
        }
        self.drive(now);
    }

    /// A datagram came.
    pub(crate) fn on_datagram(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) {
        let gateway = match &self.state {
            State::Probing(probe) => probe.route.gateway,
            State::Mapping(session) => session.gateway(),
            _ => return,
        };
        if from != SocketAddr::from((gateway, SERVER_PORT)) {
            tracing::debug!(%from, "somebody else answers for the gateway");
            return;
        }
        match &mut self.state {
            State::Probing(probe) => {
                probe.on_datagram(bytes);
                self.outer = probe.outer.or(self.outer);
            }
            State::Mapping(session) => {
                session.on_datagram(bytes, now, &mut self.outputs);
                self.outer = session.outer().or(self.outer);
            }
            _ => {}
        }
        self.drive(now);
    }

    /// The answer to the latest [`Output::Call`].
    pub(crate) fn on_answer(&mut self, answer: Answer, now: Instant) {
        match &mut self.state {
            State::Probing(probe) => probe.on_answer(answer),
            State::Mapping(session) => {
                session.on_answer(answer, now);
                self.outer = session.outer().or(self.outer);
            }
            _ => {}
        }
        self.drive(now);
    }

    /// Gives all mappings back, and asks for none any more.
    pub(crate) fn close(&mut self, now: Instant) {
        match &mut self.state {
            State::Mapping(session) => session.close(now),
            _ => self.state = State::Closed,
        }
        self.drive(now);
    }

    /// Something may be due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if matches!(self.state, State::Waiting { until } if until <= now) {
            self.find();
        }
        self.drive(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Probing(probe) => probe.poll_timeout(),
            State::Mapping(session) => session.poll_timeout(),
            State::Waiting { until } => Some(*until),
            State::Idle | State::Finding | State::Closed => None,
        }
    }

    /// Drain after every call that changes something.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn drive(&mut self, now: Instant) {
        loop {
            match &mut self.state {
                State::Probing(probe) => match probe.step(now, &mut self.outputs) {
                    Choice::Wait => break,
                    Choice::GiveUp => {
                        self.give_up(now);
                        break;
                    }
                    Choice::Use(protocol) => {
                        tracing::debug!(%protocol, gateway = %probe.route.gateway, "asking for ports");
                        let session = Session::new(
                            self.config.clone(),
                            self.secret,
                            probe.clone(),
                            protocol,
                            now,
                        );
                        self.state = State::Mapping(Box::new(session));
                    }
                },
                State::Mapping(session) => {
                    let wanted = ports(&self.listeners, session.local());
                    session.set_wanted(wanted.into_keys(), now);
                    match session.step(now, &mut self.outputs) {
                        Verdict::Holds => {
                            self.failures = 0;
                            break;
                        }
                        Verdict::Waits => break,
                        Verdict::Refused(probe) => self.state = State::Probing(probe),
                        Verdict::Gone => {
                            tracing::info!("the gateway no longer answers about mapped ports");
                            self.find();
                            break;
                        }
                        Verdict::Idle => {
                            self.find();
                            break;
                        }
                        Verdict::Closed => {
                            self.state = State::Closed;
                            break;
                        }
                    }
                }
                _ => break,
            }
        }
        self.tell();
    }

    fn give_up(&mut self, now: Instant) {
        let (first, most) = RETRY;
        let wait = first * 2u32.saturating_pow(self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting {
            until: now + wait.min(most),
        };
    }

    /// Tells what is mapped where it differs from what was told.
    fn tell(&mut self) {
        let mapped = self.mapped();
        let gateway = Gateway {
            maps_ports: !mapped.is_empty(),
            outer: self.outer.map(IpAddr::V4),
        };
        if gateway != self.told_gateway {
            self.told_gateway = gateway;
            self.outputs.push_back(Output::Gateway(gateway));
        }
        let (old, new) = (std::mem::take(&mut self.told), mapped);
        let lost = old.iter().filter(|mapping| !new.contains(mapping));
        self.outputs.extend(lost.cloned().map(Output::Lost));
        let gained = new.iter().filter(|mapping| !old.contains(mapping));
        self.outputs.extend(gained.cloned().map(Output::Mapped));
        self.told = new;
    }

    fn mapped(&self) -> Vec<PortMapping> {
        let State::Mapping(session) = &self.state else {
            return Vec::new();
        };
        let mut ports = self.ports(session.local());
        let mut mapped = Vec::new();
        for (port, external) in session.held() {
            for local in ports.remove(&port).into_iter().flatten() {
                mapped.push(PortMapping {
                    protocol: session.protocol(),
                    address: moved_to(&local, external),
                    local,
                });
            }
        }
        mapped
    }

    fn ports(&self, local: Ipv4Addr) -> BTreeMap<PortKey, Vec<Multiaddr>> {
        ports(&self.listeners, local)
    }
}

/// The ports of this address that the node listens on, with the listen addresses that share each.
fn ports(listeners: &BTreeSet<Multiaddr>, local: Ipv4Addr) -> BTreeMap<PortKey, Vec<Multiaddr>> {
    let mut ports: BTreeMap<PortKey, Vec<Multiaddr>> = BTreeMap::new();
    for address in listeners {
        let Some(at) = Endpoint::of(address).filter(|at| at.ip() == IpAddr::V4(local)) else {
            continue;
        };
        let key = PortKey {
            proto: at.proto,
            number: at.socket.port(),
        };
        if ports.len() < MAX_PORTS || ports.contains_key(&key) {
            ports.entry(key).or_default().push(address.clone());
        }
    }
    ports
}

/// Behind a NAT, by its own address.
fn is_mappable(address: &Multiaddr) -> bool {
    matches!(address.iter().next(), Some(Protocol::Ip4(_)))
        && Scope::of(address) == Scope::Private
        && Endpoint::of(address).is_some_and(|at| at.socket.port() != 0)
}

/// The address with the public socket in place of its own.
fn moved_to(address: &Multiaddr, socket: SocketAddrV4) -> Multiaddr {
    address
        .iter()
        .map(|protocol| match protocol {
            Protocol::Ip4(_) => Protocol::Ip4(*socket.ip()),
            Protocol::Udp(_) => Protocol::Udp(socket.port()),
            Protocol::Tcp(_) => Protocol::Tcp(socket.port()),
            same => same,
        })
        .collect()
}

/// Which of the protocols the gateway speaks.
#[derive(Debug, Clone)]
struct Probe {
    route: Route,
    since: Instant,
    /// When [`step`](Self::step) looked at all of it last.
    looked: Instant,
    sent: usize,
    pcp: Option<bool>,
    nat_pmp: Option<bool>,
    /// The gateway's address on the far side, by NAT-PMP.
    outer: Option<Ipv4Addr>,
    upnp: Option<Option<Service>>,
    /// Those that mapped nothing.
    refused: Vec<MappingProtocol>,
}

enum Choice {
    Wait,
    Use(MappingProtocol),
    GiveUp,
}

impl Probe {
    fn new(route: Route, now: Instant) -> Self {
        Self {
            route,
            since: now,
            looked: now,
            sent: 0,
            pcp: None,
            nat_pmp: None,
            outer: None,
            upnp: None,
            refused: Vec::new(),
        }
    }

    fn on_datagram(&mut self, bytes: &[u8]) {
        match pcp::decode(bytes) {
            Some(pcp::Response::Announce { .. }) => self.pcp = Some(true),
            // It may be the answer to the request of NAT-PMP, by a gateway that knows PCP alone.
            Some(pcp::Response::Unsupported) => self.pcp = self.pcp.or(Some(false)),
            Some(pcp::Response::Map { .. }) | None => {}
        }
        match nat_pmp::decode(bytes) {
            Some(nat_pmp::Response::ExternalAddress { result, .. }) => {
                self.outer = result.ok();
                self.nat_pmp = Some(self.outer.is_some_and(is_useful));
            }
            Some(nat_pmp::Response::OnlyThis) => self.pcp = Some(false),
            Some(nat_pmp::Response::Map { .. }) | None => {}
        }
    }

    fn on_answer(&mut self, answer: Answer) {
        self.upnp = Some(match answer {
            Answer::Found(service) => Some(service),
            _ => None,
        });
    }

    fn step(&mut self, now: Instant, outputs: &mut VecDeque<Output>) -> Choice {
        self.looked = now;
        while let Some(at) = PROBES.get(self.sent)
            && now >= self.since + *at
        {
            self.sent += 1;
            if self.pcp.is_none() {
                outputs.push_back(Output::Send(pcp::announce(self.route.local)));
            }
            if self.nat_pmp.is_none() {
                outputs.push_back(Output::Send(nat_pmp::external_address()));
            }
        }
        let speaks = |protocol: MappingProtocol, answered: Option<bool>| {
            answered == Some(true) && !self.refused.contains(&protocol)
        };
        let may_come = |answered: Option<bool>, grace: Duration| {
            answered.is_none() && now < self.since + grace
        };
        let upnp = self.upnp.as_ref().map(Option::is_some);
        if speaks(MappingProtocol::Pcp, self.pcp) {
            Choice::Use(MappingProtocol::Pcp)
        } else if speaks(MappingProtocol::NatPmp, self.nat_pmp) && !may_come(self.pcp, PCP_GRACE) {
            Choice::Use(MappingProtocol::NatPmp)
        } else if may_come(self.pcp, DATAGRAM_GRACE) || may_come(self.nat_pmp, DATAGRAM_GRACE) {
            Choice::Wait
        } else if speaks(MappingProtocol::Upnp, upnp) {
            Choice::Use(MappingProtocol::Upnp)
        } else if may_come(upnp, PROBE_TIMEOUT) {
            Choice::Wait
        } else {
            Choice::GiveUp
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let due = PROBES
            .into_iter()
            .chain([PCP_GRACE, DATAGRAM_GRACE, PROBE_TIMEOUT])
            .map(|after| self.since + after);
        due.filter(|at| *at > self.looked).min()
    }
}

/// Whether an address of the gateway is one that others can send to.
fn is_useful(ip: Ipv4Addr) -> bool {
    is_beyond_nats(ip.into(), false)
}

/// `N` bytes from `at` on.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests;
