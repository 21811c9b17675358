//! The node: a handle for the application, a driver that owns the swarm.

mod command;
mod driver;
mod listen;
mod metrics;
mod start;

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anypath_bitswap::{MostWanted, WantlistEntry};
use anypath_discovery_pubsub::Content;
use anypath_tiered_store::Store;
use bytes::Bytes;
use cid::Cid;
use futures::{FutureExt as _, future::Either, stream};
use libp2p::{Multiaddr, PeerId, StreamProtocol, identity::Keypair};
use serde::Serialize;
use tokio::sync::{broadcast, mpsc, oneshot};

pub(crate) use self::command::Command;
use crate::{
    config::Config,
    error::{
        AnnounceError, ConnectError, DhtError, JsonError, OpenStreamError, PublishError,
        RegisterError, StartError, Stopped, SubscribeError,
    },
    event::Event,
    fetch::{Session, SessionOptions},
    status::{PeerStatus, Status},
    streams::{IncomingStreams, OpenRequest, Stream},
    topic::Subscription,
};

/// Commands on their way to the driver; a caller beyond that waits.
const COMMANDS: usize = 256;
/// Events that a slow reader may be behind.
const EVENTS: usize = 256;
/// How long an open may take, hole punching included.
const OPEN_TIMEOUT: Duration = Duration::from_secs(40);

/// Runs the node's tasks: `tokio::spawn`, `async_std::task::spawn`, `smol::spawn(…).detach()`.
///
/// libp2p's sockets need a tokio reactor; the node brings one along (async-compat), so any executor
/// does. Tasks must run on threads of their own or be polled while the application does other things.
pub trait Executor: Fn(Pin<Box<dyn Future<Output = ()> + Send>>) + Send + Sync + 'static {}

impl<F> Executor for F where F: Fn(Pin<Box<dyn Future<Output = ()> + Send>>) + Send + Sync + 'static {}

/// A running node. Clones are handles to the same node; it stops when [`shutdown`](Self::shutdown)
/// is called or the last handle is dropped.
#[derive(Clone)]
pub struct Node {
    peer_id: PeerId,
    store: Store,
    commands: mpsc::Sender<Command>,
    events: broadcast::WeakSender<Event>,
    listen_addrs: Arc<[Multiaddr]>,
    sessions: Arc<AtomicU64>,
}

impl Node {
    /// Starts a node on `executor`. When this returns it listens; bootstrap goes on in the background
    /// and stops nothing if it fails.
    ///
    /// # Errors
    ///
    /// The port is taken, an address cannot be listened on, or a part refuses its configuration.
    pub async fn start(
        config: Config,
        keypair: Keypair,
        store: Store,
        executor: impl Executor,
    ) -> Result<Self, StartError> {
        start::start(config, keypair, store, Arc::new(executor)).await
    }

    /// The node's id.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// The blocks.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Where the node listened when it had started, without the peer id. [`status`](Self::status) has
    /// the addresses of the moment.
    #[must_use]
    pub fn listen_addrs(&self) -> &[Multiaddr] {
        &self.listen_addrs
    }

    /// A snapshot of the node.
    pub async fn status(&self) -> Result<Status, Stopped> {
        self.ask(Command::Status).await
    }

    /// A snapshot of the connected peers.
    pub async fn peers(&self) -> Result<Vec<PeerStatus>, Stopped> {
        self.ask(Command::Peers).await
    }

    /// All metrics in OpenMetrics text.
    pub async fn metrics_text(&self) -> Result<String, Stopped> {
        self.ask(Command::Metrics).await
    }

    /// Connects to the peer at this address, which may be relayed; without `/p2p/<id>` at its end,
    /// to whoever answers there.
    pub async fn connect(&self, address: Multiaddr) -> Result<PeerId, ConnectError> {
        self.ask(|reply| Command::Connect { address, reply })
            .await?
    }

    /// A fetch session. Its peers are dialled at once.
    #[must_use]
    pub fn session(&self, options: SessionOptions) -> Session {
        let id = self.sessions.fetch_add(1, Ordering::Relaxed);
        Session::new(
            id,
            options,
            self.store.clone(),
            self.commands.clone(),
            now(),
        )
    }

