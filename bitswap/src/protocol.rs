//! Messages on streams: [`MessageReader`] for inbound streams, [`FrameWriter`] for the outbound one.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures::{AsyncRead, AsyncWrite, AsyncWriteExt, future::poll_fn};

use crate::{
    ProtocolViolation,
    budget::{ConnectionBudget, Denied, Reservation},
    buffers::Buffers,
    message::{
        Assembly, DecodeError, FIELD_TOO_LONG, FieldHead, MAX_FIELD_HEAD, TAG_BLOCKS, TAG_PAYLOAD,
        field_head, payload_head,
    },
};

/// What is read at once while it is unknown what comes next; also what an idle stream costs.
const PEEK_BYTES: usize = 1024;
/// An item gets this much memory on the word of its sender; more only as bytes arrive.
const FIRST_BYTES: usize = 64 * 1024;
/// Longest beginning of a `payload` item before its data: two keys, two lengths, a prefix of 40.
const MAX_PAYLOAD_HEAD: usize = 64;

/// Whether blocks of a peer may be of use. What comes in vain is not kept, and not hashed.
#[derive(Debug, Clone)]
pub(crate) struct Interest(Arc<Wanted>);

#[derive(Debug)]
struct Wanted {
    now: AtomicBool,
    /// Kept while blocks are wanted.
    buffers: Buffers,
}

impl Interest {
    pub(crate) fn new(interested: bool, buffers: Buffers) -> Self {
        let interest = Self(Arc::new(Wanted {
            now: AtomicBool::new(false),
            buffers,
        }));
        interest.set(interested);
        interest
    }

    pub(crate) fn set(&self, interested: bool) {
        self.0.set(interested);
    }

    /// Whether a handler has it too.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    fn get(&self) -> bool {
        self.0.now.load(Ordering::Relaxed)
    }
}

impl Wanted {
    fn set(&self, interested: bool) {
        if self.now.swap(interested, Ordering::Relaxed) != interested {
            match interested {
                true => self.buffers.open(),
                false => self.buffers.close(),
            }
        }
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[derive(Debug)]
pub(crate) enum ReadError {
    Io(io::Error),
    /// The memory was needed for others.
    Evicted,
    Violation(ProtocolViolation),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<DecodeError> for ReadError {
    fn from(error: DecodeError) -> Self {
        Self::Violation(ProtocolViolation::Malformed(error.0))
    }
}

impl From<Denied> for ReadError {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Evicted => Self::Evicted,
            Denied::Connection => Self::Violation(ProtocolViolation::Malformed(
                "too many incomplete frames at a time",
            )),
        }
    }
}

/// What one message may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) frame_bytes: usize,
    pub(crate) items: usize,
}

/// A message that has come, with the memory it holds.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) assembly: Assembly,
    pub(crate) held: Reservation,
}

/// Reads length-prefixed messages, item by item: the data of a block goes straight into memory of
/// its own. Memory grows with what has arrived, not with what was declared, except up to the size of
/// an item that the connection did deliver before.
pub(crate) struct MessageReader<R> {
    io: R,
    /// What was read ahead: `ahead.0..ahead.1`.
    buffer: Box<[u8; PEEK_BYTES]>,
    ahead: (usize, usize),
    limits: Limits,
    budget: ConnectionBudget,
    interest: Interest,
    held: Reservation,
}

impl<R: AsyncRead + Unpin> MessageReader<R> {
    pub(crate) fn new(io: R, limits: Limits, budget: ConnectionBudget, interest: Interest) -> Self {
        Self {
            io,
            buffer: Box::new([0; PEEK_BYTES]),
            ahead: (0, 0),
            limits,
            held: budget.reservation(),
            budget,
            interest,
        }
    }

