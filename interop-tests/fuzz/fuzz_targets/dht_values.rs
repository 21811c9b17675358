#![no_main]

mod seeds;
// Files of the crate, without libp2p-kad, which would be built with it.
#[path = "../../../dht/src/ipns.rs"]
mod ipns;
#[path = "../../../dht/src/value.rs"]
#[allow(dead_code, reason = "the store needs the rest")]
mod value;

mod generated {
    pub(crate) mod pb {
        include!("../../../dht/src/generated/anypath.dht.ipns.rs");
    }
}

use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use libp2p_identity::{Keypair, PeerId};

use crate::{
    ipns::{Ipns, IpnsRecord},
    value::{PublicKeys, Validator as _},
};

fn pair() -> Keypair {
    Keypair::ed25519_from_bytes([7; 32]).expect("32 bytes are a key")
}

fn record(value: &[u8], number: u64) -> IpnsRecord {
    IpnsRecord {
        value: value.to_vec(),
        sequence: number,
        valid_until: SystemTime::UNIX_EPOCH + Duration::from_nanos(number),
        ttl: Duration::from_nanos(number),
    }
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let signed = [("path", 1), ("", i64::MAX.unsigned_abs())].map(|(value, number)| {
        let bytes = record(value.as_bytes(), number).sign(&pair());
        (format!("record-{number}"), bytes.expect("others would take it"))
    });
    let key = ("key".to_owned(), pair().public().encode_protobuf());
    signed.into_iter().chain([key]).collect()
}

fuzz_target!(init: seeds::write(seeds()), |bytes: &[u8]| {
    let name: PeerId = pair().public().to_peer_id();
    let _ = Ipns.validate(&Ipns::key(&name), bytes);
    let _ = PublicKeys.validate(&PublicKeys::key(&name), bytes);
    let _ = Ipns.is_still_valid(b"", bytes);
    let _ = Ipns.validate(bytes, bytes);
    let _ = PublicKeys.validate(bytes, bytes);
    // An order, whatever it is of.
    let (one, other) = bytes.split_at(bytes.len() / 2);
    let order = Ipns.compare(b"", one, other);
    assert_eq!(Ipns.compare(b"", other, one), order.reverse());
    assert_eq!(Ipns.compare(b"", bytes, bytes), std::cmp::Ordering::Equal);
    // What is signed says what it says.
    if let Some((number, value)) = bytes.split_first_chunk() {
        let record = record(value, u64::from_le_bytes(*number));
        if let Ok(signed) = record.sign(&pair()) {
            assert_eq!(IpnsRecord::verify(&name, &signed), Ok(record));
        }
    }
});
