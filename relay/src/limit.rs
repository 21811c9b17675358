use std::time::Duration;

/// What a relay allows one circuit to carry, as it announced it.
///
/// A circuit without any limit has no `CircuitLimit` at all: the specification's zeros and absent
/// fields, which both mean "no limit", never reach this type. See
/// [circuit-v2, `Limit`](https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CircuitLimit {
    /// How long the relay keeps the circuit open. `None`: for ever.
    pub duration: Option<Duration>,
    /// How many bytes the relay forwards. `None`: any number.
    ///
    /// Implementations count differently: go-libp2p counts each direction by itself,
    /// rust-libp2p both together, with what the handshakes and multiplexers add. Plan with the
    /// sum of both directions.
    pub bytes: Option<u64>,
}

impl CircuitLimit {
    /// What the specification's reference relays allow: 2 minutes, 128 KiB.
    ///
    /// Assumed where a relay's announcement could not be matched to a connection: too little
    /// delays a transfer until the direct path is up, too much loses it half-way.
    pub const REFERENCE: Self = Self {
        duration: Some(Duration::from_secs(2 * 60)),
        bytes: Some(1 << 17),
    };

    /// Reads an announcement; `None` is "unlimited".
    pub(crate) fn announced(duration: Option<Duration>, bytes: Option<u64>) -> Option<Self> {
        let limit = Self {
            duration: duration.filter(|duration| !duration.is_zero()),
            bytes: bytes.filter(|&bytes| bytes > 0),
        };
        (limit.duration.is_some() || limit.bytes.is_some()).then_some(limit)
    }

    /// The limit that keeps both promises.
    pub(crate) fn strictest(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        let (Some(a), Some(b)) = (a, b) else {
            return a.or(b);
        };
        Some(Self {
            duration: lower(a.duration, b.duration),
            bytes: lower(a.bytes, b.bytes),
        })
    }
}

fn lower<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_and_absent_fields_mean_no_limit() {
        assert_eq!(CircuitLimit::announced(None, None), None);
        assert_eq!(CircuitLimit::announced(Some(Duration::ZERO), Some(0)), None);
        assert_eq!(
            CircuitLimit::announced(Some(Duration::from_secs(60)), Some(0)),
            Some(CircuitLimit {
                duration: Some(Duration::from_secs(60)),
                bytes: None
            })
        );
    }

    #[test]
    fn the_strictest_of_two_limits_takes_the_lower_of_each_field() {
        let short = CircuitLimit {
            duration: Some(Duration::from_secs(1)),
            bytes: None,
        };
        let small = CircuitLimit {
            duration: None,
            bytes: Some(7),
        };
        assert_eq!(
            CircuitLimit::strictest(Some(short), Some(small)),
            Some(CircuitLimit {
                duration: short.duration,
                bytes: small.bytes
            })
        );
        assert_eq!(CircuitLimit::strictest(None, Some(small)), Some(small));
        assert_eq!(CircuitLimit::strictest(None, None), None);
    }
}
