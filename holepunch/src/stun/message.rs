//! Binding requests and responses of STUN ([RFC 8489](https://www.rfc-editor.org/rfc/rfc8489)) with the
//! attributes of [RFC 5780](https://www.rfc-editor.org/rfc/rfc5780).

use std::net::SocketAddr;

use stun_types::{
    attribute::{AttributeType, MappedSocketAddr, RawAttribute, XorMappedAddress},
    message::{BINDING, Message, MessageClass, MessageType, MessageWriteVec},
    prelude::*,
};

/// What fits into one datagram on every path (RFC 8489 §6.1); answers are shorter.
pub(super) const MAX_BYTES: usize = 1280;

const MAPPED_ADDRESS: AttributeType = AttributeType::new(0x0001);
const CHANGE_REQUEST: AttributeType = AttributeType::new(0x0003);
const OTHER_ADDRESS: AttributeType = AttributeType::new(0x802c);

/// Sets a request apart from all others; 96 random bits, so that nobody off the path can answer.
pub(super) type Transaction = u128;

/// What a server is asked to change about its answer (RFC 5780 §7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    Port,
    AddressAndPort,
}

/// A server's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Binding {
    pub(super) transaction: Transaction,
    /// Where it sees the sender.
    pub(super) mapped: SocketAddr,
    /// Its other address and port, if it has such (RFC 5780 §7.4).
    pub(super) other: Option<SocketAddr>,
}

pub(super) fn request(transaction: Transaction, change: Change) -> Option<Vec<u8>> {
    let kind = MessageType::from_class_method(MessageClass::Request, BINDING);
    let mut message = Message::builder(kind, transaction.into(), MessageWriteVec::new());
    let flags: u32 = match change {
        Change::Nothing => 0,
        Change::Port => 2,
        Change::AddressAndPort => 6,
    };
    if flags != 0 {
        let bytes = flags.to_be_bytes();
        let attribute = RawAttribute::new(CHANGE_REQUEST, &bytes);
        message.add_attribute(&attribute).ok()?;
    }
    Some(message.finish())
}

/// Reads a successful answer; anything else is none.
pub(super) fn response(bytes: &[u8]) -> Option<Binding> {
    let message = Message::from_bytes(bytes).ok()?;
    if !message.has_class(MessageClass::Success) || !message.has_method(BINDING) {
        return None;
    }
    let id = message.transaction_id();
    let address = |kind| {
        let raw = message.raw_attribute(kind)?;
        Some(MappedSocketAddr::from_raw(&raw).ok()?.addr())
    };
    let xored = message.attribute::<XorMappedAddress>();
    let mapped = xored.map(|xored| xored.addr(id)).ok();
    Some(Binding {
        transaction: id.into(),
        // RFC 3489's, from before middleboxes rewrote addresses.
        mapped: mapped.or_else(|| address(MAPPED_ADDRESS))?,
        other: address(OTHER_ADDRESS),
    })
}

/// The transaction of a request of ours that came back.
pub(super) fn returned(bytes: &[u8]) -> Option<Transaction> {
    let message = Message::from_bytes(bytes).ok()?;
    message
        .has_class(MessageClass::Request)
        .then(|| message.transaction_id().into())
}

#[cfg(test)]
pub(super) fn answer(request: &[u8], mapped: SocketAddr, other: SocketAddr) -> (Vec<u8>, Change) {
    let message = Message::from_bytes(request).expect("a request");
    let change = match message.raw_attribute(CHANGE_REQUEST) {
        Some(raw) if raw.value[3] == 6 => Change::AddressAndPort,
        Some(raw) if raw.value[3] == 2 => Change::Port,
        _ => Change::Nothing,
    };
    let mut answer = Message::builder_success(&message, MessageWriteVec::new());
    let mapped = XorMappedAddress::new(mapped, message.transaction_id());
    answer.add_attribute(&mapped).expect("room");
    let other = MappedSocketAddr::new(other);
    answer
        .add_attribute(&other.to_raw(OTHER_ADDRESS))
        .expect("room");
    (answer.finish(), change)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// [RFC 5769 §2.2](https://www.rfc-editor.org/rfc/rfc5769#section-2.2), with its fingerprint.
    #[test]
    fn the_sample_response_of_rfc_5769_is_read() {
        let mut bytes = [
            0x01, 0x01, 0x00, 0x3c, 0x21, 0x12, 0xa4, 0x42, 0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34,
            0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae, 0x80, 0x22, 0x00, 0x0b, 0x74, 0x65, 0x73, 0x74,
            0x20, 0x76, 0x65, 0x63, 0x74, 0x6f, 0x72, 0x20, 0x00, 0x20, 0x00, 0x08, 0x00, 0x01,
            0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43, 0x00, 0x08, 0x00, 0x14, 0x2b, 0x91, 0xf5, 0x99,
            0xfd, 0x9e, 0x90, 0xc3, 0x8c, 0x74, 0x89, 0xf9, 0x2a, 0xf9, 0xba, 0x53, 0xf0, 0x6b,
            0xe7, 0xd7, 0x80, 0x28, 0x00, 0x04, 0xc0, 0x7d, 0x4c, 0x96,
        ];
        let binding = response(&bytes).unwrap();
        assert_eq!(binding.mapped, "192.0.2.1:32853".parse().unwrap());
        assert_eq!(binding.other, None);
        bytes[46] ^= 1;
        assert_eq!(response(&bytes), None, "the fingerprint is another one");
    }

    #[test]
    fn a_request_asks_for_its_change_and_is_no_response() {
        for change in [Change::Nothing, Change::Port, Change::AddressAndPort] {
            let bytes = request(7, change).unwrap();
            assert_eq!(response(&bytes), None);
            assert_eq!(returned(&bytes), Some(7));
            let mapped = "203.0.113.7:4".parse().unwrap();
            let other = "8.8.8.8:5".parse().unwrap();
            let (bytes, seen) = answer(&bytes, mapped, other);
            assert_eq!(seen, change);
            let binding = Binding {
                transaction: 7,
                mapped,
                other: Some(other),
            };
            assert_eq!(response(&bytes), Some(binding));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange_to_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = response(&bytes);
            let _ = returned(&bytes);
        }

        #[test]
        fn no_change_of_a_response_is_too_strange_to_read(
            position in 0..60_usize,
            value in any::<u8>(),
            length in 0..80_usize,
        ) {
            let question = request(7, Change::Port).unwrap();
            let mapped = "203.0.113.7:4".parse().unwrap();
            let (mut bytes, _) = answer(&question, mapped, mapped);
            if let Some(byte) = bytes.get_mut(position) {
                *byte = value;
            }
            bytes.truncate(length);
            let _ = response(&bytes);
        }
    }
}
