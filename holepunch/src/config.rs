use std::time::Duration;

use libp2p_core::{Multiaddr, multiaddr::Protocol};

/// A round asks them all.
const MAX_STUN_SERVERS: usize = 8;

/// How candidates are chosen, attempts judged and reachability believed; valid by construction.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "ConfigBuilder")]
pub struct Config(ConfigBuilder);

impl Config {
    /// Starts from the defaults.
    #[must_use]
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }
}

/// What to do with candidates in private address ranges (RFC 1918, RFC 6598, RFC 4193, link
/// local).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrivateCandidates {
    /// Offer them while no public candidate is known: they can only help peers of the same
    /// network, which a public candidate makes unlikely to be needed.
    WhenNoPublic,
    /// Always offer them.
    Always,
    /// Never offer them.
    Never,
}

/// Settings, not yet checked.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConfigBuilder {
    enabled: bool,
    attempts: u8,
    #[serde(with = "humantime_serde")]
    attempt_timeout: Duration,
    #[serde(with = "humantime_serde")]
    exchange_timeout: Duration,
    #[serde(with = "humantime_serde")]
    punch_timeout: Duration,
    #[serde(with = "humantime_serde")]
    candidate_wait: Duration,
    early: bool,
    #[serde(with = "humantime_serde")]
    liveness_timeout: Duration,
    max_concurrent: usize,
    max_candidates: usize,
    max_dials_per_peer: usize,
    max_direct_dials: usize,
    max_local_dials: usize,
    max_exchanges: u32,
    max_fresh_ports: usize,
    max_history: usize,
    close_duplicates: bool,
    max_pending: usize,
    min_observers: usize,
    max_observed_addresses: usize,
    max_observers_per_address: usize,
    max_addresses_per_observer: usize,
    private_candidates: PrivateCandidates,
    allow_loopback: bool,
    public_confidence: usize,
    private_confidence: usize,
    max_verdict_addresses: usize,
    max_verdicts_per_address: usize,
    #[serde(with = "humantime_serde")]
    verdict_ttl: Option<Duration>,
    believe_contacted_servers: bool,
    mapping_servers: usize,
    filtering_servers: usize,
    prefix_v4: u8,
    prefix_v6: u8,
    #[serde(with = "humantime_serde")]
    evidence_ttl: Duration,
    max_samples: usize,
    max_contacts: usize,
    predicted_ports: usize,
    probe_servers: usize,
    #[serde(with = "humantime_serde")]
    probe_interval: Duration,
    probe_server: bool,
    max_probes: usize,
    probes_per_minute: usize,
    probes_per_prefix: usize,
    map_ports: bool,
    #[serde(with = "humantime_serde")]
    mapping_lifetime: Duration,
    #[serde(with = "humantime_serde")]
    mapping_query_interval: Duration,
    #[serde(with = "humantime_serde")]
    upnp_query_interval: Duration,
    stun_servers: Vec<Multiaddr>,
}

macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)+) => {
        impl ConfigBuilder {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(mut self, $name: $kind) -> Self {
                    self.$name = $name;
                    self
                }
            )+
        }

        impl Config {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(&self) -> $kind {
                    self.0.$name
                }
            )+
        }
    };
}

