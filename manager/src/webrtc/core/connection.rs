//! One connection: datagrams and times go in, datagrams and events come out.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    sync::Arc,
    time::Duration,
};

use dimpl::{Dtls, DtlsCertificate, Output};
use sctp_proto::{Event as SctpEvent, StreamEvent};
use web_time::Instant;

use super::{
    Fingerprint, Path, Transmit, Ufrag,
    ice::Ice,
    outbox::Outbox,
    sctp::{RECEIVE_BUFFER, Sctp},
    stream::Stream,
    stun::is_stun,
};

#[cfg(test)]
mod attacks;
mod streams;
#[cfg(test)]
mod tests;

/// From the first datagram to the peer's identity.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a `FIN_ACK` is waited for, as in go-libp2p and js-libp2p.
const LINGER: Duration = Duration::from_secs(10);

/// How long a reader may leave data where it keeps others from getting theirs.
const STALL: Duration = Duration::from_secs(10);

/// Streams of the peer at a time; more are refused.
pub(super) const MAX_INBOUND: usize = 256;

/// Those that it may open before we know who it is: it knows first, and begins.
pub(super) const MAX_EARLY: usize = 64;

/// Streams of ours at a time; more have to wait.
const MAX_OUTBOUND: usize = 1024;

/// Data channels that were reset, and whose numbers the peer has not given back. One that leaves more is up to something.
pub(super) const MAX_CLOSING: usize = 4096;

/// Data channels that are reset at a time: `sctp-proto` names all in one packet, which has to pass.
const MAX_RESETTING: usize = 256;

/// Numbers of data channels that SCTP knows of.
const MAX_CHANNELS: usize = MAX_INBOUND + MAX_OUTBOUND + MAX_CLOSING;

/// Data of all streams that waits to be read, beside what SCTP holds.
pub(super) const MAX_RECEIVED: usize = 1024 * 1024;

/// What SCTP has left to receive when it counts as full: about a frame of each of a few streams.
const FULL_WINDOW: u32 = 128 * 1024;

/// Data that is written and not acknowledged yet, of one stream and of all.
pub(super) const MAX_SENDING_PER_STREAM: usize = 512 * 1024;
pub(super) const MAX_SENDING: usize = 2 * 1024 * 1024;

/// The first flight of DTLS is repeated after so long (RFC 6347 §4.2.4.1 says a second, for the Internet of 2012).
const DTLS_REPEAT: Duration = Duration::from_millis(500);

/// The largest datagram of the DTLS handshake.
const MTU: usize = 1200;

/// A stream, for as long as anybody holds it. None gets the number of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamKey(u64);

/// Both certificates, which the Noise handshake binds to the identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprints {
    pub(crate) client: Fingerprint,
    pub(crate) server: Fingerprint,
}

/// What has happened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The stream for the Noise handshake is there.
    Secured(Fingerprints, StreamKey),
    /// The peer has opened a stream.
    Opened(StreamKey),
    /// A stream may be read from, or written to.
    Changed(StreamKey),
    /// One more stream may be opened.
    CanOpen,
    /// Nothing comes any more.
    Closed(CloseReason),
}

/// Why a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CloseReason {
    #[error("closed by this node")]
    Local,
    #[error("closed by the peer")]
    Remote,
    #[error("nothing was heard of the peer for too long")]
    Silent,
    #[error("the handshake took too long")]
    HandshakeTimeout,
    #[error("the certificate is not the one that the address names")]
    WrongCertificate,
    #[error("DTLS failed")]
    Dtls,
    #[error("SCTP failed")]
    Sctp,
    #[error("the peer opens and closes streams faster than it gives them back")]
    TooManyStreams,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// ICE, DTLS, SCTP and Noise.
    Handshake {
        deadline: Instant,
    },
    Up,
    Closed(CloseReason),
}

/// A data channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Channel {
    /// The peer has begun to open it.
    Opening,
    Open(StreamKey),
    /// It was reset, by whomever, and its number is not free yet; or it has to wait until SCTP is asked to.
    Closing {
        is_asked: bool,
    },
    /// It could not be reset: the number is used no more.
    Lost,
}

