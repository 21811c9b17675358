//! What fuzz targets call: one function a parser. They panic where a promise breaks.

use std::time::{Duration, UNIX_EPOCH};

use libp2p_core::SignedEnvelope;
use libp2p_identity::Keypair;

use crate::{
    Announcement, CircuitLimit, Load, StatusCode, Voucher, announcement,
    message::{HopRequest, HopResponse, MAX_BYTES, Reservation, StopRequest, StopResponse},
    protocol, voucher,
};

/// The key that signs in here.
fn key() -> Option<Keypair> {
    Keypair::ed25519_from_bytes([7; 32]).ok()
}

/// Reads bytes as an announcement, and as the content of one whose signature is right.
pub fn announcement(bytes: &[u8]) {
    let now = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    check(bytes, now);
    let Some(key) = key() else {
        return;
    };
    let signed = SignedEnvelope::new(
        &key,
        announcement::DOMAIN.to_owned(),
        announcement::PAYLOAD_TYPE.to_vec(),
        bytes.to_vec(),
    );
    if let Ok(signed) = signed {
        check(&signed.into_protobuf_encoding(), now);
    }
}

fn check(bytes: &[u8], now: std::time::SystemTime) {
    let Ok(read) = Announcement::verify(bytes, now) else {
        return;
    };
    assert!((1..=16).contains(&read.addresses.len()));
    assert!(!read.addresses.iter().any(crate::is_relayed));
    assert!(read.expires > now);
    assert!(read.load.percent() <= 100);
}

/// Reads bytes as a stream with a message, and as each of the messages of hop and stop. What is understood means the same
/// when it is written and read again.
pub fn message(bytes: &[u8]) {
    let mut stream = futures::io::Cursor::new(bytes);
    if let Ok(message) = futures::executor::block_on(protocol::read(&mut stream)) {
        assert!(message.len() <= MAX_BYTES);
        assert!(stream.position() <= bytes.len() as u64);
    }
    if let Ok(read) = HopRequest::decode(bytes) {
        assert_eq!(HopRequest::decode(&read.encode()), Ok(read));
    }
    if let Ok(read) = HopResponse::decode(bytes) {
        let written = read.encode();
        assert!(written.len() <= MAX_BYTES + 96);
        // What is too long to be answered loses addresses.
        if bytes.len() + 200 < MAX_BYTES {
            assert_eq!(HopResponse::decode(&written), Ok(read));
        }
    }
    if let Ok(read) = StopRequest::decode(bytes) {
        assert_eq!(StopRequest::decode(&read.encode()), Ok(read));
    }
    if let Ok(read) = StopResponse::decode(bytes) {
        assert_eq!(StopResponse::decode(&read.encode()), Ok(read));
    }
}

/// Reads bytes as a voucher, and as the content of one whose signature is right.
pub fn voucher(bytes: &[u8]) {
    // Nobody else can sign for the relay that it names.
    let _ = Voucher::open(bytes);
    let Some(key) = key() else { return };
    let Ok(signed) = SignedEnvelope::new(
        &key,
        voucher::DOMAIN.to_owned(),
        voucher::CODEC.to_vec(),
        bytes.to_vec(),
    ) else {
        return;
    };
    if let Ok(read) = Voucher::open(&signed.into_protobuf_encoding()) {
        assert_eq!(read.relay, key.public().to_peer_id());
        let again = read.sign(&key).map(|signed| Voucher::open(&signed));
        assert!(matches!(again, Ok(Ok(again)) if again == read));
    }
}

fn message_seeds() -> Vec<(String, Vec<u8>)> {
    let Some(key) = key() else {
        return Vec::new();
    };
    let peer = key.public().to_peer_id();
    let limit = Some(CircuitLimit::REFERENCE);
    let reservation = Some(Reservation {
        expires: Some(1_790_000_000),
        addresses: "/ip4/203.0.113.9/tcp/4001".parse().into_iter().collect(),
        voucher: Some(prost::bytes::Bytes::from_static(b"voucher")),
    });
    let refused = StatusCode::NoReservation;
    let mut seeds: Vec<(String, Vec<u8>)> = [
        ("reserve", HopRequest::Reserve.encode()),
        (
            "connect",
            HopRequest::Connect { destination: peer }.encode(),
        ),
        (
            "reserved",
            HopResponse::Accepted { reservation, limit }.encode(),
        ),
        ("refused", HopResponse::Refused(refused).encode()),
        (
            "stop",
            StopRequest {
                source: peer,
                limit,
            }
            .encode(),
        ),
        ("accepted", StopResponse::Accepted.encode()),
    ]
    .into_iter()
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .collect();
    let framed = seeds.iter().map(|(name, bytes)| {
        let mut framed = Vec::new();
        prost::encoding::encode_varint(bytes.len() as u64, &mut framed);
        framed.extend(bytes);
        (format!("framed-{name}"), framed)
    });
    let framed: Vec<_> = framed.collect();
    seeds.extend(framed);
    seeds
}

fn voucher_seeds() -> Vec<(String, Vec<u8>)> {
    let Some(key) = key() else {
        return Vec::new();
    };
    let relay = key.public().to_peer_id();
    let unsigned = Voucher {
        relay,
        peer: relay,
        expires: 1_790_000_000,
    };
    let signed = unsigned.sign(&key).unwrap_or_default();
    let payload = SignedEnvelope::from_protobuf_encoding(&signed).ok();
    let payload = payload.and_then(|envelope| {
        let domain = voucher::DOMAIN.to_owned();
        let content = envelope.payload_and_signing_key(domain, &voucher::CODEC);
        content.ok().map(|(payload, _)| payload.to_vec())
    });
    let payload = payload.map(|payload| ("payload".to_owned(), payload));
    [("signed".to_owned(), signed)]
        .into_iter()
        .chain(payload)
        .collect()
}

/// Where the fuzzer begins.
#[must_use]
pub fn seeds(parser: &str) -> Vec<(String, Vec<u8>)> {
    match parser {
        "announcement" => announcement_seeds(),
        "message" => message_seeds(),
        "voucher" => voucher_seeds(),
        _ => Vec::new(),
    }
}

fn announcement_seeds() -> Vec<(String, Vec<u8>)> {
    let Some(key) = key() else {
        return Vec::new();
    };
    let now = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let address = "/ip4/203.0.113.9/tcp/4001"
        .parse()
        .into_iter()
        .collect::<Vec<_>>();
    let load = Load {
        reservations: 3,
        max_reservations: 256,
        circuits: 1,
        max_circuits: 256,
    };
    let hour = Duration::from_secs(60 * 60);
    let signed = Announcement::sign(
        &key,
        &address,
        load,
        Some(CircuitLimit::REFERENCE),
        now,
        hour,
    );
    let Ok(signed) = signed else {
        return Vec::new();
    };
    let payload = SignedEnvelope::from_protobuf_encoding(&signed)
        .ok()
        .and_then(|envelope| {
            let domain = announcement::DOMAIN.to_owned();
            let (payload, _) = envelope
                .payload_and_signing_key(domain, announcement::PAYLOAD_TYPE)
                .ok()?;
            Some(payload.to_vec())
        });
    let mut seeds = vec![("signed".to_owned(), signed)];
    seeds.extend(payload.map(|payload| ("payload".to_owned(), payload)));
    seeds
}
