//! The floor: one libp2p stream that carries the blocks one after the other, and a receiver that checks each hash.

use super::Load;
use crate::compare::swarm;
use crate::compare::{Error, blocks};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::{Multiaddr, StreamProtocol};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/anypath/compare/raw/1.0.0");

/// Writes every block to each stream that opens.
pub(super) async fn seed(load: Load, address: Multiaddr) -> Result<(), Error> {
    let held: Vec<_> = blocks::all(load.blocks, load.block_bytes)
        .map(|(_, data)| data)
        .collect();
    let behaviour = libp2p_stream::Behaviour::new();
    let mut incoming = behaviour.new_control().accept(PROTOCOL)?;
    let mut swarm = swarm::direct(behaviour)?;
    let address = swarm::listen_on(&mut swarm, address).await?;
    println!("listening {address}");
    let serving = async {
        while let Some((_, mut stream)) = incoming.next().await {
            for block in &held {
                stream.write_all(block).await?;
            }
            stream.close().await?;
        }
        Ok::<_, std::io::Error>(())
    };
    let stop = crate::compare::endpoint::stdin_closed();
    swarm::beside(&mut swarm, async {
        tokio::select! {
            done = serving => done,
            () = stop => Ok(()),
        }
    })
    .await?;
    Ok(())
}

/// Reads and checks every block.
pub(super) async fn leech(load: Load, address: Multiaddr) -> Result<(), Error> {
    let expected: Vec<_> = blocks::all(load.blocks, load.block_bytes)
        .map(|(cid, _)| cid)
        .collect();
    let behaviour = libp2p_stream::Behaviour::new();
    let mut control = behaviour.new_control();
    let mut swarm = swarm::direct(behaviour)?;
    let peer = swarm::connect(&mut swarm, address).await?;

    let began = Instant::now();
    let fetching = async {
        let mut stream = control.open_stream(peer, PROTOCOL).await?;
        let mut block = vec![0; load.block_bytes];
        for cid in &expected {
            stream.read_exact(&mut block).await?;
            if Sha256::digest(&block).as_slice() != cid.hash().digest() {
                return Err(format!("a block does not hash to {cid}").into());
            }
        }
        Ok::<_, Error>(())
    };
    swarm::beside(&mut swarm, fetching).await?;
    println!("done {} {}", load.bytes(), began.elapsed().as_nanos());
    println!("vain 0");
    Ok(())
}
