use std::{io, time::Duration};

use bytes::Bytes;
use sctp_proto::PayloadProtocolIdentifier as Ppid;

use super::*;
use crate::webrtc::{
    certificate::Certificate,
    core::{
        ice::SILENCE,
        message::{Flag, encode_data, encode_flag},
        pair::{Link, Pair, paths, read_all},
        stream::READ_AHEAD,
        stun,
    },
};

fn bad_link() -> Link {
    Link {
        delay: Duration::from_millis(20),
        jitter: Duration::from_millis(10),
        loss: 5,
        is_cut: false,
    }
}

/// Bytes that are not all the same.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// Writes what the stream takes.
fn write_some(connection: &mut Connection, key: StreamKey, data: &[u8]) -> usize {
    let mut written = 0;
    while written < data.len() {
        match connection.write(key, &data[written..]) {
            Some(length) => written += length.unwrap(),
            None => break,
        }
    }
    written
}

/// Moves all of it from the client to the server, and says how long that took.
fn transfer(pair: &mut Pair, (from, to): (StreamKey, StreamKey), data: &[u8]) -> Duration {
    let start = pair.now;
    let (mut written, mut received) = (0, Vec::new());
    pair.run_until(|pair| {
        let client = &mut pair.client.connection;
        written += write_some(client, from, &data[written..]);
        if written == data.len() && client.streams[&from].1.check_writable().is_ok() {
            client.end(from, pair.now).unwrap();
        }
        let server = &mut pair.server.connection;
        read_all(server, to, pair.now, &mut received).unwrap()
    });
    assert!(received == data, "{} of {}", received.len(), data.len());
    pair.now - start
}

#[test]
fn both_ends_know_both_certificates_over_a_link_that_loses_and_reorders() {
    let mut pair = Pair::new(bad_link());
    pair.run_until(|pair| pair.client.secured.is_some() && pair.server.secured.is_some());
    let (client, server) = (&pair.client.connection, &pair.server.connection);
    assert_eq!(client.peer, Some(server.own));
    assert_eq!(server.peer, Some(client.own));
    assert_eq!(server.path(), Some(paths().0));
}

#[test]
fn a_connection_is_up_after_few_round_trips() {
    let link = Link::default();
    let pair = Pair::connected(link);
    let trips = (pair.now - pair.client_started()).div_duration_f64(2 * link.delay);
    // ICE, the cookie, two of DTLS, two of SCTP.
    assert!(trips < 6.5, "{trips}");
}

#[test]
fn bytes_arrive_whole_over_a_link_that_loses_and_reorders() {
    let mut pair = Pair::connected(bad_link());
    let stream = pair.stream();
    transfer(&mut pair, stream, &pattern(1 << 20));
    // The other half is still open.
    let (of_client, of_server) = stream;
    let answer = pattern(100_000);
    let (mut written, mut received) = (0, Vec::new());
    pair.run_until(|pair| {
        let server = &mut pair.server.connection;
        written += write_some(server, of_server, &answer[written..]);
        if written == answer.len() && server.streams[&of_server].1.check_writable().is_ok() {
            server.end(of_server, pair.now).unwrap();
        }
        let client = &mut pair.client.connection;
        read_all(client, of_client, pair.now, &mut received).unwrap()
    });
    assert!(received == answer);
}

#[test]
fn a_megabyte_needs_not_much_longer_than_its_round_trips() {
    let mut pair = Pair::connected(Link::default());
    let stream = pair.stream();
    let time = transfer(&mut pair, stream, &pattern(4 << 20));
    // SCTP's slow start from 4 packets to what may be on its way.
    assert!(time < Duration::from_millis(600), "{time:?}");
}

#[test]
fn a_certificate_that_the_address_does_not_name_is_refused() {
    let server = Certificate::generate().unwrap();
    let expected = Certificate::generate().unwrap().fingerprint;
    let mut pair = Pair::with_certificates(Link::default(), &server, expected);
    pair.run_until(|pair| pair.client.closed.is_some());
    assert_eq!(pair.client.closed, Some(CloseReason::WrongCertificate));
    assert_eq!(pair.client.secured, None);
    pair.run_for(Duration::from_secs(11));
    assert!(pair.server.closed.is_some() && pair.server.secured.is_none());
}

