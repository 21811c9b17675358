//! What a node may be told: every key with its default, its unit and where the default comes from.
//!
//! [`Config`] is valid by construction: it comes out of [`Config::default`], [`ConfigBuilder::build`] or [`load`],
//! never out of a struct literal. The keys are those of the seed's `ConnectivityConfig`, plus ours; all are flat, so
//! that a key has one name in the file (`enable_mdns = false`), the environment (`ANYPATH_ENABLE_MDNS=false`) and here.

mod layers;
mod value;

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use anypath_bitswap::Role;
use libp2p::{Multiaddr, multiaddr::Protocol, pnet::PreSharedKey};
use serde::Deserialize;

pub use self::layers::{Flag, LoadError, Origin, Sources, load};
use self::value::Kind;

/// P2P port when none is configured: `CACHE_LISTEN_PORT` of the seed system.
pub const DEFAULT_P2P_PORT: u16 = 9100;

/// How many ports above [`DEFAULT_P2P_PORT`] are tried when it is taken and none was configured:
/// `IPFS_ACCELERATE_P2P_PORT_SEARCH_LIMIT` of the seed system.
pub const P2P_PORT_SEARCH_LIMIT: u16 = 20;

/// Port of the HTTP API when none is configured (the seed's `--port`).
pub const DEFAULT_API_PORT: u16 = 9000;

/// Upper bound of the disk tier when [`Config::disk_capacity`] is not set; half the free space bounds it too.
pub const MAX_DEFAULT_DISK_CAPACITY: u64 = 10 * 1024 * 1024 * 1024;

