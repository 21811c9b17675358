//! Our relay and relay client against stock libp2p-relay and its client, on loopback: three processes, relay, listener and dialler.

mod client;
mod flood;
mod server;

use super::endpoint::{Endpoint, megabytes_per_second};
use super::figure::{Figure, Unit};
use super::swarm::Transport;
use super::{Effort, Error};
use crate::peers::{self, Peer, RelayLimits, Settings};
use libp2p::Multiaddr;
use std::time::Duration;

/// `compare -- relay …`.
#[derive(Debug, Clone, PartialEq, Eq, Default, clap::Args)]
pub struct Options {
    /// Beside this relay instead of the stock one; `install-peers` installs it, PEERS_DIR names where
    #[arg(long)]
    pub peer: Option<Foreign>,
}

/// A relay that is not written in Rust.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Foreign {
    /// go-libp2p's
    Go,
}

/// Whose relay, whose client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Implementation {
    /// anypath-relay, server and client.
    Ours,
    /// libp2p-relay, server and client.
    Stock,
}

impl Implementation {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Stock => "stock",
        }
    }
}

/// `endpoint relay …`
#[derive(Debug, Clone, clap::Args)]
pub struct Task {
    /// Who runs.
    pub implementation: Implementation,
    /// As what.
    #[command(subcommand)]
    pub role: Role,
}

/// One process of a measurement.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Role {
    /// Relays; prints `listening <multiaddr>`.
    Relay {
        /// What it listens on.
        transport: Transport,
        /// With its limits for each peer; else without any. Those for hosts are off, as all peers are one host here.
        #[arg(long)]
        defended: bool,
    },
    /// Sends as many bytes as each stream asks for; prints `listening <multiaddr>` for each node, a relayed one if there is a relay.
    Listen {
        /// What it listens on without a relay.
        transport: Transport,
        /// How many nodes.
        count: u64,
        /// Where to reserve.
        relay: Option<Multiaddr>,
    },
    /// Fetches bytes; prints `connected <nanoseconds>` and `done <bytes> <nanoseconds>`.
    Dial {
        /// How many bytes from each.
        bytes: u64,
        /// Whom to dial, a node of our own for each.
        addresses: Vec<Multiaddr>,
    },
    /// Many clients that reserve at once; prints `reserved <clients> <nanoseconds>`.
    Reserve {
        /// How many.
        clients: u64,
        /// Where.
        relay: Multiaddr,
    },
    /// Many clients that hold reservations, and after a line on stdin circuits; prints `reserved <clients>` and `circuits <circuits>`.
    Hold {
        /// How many clients.
        clients: usize,
        /// How many circuits.
        circuits: usize,
        /// Where.
        relay: Multiaddr,
    },
    /// Peers that flood a relay with requests; prints `flooding <requests a second>`.
    Flood {
        /// Which one.
        relay: Multiaddr,
    },
    /// Peers that reserve now and then; prints `p99 <nanoseconds>`, and again after a line on stdin.
    Honest {
        /// Where.
        relay: Multiaddr,
    },
}

impl Task {
    /// Runs the endpoint.
    ///
    /// # Errors
    ///
    /// Any failure of the network.
    pub async fn run(self) -> Result<(), Error> {
        let ours = self.implementation == Implementation::Ours;
        match self.role {
            Role::Relay {
                transport,
                defended,
            } if ours => server::ours(transport, defended).await,
            Role::Relay {
                transport,
                defended,
            } => server::stock(transport, defended).await,
            Role::Listen {
                transport,
                count,
                relay,
            } if ours => client::listen(client::ours, transport, count, relay).await,
            Role::Listen {
                transport,
                count,
                relay,
            } => client::listen(client::stock, transport, count, relay).await,
            Role::Dial { bytes, addresses } if ours => {
                client::dial(client::ours, addresses, bytes).await
            }
            Role::Dial { bytes, addresses } => client::dial(client::stock, addresses, bytes).await,
            Role::Reserve { clients, relay } if ours => {
                client::reserve(client::ours, clients, relay).await
            }
            Role::Reserve { clients, relay } => {
                client::reserve(client::stock, clients, relay).await
            }
            Role::Hold {
                clients,
                circuits,
                relay,
            } => client::hold(client::stock, clients, circuits, relay).await,
            Role::Flood { relay } => flood::flood(relay).await,
            Role::Honest { relay } => flood::honest(relay).await,
        }
    }
}

/// Payload of one run.
const RUN_BYTES: u64 = 512 << 20;

/// Circuits that carry it at the same time.
const CIRCUITS: [u64; 2] = [1, 16];

/// Clients that connect and reserve at the same time.
const CLIENTS: u64 = 64;

/// Reservations and idle circuits whose memory is measured.
const HELD: usize = 2000;
const HELD_CIRCUITS: usize = 500;

/// How long a relay comes to rest before its memory is read.
const REST: Duration = Duration::from_secs(3);

