//! Our client at a relay that does what the specification does not allow. Nothing ends but the exchange itself.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "test code on tokio"
)]

mod common;
#[path = "common/hand.rs"]
mod hand;

use std::time::{Duration, SystemTime};

use anypath_relay::{
    HOP_PROTOCOL_NAME, STOP_PROTOCOL_NAME, StatusCode,
    client::{self, LossReason},
};
use common::{Client, Running, client, impatient};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use hand::{
    Hand, PATIENCE, accept, connect, frame, hand, read, reserve,
    wire::{self, HopMessage, StopMessage, hop_message, stop_message},
};
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;
use libp2p_stream as stream;
use libp2p_swarm::{Stream, SwarmEvent};

/// A relay whose answers the test writes.
struct Rogue {
    node: Running<Hand>,
    control: stream::Control,
    hops: stream::IncomingStreams,
    address: Multiaddr,
}

async fn rogue() -> Rogue {
    let (mut node, mut control) = hand();
    let hops = control.accept(HOP_PROTOCOL_NAME).unwrap();
    let at = node
        .wait("listen address", |event| match event {
            SwarmEvent::NewListenAddr { address, .. } => Some(address.clone()),
            _ => None,
        })
        .await;
    let address = at.with(Protocol::P2p(node.id));
    Rogue {
        node,
        control,
        hops,
        address,
    }
}

impl Rogue {
    /// The next request, which is to be answered.
    async fn asked(&mut self) -> (Stream, HopMessage) {
        let next = tokio::time::timeout(PATIENCE, self.hops.next());
        let (_, mut stream) = next.await.expect("nobody asks").unwrap();
        let request = read(&mut stream).await;
        (stream, request)
    }

    async fn answers(&mut self, expected: &HopMessage, answer: &[u8]) {
        let (mut stream, request) = self.asked().await;
        assert_eq!(request, *expected);
        // Whoever asked may have hung up in the middle of it.
        let _ = stream.write_all(answer).await;
        let _ = stream.close().await;
    }

    async fn stop(&mut self, guest: PeerId, bytes: &[u8]) -> Stream {
        let mut stream = self
            .control
            .open_stream(guest, STOP_PROTOCOL_NAME)
            .await
            .unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        stream
    }

