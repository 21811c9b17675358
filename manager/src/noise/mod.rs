//! Noise as the node speaks it over TCP, WebSocket and circuits
//! ([specification](https://github.com/libp2p/specs/blob/master/noise/README.md)).
//!
//! libp2p-noise reads 8 KiB at a time and moves every byte through four buffers, each of them fresh and zeroed. Here what comes is decrypted where it
//! was read, 128 KiB at a time, and what is sent is encrypted where it gathers; between bursts a connection holds no buffer at all.
//! The handshake is snow's, the cipher ring's.

mod buffers;
mod cipher;
mod handshake;
mod resolver;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    future::Future,
    io, iter,
    pin::Pin,
    sync::{Arc, LazyLock},
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    PeerId,
    core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo},
    identity::{DecodingError, Keypair, SigningError},
};
use snow::params::NoiseParams;
use zeroize::Zeroizing;

use buffers::Pools;
pub use stream::Stream;

/// The one that libp2p knows: XX with X25519, ChaCha20-Poly1305 and SHA-256.
const NAME: &str = "/noise";

static PARAMETERS: LazyLock<Option<NoiseParams>> =
    LazyLock::new(|| "Noise_XX_25519_ChaChaPoly_SHA256".parse().ok());

/// Domain of the signature that binds a static key to an identity.
const SIGNATURE_DOMAIN: &[u8] = b"noise-libp2p-static-key:";

/// libp2p's Noise with a static key of its own, in the place of [`libp2p::noise::Config`]. Connections of one configuration and its clones share
/// their buffers.
#[derive(Clone)]
pub struct Config {
    identity: Arc<Identity>,
    pools: Pools,
}

/// Who we are, in Noise's terms.
struct Identity {
    /// X25519.
    static_key: Zeroizing<Vec<u8>>,
    /// The payload of our handshakes, encoded.
    payload: Vec<u8>,
}

impl Config {
    /// Makes a static key and signs it.
    ///
    /// # Errors
    ///
    /// [`Error::Sign`] where the identity cannot sign, [`Error::Noise`] where the system has no random numbers.
    pub fn new(keypair: &Keypair) -> Result<Self, Error> {
        let keys = handshake::builder()?.generate_keypair()?;
        let signature = keypair.sign(&[SIGNATURE_DOMAIN, &keys.public].concat())?;
        Ok(Self {
            identity: Arc::new(Identity {
                static_key: Zeroizing::new(keys.private),
                payload: handshake::payload(&keypair.public(), signature),
            }),
            pools: Pools::default(),
        })
    }
}

#[cfg(test)]
impl Config {
    /// Another payload in our handshakes.
    fn forge(&mut self, payload: Vec<u8>) {
        let static_key = self.identity.static_key.clone();
        self.identity = Arc::new(Identity {
            static_key,
            payload,
        });
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The static key stays unseen.
        f.debug_struct("Config").finish_non_exhaustive()
    }
}

impl UpgradeInfo for Config {
    type Info = &'static str;
    type InfoIter = iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once(NAME)
    }
}

type Upgrade<S> = Pin<Box<dyn Future<Output = Result<(PeerId, Stream<S>), Error>> + Send>>;

impl<S> InboundConnectionUpgrade<S> for Config
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = (PeerId, Stream<S>);
    type Error = Error;
    type Future = Upgrade<S>;

    fn upgrade_inbound(self, socket: S, _: Self::Info) -> Self::Future {
        Box::pin(handshake::respond(self, socket))
    }
}

impl<S> OutboundConnectionUpgrade<S> for Config
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = (PeerId, Stream<S>);
    type Error = Error;
    type Future = Upgrade<S>;

    fn upgrade_outbound(self, socket: S, _: Self::Info) -> Self::Future {
        Box::pin(handshake::initiate(self, socket))
    }
}

/// Why there is no encrypted connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection failed or ended within the handshake.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer does not follow the protocol, or holds other keys than it says.
    #[error("the Noise handshake failed")]
    Noise(#[from] snow::Error),
    /// Longer than any that a peer has reason to send.
    #[error("a handshake message of {0} bytes")]
    TooLong(usize),
    /// The first message of a handshake carries nothing, since it is not encrypted (go-libp2p ignores what it carries).
    #[error("the peer sent a payload before there was a key")]
    EarlyPayload,
    /// The payload is no protobuf message.
    #[error("the peer's handshake payload cannot be read")]
    Payload(#[from] prost::DecodeError),
    /// The identity is of no kind that is known here.
    #[error("the peer's public key cannot be read")]
    Identity(#[from] DecodingError),
    /// The static key is not this identity's.
    #[error("the peer's identity did not sign its Noise key")]
    Signature,
    /// Our own identity did not sign.
    #[error("could not sign the Noise key with the node's identity")]
    Sign(#[from] SigningError),
}
