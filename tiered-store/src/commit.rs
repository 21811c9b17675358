//! Writes on their way to the disk: a bounded queue, and one job at a time that takes them in groups, one fdatasync for each group.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use cid::Cid;
use futures::channel::oneshot;
use hashbrown::{HashMap, HashSet};
use parking_lot::{Condvar, Mutex};
use web_time::Instant;

use crate::{
    DeleteError, Durability, PutError, PutOptions,
    disk::{
        checkpoint,
        compact::{self, NoRoom},
        index::Entry,
        log::{Draft, Log, Position},
        record::{HEADER, Kind, MORE, put_cid},
        segment,
    },
    error::WriteFailure,
    key::Key,
    placement::{self, Placement},
    state::Shared,
};

/// A group is closed at this many bytes: one 8 MiB write takes the device about as long as a sync.
const GROUP_BYTES: u64 = 8 * 1024 * 1024;

/// Writers that were answered together usually come back together. The job waits this long for as many as in the last group; an
/// fdatasync takes as long even on the fastest devices.
const LINGER: Duration = Duration::from_micros(150);

/// What deletions, tasks and moves may hold beyond the limit, in bytes: they are what a full queue of puts waits for.
const SMALL_RESERVE: usize = 1024 * 1024;

/// How often a job whose puts wait for room looks whether anybody still has the store.
const LOOK: Duration = Duration::from_millis(500);

/// Something for the job to do.
pub(crate) enum Op {
    Put(Put),
    Delete(Delete),
    /// Everything rare, alone.
    Task(Task),
}

/// Work that has the log for itself, and answers its caller itself.
pub(crate) type Task = Box<dyn FnOnce(&Shared, &mut Log) + Send>;

pub(crate) struct Put {
    pub(crate) cid: Cid,
    pub(crate) data: Bytes,
    pub(crate) crc: u32,
    pub(crate) options: Arc<PutOptions>,
    pub(crate) origin: Origin,
    pub(crate) reply: oneshot::Sender<Result<bool, PutError>>,
}

/// Where the bytes of a put come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    User,
    /// The cold tier, where the block still is: what it is, as in its record before (class and importance), and whether the disk should
    /// make room for it.
    Cold {
        class: u8,
        urgent: bool,
    },
}

pub(crate) struct Delete {
    pub(crate) cid: Cid,
    pub(crate) reply: oneshot::Sender<Result<bool, DeleteError>>,
}

impl Op {
    /// Bytes that it holds while it waits.
    fn weight(&self) -> usize {
        match self {
            Op::Put(put) => put.data.len() + 256,
            Op::Delete(_) | Op::Task(_) => 256,
        }
    }

    fn is_put(&self) -> bool {
        matches!(self, Op::Put(_))
    }
}

/// The bounded queue.
pub(crate) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    ops: VecDeque<Op>,
    /// Weight of the ops that wait or are being written.
    bytes: usize,
    /// Callers that wait for room, first come first served. Bounded by the callers themselves: each waits.
    waiting: VecDeque<oneshot::Sender<()>>,
    running: bool,
    /// The job waits at the condition variable.
    lingering: bool,
    /// Why blocks could not leave for the cold tier, as of the last attempt.
    demotion_failure: Option<Cause>,
}

type Cause = Arc<dyn std::error::Error + Send + Sync>;

impl Queue {
    pub(crate) fn new(limit: usize) -> Queue {
        Queue {
            state: Mutex::default(),
            arrived: Condvar::new(),
            limit,
        }
    }

    fn release(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.bytes -= bytes;
        // One at a time would leave the disk idle; each that is woken checks again. A caller may be dropped after it was woken, so the
        // last release wakes all: no other would come for those who still wait.
        let all = state.bytes == 0;
        let mut room = self.limit.saturating_sub(state.bytes);
        while all || room > 0 {
            let Some(next) = state.waiting.pop_front() else {
                break;
            };
            if next.send(()).is_ok() {
                room = room.saturating_sub(self.limit / 64);
            }
        }
    }
}

