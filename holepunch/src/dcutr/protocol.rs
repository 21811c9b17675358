//! Reading and writing one message on a stream (a length as unsigned varint, then the bytes), and the exchanges that
//! consist of them.

use std::{io, time::Duration};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p_swarm::StreamProtocol;
use web_time::Instant;

use crate::{
    behaviour::now,
    message::{Kind, MAX_BYTES, Message, ProtocolViolation},
};

/// Whoever accepted the relayed connection opens it:
/// [DCUtR](https://github.com/libp2p/specs/blob/master/relay/DCUtR.md#the-protocol).
pub const PROTOCOL_NAME: StreamProtocol = StreamProtocol::new("/libp2p/dcutr");

/// The same exchange, opened by whoever dialled the relayed connection, half a round trip earlier. Between Anypath nodes.
pub const EARLY_PROTOCOL_NAME: StreamProtocol = StreamProtocol::new("/anypath/dcutr/1");

/// Bytes of a varint that can say [`MAX_BYTES`].
const MAX_PREFIX_BYTES: usize = 2;

/// Why an exchange ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// The stream broke, was reset, or was never agreed on.
    #[error("the stream broke")]
    Io(#[source] io::Error),
    /// The peer does not speak the protocol.
    #[error("the peer does not speak DCUtR")]
    Unsupported,
    /// It took longer than [`exchange_timeout`](crate::Config::exchange_timeout).
    #[error("the peer took too long")]
    TimedOut,
    /// The peer sent something else.
    #[error(transparent)]
    Violation(#[from] ProtocolViolation),
}

/// "[The initiator] sends a `Connect` message containing its observed (and possibly predicted) addresses […] and starts a
/// timer to measure RTT of the relay connection"; returns what comes back and the time it took.
pub(crate) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    message: Message,
) -> Result<(S, Message, Duration), ExchangeError> {
    write(&mut stream, &message.encode()).await?;
    let sent: Instant = now();
    let answer = read(&mut stream).await?;
    let round_trip = now().saturating_duration_since(sent);
    match answer.kind {
        Kind::Connect => Ok((stream, answer, round_trip)),
        Kind::Sync => Err(ProtocolViolation::UnexpectedType.into()),
    }
}

/// The first message of an exchange that the peer opened. A `SYNC` there is an Anypath node's way to end a punch.
pub(crate) async fn accept<S: AsyncRead + Unpin>(
    mut stream: S,
) -> Result<(S, Message), ExchangeError> {
    let message = read(&mut stream).await?;
    match message.kind {
        Kind::Sync if message.failure().is_none() => Err(ProtocolViolation::UnexpectedType.into()),
        _ => Ok((stream, message)),
    }
}

/// "responds with a `Connect` message" and waits for the `Sync`.
pub(crate) async fn reply<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    message: Message,
) -> Result<Message, ExchangeError> {
    write(&mut stream, &message.encode()).await?;
    let sync = read(&mut stream).await?;
    match sync.kind {
        Kind::Sync => Ok(sync),
        Kind::Connect => Err(ProtocolViolation::UnexpectedType.into()),
    }
}

/// Writes the last message of an exchange.
pub(crate) async fn finish<S: AsyncWrite + Unpin>(
    mut stream: S,
    message: Message,
) -> Result<(), ExchangeError> {
    write(&mut stream, &message.encode()).await?;
    stream.close().await.map_err(ExchangeError::Io)
}

/// Reads one message. Allocates as bytes arrive, never by the length that the peer declares.
async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Message, ExchangeError> {
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
        .map_err(ExchangeError::Io)?;
    if message.len() < length {
        return Err(ProtocolViolation::Truncated.into());
    }
    Ok(Message::decode(&message)?)
}

async fn read_length<S: AsyncRead + Unpin>(stream: &mut S) -> Result<usize, ExchangeError> {
    let mut length = 0;
    for position in 0..MAX_PREFIX_BYTES {
        let mut byte = [0];
        match stream.read_exact(&mut byte).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && position > 0 => {
                return Err(ProtocolViolation::Truncated.into());
            }
            Err(error) => return Err(ExchangeError::Io(error)),
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
async fn write<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> Result<(), ExchangeError> {
    let mut framed = Vec::with_capacity(message.len() + MAX_PREFIX_BYTES);
    prost::encoding::encode_varint(message.len() as u64, &mut framed);
    framed.extend_from_slice(message);
    stream.write_all(&framed).await.map_err(ExchangeError::Io)?;
    stream.flush().await.map_err(ExchangeError::Io)
}

#[cfg(test)]
mod tests {
    use futures::{executor::block_on, io::Cursor};

    use super::*;

    fn violation(bytes: &[u8]) -> Option<ProtocolViolation> {
        match block_on(accept(Cursor::new(bytes.to_vec()))) {
            Err(ExchangeError::Violation(violation)) => Some(violation),
            _ => None,
        }
    }

    #[test]
    fn a_message_is_read_as_written() {
        let message = Message {
            kind: Kind::Connect,
            addresses: vec!["/ip4/203.0.113.10/tcp/9100".parse().unwrap()],
            extras: None,
        };
        let mut wire = Cursor::new(Vec::new());
        block_on(write(&mut wire, &message.encode())).unwrap();
        wire.set_position(0);
        let (_, read) = block_on(accept(wire)).unwrap();
        assert_eq!(read, message);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert_eq!(violation(&[0xff; 10]), Some(ProtocolViolation::TooLong));
        assert_eq!(violation(&[0x81, 0x20]), Some(ProtocolViolation::TooLong));
        assert_eq!(violation(&[5, 8, 100]), Some(ProtocolViolation::Truncated));
        assert_eq!(violation(&[0x80]), Some(ProtocolViolation::Truncated));
        let sync = [3, 0x08, 0xac, 0x02];
        assert_eq!(violation(&sync), Some(ProtocolViolation::UnexpectedType));
    }
}