/// One connection.
pub(crate) struct Connection {
    is_client: bool,
    own: Fingerprint,
    /// What the address says of the peer's certificate; a server does not know its client's before.
    expected: Option<Fingerprint>,
    peer: Option<Fingerprint>,
    phase: Phase,
    ice: Ice,
    dtls: Dtls,
    is_dtls_begun: bool,
    dtls_due: Instant,
    sctp: Sctp,
    channels: BTreeMap<u16, Channel>,
    streams: BTreeMap<StreamKey, (u16, Stream)>,
    inbound: usize,
    outbound: usize,
    closing: usize,
    /// Of those, the ones that SCTP was asked to reset, and the others.
    resetting: usize,
    to_reset: VecDeque<u16>,
    /// What SCTP has still to send of channels that are closing, at most.
    orphaned: BTreeMap<u16, usize>,
    /// How often the peer used a new number.
    opened: u64,
    next_key: u64,
    next_id: u16,
    lingering: VecDeque<(Instant, StreamKey)>,
    received: usize,
    /// Channels with data that SCTP keeps until there is room.
    unread: BTreeSet<u16>,
    /// What SCTP has told the peer that it may send.
    window: u32,
    /// What was taken from SCTP since.
    drained: usize,
    full_since: Option<Instant>,
    /// Writers that wait for room.
    blocked: BTreeSet<StreamKey>,
    /// Something was written that [`Connection::poll_transmit`] has not seen.
    has_written: bool,
    outbox: Outbox,
    events: VecDeque<Event>,
    scratch: Vec<u8>,
}

impl Connection {
    /// Dials a server whose certificate is known.
    pub(crate) fn dial(
        server: Path,
        expected: Fingerprint,
        certificate: &DtlsCertificate,
        seed: [u8; 32],
        now: Instant,
    ) -> Option<Self> {
        let ufrag = Ufrag::random(seed);
        let mut ice_seed = seed;
        ice_seed.reverse();
        let ice = Ice::client(ufrag, server, ice_seed, now);
        Self::new(ice, Some(expected), certificate, now)
    }

    /// Awaits the client that has made up this name.
    pub(crate) fn accept(
        ufrag: Ufrag,
        certificate: &DtlsCertificate,
        now: Instant,
    ) -> Option<Self> {
        Self::new(Ice::server(ufrag, now), None, certificate, now)
    }

    /// None where the cryptography cannot be had.
    fn new(
        ice: Ice,
        expected: Option<Fingerprint>,
        certificate: &DtlsCertificate,
        now: Instant,
    ) -> Option<Self> {
        let is_client = expected.is_some();
        let config = dimpl::Config::builder()
            .mtu(MTU)
            .flight_start_rto(DTLS_REPEAT)
            .handshake_timeout(HANDSHAKE)
            .build()
            .ok()?;
        // Version 1.2, as browsers have it with everybody.
        let mut dtls = Dtls::new_12(Arc::new(config), certificate.clone(), now);
        dtls.set_active(is_client);
        Some(Self {
            is_client,
            own: Fingerprint::of(&certificate.certificate),
            expected,
            peer: None,
            phase: Phase::Handshake {
                deadline: now + HANDSHAKE,
            },
            ice,
            dtls,
            is_dtls_begun: false,
            dtls_due: now + HANDSHAKE,
            sctp: Sctp::new(is_client),
            channels: BTreeMap::new(),
            streams: BTreeMap::new(),
            inbound: 0,
            outbound: 0,
            closing: 0,
            resetting: 0,
            to_reset: VecDeque::new(),
            orphaned: BTreeMap::new(),
            opened: 0,
            next_key: 0,
            // 0 is the handshake's.
            next_id: if is_client { 2 } else { 1 },
            lingering: VecDeque::new(),
            received: 0,
            unread: BTreeSet::new(),
            window: RECEIVE_BUFFER,
            drained: 0,
            full_since: None,
            blocked: BTreeSet::new(),
            has_written: false,
            outbox: Outbox::default(),
            events: VecDeque::new(),
            scratch: vec![0; 2048],
        })
    }