settings! {
    /// Whether DCUtR runs at all. Default true. Candidates and reachability are tracked either
    /// way.
    enabled: bool,
    /// Attempts of one punch. Default 3 (as libp2p-dcutr and go-libp2p), 1 to 10. 97.6 % of all
    /// punches that succeed do so at the first one (arXiv 2510.27500).
    attempts: u8,
    /// How long an attempt waits for a connection. Default 2 s (a QUIC handshake repeats a lost
    /// packet after 1 s), at least 100 ms. Its dials go on and may still succeed.
    attempt_timeout: Duration,
    /// How long one exchange of messages may take. Default 3 s, at least 100 ms.
    exchange_timeout: Duration,
    /// How long a punch with all its attempts may take; then it has failed. Default 5.5 s, at least
    /// `attempt_timeout`.
    punch_timeout: Duration,
    /// How long to wait for an address of our own before the exchange begins. Default 1 s (identify
    /// tells within a round trip).
    candidate_wait: Duration,
    /// Whether the responder opens an exchange of its own, half a relayed round trip before the
    /// initiator's arrives. Default true; only Anypath nodes understand it, others decline.
    early: bool,
    /// How long a peer may take to answer a ping on a connection against which something speaks: this node has another public address, the
    /// peer makes another connection in spite of a direct one, or [`Behaviour::doubt`](crate::Behaviour::doubt). Then the connection is closed.
    /// Default 2 s (transports give up after 10 s), at least 100 ms; four times the slowest answer on that connection, if that is more.
    liveness_timeout: Duration,
    /// Punches that talk or dial at the same time. Default 10, at least 1. Those beyond wait; who
    /// asks meanwhile is told to come back.
    max_concurrent: usize,
    /// Addresses offered to a peer, and looked at of those that it offers. Default 20 (as
    /// libp2p-dcutr), 1 to 64.
    max_candidates: usize,
    /// Dials to one peer at the same time, whatever it offers, and `attempts` times as many in all
    /// for one relayed connection. Default 8 (go-libp2p's limit for one peer), at least 1.
    max_dials_per_peer: usize,
    /// Public addresses known by other means that are dialled beside the exchange. Default 2.
    max_direct_dials: usize,
    /// Addresses in our own network, for each transport, that are dialled for a peer behind the
    /// same NAT. Default 2.
    max_local_dials: usize,
    /// Exchanges that a peer may open on one relayed connection. Default 8, at least 1.
    max_exchanges: u32,
    /// Local ports that are open at the same time for attempts after the first, of all punches. Default 8,
    /// two transports for each of four peers; 0 opens none. Only with
    /// [`Behaviour::with_fresh_ports`](crate::Behaviour::with_fresh_ports).
    max_fresh_ports: usize,
    /// Outcomes remembered. Default 100.
    max_history: usize,
    /// Whether a second direct connection that a punch leads to is closed, half a second later.
    /// Default true. An owner that looks after connections itself does it when nothing is on them.
    close_duplicates: bool,
    /// Punches tracked at the same time. Default 256, at least 1. Beyond that the oldest one fails.
    max_pending: usize,
    /// How many different peers must have seen an address before it is a candidate. Default 1
    /// (go-libp2p: 4): a wrong candidate costs one dial, a missing one the connection.
    min_observers: usize,
    /// Observed addresses remembered. Default 20 (as many candidates as DCUtR exchanges), at
    /// least 1. The address with the fewest observers makes room.
    max_observed_addresses: usize,
    /// Observers remembered for each address. Default 16, at least `min_observers`.
    max_observers_per_address: usize,
    /// Addresses for which one peer's word counts at the same time, the latest. Default 4 (TCP and
    /// QUIC over IPv4 and IPv6), at least 1.
    max_addresses_per_observer: usize,
    /// What to do with private candidates. Default [`PrivateCandidates::WhenNoPublic`].
    private_candidates: PrivateCandidates,
    /// Whether loopback addresses may be candidates. Default false; for several nodes on one
    /// machine.
    allow_loopback: bool,
    /// How many AutoNAT servers must have reached an address before it is believed, confirmed to
    /// the swarm, and makes the node public. Default 2 (go-libp2p: 2 to 3), at least 1.
    public_confidence: usize,
    /// How many verdicts "unreachable" (each server counts once for each address) make the node
    /// private, while none says otherwise. Default 2, at least 1.
    private_confidence: usize,
    /// Addresses with verdicts remembered. Default 32, at least 1.
    max_verdict_addresses: usize,
    /// Verdicts, by server, remembered for each address. Default 16, at least
    /// `public_confidence`.
    max_verdicts_per_address: usize,
    /// When a verdict is forgotten unless it is repeated. Default `None`, never: libp2p-autonat
    /// 0.16 tests no address twice.
    verdict_ttl: Option<Duration>,
    /// Whether AutoNAT servers that this node has contacted may make it public by their word
    /// alone, although an address-restricted NAT lets them in and nobody else. Default false.
    believe_contacted_servers: bool,
    /// How many servers, of different prefixes, must have seen the same public socket, or different
    /// ones, before the NAT's mapping is known. Default 2 (go-libp2p: 4), at least 1.
    mapping_servers: usize,
    /// How many servers, of different prefixes, must have failed to get in before the NAT's
    /// filtering counts as address- and port-dependent. Default 2, at least 1.
    filtering_servers: usize,
    /// How many leading bits of a server's IPv4 address must differ from another's for both to
    /// count. Default 32 (as in go-libp2p), from 1 to 32.
    prefix_v4: u8,
    /// The same for IPv6. Default 56 (as in go-libp2p), from 1 to 128.
    prefix_v6: u8,
    /// When evidence about the NAT is forgotten unless it is repeated. Default 15 min: identify and
    /// AutoNAT repeat theirs every 5 min. At least 1 s.
    evidence_ttl: Duration,
    /// Flows of each transport whose public ports are remembered. Default 64, at least 4.
    max_samples: usize,
    /// Addresses remembered as sent to, for which a filter may be open. Default 4096, at least 16.
    /// Beyond that nobody is taken for a stranger any more until the network changes.
    max_contacts: usize,
    /// How many ports are predicted behind a NAT that counts them up. Default 4; 0 for none.
    predicted_ports: usize,
    /// Servers of `/anypath/nat-probe/1` that are asked for a dial-back, for each transport and IP
    /// version. Default 3, so that one may fail; 0 asks none.
    probe_servers: usize,
    /// After how long they are asked again. Default 5 min, as AutoNAT's. At least 1 s.
    probe_interval: Duration,
    /// Whether this node is such a server. Default true.
    probe_server: bool,
    /// Dial-backs for others at a time. Default 16, at least 1.
    max_probes: usize,
    /// Dial-backs for others in any minute. Default 60.
    probes_per_minute: usize,
    /// Dial-backs in any minute for askers of one prefix (`prefix_v4`, `prefix_v6`). Default 12: two
    /// transports of a node, that asks again when something has changed.
    probes_per_prefix: usize,
    /// Whether the gateway is asked to map the ports that this node listens on. Default false; it takes
    /// the feature `portmap`.
    map_ports: bool,
    /// How long a mapping lasts unless it is renewed, which happens at half of that. Default 1 h: what a
    /// node leaves behind that was killed is gone after that. From 2 min (RFC 6887 §15) to 24 h; the
    /// gateway may grant less.
    mapping_lifetime: Duration,
    /// How often a gateway that mapped ports by PCP or NAT-PMP is asked whether it has restarted since.
    /// Default 5 s, at least 1 s: a packet of 2 or 24 bytes.
    mapping_query_interval: Duration,
    /// How often one is that did by UPnP. Default 30 s, at least 1 s: an HTTP request for each port, and
    /// one for the address.
    upnp_query_interval: Duration,
}

