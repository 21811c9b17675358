//! Real swarms over libp2p's memory transport.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test may panic and runs on tokio"
)]

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anypath_bitswap::{
    Behaviour, Block, CircuitLimit, Config, Event, Executor, MemorySource, Priority, Role,
    SessionId, SessionOptions, Ticket,
};
use cid::Cid;
use futures::StreamExt;
use libp2p_core::{Transport, transport::MemoryTransport, upgrade};
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{
    ConnectionId, Swarm, SwarmEvent,
    dial_opts::{DialOpts, PeerCondition},
};
use libp2p_swarm_test::SwarmExt;
use multihash_codetable::{Code, MultihashDigest};

type Node = Swarm<Behaviour>;

fn node() -> (Node, Arc<MemorySource>) {
    node_with(Config::default())
}

fn node_with(config: Config) -> (Node, Arc<MemorySource>) {
    let source = Arc::new(MemorySource::new());
    let served = Arc::clone(&source);
    let swarm = Swarm::new_ephemeral_tokio(|_| Behaviour::new(config, served));
    (swarm, source)
}

/// Closes a connection that nobody has needed for `idle`.
fn node_that_closes_after(idle: Duration) -> (Node, Arc<MemorySource>) {
    let key = Keypair::generate_ed25519();
    let transport = MemoryTransport::default()
        .upgrade(upgrade::Version::V1)
        .authenticate(libp2p_plaintext::Config::new(&key))
        .multiplex(libp2p_yamux::Config::default())
        .boxed();
    let source = Arc::new(MemorySource::new());
    let behaviour = Behaviour::new(Config::default(), Arc::clone(&source) as _);
    let config = libp2p_swarm::Config::with_tokio_executor().with_idle_connection_timeout(idle);
    let id = key.public().to_peer_id();
    (Swarm::new(transport, behaviour, id, config), source)
}

fn blocks(count: usize, bytes: usize) -> Vec<Block> {
    (0..count)
        .map(|index| {
            let mut data = vec![(index % 251) as u8; bytes];
            for (target, source) in data.iter_mut().zip((index as u64).to_le_bytes()) {
                *target = source;
            }
            Block::raw(data)
        })
        .collect()
}

async fn connect(a: &mut Node, b: &mut Node) {
    b.listen().with_memory_addr_external().await;
    a.connect(b).await;
}

/// Connects over one more connection; its id on both sides.
async fn connect_again(a: &mut Node, b: &mut Node) -> [ConnectionId; 2] {
    b.listen().with_memory_addr_external().await;
    let address = b.external_addresses().next().unwrap().clone();
    let options = DialOpts::peer_id(*b.local_peer_id())
        .condition(PeerCondition::Always)
        .addresses(vec![address])
        .build();
    a.dial(options).unwrap();
    let mut ids = [None, None];
    while ids.contains(&None) {
        let (side, event) = tokio::select! {
            event = a.select_next_some() => (0, event),
            event = b.select_next_some() => (1, event),
        };
        if let SwarmEvent::ConnectionEstablished { connection_id, .. } = event {
            ids[side] = Some(connection_id);
        }
    }
    ids.map(Option::unwrap)
}

/// Runs a swarm in the background for the rest of the test.
fn spawn(mut swarm: Node) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    })
}

