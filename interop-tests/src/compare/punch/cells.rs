//! What is measured: the pairs of NATs, and a few situations.

use super::record::Record;
use super::{Implementation, RELAY};
use crate::compare::Effort;
use crate::compare::figure::{Figure, Unit};
use crate::compare::swarm::Transport;
use crate::lab::{Lab, LabError, Leg, NatKind, Network};
use std::time::Duration;

/// Kinds that stock libp2p can punch, and symmetric; by the names of `nat-lab.md`.
const PLAIN: [NatKind; 6] = [
    NatKind::None,
    NatKind::FullCone,
    NatKind::AddressRestricted,
    NatKind::PortRestricted,
    NatKind::Symmetric,
    NatKind::CarrierGrade,
];

/// Kinds whose public port is another one.
const SHIFTING: [NatKind; 4] = [
    NatKind::FullConeShifting,
    NatKind::AddressRestrictedShifting,
    NatKind::PortRestrictedShifting,
    NatKind::CarrierGradeShifting,
];

/// Who stands where.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    pub(super) transport: Transport,
    dialer: NatKind,
    listener: NatKind,
    /// Both behind one NAT, the dialer's.
    together: bool,
    leg: Leg,
    relay_leg: Leg,
}

impl Scene {
    fn new(transport: Transport, dialer: NatKind, listener: NatKind) -> Self {
        Self {
            transport,
            dialer,
            listener,
            together: false,
            leg: Leg::default(),
            relay_leg: Leg::default(),
        }
    }

    /// Builds it; the hosts are `dialer`, `listener` and `relay`.
    pub(super) fn network(&self) -> Result<Network, LabError> {
        let lab = Lab::new().leg(self.leg).nat(self.dialer).host("dialer");
        let lab = if self.together {
            lab.host("listener")
        } else {
            lab.nat(self.listener).host("listener")
        };
        lab.leg(self.relay_leg).server("relay", &[RELAY]).start()
    }
}

/// One figure and what it needs.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) name: String,
    scene: Scene,
    /// The median time counts, not the share of successes.
    is_time: bool,
}

/// One run that is to be done.
pub(super) struct Job<'a> {
    pub(super) name: &'a str,
    pub(super) scene: &'a Scene,
    pub(super) implementation: Implementation,
}

impl Cell {
    /// The runs that are left, ours and the peer's in turn.
    pub(super) fn jobs(
        &self,
        effort: Effort,
        done: impl Fn(Implementation) -> usize,
    ) -> Vec<Job<'_>> {
        let (ours, peers) = match (effort, self.is_time) {
            (Effort::Full, false) => (20, 3),
            (Effort::Full, true) => (7, 7),
            (Effort::Quick, false) => (1, 1),
            (Effort::Quick, true) => (3, 3),
        };
        let left = |implementation, runs: usize| runs.saturating_sub(done(implementation));
        let (ours, peers) = (
            left(Implementation::Ours, ours),
            left(Implementation::Stock, peers),
        );
        let mut jobs = Vec::new();
        for turn in 0..ours.max(peers) {
            for (implementation, runs) in
                [(Implementation::Ours, ours), (Implementation::Stock, peers)]
            {
                if turn < runs {
                    jobs.push(Job {
                        name: &self.name,
                        scene: &self.scene,
                        implementation,
                    });
                }
            }
        }
        jobs
    }

    /// What the record says about it.
    pub(super) fn figures(&self, record: &Record) -> Vec<Figure> {
        let ours = record.runs(&self.name, Implementation::Ours);
        let peers = record.runs(&self.name, Implementation::Stock);
        if self.is_time {
            let ms = |run: &super::Run| run.direct.unwrap_or(run.ended).as_secs_f64() * 1e3;
            let pairs = ours.iter().zip(&peers).map(|(a, b)| (ms(a), ms(b)));
            return vec![Figure::new(
                self.name.clone(),
                Unit::Milliseconds,
                pairs.collect(),
            )];
        }
        let share = |runs: &[super::Run]| {
            let successes = runs.iter().filter(|run| run.direct.is_some()).count();
            100.0 * successes as f64 / runs.len().max(1) as f64
        };
        let mut figures = vec![Figure::new(
            self.name.clone(),
            Unit::Percent,
            vec![(share(&ours), share(&peers))],
        )];
        let left = |runs: &[super::Run]| {
            let reached = runs.iter().filter(|run| run.direct.is_some());
            reached.map(|run| run.left).max().unwrap_or(0) as f64
        };
        let failed = |runs: &[super::Run]| {
            let failed = runs.iter().filter(|run| run.direct.is_none());
            failed
                .map(|run| run.ended.as_secs_f64() * 1e3)
                .fold(0.0, f64::max)
        };
        let name = |what: &str| self.name.replacen("punch.", &format!("punch.{what}."), 1);
        if share(&ours) > 0.0 && share(&peers) > 0.0 {
            let runs = vec![(left(&ours), left(&peers))];
            figures.push(Figure::new(name("left"), Unit::Connections, runs));
        }
        if share(&ours) < 100.0 {
            let runs = vec![(failed(&ours), failed(&peers))];
            figures.push(Figure::new(name("gave_up"), Unit::Milliseconds, runs));
        }
        figures
    }
}