    /// Tells the DHT that this node has a block, and again at intervals until
    /// [`stop_providing`](Self::stop_providing). Returns once the first announcement is through. With
    /// `announce_content`, those who listen to gossipsub's announcements are told as well.
    pub async fn provide(&self, cid: Cid) -> Result<(), DhtError> {
        self.ask(|reply| Command::Provide { cid, reply }).await?
    }

    /// Tells those who listen to gossipsub's announcements that this node has a block, of which size (in bytes) and
    /// with which name (for people, at most 128 bytes). Repeated every five minutes for the last 64 blocks, until
    /// [`stop_providing`](Self::stop_providing).
    pub async fn announce_content(
        &self,
        cid: Cid,
        size: Option<u64>,
        name: Option<String>,
    ) -> Result<(), AnnounceError> {
        let content = Content { cid, size, name };
        self.ask(|reply| Command::Announce { content, reply })
            .await?
    }

    /// Announces this node to, and finds, those who name the same rendezvous over gossipsub, too; returns whether it is
    /// a new one.
    pub async fn discover(&self, rendezvous: impl Into<String>) -> Result<bool, AnnounceError> {
        let rendezvous = rendezvous.into();
        self.ask(|reply| Command::Discover { rendezvous, reply })
            .await?
    }

    /// Publishes a message of at most 60 KiB on a topic: signed by this node, passed on by all who are subscribed, once to each.
    /// It need not be subscribed itself. Gossip travels on direct connections only.
    ///
    /// # Errors
    ///
    /// No directly connected peer is subscribed ([`PublishError::NobodyListens`]), the message is too large, or the node has no
    /// gossipsub (`enable_pubsub_discovery`).
    pub async fn publish(
        &self,
        topic: impl Into<String>,
        data: impl Into<Bytes>,
    ) -> Result<(), PublishError> {
        let (topic, data) = (topic.into(), data.into());
        self.ask(|reply| Command::Publish { topic, data, reply })
            .await?
    }

    /// [`publish`](Self::publish) of a value as JSON; see [`Message::json`](crate::Message::json) for the other end.
    ///
    /// # Errors
    ///
    /// As for `publish`; or the value cannot be written as JSON.
    pub async fn publish_json(
        &self,
        topic: impl Into<String>,
        value: &impl Serialize,
    ) -> Result<(), PublishError> {
        let data = serde_json::to_vec(value).map_err(|error| JsonError(error.into()))?;
        self.publish(topic, data).await
    }

    /// The messages that others publish on a topic from now on (not this node's own), until the result is dropped. A reader that
    /// is more than 256 messages behind loses the oldest. At most 64 topics at a time; any number of subscriptions to one.
    ///
    /// # Errors
    ///
    /// The topic's name is no good or one of discovery's, there are too many, or the node has no gossipsub
    /// (`enable_pubsub_discovery`).
    pub async fn subscribe(
        &self,
        topic: impl Into<String>,
    ) -> Result<Subscription, SubscribeError> {
        let topic = topic.into();
        self.ask(|reply| Command::Subscribe { topic, reply })
            .await?
    }

    /// Announces a block no more.
    pub async fn stop_providing(&self, cid: Cid) -> Result<(), Stopped> {
        self.send(Command::StopProviding { cid }).await
    }

    /// The peers of which the DHT says that they have a block.
    pub async fn find_providers(&self, cid: Cid) -> Result<Vec<PeerId>, DhtError> {
        self.ask(|reply| Command::FindProviders { cid, reply })
            .await?
    }

    /// Puts a value into the DHT, and again at intervals until [`remove_value`](Self::remove_value); returns how many nodes
    /// acknowledged it. The namespaces are those of the public network: `ipns` ([`dht::IpnsRecord`](crate::dht::IpnsRecord) makes what belongs there) and `pk`.
    ///
    /// # Errors
    ///
    /// The value is not one of its key, a better one is known, or no node took it; in the last case it is put once there are some.
    pub async fn put_value(
        &self,
        key: impl Into<Vec<u8>>,
        value: impl Into<Vec<u8>>,
    ) -> Result<usize, DhtError> {
        let (key, value) = (key.into(), value.into());
        self.ask(|reply| Command::PutValue { key, value, reply })
            .await?
    }

