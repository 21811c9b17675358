//! The policy: a window in order of use, a main part in order of heat, and the heat of what left. A pure core.
//!
//! New blocks enter the window. What falls out of it may enter the main part if its score is above the sum of the scores of the
//! blocks that would have to go (the rule of Einziger, Eytan, Friedman and Manes 2022), so a scan passes through the window and leaves the
//! main part alone. The main part is ordered by `heat − ½·log2(bytes)`: between saving requests (which would be heat by byte) and
//! saving bytes (heat alone); see [`crate::heat`] for what that is worth.
//!
//! Heats only rise, so the heap of the main part may hold old ones: it is put right where its top is taken. A hit costs one search in
//! a hash table.

use hashbrown::HashTable;

use super::{ghosts::Ghosts, heap::Heap, slots::Slots};
use crate::heat::{Clock, Heat};

/// Evicted blocks whose heat is remembered, per block kept.
const GHOSTS: usize = 4;
/// So many are remembered at least.
const LEAST_GHOSTS: usize = 64;

/// What is displaced may be as hot as this part of what comes for it. In a loop that is larger than the cache, what comes has just
/// been read once more than what is there: without a margin all would be displaced in turn and nothing ever hit.
const HOTTER: f64 = 0.9;

/// What adapts to the load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Setting {
    /// Part of the capacity that is window.
    pub(crate) window: f64,
    /// Accesses per block kept in which a score halves.
    pub(crate) half_life: f64,
}

#[derive(Debug)]
pub(super) struct Cache<K, V> {
    setting: Setting,
    /// Of weights, and of bookkeeping if that counts.
    capacity: u64,
    counts_bookkeeping: bool,
    clock: Clock,
    table: HashTable<u32>,
    entries: Slots<Entry<K, V>>,
    window: Window,
    window_weight: u64,
    main: Heap,
    main_weight: u64,
    ghosts: Ghosts,
    ghost_hits: u64,
    /// Reused by every decision.
    victims: Vec<u32>,
}

#[derive(Debug)]
struct Entry<K, V> {
    key: K,
    value: V,
    hash: u64,
    weight: u32,
    heat: Heat,
    place: Place,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Window {
        newer: Option<u32>,
        older: Option<u32>,
    },
    Main,
}

/// Ends of a list through the entries.
#[derive(Debug, Default)]
struct Window {
    newest: Option<u32>,
    oldest: Option<u32>,
}

impl<K, V> Entry<K, V> {
    /// What orders the main part.
    fn rank(&self) -> f32 {
        self.heat - 0.5 * (self.weight.max(1) as f32).log2()
    }
}

impl<K: Eq, V> Cache<K, V> {
    /// `counts_bookkeeping`: the capacity is in bytes, of which the tables take theirs.
    pub(super) fn new(capacity: u64, setting: Setting, counts_bookkeeping: bool) -> Self {
        Cache {
            setting,
            capacity,
            counts_bookkeeping,
            clock: Clock::default(),
            table: HashTable::new(),
            entries: Slots::default(),
            window: Window::default(),
            window_weight: 0,
            main: Heap::default(),
            main_weight: 0,
            ghosts: Ghosts::default(),
            ghost_hits: 0,
            victims: Vec::new(),
        }
    }

    /// A read: counts for heat and place. The value and its weight.
    pub(super) fn get(&mut self, hash: u64, key: &K) -> Option<(&mut V, u32)> {
        let at = self.find(hash, key)?;
        self.tick();
        let clock = self.clock;
        let entry = self.entries.get_mut(at)?;
        entry.heat = clock.touched(entry.heat);
        if matches!(entry.place, Place::Window { .. }) && self.window.newest != Some(at) {
            self.unlink(at);
            self.link(at);
        }
        let entry = self.entries.get_mut(at)?;
        Some((&mut entry.value, entry.weight))
    }

    /// Without counting as a read.
    pub(super) fn peek_mut(&mut self, hash: u64, key: &K) -> Option<&mut V> {
        let at = self.find(hash, key)?;
        self.entries.get_mut(at).map(|entry| &mut entry.value)
    }

