//! The connection's streams and their data channels.

use std::io;

use bytes::Bytes;
use sctp_proto::{Chunks, PayloadProtocolIdentifier as Ppid};
use web_time::Instant;

use super::{
    Channel, CloseReason, Connection, Event, FULL_WINDOW, Fingerprints, LINGER, MAX_CHANNELS,
    MAX_CLOSING, MAX_EARLY, MAX_INBOUND, MAX_OUTBOUND, MAX_RECEIVED, MAX_RESETTING, MAX_SENDING,
    MAX_SENDING_PER_STREAM, Phase, STALL, StreamKey,
};
use crate::webrtc::core::{
    dcep::{self, Dcep},
    message::{Flag, MAX_DATA_BYTES, encode_data, encode_flag},
    stream::Stream,
};

/// The channel of the Noise handshake, which both ends open without DCEP.
const HANDSHAKE_ID: u16 = 0;

/// The last one that RFC 8832 §6.7 allows is 65534.
const LAST_ID: u16 = u16::MAX - 1;

impl Connection {
    /// Opens a stream. None: there are too many, [`Event::CanOpen`] says when to try again.
    pub(crate) fn open(&mut self, now: Instant) -> io::Result<Option<StreamKey>> {
        if self.is_closed() {
            return Err(self.lost());
        }
        if self.outbound >= MAX_OUTBOUND {
            return Ok(None);
        }
        let first = if self.is_client { 2 } else { 1 };
        for _ in 0..LAST_ID / 2 {
            let id = self.next_id;
            self.next_id = id
                .checked_add(2)
                .filter(|id| *id <= LAST_ID)
                .unwrap_or(first);
            if self.channels.contains_key(&id) {
                continue;
            }
            let Some(association) = &mut self.sctp.association else {
                return Err(io::ErrorKind::NotConnected.into());
            };
            let Ok(mut channel) = association.open_stream(id, Ppid::Binary) else {
                continue;
            };
            // "MAY start sending messages containing user data without waiting" (RFC 8832 §6).
            channel
                .write_with_ppi(&dcep::OPEN, Ppid::Dcep)
                .map_err(io::Error::other)?;
            self.has_written = true;
            self.outbound += 1;
            return Ok(Some(self.insert(id, now)));
        }
        Ok(None)
    }

    /// Whether the stream takes more data, and if so takes some of it. None: it is full, [`Event::Changed`] says when to try again.
    pub(crate) fn write(&mut self, key: StreamKey, data: &[u8]) -> Option<io::Result<usize>> {
        let Some((id, stream)) = self.streams.get(&key) else {
            return Some(Err(self.lost()));
        };
        let id = *id;
        if let Err(error) = stream.check_writable() {
            return Some(Err(error));
        }
        if data.is_empty() {
            return Some(Ok(0));
        }
        if self.sending(id) >= MAX_SENDING_PER_STREAM || self.all_sending() >= MAX_SENDING {
            self.blocked.insert(key);
            return None;
        }
        let part = data.get(..MAX_DATA_BYTES).unwrap_or(data);
        let is_sent = self.send(id, encode_data(part));
        let sending = self.sending(id);
        if let Some((_, stream)) = self.streams.get_mut(&key) {
            stream.sending = sending;
        }
        Some(match is_sent {
            true => Ok(part.len()),
            false => Err(io::ErrorKind::BrokenPipe.into()),
        })
    }

    /// Ends our half of the stream.
    pub(crate) fn end(&mut self, key: StreamKey, now: Instant) -> io::Result<()> {
        let Some((id, stream)) = self.streams.get_mut(&key) else {
            return Err(self.lost());
        };
        let (id, flag) = (*id, stream.end()?);
        self.send_flag(id, flag);
        self.settle(key, now);
        Ok(())
    }

    /// Nobody holds the stream any more.
    pub(crate) fn drop_stream(&mut self, key: StreamKey, now: Instant) {
        let Some((id, stream)) = self.streams.get_mut(&key) else {
            return;
        };
        let id = *id;
        stream.is_dropped = true;
        self.received -= stream.buffered();
        let flags = stream.give_up();
        self.blocked.remove(&key);
        // The channel of the handshake stays open, and silent: its end was the end of the connection to some.
        if id != HANDSHAKE_ID {
            for flag in flags {
                self.send_flag(id, flag);
            }
        }
        // It is read no more, but for its flags.
        self.pump(id, now);
        self.settle(key, now);
    }