#[test]
fn a_handshake_that_comes_to_nothing_ends() {
    let mut pair = Pair::new(Link {
        is_cut: true,
        ..Link::default()
    });
    let start = pair.now;
    pair.run_until(|pair| pair.client.closed.is_some() && pair.server.closed.is_some());
    assert_eq!(pair.client.closed, Some(CloseReason::HandshakeTimeout));
    assert_eq!(pair.now - start, HANDSHAKE);
    // Nor does it without an identity.
    let mut pair = Pair::new(Link::default());
    pair.run_for(HANDSHAKE);
    assert!(pair.client.secured.is_some());
    assert_eq!(pair.client.closed, Some(CloseReason::HandshakeTimeout));
}

#[test]
fn a_hundred_streams_at_once_arrive_each_on_its_own() {
    let mut pair = Pair::connected(bad_link());
    let mut streams = Vec::new();
    for number in 0..100usize {
        let key = pair.client.connection.open(pair.now).unwrap().unwrap();
        let data = pattern(1000 + number);
        assert_eq!(
            write_some(&mut pair.client.connection, key, &data),
            data.len()
        );
        pair.client.connection.end(key, pair.now).unwrap();
        streams.push(data);
    }
    pair.run_until(|pair| pair.server.opened.len() == 100);
    for key in pair.server.opened.clone() {
        let mut received = Vec::new();
        pair.run_until(|pair| {
            read_all(&mut pair.server.connection, key, pair.now, &mut received).unwrap()
        });
        let at = streams.iter().position(|data| *data == received).unwrap();
        streams.remove(at);
        pair.server.connection.end(key, pair.now).unwrap();
    }
    assert!(streams.is_empty());
}

#[test]
fn streams_that_are_over_leave_nothing() {
    let mut pair = Pair::connected(Link::default());
    for round in 0..300 {
        let (of_client, of_server) = pair.stream();
        let (client, server) = (&mut pair.client.connection, &mut pair.server.connection);
        match round % 3 {
            0 => {
                client.end(of_client, pair.now).unwrap();
                server.end(of_server, pair.now).unwrap();
            }
            1 => client.end(of_client, pair.now).unwrap(),
            _ => {}
        }
        if round % 2 == 0 {
            pair.run_for(Duration::from_millis(50));
        }
        pair.client.connection.drop_stream(of_client, pair.now);
        pair.server.connection.drop_stream(of_server, pair.now);
    }
    pair.run_for(Duration::from_secs(1));
    for connection in [&pair.client.connection, &pair.server.connection] {
        let channels: Vec<_> = connection.channels.keys().collect();
        assert_eq!(channels, [&0]);
        assert_eq!(connection.streams.len(), 1);
        assert_eq!((connection.inbound, connection.outbound), (0, 0));
        assert_eq!((connection.closing, connection.received), (0, 0));
    }
    // A number is used again.
    pair.client.connection.next_id = 2;
    pair.stream();
}

#[test]
fn a_number_that_is_used_again_is_a_new_stream() {
    let mut pair = Pair::connected(Link::default());
    for round in 1..100u32 {
        pair.client.connection.next_id = 2;
        let (of_client, of_server) = pair.stream();
        assert_eq!(pair.server.opened.len(), round as usize);
        pair.client.connection.end(of_client, pair.now).unwrap();
        pair.client.connection.drop_stream(of_client, pair.now);
        if round % 2 == 0 {
            pair.run_for(Duration::from_millis(15));
        }
        pair.server.connection.end(of_server, pair.now).unwrap();
        pair.server.connection.drop_stream(of_server, pair.now);
        pair.run_for(Duration::from_secs(1));
        for connection in [&pair.client.connection, &pair.server.connection] {
            assert_eq!(
                connection.channels.len(),
                1,
                "{round} {:?} {:?}",
                connection.channels,
                connection.streams
            );
        }
    }
}

