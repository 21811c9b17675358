use std::time::{Duration, SystemTime};

use libp2p_core::SignedEnvelope;
use libp2p_identity::{Keypair, PeerId, SigningError};
use prost::Message as _;

use crate::generated::circuit as wire;

/// What the signature is for: the domain of the specification's signed envelope.
pub(crate) const DOMAIN: &str = "libp2p-relay-rsvp";

/// "libp2p-relay-rsvp" in the multicodec table.
pub(crate) const CODEC: [u8; 2] = [0x03, 0x02];

/// The longest signed voucher that is looked at: an RSA-4096 key and signature take 1.2 kB.
const MAX_BYTES: usize = 4096;

/// A relay's signed word that it serves a peer.
///
/// [circuit-v2, Reservation Vouchers](https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#reservation-vouchers).
/// "This is not currently enforced so the vouchers are only advisory."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Voucher {
    /// "the peer ID of the relay".
    pub relay: PeerId,
    /// "the peer ID of the reserving peer".
    pub peer: PeerId,
    /// "the UNIX UTC expiration time for the reservation", in seconds.
    pub expires: u64,
}

/// Why a voucher proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VoucherError {
    /// The bytes are no signed envelope with a voucher in it.
    #[error("these bytes are no voucher")]
    Malformed,
    /// The signature is wrong, or was made for another purpose.
    #[error("the voucher's signature does not fit")]
    WrongSignature,
    /// Somebody else signed it.
    #[error("the voucher was not signed by the relay it names")]
    NotSignedByRelay,
    /// It names another relay.
    #[error("the voucher is one of another relay")]
    OtherRelay,
    /// It names another peer: a replay.
    #[error("the voucher was given to another peer")]
    OtherPeer,
    /// Its time is over.
    #[error("the voucher has expired")]
    Expired,
}

impl Voucher {
    /// Signs it; `key` is the relay's.
    ///
    /// # Errors
    ///
    /// The key cannot sign.
    pub fn sign(&self, key: &Keypair) -> Result<Vec<u8>, SigningError> {
        // "The wire representation is canonicalized, where elements of the message are written in field id order."
        let payload = wire::Voucher {
            relay: Some(self.relay.to_bytes().into()),
            peer: Some(self.peer.to_bytes().into()),
            expiration: Some(self.expires),
        };
        let envelope = SignedEnvelope::new(
            key,
            DOMAIN.to_owned(),
            CODEC.to_vec(),
            payload.encode_to_vec(),
        )?;
        Ok(envelope.into_protobuf_encoding())
    }

    /// Reads a voucher and checks that the relay it names signed it.
    ///
    /// # Errors
    ///
    /// [`VoucherError::Malformed`], [`WrongSignature`](VoucherError::WrongSignature) or
    /// [`NotSignedByRelay`](VoucherError::NotSignedByRelay).
    pub fn open(bytes: &[u8]) -> Result<Self, VoucherError> {
        if bytes.len() > MAX_BYTES {
            return Err(VoucherError::Malformed);
        }
        let envelope =
            SignedEnvelope::from_protobuf_encoding(bytes).map_err(|_| VoucherError::Malformed)?;
        let (payload, key) = envelope
            .payload_and_signing_key(DOMAIN.to_owned(), &CODEC)
            .map_err(|_| VoucherError::WrongSignature)?;
        let wire = wire::Voucher::decode(payload).map_err(|_| VoucherError::Malformed)?;
        let (Some(relay), Some(peer), Some(expires)) = (wire.relay, wire.peer, wire.expiration)
        else {
            return Err(VoucherError::Malformed);
        };
        let id = |bytes: &[u8]| PeerId::from_bytes(bytes).map_err(|_| VoucherError::Malformed);
        let voucher = Self {
            relay: id(&relay)?,
            peer: id(&peer)?,
            expires,
        };
        if voucher.relay != key.to_peer_id() {
            return Err(VoucherError::NotSignedByRelay);
        }
        Ok(voucher)
    }

