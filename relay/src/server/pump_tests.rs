use std::{collections::VecDeque, time::Duration};

use futures::{executor::block_on, future::poll_fn, poll, task::noop_waker_ref};

use super::*;

/// A stream whose other side the test holds.
#[derive(Debug, Default)]
struct Wire {
    incoming: VecDeque<u8>,
    finished: bool,
    broken: bool,
    written: Vec<u8>,
    /// Sizes of the writes.
    pieces: Vec<usize>,
    /// Bytes that it still takes.
    credit: Option<usize>,
    flushed: usize,
    closed: bool,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let size = buffer.len().min(self.incoming.len());
        if size == 0 {
            return if self.finished {
                Poll::Ready(Ok(0))
            } else {
                Poll::Pending
            };
        }
        for (to, byte) in buffer.iter_mut().zip(self.incoming.drain(..size)) {
            *to = byte;
        }
        Poll::Ready(Ok(size))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        assert!(!self.closed, "written after it was closed");
        let size = self
            .credit
            .map_or(bytes.len(), |credit| credit.min(bytes.len()));
        if size == 0 {
            return Poll::Pending;
        }
        if let Some(credit) = &mut self.credit {
            *credit -= size;
        }
        self.written.extend_from_slice(&bytes[..size]);
        self.pieces.push(size);
        Poll::Ready(Ok(size))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flushed = self.written.len();
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.closed = true;
        Poll::Ready(Ok(()))
    }
}

fn terms(limit: Option<CircuitLimit>) -> Terms {
    Terms {
        limit,
        throttle: None,
        piece: PIECE_BYTES,
        tally: Arc::new(Tally::default()),
    }
}

fn bytes(bytes: u64) -> Option<CircuitLimit> {
    CircuitLimit::announced(None, Some(bytes))
}

fn circuit(limit: Option<CircuitLimit>) -> Pump<Wire, Wire> {
    Pump::new(Wire::default(), Wire::default(), terms(limit))
}

fn turn(pump: &mut Pump<Wire, Wire>) -> Poll<CircuitEnd> {
    Pin::new(pump).poll(&mut Context::from_waker(noop_waker_ref()))
}

fn pattern(size: usize) -> impl Iterator<Item = u8> {
    (0..size).map(|at| u8::try_from(at % 251).unwrap_or(0))
}

impl Pump<Wire, Wire> {
    fn holds_nothing(&self) -> bool {
        [&self.up, &self.down]
            .into_iter()
            .all(|lane| lane.buffer.is_none())
    }
}

#[test]
fn bytes_go_both_ways_in_whole_frames_and_are_flushed_when_the_source_pauses() {
    let mut pump = circuit(None);
    pump.source.incoming.extend(pattern(140_000));
    pump.destination.incoming.extend(pattern(10));
    assert!(turn(&mut pump).is_pending());
    assert_eq!(pump.destination.pieces, [65_536, 65_536, 8928]);
    assert_eq!(PIECE_BYTES % (16 << 10), 0, "frames stay whole");
    assert_eq!(pump.source.written, pattern(10).collect::<Vec<_>>());
    assert_eq!(pump.destination.flushed, 140_000);
    assert_eq!(pump.source.flushed, 10);
    assert!(pump.holds_nothing(), "an idle circuit has no buffer");
    let traffic = pump.tally.traffic();
    assert_eq!((traffic.to_destination, traffic.to_source), (140_000, 10));
}

#[test]
fn a_receiver_that_takes_little_gets_all_and_nothing_is_read_ahead() {
    let mut pump = circuit(None);
    let sent: Vec<u8> = pattern(100_000).collect();
    pump.source.incoming.extend(&sent);
    pump.destination.credit = Some(0);
    for _ in 0..10 {
        assert!(turn(&mut pump).is_pending());
    }
    assert_eq!(
        pump.source.incoming.len(),
        100_000 - PIECE_BYTES,
        "one piece is held, no more"
    );
    while pump.destination.written.len() < sent.len() {
        pump.destination.credit = Some(777);
        assert!(turn(&mut pump).is_pending());
    }
    assert_eq!(pump.destination.written, sent);
    assert!(pump.holds_nothing());
}

#[test]
fn one_side_may_close_while_the_other_goes_on() {
    let mut pump = circuit(None);
    pump.source.incoming.extend(b"last words");
    pump.source.finished = true;
    assert!(turn(&mut pump).is_pending());
    assert_eq!(pump.destination.written, b"last words");
    assert!(pump.destination.closed && !pump.source.closed);
    pump.destination.incoming.extend(b"answer");
    assert!(turn(&mut pump).is_pending());
    assert_eq!(pump.source.written, b"answer");
    pump.destination.finished = true;
    assert_eq!(turn(&mut pump), Poll::Ready(CircuitEnd::Completed));
    assert!(pump.source.closed);
}

