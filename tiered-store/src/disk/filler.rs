//! Filling the index while the thread that opens the store reads and decodes.
//!
//! Entries are collected by shard: a part of the index that fits the processor's cache takes many at a time. Full batches go to a thread
//! of their own, in order, so that of two entries with one key the later counts and ids do not depend on when threads run.

use std::{
    ops::RangeBounds,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, Scope},
};

use super::index::{self, Entry, EntryId, Index};

/// A batch is full when a shard has so many in it. With their hashes they are 64 bytes each, so that a batch is at most 256 KiB.
const MOST_OF_SHARD: usize = 256;

/// So few do not say yet that there will be many.
const FEW: usize = 16;

/// Shards that the thread that reads fills itself: it has less to do than the other one.
const OWN: usize = 3;

/// Batches that wait or are being put in.
const AHEAD: usize = 3;

/// Puts entries into an index, some of them in a thread of its own.
pub(crate) struct Filler<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    index: &'env Index,
    batch: Batch,
    worker: Option<Worker>,
    /// Ids of those that are in the index, in the order in which they came, if that was asked for.
    ids: Option<Vec<EntryId>>,
    len: usize,
}

impl<'scope, 'env> Filler<'scope, 'env> {
    pub(crate) fn new(scope: &'scope Scope<'scope, 'env>, index: &'env Index) -> Self {
        Filler {
            scope,
            index,
            batch: Batch::default(),
            worker: None,
            ids: None,
            len: index.len(),
        }
    }

    /// From now on the ids are kept, of `capacity` entries or more.
    pub(crate) fn keep_ids(&mut self, capacity: usize) {
        self.ids = Some(Vec::with_capacity(capacity));
    }

    /// What [`Filler::keep_ids`] asked for, of what is settled.
    pub(crate) fn ids(&self) -> &[EntryId] {
        self.ids.as_deref().unwrap_or_default()
    }

    /// They are not needed any more.
    pub(crate) fn drop_ids(&mut self) {
        self.ids = None;
    }

    /// How many entries there are, with those that wait. Some may be counted twice until [`Filler::settle`].
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Takes an entry. `None`: the index is full.
    #[inline]
    pub(crate) fn push(&mut self, entry: Entry) -> Option<()> {
        let (hash, shard) = self.index.hash_and_shard(&entry.key());
        self.len += 1;
        if self.batch.push(hash, shard, entry)? {
            self.send()?;
        }
        Some(())
    }

    /// Waits until everything is in the index. `None`: that is full.
    pub(crate) fn settle(&mut self) -> Option<()> {
        let mut settled = Some(());
        if let Some(worker) = &mut self.worker {
            // All of them, also after one that found no room: nothing is put in after this.
            while worker.under_way > 0 {
                match worker.take() {
                    Some(batch) => number(&mut self.ids, &batch),
                    None => settled = None,
                }
            }
        }
        let inserted = self.insert_here();
        self.len = self.index.len();
        settled.and(inserted)
    }

    /// Has the batch put in, and begins another.
    fn send(&mut self) -> Option<()> {
        if self.worker.is_none() {
            self.worker = Worker::start(self.scope, self.index);
        }
        let Some(worker) = &mut self.worker else {
            return self.insert_here();
        };
        let mut next = Batch::default();
        if worker.under_way == AHEAD {
            next = worker.take()?;
            number(&mut self.ids, &next);
            next.clear();
        }
        // A shard is filled by one thread, so that the order stays.
        self.batch.insert(self.index, ..OWN)?;
        worker.give(std::mem::replace(&mut self.batch, next))
    }

    fn insert_here(&mut self) -> Option<()> {
        let inserted = self.batch.insert(self.index, ..);
        if inserted.is_some() {
            number(&mut self.ids, &self.batch);
        }
        self.batch.clear();
        inserted
    }
}

fn number(ids: &mut Option<Vec<EntryId>>, batch: &Batch) {
    if let Some(ids) = ids {
        ids.extend(batch.ids_in_order());
    }
}

/// A thread that inserts.
struct Worker {
    batches: SyncSender<Batch>,
    /// They come back with their ids; `None` if the index is full.
    inserted: Receiver<Option<Batch>>,
    under_way: usize,
}

