//! Moves the bytes of a circuit.

use std::{
    cell::RefCell,
    io,
    ops::Range,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use futures::{AsyncRead, AsyncWrite, FutureExt as _, ready, task::AtomicWaker};
use futures_timer::Delay;
use libp2p_identity::PeerId;
use web_time::Instant;

use super::{CircuitEnd, Class, Traffic};
use crate::{CircuitLimit, core::server::bandwidth::Bandwidth};

/// What is read at once between two muxers of frames (yamux cuts at 16 KiB): four of them, as many as one message of noise holds,
/// so that frames which came together leave together.
pub(super) const PIECE_BYTES: usize = 64 << 10;

/// The same where bandwidth is limited, which is exact to a piece, and over QUIC, where larger pieces only come in bursts.
pub(super) const SMALL_PIECE_BYTES: usize = 16 << 10;

/// Pieces that one direction moves before others get a turn.
const PIECES_PER_TURN: usize = 8;

/// Buffers that wait on each thread for the next circuit with bytes.
const STASHED: usize = 4;

thread_local! {
    /// Where idle circuits leave their buffers: bytes flow in bursts, and making a buffer means zeroing it.
    static STASH: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

type Buffer = Box<[u8]>;

fn take_buffer() -> Buffer {
    let stashed = STASH.with_borrow_mut(Vec::pop);
    stashed.unwrap_or_else(|| vec![0; PIECE_BYTES].into_boxed_slice())
}

fn leave_buffer(buffer: Buffer) {
    STASH.with_borrow_mut(|stash| {
        if stash.len() < STASHED {
            stash.push(buffer);
        }
    });
}

/// The bandwidth that all circuits of a relay share, and what one piece may be.
#[derive(Debug, Clone)]
pub(super) struct Throttle {
    bandwidth: Arc<Mutex<Bandwidth>>,
    class: Class,
    ends: [PeerId; 2],
    piece: usize,
}

impl Throttle {
    pub(super) fn new(
        bandwidth: Arc<Mutex<Bandwidth>>,
        piece: usize,
        class: Class,
        ends: [PeerId; 2],
    ) -> Self {
        Self {
            bandwidth,
            class,
            ends,
            piece,
        }
    }

    fn book(&self, bytes: usize, now: Instant) -> Instant {
        // Nothing panics while it is held.
        let mut bandwidth = self
            .bandwidth
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        bandwidth.book(self.class, self.ends, bytes, now)
    }
}

/// What a circuit and the behaviour know of each other: bytes carried so far, and whether it is to stop.
#[derive(Debug, Default)]
pub(super) struct Tally {
    to_destination: AtomicU64,
    to_source: AtomicU64,
    cut: AtomicBool,
    waker: AtomicWaker,
}

impl Tally {
    /// Ends the circuit, wherever it runs.
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn poll_cut(&self, cx: &Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.cut.load(Ordering::Acquire)
    }

    pub(super) fn traffic(&self) -> Traffic {
        Traffic {
            to_destination: self.to_destination.load(Ordering::Relaxed),
            to_source: self.to_source.load(Ordering::Relaxed),
        }
    }
}

/// What a circuit may do.
#[derive(Debug, Clone)]
pub struct Terms {
    pub(super) limit: Option<CircuitLimit>,
    pub(super) throttle: Option<Throttle>,
    /// What is read at once where nothing is throttled, at most [`PIECE_BYTES`].
    pub(super) piece: usize,
    pub(super) tally: Arc<Tally>,
}

/// A circuit between two streams: a future that ends with it.
///
/// "If more data than the limit specified in the `data` field is transferred over the relayed connection, or the relayed
/// connection has been open for longer than `duration`, the relay should reset the stream to the source and the stream to the
/// destination": a muxer resets a stream that is dropped before it was closed, and both are dropped with this.
/// <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#reservation>
pub(super) struct Pump<S, D> {
    source: S,
    destination: D,
    up: Lane,
    down: Lane,
    deadline: Option<Delay>,
    throttle: Option<Throttle>,
    tally: Arc<Tally>,
}

impl<S, D> Pump<S, D>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: AsyncRead + AsyncWrite + Unpin,
{
    pub(super) fn new(source: S, destination: D, terms: Terms) -> Self {
        let limit = terms.limit;
        let lane = || Lane::new(limit.and_then(|limit| limit.bytes), terms.piece);
        Self {
            source,
            destination,
            up: lane(),
            down: lane(),
            deadline: limit.and_then(|limit| limit.duration).map(Delay::new),
            throttle: terms.throttle,
            tally: terms.tally,
        }
    }
}

impl<S, D> Future for Pump<S, D>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: AsyncRead + AsyncWrite + Unpin,
{
    type Output = CircuitEnd;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<CircuitEnd> {
        let this = self.get_mut();
        if let Some(deadline) = &mut this.deadline
            && deadline.poll_unpin(cx).is_ready()
        {
            return Poll::Ready(CircuitEnd::TimeLimit);
        }
        if this.tally.poll_cut(cx) {
            return Poll::Ready(CircuitEnd::Drained);
        }
        let throttle = this.throttle.as_ref();
        let up = this.up.poll(
            &mut this.source,
            &mut this.destination,
            &this.tally.to_destination,
            throttle,
            cx,
        );
        if let Poll::Ready(Err(broken)) = up {
            return Poll::Ready(broken.end(CircuitEnd::SourceLost, CircuitEnd::DestinationLost));
        }
        let down = this.down.poll(
            &mut this.destination,
            &mut this.source,
            &this.tally.to_source,
            throttle,
            cx,
        );
        if let Poll::Ready(Err(broken)) = down {
            return Poll::Ready(broken.end(CircuitEnd::DestinationLost, CircuitEnd::SourceLost));
        }
        match (up, down) {
            (Poll::Ready(_), Poll::Ready(_)) => Poll::Ready(CircuitEnd::Completed),
            _ => Poll::Pending,
        }
    }
}

/// One direction of a circuit.
#[derive(Debug)]
struct Lane {
    /// What is read at once.
    piece: usize,
    /// Bytes that it may still carry; `None`: any number.
    left: Option<u64>,
    state: State,
    /// Only while bytes flow.
    buffer: Option<Buffer>,
    /// What was read last was more than it may carry.
    truncated: bool,
    /// Something was written since the last flush.
    dirty: bool,
}

#[derive(Debug)]
enum State {
    /// Waits for bytes.
    Reading,
    /// Has bytes in the buffer that may not go yet.
    Throttled { until: Delay, bytes: Range<usize> },
    /// Has bytes in the buffer that the receiver is to take.
    Writing(Range<usize>),
    /// Carried all it may; ends the circuit once that is on its way.
    Spent,
    /// The sender is done; tells the receiver.
    Closing,
    /// Both know.
    Closed,
}

/// Why a lane cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    From(io::ErrorKind),
    To(io::ErrorKind),
    Spent,
}

impl Broken {
    fn end(
        self,
        from: fn(io::ErrorKind) -> CircuitEnd,
        to: fn(io::ErrorKind) -> CircuitEnd,
    ) -> CircuitEnd {
        match self {
            Self::From(kind) => from(kind),
            Self::To(kind) => to(kind),
            Self::Spent => CircuitEnd::ByteLimit,
        }
    }
}

fn to(error: io::Error) -> Broken {
    Broken::To(error.kind())
}

impl Lane {
    fn new(left: Option<u64>, piece: usize) -> Self {
        Self {
            piece,
            left,
            state: State::Reading,
            buffer: None,
            truncated: false,
            dirty: false,
        }
    }

    /// Moves what there is. Ready when the sender has closed and the receiver knows.
    fn poll<F: AsyncRead + Unpin, T: AsyncWrite + Unpin>(
        &mut self,
        from: &mut F,
        to_: &mut T,
        tally: &AtomicU64,
        throttle: Option<&Throttle>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        let mut pieces = 0;
        loop {
            match &mut self.state {
                State::Reading if pieces == PIECES_PER_TURN => {
                    // There may be more; others first.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                State::Reading => {
                    let Poll::Ready(read) = self.poll_read(from, throttle, cx) else {
                        self.leave_buffer();
                        return self.poll_flush_then_pend(to_, cx);
                    };
                    self.state = read?;
                    pieces += 1;
                }
                State::Throttled { until, bytes } => {
                    if until.poll_unpin(cx).is_pending() {
                        // What went before must not wait for this.
                        return self.poll_flush_then_pend(to_, cx);
                    }
                    self.state = State::Writing(bytes.clone());
                }
                State::Writing(bytes) => {
                    let buffer = self.buffer.as_deref().map_or(&[][..], |buffer| buffer);
                    let rest = buffer.get(bytes.clone()).unwrap_or_default();
                    let written = ready!(Pin::new(&mut *to_).poll_write(cx, rest));
                    let written = accepted(written)?;
                    bytes.start += written;
                    if bytes.start >= bytes.end {
                        self.state = if self.truncated {
                            State::Spent
                        } else {
                            State::Reading
                        };
                    }
                    self.count(written, tally);
                }
                State::Spent => {
                    ready!(Pin::new(&mut *to_).poll_flush(cx)).map_err(to)?;
                    return Poll::Ready(Err(Broken::Spent));
                }
                State::Closing => {
                    // Half a close: the other direction goes on.
                    self.leave_buffer();
                    ready!(Pin::new(&mut *to_).poll_flush(cx)).map_err(to)?;
                    ready!(Pin::new(&mut *to_).poll_close(cx)).map_err(to)?;
                    self.state = State::Closed;
                }
                State::Closed => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Reads one piece and says what is to be done with it.
    fn poll_read<F: AsyncRead + Unpin>(
        &mut self,
        from: &mut F,
        throttle: Option<&Throttle>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<State, Broken>> {
        let buffer = self.buffer.get_or_insert_with(take_buffer);
        let most = throttle.map_or(self.piece, |throttle| throttle.piece);
        let room = buffer.get_mut(..most).unwrap_or_default();
        let size = ready!(Pin::new(from).poll_read(cx, room));
        let size = size.map_err(|error| Broken::From(error.kind()))?;
        if size == 0 {
            return Poll::Ready(Ok(State::Closing));
        }
        // "The maximum number of bytes allowed to be transmitted in each direction."
        // <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#reservation>
        let left = self
            .left
            .map(|left| usize::try_from(left).unwrap_or(usize::MAX));
        let allowed = left.map_or(size, |left| size.min(left));
        self.truncated = allowed < size;
        if allowed == 0 {
            return Poll::Ready(Ok(State::Spent));
        }
        if let Some(throttle) = throttle {
            #[expect(clippy::disallowed_methods, reason = "the adapter's clock")]
            let now = Instant::now();
            let turn = throttle.book(allowed, now);
            if turn > now {
                let until = Delay::new(turn - now);
                let bytes = 0..allowed;
                return Poll::Ready(Ok(State::Throttled { until, bytes }));
            }
        }
        Poll::Ready(Ok(State::Writing(0..allowed)))
    }

    /// What was written is not to wait for the next byte.
    fn poll_flush_then_pend<T: AsyncWrite + Unpin>(
        &mut self,
        to_: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        if self.dirty {
            ready!(Pin::new(to_).poll_flush(cx)).map_err(to)?;
            self.dirty = false;
        }
        Poll::Pending
    }

    fn leave_buffer(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            leave_buffer(buffer);
        }
    }

    fn count(&mut self, written: usize, tally: &AtomicU64) {
        self.dirty = true;
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(written as u64);
        }
        // Nobody else writes it.
        tally.store(
            tally.load(Ordering::Relaxed) + written as u64,
            Ordering::Relaxed,
        );
    }
}

fn accepted(written: io::Result<usize>) -> Result<usize, Broken> {
    match written {
        Ok(0) => Err(Broken::To(io::ErrorKind::WriteZero)),
        Ok(written) => Ok(written),
        Err(error) => Err(to(error)),
    }
}

#[cfg(test)]
#[path = "pump_tests.rs"]
mod tests;
