//! Large buffers that are used again.
//!
//! Allocators give large pieces back late, and threads that take turns at allocating them leave holes in an arena each (measured with
//! glibc: three times the tier's bytes).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

/// Buffers from this size on are used again.
pub(super) const LEAST: usize = 64 * 1024;
/// A buffer is larger than what was asked for by at most this: a block alone and its whole record get equal buffers.
pub(super) const SLACK: usize = 8 * 1024;
/// At most so many are kept.
const MOST: usize = 64;

/// The part of the memory tier that spares may take.
pub(super) const SHARE: u64 = 32;

#[derive(Debug, Default)]
pub(super) struct Spares {
    buffers: Mutex<Vec<BytesMut>>,
    limit: AtomicU64,
}

impl Spares {
    /// `capacity` of the whole tier, in bytes.
    pub(super) fn set_capacity(&self, capacity: u64) {
        self.limit.store(capacity / SHARE, Relaxed);
        self.buffers.lock().clear();
    }

    /// An empty buffer for `len` bytes, a used one if there is one.
    pub(super) fn buffer(&self, len: usize) -> BytesMut {
        if len < LEAST {
            return BytesMut::with_capacity(len);
        }
        let fits = |spare: &mut BytesMut| {
            spare.try_reclaim(len) && spare.capacity() <= len.saturating_add(SLACK)
        };
        let mut buffers = self.buffers.lock();
        if let Some(at) = buffers.iter_mut().position(fits) {
            return buffers.swap_remove(at);
        }
        drop(buffers);
        BytesMut::with_capacity((len + 256).next_multiple_of(4096))
    }

    /// Keeps the buffer of an evicted block, unless somebody still reads it.
    pub(super) fn keep(&self, data: Bytes) {
        if data.len() < LEAST {
            return;
        }
        let Ok(mut buffer) = data.try_into_mut() else {
            return;
        };
        buffer.clear();
        let mut buffers = self.buffers.lock();
        let bytes = bytes_of(&buffers) + size_of_one(&buffer);
        if buffers.len() < MOST && bytes <= self.limit.load(Relaxed) {
            buffers.push(buffer);
        }
    }

    /// Bytes allocated, at most.
    pub(super) fn bytes(&self) -> u64 {
        bytes_of(&self.buffers.lock())
    }
}

/// What lies before the block in its buffer comes back with `try_reclaim`.
fn size_of_one(buffer: &BytesMut) -> u64 {
    (buffer.capacity() + SLACK) as u64
}

fn bytes_of(buffers: &[BytesMut]) -> u64 {
    buffers.iter().map(size_of_one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_buffer_comes_back_and_pins_little_more_than_was_asked_for() {
        let spares = Spares::default();
        spares.set_capacity(64 << 20);
        let mut buffer = spares.buffer(256 * 1024);
        buffer.resize(256 * 1024, 7);
        let at = buffer.as_ptr();
        spares.keep(buffer.freeze());
        assert!(spares.buffer(1024 * 1024).capacity() >= 1024 * 1024);
        assert_ne!(spares.buffer(70 * 1024).as_ptr(), at, "far too large");
        let again = spares.buffer(256 * 1024);
        assert_eq!(again.as_ptr(), at);
        assert!(again.is_empty() && again.capacity() <= 256 * 1024 + SLACK);
    }

    #[test]
    fn spares_never_take_more_than_their_share() {
        let spares = Spares::default();
        spares.set_capacity(32 << 20);
        for _ in 0..100 {
            spares.keep(Bytes::from(vec![0; 100 * 1024]));
        }
        assert!(spares.bytes() <= 1 << 20 && spares.bytes() > 800 * 1024);
    }
}
