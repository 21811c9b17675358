//! Hole punches through real NATs between nodes with anypath-holepunch and with libp2p-dcutr: the endpoints of `compare -- punch`.
#![cfg(feature = "natlab")]

use anypath_interop_tests::lab::scenario::scratch;
use anypath_interop_tests::lab::{Lab, LabError, Leg, NatKind, Program, explain, isolated, now};
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const RELAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 100);
/// No step takes so long, on a busy machine either.
const PATIENCE: Duration = Duration::from_secs(60);
/// Issue 6: a failed punch is known to both sides after that.
const KNOWN: Duration = Duration::from_secs(6);
/// Labs at the same time.
const JOBS: usize = 4;
const SERVERS: [(&str, Ipv4Addr); 2] = [
    ("server1", Ipv4Addr::new(203, 0, 113, 101)),
    ("server2", Ipv4Addr::new(203, 0, 113, 102)),
];
const OURS: &str = "ours";
const STOCK: &str = "stock";

/// What a punch came to.
#[derive(Debug)]
struct Seen {
    direct: Option<Duration>,
    /// Direct connections that were left a moment later, as the dialer sees it.
    left: usize,
    /// When each side told that the punch failed, from the dialer's relayed connection.
    dialer_failed: Option<Duration>,
    listener_failed: Option<Duration>,
}

/// Who stands behind what.
type Side = (&'static str, NatKind);

/// One punch.
#[derive(Clone, Copy, Debug)]
struct Setup {
    over: &'static str,
    dialer: Side,
    listener: Side,
    /// Milliseconds by which their dials are late.
    late: [u64; 2],
    leg: Leg,
    /// Other servers beside the relay: how ports count up is seen in three.
    has_servers: bool,
    /// Waits for the listener's outcome as well.
    until_both: bool,
}

impl Setup {
    fn new(over: &'static str, dialer: NatKind, listener: NatKind) -> Self {
        Self {
            over,
            dialer: (OURS, dialer),
            listener: (OURS, listener),
            late: [0; 2],
            leg: Leg::default(),
            has_servers: [dialer, listener].contains(&NatKind::SymmetricSequential),
            until_both: false,
        }
    }
}

/// `until_both`: waits for the listener's outcome as well.
fn punch(
    over: &'static str,
    dialer: Side,
    listener: Side,
    until_both: bool,
) -> Result<Seen, LabError> {
    run(Setup {
        dialer,
        listener,
        until_both,
        ..Setup::new(over, NatKind::None, NatKind::None)
    })
}

fn run(setup: Setup) -> Result<Seen, LabError> {
    let Setup {
        over,
        dialer,
        listener,
        late,
        until_both,
        ..
    } = setup;
    let directory = scratch()?;
    let lab = Lab::new()
        .leg(setup.leg)
        .nat(dialer.1)
        .host("dialer")
        .nat(listener.1)
        .host("listener")
        .server("relay", &[RELAY]);
    let servers = if setup.has_servers { &SERVERS[..] } else { &[] };
    let lab = servers
        .iter()
        .fold(lab, |lab, (name, address)| lab.server(name, &[*address]));
    let network = lab.start()?;
    let start = |host: &str, arguments: &[String]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_compare"));
        command.args(["endpoint", "punch"]).args(arguments);
        Program::start(
            network.host(host)?,
            &mut command,
            &directory.path().join(host),
        )
    };
    let relay = start("relay", &["relay".to_owned(), RELAY.to_string()])?;
    let port = match over {
        "quic" => "udp/4001/quic-v1",
        _ => "tcp/4001",
    };
    let address = format!("/ip4/{RELAY}/{port}/p2p/{}", word(&relay, "listening")?.1);
    let mut programs = Vec::new();
    let mut known = Vec::new();
    for (name, at) in servers {
        let server = start(name, &["relay".to_owned(), at.to_string()])?;
        let id = word(&server, "listening")?.1;
        known.extend(["--server".to_owned(), format!("/ip4/{at}/{port}/p2p/{id}")]);
        programs.push(server);
    }
    let side = |role: &str, late: u64, implementation: &str| {
        let mut arguments = vec![role.to_owned(), "--late".to_owned(), late.to_string()];
        arguments.extend(known.iter().cloned());
        arguments.extend([implementation, over, &address].map(str::to_owned));
        arguments
    };
    let there = start("listener", &side("listen", late[1], listener.0))?;
    let peer = word(&there, "reserved")?.1;
    let mut arguments = side("dial", late[0], dialer.0);
    arguments.push(peer);
    let here = start("dialer", &arguments)?;
    let mut relayed = now();
    let mut seen = Seen {
        direct: None,
        left: 0,
        dialer_failed: None,
        listener_failed: None,
    };
    while let Some(line) = here.line(now() + PATIENCE)? {
        let (what, value) = line.text.split_once(' ').unwrap_or((&line.text, ""));
        match what {
            "relayed" => relayed = line.at,
            "direct" => seen.direct = Some(Duration::from_nanos(value.parse().unwrap_or(u64::MAX))),
            "left" => seen.left = value.parse().unwrap_or(usize::MAX),
            "failed" => seen.dialer_failed = Some(line.at.saturating_duration_since(relayed)),
            _ => {}
        }
    }
    if until_both {
        let (at, outcome) = word(&there, "outcome")?;
        if outcome != "ok" {
            seen.listener_failed = Some(at.saturating_duration_since(relayed));
        }
    }
    println!(
        "{over}: {dialer:?} dials {listener:?}, late {late:?}, loss {}: {seen:?}",
        setup.leg.loss
    );
    Ok(seen)
}

