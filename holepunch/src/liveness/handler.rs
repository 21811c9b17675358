//! One [ping](https://github.com/libp2p/specs/blob/master/ping/ping.md) on one connection. The peer's pings are for whoever speaks
//! that protocol otherwise.

use std::{
    io,
    task::{Context, Poll},
    time::Duration,
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _, future::BoxFuture};
use libp2p_core::upgrade::{DeniedUpgrade, ReadyUpgrade};
use libp2p_swarm::{
    ConnectionHandler, ConnectionHandlerEvent, Stream, StreamProtocol, StreamUpgradeError,
    SubstreamProtocol,
    handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedOutbound},
};

/// What every libp2p node answers.
const PING_PROTOCOL_NAME: StreamProtocol = StreamProtocol::new("/ipfs/ping/1.0.0");

/// Bytes that the peer sends back.
const PING_BYTES: usize = 32;

/// Ask the peer for a sign of life.
#[derive(Debug)]
pub struct Ask;

/// The peer gave one.
#[derive(Debug)]
pub struct Answered;

pub struct Handler {
    timeout: Duration,
    is_wanted: bool,
    ping: Option<BoxFuture<'static, io::Result<()>>>,
    is_answered: bool,
}

impl Handler {
    /// Streams that take longer than `timeout` to open are of no interest any more.
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            is_wanted: false,
            ping: None,
            is_answered: false,
        }
    }
}

async fn ping(mut stream: Stream) -> io::Result<()> {
    let sent: [u8; PING_BYTES] = rand::random();
    stream.write_all(&sent).await?;
    stream.flush().await?;
    let mut echo = [0; PING_BYTES];
    stream.read_exact(&mut echo).await
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Ask;
    type ToBehaviour = Answered;
    type InboundProtocol = DeniedUpgrade;
    type InboundOpenInfo = ();
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<DeniedUpgrade> {
        SubstreamProtocol::new(DeniedUpgrade, ())
    }

    fn on_behaviour_event(&mut self, Ask: Ask) {
        self.is_wanted = true;
        // An earlier one that is still under way was given up.
        self.ping = None;
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, DeniedUpgrade, ReadyUpgrade<StreamProtocol>>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: mut stream,
                ..
            }) => {
                // Who is asked whether it is there is not needed for that.
                stream.ignore_for_keep_alive();
                self.ping = Some(ping(stream).boxed());
            }
            // Whoever refuses is there.
            ConnectionEvent::DialUpgradeError(DialUpgradeError {
                error: StreamUpgradeError::NegotiationFailed | StreamUpgradeError::Io(_),
                ..
            }) => self.is_answered = true,
            _ => {}
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, (), Answered>> {
        if std::mem::take(&mut self.is_wanted) {
            let upgrade = ReadyUpgrade::new(PING_PROTOCOL_NAME);
            let protocol = SubstreamProtocol::new(upgrade, ()).with_timeout(self.timeout);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        if let Some(ping) = &mut self.ping
            && let Poll::Ready(_echoed_or_refused) = ping.poll_unpin(cx)
        {
            self.ping = None;
            self.is_answered = true;
        }
        if std::mem::take(&mut self.is_answered) {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(Answered));
        }
        Poll::Pending
    }
}
