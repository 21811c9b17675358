//! WebRTC-direct: UDP that a page in a browser dials without a name, a certificate of an authority or a server for signals
//! ([specification](https://github.com/libp2p/specs/blob/master/webrtc/webrtc-direct.md)).
//!
//! `core` is the protocol without sockets and clocks. Around it, a `Driver` moves the datagrams of one connection, in the task that polls
//! it; a listener's task hands each what is its own; a dial has a socket of its own. What strangers can do is in the README.

mod address;
mod certificate;
mod core;
mod driver;
mod listener;
mod muxer;
mod noise;
mod socket;
mod transport;

use std::{io, path::Path};

use libp2p::{
    PeerId,
    core::{muxing::StreamMuxerBox, transport::Boxed},
    identity::Keypair,
};

pub use self::certificate::CertificateError;

/// The transport, for the node and for swarms of one's own. Needs a tokio runtime in the context that polls it.
///
/// The certificate is the one in `certificate`, in PEM with its key; where there is no file, a new one is put there, readable by its
/// owner only. Without a path it lasts as long as the transport, and so do the addresses, which have its hash in them.
///
/// It listens on `/ip4/…/udp/…/webrtc-direct` and `/ip6/…`, and dials such addresses with a `/certhash/…` of SHA-256, numeric ones only.
///
/// # Errors
///
/// The file is damaged, or cannot be read or written.
pub fn transport(
    keypair: &Keypair,
    certificate: Option<&Path>,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, CertificateError> {
    let certificate = certificate::load_or_create(certificate)?;
    Ok(transport::Transport::new(keypair.clone(), certificate).ends_in_time())
}

/// Why a connection did not come to be.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the socket failed")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Closed(#[from] core::CloseReason),
    #[error("the peer did not show who it is")]
    Noise(#[from] libp2p::noise::Error),
    #[error("the cryptography cannot be had")]
    Cryptography,
}
