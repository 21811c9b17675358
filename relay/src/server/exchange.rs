//! One function for each exchange of messages on a stream.

use std::{io, sync::Arc};

use futures::AsyncWriteExt as _;
use libp2p_core::Multiaddr;
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::Stream;

use crate::{
    CircuitLimit, StatusCode, Voucher,
    message::{HopRequest, HopResponse, Reservation, StopRequest, StopResponse},
    protocol::{self, ReadError},
};

/// A reservation that was made, before it is signed.
#[derive(Clone)]
pub struct Grant {
    pub(super) key: Arc<Keypair>,
    pub(super) relay: PeerId,
    pub(super) peer: PeerId,
    /// Seconds since 1970.
    pub(super) expires: u64,
    pub(super) addresses: Arc<[Multiaddr]>,
    pub(super) limit: Option<CircuitLimit>,
}

impl Grant {
    /// The answer to `RESERVE`:
    /// <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#reservation>
    pub(super) fn response(self) -> HopResponse {
        // "Successful relay slot reservations should come with Reservation Vouchers."
        // <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#reservation-vouchers>
        let voucher = Voucher {
            relay: self.relay,
            peer: self.peer,
            expires: self.expires,
        };
        let voucher = voucher.sign(&self.key).map_or_else(
            |error| {
                tracing::warn!(%error, "a reservation goes out without a voucher");
                None
            },
            |signed| Some(signed.into()),
        );
        HopResponse::Accepted {
            reservation: Some(Reservation {
                expires: Some(self.expires),
                addresses: self.addresses.to_vec(),
                voucher,
            }),
            limit: self.limit,
        }
    }
}

/// Reads what a peer asks. Bytes after a `CONNECT` belong to the circuit and stay in the stream; after a `RESERVE` nobody
/// looks at them.
pub(super) async fn read_request(mut stream: Stream) -> (Stream, Result<HopRequest, ReadError>) {
    let request = match protocol::read(&mut stream).await {
        Ok(message) => HopRequest::decode(&message).map_err(ReadError::from),
        Err(error) => Err(error),
    };
    (stream, request)
}

/// Writes an answer that ends the exchange.
pub(super) async fn answer(mut stream: Stream, response: HopResponse) -> io::Result<()> {
    protocol::write(&mut stream, &response.encode()).await?;
    stream.close().await
}

/// "If the relayed connection is successfully established, then the relay responds with `HopMessage` with `type = STATUS` and
/// `status = OK`; at this point the original `hop` stream becomes the relayed connection."
/// <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#connection-initiation>
pub(super) async fn accept_circuit(
    stream: &mut Stream,
    limit: Option<CircuitLimit>,
) -> io::Result<()> {
    let response = HopResponse::Accepted {
        reservation: None,
        limit,
    };
    protocol::write(stream, &response.encode()).await
}

/// Asks a destination to take a circuit; the stream is the circuit then.
/// <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#stop-protocol>
pub(super) async fn stop(mut stream: Stream, request: StopRequest) -> Result<Stream, StatusCode> {
    // Whatever goes wrong here: "`CONNECTION_FAILED` if the relay failed to terminate the connection to the target peer."
    // <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#connection-initiation>
    let failed = StatusCode::ConnectionFailed;
    protocol::write(&mut stream, &request.encode())
        .await
        .map_err(|_| failed)?;
    let message = protocol::read(&mut stream).await.map_err(|_| failed)?;
    match StopResponse::decode(&message) {
        Ok(StopResponse::Accepted) => Ok(stream),
        // The source may do something about these.
        Ok(StopResponse::Refused(
            status @ (StatusCode::ResourceLimitExceeded | StatusCode::PermissionDenied),
        )) => Err(status),
        Ok(StopResponse::Refused(_)) | Err(_) => Err(failed),
    }
}
