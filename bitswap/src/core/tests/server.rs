use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use cid::Cid;
use web_time::Instant;

use super::sim::{cid, cids, origin, peer, wants};
use crate::{
    Block, Config,
    core::{
        ConnKey, Path,
        server::{Output, Server},
    },
    message::{Entry, Message, WantType},
};

fn entry(cid: Cid) -> Entry {
    Entry {
        cid,
        priority: 1,
        cancel: false,
        want_type: WantType::Block,
        send_dont_have: true,
        descend: 0,
    }
}

fn cancel(cid: Cid) -> Entry {
    Entry {
        cancel: true,
        ..entry(cid)
    }
}

fn have(cid: Cid) -> Entry {
    Entry {
        want_type: WantType::Have,
        ..entry(cid)
    }
}

type Size = Box<dyn Fn(&Cid) -> Option<u32>>;

/// A server with peers 0..count, peer n on connection n, and a source in which every CID that
/// `size` knows has that many bytes.
struct Bench {
    server: Server,
    now: Instant,
    size: Size,
    blocks: Vec<(u64, Cid, usize)>,
    answers: Vec<(u64, Cid, bool)>,
    /// Blocks handed to each connection and not written.
    held: HashMap<u64, VecDeque<Block>>,
}

impl Bench {
    fn new(count: u64, config: Config, size: impl Fn(&Cid) -> Option<u32> + 'static) -> Self {
        let now = origin();
        let mut bench = Self {
            server: Server::new(config, [0; 32], now),
            now,
            size: Box::new(size),
            blocks: Vec::new(),
            answers: Vec::new(),
            held: HashMap::new(),
        };
        for index in 0..count {
            let path = Path::Direct;
            bench
                .server
                .on_connected(peer(index), ConnKey(index), path, &bench.size, now);
        }
        bench
    }

    fn with(size: u32) -> Self {
        Self::new(1, Config::default(), move |_| Some(size))
    }

    fn without() -> Self {
        Self::new(1, Config::default(), |_| None)
    }

    fn message(&mut self, from: u64, message: &Message) {
        self.server
            .on_message(peer(from), message, &self.size, self.now);
        self.drain();
    }

    /// Reads at once; nothing is written until `write`.
    fn drain(&mut self) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Read { id, cid, .. } => {
                    let data = (self.size)(&cid).map(|size| vec![0; size as usize].into());
                    self.server
                        .on_read(id, data, Vec::new(), &self.size, self.now);
                }
                Output::Block { conn, block, .. } => {
                    self.blocks.push((conn.0, *block.cid(), block.data().len()));
                    self.held.entry(conn.0).or_default().push_back(block);
                }
                Output::Presences {
                    peer,
                    conn,
                    presences,
                } => {
                    self.answers
                        .extend(presences.into_iter().map(|p| (conn.0, p.cid, p.have)));
                    self.server.on_answers_written(peer, self.now);
                }
                Output::Withdraw { .. } => {}
                Output::TakeBack { peer, conn, cids } => {
                    let held = self.held.entry(conn.0).or_default();
                    let back = held.iter().filter(|block| cids.contains(block.cid()));
                    let back: Vec<Block> = back.cloned().collect();
                    held.retain(|block| !cids.contains(block.cid()));
                    self.server.on_taken_back(peer, conn, &back, self.now);
                }
                Output::Prefetch(_) | Output::EndPrefetch(_) => unreachable!("no master"),
            }
        }
    }

    fn write(&mut self, to: u64, bytes: usize) {
        self.held.entry(to).or_default().pop_front();
        self.server
            .on_written(peer(to), ConnKey(to), 1, bytes as u64, self.now);
        self.drain();
    }
}

#[test]
fn a_block_is_sent_and_the_want_is_gone() {
    let mut bench = Bench::with(5000);
    bench.message(0, &wants(vec![entry(cid(1))]));
    assert_eq!(bench.blocks, [(0, cid(1), 5000)]);
    assert!(bench.server.wantlist().is_empty());
    bench.write(0, 5000);
    assert!(!bench.server.is_busy(&peer(0)));
    assert_eq!(bench.server.ledger(&peer(0)).unwrap().bytes_sent, 5000);
}

