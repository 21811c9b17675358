//! The messages of AutoNAT v2 that a server reads and writes, checked.
//!
//! [AutoNAT v2, RPC messages](https://github.com/libp2p/specs/blob/master/autonat/autonat-v2.md#rpc-messages). What reads them bounds a
//! message by [`MAX_BYTES`]; of the addresses in it [`MAX_ADDRESSES`] are looked at.

use libp2p::Multiaddr;
use prost::Message as _;

use crate::generated::autonat::{self as wire, message::Kind};
pub(super) use crate::generated::autonat::{DialStatus, dial_response::Status};

/// The longest message, without its length prefix: go-libp2p's `maxMsgSize`.
pub(super) const MAX_BYTES: usize = 8192;

/// Addresses of one request that are looked at: go-libp2p's `maxPeerAddresses`.
const MAX_ADDRESSES: usize = 50;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DialRequest {
    /// Its addresses, the most wanted one first; `None` for what is no address that we know.
    pub(super) addresses: Vec<Option<Multiaddr>>,
    /// What the dial-back has to say.
    pub(super) nonce: u64,
}

/// What a client may not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    /// Longer than [`MAX_BYTES`].
    #[error("a message of AutoNAT is too long")]
    TooLong,
    /// No protobuf, or another message.
    #[error("not the message of AutoNAT that was due")]
    Malformed,
}

fn decode(bytes: &[u8]) -> Result<Kind, Violation> {
    let message = wire::Message::decode(bytes).map_err(|_| Violation::Malformed)?;
    message.kind.ok_or(Violation::Malformed)
}

impl DialRequest {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Violation> {
        let Kind::DialRequest(request) = decode(bytes)? else {
            return Err(Violation::Malformed);
        };
        let addresses = request.addresses.into_iter().take(MAX_ADDRESSES);
        Ok(Self {
            addresses: addresses
                .map(|bytes| Multiaddr::try_from(bytes.to_vec()).ok())
                .collect(),
            nonce: request.nonce,
        })
    }
}

/// How many bytes of the data that was asked for a message has.
pub(super) fn decode_data(bytes: &[u8]) -> Result<usize, Violation> {
    match decode(bytes)? {
        Kind::DialDataResponse(response) => Ok(response.data.len()),
        _ => Err(Violation::Malformed),
    }
}

/// Asks for so many bytes before the address is dialled.
pub(super) fn dial_data_request(address_index: u32, bytes: u64) -> Vec<u8> {
    encode(Kind::DialDataRequest(wire::DialDataRequest {
        address_index,
        bytes,
    }))
}

/// What came of it; `address_index` and `dial_status` mean something with [`Status::Ok`] only.
pub(super) fn dial_response(
    status: Status,
    address_index: u32,
    dial_status: DialStatus,
) -> Vec<u8> {
    encode(Kind::DialResponse(wire::DialResponse {
        status: status.into(),
        address_index,
        dial_status: dial_status.into(),
    }))
}

fn encode(kind: Kind) -> Vec<u8> {
    wire::Message { kind: Some(kind) }.encode_to_vec()
}

pub(super) fn dial_back(nonce: u64) -> Vec<u8> {
    wire::DialBack { nonce }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand after the specification: `dialRequest` (1) with two `addrs` (1) and a `nonce` (2, fixed64).
    const REQUEST: [u8; 31] = [
        0x0a, 29, 0x0a, 8, 4, 127, 0, 0, 1, 6, 0x0f, 0xa1, 0x0a, 8, 4, 1, 2, 3, 4, 6, 0, 80, 0x11,
        1, 2, 3, 4, 5, 6, 7, 8,
    ];

    #[test]
    fn a_request_is_read_as_the_specification_has_it() {
        let request = DialRequest::decode(&REQUEST).unwrap();
        let address = |text: &str| Some(text.parse().unwrap());
        assert_eq!(
            request.addresses,
            [
                address("/ip4/127.0.0.1/tcp/4001"),
                address("/ip4/1.2.3.4/tcp/80")
            ]
        );
        assert_eq!(request.nonce, 0x0807_0605_0403_0201);
    }

    #[test]
    fn what_is_no_address_keeps_its_place_and_only_the_first_are_looked_at() {
        let addresses = std::iter::once(vec![0xff, 0xff]);
        let tcp: Multiaddr = "/ip4/1.2.3.4/tcp/80".parse().unwrap();
        let addresses = addresses.chain((0..100).map(|_| tcp.to_vec()));
        let request = encode(Kind::DialRequest(wire::DialRequest {
            addresses: addresses.map(Into::into).collect(),
            nonce: 1,
        }));
        let read = DialRequest::decode(&request).unwrap().addresses;
        assert_eq!(read.len(), MAX_ADDRESSES);
        assert_eq!(read.first(), Some(&None));
        assert_eq!(read.get(1), Some(&Some(tcp)));
    }

    #[test]
    fn answers_are_written_as_the_specification_has_them() {
        let reached = dial_response(Status::Ok, 3, DialStatus::Ok);
        assert_eq!(reached, [0x12, 8, 8, 0xc8, 1, 0x10, 3, 0x18, 0xc8, 1]);
        let rejected = dial_response(Status::ERequestRejected, 0, DialStatus::Unused);
        assert_eq!(rejected, [0x12, 2, 8, 100]);
        assert_eq!(dial_data_request(1, 300), [0x1a, 5, 8, 1, 0x10, 0xac, 2]);
        assert_eq!(dial_back(1), [9, 1, 0, 0, 0, 0, 0, 0, 0]);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_look_at_more(bytes: Vec<u8>) {
            if let Ok(request) = DialRequest::decode(&bytes) {
                assert!(request.addresses.len() <= MAX_ADDRESSES);
            }
            assert!(decode_data(&bytes).unwrap_or_default() <= bytes.len());
        }
    }

    #[test]
    fn only_what_is_due_is_taken() {
        assert_eq!(decode_data(&[0x22, 5, 0x0a, 3, 1, 2, 3]), Ok(3));
        assert_eq!(decode_data(&REQUEST), Err(Violation::Malformed));
        for other in [&dial_data_request(0, 1)[..], &[], &[0xff]] {
            assert_eq!(DialRequest::decode(other), Err(Violation::Malformed));
        }
    }
}
