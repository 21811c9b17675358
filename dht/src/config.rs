use std::{num::NonZeroUsize, time::Duration};

use libp2p_swarm::StreamProtocol;
use serde::Deserialize;

/// The protocol of the public IPFS network.
const IPFS_PROTOCOL: StreamProtocol = StreamProtocol::new("/ipfs/kad/1.0.0");

/// The longest life of a record that a configuration can allow.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// The largest value that a configuration can allow.
const MAX_VALUE_BYTES: usize = 16 << 10;

/// Whether the node answers other nodes' requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Asks and never answers: does not offer the protocol, so nobody routes to it. For nodes that
    /// others cannot dial.
    #[default]
    Client,
    /// Answers lookups, stores provider records of others, is in their routing tables. For nodes that
    /// everybody in this DHT can dial.
    Server,
}

/// Which peers enter the routing table by themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BucketInserts {
    /// Every connected server whose address is known and may be passed on: this node dialled it, or
    /// another behaviour told the swarm where it listens (identify does).
    #[default]
    OnConnected,
    /// Only what [`Behaviour::add_address`](crate::Behaviour::add_address) was told.
    Manual,
}

/// Which addresses are kept and passed on to other nodes.
///
/// The wire protocol has no notion of who may see an address, so an address that is kept is served to
/// everybody who asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressScope {
    /// [`Public`](Self::Public) while this node is a server with a public external address, else
    /// [`Any`](Self::Any): a node of the public DHT never serves private addresses, a DHT inside a home
    /// or a laboratory works without configuration.
    #[default]
    Auto,
    /// No loopback, private, link-local or carrier-grade-NAT addresses. What go-libp2p's WAN DHT does.
    Public,
    /// Every address. For private networks.
    Any,
}

/// How this node takes part in the DHT. Valid by construction: see [`Config::builder`].
///
/// With serde it reads the fields of [`ConfigBuilder`]; unknown fields are refused, durations are
/// strings such as `"60s"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "ConfigBuilder")]
pub struct Config {
    protocol: StreamProtocol,
    mode: Mode,
    bucket_inserts: BucketInserts,
    address_scope: AddressScope,
    query_timeout: Duration,
    replication: NonZeroUsize,
    parallelism: NonZeroUsize,
    provider_ttl: Duration,
    provider_republish_interval: Duration,
    bootstrap_interval: Option<Duration>,
    max_queries: NonZeroUsize,
    max_provided_keys: NonZeroUsize,
    max_remote_keys: NonZeroUsize,
    max_addresses_per_peer: NonZeroUsize,
    value_ttl: Duration,
    value_republish_interval: Duration,
    max_values: NonZeroUsize,
    max_remote_values: NonZeroUsize,
    max_value_bytes: NonZeroUsize,
}

impl Config {
    /// A builder that starts from the defaults.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }

    /// The protocol's name, which decides whom this node meets; default `/ipfs/kad/1.0.0`, the public
    /// IPFS network. A private network takes a name of its own.
    pub fn protocol(&self) -> &StreamProtocol {
        &self.protocol
    }

    /// The mode at start; default [`Mode::Client`]. It never changes by itself, only by
    /// [`Behaviour::set_mode`](crate::Behaviour::set_mode).
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Which peers enter the routing table by themselves; default [`BucketInserts::OnConnected`].
    pub fn bucket_inserts(&self) -> BucketInserts {
        self.bucket_inserts
    }

    /// Which addresses are kept and passed on; default [`AddressScope::Auto`].
    pub fn address_scope(&self) -> AddressScope {
        self.address_scope
    }

    /// The longest time one query takes; default 60 s (seed S4.8), at least 1 s. What was found by then
    /// has been reported.
    pub fn query_timeout(&self) -> Duration {
        self.query_timeout
    }

    /// How many of the nodes closest to a key a record is sent to, and how many a lookup looks for;
    /// default 20 (seed S4.8; `k` of the libp2p specification), at most 20.
    pub fn replication(&self) -> usize {
        self.replication.get()
    }

    /// Requests that one query has in flight; default 10 (`α` of the libp2p specification).
    pub fn parallelism(&self) -> usize {
        self.parallelism.get()
    }

    /// How long the provider records of others are kept after their last announcement; default 48 h
    /// (libp2p specification, RFM17).
    pub fn provider_ttl(&self) -> Duration {
        self.provider_ttl
    }

    /// How often our own provider records are announced again; default 22 h (libp2p specification).
    pub fn provider_republish_interval(&self) -> Duration {
        self.provider_republish_interval
    }

