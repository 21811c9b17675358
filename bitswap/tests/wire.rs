//! The wire format against bytes of other implementations, against itself, and against attackers.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use anypath_bitswap::{
    Block,
    message::{Entry, Message, Presence, Version, WantType, decode, prefix},
};
use bytes::{Bytes, BytesMut};
use cid::{Cid, multihash::Multihash};
use multihash_codetable::{Code, MultihashDigest};
use proptest::prelude::*;

/// SHA2-256 of "abc".
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const MAX_ITEMS: usize = 8192;

fn bytes(hex: &str) -> Bytes {
    hex::decode(hex).unwrap().into()
}

fn abc() -> Cid {
    Cid::try_from(bytes(&format!("01551220{ABC}")).as_ref()).unwrap()
}

fn frame(message: &Message, version: Version) -> Bytes {
    let mut frame = BytesMut::new();
    for chunk in message.encode(version) {
        frame.extend_from_slice(&chunk);
    }
    frame.freeze()
}

/// Without the length prefix, which is checked.
fn body(message: &Message, version: Version) -> Bytes {
    let frame = frame(message, version);
    let digits = frame.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
    let length = frame[..digits]
        .iter()
        .enumerate()
        .fold(0, |sum, (index, byte)| {
            sum | usize::from(byte & 0x7f) << (7 * index)
        });
    assert_eq!(length, frame.len() - digits);
    frame.slice(digits..)
}

fn want(cid: Cid) -> Entry {
    Entry {
        cid,
        priority: 1,
        cancel: false,
        want_type: WantType::Block,
        send_dont_have: true,
        descend: 0,
    }
}

#[test]
fn a_want_is_written_as_beetswap_and_boxo_write_it() {
    let message = Message {
        entries: vec![want(abc())],
        ..Message::default()
    };
    let golden = format!("2e0a2c0a2a0a2401551220{ABC}10012801");
    assert_eq!(hex::encode(frame(&message, Version::V1_2)), golden);
    assert_eq!(
        decode(bytes(&golden[2..]), MAX_ITEMS).unwrap().entries,
        message.entries
    );
}

#[test]
fn a_block_is_written_after_an_empty_wantlist() {
    // kubo up to 0.35 dereferences nil without the wantlist (boxo PR 961).
    let message = Message {
        blocks: vec![Block::raw("abc")],
        ..Message::default()
    };
    assert_eq!(
        hex::encode(frame(&message, Version::V1_2)),
        "0f0a001a0b0a04015512201203616263"
    );
}

#[test]
fn a_block_without_wantlist_is_read_as_beetswap_writes_it() {
    let message = decode(bytes("1a0b0a04015512201203616263"), MAX_ITEMS).unwrap();
    assert_eq!(message.blocks, [Block::raw("abc")]);
}

#[test]
fn cid_v0_is_read_in_gos_and_in_beetswaps_form_and_written_in_gos() {
    let v0 = Cid::new_v0(Code::Sha2_256.digest(b"abc")).unwrap();
    for golden in ["1a0b0a04007012201203616263", "1a090a0212201203616263"] {
        let message = decode(bytes(golden), MAX_ITEMS).unwrap();
        assert_eq!(
            (message.blocks[0].cid(), message.skipped),
            (&v0, 0),
            "{golden}"
        );
    }
    assert_eq!(prefix(&v0), [0x00, 0x70, 0x12, 0x20]);
    assert_eq!(prefix(&abc()), [0x01, 0x55, 0x12, 0x20]);
}

#[test]
fn cid_v0_with_another_hash_codec_or_length_is_skipped() {
    for prefix in ["00551220", "00701340", "00701214", "02551220"] {
        let golden = format!("1a0b0a04{prefix}1203616263");
        let message = decode(bytes(&golden), MAX_ITEMS).unwrap();
        assert_eq!((message.blocks.len(), message.skipped), (0, 1), "{prefix}");
    }
}

