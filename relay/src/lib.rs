#![doc = include_str!("../README.md")]

mod address;
mod config;
mod core;
mod limit;
mod status_code;

pub mod client;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod server;

pub use address::{InvalidRelayAddress, is_relayed};
pub use config::ConfigError;
pub use libp2p_relay::{HOP_PROTOCOL_NAME, STOP_PROTOCOL_NAME};
pub use limit::CircuitLimit;
pub use status_code::StatusCode;
