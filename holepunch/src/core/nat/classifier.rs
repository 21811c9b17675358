//! Tells what a node stands behind from what happens to its packets.
//!
//! *Mapping* is read off the public sockets that peers saw: one socket of ours, several of theirs.
//! *Filtering* is read off who got in. A connection that comes from an address that this node never
//! sent to proves that strangers are let in; one from a known address but another port proves that
//! ports do not count. That nobody got in is what servers say, so several must say it. What is assumed
//! meanwhile is always the harder of two possibilities: nobody is called public who is not.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use web_time::Instant;

use super::{
    contacts::{Acquaintance, Contacts},
    endpoint::{Endpoint, Prefix, Proto},
    ports::{self, Flow},
    report::{Confidence, Filtering, Mapping, NatReport, NatType, TransportNat},
};
use crate::Config;

/// How long the claim that this node's public address has changed may stand alone before it is
/// believed: where a second server is asked, it answers within one round trip.
const CHANGE_GRACE: Duration = Duration::from_secs(3);
/// Servers at which UDP must fail where TCP works.
const BLOCKED_SERVERS: usize = 2;
/// How long a UDP dial may go unanswered: three transmissions of a QUIC client (0, 1 and 3 times
/// its initial timeout of 1 s, RFC 9002 §6.2.2, would be 3 s; servers that answer do so at once).
const UNANSWERED: Duration = Duration::from_secs(2);
/// Servers with unanswered or answered dials that are remembered.
const MAX_SERVERS: usize = 64;
/// Listen addresses that are remembered.
const MAX_LOCALS: usize = 64;

/// A peer saw one of our flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Which socket of ours sent: the node's own ones, or one that a STUN client opened.
    pub(crate) socket: LocalSocket,
    /// Whom it sent to.
    pub(crate) destination: Endpoint,
    /// What arrived there as our address.
    pub(crate) observed: SocketAddr,
    /// When the flow began.
    pub(crate) opened: Instant,
}

/// A socket of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LocalSocket {
    /// The one that the node listens on. On TCP that is a hope: a dial that cannot have the port
    /// silently takes another one.
    Node,
    /// One of its own with this local port, certainly the same for all its samples.
    Probe(u16),
}

/// What a server found when it tried to get in. What it got through is seen here as a connection
/// and counts by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Unreached {
    /// From an address that we had sent to, but another port.
    pub(crate) from_other_port: bool,
    /// From an address that we had not sent to.
    pub(crate) from_other_address: bool,
}

/// What a gateway told of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Gateway {
    /// It maps ports on request.
    pub(crate) maps_ports: bool,
    /// Its address on the far side.
    pub(crate) outer: Option<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// What is known has changed.
    Changed { old: NatReport, new: NatReport },
    /// The network changed, or seems to have: ask all servers again, now.
    Reprobe,
}

#[derive(Debug)]
pub(crate) struct Classifier {
    config: Config,
    udp: Track,
    tcp: Track,
    /// Who got in over IPv6, whatever the transport.
    ipv6: Filters,
    listening: BTreeSet<Endpoint>,
    contacts: Contacts,
    /// Connections over UDP that are up.
    udp_live: usize,
    /// When one came up last.
    udp_answered: Option<Instant>,
    /// Servers that UDP dials began to and that did not answer yet.
    udp_unanswered: BTreeMap<Prefix, Instant>,
    tcp_answered: BTreeSet<Prefix>,
    change: Option<Change>,
    /// Who claimed a change that others denied, and what to.
    doubted: BTreeMap<Prefix, IpAddr>,
    hairpin: Option<bool>,
    gateway: Gateway,
    /// Public sockets that the gateway has agreed to.
    mapped: BTreeSet<Endpoint>,
    confirmed: BTreeSet<Endpoint>,
    report: NatReport,
    outputs: VecDeque<Output>,
}

/// A first sign that the public address is another one.
#[derive(Debug, Clone, Copy)]
struct Change {
    from: IpAddr,
    to: IpAddr,
    by: Prefix,
    at: Instant,
}

