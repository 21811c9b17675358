//! The client's side of one direct connection: reservations, circuits in both directions, pings.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt, io,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, Either, select},
    stream::FuturesUnordered,
};
use futures_timer::Delay;
use libp2p_core::upgrade::ReadyUpgrade;
use libp2p_identity::PeerId;
use libp2p_swarm::{
    ConnectionHandler, ConnectionHandlerEvent, Stream, StreamProtocol, StreamUpgradeError,
    SubstreamProtocol,
    handler::{
        ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
        ProtocolsChange,
    },
};

use super::{
    LossReason,
    exchange::{self, ExchangeError},
    loss,
    transport::{CircuitError, CircuitReply, Connection},
};
use crate::{
    CircuitLimit, HOP_PROTOCOL_NAME, STOP_PROTOCOL_NAME,
    address::{is_relayed, without_peer},
    core::auto_relay::Grant,
    message::Reservation,
};

const PING_PROTOCOL_NAME: StreamProtocol = StreamProtocol::new("/ipfs/ping/1.0.0");

/// Circuits that are being set up over one connection, in each direction.
const MAX_CIRCUITS: usize = 32;

/// Where a relay does not say when a reservation ends, or says that it is over already: one of
/// both clocks is wrong, and it is renewed soon.
const ASSUMED_LIFETIME: Duration = Duration::from_secs(2 * 60);

/// What the behaviour wants of a connection.
pub enum Command {
    /// Ask for a reservation, or renew it.
    Reserve,
    /// Take no more circuits from this relay.
    Release,
    /// Measure the round trip.
    Probe,
    /// Open a circuit.
    Connect {
        destination: PeerId,
        reply: CircuitReply,
    },
}

/// What happened on a connection.
pub enum Report {
    /// The peer says that it relays, or no longer does.
    Relays(bool),
    Granted(Grant),
    Refused(LossReason),
    /// `None`: it answered that it knows no ping.
    Pong(Option<Duration>),
    /// A circuit that this node asked for is open.
    Opened {
        destination: PeerId,
        limit: Option<CircuitLimit>,
        circuit: Connection,
        reply: CircuitReply,
    },
    /// A circuit that another node asked for is open.
    Incoming {
        source: PeerId,
        limit: Option<CircuitLimit>,
        circuit: Connection,
    },
}

/// Why an outbound stream is opened.
pub enum Task {
    Reserve,
    Probe,
    Connect {
        destination: PeerId,
        reply: CircuitReply,
    },
}

pub struct Handler {
    request_timeout: Duration,
    probe_timeout: Duration,
    /// Whether a reservation is held, or asked for: then circuits are taken.
    reserved: bool,
    /// Streams to open.
    tasks: VecDeque<Task>,
    reports: VecDeque<Report>,
    running: FuturesUnordered<BoxFuture<'static, Done>>,
    inbound: usize,
    outbound: usize,
}

/// How a running exchange ended.
enum Done {
    Nothing,
    Report(Report),
    Inbound(Option<Report>),
    Outbound(Option<Report>),
}

impl Handler {
    pub(crate) fn new(request_timeout: Duration, probe_timeout: Duration) -> Self {
        Self {
            request_timeout,
            probe_timeout,
            reserved: false,
            tasks: VecDeque::new(),
            reports: VecDeque::new(),
            running: FuturesUnordered::new(),
            inbound: 0,
            outbound: 0,
        }
    }

    /// The relay asks the destination first: two requests, each up to as long as a reservation.
    fn circuit_timeout(&self) -> Duration {
        2 * self.request_timeout
    }

