//! anypath-bitswap with a memory store on both sides.

use crate::compare::swarm::{self, Transport};
use crate::compare::{Error, blocks};
use anypath_bitswap::{Behaviour, Block, Config, Event, MemorySource, Priority};
use futures::StreamExt as _;
use libp2p::Multiaddr;
use libp2p::swarm::SwarmEvent;
use std::sync::Arc;
use tokio::time::Instant;

/// Serves every block.
pub(super) async fn seed(transport: Transport, count: u64, bytes: usize) -> Result<(), Error> {
    let source = Arc::new(MemorySource::new());
    for (cid, data) in blocks::all(count, bytes) {
        source.insert(Block::new(cid, data)?);
    }
    let mut swarm = swarm::direct(Behaviour::new(Config::default(), source))?;
    let address = swarm::listen(&mut swarm, transport).await?;
    swarm::serve(&mut swarm, &address).await;
    Ok(())
}

/// Wants every block at once, in one session; each is verified and stored when it counts.
pub(super) async fn leech(address: Multiaddr, count: u64, bytes: usize) -> Result<(), Error> {
    let wanted: Vec<_> = blocks::all(count, bytes).map(|(cid, _)| cid).collect();
    let store = Arc::new(MemorySource::new());
    let mut swarm = swarm::direct(Behaviour::new(Config::default(), store.clone()))?;
    let peer = swarm::connect(&mut swarm, address).await?;

    let began = Instant::now();
    let bitswap = swarm.behaviour_mut();
    let session = bitswap.new_session();
    bitswap.add_session_peer(session, peer);
    for cid in wanted {
        bitswap.want(session, cid, Priority::default());
    }
    let (mut arrived, mut received) = (0, 0);
    while arrived < count {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(Event::Block { ticket, block, .. }) => {
                let size = block.data().len();
                store.insert(block);
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
    Ok(())
}
