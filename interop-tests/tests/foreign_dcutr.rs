//! Hole punches (DCUtR) between `anypath start` and go-libp2p or kubo, each behind a NAT of the lab, over a relay that is `anypath start` too.
//!
//! `PUNCH_RUNS` is how many punches each test tries; without it, 4 of the plain case with go-libp2p and 2 of every other.
#![cfg(feature = "foreign")]
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use anypath_interop_tests::lab::scenario::scratch;
use anypath_interop_tests::lab::{Host, Lab, NatKind, Node, NodeConfig, binary, isolated, now};
use anypath_interop_tests::peers::{
    Cells, Error, Implementation, Kubo, KuboSettings, Peer, Settings, Transport,
};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

/// go-libp2p takes no address of the ranges for documentation for public, and offers none that is not public.
const NETWORK: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 0);
const RELAY: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 100);
const RELAY_PORT: u16 = 4001;
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    We,
    They,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Other {
    Go,
    Kubo,
}

/// What is punched: the NATs on both sides are of one kind.
#[derive(Clone, Copy)]
struct Case {
    other: Other,
    caller: Caller,
    transport: Transport,
    nat: NatKind,
    test: &'static str,
}

impl Case {
    fn area(self) -> &'static str {
        match self.nat {
            NatKind::PortRestrictedShifting => "DCUtR behind NATs that change the port",
            _ => "DCUtR behind port-restricted NATs",
        }
    }

    fn column(self) -> String {
        let name = match self.other {
            Other::Go => "go",
            Other::Kubo => "kubo",
        };
        format!("{name} {}", self.transport.name())
    }
}

/// The other side, behind its NAT.
enum Theirs {
    Go(Peer),
    Kubo(Kubo),
}

impl Theirs {
    /// One that can be reached at the relay, and punches.
    async fn start(case: Case, host: &Host, relay: &Multiaddr) -> Result<Self, Error> {
        match case.other {
            Other::Go => {
                let settings = Settings {
                    listen: vec![case.transport.at(Ipv4Addr::UNSPECIFIED, 0)],
                    punch: true,
                    ..Settings::default()
                };
                let mut peer = Peer::start_on(host, Implementation::Go, &settings).await?;
                peer.reserve(relay).await?;
                peer.punchable().await?;
                Ok(Self::Go(peer))
            }
            Other::Kubo => {
                let settings = KuboSettings {
                    behind_nat: Some((host, relay)),
                    ..KuboSettings::default()
                };
                let kubo = Kubo::start_with(case.transport, settings).await?;
                kubo.punchable().await?;
                Ok(Self::Kubo(kubo))
            }
        }
    }

    fn id(&self) -> PeerId {
        match self {
            Self::Go(peer) => peer.id(),
            Self::Kubo(kubo) => kubo.id(),
        }
    }

    async fn dial(&mut self, address: &Multiaddr) -> Result<(), Error> {
        match self {
            Self::Go(peer) => peer.dial(address).await.map(drop),
            Self::Kubo(kubo) => {
                let connect = ["swarm", "connect", &address.to_string()];
                kubo.run(&connect).await.map(drop)
            }
        }
    }

    /// Whichever is the better connection now: it has to carry streams.
    async fn ping(&mut self, id: PeerId) -> Result<(), Error> {
        match self {
            Self::Go(peer) => peer.ping(id).await.map(drop),
            Self::Kubo(kubo) => {
                let ping = ["ping", "--count", "1", &id.to_string()];
                kubo.run(&ping).await.map(drop)
            }
        }
    }
}

fn name(node: &Node) -> Result<PeerId, Error> {
    let wrong = |error: libp2p::identity::ParseError| Error::Wrong(error.to_string());
    node.peer_id().parse().map_err(wrong)
}

/// One punch in a lab of its own: how long it took from the relayed connection to the direct one, by go's clock, or from the call, by ours.
async fn punch(case: Case, logs: &Path) -> Result<Duration, Error> {
    let Case {
        caller,
        transport,
        nat,
        ..
    } = case;
    let network = Lab::new()
        .public(NETWORK)
        .nat(nat)
        .host("ours")
        .nat(nat)
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
    let mut theirs = Theirs::start(case, network.host("theirs")?, &relay_at).await?;
    ours.await_reservation()?;

    let through = |peer| {
        let relay = relay_at.clone().with(Protocol::P2pCircuit);
        relay.with(Protocol::P2p(peer))
    };
    let began = now();
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
        Caller::They => theirs.dial(&through(name(&ours)?)).await?,
    }
    let by_go = match &mut theirs {
        Theirs::Go(peer) => Some(watch(peer, name(&ours)?).await?),
        Theirs::Kubo(_) => None,
    };
    ours.await_api("/api/peers", "a direct connection", PATIENCE, |peers| {
        is_direct(peers, &theirs.id().to_string())
    })?;
    let took = by_go.unwrap_or_else(|| now().saturating_duration_since(began));
    theirs.ping(name(&ours)?).await?;
    Ok(took)
}

