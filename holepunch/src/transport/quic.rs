use std::{
    fmt, io,
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    task::{Context, Poll},
};

use futures::future::{MapErr, TryFutureExt as _};
use libp2p_core::{
    Endpoint, Multiaddr,
    multiaddr::Protocol,
    transport::{self, DialOpts, ListenerId, PortUse, TransportError, TransportEvent},
};
use socket2::{Domain, Socket, Type};

use super::{
    Purpose,
    ports::{Ports, anywhere},
};
use crate::{Transport, core::punch::PortId};

/// QUIC from fresh ports, each with a transport `T` of its own that also listens there. Every other address
/// is "not supported". Its listeners are told to nobody: only the peer of a punch hears of them.
pub struct Quic<T> {
    ports: Ports,
    make: Box<dyn FnMut() -> T + Send>,
    open: Vec<(PortId, T)>,
}

/// Why a dial from a fresh port failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuicError<E> {
    /// No port could be opened.
    #[error("no fresh UDP port could be opened")]
    Open(#[source] io::Error),
    /// The transport of the port failed.
    #[error(transparent)]
    Transport(E),
}

impl<T> fmt::Debug for Quic<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open: Vec<PortId> = self.open.iter().map(|(port, _)| *port).collect();
        formatter
            .debug_struct("Quic")
            .field("ports", &self.ports)
            .field("open", &open)
            .finish_non_exhaustive()
    }
}

type Inner<T> =
    fn(<T as transport::Transport>::Error) -> QuicError<<T as transport::Transport>::Error>;

impl<T: transport::Transport> Quic<T> {
    /// `make` makes a QUIC transport without listeners, such as `libp2p_quic::tokio::Transport`. Give the
    /// same `ports` to the behaviour.
    pub fn new(ports: &Ports, make: impl FnMut() -> T + Send + 'static) -> Self {
        ports.serves(Transport::Quic);
        Self {
            ports: ports.clone(),
            make: Box::new(make),
            open: Vec::new(),
        }
    }

    fn begin(
        &mut self,
        address: Multiaddr,
        to: SocketAddr,
        port: PortId,
        purpose: Purpose,
    ) -> Result<T::Dial, TransportError<QuicError<T::Error>>> {
        let from_listener = DialOpts {
            role: Endpoint::Dialer,
            port_use: PortUse::Reuse,
        };
        let inner = |error: TransportError<T::Error>| error.map(QuicError::Transport);
        if let Purpose::Open { towards, ttl } = purpose {
            let local = open_nat(to, &towards, ttl)
                .map_err(|error| TransportError::Other(QuicError::Open(error)))?;
            let mut transport = (self.make)();
            // libp2p-quic dials loopback only from there.
            let ip = if to.ip().is_loopback() {
                to.ip()
            } else {
                anywhere(to, 0).ip()
            };
            let listen = Multiaddr::from(ip)
                .with(Protocol::Udp(local))
                .with(Protocol::QuicV1);
            transport
                .listen_on(ListenerId::next(), listen)
                .map_err(inner)?;
            self.open.push((port, transport));
            self.ports.wake();
        }
        let found = self.open.iter_mut().find(|(other, _)| *other == port);
        let Some((_, transport)) = found else {
            let closed = io::ErrorKind::AddrNotAvailable.into();
            return Err(TransportError::Other(QuicError::Open(closed)));
        };
        transport.dial(address, from_listener).map_err(inner)
    }
}

impl<T> transport::Transport for Quic<T>
where
    T: transport::Transport + Unpin,
{
    type Output = T::Output;
    type Error = QuicError<T::Error>;
    type ListenerUpgrade = MapErr<T::ListenerUpgrade, Inner<T>>;
    type Dial = MapErr<T::Dial, Inner<T>>;

    fn listen_on(
        &mut self,
        _: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        Err(TransportError::MultiaddrNotSupported(address))
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        false
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        let taken = self.ports.take(Transport::Quic, &address, opts.port_use);
        let Some((to, departure)) = taken else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let dial = self.begin(address, to, departure.port, departure.purpose)?;
        Ok(dial.map_err(QuicError::Transport as Inner<T>))
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let this = &mut *self;
        this.ports.register(cx.waker());
        // The endpoint lives on in the connections that it has.
        this.open.retain(|(port, _)| this.ports.is_open(*port));
        for (_, transport) in &mut this.open {
            while let Poll::Ready(event) = Pin::new(&mut *transport).poll(cx) {
                // The rest is about addresses that nobody is to advertise.
                if let TransportEvent::Incoming { .. } = event {
                    return Poll::Ready(
                        event
                            .map_upgrade(|upgrade| {
                                upgrade.map_err(QuicError::Transport as Inner<T>)
                            })
                            .map_err(QuicError::Transport),
                    );
                }
            }
        }
        Poll::Pending
    }
}

/// Takes a free port and sends packets from it that open our NAT for `towards` and die behind it. The port
/// is free again when this returns, so that the transport can have it: its socket can be neither shared
/// nor told how far a packet goes.
fn open_nat(like: SocketAddr, towards: &[SocketAddr], ttl: u32) -> io::Result<u16> {
    let socket = Socket::new(
        Domain::for_address(like),
        Type::DGRAM,
        Some(socket2::Protocol::UDP),
    )?;
    if like.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_unicast_hops_v6(ttl)?;
    } else {
        socket.set_ttl_v4(ttl)?;
    }
    socket.bind(&anywhere(like, 0).into())?;
    let socket = UdpSocket::from(socket);
    for to in towards {
        for _ in 0..COPIES {
            // Random, as the specification of hole punching over QUIC has it.
            let packet: [u8; 64] = rand::random();
            if let Err(error) = socket.send_to(&packet, to) {
                tracing::debug!(%to, %error, "a packet that was to open our NAT was not sent");
            }
        }
    }
    Ok(socket.local_addr()?.port())
}

/// One gets through the local network.
const COPIES: usize = 2;
