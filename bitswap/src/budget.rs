//! Memory for what is being received: a [`Budget`] of all connections together, and the
//! [`Reservation`] of each frame.
//!
//! Who finds it exhausted waits, and its stream pushes back. So that nobody can hold the memory
//! hostage with frames that never end, a frame that was incomplete for [`PATIENCE`] gives way to
//! those who wait.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::{FutureExt, task::AtomicWaker};
use futures_timer::Delay;
use web_time::Instant;

/// Bytes in incomplete frames that all inbound streams of a connection may hold together. boxo
/// writes on up to 8 streams, 2 MiB each at most.
const MAX_PARTIAL_BYTES: usize = 16 * 1024 * 1024;
/// How long a frame may stay incomplete while others wait for memory: 4 MiB at 2 MB/s.
const PATIENCE: Duration = Duration::from_secs(2);
/// Memory is reserved in steps of so many bytes.
const STEP: usize = 16 * 1024;

/// Why there is no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The connection holds too much in incomplete frames.
    Connection,
    /// The frame was incomplete for too long while others waited.
    Evicted,
}

/// What all connections of a node may hold.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    limit: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    next: u64,
    /// Incomplete frames that hold memory, the oldest first.
    incomplete: BTreeMap<u64, (Instant, Arc<Eviction>)>,
    /// Frames that wait for memory.
    waiting: BTreeMap<u64, Waker>,
}

#[derive(Debug, Default)]
struct Eviction {
    ordered: AtomicBool,
    reader: AtomicWaker,
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a frame takes is the adapter's business"
)]
fn now() -> Instant {
    Instant::now()
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Arc::default(),
        }
    }

    /// The part of one connection.
    pub(crate) fn connection(&self) -> ConnectionBudget {
        ConnectionBudget {
            all: self.clone(),
            partial: Arc::default(),
            proven: Arc::default(),
        }
    }

    /// Bytes that are reserved.
    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.state().used
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory of one connection's frames.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionBudget {
    all: Budget,
    /// Bytes in incomplete frames.
    partial: Arc<AtomicUsize>,
    /// The largest item that this connection did deliver: so much may be reserved at once.
    proven: Arc<AtomicUsize>,
}

impl ConnectionBudget {
    /// For one frame; it holds nothing yet.
    pub(crate) fn reservation(&self) -> Reservation {
        Reservation {
            id: None,
            budget: self.clone(),
            bytes: 0,
            needed: 0,
            complete: false,
            eviction: Arc::default(),
            retry: None,
        }
    }

    pub(crate) fn proven(&self) -> usize {
        self.proven.load(Ordering::Relaxed)
    }

    /// An item of so many bytes has come.
    pub(crate) fn prove(&self, bytes: usize) {
        self.proven.fetch_max(bytes, Ordering::Relaxed);
    }
}

/// The memory of one frame, given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    /// In the order in which memory was first asked for.
    id: Option<u64>,
    budget: ConnectionBudget,
    bytes: usize,
    needed: usize,
    complete: bool,
    eviction: Arc<Eviction>,
    /// When to look again whether somebody holds memory for too long.
    retry: Option<Delay>,
}

impl Reservation {
    /// Takes `more` bytes, once they are free.
    pub(crate) async fn grow(&mut self, more: usize) -> Result<(), Denied> {
        self.needed += more;
        if self.needed <= self.bytes {
            return Ok(());
        }
        let step = (self.needed - self.bytes).next_multiple_of(STEP);
        // The streams of a connection are read in one task: nobody comes between.
        if self.budget.partial.load(Ordering::Relaxed) + step > MAX_PARTIAL_BYTES {
            return Err(Denied::Connection);
        }
        let result = futures::future::poll_fn(|cx| self.poll_take(step, cx)).await;
        self.retry = None;
        result
    }

    fn poll_take(&mut self, step: usize, cx: &mut Context<'_>) -> Poll<Result<(), Denied>> {
        loop {
            if self.poll_evicted(cx).is_ready() {
                return Poll::Ready(Err(Denied::Evicted));
            }
            let retry = {
                let mut state = self.budget.all.state();
                let id = *self.id.get_or_insert_with(|| {
                    state.next += 1;
                    state.next
                });
                if state.used + step <= self.budget.all.limit || state.used == 0 {
                    state.used += step;
                    state.waiting.remove(&id);
                    let eviction = &self.eviction;
                    state
                        .incomplete
                        .entry(id)
                        .or_insert_with(|| (now(), Arc::clone(eviction)));
                    self.bytes += step;
                    self.budget.partial.fetch_add(step, Ordering::Relaxed);
                    return Poll::Ready(Ok(()));
                }
                state.waiting.insert(id, cx.waker().clone());
                state.evict(id)
            };
            let retry = self.retry.get_or_insert_with(|| Delay::new(retry));
            if retry.poll_unpin(cx).is_pending() {
                return Poll::Pending;
            }
            self.retry = None;
        }
    }

    /// Ready if the frame must be given up.
    pub(crate) fn poll_evicted(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_evicted() {
            return Poll::Ready(());
        }
        self.eviction.reader.register(cx.waker());
        match self.is_evicted() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Whether the frame must be given up.
    pub(crate) fn is_evicted(&self) -> bool {
        self.eviction.ordered.load(Ordering::Acquire)
    }

    /// The frame is complete: it is not counted against the connection any more, nor given up.
    pub(crate) fn complete(&mut self) {
        if let Some(id) = self.id
            && !std::mem::replace(&mut self.complete, true)
        {
            self.budget.partial.fetch_sub(self.bytes, Ordering::Relaxed);
            self.budget.all.state().incomplete.remove(&id);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.complete();
        let Some(id) = self.id else {
            return;
        };
        let mut state = self.budget.all.state();
        state.waiting.remove(&id);
        state.used = state.used.saturating_sub(self.bytes);
        // All of them look again: those that fit go on.
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_values().for_each(Waker::wake);
    }
}

impl State {
    /// Orders the frame that has had its time to give way; when to look again. Older frames than the
    /// asking one have had theirs after [`PATIENCE`], younger ones after twice that: of two that wait
    /// for one another the older one goes.
    fn evict(&mut self, asking: u64) -> Duration {
        let now = now();
        let others = self.incomplete.iter().filter(|(id, (_, eviction))| {
            **id != asking && !eviction.ordered.load(Ordering::Relaxed)
        });
        let due = others
            .map(|(id, (since, eviction))| {
                let patience = if *id < asking { PATIENCE } else { 2 * PATIENCE };
                (*since + patience, eviction)
            })
            .min_by_key(|(at, _)| *at);
        match due {
            Some((at, eviction)) if at <= now => {
                eviction.ordered.store(true, Ordering::Release);
                eviction.reader.wake();
                PATIENCE
            }
            Some((at, _)) => at - now,
            None => PATIENCE,
        }
    }
}
