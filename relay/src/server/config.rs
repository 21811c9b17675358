use std::time::Duration;

use crate::{
    CircuitLimit, ConfigError,
    config::{require, settings},
    core::server::{bandwidth::Rates, caps::Limits, rate::RateLimit},
};

/// What a relay gives away, valid by construction.
///
/// [`Config::default`] is the profile of the specification's reference relays, for a stranger's
/// relay on the open internet; [`Config::generous`] suits a relay of one's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "ConfigBuilder")]
pub struct Config(ConfigBuilder);

impl Config {
    /// Starts from the defaults.
    #[must_use]
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }

    /// A relay for one's own nodes: [`ConfigBuilder::generous`].
    #[must_use]
    pub fn generous() -> Self {
        Self(ConfigBuilder::generous())
    }

    /// The limit that this relay announces for every circuit; `None` if it would be unlimited.
    #[must_use]
    pub fn circuit_limit(&self) -> Option<CircuitLimit> {
        CircuitLimit::announced(Some(self.0.max_circuit_duration), self.0.max_circuit_bytes)
    }

    pub(crate) fn reservation_limits(&self) -> Limits {
        Limits {
            total: self.0.max_reservations,
            per_peer: self.0.max_reservations_per_peer,
            per_ip: self.0.max_reservations_per_ip,
            per_prefix: self.0.max_reservations_per_prefix,
        }
    }

    pub(crate) fn circuit_limits(&self) -> Limits {
        Limits {
            total: self.0.max_circuits,
            per_peer: self.0.max_circuits_per_peer,
            per_ip: self.0.max_circuits_per_ip,
            per_prefix: self.0.max_circuits_per_prefix,
        }
    }

    pub(crate) fn rates(&self) -> Rates {
        Rates {
            total: self.0.max_bandwidth,
            classes: [
                self.0.max_bandwidth_high,
                self.0.max_bandwidth_normal,
                self.0.max_bandwidth_low,
            ],
            per_peer: self.0.max_bandwidth_per_peer,
        }
    }
}

/// Settings of a relay, not yet checked.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConfigBuilder {
    max_reservations: usize,
    max_reservations_per_peer: usize,
    max_reservations_per_ip: Option<usize>,
    max_reservations_per_prefix: Option<usize>,
    #[serde(with = "humantime_serde")]
    reservation_duration: Duration,
    max_circuits: usize,
    max_circuits_per_peer: usize,
    max_circuits_per_ip: Option<usize>,
    max_circuits_per_prefix: Option<usize>,
    #[serde(with = "humantime_serde")]
    max_circuit_duration: Duration,
    max_circuit_bytes: Option<u64>,
    ipv4_prefix: u8,
    ipv6_prefix: u8,
    rate_limits: bool,
    requests_per_peer: RateLimit,
    requests_per_ip: RateLimit,
    requests_per_prefix: RateLimit,
    flood: RateLimit,
    #[serde(with = "humantime_serde")]
    ban_duration: Duration,
    connections_beside_banned: RateLimit,
    max_bandwidth: Option<u64>,
    max_bandwidth_per_peer: Option<u64>,
    max_bandwidth_high: Option<u64>,
    max_bandwidth_normal: Option<u64>,
    max_bandwidth_low: Option<u64>,
    #[serde(with = "humantime_serde")]
    handshake_timeout: Duration,
    advertise_listen_addresses: bool,
}

