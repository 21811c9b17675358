//! Carries out the moves between disk and cold tier: copy, verify, flip, delete.
//!
//! What moves is decided by [`crate::heat::moves`], what a move writes to the log by [`crate::disk::moves`]. Here is the job between them:
//! it runs on one thread of `blocking` while there is something to do, and ends with the store. A copy is durable and read back before the
//! log says that it counts, and what it replaces goes after that. So a crash at any step leaves a copy too many: of a block, whose older one
//! is garbage, or a pack that nothing points to, which the next sweep removes.

mod choice;
pub(crate) mod claim;
mod demote;
mod keep;

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use cid::Cid;
use futures::{
    channel::oneshot,
    future::{AbortHandle, abortable},
};
use hashbrown::{HashMap, HashSet};
use parking_lot::{Condvar, Mutex};
use web_time::Instant;

use crate::{
    ColdFailure, GetError, OpenError, PutError,
    blocking_store::block_on,
    cold::{
        bucket::{BucketError, Cause, cause},
        tier::{Cold, ColdError, Thawed},
    },
    commit,
    disk::{index::Entry, log::Log},
    error::WriteFailure,
    heat::moves::{Block, Move, MoveStats, Moves, Usage},
    key::Key,
    state::{Demoter, Read, Shared},
};

/// Promotions that are on their way to the disk at once.
const PROMOTIONS: usize = 4;

/// A block can move between the tiers while it is looked for; more often is a fault.
const READ_ATTEMPTS: usize = 5;

/// Demotions in a row before packs are looked after.
const DEMOTIONS_BEFORE_UPKEEP: u64 = 8;

/// Wait after a failure of the disk.
const DISK_PAUSE: Duration = Duration::from_secs(1);

/// Blocks that could not be read are not tried again until the store is opened anew; so many are remembered.
const MOST_UNREADABLE: usize = 65_536;

/// The cold tier and the job that fills it.
pub(crate) struct Mover {
    pub(crate) cold: Cold,
    shared: Weak<Shared>,
    state: Mutex<State>,
    /// Something to do, or the end.
    woken: Condvar,
    /// Held by the one who moves.
    turn: Mutex<()>,
}

struct State {
    moves: Moves<Key>,
    is_running: bool,
    is_stopped: bool,
    is_swept: bool,
    claim: claim::Claim,
    /// Bytes that puts wait for.
    wanted: u64,
    /// Blocks read from the cold tier that go to the disk.
    thawed: HashMap<Key, (Cid, Thawed)>,
    /// Promotions and requests under way.
    aborts: HashMap<u64, AbortHandle>,
    last_abort: u64,
    promoting: usize,
    demotions: u64,
    /// Blocks on disk that cannot be read, hence not moved.
    unreadable: HashSet<Key>,
    /// Blocks that stay on the disk until a pin has them, and for how many pins.
    held: HashMap<Key, usize>,
    /// Packs whose index cannot be read: left alone.
    untouched: BTreeSet<u32>,
    /// Repacking rests until then, for its I/O budget.
    rest_until: Option<Instant>,
    ended: Vec<oneshot::Sender<()>>,
}

/// Why the job cannot go on.
#[derive(Debug)]
enum Stop {
    /// The store is closed or dropped.
    Ended,
    /// The bucket does not answer.
    Bucket(BucketError),
    /// The disk failed.
    Disk(Cause),
}

impl From<WriteFailure> for Stop {
    fn from(failure: WriteFailure) -> Self {
        match failure {
            WriteFailure::Closed => Stop::Ended,
            failure => Stop::Disk(cause(PutError::from(failure))),
        }
    }
}

/// What comes after a round.
enum Next {
    Again,
    Wait(Duration),
    Idle,
}

