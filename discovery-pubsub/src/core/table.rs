//! Who is known, within bounds, and who makes room for whom.
//!
//! Keys cost nothing, so a table that any key may enter is soon full of invented ones. A connection does
//! cost something: each entry counts for the neighbour that passed it on first, and when the table is full
//! the neighbour with the most entries gives one up, the one that was silent for longest. An entry that
//! was connected to is proven; those leave last.

use std::collections::{BTreeMap, BTreeSet};

use libp2p_identity::PeerId;
use web_time::Instant;

#[derive(Debug)]
struct Entry<V> {
    heard: Instant,
    until: Instant,
    source: PeerId,
    proven: bool,
    value: V,
}

#[derive(Debug)]
pub(super) struct Table<V> {
    max: usize,
    entries: BTreeMap<PeerId, Entry<V>>,
    by_expiry: BTreeSet<(Instant, PeerId)>,
    /// The entries that are not proven, by their source and age.
    shares: BTreeMap<PeerId, BTreeSet<(Instant, PeerId)>>,
    /// The proven ones by age.
    proven: BTreeSet<(Instant, PeerId)>,
}

impl<V> Table<V> {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            entries: BTreeMap::new(),
            by_expiry: BTreeSet::new(),
            shares: BTreeMap::new(),
            proven: BTreeSet::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn contains(&self, peer: &PeerId) -> bool {
        self.entries.contains_key(peer)
    }

    pub(super) fn get(&self, peer: &PeerId) -> Option<&V> {
        self.entries.get(peer).map(|entry| &entry.value)
    }

    pub(super) fn get_mut(&mut self, peer: &PeerId) -> Option<&mut V> {
        self.entries.get_mut(peer).map(|entry| &mut entry.value)
    }

    /// Who expires next, and when.
    pub(super) fn next_expiry(&self) -> Option<(Instant, PeerId)> {
        self.by_expiry.first().copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&PeerId, &V)> {
        self.entries
            .iter()
            .map(|(peer, entry)| (peer, &entry.value))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &PeerId> {
        self.entries.keys()
    }

    /// Enters `peer`, whom `source` brought, from now on and until then. In a full table another one has to go, and is returned; `Err` if
    /// nobody has to.
    pub(super) fn insert(
        &mut self,
        peer: PeerId,
        source: PeerId,
        proven: bool,
        value: V,
        (now, until): (Instant, Instant),
    ) -> Result<Option<(PeerId, V)>, ()> {
        let mut evicted = None;
        if self.entries.len() >= self.max {
            let victim = self.victim(source, proven).ok_or(())?;
            evicted = self.remove(&victim).map(|value| (victim, value));
        }
        let entry = Entry {
            heard: now,
            until,
            source,
            proven: false,
            value,
        };
        self.index(peer, &entry, true);
        self.entries.insert(peer, entry);
        if proven {
            self.prove(&peer);
        }
        Ok(evicted)
    }

    /// `peer` was heard again, and stays until then.
    pub(super) fn touch(&mut self, peer: &PeerId, (now, until): (Instant, Instant)) {
        if let Some(mut entry) = self.entries.remove(peer) {
            self.index(*peer, &entry, false);
            entry.heard = now;
            entry.until = until;
            self.index(*peer, &entry, true);
            self.entries.insert(*peer, entry);
        }
    }

    /// `peer` was connected: it exists. A quarter of the table stays for those of whom that is not known.
    pub(super) fn prove(&mut self, peer: &PeerId) {
        if self.entries.get(peer).is_none_or(|entry| entry.proven) {
            return;
        }
        self.set_proven(*peer, true);
        if self.proven.len() > self.max - self.max / 4
            && let Some((_, oldest)) = self.proven.first().copied()
        {
            self.set_proven(oldest, false);
        }
    }

    pub(super) fn remove(&mut self, peer: &PeerId) -> Option<V> {
        let entry = self.entries.remove(peer)?;
        self.index(*peer, &entry, false);
        Some(entry.value)
    }

    fn set_proven(&mut self, peer: PeerId, proven: bool) {
        if let Some(mut entry) = self.entries.remove(&peer) {
            self.index(peer, &entry, false);
            entry.proven = proven;
            self.index(peer, &entry, true);
            self.entries.insert(peer, entry);
        }
    }

    fn index(&mut self, peer: PeerId, entry: &Entry<V>, present: bool) {
        let key = (entry.heard, peer);
        let expiry = (entry.until, peer);
        if present {
            self.by_expiry.insert(expiry);
            if entry.proven {
                self.proven.insert(key);
            } else {
                self.shares.entry(entry.source).or_default().insert(key);
            }
            return;
        }
        self.by_expiry.remove(&expiry);
        if entry.proven {
            self.proven.remove(&key);
        } else if let Some(share) = self.shares.get_mut(&entry.source) {
            share.remove(&key);
            if share.is_empty() {
                self.shares.remove(&entry.source);
            }
        }
    }

    /// Who makes room for a newcomer from `source`: the table becomes more even, or `source` changes one of its
    /// own for another. A proven newcomer takes the place of anybody who is not.
    fn victim(&self, source: PeerId, proven: bool) -> Option<PeerId> {
        let own = self.shares.get(&source).map_or(0, BTreeSet::len);
        let (largest, share) = self.shares.iter().max_by_key(|(_, share)| share.len())?;
        let from = if share.len() > own + 1 || proven || *largest == source {
            share
        } else {
            self.shares.get(&source)?
        };
        from.first().map(|(_, peer)| *peer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn start() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "a point to count from")]
        Instant::now()
    }

