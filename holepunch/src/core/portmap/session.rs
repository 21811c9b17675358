//! One gateway that maps ports by one protocol.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use web_time::Instant;

use super::{
    MappingProtocol, Output, PortKey, Probe, is_useful, nat_pmp,
    pcp::{self, Granted, Nonce},
    upnp::{Answer, Call, Refusal, Service},
};
use crate::{Config, core::nat::Proto};

/// The first wait for an answer to a datagram; each further one is twice as long (RFC 6886 §3.1).
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Transmissions of a request: 3.75 s, where the RFC would go on for two minutes.
const TRIES: u32 = 4;
/// Of a deletion, for which a node that stops waits: 1.75 s.
const DELETE_TRIES: u32 = 3;
/// What a gateway may grant; less would be renewed all the time (RFC 6887 §15 suggests 120 s at least), and more is not
/// believed (a day, as there).
const LIFETIMES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(86_400));
/// Until a renewal that failed is tried again.
const RENEW_AGAIN: Duration = Duration::from_secs(60);
/// Queries in a row without an answer, after which the mappings count as gone.
const MAX_UNANSWERED: u32 = 6;
/// Calls in a row that fail, and the wait between them.
const MAX_FAILED_CALLS: u32 = 2;
const CALL_AGAIN: Duration = Duration::from_secs(1);
/// Public ports that are tried by UPnP, where others have the first.
const MAX_SHIFTS: u16 = 4;
/// From one to the next.
const SHIFT: u16 = 257;

/// How things stand after a step.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Ports are mapped.
    Holds,
    /// Nothing is yet.
    Waits,
    /// Nothing will be, by this protocol.
    Refused(Probe),
    /// The gateway is silent.
    Gone,
    /// No port is left to map.
    Idle,
    /// Everything was given back.
    Closed,
}

#[derive(Debug)]
pub(super) struct Session {
    config: Config,
    secret: Nonce,
    probe: Probe,
    protocol: MappingProtocol,
    ports: BTreeMap<PortKey, Port>,
    outer: Option<Ipv4Addr>,
    /// The gateway's clock, and when it said so.
    epoch: Option<(u32, Instant)>,
    /// When it was seen to have restarted last.
    restarted: Option<Instant>,
    query_at: Instant,
    unanswered: u32,
    /// Of UPnP: the call that is being made, and when the next may be.
    call: Option<Call>,
    next_call: Instant,
    /// Whether anything was ever mapped.
    has_held: bool,
    closing: bool,
}

#[derive(Debug, Default)]
struct Port {
    held: Option<Held>,
    /// A request by datagram that is not answered yet.
    ask: Option<Ask>,
    /// The gateway will not.
    refused: bool,
    /// To be given back.
    unwanted: bool,
    /// Of UPnP: public ports that others have.
    shift: u16,
    /// Of UPnP: the gateway makes only mappings without an end.
    permanent: bool,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    external: SocketAddrV4,
    renew_at: Instant,
    expires_at: Instant,
    /// The gateway has forgotten it.
    doubtful: bool,
    /// Of UPnP: when the gateway is asked whether it still knows it.
    check_at: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Ask {
    tries: u32,
    at: Instant,
}

impl Session {
    pub(super) fn new(
        config: Config,
        secret: Nonce,
        probe: Probe,
        protocol: MappingProtocol,
        now: Instant,
    ) -> Self {
        let outer = match protocol {
            MappingProtocol::NatPmp => probe.outer,
            MappingProtocol::Pcp | MappingProtocol::Upnp => None,
        };
        Self {
            query_at: match protocol {
                MappingProtocol::Upnp => now,
                _ => now + config.mapping_query_interval(),
            },
            config,
            secret,
            probe,
            protocol,
            ports: BTreeMap::new(),
            outer,
            epoch: None,
            restarted: None,
            unanswered: 0,
            call: None,
            next_call: now,
            has_held: false,
            closing: false,
        }
    }

    pub(super) fn protocol(&self) -> MappingProtocol {
        self.protocol
    }

    pub(super) fn gateway(&self) -> Ipv4Addr {
        self.probe.route.gateway
    }

    /// This host's address.
    pub(super) fn local(&self) -> Ipv4Addr {
        self.probe.route.local
    }

