//! The seed's announcements in JSON: ipfs_kit_py's discovery, content and relay messages.
//!
//! Its peers announce themselves as `{peer_id, addrs, protocols, role, timestamp}` on
//! `ipfs-kit/discovery/<rendezvous>`, or as `{type: "peer-discovery", peer_id, multiaddrs, …}` on js-libp2p's topic;
//! content as `{cid, provider, timestamp, addrs, size, type, name}` on `ipfs-kit/content-announce`; relays as
//! `{peer_id, addrs, timestamp, capabilities, protocols}` on `ipfs-kit/relay-announce`. The announcer is
//! believed only if it signed the message, which the original does not check.

use std::time::Duration;

use cid::Cid;
use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use serde::{Deserialize, Serialize};

use crate::{Content, ProtocolViolation, Service};

/// Longest list of addresses that is looked at.
const MAX_ADDRESSES: usize = 64;

/// The topic of a service among the seed's peers; they have none for roles.
pub(crate) fn topic(service: Service) -> Option<&'static str> {
    match service {
        Service::Content => Some("ipfs-kit/content-announce"),
        Service::Relay => Some("ipfs-kit/relay-announce"),
        Service::Role => None,
    }
}

/// Whether a message may be JSON: no protobuf of ours begins so.
pub(crate) fn is_json(bytes: &[u8]) -> bool {
    bytes.first() == Some(&b'{')
}

#[derive(Debug, Serialize, Deserialize)]
struct PeerMessage {
    #[serde(alias = "provider")]
    peer_id: String,
    #[serde(default, alias = "multiaddrs")]
    addrs: Vec<String>,
    #[serde(default)]
    protocols: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    capabilities: Vec<String>,
    #[serde(default)]
    timestamp: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct ContentMessage {
    cid: String,
    provider: String,
    #[serde(default)]
    addrs: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default)]
    timestamp: f64,
}

/// A peer's or a relay's announcement. The addresses lack what cannot be read.
pub(crate) fn peer(
    bytes: &[u8],
    author: PeerId,
) -> Result<(Vec<Multiaddr>, u64), ProtocolViolation> {
    let message: PeerMessage = read(bytes)?;
    is_author(&message.peer_id, author)?;
    let addresses = message.addrs.iter().take(MAX_ADDRESSES);
    let addresses = addresses.filter_map(|text| text.parse().ok()).collect();
    Ok((addresses, millis(message.timestamp)))
}

/// An announcement of one piece of content.
pub(crate) fn content(bytes: &[u8], author: PeerId) -> Result<(Content, u64), ProtocolViolation> {
    let message: ContentMessage = read(bytes)?;
    is_author(&message.provider, author)?;
    let cid = Cid::try_from(message.cid.as_str()).map_err(|_| ProtocolViolation::InvalidCid)?;
    let content = Content {
        cid,
        size: message.size,
        name: message.name.filter(|name| !name.is_empty()),
    };
    crate::announcement::check_content(&content)
        .map_err(|_| ProtocolViolation::TooMany("name bytes"))?;
    Ok((content, millis(message.timestamp)))
}

pub(crate) fn encode_peer(
    local: PeerId,
    addresses: &[Multiaddr],
    role: Option<&str>,
    since_1970: Duration,
) -> Vec<u8> {
    write(&PeerMessage {
        peer_id: local.to_string(),
        addrs: texts(addresses),
        protocols: Vec::new(),
        role: role.map(str::to_owned),
        capabilities: Vec::new(),
        timestamp: since_1970.as_secs_f64(),
    })
}

pub(crate) fn encode_relay(
    local: PeerId,
    addresses: &[Multiaddr],
    since_1970: Duration,
) -> Vec<u8> {
    write(&PeerMessage {
        peer_id: local.to_string(),
        addrs: texts(addresses),
        protocols: vec!["/libp2p/circuit/relay/0.2.0/hop".to_owned()],
        role: None,
        capabilities: vec!["relay".to_owned()],
        timestamp: since_1970.as_secs_f64(),
    })
}

