//! Whose turn it is: deficit round robin, and room taken back from peers that are stuck.

use std::time::Duration;

use web_time::Instant;

use super::{
    Output, Server,
    peer::{Peer, PeerKey, Status, Turn},
};
use crate::core::paths::Paths;

/// Bytes a peer of weight 1 may be sent in one turn.
const QUANTUM: f64 = 256.0 * 1024.0;
/// A peer that takes nothing for so long is stuck: while others wait for room in the pipelines it
/// gives back all but what is being written, and gets one block at a time until it reads again.
const STUCK: Duration = Duration::from_secs(1);

impl Server {
    pub(super) fn activate(&mut self, key: PeerKey) {
        self.dirty = true;
        if let Some(peer) = self.peers.get_mut(&key)
            && peer.has_ready()
        {
            match peer.turn {
                Turn::Queued => return,
                Turn::Idle => {
                    peer.deficit = quantum(peer.weight);
                    self.fresh.push_back(key);
                }
                Turn::Blocked => self.old.push_back(key),
            }
            peer.turn = Turn::Queued;
        }
    }

    /// Starts reads for the peers in turn, as far as the pipelines have room.
    pub(super) fn pump(&mut self) {
        while self.in_pipe < self.config.max_pipeline_bytes()
            && self.reads.len() < self.config.max_reads()
        {
            let (key, is_fresh) = match (self.fresh.front(), self.old.front()) {
                (Some(key), _) => (*key, true),
                (None, Some(key)) => (*key, false),
                (None, None) => return,
            };
            let ring = if is_fresh {
                &mut self.fresh
            } else {
                &mut self.old
            };
            let Some(peer) = self.peers.get_mut(&key) else {
                ring.pop_front();
                continue;
            };
            let Some((cid, size)) = peer.next_ready() else {
                ring.pop_front();
                if is_fresh {
                    // Not idle before a round among the others, or a peer with one want at a time
                    // would always be first.
                    self.old.push_back(key);
                } else {
                    peer.turn = Turn::Idle;
                }
                continue;
            };
            let limit = self.config.max_pipeline_bytes_per_peer();
            let room =
                peer.in_pipe == 0 || (!peer.stuck && peer.in_pipe + u64::from(size) <= limit);
            if !room || peer.paths.best().is_none() {
                // `activate` brings it back.
                peer.turn = Turn::Blocked;
                ring.pop_front();
                continue;
            }
            let best = peer.paths.best();
            if best.is_some_and(|(_, path)| !Paths::fits(path, peer.reading() + u64::from(size))) {
                // It did fit when it was asked for; others have used the circuit up since.
                let priority = peer.wants.get(&cid).map_or(0, |want| want.priority);
                peer.set(&cid, Status::Withheld, priority);
                self.answer(key, cid, true);
                continue;
            }
            if peer.deficit < u64::from(size) {
                peer.deficit += quantum(peer.weight);
                ring.pop_front();
                self.old.push_back(key);
                continue;
            }
            peer.deficit -= u64::from(size);
            self.start_read(key, cid, size);
        }
        self.reclaim();
    }

    /// When the next peer counts as stuck, if others wait for its room.
    pub(super) fn reclaim_at(&self) -> Option<Instant> {
        let full = self.in_pipe >= self.config.max_pipeline_bytes();
        let waiting = !self.fresh.is_empty() || !self.old.is_empty();
        let holding = |peer: &&Peer| !peer.stuck && !peer.handed.is_empty();
        let last = || {
            self.peers
                .values()
                .filter(holding)
                .map(|peer| peer.taken_at)
        };
        (full && waiting)
            .then(last)
            .and_then(Iterator::min)
            .map(|at| at + STUCK)
    }

    /// Takes room in the pipelines from the peers that do not use it.
    fn reclaim(&mut self) {
        if self.reclaim_at().is_none_or(|at| self.now < at) {
            return;
        }
        for peer in self.peers.values_mut() {
            if peer.handed.is_empty() || peer.stuck || self.now < peer.taken_at + STUCK {
                continue;
            }
            peer.stuck = true;
            self.outputs
                .extend(peer.handed.keys().map(|conn| Output::Withdraw {
                    peer: peer.id,
                    conn: *conn,
                }));
        }
    }
}

fn quantum(weight: f64) -> u64 {
    (QUANTUM * weight).max(1.0) as u64
}
