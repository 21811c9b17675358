#![doc = include_str!("../README.md")]

mod blocking_store;
mod cold;
mod commit;
mod config;
mod disk;
mod error;
mod flight;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod group;
pub mod heat;
mod key;
mod memory;
#[cfg(feature = "metrics")]
mod metrics;
mod options;
mod pinning;
mod placement;
mod policy;
mod read_through;
mod role;
mod scrub;
mod state;
mod stats;
mod store;
mod tiers;
mod upkeep;
mod values;
pub mod vfs;

pub use blocking_store::BlockingStore;
pub use cold::{ColdConfig, MAX_PACK_BYTES, MIN_PACK_BYTES, S3Config};
pub use config::{Config, ConfigBuilder, ConfigError, MAX_BLOCK_BYTES, MIN_DISK_CAPACITY};
pub use error::{
    ColdFailure, DeleteError, GetError, MaintenanceError, OpenError, PinError, PutError, ValueError,
};
pub use options::{Class, Durability, Importance, PutOptions};
pub use policy::{Policy, PolicyBuilder, PolicyError};
pub use read_through::{BoxError, Source};
pub use role::{Preset, Role};
pub use stats::{ColdStats, DiskStats, GcReport, MemoryStats, ScrubReport, Stats};
pub use store::Store;

/// The longest name of a pin set and the longest key of a value, in bytes.
pub const MAX_NAME_BYTES: usize = 1024;

/// The format of the files that this version writes and the newest that it reads.
pub const FORMAT: u32 = 3;