impl Worker {
    /// `None`: the system has no thread for it.
    fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        index: &'env Index,
    ) -> Option<Worker> {
        let (batches, waiting) = sync_channel::<Batch>(AHEAD);
        let (answers, inserted) = sync_channel(AHEAD);
        let work = move || {
            for mut batch in waiting {
                let answer = batch.insert(index, OWN..).map(|()| batch);
                if answers.send(answer).is_err() {
                    // Opening failed.
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("anypath-store-fill".into());
        thread.spawn_scoped(scope, work).ok()?;
        Some(Worker {
            batches,
            inserted,
            under_way: 0,
        })
    }

    fn give(&mut self, batch: Batch) -> Option<()> {
        self.under_way += 1;
        self.batches.send(batch).ok()
    }

    /// The one that was given first.
    fn take(&mut self) -> Option<Batch> {
        self.under_way = self.under_way.saturating_sub(1);
        self.inserted.recv().ok()?
    }
}

/// Entries that enter the index together.
#[derive(Default)]
struct Batch {
    /// With their hashes.
    shards: [Vec<(u64, Entry)>; index::SHARDS],
    /// The shard of each, in the order in which they came.
    order: Vec<u8>,
    /// Their ids once they are in the index, shard by shard.
    ids: Vec<EntryId>,
}

impl Batch {
    /// Whether it is full now.
    #[inline]
    fn push(&mut self, hash: u64, number: usize, entry: Entry) -> Option<bool> {
        let shard = self.shards.get_mut(number)?;
        if shard.len() == FEW {
            shard.reserve_exact(MOST_OF_SHARD - FEW);
        }
        shard.push((hash, entry));
        self.order.push(u8::try_from(number).ok()?);
        Some(shard.len() == MOST_OF_SHARD)
    }

    /// Puts those of some shards into the index, after those of shards before them. `None`: that is full.
    fn insert(&mut self, index: &Index, shards: impl RangeBounds<usize>) -> Option<()> {
        self.ids.reserve(self.order.len() - self.ids.len());
        for (number, shard) in self.shards.iter().enumerate() {
            if shards.contains(&number) && !shard.is_empty() {
                index.insert_all(number, shard, &mut self.ids)?;
            }
        }
        Some(())
    }

    fn ids_in_order(&self) -> impl Iterator<Item = EntryId> {
        let mut next = [0; index::SHARDS];
        let mut end = 0;
        for (next, shard) in next.iter_mut().zip(&self.shards) {
            *next = end;
            end += shard.len();
        }
        self.order.iter().filter_map(move |number| {
            let next = next.get_mut(usize::from(*number))?;
            *next += 1;
            self.ids.get(*next - 1).copied()
        })
    }

    fn clear(&mut self) {
        self.shards.iter_mut().for_each(Vec::clear);
        self.order.clear();
        self.ids.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{disk::log::Position, key::Key};

    fn entry(n: u32, offset: u32) -> Entry {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&n.to_le_bytes());
        let at = Position { segment: 1, offset };
        Entry::new(Key { digest, hash: 1 }, 1, at, 76, 10, 0, 0.0)
    }

    #[test]
    fn ids_come_in_the_order_of_entries_and_the_last_of_two_with_one_key_counts() {
        const COUNT: u32 = 50_000;
        // Many batches, and keys that come again in the same batch and in a later one.
        let keys: Vec<u32> = (0..COUNT)
            .map(|n| if n % 5 == 4 { n - 3 } else { n })
            .map(|n| if n % 1000 == 7 { 7 } else { n })
            .collect();
        let index = Index::default();
        let ids = thread::scope(|scope| {
            let mut filler = Filler::new(scope, &index);
            filler.keep_ids(0);
            for (n, key) in (0..).zip(&keys) {
                filler.push(entry(*key, n)).unwrap();
                if n == 12_345 {
                    filler.settle().unwrap();
                    assert_eq!(filler.ids().len(), 12_346);
                }
            }
            filler.settle().unwrap();
            assert_eq!(filler.len(), index.len());
            filler.ids().to_vec()
        });
        assert_eq!(ids.len(), keys.len());
        let mut last = std::collections::BTreeMap::new();
        for (n, (key, id)) in (0..).zip(keys.iter().zip(&ids)) {
            assert_eq!(index.by_id(*id).unwrap().key(), entry(*key, 0).key());
            last.insert(key, n);
        }
        assert_eq!(index.len(), last.len());
        for (key, n) in last {
            let found = index.get(&entry(*key, 0).key()).unwrap();
            assert_eq!(found.position().unwrap().offset, n, "{key}");
        }
    }

    #[test]
    fn ids_do_not_depend_on_when_threads_run() {
        let index = Index::default();
        // Beside, batch after batch, and then each on its own: what is there keeps its id.
        let fill = |at_once: bool| {
            thread::scope(|scope| {
                let mut filler = Filler::new(scope, &index);
                filler.keep_ids(0);
                for n in 0..20_000 {
                    filler.push(entry(n, 1)).unwrap();
                    if at_once {
                        filler.settle().unwrap();
                    }
                }
                filler.settle().unwrap();
                filler.ids().to_vec()
            })
        };
        let beside = fill(false);
        assert_eq!(beside, fill(true));
        // Slots of a shard in the order in which its entries came.
        let mut next = [0; index::SHARDS];
        for id in beside {
            let (shard, slot) = id.shard_and_slot();
            assert_eq!(slot, next[shard]);
            next[shard] += 1;
        }
    }
}
