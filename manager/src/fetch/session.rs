use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anypath_tiered_store::{GetError, Store};
use bytes::Bytes;
use cid::Cid;
use futures::stream;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{broadcast, mpsc, oneshot};
use web_time::Instant;

use crate::{
    error::{FetchError, Stopped},
    node::Command,
    strategy::Path,
};

/// Events that a slow reader may be behind.
const EVENTS: usize = 64;

/// How a session asks for blocks.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Peers that probably have the blocks, relayed addresses included. They are dialled at once and
    /// again whenever they are lost, and asked first. Default none: providers are searched.
    pub peers: Vec<Multiaddr>,
    /// Urgency, also at the peers that are asked. Default 1; higher goes first.
    pub priority: i32,
    /// How long nothing may come before a block counts as not to be had. Default 60 s: two
    /// searches of the DHT.
    pub patience: Duration,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            peers: Vec::new(),
            priority: 1,
            patience: Duration::from_secs(60),
        }
    }
}

impl SessionOptions {
    /// Sets [`peers`](Self::peers).
    #[must_use]
    pub fn peers(mut self, peers: impl IntoIterator<Item = Multiaddr>) -> Self {
        self.peers = peers.into_iter().collect();
        self
    }

    /// Sets [`priority`](Self::priority).
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Sets [`patience`](Self::patience).
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

/// What happened to a session's paths.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEvent {
    /// A relayed connection to one of its peers is up, and no direct one.
    Relayed {
        /// The peer.
        peer: PeerId,
    },
    /// A direct connection to one of its peers is up.
    Direct {
        /// The peer.
        peer: PeerId,
    },
    /// The first block came over this kind of path.
    FirstBytes {
        /// The path.
        path: Path,
    },
    /// Blocks are left that do not fit through the relay; they wait for a direct path.
    WaitingForDirect {
        /// Who has them.
        peer: PeerId,
        /// Bytes that the relay still lets through.
        allowed: u64,
    },
    /// The reader was too slow: so many events are lost to it.
    Lagged(u64),
}

/// Bytes of blocks that a session delivered, by where they came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionProgress {
    /// From the store.
    pub local: u64,
    /// Over relayed connections.
    pub relayed: u64,
    /// Over direct connections.
    pub direct: u64,
    /// From the session's start to its first block over a relayed connection.
    pub first_relayed: Option<Duration>,
    /// The same over a direct one.
    pub first_direct: Option<Duration>,
}

/// How a want ends.
#[derive(Debug)]
pub(crate) enum Reply {
    Block(Bytes),
    /// It is in the store meanwhile.
    Stored,
    Failed(FetchError),
}

/// What a session and the driver share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: u64,
    pub(crate) options: SessionOptions,
    pub(crate) ended: AtomicBool,
    pub(crate) events: broadcast::Sender<SessionEvent>,
    started: Instant,
    local: AtomicU64,
    relayed: AtomicU64,
    direct: AtomicU64,
    first: Mutex<[Option<Duration>; 2]>,
}

impl Shared {
    pub(crate) fn delivered(&self, path: Option<Path>, bytes: usize, now: Instant) {
        let counter = match path {
            None => &self.local,
            Some(Path::Relayed) => &self.relayed,
            Some(Path::Direct) => &self.direct,
        };
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
        let Some(path) = path else {
            return;
        };
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let [relayed, direct] = &mut *first;
        let first = if path == Path::Relayed {
            relayed
        } else {
            direct
        };
        if first.is_none() {
            *first = Some(now.saturating_duration_since(self.started));
            self.emit(SessionEvent::FirstBytes { path });
        }
    }

    pub(crate) fn emit(&self, event: SessionEvent) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }
}

/// Blocks that belong together, such as those of one file. Peers that had one of them are asked for
/// the others first. Dropping the session ends its wants.
pub struct Session {
    shared: Arc<Shared>,
    store: Store,
    commands: mpsc::Sender<Command>,
    /// Holds the events since the start for the first reader.
    first_reader: Mutex<Option<broadcast::Receiver<SessionEvent>>>,
}

