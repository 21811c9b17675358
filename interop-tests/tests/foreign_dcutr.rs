//! Hole punches (DCUtR) between `anypath start` and go-libp2p, each behind a NAT of the lab, over a relay that is `anypath start` too.
//!
//! `PUNCH_RUNS` is how many punches each test tries.
#![cfg(feature = "foreign")]
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use anypath_interop_tests::lab::scenario::scratch;
use anypath_interop_tests::lab::{Lab, NatKind, Node, NodeConfig, binary, isolated, now};
use anypath_interop_tests::peers::{Cells, Error, Implementation, Peer, Settings, Transport};
use libp2p::PeerId;
use libp2p::multiaddr::Protocol;
use serde_json::Value;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

/// go-libp2p takes no address of the ranges for documentation for public, and offers none that is not public.
const NETWORK: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 0);
const RELAY: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 100);
const RELAY_PORT: u16 = 4001;
const RUNS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    We,
    They,
}

fn name(node: &Node) -> Result<PeerId, Error> {
    let wrong = |error: libp2p::identity::ParseError| Error::Wrong(error.to_string());
    node.peer_id().parse().map_err(wrong)
}

/// One punch in a lab of its own: how long it took from the relayed connection to the direct one, by go's clock.
async fn punch(caller: Caller, transport: Transport, logs: &Path) -> Result<Duration, Error> {
    let port_restricted = NatKind::PortRestricted;
    let network = Lab::new()
        .public(NETWORK)
        .nat(port_restricted)
        .host("ours")
        .nat(port_restricted)
        .host("theirs")
        .server("relay", &[RELAY])
        .start()?;
    let any = Ipv4Addr::UNSPECIFIED;
    let listen = |port| ["--listen".to_owned(), transport.at(any, port).to_string()];
    let node = |host: &str, more: Vec<String>| {
        let config = NodeConfig::default()
            .arguments(["--no-mdns"])
            .arguments(more);
        Node::start(network.host(host)?, logs, config)
    };
    let external = transport.at(RELAY, RELAY_PORT);
    let mut arguments = listen(RELAY_PORT).to_vec();
    arguments.extend(["--relay-server", "--external-address"].map(str::to_owned));
    arguments.push(external.to_string());
    let relay = node("relay", arguments)?;
    let relay_at = external.with(Protocol::P2p(name(&relay)?));

    let mut arguments = listen(9100).to_vec();
    arguments.extend(["--relay".to_owned(), relay_at.to_string()]);
    let ours = node("ours", arguments)?;
    let settings = Settings {
        listen: vec![transport.at(any, 0)],
        punch: true,
        ..Settings::default()
    };
    let mut theirs = Peer::start_on(network.host("theirs")?, Implementation::Go, &settings).await?;
    theirs.reserve(&relay_at).await?;
    theirs.punchable().await?;
    ours.await_reservation()?;

    let through = |peer| {
        let relay = relay_at.clone().with(Protocol::P2pCircuit);
        relay.with(Protocol::P2p(peer))
    };
    match caller {
        Caller::We => {
            let mut connect = ours.command()?;
            connect.args(["connect", &through(theirs.id()).to_string()]);
            let mut connect = ours.run(&mut connect, "connect")?;
            let status = connect.wait(now() + PATIENCE)?;
            if !status.success() {
                return Err(connect.failure(status.to_string()).into());
            }
        }
        Caller::They => {
            theirs.dial(&through(name(&ours)?)).await?;
        }
    }
    let relayed = theirs.connected(name(&ours)?, true).await?;
    let direct = theirs.connected(name(&ours)?, false).await;
    // Whichever is the better connection now: it has to carry streams.
    let pinged = theirs.ping(name(&ours)?).await;
    let steps = theirs.punches(name(&ours)?);
    let verdict = match &direct {
        Ok(direct) => format!("{} ms", direct.saturating_sub(relayed).as_millis()),
        Err(error) => format!("FAILED ({error})"),
    };
    println!(
        "  direct after {verdict}, ping {pinged:.0?}; go: {}",
        steps.join("; ")
    );
    let direct = direct?;
    pinged?;
    if !steps.iter().any(|step| step.starts_with("StartHolePunch")) {
        return Err(Error::Wrong(format!("go punched no hole: {steps:?}")));
    }
    ours.await_api("/api/peers", "a direct connection", PATIENCE, |peers| {
        is_direct(peers, &theirs.id().to_string())
    })?;
    Ok(direct.saturating_sub(relayed))
}

/// Whether our node has a direct connection to the peer.
fn is_direct(peers: &Value, id: &str) -> bool {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let peers = peers.as_array().into_iter().flatten();
    peers
        .filter(|peer| text(peer, "peer_id").as_deref() == Some(id))
        .filter_map(|peer| peer.get("connections").and_then(Value::as_array))
        .flatten()
        .any(|connection| text(connection, "path").as_deref() == Some("direct"))
}

async fn punches(caller: Caller, transport: Transport, test: &'static str) -> Result<(), Error> {
    let runs: usize = match std::env::var("PUNCH_RUNS") {
        Ok(runs) => runs
            .parse()
            .map_err(|_| Error::Wrong(format!("PUNCH_RUNS is {runs}, no number")))?,
        Err(_) => RUNS,
    };
    let area = "DCUtR behind port-restricted NATs";
    let mut cells = Cells::new(area, format!("go {}", transport.name()), test);
    let row = match caller {
        Caller::We => "we reach them over our relay, and it becomes direct",
        Caller::They => "they reach us over our relay, and it becomes direct",
    };
    cells
        .works(row, async {
            let mut times = Vec::new();
            let mut failures = Vec::new();
            for run in 0..runs {
                let directory = scratch()?;
                match punch(caller, transport, directory.path()).await {
                    Ok(time) => times.push(time),
                    Err(error) => failures.push(format!("run {run}: {error}")),
                }
            }
            times.sort();
            let times: Vec<u128> = times.iter().map(Duration::as_millis).collect();
            println!(
                "{test}: {} of {runs} direct, median {} ms of {times:?}",
                times.len(),
                times.get(times.len() / 2).copied().unwrap_or_default()
            );
            // 19 of 20 must get through; of fewer runs one may fail as well.
            let allowed = (runs / 20).max(1);
            if times.is_empty() || failures.len() > allowed {
                return Err(Error::Wrong(failures.join("; ")));
            }
            Ok(())
        })
        .await;
    cells.finish()
}

/// In the sandbox, on a runtime of its own.
fn run(caller: Caller, transport: Transport, test: &'static str) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if let Err(error) = runtime.block_on(punches(caller, transport, test)) {
        panic!("{error}");
    }
}

/// Builds the command before the sandbox hides the network.
fn prepare() {
    binary().expect("the anypath command");
}

#[test]
fn we_reach_go_and_both_punch_over_quic() {
    prepare();
    isolated(|| run(Caller::We, Transport::Quic, "dcutr-go-quic-ours"));
}

#[test]
fn we_reach_go_and_both_punch_over_tcp() {
    prepare();
    isolated(|| run(Caller::We, Transport::Tcp, "dcutr-go-tcp-ours"));
}

#[test]
fn go_reaches_us_and_both_punch_over_quic() {
    prepare();
    isolated(|| run(Caller::They, Transport::Quic, "dcutr-go-quic-theirs"));
}

#[test]
fn go_reaches_us_and_both_punch_over_tcp() {
    prepare();
    isolated(|| run(Caller::They, Transport::Tcp, "dcutr-go-tcp-theirs"));
}
