use std::{
    collections::VecDeque,
    fmt,
    task::{Context, Poll},
    time::Duration,
};

use either::Either;
use futures::{
    FutureExt as _, StreamExt as _,
    channel::oneshot,
    future::{self, AbortHandle, AbortRegistration, Abortable, BoxFuture},
    stream::FuturesUnordered,
};
use futures_timer::Delay;
use libp2p_core::upgrade::{DeniedUpgrade, ReadyUpgrade};
use libp2p_swarm::{
    ConnectionHandler, ConnectionHandlerEvent, Stream, StreamProtocol, StreamUpgradeError,
    SubstreamProtocol,
    handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
};
use smallvec::SmallVec;

use super::{
    CircuitEnd, CircuitId,
    behaviour::Executor,
    exchange::{self, Grant},
    pump::{Pump, Terms},
};
use crate::{
    HOP_PROTOCOL_NAME, ProtocolViolation, STOP_PROTOCOL_NAME, StatusCode,
    message::{HopRequest, HopResponse, StopRequest},
    protocol::ReadError,
};

/// Requests of one connection that may wait at the same time, for their last byte or for a decision. Stock clients make at
/// most 10 at once; a stream beyond is reset.
const MAX_REQUESTS: usize = 16;

/// Answers of one connection that may be on their way at the same time.
const MAX_ANSWERS: usize = 16;

/// A request of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestId(u64);

/// What the behaviour has decided.
pub enum Command {
    /// Offer the hop protocol, or not.
    Offer(bool),
    /// The connection carries a reservation, or not.
    Hold(bool),
    /// Answer a `RESERVE`.
    Grant { request: RequestId, grant: Grant },
    /// Answer anything.
    Refuse {
        request: RequestId,
        status: StatusCode,
    },
    /// Give no answer.
    Ignore { request: RequestId },
    /// Ask this peer to take a circuit.
    Stop {
        circuit: CircuitId,
        request: StopRequest,
    },
    /// Ask no longer: nobody waits for the answer.
    Cancel(CircuitId),
    /// Answer a `CONNECT` and move the bytes.
    Bridge {
        request: RequestId,
        circuit: CircuitId,
        destination: Stream,
        terms: Terms,
    },
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offer(offer) => f.debug_tuple("Offer").field(offer).finish(),
            Self::Hold(held) => f.debug_tuple("Hold").field(held).finish(),
            Self::Grant { request, .. } => f.debug_tuple("Grant").field(request).finish(),
            Self::Refuse { request, status } => f
                .debug_tuple("Refuse")
                .field(request)
                .field(status)
                .finish(),
            Self::Ignore { request } => f.debug_tuple("Ignore").field(request).finish(),
            Self::Stop { circuit, .. } => f.debug_tuple("Stop").field(circuit).finish(),
            Self::Cancel(circuit) => f.debug_tuple("Cancel").field(circuit).finish(),
            Self::Bridge { circuit, .. } => f.debug_tuple("Bridge").field(circuit).finish(),
        }
    }
}

/// What happened on a connection.
#[derive(Debug)]
pub enum Report {
    /// The peer asks.
    Request { request: RequestId, hop: HopRequest },
    /// The peer sent what is no request. It was told so.
    Violation(ProtocolViolation),
    /// The peer takes a circuit, or does not.
    Stop {
        circuit: CircuitId,
        result: Result<Stream, StatusCode>,
    },
    /// A circuit that this peer opened is over.
    Ended { circuit: CircuitId, end: CircuitEnd },
}

/// What a task of the handler came to.
enum Done {
    Read(Option<(Stream, Result<HopRequest, ReadError>)>),
    Answered,
    Stopped {
        circuit: CircuitId,
        result: Result<Stream, StatusCode>,
    },
    Ended {
        circuit: CircuitId,
        end: CircuitEnd,
    },
}

/// What is to be asked over a stream, unless it is cancelled by then.
type Asking = (CircuitId, StopRequest, AbortRegistration);

type Action = ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, Asking, Report>;

