#![doc = include_str!("../README.md")]

mod behaviour;
mod config;
mod core;
mod event;
mod handler;
#[cfg(feature = "metrics")]
mod metrics;
mod scope;
mod store;

pub use behaviour::Behaviour;
pub use config::{AddressScope, BucketInserts, Config, ConfigBuilder, ConfigError, Mode};
pub use event::{Event, Peer, QueryError, Target, Ticket};
