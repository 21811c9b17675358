//! [`Config`]: valid by construction, through [`Config::builder`] or serde.

use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use serde::Deserialize;

use crate::core::{demand::Role, server::UploadLimits};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Why a [`ConfigBuilder`] could not be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number lies outside its range.
    #[error("`{name}` is {value}, it must lie between {min} and {max}")]
    OutOfRange {
        /// The key.
        name: &'static str,
        /// What it was set to.
        value: u64,
        /// Smallest value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
    },
    /// `protocol_prefix` is neither empty nor a path that starts with a slash.
    #[error("`protocol_prefix` must be empty or start with '/' and not end with one: {0:?}")]
    BadPrefix(String),
}

/// Runs work in the background: `Executor::new(|work| drop(tokio::spawn(work)))`. Work takes some
/// milliseconds of one core and never waits.
#[derive(Clone)]
pub struct Executor(Arc<dyn Fn(BoxFuture<'static, ()>) + Send + Sync>);

impl Executor {
    /// Hands work to `spawn`, which must run it or drop it.
    pub fn new(spawn: impl Fn(BoxFuture<'static, ()>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(spawn))
    }

    #[cfg(feature = "swarm")]
    pub(crate) fn spawn(&self, work: BoxFuture<'static, ()>) {
        (self.0)(work);
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Executor")
    }
}

/// Two are equal if they are clones of one another.
impl PartialEq for Executor {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Declares `Config`, its builder with the same fields, the getters and the setters.
macro_rules! config {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $default:expr
        $(, with $with:literal)? $(, serde $skip:ident)?;)*) => {
        /// Behaviour of a bitswap node. `Default` is right for most; every bound on memory that a
        /// peer can use is here.
        #[derive(Debug, Clone, PartialEq, Deserialize)]
        #[serde(try_from = "ConfigBuilder")]
        pub struct Config {
            $($name: $type,)*
        }

        impl Config {
            $($(#[$doc])* pub fn $name(&self) -> $type { self.$name.clone() })*
        }

        /// Builds a [`Config`]; every key has its default.
        #[derive(Debug, Clone, PartialEq, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct ConfigBuilder {
            $($(#[serde(with = $with)])? $(#[serde($skip)])? $name: $type,)*
        }

        impl Default for ConfigBuilder {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl ConfigBuilder {
            $($(#[$doc])* #[must_use] pub fn $name(mut self, $name: $type) -> Self {
                self.$name = $name;
                self
            })*

            fn finish(self) -> Config {
                Config { $($name: self.$name,)* }
            }
        }
    };
}

config! {
    /// Put before `/ipfs/bitswap/…`, for networks of their own. Default: empty (the IPFS network).
    protocol_prefix: String = String::new();
    /// Whether we answer the wants of others at all. Default: true.
    serve: bool = true;
    /// Largest frame accepted, in bytes; a larger declared length closes the stream before
    /// anything is buffered. Default 4 MiB (go-libp2p's `MessageSizeMax`), 64 KiB to 16 MiB.
    max_frame_bytes: usize = 4 * MIB;
    /// A message is closed once its blocks reach this size, in bytes. Small blocks share one,
    /// a large one travels alone so that the receiver can hash it while the next is under way.
    /// Default 256 KiB, 16 KiB to 1 MiB; a message exceeds 2 MiB only if one block forces it.
    target_message_bytes: usize = 256 * KIB;
    /// Wantlist entries, presences and blocks (each) taken from one message; the rest is ignored.
    /// Default 8192, 1024 to 65536.
    max_entries_per_message: usize = 8192;
    /// Concurrent inbound streams of one connection; boxo opens up to 8. Default 64, 8 to 512.
    max_inbound_streams: usize = 64;
    /// Bytes of messages that are being received, hashed or handed over, of all peers together. Who
    /// finds them exhausted waits, and incomplete messages that take more than 2 s give way. Blocks
    /// of peers from which nothing is wanted are not kept at all. Default 64 MiB, 4 MiB to 64 GiB.
    max_inbound_bytes: usize = 64 * MIB;
    /// Runs the hashing of large messages, so that a connection is read while its last blocks are
    /// verified. Without one (the default) the connection's own task hashes. Not part of serde.
    executor: Option<Executor> = None, serde skip;
    /// A peer that takes nothing for this long while we have something for it loses the stream and
    /// what is queued. Default 60 s.
    write_timeout: Duration = Duration::from_secs(60), with "humantime_serde";

    /// Wants outstanding at one peer; foreign servers keep 1024 and drop the rest without a word.
    /// Default 1000, 1 to 1024.
    max_outstanding_per_peer: usize = 1000;
    /// Bytes asked of one peer before anything is known about it. Default 8 MiB, 32 KiB to 1 GiB.
    initial_window_bytes: u64 = 8 * MIB as u64;
    /// Largest request window of one peer, in bytes. Default 64 MiB, `initial_window_bytes` to 4 GiB.
    max_window_bytes: u64 = 64 * MIB as u64;
    /// What the size of a block is taken for until one of the session is known, in bytes.
    /// Default 256 KiB (the usual UnixFS chunk), 1 KiB to 4 MiB.
    assumed_block_bytes: u32 = 256 * KIB as u32;
    /// Bytes delivered but not yet acknowledged by `taken`; the request windows of all peers shrink
    /// to zero as it is reached. Default 64 MiB, 1 MiB to 64 GiB.
    max_unacknowledged_bytes: u64 = 64 * MIB as u64;
    /// A peer about which nothing is known counts as silent after this long without an answer; with
    /// measurements, the time follows them. Default 5 s (boxo), 100 ms to 10 min.
    answer_timeout: Duration = Duration::from_secs(5), with "humantime_serde";
    /// How many connected peers one want-have search may ask at a time. Default 32, 1 to 1024.
    search_peers: usize = 32;
    /// How many wants of a session may be searched for at a time. Default 32 (boxo 64), 1 to 1024.
    search_wants: usize = 32;
    /// A search is repeated after this time. Default 30 s.
    search_interval: Duration = Duration::from_secs(30), with "humantime_serde";
    /// Pushed blocks a session keeps until they are wanted, in bytes. Default 4 MiB, 0 to 1 GiB.
    max_stash_bytes: usize = 4 * MIB;

    /// Wants kept for one peer. Default 1024 (boxo), 64 to 65536.
    max_wants_per_peer: usize = 1024;
    /// A want nobody cancels is forgotten after this time (some peers never cancel).
    /// Default 10 min.
    want_ttl: Duration = Duration::from_secs(600), with "humantime_serde";
    /// A want-have for a block of at most this many bytes is answered with the block.
    /// Default 1024 (boxo), 0 to 64 KiB.
    have_replacement_bytes: u32 = KIB as u32;
    /// Bytes read from the store and not yet written to the socket, for one peer.
    /// Default 4 MiB, 64 KiB to 1 GiB. One block always fits.
    max_pipeline_bytes_per_peer: u64 = 4 * MIB as u64;
    /// The same for all peers together. Default 64 MiB, 1 MiB to 64 GiB.
    max_pipeline_bytes: u64 = 64 * MIB as u64;
    /// Concurrent reads of the block source. Default 128, 1 to 4096.
    max_reads: usize = 128;
    /// Descendants pushed for one `descend` want at most. Default 16, 0 to 256.
    max_descend: u32 = 16;
    /// Ledgers kept of peers that are gone, and weights and classes of peers. Default 1024.
    max_ledgers: usize = 1024;
    /// Bytes of blocks a second that we upload, to all and to each class of peers. Default: no limit.
    upload_limits: UploadLimits = UploadLimits::default();

    /// What the node does for others beyond what it is asked for. Default: worker, which prefetches
    /// what it is assigned.
    role: Role = Role::default();
    /// Blocks whose heat is remembered, about 300 bytes each. Default 4096, 64 to 1 Mi.
    max_heat_entries: usize = 4096;
    /// A request counts half after this time. Default 1 h (seed: `heat_decay_hours`).
    heat_half_life: Duration = Duration::from_secs(3600), with "humantime_serde";
    /// A master prefetches a block that so many peers asked for lately, [heat](crate::MostWanted::heat),
    /// besides those that more than 2 wait for with a priority above 3 (seed). Default 8, 3 to 1 Mi;
    /// one peer alone gets a block to 2.
    prefetch_heat: u32 = 8;
    /// Blocks prefetched at a time; they are asked for while this node wants nothing itself, and
    /// so many may be under way when it starts to. Default 2, 0 (none) to 64.
    max_prefetches: usize = 2;
    /// A prefetch that has not come after this time is given up, and tried again ten minutes later
    /// at the earliest. Default 60 s.
    prefetch_timeout: Duration = Duration::from_secs(60), with "humantime_serde";
    /// Assigned blocks remembered until they are here. Default 16384, 0 to 1 Mi.
    max_assigned: usize = 16_384;
}

impl Default for Config {
    fn default() -> Self {
        ConfigBuilder::default().finish()
    }
}

impl Config {
    /// A builder with every key at its default.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }
}

impl TryFrom<ConfigBuilder> for Config {
    type Error = ConfigError;

    fn try_from(builder: ConfigBuilder) -> Result<Self, ConfigError> {
        builder.build()
    }
}

impl ConfigBuilder {
    /// Checks every range.
    pub fn build(self) -> Result<Config, ConfigError> {
        let prefix = &self.protocol_prefix;
        if !prefix.is_empty() && (!prefix.starts_with('/') || prefix.ends_with('/')) {
            return Err(ConfigError::BadPrefix(prefix.clone()));
        }
        const K: u64 = 1024;
        const M: u64 = 1024 * K;
        const G: u64 = 1024 * M;
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let day = 86_400_000;
        let ranges = [
            (
                "max_frame_bytes",
                self.max_frame_bytes as u64,
                64 * K,
                16 * M,
            ),
            (
                "target_message_bytes",
                self.target_message_bytes as u64,
                16 * K,
                M,
            ),
            (
                "max_entries_per_message",
                self.max_entries_per_message as u64,
                1024,
                65_536,
            ),
            (
                "max_inbound_streams",
                self.max_inbound_streams as u64,
                8,
                512,
            ),
            (
                "max_inbound_bytes",
                self.max_inbound_bytes as u64,
                4 * M,
                64 * G,
            ),
            ("write_timeout (ms)", millis(self.write_timeout), 1000, day),
            (
                "max_outstanding_per_peer",
                self.max_outstanding_per_peer as u64,
                1,
                1024,
            ),
            ("initial_window_bytes", self.initial_window_bytes, 32 * K, G),
            (
                "max_window_bytes",
                self.max_window_bytes,
                self.initial_window_bytes,
                4 * G,
            ),
            (
                "assumed_block_bytes",
                self.assumed_block_bytes.into(),
                K,
                4 * M,
            ),
            (
                "max_unacknowledged_bytes",
                self.max_unacknowledged_bytes,
                M,
                64 * G,
            ),
            (
                "answer_timeout (ms)",
                millis(self.answer_timeout),
                100,
                600_000,
            ),
            ("search_peers", self.search_peers as u64, 1, 1024),
            ("search_wants", self.search_wants as u64, 1, 1024),
            (
                "search_interval (ms)",
                millis(self.search_interval),
                1000,
                day,
            ),
            ("max_stash_bytes", self.max_stash_bytes as u64, 0, G),
            (
                "max_wants_per_peer",
                self.max_wants_per_peer as u64,
                64,
                65_536,
            ),
            ("want_ttl (ms)", millis(self.want_ttl), 1000, day),
            (
                "have_replacement_bytes",
                self.have_replacement_bytes.into(),
                0,
                64 * K,
            ),
            (
                "max_pipeline_bytes_per_peer",
                self.max_pipeline_bytes_per_peer,
                64 * K,
                G,
            ),
            ("max_pipeline_bytes", self.max_pipeline_bytes, M, 64 * G),
            ("max_reads", self.max_reads as u64, 1, 4096),
            ("max_descend", self.max_descend.into(), 0, 256),
            ("max_heat_entries", self.max_heat_entries as u64, 64, M),
            (
                "heat_half_life (ms)",
                millis(self.heat_half_life),
                1000,
                365 * day,
            ),
            ("prefetch_heat", self.prefetch_heat.into(), 3, M),
            ("max_prefetches", self.max_prefetches as u64, 0, 64),
            (
                "prefetch_timeout (ms)",
                millis(self.prefetch_timeout),
                1000,
                day,
            ),
            ("max_assigned", self.max_assigned as u64, 0, M),
        ];
        for (name, value, min, max) in ranges {
            if !(min..=max).contains(&value) {
                return Err(ConfigError::OutOfRange {
                    name,
                    value,
                    min,
                    max,
                });
            }
        }
        Ok(self.finish())
    }
}