/// Queues an op, waiting for room. Dropping the future before the op is queued undoes nothing, afterwards it is carried out all the same.
pub(crate) async fn submit(shared: &Arc<Shared>, op: Op) -> Result<(), WriteFailure> {
    let weight = op.weight();
    loop {
        let wait = {
            let mut state = shared.queue.state.lock();
            if shared.is_closed() {
                return Err(WriteFailure::Closed);
            }
            let limit = if op.is_put() {
                shared.queue.limit
            } else {
                shared.queue.limit + SMALL_RESERVE
            };
            if state.bytes == 0 || state.bytes + weight <= limit {
                state.bytes += weight;
                state.ops.push_back(op);
                if state.lingering {
                    shared.queue.arrived.notify_one();
                }
                if !state.running {
                    state.running = true;
                    let shared = shared.clone();
                    blocking::unblock(move || run(&shared)).detach();
                }
                return Ok(());
            }
            let (send, wait) = oneshot::channel();
            state.waiting.push_back(send);
            wait
        };
        // A dropped sender means the same as a message: look again.
        let _ = wait.await;
    }
}

/// Queues work that has the log for itself and waits for its answer.
pub(crate) async fn task<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared, &mut Log) -> T + Send + 'static,
) -> Result<T, WriteFailure> {
    let (reply, answer) = oneshot::channel();
    let task: Task = Box::new(move |shared, log| {
        let _ = reply.send(work(shared, log));
    });
    submit(shared, Op::Task(task)).await?;
    answer.await.map_err(|_| WriteFailure::Closed)
}

/// Writes a block that is in the cold tier to disk again; its heat and time to live stay. Waits for room if `urgent`. `false`: it was not
/// done, as the block is not in the cold tier any more, or as there was no room.
pub(crate) async fn promote(
    shared: &Arc<Shared>,
    cid: Cid,
    data: Bytes,
    class: u8,
    urgent: bool,
) -> Result<bool, PutError> {
    let (reply, answer) = oneshot::channel();
    let put = Put {
        cid,
        crc: crc32c::crc32c(&data),
        data,
        options: Arc::default(),
        origin: Origin::Cold { class, urgent },
        reply,
    };
    submit(shared, Op::Put(put)).await?;
    answer.await.unwrap_or(Err(PutError::Closed))
}

/// Tells puts that wait for room why the cold tier does not take blocks. `None`: it does again.
pub(crate) fn demotion_failed(shared: &Shared, cause: Option<Cause>) {
    let mut state = shared.queue.state.lock();
    state.demotion_failure = cause;
    shared.queue.arrived.notify_one();
}

/// Puts at the front of the queue that wait for the cold tier to take blocks.
struct Stall {
    /// What the store held; with a change they are tried again.
    seen: [u64; 4],
    again_at: Instant,
}

fn occupancy(shared: &Shared) -> [u64; 4] {
    let counters = &shared.counters;
    [
        counters.live.get(),
        counters.pinned.get(),
        counters.value_bytes.get(),
        shared.capacity(),
    ]
}

fn now() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "the patience with an unreachable cold tier is in real time"
    )]
    Instant::now()
}

/// Puts the group back to the front. They wait until something leaves the disk.
fn stall(shared: &Shared, log: &mut Log, puts: Vec<Put>) -> Stall {
    let now = now();
    log.lacking_since.get_or_insert(now);
    let mut state = shared.queue.state.lock();
    for put in puts.into_iter().rev() {
        state.ops.push_front(Op::Put(put));
    }
    Stall {
        seen: occupancy(shared),
        again_at: now + LOOK,
    }
}

/// Waits for something to do while puts wait for room. `false`: the puts should be tried again.
fn is_stalled(shared: &Arc<Shared>, log: &Log, stall: &Stall) -> bool {
    if shared.is_closed() || occupancy(shared) != stall.seen {
        return false;
    }
    let patience = shared
        .demoter
        .get()
        .map_or(Duration::ZERO, |demoter| demoter.patience());
    let mut state = shared.queue.state.lock();
    if state.ops.iter().any(|op| !op.is_put()) {
        return true;
    }
    if Arc::strong_count(shared) == 1 {
        // Nobody waits for an answer any more.
        let bytes = state.ops.iter().map(Op::weight).sum();
        state.ops.clear();
        drop(state);
        shared.queue.release(bytes);
        return false;
    }
    let now = now();
    if let Some(cause) = state.demotion_failure.clone()
        && log
            .lacking_since
            .is_none_or(|since| now.saturating_duration_since(since) >= patience)
    {
        let failed: Vec<Op> = state.ops.drain(..).collect();
        drop(state);
        shared.queue.release(failed.iter().map(Op::weight).sum());
        for op in failed {
            if let Op::Put(put) = op {
                let _ = put.reply.send(Err(PutError::ColdTier {
                    source: cause.clone(),
                }));
            }
        }
        return false;
    }
    let until = stall.again_at.min(
        log.lacking_since
            .map_or(stall.again_at, |since| (since + patience).max(now)),
    );
    state.lingering = true;
    let timed_out = shared
        .queue
        .arrived
        .wait_until(&mut state, until)
        .timed_out();
    state.lingering = false;
    !timed_out || now < stall.again_at
}

