//! The decisions, without I/O: [`client`] says what to ask of whom, [`server`] what to send to whom
//! and when, [`demand`] what others want so much that it is worth having. Facts go in with the time they happened, outputs are drained with `poll_output` after
//! every call, `poll_timeout` names the next instant at which `handle_timeout` has something to do.

pub mod client;
pub mod demand;
mod paths;
pub mod server;
#[cfg(test)]
mod tests;

pub use paths::{ConnKey, Path};
