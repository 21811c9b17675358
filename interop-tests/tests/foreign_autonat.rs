//! AutoNAT with foreign peers in the NAT lab: they tell us whether we are reached, and we tell them.
#![cfg(feature = "foreign")]
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use anypath_interop_tests::lab::scenario::scratch;
use anypath_interop_tests::lab::{Lab, NatKind, Network, Node, NodeConfig, binary, isolated, now};
use anypath_interop_tests::peers::{Cells, Error, Implementation, Peer, Settings, Transport};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::Duration;
use tokio::net::UdpSocket;

/// go-libp2p takes no address of the ranges for documentation for public, and dials none that is not public.
const NETWORK: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 0);
const PUBLIC: [Ipv4Addr; 2] = [
    Ipv4Addr::new(11, 22, 33, 101),
    Ipv4Addr::new(11, 22, 33, 102),
];
const SERVERS: [Ipv4Addr; 2] = [
    Ipv4Addr::new(11, 22, 33, 111),
    Ipv4Addr::new(11, 22, 33, 112),
];
const PORT: u16 = 4001;
const PATIENCE: Duration = Duration::from_secs(60);
const WE_ASK_BY_VERSION_2: &str = "our nodes ask by version 2 alone";
const ORDINALS: [&str; 2] = ["the first one", "the second one"];
const JS_OVER_QUIC: Column = Column(Implementation::Js, Transport::Quic);
const JS_DIALS_ON: &str = "a dial of `@chainsafe/libp2p-quic` 2.1.1 that nobody answers ends with QUIC's idle timeout of 10 s, as `dial` does not look at the signal of the 6 s that js-libp2p gives it, and nothing at `handshakeTimeout` (5 s); libp2p-autonat's client, which is ours, waits for 10 s from the question to the answer";
/// js-libp2p's `addressDialTimeout`.
const JS_DIALS_FOR: Duration = Duration::from_secs(6);
/// Whoever has dialled for less is heard by libp2p-autonat's client.
const IN_TIME: Duration = Duration::from_secs(9);
/// What was told is known at once.
const TOLD: Duration = Duration::from_secs(3);
/// How many servers more than the two that it takes a node is shown before it has to know what it is: an answer is lost when our node closes the
/// connection over which it has asked, for it has a better one, and a server that is busy may fail to dial.
const MORE_SERVERS: usize = 4;
/// Long enough for a server to be asked once more.
const ONE_ROUND: Duration = Duration::from_secs(20);
/// What is not tried with peers that do not have it.
const VERSION_2: [&str; 9] = [
    "we ask them by version 2, the first one: they get through to us",
    "we ask them by version 2, the first one, from behind a NAT: they do not get through",
    "we ask them by version 2, the second one: they get through to us",
    "we ask them by version 2, the second one, from behind a NAT: they do not get through",
    "two of them have told us: we know that we are public",
    "two of them have told us: we know that we are behind a NAT",
    "they ask us by version 2: we get through to them",
    "they ask us by version 2 from behind a NAT: we do not get through",
    "they ask us by version 2 about an address at which we do not see them",
];

/// A host that everybody reaches, one that nobody does, and two for servers.
fn network() -> Result<Network, Error> {
    Ok(Lab::new()
        .public(NETWORK)
        .nat(NatKind::PortRestricted)
        .host("hidden")
        .server("public", &PUBLIC)
        .server("server0", &[SERVERS[0]])
        .server("server1", &[SERVERS[1]])
        .start()?)
}

fn name(node: &Node) -> Result<PeerId, Error> {
    let wrong = |error: libp2p::identity::ParseError| Error::Wrong(error.to_string());
    node.peer_id().parse().map_err(wrong)
}

fn ours(network: &Network, host: &str, transport: Transport, logs: &Path) -> Result<Node, Error> {
    let listen = transport.at(Ipv4Addr::UNSPECIFIED, PORT).to_string();
    let config = NodeConfig::default()
        .arguments(["--no-mdns", "--no-port-mapping", "--listen", &listen])
        .setting("enable_pubsub_discovery", "false")
        // A round of questions after the other.
        .setting("autonat_query_interval", "1s");
    Ok(Node::start(network.host(host)?, logs, config)?)
}

/// Who is at the other end, over what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Column(Implementation, Transport);

impl Column {
    fn cells(self, test: &'static str) -> Cells {
        let Self(implementation, transport) = self;
        let column = format!("{} {}", implementation.name(), transport.name());
        Cells::new("AutoNAT", column, test)
    }