    fn insert(&mut self, id: u16, now: Instant) -> StreamKey {
        let key = StreamKey(self.next_key);
        self.next_key += 1;
        self.channels.insert(id, Channel::Open(key));
        self.streams.insert(key, (id, Stream::new(now)));
        key
    }

    pub(super) fn on_secured(&mut self, now: Instant) {
        let (Some(peer), Some(association)) = (self.peer, &mut self.sctp.association) else {
            return self.close_with(CloseReason::Sctp);
        };
        if association.stream(HANDSHAKE_ID).is_err() {
            // The peer's first message may have opened it.
            let _ = association.open_stream(HANDSHAKE_ID, Ppid::Binary);
        }
        let key = self.insert(HANDSHAKE_ID, now);
        let (client, server) = match self.is_client {
            true => (self.own, peer),
            false => (peer, self.own),
        };
        self.events
            .push_back(Event::Secured(Fingerprints { client, server }, key));
        // What came before the answer that makes the association.
        self.pump(HANDSHAKE_ID, now);
    }

    /// Numbers that the peer uses, whether anything can be read of them or not.
    pub(super) fn on_opened(&mut self) {
        let Some(association) = &mut self.sctp.association else {
            return;
        };
        // Its list of new streams is of no use here.
        while association.accept_stream().is_some() {}
        self.opened += 1;
        if self.opened.is_multiple_of(256) && association.stream_ids().len() > MAX_CHANNELS {
            self.close_with(CloseReason::TooManyStreams);
        }
    }

    pub(super) fn on_readable(&mut self, id: u16, now: Instant) {
        if !self.channels.contains_key(&id) {
            if id == HANDSHAKE_ID {
                // The server may speak before we know that the association stands: `on_secured` takes it.
                return;
            }
            if !self.is_of_peer(id) || !self.may_open() {
                return self.refuse(id);
            }
            self.inbound += 1;
            self.channels.insert(id, Channel::Opening);
        }
        self.pump(id, now);
    }

    /// Whether the peer may open one more stream: those whose channel is gone count for as long as somebody holds them, or is to take them.
    fn may_open(&self) -> bool {
        let most = match self.phase {
            Phase::Handshake { .. } => MAX_EARLY,
            Phase::Up | Phase::Closed(_) => MAX_INBOUND,
        };
        let held = self.streams.values().filter(|(id, stream)| {
            *id != HANDSHAKE_ID && self.is_of_peer(*id) && !stream.is_dropped
        });
        self.inbound < most && held.count() < most
    }

    fn refuse(&mut self, id: u16) {
        tracing::debug!(id, "a data channel is refused");
        self.close_channel(id);
    }

    /// Takes from SCTP what there is room for.
    pub(super) fn pump(&mut self, id: u16, now: Instant) {
        self.unread.remove(&id);
        loop {
            let key = match self.channels.get(&id) {
                Some(Channel::Opening) => None,
                Some(Channel::Open(key)) => Some(*key),
                Some(Channel::Closing { .. } | Channel::Lost) | None => return,
            };
            if !self.has_room(key) {
                self.unread.insert(id);
                return;
            }
            let Some(message) = self
                .channel(id)
                .and_then(|mut channel| channel.read().ok()?)
            else {
                return;
            };
            self.drained += message.len();
            let is_fine = match (message.ppi, key) {
                (Ppid::Dcep, _) => {
                    let mut bytes = vec![0; message.len().min(1024)];
                    let length = message.read(&mut bytes).unwrap_or_default();
                    self.on_dcep(id, bytes.get(..length).unwrap_or_default(), now)
                }
                (Ppid::Binary, Some(key)) => self.on_data(id, key, &message, now),
                // No data at all.
                (Ppid::BinaryEmpty, Some(_)) => true,
                _ => false,
            };
            if !is_fine {
                self.abort(id, now);
            }
        }
    }

