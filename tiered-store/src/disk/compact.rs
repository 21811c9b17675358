//! Room: forgetting what is over or cold, and copying what is needed out of segments that are mostly garbage.

use std::{io, time::Duration};

use bytes::Bytes;
use hashbrown::HashSet;
use web_time::Instant;

use super::{
    checkpoint,
    log::{Draft, Log, Position},
    record::{HEADER, Kind, Record},
    segment::{self, Item},
    victims,
};
use crate::{
    error::WriteFailure,
    key::Key,
    state::{Shared, Value},
};

/// Bytes copied between two looks at the queue.
const STEP_BYTES: usize = 4 * 1024 * 1024;

/// Why there is no room.
pub(crate) enum NoRoom {
    Full {
        needed: u64,
    },
    /// There will be, once the cold tier took some blocks. It has been told.
    Wait,
    Failed(WriteFailure),
}

/// A segment on its way out.
pub(crate) struct Compaction {
    id: u32,
    items: std::vec::IntoIter<Item>,
    /// It tells of changes that no checkpoint has.
    has_news: bool,
}

/// Token bucket for background copying.
#[derive(Default)]
pub(crate) struct Budget {
    tokens: f64,
    at: Option<Instant>,
}

impl Budget {
    /// Whether a step may run: the bucket holds one second, and a step may overdraw it once.
    fn allows(&mut self, per_second: u64, now: Instant) -> bool {
        let passed = self.at.map_or(Duration::from_secs(1), |at| {
            now.saturating_duration_since(at)
        });
        self.at = Some(now);
        self.tokens =
            (self.tokens + passed.as_secs_f64() * per_second as f64).min(per_second as f64);
        self.tokens > 0.0
    }

    fn spend(&mut self, bytes: u64) {
        self.tokens -= bytes as f64;
    }
}

/// Makes room for a group: `live` bytes that stay and `bytes` of log, footers included. Evicts the coldest blocks but for `keep`, then compacts.
pub(crate) fn make_room(
    shared: &Shared,
    log: &mut Log,
    live: u64,
    bytes: u64,
    keep: &HashSet<Key>,
) -> Result<(), NoRoom> {
    let limit = shared.live_limit();
    let over = (shared.counters.live.get() + live).saturating_sub(limit);
    if over > 0 {
        // What cannot go is counted first: nothing is forgotten for a put that fails all the same.
        let kept: u64 = keep
            .iter()
            .filter_map(|key| shared.index.get(key))
            .filter(|entry| entry.pins == 0)
            .map(|entry| entry.footprint())
            .sum();
        let needed = (shared.fixed_bytes() + kept + live).saturating_sub(limit);
        if needed > 0 {
            return Err(NoRoom::Full { needed });
        }
        // A little more than needed, so that not every put has to look for the coldest.
        let wanted = over + limit / 32;
        match shared.demoter.get() {
            Some(demoter) => {
                expire(shared, log);
                let over = (shared.counters.live.get() + live).saturating_sub(limit);
                if over > 0 {
                    demoter.make_room(over + limit / 32, true);
                    return Err(NoRoom::Wait);
                }
            }
            None => {
                evict(shared, log, wanted, keep);
                let left = (shared.counters.live.get() + live).saturating_sub(limit);
                if left > 0 {
                    return Err(NoRoom::Full { needed: left });
                }
            }
        }
    }
    // Each at most once, so that it ends even where copying wins next to nothing.
    for _ in 0..=log.segments.len() {
        if shared.counters.used.get() + bytes <= shared.capacity()
            || !reclaim_one(shared, log, 1).map_err(NoRoom::Failed)?
        {
            break;
        }
    }
    Ok(())
}

/// Compacts the segment with the most garbage, whatever it costs. `false`: none has `percent`.
pub(crate) fn reclaim_one(
    shared: &Shared,
    log: &mut Log,
    percent: u64,
) -> Result<bool, WriteFailure> {
    if log.compaction.is_none() && !start(shared, log, percent)? {
        return Ok(false);
    }
    while log.compaction.is_some() {
        step(shared, log)?;
    }
    Ok(true)
}