    fn on_stream(&mut self, task: Task, mut stream: Stream) {
        match task {
            Task::Reserve => {
                let exchange = within(self.request_timeout, exchange::reserve(stream));
                self.running.push(
                    exchange
                        .map(|result| {
                            Done::Report(match result {
                                Ok((reservation, limit)) => {
                                    Report::Granted(grant(reservation, limit, wall_clock()))
                                }
                                Err(error) => Report::Refused(error.into()),
                            })
                        })
                        .boxed(),
                );
            }
            Task::Probe => {
                // A connection is not worth keeping because its round trip is measured.
                stream.ignore_for_keep_alive();
                let exchange = within(self.probe_timeout, exchange::ping(stream));
                self.running.push(
                    exchange
                        .map(|result| match result {
                            Ok(rtt) => Done::Report(Report::Pong(Some(rtt))),
                            Err(ExchangeError::Io(error))
                                if loss::from_io_error(&error) == LossReason::Unsupported =>
                            {
                                Done::Report(Report::Pong(None))
                            }
                            // Silence says it: the core counts what did not come.
                            Err(_) => Done::Nothing,
                        })
                        .boxed(),
                );
            }
            Task::Connect { destination, reply } => {
                let exchange = within(
                    self.circuit_timeout(),
                    exchange::connect(stream, destination),
                );
                self.running.push(
                    exchange
                        .map(move |result| {
                            Done::Outbound(match result {
                                Ok((stream, limit)) => Some(Report::Opened {
                                    destination,
                                    limit,
                                    circuit: Connection::new(stream),
                                    reply,
                                }),
                                Err(error) => {
                                    // Nobody may wait for it any more.
                                    let _ = reply.send(Err(error.into()));
                                    None
                                }
                            })
                        })
                        .boxed(),
                );
            }
        }
    }

    fn on_no_stream(&mut self, task: Task, error: StreamUpgradeError<Infallible>) {
        let error = match error {
            StreamUpgradeError::Timeout => ExchangeError::Io(io::ErrorKind::TimedOut.into()),
            StreamUpgradeError::NegotiationFailed => {
                let refused = libp2p_core::upgrade::NegotiationError::Failed;
                ExchangeError::Io(io::Error::other(refused))
            }
            StreamUpgradeError::Io(error) => ExchangeError::Io(error),
            StreamUpgradeError::Apply(never) => match never {},
        };
        match task {
            Task::Reserve => self.reports.push_back(Report::Refused(error.into())),
            Task::Probe => {
                if LossReason::from(error) == LossReason::Unsupported {
                    self.reports.push_back(Report::Pong(None));
                }
            }
            Task::Connect { reply, .. } => {
                self.outbound = self.outbound.saturating_sub(1);
                let _ = reply.send(Err(error.into()));
            }
        }
    }

    fn on_inbound(&mut self, stream: Stream) {
        if self.inbound >= MAX_CIRCUITS {
            tracing::debug!("a relay brings too many circuits at once");
            return;
        }
        self.inbound += 1;
        let exchange = within(
            self.request_timeout,
            exchange::accept(stream, self.reserved),
        );
        self.running.push(
            exchange
                .map(|result| {
                    Done::Inbound(match result {
                        Ok((stream, request)) => Some(Report::Incoming {
                            source: request.source,
                            limit: request.limit,
                            circuit: Connection::new(stream),
                        }),
                        Err(error) => {
                            tracing::debug!(%error, "no circuit from a relay");
                            None
                        }
                    })
                })
                .boxed(),
        );
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Command;
    type ToBehaviour = Report;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundOpenInfo = Task;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(STOP_PROTOCOL_NAME), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.reserved
    }

