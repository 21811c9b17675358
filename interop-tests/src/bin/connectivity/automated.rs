//! Every way at once, one line each.

use crate::host::{Host, now, ping, quiet};
use anypath::files::{self, AddOptions, GetOptions};
use anypath::libp2p::multiaddr::Protocol;
use anypath::libp2p::{Multiaddr, StreamProtocol};
use anypath::{BoxError, Discovery, Event, SessionOptions};
use anypath_interop_tests::lab::scenario::{
    Pair, Scenario, Transport, random_file, scratch, sha256,
};
use anypath_interop_tests::lab::{Lab, LabError, NatKind, Node, NodeConfig, explain};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Runtime;

const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const WEBSOCKET: &str = "/ip4/127.0.0.1/tcp/0/ws";

/// What none of them takes on a busy machine unless something is broken.
const PATIENCE: Duration = Duration::from_secs(60);

const ECHO: StreamProtocol = StreamProtocol::new("/anypath-interop/echo/1.0.0");
const MIB: usize = 1 << 20;

/// What a check found, in a few words; else why not.
type Found = Result<String, BoxError>;

/// Runs all checks. Without a lab, those that need one are not run.
pub(crate) fn run(runtime: &Runtime, lab: Result<(), LabError>) -> ExitCode {
    let mut tally = Tally::default();
    tally.check("tcp", || within(runtime, direct(TCP)));
    tally.check("quic", || within(runtime, direct(QUIC)));
    tally.check("websocket", || within(runtime, direct(WEBSOCKET)));
    tally.check("relay", || within(runtime, relay()));
    tally.check("announcements", || within(runtime, announcements()));
    tally.check("bitswap", || within(runtime, bitswap()));
    match lab {
        Ok(()) => {
            tally.check("mdns", mdns);
            tally.check("hole punch", hole_punch);
        }
        Err(error) => {
            for name in ["mdns", "hole punch"] {
                tally.not_run(name, &explain(&error));
            }
        }
    }
    tally.finish()
}

#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
    not_run: u32,
}

impl Tally {
    fn check(&mut self, name: &str, check: impl FnOnce() -> Found) {
        let began = now();
        let found = check();
        let took = began.elapsed().as_millis();
        match found {
            Ok(what) => {
                self.passed += 1;
                println!("ok      {name:<14} {took:>6} ms  {what}");
            }
            Err(error) => {
                self.failed += 1;
                println!("FAILED  {name:<14} {took:>6} ms  {}", explain(&*error));
            }
        }
    }

    fn not_run(&mut self, name: &str, why: &str) {
        self.not_run += 1;
        println!("NOT RUN {name:<14}            {why}");
    }