    /// Whether it says at `now` that `relay` serves `peer`.
    ///
    /// # Errors
    ///
    /// [`VoucherError::OtherRelay`], [`OtherPeer`](VoucherError::OtherPeer) or [`Expired`](VoucherError::Expired).
    pub fn check(&self, relay: PeerId, peer: PeerId, now: SystemTime) -> Result<(), VoucherError> {
        if self.relay != relay {
            return Err(VoucherError::OtherRelay);
        }
        if self.peer != peer {
            return Err(VoucherError::OtherPeer);
        }
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        if self.expires <= now.as_secs() {
            return Err(VoucherError::Expired);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voucher(key: &Keypair) -> Voucher {
        Voucher {
            relay: key.public().to_peer_id(),
            peer: PeerId::random(),
            expires: 1000,
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_voucher_is_read_as_it_was_signed() {
        let key = Keypair::generate_ed25519();
        let voucher = voucher(&key);
        let signed = voucher.sign(&key).unwrap();
        assert_eq!(Voucher::open(&signed), Ok(voucher));
        assert_eq!(voucher.check(voucher.relay, voucher.peer, at(999)), Ok(()));
    }

    #[test]
    fn the_envelope_is_that_of_go_libp2p() {
        // Ed25519 signs deterministically: key from the seed 0..32, domain "libp2p-relay-rsvp", codec 0x0302, fields in order
        // of their ids (go-libp2p, core/record and circuitv2/proto/voucher.go).
        let key = Keypair::ed25519_from_bytes(std::array::from_fn::<u8, 32, _>(|i| {
            u8::try_from(i).unwrap()
        }))
        .unwrap();
        let relay = key.public().to_peer_id();
        let signed = Voucher {
            relay,
            peer: relay,
            expires: 1000,
        }
        .sign(&key)
        .unwrap();
        let mut expected = vec![0x0a, 36];
        expected.extend(key.public().encode_protobuf());
        expected.extend([0x12, 2, 0x03, 0x02]);
        let mut payload = vec![0x0a, 38];
        payload.extend(relay.to_bytes());
        payload.extend([0x12, 38]);
        payload.extend(relay.to_bytes());
        payload.extend([0x18, 0xe8, 0x07]);
        expected.extend([0x1a, u8::try_from(payload.len()).unwrap()]);
        expected.extend(&payload);
        let mut to_sign = vec![17];
        to_sign.extend(b"libp2p-relay-rsvp");
        to_sign.extend([2, 0x03, 0x02, u8::try_from(payload.len()).unwrap()]);
        to_sign.extend(&payload);
        expected.extend([0x2a, 64]);
        expected.extend(key.sign(&to_sign).unwrap());
        assert_eq!(signed, expected);
    }

    #[test]
    fn a_replayed_voucher_proves_nothing() {
        let key = Keypair::generate_ed25519();
        let voucher = voucher(&key);
        let other = PeerId::random();
        assert_eq!(
            voucher.check(voucher.relay, other, at(999)),
            Err(VoucherError::OtherPeer)
        );
        assert_eq!(
            voucher.check(other, voucher.peer, at(999)),
            Err(VoucherError::OtherRelay)
        );
        assert_eq!(
            voucher.check(voucher.relay, voucher.peer, at(1000)),
            Err(VoucherError::Expired)
        );
    }

    #[test]
    fn a_voucher_that_another_key_signed_is_refused() {
        let key = Keypair::generate_ed25519();
        let forged = voucher(&key).sign(&Keypair::generate_ed25519()).unwrap();
        assert_eq!(Voucher::open(&forged), Err(VoucherError::NotSignedByRelay));
    }

    #[test]
    fn a_signature_for_another_purpose_is_refused() {
        let key = Keypair::generate_ed25519();
        let payload = wire::Voucher::default().encode_to_vec();
        for (domain, codec) in [("libp2p-peer-record", CODEC), (DOMAIN, [0x03, 0x01])] {
            let envelope =
                SignedEnvelope::new(&key, domain.to_owned(), codec.to_vec(), payload.clone())
                    .unwrap()
                    .into_protobuf_encoding();
            assert_eq!(Voucher::open(&envelope), Err(VoucherError::WrongSignature));
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let key = Keypair::generate_ed25519();
        let voucher = voucher(&key);
        let signed = voucher.sign(&key).unwrap();
        for at in 0..signed.len() {
            let mut bytes = signed.clone();
            bytes[at] ^= 1;
            assert_ne!(Voucher::open(&bytes), Ok(voucher), "byte {at}");
        }
        for length in 0..signed.len() {
            assert!(Voucher::open(&signed[..length]).is_err());
        }
        assert_eq!(
            Voucher::open(&[0; MAX_BYTES + 1]),
            Err(VoucherError::Malformed)
        );
    }
}
