//! A deterministic network of bitswap nodes on virtual time.
//!
//! Each [`Node`] has the client and the server core of this crate and a store in memory; nodes are
//! connected by [`Link`]s with latency, bandwidth, jitter and loss, and connections can stall, be
//! cut and come back ([`Churn`]). Nothing waits and nothing reads a clock: an hour of a network
//! passes as fast as its events can be computed, and the same seed gives the same hour again.
//!
//! What is modelled: messages as the connection handler makes them (one stream a direction,
//! control before blocks, small blocks together), links that serialise, upload and download limits
//! of a whole node. What is not: windows of a muxer, congestion control, the time that hashing
//! takes. CIDs and data need not match; the cores never hash.
//!
//! ```
//! use std::time::Duration;
//! use anypath_bitswap::testing::{Link, Network, Setup, cids};
//!
//! let mut network = Network::new(7);
//! let [leech, seed] = [network.add(Setup::default()), network.add(Setup::default())];
//! let wanted = cids(100);
//! network.give(seed, &wanted, 256 * 1024);
//! // 100 ms round trip, 50 MB/s.
//! network.connect(leech, seed, Link::new(Duration::from_millis(100), 50e6));
//!
//! let session = network.session(leech, &[]); // nobody told it who has the blocks
//! network.want(leech, session, &wanted);
//! assert!(network.run_until_got(leech, wanted.len(), Duration::from_secs(10)));
//! assert!(network.elapsed() < Duration::from_secs(1));
//! assert_eq!(network.node(leech).traffic.duplicate_bytes, 0);
//! ```

mod node;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use bytes::Bytes;
use cid::Cid;
use libp2p_identity::PeerId;
use multihash_codetable::{Code, MultihashDigest};
use rand::{RngExt as _, SeedableRng, rngs::StdRng};
use web_time::Instant;

use self::wire::{Lane, Side, Wire, span};
pub use self::{
    node::{Delivery, Node, Setup, Traffic},
    wire::Link,
};
use crate::{
    Priority, SessionId, SessionOptions, Ticket, WantOptions,
    core::{
        ConnKey, client,
        server::{self, ReadId},
    },
    hash,
    message::Message,
};

/// What connections take in turn from a node's upload: about what a socket takes at once.
const UPLOAD_CHUNK: u64 = 16 * 1024;
/// Bytes of a packet, for loss.
const PACKET_BYTES: f64 = 1460.0;

/// Connections of a node that break and come back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Churn {
    /// Expected breaks of each connection in a second.
    pub breaks_per_second: f64,
    /// How long a broken one stays away.
    pub downtime: Duration,
}

enum Happening {
    /// The link has taken the last byte of what was being sent.
    Left(ConnKey, Side),
    /// The upload has taken so many bytes of it.
    Uploaded(usize, ConnKey, Side, u64),
    /// The link has room for more from the upload.
    Ready(ConnKey, Side),
    /// `side` receives.
    Arrived(ConnKey, Side, Box<Message>),
    Received(ConnKey, Side, Box<Message>),
    Read(usize, ReadId, Cid, bool),
    Break(ConnKey),
    Connect(usize, usize, Link),
}

/// The network; see the [module](self).
pub struct Network {
    origin: Instant,
    now: Instant,
    rng: StdRng,
    nodes: Vec<Node>,
    ids: HashMap<PeerId, usize>,
    wires: BTreeMap<ConnKey, Wire>,
    due: BTreeMap<(Instant, u64), Happening>,
    timers: BTreeSet<(Instant, usize)>,
    next: u64,
    churn: Option<Churn>,
    dial: Option<Link>,
}

/// A peer id, the same for the same number.
#[expect(clippy::expect_used, reason = "any SHA2-256 hash is a peer id")]
pub fn peer(number: u64) -> PeerId {
    let hash = Code::Sha2_256.digest(&number.to_le_bytes());
    let hash = hash.resize().expect("32 bytes fit into 64");
    PeerId::from_multihash(hash).expect("a SHA2-256 hash")
}

/// A CID that no data belongs to, the same for the same number.
pub fn cid(number: u64) -> Cid {
    Cid::new_v1(hash::RAW, Code::Sha2_256.digest(&number.to_le_bytes()))
}

/// The CIDs of `0..count`.
pub fn cids(count: u64) -> Vec<Cid> {
    (0..count).map(cid).collect()
}

