//! Binding requests and responses of STUN ([RFC 8489](https://www.rfc-editor.org/rfc/rfc8489)) as ICE
//! ([RFC 8445](https://www.rfc-editor.org/rfc/rfc8445#section-7)) uses them. Reading allocates nothing: anybody may send such packets.

use std::net::{IpAddr, SocketAddr};

use hmac::{Hmac, Mac as _};
use sha1::Sha1;

use super::ufrag::Ufrag;

/// 96 random bits.
pub(super) type Transaction = [u8; 12];

const HEADER: usize = 20;
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const REQUEST: [u8; 2] = [0x00, 0x01];
const SUCCESS: [u8; 2] = [0x01, 0x01];

const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const PRIORITY: u16 = 0x0024;
const USE_CANDIDATE: u16 = 0x0025;
const FINGERPRINT: u16 = 0x8028;
const ICE_CONTROLLING: u16 = 0x802a;

/// Of a host's only address on the only component (RFC 8445 §5.1.2.1).
const HOST_PRIORITY: u32 = (126 << 24) | (65_535 << 8) | 255;

/// Whether a datagram is STUN, and not DTLS ([RFC 7983](https://www.rfc-editor.org/rfc/rfc7983#section-7)).
pub(crate) fn is_stun(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|byte| *byte < 4)
}

/// A message whose attributes lie within it.
struct Message<'a> {
    bytes: &'a [u8],
    transaction: Transaction,
    username: Option<&'a [u8]>,
    nominates: bool,
    /// Where the attribute begins, and its value.
    integrity: Option<(usize, &'a [u8])>,
}

impl<'a> Message<'a> {
    /// None if it is malformed, or not of this kind.
    fn parse(bytes: &'a [u8], kind: [u8; 2]) -> Option<Self> {
        let (header, body) = bytes.split_at_checked(HEADER)?;
        let (start, transaction) = header.split_at_checked(8)?;
        let [k0, k1, l0, l1, c0, c1, c2, c3] = *start.as_array()?;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        if [k0, k1] != kind || [c0, c1, c2, c3] != COOKIE || length != body.len() {
            return None;
        }
        let mut message = Self {
            bytes,
            transaction: *transaction.as_array()?,
            username: None,
            nominates: false,
            integrity: None,
        };
        let mut rest = body;
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            let (head, after) = rest.split_at_checked(4)?;
            let [t0, t1, l0, l1] = *head.as_array()?;
            let length = usize::from(u16::from_be_bytes([l0, l1]));
            let (padded, after) = after.split_at_checked(length.next_multiple_of(4))?;
            let value = padded.get(..length)?;
            // "agents MUST ignore all other attributes that follow MESSAGE-INTEGRITY" (RFC 8489 §14.5).
            match u16::from_be_bytes([t0, t1]) {
                _ if message.integrity.is_some() => {}
                USERNAME => message.username = Some(value),
                USE_CANDIDATE => message.nominates = true,
                MESSAGE_INTEGRITY => message.integrity = Some((at, value)),
                _ => {}
            }
            rest = after;
        }
        Some(message)
    }

    fn has_integrity(&self, key: &str) -> bool {
        let Some((at, value)) = self.integrity else {
            return false;
        };
        integrity(self.bytes, at, key).is_some_and(|mac| mac.verify_slice(value).is_ok())
    }
}

/// Over what lies before the attribute, with a length that ends with it (RFC 8489 §14.5).
fn integrity(bytes: &[u8], at: usize, key: &str) -> Option<Hmac<Sha1>> {
    let covered = bytes.get(..at)?;
    let length = u16::try_from(at + 24 - HEADER).ok()?;
    let mut mac = Hmac::<Sha1>::new_from_slice(key.as_bytes()).ok()?;
    mac.update(covered.get(..2)?);
    mac.update(&length.to_be_bytes());
    mac.update(covered.get(4..)?);
    Some(mac)
}

