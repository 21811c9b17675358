//! Real `anypath` nodes behind real NATs. Each test is a laboratory of its own; figures are printed.
#![cfg(feature = "natlab")]
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use anypath_interop_tests::lab::scenario::{
    Pair, Scenario, Transport, random_file, scratch, sha256,
};
use anypath_interop_tests::lab::{
    Done, Get, GetReport, Lab, LabError, Leg, NatKind, Node, NodeConfig, binary, explain, isolated,
    now,
};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: usize = 1 << 20;
/// For a whole transfer on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);
/// Issue 2: four round trips of the relayed path, 100 ms each with legs of 12.5 ms.
const FIRST_BYTES: Duration = Duration::from_millis(400);
/// Issue 2: after the relayed connection is up.
const DIRECT: Duration = Duration::from_secs(2);
/// A machine busy with other things may miss a bound in time, but not every time. (Over QUIC the first
/// leaf of 256 KiB takes most of its bound: slow start and pacing on both of the relay's hops.)
const TRIES: u32 = 5;
/// How many times a bound a run may take on a busy machine before something is broken.
const FAR: u32 = 3;

fn lab(test: impl FnOnce() -> Result<(), LabError>) {
    if let Err(error) = test() {
        panic!("{}", explain(&error));
    }
}

/// Builds the command before the sandbox hides the network.
fn prepare() {
    if let Err(error) = binary() {
        panic!("cannot build anypath: {}", explain(&error));
    }
}

fn source(pair: &Pair, bytes: usize) -> Result<PathBuf, LabError> {
    let path = pair.directory().join("random");
    random_file(&path, bytes, bytes as u64)?;
    Ok(path)
}

/// Everything that must hold of every completed transfer.
fn assert_complete(report: &GetReport, sent: &Path, received: &Path) -> Result<Done, LabError> {
    assert_eq!(report.exit, Some(0), "{report}\n{}", report.errors);
    let done = report
        .done
        .unwrap_or_else(|| panic!("no account: {report}\n{}", report.errors));
    let size = std::fs::metadata(sent).expect("the sent file").len();
    assert_eq!(done.bytes, size, "bytes lost");
    assert_eq!(sha256(received)?, sha256(sent)?, "another file arrived");
    // Blocks also carry the tree: a little more than the file, never less.
    let carried = done.relayed + done.direct + done.local + done.resumed;
    assert!(
        carried >= size,
        "the account names {carried} of {size} bytes"
    );
    Ok(done)
}

fn transfer(scenario: Scenario, bytes: usize) -> Result<(GetReport, Done), LabError> {
    let pair = Pair::start(scenario)?;
    let file = source(&pair, bytes)?;
    let report = pair.transfer(&file, PATIENCE)?;
    println!(
        "{} x {} over {}: {report}",
        scenario.alice, scenario.bob, scenario.transport
    );
    let done = assert_complete(&report, &file, &pair.output())?;
    Ok((report, done))
}

/// The whole promise: begins relayed, becomes direct. The best of a few runs is judged: the figures are
/// printed, and only a run that misses a bound by far fails, because a busy machine must not (STYLE.md: timings
/// never gate a test).
fn begins_relayed_and_becomes_direct(transport: Transport) -> Result<(), LabError> {
    let scenario = Scenario::new(NatKind::PortRestricted, NatKind::PortRestricted, transport);
    let mut best = (Duration::MAX, Duration::MAX);
    for _ in 0..TRIES {
        let (report, done) = transfer(scenario, 64 * MIB)?;
        let relayed = report.relayed.expect("a relayed connection");
        let (first, path) = report.first_bytes.clone().expect("first bytes");
        let direct = report.direct.expect("a direct connection");
        // `unknown`: on a slow machine the direct path is there before the first leaf is, and both had a part in it.
        assert_ne!(path, "direct", "the file begins over the relay");
        assert!(done.relayed > 0 && done.direct > 0, "{report}");
        let (first, direct) = (
            first.saturating_sub(relayed),
            direct.saturating_sub(relayed),
        );
        println!("  after the relayed connection: first bytes {first:?}, direct {direct:?}");
        best = best.min((first, direct));
        if first <= FIRST_BYTES && direct <= DIRECT {
            break;
        }
    }
    let (first, direct) = best;
    let verdict = if first <= FIRST_BYTES && direct <= DIRECT {
        "met"
    } else {
        "MISSED"
    };
    println!(
        "  bar {verdict}: first bytes {first:?} of {FIRST_BYTES:?}, direct {direct:?} of {DIRECT:?}"
    );
    assert!(
        first <= FAR * FIRST_BYTES && direct <= FAR * DIRECT,
        "far from the bar"
    );
    Ok(())
}

#[test]
fn between_two_port_restricted_nats_get_begins_relayed_and_becomes_direct_over_quic() {
    prepare();
    isolated(|| lab(|| begins_relayed_and_becomes_direct(Transport::Quic)));
}

