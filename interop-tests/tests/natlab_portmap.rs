//! Nodes behind routers that map ports on request: a real miniupnpd, asked by PCP, NAT-PMP and UPnP.
//! Figures are printed, and fail only where they miss their bar by far.
#![cfg(feature = "natlab")]
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use anypath_interop_tests::lab::scenario::scratch;
use anypath_interop_tests::lab::{
    Lab, LabError, Miniupnpd, NatKind, Network, Node, NodeConfig, Speaks, binary, explain,
    isolated, now,
};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// miniupnpd maps nothing to addresses for documentation.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(5, 6, 7, 0);
const SERVERS: [Ipv4Addr; 2] = [
    Ipv4Addr::new(203, 0, 113, 100),
    Ipv4Addr::new(203, 0, 113, 101),
];
/// One for each transport: who is connected already does not dial.
const STRANGERS: [(&str, Ipv4Addr); 2] = [
    ("stranger0", Ipv4Addr::new(203, 0, 113, 102)),
    ("stranger1", Ipv4Addr::new(203, 0, 113, 103)),
];
/// For a step on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many times a bar a run may take on a busy machine before something is broken.
const FAR: u32 = 3;
/// How long routers have been up before they restart; nodes ask every 5 s.
const UP: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(50);

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

/// Prints a figure against its bar.
fn judge(what: &str, took: Duration, seconds: u64) {
    let bar = Duration::from_secs(seconds);
    let verdict = if took <= bar { "met" } else { "MISSED" };
    println!("{what}: {took:.2?}; bar {bar:?} {verdict}");
    assert!(took <= FAR * bar, "far from the bar");
}

fn listening(address: Ipv4Addr, port: u16) -> [String; 2] {
    [
        format!("/ip4/{address}/tcp/{port}"),
        format!("/ip4/{address}/udp/{port}/quic-v1"),
    ]
}

fn start(network: &Network, name: &str, directory: &Path) -> Result<Node, LabError> {
    let [tcp, quic] = listening(Ipv4Addr::UNSPECIFIED, 9100);
    let config = NodeConfig::default()
        .arguments(["--no-mdns", "--listen", &tcp, "--listen", &quic])
        .setting("enable_pubsub_discovery", "false")
        .setting("enable_autonat", "false");
    Node::start(network.host(name)?, directory, config)
}

fn texts<'a>(status: &'a Value, key: &str) -> Vec<&'a str> {
    let list = status.get(key).and_then(Value::as_array);
    let list = list.into_iter().flatten();
    list.filter_map(Value::as_str).collect()
}

/// `address`es that the node says are mapped by this protocol.
fn mapped<'a>(status: &'a Value, protocol: &str) -> Vec<&'a str> {
    let list = status.get("port_mappings").and_then(Value::as_array);
    let mut mapped: Vec<&str> = list
        .into_iter()
        .flatten()
        .filter(|mapping| mapping.get("protocol").and_then(Value::as_str) == Some(protocol))
        .filter_map(|mapping| mapping.get("address")?.as_str())
        .collect();
    mapped.sort_unstable();
    mapped
}

/// `anypath connect`; true if it got through.
fn connect(node: &Node, address: &str, peer: &str) -> Result<bool, LabError> {
    let mut command = node.command()?;
    command.args(["connect", &format!("{address}/p2p/{peer}")]);
    let mut program = node.run(&mut command, "connect")?;
    Ok(program.wait(now() + PATIENCE)?.success())
}

