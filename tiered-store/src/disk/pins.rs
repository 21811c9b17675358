//! Named pin sets: which blocks must stay.

use std::collections::BTreeMap;

use super::{
    id_set::IdSet,
    index::{EntryId, Index},
};
use crate::key::Key;

/// Members are entry ids: two bytes each, or a bit where a set has most blocks.
#[derive(Default)]
pub(crate) struct Pins {
    sets: BTreeMap<String, IdSet>,
}

impl Pins {
    pub(crate) fn names(&self) -> Vec<String> {
        self.sets.keys().cloned().collect()
    }

    pub(crate) fn sets(&self) -> &BTreeMap<String, IdSet> {
        &self.sets
    }

    pub(crate) fn len(&self) -> usize {
        self.sets.len()
    }

    pub(crate) fn contains_set(&self, set: &str) -> bool {
        self.sets.contains_key(set)
    }

    /// The members in order of their ids.
    pub(crate) fn members(&self, set: &str) -> Vec<EntryId> {
        let members = self.sets.get(set).into_iter().flat_map(IdSet::iter);
        members.map(EntryId).collect()
    }

    pub(crate) fn is_member(&self, set: &str, id: EntryId) -> bool {
        self.sets
            .get(set)
            .is_some_and(|members| members.contains(id.0))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.sets
            .iter()
            .map(|(name, members)| (name.len() + 64 + members.bytes()) as u64)
            .sum()
    }

    /// The same as [`Pins::pin`], by id; while opening.
    pub(crate) fn pin_id(&mut self, index: &Index, set: &str, id: EntryId) {
        let members = match self.sets.get_mut(set) {
            Some(members) => members,
            None => self.sets.entry(set.to_owned()).or_default(),
        };
        if members.insert(id.0) {
            index.update_id(id, |entry| entry.pins = entry.pins.saturating_add(1));
        }
    }

    /// Returns the bytes on disk that became pinned by it.
    pub(crate) fn pin(&mut self, index: &Index, set: &str, key: &Key) -> u64 {
        let Some(id) = index.id(key) else { return 0 };
        if !self.sets.entry(set.to_owned()).or_default().insert(id.0) {
            return 0;
        }
        let entry = index.update(key, |entry| entry.pins = entry.pins.saturating_add(1));
        entry
            .filter(|entry| entry.pins == 1)
            .map_or(0, |entry| entry.footprint())
    }

    /// Returns the bytes on disk that are not pinned any more.
    pub(crate) fn unpin(&mut self, index: &Index, set: &str, key: &Key) -> u64 {
        let Some(id) = index.id(key) else { return 0 };
        let Some(members) = self.sets.get_mut(set) else {
            return 0;
        };
        if !members.remove(id.0) {
            return 0;
        }
        if members.is_empty() {
            self.sets.remove(set);
        }
        self.release(index, id, key)
    }

    pub(crate) fn drop_set(&mut self, index: &Index, set: &str) -> u64 {
        let mut released = 0;
        let members = self.sets.remove(set).unwrap_or_default();
        for id in members.iter().map(EntryId) {
            if let Some(entry) = index.by_id(id) {
                released += self.release(index, id, &entry.key());
            }
        }
        released
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        if let Some(members) = self.sets.remove(from) {
            self.sets.insert(to.to_owned(), members);
        }
    }

    fn release(&self, index: &Index, id: EntryId, key: &Key) -> u64 {
        let entry = index.update(key, |entry| {
            entry.pins = match entry.pins {
                // The count stopped at 255: count again.
                u8::MAX => {
                    let count = self
                        .sets
                        .values()
                        .filter(|members| members.contains(id.0))
                        .count();
                    u8::try_from(count).unwrap_or(u8::MAX)
                }
                pins => pins.saturating_sub(1),
            };
        });
        entry
            .filter(|entry| entry.pins == 0)
            .map_or(0, |entry| entry.footprint())
    }
}
