//! A binary heap of slots by rank, lowest first, from which any slot can be taken.

/// Marks a slot that is not in the heap.
const ABSENT: u32 = u32::MAX;

#[derive(Debug, Default)]
pub(super) struct Heap {
    items: Vec<Item>,
    /// Place in `items` by slot.
    places: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Item {
    rank: f32,
    slot: u32,
}

impl Heap {
    pub(super) fn push(&mut self, slot: u32, rank: f32) {
        let slots = slot as usize + 1;
        if self.places.len() < slots {
            self.places.resize(slots, ABSENT);
        }
        self.items.push(Item { rank, slot });
        self.up(self.items.len() - 1);
    }

    /// The slot with the lowest rank, which stays.
    pub(super) fn peek(&self) -> Option<(u32, f32)> {
        self.items.first().map(|item| (item.slot, item.rank))
    }

    pub(super) fn pop(&mut self) -> Option<u32> {
        let (slot, _) = self.peek()?;
        self.remove(slot);
        Some(slot)
    }

    /// The lowest one's rank has risen.
    pub(super) fn raise_top(&mut self, rank: f32) {
        if let Some(item) = self.items.first_mut() {
            item.rank = rank;
            self.down(0);
        }
    }

    /// Takes a slot out, if it is in.
    pub(super) fn remove(&mut self, slot: u32) {
        let Some(place) = self.places.get_mut(slot as usize) else {
            return;
        };
        if *place == ABSENT {
            return;
        }
        let at = std::mem::replace(place, ABSENT) as usize;
        let Some(last) = self.items.pop() else {
            return;
        };
        if let Some(item) = self.items.get_mut(at) {
            *item = last;
            let at = self.up(at);
            self.down(at);
        }
    }

    pub(super) fn lower_all(&mut self, by: f32) {
        for item in &mut self.items {
            item.rank -= by;
        }
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> u64 {
        (self.items.capacity() * size_of::<Item>() + self.places.capacity() * 4) as u64
    }

    fn rank(&self, at: usize) -> Option<f32> {
        self.items.get(at).map(|item| item.rank)
    }

    /// Sets the place of what is at `at`.
    fn note(&mut self, at: usize) {
        if let Some(item) = self.items.get(at)
            && let Some(place) = self.places.get_mut(item.slot as usize)
        {
            *place = u32::try_from(at).unwrap_or(ABSENT);
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.items.swap(a, b);
        self.note(a);
        self.note(b);
    }

    fn up(&mut self, mut at: usize) -> usize {
        while at > 0 && self.rank(at) < self.rank((at - 1) / 2) {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
        self.note(at);
        at
    }

    fn down(&mut self, mut at: usize) {
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            let Some(mut rank) = self.rank(left) else {
                break;
            };
            let mut lowest = left;
            if let Some(other) = self.rank(right).filter(|other| *other < rank) {
                (lowest, rank) = (right, other);
            }
            if self.rank(at).is_none_or(|own| own <= rank) {
                break;
            }
            self.swap(at, lowest);
            at = lowest;
        }
        self.note(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn gives_what_a_sorted_list_gives(steps in prop::collection::vec((0..40u32, -9i8..9, 0..4u8), 1..300)) {
            let mut heap = Heap::default();
            let mut model: Vec<(f32, u32)> = Vec::new();
            for (slot, rank, step) in steps {
                let rank = f32::from(rank);
                let present = model.iter().position(|item| item.1 == slot);
                match (step, present) {
                    (0 | 1, None) => {
                        heap.push(slot, rank);
                        model.push((rank, slot));
                    }
                    (2, _) => {
                        heap.remove(slot);
                        model.retain(|item| item.1 != slot);
                    }
                    (3, _) => {
                        if let Some((top, old)) = heap.peek() {
                            heap.raise_top(old + 1.5);
                            model.retain(|item| item.1 != top);
                            model.push((old + 1.5, top));
                        }
                    }
                    _ => {}
                }
                let lowest = model.iter().map(|item| item.0).min_by(f32::total_cmp);
                prop_assert_eq!(heap.peek().map(|top| top.1), lowest);
            }
            let mut given = 0;
            while let Some(slot) = heap.pop() {
                given += 1;
                let lowest = model.iter().map(|item| item.0).min_by(f32::total_cmp);
                let at = model.iter().position(|item| item.1 == slot).unwrap();
                prop_assert_eq!(Some(model.remove(at).0), lowest);
            }
            prop_assert!(given <= 40 && model.is_empty());
        }
    }
}
