//! One message there, one message back: what the client says on its streams.
//!
//! Messages are read to the byte and no further: what follows belongs to the circuit.

use std::{io, time::Duration};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p_identity::PeerId;
use rand::RngExt as _;
use web_time::Instant;

use crate::{
    CircuitLimit, ProtocolViolation, StatusCode,
    message::{HopRequest, HopResponse, Reservation, StopRequest, StopResponse},
    protocol::{self, ReadError},
};

/// The payload of a ping, <https://github.com/libp2p/specs/blob/master/ping/ping.md>.
const PING_BYTES: usize = 32;

/// Why an exchange came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error("the stream failed")]
    Io(#[source] io::Error),
    #[error(transparent)]
    Violation(#[from] ProtocolViolation),
    #[error("{0}")]
    Refused(StatusCode),
}

/// Asks for a reservation.
///
/// <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#reservation>
pub(crate) async fn reserve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
) -> Result<(Reservation, Option<CircuitLimit>), ExchangeError> {
    send(&mut stream, &HopRequest::Reserve.encode()).await?;
    let response = HopResponse::decode(&receive(&mut stream).await?)?;
    // The answer is here; whether the relay hears that nothing follows does not matter.
    let _ = stream.close().await;
    match response {
        HopResponse::Accepted { reservation, limit } => {
            // "the reservation field provides information about the reservation" (§ Reservation).
            Ok((reservation.unwrap_or_default(), limit))
        }
        HopResponse::Refused(status) => Err(ExchangeError::Refused(status)),
    }
}

/// Asks a relay for a circuit; the stream is the circuit then.
///
/// <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#circuit-establishment>
pub(crate) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    destination: PeerId,
) -> Result<(S, Option<CircuitLimit>), ExchangeError> {
    send(&mut stream, &HopRequest::Connect { destination }.encode()).await?;
    match HopResponse::decode(&receive(&mut stream).await?)? {
        HopResponse::Accepted { limit, .. } => Ok((stream, limit)),
        HopResponse::Refused(status) => Err(ExchangeError::Refused(status)),
    }
}

/// Answers a relay that brings a circuit. `wanted`: whether a reservation is held there.
pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    wanted: bool,
) -> Result<(S, StopRequest), ExchangeError> {
    let request = receive(&mut stream)
        .await
        .and_then(|bytes| Ok(StopRequest::decode(&bytes)?));
    let answer = match &request {
        Ok(_) if wanted => StopResponse::Accepted,
        Ok(_) => StopResponse::Refused(StatusCode::NoReservation),
        Err(ExchangeError::Violation(violation)) => StopResponse::Refused(violation.status()),
        Err(ExchangeError::Io(_) | ExchangeError::Refused(_)) => return Err(gone(request)),
    };
    send(&mut stream, &answer.encode()).await?;
    let request = request?;
    match answer {
        StopResponse::Accepted => Ok((stream, request)),
        StopResponse::Refused(status) => {
            let _ = stream.close().await;
            Err(ExchangeError::Refused(status))
        }
    }
}

fn gone<T>(result: Result<T, ExchangeError>) -> ExchangeError {
    result
        .err()
        .unwrap_or_else(|| ExchangeError::Io(io::ErrorKind::BrokenPipe.into()))
}

/// Measures one round trip.
pub(crate) async fn ping<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
) -> Result<Duration, ExchangeError> {
    let sent: [u8; PING_BYTES] = rand::rng().random();
    let start = now();
    stream.write_all(&sent).await.map_err(ExchangeError::Io)?;
    stream.flush().await.map_err(ExchangeError::Io)?;
    let mut received = [0; PING_BYTES];
    stream
        .read_exact(&mut received)
        .await
        .map_err(ExchangeError::Io)?;
    let took = now().saturating_duration_since(start);
    if received != sent {
        return Err(ExchangeError::Io(io::ErrorKind::InvalidData.into()));
    }
    let _ = stream.close().await;
    Ok(took)
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> Result<(), ExchangeError> {
    protocol::write(stream, message)
        .await
        .map_err(ExchangeError::Io)
}

async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, ExchangeError> {
    protocol::read(stream).await.map_err(|error| match error {
        ReadError::Io(error) => ExchangeError::Io(error),
        ReadError::Violation(violation) => violation.into(),
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "an adapter measures the round trip"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