#[test]
fn want_have_is_answered_with_small_blocks_and_have_for_large_ones() {
    for (size, is_block) in [(0, true), (1024, true), (1025, false)] {
        let mut bench = Bench::with(size);
        bench.message(0, &wants(vec![have(cid(1))]));
        assert_eq!(bench.blocks.len(), usize::from(is_block), "{size}");
        assert_eq!(bench.answers.len(), usize::from(!is_block));
    }
}

#[test]
fn a_want_stays_after_dont_have_and_is_served_when_the_block_comes() {
    let mut bench = Bench::without();
    bench.message(0, &wants(vec![entry(cid(1)), have(cid(2))]));
    assert_eq!(bench.answers, [(0, cid(1), false), (0, cid(2), false)]);
    bench.size = Box::new(|_| Some(3000));
    bench
        .server
        .on_new_blocks(&[cid(1), cid(2)], &bench.size, bench.now);
    bench.drain();
    assert_eq!(bench.blocks, [(0, cid(1), 3000)]);
    assert_eq!(bench.answers[2], (0, cid(2), true));
}

#[test]
fn a_v0_want_is_woken_by_the_v1_block_and_answered_as_asked() {
    let hash = *cid(1).hash();
    let v0 = Cid::new_v0(hash).unwrap();
    let mut bench = Bench::without();
    bench.message(0, &wants(vec![entry(v0)]));
    bench.size = Box::new(|_| Some(3000));
    bench
        .server
        .on_new_blocks(&[Cid::new_v1(0x70, hash)], &bench.size, bench.now);
    bench.drain();
    assert_eq!(bench.blocks, [(0, v0, 3000)]);
}

#[test]
fn cancel_drops_a_queued_block() {
    let config = Config::builder()
        .max_pipeline_bytes_per_peer(64 * 1024)
        .build()
        .unwrap();
    let mut bench = Bench::new(1, config, |_| Some(60_000));
    bench.message(0, &wants(vec![entry(cid(1)), entry(cid(2)), entry(cid(3))]));
    bench.message(0, &wants(vec![cancel(cid(2))]));
    bench.write(0, 60_000);
    bench.write(0, 60_000);
    let sent: Vec<Cid> = bench.blocks.iter().map(|(_, cid, _)| *cid).collect();
    assert_eq!(sent, [cid(1), cid(3)]);
}

#[test]
fn cancel_takes_back_a_block_that_is_not_written_and_another_one_takes_its_place() {
    const SIZE: u32 = 200_000;
    let mut bench = Bench::with(SIZE);
    bench.message(0, &wants((0..5).map(cid).map(entry).collect()));
    // Two fill the pipeline of a peer about which nothing is known.
    let handed = |bench: &Bench| -> Vec<Cid> { bench.held[&0].iter().map(|b| *b.cid()).collect() };
    assert_eq!(handed(&bench), [cid(0), cid(1)]);
    bench.message(0, &wants(vec![cancel(cid(1))]));
    assert_eq!(handed(&bench), [cid(0), cid(2)]);
    // What is written by then comes, and was no waste of anybody's turn.
    bench.message(
        0,
        &wants(vec![cancel(cid(77)), cancel(cid(3)), cancel(cid(4))]),
    );
    bench.write(0, SIZE as usize);
    bench.write(0, SIZE as usize);
    assert_eq!(bench.blocks.len(), 3);
    assert_eq!(bench.server.counters(), [1, 0, 0, 0]);
}

/// The empty block is everywhere, and counts no bytes.
#[test]
fn empty_blocks_in_the_pipeline_of_a_peer_that_does_not_read_are_bounded() {
    let mut bench = Bench::with(0);
    for _ in 0..100 {
        bench.message(0, &wants((0..1000).map(cid).map(entry).collect()));
    }
    let handed = bench.held[&0].len();
    assert!((512..=1100).contains(&handed), "{handed}");
    bench.write(0, 0);
    assert_eq!(bench.held[&0].len(), handed, "the next one follows");
}

