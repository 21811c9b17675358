use std::{
    collections::VecDeque,
    task::{Context, Poll},
    time::Duration,
};

use either::Either;
use futures::{
    FutureExt as _, StreamExt as _,
    future::{self, AbortHandle, Abortable, BoxFuture},
    stream::FuturesUnordered,
};
use futures_timer::Delay;
use libp2p_core::upgrade::{DeniedUpgrade, ReadyUpgrade};
use libp2p_swarm::{
    ConnectionHandler, ConnectionHandlerEvent, Stream, StreamProtocol, StreamUpgradeError,
    SubstreamProtocol,
    handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
};

use super::protocol::{self, EARLY_PROTOCOL_NAME, ExchangeError, PROTOCOL_NAME};
use crate::{Role, core::punch::Opener, message::Message};

/// Exchanges that the peer has begun and not finished. One is what the protocol needs; a stream
/// beyond is reset.
const MAX_INBOUND: usize = 2;

/// Exchanges of ours that are not finished: one, its farewell, and one that just broke.
const MAX_OUTBOUND: usize = 4;

/// What the behaviour has decided.
#[derive(Debug)]
pub enum Command {
    /// Open a stream and send a `CONNECT`.
    Connect { number: u32, message: Message },
    /// Answer the peer's `CONNECT`.
    Reply { number: u32, message: Message },
    /// End our own exchange.
    Sync { number: u32, message: Message },
    /// Open a stream, send this, and that is all.
    Farewell { message: Message },
    /// Reset a stream.
    Abandon { opener: Opener, number: u32 },
    /// The connection need not live for our sake.
    Release,
    /// It need, again.
    Hold,
}

/// What happened on a relayed connection.
#[derive(Debug)]
pub enum Report {
    /// The peer opened an exchange.
    Opened { number: u32, message: Message },
    /// Our `CONNECT` is answered.
    Answered {
        number: u32,
        message: Message,
        round_trip: Duration,
    },
    /// The peer ends its exchange.
    Synchronised { number: u32, message: Message },
    /// An exchange broke off.
    Failed {
        opener: Opener,
        number: u32,
        error: ExchangeError,
    },
}

/// What a task came to; `None` if it was abandoned.
enum Done {
    Opened(u32, Result<(Stream, Message), ExchangeError>),
    Answered(u32, Result<(Stream, Message, Duration), ExchangeError>),
    Synchronised(u32, Result<Message, ExchangeError>),
    Finished,
    Abandoned(Opener, u32),
}

/// What to say on a stream that is being opened.
#[derive(Debug)]
pub enum Asking {
    Connect { number: u32, message: Message },
    Farewell { message: Message },
}

type Action = ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, Asking, Report>;

/// The exchanges on one connection. Direct ones have none.
pub struct Handler {
    /// `None` on a direct connection.
    role: Option<Role>,
    early: bool,
    held: bool,
    timeout: Duration,
    next_inbound: u32,
    /// Exchanges of the peer that wait for our answer, at most [`MAX_INBOUND`].
    inbound: Vec<(u32, Stream)>,
    /// Exchanges of ours that wait for the `SYNC`, at most [`MAX_OUTBOUND`].
    outbound: Vec<(u32, Stream)>,
    /// Streams that are being opened for ours, which may be given up.
    opening: Vec<u32>,
    /// What ends the tasks below early.
    running: Vec<(Opener, u32, AbortHandle)>,
    tasks: FuturesUnordered<BoxFuture<'static, Done>>,
    actions: VecDeque<Action>,
}

impl Handler {
    /// For a relayed connection, on which this node has that part.
    pub(super) fn relayed(role: Role, early: bool, timeout: Duration) -> Self {
        Self {
            role: Some(role),
            early,
            held: true,
            timeout,
            next_inbound: 0,
            inbound: Vec::new(),
            outbound: Vec::new(),
            opening: Vec::new(),
            running: Vec::new(),
            tasks: FuturesUnordered::new(),
            actions: VecDeque::new(),
        }
    }

