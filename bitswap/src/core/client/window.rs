//! How much to have on order at one peer: twice its delivery rate times its round trip, as BBR
//! estimates them (draft-ietf-ccwg-bbr §4): the maximum of recent rate samples, the minimum of
//! recent round trips.

use std::time::Duration;

use web_time::Instant;

/// The window is this many times the product of rate and delay, so that it can grow.
const GAIN: f64 = 2.0;
/// Added to the round trip: what the peer's disk, its scheduler and our batching may take.
const SLACK: Duration = Duration::from_millis(20);
/// A window never falls below this many blocks.
const MIN_BLOCKS: u64 = 4;
/// How long a maximum rate or a minimum round trip is believed.
const EPOCH: Duration = Duration::from_secs(5);
/// Shortest time a rate sample may span.
const MIN_SPAN: Duration = Duration::from_micros(200);

/// What a request remembers about the moment it was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) sent: Instant,
    delivered: u64,
    in_flight: u64,
    /// The window was (half) full, so the sample shows the peer's rate and not our demand.
    limited: bool,
}

/// Estimates for one peer.
#[derive(Debug)]
pub(super) struct Window {
    initial: u64,
    max: u64,
    in_flight: u64,
    delivered: u64,
    /// Bytes a second: of the epoch before, and of this one.
    rate: [f64; 2],
    rtt: [Option<Duration>; 2],
    /// When the current epochs of the two began. That of the rate only ends with a sample that
    /// shows the peer's rate, so that a pause does not make a fast peer slow.
    epochs: [Instant; 2],
    /// The window was full once: `rate` is the peer's.
    measured: bool,
}

impl Window {
    pub(super) fn new(initial: u64, max: u64, now: Instant) -> Self {
        Self {
            initial,
            max,
            in_flight: 0,
            delivered: 0,
            rate: [0.0; 2],
            rtt: [None; 2],
            epochs: [now; 2],
            measured: false,
        }
    }

    /// The peer is reached another way now: what was measured no longer holds.
    pub(super) fn forget_path(&mut self) {
        self.rate = [0.0; 2];
        self.rtt = [None; 2];
        self.measured = false;
    }

    /// Bytes on order, by estimate.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Bytes delivered since the request was sent.
    pub(super) fn delivered_since(&self, mark: &Mark) -> u64 {
        self.delivered - mark.delivered
    }

    /// Bytes that were on order when the request was sent.
    pub(super) fn queued_before(mark: &Mark) -> u64 {
        mark.in_flight
    }

    /// A request of `estimate` bytes goes out.
    pub(super) fn on_request(&mut self, estimate: u64, block: u64, now: Instant) -> Mark {
        let mark = Mark {
            sent: now,
            delivered: self.delivered,
            in_flight: self.in_flight,
            limited: self.in_flight.saturating_mul(2) >= self.limit(block),
        };
        self.in_flight += estimate;
        mark
    }

    /// A request of `estimate` bytes is no longer expected.
    pub(super) fn on_dropped(&mut self, estimate: u64) {
        self.in_flight = self.in_flight.saturating_sub(estimate);
    }

    /// A request of `estimate` bytes was answered with `bytes`.
    pub(super) fn on_delivered(&mut self, mark: &Mark, estimate: u64, bytes: u64, now: Instant) {
        self.on_dropped(estimate);
        self.delivered += bytes;
        let [rate_epoch, rtt_epoch] = &mut self.epochs;
        if now.duration_since(*rtt_epoch) > EPOCH {
            *rtt_epoch = now;
            self.rtt = [self.rtt[1], None];
        }
        if mark.limited && now.duration_since(*rate_epoch) > EPOCH {
            *rate_epoch = now;
            self.rate = [self.rate[1], 0.0];
        }
        self.measured |= mark.limited;
        let span = now.duration_since(mark.sent);
        let sample = self.delivered_since(mark) as f64 / span.max(MIN_SPAN).as_secs_f64();
        if mark.limited || sample > self.rate() {
            self.rate[1] = self.rate[1].max(sample);
        }
        self.rtt[1] = Some(self.rtt[1].map_or(span, |rtt| rtt.min(span)));
    }

    /// Bytes a second; 0 if unknown.
    pub(super) fn rate(&self) -> f64 {
        self.rate[0].max(self.rate[1])
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        match self.rtt {
            [Some(a), Some(b)] => Some(a.min(b)),
            [a, b] => a.or(b),
        }
    }

    /// Bytes that may be on order, with blocks of about `block` bytes.
    pub(super) fn limit(&self, block: u64) -> u64 {
        match self.rtt() {
            Some(rtt) if self.measured => {
                let product = GAIN * self.rate() * (rtt + SLACK).as_secs_f64();
                (product as u64).clamp((MIN_BLOCKS * block).min(self.max), self.max)
            }
            _ => self.initial,
        }
    }

    /// When `bytes` more would be here if they were ordered now; `fallback` is the rate of a peer
    /// about which nothing is known.
    pub(super) fn eta(&self, bytes: u64, fallback: f64) -> f64 {
        let rate = if self.rate() > 0.0 {
            self.rate()
        } else {
            fallback
        };
        (self.in_flight + bytes) as f64 / rate.max(1.0)
            + self.rtt().unwrap_or_default().as_secs_f64()
    }

    /// How long the peer may be silent before it counts as stalled.
    pub(super) fn patience(&self, unknown: Duration) -> Duration {
        match self.rtt() {
            Some(rtt) if self.rate() > 0.0 => {
                let expected = rtt.as_secs_f64() + self.in_flight as f64 / self.rate();
                Duration::from_secs_f64((4.0 * expected).clamp(1.0, 10.0))
                    .min(unknown.max(Duration::from_secs(1)) * 2)
            }
            _ => unknown,
        }
    }
}
