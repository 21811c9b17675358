use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use std::net::Ipv4Addr;

/// What carries the connections of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP, Noise, Yamux.
    Tcp,
    /// QUIC.
    Quic,
    /// WebSocket without TLS, Noise, Yamux.
    WebSocket,
    /// WebRTC-direct.
    WebRtc,
}

impl Transport {
    /// As it stands in the matrix.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Quic => "quic",
            Self::WebSocket => "ws",
            Self::WebRtc => "webrtc",
        }
    }

    /// A place to listen or to dial.
    #[must_use]
    pub fn at(self, address: Ipv4Addr, port: u16) -> Multiaddr {
        let address = Multiaddr::empty().with(Protocol::Ip4(address));
        match self {
            Self::Tcp => address.with(Protocol::Tcp(port)),
            Self::Quic => address.with(Protocol::Udp(port)).with(Protocol::QuicV1),
            Self::WebRtc => address
                .with(Protocol::Udp(port))
                .with(Protocol::WebRTCDirect),
            Self::WebSocket => address
                .with(Protocol::Tcp(port))
                .with(Protocol::Ws("/".into())),
        }
    }

    /// A free port of loopback.
    #[must_use]
    pub fn loopback(self) -> Multiaddr {
        self.at(Ipv4Addr::LOCALHOST, 0)
    }
}
