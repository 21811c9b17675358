use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    task::{Context, Poll},
};

use async_io::Async;
use futures::{
    AsyncRead, AsyncWrite,
    future::{self, BoxFuture, FutureExt as _},
};
use libp2p_core::{
    Multiaddr,
    transport::{self, DialOpts, ListenerId, TransportError, TransportEvent},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    Purpose,
    ports::{Ports, anywhere},
};
use crate::{Transport, core::punch::PortId};

/// TCP from fresh ports. Every other address is "not supported", and it does not listen.
///
/// A dial to a peer begins with a SYN that opens our NAT and dies behind it. The same socket takes the
/// peer's SYN when it comes: a simultaneous open, with the sequence number that the NAT has seen. It
/// repeats its own after a second, with the usual TTL.
///
/// Linux gives up a connecting socket when a router tells that its SYN has died (`tcp_v4_err`). Routers
/// limit how often they tell (Linux: six times, then once a second, to one address), so the limit is used
/// up before, and a socket that was given up is replaced at once.
#[derive(Debug)]
pub struct Tcp {
    ports: Ports,
    open: BTreeMap<PortId, Bound>,
}

/// A port that dials leave from. Nothing holds it but their sockets.
#[derive(Debug, Clone, Copy)]
struct Bound {
    local: u16,
    ttl: u32,
}

impl Tcp {
    /// Give the same `ports` to the behaviour.
    #[must_use]
    pub fn new(ports: &Ports) -> Self {
        ports.serves(Transport::Tcp);
        Self {
            ports: ports.clone(),
            open: BTreeMap::new(),
        }
    }

    fn begin(
        &mut self,
        to: SocketAddr,
        port: PortId,
        purpose: Purpose,
    ) -> io::Result<<Self as transport::Transport>::Dial> {
        self.open.retain(|port, _| self.ports.is_open(*port));
        match purpose {
            Purpose::Open { ttl, .. } => {
                let socket = connect(to, 0, None)?;
                let local = socket.local_addr()?.as_socket();
                let local = local.map_or(0, |local| local.port());
                self.open.insert(port, Bound { local, ttl });
                Ok(connected(socket).boxed())
            }
            Purpose::Punch => {
                let bound = self
                    .open
                    .get(&port)
                    .ok_or(io::ErrorKind::AddrNotAvailable)?;
                if let Err(error) = silence_routers(to, bound.ttl) {
                    tracing::debug!(%to, %error, "routers may tell that our SYN has died");
                }
                let socket = bound.connect(to)?;
                let ports = self.ports.clone();
                let is_wanted = move || ports.is_open(port);
                Ok(punched(socket, to, *bound, is_wanted).boxed())
            }
        }
    }
}

impl transport::Transport for Tcp {
    type Output = TcpStream;
    type Error = io::Error;
    type ListenerUpgrade = future::Pending<io::Result<TcpStream>>;
    type Dial = BoxFuture<'static, io::Result<TcpStream>>;

    fn listen_on(
        &mut self,
        _: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        Err(TransportError::MultiaddrNotSupported(address))
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        false
    }

    /// The first SYN leaves now, not when the future is polled: the peer must not hear of the port before.
    fn dial(
        &mut self,
        address: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let taken = self.ports.take(Transport::Tcp, &address, opts.port_use);
        let Some((to, departure)) = taken else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        self.begin(to, departure.port, departure.purpose)
            .map_err(TransportError::Other)
    }

    fn poll(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Poll::Pending
    }
}

/// Begins to connect. With a TTL the first SYN lives for so many hops; those that the kernel repeats, and
/// what it answers, have the usual one.
fn connect(to: SocketAddr, local: u16, ttl: Option<u32>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if to.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Several sockets connect from one port.
    socket.set_reuse_address(true)?;
    #[cfg(all(unix, not(any(target_os = "solaris", target_os = "illumos"))))]
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&anywhere(to, local).into())?;
    let usual = match ttl {
        Some(ttl) => Some(replace_hops(&socket, to, ttl)?),
        None => None,
    };
    match socket.connect(&to.into()) {
        Err(error) if !is_in_progress(&error) => return Err(error),
        _ => {}
    }
    if let Some(usual) = usual {
        replace_hops(&socket, to, usual)?;
    }
    Ok(socket)
}

fn is_in_progress(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) {
        return true;
    }
    error.kind() == io::ErrorKind::WouldBlock
}

/// Sets how many hops packets live for; returns what it was before.
fn replace_hops(socket: &Socket, to: SocketAddr, hops: u32) -> io::Result<u32> {
    let before;
    if to.is_ipv4() {
        before = socket.ttl_v4()?;
        socket.set_ttl_v4(hops)?;
    } else {
        before = socket.unicast_hops_v6()?;
        socket.set_unicast_hops_v6(hops)?;
    }
    Ok(before)
}

impl Bound {
    fn connect(self, to: SocketAddr) -> io::Result<Socket> {
        connect(to, self.local, Some(self.ttl))
    }
}

/// Uses up what the routers behind our NAT have to tell us.
fn silence_routers(to: SocketAddr, ttl: u32) -> io::Result<()> {
    let socket = UdpSocket::bind(anywhere(to, 0))?;
    replace_hops(&socket2::SockRef::from(&socket), to, ttl)?;
    for _ in 0..SILENCING {
        socket.send_to(&[0; 8], to)?;
    }
    Ok(())
}

/// Connects again until it succeeds: while no socket does, the peer's SYN is refused.
async fn punched(
    first: Socket,
    to: SocketAddr,
    from: Bound,
    is_wanted: impl Fn() -> bool,
) -> io::Result<TcpStream> {
    let mut socket = first;
    for _ in 0..MAX_REPEATS {
        match connected(socket).await {
            Err(error) if is_told_by_the_way(&error) && is_wanted() => {
                tracing::trace!(%to, %error, "connecting again");
                socket = from.connect(to)?;
            }
            done => return done,
        }
    }
    connected(socket).await
}

/// A router tells that the SYN has died, or the peer's NAT refuses what came before its host had sent.
fn is_told_by_the_way(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(
        error.kind(),
        HostUnreachable | NetworkUnreachable | ConnectionRefused
    )
}

async fn connected(socket: Socket) -> io::Result<TcpStream> {
    let stream = Async::new_nonblocking(std::net::TcpStream::from(socket))?;
    stream.writable().await?;
    match stream.get_ref().take_error()? {
        Some(error) => Err(error),
        None => Ok(TcpStream(stream)),
    }
}

/// A connection from a fresh port.
#[derive(Debug)]
pub struct TcpStream(Async<std::net::TcpStream>);

/// For options of the socket.
#[cfg(unix)]
impl std::os::fd::AsFd for TcpStream {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// For options of the socket.
#[cfg(windows)]
impl std::os::windows::io::AsSocket for TcpStream {
    fn as_socket(&self) -> std::os::windows::io::BorrowedSocket<'_> {
        self.0.as_socket()
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

/// Packets that are sent to make routers fall silent: Linux answers six.
const SILENCING: usize = 8;

/// Sockets that are given up for one dial. A router that tells each time does so after its own round
/// trip, 20 ms or more; an attempt lasts 2 s.
const MAX_REPEATS: usize = 64;
