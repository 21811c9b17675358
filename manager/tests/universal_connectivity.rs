//! The example `universal_connectivity` on real nodes on loopback, with honest and other peers.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and brings its own runtime"
)]

#[expect(dead_code, reason = "the other test of nodes needs all of it")]
mod common;

#[path = "../examples/universal_connectivity/app.rs"]
mod app;
#[path = "../examples/universal_connectivity/wire.rs"]
mod wire;

use std::{fs, path::PathBuf, time::Duration};

use anypath::{
    PublishError,
    config::ConfigBuilder,
    libp2p::{Multiaddr, PeerId, StreamProtocol},
};
use app::{App, Event, MAX_FILE, Room};
use common::{Host, SOON, TCP, alone, tokio_executor};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use tokio::{
    sync::mpsc,
    time::{interval, timeout},
};

struct Peer {
    host: Host,
    room: Room,
    events: mpsc::Receiver<Event>,
    downloads: tempfile::TempDir,
}

impl Peer {
    async fn join() -> Self {
        Self::join_with(gossiping()).await
    }

    async fn join_with(config: ConfigBuilder) -> Self {
        let host = Host::start(config, tokio_executor()).await;
        let downloads = tempfile::tempdir().unwrap();
        let app = App::join(host.node.clone(), downloads.path().to_owned())
            .await
            .unwrap();
        let room = app.room();
        let (sender, events) = mpsc::channel(1000);
        drop(tokio::spawn(
            app.run(move |event| sender.try_send(event).unwrap()),
        ));
        Self {
            host,
            room,
            events,
            downloads,
        }
    }

    fn id(&self) -> PeerId {
        self.host.node.peer_id()
    }

    async fn next(&mut self) -> Event {
        timeout(SOON, self.events.recv()).await.unwrap().unwrap()
    }

    /// Says it until somebody hears it: gossipsub tells nobody when that is.
    async fn say(&self, text: &str) {
        let mut again = interval(Duration::from_millis(20));
        let said = async {
            while let Err(error) = self.room.say(text).await {
                let error = error.downcast::<PublishError>().unwrap();
                assert!(matches!(*error, PublishError::NobodyListens), "{error}");
                again.tick().await;
            }
        };
        timeout(SOON, said).await.unwrap();
    }

    async fn hears(&mut self, from: &Self, text: &str) {
        let heard = Event::Chat {
            from: from.id(),
            text: text.to_owned(),
        };
        assert_eq!(self.next().await, heard);
    }

    fn file(&self, data: &[u8]) -> PathBuf {
        let path = self.downloads.path().join("offered");
        fs::write(&path, data).unwrap();
        path
    }
}

fn gossiping() -> ConfigBuilder {
    let config = alone(&[TCP]).enable_pubsub_discovery(true);
    config.pubsub_announce_interval(Duration::from_secs(1))
}

async fn host() -> Host {
    Host::start(gossiping(), tokio_executor()).await
}