#[test]
fn helias_full_list_with_want_have_and_cancel_is_read() {
    let entry = |tail: &str| {
        let inner = format!("0a2401551220{ABC}{tail}");
        format!("0a{:02x}{inner}", inner.len() / 2)
    };
    let entries = format!("{}{}1001", entry("100120012801"), entry("10011801"));
    let golden = format!("0a{:02x}{entries}", entries.len() / 2);
    let message = decode(bytes(&golden), MAX_ITEMS).unwrap();
    assert!(message.full);
    assert_eq!(message.entries[0].want_type, WantType::Have);
    assert!(message.entries[0].send_dont_have && !message.entries[0].cancel);
    assert!(message.entries[1].cancel);
}

#[test]
fn presences_and_pending_bytes_are_read_and_written_as_boxo_does() {
    let message = Message {
        presences: vec![Presence {
            cid: abc(),
            have: false,
        }],
        pending_bytes: 300,
        ..Message::default()
    };
    let golden = format!("0a0022280a2401551220{ABC}100128ac02");
    assert_eq!(hex::encode(body(&message, Version::V1_2)), golden);
    let read = decode(bytes(&golden), MAX_ITEMS).unwrap();
    assert_eq!(
        (read.presences, read.pending_bytes),
        (message.presences.clone(), 300)
    );
    // Before 1.2.0 there are none.
    assert_eq!(hex::encode(body(&message, Version::V1_1)), "0a0028ac02");
}

#[test]
fn version_1_0_carries_bare_data() {
    let message = Message {
        blocks: vec![Block::raw("abc")],
        ..Message::default()
    };
    for version in [Version::V1_0, Version::Unversioned] {
        assert_eq!(hex::encode(body(&message, version)), "0a001203616263");
    }
    let read = decode(bytes("0a001203616263"), MAX_ITEMS).unwrap();
    let v0 = Cid::new_v0(Code::Sha2_256.digest(b"abc")).unwrap();
    assert_eq!(*read.legacy_blocks[0].cid(), v0);
}

#[test]
fn our_extensions_have_field_numbers_that_others_skip() {
    let entry = Entry {
        descend: 3,
        ..want(abc())
    };
    let message = Message {
        entries: vec![entry],
        promised: vec![abc()],
        ..Message::default()
    };
    let bytes = body(&message, Version::V1_2);
    // Field 1000: varint key 0xc03e, length-delimited key 0xc23e.
    assert!(hex::encode(&bytes).contains("c03e03"));
    assert!(hex::encode(&bytes).contains("c23e24"));
    let read = decode(bytes, MAX_ITEMS).unwrap();
    assert_eq!(
        (read.entries, read.promised),
        (message.entries, message.promised)
    );
    // Unset, they do not appear.
    let plain = Message {
        entries: vec![want(abc())],
        ..Message::default()
    };
    assert!(!hex::encode(body(&plain, Version::V1_2)).contains("c03e"));
}

/// Lines of a file of golden frames, in words.
fn golden(file: &str) -> Vec<Vec<&str>> {
    let lines = file.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.split_whitespace().collect())
        .collect()
}

const BOXO: &str = include_str!("golden/boxo.txt");
const HELIA: &str = include_str!("golden/helia.txt");

/// What the frame of this name in boxo's golden file says.
fn boxo(name: &str) -> (Message, Version) {
    let raw = abc();
    let v0 = Cid::new_v0(*raw.hash()).unwrap();
    let entry = |cid, priority, want_type, send_dont_have| Entry {
        cid,
        priority,
        cancel: false,
        want_type,
        send_dont_have,
        descend: 0,
    };
    let wants = |entry| Message {
        entries: vec![entry],
        ..Message::default()
    };
    let block = |cid, data: &'static str| Message {
        blocks: vec![Block::new(cid, data.into()).unwrap()],
        ..Message::default()
    };
    let truncated = Multihash::wrap(0x12, &raw.hash().digest()[..20]).unwrap();
    let message = match name {
        "want_block" => wants(entry(raw, i32::MAX, WantType::Block, true)),
        "want_have" => wants(entry(raw, 5, WantType::Have, true)),
        "want_have_broadcast" => wants(entry(raw, 5, WantType::Have, false)),
        "want_block_v0" => wants(entry(v0, 1, WantType::Block, true)),
        "cancel" => wants(Entry {
            cancel: true,
            ..entry(raw, 0, WantType::Block, false)
        }),
        "full" => Message {
            full: true,
            ..wants(entry(raw, -3, WantType::Block, false))
        },
        "empty" => Message::default(),
        "presences" => Message {
            presences: [(raw, true), (v0, false)]
                .map(|(cid, have)| Presence { cid, have })
                .into(),
            pending_bytes: i32::MAX,
            ..Message::default()
        },
        "block_v0" | "block_1_0_0" => block(v0, "abc"),
        "block_truncated_20" => block(Cid::new_v1(0x55, truncated), "abc"),
        "block_empty" => block(Cid::new_v1(0x71, Code::Sha2_256.digest(b"")), ""),
        _ => panic!("unknown name {name}"),
    };
    match name {
        "block_1_0_0" => (message, Version::V1_0),
        _ => (message, Version::V1_2),
    }
}

