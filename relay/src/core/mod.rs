//! The decisions, as pure state machines: no clock, no socket, no swarm.

pub(crate) mod admission;
pub(crate) mod auto_relay;
pub(crate) mod backoff;
pub(crate) mod circuits;
pub(crate) mod limits;