    /// The gateway's address on the far side, as far as it is known.
    pub(super) fn outer(&self) -> Option<Ipv4Addr> {
        self.outer
    }

    /// What is mapped where.
    pub(super) fn held(&self) -> impl Iterator<Item = (PortKey, SocketAddrV4)> {
        let ports = self.ports.iter();
        ports.filter_map(|(key, port)| Some((*key, port.held?.external)))
    }

    /// These ports are to be mapped, and no others.
    pub(super) fn set_wanted(&mut self, wanted: impl Iterator<Item = PortKey>, now: Instant) {
        let wanted: Vec<PortKey> = wanted.filter(|_| !self.closing).collect();
        for (_, port) in self.ports.iter_mut().filter(|(key, port)| {
            // One that is on its way out is given back first.
            !port.unwanted && !wanted.contains(key)
        }) {
            port.unwanted = true;
            let on_gateway = port.held.is_some() || port.ask.is_some();
            port.ask = on_gateway.then_some(Ask { tries: 0, at: now });
        }
        for key in wanted {
            self.ports.entry(key).or_default();
        }
    }

    /// Everything is to be given back.
    pub(super) fn close(&mut self, now: Instant) {
        self.closing = true;
        self.set_wanted(std::iter::empty(), now);
    }

    /// From the gateway's server.
    pub(super) fn on_datagram(
        &mut self,
        bytes: &[u8],
        now: Instant,
        outputs: &mut VecDeque<Output>,
    ) {
        match self.protocol {
            MappingProtocol::Pcp => match pcp::decode(bytes) {
                Some(pcp::Response::Announce { epoch }) => self.on_epoch(epoch, now),
                Some(pcp::Response::Map {
                    epoch,
                    nonce,
                    port,
                    result,
                }) if nonce == self.nonce(port) => {
                    self.on_epoch(epoch, now);
                    self.on_pcp_map(port, result, now, outputs);
                }
                _ => {}
            },
            MappingProtocol::NatPmp => match nat_pmp::decode(bytes) {
                Some(nat_pmp::Response::ExternalAddress { epoch, result }) => {
                    self.on_epoch(epoch, now);
                    if let Ok(outer) = result {
                        self.set_outer(outer);
                    }
                }
                Some(nat_pmp::Response::Map {
                    epoch,
                    port,
                    result,
                }) => {
                    self.on_epoch(epoch, now);
                    let granted = result.map(|(number, seconds)| Granted {
                        external: SocketAddrV4::new(
                            self.outer.unwrap_or(Ipv4Addr::UNSPECIFIED),
                            number,
                        ),
                        seconds,
                    });
                    self.on_granted(port, granted.ok(), now);
                }
                _ => {}
            },
            MappingProtocol::Upnp => {}
        }
    }

    fn on_pcp_map(
        &mut self,
        key: PortKey,
        result: Result<Granted, u8>,
        now: Instant,
        outputs: &mut VecDeque<Output>,
    ) {
        let is_asked = self.ports.get(&key).is_some_and(|port| port.ask.is_some());
        if !is_asked {
            return;
        }
        if let Ok(granted) = result
            && granted.seconds > 0
        {
            let outer = *granted.external.ip();
            self.outer = Some(outer);
            if !is_useful(outer) {
                // What nobody can send to is not kept.
                outputs.push_back(Output::Send(self.pcp_map(key, granted.external, 0)));
            }
        }
        self.on_granted(key, result.ok(), now);
    }

    /// The gateway answered a request by datagram; `None`: it refuses.
    fn on_granted(&mut self, key: PortKey, granted: Option<Granted>, now: Instant) {
        let (least, most) = LIFETIMES;
        let Some(port) = self.ports.get_mut(&key) else {
            return;
        };
        if port.ask.is_none() {
            return;
        }
        if port.unwanted {
            // A late answer to the request before does not end the deletion.
            if granted.is_none_or(|granted| granted.seconds == 0) {
                self.ports.remove(&key);
            }
            return;
        }
        port.ask = None;
        let usable = granted.filter(|granted| {
            let lifetime = Duration::from_secs(granted.seconds.into());
            is_useful(*granted.external.ip()) && granted.external.port() != 0 && lifetime >= least
        });
        match usable {
            Some(granted) => {
                let lifetime = Duration::from_secs(granted.seconds.into()).min(most);
                port.held = Some(Held {
                    external: granted.external,
                    renew_at: now + lifetime / 2,
                    expires_at: now + lifetime,
                    doubtful: false,
                    check_at: now + lifetime,
                });
            }
            None => port.fail(now),
        }
    }

