//! The parsers of what lies on the disk, for `interop-tests/fuzz`. Not part of the API.
//!
//! Checksums would stop a fuzzer at the door, so each function tries the bytes as they are, and again with checksums that fit them.

use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest as _};

use crate::{
    Config, FORMAT, PutOptions, Store,
    cold::{
        frame::{self, Coder, Frame},
        pack::{self, Builder},
    },
    disk::{
        aborts, checkpoint,
        lane::LaneKind,
        record::{HEADER, Record},
        segment::{self, Items, SegmentHeader},
    },
    vfs::{Image, SimVfs, Vfs, VfsFile},
};

const SEGMENT: u32 = 1;
const HEAD: SegmentHeader = SegmentHeader {
    id: SEGMENT,
    first_seq: 0,
    salt: 0x5a17_5a17_5a17_5a17,
    lane: LaneKind::Main,
};
const NOW_MS: u64 = 1_000_000_000_000;

fn file(bytes: &[u8]) -> Arc<dyn VfsFile> {
    let vfs = SimVfs::new();
    let file = vfs
        .create("file".as_ref())
        .expect("nothing fails in memory");
    file.write_all_at(0, &[std::io::IoSlice::new(bytes)])
        .expect("nothing fails in memory");
    file
}

fn number(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u16::from_le_bytes(*number), rest))
}

/// Gives every record in a row the token and the checksum that it should have, `at` being where the first stands in its segment.
fn mend_records(bytes: &mut [u8], mut at: u64) {
    let mut rest = bytes;
    while let Some(head) = rest.first_chunk::<HEADER>() {
        let key = usize::from(u16::from_le_bytes([head[8], head[9]]));
        let payload = u32::from_le_bytes([head[12], head[13], head[14], head[15]]) as usize;
        let Some(record) = rest.get_mut(..HEADER + key + payload) else {
            return;
        };
        record[HEADER - 8..HEADER - 4].copy_from_slice(&HEAD.token(at).to_le_bytes());
        at += record.len() as u64;
        let crc = crc32c::crc32c(&record[HEADER + key..]);
        let crc = crc32c::crc32c_append(crc, &record[..HEADER - 4]);
        let crc = crc32c::crc32c_append(crc, &record[HEADER..HEADER + key]);
        record[HEADER - 4..HEADER].copy_from_slice(&crc.to_le_bytes());
        rest = &mut rest[HEADER + key + payload..];
    }
}

/// A record, or several in a row.
pub fn record(bytes: &[u8]) {
    let mut mended = bytes.to_vec();
    mend_records(&mut mended, segment::SEGMENT_HEADER);
    for bytes in [bytes, &mended] {
        let Some(record) = Record::parse(bytes) else {
            continue;
        };
        let mut again = Vec::new();
        record
            .header
            .encode(record.key, crc32c::crc32c(record.payload), &mut again);
        again.extend_from_slice(record.payload);
        let len = record.header.record_len() as usize;
        assert_eq!(again.len(), len);
        // The reserved bytes are checked, not kept.
        if bytes[10..12] == [0, 0] {
            assert_eq!(again, bytes[..len]);
        }
        // A flipped bit anywhere is found.
        let bit = bytes.len() * 31 % (len * 8);
        let mut flipped = bytes[..len].to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Record::parse(&flipped).is_none());
    }
    let mut whole = HEAD.encode();
    whole.extend_from_slice(&mended);
    for (header, settled) in [(Some(HEAD), 0), (Some(HEAD), 100), (None, 0), (None, 100)] {
        let scan = segment::scan(&file(&whole), header, settled).expect("nothing fails in memory");
        assert!(scan.end <= whole.len() as u64);
        for item in scan.items.iter() {
            let from = item.offset as usize;
            let record = Record::parse(&whole[from..from + item.record_len() as usize])
                .expect("it was scanned");
            assert_eq!(record.key, item.key);
        }
    }
}

/// A sealed segment's footer: as a file, and (two bytes of count, then items) with the trailer that fits.
pub fn footer(bytes: &[u8]) {
    let raw = file(bytes);
    let _ = segment::read_footer(&*raw, &HEAD).expect("nothing fails in memory");
    let header = segment::read_header(&*raw, SEGMENT).expect("nothing fails in memory");
    let _ = segment::scan(&raw, header, 0).expect("nothing fails in memory");
    let _ = aborts::parse(bytes);
    let Some((count, items)) = number(bytes) else {
        return;
    };
    let mended = file(&HEAD.encode());
    let items = Items {
        bytes: items.to_vec(),
        count: u32::from(count),
    };
    segment::write_footer(&*mended, segment::SEGMENT_HEADER, &HEAD, &items)
        .expect("nothing fails in memory");
    let read = segment::read_footer(&*mended, &HEAD).expect("nothing fails in memory");
    if let Some(read) = read {
        let mut again = Items::default();
        for item in read.iter() {
            again.push(&item);
        }
        assert_eq!((&again.bytes, again.count), (&items.bytes, items.count));
    }
}

