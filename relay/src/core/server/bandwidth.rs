//! How fast circuits may move bytes: altogether, for each class and for each peer.

use std::{collections::HashMap, time::Duration};

use libp2p_identity::PeerId;
use web_time::Instant;

/// Who goes first where bandwidth is short.
///
/// Strict: a class gets what the classes above it leave of `max_bandwidth`. Give the upper classes a cap of their own where the
/// lower ones must not starve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Before everybody else.
    High,
    /// Everybody who was given no other class.
    #[default]
    Normal,
    /// What the others leave.
    Low,
}

impl Class {
    const COUNT: usize = 3;

    fn index(self) -> usize {
        match self {
            Self::High => 0,
            Self::Normal => 1,
            Self::Low => 2,
        }
    }
}

/// Bytes per second; `None`: any number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rates {
    pub(crate) total: Option<u64>,
    /// High, normal, low.
    pub(crate) classes: [Option<u64>; Class::COUNT],
    pub(crate) per_peer: Option<u64>,
}

impl Rates {
    pub(crate) fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    /// How many bytes may go in one piece, so that no rate is exceeded by more than 20 ms of it.
    pub(crate) fn piece(&self, most: usize) -> usize {
        /// Below it, headers outweigh what they carry.
        const LEAST: u64 = 1024;
        let all = [self.total, self.per_peer];
        let slowest = all.into_iter().chain(self.classes).flatten().min();
        slowest.map_or(most, |rate| {
            let piece = usize::try_from((rate / 50).max(LEAST)).unwrap_or(most);
            piece.min(most)
        })
    }
}

/// What a bucket may save up, as time: short, so that 10 s at any rate are exact to 1 %.
const BURST: Duration = Duration::from_millis(100);

/// Peers with a bucket that is not full. Beyond, those with the least debt start afresh.
const MAX_PEERS: usize = 4096;

/// Token buckets, one below the other. A piece that is read has its place in the queue of every bucket; it is sent when its
/// turn has come in all of them. So pieces go in the order in which they came, within a class.
#[derive(Debug)]
pub(crate) struct Bandwidth {
    rates: Rates,
    /// When the whole link is free for a class: its own debt and that of the classes above it.
    link: [Option<Instant>; Class::COUNT],
    classes: [Option<Instant>; Class::COUNT],
    peers: HashMap<PeerId, Instant>,
}

impl Bandwidth {
    pub(crate) fn new(rates: Rates) -> Self {
        Self {
            rates,
            link: [None; Class::COUNT],
            classes: [None; Class::COUNT],
            peers: HashMap::new(),
        }
    }

    /// Books `bytes` of a circuit between `ends`; they may be sent at the returned time.
    pub(crate) fn book(
        &mut self,
        class: Class,
        ends: [PeerId; 2],
        bytes: usize,
        now: Instant,
    ) -> Instant {
        let mut turn = now;
        if let Some(rate) = self.rates.total {
            let took = duration(bytes, rate);
            for (index, free) in self.link.iter_mut().enumerate() {
                // Classes below wait for this one; those above do not see it.
                if index >= class.index() {
                    let at = advance(free, took, now);
                    if index == class.index() {
                        turn = turn.max(at);
                    }
                }
            }
        }
        let mut classes = self.rates.classes.iter().zip(&mut self.classes);
        if let Some((Some(rate), free)) = classes.nth(class.index()) {
            turn = turn.max(advance(free, duration(bytes, *rate), now));
        }
        if let Some(rate) = self.rates.per_peer {
            let took = duration(bytes, rate);
            for peer in ends {
                self.make_room(peer, now);
                let mut free = self.peers.get(&peer).copied();
                turn = turn.max(advance(&mut free, took, now));
                self.peers.extend(free.map(|free| (peer, free)));
            }
        }
        turn
    }

    fn make_room(&mut self, peer: PeerId, now: Instant) {
        if self.peers.len() < MAX_PEERS || self.peers.contains_key(&peer) {
            return;
        }
        self.peers.retain(|_, free| *free + BURST > now);
        if self.peers.len() >= MAX_PEERS {
            let least = self.peers.iter().min_by_key(|(_, free)| **free);
            if let Some(peer) = least.map(|(peer, _)| *peer) {
                self.peers.remove(&peer);
            }
        }
    }
}

/// The turn of a piece that takes `took`, at a bucket that is free at `free`.
fn advance(free: &mut Option<Instant>, took: Duration, now: Instant) -> Instant {
    let earliest = now.checked_sub(BURST).unwrap_or(now);
    let turn = free.unwrap_or(now).max(earliest);
    *free = Some(turn + took);
    turn
}

