//! Buffers that connections hold while something is on its way. Between bursts they lie here, so that thousands of idle connections cost
//! nothing, and busy ones no fresh memory.

use std::{
    mem,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

use super::stream::{READ_BUFFER, WRITE_BUFFER};

/// Buffers of each size that lie ready at most: 3 MiB in all. Connections that are busy at once may hold more.
const MAX_SPARE: usize = 16;

/// What the connections of a node share.
#[derive(Clone)]
pub(super) struct Pools {
    pub(super) read: Arc<Pool>,
    pub(super) write: Arc<Pool>,
}

impl Default for Pools {
    fn default() -> Self {
        Self {
            read: Arc::new(Pool::new(READ_BUFFER)),
            write: Arc::new(Pool::new(WRITE_BUFFER)),
        }
    }
}

/// Buffers of one size.
pub(super) struct Pool {
    size: usize,
    /// The one used last is the last, and goes first: it may still be in a cache.
    spare: Mutex<Vec<Box<[u8]>>>,
}

impl Pool {
    fn new(size: usize) -> Self {
        Self {
            size,
            spare: Mutex::default(),
        }
    }

    /// A buffer with anything in it.
    pub(super) fn take(self: &Arc<Self>) -> Buffer {
        let spare = self.spare().pop();
        Buffer {
            bytes: spare.unwrap_or_else(|| vec![0; self.size].into_boxed_slice()),
            pool: self.clone(),
        }
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<Box<[u8]>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.spare().len()
    }
}

/// Comes back when it is dropped.
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    pool: Arc<Pool>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = mem::take(&mut self.bytes);
        let mut spare = self.pool.spare();
        if spare.len() < MAX_SPARE {
            spare.push(bytes);
        }
    }
}
