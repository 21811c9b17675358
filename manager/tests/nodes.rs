//! Real nodes on loopback.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and brings its own runtime"
)]

mod common;

use std::{
    collections::HashSet,
    io::{Seek as _, SeekFrom, Write as _},
    num::NonZeroU32,
    time::Duration,
};

use anypath::{
    ConnectError, FetchError, Node, Path, Session, SessionEvent, SessionOptions,
    bitswap::Role,
    libp2p::{Multiaddr, StreamProtocol, identity::Keypair, multiaddr::Protocol},
    tiered_store,
};
use cid::Cid;
use common::{Host, QUIC, SOON, TCP, alone, blocks, tokio_executor};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _, future::join_all};
use tokio::time::timeout;

async fn host(listen: &[&str]) -> Host {
    Host::start(alone(listen), tokio_executor()).await
}

async fn fetch_many(listen: &str) {
    let (a, b) = (host(&[listen]).await, host(&[listen]).await);
    let data = blocks(200, 10_000);
    let cids = join_all(data.iter().map(|block| a.put(block))).await;
    let session = b
        .node
        .session(SessionOptions::default().peers(a.addresses()));
    let got = join_all(cids.iter().map(|cid| session.get(*cid)));
    let got = timeout(SOON, got).await.unwrap();
    for (block, got) in data.iter().zip(got) {
        assert_eq!(&got.unwrap()[..], &block[..]);
    }
    let progress = session.progress();
    assert_eq!(
        (progress.direct, progress.relayed, progress.local),
        (2_000_000, 0, 0)
    );
    // What was fetched is kept: the second time it comes from the store.
    a.node.shutdown().await;
    let again = b.node.session(SessionOptions::default());
    for cid in &cids {
        timeout(SOON, again.get(*cid)).await.unwrap().unwrap();
    }
    assert_eq!(again.progress().local, 2_000_000);
    b.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_fetched_over_tcp_and_kept() {
    fetch_many(TCP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_fetched_over_quic_and_kept() {
    fetch_many(QUIC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_for_one_block_share_one_request() {
    let (a, b) = (host(&[TCP]).await, host(&[TCP]).await);
    let cid = a.put(&[7; 50_000]).await;
    let session = b
        .node
        .session(SessionOptions::default().peers(a.addresses()));
    let got = timeout(SOON, join_all((0..20).map(|_| session.get(cid))))
        .await
        .unwrap();
    assert!(
        got.iter()
            .all(|block| block.as_ref().unwrap().len() == 50_000)
    );
    let progress = session.progress();
    assert_eq!(progress.direct, 50_000, "it came once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_damaged_on_the_disk_is_fetched_again() {
    let (a, directory) = (host(&[TCP]).await, tempfile::tempdir().unwrap());
    // Nothing in memory, so that every read is one of the disk.
    let config = tiered_store::Config::builder()
        .path(directory.path())
        .memory_capacity(0);
    let store = tiered_store::Store::open(config.build().unwrap())
        .await
        .unwrap();
    let (config, keypair) = (alone(&[TCP]).build().unwrap(), Keypair::generate_ed25519());
    let b = Node::start(config, keypair, store.clone(), tokio_executor())
        .await
        .unwrap();
    let data = [7; 50_000];
    let cid = a.put(&data).await;
    store.put(cid, data.to_vec().into()).await.unwrap();
    damage(directory.path(), &data);

    let session = b.session(SessionOptions::default().peers(a.addresses()));
    let got = timeout(SOON, session.get(cid)).await.unwrap().unwrap();
    assert_eq!(&got[..], &data[..]);
    assert_eq!(session.progress().direct, 50_000, "it came from the peer");
}

/// Flips a bit of `data` in whatever file of the store holds it.
fn damage(store: &std::path::Path, data: &[u8]) {
    let mut damaged = 0;
    for file in std::fs::read_dir(store).unwrap() {
        let path = file.unwrap().path();
        let content = std::fs::read(&path).unwrap_or_default();
        if let Some(at) = content.windows(data.len()).position(|part| part == data) {
            let mut file = std::fs::File::options().write(true).open(path).unwrap();
            file.seek(SeekFrom::Start(at as u64 + 10)).unwrap();
            file.write_all(&[0]).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1, "files that hold the block");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_nobody_has_is_an_error_that_names_it() {
    let b = host(&[TCP]).await;
    let options = SessionOptions::default().patience(Duration::from_secs(1));
    let session = b.node.session(options);
    let cid = common::cid_of(b"nowhere");
    let error = timeout(SOON, session.get(cid)).await.unwrap().unwrap_err();
    assert!(matches!(error, FetchError::NoProviders { cid: named, .. } if named == cid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_goes_on_when_the_other_node_was_killed_and_comes_back() {
    let b = host(&[TCP]).await;
    let a = host(&[TCP]).await;
    let data = blocks(20, 10_000);
    let cids = join_all(data.iter().map(|block| a.put(block))).await;
    let addresses = a.addresses();
    let session = b
        .node
        .session(SessionOptions::default().peers(addresses.clone()));
    timeout(SOON, session.get(cids[0])).await.unwrap().unwrap();

    a.node.shutdown().await;
    let Host {
        node,
        keypair,
        directory,
    } = a;
    drop(node);
    let rest = join_all(cids[1..].iter().map(|cid| session.get(*cid)));
    let back = async {
        // The same identity, store and address.
        let listen = match addresses[0].iter().nth(1) {
            Some(Protocol::Tcp(port)) => format!("/ip4/127.0.0.1/tcp/{port}"),
            other => panic!("{other:?}"),
        };
        let store = loop {
            let config = anypath::tiered_store::Config::new(directory.path());
            match anypath::tiered_store::Store::open(config).await {
                Ok(store) => break store,
                // The old node's tasks still hold it.
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let config = alone(&[&listen]).build().unwrap();
        anypath::Node::start(config, keypair, store, tokio_executor())
            .await
            .unwrap()
    };
    let (rest, _back) = timeout(SOON, futures::future::join(rest, back))
        .await
        .unwrap();
    assert!(rest.iter().all(Result::is_ok));
}

async fn wait_for(session: &Session, wanted: impl Fn(&SessionEvent) -> bool) {
    let mut events = session.events();
    while !wanted(&events.next().await.unwrap()) {}
}

/// A relay, a node that holds a reservation there, and where that node is reached.
async fn behind_a_relay(bytes: u64) -> (Host, Host, Multiaddr) {
    let config = alone(&[TCP])
        .enable_relay_server(true)
        .relay_circuit_bytes(bytes)
        .relay_circuit_duration(Duration::ZERO);
    let relay = Host::start(config, tokio_executor()).await;
    let config = alone(&[TCP]).relays(relay.addresses());
    let hidden = Host::start(config, tokio_executor()).await;
    let address = relay.addresses()[0]
        .clone()
        .with(Protocol::P2pCircuit)
        .with(Protocol::P2p(hidden.node.peer_id()));
    let mut events = hidden.node.events();
    while hidden.node.status().await.unwrap().reservations.is_empty() {
        events.next().await.unwrap();
    }
    (relay, hidden, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_address_leads_to_a_fetch_over_the_relay_and_a_direct_path_takes_over() {
    let (relay, hidden, address) = timeout(SOON, behind_a_relay(0)).await.unwrap();
    let data = blocks(40, 10_000);
    let cids = join_all(data.iter().map(|block| hidden.put(block))).await;

    let getter = host(&[TCP]).await;
    let session = getter
        .node
        .session(SessionOptions::default().peers([address]));
    timeout(SOON, session.get(cids[0])).await.unwrap().unwrap();
    let progress = session.progress();
    assert_eq!((progress.relayed, progress.direct), (10_000, 0));
    timeout(
        SOON,
        wait_for(&session, |event| {
            matches!(event, SessionEvent::Relayed { .. })
        }),
    )
    .await
    .unwrap();

    // The direct path, as a hole punch would bring it (loopback has no NAT to punch).
    hidden
        .node
        .connect(getter.addresses()[0].clone())
        .await
        .unwrap();
    let direct = hidden.node.clone();
    let options = SessionOptions::default().peers(hidden.addresses());
    let upgrade = getter.node.session(options);
    timeout(
        SOON,
        wait_for(&session, |event| {
            matches!(event, SessionEvent::Direct { .. })
        }),
    )
    .await
    .unwrap();
    let got = timeout(
        SOON,
        join_all(cids[1..].iter().map(|cid| session.get(*cid))),
    )
    .await
    .unwrap();
    assert!(got.iter().all(Result::is_ok));
    assert_eq!(session.progress().direct, 390_000);
    drop(upgrade);

    // The relayed connection closes on both sides; the direct one stays.
    timeout(SOON, async {
        for node in [&getter.node, &direct] {
            while node.status().await.unwrap().connections.relayed > 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    })
    .await
    .unwrap();
    assert!(getter.node.status().await.unwrap().connections.direct >= 1);
    drop(relay);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_does_not_fit_through_the_relay_waits_for_a_direct_path() {
    let (_relay, hidden, address) = timeout(SOON, behind_a_relay(64 * 1024)).await.unwrap();
    let cid = hidden.put(&[9; 500_000]).await;
    let config = alone(&[TCP])
        .direct_path_timeout(Duration::from_secs(2))
        .enable_dcutr(false);
    let getter = Host::start(config, tokio_executor()).await;
    let session = getter
        .node
        .session(SessionOptions::default().peers([address]));
    let waiting = wait_for(&session, |event| {
        matches!(event, SessionEvent::WaitingForDirect { .. })
    });
    let (result, ()) = timeout(SOON, futures::future::join(session.get(cid), waiting))
        .await
        .unwrap();
    let error = result.unwrap_err();
    assert!(
        matches!(error, FetchError::WaitingForDirect { .. }),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_takes_the_direct_connection_and_names_it() {
    const ECHO: StreamProtocol = StreamProtocol::new("/test/echo/1");
    let (_relay, hidden, address) = timeout(SOON, behind_a_relay(0)).await.unwrap();
    let mut incoming = hidden.node.register_protocol(ECHO).await.unwrap();
    tokio::spawn(async move {
        while let Some((_, mut stream)) = incoming.next().await {
            let mut word = [0; 4];
            stream.read_exact(&mut word).await.unwrap();
            stream.write_all(&word).await.unwrap();
            stream.close().await.unwrap();
        }
    });
    let getter = host(&[TCP]).await;
    let peer = timeout(SOON, getter.node.connect(address))
        .await
        .unwrap()
        .unwrap();
    let mut over_relay = timeout(SOON, getter.node.open_stream(peer, ECHO))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(over_relay.path(), Path::Relayed);
    let mut word = *b"ping";
    over_relay.write_all(&word).await.unwrap();
    over_relay.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"ping");

    let _session = getter
        .node
        .session(SessionOptions::default().peers(hidden.addresses()));
    timeout(SOON, async {
        while getter.node.peers().await.unwrap().iter().all(|known| {
            known.peer_id != peer.to_string()
                || known
                    .connections
                    .iter()
                    .all(|connection| connection.path == Path::Relayed)
        }) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    let direct = timeout(SOON, getter.node.open_stream(peer, ECHO))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(direct.path(), Path::Direct);
    assert_ne!(direct.connection(), over_relay.connection());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_protocol_the_peer_refuses_fails_and_can_still_be_closed() {
    let (refuser, asker) = (host(&[TCP]).await, host(&[TCP]).await);
    let peer = timeout(SOON, asker.node.connect(refuser.addresses().remove(0)))
        .await
        .unwrap()
        .unwrap();
    let unknown = StreamProtocol::new("/anypath-test/unknown/1");
    let mut stream = timeout(SOON, asker.node.open_stream(peer, unknown))
        .await
        .unwrap()
        .unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.flush().await.unwrap();
    for _ in 0..2 {
        stream.read_exact(&mut [0; 5]).await.unwrap_err();
    }
    stream.write_all(b"hello").await.unwrap_err();
    stream.flush().await.unwrap_err();
    stream.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_where_nobody_answers_is_named_in_the_error() {
    let node = host(&[TCP]).await;
    let nobody: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
    let error = timeout(SOON, node.node.connect(nobody))
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(&error, ConnectError::Unreachable { target, .. } if target.contains("/tcp/1"))
    );
    let id = Protocol::P2p(anypath::libp2p::PeerId::random());
    let nobody = format!("/ip4/127.0.0.1/tcp/1{}", Multiaddr::from(id))
        .parse()
        .unwrap();
    let error = timeout(SOON, node.node.connect(nobody))
        .await
        .unwrap()
        .unwrap_err();
    assert!(error.to_string().contains("/tcp/1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_of_one_user_meet_through_the_file_registry() {
    let directory = tempfile::tempdir().unwrap();
    let config = || {
        alone(&[TCP])
            .file_registry(true)
            .file_registry_dir(Some(directory.path().to_owned()))
    };
    let a = Host::start(config(), tokio_executor()).await;
    let b = Host::start(config(), tokio_executor()).await;
    let met = async {
        while b.node.peers().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(5), met).await.unwrap();
    a.node.shutdown().await;
    b.node.shutdown().await;
    assert_eq!(
        std::fs::read_dir(directory.path()).unwrap().count(),
        0,
        "both deregistered"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_bootstrap_peers_do_not_stop_a_node() {
    let directory = tempfile::tempdir().unwrap();
    let nobody = Protocol::P2p(Keypair::generate_ed25519().public().to_peer_id());
    let dead: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
    let config = || {
        alone(&[TCP])
            .bootstrap_peers(vec![dead.clone().with(nobody.clone())])
            .file_registry(true)
            .file_registry_dir(Some(directory.path().to_owned()))
    };
    let a = Host::start(config(), tokio_executor()).await;
    let b = Host::start(config(), tokio_executor()).await;
    // Local discovery goes on beside the failing dials.
    let met = async {
        while b.node.peers().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, met).await.unwrap();
    let peers = b.node.peers().await.unwrap();
    assert_eq!(peers[0].peer_id, a.node.peer_id().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_bootstrap_peer_is_connected_without_a_call() {
    let a = host(&[TCP]).await;
    // `connect_to_bootstrap` is about the public ones only.
    let config = alone(&[TCP])
        .connect_to_bootstrap(false)
        .bootstrap_peers(a.addresses());
    let b = Host::start(config, tokio_executor()).await;
    let met = async {
        while b.node.peers().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, met).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_cannot_take_all_connections() {
    const MAX: NonZeroU32 = NonZeroU32::new(8).unwrap();
    let config = alone(&[TCP]).max_connections(MAX);
    let full = Host::start(config, tokio_executor()).await;
    let mut strangers = Vec::new();
    for _ in 0..8 {
        let stranger = host(&[TCP]).await;
        // The last one is refused.
        let _ = stranger.node.connect(full.addresses()[0].clone()).await;
        strangers.push(stranger);
    }
    let wanted = host(&[TCP]).await;
    let connect = full.node.connect(wanted.addresses()[0].clone());
    timeout(SOON, connect).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_shut_down_says_so() {
    let node = host(&[TCP]).await;
    let other = node.node.clone();
    timeout(SOON, node.node.shutdown()).await.unwrap();
    assert_eq!(other.status().await, Err(anypath::Stopped));
    timeout(SOON, other.shutdown()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_connections() {
    let (a, b) = (host(&[TCP]).await, host(&[TCP]).await);
    b.node.connect(a.addresses()[0].clone()).await.unwrap();
    let text = b.node.metrics_text().await.unwrap();
    assert!(
        text.contains("anypath_connections{path=\"direct\"} 1"),
        "{text}"
    );
}

/// Three peers that want a block at a server, urgently, which only the server's seeder has.
struct Crowd {
    server: Host,
    _seeder: Host,
    peers: Vec<(Session, Host)>,
    cid: Cid,
}

impl Crowd {
    async fn gather(role: Role) -> Self {
        let server = Host::start(alone(&[TCP]).role(role), tokio_executor()).await;
        let seeder = host(&[TCP]).await;
        let cid = seeder.put(&[7; 50_000]).await;
        let address = seeder.addresses().remove(0);
        server.node.connect(address).await.unwrap();
        let mut peers = Vec::new();
        for _ in 0..3 {
            let peer = host(&[TCP]).await;
            let options = SessionOptions::default()
                .peers(server.addresses())
                .priority(5)
                .patience(Duration::from_secs(5));
            peers.push((peer.node.session(options), peer));
        }
        Self {
            server,
            _seeder: seeder,
            peers,
            cid,
        }
    }

    /// Whether each of them gets it.
    async fn fetch(&self) -> Vec<bool> {
        let got = join_all(self.peers.iter().map(|(session, _)| session.get(self.cid)));
        let got = timeout(SOON, got).await.unwrap();
        got.into_iter().map(|block| block.is_ok()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_fetches_what_a_crowd_wants_and_a_worker_does_not() {
    for (role, fetches) in [(Role::Master, true), (Role::Worker, false)] {
        let crowd = Crowd::gather(role).await;
        assert_eq!(crowd.fetch().await, [fetches; 3], "{role:?}");
        let node = &crowd.server.node;
        assert_eq!(node.store().has(&crowd.cid), fetches, "{role:?}");
        let hottest = node.most_wanted(10).await.unwrap();
        assert_eq!((hottest[0].cid, hottest.len()), (crowd.cid, 1));
        assert_eq!(hottest[0].have, fetches);
        assert!(hottest[0].heat > 2.0, "{hottest:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_who_wants_what_from_it_and_how_urgently() {
    let crowd = Crowd::gather(Role::Worker).await;
    let told = async {
        loop {
            let list = crowd.server.node.wantlist().await.unwrap();
            if let [entry] = list.as_slice()
                && entry.requesters.len() == 3
            {
                return entry.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let told = async { timeout(SOON, told).await.unwrap() };
    let (told, _) = futures::join!(told, crowd.fetch());
    assert_eq!(
        (told.cid, told.priority.0, told.have),
        (crowd.cid, 5, false)
    );
    let asked: HashSet<_> = crowd
        .peers
        .iter()
        .map(|(_, peer)| peer.node.peer_id())
        .collect();
    assert_eq!(told.requesters.into_iter().collect::<HashSet<_>>(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assigned_block_is_fetched_and_kept() {
    let (a, b) = (host(&[TCP]).await, host(&[TCP]).await);
    let cid = a.put(&[7; 50_000]).await;
    b.node.connect(a.addresses().remove(0)).await.unwrap();
    assert_eq!(b.node.assign(vec![cid]).await.unwrap(), 1);
    let kept = async {
        while !b.node.store().has(&cid) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, kept).await.unwrap();
    assert_eq!(b.node.assign(vec![cid]).await.unwrap(), 0, "it is here");
}
