//! WebRTC-direct, as browsers dial it: UDP with a certificate whose hash stands in the address.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{AsyncRead, AsyncWrite, FutureExt as _, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId, Transport as _,
    core::{
        muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerEvent},
        transport::{Boxed, DialOpts, ListenerId, TransportError, TransportEvent},
    },
    identity::Keypair,
    multiaddr::Protocol,
};
use libp2p_webrtc::tokio::{self as webrtc, Certificate, Error};
use tokio::sync::Semaphore;

use crate::transport::EndsInTime;

/// Handshakes that strangers may have under way. Each costs what a whole connection does, for one packet with any source address, and
/// ten seconds of it; libp2p-webrtc has no bound of its own, and the swarm's is that of all transports together.
const MAX_HANDSHAKES: usize = 32;

/// libp2p-webrtc for one IP version: it dials from the first of its sockets, whatever the address.
pub(super) struct Transport {
    inner: webrtc::Transport,
    is_ipv4: bool,
    handshakes: Arc<Semaphore>,
}

impl Transport {
    /// Both IP versions.
    pub(super) fn both(
        keypair: &Keypair,
        certificate: &Certificate,
    ) -> Boxed<(PeerId, StreamMuxerBox)> {
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let of = |is_ipv4| {
            let transport = Self {
                inner: webrtc::Transport::new(keypair.clone(), certificate.clone()),
                is_ipv4,
                handshakes: handshakes.clone(),
            };
            transport.map(|(peer, connection), _| {
                (
                    peer,
                    StreamMuxerBox::new(EndsInTime::new(Connection(connection))),
                )
            })
        };
        let any = of(true).or_transport(of(false));
        any.map(|either, _| either.into_inner()).boxed()
    }

    fn takes(&self, address: &Multiaddr) -> bool {
        match address.iter().next() {
            Some(Protocol::Ip4(_)) => self.is_ipv4,
            Some(Protocol::Ip6(_)) => !self.is_ipv4,
            _ => false,
        }
    }
}

type Upgrade = BoxFuture<'static, Result<(PeerId, webrtc::Connection), Error>>;

impl libp2p::Transport for Transport {
    type Output = (PeerId, webrtc::Connection);
    type Error = Error;
    type ListenerUpgrade = Upgrade;
    type Dial = Upgrade;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        if !self.takes(&address) {
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        if !self.takes(&address) {
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        self.inner.dial(address, opts)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        match futures::ready!(Pin::new(&mut self.inner).poll(cx)) {
            TransportEvent::Incoming {
                listener_id,
                upgrade,
                local_addr,
                send_back_addr,
            } => {
                let Ok(permit) = self.handshakes.clone().try_acquire_owned() else {
                    tracing::debug!(%send_back_addr, "refused: too many WebRTC handshakes");
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                };
                let upgrade = upgrade.map(move |connected| {
                    drop(permit);
                    connected
                });
                Poll::Ready(TransportEvent::Incoming {
                    listener_id,
                    upgrade: upgrade.boxed(),
                    local_addr,
                    send_back_addr,
                })
            }
            other => Poll::Ready(other),
        }
    }
}

/// A connection of libp2p-webrtc with streams that go-libp2p and js-libp2p can end.
struct Connection(webrtc::Connection);

impl StreamMuxer for Connection {
    type Substream = Stream;
    type Error = Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let inbound = Pin::new(&mut self.0).poll_inbound(cx);
        inbound.map_ok(Stream::new)
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let outbound = Pin::new(&mut self.0).poll_outbound(cx);
        outbound.map_ok(Stream::new)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.0).poll_close(cx)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// A stream of libp2p-webrtc, with three of its faults mended: FIN_ACK, a flag that the specification has got since, is an error to it;
/// any other message without data is the end of the stream; and writes without a flush between them end the stream where together they are
/// larger than a message.
struct Stream {
    inner: <webrtc::Connection as StreamMuxer>::Substream,
    /// Our end is being closed: its end of theirs is not remembered meanwhile.
    is_closing: bool,
    has_ended: bool,
}

impl Stream {
    fn new(inner: <webrtc::Connection as StreamMuxer>::Substream) -> Self {
        Self {
            inner,
            is_closing: false,
            has_ended: false,
        }
    }
}

/// Bytes that are sent in one message. libp2p-webrtc 0.10.0-alpha reads none of more than 8 KiB with their head: `Stream::new` gives the
/// reader a clone of the channel, and clones do not keep the size of the buffer.
const MAX_DATA: usize = 8 * 1024 - 16;

/// What `flag` of a message is when both ends have read everything
/// ([specification](https://github.com/libp2p/specs/blob/master/webrtc/README.md#multiplexing)).
const FIN_ACK: i32 = 3;

fn is_fin_ack(error: &io::Error) -> bool {
    let cause = error.get_ref();
    let unknown = cause.and_then(|cause| cause.downcast_ref::<prost::UnknownEnumValue>());
    unknown.is_some_and(|flag| flag.0 == FIN_ACK)
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.has_ended || buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut may_have_ended = false;
        loop {
            match futures::ready!(Pin::new(&mut self.inner).poll_read(cx, buffer)) {
                // It says so when it is asked again.
                Ok(0) if !self.is_closing => may_have_ended = true,
                Ok(0) => {
                    self.has_ended = true;
                    return Poll::Ready(Ok(0));
                }
                Err(error) if is_fin_ack(&error) => {}
                Err(error) if may_have_ended && error.kind() == io::ErrorKind::BrokenPipe => {
                    self.has_ended = true;
                    return Poll::Ready(Ok(0));
                }
                other => return Poll::Ready(other),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Two writes in one message may be more than a message can hold, which it does not see.
        futures::ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        let message = bytes.get(..MAX_DATA).unwrap_or(bytes);
        Pin::new(&mut self.inner).poll_write(cx, message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_closing {
            futures::ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        }
        let closed = Pin::new(&mut self.inner).poll_close(cx);
        self.is_closing = closed.is_pending();
        closed
    }
}
