//! Builds that share what they make: a result has a name (of what it was made from, such as the hash of a lock file), and whoever needs it
//! asks a node for it before making it.
//!
//! - `build_cache serve` is that node; it keeps what builds leave with it until it ends.
//! - `build_cache run NAME OUTPUT COMMAND…` gets the file OUTPUT from that node. If it is not there, COMMAND makes OUTPUT, and the node
//!   takes it. Where no node can be reached, COMMAND is run all the same.
//!
//! The node is configured by `ANYPATH_…` variables, as the command is: `ANYPATH_BOOTSTRAP_PEERS` names who is asked. Who is asked is
//! believed, so name machines of your own, and give them a key that nobody else has (`ANYPATH_SWARM_KEY`, as `anypath swarm-key` prints it).
//! `github-actions.yml` beside this file is a workflow whose runs share what they build.

mod wire;

use std::{
    collections::BTreeMap,
    fs::File,
    path::Path,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anypath::{
    BoxError, Node, SessionOptions, Stream,
    config::{self, Config, Flag, Sources},
    files::{self, AddOptions, GetOptions},
    identity,
    libp2p::{Multiaddr, PeerId, StreamProtocol, multiaddr::Protocol},
    tiered_store::{self, Store},
};
use blocking::{Unblock, unblock};
use cid::Cid;
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::timeout;

use self::wire::{Answer, Request};

const PROTOCOL: StreamProtocol = StreamProtocol::new("/anypath-example/build-cache/1");

/// Names that are kept; beyond them the node takes no more.
const MAX_NAMES: usize = 10_000;
/// Requests that are answered at a time.
const MAX_REQUESTS: usize = 32;
/// How long reaching a node may take: a build does not wait for one that is away.
const REACH: Duration = Duration::from_secs(10);
/// How long a result may take to the node or from it.
const TRANSFER: Duration = Duration::from_secs(600);

const USAGE: &str = "usage: build_cache serve | build_cache run NAME OUTPUT COMMAND…";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let private = Flag {
        flag: "build_cache",
        key: "private",
        value: "true".to_owned(),
    };
    // A secret that a workflow lacks is an empty variable.
    let is_set = |(_, value): &(String, String)| !value.is_empty();
    let config = config::load(&Sources {
        environment: std::env::vars().filter(is_set).collect(),
        flags: vec![private],
        ..Sources::default()
    })?;
    let directory = tempfile::tempdir()?;
    match arguments[..] {
        ["serve"] => serve(start(config, directory.path()).await?, directory.path()).await,
        ["run", name, output, command, ref arguments @ ..] => {
            let peers = config.bootstrap_peers().to_vec();
            let cache = Cache::reach(start(config, directory.path()).await?, &peers).await;
            let made = cache.get_or_make(name, output.as_ref(), || {
                let mut made = Command::new(command);
                made.args(arguments);
                made
            });
            println!("{}", made.await?);
            cache.node.shutdown().await;
            Ok(())
        }
        _ => Err(USAGE.into()),
    }
}

async fn start(config: Config, directory: &Path) -> Result<Node, BoxError> {
    let store = Store::open(tiered_store::Config::new(directory.join("store"))).await?;
    let keypair = identity::load_or_create(&directory.join("identity.key"))?;
    #[expect(
        clippy::disallowed_methods,
        reason = "this program chooses its runtime"
    )]
    let executor = |task| drop(tokio::spawn(task));
    Ok(Node::start(config, keypair, store, executor).await?)
}

/// What a build asks.
struct Cache {
    node: Node,
    /// Who can be asked, and where.
    peers: Vec<(PeerId, Multiaddr)>,
}

impl Cache {
    async fn reach(node: Node, addresses: &[Multiaddr]) -> Self {
        let mut peers = Vec::new();
        for address in addresses {
            match timeout(REACH, node.connect(address.clone())).await {
                Ok(Ok(peer)) => peers.push((peer, address.clone())),
                Ok(Err(error)) => eprintln!("build_cache: {error}"),
                Err(_) => eprintln!("build_cache: {address} does not answer"),
            }
        }
        Self { node, peers }
    }

