//! One punch, and how far it has come.

use std::time::Duration;

use libp2p_core::Multiaddr;
use libp2p_swarm::ConnectionId;
use web_time::Instant;

use super::{Exchange, Opener, ports::Port, targets::Target};
use crate::{NoPunch, PunchError, Role, core::nat::report::NatReport};

#[derive(Debug)]
pub(super) struct Punch {
    pub(super) relayed: ConnectionId,
    pub(super) role: Role,
    pub(super) since: Instant,
    pub(super) deadline: Instant,
    pub(super) stage: Stage,
    /// The present one, from 1; 0 before the first.
    pub(super) attempt: u8,
    /// The last one that came to dials.
    pub(super) synchronised: u8,
    /// Under way: one of ours and one of the peer's.
    pub(super) exchanges: Vec<(Exchange, Step)>,
    /// The last one measured.
    pub(super) round_trip: Option<Duration>,
    /// Whether the peer has said anything.
    pub(super) heard: bool,
    /// What we told the peer of our NATs.
    pub(super) told: NatReport,
    /// What the peer told of its own.
    pub(super) peers: Option<NatReport>,
    pub(super) peers_failure: Option<PunchError>,
    /// Addresses dialled, at most [`Config::max_dials_per_peer`] an attempt.
    pub(super) tried: Vec<Multiaddr>,
    pub(super) no_punch: Option<NoPunch>,
    /// The peer's addresses that may be dialled, as it told them last.
    pub(super) peers_at: Vec<Multiaddr>,
    /// Opened for this punch, at most one a transport for each attempt but the first.
    pub(super) ports: Vec<Port>,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// Too many others are under way.
    Queued,
    /// No address of our own is known yet.
    WithoutCandidates { until: Instant },
    /// Waits for a message.
    Talking,
    /// Waits for half a round trip.
    Synchronised { at: Instant, targets: Vec<Target> },
    /// Waits for a connection.
    Dialling {
        since: Instant,
        until: Instant,
        /// When fresh ports are opened for the next attempt.
        prepares: Option<Instant>,
        /// When dials from fresh ports follow.
        held: Option<Instant>,
    },
    /// Waits until it knows what its fresh ports look like from outside.
    Preparing { until: Instant },
    /// Waits before it talks again.
    Pausing { until: Instant },
}

#[derive(Debug)]
pub(super) enum Step {
    /// Our `CONNECT` for this attempt is out.
    Sent(u8),
    /// The peer's `CONNECT` is answered; its `SYNC` begins the dials.
    Answered(Vec<Target>),
}

impl Punch {
    /// Whether it counts towards [`Config::max_concurrent`].
    pub(super) fn is_active(&self) -> bool {
        match self.stage {
            Stage::Queued | Stage::WithoutCandidates { .. } => false,
            Stage::Talking => !self.exchanges.is_empty(),
            Stage::Synchronised { .. }
            | Stage::Dialling { .. }
            | Stage::Preparing { .. }
            | Stage::Pausing { .. } => true,
        }
    }

    pub(super) fn take_exchange_of(&mut self, opener: Opener) -> Option<Exchange> {
        let mut exchanges = self.exchanges.iter();
        let at = exchanges.position(|(exchange, _)| exchange.opener == opener)?;
        Some(self.exchanges.remove(at).0)
    }

    pub(super) fn due(&self) -> Instant {
        match &self.stage {
            Stage::Queued | Stage::Talking => self.deadline,
            Stage::Dialling {
                until,
                prepares,
                held,
                ..
            } => {
                let sooner = [*prepares, *held].into_iter().flatten();
                sooner.fold(self.deadline.min(*until), Instant::min)
            }
            Stage::WithoutCandidates { until }
            | Stage::Synchronised { at: until, .. }
            | Stage::Preparing { until }
            | Stage::Pausing { until } => self.deadline.min(*until),
        }
    }

    /// Why it failed, if it fails now.
    pub(super) fn verdict(&self) -> PunchError {
        match self.stage {
            Stage::Queued => PunchError::Busy,
            _ if !self.tried.is_empty() => PunchError::DialsFailed,
            Stage::WithoutCandidates { .. } => PunchError::NoAddresses,
            Stage::Dialling { .. } => PunchError::NoAddresses,
            _ => PunchError::TimedOut,
        }
    }
}

pub(super) fn punch_may_retry(punch: &Punch, attempts: u8) -> bool {
    punch.attempt < attempts
}