#[test]
fn boxos_frames_are_read_and_written_byte_for_byte() {
    let mut count = 0;
    for line in golden(BOXO) {
        let [name, frame_hex] = line[..] else {
            continue;
        };
        count += 1;
        let (message, version) = boxo(name);
        if name != "block_empty" {
            assert_eq!(hex::encode(frame(&message, version)), frame_hex, "{name}");
        }
        let read = decode(bytes(&frame_hex[2..]), MAX_ITEMS).unwrap();
        assert_eq!(read.skipped, 0, "{name}");
        if version == Version::V1_0 {
            assert_eq!(read.legacy_blocks, message.blocks, "{name}");
            continue;
        }
        assert_eq!((read.entries, read.full), (message.entries, message.full));
        // The order of boxo's maps is random.
        let sorted = |mut presences: Vec<Presence>| {
            presences.sort_by_key(|presence| presence.cid);
            presences
        };
        assert_eq!(sorted(read.presences), sorted(message.presences), "{name}");
        assert_eq!(read.blocks, message.blocks, "{name}");
        assert_eq!(read.pending_bytes, message.pending_bytes, "{name}");
    }
    assert_eq!(count, 12);
}

/// SHA-1, SHA-2, SHA-3, Keccak, SHAKE, BLAKE2, BLAKE3 as go-multihash computes them.
#[test]
fn every_hash_of_boxo_is_computed_as_go_does() {
    let data = Bytes::from_static(b"any peer, any path");
    let mut count = 0;
    for line in golden(BOXO) {
        let [name, cid, frame] = line[..] else {
            continue;
        };
        let read = decode(bytes(&frame[2..]), MAX_ITEMS).unwrap();
        if name == "blake3_100" {
            // Digests above 64 bytes are not ours.
            assert_eq!((read.blocks.len(), read.skipped), (0, 1));
            continue;
        }
        count += 1;
        let cid = Cid::try_from(bytes(cid).as_ref()).unwrap();
        let block = Block::new(cid, data.clone()).unwrap();
        assert_eq!(read.blocks, [block], "{name}");
        assert_eq!(
            prefix(&cid)[..],
            bytes(frame)[7..7 + prefix(&cid).len()],
            "{name}"
        );
    }
    assert_eq!(count, 22);
}

#[test]
fn blake2_of_every_allowed_length_is_verified() {
    let data = Bytes::from_static(b"any peer, any path");
    for (code, length) in (20..=64_u64)
        .map(|length| (0xb200 + length, length))
        .chain((20..=32).map(|length| (0xb240 + length, length)))
    {
        // The digest is unknown until it is computed: by the decoder, from a prefix.
        let mut prefix = vec![0x01, 0x55];
        prost::encoding::encode_varint(code, &mut prefix);
        prost::encoding::encode_varint(length, &mut prefix);
        let mut payload = vec![0x0a, prefix.len() as u8];
        payload.extend(&prefix);
        payload.extend([0x12, data.len() as u8]);
        payload.extend(&data);
        let mut body = vec![0x1a, payload.len() as u8];
        body.extend(&payload);
        let read = decode(body.into(), MAX_ITEMS).unwrap();
        let hash = read.blocks[0].cid().hash();
        assert_eq!(
            (hash.code(), u64::from(hash.size())),
            (code, length),
            "{code:x}"
        );
        assert!(Block::new(*read.blocks[0].cid(), data.clone()).is_ok());
        assert!(Block::new(*read.blocks[0].cid(), Bytes::new()).is_err());
    }
    for (code, length) in [(0xb213_u64, 19_usize), (0xb253, 19)] {
        let hash = Multihash::<64>::wrap(code, &vec![0; length]).unwrap();
        assert!(Block::new(Cid::new_v1(0x55, hash), data.clone()).is_err());
    }
}

