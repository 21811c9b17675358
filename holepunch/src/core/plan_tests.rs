use proptest::prelude::*;

use super::*;
use crate::core::nat::report::NatType::{self, *};

const TYPES: [NatType; 6] = [
    Unknown,
    Public,
    FullCone,
    RestrictedCone,
    PortRestrictedCone,
    Symmetric,
];

/// What each pair does, our type down, the peer's across. `d` direct, `r` reversal, `u`, `p`, `b` a
/// punch with us, the peer or both as client, `=` a punch with the responder as client, `x` relay
/// only. Two that let strangers in: the responder dials (`=` as well, without a punch).
const TABLE: [(NatType, [char; 6]); 6] = [
    //                    unknown public full restricted port symmetric
    (Unknown, ['b', 'd', 'd', 'b', 'b', 'b']),
    (Public, ['r', '=', '=', 'r', 'r', 'r']),
    (FullCone, ['r', '=', '=', 'r', 'r', 'r']),
    (RestrictedCone, ['b', 'd', 'd', '=', 'p', 'p']),
    (PortRestrictedCone, ['b', 'd', 'd', 'u', '=', 'x']),
    (Symmetric, ['b', 'd', 'd', 'u', 'x', 'x']),
];

fn plan(role: Role, ours: NatType, peers: NatType) -> Plan {
    Plan::new(role, &TransportNat::of(ours), &TransportNat::of(peers))
}

#[test]
fn every_pair_has_the_plan_of_the_table() {
    for (ours, row) in TABLE {
        for (peers, expected) in TYPES.into_iter().zip(row) {
            for role in [Role::Initiator, Role::Responder] {
                let begins = by_role(role);
                let open = ours.lets_strangers_in() && peers.lets_strangers_in();
                let expected = match expected {
                    'd' => Plan::Direct,
                    'r' => Plan::Reversal,
                    'u' => Plan::Punch { client: Client::Us },
                    'p' => Plan::Punch {
                        client: Client::Peer,
                    },
                    'b' => Plan::Punch {
                        client: Client::Both,
                    },
                    '=' if open && begins == Side::Us => Plan::Direct,
                    '=' if open => Plan::Reversal,
                    '=' => Plan::Punch {
                        client: begins.into(),
                    },
                    _ if ours == peers => Plan::RelayOnly(NoPunch::BothSymmetric),
                    _ if ours == Symmetric => {
                        Plan::RelayOnly(NoPunch::SymmetricAndPortRestricted(Side::Us))
                    }
                    _ => Plan::RelayOnly(NoPunch::SymmetricAndPortRestricted(Side::Peer)),
                };
                assert_eq!(
                    plan(role, ours, peers),
                    expected,
                    "{ours} × {peers}, {role:?}"
                );
            }
        }
    }
}

/// The lab's matrix (`notes/nat-traversal.md` §4): which pairs of mapping and filtering physics lets
/// through, with the harder side as client.
#[test]
fn no_pair_that_can_be_punched_is_given_up_and_none_that_cannot_is_tried() {
    for ours in TYPES {
        for peers in TYPES {
            let hopeless = matches!(
                (ours, peers),
                (Symmetric, Symmetric | PortRestrictedCone) | (PortRestrictedCone, Symmetric)
            );
            assert_eq!(
                plan(Role::Initiator, ours, peers).is_attempt(),
                !hopeless,
                "{ours} × {peers}"
            );
        }
    }
}

#[test]
fn a_confirmed_by_hand_or_protocol_makes_any_type_reachable() {
    let ours = TransportNat {
        confirmed: true,
        ..TransportNat::of(Symmetric)
    };
    let peers = TransportNat::of(Symmetric);
    assert_eq!(Plan::new(Role::Responder, &ours, &peers), Plan::Reversal);
    assert_eq!(Plan::new(Role::Initiator, &peers, &ours), Plan::Direct);
}

#[test]
fn sequential_ports_are_predicted_where_only_the_port_is_missing() {
    let step = NonZeroI16::new(2).unwrap();
    let ours = TransportNat {
        port_step: Some(step),
        ..TransportNat::of(Symmetric)
    };
    let role = Role::Responder;
    let by = Side::Us;
    let with = |peers| Plan::new(role, &ours, &TransportNat::of(peers));
    assert_eq!(with(PortRestrictedCone), Plan::Predict { by, step });
    assert_eq!(with(RestrictedCone), Plan::Punch { client: Client::Us });
    assert_eq!(
        with(Symmetric),
        Plan::RelayOnly(NoPunch::BothSymmetric),
        "the peer's port is missing as well"
    );
}

