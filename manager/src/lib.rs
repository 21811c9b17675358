#![doc = include_str!("../README.md")]

pub mod config;
pub mod data_dir;
#[cfg(feature = "files")]
pub mod files;
#[cfg(feature = "http")]
pub mod http;
pub mod identity;
pub mod strategy;
pub mod swarm_key;
#[cfg(feature = "webrtc")]
pub mod webrtc;
pub mod yamux;

mod autonat;
mod autonat_server;
mod behaviour;
mod bootstrap;
mod error;
mod event;
mod fetch;
mod node;
mod status;
mod streams;
mod topic;
mod transport;
mod unrelayed;
mod wiring;

pub use anypath_bitswap as bitswap;
pub use anypath_tiered_store as tiered_store;
pub use libp2p;

pub use self::config::Config;
pub use self::error::{
    AnnounceError, BoxError, ConnectError, DhtError, FetchError, JsonError, OpenStreamError,
    PublishError, RegisterError, StartError, Stopped, SubscribeError,
};
pub use self::event::{Discovery, Event};
pub use self::fetch::{Session, SessionEvent, SessionOptions, SessionProgress};
pub use self::node::{Executor, Node};
pub use self::status::{
    ConnectionCounts, ConnectionStatus, NatTypes, PeerStatus, ReservationStatus, Status,
};
pub use self::strategy::Path;
pub use self::streams::{IncomingStreams, Stream};
pub use self::topic::{Message, Subscription};
