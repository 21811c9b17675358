use std::pin::Pin;

use async_compat::Compat;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::{
    Swarm, SwarmBuilder,
    futures::StreamExt as _,
    identify, noise,
    swarm::{NewExternalAddrCandidate, SwarmEvent},
    tcp, yamux,
};
use multistream_select::NegotiationError;
use tokio::{io::DuplexStream, task::JoinHandle};

use super::{
    core::{Answer, Price},
    protocol::{ServeError, serve, tell},
    *,
};
use crate::autonat::{self, Timing, Verdict};

const SOON: Duration = Duration::from_secs(30);

/// A request with the nonce 7 for `/ip4/1.2.3.4/tcp/80`, with its length.
const REQUEST: [u8; 22] = [
    21, 0x0a, 19, 0x0a, 8, 4, 1, 2, 3, 4, 6, 0, 80, 0x11, 7, 0, 0, 0, 0, 0, 0, 0,
];

/// A stream with a server at the other end, whose behaviour is the test.
struct Client {
    stream: Compat<DuplexStream>,
    asks: mpsc::Receiver<Ask>,
    server: JoinHandle<Result<(), ServeError>>,
}

impl Client {
    fn new() -> Self {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (asker, asks) = mpsc::channel(1);
        let from = "/ip4/1.2.3.4/tcp/5000".parse().unwrap();
        let serve = serve(Compat::new(theirs), PeerId::random(), from, asker);
        Self {
            stream: Compat::new(ours),
            asks,
            #[expect(clippy::disallowed_methods, reason = "a test brings its own runtime")]
            server: tokio::spawn(serve),
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn is_answered(&mut self, answer: Answer) -> Weak<()> {
        let Some(Ask::Admit {
            addresses, reply, ..
        }) = self.asks.next().await
        else {
            panic!("not asked");
        };
        assert_eq!(addresses, [Some(address())]);
        let ongoing = Arc::new(());
        let weak = Arc::downgrade(&ongoing);
        assert!(reply.send(Admission { answer, ongoing }).is_ok());
        weak
    }

    async fn dials(&mut self) -> DialBack {
        let Some(Ask::Dial {
            address: dialled,
            dial_back,
            ..
        }) = self.asks.next().await
        else {
            panic!("not dialled");
        };
        assert_eq!((dialled, dial_back.nonce), (address(), 7));
        dial_back
    }

    /// All that the server says until it ends the stream.
    async fn hears(&mut self) -> Vec<u8> {
        let mut heard = Vec::new();
        self.stream.read_to_end(&mut heard).await.unwrap();
        heard
    }

    async fn ends(self) -> Result<(), ServeError> {
        self.server.await.unwrap()
    }
}

fn address() -> Multiaddr {
    "/ip4/1.2.3.4/tcp/80".parse().unwrap()
}

fn dial(bytes: Option<u64>) -> Answer {
    let wait = Duration::ZERO;
    Answer::Dial {
        index: 0,
        address: address(),
        price: bytes.map(|bytes| Price { bytes, wait }),
    }
}

#[tokio::test]
async fn a_request_that_is_not_admitted_is_told_so() {
    for (answer, status) in [(Answer::Rejected, 100), (Answer::Refused, 101)] {
        let mut client = Client::new();
        client.send(&REQUEST).await;
        client.is_answered(answer).await;
        assert_eq!(client.hears().await, [4, 0x12, 2, 8, status]);
        client.ends().await.unwrap();
    }
}

#[tokio::test]
async fn what_came_of_a_dial_is_told_and_the_request_is_over_then() {
    let ok = [0x12, 6, 8, 0xc8, 1, 0x18];
    let of = |status: &[u8]| [&ok[..], status].concat();
    let outcomes = [
        (Some(Outcome::Reached), of(&[0xc8, 1])),
        (
            Some(Outcome::DialError),
            vec![0x12, 5, 8, 0xc8, 1, 0x18, 100],
        ),
        (
            Some(Outcome::DialBackError),
            vec![0x12, 5, 8, 0xc8, 1, 0x18, 101],
        ),
        (None, vec![0x12, 5, 8, 0xc8, 1, 0x18, 101]),
        (Some(Outcome::Unable), vec![0x12, 2, 8, 101]),
    ];
    for (outcome, expected) in outcomes {
        let mut client = Client::new();
        client.send(&REQUEST).await;
        let ongoing = client.is_answered(dial(None)).await;
        let dial_back = client.dials().await;
        assert_eq!(ongoing.strong_count(), 1);
        if let Some(outcome) = outcome {
            dial_back.reply.send(outcome).unwrap();
        } else {
            drop(dial_back);
        }
        let heard = client.hears().await;
        assert_eq!(heard[1..], expected, "{outcome:?}");
        assert_eq!(ongoing.strong_count(), 0);
        client.ends().await.unwrap();
    }
}

/// Data in a piece of so many bytes, with its length.
fn piece(bytes: usize) -> Vec<u8> {
    let mut data = vec![0x0a];
    prost::encoding::encode_varint(bytes as u64, &mut data);
    data.resize(data.len() + bytes, 0);
    let mut message = vec![0x22];
    prost::encoding::encode_varint(data.len() as u64, &mut message);
    message.extend(data);
    let mut framed = Vec::new();
    prost::encoding::encode_varint(message.len() as u64, &mut framed);
    framed.extend(message);
    framed
}

#[tokio::test]
async fn nobody_is_dialled_before_the_price_is_paid() {
    let mut client = Client::new();
    client.send(&REQUEST).await;
    client.is_answered(dial(Some(10_000))).await;
    let mut asked = [0; 6];
    client.stream.read_exact(&mut asked).await.unwrap();
    assert_eq!(asked, [5, 0x1a, 3, 0x10, 0x90, 0x4e]);
    client.send(&piece(8000)).await;
    client.send(&piece(1999)).await;
    let early = tokio::time::timeout(Duration::from_millis(50), client.asks.next());
    assert!(early.await.is_err(), "dialled");
    // The last piece may be as small as it is.
    client.send(&piece(1)).await;
    client.dials().await.reply.send(Outcome::Reached).unwrap();
    assert_eq!(client.hears().await.len(), 9);
    client.ends().await.unwrap();
}

#[tokio::test]
async fn who_pays_in_small_change_or_sends_something_else_is_not_dialled() {
    let frame = |bytes: &[u8]| [&[u8::try_from(bytes.len()).unwrap()], bytes].concat();
    let wrong = [
        piece(99),
        frame(&[0xff; 9]),
        REQUEST.to_vec(),
        vec![0xff, 0xff, 3],
    ];
    for bytes in wrong {
        let mut client = Client::new();
        client.send(&REQUEST).await;
        client.is_answered(dial(Some(10_000))).await;
        client.send(&bytes).await;
        let Client {
            stream: _stream,
            mut asks,
            server,
        } = client;
        assert!(server.await.unwrap().is_err());
        assert!(asks.next().await.is_none());
    }
}

#[tokio::test]
async fn what_is_no_request_is_asked_nowhere() {
    let wrong = [
        &[2, 0xff, 0xff][..],
        &[0xff, 0xff, 3],
        &[0x81, 0x40],
        &piece(3),
    ];
    for bytes in wrong {
        let mut client = Client::new();
        client.send(bytes).await;
        assert!(client.asks.next().await.is_none());
        assert!(matches!(client.ends().await, Err(ServeError::Violation(_))));
    }
}

/// A stream that takes everything, and from which this is read.
struct Answers(Result<&'static [u8], io::ErrorKind>);

impl AsyncRead for Answers {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(match self.0 {
            Ok(mut bytes) => io::Read::read(&mut bytes, buffer),
            Err(io::ErrorKind::WouldBlock) => return Poll::Pending,
            Err(io::ErrorKind::Other) => Err(io::Error::other(NegotiationError::Failed)),
            Err(kind) => Err(kind.into()),
        })
    }
}

impl AsyncWrite for Answers {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_stream_that_is_reset_was_read_and_one_that_was_never_agreed_on_was_not() {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, Other, WouldBlock};
    let of = |kind| Answers(Err(kind));
    let answers = [
        (Answers(Ok(&[2, 8, 0])), Outcome::Reached),
        (Answers(Ok(&[])), Outcome::Reached),
        (of(ConnectionReset), Outcome::Reached),
        (of(BrokenPipe), Outcome::Reached),
        (of(NotConnected), Outcome::DialBackError),
        // That is: it does not speak the protocol; and: it says nothing.
        (of(Other), Outcome::DialBackError),
        (of(WouldBlock), Outcome::DialBackError),
    ];
    for (answer, expected) in answers {
        let read = format!("{:?}", answer.0);
        let outcome = tell(answer, 7, Duration::from_millis(20)).await;
        assert_eq!(outcome, expected, "{read}");
    }
}

#[test]
fn what_this_node_cannot_dial_tells_nothing_of_the_client() {
    let transport = |error| DialError::Transport(vec![(address(), error)]);
    let wrapped = |kind: io::ErrorKind| {
        let inner = io::Error::other(io::Error::from(kind));
        transport(TransportError::Other(io::Error::other(inner)))
    };
    assert_eq!(
        outcome(&wrapped(io::ErrorKind::NetworkUnreachable)),
        Outcome::Unable
    );
    assert_eq!(
        outcome(&wrapped(io::ErrorKind::ConnectionRefused)),
        Outcome::DialError
    );
    let unsupported = transport(TransportError::MultiaddrNotSupported(address()));
    assert_eq!(outcome(&unsupported), Outcome::Unable);
    assert_eq!(outcome(&DialError::Aborted), Outcome::Unable);
}

#[derive(NetworkBehaviour)]
struct Server {
    identify: identify::Behaviour,
    autonat: Behaviour,
}

#[derive(NetworkBehaviour)]
struct Asking {
    identify: identify::Behaviour,
    autonat: autonat::Behaviour,
}

fn swarm<B: NetworkBehaviour>(behaviour: impl FnOnce(identify::Behaviour) -> B) -> Swarm<B> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            noise::Config::new,
            yamux::Config::default,
        )
        .unwrap()
        .with_quic()
        .with_behaviour(|key| {
            let config = identify::Config::new("/test/1".to_owned(), key.public());
            behaviour(identify::Behaviour::new(config))
        })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build()
}