/// The streams of one connection: reads requests, writes answers, asks destinations, moves bytes.
pub struct Handler {
    offered: bool,
    held: bool,
    timeout: Duration,
    executor: Option<Executor>,
    next_request: u64,
    reading: usize,
    answering: usize,
    /// Streams whose request is being decided, at most [`MAX_REQUESTS`].
    waiting: SmallVec<[(RequestId, Stream); 1]>,
    /// Exchanges with this destination, as many as it may have circuits.
    stopping: SmallVec<[(CircuitId, AbortHandle); 1]>,
    /// Everything that takes time. `None` while nothing does: an idle connection holds no memory for it.
    tasks: Option<FuturesUnordered<BoxFuture<'static, Done>>>,
    actions: VecDeque<Action>,
}

impl Handler {
    pub(super) fn new(offered: bool, timeout: Duration, executor: Option<Executor>) -> Self {
        Self {
            offered,
            held: false,
            timeout,
            executor,
            next_request: 0,
            reading: 0,
            answering: 0,
            waiting: SmallVec::new(),
            stopping: SmallVec::new(),
            tasks: None,
            actions: VecDeque::new(),
        }
    }

    fn spawn(&mut self, task: impl Future<Output = Done> + Send + 'static) {
        self.tasks
            .get_or_insert_with(FuturesUnordered::new)
            .push(task.boxed());
    }

    fn on_inbound(&mut self, stream: Stream) {
        if self.reading + self.waiting.len() >= MAX_REQUESTS {
            tracing::debug!("too many requests at once on this connection: one is reset");
            return;
        }
        self.reading += 1;
        let read = within(self.timeout, exchange::read_request(stream));
        self.spawn(read.map(Done::Read));
    }

    fn on_read(&mut self, read: Option<(Stream, Result<HopRequest, ReadError>)>) -> Option<Report> {
        self.reading -= 1;
        // Too slow.
        let (stream, request) = read?;
        match request {
            Ok(hop) => {
                let request = RequestId(self.next_request);
                self.next_request += 1;
                self.waiting.push((request, stream));
                Some(Report::Request { request, hop })
            }
            Err(ReadError::Violation(violation)) => {
                self.answer(stream, HopResponse::Refused(violation.status()));
                Some(Report::Violation(violation))
            }
            Err(ReadError::Io(error)) => {
                tracing::debug!(%error, "a request broke off");
                None
            }
        }
    }

    fn answer(&mut self, stream: Stream, response: HopResponse) {
        if self.answering >= MAX_ANSWERS {
            tracing::debug!("the peer does not read its answers: one is reset");
            return;
        }
        self.answering += 1;
        let answer = within(self.timeout, exchange::answer(stream, response));
        self.spawn(answer.map(|_| Done::Answered));
    }

    fn waiting(&mut self, request: RequestId) -> Option<Stream> {
        let at = self.waiting.iter().position(|(id, _)| *id == request)?;
        Some(self.waiting.remove(at).1)
    }

    fn bridge(&mut self, circuit: CircuitId, source: Stream, destination: Stream, terms: Terms) {
        let timeout = self.timeout;
        let circuit_runs = async move {
            let (limit, mut source) = (terms.limit, source);
            let accepted = exchange::accept_circuit(&mut source, limit);
            match within(timeout, accepted).await {
                Some(Ok(())) => Pump::new(source, destination, terms).await,
                Some(Err(error)) => CircuitEnd::SourceLost(error.kind()),
                None => CircuitEnd::SourceLost(std::io::ErrorKind::TimedOut),
            }
        };
        let Some(executor) = &self.executor else {
            self.spawn(circuit_runs.map(move |end| Done::Ended { circuit, end }));
            return;
        };
        let (tell, told) = oneshot::channel();
        let elsewhere = circuit_runs.map(|end| {
            // Without a listener the connection is gone, and the behaviour knows.
            let _ = tell.send(end);
        });
        executor.spawn(elsewhere.boxed());
        self.spawn(told.map(move |end| Done::Ended {
            circuit,
            end: end.unwrap_or(CircuitEnd::ConnectionClosed),
        }));
    }

    fn stopped(&mut self, circuit: CircuitId, result: Result<Stream, StatusCode>) -> Report {
        self.stopping.retain(|(other, _)| *other != circuit);
        Report::Stop { circuit, result }
    }