#[test]
fn a_full_list_replaces_the_old_one_without_sending_anything_twice() {
    let mut bench = Bench::without();
    bench.message(0, &wants(cids(5).into_iter().map(entry).collect()));
    let full = Message {
        full: true,
        entries: vec![entry(cid(3)), entry(cid(9))],
        ..Message::default()
    };
    bench.message(0, &full);
    let listed: Vec<Cid> = bench
        .server
        .wantlist()
        .iter()
        .map(|entry| entry.cid)
        .collect();
    assert_eq!(listed.len(), 2);
    assert!(listed.contains(&cid(3)) && listed.contains(&cid(9)));
}

#[test]
fn priority_then_age_decides_inside_a_peer() {
    let config = Config::builder()
        .max_pipeline_bytes_per_peer(64 * 1024)
        .build()
        .unwrap();
    let mut bench = Bench::new(1, config, |_| Some(60_000));
    let with = |index, priority| Entry {
        priority,
        ..entry(cid(index))
    };
    bench.message(
        0,
        &wants(vec![with(1, 1), with(2, 5), with(3, i32::MIN), with(4, 5)]),
    );
    for _ in 0..3 {
        bench.write(0, 60_000);
    }
    let sent: Vec<Cid> = bench.blocks.iter().map(|(_, cid, _)| *cid).collect();
    // The whole message is taken in before the first block is read.
    assert_eq!(sent, [cid(2), cid(4), cid(1), cid(3)]);
}

/// R1, R3: neither many wants nor `full` get past the cap, and all goes with the connection.
#[test]
fn r1_r3_a_flood_of_wants_is_bounded_and_freed_on_disconnect() {
    let mut bench = Bench::without();
    for round in 0..20 {
        let entries = (0..5000)
            .map(|index| entry(cid(round * 5000 + index)))
            .collect();
        bench.message(
            0,
            &Message {
                entries,
                full: round % 2 == 0,
                ..Message::default()
            },
        );
        assert!(bench.server.wantlist().len() <= 1024);
    }
    bench.server.on_disconnected(peer(0), ConnKey(0), bench.now);
    assert_eq!(bench.server.counters(), [0; 4]);
}

/// R8: what is refused is answered, and the most important and newest survive.
#[test]
fn r8_an_overflow_keeps_high_priorities_and_denies_the_rest() {
    let mut bench = Bench::without();
    bench.message(
        0,
        &wants((0..1024).map(|index| entry(cid(index))).collect()),
    );
    let urgent = |index| Entry {
        priority: 9,
        ..entry(cid(index))
    };
    bench.message(0, &wants((5000..5100).map(urgent).collect()));
    let list = bench.server.wantlist();
    assert_eq!(list.len(), 1024);
    assert_eq!(
        list.iter().filter(|entry| entry.priority.0 == 9).count(),
        100
    );
    bench.answers.clear();
    bench.message(0, &wants(vec![entry(cid(9999))]));
    assert_eq!(bench.answers, [(0, cid(9999), false)]);
}

#[test]
fn absent_wants_make_room_for_those_we_can_serve() {
    let config = Config::default();
    let mut bench = Bench::new(1, config, |c| (*c == cid(7777)).then_some(100_000));
    bench.message(
        0,
        &wants((0..1024).map(|index| entry(cid(index))).collect()),
    );
    bench.message(0, &wants(vec![entry(cid(7777))]));
    assert_eq!(bench.blocks, [(0, cid(7777), 100_000)]);
}