    /// Takes a datagram.
    pub(crate) fn handle_datagram(&mut self, path: Path, datagram: &[u8], now: Instant) {
        if self.is_closed() {
            return;
        }
        if is_stun(datagram) {
            if let Some(answer) = self.ice.on_stun(path, datagram, now) {
                self.outbox.push(path, &answer);
            }
            if self.ice.is_connected() && !self.is_dtls_begun {
                self.is_dtls_begun = true;
                self.drive_dtls(now, None);
            }
        } else if self.ice.knows(path) && self.is_dtls_begun {
            self.drive_dtls(now, Some(datagram));
        }
        self.drive_sctp(now);
        self.notice_full(now);
    }

    /// Time has passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.is_closed() {
            return;
        }
        if let Phase::Handshake { deadline } = self.phase
            && now >= deadline
        {
            return self.close_with(CloseReason::HandshakeTimeout);
        }
        if self.ice.is_silent(now) {
            return self.close_with(CloseReason::Silent);
        }
        if let Some(check) = self.ice.handle_timeout(now)
            && let Some(path) = self.ice.path()
        {
            self.outbox.push(path, &check);
        }
        if self.is_dtls_begun && self.dtls_due <= now {
            self.drive_dtls(now, None);
        }
        self.sctp.handle_timeout(now);
        self.handle_stream_timeouts(now);
        self.drive_sctp(now);
        self.notice_full(now);
    }

    /// When [`Connection::handle_timeout`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if self.is_closed() {
            return None;
        }
        let deadline = match self.phase {
            Phase::Handshake { deadline } => Some(deadline),
            Phase::Up | Phase::Closed(_) => None,
        };
        let dtls = self.is_dtls_begun.then_some(self.dtls_due);
        let due = [
            deadline,
            dtls,
            self.sctp.poll_timeout(),
            self.poll_stream_timeout(),
        ];
        let first = due.into_iter().flatten().min();
        let ice = self.ice.poll_timeout();
        Some(first.map_or(ice, |first| first.min(ice)))
    }

    /// Datagrams to be sent. What streams have to say is asked for when nothing else is left, so that little waits here.
    pub(crate) fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        if self.outbox.is_empty() && !self.is_closed() {
            self.send_sctp(now);
        }
        self.outbox.pop()
    }

    /// Whether streams have something to say since [`Connection::poll_transmit`] was asked last.
    pub(crate) fn wants_to_send(&self) -> bool {
        self.has_written
    }

    /// What has happened.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The peer has shown who it is.
    pub(crate) fn on_authenticated(&mut self) {
        if matches!(self.phase, Phase::Handshake { .. }) {
            self.phase = Phase::Up;
        }
    }

    /// Where the peer is.
    #[cfg(test)]
    pub(crate) fn path(&self) -> Option<Path> {
        self.ice.path()
    }

    /// Ends the connection, and tells the peer.
    pub(crate) fn close(&mut self) {
        if !self.is_closed() {
            self.close_with(CloseReason::Local);
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed(_))
    }

    fn close_with(&mut self, reason: CloseReason) {
        self.phase = Phase::Closed(reason);
        self.events.push_back(Event::Closed(reason));
        if self.dtls.close().is_ok()
            && let Some(path) = self.ice.path()
        {
            while let Output::Packet(packet) = self.dtls.poll_output(&mut self.scratch) {
                self.outbox.push(path, packet);
            }
        }
        self.on_streams_lost();
    }

    fn drive_dtls(&mut self, now: Instant, datagram: Option<&[u8]>) {
        let handled = self.dtls.handle_timeout(now).and_then(|()| match datagram {
            Some(datagram) => self.dtls.handle_packet(datagram),
            None => Ok(()),
        });
        if let Err(error) = handled {
            tracing::debug!(%error, "DTLS failed");
            return self.close_with(CloseReason::Dtls);
        }
        self.poll_dtls(now);
    }

    fn poll_dtls(&mut self, now: Instant) {
        let Some(path) = self.ice.path() else {
            return;
        };
        let mut scratch = std::mem::take(&mut self.scratch);
        loop {
            match self.dtls.poll_output(&mut scratch) {
                Output::Packet(packet) => self.outbox.push(path, packet),
                Output::BufferTooSmall { needed } => scratch.resize(needed, 0),
                Output::Timeout(due) => {
                    self.dtls_due = due;
                    break;
                }
                Output::Connected if self.is_client => self.sctp.connect(),
                Output::PeerCert(certificate) => {
                    let peer = Fingerprint::of(certificate);
                    self.peer = Some(peer);
                    if self.expected.is_some_and(|expected| expected != peer) {
                        self.scratch = scratch;
                        return self.close_with(CloseReason::WrongCertificate);
                    }
                }
                Output::ApplicationData(packet) => {
                    self.ice.on_heard(now);
                    self.sctp.handle_packet(packet, now);
                }
                Output::CloseNotify => {
                    self.scratch = scratch;
                    return self.close_with(CloseReason::Remote);
                }
                _ => {}
            }
        }
        self.scratch = scratch;
    }

    fn drive_sctp(&mut self, now: Instant) {
        while !self.is_closed()
            && let Some(event) = self.sctp.poll()
        {
            match event {
                SctpEvent::Connected => self.on_secured(now),
                SctpEvent::HandshakeFailed { .. } => self.close_with(CloseReason::Sctp),
                SctpEvent::AssociationLost { reason } => {
                    tracing::debug!(%reason, "the SCTP association is lost");
                    let closed = matches!(
                        reason,
                        sctp_proto::AssociationError::AssociationClosed
                            | sctp_proto::AssociationError::ApplicationClosed
                    );
                    self.close_with(match closed {
                        true => CloseReason::Remote,
                        false => CloseReason::Sctp,
                    });
                }
                SctpEvent::Stream(event) => self.on_stream_event(&event, now),
                _ => {}
            }
        }
        self.unblock();
    }

    fn on_stream_event(&mut self, event: &StreamEvent, now: Instant) {
        match event {
            StreamEvent::Opened { .. } => self.on_opened(),
            StreamEvent::ResetFailed { id, .. } => self.on_reset_failed(*id),
            StreamEvent::Readable { id } => self.on_readable(*id, now),
            StreamEvent::Finished { id } => self.on_finished(*id),
            StreamEvent::ResetComplete { id } => self.on_reset_complete(*id, now),
            _ => {}
        }
    }

    fn send_sctp(&mut self, now: Instant) {
        self.has_written = false;
        while let Some(packets) = self.sctp.poll_transmit(now) {
            for packet in packets {
                if let Some(window) = self.sctp.on_sent(&packet) {
                    self.window = window;
                    self.drained = 0;
                }
                if let Err(error) = self.dtls.send_application_data(&packet) {
                    tracing::debug!(%error, "DTLS failed");
                    return self.close_with(CloseReason::Dtls);
                }
                self.poll_dtls(now);
            }
        }
    }

    /// Reads the stream's data. None: there is none yet.
    pub(crate) fn read(
        &mut self,
        key: StreamKey,
        buffer: &mut [u8],
        now: Instant,
    ) -> Option<io::Result<usize>> {
        let Some((id, stream)) = self.streams.get_mut(&key) else {
            return Some(Err(self.lost()));
        };
        let before = stream.buffered();
        let read = stream.read(buffer, now);
        self.received -= before - stream.buffered();
        let (id, wants_more) = (*id, stream.wants_more());
        if wants_more && self.unread.contains(&id) {
            self.pump(id, now);
        }
        if !self.unread.is_empty() && self.received < MAX_RECEIVED / 2 {
            self.pump_unread(now);
        }
        self.notice_full(now);
        read
    }

    fn lost(&self) -> io::Error {
        match self.phase {
            Phase::Closed(reason) => io::Error::new(io::ErrorKind::ConnectionAborted, reason),
            _ => io::ErrorKind::NotConnected.into(),
        }
    }
}
