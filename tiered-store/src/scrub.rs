//! Reading everything: in the order in which it lies on the disk.

use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use futures::{Stream, stream};

use crate::{
    GetError, MaintenanceError, ScrubReport,
    disk::index::Entry,
    read_through::matches_hash,
    state::{Read, Shared},
    tiers::{self, Found, Mover},
};

/// All blocks by their place: on the disk first, then pack by pack.
fn in_order(shared: &Shared) -> Vec<Entry> {
    let now = shared.vfs.now_ms();
    let mut entries = Vec::with_capacity(shared.index.len());
    shared.index.for_each(|entry| {
        if entry.is_present(now) {
            entries.push(*entry);
        }
    });
    entries.sort_unstable_by_key(|entry| {
        let on_disk = entry.position().map(|at| (at.segment, at.offset));
        (entry.location(), on_disk)
    });
    entries
}

pub(crate) fn scan(
    shared: Arc<Shared>,
    mover: Option<Arc<Mover>>,
) -> impl Stream<Item = Result<(Cid, Bytes), GetError>> + Send + 'static {
    let entries = in_order(&shared).into_iter();
    let state = (shared, mover, entries);
    stream::unfold(state, |(shared, mover, mut entries)| async move {
        loop {
            let entry = entries.next()?;
            let Some(cid) = shared.kinds.cid(&entry.key(), entry.codec) else {
                continue;
            };
            if shared.is_closed() {
                let end = Vec::new().into_iter();
                return Some((Err(GetError::Closed), (shared, mover, end)));
            }
            let found = tiers::read(&shared, mover.as_deref(), entry.key(), cid).await;
            let item = match found {
                Ok(Some(Found::Disk(data, _))) => Ok((cid, data)),
                Ok(Some(Found::Cold(_, _, thawed))) => Ok((cid, thawed.data)),
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            return Some((item, (shared, mover, entries)));
        }
    })
}

/// Reads what is on the disk. Returns what is not, too.
pub(crate) fn scrub(shared: &Shared) -> Result<(ScrubReport, Vec<Entry>), MaintenanceError> {
    let mut report = ScrubReport::default();
    let mut cold = Vec::new();
    for entry in in_order(shared) {
        if shared.is_closed() {
            return Err(MaintenanceError::Closed);
        }
        let Some(cid) = shared.kinds.cid(&entry.key(), entry.codec) else {
            continue;
        };
        match shared.read_block(&entry.key(), &cid) {
            Ok(Read::Here(data, _)) => {
                report.checked += 1;
                report.bytes += data.len() as u64;
                match matches_hash(&cid, &data) {
                    Some(true) => {}
                    Some(false) => {
                        // The checksum is right: it was put under a wrong name.
                        shared.mark_damaged(&entry.key(), entry.place());
                        report.corrupt.push(cid);
                    }
                    None => report.checksum_only += 1,
                }
            }
            Ok(Read::Cold(entry)) => cold.push(entry),
            Ok(Read::Absent) => {}
            Err(GetError::Corrupt { cid }) => {
                report.checked += 1;
                report.corrupt.push(cid);
            }
            Err(GetError::Io { .. }) => report.unreadable += 1,
            Err(_) => return Err(MaintenanceError::Closed),
        }
    }
    Ok((report, cold))
}

/// Reads what is in the cold tier, or was at the beginning.
pub(crate) async fn scrub_cold(
    shared: &Arc<Shared>,
    mover: Option<&Mover>,
    entries: Vec<Entry>,
    report: &mut ScrubReport,
) -> Result<(), MaintenanceError> {
    for entry in entries {
        if shared.is_closed() {
            return Err(MaintenanceError::Closed);
        }
        let key = entry.key();
        let Some(cid) = shared.kinds.cid(&key, entry.codec) else {
            continue;
        };
        let data = match tiers::read(shared, mover, key, cid).await {
            Ok(Some(Found::Disk(data, _))) => data,
            Ok(Some(Found::Cold(_, _, thawed))) => thawed.data,
            Ok(None) => continue,
            Err(GetError::Corrupt { cid }) => {
                report.checked += 1;
                report.corrupt.push(cid);
                continue;
            }
            Err(GetError::ColdUnreachable { .. }) => {
                report.unreachable += 1;
                continue;
            }
            Err(GetError::Io { .. }) => {
                report.unreadable += 1;
                continue;
            }
            Err(_) => return Err(MaintenanceError::Closed),
        };
        report.checked += 1;
        report.bytes += data.len() as u64;
        match blocking::unblock(move || matches_hash(&cid, &data)).await {
            Some(true) => {}
            Some(false) => {
                if let Some(entry) = shared.index.get(&key) {
                    shared.mark_damaged(&key, entry.place());
                }
                report.corrupt.push(cid);
            }
            None => report.checksum_only += 1,
        }
    }
    Ok(())
}