/// Sets the cold tier up that the configuration asks for. Asks no server.
pub(crate) fn attach(shared: &Arc<Shared>) -> Result<Option<Arc<Mover>>, OpenError> {
    let Some(config) = shared.config.cold.clone() else {
        return Ok(None);
    };
    let id = claim::store_id(shared).map_err(io_error(shared, "reading COLD"))?;
    let bucket = config
        .bucket(&shared.dir, &id)
        .map_err(|(at, source)| OpenError::Cold { at, source })?;
    let cold = Cold::new(config, bucket);
    let claim = claim::Claim::new(shared).map_err(io_error(shared, "reading COLD.USED"))?;
    for (pack, _) in shared.packs.all() {
        cold.knows(pack);
    }
    let mover = Arc::new(Mover {
        cold,
        shared: Arc::downgrade(shared),
        state: Mutex::new(State {
            moves: Moves::new(shared.config.policy, now()),
            is_running: false,
            is_stopped: false,
            is_swept: false,
            claim,
            wanted: 0,
            thawed: HashMap::new(),
            aborts: HashMap::new(),
            last_abort: 0,
            promoting: 0,
            demotions: 0,
            unreadable: HashSet::new(),
            held: HashMap::new(),
            untouched: BTreeSet::new(),
            rest_until: None,
            ended: Vec::new(),
        }),
        woken: Condvar::new(),
        turn: Mutex::default(),
    });
    let demoter = Arc::new(Demand(Arc::downgrade(&mover)));
    // A store is attached once.
    let _ = shared.demoter.set(demoter);
    mover.start();
    Ok(Some(mover))
}

fn io_error<'a>(
    shared: &'a Shared,
    what: &'static str,
) -> impl FnOnce(io::Error) -> OpenError + use<'a> {
    move |source| OpenError::Io {
        path: shared.dir.clone(),
        what,
        source,
    }
}

/// What the writing job knows of the mover.
struct Demand(Weak<Mover>);

impl Demoter for Demand {
    fn make_room(&self, bytes: u64, urgent: bool) {
        if let Some(mover) = self.0.upgrade() {
            if urgent {
                let mut state = mover.state.lock();
                state.wanted = state.wanted.max(bytes);
            }
            mover.start();
        }
    }

    fn patience(&self) -> Duration {
        self.0
            .upgrade()
            .map_or(Duration::ZERO, |mover| mover.cold.config.put_patience)
    }
}

impl Mover {
    /// Starts the job, or wakes it.
    pub(crate) fn start(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.is_stopped {
            return;
        }
        if state.is_running {
            self.woken.notify_all();
            return;
        }
        state.is_running = true;
        let job = self.clone();
        blocking::unblock(move || job.run()).detach();
    }