/// All figures of this area, or those beside one peer.
pub(super) async fn measure(
    options: Options,
    effort: Effort,
    report: &mut dyn FnMut(Figure),
) -> Result<(), Error> {
    if let Some(Foreign::Go) = options.peer {
        for transport in Transport::ALL {
            for circuits in CIRCUITS {
                carrying(effort, transport, circuits, Other::Go, report).await?;
            }
        }
        return Ok(());
    }
    for transport in Transport::ALL {
        for circuits in CIRCUITS {
            carrying(effort, transport, circuits, Other::Stock, report).await?;
        }
        setting_up(effort, transport, report).await?;
    }
    holding(effort, report).await?;
    flood::measure(effort, report).await
}

/// Whose relay ours is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    Stock,
    Go,
}

impl Other {
    fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Go => "go",
        }
    }

    async fn relayed(
        self,
        transport: Transport,
        circuits: u64,
        bytes: u64,
    ) -> Result<Relayed, Error> {
        let clients = Implementation::Stock;
        match self {
            Self::Stock => {
                relayed(Implementation::Stock, clients, transport, circuits, bytes).await
            }
            Self::Go => {
                let settings = Settings {
                    listen: vec![transport.loopback()],
                    relay: Some(RelayLimits::NONE),
                    ..Settings::default()
                };
                let relay = Peer::start(peers::Implementation::Go, &settings).await?;
                let address = relay.address()?.to_string();
                let cpu = || Ok(relay.cpu_seconds()?);
                let run = through(&address, cpu, clients, transport, circuits, bytes).await?;
                relay.stop().await?;
                Ok(run)
            }
        }
    }
}

/// What it costs the relay to carry bytes. The clients are libp2p-relay's on both sides: only the relay differs.
async fn carrying(
    effort: Effort,
    transport: Transport,
    circuits: u64,
    other: Other,
    report: &mut dyn FnMut(Figure),
) -> Result<(), Error> {
    use Implementation::{Ours, Stock};
    let bytes = effort.scale(RUN_BYTES) / circuits;
    let (mut throughput, mut cpu, mut direct) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..effort.runs() {
        // Neither is always the first.
        let (ours, theirs) = if round % 2 == 0 {
            let ours = relayed(Ours, Stock, transport, circuits, bytes).await?;
            (ours, other.relayed(transport, circuits, bytes).await?)
        } else {
            let theirs = other.relayed(transport, circuits, bytes).await?;
            (
                relayed(Ours, Stock, transport, circuits, bytes).await?,
                theirs,
            )
        };
        throughput.push((ours.throughput, theirs.throughput));
        cpu.push((ours.relay_cpu, theirs.relay_cpu));
        if circuits == 1 && other == Other::Stock {
            direct.push((ours.throughput, unrelayed(transport, bytes).await?));
        }
    }
    let (name, peer) = (transport.name(), other.name());
    report(Figure::new(
        format!("relay.throughput.{name}.{circuits}circuits.{peer}"),
        Unit::MegabytesPerSecond,
        throughput,
    ));
    report(Figure::new(
        format!("relay.cpu_per_gb.{name}.{circuits}circuits.{peer}"),
        Unit::CpuSecondsPerGigabyte,
        cpu,
    ));
    if !direct.is_empty() {
        let figure = format!("relay.throughput.{name}.direct");
        report(Figure::new(figure, Unit::MegabytesPerSecond, direct));
    }
    Ok(())
}

/// How fast circuits and reservations are made, each implementation with its own client.
async fn setting_up(
    effort: Effort,
    transport: Transport,
    report: &mut dyn FnMut(Figure),
) -> Result<(), Error> {
    use Implementation::{Ours, Stock};
    let (mut circuit, mut reservations) = (Vec::new(), Vec::new());
    for _ in 0..effort.runs() {
        let ours = relayed(Ours, Ours, transport, 1, 1).await?;
        let theirs = relayed(Stock, Stock, transport, 1, 1).await?;
        circuit.push((ours.circuit, theirs.circuit));
        reservations.push((
            reserved(Ours, transport).await?,
            reserved(Stock, transport).await?,
        ));
    }
    let name = transport.name();
    report(Figure::new(
        format!("relay.circuit_setup.{name}.stock"),
        Unit::Milliseconds,
        circuit,
    ));
    report(Figure::new(
        format!("relay.reservations.{name}.{CLIENTS}clients.stock"),
        Unit::PerSecond,
        reservations,
    ));
    Ok(())
}

/// What a reservation, with its connection, and an idle circuit cost the relay in memory.
async fn holding(effort: Effort, report: &mut dyn FnMut(Figure)) -> Result<(), Error> {
    use Implementation::{Ours, Stock};
    let (mut reservation, mut circuit) = (Vec::new(), Vec::new());
    // It varies by a few bytes: three runs tell as much as seven.
    for _ in 0..effort.runs().min(3) {
        let (ours, theirs) = (held(Ours).await?, held(Stock).await?);
        reservation.push((ours.reservation, theirs.reservation));
        circuit.push((ours.circuit, theirs.circuit));
    }
    report(Figure::new(
        "relay.memory.reservation.stock".to_owned(),
        Unit::Kilobytes,
        reservation,
    ));
    report(Figure::new(
        "relay.memory.circuit.stock".to_owned(),
        Unit::Kilobytes,
        circuit,
    ));
    Ok(())
}

