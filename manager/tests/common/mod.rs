//! Nodes on loopback, without any discovery but what a test says.

use std::time::Duration;

use anypath::{
    Config, Node,
    config::ConfigBuilder,
    libp2p::{Multiaddr, identity::Keypair, multiaddr::Protocol},
    tiered_store::{self, Store},
};
use bytes::Bytes;
use cid::{Cid, multihash::Multihash};
use sha2::{Digest as _, Sha256};

/// A bound that only a hanging test reaches.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) const TCP: &str = "/ip4/127.0.0.1/tcp/0";
pub(crate) const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// A node and the directory of its store.
pub(crate) struct Host {
    pub(crate) node: Node,
    pub(crate) keypair: Keypair,
    pub(crate) directory: tempfile::TempDir,
}

/// Alone: no discovery, no bootstrap, no relays.
pub(crate) fn alone(listen: &[&str]) -> ConfigBuilder {
    Config::builder()
        .private(true)
        .enable_mdns(false)
        .enable_pubsub_discovery(false)
        .enable_autonat(false)
        .file_registry(false)
        .listen_addrs(
            listen
                .iter()
                .map(|address| address.parse().unwrap())
                .collect(),
        )
}

pub(crate) async fn store(directory: &std::path::Path) -> Store {
    let config = tiered_store::Config::new(directory);
    Store::open(config).await.unwrap()
}

impl Host {
    pub(crate) async fn start(config: ConfigBuilder, executor: impl anypath::Executor) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let keypair = Keypair::generate_ed25519();
        let store = store(directory.path()).await;
        let node = Node::start(config.build().unwrap(), keypair.clone(), store, executor).await;
        Self {
            node: node.unwrap(),
            keypair,
            directory,
        }
    }

    /// Where it listens, with its id.
    pub(crate) fn addresses(&self) -> Vec<Multiaddr> {
        let id = Protocol::P2p(self.node.peer_id());
        let listening = self.node.listen_addrs().iter();
        listening
            .map(|address| address.clone().with(id.clone()))
            .collect()
    }

    pub(crate) async fn put(&self, data: &[u8]) -> Cid {
        let cid = cid_of(data);
        self.node
            .store()
            .put(cid, Bytes::copy_from_slice(data))
            .await
            .unwrap();
        cid
    }
}

pub(crate) fn cid_of(data: &[u8]) -> Cid {
    const RAW: u64 = 0x55;
    const SHA2_256: u64 = 0x12;
    Cid::new_v1(
        RAW,
        Multihash::wrap(SHA2_256, &Sha256::digest(data)).unwrap(),
    )
}

/// Blocks of different content.
pub(crate) fn blocks(count: u32, bytes: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|n| {
            n.to_le_bytes()
                .iter()
                .copied()
                .cycle()
                .take(bytes)
                .collect()
        })
        .collect()
}

pub(crate) fn tokio_executor() -> impl anypath::Executor {
    |task| drop(tokio::spawn(task))
}
