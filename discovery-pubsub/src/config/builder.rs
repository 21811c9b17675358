use std::{num::NonZeroUsize, time::Duration};

use serde::Deserialize;

use super::{Config, ConfigError, MAX_CONTENT, MAX_TOPICS, MAX_TRANSMIT_BYTES, is_topic};
use crate::{announcement::Service, core::connect::AutoConnect};

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
    stale_after_percent: u32,
    max_peers: usize,
    max_addresses_per_peer: usize,
    max_peers_per_host: usize,
    max_announcement_bytes: usize,
    max_messages_per_second: usize,
    allow_loopback: bool,
    allow_private: bool,
    services: Vec<Service>,
    namespace: String,
    #[serde(with = "humantime_serde")]
    service_interval: Duration,
    #[serde(with = "humantime_serde")]
    content_interval: Duration,
    max_content_per_peer: usize,
    json: bool,
    auto_connect: Option<AutoConnect>,
    disconnect_graylisted: bool,
}

impl Default for ConfigBuilder {
    fn default() -> Self {
        let config = Config::default();
        Self {
            topics: config.topics.into_iter().collect(),
            announce_interval: config.announce_interval,
            listen_only: config.listen_only,
            peer_ttl: config.peer_ttl,
            stale_after_percent: config.stale_after_percent,
            max_peers: config.max_peers.get(),
            max_addresses_per_peer: config.max_addresses_per_peer.get(),
            max_peers_per_host: config.max_peers_per_host.get(),
            max_announcement_bytes: config.max_announcement_bytes.get(),
            max_messages_per_second: config.max_messages_per_second.get(),
            allow_loopback: config.allow_loopback,
            allow_private: config.allow_private,
            services: config.services.into_iter().collect(),
            namespace: config.namespace,
            service_interval: config.service_interval,
            content_interval: config.content_interval,
            max_content_per_peer: config.max_content_per_peer.get(),
            json: config.json,
            auto_connect: config.auto_connect,
            disconnect_graylisted: config.disconnect_graylisted,
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

    /// Sets [`Config::stale_after_percent`].
    pub fn stale_after_percent(mut self, value: u32) -> Self {
        self.stale_after_percent = value;
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

    /// Sets [`Config::max_peers_per_host`].
    pub fn max_peers_per_host(mut self, value: usize) -> Self {
        self.max_peers_per_host = value;
        self
    }

    /// Sets [`Config::max_announcement_bytes`].
    pub fn max_announcement_bytes(mut self, value: usize) -> Self {
        self.max_announcement_bytes = value;
        self
    }

    /// Sets [`Config::max_messages_per_second`].
    pub fn max_messages_per_second(mut self, value: usize) -> Self {
        self.max_messages_per_second = value;
        self
    }

    /// Sets [`Config::allow_loopback`].
    pub fn allow_loopback(mut self, value: bool) -> Self {
        self.allow_loopback = value;
        self
    }

    /// Sets [`Config::allow_private`].
    pub fn allow_private(mut self, value: bool) -> Self {
        self.allow_private = value;
        self
    }

    /// Sets [`Config::service_interval`].
    pub fn service_interval(mut self, value: Duration) -> Self {
        self.service_interval = value;
        self
    }

    /// Sets [`Config::content_interval`].
    pub fn content_interval(mut self, value: Duration) -> Self {
        self.content_interval = value;
        self
    }

    /// Sets [`Config::max_content_per_peer`].
    pub fn max_content_per_peer(mut self, value: usize) -> Self {
        self.max_content_per_peer = value;
        self
    }

    /// Sets [`Config::json`].
    pub fn json(mut self, value: bool) -> Self {
        self.json = value;
        self
    }

    /// Sets [`Config::auto_connect`].
    pub fn auto_connect(mut self, value: Option<AutoConnect>) -> Self {
        self.auto_connect = value;
        self
    }

    /// Sets [`Config::disconnect_graylisted`].
    pub fn disconnect_graylisted(mut self, value: bool) -> Self {
        self.disconnect_graylisted = value;
        self
    }

    /// Sets [`Config::services`].
    pub fn services(mut self, values: impl IntoIterator<Item = Service>) -> Self {
        self.services = values.into_iter().collect();
        self
    }

    /// Sets [`Config::namespace`].
    pub fn namespace(mut self, value: impl Into<String>) -> Self {
        self.namespace = value.into();
        self
    }

    /// Checks every field and returns the finished configuration.
    ///
    /// # Errors
    /// With the first field that is out of its range.
    pub fn build(self) -> Result<Config, ConfigError> {
        let count = |value: usize, field: &'static str| {
            NonZeroUsize::new(value).ok_or(ConfigError::Zero(field))
        };
        // Each service has a topic, and one more in JSON.
        let topics = self.topics.len() + self.services.len() * (1 + usize::from(self.json));
        if topics > MAX_TOPICS {
            return Err(ConfigError::TooManyTopics(topics));
        }
        if let Some(topic) = self.topics.iter().find(|topic| !is_topic(topic)) {
            return Err(ConfigError::Topic(topic.clone()));
        }
        if !(1..=200).contains(&self.namespace.len()) {
            return Err(ConfigError::Namespace(self.namespace));
        }
        if self.announce_interval < Duration::from_secs(1) {
            return Err(ConfigError::AnnounceInterval(self.announce_interval));
        }
        for (field, value) in [
            ("service_interval", self.service_interval),
            ("content_interval", self.content_interval),
        ] {
            if value < Duration::from_secs(10) {
                return Err(ConfigError::ServiceInterval { field, value });
            }
        }
        if self.peer_ttl <= self.announce_interval {
            return Err(ConfigError::PeerTtl {
                ttl: self.peer_ttl,
                interval: self.announce_interval,
            });
        }
        if self.stale_after_percent < 120 {
            return Err(ConfigError::StaleAfter(self.stale_after_percent));
        }
        if self.max_announcement_bytes > MAX_TRANSMIT_BYTES {
            return Err(ConfigError::AnnouncementBytes(self.max_announcement_bytes));
        }
        if self.max_content_per_peer > MAX_CONTENT {
            return Err(ConfigError::Content(self.max_content_per_peer));
        }
        if let Some(auto_connect) = &self.auto_connect {
            auto_connect.check()?;
        }
        Ok(Config {
            topics: self.topics.into_iter().collect(),
            announce_interval: self.announce_interval,
            listen_only: self.listen_only,
            peer_ttl: self.peer_ttl,
            stale_after_percent: self.stale_after_percent,
            max_peers: count(self.max_peers, "max_peers")?,
            max_addresses_per_peer: count(self.max_addresses_per_peer, "max_addresses_per_peer")?,
            max_peers_per_host: count(self.max_peers_per_host, "max_peers_per_host")?,
            max_announcement_bytes: count(self.max_announcement_bytes, "max_announcement_bytes")?,
            max_messages_per_second: count(
                self.max_messages_per_second,
                "max_messages_per_second",
            )?,
            allow_loopback: self.allow_loopback,
            allow_private: self.allow_private,
            services: self.services.into_iter().collect(),
            namespace: self.namespace,
            service_interval: self.service_interval,
            content_interval: self.content_interval,
            max_content_per_peer: count(self.max_content_per_peer, "max_content_per_peer")?,
            json: self.json,
            auto_connect: self.auto_connect,
            disconnect_graylisted: self.disconnect_graylisted,
        })
    }
}

impl TryFrom<ConfigBuilder> for Config {
    type Error = ConfigError;

    fn try_from(builder: ConfigBuilder) -> Result<Self, ConfigError> {
        builder.build()
    }
}
