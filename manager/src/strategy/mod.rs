//! Which path to a peer: the decisions, without a socket or a clock.
//!
//! A [`Strategy`] is told what happened (`on_*`), what is wanted ([`want`](Strategy::want)) and what
//! time it is ([`handle_timeout`](Strategy::handle_timeout)); after every such call the owner drains
//! [`poll_output`](Strategy::poll_output) and arms one timer for
//! [`poll_timeout`](Strategy::poll_timeout).
//!
//! - A wanted peer is dialled directly and through its relays at the same time; the first
//!   connection is used at once, a direct one that comes later replaces a relayed one.
//! - DCUtR can only start from an address that somebody observed, so a circuit waits until the
//!   relay has identified us: at most [`Config::observation_wait`] after the relay is connected.
//! - A relayed connection closes once nothing of ours has been on it for
//!   [`Config::idle_grace`], at latest [`Config::relayed_limit`] after the direct one is up.
//! - Of several direct connections one stays. Only the peer with the greater id closes the others, after
//!   [`Config::duplicate_grace`], so the two sides never close different ones; if it does not (foreign implementations do not),
//!   the other one does after [`Config::duplicate_patience`].
//! - A wanted peer that cannot be reached is dialled again after an exponential backoff.

mod config;
mod core;
mod peer;
#[cfg(test)]
mod tests;

pub use self::config::Config;
pub use self::core::{DialId, Established, Output, Purpose, Strategy};
pub(crate) use self::peer::best_transports;
pub use self::peer::{BestPath, Path};
