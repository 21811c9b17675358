//! The side behind the NAT: hold reservations at relays, dial through relays, accept circuits.

mod behaviour;
mod circuits;
mod config;
mod event;
mod exchange;
mod handler;
mod loss;
mod transport;

pub use behaviour::{Behaviour, new};
pub use config::{Config, ConfigBuilder};
pub use event::{Event, LossReason, Reservation};
pub use transport::{CircuitError, Connection, Transport, TransportError};
