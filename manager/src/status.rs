//! What a node says about itself: serialisable snapshots for the API.

use serde::Serialize;

use crate::strategy::Path;

/// A snapshot of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// The node's id.
    pub peer_id: String,
    /// Agent name and version as others see it.
    pub agent: String,
    /// Where it listens.
    pub listen_addrs: Vec<String>,
    /// Where others reach it from outside: confirmed, configured and relayed addresses.
    pub external_addrs: Vec<String>,
    /// Addresses under which other peers saw it.
    pub observed_addrs: Vec<String>,
    /// `unknown`, `public` or `private`.
    pub nat_status: String,
    /// What it stands behind.
    pub nat: NatTypes,
    /// Public addresses that its gateway sends to it, whether or not servers have confirmed them yet.
    pub port_mappings: Vec<PortMappingStatus>,
    /// Relays that hold a reservation for it.
    pub reservations: Vec<ReservationStatus>,
    /// Relays that it knows, whether or not it holds a reservation there.
    pub relays_known: usize,
    /// Whether it relays for others.
    pub relay_server: bool,
    /// `client`, `server` or `off`.
    pub dht_mode: String,
    /// Open connections by path.
    pub connections: ConnectionCounts,
    /// Connected peers.
    pub peers: usize,
    /// Whole seconds since the start.
    pub uptime_secs: u64,
}

/// What a node stands behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NatTypes {
    /// `unknown`, `public`, `full_cone`, `restricted_cone`, `port_restricted_cone`, `symmetric`, or
    /// `blocked` where no UDP passes.
    pub udp: String,
    /// The same for TCP.
    pub tcp: String,
    /// Whether bytes must be expected to go over a relay.
    pub needs_relay: bool,
    /// Whether there is a second NAT behind the first; `None`: unknown.
    pub double_nat: Option<bool>,
    /// Whether hosts behind the same NAT reach each other at public addresses; `None`: unknown.
    pub hairpin: Option<bool>,
    /// Whether a firewall keeps strangers from global IPv6 addresses; `None`: unknown, or there is no
    /// such address.
    pub ipv6_firewall: Option<bool>,
}

impl From<anypath_holepunch::NatReport> for NatTypes {
    fn from(report: anypath_holepunch::NatReport) -> Self {
        let of = |nat: anypath_holepunch::TransportNat| match nat.blocked {
            true => "blocked".to_owned(),
            false => nat.nat_type.as_str().to_owned(),
        };
        Self {
            udp: of(report.udp),
            tcp: of(report.tcp),
            needs_relay: report.needs_relay(),
            double_nat: report.double_nat,
            hairpin: report.hairpin,
            ipv6_firewall: report.ipv6_firewall,
        }
    }
}

/// One listen address for which the gateway has mapped a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PortMappingStatus {
    /// How the gateway was asked: `pcp`, `nat-pmp` or `upnp`.
    pub protocol: &'static str,
    /// The public address.
    pub address: String,
    /// The listen address that it leads to.
    pub local: String,
    /// Whether servers got through, so that others are told of it.
    pub confirmed: bool,
}

/// Open connections by path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ConnectionCounts {
    /// Without a third party.
    pub direct: usize,
    /// Through relays.
    pub relayed: usize,
}

/// One reservation at a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReservationStatus {
    /// The relay's id.
    pub relay: String,
    /// Where others reach this node through it.
    pub address: String,
    /// Bytes that it lets through one circuit; `None`: any number.
    pub limit_bytes: Option<u64>,
    /// Whether it was named in the configuration.
    pub configured: bool,
    /// The round trip to it in milliseconds, smoothed; `None` before the first ping.
    pub rtt_ms: Option<u64>,
    /// For how many milliseconds the reservation has been held without a gap.
    pub age_ms: u64,
}

/// One connected peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PeerStatus {
    /// Its id.
    pub peer_id: String,
    /// Its agent name and version, once it has identified itself.
    pub agent: Option<String>,
    /// Its connections.
    pub connections: Vec<ConnectionStatus>,
}

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConnectionStatus {
    /// Its id in this process.
    pub id: String,
    /// The other end.
    pub address: String,
    /// How it reaches the peer.
    pub path: Path,
    /// Whether a relay limits what it may carry.
    pub limited: bool,
    /// `tcp`, `quic`, `websocket` or `webrtc`; of a relayed connection that to the relay.
    pub transport: &'static str,
    /// Whether the peer dialled.
    pub inbound: bool,
    /// Streams of the application that are open on it.
    pub streams: usize,
}