#[test]
fn the_byte_limit_holds_to_the_byte_in_each_direction() {
    for limit in [1, 100, 16_384, 16_385, 100_000] {
        for chunk in [1, 999, 65_536] {
            let mut pump = circuit(bytes(limit));
            let mut end = Poll::Pending;
            let mut sent = 0;
            while end.is_pending() && sent < 3 * limit + 2 {
                pump.source.incoming.extend(pattern(chunk));
                sent += chunk as u64;
                end = turn(&mut pump);
            }
            assert_eq!(end, Poll::Ready(CircuitEnd::ByteLimit));
            assert_eq!(pump.destination.written.len() as u64, limit);
            assert_eq!(
                pump.destination.flushed as u64, limit,
                "and all of it is sent"
            );
            assert_eq!(pump.tally.traffic().to_destination, limit);
        }
    }
}

#[test]
fn a_circuit_that_carries_exactly_its_limit_ends_well() {
    let mut pump = circuit(bytes(100));
    pump.source.incoming.extend(pattern(100));
    pump.destination.incoming.extend(pattern(100));
    assert!(turn(&mut pump).is_pending());
    pump.source.finished = true;
    pump.destination.finished = true;
    assert_eq!(turn(&mut pump), Poll::Ready(CircuitEnd::Completed));
}

#[test]
fn the_byte_limit_holds_against_a_slow_receiver_too() {
    let mut pump = circuit(bytes(1000));
    pump.source.incoming.extend(pattern(5000));
    pump.source.finished = true;
    let mut end = Poll::Pending;
    while end.is_pending() {
        pump.destination.credit = Some(7);
        end = turn(&mut pump);
    }
    assert_eq!(end, Poll::Ready(CircuitEnd::ByteLimit));
    assert_eq!(pump.destination.written.len(), 1000);
}

#[test]
fn the_side_that_breaks_is_the_one_that_is_named() {
    let reset = io::ErrorKind::ConnectionReset;
    let mut pump = circuit(None);
    pump.source.broken = true;
    let end = Poll::Ready(CircuitEnd::SourceLost(reset));
    assert_eq!(turn(&mut pump), end);
    let mut pump = circuit(None);
    pump.destination.broken = true;
    let end = Poll::Ready(CircuitEnd::DestinationLost(reset));
    assert_eq!(turn(&mut pump), end);
}

#[test]
fn a_circuit_is_cut_from_outside() {
    let terms = terms(None);
    let tally = Arc::clone(&terms.tally);
    let mut pump = Pump::new(Wire::default(), Wire::default(), terms);
    let end = block_on(async {
        assert!(poll!(&mut pump).is_pending());
        tally.cut();
        pump.await
    });
    assert_eq!(end, CircuitEnd::Drained);
}

#[test]
fn a_circuit_ends_when_its_time_is_over() {
    let limit = CircuitLimit::announced(Some(Duration::from_millis(50)), None);
    let end = block_on(circuit(limit));
    assert_eq!(end, CircuitEnd::TimeLimit);
}

#[test]
fn a_busy_circuit_lets_others_have_a_turn() {
    let mut pump = circuit(None);
    let much = 4 * PIECES_PER_TURN * PIECE_BYTES;
    pump.source.incoming.extend(pattern(much));
    assert!(turn(&mut pump).is_pending());
    assert_eq!(pump.destination.pieces.len(), PIECES_PER_TURN);
    block_on(poll_fn(|cx| {
        // It wakes itself until all is moved.
        let _ = Pin::new(&mut pump).poll(cx);
        if pump.destination.written.len() == much {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }));
}

#[test]
fn a_throttled_circuit_holds_one_piece_and_sends_it_in_its_turn() {
    use crate::core::server::bandwidth::Rates;

    let rates = Rates {
        total: Some(1_000_000),
        ..Rates::default()
    };
    let piece = rates.piece(PIECE_BYTES);
    let throttle = Throttle::new(
        Arc::new(Mutex::new(Bandwidth::new(rates))),
        piece,
        Class::Normal,
        [PeerId::random(), PeerId::random()],
    );
    let mut pump = Pump::new(
        Wire::default(),
        Wire::default(),
        Terms {
            throttle: Some(throttle),
            ..terms(None)
        },
    );
    pump.source.incoming.extend(pattern(100_000));
    #[expect(clippy::disallowed_methods, reason = "a rate is bytes by time")]
    let began = Instant::now();
    block_on(poll_fn(|cx| {
        let _ = Pin::new(&mut pump).poll(cx);
        assert!(pump.destination.pieces.iter().all(|size| *size <= piece));
        if pump.destination.written.len() == 100_000 {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }));
    // The first piece goes at once, the others take 1 µs a byte. Timers are late, never early.
    let least = Duration::from_micros(100_000 - piece as u64);
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
}
