use std::time::Duration;

/// Times and bounds of the strategy. A number's reason stands at its default.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long a connection that a better one replaces must carry nothing before it is closed.
    pub idle_grace: Duration,
    /// How long after the direct connection is up the relayed one is closed in any case.
    pub relayed_limit: Duration,
    /// How long one of two direct connections must carry nothing before the peer that decides about duplicates closes it, and how long a
    /// relayed one that comes after the direct one lives at least.
    pub duplicate_grace: Duration,
    /// How long the peer that does not decide about duplicates leaves the decision to the other.
    pub duplicate_patience: Duration,
    /// How often the activity of connections that are to be closed is looked at.
    pub inspect_interval: Duration,
    /// How long a circuit waits for the relay to say under which address it sees us.
    pub observation_wait: Duration,
    /// How long a circuit waits for the relay to be connected at all.
    pub relay_wait: Duration,
    /// First wait before a peer that could not be reached is dialled again; doubled each time.
    pub backoff_initial: Duration,
    /// Longest such wait for a peer that somebody waits for.
    pub backoff_max_urgent: Duration,
    /// Longest such wait for a peer of the configuration.
    pub backoff_max_static: Duration,
    /// How long after a failed punch a direct dial is tried again.
    pub upgrade_retry: Duration,
    /// Peers that are dialled and redialled.
    pub max_targets: usize,
    /// Addresses remembered for one such peer.
    pub max_addresses: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // More than the round trip of any usable path: what is in flight arrives.
            idle_grace: Duration::from_secs(1),
            // The bar; gossipsub, kad, identify and ping never keep a relayed path.
            relayed_limit: Duration::from_secs(30),
            // More than anypath-holepunch's `liveness_timeout`, 2 s: a peer that has another address comes again while its first connection still
            // looks alive, and busy.
            duplicate_grace: Duration::from_secs(3),
            duplicate_patience: Duration::from_secs(30),
            inspect_interval: Duration::from_millis(250),
            // identify takes one round trip after the handshake.
            observation_wait: Duration::from_secs(1),
            relay_wait: Duration::from_secs(10),
            backoff_initial: Duration::from_millis(500),
            // A node that was killed and restarted is back in a download within seconds.
            backoff_max_urgent: Duration::from_secs(5),
            // go-libp2p's dial backoff ends at 5 minutes.
            backoff_max_static: Duration::from_secs(5 * 60),
            // iroh looks for a better path once a minute.
            upgrade_retry: Duration::from_secs(60),
            max_targets: 1024,
            max_addresses: 16,
        }
    }
}