/// The evidence about one transport over IPv4.
#[derive(Debug, Default)]
struct Track {
    /// In the order in which they came.
    samples: VecDeque<(Sample, Instant)>,
    filters: Filters,
}

/// The evidence about who gets in.
#[derive(Debug, Default)]
struct Filters {
    stranger: Option<Instant>,
    other_port: Option<Instant>,
    unreached: BTreeMap<Prefix, (Unreached, Instant)>,
}

impl Classifier {
    pub(crate) fn new(config: Config) -> Self {
        let contacts = Contacts::new(config.max_contacts());
        Self {
            config,
            udp: Track::default(),
            tcp: Track::default(),
            ipv6: Filters::default(),
            listening: BTreeSet::new(),
            contacts,
            udp_live: 0,
            udp_answered: None,
            udp_unanswered: BTreeMap::new(),
            tcp_answered: BTreeSet::new(),
            change: None,
            doubted: BTreeMap::new(),
            hairpin: None,
            gateway: Gateway::default(),
            mapped: BTreeSet::new(),
            confirmed: BTreeSet::new(),
            report: NatReport::default(),
            outputs: VecDeque::new(),
        }
    }

    /// What is known.
    pub(crate) fn report(&self) -> &NatReport {
        &self.report
    }

    /// The node listens there now, on an address of one of its interfaces.
    pub(crate) fn on_listening(&mut self, at: Endpoint, now: Instant) {
        let is_new_network = !self.is_own(at.ip());
        if self.listening.len() < MAX_LOCALS {
            self.listening.insert(at);
        }
        // An interface that comes up may lead through another NAT.
        if is_new_network && !at.ip().is_loopback() && self.has_evidence() {
            self.restart(now);
        }
        self.judge(now);
    }

    /// The node no longer listens there.
    pub(crate) fn on_not_listening(&mut self, at: Endpoint, now: Instant) {
        self.listening.remove(&at);
        if !self.is_own(at.ip()) && self.has_evidence() {
            self.restart(now);
        }
        self.judge(now);
    }

    /// Packets leave for there.
    pub(crate) fn on_contact(&mut self, to: Endpoint, now: Instant) {
        self.contacts.insert(to);
        let prefix = self.prefix(to.ip());
        if to.proto == Proto::Udp
            && to.socket.is_ipv4()
            && self.udp_unanswered.len() < MAX_SERVERS
            && self.counts(to.ip())
        {
            self.udp_unanswered.entry(prefix).or_insert(now);
        }
        self.judge(now);
    }

    /// A connection to or from there is up.
    pub(crate) fn on_answer(&mut self, from: Endpoint, now: Instant) {
        let prefix = self.prefix(from.ip());
        match from.proto {
            Proto::Udp => {
                self.udp_live += 1;
                self.udp_answered = Some(now);
                self.udp_unanswered.remove(&prefix);
            }
            Proto::Tcp if self.tcp_answered.len() < MAX_SERVERS => {
                self.tcp_answered.insert(prefix);
            }
            Proto::Tcp => {}
        }
        self.judge(now);
    }

    /// A connection counted by [`on_answer`](Self::on_answer) is gone.
    pub(crate) fn on_closed(&mut self, from: Endpoint, now: Instant) {
        if from.proto == Proto::Udp {
            self.udp_live = self.udp_live.saturating_sub(1);
        }
        self.judge(now);
    }

    /// A connection came in from there.
    pub(crate) fn on_inbound(&mut self, from: Endpoint, now: Instant) {
        // From the same machine or network, or through the same NAT: no outer filter had a say.
        if !self.counts(from.ip()) || self.is_own(from.ip()) || self.is_seen_as(from.ip()) {
            return;
        }
        // Who comes by a mapped port says nothing of the others, and which one that was is not seen here.
        if from.socket.is_ipv4() && self.mapped.iter().any(|at| at.proto == from.proto) {
            return;
        }
        let acquaintance = self.contacts.acquaintance(from);
        let filters = self.filters(from);
        match acquaintance {
            Acquaintance::Stranger => filters.stranger = Some(now),
            Acquaintance::OtherPort => filters.other_port = Some(now),
            Acquaintance::Known => return,
        }
        self.judge(now);
    }