/// A binding request that its sender could only write who knows the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    /// The connection, by the name of the end that it is sent to, which is its key as well.
    pub(crate) ufrag: &'a str,
    pub(super) transaction: Transaction,
    /// Whether this is the pair of addresses to use (RFC 8445 §8.1.1).
    pub(super) nominates: bool,
}

/// Reads a binding request of WebRTC-direct with the right integrity; anything else is none.
pub(crate) fn request(datagram: &[u8]) -> Option<Request<'_>> {
    let message = Message::parse(datagram, REQUEST)?;
    let username = str::from_utf8(message.username?).ok()?;
    let (ufrag, _) = username.split_once(':')?;
    if !Ufrag::is_well_formed(ufrag) || !message.has_integrity(ufrag) {
        return None;
    }
    Some(Request {
        ufrag,
        transaction: message.transaction,
        nominates: message.nominates,
    })
}

/// The transaction that a response ends, if its integrity is right.
pub(super) fn response(datagram: &[u8], ufrag: &Ufrag) -> Option<Transaction> {
    let message = Message::parse(datagram, SUCCESS)?;
    message
        .has_integrity(ufrag.as_str())
        .then_some(message.transaction)
}

/// The check of a client, which controls and nominates its only pair at once.
pub(super) fn write_request(ufrag: &Ufrag, transaction: Transaction, tie: u64) -> Vec<u8> {
    let mut message = start(REQUEST, transaction);
    let username = format!("{0}:{0}", ufrag.as_str());
    attribute(&mut message, USERNAME, username.as_bytes());
    attribute(&mut message, PRIORITY, &HOST_PRIORITY.to_be_bytes());
    attribute(&mut message, ICE_CONTROLLING, &tie.to_be_bytes());
    attribute(&mut message, USE_CANDIDATE, &[]);
    finish(message, ufrag.as_str())
}

/// The answer to a request from `source`.
pub(super) fn write_response(request: &Request<'_>, source: SocketAddr) -> Vec<u8> {
    let mut message = start(SUCCESS, request.transaction);
    let [c0, c1, ..] = COOKIE;
    let port = source.port() ^ u16::from_be_bytes([c0, c1]);
    let mask = COOKIE.iter().chain(&request.transaction);
    let (family, mut value) = match source.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    for (byte, mask) in value.iter_mut().zip(mask) {
        *byte ^= mask;
    }
    let mapped = [&[0, family], &port.to_be_bytes()[..], &value].concat();
    attribute(&mut message, XOR_MAPPED_ADDRESS, &mapped);
    finish(message, request.ufrag)
}

/// A client's check with any transaction.
#[cfg(any(fuzzing, test))]
pub(super) fn write_check(ufrag: &Ufrag) -> Vec<u8> {
    write_request(ufrag, [9; 12], 1)
}

