//! The decisions, as pure state machines: no clock, no socket, no swarm.

pub(crate) mod liveness;
pub(crate) mod nat;
pub(crate) mod observations;
pub(crate) mod plan;
#[cfg(feature = "portmap")]
pub(crate) mod portmap;
pub(crate) mod probe;
pub(crate) mod punch;
