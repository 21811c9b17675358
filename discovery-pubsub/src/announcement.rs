//! What peers have to offer: content, relaying, a role. The wire format is `proto/announcement.proto`.

use std::fmt;

use bytes::Bytes;
use cid::Cid;
use libp2p_core::SignedEnvelope;
use libp2p_identity::{Keypair, PeerId};
use prost::Message as _;
use serde::Deserialize;

use crate::{AnnounceError, ProtocolViolation, config::MAX_CONTENT, generated::pb};

const VERSION: u32 = 1;
/// Longest name of a piece of content, in bytes.
const MAX_NAME_BYTES: usize = 128;
/// Longest role, in bytes.
const MAX_ROLE_BYTES: usize = 32;
/// Longest relay announcement, in bytes: a signed record with 16 long addresses.
const MAX_RELAY_BYTES: usize = 4096;

/// RFC 0002 of libp2p: keeps the signature from meaning anything elsewhere.
const ENVELOPE_DOMAIN: &str = "anypath-announcement";
const ENVELOPE_TYPE: &[u8] = b"/anypath/announcement";

/// What is announced beside peers themselves, each on a topic of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Service {
    /// Content that a peer provides.
    Content,
    /// Peers that relay.
    Relay,
    /// Roles and load.
    Role,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Content, Self::Relay, Self::Role];

    /// The topic of this service: `<namespace>/content/1` and so on.
    pub fn topic(self, namespace: &str) -> String {
        format!("{namespace}/{self}/1")
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Content => "content",
            Self::Relay => "relay",
            Self::Role => "role",
        })
    }
}

/// A piece of content that a peer provides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// What it is.
    pub cid: Cid,
    /// Its size in bytes, if the provider says so. Nobody checked.
    pub size: Option<u64>,
    /// A name for people, at most 128 bytes. Not to be used as a path.
    pub name: Option<String>,
}

impl Content {
    /// Content without size and name.
    pub fn new(cid: Cid) -> Self {
        Self {
            cid,
            size: None,
            name: None,
        }
    }
}

/// How busy a peer says it is, in steps of a thousandth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Load(u16);

impl Load {
    /// From 0 (idle) to 1 (busy); what lies outside is moved to the nearer end, NaN to 0.
    pub fn new(ratio: f64) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped; NaN becomes 0"
        )]
        Self((ratio.clamp(0.0, 1.0) * 1000.0).round() as u16)
    }

    /// 0 (idle) to 1 (busy).
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

/// What a peer does for the network, and how busy it is with that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Such as `master`, `worker` or `leecher`; 1 to 32 bytes.
    pub name: String,
    /// How busy it is.
    pub load: Load,
}

/// An announcement of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Grows with each announcement of its author for its service: milliseconds since 1970.
    pub sequence: u64,
    /// What is announced.
    pub body: Body,
}

/// The part of an [`Announcement`] that differs by [`Service`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Body {
    /// See [`Service::Content`].
    Content {
        /// Provided from now on; at most 64.
        items: Vec<Content>,
        /// No longer provided; at most 64.
        withdrawn: Vec<Cid>,
    },
    /// See [`Service::Relay`]: the relay crate's `RelayAnnouncement`, opaque here, at most 4,096 bytes. Empty: it
    /// relays no longer.
    Relay(Bytes),
    /// See [`Service::Role`].
    Role(Role),
}

impl Body {
    /// Which service it belongs to.
    pub fn service(&self) -> Service {
        match self {
            Self::Content { .. } => Service::Content,
            Self::Relay(_) => Service::Relay,
            Self::Role(_) => Service::Role,
        }
    }
}

impl Announcement {
    /// The announcement's bytes, without signature: gossipsub's message carries that.
    pub fn encode(&self) -> Vec<u8> {
        self.to_message().encode_to_vec()
    }

    /// Reads an announcement of at most `max_bytes`. `None`: it is of a later version, and no fault of
    /// anybody's.
    ///
    /// # Errors
    /// When it breaks the protocol.
    pub fn decode(bytes: &[u8], max_bytes: usize) -> Result<Option<Self>, ProtocolViolation> {
        if bytes.len() > max_bytes {
            return Err(ProtocolViolation::Oversized);
        }
        let message = pb::Announcement::decode(bytes).map_err(|_| ProtocolViolation::Malformed)?;
        if message.version == 0 {
            return Err(ProtocolViolation::Malformed);
        }
        if message.version > VERSION {
            return Ok(None);
        }
        let body = match message.body.ok_or(ProtocolViolation::Malformed)? {
            pb::announcement::Body::Content(content) => content_body(content)?,
            pb::announcement::Body::Relay(relay) => {
                within(relay.len(), MAX_RELAY_BYTES, "relay bytes")?;
                Body::Relay(relay.into())
            }
            pb::announcement::Body::Role(role) => {
                within(role.role.len(), MAX_ROLE_BYTES, "role bytes")?;
                if role.role.is_empty() {
                    return Err(ProtocolViolation::Malformed);
                }
                Body::Role(Role {
                    name: role.role,
                    load: Load::new(f64::from(role.load_permille) / 1000.0),
                })
            }
        };
        Ok(Some(Self {
            sequence: message.sequence,
            body,
        }))
    }