/// Cuts the bytes into chunks (two bytes of length before each) and writes them as a checkpoint has them.
fn chunks(mut bytes: &[u8]) -> Vec<u8> {
    let (mut out, mut crc) = (Vec::new(), 0);
    while let Some((len, rest)) = number(bytes) {
        let (chunk, rest) = rest.split_at(usize::from(len).min(rest.len()));
        crc = crc32c::crc32c_append(crc, chunk);
        out.extend_from_slice(&u32::try_from(chunk.len()).expect("16 bits").to_le_bytes());
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(chunk);
        bytes = rest;
    }
    out
}

/// A checkpoint: as a file, and as chunks whose checksums fit.
pub fn checkpoint(bytes: &[u8]) {
    for bytes in [bytes, &chunks(bytes)] {
        let (mut seen, mut starts) = (0, 0);
        let whole = checkpoint::read(&*file(bytes), |entry| {
            seen += 1;
            starts += usize::from(matches!(entry, checkpoint::Entry::Start { .. }));
        })
        .expect("nothing fails in memory");
        assert!(seen <= bytes.len());
        assert!(!whole || starts == 1);
        let seq = checkpoint::seq_of(&*file(bytes)).expect("nothing fails in memory");
        assert!(!whole || seq.is_some());
    }
}

/// A store's directory: two bytes of length and the checkpoint's chunks, then the records of one segment. It opens, every block that it
/// has can be asked for, and it opens again with the same blocks.
pub fn recovery(bytes: &[u8]) {
    let Some((len, rest)) = number(bytes) else {
        return;
    };
    let (checkpoint, records) = rest.split_at(usize::from(len).min(rest.len()));
    let mut log = HEAD.encode();
    let mut records = records.to_vec();
    mend_records(&mut records, segment::SEGMENT_HEADER);
    log.extend_from_slice(&records);
    let dir = std::path::Path::new("store");
    let mut image = Image::new();
    image.insert(
        dir.join("FORMAT"),
        format!("anypath-tiered-store {FORMAT}\n").into_bytes(),
    );
    image.insert(dir.join(segment::file_name(SEGMENT)), log);
    if !checkpoint.is_empty() {
        image.insert(dir.join(checkpoint::file_name(1)), chunks(checkpoint));
    }
    let vfs = SimVfs::from_image(image, NOW_MS);
    let config = || {
        Config::builder()
            .path(dir)
            .vfs(Arc::new(vfs.clone()))
            .build()
            .expect("the defaults are valid")
    };
    futures::executor::block_on(async {
        let mut before = None;
        for _ in 0..2 {
            let store = Store::open(config()).await.expect("it opens");
            let mut cids: Vec<_> = store.iter().collect();
            cids.sort_unstable();
            for cid in &cids {
                assert!(store.has(cid));
                // The checkpoint may name records that are not there.
                let _ = store.get(cid).await;
            }
            for set in store.pin_sets() {
                let _ = store.pins(&set);
            }
            let _ = store.stats();
            if let Some(before) = before.replace(cids.clone()) {
                assert!(cids.iter().all(|cid| before.contains(cid)));
            }
            store.close().await.expect("nothing fails in memory");
        }
    });
}

/// A block in a pack may have so many bytes here.
const MOST: u32 = 1 << 20;

/// A pack of the cold tier, whole, and a frame of one.
pub fn pack(bytes: &[u8]) {
    const PACK: u32 = 1;
    let read = |bytes: &[u8]| {
        for item in pack::read(bytes, PACK).unwrap_or_default() {
            if let Ok(frame) = pack::frame_at(bytes, PACK, &item) {
                let _ = frame.block(MOST);
            }
        }
    };
    read(bytes);
    let thaw = |bytes: &[u8]| {
        if let Ok(frame) = Frame::parse(bytes, PACK) {
            assert!(frame.block(MOST).map_or(0, |block| block.len()) <= MOST as usize);
        }
    };
    thaw(bytes);
    let mut whole = bytes.to_vec();
    if let Some(start) = whole.len().checked_sub(pack::TRAILER)
        && start >= pack::HEADER
    {
        // Index and trailer with checksums that fit what they cover.
        whole[..8].copy_from_slice(b"APPACK\r\n");
        whole[8..16].copy_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0]);
        whole[start..start + 8].copy_from_slice(b"APIX\x01\0\0\0");
        whole[start + 20..start + 24].copy_from_slice(&PACK.to_le_bytes());
        let number = |at: usize| {
            let bytes = whole
                .get(at..at + 4)
                .and_then(|bytes| bytes.try_into().ok());
            u32::from_le_bytes(bytes.unwrap_or_default()) as usize
        };
        let (from, len) = (number(start + 8), number(start + 12));
        let index = whole.get(from..).and_then(|rest| rest.get(..len));
        let crc = crc32c::crc32c(index.unwrap_or_default());
        whole[start + 24..start + 28].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c::crc32c(&whole[start..start + 28]);
        whole[start + 28..].copy_from_slice(&crc.to_le_bytes());
        read(&whole);
    }
    let mut one = bytes.to_vec();
    if one.len() >= frame::HEADER {
        one[28..32].copy_from_slice(&PACK.to_le_bytes());
        let stored = u32::from_le_bytes([one[12], one[13], one[14], one[15]]) as usize;
        let end = frame::HEADER + usize::from(one[6]) + stored;
        if let Some(covered) = one.get(4..end) {
            let crc = crc32c::crc32c(covered);
            one[..4].copy_from_slice(&crc.to_le_bytes());
            thaw(&one);
        }
    }
}

