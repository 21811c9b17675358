//! A stream that has ended before anybody listens to it: Yamux's frames by hand, so that all of it comes in one message of Noise.

use super::Error;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::core::upgrade::OutboundConnectionUpgrade as _;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, noise};
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::compat::TokioAsyncReadCompatExt as _;

/// What no step takes on a busy machine unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// Long after a ping the end of its stream is on the way, as both are known by then.
const END_PATIENCE: Duration = Duration::from_secs(5);

const MULTISTREAM: &str = "/multistream/1.0.0";
const NOISE: &str = "/noise";
const YAMUX: &str = "/yamux/1.0.0";
const PING: &str = "/ipfs/ping/1.0.0";
const PING_BYTES: usize = 32;

// Yamux's specification, "Framing".
const DATA: u8 = 0;
const WINDOW_UPDATE: u8 = 1;
const YAMUX_PING: u8 = 2;
const SYN: u16 = 1;
const ACK: u16 = 2;
const FIN: u16 = 4;
const RST: u16 = 8;
const SESSION: u32 = 0;
const STREAM: u32 = 1;

/// Dials an address of loopback over TCP and opens one stream, in one message: the negotiation of `/ipfs/ping/1.0.0`, a ping, and the end
/// of this direction. Waits until the ping is back, and returns whether the end of the other direction comes then.
///
/// # Errors
///
/// The dial failed, the stream was reset, or something else than the ping came back.
pub async fn ends_with_a_ping(address: &Multiaddr) -> Result<bool, Error> {
    let port = address.iter().find_map(|part| match part {
        Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    let port = port.ok_or_else(|| Error::Wrong(format!("{address} has no TCP port")))?;
    let mut tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await?
        .compat();
    negotiate(&mut tcp, NOISE).await?;
    let noise = noise::Config::new(&Keypair::generate_ed25519()).map_err(other)?;
    let (_, mut secured) = noise.upgrade_outbound(tcp, NOISE).await.map_err(other)?;
    negotiate(&mut secured, YAMUX).await?;
    // Once the session answers, it hands on a stream as it comes.
    secured
        .write_all(&header(YAMUX_PING, SYN, SESSION, 0))
        .await?;
    secured.flush().await?;
    within("answer of Yamux", PATIENCE, async {
        loop {
            let frame = Frame::read(&mut secured).await?;
            if (frame.kind, frame.flags) == (YAMUX_PING, ACK) {
                return Ok(());
            }
        }
    })
    .await?;

    let ping: [u8; PING_BYTES] = rand::random();
    let mut answer = [line(MULTISTREAM)?, line(PING)?].concat();
    answer.extend(ping);
    let length = u32::try_from(answer.len()).map_err(other)?;
    let mut message = header(DATA, SYN, STREAM, length).to_vec();
    // What is asked and what is answered are the same bytes.
    message.extend(&answer);
    message.extend(header(WINDOW_UPDATE, FIN, STREAM, 0));
    secured.write_all(&message).await?;
    secured.flush().await?;

    let (mut back, mut ended) = (Vec::new(), false);
    within("ping", PATIENCE, async {
        while back.len() < answer.len() {
            if next(&mut secured, &mut back).await? {
                ended = true;
                return Ok(());
            }
        }
        Ok(())
    })
    .await?;
    if back != answer {
        let wrong = format!("{} of {length} bytes came back, or others", back.len());
        return Err(Error::Wrong(wrong));
    }
    let end = async {
        while !ended {
            ended = next(&mut secured, &mut back).await?;
        }
        Ok(())
    };
    match timeout(END_PATIENCE, end).await {
        Ok(end) => end.map(|()| true),
        Err(_) => Ok(false),
    }
}

/// Reads one frame; keeps what comes on the stream. Returns whether it has ended.
async fn next(secured: &mut (impl AsyncRead + Unpin), back: &mut Vec<u8>) -> Result<bool, Error> {
    let frame = Frame::read(secured).await?;
    if frame.stream != STREAM {
        return Ok(false);
    }
    if frame.flags & RST != 0 {
        return Err(Error::Wrong("the stream was reset".to_owned()));
    }
    back.extend(frame.body);
    Ok(frame.flags & FIN != 0)
}

struct Frame {
    kind: u8,
    flags: u16,
    stream: u32,
    body: Vec<u8>,
}

impl Frame {
    async fn read(secured: &mut (impl AsyncRead + Unpin)) -> Result<Self, Error> {
        let mut header = [0; 12];
        secured.read_exact(&mut header).await?;
        let [_version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = header;
        let mut body = Vec::new();
        if kind == DATA {
            let length = u32::from_be_bytes([l0, l1, l2, l3]);
            let read = secured.take(length.into()).read_to_end(&mut body).await?;
            if read != usize::try_from(length).map_err(other)? {
                return Err(Error::Wrong("the connection ended in a frame".to_owned()));
            }
        }
        Ok(Self {
            kind,
            flags: u16::from_be_bytes([f0, f1]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            body,
        })
    }
}

fn header(kind: u8, flags: u16, stream: u32, length: u32) -> [u8; 12] {
    let [f0, f1] = flags.to_be_bytes();
    let [s0, s1, s2, s3] = stream.to_be_bytes();
    let [l0, l1, l2, l3] = length.to_be_bytes();
    [0, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3]
}

async fn negotiate(
    io: &mut (impl AsyncRead + AsyncWrite + Unpin),
    protocol: &str,
) -> Result<(), Error> {
    let lines = [line(MULTISTREAM)?, line(protocol)?].concat();
    io.write_all(&lines).await?;
    io.flush().await?;
    let mut answer = vec![0; lines.len()];
    within(protocol, PATIENCE, async {
        Ok(io.read_exact(&mut answer).await?)
    })
    .await?;
    if answer == lines {
        Ok(())
    } else {
        Err(Error::Wrong(format!("they do not speak {protocol}")))
    }
}

/// A line of multistream-select; all of ours are shorter than 128 bytes, so that one byte has their length.
fn line(text: &str) -> Result<Vec<u8>, Error> {
    let length = u8::try_from(text.len() + 1).map_err(other)?;
    Ok([&[length], text.as_bytes(), b"\n"].concat())
}

async fn within<T>(
    what: &str,
    within: Duration,
    step: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(within, step).await.unwrap_or_else(|_| {
        Err(Error::Timeout {
            what: what.to_owned(),
            within,
        })
    })
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Other(error.into())
}