    /// Puts this node's value of a key no more; what others keep of it expires.
    pub async fn remove_value(&self, key: impl Into<Vec<u8>>) -> Result<(), Stopped> {
        self.send(Command::RemoveValue { key: key.into() }).await
    }

    /// The best value that the DHT has for a key, `None` if it has none.
    ///
    /// # Errors
    ///
    /// The key has a namespace that nobody knows, or no node could be asked.
    pub async fn get_value(&self, key: impl Into<Vec<u8>>) -> Result<Option<Vec<u8>>, DhtError> {
        let key = key.into();
        self.ask(|reply| Command::GetValue { key, reply }).await?
    }

    /// Tells peers that wait for these blocks that they are in the store now.
    pub async fn notify_new_blocks(&self, cids: Vec<Cid>) -> Result<(), Stopped> {
        self.send(Command::NotifyBlocks(cids)).await
    }

    /// What others want from this node, with who wants it.
    pub async fn wantlist(&self) -> Result<Vec<WantlistEntry>, Stopped> {
        self.ask(Command::Wantlist).await
    }

    /// What was asked for most, lately, whether the node has it or not: at most `limit` blocks, the hottest first.
    pub async fn most_wanted(&self, limit: usize) -> Result<Vec<MostWanted>, Stopped> {
        self.ask(|reply| Command::MostWanted { limit, reply }).await
    }

    /// Blocks to be fetched and kept while the node has nothing better to do, until they are here or
    /// [`unassign`](Self::unassign) is called; forgotten when the node stops. Returns how many were accepted: those
    /// in the store are not, nor more than 16,384 in all, and a leecher takes none.
    pub async fn assign(&self, cids: Vec<Cid>) -> Result<usize, Stopped> {
        self.ask(|reply| Command::Assign { cids, reply }).await
    }

    /// Takes assignments back.
    pub async fn unassign(&self, cids: Vec<Cid>) -> Result<(), Stopped> {
        self.send(Command::Unassign(cids)).await
    }

    /// Opens a stream on the best connection to a peer, which is dialled if need be. Waits for a
    /// direct connection (up to 40 s) while only a limited relay leads there.
    pub async fn open_stream(
        &self,
        peer: PeerId,
        protocol: StreamProtocol,
    ) -> Result<Stream, OpenStreamError> {
        let opened = self
            .ask(|reply| {
                Command::OpenStream(OpenRequest {
                    peer,
                    protocol,
                    reply,
                })
            })
            .boxed();
        let timeout = futures_timer::Delay::new(OPEN_TIMEOUT);
        match futures::future::select(opened, timeout).await {
            Either::Left((stream, _)) => stream?,
            Either::Right(_) => Err(OpenStreamError::Timeout),
        }
    }

    /// Accepts streams of a protocol until the result is dropped. Up to 16 wait to be taken;
    /// further ones are reset.
    pub async fn register_protocol(
        &self,
        protocol: StreamProtocol,
    ) -> Result<IncomingStreams, RegisterError> {
        self.ask(|reply| Command::Register { protocol, reply })
            .await?
    }

    /// What happens from now on. A reader that is more than 256 events behind loses the oldest and
    /// sees [`Event::Lagged`]. Ends when the node stops.
    pub fn events(&self) -> impl futures::Stream<Item = Event> + Send + Unpin + use<> {
        let receiver = self.events.upgrade().map(|sender| sender.subscribe());
        Box::pin(stream::unfold(receiver, |receiver| async {
            let mut receiver = receiver?;
            match receiver.recv().await {
                Ok(event) => Some((event, Some(receiver))),
                Err(broadcast::error::RecvError::Lagged(lost)) => {
                    Some((Event::Lagged(lost), Some(receiver)))
                }
                Err(broadcast::error::RecvError::Closed) => None,
            }
        }))
    }

    /// Closes all connections, writes the store out and withdraws the node from the file registry.
    /// Returns when that is done; at once if the node has stopped before.
    pub async fn shutdown(&self) {
        // An error means that it is done already.
        let _ = self.ask(Command::Shutdown).await;
    }

    async fn send(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).await.map_err(|_| Stopped)
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.map_err(|_| Stopped)
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("peer_id", &self.peer_id)
            .finish_non_exhaustive()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the adapter reads the clock for the cores"
)]
pub(crate) fn now() -> web_time::Instant {
    web_time::Instant::now()
}
