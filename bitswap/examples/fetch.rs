//! Two nodes in one process: one serves a block, the other fetches it, without the manager.
//!
//! `cargo run -p anypath-bitswap --example fetch`

#![expect(clippy::disallowed_methods, reason = "the example runs on tokio")]

use std::{error::Error, sync::Arc};

use anypath_bitswap::{Behaviour, Block, Config, Event, MemorySource, Priority};
use futures::StreamExt;
use libp2p_swarm::{Swarm, SwarmEvent};
use libp2p_swarm_test::SwarmExt;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let block = Block::raw("any peer, any path");
    let blocks = Arc::new(MemorySource::new());
    blocks.insert(block.clone());

    let mut server = Swarm::new_ephemeral_tokio(|_| Behaviour::new(Config::default(), blocks));
    let nothing = Arc::new(MemorySource::new());
    let mut client = Swarm::new_ephemeral_tokio(|_| Behaviour::new(Config::default(), nothing));
    server.listen().with_memory_addr_external().await;
    client.connect(&mut server).await;
    tokio::spawn(server.loop_on_next());

    let session = client.behaviour_mut().new_session();
    client
        .behaviour_mut()
        .want(session, *block.cid(), Priority::default());
    loop {
        if let SwarmEvent::Behaviour(Event::Block {
            ticket,
            block,
            peer,
            ..
        }) = client.select_next_some().await
        {
            println!("{} from {peer:?}: {:?}", block.cid(), block.data());
            client.behaviour_mut().taken(ticket, block.data().len());
            return Ok(());
        }
    }
}