/// Some instant to count virtual time from.
#[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
pub fn origin() -> Instant {
    Instant::now()
}

impl Network {
    /// A network without nodes. `seed` decides jitter, loss and churn, and the random choices of
    /// the nodes.
    pub fn new(seed: u64) -> Self {
        let now = origin();
        Self {
            origin: now,
            now,
            rng: StdRng::seed_from_u64(seed),
            nodes: Vec::new(),
            ids: HashMap::new(),
            wires: BTreeMap::new(),
            due: BTreeMap::new(),
            timers: BTreeSet::new(),
            next: 0,
            churn: None,
            dial: None,
        }
    }

    // ---- nodes ----

    /// Adds a node and returns its number: nodes are numbered from 0. Its peer id is [`peer`] of
    /// that number.
    pub fn add(&mut self, setup: Setup) -> usize {
        let index = self.nodes.len();
        let node = Node::new(peer(index as u64), setup, self.rng.random(), self.now);
        self.ids.insert(node.id, index);
        self.nodes.push(node);
        index
    }

    /// Node `index`. Panics if there is none.
    #[expect(clippy::indexing_slicing, reason = "as documented")]
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// Node `index`. Panics if there is none. After calls into its cores: [`settle`](Self::settle).
    #[expect(clippy::indexing_slicing, reason = "as documented")]
    pub fn node_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// The node with this peer id.
    pub fn index_of(&self, peer: &PeerId) -> Option<usize> {
        self.ids.get(peer).copied()
    }

    /// A node has these blocks from the start: `bytes` each, all zero.
    pub fn give(&mut self, node: usize, cids: &[Cid], bytes: usize) {
        let data = Bytes::from(vec![0; bytes]);
        let blocks = cids.iter().map(|cid| (*cid, data.clone()));
        self.node_mut(node).blocks.extend(blocks);
    }

    /// A node gets these blocks now, and tells its server.
    pub fn put(&mut self, node: usize, cids: &[Cid], bytes: usize) {
        self.give(node, cids, bytes);
        let now = self.now;
        let Node { server, blocks, .. } = self.node_mut(node);
        server.on_new_blocks(cids, &|cid| size(blocks, cid), now);
        self.settle(node);
    }

    // ---- connections ----

    /// Connects two nodes.
    pub fn connect(&mut self, a: usize, b: usize, link: Link) -> ConnKey {
        self.next += 1;
        let conn = ConnKey(self.next);
        self.wires.insert(conn, Wire::new(a, b, link, self.now));
        for (this, that) in [(a, b), (b, a)] {
            let (id, version) = (self.node(that).id, self.node(that).setup.version);
            let now = self.now;
            let node = self.node_mut(this);
            node.client.on_connected(id, conn, link.path, now);
            node.client.on_version(id, conn, version, now);
            let Node { server, blocks, .. } = node;
            server.on_connected(id, conn, link.path, &|cid| size(blocks, cid), now);
        }
        self.settle(a);
        self.settle(b);
        self.plan_break(conn);
        conn
    }

    /// Ends a connection: what is under way is lost, both ends notice at once.
    pub fn disconnect(&mut self, conn: ConnKey) {
        let Some(wire) = self.wires.remove(&conn) else {
            return;
        };
        for (this, that) in [(wire.a, wire.b), (wire.b, wire.a)] {
            let (id, now) = (self.node(that).id, self.now);
            let node = self.node_mut(this);
            if let Some(received) = node.client.received(&id) {
                node.server.settle(&id, received);
            }
            node.client.on_disconnected(id, conn, now);
            node.server.on_disconnected(id, conn, now);
        }
        self.settle(wire.a);
        self.settle(wire.b);
    }

    /// The connections between two nodes, oldest first.
    pub fn connections(&self, a: usize, b: usize) -> Vec<ConnKey> {
        let ends = [(a, b), (b, a)];
        let found = self.wires.iter();
        let found = found.filter(|(_, wire)| ends.contains(&(wire.a, wire.b)));
        found.map(|(conn, _)| *conn).collect()
    }

    /// From now on nothing leaves `from` over this connection, not the rest of a message either,
    /// and nobody notices.
    pub fn stall(&mut self, conn: ConnKey, from: usize) {
        if let Some(lane) = self.lane(from, conn) {
            lane.stalled = true;
        }
    }