    /// How often the routing table is refreshed; default 5 min, `None` never. A node that just met its
    /// first peers refreshes in any case.
    pub fn bootstrap_interval(&self) -> Option<Duration> {
        self.bootstrap_interval
    }

    /// Queries of the user that run at a time; default 1,024. A further one fails at once.
    pub fn max_queries(&self) -> usize {
        self.max_queries.get()
    }

    /// Keys that this node can provide; default 65,536.
    pub fn max_provided_keys(&self) -> usize {
        self.max_provided_keys.get()
    }

    /// Keys for which records of other providers are kept; default 65,536, each with at most
    /// [`replication`](Self::replication) providers. The oldest one makes room for a new one.
    pub fn max_remote_keys(&self) -> usize {
        self.max_remote_keys.get()
    }

    /// Addresses that are kept and reported for one peer; default 16.
    pub fn max_addresses_per_peer(&self) -> usize {
        self.max_addresses_per_peer.get()
    }

    /// How long the values of others are kept after they were put last; default 48 h, go-libp2p-kad-dht's
    /// `MaxRecordAge`.
    pub fn value_ttl(&self) -> Duration {
        self.value_ttl
    }

    /// How often our own values are put again; default 22 h, as provider records.
    pub fn value_republish_interval(&self) -> Duration {
        self.value_republish_interval
    }

    /// Values that this node can have put; default 1,024.
    pub fn max_values(&self) -> usize {
        self.max_values.get()
    }

    /// Values of others that are kept of each namespace; default 1,024. The one whose key is farthest from this node makes room
    /// for a nearer one.
    pub fn max_remote_values(&self) -> usize {
        self.max_remote_values.get()
    }

    /// The largest value in bytes, ours or another's; default 10,240, the most that an IPNS record may have, and at most
    /// 16,384. Stock rust-libp2p reads messages of up to 16 KiB, and the closest peers come in the same one.
    pub fn max_value_bytes(&self) -> usize {
        self.max_value_bytes.get()
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
        const HOUR: Duration = Duration::from_secs(60 * 60);
        Self {
            protocol: IPFS_PROTOCOL,
            mode: Mode::default(),
            bucket_inserts: BucketInserts::default(),
            address_scope: AddressScope::default(),
            query_timeout: Duration::from_secs(60),
            replication: const { count(20) },
            parallelism: const { count(10) },
            provider_ttl: 48 * HOUR,
            provider_republish_interval: 22 * HOUR,
            bootstrap_interval: Some(Duration::from_secs(5 * 60)),
            max_queries: const { count(1024) },
            max_provided_keys: const { count(65_536) },
            max_remote_keys: const { count(65_536) },
            max_addresses_per_peer: const { count(16) },
            value_ttl: 48 * HOUR,
            value_republish_interval: 22 * HOUR,
            max_values: const { count(1024) },
            max_remote_values: const { count(1024) },
            max_value_bytes: const { count(10 << 10) },
        }
    }
}

/// Collects the fields of a [`Config`]; see its getters for meaning, default and range.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
pub struct ConfigBuilder {
    protocol: String,
    mode: Mode,
    bucket_inserts: BucketInserts,
    address_scope: AddressScope,
    #[serde(with = "humantime_serde")]
    query_timeout: Duration,
    replication: usize,
    parallelism: usize,
    #[serde(with = "humantime_serde")]
    provider_ttl: Duration,
    #[serde(with = "humantime_serde")]
    provider_republish_interval: Duration,
    #[serde(with = "humantime_serde")]
    bootstrap_interval: Option<Duration>,
    max_queries: usize,
    max_provided_keys: usize,
    max_remote_keys: usize,
    max_addresses_per_peer: usize,
    #[serde(with = "humantime_serde")]
    value_ttl: Duration,
    #[serde(with = "humantime_serde")]
    value_republish_interval: Duration,
    max_values: usize,
    max_remote_values: usize,
    max_value_bytes: usize,
}

impl Default for ConfigBuilder {
    fn default() -> Self {
        let config = Config::default();
        Self {
            protocol: config.protocol().to_string(),
            mode: config.mode(),
            bucket_inserts: config.bucket_inserts(),
            address_scope: config.address_scope(),
            query_timeout: config.query_timeout(),
            replication: config.replication(),
            parallelism: config.parallelism(),
            provider_ttl: config.provider_ttl(),
            provider_republish_interval: config.provider_republish_interval(),
            bootstrap_interval: config.bootstrap_interval(),
            max_queries: config.max_queries(),
            max_provided_keys: config.max_provided_keys(),
            max_remote_keys: config.max_remote_keys(),
            max_addresses_per_peer: config.max_addresses_per_peer(),
            value_ttl: config.value_ttl(),
            value_republish_interval: config.value_republish_interval(),
            max_values: config.max_values(),
            max_remote_values: config.max_remote_values(),
            max_value_bytes: config.max_value_bytes(),
        }
    }
}