    /// A peer saw us. The flow must have been opened by this node.
    pub(crate) fn on_sample(&mut self, sample: Sample, now: Instant) {
        let destination = sample.destination;
        let comparable = destination.socket.is_ipv4() && sample.observed.is_ipv4();
        if !comparable || !self.counts(destination.ip()) || !self.counts(sample.observed.ip()) {
            return;
        }
        let by = self.prefix(destination.ip());
        self.note_change(by, sample.observed.ip(), now);
        if self.doubted.contains_key(&by) {
            return;
        }
        let max = self.config.max_samples();
        let samples = &mut self.track(destination.proto).samples;
        samples.retain(|(old, _)| {
            (old.socket, old.destination) != (sample.socket, sample.destination)
        });
        if samples.len() >= max {
            samples.pop_front();
        }
        samples.push_back((sample, now));
        self.judge(now);
    }

    /// A server of this address could not get in to the public socket `target`.
    pub(crate) fn on_unreached(
        &mut self,
        server: IpAddr,
        target: Endpoint,
        unreached: Unreached,
        now: Instant,
    ) {
        if !self.counts(server) {
            return;
        }
        let prefix = self.prefix(server);
        let max = self.config.max_verdicts_per_address();
        let votes = &mut self.filters(target).unreached;
        if !votes.contains_key(&prefix) && votes.len() >= max {
            let oldest = votes.iter().min_by_key(|(_, (_, at))| *at);
            if let Some(oldest) = oldest.map(|(prefix, _)| *prefix) {
                votes.remove(&oldest);
            }
        }
        let (vote, at) = votes.entry(prefix).or_insert((unreached, now));
        *at = now;
        vote.from_other_port |= unreached.from_other_port;
        vote.from_other_address |= unreached.from_other_address;
        self.judge(now);
    }

    /// A STUN server of this address tried to get in to a socket that had sent to it alone.
    #[cfg(feature = "stun")]
    pub(crate) fn on_filtering(&mut self, server: IpAddr, filtering: Filtering, now: Instant) {
        let target = Endpoint {
            proto: Proto::Udp,
            socket: SocketAddr::from(([0; 4], 0)),
        };
        if !self.counts(server) {
            return;
        }
        match filtering {
            Filtering::EndpointIndependent => self.udp.filters.stranger = Some(now),
            Filtering::AddressDependent => self.udp.filters.other_port = Some(now),
            Filtering::AddressAndPortDependent => {}
        }
        let unreached = Unreached {
            from_other_port: filtering == Filtering::AddressAndPortDependent,
            from_other_address: filtering != Filtering::EndpointIndependent,
        };
        if unreached != Unreached::default() {
            self.on_unreached(server, target, unreached, now);
        }
        self.judge(now);
    }

    /// A packet of ours to our own public address came back, or did not.
    pub(crate) fn on_hairpin(&mut self, works: bool, now: Instant) {
        self.hairpin = Some(works);
        self.judge(now);
    }

    /// What the gateway tells.
    pub(crate) fn on_gateway(&mut self, gateway: Gateway, now: Instant) {
        self.gateway = gateway;
        self.judge(now);
    }

    /// A port is mapped there by agreement with the gateway, or no longer.
    pub(crate) fn on_port_mapped(&mut self, at: Endpoint, mapped: bool, now: Instant) {
        if mapped && self.mapped.len() < MAX_LOCALS {
            self.mapped.insert(at);
        } else if !mapped {
            self.mapped.remove(&at);
        }
        self.judge(now);
    }

    /// An external address is confirmed, or no longer.
    pub(crate) fn on_confirmed(&mut self, at: Endpoint, confirmed: bool, now: Instant) {
        if confirmed && self.confirmed.len() < MAX_LOCALS {
            self.confirmed.insert(at);
        } else if !confirmed {
            self.confirmed.remove(&at);
        }
        self.judge(now);
    }