    /// The outbound stream of `from` breaks: wants on their way are lost, the connection stands.
    pub fn lose_stream(&mut self, conn: ConnKey, from: usize) {
        let now = self.now;
        let Some(wire) = self.wires.get_mut(&conn) else {
            return;
        };
        let side = wire.side(from);
        let to = wire.end(side.other());
        let lane = wire.lane(side);
        (lane.outbox.entries, lane.outbox.full) = (Vec::new(), false);
        if let Some(sending) = &mut lane.sending {
            sending.message.entries.clear();
            sending.message.full = false;
        }
        let id = self.node(to).id;
        self.node_mut(from).client.on_stream_lost(id, conn, now);
        self.settle(from);
    }

    /// Changes the behaviour of a connection; what has left is not affected.
    pub fn set_link(&mut self, conn: ConnKey, link: Link) {
        if let Some(wire) = self.wires.get_mut(&conn) {
            wire.link = link;
            let (a, b, now) = (wire.a, wire.b, self.now);
            for (this, that) in [(a, b), (b, a)] {
                let id = self.node(that).id;
                let Node {
                    client,
                    server,
                    blocks,
                    ..
                } = self.node_mut(this);
                client.on_path(id, conn, link.path, now);
                server.on_path(id, conn, link.path, &|cid| size(blocks, cid), now);
            }
            self.settle(a);
            self.settle(b);
        }
    }

    /// Connections break and come back from now on, those there are and those made later.
    pub fn set_churn(&mut self, churn: Option<Churn>) {
        self.churn = churn;
        for conn in self.wires.keys().copied().collect::<Vec<_>>() {
            self.plan_break(conn);
        }
    }

    /// Peers that a node wants to dial are connected to it by this link after one round trip.
    /// Default: dials are only recorded in [`Node::events`].
    pub fn set_dial(&mut self, link: Option<Link>) {
        self.dial = link;
    }

    fn plan_break(&mut self, conn: ConnKey) {
        if let Some(churn) = self.churn.filter(|churn| churn.breaks_per_second > 0.0) {
            let share: f64 = self.rng.random();
            let after = -(1.0 - share).ln() / churn.breaks_per_second;
            let at = self.now + Duration::from_secs_f64(after.min(1e6));
            self.plan(at, Happening::Break(conn));
        }
    }

    // ---- what a node's user does ----

    /// A session of `node` that takes `peers` for likely to have its blocks.
    pub fn session(&mut self, node: usize, peers: &[usize]) -> SessionId {
        self.session_with(node, peers, SessionOptions::default())
    }

    /// The same, with options.
    pub fn session_with(
        &mut self,
        node: usize,
        peers: &[usize],
        options: SessionOptions,
    ) -> SessionId {
        let ids: Vec<PeerId> = peers.iter().map(|other| self.node(*other).id).collect();
        let now = self.now;
        let client = &mut self.node_mut(node).client;
        let session = client.new_session(options);
        for id in ids {
            client.add_session_peer(session, id, now);
        }
        session
    }

    /// Asks for blocks with priority 1.
    pub fn want(&mut self, node: usize, session: SessionId, cids: &[Cid]) -> Vec<Ticket> {
        let now = self.now;
        let options = WantOptions::default().priority(Priority(1));
        let client = &mut self.node_mut(node).client;
        let tickets = cids
            .iter()
            .map(|cid| client.want(session, *cid, options, now))
            .collect();
        self.settle(node);
        tickets
    }

    // ---- time ----

    /// Virtual time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Virtual time since the network was made.
    pub fn elapsed(&self) -> Duration {
        self.now.duration_since(self.origin)
    }

    /// The next thing that happens, at `until` at the latest; false if nothing is left before.
    pub fn step(&mut self, until: Instant) -> bool {
        let due = self.due.first_key_value().map(|((at, _), _)| *at);
        let timer = self.timers.first().copied();
        match (due, timer) {
            (due, Some((at, node))) if at <= until && due.is_none_or(|due| at < due) => {
                self.now = self.now.max(at);
                self.timers.remove(&(at, node));
                let now = self.now;
                let state = self.node_mut(node);
                state.armed = None;
                state.client.handle_timeout(now);
                state.server.handle_timeout(now);
                self.settle(node);
                true
            }
            (Some(at), _) if at <= until => {
                self.now = self.now.max(at);
                if let Some((_, happening)) = self.due.pop_first() {
                    self.happen(happening);
                }
                true
            }
            _ => {
                self.now = self.now.max(until);
                false
            }
        }
    }

