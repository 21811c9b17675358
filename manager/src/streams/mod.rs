//! Streams of the application: opened on the best connection to a peer, and counted there.
//!
//! libp2p-stream takes any connection. This behaviour takes the best one (direct before relayed,
//! unlimited before limited), says which it was, refuses a limited circuit, and tells the strategy
//! how many streams keep a connection in use.

mod behaviour;
mod handler;
mod stream;

pub(crate) use self::behaviour::{Behaviour, OpenRequest, path_of};
pub use self::stream::{IncomingStreams, Stream};