    /// The next message; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Received>, ReadError> {
        let Some(length) = self.frame_length().await? else {
            return Ok(None);
        };
        let mut assembly = Assembly::new(length, self.limits.items);
        let mut left = length;
        while left > 0 {
            let field = self.fill(left.min(MAX_FIELD_HEAD)).await?;
            let field = field_head(field.get(..left).unwrap_or(field))?;
            let size = match field {
                FieldHead::Bytes { head, length, .. } => head.saturating_add(length),
                FieldHead::Varint { length, .. } | FieldHead::Other { length } => length,
            };
            left = left.checked_sub(size).ok_or(FIELD_TOO_LONG)?;
            match field {
                FieldHead::Bytes { tag, head, length } => {
                    self.consume(head);
                    self.value(tag, length, &mut assembly).await?;
                }
                FieldHead::Varint { tag, length, value } => {
                    self.consume(length);
                    assembly.varint(tag, value);
                }
                FieldHead::Other { length } => self.pass_over(length).await?,
            }
        }
        let mut held = std::mem::replace(&mut self.held, self.budget.reservation());
        held.complete();
        Ok(Some(Received { assembly, held }))
    }

    async fn value(
        &mut self,
        tag: u32,
        length: usize,
        assembly: &mut Assembly,
    ) -> Result<(), ReadError> {
        match tag {
            TAG_BLOCKS | TAG_PAYLOAD if !self.interest.get() => {
                self.pass_over(length).await?;
                assembly.leave_unread(length);
            }
            TAG_BLOCKS | TAG_PAYLOAD if !assembly.takes_blocks() => {
                self.pass_over(length).await?;
                assembly.skip();
            }
            TAG_BLOCKS => {
                let data = self.own(length).await?;
                assembly.bare_block(self.interest.0.buffers.share(data));
            }
            TAG_PAYLOAD => {
                let begin = self.fill(length.min(MAX_PAYLOAD_HEAD)).await?;
                match payload_head(begin.get(..length).unwrap_or(begin), length) {
                    Some((prefix, head)) => {
                        let prefix = smallvec::SmallVec::<[u8; 16]>::from_slice(prefix);
                        self.consume(head);
                        let data = self.own(length - head).await?;
                        assembly.block(&prefix, self.interest.0.buffers.share(data));
                    }
                    None => {
                        let whole = self.own(length).await?;
                        assembly.field(tag, whole.into())?;
                    }
                }
            }
            _ => {
                let whole = self.own(length).await?;
                assembly.field(tag, whole.into())?;
            }
        }
        Ok(())
    }

    /// The length of the next frame; `None` at the end of the stream.
    async fn frame_length(&mut self) -> Result<Option<usize>, ReadError> {
        let limit = self.limits.frame_bytes as u64;
        let mut declared = 0_u64;
        for index in 0..10_u32 {
            if self.ahead().is_empty() && self.read_ahead().await? == 0 {
                return match index {
                    0 => Ok(None),
                    _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                };
            }
            let byte = self.ahead().first().copied().unwrap_or(0);
            self.consume(1);
            declared |= u64::from(byte & 0x7f).checked_shl(7 * index).unwrap_or(0);
            if declared > limit {
                return Err(ReadError::Violation(ProtocolViolation::FrameTooLarge {
                    declared,
                    limit,
                }));
            }
            if byte & 0x80 == 0 {
                return Ok(Some(declared as usize));
            }
        }
        Err(DecodeError("length prefix").into())
    }

    fn ahead(&self) -> &[u8] {
        self.buffer
            .get(self.ahead.0..self.ahead.1)
            .unwrap_or_default()
    }

    fn consume(&mut self, bytes: usize) {
        self.ahead.0 = (self.ahead.0 + bytes).min(self.ahead.1);
    }

    /// At least `bytes` that are not consumed; at most [`PEEK_BYTES`] can be asked for.
    async fn fill(&mut self, bytes: usize) -> Result<&[u8], ReadError> {
        while self.ahead().len() < bytes {
            if self.read_ahead().await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        Ok(self.ahead())
    }

    /// Reads what there is, as far as the buffer has room.
    async fn read_ahead(&mut self) -> Result<usize, ReadError> {
        let (start, end) = self.ahead;
        self.buffer.copy_within(start..end, 0);
        self.ahead = (0, end - start);
        let room = self.buffer.get_mut(end - start..).unwrap_or_default();
        let read = read(&mut self.io, &self.held, room).await?;
        self.ahead.1 += read;
        Ok(read)
    }

    async fn pass_over(&mut self, bytes: usize) -> Result<(), ReadError> {
        let mut left = bytes;
        loop {
            let step = left.min(self.ahead().len());
            self.consume(step);
            left -= step;
            if left == 0 {
                return Ok(());
            }
            self.fill(1).await?;
        }
    }

    /// The next `length` bytes in memory of their own.
    async fn own(&mut self, length: usize) -> Result<Vec<u8>, ReadError> {
        let mut filled = self.ahead().len().min(length);
        let at_once = FIRST_BYTES.max(self.budget.proven()).max(filled);
        let first = length.min(at_once);
        let mut data = self.allocate(first, first).await?;
        if let (Some(target), Some(source)) = (data.get_mut(..filled), self.ahead().get(..filled)) {
            target.copy_from_slice(source);
        }
        self.consume(filled);
        while filled < length {
            if filled == data.len() {
                let target = length.min(filled * 2);
                let mut larger = self.allocate(target, target - filled).await?;
                if let Some(start) = larger.get_mut(..filled) {
                    start.copy_from_slice(&data);
                }
                data = larger;
            }
            let room = data.get_mut(filled..).unwrap_or_default();
            match read(&mut self.io, &self.held, room).await? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                n => filled += n,
            }
        }
        self.budget.prove(length);
        Ok(data)
    }

    /// Memory to be written over.
    async fn allocate(&mut self, bytes: usize, more: usize) -> Result<Vec<u8>, ReadError> {
        self.held.grow(more).await?;
        Ok(self.interest.0.buffers.take(bytes))
    }

    /// Closes our half, once the other side has closed theirs.
    pub(crate) async fn close(&mut self) -> io::Result<()>
    where
        R: AsyncWrite,
    {
        self.io.close().await
    }
}

