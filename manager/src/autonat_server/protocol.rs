//! What passes on one stream of AutoNAT v2, as the server.

use std::{io, sync::Arc, time::Duration};

use futures::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, SinkExt as _,
    channel::{mpsc, oneshot},
    future::{Either, select},
};
use futures_timer::Delay;
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use multistream_select::NegotiationError;

use super::{
    core::{Answer, Price},
    message::{self, DialRequest, DialStatus, MAX_BYTES, Status, Violation},
};

/// What a client asks on.
pub(super) const DIAL_REQUEST: StreamProtocol =
    StreamProtocol::new("/libp2p/autonat/2/dial-request");
/// What the server tells the nonce on, where it has dialled.
pub(super) const DIAL_BACK: StreamProtocol = StreamProtocol::new("/libp2p/autonat/2/dial-back");

/// Bytes of a varint that can say [`MAX_BYTES`].
const MAX_PREFIX_BYTES: usize = 2;

/// Data that comes in smaller pieces makes more work than it proves; the last piece may be smaller. go-libp2p's limit.
const MIN_PIECE: usize = 100;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    #[error("the stream broke")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error("the client sends its data in pieces that are too small")]
    SmallPieces,
    #[error("the node is shutting down")]
    Closing,
}

/// A question of a stream to the behaviour.
pub(super) enum Ask {
    /// Whether a request is answered.
    Admit {
        peer: PeerId,
        from: Multiaddr,
        addresses: Vec<Option<Multiaddr>>,
        reply: oneshot::Sender<Admission>,
    },
    /// Dial, and tell the nonce.
    Dial {
        peer: PeerId,
        address: Multiaddr,
        dial_back: DialBack,
    },
}

/// The answer, and what says that the request is still under way as long as it is there.
pub(super) struct Admission {
    pub(super) answer: Answer,
    pub(super) ongoing: Arc<()>,
}

/// What is told to whom was dialled.
#[derive(Debug)]
pub(super) struct DialBack {
    pub(super) nonce: u64,
    pub(super) reply: oneshot::Sender<Outcome>,
}

impl DialBack {
    pub(super) fn end(self, outcome: Outcome) {
        // Whoever asked may have gone.
        let _ = self.reply.send(outcome);
    }
}

/// What came of a dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The client has the nonce, as far as we know.
    Reached,
    /// No connection.
    DialError,
    /// A connection, on which the nonce could not be told.
    DialBackError,
    /// It is not the client's fault.
    Unable,
}

/// Answers the request on a stream.
pub(super) async fn serve<S>(
    mut stream: S,
    peer: PeerId,
    from: Multiaddr,
    mut asks: mpsc::Sender<Ask>,
) -> Result<(), ServeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = DialRequest::decode(&read(&mut stream).await?)?;
    let (reply, admission) = oneshot::channel();
    let ask = Ask::Admit {
        peer,
        from,
        addresses: request.addresses,
        reply,
    };
    asks.send(ask).await.map_err(|_| ServeError::Closing)?;
    let admission = admission.await.map_err(|_| ServeError::Closing)?;
    let refused = |status| message::dial_response(status, 0, DialStatus::Unused);
    let response = match admission.answer {
        Answer::Rejected => refused(Status::ERequestRejected),
        Answer::Refused => refused(Status::EDialRefused),
        Answer::Dial {
            index,
            address,
            price,
        } => {
            if let Some(price) = price {
                take(&mut stream, index, price).await?;
            }
            let (reply, outcome) = oneshot::channel();
            let nonce = request.nonce;
            let ask = Ask::Dial {
                peer,
                address,
                dial_back: DialBack { nonce, reply },
            };
            asks.send(ask).await.map_err(|_| ServeError::Closing)?;
            let dialled = |status| message::dial_response(Status::Ok, index, status);
            // Without an answer the connection went before the nonce was told.
            match outcome.await.unwrap_or(Outcome::DialBackError) {
                Outcome::Reached => dialled(DialStatus::Ok),
                Outcome::DialError => dialled(DialStatus::EDialError),
                Outcome::DialBackError => dialled(DialStatus::EDialBackError),
                Outcome::Unable => refused(Status::EDialRefused),
            }
        }
    };
    drop(admission.ongoing);
    write(&mut stream, &response).await?;
    stream.close().await?;
    Ok(())
}

/// Makes the client pay before it is dialled.
async fn take<S>(stream: &mut S, index: u32, price: Price) -> Result<(), ServeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    write(stream, &message::dial_data_request(index, price.bytes)).await?;
    let mut missing = price.bytes;
    while missing > 0 {
        let piece = message::decode_data(&read(stream).await?)?;
        missing = missing.saturating_sub(piece as u64);
        if piece < MIN_PIECE && missing > 0 {
            return Err(ServeError::SmallPieces);
        }
    }
    Delay::new(price.wait).await;
    Ok(())
}

/// Tells the nonce.
///
/// That the client has it is all that counts: it answers, or ends the stream, or resets it, as go-libp2p does right behind its answer,
/// which QUIC then forgets. It believes us only when it has the nonce.
pub(super) async fn tell<S>(mut stream: S, nonce: u64, patience: Duration) -> Outcome
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let told = async {
        write(&mut stream, &message::dial_back(nonce)).await?;
        stream.close().await?;
        stream.read(&mut [0]).await
    };
    let told = std::pin::pin!(told);
    match select(told, Delay::new(patience)).await {
        Either::Left((Ok(_), _)) => Outcome::Reached,
        Either::Left((Err(error), _)) if is_reset(&error) => Outcome::Reached,
        _ => Outcome::DialBackError,
    }
}

/// Not: another end of the connection, or that it does not speak the protocol.
fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof, WriteZero};
    let cause = error.get_ref();
    let is_negotiation = cause.is_some_and(|cause| cause.is::<NegotiationError>());
    let kind = error.kind();
    !is_negotiation
        && matches!(
            kind,
            BrokenPipe | ConnectionReset | UnexpectedEof | WriteZero
        )
}

/// Reads one message. Allocates as bytes arrive, never by the length that the peer declares.
async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, ServeError> {
    let length = read_length(stream).await?;
    if length > MAX_BYTES {
        return Err(Violation::TooLong.into());
    }
    let mut message = Vec::new();
    stream.take(length as u64).read_to_end(&mut message).await?;
    if message.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(message)
}

async fn read_length<S: AsyncRead + Unpin>(stream: &mut S) -> Result<usize, ServeError> {
    let mut length = 0;
    for position in 0..MAX_PREFIX_BYTES {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        let [byte] = byte;
        length |= usize::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return Ok(length);
        }
    }
    Err(Violation::TooLong.into())
}

/// Writes one message in one piece and flushes it.
async fn write<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> io::Result<()> {
    let mut framed = Vec::with_capacity(message.len() + MAX_PREFIX_BYTES);
    prost::encoding::encode_varint(message.len() as u64, &mut framed);
    framed.extend_from_slice(message);
    stream.write_all(&framed).await?;
    stream.flush().await
}
