//! Nodes that know nobody but two STUN servers: real coturns, with two addresses each, tell them what they stand behind (RFC 8489 and
//! 5780). That something does not get in is believed of two.
#![cfg(feature = "natlab")]
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use anypath_interop_tests::lab::scenario::scratch;
use anypath_interop_tests::lab::{
    Host, Lab, LabError, NatKind, Node, NodeConfig, Program, binary, explain, isolated, now,
};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A server tells the filter by answering from its other address.
const SERVERS: [(&str, [Ipv4Addr; 2]); 2] = [
    (
        "stun1",
        [
            Ipv4Addr::new(198, 51, 100, 1),
            Ipv4Addr::new(198, 51, 100, 2),
        ],
    ),
    (
        "stun2",
        [
            Ipv4Addr::new(203, 0, 113, 101),
            Ipv4Addr::new(203, 0, 113, 102),
        ],
    ),
];
/// For a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(40);
/// Issue 6: "classifier: […] ≤ 5 s".
const BAR: Duration = Duration::from_secs(5);

/// As `anypath status` names them.
const KINDS: [(NatKind, &str); 8] = [
    (NatKind::None, "public"),
    (NatKind::FullCone, "full_cone"),
    (NatKind::AddressRestricted, "restricted_cone"),
    (NatKind::PortRestricted, "port_restricted_cone"),
    (NatKind::PortRestrictedShifting, "port_restricted_cone"),
    (NatKind::CarrierGrade, "port_restricted_cone"),
    (NatKind::Symmetric, "symmetric"),
    (NatKind::UdpBlocked, "unknown"),
];

fn coturn(host: &Host, addresses: [Ipv4Addr; 2], directory: &Path) -> Result<Program, LabError> {
    let directory = directory.join(host.name());
    std::fs::create_dir_all(&directory).expect("a directory");
    let mut command = Command::new("turnserver");
    command
        .args(["-n", "--stun-only", "--no-tls", "--no-dtls", "--no-cli"])
        .args(["--no-stdout-log", "--simple-log"]);
    for (option, file) in [
        ("--pidfile", "pid"),
        ("--userdb", "users"),
        ("--log-file", "log"),
    ] {
        command.arg(option).arg(directory.join(file));
    }
    for address in addresses {
        command.args(["--listening-ip", &address.to_string()]);
    }
    let coturn = Program::start(host, &mut command, &directory.join("errors"))?;
    // Who asks before it listens asks again after minutes.
    let (log, deadline) = (directory.join("log"), now() + PATIENCE);
    while !std::fs::read_to_string(&log).is_ok_and(|log| log.contains("Total General servers")) {
        assert!(now() < deadline, "coturn does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(coturn)
}

fn recognised() -> Result<(), LabError> {
    let mut plan = Lab::new();
    for (kind, _) in KINDS {
        plan = plan.nat(kind).host(kind.name());
    }
    for (name, addresses) in SERVERS {
        plan = plan.server(name, &addresses);
    }
    let network = plan.start()?;
    let directory = scratch()?;
    let mut coturns = Vec::new();
    for (name, addresses) in SERVERS {
        coturns.push(coturn(network.host(name)?, addresses, directory.path())?);
    }
    let servers = SERVERS.map(|(_, [address, _])| format!("/ip4/{address}/udp/3478"));
    let began = now();
    let mut nodes = Vec::new();
    for (kind, expected) in KINDS {
        let config = NodeConfig::default()
            .arguments(["--no-mdns", "--listen", "/ip4/0.0.0.0/udp/9100/quic-v1"])
            .setting("enable_pubsub_discovery", "false")
            .setting("stun_servers", &servers.join(","));
        let node = Node::start(network.host(kind.name())?, directory.path(), config)?;
        nodes.push((kind, expected, node));
    }
    for (kind, expected, node) in &nodes {
        let nat = |status: &Value| status.pointer("/nat/udp").cloned();
        let status = node.await_api("/api/status", kind.name(), PATIENCE, |status| {
            nat(status).as_ref().and_then(Value::as_str) == Some(expected)
        })?;
        println!(
            "{:>26}  UDP {expected}, TCP {}",
            kind.name(),
            status.pointer("/nat/tcp").unwrap_or(&Value::Null)
        );
        // STUN's socket is not one that peers reach.
        assert_ne!(status.pointer("/nat_status"), Some(&Value::from("public")));
    }
    let took = began.elapsed();
    println!(
        "all after {took:.1?}, their start included; bar for one {BAR:?}: {}",
        if took <= BAR { "met" } else { "MISSED" }
    );
    Ok(())
}

#[test]
fn stun_servers_alone_tell_what_udp_stands_behind() {
    if let Err(error) = binary() {
        panic!("cannot build anypath: {}", explain(&error));
    }
    isolated(|| {
        if let Err(error) = recognised() {
            panic!("{}", explain(&error));
        }
    });
}