    /// For a direct connection, which needs no exchange.
    pub(super) fn direct() -> Self {
        Self {
            role: None,
            held: false,
            ..Self::relayed(Role::Initiator, false, Duration::ZERO)
        }
    }

    /// The protocol that the initiator opens, or the one that the responder does.
    fn protocol_of(role: Role) -> StreamProtocol {
        match role {
            Role::Initiator => PROTOCOL_NAME,
            Role::Responder => EARLY_PROTOCOL_NAME,
        }
    }

    fn request(&mut self, asking: Asking) {
        let Some(role) = self.role else {
            return;
        };
        let upgrade = ReadyUpgrade::new(Self::protocol_of(role));
        let protocol = SubstreamProtocol::new(upgrade, asking).with_timeout(self.timeout);
        self.actions
            .push_back(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
    }

    /// Runs a part of an exchange within its time, unless it is abandoned.
    fn run<T: 'static>(
        &mut self,
        opener: Opener,
        number: u32,
        part: impl Future<Output = Result<T, ExchangeError>> + Send + 'static,
        done: impl FnOnce(Result<T, ExchangeError>) -> Done + Send + 'static,
    ) {
        let (handle, registration) = AbortHandle::new_pair();
        self.running.push((opener, number, handle));
        let timeout = Delay::new(self.timeout);
        let within = async move {
            futures::pin_mut!(part);
            match future::select(part, timeout).await {
                future::Either::Left((result, _)) => result,
                future::Either::Right(_) => Err(ExchangeError::TimedOut),
            }
        };
        let task = Abortable::new(within, registration).map(move |result| match result {
            Ok(result) => done(result),
            Err(_) => Done::Abandoned(opener, number),
        });
        self.tasks.push(task.boxed());
    }

    fn on_done(&mut self, done: Done) -> Option<Report> {
        let (opener, number) = match &done {
            Done::Opened(number, _) | Done::Synchronised(number, _) => (Opener::Peer, *number),
            Done::Answered(number, _) => (Opener::Us, *number),
            Done::Abandoned(opener, number) => (*opener, *number),
            Done::Finished => return None,
        };
        self.running
            .retain(|(other, n, _)| (*other, *n) != (opener, number));
        let error = match done {
            Done::Opened(number, Ok((stream, message))) => {
                self.inbound.push((number, stream));
                return Some(Report::Opened { number, message });
            }
            Done::Answered(number, Ok((stream, message, round_trip))) => {
                self.outbound.push((number, stream));
                return Some(Report::Answered {
                    number,
                    message,
                    round_trip,
                });
            }
            Done::Synchronised(number, Ok(message)) => {
                return Some(Report::Synchronised { number, message });
            }
            Done::Opened(_, Err(error))
            | Done::Answered(_, Err(error))
            | Done::Synchronised(_, Err(error)) => error,
            Done::Abandoned(..) | Done::Finished => return None,
        };
        Some(Report::Failed {
            opener,
            number,
            error,
        })
    }

    fn on_inbound(&mut self, stream: Stream) {
        let waiting = self.running.iter().filter(|(o, ..)| *o == Opener::Peer);
        if waiting.count() + self.inbound.len() >= MAX_INBOUND {
            tracing::debug!("too many exchanges at once on this connection: one is reset");
            return;
        }
        let number = self.next_inbound;
        self.next_inbound = self.next_inbound.wrapping_add(1);
        let accept = protocol::accept(stream);
        self.run(Opener::Peer, number, accept, move |result| {
            Done::Opened(number, result)
        });
    }