/// See `settle`: `sctp-proto` would reset it twice.
#[test]
fn a_stream_of_the_peer_is_for_the_peer_to_close() {
    let mut pair = Pair::connected(Link::default());
    let (of_client, of_server) = pair.stream();
    let id = pair.server.connection.streams[&of_server].0;
    send_raw(
        &mut pair.client.connection,
        of_client,
        &encode_flag(Flag::Fin),
    );
    pair.run_for(Duration::from_millis(100));
    pair.server.connection.end(of_server, pair.now).unwrap();
    send_raw(
        &mut pair.client.connection,
        of_client,
        &encode_flag(Flag::FinAck),
    );
    pair.run_for(Duration::from_millis(100));
    pair.server.connection.drop_stream(of_server, pair.now);
    pair.run_for(Duration::from_secs(5));
    assert!(matches!(
        pair.server.connection.channels[&id],
        Channel::Open(_)
    ));
    // But not for ever.
    pair.run_for(Duration::from_secs(6));
    assert!(!pair.server.connection.channels.contains_key(&id));
}

#[test]
fn a_fin_that_nobody_acknowledges_is_waited_for_ten_seconds() {
    let mut pair = Pair::connected(Link::default());
    let (of_client, of_server) = pair.stream();
    // As go-libp2p, which answers when its stream is read, or never.
    let id = pair.server.connection.streams[&of_server].0;
    pair.server.connection.send_flag(id, Some(Flag::Fin));
    pair.run_for(Duration::from_millis(100));
    pair.server.connection.received = MAX_RECEIVED;
    pair.client.connection.end(of_client, pair.now).unwrap();
    pair.client.connection.drop_stream(of_client, pair.now);
    pair.run_for(Duration::from_secs(9));
    assert!(pair.client.connection.channels.contains_key(&id));
    pair.run_for(Duration::from_secs(2));
    assert!(!pair.client.connection.streams.contains_key(&of_client));
}

#[test]
fn who_is_gone_is_noticed_and_who_is_silent_but_there_is_not() {
    let mut pair = Pair::connected(Link::default());
    pair.run_for(Duration::from_secs(300));
    assert_eq!((pair.client.closed, pair.server.closed), (None, None));
    let gone = pair.now;
    pair.link.is_cut = true;
    pair.run_until(|pair| pair.client.closed.is_some() && pair.server.closed.is_some());
    assert_eq!(pair.client.closed, Some(CloseReason::Silent));
    assert!(pair.now - gone <= SILENCE && SILENCE < Duration::from_secs(30));
}

#[test]
fn who_closes_says_so() {
    for by_client in [true, false] {
        let mut pair = Pair::connected(Link::default());
        let (of_client, of_server) = pair.stream();
        match by_client {
            true => pair.client.connection.close(),
            false => pair.server.connection.close(),
        }
        pair.run_for(pair.link.delay);
        let (own, other, key) = match by_client {
            true => (&pair.client.closed, &mut pair.server, of_server),
            false => (&pair.server.closed, &mut pair.client, of_client),
        };
        assert_eq!(*own, Some(CloseReason::Local));
        assert_eq!(other.closed, Some(CloseReason::Remote));
        let read = other.connection.read(key, &mut [0; 8], pair.now);
        assert!(read.unwrap().is_err());
        assert!(other.connection.write(key, b"a").unwrap().is_err());
        assert!(other.connection.open(pair.now).is_err());
        assert_eq!(other.connection.poll_timeout(), None);
    }
}

#[test]
fn what_was_sent_before_the_end_can_be_read_after_it() {
    let mut pair = Pair::connected(Link::default());
    let (of_client, of_server) = pair.stream();
    write_some(&mut pair.client.connection, of_client, b"last words");
    pair.client.connection.end(of_client, pair.now).unwrap();
    pair.run_for(Duration::from_millis(100));
    assert!(pair.client.connection.is_flushed());
    pair.client.connection.close();
    pair.run_for(Duration::from_millis(100));
    let mut received = Vec::new();
    let server = &mut pair.server.connection;
    assert!(read_all(server, of_server, pair.now, &mut received).unwrap());
    assert_eq!(received, b"last words");
}

