//! The server behind one link that all connections share, as they do behind a router with fair
//! queues: each connection writes one block at a time, as the handler does, and the link takes 16 KiB
//! (a yamux frame) of each in turn.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    num::NonZeroU64,
    time::Duration,
};

use bytes::Bytes;
use cid::Cid;
use rand::{RngExt as _, SeedableRng, rngs::StdRng};
use web_time::Instant;

use super::sim::{cid, origin, peer, wants};
use crate::{
    Block, Class, Config, UploadLimits,
    core::{
        ConnKey, Path,
        server::{Output, ReadId, Server},
    },
    message::{Entry, WantType},
};

const BLOCK: usize = 256 * 1024;
const LARGE: usize = 4 * 1024 * 1024;
const SEGMENT: usize = 16 * 1024;
/// A gigabit.
const GIGABIT: f64 = 125e6;
/// What a read of the store takes.
const READ: Duration = Duration::from_millis(2);

/// What a connection holds.
#[derive(Default)]
struct Conn {
    queue: VecDeque<Block>,
    /// Bytes of the first block that are on the link.
    written: usize,
    /// Bytes it still takes; `None`: all.
    takes: Option<usize>,
}

impl Conn {
    fn next_segment(&self) -> usize {
        let left = self
            .queue
            .front()
            .map_or(0, |block| block.data().len() - self.written);
        left.min(SEGMENT).min(self.takes.unwrap_or(usize::MAX))
    }
}

struct Uplink {
    server: Server,
    start: Instant,
    now: Instant,
    rate: f64,
    free: Instant,
    /// Of blocks that are no [`BLOCK`].
    sizes: HashMap<Cid, usize>,
    data: Bytes,
    conns: BTreeMap<u64, Conn>,
    /// Connections in the order of their turns.
    turns: VecDeque<u64>,
    reads: VecDeque<(Instant, ReadId, usize)>,
    wanted_at: HashMap<Cid, Instant>,
    /// From want to the first byte on the link.
    first_byte: HashMap<u64, Vec<Duration>>,
    sent: BTreeMap<u64, u64>,
}

impl Uplink {
    fn new(peers: u64, rate: f64, config: Config) -> Self {
        let now = origin();
        let mut uplink = Self {
            server: Server::new(config, [0; 32], now),
            start: now,
            now,
            rate,
            free: now,
            sizes: HashMap::new(),
            data: vec![0; LARGE].into(),
            conns: BTreeMap::new(),
            turns: VecDeque::new(),
            reads: VecDeque::new(),
            wanted_at: HashMap::new(),
            first_byte: HashMap::new(),
            sent: BTreeMap::new(),
        };
        for index in 0..peers {
            uplink.connect(index);
        }
        uplink
    }

    fn connect(&mut self, index: u64) {
        self.conns.insert(index, Conn::default());
        self.server.on_connected(
            peer(index),
            ConnKey(index),
            Path::Direct,
            &|_| Some(BLOCK as u32),
            self.now,
        );
        self.drain();
    }

    fn want(&mut self, from: u64, cids: impl Iterator<Item = Cid>, priority: i32) {
        let entries: Vec<Entry> = cids
            .map(|cid| Entry {
                cid,
                priority,
                cancel: false,
                want_type: WantType::Block,
                send_dont_have: true,
                descend: 0,
            })
            .collect();
        self.wanted_at
            .extend(entries.iter().map(|entry| (entry.cid, self.now)));
        self.server.on_message(
            peer(from),
            &wants(entries),
            &|cid| Some(size(&self.sizes, cid) as u32),
            self.now,
        );
        self.drain();
    }

    /// Wants that nobody else has.
    fn want_many(&mut self, from: u64, count: u64) {
        self.want(from, (0..count).map(|n| cid(from * 100_000 + n)), 1);
    }