#[test]
fn between_two_port_restricted_nats_get_begins_relayed_and_becomes_direct_over_tcp() {
    prepare();
    isolated(|| lab(|| begins_relayed_and_becomes_direct(Transport::Tcp)));
}

#[test]
fn two_nodes_that_know_only_the_relay_find_each_other() {
    prepare();
    isolated(|| {
        lab(|| {
            let (port, shifting) = (NatKind::PortRestricted, NatKind::PortRestrictedShifting);
            let scenario = Scenario {
                announce: true,
                ..Scenario::new(port, shifting, Transport::Both)
            };
            let pair = Pair::start(scenario)?;
            let file = source(&pair, 16 * MIB)?;
            let cid = pair.alice.add(&file)?;
            let report =
                Get::start(&pair.bob, &cid, &pair.output(), None)?.finish(now() + PATIENCE)?;
            println!("without being told of each other: {report}");
            let done = assert_complete(&report, &file, &pair.output())?;
            assert!(done.direct > 0, "{report}");
            Ok(())
        });
    });
}

#[test]
fn between_two_symmetric_nats_get_completes_over_the_relay() {
    prepare();
    isolated(|| {
        lab(|| {
            let scenario = Scenario::new(NatKind::Symmetric, NatKind::Symmetric, Transport::Quic);
            let (report, done) = transfer(scenario, 64 * MIB)?;
            assert_eq!((report.direct, done.direct), (None, 0), "{report}");
            assert!(done.relayed >= done.bytes, "{report}");
            Ok(())
        });
    });
}

fn becomes_direct(scenario: Scenario) -> Result<(), LabError> {
    let (report, done) = transfer(scenario, 16 * MIB)?;
    assert!(report.direct.is_some() && done.direct > 0, "{report}");
    Ok(())
}

#[test]
fn a_nat_that_changes_ports_is_punched_with_the_observed_address() {
    prepare();
    isolated(|| {
        lab(|| {
            for transport in [Transport::Quic, Transport::Tcp] {
                let (shifting, port) = (NatKind::PortRestrictedShifting, NatKind::PortRestricted);
                becomes_direct(Scenario::new(shifting, port, transport))?;
                becomes_direct(Scenario::new(port, shifting, transport))?;
            }
            Ok(())
        });
    });
}

#[test]
fn two_nats_in_a_row_are_punched() {
    prepare();
    isolated(|| {
        lab(|| {
            let (double, port) = (NatKind::CarrierGrade, NatKind::PortRestricted);
            becomes_direct(Scenario::new(double, port, Transport::Quic))?;
            becomes_direct(Scenario::new(double, double, Transport::Tcp))
        });
    });
}

#[test]
fn where_udp_is_blocked_get_becomes_direct_over_tcp() {
    prepare();
    isolated(|| {
        lab(|| {
            let (blocked, port) = (NatKind::UdpBlocked, NatKind::PortRestricted);
            let pair = Pair::start(Scenario::new(blocked, port, Transport::Both))?;
            let file = source(&pair, 16 * MIB)?;
            let report = pair.transfer(&file, PATIENCE)?;
            println!("udp-blocked x port-restricted: {report}");
            let done = assert_complete(&report, &file, &pair.output())?;
            assert!(done.direct > 0, "{report}");
            let addresses = direct_addresses(&pair.bob, pair.alice.peer_id())?;
            assert!(!addresses.is_empty(), "the direct connection has gone");
            assert!(
                addresses.iter().all(|address| address.contains("/tcp/")),
                "{addresses:?}"
            );
            Ok(())
        });
    });
}

fn connections(peers: &Value, peer_id: &str) -> Vec<Value> {
    let peers = peers.as_array().into_iter().flatten();
    peers
        .filter(|peer| peer.get("peer_id").and_then(Value::as_str) == Some(peer_id))
        .filter_map(|peer| peer.get("connections").and_then(Value::as_array))
        .flatten()
        .cloned()
        .collect()
}