impl ConfigBuilder {
    /// STUN servers that are asked for what the NAT does to UDP, when the node listens, every
    /// [`probe_interval`](Config::probe_interval) and when the network changes. Default none, 8 at most: `/ip4/…/udp/…`,
    /// `/dns4/…/udp/…` or `/dns/…/udp/…`. One with two addresses (RFC 5780) tells the mapping; two of those, of different
    /// prefixes, tell the filtering for certain. It takes the feature `stun`.
    #[must_use]
    pub fn stun_servers(mut self, stun_servers: impl IntoIterator<Item = Multiaddr>) -> Self {
        self.stun_servers = stun_servers.into_iter().collect();
        self
    }
}

impl Config {
    /// See [`ConfigBuilder::stun_servers`].
    #[must_use]
    pub fn stun_servers(&self) -> &[Multiaddr] {
        &self.0.stun_servers
    }
}

impl Default for ConfigBuilder {
    fn default() -> Self {
        Self {
            enabled: true,
            attempts: 3,
            attempt_timeout: Duration::from_secs(2),
            exchange_timeout: Duration::from_secs(3),
            punch_timeout: Duration::from_millis(5500),
            candidate_wait: Duration::from_secs(1),
            early: true,
            liveness_timeout: Duration::from_secs(2),
            max_concurrent: 10,
            max_candidates: 20,
            max_dials_per_peer: 8,
            max_direct_dials: 2,
            max_local_dials: 2,
            max_exchanges: 8,
            max_fresh_ports: 8,
            max_history: 100,
            close_duplicates: true,
            max_pending: 256,
            min_observers: 1,
            max_observed_addresses: 20,
            max_observers_per_address: 16,
            max_addresses_per_observer: 4,
            private_candidates: PrivateCandidates::WhenNoPublic,
            allow_loopback: false,
            public_confidence: 2,
            private_confidence: 2,
            max_verdict_addresses: 32,
            max_verdicts_per_address: 16,
            verdict_ttl: None,
            believe_contacted_servers: false,
            mapping_servers: 2,
            filtering_servers: 2,
            prefix_v4: 32,
            prefix_v6: 56,
            evidence_ttl: Duration::from_secs(15 * 60),
            max_samples: 64,
            max_contacts: 4096,
            predicted_ports: 4,
            probe_servers: 3,
            probe_interval: Duration::from_secs(300),
            probe_server: true,
            max_probes: 16,
            probes_per_minute: 60,
            probes_per_prefix: 12,
            map_ports: false,
            mapping_lifetime: Duration::from_secs(3600),
            mapping_query_interval: Duration::from_secs(5),
            upnp_query_interval: Duration::from_secs(30),
            stun_servers: Vec::new(),
        }
    }
}