/// R10: one small want does not queue behind thousands of others'.
#[test]
fn r10_a_new_peer_goes_before_those_with_long_lists() {
    let config = Config::builder()
        .max_pipeline_bytes(1024 * 1024)
        .build()
        .unwrap();
    let mut bench = Bench::new(65, config, |_| Some(256 * 1024));
    for index in 0..64 {
        let entries = (0..1000).map(|n| entry(cid(index * 1000 + n))).collect();
        bench.message(index, &wants(entries));
    }
    for written in 0..100 {
        let (to, _, bytes) = bench.blocks[written];
        bench.write(to, bytes);
    }
    bench.message(64, &wants(vec![entry(cid(999_999))]));
    let mut written = 100;
    // One block leaves at a time, in the order they were handed over.
    while !bench.blocks.iter().any(|(to, ..)| *to == 64) {
        let (to, _, bytes) = bench.blocks[written];
        bench.write(to, bytes);
        written += 1;
        assert!(
            written < 110,
            "the light peer waits behind {written} blocks"
        );
    }
}

#[test]
fn equal_peers_get_equal_bytes_whatever_their_block_sizes() {
    let config = Config::builder()
        .max_pipeline_bytes(1024 * 1024)
        .build()
        .unwrap();
    // Even CIDs are small, odd ones large.
    let size = |c: &Cid| {
        Some(if c.hash().digest()[0] % 2 == 0 {
            10_000
        } else {
            250_000
        })
    };
    let mut bench = Bench::new(8, config, size);
    for index in 0..8 {
        let list = (0..100_000)
            .map(|n| cid(index * 100_000 + n))
            .filter(|c| c.hash().digest()[0] % 2 == (index % 2) as u8)
            .take(1000);
        bench.message(index, &wants(list.map(entry).collect()));
    }
    let mut sent: HashMap<u64, f64> = HashMap::new();
    let mut written = 0;
    while sent.values().sum::<f64>() < 30e6 {
        let (to, _, bytes) = bench.blocks[written];
        written += 1;
        *sent.entry(to).or_default() += bytes as f64;
        bench.write(to, bytes);
    }
    let sum: f64 = sent.values().sum();
    let squares: f64 = sent.values().map(|bytes| bytes * bytes).sum();
    let jain = sum * sum / (8.0 * squares);
    assert!(jain >= 0.95, "{jain:.3}: {sent:?}");
}

#[test]
fn a_weight_of_three_gets_three_times_the_bytes() {
    let config = Config::builder()
        .max_pipeline_bytes(1024 * 1024)
        .build()
        .unwrap();
    let mut bench = Bench::new(2, config, |_| Some(50_000));
    bench.server.set_weight(peer(0), 3.0);
    for index in 0..2 {
        let entries = (0..1000).map(|n| entry(cid(index * 1000 + n))).collect();
        bench.message(index, &wants(entries));
    }
    for written in 0..800 {
        let (to, _, bytes) = bench.blocks[written];
        bench.write(to, bytes);
    }
    let first = bench.blocks[..800]
        .iter()
        .filter(|(to, ..)| *to == 0)
        .count() as f64;
    assert!((2.5..3.5).contains(&(first / (800.0 - first))), "{first}");
}

#[test]
fn a_want_nobody_renews_is_forgotten() {
    let mut bench = Bench::without();
    bench.message(0, &wants(vec![entry(cid(1)), entry(cid(2))]));
    bench.now += Duration::from_secs(500);
    bench.message(0, &wants(vec![entry(cid(2))]));
    bench.now += Duration::from_secs(300);
    bench.server.handle_timeout(bench.now);
    let list = bench.server.wantlist();
    assert_eq!(
        list.iter().map(|entry| entry.cid).collect::<Vec<_>>(),
        [cid(2)]
    );
}

