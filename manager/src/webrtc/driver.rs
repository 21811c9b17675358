//! Moves the datagrams of one connection, and wakes its streams.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, channel::mpsc, future::BoxFuture};
use futures_timer::Delay;
use web_time::Instant;

use super::{
    core::{CloseReason, Connection, Event, Fingerprints, Path, StreamKey},
    listener::Registration,
    muxer::Stream,
    socket::{ReceiveBuffer, Sending, Socket},
};

/// Looks at the socket before others get their turn.
const MAX_ROUNDS: usize = 16;

/// Where datagrams come from.
pub(super) enum Source {
    /// The socket of this connection alone.
    Own(ReceiveBuffer),
    /// The listener, which has others as well.
    Listener(mpsc::Receiver<(Path, Bytes)>, Registration),
}

/// A connection as its streams see it.
pub(super) struct Shared(Mutex<Inner>);

pub(super) struct Inner {
    pub(super) core: Connection,
    /// Who moves the datagrams.
    driver: Option<Waker>,
    wakers: HashMap<StreamKey, Wakers>,
    opened: VecDeque<StreamKey>,
    secured: Option<(Fingerprints, StreamKey)>,
    closed: Option<CloseReason>,
}

#[derive(Default)]
struct Wakers {
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// To be called after the core was used: what streams have to say is sent, and what has happened is told.
    pub(super) fn after_use(&mut self) {
        self.tell();
        if (self.core.wants_to_send() || self.core.is_closed())
            && let Some(driver) = &self.driver
        {
            driver.wake_by_ref();
        }
    }

    pub(super) fn wait_to_read(&mut self, key: StreamKey, context: &Context<'_>) {
        self.wakers.entry(key).or_default().reader = Some(context.waker().clone());
    }

    pub(super) fn wait_to_write(&mut self, key: StreamKey, context: &Context<'_>) {
        self.wakers.entry(key).or_default().writer = Some(context.waker().clone());
    }

    pub(super) fn forget(&mut self, key: StreamKey) {
        self.wakers.remove(&key);
    }

    fn tell(&mut self) {
        while let Some(event) = self.core.poll_event() {
            match event {
                Event::Secured(fingerprints, key) => self.secured = Some((fingerprints, key)),
                Event::Opened(key) => {
                    self.opened.push_back(key);
                    self.wake_driver();
                }
                Event::Changed(key) => {
                    if let Some(wakers) = self.wakers.remove(&key) {
                        let both = [wakers.reader, wakers.writer];
                        both.into_iter().flatten().for_each(Waker::wake);
                    }
                }
                Event::CanOpen => self.wake_driver(),
                Event::Closed(reason) => {
                    tracing::debug!(%reason, "a WebRTC connection is closed");
                    self.closed = Some(reason);
                    self.wake_driver();
                }
            }
        }
    }

    fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }
}

/// What a connection needs to live. It is closed when this is dropped.
pub(super) struct Driver {
    shared: Arc<Shared>,
    socket: Arc<Socket>,
    source: Source,
    sending: Option<Sending>,
    writable: Option<BoxFuture<'static, ()>>,
    timer: Delay,
    due: Option<Instant>,
}

impl Driver {
    pub(super) fn new(core: Connection, socket: Arc<Socket>, source: Source) -> Self {
        Self {
            shared: Arc::new(Shared(Mutex::new(Inner {
                core,
                driver: None,
                wakers: HashMap::new(),
                opened: VecDeque::new(),
                secured: None,
                closed: None,
            }))),
            socket,
            source,
            sending: None,
            writable: None,
            timer: Delay::new(Duration::ZERO),
            due: None,
        }
    }

    /// Drives the connection until it is closed.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<CloseReason> {
        let shared = self.shared.clone();
        let inner = &mut *shared.lock();
        if !inner
            .driver
            .as_ref()
            .is_some_and(|driver| driver.will_wake(context.waker()))
        {
            inner.driver = Some(context.waker().clone());
        }
        loop {
            let is_idle = self.receive(&mut inner.core, context);
            let now = now();
            if inner.core.poll_timeout().is_some_and(|due| due <= now) {
                inner.core.handle_timeout(now);
            }
            inner.tell();
            self.send(&mut inner.core, now, context);
            inner.tell();
            if let Some(reason) = inner.closed {
                return Poll::Ready(reason);
            }
            if !is_idle {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let due = inner.core.poll_timeout();
            if self.due != due {
                self.due = due;
                let wait = due.map(|due| due.saturating_duration_since(now));
                self.timer.reset(wait.unwrap_or(Duration::from_secs(3600)));
            }
            if self.timer.poll_unpin(context).is_pending() {
                return Poll::Pending;
            }
            self.due = None;
        }
    }

