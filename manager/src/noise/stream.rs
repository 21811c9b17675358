//! A connection's bytes after the handshake: messages of at most 64 KiB, each behind its length (specification, "Wire format").

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};

use super::{
    buffers::{Buffer, Pool, Pools},
    cipher::{Cipher, TAG},
};

/// Bytes of a message's length.
const PREFIX: usize = 2;
/// The longest message.
const MAX_MESSAGE: usize = 65_535;
/// What it can carry.
const MAX_PLAIN: usize = MAX_MESSAGE - TAG;

/// What is read at once: a whole message is always there to be decrypted, and mostly two.
pub(super) const READ_BUFFER: usize = 2 * (PREFIX + MAX_MESSAGE);
/// What is written at once.
pub(super) const WRITE_BUFFER: usize = PREFIX + MAX_MESSAGE;

/// So much is decrypted before those that take it get their turn. A multiplexer reads as long as there is anything, and would pile it up in fresh
/// memory that no cache holds: blocks of 256 KiB come a twentieth faster than with 256 KiB, a seventh faster than without, and no faster with 32 KiB.
/// (libp2p-swarm asks its multiplexer twice in a turn.)
const BURST: usize = 64 * 1024;

/// What a message counts beyond its bytes, so that a peer that sends tiny ones, or empty ones, does not hold a thread for long.
const MESSAGE_COST: usize = 256;

/// An encrypted connection.
pub struct Stream<S> {
    socket: S,
    reader: Reader,
    writer: Writer,
}

impl<S> fmt::Debug for Stream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl<S> Stream<S> {
    pub(super) fn new(socket: S, theirs: Cipher, ours: Cipher, pools: &Pools) -> Self {
        Self {
            socket,
            reader: Reader::new(theirs, pools.read.clone()),
            writer: Writer::new(ours, pools.write.clone()),
        }
    }
}

#[cfg(test)]
impl<S> Stream<S> {
    pub(super) fn socket(&self) -> &S {
        &self.socket
    }

    /// Bytes of memory that it holds beside itself.
    pub(super) fn held(&self) -> usize {
        let size = |buffer: &Option<Buffer>| buffer.as_ref().map_or(0, |buffer| buffer.len());
        size(&self.reader.buffer) + self.reader.parked.capacity() + size(&self.writer.buffer)
    }

    /// The next flush sends a message without content.
    pub(super) fn seal_nothing(&mut self) {
        self.writer.buffer = Some(self.writer.pool.take());
        self.writer.seal(0).unwrap();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.reader.poll_read(&mut this.socket, context, to)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.writer.is_full() {
            ready!(this.writer.poll_send(&mut this.socket, context))?;
        }
        Poll::Ready(Ok(this.writer.gather(from)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.writer.poll_send(&mut this.socket, context))?;
        Pin::new(&mut this.socket).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(context))?;
        Pin::new(&mut self.socket).poll_close(context)
    }
}

/// What comes.
struct Reader {
    cipher: Cipher,
    pool: Arc<Pool>,
    /// Held while something is in it.
    buffer: Option<Buffer>,
    /// The beginning of a message that waits for the rest, where there is no buffer: a peer has memory here for what it has sent.
    parked: Vec<u8>,
    /// Where the plaintext is that was not taken yet.
    plain: std::ops::Range<usize>,
    /// Where the messages are, behind it.
    sealed: std::ops::Range<usize>,
    /// What was decrypted in this turn.
    burst: usize,
    end: Option<End>,
}

/// Why nothing more is read.
#[derive(Clone, Copy)]
enum End {
    /// Between two messages.
    Closed,
    /// Within one.
    Cut,
    /// At one that is not the peer's.
    Forged,
    /// The socket failed.
    Failed(io::ErrorKind),
}

impl End {
    fn result(self) -> io::Result<usize> {
        match self {
            Self::Closed => Ok(0),
            Self::Cut => Err(io::ErrorKind::UnexpectedEof.into()),
            Self::Forged => Err(io::ErrorKind::InvalidData.into()),
            Self::Failed(kind) => Err(kind.into()),
        }
    }
}

impl Reader {
    fn new(cipher: Cipher, pool: Arc<Pool>) -> Self {
        Self {
            cipher,
            pool,
            buffer: None,
            parked: Vec::new(),
            plain: 0..0,
            sealed: 0..0,
            burst: 0,
            end: None,
        }
    }

    fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        socket: &mut S,
        context: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if to.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            let taken = self.take(to);
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
            if let Some(end) = self.end {
                return Poll::Ready(end.result());
            }
            if self.burst >= BURST {
                self.burst = 0;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.open()? {
                continue;
            }
            ready!(self.poll_fill(socket, context))?;
        }
    }

    /// Hands on plaintext.
    fn take(&mut self, to: &mut [u8]) -> usize {
        let plain = self
            .buffer
            .as_deref()
            .and_then(|b| b.get(self.plain.clone()));
        let plain = plain.unwrap_or_default();
        let size = plain.len().min(to.len());
        if let (Some(to), Some(plain)) = (to.get_mut(..size), plain.get(..size)) {
            to.copy_from_slice(plain);
        }
        self.plain.start += size;
        size
    }

    /// Decrypts the next message, if it is whole.
    fn open(&mut self) -> io::Result<bool> {
        let Some(sealed) = self
            .buffer
            .as_deref_mut()
            .and_then(|buffer| buffer.get_mut(self.sealed.clone()))
        else {
            return Ok(false);
        };
        let Some((prefix, rest)) = sealed.split_first_chunk_mut::<PREFIX>() else {
            return Ok(false);
        };
        let length = usize::from(u16::from_be_bytes(*prefix));
        let Some(message) = rest.get_mut(..length) else {
            return Ok(false);
        };
        let plain = match self.cipher.open(message) {
            Ok(plain) => plain,
            Err(error) => {
                self.end = Some(End::Forged);
                self.buffer = None;
                return Err(error);
            }
        };
        let start = self.sealed.start + PREFIX;
        self.plain = start..start + plain;
        self.sealed.start = start + length;
        self.burst += length + MESSAGE_COST;
        Ok(true)
    }

    /// Reads as much as there is room for. There is no plaintext left, and no whole message.
    fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        socket: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut buffer = self.buffer.take().unwrap_or_else(|| self.pool.take());
        if !self.parked.is_empty() {
            let parked = std::mem::take(&mut self.parked);
            if let Some(front) = buffer.get_mut(..parked.len()) {
                front.copy_from_slice(&parked);
            }
            self.sealed = 0..parked.len();
        } else if self.sealed.start > 0 {
            buffer.copy_within(self.sealed.clone(), 0);
            self.sealed = 0..self.sealed.len();
        }
        let room = buffer.get_mut(self.sealed.end..).unwrap_or_default();
        match Pin::new(socket).poll_read(context, room) {
            Poll::Ready(Ok(0)) => {
                let is_cut = !self.sealed.is_empty();
                self.end = Some(if is_cut { End::Cut } else { End::Closed });
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Ok(read)) => {
                self.sealed.end += read;
                self.buffer = Some(buffer);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => {
                self.end = Some(End::Failed(error.kind()));
                Poll::Ready(Err(error))
            }
            Poll::Pending => {
                self.burst = 0;
                if let Some(sealed) = buffer.get(self.sealed.clone()) {
                    self.parked = sealed.to_vec();
                }
                self.sealed = 0..0;
                Poll::Pending
            }
        }
    }
}

/// What goes.
struct Writer {
    cipher: Cipher,
    pool: Arc<Pool>,
    /// Held while something is in it.
    buffer: Option<Buffer>,
    state: Writing,
}

#[derive(Clone, Copy)]
enum Writing {
    /// So many bytes of plaintext, behind the room for their length.
    Gathers(usize),
    /// A message, of which so many bytes are written, and its end.
    Sends(usize, usize),
}

impl Writer {
    fn new(cipher: Cipher, pool: Arc<Pool>) -> Self {
        Self {
            cipher,
            pool,
            buffer: None,
            state: Writing::Gathers(0),
        }
    }

    /// Nothing more can be gathered before something is sent.
    fn is_full(&self) -> bool {
        matches!(self.state, Writing::Gathers(MAX_PLAIN) | Writing::Sends(..))
    }

    /// Takes what there is room for.
    fn gather(&mut self, from: &[u8]) -> usize {
        let Writing::Gathers(gathered) = self.state else {
            return 0;
        };
        let size = from.len().min(MAX_PLAIN - gathered);
        if size == 0 {
            return 0;
        }
        let buffer = self.buffer.get_or_insert_with(|| self.pool.take());
        let start = PREFIX + gathered;
        if let (Some(to), Some(from)) = (buffer.get_mut(start..start + size), from.get(..size)) {
            to.copy_from_slice(from);
        }
        self.state = Writing::Gathers(gathered + size);
        size
    }

    /// Encrypts what is gathered.
    fn seal(&mut self, gathered: usize) -> io::Result<()> {
        let end = PREFIX + gathered + TAG;
        let message = self.buffer.as_deref_mut().and_then(|b| b.get_mut(..end));
        let Some((prefix, message)) = message.and_then(|b| b.split_first_chunk_mut::<PREFIX>())
        else {
            return Err(io::Error::other("nothing was gathered"));
        };
        let length = u16::try_from(message.len()).map_err(io::Error::other)?;
        *prefix = length.to_be_bytes();
        let Some((plain, tag)) = message.split_last_chunk_mut::<TAG>() else {
            return Err(io::Error::other("there is no room for the tag"));
        };
        *tag = self.cipher.seal(plain)?;
        self.state = Writing::Sends(0, end);
        Ok(())
    }

    /// Writes all that is there.
    fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.state {
                Writing::Gathers(0) => {
                    self.buffer = None;
                    return Poll::Ready(Ok(()));
                }
                Writing::Gathers(gathered) => self.seal(gathered)?,
                Writing::Sends(written, end) => {
                    let rest = self.buffer.as_deref().and_then(|b| b.get(written..end));
                    let rest = rest.unwrap_or_default();
                    let size = ready!(Pin::new(&mut *socket).poll_write(context, rest))?;
                    if size == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    self.state = if written + size < end {
                        Writing::Sends(written + size, end)
                    } else {
                        Writing::Gathers(0)
                    };
                }
            }
        }
    }
}
