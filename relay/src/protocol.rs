//! Reading and writing one message on a stream: a length as unsigned varint, then the bytes.

use std::io;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p_swarm::StreamProtocol;

use crate::message::{MAX_BYTES, ProtocolViolation};

/// What a relay speaks with those who ask it:
/// [hop protocol](https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#hop-protocol).
pub const HOP_PROTOCOL_NAME: StreamProtocol =
    StreamProtocol::new("/libp2p/circuit/relay/0.2.0/hop");

/// What a relay speaks with the peer that a circuit ends at:
/// [stop protocol](https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#stop-protocol).
pub const STOP_PROTOCOL_NAME: StreamProtocol =
    StreamProtocol::new("/libp2p/circuit/relay/0.2.0/stop");

/// Bytes of a varint that can say [`MAX_BYTES`].
const MAX_PREFIX_BYTES: usize = 2;

/// Why no message could be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The stream broke, or ended before a message began.
    #[error("the stream broke")]
    Io(#[source] io::Error),
    /// The peer sent something else.
    #[error(transparent)]
    Violation(#[from] ProtocolViolation),
}

/// Reads one message and not a byte more: what follows belongs to the circuit.
///
/// Allocates as bytes arrive, never by the length that the peer declares.
pub(crate) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, ReadError> {
    let length = read_length(stream).await?;
    if length > MAX_BYTES {
        return Err(ProtocolViolation::TooLong.into());
    }
    let mut message = Vec::new();
    // At most `MAX_BYTES` of it, grown as they come.
    let expected = length as u64;
    stream
        .take(expected)
        .read_to_end(&mut message)
        .await
        .map_err(ReadError::Io)?;
    if message.len() < length {
        return Err(ProtocolViolation::Truncated.into());
    }
    Ok(message)
}

async fn read_length<S: AsyncRead + Unpin>(stream: &mut S) -> Result<usize, ReadError> {
    let mut length = 0;
    for position in 0..MAX_PREFIX_BYTES {
        let mut byte = [0];
        match stream.read_exact(&mut byte).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && position > 0 => {
                return Err(ProtocolViolation::Truncated.into());
            }
            Err(error) => return Err(ReadError::Io(error)),
        }
        let [byte] = byte;
        length |= usize::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return Ok(length);
        }
    }
    Err(ProtocolViolation::TooLong.into())
}

/// Writes one message, which is at most [`MAX_BYTES`] long, in one piece and flushes it.
pub(crate) async fn write<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> io::Result<()> {
    let mut framed = Vec::with_capacity(message.len() + MAX_PREFIX_BYTES);
    prost::encoding::encode_varint(message.len() as u64, &mut framed);
    framed.extend_from_slice(message);
    stream.write_all(&framed).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use futures::{executor::block_on, io::Cursor};

    use super::*;

    fn violation(bytes: &[u8]) -> Option<ProtocolViolation> {
        match block_on(read(&mut Cursor::new(bytes))) {
            Err(ReadError::Violation(violation)) => Some(violation),
            _ => None,
        }
    }

    #[test]
    fn messages_of_every_length_are_read_as_written_and_what_follows_stays() {
        for length in [0, 1, 127, 128, MAX_BYTES] {
            let message = vec![7; length];
            let mut wire = Cursor::new(Vec::new());
            block_on(write(&mut wire, &message)).unwrap();
            block_on(wire.write_all(b"of the circuit")).unwrap();
            wire.set_position(0);
            assert_eq!(block_on(read(&mut wire)).unwrap(), message);
            let mut rest = Vec::new();
            block_on(wire.read_to_end(&mut rest)).unwrap();
            assert_eq!(rest, b"of the circuit");
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_any_byte_of_it() {
        assert_eq!(violation(&[0x81, 0x20]), Some(ProtocolViolation::TooLong));
        assert_eq!(violation(&[0xff; 10]), Some(ProtocolViolation::TooLong));
        assert_eq!(violation(&[0x80, 0x20]), Some(ProtocolViolation::Truncated));
    }

    #[test]
    fn a_stream_that_ends_inside_a_message_is_truncated() {
        assert_eq!(violation(&[0x80]), Some(ProtocolViolation::Truncated));
        assert_eq!(violation(&[5, 1, 2]), Some(ProtocolViolation::Truncated));
        assert!(matches!(
            block_on(read(&mut Cursor::new(b""))),
            Err(ReadError::Io(_))
        ));
    }
}
