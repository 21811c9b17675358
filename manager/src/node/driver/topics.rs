//! The application's topics: who publishes, who listens.

use std::{collections::BTreeMap, sync::Arc};

use anypath_discovery_pubsub as pubsub;
use bytes::Bytes;
use libp2p::gossipsub::{self, IdentTopic, TopicHash};
use tokio::sync::broadcast;

use super::Driver;
use crate::{
    error::{PublishError, SubscribeError},
    topic::{MAX_MESSAGE_BYTES, Message, Subscription},
};

/// Topics of the application at a time: other nodes accept 100 of one peer, discovery's own included.
const MAX_TOPICS: usize = 64;
/// Longest name of a topic in bytes, as for discovery.
const MAX_TOPIC_BYTES: usize = 256;
/// Messages of a topic that wait for a slow subscription.
const WAITING: usize = 256;

/// The topics that somebody in this process listens to.
pub(super) type Topics = BTreeMap<Arc<str>, broadcast::Sender<Message>>;

impl Driver {
    pub(super) fn publish(&mut self, topic: &str, data: Bytes) -> Result<(), PublishError> {
        if data.len() > MAX_MESSAGE_BYTES {
            return Err(PublishError::TooLarge {
                len: data.len(),
                max: MAX_MESSAGE_BYTES,
            });
        }
        let pubsub = self.pubsub().ok_or(PublishError::Disabled)?;
        if !is_free(topic, pubsub) {
            return Err(PublishError::Topic(topic.to_owned()));
        }
        let published = pubsub
            .gossipsub_mut()
            .publish(TopicHash::from_raw(topic), data);
        match published {
            Ok(_) => Ok(()),
            Err(gossipsub::PublishError::NoPeersSubscribedToTopic) => {
                Err(PublishError::NobodyListens)
            }
            Err(error) => Err(PublishError::Refused(error.into())),
        }
    }

    pub(super) fn subscribe(&mut self, topic: &str) -> Result<Subscription, SubscribeError> {
        if let Some((topic, sender)) = self.topics.get_key_value(topic) {
            return Ok(Subscription::new(topic.clone(), sender.subscribe()));
        }
        self.leave_topics();
        if self.topics.len() >= MAX_TOPICS {
            return Err(SubscribeError::TooMany);
        }
        let pubsub = self.pubsub().ok_or(SubscribeError::Disabled)?;
        if !is_free(topic, pubsub) {
            return Err(SubscribeError::Topic(topic.to_owned()));
        }
        pubsub
            .gossipsub_mut()
            .subscribe(&IdentTopic::new(topic))
            .map_err(|error| SubscribeError::Refused(error.into()))?;
        let (sender, receiver) = broadcast::channel(WAITING);
        let topic: Arc<str> = topic.into();
        self.topics.insert(topic.clone(), sender);
        Ok(Subscription::new(topic, receiver))
    }

    /// Hands a message to those who listen.
    pub(super) fn on_topic_message(&self, topic: &str, message: Message) {
        if let Some(sender) = self.topics.get(topic) {
            // They may have gone just now.
            let _ = sender.send(message);
        }
    }

    /// Leaves the topics that nobody here listens to any more.
    pub(super) fn leave_topics(&mut self) {
        let mut left = Vec::new();
        self.topics.retain(|topic, sender| {
            let stays = sender.receiver_count() > 0;
            if !stays {
                left.push(topic.clone());
            }
            stays
        });
        let Some(pubsub) = self.pubsub() else { return };
        for topic in left {
            // Discovery may have begun to use it meanwhile.
            if !pubsub.core().has_topic(&topic) {
                pubsub
                    .gossipsub_mut()
                    .unsubscribe(&IdentTopic::new(topic.to_string()));
            }
        }
    }
}

/// Whether the application may use a topic of this name: discovery's own are not for it.
fn is_free(topic: &str, pubsub: &pubsub::Behaviour) -> bool {
    (1..=MAX_TOPIC_BYTES).contains(&topic.len()) && !pubsub.core().has_topic(topic)
}
