//! A deterministic network of nodes: links with delay and rate, nothing lost unless cut.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use bytes::Bytes;
use cid::Cid;
use libp2p_identity::PeerId;
use multihash_codetable::{Code, MultihashDigest};
use web_time::Instant;

use crate::{
    Block, Config, Priority, SessionId, Ticket, WantOptions,
    core::{
        ConnKey, Path,
        client::{self, Client},
        server::{self, Server},
    },
    hash,
    message::{Entry, Message, Presence, Version},
};

#[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
pub(super) fn origin() -> Instant {
    Instant::now()
}

pub(super) fn peer(index: u64) -> PeerId {
    let hash = Code::Sha2_256.digest(&index.to_le_bytes());
    PeerId::from_multihash(hash.resize().unwrap()).unwrap()
}

/// A CID that no data belongs to; the cores never hash.
pub(super) fn cid(index: u64) -> Cid {
    Cid::new_v1(hash::RAW, Code::Sha2_256.digest(&index.to_le_bytes()))
}

pub(super) fn cids(count: u64) -> Vec<Cid> {
    (0..count).map(cid).collect()
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) delay: Duration,
    /// Bytes a second.
    pub(super) rate: f64,
    pub(super) path: Path,
}

impl Link {
    pub(super) fn new(rtt_ms: u64, rate: f64) -> Self {
        Self {
            delay: Duration::from_micros(rtt_ms * 500),
            rate,
            path: Path::Direct,
        }
    }
}

struct Direction {
    link: Link,
    free: Instant,
    /// Nothing arrives any more, nobody notices.
    stalled: bool,
}

/// When which block came, and from whom.
pub(super) type Got = (Instant, Ticket, Cid, Option<(PeerId, ConnKey)>);

pub(super) struct Node {
    pub(super) id: PeerId,
    pub(super) client: Client,
    pub(super) server: Server,
    pub(super) blocks: HashMap<Cid, Bytes>,
    pub(super) links: HashMap<Cid, Vec<Cid>>,
    pub(super) got: Vec<Got>,
    pub(super) events: Vec<(Instant, client::Output)>,
    /// Acknowledge and keep what arrives.
    pub(super) takes: bool,
    pub(super) version: Version,
    pub(super) messages_sent: usize,
    pub(super) entries_sent: Vec<Entry>,
}

enum Happening {
    Message(Message),
    Answered,
    Written(u64),
}

struct Due {
    to: usize,
    from: usize,
    conn: ConnKey,
    what: Happening,
}

pub(super) struct Sim {
    pub(super) now: Instant,
    start: Instant,
    pub(super) nodes: Vec<Node>,
    directions: BTreeMap<(usize, usize, ConnKey), Direction>,
    due: BTreeMap<(Instant, u64), Due>,
    next: u64,
}

impl Sim {
    pub(super) fn new(count: usize) -> Self {
        Self::with_config(count, Config::default())
    }