/// A step of background compaction, if one is due and the budget allows it.
pub(crate) fn background(shared: &Shared, log: &mut Log) -> bool {
    #[expect(
        clippy::disallowed_methods,
        reason = "the I/O budget is in real time; it decides when, never what"
    )]
    let now = Instant::now();
    if !log
        .budget
        .allows(shared.config.compaction_bytes_per_second, now)
    {
        return false;
    }
    let least = u64::from(shared.config.compaction_garbage_percent);
    let result = match log.compaction {
        Some(_) => step(shared, log).map(|()| true),
        None => start(shared, log, least),
    };
    result.unwrap_or_else(|error| {
        tracing::warn!(
            ?error,
            "compaction stopped; it is tried again with the next write"
        );
        false
    })
}

/// Picks the sealed segment with the highest share of garbage, if it is at least `percent`.
fn start(shared: &Shared, log: &mut Log, percent: u64) -> Result<bool, WriteFailure> {
    let active = log.active.as_ref().map(|active| active.id);
    let victim = log
        .segments
        .iter()
        .filter(|(id, segment)| Some(**id) != active && segment.len > 0)
        .map(|(id, segment)| {
            (
                segment.len.saturating_sub(segment.live) * 1000 / segment.len,
                *id,
            )
        })
        .filter(|(permille, _)| *permille >= percent * 10)
        .max_by_key(|(permille, id)| (*permille, u32::MAX - id));
    let Some((_, id)) = victim else {
        return Ok(false);
    };
    let read = || {
        let file = shared.file(id)?;
        match segment::read_footer(&*file, id)? {
            Some(items) => Ok((items, true)),
            None => segment::scan(&file, id, 0).map(|(items, _)| (items, false)),
        }
    };
    let (mut items, complete) = read().map_err(WriteFailure::from_io)?;
    let has_news = !complete
        || items
            .iter()
            .any(|item| !item.kind.is_data() && item.seq > log.checkpoint_seq);
    if !complete {
        add_unlisted(shared, id, &mut items);
    }
    log.compaction = Some(Compaction {
        id,
        items: items.into_iter(),
        has_news,
    });
    Ok(true)
}

/// A scan ends at the first damaged record; what the index knows beyond it is not lost yet.
fn add_unlisted(shared: &Shared, id: u32, items: &mut Vec<Item>) {
    let listed: HashSet<u32> = items.iter().map(|item| item.offset).collect();
    let mut add = |kind, offset, payload_len, key: Vec<u8>| {
        if !listed.contains(&offset) {
            items.push(Item {
                kind,
                class: 0,
                payload_len,
                offset,
                expiry_ms: 0,
                seq: 0,
                key,
            });
        }
    };
    shared.index.for_each(|entry| {
        if let Some(at) = entry.position().filter(|at| at.segment == id)
            && let Some(cid) = shared.kinds.cid(&entry.key(), entry.codec)
        {
            add(Kind::Block, at.offset, entry.len(), cid.to_bytes());
        }
    });
    for (key, value) in shared
        .values
        .read()
        .iter()
        .filter(|(_, value)| value.at.segment == id)
    {
        let head = u32::try_from(HEADER + key.len()).unwrap_or(u32::MAX);
        add(
            Kind::Value,
            value.at.offset,
            value.len.saturating_sub(head),
            key.clone().into_bytes(),
        );
    }
}

/// A record to be copied, and what points to it.
enum Copied {
    Block(Key),
    Value(String),
}

