//! What fuzz targets call: the codec, and both cores driven by bytes. They panic where a promise breaks.

use std::{
    collections::{HashMap, VecDeque},
    sync::LazyLock,
    time::Duration,
};

use bytes::Bytes;
use cid::{Cid, multihash::Multihash};
use libp2p_identity::PeerId;
use web_time::Instant;

use crate::{
    Block, Config, Priority, SessionId, SessionOptions, Ticket, WantOptions,
    core::{
        ConnKey, Path,
        client::{self, Client},
        server::{self, ReadId, Server},
    },
    hash,
    message::{Entry, Message, Presence, Version, WantType, decode},
};

/// Nothing that a few kilobytes of input cause takes more outputs than this.
const MAX_OUTPUTS: usize = 100_000;
const PEERS: u8 = 4;
const BLOCKS: u8 = 12;

/// Reads bytes as a message. What is understood means the same when it is written and read again.
pub fn message(bytes: &[u8]) {
    const MAX_ITEMS: usize = 64;
    let Ok(read) = decode(Bytes::copy_from_slice(bytes), MAX_ITEMS) else {
        return;
    };
    assert_eq!(read.frame_bytes, bytes.len());
    assert!(read.entries.len() <= MAX_ITEMS && read.presences.len() <= MAX_ITEMS);
    assert!(read.promised.len() <= MAX_ITEMS);
    assert!(read.blocks.len() + read.legacy_blocks.len() <= MAX_ITEMS);
    for block in read.blocks.iter().chain(&read.legacy_blocks) {
        let (cid, data) = block.clone().into_parts();
        assert!(Block::new(cid, data).is_ok());
    }
    let written = Bytes::from(read.encode(Version::V1_2).concat());
    let prefix = written.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
    let again = decode(written.slice(prefix..), MAX_ITEMS);
    let expected = Message {
        legacy_blocks: Vec::new(),
        skipped: 0,
        frame_bytes: written.len() - prefix,
        ..read
    };
    assert_eq!(again, Ok(expected));
}

/// Bytes as decisions; an empty input decides for 0.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn next(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn below(&mut self, limit: u8) -> u8 {
        self.next() % limit.max(1)
    }

    fn chance(&mut self) -> bool {
        self.next() & 1 == 1
    }

    fn path(&mut self) -> Path {
        match self.below(3) {
            0 => Path::Direct,
            1 => Path::Relayed,
            _ => Path::Limited(u64::from(self.next()) * 1000),
        }
    }

    /// Steps from a microsecond to an hour.
    fn pause(&mut self) -> Duration {
        Duration::from_micros(1 << self.below(32))
    }

    fn cid(&mut self) -> Cid {
        let n = self.next();
        let cid = *block(n).cid();
        match n & 0x80 {
            0 => cid,
            _ => Cid::new_v0(*cid.hash()).unwrap_or(cid),
        }
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> Option<T> {
        let index = usize::from(self.next()) % list.len().max(1);
        list.get(index).copied()
    }

    fn message(&mut self) -> Message {
        let mut message = Message {
            full: self.below(8) == 0,
            pending_bytes: i32::from(self.next()) << 20,
            unread_bytes: usize::from(self.next()) << 14,
            ..Message::default()
        };
        for _ in 0..self.below(8) {
            let cid = self.cid();
            match self.below(4) {
                0 => message.blocks.push(block(self.next())),
                1 => message.presences.push(Presence {
                    cid,
                    have: self.chance(),
                }),
                2 => message.promised.push(cid),
                _ => message.entries.push(Entry {
                    cid,
                    priority: i32::from(self.next()) - 128,
                    cancel: self.below(4) == 0,
                    want_type: match self.chance() {
                        true => WantType::Block,
                        false => WantType::Have,
                    },
                    send_dont_have: self.chance(),
                    descend: self.below(5).into(),
                }),
            }
        }
        message
    }
}

/// One of a few blocks, of 0 bytes to 90 kB.
fn block(n: u8) -> Block {
    static ALL: LazyLock<Vec<Block>> = LazyLock::new(|| {
        (0..BLOCKS)
            .map(|n| Block::raw(vec![n; usize::from(n) * usize::from(n) * 750]))
            .collect()
    });
    let found = ALL.get(usize::from(n % BLOCKS)).cloned();
    found.unwrap_or_else(|| Block::raw(""))
}

