//! What is measured: the pairs of NATs, and a few situations.

use super::record::Record;
use super::{Implementation, RELAY};
use crate::compare::Effort;
use crate::compare::figure::{Figure, Unit};
use crate::compare::swarm::Transport;
use crate::lab::{Lab, LabError, Leg, NatKind, Network};
use std::net::Ipv4Addr;
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

/// The picture's rows and columns.
pub(super) const KINDS: [NatKind; 11] = [
    NatKind::None,
    NatKind::FullCone,
    NatKind::AddressRestricted,
    NatKind::PortRestricted,
    NatKind::CarrierGrade,
    NatKind::FullConeShifting,
    NatKind::AddressRestrictedShifting,
    NatKind::PortRestrictedShifting,
    NatKind::CarrierGradeShifting,
    NatKind::SymmetricSequential,
    NatKind::Symmetric,
];

/// Milliseconds that one side is late by: within and beyond the way between the two, 25 ms.
const LATE: [u64; 5] = [20, 50, 100, 200, 300];

/// Per cent of the packets on every leg, in each direction.
const LOSS: [u8; 2] = [3, 8];

/// Beside the relay, where a scene has them.
const SERVERS: [(&str, Ipv4Addr); 2] = [
    ("server1", Ipv4Addr::new(203, 0, 113, 101)),
    ("server2", Ipv4Addr::new(203, 0, 113, 102)),
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
    /// How much later than it should one side dials.
    late: Option<(Side, Duration)>,
    /// Other servers tell as well where they see the nodes: how ports count up is seen in three.
    has_servers: bool,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Dialer,
    Listener,
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
            late: None,
            has_servers: [dialer, listener].contains(&NatKind::SymmetricSequential),
        }
    }

    /// Servers beside the relay, and where they stand.
    pub(super) fn servers(&self) -> &[(&'static str, Ipv4Addr)] {
        if self.has_servers { &SERVERS } else { &[] }
    }

    /// How much later than it should that side dials.
    pub(super) fn late(&self, side: Side) -> Duration {
        match self.late {
            Some((of, late)) if of == side => late,
            _ => Duration::ZERO,
        }
    }

    /// Builds it; the hosts are `dialer`, `listener` and `relay`. What is lost depends on the seed.
    pub(super) fn network(&self, seed: u64) -> Result<Network, LabError> {
        // Each site adds its number.
        let seeded = |leg: Leg| Leg {
            seed: seed.wrapping_mul(16),
            ..leg
        };
        let lab = Lab::new()
            .leg(seeded(self.leg))
            .nat(self.dialer)
            .host("dialer");
        let lab = if self.together {
            lab.host("listener")
        } else {
            lab.nat(self.listener).host("listener")
        };
        let lab = lab.leg(seeded(self.relay_leg)).server("relay", &[RELAY]);
        let servers = self.servers().iter();
        servers
            .fold(lab, |lab, (name, address)| lab.server(name, &[*address]))
            .start()
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
                name: pair_name(transport, dialer, listener),
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
        for kind in NatKind::ANSWERING {
            for (side, name) in [(Side::Dialer, "dialer"), (Side::Listener, "listener")] {
                for late in LATE {
                    cells.push(Cell {
                        name: format!(
                            "punch.late.{}.{}.{name}_{late}",
                            transport.name(),
                            short(kind)
                        ),
                        scene: Scene {
                            late: Some((side, Duration::from_millis(late))),
                            ..Scene::new(transport, kind, kind)
                        },
                        is_time: false,
                    });
                }
            }
        }
        for percent in LOSS {
            let leg = Leg {
                loss: f64::from(percent) / 100.0,
                ..Leg::default()
            };
            cells.push(Cell {
                name: format!("punch.loss.{}.port_port_{percent}", transport.name()),
                scene: Scene {
                    leg,
                    relay_leg: leg,
                    ..Scene::new(transport, port, port)
                },
                is_time: false,
            });
        }
    }
    cells
}

/// The figure of this pair.
pub(super) fn pair_name(transport: Transport, dialer: NatKind, listener: NatKind) -> String {
    let (dialer, listener) = (short(dialer), short(listener));
    format!("punch.{}.{dialer}.{listener}", transport.name())
}

/// As `nat-lab.md` names them.
pub(super) fn short(kind: NatKind) -> &'static str {
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
        NatKind::PortRestrictedAccepting => "accept",
        NatKind::PortRestrictedRejecting => "reject",
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
            "punch.late.quic.accept.dialer_300",
            "punch.late.tcp.reject.listener_100",
            "punch.loss.tcp.port_port_8",
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