/// Copies some live records; at the end of the segment removes it.
fn step(shared: &Shared, log: &mut Log) -> Result<(), WriteFailure> {
    let Some(mut compaction) = log.compaction.take() else {
        return Ok(());
    };
    let rest = compaction.items.clone();
    let result = copy_some(shared, log, &mut compaction);
    match result {
        Ok(true) => finish(shared, log, &compaction),
        Ok(false) => {
            log.compaction = Some(compaction);
            Ok(())
        }
        Err(error) => {
            compaction.items = rest;
            log.compaction = Some(compaction);
            Err(error)
        }
    }
}

/// `true`: nothing is left to copy.
fn copy_some(
    shared: &Shared,
    log: &mut Log,
    compaction: &mut Compaction,
) -> Result<bool, WriteFailure> {
    let (mut drafts, mut whats, mut bytes) = (Vec::new(), Vec::new(), 0);
    let now = shared.vfs.now_ms();
    let mut done = true;
    for item in compaction.items.by_ref() {
        let Some(what) = live(shared, log, compaction.id, &item, now) else {
            compaction.has_news |= outlived(shared, log, &item);
            continue;
        };
        let from = Position {
            segment: compaction.id,
            offset: item.offset,
        };
        let raw = match shared.read(from, item.record_len() as u64) {
            Ok(raw) => raw,
            // The file was cut since: nothing of the record is left to check.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Bytes::new(),
            Err(error) => return Err(WriteFailure::from_io(error)),
        };
        log.budget.spend(raw.len() as u64);
        let Some(record) = Record::parse(&raw) else {
            // Copying would give damaged bytes a fresh checksum.
            damaged(shared, log, &what);
            compaction.has_news |= outlived(shared, log, &item);
            continue;
        };
        bytes += raw.len();
        let payload = raw.slice(raw.len() - record.payload.len()..);
        let mut draft = Draft::new(record.header.kind, record.key.to_vec(), payload);
        draft.class = record.header.class;
        draft.expiry_ms = record.header.expiry_ms;
        drafts.push(draft);
        whats.push(what);
        if bytes
            >= STEP_BYTES.min(usize::try_from(log.room_in_segment(shared)).unwrap_or(usize::MAX))
        {
            done = false;
            break;
        }
    }
    if drafts.is_empty() {
        return Ok(done);
    }
    let places = log.append(shared, &drafts)?;
    log.sync(shared)?;
    for ((what, place), draft) in whats.into_iter().zip(places).zip(&drafts) {
        let len = draft.footprint();
        match what {
            Copied::Block(key) => {
                shared.index.update(&key, |entry| entry.move_on_disk(place));
            }
            Copied::Value(key) => {
                if let Some(value) = shared.values.write().get_mut(&key) {
                    value.at = place;
                }
            }
        }
        shared.release_record(log, compaction.id, len);
        shared.retain_record(log, place.segment, len);
    }
    Ok(done)
}

/// Whether a record is the last word since the checkpoint on something that is not here any more. Without it an older record of the
/// same key would count again, if the log still has one: a value of before, or a block with more time to live than it was given last.
/// A block that was to stay may come back, as evictions are not logged.
fn outlived(shared: &Shared, log: &Log, item: &Item) -> bool {
    if item.seq <= log.checkpoint_seq {
        return false;
    }
    match item.kind {
        Kind::Block if item.expiry_ms != 0 && log.has_shadows => {
            cid::Cid::try_from(item.key.as_slice()).is_ok_and(|cid| {
                let key = shared.kinds.find(&cid);
                key.is_none_or(|key| shared.index.get(&key).is_none())
            })
        }
        Kind::Value => {
            std::str::from_utf8(&item.key).is_ok_and(|key| !shared.values.read().contains_key(key))
        }
        _ => false,
    }
}