    fn on_outbound(&mut self, stream: Stream, asking: Asking) {
        match asking {
            Asking::Connect { number, message } => {
                let Some(at) = self.opening.iter().position(|other| *other == number) else {
                    // Abandoned meanwhile.
                    return;
                };
                self.opening.remove(at);
                let connect = protocol::connect(stream, message);
                self.run(Opener::Us, number, connect, move |result| {
                    Done::Answered(number, result)
                });
            }
            Asking::Farewell { message } => self.finish(stream, message),
        }
    }

    fn finish(&mut self, stream: Stream, message: Message) {
        let finish = protocol::finish(stream, message);
        let timeout = Delay::new(self.timeout);
        let task = async move {
            futures::pin_mut!(finish);
            // Whoever does not read it has ended the exchange already.
            let _ = future::select(finish, timeout).await;
            Done::Finished
        };
        self.tasks.push(task.boxed());
    }

    fn abandon(&mut self, opener: Opener, number: u32) {
        for (other, n, handle) in &self.running {
            if (*other, *n) == (opener, number) {
                handle.abort();
            }
        }
        match opener {
            Opener::Us => {
                self.opening.retain(|other| *other != number);
                drop(take(&mut self.outbound, number));
            }
            Opener::Peer => drop(take(&mut self.inbound, number)),
        }
    }
}

fn take(streams: &mut Vec<(u32, Stream)>, number: u32) -> Option<Stream> {
    let at = streams.iter().position(|(other, _)| *other == number)?;
    Some(streams.swap_remove(at).1)
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Command;
    type ToBehaviour = Report;
    type InboundProtocol = Either<ReadyUpgrade<StreamProtocol>, DeniedUpgrade>;
    type InboundOpenInfo = ();
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundOpenInfo = Asking;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        let protocol = match self.role {
            Some(Role::Responder) => Either::Left(ReadyUpgrade::new(PROTOCOL_NAME)),
            Some(Role::Initiator) if self.early => {
                Either::Left(ReadyUpgrade::new(EARLY_PROTOCOL_NAME))
            }
            _ => Either::Right(DeniedUpgrade),
        };
        SubstreamProtocol::new(protocol, ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.held
    }

    fn on_behaviour_event(&mut self, command: Command) {
        match command {
            Command::Connect { number, message } => {
                if self.opening.len() >= MAX_OUTBOUND {
                    return;
                }
                self.opening.push(number);
                self.request(Asking::Connect { number, message });
            }
            Command::Reply { number, message } => {
                if let Some(stream) = take(&mut self.inbound, number) {
                    let reply = protocol::reply(stream, message);
                    self.run(Opener::Peer, number, reply, move |result| {
                        Done::Synchronised(number, result)
                    });
                }
            }
            Command::Sync { number, message } => {
                if let Some(stream) = take(&mut self.outbound, number) {
                    self.finish(stream, message);
                }
            }
            Command::Farewell { message } => self.request(Asking::Farewell { message }),
            Command::Abandon { opener, number } => self.abandon(opener, number),
            Command::Release => self.held = false,
            Command::Hold => self.held = true,
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
                info,
            }) => self.on_outbound(stream, info),
            ConnectionEvent::DialUpgradeError(DialUpgradeError {
                info: Asking::Connect { number, .. },
                error,
            }) => {
                let Some(at) = self.opening.iter().position(|other| *other == number) else {
                    return;
                };
                self.opening.remove(at);
                let error = match error {
                    StreamUpgradeError::NegotiationFailed => ExchangeError::Unsupported,
                    StreamUpgradeError::Timeout => ExchangeError::TimedOut,
                    StreamUpgradeError::Io(error) => ExchangeError::Io(error),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                let failed = Report::Failed {
                    opener: Opener::Us,
                    number,
                    error,
                };
                self.actions
                    .push_back(ConnectionHandlerEvent::NotifyBehaviour(failed));
            }
            _ => {}
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Poll::Ready(action);
            }
            match self.tasks.poll_next_unpin(cx) {
                Poll::Ready(Some(done)) => {
                    if let Some(report) = self.on_done(done) {
                        return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(report));
                    }
                }
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}
