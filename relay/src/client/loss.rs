//! Reads why a listener on a relayed address ended.

use std::{error::Error, io};

use libp2p_core::upgrade::NegotiationError;
use libp2p_relay::outbound::hop::ReserveError;

use super::LossReason;
use crate::StatusCode;

/// The reason within an error of the boxed transport, `None` if the relay did not answer at all.
pub(crate) fn from_listener_error(error: &io::Error) -> Option<LossReason> {
    causes(error)
        .find_map(|cause| cause.downcast_ref::<ReserveError>())
        .map(from_reserve_error)
}

fn from_reserve_error(error: &ReserveError) -> LossReason {
    match error {
        ReserveError::Refused => LossReason::Refused(StatusCode::ReservationRefused),
        ReserveError::ResourceLimitExceeded => {
            LossReason::Refused(StatusCode::ResourceLimitExceeded)
        }
        ReserveError::Unsupported => LossReason::Unsupported,
        ReserveError::Io(error) => from_io_error(error),
        // The codec's errors are errors of the stream, too.
        ReserveError::Protocol(violation) => causes(violation)
            .find_map(|cause| cause.downcast_ref::<io::Error>())
            .map_or(LossReason::ProtocolViolation, from_io_error),
    }
}

fn from_io_error(error: &io::Error) -> LossReason {
    // Where protocols are negotiated lazily, a refusal only shows when the answer is read.
    let refused = causes(error)
        .filter_map(|cause| cause.downcast_ref::<NegotiationError>())
        .any(|error| matches!(error, NegotiationError::Failed));
    if refused {
        LossReason::Unsupported
    } else if error.kind() == io::ErrorKind::InvalidData {
        LossReason::ProtocolViolation
    } else {
        LossReason::Stream
    }
}

/// An error and what is behind it, also where an `io::Error` carries another one: its `source`
/// skips that.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| next_cause(error))
}

fn next_cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>() {
        Some(error) => error.get_ref().map(|carried| carried as _),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use libp2p_relay::outbound::hop::ProtocolViolation;

    use super::*;
    use crate::client::TransportError;

    fn reason(error: ReserveError) -> Option<LossReason> {
        let error = TransportError::Reservation(error);
        from_listener_error(&io::Error::other(io::Error::other(error)))
    }

    #[test]
    fn a_refusal_is_found_below_the_layers_of_the_transport() {
        assert_eq!(
            reason(ReserveError::ResourceLimitExceeded),
            Some(LossReason::Refused(StatusCode::ResourceLimitExceeded))
        );
        assert_eq!(from_listener_error(&io::Error::other("else")), None);
    }

    #[test]
    fn a_refused_negotiation_is_told_from_a_broken_stream_and_from_a_broken_rule() {
        let refused = io::Error::other(NegotiationError::Failed);
        assert_eq!(
            reason(ReserveError::Io(refused)),
            Some(LossReason::Unsupported)
        );
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(reason(ReserveError::Io(reset)), Some(LossReason::Stream));
        let nowhere = ProtocolViolation::NoAddressesInReservation;
        assert_eq!(
            reason(ReserveError::Protocol(nowhere)),
            Some(LossReason::ProtocolViolation)
        );
    }
}
