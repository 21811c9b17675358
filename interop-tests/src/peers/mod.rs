//! Peers that nobody here wrote, as processes that a test drives, and a node of ours that meets them.
//!
//! [`Peer`] is a process that speaks the protocol of `peers/README.md`: go-libp2p with boxo, js-libp2p with Helia in Node and in a
//! page, py-libp2p.
//! [`Kubo`] is a real kubo daemon, [`Anypath`] the node as users run it. [`Node`] is a swarm of this workspace's behaviours, [`Stopping`] a bare
//! QUIC peer that does what none of them can be made to do, and so does [`ends_with_a_ping`] over TCP. [`Console`] is any
//! program that is typed to. [`Cells`] collects what worked, and
//! [`matrix`] makes `MATRIX.md` of it.

mod anypath;
mod cells;
mod console;
mod daemon;
mod ending;
mod error;
mod foreign;
mod kubo;
pub mod matrix;
mod ours;
mod process;
mod stopping;
mod transport;

pub use anypath::Anypath;
pub use cells::Cells;
pub use console::Console;
pub use ending::ends_with_a_ping;
pub use error::Error;
pub use foreign::{
    Connection, Fetched, Identity, Implementation, Message, Peer, RelayLimits, Reservation,
    Settings, Tried, Voucher,
};
pub use kubo::{Kubo, KuboSettings};
pub use ours::{Behaviour, BehaviourEvent, Node, NodeSettings, VALUES};
pub use stopping::{PY_STOPS, Stopping};
pub use transport::Transport;

use std::path::{Path, PathBuf};

/// Where `install-peers` put the peers: what `PEERS_DIR` names, else `peers` in the target directory.
#[must_use]
pub fn directory() -> PathBuf {
    if let Some(named) = std::env::var_os("PEERS_DIR") {
        return named.into();
    }
    target().join("peers")
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    )
}