/// One line a key: documentation, kind (how text becomes a value), name, type, default.
macro_rules! keys {
    (@getter copy, $(#[$doc:meta])* $name:ident, $ty:ty) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> $ty { self.$name }
    };
    (@getter addresses, $(#[$doc:meta])* $name:ident, $ty:ty) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> &[Multiaddr] { &self.$name }
    };
    (@getter path, $(#[$doc:meta])* $name:ident, $ty:ty) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> Option<&Path> { self.$name.as_deref() }
    };
    ($($(#[$doc:meta])* $kind:ident $getter:ident $name:ident: $ty:ty = $default:expr, $with:literal;)*) => {
        /// The configuration of a node. See the module's documentation for where values come from.
        #[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
        #[serde(try_from = "ConfigBuilder")]
        pub struct Config { $($name: $ty,)* }

        impl Default for Config {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl Config {
            $(keys!(@getter $getter, $(#[$doc])* $name, $ty);)*
        }

        /// Builds a [`Config`]; what is not set keeps its default.
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct ConfigBuilder {
            $(#[serde(deserialize_with = $with)] $name: Option<$ty>,)*
        }

        impl ConfigBuilder {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(mut self, $name: $ty) -> Self {
                    self.$name = Some($name);
                    self
                }
            )*

            /// The configuration, if its values are in range and fit together.
            pub fn build(self) -> Result<Config, ConfigError> {
                let mut config = Config::default();
                $(if let Some(value) = self.$name { config.$name = value; })*
                // Nobody of the public network has the key.
                config.private |= config.has_swarm_key();
                config.validate()?;
                Ok(config)
            }
        }

        /// Every key with the kind of value that it takes, in the order of this file.
        const KEYS: &[(&str, Kind)] = &[$((stringify!($name), Kind::$kind),)*];
    };
}

keys! {
    /// Find peers on the local network by mDNS. Default true (seed).
    Flag copy enable_mdns: bool = true, "value::plain";
    /// Announce this node and find others over gossipsub. Default true (seed).
    Flag copy enable_pubsub_discovery: bool = true, "value::plain";
    /// Use the Kademlia DHT to find peers and providers. Default true (seed).
    Flag copy enable_dht_discovery: bool = true, "value::plain";
    /// Learn by AutoNAT whether this node can be reached from outside. Default true (seed).
    Flag copy enable_autonat: bool = true, "value::plain";
    /// Reserve slots on relays so that others reach this node behind its NAT. Default true (seed).
    Flag copy enable_relay_client: bool = true, "value::plain";
    /// Relay for others. Default false (seed): it spends this machine's bandwidth on strangers.
    Flag copy enable_relay_server: bool = false, "value::plain";
    /// Relay for others while the internet reaches this node: while a public address of it is confirmed, and only then.
    /// Default false. With `enable_relay_server` it relays in any case.
    Flag copy relay_when_public: bool = false, "value::plain";
    /// Punch holes, so that a relayed connection becomes a direct one (DCUtR). Default true (seed).
    Flag copy enable_dcutr: bool = true, "value::plain";
    /// Ask the gateway by PCP, NAT-PMP or UPnP to send the ports that this node listens on to it, so that others reach it behind
    /// its NAT. Default true (kubo and go-libp2p's). It concerns private IPv4 addresses only; what is mapped is announced once
    /// AutoNAT servers got through, and given back when the node stops.
    Flag copy enable_port_mapping: bool = true, "value::plain";
    /// STUN servers that are asked what the NAT does to UDP, 8 at most: `/ip4/…/udp/…`, `/dns4/…/udp/…` or `/dns/…/udp/…`. Default
    /// none: they would hear of every node. Two with two addresses each (RFC 5780) tell mapping and filtering for certain.
    Addresses addresses stun_servers: Vec<Multiaddr> = Vec::new(), "value::plain";
    /// Established connections, inbound and outbound together. Range 1 and up, default 1,000 (seed). Inbound ones get
    /// seven eighths of them at most, so that strangers cannot keep this node from dialling.
    Count copy max_connections: NonZeroU32 = const { NonZeroU32::new(1000).unwrap() }, "value::plain";
    /// Relays that this node wants a reservation on at the same time. Range 0 to 64, default 3 (seed).
    Count copy max_relay_reservations: u32 = 3, "value::plain";
    /// Circuits that this node carries for others as a relay. Range 1 and up, default 256 (seed).
    Count copy max_relay_circuits: NonZeroU32 = const { NonZeroU32::new(256).unwrap() }, "value::plain";
    /// Bytes in each direction that a circuit through this node's relay may carry, 0 for no limit.
    /// Default 128 KiB (Circuit Relay v2 specification and libp2p-relay).
    Size copy relay_circuit_bytes: u64 = 128 * 1024, "value::size";
    /// How long a circuit through this node's relay may live, zero for no limit.
    /// Default 2 minutes (Circuit Relay v2 specification and libp2p-relay).
    Time copy relay_circuit_duration: Duration = Duration::from_secs(120), "value::time";
    /// Time between two mDNS queries once started. Range 1 s and up, default 60 s (seed).
    Time copy mdns_query_interval: Duration = Duration::from_secs(60), "value::time";
    /// Time between two announcements over gossipsub. Range 1 s and up, default 10 s (seed and js-libp2p).
    Time copy pubsub_announce_interval: Duration = Duration::from_secs(10), "value::time";
    /// Announce over gossipsub what this node is asked to provide or to announce: whoever listens learns what it has.
    /// Default true (seed: `announce_content`). What others announce is used either way.
    Flag copy announce_content: bool = true, "value::plain";
    /// Time between two AutoNAT tests of the same address, once three have told something (20 s before, if that is
    /// less) and not while one is under way, which takes up to 12 s. Range 1 s and up, default 300 s (seed).
    Time copy autonat_query_interval: Duration = Duration::from_secs(300), "value::time";
    /// Dial the public IPFS bootstrap peers. Default true (seed). Peers in `bootstrap_peers` are dialled either way.
    Flag copy connect_to_bootstrap: bool = true, "value::plain";
    /// Peers to dial at start and to stay connected to. Default none.
    Addresses addresses bootstrap_peers: Vec<Multiaddr> = Vec::new(), "value::plain";
    /// Stay away from the public IPFS network: no public bootstrap, no public DHT; only explicit peers, mDNS and
    /// the file registry. Default false.
    Flag copy private: bool = false, "value::plain";
    /// The key of a private network (libp2p PSK v1), which all of its nodes have and nobody else: the text of kubo's `swarm.key`, or
    /// only its 64 hexadecimal digits. Default none. With a key the node is `private`, and speaks TCP and WebSocket only: QUIC and
    /// WebRTC cannot carry it.
    Secret copy swarm_key: Option<PreSharedKey> = None, "value::swarm_key";
    /// The file with that key, in kubo's format. Default none; the command takes `swarm.key` in the data directory where there is one,
    /// as kubo does.
    Path path swarm_key_file: Option<PathBuf> = None, "value::some";
    /// Where to listen. Default none, which means TCP and QUIC on `p2p_port` on all interfaces, IPv4 and IPv6, and what
    /// `ws_port` and `webrtc_port` add; TCP alone with a swarm key. WebSocket addresses end in `/ws`, those of WebRTC in `/webrtc-direct`.
    Addresses addresses listen_addrs: Vec<Multiaddr> = Vec::new(), "value::plain";
    /// Addresses under which this node is known to be reachable from outside, announced as they are. Default none.
    Addresses addresses external_addrs: Vec<Multiaddr> = Vec::new(), "value::plain";
    /// P2P port for TCP and UDP; 0 lets the system choose. Default none: 9100 (seed), else the next free one.
    Port copy p2p_port: Option<u16> = None, "value::some";
    /// Port for WebSocket (`/ws`) on all interfaces, for browsers and others that speak nothing else; 0 lets the system choose. Not that of
    /// `p2p_port`. Default none: no WebSocket, because browsers allow it to pages without TLS only, so that a public node needs a
    /// web server with a certificate before it (its `/dns4/…/tcp/443/tls/ws` goes into `external_addrs`).
    Port copy ws_port: Option<u16> = None, "value::some";
    /// UDP port for WebRTC-direct (`/webrtc-direct`) on all interfaces, IPv4 and IPv6, which browsers dial from any page without a
    /// certificate of an authority; 0 lets the system choose. Not that of `p2p_port`. Default none: such addresses are dialled alone.
    Port copy webrtc_port: Option<u16> = None, "value::some";
    /// The file with the certificate of WebRTC-direct, whose hash is in the addresses; made where it is missing. Default none: a new
    /// certificate at each start; the command takes `webrtc.pem` in the data directory.
    Path path webrtc_certificate_file: Option<PathBuf> = None, "value::some";
    /// Relays to hold a reservation on for ever, each ending in `/p2p/<peer id>`. Default none.
    Addresses addresses relays: Vec<Multiaddr> = Vec::new(), "value::plain";
    /// Bytes of blocks kept in memory. Default 100 MiB (seed).
    Size copy memory_capacity: u64 = 100 * 1024 * 1024, "value::size";
    /// Bytes of blocks kept on disk. Range 64 MiB (one segment) and up; default none: the smaller of 10 GiB and half the free space.
    Size copy disk_capacity: Option<u64> = None, "value::some_size";
    /// Directory of the cold tier: when the disk tier is full, the coldest blocks go there, compressed, instead of being forgotten. Default none.
    Path path cold_dir: Option<PathBuf> = None, "value::some";
    /// Bytes that the cold tier in `cold_dir` may take, at least 128 MiB. Default none: no limit.
    Size copy cold_capacity: Option<u64> = None, "value::some_size";
    /// Meet other nodes of this user on this machine through files. Default true (seed).
    Flag copy file_registry: bool = true, "value::plain";
    /// Directory of the file registry. Default none: `~/.cache/p2p_peers` (seed).
    Path path file_registry_dir: Option<PathBuf> = None, "value::some";
    /// Port of the HTTP API on 127.0.0.1; 0 lets the system choose. Default 9000 (seed).
    Port copy api_port: u16 = DEFAULT_API_PORT, "value::plain";
    /// What the node does for others beyond what it is asked for: `master` fetches blocks that many want before the
    /// next one asks, and what it is assigned, `worker` what it is assigned, `leecher` nothing, and sends only what was asked
    /// for. Default worker. Only bitswap heeds it so far.
    Role copy role: Role = Role::Worker, "value::plain";
    /// Bytes of blocks that are sent to others in a second, 1 and up. Default none: no limit.
    Size copy upload_limit: Option<u64> = None, "value::some_size";
    /// How long a `get` waits for a direct path when the relay's limit is too small for it. Range 1 s and up,
    /// default 30 s (three hole punch attempts of 10 s, DCUtR specification).
    Time copy direct_path_timeout: Duration = Duration::from_secs(30), "value::time";
}

/// The smallest disk tier that tiered-store can work with: one segment of its log.
const MIN_DISK_CAPACITY: u64 = 64 * 1024 * 1024;

/// The smallest cold tier: four packs of tiered-store.
const MIN_COLD_CAPACITY: u64 = 128 * 1024 * 1024;

impl Config {
    /// A builder in which nothing is set.
    #[must_use]
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }

    /// Whether the public IPFS bootstrap peers are dialled: `connect_to_bootstrap`, and not `private`.
    #[must_use]
    pub fn dials_public_bootstrap(&self) -> bool {
        self.connect_to_bootstrap && !self.private
    }

    /// Whether the node takes part in the public IPFS DHT: `enable_dht_discovery`, and not `private`.
    #[must_use]
    pub fn joins_public_dht(&self) -> bool {
        self.enable_dht_discovery && !self.private
    }

    /// Whether the node is one of a private network: `swarm_key` or `swarm_key_file` is set.
    #[must_use]
    pub fn has_swarm_key(&self) -> bool {
        self.swarm_key.is_some() || self.swarm_key_file.is_some()
    }

    /// Whether the node listens over WebRTC-direct.
    #[must_use]
    pub fn listens_over_webrtc(&self) -> bool {
        let is_webrtc = |address: &Multiaddr| {
            address
                .iter()
                .any(|part| matches!(part, Protocol::WebRTCDirect))
        };
        self.webrtc_port.is_some() || self.listen_addrs.iter().any(is_webrtc)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let error = |key, reason| Err(ConfigError::OutOfRange { key, reason });
        for (key, interval) in [
            ("mdns_query_interval", self.mdns_query_interval),
            ("pubsub_announce_interval", self.pubsub_announce_interval),
            ("autonat_query_interval", self.autonat_query_interval),
            ("direct_path_timeout", self.direct_path_timeout),
        ] {
            if interval < Duration::from_secs(1) {
                return error(key, "must be 1s or more");
            }
        }
        if self.max_relay_reservations > 64 {
            return error("max_relay_reservations", "must be 64 or less");
        }
        if self
            .disk_capacity
            .is_some_and(|bytes| bytes < MIN_DISK_CAPACITY)
        {
            return error("disk_capacity", "must be 64MiB or more");
        }
        if self
            .cold_capacity
            .is_some_and(|bytes| bytes < MIN_COLD_CAPACITY)
        {
            return error("cold_capacity", "must be 128MiB or more");
        }
        if self.swarm_key.is_some() && self.swarm_key_file.is_some() {
            return error("swarm_key_file", "and `swarm_key` are two keys; set one");
        }
        if self.has_swarm_key() {
            for (key, addresses) in [
                ("listen_addrs", &self.listen_addrs),
                ("external_addrs", &self.external_addrs),
                ("bootstrap_peers", &self.bootstrap_peers),
                ("relays", &self.relays),
            ] {
                if addresses.iter().any(is_over_udp) {
                    return error(
                        key,
                        "must be TCP or WebSocket addresses in a private network: QUIC and WebRTC cannot carry its swarm key",
                    );
                }
            }
        }
        if let Some(port) = self.ws_port {
            if !cfg!(feature = "websocket") {
                return error("ws_port", "needs the feature `websocket` of the crate");
            }
            if !self.listen_addrs.is_empty() {
                return error(
                    "ws_port",
                    "is for listening everywhere; with `listen_addrs`, add one that ends in /tcp/<port>/ws there",
                );
            }
            if port != 0 && self.p2p_port == Some(port) {
                return error("ws_port", "must be another port than `p2p_port`");
            }
        }
        if self.listens_over_webrtc() && !cfg!(feature = "webrtc") {
            let key = match self.webrtc_port {
                Some(_) => "webrtc_port",
                None => "listen_addrs",
            };
            return error(key, "needs the feature `webrtc` of the crate");
        }
        if let Some(port) = self.webrtc_port {
            if self.has_swarm_key() {
                return error(
                    "webrtc_port",
                    "cannot be had in a private network: WebRTC cannot carry its swarm key; `ws_port` can",
                );
            }
            if !self.listen_addrs.is_empty() {
                return error(
                    "webrtc_port",
                    "is for listening everywhere; with `listen_addrs`, add one that ends in /udp/<port>/webrtc-direct there",
                );
            }
            if port != 0 && self.p2p_port == Some(port) {
                return error(
                    "webrtc_port",
                    "must be another port than `p2p_port`, which QUIC has",
                );
            }
        }
        if self.stun_servers.len() > MAX_STUN_SERVERS
            || !self.stun_servers.iter().all(is_stun_server)
        {
            return error(
                "stun_servers",
                "must be 8 addresses at most, each as in /dns4/stun.example.org/udp/3478 or /ip4/192.0.2.1/udp/3478",
            );
        }
        if share_a_port(&self.listen_addrs) {
            return error(
                "listen_addrs",
                "must not have TCP and WebSocket on the same port: connections would reach either",
            );
        }
        if self.upload_limit == Some(0) {
            return error(
                "upload_limit",
                "must be 1 or more; without it there is no limit",
            );
        }
        if !self.relays.iter().all(ends_in_peer_id) {
            return error(
                "relays",
                "each address must end in /p2p/<peer id of the relay>",
            );
        }
        Ok(())
    }
}

/// What holepunch takes.
const MAX_STUN_SERVERS: usize = 8;

fn is_stun_server(address: &Multiaddr) -> bool {
    let parts: Vec<Protocol<'_>> = address.iter().collect();
    matches!(
        parts.as_slice(),
        [
            Protocol::Ip4(_) | Protocol::Dns4(_) | Protocol::Dns(_),
            Protocol::Udp(1..)
        ]
    )
}

fn ends_in_peer_id(address: &Multiaddr) -> bool {
    matches!(address.iter().last(), Some(Protocol::P2p(_)))
}

/// Whether two addresses are on one TCP port: libp2p shares its ports, and the system would deal connections out at random.
fn share_a_port(addresses: &[Multiaddr]) -> bool {
    let socket = |address: &Multiaddr| {
        let mut parts = address.iter();
        match (parts.next(), parts.next()) {
            (Some(ip), Some(Protocol::Tcp(port))) if port != 0 => Some((ip.to_string(), port)),
            _ => None,
        }
    };
    let mut seen = std::collections::BTreeSet::new();
    addresses
        .iter()
        .filter_map(socket)
        .any(|socket| !seen.insert(socket))
}

/// QUIC, WebTransport and WebRTC, also of a relay.
fn is_over_udp(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Udp(_)))
}

impl TryFrom<ConfigBuilder> for Config {
    type Error = ConfigError;

    fn try_from(builder: ConfigBuilder) -> Result<Self, ConfigError> {
        builder.build()
    }
}

/// Why a [`Config`] cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value has the right type but cannot be used.
    #[error("`{key}` {reason}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// What its value has to satisfy.
        reason: &'static str,
    },
}

#[cfg(test)]
mod tests;
