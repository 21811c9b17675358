#![doc = include_str!("../README.md")]

#[cfg(feature = "swarm")]
mod behaviour;
mod config;
pub mod core;
mod dns;
mod event;
#[cfg(feature = "swarm")]
mod interfaces;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "swarm")]
mod socket;
#[cfg(feature = "stock")]
pub mod stock;

#[cfg(feature = "swarm")]
pub use behaviour::Behaviour;
pub use config::{Config, ConfigBuilder, ConfigError, Scope};
pub use event::{Event, Family};

#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