#[test]
fn what_is_not_written_moves_to_the_better_connection() {
    let mut bench = Bench::with(200_000);
    bench
        .server
        .on_connected(peer(5), ConnKey(50), Path::Relayed, &bench.size, bench.now);
    bench.message(5, &wants(vec![entry(cid(1)), entry(cid(2))]));
    assert_eq!(
        bench.blocks.iter().map(|b| b.0).collect::<Vec<_>>(),
        [50, 50]
    );
    bench
        .server
        .on_connected(peer(5), ConnKey(51), Path::Direct, &bench.size, bench.now);
    let withdrawn = bench.server.poll_output();
    assert!(matches!(
        withdrawn,
        Some(Output::Withdraw {
            conn: ConnKey(50),
            ..
        })
    ));
    let back = vec![super::sim::block(cid(2), 200_000)];
    bench
        .server
        .on_returned(peer(5), ConnKey(50), back, bench.now);
    bench.drain();
    assert_eq!(bench.blocks[2], (51, cid(2), 200_000));
    assert_eq!(bench.server.serving_on(&peer(5), ConnKey(50)), 200_000);
    assert_eq!(bench.server.serving_on(&peer(5), ConnKey(51)), 200_000);
}

#[test]
fn of_two_equal_connections_the_one_that_asks_is_answered_on() {
    let mut bench = Bench::with(100);
    let (first, second, relayed) = (ConnKey(0), ConnKey(7), ConnKey(8));
    for (conn, path) in [(second, Path::Direct), (relayed, Path::Relayed)] {
        bench
            .server
            .on_connected(peer(0), conn, path, &bench.size, bench.now);
    }
    let mut ask = |conn: ConnKey, number| {
        bench.server.on_asked(peer(0), conn, &bench.size, bench.now);
        bench.message(0, &wants(vec![entry(cid(number))]));
        bench.blocks.last().map(|(conn, ..)| ConnKey(*conn))
    };
    assert_eq!(ask(second, 1), Some(second));
    assert_eq!(ask(first, 2), Some(first));
    // A worse connection is no answer, whoever asks on it.
    assert_ne!(ask(relayed, 3), Some(relayed));
}

#[test]
fn a_block_too_large_for_the_circuit_is_told_and_sent_when_a_direct_path_is_up() {
    let mut bench = Bench::with(200_000);
    let narrow = Path::Limited(100_000);
    bench
        .server
        .on_connected(peer(5), ConnKey(50), narrow, &bench.size, bench.now);
    bench.message(5, &wants(vec![entry(cid(1))]));
    assert!(bench.blocks.is_empty());
    assert_eq!(bench.answers, [(50, cid(1), true)]);
    bench
        .server
        .on_connected(peer(5), ConnKey(51), Path::Direct, &bench.size, bench.now);
    bench.drain();
    assert_eq!(bench.blocks, [(51, cid(1), 200_000)]);
}

#[test]
fn a_circuit_is_never_given_more_than_is_left_of_it() {
    let mut bench = Bench::with(128 * 1024);
    let narrow = Path::Limited(300_000);
    bench
        .server
        .on_connected(peer(5), ConnKey(50), narrow, &bench.size, bench.now);
    bench.message(5, &wants(cids(4).into_iter().map(entry).collect()));
    assert_eq!(bench.blocks.len(), 2);
    assert_eq!(bench.answers.len(), 2);
    bench
        .server
        .on_connected(peer(5), ConnKey(51), Path::Direct, &bench.size, bench.now);
    bench.drain();
    assert_eq!(bench.blocks.len(), 4);
}

#[test]
fn a_node_that_does_not_serve_says_so() {
    let config = Config::builder().serve(false).build().unwrap();
    let mut bench = Bench::new(1, config, |_| Some(10));
    bench.message(0, &wants(vec![entry(cid(1))]));
    assert!(bench.blocks.is_empty());
    assert_eq!(bench.answers, [(0, cid(1), false)]);
}

#[test]
fn answers_to_a_peer_that_does_not_read_are_bounded() {
    let mut bench = Bench::without();
    let mut batches = 0;
    for round in 0..50 {
        let entries = (0..1000).map(|n| entry(cid(round * 1000 + n))).collect();
        let message = Message {
            entries,
            full: true,
            ..Message::default()
        };
        bench
            .server
            .on_message(peer(0), &message, &bench.size, bench.now);
        while let Some(output) = bench.server.poll_output() {
            batches += usize::from(matches!(output, Output::Presences { .. }));
        }
    }
    assert_eq!(
        batches, 1,
        "the next batch waits until the first is written"
    );
}
