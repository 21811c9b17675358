//! Frames on streams: [`FrameReader`] for inbound streams, [`FrameWriter`] for the outbound one.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::ProtocolViolation;

/// What is read at once while the length of the next frame is unknown; also what an idle stream
/// costs.
const PEEK_BYTES: usize = 2 * 1024;
/// A frame gets this much memory on the word of its sender; more only as bytes arrive.
const FIRST_BYTES: usize = 64 * 1024;

/// Bytes that the readers of one connection hold, and may hold, in incomplete frames.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    used: Arc<AtomicUsize>,
    limit: usize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            used: Arc::default(),
            limit,
        }
    }
}

#[derive(Debug)]
pub(crate) enum ReadError {
    Io(io::Error),
    Violation(ProtocolViolation),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads length-prefixed frames. Memory grows with what has arrived, not with what was declared,
/// except up to the size of a frame that this sender did complete before.
pub(crate) struct FrameReader<R> {
    io: R,
    /// Initialised memory, the first `filled` bytes of which are data.
    buffer: BytesMut,
    filled: usize,
    max_frame_bytes: usize,
    proven: usize,
    budget: Budget,
    reserved: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(io: R, max_frame_bytes: usize, budget: Budget) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            filled: 0,
            max_frame_bytes,
            proven: FIRST_BYTES,
            budget,
            reserved: 0,
        }
    }

    /// The next frame's body; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            let target = match self.header()? {
                Some((header, body)) if self.filled >= header + body => {
                    return Ok(Some(self.take(header, body)));
                }
                Some((header, body)) => {
                    (header + body).min(self.proven.max(self.filled.saturating_mul(2)))
                }
                None => self.filled + PEEK_BYTES,
            };
            self.grow(target)?;
            let space = self.buffer.get_mut(self.filled..).unwrap_or_default();
            match self.io.read(space).await? {
                0 if self.filled == 0 => return Ok(None),
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                n => self.filled += n,
            }
        }
    }

    /// Length of the header and of the body it announces, if the header is complete.
    fn header(&self) -> Result<Option<(usize, usize)>, ReadError> {
        let mut length = 0_u64;
        for (index, byte) in self.buffer.iter().take(self.filled).enumerate() {
            if index > 9 {
                break;
            }
            length |= u64::from(byte & 0x7f)
                .checked_shl(7 * index as u32)
                .unwrap_or(0);
            let limit = self.max_frame_bytes as u64;
            if length > limit {
                let declared = length;
                return Err(ReadError::Violation(ProtocolViolation::FrameTooLarge {
                    declared,
                    limit,
                }));
            }
            if byte & 0x80 == 0 {
                return Ok(Some((index + 1, length as usize)));
            }
        }
        match self.filled {
            0..=9 => Ok(None),
            _ => Err(ReadError::Violation(ProtocolViolation::Malformed(
                "length prefix",
            ))),
        }
    }

    fn grow(&mut self, target: usize) -> Result<(), ReadError> {
        if self.buffer.len() < target {
            let more = target.saturating_sub(self.reserved);
            let used = self.budget.used.fetch_add(more, Ordering::Relaxed);
            self.reserved += more;
            if more > 0 && used + more > self.budget.limit {
                return Err(ReadError::Violation(ProtocolViolation::Malformed(
                    "too many incomplete frames at a time",
                )));
            }
            self.buffer.resize(target, 0);
        }
        Ok(())
    }

    fn take(&mut self, header: usize, body: usize) -> Bytes {
        self.proven = self.proven.max(header + body);
        self.buffer.truncate(self.filled);
        self.buffer.advance(header);
        let frame = self.buffer.split_to(body).freeze();
        self.filled -= header + body;
        if self.filled == 0 {
            self.buffer = BytesMut::new();
            self.release();
        }
        frame
    }

    /// Closes our half, once the other side has closed theirs.
    pub(crate) async fn close(&mut self) -> io::Result<()>
    where
        R: AsyncWrite,
    {
        self.io.close().await
    }

    fn release(&mut self) {
        self.budget.used.fetch_sub(self.reserved, Ordering::Relaxed);
        self.reserved = 0;
    }
}

impl<R> Drop for FrameReader<R> {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.reserved, Ordering::Relaxed);
    }
}