fn start(kind: [u8; 2], transaction: Transaction) -> Vec<u8> {
    [&kind[..], &[0, 0], &COOKIE, &transaction].concat()
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(kind.to_be_bytes());
    // Names are short, and everything else of a fixed length.
    message.extend((value.len() as u16).to_be_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn finish(mut message: Vec<u8>, key: &str) -> Vec<u8> {
    let at = message.len();
    if let Some(mac) = integrity(&message, at, key) {
        attribute(
            &mut message,
            MESSAGE_INTEGRITY,
            &mac.finalize().into_bytes(),
        );
    }
    let with_fingerprint = (message.len() + 8 - HEADER) as u16;
    set_length(&mut message, with_fingerprint);
    let sum = crc32(&message) ^ 0x5354_554e;
    attribute(&mut message, FINGERPRINT, &sum.to_be_bytes());
    message
}

fn set_length(message: &mut [u8], length: u16) {
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}

/// CRC-32 of ITU V.42 (RFC 8489 §14.7), a bit at a time: a response is 100 bytes.
fn crc32(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg());
        }
    }
    !sum
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A request with any user name and key, as an attacker may write it.
    pub(crate) fn forged(username: &str, key: &str) -> Vec<u8> {
        let mut message = start(REQUEST, [7; 12]);
        attribute(&mut message, USERNAME, username.as_bytes());
        finish(message, key)
    }

    fn ufrag() -> Ufrag {
        Ufrag::new("libp2p+webrtc+v1/abcdefgh").unwrap()
    }

    /// The sample request of RFC 5769 §2.1 with its password.
    #[test]
    fn the_integrity_is_that_of_the_test_vectors() {
        let sample = hex::decode(
            "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff80290008932ff9b151263b36\
             000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf",
        )
        .unwrap();
        let message = Message::parse(&sample, REQUEST).unwrap();
        assert_eq!(message.username, Some(&b"evtj:h6vY"[..]));
        assert!(message.has_integrity("VOkJxbRl1RmTxUk/WvJxBt"));
        assert!(!message.has_integrity("VOkJxbRl1RmTxUk/WvJxBu"));
        let before_sum = &sample[..sample.len() - 8];
        assert_eq!(crc32(before_sum) ^ 0x5354_554e, 0xe57a_3bcf);
        // No name of ours.
        assert_eq!(request(&sample), None);
    }

    #[test]
    fn what_is_written_can_be_read() {
        let sent = write_request(&ufrag(), [1; 12], 5);
        let read = request(&sent).unwrap();
        assert_eq!(read.ufrag, ufrag().as_str());
        assert!(read.nominates && is_stun(&sent));
        for source in ["192.0.2.1:5", "[2001:db8::1]:6"] {
            let answer = write_response(&read, source.parse().unwrap());
            assert_eq!(response(&answer, &ufrag()), Some([1; 12]));
            let other = Ufrag::new("libp2p+webrtc+v1/abcdefgi").unwrap();
            assert_eq!(response(&answer, &other), None);
        }
    }

    #[test]
    fn a_response_names_the_source_as_the_rfc_does() {
        // RFC 5769 §2.2.
        let transaction = *b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae";
        let request = Request {
            ufrag: "libp2p+webrtc+v1/abcdefgh",
            transaction,
            nominates: false,
        };
        let answer = write_response(&request, "192.0.2.1:32853".parse().unwrap());
        assert_eq!(
            answer[20..32],
            *b"\x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43"
        );
    }

    #[test]
    fn names_and_keys_that_are_not_ours_are_nothing() {
        let good = "libp2p+webrtc+v1/abcdefgh";
        assert!(request(&forged(&format!("{good}:{good}"), good)).is_some());
        // A browser that does not let its name be chosen.
        let second = "libp2p+webrtc+v2/abcdefgh";
        assert!(request(&forged(&format!("{second}:AbCd"), second)).is_some());
        for (username, key) in [
            (format!("{good}:{good}"), "another"),
            (good.to_owned(), good),
            (
                "libp2p+webrtc+v3/abcdefgh:x".to_owned(),
                "libp2p+webrtc+v3/abcdefgh",
            ),
            ("abcd:abcd".to_owned(), "abcd"),
            (format!("{good}\n:x"), good),
            (format!("{good}{}:x", "a".repeat(300)), good),
        ] {
            assert_eq!(request(&forged(&username, key)), None, "{username}");
        }
    }

    proptest! {
        #[test]
        fn no_packet_is_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>()) {
            let _ = request(&bytes);
            let mut message = write_request(&ufrag(), [1; 12], 5);
            let at = at.index(message.len());
            message[at] ^= 0x41;
            // Nothing after the integrity counts, but the length of all.
            let covered = message.len() - 8;
            let is_nothing = request(&message).is_none();
            prop_assert!(is_nothing || at >= covered);
            message.truncate(at);
            prop_assert_eq!(request(&message), None);
        }
    }
}
