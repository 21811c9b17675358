//! What a NAT box does to a transfer when it gets another address, or restarts: nobody tells the nodes.
#![cfg(feature = "natlab")]
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use anypath_interop_tests::lab::scenario::{Pair, Scenario, Transport, random_file, sha256};
use anypath_interop_tests::lab::{LabError, Leg, NatKind, Node, binary, explain, isolated, now};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::time::Duration;

/// For what a busy machine may make of a bar: timings are printed and gate nothing (STYLE.md).
const FAR: u32 = 3;
/// Issue 6: "direct ≤ 5 s after the first sign; ≤ 15 s after the change itself".
const DIRECT: Duration = Duration::from_secs(15);
const DIRECT_AFTER_SIGN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(180);
const FILE_BYTES: usize = 96 << 20;
/// What it takes when nothing happens.
const TRANSFER: Duration = Duration::from_secs(10);

/// Slow enough that the change comes in the middle: 8 s at 100 Mbit/s.
fn scenario(transport: Transport) -> Scenario {
    Scenario {
        leg: Leg {
            rate: Some(100_000_000),
            ..Leg::default()
        },
        ..Scenario::new(NatKind::PortRestricted, NatKind::PortRestricted, transport)
    }
}

/// The numbers of the direct connections of `node` to `peer`.
fn direct(node: &Node, peer: &Node) -> Result<Vec<String>, LabError> {
    let peers = node.api("/api/peers")?;
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    Ok(peers
        .as_array()
        .into_iter()
        .flatten()
        .filter(|one| text(one, "peer_id").as_deref() == Some(peer.peer_id()))
        .filter_map(|one| one.get("connections").and_then(Value::as_array))
        .flatten()
        .filter(|connection| text(connection, "path").as_deref() == Some("direct"))
        .filter_map(|connection| text(connection, "id"))
        .collect())
}

/// Whether either side could know of the change: the old connection is gone, or somebody sees `alice` elsewhere.
fn is_noticed(pair: &Pair, before: &[String], old: &Value) -> Result<bool, LabError> {
    let is_gone =
        |node: &Node, peer: &Node| -> Result<bool, LabError> { Ok(direct(node, peer)?.is_empty()) };
    let bobs = direct(&pair.bob, &pair.alice)?;
    Ok(bobs.iter().all(|id| !before.contains(id))
        || is_gone(&pair.alice, &pair.bob)?
        || observed(&pair.alice)? != *old)
}

/// Where others see `node`.
fn observed(node: &Node) -> Result<Value, LabError> {
    let status = node.api("/api/status")?;
    Ok(status.get("observed_addrs").cloned().unwrap_or(Value::Null))
}

fn told(what: &str, after: Duration, bar: Duration) {
    let met = if after <= bar { "met" } else { "MISSED" };
    println!("{what}: {after:.1?} of {bar:?}: {met}");
}

fn change(
    transport: Transport,
    what: &str,
    change: impl FnOnce(&mut Pair) -> Result<(), LabError>,
) -> Result<(), LabError> {
    let mut pair = Pair::start(scenario(transport))?;
    let file = pair.directory().join("random");
    random_file(&file, FILE_BYTES, 6)?;
    let cid = pair.alice.add(&file)?;
    let mut get = pair.get(&cid)?;
    let deadline = now() + PATIENCE;
    get.until(deadline, |report| {
        report.direct.is_some() && report.first_bytes.is_some()
    })?;
    let before = direct(&pair.bob, &pair.alice)?;
    let seen_at = observed(&pair.alice)?;
    assert!(get.report().done.is_none(), "too fast to be interrupted");
    let began = now();
    change(&mut pair)?;
    let fetching = std::thread::spawn(move || get.finish(deadline));
    // Whatever comes after is another connection. None comes where the old one is still good: QUIC through a box that maps
    // the same ports again.
    let (mut noticed, mut again) = (None, None);
    let mut held = true;
    while !fetching.is_finished() {
        if noticed.is_none() && is_noticed(&pair, &before, &seen_at)? {
            noticed = Some(now() - began);
        }
        let seen = direct(&pair.bob, &pair.alice)?;
        // Of two at first, one is closed as superfluous.
        held = seen.iter().any(|id| before.contains(id));
        if again.is_none() && seen.iter().any(|id| !before.contains(id)) {
            again = Some(now() - began);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let report = fetching.join().expect("get")?;
    println!("{what}: {report}");
    let whole = now() - began;
    match again {
        Some(after) => {
            told(&format!("{what}: direct again after"), after, DIRECT);
            let sign = noticed.unwrap_or_default().min(after);
            let what = format!("{what}: direct again after the first sign ({sign:.1?})");
            told(&what, after - sign, DIRECT_AFTER_SIGN);
        }
        None => println!("{what}: no other direct connection; the old one held: {held}"),
    }
    assert!(
        whole <= FAR * DIRECT + TRANSFER,
        "far from the bar: {whole:?}"
    );
    assert_eq!(report.exit, Some(0), "{report}\n{}", report.errors);
    assert_eq!(sha256(&pair.output())?, sha256(&file)?);
    let done = report
        .done
        .unwrap_or_else(|| panic!("no account: {report}"));
    // What was direct before the change proves nothing.
    assert!(
        done.direct > 0 && (again.is_some() || held),
        "it went on over the relay: {report}"
    );
    Ok(())
}

fn lab(test: impl FnOnce() -> Result<(), LabError>) {
    if let Err(error) = test() {
        panic!("{}", explain(&error));
    }
}

fn prepare() {
    if let Err(error) = binary() {
        panic!("cannot build anypath: {}", explain(&error));
    }
}

fn renumber(pair: &mut Pair) -> Result<(), LabError> {
    pair.network_mut()
        .renumber("alice", Ipv4Addr::new(203, 0, 113, 55))
}

fn reboot(pair: &mut Pair) -> Result<(), LabError> {
    pair.network().reboot("alice", Duration::from_secs(1))
}

#[test]
fn a_transfer_survives_a_new_wan_address_over_quic() {
    prepare();
    isolated(|| lab(|| change(Transport::Quic, "new WAN address, QUIC", renumber)));
}

#[test]
fn a_transfer_survives_a_new_wan_address_over_tcp() {
    prepare();
    isolated(|| lab(|| change(Transport::Tcp, "new WAN address, TCP", renumber)));
}

#[test]
fn a_transfer_survives_a_reboot_of_the_nat_over_quic() {
    prepare();
    isolated(|| lab(|| change(Transport::Quic, "NAT rebooted, QUIC", reboot)));
}

#[test]
fn a_transfer_survives_a_reboot_of_the_nat_over_tcp() {
    prepare();
    isolated(|| lab(|| change(Transport::Tcp, "NAT rebooted, TCP", reboot)));
}