/// What follows `word` on the line that begins with it, and when it came.
fn word(program: &Program, word: &str) -> Result<(Instant, String), LabError> {
    while let Some(line) = program.line(now() + PATIENCE)? {
        if let Some((first, rest)) = line.text.split_once(' ')
            && first == word
        {
            return Ok((line.at, rest.trim().to_owned()));
        }
    }
    Err(program.failure(format!("ended before `{word}`")))
}

fn lab<T>(result: Result<T, LabError>) -> T {
    result.unwrap_or_else(|error| panic!("{}", explain(&error)))
}

/// Runs each of them, several labs at a time; how many punches succeeded.
fn successes(setups: &[Setup]) -> usize {
    let (next, successes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                while let Some(setup) = setups.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if lab(run(*setup)).direct.is_some() {
                        successes.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    successes.into_inner()
}

/// `PUNCH_RUNS` of each, or as many as fit into CI.
fn runs() -> u64 {
    let runs = std::env::var("PUNCH_RUNS").ok();
    runs.and_then(|runs| runs.parse().ok()).unwrap_or(1)
}

/// So many of them at least, but one may always fail: a run of a share is no share.
fn assert_share(setups: &[Setup], share: f64) {
    let successes = successes(setups);
    let bar = (setups.len() as f64 * share).floor() as usize;
    let bar = bar.min(setups.len().saturating_sub(1));
    println!("{successes} of {}, at least {bar}", setups.len());
    assert!(
        successes >= bar,
        "{successes} of {}: {setups:?}",
        setups.len()
    );
}

/// Issue 6: ≥ 95 % within three attempts. The ports of the first attempt are spoiled where the box takes
/// what came too early to be its own.
#[test]
fn a_side_that_is_late_gets_through_nats_that_answer() {
    isolated(|| {
        let mut setups = Vec::new();
        for _ in 0..runs() {
            for over in ["quic", "tcp"] {
                for kind in NatKind::ANSWERING {
                    for late in [[0, 0], [100, 0], [300, 0], [0, 100], [0, 300]] {
                        setups.push(Setup {
                            late,
                            ..Setup::new(over, kind, kind)
                        });
                    }
                }
            }
        }
        assert_share(&setups, 0.95);
    });
}

/// The side that is late is the one whose ports are spoiled: it has to be ours.
#[test]
fn a_stock_peer_behind_nats_that_answer_is_reached_by_a_later_attempt() {
    isolated(|| {
        let kind = NatKind::PortRestrictedAccepting;
        let mut setups = Vec::new();
        for _ in 0..runs() {
            for over in ["quic", "tcp"] {
                for late in [100, 300] {
                    setups.push(Setup {
                        dialer: (STOCK, kind),
                        late: [0, late],
                        ..Setup::new(over, kind, kind)
                    });
                }
            }
        }
        assert_share(&setups, 0.95);
    });
}

/// Issue 6: ≥ 98 % at 3 % loss on every leg, ≥ 95 % at 8 %.
#[test]
fn lost_packets_seldom_cost_the_punch() {
    isolated(|| {
        for (loss, share) in [(0.03, 0.98), (0.08, 0.95)] {
            let mut setups = Vec::new();
            for seed in 0..2 * runs() {
                for over in ["quic", "tcp"] {
                    let port = NatKind::PortRestricted;
                    setups.push(Setup {
                        leg: Leg {
                            loss,
                            // Each site adds its number.
                            seed: 16 * seed,
                            ..Leg::default()
                        },
                        ..Setup::new(over, port, port)
                    });
                }
            }
            assert_share(&setups, share);
        }
    });
}

/// Issue 6: ≥ 95 %.
#[test]
fn ports_that_count_up_are_predicted() {
    isolated(|| {
        let (counting, port) = (NatKind::SymmetricSequential, NatKind::PortRestricted);
        let mut setups = Vec::new();
        for _ in 0..runs() {
            for over in ["quic", "tcp"] {
                setups.push(Setup::new(over, counting, port));
                setups.push(Setup::new(over, port, counting));
            }
        }
        assert_share(&setups, 0.95);
    });
}

#[test]
fn a_stock_peer_is_punched_in_either_part() {
    isolated(|| {
        let port = NatKind::PortRestricted;
        for over in ["quic", "tcp"] {
            for (dialer, listener) in [(OURS, STOCK), (STOCK, OURS)] {
                let seen = lab(punch(over, (dialer, port), (listener, port), false));
                assert!(
                    seen.direct.is_some(),
                    "{over}, {dialer} dials {listener}: {seen:?}"
                );
            }
        }
    });
}

#[test]
fn between_our_own_nodes_one_connection_is_left() {
    isolated(|| {
        let port = NatKind::PortRestricted;
        for over in ["quic", "tcp"] {
            let seen = lab(punch(over, (OURS, port), (OURS, port), false));
            assert!(seen.direct.is_some(), "{over}: {seen:?}");
            assert_eq!(seen.left, 1, "{over}: {seen:?}");
        }
    });
}

#[test]
fn a_failed_punch_is_known_to_both_sides_in_time() {
    isolated(|| {
        let symmetric = NatKind::Symmetric;
        for over in ["quic", "tcp"] {
            let seen = lab(punch(over, (OURS, symmetric), (OURS, symmetric), true));
            for failed in [seen.dialer_failed, seen.listener_failed] {
                assert!(
                    failed.is_some_and(|after| after <= KNOWN),
                    "{over}: {seen:?}"
                );
            }
        }
    });
}

#[test]
fn a_stock_peer_that_cannot_be_reached_is_given_up_in_time() {
    isolated(|| {
        let symmetric = NatKind::Symmetric;
        for over in ["quic", "tcp"] {
            let seen = lab(punch(over, (OURS, symmetric), (STOCK, symmetric), false));
            let failed = seen.dialer_failed;
            assert!(
                failed.is_some_and(|after| after <= KNOWN),
                "{over}: {seen:?}"
            );
            // The stock dialer looks on for 20 s.
            let seen = lab(punch(over, (STOCK, symmetric), (OURS, symmetric), true));
            let failed = seen.listener_failed;
            assert!(
                failed.is_some_and(|after| after <= KNOWN),
                "{over}: {seen:?}"
            );
        }
    });
}
