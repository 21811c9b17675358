use std::{fmt::Write as _, num::NonZeroUsize, time::Duration};

use serde::Deserialize;

use crate::dns;

/// What all libp2p peers ask for (libp2p mDNS specification).
const SERVICE_NAME: &str = "_p2p._udp.local";

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
    enable_loopback: bool,
    scope: Scope,
    service_name: String,
    max_peers: NonZeroUsize,
    max_addresses_per_peer: NonZeroUsize,
    max_interfaces: NonZeroUsize,
}

/// Which addresses belong on a local network, both those that are told and those that are believed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Scope {
    /// Told: our listen addresses on the interface in question. Believed: addresses on that link, private ones
    /// (a site may have several prefixes), and `.local` names. Relayed addresses are neither told nor believed.
    #[default]
    Local,
    /// Relayed addresses, names and public addresses too, whatever link they are heard on.
    Any,
}

impl Config {
    /// A builder that starts from the defaults.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }

    /// How often every link is asked for peers in the long run; default 60 s (the `mdns_query_interval`
    /// of the project's `ConnectivityConfig`), at least 1 s (RFC 6762 §5.2). The first query leaves within 100 ms, the next ones
    /// after 1 s, 2 s, 4 s, … up to this interval. A query that another host asked first is not asked again (RFC 6762 §7.3).
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

    /// Whether nodes on this machine find each other over its loopback interface too; default `false`.
    /// For development and for machines without a network.
    pub fn enable_loopback(&self) -> bool {
        self.enable_loopback
    }

    /// Which addresses are told and believed; default [`Scope::Local`].
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// What all peers ask for; default `_p2p._udp.local` (libp2p mDNS specification). Peers under another name do not meet these.
    pub fn service_name(&self) -> &str {
        &self.service_name
    }

    /// Peers that are remembered at a time; default 1,024. When there are more, those give way that were heard
    /// only once, from whoever announces the most of them.
    pub fn max_peers(&self) -> usize {
        self.max_peers.get()
    }

    /// Addresses that are remembered for one peer; default 32.
    pub fn max_addresses_per_peer(&self) -> usize {
        self.max_addresses_per_peer.get()
    }

    /// Links (an interface in one address family) that are used at a time; default 64. A host of containers has hundreds.
    pub fn max_interfaces(&self) -> usize {
        self.max_interfaces.get()
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
            enable_loopback: false,
            scope: Scope::Local,
            service_name: SERVICE_NAME.to_owned(),
            max_peers: const { count(1024) },
            max_addresses_per_peer: const { count(32) },
            max_interfaces: const { count(64) },
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
    enable_loopback: bool,
    scope: Scope,
    service_name: String,
    max_peers: usize,
    max_addresses_per_peer: usize,
    max_interfaces: usize,
}

impl Default for ConfigBuilder {
    fn default() -> Self {
        let config = Config::default();
        Self {
            query_interval: config.query_interval(),
            ttl: config.ttl(),
            enable_ipv4: config.enable_ipv4(),
            enable_ipv6: config.enable_ipv6(),
            enable_loopback: config.enable_loopback(),
            scope: config.scope(),
            max_peers: config.max_peers(),
            max_addresses_per_peer: config.max_addresses_per_peer(),
            max_interfaces: config.max_interfaces(),
            service_name: config.service_name,
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

    /// Sets [`Config::enable_loopback`].
    pub fn enable_loopback(mut self, value: bool) -> Self {
        self.enable_loopback = value;
        self
    }

    /// Sets [`Config::scope`].
    pub fn scope(mut self, value: Scope) -> Self {
        self.scope = value;
        self
    }

    /// Sets [`Config::service_name`]. go-libp2p calls the first part `serviceName` and adds `.local`: to meet the
    /// room `universal-connectivity` of go peers use `universal-connectivity.local`.
    pub fn service_name(mut self, value: impl Into<String>) -> Self {
        self.service_name = value.into();
        self
    }

    /// Sets [`Config::service_name`] to that of a private network: `_p2p-X._udp.local`, X being the `fingerprint` of its pre-shared
    /// key in base 16 (libp2p mDNS specification; `PreSharedKey::fingerprint` of libp2p-pnet).
    pub fn private_network(self, fingerprint: [u8; 16]) -> Self {
        let mut name = String::from("_p2p-");
        for byte in fingerprint {
            // Writing to a string never fails.
            write!(name, "{byte:02x}").ok();
        }
        self.service_name(name + "._udp.local")
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

    /// Sets [`Config::max_interfaces`].
    pub fn max_interfaces(mut self, value: usize) -> Self {
        self.max_interfaces = value;
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
        // A peer name of up to 63 bytes and its length stand before it.
        let usable = dns::name(&self.service_name)
            .is_some_and(|name| name.num_labels() > 1 && name.len() + 64 <= 255);
        if !usable {
            return Err(ConfigError::ServiceName(self.service_name));
        }
        Ok(Config {
            query_interval: self.query_interval,
            ttl: self.ttl,
            enable_ipv4: self.enable_ipv4,
            enable_ipv6: self.enable_ipv6,
            enable_loopback: self.enable_loopback,
            scope: self.scope,
            service_name: self.service_name,
            max_peers: NonZeroUsize::new(self.max_peers).ok_or(ConfigError::Zero("max_peers"))?,
            max_addresses_per_peer: NonZeroUsize::new(self.max_addresses_per_peer)
                .ok_or(ConfigError::Zero("max_addresses_per_peer"))?,
            max_interfaces: NonZeroUsize::new(self.max_interfaces)
                .ok_or(ConfigError::Zero("max_interfaces"))?,
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
    /// Not a name that DNS can carry below a peer's name.
    #[error(
        "service_name {0:?} cannot be used: write labels of 1 to 63 bytes, at least two and at most 190 bytes in all, as in \"_p2p._udp.local\""
    )]
    ServiceName(String),
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
    fn a_service_name_is_one_that_dns_can_carry() {
        let name = |name: &str| Config::builder().service_name(name).build();
        assert!(name("universal-connectivity.local").is_ok());
        assert!(name("_p2p._udp.local.").is_ok());
        for wrong in [
            "",
            "local",
            "a..local",
            &format!("{}.local", "a".repeat(64)),
            &"abcdefgh.".repeat(22),
        ] {
            assert_eq!(name(wrong), Err(ConfigError::ServiceName(wrong.to_owned())));
        }
    }

    #[test]
    fn a_private_network_has_a_service_of_its_own() {
        let config = Config::builder().private_network([0xa5; 16]).build();
        assert_eq!(
            config.unwrap().service_name(),
            "_p2p-a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5._udp.local"
        );
    }

    #[test]
    fn serde_reads_durations_as_text_and_refuses_unknown_fields() {
        let config: Config =
            toml::from_str("query_interval = '5s'\nenable_ipv6 = false\nscope = 'any'").unwrap();
        assert_eq!(config.query_interval(), Duration::from_secs(5));
        assert!(!config.enable_ipv6());
        assert_eq!(config.scope(), Scope::Any);
        assert_eq!(config.ttl(), Config::default().ttl());
        assert!(toml::from_str::<Config>("interval = '5s'").is_err());
        assert!(toml::from_str::<Config>("query_interval = '1ms'").is_err());
    }
}