async fn connect(from: &Host, to: &Host) {
    let connected = from.node.connect(to.addresses().remove(0));
    timeout(SOON, connected).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_chat_exchange_files_and_send_direct_messages() {
    let (mut a, mut b) = (Peer::join().await, Peer::join().await);
    connect(&a.host, &b.host).await;
    a.say("hello from a").await;
    b.hears(&a, "hello from a").await;
    b.say("grüße").await;
    a.hears(&b, "grüße").await;

    for data in [Vec::new(), vec![7; 3_000_000]] {
        let offered = a.room.offer(a.file(&data)).await.unwrap();
        let Event::File {
            from,
            id,
            path,
            bytes,
        } = b.next().await
        else {
            panic!("no file");
        };
        assert_eq!((from, id, bytes), (a.id(), offered, data.len() as u64));
        assert_eq!(fs::read(&path).unwrap(), data);
        assert!(path.starts_with(b.downloads.path()));
    }
    let sent = timeout(SOON, b.room.send(a.id(), "for you alone")).await;
    sent.unwrap().unwrap();
    let direct = Event::Direct {
        from: b.id(),
        text: "for you alone".to_owned(),
    };
    assert_eq!(a.next().await, direct);
    for peer in [a, b] {
        peer.host.node.shutdown().await;
    }
}

/// What a page of the app reads there, which knows nobody but this peer.
#[tokio::test(flavor = "multi_thread")]
async fn browsers_are_told_of_the_peer_on_their_discovery_topic() {
    // Of loopback addresses nobody is told.
    let external: Multiaddr = "/ip4/203.0.113.7/tcp/9100".parse().unwrap();
    let peer = Peer::join_with(gossiping().external_addrs(vec![external.clone()])).await;
    let browser = host().await;
    let topic = "universal-connectivity-browser-peer-discovery";
    let mut heard = browser.node.subscribe(topic).await.unwrap();
    connect(&browser, &peer.host).await;
    let message = timeout(SOON, heard.next()).await.unwrap().unwrap();
    assert_eq!(message.from, peer.id());
    let key = peer.host.keypair.public().encode_protobuf();
    let says = |bytes: &[u8]| message.data.windows(bytes.len()).any(|part| part == bytes);
    assert!(says(&key) && says(&external.to_vec()), "{:?}", message.data);
    for node in [peer.host.node, browser.node] {
        node.shutdown().await;
    }
}

/// What brought other peers of this app down, see the weak points in the notes on it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_stranger_sends_ends_the_app_or_leaves_its_directory() {
    let mut victim = Peer::join().await;
    let stranger = host().await;
    connect(&stranger, &victim.host).await;
    let file_protocol = StreamProtocol::new("/universal-connectivity-file/1");
    let direct_protocol = StreamProtocol::new("/universal-connectivity/dm/1.0.0");
    let mut requests = stranger
        .node
        .register_protocol(file_protocol.clone())
        .await
        .unwrap();
    let publish = async |topic: &str, data: &[u8]| {
        let mut again = interval(Duration::from_millis(20));
        let published = async {
            while stranger.node.publish(topic, data.to_vec()).await.is_err() {
                again.tick().await;
            }
        };
        timeout(SOON, published).await.unwrap();
    };
    publish("universal-connectivity", b"\xff\xfe").await;
    publish("universal-connectivity-file", b"\xff\xfe").await;
    publish("universal-connectivity-file", &[b'x'; 2000]).await;
    // Offers with bad answers. Too long; nothing after the length; not what the CID says; a length without end.
    let long = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    let wrong = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
    for (id, answer) in [
        ("../../escaped", &long[..]),
        ("/etc/passwd", &[5, 1, 2]),
        (wrong, &[3, 1, 2, 3]),
        ("endless", &[0xff; 12]),
        ("hangs up", &[]),
    ] {
        publish("universal-connectivity-file", id.as_bytes()).await;
        let (_, mut stream) = timeout(SOON, requests.next()).await.unwrap().unwrap();
        assert_eq!(
            wire::read_frame(&mut stream, 100).await.unwrap(),
            id.as_bytes()
        );
        stream.write_all(answer).await.unwrap();
        stream.close().await.unwrap();
        let event = victim.next().await;
        assert!(
            matches!(&event, Event::NoFile { id: asked, .. } if asked == id),
            "{event:?}"
        );
    }
    assert_eq!(fs::read_dir(victim.downloads.path()).unwrap().count(), 0);
    // Requests for what was never offered, and what is no request.
    let own = victim.host.directory.path().to_str().unwrap().as_bytes();
    let framed = |data: &[u8]| [&[data.len() as u8], data].concat();
    for (protocol, request) in [
        (&file_protocol, framed(b"../../../../etc/passwd")),
        (&file_protocol, framed(own)),
        (&file_protocol, framed(b"\xff\xfe")),
        (&file_protocol, long.to_vec()),
        (&direct_protocol, framed(b"\xff\xff\xff")),
        (&direct_protocol, framed(&[0x12, 2, 0xff, 0xfe])),
        (&direct_protocol, long.to_vec()),
    ] {
        let opened = stranger.node.open_stream(victim.id(), protocol.clone());
        let mut stream = timeout(SOON, opened).await.unwrap().unwrap();
        stream.write_all(&request).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        // It hangs up, in whichever way.
        let _ = timeout(SOON, read).await.unwrap();
        assert!(answer.is_empty(), "{answer:?}");
    }
    // And a file is still fetched.
    publish("universal-connectivity-file", b"good").await;
    let (_, mut stream) = timeout(SOON, requests.next()).await.unwrap().unwrap();
    wire::read_frame(&mut stream, 100).await.unwrap();
    wire::write_frame(&mut stream, b"content").await.unwrap();
    let event = victim.next().await;
    assert!(matches!(&event, Event::File { bytes: 7, .. }), "{event:?}");
    assert!(MAX_FILE < u64::from(u32::MAX));
    for node in [victim.host.node, stranger.node] {
        node.shutdown().await;
    }
}
