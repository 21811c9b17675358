//! Connections that end soon after they are closed, whatever their peer does.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::FutureExt as _;
use futures_timer::Delay;
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};

/// How long a multiplexer may take to say goodbye. A peer that is gone takes nothing more, and the swarm counts the connection until
/// the system gives it up.
const PATIENCE: Duration = Duration::from_secs(2);

/// A multiplexer whose closing ends in time.
pub(crate) struct EndsInTime<M> {
    muxer: M,
    end: Option<Delay>,
}

impl<M> EndsInTime<M> {
    pub(crate) fn new(muxer: M) -> Self {
        Self { muxer, end: None }
    }
}

impl<M: StreamMuxer + Unpin> StreamMuxer for EndsInTime<M> {
    type Substream = M::Substream;
    type Error = M::Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        Pin::new(&mut self.muxer).poll_inbound(context)
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        Pin::new(&mut self.muxer).poll_outbound(context)
    }

    fn poll_close(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Self::Error>> {
        if let Poll::Ready(closed) = Pin::new(&mut self.muxer).poll_close(context) {
            return Poll::Ready(closed);
        }
        let end = self.end.get_or_insert_with(|| Delay::new(PATIENCE));
        ready!(end.poll_unpin(context));
        tracing::debug!("a connection is dropped that could not say goodbye");
        Poll::Ready(Ok(()))
    }

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.muxer).poll(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures::{executor::block_on, future};

    use super::*;

    /// A peer that takes nothing.
    struct Stuck;

    impl StreamMuxer for Stuck {
        type Substream = libp2p::core::muxing::SubstreamBox;
        type Error = io::Error;

        fn poll_inbound(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<io::Result<Self::Substream>> {
            Poll::Pending
        }

        fn poll_outbound(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<io::Result<Self::Substream>> {
            Poll::Pending
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
            Poll::Pending
        }
    }

    #[test]
    fn what_cannot_be_closed_is_given_up() {
        let mut muxer = EndsInTime::new(Stuck);
        block_on(future::poll_fn(|context| {
            Pin::new(&mut muxer).poll_close(context)
        }))
        .unwrap();
    }
}
