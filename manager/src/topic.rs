//! Messages of the application on topics, over the node's one gossipsub.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use libp2p::PeerId;
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;

use crate::error::JsonError;

/// The largest message in bytes: gossipsub's frame of 64 KiB less what is around a message in it.
pub(crate) const MAX_MESSAGE_BYTES: usize = 60 * 1024;

/// A message that a peer published on a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// The publisher: it signed the message, whoever passed it on.
    pub from: PeerId,
    /// What it published, at most 64 KiB.
    pub data: Bytes,
}

impl Message {
    /// The message, read as JSON.
    ///
    /// # Errors
    ///
    /// It is not JSON, or not what was expected.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, JsonError> {
        serde_json::from_slice(&self.data).map_err(|error| JsonError(error.into()))
    }
}

type Messages = Pin<Box<dyn Stream<Item = Result<Message, u64>> + Send>>;

/// Messages on one topic, in the order of their arrival, each once. Ends when the node stops; dropping it leaves the topic,
/// unless another subscription of this node is there.
pub struct Subscription {
    topic: Arc<str>,
    messages: Messages,
    missed: u64,
}

impl Subscription {
    pub(crate) fn new(topic: Arc<str>, receiver: broadcast::Receiver<Message>) -> Self {
        let messages = stream::unfold(receiver, |mut receiver| async {
            let message = match receiver.recv().await {
                Ok(message) => Ok(message),
                Err(broadcast::error::RecvError::Lagged(lost)) => Err(lost),
                Err(broadcast::error::RecvError::Closed) => return None,
            };
            Some((message, receiver))
        });
        Self {
            topic,
            messages: messages.boxed(),
            missed: 0,
        }
    }

    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Messages that were lost so far because more than 256 waited to be taken.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

impl Stream for Subscription {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        loop {
            match ready!(self.messages.poll_next_unpin(cx)) {
                Some(Ok(message)) => return Poll::Ready(Some(message)),
                Some(Err(lost)) => self.missed += lost,
                None => return Poll::Ready(None),
            }
        }
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription")
            .field("topic", &self.topic)
            .field("missed", &self.missed)
            .finish_non_exhaustive()
    }
}
