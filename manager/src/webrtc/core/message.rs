//! The frames on a data channel ([specification](https://github.com/libp2p/specs/blob/master/webrtc/README.md#multiplexing)): a protobuf
//! `Message { optional Flag flag = 1; optional bytes message = 2; }` after its length as a varint.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// The largest frame with its length that is taken: "encoded messages including their length prefix MUST NOT exceed 16kiB".
pub(crate) const MAX_FRAME_BYTES: usize = 16 * 1024;

/// The largest that is sent. go-libp2p reads no SCTP message of more than 4 KiB that begins with the length of its frame (it and js-libp2p send
/// that in a message of its own), and libp2p-webrtc 0.10.0-alpha none of more than 8 KiB. Three full packets, so that all are of one size.
pub(crate) const MAX_SENT_BYTES: usize = 3 * 1148;

/// The most data in it: two bytes are its length, and three the field.
pub(crate) const MAX_DATA_BYTES: usize = MAX_SENT_BYTES - 5;

/// What an end says of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flag {
    /// It writes no more.
    Fin = 0,
    /// It reads no more.
    StopSending = 1,
    /// It writes no more, and what it has written may be thrown away.
    Reset = 2,
    /// It has read the other end's `Fin`.
    FinAck = 3,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Message {
    pub(crate) flag: Option<Flag>,
    pub(crate) data: Bytes,
}

const FLAG: u8 = 1 << 3;
const DATA: u8 = (2 << 3) | 2;

/// A frame with data, of at most [`MAX_DATA_BYTES`].
pub(crate) fn encode_data(data: &[u8]) -> Bytes {
    let field = 1 + varint_len(data.len()) + data.len();
    let mut frame = BytesMut::with_capacity(varint_len(field) + field);
    put_varint(&mut frame, field);
    frame.put_u8(DATA);
    put_varint(&mut frame, data.len());
    frame.put_slice(data);
    frame.freeze()
}

/// A frame with a flag alone.
pub(crate) fn encode_flag(flag: Flag) -> Bytes {
    Bytes::copy_from_slice(&[2, FLAG, flag as u8])
}

fn varint_len(value: usize) -> usize {
    let bits = usize::BITS - (value | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

fn put_varint(buffer: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        buffer.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value as u8);
}

/// What arrives is no frame, or one that is too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame is malformed or larger than {MAX_FRAME_BYTES} bytes")]
pub(crate) struct Malformed;

/// Takes frames out of what a data channel delivers. js-libp2p sends the length and the rest of a frame in messages of their own.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Where the next `length` bytes go. Call [`Decoder::next`] until it has none in between, so that no more than a frame stays here.
    pub(crate) fn space(&mut self, length: usize) -> &mut [u8] {
        let before = self.buffer.len();
        self.buffer.resize(before + length, 0);
        self.buffer.get_mut(before..).unwrap_or_default()
    }

    /// The next whole frame.
    pub(crate) fn next(&mut self) -> Result<Option<Message>, Malformed> {
        let Some((length, head)) = varint(&self.buffer)? else {
            if self.buffer.is_empty() {
                // Hundreds of streams that say nothing keep no buffers.
                self.buffer = BytesMut::new();
            }
            return Ok(None);
        };
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        let whole = head.checked_add(length).ok_or(Malformed)?;
        if whole > MAX_FRAME_BYTES {
            return Err(Malformed);
        }
        if self.buffer.len() < whole {
            return Ok(None);
        }
        self.buffer.advance(head);
        let frame = self.buffer.split_to(length).freeze();
        decode(frame).map(Some)
    }
}

/// A varint at the beginning of `bytes`, and how long it is; none if it is cut off.
fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, Malformed> {
    let mut value = 0u64;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f)
            .checked_shl(7 * at as u32)
            .ok_or(Malformed)?;
        if byte & 0x80 == 0 {
            return Ok(Some((value, at + 1)));
        }
    }
    if bytes.len() < 10 {
        return Ok(None);
    }
    Err(Malformed)
}

