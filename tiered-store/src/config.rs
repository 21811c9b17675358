//! What a store can be told. Valid by construction: only [`ConfigBuilder::build`] makes a [`Config`].

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use serde::Deserialize;

use crate::{
    ColdConfig, Durability, Policy, PolicyBuilder, PolicyError, PutOptions, Role, Source,
    vfs::{RealVfs, Vfs},
};

const MIB: u64 = 1024 * 1024;

/// The largest block that [`ConfigBuilder::max_block_bytes`] may allow: 64 MiB. Bitswap never carries more than 4 MiB.
pub const MAX_BLOCK_BYTES: u32 = 64 * 1024 * 1024;

/// The smallest disk tier: 1 MiB.
pub const MIN_DISK_CAPACITY: u64 = MIB;

/// Configuration of a [`Store`](crate::Store).
#[derive(Clone, Deserialize)]
#[serde(try_from = "ConfigBuilder")]
pub struct Config {
    pub(crate) path: PathBuf,
    pub(crate) memory_capacity: u64,
    pub(crate) disk_capacity: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) max_block_bytes: u32,
    pub(crate) durability: Durability,
    pub(crate) queue_bytes: usize,
    pub(crate) compaction_garbage_percent: u8,
    pub(crate) compaction_bytes_per_second: u64,
    pub(crate) policy: Policy,
    pub(crate) value_ttl: Option<Duration>,
    pub(crate) max_values: Option<u32>,
    pub(crate) cold: Option<ColdConfig>,
    pub(crate) source: Option<Arc<dyn Source>>,
    pub(crate) source_options: PutOptions,
    pub(crate) source_timeout: Duration,
    pub(crate) vfs: Arc<dyn Vfs>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("path", &self.path)
            .field("memory_capacity", &self.memory_capacity)
            .field("disk_capacity", &self.disk_capacity)
            .field("segment_bytes", &self.segment_bytes)
            .field("max_block_bytes", &self.max_block_bytes)
            .field("durability", &self.durability)
            .field("queue_bytes", &self.queue_bytes)
            .field(
                "compaction_garbage_percent",
                &self.compaction_garbage_percent,
            )
            .field(
                "compaction_bytes_per_second",
                &self.compaction_bytes_per_second,
            )
            .field("policy", &self.policy)
            .field("value_ttl", &self.value_ttl)
            .field("max_values", &self.max_values)
            .field("cold", &self.cold)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// Starts from the defaults, which every setter of [`ConfigBuilder`] names.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }

    /// The defaults, in `path`.
    pub fn new(path: impl Into<PathBuf>) -> Config {
        Config {
            path: path.into(),
            ..Config::default()
        }
    }

    /// The directory of the store.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Bytes that the memory tier may hold.
    pub fn memory_capacity(&self) -> u64 {
        self.memory_capacity
    }

    /// Bytes that the disk tier may take.
    pub fn disk_capacity(&self) -> u64 {
        self.disk_capacity
    }
}

impl Default for Config {
    /// Role [`Role::Worker`]: 100 MiB of memory, 1 GiB of disk, in the directory `blocks` below the current one.
    fn default() -> Self {
        let builder = ConfigBuilder::default();
        builder.fill(Role::default().preset().policy)
    }
}

/// Builds a [`Config`]; see its setters for units, defaults and ranges. What is not set is what the [`Role`] says.
///
/// With serde the keys are the setters' names. `local_cache_path`, `memory_cache_size`, `local_cache_size`, `default_ttl` and `max_cache_size`
/// are other names of `path`, `memory_capacity`, `disk_capacity`, `value_ttl` and `max_values`.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConfigBuilder {
    #[serde(alias = "local_cache_path")]
    path: PathBuf,
    role: Role,
    #[serde(alias = "memory_cache_size")]
    memory_capacity: Option<u64>,
    #[serde(alias = "local_cache_size")]
    disk_capacity: Option<u64>,
    segment_bytes: Option<u64>,
    max_block_bytes: u32,
    durability: Option<Durability>,
    queue_bytes: Option<usize>,
    compaction_garbage_percent: u8,
    compaction_bytes_per_second: u64,
    policy: PolicyBuilder,
    #[serde(alias = "default_ttl", with = "humantime_serde")]
    value_ttl: Option<Duration>,
    #[serde(alias = "max_cache_size")]
    max_values: Option<u32>,
    cold: Option<ColdConfig>,
    #[serde(with = "humantime_serde")]
    source_timeout: Duration,
    #[serde(skip)]
    source: Option<Arc<dyn Source>>,
    #[serde(skip)]
    source_options: PutOptions,
    #[serde(skip)]
    vfs: Arc<dyn Vfs>,
}