settings! {
    /// Reservations held at the same time. Default 128 (go-libp2p, rust-libp2p), at least 1. Renewals are accepted however
    /// full the relay is.
    max_reservations: usize,
    /// Reservations that one peer may hold, on connections of its own each. Default 4 (rust-libp2p), at least 1. One more
    /// moves the peer's oldest to the connection on which it asks.
    max_reservations_per_peer: usize,
    /// Reservations from one IP address; an IPv6 address counts as its /64, which is one host's. Default 8 (go-libp2p);
    /// `None`: as many as there are.
    max_reservations_per_ip: Option<usize>,
    /// Reservations from one network, see [`ipv4_prefix`](Self::ipv4_prefix). Default 32 (go-libp2p, there for each
    /// autonomous system); `None`: as many as there are.
    max_reservations_per_prefix: Option<usize>,
    /// How long a reservation lives unless it is renewed. Default 1 h (go-libp2p, rust-libp2p), from 1 s to a year; whole
    /// seconds.
    reservation_duration: Duration,
    /// Circuits open at the same time. Default 128 (go-libp2p allows the relay service 256 streams, two for a circuit), at
    /// least 1.
    max_circuits: usize,
    /// Circuits that one peer may be part of, at either end. Default 16 (go-libp2p), at least 1.
    max_circuits_per_peer: usize,
    /// Circuits that peers at one IP address may be part of. Default 32; `None`: any number.
    max_circuits_per_ip: Option<usize>,
    /// Circuits that peers of one network may be part of. Default 64; `None`: any number.
    max_circuits_per_prefix: Option<usize>,
    /// How long one circuit may last. Default 2 min (specification's reference relays), from 1 s to 2³² − 1 s; whole seconds,
    /// as the wire has them.
    max_circuit_duration: Duration,
    /// How many bytes one circuit may carry in each direction. Default 128 KiB (specification's reference relays); `None` or
    /// `Some(0)`: any number.
    ///
    /// "The maximum number of bytes allowed to be transmitted in each direction", as go-libp2p counts; rust-libp2p counts
    /// both directions together.
    max_circuit_bytes: Option<u64>,
    /// Bits of an IPv4 address that make its network. Default 24, at most 32.
    ipv4_prefix: u8,
    /// Bits of an IPv6 address that make its network. Default 48, what a site gets (RFC 6177), at most 128.
    ipv6_prefix: u8,
    /// Whether requests are limited in rate at all, by the settings below. Default true.
    rate_limits: bool,
    /// Requests of one peer, counted apart for reservations (renewals too) and circuits. Default 30, one more every 2 min
    /// (rust-libp2p).
    requests_per_peer: RateLimit,
    /// Requests from one IP address, likewise; renewals are not counted here. Default 60, one more every minute
    /// (rust-libp2p).
    requests_per_ip: RateLimit,
    /// Requests from one network, likewise. Default 240, one more every 15 s: four addresses' worth.
    requests_per_prefix: RateLimit,
    /// Requests of one peer of whatever kind, refused ones too. A peer that exceeds it is disconnected and
    /// [banned](Self::ban_duration). Default 64, two more every second.
    flood: RateLimit,
    /// For how long a peer that [floods](Self::flood) finds no connection. Default 1 min; 0: it is disconnected only.
    ban_duration: Duration,
    /// Connections that one IP address may begin while banned peers keep coming back from it. Who comes shows only after the
    /// handshake, which is what costs; one beyond is refused before. Connections that exist are not touched. Default 8, one
    /// more every 250 ms.
    connections_beside_banned: RateLimit,
    /// Bytes per second that all circuits together may carry, both directions. Default `None`: any number; at least 1.
    max_bandwidth: Option<u64>,
    /// Bytes per second that all circuits of one peer may carry. Default `None`: any number; at least 1.
    max_bandwidth_per_peer: Option<u64>,
    /// Bytes per second that all circuits of [`Class::High`](super::Class::High) may carry. Default `None`; at least 1.
    max_bandwidth_high: Option<u64>,
    /// The same for [`Class::Normal`](super::Class::Normal).
    max_bandwidth_normal: Option<u64>,
    /// The same for [`Class::Low`](super::Class::Low).
    max_bandwidth_low: Option<u64>,
    /// How long a peer may take over one message of a request or an answer. Default 10 s, from 100 ms to 10 min.
    handshake_timeout: Duration,
    /// Whether clients are told the listen addresses while no external address is confirmed. Default true: without any
    /// address, a reservation is worth nothing to its holder (and stock clients drop it), so a relay on a local network
    /// would serve nobody.
    advertise_listen_addresses: bool,
}

impl Default for ConfigBuilder {
    fn default() -> Self {
        let rate = |burst, seconds| RateLimit {
            burst,
            interval: Duration::from_secs(seconds),
        };
        Self {
            max_reservations: 128,
            max_reservations_per_peer: 4,
            max_reservations_per_ip: Some(8),
            max_reservations_per_prefix: Some(32),
            reservation_duration: HOUR,
            max_circuits: 128,
            max_circuits_per_peer: 16,
            max_circuits_per_ip: Some(32),
            max_circuits_per_prefix: Some(64),
            max_circuit_duration: Duration::from_secs(2 * 60),
            max_circuit_bytes: Some(1 << 17),
            ipv4_prefix: 24,
            ipv6_prefix: 48,
            rate_limits: true,
            requests_per_peer: rate(30, 120),
            requests_per_ip: rate(60, 60),
            requests_per_prefix: rate(240, 15),
            flood: RateLimit {
                burst: 64,
                interval: Duration::from_millis(500),
            },
            ban_duration: Duration::from_secs(60),
            connections_beside_banned: RateLimit {
                burst: 8,
                interval: Duration::from_millis(250),
            },
            max_bandwidth: None,
            max_bandwidth_per_peer: None,
            max_bandwidth_high: None,
            max_bandwidth_normal: None,
            max_bandwidth_low: None,
            handshake_timeout: Duration::from_secs(10),
            advertise_listen_addresses: true,
        }
    }
}

