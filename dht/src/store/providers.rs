//! Provider records: ours and those of others apart, with an expiry that runs by itself.
//!
//! kad's own `MemoryStore` counts our keys and those of others against one limit and forgets an
//! expired record only when somebody asks for its key, so that a busy server stops accepting records and
//! even refuses to provide.

use std::collections::{BTreeMap, BTreeSet, btree_map};

use libp2p_identity::PeerId;
use libp2p_kad::{
    ProviderRecord,
    store::{Error, Result},
};
use web_time::Instant;

use super::MAX_KEY_BYTES;
use crate::Config;

pub(crate) struct Providers {
    local: PeerId,
    max_provided_keys: usize,
    max_remote_keys: usize,
    providers_per_key: usize,
    provided: BTreeMap<Vec<u8>, ProviderRecord>,
    remote: BTreeMap<Vec<u8>, Vec<ProviderRecord>>,
    /// The records of `remote` by their expiry, so that the first is the next to go. Records without one
    /// are not kept here: [`Providers::add`] gives every remote record an expiry.
    expiry: BTreeSet<(Instant, Vec<u8>, PeerId)>,
}

impl Providers {
    pub(crate) fn new(local: PeerId, config: &Config) -> Self {
        Self {
            local,
            max_provided_keys: config.max_provided_keys(),
            max_remote_keys: config.max_remote_keys(),
            providers_per_key: config.replication(),
            provided: BTreeMap::new(),
            remote: BTreeMap::new(),
            expiry: BTreeSet::new(),
        }
    }

