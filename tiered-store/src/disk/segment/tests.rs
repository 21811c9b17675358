use std::sync::Arc;

use super::*;
use crate::vfs::{SimVfs, Vfs};

const HEAD: SegmentHeader = SegmentHeader {
    id: 7,
    first_seq: 10,
    salt: 0x1234_5678_9abc_def0,
    lane: LaneKind::Main,
};

/// A segment of records with these flags and payloads; where each begins.
fn segment(records: &[(u8, Vec<u8>)]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = HEAD.encode();
    let mut starts = Vec::new();
    for (n, (flags, payload)) in records.iter().enumerate() {
        starts.push(bytes.len());
        let header = Header {
            kind: Kind::Block,
            flags: *flags,
            class: 0,
            key_len: 1,
            payload_len: payload.len() as u32,
            expiry_ms: 0,
            seq: 10 + n as u64,
            token: HEAD.token(bytes.len() as u64),
        };
        header.encode(&[n as u8], crc32c::crc32c(payload), &mut bytes);
        bytes.extend_from_slice(payload);
    }
    starts.push(bytes.len());
    (bytes, starts)
}

fn scanned(bytes: &[u8], settled: u64) -> (Vec<u8>, u64, usize) {
    let vfs = SimVfs::new();
    let file = vfs.create("s".as_ref()).unwrap();
    file.write_all_at(0, &[IoSlice::new(bytes)]).unwrap();
    let header = read_header(&*file, 7).unwrap();
    let scan = scan(&file, header, settled).unwrap();
    let keys = scan.items.iter().map(|item| item.key[0]).collect();
    (keys, scan.end, scan.damaged.len())
}

fn four(flags: [u8; 4]) -> (Vec<u8>, Vec<usize>) {
    segment(&flags.map(|flags| (flags, vec![flags; 3000])))
}

#[test]
fn a_damaged_record_does_not_cut_what_was_written_after_it_was_durable() {
    let (bytes, starts) = four([SETTLED; 4]);
    let end = bytes.len() as u64;
    assert_eq!(scanned(&bytes, 0), (vec![0, 1, 2, 3], end, 0));
    for bit in (starts[1] * 8..starts[2] * 8).step_by(37) {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(scanned(&bytes, 0), (vec![0, 2, 3], end, 1), "bit {bit}");
    }
    // Several, one after the other and apart.
    let mut several = bytes.clone();
    several[starts[0] + 2] ^= 1;
    several[starts[1] + 2] ^= 1;
    assert_eq!(scanned(&several, 0), (vec![2, 3], end, 1));
    several[starts[1] + 2] ^= 1;
    several[starts[2] + 100] ^= 1;
    assert_eq!(scanned(&several, 0), (vec![1, 3], end, 2));
}

#[test]
fn a_torn_tail_is_cut_where_it_begins_even_if_later_parts_of_it_are_whole() {
    // The last three were one write: nothing says that the first of them was durable before the others.
    let (bytes, starts) = four([SETTLED, SETTLED, 0, 0]);
    for at in [starts[1] + 50, starts[1] + 1] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        assert_eq!(scanned(&bytes, 0), (vec![0], starts[1] as u64, 0));
        // Unless the checkpoint knows that it was durable.
        let settled = starts[2] as u64;
        assert_eq!(
            scanned(&bytes, settled),
            (vec![0, 2, 3], bytes.len() as u64, 1)
        );
    }
    let cut = &bytes[..starts[3] + 20];
    assert_eq!(scanned(cut, 0), (vec![0, 1, 2], starts[3] as u64, 0));
}

#[test]
fn half_a_group_does_not_count_unless_the_other_half_was_damaged_later() {
    let (bytes, starts) = four([SETTLED, SETTLED | MORE, 0, SETTLED]);
    assert_eq!(
        scanned(&bytes[..starts[2]], 0),
        (vec![0], starts[1] as u64, 0)
    );
    assert_eq!(
        scanned(&bytes[..starts[3] - 1], 0),
        (vec![0], starts[1] as u64, 0)
    );
    let mut rotten = bytes.clone();
    rotten[starts[2] + 60] ^= 4;
    assert_eq!(scanned(&rotten, 0), (vec![0, 1, 3], bytes.len() as u64, 1));
}

#[test]
fn a_record_in_a_payload_is_not_taken_for_one() {
    // What a peer who knows the format could send: whole records, and whole segments.
    let (inner, starts) = four([SETTLED; 4]);
    let forged = inner[starts[0]..].to_vec();
    let (bytes, starts) = segment(&[(SETTLED, vec![1; 100]), (SETTLED, forged)]);
    let mut torn = bytes.clone();
    torn[starts[1] + 5] ^= 1;
    assert_eq!(scanned(&torn, 0), (vec![0], starts[1] as u64, 0));
}

#[test]
fn every_flipped_bit_of_a_segment_header_and_a_footer_is_detected() {
    let header = HEAD.encode();
    for bit in 0..header.len() * 8 {
        let mut flipped = header.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(SegmentHeader::parse(&flipped, 7), None, "bit {bit}");
    }
    let mut items = Items::default();
    for n in 0..3 {
        items.push(&Item {
            kind: Kind::Block,
            class: 1,
            payload_len: n,
            offset: 48,
            expiry_ms: 5,
            seq: u64::from(n),
            key: b"key",
        });
    }
    let vfs = SimVfs::new();
    let file = vfs.create("s".as_ref()).unwrap();
    let at = header.len() as u64;
    file.write_all_at(0, &[IoSlice::new(&header)]).unwrap();
    let len = write_footer(&*file, at, &HEAD, &items).unwrap();
    let read = read_footer(&*file, &HEAD).unwrap().unwrap();
    assert_eq!((read.count, &read.bytes), (3, &items.bytes));
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(at, &mut bytes).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        file.write_all_at(at, &[IoSlice::new(&flipped)]).unwrap();
        assert!(read_footer(&*file, &HEAD).unwrap().is_none(), "bit {bit}");
    }
    let _: Arc<dyn VfsFile> = file;
}
