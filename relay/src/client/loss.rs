//! Reads why a reservation did not come.

use std::{error::Error, io};

use libp2p_core::upgrade::NegotiationError;

use super::{LossReason, exchange::ExchangeError};

impl From<ExchangeError> for LossReason {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Refused(status) => Self::Refused(status),
            ExchangeError::Violation(_) => Self::ProtocolViolation,
            ExchangeError::Io(error) => from_io_error(&error),
        }
    }
}

pub(crate) fn from_io_error(error: &io::Error) -> LossReason {
    // Where protocols are negotiated lazily, a refusal only shows when the answer is read.
    let refused = causes(error)
        .filter_map(|cause| cause.downcast_ref::<NegotiationError>())
        .any(|error| matches!(error, NegotiationError::Failed));
    if refused {
        LossReason::Unsupported
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
    use super::*;
    use crate::{ProtocolViolation, StatusCode};

    #[test]
    fn a_refused_negotiation_is_told_from_a_broken_stream_and_from_a_broken_rule() {
        let refused = io::Error::other(io::Error::other(NegotiationError::Failed));
        let reason = |error: ExchangeError| LossReason::from(error);
        assert_eq!(reason(ExchangeError::Io(refused)), LossReason::Unsupported);
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(reason(ExchangeError::Io(reset)), LossReason::Stream);
        assert_eq!(
            reason(ProtocolViolation::TooLong.into()),
            LossReason::ProtocolViolation
        );
        assert_eq!(
            reason(ExchangeError::Refused(StatusCode::PermissionDenied)),
            LossReason::Refused(StatusCode::PermissionDenied)
        );
    }
}
