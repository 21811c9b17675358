//! Which values a key may have, and which of several is the one (libp2p's kad-dht specification, "Entry validation").

use std::{cmp::Ordering, collections::BTreeMap, fmt, sync::Arc};

use libp2p_identity::PeerId;
use multihash::Multihash;
use sha2::{Digest as _, Sha256};

use crate::ipns::Ipns;

/// The rules for the values of one namespace: what stands between the first two slashes of a key. Every node that keeps
/// such values has to have the same ones.
///
/// Values come from strangers: no method may panic, whatever they hold.
pub trait Validator: Send + Sync {
    /// Whether the key may have the value. May look at the clock, as for values that expire.
    fn validate(&self, key: &[u8], value: &[u8]) -> Result<(), InvalidValue>;

    /// Whether a value that was valid when it came still is: asked whenever it is served or compared, so that it should cost no signature.
    /// By default it is judged once more.
    fn is_still_valid(&self, key: &[u8], value: &[u8]) -> bool {
        self.validate(key, value).is_ok()
    }

    /// Which of two valid values of the key is better: `Greater` if `one` is. The better one takes the other's place;
    /// of two that are equal, the one that is there stays.
    fn compare(&self, key: &[u8], one: &[u8], other: &[u8]) -> Ordering;
}

/// Why a value cannot be its key's, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

impl InvalidValue {
    /// With a reason.
    pub fn new(reason: impl fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

/// The namespace `pk`: public keys by the peer ids that are made of them (kad-dht specification, "Public key records").
#[derive(Debug, Clone, Copy, Default)]
pub struct PublicKeys;

impl PublicKeys {
    /// The namespace.
    pub const NAMESPACE: &'static str = "pk";

    /// The key under which a peer's public key is found.
    pub fn key(of: &PeerId) -> Vec<u8> {
        [b"/pk/".as_slice(), &of.to_bytes()].concat()
    }
}

impl Validator for PublicKeys {
    fn validate(&self, key: &[u8], value: &[u8]) -> Result<(), InvalidValue> {
        let id = key
            .strip_prefix(b"/pk/")
            .and_then(|id| PeerId::from_bytes(id).ok())
            .ok_or_else(|| InvalidValue::new("the key is not /pk/ and a peer id"))?;
        // Keys of kinds that this node cannot use are others' all the same, so none is decoded further.
        if value.len() > MAX_KEY_BYTES || !is_public_key(value) {
            return Err(InvalidValue::new("not the encoding of a public key"));
        }
        let hash: Result<Multihash<64>, _> = if value.len() <= MAX_INLINE_KEY_BYTES {
            Multihash::wrap(IDENTITY, value)
        } else {
            Multihash::wrap(SHA2_256, &Sha256::digest(value))
        };
        if hash.is_ok_and(|hash| *id.as_ref() == hash) {
            Ok(())
        } else {
            Err(InvalidValue::new("the public key is another peer's"))
        }
    }

    fn is_still_valid(&self, _: &[u8], _: &[u8]) -> bool {
        true
    }

    fn compare(&self, _: &[u8], _: &[u8], _: &[u8]) -> Ordering {
        // There is one.
        Ordering::Equal
    }
}

// Multicodec's numbers.
const IDENTITY: u64 = 0x00;
const SHA2_256: u64 = 0x12;
/// RSA's of 16,384 bits have 2,100.
const MAX_KEY_BYTES: usize = 4 << 10;
/// Shorter keys are the peer id themselves (peer-ids specification).
const MAX_INLINE_KEY_BYTES: usize = 42;

/// The message `PublicKey` of the peer-ids specification, whose encoding is deterministic: a type of four, and bytes.
fn is_public_key(value: &[u8]) -> bool {
    let [0x08, 0..=3, 0x12, rest @ ..] = value else {
        return false;
    };
    unsigned_varint::decode::usize(rest).is_ok_and(|(bytes, rest)| rest.len() == bytes)
}

/// The validators by their namespaces.
#[derive(Clone)]
pub(crate) struct Validators(BTreeMap<String, Arc<dyn Validator>>);

impl Default for Validators {
    fn default() -> Self {
        let mut validators = Self(BTreeMap::new());
        validators.set(PublicKeys::NAMESPACE.to_owned(), Arc::new(PublicKeys));
        validators.set(Ipns::NAMESPACE.to_owned(), Arc::new(Ipns));
        validators
    }
}

impl fmt::Debug for Validators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Validators {
    pub(crate) fn set(&mut self, namespace: String, validator: Arc<dyn Validator>) {
        self.0.insert(namespace, validator);
    }

    /// The one of the key's namespace.
    pub(crate) fn of(&self, key: &[u8]) -> Option<&dyn Validator> {
        self.0.get(namespace(key)?).map(Arc::as_ref)
    }
}

/// What stands between the first two slashes.
pub(crate) fn namespace(key: &[u8]) -> Option<&str> {
    let rest = key.strip_prefix(b"/")?;
    let end = rest.iter().position(|byte| *byte == b'/')?;
    std::str::from_utf8(rest.get(..end)?).ok()
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;
    use multihash_codetable::{Code, MultihashDigest as _};

    use super::*;

    #[test]
    fn a_public_key_is_valid_for_its_peer_alone() {
        let (one, other) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let key = PublicKeys::key(&one.public().to_peer_id());
        assert_eq!(namespace(&key), Some("pk"));
        let validate = |key: &[u8], value: &[u8]| PublicKeys.validate(key, value);
        assert_eq!(validate(&key, &one.public().encode_protobuf()), Ok(()));
        assert!(validate(&key, &other.public().encode_protobuf()).is_err());
        assert!(validate(&key, b"").is_err());
        assert!(validate(b"/pk/", &one.public().encode_protobuf()).is_err());
        assert!(validate(b"/pk/12D3KooW", &one.public().encode_protobuf()).is_err());
    }

    #[test]
    fn public_keys_that_are_no_part_of_a_peer_id_are_found_by_their_hash() {
        // As RSA's: the contents are nobody's business.
        let value = [&[0x08, 0, 0x12, 0xa6, 0x02][..], &[7; 294]].concat();
        let id = PeerId::from_multihash(Code::Sha2_256.digest(&value)).unwrap();
        let key = PublicKeys::key(&id);
        assert_eq!(PublicKeys.validate(&key, &value), Ok(()));
        let mut other = value.clone();
        other.push(0);
        assert!(PublicKeys.validate(&key, &other).is_err());
        // Anything else would have a hash, too.
        let junk = vec![9; 300];
        let id = PeerId::from_multihash(Code::Sha2_256.digest(&junk)).unwrap();
        assert!(PublicKeys.validate(&PublicKeys::key(&id), &junk).is_err());
    }

    #[test]
    fn a_namespace_stands_between_two_slashes() {
        assert_eq!(namespace(b"/ipns/\x00\x01/"), Some("ipns"));
        assert_eq!(namespace(b"//x"), Some(""));
        for key in [&b""[..], b"/", b"/ipns", b"ipns/x", b"/\xff/x"] {
            assert_eq!(namespace(key), None, "{key:?}");
        }
    }
}
