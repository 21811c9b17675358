//! Writes on their way to the disk: a bounded queue, and one job at a time that takes them in groups, one fdatasync for each group.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use cid::Cid;
use futures::channel::oneshot;
use parking_lot::{Condvar, Mutex};
use web_time::Instant;

use crate::{
    DeleteError, Durability, PinError, PutError, PutOptions, ValueError,
    disk::{
        checkpoint,
        compact::{self, Idle},
        log::Log,
        record::HEADER,
    },
    error::WriteFailure,
    group,
    pinning::Pinned,
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
const LOOK: Duration = Duration::from_millis(100);

/// Something for the job to do.
pub(crate) enum Op {
    Put(Put),
    Pin(Pin),
    Unpin(Unpin),
    PutValue(PutValue),
    DeleteValue(DeleteValue),
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

pub(crate) struct Pin {
    pub(crate) set: String,
    pub(crate) cids: Vec<Cid>,
    pub(crate) reply: oneshot::Sender<Result<Pinned, PinError>>,
}

pub(crate) struct Unpin {
    pub(crate) set: String,
    pub(crate) cids: Vec<Cid>,
    pub(crate) reply: oneshot::Sender<Result<(), PinError>>,
}

pub(crate) struct PutValue {
    pub(crate) key: String,
    /// As a record has it: hash and value.
    pub(crate) payload: Bytes,
    pub(crate) crc: u32,
    pub(crate) ttl: Option<Duration>,
    pub(crate) reply: oneshot::Sender<Result<(), ValueError>>,
}

pub(crate) struct DeleteValue {
    pub(crate) key: String,
    pub(crate) reply: oneshot::Sender<Result<bool, ValueError>>,
}

/// Ops that share a group. Those of another kind go into the next one, so that no op sees what another of its group does.
#[derive(PartialEq, Eq)]
enum Company {
    Writes,
    Deletes,
    Alone,
}

impl Op {
    fn company(&self) -> Company {
        match self {
            Op::Delete(_) => Company::Deletes,
            Op::Task(_) => Company::Alone,
            _ => Company::Writes,
        }
    }

    /// Bytes that it holds while it waits.
    fn weight(&self) -> usize {
        match self {
            Op::Put(put) => put.data.len() + 256,
            Op::PutValue(put) => put.payload.len() + put.key.len() + 256,
            Op::Pin(Pin { cids, .. }) | Op::Unpin(Unpin { cids, .. }) => {
                size_of_val(cids.as_slice()) + 256
            }
            Op::Delete(_) | Op::DeleteValue(_) | Op::Task(_) => 256,
        }
    }

    /// Whether it may have to wait for room in the store.
    pub(crate) fn needs_room(&self) -> bool {
        matches!(self, Op::Put(_) | Op::PutValue(_))
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
    /// The time for upkeep has come.
    tick: bool,
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
            let limit = if op.needs_room() {
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

/// Runs the job once, if it does not run, as something that it waits for has happened.
pub(crate) fn wake(shared: &Arc<Shared>) {
    let mut state = shared.queue.state.lock();
    if shared.is_closed() {
        return;
    }
    shared.queue.arrived.notify_one();
    if !state.running {
        state.running = true;
        let shared = shared.clone();
        blocking::unblock(move || run(&shared)).detach();
    }
}

/// Lets the job look after what takes no notice of itself: blocks whose time is over, garbage.
pub(crate) fn tick(shared: &Arc<Shared>) {
    shared.queue.state.lock().tick = true;
    wake(shared);
}

/// Whether anybody but the job, and the one who asks, has the store.
pub(crate) fn is_wanted(shared: &Arc<Shared>) -> bool {
    // Under the lock the job does not begin; while it runs, it has the store.
    let state = shared.queue.state.lock();
    Arc::strong_count(shared) > 1 + usize::from(state.running)
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
fn stall(shared: &Shared, log: &mut Log, ops: Vec<Op>) -> Stall {
    let now = now();
    log.lacking_since.get_or_insert(now);
    let mut state = shared.queue.state.lock();
    for op in ops.into_iter().rev() {
        state.ops.push_front(op);
    }
    Stall {
        seen: occupancy(shared),
        again_at: now + LOOK,
    }
}

/// Waits for something to do while puts wait for room. `false`: the puts should be tried again.
fn is_stalled(shared: &Arc<Shared>, log: &mut Log, stall: &Stall) -> bool {
    if shared.is_closed() || occupancy(shared) != stall.seen {
        return false;
    }
    let patience = shared
        .demoter
        .get()
        .map_or(Duration::ZERO, |demoter| demoter.patience());
    let mut state = shared.queue.state.lock();
    if state.ops.iter().any(|op| !op.needs_room()) {
        return true;
    }
    if is_abandoned(shared, log) {
        // Nobody waits for an answer any more.
        let bytes = state.ops.iter().map(Op::weight).sum();
        state.ops.clear();
        drop(state);
        shared.queue.release(bytes);
        log.lacking_since = None;
        return false;
    }
    let now = now();
    let since = *log.lacking_since.get_or_insert(now);
    if let Some(cause) = state.demotion_failure.clone()
        && now.saturating_duration_since(since) >= patience
    {
        let failed: Vec<Op> = state.ops.drain(..).collect();
        drop(state);
        log.lacking_since = None;
        shared.queue.release(failed.iter().map(Op::weight).sum());
        for op in failed {
            let source = cause.clone();
            match op {
                Op::Put(put) => drop(put.reply.send(Err(PutError::ColdTier { source }))),
                Op::PutValue(put) => drop(put.reply.send(Err(ValueError::ColdTier { source }))),
                _ => {}
            }
        }
        return false;
    }
    // Without a cause nothing happens when the patience ends.
    let end_of_patience = since
        .checked_add(patience)
        .filter(|_| state.demotion_failure.is_some());
    let until = end_of_patience.map_or(stall.again_at, |end| stall.again_at.min(end));
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

/// Whether nobody but the job, and a checkpoint that is being written, has the store any more.
pub(crate) fn is_abandoned(shared: &Arc<Shared>, log: &Log) -> bool {
    // Counted first: who writes a checkpoint may answer and let go of the store meanwhile. Asked first, it would be taken off a count in which
    // it is no more, and the store would seem abandoned to whoever has it.
    let holders = Arc::strong_count(shared);
    holders <= 1 + usize::from(log.checkpoints.writer_has_store())
}

/// The job: runs while there is something to do.
fn run(shared: &Arc<Shared>) {
    let mut log = shared.log.lock();
    let _close_on_panic = CloseOnPanic(shared);
    let mut last = 0;
    let mut stalled: Option<Stall> = None;
    loop {
        let is_news = checkpoint::finish_if_written(shared, &mut log);
        if stalled
            .as_ref()
            .is_some_and(|stall| !is_stalled(shared, &mut log, stall))
        {
            stalled = None;
        }
        let (group, bytes) = take(shared, &log, last, stalled.is_some());
        last = group.len();
        if group.is_empty() {
            if stalled.is_none() && !is_news && !idle(shared, &mut log) {
                return;
            }
            continue;
        }
        match commit(shared, &mut log, group) {
            Some(ops) => {
                let held: usize = ops.iter().map(Op::weight).sum();
                stalled = Some(stall(shared, &mut log, ops));
                shared.queue.release(bytes - held);
            }
            None => {
                if stalled.is_none() {
                    log.lacking_since = None;
                }
                shared.queue.release(bytes);
            }
        }
        // A closed store's directory may be somebody else's by now.
        if !shared.is_closed()
            && checkpoint::is_due(&log)
            && let Err(error) = checkpoint::start(shared, &mut log)
        {
            tracing::warn!(
                ?error,
                "no checkpoint; the next opening reads more of the log"
            );
            log.since_checkpoint /= 2;
        }
    }
}

/// Nothing is to be written. `false`: the job ends.
fn idle(shared: &Arc<Shared>, log: &mut Log) -> bool {
    let mut next = Idle::Done;
    // If nobody has the store any more, go at once, so that it can be opened again.
    if !is_abandoned(shared, log) && !shared.is_closed() {
        if std::mem::take(&mut shared.queue.state.lock().tick) {
            // A checkpoint that is being written must not have heats of two clocks; the next one starts the time over then.
            if !log.checkpoints.is_writing()
                && let Some(by) = shared.clock.rebase()
            {
                shared.index.cool(by);
            }
            // What fails shows in the next write.
            if compact::expire(shared, log) > 0 && log.settle(shared).is_ok() {
                let _ = compact::seal_dead(shared, log);
            }
        }
        next = compact::background(shared, log);
    }
    let mut state = shared.queue.state.lock();
    match next {
        Idle::Busy => return true,
        Idle::In(wait) if state.ops.is_empty() => {
            state.lingering = true;
            shared.queue.arrived.wait_for(&mut state, wait.min(LOOK));
            state.lingering = false;
            return true;
        }
        Idle::In(_) | Idle::Done => {}
    }
    // What was written beside meanwhile is looked at first.
    let is_idle = state.ops.is_empty() && !state.tick && !log.checkpoints.is_written();
    if is_idle {
        state.running = false;
    }
    !is_idle
}

/// Takes ops of one kind that fit into the active segment together; while puts wait for room, one of the others.
fn take(shared: &Shared, log: &Log, last: usize, stalled: bool) -> (Vec<Op>, usize) {
    let mut state = shared.queue.state.lock();
    if stalled {
        let other = state.ops.iter().position(|op| !op.needs_room());
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
        Op::Task(_) => true,
        _ => false,
    };
    let (mut group, mut weight, mut disk) = (Vec::new(), 0, 0);
    while let Some(op) = state.ops.front() {
        let bytes = record_bytes(op);
        let alone = each(op) || group.first().is_some_and(each);
        let other = group
            .first()
            .is_some_and(|first| first.company() != op.company());
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
        Op::PutValue(put) => OVERHEAD + put.key.len() * 2 + put.payload.len(),
        Op::Pin(Pin { set, cids, .. }) | Op::Unpin(Unpin { set, cids, .. }) => {
            OVERHEAD + set.len() * 2 + cids.len() * 48
        }
        Op::Delete(_) => OVERHEAD,
        Op::DeleteValue(delete) => OVERHEAD + delete.key.len() * 2,
        Op::Task(_) => 0,
    };
    bytes as u64
}

/// Returns what has to wait for room.
fn commit(shared: &Shared, log: &mut Log, group: Vec<Op>) -> Option<Vec<Op>> {
    if shared.is_closed() {
        // Dropping the replies tells the callers.
        return None;
    }
    shared.counters.batches.add(1);
    let (mut writes, mut deletes) = (Vec::new(), Vec::new());
    for op in group {
        match op {
            Op::Delete(delete) => deletes.push(delete),
            Op::Task(task) => task(shared, log),
            op => writes.push(op),
        }
    }
    if !deletes.is_empty() {
        group::delete(shared, log, deletes);
    }
    if writes.is_empty() {
        return None;
    }
    group::write(shared, log, writes)
}