/// Closes the store if the job panics (it should not; a [`Vfs`](crate::vfs::Vfs) may): nobody else would answer those who wait.
struct CloseOnPanic<'a>(&'a Shared);

impl Drop for CloseOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the writing job panicked; the store is closed");
            self.0.closed.store(true, Relaxed);
            let mut state = self.0.queue.state.lock();
            state.ops.clear();
            state.waiting.clear();
            state.bytes = 0;
            state.running = false;
        }
    }
}

/// The job: runs while there is something to do.
fn run(shared: &Arc<Shared>) {
    let mut log = shared.log.lock();
    let _close_on_panic = CloseOnPanic(shared);
    let mut last = 0;
    let mut stalled: Option<Stall> = None;
    loop {
        if stalled
            .as_ref()
            .is_some_and(|stall| !is_stalled(shared, &log, stall))
        {
            stalled = None;
        }
        let (group, bytes) = take(shared, &log, last, stalled.is_some());
        last = group.len();
        if group.is_empty() {
            if stalled.is_some() {
                continue;
            }
            // Nobody but this job has the store any more: go at once, so that it can be opened again.
            if Arc::strong_count(shared) > 1
                && !shared.is_closed()
                && compact::background(shared, &mut log)
            {
                continue;
            }
            let mut state = shared.queue.state.lock();
            if state.ops.is_empty() {
                state.running = false;
                return;
            }
            continue;
        }
        match commit(shared, &mut log, group) {
            Some(puts) => stalled = Some(stall(shared, &mut log, puts)),
            None => shared.queue.release(bytes),
        }
        // A closed store's directory may be somebody else's by now.
        if !shared.is_closed()
            && checkpoint::is_due(&log)
            && let Err(error) = checkpoint::write(shared, &mut log)
        {
            tracing::warn!(
                ?error,
                "no checkpoint; the next opening reads more of the log"
            );
            log.since_checkpoint /= 2;
        }
    }
}

/// Takes ops of one kind that fit into the active segment together; while puts wait for room, one of the others.
fn take(shared: &Shared, log: &Log, last: usize, stalled: bool) -> (Vec<Op>, usize) {
    let mut state = shared.queue.state.lock();
    if stalled {
        let other = state.ops.iter().position(|op| !op.is_put());
        let op = other.and_then(|at| state.ops.remove(at));
        let weight = op.as_ref().map_or(0, Op::weight);
        return (op.into_iter().collect(), weight);
    }
    if last > 1 && state.ops.len() < last {
        #[expect(
            clippy::disallowed_methods,
            reason = "a deadline for a condition variable, no decision depends on it"
        )]
        let until = Instant::now() + LINGER;
        state.lingering = true;
        while state.ops.len() < last {
            if shared
                .queue
                .arrived
                .wait_until(&mut state, until)
                .timed_out()
            {
                break;
            }
        }
        state.lingering = false;
    }
    // A group larger than what pins leave would find no room, where its ops one after the other do.
    let unpinned = shared.live_limit().saturating_sub(shared.fixed_bytes());
    let room = log
        .room_in_segment(shared)
        .min(unpinned)
        .clamp(1, GROUP_BYTES);
    let each = |op: &Op| match op {
        Op::Put(put) => {
            put.options.durability.unwrap_or(shared.config.durability) == Durability::Each
        }
        Op::Delete(_) => false,
        Op::Task(_) => true,
    };
    let (mut group, mut weight, mut disk) = (Vec::new(), 0, 0);
    while let Some(op) = state.ops.front() {
        let bytes = record_bytes(op);
        let alone = each(op) || group.first().is_some_and(each);
        let other = group
            .first()
            .is_some_and(|first| std::mem::discriminant(first) != std::mem::discriminant(op));
        if !group.is_empty() && (alone || other || disk + bytes > room) {
            break;
        }
        weight += op.weight();
        disk += bytes;
        group.extend(state.ops.pop_front());
    }
    (group, weight)
}

/// Upper bound of what an op writes.
fn record_bytes(op: &Op) -> u64 {
    // Twice a CID and a footer's item around it.
    const OVERHEAD: usize = HEADER + 256;
    let bytes = match op {
        Op::Put(put) => {
            let pin = put
                .options
                .pin
                .as_ref()
                .map_or(0, |set| HEADER + set.len() + 128);
            OVERHEAD + put.data.len() + pin
        }
        Op::Delete(_) => OVERHEAD,
        Op::Task(_) => 0,
    };
    bytes as u64
}