    /// Whether strangers are known to get in over this way: to an address of our own, or through
    /// the NAT.
    pub(crate) fn lets_strangers_in(&self, at: Endpoint) -> bool {
        let filters = match (at.socket.is_ipv4(), at.proto) {
            (false, _) => &self.ipv6,
            (true, Proto::Udp) => &self.udp.filters,
            (true, Proto::Tcp) => &self.tcp.filters,
        };
        filters.stranger.is_some() || self.mapped.contains(&at)
    }

    /// Whether this is an address of one of the node's own interfaces.
    pub(crate) fn is_own(&self, ip: IpAddr) -> bool {
        self.listening.iter().any(|own| own.ip() == ip)
    }

    /// Whether packets left for there, so that a filter may let it in.
    pub(crate) fn acquaintance(&self, from: Endpoint) -> Acquaintance {
        self.contacts.acquaintance(from)
    }

    /// Whether the node's own socket was seen there.
    pub(crate) fn is_public_socket(&self, at: Endpoint) -> bool {
        let track = match at.proto {
            Proto::Udp => &self.udp,
            Proto::Tcp => &self.tcp,
        };
        let mut samples = track.samples.iter();
        samples
            .any(|(sample, _)| sample.socket == LocalSocket::Node && sample.observed == at.socket)
    }

