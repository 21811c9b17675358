//! mDNS between hosts on a bridge: real multicast, real swarms, each host in a network namespace of its own. Figures are printed.
#![cfg(feature = "natlab")]
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use anypath_discovery_mdns as mdns;
use anypath_interop_tests::lab::{LabError, Lan, Namespace, explain, isolated, now};
use futures::StreamExt as _;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, SwarmBuilder, identity, noise, tcp, yamux};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Issue 7: from start to `Discovered`, p99 of 50.
const FOUND: Duration = Duration::from_secs(1);
/// Issue 7: 50 hosts, all know all.
const ALL_KNOW_ALL: Duration = Duration::from_secs(5);
/// Issue 7: packets a host a minute at rest.
const PACKETS_PER_MINUTE: f64 = 10.0;
/// How many times a bound a run may take on a busy machine before something is broken.
const FAR: u32 = 3;
/// For what must come at all.
const PATIENCE: Duration = Duration::from_secs(30);

fn lab(test: impl FnOnce() -> Result<(), LabError>) {
    if let Err(error) = test() {
        panic!("{}", explain(&error));
    }
}

/// What a node hears, and when.
#[derive(Debug)]
struct Heard {
    at: Instant,
    news: News,
}

#[derive(Debug)]
enum News {
    Discovered(PeerId, Vec<Multiaddr>),
    Expired(PeerId, Vec<Multiaddr>),
}

/// A behaviour that finds peers, ours or libp2p's own.
trait Finder: NetworkBehaviour + Sized + 'static {
    fn news(event: Self::ToSwarm) -> Vec<News>;
}

impl Finder for mdns::Behaviour {
    fn news(event: mdns::Event) -> Vec<News> {
        match event {
            mdns::Event::Discovered { peer, addresses } => vec![News::Discovered(peer, addresses)],
            mdns::Event::Expired { peer, addresses } => vec![News::Expired(peer, addresses)],
            _ => Vec::new(),
        }
    }
}

impl Finder for libp2p_mdns::tokio::Behaviour {
    fn news(event: libp2p_mdns::Event) -> Vec<News> {
        match event {
            libp2p_mdns::Event::Discovered(records) => records
                .into_iter()
                .map(|(peer, address)| News::Discovered(peer, vec![address]))
                .collect(),
            libp2p_mdns::Event::Expired(records) => records
                .into_iter()
                .map(|(peer, address)| News::Expired(peer, vec![address]))
                .collect(),
        }
    }
}

/// A node that runs on a thread of its own inside its host. Dropping it ends it properly.
struct Node {
    peer: PeerId,
    began: Instant,
    heard: Receiver<Heard>,
    /// Kept to stop the node by dropping it.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    known: BTreeMap<PeerId, BTreeSet<Multiaddr>>,
}

impl Node {
    fn start<B: Finder>(
        host: &Namespace,
        build: impl FnOnce(PeerId) -> io::Result<B> + Send + 'static,
    ) -> Self {
        let began = now();
        let key = identity::Keypair::generate_ed25519();
        let peer = key.public().to_peer_id();
        let (sender, heard) = sync_channel(1 << 14);
        let (stop, stopped) = oneshot::channel();
        let host = host.clone();
        let thread = thread::spawn(move || {
            host.enter(|| run(key, build, &sender, stopped))
                .expect("the host's namespace");
        });
        Self {
            peer,
            began,
            heard,
            stop: Some(stop),
            thread: Some(thread),
            known: BTreeMap::new(),
        }
    }

    fn ours(host: &Namespace, config: &mdns::Config) -> Self {
        let config = config.clone();
        Self::start(host, |peer| mdns::Behaviour::new(peer, config))
    }

    fn stock(host: &Namespace, enable_ipv6: bool) -> Self {
        Self::start(host, move |peer| {
            let config = libp2p_mdns::Config {
                enable_ipv6,
                ..libp2p_mdns::Config::default()
            };
            libp2p_mdns::tokio::Behaviour::new(config, peer)
        })
    }

