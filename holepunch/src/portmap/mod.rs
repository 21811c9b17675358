//! The sockets of port mapping: one for PCP and NAT-PMP, and what UPnP needs.

mod upnp;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    task::{Context, Poll},
    time::Duration,
};

use async_io::Async;
use futures::{FutureExt as _, future::BoxFuture};
use futures_timer::Delay;
use libp2p_core::Multiaddr;

use crate::{
    Config,
    behaviour::{Alarm, now},
    core::{
        nat::Gateway,
        portmap::{
            Output, PortMapper, PortMapping, Route, SERVER_PORT,
            upnp::{Answer, Call},
        },
    },
};

/// A datagram of PCP has 1,100 bytes at most (RFC 6887 §7).
const MAX_DATAGRAM: usize = 1100;
/// Errors in a row after which a socket is given up.
const MAX_ERRORS: usize = 16;
/// How long one call of UPnP may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// What happened.
#[derive(Debug)]
pub(crate) enum Fact {
    Mapped(PortMapping),
    Lost(PortMapping),
    Gateway(Gateway),
}

/// A socket connected to the gateway, so that the system already drops what others send.
type Gate = (Async<UdpSocket>, Route);

/// Keeps this node's ports mapped.
pub(crate) struct Portmap {
    core: PortMapper,
    socket: Option<Gate>,
    lookup: Option<BoxFuture<'static, io::Result<Gate>>>,
    call: Option<BoxFuture<'static, Answer>>,
    alarm: Alarm,
}

impl Portmap {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            core: PortMapper::new(config, rand::random()),
            socket: None,
            lookup: None,
            call: None,
            alarm: Alarm::default(),
        }
    }

    pub(crate) fn mappings(&self) -> &[PortMapping] {
        self.core.mappings()
    }

    pub(crate) fn on_listening(&mut self, address: &Multiaddr) {
        self.core.on_listening(address, now());
    }

    pub(crate) fn on_not_listening(&mut self, address: &Multiaddr) {
        self.core.on_not_listening(address, now());
    }

    /// Gives all mappings back.
    pub(crate) fn close(&mut self) {
        self.core.close(now());
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Fact> {
        loop {
            if let Some(output) = self.core.poll_output() {
                if let Some(fact) = self.on_output(output) {
                    return Poll::Ready(fact);
                }
                continue;
            }
            if let Some(Poll::Ready(found)) = self.lookup.as_mut().map(|found| found.poll_unpin(cx))
            {
                self.lookup = None;
                if let Err(error) = &found {
                    tracing::debug!(%error, "no default route to ask for ports");
                }
                self.socket = found.ok();
                let route = self.socket.as_ref().map(|(_, route)| *route);
                self.core.on_route(route, now());
                continue;
            }
            if let Some(Poll::Ready(answer)) = self.call.as_mut().map(|call| call.poll_unpin(cx)) {
                self.call = None;
                self.core.on_answer(answer, now());
                continue;
            }
            if self.receive(cx) {
                continue;
            }
            if self.alarm.rings(self.core.poll_timeout(), cx) {
                self.core.handle_timeout(now());
                continue;
            }
            return Poll::Pending;
        }
    }

    fn on_output(&mut self, output: Output) -> Option<Fact> {
        match output {
            Output::FindRoute => {
                self.socket = None;
                self.lookup = Some(connect().boxed());
            }
            Output::Send(bytes) => {
                if let Some((socket, _)) = &self.socket {
                    let socket = socket.get_ref();
                    // The first one may only hear that nobody got the one before (ICMP).
                    let sent = socket.send(&bytes).or_else(|_| socket.send(&bytes));
                    if let Err(error) = sent {
                        // As if the network had lost it; the core repeats it.
                        tracing::debug!(%error, "cannot send to the gateway");
                    }
                }
            }
            Output::Call(call) => {
                let route = self.socket.as_ref().map(|(_, route)| *route)?;
                self.call = Some(perform(call, route).boxed());
            }
            Output::Mapped(mapping) => return Some(Fact::Mapped(mapping)),
            Output::Lost(mapping) => return Some(Fact::Lost(mapping)),
            Output::Gateway(gateway) => return Some(Fact::Gateway(gateway)),
        }
        None
    }

    /// Whether a datagram came, or something that is as good as one.
    fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        let Some((socket, _)) = &self.socket else {
            return false;
        };
        let mut buffer = [0; MAX_DATAGRAM];
        let mut errors = 0;
        while errors < MAX_ERRORS {
            match socket.get_ref().recv_from(&mut buffer) {
                Ok((length, from)) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    self.core.on_datagram(from, bytes, now());
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match socket.poll_readable(cx) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(_)) | Poll::Pending => return false,
                    }
                }
                // Nobody listens there (ICMP); each such answer is read once.
                Err(error) => {
                    tracing::trace!(%error, "the gateway has no such port");
                    errors += 1;
                }
            }
        }
        // Of no use any more; the core misses the answers and asks for another one.
        self.socket = None;
        false
    }
}

/// The default route, and a socket to its gateway.
async fn connect() -> io::Result<Gate> {
    let gateway = blocking::unblock(netdev::get_default_gateway)
        .await
        .map_err(io::Error::other)?;
    let gateway = gateway.ipv4.first().copied();
    let gateway = gateway.ok_or_else(|| io::Error::other("no IPv4 gateway"))?;
    let socket = Async::<UdpSocket>::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket
        .get_ref()
        .connect(SocketAddr::from((gateway, SERVER_PORT)))?;
    match socket.get_ref().local_addr()? {
        SocketAddr::V4(local) => Ok((
            socket,
            Route {
                gateway,
                local: *local.ip(),
            },
        )),
        SocketAddr::V6(_) => Err(io::Error::other("no IPv4 address")),
    }
}

async fn perform(call: Call, route: Route) -> Answer {
    let work = std::pin::pin!(upnp::perform(&call, route));
    let answered = futures::future::select(work, Delay::new(CALL_TIMEOUT)).await;
    match answered {
        futures::future::Either::Left((Ok(answer), _)) => answer,
        futures::future::Either::Left((Err(error), _)) => {
            tracing::debug!(%error, "the gateway does not answer over UPnP");
            Answer::Failed
        }
        futures::future::Either::Right(_) => Answer::Failed,
    }
}