    async fn start(self, network: &Network, host: &str, autonat: bool) -> Result<Peer, Error> {
        let Self(implementation, transport) = self;
        let settings = Settings {
            listen: vec![transport.at(Ipv4Addr::UNSPECIFIED, PORT)],
            autonat,
            ..Settings::default()
        };
        Peer::start_on(network.host(host)?, implementation, &settings).await
    }

    /// Their answer has arrived, too, before they go. js-libp2p tells of a dial once its answer is read.
    async fn answered(self, server: &mut Peer, to: &Node) -> Result<(), Error> {
        match self.0 {
            Implementation::Js => {
                // It may go over the connection of the dial-back, which js-libp2p is closing.
                let ping = server.ping(name(to)?);
                let _lost = tokio::time::timeout(TOLD, ping).await;
                Ok(())
            }
            _ => server.ping(name(to)?).await.map(drop),
        }
    }
}

async fn meet(peer: &mut Peer, at: &Multiaddr, id: PeerId) -> Result<(), Error> {
    peer.dial(at).await?;
    peer.identify(id).await?;
    Ok(())
}

fn ensure(what: &str, holds: bool) -> Result<(), Error> {
    match holds {
        true => Ok(()),
        false => Err(Error::Wrong(what.to_owned())),
    }
}

fn connect(node: &Node, to: &Multiaddr) -> Result<(), Error> {
    let mut connect = node.command()?;
    connect.args(["connect", &to.to_string()]);
    let mut connect = node.run(&mut connect, "connect")?;
    let status = connect.wait(now() + PATIENCE)?;
    match status.success() {
        true => Ok(()),
        false => Err(connect.failure(status.to_string()).into()),
    }
}

/// Our node has seen that all others are gone, so that it asks none of them.
fn is_alone(node: &Node) -> Result<(), Error> {
    let alone = |status: &Value| status.get("peers").and_then(Value::as_u64) == Some(0);
    node.await_api("/api/status", "no peers", PATIENCE, alone)?;
    Ok(())
}

/// What our node takes itself for.
fn becomes(node: &Node, nat_status: &str, patience: Duration) -> Result<Value, Error> {
    let status =
        |status: &Value| status.get("nat_status").and_then(Value::as_str) == Some(nat_status);
    Ok(node.await_api("/api/status", nat_status, patience, status)?)
}

/// What our nodes know, for who looks into a failure.
fn tell(nodes: [&Node; 2]) {
    for node in nodes {
        match node.api("/api/status") {
            Ok(status) => println!("{}: {status}", node.host().name()),
            Err(error) => println!("{}: {error}", node.host().name()),
        }
    }
}

async fn we_ask(column: Column, test: &'static str) -> Result<(), Error> {
    let mut cells = column.cells(test);
    let transport = column.1;
    let directory = scratch()?;
    let network = network()?;
    let public = ours(&network, "public", transport, directory.path())?;
    let hidden = ours(&network, "hidden", transport, directory.path())?;
    let public_at = transport.at(PUBLIC[0], PORT);
    let hidden_at = transport.at(network.host("hidden")?.public(), PORT);
    let mut all_in_time = true;
    // Each server for one node and one question, for our nodes ask whom they like, and again, and the last answer counts.
    for (number, (server_at, which)) in SERVERS.into_iter().zip(ORDINALS).enumerate() {
        for (node, asked_of, is_public) in
            [(&public, &public_at, true), (&hidden, &hidden_at, false)]
        {
            is_alone(node)?;
            let host = format!("server{number}");
            let mut server = column.start(&network, &host, true).await?;
            let at = transport.at(server_at, PORT);
            connect(node, &at.with(Protocol::P2p(server.id())))?;
            let cell = if is_public {
                format!("we ask them by version 2, {which}: they get through to us")
            } else {
                format!(
                    "we ask them by version 2, {which}, from behind a NAT: they do not get through"
                )
            };
            let attempt = async {
                let tried = server.tried(asked_of).await?;
                column.answered(&mut server, node).await?;
                all_in_time &= tried.took.is_none_or(|took| took < IN_TIME);
                ensure("the other way round", tried.got_through == is_public)
            };
            cells.works(&cell, attempt).await;
        }
    }
    let learns = async |node, asked_of, nat_status| {
        for _ in 0..MORE_SERVERS {
            if let Ok(status) = becomes(node, nat_status, TOLD) {
                return Ok(status);
            }
            is_alone(node)?;
            let mut server = column.start(&network, "server1", true).await?;
            println!("{} asks {}, too", node.host().name(), server.id());
            let at = transport.at(SERVERS[1], PORT);
            connect(node, &at.with(Protocol::P2p(server.id())))?;
            server.tried(asked_of).await?;
            column.answered(&mut server, node).await?;
            if let Ok(status) = becomes(node, nat_status, ONE_ROUND) {
                return Ok(status);
            }
        }
        Err(Error::Wrong(format!("not {nat_status}")))
    };
    cells
        .works(
            "two of them have told us: we know that we are public",
            async {
                let status = learns(&public, &public_at, "public").await?;
                let external = status.get("external_addrs").map(Value::to_string);
                let external = external.unwrap_or_default();
                ensure(&external, external.contains(&public_at.to_string()))
            },
        )
        .await;
    let behind_a_nat = "two of them have told us: we know that we are behind a NAT";
    if column == JS_OVER_QUIC {
        let in_time = async {
            ensure("they told us too late", all_in_time)?;
            becomes(&hidden, "private", TOLD).map(drop)
        };
        cells.defect(behind_a_nat, JS_DIALS_ON, in_time).await;
    } else {
        let private = async { learns(&hidden, &hidden_at, "private").await.map(drop) };
        cells.works(behind_a_nat, private).await;
    }
    if cells.failed() {
        tell([&public, &hidden]);
    }
    cells.unsupported("we ask them by version 1", WE_ASK_BY_VERSION_2);
    cells.finish()
}

