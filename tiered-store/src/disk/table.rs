//! A hash table of 4-byte numbers that is always nearly full: open addressing, and it grows by an eighth at a time.
//!
//! Tables that double are half empty on average where it hurts: at 5 bytes a place (number and tag) they take 5.7 to 11.4 bytes a member,
//! this one 5.7 to 6.5. In return a search for what is not there looks at some thirty tags, which lie together.

/// Places per eight that may be taken.
const LOAD: usize = 7;
const LEAST: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Table {
    /// 0: free. Otherwise some bits of the hash.
    tags: Vec<u8>,
    numbers: Vec<u32>,
    len: usize,
}

fn tag(hash: u64) -> u8 {
    (hash as u8).max(1)
}

impl Table {
    /// Where a search begins: the upper half of the hash, scaled to the number of places, which is no power of two.
    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.tags.len() as u128) >> 64) as usize
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 == self.tags.len() { 0 } else { at + 1 }
    }

    /// The member with this hash that `is` accepts.
    pub(crate) fn find(&self, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        self.position(hash, &mut is)
            .and_then(|at| self.numbers.get(at).copied())
    }

    fn position(&self, hash: u64, is: &mut impl FnMut(u32) -> bool) -> Option<usize> {
        let wanted = tag(hash);
        let mut at = self.home(hash);
        loop {
            // A table has free places; an empty one has none at all and ends here too.
            match *self.tags.get(at)? {
                0 => return None,
                tag if tag == wanted && is(*self.numbers.get(at)?) => return Some(at),
                _ => at = self.next(at),
            }
        }
    }

    /// The member with this hash that `is` accepts. If there is none, `number` becomes a member; then the table must not be full.
    pub(crate) fn find_or_insert(
        &mut self,
        hash: u64,
        number: u32,
        is: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let wanted = tag(hash);
        let mut at = self.home(hash);
        while let (Some(tag), Some(its)) = (self.tags.get_mut(at), self.numbers.get_mut(at)) {
            if *tag == 0 {
                (*tag, *its) = (wanted, number);
                self.len += 1;
                return None;
            }
            if *tag == wanted && is(*its) {
                return Some(*its);
            }
            at = self.next(at);
        }
        None
    }

    /// Brings the places where searches for these hashes begin into the processor's cache, many at a time: one search after the other
    /// waits for each of them.
    pub(crate) fn touch(&self, hashes: impl Iterator<Item = u64>) {
        let touched = hashes.fold(0, |sum: u32, hash| {
            let at = self.home(hash);
            let tag = self.tags.get(at).map_or(0, |tag| u32::from(*tag));
            sum ^ tag ^ self.numbers.get(at).map_or(0, |number| *number)
        });
        std::hint::black_box(touched);
    }

    /// Whether there is no room for one more.
    pub(crate) fn is_full(&self) -> bool {
        (self.len + 1) * 8 > self.tags.len() * LOAD
    }

    /// Empties the table and makes room for an eighth more than it held, or for `least`. Everything has to be inserted again.
    pub(crate) fn clear_and_grow(&mut self, least: usize) {
        let places = (self.tags.len() + self.tags.len() / 8)
            .max(least * 8 / LOAD + 8)
            .max(LEAST);
        // The old one goes first, so that there are never two.
        (self.tags, self.numbers) = (Vec::new(), Vec::new());
        (self.tags, self.numbers) = (vec![0; places], vec![0; places]);
        self.len = 0;
    }

    /// Adds a member that is not in there. The table is not full.
    pub(crate) fn insert(&mut self, hash: u64, number: u32) {
        let mut at = self.home(hash);
        while self.tags.get(at).is_some_and(|tag| *tag != 0) {
            at = self.next(at);
        }
        if let (Some(place), Some(its)) = (self.tags.get_mut(at), self.numbers.get_mut(at)) {
            (*place, *its) = (tag(hash), number);
            self.len += 1;
        }
    }

    /// Removes the member with this hash that `is` accepts. `hash_of` tells the hash of the others, which close the gap.
    pub(crate) fn remove(
        &mut self,
        hash: u64,
        mut is: impl FnMut(u32) -> bool,
        hash_of: impl Fn(u32) -> u64,
    ) -> Option<u32> {
        let mut gap = self.position(hash, &mut is)?;
        let removed = *self.numbers.get(gap)?;
        let places = self.tags.len();
        let mut at = self.next(gap);
        while let (Some(tag), Some(number)) =
            (self.tags.get(at).copied(), self.numbers.get(at).copied())
        {
            if tag == 0 {
                break;
            }
            // It may move into the gap if its search passes there.
            let home = self.home(hash_of(number));
            let distance = |to: usize| (to + places - home) % places;
            if distance(gap) <= distance(at) {
                if let (Some(place), Some(its)) =
                    (self.tags.get_mut(gap), self.numbers.get_mut(gap))
                {
                    (*place, *its) = (tag, number);
                }
                gap = at;
            }
            at = self.next(at);
        }
        if let Some(place) = self.tags.get_mut(gap) {
            *place = 0;
        }
        self.len -= 1;
        Some(removed)
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> usize {
        self.tags.capacity() + self.numbers.capacity() * 4
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Few different hashes, so that searches collide and wrap around.
    fn hash(n: u32, spread: u64) -> u64 {
        (u64::from(n) % spread).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(
            spread in 1u64..300,
            steps in prop::collection::vec((any::<bool>(), 0u32..300), 0..800),
        ) {
            let (mut table, mut model) = (Table::default(), BTreeSet::new());
            for (insert, n) in steps {
                let of = |n| hash(n, spread);
                if insert && model.insert(n) {
                    if table.is_full() {
                        table.clear_and_grow(0);
                        model.iter().filter(|other| **other != n).for_each(|n| table.insert(of(*n), *n));
                    }
                    prop_assert_eq!(table.find_or_insert(of(n), n, |other| other == n), None);
                    prop_assert_eq!(table.find_or_insert(of(n), 300, |other| other == n), Some(n));
                } else if !insert {
                    let removed = table.remove(of(n), |other| other == n, of);
                    prop_assert_eq!(removed, model.remove(&n).then_some(n));
                }
                for n in 0..300 {
                    let found = table.find(of(n), |other| other == n);
                    prop_assert_eq!(found, model.contains(&n).then_some(n));
                }
            }
        }
    }
}