/// `@helia/bitswap` writes enum values and flags only when they are set, as proto3 says, and an
/// entry's CID always as bytes of a v1 or v0 CID.
#[test]
fn helias_frames_are_read_and_mean_what_they_say() {
    let frames: std::collections::HashMap<&str, Bytes> = golden(HELIA)
        .into_iter()
        .map(|line| (line[0], bytes(line[1])))
        .collect();
    let read = |name: &str| decode(frames[name].clone(), MAX_ITEMS).unwrap();
    let wants = read("full_want_have_and_cancel");
    assert!(wants.full);
    assert_eq!(wants.entries[0].want_type, WantType::Have);
    assert_eq!(
        (wants.entries[0].cid, wants.entries[0].priority),
        (abc(), 1)
    );
    assert!(wants.entries[0].send_dont_have && wants.entries[1].cancel);
    let block = read("block");
    assert_eq!(block.blocks, [Block::raw("abc")]);
    let v0 = Cid::new_v0(Code::Sha2_256.digest(b"abc")).unwrap();
    assert_eq!(*read("block_v0").blocks[0].cid(), v0);
    let presences = read("presences_and_pending_bytes");
    let have: Vec<bool> = presences.presences.iter().map(|p| p.have).collect();
    assert_eq!((have, presences.pending_bytes), (vec![true, false], 300));
    let truncated = read("block_truncated_20");
    assert_eq!(truncated.blocks[0].cid().hash().size(), 20);
}

#[test]
fn cids_of_every_length_up_to_the_limit_travel() {
    // 64 bytes of digest: the longest that is no identity hash here.
    let long = Cid::new_v1(u64::from(u32::MAX), Code::Sha2_512.digest(b"abc"));
    let message = Message {
        entries: vec![want(long)],
        ..Message::default()
    };
    let read = decode(body(&message, Version::V1_2), MAX_ITEMS).unwrap();
    assert_eq!(read.entries, message.entries);
}

/// A 2 MiB block with its envelope, and one that fills a frame (boxo PR 1101).
#[test]
fn blocks_of_two_and_almost_four_mebibytes_travel() {
    for size in [2 * 1024 * 1024, 4 * 1024 * 1024 - 64] {
        let message = Message {
            blocks: vec![Block::raw(vec![3; size])],
            ..Message::default()
        };
        let body = body(&message, Version::V1_2);
        assert!(body.len() <= 4 * 1024 * 1024);
        assert_eq!(decode(body, MAX_ITEMS).unwrap().blocks, message.blocks);
    }
}

#[test]
fn every_allowed_hash_is_verified() {
    let data = b"any peer, any path";
    let codes = [
        Code::Sha2_256,
        Code::Sha2_512,
        Code::Sha3_224,
        Code::Sha3_256,
        Code::Sha3_384,
        Code::Sha3_512,
        Code::Keccak224,
        Code::Keccak256,
        Code::Keccak384,
        Code::Keccak512,
        Code::Blake2b256,
        Code::Blake2b512,
        Code::Blake2s256,
        Code::Blake3_256,
    ];
    for code in codes {
        let cid = Cid::new_v1(0x55, code.digest(data));
        let block = Block::new(cid, Bytes::from_static(data)).unwrap();
        let message = Message {
            blocks: vec![block.clone()],
            ..Message::default()
        };
        let read = decode(body(&message, Version::V1_2), MAX_ITEMS).unwrap();
        assert_eq!(read.blocks, [block], "{code:?}");
        assert!(Block::new(cid, Bytes::from_static(b"other")).is_err());
    }
    // sha1 (git): 20 bytes of digest.
    let sha1 = Multihash::<64>::wrap(
        0x11,
        &hex::decode("a9993e364706816aba3e25717850c26c9cd0d89d").unwrap(),
    );
    assert!(Block::new(Cid::new_v1(0x78, sha1.unwrap()), Bytes::from_static(b"abc")).is_ok());
}

