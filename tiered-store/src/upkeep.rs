//! Garbage collection, capacity and closing, as the writing job carries them out.

use std::{
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{RecvTimeoutError, sync_channel},
    },
    time::Duration,
};

use crate::{
    GcReport, MaintenanceError, commit,
    disk::{
        checkpoint,
        compact::{self, NoRoom},
        log::Log,
    },
    error::WriteFailure,
    state::Shared,
};

/// gc leaves segments alone that are garbage by less than this, in percent: copying them would win almost nothing.
const GC_PERCENT: u64 = 5;

pub(crate) fn gc(shared: &Shared, log: &mut Log) -> Result<GcReport, WriteFailure> {
    let (used, compactions) = (
        shared.counters.used.get(),
        shared.counters.compactions.get(),
    );
    let expired = compact::expire(shared, log);
    // Segments that this run writes have no garbage, so it ends.
    log.settle(shared)?;
    compact::seal_dead(shared, log)?;
    for _ in 0..log.segments.len() {
        if !compact::reclaim_one(shared, log, GC_PERCENT)? {
            break;
        }
    }
    Ok(GcReport {
        expired,
        segments: shared.counters.compactions.get() - compactions,
        freed_bytes: used.saturating_sub(shared.counters.used.get()),
        ..GcReport::default()
    })
}

pub(crate) fn set_capacity(
    shared: &Shared,
    log: &mut Log,
    memory: u64,
    disk: u64,
) -> Result<(), MaintenanceError> {
    // The reserve is an eighth.
    let least = shared.fixed_bytes() / 7 * 8 + 8;
    if disk < least {
        return Err(MaintenanceError::Capacity { asked: disk, least });
    }
    shared.memory.set_capacity(memory);
    shared.capacity.store(disk, Relaxed);
    match compact::make_room(shared, log, 0, 0) {
        // The cold tier takes blocks, and the rest of the room comes back with it.
        Ok(()) | Err(NoRoom::Wait) => Ok(()),
        Err(NoRoom::Full { needed }) => Err(MaintenanceError::Capacity {
            asked: disk,
            least: disk + needed / 7 * 8,
        }),
        Err(NoRoom::Failed(failure)) => Err(failure.into()),
    }
}

pub(crate) fn close(shared: &Shared, log: &mut Log) -> Result<(), WriteFailure> {
    shared.closed.store(true, Relaxed);
    *shared.timer.lock() = None;
    let result = checkpoint::write(shared, log);
    log.active.clear();
    log.compaction = None;
    shared.drop_files();
    *shared.lock.lock() = None;
    result
}

/// How often the job looks after what takes no notice of itself.
const TICK: Duration = Duration::from_secs(5);

/// Wakes the job from time to time, from a thread of its own that ends with the store.
pub(crate) fn start_timer(shared: &Arc<Shared>) {
    let (end, ended) = sync_channel::<()>(0);
    *shared.timer.lock() = Some(end);
    let shared = Arc::downgrade(shared);
    blocking::unblock(move || {
        while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            match shared.upgrade() {
                Some(shared) => commit::tick(&shared),
                None => break,
            }
        }
    })
    .detach();
}
