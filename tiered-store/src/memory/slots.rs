//! Values with stable numbers, allocated in pieces, so that growth neither copies nor doubles them.

const PIECE: usize = 32;

#[derive(Debug)]
pub(super) struct Slots<T> {
    pieces: Vec<Vec<Slot<T>>>,
    /// First free slot.
    free: Option<u32>,
    len: usize,
}

#[derive(Debug)]
enum Slot<T> {
    Used(T),
    Free { next: Option<u32> },
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots {
            pieces: Vec::new(),
            free: None,
            len: 0,
        }
    }
}

impl<T> Slots<T> {
    pub(super) fn get(&self, at: u32) -> Option<&T> {
        match self.slot(at)? {
            Slot::Used(value) => Some(value),
            Slot::Free { .. } => None,
        }
    }

    pub(super) fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        match self.slot_mut(at)? {
            Slot::Used(value) => Some(value),
            Slot::Free { .. } => None,
        }
    }

    /// `None`, and the value lost, beyond 2^32 slots.
    pub(super) fn insert(&mut self, value: T) -> Option<u32> {
        if let Some(at) = self.free {
            let slot = self.slot_mut(at)?;
            let Slot::Free { next } = std::mem::replace(slot, Slot::Used(value)) else {
                return None;
            };
            self.free = next;
            self.len += 1;
            return Some(at);
        }
        if self.pieces.last().is_none_or(|piece| piece.len() == PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        let before = (self.pieces.len() - 1) * PIECE;
        let piece = self.pieces.last_mut()?;
        let at = u32::try_from(before + piece.len()).ok()?;
        piece.push(Slot::Used(value));
        self.len += 1;
        Some(at)
    }

    pub(super) fn remove(&mut self, at: u32) -> Option<T> {
        let next = self.free;
        let slot = self.slot_mut(at)?;
        if matches!(slot, Slot::Free { .. }) {
            return None;
        }
        let Slot::Used(value) = std::mem::replace(slot, Slot::Free { next }) else {
            return None;
        };
        self.free = Some(at);
        self.len -= 1;
        Some(value)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.pieces
            .iter_mut()
            .flatten()
            .filter_map(|slot| match slot {
                Slot::Used(value) => Some(value),
                Slot::Free { .. } => None,
            })
    }

    /// Numbers in use.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        let slots = self.pieces.iter().flatten();
        (0..).zip(slots).filter_map(|(at, slot)| match slot {
            Slot::Used(_) => Some(at),
            Slot::Free { .. } => None,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> u64 {
        let pieces = self.pieces.len() * PIECE * size_of::<Slot<T>>();
        (pieces + self.pieces.capacity() * size_of::<Vec<Slot<T>>>()) as u64
    }

    fn slot(&self, at: u32) -> Option<&Slot<T>> {
        self.pieces
            .get(at as usize / PIECE)?
            .get(at as usize % PIECE)
    }

    fn slot_mut(&mut self, at: u32) -> Option<&mut Slot<T>> {
        self.pieces
            .get_mut(at as usize / PIECE)?
            .get_mut(at as usize % PIECE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_and_free_ones_are_used_again() {
        let mut slots = Slots::default();
        let numbers: Vec<u32> = (0..100).filter_map(|n| slots.insert(n)).collect();
        let bytes = slots.bytes();
        for at in numbers.iter().step_by(2) {
            assert_eq!(slots.remove(*at), Some(*at as i32));
            assert_eq!(slots.remove(*at), None);
        }
        assert_eq!(slots.get(51), Some(&51));
        for n in 100..150 {
            assert!(slots.insert(n).unwrap() < 100);
        }
        assert_eq!((slots.len(), slots.bytes()), (100, bytes));
        assert_eq!(slots.numbers().count(), 100);
    }
}
