//! Whose turn it is: deficit round robin in each class, and room taken back from peers that are stuck.

use std::{collections::VecDeque, time::Duration};

use web_time::Instant;

use super::{
    Output, Server,
    peer::{PeerKey, Status, Turn, weight},
    shaper::Class,
};
use crate::core::paths::Paths;

/// Bytes a peer of weight 1 may be sent in one turn.
const QUANTUM: f64 = 256.0 * 1024.0;
/// Bytes that are read ahead for a peer about which nothing is known: two blocks of 256 KiB, with what
/// surrounds them. Besides, as much as it took in the last second. So those that do not read hold little,
/// however many they are.
const FIRST_PIPELINE: u64 = 520 * 1024;
/// This part of the pipelines is left to peers that have just become active: when all connections
/// share a link, nothing may be written for as long as a block of each takes.
const FRESH_SHARE: u64 = 8;
/// A peer that takes nothing for so long is stuck: while the pipelines are more than half full it
/// gives back all but what is being written, and gets one block at a time until it reads again.
const STUCK: Duration = Duration::from_secs(1);
/// How often stuck peers are looked for.
const STUCK_CHECK: Duration = Duration::from_millis(250);

/// The rings of all classes.
#[derive(Debug, Default)]
pub(super) struct Rings {
    favoured: Ring,
    normal: Ring,
    background: Ring,
}

impl Rings {
    fn of(&self, class: Class) -> &Ring {
        match class {
            Class::Favoured => &self.favoured,
            Class::Normal => &self.normal,
            Class::Background => &self.background,
        }
    }

    pub(super) fn of_mut(&mut self, class: Class) -> &mut Ring {
        match class {
            Class::Favoured => &mut self.favoured,
            Class::Normal => &mut self.normal,
            Class::Background => &mut self.background,
        }
    }
}

/// The peers of one class that have something to be sent.
#[derive(Debug, Default)]
pub(super) struct Ring {
    /// Those that just became so; they go first.
    fresh: VecDeque<PeerKey>,
    old: VecDeque<PeerKey>,
}

impl Ring {
    /// Who is next, if only fresh ones may be.
    fn front(&self, fresh_only: bool) -> Option<PeerKey> {
        let old = self.old.front().filter(|_| !fresh_only);
        self.fresh.front().or(old).copied()
    }

    /// Takes the front peer out; whether it was fresh.
    fn pop(&mut self) -> bool {
        let fresh = self.fresh.pop_front().is_some();
        if !fresh {
            self.old.pop_front();
        }
        fresh
    }

    /// The front peer goes to the end.
    fn rotate(&mut self) {
        if let Some(key) = self.fresh.pop_front().or_else(|| self.old.pop_front()) {
            self.old.push_back(key);
        }
    }

    pub(super) fn remove(&mut self, key: PeerKey) {
        self.fresh.retain(|other| *other != key);
        self.old.retain(|other| *other != key);
    }
}

impl Server {
    pub(super) fn activate(&mut self, key: PeerKey) {
        self.dirty = true;
        if let Some(peer) = self.peers.get_mut(&key)
            && peer.has_ready()
        {
            let ring = self.rings.of_mut(peer.class);
            match peer.turn {
                Turn::Queued => return,
                Turn::Idle => {
                    peer.deficit = quantum(peer.weight);
                    ring.fresh.push_back(key);
                }
                Turn::Blocked => ring.old.push_back(key),
            }
            peer.turn = Turn::Queued;
        }
    }

    /// Starts reads for the peers in turn, as far as the pipelines have room and the limits let them.
    pub(super) fn pump(&mut self) {
        while self.in_pipe < self.config.max_pipeline_bytes()
            && self.reads.len() < self.config.max_reads()
            && let Some((class, key)) = self.next_turn()
        {
            self.take_turn(class, key);
        }
        self.stuck_check = match self.is_filling_up() {
            true => self.stuck_check.or(Some(self.now + STUCK_CHECK)),
            false => None,
        };
    }

    /// The first peer of the first class that may send.
    fn next_turn(&self) -> Option<(Class, PeerKey)> {
        let max = self.config.max_pipeline_bytes();
        let fresh_only = self.in_pipe >= max - max / FRESH_SHARE;
        Class::ALL.into_iter().find_map(|class| {
            let key = self.rings.of(class).front(fresh_only)?;
            self.shaper.admits(class, self.now).then_some((class, key))
        })
    }

    /// When a class that waits for its limit may go on.
    pub(super) fn unthrottled_at(&self) -> Option<Instant> {
        let waiting = Class::ALL
            .into_iter()
            .filter(|class| self.rings.of(*class).front(false).is_some());
        waiting
            .map(|class| self.shaper.ready_at(class, self.now))
            .filter(|at| *at > self.now)
            .min()
    }

    /// Serves one block to the peer at the front of a ring, or moves the peer.
    fn take_turn(&mut self, class: Class, key: PeerKey) {
        let limit = self.config.max_pipeline_bytes_per_peer();
        let ring = self.rings.of_mut(class);
        let Some(peer) = self.peers.get_mut(&key) else {
            ring.pop();
            return;
        };
        let Some((want, size)) = peer.next_ready() else {
            // Not idle before a round among the others, and before what it had in advance is paid
            // back, or a peer with one want at a time would always be first.
            if peer.deficit <= 0 {
                peer.deficit += quantum(peer.weight);
                ring.rotate();
            } else if ring.pop() {
                ring.old.push_back(key);
            } else {
                peer.turn = Turn::Idle;
            }
            return;
        };
        let limit = limit.min(FIRST_PIPELINE + peer.taken_lately(self.now));
        let next = weight(1, size.into());
        let room = peer.in_pipe == 0 || (!peer.stuck && peer.in_pipe + next <= limit);
        let best = peer.paths.best();
        let Some((_, path)) = best.filter(|_| room) else {
            // `activate` brings it back.
            peer.turn = Turn::Blocked;
            ring.pop();
            return;
        };
        if !Paths::fits(path, peer.reading + u64::from(size)) {
            // It did fit when it was asked for; others have used the circuit up since.
            let priority = peer.wants.get(&want).map_or(0, |want| want.priority);
            peer.set(want, Status::Withheld, priority);
            self.answer_want(key, want, true);
            return;
        }
        if peer.deficit <= 0 {
            peer.deficit += quantum(peer.weight);
            ring.rotate();
            return;
        }
        peer.deficit -= i64::try_from(next).unwrap_or(i64::MAX);
        self.shaper.charge(class, size.into(), self.now);
        self.start_read(key, want, size);
    }

    fn is_filling_up(&self) -> bool {
        self.in_pipe > self.config.max_pipeline_bytes() / 2
    }

    /// Takes room in the pipelines from the peers that do not use it.
    pub(super) fn reclaim(&mut self) {
        if self.stuck_check.is_none_or(|at| self.now < at) {
            return;
        }
        self.stuck_check = self.is_filling_up().then_some(self.now + STUCK_CHECK);
        if self.stuck_check.is_none() {
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

fn quantum(weight: f64) -> i64 {
    (QUANTUM * weight).max(1.0) as i64
}
