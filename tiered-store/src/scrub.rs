//! Reading everything: in the order in which it lies on the disk.

use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use futures::{Stream, stream};
use multihash_codetable::{Code, MultihashDigest};

use crate::{
    GetError, MaintenanceError, ScrubReport,
    disk::index::Entry,
    state::{Read, Shared},
};

/// The blocks by their place: 16 bytes each and the key.
fn in_order(shared: &Shared) -> Vec<Entry> {
    let now = shared.vfs.now_ms();
    let mut entries = Vec::with_capacity(shared.index.len());
    shared.index.for_each(|entry| {
        if entry.is_present(now) && !entry.is_cold() {
            entries.push(*entry);
        }
    });
    entries.sort_unstable_by_key(|entry| entry.position().map(|at| (at.segment, at.offset)));
    entries
}

pub(crate) fn scan(
    shared: Arc<Shared>,
) -> impl Stream<Item = Result<(Cid, Bytes), GetError>> + Send + 'static {
    let entries = in_order(&shared).into_iter();
    stream::unfold((shared, entries), |(shared, mut entries)| async move {
        loop {
            let entry = entries.next()?;
            let Some(cid) = shared.kinds.cid(&entry.key(), entry.codec) else {
                continue;
            };
            if shared.is_closed() {
                return Some((Err(GetError::Closed), (shared, Vec::new().into_iter())));
            }
            let reader = shared.clone();
            let read = blocking::unblock(move || reader.read_block(&entry.key(), &cid)).await;
            match read {
                Ok(Read::Here(data, _)) => return Some((Ok((cid, data)), (shared, entries))),
                Ok(Read::Absent | Read::Cold(_)) => {}
                Err(error) => return Some((Err(error), (shared, entries))),
            }
        }
    })
}

pub(crate) fn scrub(shared: &Shared) -> Result<ScrubReport, MaintenanceError> {
    let mut report = ScrubReport::default();
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
                match Code::try_from(cid.hash().code()) {
                    Ok(code) if !hash_is_right(code, &data, &cid) => {
                        // The checksum is right: it was put under a wrong name.
                        shared.mark_damaged(&entry.key(), entry.place());
                        report.corrupt.push(cid);
                    }
                    Ok(_) => {}
                    Err(_) => report.checksum_only += 1,
                }
            }
            Ok(Read::Absent | Read::Cold(_)) => {}
            Err(GetError::Corrupt { cid }) => {
                report.checked += 1;
                report.corrupt.push(cid);
            }
            Err(GetError::Io { source, .. }) => return Err(MaintenanceError::Io { source }),
            Err(_) => return Err(MaintenanceError::Closed),
        }
    }
    Ok(report)
}

/// A multihash may hold a shortened digest.
fn hash_is_right(code: Code, data: &[u8], cid: &Cid) -> bool {
    let expected = cid.hash().digest();
    code.digest(data).digest().get(..expected.len()) == Some(expected)
}
