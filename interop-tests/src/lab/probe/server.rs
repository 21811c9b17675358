//! The probe's server: one host with two addresses.

use super::destinations;
use crate::lab::{Host, LabError};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::convert::Infallible;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A UDP question: magic, token, index of the socket that shall answer.
pub(super) const QUESTION: &[u8; 4] = b"APQ1";
/// A UDP answer: magic, token, the IPv4 address and port that the question came from.
pub(super) const ANSWER: &[u8; 4] = b"APA1";
/// A TCP question: what port do you see?
pub(super) const OBSERVE: u8 = b'o';
/// A TCP question: can the socket of this index connect to the port that you see?
pub(super) const CONNECT: u8 = b'c';
/// How long the server tries to connect back.
pub(super) const CONNECT_BACK: Duration = Duration::from_millis(1200);

const IDLE: Duration = Duration::from_millis(100);

/// A running server; it ends when dropped.
#[derive(Debug)]
pub struct Server {
    addresses: [Ipv4Addr; 2],
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Answers on this host at both addresses.
    pub fn start(host: &Host, addresses: [Ipv4Addr; 2]) -> Result<Self, LabError> {
        let (udp, tcp) = host
            .enter(|| bind(addresses))?
            .map_err(LabError::io("binding the probe server"))?;
        let mut server = Self {
            addresses,
            end: Arc::default(),
            threads: Vec::new(),
        };
        let udp = Arc::new(udp);
        for index in 0..udp.len() {
            let (sockets, end) = (udp.clone(), server.end.clone());
            server.threads.push(thread::spawn(move || {
                answer_datagrams(&sockets, index, &end)
            }));
        }
        for listener in tcp {
            let (host, end) = (host.clone(), server.end.clone());
            server.threads.push(thread::spawn(move || {
                // Sockets that connect back must be of the host's namespace.
                host.enter(|| answer_streams(&listener, addresses, &end))
                    .ok();
            }));
        }
        Ok(server)
    }

    /// Where it answers.
    pub fn addresses(&self) -> [Ipv4Addr; 2] {
        self.addresses
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

fn bind(addresses: [Ipv4Addr; 2]) -> io::Result<(Vec<UdpSocket>, Vec<TcpListener>)> {
    let mut sockets = (Vec::new(), Vec::new());
    for destination in destinations(addresses) {
        let socket = UdpSocket::bind(destination)?;
        socket.set_read_timeout(Some(IDLE))?;
        sockets.0.push(socket);
        let listener = TcpListener::bind(destination)?;
        listener.set_nonblocking(true)?;
        sockets.1.push(listener);
    }
    Ok(sockets)
}

fn answer_datagrams(sockets: &[UdpSocket], index: usize, end: &AtomicBool) {
    let Some(socket) = sockets.get(index) else {
        return;
    };
    let mut buffer = [0; 64];
    while !end.load(Ordering::Relaxed) {
        let Ok((length, SocketAddr::V4(from))) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let Some([m0, m1, m2, m3, token @ .., via]) = buffer
            .get(..length)
            .and_then(|question| <&[u8; 13]>::try_from(question).ok())
        else {
            continue;
        };
        if [*m0, *m1, *m2, *m3] != *QUESTION {
            continue;
        }
        let mut answer = ANSWER.to_vec();
        answer.extend_from_slice(token);
        answer.extend_from_slice(&from.ip().octets());
        answer.extend_from_slice(&from.port().to_be_bytes());
        if let Some(socket) = sockets.get(usize::from(*via)) {
            socket.send_to(&answer, from).ok();
        }
    }
}

fn answer_streams(listener: &TcpListener, addresses: [Ipv4Addr; 2], end: &AtomicBool) {
    thread::scope(|scope| {
        while !end.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, SocketAddr::V4(from))) => {
                    scope.spawn(move || answer_stream(stream, from, addresses));
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(IDLE / 20),
                Err(_) => return,
            }
        }
    });
}

fn answer_stream(
    mut stream: TcpStream,
    from: SocketAddrV4,
    addresses: [Ipv4Addr; 2],
) -> io::Result<Infallible> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut question = [0; 2];
    // Until the client closes: a port that it reuses must not wait here.
    loop {
        stream.read_exact(&mut question)?;
        let [kind, via] = question;
        if kind == CONNECT {
            let source = addresses.get(usize::from(via) / 2).copied();
            let reached = source.is_some_and(|source| connect_back(source, from).is_ok());
            stream.write_all(&[u8::from(reached)])?;
        } else {
            stream.write_all(&from.port().to_be_bytes())?;
        }
    }
}

/// From another port of this address.
fn connect_back(source: Ipv4Addr, to: SocketAddrV4) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SockAddr::from(SocketAddrV4::new(source, 0)))?;
    socket.connect_timeout(&SockAddr::from(to), CONNECT_BACK)
}
