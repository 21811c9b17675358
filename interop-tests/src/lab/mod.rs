//! The NAT lab: real programs in network namespaces behind real NATs, without root.
//!
//! A [`Lab`] is a plan; [`Lab::start`] builds it into a [`Network`] of [`Host`]s. Everything lives in
//! namespaces of this process ([`enter`] for programs, [`isolated`] for tests) and dies with it.
//!
//! ```text
//!  alice ── bridge ── NAT ══ 12.5 ms ══ core ══ 12.5 ms ══ NAT ── bridge ── bob
//!  10.1.0.10        203.0.113.10          ║            203.0.113.20       10.2.0.10
//!                                      12.5 ms
//!                                         ║
//!                                  relay 203.0.113.100
//! ```

mod error;
mod lan;
mod leg;
mod miniupnpd;
mod nat;
mod netns;
mod network;
mod node;
mod plan;
pub mod probe;
mod program;
mod sandbox;
pub mod scenario;
mod wire;

pub use error::LabError;
pub use lan::Lan;
pub use leg::{Leg, Line};
pub use miniupnpd::{Miniupnpd, Speaks};
pub use nat::NatKind;
pub use netns::Namespace;
pub use network::{Host, Network};
pub use node::{Done, Get, GetReport, Node, NodeConfig, binary};
pub use plan::Lab;
pub use program::Program;
pub use sandbox::{enter, is_inside, isolated};
pub use wire::{Links, Traffic};

use std::error::Error;
use std::time::Instant;

/// The lab's clock.
#[expect(clippy::disallowed_methods, reason = "the lab measures the real world")]
pub fn now() -> Instant {
    Instant::now()
}

/// An error with all its causes, on one line.
pub fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += ": ";
        text += &error.to_string();
        cause = error.source();
    }
    text
}