async fn listening<B: NetworkBehaviour>(swarm: &mut Swarm<B>, on: &str) -> Multiaddr {
    swarm.listen_on(on.parse().unwrap()).unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return address;
        }
    }
}

/// What the client of libp2p-autonat hears about an address that it asks about.
async fn verdict(on: &str, listens: bool, mute: Option<&Multiaddr>) -> (bool, usize) {
    let transports = Transports {
        quic: true,
        websocket: false,
        webrtc: false,
    };
    let mut server = swarm(|identify| Server {
        identify,
        autonat: Behaviour::new(Limits::default(), transports, Duration::from_millis(200)),
    });
    let at = listening(&mut server, on).await;
    let timing = Timing {
        tick: Duration::from_millis(100),
        ..Timing::every(Duration::from_secs(300))
    };
    let mut client = swarm(|identify| Asking {
        identify,
        autonat: autonat::Behaviour::new(timing),
    });
    let address = match (listens, mute) {
        (true, _) => listening(&mut client, on).await,
        (false, mute) => mute.unwrap().clone(),
    };
    client.dial(at).unwrap();
    let addr = &address;
    let candidate = FromSwarm::NewExternalAddrCandidate(NewExternalAddrCandidate { addr });
    client.behaviour_mut().autonat.on_swarm_event(candidate);
    let verdict = async {
        loop {
            tokio::select! {
                _ = server.select_next_some() => {}
                event = client.select_next_some() => {
                    // The port that it dialled from is a candidate, too.
                    if let SwarmEvent::Behaviour(AskingEvent::Autonat(verdict)) = event
                        && verdict.address == address
                    {
                        return verdict;
                    }
                }
            }
        }
    };
    let verdict: Verdict = tokio::time::timeout(SOON, verdict)
        .await
        .expect("a verdict");
    assert_eq!(verdict.server, *server.local_peer_id());
    (verdict.reachable, server.behaviour().autonat.dials.len())
}

#[tokio::test]
async fn who_can_be_reached_is_told_over_tcp_and_quic() {
    for on in ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"] {
        assert_eq!(verdict(on, true, None).await, (true, 0), "{on}");
    }
}

#[tokio::test]
async fn who_cannot_be_reached_is_told_while_it_listens() {
    // The system takes the connection, and nobody ever says anything on it.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port();
    let address = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
    let heard = verdict("/ip4/127.0.0.1/tcp/0", false, Some(&address)).await;
    assert_eq!(heard, (false, 0));
}
