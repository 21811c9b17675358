//! The probe's client: runs behind the NAT in question.

use super::server::{ANSWER, CONNECT, CONNECT_BACK, OBSERVE, QUESTION};
use super::{Behaviour, Class, Filtering, destinations, judge, judge_filtering};
use crate::lab::now;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

/// How long an answer may take, and how often a question is repeated: what does not come within
/// three times 500 ms is filtered.
const PATIENCE: Duration = Duration::from_millis(500);
const TRIES: u8 = 3;

/// Asks the [`Server`](super::Server) at these addresses what the NAT in between does. Run it on the
/// host in question ([`Host::enter`](crate::lab::Host::enter)).
pub fn classify(server: [Ipv4Addr; 2]) -> io::Result<Class> {
    Ok(Class {
        udp: classify_udp(server)?,
        tcp: classify_tcp(server)?,
    })
}

fn classify_udp(server: [Ipv4Addr; 2]) -> io::Result<Option<Behaviour>> {
    let mut asker = Asker::new()?;
    let mut seen = [0; 4];
    for (index, (port, destination)) in seen.iter_mut().zip(destinations(server)).enumerate() {
        match asker.ask(destination, index)? {
            Some(observed) => *port = observed,
            None if index == 0 => return Ok(None),
            None => return Err(silent(destination)),
        }
    }
    let local = asker.socket.local_addr()?.port();
    Ok(Some(judge(local, seen, udp_filtering(server)?)))
}

fn udp_filtering(server: [Ipv4Addr; 2]) -> io::Result<Filtering> {
    let [contacted, ..] = destinations(server);
    let mut asker = Asker::new()?;
    asker.ask(contacted, 0)?.ok_or_else(|| silent(contacted))?;
    let same_address = asker.ask(contacted, 1)?.is_some();
    let other_address = asker.ask(contacted, 2)?.is_some();
    Ok(judge_filtering(same_address, other_address))
}

fn silent((address, port): (Ipv4Addr, u16)) -> io::Error {
    io::Error::new(
        ErrorKind::TimedOut,
        format!("{address}:{port} does not answer"),
    )
}

struct Asker {
    socket: UdpSocket,
    token: u64,
}

impl Asker {
    fn new() -> io::Result<Self> {
        Ok(Self {
            socket: UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
            token: 0,
        })
    }

    /// The public port that `destination` saw, told by the server's socket number `via`.
    fn ask(&mut self, destination: (Ipv4Addr, u16), via: usize) -> io::Result<Option<u16>> {
        self.token += 1;
        let mut question = QUESTION.to_vec();
        question.extend_from_slice(&self.token.to_be_bytes());
        question.push(via as u8);
        let mut awaited = ANSWER.to_vec();
        awaited.extend_from_slice(&self.token.to_be_bytes());
        for _ in 0..TRIES {
            self.socket.send_to(&question, destination)?;
            if let Some(port) = self.await_answer(&awaited)? {
                return Ok(Some(port));
            }
        }
        Ok(None)
    }

    fn await_answer(&self, awaited: &[u8]) -> io::Result<Option<u16>> {
        let deadline = now() + PATIENCE;
        let mut buffer = [0; 64];
        loop {
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            let rest = buffer
                .get(..length)
                .and_then(|answer| answer.strip_prefix(awaited));
            if let Some([_, _, _, _, high, low]) = rest {
                return Ok(Some(u16::from_be_bytes([*high, *low])));
            }
        }
    }
}

fn classify_tcp(server: [Ipv4Addr; 2]) -> io::Result<Option<Behaviour>> {
    let port = Port::new()?;
    let mut seen = [0; 4];
    for (index, (observed, destination)) in seen.iter_mut().zip(destinations(server)).enumerate() {
        let mut stream = match port.connect(destination) {
            Ok(stream) => stream,
            Err(_) if index == 0 => return Ok(None),
            Err(error) => return Err(error),
        };
        stream.write_all(&[OBSERVE, 0])?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer)?;
        *observed = u16::from_be_bytes(answer);
    }
    Ok(Some(judge(port.local, seen, tcp_filtering(server)?)))
}

/// The first connection stays open: it is the mapping that the server tries to use.
fn tcp_filtering(server: [Ipv4Addr; 2]) -> io::Result<Filtering> {
    let [contacted, ..] = destinations(server);
    let port = Port::new()?;
    let mut keeper = port.connect(contacted)?;
    let same_address = ask_to_connect(&mut keeper, 1)?;
    let other_address = ask_to_connect(&mut keeper, 2)?;
    Ok(judge_filtering(same_address, other_address))
}

fn ask_to_connect(stream: &mut Socket, via: u8) -> io::Result<bool> {
    stream.write_all(&[CONNECT, via])?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    Ok(answer == [1])
}

/// A local TCP port that listens and connects at once, as hole punching needs it.
struct Port {
    local: u16,
    _listener: Socket,
}

impl Port {
    fn new() -> io::Result<Self> {
        let listener = reusable(0)?;
        listener.listen(8)?;
        let local = listener
            .local_addr()?
            .as_socket_ipv4()
            .map_or(0, |address| address.port());
        Ok(Self {
            local,
            _listener: listener,
        })
    }

    fn connect(&self, (address, port): (Ipv4Addr, u16)) -> io::Result<Socket> {
        let socket = reusable(self.local)?;
        socket.connect_timeout(
            &SockAddr::from(SocketAddrV4::new(address, port)),
            PATIENCE * 4,
        )?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(CONNECT_BACK * 3))?;
        Ok(socket)
    }
}

fn reusable(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SockAddr::from(SocketAddrV4::new(
        Ipv4Addr::UNSPECIFIED,
        port,
    )))?;
    Ok(socket)
}
