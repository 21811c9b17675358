//! The XX handshake with libp2p's payloads, which bind a peer's identity to its Noise key.

use std::io;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::{PeerId, identity::PublicKey};
use prost::Message as _;
use snow::{Builder, HandshakeState};
use zeroize::Zeroize as _;

use super::{
    Config, Error, Identity, PARAMETERS, SIGNATURE_DOMAIN, cipher::Cipher, resolver::Resolver,
    stream::Stream,
};
use crate::generated::noise::NoiseHandshakePayload;

/// Our own have some 300 bytes with an Ed25519 identity, and 1.4 KiB with RSA keys of 4096 bits.
const MAX_MESSAGE: u64 = 8 * 1024;

/// The two keys, a tag for each part, with some room.
const OVERHEAD: usize = 128;

pub(super) fn builder<'a>() -> Result<Builder<'a>, snow::Error> {
    let parameters = PARAMETERS.clone().ok_or(snow::Error::Input)?;
    Ok(Builder::with_resolver(parameters, Box::new(Resolver)))
}

pub(super) fn payload(identity: &PublicKey, signature: Vec<u8>) -> Vec<u8> {
    NoiseHandshakePayload {
        identity_key: Some(identity.encode_protobuf().into()),
        identity_sig: Some(signature.into()),
    }
    .encode_to_vec()
}

/// The dialer's side: it learns who the other is before it says who it is.
pub(super) async fn initiate<S>(config: Config, socket: S) -> Result<(PeerId, Stream<S>), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let session = config.identity.builder()?.build_initiator()?;
    let mut handshake = Handshake { socket, session };
    handshake.send(&[]).await?;
    let payload = handshake.receive().await?;
    let peer = handshake.verify(&payload)?;
    handshake.send(&config.identity.payload).await?;
    Ok((peer, handshake.finish(&config)?))
}

/// The listener's side.
pub(super) async fn respond<S>(config: Config, socket: S) -> Result<(PeerId, Stream<S>), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let session = config.identity.builder()?.build_responder()?;
    let mut handshake = Handshake { socket, session };
    if !handshake.receive().await?.is_empty() {
        return Err(Error::EarlyPayload);
    }
    handshake.send(&config.identity.payload).await?;
    let payload = handshake.receive().await?;
    let peer = handshake.verify(&payload)?;
    Ok((peer, handshake.finish(&config)?))
}

impl Identity {
    fn builder(&self) -> Result<Builder<'_>, snow::Error> {
        builder()?.local_private_key(&self.static_key)
    }
}

/// A handshake under way. Nothing is read beyond it, so the socket goes on where it ends.
struct Handshake<S> {
    socket: S,
    session: HandshakeState,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Handshake<S> {
    async fn send(&mut self, payload: &[u8]) -> Result<(), Error> {
        let mut message = vec![0; payload.len() + OVERHEAD];
        let length = self.session.write_message(payload, &mut message)?;
        message.truncate(length);
        let prefix = u16::try_from(length).map_err(|_| Error::TooLong(length))?;
        message.splice(..0, prefix.to_be_bytes());
        self.socket.write_all(&message).await?;
        Ok(self.socket.flush().await?)
    }

    async fn receive(&mut self) -> Result<Vec<u8>, Error> {
        let mut prefix = [0; 2];
        self.socket.read_exact(&mut prefix).await?;
        let length = u16::from_be_bytes(prefix);
        if u64::from(length) > MAX_MESSAGE {
            return Err(Error::TooLong(length.into()));
        }
        // Memory for what has come, not for what is said to come.
        let mut message = Vec::new();
        let mut limited = (&mut self.socket).take(length.into());
        if limited.read_to_end(&mut message).await? < length.into() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let mut payload = vec![0; message.len()];
        let length = self.session.read_message(&message, &mut payload)?;
        payload.truncate(length);
        Ok(payload)
    }

    /// The identity that signed the static key of the other end.
    fn verify(&self, payload: &[u8]) -> Result<PeerId, Error> {
        let payload = NoiseHandshakePayload::decode(payload)?;
        let identity = PublicKey::try_decode_protobuf(payload.identity_key())?;
        let static_key = self.session.get_remote_static().ok_or(Error::Signature)?;
        let signed = [SIGNATURE_DOMAIN, static_key].concat();
        if !identity.verify(&signed, payload.identity_sig()) {
            return Err(Error::Signature);
        }
        Ok(identity.to_peer_id())
    }

    /// The keys of both directions: the initiator's first (Noise, section 5.3).
    fn finish(mut self, config: &Config) -> Result<Stream<S>, Error> {
        if !self.session.is_handshake_finished() {
            return Err(io::Error::other("the handshake is not over").into());
        }
        let mut keys = self.session.dangerously_get_raw_split();
        let from_initiator = Cipher::new(&keys.0);
        let from_responder = Cipher::new(&keys.1);
        keys.zeroize();
        let (ours, theirs) = if self.session.is_initiator() {
            (from_initiator?, from_responder?)
        } else {
            (from_responder?, from_initiator?)
        };
        Ok(Stream::new(self.socket, theirs, ours, &config.pools))
    }
}
