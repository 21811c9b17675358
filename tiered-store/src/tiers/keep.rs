//! Keeping the cold tier in order: sweep up what a crash left, adopt what the index lost, remove and rewrite packs, keep within the capacity.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use cid::Cid;

use super::{
    Mover, Next, Stop,
    choice::{self, PackUse},
    claim::{ADOPT_FILE, read_file},
    now,
};
use crate::{
    MAX_BLOCK_BYTES,
    cold::{
        Location,
        bucket::cause,
        frame::Frame,
        pack::{self, Item},
        tier::{ColdError, PackBuilder},
    },
    disk::{
        index::Entry,
        log::{Draft, Log},
        moves::{self, Copied},
        record::{Kind, put_cid},
    },
    error::WriteFailure,
    state::Shared,
};

/// Bytes read at once for a repack, and the gap between two needed frames that is read along rather than asked for anew.
const PIECE: u64 = 8 * 1024 * 1024;
const GAP: u64 = 64 * 1024;

/// Blocks adopted with one record.
const ADOPTED_PER_RECORD: usize = 8 * 1024;

/// What a collection did in the cold tier.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Collected {
    pub(crate) packs: u64,
    pub(crate) bytes: u64,
}

impl Mover {
    /// Looks what is in the bucket, adopts or removes what the index does not know.
    pub(super) fn sweep(&self) -> Result<(), Stop> {
        let must_adopt = self.must_adopt()?;
        if must_adopt && self.state.lock().claim.is_used {
            // Elsewhere there would be nothing to adopt, and what was not adopted is swept up later.
            self.claim()?;
        }
        let listed = self.ask(self.cold.list())?;
        if must_adopt {
            for (pack, _) in &listed {
                self.adopt(*pack)?;
            }
            let shared = self.shared()?;
            shared
                .vfs
                .remove(&shared.dir.join(ADOPT_FILE))
                .and_then(|()| shared.vfs.sync_dir(&shared.dir))
                .map_err(|error| Stop::Disk(cause(error)))?;
        }
        for (pack, _) in &listed {
            // Those that nothing needs any more are not orphans: they go in their turn.
            let known = self.shared()?.packs.knows(*pack);
            if !known && !self.state.lock().untouched.contains(pack) {
                tracing::info!(pack, "a pack that nothing points to is removed");
                self.remove(*pack)?;
                self.cold.counters.orphans.add(1);
            }
        }
        self.state.lock().is_swept = true;
        Ok(())
    }

    fn must_adopt(&self) -> Result<bool, Stop> {
        let shared = self.shared()?;
        let file = read_file(&shared, ADOPT_FILE);
        Ok(file.map_err(|error| Stop::Disk(cause(error)))?.is_some())
    }

    /// The index was lost with its checkpoint: what a pack has is taken over, but for what is here from elsewhere.
    fn adopt(&self, pack: u32) -> Result<(), Stop> {
        let items = match self.ask_any(self.cold.index(pack))? {
            Ok(items) => items,
            Err(ColdError::Bucket(error)) => return Err(Stop::Bucket(error)),
            Err(ColdError::Lost(cause)) => {
                tracing::error!(pack, %cause, "the index of a pack cannot be read; it is left alone");
                self.state.lock().untouched.insert(pack);
                return Ok(());
            }
        };
        for part in items.chunks(ADOPTED_PER_RECORD) {
            let part = part.to_vec();
            self.write(move |shared, log| adopt_items(shared, log, pack, &part))?;
        }
        Ok(())
    }

    /// Removes a pack that nothing needs. The log says so first.
    fn remove(&self, pack: u32) -> Result<u64, Stop> {
        let lost = self.write(move |shared, log| moves::drop_pack(shared, log, pack))?;
        self.ask(self.cold.remove(pack))?;
        Ok(lost)
    }