#[test]
fn a_truncated_digest_is_compared_at_its_length_and_a_short_one_refused() {
    let full = Code::Sha2_256.digest(b"abc");
    for (length, valid) in [(32, true), (24, true), (20, true), (19, false), (4, false)] {
        let hash = Multihash::<64>::wrap(0x12, &full.digest()[..length]).unwrap();
        let cid = Cid::new_v1(0x55, hash);
        assert_eq!(
            Block::new(cid, Bytes::from_static(b"abc")).is_ok(),
            valid,
            "{length}"
        );
    }
}

#[test]
fn an_unknown_hash_costs_its_block_and_not_the_message() {
    // 0x1100: murmur; then a good block.
    let golden = "1a0c0a05015580342012036162631a0b0a04015512201203616263";
    let message = decode(bytes(golden), MAX_ITEMS).unwrap();
    assert_eq!(
        (message.blocks, message.skipped),
        (vec![Block::raw("abc")], 1)
    );
}

#[test]
fn bad_items_are_skipped_one_by_one() {
    let good = format!("0a2a0a2401551220{ABC}10012801");
    let unknown_type = format!("0a2c0a2401551220{ABC}100120072801");
    let empty_cid = "0a020a00";
    let identity = "0a080a06015500026869";
    for bad in [unknown_type.as_str(), empty_cid, identity] {
        let entries = format!("{bad}{good}");
        let message = format!("0a{:02x}{entries}", entries.len() / 2);
        let read = decode(bytes(&message), MAX_ITEMS).unwrap();
        assert_eq!(
            (read.entries, read.skipped),
            (vec![want(abc())], 1),
            "{bad}"
        );
    }
}

#[test]
fn a_cid_of_more_than_168_bytes_is_skipped() {
    let mut cid = vec![0x01, 0x55, 0x12, 0x20];
    cid.resize(169, 0);
    let mut entry = vec![0x0a, 0xa9, 0x01];
    entry.extend(&cid);
    let mut list = vec![0x0a, 0xac, 0x01];
    list.extend(&entry);
    let mut message = vec![0x0a, 0xaf, 0x01];
    message.extend(&list);
    let read = decode(message.into(), MAX_ITEMS).unwrap();
    assert_eq!((read.entries.len(), read.skipped), (0, 1));
}

/// R12: what is no protobuf message is an error, never a panic.
#[test]
fn r12_malformed_frames_are_errors() {
    for bad in [
        "0a",
        "0a05",
        "0aff",
        "ff",
        "1a0b0a04",
        "28",
        "28ffffffffffffffffffff01",
        "0b",
    ] {
        assert!(decode(bytes(bad), MAX_ITEMS).is_err(), "{bad}");
    }
    assert_eq!(decode(Bytes::new(), MAX_ITEMS).unwrap(), Message::default());
    // Fields nobody knows are skipped.
    assert!(decode(bytes("0a003a0161f8070142020000"), MAX_ITEMS).is_ok());
}

/// R8, R1: a frame of two million empty items costs no more than its own size.
#[test]
fn items_beyond_the_limit_are_counted_and_not_kept() {
    for item in [[0x22_u8, 0], [0x1a, 0], [0x12, 0], [0xc2, 0x3e]] {
        let mut frame = BytesMut::new();
        for _ in 0..200_000 {
            frame.extend_from_slice(&item);
            if item[0] == 0xc2 {
                frame.extend_from_slice(&[0]);
            }
        }
        let read = decode(frame.freeze(), 1024).unwrap();
        assert!(read.legacy_blocks.len() <= 1024 && read.blocks.len() <= 1024);
        assert!(read.skipped >= 198_000, "{item:?}: {}", read.skipped);
    }
    let mut list = BytesMut::new();
    let good = bytes(&format!("0a2a0a2401551220{ABC}10012801"));
    (0..5000).for_each(|_| list.extend_from_slice(&good));
    let mut frame = BytesMut::from(&[0x0a_u8][..]);
    let mut length = list.len();
    while length >= 0x80 {
        frame.extend_from_slice(&[(length & 0x7f) as u8 | 0x80]);
        length >>= 7;
    }
    frame.extend_from_slice(&[length as u8]);
    frame.extend_from_slice(&list);
    let read = decode(frame.freeze(), 1024).unwrap();
    assert_eq!((read.entries.len(), read.skipped), (1024, 3976));
}

