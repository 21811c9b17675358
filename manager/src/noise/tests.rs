use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use futures::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
    executor::block_on,
    future::{Either, join, select},
    task::{ArcWake, waker},
};
use libp2p::{
    PeerId,
    core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
    identity::Keypair,
    noise as stock,
};
use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};

use super::{
    Config, Error, NAME,
    buffers::Pools,
    handshake,
    stream::{READ_BUFFER, Stream, WRITE_BUFFER},
};
use pipe::{Pipe, pipe};

/// Two ends of a connection in memory, which moves at most so many bytes at once.
mod pipe {
    use std::{
        collections::VecDeque,
        io,
        pin::Pin,
        sync::{
            Arc, Mutex,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Context, Poll, Waker},
    };

    use futures::{AsyncRead, AsyncWrite};

    #[derive(Default)]
    struct Half {
        bytes: VecDeque<u8>,
        is_closed: bool,
        has_failed: bool,
        reader: Option<Waker>,
        writer: Option<Waker>,
    }

    pub(super) struct Pipe {
        from: Arc<Mutex<Half>>,
        to: Arc<Mutex<Half>>,
        step: usize,
        room: usize,
        written: Arc<AtomicUsize>,
    }

    /// Reads and writes move `step` bytes at most, and `room` wait in it at most.
    pub(super) fn pipe(step: usize, room: usize) -> (Pipe, Pipe) {
        let [one, other] = [(); 2].map(|()| Arc::new(Mutex::new(Half::default())));
        let end = |from: &Arc<_>, to: &Arc<_>| Pipe {
            from: Arc::clone(from),
            to: Arc::clone(to),
            step,
            room,
            written: Arc::default(),
        };
        (end(&one, &other), end(&other, &one))
    }

    impl Pipe {
        /// What waits to be read at this end.
        pub(super) fn tamper(&self, change: impl FnOnce(&mut VecDeque<u8>)) {
            change(&mut self.from.lock().unwrap().bytes);
        }

        /// The next read fails, and those after it find an end.
        pub(super) fn fail(&self) {
            let mut half = self.from.lock().unwrap();
            (half.has_failed, half.is_closed) = (true, true);
        }

        /// How much this end has written.
        pub(super) fn count(&self) -> Arc<AtomicUsize> {
            self.written.clone()
        }
    }

    impl AsyncRead for Pipe {
        fn poll_read(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            to: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let mut half = self.from.lock().unwrap();
            if std::mem::take(&mut half.has_failed) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let size = to.len().min(self.step).min(half.bytes.len());
            if size == 0 {
                if half.is_closed {
                    return Poll::Ready(Ok(0));
                }
                half.reader = Some(context.waker().clone());
                return Poll::Pending;
            }
            for (to, from) in to.iter_mut().zip(half.bytes.drain(..size)) {
                *to = from;
            }
            if let Some(writer) = half.writer.take() {
                writer.wake();
            }
            Poll::Ready(Ok(size))
        }
    }

    impl AsyncWrite for Pipe {
        fn poll_write(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            from: &[u8],
        ) -> Poll<io::Result<usize>> {
            let mut half = self.to.lock().unwrap();
            let size = from.len().min(self.step).min(self.room - half.bytes.len());
            if size == 0 {
                half.writer = Some(context.waker().clone());
                return Poll::Pending;
            }
            half.bytes.extend(from.get(..size).unwrap());
            self.written.fetch_add(size, Ordering::Relaxed);
            if let Some(reader) = half.reader.take() {
                reader.wake();
            }
            Poll::Ready(Ok(size))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            let mut half = self.to.lock().unwrap();
            half.is_closed = true;
            if let Some(reader) = half.reader.take() {
                reader.wake();
            }
            Poll::Ready(Ok(()))
        }
    }
}

const WIDE: usize = usize::MAX / 2;

fn config() -> (PeerId, Config) {
    let keypair = Keypair::generate_ed25519();
    let config = Config::new(&keypair).unwrap();
    (keypair.public().to_peer_id(), config)
}

/// Two ends that have shaken hands.
fn pair(step: usize, room: usize) -> (Config, Stream<Pipe>, Stream<Pipe>) {
    let (dialer, listener) = pipe(step, room);
    let (config, other) = (config().1, config().1);
    let ours = config.clone().upgrade_outbound(dialer, NAME);
    let theirs = other.upgrade_inbound(listener, NAME);
    let (ours, theirs) = block_on(join(ours, theirs));
    (config, ours.unwrap().1, theirs.unwrap().1)
}

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(length as u64).fill_bytes(&mut bytes);
    bytes
}