    /// Removes dead packs, makes room for the next one, rewrites one set of half-dead ones.
    pub(super) fn keep_within_bounds(&self) -> Result<Next, Stop> {
        if self.remove_dead()? > 0 {
            return Ok(Next::Again);
        }
        self.make_room_for_pack(0)?;
        let rest = {
            let state = self.state.lock();
            let rest = state
                .rest_until
                .map(|until| until.saturating_duration_since(now()));
            rest.unwrap_or_default()
        };
        let packs = self.uses()?;
        let chosen = self.chosen(&packs);
        if chosen.is_empty() {
            return Ok(Next::Idle);
        }
        if rest > Duration::ZERO {
            return Ok(Next::Wait(rest));
        }
        let bytes = self.repack(&chosen)?;
        let per_second = self.shared()?.config.policy.move_bytes_per_second.max(1);
        let rest = Duration::from_secs_f64(bytes as f64 / per_second as f64);
        self.state.lock().rest_until = Some(now() + rest);
        Ok(Next::Again)
    }

    fn chosen(&self, packs: &[PackUse]) -> Vec<u32> {
        let config = &self.cold.config;
        choice::to_repack(packs, config.pack_bytes, config.repack_live_percent)
    }

    pub(super) fn collect_all(&self) -> Result<Collected, Stop> {
        let (packs, bytes) = (
            self.cold.counters.packs_removed.get(),
            self.cold.used_bytes(),
        );
        self.sweep()?;
        self.remove_dead()?;
        self.make_room_for_pack(0)?;
        // Packs that this run writes are full, so it ends; a bound all the same.
        for _ in 0..=self.cold.sizes().len() {
            let uses = self.uses()?;
            let chosen = self.chosen(&uses);
            if chosen.is_empty() {
                break;
            }
            self.repack(&chosen)?;
        }
        Ok(Collected {
            packs: self.cold.counters.packs_removed.get() - packs,
            bytes: bytes.saturating_sub(self.cold.used_bytes()),
        })
    }

    /// The packs that are there, but for those that are left alone.
    fn uses(&self) -> Result<Vec<PackUse>, Stop> {
        let shared = self.shared()?;
        let mut needed: BTreeMap<u32, (u64, f64)> = BTreeMap::new();
        let clock = shared.clock.get();
        shared.index.for_each(|entry| {
            if let Some(at) = entry.location() {
                let (live, score) = needed.entry(at.pack).or_default();
                let name = shared.kinds.name_len(&entry.key(), entry.codec);
                *live += at.most_stored(entry.len()) + pack::bytes_beside(name);
                *score += clock.score(entry.heat);
            }
        });
        let state = self.state.lock();
        let sizes = self.cold.sizes().into_iter();
        Ok(sizes
            .filter(|(pack, _)| !state.untouched.contains(pack))
            .map(|(pack, size)| {
                let (live, score) = needed.get(&pack).copied().unwrap_or_default();
                PackUse {
                    pack,
                    size,
                    // A pack that is needed whole counts as whole: else it would be written again for ever.
                    live: (live + pack::BYTES_OF_NONE).min(size),
                    score,
                }
            })
            .collect())
    }