fn peer(n: u8) -> Option<PeerId> {
    let hash = Multihash::wrap(hash::IDENTITY, &[n % PEERS; 8]).ok()?;
    PeerId::from_multihash(hash).ok()
}

#[expect(clippy::disallowed_methods, reason = "where virtual time begins")]
fn start() -> Instant {
    Instant::now()
}

/// A configuration whose bounds are reached soon.
fn config() -> Config {
    Config::builder()
        .initial_window_bytes(64 * 1024)
        .max_outstanding_per_peer(6)
        .max_unacknowledged_bytes(1024 * 1024)
        .search_peers(2)
        .search_wants(3)
        .max_stash_bytes(100_000)
        .max_wants_per_peer(64)
        .max_pipeline_bytes_per_peer(64 * 1024)
        .max_pipeline_bytes(1024 * 1024)
        .max_reads(3)
        .max_ledgers(2)
        .build()
        .unwrap_or_default()
}

/// Connections that are up.
#[derive(Default)]
struct Connections {
    open: Vec<(PeerId, ConnKey)>,
    next: u64,
}

impl Connections {
    fn add(&mut self, peer: PeerId) -> ConnKey {
        self.next += 1;
        let key = ConnKey(self.next);
        self.open.push((peer, key));
        key
    }

    fn remove(&mut self, (peer, key): (PeerId, ConnKey)) {
        self.open.retain(|open| *open != (peer, key));
    }
}

/// Drives a client by bytes.
pub fn client(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut now = start();
    let mut client = Client::new(config(), [7; 32], now);
    let mut connections = Connections::default();
    let mut sessions: Vec<SessionId> = Vec::new();
    // Whether it was answered, and with how much that is not taken.
    let mut tickets: HashMap<Ticket, Option<usize>> = HashMap::new();
    let mut order: Vec<Ticket> = Vec::new();
    while !input.0.is_empty() {
        let connection = input.pick(&connections.open);
        match (input.below(16), connection) {
            (0 | 1, _) if connections.open.len() < 8 => {
                if let Some(peer) = peer(input.next()) {
                    let key = connections.add(peer);
                    client.on_connected(peer, key, input.path(), now);
                }
            }
            (2, Some((peer, key))) => {
                connections.remove((peer, key));
                client.on_disconnected(peer, key, now);
            }
            (3, Some((peer, key))) => client.on_path(peer, key, input.path(), now),
            (4, Some((peer, key))) => match input.below(5) {
                0 => client.on_unsupported(peer, key, now),
                n => {
                    let version = Version::ALL.get(usize::from(n) - 1).copied();
                    client.on_version(peer, key, version.unwrap_or(Version::V1_2), now);
                }
            },
            (5, Some((peer, key))) => client.on_stream_lost(peer, key, now),
            (6 | 7, Some((peer, _))) => client.on_written(peer, now),
            (8 | 9, Some((peer, key))) => client.on_message(peer, key, &input.message(), now),
            (10, _) => match input.below(3) {
                0 if sessions.len() < 4 => {
                    let options = SessionOptions::default().descend(input.below(4).into());
                    sessions.push(client.new_session(options));
                }
                1 => {
                    if let Some(session) = input.pick(&sessions) {
                        client.end_session(session, now);
                    }
                }
                _ => {
                    if let (Some(session), Some(peer)) = (input.pick(&sessions), peer(input.next()))
                    {
                        client.add_session_peer(session, peer, now);
                    }
                }
            },
            (11 | 12, _) => {
                if let Some(session) = input.pick(&sessions)
                    && order.len() < 4096
                {
                    let priority = Priority(i32::from(input.next()) - 128);
                    let options = WantOptions::default().priority(priority);
                    let ticket = client.want(session, input.cid(), options, now);
                    assert_eq!(tickets.insert(ticket, None), None, "tickets are not reused");
                    order.push(ticket);
                }
            }
            (13, _) => {
                if let Some(ticket) = input.pick(&order) {
                    match input.below(3) {
                        0 => client.cancel(ticket, now),
                        1 => client.add_providers(ticket, peer(input.next()), now),
                        _ => {
                            let open = tickets.get_mut(&ticket).and_then(Option::take);
                            client.taken(ticket, open.unwrap_or(usize::from(input.next())), now);
                            if open.is_some() {
                                tickets.insert(ticket, Some(0));
                            }
                        }
                    }
                }
            }
            (14, _) => now += input.pause(),
            _ => client.handle_timeout(now),
        }
        drain_client(&mut client, &connections, &mut tickets);
        if let Some(at) = client.poll_timeout()
            && input.chance()
        {
            now = now.max(at);
            client.handle_timeout(now);
            drain_client(&mut client, &connections, &mut tickets);
        }
    }
    for session in sessions {
        client.end_session(session, now);
    }
    for (peer, key) in std::mem::take(&mut connections.open) {
        client.on_disconnected(peer, key, now);
    }
    drain_client(&mut client, &connections, &mut tickets);
    assert!(
        client.counters().iter().all(|count| *count == 0),
        "{:?}",
        client.counters()
    );
}