impl fmt::Debug for ConfigBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigBuilder")
            .field("path", &self.path)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl Default for ConfigBuilder {
    fn default() -> Self {
        ConfigBuilder {
            path: PathBuf::from("blocks"),
            role: Role::default(),
            memory_capacity: None,
            disk_capacity: None,
            segment_bytes: None,
            max_block_bytes: 4 * 1024 * 1024,
            durability: None,
            queue_bytes: None,
            compaction_garbage_percent: 75,
            compaction_bytes_per_second: 64 * MIB,
            policy: PolicyBuilder::default(),
            value_ttl: None,
            max_values: None,
            cold: None,
            source_timeout: Duration::from_secs(60),
            source: None,
            source_options: PutOptions::default(),
            vfs: Arc::new(RealVfs),
        }
    }
}

impl ConfigBuilder {
    /// The directory of the store, created if missing. Default `blocks`.
    pub fn path(mut self, path: impl Into<PathBuf>) -> Self {
        self.path = path.into();
        self
    }

    /// What the node is for: sets everything below that is not set. Default [`Role::Worker`].
    pub fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// Bytes of blocks kept in memory. Default 100 MiB; 0 turns the memory tier off.
    pub fn memory_capacity(mut self, bytes: u64) -> Self {
        self.memory_capacity = Some(bytes);
        self
    }

    /// Bytes of segment files. Default 1 GiB, at least [`MIN_DISK_CAPACITY`]. Seven eighths of it hold blocks, the rest is
    /// what compaction works with. Exceeded by one segment at most, for as long as a compaction runs; a store of a few MiB full of blocks of a
    /// few bytes, whose checkpoints are as large as they, was seen a fifth above it at moments.
    pub fn disk_capacity(mut self, bytes: u64) -> Self {
        self.disk_capacity = Some(bytes);
        self
    }

