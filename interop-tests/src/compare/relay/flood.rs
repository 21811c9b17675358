//! Peers that ask for reservations 10,000 times a second, and what a client that does not notices of it.

use super::{Implementation, start};
use crate::compare::figure::{Figure, Unit};
use crate::compare::swarm::{self, Transport};
use crate::compare::{Effort, Error, endpoint};
use anypath_relay::HOP_PROTOCOL_NAME;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::{Multiaddr, PeerId, Swarm};
use std::io;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

/// Hostile peers, and how often they ask, all together.
const PEERS: u32 = 100;
const PER_SECOND: u32 = 10_000;

/// Honest peers, and what each asks in each phase: less than its share of any rate limit.
const HONEST: usize = 20;
const ASKED: usize = 10;

/// Between two requests of any honest peer.
const PAUSE: Duration = Duration::from_millis(10);

/// Until flooders must be gone.
const GRACE: Duration = Duration::from_secs(1);

/// Before a flooder that was thrown out comes back.
const RETURN: Duration = Duration::from_secs(1);

/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// `HopMessage { type = RESERVE }` with its length.
const RESERVE: [u8; 3] = [2, 0x08, 0x00];

/// `relay.flood.…`: milliseconds of an honest client's reserve at its 99th percentile, and what the flood leaves in memory.
pub(super) async fn measure(effort: Effort, report: &mut dyn FnMut(Figure)) -> Result<(), Error> {
    let (mut calm, mut stock, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.runs().min(5) {
        let ours = flooded(Implementation::Ours).await?;
        let theirs = flooded(Implementation::Stock).await?;
        calm.push((ours.during, ours.before));
        stock.push((ours.during, theirs.during));
        memory.push((ours.kilobytes, theirs.kilobytes));
    }
    report(Figure::new(
        "relay.flood.reserve_p99.unloaded".to_owned(),
        Unit::Milliseconds,
        calm,
    ));
    report(Figure::new(
        "relay.flood.reserve_p99.stock".to_owned(),
        Unit::Milliseconds,
        stock,
    ));
    report(Figure::new(
        "relay.flood.memory.stock".to_owned(),
        Unit::Kilobytes,
        memory,
    ));
    Ok(())
}

struct Flooded {
    before: f64,
    during: f64,
    kilobytes: f64,
}

async fn flooded(relay: Implementation) -> Result<Flooded, Error> {
    let mut relay = start(relay, "relay", &[Transport::Tcp.name(), "--defended"])?;
    let address = relay.line("listening").await?;
    let mut honest = start(Implementation::Stock, "honest", &[&address])?;
    let [before] = honest.numbers("p99").await?;
    let empty = relay.anonymous_bytes()?;
    let mut flood = start(Implementation::Stock, "flood", &[&address])?;
    flood.line("flooding").await?;
    sleep(GRACE).await;
    honest.go_on().await?;
    let [during] = honest.numbers("p99").await?;
    let full = relay.anonymous_bytes()?;
    for endpoint in [flood, honest, relay] {
        endpoint.end().await?;
    }
    Ok(Flooded {
        before: before as f64 / 1e6,
        during: during as f64 / 1e6,
        kilobytes: (full as f64 - empty as f64) / 1e3,
    })
}

type Node = Swarm<libp2p_stream::Behaviour>;

/// A node that speaks hop by hand.
async fn connected(relay: &Multiaddr) -> Result<(Node, PeerId), Error> {
    let mut swarm = swarm::direct(libp2p_stream::Behaviour::new())?;
    let peer = swarm::connect(&mut swarm, relay.clone()).await?;
    Ok((swarm, peer))
}

/// Asks for a reservation; true if it is granted.
async fn reserve(mut control: libp2p_stream::Control, relay: PeerId) -> io::Result<bool> {
    let mut stream = control
        .open_stream(relay, HOP_PROTOCOL_NAME)
        .await
        .map_err(io::Error::other)?;
    stream.write_all(&RESERVE).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    // A reservation is what makes an answer longer than a bare status.
    Ok(answer.len() > 16)
}

/// Asks as often as the relay allows, once before the flood and, after a line on stdin, once during it.
pub(super) async fn honest(relay: Multiaddr) -> Result<(), Error> {
    let mut peers = Vec::new();
    let mut running = JoinSet::new();
    for _ in 0..HONEST {
        let (mut swarm, peer) = connected(&relay).await?;
        peers.push((swarm.behaviour().new_control(), peer));
        running.spawn(async move { swarm::beside(&mut swarm, std::future::pending::<()>()).await });
    }
    println!("p99 {}", p99(&peers).await?.as_nanos());
    endpoint::next_line().await?;
    println!("p99 {}", p99(&peers).await?.as_nanos());
    endpoint::stdin_closed().await;
    Ok(())
}

async fn p99(peers: &[(libp2p_stream::Control, PeerId)]) -> Result<Duration, Error> {
    let mut times = Vec::new();
    for _ in 0..ASKED {
        for (control, peer) in peers {
            let began = Instant::now();
            let granted = timeout(PATIENCE, reserve(control.clone(), *peer)).await??;
            times.push(began.elapsed());
            if !granted {
                return Err("an honest client was refused".into());
            }
            sleep(PAUSE).await;
        }
    }
    times.sort_unstable();
    let at = times.len() * 99 / 100;
    Ok(times.get(at).copied().unwrap_or_default())
}

/// Floods until stdin closes.
pub(super) async fn flood(relay: Multiaddr) -> Result<(), Error> {
    let mut nodes = Vec::new();
    for _ in 0..PEERS {
        nodes.push(connected(&relay).await?);
    }
    println!("flooding {PER_SECOND}");
    let mut running = JoinSet::new();
    for (swarm, peer) in nodes {
        running.spawn(hostile(swarm, peer, relay.clone()));
    }
    endpoint::stdin_closed().await;
    Ok(())
}

async fn hostile(mut swarm: Node, relay: PeerId, address: Multiaddr) {
    let mut asking = JoinSet::new();
    let mut every = interval(Duration::from_secs(1) * PEERS / PER_SECOND);
    let mut back = interval(RETURN);
    loop {
        tokio::select! {
            _ = every.tick() => {
                if swarm.is_connected(&relay) {
                    asking.spawn(reserve(swarm.behaviour().new_control(), relay));
                }
            }
            _ = back.tick() => {
                if !swarm.is_connected(&relay) {
                    let again = DialOpts::peer_id(relay).addresses(vec![address.clone()]);
                    // It is refused while the ban lasts.
                    let _ = swarm.dial(again.build());
                }
            }
            _ = futures::StreamExt::select_next_some(&mut swarm) => {}
            Some(_) = asking.join_next() => {}
        }
    }
}
