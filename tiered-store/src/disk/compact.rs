//! Room: forgetting what is over or cold, and copying what is needed out of segments that are mostly garbage.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use hashbrown::HashSet;
use web_time::Instant;

use super::{
    checkpoint,
    index::Entry,
    lane::Lane,
    log::{Draft, Log, Position},
    record::{HEADER, Kind, Record},
    segment::{self, Item, Items, SEGMENT_HEADER},
    victims,
};
use crate::{
    error::WriteFailure,
    key::Key,
    state::{Shared, Value},
};

/// While a quarter of the capacity is free, only segments are compacted that are garbage by this much, in percent: the others may yet
/// become more so, and until room is needed copying wins nothing.
const AT_EASE_PERCENT: u64 = 90;

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
    items: Items,
    /// Of the next item to be looked at.
    position: usize,
    /// The highest seq of what it says beside data: that has to be in two checkpoints before it goes. 0 for none.
    news: u64,
    /// What the index has of it was compared with its list.
    is_complete: bool,
    /// The device did not give a live record: the segment stays.
    is_unreadable: bool,
}

/// What the job does when it has nothing to write.
pub(crate) enum Idle {
    /// There is more to do at once.
    Busy,
    /// There will be after this time.
    In(Duration),
    /// There is nothing.
    Done,
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

    /// When a step may run again.
    fn wait(&self, per_second: u64) -> Duration {
        let seconds = (1.0 - self.tokens) / per_second.max(1) as f64;
        Duration::from_secs_f64(seconds.clamp(0.001, 1.0))
    }
}

/// Makes room for a group: `live` bytes that stay and `bytes` of log, footers included. Evicts the coldest blocks but for [`Log::keep`], then
/// compacts.
pub(crate) fn make_room(
    shared: &Shared,
    log: &mut Log,
    live: u64,
    bytes: u64,
) -> Result<(), NoRoom> {
    let limit = shared.live_limit();
    let over = (shared.counters.live.get() + live).saturating_sub(limit);
    if over > 0 {
        // What cannot go is counted first: nothing is forgotten for a put that fails all the same.
        let kept: u64 = log
            .keep
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
                evict(shared, log, wanted);
                let left = (shared.counters.live.get() + live).saturating_sub(limit);
                if left > 0 {
                    return Err(NoRoom::Full { needed: left });
                }
            }
        }
    }
    // Each at most once, so that it ends even where copying wins next to nothing.
    for _ in 0..=log.segments.len() {
        if shared.used() + bytes <= shared.capacity() {
            break;
        }
        let won = reclaim_one(shared, log, 1).and_then(|won| Ok(won || seal_one(shared, log)?));
        if !won.map_err(NoRoom::Failed)? {
            break;
        }
    }
    Ok(())
}

/// Seals open segments that hold nothing but garbage, so that they can be removed.
pub(crate) fn seal_dead(shared: &Shared, log: &mut Log) -> Result<(), WriteFailure> {
    let is_dead = |id: u32| {
        let segment = log.segments.get(&id).copied().unwrap_or_default();
        segment.live == 0 && segment.len > SEGMENT_HEADER
    };
    let dead: Vec<Lane> = log
        .active
        .iter()
        .filter(|(lane, active)| **lane != Lane::Main && is_dead(active.id()))
        .map(|(lane, _)| *lane)
        .collect();
    for lane in dead {
        log.seal(shared, lane)?;
    }
    Ok(())
}

/// Seals the open segment with the most garbage, so that it can be compacted: in a small store they are a good part of everything.
fn seal_one(shared: &Shared, log: &mut Log) -> Result<bool, WriteFailure> {
    let garbage = |id: u32| {
        let segment = log.segments.get(&id).copied().unwrap_or_default();
        segment.len.saturating_sub(segment.live + SEGMENT_HEADER)
    };
    let wasteful = log
        .active
        .iter()
        .map(|(lane, active)| (garbage(active.id()), *lane))
        .max();
    // Less is not worth a file.
    match wasteful.filter(|(garbage, _)| *garbage > shared.segment_bytes() / 8) {
        Some((_, lane)) => log.seal(shared, lane).map(|()| true),
        None => Ok(false),
    }
}

