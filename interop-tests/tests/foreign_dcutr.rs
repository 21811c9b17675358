//! Hole punches (DCUtR) between `anypath start` and go-libp2p, kubo, js-libp2p or py-libp2p, each behind a NAT of the lab, over a relay that is `anypath start` too.
//!
//! `PUNCH_RUNS` is how many punches each test tries; without it, 4 of the plain case with go-libp2p and 2 of every other.
#![cfg(feature = "foreign")]
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use anypath_interop_tests::lab::scenario::scratch;
use anypath_interop_tests::lab::{Host, Lab, NatKind, Node, NodeConfig, binary, isolated, now};
use anypath_interop_tests::peers::{
    self, Cells, Error, Implementation, Kubo, KuboSettings, NodeSettings, Peer, Settings, Transport,
};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// go-libp2p takes no address of the ranges for documentation for public, and offers none that is not public.
const NETWORK: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 0);
const RELAY: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 100);
const RELAY_PORT: u16 = 4001;
const OUR_PORT: u16 = 9100;
const PATIENCE: Duration = Duration::from_secs(20);
/// How long js is watched: it tries at once, and three times at most.
const JS_PATIENCE: Duration = Duration::from_secs(8);
const JS_DIALS_ANEW: &str = "js-libp2p dials from a new port (`@libp2p/tcp` connects without one of its own, and `dcutr.js` says that QUIC is to come), so that the hole in its NAT is not where the other end knocks; the tests watch the ports of its dials";
const PY_OVER_QUIC: &str = "py-libp2p punches over TCP alone: it offers no address of QUIC under which it is seen (`_get_observed_addrs` in `dcutr.py`), and dials over QUIC from a new port each time (`transport/quic/connection.py`), as a test sees";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    We,
    They,
}