/// The other ends of the direct connections to this peer.
fn direct(peers: &Value, peer: &str) -> Vec<String> {
    let peers = peers.as_array().into_iter().flatten();
    let text = |value: &Value, key: &str| {
        let text = value.get(key).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    peers
        .filter(|entry| text(entry, "peer_id") == peer)
        .filter_map(|entry| entry.get("connections")?.as_array())
        .flatten()
        .filter(|connection| text(connection, "path") == "direct")
        .map(|connection| text(connection, "address"))
        .collect()
}

fn await_mappings(
    router: &Miniupnpd,
    what: &str,
    ready: impl Fn(&[String]) -> bool,
) -> Result<Instant, LabError> {
    let deadline = now() + 3 * PATIENCE;
    loop {
        let mappings = router.mappings()?;
        if ready(&mappings) {
            return Ok(now());
        }
        assert!(now() < deadline, "{what}: {mappings:?}");
        thread::sleep(LOOK);
    }
}

/// A node behind a router that speaks one protocol.
struct Site {
    name: &'static str,
    protocol: &'static str,
    node: Node,
    router: Miniupnpd,
    /// On the router.
    rules: [String; 2],
    /// As others would use them.
    addresses: [String; 2],
}

impl Site {
    fn start(
        network: &Network,
        (name, protocol, speaks): (&'static str, &'static str, Speaks),
        directory: &Path,
    ) -> Result<Self, LabError> {
        let host = network.host(name)?;
        let router = host.router().expect("a router");
        let router = Miniupnpd::start(router, speaks, directory)?;
        let local = host.address();
        let rule = |proto| format!("{proto} 9100 to {local}:9100");
        let node = start(network, name, directory)?;
        Ok(Self {
            name,
            protocol,
            rules: [rule("tcp"), rule("udp")],
            addresses: listening(host.public(), 9100),
            router,
            node,
        })
    }

    fn await_mapped(&self) -> Result<(), LabError> {
        let what = format!("{}: the mapping", self.name);
        self.node
            .await_api("/api/status", &what, PATIENCE, |status| {
                mapped(status, self.protocol) == self.addresses
            })?;
        Ok(())
    }

    fn is_advertised(&self, status: &Value) -> bool {
        let advertised = texts(status, "external_addrs");
        let is_told = |address: &String| advertised.contains(&address.as_str());
        self.addresses.iter().any(is_told)
    }
}

const SITES: [(&str, &str, Speaks); 3] = [
    ("alice", "pcp", Speaks::Pcp),
    ("anna", "nat-pmp", Speaks::NatPmp),
    ("arno", "upnp", Speaks::Upnp),
];

#[test]
fn a_router_maps_ports_by_every_protocol_and_forgets_them_in_the_end() {
    prepare();
    isolated(|| lab(every_protocol));
}

fn every_protocol() -> Result<(), LabError> {
    let directory = scratch()?;
    let directory = directory.path();
    let mut plan = Lab::new()
        .public(PUBLIC)
        .nat(NatKind::Symmetric)
        .host("alice")
        .nat(NatKind::PortRestricted)
        .host("anna")
        .nat(NatKind::Symmetric)
        .host("arno");
    for (name, address) in STRANGERS {
        plan = plan.server(name, &[address]);
    }
    let network = plan.start()?;
    let began = now();
    let mut sites = Vec::new();
    for site in SITES {
        let site = Site::start(&network, site, directory)?;
        let started = now();
        site.await_mapped()?;
        judge(&format!("{} mapped", site.protocol), started.elapsed(), 3);
        assert_eq!(site.router.mappings()?, site.rules, "{}", site.protocol);
        sites.push(site);
    }

    // Somebody whom the nodes never sent anything gets in over both transports, and nobody is told of it.
    let mut strangers = Vec::new();
    for (name, _) in STRANGERS {
        strangers.push(start(&network, name, directory)?);
    }
    for site in &sites {
        for (stranger, address) in strangers.iter().zip(&site.addresses) {
            let peer = site.node.peer_id();
            assert!(connect(stranger, address, peer)?, "{address}");
            let seen = direct(&stranger.api("/api/peers")?, peer);
            assert!(
                seen.iter().any(|seen| seen.starts_with(address)),
                "{address} of {seen:?}"
            );
        }
        let status = site.node.api("/api/status")?;
        assert!(
            !site.is_advertised(&status),
            "nobody confirmed it: {status}"
        );
    }

    // A router that has been up for less than its clients let pass between two questions cannot be told from one that
    // restarted meanwhile: all they see is how long.
    thread::sleep(UP.saturating_sub(began.elapsed()));
    // The routers restart, all at once.
    let restarted = now();
    for site in &mut sites {
        site.router.restart()?;
    }
    for site in &sites {
        let back = await_mappings(&site.router, site.protocol, |rules| rules == site.rules)?;
        let bar = if site.protocol == "upnp" { 40 } else { 10 };
        let took = back.duration_since(restarted);
        judge(&format!("{} mapped again", site.protocol), took, bar);
        site.await_mapped()?;
    }

    // The nodes end.
    for site in &mut sites {
        let began = now();
        site.node.process().terminate()?;
        await_mappings(&site.router, site.protocol, <[String]>::is_empty)?;
        println!("{} given back after {:.2?}", site.protocol, began.elapsed());
    }
    Ok(())
}

#[test]
fn others_are_told_of_a_mapped_port_once_two_servers_got_through() {
    prepare();
    isolated(|| lab(confirmation));
}

/// AutoNAT asks a server at random, one a round.
fn confirmation() -> Result<(), LabError> {
    const SERVERS: u8 = 6;
    let directory = scratch()?;
    let directory = directory.path();
    let mut plan = Lab::new()
        .public(PUBLIC)
        .nat(NatKind::PortRestricted)
        .host("alice");
    let address = |number| Ipv4Addr::new(203, 0, 113, 100 + number);
    for number in 0..SERVERS {
        plan = plan.server(&format!("server{number}"), &[address(number)]);
    }
    let network = plan.start()?;
    let router = network.host("alice")?.router().expect("a router");
    let _router = Miniupnpd::start(router, Speaks::Pcp, directory)?;
    let config = |listen: &str| {
        NodeConfig::default()
            .arguments(["--no-mdns", "--listen", listen])
            .setting("enable_pubsub_discovery", "false")
            .setting("autonat_query_interval", "1s")
    };
    let mut servers = Vec::new();
    let mut config_of_alice = config(&listening(Ipv4Addr::UNSPECIFIED, 9100)[1]);
    for number in 0..SERVERS {
        let host = network.host(&format!("server{number}"))?;
        let [_, quic] = listening(address(number), 9100);
        let server = Node::start(host, directory, config(&quic))?;
        let known = format!("{quic}/p2p/{}", server.peer_id());
        config_of_alice = config_of_alice.arguments(["--bootstrap", &known]);
        servers.push(server);
    }
    let host = network.host("alice")?;
    let [_, quic] = listening(host.public(), 9100);
    let alice = Node::start(host, directory, config_of_alice)?;
    let began = now();
    let status = alice.await_api("/api/status", "the mapping", PATIENCE, |status| {
        mapped(status, "pcp") == [quic.as_str()]
    })?;
    assert_eq!(texts(&status, "external_addrs"), [""; 0], "{status}");
    let status = alice.await_api("/api/status", "confirmation", 2 * PATIENCE, |status| {
        texts(status, "external_addrs") == [quic.as_str()]
    })?;
    println!("confirmed by two servers after {:.2?}", began.elapsed());
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    assert_eq!(text(status.get("nat_status")).as_deref(), Some("public"));
    let nat = text(status.get("nat").and_then(|nat| nat.get("udp")));
    assert_ne!(nat.as_deref(), Some("public"), "the NAT is what it was");
    assert_ne!(nat.as_deref(), Some("full_cone"));
    Ok(())
}

#[test]
fn a_mapped_port_leads_to_a_node_that_cannot_be_punched() {
    prepare();
    isolated(|| lab(instead_of_a_punch));
}

/// A symmetric NAT and a port-restricted one leave the relay, as long as nobody maps a port. Nobody tests addresses
/// here, so that what is mapped stays unconfirmed: only the peer hears of it, in the exchange.
fn instead_of_a_punch() -> Result<(), LabError> {
    let directory = scratch()?;
    let directory = directory.path();
    let mut plan = Lab::new()
        .public(PUBLIC)
        .nat(NatKind::Symmetric)
        .host("alice")
        .nat(NatKind::PortRestricted)
        .host("bob");
    let addresses = [SERVERS[0], SERVERS[1], STRANGERS[0].1];
    let names = ["server0", "server1", "server2"];
    for (name, address) in names.iter().zip(addresses) {
        plan = plan.server(name, &[address]);
    }
    let network = plan.start()?;
    let router = network.host("alice")?.router().expect("a router");
    let _router = Miniupnpd::start(router, Speaks::Pcp, directory)?;
    let config = |arguments: &[&str]| {
        NodeConfig::default()
            .arguments(["--no-mdns"])
            .arguments(arguments.iter().copied())
            .setting("enable_pubsub_discovery", "false")
            .setting("enable_autonat", "false")
    };
    let mut servers = Vec::new();
    let mut known = Vec::new();
    for (name, address) in names.into_iter().zip(addresses) {
        let [_, quic] = listening(address, 9100);
        let config = config(&["--relay-server", "--listen", &quic]);
        let server = Node::start(network.host(name)?, directory, config)?;
        known.push(format!("{quic}/p2p/{}", server.peer_id()));
        servers.push(server);
    }
    let [_, quic] = listening(Ipv4Addr::UNSPECIFIED, 9100);
    let mut arguments = vec!["--listen", &quic, "--relay", &known[0]];
    for address in &known[1..] {
        arguments.extend(["--bootstrap", address]);
    }
    let alice = Node::start(network.host("alice")?, directory, config(&arguments))?;
    let bob = Node::start(network.host("bob")?, directory, config(&arguments))?;
    for (node, kind) in [(&alice, "symmetric"), (&bob, "port_restricted_cone")] {
        node.await_api("/api/status", kind, PATIENCE, |status| {
            status.get("nat").and_then(|nat| nat.get("udp")?.as_str()) == Some(kind)
        })?;
    }
    alice.await_reservation()?;
    let public = network.host("alice")?.public();
    let [_, address] = listening(public, 9100);
    let status = alice.api("/api/status")?;
    assert_eq!(mapped(&status, "pcp"), [address.as_str()], "{status}");
    assert!(!texts(&status, "external_addrs").contains(&address.as_str()));

    let began = now();
    let circuit = format!("{}/p2p-circuit", known[0]);
    assert!(connect(&bob, &circuit, alice.peer_id())?, "{circuit}");
    bob.await_api("/api/peers", "a direct connection", PATIENCE, |peers| {
        let seen = direct(peers, alice.peer_id());
        seen.iter().any(|seen| seen.starts_with(&address))
    })?;
    println!(
        "direct through the mapped port after {:.2?}",
        began.elapsed()
    );
    Ok(())
}
