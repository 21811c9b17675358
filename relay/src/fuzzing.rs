//! What fuzz targets call: one function a parser. They panic where a promise breaks.

use std::time::{Duration, UNIX_EPOCH};

use libp2p_core::SignedEnvelope;
use libp2p_identity::Keypair;

use crate::{Announcement, CircuitLimit, Load, announcement};

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

/// Where the fuzzer begins.
#[must_use]
pub fn seeds(parser: &str) -> Vec<(String, Vec<u8>)> {
    let Some(key) = key().filter(|_| parser == "announcement") else {
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
