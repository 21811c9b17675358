//! What peers make us hold, counted by the allocator.

#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic and needs an origin of virtual time"
)]

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use anypath_bitswap::{
    Behaviour, Block, Config, MemorySource, SessionOptions, WantOptions,
    core::{
        ConnKey, Path,
        client::{self, Client},
        server::{Output, Server},
    },
    message::{Entry, Message, Presence, WantType},
};
use cid::{Cid, multihash::Multihash};
use libp2p_core::{ConnectedPoint, Multiaddr};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    ConnectionClosed, ConnectionHandler, ConnectionId, FromSwarm, NetworkBehaviour, ToSwarm,
    behaviour::ConnectionEstablished,
};
use web_time::Instant;

const KIB: i64 = 1024;

/// As large as CIDs with known hashes are: SHA2-512.
fn cid(number: u64) -> Cid {
    let mut digest = [7; 64];
    digest[..8].copy_from_slice(&number.to_le_bytes());
    Cid::new_v1(0x55, Multihash::wrap(0x13, &digest).unwrap())
}

fn entries(numbers: std::ops::Range<u64>, priority: i32, descend: u32) -> Message {
    let entries = numbers.map(|number| Entry {
        cid: cid(number),
        priority,
        cancel: false,
        want_type: WantType::Block,
        send_dont_have: true,
        descend,
    });
    Message {
        entries: entries.collect(),
        ..Message::default()
    }
}

/// Bytes that `work` leaves allocated.
fn kept(work: impl FnOnce()) -> i64 {
    allocation_counter::measure(work).bytes_current
}

/// A server without demand statistics, which are bounded for all peers together.
fn server() -> (Server, Instant) {
    let now = Instant::now();
    let config = Config::builder().max_heat_entries(64).build().unwrap();
    (Server::new(config, [0; 32], now), now)
}

fn peer(index: u64) -> PeerId {
    let hash = Multihash::wrap(0x12, &cid(index).hash().digest()[..32]).unwrap();
    PeerId::from_multihash(hash).unwrap()
}

fn connect(server: &mut Server, index: u64, now: Instant) -> PeerId {
    let peer = peer(index);
    server.on_connected(peer, ConnKey(index), Path::Direct, &|_| None, now);
    peer
}

/// What peers that take nothing are sent stays where it is: frames in flight, not counted here.
fn drain(server: &mut Server, now: Instant) {
    while let Some(output) = server.poll_output() {
        if let Output::Read { id, .. } = output {
            let links = (0..8000).map(|number| cid(50_000_000 + number)).collect();
            let data = Some(vec![0; 1000].into());
            server.on_read(id, data, links, &|_| Some(1000), now);
        }
    }
}

#[test]
fn an_idle_peer_takes_at_most_4_kib() {
    let (mut server, now) = server();
    let bytes = kept(|| {
        for index in 0..10_000 {
            connect(&mut server, index, now);
        }
        drain(&mut server, now);
    });
    assert!(bytes / 10_000 <= 4 * KIB, "{} bytes", bytes / 10_000);

    // Also after it wanted something.
    let (mut server, now) = self::server();
    let bytes = kept(|| {
        let peer = connect(&mut server, 0, now);
        server.on_message(peer, &entries(0..1000, 1, 0), &|_| None, now);
        drain(&mut server, now);
        server.on_answers_written(peer, now);
        let cancel = |entry: Entry| Entry {
            cancel: true,
            ..entry
        };
        let cancels = entries(0..1000, 1, 0).entries.into_iter().map(cancel);
        let message = Message {
            entries: cancels.collect(),
            ..Message::default()
        };
        server.on_message(peer, &message, &|_| None, now);
        drain(&mut server, now);
    });
    // The heat of 64 blocks is there for good.
    assert!(bytes <= (4 + 40) * KIB, "{bytes} bytes");
}

/// A behaviour with the handlers of its connections, which have no streams.
struct Connections {
    behaviour: Behaviour,
    handlers: Vec<<Behaviour as NetworkBehaviour>::ConnectionHandler>,
}

impl Connections {
    fn poll(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(action) = self.behaviour.poll(&mut cx) {
            // One idle connection is polled at a time.
            if let (ToSwarm::NotifyHandler { event, .. }, Some(handler)) =
                (action, self.handlers.last_mut())
            {
                handler.on_behaviour_event(event);
            }
        }
    }
}

