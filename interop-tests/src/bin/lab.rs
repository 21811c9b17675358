//! The NAT lab on a terminal: `lab -- demo FILE` tells the whole story of a file that moves through
//! two NATs, `lab -- probe KIND` shows what a NAT does.

use anypath_interop_tests::lab::probe::{self, Server};
use anypath_interop_tests::lab::scenario::{Pair, Scenario, Transport, sha256};
use anypath_interop_tests::lab::{
    self, GetReport, Host, Lab, LabError, Leg, NatKind, binary, explain, now,
};
use clap::{Parser, Subcommand, ValueEnum};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How long the demonstration waits for the file.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Parser)]
#[command(about = "Anypath's NAT laboratory: real nodes behind real NATs, without root")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Moves FILE from alice to bob, each behind a NAT, and tells how.
    Demo {
        /// The file to move.
        file: PathBuf,
        /// What alice, who has the file, stands behind.
        #[arg(long, default_value = "port-restricted")]
        alice: NatKind,
        /// What bob stands behind.
        #[arg(long, default_value = "port-restricted")]
        bob: NatKind,
        /// What both listen on.
        #[arg(long, value_enum, default_value = "quic")]
        transport: TransportName,
        /// Round trip between any two of alice, bob and the relay, in milliseconds.
        #[arg(long, default_value_t = 50)]
        rtt: u64,
        /// Bytes that the relay allows a circuit in each direction; no limit if absent.
        #[arg(long)]
        circuit_bytes: Option<u64>,
    },
    /// Shows mapping and filtering of a NAT kind (all kinds if none is named).
    Probe {
        /// The kind of NAT.
        kind: Option<NatKind>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum TransportName {
    Quic,
    Tcp,
    Both,
}

impl From<TransportName> for Transport {
    fn from(name: TransportName) -> Self {
        match name {
            TransportName::Quic => Self::Quic,
            TransportName::Tcp => Self::Tcp,
            TransportName::Both => Self::Both,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Task::Demo {
            file,
            alice,
            bob,
            transport,
            rtt,
            circuit_bytes,
        } => {
            let scenario = Scenario {
                circuit_bytes,
                leg: Leg::delay(Duration::from_micros(rtt * 250)),
                ..Scenario::new(alice, bob, transport.into())
            };
            // The command is built outside, where the network is.
            binary()
                .and_then(|_| lab::enter())
                .and_then(|()| demo(&file, scenario))
        }
        Task::Probe { kind } => lab::enter().and_then(|()| probe(kind)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

fn demo(file: &Path, scenario: Scenario) -> Result<(), LabError> {
    let sent = sha256(file)?;
    let rtt = scenario.leg.delay * 4;
    println!("Three machines, {rtt:?} from each to each other and back:\n");
    let pair = Pair::start(scenario)?;
    for node in [&pair.alice, &pair.bob, &pair.relay] {
        introduce(node.host(), node.peer_id());
    }
    println!(
        "\nalice and bob listen on {}; both hold a reservation on the relay.",
        scenario.transport
    );
    match scenario.circuit_bytes {
        None => println!("The relay carries as much as is asked of it."),
        Some(bytes) => println!("The relay carries {bytes} bytes a circuit in each direction."),
    }
    let cid = pair.alice.add(file)?;
    println!("\nalice$ anypath add {}\n{cid}", file.display());
    println!("bob$ anypath get {cid} --peer {}\n", pair.relayed_address());

    let mut get = pair.get(&cid)?;
    let deadline = now() + PATIENCE;
    let mut told = GetReport::default();
    while get.step(deadline)? {
        tell(&mut told, get.report());
    }
    let report = get.finish(deadline)?;
    let Some(done) = report.done else {
        println!("bob's get ended without the file:\n{}", report.errors);
        return Err(LabError::Plan("the file did not arrive".into()));
    };
    let received = sha256(&pair.output())?;
    let seconds = done.elapsed.as_secs_f64();
    println!(
        "\nFile            {} bytes in {seconds:.2} s, {:.1} MB/s",
        done.bytes,
        done.bytes as f64 / 1e6 / seconds
    );
    println!("Over the relay  {} bytes", done.relayed);
    println!("Direct          {} bytes", done.direct);
    if done.local > 0 {
        println!("Already there   {} bytes", done.local);
    }
    if let (Some(relayed), Some((first, path))) = (report.relayed, &report.first_bytes) {
        println!(
            "First byte      {first:?} after the command, {:?} after the relayed connection, {path}",
            first.saturating_sub(relayed)
        );
    }
    match (report.relayed, report.direct) {
        (Some(relayed), Some(direct)) => {
            println!(
                "Direct path     {direct:?} after the command, {:?} after the relayed connection",
                direct.saturating_sub(relayed)
            );
        }
        (None, Some(_)) => println!("Direct path     was there before the command"),
        _ => println!("Direct path     none: these two NATs leave only the relay"),
    }
    show_connections(&pair)?;
    if sent == received {
        println!("SHA-256         {received}, equal");
        Ok(())
    } else {
        Err(LabError::Plan(format!("sent {sent}, received {received}")))
    }
}

fn introduce(host: &Host, peer_id: &str) {
    let place = match host.nat() {
        NatKind::None => "a public address".to_owned(),
        kind => format!("{} behind {kind} NAT, seen as", host.address()),
    };
    println!(
        "  {:<6} {place} {}\n         {peer_id}",
        host.name(),
        host.public()
    );
    if host.nat() != NatKind::None {
        println!("         {}", host.nat().expected());
    }
}

/// Tells what is new in the report.
fn tell(told: &mut GetReport, report: &GetReport) {
    if let (None, Some(at)) = (told.relayed, report.relayed) {
        println!(
            "{:>7} ms  a relayed connection to alice is up",
            at.as_millis()
        );
    }
    if let (None, Some((at, path))) = (&told.first_bytes, &report.first_bytes) {
        println!(
            "{:>7} ms  first bytes of the file are written ({path})",
            at.as_millis()
        );
    }
    if let (None, Some(allowed)) = (told.waiting_for_direct, report.waiting_for_direct) {
        println!("            the relay allows {allowed} bytes; waiting for a direct path");
    }
    if let (None, Some(at)) = (told.direct, report.direct) {
        println!(
            "{:>7} ms  the hole is punched: a direct connection to alice is up",
            at.as_millis()
        );
    }
    if let (None, Some(done)) = (told.done, report.done) {
        println!("{:>7} ms  the file is complete", done.elapsed.as_millis());
    }
    *told = report.clone();
}

/// Bob's connections to Alice at the end.
fn show_connections(pair: &Pair) -> Result<(), LabError> {
    let peers = pair.bob.api("/api/peers")?;
    let connections = peers
        .as_array()
        .into_iter()
        .flatten()
        .filter(|peer| peer.get("peer_id").and_then(Value::as_str) == Some(pair.alice.peer_id()))
        .filter_map(|peer| peer.get("connections").and_then(Value::as_array))
        .flatten();
    for connection in connections {
        let text = |key| connection.get(key).and_then(Value::as_str).unwrap_or("?");
        println!("Connection      {} {}", text("path"), text("address"));
    }
    Ok(())
}

fn probe(kind: Option<NatKind>) -> Result<(), LabError> {
    const SERVER: [Ipv4Addr; 2] = [
        Ipv4Addr::new(198, 51, 100, 1),
        Ipv4Addr::new(198, 51, 100, 2),
    ];
    let kinds = kind.map_or_else(|| NatKind::ALL.to_vec(), |kind| vec![kind]);
    for kind in kinds {
        let network = Lab::new()
            .nat(kind)
            .host("alice")
            .server("probe", &SERVER)
            .start()?;
        let server = Server::start(network.host("probe")?, SERVER)?;
        let class = network
            .host("alice")?
            .enter(|| probe::classify(server.addresses()))?
            .map_err(|source| LabError::Io {
                what: format!("probing {kind}"),
                source,
            })?;
        let verdict = if class == kind.expected() {
            "as named"
        } else {
            "NOT AS NAMED"
        };
        println!("{kind:<26} {class} ({verdict})");
    }
    Ok(())
}
