use std::{collections::BTreeSet, num::NonZeroUsize, time::Duration};

use serde::Deserialize;

/// The topic that js-libp2p's pubsub-peer-discovery uses by default.
pub const DEFAULT_TOPIC: &str = "_peer-discovery._p2p._pubsub";

/// Topics of one node at most: gossipsub's subscription filter accepts 100 of a peer.
pub(crate) const MAX_TOPICS: usize = 100;

/// Gossipsub's default `max_transmit_size`, which an announcement must stay below.
const MAX_TRANSMIT_BYTES: usize = 65_536;

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
    max_peers: NonZeroUsize,
    max_addresses_per_peer: NonZeroUsize,
    max_announcement_bytes: NonZeroUsize,
    allow_loopback: bool,
}

impl Config {
    /// A builder that starts from the defaults.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }

    /// The topics to announce on and to listen to; default [`DEFAULT_TOPIC`] alone, at most 100, each 1 to 256
    /// bytes long.
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

    /// How long a peer is remembered after its last announcement; default 300 s (the seed's `peer_ttl`),
    /// longer than the announce interval.
    pub fn peer_ttl(&self) -> Duration {
        self.peer_ttl
    }

    /// Peers that are remembered; default 1,024. A full table takes a new peer only in place of one that
    /// missed three announcements.
    pub fn max_peers(&self) -> usize {
        self.max_peers.get()
    }

    /// Addresses that are announced and that are believed of one announcement; default 16. Further ones are cut
    /// off.
    pub fn max_addresses_per_peer(&self) -> usize {
        self.max_addresses_per_peer.get()
    }

    /// Size of the largest announcement that is read; default 8,192 bytes, at most gossipsub's 65,536.
    pub fn max_announcement_bytes(&self) -> usize {
        self.max_announcement_bytes.get()
    }

    /// Announce and believe loopback addresses too; default `false`. For tests on one machine.
    pub fn allow_loopback(&self) -> bool {
        self.allow_loopback
    }
}

impl Default for Config {
    fn default() -> Self {
        const fn count(n: usize) -> NonZeroUsize {
            match NonZeroUsize::new(n) {
                Some(n) => n,
                None => NonZeroUsize::MIN,
            }
        }
        Self {
            topics: BTreeSet::from([DEFAULT_TOPIC.to_owned()]),
            announce_interval: Duration::from_secs(10),
            listen_only: false,
            peer_ttl: Duration::from_secs(300),
            max_peers: const { count(1024) },
            max_addresses_per_peer: const { count(16) },
            max_announcement_bytes: const { count(8192) },
            allow_loopback: false,
        }
    }
}

/// Collects the fields of a [`Config`]; see its getters for meaning, default and range.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
pub struct ConfigBuilder {
    topics: Vec<String>,
    #[serde(with = "humantime_serde")]
    announce_interval: Duration,
    listen_only: bool,
    #[serde(with = "humantime_serde")]
    peer_ttl: Duration,
    max_peers: usize,
    max_addresses_per_peer: usize,
    max_announcement_bytes: usize,
    allow_loopback: bool,
}

impl Default for ConfigBuilder {
    fn default() -> Self {
        let config = Config::default();
        Self {
            topics: config.topics().map(str::to_owned).collect(),
            announce_interval: config.announce_interval(),
            listen_only: config.listen_only(),
            peer_ttl: config.peer_ttl(),
            max_peers: config.max_peers(),
            max_addresses_per_peer: config.max_addresses_per_peer(),
            max_announcement_bytes: config.max_announcement_bytes(),
            allow_loopback: config.allow_loopback(),
        }
    }
}

impl ConfigBuilder {
    /// Sets [`Config::topics`], in place of the default one.
    pub fn topics(mut self, values: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.topics = values.into_iter().map(Into::into).collect();
        self
    }

    /// Sets [`Config::announce_interval`].
    pub fn announce_interval(mut self, value: Duration) -> Self {
        self.announce_interval = value;
        self
    }

    /// Sets [`Config::listen_only`].
    pub fn listen_only(mut self, value: bool) -> Self {
        self.listen_only = value;
        self
    }

    /// Sets [`Config::peer_ttl`].
    pub fn peer_ttl(mut self, value: Duration) -> Self {
        self.peer_ttl = value;
        self
    }

    /// Sets [`Config::max_peers`].
    pub fn max_peers(mut self, value: usize) -> Self {
        self.max_peers = value;
        self
    }