    pub(super) fn with_config(count: usize, config: Config) -> Self {
        let now = origin();
        let nodes = (0..count)
            .map(|index| Node {
                id: peer(index as u64),
                client: Client::new(config.clone(), [index as u8; 32], now),
                server: Server::new(config.clone(), [index as u8; 32], now),
                blocks: HashMap::new(),
                links: HashMap::new(),
                got: Vec::new(),
                events: Vec::new(),
                takes: true,
                version: Version::V1_2,
                messages_sent: 0,
                entries_sent: Vec::new(),
            })
            .collect();
        Self {
            now,
            start: now,
            nodes,
            directions: BTreeMap::new(),
            due: BTreeMap::new(),
            next: 0,
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.now.duration_since(self.start)
    }

    pub(super) fn give(&mut self, node: usize, cids: &[Cid], bytes: usize) {
        let data = Bytes::from(vec![0; bytes]);
        self.nodes[node]
            .blocks
            .extend(cids.iter().map(|cid| (*cid, data.clone())));
    }

    pub(super) fn connect(&mut self, a: usize, b: usize, link: Link) -> ConnKey {
        self.next += 1;
        let conn = ConnKey(self.next);
        for (from, to) in [(a, b), (b, a)] {
            let direction = Direction {
                link,
                free: self.now,
                stalled: false,
            };
            self.directions.insert((from, to, conn), direction);
            let (id, version) = (self.nodes[to].id, self.nodes[to].version);
            let node = &mut self.nodes[from];
            node.client.on_connected(id, conn, link.path, self.now);
            node.client.on_version(id, conn, version, self.now);
            let blocks = &node.blocks;
            let lookup = |cid: &Cid| blocks.get(cid).map(|data| data.len() as u32);
            node.server
                .on_connected(id, conn, link.path, &lookup, self.now);
            self.drain(from);
        }
        conn
    }

    pub(super) fn disconnect(&mut self, a: usize, b: usize, conn: ConnKey) {
        for (from, to) in [(a, b), (b, a)] {
            self.directions.remove(&(from, to, conn));
            let id = self.nodes[to].id;
            self.nodes[from].client.on_disconnected(id, conn, self.now);
            self.nodes[from].server.on_disconnected(id, conn, self.now);
        }
        self.due.retain(|_, due| due.conn != conn);
        self.drain(a);
        self.drain(b);
    }

    /// Nothing that `from` sends arrives any more.
    pub(super) fn stall(&mut self, from: usize, to: usize, conn: ConnKey) {
        if let Some(direction) = self.directions.get_mut(&(from, to, conn)) {
            direction.stalled = true;
        }
    }

    pub(super) fn want_all(
        &mut self,
        node: usize,
        session: SessionId,
        cids: &[Cid],
    ) -> Vec<Ticket> {
        let tickets = cids
            .iter()
            .map(|cid| {
                let options = WantOptions::default().priority(Priority(1));
                self.nodes[node]
                    .client
                    .want(session, *cid, options, self.now)
            })
            .collect();
        self.drain(node);
        tickets
    }

    /// A session of `node` that knows `peers`.
    pub(super) fn session(&mut self, node: usize, peers: &[usize]) -> SessionId {
        let session = self.nodes[node]
            .client
            .new_session(crate::SessionOptions::default());
        for other in peers {
            let id = self.nodes[*other].id;
            self.nodes[node]
                .client
                .add_session_peer(session, id, self.now);
        }
        session
    }

    fn schedule(&mut self, at: Instant, due: Due) {
        self.next += 1;
        self.due.insert((at, self.next), due);
    }

    /// Sends over a link; when it has left, and when it arrives.
    fn send(
        &mut self,
        from: usize,
        to: PeerId,
        conn: ConnKey,
        bytes: usize,
        message: Message,
    ) -> Option<Instant> {
        let to = self.nodes.iter().position(|node| node.id == to)?;
        let direction = self.directions.get_mut(&(from, to, conn))?;
        let span = Duration::from_secs_f64(bytes as f64 / direction.link.rate);
        direction.free = direction.free.max(self.now) + span;
        let (left, delay, stalled) = (direction.free, direction.link.delay, direction.stalled);
        if stalled {
            return None;
        }
        self.nodes[from].messages_sent += 1;
        self.schedule(
            left + delay,
            Due {
                to,
                from,
                conn,
                what: Happening::Message(message),
            },
        );
        Some(left)
    }

    /// Executes what the cores of a node want done.
    pub(super) fn drain(&mut self, node: usize) {
        loop {
            let now = self.now;
            if let Some(output) = self.nodes[node].client.poll_output() {
                self.on_client_output(node, output);
                continue;
            }
            let Some(output) = self.nodes[node].server.poll_output() else {
                break;
            };
            match output {
                server::Output::Read { id, cid, links } => {
                    let state = &mut self.nodes[node];
                    let blocks = &state.blocks;
                    let lookup = |cid: &Cid| blocks.get(cid).map(|data| data.len() as u32);
                    let links = match links {
                        true => state.links.get(&cid).cloned().unwrap_or_default(),
                        false => Vec::new(),
                    };
                    state
                        .server
                        .on_read(id, blocks.get(&cid).cloned(), links, &lookup, now);
                }
                server::Output::Block {
                    peer,
                    conn,
                    block,
                    promised,
                    pending_bytes,
                } => {
                    let bytes = block.data().len();
                    let message = Message {
                        blocks: vec![block],
                        promised: promised.map(|cid| *cid).into_iter().collect(),
                        pending_bytes: pending_bytes as i32,
                        frame_bytes: bytes + 60,
                        ..Message::default()
                    };
                    let left = self.send(node, peer, conn, bytes + 60, message);
                    let to = self.nodes.iter().position(|node| node.id == peer).unwrap();
                    if let Some(left) = left {
                        let what = Happening::Written(bytes as u64);
                        self.schedule(
                            left,
                            Due {
                                to: node,
                                from: to,
                                conn,
                                what,
                            },
                        );
                    }
                }
                server::Output::Presences {
                    peer,
                    conn,
                    presences,
                } => {
                    self.send_presences(node, peer, conn, presences);
                }
                // Everything is written at once here, and the nodes are no masters.
                server::Output::Withdraw { .. }
                | server::Output::Prefetch(_)
                | server::Output::EndPrefetch(_) => {}
            }
        }
    }

    fn send_presences(
        &mut self,
        node: usize,
        peer: PeerId,
        conn: ConnKey,
        presences: Vec<Presence>,
    ) {
        let bytes = presences.len() * 45;
        let message = Message {
            presences,
            frame_bytes: bytes,
            ..Message::default()
        };
        let to = self.nodes.iter().position(|node| node.id == peer).unwrap();
        if let Some(left) = self.send(node, peer, conn, bytes, message) {
            self.schedule(
                left,
                Due {
                    to: node,
                    from: to,
                    conn,
                    what: Happening::Answered,
                },
            );
        }
    }

    fn on_client_output(&mut self, node: usize, output: client::Output) {
        match output {
            client::Output::Send {
                peer,
                conn,
                entries,
                full,
            } => {
                let bytes = entries.len() * 50 + 10;
                let state = &mut self.nodes[node];
                state.entries_sent.extend(entries.iter().cloned());
                state.client.on_written(peer, self.now);
                let message = Message {
                    entries,
                    full,
                    frame_bytes: bytes,
                    ..Message::default()
                };
                self.send(node, peer, conn, bytes, message);
            }
            client::Output::Block {
                ticket,
                block,
                from,
            } => {
                let state = &mut self.nodes[node];
                state.got.push((self.now, ticket, *block.cid(), from));
                if state.takes {
                    state.client.taken(ticket, block.data().len(), self.now);
                    let (cid, data) = block.into_parts();
                    state.blocks.insert(cid, data);
                    let blocks = &state.blocks;
                    let lookup = |cid: &Cid| blocks.get(cid).map(|data| data.len() as u32);
                    state.server.on_new_blocks(&[cid], &lookup, self.now);
                }
            }
            other => self.nodes[node].events.push((self.now, other)),
        }
    }

    /// The next thing that happens, at most at `until`; false if nothing is left before.
    pub(super) fn step(&mut self, until: Instant) -> bool {
        let due = self.due.first_key_value().map(|((at, _), _)| *at);
        let timers = self.nodes.iter().enumerate().filter_map(|(index, node)| {
            let at = [node.client.poll_timeout(), node.server.poll_timeout()];
            at.into_iter().flatten().min().map(|at| (at, index))
        });
        let timer = timers.min();
        match (due, timer) {
            (due, Some((at, index))) if at <= until && due.is_none_or(|due| at < due) => {
                self.now = self.now.max(at);
                self.nodes[index].client.handle_timeout(self.now);
                self.nodes[index].server.handle_timeout(self.now);
                self.drain(index);
            }
            (Some(at), _) if at <= until => {
                self.now = at;
                if let Some((_, due)) = self.due.pop_first() {
                    self.deliver(due);
                }
            }
            _ => {
                self.now = until;
                return false;
            }
        }
        true
    }

    fn deliver(&mut self, due: Due) {
        let from = self.nodes[due.from].id;
        let node = &mut self.nodes[due.to];
        match due.what {
            Happening::Message(message) => {
                node.client.on_message(from, due.conn, &message, self.now);
                let blocks = &node.blocks;
                let lookup = |cid: &Cid| blocks.get(cid).map(|data| data.len() as u32);
                node.server.on_message(from, &message, &lookup, self.now);
            }
            Happening::Answered => node.server.on_answers_written(from, self.now),
            Happening::Written(bytes) => {
                node.server.on_written(from, due.conn, 1, bytes, self.now);
            }
        }
        self.drain(due.to);
    }

    pub(super) fn run_for(&mut self, span: Duration) {
        let until = self.now + span;
        while self.step(until) {}
    }

    /// Runs until `node` has received `count` blocks in all; panics after `limit`.
    pub(super) fn run_until_got(&mut self, node: usize, count: usize, limit: Duration) {
        let until = self.now + limit;
        while self.nodes[node].got.len() < count {
            assert!(
                self.step(until),
                "{} of {count} blocks after {limit:?}",
                self.nodes[node].got.len()
            );
        }
    }

    pub(super) fn unwanted_bytes(&self, node: usize) -> u64 {
        let others = self.nodes.iter().map(|other| other.id);
        others
            .filter_map(|other| self.nodes[node].client.received(&other))
            .map(|received| received.unwanted_bytes)
            .sum()
    }
}

/// A message as a peer would send it.
pub(super) fn wants(entries: Vec<Entry>) -> Message {
    Message {
        entries,
        ..Message::default()
    }
}

pub(super) fn block(cid: Cid, bytes: usize) -> Block {
    Block::trusted(cid, vec![0; bytes].into())
}
