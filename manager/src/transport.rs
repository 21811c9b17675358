//! The node's sockets: TCP, QUIC and WebSocket behind DNS, WebRTC-direct, and circuits through relays.

mod closing;

use std::{io, time::Duration};

use anypath_holepunch::transport as fresh;
use futures::{AsyncRead, AsyncWrite, io::BufWriter};
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
    pnet::{PnetConfig, PreSharedKey},
    quic, tcp, tls,
};
use multistream_select::{dialer_select_proto, listener_select_proto};
use socket2::{SockRef, TcpKeepalive};

use crate::{noise, yamux};
pub(crate) use closing::EndsInTime;

/// Every transport of the node, authenticated and multiplexed.
pub(crate) type Transport = Boxed<(PeerId, StreamMuxerBox)>;

/// From the first packet to an authenticated, multiplexed connection; libp2p's own default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a TCP peer may be silent that has something to acknowledge. libp2p-quic's idle timeout is the same.
const TCP_SILENCE: Duration = Duration::from_secs(10);

/// What is sent in a private network gathers up to here, or until it is flushed: more than Noise makes of one write.
const PRIVATE_NETWORK_BUFFER: usize = 66 * 1024;

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
    swarm_key: Option<PreSharedKey>,
    ports: &fresh::Ports,
) -> Result<Transport, BuildError> {
    let security = Security {
        noise: noise::Config::new(keypair)?,
        tls: tls::Config::new(keypair)?,
        private_network: swarm_key.map(PnetConfig::new),
    };
    // Circuits come first: their addresses begin with an address of the relay.
    let all = secured(circuits, security.clone());
    #[cfg(feature = "websocket")]
    let all = either(all, websocket(security.clone()));
    // Punches from ports of their own, before what would dial from the usual ones.
    let all = either(all, from_fresh_ports(keypair, &security, ports));
    let direct = || direct(keypair, security.clone());
    let named = match dns::tokio::Transport::system(direct()) {
        Ok(named) => named.boxed(),
        Err(error) => {
            tracing::warn!(%error, "no usable name server configuration: /dns addresses will not resolve");
            direct()
        }
    };
    Ok(TransportTimeout::new(either(all, named), TIMEOUT).boxed())
}

/// WebRTC-direct beside the others, which cannot carry the key of a private network.
#[cfg(feature = "webrtc")]
pub(crate) fn with_webrtc(
    others: Transport,
    keypair: &Keypair,
    certificate: Option<&std::path::Path>,
) -> Result<Transport, crate::webrtc::CertificateError> {
    let webrtc = crate::webrtc::transport(keypair, certificate)?;
    let webrtc = TransportTimeout::new(webrtc, TIMEOUT).boxed();
    Ok(either(webrtc, others))
}

/// The first one that takes an address has it.
fn either(first: Transport, second: Transport) -> Transport {
    OrTransport::new(first, second)
        .map(|either, _| either.into_inner())
        .boxed()
}

fn secured<T>(streams: T, security: Security) -> Transport
where
    T: libp2p::Transport + Send + Unpin + 'static,
    T::Output: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    T::Error: Send + Sync + 'static,
    T::Dial: Send,
    T::ListenerUpgrade: Send,
{
    streams
        .and_then(move |stream, point| security.upgrade(stream, point))
        .boxed()
}

fn tcp() -> impl libp2p::Transport<
    Output = tcp::tokio::TcpStream,
    Error = io::Error,
    Dial: Send,
    ListenerUpgrade: Send,
> + Send
+ Unpin
+ 'static {
    // Nagle's algorithm and delayed acknowledgements together cost 40 ms a small message.
    tcp::tokio::Transport::new(tcp::Config::default().nodelay(true)).map(|stream, _| {
        give_up_in_time(SockRef::from(&stream.0));
        stream
    })
}

/// Has the system end the connection once the peer has acknowledged nothing for [`TCP_SILENCE`]. Its own patience is a quarter of an
/// hour, and without anything to send endless: a NAT that has restarted, or has another address, tells nobody. On Linux that also
/// ends connections whose peer takes nothing for so long (a window of zero); libp2p's multiplexers always read.
fn give_up_in_time(socket: SockRef<'_>) {
    let keepalive = TcpKeepalive::new().with_time(TCP_SILENCE * 2 / 5);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let keepalive = keepalive.with_interval(TCP_SILENCE * 3 / 10);
    let set = socket.set_tcp_keepalive(&keepalive);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let set = set.and_then(|()| socket.set_tcp_user_timeout(Some(TCP_SILENCE)));
    if let Err(error) = set {
        tracing::debug!(%error, "a lost TCP connection will be noticed late");
    }
}

