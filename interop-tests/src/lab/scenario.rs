//! Two nodes behind two NATs and a relay: the story that the project is about.

use super::leg::Leg;
use super::node::{Get, GetReport, Node, NodeConfig};
use super::{Lab, LabError, NatKind, Network, now};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// The relay's address and port.
pub const RELAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 100);
const RELAY_PORT: u16 = 4001;

/// What two nodes listen on, and reach the relay over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// QUIC alone.
    Quic,
    /// TCP alone.
    Tcp,
    /// Both, with the relay reached over TCP.
    Both,
}

impl fmt::Display for Transport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Quic => "QUIC",
            Self::Tcp => "TCP",
            Self::Both => "TCP and QUIC",
        })
    }
}

impl Transport {
    fn listen(self) -> Vec<String> {
        let quic = ["--listen", "/ip4/0.0.0.0/udp/9100/quic-v1"];
        let tcp = ["--listen", "/ip4/0.0.0.0/tcp/9100"];
        let arguments = match self {
            Self::Quic => quic.to_vec(),
            Self::Tcp => tcp.to_vec(),
            Self::Both => [tcp, quic].concat(),
        };
        arguments.into_iter().map(str::to_owned).collect()
    }

    fn relay(self) -> String {
        match self {
            Self::Quic => format!("/ip4/{RELAY}/udp/{RELAY_PORT}/quic-v1"),
            Self::Tcp | Self::Both => format!("/ip4/{RELAY}/tcp/{RELAY_PORT}"),
        }
    }
}

/// What the two nodes stand behind, and what lies between them.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What the node that has the file stands behind.
    pub alice: NatKind,
    /// What the node that gets the file stands behind.
    pub bob: NatKind,
    /// What both listen on.
    pub transport: Transport,
    /// Bytes that the relay allows a circuit in each direction; `None` for no limit.
    pub circuit_bytes: Option<u64>,
    /// Whether nodes tell each other about themselves through the relay (gossipsub). Without it they
    /// meet only when `get` asks for it, which is then the beginning of the story.
    pub announce: bool,
    /// How long Bob's `get` waits for a direct path where the relay's limit is too small.
    pub direct_path_timeout: Duration,
    /// Every leg.
    pub leg: Leg,
}

impl Scenario {
    /// Legs of 12.5 ms and a relay without limits.
    pub fn new(alice: NatKind, bob: NatKind, transport: Transport) -> Self {
        let direct_path_timeout = Duration::from_secs(30);
        let leg = Leg::default();
        Self {
            alice,
            bob,
            transport,
            circuit_bytes: None,
            announce: false,
            direct_path_timeout,
            leg,
        }
    }
}

/// A running scenario. Processes end first, then the network, then the files.
#[derive(Debug)]
pub struct Pair {
    /// The node that has the file.
    pub alice: Node,
    /// The node that gets it.
    pub bob: Node,
    /// The relay.
    pub relay: Node,
    network: Network,
    scenario: Scenario,
    directory: TempDir,
}

impl Pair {
    /// Builds the network, starts the three nodes and waits until both hold a reservation.
    pub fn start(scenario: Scenario) -> Result<Self, LabError> {
        let directory = scratch()?;
        let network = Lab::new()
            .leg(scenario.leg)
            .nat(scenario.alice)
            .host("alice")
            .nat(scenario.bob)
            .host("bob")
            .server("relay", &[RELAY])
            .start()?;
        let relay = Node::start(
            network.host("relay")?,
            directory.path(),
            relay_config(scenario),
        )?;
        let address = format!("{}/p2p/{}", scenario.transport.relay(), relay.peer_id());
        let config = NodeConfig::default()
            .arguments(scenario.transport.listen())
            .arguments(["--no-mdns", "--relay", &address])
            .setting("enable_pubsub_discovery", &scenario.announce.to_string())
            .setting(
                "direct_path_timeout",
                &format!("{}s", scenario.direct_path_timeout.as_secs()),
            );
        let alice = Node::start(network.host("alice")?, directory.path(), config.clone())?;
        let bob = Node::start(network.host("bob")?, directory.path(), config)?;
        alice.await_reservation()?;
        bob.await_reservation()?;
        Ok(Self {
            alice,
            bob,
            relay,
            network,
            scenario,
            directory,
        })
    }