/// Drives `client` until all `tickets` are answered; who delivered how many, and how many
/// bytes nobody wanted.
async fn collect(client: &mut Node, mut tickets: HashMap<Ticket, Block>) -> HashMap<PeerId, usize> {
    let mut by = HashMap::new();
    let work = async {
        while !tickets.is_empty() {
            if let SwarmEvent::Behaviour(Event::Block {
                ticket,
                block,
                peer,
                ..
            }) = client.select_next_some().await
            {
                let wanted = tickets
                    .remove(&ticket)
                    .expect("one terminal event a ticket");
                assert_eq!(wanted, block);
                client.behaviour_mut().taken(ticket, block.data().len());
                *by.entry(peer.unwrap()).or_insert(0) += 1;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), work)
        .await
        .expect("all blocks within 30 s");
    by
}

/// Polls both until the condition on the second one holds.
async fn until(a: &mut Node, b: &mut Node, reached: impl Fn(&Behaviour) -> bool) {
    let work = async {
        while !reached(b.behaviour()) {
            let _ = futures::poll!(a.select_next_some());
            let _ = futures::poll!(b.select_next_some());
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), work)
        .await
        .expect("within 10 s");
}

fn want_all(client: &mut Node, session: SessionId, blocks: &[Block]) -> HashMap<Ticket, Block> {
    blocks
        .iter()
        .map(|block| {
            let bitswap = client.behaviour_mut();
            (
                bitswap.want(session, *block.cid(), Priority::default()),
                block.clone(),
            )
        })
        .collect()
}

#[tokio::test]
async fn a_block_is_found_at_a_connected_peer_nobody_named() {
    let (mut client, _) = node();
    let (mut server, source) = node();
    let wanted = blocks(1, 1000);
    source.insert(wanted[0].clone());
    connect(&mut client, &mut server).await;
    let server_id = *server.local_peer_id();
    spawn(server);
    let session = client.behaviour_mut().new_session();
    let tickets = want_all(&mut client, session, &wanted);
    assert_eq!(
        collect(&mut client, tickets).await,
        HashMap::from([(server_id, 1)])
    );
}

#[tokio::test]
async fn wants_issued_before_the_connection_leave_with_it() {
    let (mut client, _) = node();
    let (mut server, source) = node();
    let wanted = blocks(40, 20_000);
    wanted.iter().for_each(|block| source.insert(block.clone()));
    let session = client.behaviour_mut().new_session();
    let peer = *server.local_peer_id();
    client.behaviour_mut().add_session_peer(session, peer);
    let tickets = want_all(&mut client, session, &wanted);
    connect(&mut client, &mut server).await;
    spawn(server);
    assert_eq!(
        collect(&mut client, tickets).await.values().sum::<usize>(),
        40
    );
}

#[tokio::test]
async fn thousands_of_blocks_of_all_sizes_arrive() {
    let (mut client, _) = node();
    let (mut server, source) = node();
    let mut wanted = blocks(3000, 300);
    wanted.extend(blocks(40, 262_144));
    wanted.extend(blocks(4, 2 * 1024 * 1024));
    wanted.push(Block::raw(Vec::new()));
    wanted.iter().for_each(|block| source.insert(block.clone()));
    connect(&mut client, &mut server).await;
    let peer = *server.local_peer_id();
    spawn(server);
    let session = client.behaviour_mut().new_session();
    client.behaviour_mut().add_session_peer(session, peer);
    let tickets = want_all(&mut client, session, &wanted);
    let by = collect(&mut client, tickets).await;
    assert_eq!(by[&peer], wanted.len());
    let ledger = client.behaviour().ledger(peer).unwrap();
    assert_eq!(
        (ledger.blocks_received, ledger.unwanted_bytes),
        (wanted.len() as u64, 0)
    );
}

#[tokio::test]
async fn blocks_are_hashed_on_the_executor_if_there_is_one() {
    let jobs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&jobs);
    let executor = Executor::new(move |work| {
        counted.fetch_add(1, Ordering::Relaxed);
        drop(tokio::spawn(work));
    });
    let config = Config::builder().executor(Some(executor)).build().unwrap();
    let (mut client, _) = node_with(config);
    let (mut server, source) = node();
    connect(&mut client, &mut server).await;
    let peer = *server.local_peer_id();
    let wanted = blocks(40, 300_000);
    wanted.iter().for_each(|block| source.insert(block.clone()));
    let session = client.behaviour_mut().new_session();
    client.behaviour_mut().add_session_peer(session, peer);
    let tickets = want_all(&mut client, session, &wanted);
    spawn(server);
    assert_eq!(collect(&mut client, tickets).await[&peer], 40);
    assert_eq!(jobs.load(Ordering::Relaxed), 40);
}