/// TCP and, but in a private network, QUIC on numeric addresses.
fn direct(keypair: &Keypair, security: Security) -> Transport {
    let is_private_network = security.private_network.is_some();
    let tcp = secured(tcp(), security);
    if is_private_network {
        return tcp;
    }
    let quic = quic::tokio::Transport::new(quic::Config::new(keypair))
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
    either(quic.boxed(), tcp)
}

/// The same from fresh ports, for the dials that the hole punching announces.
fn from_fresh_ports(keypair: &Keypair, security: &Security, ports: &fresh::Ports) -> Transport {
    let tcp = fresh::Tcp::new(ports).map(|stream, _| {
        give_up_in_time(SockRef::from(&stream));
        stream
    });
    let tcp = secured(tcp, security.clone());
    if security.private_network.is_some() {
        return tcp;
    }
    let config = quic::Config::new(keypair);
    let quic = fresh::Quic::new(ports, move || quic::tokio::Transport::new(config.clone()))
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
    either(quic.boxed(), tcp)
}

/// The largest WebSocket message that is taken. Noise frames, which one message holds, end at 64 KiB.
#[cfg(feature = "websocket")]
const MAX_WEBSOCKET_MESSAGE: usize = 1024 * 1024;

/// WebSocket on TCP: `/ws`, and for dials also `/tls/ws` and `/tls/sni/<name>/ws`, where the certificate must be one that a browser
/// would accept. Names are resolved below it, for the certificate is the name's.
#[cfg(feature = "websocket")]
fn websocket(security: Security) -> Transport {
    fn over<T>(streams: T, security: Security) -> Transport
    where
        T: libp2p::Transport + Send + Unpin + 'static,
        T::Output: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        T::Error: Send + Sync + 'static,
        T::Dial: Send,
        T::ListenerUpgrade: Send,
    {
        let mut websocket = libp2p::websocket::Config::new(streams);
        websocket.set_max_data_size(MAX_WEBSOCKET_MESSAGE);
        secured(websocket, security)
    }
    match dns::tokio::Transport::system(tcp()) {
        Ok(named) => over(named, security),
        // The caller says so.
        Err(_) => over(tcp(), security),
    }
}

/// Noise and TLS under one identity; in a private network, within the cipher of its key.
#[derive(Clone)]
struct Security {
    noise: noise::Config,
    tls: tls::Config,
    private_network: Option<PnetConfig>,
}

impl Security {
    async fn upgrade<S>(
        self,
        stream: S,
        point: ConnectedPoint,
    ) -> io::Result<(PeerId, StreamMuxerBox)>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Some(network) = self.private_network else {
            return self.negotiate(stream, point).await;
        };
        // libp2p-pnet writes a kilobyte at a time.
        let stream = BufWriter::with_capacity(PRIVATE_NETWORK_BUFFER, stream);
        let stream = network.handshake(stream).await.map_err(io::Error::other)?;
        self.negotiate(stream, point).await
    }

    /// Negotiates security, then Yamux, on a fresh connection.
    ///
    /// The dialler proposes Noise alone, lazily (`V1Lazy`): a single proposal waits for no answer,
    /// so neither security nor multiplexer costs a negotiation round trip, which the figures in
    /// round trips of this project rest on. Every libp2p implementation speaks Noise; as listener
    /// we take TLS as well.
    async fn negotiate<S>(
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
    let muxer = yamux.upgrade_outbound(stream, name).await?;
    Ok(StreamMuxerBox::new(EndsInTime::new(muxer)))
}

async fn multiplex_as_listener<S>(stream: S) -> io::Result<StreamMuxerBox>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let yamux = yamux::Config::default();
    let (name, stream) = listener_select_proto(stream, yamux.protocol_info())
        .await
        .map_err(io::Error::other)?;
    let muxer = yamux.upgrade_inbound(stream, name).await?;
    Ok(StreamMuxerBox::new(EndsInTime::new(muxer)))
}