    /// The gateway lives; if its clock went back, it has forgotten everything.
    fn on_epoch(&mut self, epoch: u32, now: Instant) {
        self.unanswered = 0;
        let has_restarted = self
            .epoch
            .is_some_and(|before| has_restarted(self.protocol, before, (epoch, now)));
        if has_restarted {
            // A clock that is never right would have everything asked for again with every answer.
            let since = self.restarted.map(|at| now.saturating_duration_since(at));
            if since.is_some_and(|since| since < self.config.mapping_query_interval()) {
                return;
            }
            self.restarted = Some(now);
            tracing::info!(gateway = %self.gateway(), "the gateway has restarted");
            for port in self.ports.values_mut() {
                port.forgotten(now);
            }
        }
        self.epoch = Some((epoch, now));
    }

    /// The gateway has another public address, and with it every mapping.
    fn set_outer(&mut self, outer: Ipv4Addr) {
        self.outer = Some(outer);
        for port in self.ports.values_mut() {
            if is_useful(outer)
                && let Some(held) = &mut port.held
            {
                held.external.set_ip(outer);
            } else if !is_useful(outer) {
                port.held = None;
                port.refused = true;
            }
        }
    }

    /// What came of the call.
    pub(super) fn on_answer(&mut self, answer: Answer, now: Instant) {
        let Some(call) = self.call.take() else {
            // The search, which was not waited for.
            self.probe.on_answer(answer);
            return;
        };
        if answer == Answer::Failed {
            self.unanswered += 1;
            self.next_call = now + CALL_AGAIN;
            // It need not be there any more, and who stops does not wait for it.
            if let Call::Delete { port, .. } = call {
                self.ports.remove(&port);
            }
            return;
        }
        self.unanswered = 0;
        match (call, answer) {
            (Call::ExternalAddress(_), Answer::ExternalAddress(outer)) => {
                self.query_at = now + self.config.upnp_query_interval();
                self.set_outer(outer);
            }
            // Without its address nothing can be told to others.
            (Call::ExternalAddress(_), _) => {
                self.query_at = now + self.config.upnp_query_interval();
                self.ports.values_mut().for_each(|port| port.refused = true);
            }
            (Call::Add { port, external, .. }, answer) => {
                self.on_added(port, external, &answer, now);
            }
            (Call::Entry { port, external, .. }, answer) => {
                let ours = Answer::Entry(self.local(), port.number);
                let check_at = now + self.config.upnp_query_interval();
                let unknown = Answer::Refused(Refusal::NoSuchEntry);
                if let Some(held) = self.held_at(port, external) {
                    held.check_at = check_at;
                    // A gateway that cannot tell is believed.
                    held.doubtful = answer == unknown
                        || (matches!(answer, Answer::Entry(..)) && answer != ours);
                }
            }
            (Call::Delete { port, .. }, _) => {
                self.ports.remove(&port);
            }
            (Call::Search, _) => {}
        }
    }

    fn on_added(&mut self, key: PortKey, external: u16, answer: &Answer, now: Instant) {
        let lifetime = self.config.mapping_lifetime();
        let check_at = now + self.config.upnp_query_interval();
        let (outer, Some(port)) = (self.outer, self.ports.get_mut(&key)) else {
            return;
        };
        match (answer, outer) {
            (Answer::Done, Some(outer)) => {
                port.held = Some(Held {
                    external: SocketAddrV4::new(outer, external),
                    renew_at: now + lifetime / 2,
                    expires_at: now + lifetime,
                    doubtful: false,
                    check_at,
                });
            }
            (Answer::Refused(Refusal::Conflict), _) if port.shift < MAX_SHIFTS => {
                port.held = None;
                port.shift += 1;
            }
            (Answer::Refused(Refusal::OnlyPermanent), _) if !port.permanent => {
                port.permanent = true;
            }
            _ => port.fail(now),
        }
    }

    fn held_at(&mut self, key: PortKey, external: u16) -> Option<&mut Held> {
        let held = self.ports.get_mut(&key)?.held.as_mut()?;
        (held.external.port() == external).then_some(held)
    }

