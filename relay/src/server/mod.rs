//! The relay's side: hold reservations for peers behind NATs and forward circuits to them.

mod behaviour;
#[doc(hidden)]
pub mod bench;
mod config;
mod event;
mod exchange;
mod handler;
mod pump;

pub use behaviour::{Behaviour, Circuit, Status};
pub use config::{Config, ConfigBuilder};
pub use event::{CircuitEnd, CircuitId, CloseReason, Event, Traffic};

pub use crate::core::server::{
    access::Access,
    bandwidth::Class,
    network::{InvalidNetwork, Network},
    rate::RateLimit,
};
