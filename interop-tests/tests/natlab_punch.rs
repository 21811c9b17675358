//! Hole punches through real NATs between nodes with anypath-holepunch and with libp2p-dcutr: the endpoints of `compare -- punch`.
#![cfg(feature = "natlab")]

use anypath_interop_tests::lab::scenario::scratch;
use anypath_interop_tests::lab::{Lab, LabError, NatKind, Program, explain, isolated, now};
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

const RELAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 100);
/// No step takes so long, on a busy machine either.
const PATIENCE: Duration = Duration::from_secs(60);
/// Issue 6: a failed punch is known to both sides after that.
const KNOWN: Duration = Duration::from_secs(6);
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

/// `until_both`: waits for the listener's outcome as well.
fn punch(over: &str, dialer: Side, listener: Side, until_both: bool) -> Result<Seen, LabError> {
    let directory = scratch()?;
    let network = Lab::new()
        .nat(dialer.1)
        .host("dialer")
        .nat(listener.1)
        .host("listener")
        .server("relay", &[RELAY])
        .start()?;
    let start = |host: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_compare"));
        command.args(["endpoint", "punch"]).args(arguments);
        Program::start(
            network.host(host)?,
            &mut command,
            &directory.path().join(host),
        )
    };
    let relay = start("relay", &["relay", &RELAY.to_string()])?;
    let port = match over {
        "quic" => "udp/4001/quic-v1",
        _ => "tcp/4001",
    };
    let address = format!("/ip4/{RELAY}/{port}/p2p/{}", word(&relay, "listening")?.1);
    let there = start("listener", &["listen", listener.0, over, &address])?;
    let peer = word(&there, "reserved")?.1;
    let here = start("dialer", &["dial", dialer.0, over, &address, &peer])?;
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
    println!("{over}: {dialer:?} dials {listener:?}: {seen:?}");
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