    /// Does what is due.
    pub(super) fn step(&mut self, now: Instant, outputs: &mut VecDeque<Output>) -> Verdict {
        for port in self.ports.values_mut() {
            if port.held.is_some_and(|held| held.expires_at <= now) {
                port.held = None;
            }
        }
        match self.protocol {
            MappingProtocol::Pcp | MappingProtocol::NatPmp => self.send(now, outputs),
            MappingProtocol::Upnp => self.make_call(now, outputs),
        }
        let most = match self.protocol {
            MappingProtocol::Upnp => MAX_FAILED_CALLS - 1,
            _ => MAX_UNANSWERED,
        };
        if self.closing {
            return match self.ports.is_empty() {
                true => Verdict::Closed,
                false => Verdict::Waits,
            };
        }
        if self.ports.is_empty() {
            return Verdict::Idle;
        }
        let is_silent = self.unanswered > most;
        if is_silent && self.has_held {
            return Verdict::Gone;
        }
        if self.ports.values().any(|port| port.held.is_some()) {
            self.has_held = true;
            return Verdict::Holds;
        }
        if is_silent || self.ports.values().all(|port| port.refused) {
            let mut probe = self.probe.clone();
            probe.refused.push(self.protocol);
            return Verdict::Refused(probe);
        }
        Verdict::Waits
    }

    fn send(&mut self, now: Instant, outputs: &mut VecDeque<Output>) {
        let mut requests = Vec::new();
        self.ports.retain(|key, port| {
            port.ask = port
                .ask
                .or_else(|| port.wants(now).then_some(Ask { tries: 0, at: now }));
            let most = if port.unwanted { DELETE_TRIES } else { TRIES };
            match &mut port.ask {
                Some(ask) if ask.at <= now && ask.tries >= most => {
                    port.ask = None;
                    if !port.unwanted {
                        port.fail(now);
                    }
                }
                Some(ask) if ask.at <= now => {
                    ask.at = now + FIRST_WAIT * 2u32.pow(ask.tries);
                    ask.tries += 1;
                    requests.push((*key, port.unwanted, port.held.map(|held| held.external)));
                }
                _ => {}
            }
            !port.unwanted || port.ask.is_some()
        });
        for (key, unwanted, held) in requests {
            let suggested = held.unwrap_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, key.number));
            let seconds = match unwanted {
                true => 0,
                false => self.seconds(),
            };
            outputs.push_back(Output::Send(match self.protocol {
                MappingProtocol::Pcp => self.pcp_map(key, suggested, seconds),
                _ => nat_pmp::map(key, suggested.port(), seconds),
            }));
        }
        let holds = self.ports.values().any(|port| port.held.is_some());
        if now >= self.query_at && !self.closing {
            self.query_at = now + self.config.mapping_query_interval();
            if holds {
                self.unanswered += 1;
                outputs.push_back(Output::Send(match self.protocol {
                    MappingProtocol::Pcp => pcp::announce(self.local()),
                    _ => nat_pmp::external_address(),
                }));
            }
        }
    }

    /// One call at a time: home routers are slow, and their answers decide what comes next.
    fn make_call(&mut self, now: Instant, outputs: &mut VecDeque<Output>) {
        if self.call.is_some() {
            return;
        }
        self.ports
            .retain(|_, port| !port.unwanted || port.held.is_some());
        if now < self.next_call && !self.closing {
            return;
        }
        let Some(service) = self.probe.upnp.clone().flatten() else {
            return;
        };
        if let Some(call) = self.due_call(&service, now) {
            outputs.push_back(Output::Call(call.clone()));
            self.call = Some(call);
        }
    }

    fn due_call(&self, service: &Service, now: Instant) -> Option<Call> {
        let service = service.clone();
        if now >= self.query_at && !self.closing {
            return Some(Call::ExternalAddress(service));
        }
        let of = |(key, port): (&PortKey, &Port)| {
            let (key, external) = (*key, port.held.map(|held| held.external.port()));
            match external {
                Some(external) if port.unwanted => Some(Call::Delete {
                    service: service.clone(),
                    port: key,
                    external,
                }),
                _ if port.wants(now) => Some(Call::Add {
                    service: service.clone(),
                    port: key,
                    external: external.unwrap_or_else(|| shifted(key.number, port.shift)),
                    local: self.local(),
                    seconds: if port.permanent { 0 } else { self.seconds() },
                }),
                Some(external) if port.held.is_some_and(|held| held.check_at <= now) => {
                    Some(Call::Entry {
                        service: service.clone(),
                        port: key,
                        external,
                    })
                }
                _ => None,
            }
        };
        self.ports.iter().find_map(of)
    }

    /// When a step is due; while a call is being made, its answer is.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let held = || self.ports.values().filter_map(|port| port.held);
        let expiry = held().map(|held| held.expires_at).min();
        if self.protocol != MappingProtocol::Upnp {
            let ports = self.ports.values().filter_map(|port| match port.ask {
                Some(ask) => Some(ask.at),
                None => port.held.map(|held| held.renew_at),
            });
            let query = (!self.closing).then_some(self.query_at);
            return ports.chain(query).chain(expiry).min();
        }
        if self.call.is_some() {
            return expiry;
        }
        let calls = held().map(|held| match held.doubtful {
            true => self.next_call,
            false => held.renew_at.min(held.check_at),
        });
        let call = calls.chain([self.query_at]).min();
        let waiting = self
            .ports
            .values()
            .any(|port| port.held.is_none() && !port.refused);
        let call = if waiting { Some(self.next_call) } else { call };
        call.map(|at| at.max(self.next_call))
            .into_iter()
            .chain(expiry)
            .min()
    }

    fn seconds(&self) -> u32 {
        u32::try_from(self.config.mapping_lifetime().as_secs()).unwrap_or(u32::MAX)
    }

    fn pcp_map(&self, key: PortKey, suggested: SocketAddrV4, seconds: u32) -> Vec<u8> {
        pcp::map(self.local(), self.nonce(key), key, suggested, seconds)
    }

    /// Another one for each port, the same for all requests for it.
    pub(super) fn nonce(&self, key: PortKey) -> Nonce {
        let mut nonce = self.secret;
        let [high, low] = key.number.to_be_bytes();
        let [.., c, b, a] = &mut nonce;
        *a ^= low;
        *b ^= high;
        *c ^= match key.proto {
            Proto::Udp => 17,
            Proto::Tcp => 6,
        };
        nonce
    }
}