/// All of it: both cores, the behaviour, and the handler.
#[test]
fn an_idle_connection_takes_at_most_4_kib_and_nothing_when_it_is_gone() {
    const COUNT: usize = 10_000;
    let address: Multiaddr = "/memory/1".parse().unwrap();
    let endpoint = ConnectedPoint::Listener {
        local_addr: address.clone(),
        send_back_addr: address.clone(),
    };
    let config = Config::builder().max_heat_entries(64).build().unwrap();
    let mut all = Connections {
        behaviour: Behaviour::new(config, Arc::new(MemorySource::new())),
        handlers: Vec::new(),
    };
    let mut held = 0;
    let left = kept(|| {
        held = kept(|| {
            all.handlers.reserve_exact(COUNT);
            for index in 0..COUNT {
                let (peer_id, id) = (peer(index as u64), ConnectionId::new_unchecked(index));
                let handler = all
                    .behaviour
                    .handle_established_inbound_connection(id, peer_id, &address, &address);
                all.handlers.push(handler.unwrap());
                let established = ConnectionEstablished {
                    peer_id,
                    connection_id: id,
                    endpoint: &endpoint,
                    failed_addresses: &[],
                    other_established: 0,
                };
                all.behaviour
                    .on_swarm_event(FromSwarm::ConnectionEstablished(established));
                all.poll();
            }
        });
        assert!(
            !all.handlers[0].connection_keep_alive(),
            "they are told that they are idle"
        );
        all.handlers = Vec::new();
        for index in 0..COUNT {
            all.behaviour
                .on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
                    peer_id: peer(index as u64),
                    connection_id: ConnectionId::new_unchecked(index),
                    endpoint: &endpoint,
                    cause: None,
                    remaining_established: 0,
                }));
            all.poll();
        }
    });
    let each = held / COUNT as i64;
    println!("{each} bytes each; {left} bytes left of all");
    assert!(each <= 4 * KIB, "{each} bytes");
    // The ledgers of the latest, and capacities of tables.
    assert!(left <= held / 20, "{left} of {held} bytes left");
}

#[test]
fn a_hostile_peer_takes_at_most_512_kib_of_the_client_and_nothing_when_it_is_gone() {
    type Attack = fn(&mut Client, PeerId, Instant);
    let attacks: [(&str, Attack); 4] = [
        ("has all, has nothing, has all", |client, peer, now| {
            for round in 0..50 {
                deliver(client, peer, presences_of(0..1000, round % 2 == 0), now);
            }
        }),
        ("talks of what nobody wants", |client, peer, now| {
            for round in 1..50 {
                let numbers = round * 8192..(round + 1) * 8192;
                deliver(client, peer, presences_of(numbers, true), now);
            }
        }),
        ("promises", |client, peer, now| {
            for round in 0..50 {
                let promised = (round * 8192..(round + 1) * 8192).map(cid).collect();
                let message = Message {
                    promised,
                    ..Message::default()
                };
                deliver(client, peer, message, now);
            }
        }),
        ("sends what nobody wants", |client, peer, now| {
            for round in 0..200_u32 {
                let block = |n: u32| Block::raw([round, n].map(u32::to_le_bytes).concat());
                let message = Message {
                    blocks: (0..1000).map(block).collect(),
                    ..Message::default()
                };
                deliver(client, peer, message, now);
            }
        }),
    ];
    for (name, attack) in attacks {
        let now = Instant::now();
        let mut client = Client::new(Config::default(), [0; 32], now);
        let session = client.new_session(SessionOptions::default().descend(8));
        for number in 0..1000 {
            client.want(session, cid(number), WantOptions::default(), now);
        }
        while client.poll_output().is_some() {}
        let mut held = 0;
        let left = kept(|| {
            let peer = peer(2);
            held = kept(|| {
                client.on_connected(peer, ConnKey(2), Path::Direct, now);
                client.add_session_peer(session, peer, now);
                deliver(&mut client, peer, Message::default(), now);
                attack(&mut client, peer, now);
            });
            client.on_disconnected(peer, ConnKey(2), now);
            while client.poll_output().is_some() {}
        });
        println!("{name}: {held} bytes, {left} left");
        assert!(held <= 512 * KIB, "{name}: {} KiB", held / KIB);
        assert!(left <= 64 * KIB, "{name}: {} KiB left", left / KIB);
    }
}

