//! A set of numbers that takes two bytes a member where they are rare and a bit a number where they are dense.
//!
//! Numbers with equal upper halves share a chunk: a sorted list of lower halves, or a bit map once that is smaller (the idea of Roaring
//! bitmaps, Chambi, Lemire, Kaser and Godin 2016).

use std::collections::BTreeMap;

/// A bit map of 2^16 bits takes as much as this many lower halves.
const MOST_LISTED: usize = 4096;
const WORDS: usize = 1024;

#[derive(Debug, Default, Clone)]
pub(crate) struct IdSet {
    chunks: BTreeMap<u16, Chunk>,
    len: usize,
}

#[derive(Debug, Clone)]
enum Chunk {
    List(Vec<u16>),
    Bits(Box<[u64; WORDS]>, usize),
}

fn halves(id: u32) -> (u16, u16) {
    ((id >> 16) as u16, id as u16)
}

fn word_and_bit(low: u16) -> (usize, u64) {
    (usize::from(low) / 64, 1 << (low % 64))
}

impl IdSet {
    /// `false`: it was in there.
    pub(crate) fn insert(&mut self, id: u32) -> bool {
        let (high, low) = halves(id);
        let chunk = self
            .chunks
            .entry(high)
            .or_insert_with(|| Chunk::List(Vec::new()));
        let new = chunk.insert(low);
        self.len += usize::from(new);
        new
    }

    /// `false`: it was not in there.
    pub(crate) fn remove(&mut self, id: u32) -> bool {
        let (high, low) = halves(id);
        let Some(chunk) = self.chunks.get_mut(&high) else {
            return false;
        };
        let was_there = chunk.remove(low);
        self.len -= usize::from(was_there);
        if chunk.is_empty() {
            self.chunks.remove(&high);
        }
        was_there
    }

    pub(crate) fn contains(&self, id: u32) -> bool {
        let (high, low) = halves(id);
        self.chunks
            .get(&high)
            .is_some_and(|chunk| chunk.contains(low))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// In rising order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.chunks.iter().flat_map(|(high, chunk)| {
            let high = u32::from(*high) << 16;
            chunk.iter().map(move |low| high | u32::from(low))
        })
    }

    /// Bytes allocated, roughly.
    pub(crate) fn bytes(&self) -> usize {
        let of = |chunk: &Chunk| match chunk {
            Chunk::List(list) => list.capacity() * 2,
            Chunk::Bits(..) => WORDS * 8,
        };
        // A chunk and its share of the tree's nodes.
        self.chunks.values().map(|chunk| of(chunk) + 64).sum()
    }
}

impl Chunk {
    fn insert(&mut self, low: u16) -> bool {
        match self {
            Chunk::List(list) => {
                let Err(at) = list.binary_search(&low) else {
                    return false;
                };
                if list.len() == MOST_LISTED {
                    let mut bits = Box::new([0u64; WORDS]);
                    for low in list.iter().chain([&low]) {
                        let (word, bit) = word_and_bit(*low);
                        if let Some(word) = bits.get_mut(word) {
                            *word |= bit;
                        }
                    }
                    *self = Chunk::Bits(bits, MOST_LISTED + 1);
                    return true;
                }
                if list.len() == list.capacity() {
                    list.reserve_exact(list.len() / 4 + 2);
                }
                list.insert(at, low);
                true
            }
            Chunk::Bits(bits, count) => {
                let (word, bit) = word_and_bit(low);
                let Some(word) = bits.get_mut(word) else {
                    return false;
                };
                let new = *word & bit == 0;
                *word |= bit;
                *count += usize::from(new);
                new
            }
        }
    }

    fn remove(&mut self, low: u16) -> bool {
        match self {
            Chunk::List(list) => match list.binary_search(&low) {
                Ok(at) => {
                    list.remove(at);
                    true
                }
                Err(_) => false,
            },
            Chunk::Bits(bits, count) => {
                let (word, bit) = word_and_bit(low);
                let Some(word) = bits.get_mut(word) else {
                    return false;
                };
                let was_there = *word & bit != 0;
                *word &= !bit;
                *count -= usize::from(was_there);
                // Well below, so that a set at the border does not change its form all the time.
                if *count < MOST_LISTED / 2 {
                    *self = Chunk::List(self.iter().collect());
                }
                was_there
            }
        }
    }

    fn contains(&self, low: u16) -> bool {
        match self {
            Chunk::List(list) => list.binary_search(&low).is_ok(),
            Chunk::Bits(bits, _) => {
                let (word, bit) = word_and_bit(low);
                bits.get(word).is_some_and(|word| word & bit != 0)
            }
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Chunk::List(list) => list.is_empty(),
            Chunk::Bits(_, count) => *count == 0,
        }
    }

    fn iter(&self) -> Box<dyn Iterator<Item = u16> + '_> {
        match self {
            Chunk::List(list) => Box::new(list.iter().copied()),
            Chunk::Bits(bits, _) => Box::new((0..=u16::MAX).filter(|low| {
                let (word, bit) = word_and_bit(*low);
                bits.get(word).is_some_and(|word| word & bit != 0)
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(steps in prop::collection::vec((any::<bool>(), 0u32..300, 0u32..3), 0..400)) {
            let (mut set, mut model) = (IdSet::default(), BTreeSet::new());
            for (insert, low, high) in steps {
                // Whole runs, so that lists become bit maps and lists again.
                for id in (0..40).map(|n| high << 16 | (low * 40 + n)) {
                    if insert {
                        prop_assert_eq!(set.insert(id), model.insert(id));
                    } else {
                        prop_assert_eq!(set.remove(id), model.remove(&id));
                    }
                }
            }
            prop_assert_eq!(set.is_empty(), model.is_empty());
            prop_assert!(set.iter().eq(model.iter().copied()));
            prop_assert!((0..3 << 16).step_by(7).all(|id| set.contains(id) == model.contains(&id)));
        }
    }

    #[test]
    fn a_dense_set_takes_a_bit_a_member_and_a_sparse_one_three_bytes_at_most() {
        let (mut dense, mut sparse) = (IdSet::default(), IdSet::default());
        for n in 0..1_000_000 {
            dense.insert(n);
            sparse.insert(n * 100);
        }
        assert!(dense.bytes() < 1_000_000 / 7, "{}", dense.bytes());
        assert!(sparse.bytes() < 3_000_000, "{}", sparse.bytes());
    }
}