    /// Listens until the condition holds of what is known, and returns when that became so.
    fn wait(
        &mut self,
        what: &str,
        patience: Duration,
        done: impl Fn(&BTreeMap<PeerId, BTreeSet<Multiaddr>>) -> bool,
    ) -> Instant {
        let deadline = now() + patience;
        let mut at = now();
        while !done(&self.known) {
            match self
                .heard
                .recv_timeout(deadline.saturating_duration_since(now()))
            {
                Ok(heard) => {
                    at = heard.at;
                    self.learn(heard.news);
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{what}: not within {patience:?}; known: {:?}", self.known)
                }
                Err(RecvTimeoutError::Disconnected) => panic!("{what}: the node has ended"),
            }
        }
        at
    }

    fn learn(&mut self, news: News) {
        match news {
            News::Discovered(peer, addresses) => {
                self.known.entry(peer).or_default().extend(addresses);
            }
            News::Expired(peer, addresses) => {
                let known = self.known.entry(peer).or_default();
                known.retain(|address| !addresses.contains(address));
                if known.is_empty() {
                    self.known.remove(&peer);
                }
            }
        }
    }

    fn wait_for(&mut self, peer: PeerId) -> Instant {
        self.wait("finding a peer", PATIENCE, |known| {
            known.contains_key(&peer)
        })
    }

    fn wait_without(&mut self, peer: PeerId, patience: Duration) -> Instant {
        self.wait("forgetting a peer", patience, |known| {
            !known.contains_key(&peer)
        })
    }

    /// The hosts of the addresses at which a peer is known.
    fn hosts_of(&self, peer: &PeerId) -> BTreeSet<String> {
        let addresses = self.known.get(peer).into_iter().flatten();
        addresses
            .filter_map(|address| match address.iter().next()? {
                Protocol::Ip4(ip) => Some(ip.to_string()),
                Protocol::Ip6(ip) => Some(ip.to_string()),
                _ => None,
            })
            .collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !thread::panicking()
        {
            panic!("a node panicked");
        }
    }
}

fn run<B: Finder>(
    key: identity::Keypair,
    build: impl FnOnce(PeerId) -> io::Result<B>,
    heard: &SyncSender<Heard>,
    mut stopped: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let peer = key.public().to_peer_id();
        let behaviour = build(peer).expect("mDNS starts");
        let mut swarm: Swarm<B> = SwarmBuilder::with_existing_identity(key)
            .with_tokio()
            .with_tcp(
                tcp::Config::default(),
                noise::Config::new,
                yamux::Config::default,
            )
            .expect("TCP")
            .with_behaviour(|_| behaviour)
            .expect("a behaviour")
            .build();
        for any in [
            Protocol::Ip4(Ipv4Addr::UNSPECIFIED),
            Protocol::Ip6(Ipv6Addr::UNSPECIFIED),
        ] {
            let address = Multiaddr::empty().with(any).with(Protocol::Tcp(4001));
            swarm.listen_on(address).expect("a listener");
        }
        loop {
            tokio::select! {
                _ = &mut stopped => return,
                event = swarm.select_next_some() => {
                    if let SwarmEvent::Behaviour(event) = event {
                        for news in B::news(event) {
                            heard.send(Heard { at: now(), news }).ok();
                        }
                    }
                }
            }
        }
    });
}

/// A bound in time is printed; only a run that misses it by far fails (STYLE.md: timings never gate a test).
fn judge(what: &str, took: Duration, bound: Duration) {
    let verdict = if took <= bound { "met" } else { "MISSED" };
    println!("{what}: {took:?}, bar {bound:?} {verdict}");
    assert!(took <= bound * FAR, "{what} took {took:?}");
}

fn short_lived() -> mdns::Config {
    mdns::Config::builder()
        .ttl(Duration::from_secs(3))
        .query_interval(Duration::from_secs(1))
        .build()
        .expect("a configuration")
}

#[test]
fn two_hosts_find_each_other_in_less_than_a_second() {
    const RUNS: usize = 50;
    isolated(|| {
        lab(|| {
            let lan = Lan::start(2)?;
            let mut took = Vec::new();
            for _ in 0..RUNS {
                let config = mdns::Config::default();
                let mut a = Node::ours(lan.host(0)?, &config);
                let mut b = Node::ours(lan.host(1)?, &config);
                let found = a.wait_for(b.peer).max(b.wait_for(a.peer));
                took.push(found.duration_since(a.began));
            }
            took.sort_unstable();
            let median = took.get(RUNS / 2).copied().unwrap_or_default();
            // Of 50 runs the 99th percentile is the longest.
            let longest = took.last().copied().unwrap_or_default();
            println!("{RUNS} runs, start to Discovered on both hosts: median {median:?}");
            judge("p99, start to Discovered on both hosts", longest, FOUND);
            Ok(())
        });
    });
}

