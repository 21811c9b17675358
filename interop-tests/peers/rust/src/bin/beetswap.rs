//! beetswap 0.5.0, a bitswap behaviour for libp2p 0.56, with its own in-memory store on both sides.
//!
//! Keep runs at 1,024 blocks or fewer: it stalls for 30 s after every 1,024 served wants of a connection. Longer ones end after `PATIENCE`
//! with what has come by then.

use anypath_rust_peers::{Result, Role, Task, Transport, announce, report, stdin_closed};
use blockstore::{Blockstore, InMemoryBlockstore};
use futures::StreamExt;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, Swarm, SwarmBuilder, noise, tcp, yamux};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Two of its stalls, and what comes after.
const PATIENCE: Duration = Duration::from_secs(65);

type Store = InMemoryBlockstore<64>;
type Bitswap = beetswap::Behaviour<64, Store>;

#[tokio::main]
async fn main() -> Result<()> {
    let task = Task::from_args()?;
    match &task.role {
        Role::Seed => seed(&task).await,
        Role::Leech { window, addresses } => leech(&task, *window, addresses).await,
    }
}

fn swarm(store: Arc<Store>) -> Result<Swarm<Bitswap>> {
    Ok(SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            noise::Config::new,
            yamux::Config::default,
        )?
        .with_quic()
        .with_behaviour(|_| Bitswap::new(store))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build())
}

async fn seed(task: &Task) -> Result<()> {
    let store = Arc::new(Store::new());
    for (cid, data) in task.all() {
        store.put_keyed(&cid, &data).await?;
    }
    let mut swarm = swarm(store)?;
    swarm.listen_on(match task.transport {
        Transport::Tcp => "/ip4/127.0.0.1/tcp/0".parse()?,
        Transport::Quic => "/ip4/127.0.0.1/udp/0/quic-v1".parse()?,
    })?;
    let mut closed = std::pin::pin!(stdin_closed());
    loop {
        tokio::select! {
            event = swarm.select_next_some() => if let SwarmEvent::NewListenAddr { address, .. } = event {
                announce(address.with(Protocol::P2p(*swarm.local_peer_id())));
            },
            () = &mut closed => return Ok(()),
        }
    }
}

async fn leech(task: &Task, window: usize, addresses: &[String]) -> Result<()> {
    let wanted: Vec<_> = task.all().map(|(cid, _)| cid).collect();
    let mut swarm = swarm(Arc::new(Store::new()))?;
    for address in addresses {
        swarm.dial(address.parse::<Multiaddr>()?)?;
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::ConnectionEstablished { .. } => break,
                SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
                _ => {}
            }
        }
    }

    let began = Instant::now();
    let (mut next, mut bytes) = (wanted.iter(), 0);
    let mut open = HashSet::new();
    for cid in next.by_ref().take(window) {
        open.insert(swarm.behaviour_mut().get(cid));
    }
    let patience = tokio::time::sleep(PATIENCE);
    let mut patience = std::pin::pin!(patience);
    while !open.is_empty() {
        let event = tokio::select! {
            event = swarm.select_next_some() => event,
            () = &mut patience => break,
        };
        match event {
            SwarmEvent::Behaviour(beetswap::Event::GetQueryResponse { query_id, data })
                if open.remove(&query_id) =>
            {
                bytes += data.len() as u64;
                if let Some(cid) = next.next() {
                    open.insert(swarm.behaviour_mut().get(cid));
                }
            }
            SwarmEvent::Behaviour(beetswap::Event::GetQueryError { error, .. }) => {
                return Err(error.into());
            }
            SwarmEvent::ConnectionClosed { .. } => {
                return Err("the seed closed the connection".into());
            }
            _ => {}
        }
    }
    report(bytes, began.elapsed());
    Ok(())
}
