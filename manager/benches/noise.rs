//! Our Noise beside libp2p's: 1 MiB encrypted, moved through memory and decrypted, on one thread.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a benchmark fails like a test"
)]

use std::{
    collections::VecDeque,
    hint::black_box,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::{AsyncRead, AsyncWrite, executor::block_on, future::join};
use libp2p::{
    core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
    identity::Keypair,
};

const BYTES: usize = 1 << 20;
/// As Yamux writes, and reads.
const PIECE: usize = 16 << 10;

/// What one end has written and the other has not read.
type Way = Arc<Mutex<VecDeque<u8>>>;

struct Socket {
    from: Way,
    to: Way,
}

fn sockets() -> (Socket, Socket) {
    let (one, other) = (Way::default(), Way::default());
    let first = Socket {
        from: one.clone(),
        to: other.clone(),
    };
    let second = Socket {
        from: other,
        to: one,
    };
    (first, second)
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut way = self.from.lock().unwrap();
        if way.is_empty() {
            // The other end writes in the same task.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let size = io::Read::read(&mut *way, to)?;
        Poll::Ready(Ok(size))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.to.lock().unwrap().extend(from);
        Poll::Ready(Ok(from.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Two ends after the handshake.
fn connect<C, S, E>(dialer: C, listener: C) -> (S, S)
where
    C: InboundConnectionUpgrade<
            Socket,
            Output = (libp2p::PeerId, S),
            Error = E,
            Info = &'static str,
        > + OutboundConnectionUpgrade<
            Socket,
            Output = (libp2p::PeerId, S),
            Error = E,
            Info = &'static str,
        >,
    E: std::fmt::Debug,
{
    let (one, other) = sockets();
    let (dialed, accepted) = block_on(join(
        dialer.upgrade_outbound(one, "/noise"),
        listener.upgrade_inbound(other, "/noise"),
    ));
    (
        dialed.expect("a handshake").1,
        accepted.expect("a handshake").1,
    )
}

fn through<S: AsyncRead + AsyncWrite + Unpin>(writer: &mut S, reader: &mut S, piece: &mut [u8]) {
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..BYTES / piece.len() {
        let mut left = &*piece;
        while !left.is_empty() {
            match Pin::new(&mut *writer).poll_write(&mut context, left) {
                Poll::Ready(written) => left = left.get(written.unwrap()..).unwrap(),
                Poll::Pending => unreachable!("there is room"),
            }
        }
    }
    let flushed = Pin::new(&mut *writer).poll_flush(&mut context);
    assert!(flushed.is_ready(), "there is room");
    let mut left = BYTES;
    while left > 0 {
        if let Poll::Ready(read) = Pin::new(&mut *reader).poll_read(&mut context, piece) {
            left -= read.unwrap();
        }
    }
    black_box(piece);
}

fn noise(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("noise");
    group.throughput(Throughput::Bytes(BYTES as u64));
    let keypair = Keypair::generate_ed25519();
    let mut piece = vec![7; PIECE];

    let ours = || anypath::noise::Config::new(&keypair).unwrap();
    let (mut writer, mut reader) = connect(ours(), ours());
    group.bench_function("ours", |bencher| {
        bencher.iter(|| through(&mut writer, &mut reader, &mut piece));
    });

    let stock = || libp2p::noise::Config::new(&keypair).unwrap();
    let (mut writer, mut reader) = connect(stock(), stock());
    group.bench_function("libp2p-noise", |bencher| {
        bencher.iter(|| through(&mut writer, &mut reader, &mut piece));
    });
}

criterion_group!(benches, noise);
criterion_main!(benches);
