//! IPNS records (<https://specs.ipfs.tech/ipns/ipns-record/>): what a name points to, signed by its key.

use std::{
    cmp::Ordering,
    time::{Duration, SystemTime},
};

use ciborium::Value;
use libp2p_identity::{Keypair, PeerId, PublicKey};
use prost::Message as _;

use crate::{
    generated::pb::{IpnsEntry, ipns_entry::ValidityType},
    value::{InvalidValue, Validator},
};

/// The longest record ("Record Size Limit").
const MAX_RECORD_BYTES: usize = 10 << 10;
/// The first second that the format cannot name.
const YEAR_10000: u64 = 253_402_300_800;
/// What Go's readers of CBOR take for a number.
const MAX_NUMBER: u64 = i64::MAX.unsigned_abs();
/// What the data is signed behind.
const SIGNED_PREFIX: &[u8] = b"ipns-signature:";
/// A public key that is longer is no part of the peer id, so the record carries it (peer-ids specification).
const MAX_INLINE_KEY_BYTES: usize = 42;

/// The namespace `ipns`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ipns;

impl Ipns {
    /// The namespace.
    pub const NAMESPACE: &'static str = "ipns";

    /// The key under which the record of a name is found. A name is the peer id of the key that signs it.
    pub fn key(name: &PeerId) -> Vec<u8> {
        [b"/ipns/".as_slice(), &name.to_bytes()].concat()
    }
}

impl Validator for Ipns {
    fn validate(&self, key: &[u8], value: &[u8]) -> Result<(), InvalidValue> {
        let name = key
            .strip_prefix(b"/ipns/")
            .and_then(|name| PeerId::from_bytes(name).ok())
            .ok_or_else(|| InvalidValue::new("the key is not /ipns/ and a peer id"))?;
        match IpnsRecord::verify(&name, value)?.has_expired() {
            true => Err(InvalidValue::new("the record has expired")),
            false => Ok(()),
        }
    }

    fn is_still_valid(&self, _: &[u8], value: &[u8]) -> bool {
        IpnsRecord::of(value).is_some_and(|record| !record.has_expired())
    }

    /// The higher sequence number, then the later end, then the greater bytes, as boxo.
    fn compare(&self, _: &[u8], one: &[u8], other: &[u8]) -> Ordering {
        let rank = |bytes| {
            let record = IpnsRecord::of(bytes)?;
            Some((record.sequence, record.valid_until))
        };
        rank(one).cmp(&rank(other)).then_with(|| one.cmp(other))
    }
}

/// What an IPNS record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpnsRecord {
    /// The path that the name points to, such as `/ipfs/bafy…`.
    pub value: Vec<u8>,
    /// The record with the highest number counts.
    pub sequence: u64,
    /// The end of its life.
    pub valid_until: SystemTime,
    /// How long it may be taken from a cache.
    pub ttl: Duration,
}

