//! Group commit for stores that commit one batch at a time: one thread takes what waits, commits it, and answers.

use super::data::Digest;
use crate::compare::Error;
use bytes::Bytes;
use futures::channel::oneshot;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// As our own store's: a commit of more gains nothing.
const MOST_BYTES: usize = 8 << 20;

/// More callers than any figure has.
const MOST_WAITING: usize = 1024;

/// Commits a batch durably.
pub(super) trait Commit: Send + Sync + 'static {
    fn commit(&self, blocks: &[(Digest, Bytes)]) -> Result<(), Error>;
}

struct Waiting {
    block: (Digest, Bytes),
    reply: oneshot::Sender<Result<(), String>>,
}

/// The thread and the way to it.
pub(super) struct Group {
    sender: Option<SyncSender<Waiting>>,
    thread: Option<JoinHandle<()>>,
}

impl Group {
    pub(super) fn new(store: impl Commit) -> Self {
        let (sender, receiver) = sync_channel(MOST_WAITING);
        let thread = std::thread::spawn(move || run(&store, &receiver));
        Self {
            sender: Some(sender),
            thread: Some(thread),
        }
    }

    /// Durable when it returns.
    pub(super) fn put(&self, key: Digest, data: &Bytes) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting {
            block: (key, data.clone()),
            reply,
        };
        let sender = self.sender.as_ref().ok_or("closed")?;
        sender
            .send(waiting)
            .map_err(|_| "the committer has ended")?;
        Ok(futures::executor::block_on(answer)??)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(store: &impl Commit, receiver: &Receiver<Waiting>) {
    while let Ok(first) = receiver.recv() {
        let mut bytes = first.block.1.len();
        let (mut blocks, mut replies) = (vec![first.block], vec![first.reply]);
        while bytes < MOST_BYTES
            && let Ok(next) = receiver.try_recv()
        {
            bytes += next.block.1.len();
            blocks.push(next.block);
            replies.push(next.reply);
        }
        let result = store.commit(&blocks).map_err(|error| error.to_string());
        for reply in replies {
            let _ = reply.send(result.clone());
        }
    }
}
