//! Records that do not count although the log may hold them: their sync failed, and their writers were told so.
//!
//! They stand in a small file of their own, as they have to be known before the log is read: count 4, then segment 4 (0 for any), first
//! seq 8, last seq 8 for each range, crc 4 at the end. The file is replaced as a whole.

use std::io::{self, IoSlice};

use super::record::Fields;
use crate::{state::Shared, vfs::Vfs};

pub(crate) const FILE: &str = "aborts";
pub(crate) const TEMPORARY: &str = "aborts.tmp";

/// Seqs from `first` to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    /// The segment that they lie in; 0 for any.
    pub(crate) segment: u32,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Range {
    pub(crate) fn covers(&self, segment: u32, seq: u64) -> bool {
        (self.segment == 0 || self.segment == segment) && (self.first..=self.last).contains(&seq)
    }
}

pub(crate) fn write(shared: &Shared, ranges: &[Range]) -> io::Result<()> {
    let mut bytes = u32::try_from(ranges.len())
        .unwrap_or(u32::MAX)
        .to_le_bytes()
        .to_vec();
    for range in ranges {
        bytes.extend_from_slice(&range.segment.to_le_bytes());
        bytes.extend_from_slice(&range.first.to_le_bytes());
        bytes.extend_from_slice(&range.last.to_le_bytes());
    }
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    let temporary = shared.dir.join(TEMPORARY);
    let replace = || {
        let file = shared.vfs.create(&temporary)?;
        file.write_all_at(0, &[IoSlice::new(&bytes)])?;
        file.sync_data()?;
        shared.vfs.rename(&temporary, &shared.dir.join(FILE))?;
        shared.vfs.sync_dir(&shared.dir)
    };
    shared.counters.syncs.add(2);
    replace().inspect_err(|_| drop(shared.vfs.remove(&temporary)))
}

/// `None`: the file is damaged.
pub(crate) fn parse(bytes: &[u8]) -> Option<Vec<Range>> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut fields = Fields(body);
    let count = fields.u32()?;
    let mut ranges = Vec::new();
    while !fields.0.is_empty() {
        ranges.push(Range {
            segment: fields.u32()?,
            first: fields.u64()?,
            last: fields.u64()?,
        });
    }
    (ranges.len() == count as usize).then_some(ranges)
}

pub(crate) fn read(vfs: &dyn Vfs, dir: &std::path::Path) -> io::Result<Option<Vec<Range>>> {
    let file = vfs.open(&dir.join(FILE))?;
    let mut bytes = vec![0; usize::try_from(file.len()?.min(1 << 24)).unwrap_or(0)];
    file.read_exact_at(0, &mut bytes)?;
    Ok(parse(&bytes))
}