/// Reads something, unless the memory is needed elsewhere.
async fn read<R: AsyncRead + Unpin>(
    io: &mut R,
    held: &Reservation,
    room: &mut [u8],
) -> Result<usize, ReadError> {
    poll_fn(|cx| {
        if held.is_evicted() {
            return Poll::Ready(Err(ReadError::Evicted));
        }
        match Pin::new(&mut *io).poll_read(cx, room) {
            Poll::Ready(result) => Poll::Ready(result.map_err(ReadError::from)),
            Poll::Pending => held.poll_evicted(cx).map(|()| Err(ReadError::Evicted)),
        }
    })
    .await
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
    /// never answer on our stream may close that half at once. Yamux tells the two apart only to
    /// those who write.
    pub(crate) fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut ignored = [0; 64];
        while self.watching {
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut ignored)) {
                Ok(0) => {
                    self.watching = false;
                    if let Poll::Ready(Err(error)) = Pin::new(&mut self.io).poll_write(cx, &[]) {
                        return Poll::Ready(error);
                    }
                }
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
    use cid::Cid;
    use futures::{FutureExt, executor::block_on, io::Cursor};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        Block,
        budget::Budget,
        message::{Message, Version, decode},
    };

    const LIMIT: usize = 4 * 1024 * 1024;
    const LIMITS: Limits = Limits {
        frame_bytes: LIMIT,
        items: 8192,
    };

    fn reader_of<R: AsyncRead + Unpin>(io: R, budget: &Budget) -> MessageReader<R> {
        MessageReader::new(
            io,
            LIMITS,
            budget.connection(),
            Interest::new(true, Buffers::default()),
        )
    }

    fn reader(bytes: Vec<u8>) -> MessageReader<Cursor<Vec<u8>>> {
        reader_of(Cursor::new(bytes), &Budget::new(64 * 1024 * 1024))
    }

    fn next<R: AsyncRead + Unpin>(reader: &mut MessageReader<R>) -> Option<Message> {
        let received = block_on(reader.next()).unwrap()?;
        Some(received.assembly.verify())
    }

    fn frame(message: &Message) -> Vec<u8> {
        message.encode(Version::V1_2).concat()
    }

    fn block_of(bytes: usize) -> Message {
        Message {
            blocks: vec![Block::raw(vec![7; bytes])],
            ..Message::default()
        }
    }

    /// Gives its bytes in pieces of `step`, and pends between them.
    struct Dribble(Vec<u8>, usize, bool);

    impl AsyncRead for Dribble {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            room: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            self.2 = !self.2;
            if self.2 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let n = self.1.min(room.len()).min(self.0.len());
            let rest = self.0.split_off(n);
            room[..n].copy_from_slice(&self.0);
            self.0 = rest;
            Poll::Ready(Ok(n))
        }
    }

    #[test]
    fn messages_of_all_sizes_follow_one_another() {
        let sizes = [0, 1, 127, 128, 10_000, 8190, 300_000, 5, 2 * 1024 * 1024];
        let bytes: Vec<u8> = sizes
            .iter()
            .flat_map(|size| frame(&block_of(*size)))
            .collect();
        for step in [1000, 16 * 1024, usize::MAX] {
            let budget = Budget::new(64 * 1024 * 1024);
            let mut reader = reader_of(Dribble(bytes.clone(), step, false), &budget);
            for size in sizes {
                let message = next(&mut reader).unwrap();
                assert_eq!(message.blocks, block_of(size).blocks);
            }
            assert!(next(&mut reader).is_none());
            assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn blocks_of_a_message_are_read_into_memory_of_their_own() {
        let blocks: Vec<Block> = (0..32_u8).map(|n| Block::raw(vec![n; 8192])).collect();
        let message = Message {
            blocks: blocks.clone(),
            ..Message::default()
        };
        let read = next(&mut reader(frame(&message))).unwrap();
        assert_eq!(read.blocks, blocks);
        for block in read.blocks {
            // Only memory that nobody shares can be taken back.
            assert!(block.into_parts().1.try_into_mut().is_ok());
        }
    }

    /// R2: beetswap compares the length of the varint with the limit.
    #[test]
    fn r2_a_declared_length_above_the_limit_is_refused_before_anything_is_buffered() {
        for declared in [LIMIT as u64 + 1, 1 << 40, u64::MAX] {
            let mut bytes = Vec::new();
            prost::encoding::encode_varint(declared, &mut bytes);
            let budget = Budget::new(64 * 1024 * 1024);
            let mut reader = reader_of(Cursor::new(bytes), &budget);
            let error = block_on(reader.next()).unwrap_err();
            assert!(matches!(
                error,
                ReadError::Violation(ProtocolViolation::FrameTooLarge { .. })
            ));
            assert_eq!(budget.used(), 0);
        }
        let mut reader = reader(vec![0xff; 11]);
        assert!(matches!(
            block_on(reader.next()),
            Err(ReadError::Violation(_))
        ));
    }

    #[test]
    fn a_declared_length_below_the_limit_allocates_only_what_arrives() {
        let budget = Budget::new(64 * 1024 * 1024);
        let mut bytes = frame(&block_of(LIMIT - 100));
        bytes.truncate(10_000);
        let mut reader = reader_of(Cursor::new(bytes), &budget);
        assert!(matches!(block_on(reader.next()), Err(ReadError::Io(_))));
        assert_eq!(budget.used(), FIRST_BYTES);
        drop(reader);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn payload_of_a_peer_from_which_nothing_is_wanted_is_passed_over() {
        let mut message = block_of(1_000_000);
        message.blocks.push(Block::raw("small"));
        message.pending_bytes = 7;
        let bytes = [frame(&message), frame(&block_of(3))].concat();
        let budget = Budget::new(64 * 1024 * 1024);
        let interest = Interest::new(false, Buffers::default());
        let mut reader = MessageReader::new(
            Cursor::new(bytes),
            LIMITS,
            budget.connection(),
            interest.clone(),
        );
        let read = next(&mut reader).unwrap();
        assert!(read.blocks.is_empty());
        assert!(read.unread_bytes > 1_000_000 && read.unread_bytes < 1_000_100);
        assert_eq!((read.pending_bytes, budget.used()), (7, 0));
        interest.set(true);
        assert_eq!(next(&mut reader).unwrap().blocks, block_of(3).blocks);
    }

    #[test]
    fn incomplete_frames_of_a_connection_are_bounded() {
        let connection = Budget::new(1 << 40).connection();
        let mut partial = frame(&block_of(LIMIT - 100));
        partial.truncate(3_000_000);
        let mut readers = Vec::new();
        let failed = loop {
            let io = Dribble(partial.clone(), usize::MAX, true);
            let mut reader = MessageReader::new(
                io,
                LIMITS,
                connection.clone(),
                Interest::new(true, Buffers::default()),
            );
            match block_on(reader.next()) {
                Err(ReadError::Io(_)) => readers.push(reader),
                Err(ReadError::Violation(_)) => break readers.len(),
                other => panic!("{other:?}"),
            }
        };
        // 16 MiB, 4 MiB each.
        assert_eq!(failed, 4);
    }

    #[test]
    fn who_finds_the_budget_exhausted_waits_for_it() {
        let budget = Budget::new(1_000_000);
        let mut first = reader_of(Cursor::new(frame(&block_of(700_000))), &budget);
        let received = block_on(first.next()).unwrap().unwrap();
        let mut second = reader_of(Cursor::new(frame(&block_of(700_000))), &budget);
        let mut waiting = Box::pin(second.next());
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(received);
        let received = block_on(waiting).unwrap().unwrap();
        assert_eq!(received.assembly.payload_bytes(), 700_000);
    }

    #[test]
    fn a_frame_that_does_not_end_gives_way_to_those_who_wait() {
        let budget = Budget::new(1_050_000);
        let mut partial = frame(&block_of(1_000_000));
        partial.truncate(900_000);
        // Never ends: pends after its bytes.
        struct Stuck(Cursor<Vec<u8>>);
        impl AsyncRead for Stuck {
            fn poll_read(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                room: &mut [u8],
            ) -> Poll<io::Result<usize>> {
                match Pin::new(&mut self.0).poll_read(cx, room) {
                    Poll::Ready(Ok(0)) => Poll::Pending,
                    other => other,
                }
            }
        }
        let mut hostile = reader_of(Stuck(Cursor::new(partial)), &budget);
        let mut holding = Box::pin(async move {
            let result = hostile.next().await;
            assert!(matches!(result, Err(ReadError::Evicted)));
        });
        assert!(holding.as_mut().now_or_never().is_none());
        let mut honest = reader_of(Cursor::new(frame(&block_of(700_000))), &budget);
        let work = async { futures::join!(holding, honest.next()).1 };
        let received = block_on(work).unwrap().unwrap();
        assert_eq!(received.assembly.payload_bytes(), 700_000);
    }

    fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
        let block = prop_oneof![Just(0_usize), 1..200_usize, Just(70_000)];
        let message = (
            prop::collection::vec(block, 0..4),
            any::<i32>(),
            any::<bool>(),
        )
            .prop_map(|(sizes, pending_bytes, full)| Message {
                blocks: sizes
                    .into_iter()
                    .map(|size| Block::raw(vec![1; size]))
                    .collect(),
                promised: vec![Cid::default(); usize::from(full)],
                pending_bytes,
                full,
                ..Message::default()
            });
        let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
        (message, damage).prop_map(|(message, damage)| {
            let mut body = frame(&message);
            let prefix = body.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
            body.drain(..prefix);
            for (index, value) in damage {
                let index = index.index(body.len());
                body[index] = value;
            }
            body
        })
    }

    proptest! {
        #[test]
        fn what_is_read_item_by_item_is_what_decode_makes_of_the_whole(
            body in any_bytes(),
            step in 1..3000_usize,
        ) {
            let mut framed = Vec::new();
            prost::encoding::encode_varint(body.len() as u64, &mut framed);
            framed.extend_from_slice(&body);
            let budget = Budget::new(64 * 1024 * 1024);
            let mut reader = reader_of(Dribble(framed, step, false), &budget);
            let read = block_on(reader.next());
            match decode(body.into(), 8192) {
                Ok(expected) => {
                    prop_assert_eq!(read.unwrap().unwrap().assembly.verify(), expected);
                }
                Err(_) => prop_assert!(matches!(read, Err(ReadError::Violation(_)))),
            }
        }
    }
}
