//! What both ends have said of one stream, and what of it waits to be read.

use std::{
    collections::VecDeque,
    io::{self, Read as _},
};

use web_time::Instant;

use super::message::{Decoder, Flag, Malformed, Message};

/// Data that waits in a stream to be read before more of it is taken from SCTP. Flags come after the data before them.
pub(super) const READ_AHEAD: usize = 64 * 1024;

/// Room for data that a stream keeps when there is none.
const KEPT_BYTES: usize = 4 * 1024;

/// What our end may still do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Send {
    Open,
    /// `FIN` is on its way.
    Ending,
    /// The other end has read it.
    Ended,
    /// The other end reads no more.
    Stopped,
    /// Given up by us, or there is no channel any more.
    Reset,
}

/// What the other end may still do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receive {
    Open,
    Ended,
    /// We read no more; whether the other end has ended since.
    Stopped {
        has_ended: bool,
    },
    Reset,
}

#[derive(Debug)]
pub(super) struct Stream {
    send: Send,
    receive: Receive,
    decoder: Decoder,
    /// Copied out of the frames: a frame may be much larger than the data in it.
    data: VecDeque<u8>,
    /// When it was last found empty, or read from.
    pub(super) read_at: Instant,
    /// Nobody holds it any more.
    pub(super) is_dropped: bool,
    pub(super) is_lingering: bool,
    /// What comes is no frames.
    is_broken: bool,
    /// We gave it up; whoever reads is told so.
    is_aborted: bool,
    /// What SCTP had to send of it when it was last written to, at least what it has now.
    pub(super) sending: usize,
}

