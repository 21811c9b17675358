//! Provider records: ours and those of others apart, with an expiry that runs by itself.
//!
//! kad's own `MemoryStore` counts our keys and those of others against one limit and forgets an
//! expired record only when somebody asks for its key, so that a busy server stops accepting records and
//! even refuses to provide.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    iter,
};

use libp2p_identity::PeerId;
use libp2p_kad::{
    ProviderRecord, Record, RecordKey,
    store::{Error, RecordStore, Result},
};
use web_time::Instant;

use crate::Config;

/// Longest accepted key: kad keys are multihashes, at most 64 bytes of digest with a short prefix
/// (go-libp2p-kad-dht's `providerKeyMaxLength` is 80).
pub(crate) const MAX_KEY_BYTES: usize = 80;

pub(crate) struct Store {
    local: PeerId,
    max_provided_keys: usize,
    max_remote_keys: usize,
    providers_per_key: usize,
    provided: BTreeMap<Vec<u8>, ProviderRecord>,
    remote: BTreeMap<Vec<u8>, Vec<ProviderRecord>>,
    /// The records of `remote` by their expiry, so that the first is the next to go. Records without one
    /// are not kept here: [`Store::add_provider`] gives every remote record an expiry.
    expiry: BTreeSet<(Instant, Vec<u8>, PeerId)>,
}

impl Store {
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

    pub(crate) fn provided_keys(&self) -> usize {
        self.provided.len()
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
}

impl RecordStore for Store {
    type RecordsIter<'a> = iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = iter::Map<
        std::collections::btree_map::Values<'a, Vec<u8>, ProviderRecord>,
        fn(&'a ProviderRecord) -> Cow<'a, ProviderRecord>,
    >;

    // Value records: this crate neither publishes nor stores any.

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
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

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let key: &[u8] = key.as_ref();
        let remote = self.remote.get(key).into_iter().flatten();
        self.provided
            .get(key)
            .into_iter()
            .chain(remote)
            .cloned()
            .collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        self.provided.values().map(Cow::Borrowed)
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        if *provider == self.local {
            self.provided.remove(AsRef::<[u8]>::as_ref(key));
        } else {
            self.remove_remote(key.as_ref(), provider);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn store(builder: crate::ConfigBuilder) -> Store {
        Store::new(PeerId::random(), &builder.build().unwrap())
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

    fn consistent(store: &Store) -> bool {
        store.expiry.len() == store.remote.values().map(Vec::len).sum::<usize>()
            && store.remote.values().all(|records| !records.is_empty())
    }

    #[test]
    fn records_expire_by_themselves() {
        let (start, second) = (now(), Duration::from_secs(1));
        let mut store = store(Config::builder());
        let (a, b) = (PeerId::random(), PeerId::random());
        store.add_provider(remote(1, a, start + second)).unwrap();
        store
            .add_provider(remote(1, b, start + 3 * second))
            .unwrap();
        store
            .add_provider(remote(1, a, start + 2 * second))
            .unwrap();
        assert_eq!(store.next_expiry(), Some(start + 2 * second));

        store.expire(start + 2 * second);
        let left = store.providers(&RecordKey::new(&1u32.to_be_bytes()));
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
            .add_provider(ProviderRecord::new(own.clone(), store.local, Vec::new()))
            .unwrap();
        for key in 0..1000 {
            let expires = start + Duration::from_secs(u64::from(key) + 1);
            store
                .add_provider(remote(key, PeerId::random(), expires))
                .unwrap();
        }
        assert_eq!(store.remote.len(), 10);
        assert!(consistent(&store));
        assert_eq!(
            store
                .providers(&RecordKey::new(&999u32.to_be_bytes()))
                .len(),
            1
        );
        assert_eq!(
            store
                .providers(&RecordKey::new(&989u32.to_be_bytes()))
                .len(),
            0
        );
        assert_eq!(store.providers(&own).len(), 1);
        assert_eq!(store.provided().count(), 1);
    }

    #[test]
    fn a_crowd_on_one_key_does_not_push_out_the_first() {
        let start = now();
        let mut store = store(Config::builder().replication(3));
        let first = PeerId::random();
        store
            .add_provider(remote(1, first, start + Duration::from_secs(1)))
            .unwrap();
        for peer in iter::repeat_with(PeerId::random).take(100) {
            store
                .add_provider(remote(1, peer, start + Duration::from_secs(9)))
                .unwrap();
        }
        let providers = store.providers(&RecordKey::new(&1u32.to_be_bytes()));
        assert_eq!(providers.len(), 3);
        assert!(providers.iter().any(|record| record.provider == first));
        assert!(consistent(&store));
    }

    #[test]
    fn keys_that_are_no_multihash_are_refused() {
        let mut store = store(Config::builder());
        let mut record = remote(1, PeerId::random(), now());
        record.key = RecordKey::new(&[0; MAX_KEY_BYTES + 1]);
        assert!(store.add_provider(record).is_err());
        assert!(store.remote.is_empty());
    }

    #[test]
    fn our_own_keys_are_bounded_and_can_be_removed() {
        let mut store = store(Config::builder().max_provided_keys(1));
        let (one, two) = (RecordKey::new(&[1]), RecordKey::new(&[2]));
        let record = |key: &RecordKey| ProviderRecord::new(key.clone(), store.local, Vec::new());
        let (first, second) = (record(&one), record(&two));
        let local = store.local;
        store.add_provider(first.clone()).unwrap();
        store.add_provider(first).unwrap();
        assert!(store.add_provider(second.clone()).is_err());
        store.remove_provider(&one, &local);
        assert_eq!(store.provided_keys(), 0);
        store.add_provider(second).unwrap();
    }
}
