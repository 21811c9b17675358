//! What the server makes of what others want: heat, prefetch, roles, the filter.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use cid::Cid;
use web_time::Instant;

use super::sim::{cid, cids, link, network, network_with, origin, peer, wants};
use crate::{
    Config, Priority, Role, SessionOptions, WantOptions,
    core::{
        ConnKey, Path,
        server::{Output, Server},
    },
    message::{Entry, WantType},
};

const CHUNK: usize = 256 * 1024;

/// A server that has nothing, with the prefetches that run.
struct Bench {
    server: Server,
    now: Instant,
    has: HashSet<Cid>,
    running: BTreeSet<Cid>,
    started: Vec<Cid>,
    answers: Vec<(Cid, bool)>,
    blocks: Vec<Cid>,
}

impl Bench {
    fn new(role: Role, config: crate::ConfigBuilder) -> Self {
        let now = origin();
        Self {
            server: Server::new(config.role(role).build().unwrap(), [3; 32], now),
            now,
            has: HashSet::new(),
            running: BTreeSet::new(),
            started: Vec::new(),
            answers: Vec::new(),
            blocks: Vec::new(),
        }
    }

    fn master() -> Self {
        Self::new(Role::Master, Config::builder())
    }

    fn connect(&mut self, index: u64) {
        let (peer, conn) = (peer(index), ConnKey(index));
        self.server
            .on_connected(peer, conn, Path::Direct, &|_| None, self.now);
        self.drain();
    }

    fn disconnect(&mut self, index: u64) {
        self.server
            .on_disconnected(peer(index), ConnKey(index), self.now);
        self.drain();
    }

    fn send(&mut self, index: u64, entry: Entry) {
        let lookup = |cid: &Cid| self.has.contains(cid).then_some(100);
        self.server
            .on_message(peer(index), &wants(vec![entry]), &lookup, self.now);
        self.drain();
    }

    fn want(&mut self, index: u64, cid: Cid, priority: i32) {
        self.send(index, entry(cid, priority));
    }

    /// `count` peers want it and go on waiting.
    fn want_by(&mut self, peers: std::ops::Range<u64>, cid: Cid, priority: i32) {
        for index in peers {
            self.connect(index);
            self.want(index, cid, priority);
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Prefetch(cid) => {
                    assert!(self.running.insert(cid));
                    self.started.push(cid);
                }
                Output::EndPrefetch(cid) => assert!(self.running.remove(&cid)),
                Output::Presences {
                    peer, presences, ..
                } => {
                    self.answers
                        .extend(presences.into_iter().map(|p| (p.cid, p.have)));
                    self.server.on_answers_written(peer, self.now);
                }
                Output::Read { id, links, .. } => {
                    let links = if links { cids(50) } else { Vec::new() };
                    let lookup = |cid: &Cid| self.has.contains(cid).then_some(100);
                    let data = Some(vec![0; 100].into());
                    self.server.on_read(id, data, links, &lookup, self.now);
                }
                Output::Block { block, .. } => self.blocks.push(*block.cid()),
                Output::Withdraw { .. } | Output::TakeBack { .. } => {}
            }
        }
    }

    fn wait(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(at) = self.server.poll_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.server.handle_timeout(self.now);
            self.drain();
        }
        self.now = until;
    }

    /// The block of a prefetch comes, and is kept.
    fn arrive(&mut self, cid: Cid) {
        assert!(self.running.remove(&cid));
        self.server.on_prefetched(&cid, self.now);
        self.has.insert(cid);
        let lookup = |cid: &Cid| self.has.contains(cid).then_some(100);
        self.server.on_new_blocks(&[cid], &lookup, self.now);
        self.drain();
    }
}