#[test]
fn more_streams_than_allowed_are_refused_and_the_others_live_on() {
    let mut pair = Pair::connected(Link::default());
    for _ in 0..MAX_INBOUND + 50 {
        pair.client.connection.open(pair.now).unwrap().unwrap();
    }
    pair.run_for(Duration::from_secs(2));
    assert_eq!(pair.server.opened.len(), MAX_INBOUND);
    assert_eq!(pair.server.connection.inbound, MAX_INBOUND);
    assert_eq!(pair.client.connection.outbound, MAX_INBOUND);
    let first = pair.server.opened[0];
    pair.server.connection.end(first, pair.now).unwrap();
    assert_eq!(pair.server.closed, None);
}

#[test]
fn who_wants_more_streams_than_there_may_be_waits() {
    let mut pair = Pair::connected(Link::default());
    let mut keys = Vec::new();
    while let Some(key) = pair.client.connection.open(pair.now).unwrap() {
        keys.push(key);
    }
    assert_eq!(keys.len(), MAX_OUTBOUND);
    pair.run_for(Duration::from_secs(2));
    // Most were refused.
    assert!(pair.client.connection.open(pair.now).unwrap().is_some());
}

/// Sends it on the channel of the stream as it is.
fn send_raw(connection: &mut Connection, key: StreamKey, frame: &[u8]) {
    let id = connection.streams[&key].0;
    assert!(connection.send(id, Bytes::copy_from_slice(frame)));
}