/// Writes the buffers of one message after the other, and watches the other direction, on which
/// nothing is ever sent, for a reset.
pub(crate) struct FrameWriter<W> {
    io: W,
    chunks: VecDeque<Bytes>,
    flushed: bool,
    watching: bool,
    progressed: bool,
}

impl<W: AsyncRead + AsyncWrite + Unpin> FrameWriter<W> {
    pub(crate) fn new(io: W) -> Self {
        Self {
            io,
            chunks: VecDeque::new(),
            flushed: true,
            watching: true,
            progressed: false,
        }
    }

    pub(crate) fn start(&mut self, chunks: Vec<Bytes>) {
        self.chunks.extend(chunks);
        self.flushed = false;
    }

    /// Ready once everything started was accepted by the muxer. After an error the writer is dead.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(chunk) = self.chunks.front_mut() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, chunk))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => chunk.advance(n.min(chunk.len())),
            }
            self.progressed = true;
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether a byte was accepted since the last call.
    pub(crate) fn progressed(&mut self) -> bool {
        std::mem::take(&mut self.progressed)
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.flushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// An error if the stream was reset or its negotiation refused. Its end is none: peers that
    /// never answer on our stream may close that half at once.
    pub(crate) fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut ignored = [0; 64];
        while self.watching {
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut ignored)) {
                Ok(0) => self.watching = false,
                Ok(_) => {}
                Err(error) => {
                    self.watching = false;
                    return Poll::Ready(error);
                }
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use futures::{executor::block_on, io::Cursor};

    use super::*;

    const LIMIT: usize = 4 * 1024 * 1024;

    fn reader(bytes: Vec<u8>) -> FrameReader<Cursor<Vec<u8>>> {
        FrameReader::new(Cursor::new(bytes), LIMIT, Budget::new(16 * 1024 * 1024))
    }

    /// A frame of `length` bytes.
    fn frame(length: usize) -> Vec<u8> {
        let mut frame = Vec::new();
        prost::encoding::encode_varint(length as u64, &mut frame);
        frame.resize(frame.len() + length, 7);
        frame
    }

    #[test]
    fn frames_of_all_sizes_follow_one_another() {
        let sizes = [0, 1, 127, 128, 10_000, 8190, 300_000, 5, LIMIT];
        let mut reader = reader(sizes.iter().flat_map(|size| frame(*size)).collect());
        for size in sizes {
            assert_eq!(block_on(reader.next()).unwrap().unwrap().len(), size);
        }
        assert!(block_on(reader.next()).unwrap().is_none());
        assert!(reader.budget.used.load(Ordering::Relaxed) <= PEEK_BYTES);
    }

    /// R2: beetswap compares the length of the varint with the limit.
    #[test]
    fn r2_a_declared_length_above_the_limit_is_refused_before_anything_is_buffered() {
        for declared in [LIMIT as u64 + 1, 1 << 40, u64::MAX] {
            let mut bytes = Vec::new();
            prost::encoding::encode_varint(declared, &mut bytes);
            let mut reader = reader(bytes);
            let error = block_on(reader.next()).unwrap_err();
            assert!(matches!(
                error,
                ReadError::Violation(ProtocolViolation::FrameTooLarge { .. })
            ));
            assert!(reader.buffer.len() <= PEEK_BYTES);
        }
        let mut reader = reader(vec![0xff; 11]);
        assert!(matches!(
            block_on(reader.next()),
            Err(ReadError::Violation(_))
        ));
    }

    #[test]
    fn a_declared_length_below_the_limit_allocates_only_what_arrives() {
        let mut bytes = frame(LIMIT);
        bytes.truncate(1000);
        let mut reader = reader(bytes);
        assert!(matches!(block_on(reader.next()), Err(ReadError::Io(_))));
        assert!(reader.buffer.len() <= FIRST_BYTES);
    }

    #[test]
    fn incomplete_frames_of_all_streams_share_one_budget() {
        let budget = Budget::new(200_000);
        let mut partial = frame(LIMIT);
        partial.truncate(150_000);
        let read = || {
            let mut reader = FrameReader::new(Cursor::new(partial.clone()), LIMIT, budget.clone());
            let result = block_on(reader.next());
            (reader, result)
        };
        let (first, result) = read();
        assert!(matches!(
            result,
            Err(ReadError::Violation(_)) | Err(ReadError::Io(_))
        ));
        let (_second, result) = read();
        assert!(matches!(result, Err(ReadError::Violation(_))));
        drop((first, _second));
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
