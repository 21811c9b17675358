//! A block from its read to the socket, and the descendants that are pushed after it.

use bytes::Bytes;
use cid::Cid;
use libp2p_identity::PeerId;
use web_time::Instant;

use super::{
    Lookup, Output, Read, ReadId, Server,
    peer::{Descent, PeerKey, Status},
};
use crate::{
    Block,
    core::{ConnKey, paths::Paths},
    message::WantType,
};

/// Links remembered of one descent.
const MAX_STACK: usize = 1024;

impl Server {
    pub(super) fn start_read(&mut self, key: PeerKey, cid: Cid, size: u32) {
        let id = ReadId(self.id());
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(want) = peer.wants.get(&cid) else {
            return;
        };
        let (links, priority) = (want.descent.left > 0, want.priority);
        peer.set(&cid, Status::Reading, priority);
        peer.in_pipe += u64::from(size);
        self.in_pipe += u64::from(size);
        self.reads.insert(
            id,
            Read {
                peer: key,
                cid,
                size: size.into(),
            },
        );
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
        peer.in_pipe = peer.in_pipe.saturating_sub(read.size);
        self.in_pipe = self.in_pipe.saturating_sub(read.size);
        let wanted = peer
            .wants
            .get(&read.cid)
            .is_some_and(|w| w.status == Status::Reading);
        let conn = peer.paths.best().map(|(conn, _)| conn);
        if !wanted {
            self.activate(read.peer);
            return;
        }
        let (Some(data), Some(conn)) = (data, conn) else {
            self.refuse(read.peer, &read.cid);
            self.activate(read.peer);
            return;
        };
        let descent = self.forget(read.peer, &read.cid).map(|want| want.descent);
        let promised = descent.and_then(|descent| self.descend(read.peer, descent, links, lookup));
        self.hand(read.peer, conn, Block::trusted(read.cid, data), promised);
        self.activate(read.peer);
    }

    /// Gives a block to a connection.
    fn hand(&mut self, key: PeerKey, conn: ConnKey, block: Block, promised: Option<Cid>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let bytes = block.data().len() as u64;
        if peer.handed.is_empty() {
            peer.taken_at = self.now;
        }
        peer.in_pipe += bytes;
        self.in_pipe += bytes;
        *peer.handed.entry(conn).or_insert(0) += bytes;
        // Sizes of what is still queued are not summed up; a block counts as a typical chunk.
        let pending_bytes = peer.in_pipe - bytes + peer.ready_count() as u64 * 256 * 1024;
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
        mut descent: Descent,
        links: Vec<Cid>,
        lookup: Lookup<'_>,
    ) -> Option<Cid> {
        if descent.left == 0 {
            return None;
        }
        descent.left -= 1;
        let room = MAX_STACK.saturating_sub(descent.stack.len());
        descent.stack.extend(links.into_iter().take(room).rev());
        while let Some(cid) = descent.stack.pop() {
            let peer = self.peers.get_mut(&key)?;
            if let Some(want) = peer.wants.get_mut(&cid) {
                // Asked for already: it comes in its turn, and its descendants with it.
                if want.descent.left < descent.left {
                    want.descent = descent;
                }
                return None;
            }
            let size = lookup(&cid).filter(|_| self.config.serve());
            let path = peer.paths.best().map(|(_, path)| path);
            match (size, path) {
                (Some(size), Some(path))
                    if Paths::fits(path, peer.reading() + u64::from(size))
                        && peer.wants.len() < self.config.max_wants_per_peer() =>
                {
                    self.insert(key, cid, i32::MAX, WantType::Block, false, descent);
                    self.evaluate(key, &cid, lookup, false);
                    return Some(cid);
                }
                (None, Some(_)) => {}
                _ => return None,
            }
        }
        None
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
            state.taken_at = now;
            state.stuck = false;
        }
        self.unhand(key, conn, bytes);
        self.activate(key);
    }

    fn unhand(&mut self, key: PeerKey, conn: ConnKey, bytes: u64) {
        if let Some(peer) = self.peers.get_mut(&key)
            && let Some(handed) = peer.handed.get_mut(&conn)
        {
            let done = bytes.min(*handed);
            *handed -= done;
            if *handed == 0 {
                peer.handed.remove(&conn);
            }
            peer.in_pipe = peer.in_pipe.saturating_sub(done);
            self.in_pipe = self.in_pipe.saturating_sub(done);
        }
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
        let bytes = blocks.iter().map(|block| block.data().len() as u64).sum();
        self.unhand(key, conn, bytes);
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

    /// The block is wanted as before it was read.
    fn requeue(&mut self, key: PeerKey, block: &Block) {
        let cid = *block.cid();
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        let is_full = peer.wants.len() >= self.config.max_wants_per_peer();
        if let (Ok(size), false) = (u32::try_from(block.data().len()), is_full)
            && !peer.wants.contains_key(&cid)
        {
            self.insert(key, cid, 0, WantType::Block, true, Descent::default());
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.set(&cid, Status::Ready(size), 0);
            }
        }
    }
}
