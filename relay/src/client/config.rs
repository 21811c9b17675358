use std::time::Duration;

use crate::{
    ConfigError,
    config::{require, settings},
};

/// How many reservations to hold and how hard to try, valid by construction.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "ConfigBuilder")]
pub struct Config(ConfigBuilder);

impl Config {
    /// Starts from the defaults.
    #[must_use]
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }
}

/// Settings of a relay client, not yet checked. No duration may be longer than 365 days.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConfigBuilder {
    target_reservations: usize,
    max_relays: usize,
    max_candidates: usize,
    max_addresses_per_relay: usize,
    #[serde(with = "humantime_serde")]
    backoff_initial: Duration,
    #[serde(with = "humantime_serde")]
    backoff_max: Duration,
    #[serde(with = "humantime_serde")]
    candidates_interval: Duration,
    #[serde(with = "humantime_serde")]
    request_timeout: Duration,
    #[serde(with = "humantime_serde")]
    probe_interval: Duration,
    #[serde(with = "humantime_serde")]
    probe_timeout: Duration,
    max_misses: u32,
    #[serde(with = "humantime_serde")]
    improve_interval: Duration,
    #[serde(with = "humantime_serde")]
    release_after: Duration,
    allow_private: bool,
}

settings! {
    /// Reservations to hold at the same time. Default 3 (go-libp2p holds 2), from 0 to 64.
    /// Configured relays count; all of them are reserved even if they are more.
    target_reservations: usize,
    /// Configured relays that are remembered. Default 64, at least 1.
    max_relays: usize,
    /// Candidates that are remembered. Default 64 (go-libp2p: 20), at least 1. When full, a new
    /// one takes the place of the one that failed most often, if any failed.
    max_candidates: usize,
    /// Addresses remembered for each relay, the latest. Default 16, at least 1.
    max_addresses_per_relay: usize,
    /// How long after a first failure a relay is asked again; doubled with each further one, and
    /// each time shortened by a random share of up to one half. Default 1 s, at least 10 ms.
    backoff_initial: Duration,
    /// The longest such wait. Default 5 min (go-libp2p waits 1 h), at least `backoff_initial`.
    backoff_max: Duration,
    /// How often at least to ask for candidates while some are missing; the first few times it is
    /// sooner, from 2 s on. Default 30 s (go-libp2p's minimum interval), at least 1 s.
    candidates_interval: Duration,
    /// Until a relay is dialled and has answered a request for a reservation; a circuit, for which
    /// the relay asks the destination in turn, may take twice as long. Default 10 s (as
    /// go-libp2p), at least 100 ms.
    request_timeout: Duration,
    /// How often each relay in use is pinged. Default 4 s, at least 100 ms.
    probe_interval: Duration,
    /// How long to wait for the answer. The next ping follows at once. Default 3 s, at least
    /// 50 ms.
    probe_timeout: Duration,
    /// So many pings without an answer in a row and a relay counts as lost. Default 2, at least 1.
    max_misses: u32,
    /// How often to look whether a candidate is much better than a relay in use. Default 10 min,
    /// at least 1 s.
    improve_interval: Duration,
    /// How long this node has to be publicly reachable before its reservations are given up. No
    /// new ones are made meanwhile. Default 10 s.
    release_after: Duration,
    /// Whether announcements may send this node to private, loopback and link-local addresses and to ports below 1024
    /// other than 80 and 443. Default false; for networks of one's own.
    allow_private: bool,
}

impl Default for ConfigBuilder {
    fn default() -> Self {
        Self {
            target_reservations: 3,
            max_relays: 64,
            max_candidates: 64,
            max_addresses_per_relay: 16,
            backoff_initial: Duration::from_secs(1),
            backoff_max: Duration::from_secs(5 * 60),
            candidates_interval: Duration::from_secs(30),
            request_timeout: Duration::from_secs(10),
            probe_interval: Duration::from_secs(4),
            probe_timeout: Duration::from_secs(3),
            max_misses: 2,
            improve_interval: Duration::from_secs(10 * 60),
            release_after: Duration::from_secs(10),
            allow_private: false,
        }
    }
}