#[test]
fn large_blocks_are_neither_copied_when_written_nor_when_read() {
    let block = Block::raw(vec![7; 300_000]);
    let message = Message {
        blocks: vec![block.clone()],
        ..Message::default()
    };
    let chunks = message.encode(Version::V1_2);
    assert!(
        chunks
            .iter()
            .any(|chunk| chunk.as_ptr() == block.data().as_ptr())
    );
    let body = body(&message, Version::V1_2);
    let range = body.as_ptr_range();
    let read = decode(body, MAX_ITEMS).unwrap();
    assert!(range.contains(&read.blocks[0].data().as_ptr()));
}

#[test]
fn a_small_block_does_not_keep_its_frame_in_memory() {
    let blocks = vec![Block::raw(vec![1; 200_000]), Block::raw(vec![2; 100])];
    let message = Message {
        blocks,
        ..Message::default()
    };
    let body = body(&message, Version::V1_2);
    let range = body.as_ptr_range();
    let read = decode(body, MAX_ITEMS).unwrap();
    assert!(!range.contains(&read.blocks[1].data().as_ptr()));
}

fn any_cid() -> impl Strategy<Value = Cid> {
    (
        any::<[u8; 8]>(),
        prop_oneof![Just(0x55_u64), Just(0x70), Just(0x71)],
        any::<bool>(),
    )
        .prop_map(|(seed, codec, v0)| {
            let hash = Code::Sha2_256.digest(&seed);
            if v0 {
                Cid::new_v0(hash).unwrap()
            } else {
                Cid::new_v1(codec, hash)
            }
        })
}

fn any_entry() -> impl Strategy<Value = Entry> {
    (
        any_cid(),
        any::<i32>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        0..100_u32,
    )
        .prop_map(
            |(cid, priority, cancel, have, send_dont_have, descend)| Entry {
                cid,
                priority,
                cancel,
                want_type: if have {
                    WantType::Have
                } else {
                    WantType::Block
                },
                send_dont_have,
                descend,
            },
        )
}

fn any_message() -> impl Strategy<Value = Message> {
    let blocks = prop::collection::vec(
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            (0..3_u8).prop_map(|b| vec![b; 70_000])
        ],
        0..6,
    );
    let presences = prop::collection::vec((any_cid(), any::<bool>()), 0..10);
    (
        prop::collection::vec(any_entry(), 0..20),
        any::<bool>(),
        blocks,
        presences,
        any::<i32>(),
        prop::collection::vec(any_cid(), 0..3),
    )
        .prop_map(
            |(entries, full, blocks, presences, pending_bytes, promised)| Message {
                entries,
                full,
                blocks: blocks.into_iter().map(Block::raw).collect(),
                presences: presences
                    .into_iter()
                    .map(|(cid, have)| Presence { cid, have })
                    .collect(),
                pending_bytes,
                promised,
                ..Message::default()
            },
        )
}

proptest! {
    #[test]
    fn what_is_written_is_read(message in any_message()) {
        let body = body(&message, Version::V1_2);
        let expected = Message { frame_bytes: body.len(), ..message };
        prop_assert_eq!(decode(body, MAX_ITEMS).unwrap(), expected);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = decode(bytes.into(), 64);
    }

    #[test]
    fn no_damage_makes_the_decoder_panic(
        message in any_message(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = body(&message, Version::V1_2).to_vec();
        if !bytes.is_empty() {
            for (index, value) in damage {
                let index = index.index(bytes.len());
                bytes[index] = value;
            }
        }
        if let Ok(read) = decode(bytes.into(), 64) {
            for block in read.blocks {
                let (cid, data) = block.into_parts();
                prop_assert!(Block::new(cid, data).is_ok());
            }
        }
    }
}
