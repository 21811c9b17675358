//! The rules of circuit-v2, each against a peer that speaks the bytes by hand.
//!
//! Sentences in quotes are those of <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md>.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "test code on tokio, with the wall clock that the protocol shows"
)]

mod common;
#[path = "common/hand.rs"]
mod hand;

use std::time::{Duration, SystemTime};

use anypath_relay::{
    HOP_PROTOCOL_NAME, STOP_PROTOCOL_NAME, Voucher,
    server::{self, Access, CircuitEnd, CloseReason, RateLimit, Status},
};
use common::{Relay, Running, impatient, relay, relay_as, relay_that_keeps_for};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use hand::{
    Hand, PATIENCE, accept, connect, dial, frame, hand, last, read, reserve,
    wire::{self, HopMessage, StopMessage, hop_message, stop_message},
};
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::{Keypair, PeerId};
use libp2p_stream as stream;
use libp2p_swarm::{Stream, SwarmEvent};

struct Peer {
    node: Running<Hand>,
    control: stream::Control,
    relay: PeerId,
}

/// Connected to the relay at `address`.
async fn peer(address: &Multiaddr) -> Peer {
    let (mut node, control) = hand();
    dial(&mut node, address).await;
    Peer {
        node,
        control,
        relay: last(address),
    }
}

impl Peer {
    fn id(&self) -> PeerId {
        self.node.id
    }

    async fn hop(&mut self) -> Stream {
        self.control
            .open_stream(self.relay, HOP_PROTOCOL_NAME)
            .await
            .unwrap()
    }

    /// Sends bytes as they are and reads the answer.
    async fn send(&mut self, bytes: &[u8]) -> HopMessage {
        let mut stream = self.hop().await;
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        answer(&mut stream).await
    }

    async fn reserve(&mut self) -> HopMessage {
        self.send(&frame(&reserve())).await
    }

    async fn connect(&mut self, to: PeerId) -> HopMessage {
        self.send(&frame(&connect(to))).await
    }

    /// Everything works as if nothing had happened.
    async fn is_served(&mut self) {
        assert_eq!(self.reserve().await.status(), wire::Status::Ok);
        let relay = self.relay;
        let connected = self
            .node
            .with(move |swarm| swarm.is_connected(&relay))
            .await;
        assert!(connected);
    }
}

async fn answer(stream: &mut Stream) -> HopMessage {
    let message: HopMessage = read(stream).await;
    assert_eq!(message.r#type(), hop_message::Type::Status);
    message
}

/// The next stop stream and the message on it.
async fn stop(incoming: &mut stream::IncomingStreams) -> (Stream, StopMessage) {
    let next = tokio::time::timeout(PATIENCE, incoming.next());
    let (_, mut stream) = next.await.expect("no stop stream").unwrap();
    let message = read(&mut stream).await;
    (stream, message)
}

fn quick() -> server::ConfigBuilder {
    server::Config::builder().handshake_timeout(Duration::from_millis(300))
}

async fn relay_with(config: server::ConfigBuilder) -> (Running<Relay>, Multiaddr) {
    relay(config.build().unwrap()).await
}

#[tokio::test]
async fn an_accepted_reservation_says_all_that_it_has_to() {
    let (relay, at) = relay(server::Config::default()).await;
    let mut peer = peer(&at).await;
    let before = SystemTime::now();
    let message = peer.reserve().await;
    // "type = STATUS, status = OK, reservation = Reservation {...}, limit = Limit {...}"
    assert_eq!(message.status(), wire::Status::Ok);
    let limit = message.limit.unwrap();
    // "The maximum duration of a relayed connection in seconds"; "the maximum number of bytes […] in each direction".
    assert_eq!((limit.duration, limit.data), (Some(120), Some(1 << 17)));
    let reservation = message.reservation.unwrap();
    // "The expiration time as a UTC UNIX time."
    let seconds = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs()
    };
    let expires = reservation.expire.unwrap();
    assert!((seconds(before) + 3600..=seconds(SystemTime::now()) + 3600).contains(&expires));
    // "All the public relay addrs, including the peer ID of the relay node but not the trailing p2p-circuit part."
    let addresses: Vec<Multiaddr> = reservation
        .addrs
        .iter()
        .map(|address| Multiaddr::try_from(address.to_vec()).unwrap())
        .collect();
    assert_eq!(addresses, [at]);
    // "Successful relay slot reservations should come with Reservation Vouchers."
    let voucher = Voucher::open(&reservation.voucher.unwrap()).unwrap();
    let (relay, holder) = (relay.id, peer.id());
    assert_eq!((voucher.relay, voucher.peer), (relay, holder));
    assert_eq!(voucher.expires, expires);
    assert_eq!(voucher.check(relay, holder, SystemTime::now()), Ok(()));
}

