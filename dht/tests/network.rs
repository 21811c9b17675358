//! Real swarms over the memory transport.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

use std::{
    cmp::Ordering,
    future::Future,
    time::{Duration, SystemTime},
};

use anypath_dht::{
    AddressScope, Behaviour, Config, ConfigBuilder, Event, InvalidValue, Ipns, IpnsRecord, Mode,
    QueryError, Ticket, Validator,
};
use cid::Cid;
use futures::future::select_all;
use libp2p_core::Multiaddr;
use libp2p_identify as identify;
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{NetworkBehaviour, Swarm, SwarmEvent};
use libp2p_swarm_test::SwarmExt as _;
use multihash_codetable::{Code, MultihashDigest as _};

const RAW: u64 = 0x55;

/// A node as an application has it: identify tells the swarm where others listen.
#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Node {
    identify: identify::Behaviour,
    dht: Behaviour,
}

/// The rule of the namespace `test`: one byte, the greater the better.
struct Greater;

impl Validator for Greater {
    fn validate(&self, _: &[u8], value: &[u8]) -> Result<(), InvalidValue> {
        match value.len() {
            1 => Ok(()),
            _ => Err(InvalidValue::new("not one byte")),
        }
    }

    fn compare(&self, _: &[u8], one: &[u8], other: &[u8]) -> Ordering {
        one.cmp(other)
    }
}

fn server() -> ConfigBuilder {
    Config::builder()
        .mode(Mode::Server)
        .query_timeout(Duration::from_secs(5))
}

fn client() -> ConfigBuilder {
    Config::builder().query_timeout(Duration::from_secs(5))
}

async fn node(config: ConfigBuilder) -> Swarm<Node> {
    let config = config.build().unwrap();
    let mut swarm = Swarm::new_ephemeral_tokio(|key| Node {
        identify: identify::Behaviour::new(identify::Config::new("/test/1".into(), key.public())),
        dht: Behaviour::new(key.public().to_peer_id(), config).with_validator("test", Greater),
    });
    swarm.listen().with_memory_addr_external().await;
    swarm
}

/// `servers` servers in a row: each knows only the one before it.
async fn chain(servers: usize) -> Vec<Swarm<Node>> {
    let mut swarms: Vec<Swarm<Node>> = Vec::new();
    for _ in 0..servers {
        let mut swarm = node(server()).await;
        if let Some(previous) = swarms.last() {
            introduce(&mut swarm, previous);
        }
        swarms.push(swarm);
    }
    swarms
}

fn introduce(swarm: &mut Swarm<Node>, to: &Swarm<Node>) {
    let address = memory_address(to);
    assert!(
        swarm
            .behaviour_mut()
            .dht
            .add_address(*to.local_peer_id(), address)
    );
}

fn memory_address(swarm: &Swarm<Node>) -> Multiaddr {
    swarm.external_addresses().next().unwrap().clone()
}

/// Runs all swarms until `found` says so of an event of one of them, given with the swarm's index.
async fn run_until<T>(
    swarms: &mut [Swarm<Node>],
    mut found: impl FnMut(usize, SwarmEvent<NodeEvent>) -> Option<T>,
) -> T {
    loop {
        let events = swarms.iter_mut().map(|swarm| swarm.next_swarm_event());
        let (event, index, _) = select_all(events).await;
        if let Some(value) = found(index, event) {
            return value;
        }
    }
}

/// The terminal event of the ticket of the swarm with this index; `seen` gets the ones before.
async fn finished_with(
    swarms: &mut [Swarm<Node>],
    at: usize,
    ticket: Ticket,
    mut seen: impl FnMut(Event),
) -> Event {
    run_until(swarms, |index, event| match event {
        SwarmEvent::Behaviour(NodeEvent::Dht(event))
            if index == at && event.finishes() == Some(ticket) =>
        {
            Some(event)
        }
        SwarmEvent::Behaviour(NodeEvent::Dht(event)) if index == at => {
            seen(event);
            None
        }
        _ => None,
    })
    .await
}

async fn finished(swarms: &mut [Swarm<Node>], at: usize, ticket: Ticket) -> Event {
    finished_with(swarms, at, ticket, drop).await
}

