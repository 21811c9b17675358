//! Values: ours, which stay until they are removed, and those of others, which expire.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use libp2p_identity::PeerId;
use libp2p_kad::{KBucketDistance, KBucketKey, Record};
use web_time::Instant;

use super::MAX_KEY_BYTES;
use crate::{
    Config, QueryError,
    value::{Validators, namespace},
};

pub(crate) struct Values {
    local: PeerId,
    place: KBucketKey<PeerId>,
    pub(crate) validators: Validators,
    max_own: usize,
    max_remote: usize,
    max_bytes: usize,
    own: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Every one has an expiry. A key that is in `own`, too, has a better value here, or had one when it came.
    remote: BTreeMap<Vec<u8>, Record>,
    /// The keys of `remote` by their namespaces, so that one that is cheap to fill leaves the others alone: the last is the
    /// farthest from us and the first to make room.
    by_distance: BTreeMap<String, BTreeSet<(KBucketDistance, Vec<u8>)>>,
    expiry: BTreeSet<(Instant, Vec<u8>)>,
    ttl: Duration,
}

impl Values {
    pub(crate) fn new(local: PeerId, config: &Config) -> Self {
        Self {
            local,
            place: KBucketKey::from(local),
            validators: Validators::default(),
            max_own: config.max_values(),
            max_remote: config.max_remote_values(),
            max_bytes: config.max_value_bytes(),
            ttl: config.value_ttl(),
            own: BTreeMap::new(),
            remote: BTreeMap::new(),
            by_distance: BTreeMap::new(),
            expiry: BTreeSet::new(),
        }
    }

    /// What we have put.
    pub(crate) fn own(&self, key: &[u8]) -> Option<&[u8]> {
        self.own.get(key).map(Vec::as_slice)
    }

    #[cfg_attr(
        not(feature = "metrics"),
        expect(dead_code, reason = "read by the metrics")
    )]
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.own.len(), self.remote.len())
    }

    /// What is served: the best one that is valid now.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Cow<'_, Record>> {
        let validator = self.validators.of(key)?;
        let valid = |value: &[u8]| validator.is_still_valid(key, value);
        let own = self.own(key).filter(|value| valid(value));
        let remote = self.remote.get(key).filter(|record| valid(&record.value));
        match (own, remote) {
            (Some(own), remote)
                if remote
                    .is_none_or(|remote| validator.compare(key, &remote.value, own).is_le()) =>
            {
                Some(Cow::Owned(Record {
                    key: key.to_vec().into(),
                    value: own.to_vec(),
                    publisher: Some(self.local),
                    expires: None,
                }))
            }
            (_, remote) => remote.map(Cow::Borrowed),
        }
    }

    /// Ours, until it is removed: it stays beside a better one of another node's, which may go before it.
    pub(crate) fn put_own(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), QueryError> {
        self.check(&key, &value)?;
        if !self.own.contains_key(&key) && self.own.len() >= self.max_own {
            return Err(QueryError::ValuesFull);
        }
        self.own.insert(key, value);
        Ok(())
    }

    /// Another node's, for [`Config::value_ttl`] from now on: how long it says is anybody's to say.
    pub(crate) fn put_remote(
        &mut self,
        mut record: Record,
        now: Instant,
    ) -> Result<(), QueryError> {
        let key = record.key.to_vec();
        self.check(&key, &record.value)?;
        if self.own(&key) == Some(&record.value) {
            return Ok(());
        }
        let distance = self.distance(&key);
        let namespace = namespace(&key).unwrap_or_default().to_owned();
        let others = self.by_distance.entry(namespace.clone()).or_default();
        if !self.remote.contains_key(&key)
            // Of those there are only so many.
            && !self.own.contains_key(&key)
            && others.len() >= self.max_remote
            && let Some((farthest, last)) = others.last()
        {
            if distance >= *farthest {
                return Err(QueryError::ValuesFull);
            }
            let last = last.clone();
            self.remove_remote(&last);
        }
        self.remove_remote(&key);
        let expires = now + self.ttl;
        record.expires = Some(expires);
        // Nobody vouches for whom it names.
        record.publisher = None;
        let others = self.by_distance.entry(namespace).or_default();
        others.insert((distance, key.clone()));
        self.expiry.insert((expires, key.clone()));
        self.remote.insert(key, record);
        Ok(())
    }

    /// Ours is put no more. What others keep expires by itself.
    pub(crate) fn remove_own(&mut self, key: &[u8]) {
        self.own.remove(key);
    }

    pub(crate) fn remove_remote(&mut self, key: &[u8]) {
        if let Some(record) = self.remote.remove(key) {
            let place = (self.distance(key), key.to_vec());
            let namespace = namespace(key).unwrap_or_default();
            if let Some(others) = self.by_distance.get_mut(namespace) {
                others.remove(&place);
            }
            if let Some(expires) = record.expires {
                self.expiry.remove(&(expires, key.to_vec()));
            }
        }
    }

    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((at, key)) = self.expiry.first()
            && *at <= now
        {
            let key = key.clone();
            self.remove_remote(&key);
        }
    }

    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.expiry.first().map(|(at, _)| *at)
    }

    /// Whether the key may have this value now, beside what is known of it.
    fn check(&self, key: &[u8], value: &[u8]) -> Result<(), QueryError> {
        let validator = self.validators.of(key).ok_or_else(|| no_validator(key))?;
        if key.len() > MAX_KEY_BYTES {
            let reason = format!("the key has more than {MAX_KEY_BYTES} bytes");
            return Err(QueryError::InvalidValue(reason));
        }
        if value.len() > self.max_bytes {
            let reason = format!("it has more than max_value_bytes, {}", self.max_bytes);
            return Err(QueryError::InvalidValue(reason));
        }
        validator
            .validate(key, value)
            .map_err(|error| QueryError::InvalidValue(error.to_string()))?;
        // What ceased to be valid stands in nobody's way.
        match self.get(key) {
            Some(known)
                if known.value != value && validator.compare(key, &known.value, value).is_ge() =>
            {
                Err(QueryError::Superseded)
            }
            _ => Ok(()),
        }
    }

    fn distance(&self, key: &[u8]) -> KBucketDistance {
        self.place.distance(&KBucketKey::new(key.to_vec()))
    }
}