    fn drain(&mut self) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Read { id, cid, .. } => {
                    let bytes = size(&self.sizes, &cid);
                    self.reads.push_back((self.now + READ, id, bytes));
                }
                Output::Block { conn, block, .. } => {
                    if let Some(state) = self.conns.get_mut(&conn.0) {
                        state.queue.push_back(block);
                        // Those that take nothing have no turn.
                        if state.queue.len() == 1 && state.next_segment() > 0 {
                            self.turns.push_back(conn.0);
                        }
                    }
                }
                Output::Withdraw { peer, conn } => {
                    let queue = &mut self.conns.get_mut(&conn.0).unwrap().queue;
                    let back: Vec<Block> = queue.split_off(queue.len().min(1)).into();
                    self.server.on_returned(peer, conn, back, self.now);
                }
                Output::TakeBack { .. } => unreachable!("nothing is cancelled"),
                Output::Presences { peer, .. } => self.server.on_answers_written(peer, self.now),
                Output::Prefetch(_) | Output::EndPrefetch(_) => unreachable!("no master"),
            }
        }
        self.free = self.free.max(self.now);
    }

    /// The next thing that happens before `until`.
    fn step(&mut self, until: Instant) -> bool {
        let read = self.reads.front().map(|(at, ..)| *at);
        let link = (!self.turns.is_empty()).then_some(self.free);
        let timer = self.server.poll_timeout();
        let next = [read, link, timer].into_iter().flatten().min();
        let Some(at) = next.filter(|at| *at < until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(at);
        if read == Some(at) {
            let (_, id, bytes) = self.reads.pop_front().unwrap();
            let lookup = |cid: &Cid| Some(size(&self.sizes, cid) as u32);
            let data = self.data.slice(..bytes);
            self.server
                .on_read(id, Some(data), Vec::new(), &lookup, self.now);
        } else if link == Some(at) {
            self.send_segment();
        } else {
            self.server.handle_timeout(self.now);
        }
        self.drain();
        true
    }

    fn send_segment(&mut self) {
        let index = self.turns.pop_front().unwrap();
        let conn = self.conns.get_mut(&index).unwrap();
        let bytes = conn.next_segment();
        let block = conn.queue.front().unwrap();
        if conn.written == 0
            && let Some(at) = self.wanted_at.remove(block.cid())
        {
            let waited = self.now.duration_since(at);
            self.first_byte.entry(index).or_default().push(waited);
        }
        conn.written += bytes;
        conn.takes = conn.takes.map(|takes| takes - bytes);
        self.free = self.now + Duration::from_secs_f64(bytes as f64 / self.rate);
        *self.sent.entry(index).or_default() += bytes as u64;
        if conn.written == block.data().len() {
            let (bytes, at) = (conn.written as u64, self.now);
            conn.written = 0;
            conn.queue.pop_front();
            self.server
                .on_written(peer(index), ConnKey(index), 1, bytes, at);
        }
        if self.conns[&index].next_segment() > 0 {
            self.turns.push_back(index);
        }
    }

    fn run_for(&mut self, span: Duration) {
        let until = self.now + span;
        while self.step(until) {}
    }

    /// Bytes sent to each of some peers since the last call.
    fn take_sent(&mut self, peers: impl Iterator<Item = u64>) -> Vec<f64> {
        let sent = std::mem::take(&mut self.sent);
        peers
            .map(|index| sent.get(&index).copied().unwrap_or(0) as f64)
            .collect()
    }
}

fn size(sizes: &HashMap<Cid, usize>, cid: &Cid) -> usize {
    sizes.get(cid).copied().unwrap_or(BLOCK)
}

/// Jain's index: 1 if all are equal, 1/n if one has all.
fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    sum * sum / (shares.len() as f64 * squares)
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// R10.
#[test]
fn r10_one_want_among_64_000_has_its_first_byte_within_20_ms() {
    let mut uplink = Uplink::new(65, GIGABIT, Config::default());
    for heavy in 0..64 {
        uplink.want_many(heavy, 1000);
    }
    uplink.run_for(millis(1000));
    uplink.take_sent(0..64);
    let mut rng = StdRng::seed_from_u64(10);
    for n in 0..200 {
        uplink.run_for(millis(rng.random_range(140..260)));
        uplink.want(64, [cid(9_000_000 + n)].into_iter(), 1);
        if n % 5 == 4 {
            let index = jain(&uplink.take_sent(0..64));
            assert!(index >= 0.95, "{index:.3} over a second");
        }
    }
    uplink.run_for(millis(1000));
    let waited = uplink.first_byte.get_mut(&64).unwrap();
    waited.sort_unstable();
    assert_eq!(waited.len(), 200);
    assert!(waited[197] <= millis(20), "p99 is {:?}", waited[197]);
}

#[test]
fn a_new_peer_gets_even_a_large_block_at_once() {
    let mut uplink = Uplink::new(65, GIGABIT, Config::default());
    for heavy in 0..64 {
        uplink.want_many(heavy, 1000);
    }
    uplink.run_for(millis(500));
    uplink.sizes.insert(cid(9_000_000), LARGE);
    uplink.want(64, [cid(9_000_000)].into_iter(), 1);
    uplink.run_for(millis(100));
    assert!(uplink.first_byte[&64][0] <= millis(20));
}