impl ConfigBuilder {
    /// A relay for one's own nodes: 256 reservations, 10 per peer, 256 circuits, 1 h each, any number of bytes, any number of
    /// peers behind one address, and as many requests as it takes them to come back all at once (a peer 256 at once and one
    /// each second, an address 1,024 and 16, a network 4,096 and 64; a flood is 1,024 at once and 10 each second); the rest as
    /// by default.
    #[must_use]
    pub fn generous() -> Self {
        let rate = |burst, milliseconds| RateLimit {
            burst,
            interval: Duration::from_millis(milliseconds),
        };
        Self {
            max_reservations: 256,
            max_reservations_per_peer: 10,
            max_reservations_per_ip: None,
            max_reservations_per_prefix: None,
            max_circuits: 256,
            max_circuits_per_peer: 256,
            max_circuits_per_ip: None,
            max_circuits_per_prefix: None,
            max_circuit_duration: HOUR,
            max_circuit_bytes: None,
            requests_per_peer: rate(256, 1000),
            requests_per_ip: rate(1024, 1000 / 16),
            requests_per_prefix: rate(4096, 1000 / 64),
            flood: rate(1024, 100),
            connections_beside_banned: rate(256, 1000 / 16),
            ..Self::default()
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] names the first setting outside its range.
    pub fn build(self) -> Result<Config, ConfigError> {
        for (setting, value) in [
            ("max_reservations", Some(self.max_reservations)),
            (
                "max_reservations_per_peer",
                Some(self.max_reservations_per_peer),
            ),
            ("max_reservations_per_ip", self.max_reservations_per_ip),
            (
                "max_reservations_per_prefix",
                self.max_reservations_per_prefix,
            ),
            ("max_circuits", Some(self.max_circuits)),
            ("max_circuits_per_peer", Some(self.max_circuits_per_peer)),
            ("max_circuits_per_ip", self.max_circuits_per_ip),
            ("max_circuits_per_prefix", self.max_circuits_per_prefix),
        ] {
            require(value != Some(0), setting, "at least 1", 0)?;
        }
        for (setting, value) in [
            ("max_bandwidth", self.max_bandwidth),
            ("max_bandwidth_per_peer", self.max_bandwidth_per_peer),
            ("max_bandwidth_high", self.max_bandwidth_high),
            ("max_bandwidth_normal", self.max_bandwidth_normal),
            ("max_bandwidth_low", self.max_bandwidth_low),
        ] {
            require(value != Some(0), setting, "at least 1", 0)?;
        }
        let second = Duration::from_secs(1);
        require(
            (second..=YEAR).contains(&self.reservation_duration),
            "reservation_duration",
            "between 1 s and a year",
            self.reservation_duration,
        )?;
        // The wire has whole seconds in 32 bits.
        require(
            self.max_circuit_duration >= second
                && u32::try_from(self.max_circuit_duration.as_secs()).is_ok(),
            "max_circuit_duration",
            "between 1 s and 2^32 - 1 s",
            self.max_circuit_duration,
        )?;
        require(
            self.ipv4_prefix <= 32,
            "ipv4_prefix",
            "at most 32",
            self.ipv4_prefix,
        )?;
        require(
            self.ipv6_prefix <= 128,
            "ipv6_prefix",
            "at most 128",
            self.ipv6_prefix,
        )?;
        for (setting, limit) in [
            ("requests_per_peer", self.requests_per_peer),
            ("requests_per_ip", self.requests_per_ip),
            ("requests_per_prefix", self.requests_per_prefix),
            ("flood", self.flood),
            ("connections_beside_banned", self.connections_beside_banned),
        ] {
            require(
                (1..=1_000_000).contains(&limit.burst) && limit.interval <= YEAR,
                setting,
                "a burst from 1 to 1,000,000 and an interval of at most a year",
                limit,
            )?;
        }
        require(
            self.ban_duration <= YEAR,
            "ban_duration",
            "at most a year",
            self.ban_duration,
        )?;
        let timeout = self.handshake_timeout;
        require(
            (Duration::from_millis(100)..=Duration::from_secs(600)).contains(&timeout),
            "handshake_timeout",
            "between 100 ms and 10 min",
            timeout,
        )?;
        Ok(Config(self))
    }
}

impl TryFrom<ConfigBuilder> for Config {
    type Error = ConfigError;

    fn try_from(builder: ConfigBuilder) -> Result<Self, ConfigError> {
        builder.build()
    }
}

const HOUR: Duration = Duration::from_secs(60 * 60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_presets_are_valid() {
        assert_eq!(ConfigBuilder::default().build(), Ok(Config::default()));
        assert_eq!(ConfigBuilder::generous().build(), Ok(Config::generous()));
    }

    #[test]
    fn a_limit_of_nothing_is_refused_by_name() {
        let error = Config::builder().max_circuits(0).build().unwrap_err();
        assert_eq!(
            error.to_string(),
            "set `max_circuits` to at least 1; it is 0"
        );
        // Longer than the wire can say.
        let forever = Duration::from_secs(1 << 32);
        assert!(
            Config::builder()
                .max_circuit_duration(forever)
                .build()
                .is_err()
        );
    }

    #[test]
    fn a_file_says_what_differs_and_nothing_unknown() {
        let text = r#"{"reservation_duration": "90s", "max_circuit_bytes": 0}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        assert_eq!(config.reservation_duration(), Duration::from_secs(90));
        assert_eq!(config.circuit_limit().unwrap().bytes, None);
        assert_eq!(config.max_circuits(), Config::default().max_circuits());
        assert!(serde_json::from_str::<Config>(r#"{"max_circuit": 1}"#).is_err());
        assert!(serde_json::from_str::<Config>(r#"{"max_circuits": 0}"#).is_err());
    }
}
