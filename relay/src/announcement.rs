//! How relays spread the word: a signed message for pubsub, the DHT or anything else that carries bytes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libp2p_core::{Multiaddr, PeerRecord, SignedEnvelope, multiaddr::Protocol};
use libp2p_identity::{Keypair, PeerId, SigningError};
use prost::Message as _;

use crate::{
    CircuitLimit,
    address::{is_relayed, without_peer},
    generated::announcement as wire,
    public::is_public,
};

pub(crate) const DOMAIN: &str = "anypath-relay-announcement";
pub(crate) const PAYLOAD_TYPE: &[u8] = b"/anypath/relay-announcement/1";
const VERSION: u32 = 1;

/// The longest announcement that is read: 16 addresses, and two envelopes with keys of RSA 2048.
const MAX_BYTES: usize = 4096;

/// Addresses that are taken from one announcement: the first ones.
const MAX_ADDRESSES: usize = 16;

/// An announcement that claims to hold for longer holds for an hour: loads change.
const MAX_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// How far the relay's clock may be ahead of this node's.
const MAX_SKEW: Duration = Duration::from_secs(5 * 60);

/// How much of a relay is taken. A maximum of 0 means that there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Reservations held at the relay.
    pub reservations: u32,
    /// Reservations that it gives at most.
    pub max_reservations: u32,
    /// Circuits open through the relay.
    pub circuits: u32,
    /// Circuits that it opens at most.
    pub max_circuits: u32,
}

impl Load {
    /// The fuller of the two, in percent, at most 100.
    #[must_use]
    pub fn percent(&self) -> u8 {
        let share = |used: u32, max: u32| {
            let percent = (u64::from(used) * 100).checked_div(u64::from(max));
            u8::try_from(percent.unwrap_or(0).min(100)).unwrap_or(100)
        };
        share(self.reservations, self.max_reservations).max(share(self.circuits, self.max_circuits))
    }
}

/// A relay's own word that it relays, as others carry it.
///
/// The bytes are a libp2p signed envelope around the protobuf message `RelayAnnouncement`
/// (`proto/announcement.proto`), whose addresses are a signed peer record in turn: who holds the
/// bytes can hand them on, and nobody can change them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Announcement {
    /// Who relays, and signed.
    pub relay: PeerId,
    /// Where it can be dialled, without `/p2p`; from 1 to 16, none of them relayed.
    pub addresses: Vec<Multiaddr>,
    /// How busy it was.
    pub load: Load,
    /// What it allows each circuit to carry; `None`: any amount.
    pub limit: Option<CircuitLimit>,
    /// When it was written, by the relay's clock.
    pub issued: SystemTime,
    /// When it is out of date.
    pub expires: SystemTime,
}

/// Bytes that are no announcement to rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidAnnouncement {
    /// More than 4,096 bytes.
    #[error("an announcement longer than 4096 bytes")]
    TooLong,
    /// No signed envelope, or no announcement in it.
    #[error("bytes that are no announcement")]
    Undecodable,
    /// The signature is wrong, or was given for something else.
    #[error("the signature does not fit")]
    Signature,
    /// The peer record in it is another peer's.
    #[error("the announcement speaks for another peer")]
    Stranger,
    /// A later version than this crate knows.
    #[error("an announcement of an unknown version")]
    Version,
    /// No address at which the relay can be dialled.
    #[error("no address to dial")]
    NoAddress,
    /// Its time is over.
    #[error("the announcement is out of date")]
    Expired,
    /// It was written in the future: one of both clocks is wrong.
    #[error("the announcement comes from the future")]
    FromTheFuture,
}

impl Announcement {
    /// Leaves addresses out to which a stranger should not be able to send this node: those that only mean something
    /// within one host or one network, and ports of other services.
    pub(crate) fn retain_public_addresses(&mut self) {
        self.addresses
            .retain(|address| is_public(address) && has_port_of_peers(address));
    }