/// Version 1 from a public place and from behind a NAT.
async fn they_ask_by_version_1(cells: &mut Cells, server: PeerId, peers: [&mut Peer; 2]) {
    let [public, hidden] = peers;
    cells
        .works("they ask us by version 1: we get through to them", async {
            let reached = public.dial_back(server).await?;
            ensure("we did not get through", reached)
        })
        .await;
    cells
        .works(
            "they ask us by version 1 from behind a NAT: we do not get through",
            async {
                let reached = hidden.dial_back(server).await?;
                ensure("we got through a NAT", !reached)
            },
        )
        .await;
}

async fn they_ask(column: Column, test: &'static str) -> Result<(), Error> {
    let mut cells = column.cells(test);
    let Column(implementation, transport) = column;
    let directory = scratch()?;
    let network = network()?;
    let server = ours(&network, "server0", transport, directory.path())?;
    let id = name(&server)?;
    let at = transport.at(SERVERS[0], PORT).with(Protocol::P2p(id));
    let mut public = column.start(&network, "public", true).await?;
    let mut hidden = column.start(&network, "hidden", true).await?;
    for peer in [&mut public, &mut hidden] {
        meet(peer, &at, id).await?;
    }
    let hidden_at = transport.at(network.host("hidden")?.public(), PORT);
    cells
        .works("they ask us by version 2: we get through to them", async {
            let reached = public.reachable(&transport.at(PUBLIC[0], PORT)).await?;
            ensure("we did not get through", reached)
        })
        .await;
    cells
        .works(
            "they ask us by version 2 from behind a NAT: we do not get through",
            async {
                let reached = hidden.reachable(&hidden_at).await?;
                ensure("we got through a NAT", !reached)
            },
        )
        .await;
    if implementation == Implementation::Js {
        // It asks nobody about what it knows by the other version.
        drop(public);
        public = column.start(&network, "public", false).await?;
        meet(&mut public, &at, id).await?;
    }
    they_ask_by_version_1(&mut cells, id, [&mut public, &mut hidden]).await;
    // go-libp2p's client asks one server once in two minutes.
    drop(public);
    let mut public = column.start(&network, "public", true).await?;
    cells
        .works(
            "they ask us by version 2 about an address at which we do not see them",
            async {
                meet(&mut public, &at, id).await?;
                let reached = public.reachable(&transport.at(PUBLIC[1], PORT)).await?;
                ensure("we did not get through", reached)
            },
        )
        .await;
    cells.finish()
}

