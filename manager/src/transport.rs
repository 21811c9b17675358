//! The node's sockets: TCP and QUIC behind DNS, and circuits through relays.

use std::{io, time::Duration};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    PeerId, Transport as _,
    core::{
        ConnectedPoint, UpgradeInfo as _,
        muxing::StreamMuxerBox,
        transport::{Boxed, OrTransport, timeout::TransportTimeout},
        upgrade::{InboundConnectionUpgrade as _, OutboundConnectionUpgrade as _, Version},
    },
    dns,
    identity::Keypair,
    noise, quic, tcp, tls, yamux,
};
use multistream_select::{dialer_select_proto, listener_select_proto};

/// Every transport of the node, authenticated and multiplexed.
pub(crate) type Transport = Boxed<(PeerId, StreamMuxerBox)>;

/// From the first packet to an authenticated, multiplexed connection; libp2p's own default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the transports could not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("could not derive the Noise keys from the node's identity")]
    Noise(#[from] noise::Error),
    #[error("could not derive the TLS certificate from the node's identity")]
    Tls(#[from] tls::certificate::GenError),
}

/// Builds the transports. Needs a tokio reactor in the calling context (`async_compat`).
pub(crate) fn build(
    keypair: &Keypair,
    circuits: anypath_relay::client::Transport,
) -> Result<Transport, BuildError> {
    let security = Security {
        noise: noise::Config::new(keypair)?,
        tls: tls::Config::new(keypair)?,
    };
    let circuits = circuits.and_then({
        let security = security.clone();
        move |stream, point| security.upgrade(stream, point)
    });
    // Circuits come first: their addresses begin with a TCP or QUIC address of the relay.
    let all = match dns::tokio::Transport::system(direct(keypair, security.clone())) {
        Ok(named) => OrTransport::new(circuits, named)
            .map(|either, _| either.into_inner())
            .boxed(),
        Err(error) => {
            tracing::warn!(%error, "no usable name server configuration: /dns addresses will not resolve");
            OrTransport::new(circuits, direct(keypair, security))
                .map(|either, _| either.into_inner())
                .boxed()
        }
    };
    Ok(TransportTimeout::new(all, TIMEOUT).boxed())
}

/// TCP and QUIC on numeric addresses.
fn direct(keypair: &Keypair, security: Security) -> Transport {
    // Nagle's algorithm and delayed acknowledgements together cost 40 ms a small message.
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .and_then(move |stream, point| security.upgrade(stream, point));
    let quic = quic::tokio::Transport::new(quic::Config::new(keypair))
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
    OrTransport::new(quic, tcp)
        .map(|either, _| either.into_inner())
        .boxed()
}

/// Noise and TLS under one identity.
#[derive(Clone)]
struct Security {
    noise: noise::Config,
    tls: tls::Config,
}

impl Security {
    /// Negotiates security, then Yamux, on a fresh connection.
    ///
    /// The dialler proposes Noise alone, lazily (`V1Lazy`): a single proposal waits for no answer,
    /// so neither security nor multiplexer costs a negotiation round trip, which the figures in
    /// round trips of this project rest on. Every libp2p implementation speaks Noise; as listener
    /// we take TLS as well.
    async fn upgrade<S>(
        self,
        stream: S,
        point: ConnectedPoint,
    ) -> io::Result<(PeerId, StreamMuxerBox)>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        // In a simultaneous open both sides dial; the override names the one that listens.
        let dials = matches!(point, ConnectedPoint::Dialer { role_override, .. } if role_override.is_dialer());
        if dials {
            let (name, stream) =
                dialer_select_proto(stream, self.noise.protocol_info(), Version::V1Lazy)
                    .await
                    .map_err(io::Error::other)?;
            let (peer, stream) = self
                .noise
                .upgrade_outbound(stream, name)
                .await
                .map_err(io::Error::other)?;
            return Ok((peer, multiplex_as_dialer(stream).await?));
        }
        let offered = self.noise.protocol_info().chain(self.tls.protocol_info());
        let (name, stream) = listener_select_proto(stream, offered)
            .await
            .map_err(io::Error::other)?;
        if self.tls.protocol_info().any(|tls| tls == name) {
            let (peer, stream) = self
                .tls
                .upgrade_inbound(stream, name)
                .await
                .map_err(io::Error::other)?;
            Ok((peer, multiplex_as_listener(stream).await?))
        } else {
            let (peer, stream) = self
                .noise
                .upgrade_inbound(stream, name)
                .await
                .map_err(io::Error::other)?;
            Ok((peer, multiplex_as_listener(stream).await?))
        }
    }
}

async fn multiplex_as_dialer<S>(stream: S) -> io::Result<StreamMuxerBox>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let yamux = yamux::Config::default();
    let (name, stream) = dialer_select_proto(stream, yamux.protocol_info(), Version::V1Lazy)
        .await
        .map_err(io::Error::other)?;
    Ok(StreamMuxerBox::new(
        yamux.upgrade_outbound(stream, name).await?,
    ))
}

async fn multiplex_as_listener<S>(stream: S) -> io::Result<StreamMuxerBox>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let yamux = yamux::Config::default();
    let (name, stream) = listener_select_proto(stream, yamux.protocol_info())
        .await
        .map_err(io::Error::other)?;
    Ok(StreamMuxerBox::new(
        yamux.upgrade_inbound(stream, name).await?,
    ))
}
