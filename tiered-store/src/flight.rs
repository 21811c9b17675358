//! One read for all who want the same block at the same time.

use std::{
    hash::{BuildHasher, Hash},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
    ready,
};
use hashbrown::{DefaultHashBuilder, HashMap, hash_map::Entry};
use parking_lot::Mutex;

const SHARDS: usize = 16;

/// Reads under way, by what they read. `T` is the answer that all get.
pub(crate) struct Flights<K, T> {
    shards: [Mutex<HashMap<K, Flight<T>>>; SHARDS],
    hasher: DefaultHashBuilder,
}

struct Flight<T> {
    read: Shared<BoxFuture<'static, T>>,
    waiting: usize,
    number: u64,
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Flights {
            shards: Default::default(),
            hasher: DefaultHashBuilder::default(),
        }
    }
}

impl<K: Copy + Hash + Eq, T: Clone + Send + Sync + 'static> Flights<K, T> {
    /// Joins the read of `key`, or begins it.
    ///
    /// Nobody leads: whoever still waits drives the read, so that those who give up strand nobody. When all have given up it is dropped.
    pub(crate) fn join(
        self: &Arc<Self>,
        key: K,
        begin: impl FnOnce() -> BoxFuture<'static, T>,
    ) -> Joined<K, T> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let mut shard = self.shard(&key).lock();
        let flight = shard.entry(key).or_insert_with(|| Flight {
            read: begin().shared(),
            waiting: 0,
            number: NUMBERS.fetch_add(1, Relaxed),
        });
        flight.waiting += 1;
        Joined {
            flights: self.clone(),
            key,
            number: flight.number,
            read: flight.read.clone(),
            is_over: false,
        }
    }

    fn shard(&self, key: &K) -> &Mutex<HashMap<K, Flight<T>>> {
        let [first, ..] = &self.shards;
        let number = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards.get(number).unwrap_or(first)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

/// The answer to come.
pub(crate) struct Joined<K: Copy + Hash + Eq, T: Clone + Send + Sync + 'static> {
    flights: Arc<Flights<K, T>>,
    key: K,
    number: u64,
    read: Shared<BoxFuture<'static, T>>,
    is_over: bool,
}

impl<K: Copy + Hash + Eq + Unpin, T: Clone + Send + Sync + 'static> Future for Joined<K, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let answer = ready!(self.read.poll_unpin(context));
        self.is_over = true;
        Poll::Ready(answer)
    }
}

impl<K: Copy + Hash + Eq, T: Clone + Send + Sync + 'static> Drop for Joined<K, T> {
    /// The first who leaves with the answer, or the last who leaves without, ends the flight: later readers begin another.
    fn drop(&mut self) {
        let mut shard = self.flights.shard(&self.key).lock();
        let Entry::Occupied(mut flight) = shard.entry(self.key) else {
            return;
        };
        if flight.get().number != self.number {
            return;
        }
        flight.get_mut().waiting -= 1;
        if self.is_over || flight.get().waiting == 0 {
            let ended = flight.remove();
            // Not under the lock: what the read holds may do anything when it is dropped.
            drop(shard);
            drop(ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use futures::{channel::oneshot, executor::block_on, future::join_all};

    use super::*;

    #[test]
    fn a_hundred_readers_share_one_read_and_the_next_begins_another() {
        let (flights, reads) = (Arc::new(Flights::default()), Arc::new(AtomicUsize::new(0)));
        let begin = || {
            let reads = reads.clone();
            async move { reads.fetch_add(1, SeqCst) }.boxed()
        };
        let all: Vec<_> = (0..100).map(|_| flights.join(1u8, begin)).collect();
        assert_eq!(block_on(join_all(all)), vec![0; 100]);
        assert_eq!(flights.len(), 0);
        assert_eq!(block_on(flights.join(1u8, begin)), 1);
        assert_eq!(flights.len(), 0);
    }

    #[test]
    fn readers_who_give_up_strand_nobody() {
        let flights = Arc::new(Flights::default());
        let (send, receive) = oneshot::channel::<u32>();
        let mut first = flights.join(1u8, || receive.map(Result::ok).boxed());
        let mut second = flights.join(1u8, || unreachable!("one read"));
        // The first has polled the read and is woken for it; then it goes.
        assert!(
            first
                .poll_unpin(&mut Context::from_waker(futures::task::noop_waker_ref()))
                .is_pending()
        );
        assert!(
            second
                .poll_unpin(&mut Context::from_waker(futures::task::noop_waker_ref()))
                .is_pending()
        );
        drop(first);
        let waiter = std::thread::spawn(move || block_on(second));
        send.send(7).unwrap();
        assert_eq!(waiter.join().unwrap(), Some(7));
        assert_eq!(flights.len(), 0);
    }

    #[test]
    fn a_read_that_nobody_waits_for_is_dropped() {
        let flights = Arc::new(Flights::default());
        let (send, receive) = oneshot::channel::<u32>();
        let first = flights.join(1u8, || receive.map(Result::ok).boxed());
        let second = flights.join(1u8, || unreachable!("one read"));
        drop(second);
        assert!(!send.is_canceled());
        drop(first);
        assert!(send.is_canceled());
        assert_eq!(flights.len(), 0);
    }
}
