//! Reads why a listener on a relayed address ended.

use std::{error::Error, io};

use libp2p_relay::outbound::hop::ReserveError;

use super::LossReason;
use crate::StatusCode;

/// The reason within an error of the boxed transport, `None` if the relay did not answer at all.
pub(crate) fn from_listener_error(error: &io::Error) -> Option<LossReason> {
    // `io::Error::source` skips the error that it carries, so begin there.
    let carried = error.get_ref()?;
    let mut cause: Option<&(dyn Error + 'static)> = Some(carried);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<ReserveError>() {
            return Some(from_reserve_error(error));
        }
        cause = error.source();
    }
    None
}

fn from_reserve_error(error: &ReserveError) -> LossReason {
    match error {
        ReserveError::Refused => LossReason::Refused(StatusCode::ReservationRefused),
        ReserveError::ResourceLimitExceeded => {
            LossReason::Refused(StatusCode::ResourceLimitExceeded)
        }
        ReserveError::Unsupported => LossReason::Unsupported,
        ReserveError::Io(_) => LossReason::Stream,
        ReserveError::Protocol(_) => LossReason::ProtocolViolation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::TransportError;

    #[test]
    fn a_refusal_is_found_below_the_layers_of_the_transport() {
        let refusal = TransportError::Reservation(ReserveError::ResourceLimitExceeded);
        let boxed = io::Error::other(io::Error::other(refusal));
        assert_eq!(
            from_listener_error(&boxed),
            Some(LossReason::Refused(StatusCode::ResourceLimitExceeded))
        );
        assert_eq!(from_listener_error(&io::Error::other("else")), None);
    }
}