/// Blocks the owner does not acknowledge close the request window, and `taken` opens it again.
#[tokio::test]
async fn an_owner_that_does_not_keep_up_is_not_flooded() {
    let config = Config::builder().max_unacknowledged_bytes(1024 * 1024);
    let (mut client, _) = node_with(config.build().unwrap());
    let (mut server, source) = node();
    connect(&mut client, &mut server).await;
    let (peer, us) = (*server.local_peer_id(), *client.local_peer_id());
    let wanted = blocks(40, 100_000);
    wanted.iter().for_each(|block| source.insert(block.clone()));
    let session = client.behaviour_mut().new_session();
    client.behaviour_mut().add_session_peer(session, peer);
    let mut tickets = want_all(&mut client, session, &wanted);
    let mut open = Vec::new();
    while !tickets.is_empty() {
        tokio::select! {
            event = client.select_next_some() => {
                if let SwarmEvent::Behaviour(Event::Block { ticket, block, .. }) = event {
                    tickets.remove(&ticket);
                    open.push((ticket, block.data().len()));
                    let held: usize = open.iter().map(|(_, bytes)| bytes).sum();
                    assert!(held <= 1024 * 1024 + 100_000, "{held}");
                }
            }
            _ = server.select_next_some() => {}
        }
        // Nothing more is on its way: what was sent was asked for.
        let sent = server
            .behaviour()
            .ledger(us)
            .map_or(0, |ledger| ledger.bytes_sent);
        if !open.is_empty() && sent == ((wanted.len() - tickets.len()) * 100_000) as u64 {
            for (ticket, bytes) in open.drain(..) {
                client.behaviour_mut().taken(ticket, bytes);
            }
        }
    }
}

#[tokio::test]
async fn four_seeders_share_the_work_and_nothing_comes_twice() {
    let (mut client, _) = node();
    let wanted = blocks(400, 50_000);
    let session = client.behaviour_mut().new_session();
    let mut seeders = BTreeSet::new();
    for _ in 0..4 {
        let (mut server, source) = node();
        wanted.iter().for_each(|block| source.insert(block.clone()));
        connect(&mut client, &mut server).await;
        let peer = *server.local_peer_id();
        seeders.insert(peer);
        client.behaviour_mut().add_session_peer(session, peer);
        spawn(server);
    }
    let tickets = want_all(&mut client, session, &wanted);
    let by = collect(&mut client, tickets).await;
    assert_eq!(by.keys().copied().collect::<BTreeSet<_>>(), seeders);
    for peer in seeders {
        assert_eq!(client.behaviour().ledger(peer).unwrap().unwanted_bytes, 0);
    }
}

#[tokio::test]
async fn a_provider_lost_mid_transfer_is_replaced() {
    let config = Config::builder()
        .initial_window_bytes(64 * 1024)
        .build()
        .unwrap();
    let (mut client, _) = node_with(config);
    let wanted = blocks(300, 30_000);
    let session = client.behaviour_mut().new_session();
    let mut tasks = HashMap::new();
    for _ in 0..2 {
        let (mut server, source) = node();
        wanted.iter().for_each(|block| source.insert(block.clone()));
        connect(&mut client, &mut server).await;
        let peer = *server.local_peer_id();
        client.behaviour_mut().add_session_peer(session, peer);
        tasks.insert(peer, spawn(server));
    }
    let mut tickets = want_all(&mut client, session, &wanted);
    while tickets.len() > 200 {
        if let SwarmEvent::Behaviour(Event::Block { ticket, block, .. }) =
            client.select_next_some().await
        {
            tickets.remove(&ticket);
            client.behaviour_mut().taken(ticket, block.data().len());
        }
    }
    let lost = *tasks.keys().next().unwrap();
    tasks[&lost].abort();
    client.disconnect_peer_id(lost).unwrap();
    let by = collect(&mut client, tickets).await;
    assert!(by.values().sum::<usize>() >= 200, "{by:?}");
}

