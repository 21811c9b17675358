use futures::executor::block_on;
use futures::io::{AsyncReadExt as _, Cursor};
use proptest::prelude::*;

use super::{Header, MAX_BODY, SmallFrames};

const WINDOW_UPDATE: u8 = 1;
const SYN: u8 = 1;
const FIN: u8 = 4;

fn header(kind: u8, flags: u8, stream: u8, length: u32) -> Header {
    let [w, x, y, z] = length.to_be_bytes();
    [0, kind, 0, flags, 0, 0, 0, stream, w, x, y, z]
}

fn frame(flags: u8, stream: u8, body: &[u8]) -> Vec<u8> {
    [
        &header(0, flags, stream, u32::try_from(body.len()).unwrap())[..],
        body,
    ]
    .concat()
}

/// Everything that comes out, read `step` bytes at a time.
fn read(sent: Vec<u8>, step: usize) -> std::io::Result<Vec<u8>> {
    let mut frames = SmallFrames::new(Cursor::new(sent));
    let (mut all, mut some) = (Vec::new(), vec![0; step]);
    loop {
        match block_on(frames.read(&mut some))? {
            0 => return Ok(all),
            size => all.extend_from_slice(&some[..size]),
        }
    }
}

/// Flags, stream and body of each data frame.
fn data_frames(mut bytes: &[u8]) -> Vec<(u8, u8, &[u8])> {
    let mut found = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<12>() {
        let [_, kind, _, flags, _, _, _, stream, w, x, y, z] = *head;
        bytes = rest;
        if kind == 0 {
            let (body, rest) = rest.split_at(u32::from_be_bytes([w, x, y, z]) as usize);
            found.push((flags, stream, body));
            bytes = rest;
        }
    }
    assert!(bytes.is_empty());
    found
}

#[test]
fn a_frame_of_megabytes_comes_as_small_ones_that_open_first_and_close_last() {
    let body: Vec<u8> = (0..3 << 20).map(|at: u32| at as u8).collect();
    let read = read(frame(SYN | FIN, 7, &body), 100_000).unwrap();
    let frames = data_frames(&read);
    assert_eq!(frames.len(), body.len() / MAX_BODY as usize);
    assert!(frames.iter().all(|(_, stream, _)| *stream == 7));
    let flags: Vec<u8> = frames.iter().map(|(flags, ..)| *flags).collect();
    assert_eq!((flags[0], flags[flags.len() - 1]), (SYN, FIN));
    assert!(flags[1..flags.len() - 1].iter().all(|flags| *flags == 0));
    let parts: Vec<&[u8]> = frames.iter().map(|(_, _, body)| *body).collect();
    assert!(parts.concat() == body);
}

#[test]
fn an_end_within_a_header_is_an_error() {
    let mut sent = frame(0, 1, b"whole");
    sent.extend_from_slice(&header(WINDOW_UPDATE, 0, 1, 9)[..5]);
    let error = read(sent, 64).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

proptest! {
    #[test]
    fn small_frames_come_as_they_went_in_steps_of_any_size(
        frames in prop::collection::vec((0..16_u8, 0..9_u8, 0..300_usize, any::<bool>()), 0..8),
        step in 1..400_usize,
    ) {
        let mut sent = Vec::new();
        for (flags, stream, length, is_data) in frames {
            if is_data {
                sent.extend(frame(flags, stream, &vec![stream; length]));
            } else {
                // A window's growth is no body.
                sent.extend(header(WINDOW_UPDATE, flags, stream, u32::MAX - length as u32));
            }
        }
        prop_assert_eq!(read(sent.clone(), step).unwrap(), sent);
    }

    #[test]
    fn no_byte_of_large_frames_is_lost_in_steps_of_any_size(
        lengths in prop::collection::vec(0..200_000_usize, 1..4),
        step in 1..100_000_usize,
    ) {
        let bodies: Vec<Vec<u8>> = lengths.iter().map(|&length| (0..length).map(|at| at as u8).collect()).collect();
        let sent: Vec<u8> = bodies.iter().flat_map(|body| frame(0, 3, body)).collect();
        let read = read(sent, step).unwrap();
        let frames = data_frames(&read);
        prop_assert!(frames.iter().all(|(_, _, body)| body.len() <= MAX_BODY as usize));
        let all: Vec<&[u8]> = frames.iter().map(|(_, _, body)| *body).collect();
        prop_assert!(all.concat() == bodies.concat());
    }
}