impl ConfigBuilder {
    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] names the first setting outside its range.
    pub fn build(self) -> Result<Config, ConfigError> {
        for (setting, value) in [
            ("backoff_initial", self.backoff_initial),
            ("backoff_max", self.backoff_max),
            ("candidates_interval", self.candidates_interval),
            ("request_timeout", self.request_timeout),
            ("probe_interval", self.probe_interval),
            ("probe_timeout", self.probe_timeout),
            ("improve_interval", self.improve_interval),
            ("release_after", self.release_after),
        ] {
            require(value <= YEAR, setting, "at most 365 days", value)?;
        }
        require(
            self.target_reservations <= 64,
            "target_reservations",
            "at most 64",
            self.target_reservations,
        )?;
        for (setting, value) in [
            ("max_relays", self.max_relays),
            ("max_candidates", self.max_candidates),
            ("max_addresses_per_relay", self.max_addresses_per_relay),
        ] {
            require(value >= 1, setting, "at least 1", value)?;
        }
        require(
            self.backoff_initial >= Duration::from_millis(10),
            "backoff_initial",
            "at least 10 ms",
            self.backoff_initial,
        )?;
        require(
            self.backoff_max >= self.backoff_initial,
            "backoff_max",
            "at least `backoff_initial`",
            self.backoff_max,
        )?;
        for (setting, value) in [
            ("candidates_interval", self.candidates_interval),
            ("improve_interval", self.improve_interval),
        ] {
            require(
                value >= Duration::from_secs(1),
                setting,
                "at least 1 s",
                value,
            )?;
        }
        for (setting, value) in [
            ("request_timeout", self.request_timeout),
            ("probe_interval", self.probe_interval),
        ] {
            require(
                value >= Duration::from_millis(100),
                setting,
                "at least 100 ms",
                value,
            )?;
        }
        require(
            self.probe_timeout >= Duration::from_millis(50),
            "probe_timeout",
            "at least 50 ms",
            self.probe_timeout,
        )?;
        require(
            self.max_misses >= 1,
            "max_misses",
            "at least 1",
            self.max_misses,
        )?;
        Ok(Config(self))
    }
}

/// No time that is set is longer: sums of times and moments stay in range.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl TryFrom<ConfigBuilder> for Config {
    type Error = ConfigError;

    fn try_from(builder: ConfigBuilder) -> Result<Self, ConfigError> {
        builder.build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(ConfigBuilder::default().build(), Ok(Config::default()));
    }

    #[test]
    fn no_time_is_longer_than_a_year() {
        let all: [fn(ConfigBuilder, Duration) -> ConfigBuilder; 8] = [
            ConfigBuilder::backoff_initial,
            ConfigBuilder::backoff_max,
            ConfigBuilder::candidates_interval,
            ConfigBuilder::request_timeout,
            ConfigBuilder::probe_interval,
            ConfigBuilder::probe_timeout,
            ConfigBuilder::improve_interval,
            ConfigBuilder::release_after,
        ];
        for set in all {
            let error = set(Config::builder(), Duration::MAX).build().unwrap_err();
            assert!(
                matches!(
                    error,
                    ConfigError::OutOfRange {
                        expected: "at most 365 days",
                        ..
                    }
                ),
                "{error}"
            );
            let year = Config::builder().backoff_max(YEAR);
            assert!(set(year, YEAR).build().is_ok());
        }
    }

    #[test]
    fn the_longest_backoff_is_not_below_the_first() {
        let error = Config::builder()
            .backoff_max(Duration::from_millis(20))
            .build()
            .unwrap_err();
        assert!(matches!(
            error,
            ConfigError::OutOfRange {
                setting: "backoff_max",
                ..
            }
        ));
    }
}
