//! What is on the wire: lengths as varints before everything, direct messages as protobuf.

use std::{fmt, io};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Writes a length and so many bytes.
pub(crate) async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    frame: &[u8],
) -> io::Result<()> {
    write_length(stream, frame.len() as u64).await?;
    stream.write_all(frame).await?;
    stream.flush().await
}

pub(crate) async fn write_length(
    stream: &mut (impl AsyncWrite + Unpin),
    length: u64,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    put_varint(length, &mut bytes);
    stream.write_all(&bytes).await
}

/// Reads a frame of at most `max` bytes; memory grows as they come, not as the peer announces them.
pub(crate) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    max: u64,
) -> io::Result<Vec<u8>> {
    let length = read_length(stream).await?;
    if length > max {
        return Err(invalid("a message is too long"));
    }
    let mut frame = Vec::new();
    stream.take(length).read_to_end(&mut frame).await?;
    match frame.len() as u64 == length {
        true => Ok(frame),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

pub(crate) async fn read_length(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<u64> {
    let mut length = 0_u64;
    for shift in (0..63).step_by(7) {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        let [byte] = byte;
        length |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(length);
        }
    }
    Err(invalid("a length does not end"))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A direct message: `{1: {1: client version, 2: time in ms}, 2: content, 3: type}`.
pub(crate) fn request(content: &str, now_ms: u64) -> Vec<u8> {
    let mut message = Vec::new();
    put_field(1, &metadata(now_ms), &mut message);
    put_field(2, content.as_bytes(), &mut message);
    put_field(3, b"text/plain", &mut message);
    message
}

/// That one arrived: `{1: metadata, 2: status}`.
pub(crate) fn response(now_ms: u64) -> Vec<u8> {
    let mut message = Vec::new();
    put_field(1, &metadata(now_ms), &mut message);
    message.push(2 << 3);
    put_varint(OK, &mut message);
    message
}

fn metadata(now_ms: u64) -> Vec<u8> {
    let mut message = Vec::new();
    put_field(1, b"0.0.1", &mut message);
    message.push(2 << 3);
    put_varint(now_ms, &mut message);
    message
}

const OK: u64 = 200;

/// The content of a direct message.
pub(crate) fn read_request(message: &[u8]) -> Result<String, Malformed> {
    let content = fields(message)?.into_iter().rev();
    let content = content
        .filter_map(|field| match field {
            (2, Value::Bytes(content)) => Some(content),
            _ => None,
        })
        .next();
    let content = std::str::from_utf8(content.unwrap_or_default());
    content.map(str::to_owned).map_err(|_| Malformed)
}

/// Whether the other end took a direct message.
pub(crate) fn is_taken(message: &[u8]) -> Result<bool, Malformed> {
    let fields = fields(message)?;
    Ok(fields.contains(&(2, Value::Varint(OK))))
}

/// Not the protobuf that was expected.
#[derive(Debug)]
pub(crate) struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed message")
    }
}

impl std::error::Error for Malformed {}

#[derive(Debug, PartialEq)]
enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

fn fields(mut message: &[u8]) -> Result<Vec<(u64, Value<'_>)>, Malformed> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message).ok_or(Malformed)?;
        let value = match tag & 7 {
            0 => Value::Varint(varint(&mut message).ok_or(Malformed)?),
            2 => {
                let length = varint(&mut message).and_then(|length| usize::try_from(length).ok());
                let parts = length.and_then(|length| message.split_at_checked(length));
                let (bytes, rest) = parts.ok_or(Malformed)?;
                message = rest;
                Value::Bytes(bytes)
            }
            _ => return Err(Malformed),
        };
        fields.push((tag >> 3, value));
    }
    Ok(fields)
}

fn varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = input.split_first()?;
        *input = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_field(number: u8, value: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    put_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
