//! Where the entries of a shard of the index lie. An entry never moves.

use super::index::Entry;

/// Entries of a piece.
const PIECE: usize = 256;

/// What is known to come lies in one piece; after that it grows in small ones, so that growth neither copies nor doubles.
#[derive(Default)]
pub(super) struct Slots {
    first: Vec<Entry>,
    /// Places of the first piece.
    of_first: usize,
    pieces: Vec<Vec<Entry>>,
}

impl Slots {
    /// Says how many entries will come, if none has come yet. Memory that none of them uses is not touched.
    pub(super) fn reserve(&mut self, entries: usize) {
        if self.first.is_empty() && self.pieces.is_empty() {
            self.first = Vec::with_capacity(entries);
            self.of_first = entries;
        }
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Entry> {
        match (slot as usize).checked_sub(self.of_first) {
            None => self.first.get(slot as usize),
            Some(at) => self.pieces.get(at / PIECE)?.get(at % PIECE),
        }
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        match (slot as usize).checked_sub(self.of_first) {
            None => self.first.get_mut(slot as usize),
            Some(at) => self.pieces.get_mut(at / PIECE)?.get_mut(at % PIECE),
        }
    }

    /// How many slots there are, free ones as well. The next entry gets this number.
    pub(super) fn len(&self) -> usize {
        let of_last = self.pieces.last().map_or(PIECE, Vec::len);
        self.first.len() + (self.pieces.len() * PIECE + of_last).saturating_sub(PIECE)
    }

    pub(super) fn push(&mut self, entry: Entry) {
        if self.first.len() < self.of_first {
            self.first.push(entry);
            return;
        }
        match self.pieces.last_mut().filter(|piece| piece.len() < PIECE) {
            Some(piece) => piece.push(entry),
            None => {
                let mut piece = Vec::with_capacity(PIECE);
                piece.push(entry);
                self.pieces.push(piece);
            }
        }
    }

    /// All of them, in the order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.first.iter().chain(self.pieces.iter().flatten())
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        let pieces = self.pieces.iter_mut().flatten();
        self.first.iter_mut().chain(pieces)
    }

    /// Bytes allocated and used.
    pub(super) fn bytes(&self) -> usize {
        (self.first.len() + self.pieces.len() * PIECE) * size_of::<Entry>()
            + self.pieces.capacity() * size_of::<Vec<Entry>>()
    }
}