impl Stream {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            send: Send::Open,
            receive: Receive::Open,
            decoder: Decoder::default(),
            data: VecDeque::new(),
            read_at: now,
            is_dropped: false,
            is_lingering: false,
            is_broken: false,
            is_aborted: false,
            sending: 0,
        }
    }

    /// Bytes that wait to be read.
    pub(super) fn buffered(&self) -> usize {
        self.data.len()
    }

    /// Bytes that they take.
    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.data.capacity()
    }

    pub(super) fn wants_more(&self) -> bool {
        self.data.len() < READ_AHEAD
    }

    /// Whether its data is thrown away, which takes no room. It has to be taken: SCTP keeps it for all to see otherwise.
    pub(super) fn discards(&self) -> bool {
        self.receive != Receive::Open
    }

    /// Where what arrives goes, if it is of any use.
    pub(super) fn decoder(&mut self) -> Option<&mut Decoder> {
        (!self.is_broken).then_some(&mut self.decoder)
    }

    /// Takes the next frame out of what the decoder got. The flag is to be answered.
    pub(super) fn next(&mut self, now: Instant) -> Result<Option<Option<Flag>>, Malformed> {
        let next = self.decoder.next();
        self.is_broken |= next.is_err();
        let Some(message) = next? else {
            return Ok(None);
        };
        Ok(Some(self.on_message(message, now)))
    }

    fn on_message(&mut self, message: Message, now: Instant) -> Option<Flag> {
        if self.receive == Receive::Open && !message.data.is_empty() {
            if self.data.is_empty() {
                self.read_at = now;
            }
            self.data.extend(message.data);
        }
        match message.flag? {
            Flag::Fin => {
                // Once: what a peer sends must not have us send more.
                match &mut self.receive {
                    Receive::Open => self.receive = Receive::Ended,
                    Receive::Stopped { has_ended } if !*has_ended => *has_ended = true,
                    Receive::Stopped { .. } | Receive::Ended | Receive::Reset => return None,
                }
                return Some(Flag::FinAck);
            }
            Flag::FinAck => {
                if self.send == Send::Ending {
                    self.send = Send::Ended;
                }
            }
            Flag::StopSending => {
                if matches!(self.send, Send::Open | Send::Ending) {
                    self.send = Send::Stopped;
                }
            }
            Flag::Reset => match &mut self.receive {
                Receive::Open => self.on_reset(),
                Receive::Stopped { has_ended } => *has_ended = true,
                Receive::Ended | Receive::Reset => {}
            },
        }
        None
    }

    fn on_reset(&mut self) {
        self.receive = Receive::Reset;
        self.forget_data();
    }

    fn forget_data(&mut self) {
        self.data = VecDeque::new();
    }

    /// The channel is gone, with what was on it.
    pub(super) fn on_channel_closed(&mut self) {
        match self.receive {
            // Without a `FIN` before: go-libp2p's resets, where they come after the channel's end.
            Receive::Open => self.on_reset(),
            Receive::Stopped { .. } => self.receive = Receive::Stopped { has_ended: true },
            Receive::Ended | Receive::Reset => {}
        }
        self.send = match self.send {
            // Who closes the channel has read the `FIN`.
            Send::Ending | Send::Ended => Send::Ended,
            Send::Open | Send::Stopped | Send::Reset => Send::Reset,
        };
    }

    /// Some, or nothing at the end; none if there is nothing yet.
    pub(super) fn read(&mut self, buffer: &mut [u8], now: Instant) -> Option<io::Result<usize>> {
        if !self.data.is_empty() || buffer.is_empty() {
            // In two parts where the ring's end lies between them.
            let first = self.data.read(buffer).unwrap_or_default();
            let second = self
                .data
                .read(buffer.get_mut(first..).unwrap_or_default())
                .unwrap_or_default();
            if self.data.is_empty() && self.data.capacity() > KEPT_BYTES {
                self.data = VecDeque::new();
            }
            self.read_at = now;
            return Some(Ok(first + second));
        }
        match self.receive {
            // Even where the other end had ended: what it had sent was thrown away.
            _ if self.is_aborted => Some(Err(io::ErrorKind::ConnectionReset.into())),
            Receive::Open => None,
            Receive::Ended | Receive::Stopped { .. } => Some(Ok(0)),
            Receive::Reset => Some(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }

    /// Whether anything may be written.
    pub(super) fn check_writable(&self) -> io::Result<()> {
        match self.send {
            Send::Open => Ok(()),
            Send::Ending | Send::Ended | Send::Stopped => Err(io::ErrorKind::BrokenPipe.into()),
            Send::Reset => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    /// Writes no more. The flag is to be sent.
    pub(super) fn end(&mut self) -> io::Result<Option<Flag>> {
        match self.send {
            Send::Open => {
                self.send = Send::Ending;
                Ok(Some(Flag::Fin))
            }
            Send::Ending | Send::Ended => Ok(None),
            Send::Stopped => {
                // Who reads no more waits for it all the same, to close the channel.
                self.send = Send::Reset;
                Ok(Some(Flag::Fin))
            }
            Send::Reset => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    /// Has nothing to do with it any more. The flags are to be sent.
    pub(super) fn give_up(&mut self) -> [Option<Flag>; 2] {
        self.forget_data();
        let stop = (self.receive == Receive::Open).then_some(Flag::StopSending);
        if stop.is_some() {
            self.receive = Receive::Stopped { has_ended: false };
        }
        let reset = matches!(self.send, Send::Open | Send::Stopped).then_some(Flag::Reset);
        if reset.is_some() {
            self.send = Send::Reset;
        }
        [stop, reset]
    }

    /// It has broken the rules, or overrun us: the same, but what is read of it is an error.
    pub(super) fn abort(&mut self) -> [Option<Flag>; 2] {
        self.is_aborted = true;
        self.give_up()
    }

    /// Neither end has anything more to say: the channel can go.
    pub(super) fn is_over(&self) -> bool {
        self.is_ending()
            && self.send != Send::Ending
            && self.receive != Receive::Stopped { has_ended: false }
    }

    /// We have nothing more to say, and wait for an acknowledgement, which go-libp2p and old versions of rust-libp2p do not always send.
    pub(super) fn is_ending(&self) -> bool {
        self.send != Send::Open && self.receive != Receive::Open
    }
}