    fn on_behaviour_event(&mut self, command: Command) {
        match command {
            Command::Reserve => {
                // The relay may bring circuits before its answer is read.
                self.reserved = true;
                self.tasks.push_back(Task::Reserve);
            }
            Command::Release => self.reserved = false,
            Command::Probe => self.tasks.push_back(Task::Probe),
            Command::Connect { destination, reply } => {
                if self.outbound >= MAX_CIRCUITS {
                    let _ = reply.send(Err(CircuitError::TooMany));
                } else {
                    self.outbound += 1;
                    self.tasks.push_back(Task::Connect { destination, reply });
                }
            }
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol, (), Task>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol, ..
            }) => self.on_inbound(protocol),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol,
                info,
            }) => self.on_stream(info, protocol),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                self.on_no_stream(info, error);
            }
            ConnectionEvent::RemoteProtocolsChange(change) => {
                let (mut protocols, relays) = match change {
                    ProtocolsChange::Added(added) => (Either::Left(added), true),
                    ProtocolsChange::Removed(removed) => (Either::Right(removed), false),
                };
                let hop = match &mut protocols {
                    Either::Left(added) => added.any(|name| *name == HOP_PROTOCOL_NAME),
                    Either::Right(removed) => removed.any(|name| *name == HOP_PROTOCOL_NAME),
                };
                if hop {
                    self.reports.push_back(Report::Relays(relays));
                }
            }
            _ => {}
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Task, Report>> {
        loop {
            if let Some(report) = self.reports.pop_front() {
                return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(report));
            }
            if let Some(task) = self.tasks.pop_front() {
                let (protocol, timeout) = match &task {
                    Task::Reserve => (HOP_PROTOCOL_NAME, self.request_timeout),
                    Task::Connect { .. } => (HOP_PROTOCOL_NAME, self.circuit_timeout()),
                    Task::Probe => (PING_PROTOCOL_NAME, self.probe_timeout),
                };
                return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                    protocol: SubstreamProtocol::new(ReadyUpgrade::new(protocol), task)
                        .with_timeout(timeout),
                });
            }
            match self.running.poll_next_unpin(cx) {
                Poll::Ready(Some(done)) => match done {
                    Done::Nothing => {}
                    Done::Report(report) => self.reports.push_back(report),
                    Done::Inbound(report) => {
                        self.inbound = self.inbound.saturating_sub(1);
                        self.reports.extend(report);
                    }
                    Done::Outbound(report) => {
                        self.outbound = self.outbound.saturating_sub(1);
                        self.reports.extend(report);
                    }
                },
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// Ends an exchange after some time.
async fn within<T>(
    limit: Duration,
    exchange: impl Future<Output = Result<T, ExchangeError>>,
) -> Result<T, ExchangeError> {
    let exchange = std::pin::pin!(exchange);
    match select(exchange, Delay::new(limit)).await {
        Either::Left((result, _)) => result,
        Either::Right(_) => Err(ExchangeError::Io(io::ErrorKind::TimedOut.into())),
    }
}

/// Reads what a relay granted, which it may have made up.
fn grant(reservation: Reservation, limit: Option<CircuitLimit>, now: SystemTime) -> Grant {
    let lifetime = reservation
        .expires
        .and_then(|expires| UNIX_EPOCH.checked_add(Duration::from_secs(expires)))
        .and_then(|expires| expires.duration_since(now).ok())
        .filter(|lifetime| !lifetime.is_zero())
        .unwrap_or(ASSUMED_LIFETIME);
    let addresses = reservation
        .addresses
        .into_iter()
        .filter(|address| !is_relayed(address))
        .map(|address| without_peer(&address))
        .filter(|address| !address.is_empty())
        .collect();
    Grant {
        limit,
        lifetime,
        addresses,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a reservation's end is a time of day"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reserve => "Reserve",
            Self::Release => "Release",
            Self::Probe => "Probe",
            Self::Connect { .. } => "Connect",
        })
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relays(relays) => f.debug_tuple("Relays").field(relays).finish(),
            Self::Granted(grant) => f.debug_tuple("Granted").field(grant).finish(),
            Self::Refused(why) => f.debug_tuple("Refused").field(why).finish(),
            Self::Pong(rtt) => f.debug_tuple("Pong").field(rtt).finish(),
            Self::Opened { destination, .. } => f.debug_tuple("Opened").field(destination).finish(),
            Self::Incoming { source, .. } => f.debug_tuple("Incoming").field(source).finish(),
        }
    }
}
