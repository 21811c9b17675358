//! The topics: what is said on each, who listens, and when something is said next.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use libp2p_identity::PeerId;
use rand::{Rng, RngExt as _};
use web_time::Instant;

use super::MIN_GAP;
use crate::{
    Config, Service, TopicError,
    config::{JSON_PREFIX, MAX_TOPICS, is_topic},
};

/// An announcement that is due at once waits up to this long, so that all the nodes that see the same
/// subscriber do not answer it in the same instant.
pub(super) const SPREAD: Duration = Duration::from_millis(100);

/// Shortest time between two of our announcements of a service: what others listen to.
const SERVICE_GAP: Duration = Duration::from_secs(5);

/// Pieces of content that are announced in JSON at once: each is a message.
#[cfg_attr(not(feature = "json"), expect(dead_code, reason = "for JSON"))]
pub(super) const JSON_BATCH: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    Protobuf,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    Peers(Codec),
    Service(Service, Codec),
}

#[derive(Debug)]
struct Topic {
    channel: Channel,
    subscribers: BTreeSet<PeerId>,
    last: Option<Instant>,
    next: Option<Instant>,
    gap: Duration,
    interval: Duration,
}

#[derive(Debug)]
pub(super) struct Topics {
    max_subscribers: usize,
    announce_interval: Duration,
    topics: BTreeMap<String, Topic>,
}

impl Topics {
    pub(super) fn new(config: &Config) -> Self {
        let mut topics = Self {
            max_subscribers: config.max_peers(),
            announce_interval: config.announce_interval(),
            topics: BTreeMap::new(),
        };
        for service in config.services() {
            let interval = match service {
                Service::Content => config.content_interval(),
                Service::Relay | Service::Role => config.service_interval(),
            };
            let name = service.topic(config.namespace());
            let channel = Channel::Service(service, Codec::Protobuf);
            topics.insert(name, channel, SERVICE_GAP, interval);
            #[cfg(feature = "json")]
            if let Some(name) = crate::json::topic(service).filter(|_| config.json()) {
                let channel = Channel::Service(service, Codec::Json);
                topics.insert(name.to_owned(), channel, SERVICE_GAP, interval);
            }
        }
        for topic in config.topics() {
            topics.insert_discovery(topic, config.json());
        }
        topics
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.topics.keys().map(String::as_str)
    }

    pub(super) fn get(&self, topic: &str) -> Option<Channel> {
        self.topics.get(topic).map(|topic| topic.channel)
    }

    pub(super) fn of_peers(&self) -> Vec<String> {
        self.that(|topic| matches!(topic.channel, Channel::Peers(_)))
    }

    pub(super) fn of_service(&self, service: Service) -> Vec<String> {
        self.that(|topic| matches!(topic.channel, Channel::Service(of, _) if of == service))
    }

    /// Those on which something was said and somebody listens.
    pub(super) fn announced(&self) -> Vec<String> {
        self.that(|topic| topic.last.is_some() && !topic.subscribers.is_empty())
    }

    /// Those on which something is to be said by `now`.
    pub(super) fn due(&self, now: Instant) -> Vec<String> {
        self.that(|topic| topic.next.is_some_and(|at| at <= now))
    }

    pub(super) fn add(&mut self, topic: &str, json: bool) -> Result<bool, TopicError> {
        if !is_topic(topic) {
            return Err(TopicError::Invalid(topic.to_owned()));
        }
        if self.topics.contains_key(topic) {
            return Ok(false);
        }
        if self.topics.len() >= MAX_TOPICS {
            return Err(TopicError::TooMany);
        }
        self.insert_discovery(topic, json);
        Ok(true)
    }

    pub(super) fn remove(&mut self, topic: &str) -> bool {
        self.topics.remove(topic).is_some()
    }

    /// Returns whether that is news.
    pub(super) fn on_subscribed(&mut self, topic: &str, peer: PeerId) -> bool {
        let max = self.max_subscribers;
        self.topics
            .get_mut(topic)
            .is_some_and(|topic| topic.subscribers.len() < max && topic.subscribers.insert(peer))
    }

    pub(super) fn on_unsubscribed(&mut self, topic: &str, peer: &PeerId) {
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.lose(peer);
        }
    }

    pub(super) fn on_disconnected(&mut self, peer: &PeerId) {
        for topic in self.topics.values_mut() {
            topic.lose(peer);
        }
    }

    pub(super) fn bring_forward(&mut self, topic: &str, now: Instant, rng: &mut impl Rng) {
        let spread = SPREAD.mul_f64(rng.random());
        if let Some(topic) = self.topics.get_mut(topic)
            && !topic.subscribers.is_empty()
        {
            let soon = topic.last.map_or(now, |last| now.max(last + topic.gap)) + spread;
            topic.next = Some(topic.next.map_or(soon, |next| next.min(soon)));
        }
    }

    /// Something was `said`, or there is nothing to say; `unsaid`: and there is more.
    pub(super) fn on_announced(
        &mut self,
        topic: &str,
        said: bool,
        unsaid: bool,
        now: Instant,
        rng: &mut impl Rng,
    ) {
        let jitter = rng.random_range(0.9..1.1);
        if let Some(topic) = self.topics.get_mut(topic) {
            let wait = if unsaid { topic.gap } else { topic.interval };
            topic.next = said.then(|| now + wait.mul_f64(jitter));
            if said {
                topic.last = Some(now);
            }
        }
    }

    /// Nothing is said any more.
    pub(super) fn stop(&mut self) {
        for topic in self.topics.values_mut() {
            topic.next = None;
        }
    }

    /// When something is to be said next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.topics.values().filter_map(|topic| topic.next).min()
    }

    fn that(&self, is: impl Fn(&Topic) -> bool) -> Vec<String> {
        let names = self.topics.iter().filter(|(_, topic)| is(topic));
        names.map(|(name, _)| name.clone()).collect()
    }

    fn insert_discovery(&mut self, topic: &str, json: bool) {
        let codec = if json && topic.starts_with(JSON_PREFIX) {
            Codec::Json
        } else {
            Codec::Protobuf
        };
        let interval = self.announce_interval;
        self.insert(topic.to_owned(), Channel::Peers(codec), MIN_GAP, interval);
    }

    fn insert(&mut self, name: String, channel: Channel, gap: Duration, interval: Duration) {
        let topic = Topic {
            channel,
            subscribers: BTreeSet::new(),
            last: None,
            next: None,
            gap,
            interval,
        };
        self.topics.insert(name, topic);
    }
}

impl Topic {
    fn lose(&mut self, peer: &PeerId) {
        self.subscribers.remove(peer);
        if self.subscribers.is_empty() {
            self.next = None;
        }
    }
}
