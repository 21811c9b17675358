//! Fetches a file, or any DAG of dag-pb nodes and raw leaves, from a peer, and writes its leaves to stdout.
//!
//! `cargo run --release -p anypath-bitswap --example fetch -- /ip4/127.0.0.1/tcp/4001/p2p/12D3… bafy… >FILE`
//!
//! The peer may be any that speaks bitswap: kubo, Helia, `--example serve`.

#![expect(clippy::disallowed_methods, reason = "the example runs on tokio")]

mod node;

use std::{
    collections::{HashMap, HashSet},
    error::Error,
    io::Write,
    sync::Arc,
};

use anypath_bitswap::{
    Behaviour, BlockSource, Config, Event, Executor, MemorySource, Priority, SessionOptions,
};
use cid::Cid;
use futures::StreamExt;
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_swarm::SwarmEvent;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: fetch ADDRESS CID";
    let mut arguments = std::env::args().skip(1);
    let address: Multiaddr = arguments.next().ok_or(usage)?.parse()?;
    let root: Cid = arguments.next().ok_or(usage)?.parse()?;
    let Some(Protocol::P2p(peer)) = address.iter().last() else {
        return Err("the address must end in /p2p/…".into());
    };

    // Hashing runs beside the network's own work.
    let executor = Executor::new(|work| drop(tokio::spawn(work)));
    let config = Config::builder().executor(Some(executor)).build()?;
    let store = Arc::new(MemorySource::new());
    let mut swarm = node::swarm(Behaviour::new(config, store.clone()))?;
    swarm.dial(address)?;

    let bitswap = swarm.behaviour_mut();
    let session = bitswap.new_session_with(SessionOptions::default().descend(4));
    bitswap.add_session_peer(session, peer);
    // Peers that do not have a block may be asked a while, but not before those who do.
    let mut open = HashSet::from([bitswap.want(session, root, Priority::default())]);
    let mut links: HashMap<Cid, Vec<Cid>> = HashMap::new();
    while !open.is_empty() {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(Event::Block { ticket, block, .. }) => {
                open.remove(&ticket);
                store.insert(block.clone());
                let (cid, data) = block.into_parts();
                let bitswap = swarm.behaviour_mut();
                bitswap.notify_new_blocks(&[cid]);
                bitswap.taken(ticket, data.len());
                let children = store.links(&cid, &data);
                for child in &children {
                    if !links.contains_key(child) && store.size(child).is_none() {
                        open.insert(bitswap.want(session, *child, Priority::default()));
                    }
                }
                links.insert(cid, children);
            }
            SwarmEvent::Behaviour(Event::ProvidersWanted { cid, .. }) => {
                return Err(format!("the peer does not have {cid}").into());
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
            _ => {}
        }
    }

    // Depth first: a node's leaves are the file in its order.
    let mut out = std::io::stdout().lock();
    let mut stack = vec![root];
    while let Some(cid) = stack.pop() {
        match links.get(&cid).filter(|children| !children.is_empty()) {
            Some(children) => stack.extend(children.iter().rev()),
            None => out.write_all(&store.data(&cid).unwrap_or_default())?,
        }
    }
    Ok(())
}
