//! `anypath start`.

use std::{io, net::Ipv4Addr, time::Duration};

use anypath::{
    Config, Node,
    config::DEFAULT_API_PORT,
    data_dir::ApiFile,
    http::{self, Api},
};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{
    Error,
    args::StartFlags,
    context::{Context, spawn},
    query::reach,
};

/// How long a clean shutdown may take before the process ends anyway.
const SHUTDOWN: Duration = Duration::from_secs(10);

pub(crate) async fn run(context: &Context, flags: &StartFlags) -> Result<(), Error> {
    let config = context.config(&flags.node)?;
    // The signals are caught before anything runs that has to be put away.
    let mut signal = Signal::new()?;
    let store = context.store(&config).await?;
    let listener = listen(config.api_port()).await?;
    let node = context.start_node(&config, store.clone()).await?;

    let token = hex::encode(rand::random::<[u8; 32]>());
    let address = listener.local_addr()?;
    let api = Api::new(node.clone(), &config, token.as_str());
    context.data.write_api(&ApiFile {
        address,
        token,
        pid: std::process::id(),
    })?;
    announce_start(context, &config, &node, address);
    let announcing = api.clone();
    spawn(Box::pin(
        async move { announcing.announce_added_files().await },
    ));

    let stop = {
        let api = api.clone();
        async move {
            tokio::select! {
                () = signal.received() => {}
                () = api.stop_requested() => {
                    // The answer to that request is still on its way.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    let served = http::serve(listener, api, stop).await;
    let stopped = tokio::time::timeout(SHUTDOWN, async {
        node.shutdown().await;
        store.close().await
    });
    match stopped.await {
        Ok(closed) => closed?,
        Err(_) => tracing::warn!("the node did not stop within 10 s"),
    }
    context.data.remove_api()?;
    context
        .output
        .print(&json!({ "event": "stopped" }), "stopped");
    Ok(served?)
}

fn announce_start(context: &Context, config: &Config, node: &Node, api: std::net::SocketAddr) {
    let peer_id = node.peer_id();
    let mut listen = node.listen_addrs().to_vec();
    listen.sort_by_cached_key(reach);
    let listen: Vec<_> = listen
        .iter()
        .map(|address| format!("{address}/p2p/{peer_id}"))
        .collect();
    let api = format!("http://{api}");
    let mut text = format!("peer id      {peer_id}");
    for address in &listen {
        text.push_str("\nlistening on ");
        text.push_str(address);
    }
    text.push_str("\nAPI          ");
    text.push_str(&api);
    let event = json!({
        "event": "started",
        "peer_id": peer_id.to_string(),
        "listen": listen,
        "api": api,
        "private": config.private(),
    });
    context.output.print(&event, text);
}

async fn listen(port: u16) -> Result<TcpListener, Error> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let other = if port == DEFAULT_API_PORT {
                DEFAULT_API_PORT + 1
            } else {
                DEFAULT_API_PORT
            };
            Err(format!(
                "API port {port} on 127.0.0.1 is in use by another program; start this instance with another one, as in \
                 `anypath start --port {other}`"
            )
            .into())
        }
        Err(error) => {
            Err(format!("cannot listen on 127.0.0.1:{port}: {error}; try --port N").into())
        }
    }
}

/// SIGINT and SIGTERM, or Ctrl-C where there are no signals.
struct Signal {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signal {
    #[cfg(unix)]
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let (interrupt, terminate) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        );
        Ok(Self {
            interrupt,
            terminate,
        })
    }

    #[cfg(unix)]
    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn received(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}