    /// Size at which a segment is sealed. Default 64 MiB, range 64 KiB to 1 GiB; never more than a sixteenth of the disk
    /// capacity (at least 64 KiB), so that small stores can compact too.
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = Some(bytes);
        self
    }

    /// The largest block that is accepted. Default 4 MiB, range 1 to [`MAX_BLOCK_BYTES`].
    pub fn max_block_bytes(mut self, bytes: u32) -> Self {
        self.max_block_bytes = bytes;
        self
    }

    /// When a put returns, unless its options say otherwise. Default [`Durability::Group`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Bytes of blocks that wait for the disk, the batch under way included; further puts wait. Default 16 MiB, at least
    /// 64 KiB. One block above it is still accepted when nothing else waits.
    pub fn queue_bytes(mut self, bytes: usize) -> Self {
        self.queue_bytes = Some(bytes);
        self
    }

    /// Share of garbage from which a sealed segment is compacted in the background, in percent; nine tenths while a quarter of the capacity
    /// is free. Default 75, range 5 to 95. What has less garbage is copied when the room is needed: until then more of it may die.
    pub fn compaction_garbage_percent(mut self, percent: u8) -> Self {
        self.compaction_garbage_percent = percent;
        self
    }

    /// I/O budget of background compaction, in bytes copied a second. Default 64 MiB. A full store does not wait for it.
    pub fn compaction_bytes_per_second(mut self, bytes: u64) -> Self {
        self.compaction_bytes_per_second = bytes;
        self
    }

    /// When blocks move between the tiers. Default: as the role says.
    pub fn policy(mut self, policy: PolicyBuilder) -> Self {
        self.policy = policy;
        self
    }

    /// Time to live of values (of [`Store::put_value`](crate::Store::put_value)) that are put without one. Default: they stay.
    pub fn value_ttl(mut self, ttl: Duration) -> Self {
        self.value_ttl = Some(ttl);
        self
    }

    /// Values that are kept at most; those go first whose time is over first, and those without a time last. Default: as many as the disk
    /// holds. At least 1.
    pub fn max_values(mut self, values: u32) -> Self {
        self.max_values = Some(values);
        self
    }

    /// Where blocks come from that are not here; `get` asks it and stores what it brings. Default: nowhere. See [`Source`].
    pub fn source(mut self, source: Arc<dyn Source>) -> Self {
        self.source = Some(source);
        self
    }

    /// How blocks of the [`source`](Self::source) are stored: time to live, class, importance, durability, pin. Default
    /// [`PutOptions::default`].
    pub fn source_options(mut self, options: PutOptions) -> Self {
        self.source_options = options;
        self
    }

    /// How long a [`source`](Self::source) may take for one block. Default 60 s, at least 1 ms.
    pub fn source_timeout(mut self, timeout: Duration) -> Self {
        self.source_timeout = timeout;
        self
    }

    /// A cold tier below the disk: blocks leave a full disk for it instead of being forgotten. Default: none.
    pub fn cold(mut self, cold: ColdConfig) -> Self {
        self.cold = Some(cold);
        self
    }

    /// The file system. Default [`RealVfs`]; tests use [`SimVfs`](crate::vfs::SimVfs).
    pub fn vfs(mut self, vfs: Arc<dyn Vfs>) -> Self {
        self.vfs = vfs;
        self
    }

    /// Checks the ranges.
    pub fn build(self) -> Result<Config, ConfigError> {
        let policy = self.policy.build(self.role)?;
        if let Some(cold) = &self.cold {
            cold.check()?;
        }
        if self
            .source_options
            .pin
            .as_ref()
            .is_some_and(|set| !crate::pinning::is_name(set))
        {
            return Err(ConfigError::SourcePin);
        }
        if self.source_timeout < Duration::from_millis(1) {
            return Err(ConfigError::SourceTimeout);
        }
        if self.max_values == Some(0) {
            return Err(ConfigError::MaxValues);
        }
        let segment_bytes = self
            .segment_bytes
            .unwrap_or(self.role.preset().segment_bytes);
        if !(64 * 1024..=1024 * MIB).contains(&segment_bytes) {
            return Err(ConfigError::SegmentBytes {
                given: segment_bytes,
            });
        }
        let config = self.fill(policy);
        if config.disk_capacity < MIN_DISK_CAPACITY {
            return Err(ConfigError::DiskCapacity {
                given: config.disk_capacity,
                least: MIN_DISK_CAPACITY,
            });
        }
        if config.max_block_bytes == 0 || config.max_block_bytes > MAX_BLOCK_BYTES {
            return Err(ConfigError::MaxBlockBytes {
                given: config.max_block_bytes,
                most: MAX_BLOCK_BYTES,
            });
        }
        if config.queue_bytes < 64 * 1024 {
            return Err(ConfigError::QueueBytes {
                given: config.queue_bytes,
            });
        }
        if !(5..=95).contains(&config.compaction_garbage_percent) {
            return Err(ConfigError::CompactionGarbagePercent {
                given: config.compaction_garbage_percent,
            });
        }
        Ok(config)
    }

    /// Takes from the role what was not set.
    fn fill(self, policy: Policy) -> Config {
        let preset = self.role.preset();
        let disk_capacity = self.disk_capacity.unwrap_or(preset.disk_capacity);
        Config {
            segment_bytes: segment_bytes(
                self.segment_bytes.unwrap_or(preset.segment_bytes),
                disk_capacity,
            ),
            path: self.path,
            memory_capacity: self.memory_capacity.unwrap_or(preset.memory_capacity),
            disk_capacity,
            max_block_bytes: self.max_block_bytes,
            durability: self.durability.unwrap_or(preset.durability),
            queue_bytes: self.queue_bytes.unwrap_or(preset.queue_bytes),
            compaction_garbage_percent: self.compaction_garbage_percent,
            compaction_bytes_per_second: self.compaction_bytes_per_second,
            policy,
            value_ttl: self.value_ttl,
            max_values: self.max_values,
            cold: self.cold,
            source: self.source,
            source_options: self.source_options,
            source_timeout: self.source_timeout,
            vfs: self.vfs,
        }
    }
}

