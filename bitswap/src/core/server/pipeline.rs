//! A block from its read to the socket, and the descendants that are pushed after it.

use bytes::Bytes;
use cid::Cid;
use libp2p_identity::PeerId;
use web_time::Instant;

use super::{
    Lookup, Output, Read, ReadId, Server,
    peer::{Descent, Handed, PeerKey, Status, Want, WantKey, weight},
    wantlists::Stock,
};
use crate::{
    Block,
    core::{ConnKey, paths::Paths},
    message::WantType,
};

impl Server {
    pub(super) fn start_read(&mut self, key: PeerKey, want: WantKey, size: u32) {
        let id = ReadId(self.id());
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(state) = peer.wants.get(&want) else {
            return;
        };
        let (cid, links, priority) = (*state.cid, state.descent.is_some(), state.priority);
        peer.set(want, Status::Reading, priority);
        peer.reading += u64::from(size);
        peer.in_pipe += weight(1, size.into());
        self.in_pipe += weight(1, size.into());
        let read = Read {
            peer: key,
            want,
            size: size.into(),
        };
        self.reads.insert(id, read);
        self.outputs.push_back(Output::Read { id, cid, links });
    }

    /// A read has ended; `None`: the block is not there (any more). `links` as asked for.
    pub fn on_read(
        &mut self,
        id: ReadId,
        data: Option<Bytes>,
        links: Vec<Cid>,
        lookup: Lookup<'_>,
        now: Instant,
    ) {
        self.now = now;
        self.dirty = true;
        let Some(read) = self.reads.remove(&id) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&read.peer) else {
            return;
        };
        peer.reading = peer.reading.saturating_sub(read.size);
        peer.in_pipe = peer.in_pipe.saturating_sub(weight(1, read.size));
        self.in_pipe = self.in_pipe.saturating_sub(weight(1, read.size));
        let wanted = peer.wants.contains_key(&read.want);
        let conn = peer.paths.best().map(|(conn, _)| conn);
        let (true, Some(data), Some(conn)) = (wanted, data, conn) else {
            self.shaper.refund(peer.class, read.size, now);
            self.refuse(read.peer, read.want);
            self.activate(read.peer);
            return;
        };
        if let Some(want) = self.forget(read.peer, read.want) {
            let descent = want.descent;
            let promised =
                descent.and_then(|descent| self.descend(read.peer, descent, links, lookup));
            self.hand(read.peer, conn, Block::trusted(*want.cid, data), promised);
        }
        self.activate(read.peer);
    }

    /// Gives a block to a connection.
    fn hand(&mut self, key: PeerKey, conn: ConnKey, block: Block, promised: Option<Cid>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let bytes = block.data().len() as u64;
        if peer.handed.is_empty() {
            peer.on_first_handed(self.now);
        }
        let before: u64 = peer.handed.values().map(Handed::bytes).sum();
        let pending_bytes = before + peer.reading + peer.ready_bytes();
        peer.in_pipe += weight(1, bytes);
        self.in_pipe += weight(1, bytes);
        let handed = peer.handed.entry(conn).or_default();
        handed.push(block.cid(), bytes);
        peer.paths.spend(conn, bytes);
        self.outputs.push_back(Output::Block {
            peer: peer.id,
            conn,
            block,
            promised: promised.map(Box::new),
            pending_bytes,
        });
    }

    /// Queues the next descendant to be pushed, and names it.
    fn descend(
        &mut self,
        key: PeerKey,
        mut descent: Box<Descent>,
        links: Vec<Cid>,
        lookup: Lookup<'_>,
    ) -> Option<Cid> {
        if descent.left == 0 {
            return None;
        }
        // Those after the next so many come into question only if we lack most of these.
        let kept = 2 * descent.left as usize;
        descent.stack.extend(links.into_iter().take(kept).rev());
        let surplus = descent.stack.len().saturating_sub(kept);
        descent.stack.drain(..surplus);
        descent.left -= 1;
        while let Some(cid) = descent.stack.pop() {
            if let Some(want) = self.find(key, &cid) {
                // Asked for already: it comes in its turn, and its descendants with it.
                let peer = self.peers.get_mut(&key)?;
                let own = peer.wants.get(&want)?.descent.as_ref();
                if own.map_or(0, |own| own.left) < descent.left {
                    peer.set_descent(want, descent);
                }
                return None;
            }
            let peer = self.peers.get(&key)?;
            let Stock::Here(size) = self.stock(&peer.id, &cid, lookup) else {
                continue;
            };
            let (_, path) = peer.paths.best()?;
            let room = peer.wants.len() < self.config.max_wants_per_peer();
            if !room || !Paths::fits(path, peer.reading + u64::from(size)) {
                return None;
            }
            let descent = (descent.left > 0).then_some(descent);
            self.insert_ready(key, &cid, size, false, descent);
            return Some(cid);
        }
        None
    }

    /// A want-block that goes before all others of its peer.
    fn insert_ready(
        &mut self,
        key: PeerKey,
        cid: &Cid,
        size: u32,
        send_dont_have: bool,
        descent: Option<Box<Descent>>,
    ) {
        let want = Want {
            cid: self.shared(cid),
            priority: i32::MAX,
            kind: WantType::Block,
            send_dont_have,
            status: Status::Ready(size),
            since: self.seconds(),
            refreshed: self.seconds(),
            descent,
        };
        self.insert(key, want);
    }

    /// Blocks are written.
    pub fn on_written(
        &mut self,
        peer: PeerId,
        conn: ConnKey,
        blocks: u64,
        bytes: u64,
        now: Instant,
    ) {
        self.now = now;
        let Some(key) = self.keys.get(&peer).copied() else {
            return;
        };
        if let Some(state) = self.peers.get_mut(&key) {
            state.ledger.blocks_sent += blocks;
            state.ledger.bytes_sent += bytes;
            state.on_taken(bytes, now);
        }
        self.unhand(key, conn, |handed| handed.written(blocks, bytes));
        self.activate(key);
    }

    /// Takes something off what a connection was handed; `take` returns its weight.
    fn unhand(&mut self, key: PeerKey, conn: ConnKey, take: impl FnOnce(&mut Handed) -> u64) {
        if let Some(peer) = self.peers.get_mut(&key)
            && let Some(handed) = peer.handed.get_mut(&conn)
        {
            let done = take(handed);
            if handed.is_empty() {
                peer.handed.remove(&conn);
            }
            peer.in_pipe = peer.in_pipe.saturating_sub(done);
            self.in_pipe = self.in_pipe.saturating_sub(done);
        }
    }

    fn unhand_all(&mut self, key: PeerKey, conn: ConnKey, blocks: &[Block]) {
        self.unhand(key, conn, |handed| {
            let weights = blocks
                .iter()
                .map(|block| handed.taken_back(block.cid(), block.data().len() as u64));
            weights.sum()
        });
    }

    /// Connections are asked for the blocks among `cids` that they were handed.
    pub(super) fn take_back(&mut self, key: PeerKey, cids: &[&Cid]) {
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        for (conn, handed) in &peer.handed {
            let cancelled = cids.iter().filter(|cid| handed.contains(cid));
            let cids: Vec<Cid> = cancelled.map(|cid| **cid).collect();
            if !cids.is_empty() {
                self.outputs.push_back(Output::TakeBack {
                    peer: peer.id,
                    conn: *conn,
                    cids,
                });
            }
        }
    }

    /// Blocks that nobody wants any more come back unwritten.
    pub fn on_taken_back(&mut self, peer: PeerId, conn: ConnKey, blocks: &[Block], now: Instant) {
        self.now = now;
        let Some(key) = self.keys.get(&peer).copied() else {
            return;
        };
        self.unhand_all(key, conn, blocks);
        if let Some(peer) = self.peers.get(&key) {
            let bytes = blocks.iter().map(|block| block.data().len() as u64).sum();
            self.shaper.refund(peer.class, bytes, now);
        }
        self.activate(key);
    }

    /// The batch of answers is written.
    pub fn on_answers_written(&mut self, peer: PeerId, now: Instant) {
        self.now = now;
        self.dirty = true;
        if let Some(state) = self.keys.get(&peer).and_then(|key| self.peers.get_mut(key)) {
            state.answering = false;
        }
    }

    /// Blocks come back unwritten: they go to a better connection, if there is one, else into the queue.
    pub fn on_returned(&mut self, peer: PeerId, conn: ConnKey, blocks: Vec<Block>, now: Instant) {
        self.now = now;
        let Some(key) = self.keys.get(&peer).copied() else {
            return;
        };
        self.unhand_all(key, conn, &blocks);
        let best = self.peers.get(&key).and_then(|state| state.paths.best());
        let better = best.filter(|(best, _)| *best != conn);
        for block in blocks {
            match better {
                Some((better, _)) => self.hand(key, better, block, None),
                None => self.requeue(key, &block),
            }
        }
        self.activate(key);
    }

    /// The block is wanted as before it was read, and its turn had come.
    fn requeue(&mut self, key: PeerKey, block: &Block) {
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        let (class, is_full) = (
            peer.class,
            peer.wants.len() >= self.config.max_wants_per_peer(),
        );
        self.shaper
            .refund(class, block.data().len() as u64, self.now);
        if let (Ok(size), false) = (u32::try_from(block.data().len()), is_full)
            && self.find(key, block.cid()).is_none()
        {
            self.insert_ready(key, block.cid(), size, true, None);
        }
    }
}
