//! The Data Channel Establishment Protocol ([RFC 8832](https://www.rfc-editor.org/rfc/rfc8832)): how a data channel is opened.

/// A reliable, ordered channel of normal priority without label and protocol (§5.1, §8.2.2): "implementations MUST pass an empty string".
pub(super) const OPEN: [u8; 12] = [3, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The answer to it (§5.2).
pub(super) const ACK: [u8; 1] = [2];

/// What a DCEP message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dcep {
    /// A channel that a byte stream can have.
    Open,
    Ack,
    /// Anything else, a channel without order or with losses included.
    Unusable,
}

pub(super) fn parse(message: &[u8]) -> Dcep {
    match message {
        [2, ..] => Dcep::Ack,
        [
            3,
            0,
            _,
            _,
            _,
            _,
            _,
            _,
            label_high,
            label_low,
            protocol_high,
            protocol_low,
            names @ ..,
        ] => {
            let length = |high: &u8, low: &u8| usize::from(u16::from_be_bytes([*high, *low]));
            let expected = length(label_high, label_low) + length(protocol_high, protocol_low);
            if names.len() == expected {
                Dcep::Open
            } else {
                Dcep::Unusable
            }
        }
        _ => Dcep::Unusable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_that_keep_order_are_taken_whatever_their_label() {
        assert_eq!(parse(&OPEN), Dcep::Open);
        assert_eq!(parse(&ACK), Dcep::Ack);
        assert_eq!(parse(b"\x03\0\x01\0\0\0\0\0\0\x02\0\x01abc"), Dcep::Open);
    }

    #[test]
    fn anything_else_is_refused() {
        let mut unordered = OPEN;
        unordered[1] = 0x80;
        let mut lossy = OPEN;
        lossy[1] = 1;
        let cut = b"\x03\0\x01\0\0\0\0\0\0\x05\0\x01abc";
        for message in [&unordered[..], &lossy, cut, &OPEN[..11], &[], &[9]] {
            assert_eq!(parse(message), Dcep::Unusable, "{message:?}");
        }
    }
}
