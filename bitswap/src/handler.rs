//! One connection: one long-lived outbound stream written sequentially, many inbound streams read
//! until their end. Decoding and hashing happen here, in the connection's task.

use std::{
    collections::{HashSet, VecDeque},
    convert::Infallible,
    io,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use cid::Cid;
use futures::{
    FutureExt, StreamExt,
    channel::oneshot,
    future::{Ready, ready},
    stream::{self, BoxStream, SelectAll},
};
use futures_timer::Delay;
use libp2p_core::upgrade::{InboundUpgrade, NegotiationError, OutboundUpgrade, UpgradeInfo};
use libp2p_swarm::{
    ConnectionHandler, ConnectionHandlerEvent, Stream, StreamProtocol, StreamUpgradeError,
    SubstreamProtocol,
    handler::{
        ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
        ProtocolsChange,
    },
};

use web_time::Instant;

use crate::{
    Block, Config, ProtocolViolation,
    budget::{ConnectionBudget, Reservation},
    config::Executor,
    heard::{Heard, Listened},
    message::{Entry, Message, Presence, Version},
    protocol::{FrameWriter, Interest, Limits, MessageReader, ReadError, Received},
};

/// A message never exceeds this unless one block forces it (rust-ipfs and iroh read no more).
const MAX_MESSAGE_BYTES: usize = 2 * 1024 * 1024;
/// Entries or presences in one message: 10,000 of 64 bytes stay well below 2 MiB.
const MAX_CONTROL_ITEMS: usize = 10_000;
/// A stream lost so soon after a write may have lost the message: long enough for a refusal or
/// reset to arrive from any distance.
const RECENT: Duration = Duration::from_secs(5);
/// How long a peer may take nothing, or owe something and send nothing, before it is told.
const SILENCE: Duration = Duration::from_secs(1);
/// First and last pause before a stream that could not be opened is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// From the behaviour.
#[derive(Debug)]
pub enum Command {
    /// Wantlist changes.
    Wants { entries: Vec<Entry>, full: bool },
    /// Answers without data.
    Presences(Vec<Presence>),
    /// A block, with what the message shall promise, and what else the peer has to wait for.
    Block {
        block: Block,
        promised: Option<Box<Cid>>,
        pending_bytes: u64,
    },
    /// Hand back the blocks that are not written yet.
    Withdraw,
    /// Hand back those of these that are not written yet: nobody wants them any more.
    TakeBack(Vec<Cid>),
    /// Whether the connection is needed.
    KeepAlive(bool),
    /// The peer owes answers: tell if it is silent.
    Listen,
}

/// To the behaviour.
#[derive(Debug)]
pub enum Report {
    /// The peer speaks this version.
    Version(Version),
    /// The peer speaks no bitswap.
    Unsupported,
    /// A message; the memory it holds is given back once it is dealt with.
    Received(Box<Message>, Reservation),
    /// All wants handed over so far are written.
    WantsWritten,
    /// Blocks are written.
    BlocksWritten {
        blocks: u64,
        bytes: u64,
    },
    /// The batch of answers handed over is written.
    AnswersWritten,
    /// The peer has sent nothing for [`SILENCE`] although it owes something, or has taken nothing for so long.
    Silent {
        owes: bool,
    },
    /// The outbound stream broke soon after something was written; wants may not have arrived.
    StreamLost,
    /// Answer to `Withdraw`, or what could not be written.
    Returned(Vec<Block>),
    /// Answer to `TakeBack`, if there were any.
    TakenBack(Vec<Block>),
    Violation(ProtocolViolation),
}

/// Protocol ids, in order of preference.
#[derive(Debug, Clone)]
pub(crate) struct Protocols(Arc<[(Version, StreamProtocol)]>);

impl Protocols {
    pub(crate) fn new(prefix: &str) -> Self {
        let ids = Version::ALL.map(|version| {
            let id = format!("{prefix}{}", version.id());
            let id = StreamProtocol::try_from_owned(id)
                .unwrap_or_else(|_| StreamProtocol::new(version.id()));
            (version, id)
        });
        Self(ids.into())
    }

    fn iter(&self) -> impl Iterator<Item = &(Version, StreamProtocol)> {
        self.0.iter()
    }

    fn version(&self, id: &StreamProtocol) -> Version {
        let found = self.iter().find(|(_, known)| known == id);
        found.map_or(Version::V1_2, |(version, _)| *version)
    }
}

/// Negotiates one of `offered` and hands out the stream with its version.
#[derive(Debug, Clone)]
pub struct Upgrade {
    protocols: Protocols,
    offered: Vec<StreamProtocol>,
}

impl UpgradeInfo for Upgrade {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.offered.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for Upgrade {
    type Output = (Version, Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, id: StreamProtocol) -> Self::Future {
        ready(Ok((self.protocols.version(&id), stream)))
    }
}

impl OutboundUpgrade<Stream> for Upgrade {
    type Output = (Version, Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, id: StreamProtocol) -> Self::Future {
        ready(Ok((self.protocols.version(&id), stream)))
    }
}

/// What to propose on the next outbound stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proposal {
    /// The newest version alone: with lazy negotiation the first message needs no round trip.
    Newest,
    /// It was refused: all the others.
    Older,
    /// Identify, or the peer's own stream, told us.
    Known(Version),
}

enum Outbound {
    Closed,
    Opening,
    Open(Box<Writer>),
    Backoff(Delay),
    Unsupported,
}

struct Writer {
    frames: FrameWriter<Stream>,
    version: Version,
    /// The message being written.
    writing: Option<Message>,
    /// When the muxer last took something.
    progress: Instant,
    /// Whether it was told that it takes nothing.
    told: bool,
    /// Checks `progress`; armed rarely, because timers are dear compared to messages.
    deadline: Option<Delay>,
    /// When the last message was written.
    written: Option<Instant>,
    /// When the last one with blocks was.
    sent_blocks: Option<Instant>,
}

impl Writer {
    /// Ready if the peer has taken nothing for `timeout`.
    fn poll_stuck(&mut self, timeout: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let now = now();
        if self.frames.progressed() {
            self.progress = now;
            if std::mem::take(&mut self.told) {
                // Set for a longer time.
                self.deadline = None;
            }
        }
        loop {
            let left = timeout.saturating_sub(now.saturating_duration_since(self.progress));
            let deadline = self.deadline.get_or_insert_with(|| Delay::new(left));
            ready!(deadline.poll_unpin(cx));
            self.deadline = None;
            if left.is_zero() {
                return Poll::Ready(());
            }
        }
    }

    /// Whether something may have been lost with the stream.
    fn may_have_lost(&self) -> bool {
        let recently = |at| now().saturating_duration_since(at) < RECENT;
        self.writing.is_some() || self.written.is_some_and(recently)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the age of a stream is the adapter's business"
)]
fn now() -> Instant {
    Instant::now()
}

enum Inbound {
    Message(Box<Message>, Reservation),
    Violation(ProtocolViolation),
}

/// Messages with fewer bytes of blocks are hashed at once: to hand them to another thread would take
/// longer.
const ELSEWHERE_BYTES: usize = 32 * 1024;
/// Messages of one stream that are hashed elsewhere at a time.
const HASHING: usize = 4;
/// After a message of so many bytes the muxer has its turn, so that the peer gets its window back
/// before it has used it up.
const YIELD_BYTES: usize = 64 * 1024;

/// The connection handler.
pub struct Handler {
    config: Arc<Config>,
    protocols: Protocols,
    proposal: Proposal,
    outbound: Outbound,
    failures: u32,
    inbound: SelectAll<BoxStream<'static, Inbound>>,
    heard: Heard,
    /// The end of the silence that is to be told.
    listening: Option<Delay>,
    budget: ConnectionBudget,
    interest: Interest,
    /// The muxer's turn has come.
    yielding: bool,
    entries: VecDeque<Entry>,
    full: bool,
    wants_pending: bool,
    answers_pending: bool,
    presences: VecDeque<Presence>,
    blocks: VecDeque<(Block, Option<Box<Cid>>)>,
    pending_bytes: u64,
    reports: VecDeque<Report>,
    keep_alive: bool,
}

type HandlerEvent = ConnectionHandlerEvent<Upgrade, (), Report>;

impl Handler {
    pub(crate) fn new(
        config: Arc<Config>,
        protocols: Protocols,
        budget: ConnectionBudget,
        interest: Interest,
    ) -> Self {
        Self {
            config,
            protocols,
            proposal: Proposal::Newest,
            outbound: Outbound::Closed,
            failures: 0,
            inbound: SelectAll::new(),
            heard: Heard::new(),
            listening: None,
            budget,
            interest,
            yielding: false,
            entries: VecDeque::new(),
            full: false,
            wants_pending: false,
            answers_pending: false,
            presences: VecDeque::new(),
            blocks: VecDeque::new(),
            pending_bytes: 0,
            reports: VecDeque::new(),
            // Until the behaviour has looked.
            keep_alive: true,
        }
    }

    fn has_work(&self) -> bool {
        self.full
            || !self.entries.is_empty()
            || !self.presences.is_empty()
            || !self.blocks.is_empty()
    }

    fn upgrade(&self) -> Upgrade {
        let offered = self
            .protocols
            .iter()
            .filter(|(version, _)| match self.proposal {
                Proposal::Newest => *version == Version::V1_2,
                Proposal::Older => *version != Version::V1_2,
                Proposal::Known(known) => *version == known,
            });
        Upgrade {
            protocols: self.protocols.clone(),
            offered: offered.map(|(_, id)| id.clone()).collect(),
        }
    }

    /// Control first, then blocks up to the target size.
    fn next_message(&mut self) -> Option<Message> {
        if !self.has_work() {
            return None;
        }
        let entries = self.entries.len().min(MAX_CONTROL_ITEMS);
        let presences = self.presences.len().min(MAX_CONTROL_ITEMS);
        let mut message = Message {
            entries: self.entries.drain(..entries).collect(),
            full: std::mem::take(&mut self.full),
            presences: self.presences.drain(..presences).collect(),
            pending_bytes: i32::try_from(self.pending_bytes).unwrap_or(i32::MAX),
            ..Message::default()
        };
        // Roughly; CIDs are at most 168 bytes, usually 36.
        let mut bytes = (entries + presences) * 64;
        while let Some((block, _)) = self.blocks.front() {
            let next = bytes + block.data().len() + 64;
            let room = match message.blocks.is_empty() {
                true => bytes == 0 || next <= MAX_MESSAGE_BYTES,
                false => next <= self.config.target_message_bytes(),
            };
            if !room {
                break;
            }
            bytes = next;
            if let Some((block, promised)) = self.blocks.pop_front() {
                message.blocks.push(block);
                message.promised.extend(promised.map(|cid| *cid));
            }
        }
        Some(message)
    }

    /// Advances the outbound stream. `Some`: an event for the swarm.
    fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Option<HandlerEvent> {
        loop {
            let has_work = self.has_work();
            match &mut self.outbound {
                Outbound::Closed if has_work => {
                    self.outbound = Outbound::Opening;
                    return Some(ConnectionHandlerEvent::OutboundSubstreamRequest {
                        protocol: SubstreamProtocol::new(self.upgrade(), ()),
                    });
                }
                Outbound::Closed | Outbound::Opening => return None,
                Outbound::Backoff(delay) => match delay.poll_unpin(cx) {
                    Poll::Ready(()) => self.outbound = Outbound::Closed,
                    Poll::Pending => return None,
                },
                Outbound::Unsupported => {
                    self.drop_work();
                    return None;
                }
                Outbound::Open(writer) => {
                    if let Poll::Ready(error) = writer.frames.poll_watch(cx) {
                        self.on_stream_lost(&error);
                        continue;
                    }
                    if writer.writing.is_some() {
                        match writer.frames.poll_write(cx) {
                            Poll::Ready(Ok(())) => self.on_written(),
                            Poll::Ready(Err(error)) => self.on_stream_lost(&error),
                            Poll::Pending => {
                                let timeout = self.config.write_timeout();
                                let patience = if writer.told {
                                    timeout
                                } else {
                                    timeout.min(SILENCE)
                                };
                                if writer.poll_stuck(patience, cx).is_pending() {
                                    return None;
                                }
                                if writer.told || timeout <= SILENCE {
                                    self.on_stream_lost(&io::ErrorKind::TimedOut.into());
                                } else {
                                    writer.told = true;
                                    self.reports.push_back(Report::Silent { owes: false });
                                }
                            }
                        }
                        continue;
                    }
                    if has_work {
                        self.start_message();
                        continue;
                    }
                    return match writer.frames.poll_flush(cx) {
                        Poll::Ready(Err(error)) => {
                            self.on_stream_lost(&error);
                            continue;
                        }
                        _ => None,
                    };
                }
            }
        }
    }

    /// Whether blocks are on their way to the peer: what it is asked waits behind them, and so does what it answers to that.
    fn is_sending(&self) -> bool {
        let Outbound::Open(writer) = &self.outbound else {
            return !self.blocks.is_empty();
        };
        !self.blocks.is_empty()
            || writer.writing.is_some()
            || writer
                .sent_blocks
                .is_some_and(|at| now().saturating_duration_since(at) < RECENT)
    }

    fn start_message(&mut self) {
        let message = self.next_message();
        if let (Outbound::Open(writer), Some(message)) = (&mut self.outbound, message) {
            writer.frames.start(message.encode(writer.version));
            writer.progress = now();
            if std::mem::take(&mut writer.told) {
                writer.deadline = None;
            }
            writer.writing = Some(message);
        }
    }

    fn on_written(&mut self) {
        let Outbound::Open(writer) = &mut self.outbound else {
            return;
        };
        writer.written = Some(now());
        if let Some(message) = writer.writing.take()
            && !message.blocks.is_empty()
        {
            writer.sent_blocks = writer.written;
            self.reports.push_back(Report::BlocksWritten {
                blocks: message.blocks.len() as u64,
                bytes: message.block_bytes() as u64,
            });
        }
        if self.wants_pending && self.entries.is_empty() {
            self.wants_pending = false;
            self.reports.push_back(Report::WantsWritten);
        }
        if self.answers_pending && self.presences.is_empty() {
            self.answers_pending = false;
            self.reports.push_back(Report::AnswersWritten);
        }
    }

    fn on_stream_lost(&mut self, error: &io::Error) {
        let Outbound::Open(writer) = std::mem::replace(&mut self.outbound, Outbound::Closed) else {
            return;
        };
        let refused = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<NegotiationError>())
            .is_some_and(|inner| matches!(inner, NegotiationError::Failed));
        tracing::debug!(%error, refused, "outbound bitswap stream lost");
        let was_busy = writer.writing.is_some();
        let may_have_lost = writer.may_have_lost();
        let timed_out = error.kind() == io::ErrorKind::TimedOut;
        if let Some(message) = writer.writing {
            if timed_out {
                // It takes nothing; what is queued goes back, and is asked for again if wanted.
                self.return_blocks(message.blocks);
            } else {
                self.requeue(message);
            }
        }
        if may_have_lost {
            self.reports.push_back(Report::StreamLost);
        }
        if refused {
            self.on_refused();
        } else if was_busy || may_have_lost {
            self.reopen();
        }
    }

    /// After the loss of a stream: at once the first time (old peers read one message a stream),
    /// later and later if the peer says nothing in between.
    fn reopen(&mut self) {
        if self.failures == 0 {
            self.failures = 1;
        } else {
            self.back_off();
        }
    }

    fn requeue(&mut self, message: Message) {
        for entry in message.entries.into_iter().rev() {
            self.entries.push_front(entry);
        }
        for presence in message.presences.into_iter().rev() {
            self.presences.push_front(presence);
        }
        for block in message.blocks.into_iter().rev() {
            self.blocks.push_front((block, None));
        }
        self.full |= message.full;
    }

    fn return_blocks(&mut self, mut blocks: Vec<Block>) {
        blocks.extend(self.blocks.drain(..).map(|(block, _)| block));
        if !blocks.is_empty() {
            self.reports.push_back(Report::Returned(blocks));
        }
    }

    fn take_back(&mut self, cids: Vec<Cid>) {
        let cids: HashSet<Cid> = cids.into_iter().collect();
        let mut taken = Vec::new();
        // A block that promises another one is sent: what was promised comes after it.
        self.blocks.retain(|(block, promised)| {
            let keep = promised.is_some() || !cids.contains(block.cid());
            if !keep {
                taken.push(block.clone());
            }
            keep
        });
        if !taken.is_empty() {
            self.reports.push_back(Report::TakenBack(taken));
        }
    }

    fn on_refused(&mut self) {
        match self.proposal {
            Proposal::Newest => {
                self.proposal = Proposal::Older;
                self.outbound = Outbound::Closed;
            }
            Proposal::Older | Proposal::Known(_) => {
                self.outbound = Outbound::Unsupported;
                self.reports.push_back(Report::Unsupported);
            }
        }
    }

    fn back_off(&mut self) {
        let pause = BACKOFF
            .0
            .saturating_mul(1 << self.failures.min(10))
            .min(BACKOFF.1);
        self.failures += 1;
        self.outbound = Outbound::Backoff(Delay::new(pause));
    }

    /// The peer takes no messages: wants count as written (the core knows better by now), blocks
    /// go back.
    fn drop_work(&mut self) {
        self.entries.clear();
        self.presences.clear();
        self.full = false;
        self.return_blocks(Vec::new());
        if std::mem::take(&mut self.wants_pending) {
            self.reports.push_back(Report::WantsWritten);
        }
        if std::mem::take(&mut self.answers_pending) {
            self.reports.push_back(Report::AnswersWritten);
        }
    }

    fn on_version_known(&mut self, version: Version) {
        if self.proposal != Proposal::Known(version) {
            self.proposal = Proposal::Known(version);
            self.reports.push_back(Report::Version(version));
            if matches!(self.outbound, Outbound::Unsupported) {
                self.outbound = Outbound::Closed;
            }
        }
    }

    fn on_inbound(&mut self, version: Version, mut stream: Stream) {
        let limit = self.config.max_inbound_streams();
        if self.inbound.len() >= limit {
            let violation = ProtocolViolation::TooManyStreams { limit };
            self.reports.push_back(Report::Violation(violation));
            return;
        }
        // Keeping the connection is decided by wants, not by streams that stay open for ever.
        stream.ignore_for_keep_alive();
        if !matches!(self.proposal, Proposal::Known(_)) {
            self.on_version_known(version);
        }
        let limits = Limits {
            frame_bytes: self.config.max_frame_bytes(),
            items: self.config.max_entries_per_message(),
        };
        let heard = self.heard.clone();
        let stream = Listened { stream, heard };
        let reader = MessageReader::new(stream, limits, self.budget.clone(), self.interest.clone());
        let messages = messages(reader);
        let messages = match self.config.executor() {
            None => messages
                .map(|read| read.map_or_else(Inbound::Violation, verify_here))
                .boxed(),
            Some(executor) => messages
                .map(move |read| verify(read, executor.clone()))
                .buffered(HASHING)
                .filter_map(ready)
                .boxed(),
        };
        self.inbound.push(messages);
    }

    fn on_outbound(&mut self, version: Version, mut stream: Stream) {
        stream.ignore_for_keep_alive();
        self.reports.push_back(Report::Version(version));
        self.outbound = Outbound::Open(Box::new(Writer {
            frames: FrameWriter::new(stream),
            version,
            writing: None,
            progress: now(),
            told: false,
            deadline: None,
            written: None,
            sent_blocks: None,
        }));
    }

    fn on_remote_protocols(&mut self, change: ProtocolsChange<'_>) {
        match change {
            ProtocolsChange::Added(added) => {
                let added: Vec<_> = added.collect();
                let best = self.protocols.iter().find(|(_, id)| added.contains(&id));
                if let Some(version) = best.map(|(version, _)| *version) {
                    self.on_version_known(version);
                }
            }
            ProtocolsChange::Removed(removed) => {
                let known = match self.proposal {
                    Proposal::Known(version) => Some(version),
                    _ => None,
                };
                if removed.into_iter().any(|id| {
                    Some(self.protocols.version(id)) == known
                        && self.protocols.iter().any(|(_, ours)| ours == id)
                }) {
                    self.proposal = Proposal::Newest;
                }
            }
        }
    }
}

