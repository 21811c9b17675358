//! A simulated link with any number of hosts: virtual time, seeded delays and loss.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::Range,
    time::Duration,
};

use libp2p_core::Multiaddr;
use libp2p_identity::{Keypair, PeerId};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use web_time::Instant;

use crate::{
    Config, Event, Family,
    core::{Core, Destination, LinkId, MDNS_PORT, Network, Output},
    dns,
};

pub(super) const LINK: LinkId = LinkId {
    interface: 2,
    family: Family::V4,
};

pub(super) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// The same peers in each run.
pub(super) fn peer_id(number: u32) -> PeerId {
    let mut seed = [0; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    let key = Keypair::ed25519_from_bytes(seed).unwrap();
    key.public().to_peer_id()
}

#[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
pub(super) fn origin() -> Instant {
    Instant::now()
}

pub(super) fn ip_of(host: usize) -> IpAddr {
    let number = u32::try_from(host).unwrap() + 10;
    let [.., high, low] = number.to_be_bytes();
    IpAddr::from([10, 0, high, low])
}

pub(super) fn listen_address(host: usize) -> Multiaddr {
    format!("/ip4/{}/tcp/4001", ip_of(host)).parse().unwrap()
}

pub(super) struct Host {
    pub(super) peer: PeerId,
    pub(super) core: Core,
    pub(super) on: bool,
    pub(super) events: Vec<(Instant, Event)>,
    /// Packets sent: when, and whether it was a query.
    pub(super) sent: Vec<(Instant, bool)>,
}

impl Host {
    pub(super) fn queries_since(&self, begin: Instant) -> usize {
        let queries = self
            .sent
            .iter()
            .filter(|(at, query)| *query && *at >= begin);
        queries.count()
    }

    pub(super) fn answers_since(&self, begin: Instant) -> usize {
        let answers = self
            .sent
            .iter()
            .filter(|(at, query)| !*query && *at >= begin);
        answers.count()
    }

    pub(super) fn discovered(&self, peer: &PeerId) -> Option<Instant> {
        self.events.iter().find_map(|(at, event)| match event {
            Event::Discovered { peer: found, .. } if found == peer => Some(*at),
            _ => None,
        })
    }

    pub(super) fn expired(&self, peer: &PeerId) -> Option<Instant> {
        self.events.iter().find_map(|(at, event)| match event {
            Event::Expired { peer: found, .. } if found == peer => Some(*at),
            _ => None,
        })
    }
}

type Packet = (SocketAddr, Vec<u8>);

pub(super) struct Lan {
    pub(super) now: Instant,
    pub(super) hosts: Vec<Host>,
    rng: StdRng,
    delay: Range<u64>,
    loss: f64,
    /// By time and number, so that the order is the same in each run.
    flying: BTreeMap<(Instant, u64), (usize, Packet)>,
    number: u64,
    /// Of the hosts that are on, each once.
    timers: BTreeSet<(Instant, usize)>,
    /// Each host's place in `timers`.
    armed: Vec<Option<Instant>>,
}

impl Lan {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: origin(),
            hosts: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
            delay: 100..800,
            loss: 0.0,
            flying: BTreeMap::new(),
            number: 0,
            timers: BTreeSet::new(),
            armed: Vec::new(),
        }
    }

    pub(super) fn with_loss(mut self, loss: f64) -> Self {
        self.loss = loss;
        self
    }

    /// Starts a host that listens, and returns its number.
    pub(super) fn start(&mut self, config: &Config) -> usize {
        let number = self.hosts.len();
        let peer = peer_id(u32::try_from(number).unwrap());
        let core = Core::new(peer, config.clone(), self.rng.random());
        self.hosts.push(Host {
            peer,
            core,
            on: true,
            events: Vec::new(),
            sent: Vec::new(),
        });
        self.armed.push(None);
        let now = self.now;
        let core = &mut self.hosts[number].core;
        let network = Network {
            address: ip_of(number),
            prefix: 16,
        };
        core.on_link_up(LINK, vec![network], false, now);
        core.on_listening(&listen_address(number), now);
        self.drain(number);
        number
    }

    /// The host is there no more, without a word.
    pub(super) fn kill(&mut self, host: usize) {
        self.hosts[host].on = false;
        self.arm(host);
    }

    fn arm(&mut self, host: usize) {
        if let Some(at) = self.armed[host].take() {
            self.timers.remove(&(at, host));
        }
        let timer = self.hosts[host].core.poll_timeout();
        if let Some(at) = timer.filter(|_| self.hosts[host].on) {
            self.armed[host] = Some(at);
            self.timers.insert((at, host));
        }
    }

    /// The host goes with a goodbye.
    pub(super) fn stop(&mut self, host: usize) {
        self.hosts[host].core.shut_down();
        self.drain(host);
        self.kill(host);
    }

    /// Someone who is no host of ours sends to the group.
    pub(super) fn inject(&mut self, source: SocketAddr, packet: &[u8]) {
        self.deliver(None, source, Destination::Group, packet);
    }

    /// The same, to one host alone.
    pub(super) fn inject_to(&mut self, host: usize, source: SocketAddr, packet: &[u8]) {
        let to = SocketAddr::new(ip_of(host), MDNS_PORT);
        self.deliver(None, source, Destination::Host(to), packet);
    }

    pub(super) fn command(&mut self, host: usize, command: impl FnOnce(&mut Core, Instant)) {
        command(&mut self.hosts[host].core, self.now);
        self.drain(host);
    }

    pub(super) fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Returns whether the condition came true in this time. It is looked at every 10 ms.
    pub(super) fn run_until(&mut self, time: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + time;
        loop {
            let step = (self.now + millis(10)).min(end);
            self.step(step);
            if done(self) {
                return true;
            }
            if step == end {
                return false;
            }
        }
    }

    /// Runs until this time and not beyond.
    fn step(&mut self, end: Instant) {
        loop {
            let timer = self.timers.first().copied();
            let packet = self.flying.first_key_value().map(|((at, _), _)| *at);
            let next = timer.map(|(at, _)| at).into_iter().chain(packet).min();
            let Some(next) = next.filter(|at| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            if packet == Some(next) {
                let (_, (host, (source, packet))) = self.flying.pop_first().unwrap();
                if self.hosts[host].on {
                    self.hosts[host]
                        .core
                        .on_packet(LINK, source, &packet, self.now);
                    self.drain(host);
                }
            } else if let Some((_, host)) = timer {
                self.hosts[host].core.handle_timeout(self.now);
                self.drain(host);
            }
        }
    }

    fn drain(&mut self, host: usize) {
        while let Some(output) = self.hosts[host].core.poll_output() {
            match output {
                Output::Event(event) => self.hosts[host].events.push((self.now, event)),
                Output::Send { link, to, packet } => {
                    assert_eq!(link, LINK);
                    assert!(!packet.is_empty() && packet.len() <= dns::MAX_SENT);
                    self.hosts[host]
                        .sent
                        .push((self.now, packet[2] & 0x80 == 0));
                    let source = SocketAddr::new(ip_of(host), MDNS_PORT);
                    self.deliver(Some(host), source, to, &packet);
                }
            }
        }
        self.arm(host);
    }

    fn deliver(&mut self, from: Option<usize>, source: SocketAddr, to: Destination, packet: &[u8]) {
        for host in 0..self.hosts.len() {
            let addressed = match to {
                Destination::Group => true,
                Destination::Host(to) => to == SocketAddr::new(ip_of(host), MDNS_PORT),
            };
            // The kernel loops a multicast back without loss.
            let lost = from != Some(host) && self.rng.random_bool(self.loss);
            if addressed && !lost {
                let at =
                    self.now + Duration::from_micros(self.rng.random_range(self.delay.clone()));
                self.number += 1;
                let packet = (host, (source, packet.to_vec()));
                self.flying.insert((at, self.number), packet);
            }
        }
    }

    /// Whether each host that is on knows each other one, and nobody else.
    pub(super) fn all_know_all(&self) -> bool {
        let on: BTreeSet<PeerId> = self
            .hosts
            .iter()
            .filter(|host| host.on)
            .map(|host| host.peer)
            .collect();
        let mut on_hosts = self.hosts.iter().filter(|host| host.on);
        // The numbers first: this is asked often.
        on_hosts
            .clone()
            .all(|host| host.core.peers().len() == on.len() - 1)
            && on_hosts.all(|host| host.core.peers().all(|peer| on.contains(peer)))
    }
}
