use futures::{executor::block_on, future::join, io::Cursor};

use super::*;

/// A stream that answers with fixed bytes and keeps what it is sent.
struct Fixed {
    answer: Cursor<Vec<u8>>,
    sent: Vec<u8>,
}

impl AsyncRead for Fixed {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut [u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.answer).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Fixed {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        self.sent.extend_from_slice(bytes);
        std::task::Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_close(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}

fn answering(answer: &[u8]) -> Fixed {
    Fixed {
        answer: Cursor::new(answer.to_vec()),
        sent: Vec::new(),
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    block_on(send(&mut bytes, message)).unwrap();
    bytes.into_inner()
}

#[test]
fn bytes_behind_a_message_belong_to_the_circuit() {
    let destination = PeerId::random();
    let accepted = HopResponse::Accepted {
        reservation: None,
        limit: Some(CircuitLimit::REFERENCE),
    };
    let mut bytes = framed(&accepted.encode());
    bytes.extend_from_slice(b"first bytes of the other end");
    let (mut circuit, limit) = block_on(connect(answering(&bytes), destination)).unwrap();
    assert_eq!(limit, Some(CircuitLimit::REFERENCE));
    let mut rest = Vec::new();
    block_on(circuit.read_to_end(&mut rest)).unwrap();
    assert_eq!(rest, b"first bytes of the other end");
    assert_eq!(
        circuit.sent,
        framed(&HopRequest::Connect { destination }.encode())
    );
}

#[test]
fn a_refusal_is_told_with_its_status() {
    let refusal = HopResponse::Refused(StatusCode::PermissionDenied).encode();
    let error = block_on(reserve(answering(&framed(&refusal)))).unwrap_err();
    assert!(matches!(
        error,
        ExchangeError::Refused(StatusCode::PermissionDenied)
    ));
}

#[test]
fn hostile_lengths_and_ends_are_violations_and_allocate_nothing() {
    let cases: [(&[u8], ProtocolViolation); 4] = [
        (&[0xff, 0xff, 0xff, 0xff, 0x0f], ProtocolViolation::TooLong),
        (&[0x81, 0x20], ProtocolViolation::TooLong),
        (&[5, 1, 2], ProtocolViolation::Truncated),
        (&[2, 8, 9], ProtocolViolation::UnknownType),
    ];
    for (bytes, expected) in cases {
        let error = block_on(reserve(answering(bytes))).unwrap_err();
        assert!(
            matches!(&error, ExchangeError::Violation(found) if *found == expected),
            "{bytes:?}: {error}"
        );
    }
    let error = block_on(reserve(answering(&[]))).unwrap_err();
    assert!(matches!(error, ExchangeError::Io(_)));
}

#[test]
fn a_circuit_that_nobody_wants_is_refused_and_a_broken_request_is_answered() {
    let source = PeerId::random();
    let request = StopRequest {
        source,
        limit: None,
    };
    let asked = framed(&request.encode());
    let (stream, read) = block_on(accept(answering(&asked), true)).unwrap();
    assert_eq!(read, request);
    assert_eq!(stream.sent, framed(&StopResponse::Accepted.encode()));
    for (bytes, wanted, status) in [
        (&asked[..], false, StatusCode::NoReservation),
        (&[2, 8, 9][..], true, StatusCode::MalformedMessage),
    ] {
        let mut stream = answering(bytes);
        assert!(block_on(accept(&mut stream, wanted)).is_err());
        assert_eq!(stream.sent, framed(&StopResponse::Refused(status).encode()));
    }
}

#[test]
fn a_ping_takes_its_own_bytes_only_for_an_answer() {
    let error = block_on(ping(answering(&[7; PING_BYTES]))).unwrap_err();
    assert!(matches!(error, ExchangeError::Io(_)));
    let (near, far) = futures_ringbuf();
    let echo = async {
        let mut far = far;
        let mut bytes = [0; PING_BYTES];
        far.read_exact(&mut bytes).await.unwrap();
        far.write_all(&bytes).await.unwrap();
    };
    let (took, ()) = block_on(join(ping(near), echo));
    assert!(took.is_ok());
}

/// Two ends of a pipe, over the memory transport's channel.
fn futures_ringbuf() -> (
    impl AsyncRead + AsyncWrite + Unpin,
    impl AsyncRead + AsyncWrite + Unpin,
) {
    use futures::StreamExt as _;
    use libp2p_core::{
        Transport as _,
        multiaddr::Protocol,
        transport::{DialOpts, ListenerId, MemoryTransport, PortUse},
    };
    let mut transport = MemoryTransport::default().boxed();
    let at = Protocol::Memory(rand::rng().random()).into();
    transport.listen_on(ListenerId::next(), at).unwrap();
    let opened = block_on(transport.next()).unwrap();
    let address = opened.into_new_address().unwrap();
    let opts = DialOpts {
        role: libp2p_core::Endpoint::Dialer,
        port_use: PortUse::Reuse,
    };
    let dial = transport.dial(address, opts).unwrap();
    let incoming = async {
        let (upgrade, _) = transport.next().await.unwrap().into_incoming().unwrap();
        upgrade.await.unwrap()
    };
    let (near, far) = block_on(join(dial, incoming));
    (near.unwrap(), far)
}
