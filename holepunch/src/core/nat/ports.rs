//! Public ports that follow each other, and those that will come next.

use std::num::NonZeroI16;

use web_time::Instant;

/// A flow and the public port that it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) opened: Instant,
    pub(crate) port: u16,
}

/// Flows that must have got ports in a row before the next one is predicted. Three random ports lie
/// this close together once in two million times.
const FLOWS: usize = 3;
/// How far the ports of two flows in a row may lie apart: others' flows come in between.
const MAX_GAP: u16 = 16;

/// From one port to the next, if they are sequential. `flows` in the order in which they began.
pub(crate) fn step(flows: &[Flow]) -> Option<NonZeroI16> {
    // The latest ones tell: others have used up ports since the first.
    let recent = flows.get(flows.len().checked_sub(FLOWS)?..)?;
    let mut ports: Vec<u16> = recent.iter().map(|flow| flow.port).collect();
    let ups = recent.windows(2).filter(|pair| match pair {
        [one, next] => one.port < next.port,
        _ => false,
    });
    let direction = if ups.count() * 2 >= FLOWS - 1 { 1 } else { -1 };
    // Dials at the same time may be seen in another order than they were mapped in.
    ports.sort_unstable();
    let gaps: Vec<u16> = ports
        .windows(2)
        .map(|pair| match pair {
            [one, next] => next - one,
            _ => 0,
        })
        .collect();
    if gaps.iter().any(|gap| *gap == 0 || *gap > MAX_GAP) {
        return None;
    }
    let step = gaps.into_iter().fold(0, gcd);
    NonZeroI16::new(direction * i16::try_from(step).ok()?)
}

fn gcd(one: u16, other: u16) -> u16 {
    if other == 0 {
        one
    } else {
        gcd(other, one % other)
    }
}

/// The ports that the next flows get, the likeliest first: those that follow the last one seen. At
/// most `count`.
pub(crate) fn predict(flows: &[Flow], count: usize) -> Vec<u16> {
    let (Some(step), Some(last)) = (step(flows), flows.last()) else {
        return Vec::new();
    };
    // Of flows that began together the furthest port is the last.
    let recent = flows.iter().rev().take(FLOWS).map(|flow| flow.port);
    let last = if step.get() > 0 {
        recent.max()
    } else {
        recent.min()
    }
    .unwrap_or(last.port);
    (1..=count)
        .map_while(|ahead| {
            let ahead = i32::try_from(ahead)
                .ok()?
                .checked_mul(i32::from(step.get()))?;
            u16::try_from(i32::from(last) + ahead).ok()
        })
        .filter(|port| *port != 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn flows(ports: &[u16]) -> Vec<Flow> {
        let start = Instant::now();
        let at = |n: usize| start + Duration::from_millis(n as u64);
        let flows = ports.iter().enumerate();
        flows
            .map(|(n, port)| Flow {
                opened: at(n),
                port: *port,
            })
            .collect()
    }

    #[test]
    fn ports_in_a_row_are_followed_by_the_next() {
        assert_eq!(
            predict(&flows(&[40_000, 40_001, 40_002]), 2),
            [40_003, 40_004]
        );
        assert_eq!(
            predict(&flows(&[40_000, 40_002, 40_004]), 2),
            [40_006, 40_008]
        );
        assert_eq!(
            predict(&flows(&[40_004, 40_003, 40_002]), 2),
            [40_001, 40_000]
        );
        assert_eq!(
            predict(&flows(&[40_001, 40_000, 40_002]), 1),
            [40_003],
            "dialled at once"
        );
        assert_eq!(
            predict(&flows(&[40_000, 40_003, 40_005]), 1),
            [40_006],
            "others' flows in between"
        );
        assert!(predict(&flows(&[65_533, 65_534, 65_535]), 4).is_empty());
        assert_eq!(
            predict(&flows(&[9_100, 40_000, 40_001, 40_002]), 1),
            [40_003],
            "the latest flows count"
        );
    }

    #[test]
    fn other_ports_are_not_predicted() {
        assert!(predict(&flows(&[40_000, 40_001]), 4).is_empty(), "too few");
        assert!(predict(&flows(&[40_000, 40_000, 40_000]), 4).is_empty());
        assert!(predict(&flows(&[40_000, 51_234, 3_562]), 4).is_empty());
        assert!(predict(&[], 4).is_empty());
    }

    proptest! {
        #[test]
        fn a_prediction_is_short_and_never_where_a_flow_already_is(
            ports in prop::collection::vec(any::<u16>(), 0..8),
            count in 0..64_usize,
        ) {
            let predicted = predict(&flows(&ports), count);
            prop_assert!(predicted.len() <= count);
            let recent = &ports[ports.len().saturating_sub(FLOWS)..];
            prop_assert!(predicted.iter().all(|port| !recent.contains(port)));
        }

        #[test]
        fn any_steady_count_is_predicted(
            first in 2_000..60_000_u16,
            step in (1..=MAX_GAP as i16).prop_flat_map(|step| prop_oneof![Just(step), Just(-step)]),
        ) {
            let port = |n: i32| (i32::from(first) + n * i32::from(step)) as u16;
            let predicted = predict(&flows(&[port(0), port(1), port(2)]), 2);
            prop_assert_eq!(predicted, [port(3), port(4)]);
        }
    }
}