pub(crate) fn encode_content(
    local: PeerId,
    addresses: &[Multiaddr],
    content: &Content,
    since_1970: Duration,
) -> Vec<u8> {
    write(&ContentMessage {
        cid: content.cid.to_string(),
        provider: local.to_string(),
        addrs: texts(addresses),
        size: content.size,
        name: content.name.clone(),
        timestamp: since_1970.as_secs_f64(),
    })
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ProtocolViolation> {
    serde_json::from_slice(bytes).map_err(|_| ProtocolViolation::Malformed)
}

fn write(message: &impl Serialize) -> Vec<u8> {
    // Strings, numbers and lists of them: always valid JSON.
    serde_json::to_vec(message).unwrap_or_default()
}

fn texts(addresses: &[Multiaddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

fn is_author(text: &str, author: PeerId) -> Result<(), ProtocolViolation> {
    let peer: PeerId = text.parse().map_err(|_| ProtocolViolation::InvalidKey)?;
    if peer == author {
        Ok(())
    } else {
        Err(ProtocolViolation::ForeignKey)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates; not a number becomes 0"
)]
fn millis(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB";

    fn author() -> PeerId {
        ID.parse().unwrap()
    }

    /// The fields as ipfs_kit_py writes them (notes/seed-systems.md §2a, §2b).
    #[test]
    fn the_seeds_messages_are_read() {
        let discovery = format!(
            r#"{{"peer_id": "{ID}", "addrs": ["/ip4/1.2.3.4/tcp/4001", "nonsense"],
                "protocols": ["/ipfs/id/1.0.0"], "role": "worker", "timestamp": 1700000000.25}}"#
        );
        let address: Multiaddr = "/ip4/1.2.3.4/tcp/4001".parse().unwrap();
        let expected = Ok((vec![address.clone()], 1_700_000_000_250));
        assert_eq!(peer(discovery.as_bytes(), author()), expected);
        let pubsub = format!(
            r#"{{"type": "peer-discovery", "peer_id": "{ID}", "multiaddrs": ["/ip4/1.2.3.4/tcp/4001"],
                "protocols": [], "timestamp": 1700000000.25, "metadata": {{"a": 1}}}}"#
        );
        assert_eq!(peer(pubsub.as_bytes(), author()), expected);
        let relay = format!(
            r#"{{"peer_id": "{ID}", "addrs": ["/ip4/1.2.3.4/tcp/4001"], "timestamp": 1700000000.25,
                "capabilities": ["relay"], "protocols": []}}"#
        );
        assert_eq!(peer(relay.as_bytes(), author()), expected);
        let announced = format!(
            r#"{{"cid": "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", "provider": "{ID}",
                "timestamp": 1, "addrs": [], "size": 1024, "type": "file", "name": "readme"}}"#
        );
        let (content, _) = content(announced.as_bytes(), author()).unwrap();
        assert_eq!(
            content.cid.to_string(),
            "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"
        );
        assert_eq!(
            (content.size, content.name.as_deref()),
            (Some(1024), Some("readme"))
        );
    }

    #[test]
    fn what_we_write_is_read_and_nobody_speaks_for_another() {
        let address: Multiaddr = "/ip4/1.2.3.4/tcp/4001".parse().unwrap();
        let now = Duration::from_secs(1_700_000_000);
        let bytes = encode_peer(
            author(),
            std::slice::from_ref(&address),
            Some("worker"),
            now,
        );
        assert!(is_json(&bytes));
        assert_eq!(
            peer(&bytes, author()),
            Ok((vec![address], 1_700_000_000_000))
        );
        assert_eq!(
            peer(&bytes, PeerId::random()),
            Err(ProtocolViolation::ForeignKey)
        );
        let item = Content::new(
            "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"
                .parse()
                .unwrap(),
        );
        let bytes = encode_content(author(), &[], &item, now);
        assert_eq!(content(&bytes, author()), Ok((item, 1_700_000_000_000)));
        assert_eq!(
            content(&bytes, PeerId::random()),
            Err(ProtocolViolation::ForeignKey)
        );
        for bytes in [&b"{"[..], b"{}", b"[]", b"", br#"{"peer_id": 1}"#] {
            assert!(peer(bytes, author()).is_err() && content(bytes, author()).is_err());
        }
    }
}