/// Kilobytes.
struct Held {
    reservation: f64,
    circuit: f64,
}

async fn held(implementation: Implementation) -> Result<Held, Error> {
    let mut relay = start(implementation, "relay", &[Transport::Tcp.name()])?;
    let address = relay.line("listening").await?;
    // One before, so that what is allocated once does not count.
    let mut first = start(Implementation::Stock, "hold", &["2", "1", &address])?;
    first.line("reserved").await?;
    first.go_on().await?;
    first.line("circuits").await?;
    let empty = relay.anonymous_bytes()?;
    let (clients, circuits) = (HELD.to_string(), HELD_CIRCUITS.to_string());
    let mut holder = start(
        Implementation::Stock,
        "hold",
        &[&clients, &circuits, &address],
    )?;
    holder.line("reserved").await?;
    tokio::time::sleep(REST).await;
    let reserved = relay.anonymous_bytes()?;
    holder.go_on().await?;
    holder.line("circuits").await?;
    tokio::time::sleep(REST).await;
    let connected = relay.anonymous_bytes()?;
    for endpoint in [first, holder, relay] {
        endpoint.end().await?;
    }
    let each =
        |more: u64, less: u64, count: usize| (more as f64 - less as f64) / 1e3 / count as f64;
    Ok(Held {
        reservation: each(reserved, empty, HELD),
        circuit: each(connected, reserved, HELD_CIRCUITS),
    })
}

/// What one relayed run gave.
struct Relayed {
    /// MB/s of payload.
    throughput: f64,
    /// CPU seconds of the relay for 10⁹ bytes of payload.
    relay_cpu: f64,
    /// Milliseconds from dialling the relayed address to the connection.
    circuit: f64,
}

fn start(
    implementation: Implementation,
    role: &str,
    arguments: &[&str],
) -> Result<Endpoint, Error> {
    Endpoint::start(
        None,
        ["relay", implementation.name(), role]
            .iter()
            .chain(arguments),
    )
}

async fn relayed(
    relay: Implementation,
    clients: Implementation,
    transport: Transport,
    circuits: u64,
    bytes: u64,
) -> Result<Relayed, Error> {
    let mut relay = start(relay, "relay", &[transport.name()])?;
    let address = relay.line("listening").await?;
    let cpu = || relay.cpu_seconds();
    let run = through(&address, cpu, clients, transport, circuits, bytes).await?;
    relay.end().await?;
    Ok(run)
}

/// Through the relay at `relay`, whose CPU seconds so far `cpu` tells.
async fn through(
    relay: &str,
    cpu: impl Fn() -> Result<f64, Error>,
    clients: Implementation,
    transport: Transport,
    circuits: u64,
    bytes: u64,
) -> Result<Relayed, Error> {
    let count = circuits.to_string();
    let mut listener = start(clients, "listen", &[transport.name(), &count, relay])?;
    let mut addresses = Vec::new();
    for _ in 0..circuits {
        addresses.push(listener.line("listening").await?);
    }
    let bytes_text = bytes.to_string();
    let arguments: Vec<&str> = [bytes_text.as_str()]
        .into_iter()
        .chain(addresses.iter().map(String::as_str))
        .collect();
    let mut dialler = start(clients, "dial", &arguments)?;
    let [connected] = dialler.numbers("connected").await?;
    let before = cpu()?;
    let done: [u64; 2] = dialler.numbers("done").await?;
    let [received, _] = done;
    let relay_cpu = (cpu()? - before) * 1e9 / received as f64;
    for endpoint in [dialler, listener] {
        endpoint.end().await?;
    }
    Ok(Relayed {
        throughput: megabytes_per_second(done),
        relay_cpu,
        circuit: connected as f64 / 1e6,
    })
}

/// MB/s of the same stream without a relay.
async fn unrelayed(transport: Transport, bytes: u64) -> Result<f64, Error> {
    let mut listener = start(Implementation::Stock, "listen", &[transport.name(), "1"])?;
    let address = listener.line("listening").await?;
    let mut dialler = start(
        Implementation::Stock,
        "dial",
        &[&bytes.to_string(), &address],
    )?;
    let done = dialler.numbers("done").await?;
    dialler.end().await?;
    listener.end().await?;
    Ok(megabytes_per_second(done))
}

/// Clients a second that connect and hold a reservation.
async fn reserved(implementation: Implementation, transport: Transport) -> Result<f64, Error> {
    let mut relay = start(implementation, "relay", &[transport.name()])?;
    let address = relay.line("listening").await?;
    let mut clients = start(implementation, "reserve", &[&CLIENTS.to_string(), &address])?;
    let [count, nanoseconds] = clients.numbers("reserved").await?;
    clients.end().await?;
    relay.end().await?;
    Ok(count as f64 * 1e9 / nanoseconds.max(1) as f64)
}
