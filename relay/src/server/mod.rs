//! The relay's side: hold reservations for peers behind NATs and forward circuits to them.

mod behaviour;
mod config;
mod event;

pub use behaviour::{Behaviour, Status};
pub use config::{Config, ConfigBuilder};
pub use event::{CloseReason, Event};
