//! The cold tier as the rest of the store sees it: blocks in, blocks out, packs come and go.

use std::{collections::BTreeMap, io, sync::Arc};

use bytes::Bytes;
use cid::Cid;
use parking_lot::Mutex;

use super::{
    ColdConfig, Location,
    bucket::{Bucket, BucketError, Cause},
    frame::{self, Coder, Frame, FrameError},
    pack::{self, Builder, Item, Pack, PackError},
};
use crate::{MAX_BLOCK_BYTES, state::Counter};

/// Numbers of packs begin with the seconds since this one in 2023, so that none is used twice even when the last one is gone.
const EPOCH_S: u64 = 1_700_000_000;

/// Names that are taken before writing a pack is given up: somebody else writes here.
const NAMES: u32 = 16;

/// Times that a block is read before it counts as lost.
const READS: usize = 2;

/// Read from the end of a pack in the hope that its index fits.
const INDEX_GUESS: u64 = 64 * 1024;

/// Why a block could not be had from the cold tier.
#[derive(Debug, Clone)]
pub(crate) enum ColdError {
    /// Nothing can be said of the block: the tier did not answer, or this is another one.
    Bucket(BucketError),
    /// The frame is damaged, or the pack that had it is gone.
    Lost(Cause),
}

/// A block out of the cold tier.
#[derive(Debug, Clone)]
pub(crate) struct Thawed {
    pub(crate) data: Bytes,
    /// Class and importance as in a record of the log.
    pub(crate) class: u8,
}

/// What happened since the store was opened.
#[derive(Debug, Default)]
pub(crate) struct ColdCounters {
    pub(crate) hits: Counter,
    pub(crate) promotions: Counter,
    pub(crate) demotions: Counter,
    pub(crate) evictions: Counter,
    pub(crate) failures: Counter,
    pub(crate) packs_written: Counter,
    pub(crate) packs_removed: Counter,
    pub(crate) repacks: Counter,
    pub(crate) orphans: Counter,
    /// Bytes of blocks before compression, and of the frames that they became.
    pub(crate) raw_bytes: Counter,
    pub(crate) frame_bytes: Counter,
}

pub(crate) struct Cold {
    pub(crate) bucket: Bucket,
    pub(crate) config: ColdConfig,
    pub(crate) counters: ColdCounters,
    objects: Mutex<Objects>,
}

#[derive(Default)]
struct Objects {
    /// Bytes of the packs that are there, as far as is known.
    sizes: BTreeMap<u32, u64>,
    /// The highest number given.
    last: u32,
    was_listed: bool,
}

impl Cold {
    pub(crate) fn new(config: ColdConfig, bucket: Bucket) -> Cold {
        Cold {
            bucket,
            config,
            counters: ColdCounters::default(),
            objects: Mutex::default(),
        }
    }

    /// Reads a block with one request. `name` is the CID under which it was stored.
    pub(crate) async fn read(
        &self,
        at: Location,
        len: u32,
        name: &Cid,
    ) -> Result<Thawed, ColdError> {
        let key = name.to_bytes();
        let head = (frame::HEADER + key.len()) as u64;
        let start = u64::from(at.offset);
        let end = start + head + at.most_stored(len);
        let mut wrong = FrameError::Short;
        // Once more if a bit flipped on the way: the object may be as it was.
        for _ in 0..READS {
            let bytes = match self.bucket.get(at.pack, start..end).await {
                Ok(bytes) => bytes,
                Err(error) => return Err(self.explain(error).await),
            };
            match thaw(&bytes, at.pack, len, &key) {
                Ok(thawed) => return Ok(thawed),
                Err(error) => wrong = error,
            }
        }
        Err(ColdError::Lost(Arc::new(wrong)))
    }

