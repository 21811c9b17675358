#![doc = include_str!("../README.md")]

mod behaviour;
mod config;
mod core;
mod event;
#[cfg(feature = "metrics")]
mod metrics;

pub use behaviour::Behaviour;
pub use config::{Config, ConfigBuilder, ConfigError};
pub use event::{Event, Family};
