//! From the disk into packs.

use std::sync::Arc;

use super::{Mover, Stop, now};
use crate::{
    cold::{bucket::cause, tier::PackBuilder},
    disk::{
        index::{Entry, Place},
        moves::{self, Copied},
        victims,
    },
    heat::moves::{Block, Move},
    key::Key,
    state::Shared,
};

use super::MOST_UNREADABLE;

/// What goes into a pack, and where it is now.
struct Leaving {
    key: Key,
    from: Place,
    name: cid::Cid,
    expiry_ms: u64,
}

impl Mover {
    /// Moves the coldest blocks that take `bytes` on the disk. Returns the bytes that left.
    pub(super) fn demote(&self, bytes: u64) -> Result<u64, Stop> {
        let mut victims = self.victims(bytes)?;
        // As they lie, so that they are read in one sweep.
        victims.sort_unstable_by_key(|entry| entry.position().map(|at| (at.segment, at.offset)));
        let mut left = 0;
        let mut rest = victims.as_slice();
        while !rest.is_empty() {
            let batch = match self.claim().and_then(|()| self.pack(rest)) {
                Ok(batch) => batch,
                Err(stop) => {
                    self.done(rest, false);
                    return Err(stop);
                }
            };
            let (these, others) = rest.split_at(batch.taken.min(rest.len()));
            rest = others;
            match self.send(batch) {
                Ok(bytes) => {
                    self.done(these, true);
                    left += bytes;
                }
                Err(stop) => {
                    self.done(these, false);
                    self.done(rest, false);
                    return Err(stop);
                }
            }
        }
        Ok(left)
    }

    /// The blocks that the policy lets go for `bytes`.
    fn victims(&self, bytes: u64) -> Result<Vec<Entry>, Stop> {
        let shared = self.shared()?;
        let keep = {
            let state = self.state.lock();
            let held = state.held.keys().copied();
            held.chain(state.unreadable.iter().copied()).collect()
        };
        let coldest = victims::coldest(&shared, bytes, &keep);
        let mut state = self.state.lock();
        let blocks = coldest.iter().map(|entry| Block {
            key: entry.key(),
            bytes: entry.len(),
            heat: entry.heat,
        });
        // What the policy counts are blocks; a record is a little more.
        state.moves.on_coldest(bytes, blocks);
        let mut chosen = hashbrown::HashSet::new();
        while let Some(next) = state.moves.poll_output() {
            match next {
                Move::Demote { key, .. } => {
                    chosen.insert(key);
                }
                // Its data is not at hand any more.
                Move::Promote { key, .. } => state.moves.on_done(&key, false, now()),
            }
        }
        Ok(coldest
            .into_iter()
            .filter(|entry| chosen.contains(&entry.key()))
            .collect())
    }

    fn done(&self, entries: &[Entry], succeeded: bool) {
        let mut state = self.state.lock();
        for entry in entries {
            state.moves.on_done(&entry.key(), succeeded, now());
        }
    }

    /// Fills a pack with the first of `entries`.
    fn pack(&self, entries: &[Entry]) -> Result<Batch, Stop> {
        let shared = self.shared()?;
        let failed = |error| Stop::Disk(cause(error));
        let mut batch = Batch {
            builder: self.cold.builder(shared.vfs.now_ms()).map_err(failed)?,
            leaving: Vec::new(),
            damaged: Vec::new(),
            taken: 0,
        };
        for entry in entries {
            let is_full =
                batch.builder.len() + u64::from(entry.len()) > self.cold.config.pack_bytes;
            // Only this job has the store any more: its end must not wait for the rest.
            if is_full && !batch.builder.is_empty() || Arc::strong_count(&shared) == 1 {
                break;
            }
            let block = match moves::read(&shared, entry) {
                Ok(Some(block)) => block,
                Ok(None) => {
                    batch.damaged.push((entry.key(), entry.place()));
                    batch.taken += 1;
                    continue;
                }
                Err(error) => {
                    tracing::error!(%error, "a block cannot be read and stays on the disk");
                    let mut state = self.state.lock();
                    if state.unreadable.len() < MOST_UNREADABLE {
                        state.unreadable.insert(entry.key());
                    }
                    batch.taken += 1;
                    continue;
                }
            };
            let added = batch
                .builder
                .push(&block.cid, block.class, block.expiry_ms, &block.data)
                .map_err(failed)?;
            if !added {
                break;
            }
            batch.leaving.push(Leaving {
                key: entry.key(),
                from: entry.place(),
                name: block.cid,
                expiry_ms: block.expiry_ms,
            });
            batch.taken += 1;
        }
        if batch.taken == 0 {
            return Err(Stop::Ended);
        }
        Ok(batch)
    }

    /// Writes the pack, then flips. Returns the bytes that left the disk.
    fn send(&self, batch: Batch) -> Result<u64, Stop> {
        let mut left = 0;
        if !batch.damaged.is_empty() {
            let damaged = batch.damaged;
            left += self.write(move |shared, log| {
                let before = shared.counters.live.get();
                for (key, place) in damaged {
                    // It moved or was written anew, or it counts as absent already and only takes room.
                    if shared
                        .index
                        .get(&key)
                        .is_some_and(|entry| entry.place() == place && entry.pins == 0)
                    {
                        tracing::error!(?place, "a damaged block is forgotten");
                        shared.mark_damaged(&key, place);
                        shared.forget_and_tell(log, &key);
                    }
                }
                Ok(before.saturating_sub(shared.counters.live.get()))
            })?;
        }
        if batch.builder.is_empty() {
            return Ok(left);
        }
        self.make_room_for_pack(batch.builder.len())?;
        let now_ms = self.shared()?.vfs.now_ms();
        let written = self.ask(self.cold.write(batch.builder, now_ms))?;
        let pack = written.pack;
        let copied: Vec<Copied> = batch
            .leaving
            .iter()
            .filter_map(|block| {
                Some(Copied {
                    key: block.key,
                    from: block.from,
                    to: written.location(&block.name)?,
                    expiry_ms: block.expiry_ms,
                })
            })
            .collect();
        let (moved, freed) = self.write(move |shared: &Shared, log| {
            let before = shared.counters.live.get();
            let moved = moves::to_pack(shared, log, pack, &copied)?;
            Ok((moved, before.saturating_sub(shared.counters.live.get())))
        })?;
        self.cold.counters.demotions.add(moved.blocks);
        Ok(left + freed)
    }
}

/// A pack on its way.
struct Batch {
    builder: PackBuilder,
    leaving: Vec<Leaving>,
    damaged: Vec<(Key, Place)>,
    /// Entries that it deals with.
    taken: usize,
}