#[tokio::test]
async fn a_block_added_later_is_delivered_to_those_who_wait() {
    let (mut client, _) = node();
    let (mut server, source) = node();
    connect(&mut client, &mut server).await;
    let peer = *server.local_peer_id();
    let wanted = blocks(2, 5000);
    let session = client.behaviour_mut().new_session();
    client.behaviour_mut().add_session_peer(session, peer);
    let tickets = want_all(&mut client, session, &wanted);
    until(&mut client, &mut server, |server| {
        server.wantlist().len() == 2
    })
    .await;
    assert_eq!(
        server.behaviour().wantlist()[0].requesters,
        [*client.local_peer_id()]
    );
    let cids: Vec<_> = wanted.iter().map(|block| *block.cid()).collect();
    wanted.iter().for_each(|block| source.insert(block.clone()));
    server.behaviour_mut().notify_new_blocks(&cids);
    spawn(server);
    assert_eq!(collect(&mut client, tickets).await[&peer], 2);
}

#[tokio::test]
async fn a_cancelled_want_leaves_the_servers_list() {
    let (mut client, _) = node();
    let (mut server, _source) = node();
    connect(&mut client, &mut server).await;
    let wanted = blocks(3, 100);
    let session = client.behaviour_mut().new_session();
    let tickets = want_all(&mut client, session, &wanted);
    until(&mut client, &mut server, |server| {
        server.wantlist().len() == 3
    })
    .await;
    client
        .behaviour_mut()
        .cancel(*tickets.keys().next().unwrap());
    until(&mut client, &mut server, |server| {
        server.wantlist().len() == 2
    })
    .await;
    client.behaviour_mut().end_session(session);
    until(&mut client, &mut server, |server| {
        server.wantlist().is_empty()
    })
    .await;
}

