//! The wire: DNS messages (RFC 1035, RFC 6762) as the libp2p mDNS specification uses them.
//!
//! hickory-proto reads and writes names, so that compression and its loops are its business. The walk over a message is ours:
//! one odd record of a printer must not hide the peer that stands beside it, and nothing is copied that nobody asks for.

mod decode;
mod encode;

use hickory_proto::rr::Name;

pub(crate) use decode::{Asked, Message, Query, Response, Text, decode};
pub(crate) use encode::{Service, announcement, meta_answer, query};

/// Largest message that we send: the 1,500 bytes of Ethernet less IPv6, UDP and something for tunnels (RFC 6762 §17).
pub(crate) const MAX_SENT: usize = 1400;
/// Largest message that we read (RFC 6762 §17). A longer datagram is cut by the socket and then refused.
#[cfg(feature = "swarm")]
pub(crate) const MAX_RECEIVED: usize = 9000;
/// Longest character string of a TXT record (RFC 1035 §3.3).
pub(crate) const MAX_STRING: usize = 255;
/// What an address stands behind in a TXT record (libp2p mDNS specification).
pub(crate) const ATTRIBUTE: &[u8] = b"dnsaddr=";

const TYPE_A: u16 = 1;
const TYPE_PTR: u16 = 12;
const TYPE_TXT: u16 = 16;
const TYPE_AAAA: u16 = 28;
const TYPE_SRV: u16 = 33;
const TYPE_ANY: u16 = 255;

const CLASS_IN: u16 = 1;
/// In a question: a unicast answer is welcome (RFC 6762 §5.4). In a record: forget what this name had
/// before, the cache-flush bit of §10.2, so that the class reads 0x8001.
const TOP_BIT: u16 = 0x8000;

const FLAG_RESPONSE: u16 = 0x8000;
const FLAG_AUTHORITATIVE: u16 = 0x0400;
/// Operation and response code: anything but 0 is silently ignored (RFC 6762 §18.3, §18.11).
const FLAGS_ODD: u16 = 0x780f;

/// The names that a node asks for and answers to.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// What all peers have in common: `_p2p._udp.local`.
    pub(crate) service: Name,
    /// The list of all services (RFC 6763 §9).
    pub(crate) meta: Name,
    /// This node: `<peer-name>.<service>`.
    pub(crate) instance: Name,
    /// The name of its IP addresses: `<peer-name>.local`.
    pub(crate) host: Name,
}

/// A name of at most 63 bytes a label and 255 bytes in all; `None` if it is not one.
pub(crate) fn name(text: &str) -> Option<Name> {
    let labels = text.trim_end_matches('.').split('.').map(str::as_bytes);
    let mut name = Name::from_labels(labels).ok()?;
    name.set_fqdn(true);
    (name.num_labels() > 0).then_some(name)
}

impl Names {
    /// `service` has been checked by the configuration, `peer_name` is 32 to 63 letters and digits.
    pub(crate) fn new(service: &str, peer_name: &str) -> Self {
        let service = name(service).unwrap_or_else(Name::root);
        let below = |domain: &Name| {
            domain
                .prepend_label(peer_name)
                .map(|mut name| {
                    name.set_fqdn(true);
                    name
                })
                .unwrap_or_else(|_| domain.clone())
        };
        Self {
            instance: below(&service),
            host: below(&name("local").unwrap_or_else(Name::root)),
            meta: name("_services._dns-sd._udp.local").unwrap_or_else(Name::root),
            service,
        }
    }
}

/// Packets of other implementations; see `golden/README.md`.
#[cfg(any(test, fuzzing))]
pub(crate) const GOLDEN: [(&str, &str); 7] = [
    ("go-probe", include_str!("golden/go-probe.hex")),
    (
        "go-announcement",
        include_str!("golden/go-announcement.hex"),
    ),
    ("go-answer", include_str!("golden/go-answer.hex")),
    ("js-query", include_str!("golden/js-query.hex")),
    ("js-answer", include_str!("golden/js-answer.hex")),
    ("rust-query", include_str!("golden/rust-query.hex")),
    ("rust-answer", include_str!("golden/rust-answer.hex")),
];

#[cfg(any(test, fuzzing))]
pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(char::is_ascii_hexdigit).collect();
    let pairs = digits.chunks_exact(2);
    pairs
        .filter_map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).ok())
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