#[tokio::test]
async fn a_message_that_is_none_is_malformed_and_closes_nothing_else() {
    let (mut relay, at) = relay_with(quick()).await;
    let mut peer = peer(&at).await;
    let mut garbage = vec![200, 1];
    garbage.extend([0xee; 200]);
    let too_long: Vec<u8> = [0x81, 0x20].into_iter().chain([0; 4097]).collect();
    let unknown_type = frame(&HopMessage {
        r#type: Some(17),
        ..Default::default()
    });
    let no_peer = frame(&HopMessage {
        peer: None,
        ..connect(relay.id)
    });
    let bad_peer = frame(&HopMessage {
        peer: Some(wire::Peer {
            id: Some(vec![1, 2, 3].into()),
            addrs: Vec::new(),
        }),
        ..connect(relay.id)
    });
    for bytes in [
        vec![0],
        vec![0xff; 12],
        garbage,
        too_long,
        unknown_type,
        no_peer,
        bad_peer,
    ] {
        let message = peer.send(&bytes).await;
        assert_eq!(
            message.status(),
            wire::Status::MalformedMessage,
            "{bytes:?}"
        );
        relay
            .wait_relay("violation", |event| match event {
                server::Event::ProtocolViolation { peer: who, .. } => {
                    (*who == peer.node.id).then_some(())
                }
                _ => None,
            })
            .await;
    }
    peer.is_served().await;
}

#[tokio::test]
async fn a_truncated_message_is_malformed() {
    let (_relay, at) = relay_with(quick()).await;
    let mut peer = peer(&at).await;
    for bytes in [
        vec![0x80],
        vec![5, 0x08],
        frame(&connect(peer.id()))[..9].to_vec(),
    ] {
        let mut stream = peer.hop().await;
        stream.write_all(&bytes).await.unwrap();
        stream.close().await.unwrap();
        let message = answer(&mut stream).await;
        assert_eq!(
            message.status(),
            wire::Status::MalformedMessage,
            "{bytes:?}"
        );
    }
    peer.is_served().await;
}

#[tokio::test]
async fn a_status_is_no_request() {
    let (_relay, at) = relay_with(quick()).await;
    let mut peer = peer(&at).await;
    let status = HopMessage {
        r#type: Some(hop_message::Type::Status.into()),
        status: Some(wire::Status::Ok.into()),
        ..Default::default()
    };
    let message = peer.send(&frame(&status)).await;
    assert_eq!(message.status(), wire::Status::UnexpectedMessage);
    peer.is_served().await;
}

#[tokio::test]
async fn what_follows_a_reserve_is_nobodys_business() {
    let (_relay, at) = relay_with(quick()).await;
    let mut peer = peer(&at).await;
    let mut bytes = frame(&reserve());
    bytes.extend([0xff; 10_000]);
    assert_eq!(peer.send(&bytes).await.status(), wire::Status::Ok);
    peer.is_served().await;
}

#[tokio::test]
async fn a_hop_to_oneself_or_to_the_relay_leads_nowhere() {
    let (relay, at) = relay_with(quick()).await;
    let mut peer = peer(&at).await;
    peer.is_served().await;
    let itself = peer.id();
    let message = peer.connect(itself).await;
    assert_eq!(message.status(), wire::Status::PermissionDenied);
    let message = peer.connect(relay.id).await;
    assert_eq!(message.status(), wire::Status::NoReservation);
    // "NO_RESERVATION if there is no active reservation for the target peer"
    let message = peer.connect(PeerId::random()).await;
    assert_eq!(message.status(), wire::Status::NoReservation);
    peer.is_served().await;
}

