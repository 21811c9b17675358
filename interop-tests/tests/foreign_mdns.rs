//! mDNS with go-libp2p, js-libp2p and py-libp2p: hosts of one network, with real multicast, that know nothing of each other.
#![cfg(feature = "foreign")]
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use anypath_interop_tests::lab::scenario::scratch;
use anypath_interop_tests::lab::{Lab, NatKind, Node, NodeConfig, binary, isolated, now};
use anypath_interop_tests::peers::{Cells, Error, Implementation, Peer, Settings, Transport};
use cid::Cid;
use libp2p::PeerId;
use multihash_codetable::{Code, MultihashDigest as _};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::time::Duration;

const RAW: u64 = 0x55;
const PORT: u16 = 4001;
const PATIENCE: Duration = Duration::from_secs(20);

/// Who is there when the other one comes.
#[derive(Clone, Copy)]
enum First {
    We,
    They,
}

async fn meet(
    implementation: Implementation,
    first: First,
    cells: &mut Cells,
) -> Result<(), Error> {
    let network = Lab::new()
        .nat(NatKind::PortRestricted)
        .host("ours")
        .host("theirs")
        .start()?;
    let directory = scratch()?;
    let listen = Transport::Tcp.at(Ipv4Addr::UNSPECIFIED, PORT);
    let start = || {
        let config = NodeConfig::default().arguments(["--listen".to_owned(), listen.to_string()]);
        Node::start(network.host("ours")?, directory.path(), config)
    };
    let host = network.host("theirs")?;
    let settings = Settings {
        listen: vec![match implementation {
            // It would announce the unspecified address itself.
            Implementation::Py => Transport::Tcp.at(host.address(), PORT),
            _ => listen.clone(),
        }],
        mdns: true,
        ..Settings::default()
    };
    let peer = || Peer::start_on(host, implementation, &settings);
    let (title, node, mut peer) = match first {
        First::We => {
            let node = start()?;
            ("we are there first", node, peer().await?)
        }
        First::They => {
            let peer = peer().await?;
            ("they are there first", start()?, peer)
        }
    };
    let wrong = |error: libp2p::identity::ParseError| Error::Wrong(error.to_string());
    let id: PeerId = node.peer_id().parse().map_err(wrong)?;
    cells
        .works(&format!("{title}: they find us, where we listen"), async {
            let at = Transport::Tcp.at(network.host("ours")?.address(), PORT);
            let addresses = peer.discovered(id).await?;
            let at = at.to_string();
            match addresses
                .iter()
                .any(|address| address.to_string().starts_with(&at))
            {
                true => Ok(()),
                false => Err(Error::Wrong(format!("{addresses:?}"))),
            }
        })
        .await;
    let name = peer.id().to_string();
    let found = || {
        node.await_api("/api/peers", "a connection", PATIENCE, |peers| {
            is_dialled(peers, &name)
        })
    };
    if implementation == Implementation::Py {
        // Blocks are another matter: see `foreign_bitswap`.
        let cell = format!("{title}: we find them and connect");
        let connected = async { Ok(found().map(drop)?) };
        cells.works(&cell, connected).await;
        return Ok(());
    }
    cells
        .works(
            &format!("{title}: we find them, connect, and get a block from them"),
            async {
                found()?;
                let data = title.as_bytes();
                let like = Cid::new_v1(RAW, Code::Sha2_256.digest(data));
                let cid = peer.add(&like, data).await?;
                let copy = directory.path().join("copy");
                let mut get = node.command()?;
                get.args(["get", &cid.to_string(), "-o"]).arg(&copy);
                let mut get = node.run(&mut get, "get")?;
                let status = get.wait(now() + PATIENCE)?;
                if !status.success() {
                    return Err(get.failure(status.to_string()).into());
                }
                match std::fs::read(copy)? == data {
                    true => Ok(()),
                    false => Err(Error::Wrong("the block is another one".to_owned())),
                }
            },
        )
        .await;
    Ok(())
}

/// Whether our node has dialled the peer.
fn is_dialled(peers: &Value, id: &str) -> bool {
    let peers = peers.as_array().into_iter().flatten();
    peers
        .filter(|peer| peer.get("peer_id").and_then(Value::as_str) == Some(id))
        .filter_map(|peer| peer.get("connections").and_then(Value::as_array))
        .flatten()
        .any(|connection| connection.get("inbound").and_then(Value::as_bool) == Some(false))
}

async fn neighbours(implementation: Implementation, test: &'static str) -> Result<(), Error> {
    let mut cells = Cells::new("mDNS", implementation.name(), test);
    for first in [First::We, First::They] {
        meet(implementation, first, &mut cells).await?;
    }
    cells.finish()
}

/// In the sandbox, on a runtime of its own.
fn run(implementation: Implementation, test: &'static str) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if let Err(error) = runtime.block_on(neighbours(implementation, test)) {
        panic!("{error}");
    }
}

/// Builds the command before the sandbox hides the network.
fn prepare() {
    binary().expect("the anypath command");
}

#[test]
fn go_and_we_find_each_other_by_mdns() {
    prepare();
    isolated(|| run(Implementation::Go, "mdns-go"));
}

#[test]
fn js_and_we_find_each_other_by_mdns() {
    prepare();
    isolated(|| run(Implementation::Js, "mdns-js"));
}

#[test]
fn py_and_we_find_each_other_by_mdns() {
    prepare();
    isolated(|| run(Implementation::Py, "mdns-py"));
}