/// Reads until the stream ends.
fn messages(
    reader: MessageReader<Listened<Stream>>,
) -> impl stream::Stream<Item = Result<Received, ProtocolViolation>> + Send {
    stream::unfold(Some(reader), move |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(received)) => Some((Ok(received), Some(reader))),
            Ok(None) => {
                let _ = reader.close().await;
                None
            }
            Err(ReadError::Violation(violation)) => Some((Err(violation), None)),
            Err(ReadError::Evicted) => {
                tracing::debug!("an incomplete bitswap message gave way to others");
                None
            }
            Err(ReadError::Io(error)) => {
                tracing::debug!(%error, "inbound bitswap stream failed");
                None
            }
        }
    })
}

fn verify_here(received: Received) -> Inbound {
    Inbound::Message(Box::new(received.assembly.verify()), received.held)
}

/// Hashes on the executor, if it is worth it. `None`: the executor has dropped the work.
async fn verify(read: Result<Received, ProtocolViolation>, executor: Executor) -> Option<Inbound> {
    match read {
        Err(violation) => Some(Inbound::Violation(violation)),
        Ok(received) if received.assembly.payload_bytes() < ELSEWHERE_BYTES => {
            Some(verify_here(received))
        }
        Ok(received) => {
            let (sender, verified) = oneshot::channel();
            let work = async move {
                // Nobody waits any more if the connection is gone.
                let _ = sender.send(verify_here(received));
            };
            executor.spawn(work.boxed());
            verified.await.ok()
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Command;
    type ToBehaviour = Report;
    type InboundProtocol = Upgrade;
    type OutboundProtocol = Upgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Upgrade, ()> {
        let offered = self.protocols.iter().map(|(_, id)| id.clone()).collect();
        let protocols = self.protocols.clone();
        SubstreamProtocol::new(Upgrade { protocols, offered }, ())
    }

    fn connection_keep_alive(&self) -> bool {
        let writing = match &self.outbound {
            Outbound::Open(writer) => writer.writing.is_some(),
            _ => false,
        };
        self.keep_alive || writing || self.has_work()
    }

    fn on_behaviour_event(&mut self, command: Command) {
        match command {
            Command::Wants { entries, full } => {
                if full {
                    self.entries.clear();
                }
                self.entries.extend(entries);
                self.full |= full;
                self.wants_pending = true;
            }
            Command::Presences(presences) => {
                self.presences.extend(presences);
                self.answers_pending = true;
            }
            Command::Block {
                block,
                promised,
                pending_bytes,
            } => {
                self.blocks.push_back((block, promised));
                self.pending_bytes = pending_bytes;
            }
            Command::Withdraw => self.return_blocks(Vec::new()),
            Command::TakeBack(cids) => self.take_back(cids),
            Command::KeepAlive(keep_alive) => self.keep_alive = keep_alive,
            Command::Listen => {
                let rest = SILENCE.saturating_sub(self.heard.silence());
                self.listening = Some(Delay::new(rest));
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<HandlerEvent> {
        if let Some(event) = self.poll_outbound(cx) {
            return Poll::Ready(event);
        }
        if let Some(listening) = &mut self.listening
            && listening.poll_unpin(cx).is_ready()
        {
            self.listening = None;
            if self.heard.silence() >= SILENCE && !self.is_sending() {
                self.reports.push_back(Report::Silent { owes: true });
            }
        }
        if let Some(report) = self.reports.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(report));
        }
        if std::mem::take(&mut self.yielding) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match self.inbound.poll_next_unpin(cx) {
            Poll::Ready(Some(Inbound::Message(message, held))) => {
                self.yielding = message.frame_bytes >= YIELD_BYTES;
                self.failures = 0;
                let report = Report::Received(message, held);
                Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(report))
            }
            Poll::Ready(Some(Inbound::Violation(violation))) => Poll::Ready(
                ConnectionHandlerEvent::NotifyBehaviour(Report::Violation(violation)),
            ),
            // `None`: no stream now; `on_connection_event` is followed by another poll.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Upgrade, Upgrade, (), ()>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (version, stream),
                ..
            }) => self.on_inbound(version, stream),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (version, stream),
                ..
            }) => self.on_outbound(version, stream),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => match error {
                StreamUpgradeError::NegotiationFailed => self.on_refused(),
                StreamUpgradeError::Apply(never) => match never {},
                StreamUpgradeError::Timeout | StreamUpgradeError::Io(_) => self.back_off(),
            },
            ConnectionEvent::RemoteProtocolsChange(change) => self.on_remote_protocols(change),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_offered_in_order_of_preference_with_the_prefix_before_them() {
        for prefix in ["", "/mine"] {
            let offered: Vec<String> = Protocols::new(prefix)
                .iter()
                .map(|(_, id)| id.to_string())
                .collect();
            let expected = [
                "/ipfs/bitswap/1.2.0",
                "/ipfs/bitswap/1.1.0",
                "/ipfs/bitswap/1.0.0",
                "/ipfs/bitswap",
            ];
            assert_eq!(offered, expected.map(|id| format!("{prefix}{id}")));
        }
    }
}
