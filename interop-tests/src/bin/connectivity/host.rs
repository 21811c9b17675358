//! A node that keeps nothing.

use anypath::config::ConfigBuilder;
use anypath::libp2p::identity::Keypair;
use anypath::libp2p::multiaddr::Protocol;
use anypath::libp2p::{Multiaddr, PeerId, StreamProtocol};
use anypath::tiered_store::{self, Store};
use anypath::{BoxError, Config, Node};
use futures::AsyncReadExt as _;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// libp2p's, which every peer answers on any number of streams. libp2p-ping serves one a connection, and that is the node's own.
const IDENTIFY: StreamProtocol = StreamProtocol::new("/ipfs/id/1.0.0");
/// More than a peer says of itself.
const MAX_IDENTITY: u64 = 64 << 10;

pub(crate) fn runtime() -> Result<Runtime, BoxError> {
    Ok(tokio::runtime::Runtime::new()?)
}

/// The node, and the directory of its store, which goes with it.
pub(crate) struct Host {
    pub(crate) node: Node,
    directory: TempDir,
}

impl Host {
    pub(crate) async fn start(config: ConfigBuilder) -> Result<Self, BoxError> {
        let directory = TempDir::new()?;
        let store = Store::open(tiered_store::Config::new(directory.path().join("store"))).await?;
        #[expect(
            clippy::disallowed_methods,
            reason = "this program chooses its runtime"
        )]
        let executor = |task| drop(tokio::spawn(task));
        let node = Node::start(
            config.build()?,
            Keypair::generate_ed25519(),
            store,
            executor,
        )
        .await?;
        Ok(Self { node, directory })
    }

    /// A name for a file in its directory.
    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// Where it listens, each with its id.
    pub(crate) fn addresses(&self) -> Vec<Multiaddr> {
        let id = Protocol::P2p(self.node.peer_id());
        let addresses = self.node.listen_addrs().iter();
        addresses
            .map(|address| address.clone().with(id.clone()))
            .collect()
    }

    /// The first of them.
    pub(crate) fn address(&self) -> Result<Multiaddr, BoxError> {
        let address = self.addresses().into_iter().next();
        address.ok_or_else(|| "the node listens nowhere".into())
    }
}

/// Of the public network it takes no part; nothing but what is asked for is on.
pub(crate) fn quiet() -> ConfigBuilder {
    Config::builder()
        .private(true)
        .enable_mdns(false)
        .enable_pubsub_discovery(false)
        .enable_autonat(false)
        .enable_port_mapping(false)
        .file_registry(false)
}

/// A round trip to a peer, over the best connection: it is asked who it is.
pub(crate) async fn ping(node: &Node, peer: PeerId) -> Result<Duration, BoxError> {
    let began = now();
    let stream = node.open_stream(peer, IDENTIFY).await?;
    let mut identity = Vec::new();
    stream.take(MAX_IDENTITY).read_to_end(&mut identity).await?;
    match identity.is_empty() {
        true => Err("it says nothing".into()),
        false => Ok(began.elapsed()),
    }
}

pub(crate) fn now() -> Instant {
    anypath_interop_tests::lab::now()
}
