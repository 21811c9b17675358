use std::{num::NonZeroUsize, time::Duration};

use serde::Deserialize;

/// Shortest accepted query interval. RFC 6762 §5.2 asks for at least one second between queries.
const MIN_QUERY_INTERVAL: Duration = Duration::from_secs(1);

/// How the local network is searched. Valid by construction: see [`Config::builder`].
///
/// With serde it reads the fields of [`ConfigBuilder`]; unknown fields are refused, durations are
/// strings such as `"60s"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "ConfigBuilder")]
pub struct Config {
    query_interval: Duration,
    ttl: Duration,
    enable_ipv4: bool,
    enable_ipv6: bool,
    max_peers: NonZeroUsize,
    max_addresses_per_peer: NonZeroUsize,
}

impl Config {
    /// A builder that starts from the defaults.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }

    /// How often every interface is asked for peers once probing is over; default 60 s (the
    /// `mdns_query_interval` of the project's `ConnectivityConfig`), at least 1 s (RFC 6762 §5.2).
    /// The first queries come at once and then after 0.5 s, 1 s, 2 s, … until a peer answered.
    pub fn query_interval(&self) -> Duration {
        self.query_interval
    }

    /// Time to live of the records that we announce; default 5 min, at least 1 s. Others forget us that
    /// long after our last answer.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Whether IPv4 (224.0.0.251) is used; default `true`.
    pub fn enable_ipv4(&self) -> bool {
        self.enable_ipv4
    }

    /// Whether IPv6 (ff02::fb) is used; default `true`.
    pub fn enable_ipv6(&self) -> bool {
        self.enable_ipv6
    }

    /// Peers that are remembered at a time; default 1,024. Further ones are ignored until one expires.
    pub fn max_peers(&self) -> usize {
        self.max_peers.get()
    }

    /// Addresses that are remembered for one peer; default 32.
    pub fn max_addresses_per_peer(&self) -> usize {
        self.max_addresses_per_peer.get()
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
            query_interval: Duration::from_secs(60),
            ttl: Duration::from_secs(5 * 60),
            enable_ipv4: true,
            enable_ipv6: true,
            max_peers: const { count(1024) },
            max_addresses_per_peer: const { count(32) },
        }
    }
}

/// Collects the fields of a [`Config`]; see its getters for meaning, default and range.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
pub struct ConfigBuilder {
    #[serde(with = "humantime_serde")]
    query_interval: Duration,
    #[serde(with = "humantime_serde")]
    ttl: Duration,
    enable_ipv4: bool,
    enable_ipv6: bool,
    max_peers: usize,
    max_addresses_per_peer: usize,
}

impl Default for ConfigBuilder {
    fn default() -> Self {
        let config = Config::default();
        Self {
            query_interval: config.query_interval(),
            ttl: config.ttl(),
            enable_ipv4: config.enable_ipv4(),
            enable_ipv6: config.enable_ipv6(),
            max_peers: config.max_peers(),
            max_addresses_per_peer: config.max_addresses_per_peer(),
        }
    }
}

impl ConfigBuilder {
    /// Sets [`Config::query_interval`].
    pub fn query_interval(mut self, value: Duration) -> Self {
        self.query_interval = value;
        self
    }

    /// Sets [`Config::ttl`].
    pub fn ttl(mut self, value: Duration) -> Self {
        self.ttl = value;
        self
    }

    /// Sets [`Config::enable_ipv4`].
    pub fn enable_ipv4(mut self, value: bool) -> Self {
        self.enable_ipv4 = value;
        self
    }

    /// Sets [`Config::enable_ipv6`].
    pub fn enable_ipv6(mut self, value: bool) -> Self {
        self.enable_ipv6 = value;
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

    /// Checks every field and returns the finished configuration.
    pub fn build(self) -> Result<Config, ConfigError> {
        if self.query_interval < MIN_QUERY_INTERVAL {
            return Err(ConfigError::QueryInterval(self.query_interval));
        }
        if self.ttl < Duration::from_secs(1) || self.ttl > Duration::from_secs(u32::MAX.into()) {
            return Err(ConfigError::Ttl(self.ttl));
        }
        if !(self.enable_ipv4 || self.enable_ipv6) {
            return Err(ConfigError::NoFamily);
        }
        Ok(Config {
            query_interval: self.query_interval,
            ttl: self.ttl,
            enable_ipv4: self.enable_ipv4,
            enable_ipv6: self.enable_ipv6,
            max_peers: NonZeroUsize::new(self.max_peers).ok_or(ConfigError::Zero("max_peers"))?,
            max_addresses_per_peer: NonZeroUsize::new(self.max_addresses_per_peer)
                .ok_or(ConfigError::Zero("max_addresses_per_peer"))?,
        })
    }
}

impl TryFrom<ConfigBuilder> for Config {
    type Error = ConfigError;

    fn try_from(builder: ConfigBuilder) -> Result<Self, ConfigError> {
        builder.build()
    }
}

/// Why a [`ConfigBuilder`] was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Queries more often than RFC 6762 §5.2 permits.
    #[error("query_interval {0:?} is too short: use at least 1s (RFC 6762 section 5.2)")]
    QueryInterval(Duration),
    /// A TTL that does not fit a DNS record.
    #[error("ttl {0:?} is out of range: DNS records live between 1 s and 2^32 - 1 s")]
    Ttl(Duration),
    /// Both address families are off.
    #[error(
        "enable_ipv4 and enable_ipv6 are both false: leave at least one on, or do not start mDNS"
    )]
    NoFamily,
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
        let refused = |builder: ConfigBuilder| builder.build().unwrap_err();
        assert_eq!(
            refused(Config::builder().query_interval(Duration::from_millis(999))),
            ConfigError::QueryInterval(Duration::from_millis(999))
        );
        assert_eq!(
            refused(Config::builder().ttl(Duration::ZERO)),
            ConfigError::Ttl(Duration::ZERO)
        );
        assert_eq!(
            refused(Config::builder().enable_ipv4(false).enable_ipv6(false)),
            ConfigError::NoFamily
        );
        assert_eq!(
            refused(Config::builder().max_peers(0)),
            ConfigError::Zero("max_peers")
        );
    }

    #[test]
    fn serde_reads_durations_as_text_and_refuses_unknown_fields() {
        let config: Config = toml::from_str("query_interval = '5s'\nenable_ipv6 = false").unwrap();
        assert_eq!(config.query_interval(), Duration::from_secs(5));
        assert!(!config.enable_ipv6());
        assert_eq!(config.ttl(), Config::default().ttl());
        assert!(toml::from_str::<Config>("interval = '5s'").is_err());
        assert!(toml::from_str::<Config>("query_interval = '1ms'").is_err());
    }
}