/// Unknown fields are skipped, and of repeated ones the last one counts, as protobuf wants it.
fn decode(mut frame: Bytes) -> Result<Message, Malformed> {
    let mut message = Message::default();
    let take_varint = |frame: &mut Bytes| {
        let (value, length) = varint(frame)?.ok_or(Malformed)?;
        frame.advance(length);
        Ok(value)
    };
    let take = |frame: &mut Bytes, length: u64| {
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        if length > frame.len() {
            return Err(Malformed);
        }
        Ok(frame.split_to(length))
    };
    while !frame.is_empty() {
        let key = take_varint(&mut frame)?;
        match (key >> 3, key & 7) {
            (0, _) => return Err(Malformed),
            (1, 0) => {
                message.flag = match take_varint(&mut frame)? {
                    0 => Some(Flag::Fin),
                    1 => Some(Flag::StopSending),
                    2 => Some(Flag::Reset),
                    3 => Some(Flag::FinAck),
                    _ => message.flag,
                };
            }
            (2, 2) => {
                let length = take_varint(&mut frame)?;
                message.data = take(&mut frame, length)?;
            }
            (_, 0) => {
                take_varint(&mut frame)?;
            }
            (_, 1) => {
                take(&mut frame, 8)?;
            }
            (_, 2) => {
                let length = take_varint(&mut frame)?;
                take(&mut frame, length)?;
            }
            (_, 5) => {
                take(&mut frame, 4)?;
            }
            _ => return Err(Malformed),
        }
    }
    Ok(message)
}

/// For the fuzz target: whatever arrives in pieces of any size.
#[cfg(any(fuzzing, test))]
pub(crate) fn decode_pieces<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
) -> Result<Vec<Message>, Malformed> {
    let mut decoder = Decoder::default();
    let mut messages = Vec::new();
    for piece in pieces {
        decoder.space(piece.len()).copy_from_slice(piece);
        while let Some(message) = decoder.next()? {
            messages.push(message);
        }
        assert!(decoder.buffer.len() <= MAX_FRAME_BYTES);
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn data(bytes: &[u8]) -> Message {
        Message {
            flag: None,
            data: Bytes::copy_from_slice(bytes),
        }
    }

    #[test]
    fn frames_are_those_of_go_libp2p_and_js_libp2p() {
        assert_eq!(encode_data(b"ab")[..], [4, 0x12, 2, b'a', b'b']);
        assert_eq!(encode_flag(Flag::FinAck)[..], [2, 0x08, 3]);
        let both = [7, 0x08, 0, 0x12, 3, b'a', b'b', b'c'];
        let expected = Message {
            flag: Some(Flag::Fin),
            data: Bytes::from_static(b"abc"),
        };
        assert_eq!(decode_pieces([&both[..]].into_iter()), Ok(vec![expected]));
        // go-libp2p's resets have an error code, a field that the specification does not know.
        let reset = [4, 0x08, 2, 0x18, 0];
        let message = &decode_pieces([&reset[..]].into_iter()).unwrap()[0];
        assert_eq!(message.flag, Some(Flag::Reset));
    }

    #[test]
    fn the_largest_frame_passes_and_a_larger_one_does_not() {
        assert_eq!(encode_data(&[7; MAX_DATA_BYTES]).len(), MAX_SENT_BYTES);
        const MOST: usize = MAX_FRAME_BYTES - 6;
        let largest = encode_data(&[7; MOST]);
        assert_eq!(largest.len(), MAX_FRAME_BYTES - 1);
        assert_eq!(
            decode_pieces([&largest[..]].into_iter()),
            Ok(vec![data(&[7; MOST])])
        );
        for length in [MAX_FRAME_BYTES, 1 << 20, usize::MAX >> 1, usize::MAX] {
            let mut head = BytesMut::new();
            put_varint(&mut head, length);
            assert_eq!(decode_pieces([&head[..]].into_iter()), Err(Malformed));
        }
    }

    #[test]
    fn malformed_frames_are_told_of() {
        for frame in [
            &[1, 0x80][..],
            &[2, 0x12, 1],
            &[1, 0x07],
            &[2, 0x00, 0x00],
            &[2, 0x0b, 0x00],
            &[0xff; 12],
        ] {
            assert_eq!(
                decode_pieces([frame].into_iter()),
                Err(Malformed),
                "{frame:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            sent in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            cut in 1usize..50,
        ) {
            let bytes: Vec<u8> = sent.iter().flat_map(|data| encode_data(data)).collect();
            let expected: Vec<_> = sent.iter().map(|bytes| data(bytes)).collect();
            prop_assert_eq!(decode_pieces(bytes.chunks(cut)), Ok(expected));
        }

        #[test]
        fn whatever_arrives_is_a_frame_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..500), cut in 1usize..50) {
            let _ = decode_pieces(bytes.chunks(cut));
        }
    }
}
