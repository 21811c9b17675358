//! Commands that ask the running node, or nobody.

use std::{fmt::Write as _, time::Duration};

use anypath::{
    identity,
    libp2p::{Multiaddr, multiaddr::Protocol},
};
use serde_json::{Value, json};

use crate::{Error, context::Context};

pub(crate) fn id(context: &Context) -> Result<(), Error> {
    let keypair = identity::load_or_create(&context.data.identity_file())?;
    let peer_id = keypair.public().to_peer_id().to_string();
    context
        .output
        .print(&json!({ "peer_id": peer_id }), &peer_id);
    Ok(())
}

pub(crate) fn swarm_key(context: &Context) {
    let key = anypath::swarm_key::generate().to_key_file();
    let json = json!({ "swarm_key": key });
    context.output.print(&json, key.trim_end());
}

pub(crate) async fn peers(context: &Context) -> Result<(), Error> {
    let peers = context.running().await?.get("/api/peers").await?;
    let mut text = String::new();
    for peer in peers.as_array().into_iter().flatten() {
        let agent = peer
            .get("agent")
            .and_then(Value::as_str)
            .unwrap_or_default();
        // Agents are chosen by strangers: no escape sequences on a terminal.
        let _ = writeln!(
            text,
            "{}  {}",
            string(peer, "peer_id"),
            agent.escape_debug()
        );
        for connection in peer
            .get("connections")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let path = string(connection, "path");
            let _ = writeln!(text, "  {path:<8} {}", string(connection, "address"));
        }
    }
    if text.is_empty() {
        context.output.note("no peer is connected");
    }
    if context.output.is_json() || !text.is_empty() {
        context.output.print(&peers, text.trim_end());
    }
    Ok(())
}

pub(crate) async fn connect(context: &Context, address: &Multiaddr) -> Result<(), Error> {
    let client = context.running().await?;
    let answer = client
        .post("/api/connect", &json!({ "address": address.to_string() }))
        .await?;
    context.output.print(
        &answer,
        format!("connected to {}", string(&answer, "peer_id")),
    );
    Ok(())
}

pub(crate) async fn status(context: &Context) -> Result<(), Error> {
    let status = context.running().await?.get("/api/status").await?;
    let mut text = String::new();
    let peer_id = string(&status, "peer_id");
    let _ = writeln!(text, "peer id      {peer_id}");
    for (label, key) in [
        ("listening on", "listen_addrs"),
        ("reachable at", "external_addrs"),
    ] {
        for address in addresses(&status, key) {
            // Whole, for `--peer` and `connect` on another machine.
            let address = with_peer(&address, peer_id);
            let _ = writeln!(text, "{label} {address}");
        }
    }
    let nat = |transport: &str| match status
        .get("nat")
        .and_then(|nat| nat.get(transport)?.as_str())
    {
        Some(nat) => nat.replace('_', " "),
        None => String::new(),
    };
    let _ = writeln!(
        text,
        "NAT          {} (UDP {}, TCP {})",
        string(&status, "nat_status"),
        nat("udp"),
        nat("tcp")
    );
    let mappings = status.get("port_mappings").and_then(Value::as_array);
    for mapping in mappings.into_iter().flatten() {
        let waits = match mapping.get("confirmed").and_then(Value::as_bool) {
            Some(true) => "",
            _ => ", not confirmed yet",
        };
        let _ = writeln!(
            text,
            "mapped port  {} (by {}{waits})",
            string(mapping, "address"),
            string(mapping, "protocol")
        );
    }
    let count = |key: &str| {
        status
            .get("connections")
            .and_then(|counts| counts.get(key)?.as_u64())
            .unwrap_or(0)
    };
    let _ = writeln!(
        text,
        "connections  {} direct, {} relayed",
        count("direct"),
        count("relayed")
    );
    let disk = |key: &str| {
        let bytes = status
            .get("store")
            .and_then(|store| store.get("disk")?.get(key)?.as_u64());
        indicatif::BinaryBytes(bytes.unwrap_or(0))
    };
    let _ = write!(
        text,
        "store        {} of {} used, {} pinned",
        disk("used_bytes"),
        disk("capacity"),
        disk("pinned_bytes")
    );
    context.output.print(&status, text);
    Ok(())
}

pub(crate) async fn shutdown(context: &Context) -> Result<(), Error> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let client = context.running().await?;
    client.post("/api/shutdown", &json!({})).await?;
    // The node removes the file when everything else is done.
    let gone = async {
        while context.data.read_api()?.is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<(), Error>(())
    };
    match tokio::time::timeout(PATIENCE, gone).await {
        Ok(gone) => gone?,
        Err(_) => {
            return Err(
                "the node was told to stop but is still running after 30 s; see its log".into(),
            );
        }
    }
    context
        .output
        .print(&json!({ "event": "stopped" }), "stopped");
    Ok(())
}

/// Sorts addresses that others can use first, and IPv4, which is easier to read, before IPv6.
pub(crate) fn reach(address: &Multiaddr) -> (bool, bool, String) {
    let (is_near, is_v6) = match address.iter().next() {
        Some(Protocol::Ip4(ip)) => (ip.is_loopback(), false),
        Some(Protocol::Ip6(ip)) => (ip.is_loopback() || ip.is_unicast_link_local(), true),
        _ => (false, true),
    };
    (is_near, is_v6, address.to_string())
}

/// A list of addresses in the node's status, the ones that others can use first.
pub(crate) fn addresses(status: &Value, key: &str) -> Vec<String> {
    let values = status.get(key).and_then(Value::as_array);
    let mut addresses: Vec<String> = values
        .into_iter()
        .flatten()
        .filter_map(|address| address.as_str().map(str::to_owned))
        .collect();
    addresses.sort_by_cached_key(|address| address.parse().map(|address| reach(&address)).ok());
    addresses
}

/// The address with the peer id that others need to use it.
pub(crate) fn with_peer(address: &str, peer_id: &str) -> String {
    match address.ends_with(peer_id) {
        true => address.to_owned(),
        false => format!("{address}/p2p/{peer_id}"),
    }
}

fn string<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}
