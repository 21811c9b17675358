//! What a leg of the network does to packets: the decision alone, without devices or clocks.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::{Duration, Instant};

/// One direction-symmetric leg between a site and the core router.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Leg {
    /// One-way delay. Two legs lie between two sites: 12.5 ms make a round trip of 50 ms.
    pub delay: Duration,
    /// Extra delay, uniformly from zero to this; packets keep their order.
    pub jitter: Duration,
    /// Share of packets lost in each direction, from 0 to 1.
    pub loss: f64,
    /// Bits per second in each direction; unlimited if `None`.
    pub rate: Option<u64>,
    /// Bytes that may wait for the rate before packets are dropped.
    pub queue: u64,
    /// Seed of loss and jitter.
    pub seed: u64,
}

impl Default for Leg {
    fn default() -> Self {
        Self {
            delay: Duration::from_micros(12_500),
            jitter: Duration::ZERO,
            loss: 0.0,
            rate: None,
            queue: 512 * 1024,
            seed: 0,
        }
    }
}

impl Leg {
    /// A leg with this one-way delay and nothing else.
    pub fn delay(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }
}

/// One direction of a leg: decides for each packet whether and when it arrives.
#[derive(Debug)]
pub struct Line {
    leg: Leg,
    random: StdRng,
    /// When the last admitted packet has been put on the line.
    sent: Instant,
    /// When the last admitted packet arrives.
    arrival: Instant,
}

impl Line {
    /// An idle line; `stream` tells the directions of one leg apart.
    pub fn new(leg: Leg, stream: u64, now: Instant) -> Self {
        let random = StdRng::seed_from_u64(leg.seed.wrapping_mul(2).wrapping_add(stream));
        Self {
            leg,
            random,
            sent: now,
            arrival: now,
        }
    }

    /// When a packet of `bytes` that enters `now` arrives; `None` if it is lost.
    pub fn admit(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        if self.leg.loss > 0.0 && self.random.random::<f64>() < self.leg.loss {
            return None;
        }
        let start = self.sent.max(now);
        let bits = bytes as u64 * 8;
        let transmission = match self.leg.rate {
            None => Duration::ZERO,
            Some(rate) => {
                let rate = rate.max(1);
                if start - now > transmission_time(self.leg.queue * 8, rate) {
                    return None;
                }
                transmission_time(bits, rate)
            }
        };
        self.sent = start + transmission;
        let jitter = self.leg.jitter.mul_f64(self.random.random::<f64>());
        self.arrival = self.arrival.max(self.sent + self.leg.delay + jitter);
        Some(self.arrival)
    }
}

fn transmission_time(bits: u64, rate: u64) -> Duration {
    Duration::from_nanos((u128::from(bits) * 1_000_000_000 / u128::from(rate)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Instant {
        super::super::now()
    }

    #[test]
    fn a_plain_leg_delays_by_its_delay() {
        let now = start();
        let mut line = Line::new(Leg::default(), 0, now);
        assert_eq!(
            line.admit(1500, now),
            Some(now + Duration::from_micros(12_500))
        );
    }

    #[test]
    fn a_rate_spaces_packets_and_its_queue_is_bounded() {
        let now = start();
        let leg = Leg {
            rate: Some(8_000_000),
            queue: 10_000,
            ..Leg::delay(Duration::ZERO)
        };
        let mut line = Line::new(leg, 0, now);
        let arrivals: Vec<_> = (0..100).filter_map(|_| line.admit(1000, now)).collect();
        // 1000 bytes take 1 ms; the packet that finds the queue exactly full is the last to enter.
        let expected: Vec<_> = (1..=11).map(|n| now + Duration::from_millis(n)).collect();
        assert_eq!(arrivals, expected);
    }

    #[test]
    fn loss_is_seeded_and_near_its_share() {
        let now = start();
        let leg = Leg {
            loss: 0.1,
            seed: 7,
            ..Leg::default()
        };
        let run = || {
            let mut line = Line::new(leg, 0, now);
            (0..10_000)
                .map(|_| line.admit(100, now).is_some())
                .collect::<Vec<_>>()
        };
        let first = run();
        assert_eq!(first, run());
        let lost = first.iter().filter(|arrived| !**arrived).count();
        assert!((800..1200).contains(&lost), "{lost} of 10000 lost");
    }

    #[test]
    fn jitter_never_reorders() {
        let now = start();
        let leg = Leg {
            jitter: Duration::from_millis(30),
            ..Leg::default()
        };
        let mut line = Line::new(leg, 0, now);
        let arrivals: Vec<_> = (0..1000)
            .filter_map(|n| line.admit(100, now + Duration::from_micros(n)))
            .collect();
        assert!(arrivals.is_sorted());
        assert_eq!(arrivals.len(), 1000);
    }
}
