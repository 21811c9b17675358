//! Reading and writing one message on a stream: a length as unsigned varint, then the bytes.

use std::io;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p_swarm::StreamProtocol;

/// What a node speaks with those who want to know their NAT.
pub const PROBE_PROTOCOL_NAME: StreamProtocol = StreamProtocol::new("/anypath/nat-probe/1");

/// Bytes of a varint that can say any limit of ours: 16,383.
const MAX_PREFIX_BYTES: usize = 2;

/// Reads one message of at most `max` bytes. Allocates as bytes arrive, never by the length that the
/// peer declares.
pub(crate) async fn read<S: AsyncRead + Unpin>(stream: &mut S, max: usize) -> io::Result<Vec<u8>> {
    let mut length = 0;
    for position in 0..=MAX_PREFIX_BYTES {
        if position == MAX_PREFIX_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        let [byte] = byte;
        length |= usize::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            break;
        }
    }
    if length > max {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = Vec::new();
    stream.take(length as u64).read_to_end(&mut message).await?;
    if message.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(message)
}

/// Writes one message in one piece and flushes it.
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

    #[test]
    fn a_message_is_read_as_it_was_written_and_none_that_is_too_long_or_cut() {
        let mut bytes = Vec::new();
        block_on(write(&mut bytes, &[7; 300])).unwrap();
        let read = |bytes: &[u8], max| block_on(read(&mut Cursor::new(bytes), max));
        assert_eq!(read(&bytes, 300).unwrap(), [7; 300]);
        assert!(read(&bytes, 299).is_err());
        assert!(read(&bytes[..200], 300).is_err());
        assert!(read(&[0xff, 0xff, 0xff, 0xff, 0x0f], usize::MAX).is_err());
    }
}
