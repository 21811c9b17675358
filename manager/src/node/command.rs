//! What the handles of a node ask of its driver.

use std::sync::Arc;

use anypath_bitswap::{MostWanted, WantlistEntry};
use anypath_discovery_pubsub as pubsub;
use bytes::Bytes;
use cid::Cid;
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use tokio::sync::oneshot;

use crate::{
    error::{AnnounceError, ConnectError, DhtError, PublishError, RegisterError, SubscribeError},
    fetch::{Reply, Shared},
    status::{PeerStatus, Status},
    streams::{IncomingStreams, OpenRequest},
    topic::Subscription,
};

/// What a handle asks of the driver.
#[derive(Debug)]
pub(crate) enum Command {
    Status(oneshot::Sender<Status>),
    Peers(oneshot::Sender<Vec<PeerStatus>>),
    Metrics(oneshot::Sender<String>),
    Connect {
        address: Multiaddr,
        reply: oneshot::Sender<Result<PeerId, ConnectError>>,
    },
    Provide {
        cid: Cid,
        reply: oneshot::Sender<Result<(), DhtError>>,
    },
    StopProviding {
        cid: Cid,
    },
    Announce {
        content: pubsub::Content,
        reply: oneshot::Sender<Result<(), AnnounceError>>,
    },
    Discover {
        rendezvous: String,
        reply: oneshot::Sender<Result<bool, AnnounceError>>,
    },
    Publish {
        topic: String,
        data: Bytes,
        reply: oneshot::Sender<Result<(), PublishError>>,
    },
    Subscribe {
        topic: String,
        reply: oneshot::Sender<Result<Subscription, SubscribeError>>,
    },
    FindProviders {
        cid: Cid,
        reply: oneshot::Sender<Result<Vec<PeerId>, DhtError>>,
    },
    PutValue {
        key: Vec<u8>,
        value: Vec<u8>,
        reply: oneshot::Sender<Result<usize, DhtError>>,
    },
    RemoveValue {
        key: Vec<u8>,
    },
    GetValue {
        key: Vec<u8>,
        reply: oneshot::Sender<Result<Option<Vec<u8>>, DhtError>>,
    },
    OpenStream(OpenRequest),
    Register {
        protocol: StreamProtocol,
        reply: oneshot::Sender<Result<IncomingStreams, RegisterError>>,
    },
    NewSession(Arc<Shared>),
    Want {
        session: Arc<Shared>,
        cid: Cid,
        reply: oneshot::Sender<Reply>,
    },
    EndSession(u64),
    NotifyBlocks(Vec<Cid>),
    Wantlist(oneshot::Sender<Vec<WantlistEntry>>),
    MostWanted {
        limit: usize,
        reply: oneshot::Sender<Vec<MostWanted>>,
    },
    Assign {
        cids: Vec<Cid>,
        reply: oneshot::Sender<usize>,
    },
    Unassign(Vec<Cid>),
    Shutdown(oneshot::Sender<()>),
}