/// UDP datagrams that this host has sent so far, in both families.
fn datagrams(host: &Namespace) -> Result<u64, LabError> {
    host.enter(|| {
        let v4 = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap_or_default();
        let mut lines = v4.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
        let v4 = names
            .split_whitespace()
            .zip(values.split_whitespace())
            .find(|(name, _)| *name == "OutDatagrams")
            .and_then(|(_, value)| value.parse::<u64>().ok());
        let v6 = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap_or_default();
        let v6 = v6
            .lines()
            .find_map(|line| line.strip_prefix("Udp6OutDatagrams"))
            .and_then(|value| value.trim().parse::<u64>().ok());
        v4.expect("IPv4's counter") + v6.expect("IPv6's counter")
    })
}

#[test]
fn fifty_hosts_all_know_all_and_are_quiet_at_rest() {
    const HOSTS: usize = 50;
    /// The queries have backed off after 1 + 2 + … + 32 s.
    const SETTLED: Duration = Duration::from_secs(75);
    const MINUTE: Duration = Duration::from_secs(60);
    isolated(|| {
        lab(|| {
            let lan = Lan::start(HOSTS)?;
            let config = mdns::Config::default();
            let mut nodes: Vec<Node> = lan.hosts().map(|host| Node::ours(host, &config)).collect();
            let began = nodes.last().expect("a node").began;
            let peers: BTreeSet<PeerId> = nodes.iter().map(|node| node.peer).collect();
            let knows_all = |known: &BTreeMap<PeerId, BTreeSet<Multiaddr>>| {
                known.len() == HOSTS - 1 && known.keys().all(|peer| peers.contains(peer))
            };
            let all = nodes
                .iter_mut()
                .map(|node| node.wait("all know all", PATIENCE, knows_all))
                .max()
                .expect("a node");
            judge(
                "50 hosts, last start to all know all",
                all.saturating_duration_since(began),
                ALL_KNOW_ALL,
            );

            let sent = || lan.hosts().map(datagrams).collect::<Result<Vec<u64>, _>>();
            let start = sent()?;
            println!(
                "packets of a host until then: {} at most",
                start.iter().max().copied().unwrap_or_default()
            );
            // A figure over a minute needs the minute.
            thread::sleep(SETTLED);
            let before = sent()?;
            thread::sleep(MINUTE);
            let after = sent()?;
            let minute: Vec<u64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
            let mean = minute.iter().sum::<u64>() as f64 / HOSTS as f64;
            let most = minute.iter().max().copied().unwrap_or_default();
            let verdict = if mean <= PACKETS_PER_MINUTE {
                "met"
            } else {
                "MISSED"
            };
            println!(
                "packets a host a minute at rest, both families: mean {mean:.2}, at most {most}, bar {PACKETS_PER_MINUTE} {verdict}"
            );
            assert!(mean <= PACKETS_PER_MINUTE, "not at rest");
            for node in &mut nodes {
                node.wait("nobody is forgotten", Duration::ZERO, knows_all);
            }
            Ok(())
        });
    });
}

fn with_stock(ipv6: bool) {
    const RUNS: usize = 20;
    lab(|| {
        let lan = Lan::start(2)?;
        let mut longest = [Duration::ZERO; 2];
        for _ in 0..RUNS {
            let mut stock = Node::stock(lan.host(0)?, ipv6);
            let mut ours = Node::ours(lan.host(1)?, &mdns::Config::default());
            let (stock_id, ours_id) = (stock.peer, ours.peer);
            for (longest, (finder, found)) in longest
                .iter_mut()
                .zip([(&mut ours, stock_id), (&mut stock, ours_id)])
            {
                let at = finder.wait_for(found);
                *longest = (*longest).max(at.saturating_duration_since(finder.began));
            }
            // At the very addresses that it listens on.
            let (v4, v6) = (lan.ipv4(0).to_string(), lan.ipv6(0).to_string());
            let expected = if ipv6 { v6 } else { v4 };
            assert_eq!(ours.hosts_of(&stock.peer), BTreeSet::from([expected]));
            let (v4, v6) = (lan.ipv4(1).to_string(), lan.ipv6(1).to_string());
            let expected = if ipv6 { v6 } else { v4 };
            assert_eq!(stock.hosts_of(&ours.peer), BTreeSet::from([expected]));
        }
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        let [ours, stock] = longest;
        println!(
            "{family}: in {RUNS} of {RUNS} runs we found libp2p-mdns (within {ours:?}) and it found us (within {stock:?})"
        );
        Ok(())
    });
}