/// Returns puts that have to wait for room.
fn commit(shared: &Shared, log: &mut Log, group: Vec<Op>) -> Option<Vec<Put>> {
    if shared.is_closed() {
        // Dropping the replies tells the callers.
        return None;
    }
    shared.counters.batches.add(1);
    let (mut puts, mut deletes) = (Vec::new(), Vec::new());
    for op in group {
        match op {
            Op::Put(put) => puts.push(put),
            Op::Delete(delete) => deletes.push(delete),
            Op::Task(task) => task(shared, log),
        }
    }
    if !deletes.is_empty() {
        commit_deletes(shared, log, deletes);
    }
    if puts.is_empty() {
        return None;
    }
    commit_puts(shared, log, puts)
}

/// What a group of puts will change once it is on the disk.
#[derive(Default)]
struct Staged {
    drafts: Vec<Draft>,
    /// Draft number and entry to be.
    blocks: Vec<NewBlock>,
    pins: Vec<(String, Key)>,
    live: u64,
    pinned: u64,
    /// What is written or pinned by this group must not be evicted for it.
    keep: HashSet<Key>,
    /// Blocks that this group writes, and whether they stay for good.
    written: HashMap<Key, bool>,
    pinned_keys: HashSet<Key>,
    needs_sync: bool,
}

struct NewBlock {
    draft: usize,
    key: Key,
    codec: u8,
    head: u8,
    data: Bytes,
    /// Of a new block; `None`: it keeps its heat.
    placement: Option<Placement>,
    expiry_ms: u64,
}

fn commit_puts(shared: &Shared, log: &mut Log, puts: Vec<Put>) -> Option<Vec<Put>> {
    let now = shared.vfs.now_ms();
    let mut staged = Staged::default();
    let mut decided = Vec::with_capacity(puts.len());
    for put in &puts {
        decided.push(stage(shared, &mut staged, put, now));
    }
    let written = write_staged(shared, log, &staged);
    let result = match written {
        Ok(places) => {
            log.lacking_since = None;
            apply(shared, log, staged, &places);
            Ok(())
        }
        Err(NotWritten::Wait) => return Some(puts),
        Err(NotWritten::Failed(error)) => {
            // What was interned for blocks that did not arrive.
            for block in &staged.blocks {
                if shared.index.id(&block.key).is_none() {
                    shared.kinds.forget(&block.key);
                }
            }
            Err(error)
        }
    };
    for (put, decided) in puts.into_iter().zip(decided) {
        let answer = decided.and_then(|new| result.clone().map(|()| new));
        if let (Ok(new), Origin::User) = (&answer, put.origin) {
            shared.counters.puts.add(1);
            if *new {
                shared.counters.user_bytes.add(put.data.len() as u64);
            } else {
                shared.counters.duplicate_puts.add(1);
            }
        }
        let _ = put.reply.send(answer);
    }
    None
}

/// Why a group was not written.
enum NotWritten {
    /// There will be room once the cold tier took some blocks.
    Wait,
    Failed(PutError),
}

