use std::time::Duration;

use crate::{
    CircuitLimit, ConfigError,
    config::{require, settings},
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
}

/// Settings of a relay, not yet checked.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConfigBuilder {
    max_reservations: usize,
    max_reservations_per_peer: usize,
    #[serde(with = "humantime_serde")]
    reservation_duration: Duration,
    max_circuits: usize,
    max_circuits_per_peer: usize,
    #[serde(with = "humantime_serde")]
    max_circuit_duration: Duration,
    max_circuit_bytes: Option<u64>,
    rate_limits: bool,
    advertise_listen_addresses: bool,
}

settings! {
    /// Reservations held at the same time. Default 128 (specification's reference relays), at
    /// least 1. Renewals are accepted however full the relay is.
    max_reservations: usize,
    /// Reservations that one peer may hold, on connections of its own each. Default 4
    /// (rust-libp2p), at least 1.
    max_reservations_per_peer: usize,
    /// How long a reservation lives unless it is renewed. Default 1 h (specification), from 1 s
    /// to a year; whole seconds.
    reservation_duration: Duration,
    /// Circuits open at the same time. Default 16 (rust-libp2p), at least 1.
    max_circuits: usize,
    /// Circuits that one peer may be part of, at either end. Default 4 (rust-libp2p), at least 1.
    max_circuits_per_peer: usize,
    /// How long one circuit may last. Default 2 min (specification), from 1 s to 2³² − 1 s; whole
    /// seconds, as the wire has them.
    max_circuit_duration: Duration,
    /// How many bytes one circuit may carry, both directions together. Default 128 KiB
    /// (specification); `None` or `Some(0)`: any number.
    max_circuit_bytes: Option<u64>,
    /// Whether requests are also limited in rate: for each peer 30 reservations and 30 circuits
    /// at once and one more every 2 min, for each IP address 60 of each and one more every minute
    /// (rust-libp2p's figures). Default true.
    rate_limits: bool,
    /// Whether clients are told the listen addresses while no external address is confirmed.
    /// Default true: without any address, a reservation is worth nothing to its holder (and stock
    /// clients drop it), so a relay on a local network would serve nobody.
    advertise_listen_addresses: bool,
}

impl Default for ConfigBuilder {
    fn default() -> Self {
        Self {
            max_reservations: 128,
            max_reservations_per_peer: 4,
            reservation_duration: HOUR,
            max_circuits: 16,
            max_circuits_per_peer: 4,
            max_circuit_duration: Duration::from_secs(2 * 60),
            max_circuit_bytes: Some(1 << 17),
            rate_limits: true,
            advertise_listen_addresses: true,
        }
    }
}

impl ConfigBuilder {
    /// A relay for one's own nodes: 256 reservations, 10 per peer, 256 circuits, 10 per peer, 1 h
    /// each, any number of bytes; the rest as by default.
    #[must_use]
    pub fn generous() -> Self {
        Self {
            max_reservations: 256,
            max_reservations_per_peer: 10,
            max_circuits: 256,
            max_circuits_per_peer: 10,
            max_circuit_duration: HOUR,
            max_circuit_bytes: None,
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
            ("max_reservations", self.max_reservations),
            ("max_reservations_per_peer", self.max_reservations_per_peer),
            ("max_circuits", self.max_circuits),
            ("max_circuits_per_peer", self.max_circuits_per_peer),
        ] {
            require(value >= 1, setting, "at least 1", value)?;
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