#[test]
fn a_peer_that_comes_back_for_every_block_has_no_more_than_its_share() {
    let mut uplink = Uplink::new(9, 10e6, Config::default());
    for heavy in 0..8 {
        uplink.want_many(heavy, 1000);
    }
    let until = uplink.now + Duration::from_secs(60);
    let mut next = 9_000_000;
    while uplink.now < until {
        if !uplink.server.is_busy(&peer(8)) {
            next += 1;
            uplink.want(8, [cid(next)].into_iter(), 1);
        }
        uplink.step(until);
    }
    let shares = uplink.take_sent(0..9);
    let most = shares[..8].iter().copied().fold(0.0, f64::max);
    assert!(shares[8] <= 1.1 * most, "{shares:?}");
}

/// R9.
#[test]
fn r9_64_peers_that_never_read_cost_the_others_less_than_5_percent() {
    let throughput = |silent: u64| {
        let mut uplink = Uplink::new(silent + 4, GIGABIT, Config::default());
        for index in 0..silent {
            // The muxer's first window, and nothing after it.
            uplink.conns.get_mut(&index).unwrap().takes = Some(BLOCK);
            uplink.want_many(index, 1000);
        }
        for index in silent..silent + 4 {
            uplink.want_many(index, 1000);
        }
        uplink.run_for(Duration::from_secs(2));
        let sent: f64 = uplink.take_sent(silent..silent + 4).iter().sum();
        let [.., in_pipe] = uplink.server.counters();
        let max = Config::default().max_pipeline_bytes();
        assert!(in_pipe < max, "{in_pipe} bytes for {silent} silent peers");
        (sent, uplink)
    };
    let (alone, _) = throughput(0);
    // From the first moment on: nothing waits for a timeout.
    let (among, mut uplink) = throughput(64);
    let lost = 1.0 - among / alone;
    // A window for each of the 64 goes over the link.
    let windows = (64 * BLOCK) as f64 / (2.0 * GIGABIT);
    assert!(lost - windows < 0.05, "lost {lost:.3}");

    // Later they hold one block each, and get the rest when they read again.
    uplink.run_for(Duration::from_secs(8));
    let [.., in_pipe] = uplink.server.counters();
    assert!(in_pipe <= 36 * 1024 * 1024, "{in_pipe}");
    uplink.conns.get_mut(&0).unwrap().takes = None;
    let (at, _) = uplink.conns.first_key_value().unwrap();
    uplink.turns.push_back(*at);
    uplink.run_for(Duration::from_secs(10));
    assert_eq!(uplink.first_byte[&0].len(), 1000);
}

/// R16: ids decide nothing, and a priority orders only the wants of its own peer.
#[test]
fn r16_neither_mined_ids_nor_inflated_priorities_get_a_peer_more() {
    let order = |ids: &[u64], priority: i32| {
        let mut uplink = Uplink::new(0, 10e6, Config::default());
        for index in ids {
            uplink.connect(*index);
        }
        for (place, index) in ids.iter().enumerate() {
            let priority = if place == 3 { priority } else { 1 };
            let list = (0..200).map(|n| cid(index * 100_000 + n));
            uplink.want(*index, list, priority);
        }
        let until = uplink.now + Duration::from_secs(5);
        uplink.run_for(until - uplink.now);
        uplink.take_sent(ids.iter().copied())
    };
    let ids: Vec<u64> = (0..8).collect();
    let mut mined = ids.clone();
    mined.sort_by_key(|index| peer(*index));
    assert_ne!(ids, mined);
    assert_eq!(order(&ids, 1), order(&mined, 1));
    let shares = order(&ids, i32::MAX);
    assert!(jain(&shares) >= 0.99, "{shares:?}");
    assert_eq!(shares, order(&ids, 1));
}

fn limits(total: Option<u64>, favoured: Option<u64>, normal: Option<u64>) -> UploadLimits {
    let rate = |bytes: Option<u64>| bytes.and_then(NonZeroU64::new);
    UploadLimits {
        total: rate(total),
        favoured: rate(favoured),
        normal: rate(normal),
        ..UploadLimits::default()
    }
}

fn limited(limits: UploadLimits) -> Config {
    Config::builder().upload_limits(limits).build().unwrap()
}