fn drain_client(
    client: &mut Client,
    connections: &Connections,
    tickets: &mut HashMap<Ticket, Option<usize>>,
) {
    for count in 0.. {
        assert!(count < MAX_OUTPUTS, "the client does not come to rest");
        match client.poll_output() {
            None => return,
            Some(client::Output::Block { ticket, block, .. }) => {
                if let Some(answer) = tickets.get_mut(&ticket) {
                    assert_eq!(*answer, None, "one block a ticket");
                    *answer = Some(block.data().len());
                }
            }
            Some(client::Output::Send { peer, conn, .. }) => {
                assert!(connections.open.contains(&(peer, conn)));
            }
            Some(_) => {}
        }
    }
}

/// Drives a server by bytes.
pub fn server(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut now = start();
    let config = config();
    let mut server = Server::new(config.clone(), [7; 32], now);
    let mut work = Work::default();
    // Bit n: the source has block n.
    let mut held = 0_u16;
    while !input.0.is_empty() {
        let lookup = lookup(held);
        let connection = input.pick(&work.connections.open);
        match (input.below(14), connection) {
            (0 | 1, _) if work.connections.open.len() < 8 => {
                if let Some(peer) = peer(input.next()) {
                    let key = work.connections.add(peer);
                    server.on_connected(peer, key, input.path(), &lookup, now);
                }
            }
            (2, Some((peer, key))) => work.close(&mut server, peer, key, now),
            (3, Some((peer, key))) => server.on_path(peer, key, input.path(), &lookup, now),
            (4, Some((peer, key))) => match input.chance() {
                true => server.on_unsupported(peer, key, &lookup, now),
                false => server.on_version(peer, key, now),
            },
            (5..=7, Some((peer, key))) => {
                server.on_asked(peer, key, &lookup, now);
                server.on_message(peer, &input.message(), &lookup, now);
            }
            (8, _) => {
                let n = input.below(BLOCKS);
                held |= 1 << n;
                server.on_new_blocks(&[*block(n).cid()], &self::lookup(held), now);
            }
            (9, _) => held &= !(1 << input.below(BLOCKS)),
            (10, _) => {
                if let Some((id, cid)) = work.reads.pop() {
                    let data = (0..BLOCKS)
                        .map(block)
                        .find(|block| block.cid().hash() == cid.hash())
                        .filter(|_| input.chance())
                        .map(|block| block.data().clone());
                    let links = (0..input.below(3)).map(|_| input.cid()).collect();
                    server.on_read(id, data, links, &lookup, now);
                }
            }
            (11, Some((peer, key))) => {
                let handed = work.handed.get_mut(&key);
                if let Some(block) = handed.and_then(|blocks| blocks.pop_front()) {
                    server.on_written(peer, key, 1, block.data().len() as u64, now);
                }
                server.on_answers_written(peer, now);
            }
            (12, Some((peer, _))) => server.set_weight(peer, f64::from(input.next()) / 10.0),
            _ => {
                now += input.pause();
                server.handle_timeout(now);
            }
        }
        work.drain(&mut server, now);
        let [_, _, reads, in_pipe, ..] = server.counters();
        assert!(reads <= config.max_reads() as u64);
        // The last block may go over.
        assert!(
            in_pipe <= config.max_pipeline_bytes() + 100_000,
            "{in_pipe}"
        );
        if let Some(at) = server.poll_timeout()
            && input.chance()
        {
            now = now.max(at);
            server.handle_timeout(now);
            work.drain(&mut server, now);
        }
    }
    for (peer, key) in work.connections.open.clone() {
        work.close(&mut server, peer, key, now);
    }
    for (id, _) in std::mem::take(&mut work.reads) {
        server.on_read(id, None, Vec::new(), &lookup(held), now);
    }
    work.drain(&mut server, now);
    assert!(
        server.counters().iter().all(|count| *count == 0),
        "{:?}",
        server.counters()
    );
}

