use super::*;

fn id() -> PeerId {
    // The identity multihash of a public key, whose bytes are known.
    "12D3KooWNSVf6KhmKRaVj8ttMWpVQ5jTbm6KQKGYxD6mYT4bv7fM"
        .parse()
        .unwrap()
}

const LIMIT: CircuitLimit = CircuitLimit::REFERENCE;

#[test]
fn the_bytes_are_those_of_the_specification() {
    // Field 1, varint: type.
    assert_eq!(HopRequest::Reserve.encode(), [0x08, 0x00]);
    let mut connect = vec![0x08, 0x01, 0x12, 40, 0x0a, 38];
    connect.extend(id().to_bytes());
    assert_eq!(HopRequest::Connect { destination: id() }.encode(), connect);
    // type = STATUS, status = NO_RESERVATION (204).
    assert_eq!(
        HopResponse::Refused(StatusCode::NoReservation).encode(),
        [0x08, 0x02, 0x28, 0xcc, 0x01]
    );
    // limit = { duration = 120, data = 131072 }, status = OK (100).
    assert_eq!(
        HopResponse::Accepted {
            reservation: None,
            limit: Some(LIMIT)
        }
        .encode(),
        [
            0x08, 0x02, 0x22, 6, 0x08, 120, 0x10, 0x80, 0x80, 0x08, 0x28, 0x64
        ]
    );
    // type = STATUS, status = OK.
    assert_eq!(StopResponse::Accepted.encode(), [0x08, 0x01, 0x20, 0x64]);
}

#[test]
fn what_is_written_is_read() {
    for request in [
        HopRequest::Reserve,
        HopRequest::Connect { destination: id() },
    ] {
        assert_eq!(HopRequest::decode(&request.encode()), Ok(request));
    }
    let reservation = Reservation {
        expires: Some(1_893_456_000),
        addresses: vec!["/ip4/203.0.113.100/udp/9100/quic-v1".parse().unwrap()],
        voucher: Some(Bytes::from_static(b"signed")),
    };
    for response in [
        HopResponse::Accepted {
            reservation: Some(reservation),
            limit: Some(LIMIT),
        },
        HopResponse::Accepted {
            reservation: None,
            limit: None,
        },
        HopResponse::Refused(StatusCode::ReservationRefused),
        HopResponse::Refused(StatusCode::ResourceLimitExceeded),
        HopResponse::Refused(StatusCode::PermissionDenied),
        HopResponse::Refused(StatusCode::ConnectionFailed),
        HopResponse::Refused(StatusCode::NoReservation),
        HopResponse::Refused(StatusCode::MalformedMessage),
        HopResponse::Refused(StatusCode::UnexpectedMessage),
    ] {
        assert_eq!(HopResponse::decode(&response.encode()), Ok(response));
    }
    let request = StopRequest {
        source: id(),
        limit: Some(LIMIT),
    };
    assert_eq!(StopRequest::decode(&request.encode()), Ok(request));
    for response in [
        StopResponse::Accepted,
        StopResponse::Refused(StatusCode::ConnectionFailed),
    ] {
        assert_eq!(StopResponse::decode(&response.encode()), Ok(response));
    }
}

#[test]
fn limits_of_zero_are_no_limits() {
    // limit = { duration = 0, data = 0 }.
    let bytes = [0x08, 0x02, 0x22, 4, 0x08, 0, 0x10, 0, 0x28, 0x64];
    assert_eq!(
        HopResponse::decode(&bytes),
        Ok(HopResponse::Accepted {
            reservation: None,
            limit: None
        })
    );
}

