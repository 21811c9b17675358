//! A network of cores on virtual time. Gossip is simulated hop by hop: each node has six neighbours or more,
//! passes on what its core accepts, once, and a hop takes 20 to 120 ms and loses one message in a hundred.

use std::{cmp::Reverse, collections::BinaryHeap, ops::Range, rc::Rc};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;

const NEIGHBOURS: usize = 6;

struct Message {
    id: u64,
    author: usize,
    topic: String,
    data: Vec<u8>,
}

enum Step {
    Wake(usize),
    Deliver {
        from: usize,
        to: usize,
        message: Rc<Message>,
    },
}

struct Peer {
    node: Node,
    alive: bool,
    neighbours: BTreeSet<usize>,
    seen: BTreeSet<u64>,
    sequence: u64,
    wake: Option<Instant>,
}

struct Network {
    rng: StdRng,
    start: Instant,
    now: Instant,
    peers: Vec<Peer>,
    ids: BTreeMap<PeerId, usize>,
    /// By time, then in the order of their making.
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    steps: BTreeMap<u64, Step>,
    made: u64,
}

impl Network {
    fn new() -> Self {
        let start = start();
        Self {
            rng: StdRng::seed_from_u64(5),
            start,
            now: start,
            peers: Vec::new(),
            ids: BTreeMap::new(),
            queue: BinaryHeap::new(),
            steps: BTreeMap::new(),
            made: 0,
        }
    }

    fn alive(&self) -> Vec<usize> {
        (0..self.peers.len())
            .filter(|n| self.peers[*n].alive)
            .collect()
    }

    fn schedule(&mut self, at: Instant, step: Step) {
        self.made += 1;
        self.queue.push(Reverse((at, self.made)));
        self.steps.insert(self.made, step);
    }

    fn join(&mut self) -> usize {
        let n = self.peers.len();
        let key = Keypair::generate_ed25519();
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&n.to_be_bytes());
        let since_1970 = Duration::from_secs(1_700_000_000) + (self.now - self.start);
        let core = Core::new(key.public(), Config::default(), seed, self.now, since_1970);
        let node = Node {
            core,
            neighbour: key.public().to_peer_id(),
            key,
        };
        self.ids.insert(node.id(), n);
        self.peers.push(Peer {
            node,
            alive: true,
            neighbours: BTreeSet::new(),
            seen: BTreeSet::new(),
            sequence: since_1970.as_nanos() as u64,
            wake: None,
        });
        let text = format!("/ip4/1.{}.{}.1/tcp/4001", n / 250, n % 250);
        self.peers[n]
            .node
            .core
            .on_address(Origin::External, address(&text), self.now);
        self.connect(n);
        n
    }

    /// Gives `n` neighbours again if it lost some.
    fn connect(&mut self, n: usize) {
        let mut others = self.alive();
        others.retain(|other| *other != n);
        while self.peers[n].neighbours.len() < NEIGHBOURS.min(others.len()) {
            let other = others[self.rng.random_range(0..others.len())];
            if self.peers[n].neighbours.insert(other) {
                self.peers[other].neighbours.insert(n);
                self.link(n, other);
                self.link(other, n);
            }
        }
    }

    fn link(&mut self, n: usize, other: usize) {
        let id = self.peers[other].node.id();
        let core = &mut self.peers[n].node.core;
        core.on_connected(id, &address("/ip4/1.1.1.1/tcp/4001"), self.now);
        core.on_subscribed(DEFAULT_TOPIC, id, self.now);
        self.drain(n);
    }

    fn leave(&mut self, n: usize, goodbye: bool) {
        if goodbye {
            self.peers[n].node.core.shutdown(self.now);
            self.drain(n);
        }
        self.peers[n].alive = false;
        let id = self.peers[n].node.id();
        for other in std::mem::take(&mut self.peers[n].neighbours) {
            self.peers[other].neighbours.remove(&n);
            self.peers[other].node.core.on_disconnected(&id, self.now);
            self.drain(other);
            self.connect(other);
        }
    }

    fn drain(&mut self, n: usize) {
        for output in self.peers[n].node.drain() {
            if let Output::Publish { topic, data } = output {
                let peer = &mut self.peers[n];
                peer.sequence += 1;
                let message = Rc::new(Message {
                    id: ((n as u64) << 32) | (peer.sequence & 0xffff_ffff),
                    author: n,
                    topic,
                    data,
                });
                peer.seen.insert(message.id);
                self.pass_on(n, n, &message);
            }
        }
        let wake = self.peers[n].node.core.poll_timeout();
        if wake != self.peers[n].wake {
            self.peers[n].wake = wake;
            if let Some(at) = wake {
                self.schedule(at, Step::Wake(n));
            }
        }
    }

    fn pass_on(&mut self, n: usize, source: usize, message: &Rc<Message>) {
        let neighbours: Vec<_> = self.peers[n].neighbours.iter().copied().collect();
        for to in neighbours {
            if to == source || self.rng.random_range(0..100) == 0 {
                continue;
            }
            let delay = Duration::from_millis(self.rng.random_range(20..120));
            let message = Rc::clone(message);
            let step = Step::Deliver {
                from: n,
                to,
                message,
            };
            self.schedule(self.now + delay, step);
        }
    }

    fn run_until(&mut self, end: Instant) {
        while let Some(Reverse((at, made))) = self.queue.peek().copied()
            && at <= end
        {
            self.queue.pop();
            self.now = at;
            match self.steps.remove(&made).unwrap() {
                Step::Wake(n) if self.peers[n].alive => {
                    self.peers[n].wake = None;
                    self.peers[n].node.core.handle_timeout(at);
                    self.drain(n);
                }
                Step::Deliver { from, to, message } if self.peers[to].alive => {
                    self.deliver(from, to, &message);
                }
                _ => {}
            }
        }
        self.now = end;
    }

    fn deliver(&mut self, from: usize, to: usize, message: &Rc<Message>) {
        if !self.peers[to].seen.insert(message.id) {
            return;
        }
        let received = Received {
            topic: &message.topic,
            source: self.peers[from].node.id(),
            author: Some(self.peers[message.author].node.id()),
            sequence: Some(1_700_000_000_000_000_000 + (message.id & 0xffff_ffff)),
            data: &message.data,
        };
        let verdict = self.peers[to].node.core.on_message(&received, self.now);
        self.drain(to);
        if verdict == Verdict::Accept {
            self.pass_on(to, from, message);
        }
    }

    /// Entries for others in all tables: all, those of the dead, and those that are missing.
    fn entries(&self) -> (usize, usize, usize) {
        let alive = self.alive();
        let (mut all, mut stale) = (0, 0);
        for n in &alive {
            for peer in self.peers[*n].node.core.peers() {
                all += 1;
                stale += usize::from(!self.peers[self.ids[peer]].alive);
            }
        }
        let missing = alive.len() * (alive.len() - 1) - (all - stale);
        (all, stale, missing)
    }
}