#[tokio::test]
async fn nothing_is_granted_over_a_circuit() {
    // The second relay is a guest of the first, and the peer reaches it there only.
    let (_first, at_first) = relay(server::Config::default()).await;
    let (mut second, _) = common::client(impatient()).await;
    let to = at_first.clone();
    second
        .with(move |swarm| swarm.behaviour_mut().client.add_relay(to))
        .await
        .unwrap();
    let (relayed, _) = second.reserved().await;
    second
        .with(|swarm| swarm.behaviour_mut().server.set_status(Status::Enabled))
        .await;
    let mut peer = peer(&at_first).await;
    dial(&mut peer.node, &relayed).await;
    peer.relay = second.id;
    let message = peer.reserve().await;
    assert_eq!(message.status(), wire::Status::PermissionDenied);
    let message = peer.connect(PeerId::random()).await;
    assert_eq!(message.status(), wire::Status::PermissionDenied);
}

#[tokio::test]
async fn a_replayed_voucher_buys_nothing() {
    let (_relay, at) = relay_with(quick()).await;
    let (mut owner, mut thief) = (peer(&at).await, peer(&at).await);
    let loot = owner.reserve().await.reservation;
    let with_loot = HopMessage {
        reservation: loot,
        ..reserve()
    };
    let message = thief.send(&frame(&with_loot)).await;
    let voucher = message.reservation.unwrap().voucher.unwrap();
    assert_eq!(Voucher::open(&voucher).unwrap().peer, thief.id());
    let victim = Voucher::open(&with_loot.reservation.unwrap().voucher.unwrap()).unwrap();
    let now = SystemTime::now();
    assert!(victim.check(victim.relay, thief.id(), now).is_err());
}

#[tokio::test]
async fn the_destination_learns_who_calls_and_early_bytes_reach_it() {
    let (mut relay, at) = relay_with(quick()).await;
    let (mut source, mut destination) = (peer(&at).await, peer(&at).await);
    let mut incoming = destination.control.accept(STOP_PROTOCOL_NAME).unwrap();
    destination.is_served().await;
    let mut stream = source.hop().await;
    let mut bytes = frame(&connect(destination.id()));
    bytes.extend(b"early");
    stream.write_all(&bytes).await.unwrap();
    stream.flush().await.unwrap();

    let (mut taken, message) = stop(&mut incoming).await;
    // "type = CONNECT, peer = Peer { ID = ...}, limit = Limit { ...}"; "the peer ID of the connection initiator"
    assert_eq!(message.r#type(), stop_message::Type::Connect);
    assert_eq!(message.peer.unwrap().id.unwrap(), source.id().to_bytes());
    let limit = message.limit.unwrap();
    assert_eq!((limit.duration, limit.data), (Some(120), Some(1 << 17)));
    let mut reply = frame(&accept());
    reply.extend(b"and back");
    taken.write_all(&reply).await.unwrap();
    taken.flush().await.unwrap();

    let message = answer(&mut stream).await;
    assert_eq!(message.status(), wire::Status::Ok);
    assert_eq!(message.limit.unwrap().data, Some(1 << 17));
    assert_eq!(message.reservation, None);
    let mut back = [0; 8];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"and back");
    let mut early = [0; 5];
    taken.read_exact(&mut early).await.unwrap();
    assert_eq!(&early, b"early");
    let so_far = relay.with(|swarm| swarm.behaviour().relay.traffic()).await;
    assert_eq!((so_far.to_destination, so_far.to_source), (5, 8));

    // Half-close: the other direction goes on.
    stream.close().await.unwrap();
    assert_eq!(taken.read(&mut early).await.unwrap(), 0);
    taken.write_all(b"!").await.unwrap();
    taken.close().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"!");
    let (traffic, end) = relay
        .wait_relay("end", |event| match event {
            server::Event::CircuitClosed { traffic, end, .. } => Some((*traffic, *end)),
            _ => None,
        })
        .await;
    assert_eq!(end, CircuitEnd::Completed);
    assert_eq!((traffic.to_destination, traffic.to_source), (5, 9));
    let all = relay.with(|swarm| swarm.behaviour().relay.traffic()).await;
    assert_eq!(all, traffic);
}