#[test]
fn an_upload_limit_is_kept_within_5_percent_over_10_seconds() {
    for (rate, peers) in [
        (2_000_000, 1),
        (10_000_000, 1),
        (10_000_000, 20),
        (100_000_000, 64),
    ] {
        let config = limited(limits(Some(rate), None, None));
        let mut uplink = Uplink::new(peers, GIGABIT, config);
        for index in 0..peers {
            uplink.want_many(index, 1000);
        }
        uplink.run_for(millis(100));
        uplink.take_sent(0..0);
        uplink.run_for(Duration::from_secs(10));
        let sent: f64 = uplink.take_sent(0..peers).iter().sum();
        let ratio = sent / 10.0 / rate as f64;
        assert!(
            (0.95..1.05).contains(&ratio),
            "{ratio:.3} of {rate} with {peers} peers"
        );
    }
}

#[test]
fn each_class_has_a_limit_of_its_own_and_may_be_given_another_one() {
    let config = limited(limits(None, Some(8_000_000), Some(2_000_000)));
    let mut uplink = Uplink::new(4, GIGABIT, config);
    for index in [0, 1] {
        uplink
            .server
            .set_class(peer(index), Class::Favoured, uplink.now);
    }
    for index in 0..4 {
        uplink.want_many(index, 1000);
    }
    let rates = |uplink: &mut Uplink| {
        uplink.run_for(millis(200));
        uplink.take_sent(0..0);
        uplink.run_for(Duration::from_secs(10));
        let sent = uplink.take_sent(0..4);
        [(sent[0] + sent[1]) / 10e6, (sent[2] + sent[3]) / 10e6]
    };
    let [favoured, normal] = rates(&mut uplink);
    assert!((7.6..8.4).contains(&favoured) && (1.9..2.1).contains(&normal));
    let now = uplink.now;
    uplink
        .server
        .set_upload_limits(&limits(None, Some(4_000_000), Some(4_000_000)), now);
    uplink.drain();
    let [favoured, normal] = rates(&mut uplink);
    assert!((3.8..4.2).contains(&favoured) && (3.8..4.2).contains(&normal));
}

#[test]
fn under_a_limit_a_class_gets_what_the_ones_before_it_leave() {
    let config = limited(limits(Some(10_000_000), Some(7_000_000), None));
    let mut uplink = Uplink::new(3, GIGABIT, config);
    uplink
        .server
        .set_class(peer(0), Class::Favoured, uplink.now);
    uplink
        .server
        .set_class(peer(2), Class::Background, uplink.now);
    for index in 0..3 {
        uplink.want_many(index, 1000);
    }
    uplink.run_for(Duration::from_secs(1));
    uplink.take_sent(0..0);
    uplink.run_for(Duration::from_secs(10));
    let sent = uplink.take_sent(0..3);
    assert!((6.6e7..7.4e7).contains(&sent[0]), "{sent:?}");
    assert!((2.6e7..3.4e7).contains(&sent[1]), "{sent:?}");
    assert!(sent[2] < 0.1e7, "{sent:?}");
}

#[test]
fn blocks_that_are_taken_back_do_not_count_against_the_limit() {
    let config = limited(limits(Some(4_000_000), None, None));
    let mut uplink = Uplink::new(1, GIGABIT, config);
    uplink.conns.get_mut(&0).unwrap().takes = Some(0);
    uplink.want_many(0, 8);
    uplink.run_for(millis(10));
    // A better connection comes, then it breaks: what it held is wanted again.
    let queue = &mut uplink.conns.get_mut(&0).unwrap().queue;
    let back: Vec<Block> = queue.drain(..).collect();
    assert_eq!(back.len(), 2);
    uplink
        .server
        .on_returned(peer(0), ConnKey(0), back, uplink.now);
    uplink.conns.get_mut(&0).unwrap().takes = None;
    uplink.drain();
    uplink.run_for(millis(10));
    assert!(
        uplink.take_sent(0..1)[0] > 0.0,
        "the limit waits for what was never sent"
    );
}

#[test]
fn a_peer_that_leaves_in_the_middle_leaves_nothing_behind() {
    let mut uplink = Uplink::new(8, 10e6, Config::default());
    let gone: BTreeSet<u64> = (0..8).collect();
    for index in &gone {
        uplink.want_many(*index, 1000);
    }
    uplink.run_for(millis(300));
    for index in gone {
        uplink
            .server
            .on_disconnected(peer(index), ConnKey(index), uplink.now);
        uplink.conns.remove(&index);
    }
    uplink.turns.clear();
    uplink.run_for(millis(100));
    assert_eq!(uplink.server.counters(), [0; 4]);
    assert!(uplink.now > uplink.start);
}
