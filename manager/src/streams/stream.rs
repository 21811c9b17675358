use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    PeerId, StreamProtocol,
    swarm::{self, ConnectionId},
};
use tokio::sync::mpsc;

use crate::strategy::Path;

/// A stream to a peer on a known connection.
///
/// It stays on its connection: when that closes (a relayed one does, at latest 30 s after the direct
/// one is up), reads and writes fail, and the application opens another stream.
#[derive(Debug)]
pub struct Stream {
    inner: swarm::Stream,
    negotiation: Negotiation,
    connection: ConnectionId,
    path: Path,
    _counted: Counted,
}

/// Whether the peer has taken the protocol, which a stream of ours learns with what it reads first. multistream-select 0.14 panics when a stream is
/// used after that has failed, so it is not.
#[derive(Debug, Clone, Copy)]
enum Negotiation {
    Open,
    Done,
    Failed(io::ErrorKind),
}

impl Negotiation {
    fn check(self) -> io::Result<()> {
        match self {
            Self::Failed(kind) => Err(kind.into()),
            Self::Open | Self::Done => Ok(()),
        }
    }

    /// After a read.
    fn learn(&mut self, read: &io::Result<usize>) {
        if matches!(self, Self::Open) {
            *self = match read {
                Ok(_) => Self::Done,
                Err(error) => Self::Failed(error.kind()),
            };
        }
    }
}

impl Stream {
    pub(super) fn new(
        inner: swarm::Stream,
        connection: ConnectionId,
        path: Path,
        counted: Counted,
    ) -> Self {
        Self {
            inner,
            negotiation: Negotiation::Open,
            connection,
            path,
            _counted: counted,
        }
    }

    /// The connection that carries the stream.
    #[must_use]
    pub fn connection(&self) -> ConnectionId {
        self.connection
    }

    /// How that connection reaches the peer.
    #[must_use]
    pub fn path(&self) -> Path {
        self.path
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.negotiation.check()?;
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, buf));
        self.negotiation.learn(&read);
        Poll::Ready(read)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.negotiation.check()?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.negotiation.check()?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // There is nothing left to close.
        if self.negotiation.check().is_err() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// One stream in the count of its connection, for as long as this lives.
#[derive(Debug)]
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Streams that peers open for one protocol. Dropping it withdraws the protocol.
#[derive(Debug)]
pub struct IncomingStreams {
    pub(crate) protocol: StreamProtocol,
    pub(crate) receiver: mpsc::Receiver<(PeerId, Stream)>,
}

impl IncomingStreams {
    /// The protocol.
    #[must_use]
    pub fn protocol(&self) -> &StreamProtocol {
        &self.protocol
    }
}

impl futures::Stream for IncomingStreams {
    type Item = (PeerId, Stream);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(cx)
    }
}