/// Every cell of issue 6.
pub(super) fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    for transport in [Transport::Quic, Transport::Tcp] {
        let mut pair = |dialer: NatKind, listener: NatKind| {
            cells.push(Cell {
                name: format!(
                    "punch.{}.{}.{}",
                    transport.name(),
                    short(dialer),
                    short(listener)
                ),
                scene: Scene::new(transport, dialer, listener),
                is_time: false,
            });
        };
        for dialer in PLAIN {
            for listener in PLAIN {
                pair(dialer, listener);
            }
        }
        let any = PLAIN.into_iter().chain(SHIFTING);
        for dialer in any.clone().filter(|kind| *kind != NatKind::Symmetric) {
            for listener in any.clone().filter(|kind| *kind != NatKind::Symmetric) {
                if SHIFTING.contains(&dialer) || SHIFTING.contains(&listener) {
                    pair(dialer, listener);
                }
            }
        }
        // TCP reversal.
        for dialer in [
            NatKind::FullConeShifting,
            NatKind::AddressRestrictedShifting,
        ] {
            pair(dialer, NatKind::Symmetric);
        }
        pair(NatKind::SymmetricSequential, NatKind::PortRestricted);
        pair(NatKind::PortRestricted, NatKind::SymmetricSequential);
        cells.push(Cell {
            name: format!("punch.{}.same_nat", transport.name()),
            scene: Scene {
                together: true,
                ..Scene::new(transport, NatKind::PortRestricted, NatKind::PortRestricted)
            },
            is_time: false,
        });
        let port = NatKind::PortRestricted;
        let time = |case: &str, scene| Cell {
            name: format!("punch.time.{}.{case}.stock", transport.name()),
            scene,
            is_time: true,
        };
        cells.push(time("port_port", Scene::new(transport, port, port)));
        let far = Scene {
            leg: Leg::delay(Duration::from_millis(5)),
            relay_leg: Leg::delay(Duration::from_millis(100)),
            ..Scene::new(transport, port, port)
        };
        cells.push(time("far_relay", far));
    }
    cells
}

/// As `nat-lab.md` names them.
fn short(kind: NatKind) -> &'static str {
    match kind {
        NatKind::None => "public",
        NatKind::FullCone => "full",
        NatKind::AddressRestricted => "addr",
        NatKind::PortRestricted => "port",
        NatKind::Symmetric => "sym",
        NatKind::CarrierGrade => "double",
        NatKind::FullConeShifting => "fullshift",
        NatKind::AddressRestrictedShifting => "addrshift",
        NatKind::PortRestrictedShifting => "portshift",
        NatKind::CarrierGradeShifting => "doubleshift",
        NatKind::SymmetricSequential => "symseq",
        NatKind::UdpBlocked => "noudp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_cell_has_a_name_of_its_own_and_all_are_there() {
        let cells = all();
        let names: BTreeSet<_> = cells.iter().map(|cell| cell.name.as_str()).collect();
        assert_eq!(names.len(), cells.len());
        for name in [
            "punch.quic.sym.full",
            "punch.tcp.addr.sym",
            "punch.tcp.port.doubleshift",
            "punch.quic.symseq.port",
            "punch.quic.same_nat",
            "punch.time.tcp.far_relay.stock",
        ] {
            assert!(names.contains(name), "{name}");
        }
    }

    #[test]
    fn runs_that_are_recorded_are_not_done_again() {
        let cells = all();
        let cell = cells.first().unwrap();
        assert_eq!(cell.jobs(Effort::Full, |_| 0).len(), 23);
        let left = cell.jobs(Effort::Full, |implementation| match implementation {
            Implementation::Ours => 19,
            Implementation::Stock => 7,
        });
        assert_eq!(left.len(), 1);
    }
}