/// Appends; if the device is full, removes segments that nothing is needed of and tries again.
pub(crate) fn append(
    shared: &Shared,
    log: &mut Log,
    drafts: &[Draft],
) -> Result<Vec<Position>, WriteFailure> {
    match log.append(shared, drafts) {
        Err(WriteFailure::DiskFull(error)) => {
            if remove_dead(shared, log) == 0 {
                return Err(WriteFailure::DiskFull(error));
            }
            log.append(shared, drafts)
        }
        result => result,
    }
}

/// Removes segments whose records are all garbage and say nothing new. It writes nothing, as there may be no room to.
fn remove_dead(shared: &Shared, log: &mut Log) -> usize {
    let is_open = |id: &u32| log.active.values().any(|active| active.id() == *id);
    let compacted = log.compaction.as_ref().map(|compaction| compaction.id);
    let dead: Vec<u32> = log
        .segments
        .iter()
        .filter(|(id, segment)| segment.live == 0 && !is_open(id) && Some(**id) != compacted)
        .map(|(id, _)| *id)
        .collect();
    // What was forgotten in them has to be in the log before them, and what replaced them durable.
    if dead.is_empty() || log.settle(shared).is_err() {
        return 0;
    }
    let mut removed = 0;
    for id in dead {
        let is_safe = items_of(shared, id).is_ok_and(|(items, is_whole)| {
            is_whole && news_of(&items) <= log.checkpoints.safe_seq()
        });
        let path = shared.dir.join(segment::file_name(id));
        if is_safe && shared.vfs.remove(&path).is_ok() {
            log.remove_segment(shared, id);
            removed += 1;
        }
    }
    if removed > 0 {
        let _ = shared.vfs.sync_dir(&shared.dir);
    }
    removed
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
    while let Some(compaction) = &log.compaction {
        let news = compaction.news;
        if !step(shared, log)? {
            checkpoint::make_safe(shared, log, news)?;
        }
    }
    Ok(true)
}

/// A step of background compaction, if one is due and the budget allows it.
pub(crate) fn background(shared: &Arc<Shared>, log: &mut Log) -> Idle {
    let per_second = shared.config.compaction_bytes_per_second;
    let mut percent = u64::from(shared.config.compaction_garbage_percent);
    if shared.used() < shared.capacity() / 4 * 3 {
        percent = percent.max(AT_EASE_PERCENT);
    }
    let is_under_way = log.compaction.is_some();
    if !is_under_way && victim(log, percent).is_none() {
        return Idle::Done;
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "the I/O budget is in real time; it decides when, never what"
    )]
    let now = Instant::now();
    if !log.budget.allows(per_second, now) {
        return Idle::In(log.budget.wait(per_second));
    }
    let result = if is_under_way {
        step(shared, log).and_then(|went_on| {
            if went_on {
                return Ok(Idle::Busy);
            }
            // The job is woken when it is written.
            checkpoint::start(shared, log)?;
            Ok(Idle::Done)
        })
    } else {
        start(shared, log, percent).map(|_| Idle::Busy)
    };
    result.unwrap_or_else(|error| {
        tracing::warn!(
            ?error,
            "compaction stopped; it is tried again with the next write"
        );
        Idle::Done
    })
}

/// The sealed segment with the highest share of garbage, if it is at least `percent`.
fn victim(log: &Log, percent: u64) -> Option<u32> {
    let is_open = |id: &u32| log.active.values().any(|active| active.id() == *id);
    let is_worth_a_try = |id: &u32, live: u64| {
        let before = log.unreadable.get(id);
        before.is_none_or(|before| live < *before)
    };
    log.segments
        .iter()
        .filter(|(id, segment)| !is_open(id) && segment.len > 0 && is_worth_a_try(id, segment.live))
        .map(|(id, segment)| {
            let garbage = segment.len.saturating_sub(segment.live);
            (garbage * 1000 / segment.len, *id)
        })
        .filter(|(permille, _)| *permille >= percent * 10)
        .max_by_key(|(permille, id)| (*permille, u32::MAX - id))
        .map(|(_, id)| id)
}

