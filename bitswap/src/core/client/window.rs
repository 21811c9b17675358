//! How much to have on order at one peer: twice its delivery rate times its round trip, as BBR
//! estimates them (draft-ietf-ccwg-bbr §4): the maximum of recent rate samples, the minimum of
//! round trips. And when what is on order is due, by how late answers have been lately (RFC 6298).

use std::time::Duration;

use web_time::Instant;

/// The window is this many times the product of rate and delay, so that it can grow.
const GAIN: f64 = 2.0;
/// Added to the round trip: what the peer's disk, its scheduler and our batching may take.
const SLACK: Duration = Duration::from_millis(20);
/// A window never falls below this many blocks.
const MIN_BLOCKS: u64 = 4;
/// How long a maximum rate is believed, and how often a round trip is doubted.
const EPOCH: Duration = Duration::from_secs(5);
/// Shortest time a rate sample may span.
const MIN_SPAN: Duration = Duration::from_micros(200);
/// A round trip is doubted if the shortest of an epoch exceeds it so often: a full window explains
/// no more than [`GAIN`] times.
const DOUBT: f64 = 1.5 * GAIN;
/// Bytes a second that a peer is taken to deliver until its window was full once: what came before
/// shows what we asked for.
const UNMEASURED_RATE: f64 = 10e6;
/// Least time after which a silent peer counts as stalled, and the most: a stall moves everything
/// that is on order, hedging reacts before.
const PATIENCE: (f64, f64) = (0.5, 10.0);

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
    rtt: Option<Duration>,
    /// The shortest answer of this epoch.
    shortest: Option<Duration>,
    /// When the current epochs of the two began. That of the rate only ends with a sample that
    /// shows the peer's rate, so that a pause does not make a fast peer slow.
    epochs: [Instant; 2],
    /// The window was full once: `rate` is the peer's.
    measured: bool,
    /// Seconds by which answers come later than expected, and the mean deviation of that.
    late: f64,
    deviation: f64,
}

impl Window {
    pub(super) fn new(initial: u64, max: u64, now: Instant) -> Self {
        Self {
            initial,
            max,
            in_flight: 0,
            delivered: 0,
            rate: [0.0; 2],
            rtt: None,
            shortest: None,
            epochs: [now; 2],
            measured: false,
            late: 0.0,
            deviation: 0.0,
        }
    }

    /// The peer is reached another way now: what was measured no longer holds.
    pub(super) fn forget_path(&mut self) {
        self.rate = [0.0; 2];
        (self.rtt, self.shortest) = (None, None);
        self.measured = false;
        (self.late, self.deviation) = (0.0, 0.0);
    }

    /// Bytes on order, by estimate.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// The window was full once, so that the rate is the peer's.
    pub(super) fn is_measured(&self) -> bool {
        self.measured
    }

    /// Bytes delivered since the request was sent.
    pub(super) fn delivered_since(&self, mark: &Mark) -> u64 {
        self.delivered - mark.delivered
    }

    /// Bytes that were on order when the request was sent.
    pub(super) fn queued_before(mark: &Mark) -> u64 {
        mark.in_flight
    }

    /// A request of `estimate` bytes goes out, while the window is `limit`.
    pub(super) fn on_request(&mut self, estimate: u64, limit: u64, now: Instant) -> Mark {
        let mark = Mark {
            sent: now,
            delivered: self.delivered,
            in_flight: self.in_flight,
            limited: self.in_flight.saturating_mul(2) >= limit,
        };
        self.in_flight += estimate;
        mark
    }

    /// A request that was dropped is expected with `estimate` bytes, after `ahead` others and what
    /// was delivered since it was sent.
    pub(super) fn on_repriced(&mut self, mark: &mut Mark, estimate: u64, ahead: u64) {
        self.in_flight += estimate;
        mark.in_flight = self.delivered_since(mark) + ahead;
    }

    /// A request of `estimate` bytes is no longer expected.
    pub(super) fn on_dropped(&mut self, estimate: u64) {
        self.in_flight = self.in_flight.saturating_sub(estimate);
    }