fn lookup(held: u16) -> impl Fn(&Cid) -> Option<u32> {
    move |cid| {
        (0..BLOCKS)
            .filter(|n| held & (1 << n) != 0)
            .map(block)
            .find(|block| block.cid().hash() == cid.hash())
            .and_then(|block| u32::try_from(block.data().len()).ok())
    }
}

/// What the server has ordered and is not done.
#[derive(Default)]
struct Work {
    connections: Connections,
    reads: Vec<(ReadId, Cid)>,
    handed: HashMap<ConnKey, VecDeque<Block>>,
}

impl Work {
    fn close(&mut self, server: &mut Server, peer: PeerId, key: ConnKey, now: Instant) {
        self.connections.remove((peer, key));
        self.handed.remove(&key);
        server.on_disconnected(peer, key, now);
    }

    fn drain(&mut self, server: &mut Server, now: Instant) {
        for count in 0.. {
            assert!(count < MAX_OUTPUTS, "the server does not come to rest");
            match server.poll_output() {
                None => return,
                Some(server::Output::Read { id, cid, .. }) => self.reads.push((id, cid)),
                Some(server::Output::Block {
                    peer, conn, block, ..
                }) => {
                    assert!(self.connections.open.contains(&(peer, conn)));
                    self.handed.entry(conn).or_default().push_back(block);
                }
                Some(server::Output::Withdraw { peer, conn }) => {
                    let blocks = self.handed.remove(&conn).unwrap_or_default();
                    server.on_returned(peer, conn, blocks.into(), now);
                }
                Some(server::Output::TakeBack { peer, conn, cids }) => {
                    let handed = self.handed.remove(&conn).unwrap_or_default();
                    let (taken, left): (VecDeque<_>, VecDeque<_>) = handed
                        .into_iter()
                        .partition(|block| cids.contains(block.cid()));
                    self.handed.insert(conn, left);
                    server.on_taken_back(peer, conn, &Vec::from(taken), now);
                }
                Some(server::Output::Presences {
                    peer,
                    conn,
                    presences,
                }) => {
                    assert!(self.connections.open.contains(&(peer, conn)));
                    assert!(!presences.is_empty());
                }
                Some(server::Output::Prefetch(_) | server::Output::EndPrefetch(_)) => {}
            }
        }
    }
}

/// Inputs to begin with.
pub fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    if target != "message" {
        return (0..16_u8)
            .map(|n| {
                let bytes = (0..200_u8).map(|at| at.wrapping_mul(n | 1).rotate_left(3) ^ n);
                (format!("steps-{n}"), bytes.collect())
            })
            .collect();
    }
    let message = Message {
        entries: vec![Entry {
            cid: *block(1).cid(),
            priority: 1,
            cancel: false,
            want_type: WantType::Have,
            send_dont_have: true,
            descend: 2,
        }],
        blocks: vec![block(1), block(2)],
        presences: vec![Presence {
            cid: *block(3).cid(),
            have: true,
        }],
        pending_bytes: 5,
        promised: vec![*block(4).cid()],
        ..Message::default()
    };
    Version::ALL
        .iter()
        .map(|version| {
            let frame = message.encode(*version).concat();
            let prefix = frame.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
            let body = frame.get(prefix..).unwrap_or_default();
            (format!("{version:?}"), body.to_vec())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn seeds_are_fine_inputs() {
        for (target, run) in [
            ("message", message as fn(&[u8])),
            ("client", client),
            ("server", server),
        ] {
            for (_, bytes) in seeds(target) {
                run(&bytes);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn no_sequence_of_steps_breaks_a_promise_of_the_client(
            bytes in prop::collection::vec(any::<u8>(), 0..400)
        ) {
            client(&bytes);
        }

        #[test]
        fn no_sequence_of_steps_breaks_a_promise_of_the_server(
            bytes in prop::collection::vec(any::<u8>(), 0..400)
        ) {
            server(&bytes);
        }
    }
}