/// What go tells of the punch.
async fn watch(go: &mut Peer, ours: PeerId) -> Result<Duration, Error> {
    let relayed = go.connected(ours, true).await?;
    let direct = go.connected(ours, false).await;
    let steps = go.punches(ours);
    let verdict = match &direct {
        Ok(direct) => format!("{} ms", direct.saturating_sub(relayed).as_millis()),
        Err(error) => format!("FAILED ({error})"),
    };
    println!("  direct after {verdict}; go: {}", steps.join("; "));
    let direct = direct?;
    if !steps.iter().any(|step| step.starts_with("StartHolePunch")) {
        return Err(Error::Wrong(format!("go punched no hole: {steps:?}")));
    }
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

async fn punches(case: Case) -> Result<(), Error> {
    let runs: usize = match std::env::var("PUNCH_RUNS") {
        Ok(runs) => runs
            .parse()
            .map_err(|_| Error::Wrong(format!("PUNCH_RUNS is {runs}, no number")))?,
        Err(_) if case.other == Other::Go && case.nat == NatKind::PortRestricted => 4,
        Err(_) => 2,
    };
    let test = case.test;
    let mut cells = Cells::new(case.area(), case.column(), test);
    let row = match case.caller {
        Caller::We => "we reach them over our relay, and it becomes direct",
        Caller::They => "they reach us over our relay, and it becomes direct",
    };
    cells
        .works(row, async {
            let mut times = Vec::new();
            let mut failures = Vec::new();
            for run in 0..runs {
                let directory = scratch()?;
                match punch(case, directory.path()).await {
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
fn run(case: Case) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if let Err(error) = runtime.block_on(punches(case)) {
        panic!("{error}");
    }
}

/// Builds the command before the sandbox hides the network.
fn prepare() {
    binary().expect("the anypath command");
}

fn go(caller: Caller, transport: Transport, test: &'static str) -> Case {
    Case {
        other: Other::Go,
        caller,
        transport,
        nat: NatKind::PortRestricted,
        test,
    }
}

fn go_behind_changed_ports(caller: Caller, transport: Transport, test: &'static str) -> Case {
    Case {
        nat: NatKind::PortRestrictedShifting,
        ..go(caller, transport, test)
    }
}

fn kubo(caller: Caller, transport: Transport, test: &'static str) -> Case {
    Case {
        other: Other::Kubo,
        ..go(caller, transport, test)
    }
}

#[test]
fn we_reach_go_and_both_punch_over_quic() {
    prepare();
    isolated(|| run(go(Caller::We, Transport::Quic, "dcutr-go-quic-ours")));
}

#[test]
fn we_reach_go_and_both_punch_over_tcp() {
    prepare();
    isolated(|| run(go(Caller::We, Transport::Tcp, "dcutr-go-tcp-ours")));
}

#[test]
fn go_reaches_us_and_both_punch_over_quic() {
    prepare();
    isolated(|| run(go(Caller::They, Transport::Quic, "dcutr-go-quic-theirs")));
}

#[test]
fn go_reaches_us_and_both_punch_over_tcp() {
    prepare();
    isolated(|| run(go(Caller::They, Transport::Tcp, "dcutr-go-tcp-theirs")));
}

#[test]
fn we_reach_go_through_nats_that_change_the_port_over_quic() {
    prepare();
    isolated(|| {
        run(go_behind_changed_ports(
            Caller::We,
            Transport::Quic,
            "dcutr-go-quic-ours-changed",
        ))
    });
}

#[test]
fn we_reach_go_through_nats_that_change_the_port_over_tcp() {
    prepare();
    isolated(|| {
        run(go_behind_changed_ports(
            Caller::We,
            Transport::Tcp,
            "dcutr-go-tcp-ours-changed",
        ))
    });
}

#[test]
fn go_reaches_us_through_nats_that_change_the_port_over_quic() {
    prepare();
    isolated(|| {
        run(go_behind_changed_ports(
            Caller::They,
            Transport::Quic,
            "dcutr-go-quic-theirs-changed",
        ))
    });
}

#[test]
fn go_reaches_us_through_nats_that_change_the_port_over_tcp() {
    prepare();
    isolated(|| {
        run(go_behind_changed_ports(
            Caller::They,
            Transport::Tcp,
            "dcutr-go-tcp-theirs-changed",
        ))
    });
}

#[test]
fn we_reach_kubo_and_both_punch_over_quic() {
    prepare();
    isolated(|| run(kubo(Caller::We, Transport::Quic, "dcutr-kubo-quic-ours")));
}

#[test]
fn we_reach_kubo_and_both_punch_over_tcp() {
    prepare();
    isolated(|| run(kubo(Caller::We, Transport::Tcp, "dcutr-kubo-tcp-ours")));
}

#[test]
fn kubo_reaches_us_and_both_punch_over_quic() {
    prepare();
    isolated(|| {
        run(kubo(
            Caller::They,
            Transport::Quic,
            "dcutr-kubo-quic-theirs",
        ))
    });
}

#[test]
fn kubo_reaches_us_and_both_punch_over_tcp() {
    prepare();
    isolated(|| run(kubo(Caller::They, Transport::Tcp, "dcutr-kubo-tcp-theirs")));
}