impl Caller {
    fn row(self) -> &'static str {
        match self {
            Self::We => "we reach them over our relay, and it becomes direct",
            Self::They => "they reach us over our relay, and it becomes direct",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Other {
    Go,
    Kubo,
    Js,
    Py,
}

/// What is punched: theirs is behind this NAT, and so is ours, or it is public.
#[derive(Clone, Copy)]
struct Case {
    other: Other,
    caller: Caller,
    transport: Transport,
    nat: NatKind,
    ours: NatKind,
    test: &'static str,
}

impl Case {
    fn area(self) -> &'static str {
        if self.ours == NatKind::None {
            return "DCUtR behind one port-restricted NAT, theirs";
        }
        match self.nat {
            NatKind::PortRestrictedShifting => "DCUtR behind NATs that change the port",
            _ => "DCUtR behind port-restricted NATs",
        }
    }

    fn column(self) -> String {
        let name = match self.other {
            Other::Go => "go",
            Other::Kubo => "kubo",
            Other::Js => "js",
            Other::Py => "py",
        };
        format!("{name} {}", self.transport.name())
    }
}

/// The other side, behind its NAT.
enum Theirs {
    Go(Peer),
    Js(Peer),
    Py(Peer),
    Kubo(Kubo),
}

impl Theirs {
    /// One that can be reached at the relay, and punches.
    async fn start(case: Case, host: &Host, relay: &Multiaddr) -> Result<Self, Error> {
        match case.other {
            Other::Go | Other::Js | Other::Py => {
                let settings = Settings {
                    listen: vec![case.transport.at(Ipv4Addr::UNSPECIFIED, 0)],
                    punch: true,
                    ..Settings::default()
                };
                let implementation = match case.other {
                    Other::Js => Implementation::Js,
                    Other::Py => Implementation::Py,
                    _ => Implementation::Go,
                };
                let mut peer = Peer::start_on(host, implementation, &settings).await?;
                peer.reserve(relay).await?;
                if case.other == Other::Js {
                    return Ok(Self::Js(peer));
                }
                peer.punchable().await?;
                Ok(match case.other {
                    Other::Py => Self::Py(peer),
                    _ => Self::Go(peer),
                })
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
            Self::Go(peer) | Self::Js(peer) | Self::Py(peer) => peer.id(),
            Self::Kubo(kubo) => kubo.id(),
        }
    }

    async fn dial(&mut self, address: &Multiaddr) -> Result<(), Error> {
        match self {
            Self::Go(peer) | Self::Js(peer) | Self::Py(peer) => peer.dial(address).await.map(drop),
            Self::Kubo(kubo) => {
                let connect = ["swarm", "connect", &address.to_string()];
                kubo.run(&connect).await.map(drop)
            }
        }
    }

    /// Whichever is the better connection now: it has to carry streams.
    async fn ping(&mut self, id: PeerId) -> Result<(), Error> {
        match self {
            Self::Go(peer) | Self::Js(peer) | Self::Py(peer) => peer.ping(id).await.map(drop),
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
        .nat(case.ours)
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

    let mut arguments = listen(OUR_PORT).to_vec();
    let is_public = case.ours == NatKind::None;
    let public = transport.at(network.host("ours")?.public(), OUR_PORT);
    arguments.extend(match is_public {
        true => ["--external-address".to_owned(), public.to_string()],
        false => ["--relay".to_owned(), relay_at.to_string()],
    });
    let ours = node("ours", arguments)?;
    let host = network.host("theirs")?;
    let mut theirs = Theirs::start(case, host, &relay_at).await?;
    if !is_public {
        ours.await_reservation()?;
    }

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
        Theirs::Kubo(_) | Theirs::Py(_) => None,
        Theirs::Js(_) if is_public => None,
        // Watched, because it does not get through.
        Theirs::Js(peer) => {
            let dialled = dials(host, network.host("ours")?.public()).await?;
            let listens = port(&peer.address()?);
            println!("  js dialled from {dialled:?} and listens at {listens:?}");
            if dialled.is_empty() || listens.is_some_and(|port| dialled.contains(&port)) {
                panic!("js does not dial from new ports: {dialled:?}, {listens:?}");
            }
            None
        }
    };
    let patience = match case.other {
        Other::Js if !is_public => Duration::ZERO,
        _ => PATIENCE,
    };
    ours.await_api("/api/peers", "a direct connection", patience, |peers| {
        is_direct(peers, &theirs.id().to_string())
    })?;
    let took = by_go.unwrap_or_else(|| now().saturating_duration_since(began));
    theirs.ping(name(&ours)?).await?;
    Ok(took)
}

/// The ports from which a host dials an address over TCP, for as long as js tries.
async fn dials(host: &Host, address: Ipv4Addr) -> Result<BTreeSet<u16>, Error> {
    const SYN_SENT: &str = "02";
    let to = u32::from_le_bytes(address.octets());
    let deadline = Instant::now() + JS_PATIENCE;
    let mut ports = BTreeSet::new();
    while Instant::now() < deadline {
        let table = host.enter(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))??;
        for line in table.lines() {
            let fields: Vec<_> = line.split_whitespace().collect();
            if let [_, local, remote, SYN_SENT, ..] = fields[..]
                && remote.starts_with(&format!("{to:08X}:"))
                && let Some(port) = local.rsplit(':').next()
            {
                ports.extend(u16::from_str_radix(port, 16));
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(ports)
}

fn port(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|protocol| match protocol {
        Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
        _ => None,
    })
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
        // It either can or cannot.
        Err(_) if case.other == Other::Js => 1,
        Err(_) => 2,
    };
    let test = case.test;
    let mut cells = Cells::new(case.area(), case.column(), test);
    let row = case.caller.row();
    let attempt = async {
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
    };
    if case.other == Other::Js && case.ours != NatKind::None {
        // Watched to its end first: a defect has five seconds to show.
        let watched = attempt.await;
        let attempt = std::future::ready(watched);
        cells.defect(row, JS_DIALS_ANEW, attempt).await;
    } else {
        cells.works(row, attempt).await;
    }
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
        ours: NatKind::PortRestricted,
        test,
    }
}

fn go_behind_changed_ports(caller: Caller, transport: Transport, test: &'static str) -> Case {
    Case {
        nat: NatKind::PortRestrictedShifting,
        ours: NatKind::PortRestrictedShifting,
        ..go(caller, transport, test)
    }
}

fn js(caller: Caller, transport: Transport, test: &'static str) -> Case {
    Case {
        other: Other::Js,
        ..go(caller, transport, test)
    }
}

fn py(caller: Caller, transport: Transport, test: &'static str) -> Case {
    Case {
        other: Other::Py,
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

#[test]
fn we_reach_js_from_a_public_address_and_it_becomes_direct_over_tcp() {
    prepare();
    isolated(|| {
        run(Case {
            ours: NatKind::None,
            ..js(Caller::We, Transport::Tcp, "dcutr-js-tcp-public")
        })
    });
}

#[test]
fn we_reach_js_from_a_public_address_and_it_becomes_direct_over_quic() {
    prepare();
    isolated(|| {
        run(Case {
            ours: NatKind::None,
            ..js(Caller::We, Transport::Quic, "dcutr-js-quic-public")
        })
    });
}

#[test]
fn we_reach_js_and_it_cannot_punch_over_tcp() {
    prepare();
    isolated(|| run(js(Caller::We, Transport::Tcp, "dcutr-js-tcp-ours")));
}

#[test]
fn js_reaches_us_and_cannot_punch_over_tcp() {
    prepare();
    isolated(|| run(js(Caller::They, Transport::Tcp, "dcutr-js-tcp-theirs")));
}

#[test]
fn we_reach_py_and_both_punch_over_tcp() {
    prepare();
    isolated(|| run(py(Caller::We, Transport::Tcp, "dcutr-py-tcp-ours")));
}

#[test]
fn py_reaches_us_and_both_punch_over_tcp() {
    prepare();
    isolated(|| run(py(Caller::They, Transport::Tcp, "dcutr-py-tcp-theirs")));
}

/// The hole in a NAT is for the port that is dialled from.
#[tokio::test]
async fn py_dials_over_quic_from_a_new_port_and_cannot_punch() -> Result<(), Error> {
    let mut ours = peers::Node::start(Transport::Quic, NodeSettings::default()).await?;
    let settings = Settings {
        listen: vec![Transport::Quic.loopback()],
        ..Settings::default()
    };
    let mut theirs = Peer::start(Implementation::Py, &settings).await?;
    theirs.dial(ours.address()).await?;
    let from = ours.wait("connection", |event| match event {
        SwarmEvent::ConnectionEstablished { endpoint, .. } => port(endpoint.get_remote_address()),
        _ => None,
    });
    let (from, listens) = (from.await?, port(&theirs.address()?));
    if listens == Some(from) {
        let mended = format!("py dials from {from}, where it listens: try to punch");
        return Err(Error::Wrong(mended));
    }
    let test = "dcutr-py-quic";
    let case = py(Caller::We, Transport::Quic, test);
    let mut cells = Cells::new(case.area(), case.column(), test);
    for caller in [Caller::We, Caller::They] {
        cells.unsupported(caller.row(), PY_OVER_QUIC);
    }
    cells.finish()
}