    fn has_room(&self, key: Option<StreamKey>) -> bool {
        let stream = key.and_then(|key| self.streams.get(&key));
        match stream {
            Some((_, stream)) if stream.discards() => true,
            Some((_, stream)) => stream.wants_more() && self.received < MAX_RECEIVED,
            None => self.received < MAX_RECEIVED,
        }
    }

    fn on_data(&mut self, id: u16, key: StreamKey, message: &Chunks, now: Instant) -> bool {
        let Some((_, stream)) = self.streams.get_mut(&key) else {
            return false;
        };
        let before = stream.buffered();
        let Some(decoder) = stream.decoder() else {
            return true;
        };
        let _ = message.read(decoder.space(message.len()));
        let mut answers = Vec::new();
        let is_fine = loop {
            match stream.next(now) {
                Ok(Some(answer)) => answers.push(answer),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        self.received = self.received - before + stream.buffered();
        for answer in answers {
            self.send_flag(id, answer);
        }
        self.events.push_back(Event::Changed(key));
        self.settle(key, now);
        is_fine
    }

    /// Channels whose data was left where it is.
    pub(super) fn pump_unread(&mut self, now: Instant) {
        for id in std::mem::take(&mut self.unread) {
            self.pump(id, now);
        }
    }

    fn on_dcep(&mut self, id: u16, message: &[u8], now: Instant) -> bool {
        match (dcep::parse(message), self.channels.get(&id)) {
            (Dcep::Ack, Some(Channel::Open(_))) => true,
            (Dcep::Open, Some(Channel::Opening)) => {
                let channel = self.channel(id);
                let Some(mut channel) = channel else {
                    return false;
                };
                let is_fine = channel.set_default_payload_type(Ppid::Binary).is_ok()
                    && channel.write_with_ppi(&dcep::ACK, Ppid::Dcep).is_ok();
                let key = self.insert(id, now);
                self.events.push_back(Event::Opened(key));
                is_fine
            }
            _ => false,
        }
    }

    /// The peer breaks the rules on a stream, or overruns it. What it still sends is thrown away, until it has had the time to hear of it.
    fn abort(&mut self, id: u16, now: Instant) {
        match self.channels.get(&id).copied() {
            Some(Channel::Open(key)) => self.abort_stream(key, now),
            _ => self.refuse(id),
        }
    }

    fn abort_stream(&mut self, key: StreamKey, now: Instant) {
        let Some((id, stream)) = self.streams.get_mut(&key) else {
            return;
        };
        let id = *id;
        self.received -= stream.buffered();
        let flags = stream.abort();
        self.events.push_back(Event::Changed(key));
        // Of one whose channel is gone there is nobody to tell; its number may be another stream's.
        let is_open = self.channels.get(&id) == Some(&Channel::Open(key));
        if is_open {
            for flag in flags {
                self.send_flag(id, flag);
            }
        }
        self.settle(key, now);
        if is_open {
            self.unread.insert(id);
        }
    }

    /// The peer has closed the channel.
    pub(super) fn on_finished(&mut self, id: u16) {
        self.unread.remove(&id);
        let closing = Channel::Closing { is_asked: true };
        let before = self.channels.insert(id, closing);
        if before != Some(closing) {
            self.resetting += 1;
        }
        self.release(id, before);
    }

    /// The channel of `id` was this one, and is closing now.
    fn release(&mut self, id: u16, before: Option<Channel>) {
        if matches!(before, Some(Channel::Closing { .. } | Channel::Lost)) {
            return;
        }
        self.closing += 1;
        if let Some(Channel::Open(key)) = before
            && let Some((_, stream)) = self.streams.get(&key)
            && stream.sending > 0
        {
            // SCTP keeps it until the peer has it, and completes no reset before.
            self.orphaned.insert(id, stream.sending);
        }
        if before.is_some() && id != HANDSHAKE_ID {
            match self.is_of_peer(id) {
                true => self.inbound -= 1,
                false => {
                    self.outbound -= 1;
                    self.events.push_back(Event::CanOpen);
                }
            }
        }
        if let Some(Channel::Open(key)) = before {
            self.on_channel_closed(key);
        }
        if self.closing > MAX_CLOSING && !self.is_closed() {
            self.close_with(CloseReason::TooManyStreams);
        }
    }

    fn on_channel_closed(&mut self, key: StreamKey) {
        let Some((_, stream)) = self.streams.get_mut(&key) else {
            return;
        };
        let before = stream.buffered();
        stream.on_channel_closed();
        self.received = self.received - before + stream.buffered();
        if stream.is_dropped {
            self.streams.remove(&key);
        } else {
            self.events.push_back(Event::Changed(key));
        }
    }

    fn is_of_peer(&self, id: u16) -> bool {
        id.is_multiple_of(2) != self.is_client
    }

    pub(super) fn on_reset_complete(&mut self, id: u16, now: Instant) {
        if self.channels.get(&id) != Some(&Channel::Closing { is_asked: true }) {
            return;
        }
        self.channels.remove(&id);
        self.orphaned.remove(&id);
        self.closing -= 1;
        self.reset_next();
        // The peer may have heard of it first, and have used the number again.
        if self.channel(id).is_some() {
            self.on_readable(id, now);
        }
    }

    /// SCTP has done with one reset.
    fn reset_next(&mut self) {
        self.resetting -= 1;
        while self.resetting < MAX_RESETTING
            && let Some(id) = self.to_reset.pop_front()
        {
            if self.channels.get(&id) == Some(&Channel::Closing { is_asked: false }) {
                self.ask_for_reset(id);
            }
        }
    }

    /// The number is not to be used again.
    pub(super) fn on_reset_failed(&mut self, id: u16) {
        if self.channels.get(&id) == Some(&Channel::Closing { is_asked: true }) {
            self.channels.insert(id, Channel::Lost);
            self.reset_next();
        }
    }

    /// Resets the channel, after what was written to it.
    fn close_channel(&mut self, id: u16) {
        self.unread.remove(&id);
        let closing = Channel::Closing { is_asked: false };
        let before = self.channels.insert(id, closing);
        if let Some(before @ (Channel::Closing { .. } | Channel::Lost)) = before {
            self.channels.insert(id, before);
            return;
        }
        if self.resetting < MAX_RESETTING {
            self.ask_for_reset(id);
        } else {
            self.to_reset.push_back(id);
        }
        self.release(id, before);
    }

    fn ask_for_reset(&mut self, id: u16) {
        let closing = Channel::Closing { is_asked: true };
        self.channels.insert(id, closing);
        self.resetting += 1;
        self.has_written = true;
        if let Some(mut channel) = self.channel(id) {
            let _ = channel.close();
        }
    }

    /// Closes the channel of a stream on which all is said, and has others wait for it.
    fn settle(&mut self, key: StreamKey, now: Instant) {
        let Some((id, stream)) = self.streams.get_mut(&key) else {
            return;
        };
        let id = *id;
        if self.channels.get(&id) != Some(&Channel::Open(key)) {
            if stream.is_dropped {
                self.streams.remove(&key);
            }
        } else if id == HANDSHAKE_ID {
            // See `drop_stream`.
        } else if stream.is_over() && id.is_multiple_of(2) == self.is_client {
            // Who has opened it closes it. `sctp-proto` answers every reset with one of its own, even after one of its own: the second would
            // hit the next stream of that number, and browsers use numbers again at once. We count up.
            self.close_channel(id);
        } else if stream.is_ending() && !stream.is_lingering {
            stream.is_lingering = true;
            self.lingering.push_back((now + LINGER, key));
        }
    }

    pub(super) fn poll_stream_timeout(&self) -> Option<Instant> {
        let linger = self.lingering.front().map(|(due, _)| *due);
        let stall = self.stalled().map(|(read_at, _)| read_at + STALL);
        linger.into_iter().chain(stall).min()
    }

    pub(super) fn handle_stream_timeouts(&mut self, now: Instant) {
        while let Some((due, key)) = self.lingering.front().copied()
            && due <= now
        {
            self.lingering.pop_front();
            if let Some((id, stream)) = self.streams.get(&key) {
                let id = *id;
                // What waits to be read stays, but not what waits to be acknowledged.
                if stream.is_ending() && self.channels.get(&id) == Some(&Channel::Open(key)) {
                    self.close_channel(id);
                }
            }
        }
        while let Some((read_at, key)) = self.stalled()
            && read_at + STALL <= now
        {
            tracing::debug!("a stream is reset: what nobody reads keeps all others waiting");
            // It has no data then, and is stalled no more.
            self.abort_stream(key, now);
            self.pump_unread(now);
            self.notice_full(now);
        }
    }

    /// Of the streams whose data nobody reads, the one that was read from first, if others have to wait for it; and since when they wait.
    fn stalled(&self) -> Option<(Instant, StreamKey)> {
        let since = self.full_since?;
        let has_more = |key: StreamKey, id: u16| {
            self.unread.contains(&id) && self.channels.get(&id) == Some(&Channel::Open(key))
        };
        let stalled = self.streams.iter().filter(|(key, (id, stream))| {
            stream.buffered() > 0 && (self.received >= MAX_RECEIVED || has_more(**key, *id))
        });
        let first = stalled
            .map(|(key, (_, stream))| (stream.read_at, *key))
            .min();
        first.map(|(read_at, key)| (read_at.max(since), key))
    }

    /// Tells a peer that has to wait of new room, when it is worth a packet: it would ask for it, but seldom.
    fn tell_room(&mut self, now: Instant) {
        let is_worth = self.drained >= FULL_WINDOW as usize || self.unread.is_empty();
        if self.window < FULL_WINDOW && self.drained > 0 && is_worth {
            self.drained = 0;
            self.sctp.tell_room(now);
            self.has_written = true;
        }
    }

    /// Notices whether streams wait for what others do not read.
    pub(super) fn notice_full(&mut self, now: Instant) {
        self.tell_room(now);
        let is_full = self.received >= MAX_RECEIVED || self.window < FULL_WINDOW;
        self.full_since = match self.full_since {
            _ if !is_full || self.unread.is_empty() => None,
            None => Some(now),
            since => since,
        };
    }

    fn channel(&mut self, id: u16) -> Option<sctp_proto::Stream<'_>> {
        self.sctp.association.as_mut()?.stream(id).ok()
    }

    fn sending(&mut self, id: u16) -> usize {
        let channel = self.channel(id);
        channel.map_or(0, |channel| channel.buffered_amount().unwrap_or_default())
    }

    pub(super) fn all_sending(&mut self) -> usize {
        let open = self
            .streams
            .iter()
            .filter(|(key, (id, _))| self.channels.get(id) == Some(&Channel::Open(**key)));
        let ids: Vec<u16> = open.map(|(_, (id, _))| *id).collect();
        let orphaned: usize = self.orphaned.values().sum();
        ids.into_iter().map(|id| self.sending(id)).sum::<usize>() + orphaned
    }

    /// Tells writers who waited for room that there is some.
    pub(super) fn unblock(&mut self) {
        if self.blocked.is_empty() || self.all_sending() >= MAX_SENDING {
            return;
        }
        for key in std::mem::take(&mut self.blocked) {
            let id = self.streams.get(&key).map(|(id, _)| *id);
            if id.is_some_and(|id| self.sending(id) > MAX_SENDING_PER_STREAM / 2) {
                self.blocked.insert(key);
            } else {
                self.events.push_back(Event::Changed(key));
            }
        }
    }

    pub(super) fn send(&mut self, id: u16, frame: Bytes) -> bool {
        self.has_written = true;
        let channel = self.channel(id);
        channel.is_some_and(|mut channel| channel.write_chunks(&mut [frame]).is_ok())
    }

    pub(super) fn send_flag(&mut self, id: u16, flag: Option<Flag>) {
        if let Some(flag) = flag {
            self.send(id, encode_flag(flag));
        }
    }

    pub(super) fn on_streams_lost(&mut self) {
        let keys: Vec<_> = self.streams.keys().copied().collect();
        for key in keys {
            self.on_channel_closed(key);
        }
        self.events.push_back(Event::CanOpen);
        self.channels.clear();
        self.blocked.clear();
        self.unread.clear();
        self.lingering.clear();
        self.to_reset.clear();
        self.orphaned.clear();
        self.full_since = None;
        self.resetting = 0;
        (self.inbound, self.outbound, self.closing) = (0, 0, 0);
    }

    /// Whether the peer has everything that was written.
    pub(crate) fn is_flushed(&mut self) -> bool {
        self.is_closed() || self.all_sending() == 0
    }
}