/// Either end closing it would lose the want.
#[tokio::test]
async fn a_connection_lives_while_a_want_waits_and_ends_when_it_is_idle() {
    const IDLE: Duration = Duration::from_millis(200);
    let (mut client, _) = node_that_closes_after(IDLE);
    let (mut server, source) = node_that_closes_after(IDLE);
    let late = blocks(1, 100);
    let session = client.behaviour_mut().new_session();
    want_all(&mut client, session, &late);
    server.listen_on("/memory/0".parse().unwrap()).unwrap();
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = server.select_next_some().await {
            break address;
        }
    };
    client.dial(address).unwrap();
    until(&mut client, &mut server, |server| {
        !server.wantlist().is_empty()
    })
    .await;
    let is_closed =
        |event: &SwarmEvent<Event>| matches!(event, SwarmEvent::ConnectionClosed { .. });
    // Ten times as long as an idle one.
    let waiting = async {
        loop {
            tokio::select! {
                event = client.select_next_some() => assert!(!is_closed(&event), "by the client"),
                event = server.select_next_some() => assert!(!is_closed(&event), "by the server"),
            }
        }
    };
    assert!(tokio::time::timeout(10 * IDLE, waiting).await.is_err());

    source.insert(late[0].clone());
    server.behaviour_mut().notify_new_blocks(&[*late[0].cid()]);
    let (mut got, mut closed) = (0, 0);
    let ending = async {
        while closed < 2 {
            let event = tokio::select! {
                event = client.select_next_some() => event,
                event = server.select_next_some() => event,
            };
            closed += usize::from(is_closed(&event));
            if let SwarmEvent::Behaviour(Event::Block { ticket, block, .. }) = event {
                assert_eq!(closed, 0, "it came over the connection that waited");
                client.behaviour_mut().taken(ticket, block.data().len());
                got += 1;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ending)
        .await
        .expect("nothing holds an idle connection");
    assert_eq!(got, 1);
}

#[tokio::test]
async fn what_does_not_fit_a_circuit_waits_for_a_better_connection() {
    let (mut client, _) = node();
    let (mut server, source) = node();
    let wanted = blocks(1, 200_000);
    source.insert(wanted[0].clone());
    let ids = connect_again(&mut client, &mut server).await;
    let limit = Some(CircuitLimit {
        bytes: Some(128 * 1024),
        duration: None,
    });
    let peer = *server.local_peer_id();
    client.behaviour_mut().set_circuit_limit(ids[0], limit);
    server.behaviour_mut().set_circuit_limit(ids[1], limit);
    let session = client.behaviour_mut().new_session();
    client.behaviour_mut().add_session_peer(session, peer);
    let tickets = want_all(&mut client, session, &wanted);
    let address = server.external_addresses().next().unwrap().clone();
    spawn(server);
    let allowed = loop {
        match client.select_next_some().await {
            SwarmEvent::Behaviour(Event::WaitingForDirect {
                ticket, allowed, ..
            }) => {
                assert!(tickets.contains_key(&ticket));
                break allowed;
            }
            SwarmEvent::Behaviour(Event::Block { .. }) => panic!("does not fit"),
            _ => {}
        }
    };
    assert!(allowed <= 128 * 1024, "{allowed}");
    let options = DialOpts::peer_id(peer)
        .condition(PeerCondition::Always)
        .addresses(vec![address])
        .build();
    client.dial(options).unwrap();
    collect(&mut client, tickets).await;
}

/// A dag-pb node that links to `children`.
fn dag_pb(children: &[Cid]) -> Block {
    let mut data = Vec::new();
    for child in children {
        let hash = child.to_bytes();
        data.extend([0x12, hash.len() as u8 + 2, 0x0a, hash.len() as u8]);
        data.extend(hash);
    }
    data.extend([0x0a, 0x02, 0x08, 0x02]);
    let cid = Cid::new_v1(0x70, Code::Sha2_256.digest(&data));
    Block::new(cid, data.into()).unwrap()
}

#[tokio::test]
async fn descend_pushes_the_path_to_the_first_leaf() {
    let (mut client, _) = node();
    let (mut server, source) = node();
    let leaves = blocks(174, 262_144 / 64);
    let index = dag_pb(&leaves.iter().map(|leaf| *leaf.cid()).collect::<Vec<_>>());
    let root = dag_pb(&[*index.cid()]);
    for block in leaves.iter().chain([&index, &root]) {
        source.insert(block.clone());
    }
    connect(&mut client, &mut server).await;
    let (peer, us) = (*server.local_peer_id(), *client.local_peer_id());
    let options = SessionOptions::default().descend(2);
    let session = client.behaviour_mut().new_session_with(options);
    client.behaviour_mut().add_session_peer(session, peer);
    for block in [&root, &index, &leaves[0]] {
        let tickets = want_all(&mut client, session, std::slice::from_ref(block));
        let work = collect(&mut client, tickets);
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                by = &mut work => {
                    assert_eq!(by[&peer], 1);
                    break;
                }
                _ = server.select_next_some() => {}
            }
        }
    }
    until(&mut client, &mut server, |server| {
        server.ledger(us).unwrap().blocks_sent == 3
    })
    .await;
    assert_eq!(server.behaviour().ledger(us).unwrap().wants_received, 1);
}

/// Connects to `server` and wants a block of it; gives what `collect` gives.
async fn wanting(
    server: &mut Node,
    block: Block,
    priority: i32,
) -> tokio::task::JoinHandle<HashMap<PeerId, usize>> {
    let (mut client, _) = node();
    client.connect(server).await;
    let bitswap = client.behaviour_mut();
    let session = bitswap.new_session();
    bitswap.add_session_peer(session, *server.local_peer_id());
    let ticket = bitswap.want(session, *block.cid(), Priority(priority));
    tokio::spawn(async move { collect(&mut client, HashMap::from([(ticket, block)])).await })
}