#[test]
fn libp2p_mdns_and_we_find_each_other_over_ipv4() {
    isolated(|| with_stock(false));
}

#[test]
fn libp2p_mdns_and_we_find_each_other_over_ipv6() {
    isolated(|| with_stock(true));
}

#[test]
fn both_families_are_used_at_once() {
    isolated(|| {
        lab(|| {
            let lan = Lan::start(2)?;
            let config = mdns::Config::default();
            let mut a = Node::ours(lan.host(0)?, &config);
            let b = Node::ours(lan.host(1)?, &config);
            let addresses = [lan.ipv4(1).to_string(), lan.ipv6(1).to_string()];
            let peer = b.peer;
            a.wait("both addresses", PATIENCE, |known| {
                known.get(&peer).is_some_and(|known| known.len() == 2)
            });
            assert_eq!(a.hosts_of(&peer), BTreeSet::from(addresses));
            Ok(())
        });
    });
}

#[test]
fn a_host_that_leaves_is_forgotten_at_once_and_one_that_vanishes_when_its_time_is_up() {
    isolated(|| {
        lab(|| {
            let lan = Lan::start(3)?;
            let config = short_lived();
            let mut a = Node::ours(lan.host(0)?, &config);
            let leaves = Node::ours(lan.host(1)?, &config);
            let vanishes = Node::ours(lan.host(2)?, &config);
            let (left, vanished) = (leaves.peer, vanishes.peer);
            a.wait_for(left);
            a.wait_for(vanished);
            let began = now();
            drop(leaves);
            let at = a.wait_without(left, config.ttl() / 2);
            println!("goodbye: forgotten after {:?}", at.duration_since(began));

            let began = now();
            lan.unplug(2)?;
            let at = a.wait_without(vanished, PATIENCE);
            println!(
                "cable pulled: forgotten after {:?}, its records live {:?}",
                at.duration_since(began),
                config.ttl()
            );
            // And found again once it is back.
            lan.plug(2)?;
            a.wait_for(vanished);
            Ok(())
        });
    });
}

#[test]
fn interfaces_come_and_go() {
    isolated(|| {
        lab(|| {
            let lan = Lan::start(2)?;
            lan.remove(1)?;
            let config = short_lived();
            let mut a = Node::ours(lan.host(0)?, &config);
            // This one starts with no network at all.
            let mut b = Node::ours(lan.host(1)?, &config);
            for _ in 0..2 {
                let began = now();
                lan.join(1, "eth0")?;
                let found = b.wait_for(a.peer).max(a.wait_for(b.peer));
                println!("found {:?} after the interface came", found - began);
                let began = now();
                lan.remove(1)?;
                let at = b.wait_without(a.peer, PATIENCE);
                println!("forgotten {:?} after it had gone", at - began);
                a.wait_without(b.peer, PATIENCE);
            }
            Ok(())
        });
    });
}

#[test]
fn a_host_in_two_networks_tells_each_only_its_address_there() {
    isolated(|| {
        lab(|| {
            let (lan, other) = (Lan::start(2)?, Lan::start(2)?);
            other.invite(lan.host(1)?, 9, "eth1")?;
            let config = mdns::Config::default();
            let mut here = Node::ours(lan.host(0)?, &config);
            let mut there = Node::ours(other.host(0)?, &config);
            let mut both = Node::ours(lan.host(1)?, &config);
            both.wait_for(here.peer);
            both.wait_for(there.peer);
            for (node, addresses) in [
                (
                    &mut here,
                    [lan.ipv4(1).to_string(), lan.ipv6(1).to_string()],
                ),
                (
                    &mut there,
                    [other.ipv4(9).to_string(), other.ipv6(9).to_string()],
                ),
            ] {
                node.wait("both addresses", PATIENCE, |known| {
                    known.get(&both.peer).is_some_and(|known| known.len() >= 2)
                });
                assert_eq!(node.hosts_of(&both.peer), BTreeSet::from(addresses));
                assert_eq!(node.known.len(), 1, "networks are not joined");
            }
            Ok(())
        });
    });
}