    /// Forgets what expired by `now`.
    pub(crate) fn expire(&mut self, now: Instant) {
        while self.expiry.first().is_some_and(|(at, ..)| *at <= now) {
            self.pop_next_to_expire();
        }
    }

    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.expiry.first().map(|(at, ..)| *at)
    }

    #[cfg_attr(
        not(feature = "metrics"),
        expect(dead_code, reason = "read by the metrics")
    )]
    pub(crate) fn remote_records(&self) -> usize {
        self.expiry.len()
    }

    fn pop_next_to_expire(&mut self) {
        if let Some((_, key, provider)) = self.expiry.pop_first() {
            self.forget(&key, &provider);
        }
    }

    fn forget(&mut self, key: &[u8], provider: &PeerId) -> Option<ProviderRecord> {
        let records = self.remote.get_mut(key)?;
        let index = records
            .iter()
            .position(|record| record.provider == *provider)?;
        let record = records.remove(index);
        if records.is_empty() {
            self.remote.remove(key);
        }
        Some(record)
    }

    fn add_remote(&mut self, record: ProviderRecord) -> Result<()> {
        let Some(expires) = record.expires else {
            return Ok(());
        };
        let key = record.key.to_vec();
        if key.len() > MAX_KEY_BYTES {
            return Err(Error::ValueTooLarge);
        }
        self.remove_remote(&key, &record.provider);
        if self
            .remote
            .get(&key)
            .is_some_and(|records| records.len() >= self.providers_per_key)
        {
            // The first ones stay: a crowd of invented peers cannot push an honest one out.
            return Ok(());
        }
        while !self.remote.contains_key(&key) && self.remote.len() >= self.max_remote_keys {
            self.pop_next_to_expire();
        }
        self.expiry.insert((expires, key.clone(), record.provider));
        self.remote.entry(key).or_default().push(record);
        Ok(())
    }

    fn remove_remote(&mut self, key: &[u8], provider: &PeerId) {
        if let Some(old) = self.forget(key, provider)
            && let Some(expires) = old.expires
        {
            self.expiry.remove(&(expires, key.to_vec(), *provider));
        }
    }

    pub(crate) fn add(&mut self, record: ProviderRecord) -> Result<()> {
        if record.provider != self.local {
            return self.add_remote(record);
        }
        let key = record.key.to_vec();
        if !self.provided.contains_key(&key) && self.provided.len() >= self.max_provided_keys {
            return Err(Error::MaxProvidedKeys);
        }
        self.provided.insert(key, record);
        Ok(())
    }

    pub(crate) fn of(&self, key: &[u8]) -> Vec<ProviderRecord> {
        let remote = self.remote.get(key).into_iter().flatten();
        self.provided
            .get(key)
            .into_iter()
            .chain(remote)
            .cloned()
            .collect()
    }

    pub(crate) fn provided(&self) -> btree_map::Values<'_, Vec<u8>, ProviderRecord> {
        self.provided.values()
    }

    pub(crate) fn remove(&mut self, key: &[u8], provider: &PeerId) {
        if *provider == self.local {
            self.provided.remove(key);
        } else {
            self.remove_remote(key, provider);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use std::iter;

    use libp2p_kad::RecordKey;

    use super::*;

    fn store(builder: crate::ConfigBuilder) -> Providers {
        Providers::new(PeerId::random(), &builder.build().unwrap())
    }

    fn remote(key: u32, provider: PeerId, expires: Instant) -> ProviderRecord {
        ProviderRecord {
            key: RecordKey::new(&key.to_be_bytes()),
            provider,
            expires: Some(expires),
            addresses: Vec::new(),
        }
    }

    fn now() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "a point to count from")]
        Instant::now()
    }

    fn consistent(store: &Providers) -> bool {
        store.expiry.len() == store.remote.values().map(Vec::len).sum::<usize>()
            && store.remote.values().all(|records| !records.is_empty())
    }

    #[test]
    fn records_expire_by_themselves() {
        let (start, second) = (now(), Duration::from_secs(1));
        let mut store = store(Config::builder());
        let (a, b) = (PeerId::random(), PeerId::random());
        store.add(remote(1, a, start + second)).unwrap();
        store.add(remote(1, b, start + 3 * second)).unwrap();
        store.add(remote(1, a, start + 2 * second)).unwrap();
        assert_eq!(store.next_expiry(), Some(start + 2 * second));

        store.expire(start + 2 * second);
        let left = store.of(RecordKey::new(&1u32.to_be_bytes()).as_ref());
        assert_eq!(
            left.iter()
                .map(|record| record.provider)
                .collect::<Vec<_>>(),
            [b]
        );
        store.expire(start + 3 * second);
        assert_eq!(store.next_expiry(), None);
        assert!(consistent(&store) && store.remote.is_empty());
    }

    #[test]
    fn a_flood_of_records_displaces_the_oldest_and_never_our_own() {
        let start = now();
        let mut store = store(Config::builder().max_remote_keys(10).max_provided_keys(2));
        let own = RecordKey::new(&7u32.to_be_bytes());
        store
            .add(ProviderRecord::new(own.clone(), store.local, Vec::new()))
            .unwrap();
        for key in 0..1000 {
            let expires = start + Duration::from_secs(u64::from(key) + 1);
            store.add(remote(key, PeerId::random(), expires)).unwrap();
        }
        assert_eq!(store.remote.len(), 10);
        assert!(consistent(&store));
        assert_eq!(
            store
                .of(RecordKey::new(&999u32.to_be_bytes()).as_ref())
                .len(),
            1
        );
        assert_eq!(
            store
                .of(RecordKey::new(&989u32.to_be_bytes()).as_ref())
                .len(),
            0
        );
        assert_eq!(store.of(own.as_ref()).len(), 1);
        assert_eq!(store.provided().count(), 1);
    }

    #[test]
    fn a_crowd_on_one_key_does_not_push_out_the_first() {
        let start = now();
        let mut store = store(Config::builder().replication(3));
        let first = PeerId::random();
        store
            .add(remote(1, first, start + Duration::from_secs(1)))
            .unwrap();
        for peer in iter::repeat_with(PeerId::random).take(100) {
            store
                .add(remote(1, peer, start + Duration::from_secs(9)))
                .unwrap();
        }
        let providers = store.of(RecordKey::new(&1u32.to_be_bytes()).as_ref());
        assert_eq!(providers.len(), 3);
        assert!(providers.iter().any(|record| record.provider == first));
        assert!(consistent(&store));
    }

    #[test]
    fn keys_that_are_no_multihash_are_refused() {
        let mut store = store(Config::builder());
        let mut record = remote(1, PeerId::random(), now());
        record.key = RecordKey::new(&[0; MAX_KEY_BYTES + 1]);
        assert!(store.add(record).is_err());
        assert!(store.remote.is_empty());
    }

    #[test]
    fn our_own_keys_are_bounded_and_can_be_removed() {
        let mut store = store(Config::builder().max_provided_keys(1));
        let (one, two) = (RecordKey::new(&[1]), RecordKey::new(&[2]));
        let record = |key: &RecordKey| ProviderRecord::new(key.clone(), store.local, Vec::new());
        let (first, second) = (record(&one), record(&two));
        let local = store.local;
        store.add(first.clone()).unwrap();
        store.add(first).unwrap();
        assert!(store.add(second.clone()).is_err());
        store.remove(one.as_ref(), &local);
        assert_eq!(store.provided().len(), 0);
        store.add(second).unwrap();
    }
}
