//! WebRTC-direct: UDP that a page in a browser dials without a name, a certificate of an authority or a server for signals.
//!
//! It is libp2p-webrtc's transport with a certificate that stays, a bound on handshakes, streams that go-libp2p and js-libp2p can end, and
//! IPv4 beside IPv6. What strangers can do to it is in the README.

mod certificate;
mod transport;

use std::path::Path;

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
/// It listens on `/ip4/…/udp/…/webrtc-direct` and `/ip6/…`, numeric addresses only, and dials from the sockets it listens on: without
/// one of the address's IP version, a dial fails. A wildcard IPv6 socket takes the port of IPv4, too.
///
/// Where the process has no default cryptography for rustls yet, this makes it ring: webrtc-rs needs one.
///
/// # Errors
///
/// The file is damaged, or cannot be read or written.
pub fn transport(
    keypair: &Keypair,
    certificate: Option<&Path>,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, CertificateError> {
    let certificate = certificate::load_or_create(certificate)?;
    // webrtc-rs takes rustls' cryptography of the whole process, and panics in a handshake where none was chosen and more than one is
    // linked. Who has chosen keeps it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(transport::Transport::both(keypair, &certificate))
}