    /// A request of `estimate` bytes was answered with `bytes`.
    pub(super) fn on_delivered(&mut self, mark: &Mark, estimate: u64, bytes: u64, now: Instant) {
        self.on_dropped(estimate);
        let span = now.duration_since(mark.sent);
        if self.rate() <= 0.0 {
            // As RFC 6298 begins.
            self.deviation = span.as_secs_f64() / 2.0;
        }
        self.delivered += bytes;
        if let Some(expected) = self.expected(mark, bytes) {
            let late = (span.as_secs_f64() - expected).max(0.0);
            self.deviation += ((late - self.late).abs() - self.deviation) / 4.0;
            self.late += (late - self.late) / 8.0;
        }
        if mark.limited && now.duration_since(self.epochs[0]) > EPOCH {
            self.epochs[0] = now;
            self.rate = [self.rate[1], 0.0];
        }
        self.measured |= mark.limited;
        let sample = self.delivered_since(mark) as f64 / span.max(MIN_SPAN).as_secs_f64();
        if mark.limited || sample > self.rate() {
            self.rate[1] = self.rate[1].max(sample);
        }
        self.on_round_trip(span, mark.in_flight == 0, now);
    }

    /// An answer came after `span`. `clean`: nothing of ours was queued before it, so that it shows
    /// the round trip even if it is longer than the last one.
    pub(super) fn on_round_trip(&mut self, span: Duration, clean: bool, now: Instant) {
        self.shortest = Some(self.shortest.map_or(span, |shortest| shortest.min(span)));
        if self.rtt.is_none_or(|rtt| span < rtt) {
            self.rtt = Some(span);
        }
        if now.duration_since(self.epochs[1]) <= EPOCH {
            return;
        }
        self.epochs[1] = now;
        // While the window is full every answer waits in the queue that we made: to believe those
        // would make the window, and with it the queue, grow for ever.
        if let (Some(rtt), Some(shortest)) = (self.rtt, self.shortest.take()) {
            if clean {
                self.rtt = Some(shortest);
            } else if shortest > (rtt + SLACK).mul_f64(DOUBT) {
                self.rtt = Some(shortest * 2 / 3);
            }
        }
    }

    /// Bytes a second; 0 if unknown.
    pub(super) fn rate(&self) -> f64 {
        self.rate[0].max(self.rate[1])
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Bytes that may be on order, with blocks of about `block` bytes. Before anything is known it
    /// is a share of the initial window: a session with `sharing` peers divides it among them, or
    /// the slowest of them would hold on to the most.
    pub(super) fn limit(&self, block: u64, sharing: u64) -> u64 {
        let least = (MIN_BLOCKS * block).min(self.max);
        match self.rtt {
            Some(rtt) if self.measured => {
                let product = GAIN * self.rate() * (rtt + SLACK).as_secs_f64();
                // One more, or a few large blocks would never become more.
                (product as u64 + block).clamp(least, self.max)
            }
            _ => (self.initial / sharing.max(1)).max(least.min(self.initial)),
        }
    }

    /// Seconds until `bytes` more would be here if they were ordered now; `fallback` is the rate of
    /// a peer about which nothing is known.
    pub(super) fn eta(&self, bytes: u64, fallback: f64) -> f64 {
        let rate = match self.rate() {
            rate if rate > 0.0 => rate,
            _ => fallback,
        };
        (self.in_flight + bytes) as f64 / rate.max(1.0) + self.rtt.unwrap_or_default().as_secs_f64()
    }

    /// Seconds that an answer of `bytes` was expected to take when it was ordered.
    fn expected(&self, mark: &Mark, bytes: u64) -> Option<f64> {
        let rate = match self.rate() {
            rate if rate <= 0.0 => return None,
            rate if self.measured => rate,
            rate => rate.max(UNMEASURED_RATE),
        };
        Some((mark.in_flight + bytes) as f64 / rate + self.rtt?.as_secs_f64())
    }

    /// Bytes that may have left the peer, or will before a message of ours arrives.
    pub(super) fn on_the_way(&self) -> f64 {
        let rtt = self.rtt.unwrap_or_default().as_secs_f64();
        self.rate() * (rtt + self.late + 4.0 * self.deviation)
    }

    /// When an answer of `bytes` was expected, and how many seconds later it is overdue. `None`:
    /// nothing is known.
    pub(super) fn due(&self, mark: &Mark, bytes: u64) -> Option<(Instant, f64)> {
        let expected = Duration::from_secs_f64(self.expected(mark, bytes)?.min(1e6));
        Some((mark.sent + expected, self.late + 4.0 * self.deviation))
    }

    /// How long the peer may be silent before it counts as stalled.
    pub(super) fn patience(&self, unknown: Duration) -> Duration {
        match self.rtt {
            Some(rtt) if self.rate() > 0.0 => {
                let expected = rtt.as_secs_f64() + self.in_flight as f64 / self.rate();
                let (least, most) = PATIENCE;
                let late = self.late + 4.0 * self.deviation;
                Duration::from_secs_f64((2.0 * expected + late).clamp(least, most))
                    .min(unknown.max(Duration::from_secs(1)) * 2)
            }
            _ => unknown,
        }
    }
}