async fn bootstrap(swarms: &mut [Swarm<Node>]) {
    for at in 0..swarms.len() {
        if swarms[at].behaviour_mut().dht.routing_table().is_empty() {
            continue;
        }
        let ticket = swarms[at].behaviour_mut().dht.bootstrap();
        let event = finished(swarms, at, ticket).await;
        assert_eq!(
            event,
            Event::BootstrapFinished {
                ticket,
                result: Ok(())
            }
        );
    }
}

fn routed(swarm: &mut Swarm<Node>) -> Vec<PeerId> {
    swarm
        .behaviour_mut()
        .dht
        .routing_table()
        .into_iter()
        .map(|peer| peer.id)
        .collect()
}

fn block(text: &str) -> Cid {
    Cid::new_v1(RAW, Code::Sha2_256.digest(text.as_bytes()))
}

async fn in_time<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), test)
        .await
        .expect("takes too long")
}

#[tokio::test]
async fn a_provider_is_found_across_seven_nodes_and_can_be_dialled() {
    in_time(async {
        let mut swarms = chain(7).await;
        bootstrap(&mut swarms).await;

        let provider = *swarms[0].local_peer_id();
        let ticket = swarms[0].behaviour_mut().dht.provide(block("hello"));
        let event = finished(&mut swarms, 0, ticket).await;
        assert_eq!(
            event,
            Event::ProvideFinished {
                ticket,
                cid: block("hello"),
                result: Ok(())
            }
        );
        assert!(swarms[0].behaviour_mut().dht.is_providing(&block("hello")));

        // A client that knows only the far end of the row. CIDv0 and CIDv1 are the same block.
        let mut asker = node(client()).await;
        introduce(&mut asker, &swarms[6]);
        swarms.push(asker);
        let v0 = Cid::new_v0(*block("hello").hash()).unwrap();
        let ticket = swarms[7].behaviour_mut().dht.find_providers(v0);
        let mut found = Vec::new();
        let event = finished_with(&mut swarms, 7, ticket, |event| {
            if let Event::ProvidersFound {
                ticket: of,
                cid,
                providers,
            } = event
            {
                assert_eq!((of, cid), (ticket, v0));
                found.extend(providers);
            }
        })
        .await;
        assert_eq!(found, [provider]);
        let expected = Event::FindProvidersFinished {
            ticket,
            cid: v0,
            found: 1,
            result: Ok(()),
        };
        assert_eq!(event, expected);

        let ticket = swarms[7]
            .behaviour_mut()
            .dht
            .find_providers(block("never provided"));
        let event = finished(&mut swarms, 7, ticket).await;
        assert!(matches!(
            event,
            Event::FindProvidersFinished {
                found: 0,
                result: Ok(()),
                ..
            }
        ));
    })
    .await;
}