#[test]
fn frames_that_are_too_large_or_malformed_reset_their_stream_alone() {
    let mut pair = Pair::connected(Link::default());
    let good = pair.stream();
    // 16 KiB and more after the length, a length without end, no protobuf.
    for frame in [&[0xff, 0xff, 1, 1][..], &[0xff; 20], &[3, 7, 7, 7]] {
        let (of_client, of_server) = pair.stream();
        send_raw(&mut pair.client.connection, of_client, frame);
        pair.run_for(Duration::from_millis(100));
        let server = &mut pair.server.connection;
        let error = server.read(of_server, &mut [0; 8], pair.now).unwrap();
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let client = &mut pair.client.connection;
        let error = client.read(of_client, &mut [0; 8], pair.now).unwrap();
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
    transfer(&mut pair, good, &pattern(1000));
}

#[test]
fn channels_that_are_no_streams_are_refused() {
    let mut pair = Pair::connected(Link::default());
    let good = pair.stream();
    let association = pair.client.connection.sctp.association.as_mut().unwrap();
    // Without an opening; with the server's number; unordered.
    let unordered = [3, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (id, ppid, message) in [
        (100, Ppid::Binary, &encode_data(b"a")[..]),
        (101, Ppid::Dcep, &crate::webrtc::core::dcep::OPEN),
        (102, Ppid::Dcep, &unordered),
    ] {
        let mut channel = association.open_stream(id, ppid).unwrap();
        channel.write_with_ppi(message, ppid).unwrap();
    }
    pair.run_for(Duration::from_millis(200));
    assert_eq!(pair.server.opened.len(), 1);
    assert_eq!(pair.server.connection.inbound, 1);
    transfer(&mut pair, good, &pattern(1000));
}

#[test]
fn the_end_of_the_handshakes_channel_is_not_that_of_the_connection() {
    let mut pair = Pair::connected(Link::default());
    let association = pair.client.connection.sctp.association.as_mut().unwrap();
    association.stream(0).unwrap().close().unwrap();
    let key = pair.server.secured.unwrap();
    pair.run_for(Duration::from_secs(1));
    pair.server.connection.drop_stream(key, pair.now);
    pair.run_for(Duration::from_secs(30));
    assert_eq!((pair.client.closed, pair.server.closed), (None, None));
    let stream = pair.stream();
    transfer(&mut pair, stream, &pattern(1000));
}

#[test]
fn a_reader_that_does_not_read_stops_the_writer_and_costs_little() {
    let mut pair = Pair::connected(Link::default());
    let (of_client, of_server) = pair.stream();
    let data = pattern(8 << 20);
    let mut written = 0;
    for _ in 0..60 {
        written += write_some(&mut pair.client.connection, of_client, &data[written..]);
        pair.run_for(Duration::from_secs(1));
        // Slowly, but always.
        let mut buffer = [0; 10];
        let read = pair
            .server
            .connection
            .read(of_server, &mut buffer, pair.now);
        assert_eq!(read.unwrap().unwrap(), 10);
    }
    assert!(written < MAX_SENDING_PER_STREAM + RECEIVE_BUFFER as usize + 2 * READ_AHEAD);
    assert!(pair.server.connection.received < 2 * READ_AHEAD);
    // It was not lost meanwhile.
    let mut received = Vec::new();
    let server = &mut pair.server.connection;
    read_all(server, of_server, pair.now, &mut received).unwrap();
    assert!(!received.is_empty());
    pair.run_until(|pair| {
        let client = &mut pair.client.connection;
        written += write_some(client, of_client, &data[written..]);
        let server = &mut pair.server.connection;
        read_all(server, of_server, pair.now, &mut received).unwrap();
        received.len() == data.len() - 600
    });
    assert!(received == data[600..]);
}

#[test]
fn a_writer_that_had_to_wait_goes_on_as_soon_as_there_is_room() {
    let mut pair = Pair::connected(Link::default());
    let (of_client, of_server) = pair.stream();
    let data = pattern(8 << 20);
    let (mut written, mut received) = (0, Vec::new());
    // Long enough for the sender's questions to become seldom.
    for _ in 0..60 {
        written += write_some(&mut pair.client.connection, of_client, &data[written..]);
        pair.run_for(Duration::from_secs(1));
        let server = &mut pair.server.connection;
        let mut buffer = [0];
        server
            .read(of_server, &mut buffer, pair.now)
            .unwrap()
            .unwrap();
        received.extend_from_slice(&buffer);
    }
    assert!(written < data.len() / 2);
    let start = pair.now;
    pair.run_until(|pair| {
        let client = &mut pair.client.connection;
        written += write_some(client, of_client, &data[written..]);
        let server = &mut pair.server.connection;
        read_all(server, of_server, pair.now, &mut received).unwrap();
        received.len() == data.len()
    });
    assert!(received == data);
    let took = pair.now - start;
    // SCTP took the silence for a full network, and has to grow again. Without the news of room it would be 7 s.
    assert!(took < Duration::from_secs(4), "{took:?}");
    // Now slowly: never more than one window behind.
    let (mut written, mut received) = (0, 0);
    let start = pair.now;
    while received < 4 << 20 {
        written += write_some(&mut pair.client.connection, of_client, &data[written..]);
        pair.run_for(Duration::from_millis(20));
        let mut buffer = vec![0; 100_000];
        let server = &mut pair.server.connection;
        while let Some(read) = server.read(of_server, &mut buffer, pair.now) {
            received += read.unwrap();
            if received % 100_000 < 20_000 {
                break;
            }
        }
    }
    let took = pair.now - start;
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_stream_that_nobody_reads_is_reset_where_it_keeps_others_waiting() {
    let mut pair = Pair::connected(Link::default());
    let (stuck, _) = pair.stream();
    let data = pattern(4 << 20);
    let mut written = 0;
    for _ in 0..5 {
        written += write_some(&mut pair.client.connection, stuck, &data[written..]);
        pair.run_for(Duration::from_secs(1));
    }
    let other = pair.client.connection.open(pair.now).unwrap().unwrap();
    write_some(&mut pair.client.connection, other, b"hello");
    let start = pair.now;
    pair.run_until(|pair| pair.server.opened.len() == 2);
    // And the sender learns at once that there is room again.
    assert!(pair.now - start < STALL + Duration::from_secs(1));
    let other = pair.server.opened[1];
    let mut received = Vec::new();
    pair.run_until(|pair| {
        read_all(&mut pair.server.connection, other, pair.now, &mut received).unwrap();
        received == b"hello"
    });
    pair.run_for(Duration::from_secs(1));
    assert!(pair.client.connection.write(stuck, b"a").unwrap().is_err());
}

#[test]
fn many_streams_that_nobody_reads_are_bounded_together() {
    let mut pair = Pair::connected(Link::default());
    let mut keys = Vec::new();
    for _ in 0..MAX_INBOUND {
        keys.push(pair.client.connection.open(pair.now).unwrap().unwrap());
    }
    let data = pattern(60_000);
    for _ in 0..20 {
        for key in &keys {
            if pair
                .client
                .connection
                .write(*key, &data)
                .is_some_and(|w| w.is_err())
            {
                continue;
            }
        }
        pair.run_for(Duration::from_millis(500));
        assert!(pair.server.connection.received < MAX_RECEIVED + READ_AHEAD);
        assert!(pair.client.connection.all_sending() < MAX_SENDING + 20_000);
    }
}

#[test]
fn who_resets_and_leaves_channels_without_end_is_shown_the_door() {
    let mut pair = Pair::connected(Link::default());
    // All numbers, again and again, without a stream on any.
    let association = pair.client.connection.sctp.association.as_mut().unwrap();
    for id in (2..u16::MAX - 1).step_by(2).take(2 * MAX_CLOSING) {
        let mut channel = association.open_stream(id, Ppid::Binary).unwrap();
        channel.write_with_ppi(b"a", Ppid::Binary).unwrap();
    }
    pair.client.connection.has_written = true;
    while pair.server.closed.is_none() {
        assert!(pair.step());
        assert!(pair.server.connection.channels.len() <= MAX_CLOSING + MAX_INBOUND + 2);
    }
    assert_eq!(pair.server.closed, Some(CloseReason::TooManyStreams));
}

#[test]
fn datagrams_of_others_are_not_looked_at() {
    let mut pair = Pair::new(Link::default());
    let stranger = Path {
        remote: ([198, 51, 100, 1], 9).into(),
        local: None,
    };
    let name = Ufrag::random([9; 32]);
    let other = stun::tests::forged(&format!("{0}:{0}", name.as_str()), name.as_str());
    for datagram in [&other[..], &[22; 200], &[], &[0; 20]] {
        pair.server
            .connection
            .handle_datagram(stranger, datagram, pair.now);
        pair.client
            .connection
            .handle_datagram(stranger, datagram, pair.now);
    }
    assert!(pair.server.connection.poll_transmit(pair.now).is_none());
    pair.run_until(|pair| pair.client.secured.is_some() && pair.server.secured.is_some());
}

#[test]
fn a_client_with_two_addresses_has_one_connection() {
    let mut pair = Pair::connected(Link::default());
    let stream = pair.stream();
    let second = Path {
        remote: ([198, 51, 100, 1], 9).into(),
        local: None,
    };
    // Its other network takes over.
    let check = stun::write_check(&Ufrag::random([7; 32]));
    pair.server
        .connection
        .handle_datagram(second, &check, pair.now);
    assert_eq!(pair.server.connection.path(), Some(second));
    pair.server
        .connection
        .handle_datagram(paths().0, &check, pair.now);
    assert_eq!(pair.server.connection.path(), Some(paths().0));
    transfer(&mut pair, stream, &pattern(1000));
}

#[test]
fn flags_of_others_are_taken_as_they_come() {
    let mut pair = Pair::connected(Link::default());
    for flag in [Flag::FinAck, Flag::StopSending, Flag::Reset, Flag::Fin] {
        let (of_client, of_server) = pair.stream();
        for _ in 0..3 {
            send_raw(&mut pair.client.connection, of_client, &encode_flag(flag));
        }
        pair.run_for(Duration::from_millis(100));
        pair.server.connection.drop_stream(of_server, pair.now);
        pair.client.connection.drop_stream(of_client, pair.now);
    }
    pair.run_for(Duration::from_secs(12));
    assert_eq!(pair.server.connection.streams.len(), 1);
    assert_eq!(pair.client.connection.streams.len(), 1);
}
