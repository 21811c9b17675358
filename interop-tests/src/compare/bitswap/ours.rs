//! anypath-bitswap, with a memory store where blocks are kept.

use super::Load;
use crate::compare::swarm;
use crate::compare::{Error, blocks};
use anypath_bitswap::{Behaviour, Block, Config, Event, Executor, MemorySource, Priority};
use futures::StreamExt as _;
use futures::executor::block_on;
use libp2p::Multiaddr;
use libp2p::swarm::SwarmEvent;
use std::sync::Arc;
use tokio::time::Instant;

/// What the manager sets too: hashing on threads of its own, beside those that read the sockets.
fn config() -> Result<Config, Error> {
    let executor = Executor::new(|work| blocking::unblock(|| block_on(work)).detach());
    Ok(Config::builder().executor(Some(executor)).build()?)
}

/// Serves every block.
pub(super) async fn seed(load: Load, address: Multiaddr) -> Result<(), Error> {
    let source = Arc::new(MemorySource::new());
    for (cid, data) in blocks::all(load.blocks, load.block_bytes) {
        source.insert(Block::new(cid, data)?);
    }
    let mut swarm = swarm::direct(Behaviour::new(config()?, source))?;
    let address = swarm::listen_on(&mut swarm, address).await?;
    swarm::serve(&mut swarm, &address).await;
    Ok(())
}

/// Wants every block at once, in one session; each is verified, and stored if they are kept, when it counts.
pub(super) async fn leech(load: Load, addresses: Vec<Multiaddr>, keep: bool) -> Result<(), Error> {
    let wanted: Vec<_> = blocks::all(load.blocks, load.block_bytes)
        .map(|(cid, _)| cid)
        .collect();
    let store = Arc::new(MemorySource::new());
    let mut swarm = swarm::direct(Behaviour::new(config()?, store.clone()))?;
    let mut peers = Vec::new();
    for address in addresses {
        peers.push(swarm::connect(&mut swarm, address).await?);
    }

    let began = Instant::now();
    let bitswap = swarm.behaviour_mut();
    let session = bitswap.new_session();
    for peer in &peers {
        bitswap.add_session_peer(session, *peer);
    }
    for cid in wanted {
        bitswap.want(session, cid, Priority::default());
    }
    let (mut arrived, mut received) = (0, 0);
    while arrived < load.blocks {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(Event::Block { ticket, block, .. }) => {
                let size = block.data().len();
                if keep {
                    store.insert(block);
                }
                swarm.behaviour_mut().taken(ticket, size);
                arrived += 1;
                received += size as u64;
            }
            SwarmEvent::Behaviour(Event::ProtocolViolation { violation, .. }) => {
                return Err(violation.into());
            }
            SwarmEvent::ConnectionClosed { .. } => {
                return Err("the seed closed the connection".into());
            }
            _ => {}
        }
    }
    println!("done {received} {}", began.elapsed().as_nanos());
    let ledgers = peers
        .iter()
        .filter_map(|peer| swarm.behaviour().ledger(*peer));
    println!(
        "vain {}",
        ledgers.map(|ledger| ledger.unwanted_bytes).sum::<u64>()
    );
    Ok(())
}