#[tokio::test]
async fn a_destination_that_does_not_take_the_circuit_fails_it() {
    let (_relay, at) = relay_with(quick()).await;
    let (mut source, mut destination) = (peer(&at).await, peer(&at).await);
    let mut incoming = destination.control.accept(STOP_PROTOCOL_NAME).unwrap();
    destination.is_served().await;
    let status = |status: i32| {
        frame(&StopMessage {
            status: Some(status),
            ..accept()
        })
    };
    let to = destination.id();
    let replies = [
        (status(203), wire::Status::ConnectionFailed),
        (status(202), wire::Status::PermissionDenied),
        (status(201), wire::Status::ResourceLimitExceeded),
        // What a source could not understand is no business of its.
        (status(777), wire::Status::ConnectionFailed),
        (status(401), wire::Status::ConnectionFailed),
        (vec![0x81, 0x20, 0, 0], wire::Status::ConnectionFailed),
        (vec![7, 7], wire::Status::ConnectionFailed),
        (frame(&connect(to)), wire::Status::ConnectionFailed),
        // Says nothing, and keeps the stream.
        (Vec::new(), wire::Status::ConnectionFailed),
    ];
    for (reply, expected) in replies {
        let destination_side = async {
            let (mut taken, _) = stop(&mut incoming).await;
            taken.write_all(&reply).await.unwrap();
            taken.flush().await.unwrap();
            if !reply.is_empty() {
                taken.close().await.unwrap();
            }
            taken
        };
        let (message, _kept) = tokio::join!(source.connect(to), destination_side);
        assert_eq!(message.status(), expected, "{reply:?}");
    }
    source.is_served().await;
    destination.is_served().await;
}