fn direct_addresses(node: &Node, peer_id: &str) -> Result<Vec<String>, LabError> {
    let connections = connections(&node.api("/api/peers")?, peer_id);
    let text = |connection: &Value, key| {
        connection
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    Ok(connections
        .iter()
        .filter(|connection| text(connection, "path") == "direct")
        .map(|connection| text(connection, "address"))
        .collect())
}

#[test]
fn over_a_limited_relay_get_waits_for_the_direct_path_and_completes() {
    prepare();
    isolated(|| {
        lab(|| {
            let limit = 128 * 1024;
            let scenario = Scenario {
                circuit_bytes: Some(limit),
                ..Scenario::new(
                    NatKind::PortRestricted,
                    NatKind::PortRestricted,
                    Transport::Quic,
                )
            };
            let (report, done) = transfer(scenario, 16 * MIB)?;
            // A punch can be over before the first leaf is asked for. That get says when it waits is what the test with two
            // symmetric NATs shows.
            if let Some(allowed) = report.waiting_for_direct {
                assert!(allowed <= limit, "{allowed}");
            }
            assert!(done.relayed <= limit, "{report}");
            assert!(done.direct > 0, "{report}");
            Ok(())
        });
    });
}

#[test]
fn over_a_limited_relay_between_symmetric_nats_get_fails_with_advice() {
    prepare();
    isolated(|| {
        lab(|| {
            let scenario = Scenario {
                circuit_bytes: Some(128 * 1024),
                direct_path_timeout: Duration::from_secs(10),
                ..Scenario::new(NatKind::Symmetric, NatKind::Symmetric, Transport::Quic)
            };
            let pair = Pair::start(scenario)?;
            let file = source(&pair, 4 * MIB)?;
            let report = pair.transfer(&file, PATIENCE)?;
            println!(
                "limited, symmetric x symmetric: {report}\n{}",
                report.errors
            );
            assert!(
                report.waiting_for_direct.is_some(),
                "get says that it waits"
            );
            assert!(report.exit.is_some_and(|code| code != 0), "{report}");
            assert!(report.errors.contains("direct path"), "{}", report.errors);
            assert!(report.errors.contains("relay"), "{}", report.errors);
            assert!(!pair.output().exists(), "half a file under the final name");
            Ok(())
        });
    });
}

/// Slow enough that a transfer of 64 MiB can be interrupted: 5 s at 100 Mbit/s.
fn slow() -> Scenario {
    Scenario {
        leg: Leg {
            rate: Some(100_000_000),
            ..Leg::default()
        },
        ..Scenario::new(
            NatKind::PortRestricted,
            NatKind::PortRestricted,
            Transport::Quic,
        )
    }
}

#[test]
fn get_completes_when_the_serving_node_is_killed_and_comes_back() {
    prepare();
    isolated(|| {
        lab(|| {
            let mut pair = Pair::start(slow())?;
            let file = source(&pair, 64 * MIB)?;
            let cid = pair.alice.add(&file)?;
            let mut get = pair.get(&cid)?;
            let deadline = now() + PATIENCE;
            get.until(deadline, |report| {
                report.direct.is_some() && report.first_bytes.is_some()
            })?;
            assert!(get.report().done.is_none(), "too fast to be interrupted");
            pair.alice.kill()?;
            pair.alice.restart()?;
            let report = get.finish(deadline)?;
            println!("served by a node that was killed: {report}");
            assert_complete(&report, &file, &pair.output())?;
            Ok(())
        });
    });
}

#[test]
fn get_continues_from_its_blocks_when_the_getting_node_is_killed() {
    prepare();
    isolated(|| {
        lab(|| {
            let mut pair = Pair::start(slow())?;
            let file = source(&pair, 64 * MIB)?;
            let cid = pair.alice.add(&file)?;
            let mut get = pair.get(&cid)?;
            let deadline = now() + PATIENCE;
            get.until(deadline, |report| {
                report.direct.is_some() && report.first_bytes.is_some()
            })?;
            assert!(get.report().done.is_none(), "too fast to be interrupted");
            pair.bob.kill()?;
            let failed = get.finish(deadline)?;
            assert_ne!(failed.exit, Some(0), "get without its node: {failed}");
            assert!(!pair.output().exists(), "half a file under the final name");
            pair.bob.restart()?;
            pair.bob.await_reservation()?;
            let report = pair.get(&cid)?.finish(deadline)?;
            println!("fetched by a node that was killed: {report}");
            let done = assert_complete(&report, &file, &pair.output())?;
            assert!(done.local + done.resumed > 0, "it begins anew: {report}");
            Ok(())
        });
    });
}

#[test]
fn two_hosts_on_one_network_find_each_other_by_mdns() {
    prepare();
    isolated(|| {
        lab(|| {
            let network = Lab::new()
                .nat(NatKind::PortRestricted)
                .host("alice")
                .host("bob")
                .start()?;
            let directory = scratch()?;
            let start =
                |name| Node::start(network.host(name)?, directory.path(), NodeConfig::default());
            let (alice, bob) = (start("alice")?, start("bob")?);
            let began = now();
            bob.await_api("/api/peers", "alice", Duration::from_secs(10), |peers| {
                !connections(peers, alice.peer_id()).is_empty()
            })?;
            println!(
                "found by mDNS and connected {:?} after both had started",
                began.elapsed()
            );
            let (file, output) = (
                directory.path().join("random"),
                directory.path().join("received"),
            );
            random_file(&file, 4 * MIB, 4)?;
            let cid = alice.add(&file)?;
            let report = Get::start(&bob, &cid, &output, None)?.finish(now() + PATIENCE)?;
            println!("on one network: {report}");
            let done = assert_complete(&report, &file, &output)?;
            assert_eq!(done.relayed, 0);
            Ok(())
        });
    });
}