    fn finish(self) -> ExitCode {
        let Self {
            passed,
            failed,
            not_run,
        } = self;
        println!("{passed} passed, {failed} failed, {not_run} not run");
        match failed {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

fn within(runtime: &Runtime, check: impl Future<Output = Found>) -> Found {
    let check = async { tokio::time::timeout(PATIENCE, check).await };
    let found = runtime.block_on(check);
    found.unwrap_or_else(|_| Err(format!("not done after {PATIENCE:?}").into()))
}

async fn host(listen: &str) -> Result<Host, BoxError> {
    Host::start(quiet().listen_addrs(vec![listen.parse()?])).await
}

/// Two nodes connect, and bytes come back as they went.
async fn direct(listen: &str) -> Found {
    let (one, two) = (host(listen).await?, host(listen).await?);
    let mut incoming = two.node.register_protocol(ECHO).await?;
    let began = now();
    let peer = one.node.connect(two.address()?).await?;
    let connected = began.elapsed();
    let round_trip = ping(&one.node, peer).await?;
    let began = now();
    let echo = async {
        let (_, stream) = incoming.next().await.ok_or("no stream came")?;
        let (reader, mut writer) = stream.split();
        futures::io::copy(reader, &mut writer).await?;
        writer.close().await?;
        Ok::<_, BoxError>(())
    };
    let send = async {
        let (mut reader, mut writer) = one.node.open_stream(peer, ECHO).await?.split();
        let sent = random();
        let write = async {
            writer.write_all(&sent).await?;
            writer.close().await
        };
        let mut received = Vec::new();
        let read = reader.read_to_end(&mut received);
        futures::try_join!(write, read)?;
        same(&sent, &received)
    };
    futures::try_join!(echo, send)?;
    Ok(format!(
        "connected in {connected:.1?}, ping {round_trip:.1?}, 1 MiB there and back in {:.1?}",
        began.elapsed()
    ))
}

/// A block comes from a node that is named by its relay alone.
async fn relay() -> Found {
    let relay = quiet()
        .listen_addrs(vec![TCP.parse()?])
        .enable_relay_server(true)
        .relay_circuit_bytes(0)
        .relay_circuit_duration(Duration::ZERO);
    let relay = Host::start(relay).await?;
    let hidden = quiet()
        .listen_addrs(vec![TCP.parse()?])
        .enable_dcutr(false)
        .relays(relay.addresses());
    let hidden = Host::start(hidden).await?;
    let began = now();
    let mut events = hidden.node.events();
    while hidden.node.status().await?.reservations.is_empty() {
        events.next().await.ok_or("the node has stopped")?;
    }
    let reserved = began.elapsed();
    let circuit: Multiaddr = relay
        .address()?
        .with(Protocol::P2pCircuit)
        .with(Protocol::P2p(hidden.node.peer_id()));
    let data = random();
    let added = files::add(hidden.node.store(), &data[..], AddOptions::default()).await?;
    let getter = quiet().listen_addrs(vec![TCP.parse()?]).enable_dcutr(false);
    let getter = Host::start(getter).await?;
    let session = getter
        .node
        .session(SessionOptions::default().peers([circuit]));
    let output = getter.path("got");
    let began = now();
    files::get(&session, added.cid, &output, GetOptions::default()).await?;
    same(&data, &std::fs::read(output)?)?;
    let carried = session.progress().relayed;
    if carried < MIB as u64 {
        return Err(format!("the relay carried {carried} bytes of 1 MiB").into());
    }
    Ok(format!(
        "reserved in {reserved:.1?}, 1 MiB through it in {:.1?}",
        began.elapsed()
    ))
}

/// Two nodes that know a third alone hear of each other over gossipsub.
async fn announcements() -> Found {
    // Of loopback addresses nobody is told; nobody dials this one.
    let elsewhere: Multiaddr = "/ip4/203.0.113.7/tcp/9100".parse()?;
    let config = || {
        let config = quiet().enable_pubsub_discovery(true);
        config.pubsub_announce_interval(Duration::from_secs(1))
    };
    let listening = config().listen_addrs(vec![TCP.parse()?]);
    let hub = Host::start(listening.clone()).await?;
    let hears = Host::start(listening.clone()).await?;
    let tells = Host::start(listening.external_addrs(vec![elsewhere.clone()])).await?;
    let mut events = hears.node.events();
    let began = now();
    for host in [&hears, &tells] {
        host.node.connect(hub.address()?).await?;
    }
    while let Some(event) = events.next().await {
        if let Event::Discovered {
            peer,
            addresses,
            by: Discovery::Pubsub,
        } = event
            && peer == tells.node.peer_id()
        {
            let is_it = addresses
                .iter()
                .any(|address| address.starts_with(&elsewhere));
            return match is_it {
                true => Ok(format!(
                    "heard of through a third node after {:.1?}",
                    began.elapsed()
                )),
                false => Err(format!("heard of at {addresses:?}").into()),
            };
        }
    }
    Err("the node has stopped".into())
}

/// A file passes over bitswap.
async fn bitswap() -> Found {
    let (one, two) = (host(TCP).await?, host(TCP).await?);
    let data = random().repeat(8);
    let added = files::add(one.node.store(), &data[..], AddOptions::default()).await?;
    two.node.connect(one.address()?).await?;
    let session = two.node.session(SessionOptions::default());
    let output = two.path("got");
    let began = now();
    files::get(&session, added.cid, &output, GetOptions::default()).await?;
    let took = began.elapsed();
    same(&data, &std::fs::read(output)?)?;
    Ok(format!("8 MiB in {} blocks in {took:.1?}", added.blocks))
}

/// Two hosts of one network find each other.
fn mdns() -> Found {
    let network = Lab::new()
        .nat(NatKind::PortRestricted)
        .host("alice")
        .host("bob")
        .start()?;
    let directory = scratch()?;
    let start = |name| Node::start(network.host(name)?, directory.path(), NodeConfig::default());
    let (alice, bob) = (start("alice")?, start("bob")?);
    let began = now();
    bob.await_api("/api/peers", "alice", PATIENCE, |peers| {
        let mut peers = peers.as_array().into_iter().flatten();
        peers.any(|peer| peer.get("peer_id").and_then(|id| id.as_str()) == Some(alice.peer_id()))
    })?;
    Ok(format!(
        "two hosts of one network are connected after {:.1?}",
        began.elapsed()
    ))
}

/// Two hosts, each behind a NAT, begin over a relay and go on directly.
fn hole_punch() -> Found {
    let nat = NatKind::PortRestricted;
    let pair = Pair::start(Scenario::new(nat, nat, Transport::Quic))?;
    let file = pair.directory().join("sent");
    random_file(&file, 8 * MIB, 8)?;
    let report = pair.transfer(&file, PATIENCE)?;
    let (Some(done), Some(direct)) = (report.done, report.direct) else {
        return Err(format!("not directly: {report}\n{}", report.errors).into());
    };
    if sha256(&file)? != sha256(&pair.output())? {
        return Err("another file arrived".into());
    }
    Ok(format!(
        "direct through two {nat} NATs after {direct:.1?}: {} bytes over the relay, {} directly",
        done.relayed, done.direct
    ))
}

fn random() -> Vec<u8> {
    let mut data = vec![0; MIB];
    rand::fill(&mut data[..]);
    data
}

fn same(sent: &[u8], received: &[u8]) -> Result<(), BoxError> {
    match sent == received {
        true => Ok(()),
        false => Err(format!(
            "{} bytes went, {} came, or others",
            sent.len(),
            received.len()
        )
        .into()),
    }
}