    /// Ends the job and what it waits for; [`ended`](Self::ended) tells when.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.is_stopped = true;
        state.thawed.clear();
        for (_, abort) in state.aborts.drain() {
            abort.abort();
        }
        self.woken.notify_all();
    }

    /// Returns when the job has ended.
    pub(crate) async fn ended(&self) {
        let wait = {
            let mut state = self.state.lock();
            if !state.is_running {
                return;
            }
            let (send, wait) = oneshot::channel();
            state.ended.push(send);
            wait
        };
        let _ = wait.await;
    }

    /// After a put: the disk may be full enough for a demotion ahead of need.
    pub(crate) fn on_put(self: &Arc<Self>, shared: &Shared) {
        let due = {
            let mut state = self.state.lock();
            !state.is_running && state.moves.demand(usage(shared), now()) > 0
        };
        if due {
            self.start();
        }
    }

    /// A block was read from the cold tier; its heat counts the read. It may come to the disk.
    pub(crate) fn on_read(
        self: &Arc<Self>,
        shared: &Shared,
        entry: &Entry,
        name: Cid,
        thawed: &Thawed,
    ) {
        let block = Block {
            key: entry.key(),
            bytes: entry.len(),
            heat: entry.heat,
        };
        let clock = shared.clock.get();
        let mut state = self.state.lock();
        state.moves.on_read(block, &clock, usage(shared), now());
        let mut is_due = false;
        while let Some(next) = state.moves.poll_output() {
            if let Move::Promote { key, .. } = next {
                state.thawed.insert(key, (name, thawed.clone()));
                is_due = true;
            }
        }
        drop(state);
        if is_due {
            self.start();
        }
    }

    /// Keeps blocks on the disk until the guard is dropped.
    pub(crate) fn hold(self: &Arc<Self>, keys: Vec<Key>) -> Held {
        let mut state = self.state.lock();
        for key in &keys {
            *state.held.entry(*key).or_default() += 1;
        }
        Held {
            mover: self.clone(),
            keys,
        }
    }

    pub(crate) fn move_stats(&self) -> MoveStats {
        self.state.lock().moves.stats()
    }

    pub(crate) fn is_moving(&self) -> bool {
        let state = self.state.lock();
        state.is_running || state.promoting > 0
    }

    /// Blocks on their way to the disk.
    pub(crate) fn waiting(&self) -> u64 {
        let state = self.state.lock();
        (state.thawed.len() + state.promoting) as u64
    }

    /// Sweeps, removes and repacks everything that can be, without regard to the I/O budget. Blocks the thread.
    pub(crate) fn collect(&self) -> Result<keep::Collected, GcError> {
        let _turn = self.turn.lock();
        self.collect_all().map_err(|stop| match stop {
            Stop::Ended => GcError::Closed,
            Stop::Bucket(error) => GcError::Bucket(error),
            Stop::Disk(cause) => GcError::Disk(cause),
        })
    }

    fn run(self: Arc<Self>) {
        let _end = End(&self);
        loop {
            let turn = self.turn.lock();
            let next = self.round();
            drop(turn);
            let wait = match next {
                Ok(Next::Again) => continue,
                Ok(Next::Idle) => None,
                Ok(Next::Wait(time)) => Some(time),
                Err(Stop::Ended) => return,
                Err(Stop::Bucket(error)) => {
                    self.cold.counters.failures.add(1);
                    self.tell(Some(error.source_or_advice()));
                    let least = match error {
                        // It answers, so that nothing else holds the next try back.
                        BucketError::Missing(_) => DISK_PAUSE,
                        _ => Duration::from_millis(50),
                    };
                    Some(self.cold.bucket.wait().max(least))
                }
                Err(Stop::Disk(cause)) => {
                    self.cold.counters.failures.add(1);
                    tracing::warn!(%cause, "a move failed on the disk; it is tried again");
                    self.tell(Some(cause));
                    Some(DISK_PAUSE)
                }
            };
            let mut state = self.state.lock();
            if state.is_stopped {
                return;
            }
            match wait {
                // What wakes it need not be what it waits for.
                Some(time) => {
                    let _ = self.woken.wait_for(&mut state, time);
                }
                None if state.wanted == 0 && state.thawed.is_empty() => {
                    state.is_running = false;
                    return;
                }
                None => {}
            }
        }
    }

    /// Tells puts that wait why they do.
    fn tell(&self, failure: Option<Cause>) {
        if let Ok(shared) = self.shared() {
            commit::demotion_failed(&shared, failure);
        }
    }

    /// One thing, the most urgent first.
    fn round(self: &Arc<Self>) -> Result<Next, Stop> {
        let demand = {
            let shared = self.shared()?;
            let mut state = self.state.lock();
            let wanted = std::mem::take(&mut state.wanted);
            let (usage, policy) = (usage(&shared), shared.config.policy);
            let planned = if wanted > 0 {
                // As much as a planned one would move, so that the next put does not have to wait, and packs are not small.
                let down_to = usage.limit / 100 * u64::from(policy.demote_to_percent);
                usage.used.saturating_sub(down_to)
            } else {
                state.moves.demand(usage, now())
            };
            (wanted.max(planned), wanted)
        };
        if let (bytes @ 1.., wanted) = demand {
            if self.cold.bucket.wait() > Duration::ZERO {
                self.want(wanted);
                return Ok(Next::Wait(self.cold.bucket.wait()));
            }
            match self.demote(bytes) {
                Ok(0) if wanted > 0 => {
                    self.tell(Some(cause(NothingToMove)));
                    return Ok(Next::Wait(DISK_PAUSE));
                }
                Ok(0) => {}
                Ok(_) => {
                    self.tell(None);
                    let mut state = self.state.lock();
                    state.demotions += 1;
                    // A load that never pauses must not keep the packs from being tidied up.
                    if !state.demotions.is_multiple_of(DEMOTIONS_BEFORE_UPKEEP) {
                        return Ok(Next::Again);
                    }
                    let is_swept = state.is_swept;
                    drop(state);
                    if is_swept {
                        self.keep_within_bounds()?;
                    }
                    return Ok(Next::Again);
                }
                Err(stop) => {
                    self.want(wanted);
                    return Err(stop);
                }
            }
        }
        self.promote_some()?;
        if !self.state.lock().is_swept {
            if self.cold.bucket.wait() > Duration::ZERO {
                return Ok(Next::Wait(self.cold.bucket.wait()));
            }
            self.sweep()?;
            return Ok(Next::Again);
        }
        self.keep_within_bounds()
    }

    fn want(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.wanted = state.wanted.max(bytes);
    }

    /// Begins promotions. They are puts, which may wait for room that this job makes: so it does not wait for them.
    fn promote_some(self: &Arc<Self>) -> Result<(), Stop> {
        loop {
            let (key, (name, thawed)) = {
                let mut state = self.state.lock();
                if state.promoting >= PROMOTIONS {
                    return Ok(());
                }
                let Some(key) = state.thawed.keys().next().copied() else {
                    return Ok(());
                };
                let Some(block) = state.thawed.remove(&key) else {
                    return Ok(());
                };
                state.promoting += 1;
                (key, block)
            };
            let shared = self.shared()?;
            let promotion = async move {
                commit::promote(&shared, name, thawed.data, thawed.class, false).await
            };
            let (promotion, number) = self.abortable(promotion);
            let mover = self.clone();
            blocking::unblock(move || {
                let result = block_on(promotion);
                let is_done = matches!(result, Ok(Ok(true)));
                if is_done {
                    mover.cold.counters.promotions.add(1);
                }
                let mut state = mover.state.lock();
                state.aborts.remove(&number);
                state.promoting -= 1;
                state.moves.on_done(&key, is_done, now());
                let more = !state.thawed.is_empty();
                drop(state);
                if more {
                    mover.start();
                }
            })
            .detach();
        }
    }

    /// A future that ends with the store.
    fn abortable<F: Future>(&self, future: F) -> (futures::future::Abortable<F>, u64) {
        let (future, abort) = abortable(future);
        let mut state = self.state.lock();
        if state.is_stopped {
            abort.abort();
        }
        state.last_abort += 1;
        let number = state.last_abort;
        state.aborts.insert(number, abort);
        (future, number)
    }

    /// Waits for the bucket, or for the end. Nobody may hold the store meanwhile.
    fn ask<T>(&self, request: impl Future<Output = Result<T, BucketError>>) -> Result<T, Stop> {
        self.ask_any(request)?.map_err(Stop::Bucket)
    }

    fn ask_any<T>(&self, request: impl Future<Output = T>) -> Result<T, Stop> {
        let (request, number) = self.abortable(request);
        let result = block_on(request);
        self.state.lock().aborts.remove(&number);
        result.map_err(|_| Stop::Ended)
    }

    /// Has the log do something.
    fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared, &mut Log) -> Result<T, WriteFailure> + Send + 'static,
    ) -> Result<T, Stop> {
        let shared = self.shared()?;
        Ok(block_on(commit::task(&shared, work))??)
    }

    fn shared(&self) -> Result<Arc<Shared>, Stop> {
        self.shared
            .upgrade()
            .filter(|shared| !shared.is_closed())
            .ok_or(Stop::Ended)
    }
}