fn entry(cid: Cid, priority: i32) -> Entry {
    Entry {
        cid,
        priority,
        cancel: false,
        want_type: WantType::Block,
        send_dont_have: true,
        descend: 0,
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_master_prefetches_what_more_than_two_want_with_a_priority_above_three() {
    for (role, peers, priority, expected) in [
        (Role::Master, 3, 4, true),
        (Role::Master, 2, 4, false),
        (Role::Master, 3, 3, false),
        (Role::Worker, 3, 4, false),
        (Role::Leecher, 3, 4, false),
    ] {
        let mut bench = Bench::new(role, Config::builder());
        bench.want_by(0..peers, cid(1), priority);
        let started: &[Cid] = if expected { &[cid(1)] } else { &[] };
        assert_eq!(bench.started, started, "{role:?} {peers} {priority}");
    }
}

#[test]
fn what_was_prefetched_is_sent_to_those_who_wait_and_not_fetched_again() {
    let mut bench = Bench::master();
    bench.want_by(0..3, cid(1), 5);
    bench.arrive(cid(1));
    assert_eq!(bench.blocks, [cid(1); 3]);
    bench.want_by(3..9, cid(1), 5);
    assert_eq!(bench.started, [cid(1)]);
}

#[test]
fn a_master_prefetches_what_many_asked_for_one_after_the_other() {
    let mut bench = Bench::master();
    for index in 0..12 {
        bench.connect(index);
        bench.want(index, cid(1), 1);
        bench.disconnect(index);
        bench.wait(secs(60));
        if index < 6 {
            assert!(bench.started.is_empty(), "after {index}");
        }
    }
    assert_eq!(bench.started, [cid(1)]);
    let [hottest] = bench.server.most_wanted(5, &|_| None, bench.now)[..] else {
        panic!("one block");
    };
    assert_eq!(
        (hottest.cid, hottest.requesters, hottest.have),
        (cid(1), 0, false)
    );
    assert!(hottest.heat > 8.0);
}

/// However it asks: again, for both kinds of CID, after a cancel, on new connections.
#[test]
fn one_peer_alone_makes_a_master_fetch_nothing() {
    let mut bench = Bench::master();
    let v0 = Cid::new_v0(*cid(1).hash()).unwrap();
    let dag_pb = Cid::new_v1(0x70, *cid(1).hash());
    for round in 0..1000 {
        bench.connect(0);
        for wanted in [cid(1), v0, dag_pb] {
            bench.want(0, wanted, i32::MAX);
        }
        bench.send(
            0,
            Entry {
                cancel: true,
                ..entry(cid(1), 0)
            },
        );
        bench.want(0, cid(1), i32::MAX);
        bench.disconnect(0);
        bench.wait(secs(if round % 10 == 0 { 1800 } else { 1 }));
    }
    assert!(bench.started.is_empty());
    assert!(bench.server.most_wanted(1, &|_| None, bench.now)[0].heat <= 2.0);
}

#[test]
fn prefetches_run_so_many_at_a_time_the_hottest_first() {
    let mut bench = Bench::new(Role::Master, Config::builder().max_prefetches(2));
    for block in 0..6 {
        // The later ones are wanted by more.
        bench.want_by(100 * block..100 * block + 3 + block, cid(block), 4);
    }
    assert_eq!(bench.started, [cid(0), cid(1)]);
    bench.arrive(cid(0));
    assert_eq!(bench.started[2..], [cid(5)]);
    bench.arrive(cid(1));
    assert_eq!(bench.started[3..], [cid(4)]);
}

#[test]
fn a_prefetch_that_does_not_come_makes_room_and_rests() {
    let mut bench = Bench::new(Role::Master, Config::builder().max_prefetches(1));
    bench.want_by(0..3, cid(1), 4);
    bench.want_by(3..6, cid(2), 4);
    bench.wait(secs(59));
    assert_eq!(bench.started, [cid(1)]);
    bench.wait(secs(2));
    assert_eq!(bench.started, [cid(1), cid(2)]);
    bench.wait(secs(60));
    assert!(bench.running.is_empty());
    bench.want_by(6..9, cid(1), 4);
    assert_eq!(bench.started.len(), 2, "it is left alone");
    bench.wait(secs(600));
    bench.want_by(9..12, cid(1), 4);
    assert_eq!(bench.started[2..], [cid(1)]);
}

#[test]
fn what_nobody_waits_for_any_more_is_not_prefetched() {
    let mut bench = Bench::new(Role::Master, Config::builder().max_prefetches(1));
    bench.want_by(0..3, cid(1), 4);
    bench.want_by(3..6, cid(2), 4);
    for index in 3..6 {
        bench.disconnect(index);
    }
    bench.wait(secs(600));
    assert_eq!(bench.started, [cid(1)]);
}

#[test]
fn a_worker_fetches_what_it_is_assigned_until_it_has_it() {
    let mut bench = Bench::new(Role::Worker, Config::builder().max_prefetches(2));
    bench.has.insert(cid(0));
    let has = bench.has.clone();
    let lookup = |cid: &Cid| has.contains(cid).then_some(100);
    let accepted = bench.server.assign(&cids(5), &lookup, bench.now);
    assert_eq!(accepted, 4, "one is here");
    bench.drain();
    assert_eq!(bench.started, [cid(1), cid(2)]);
    bench.arrive(cid(1));
    bench.server.unassign(&[cid(2)], bench.now);
    bench.drain();
    assert_eq!(bench.started, [cid(1), cid(2), cid(3), cid(4)]);
    bench.arrive(cid(3));
    // Nobody has the other one: again and again, ten minutes apart.
    bench.wait(secs(3600));
    let tries = bench
        .started
        .iter()
        .filter(|tried| **tried == cid(4))
        .count();
    assert_eq!(tries, 6);
    assert_eq!(bench.started.len(), 3 + tries);
}

#[test]
fn a_leecher_is_assigned_nothing_and_sends_nothing_it_was_not_asked_for() {
    let mut bench = Bench::new(Role::Leecher, Config::builder());
    assert_eq!(bench.server.assign(&cids(5), &|_| None, bench.now), 0);
    bench.has.extend(cids(60));
    bench.connect(0);
    let probe = Entry {
        want_type: WantType::Have,
        ..entry(cid(1), 1)
    };
    bench.send(0, probe);
    assert_eq!(bench.answers, [(cid(1), true)]);
    let with_descendants = Entry {
        descend: 10,
        ..entry(cid(2), 1)
    };
    bench.send(0, with_descendants);
    assert_eq!(bench.blocks, [cid(2)]);
}

#[test]
fn assignments_are_bounded() {
    let mut bench = Bench::new(Role::Worker, Config::builder().max_assigned(10));
    assert_eq!(bench.server.assign(&cids(50), &|_| None, bench.now), 10);
    assert_eq!(bench.server.assign(&cids(50), &|_| None, bench.now), 10);
}

#[test]
fn a_wantlist_tells_the_highest_priority_and_all_requesters() {
    let mut bench = Bench::new(Role::Worker, Config::builder());
    bench.want_by(0..2, cid(1), 1);
    bench.want_by(2..3, cid(1), 5);
    bench.want_by(3..4, cid(2), 2);
    let list = bench.server.wantlist();
    let told = |wanted: Cid| {
        let entry = list.iter().find(|entry| entry.cid == wanted).unwrap();
        (entry.priority, entry.requesters.clone(), entry.have)
    };
    assert_eq!(list.len(), 2);
    assert_eq!(
        told(cid(1)),
        (Priority(5), vec![peer(0), peer(1), peer(2)], false)
    );
    assert_eq!(told(cid(2)), (Priority(2), vec![peer(3)], false));
}

#[test]
fn a_filtered_block_does_not_exist_for_the_peer_and_counts_as_nobodys_demand() {
    let mut bench = Bench::master();
    bench.has.insert(cid(1));
    let friend = peer(9);
    bench
        .server
        .set_filter(Some(Box::new(move |from, _| *from == friend)));
    bench.want_by(0..3, cid(1), 5);
    bench.want_by(0..3, cid(2), 5);
    assert_eq!(bench.answers.len(), 6);
    assert!(bench.answers.iter().all(|(_, have)| !have));
    assert!(bench.server.wantlist().is_empty());
    assert_eq!(bench.server.denied(), 6);
    assert!(bench.started.is_empty());
    assert!(bench.server.most_wanted(5, &|_| None, bench.now).is_empty());
    bench.connect(9);
    bench.want(9, cid(1), 1);
    assert_eq!(bench.blocks, [cid(1)]);
    // What was refused does not wait for a new filter.
    bench.server.set_filter(None);
    bench.wait(secs(1));
    assert_eq!(bench.blocks.len(), 1);
}

/// R15: what a peer wants is told to nobody, and answers are no larger than questions.
#[test]
fn r15_wants_are_not_forwarded_and_answers_do_not_amplify() {
    let config = Config::builder().role(Role::Master).build().unwrap();
    let mut sim = network_with(3, config);
    sim.connect(0, 1, link(10, 10e6));
    sim.connect(1, 2, link(10, 10e6));
    let sessions = sim.session(0, &[1]);
    sim.want(0, sessions, &cids(1000));
    sim.run_for(secs(120));
    assert!(sim.node(0).traffic.messages_sent > 0);
    let asked_of_2 = &sim.node(1).entries_sent;
    assert!(
        asked_of_2.is_empty(),
        "{} entries forwarded",
        asked_of_2.len()
    );

    let mut bench = Bench::master();
    bench.connect(0);
    for number in 0..5000 {
        bench.want(0, cid(number), 1);
        // One presence a want, of the same CID.
        assert!(bench.answers.len() as u64 <= number + 1);
    }
}

/// The first block after a pause, and a whole file, with and without prefetches under way.
#[test]
fn prefetch_yields_to_demand() {
    let run = |prefetch: bool| {
        let mut sim = network(2);
        let (hot, file) = (cids(5000), (10_000..10_500).map(cid).collect::<Vec<_>>());
        sim.give(1, &hot, CHUNK);
        sim.give(1, &file, CHUNK);
        sim.connect(0, 1, link(20, 50e6));
        let (seeder, now) = (sim.node(1).id, sim.now());
        let client = &mut sim.node_mut(0).client;
        let background = client.new_session(SessionOptions::default().background(true));
        client.add_session_peer(background, seeder, now);
        // As many as `max_prefetches`, one after the other.
        let mut next = hot.iter().copied();
        let options = WantOptions::default().priority(Priority(i32::MIN));
        let session = sim.session(0, &[1]);
        let mut times = Vec::new();
        let mut fetched = 0;
        let mut running = 0;
        for wanted in file.chunks(50) {
            let started = sim.now();
            let mut missing: HashSet<_> = sim.want(0, session, wanted).into_iter().collect();
            let mut idle_until = None;
            loop {
                for got in std::mem::take(&mut sim.node_mut(0).got) {
                    if missing.remove(&got.ticket) {
                        if missing.is_empty() {
                            times.push(got.at.duration_since(started));
                            idle_until = Some(got.at + Duration::from_millis(500));
                        }
                    } else {
                        fetched += 1;
                        running -= 1;
                    }
                }
                while prefetch && running < 2 {
                    let wanted = next.next().unwrap();
                    let now = sim.now();
                    sim.node_mut(0)
                        .client
                        .want(background, wanted, options, now);
                    running += 1;
                }
                sim.settle(0);
                let until = idle_until.unwrap_or(sim.now() + secs(10));
                if !sim.step(until) {
                    break;
                }
            }
        }
        assert_eq!(times.len(), 10);
        (times, fetched)
    };
    let (alone, none) = run(false);
    let (among, fetched) = run(true);
    assert_eq!(none, 0);
    assert!(
        fetched > 50,
        "{fetched} blocks came while nothing was wanted"
    );
    let total = |times: &[Duration]| times.iter().sum::<Duration>().as_secs_f64();
    let cost = total(&among) / total(&alone) - 1.0;
    assert!(cost < 0.05, "{among:?} instead of {alone:?}");
}

/// Not even of peers that have nothing else to do.
#[test]
fn nothing_is_prefetched_while_this_node_waits_for_blocks() {
    let mut sim = network(3);
    let (hot, file) = (cids(400), (10_000..10_400).map(cid).collect::<Vec<_>>());
    sim.give(1, &file, CHUNK);
    sim.give(2, &hot, CHUNK);
    for seeder in [1, 2] {
        sim.connect(0, seeder, link(20, 50e6));
    }
    let options = SessionOptions::default().background(true);
    let background = sim.session_with(0, &[2], options);
    let session = sim.session(0, &[1]);
    let tickets: HashSet<_> = sim.want(0, session, &file).into_iter().collect();
    sim.want(0, background, &hot);
    assert!(sim.run_until_got(0, 800, secs(60)));
    let got: Vec<bool> = sim
        .node(0)
        .got
        .iter()
        .map(|got| tickets.contains(&got.ticket))
        .collect();
    let first = got.iter().position(|wanted| !wanted).unwrap();
    assert_eq!(first, file.len(), "all that was waited for comes first");
}
