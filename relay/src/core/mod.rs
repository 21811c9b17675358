//! The decisions, as pure state machines: no clock, no socket, no swarm.

pub(crate) mod auto_relay;
pub(crate) mod backoff;
pub(crate) mod limits;
pub(crate) mod server;