impl IpnsRecord {
    /// What a record says whose signature is the name's, expired or not ("Record Verification").
    ///
    /// # Errors
    ///
    /// It is not such a record, or its key is of a kind that `libp2p-identity` is built without (Ed25519 and RSA are there).
    pub fn verify(name: &PeerId, bytes: &[u8]) -> Result<Self, InvalidValue> {
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(InvalidValue::new("the record has more than 10 KiB"));
        }
        let entry = IpnsEntry::decode(bytes).map_err(InvalidValue::new)?;
        if entry.signature_v2.is_empty() || entry.data.is_empty() {
            return Err(InvalidValue::new("the record has no version 2 signature"));
        }
        let key = match entry.pub_key.as_slice() {
            // The peer id of a short key is the key.
            [] => name.as_ref().digest(),
            key => key,
        };
        let key = PublicKey::try_decode_protobuf(key).map_err(InvalidValue::new)?;
        if key.to_peer_id() != *name {
            return Err(InvalidValue::new("the public key is another name's"));
        }
        if !key.verify(&[SIGNED_PREFIX, &entry.data].concat(), &entry.signature_v2) {
            return Err(InvalidValue::new("the signature is wrong"));
        }
        let (record, validity) = Self::from_data(&entry.data)?;
        // What version 1 signed may be left out, and must else be the same.
        let has_v1 = !entry.signature_v1.is_empty() || !entry.value.is_empty();
        if has_v1 && !(record.is_told_by(&entry) && entry.validity == validity) {
            return Err(InvalidValue::new("its two versions differ"));
        }
        Ok(record)
    }

    /// The record as other nodes take it, of both versions.
    ///
    /// # Errors
    ///
    /// Others would not take it: it is too long, its end is not in the years from 1970 to 9999, or its number is above 2^63 - 1, which is
    /// as far as boxo's go. Or the key cannot sign.
    pub fn sign(&self, key: &Keypair) -> Result<Vec<u8>, InvalidValue> {
        let since_epoch = self.valid_until.duration_since(SystemTime::UNIX_EPOCH);
        if since_epoch.map_or(true, |since| since.as_secs() >= YEAR_10000) {
            let reason = "valid_until is not in the years from 1970 to 9999";
            return Err(InvalidValue::new(reason));
        }
        if self.sequence > MAX_NUMBER {
            return Err(InvalidValue::new("the sequence number is above 2^63 - 1"));
        }
        let sign = |bytes: &[u8]| key.sign(bytes).map_err(InvalidValue::new);
        let validity = humantime::format_rfc3339_nanos(self.valid_until).to_string();
        let ttl = u64::try_from(self.ttl.as_nanos()).unwrap_or(MAX_NUMBER);
        let ttl = ttl.min(MAX_NUMBER);
        let data = self.to_data(validity.as_bytes(), ttl);
        let public = key.public().encode_protobuf();
        let entry = IpnsEntry {
            signature_v1: sign(&[&self.value, validity.as_bytes(), b"EOL"].concat())?,
            signature_v2: sign(&[SIGNED_PREFIX, &data].concat())?,
            value: self.value.clone(),
            validity_type: Some(ValidityType::Eol.into()),
            validity: validity.into_bytes(),
            sequence: Some(self.sequence),
            ttl: Some(ttl),
            pub_key: if public.len() > MAX_INLINE_KEY_BYTES {
                public
            } else {
                Vec::new()
            },
            data,
        };
        let bytes = entry.encode_to_vec();
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(InvalidValue::new("the record has more than 10 KiB"));
        }
        Ok(bytes)
    }

    /// What a record says that was verified before.
    fn of(bytes: &[u8]) -> Option<Self> {
        let entry = IpnsEntry::decode(bytes).ok()?;
        Self::from_data(&entry.data).ok().map(|(record, _)| record)
    }

    fn has_expired(&self) -> bool {
        #[expect(
            clippy::disallowed_methods,
            reason = "records expire by the wall clock"
        )]
        let now = SystemTime::now();
        self.valid_until < now
    }

    /// What is signed, with the end of its life as it stands there.
    fn from_data(data: &[u8]) -> Result<(Self, Vec<u8>), InvalidValue> {
        // Its depth is bounded by the decoder, its size by the record's.
        let Value::Map(fields) = ciborium::from_reader(data).map_err(InvalidValue::new)? else {
            return Err(InvalidValue::new("its data is no map"));
        };
        let field = |name: &str| {
            let field = fields.iter().find(|(key, _)| key.as_text() == Some(name));
            field
                .map(|(_, value)| value)
                .ok_or_else(|| InvalidValue::new(format!("its data has no {name}")))
        };
        let bytes = |name| {
            let bytes = field(name)?.as_bytes();
            bytes.ok_or_else(|| InvalidValue::new(format!("{name} is not bytes")))
        };
        let number = |name| {
            let number = field(name)?.as_integer();
            number
                .and_then(|number| u64::try_from(number).ok())
                .ok_or_else(|| InvalidValue::new(format!("{name} is no number from 0 on")))
        };
        if number("ValidityType")? != 0 {
            return Err(InvalidValue::new("its kind of validity is unknown"));
        }
        let validity = bytes("Validity")?;
        let text = std::str::from_utf8(validity).map_err(InvalidValue::new)?;
        let record = Self {
            value: bytes("Value")?.clone(),
            sequence: number("Sequence")?,
            valid_until: humantime::parse_rfc3339(text).map_err(InvalidValue::new)?,
            // A hint, without which boxo does, too.
            ttl: match field("TTL") {
                Ok(_) => Duration::from_nanos(number("TTL")?),
                Err(_) => Duration::ZERO,
            },
        };
        Ok((record, validity.clone()))
    }

    /// DAG-CBOR: shorter keys first.
    fn to_data(&self, validity: &[u8], ttl: u64) -> Vec<u8> {
        let fields = Value::Map(vec![
            (Value::from("TTL"), Value::from(ttl)),
            (Value::from("Value"), Value::Bytes(self.value.clone())),
            (Value::from("Sequence"), Value::from(self.sequence)),
            (Value::from("Validity"), Value::Bytes(validity.to_vec())),
            (Value::from("ValidityType"), Value::from(0)),
        ]);
        let mut data = Vec::new();
        match ciborium::into_writer(&fields, &mut data) {
            Ok(()) => data,
            Err(_) => unreachable!("a vector takes whatever is written"),
        }
    }

    fn is_told_by(&self, entry: &IpnsEntry) -> bool {
        entry.value == self.value
            && entry.validity_type() == ValidityType::Eol
            && entry.sequence() == self.sequence
            && Duration::from_nanos(entry.ttl()) == self.ttl
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sequence: u64, seconds: u64) -> IpnsRecord {
        IpnsRecord {
            value: b"/ipfs/bafkqaaa".to_vec(),
            sequence,
            valid_until: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            ttl: Duration::from_secs(300),
        }
    }

    const FAR: u64 = 10_000_000_000;

    #[test]
    fn a_record_is_its_name_s_and_says_what_was_signed() {
        let key = Keypair::generate_ed25519();
        let name = key.public().to_peer_id();
        let record = record(7, FAR);
        let bytes = record.sign(&key).unwrap();
        assert_eq!(IpnsRecord::verify(&name, &bytes), Ok(record));
        assert_eq!(Ipns.validate(&Ipns::key(&name), &bytes), Ok(()));
        let other = PeerId::random();
        assert!(Ipns.validate(&Ipns::key(&other), &bytes).is_err());
        assert!(Ipns.validate(b"/ipns/", &bytes).is_err());
    }

    #[test]
    fn no_byte_of_a_record_can_be_changed() {
        let key = Keypair::generate_ed25519();
        let name = key.public().to_peer_id();
        let bytes = record(1, FAR).sign(&key).unwrap();
        let said = IpnsRecord::verify(&name, &bytes).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                // The signature of version 1 is nobody's concern any more; nothing else may say something else.
                let now = IpnsRecord::verify(&name, &changed);
                assert!(now.is_err() || now == Ok(said.clone()), "byte {at}");
            }
            assert!(IpnsRecord::verify(&name, &bytes[..at]).is_err());
        }
    }

    #[test]
    fn version_1_may_be_left_out_and_must_not_contradict() {
        let key = Keypair::generate_ed25519();
        let name = key.public().to_peer_id();
        let bytes = record(1, FAR).sign(&key).unwrap();
        let entry = IpnsEntry::decode(bytes.as_slice()).unwrap();
        let v2 = IpnsEntry {
            signature_v2: entry.signature_v2.clone(),
            data: entry.data.clone(),
            ..IpnsEntry::default()
        };
        assert!(IpnsRecord::verify(&name, &v2.encode_to_vec()).is_ok());
        for contradiction in [
            IpnsEntry {
                value: b"/ipfs/other".to_vec(),
                ..entry.clone()
            },
            IpnsEntry {
                sequence: Some(2),
                ..entry.clone()
            },
            IpnsEntry {
                ttl: Some(1),
                ..entry.clone()
            },
            IpnsEntry {
                validity: b"2999-01-01T00:00:00Z".to_vec(),
                ..entry.clone()
            },
            // The same moment, which boxo compares as bytes.
            IpnsEntry {
                validity: [&entry.validity[..entry.validity.len() - 1], b"0Z"].concat(),
                ..entry.clone()
            },
            IpnsEntry {
                signature_v2: Vec::new(),
                ..entry
            },
        ] {
            assert!(IpnsRecord::verify(&name, &contradiction.encode_to_vec()).is_err());
        }
    }

    #[test]
    fn a_record_without_a_ttl_is_one() {
        let key = Keypair::generate_ed25519();
        let name = key.public().to_peer_id();
        let fields = Value::Map(vec![
            (Value::from("Value"), Value::Bytes(b"/ipfs/x".to_vec())),
            (Value::from("Sequence"), Value::from(1)),
            (
                Value::from("Validity"),
                Value::Bytes(b"2999-01-01T00:00:00Z".to_vec()),
            ),
            (Value::from("ValidityType"), Value::from(0)),
        ]);
        let mut data = Vec::new();
        ciborium::into_writer(&fields, &mut data).unwrap();
        let entry = IpnsEntry {
            signature_v2: key.sign(&[SIGNED_PREFIX, &data].concat()).unwrap(),
            data,
            ..IpnsEntry::default()
        };
        let record = IpnsRecord::verify(&name, &entry.encode_to_vec()).unwrap();
        assert_eq!(record.ttl, Duration::ZERO);
    }

    #[test]
    fn zeros_of_version_1_are_written() {
        // js-ipns takes a field that is not there for another value than the data's.
        let key = Keypair::generate_ed25519();
        let zero = IpnsRecord {
            ttl: Duration::ZERO,
            ..record(0, FAR)
        };
        let bytes = zero.sign(&key).unwrap();
        let entry = IpnsEntry::decode(bytes.as_slice()).unwrap();
        assert_eq!(
            (entry.validity_type, entry.sequence, entry.ttl),
            (Some(0), Some(0), Some(0))
        );
    }

    #[test]
    fn what_would_not_be_valid_is_not_signed() {
        let key = Keypair::generate_ed25519();
        assert!(record(1, YEAR_10000 - 1).sign(&key).is_ok());
        assert!(record(1, YEAR_10000).sign(&key).is_err());
        let numbered = IpnsRecord {
            sequence: MAX_NUMBER + 1,
            ..record(1, FAR)
        };
        assert!(numbered.sign(&key).is_err());
        let past = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        let before = IpnsRecord {
            valid_until: past,
            ..record(1, 0)
        };
        assert!(before.sign(&key).is_err());
        let long = IpnsRecord {
            value: vec![b'/'; MAX_RECORD_BYTES],
            ..record(1, FAR)
        };
        assert!(long.sign(&key).is_err());
    }

    #[test]
    fn what_has_expired_is_not_valid() {
        let key = Keypair::generate_ed25519();
        let name = key.public().to_peer_id();
        let bytes = record(1, 1_000_000_000).sign(&key).unwrap();
        assert!(IpnsRecord::verify(&name, &bytes).is_ok());
        assert!(Ipns.validate(&Ipns::key(&name), &bytes).is_err());
        assert!(!Ipns.is_still_valid(&Ipns::key(&name), &bytes));
        let lives = record(1, FAR).sign(&key).unwrap();
        assert!(Ipns.is_still_valid(&Ipns::key(&name), &lives));
    }

    #[test]
    fn the_higher_number_wins_and_then_the_later_end() {
        let key = Keypair::generate_ed25519();
        let sign = |sequence, seconds| record(sequence, seconds).sign(&key).unwrap();
        let order = |one: &[u8], other: &[u8]| Ipns.compare(b"", one, other);
        let (old, longer, new) = (sign(1, FAR), sign(1, FAR + 1), sign(2, FAR - 1));
        assert_eq!(order(&new, &longer), Ordering::Greater);
        assert_eq!(order(&longer, &old), Ordering::Greater);
        assert_eq!(order(&old, &longer), Ordering::Less);
        assert_eq!(order(&old, &old), Ordering::Equal);
        assert_eq!(order(b"junk", &old), Ordering::Less);
    }

    #[test]
    fn deep_and_long_data_is_refused() {
        // Nested arrays as deep as the record is long.
        for data in [vec![0x81; MAX_RECORD_BYTES - 100], vec![0x9f; 9000]] {
            assert!(IpnsRecord::from_data(&data).is_err());
        }
        // A map that says that it has 2^64 - 1 entries, bytes that say so, too.
        for head in [0xbb, 0x5b] {
            let data = [&[head][..], &[0xff; 8]].concat();
            assert!(IpnsRecord::from_data(&data).is_err());
        }
        let name = PeerId::random();
        assert!(IpnsRecord::verify(&name, &vec![0; MAX_RECORD_BYTES + 1]).is_err());
    }
}
