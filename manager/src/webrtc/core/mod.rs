//! One WebRTC-direct connection, and which one a datagram is for: no socket, no clock.
//!
//! [`Connection`] is ICE (as little of it as a server with a known address and its clients need), DTLS by `dimpl`, SCTP by `sctp-proto`,
//! and libp2p's streams on data channels. `str0m`, which both crates belong to, was the plan; its `Rtc` hands out what arrives as soon as
//! it arrives, so that a peer could not be slowed down by a reader who is slow. [`Router`] is what a listener knows of its connections.

pub(super) mod connection;
mod dcep;
mod ice;
pub(super) mod message;
mod outbox;
pub(super) mod router;
mod sctp;
mod stream;
pub(super) mod stun;
mod ufrag;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a simulation begins now")]
mod pair;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the time is of no matter here")]
mod stream_tests;

use std::net::{IpAddr, SocketAddr};

use sha2::{Digest as _, Sha256};

pub(super) use self::{
    connection::{CloseReason, Connection, Event, Fingerprints, StreamKey},
    outbox::Transmit,
    router::{ConnectionId, Route, Router},
    ufrag::Ufrag,
};

/// SHA-256 of a certificate in DER.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint(pub(super) [u8; 32]);

impl Fingerprint {
    pub(super) fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

/// Where a datagram comes from, or goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) remote: SocketAddr,
    /// The address of ours that it was sent to, where the system says so: answers come from the same.
    pub(super) local: Option<IpAddr>,
}