impl ConfigBuilder {
    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] names the first setting outside its range.
    pub fn build(self) -> Result<Config, ConfigError> {
        for (setting, value) in [
            ("max_pending", self.max_pending),
            ("max_concurrent", self.max_concurrent),
            ("max_candidates", self.max_candidates),
            ("max_dials_per_peer", self.max_dials_per_peer),
            ("max_exchanges", self.max_exchanges as usize),
            ("min_observers", self.min_observers),
            ("max_observed_addresses", self.max_observed_addresses),
            (
                "max_addresses_per_observer",
                self.max_addresses_per_observer,
            ),
            ("public_confidence", self.public_confidence),
            ("private_confidence", self.private_confidence),
            ("max_verdict_addresses", self.max_verdict_addresses),
            ("mapping_servers", self.mapping_servers),
            ("filtering_servers", self.filtering_servers),
            ("max_probes", self.max_probes),
        ] {
            require(value >= 1, setting, "at least 1", value)?;
        }
        require(
            (1..=10).contains(&self.attempts),
            "attempts",
            "1 to 10",
            self.attempts,
        )?;
        require(
            self.max_candidates <= 64,
            "max_candidates",
            "1 to 64",
            self.max_candidates,
        )?;
        for (setting, value) in [
            ("attempt_timeout", self.attempt_timeout),
            ("exchange_timeout", self.exchange_timeout),
            ("liveness_timeout", self.liveness_timeout),
        ] {
            require(
                value >= Duration::from_millis(100),
                setting,
                "at least 100 ms",
                value,
            )?;
        }
        require(
            self.punch_timeout >= self.attempt_timeout,
            "punch_timeout",
            "at least `attempt_timeout`",
            self.punch_timeout,
        )?;
        require(
            self.max_observers_per_address >= self.min_observers,
            "max_observers_per_address",
            "at least `min_observers`",
            self.max_observers_per_address,
        )?;
        require(
            self.max_verdicts_per_address >= self.public_confidence,
            "max_verdicts_per_address",
            "at least `public_confidence`",
            self.max_verdicts_per_address,
        )?;
        require(
            self.verdict_ttl.is_none_or(|ttl| !ttl.is_zero()),
            "verdict_ttl",
            "absent or more than 0 s",
            self.verdict_ttl,
        )?;
        require(
            (1..=32).contains(&self.prefix_v4),
            "prefix_v4",
            "1 to 32",
            self.prefix_v4,
        )?;
        require(
            (1..=128).contains(&self.prefix_v6),
            "prefix_v6",
            "1 to 128",
            self.prefix_v6,
        )?;
        require(
            self.evidence_ttl >= Duration::from_secs(1),
            "evidence_ttl",
            "at least 1 s",
            self.evidence_ttl,
        )?;
        require(
            self.probe_interval >= Duration::from_secs(1),
            "probe_interval",
            "at least 1 s",
            self.probe_interval,
        )?;
        require(
            self.max_samples >= 4,
            "max_samples",
            "at least 4",
            self.max_samples,
        )?;
        require(
            self.max_contacts >= 16,
            "max_contacts",
            "at least 16",
            self.max_contacts,
        )?;
        require(
            (Duration::from_secs(120)..=Duration::from_secs(86_400))
                .contains(&self.mapping_lifetime),
            "mapping_lifetime",
            "2 min to 24 h",
            self.mapping_lifetime,
        )?;
        for (setting, value) in [
            ("mapping_query_interval", self.mapping_query_interval),
            ("upnp_query_interval", self.upnp_query_interval),
        ] {
            let least = Duration::from_secs(1);
            require(value >= least, setting, "at least 1 s", value)?;
        }
        require(
            self.stun_servers.len() <= MAX_STUN_SERVERS,
            "stun_servers",
            "8 at most",
            self.stun_servers.len(),
        )?;
        if let Some(other) = self
            .stun_servers
            .iter()
            .find(|server| !is_stun_server(server))
        {
            let range = "/ip4/…/udp/…, /dns4/…/udp/… or /dns/…/udp/…";
            require(false, "stun_servers", range, other)?;
        }
        Ok(Config(self))
    }
}