#[test]
fn where_no_punch_gets_through_a_mapped_port_does() {
    let gateway = |nat_type| TransportNat {
        can_map_port: true,
        ..TransportNat::of(nat_type)
    };
    let (symmetric, port) = (
        TransportNat::of(Symmetric),
        TransportNat::of(PortRestrictedCone),
    );
    let plan = |ours: &TransportNat, peers: &TransportNat| Plan::new(Role::Responder, ours, peers);
    let map = |by| Plan::MapPort { by };
    assert_eq!(plan(&gateway(Symmetric), &port), map(Side::Us));
    assert_eq!(
        plan(&symmetric, &gateway(PortRestrictedCone)),
        map(Side::Peer)
    );
    assert_eq!(plan(&symmetric, &gateway(Symmetric)), map(Side::Peer));
    assert_eq!(
        plan(&gateway(PortRestrictedCone), &port),
        Plan::Punch { client: Client::Us },
        "not where a punch works"
    );
}

#[test]
fn where_udp_is_blocked_tcp_decides_and_gives_the_reason() {
    let mut ours = NatReport {
        tcp: TransportNat::of(PortRestrictedCone),
        ..NatReport::default()
    };
    ours.udp.blocked = true;
    let of = |nat_type| NatReport {
        udp: TransportNat::of(nat_type),
        tcp: TransportNat::of(nat_type),
        ..NatReport::default()
    };
    let plans = Plans::new(Role::Responder, &ours, &of(PortRestrictedCone));
    assert_eq!(plans.quic, Plan::RelayOnly(NoPunch::Blocked(Side::Us)));
    assert_eq!(plans.tcp, Plan::Punch { client: Client::Us });
    assert_eq!(plans.no_punch(), None);
    let plans = Plans::new(Role::Responder, &ours, &of(Symmetric));
    assert!(!plans.is_attempt());
    assert_eq!(
        plans.no_punch(),
        Some(NoPunch::SymmetricAndPortRestricted(Side::Peer))
    );
}

#[test]
fn a_mapping_that_is_known_counts_before_its_filter_is() {
    let ours = TransportNat {
        mapping: Some(Mapping::EndpointIndependent),
        ..TransportNat::default()
    };
    assert_eq!(
        Plan::new(Role::Initiator, &ours, &TransportNat::of(Symmetric)),
        Plan::Punch {
            client: Client::Peer
        },
        "it may let in whom it sent to"
    );
    assert_eq!(
        Plan::new(Role::Initiator, &ours, &TransportNat::of(RestrictedCone)),
        Plan::Punch { client: Client::Us }
    );
}

fn nat() -> impl Strategy<Value = TransportNat> {
    (0..6_usize, any::<[bool; 4]>(), -3..4_i16).prop_map(|(nat_type, flags, step)| TransportNat {
        blocked: flags[0] && flags[1],
        confirmed: flags[2],
        can_map_port: flags[3],
        port_step: NonZeroI16::new(step),
        ..TransportNat::of(TYPES[nat_type])
    })
}

fn mirrored(plan: Plan) -> Plan {
    match plan {
        Plan::Direct => Plan::Reversal,
        Plan::Reversal => Plan::Direct,
        Plan::Punch { client: Client::Us } => Plan::Punch {
            client: Client::Peer,
        },
        Plan::Punch {
            client: Client::Peer,
        } => Plan::Punch { client: Client::Us },
        Plan::Predict { by, step } => Plan::Predict {
            by: by.opposite(),
            step,
        },
        Plan::MapPort { by } => Plan::MapPort { by: by.opposite() },
        Plan::RelayOnly(NoPunch::Blocked(side)) => {
            Plan::RelayOnly(NoPunch::Blocked(side.opposite()))
        }
        Plan::RelayOnly(NoPunch::SymmetricAndPortRestricted(side)) => {
            Plan::RelayOnly(NoPunch::SymmetricAndPortRestricted(side.opposite()))
        }
        same => same,
    }
}

proptest! {
    /// Two sides that disagree would both wait, or both begin.
    #[test]
    fn both_sides_come_to_mirrored_plans(ours in nat(), peers in nat()) {
        // Each side names itself where both block the transport.
        prop_assume!(!(ours.blocked && peers.blocked));
        prop_assert_eq!(
            Plan::new(Role::Initiator, &ours, &peers),
            mirrored(Plan::new(Role::Responder, &peers, &ours))
        );
    }
}

#[test]
fn fresh_ports_are_for_punches_between_nats_that_keep_one_port_for_all() {
    for (ours, peers, gains) in [
        (PortRestrictedCone, PortRestrictedCone, true),
        (RestrictedCone, PortRestrictedCone, true),
        (Unknown, PortRestrictedCone, true),
        (Unknown, Unknown, true),
        (FullCone, PortRestrictedCone, false),
        (PortRestrictedCone, FullCone, false),
        (Symmetric, RestrictedCone, false),
        (RestrictedCone, Symmetric, false),
        (Symmetric, Symmetric, false),
        (Unknown, Symmetric, false),
    ] {
        let (ours, peers) = (TransportNat::of(ours), TransportNat::of(peers));
        for role in [Role::Initiator, Role::Responder] {
            let plan = Plan::new(role, &ours, &peers);
            assert_eq!(
                plan.gains_by_fresh_ports(&ours, &peers),
                gains,
                "{ours:?}, {peers:?}"
            );
        }
    }
}
