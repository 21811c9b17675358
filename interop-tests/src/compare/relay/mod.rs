//! Our relay and relay client against stock libp2p-relay and its client, on loopback: three processes, relay, listener and dialler.

mod client;
mod server;

use super::endpoint::{Endpoint, megabytes_per_second};
use super::figure::{Figure, Unit};
use super::swarm::Transport;
use super::{Effort, Error};
use libp2p::Multiaddr;

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
    /// Relays without limits; prints `listening <multiaddr>`.
    Relay {
        /// What it listens on.
        transport: Transport,
    },
    /// Sends as many bytes as each stream asks for; prints `listening <multiaddr>`, a relayed one if there is a relay.
    Listen {
        /// What it listens on without a relay.
        transport: Transport,
        /// Where to reserve.
        relay: Option<Multiaddr>,
    },
    /// Fetches bytes; prints `connected <nanoseconds>` and `done <bytes> <nanoseconds>`.
    Dial {
        /// How many bytes.
        bytes: u64,
        /// Whom to dial.
        address: Multiaddr,
    },
    /// Many clients that reserve at once; prints `reserved <clients> <nanoseconds>`.
    Reserve {
        /// How many.
        clients: u64,
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
            Role::Relay { transport } if ours => server::ours(transport).await,
            Role::Relay { transport } => server::stock(transport).await,
            Role::Listen { transport, relay } if ours => {
                client::listen(client::ours()?, transport, relay).await
            }
            Role::Listen { transport, relay } => {
                client::listen(client::stock()?, transport, relay).await
            }
            Role::Dial { bytes, address } if ours => {
                client::dial(client::ours()?, address, bytes).await
            }
            Role::Dial { bytes, address } => client::dial(client::stock()?, address, bytes).await,
            Role::Reserve { clients, relay } if ours => {
                client::reserve(client::ours, clients, relay).await
            }
            Role::Reserve { clients, relay } => {
                client::reserve(client::stock, clients, relay).await
            }
        }
    }
}

/// Payload of one run over one stream.
const STREAM_BYTES: u64 = 512 << 20;

/// Clients that connect and reserve at the same time.
const CLIENTS: u64 = 64;

/// All figures of this area.
pub(super) async fn measure(effort: Effort, report: &mut dyn FnMut(Figure)) -> Result<(), Error> {
    use Implementation::{Ours, Stock};
    let bytes = effort.scale(STREAM_BYTES);
    for transport in Transport::ALL {
        let (mut stock, mut direct) = (Vec::new(), Vec::new());
        let (mut cpu, mut circuit, mut reservations) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.runs() {
            let [ours, theirs] = [
                relayed(Ours, transport, bytes).await?,
                relayed(Stock, transport, bytes).await?,
            ];
            stock.push((ours.throughput, theirs.throughput));
            cpu.push((ours.relay_cpu, theirs.relay_cpu));
            circuit.push((ours.circuit, theirs.circuit));
            direct.push((ours.throughput, unrelayed(transport, bytes).await?));
            reservations.push((
                reserved(Ours, transport).await?,
                reserved(Stock, transport).await?,
            ));
        }
        let name = transport.name();
        for (figure, unit, runs) in [
            (
                format!("relay.throughput.{name}.stock"),
                Unit::MegabytesPerSecond,
                stock,
            ),
            (
                format!("relay.throughput.{name}.direct"),
                Unit::MegabytesPerSecond,
                direct,
            ),
            (
                format!("relay.cpu_per_gb.{name}.1circuits.stock"),
                Unit::CpuSecondsPerGigabyte,
                cpu,
            ),
            (
                format!("relay.circuit_setup.{name}.stock"),
                Unit::Milliseconds,
                circuit,
            ),
            (
                format!("relay.reservations.{name}.{CLIENTS}clients.stock"),
                Unit::PerSecond,
                reservations,
            ),
        ] {
            report(Figure::new(figure, unit, runs));
        }
    }
    Ok(())
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
    implementation: Implementation,
    transport: Transport,
    bytes: u64,
) -> Result<Relayed, Error> {
    let mut relay = start(implementation, "relay", &[transport.name()])?;
    let relay_address = relay.line("listening").await?;
    let mut listener = start(
        implementation,
        "listen",
        &[transport.name(), &relay_address],
    )?;
    let address = listener.line("listening").await?;
    let mut dialler = start(implementation, "dial", &[&bytes.to_string(), &address])?;
    let [connected] = dialler.numbers("connected").await?;
    let before = relay.cpu_seconds()?;
    let done = dialler.numbers("done").await?;
    let relay_cpu = (relay.cpu_seconds()? - before) * 1e9 / bytes as f64;
    for endpoint in [dialler, listener, relay] {
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
    let mut listener = start(Implementation::Stock, "listen", &[transport.name()])?;
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