impl Port {
    /// Whether the gateway is to be asked for it, again or for the first time.
    fn wants(&self, now: Instant) -> bool {
        !self.unwanted
            && match self.held {
                Some(held) => held.doubtful || held.renew_at <= now,
                None => !self.refused,
            }
    }

    /// The gateway did not renew or make it. What it still has is kept until it ends.
    fn fail(&mut self, now: Instant) {
        match &mut self.held {
            Some(held) if !held.doubtful => held.renew_at = now + RENEW_AGAIN,
            _ => {
                self.held = None;
                self.refused = true;
            }
        }
    }

    /// The gateway has lost it.
    fn forgotten(&mut self, now: Instant) {
        self.refused = false;
        if let Some(held) = &mut self.held {
            held.doubtful = true;
        }
        if !self.unwanted {
            self.ask = Some(Ask { tries: 0, at: now });
        }
    }
}

/// The public port that is asked for after so many others were taken.
fn shifted(number: u16, shift: u16) -> u16 {
    match number.wrapping_add(shift.wrapping_mul(SHIFT)) {
        // Not a port of the gateway's own.
        low @ ..1024 if shift > 0 => low + 1024,
        other => other,
    }
}

/// Whether the gateway's clock, in seconds, disagrees with ours about the time between two answers:
/// RFC 6886 §3.6, RFC 6887 §8.5.
fn has_restarted(
    protocol: MappingProtocol,
    (before, then): (u32, Instant),
    (after, now): (u32, Instant),
) -> bool {
    let ours = now.saturating_duration_since(then).as_secs();
    let ours = i64::from(u32::try_from(ours).unwrap_or(u32::MAX));
    let (before, after) = (i64::from(before), i64::from(after));
    let theirs = after - before;
    match protocol {
        MappingProtocol::NatPmp => after < before + ours * 7 / 8 - 2,
        _ => theirs < -1 || ours + 2 < theirs - theirs / 16 || theirs + 2 < ours - ours / 16,
    }
}