/// Marks the end of the job, however it ends.
struct End<'a>(&'a Mover);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.is_running = false;
        for ended in state.ended.drain(..) {
            let _ = ended.send(());
        }
    }
}

/// Blocks that stay on the disk.
pub(crate) struct Held {
    mover: Arc<Mover>,
    keys: Vec<Key>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.mover.state.lock();
        for key in &self.keys {
            if let Some(holds) = state.held.get_mut(key) {
                *holds -= 1;
                if *holds == 0 {
                    state.held.remove(key);
                }
            }
        }
    }
}

/// Why a collection ended early.
pub(crate) enum GcError {
    Closed,
    Bucket(BucketError),
    Disk(Cause),
}

#[derive(Debug, thiserror::Error)]
#[error("no block can leave the disk: all are pinned, damaged, or being written")]
struct NothingToMove;

fn usage(shared: &Shared) -> Usage {
    Usage {
        used: shared.counters.live.get(),
        limit: shared.live_limit(),
    }
}

fn now() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "the adapter's clock; the policy takes `now`"
    )]
    Instant::now()
}

/// A block below memory.
pub(crate) enum Found {
    /// On the disk, and when its time is over in milliseconds since 1970; 0 for never.
    Disk(Bytes, u64),
    /// In the cold tier, under the name that it was put with.
    Cold(Entry, Cid, Thawed),
}