/// Decides what a put writes. `Ok(false)`: the block is there already.
fn stage(shared: &Shared, staged: &mut Staged, put: &Put, now: u64) -> Result<bool, PutError> {
    if let Origin::Cold { class, urgent } = put.origin {
        return stage_promotion(shared, staged, put, class, urgent, now);
    }
    let (key, codec) = shared.kinds.intern(&put.cid);
    let key_bytes = put.cid.to_bytes();
    let entry = shared.index.get(&key);
    // What is pinned has to be on disk.
    let entry = entry.filter(|entry| !entry.is_cold() || put.options.pin.is_none());
    let there = match staged.written.get(&key) {
        Some(for_good) => *for_good,
        None => entry
            .is_some_and(|entry| !entry.is_damaged() && (entry.expiry_s == 0 || entry.pins > 0)),
    };
    let expiry_ms = match put.options.ttl {
        Some(ttl) => now
            .saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
            .max(1),
        None => 0,
    };
    // A block that expires is written again for good, even where a pin holds it for now.
    let there = there && (expiry_ms != 0 || entry.is_none_or(|entry| entry.expiry_s == 0));
    let key_len = key_bytes.len() as u64;
    let bytes = segment::footprint(HEADER as u64 + key_len + put.data.len() as u64, key_len);
    let already_pinned =
        entry.is_some_and(|entry| entry.pins > 0) || staged.pinned_keys.contains(&key);
    let adds_live = if there { 0 } else { bytes };
    let adds_pinned = if put.options.pin.is_some() && !already_pinned {
        bytes
    } else {
        0
    };
    let pinned = shared.fixed_bytes() + staged.pinned;
    let unpinned_floor = if put.options.pin.is_none() && !there {
        bytes
    } else {
        0
    };
    if pinned + adds_pinned + unpinned_floor > shared.live_limit() {
        return Err(PutError::Full {
            needed: adds_pinned.max(unpinned_floor),
            capacity: shared.capacity(),
        });
    }
    staged.live += adds_live;
    staged.pinned += adds_pinned;
    staged.keep.insert(key);
    let durability = put.options.durability.unwrap_or(shared.config.durability);
    staged.needs_sync |= durability != Durability::Relaxed || put.options.pin.is_some();
    if !there {
        staged.written.insert(key, expiry_ms == 0);
        staged.blocks.push(NewBlock {
            draft: staged.drafts.len(),
            key,
            codec,
            head: u8::try_from(HEADER + key_bytes.len()).unwrap_or(u8::MAX),
            data: put.data.clone(),
            placement: Some(placement::place(
                &shared.config.policy,
                shared.memory.capacity(),
                put.data.len(),
                &put.options,
            )),
            expiry_ms,
        });
        staged.drafts.push(Draft {
            kind: Kind::Block,
            flags: if put.options.pin.is_some() { MORE } else { 0 },
            class: put.options.class as u8 | (put.options.importance as u8) << 4,
            expiry_ms,
            key: key_bytes,
            payload: put.data.clone(),
            payload_crc: put.crc,
        });
    }
    if let Some(set) = &put.options.pin {
        let member = shared
            .index
            .id(&key)
            .is_some_and(|id| shared.pins.read().is_member(set, id));
        if !member || !there {
            let mut payload = Vec::new();
            put_cid(&put.cid, &mut payload);
            staged.drafts.push(Draft::new(
                Kind::Pin,
                set.clone().into_bytes(),
                payload.into(),
            ));
        }
        staged.pins.push((set.clone(), key));
        staged.pinned_keys.insert(key);
    }
    Ok(!there)
}

/// A block comes back from the cold tier, if it is still there.
fn stage_promotion(
    shared: &Shared,
    staged: &mut Staged,
    put: &Put,
    class: u8,
    urgent: bool,
    now: u64,
) -> Result<bool, PutError> {
    let found = shared.kinds.find(&put.cid).and_then(|key| {
        let entry = shared.index.get(&key)?;
        Some((key, entry))
    });
    let Some((key, entry)) = found.filter(|(key, entry)| {
        entry.is_cold() && entry.is_present(now) && !staged.written.contains_key(key)
    }) else {
        return Ok(false);
    };
    let key_bytes = shared
        .kinds
        .cid(&key, entry.codec)
        .unwrap_or(put.cid)
        .to_bytes();
    let draft = Draft {
        kind: Kind::Block,
        flags: 0,
        class,
        expiry_ms: u64::from(entry.expiry_s) * 1000,
        key: key_bytes,
        payload: put.data.clone(),
        payload_crc: put.crc,
    };
    let bytes = draft.footprint();
    let room = shared
        .live_limit()
        .saturating_sub(shared.counters.live.get() + staged.live);
    if !urgent && bytes > room {
        return Ok(false);
    }
    if shared.fixed_bytes() + staged.pinned + bytes > shared.live_limit() {
        return Err(PutError::Full {
            needed: bytes,
            capacity: shared.capacity(),
        });
    }
    staged.live += bytes;
    staged.keep.insert(key);
    // The copy in the cold tier is given up for it.
    staged.needs_sync = true;
    staged.written.insert(key, entry.expiry_s == 0);
    staged.blocks.push(NewBlock {
        draft: staged.drafts.len(),
        key,
        codec: entry.codec,
        head: u8::try_from(HEADER + draft.key.len()).unwrap_or(u8::MAX),
        data: put.data.clone(),
        placement: None,
        expiry_ms: draft.expiry_ms,
    });
    staged.drafts.push(draft);
    Ok(true)
}