/// What a fuzzer starts from: a name and an input, made by a store with a block of each sort, a pin set, a value and a deletion.
pub fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = std::path::Path::new("store");
    let vfs = SimVfs::new();
    let open = || {
        let config = Config::builder().path(dir).vfs(Arc::new(vfs.clone()));
        Store::open(config.build().expect("the defaults are valid"))
    };
    let read = |name: &str| {
        let Ok(file) = vfs.open(&dir.join(name)) else {
            return Vec::new();
        };
        let mut bytes =
            vec![0; usize::try_from(file.len().expect("it is in memory")).expect("small")];
        file.read_exact_at(0, &mut bytes)
            .expect("nothing fails in memory");
        bytes
    };
    let log = || read(&segment::file_name(SEGMENT));
    let (checkpoint, records) = futures::executor::block_on(async {
        let fill = async |store: &Store, from: u8| {
            for n in from..from + 3 {
                let data = Bytes::from(vec![n; usize::from(n)]);
                let cid = Cid::new_v1(0x55, Code::Sha2_256.digest(&data));
                let options = PutOptions {
                    ttl: (n % 3 == 1).then_some(std::time::Duration::from_secs(5)),
                    pin: (n % 3 == 2).then(|| "set".to_owned()),
                    ..PutOptions::default()
                };
                store
                    .put_with(cid, data, options)
                    .await
                    .expect("it is in memory");
                if n == from {
                    store.delete(&cid).await.expect("it is in memory");
                }
            }
            let value = Bytes::from_static(b"value");
            store
                .put_value("key", value, None)
                .await
                .expect("it is in memory");
        };
        let store = open().await.expect("it is in memory");
        fill(&store, 3).await;
        store.close().await.expect("it is in memory");
        let store = open().await.expect("it is in memory");
        fill(&store, 9).await;
        (read(&checkpoint::file_name(0)), log())
    });
    let records = records
        .get(segment::SEGMENT_HEADER as usize..)
        .unwrap_or_default();
    let whole = file(&log());
    let header = segment::read_header(&*whole, SEGMENT).expect("it is in memory");
    let items = segment::scan(&whole, header, 0)
        .expect("it is in memory")
        .items;
    let mut cut = Vec::new();
    let mut rest = &checkpoint[..];
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len) as usize;
        let (Some(chunk), Ok(short)) = (after.get(4..4 + len), u16::try_from(len)) else {
            break;
        };
        cut.extend_from_slice(&short.to_le_bytes());
        cut.extend_from_slice(chunk);
        rest = after.get(4 + len..).unwrap_or_default();
    }
    let named = |name: &str, bytes: Vec<u8>| (name.to_owned(), bytes);
    match target {
        "record" => items
            .iter()
            .enumerate()
            .filter_map(|(n, item)| {
                let from = item.offset as usize - segment::SEGMENT_HEADER as usize;
                let record = records.get(from..from + item.record_len() as usize)?;
                Some((format!("record-{n}"), record.to_vec()))
            })
            .collect(),
        "footer" => {
            let count = u16::try_from(items.count).expect("few");
            let bytes = [&count.to_le_bytes()[..], &items.bytes].concat();
            vec![named("footer", bytes)]
        }
        "checkpoint" => vec![named("file", checkpoint), named("chunks", cut)],
        "recovery" => {
            let with = |checkpoint: &[u8]| {
                let len = u16::try_from(checkpoint.len()).expect("small");
                [&len.to_le_bytes()[..], checkpoint, records].concat()
            };
            vec![named("log", with(&[])), named("both", with(&cut))]
        }
        "pack" => {
            let mut coder = Coder::new(3).expect("a level of zstd");
            let mut builder = Builder::new(1);
            let mut seeds = Vec::new();
            for (name, block) in [("plain", b"short".to_vec()), ("packed", vec![7; 600])] {
                let frame = coder.frame(1, name.as_bytes(), 0, 5, &block);
                let frame = frame.expect("in memory");
                seeds.push(named(name, frame.clone()));
                builder.push(frame).expect("a frame");
            }
            seeds.push(named("whole", builder.finish().parts.concat()));
            seeds
        }
        _ => Vec::new(),
    }
}