impl Session {
    pub(crate) fn new(
        id: u64,
        options: SessionOptions,
        store: Store,
        commands: mpsc::Sender<Command>,
        now: Instant,
    ) -> Self {
        let (events, first_reader) = broadcast::channel(EVENTS);
        let shared = Arc::new(Shared {
            id,
            options,
            ended: AtomicBool::new(false),
            events,
            started: now,
            local: AtomicU64::new(0),
            relayed: AtomicU64::new(0),
            direct: AtomicU64::new(0),
            first: Mutex::default(),
        });
        // Dials start now, not with the first want. If the queue is full, the first want does it.
        let _ = commands.try_send(Command::NewSession(shared.clone()));
        Self {
            shared,
            store,
            commands,
            first_reader: Mutex::new(Some(first_reader)),
        }
    }

    /// The block, from the store or from peers; it is verified, and stored unpinned on the way if
    /// there is room. Any number of calls may run at the same time; calls for one block share one
    /// request. Dropping the future withdraws the request.
    ///
    /// # Errors
    ///
    /// Nobody has it, only a limited relay leads to it, or the node was shut down.
    pub async fn get(&self, cid: Cid) -> Result<Bytes, FetchError> {
        loop {
            if let Some(data) = self.stored(&cid).await? {
                return Ok(data);
            }
            let (reply, answer) = oneshot::channel();
            let want = Command::Want {
                session: self.shared.clone(),
                cid,
                reply,
            };
            self.commands.send(want).await.map_err(|_| Stopped)?;
            match answer.await.map_err(|_| Stopped)? {
                Reply::Block(data) => return Ok(data),
                Reply::Stored => {}
                Reply::Failed(error) => return Err(error),
            }
        }
    }

    /// What happens to the session's paths. The first reader sees everything since the start, later
    /// ones what comes.
    pub fn events(&self) -> impl futures::Stream<Item = SessionEvent> + Send + Unpin + use<> {
        let mut first = self
            .first_reader
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let receiver = first
            .take()
            .unwrap_or_else(|| self.shared.events.subscribe());
        Box::pin(stream::unfold(receiver, |mut receiver| async {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(broadcast::error::RecvError::Lagged(lost)) => {
                    Some((SessionEvent::Lagged(lost), receiver))
                }
                Err(broadcast::error::RecvError::Closed) => None,
            }
        }))
    }

    /// What was delivered so far.
    #[must_use]
    pub fn progress(&self) -> SessionProgress {
        let [first_relayed, first_direct] = *self
            .shared
            .first
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        SessionProgress {
            local: self.shared.local.load(Ordering::Relaxed),
            relayed: self.shared.relayed.load(Ordering::Relaxed),
            direct: self.shared.direct.load(Ordering::Relaxed),
            first_relayed,
            first_direct,
        }
    }

    async fn stored(&self, cid: &Cid) -> Result<Option<Bytes>, FetchError> {
        if !self.store.has(cid) {
            return Ok(None);
        }
        let data = match self.store.get(cid).await {
            Ok(data) => data,
            // From now on the store counts it as absent: it is fetched again.
            Err(GetError::Corrupt { .. }) => {
                tracing::warn!(%cid, "the stored block is damaged");
                return Ok(None);
            }
            Err(error) => {
                tracing::warn!(%cid, %error, "the stored block cannot be read");
                return Err(FetchError::Store(error.into()));
            }
        };
        if let Some(data) = &data {
            self.shared
                .local
                .fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        Ok(data)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.shared.id)
            .finish_non_exhaustive()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The driver looks at the flag if the queue is full.
        self.shared.ended.store(true, Ordering::Relaxed);
        let _ = self.commands.try_send(Command::EndSession(self.shared.id));
    }
}
