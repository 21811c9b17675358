//! A UDP socket that takes and gives datagrams in batches, and knows to which address of ours one was sent.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    task::{Context, Poll, ready},
};

use quinn_udp::{RecvMeta, UdpSocketState};
use socket2::{Domain, Protocol, Type};
use tokio::{io::Interest, net::UdpSocket};

use super::core::{Path, Transmit};

/// What the system joins at most of datagrams that arrive together.
const BUFFER_BYTES: usize = 64 * 1024;

/// As much as the system gives without asking for more. What arrives in between two looks at the socket has to fit.
const SYSTEM_BUFFER_BYTES: usize = 1024 * 1024;

pub(super) struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
}

impl Socket {
    /// Needs a tokio reactor in the calling context. IPv6 sockets take no IPv4, so that both can have the same port.
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        let domain = Domain::for_address(address);
        let socket = socket2::Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        // The system may allow less.
        let _ = socket.set_recv_buffer_size(SYSTEM_BUFFER_BYTES);
        let _ = socket.set_send_buffer_size(SYSTEM_BUFFER_BYTES);
        socket.bind(&address.into())?;
        let io = UdpSocket::from_std(socket.into())?;
        Ok(Self {
            state: UdpSocketState::new((&io).into())?,
            local: io.local_addr()?,
            io,
        })
    }

    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Hands out what has arrived. One task at a time is woken.
    pub(super) fn poll_receive(
        &self,
        context: &mut Context<'_>,
        buffer: &mut ReceiveBuffer,
        mut each: impl FnMut(Path, &[u8]),
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.io.poll_recv_ready(context))?;
            let mut meta = [RecvMeta::default()];
            let received = self.io.try_io(Interest::READABLE, || {
                let mut slices = [IoSliceMut::new(&mut buffer.0)];
                self.state.recv((&self.io).into(), &mut slices, &mut meta)
            });
            match received {
                Ok(_) => {
                    let [meta] = meta;
                    let path = Path {
                        remote: meta.addr,
                        local: meta.dst_ip,
                    };
                    let received = buffer.0.get(..meta.len).unwrap_or_default();
                    for datagram in received.chunks(meta.stride.max(1)) {
                        each(path, datagram);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // What an earlier datagram came to: nobody listens there.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
                    ) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Sends what of it is left. `WouldBlock`: not all went, wait for [`Socket::writable`]. Whatever else cannot be sent is lost.
    pub(super) fn try_send(&self, sending: &mut Sending) -> io::Result<()> {
        let transmit = &sending.transmit;
        let at_once = transmit.segment * self.state.max_gso_segments().max(1);
        while let Some(rest) = transmit.bytes.get(sending.sent..)
            && !rest.is_empty()
        {
            let part = rest.get(..at_once).unwrap_or(rest);
            let sent = self.io.try_io(Interest::WRITABLE, || {
                let part = quinn_udp::Transmit {
                    destination: transmit.path.remote,
                    ecn: None,
                    contents: part,
                    segment_size: (part.len() > transmit.segment).then_some(transmit.segment),
                    src_ip: transmit.path.local,
                };
                self.state.try_send((&self.io).into(), &part)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => tracing::trace!(%error, "a datagram could not be sent"),
                Ok(()) => {}
            }
            sending.sent += part.len();
        }
        Ok(())
    }

    pub(super) async fn writable(&self) {
        // An error shows when something is sent.
        let _ = self.io.writable().await;
    }
}

/// Where datagrams arrive.
pub(super) struct ReceiveBuffer(Box<[u8]>);

impl Default for ReceiveBuffer {
    fn default() -> Self {
        Self(vec![0; BUFFER_BYTES].into())
    }
}

/// A batch of which the system may have taken a part.
pub(super) struct Sending {
    transmit: Transmit,
    sent: usize,
}

impl From<Transmit> for Sending {
    fn from(transmit: Transmit) -> Self {
        Self { transmit, sent: 0 }
    }
}
