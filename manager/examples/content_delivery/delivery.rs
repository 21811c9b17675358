//! A small content delivery network: a master adds a file and announces it, a worker and two leechers read it through, and each then
//! serves the next one after the one before has gone.

use std::{path::PathBuf, time::Duration};

use anypath::{
    BoxError, Config, Node, PublishError, SessionOptions, Subscription,
    bitswap::Role,
    files::{self, AddOptions, GetOptions},
    libp2p::{identity::Keypair, multiaddr::Protocol},
    tiered_store::{self, Store},
};
use cid::Cid;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// Where files are announced.
const TOPIC: &str = "content-delivery";

/// What the master says of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Announcement {
    cid: String,
    bytes: u64,
}

/// One of the network's nodes.
struct Site {
    node: Node,
    announced: Subscription,
    directory: TempDir,
}

/// A file as a site has read it.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) site: &'static str,
    pub(crate) data: Vec<u8>,
    /// Bytes of blocks that came from another site.
    pub(crate) fetched: u64,
    /// Bytes of blocks that were here already.
    pub(crate) local: u64,
}

impl Site {
    /// Starts one that knows nobody but the one that it is served by.
    async fn start(role: Role, served_by: Option<&Self>) -> Result<Self, BoxError> {
        let config = Config::builder()
            .private(true)
            .role(role)
            .enable_mdns(false)
            .enable_port_mapping(false)
            .file_registry(false)
            .listen_addrs(vec!["/ip4/127.0.0.1/tcp/0".parse()?])
            .build()?;
        let directory = tempfile::tempdir()?;
        let store = Store::open(tiered_store::Config::new(directory.path().join("store"))).await?;
        #[expect(
            clippy::disallowed_methods,
            reason = "this program chooses its runtime"
        )]
        let executor = |task| drop(tokio::spawn(task));
        let node = Node::start(config, Keypair::generate_ed25519(), store, executor).await?;
        if let Some(other) = served_by {
            let address = other.node.listen_addrs().first();
            let address = address.ok_or("the other site listens nowhere")?.clone();
            let address = address.with(Protocol::P2p(other.node.peer_id()));
            node.connect(address).await?;
        }
        Ok(Self {
            announced: node.subscribe(TOPIC).await?,
            node,
            directory,
        })
    }

    /// Adds a file and tells of it.
    async fn add(&self, data: &[u8]) -> Result<(), BoxError> {
        let added = files::add(self.node.store(), data, AddOptions::default()).await?;
        let announcement = Announcement {
            cid: added.cid.to_string(),
            bytes: added.bytes,
        };
        // A subscription takes a moment to become known.
        while let Err(error) = self.node.publish_json(TOPIC, &announcement).await {
            if !matches!(error, PublishError::NobodyListens) {
                return Err(error.into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Waits for an announcement, which comes from site to site.
    async fn hear(&mut self) -> Result<Cid, BoxError> {
        let message = self.announced.next().await.ok_or("the node has stopped")?;
        let announcement: Announcement = message.json()?;
        Ok(announcement.cid.parse()?)
    }

    /// Reads a file: from here if it is here, else from whoever this site is connected to, and it is here from then on.
    async fn read(&self, site: &'static str, cid: Cid) -> Result<Read, BoxError> {
        let session = self.node.session(SessionOptions::default());
        let path: PathBuf = self.directory.path().join(cid.to_string());
        let options = GetOptions {
            force: true,
            ..GetOptions::default()
        };
        files::get(&session, cid, &path, options).await?;
        let progress = session.progress();
        Ok(Read {
            site,
            data: blocking::unblock(move || std::fs::read(path)).await?,
            fetched: progress.direct + progress.relayed,
            local: progress.local,
        })
    }
}

/// Delivers a file from a master to a worker, from that to a leecher, and from that to another one; tells of every read.
pub(crate) async fn deliver(data: &[u8], mut on_read: impl FnMut(Read)) -> Result<(), BoxError> {
    let master = Site::start(Role::Master, None).await?;
    let mut worker = Site::start(Role::Worker, Some(&master)).await?;
    let mut leecher = Site::start(Role::Leecher, Some(&worker)).await?;
    let mut last = Site::start(Role::Leecher, Some(&leecher)).await?;

    master.add(data).await?;
    let cid = worker.hear().await?;
    on_read(worker.read("worker", cid).await?);
    on_read(worker.read("worker", cid).await?);
    master.node.shutdown().await;

    let cid = leecher.hear().await?;
    on_read(leecher.read("leecher", cid).await?);
    worker.node.shutdown().await;

    let cid = last.hear().await?;
    on_read(last.read("last leecher", cid).await?);
    for site in [leecher, last] {
        site.node.shutdown().await;
    }
    Ok(())
}
