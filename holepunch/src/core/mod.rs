//! The decisions, as pure state machines: no clock, no socket, no swarm.

pub(crate) mod nat;
pub(crate) mod observations;
pub(crate) mod plan;
pub(crate) mod probe;
pub(crate) mod punch;