    /// Offers what is not in yet; it counts as `reads` reads unless it was here before. The policy decides what stays; what does not is
    /// handed to `evicted`, which may be the new one.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        key: K,
        value: V,
        weight: u32,
        reads: f32,
        evicted: &mut impl FnMut(V),
    ) {
        self.tick();
        if u64::from(weight) > self.capacity {
            evicted(value);
            return;
        }
        let fresh = self.clock.fresh(reads);
        let heat = match self.ghosts.take(hash) {
            Some(heat) => {
                self.ghost_hits += 1;
                self.clock.touched(heat).max(fresh)
            }
            None => fresh,
        };
        let entry = Entry {
            key,
            value,
            hash,
            weight,
            heat,
            place: Place::Main,
        };
        let Some(at) = self.admit(entry) else {
            return;
        };
        self.link(at);
        self.window_weight += u64::from(weight);
        self.ghosts
            .resize(GHOSTS * self.entries.len().max(LEAST_GHOSTS / GHOSTS));
        self.shrink(evicted);
    }

    /// Takes it out; its heat is not remembered.
    pub(super) fn remove(&mut self, hash: u64, key: &K) -> Option<V> {
        let at = self.find(hash, key)?;
        self.take(at).map(|entry| entry.value)
    }

    pub(super) fn set_setting(&mut self, setting: Setting) {
        self.setting = setting;
    }

    pub(super) fn set_capacity(&mut self, capacity: u64, evicted: &mut impl FnMut(V)) {
        self.capacity = capacity;
        self.shrink(evicted);
    }

    /// Takes out what `keep` does not name.
    pub(super) fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        let numbers: Vec<u32> = self.entries.numbers().collect();
        for at in numbers {
            if self.entries.get(at).is_some_and(|entry| !keep(entry.hash)) {
                self.take(at);
            }
        }
    }

    /// Makes the tables as small as what is in them allows.
    pub(super) fn rebuild(&mut self, evicted: &mut impl FnMut(V)) {
        let mut order = Vec::with_capacity(self.entries.len());
        let mut next = self.window.oldest;
        while let Some(at) = next {
            order.push(at);
            next = match self.entries.get(at).map(|entry| entry.place) {
                Some(Place::Window { newer, .. }) => newer,
                _ => None,
            };
        }
        let main = self.entries.numbers().filter(|at| {
            let entry = self.entries.get(*at);
            entry.is_some_and(|entry| matches!(entry.place, Place::Main))
        });
        order.extend(main);
        let mut ghosts = std::mem::take(&mut self.ghosts);
        if !order.is_empty() {
            ghosts.resize(GHOSTS * order.len().max(LEAST_GHOSTS / GHOSTS));
        }
        let mut rebuilt = Cache {
            clock: self.clock,
            ghosts,
            ghost_hits: self.ghost_hits,
            ..Cache::new(self.capacity, self.setting, self.counts_bookkeeping)
        };
        for at in order {
            let Some(mut entry) = self.entries.remove(at) else {
                continue;
            };
            let is_main = matches!(entry.place, Place::Main);
            entry.place = Place::Main;
            let (weight, rank) = (u64::from(entry.weight), entry.rank());
            let Some(at) = rebuilt.admit(entry) else {
                continue;
            };
            if is_main {
                rebuilt.main.push(at, rank);
                rebuilt.main_weight += weight;
            } else {
                rebuilt.link(at);
                rebuilt.window_weight += weight;
            }
        }
        *self = rebuilt;
        self.shrink(evicted);
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Of the blocks, and of the bookkeeping if that counts.
    pub(super) fn weight(&self) -> u64 {
        let bookkeeping = if self.counts_bookkeeping {
            self.bookkeeping()
        } else {
            0
        };
        self.window_weight + self.main_weight + bookkeeping
    }

    /// Bytes that the tables have allocated.
    pub(super) fn bookkeeping(&self) -> u64 {
        let rest = self.table.allocation_size() + self.victims.capacity() * 4;
        self.entries.bytes() + self.main.bytes() + self.ghosts.bytes() + rest as u64
    }

    pub(super) fn window_weight(&self) -> u64 {
        self.window_weight
    }

    pub(super) fn ghost_hits(&self) -> u64 {
        self.ghost_hits
    }

    fn admit(&mut self, entry: Entry<K, V>) -> Option<u32> {
        let hash = entry.hash;
        let at = self.entries.insert(entry)?;
        let entries = &self.entries;
        self.table.insert_unique(hash, at, |at| {
            entries.get(*at).map_or(0, |entry| entry.hash)
        });
        Some(at)
    }

    fn find(&self, hash: u64, key: &K) -> Option<u32> {
        let is_it = |at: &u32| self.entries.get(*at).is_some_and(|entry| entry.key == *key);
        self.table.find(hash, is_it).copied()
    }

    fn tick(&mut self) {
        self.clock
            .tick_by(self.entries.len(), self.setting.half_life);
        if let Some(by) = self.clock.rebase() {
            for entry in self.entries.iter_mut() {
                entry.heat -= by;
            }
            self.main.lower_all(by);
            self.ghosts.rebase(by);
        }
    }

    /// Brings the weight under the capacity and the window under its share.
    fn shrink(&mut self, evicted: &mut impl FnMut(V)) {
        let window = ((self.capacity as f64 * self.setting.window) as u64).max(1);
        loop {
            let over = self.weight() > self.capacity;
            if !over && self.window_weight <= window {
                return;
            }
            if self.window_weight <= window
                && let Some(at) = self.coldest()
            {
                self.main.pop();
                self.evict(at, evicted);
                continue;
            }
            let Some(at) = self.window.oldest else {
                break;
            };
            // A window smaller than one block must not swallow the newest.
            if !over && self.window.newest == Some(at) {
                return;
            }
            self.leave_window(at, evicted);
        }
        if self.entries.len() == 0 && self.weight() > self.capacity {
            // The tables alone are too large.
            *self = Cache {
                clock: self.clock,
                ghost_hits: self.ghost_hits,
                ..Cache::new(self.capacity, self.setting, self.counts_bookkeeping)
            };
        }
    }

    /// The oldest of the window against those of the main part that would have to go for it.
    fn leave_window(&mut self, at: u32, evicted: &mut impl FnMut(V)) {
        self.unlink(at);
        let Some(entry) = self.entries.get_mut(at) else {
            return;
        };
        entry.place = Place::Main;
        let (weight, heat) = (u64::from(entry.weight), entry.heat);
        self.window_weight -= weight;
        let limit = self.clock.score(heat) * HOTTER;
        let mut excess = (self.weight() + weight).saturating_sub(self.capacity);
        let mut victims = std::mem::take(&mut self.victims);
        let mut sum = 0.0;
        while excess > 0 && sum <= limit {
            let Some(victim) = self.coldest() else {
                break;
            };
            self.main.pop();
            victims.push(victim);
            if let Some(entry) = self.entries.get(victim) {
                excess = excess.saturating_sub(u64::from(entry.weight));
                sum += self.clock.score(entry.heat);
            }
        }
        self.main_weight += weight;
        if sum > limit {
            for victim in victims.drain(..) {
                let rank = self.entries.get(victim).map_or(0.0, Entry::rank);
                self.main.push(victim, rank);
            }
            self.evict(at, evicted);
        } else {
            for victim in victims.drain(..) {
                self.evict(victim, evicted);
            }
            let rank = self.entries.get(at).map_or(0.0, Entry::rank);
            self.main.push(at, rank);
        }
        self.victims = victims;
    }

    /// The one of the main part with the lowest rank; it stays.
    fn coldest(&mut self) -> Option<u32> {
        loop {
            let (at, noted) = self.main.peek()?;
            let rank = self.entries.get(at)?.rank();
            if rank <= noted {
                return Some(at);
            }
            self.main.raise_top(rank);
        }
    }

    fn evict(&mut self, at: u32, evicted: &mut impl FnMut(V)) {
        if let Some(entry) = self.take(at) {
            self.ghosts.remember(entry.hash, entry.heat);
            evicted(entry.value);
        }
    }

    fn take(&mut self, at: u32) -> Option<Entry<K, V>> {
        self.unlink(at);
        let entry = self.entries.remove(at)?;
        match entry.place {
            Place::Window { .. } => self.window_weight -= u64::from(entry.weight),
            Place::Main => {
                self.main.remove(at);
                self.main_weight -= u64::from(entry.weight);
            }
        }
        if let Ok(found) = self.table.find_entry(entry.hash, |found| *found == at) {
            found.remove();
        }
        Some(entry)
    }

    /// Makes it the newest of the window.
    fn link(&mut self, at: u32) {
        let older = self.window.newest.replace(at);
        match older {
            Some(older) => self.set_newer(older, Some(at)),
            None => self.window.oldest = Some(at),
        }
        if let Some(entry) = self.entries.get_mut(at) {
            entry.place = Place::Window { newer: None, older };
        }
    }

    /// Takes it out of the list, if it is in the window.
    fn unlink(&mut self, at: u32) {
        let Some(Place::Window { newer, older }) = self.entries.get(at).map(|entry| entry.place)
        else {
            return;
        };
        match newer {
            Some(newer) => self.set_older(newer, older),
            None => self.window.newest = older,
        }
        match older {
            Some(older) => self.set_newer(older, newer),
            None => self.window.oldest = newer,
        }
    }

    fn set_newer(&mut self, at: u32, to: Option<u32>) {
        if let Some(Place::Window { newer, .. }) =
            self.entries.get_mut(at).map(|entry| &mut entry.place)
        {
            *newer = to;
        }
    }

    fn set_older(&mut self, at: u32, to: Option<u32>) {
        if let Some(Place::Window { older, .. }) =
            self.entries.get_mut(at).map(|entry| &mut entry.place)
        {
            *older = to;
        }
    }
}

#[cfg(test)]
mod tests;