/// Reads a block from the disk or the cold tier, wherever it is by now. `None`: it is in neither.
pub(crate) async fn read(
    shared: &Arc<Shared>,
    mover: Option<&Mover>,
    key: Key,
    cid: Cid,
) -> Result<Option<Found>, GetError> {
    for _ in 0..READ_ATTEMPTS {
        let reader = shared.clone();
        let entry = match blocking::unblock(move || reader.read_block(&key, &cid)).await? {
            Read::Here(data, expiry_ms) => return Ok(Some(Found::Disk(data, expiry_ms))),
            Read::Absent => return Ok(None),
            Read::Cold(entry) => entry,
        };
        let Some(mover) = mover else {
            let source = Arc::new(ColdFailure {
                at: "none is configured".to_owned(),
                check: "configure the cold tier as it was when the block went there",
                cause: cause(NoColdTier),
            });
            return Err(GetError::ColdUnreachable { cid, source });
        };
        if let Some((name, thawed)) = thaw(mover, shared, &entry, cid).await? {
            return Ok(Some(Found::Cold(entry, name, thawed)));
        }
    }
    Err(GetError::Io {
        cid,
        source: Arc::new(io::Error::other("the block kept moving")),
    })
}

#[derive(Debug, thiserror::Error)]
#[error("the store has blocks in a cold tier, and its configuration has none")]
struct NoColdTier;

/// A block's bytes from the cold tier, where the index had it; `None` if it is elsewhere by now.
async fn thaw(
    mover: &Mover,
    shared: &Shared,
    entry: &Entry,
    cid: Cid,
) -> Result<Option<(Cid, Thawed)>, GetError> {
    let (Some(at), Some(name)) = (
        entry.location(),
        shared.kinds.cid(&entry.key(), entry.codec),
    ) else {
        return Ok(None);
    };
    match mover.cold.read(at, entry.len(), &name).await {
        Ok(thawed) => Ok(Some((name, thawed))),
        Err(ColdError::Bucket(error)) => {
            let source = mover.cold.bucket.failure(&error);
            Err(GetError::ColdUnreachable { cid, source })
        }
        Err(ColdError::Lost(cause)) => {
            if shared.mark_damaged(&entry.key(), entry.place()) {
                tracing::error!(%cid, ?at, %cause, "a block in the cold tier is damaged or gone");
                return Err(GetError::Corrupt { cid });
            }
            // It moved since: the caller looks again.
            Ok(None)
        }
    }
}