/// What points to a record, if something still does. Forgets it if its time is over.
fn live(shared: &Shared, log: &mut Log, segment: u32, item: &Item, now: u64) -> Option<Copied> {
    let at = Position {
        segment,
        offset: item.offset,
    };
    match item.kind {
        Kind::Block => {
            let key = shared
                .kinds
                .find(&cid::Cid::try_from(item.key.as_slice()).ok()?)?;
            let entry = shared.index.get(&key)?;
            if entry.position() != Some(at) {
                return None;
            }
            if entry.is_expired(now) {
                shared.counters.expirations.add(1);
                shared.forget(log, &key);
                return None;
            }
            Some(Copied::Block(key))
        }
        Kind::Value => {
            let key = String::from_utf8(item.key.clone()).ok()?;
            let value: Value = *shared.values.read().get(&key)?;
            if value.at != at {
                return None;
            }
            if value.is_expired(now) {
                shared.counters.expirations.add(1);
                forget_value(shared, log, &key);
                return None;
            }
            Some(Copied::Value(key))
        }
        _ => None,
    }
}

fn damaged(shared: &Shared, log: &mut Log, what: &Copied) {
    shared.counters.corruptions.add(1);
    match what {
        Copied::Block(key) => {
            let entry = shared.index.update(key, |entry| entry.set_damaged());
            // A pinned one stays known, so that it is missed.
            if entry.is_some_and(|entry| entry.pins == 0) {
                log.has_shadows = true;
                shared.forget(log, key);
            }
        }
        Copied::Value(key) => forget_value(shared, log, key),
    }
}

pub(crate) fn forget_value(shared: &Shared, log: &mut Log, key: &str) {
    let old = shared.values.write().remove(key);
    if let Some(old) = old {
        shared.release_record(log, old.at.segment, old.footprint(key));
        shared.counters.value_bytes.sub(old.footprint(key));
    }
}

fn finish(shared: &Shared, log: &mut Log, compaction: &Compaction) -> Result<(), WriteFailure> {
    // What replaced records of this segment may have been written without a sync.
    log.sync(shared)?;
    if compaction.has_news {
        // Its pins, deletions and the like are in the checkpoint afterwards, and nowhere else.
        checkpoint::write(shared, log)?;
    }
    let path = shared.dir.join(segment::file_name(compaction.id));
    shared.vfs.remove(&path).map_err(WriteFailure::from_io)?;
    shared.drop_file(compaction.id);
    if let Some(segment) = log.segments.remove(&compaction.id) {
        shared.counters.segments.sub(1);
        shared.counters.used.sub(segment.len);
        shared.counters.live.sub(segment.live);
    }
    shared.counters.compactions.add(1);
    shared
        .vfs
        .sync_dir(&shared.dir)
        .map_err(WriteFailure::from_io)
}

/// Forgets everything whose time is over. Returns how many.
pub(crate) fn expire(shared: &Shared, log: &mut Log) -> u64 {
    let now = shared.vfs.now_ms();
    let mut over = Vec::new();
    shared.index.for_each(|entry| {
        if entry.is_expired(now) {
            over.push(entry.key());
        }
    });
    for key in &over {
        shared.forget(log, key);
    }
    let values: Vec<String> = {
        let values = shared.values.read();
        values
            .iter()
            .filter(|(_, value)| value.is_expired(now))
            .map(|(key, _)| key.clone())
            .collect()
    };
    for key in &values {
        forget_value(shared, log, key);
    }
    let count = (over.len() + values.len()) as u64;
    shared.counters.expirations.add(count);
    count
}

/// Forgets what is over, then the coldest unpinned blocks, until `bytes` of records are free or nothing is left to forget.
/// Nothing is written: what comes back after a crash before its segment is compacted is an unpinned block like before, unless it was
/// deleted or given a time to live since.
pub(crate) fn evict(shared: &Shared, log: &mut Log, bytes: u64, keep: &HashSet<Key>) {
    let before = shared.counters.live.get();
    expire(shared, log);
    let freed = before.saturating_sub(shared.counters.live.get());
    let Some(needed) = bytes.checked_sub(freed).filter(|needed| *needed > 0) else {
        return;
    };
    log.has_shadows = true;
    for entry in victims::coldest(shared, needed, keep) {
        shared.counters.evictions.add(1);
        shared.forget(log, &entry.key());
    }
}