    /// Writes and signs an announcement; `key` is the relay's. At most 4,096 bytes for keys other
    /// than RSA. `lifetime` is cut to one hour.
    ///
    /// # Errors
    ///
    /// The key cannot sign.
    pub fn sign(
        key: &Keypair,
        addresses: &[Multiaddr],
        load: Load,
        limit: Option<CircuitLimit>,
        issued: SystemTime,
        lifetime: Duration,
    ) -> Result<Vec<u8>, SigningError> {
        let record = PeerRecord::new_interop(key, dialable(addresses.iter().cloned()))?;
        let seconds = lifetime.min(MAX_LIFETIME).as_secs();
        let payload = wire::RelayAnnouncement {
            version: VERSION,
            peer_record: record
                .into_signed_envelope()
                .into_protobuf_encoding()
                .into(),
            issued: millis(issued),
            lifetime: u32::try_from(seconds).unwrap_or(u32::MAX),
            load: Some(wire::Load {
                reservations: load.reservations,
                max_reservations: load.max_reservations,
                circuits: load.circuits,
                max_circuits: load.max_circuits,
            }),
            limit: limit.map(|limit| wire::Limit {
                duration: limit.duration.map_or(0, |duration| {
                    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
                }),
                data: limit.bytes.unwrap_or(0),
            }),
        };
        let envelope = SignedEnvelope::new(
            key,
            DOMAIN.to_owned(),
            PAYLOAD_TYPE.to_vec(),
            payload.encode_to_vec(),
        )?;
        Ok(envelope.into_protobuf_encoding())
    }

    /// Reads what somebody sent. Nothing in it is believed that the relay did not sign.
    ///
    /// # Errors
    ///
    /// [`InvalidAnnouncement`]; the sender need not be the one at fault where it only passed the
    /// bytes on.
    pub fn verify(bytes: &[u8], now: SystemTime) -> Result<Self, InvalidAnnouncement> {
        if bytes.len() > MAX_BYTES {
            return Err(InvalidAnnouncement::TooLong);
        }
        let envelope = SignedEnvelope::from_protobuf_encoding(bytes)
            .map_err(|_| InvalidAnnouncement::Undecodable)?;
        let (payload, key) = envelope
            .payload_and_signing_key(DOMAIN.to_owned(), PAYLOAD_TYPE)
            .map_err(|_| InvalidAnnouncement::Signature)?;
        let message = wire::RelayAnnouncement::decode(payload)
            .map_err(|_| InvalidAnnouncement::Undecodable)?;
        if message.version != VERSION {
            return Err(InvalidAnnouncement::Version);
        }
        let issued = UNIX_EPOCH
            .checked_add(Duration::from_millis(message.issued))
            .ok_or(InvalidAnnouncement::Undecodable)?;
        let lifetime = Duration::from_secs(message.lifetime.into()).min(MAX_LIFETIME);
        let expires = issued
            .checked_add(lifetime)
            .ok_or(InvalidAnnouncement::Undecodable)?;
        if now.checked_add(MAX_SKEW).is_some_and(|last| issued > last) {
            return Err(InvalidAnnouncement::FromTheFuture);
        }
        if expires <= now {
            return Err(InvalidAnnouncement::Expired);
        }
        let record = SignedEnvelope::from_protobuf_encoding(&message.peer_record)
            .map_err(|_| InvalidAnnouncement::Undecodable)
            .and_then(|record| {
                PeerRecord::from_signed_envelope_interop(record)
                    .map_err(|_| InvalidAnnouncement::Signature)
            })?;
        let relay = record.peer_id();
        if relay != key.to_peer_id() {
            return Err(InvalidAnnouncement::Stranger);
        }
        let addresses = dialable(record.addresses().iter().cloned());
        if addresses.is_empty() {
            return Err(InvalidAnnouncement::NoAddress);
        }
        let load = message.load.unwrap_or_default();
        Ok(Self {
            relay,
            addresses,
            load: Load {
                reservations: load.reservations,
                max_reservations: load.max_reservations,
                circuits: load.circuits,
                max_circuits: load.max_circuits,
            },
            limit: message.limit.and_then(|limit| {
                CircuitLimit::announced(
                    Some(Duration::from_secs(limit.duration.into())),
                    Some(limit.data),
                )
            }),
            issued,
            expires,
        })
    }
}

/// The addresses that somebody could dial, without `/p2p`.
fn dialable(addresses: impl Iterator<Item = Multiaddr>) -> Vec<Multiaddr> {
    let mut dialable: Vec<Multiaddr> = Vec::new();
    for address in addresses {
        let address = without_peer(&address);
        if !address.is_empty()
            && !is_relayed(&address)
            && !dialable.contains(&address)
            && dialable.len() < MAX_ADDRESSES
        {
            dialable.push(address);
        }
    }
    dialable
}

/// Below are services that libp2p is none of, but for the ones that every firewall lets out.
fn has_port_of_peers(address: &Multiaddr) -> bool {
    address.iter().all(|protocol| match protocol {
        Protocol::Tcp(port) | Protocol::Udp(port) => port >= 1024 || matches!(port, 80 | 443),
        _ => true,
    })
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "announcement_tests.rs"]
mod tests;