/// py-libp2p, which has version 1 alone.
async fn they_ask_by_version_1_alone(column: Column, test: &'static str) -> Result<(), Error> {
    let mut cells = column.cells(test);
    let transport = column.1;
    let directory = scratch()?;
    let network = network()?;
    let server = ours(&network, "server0", transport, directory.path())?;
    let id = name(&server)?;
    let at = transport.at(SERVERS[0], PORT).with(Protocol::P2p(id));
    let mut public = column.start(&network, "public", true).await?;
    let mut hidden = column.start(&network, "hidden", true).await?;
    for peer in [&mut public, &mut hidden] {
        meet(peer, &at, id).await?;
    }
    they_ask_by_version_1(&mut cells, id, [&mut public, &mut hidden]).await;
    for what in VERSION_2 {
        cells.unsupported(what, "py-libp2p has version 1 alone");
    }
    cells.unsupported("we ask them by version 1", WE_ASK_BY_VERSION_2);
    cells.finish()
}

/// On a runtime of its own, for the lab's nodes are waited for without one. What fails names who was at the other end.
fn run(
    column: Column,
    direction: &str,
    test: impl Future<Output = Result<(), Error>>,
) -> Result<(), String> {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let Column(implementation, transport) = column;
    runtime.block_on(test).map_err(|error| {
        let (name, over) = (implementation.name(), transport.name());
        format!("{name} over {over}, {direction}: {error}")
    })
}

/// Each in a network of its own, all at the same time: they wait for clocks.
#[test]
fn others_and_we_tell_each_other_whether_we_are_reached() {
    // Builds the command before the sandbox hides the network.
    binary().expect("the anypath command");
    let both_ways = [
        (
            Column(Implementation::Go, Transport::Tcp),
            ["autonat-go-tcp-ours", "autonat-go-tcp-theirs"],
        ),
        (
            Column(Implementation::Go, Transport::Quic),
            ["autonat-go-quic-ours", "autonat-go-quic-theirs"],
        ),
        (
            Column(Implementation::Js, Transport::Tcp),
            ["autonat-js-tcp-ours", "autonat-js-tcp-theirs"],
        ),
        (
            JS_OVER_QUIC,
            ["autonat-js-quic-ours", "autonat-js-quic-theirs"],
        ),
    ];
    let by_version_1_alone = [
        (
            Column(Implementation::Py, Transport::Tcp),
            "autonat-py-tcp-theirs",
        ),
        (
            Column(Implementation::Py, Transport::Quic),
            "autonat-py-quic-theirs",
        ),
    ];
    isolated(|| {
        let failed = thread::scope(|scope| {
            let mut running = Vec::new();
            for (column, [ours, theirs]) in both_ways {
                let we_ask = move || run(column, "we ask", we_ask(column, ours));
                let they_ask = move || run(column, "they ask", they_ask(column, theirs));
                running.push(scope.spawn(we_ask));
                running.push(scope.spawn(they_ask));
            }
            for (column, theirs) in by_version_1_alone {
                let they_ask = they_ask_by_version_1_alone(column, theirs);
                running.push(scope.spawn(move || run(column, "they ask", they_ask)));
            }
            let ended = running.into_iter().map(thread::ScopedJoinHandle::join);
            let failed = ended.filter_map(|ended| ended.expect("no panic").err());
            failed.collect::<Vec<_>>()
        });
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    });
}

/// Why nobody learns from js-libp2p over QUIC that they are behind a NAT ([`JS_DIALS_ON`]), by the datagrams of a dial that nobody answers.
#[tokio::test]
async fn js_libp2p_goes_on_with_a_quic_dial_whose_time_is_over() -> Result<(), Error> {
    let settings = Settings {
        listen: vec![Transport::Quic.at(Ipv4Addr::LOCALHOST, 0)],
        ..Settings::default()
    };
    let mut js = Peer::start(Implementation::Js, &settings).await?;
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let at = Transport::Quic.at(Ipv4Addr::LOCALHOST, silent.local_addr()?.port());
    let nobody = Keypair::generate_ed25519().public().to_peer_id();
    let at = at.with(Protocol::P2p(nobody));
    let mut came = Vec::new();
    let datagrams = async {
        while silent.recv(&mut [0; 2048]).await.is_ok() {
            came.push(now());
        }
        std::future::pending().await
    };
    let dialled = tokio::select! {
        dialled = js.dial(&at) => dialled,
        never = datagrams => never,
    };
    ensure("nobody was there, and was dialled", dialled.is_err())?;
    let [first, .., last] = came[..] else {
        let error = format!("{} datagrams, and then {dialled:?}", came.len());
        return Err(Error::Wrong(error));
    };
    let dialled_for = last.duration_since(first);
    println!("{} datagrams in {dialled_for:?}", came.len());
    ensure(
        "js-libp2p ends its QUIC dials in time: take JS_DIALS_ON away",
        dialled_for > JS_DIALS_FOR,
    )
}
