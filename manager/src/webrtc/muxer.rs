//! The connection and its streams as libp2p has them.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};

use super::{
    core::StreamKey,
    driver::{Driver, Shared, closed, now},
};

/// A connection whose peer is known.
pub(super) struct Muxer {
    driver: Driver,
}

impl Muxer {
    pub(super) fn new(driver: Driver) -> Self {
        Self { driver }
    }
}

impl StreamMuxer for Muxer {
    type Substream = Stream;
    type Error = io::Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        self.driver.poll_inbound()
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        self.driver.poll_outbound()
    }

    fn poll_close(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Self::Error>> {
        self.driver.poll_close(context).map(Ok)
    }

    /// The swarm polls this always, and first.
    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        self.driver.poll(context).map(|reason| Err(closed(reason)))
    }
}

/// A stream. Who drops it before its end resets it.
pub(super) struct Stream {
    shared: Arc<Shared>,
    key: StreamKey,
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>, key: StreamKey) -> Self {
        Self { shared, key }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.shared.lock();
        let read = inner.core.read(self.key, buffer, now());
        if read.is_none() {
            inner.wait_to_read(self.key, context);
        }
        inner.after_use();
        read.map_or(Poll::Pending, Poll::Ready)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.shared.lock();
        let written = inner.core.write(self.key, data);
        if written.is_none() {
            inner.wait_to_write(self.key, context);
        }
        inner.after_use();
        written.map_or(Poll::Pending, Poll::Ready)
    }

    /// What is written goes out by itself.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Does not wait for the peer to have read it all, which some never say.
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.shared.lock();
        let ended = inner.core.end(self.key, now());
        inner.after_use();
        Poll::Ready(ended)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.forget(self.key);
        inner.core.drop_stream(self.key, now());
        inner.after_use();
    }
}