#[tokio::test]
async fn a_destination_is_asked_no_longer_for_a_source_that_left() {
    // Longer than the test waits for anything.
    let config = server::Config::builder().handshake_timeout(Duration::from_secs(300));
    let (relay, at) = relay_with(config).await;
    let (mut source, mut destination) = (peer(&at).await, peer(&at).await);
    let mut incoming = destination.control.accept(STOP_PROTOCOL_NAME).unwrap();
    destination.is_served().await;
    let mut stream = source.hop().await;
    stream
        .write_all(&frame(&connect(destination.id())))
        .await
        .unwrap();
    stream.flush().await.unwrap();
    let (mut asked, _) = stop(&mut incoming).await;
    drop(source);
    let mut byte = [0];
    let ended = tokio::time::timeout(Duration::from_secs(30), asked.read(&mut byte)).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    // The relay had been told before the destination was; it may take notice a moment later.
    destination.is_served().await;
    let left = relay.with(|swarm| swarm.behaviour().relay.circuits()).await;
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_destination_without_the_stop_protocol_fails_the_circuit() {
    let (_relay, at) = relay_with(quick()).await;
    let (mut source, mut destination) = (peer(&at).await, peer(&at).await);
    destination.is_served().await;
    let to = destination.id();
    // Its client behaviour takes the stream and finds no listener, or nobody does.
    let message = source.connect(to).await;
    assert_eq!(message.status(), wire::Status::ConnectionFailed);
    destination.is_served().await;
}

#[tokio::test]
async fn slow_requests_cost_only_those_who_make_them() {
    let (_relay, at) = relay_with(quick()).await;
    let (mut slow, mut other) = (peer(&at).await, peer(&at).await);
    let mut half_open = Vec::new();
    for _ in 0..40 {
        let mut stream = slow.hop().await;
        // Half a message.
        stream.write_all(&[2, 0x08]).await.unwrap();
        stream.flush().await.unwrap();
        half_open.push(stream);
    }
    other.is_served().await;
    // All are reset in the end, some at once.
    for mut stream in half_open {
        let mut rest = Vec::new();
        match stream.read_to_end(&mut rest).await {
            Ok(_) => assert_eq!(rest, b""),
            Err(error) => assert_ne!(error.kind(), std::io::ErrorKind::TimedOut),
        }
    }
    slow.is_served().await;
}

#[tokio::test]
async fn a_flooder_is_disconnected_and_stays_out_for_a_while() {
    let config = server::Config::builder().flood(RateLimit {
        burst: 10,
        interval: Duration::from_secs(1),
    });
    let (mut relay, at) = relay_with(config).await;
    let (mut flooder, mut other) = (peer(&at).await, peer(&at).await);
    let banned = flooder.id();
    let closed = async {
        for _ in 0..12 {
            let Ok(mut stream) = flooder
                .control
                .open_stream(flooder.relay, HOP_PROTOCOL_NAME)
                .await
            else {
                break;
            };
            let asked = stream.write_all(&frame(&reserve())).await;
            let mut rest = Vec::new();
            if asked.is_err() || stream.read_to_end(&mut rest).await.is_err() {
                break;
            }
        }
        flooder
            .node
            .wait("disconnection", |event| {
                matches!(event, SwarmEvent::ConnectionClosed { .. }).then_some(())
            })
            .await;
    };
    closed.await;
    relay
        .wait_relay("ban", |event| match event {
            server::Event::Banned { peer } => (*peer == banned).then_some(()),
            _ => None,
        })
        .await;
    other.is_served().await;
    let again = at.clone();
    flooder
        .node
        .with(move |swarm| swarm.dial(again))
        .await
        .unwrap();
    relay
        .wait("refused connection", |event| match event {
            SwarmEvent::IncomingConnectionError { peer_id, .. } => {
                (*peer_id == Some(banned)).then_some(())
            }
            SwarmEvent::ConnectionEstablished { peer_id, .. } if *peer_id == banned => {
                panic!("let in")
            }
            _ => None,
        })
        .await;
    other.is_served().await;
}

#[tokio::test]
async fn access_lists_deny_with_the_right_status_and_lift_limits() {
    let (relay, at) = relay_with(quick()).await;
    let (mut friend, mut foe, mut other) = (peer(&at).await, peer(&at).await, peer(&at).await);
    let access = Access::default()
        .allow_peer(friend.id())
        .deny_peer(foe.id());
    relay
        .with(move |swarm| swarm.behaviour_mut().relay.set_access(access))
        .await;
    // "PERMISSION_DENIED if the reservation is rejected because of peer filtering using ACLs."
    let message = foe.reserve().await;
    assert_eq!(message.status(), wire::Status::PermissionDenied);
    // "When omitted, it indicates that the relay does not apply any limits."
    let message = friend.reserve().await;
    assert_eq!((message.status(), message.limit), (wire::Status::Ok, None));
    let message = foe.connect(friend.id()).await;
    assert_eq!(message.status(), wire::Status::PermissionDenied);
    let mut incoming = friend.control.accept(STOP_PROTOCOL_NAME).unwrap();
    let to = friend.id();
    let (message, ()) = tokio::join!(other.connect(to), async {
        let (mut taken, message) = stop(&mut incoming).await;
        assert_eq!(message.limit, None);
        taken.write_all(&frame(&accept())).await.unwrap();
        taken.flush().await.unwrap();
    });
    assert_eq!((message.status(), message.limit), (wire::Status::Ok, None));
}

#[tokio::test]
async fn a_reservation_is_over_when_its_peer_is_gone() {
    let (mut relay, at) = relay_with(quick()).await;
    let (mut source, mut destination) = (peer(&at).await, peer(&at).await);
    destination.is_served().await;
    let (id, to) = (destination.id(), destination.relay);
    destination
        .node
        .with(move |swarm| swarm.disconnect_peer_id(to))
        .await
        .unwrap();
    // "If the peer disconnects, the reservation is no longer valid."
    let reason = relay
        .wait_relay("end of the reservation", |event| match event {
            server::Event::ReservationClosed { reason, .. } => Some(*reason),
            _ => None,
        })
        .await;
    assert_eq!(reason, CloseReason::ConnectionClosed);
    let message = source.connect(id).await;
    assert_eq!(message.status(), wire::Status::NoReservation);
}

/// "The server may drop a connection according to its connection management policy after all reservations expired. The
/// expectation is that the server will make a best effort attempt to maintain the connection for the duration of any
/// reservations".
#[tokio::test]
async fn a_relay_keeps_the_connections_of_its_guests_and_no_others() {
    let key = Keypair::generate_ed25519();
    let idle = Duration::from_secs(2);
    let config = server::Config::default();
    let (relay, at) = relay_that_keeps_for(idle, &key, Protocol::Memory(0).into(), config).await;
    let mut guest = peer(&at).await;
    assert_eq!(guest.reserve().await.status(), wire::Status::Ok);
    let mut other = peer(&at).await;
    let closed =
        |event: &SwarmEvent<_>| matches!(event, SwarmEvent::ConnectionClosed { .. }).then_some(());
    other.node.wait("end of an idle connection", closed).await;
    let id = guest.id();
    let connected = relay.with(move |swarm| swarm.is_connected(&id)).await;
    assert!(connected, "the guest came before, and is idle, too");
    relay
        .with(|swarm| swarm.behaviour_mut().relay.set_status(Status::Disabled))
        .await;
    guest.node.wait("end of the guest's", closed).await;
}

/// "If more data than the limit specified in the data field is transferred over the relayed connection […] the relay should
/// reset the stream to the source and the stream to the destination."
#[tokio::test]
async fn a_circuit_that_reaches_its_limit_is_reset_at_both_ends() {
    let (_relay, at) = relay_with(quick().max_circuit_bytes(Some(1000))).await;
    let (mut source, mut destination) = (peer(&at).await, peer(&at).await);
    let mut incoming = destination.control.accept(STOP_PROTOCOL_NAME).unwrap();
    destination.is_served().await;
    let mut stream = source.hop().await;
    let asks = frame(&connect(destination.id()));
    stream.write_all(&asks).await.unwrap();
    stream.flush().await.unwrap();
    let (mut taken, _) = stop(&mut incoming).await;
    taken.write_all(&frame(&accept())).await.unwrap();
    taken.flush().await.unwrap();
    assert_eq!(answer(&mut stream).await.status(), wire::Status::Ok);
    stream.write_all(&[7; 1001]).await.unwrap();
    stream.flush().await.unwrap();
    // Neither has closed anything: a stream that takes nothing any more was reset.
    for end in [&mut taken, &mut stream] {
        let refused = async {
            loop {
                let written = end.write_all(b"more").await;
                let sent = end.flush().await;
                if written.is_err() || sent.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, refused).await.unwrap();
    }
    source.is_served().await;
    destination.is_served().await;
}

#[tokio::test]
async fn a_reservation_outlives_one_of_two_connections() {
    let (mut relay, at) = relay_with(quick()).await;
    let (mut source, mut destination) = (peer(&at).await, peer(&at).await);
    destination.is_served().await;
    let first = relay
        .wait_relay("reservation", |event| match event {
            server::Event::ReservationAccepted { connection, .. } => Some(*connection),
            _ => None,
        })
        .await;
    let again = at.clone();
    destination
        .node
        .with(move |swarm| {
            use libp2p_swarm::dial_opts::{DialOpts, PeerCondition};
            let options = DialOpts::peer_id(last(&again))
                .condition(PeerCondition::Always)
                .addresses(vec![again]);
            swarm.dial(options.build())
        })
        .await
        .unwrap();
    let both = destination
        .node
        .wait("second connection", |event| match event {
            SwarmEvent::ConnectionEstablished {
                num_established, ..
            } => Some(*num_established),
            _ => None,
        })
        .await;
    assert_eq!(both.get(), 2);
    let mut incoming = destination.control.accept(STOP_PROTOCOL_NAME).unwrap();
    let id = destination.id();
    // "The reservation remains valid until its expiration, as long as there is an active connection from the peer."
    relay
        .with(move |swarm| assert!(swarm.close_connection(first)))
        .await;
    destination
        .node
        .wait("one connection less", |event| {
            matches!(event, SwarmEvent::ConnectionClosed { .. }).then_some(())
        })
        .await;
    let held = relay
        .with(|swarm| swarm.behaviour().relay.reservations())
        .await;
    assert_eq!(held, 1);
    let (message, ()) = tokio::join!(source.connect(id), async {
        let (mut taken, _) = stop(&mut incoming).await;
        taken.write_all(&frame(&accept())).await.unwrap();
        taken.flush().await.unwrap();
    });
    assert_eq!(message.status(), wire::Status::Ok);
}

#[tokio::test]
async fn a_drained_relay_withdraws_refuses_and_says_when_it_is_done() {
    let (mut relay, at) = relay_with(quick()).await;
    let (mut source, mut destination) = (peer(&at).await, peer(&at).await);
    let mut incoming = destination.control.accept(STOP_PROTOCOL_NAME).unwrap();
    destination.is_served().await;
    let to = destination.id();
    let mut stream = source.hop().await;
    stream.write_all(&frame(&connect(to))).await.unwrap();
    stream.flush().await.unwrap();
    let (mut taken, _) = stop(&mut incoming).await;
    taken.write_all(&frame(&accept())).await.unwrap();
    taken.flush().await.unwrap();
    assert_eq!(answer(&mut stream).await.status(), wire::Status::Ok);
    relay
        .with(|swarm| {
            let relay = &mut swarm.behaviour_mut().relay;
            assert_eq!(relay.open_circuits().len(), 1);
            relay.drain(Duration::from_millis(500));
            assert!(!relay.is_enabled());
        })
        .await;
    // The circuit runs on.
    stream.write_all(b"still").await.unwrap();
    stream.flush().await.unwrap();
    let mut still = [0; 5];
    taken.read_exact(&mut still).await.unwrap();
    assert_eq!(&still, b"still");
    // The protocol is withdrawn.
    let asked = async {
        let mut stream = source
            .control
            .open_stream(source.relay, HOP_PROTOCOL_NAME)
            .await
            .ok()?;
        stream.write_all(&frame(&reserve())).await.ok()?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.ok()
    };
    assert_eq!(asked.await, None);
    let (cut, end) = {
        let mut end = None;
        let cut = relay
            .wait_relay("drained", |event| match event {
                server::Event::CircuitClosed { end: how, .. } => {
                    end = Some(*how);
                    None
                }
                server::Event::Drained { cut } => Some(*cut),
                _ => None,
            })
            .await;
        (cut, end)
    };
    assert_eq!((cut, end), (1, Some(CircuitEnd::Drained)));
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn an_automatic_relay_follows_its_public_addresses() {
    let (mut relay, at) = relay_with(quick()).await;
    relay
        .with(|swarm| swarm.behaviour_mut().relay.set_status(Status::Automatic))
        .await;
    let mut changes = Vec::new();
    for (address, confirm) in [
        ("/ip4/192.168.1.2/tcp/1", true),
        ("/ip4/203.0.113.1/tcp/1", true),
        ("/ip4/203.0.113.1/tcp/1", false),
    ] {
        let address: Multiaddr = address.parse().unwrap();
        let enabled = relay
            .with(move |swarm| {
                if confirm {
                    swarm.add_external_address(address);
                } else {
                    swarm.remove_external_address(&address);
                }
                swarm.behaviour().relay.is_enabled()
            })
            .await;
        changes.push(enabled);
    }
    assert_eq!(changes, [false, true, false]);
    let relayed = at.with(Protocol::P2pCircuit);
    let enabled = relay
        .with(move |swarm| {
            swarm.add_external_address(relayed);
            swarm.behaviour().relay.is_enabled()
        })
        .await;
    assert!(!enabled);
    let mut told = Vec::new();
    for event in relay.so_far() {
        if let SwarmEvent::Behaviour(common::RelayEvent::Relay(server::Event::StatusChanged {
            enabled,
        })) = event
        {
            told.push(enabled);
        }
    }
    // The first one, `true`, went by while the relay was set up.
    assert_eq!(told, [false, true, false]);
}

#[tokio::test]
async fn circuits_may_run_on_an_executor() {
    let key = Keypair::generate_ed25519();
    let config = server::Config::builder()
        .max_circuit_bytes(Some(1000))
        .build()
        .unwrap();
    let (mut relay, at) = relay_as(&key, Protocol::Memory(0).into(), config.clone()).await;
    let own = key.clone();
    relay
        .with(move |swarm| {
            let mut elsewhere = server::Behaviour::new(&own, config).with_executor(|circuit| {
                tokio::spawn(circuit);
            });
            elsewhere.set_status(Status::Enabled);
            // Before any connection.
            swarm.behaviour_mut().relay = elsewhere;
        })
        .await;
    let (mut source, mut destination) = (peer(&at).await, peer(&at).await);
    let mut incoming = destination.control.accept(STOP_PROTOCOL_NAME).unwrap();
    destination.is_served().await;
    let to = destination.id();
    let mut stream = source.hop().await;
    stream.write_all(&frame(&connect(to))).await.unwrap();
    stream.flush().await.unwrap();
    let (mut taken, _) = stop(&mut incoming).await;
    taken.write_all(&frame(&accept())).await.unwrap();
    taken.flush().await.unwrap();
    let message = answer(&mut stream).await;
    assert_eq!(message.limit.unwrap().data, Some(1000));
    stream.write_all(&[7; 1500]).await.unwrap();
    stream.flush().await.unwrap();
    let mut all = Vec::new();
    let _ = taken.read_to_end(&mut all).await;
    assert_eq!(all, [7; 1000], "exactly as many as it may");
    let end = relay
        .wait_relay("end", |event| match event {
            server::Event::CircuitClosed { end, .. } => Some(*end),
            _ => None,
        })
        .await;
    assert_eq!(end, CircuitEnd::ByteLimit);
}
