//! Which of several relays is the better one.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::IpAddr,
    time::Duration,
};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;

use crate::announcement::Load;

/// How good a relay is; the smallest is the best. The fields stand in the order in which they count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Failures since it last proved itself: what did not work before comes last.
    pub(super) failures: u32,
    /// Relays in use in the same network: one failure there would take all of them.
    pub(super) neighbours: usize,
    /// Nine tenths of its places are taken, or more.
    pub(super) nearly_full: bool,
    /// The class of its round trip, see [`distance`]: small differences do not count.
    pub(super) distance: u8,
    /// Quarters of its places that are taken.
    pub(super) load: u8,
    /// Different on each node, so that nodes with the same view do not all take the same relay.
    pub(super) tie: u64,
}

/// Failures beyond this number make no difference.
const MAX_FAILURES: u32 = 6;

/// Where the round trip is unknown: behind all that answered within 400 ms.
const UNKNOWN_DISTANCE: u8 = 6;

/// Where the load is unknown: neither an empty relay nor a full one.
const UNKNOWN_LOAD: u8 = 1;

impl Rank {
    pub(super) fn new(
        failures: u32,
        neighbours: usize,
        rtt: Option<Duration>,
        load: Option<Load>,
        tie: u64,
    ) -> Self {
        let percent = load.map(|load| load.percent());
        Self {
            failures: failures.min(MAX_FAILURES),
            neighbours,
            nearly_full: percent.is_some_and(|percent| percent >= 90),
            distance: rtt.map_or(UNKNOWN_DISTANCE, distance),
            load: percent.map_or(UNKNOWN_LOAD, |percent| percent.min(99) / 25),
            tie,
        }
    }

    /// Whether it is worth a change to go from `other`, which works, to this one.
    pub(super) fn is_much_better_than(&self, other: &Self) -> bool {
        let key = |rank: &Self| (rank.failures, rank.neighbours, rank.nearly_full);
        key(self) < key(other)
            || (key(self) == key(other) && self.distance.saturating_add(2) <= other.distance)
    }
}

/// Classes that double: a relay is only nearer than another if users could tell.
fn distance(rtt: Duration) -> u8 {
    match rtt.as_millis() {
        0..10 => 0,
        10..25 => 1,
        25..50 => 2,
        50..100 => 3,
        100..200 => 4,
        200..400 => 5,
        _ => 7,
    }
}

/// A number that depends on the node's seed and the relay.
pub(super) fn tie(seed: u64, relay: &PeerId) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, relay).hash(&mut hasher);
    hasher.finish()
}

/// A network that fails as one: /16 of IPv4, /32 of IPv6, about what one operator announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Prefix {
    V4(u16),
    V6(u32),
}

impl Prefix {
    /// The network of the first IP address that an address names.
    pub(super) fn of(address: &Multiaddr) -> Option<Self> {
        let ip = address.iter().find_map(|protocol| match protocol {
            Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
            Protocol::Ip6(ip) => Some(IpAddr::V6(ip)),
            _ => None,
        })?;
        Some(match ip {
            IpAddr::V4(ip) => {
                let [a, b, ..] = ip.octets();
                Self::V4(u16::from_be_bytes([a, b]))
            }
            IpAddr::V6(ip) => {
                let [a, b, ..] = ip.segments();
                Self::V6((u32::from(a) << 16) | u32::from(b))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(failures: u32, neighbours: usize, rtt_ms: Option<u64>, percent: Option<u32>) -> Rank {
        let load = percent.map(|percent| Load {
            reservations: percent,
            max_reservations: 100,
            circuits: 0,
            max_circuits: 0,
        });
        Rank::new(
            failures,
            neighbours,
            rtt_ms.map(Duration::from_millis),
            load,
            0,
        )
    }

    #[test]
    fn history_counts_before_diversity_before_fullness_before_distance_before_load() {
        let ordered = [
            rank(0, 0, Some(5), Some(10)),
            rank(0, 0, Some(5), Some(80)),
            rank(0, 0, Some(30), Some(0)),
            rank(0, 0, Some(300), None),
            rank(0, 0, None, Some(0)),
            rank(0, 0, Some(900), Some(0)),
            rank(0, 0, Some(5), Some(95)),
            rank(0, 1, Some(5), Some(0)),
            rank(1, 0, Some(5), Some(0)),
        ];
        assert!(ordered.is_sorted());
    }

    #[test]
    fn a_change_needs_a_difference_that_a_user_could_tell() {
        let held = rank(0, 0, Some(30), None);
        assert!(!rank(0, 0, Some(20), None).is_much_better_than(&held));
        assert!(rank(0, 0, Some(5), None).is_much_better_than(&held));
        assert!(rank(0, 0, Some(900), None).is_much_better_than(&rank(0, 1, Some(5), None)));
    }

    #[test]
    fn prefixes_tell_networks_apart() {
        let of = |text: &str| Prefix::of(&text.parse().unwrap());
        assert_eq!(of("/ip4/203.0.113.1/tcp/1"), of("/ip4/203.0.7.9/udp/2"));
        assert_ne!(of("/ip4/203.0.113.1/tcp/1"), of("/ip4/203.1.113.1/tcp/1"));
        assert_eq!(of("/ip6/2001:db8::1/tcp/1"), of("/ip6/2001:db8:9::2/tcp/1"));
        assert_ne!(of("/ip6/2001:db8::1/tcp/1"), of("/ip6/2001:db9::1/tcp/1"));
        assert_eq!(of("/dns/example.org/tcp/1"), None);
    }
}
