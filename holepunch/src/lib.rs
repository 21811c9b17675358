#![doc = include_str!("../README.md")]

mod address;
mod behaviour;
mod config;
mod core;
mod event;
#[cfg(feature = "metrics")]
pub mod metrics;

pub use address::Transport;
pub use behaviour::Behaviour;
pub use config::{Config, ConfigBuilder, ConfigError, PrivateCandidates};
pub use core::{
    nat::{
        NatStatus,
        report::{Confidence, Filtering, Mapping, NatReport, NatType, TransportNat},
    },
    observations::ObservedAddress,
    plan::{Client, NoPunch, Plan, Plans, Side},
};
pub use event::{Event, Outcome, PunchError, Role};
pub use libp2p_dcutr::PROTOCOL_NAME;
