use std::{collections::BTreeSet, num::NonZeroUsize, time::Duration};

use serde::Deserialize;

use crate::{announcement::Service, core::connect::AutoConnect};

mod builder;

pub use builder::ConfigBuilder;

/// The topic that js-libp2p's pubsub-peer-discovery uses by default.
pub const DEFAULT_TOPIC: &str = "_peer-discovery._p2p._pubsub";

/// The discovery topic of libp2p's universal-connectivity app.
pub const UNIVERSAL_CONNECTIVITY_TOPIC: &str = "universal-connectivity-browser-peer-discovery";

/// Where the seed's ipfs_kit_py peers announce themselves, in JSON: `ipfs-kit/discovery/<rendezvous>`.
pub(crate) const JSON_PREFIX: &str = "ipfs-kit/discovery/";

/// Topics of one node at most: gossipsub's subscription filter accepts 100 of a peer.
pub(crate) const MAX_TOPICS: usize = 100;

/// Gossipsub's default `max_transmit_size`, which an announcement must stay below.
const MAX_TRANSMIT_BYTES: usize = 65_536;

/// The topic on which those meet who agreed on a rendezvous string: `<name>._peer-discovery._p2p._pubsub`, as
/// js-libp2p's pubsub-peer-discovery proposes for applications. Names that are a discovery topic already
/// stay as they are; `universal-connectivity` is [`UNIVERSAL_CONNECTIVITY_TOPIC`].
pub fn rendezvous_topic(name: &str) -> String {
    if name == "universal-connectivity" {
        UNIVERSAL_CONNECTIVITY_TOPIC.to_owned()
    } else if name.contains("peer-discovery") || name.starts_with(JSON_PREFIX) {
        name.to_owned()
    } else {
        format!("{name}.{DEFAULT_TOPIC}")
    }
}

/// How this node announces itself and what it believes. Valid by construction: see
/// [`Config::builder`].
///
/// With serde it reads the fields of [`ConfigBuilder`]; unknown fields are refused, durations are
/// strings such as `"10s"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "ConfigBuilder")]
pub struct Config {
    topics: BTreeSet<String>,
    announce_interval: Duration,
    listen_only: bool,
    peer_ttl: Duration,
    stale_after_percent: u32,
    max_peers: NonZeroUsize,
    max_addresses_per_peer: NonZeroUsize,
    max_peers_per_host: NonZeroUsize,
    max_announcement_bytes: NonZeroUsize,
    max_messages_per_second: NonZeroUsize,
    allow_loopback: bool,
    allow_private: bool,
    services: BTreeSet<Service>,
    namespace: String,
    service_interval: Duration,
    content_interval: Duration,
    max_content_per_peer: NonZeroUsize,
    json: bool,
    auto_connect: Option<AutoConnect>,
    disconnect_graylisted: bool,
}

impl Config {
    /// A builder that starts from the defaults.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }

    /// The topics to announce on and to listen to; default [`DEFAULT_TOPIC`] alone, at most 100 with those of the
    /// services, each 1 to 256 bytes long.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.topics.iter().map(String::as_str)
    }

    /// Time between two announcements on one topic, ±10 %; default 10 s (js-libp2p's
    /// pubsub-peer-discovery), at least 1 s. A new subscriber or a new address of ours brings the
    /// next one forward, to at most one a second.
    pub fn announce_interval(&self) -> Duration {
        self.announce_interval
    }

    /// Learn about others and never announce ourselves; default `false`.
    pub fn listen_only(&self) -> bool {
        self.listen_only
    }

    /// How long a peer is known after its last announcement at most; default 300 s (the seed's `peer_ttl`),
    /// longer than the announce interval. What is remembered against replays is kept this long too.
    pub fn peer_ttl(&self) -> Duration {
        self.peer_ttl
    }

    /// When a silent peer counts as gone, in percent of the time it lets pass between two announcements: that
    /// was observed, and is never taken to be less than [`announce_interval`](Self::announce_interval). Default
    /// 175: the next announcement is due within 110 %, a lost message is repaired by gossipsub within
    /// three heartbeats (3 s), and the rest is slack. Range 120 and up; [`peer_ttl`](Self::peer_ttl) is
    /// the end in any case, so a large number leaves it to that alone.
    pub fn stale_after_percent(&self) -> u32 {
        self.stale_after_percent
    }

    /// Peers that are known at once, and announcers of each service; default 1,024. A full table takes a new peer
    /// in place of one that came from the neighbour which has the most peers in it.
    pub fn max_peers(&self) -> usize {
        self.max_peers.get()
    }

    /// Addresses that are announced and that are believed of one announcement; default 16. Further ones are cut
    /// off.
    pub fn max_addresses_per_peer(&self) -> usize {
        self.max_addresses_per_peer.get()
    }

    /// Known peers that may name one host (an IPv4 address, an IPv6 /64 or a name) as theirs; default 32, relayed
    /// addresses apart. So a crowd of invented peers cannot make this node dial one victim a thousand
    /// times.
    pub fn max_peers_per_host(&self) -> usize {
        self.max_peers_per_host.get()
    }

    /// Size of the largest announcement that is read; default 8,192 bytes, at most gossipsub's 65,536.
    pub fn max_announcement_bytes(&self) -> usize {
        self.max_announcement_bytes.get()
    }

    /// Announcements a second that are read of what one neighbour passes on, with a burst of twice as many; default
    /// 200, as much as 2,000 peers make.
    pub fn max_messages_per_second(&self) -> usize {
        self.max_messages_per_second.get()
    }

    /// Announce and believe addresses of this very machine too (loopback, memory, Unix sockets); default `false`.
    /// Without it, only a peer that is connected by such an address is believed to have one.
    pub fn allow_loopback(&self) -> bool {
        self.allow_loopback
    }

    /// Believe private addresses (RFC 1918, 6598, 4193, link-local, names without a public suffix) of anybody;
    /// default `false`: only of peers that are connected by such an address. For networks that are private as a
    /// whole.
    pub fn allow_private(&self) -> bool {
        self.allow_private
    }

    /// The services that are announced and listened to; default none. Their topics are
    /// [`Service::topic`] of [`namespace`](Self::namespace).
    pub fn services(&self) -> impl Iterator<Item = Service> {
        self.services.iter().copied()
    }

    /// The first part of the services' topics; default `anypath`, 1 to 200 bytes.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Time between two announcements of relay or role, ±10 %; default 60 s, at least 10 s. They are
    /// forgotten after five of them.
    pub fn service_interval(&self) -> Duration {
        self.service_interval
    }

    /// Time between two announcements of the same content, ±10 %; default 300 s, at least 10 s. It is
    /// forgotten after three of them.
    pub fn content_interval(&self) -> Duration {
        self.content_interval
    }

    /// Pieces of content that are announced at once, and that are believed of one peer; default 64, at most
    /// 64: one announcement holds them. A further one takes the place of the oldest.
    pub fn max_content_per_peer(&self) -> usize {
        self.max_content_per_peer.get()
    }

    /// Read and write the JSON announcements of the seed (ipfs_kit_py) as well, see feature `json`; default
    /// `false`.
    pub fn json(&self) -> bool {
        self.json && cfg!(feature = "json")
    }

    /// Connect to peers that are found; default `None`: that is the application's decision.
    pub fn auto_connect(&self) -> Option<&AutoConnect> {
        self.auto_connect.as_ref()
    }

    /// Close the connections of a peer that gossipsub's score has put below the graylist threshold; default
    /// `true`. What it sends is dropped anyway, but only after its signatures were checked.
    pub fn disconnect_graylisted(&self) -> bool {
        self.disconnect_graylisted
    }
}