fn presences_of(numbers: std::ops::Range<u64>, have: bool) -> Message {
    let presence = |number| Presence {
        cid: cid(number),
        have,
    };
    Message {
        presences: numbers.map(presence).collect(),
        ..Message::default()
    }
}

/// A message comes, and the client says what it has to say.
fn deliver(client: &mut Client, peer: PeerId, message: Message, now: Instant) {
    client.on_message(peer, ConnKey(2), &message, now);
    while let Some(output) = client.poll_output() {
        if let client::Output::Send { peer, .. } = output {
            client.on_written(peer, now);
        }
    }
}

#[test]
fn a_hostile_peer_takes_at_most_512_kib_and_nothing_when_it_is_gone() {
    type Attack = fn(&mut Server, PeerId, Instant);
    let attacks: [(&str, Attack); 4] = [
        (
            "wants nobody has, more and more urgent",
            |server, peer, now| {
                for round in 0..50_u64 {
                    let numbers = round * 8192..(round + 1) * 8192;
                    let message = entries(numbers, i32::try_from(round).unwrap(), 0);
                    server.on_message(peer, &message, &|_| None, now);
                    drain(server, now);
                }
            },
        ),
        ("full lists, over and over", |server, peer, now| {
            for round in 0..50 {
                let message = Message {
                    full: true,
                    ..entries(round * 8192..(round + 1) * 8192, 1, 0)
                };
                server.on_message(peer, &message, &|_| None, now);
                drain(server, now);
            }
        }),
        (
            "blocks we have, and never takes one",
            |server, peer, now| {
                for round in 0..20 {
                    let message = entries(round * 8192..(round + 1) * 8192, 1, 0);
                    server.on_message(peer, &message, &|_| Some(4 << 20), now);
                    drain(server, now);
                }
            },
        ),
        (
            "descendants of blocks with thousands of links",
            |server, peer, now| {
                for round in 0..20 {
                    let message = entries(round * 1024..(round + 1) * 1024, 1, 1000);
                    server.on_message(peer, &message, &|_| Some(1000), now);
                    drain(server, now);
                }
            },
        ),
    ];
    for (name, attack) in attacks {
        let (mut server, now) = server();
        // Heat and ledgers are there before and after.
        let warm = connect(&mut server, 1, now);
        server.on_message(warm, &entries(0..64, 1, 0), &|_| None, now);
        server.on_disconnected(warm, ConnKey(1), now);
        drain(&mut server, now);
        let mut held = 0;
        let left = kept(|| {
            let peer = connect(&mut server, 2, now);
            held = kept(|| attack(&mut server, peer, now));
            server.on_disconnected(peer, ConnKey(2), now);
            drain(&mut server, now);
        });
        assert!(held <= 512 * KIB, "{name}: {} KiB", held / KIB);
        assert!(held >= 20 * KIB, "{name}: {} KiB only", held / KIB);
        assert!(left <= 16 * KIB, "{name}: {} KiB left", left / KIB);
        assert_eq!(server.counters(), [0; 4], "{name}");
    }
}

/// R1: go-bitswap kept the wants of peers that were gone (CVE-2023-25568).
#[test]
fn r1_a_million_wants_over_100_connections_leave_no_memory_behind() {
    let (mut server, now) = server();
    let mut held = 0;
    let left = kept(|| {
        held = kept(|| {
            for index in 0..100 {
                let peer = connect(&mut server, index, now);
                for round in 0..5 {
                    let first = (index * 5 + round) * 2000;
                    let message = entries(first..first + 2000, 1, 0);
                    server.on_message(peer, &message, &|_| None, now);
                }
                drain(&mut server, now);
            }
        });
        for index in 0..100 {
            let peer = connect(&mut server, index, now);
            server.on_disconnected(peer, ConnKey(index), now);
        }
        drain(&mut server, now);
    });
    assert!(held <= 100 * 512 * KIB, "{} KiB", held / KIB);
    assert!(
        left * 20 <= held,
        "{} of {} KiB left",
        left / KIB,
        held / KIB
    );
    assert_eq!(server.counters(), [0; 4]);
}
