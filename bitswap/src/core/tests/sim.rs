//! What the tests of both cores share; the network itself is [`crate::testing`].

use std::time::Duration;

use cid::Cid;

pub(super) use crate::testing::{Churn, Link, Network, Setup, cid, cids, origin, peer};
use crate::{
    Block, Config,
    message::{Entry, Message},
};

/// A network of `count` nodes.
pub(super) fn network(count: usize) -> Network {
    network_with(count, Config::default())
}

pub(super) fn network_with(count: usize, config: Config) -> Network {
    let mut network = Network::new(1);
    for _ in 0..count {
        let config = config.clone();
        network.add(Setup {
            config,
            ..Setup::default()
        });
    }
    network
}

pub(super) fn link(rtt_ms: u64, bytes_per_second: f64) -> Link {
    Link::new(Duration::from_millis(rtt_ms), bytes_per_second)
}

pub(super) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A message as a peer would send it.
pub(super) fn wants(entries: Vec<Entry>) -> Message {
    Message {
        entries,
        ..Message::default()
    }
}

pub(super) fn block(cid: Cid, bytes: usize) -> Block {
    Block::trusted(cid, vec![0; bytes].into())
}
