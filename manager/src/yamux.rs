//! Yamux as the node speaks it over TCP and WebSocket.
//!
//! Yamux bounds what a peer may send by the window of each stream, not by frames. libp2p-yamux lets a window grow far beyond 1 MiB and ends the
//! connection at a frame of more than 1 MiB all the same (yamux 0.14, `MAX_FRAME_BODY_LEN`), and js-libp2p sends as much as a window
//! takes in one frame (@libp2p/yamux 8.0.3): a few megabytes from it were the end. Here a large frame is read as several small ones.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{AsyncRead, AsyncWrite, future};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use libp2p::yamux;

#[cfg(test)]
mod tests;

/// libp2p's Yamux with its defaults, of which a peer's frames may have any size; in the place of [`libp2p::yamux::Config`].
#[derive(Debug, Clone, Default)]
pub struct Config(yamux::Config);

impl UpgradeInfo for Config {
    type Info = &'static str;
    type InfoIter = <yamux::Config as UpgradeInfo>::InfoIter;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.protocol_info()
    }
}

impl<S> InboundConnectionUpgrade<S> for Config
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = yamux::Muxer<SmallFrames<S>>;
    type Error = io::Error;
    type Future = future::Ready<io::Result<Self::Output>>;

    fn upgrade_inbound(self, stream: S, name: Self::Info) -> Self::Future {
        self.0.upgrade_inbound(SmallFrames::new(stream), name)
    }
}

impl<S> OutboundConnectionUpgrade<S> for Config
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = yamux::Muxer<SmallFrames<S>>;
    type Error = io::Error;
    type Future = future::Ready<io::Result<Self::Output>>;

    fn upgrade_outbound(self, stream: S, name: Self::Info) -> Self::Future {
        self.0.upgrade_outbound(SmallFrames::new(stream), name)
    }
}

/// What of a data frame is handed on as one: no more than Noise carries in a message, so that it is in memory anyway.
const MAX_BODY: u32 = 64 << 10;

/// Version, type, flags, stream and length, big endian (Yamux's specification, "Framing").
type Header = [u8; 12];

/// The type of frames with a body.
const DATA: u8 = 0;

/// Flags that belong to the beginning of a frame: SYN and ACK.
const FIRST: u8 = 0b0011;
/// Flags that belong to its end: FIN and RST.
const LAST: u8 = 0b1100;

/// A Yamux connection's bytes, of which those that are read have no large data frames.
#[derive(Debug)]
pub struct SmallFrames<S> {
    stream: S,
    next: Next,
}

/// What is read next.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// The peer's next header, of which so many bytes have come.
    Header { came: Header, filled: usize },
    /// A header of ours, of which so many bytes have been handed on.
    Ours {
        header: Header,
        given: usize,
        frame: Frame,
    },
    /// What is left of a part's body.
    Body { left: u32, frame: Frame },
}

/// The rest of the peer's frame.
#[derive(Debug, Clone, Copy)]
struct Frame {
    header: Header,
    /// Bytes of the part under way.
    part: u32,
    /// Bytes behind it.
    behind: u32,
}

impl Next {
    const START: Self = Self::Header {
        came: [0; 12],
        filled: 0,
    };

    /// After a whole header of the peer's.
    fn part(header: Header, length: u32, first: bool) -> Self {
        let [version, kind, flags_high, mut flags, a, b, c, d, ..] = header;
        let part = length.min(MAX_BODY);
        let behind = length - part;
        if !first {
            flags &= !FIRST;
        }
        if behind > 0 {
            flags &= !LAST;
        }
        let [w, x, y, z] = part.to_be_bytes();
        Self::Ours {
            header: [version, kind, flags_high, flags, a, b, c, d, w, x, y, z],
            given: 0,
            frame: Frame {
                header,
                part,
                behind,
            },
        }
    }

    fn after_header(header: Header) -> Self {
        let [_, kind, .., a, b, c, d] = header;
        if kind == DATA {
            return Self::part(header, u32::from_be_bytes([a, b, c, d]), true);
        }
        Self::Ours {
            header,
            given: 0,
            frame: Frame {
                header,
                part: 0,
                behind: 0,
            },
        }
    }

    /// `left` bytes of a body are to come.
    fn body(left: u32, frame: Frame) -> Self {
        match (left, frame.behind) {
            (0, 0) => Self::START,
            (0, behind) => Self::part(frame.header, behind, false),
            _ => Self::Body { left, frame },
        }
    }
}

impl<S> SmallFrames<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            next: Next::START,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for SmallFrames<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            match self.next {
                Next::Header { mut came, filled } => {
                    let rest = came.get_mut(filled..).unwrap_or_default();
                    let read = ready!(Pin::new(&mut self.stream).poll_read(context, rest))?;
                    if read == 0 {
                        let end = if filled == 0 {
                            Ok(0)
                        } else {
                            Err(io::ErrorKind::UnexpectedEof.into())
                        };
                        return Poll::Ready(end);
                    }
                    let filled = filled + read;
                    self.next = if filled < came.len() {
                        Next::Header { came, filled }
                    } else {
                        Next::after_header(came)
                    };
                }
                Next::Ours {
                    header,
                    given,
                    frame,
                } => {
                    let rest = header.get(given..).unwrap_or_default();
                    let size = rest.len().min(buffer.len());
                    for (to, from) in buffer.iter_mut().zip(rest) {
                        *to = *from;
                    }
                    let given = given + size;
                    self.next = if given < header.len() {
                        Next::Ours {
                            header,
                            given,
                            frame,
                        }
                    } else {
                        Next::body(frame.part, frame)
                    };
                    return Poll::Ready(Ok(size));
                }
                Next::Body { left, frame } => {
                    let most = usize::try_from(left)
                        .unwrap_or(usize::MAX)
                        .min(buffer.len());
                    let room = buffer.get_mut(..most).unwrap_or_default();
                    let read = ready!(Pin::new(&mut self.stream).poll_read(context, room))?;
                    let came = u32::try_from(read).unwrap_or(left);
                    if read > 0 {
                        self.next = Next::body(left.saturating_sub(came), frame);
                    }
                    return Poll::Ready(Ok(read));
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SmallFrames<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}