impl TryFrom<ConfigBuilder> for Config {
    type Error = ConfigError;

    fn try_from(builder: ConfigBuilder) -> Result<Self, ConfigError> {
        builder.build()
    }
}

/// Whether the address names a UDP socket by an IPv4 address or a name.
fn is_stun_server(address: &Multiaddr) -> bool {
    let mut parts = address.iter();
    let host = parts.next();
    matches!(
        host,
        Some(Protocol::Ip4(_) | Protocol::Dns4(_) | Protocol::Dns(_))
    ) && matches!(parts.next(), Some(Protocol::Udp(port)) if port != 0)
        && parts.next().is_none()
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value lies outside its range.
    #[error("set `{setting}` to {expected}; it is {actual}")]
    OutOfRange {
        /// The setting's name, as in a configuration file.
        setting: &'static str,
        /// The range that is accepted.
        expected: &'static str,
        /// The value that was given.
        actual: String,
    },
}

fn require(
    valid: bool,
    setting: &'static str,
    expected: &'static str,
    actual: impl std::fmt::Debug,
) -> Result<(), ConfigError> {
    if valid {
        return Ok(());
    }
    Err(ConfigError::OutOfRange {
        setting,
        expected,
        actual: format!("{actual:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(ConfigBuilder::default().build(), Ok(Config::default()));
    }

    #[test]
    fn confidence_beyond_what_is_remembered_is_refused() {
        let error = Config::builder().public_confidence(17).build().unwrap_err();
        assert!(matches!(
            error,
            ConfigError::OutOfRange {
                setting: "max_verdicts_per_address",
                ..
            }
        ));
    }

    #[test]
    fn a_file_says_what_differs_and_nothing_unknown() {
        let text = r#"{"verdict_ttl": "15m", "private_candidates": "never"}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        assert_eq!(config.verdict_ttl(), Some(Duration::from_secs(15 * 60)));
        assert_eq!(config.private_candidates(), PrivateCandidates::Never);
        assert_eq!(config.punch_timeout(), Config::default().punch_timeout());
        assert!(serde_json::from_str::<Config>(r#"{"enable": true}"#).is_err());
    }
}