#[tokio::test]
async fn the_addresses_of_a_provider_reach_the_swarm_before_the_provider() {
    in_time(async {
        let mut swarms = chain(3).await;
        bootstrap(&mut swarms).await;
        // The provider is a client, so that only its provider record tells where it is.
        let mut provider = node(client()).await;
        introduce(&mut provider, &swarms[0]);
        let id = *provider.local_peer_id();
        let address = memory_address(&provider).with_p2p(id).unwrap();
        swarms.push(provider);
        let ticket = swarms[3].behaviour_mut().dht.provide(block("hello"));
        finished(&mut swarms, 3, ticket).await;

        let mut asker = node(client()).await;
        introduce(&mut asker, &swarms[2]);
        swarms.push(asker);
        let ticket = swarms[4].behaviour_mut().dht.find_providers(block("hello"));
        let mut told = false;
        run_until(&mut swarms, |index, event| match event {
            SwarmEvent::NewExternalAddrOfPeer {
                peer_id,
                address: of,
            } if index == 4 => {
                told |= peer_id == id && of == address;
                None
            }
            SwarmEvent::Behaviour(NodeEvent::Dht(Event::ProvidersFound {
                ticket: of,
                providers,
                ..
            })) => {
                assert_eq!((index, of, providers), (4, ticket, vec![id]));
                assert!(told);
                Some(())
            }
            _ => None,
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn the_closest_peers_are_the_closest_and_clients_are_not_among_them() {
    in_time(async {
        let mut swarms = chain(6).await;
        for _ in 0..2 {
            let mut client = node(client()).await;
            introduce(&mut client, &swarms[0]);
            swarms.push(client);
        }
        bootstrap(&mut swarms).await;
        let servers: Vec<_> = swarms[..6]
            .iter()
            .map(|swarm| *swarm.local_peer_id())
            .collect();
        let clients: Vec<_> = swarms[6..]
            .iter()
            .map(|swarm| *swarm.local_peer_id())
            .collect();

        let target = PeerId::random();
        let ticket = swarms[6].behaviour_mut().dht.get_closest_peers(target);
        let event = finished(&mut swarms, 6, ticket).await;
        let Event::ClosestPeersFinished { peers, result, .. } = event else {
            panic!()
        };
        assert_eq!(result, Ok(()));
        let found: Vec<_> = peers.iter().map(|peer| peer.id).collect();
        let distance = |peer: &PeerId| {
            let hash = |peer: &PeerId| Code::Sha2_256.digest(&peer.to_bytes()).digest().to_vec();
            let (a, b) = (hash(peer), hash(&target));
            std::array::from_fn::<u8, 32, _>(|n| a[n] ^ b[n])
        };
        let mut expected = servers;
        expected.sort_by_key(distance);
        assert_eq!(found, expected);
        assert!(peers.iter().all(|peer| !peer.addresses.is_empty()));

        for swarm in &mut swarms {
            assert!(routed(swarm).iter().all(|peer| !clients.contains(peer)));
        }
    })
    .await;
}

#[tokio::test]
async fn a_node_that_becomes_a_server_is_routed_to() {
    in_time(async {
        let mut swarms = vec![node(server()).await, node(client()).await];
        let [a, b] = &mut swarms[..] else {
            unreachable!()
        };
        a.connect(b).await;
        let id = *b.local_peer_id();
        assert_eq!(b.behaviour().dht.mode(), Mode::Client);
        b.behaviour_mut().dht.set_mode(Mode::Server);
        run_until(&mut swarms, |index, event| match event {
            SwarmEvent::Behaviour(NodeEvent::Dht(Event::PeerRouted { peer, .. })) if index == 0 => {
                (peer == id).then_some(())
            }
            _ => None,
        })
        .await;
        assert_eq!(routed(&mut swarms[0]), [id]);
    })
    .await;
}

#[tokio::test]
async fn a_lonely_node_fails_at_once_and_announces_when_it_has_joined() {
    in_time(async {
        let mut swarms = vec![node(server()).await, node(server()).await];
        let dht = &mut swarms[0].behaviour_mut().dht;
        let tickets = [
            dht.provide(block("early")),
            dht.find_providers(block("other")),
            dht.get_closest_peers(block("other")),
            dht.bootstrap(),
        ];
        for ticket in tickets {
            let error = match finished(&mut swarms, 0, ticket).await {
                Event::ProvideFinished { result, .. }
                | Event::FindProvidersFinished { result, .. }
                | Event::ClosestPeersFinished { result, .. }
                | Event::BootstrapFinished { result, .. } => result.unwrap_err(),
                other => panic!("{other:?}"),
            };
            assert_eq!(error, QueryError::NoKnownPeers);
        }

        let [a, b] = &mut swarms[..] else {
            unreachable!()
        };
        introduce(a, b);
        let id = *a.local_peer_id();
        // kad refreshes half a second after the first peer is known; then `b` hears of the block.
        let mut again = tokio::time::interval(Duration::from_millis(100));
        loop {
            let found = run_until(&mut swarms, |index, event| match event {
                SwarmEvent::Behaviour(NodeEvent::Dht(Event::ProvidersFound {
                    providers, ..
                })) => {
                    assert_eq!((index, providers), (1, vec![id]));
                    Some(())
                }
                _ => None,
            });
            tokio::select! {
                () = found => break,
                _ = again.tick() => {
                    swarms[1].behaviour_mut().dht.find_providers(block("early"));
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_no_longer_provided_is_not_announced() {
    in_time(async {
        let mut swarms = chain(2).await;
        let dht = &mut swarms[1].behaviour_mut().dht;
        let ticket = dht.provide(block("hello"));
        finished(&mut swarms, 1, ticket).await;
        let dht = &mut swarms[1].behaviour_mut().dht;
        assert_eq!(dht.provided_keys(), 1);
        dht.stop_providing(&block("hello"));
        assert_eq!(dht.provided_keys(), 0);
        assert!(!dht.is_providing(&block("hello")));
    })
    .await;
}

#[tokio::test]
async fn an_unreachable_network_ends_in_an_error_and_not_in_silence() {
    in_time(async {
        let mut swarm = node(client()).await;
        let nobody: Multiaddr = "/memory/987654321".parse().unwrap();
        assert!(
            swarm
                .behaviour_mut()
                .dht
                .add_address(PeerId::random(), nobody)
        );
        let ticket = swarm.behaviour_mut().dht.find_providers(block("hello"));
        let event = finished(&mut [swarm], 0, ticket).await;
        let Event::FindProvidersFinished { result, .. } = event else {
            panic!("{event:?}")
        };
        assert_eq!(result, Err(QueryError::Unreachable));
    })
    .await;
}

#[tokio::test]
async fn a_public_server_keeps_and_serves_no_private_addresses() {
    let (private, public): (Multiaddr, Multiaddr) = (
        "/ip4/10.0.0.1/tcp/1".parse().unwrap(),
        "/ip4/1.2.3.4/tcp/1".parse().unwrap(),
    );
    let mut swarm = node(server().address_scope(AddressScope::Auto)).await;
    let dht = &mut swarm.behaviour_mut().dht;
    let (lan, both) = (PeerId::random(), PeerId::random());
    assert!(dht.add_address(lan, private.clone()));
    assert!(dht.add_address(both, private.clone()));
    assert!(dht.add_address(both, public.clone()));

    // The node turns out to be reachable by everybody.
    swarm.add_external_address("/ip4/5.6.7.8/tcp/1".parse().unwrap());
    let dht = &mut swarm.behaviour_mut().dht;
    let table = dht.routing_table();
    assert_eq!(table.len(), 1);
    assert_eq!(table[0].id, both);
    assert_eq!(table[0].addresses, [public.with_p2p(both).unwrap()]);
    assert!(!dht.add_address(lan, private));
}

async fn put(
    swarms: &mut [Swarm<Node>],
    at: usize,
    key: &[u8],
    value: &[u8],
) -> (usize, Result<(), QueryError>) {
    let ticket = swarms[at].behaviour_mut().dht.put_value(key, value);
    match finished(swarms, at, ticket).await {
        Event::PutValueFinished {
            key: of,
            stored,
            result,
            ..
        } if of == key => (stored, result),
        other => panic!("{other:?}"),
    }
}

async fn get(
    swarms: &mut [Swarm<Node>],
    at: usize,
    key: &[u8],
) -> (Option<Vec<u8>>, Result<(), QueryError>) {
    let ticket = swarms[at].behaviour_mut().dht.get_value(key);
    let mut best = None;
    let last = finished_with(swarms, at, ticket, |event| {
        if let Event::ValueFound {
            ticket: of,
            key: found,
            value,
        } = event
        {
            assert_eq!((of, found.as_slice()), (ticket, key));
            best = Some(value);
        }
    })
    .await;
    match last {
        Event::GetValueFinished {
            key: of,
            value,
            result,
            ..
        } if of == key => {
            assert_eq!(value, best);
            (value, result)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_name_is_resolved_across_seven_nodes_to_what_it_points_to_last() {
    in_time(async {
        let mut swarms = chain(7).await;
        bootstrap(&mut swarms).await;
        let key = Keypair::generate_ed25519();
        let name = key.public().to_peer_id();
        let record = |sequence, value: &str| {
            let record = IpnsRecord {
                value: value.into(),
                sequence,
                valid_until: SystemTime::now() + Duration::from_secs(3600),
                ttl: Duration::from_secs(60),
            };
            record.sign(&key).unwrap()
        };
        let (first, second) = (record(1, "/ipfs/first"), record(2, "/ipfs/second"));
        let name_key = Ipns::key(&name);
        let (stored, result) = put(&mut swarms, 0, &name_key, &first).await;
        assert_eq!((stored, result), (6, Ok(())));

        // A client that knows only the far end of the row.
        let mut asker = node(client()).await;
        introduce(&mut asker, &swarms[6]);
        swarms.push(asker);
        assert_eq!(
            get(&mut swarms, 7, &name_key).await,
            (Some(first.clone()), Ok(()))
        );
        // Another node with the same key.
        let (stored, result) = put(&mut swarms, 3, &name_key, &second).await;
        assert_eq!((stored, result), (6, Ok(())));
        let (value, result) = get(&mut swarms, 7, &name_key).await;
        assert_eq!((value.as_ref(), result), (Some(&second), Ok(())));
        let resolved = IpnsRecord::verify(&name, &value.unwrap()).unwrap();
        assert_eq!(resolved.value, b"/ipfs/second");
        // The older one is refused at home, even where it came from.
        let (stored, result) = put(&mut swarms, 0, &name_key, &first).await;
        assert_eq!((stored, result), (0, Err(QueryError::Superseded)));
        assert_eq!(
            get(&mut swarms, 7, &Ipns::key(&PeerId::random())).await,
            (None, Ok(()))
        );
    })
    .await;
}

#[tokio::test]
async fn a_node_with_a_worse_value_is_sent_the_best_by_who_finds_both() {
    in_time(async {
        let key = b"/test/key".as_slice();
        let mut swarms = vec![node(server()).await, node(server()).await];
        let mut putter = node(client()).await;
        introduce(&mut putter, &swarms[0]);
        swarms.push(putter);
        assert_eq!(put(&mut swarms, 2, key, b"1").await, (1, Ok(())));
        // The second server knows nobody, and nobody but the asker knows it.
        let alone = put(&mut swarms, 1, key, b"2").await;
        assert_eq!(alone, (0, Err(QueryError::NoKnownPeers)));
        let mut asker = node(client()).await;
        introduce(&mut asker, &swarms[0]);
        introduce(&mut asker, &swarms[1]);
        swarms.push(asker);
        let best = (Some(b"2".to_vec()), Ok(()));
        assert_eq!(get(&mut swarms, 3, key).await, best);
        // It knows only the first one, and asks until the correction has come.
        let mut other = node(client()).await;
        introduce(&mut other, &swarms[0]);
        swarms.push(other);
        while get(&mut swarms, 4, key).await != best {}
    })
    .await;
}

#[tokio::test]
async fn a_server_keeps_nothing_that_is_invalid_or_worse_or_that_it_cannot_judge() {
    in_time(async {
        let mut swarms = vec![node(server()).await];
        let mut wrong = node(client()).await;
        let local = *wrong.local_peer_id();
        wrong.behaviour_mut().dht = Behaviour::new(local, client().build().unwrap())
            .with_validator("unknown", Anything)
            .with_validator("test", Anything);
        let mut asker = node(client()).await;
        introduce(&mut wrong, &swarms[0]);
        introduce(&mut asker, &swarms[0]);
        swarms.extend([wrong, asker]);
        // It is acknowledged, as kad does whatever is put.
        assert_eq!(put(&mut swarms, 1, b"/test/key", b"12").await, (1, Ok(())));
        assert_eq!(put(&mut swarms, 1, b"/unknown/key", b"1").await.0, 1);
        for key in [b"/test/key".as_slice(), b"/unknown/key"] {
            // To this node it would be a value.
            swarms[1].behaviour_mut().dht.remove_value(key);
            assert_eq!(get(&mut swarms, 1, key).await, (None, Ok(())));
        }

        assert_eq!(put(&mut swarms, 2, b"/test/key", b"3").await, (1, Ok(())));
        assert_eq!(put(&mut swarms, 1, b"/test/key", b"2").await.0, 1);
        swarms[1].behaviour_mut().dht.remove_value(b"/test/key");
        let best = (Some(b"3".to_vec()), Ok(()));
        assert_eq!(get(&mut swarms, 1, b"/test/key").await, best);

        let (_, result) = put(&mut swarms, 2, b"/test/key", b"12").await;
        assert!(matches!(result, Err(QueryError::InvalidValue(_))));
        let nobody = Err(QueryError::NoValidator("none".into()));
        assert_eq!(put(&mut swarms, 2, b"/none/key", b"1").await.1, nobody);
        assert_eq!(get(&mut swarms, 2, b"/none/key").await.1, nobody);
    })
    .await;
}

/// The namespace `test` as somebody understands it who is wrong.
struct Anything;

impl Validator for Anything {
    fn validate(&self, _: &[u8], _: &[u8]) -> Result<(), InvalidValue> {
        Ok(())
    }

    fn compare(&self, _: &[u8], one: &[u8], other: &[u8]) -> Ordering {
        // A shorter one is better.
        other.len().cmp(&one.len())
    }
}