    /// Brings a circuit, or something else, to `guest`; what it says to that.
    async fn brings(&mut self, guest: PeerId, bytes: &[u8]) -> wire::Status {
        let mut stream = self.stop(guest, bytes).await;
        let answer: StopMessage = read(&mut stream).await;
        assert_eq!(answer.r#type(), stop_message::Type::Status);
        answer.status()
    }

    async fn is_connected_to(&self, guest: PeerId) -> bool {
        self.node
            .with(move |swarm| swarm.is_connected(&guest))
            .await
    }
}

fn status(status: i32) -> HopMessage {
    HopMessage {
        r#type: Some(hop_message::Type::Status.into()),
        status: Some(status),
        ..Default::default()
    }
}

/// What a relay says that grants a reservation.
fn granted(addresses: Vec<Multiaddr>) -> Vec<u8> {
    let hour = Duration::from_secs(3600);
    let end = (SystemTime::now() + hour).duration_since(SystemTime::UNIX_EPOCH);
    frame(&HopMessage {
        reservation: Some(wire::Reservation {
            expire: Some(end.unwrap().as_secs()),
            addrs: addresses
                .into_iter()
                .map(|address| address.to_vec().into())
                .collect(),
            voucher: None,
        }),
        ..status(100)
    })
}

/// Answers that are none, to any request.
fn no_answers() -> Vec<Vec<u8>> {
    vec![
        frame(&status(777)),
        // `UNUSED` of the specification's third version of the syntax.
        frame(&status(0)),
        frame(&HopMessage {
            status: None,
            ..status(100)
        }),
        frame(&HopMessage {
            r#type: None,
            ..status(100)
        }),
        frame(&connect(PeerId::random())),
        frame(&reserve()),
        vec![0x81, 0x20],
        vec![0xff; 64],
        vec![100, 0x08],
        vec![3, 0xee, 0xee, 0xee],
    ]
}

async fn add_relay(node: &Running<Client>, address: &Multiaddr) {
    let address = address.clone();
    node.with(move |swarm| swarm.behaviour_mut().client.add_relay(address))
        .await
        .unwrap();
}

async fn held(node: &Running<Client>) -> usize {
    node.with(|swarm| swarm.behaviour().client.reservations().len())
        .await
}

async fn reserved_at(rogue: &mut Rogue) -> Running<Client> {
    let (mut node, _) = client(impatient()).await;
    add_relay(&node, &rogue.address).await;
    let address = rogue.address.clone();
    rogue.answers(&reserve(), &granted(vec![address])).await;
    node.reserved().await;
    node
}

#[tokio::test]
async fn an_answer_to_a_reserve_that_is_none_is_a_violation_and_closes_nothing_else() {
    let mut rogue = rogue().await;
    // It asks by itself no second time.
    let patient = client::Config::builder()
        .backoff_initial(Duration::from_secs(300))
        .build()
        .unwrap();
    let (mut node, _) = client(patient).await;
    let relay = rogue.node.id;
    let mut answers: Vec<_> = no_answers()
        .into_iter()
        .map(|answer| (answer, LossReason::ProtocolViolation))
        .collect();
    answers.push((
        frame(&status(201)),
        LossReason::Refused(StatusCode::ResourceLimitExceeded),
    ));
    // No byte at all is no message, either good or bad.
    answers.push((Vec::new(), LossReason::Stream));
    for (answer, expected) in answers {
        add_relay(&node, &rogue.address).await;
        rogue.answers(&reserve(), &answer).await;
        let why = node
            .wait_client("failure", |event| match event {
                client::Event::Failed { why, .. } => Some(*why),
                client::Event::Reserved { .. } => panic!("reserved by {answer:?}"),
                _ => None,
            })
            .await;
        assert_eq!(why, expected, "{answer:?}");
        // Named anew, it is asked anew, over the same connection.
        assert!(
            node.with(move |swarm| swarm.behaviour_mut().client.remove_relay(&relay))
                .await
        );
        assert!(rogue.is_connected_to(node.id).await);
    }
    add_relay(&node, &rogue.address).await;
    let address = rogue.address.clone();
    rogue.answers(&reserve(), &granted(vec![address])).await;
    node.reserved().await;
    let closed = |event: &SwarmEvent<_>| matches!(event, SwarmEvent::ConnectionClosed { .. });
    assert!(!node.so_far().iter().any(closed));
}

#[tokio::test]
async fn an_answer_to_a_connect_that_is_none_fails_the_dial_and_costs_no_reservation() {
    let mut rogue = rogue().await;
    let mut node = reserved_at(&mut rogue).await;
    let mut answers = no_answers();
    answers.push(frame(&status(204)));
    // It says yes, and what follows is no handshake.
    let mut nonsense = frame(&status(100));
    nonsense.extend([0xab; 5000]);
    answers.push(nonsense);
    for answer in answers {
        let to = PeerId::random();
        let address = rogue
            .address
            .clone()
            .with(Protocol::P2pCircuit)
            .with(Protocol::P2p(to));
        node.with(move |swarm| swarm.dial(address)).await.unwrap();
        rogue.answers(&connect(to), &answer).await;
        node.wait("failed dial", |event| match event {
            SwarmEvent::OutgoingConnectionError { peer_id, .. } => {
                (*peer_id == Some(to)).then_some(())
            }
            SwarmEvent::ConnectionClosed { .. } => panic!("closed by {answer:?}"),
            SwarmEvent::Behaviour(common::ClientEvent::Client(client::Event::Lost {
                why, ..
            })) => panic!("{why}, by {answer:?}"),
            _ => None,
        })
        .await;
    }
    assert_eq!(held(&node).await, 1);
    assert!(rogue.is_connected_to(node.id).await);
}

#[tokio::test]
async fn what_a_relay_brings_that_is_no_circuit_is_refused_for_what_it_is() {
    let mut rogue = rogue().await;
    let node = reserved_at(&mut rogue).await;
    let circuit = StopMessage {
        r#type: Some(stop_message::Type::Connect.into()),
        peer: Some(wire::Peer {
            id: Some(PeerId::random().to_bytes().into()),
            addrs: Vec::new(),
        }),
        ..Default::default()
    };
    let malformed = wire::Status::MalformedMessage;
    let with = |change: fn(&mut StopMessage)| {
        let mut message = circuit.clone();
        change(&mut message);
        frame(&message)
    };
    let bad_id = |message: &mut StopMessage| {
        message.peer = Some(wire::Peer {
            id: Some(vec![1, 2, 3].into()),
            addrs: Vec::new(),
        });
    };
    for (bytes, expected) in [
        (vec![0x81, 0x20], malformed),
        (vec![0xff; 64], malformed),
        (vec![3, 0xee, 0xee, 0xee], malformed),
        (with(|message| message.r#type = None), malformed),
        (with(|message| message.r#type = Some(9)), malformed),
        (with(|message| message.peer = None), malformed),
        (with(bad_id), malformed),
        (frame(&accept()), wire::Status::UnexpectedMessage),
        (frame(&circuit), wire::Status::Ok),
    ] {
        let says = rogue.brings(node.id, &bytes).await;
        assert_eq!(says, expected, "{bytes:?}");
    }
    // Circuits that nobody finishes take no more than their places, for as long as they last.
    let mut half_open = Vec::new();
    for _ in 0..40 {
        half_open.push(rogue.stop(node.id, &[60, 0x08]).await);
    }
    let ends = half_open.iter_mut().map(|stream| {
        let ended = async {
            let mut byte = [0];
            matches!(stream.read(&mut byte).await, Ok(0) | Err(_))
        };
        Box::pin(ended)
    });
    let first = futures::future::select_all(ends);
    let (ended, ..) = tokio::time::timeout(PATIENCE, first).await.unwrap();
    assert!(ended);
    drop(half_open);
    let taken = async {
        loop {
            let mut stream = rogue.stop(node.id, &frame(&circuit)).await;
            let mut length = [0];
            if stream.read_exact(&mut length).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, taken).await.unwrap();
    assert_eq!(held(&node).await, 1);
    assert!(rogue.is_connected_to(node.id).await);
}

#[tokio::test]
async fn a_peer_at_which_nothing_is_reserved_brings_no_circuits() {
    let mut rogue = rogue().await;
    let (mut node, _) = client(impatient()).await;
    let to = rogue.address.clone();
    node.with(move |swarm| swarm.dial(to)).await.unwrap();
    node.wait("connection", |event| {
        matches!(event, SwarmEvent::ConnectionEstablished { .. }).then_some(())
    })
    .await;
    let circuit = StopMessage {
        r#type: Some(stop_message::Type::Connect.into()),
        peer: Some(wire::Peer {
            id: Some(PeerId::random().to_bytes().into()),
            addrs: Vec::new(),
        }),
        ..Default::default()
    };
    let says = rogue.brings(node.id, &frame(&circuit)).await;
    assert_eq!(says, wire::Status::NoReservation);
}

/// It names no end, or one that is over, and a thousand addresses, or none.
#[tokio::test]
async fn a_relay_that_grants_nonsense_is_used_for_what_is_known_of_it() {
    let mut rogue = rogue().await;
    let itself = rogue.address.clone();
    let elsewhere = |number: u32| -> Multiaddr {
        let address: Multiaddr = format!("/memory/{}", 1_000_000 + number).parse().unwrap();
        address.with(Protocol::P2p(PeerId::random()))
    };
    let circuit = itself
        .clone()
        .with(Protocol::P2pCircuit)
        .with(Protocol::P2p(PeerId::random()));
    let answers = [
        frame(&status(100)),
        frame(&HopMessage {
            reservation: Some(wire::Reservation {
                expire: Some(1),
                addrs: vec![vec![0xff; 9].into(), circuit.to_vec().into()],
                voucher: Some(vec![7; 99].into()),
            }),
            ..status(100)
        }),
        frame(&HopMessage {
            reservation: Some(wire::Reservation {
                expire: Some(u64::MAX),
                addrs: Vec::new(),
                voucher: None,
            }),
            ..status(100)
        }),
        granted((0..80).map(elsewhere).collect()),
    ];
    // Its own address, and at most eight that it names.
    for (answer, listens) in answers.into_iter().zip([1, 1, 1, 9]) {
        let (mut node, _) = client(impatient()).await;
        add_relay(&node, &itself).await;
        rogue.answers(&reserve(), &answer).await;
        let (address, _) = node.reserved().await;
        let here = itself
            .clone()
            .with(Protocol::P2pCircuit)
            .with(Protocol::P2p(node.id));
        assert_eq!(address, here);
        let (mut listening, mut confirmed) = (0, false);
        node.wait("addresses", |event| {
            match event {
                SwarmEvent::NewListenAddr { address, .. } => {
                    listening += usize::from(anypath_relay::is_relayed(address));
                }
                SwarmEvent::ExternalAddrConfirmed { .. } => confirmed = true,
                _ => {}
            }
            (confirmed && listening == listens).then_some(())
        })
        .await;
        let relayed = node
            .with(|swarm| {
                let all = swarm.listeners().filter(|at| anypath_relay::is_relayed(at));
                all.cloned().collect::<Vec<_>>()
            })
            .await;
        assert_eq!(relayed.len(), listens, "{relayed:?}");
        let through = Protocol::P2p(rogue.node.id);
        assert!(
            relayed
                .iter()
                .all(|address| address.iter().any(|part| part == through)),
            "it speaks for itself alone: {relayed:?}"
        );
        let external = node
            .with(|swarm| swarm.external_addresses().cloned().collect::<Vec<_>>())
            .await;
        assert_eq!(external, [here]);
    }
}