/// The bars: all known to all within two intervals; with 20 % of the peers replaced each minute, at most 5 % of the
/// entries are stale, even if nobody says goodbye.
#[test]
fn two_hundred_peers_find_each_other_within_two_intervals_and_forget_the_dead() {
    const PEERS: Range<usize> = 0..200;
    let mut network = Network::new();
    for _ in PEERS {
        network.join();
    }
    let start = network.now;
    let mut complete = None;
    for half_second in 1..=40 {
        network.run_until(start + SECOND * half_second / 2);
        if complete.is_none() && network.entries().2 == 0 {
            complete = Some(network.now - start);
        }
    }
    println!("200 peers, all known to all after {complete:?} (interval 10 s)");
    assert!(complete.is_some_and(|after| after <= 20 * SECOND));

    for goodbyes in [0, 50] {
        let start = network.now;
        let mut samples = Vec::new();
        // 40 leave and 40 come each minute, one pair every 1.5 s.
        for pair in 0..40u32 {
            network.run_until(start + SECOND * 3 * (pair + 1) / 2);
            let alive = network.alive();
            let leaver = alive[network.rng.random_range(0..alive.len())];
            let goodbye = network.rng.random_range(0..100) < goodbyes;
            network.leave(leaver, goodbye);
            network.join();
            if pair >= 16 {
                let (all, stale, missing) = network.entries();
                samples.push((stale as f64 / all as f64, missing as f64 / all as f64));
            }
        }
        let mean = |of: fn(&(f64, f64)) -> f64| {
            100.0 * samples.iter().map(of).sum::<f64>() / samples.len() as f64
        };
        let worst = 100.0 * samples.iter().map(|(stale, _)| *stale).fold(0.0, f64::max);
        let stale = mean(|(stale, _)| *stale);
        println!(
            "churn 20 % a minute, {goodbyes} % say goodbye: {stale:.2} % of entries stale (worst sample \
             {worst:.2} %), {:.2} % of peers not yet known",
            mean(|(_, missing)| *missing)
        );
        assert!(stale <= 5.0, "{stale}");
        // A newcomer hears of each peer when that speaks next, five seconds later on average.
        assert!(mean(|(_, missing)| *missing) <= 3.0);
    }
}