    fn share<V>(table: &Table<V>, source: &PeerId) -> usize {
        table.shares.get(source).map_or(0, BTreeSet::len)
    }

    #[test]
    fn one_source_may_fill_the_table_and_has_to_give_way_to_others() {
        let now = start();
        let mut table = Table::new(90);
        let [crowd, honest, late] = [(); 3].map(|()| PeerId::random());
        for _ in 0..1000 {
            table
                .insert(PeerId::random(), crowd, false, (), (now, now))
                .unwrap();
        }
        assert_eq!(share(&table, &crowd), 90);
        for source in [honest, late] {
            for _ in 0..30 {
                table
                    .insert(PeerId::random(), source, false, (), (now, now))
                    .unwrap();
            }
        }
        for _ in 0..1000 {
            table
                .insert(PeerId::random(), crowd, false, (), (now, now))
                .unwrap();
        }
        assert_eq!(
            [crowd, honest, late].map(|source| share(&table, &source)),
            [30; 3]
        );
    }

    #[test]
    fn the_proven_stay_but_never_fill_the_table() {
        let now = start();
        let mut table = Table::new(40);
        let (crowd, peers) = (PeerId::random(), [(); 10].map(|()| PeerId::random()));
        for peer in peers {
            table.insert(peer, crowd, false, (), (now, now)).unwrap();
            table.prove(&peer);
        }
        for _ in 0..1000 {
            table
                .insert(PeerId::random(), crowd, false, (), (now, now))
                .unwrap();
        }
        assert!(peers.iter().all(|peer| table.contains(peer)));
        for _ in 0..1000 {
            table
                .insert(PeerId::random(), crowd, true, (), (now, now))
                .unwrap();
        }
        assert_eq!((table.len(), table.proven.len()), (40, 30));
    }

    #[test]
    fn a_neighbour_with_one_entry_does_not_push_out_another_such() {
        let now = start();
        let mut table = Table::new(2);
        let [a, b, c] = [(); 3].map(|()| PeerId::random());
        table.insert(a, a, false, (), (now, now)).unwrap();
        table.insert(b, b, false, (), (now, now)).unwrap();
        assert_eq!(table.insert(c, c, false, (), (now, now)), Err(()));
        assert_eq!(
            table
                .insert(c, c, true, (), (now, now))
                .unwrap()
                .map(|(peer, ())| peer),
            Some(a.max(b))
        );
    }

    proptest! {
        /// The indexes and the bound hold whatever happens.
        #[test]
        fn the_indexes_agree(steps in proptest::collection::vec((0u8..4, 0u8..30, 0u8..5), 0..200)) {
            let mut now = start();
            let ids: Vec<_> = (0..30).map(|_| PeerId::random()).collect();
            let mut table = Table::new(10);
            for (step, peer, source) in steps {
                now += Duration::from_millis(1);
                let peer = ids[usize::from(peer)];
                match step {
                    0 if !table.contains(&peer) => {
                        let _ = table.insert(peer, ids[usize::from(source)], source == 0, (), (now, now));
                    }
                    1 => table.touch(&peer, (now, now)),
                    2 => table.prove(&peer),
                    _ => drop(table.remove(&peer)),
                }
                prop_assert!(table.len() <= 10);
                prop_assert!(table.proven.len() <= 8);
                let shares: usize = table.shares.values().map(BTreeSet::len).sum();
                prop_assert_eq!(table.by_expiry.len(), table.len());
                prop_assert_eq!(shares + table.proven.len(), table.len());
                prop_assert!(table.shares.values().all(|share| !share.is_empty()));
            }
        }
    }
}