/// One end sends, the other reads to the end of the connection.
fn send_and_receive<A, B>(from: &mut A, to: &mut B, bytes: &[u8], piece: usize) -> Vec<u8>
where
    A: AsyncWrite + Unpin,
    B: AsyncRead + Unpin,
{
    let mut came = Vec::new();
    block_on(join(
        async {
            for (index, piece) in bytes.chunks(piece).enumerate() {
                from.write_all(piece).await.unwrap();
                if index % 2 == 0 {
                    from.flush().await.unwrap();
                }
            }
            from.close().await.unwrap();
        },
        async {
            to.read_to_end(&mut came).await.unwrap();
        },
    ));
    came
}

fn poll_read<S: AsyncRead + Unpin>(stream: &mut S, to: &mut [u8]) -> Poll<std::io::Result<usize>> {
    Pin::new(stream).poll_read(&mut Context::from_waker(Waker::noop()), to)
}

#[test]
fn each_end_learns_who_the_other_is() {
    let (dialer, listener) = pipe(WIDE, WIDE);
    let (us, ours) = config();
    let (them, theirs) = config();
    let (dialed, accepted) = block_on(join(
        ours.upgrade_outbound(dialer, NAME),
        theirs.upgrade_inbound(listener, NAME),
    ));
    assert_eq!(dialed.unwrap().0, them);
    assert_eq!(accepted.unwrap().0, us);
}

