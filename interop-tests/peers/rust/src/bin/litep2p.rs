//! litep2p 0.16.0 over TCP. Its bitswap is the messages alone (no session, retry or store): the seed answers each request with its blocks,
//! the leech keeps `window` requests open and drops what it has checked, so it does less than a client with a store.

use anypath_rust_peers::{Result, Role, Task, Transport, announce, report, stdin_closed};
use cid::Cid;
use futures::StreamExt;
use litep2p::config::ConfigBuilder;
use litep2p::protocol::libp2p::bitswap::{
    BitswapEvent, BitswapHandle, Config as BitswapConfig, ResponseType, WantType,
};
use litep2p::transport::tcp::config::Config as TcpConfig;
use litep2p::types::multiaddr::{Multiaddr, Protocol};
use litep2p::{Litep2p, Litep2pEvent, PeerId};
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;

/// A request sent at once after `ConnectionEstablished` is sometimes lost without an error.
const SETTLE: Duration = Duration::from_millis(20);

#[tokio::main]
async fn main() -> Result<()> {
    let task = Task::from_args()?;
    if task.transport != Transport::Tcp {
        return Err("litep2p is compared over TCP only".into());
    }
    match &task.role {
        Role::Seed => seed(&task).await,
        Role::Leech { window, addresses } => match addresses.as_slice() {
            [address] => leech(&task, *window, address).await,
            _ => Err("litep2p is compared with one seed only".into()),
        },
    }
}

fn node() -> Result<(Litep2p, BitswapHandle)> {
    let (config, bitswap) = BitswapConfig::new();
    let node = Litep2p::new(
        ConfigBuilder::new()
            .with_tcp(TcpConfig {
                listen_addresses: vec!["/ip4/127.0.0.1/tcp/0".parse()?],
                // Off by default, and then Nagle and delayed acknowledgements rule.
                nodelay: true,
                ..TcpConfig::default()
            })
            .with_libp2p_bitswap(config)
            .with_keep_alive_timeout(Duration::from_secs(60))
            .build(),
    )?;
    Ok((node, bitswap))
}

async fn seed(task: &Task) -> Result<()> {
    let store: HashMap<Cid, Vec<u8>> = task.all().collect();
    let (mut node, mut bitswap) = node()?;
    let address = node
        .listen_addresses()
        .next()
        .ok_or("no listen address")?
        .clone();
    announce(address);
    let mut closed = std::pin::pin!(stdin_closed());
    loop {
        tokio::select! {
            _ = node.next_event() => {}
            event = bitswap.next() => if let Some(BitswapEvent::Request { peer, cids }) = event {
                let blocks = cids
                    .into_iter()
                    .filter_map(|(cid, _)| store.get(&cid).map(|block| (cid, block)))
                    .map(|(cid, block)| ResponseType::Block { cid, block: block.clone() })
                    .collect();
                bitswap.send_response(peer, blocks).await;
            },
            () = &mut closed => return Ok(()),
        }
    }
}

async fn leech(task: &Task, window: usize, address: &str) -> Result<()> {
    let mut missing: HashSet<Cid> = HashSet::new();
    let mut wanted = Vec::new();
    for (cid, _) in task.all() {
        missing.insert(cid);
        wanted.push(cid);
    }
    let (mut node, mut bitswap) = node()?;
    let address: Multiaddr = address.parse()?;
    let Some(Protocol::P2p(peer)) = address.iter().last() else {
        return Err("the address names no peer".into());
    };
    let peer = PeerId::from_multihash(peer).map_err(|_| "the address names no peer")?;
    node.dial_address(address).await?;
    loop {
        match node.next_event().await {
            Some(Litep2pEvent::ConnectionEstablished { .. }) => break,
            Some(Litep2pEvent::DialFailure { error, .. }) => return Err(error.to_string().into()),
            Some(_) => {}
            None => return Err("the node stopped".into()),
        }
    }
    tokio::time::sleep(SETTLE).await;

    let began = Instant::now();
    let (mut next, mut bytes) = (wanted.into_iter().map(|cid| (cid, WantType::Block)), 0);
    bitswap
        .send_request(peer, next.by_ref().take(window).collect())
        .await;
    while !missing.is_empty() {
        tokio::select! {
            event = node.next_event() => match event {
                Some(Litep2pEvent::ConnectionClosed { .. }) | None => return Err("the connection closed".into()),
                Some(_) => {}
            },
            event = bitswap.next() => {
                let Some(BitswapEvent::Response { responses, .. }) = event else { continue };
                let mut arrived = 0;
                for response in responses {
                    // litep2p computes `cid` from the data: a block that was not asked for does not match.
                    if let ResponseType::Block { cid, block } = response && missing.remove(&cid) {
                        arrived += 1;
                        bytes += block.len() as u64;
                    }
                }
                let more: Vec<_> = next.by_ref().take(arrived).collect();
                if !more.is_empty() {
                    bitswap.send_request(peer, more).await;
                }
            }
        }
    }
    report(bytes, began.elapsed());
    Ok(())
}
