//! The decisions, without I/O: [`client`] says what to ask of whom, [`server`] what to send to whom
//! and when, [`demand`] what others want so much that it is worth having. Facts go in with the time they happened, outputs are drained with `poll_output` after
//! every call, `poll_timeout` names the next instant at which `handle_timeout` has something to do.

use std::{collections::HashMap, hash::Hash};

pub mod client;
pub mod demand;
mod paths;
pub mod server;
#[cfg(test)]
mod tests;

pub use paths::{ConnKey, Path};

/// What a crowd once needed takes no memory when it is gone.
pub(crate) fn give_back<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if map.capacity() > 64 && map.len() < map.capacity() / 8 {
        map.shrink_to(map.len() * 2);
    }
}