fn write_staged(
    shared: &Shared,
    log: &mut Log,
    staged: &Staged,
) -> Result<Vec<Position>, NotWritten> {
    let failed = |failure: WriteFailure| NotWritten::Failed(failure.into());
    let bytes = staged.drafts.iter().map(Draft::footprint).sum();
    match compact::make_room(shared, log, staged.live, bytes, &staged.keep) {
        Ok(()) => {}
        Err(NoRoom::Full { needed }) => {
            return Err(NotWritten::Failed(PutError::Full {
                needed,
                capacity: shared.capacity(),
            }));
        }
        Err(NoRoom::Wait) => return Err(NotWritten::Wait),
        Err(NoRoom::Failed(failure)) => return Err(failed(failure)),
    }
    let places = if staged.drafts.is_empty() {
        Vec::new()
    } else {
        log.append(shared, &staged.drafts).map_err(failed)?
    };
    if staged.needs_sync {
        log.sync(shared).map_err(failed)?;
    }
    Ok(places)
}

fn apply(shared: &Shared, log: &mut Log, staged: Staged, places: &[Position]) {
    for block in staged.blocks {
        let Some(place) = places.get(block.draft) else {
            continue;
        };
        let heat = match block.placement {
            Some(placement) => shared.clock.tick(shared.index.len()).fresh(placement.reads),
            None => f32::NEG_INFINITY,
        };
        let len = u32::try_from(block.data.len()).unwrap_or(u32::MAX);
        let entry = Entry::new(
            block.key,
            block.codec,
            *place,
            block.head,
            len,
            block.expiry_ms,
            heat,
        );
        let old = shared.index.insert(entry);
        if let Some(old) = old {
            log.has_shadows = true;
            shared.release(log, &old);
            if old.pins > 0 {
                // The name may be of another length.
                shared.counters.pinned.add(entry.footprint());
                shared.counters.pinned.sub(old.footprint());
            }
        }
        shared.retain(log, &entry);
        if shared.memory.capacity() > 0
            && let Some(placement) = block.placement
        {
            // A copy, as the caller's bytes may be a small part of a large buffer that would stay with them.
            shared.memory.set_expiry(&block.key, block.expiry_ms);
            if placement.in_memory {
                let mut copy = shared.memory.buffer(block.data.len());
                copy.extend_from_slice(&block.data);
                let (reads, expiry_ms) = (placement.reads, block.expiry_ms);
                shared
                    .memory
                    .insert(block.key, copy.freeze(), reads, expiry_ms);
            }
        }
    }
    let mut pins = shared.pins.write();
    for (set, key) in staged.pins {
        let pinned = pins.pin(&shared.index, &set, &key);
        shared.counters.pinned.add(pinned);
        shared.memory.set_expiry(&key, 0);
    }
}

fn commit_deletes(shared: &Shared, log: &mut Log, deletes: Vec<Delete>) {
    let now = shared.vfs.now_ms();
    let (mut drafts, mut keys, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    // Blocks that are not here may be evicted ones, whose records would count again at the next opening.
    let mut unknown = Vec::new();
    for delete in deletes {
        let draft = Draft::new(Kind::Delete, delete.cid.to_bytes(), Bytes::new());
        let Some(entry) = shared
            .kinds
            .find(&delete.cid)
            .and_then(|key| shared.index.get(&key))
        else {
            if log.has_shadows {
                unknown.push(draft);
            }
            answers.push((delete.reply, false));
            continue;
        };
        if entry.pins > 0 {
            let _ = delete
                .reply
                .send(Err(DeleteError::Pinned { cid: delete.cid }));
            continue;
        }
        let first = seen.insert(entry.key());
        if first {
            drafts.push(draft);
            keys.push(entry.key());
        }
        answers.push((delete.reply, first && entry.is_present(now)));
    }
    let bytes: u64 = unknown.iter().map(Draft::footprint).sum();
    // There is no end to what is not here, but a checkpoint is the end of all those records.
    if bytes > 0
        && shared.counters.used.get() + bytes > shared.capacity()
        && checkpoint::write(shared, log).is_ok()
    {
        unknown.clear();
    }
    drafts.append(&mut unknown);
    // Deleting must work in a full store, so it asks for no room: its records are small and become garbage at once.
    let written = if drafts.is_empty() {
        Ok(())
    } else {
        log.append(shared, &drafts).and_then(|_| log.sync(shared))
    };
    if written.is_ok() {
        for key in keys {
            shared.forget(log, &key);
        }
    }
    for (reply, there) in answers {
        let _ = reply.send(written.clone().map(|()| there).map_err(DeleteError::from));
    }
}
