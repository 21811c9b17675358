use std::io;

use bytes::Bytes;
use web_time::Instant;

use super::{
    message::{Flag, encode_data, encode_flag},
    stream::{READ_AHEAD, Stream},
};

fn stream() -> Stream {
    Stream::new(Instant::now())
}

fn take(stream: &mut Stream, frame: &Bytes) -> Option<Flag> {
    let decoder = stream.decoder().unwrap();
    decoder.space(frame.len()).copy_from_slice(frame);
    let answer = stream.next(Instant::now()).unwrap().unwrap();
    assert_eq!(stream.next(Instant::now()), Ok(None));
    answer
}

fn read(stream: &mut Stream) -> Option<io::Result<Vec<u8>>> {
    let mut buffer = [0; 4];
    let read = stream.read(&mut buffer, Instant::now())?;
    Some(read.map(|length| buffer[..length].to_vec()))
}

#[test]
fn data_is_read_to_its_end_and_the_end_is_acknowledged() {
    let mut stream = stream();
    assert!(read(&mut stream).is_none());
    take(&mut stream, &encode_data(b"abc"));
    take(&mut stream, &encode_data(b"de"));
    assert_eq!(
        take(&mut stream, &encode_flag(Flag::Fin)),
        Some(Flag::FinAck)
    );
    assert_eq!(read(&mut stream).unwrap().unwrap(), b"abcd");
    assert_eq!(read(&mut stream).unwrap().unwrap(), b"e");
    assert_eq!(read(&mut stream).unwrap().unwrap(), b"");
    assert!(stream.check_writable().is_ok(), "half-closed");
    assert!(!stream.is_ending());
    assert_eq!(stream.end().unwrap(), Some(Flag::Fin));
    assert_eq!(stream.end().unwrap(), None);
    assert!(stream.is_ending() && !stream.is_over());
    take(&mut stream, &encode_flag(Flag::FinAck));
    assert!(stream.is_over());
}

#[test]
fn an_end_is_acknowledged_once() {
    let fin = encode_flag(Flag::Fin);
    let mut ended = stream();
    assert_eq!(take(&mut ended, &fin), Some(Flag::FinAck));
    assert_eq!(take(&mut ended, &fin), None);
    let mut stopped = stream();
    stopped.give_up();
    assert_eq!(take(&mut stopped, &fin), Some(Flag::FinAck));
    assert_eq!(take(&mut stopped, &fin), None);
    let mut reset = stream();
    take(&mut reset, &encode_flag(Flag::Reset));
    assert_eq!(take(&mut reset, &fin), None);
}

#[test]
fn what_is_thrown_away_after_the_end_is_no_end_that_is_well() {
    let mut stream = stream();
    take(&mut stream, &encode_data(b"abc"));
    take(&mut stream, &encode_flag(Flag::Fin));
    stream.abort();
    assert!(read(&mut stream).unwrap().is_err());
}

#[test]
fn a_frame_with_little_data_costs_little() {
    let mut stream = stream();
    // An unknown field of 3000 bytes, and one byte of data.
    let mut frame = vec![0x1a, 0xb8, 0x17];
    frame.resize(3 + 3000, 0);
    frame.extend([0x12, 1, 7]);
    let length = [(frame.len() & 0x7f) as u8 | 0x80, (frame.len() >> 7) as u8];
    let frame = Bytes::from([&length[..], &frame].concat());
    for _ in 0..100 {
        take(&mut stream, &frame);
    }
    assert_eq!(stream.buffered(), 100);
    assert!(stream.room() <= 256, "{}", stream.room());
}

#[test]
fn a_reset_takes_what_was_not_read() {
    let mut stream = stream();
    take(&mut stream, &encode_data(b"abc"));
    assert_eq!(take(&mut stream, &encode_flag(Flag::Reset)), None);
    let error = read(&mut stream).unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(stream.check_writable().is_ok());
    assert_eq!(stream.buffered(), 0);
}

#[test]
fn who_does_not_read_any_more_is_not_written_to() {
    let mut stream = stream();
    take(&mut stream, &encode_flag(Flag::StopSending));
    let error = stream.check_writable().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    take(&mut stream, &encode_flag(Flag::Fin));
    assert!(stream.is_over());
}

#[test]
fn what_is_dropped_says_so_and_waits_for_the_other_end() {
    let mut stream = stream();
    take(&mut stream, &encode_data(b"abc"));
    assert_eq!(
        stream.give_up(),
        [Some(Flag::StopSending), Some(Flag::Reset)]
    );
    assert!(stream.is_ending() && !stream.is_over());
    take(&mut stream, &encode_data(b"more"));
    assert_eq!(stream.buffered(), 0);
    assert_eq!(
        take(&mut stream, &encode_flag(Flag::Fin)),
        Some(Flag::FinAck)
    );
    assert!(stream.is_over());
    assert_eq!(stream.give_up(), [None, None]);
}

#[test]
fn a_channel_that_closes_without_an_end_is_a_reset() {
    let mut stream = stream();
    stream.on_channel_closed();
    assert!(read(&mut stream).unwrap().is_err());
    assert!(stream.check_writable().is_err());
    assert!(stream.is_over());

    let mut ended = self::stream();
    take(&mut ended, &encode_data(b"abc"));
    take(&mut ended, &encode_flag(Flag::Fin));
    ended.end().unwrap();
    ended.on_channel_closed();
    assert_eq!(read(&mut ended).unwrap().unwrap(), b"abc");
    assert_eq!(read(&mut ended).unwrap().unwrap(), b"");
    assert!(ended.is_over());
}

#[test]
fn little_is_taken_that_nobody_reads() {
    let mut stream = stream();
    let frame = encode_data(&[1; 8000]);
    while stream.wants_more() {
        take(&mut stream, &frame);
    }
    assert!(stream.buffered() < READ_AHEAD + 8000);
    read(&mut stream);
    let mut rest = vec![0; READ_AHEAD];
    stream.read(&mut rest, Instant::now()).unwrap().unwrap();
    assert!(stream.wants_more());
}
