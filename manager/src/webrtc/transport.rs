//! The transport: listeners, and dials from sockets of their own.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt as _, StreamExt as _, stream::SelectAll};
use libp2p::{
    Multiaddr, PeerId,
    core::{
        Transport as _,
        muxing::StreamMuxerBox,
        transport::{Boxed, DialOpts, ListenerId, TransportError, TransportEvent},
    },
    identity::Keypair,
};

use super::{
    Error,
    address::Address,
    certificate::Certificate,
    core::{Connection, Path},
    driver::{Driver, Source, now},
    listener::{Listener, Upgrade},
    muxer::Muxer,
    noise::{Role, upgrade},
    socket::{ReceiveBuffer, Socket},
};
use crate::transport::EndsInTime;

pub(super) struct Transport {
    keypair: Keypair,
    certificate: Certificate,
    listeners: SelectAll<Listener>,
}

impl Transport {
    pub(super) fn new(keypair: Keypair, certificate: Certificate) -> Self {
        Self {
            keypair,
            certificate,
            listeners: SelectAll::new(),
        }
    }

    pub(super) fn ends_in_time(self) -> Boxed<(PeerId, StreamMuxerBox)> {
        self.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(EndsInTime::new(muxer))))
            .boxed()
    }
}

impl libp2p::Transport for Transport {
    type Output = (PeerId, Muxer);
    type Error = Error;
    type ListenerUpgrade = Upgrade;
    type Dial = Upgrade;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Error>> {
        let Some(parsed) = Address::parse(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let (keypair, certificate) = (self.keypair.clone(), self.certificate.clone());
        let listener = Listener::new(id, parsed, keypair, certificate)
            .map_err(|error| TransportError::Other(error.into()))?;
        self.listeners.push(listener);
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let mut listeners = self.listeners.iter_mut();
        let Some(listener) = listeners.find(|listener| listener.id == id) else {
            return false;
        };
        listener.close();
        true
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Upgrade, TransportError<Error>> {
        let parsed = Address::parse(&address);
        // Nobody punches holes for it.
        let usable = parsed.filter(|address| {
            !options.role.is_listener()
                && address.socket.port() != 0
                && !address.socket.ip().is_unspecified()
        });
        let Some(Address {
            socket: server,
            fingerprint: Some(fingerprint),
        }) = usable
        else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let (keypair, certificate) = (self.keypair.clone(), self.certificate.der.clone());
        let dial = async move {
            let any: IpAddr = match server {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = Socket::bind(SocketAddr::new(any, 0))?;
            let path = Path {
                remote: server,
                local: None,
            };
            let now = now();
            let seed = rand::random();
            let core = Connection::dial(path, fingerprint, &certificate, seed, now);
            let core = core.ok_or(Error::Cryptography)?;
            let source = Source::Own(ReceiveBuffer::default());
            upgrade(
                Driver::new(core, Arc::new(socket), source),
                Role::Client,
                keypair,
            )
            .await
        };
        Ok(dial.boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Upgrade, Error>> {
        match self.listeners.poll_next_unpin(context) {
            Poll::Ready(Some(event)) => Poll::Ready(event),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}