    /// The flows of this transport in the order in which they began, for the prediction of ports.
    pub(crate) fn flows(&self, proto: Proto) -> Vec<Flow> {
        match proto {
            Proto::Udp => flows(&self.udp),
            Proto::Tcp => flows(&self.tcp),
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if let Some(change) = self.change
            && now.saturating_duration_since(change.at) >= CHANGE_GRACE
        {
            self.accept_change(change);
        }
        let ttl = self.config.evidence_ttl();
        let fresh = |at: Instant| now.saturating_duration_since(at) < ttl;
        for track in [&mut self.udp, &mut self.tcp] {
            track.samples.retain(|(_, at)| fresh(*at));
            track.filters.retain(fresh);
        }
        self.ipv6.retain(fresh);
        self.udp_unanswered.retain(|_, since| fresh(*since));
        self.judge(now);
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let ttl = self.config.evidence_ttl();
        let tracks = [&self.udp, &self.tcp];
        let evidence = tracks
            .into_iter()
            .flat_map(|track| track.samples.iter().map(|(_, at)| *at))
            .chain(tracks.into_iter().flat_map(|track| track.filters.times()))
            .chain(self.ipv6.times())
            .map(|at| at + ttl);
        let change = self.change.map(|change| change.at + CHANGE_GRACE);
        let pending = self.change.is_none() && !self.report.udp.blocked;
        let blocked = self.udp_blocked_at().filter(|_| pending);
        evidence.chain(change).chain(blocked).min()
    }

    /// When UDP counts as blocked unless something answers: where nothing did for long, and two
    /// servers that TCP works with do not.
    fn udp_blocked_at(&self) -> Option<Instant> {
        if self.udp_live > 0 {
            return None;
        }
        let mut due: Vec<Instant> = self
            .udp_unanswered
            .iter()
            .filter(|(server, _)| self.tcp_answered.contains(server))
            .map(|(_, since)| *since + UNANSWERED)
            .collect();
        due.sort_unstable();
        let due = *due.get(BLOCKED_SERVERS - 1)?;
        let worked = self.udp_answered.map(|at| at + self.config.evidence_ttl());
        Some(worked.map_or(due, |until| until.max(due)))
    }

    fn has_evidence(&self) -> bool {
        [&self.udp, &self.tcp]
            .into_iter()
            .any(|track| !track.samples.is_empty() || track.filters.times().next().is_some())
            || self.ipv6.times().next().is_some()
    }

    /// Another network: nothing of what was found out holds there.
    fn restart(&mut self, now: Instant) {
        self.udp = Track::default();
        self.tcp = Track::default();
        self.ipv6 = Filters::default();
        self.contacts.clear();
        self.udp_answered = None;
        self.udp_unanswered.clear();
        self.tcp_answered.clear();
        self.change = None;
        self.doubted.clear();
        self.hairpin = None;
        self.outputs.push_back(Output::Reprobe);
        self.judge(now);
    }

    /// Watches for another public address. One server's word is checked with the others.
    fn note_change(&mut self, by: Prefix, seen: IpAddr, now: Instant) {
        let known = self.external();
        if self.doubted.get(&by) != Some(&seen) {
            self.doubted.remove(&by);
        }
        match (self.change, known) {
            (None, Some(from)) if from != seen && !self.doubted.contains_key(&by) => {
                self.change = Some(Change {
                    from,
                    to: seen,
                    by,
                    at: now,
                });
                self.outputs.push_back(Output::Reprobe);
            }
            (Some(change), _) if change.by == by => {}
            (Some(change), _) if change.to == seen => self.accept_change(change),
            (Some(change), _) if change.from == seen => {
                self.change = None;
                if self.doubted.len() < MAX_SERVERS {
                    self.doubted.insert(change.by, change.to);
                }
                let (v4, v6) = (self.config.prefix_v4(), self.config.prefix_v6());
                for track in [&mut self.udp, &mut self.tcp] {
                    track.samples.retain(|(sample, _)| {
                        Prefix::of(sample.destination.ip(), v4, v6) != change.by
                    });
                }
            }
            _ => {}
        }
    }

    fn accept_change(&mut self, change: Change) {
        self.change = None;
        self.doubted.clear();
        for track in [&mut self.udp, &mut self.tcp] {
            track.samples.retain(|(_, at)| *at >= change.at);
            track.filters = Filters::default();
        }
        self.hairpin = None;
    }

    /// The public IPv4 address, where the servers agree on one.
    fn external(&self) -> Option<IpAddr> {
        [(Proto::Udp, &self.udp), (Proto::Tcp, &self.tcp)]
            .into_iter()
            .find_map(|(proto, track)| self.judge_mapping(proto, track)?.2)
            .map(|socket| socket.ip())
    }

    fn is_seen_as(&self, ip: IpAddr) -> bool {
        [&self.udp, &self.tcp].into_iter().any(|track| {
            let mut samples = track.samples.iter();
            samples.any(|(sample, _)| sample.observed.ip() == ip)
        })
    }

    /// Whether it lies beyond every NAT of ours.
    fn counts(&self, ip: IpAddr) -> bool {
        crate::address::is_beyond_nats(ip, self.config.allow_loopback())
    }

    fn prefix(&self, ip: IpAddr) -> Prefix {
        Prefix::of(ip, self.config.prefix_v4(), self.config.prefix_v6())
    }

    fn track(&mut self, proto: Proto) -> &mut Track {
        match proto {
            Proto::Udp => &mut self.udp,
            Proto::Tcp => &mut self.tcp,
        }
    }

    fn filters(&mut self, of: Endpoint) -> &mut Filters {
        if of.socket.is_ipv4() {
            &mut self.track(of.proto).filters
        } else {
            &mut self.ipv6
        }
    }

    fn judge(&mut self, now: Instant) {
        if self.change.is_some() {
            // Half of the evidence is about another network, and it is not known which half.
            return;
        }
        let udp_blocked = self.udp_blocked_at().is_some_and(|at| at <= now);
        let udp = self.judge_track(Proto::Udp, None);
        let tcp = self.judge_track(Proto::Tcp, udp.mapping);
        let outer = self.gateway.outer;
        let new = NatReport {
            udp: TransportNat {
                blocked: udp_blocked,
                ..udp
            },
            tcp,
            double_nat: outer.map(|outer| {
                !self.counts(outer) || self.external().is_some_and(|seen| seen != outer)
            }),
            hairpin: self.hairpin,
            ipv6_firewall: self
                .ipv6
                .judge(self.config.filtering_servers())
                .map(|(filtering, _)| filtering != Filtering::EndpointIndependent),
        };
        if new != self.report {
            let old = std::mem::replace(&mut self.report, new);
            self.outputs.push_back(Output::Changed { old, new });
        }
    }

    fn judge_track(&self, proto: Proto, udp: Option<Mapping>) -> TransportNat {
        let track = match proto {
            Proto::Udp => &self.udp,
            Proto::Tcp => &self.tcp,
        };
        let mapping = self.judge_mapping(proto, track).filter(|(mapping, _, _)| {
            // TCP dials that could not have the listen port look as if each had been mapped anew.
            let certain = track
                .samples
                .iter()
                .any(|(sample, _)| sample.socket != LocalSocket::Node);
            mapping.is_endpoint_independent()
                || proto == Proto::Udp
                || certain
                || udp.is_some_and(|udp| !udp.is_endpoint_independent())
        });
        let filtering = track.filters.judge(self.config.filtering_servers());
        let top = mapping.and_then(|(_, _, top)| top);
        let translated = top.is_none_or(|top| !self.is_own(top.ip()));
        let mapping_kind = mapping.map(|(mapping, _, _)| mapping);
        let filtering_kind = filtering.map(|(filtering, _)| filtering);
        let nat_type = NatType::new(mapping_kind, filtering_kind, translated);
        let confidence = match (nat_type, mapping, filtering) {
            (NatType::Unknown, ..) => 0,
            (NatType::Symmetric, Some((_, sure, _)), _) => sure,
            (_, Some((_, mapping, _)), Some((_, filtering))) => mapping.min(filtering),
            _ => 0,
        };
        TransportNat {
            nat_type,
            mapping: mapping_kind,
            filtering: filtering_kind,
            port_preserving: self.keeps_ports(proto, track),
            port_step: (nat_type == NatType::Symmetric)
                .then(|| ports::step(&flows(track)))
                .flatten(),
            blocked: false,
            confirmed: self
                .confirmed
                .iter()
                .any(|at| at.proto == proto && at.socket.is_ipv4()),
            can_map_port: self.gateway.maps_ports,
            confidence: Confidence::new(confidence),
        }
    }

    /// The mapping, how sure that is in percent, and the public socket if there is one for all.
    fn judge_mapping(
        &self,
        proto: Proto,
        track: &Track,
    ) -> Option<(Mapping, u8, Option<SocketAddr>)> {
        let sockets: BTreeSet<LocalSocket> = track.samples.iter().map(|(s, _)| s.socket).collect();
        let judged = sockets
            .into_iter()
            .filter_map(|socket| self.judge_socket(proto, track, socket));
        // Where sockets disagree, the surer one counts.
        judged.max_by_key(|(_, sure, _)| *sure)
    }

    fn judge_socket(
        &self,
        proto: Proto,
        track: &Track,
        socket: LocalSocket,
    ) -> Option<(Mapping, u8, Option<SocketAddr>)> {
        let samples = || {
            let samples = track.samples.iter().map(|(sample, _)| sample);
            samples.filter(move |sample| sample.socket == socket)
        };
        // One address of a server counts with what most of its ports saw.
        let mut by_prefix: BTreeMap<Prefix, BTreeSet<SocketAddr>> = BTreeMap::new();
        let mut servers: BTreeMap<SocketAddr, BTreeSet<Prefix>> = BTreeMap::new();
        for sample in samples() {
            let prefix = self.prefix(sample.destination.ip());
            by_prefix.entry(prefix).or_default().insert(sample.observed);
            servers.entry(sample.observed).or_default().insert(prefix);
        }
        let (top, agreeing) = servers
            .iter()
            .map(|(observed, prefixes)| (*observed, prefixes.len()))
            .max_by_key(|(_, count)| *count)?;
        let count = by_prefix.len();
        let untranslated = self.is_own(top.ip()) && agreeing * 2 > count;
        let needed = self.config.mapping_servers();
        if untranslated || (agreeing >= needed && agreeing * 3 >= count * 2) {
            return Some((Mapping::EndpointIndependent, sureness(agreeing), Some(top)));
        }
        // One server with two ports of ours from one socket.
        let by_port = by_prefix.values().any(|observed| observed.len() > 1);
        let one_socket = socket != LocalSocket::Node || self.listens_on_one_port(proto);
        if agreeing > 1 || !one_socket {
            return None;
        }
        match (by_port, count >= needed) {
            (true, enough) if enough || socket != LocalSocket::Node => {
                Some((Mapping::AddressAndPortDependent, sureness(count + 1), None))
            }
            (false, true) => {
                let ports_of_one_agree = by_prefix.keys().any(|prefix| {
                    let of_prefix =
                        samples().filter(|sample| self.prefix(sample.destination.ip()) == *prefix);
                    let ports: BTreeSet<_> = of_prefix.map(|s| s.destination.socket).collect();
                    ports.len() > 1
                });
                let mapping = if ports_of_one_agree {
                    Mapping::AddressDependent
                } else {
                    Mapping::AddressAndPortDependent
                };
                Some((mapping, sureness(count), None))
            }
            (_, false) | (true, true) => None,
        }
    }

    fn listens_on_one_port(&self, proto: Proto) -> bool {
        self.local_ports(proto).len() <= 1
    }

    fn local_ports(&self, proto: Proto) -> BTreeSet<u16> {
        self.listening
            .iter()
            .filter(|own| own.proto == proto && own.socket.is_ipv4())
            .map(|own| own.socket.port())
            .collect()
    }

    fn keeps_ports(&self, proto: Proto, track: &Track) -> Option<bool> {
        let own = self.local_ports(proto);
        let kept: Vec<bool> = track
            .samples
            .iter()
            .filter_map(|(sample, _)| match sample.socket {
                LocalSocket::Probe(local) => Some(sample.observed.port() == local),
                LocalSocket::Node if own.is_empty() => None,
                LocalSocket::Node => Some(own.contains(&sample.observed.port())),
            })
            .collect();
        let all = kept.iter().filter(|kept| **kept).count();
        // One liar among three does not count.
        (!kept.is_empty()).then_some(all * 3 >= kept.len() * 2)
    }
}

fn flows(track: &Track) -> Vec<Flow> {
    let mut flows: Vec<Flow> = track
        .samples
        .iter()
        .map(|(sample, _)| Flow {
            opened: sample.opened,
            port: sample.observed.port(),
        })
        .collect();
    flows.sort_by_key(|flow| flow.opened);
    flows
}

/// In percent, from the number of servers that agree.
fn sureness(servers: usize) -> u8 {
    match servers {
        0 => 0,
        1 => 50,
        2 => 80,
        3 => 95,
        _ => 99,
    }
}

impl Filters {
    fn judge(&self, servers: usize) -> Option<(Filtering, u8)> {
        if self.stranger.is_some() {
            return Some((Filtering::EndpointIndependent, 95));
        }
        let votes = |says: fn(&Unreached) -> bool| {
            self.unreached
                .values()
                .filter(|(vote, _)| says(vote))
                .count()
        };
        if self.other_port.is_some() {
            // A stranger may be let in as well. Until one tried, the harder is assumed.
            let tried = votes(|vote| vote.from_other_address);
            return Some((Filtering::AddressDependent, sureness(tried + 1)));
        }
        let unreached = votes(|vote| vote.from_other_port);
        (unreached >= servers).then(|| (Filtering::AddressAndPortDependent, sureness(unreached)))
    }

    fn times(&self) -> impl Iterator<Item = Instant> {
        let seen = [self.stranger, self.other_port].into_iter().flatten();
        seen.chain(self.unreached.values().map(|(_, at)| *at))
    }

    fn retain(&mut self, fresh: impl Fn(Instant) -> bool) {
        self.stranger = self.stranger.filter(|at| fresh(*at));
        self.other_port = self.other_port.filter(|at| fresh(*at));
        self.unreached.retain(|_, (_, at)| fresh(*at));
    }
}

#[cfg(test)]
#[path = "classifier_tests.rs"]
mod tests;