/// What a segment says, and whether that is all.
fn items_of(shared: &Shared, id: u32) -> io::Result<(Items, bool)> {
    let file = shared.file(id)?;
    let header = segment::read_header(&*file, id)?;
    if let Some(header) = &header
        && let Some(items) = segment::read_footer(&*file, header)?
    {
        return Ok((items, true));
    }
    let scan = segment::scan(&file, header, 0)?;
    // Opening leaves segments without a footer that the checkpoint knows.
    let is_whole = header.is_some() && scan.damaged.is_empty() && scan.end == file.len()?;
    Ok((scan.items, is_whole))
}

fn news_of(items: &Items) -> u64 {
    let news = items.iter().filter(|item| !item.kind.is_data());
    news.map(|item| item.seq).max().unwrap_or(0)
}

fn start(shared: &Shared, log: &mut Log, percent: u64) -> Result<bool, WriteFailure> {
    let Some(id) = victim(log, percent) else {
        return Ok(false);
    };
    let (mut items, is_whole) = items_of(shared, id).unwrap_or_else(|error| {
        // The index knows what is needed of it.
        tracing::error!(segment = id, %error, "the list of a segment cannot be read");
        (Items::default(), false)
    });
    let news = if is_whole {
        news_of(&items)
    } else {
        add_unlisted(shared, id, &mut items);
        log.next_seq.saturating_sub(1)
    };
    log.compaction = Some(Compaction {
        id,
        items,
        position: 0,
        news,
        is_complete: !is_whole,
        is_unreadable: false,
    });
    Ok(true)
}

