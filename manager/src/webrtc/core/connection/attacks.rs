//! A peer that keeps to the rules of each protocol, and uses them against us.

use std::time::Duration;

use sctp_proto::PayloadProtocolIdentifier as Ppid;

use super::*;
use crate::webrtc::core::{
    message::{Flag, encode_data, encode_flag},
    pair::{Link, Pair, read_all},
};

/// As many frames as a stream reads ahead.
const READ_AHEAD_FRAMES: usize = 21;

/// Sends a frame past what the client's own stream would send.
fn send(pair: &mut Pair, key: StreamKey, frame: bytes::Bytes) {
    let (id, _) = pair.client.connection.streams[&key];
    assert!(pair.client.connection.send(id, frame));
}

/// Resets the channel of a stream, whatever was said on it.
fn reset(pair: &mut Pair, key: StreamKey) {
    let (id, _) = pair.client.connection.streams[&key];
    let association = pair.client.connection.sctp.association.as_mut().unwrap();
    association.stream(id).unwrap().close().unwrap();
    pair.client.connection.has_written = true;
}

#[test]
fn unread_data_of_channels_that_are_gone_is_thrown_away_once_others_wait_for_room() {
    let mut pair = Pair::connected(Link::default());
    let mut unread = Vec::new();
    while pair.server.connection.received < MAX_RECEIVED {
        let (key, of_server) = pair.stream();
        for _ in 0..READ_AHEAD_FRAMES {
            send(&mut pair, key, encode_data(&[7; 3000]));
        }
        send(&mut pair, key, encode_flag(Flag::Fin));
        reset(&mut pair, key);
        pair.run_for(Duration::from_millis(200));
        unread.push(of_server);
    }
    assert!(unread.len() > 10);
    let waiting = pair.client.connection.open(pair.now).unwrap().unwrap();
    assert!(pair.client.connection.write(waiting, b"hello").is_some());
    let before = pair.server.opened.len();
    // It ends, and the one that waits gets through.
    pair.run_until(|pair| pair.server.opened.len() > before);
    let of_server = *pair.server.opened.last().unwrap();
    let mut received = Vec::new();
    pair.run_until(|pair| {
        read_all(
            &mut pair.server.connection,
            of_server,
            pair.now,
            &mut received,
        )
        .unwrap();
        received == b"hello"
    });
    // Whoever reads of them now is not told that they ended well.
    let lost = unread.iter().filter(|key| {
        let read = pair.server.connection.read(**key, &mut [0; 10], pair.now);
        read.unwrap().is_err()
    });
    assert!(lost.count() > 0);
}

#[test]
fn streams_that_nobody_takes_are_bounded_though_their_channels_are_gone() {
    let mut pair = Pair::connected(Link::default());
    for _ in 0..2 * MAX_INBOUND {
        let Some(key) = pair.client.connection.open(pair.now).unwrap() else {
            break;
        };
        send(&mut pair, key, encode_flag(Flag::Fin));
        reset(&mut pair, key);
        pair.run_for(Duration::from_millis(100));
        assert!(pair.server.connection.streams.len() <= MAX_INBOUND + 1);
    }
    assert_eq!(pair.server.opened.len(), MAX_INBOUND);
    for key in std::mem::take(&mut pair.server.opened) {
        pair.server.connection.drop_stream(key, pair.now);
    }
    pair.stream();
}

#[test]
fn who_is_not_known_yet_opens_few_streams() {
    let mut pair = Pair::new(Link::default());
    pair.run_until(|pair| pair.client.secured.is_some() && pair.server.secured.is_some());
    for _ in 0..MAX_INBOUND {
        pair.client.connection.open(pair.now).unwrap().unwrap();
    }
    pair.run_for(Duration::from_secs(2));
    assert_eq!(pair.server.opened.len(), MAX_EARLY);
}

#[test]
fn the_server_may_speak_first_over_a_link_that_loses_and_reorders() {
    for loss in [0, 5, 10, 20] {
        let link = Link {
            delay: Duration::from_millis(20),
            jitter: Duration::from_millis(30),
            loss,
            is_cut: false,
        };
        let mut pair = Pair::new(link);
        pair.run_until(|pair| pair.server.secured.is_some());
        let key = pair.server.secured.unwrap();
        let written = pair.server.connection.write(key, b"first").unwrap();
        assert_eq!(written.unwrap(), 5);
        pair.run_until(|pair| pair.client.secured.is_some());
        let key = pair.client.secured.unwrap();
        let mut received = Vec::new();
        pair.run_until(|pair| {
            read_all(&mut pair.client.connection, key, pair.now, &mut received).unwrap();
            received == b"first"
        });
    }
}

#[test]
fn numbers_of_which_nothing_can_be_read_are_bounded() {
    let mut pair = Pair::connected(Link::default());
    let server = &mut pair.server.connection;
    // As a peer leaves them that sends the beginning of a message on each, and never its end: SCTP tells of each, and that is all.
    for id in (2..u16::MAX - 1).step_by(2) {
        let association = server.sctp.association.as_mut().unwrap();
        association.open_stream(id, Ppid::Binary).unwrap();
        server.on_opened();
        if server.is_closed() {
            break;
        }
    }
    let known = server.opened;
    pair.run_until(|pair| pair.server.closed.is_some());
    assert_eq!(pair.server.closed, Some(CloseReason::TooManyStreams));
    assert!(known <= MAX_CHANNELS as u64 + 256);
}

#[test]
fn what_is_written_and_given_up_counts_until_the_peer_has_it() {
    let mut pair = Pair::connected(Link::default());
    let (key, _) = pair.stream();
    pair.link.is_cut = true;
    let mut written = 0;
    let mut next = Some(key);
    for _ in 0..100 {
        let Some(key) = next.or_else(|| pair.client.connection.open(pair.now).unwrap()) else {
            break;
        };
        while let Some(Ok(length)) = pair.client.connection.write(key, &[7; 3000]) {
            written += length;
        }
        pair.client.connection.drop_stream(key, pair.now);
        // Its channel goes without an answer after a while.
        let id = pair.client.connection.streams.get(&key).map(|(id, _)| *id);
        if let Some(id) = id {
            pair.client.connection.on_finished(id);
        }
        next = None;
    }
    assert!(written <= MAX_SENDING + MAX_SENDING_PER_STREAM, "{written}");
}