/// The error of a key whose values cannot be judged.
pub(crate) fn no_validator(key: &[u8]) -> QueryError {
    QueryError::NoValidator(namespace(key).unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use std::{cmp::Ordering, sync::Arc, time::Duration};

    use super::*;
    use crate::{InvalidValue, Validator};

    /// The greater value is better; those that begin with 0 are invalid.
    struct Greater;

    impl Validator for Greater {
        fn validate(&self, _: &[u8], value: &[u8]) -> Result<(), InvalidValue> {
            match value.first() {
                Some(0) => Err(InvalidValue::new("zero")),
                _ => Ok(()),
            }
        }

        fn compare(&self, _: &[u8], one: &[u8], other: &[u8]) -> Ordering {
            one.first().cmp(&other.first())
        }
    }

    fn values(builder: crate::ConfigBuilder) -> Values {
        let mut values = Values::new(PeerId::random(), &builder.build().unwrap());
        values.validators.set("test".into(), Arc::new(Greater));
        values
    }

    fn now() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "a point to count from")]
        Instant::now()
    }

    fn key(n: u32) -> Vec<u8> {
        format!("/test/{n}").into_bytes()
    }

    fn remote(key: Vec<u8>, value: &[u8]) -> Record {
        Record {
            key: key.into(),
            value: value.to_vec(),
            publisher: None,
            // What it says of its life counts for nothing.
            expires: Some(now()),
        }
    }

    fn get(values: &Values, key: &[u8]) -> Option<Vec<u8>> {
        values.get(key).map(|record| record.value.clone())
    }

    fn consistent(values: &Values) -> bool {
        let keys = |keys: Vec<&Vec<u8>>| keys.into_iter().cloned().collect::<BTreeSet<_>>();
        let remote = keys(values.remote.keys().collect());
        let places = || values.by_distance.values().flatten();
        let by_distance = keys(places().map(|(_, key)| key).collect());
        let expiry = keys(values.expiry.iter().map(|(_, key)| key).collect());
        remote == by_distance && remote == expiry && places().count() == values.expiry.len()
    }

    #[test]
    fn the_better_value_counts_whoever_put_it_and_ours_stays_beside_it() {
        let mut values = values(Config::builder());
        let (key, at) = (key(1), now());
        values.put_own(key.clone(), vec![2]).unwrap();
        for worse in [vec![1], vec![2, 9]] {
            let error = values.put_remote(remote(key.clone(), &worse), at);
            assert_eq!(error, Err(QueryError::Superseded));
        }
        // Our own comes back to us.
        values.put_remote(remote(key.clone(), &[2]), at).unwrap();
        assert_eq!(values.counts(), (1, 0));
        values.put_remote(remote(key.clone(), &[3]), at).unwrap();
        assert_eq!(get(&values, &key), Some(vec![3]));
        let error = values.put_own(key.clone(), vec![2, 0]);
        assert_eq!(error, Err(QueryError::Superseded));
        // The better one goes: ours is there.
        values.expire(at + Config::default().value_ttl());
        assert_eq!(get(&values, &key), Some(vec![2]));
        values.put_remote(remote(key.clone(), &[3]), at).unwrap();
        values.put_own(key.clone(), vec![4]).unwrap();
        assert_eq!(get(&values, &key), Some(vec![4]));
        values.remove_own(&key);
        assert_eq!(get(&values, &key), Some(vec![3]));
        assert!(consistent(&values));
    }

    #[test]
    fn nobody_shortens_the_life_of_a_value() {
        let (start, second) = (now(), Duration::from_secs(1));
        let hour = 3600 * second;
        let builder = Config::builder().value_republish_interval(second);
        let mut values = values(builder.value_ttl(hour));
        values.put_remote(remote(key(1), &[1]), start).unwrap();
        // The same again, which says that it is over at once.
        values
            .put_remote(remote(key(1), &[1]), start + second)
            .unwrap();
        assert_eq!(values.next_expiry(), Some(start + second + hour));
        let kept = values.get(&key(1)).unwrap();
        assert_eq!(kept.expires, Some(start + second + hour));
        assert!(consistent(&values));
    }

    #[test]
    fn what_nobody_can_judge_and_what_is_invalid_or_too_large_is_refused() {
        let mut values = values(Config::builder().max_value_bytes(9));
        let at = now();
        let mut put = |key: &[u8], value: &[u8]| values.put_remote(remote(key.to_vec(), value), at);
        let namespace = QueryError::NoValidator("other".into());
        assert_eq!(put(b"/other/key", &[1]), Err(namespace));
        assert_eq!(put(b"key", &[1]), Err(QueryError::NoValidator("".into())));
        assert!(matches!(
            put(b"/test/key", &[0]),
            Err(QueryError::InvalidValue(_))
        ));
        assert!(matches!(
            put(b"/test/key", &[1; 10]),
            Err(QueryError::InvalidValue(_))
        ));
        let long = [b"/test/".as_slice(), &[7; MAX_KEY_BYTES]].concat();
        assert!(matches!(put(&long, &[1]), Err(QueryError::InvalidValue(_))));
        assert_eq!(put(b"/test/key", &[1; 9]), Ok(()));
        assert_eq!(values.counts(), (0, 1));
    }

    #[test]
    fn a_flood_of_values_displaces_the_farthest_and_never_our_own() {
        let mut values = values(Config::builder().max_remote_values(10).max_values(1));
        let at = now();
        values.put_own(key(0), vec![1]).unwrap();
        assert_eq!(values.put_own(key(1), vec![1]), Err(QueryError::ValuesFull));
        let mut refused = 0;
        for n in 2..1000 {
            match values.put_remote(remote(key(n), &[1]), at) {
                Ok(()) => {}
                Err(QueryError::ValuesFull) => refused += 1,
                Err(other) => panic!("{other}"),
            }
            assert!(consistent(&values));
        }
        assert!(refused > 900);
        let mut nearest: Vec<_> = (2..1000).map(key).collect();
        nearest.sort_by_key(|key| values.distance(key));
        nearest.truncate(10);
        nearest.sort_unstable();
        assert!(values.remote.keys().eq(nearest.iter()));
        assert_eq!(values.own(&key(0)), Some(&[1][..]));
        // One that is known is renewed though there is no room.
        let known = nearest.swap_remove(0);
        values.put_remote(remote(known.clone(), &[2]), at).unwrap();
        assert_eq!(get(&values, &known), Some(vec![2]));
        // And a better one of ours, however far it is.
        values.put_remote(remote(key(0), &[9]), at).unwrap();
        assert_eq!(get(&values, &key(0)), Some(vec![9]));
    }

    #[test]
    fn a_namespace_that_is_full_leaves_room_for_another() {
        let mut values = values(Config::builder().max_remote_values(10));
        values.validators.set("other".into(), Arc::new(Greater));
        values
            .put_remote(remote(b"/other/1".to_vec(), &[1]), now())
            .unwrap();
        for n in 0..1000 {
            // Some are refused.
            let _ = values.put_remote(remote(key(n), &[1]), now());
        }
        assert_eq!(values.counts(), (0, 11));
        assert_eq!(get(&values, b"/other/1"), Some(vec![1]));
        assert!(consistent(&values));
    }

    #[test]
    fn values_of_others_expire_by_themselves_and_are_renewed() {
        let (start, second) = (now(), Duration::from_secs(1));
        let builder = Config::builder().value_republish_interval(second);
        let mut values = values(builder.value_ttl(10 * second));
        values.put_remote(remote(key(1), &[1]), start).unwrap();
        values
            .put_remote(remote(key(2), &[1]), start + second)
            .unwrap();
        values
            .put_remote(remote(key(1), &[1]), start + 2 * second)
            .unwrap();
        assert_eq!(values.next_expiry(), Some(start + 11 * second));
        values.expire(start + 11 * second);
        assert_eq!(values.counts(), (0, 1));
        values.expire(start + 12 * second);
        assert_eq!(values.next_expiry(), None);
        assert!(consistent(&values) && values.remote.is_empty());
    }
}