#[tokio::test]
async fn a_master_fetches_what_three_peers_want_and_gives_it_to_them() {
    let config = Config::builder().role(Role::Master).build().unwrap();
    let (mut master, source) = node_with(config);
    let (mut seeder, theirs) = node();
    let [block] = blocks(1, 100_000).try_into().unwrap();
    theirs.insert(block.clone());
    connect(&mut master, &mut seeder).await;
    master.listen().with_memory_addr_external().await;
    let seeder_id = *seeder.local_peer_id();
    spawn(seeder);
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(wanting(&mut master, block.clone(), 4).await);
    }
    let master_id = *master.local_peer_id();
    let work = async {
        loop {
            if let SwarmEvent::Behaviour(Event::Prefetched {
                ticket,
                block,
                peer,
            }) = master.select_next_some().await
            {
                assert_eq!(peer, Some(seeder_id));
                source.insert(block.clone());
                let bitswap = master.behaviour_mut();
                bitswap.notify_new_blocks(&[*block.cid()]);
                bitswap.taken(ticket, block.data().len());
                let [hottest] = bitswap.most_wanted(9)[..] else {
                    panic!("one block was wanted");
                };
                assert!(hottest.have && hottest.cid == *block.cid());
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), work)
        .await
        .expect("a prefetch within 20 s");
    spawn(master);
    for client in clients {
        assert_eq!(client.await.unwrap(), HashMap::from([(master_id, 1)]));
    }
}

#[tokio::test]
async fn a_worker_fetches_what_it_is_assigned() {
    let (mut worker, _) = node();
    let (mut seeder, theirs) = node();
    let [block] = blocks(1, 100_000).try_into().unwrap();
    theirs.insert(block.clone());
    connect(&mut worker, &mut seeder).await;
    spawn(seeder);
    assert_eq!(worker.behaviour_mut().assign(&[*block.cid()]), 1);
    let work = async {
        loop {
            if let SwarmEvent::Behaviour(Event::Prefetched { block, .. }) =
                worker.select_next_some().await
            {
                return block;
            }
        }
    };
    let got = tokio::time::timeout(Duration::from_secs(20), work).await;
    assert_eq!(got.expect("a prefetch within 20 s"), block);
}

#[tokio::test]
async fn a_peer_gets_only_what_the_filter_lets_it_have() {
    let (mut server, source) = node();
    let [public, secret] = blocks(2, 5000).try_into().unwrap();
    source.insert(public.clone());
    source.insert(secret.clone());
    let (mut friend, _) = node();
    connect(&mut friend, &mut server).await;
    let (friend_id, secret_cid) = (*friend.local_peer_id(), *secret.cid());
    let filter = move |peer: &PeerId, cid: &Cid| *peer == friend_id || *cid != secret_cid;
    server
        .behaviour_mut()
        .set_request_filter(Some(Box::new(filter)));
    let (mut stranger, _) = node();
    stranger.connect(&mut server).await;
    let server_id = *server.local_peer_id();
    spawn(server);
    for (node, wanted) in [(&mut friend, &secret), (&mut stranger, &public)] {
        let bitswap = node.behaviour_mut();
        let session = bitswap.new_session();
        bitswap.add_session_peer(session, server_id);
        let ticket = bitswap.want(session, *wanted.cid(), Priority(1));
        collect(node, HashMap::from([(ticket, wanted.clone())])).await;
    }
    // Refused at once: the search for others begins.
    let bitswap = stranger.behaviour_mut();
    let session = bitswap.new_session();
    bitswap.add_session_peer(session, server_id);
    bitswap.want(session, *secret.cid(), Priority(1));
    let work = async {
        loop {
            match stranger.select_next_some().await {
                SwarmEvent::Behaviour(Event::ProvidersWanted { cid, .. }) => return cid,
                SwarmEvent::Behaviour(Event::Block { .. }) => panic!("the filter said no"),
                _ => {}
            }
        }
    };
    let searched = tokio::time::timeout(Duration::from_secs(3), work).await;
    assert_eq!(searched.expect("DONT_HAVE"), secret_cid);
}