    fn on_done(&mut self, done: Done) -> Option<Report> {
        match done {
            Done::Read(read) => self.on_read(read),
            Done::Answered => {
                self.answering -= 1;
                None
            }
            Done::Stopped { circuit, result } => Some(self.stopped(circuit, result)),
            Done::Ended { circuit, end } => Some(Report::Ended { circuit, end }),
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Command;
    type ToBehaviour = Report;
    type InboundProtocol = Either<ReadyUpgrade<StreamProtocol>, DeniedUpgrade>;
    type InboundOpenInfo = ();
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundOpenInfo = Asking;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        let protocol = if self.offered {
            Either::Left(ReadyUpgrade::new(HOP_PROTOCOL_NAME))
        } else {
            Either::Right(DeniedUpgrade)
        };
        SubstreamProtocol::new(protocol, ())
    }

    /// "The expectation is that the server will make a best effort attempt to maintain the connection for the duration of any
    /// reservations". Streams look after themselves.
    /// <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#reservation>
    fn connection_keep_alive(&self) -> bool {
        self.held
    }

    fn on_behaviour_event(&mut self, command: Command) {
        match command {
            Command::Offer(offered) => self.offered = offered,
            Command::Hold(held) => self.held = held,
            Command::Grant { request, grant } => {
                if let Some(stream) = self.waiting(request) {
                    self.answer(stream, grant.response());
                }
            }
            Command::Refuse { request, status } => {
                if let Some(stream) = self.waiting(request) {
                    self.answer(stream, HopResponse::Refused(status));
                }
            }
            Command::Ignore { request } => drop(self.waiting(request)),
            Command::Stop { circuit, request } => {
                let (handle, registration) = AbortHandle::new_pair();
                self.stopping.push((circuit, handle));
                let protocol = SubstreamProtocol::new(
                    ReadyUpgrade::new(STOP_PROTOCOL_NAME),
                    (circuit, request, registration),
                )
                .with_timeout(self.timeout);
                self.actions
                    .push_back(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
            }
            Command::Cancel(circuit) => {
                let asked = self.stopping.iter().find(|(other, _)| *other == circuit);
                if let Some((_, handle)) = asked {
                    handle.abort();
                }
            }
            Command::Bridge {
                request,
                circuit,
                destination,
                terms,
            } => match self.waiting(request) {
                Some(source) => self.bridge(circuit, source, destination, terms),
                None => {
                    let end = CircuitEnd::SourceLost(std::io::ErrorKind::NotConnected);
                    let ended = Report::Ended { circuit, end };
                    self.actions
                        .push_back(ConnectionHandlerEvent::NotifyBehaviour(ended));
                }
            },
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<
            '_,
            Self::InboundProtocol,
            Self::OutboundProtocol,
            (),
            Self::OutboundOpenInfo,
        >,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: future::Either::Left(stream),
                ..
            }) => self.on_inbound(stream),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: (circuit, request, registration),
            }) => {
                let stop = within(self.timeout, exchange::stop(stream, request));
                let stop = Abortable::new(stop, registration);
                self.spawn(stop.map(move |result| {
                    Done::Stopped {
                        circuit,
                        // It is cancelled, or the destination does not answer.
                        result: result
                            .ok()
                            .flatten()
                            .unwrap_or(Err(StatusCode::ConnectionFailed)),
                    }
                }));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError {
                info: (circuit, ..),
                error,
            }) => {
                let error: StreamUpgradeError<_> = error;
                tracing::debug!(%circuit, ?error, "the destination offers no stop protocol");
                let report = self.stopped(circuit, Err(StatusCode::ConnectionFailed));
                self.actions
                    .push_back(ConnectionHandlerEvent::NotifyBehaviour(report));
            }
            _ => {}
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Poll::Ready(action);
            }
            let Some(tasks) = &mut self.tasks else {
                return Poll::Pending;
            };
            match tasks.poll_next_unpin(cx) {
                Poll::Ready(Some(done)) => {
                    if let Some(report) = self.on_done(done) {
                        return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(report));
                    }
                }
                Poll::Ready(None) => {
                    self.tasks = None;
                    return Poll::Pending;
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// `None` if it takes longer.
async fn within<T>(timeout: Duration, work: impl Future<Output = T>) -> Option<T> {
    futures::pin_mut!(work);
    match future::select(work, Delay::new(timeout)).await {
        future::Either::Left((done, _)) => Some(done),
        future::Either::Right(_) => None,
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler")
            .field("offered", &self.offered)
            .field("held", &self.held)
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}
