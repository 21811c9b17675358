//! Blocks from the store or from peers.

mod pending;
mod session;

pub(crate) use self::pending::{Delivery, Fetches};
pub(crate) use self::session::{Reply, Shared};
pub use self::session::{Session, SessionEvent, SessionOptions, SessionProgress};