    /// Lets time pass.
    pub fn run_for(&mut self, span: Duration) {
        let until = self.now + span;
        while self.step(until) {}
    }

    /// Runs until `node` has received `count` wanted blocks in all; false if it has not after
    /// `limit`.
    pub fn run_until_got(&mut self, node: usize, count: usize, limit: Duration) -> bool {
        let until = self.now + limit;
        while self.node(node).got.len() < count {
            if !self.step(until) {
                return false;
            }
        }
        true
    }

    fn plan(&mut self, at: Instant, happening: Happening) {
        self.next += 1;
        self.due.insert((at, self.next), happening);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Left(conn, side) => self.on_left(conn, side),
            Happening::Uploaded(node, conn, side, bytes) => {
                self.on_uploaded(node, conn, side, bytes);
            }
            Happening::Ready(conn, side) => self.queue_upload(conn, side),
            Happening::Arrived(conn, side, message) => self.on_arrived(conn, side, message),
            Happening::Received(conn, side, message) => self.on_received(conn, side, &message),
            Happening::Read(node, id, cid, links) => self.on_read(node, id, cid, links),
            Happening::Break(conn) => self.on_break(conn),
            Happening::Connect(a, b, link) => {
                if self.connections(a, b).is_empty() {
                    self.connect(a, b, link);
                }
            }
        }
    }

    // ---- sending ----

    /// Begins the next message of a lane, if it is idle.
    fn kick(&mut self, conn: ConnKey, side: Side) {
        let now = self.now;
        let Some(wire) = self.wires.get_mut(&conn) else {
            return;
        };
        let (node, link) = (wire.end(side), wire.link);
        let Some(setup) = self.nodes.get(node).map(|node| &node.setup) else {
            return;
        };
        let lane = wire.lane(side);
        if lane.sending.is_some() || lane.stalled {
            return;
        }
        let Some(sending) = lane.outbox.next(setup.config.target_message_bytes()) else {
            return;
        };
        let bytes = sending.left;
        lane.sending = Some(sending);
        if setup.upload.is_some() {
            self.queue_upload(conn, side);
        } else {
            lane.free = lane.free.max(now) + span(bytes, link.bytes_per_second);
            let at = lane.free;
            self.plan(at, Happening::Left(conn, side));
        }
    }

    fn queue_upload(&mut self, conn: ConnKey, side: Side) {
        if let Some(wire) = self.wires.get(&conn) {
            let node = wire.end(side);
            self.node_mut(node).uploads.push_back((conn, side));
            self.upload(node);
        }
    }

    /// Gives the next chunk of a node's upload to the lane whose turn it is.
    fn upload(&mut self, index: usize) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(index).filter(|node| !node.uploading) else {
            return;
        };
        while let Some((conn, side)) = node.uploads.pop_front() {
            let lane = self.wires.get_mut(&conn).map(|wire| wire.lane(side));
            let open = lane.filter(|lane| !lane.stalled);
            let Some(left) = open.and_then(|lane| Some(lane.sending.as_ref()?.left)) else {
                continue;
            };
            let bytes = left.min(UPLOAD_CHUNK);
            let rate = node.setup.upload.unwrap_or(f64::INFINITY);
            node.uploading = true;
            let happening = Happening::Uploaded(index, conn, side, bytes);
            self.plan(now + span(bytes, rate), happening);
            return;
        }
    }

    fn on_uploaded(&mut self, index: usize, conn: ConnKey, side: Side, bytes: u64) {
        self.node_mut(index).uploading = false;
        let now = self.now;
        if let Some(wire) = self.wires.get_mut(&conn) {
            let rate = wire.link.bytes_per_second;
            let lane = wire.lane(side);
            lane.free = lane.free.max(now) + span(bytes, rate);
            let at = lane.free;
            if let Some(sending) = &mut lane.sending {
                sending.left = sending.left.saturating_sub(bytes);
                let happening = match sending.left {
                    0 => Happening::Left(conn, side),
                    _ => Happening::Ready(conn, side),
                };
                self.plan(at, happening);
            }
        }
        self.upload(index);
    }

    fn on_left(&mut self, conn: ConnKey, side: Side) {
        let now = self.now;
        let Some(wire) = self.wires.get_mut(&conn) else {
            return;
        };
        let (node, peer, link) = (wire.end(side), wire.end(side.other()), wire.link);
        let lane = wire.lane(side);
        if lane.stalled {
            return;
        }
        let Some(sending) = lane.sending.take() else {
            return;
        };
        let message = sending.message;
        let packets = (message.frame_bytes as f64 / PACKET_BYTES).ceil();
        let lost = 1.0 - (1.0 - link.loss.clamp(0.0, 1.0)).powf(packets);
        let (late, again): (f64, f64) = (self.rng.random(), self.rng.random());
        let mut arrival = now + link.delay + link.jitter.mul_f64(late);
        if again < lost {
            arrival += 2 * link.delay;
        }
        let lane = match self.wires.get_mut(&conn) {
            Some(wire) => wire.lane(side),
            None => return,
        };
        lane.last_arrival = lane.last_arrival.max(arrival);
        let arrival = lane.last_arrival;
        let (wants_left, answers_left) = (
            lane.outbox.full || !lane.outbox.entries.is_empty(),
            !lane.outbox.presences.is_empty(),
        );
        let blocks = message.blocks.len() as u64;
        let bytes = message.block_bytes() as u64;
        let id = self.node(peer).id;
        let state = self.node_mut(node);
        state.traffic.messages_sent += 1;
        state.traffic.bytes_sent += message.frame_bytes as u64;
        if blocks > 0 {
            state.server.on_written(id, conn, blocks, bytes, now);
        }
        if sending.wants && !wants_left {
            state.client.on_written(id, now);
        }
        if sending.answers && !answers_left {
            state.server.on_answers_written(id, now);
        }
        let happening = Happening::Arrived(conn, side.other(), Box::new(message));
        self.plan(arrival, happening);
        self.settle(node);
        self.kick(conn, side);
    }

    // ---- receiving ----

    fn on_arrived(&mut self, conn: ConnKey, side: Side, message: Box<Message>) {
        let now = self.now;
        let Some(wire) = self.wires.get(&conn) else {
            return;
        };
        let node = wire.end(side);
        let state = self.node_mut(node);
        let Some(rate) = state.setup.download else {
            return self.on_received(conn, side, &message);
        };
        let begin = state.download_free.max(now);
        state.download_free = begin + span(message.frame_bytes as u64, rate);
        let at = state.download_free;
        self.plan(at, Happening::Received(conn, side, message));
    }

    fn on_received(&mut self, conn: ConnKey, side: Side, message: &Message) {
        let now = self.now;
        let Some(wire) = self.wires.get(&conn) else {
            return;
        };
        let (node, from) = (wire.end(side), wire.end(side.other()));
        let id = self.node(from).id;
        let state = self.node_mut(node);
        state.count_received(message);
        state.client.on_message(id, conn, message, now);
        if !message.entries.is_empty() || message.full {
            let Node { server, blocks, .. } = state;
            server.on_asked(id, conn, &|cid| size(blocks, cid), now);
            server.on_message(id, message, &|cid| size(blocks, cid), now);
        }
        self.settle(node);
    }

    fn on_read(&mut self, index: usize, id: ReadId, cid: Cid, links: bool) {
        let now = self.now;
        let node = self.node_mut(index);
        let links = match links {
            true => node.links.get(&cid).cloned().unwrap_or_default(),
            false => Vec::new(),
        };
        let Node { server, blocks, .. } = node;
        let data = blocks.get(&cid).cloned();
        server.on_read(id, data, links, &|cid| size(blocks, cid), now);
        self.settle(index);
    }

    fn on_break(&mut self, conn: ConnKey) {
        let (Some(wire), Some(churn)) = (self.wires.get(&conn), self.churn) else {
            return;
        };
        let (a, b, link) = (wire.a, wire.b, wire.link);
        let at = self.now + churn.downtime;
        self.disconnect(conn);
        self.plan(at, Happening::Connect(a, b, link));
    }

    // ---- the cores ----

    /// Does what the cores of a node want done; call it after calls into them.
    pub fn settle(&mut self, index: usize) {
        let mut touched = BTreeSet::new();
        loop {
            if let Some(output) = self.node_mut(index).client.poll_output() {
                touched.extend(self.on_client_output(index, output));
                continue;
            }
            let Some(output) = self.node_mut(index).server.poll_output() else {
                break;
            };
            touched.extend(self.on_server_output(index, output));
        }
        for conn in touched {
            if let Some(side) = self.wires.get(&conn).map(|wire| wire.side(index)) {
                self.kick(conn, side);
            }
        }
        let node = self.node_mut(index);
        let at = [node.client.poll_timeout(), node.server.poll_timeout()];
        let at = at.into_iter().flatten().min();
        let old = std::mem::replace(&mut node.armed, at);
        if old != at {
            self.timers.extend(at.map(|at| (at, index)));
            if let Some(old) = old {
                self.timers.remove(&(old, index));
            }
        }
    }

    fn lane(&mut self, from: usize, conn: ConnKey) -> Option<&mut Lane> {
        let wire = self.wires.get_mut(&conn)?;
        let side = wire.side(from);
        Some(wire.lane(side))
    }

    fn on_client_output(&mut self, index: usize, output: client::Output) -> Option<ConnKey> {
        let now = self.now;
        match output {
            client::Output::Send {
                conn,
                entries,
                full,
                ..
            } => {
                let node = self.node_mut(index);
                for entry in &entries {
                    let counter = match (entry.cancel, entry.want_type) {
                        (true, _) => &mut node.traffic.cancels_sent,
                        (_, crate::message::WantType::Block) => &mut node.traffic.want_blocks_sent,
                        (_, crate::message::WantType::Have) => &mut node.traffic.want_haves_sent,
                    };
                    *counter += 1;
                }
                if node.setup.records {
                    node.entries_sent.extend(entries.iter().cloned());
                }
                let outbox = &mut self.lane(index, conn)?.outbox;
                if full {
                    outbox.entries.clear();
                }
                outbox.entries.extend(entries);
                outbox.full |= full;
                return Some(conn);
            }
            client::Output::Block {
                ticket,
                block,
                from,
            } => {
                let node = self.node_mut(index);
                node.got.push(Delivery {
                    at: now,
                    ticket,
                    cid: *block.cid(),
                    from,
                });
                if node.setup.takes {
                    node.client.taken(ticket, block.data().len(), now);
                    let (cid, data) = block.into_parts();
                    let Node { server, blocks, .. } = node;
                    blocks.insert(cid, data);
                    server.on_new_blocks(&[cid], &|cid| size(blocks, cid), now);
                }
            }
            client::Output::Dial(peer) => {
                if let (Some(link), Some(other)) = (self.dial, self.index_of(&peer)) {
                    let at = now + 2 * link.delay;
                    self.plan(at, Happening::Connect(index, other, link));
                }
                let dial = client::Output::Dial(peer);
                self.node_mut(index).events.push((now, dial));
            }
            other => self.node_mut(index).events.push((now, other)),
        }
        None
    }

    fn on_server_output(&mut self, index: usize, output: server::Output) -> Option<ConnKey> {
        match output {
            server::Output::Read { id, cid, links } => {
                let at = self.now + self.node(index).setup.read_delay;
                self.plan(at, Happening::Read(index, id, cid, links));
                None
            }
            server::Output::Block {
                conn,
                block,
                promised,
                pending_bytes,
                ..
            } => {
                let outbox = &mut self.lane(index, conn)?.outbox;
                outbox.blocks.push_back((block, promised.map(|cid| *cid)));
                outbox.pending_bytes = pending_bytes;
                Some(conn)
            }
            server::Output::Presences {
                conn, presences, ..
            } => {
                self.lane(index, conn)?.outbox.presences.extend(presences);
                Some(conn)
            }
            // Nodes of a simulation prefetch nothing.
            server::Output::Prefetch(_) | server::Output::EndPrefetch(_) => None,
            server::Output::TakeBack { peer, conn, cids } => {
                let now = self.now;
                let mut taken = Vec::new();
                self.lane(index, conn)?
                    .outbox
                    .blocks
                    .retain(|(block, promised)| {
                        let keep = promised.is_some() || !cids.contains(block.cid());
                        if !keep {
                            taken.push(block.clone());
                        }
                        keep
                    });
                let server = &mut self.node_mut(index).server;
                server.on_taken_back(peer, conn, &taken, now);
                None
            }
            server::Output::Withdraw { peer, conn } => {
                let now = self.now;
                let blocks = std::mem::take(&mut self.lane(index, conn)?.outbox.blocks);
                let blocks = blocks.into_iter().map(|(block, _)| block).collect();
                let server = &mut self.node_mut(index).server;
                server.on_returned(peer, conn, blocks, now);
                None
            }
        }
    }
}

fn size(blocks: &HashMap<Cid, Bytes>, cid: &Cid) -> Option<u32> {
    blocks
        .get(cid)
        .and_then(|data| u32::try_from(data.len()).ok())
}