#[test]
fn libp2ps_own_noise_is_spoken_with_in_both_roles_and_directions() {
    // More messages than a byte counts.
    let bytes = random(300 * 1024);
    let keypair = Keypair::generate_ed25519();
    for we_dial in [true, false] {
        for they_send in [true, false] {
            let (dialer, listener) = pipe(10_000, 100_000);
            let stock = stock::Config::new(&keypair).unwrap();
            let ours = config().1;
            let ((peer, mut ours), (_, mut theirs)) = block_on(async {
                if we_dial {
                    let ours = ours.upgrade_outbound(dialer, NAME);
                    let theirs = stock.upgrade_inbound(listener, NAME);
                    let (ours, theirs) = join(ours, theirs).await;
                    (ours.unwrap(), theirs.unwrap())
                } else {
                    let ours = ours.upgrade_inbound(listener, NAME);
                    let theirs = stock.upgrade_outbound(dialer, NAME);
                    let (ours, theirs) = join(ours, theirs).await;
                    (ours.unwrap(), theirs.unwrap())
                }
            });
            assert_eq!(peer, keypair.public().to_peer_id());
            let came = if they_send {
                send_and_receive(&mut theirs, &mut ours, &bytes, 512)
            } else {
                send_and_receive(&mut ours, &mut theirs, &bytes, 512)
            };
            assert!(came == bytes, "{we_dial} {they_send}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn what_is_written_is_read(
        length in prop_oneof![0..100usize, 65_000..66_000usize, 130_000..132_000usize],
        piece in prop_oneof![1..40usize, 1000..200_000usize],
        step in prop_oneof![10..100usize, 1000..200_000usize],
        room in prop_oneof![10..100usize, 10_000..300_000usize],
    ) {
        let piece = piece.max(length / 1000 + 1);
        let bytes = random(length);
        let (_, mut one, mut other) = pair(step, room);
        prop_assert!(send_and_receive(&mut one, &mut other, &bytes, piece) == bytes);
    }
}

#[test]
fn a_message_is_as_long_as_the_specification_allows() {
    let (_, mut one, other) = pair(WIDE, WIDE);
    block_on(one.write_all(&random(65_519))).unwrap();
    block_on(one.flush()).unwrap();
    other.socket().tamper(|bytes| {
        assert_eq!(bytes.len(), 2 + 65_535);
        assert_eq!((bytes[0], bytes[1]), (0xff, 0xff));
    });
}

#[test]
fn what_was_changed_on_its_way_is_not_handed_on() {
    let (_, mut one, mut other) = pair(WIDE, WIDE);
    block_on(async {
        one.write_all(b"first").await?;
        one.flush().await?;
        one.write_all(b"second").await?;
        one.flush().await
    })
    .unwrap();
    other.socket().tamper(|bytes| {
        // The last byte of the second message.
        *bytes.back_mut().unwrap() ^= 1;
    });
    let mut to = [0; 100];
    assert!(matches!(poll_read(&mut other, &mut to), Poll::Ready(Ok(5))));
    for _ in 0..2 {
        let Poll::Ready(Err(error)) = poll_read(&mut other, &mut to) else {
            panic!("a changed message was taken");
        };
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    }
}

#[test]
fn a_message_that_comes_twice_ends_the_connection() {
    let (_, mut one, mut other) = pair(WIDE, WIDE);
    block_on(one.write_all(b"pay 10")).unwrap();
    block_on(one.flush()).unwrap();
    other.socket().tamper(|bytes| {
        let again: Vec<_> = bytes.iter().copied().collect();
        bytes.extend(again);
    });
    let mut to = [0; 100];
    assert!(matches!(poll_read(&mut other, &mut to), Poll::Ready(Ok(6))));
    assert!(matches!(
        poll_read(&mut other, &mut to),
        Poll::Ready(Err(_))
    ));
}

#[test]
fn an_end_within_a_message_is_told_from_one_between_two() {
    for cut in [1, 2, 5] {
        let (_, mut one, mut other) = pair(WIDE, WIDE);
        block_on(one.write_all(b"bytes")).unwrap();
        block_on(one.close()).unwrap();
        other.socket().tamper(|bytes| bytes.truncate(cut));
        let Poll::Ready(Err(error)) = poll_read(&mut other, &mut [0; 10]) else {
            panic!("cut after {cut}");
        };
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    }
    let (_, mut one, mut other) = pair(WIDE, WIDE);
    block_on(one.close()).unwrap();
    for _ in 0..2 {
        assert!(matches!(
            poll_read(&mut other, &mut [0; 10]),
            Poll::Ready(Ok(0))
        ));
    }
}

#[test]
fn a_message_shorter_than_its_tag_ends_the_connection() {
    let (_, _one, mut other) = pair(WIDE, WIDE);
    other.socket().tamper(|bytes| bytes.extend([0, 0]));
    assert!(matches!(
        poll_read(&mut other, &mut [0; 10]),
        Poll::Ready(Err(_))
    ));
}

#[test]
fn an_idle_connection_holds_no_buffer_and_part_of_a_message_only_its_size() {
    let (config, mut one, mut other) = pair(WIDE, WIDE);
    block_on(one.write_all(&random(60_000))).unwrap();
    assert_eq!((config.pools.write.len(), one.held()), (0, WRITE_BUFFER));
    block_on(one.flush()).unwrap();
    assert_eq!((config.pools.write.len(), one.held()), (1, 0));

    // The peer sends the beginning of a long message, and no more.
    let mut rest = Vec::new();
    other
        .socket()
        .tamper(|bytes| rest = bytes.split_off(1000).into());
    assert!(poll_read(&mut other, &mut [0; 10]).is_pending());
    assert_eq!(other.held(), 1000);
    other.socket().tamper(|bytes| bytes.extend(rest));
    let mut came = vec![0; 60_000];
    block_on(other.read_exact(&mut came)).unwrap();
    assert!(came == random(60_000));
    assert!(poll_read(&mut other, &mut [0; 10]).is_pending());
    assert_eq!(other.held(), 0);
}

/// Counts how often it is woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl ArcWake for Wakes {
    fn wake_by_ref(wakes: &Arc<Self>) {
        wakes.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads to the end of a turn. Returns what came in it, and whether the reader asks for another one.
fn turn<S: AsyncRead + Unpin>(stream: &mut S, to: &mut [u8]) -> (usize, bool) {
    let wakes = Arc::new(Wakes::default());
    let waker = waker(wakes.clone());
    let mut context = Context::from_waker(&waker);
    let mut came = 0;
    while let Poll::Ready(read) = Pin::new(&mut *stream).poll_read(&mut context, to) {
        came += read.unwrap();
    }
    (came, wakes.0.load(Ordering::Relaxed) == 1)
}

#[test]
fn a_peer_that_takes_nothing_is_owed_one_message() {
    let (_, mut one, _other) = pair(WIDE, 100);
    let bytes = random(200_000);
    let mut context = Context::from_waker(Waker::noop());
    let mut taken = 0;
    while let Poll::Ready(more) = Pin::new(&mut one).poll_write(&mut context, &bytes) {
        taken += more.unwrap();
    }
    assert_eq!((taken, one.held()), (65_519, WRITE_BUFFER));
}

#[test]
fn the_buffers_of_a_busy_time_do_not_all_stay() {
    let pools = Pools::default();
    let busy: Vec<_> = (0..40).map(|_| pools.read.take()).collect();
    assert_eq!(pools.read.len(), 0);
    drop(busy);
    assert_eq!(pools.read.len(), 16);
}

#[test]
fn after_a_failure_of_the_socket_there_is_no_orderly_end() {
    let (_, one, mut other) = pair(WIDE, WIDE);
    other.socket().fail();
    for _ in 0..2 {
        let Poll::Ready(Err(error)) = poll_read(&mut other, &mut [0; 10]) else {
            panic!("an end like any other");
        };
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    drop(one);
}

#[test]
fn whoever_takes_what_comes_gets_a_turn_before_everything_was_read() {
    let (_, mut one, mut other) = pair(WIDE, WIDE);
    block_on(one.write_all(&random(2_000_000))).unwrap();
    block_on(one.flush()).unwrap();
    let mut to = vec![0; READ_BUFFER];
    let mut left = 2_000_000;
    while left > 0 {
        let (came, again) = turn(&mut other, &mut to);
        assert!(came > 0, "a turn without anything");
        // What is left of the burst, and one message.
        assert!(came <= 64 * 1024 + 65_519, "{came}");
        left -= came;
        assert!(again || left == 0, "{left} bytes are forgotten");
    }
    assert_eq!(turn(&mut other, &mut to), (0, false));
}

#[test]
fn messages_without_content_end_a_turn_too() {
    let (_, mut one, mut other) = pair(WIDE, WIDE);
    for _ in 0..1000 {
        one.seal_nothing();
        block_on(one.flush()).unwrap();
    }
    block_on(one.write_all(b"x")).unwrap();
    block_on(one.flush()).unwrap();
    let mut turns = 0;
    loop {
        turns += 1;
        match turn(&mut other, &mut [0; 10]) {
            (0, again) => assert!(again, "the last message is forgotten"),
            (came, _) => break assert_eq!(came, 1),
        }
    }
    assert!(turns >= 4, "{turns}");
}

/// A handshake with a peer that sends `payload`, which `their` static key belongs to.
fn handshake_with(their: &Config, payload: Vec<u8>, we_dial: bool) -> (Error, usize) {
    let mut their = their.clone();
    their.forge(payload);
    let (ours, theirs) = pipe(WIDE, WIDE);
    let written = ours.count();
    let refused = block_on(async {
        if we_dial {
            let refused = pin!(config().1.upgrade_outbound(ours, NAME));
            let accepting = pin!(their.upgrade_inbound(theirs, NAME));
            match select(refused, accepting).await {
                Either::Left((refused, _)) => refused,
                Either::Right((_, refused)) => refused.await,
            }
        } else {
            let refused = config().1.upgrade_inbound(ours, NAME);
            join(refused, their.upgrade_outbound(theirs, NAME)).await.0
        }
    });
    (refused.unwrap_err(), written.load(Ordering::Relaxed))
}

#[test]
fn a_peer_whose_identity_did_not_sign_its_key_is_refused() {
    let their = config().1;
    let stranger = Keypair::generate_ed25519();
    let other_key = stranger.sign(b"noise-libp2p-static-key:another").unwrap();
    // What somebody who sits between two peers can pass on: the true payload of one of them.
    let genuine = Config::new(&stranger).unwrap().identity.payload.clone();
    for payload in [
        handshake::payload(&stranger.public(), other_key),
        handshake::payload(&stranger.public(), Vec::new()),
        genuine,
    ] {
        let (refused, _) = handshake_with(&their, payload.clone(), false);
        assert!(matches!(refused, Error::Signature), "{refused:?}");
        let (refused, written) = handshake_with(&their, payload, true);
        assert!(matches!(refused, Error::Signature), "{refused:?}");
        // Our ephemeral key: it is not told who we are.
        assert_eq!(written, 2 + 32);
    }
    for we_dial in [true, false] {
        let (refused, _) = handshake_with(&their, Vec::new(), we_dial);
        assert!(matches!(refused, Error::Identity(_)), "{refused:?}");
        let (refused, _) = handshake_with(&their, vec![0xff; 20], we_dial);
        assert!(matches!(refused, Error::Payload(_)), "{refused:?}");
    }
}

#[test]
fn handshakes_that_are_none_end_with_a_reason() {
    let receive = |bytes: &[u8]| {
        let (mut peer, socket) = pipe(WIDE, WIDE);
        let upgrade = config().1.upgrade_inbound(socket, NAME);
        block_on(async {
            peer.write_all(bytes).await.unwrap();
            peer.close().await.unwrap();
            upgrade.await.unwrap_err()
        })
    };
    assert!(matches!(receive(&[]), Error::Io(_)));
    assert!(matches!(receive(&[0]), Error::Io(_)));
    assert!(matches!(receive(&[0, 32, 1, 2]), Error::Io(_)));
    assert!(matches!(receive(&[0, 0]), Error::Noise(_)));
    assert!(matches!(receive(&[0xff, 0xff]), Error::TooLong(65_535)));
    let mut early = vec![0, 36];
    early.extend([7; 36]);
    assert!(matches!(receive(&early), Error::EarlyPayload));
}

#[test]
fn a_handshake_waits_for_a_silent_peer() {
    // The node's transport ends it after its timeout.
    let (_peer, socket) = pipe(WIDE, WIDE);
    let mut upgrade = pin!(config().1.upgrade_inbound(socket, NAME));
    let poll = upgrade
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
    assert!(poll.is_pending());
}
