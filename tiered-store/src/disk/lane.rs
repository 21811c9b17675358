//! Lanes: several segments are open at once, so that what dies together lies together.
//!
//! New blocks share the main lane with everything that is not data, so that a group of writes costs one sync. Blocks with a time to live go
//! to lanes by the time at which they are over: such a segment is removed whole, and nothing has to be copied out of it. What
//! compaction copies has lived long and goes to lanes of its own, small blocks apart from large ones.

/// Blocks from this size on are not small, in bytes: the inner nodes of a DAG are below, the leaves above.
const SMALL: usize = 4096;

/// Lanes by time that are open at once; the one that was not used for longest is sealed for another.
pub(crate) const MOST_BY_TIME: usize = 4;

/// The shortest span of times that share a lane, as a power of two of seconds: about a minute.
const LEAST_SPAN: u8 = 6;

/// Where a record goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) enum Lane {
    #[default]
    Main,
    Old,
    OldSmall,
    /// What is over in the span number `number` of 2^`span` seconds.
    Until {
        span: u8,
        number: u64,
    },
}

/// A lane as a segment's header names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum LaneKind {
    Main = 0,
    Old = 1,
    OldSmall = 2,
    Until = 3,
}

impl LaneKind {
    pub(crate) fn parse(byte: u8) -> Option<LaneKind> {
        Some(match byte {
            0 => LaneKind::Main,
            1 => LaneKind::Old,
            2 => LaneKind::OldSmall,
            3 => LaneKind::Until,
            _ => return None,
        })
    }

    /// The lane that a segment of this kind is continued in after opening; those by time are not.
    pub(crate) fn lane(self) -> Option<Lane> {
        match self {
            LaneKind::Main => Some(Lane::Main),
            LaneKind::Old => Some(Lane::Old),
            LaneKind::OldSmall => Some(Lane::OldSmall),
            LaneKind::Until => None,
        }
    }
}

impl Lane {
    pub(crate) fn kind(self) -> LaneKind {
        match self {
            Lane::Main => LaneKind::Main,
            Lane::Old => LaneKind::Old,
            Lane::OldSmall => LaneKind::OldSmall,
            Lane::Until { .. } => LaneKind::Until,
        }
    }

    /// For what is over at `expiry_ms`: spans are about a quarter of the time that it has left.
    pub(crate) fn until(expiry_ms: u64, now_ms: u64) -> Lane {
        let left_s = expiry_ms.saturating_sub(now_ms) / 1000;
        let span = (left_s / 4).checked_ilog2().unwrap_or(0);
        let span = u8::try_from(span).unwrap_or(u8::MAX).max(LEAST_SPAN);
        Lane::Until {
            span,
            number: (expiry_ms / 1000) >> span,
        }
    }

    /// For a block that compaction copies.
    pub(crate) fn for_copy(len: usize) -> Lane {
        if len < SMALL {
            Lane::OldSmall
        } else {
            Lane::Old
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_at_about_the_same_time_shares_a_lane() {
        let now = 1_000_000_000_000;
        let hour = 3_600_000;
        let at = |ms| Lane::until(now + ms, now);
        let Lane::Until { span, .. } = at(hour) else {
            panic!("not by time")
        };
        assert_eq!(span, 9, "512 s are about a quarter of an hour");
        let together = (0..3600).filter(|s| at(hour) == Lane::until(now + hour + s * 100, now));
        assert!(together.count() > 1000);
        assert_ne!(at(hour), at(2 * hour));
        assert!(matches!(
            at(1),
            Lane::Until {
                span: LEAST_SPAN,
                ..
            }
        ));
        assert!(matches!(Lane::until(u64::MAX, 0), Lane::Until { .. }));
    }
}