    /// Returns what happened, in a line.
    async fn get_or_make(
        &self,
        name: &str,
        output: &Path,
        command: impl FnOnce() -> Command,
    ) -> Result<String, BoxError> {
        for (peer, address) in &self.peers {
            match timeout(TRANSFER, self.get(name, output, *peer, address)).await? {
                Ok(Some(cid)) => return Ok(format!("hit: {name} is {cid}, from {peer}")),
                Ok(None) => {}
                // The next one may have it, and it can be made.
                Err(error) => eprintln!("build_cache: {peer}: {error}"),
            }
        }
        let mut command = command();
        let status = unblock(move || command.status()).await?;
        if !status.success() {
            return Err(format!("the command failed: {status}").into());
        }
        let cid = add(&self.node, output).await?;
        let mut line = format!("miss: {name} was made, is {cid}");
        for (peer, _) in &self.peers {
            let put = Request::Put {
                name: name.to_owned(),
                cid: cid.to_string(),
            };
            match timeout(TRANSFER, ask(&self.node, *peer, &put)).await? {
                Ok(_) => line += &format!(", kept by {peer}"),
                Err(error) => eprintln!("build_cache: {peer}: {error}"),
            }
        }
        Ok(line)
    }

    async fn get(
        &self,
        name: &str,
        output: &Path,
        peer: PeerId,
        address: &Multiaddr,
    ) -> Result<Option<Cid>, BoxError> {
        let name = name.to_owned();
        let Some(cid) = ask(&self.node, peer, &Request::Get { name }).await?.cid else {
            return Ok(None);
        };
        let cid = cid.parse()?;
        let from = SessionOptions::default().peers([address.clone()]);
        let options = GetOptions {
            force: true,
            ..GetOptions::default()
        };
        files::get(&self.node.session(from), cid, output, options).await?;
        Ok(Some(cid))
    }
}

async fn ask(node: &Node, peer: PeerId, request: &Request) -> Result<Answer, BoxError> {
    let mut stream = node.open_stream(peer, PROTOCOL).await?;
    wire::write(&mut stream, request).await?;
    wire::read(&mut stream).await
}

async fn add(node: &Node, path: &Path) -> Result<Cid, BoxError> {
    let path = path.to_owned();
    let file = Unblock::new(unblock(move || File::open(path)).await?);
    Ok(files::add(node.store(), file, AddOptions::default())
        .await?
        .cid)
}

/// Answers builds until Ctrl-C.
async fn serve(node: Node, directory: &Path) -> Result<(), BoxError> {
    let mut requests = node.register_protocol(PROTOCOL).await?;
    for address in node.listen_addrs() {
        let address = address.clone().with(Protocol::P2p(node.peer_id()));
        println!("serving at {address}");
    }
    let names = Mutex::new(BTreeMap::new());
    let mut answers = FuturesUnordered::new();
    loop {
        tokio::select! {
            request = requests.next(), if answers.len() < MAX_REQUESTS => {
                let Some((peer, stream)) = request else { break };
                let answered = answer(&node, &names, directory, peer, stream);
                answers.push(timeout(TRANSFER, answered));
            }
            Some(answered) = answers.next() => match answered {
                Ok(Ok(())) => {}
                Ok(Err(error)) => eprintln!("build_cache: {error}"),
                Err(_) => eprintln!("build_cache: a build took too long"),
            },
            ended = tokio::signal::ctrl_c() => { ended?; break }
        }
    }
    node.shutdown().await;
    Ok(())
}

/// What a build has left is here, and pinned, before the build is told so.
async fn answer(
    node: &Node,
    names: &Mutex<BTreeMap<String, Cid>>,
    directory: &Path,
    peer: PeerId,
    mut stream: Stream,
) -> Result<(), BoxError> {
    let cid = match wire::read(&mut stream).await? {
        Request::Get { name } => lock(names).get(&name).copied(),
        Request::Put { .. } if lock(names).len() >= MAX_NAMES => {
            return Err("there is no room for more names".into());
        }
        Request::Put { name, cid } => {
            let cid = cid.parse()?;
            let path = directory.join(format!("{cid}-{peer}"));
            let taken = take(node, cid, &path).await;
            // What it says is in the store now, or of no use.
            let _ = unblock(move || std::fs::remove_file(path)).await;
            taken?;
            println!("kept {name:?}: {cid}");
            lock(names).insert(name, cid);
            Some(cid)
        }
    };
    let cid = cid.map(|cid| cid.to_string());
    wire::write(&mut stream, &Answer { cid }).await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gets a result from the build that has left it, and pins it.
async fn take(node: &Node, cid: Cid, path: &Path) -> Result<(), BoxError> {
    let session = node.session(SessionOptions::default());
    files::get(&session, cid, path, GetOptions::default()).await?;
    match add(node, path).await? == cid {
        true => Ok(()),
        false => Err(format!("{cid} was cut in another way than this program cuts").into()),
    }
}