#[test]
fn hostile_messages_are_refused_for_what_is_wrong_with_them() {
    use ProtocolViolation as V;
    assert_eq!(HopRequest::decode(&[]), Err(V::UnknownType), "no type");
    assert_eq!(HopRequest::decode(&[0x08, 9]), Err(V::UnknownType));
    assert_eq!(HopRequest::decode(&[0x08]), Err(V::Undecodable));
    assert_eq!(HopRequest::decode(&[0xff; 40]), Err(V::Undecodable));
    assert_eq!(HopRequest::decode(&vec![0; MAX_BYTES + 1]), Err(V::TooLong));
    assert_eq!(HopRequest::decode(&[0x08, 1]), Err(V::NoPeer));
    assert_eq!(HopRequest::decode(&[0x08, 1, 0x12, 0]), Err(V::NoPeer));
    let no_id = [0x08, 1, 0x12, 4, 0x0a, 2, 0xff, 0xff];
    assert_eq!(HopRequest::decode(&no_id), Err(V::NoPeer));
    let status = HopResponse::Refused(StatusCode::NoReservation).encode();
    assert_eq!(HopRequest::decode(&status), Err(V::UnexpectedType));
    // A length that promises more than there is.
    assert_eq!(
        HopRequest::decode(&[0x08, 1, 0x12, 0xff, 0xff, 0x03]),
        Err(V::Undecodable)
    );

    assert_eq!(
        HopResponse::decode(&HopRequest::Reserve.encode()),
        Err(V::UnexpectedType)
    );
    assert_eq!(HopResponse::decode(&[0x08, 2]), Err(V::UnknownStatus));
    for unknown in [0_u8, 99] {
        assert_eq!(
            HopResponse::decode(&[0x08, 2, 0x28, unknown]),
            Err(V::UnknownStatus)
        );
        assert_eq!(
            StopResponse::decode(&[0x08, 1, 0x20, unknown]),
            Err(V::UnknownStatus)
        );
    }
    assert_eq!(StopResponse::decode(&[0x08, 0]), Err(V::UnexpectedType));
    assert_eq!(StopRequest::decode(&[0x08, 1]), Err(V::UnexpectedType));
    assert_eq!(StopRequest::decode(&[0x08, 0]), Err(V::NoPeer));
}

#[test]
fn fields_of_a_later_revision_are_skipped() {
    // Field 15, varint 1.
    let bytes = [0x08, 0x00, 0x78, 0x01];
    assert_eq!(HopRequest::decode(&bytes), Ok(HopRequest::Reserve));
}

#[test]
fn an_unreadable_address_hides_no_other() {
    let good: Multiaddr = "/ip4/203.0.113.1/tcp/1".parse().unwrap();
    let message = wire::HopMessage {
        r#type: Some(hop_message::Type::Status.into()),
        reservation: Some(wire::Reservation {
            addrs: vec![
                Bytes::from_static(&[0xff, 0xff]),
                Bytes::new(),
                good.to_vec().into(),
            ],
            ..Default::default()
        }),
        status: Some(wire::Status::Ok.into()),
        ..Default::default()
    };
    let Ok(HopResponse::Accepted {
        reservation: Some(reservation),
        ..
    }) = HopResponse::decode(&message.encode_to_vec())
    else {
        panic!("not understood");
    };
    assert_eq!(reservation.addresses, [good]);
}

#[test]
fn a_relay_with_very_many_addresses_still_answers_within_the_limit() {
    let addresses: Vec<Multiaddr> = (0..1000)
        .map(|port| {
            format!("/ip4/203.0.113.1/udp/{port}/quic-v1/p2p/{}", id())
                .parse()
                .unwrap()
        })
        .collect();
    let response = HopResponse::Accepted {
        reservation: Some(Reservation {
            expires: Some(u64::MAX),
            addresses: addresses.clone(),
            voucher: Some(Bytes::from(vec![7; 300])),
        }),
        limit: Some(LIMIT),
    };
    let bytes = response.encode();
    assert!(bytes.len() <= MAX_BYTES, "{}", bytes.len());
    let Ok(HopResponse::Accepted {
        reservation: Some(read),
        ..
    }) = HopResponse::decode(&bytes)
    else {
        panic!("not understood");
    };
    assert!(read.addresses.len() > 50);
    assert_eq!(read.addresses, addresses[..read.addresses.len()]);
}
