//! The store for callers that are not async.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use bytes::Bytes;
use cid::Cid;
use futures::{
    StreamExt,
    future::{Either, select},
};
use futures_timer::Delay;

use crate::{
    Config, DeleteError, GcReport, GetError, MaintenanceError, OpenError, PinError, PutError,
    PutOptions, ScrubReport, Stats, Store, ValueError,
};

/// A [`Store`] whose calls block the thread until they are done. Cheap to clone; made by [`Store::blocking`] or
/// [`BlockingStore::open`].
///
/// Not for use inside a future: it would block the executor. Any number of threads may call at once; puts that wait together share a sync
/// like those of futures.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// use anypath_tiered_store::{BlockingStore, Config};
/// use bytes::Bytes;
/// use cid::Cid;
/// use multihash_codetable::{Code, MultihashDigest};
///
/// let store = BlockingStore::open(Config::new(dir.path()))?;
/// let data = Bytes::from_static(b"hello");
/// let cid = Cid::new_v1(0x55, Code::Sha2_256.digest(&data));
/// store.put(cid, data.clone())?;
/// assert_eq!(store.get(&cid)?, Some(data));
/// store.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct BlockingStore(Store);

impl BlockingStore {
    pub(crate) fn new(store: Store) -> Self {
        BlockingStore(store)
    }

    /// See [`Store::open`].
    pub fn open(config: Config) -> Result<BlockingStore, OpenError> {
        block_on(Store::open(config)).map(BlockingStore)
    }

    /// The same store for async callers, with what never blocks: [`has`](Store::has), [`size`](Store::size), [`iter`](Store::iter),
    /// [`pins`](Store::pins), [`pin_sets`](Store::pin_sets), [`is_pinned`](Store::is_pinned).
    pub fn store(&self) -> &Store {
        &self.0
    }

    /// Any operation with a time limit; `None` if it took longer, and then it was dropped (see [`Store`] for what that means).
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # fn f(store: anypath_tiered_store::BlockingStore, cid: cid::Cid) {
    /// let block = store.within(Duration::from_secs(2), |store| async move { store.get(&cid).await });
    /// # }
    /// ```
    pub fn within<F: Future>(
        &self,
        limit: Duration,
        operation: impl FnOnce(Store) -> F,
    ) -> Option<F::Output> {
        let operation = pin!(operation(self.0.clone()));
        match block_on(select(operation, Delay::new(limit))) {
            Either::Left((output, _)) => Some(output),
            Either::Right(_) => None,
        }
    }

    /// See [`Store::put`].
    pub fn put(&self, cid: Cid, data: Bytes) -> Result<(), PutError> {
        block_on(self.0.put(cid, data))
    }

    /// See [`Store::put_with`].
    pub fn put_with(&self, cid: Cid, data: Bytes, options: PutOptions) -> Result<(), PutError> {
        block_on(self.0.put_with(cid, data, options))
    }

    /// See [`Store::put_many`].
    pub fn put_many(&self, blocks: Vec<(Cid, Bytes)>, options: PutOptions) -> Result<(), PutError> {
        block_on(self.0.put_many(blocks, options))
    }

    /// See [`Store::get`]. Memory and disk are read on this thread, each caller for itself.
    pub fn get(&self, cid: &Cid) -> Result<Option<Bytes>, GetError> {
        self.0.get_here(cid)
    }

    /// See [`Store::get_local`].
    pub fn get_local(&self, cid: &Cid) -> Result<Option<Bytes>, GetError> {
        block_on(self.0.get_local(cid))
    }

    /// See [`Store::get_many`].
    pub fn get_many(&self, cids: &[Cid]) -> Vec<Result<Option<Bytes>, GetError>> {
        block_on(self.0.get_many(cids))
    }

    /// See [`Store::has`].
    pub fn has(&self, cid: &Cid) -> bool {
        self.0.has(cid)
    }

    /// See [`Store::size`].
    pub fn size(&self, cid: &Cid) -> Option<u32> {
        self.0.size(cid)
    }

    /// See [`Store::delete`].
    pub fn delete(&self, cid: &Cid) -> Result<bool, DeleteError> {
        block_on(self.0.delete(cid))
    }

    /// See [`Store::pin`].
    pub fn pin(&self, set: &str, cids: &[Cid]) -> Result<(), PinError> {
        block_on(self.0.pin(set, cids))
    }

    /// See [`Store::unpin`].
    pub fn unpin(&self, set: &str, cids: &[Cid]) -> Result<(), PinError> {
        block_on(self.0.unpin(set, cids))
    }

    /// See [`Store::rename_pin_set`].
    pub fn rename_pin_set(&self, from: &str, to: &str) -> Result<(), PinError> {
        block_on(self.0.rename_pin_set(from, to))
    }

    /// See [`Store::drop_pin_set`].
    pub fn drop_pin_set(&self, set: &str) -> Result<(), PinError> {
        block_on(self.0.drop_pin_set(set))
    }

    /// See [`Store::scan`].
    pub fn scan(&self) -> impl Iterator<Item = Result<(Cid, Bytes), GetError>> + Send + use<> {
        let mut blocks = self.0.scan();
        std::iter::from_fn(move || block_on(blocks.next()))
    }

    /// See [`Store::warm`].
    pub fn warm(&self, cids: &[Cid]) -> usize {
        block_on(self.0.warm(cids))
    }

    /// See [`Store::put_value`].
    pub fn put_value(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<(), ValueError> {
        block_on(self.0.put_value(key, value, ttl))
    }

    /// See [`Store::get_value`].
    pub fn get_value(&self, key: &str) -> Result<Option<Bytes>, ValueError> {
        block_on(self.0.get_value(key))
    }

    /// See [`Store::delete_value`].
    pub fn delete_value(&self, key: &str) -> Result<bool, ValueError> {
        block_on(self.0.delete_value(key))
    }

    /// See [`Store::flush`].
    pub fn flush(&self) -> Result<(), MaintenanceError> {
        block_on(self.0.flush())
    }

    /// See [`Store::gc`].
    pub fn gc(&self) -> Result<GcReport, MaintenanceError> {
        block_on(self.0.gc())
    }

    /// See [`Store::scrub`].
    pub fn scrub(&self) -> Result<ScrubReport, MaintenanceError> {
        block_on(self.0.scrub())
    }

    /// See [`Store::set_capacity`].
    pub fn set_capacity(&self, memory: u64, disk: u64) -> Result<(), MaintenanceError> {
        block_on(self.0.set_capacity(memory, disk))
    }

    /// See [`Store::stats`].
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }

    /// See [`Store::close`].
    pub fn close(&self) -> Result<(), MaintenanceError> {
        block_on(self.0.close())
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread. Unlike the one of `futures`, it may be called on a thread that runs an executor.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
