//! Memory of received blocks, used again. Fresh memory has to be mapped, faulted in and zeroed, which costs a
//! twentieth of what it takes to receive a block, and it is cold.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

/// Bytes that wait to be used again, at most.
const MAX_FREE_BYTES: usize = 4 * 1024 * 1024;
/// Smaller ones come quickly from the allocator.
const MIN_BYTES: usize = 32 * 1024;
/// A buffer may exceed what is needed by the eighth part, because its owner may keep the block for long.
const MAX_WASTE: usize = 8;

/// The buffers of all connections. They are kept only while something is wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buffers(Arc<Mutex<Free>>);

#[derive(Debug, Default)]
struct Free {
    /// The one used last is the last, and goes first: it may still be in a cache.
    buffers: Vec<Vec<u8>>,
    bytes: usize,
    /// Peers from which something is wanted.
    users: usize,
}

impl Buffers {
    fn free(&self) -> MutexGuard<'_, Free> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody's blocks are wanted.
    pub(crate) fn open(&self) {
        self.free().users += 1;
    }

    /// They are not wanted any more. The last one frees the memory.
    pub(crate) fn close(&self) {
        let mut free = self.free();
        free.users = free.users.saturating_sub(1);
        if free.users == 0 {
            free.bytes = 0;
            let buffers = mem::take(&mut free.buffers);
            drop(free);
            drop(buffers);
        }
    }

    /// A buffer of `length` bytes with anything in it.
    pub(crate) fn take(&self, length: usize) -> Vec<u8> {
        if length >= MIN_BYTES
            && let Some(mut buffer) = self.free().take(length)
        {
            buffer.resize(length, 0);
            return buffer;
        }
        // Of fresh pages the system has made sure that they are zero.
        vec![0; length]
    }

    /// Comes back when the last clone of the bytes is dropped.
    pub(crate) fn share(&self, data: Vec<u8>) -> Bytes {
        if data.len() < MIN_BYTES {
            return data.into();
        }
        Bytes::from_owner(Lent {
            data,
            buffers: self.clone(),
        })
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let bytes = buffer.capacity();
        let mut free = self.free();
        if free.users > 0 && free.bytes + bytes <= MAX_FREE_BYTES {
            free.bytes += bytes;
            free.buffers.push(buffer);
        }
    }

    /// Bytes that wait to be used again.
    #[cfg(test)]
    fn free_bytes(&self) -> usize {
        self.free().bytes
    }
}

impl Free {
    fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        let fits = length..=length + length / MAX_WASTE;
        let index = self
            .buffers
            .iter()
            .rposition(|buffer| fits.contains(&buffer.capacity()));
        if index.is_none() {
            // Another size is in use now: the oldest one makes room.
            if self.bytes + length > MAX_FREE_BYTES && !self.buffers.is_empty() {
                self.bytes -= self.buffers.remove(0).capacity();
            }
        }
        let buffer = self.buffers.remove(index?);
        self.bytes -= buffer.capacity();
        Some(buffer)
    }
}

/// The owner of a block's bytes.
struct Lent {
    data: Vec<u8>,
    buffers: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.buffers.give_back(mem::take(&mut self.data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    /// Takes a buffer, and drops its bytes: where it was.
    fn cycle(buffers: &Buffers, length: usize) -> *const u8 {
        let bytes = buffers.share(buffers.take(length));
        assert_eq!(bytes.len(), length);
        bytes.as_ptr()
    }

    #[test]
    fn memory_is_used_again_once_nobody_has_the_block() {
        let buffers = Buffers::default();
        buffers.open();
        let first = buffers.share(buffers.take(256 * KIB));
        let part = first.slice(100..200);
        let at = first.as_ptr();
        drop(first);
        assert_eq!(buffers.free_bytes(), 0);
        drop(part);
        assert_eq!(buffers.free_bytes(), 256 * KIB);
        assert_eq!(cycle(&buffers, 256 * KIB), at);
        // A little less goes into the same buffer, half of it does not.
        assert_eq!(cycle(&buffers, 250 * KIB), at);
        assert_ne!(cycle(&buffers, 128 * KIB), at);
    }

    #[test]
    fn what_is_kept_is_bounded_and_follows_the_sizes_in_use() {
        let buffers = Buffers::default();
        buffers.open();
        let many: Vec<Bytes> = (0..100)
            .map(|_| buffers.share(buffers.take(256 * KIB)))
            .collect();
        drop(many);
        assert_eq!(buffers.free_bytes(), MAX_FREE_BYTES);
        for _ in 0..20 {
            cycle(&buffers, 1024 * KIB);
        }
        let at = cycle(&buffers, 1024 * KIB);
        assert_eq!(cycle(&buffers, 1024 * KIB), at);
        assert!(buffers.free_bytes() <= MAX_FREE_BYTES);
    }

    #[test]
    fn nothing_is_kept_while_nothing_is_wanted() {
        let buffers = Buffers::default();
        buffers.open();
        buffers.open();
        let late = buffers.share(buffers.take(64 * KIB));
        cycle(&buffers, 64 * KIB);
        buffers.close();
        assert_eq!(buffers.free_bytes(), 64 * KIB);
        buffers.close();
        assert_eq!(buffers.free_bytes(), 0);
        drop(late);
        assert_eq!(buffers.free_bytes(), 0);
        buffers.open();
        cycle(&buffers, MIN_BYTES - 1);
        assert_eq!(buffers.free_bytes(), 0);
    }
}
