//! What this node keeps for the DHT, ours and others': the engine's view of it.

mod providers;
mod values;

use std::{borrow::Cow, iter};

use libp2p_identity::PeerId;
use libp2p_kad::{
    ProviderRecord, Record, RecordKey,
    store::{RecordStore, Result},
};
use web_time::Instant;

pub(crate) use self::{
    providers::Providers,
    values::{Values, no_validator},
};
use crate::{Config, scope::Filter};

/// Longest accepted key: kad keys are multihashes, at most 64 bytes of digest with a short prefix
/// (go-libp2p-kad-dht's `providerKeyMaxLength` is 80), or a namespace and one.
const MAX_KEY_BYTES: usize = 80;

pub(crate) struct Store {
    /// What of a provider's addresses is kept.
    pub(crate) filter: Filter,
    pub(crate) providers: Providers,
    pub(crate) values: Values,
}

impl Store {
    pub(crate) fn new(local: PeerId, config: &Config, filter: Filter) -> Self {
        Self {
            filter,
            providers: Providers::new(local, config),
            values: Values::new(local, config),
        }
    }

    /// Forgets what expired by `now`.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.providers.expire(now);
        self.values.expire(now);
    }

    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        let next = [self.providers.next_expiry(), self.values.next_expiry()];
        next.into_iter().flatten().min()
    }
}

impl RecordStore for Store {
    type RecordsIter<'a> = iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = iter::Map<
        std::collections::btree_map::Values<'a, Vec<u8>, ProviderRecord>,
        fn(&'a ProviderRecord) -> Cow<'a, ProviderRecord>,
    >;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        self.values.get(key.as_ref())
    }

    // What the engine puts for us is here before; those of others come by events.
    fn put(&mut self, _: Record) -> Result<()> {
        Ok(())
    }

    fn remove(&mut self, key: &RecordKey) {
        self.values.remove_remote(key.as_ref());
    }

    /// The core puts our values again, so that the engine need not: its job remembers every key that a stranger put since it
    /// ran last.
    fn records(&self) -> Self::RecordsIter<'_> {
        iter::empty()
    }

    fn add_provider(&mut self, mut record: ProviderRecord) -> Result<()> {
        record.addresses = self.filter.select(record.addresses);
        self.providers.add(record)
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        self.providers.of(key.as_ref())
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        self.providers.provided().map(Cow::Borrowed)
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        self.providers.remove(key.as_ref(), provider);
    }
}