    /// The announcement in a libp2p signed envelope, to be stored apart from the message that brought it.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub fn seal(&self, key: &Keypair) -> Result<Vec<u8>, libp2p_identity::SigningError> {
        let envelope = SignedEnvelope::new(
            key,
            ENVELOPE_DOMAIN.to_owned(),
            ENVELOPE_TYPE.to_vec(),
            self.encode(),
        )?;
        Ok(envelope.into_protobuf_encoding())
    }

    /// Reads what [`seal`](Self::seal) wrote and returns who signed it. `None`: it is of a later version.
    ///
    /// # Errors
    /// When the signature is bad or the content breaks the protocol.
    pub fn open(
        bytes: &[u8],
        max_bytes: usize,
    ) -> Result<Option<(PeerId, Self)>, ProtocolViolation> {
        if bytes.len() > max_bytes {
            return Err(ProtocolViolation::Oversized);
        }
        let envelope = SignedEnvelope::from_protobuf_encoding(bytes)
            .map_err(|_| ProtocolViolation::Malformed)?;
        let (payload, key) = envelope
            .payload_and_signing_key(ENVELOPE_DOMAIN.to_owned(), ENVELOPE_TYPE)
            .map_err(|_| ProtocolViolation::InvalidEnvelope)?;
        let announcement = Self::decode(payload, max_bytes)?;
        Ok(announcement.map(|announcement| (key.to_peer_id(), announcement)))
    }

    fn to_message(&self) -> pb::Announcement {
        let body = match &self.body {
            Body::Content { items, withdrawn } => {
                let items = items.iter().map(item).collect();
                let withdrawn = withdrawn.iter().map(Cid::to_bytes).collect();
                pb::announcement::Body::Content(pb::Content { items, withdrawn })
            }
            Body::Relay(relay) => pb::announcement::Body::Relay(relay.to_vec()),
            Body::Role(role) => pb::announcement::Body::Role(pb::Role {
                role: role.name.clone(),
                load_permille: u32::from(role.load.0),
            }),
        };
        pb::Announcement {
            version: VERSION,
            sequence: self.sequence,
            body: Some(body),
        }
    }
}

fn item(content: &Content) -> pb::Item {
    pb::Item {
        cid: content.cid.to_bytes(),
        size: content.size,
        name: content.name.clone().unwrap_or_default(),
    }
}

fn content_body(content: pb::Content) -> Result<Body, ProtocolViolation> {
    within(content.items.len(), MAX_CONTENT, "items")?;
    within(content.withdrawn.len(), MAX_CONTENT, "withdrawn items")?;
    let cid =
        |bytes: Vec<u8>| Cid::try_from(bytes.as_slice()).map_err(|_| ProtocolViolation::InvalidCid);
    let items = content.items.into_iter().map(|item| {
        within(item.name.len(), MAX_NAME_BYTES, "name bytes")?;
        Ok(Content {
            cid: cid(item.cid)?,
            size: item.size,
            name: Some(item.name).filter(|name| !name.is_empty()),
        })
    });
    Ok(Body::Content {
        items: items.collect::<Result<_, _>>()?,
        withdrawn: content
            .withdrawn
            .into_iter()
            .map(cid)
            .collect::<Result<_, _>>()?,
    })
}

fn within(len: usize, max: usize, what: &'static str) -> Result<(), ProtocolViolation> {
    if len > max {
        return Err(ProtocolViolation::TooMany(what));
    }
    Ok(())
}

fn fits(field: &'static str, len: usize, max: usize) -> Result<(), AnnounceError> {
    if len > max {
        return Err(AnnounceError::TooLong { field, len, max });
    }
    Ok(())
}

/// Bytes that `content` takes in an announcement.
pub(crate) fn encoded_len(content: &Content) -> usize {
    // Tag and length of the item.
    item(content).encoded_len() + 3
}

/// Whether readers would take it.
pub(crate) fn check_content(content: &Content) -> Result<(), AnnounceError> {
    let name = content.name.as_deref().unwrap_or_default();
    fits("name", name.len(), MAX_NAME_BYTES)
}

/// Whether readers would take it.
pub(crate) fn check_relay(relay: &Bytes) -> Result<(), AnnounceError> {
    fits("relay announcement", relay.len(), MAX_RELAY_BYTES)
}

/// Whether readers would take it.
pub(crate) fn check_role(role: &Role) -> Result<(), AnnounceError> {
    fits("role", role.name.len(), MAX_ROLE_BYTES)
}

#[cfg(test)]
mod tests;