    /// Sets [`Config::max_addresses_per_peer`].
    pub fn max_addresses_per_peer(mut self, value: usize) -> Self {
        self.max_addresses_per_peer = value;
        self
    }

    /// Sets [`Config::max_announcement_bytes`].
    pub fn max_announcement_bytes(mut self, value: usize) -> Self {
        self.max_announcement_bytes = value;
        self
    }

    /// Sets [`Config::allow_loopback`].
    pub fn allow_loopback(mut self, value: bool) -> Self {
        self.allow_loopback = value;
        self
    }

    /// Checks every field and returns the finished configuration.
    pub fn build(self) -> Result<Config, ConfigError> {
        let count = |value: usize, field: &'static str| {
            NonZeroUsize::new(value).ok_or(ConfigError::Zero(field))
        };
        if self.topics.len() > MAX_TOPICS {
            return Err(ConfigError::TooManyTopics(self.topics.len()));
        }
        if let Some(topic) = self.topics.iter().find(|topic| !is_topic(topic)) {
            return Err(ConfigError::Topic(topic.clone()));
        }
        if self.announce_interval < Duration::from_secs(1) {
            return Err(ConfigError::AnnounceInterval(self.announce_interval));
        }
        if self.peer_ttl <= self.announce_interval {
            return Err(ConfigError::PeerTtl {
                ttl: self.peer_ttl,
                interval: self.announce_interval,
            });
        }
        if self.max_announcement_bytes > MAX_TRANSMIT_BYTES {
            return Err(ConfigError::AnnouncementBytes(self.max_announcement_bytes));
        }
        Ok(Config {
            topics: self.topics.into_iter().collect(),
            announce_interval: self.announce_interval,
            listen_only: self.listen_only,
            peer_ttl: self.peer_ttl,
            max_peers: count(self.max_peers, "max_peers")?,
            max_addresses_per_peer: count(self.max_addresses_per_peer, "max_addresses_per_peer")?,
            max_announcement_bytes: count(self.max_announcement_bytes, "max_announcement_bytes")?,
            allow_loopback: self.allow_loopback,
        })
    }
}

impl TryFrom<ConfigBuilder> for Config {
    type Error = ConfigError;

    fn try_from(builder: ConfigBuilder) -> Result<Self, ConfigError> {
        builder.build()
    }
}

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
    /// Announcing would flood the topic.
    #[error("announce_interval {0:?} is too short: use at least 1s")]
    AnnounceInterval(Duration),
    /// Every peer would expire between two of its announcements.
    #[error("peer_ttl {ttl:?} must be longer than announce_interval {interval:?}")]
    PeerTtl {
        /// What was asked for.
        ttl: Duration,
        /// What it must exceed.
        interval: Duration,
    },
    /// More than gossipsub carries.
    #[error("max_announcement_bytes {0} is too large: gossipsub carries at most 65536")]
    AnnouncementBytes(usize),
    /// A bound of zero.
    #[error("{0} is 0: set it to at least 1")]
    Zero(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_build_and_equal_the_default() {
        assert_eq!(Config::builder().build(), Ok(Config::default()));
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        let second = Duration::from_secs(1);
        let refused = |builder: ConfigBuilder| builder.build().unwrap_err();
        assert_eq!(
            refused(Config::builder().topics([""])),
            ConfigError::Topic(String::new())
        );
        assert_eq!(
            refused(Config::builder().topics((0..101).map(|n| n.to_string()))),
            ConfigError::TooManyTopics(101)
        );
        assert_eq!(
            refused(Config::builder().announce_interval(second / 2)),
            ConfigError::AnnounceInterval(second / 2)
        );
        assert_eq!(
            refused(Config::builder().announce_interval(second).peer_ttl(second)),
            ConfigError::PeerTtl {
                ttl: second,
                interval: second
            }
        );
        assert_eq!(
            refused(Config::builder().max_peers(0)),
            ConfigError::Zero("max_peers")
        );
    }

    #[test]
    fn serde_reads_the_fields_and_refuses_unknown_ones() {
        let config: Config =
            toml::from_str("topics = ['a', 'b']\nannounce_interval = '5s'\nlisten_only = true")
                .unwrap();
        assert_eq!(config.topics().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(config.announce_interval(), Duration::from_secs(5));
        assert!(config.listen_only());
        assert!(toml::from_str::<Config>("interval = '5s'").is_err());
    }
}