    fn remove_dead(&self) -> Result<u64, Stop> {
        let mut removed = 0;
        for (pack, _) in self.cold.sizes() {
            let is_dead = self.shared()?.packs.get(pack).blocks == 0;
            if is_dead && !self.state.lock().untouched.contains(&pack) {
                self.remove(pack)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Forgets the coldest packs until `bytes` more fit into the capacity.
    pub(super) fn make_room_for_pack(&self, bytes: u64) -> Result<(), Stop> {
        let Some(capacity) = self.cold.config.capacity else {
            return Ok(());
        };
        while self.cold.used_bytes() + bytes > capacity {
            if !self.cold.was_listed() {
                self.ask(self.cold.list())?;
                continue;
            }
            let Some(pack) = choice::to_evict(&self.uses()?) else {
                return Ok(());
            };
            let lost = self.remove(pack)?;
            self.cold.counters.evictions.add(lost);
        }
        Ok(())
    }

    /// Writes what is needed of some packs again, together, and removes them. Returns the bytes that were written.
    fn repack(&self, packs: &[u32]) -> Result<u64, Stop> {
        let mut blocks: BTreeMap<u32, Vec<Entry>> = BTreeMap::new();
        let now_ms = {
            let shared = self.shared()?;
            shared.index.for_each(|entry| {
                if let Some(at) = entry.location().filter(|at| packs.contains(&at.pack)) {
                    blocks.entry(at.pack).or_default().push(*entry);
                }
            });
            shared.vfs.now_ms()
        };
        let failed = |error| Stop::Disk(cause(error));
        let mut bytes = 0;
        let mut filling = Filling {
            builder: self.cold.builder(now_ms).map_err(failed)?,
            moved: Vec::new(),
        };
        for (pack, mut entries) in blocks {
            entries.sort_unstable_by_key(|entry| entry.location());
            for run in runs(&entries) {
                let (start, end) = (run.start, run.end);
                let read = match self.ask_any(self.cold.pieces(pack, start..end))? {
                    Ok(read) => read,
                    Err(ColdError::Bucket(error)) => return Err(Stop::Bucket(error)),
                    Err(ColdError::Lost(cause)) => {
                        tracing::error!(pack, %cause, "a pack is gone");
                        Bytes::new()
                    }
                };
                for entry in run.entries {
                    if filling.builder.len() + u64::from(entry.len()) > self.cold.config.pack_bytes
                        && !filling.builder.is_empty()
                    {
                        bytes += filling.builder.len();
                        let next = self.cold.builder(now_ms).map_err(failed)?;
                        self.flush(std::mem::replace(
                            &mut filling,
                            Filling {
                                builder: next,
                                moved: Vec::new(),
                            },
                        ))?;
                    }
                    self.copy(&mut filling, entry, start, &read)?;
                }
            }
        }
        if !filling.builder.is_empty() {
            bytes += filling.builder.len();
            self.flush(filling)?;
        }
        for pack in packs {
            let shared = self.shared()?;
            let left = moves::in_pack(&shared, *pack);
            if left.iter().all(Entry::is_damaged) {
                drop(shared);
                self.remove(*pack)?;
            }
        }
        self.cold.counters.repacks.add(1);
        Ok(bytes)
    }

    /// Copies a frame out of what was read of its pack, from `start` on.
    fn copy(
        &self,
        filling: &mut Filling,
        entry: &Entry,
        start: u64,
        read: &Bytes,
    ) -> Result<(), Stop> {
        let shared = self.shared()?;
        let (Some(at), Some(name)) = (
            entry.location(),
            shared.kinds.cid(&entry.key(), entry.codec),
        ) else {
            return Ok(());
        };
        let skip = usize::try_from(u64::from(at.offset) - start).unwrap_or(usize::MAX);
        let frame = read
            .get(skip..)
            .and_then(|bytes| Frame::parse(bytes, at.pack).ok())
            .filter(|frame| frame.key == name.to_bytes() && frame.header.len == entry.len());
        let failed = |error| Stop::Disk(cause(error));
        let added = match frame {
            Some(frame) => filling.builder.push_frame(&frame).map_err(failed)?,
            None => {
                // It moved since, or it is damaged: then it counts as absent until it is put again.
                drop(shared);
                match self.ask_any(self.cold.read(at, entry.len(), &name))? {
                    Ok(thawed) => filling
                        .builder
                        .push(
                            &name,
                            thawed.class,
                            u64::from(entry.expiry_s) * 1000,
                            &thawed.data,
                        )
                        .map_err(failed)?,
                    Err(ColdError::Bucket(error)) => return Err(Stop::Bucket(error)),
                    Err(ColdError::Lost(cause)) => {
                        if self.shared()?.mark_damaged(&entry.key(), entry.place()) {
                            tracing::error!(cid = %name, pack = at.pack, %cause, "a block in the cold tier is damaged");
                        }
                        false
                    }
                }
            }
        };
        if added {
            filling.moved.push((*entry, name));
        }
        // What was not added stays where it is, and its pack with it.
        Ok(())
    }

    fn flush(&self, filling: Filling) -> Result<(), Stop> {
        self.claim()?;
        let now_ms = self.shared()?.vfs.now_ms();
        let written = self.ask(self.cold.write(filling.builder, now_ms))?;
        let copied: Vec<Copied> = filling
            .moved
            .iter()
            .filter_map(|(entry, name)| {
                Some(Copied {
                    key: entry.key(),
                    from: entry.place(),
                    to: written.location(name)?,
                    // In the cold tier the index has it as it is there.
                    expiry_ms: u64::from(entry.expiry_s) * 1000,
                })
            })
            .collect();
        let pack = written.pack;
        self.write(move |shared, log| moves::to_pack(shared, log, pack, &copied))?;
        Ok(())
    }
}

/// A pack that takes what is needed of others.
struct Filling {
    builder: PackBuilder,
    moved: Vec<(Entry, Cid)>,
}

/// Neighbours in a pack that are read together.
struct Run<'a> {
    start: u64,
    end: u64,
    entries: &'a [Entry],
}

/// Cuts entries of one pack, sorted by place, into pieces to read.
fn runs(entries: &[Entry]) -> Vec<Run<'_>> {
    let span = |entry: &Entry| {
        entry.location().map(|at| {
            let start = u64::from(at.offset);
            (start, start + at.most_frame(entry.len()))
        })
    };
    let mut runs: Vec<Run<'_>> = Vec::new();
    let mut first = 0;
    for (number, entry) in entries.iter().enumerate() {
        let Some((start, end)) = span(entry) else {
            continue;
        };
        let these = entries.get(first..=number).unwrap_or_default();
        match runs.last_mut() {
            Some(run) if start <= run.end + GAP && end - run.start <= PIECE => {
                run.end = run.end.max(end);
                run.entries = these;
            }
            _ => {
                first = number;
                runs.push(Run {
                    start,
                    end,
                    entries: entries.get(number..=number).unwrap_or_default(),
                });
            }
        }
    }
    runs
}

/// Enters what the index does not know, durably.
fn adopt_items(
    shared: &Shared,
    log: &mut Log,
    pack: u32,
    items: &[Item],
) -> Result<(), WriteFailure> {
    let mut payload = pack.to_le_bytes().to_vec();
    let mut entries = Vec::new();
    for item in items {
        let Ok(cid) = Cid::try_from(item.key.as_slice()) else {
            continue;
        };
        let (key, codec) = shared.kinds.intern(&cid);
        if item.len > MAX_BLOCK_BYTES || shared.index.id(&key).is_some() {
            continue;
        }
        let at = Location::of(pack, item);
        let expiry_s = moves::cold_seconds(item.expiry_ms);
        put_cid(&cid, &mut payload);
        payload.extend_from_slice(&at.offset.to_le_bytes());
        payload.push(at.bound);
        payload.extend_from_slice(&item.len.to_le_bytes());
        payload.extend_from_slice(&expiry_s.to_le_bytes());
        let heat = shared.clock.get().fresh(1.0);
        entries.push(Entry::cold(key, codec, at, item.len, expiry_s, heat));
    }
    if entries.is_empty() {
        return Ok(());
    }
    let draft = Draft::new(Kind::Demoted, Vec::new(), payload.into());
    log.append(shared, &[draft])?;
    log.sync(shared)?;
    for entry in entries {
        shared.index.insert(entry);
        shared.retain(log, &entry);
    }
    Ok(())
}

/// Whether two entries are the same block at the same place.
#[cfg(test)]
fn same(one: &Entry, other: &Entry) -> bool {
    (one.key(), one.place()) == (other.key(), other.place())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Key;

    fn entry(n: u8, offset: u32, len: u32) -> Entry {
        let key = Key {
            digest: [n; 32],
            hash: 1,
        };
        let at = Location {
            pack: 1,
            offset,
            bound: 255,
        };
        Entry::cold(key, 1, at, len, 0, 0.0)
    }

    #[test]
    fn neighbours_are_read_together_and_what_is_far_apart_is_not() {
        let far = 1000 + 3 * GAP as u32;
        let entries = [
            entry(1, 16, 100),
            entry(2, 1000, 100),
            entry(3, far, 100),
            entry(4, far + 200, PIECE as u32),
        ];
        let runs = runs(&entries);
        let numbers: Vec<Vec<u8>> = runs
            .iter()
            .map(|run| {
                run.entries
                    .iter()
                    .filter_map(|one| entries.iter().position(|other| same(one, other)))
                    .map(|at| at as u8)
                    .collect()
            })
            .collect();
        assert_eq!(numbers, [vec![0, 1], vec![2], vec![3]]);
        for run in &runs {
            for entry in run.entries {
                let at = entry.location().unwrap();
                assert!(u64::from(at.offset) >= run.start);
                assert!(u64::from(at.offset) + at.most_frame(entry.len()) <= run.end);
            }
        }
    }
}