/// A scan passes over what is damaged, where the index may know more: it is not lost yet.
fn add_unlisted(shared: &Shared, id: u32, items: &mut Items) {
    let listed: HashSet<u32> = items.iter().map(|item| item.offset).collect();
    let mut add = |kind, offset, payload_len, key: &[u8]| {
        if !listed.contains(&offset) {
            items.push(&Item {
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
            add(Kind::Block, at.offset, entry.len(), &cid.to_bytes());
        }
    });
    for (key, value) in shared
        .values
        .read()
        .iter()
        .filter(|(_, value)| value.at.segment == id)
    {
        let head = u32::try_from(HEADER + key.len()).unwrap_or(u32::MAX);
        let payload_len = value.len.saturating_sub(head);
        add(Kind::Value, value.at.offset, payload_len, key.as_bytes());
    }
}

/// A record to be copied, and what points to it.
enum Copied {
    Block(Key),
    Value(String),
}

/// Copies some live records; at the end of the segment removes it. `false`: it is only kept for what no two checkpoints have.
fn step(shared: &Shared, log: &mut Log) -> Result<bool, WriteFailure> {
    let Some(mut compaction) = log.compaction.take() else {
        return Ok(true);
    };
    let before = compaction.position;
    let result = copy_some(shared, log, &mut compaction).and_then(|is_copied| {
        if is_copied {
            finish(shared, log, &mut compaction)
        } else {
            Ok(Finish::NotYet)
        }
    });
    match result {
        Ok(Finish::Removed | Finish::GivenUp) => Ok(true),
        Ok(Finish::NotYet) => {
            log.compaction = Some(compaction);
            Ok(true)
        }
        Ok(Finish::Waits) => {
            log.compaction = Some(compaction);
            Ok(false)
        }
        Err(error) => {
            compaction.position = before;
            log.compaction = Some(compaction);
            Err(error)
        }
    }
}

enum Finish {
    Removed,
    /// It stays, as some of it cannot be read now.
    GivenUp,
    NotYet,
    Waits,
}

/// `true`: nothing is left to copy.
fn copy_some(
    shared: &Shared,
    log: &mut Log,
    compaction: &mut Compaction,
) -> Result<bool, WriteFailure> {
    let (mut drafts, mut whats, mut bytes) = (Vec::new(), Vec::new(), 0);
    let now = shared.vfs.now_ms();
    let room = usize::try_from(shared.segment_bytes()).unwrap_or(usize::MAX);
    let mut is_done = true;
    while let Some((item, next)) = compaction.items.at(compaction.position) {
        let from = Position {
            segment: compaction.id,
            offset: item.offset,
        };
        let Some(what) = live(shared, log, from, &item, now) else {
            compaction.position = next;
            continue;
        };
        let raw = match shared.read(from, item.record_len()) {
            Ok(raw) => raw,
            // The file was cut since: nothing of the record is left to check.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Bytes::new(),
            Err(error) => {
                // It may be there again tomorrow. The rest of the segment is brought to safety.
                tracing::error!(segment = from.segment, offset = from.offset, %error, "a record cannot be read");
                compaction.is_unreadable = true;
                compaction.position = next;
                continue;
            }
        };
        compaction.position = next;
        log.budget.spend(raw.len() as u64);
        let Some(record) = Record::parse(&raw) else {
            // Copying would give damaged bytes a fresh checksum.
            damaged(shared, log, &what);
            continue;
        };
        bytes += raw.len();
        let payload = raw.slice(raw.len() - record.payload.len()..);
        let expiry_ms = record.header.expiry_ms;
        let mut draft = Draft::new(record.header.kind, record.key.to_vec(), payload);
        let is_held = match &what {
            Copied::Block(key) => shared.index.get(key).is_some_and(|entry| entry.pins > 0),
            Copied::Value(_) => false,
        };
        draft.lane = if expiry_ms != 0 && !is_held {
            Lane::until(expiry_ms, now)
        } else {
            Lane::for_copy(draft.payload.len())
        };
        draft.class = record.header.class;
        draft.expiry_ms = expiry_ms;
        drafts.push(draft);
        whats.push(what);
        if bytes >= STEP_BYTES.min(room) {
            is_done = false;
            break;
        }
    }
    if drafts.is_empty() {
        return Ok(is_done);
    }
    let positions = append(shared, log, &drafts)?;
    log.sync(shared)?;
    for ((what, place), draft) in whats.into_iter().zip(positions).zip(&drafts) {
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
    Ok(is_done)
}

/// What points to a record, if something still does. Forgets it if its time is over.
fn live(shared: &Shared, log: &mut Log, at: Position, item: &Item<'_>, now: u64) -> Option<Copied> {
    match item.kind {
        Kind::Block => {
            let cid = cid::Cid::try_from(item.key).ok()?;
            let key = shared.kinds.find(&cid)?;
            let entry = shared.index.get(&key)?;
            if entry.position() != Some(at) {
                return None;
            }
            if entry.is_expired(now) && !log.keep.contains(&key) {
                shared.counters.expirations.add(1);
                shared.forget_and_tell(log, &key);
                return None;
            }
            Some(Copied::Block(key))
        }
        Kind::Value => {
            let key = std::str::from_utf8(item.key).ok()?;
            let value: Value = *shared.values.read().get(key)?;
            if value.at != at {
                return None;
            }
            if value.is_expired(now) {
                shared.counters.expirations.add(1);
                log.note_gone_value(key.to_owned());
                forget_value(shared, log, key);
                return None;
            }
            Some(Copied::Value(key.to_owned()))
        }
        _ => None,
    }
}

fn damaged(shared: &Shared, log: &mut Log, what: &Copied) {
    shared.counters.corruptions.add(1);
    match what {
        Copied::Block(key) => match shared.index.get(key) {
            // A pinned one stays known, so that it is missed, and so does one that the group under way pins or writes.
            Some(entry) if entry.pins > 0 || log.keep.contains(key) => {
                shared.memory.remove(key);
                shared.index.insert(Entry::lost(*key, entry.codec));
                shared.release(log, &entry);
                if entry.pins > 0 {
                    shared.counters.pinned.sub(entry.footprint());
                }
            }
            _ => shared.forget_and_tell(log, key),
        },
        Copied::Value(key) => {
            log.note_gone_value(key.clone());
            forget_value(shared, log, key);
        }
    }
}

pub(crate) fn forget_value(shared: &Shared, log: &mut Log, key: &str) {
    let old = shared.values.write().remove(key);
    if let Some(old) = old {
        shared.release_record(log, old.at.segment, old.footprint(key));
        shared.counters.value_bytes.sub(old.footprint(key));
    }
}

fn finish(
    shared: &Shared,
    log: &mut Log,
    compaction: &mut Compaction,
) -> Result<Finish, WriteFailure> {
    let live = |log: &Log| {
        let segment = log.segments.get(&compaction.id);
        segment.map_or(0, |segment| segment.live)
    };
    if compaction.is_unreadable {
        // Puts go on without its room.
        log.unreadable.insert(compaction.id, live(log));
        return Ok(Finish::GivenUp);
    }
    if live(log) > 0 && !compaction.is_complete {
        // Its list does not name something that the index has here: nothing is removed that is needed.
        tracing::error!(
            segment = compaction.id,
            "the list of a segment is not complete"
        );
        shared.counters.corruptions.add(1);
        add_unlisted(shared, compaction.id, &mut compaction.items);
        compaction.is_complete = true;
        compaction.news = log.next_seq.saturating_sub(1);
        return Ok(Finish::NotYet);
    }
    if live(log) > 0 {
        tracing::error!(
            segment = compaction.id,
            "a segment that something is needed of stays"
        );
        log.unreadable.insert(compaction.id, live(log));
        return Ok(Finish::GivenUp);
    }
    // What replaced records of this segment may have been written without a sync, and what was forgotten in it must not come back.
    log.settle(shared)?;
    if compaction.news > log.checkpoints.safe_seq() {
        return Ok(Finish::Waits);
    }
    let path = shared.dir.join(segment::file_name(compaction.id));
    shared.vfs.remove(&path).map_err(WriteFailure::from_io)?;
    log.remove_segment(shared, compaction.id);
    shared.counters.compactions.add(1);
    // Not yet durable, it may come back after a power cut, as garbage: it is not worth an error.
    if let Err(error) = shared.vfs.sync_dir(&shared.dir) {
        tracing::warn!(%error, "the removal of a segment was not confirmed");
    }
    Ok(Finish::Removed)
}

/// Forgets everything whose time is over, but for [`Log::keep`]. Returns how many.
pub(crate) fn expire(shared: &Shared, log: &mut Log) -> u64 {
    let now = shared.vfs.now_ms();
    let mut over = Vec::new();
    shared.index.for_each(|entry| {
        if entry.is_expired(now) && !log.keep.contains(&entry.key()) {
            over.push(entry.key());
        }
    });
    for key in &over {
        shared.forget_and_tell(log, key);
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
        log.note_gone_value(key.clone());
        forget_value(shared, log, key);
    }
    let count = (over.len() + values.len()) as u64;
    shared.counters.expirations.add(count);
    count
}

/// Forgets what is over, then the coldest unpinned blocks, until `bytes` of records are free or nothing is left to forget. The log is told
/// with the next append.
pub(crate) fn evict(shared: &Shared, log: &mut Log, bytes: u64) {
    let before = shared.counters.live.get();
    expire(shared, log);
    let freed = before.saturating_sub(shared.counters.live.get());
    let Some(needed) = bytes.checked_sub(freed).filter(|needed| *needed > 0) else {
        return;
    };
    for entry in victims::coldest(shared, needed, &log.keep) {
        shared.counters.evictions.add(1);
        shared.forget_and_tell(log, &entry.key());
    }
}

#[cfg(test)]
mod tests;