fn duration(bytes: usize, rate: u64) -> Duration {
    let nanoseconds = bytes as u128 * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const FRAME: usize = 16 << 10;
    const SPAN: Duration = Duration::from_secs(10);

    /// Circuits that always have bytes, on virtual time: what each moved within [`SPAN`].
    fn greedy(rates: Rates, circuits: &[(Class, [PeerId; 2])]) -> Vec<u64> {
        let began = Instant::now();
        let mut bandwidth = Bandwidth::new(rates);
        let piece = rates.piece(FRAME);
        let mut moved = vec![0; circuits.len()];
        let mut ready: BTreeSet<_> = (0..circuits.len()).map(|index| (began, index)).collect();
        while let Some((now, index)) = ready.pop_first() {
            if now - began >= SPAN {
                break;
            }
            let (class, ends) = circuits[index];
            let turn = bandwidth.book(class, ends, piece, now);
            if turn - began < SPAN {
                moved[index] += piece as u64;
            }
            // The next piece is read when this one has gone.
            ready.insert((turn.max(now), index));
        }
        moved
    }

    fn ends() -> [PeerId; 2] {
        [PeerId::random(), PeerId::random()]
    }

    fn near(moved: u64, rate: u64) {
        let expected = rate * SPAN.as_secs();
        assert!(
            moved.abs_diff(expected) * 20 <= expected,
            "{moved} is not {expected} ± 5 %"
        );
    }

    #[test]
    fn the_whole_relay_keeps_its_rate_within_five_per_cent_over_ten_seconds() {
        for rate in [16 << 10, 256 << 10, 10_000_000, 500_000_000] {
            for count in [1, 7, 64] {
                let circuits: Vec<_> = (0..count).map(|_| (Class::Normal, ends())).collect();
                let rates = Rates {
                    total: Some(rate),
                    ..Rates::default()
                };
                let moved = greedy(rates, &circuits);
                near(moved.iter().sum(), rate);
                let share = moved.iter().sum::<u64>() / count;
                for circuit in moved {
                    let piece = rates.piece(FRAME) as u64;
                    assert!(circuit.abs_diff(share) <= 2 * piece, "{circuit} of {share}");
                }
            }
        }
    }

    #[test]
    fn a_peer_keeps_its_rate_over_all_its_circuits() {
        let greedy_peer = PeerId::random();
        let circuits: Vec<_> = (0..9)
            .map(|_| (Class::Normal, [greedy_peer, PeerId::random()]))
            .chain([(Class::Normal, ends())])
            .collect();
        let rates = Rates {
            per_peer: Some(1_000_000),
            ..Rates::default()
        };
        let moved = greedy(rates, &circuits);
        near(moved[..9].iter().sum(), 1_000_000);
        near(moved[9], 1_000_000);
    }

    #[test]
    fn an_upper_class_goes_first_and_a_lower_one_gets_the_rest() {
        let rates = Rates {
            total: Some(10_000_000),
            classes: [Some(4_000_000), None, None],
            per_peer: Some(5_000_000),
        };
        let circuits = [
            (Class::Low, ends()),
            (Class::High, ends()),
            (Class::Normal, ends()),
        ];
        let moved = greedy(rates, &circuits);
        near(moved[1], 4_000_000);
        near(moved[2], 5_000_000);
        near(moved.iter().sum(), 10_000_000);
    }

    #[test]
    fn an_idle_link_saves_up_no_more_than_a_burst() {
        let rate = 1_000_000;
        let mut bandwidth = Bandwidth::new(Rates {
            total: Some(rate),
            ..Rates::default()
        });
        let began = Instant::now();
        bandwidth.book(Class::Normal, ends(), 1, began);
        let later = began + Duration::from_secs(3600);
        let mut at_once = 0;
        while bandwidth.book(Class::Normal, ends(), 1000, later) <= later {
            at_once += 1000;
        }
        assert!(at_once <= rate / 10 + 1000, "{at_once}");
    }

    #[test]
    fn nobody_can_make_it_grow() {
        let mut bandwidth = Bandwidth::new(Rates {
            per_peer: Some(1),
            ..Rates::default()
        });
        let now = Instant::now();
        for _ in 0..3 * MAX_PEERS {
            bandwidth.book(Class::Normal, ends(), FRAME, now);
            assert!(bandwidth.peers.len() <= MAX_PEERS + 1);
        }
    }
}