const fn count(n: usize) -> NonZeroUsize {
    match NonZeroUsize::new(n) {
        Some(n) => n,
        None => NonZeroUsize::MIN,
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            topics: BTreeSet::from([DEFAULT_TOPIC.to_owned()]),
            announce_interval: Duration::from_secs(10),
            listen_only: false,
            peer_ttl: Duration::from_secs(300),
            stale_after_percent: 175,
            max_peers: count(1024),
            max_addresses_per_peer: count(16),
            max_peers_per_host: count(32),
            max_announcement_bytes: count(8192),
            max_messages_per_second: count(200),
            allow_loopback: false,
            allow_private: false,
            services: BTreeSet::new(),
            namespace: "anypath".to_owned(),
            service_interval: Duration::from_secs(60),
            content_interval: Duration::from_secs(300),
            max_content_per_peer: count(MAX_CONTENT),
            json: false,
            auto_connect: None,
            disconnect_graylisted: true,
        }
    }
}

/// What one announcement of content holds: 64 items of a long CID and the longest name stay below
/// 16 KiB.
pub(crate) const MAX_CONTENT: usize = 64;

pub(crate) fn is_topic(topic: &str) -> bool {
    (1..=256).contains(&topic.len())
}

/// Why a [`ConfigBuilder`] was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// More topics than other nodes accept.
    #[error("{0} topics: use at most 100, other nodes accept no more of one peer")]
    TooManyTopics(usize),
    /// An empty or very long topic.
    #[error("topic {0:?} must be 1 to 256 bytes long")]
    Topic(String),
    /// An empty or very long namespace.
    #[error("namespace {0:?} must be 1 to 200 bytes long")]
    Namespace(String),
    /// Announcing would flood the topic.
    #[error("announce_interval {0:?} is too short: use at least 1s")]
    AnnounceInterval(Duration),
    /// Announcing would flood the topic of a service.
    #[error("{field} {value:?} is too short: use at least 10s")]
    ServiceInterval {
        /// Which one.
        field: &'static str,
        /// What was asked for.
        value: Duration,
    },
    /// Every peer would expire between two of its announcements.
    #[error("peer_ttl {ttl:?} must be longer than announce_interval {interval:?}")]
    PeerTtl {
        /// What was asked for.
        ttl: Duration,
        /// What it must exceed.
        interval: Duration,
    },
    /// Every peer would count as gone before its next announcement.
    #[error("stale_after_percent {0} is too small: use at least 120, announcements jitter by 10 %")]
    StaleAfter(u32),
    /// More than gossipsub carries.
    #[error("max_announcement_bytes {0} is too large: gossipsub carries at most 65536")]
    AnnouncementBytes(usize),
    /// More than one announcement holds.
    #[error("max_content_per_peer {0} is too large: an announcement holds at most 64")]
    Content(usize),
    /// A bound of zero.
    #[error("{0} is 0: set it to at least 1")]
    Zero(&'static str),
}

#[cfg(test)]
mod tests;
