//! What STUN servers tell of the NAT.
//!
//! Each server is asked from sockets that are used for nothing else, so that neither the node's
//! connections nor other servers have opened the NAT for it. A server with a second address
//! ([RFC 5780](https://www.rfc-editor.org/rfc/rfc5780)) shows mapping and filtering of UDP within
//! some round trips and 1.5 s; any other one ([RFC 8489](https://www.rfc-editor.org/rfc/rfc8489))
//! tells one public socket.

mod message;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _, UdpSocket},
    task::{Context, Poll},
    time::Duration,
};

use async_io::Async;
use futures::{
    FutureExt as _, StreamExt as _,
    future::{self, BoxFuture, Either},
    pin_mut,
    stream::FuturesUnordered,
};
use futures_timer::Delay;
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use web_time::Instant;

use self::message::{Binding, Change, MAX_BYTES, Transaction, request, response, returned};
use crate::{
    Config,
    address::is_beyond_nats,
    behaviour::{Alarm, now},
    core::nat::report::Filtering,
};

/// When a request is sent again (RFC 8489 §6.2.1 begins with 500 ms), and how often.
const RETRANSMIT: Duration = Duration::from_millis(500);
const TRANSMISSIONS: u32 = 3;
/// How long one server may take: five requests of 1.5 s, and its name.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two rounds, however often the network seems to change.
const MIN_INTERVAL: Duration = Duration::from_secs(5);

/// What one server told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) server: SocketAddr,
    /// The local port that asked.
    pub(crate) local_port: u16,
    /// Who saw that port where, in the order in which they were asked.
    pub(crate) seen: Vec<(SocketAddr, SocketAddr)>,
    pub(crate) filtering: Option<Filtering>,
    pub(crate) hairpin: Option<bool>,
}

/// Asks the configured servers, at once when the node listens, and again every
/// [`Config::probe_interval`].
pub(crate) struct Stun {
    config: Config,
    /// Of the round that is under way.
    asked: FuturesUnordered<BoxFuture<'static, io::Result<Found>>>,
    began: Option<Instant>,
    next: Option<Instant>,
    alarm: Alarm,
}

impl Stun {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            asked: FuturesUnordered::new(),
            began: None,
            next: None,
            alarm: Alarm::default(),
        }
    }

    /// The node listens: from now on there is something to know.
    pub(crate) fn on_listening(&mut self) {
        if self.next.is_none() {
            self.on_changed();
        }
    }

    /// The network seems to have changed.
    pub(crate) fn on_changed(&mut self) {
        let earliest = self.began.map(|began| began + MIN_INTERVAL);
        let at = earliest.map_or_else(now, |earliest| earliest.max(now()));
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Found> {
        loop {
            match self.asked.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(found))) => return Poll::Ready(found),
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "a STUN server does not answer");
                    continue;
                }
                Poll::Ready(None) | Poll::Pending => {}
            }
            if !self.alarm.rings(self.next, cx) {
                return Poll::Pending;
            }
            let began = now();
            self.began = Some(began);
            self.next = Some(began + self.config.probe_interval());
            // What the last round left unanswered says nothing about the network of now.
            let loopback = self.config.allow_loopback();
            let servers = self.config.stun_servers().iter();
            self.asked = servers
                .map(|server| ask(server.clone(), loopback).boxed())
                .collect();
        }
    }
}

fn host(address: &Multiaddr) -> Option<(String, u16)> {
    let mut parts = address.iter();
    match (parts.next()?, parts.next()?, parts.next()) {
        (Protocol::Ip4(ip), Protocol::Udp(port), None) => Some((ip.to_string(), port)),
        (Protocol::Dns4(name) | Protocol::Dns(name), Protocol::Udp(port), None) => {
            Some((name.into_owned(), port))
        }
        _ => None,
    }
}