/// A segment is at most a sixteenth of the capacity: the one that is written and the one that is copied are the reserve.
pub(crate) fn segment_bytes(wanted: u64, capacity: u64) -> u64 {
    wanted.min((capacity / 16).max(64 * 1024))
}

impl TryFrom<ConfigBuilder> for Config {
    type Error = ConfigError;

    fn try_from(builder: ConfigBuilder) -> Result<Self, ConfigError> {
        builder.build()
    }
}

/// A value of [`ConfigBuilder`] is out of range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// See [`ConfigBuilder::disk_capacity`].
    #[error("disk_capacity is {given} bytes, the least is {least}")]
    DiskCapacity {
        /// What was asked for, in bytes.
        given: u64,
        /// The least, in bytes.
        least: u64,
    },
    /// See [`ConfigBuilder::max_block_bytes`].
    #[error("max_block_bytes is {given}, it must be between 1 and {most}")]
    MaxBlockBytes {
        /// What was asked for, in bytes.
        given: u32,
        /// The most, in bytes.
        most: u32,
    },
    /// See [`ConfigBuilder::segment_bytes`].
    #[error("segment_bytes is {given}, it must be between 64 KiB and 1 GiB")]
    SegmentBytes {
        /// What was asked for, in bytes.
        given: u64,
    },
    /// See [`ConfigBuilder::queue_bytes`].
    #[error("queue_bytes is {given}, the least is 65536")]
    QueueBytes {
        /// What was asked for, in bytes.
        given: usize,
    },
    /// See [`ConfigBuilder::compaction_garbage_percent`].
    #[error("compaction_garbage_percent is {given}, it must be between 5 and 95")]
    CompactionGarbagePercent {
        /// What was asked for, in percent.
        given: u8,
    },
    /// See [`PolicyBuilder`].
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The pin set of [`ConfigBuilder::source_options`] has a wrong name.
    #[error(
        "the pin set of source_options must have a name of 1 to {} bytes",
        crate::MAX_NAME_BYTES
    )]
    SourcePin,
    /// See [`ConfigBuilder::source_timeout`].
    #[error("source_timeout must be at least 1ms")]
    SourceTimeout,
    /// See [`ConfigBuilder::max_values`].
    #[error("max_values must be at least 1; leave it out for no limit")]
    MaxValues,
    /// See the setters of [`ColdConfig`](crate::ColdConfig).
    #[error("cold.{key} must be {range}")]
    Cold {
        /// The key.
        key: &'static str,
        /// What it may be.
        range: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_100_mib_of_memory_and_1_gib_of_disk_at_a_path_of_choice() {
        let config = Config::default();
        let capacities = (config.memory_capacity(), config.disk_capacity());
        assert_eq!(capacities, (100 << 20, 1 << 30));
        assert_eq!(config.path(), std::path::Path::new("blocks"));
        assert_eq!(
            Config::new("/tmp/ipfs_cache").path().to_str(),
            Some("/tmp/ipfs_cache")
        );
    }

    #[test]
    fn tiers_and_values_are_set_under_both_names_and_unknown_keys_are_refused() {
        let of = |text: &str| serde_json::from_str::<Config>(text);
        let seed = of(r#"{"memory_cache_size": 1000000, "local_cache_size": 20000000, "local_cache_path": "/tmp/ipfs_cache",
            "default_ttl": "300s", "max_cache_size": 1000}"#)
        .unwrap();
        let ours = of(
            r#"{"memory_capacity": 1000000, "disk_capacity": 20000000, "path": "/tmp/ipfs_cache",
            "value_ttl": "5m", "max_values": 1000}"#,
        )
        .unwrap();
        assert_eq!(format!("{seed:?}"), format!("{ours:?}"));
        assert_eq!(seed.memory_capacity(), 1_000_000);
        assert_eq!(seed.disk_capacity(), 20_000_000);
        assert_eq!(seed.path(), std::path::Path::new("/tmp/ipfs_cache"));
        assert_eq!(seed.value_ttl, Some(Duration::from_secs(300)));
        assert_eq!(seed.max_values, Some(1000));
        for wrong in [
            r#"{"memory_cache": 1}"#,
            r#"{"max_values": 0}"#,
            r#"{"local_cache_size": 5}"#,
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