    /// Whether everything was taken that has arrived.
    fn receive(&mut self, core: &mut Connection, context: &mut Context<'_>) -> bool {
        for _ in 0..MAX_ROUNDS {
            let now = now();
            match &mut self.source {
                Source::Own(buffer) => {
                    let each = |path: Path, datagram: &[u8]| {
                        // One address is dialled, from whichever of ours the system chooses.
                        let path = Path {
                            local: None,
                            ..path
                        };
                        core.handle_datagram(path, datagram, now);
                    };
                    match self.socket.poll_receive(context, buffer, each) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => {
                            tracing::debug!(%error, "cannot receive");
                            core.close();
                            return true;
                        }
                        Poll::Pending => return true,
                    }
                }
                Source::Listener(datagrams, _) => {
                    // As many as arrive together.
                    for _ in 0..16 {
                        match datagrams.poll_next_unpin(context) {
                            Poll::Ready(Some((path, datagram))) => {
                                core.handle_datagram(path, &datagram, now);
                            }
                            Poll::Ready(None) => {
                                core.close();
                                return true;
                            }
                            Poll::Pending => return true,
                        }
                    }
                }
            }
        }
        false
    }

    /// Sends what there is, as far as the system takes it.
    fn send(&mut self, core: &mut Connection, now: Instant, context: &mut Context<'_>) {
        loop {
            if let Some(writable) = &mut self.writable {
                if writable.poll_unpin(context).is_pending() {
                    return;
                }
                self.writable = None;
            }
            let next = self.sending.take();
            let Some(mut sending) = next.or_else(|| core.poll_transmit(now).map(Sending::from))
            else {
                return;
            };
            if self.socket.try_send(&mut sending).is_err() {
                self.sending = Some(sending);
                let socket = self.socket.clone();
                self.writable = Some(async move { socket.writable().await }.boxed());
            }
        }
    }

    /// Says goodbye once the peer has everything.
    pub(super) fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let is_flushed = self.shared.lock().core.is_flushed();
        if is_flushed {
            self.shared.lock().core.close();
        }
        self.poll(context).map(|_| ())
    }

    /// The stream for the Noise handshake, once there is one.
    pub(super) fn poll_secured(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<(Fingerprints, Stream), CloseReason>> {
        let driven = self.poll(context);
        let secured = self.shared.lock().secured.take();
        if let Some((fingerprints, key)) = secured {
            let stream = Stream::new(self.shared.clone(), key);
            return Poll::Ready(Ok((fingerprints, stream)));
        }
        driven.map(Err)
    }

    pub(super) fn on_authenticated(&mut self) {
        self.shared.lock().core.on_authenticated();
        if let Source::Listener(_, registration) = &self.source {
            registration.on_authenticated();
        }
    }

    /// A stream that the peer has opened.
    pub(super) fn poll_inbound(&mut self) -> Poll<io::Result<Stream>> {
        let mut inner = self.shared.lock();
        if let Some(key) = inner.opened.pop_front() {
            return Poll::Ready(Ok(Stream::new(self.shared.clone(), key)));
        }
        match inner.closed {
            Some(reason) => Poll::Ready(Err(closed(reason))),
            None => Poll::Pending,
        }
    }

    /// A stream of ours. Whoever drives the connection is woken when there is room for one.
    pub(super) fn poll_outbound(&mut self) -> Poll<io::Result<Stream>> {
        let now = now();
        let mut inner = self.shared.lock();
        let opened = inner.core.open(now);
        inner.after_use();
        drop(inner);
        match opened {
            Ok(Some(key)) => Poll::Ready(Ok(Stream::new(self.shared.clone(), key))),
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the adapters' clock, and web_time is std's here"
)]
pub(super) fn now() -> Instant {
    Instant::now()
}

pub(super) fn closed(reason: CloseReason) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, reason)
}

impl Drop for Driver {
    fn drop(&mut self) {
        let shared = self.shared.clone();
        let inner = &mut *shared.lock();
        inner.core.close();
        self.writable = None;
        let mut context = Context::from_waker(Waker::noop());
        let now = now();
        self.send(&mut inner.core, now, &mut context);
        inner.tell();
        inner.driver = None;
    }
}