    /// Where the nodes keep their data, and files may be put.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The network under them.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The network under them, to change it.
    pub fn network_mut(&mut self) -> &mut Network {
        &mut self.network
    }

    /// Alice's address through the relay, as `get --peer` takes it.
    pub fn relayed_address(&self) -> String {
        let relay = self.scenario.transport.relay();
        format!(
            "{relay}/p2p/{}/p2p-circuit/p2p/{}",
            self.relay.peer_id(),
            self.alice.peer_id()
        )
    }

    /// Starts Bob's `get` of what Alice has added.
    pub fn get(&self, cid: &str) -> Result<Get, LabError> {
        Get::start(
            &self.bob,
            cid,
            &self.output(),
            Some(&self.relayed_address()),
        )
    }

    /// Where Bob's file is written.
    pub fn output(&self) -> PathBuf {
        self.directory().join("received")
    }

    /// Alice adds `file`, Bob gets it.
    pub fn transfer(&self, file: &Path, patience: Duration) -> Result<GetReport, LabError> {
        let cid = self.alice.add(file)?;
        self.get(&cid)?.finish(now() + patience)
    }
}

/// A directory that goes when it is dropped, unless `ANYPATH_LAB_KEEP` is set (to read the logs).
pub fn scratch() -> Result<TempDir, LabError> {
    tempfile::Builder::new()
        .prefix("anypath-lab-")
        .disable_cleanup(std::env::var_os("ANYPATH_LAB_KEEP").is_some())
        .tempdir()
        .map_err(LabError::io("making a directory for the nodes"))
}

fn relay_config(scenario: Scenario) -> NodeConfig {
    let tcp = format!("/ip4/0.0.0.0/tcp/{RELAY_PORT}");
    let quic = format!("/ip4/0.0.0.0/udp/{RELAY_PORT}/quic-v1");
    NodeConfig::default()
        .arguments([
            "--relay-server",
            "--no-mdns",
            "--listen",
            &tcp,
            "--listen",
            &quic,
        ])
        .arguments([
            "--external-address",
            &format!("/ip4/{RELAY}/tcp/{RELAY_PORT}"),
        ])
        .arguments([
            "--external-address",
            &format!("/ip4/{RELAY}/udp/{RELAY_PORT}/quic-v1"),
        ])
        .setting(
            "relay_circuit_bytes",
            &scenario.circuit_bytes.unwrap_or(0).to_string(),
        )
        .setting("relay_circuit_duration", "0s")
}

/// Writes a file of seeded random bytes.
pub fn random_file(path: &Path, bytes: usize, seed: u64) -> Result<(), LabError> {
    let mut file = BufWriter::new(File::create(path).map_err(LabError::file(path))?);
    let mut random = StdRng::seed_from_u64(seed);
    let mut chunk = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        random.fill_bytes(&mut chunk);
        let part = chunk.get(..left.min(1 << 20)).unwrap_or_default();
        file.write_all(part).map_err(LabError::file(path))?;
        left -= part.len();
    }
    file.flush().map_err(LabError::file(path))
}

/// The SHA-256 of a file, in hexadecimal.
pub fn sha256(path: &Path) -> Result<String, LabError> {
    let mut file = File::open(path).map_err(LabError::file(path))?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut chunk).map_err(LabError::file(path))?;
        if length == 0 {
            return Ok(format!("{:x}", hasher.finalize()));
        }
        hasher.update(chunk.get(..length).unwrap_or_default());
    }
}

impl fmt::Display for GetReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |at: Option<Duration>| at.map_or("never".to_owned(), |at| format!("{at:.0?}"));
        write!(formatter, "relayed {}", ms(self.relayed))?;
        if let Some((at, path)) = &self.first_bytes {
            write!(formatter, ", first bytes {at:.0?} ({path})")?;
        }
        write!(formatter, ", direct {}", ms(self.direct))?;
        if let Some(allowed) = self.waiting_for_direct {
            write!(
                formatter,
                ", waited for it (the relay allows {allowed} bytes)"
            )?;
        }
        match self.done {
            Some(done) => write!(
                formatter,
                ", done {:.0?}: {} bytes, {} relayed + {} direct + {} local + {} left from before",
                done.elapsed, done.bytes, done.relayed, done.direct, done.local, done.resumed,
            ),
            None => write!(formatter, ", not done (exit {:?})", self.exit),
        }
    }
}
