//! The node's HTTP API, for programs of the same user on the same machine, and its status page.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | status page |
//! | `GET /api/status` | [`Status`](crate::Status), the store's figures, version and process id |
//! | `GET /api/peers`, `GET /api/mcp/peers` | list of [`PeerStatus`](crate::PeerStatus) |
//! | `GET /metrics` | OpenMetrics text |
//! | `POST /api/add?profile=…` | body: the file; answers `{"cid", "bytes", "blocks"}` |
//! | `POST /api/get` | body: `{"cid", "output", "peers", "force"}`; answers a line of JSON an event |
//! | `POST /api/connect` | body: `{"address"}`; answers `{"peer_id"}` |
//! | `POST /api/publish` | body: `{"topic", "text"}` or `{"topic", "json"}`; answers `{}` |
//! | `POST /api/subscribe` | body: `{"topic"}`; answers a line of JSON a message: `{"event": "message", "from", "text"}`, with `json` if it is JSON, with `hex` in place of `text` if it is not UTF-8 |
//! | `POST /api/shutdown` | stops the node |
//!
//! **Who may.** The API listens on 127.0.0.1 only. Requests whose `Host` is not this machine are refused, so that a
//! web page cannot reach it by rebinding its name; no CORS header is ever sent. What changes state needs the token
//! from `api.json` (`Authorization: Bearer …`), which only the user can read.
//!
//! **Bytes or paths.** `add` takes the bytes, so that it works on whatever the client can read: another directory, a
//! pipe, a file in a container; the node never opens a path for anybody. `get` takes an absolute path and the node
//! writes there, because the first bytes must reach the file at once and an interrupted transfer must resume from
//! what is in it. Whoever holds the token is the user who runs the node, so the path gives him nothing that he does
//! not have.
//!
//! It runs on tokio: [`serve`] must be called within a tokio runtime, whatever executor the node itself has.

mod guard;
mod page;
mod routes;

use std::{
    future::{Future, IntoFuture as _},
    io,
    sync::Arc,
};

use tokio::sync::Notify;

use crate::{Config, Node};

/// The largest JSON body; files are streamed and have no limit but the store's.
const MAX_JSON_BYTES: usize = 64 * 1024;

/// The API of one node. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct Api {
    node: Node,
    token: Arc<str>,
    announces: bool,
    stop: Arc<Notify>,
}

impl Api {
    /// The API of `node`; `token` authorises what changes state. Roots of files that are added are announced to the
    /// DHT and over gossipsub if `config` lets the node do so.
    #[must_use]
    pub fn new(node: Node, config: &Config, token: impl Into<Arc<str>>) -> Self {
        let announces = config.joins_public_dht()
            || (config.enable_pubsub_discovery() && config.announce_content());
        Self {
            node,
            token: token.into(),
            announces,
            stop: Arc::new(Notify::new()),
        }
    }

    /// Resolves when somebody has asked for a shutdown through the API.
    pub async fn stop_requested(&self) {
        self.stop.notified().await;
    }

    /// Announces the roots of all files that were added, now or in earlier runs, one after the other. Returns at
    /// once if the node announces nothing.
    pub async fn announce_added_files(&self) {
        if !self.announces {
            return;
        }
        for set in self.node.store().pin_sets() {
            let root = set
                .strip_prefix(crate::files::PIN_SET_PREFIX)
                .and_then(|cid| cid.parse().ok());
            if let Some(root) = root {
                self.announce(root, None).await;
            }
        }
    }

    /// `size` is that of the file, in bytes.
    async fn announce(&self, root: cid::Cid, size: Option<u64>) {
        if let Err(error) = self.node.announce_content(root, size, None).await {
            tracing::debug!(%root, %error, "not announced over gossipsub");
        }
        if let Err(error) = self.node.provide(root).await {
            tracing::debug!(%root, %error, "the DHT was not told; it will be once this node has joined it");
        }
    }
}

/// Serves the API until `stop` resolves; then requests under way are cut off.
pub async fn serve(
    listener: tokio::net::TcpListener,
    api: Api,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let server = std::pin::pin!(axum::serve(listener, routes::router(api)).into_future());
    match futures::future::select(server, std::pin::pin!(stop)).await {
        futures::future::Either::Left((ended, _)) => ended,
        futures::future::Either::Right(_) => Ok(()),
    }
}