impl ConfigBuilder {
    /// Sets [`Config::protocol`].
    pub fn protocol(mut self, value: impl Into<String>) -> Self {
        self.protocol = value.into();
        self
    }

    /// Sets [`Config::mode`].
    pub fn mode(mut self, value: Mode) -> Self {
        self.mode = value;
        self
    }

    /// Sets [`Config::bucket_inserts`].
    pub fn bucket_inserts(mut self, value: BucketInserts) -> Self {
        self.bucket_inserts = value;
        self
    }

    /// Sets [`Config::address_scope`].
    pub fn address_scope(mut self, value: AddressScope) -> Self {
        self.address_scope = value;
        self
    }

    /// Sets [`Config::query_timeout`].
    pub fn query_timeout(mut self, value: Duration) -> Self {
        self.query_timeout = value;
        self
    }

    /// Sets [`Config::replication`].
    pub fn replication(mut self, value: usize) -> Self {
        self.replication = value;
        self
    }

    /// Sets [`Config::parallelism`].
    pub fn parallelism(mut self, value: usize) -> Self {
        self.parallelism = value;
        self
    }

    /// Sets [`Config::provider_ttl`].
    pub fn provider_ttl(mut self, value: Duration) -> Self {
        self.provider_ttl = value;
        self
    }

    /// Sets [`Config::provider_republish_interval`].
    pub fn provider_republish_interval(mut self, value: Duration) -> Self {
        self.provider_republish_interval = value;
        self
    }

    /// Sets [`Config::bootstrap_interval`].
    pub fn bootstrap_interval(mut self, value: Option<Duration>) -> Self {
        self.bootstrap_interval = value;
        self
    }

    /// Sets [`Config::max_queries`].
    pub fn max_queries(mut self, value: usize) -> Self {
        self.max_queries = value;
        self
    }

    /// Sets [`Config::max_provided_keys`].
    pub fn max_provided_keys(mut self, value: usize) -> Self {
        self.max_provided_keys = value;
        self
    }

    /// Sets [`Config::max_remote_keys`].
    pub fn max_remote_keys(mut self, value: usize) -> Self {
        self.max_remote_keys = value;
        self
    }

    /// Sets [`Config::max_addresses_per_peer`].
    pub fn max_addresses_per_peer(mut self, value: usize) -> Self {
        self.max_addresses_per_peer = value;
        self
    }

    /// Sets [`Config::value_ttl`].
    pub fn value_ttl(mut self, value: Duration) -> Self {
        self.value_ttl = value;
        self
    }

    /// Sets [`Config::value_republish_interval`].
    pub fn value_republish_interval(mut self, value: Duration) -> Self {
        self.value_republish_interval = value;
        self
    }

    /// Sets [`Config::max_values`].
    pub fn max_values(mut self, value: usize) -> Self {
        self.max_values = value;
        self
    }

    /// Sets [`Config::max_remote_values`].
    pub fn max_remote_values(mut self, value: usize) -> Self {
        self.max_remote_values = value;
        self
    }

    /// Sets [`Config::max_value_bytes`].
    pub fn max_value_bytes(mut self, value: usize) -> Self {
        self.max_value_bytes = value;
        self
    }