    /// Reads a part of a pack.
    pub(crate) async fn pieces(
        &self,
        pack: u32,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes, ColdError> {
        match self.bucket.get(pack, range).await {
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// A pack that is missing is lost only where this is the right bucket.
    async fn explain(&self, error: BucketError) -> ColdError {
        match &error {
            BucketError::Missing(cause) => match self.bucket.is_marked().await {
                Ok(true) => ColdError::Lost(cause.clone()),
                Ok(false) => ColdError::Bucket(error),
                Err(other) => ColdError::Bucket(other),
            },
            _ => ColdError::Bucket(error),
        }
    }

    /// The next pack to write. `now_ms` since 1970.
    pub(crate) fn next_number(&self, now_ms: u64) -> u32 {
        let mut objects = self.objects.lock();
        let by_time = (now_ms / 1000).saturating_sub(EPOCH_S);
        let by_time = u32::try_from(by_time).unwrap_or(u32::MAX);
        objects.last = by_time.max(objects.last.saturating_add(1));
        objects.last
    }

    /// Packs that the index knows: their numbers are not given again.
    pub(crate) fn knows(&self, pack: u32) {
        let mut objects = self.objects.lock();
        objects.last = objects.last.max(pack);
    }

    pub(crate) fn builder(&self, now_ms: u64) -> io::Result<PackBuilder> {
        let number = self.next_number(now_ms);
        Ok(PackBuilder {
            number,
            coder: Coder::new(self.config.compression_level)?,
            builder: Builder::new(number),
            raw_bytes: 0,
        })
    }

    /// Writes a pack and reads it back, where the bucket is marked: durable and right when it returns. The number may have changed if the name was taken.
    pub(crate) async fn write(
        &self,
        filled: PackBuilder,
        now_ms: u64,
    ) -> Result<Written, BucketError> {
        let (mut number, raw_bytes) = (filled.number, filled.raw_bytes);
        let mut pack = filled.builder.finish();
        for _ in 0..NAMES {
            match self.bucket.put(number, pack.parts.clone()).await {
                Ok(()) => {}
                // What a request left that seemed to have failed, or of another store. It is swept up as an orphan.
                Err(BucketError::Exists) => {
                    number = self.next_number(now_ms);
                    pack = pack
                        .renumbered(number)
                        .map_err(|error| BucketError::Damaged(Arc::new(error)))?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let crc = pack
                .parts
                .iter()
                .fold(0, |crc, part| crc32c::crc32c_append(crc, part));
            self.objects.lock().sizes.insert(number, pack.len);
            self.bucket.verify(number, pack.len, crc).await?;
            self.counters.packs_written.add(1);
            self.counters.raw_bytes.add(raw_bytes);
            self.counters
                .frame_bytes
                .add(pack.items.iter().map(Item::frame_len).sum());
            return Ok(Written {
                pack: number,
                items: pack.items,
            });
        }
        Err(BucketError::Exists)
    }

    /// Removes a pack that nothing points to.
    pub(crate) async fn remove(&self, pack: u32) -> Result<(), BucketError> {
        self.bucket.delete(pack).await?;
        self.objects.lock().sizes.remove(&pack);
        self.counters.packs_removed.add(1);
        Ok(())
    }

    /// Looks what is there. Returns the packs with their bytes.
    pub(crate) async fn list(&self) -> Result<Vec<(u32, u64)>, BucketError> {
        let packs = self.bucket.list().await?;
        let mut objects = self.objects.lock();
        objects.sizes = packs.iter().copied().collect();
        objects.was_listed = true;
        let highest = packs.iter().map(|(pack, _)| *pack).max();
        objects.last = objects.last.max(highest.unwrap_or(0));
        Ok(packs)
    }

    pub(crate) fn was_listed(&self) -> bool {
        self.objects.lock().was_listed
    }

    /// Bytes of all packs that are known to be there.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.objects.lock().sizes.values().sum()
    }

    /// The packs that are known to be there, with their bytes.
    pub(crate) fn sizes(&self) -> BTreeMap<u32, u64> {
        self.objects.lock().sizes.clone()
    }

    /// What a pack's own index lists, with one request or two.
    pub(crate) async fn index(&self, pack: u32) -> Result<Vec<Item>, ColdError> {
        let (end, size) = match self.bucket.get_end(pack, INDEX_GUESS).await {
            Ok(end) => end,
            Err(error) => return Err(self.explain(error).await),
        };
        let lost = |error: PackError| ColdError::Lost(Arc::new(error));
        let trailer = pack::Trailer::parse(&end, pack, size).map_err(lost)?;
        let needed = pack::TRAILER as u64 + u64::from(trailer.index_len);
        let index = match (end.len() as u64).checked_sub(needed) {
            Some(skip) => {
                let skip = usize::try_from(skip).unwrap_or(usize::MAX);
                end.slice(skip..end.len() - pack::TRAILER)
            }
            None => {
                let start = u64::from(trailer.index_offset);
                let range = start..start + u64::from(trailer.index_len);
                self.bucket
                    .get(pack, range)
                    .await
                    .map_err(ColdError::Bucket)?
            }
        };
        trailer.items(&index).map_err(lost)
    }
}

fn thaw(bytes: &[u8], pack: u32, len: u32, key: &[u8]) -> Result<Thawed, FrameError> {
    let frame = Frame::parse(bytes, pack)?;
    if frame.key != key || frame.header.len != len {
        return Err(FrameError::Misplaced);
    }
    Ok(Thawed {
        // Whatever is stored now, larger ones may be there from before.
        data: frame.block(MAX_BLOCK_BYTES)?,
        class: frame.header.class,
    })
}

/// A pack that is being filled.
pub(crate) struct PackBuilder {
    number: u32,
    coder: Coder,
    builder: Builder,
    raw_bytes: u64,
}

impl PackBuilder {
    /// Bytes of the object so far.
    pub(crate) fn len(&self) -> u64 {
        self.builder.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.builder.is_empty()
    }

    /// Adds a block. `false`: the pack is full, the block was not added.
    pub(crate) fn push(
        &mut self,
        name: &Cid,
        class: u8,
        expiry_ms: u64,
        block: &[u8],
    ) -> io::Result<bool> {
        let key = name.to_bytes();
        let frame = self
            .coder
            .frame(self.number, &key, class, expiry_ms, block)?;
        let added = self.builder.push(frame).map_err(io::Error::other)?;
        if added {
            self.raw_bytes += block.len() as u64;
        }
        Ok(added)
    }

    /// Adds a frame of another pack as it is. `false`: the pack is full.
    pub(crate) fn push_frame(&mut self, frame: &Frame<'_>) -> io::Result<bool> {
        let bytes = frame.moved_to(self.number);
        self.builder.push(bytes).map_err(io::Error::other)
    }
}

/// A pack that is durable and was read back.
pub(crate) struct Written {
    pub(crate) pack: u32,
    /// Sorted by CID.
    pub(crate) items: Vec<Item>,
}

impl Written {
    /// Where a block of it is.
    pub(crate) fn location(&self, name: &Cid) -> Option<Location> {
        let key = name.to_bytes();
        let at = self
            .items
            .binary_search_by(|item| item.key.as_slice().cmp(&key))
            .ok()?;
        Some(Location::of(self.pack, self.items.get(at)?))
    }
}

impl Location {
    /// Where the block of an item is.
    pub(crate) fn of(pack: u32, item: &Item) -> Location {
        // Rounded up, so that the bound holds; what is stored is never more than the block.
        let parts = (u64::from(item.stored) * 256).div_ceil(u64::from(item.len.max(1)));
        Location {
            pack,
            offset: item.offset,
            bound: u8::try_from(parts.saturating_sub(1)).unwrap_or(u8::MAX),
        }
    }

    /// Bytes of the whole frame, of a block with a CID of the usual 36 bytes.
    pub(crate) fn usual_frame(&self, len: u32) -> u64 {
        frame::HEADER as u64 + 36 + self.most_stored(len)
    }

    /// Bytes of the whole frame at most. A CID has 104 bytes at most.
    pub(crate) fn most_frame(&self, len: u32) -> u64 {
        frame::HEADER as u64 + 104 + self.most_stored(len)
    }

    /// Bytes in the frame at most, of a block of `len` bytes.
    pub(crate) fn most_stored(&self, len: u32) -> u64 {
        (u64::from(len) * (u64::from(self.bound) + 1)).div_ceil(256)
    }
}

impl Pack {
    /// The same pack under another number.
    fn renumbered(&self, number: u32) -> Result<Pack, FrameError> {
        let mut builder = Builder::new(number);
        let frames = self.parts.len().saturating_sub(2);
        for part in self.parts.iter().skip(1).take(frames) {
            let frame = Frame::parse_own(part)?;
            builder.push(frame.moved_to(number))?;
        }
        Ok(builder.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_holds_and_reads_a_256th_too_much_at_most() {
        for len in [0u32, 1, 2, 100, 255, 256, 257, 4096, 262_144, 4 << 20] {
            for part in 0..=64u64 {
                let stored = (u64::from(len) * part / 64) as u32;
                let item = Item {
                    offset: 9,
                    stored,
                    len,
                    expiry_ms: 0,
                    class: 0,
                    key: Vec::new(),
                };
                let most = Location::of(1, &item).most_stored(len);
                assert!(most >= u64::from(stored), "{stored} of {len}");
                assert!(
                    most <= u64::from(stored) + u64::from(len) / 256 + 1,
                    "{stored} of {len}: {most}"
                );
            }
        }
    }
}