async fn ask(server: Multiaddr, allow_loopback: bool) -> io::Result<Found> {
    let asked = async {
        let host = host(&server).ok_or(io::ErrorKind::InvalidInput)?;
        let found = blocking::unblock(move || host.to_socket_addrs()).await?;
        let useful = |at: &SocketAddr| at.is_ipv4() && is_beyond_nats(at.ip(), allow_loopback);
        let address = found.into_iter().find(useful);
        let address = address.ok_or_else(|| io::Error::other("no public IPv4 address"))?;
        discover(address, allow_loopback).await
    };
    pin_mut!(asked);
    match future::select(asked, Delay::new(TIMEOUT)).await {
        Either::Left((found, _)) => found,
        Either::Right(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn discover(server: SocketAddr, allow_loopback: bool) -> io::Result<Found> {
    let socket = bind()?;
    let first = exchange(&socket, server, server).await?;
    let mut found = Found {
        server,
        local_port: socket.get_ref().local_addr()?.port(),
        seen: vec![(server, first.mapped)],
        filtering: None,
        hairpin: None,
    };
    // A server may name whom it likes: nobody of our own network is sent anything.
    let other = first.other.filter(|other| {
        other.ip() != server.ip()
            && other.port() != server.port()
            && other.is_ipv4()
            && is_beyond_nats(other.ip(), allow_loopback)
    });
    let Some(other) = other else {
        return Ok(found);
    };
    // RFC 5780 §4.3: the second address with the first port, then with the second one.
    for to in [SocketAddr::new(other.ip(), server.port()), other] {
        if let Ok(binding) = exchange(&socket, to, to).await {
            found.seen.push((to, binding.mapped));
        }
    }
    let fresh = bind()?;
    exchange(&fresh, server, server).await?;
    found.filtering = filtering(&fresh, server, other).await?;
    if is_beyond_nats(first.mapped.ip(), allow_loopback) {
        found.hairpin = Some(hairpin(&socket, &fresh, first.mapped).await?);
    }
    Ok(found)
}

/// RFC 5780 §4.4, both tests at once. `socket` has sent to `server` alone.
async fn filtering(
    socket: &Async<UdpSocket>,
    server: SocketAddr,
    other: SocketAddr,
) -> io::Result<Option<Filtering>> {
    let (stranger, known) = (transaction(), transaction());
    let asks = [(stranger, Change::AddressAndPort), (known, Change::Port)];
    let mut known_answered = false;
    let mut ignored = false;
    for _ in 0..TRANSMISSIONS {
        for (transaction, change) in asks {
            send(socket, server, transaction, change).await?;
        }
        let until = Delay::new(RETRANSMIT);
        pin_mut!(until);
        loop {
            let received = receive(socket);
            pin_mut!(received);
            let (bytes, from) = match future::select(received, &mut until).await {
                Either::Left((received, _)) => received?,
                Either::Right(_) => break,
            };
            let Some(answer) = response(&bytes) else {
                continue;
            };
            let is_ours = answer.transaction == stranger || answer.transaction == known;
            if answer.transaction == stranger && from == other {
                return Ok(Some(Filtering::EndpointIndependent));
            }
            if answer.transaction == known && from == SocketAddr::new(server.ip(), other.port()) {
                known_answered = true;
            }
            // It does not do what it is asked, so that silence says nothing either.
            ignored |= is_ours && from == server;
        }
    }
    Ok(match (ignored, known_answered) {
        (true, _) => None,
        (false, true) => Some(Filtering::AddressDependent),
        (false, false) => Some(Filtering::AddressAndPortDependent),
    })
}

/// Whether what one socket of ours sends to the other one's public socket comes back.
async fn hairpin(
    to: &Async<UdpSocket>,
    from: &Async<UdpSocket>,
    public: SocketAddr,
) -> io::Result<bool> {
    let id = transaction();
    send(from, public, id, Change::Nothing).await.ok();
    let until = Delay::new(RETRANSMIT);
    pin_mut!(until);
    loop {
        let received = receive(to);
        pin_mut!(received);
        match future::select(received, &mut until).await {
            Either::Left((received, _)) => {
                let (bytes, _) = received?;
                if returned(&bytes) == Some(id) {
                    return Ok(true);
                }
            }
            Either::Right(_) => return Ok(false),
        }
    }
}

/// Asks `to` until it answers from `expected`.
async fn exchange(
    socket: &Async<UdpSocket>,
    to: SocketAddr,
    expected: SocketAddr,
) -> io::Result<Binding> {
    let id = transaction();
    for _ in 0..TRANSMISSIONS {
        send(socket, to, id, Change::Nothing).await?;
        let until = Delay::new(RETRANSMIT);
        pin_mut!(until);
        loop {
            let received = receive(socket);
            pin_mut!(received);
            let (bytes, from) = match future::select(received, &mut until).await {
                Either::Left((received, _)) => received?,
                Either::Right(_) => break,
            };
            let answer = response(&bytes).filter(|answer| answer.transaction == id);
            if let Some(answer) = answer.filter(|_| from == expected) {
                return Ok(answer);
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

async fn send(
    socket: &Async<UdpSocket>,
    to: SocketAddr,
    id: Transaction,
    change: Change,
) -> io::Result<()> {
    let bytes = request(id, change).ok_or(io::ErrorKind::InvalidData)?;
    socket.send_to(&bytes, to).await.map(drop)
}

async fn receive(socket: &Async<UdpSocket>) -> io::Result<(Vec<u8>, SocketAddr)> {
    let mut bytes = vec![0; MAX_BYTES];
    let (length, from) = socket.recv_from(&mut bytes).await?;
    bytes.truncate(length);
    Ok((bytes, from))
}

fn bind() -> io::Result<Async<UdpSocket>> {
    Async::<UdpSocket>::bind((Ipv4Addr::UNSPECIFIED, 0))
}

fn transaction() -> Transaction {
    rand::random::<Transaction>() >> 32
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