    /// Checks every field and returns the finished configuration.
    pub fn build(self) -> Result<Config, ConfigError> {
        let count = |value: usize, field: &'static str| {
            NonZeroUsize::new(value).ok_or(ConfigError::Zero(field))
        };
        if self.query_timeout < Duration::from_secs(1) {
            return Err(ConfigError::QueryTimeout(self.query_timeout));
        }
        // A bucket holds 20 nodes, and an answer carries as many.
        if self.replication > libp2p_kad::K_VALUE.get() {
            return Err(ConfigError::Replication(self.replication));
        }
        for (records, interval, ttl) in [
            (
                "provider",
                self.provider_republish_interval,
                self.provider_ttl,
            ),
            ("value", self.value_republish_interval, self.value_ttl),
        ] {
            if interval.is_zero() || interval >= ttl {
                return Err(ConfigError::Republish {
                    records,
                    interval,
                    ttl,
                });
            }
            if ttl > MAX_TTL {
                return Err(ConfigError::Ttl { records, ttl });
            }
        }
        if self.max_value_bytes > MAX_VALUE_BYTES {
            return Err(ConfigError::ValueBytes(self.max_value_bytes));
        }
        if self
            .bootstrap_interval
            .is_some_and(|interval| interval.is_zero())
        {
            return Err(ConfigError::Zero("bootstrap_interval"));
        }
        Ok(Config {
            protocol: StreamProtocol::try_from_owned(self.protocol.clone())
                .map_err(|_| ConfigError::Protocol(self.protocol))?,
            mode: self.mode,
            bucket_inserts: self.bucket_inserts,
            address_scope: self.address_scope,
            query_timeout: self.query_timeout,
            replication: count(self.replication, "replication")?,
            parallelism: count(self.parallelism, "parallelism")?,
            provider_ttl: self.provider_ttl,
            provider_republish_interval: self.provider_republish_interval,
            bootstrap_interval: self.bootstrap_interval,
            max_queries: count(self.max_queries, "max_queries")?,
            max_provided_keys: count(self.max_provided_keys, "max_provided_keys")?,
            max_remote_keys: count(self.max_remote_keys, "max_remote_keys")?,
            max_addresses_per_peer: count(self.max_addresses_per_peer, "max_addresses_per_peer")?,
            value_ttl: self.value_ttl,
            value_republish_interval: self.value_republish_interval,
            max_values: count(self.max_values, "max_values")?,
            max_remote_values: count(self.max_remote_values, "max_remote_values")?,
            max_value_bytes: count(self.max_value_bytes, "max_value_bytes")?,
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
    /// Not a protocol name.
    #[error(
        "protocol {0:?} is not a protocol name: it must begin with '/', for example \"/ipfs/kad/1.0.0\""
    )]
    Protocol(String),
    /// Too short for any query.
    #[error("query_timeout {0:?} is too short: use at least 1s")]
    QueryTimeout(Duration),
    /// More copies than a bucket has nodes.
    #[error("replication {0} is too large: use at most 20, the size of a bucket")]
    Replication(usize),
    /// Records would expire before they are announced again.
    #[error(
        "{records}_republish_interval {interval:?} must be above 0s and shorter than {records}_ttl {ttl:?}"
    )]
    Republish {
        /// `provider` or `value`.
        records: &'static str,
        /// What was asked for.
        interval: Duration,
        /// The time to live that it must stay below.
        ttl: Duration,
    },
    /// Longer than any node keeps a record.
    #[error("{records}_ttl {ttl:?} is too long: use at most 365 days")]
    Ttl {
        /// `provider` or `value`.
        records: &'static str,
        /// What was asked for.
        ttl: Duration,
    },
    /// Larger than what is sent in one message.
    #[error("max_value_bytes {0} is too large: use at most 16384")]
    ValueBytes(usize),
    /// A bound or interval of zero.
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
            refused(Config::builder().protocol("kad")),
            ConfigError::Protocol("kad".into())
        );
        assert_eq!(
            refused(Config::builder().replication(21)),
            ConfigError::Replication(21)
        );
        assert_eq!(
            refused(Config::builder().parallelism(0)),
            ConfigError::Zero("parallelism")
        );
        let hour = Duration::from_secs(3600);
        assert_eq!(
            refused(
                Config::builder()
                    .provider_ttl(hour)
                    .provider_republish_interval(hour)
            ),
            ConfigError::Republish {
                records: "provider",
                interval: hour,
                ttl: hour
            }
        );
        assert_eq!(
            refused(Config::builder().value_ttl(hour)),
            ConfigError::Republish {
                records: "value",
                interval: 22 * hour,
                ttl: hour
            }
        );
        assert_eq!(
            refused(Config::builder().provider_ttl(Duration::MAX)),
            ConfigError::Ttl {
                records: "provider",
                ttl: Duration::MAX
            }
        );
        assert_eq!(
            refused(Config::builder().max_value_bytes(16_385)),
            ConfigError::ValueBytes(16_385)
        );
    }

    #[test]
    fn serde_reads_the_fields_and_refuses_unknown_ones() {
        let config: Config = toml::from_str(
            "protocol = '/lan/kad/1.0.0'\nmode = 'server'\naddress_scope = 'any'\n\
             bucket_inserts = 'on-connected'\nquery_timeout = '10s'",
        )
        .unwrap();
        assert_eq!(config.protocol().as_ref(), "/lan/kad/1.0.0");
        assert_eq!(config.mode(), Mode::Server);
        assert_eq!(config.address_scope(), AddressScope::Any);
        assert_eq!(config.query_timeout(), Duration::from_secs(10));
        assert!(toml::from_str::<Config>("k = 20").is_err());
    }
}
