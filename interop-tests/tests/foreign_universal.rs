//! The example `universal_connectivity`, as people run it, with peers that speak the app's protocols by the libraries of its real peers.
#![cfg(feature = "foreign")]

use anypath_interop_tests::peers::{
    Cells, Console, Error, Implementation, Peer, Settings, Transport,
};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::Instant;

const AREA: &str = "Universal connectivity";
const CHAT: &str = "universal-connectivity";
const FILES: &str = "universal-connectivity-file";
const BROWSERS: &str = "universal-connectivity-browser-peer-discovery";
const FILE_PROTOCOL: &str = "/universal-connectivity-file/1";
const DIRECT_PROTOCOL: &str = "/universal-connectivity/dm/1.0.0";

/// Larger than what any of them sends or reads at once, and less than js-peer takes, 4 MiB.
const FILE: usize = 3_000_000;

/// Longer than gossipsub takes to tell of a subscription, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Long enough for what is said to be heard once those who listen are known.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Addresses for documentation (RFC 5737): announced and never dialled. Of loopback addresses our node tells nobody, and believes nobody.
const OURS: &str = "/ip4/203.0.113.7/tcp/9095/ws";
const THEIRS: &str = "/ip4/203.0.113.8/tcp/9095/ws";

/// The example with a directory of its own.
struct Example {
    console: Console,
    id: PeerId,
    address: Multiaddr,
    home: TempDir,
}

impl Example {
    /// Listens at `listen`, announces `announce` and connects to the peer at `connect`.
    async fn start(
        listen: &Multiaddr,
        announce: &[&str],
        connect: Option<&Multiaddr>,
    ) -> Result<Self, Error> {
        let home = TempDir::new()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_universal_connectivity"));
        command
            .env("ANYPATH_DATA_DIR", home.path())
            .env("ANYPATH_LISTEN_ADDRS", listen.to_string())
            .env("ANYPATH_EXTERNAL_ADDRS", announce.join(","))
            .env("ANYPATH_PUBSUB_ANNOUNCE_INTERVAL", "1s")
            .env("ANYPATH_ENABLE_RELAY_SERVER", "true")
            .env("ANYPATH_PRIVATE", "true")
            .envs(
                ["ENABLE_MDNS", "ENABLE_PORT_MAPPING", "FILE_REGISTRY"]
                    .map(|off| (format!("ANYPATH_{off}"), "false")),
            )
            .args(connect.map(ToString::to_string));
        let mut console = Console::start(command)?;
        let address = |line: &str| line.strip_prefix("listening on ")?.parse().ok();
        let address: Multiaddr = console.shows("address", PATIENCE, address).await?;
        if connect.is_some() {
            let connected = |line: &str| line.starts_with("connected to ").then_some(());
            console.shows("connection", PATIENCE, connected).await?;
        }
        let Some(Protocol::P2p(id)) = address.iter().last() else {
            return Err(Error::Wrong(format!("no name in {address}")));
        };
        Ok(Self {
            console,
            id,
            address,
            home,
        })
    }

    /// Waits for the line.
    async fn shows(&mut self, line: &str) -> Result<(), Error> {
        self.shows_within(line, PATIENCE).await
    }

    async fn shows_within(&mut self, line: &str, within: Duration) -> Result<(), Error> {
        let is_it = |shown: &str| (shown == line).then_some(());
        self.console.shows(line, within, is_it).await
    }

    /// Waits for a line that begins so, and returns the rest of it.
    async fn shows_after(&mut self, beginning: &str) -> Result<String, Error> {
        let rest = |line: &str| line.strip_prefix(beginning).map(str::to_owned);
        self.console.shows(beginning, PATIENCE, rest).await
    }

    /// Offers a file; returns its id once those who listen were told of it.
    async fn offer(&mut self, data: &[u8]) -> Result<String, Error> {
        let path = self.home.path().join("offered");
        std::fs::write(&path, data)?;
        let began = Instant::now();
        loop {
            self.console
                .enter(&format!("/file {}", path.display()))
                .await?;
            let id = |line: &str| line.strip_prefix("offered as ").map(str::to_owned);
            match self.console.shows("id of the file", HEARTBEAT, id).await {
                // Nobody listens yet.
                Err(_) if began.elapsed() < PATIENCE => {}
                ended => return ended,
            }
        }
    }

    /// Waits for a file that a peer has offered; returns what it wrote to its disk.
    async fn fetched(&mut self, from: PeerId, file: &str) -> Result<Vec<u8>, Error> {
        let told = self
            .shows_after(&format!("{from} offered {file}: "))
            .await?;
        let path = told
            .split_once(" bytes in ")
            .map(|(_, path)| PathBuf::from(path));
        let path = path.ok_or_else(|| Error::Wrong(told))?;
        Ok(std::fs::read(path)?)
    }
}

const CONNECTS: &str = "they connect";
const WE_HEAR: &str = "chat: we hear them";
const THEY_HEAR: &str = "chat: they hear us";
const WE_FETCH: &str = "a file of 3 MB: we fetch theirs";
const THEY_FETCH: &str = "a file of 3 MB: they fetch ours";
const DIRECT_TO_US: &str = "direct messages: we take theirs";
const DIRECT_TO_THEM: &str = "direct messages: they take ours";
const TELLS: &str = "discovery of browsers: they hear our announcement";
const IS_TOLD: &str = "discovery of browsers: we hear theirs";
const MEET: &str = "two of them meet through our relay and connect over WebRTC";
const SURVIVES: &str = "what is malformed is refused, and all goes on";

fn in_the_room(listen: Multiaddr) -> Result<Settings, Error> {
    Ok(Settings {
        listen: vec![listen],
        discovery: true,
        announce: vec![parsed(THEIRS)?],
        universal: true,
        ..Settings::default()
    })
}

/// All that peers of the app do with each other.
async fn exchange(cells: &mut Cells, ours: &mut Example, theirs: &mut Peer) {
    let (us, them) = (ours.id, theirs.id());
    cells
        .works(WE_HEAR, they_say(theirs, ours, "hello from there"))
        .await;
    cells
        .works(THEY_HEAR, we_say(ours, theirs, "hello, grüße from anypath"))
        .await;
    cells
        .works(WE_FETCH, async {
            let sent = random();
            let file = theirs.offer(&sent).await?;
            ensure("the same bytes", ours.fetched(them, &file).await? == sent)
        })
        .await;
    cells
        .works(THEY_FETCH, async {
            let sent = random();
            let file = ours.offer(&sent).await?;
            let told = theirs.message(FILES).await?;
            ensure("our id", told.data == file.as_bytes())?;
            ensure("the author", told.from == us.to_string())?;
            ensure("the same bytes", theirs.take(us, &file).await? == sent)
        })
        .await;
    cells
        .works(DIRECT_TO_US, async {
            theirs.send_direct(us, "for you alone").await?;
            ours.shows(&format!("{them} (to you alone): for you alone"))
                .await
        })
        .await;
    cells
        .works(DIRECT_TO_THEM, async {
            ours.console.enter(&format!("/dm {them} and back")).await?;
            ensure("the text", theirs.direct(us).await? == "and back")?;
            ours.shows(&format!("{them} has it")).await
        })
        .await;
}

/// Says it until it is heard: what is published before the subscriptions are known goes to nobody.
async fn they_say(theirs: &mut Peer, ours: &mut Example, text: &str) -> Result<(), Error> {
    let line = format!("{}: {text}", theirs.id());
    let began = Instant::now();
    loop {
        theirs.publish(CHAT, text.as_bytes()).await?;
        match ours.shows_within(&line, HEARTBEAT).await {
            Err(_) if began.elapsed() < PATIENCE => {}
            ended => return ended,
        }
    }
}

async fn we_say(ours: &mut Example, theirs: &mut Peer, text: &str) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        ours.console.enter(text).await?;
        match tokio::time::timeout(HEARTBEAT, theirs.message(CHAT)).await {
            Err(_) if began.elapsed() < PATIENCE => {}
            Err(_) => return Err(Error::Wrong("nothing heard".to_owned())),
            Ok(heard) => {
                let heard = heard?;
                ensure("the author", heard.from == ours.id.to_string())?;
                return ensure("the text", heard.data == text.as_bytes());
            }
        }
    }
}

/// Announcements of js-libp2p's module, which js-peer has and go-peer has not.
async fn discover(cells: &mut Cells, ours: &mut Example, theirs: &mut Peer) {
    cells
        .works(TELLS, async {
            let ours_at = parsed(OURS)?;
            let addresses = theirs.discovered(ours.id).await?;
            let is_it = |address: &Multiaddr| address.starts_with(&ours_at);
            ensure("our address", addresses.iter().any(is_it))
        })
        .await;
    cells
        .works(IS_TOLD, async {
            let found = format!("found {} at ", theirs.id());
            let addresses = ours.shows_after(&found).await?;
            ensure("their address", addresses.contains(THEIRS))
        })
        .await;
}

async fn with_js(transport: Transport, test: &'static str) -> Result<(), Error> {
    let mut cells = Cells::new(AREA, format!("js {}", transport.name()), test);
    let settings = in_the_room(transport.loopback())?;
    let mut theirs = Peer::start(Implementation::Js, &settings).await?;
    let address = theirs.address()?;
    let mut ours = Example::start(&transport.loopback(), &[OURS], Some(&address)).await?;
    cells.works(CONNECTS, async { Ok(()) }).await;
    exchange(&mut cells, &mut ours, &mut theirs).await;
    discover(&mut cells, &mut ours, &mut theirs).await;
    cells.finish()
}

async fn with_go(transport: Transport, test: &'static str) -> Result<(), Error> {
    let mut cells = Cells::new(AREA, format!("go {}", transport.name()), test);
    let settings = in_the_room(transport.loopback())?;
    let mut theirs = Peer::start(Implementation::Go, &settings).await?;
    let address = theirs.address()?;
    let mut ours = Example::start(&transport.loopback(), &[OURS], Some(&address)).await?;
    cells.works(CONNECTS, async { Ok(()) }).await;
    exchange(&mut cells, &mut ours, &mut theirs).await;
    cells
        .works(TELLS, async {
            let heard = theirs.message(BROWSERS).await?;
            ensure("the author", heard.from == ours.id.to_string())?;
            let address = parsed(OURS)?.to_vec();
            let says = heard
                .data
                .windows(address.len())
                .any(|part| part == address);
            ensure("our address in it", says)
        })
        .await;
    cells.unsupported(IS_TOLD, "go-peer passes announcements on and makes none");
    cells.finish()
}

#[tokio::test]
async fn our_example_and_js_are_in_one_room_over_tcp() -> Result<(), Error> {
    with_js(Transport::Tcp, "universal-js-tcp").await
}

#[tokio::test]
async fn our_example_and_js_are_in_one_room_over_quic() -> Result<(), Error> {
    with_js(Transport::Quic, "universal-js-quic").await
}

#[tokio::test]
async fn our_example_and_js_are_in_one_room_over_websocket() -> Result<(), Error> {
    with_js(Transport::WebSocket, "universal-js-ws").await
}

#[tokio::test]
async fn our_example_and_go_are_in_one_room_over_tcp() -> Result<(), Error> {
    with_go(Transport::Tcp, "universal-go-tcp").await
}

#[tokio::test]
async fn our_example_and_go_are_in_one_room_over_quic() -> Result<(), Error> {
    with_go(Transport::Quic, "universal-go-quic").await
}

#[tokio::test]
async fn pages_are_in_one_room_with_our_example_and_meet_through_it() -> Result<(), Error> {
    let mut cells = Cells::new(AREA, "browser ws", "universal-browser-ws");
    // Its relay tells pages where they are reached: at what it announces.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port();
    let listen = Transport::WebSocket.at(Ipv4Addr::LOCALHOST, port);
    let here = listen.to_string();
    let announce = [here.as_str(), OURS];
    let settings = in_the_room(Multiaddr::empty().with(Protocol::WebRTC))?;
    let (ours, one, two) = tokio::join!(
        Example::start(&listen, &announce, None),
        Peer::start(Implementation::Browser, &settings),
        Peer::start(Implementation::Browser, &settings),
    );
    let (mut ours, mut one, mut two) = (ours?, one?, two?);
    cells
        .works(CONNECTS, async { one.dial(&ours.address).await.map(drop) })
        .await;
    exchange(&mut cells, &mut ours, &mut one).await;
    discover(&mut cells, &mut ours, &mut one).await;
    cells
        .works(MEET, async {
            one.reserve(&ours.address).await?;
            two.reserve(&ours.address).await?;
            let address = callable(&mut one, two.id(), &listen).await?;
            one.dial(&address).await?;
            let connections = one.connections(two.id()).await?;
            let is_direct = connections.iter().any(|connection| {
                let mut parts = connection.address.iter();
                !connection.limited && parts.any(|part| part == Protocol::WebRTC)
            });
            ensure("a direct connection over WebRTC", is_direct)?;
            one.send_direct(two.id(), "from page to page").await?;
            ensure(
                "the text",
                two.direct(one.id()).await? == "from page to page",
            )
        })
        .await;
    one.stop().await?;
    two.stop().await?;
    cells.finish()
}

/// Where a page has announced that it can be called over WebRTC at a relay, as another one has heard.
async fn callable(page: &mut Peer, other: PeerId, relay: &Multiaddr) -> Result<Multiaddr, Error> {
    let began = Instant::now();
    loop {
        let addresses = page.discovered(other).await?;
        let wanted = |address: &Multiaddr| {
            let mut parts = address.iter();
            address.starts_with(relay) && parts.any(|part| part == Protocol::WebRTC)
        };
        if let Some(address) = addresses.into_iter().find(wanted) {
            return Ok(address);
        }
        ensure("an address with /webrtc", began.elapsed() < PATIENCE)?;
    }
}

async fn survives(implementation: Implementation, test: &'static str) -> Result<(), Error> {
    let column = format!("{} tcp", implementation.name());
    let mut cells = Cells::new(AREA, column, test);
    let settings = in_the_room(Transport::Tcp.loopback())?;
    let mut theirs = Peer::start(implementation, &settings).await?;
    let (them, address) = (theirs.id(), theirs.address()?);
    let mut ours = Example::start(&Transport::Tcp.loopback(), &[OURS], Some(&address)).await?;
    cells
        .works(SURVIVES, async {
            they_say(&mut theirs, &mut ours, "hello").await?;
            theirs.publish(CHAT, b"\xff\xfe").await?;
            theirs.publish(BROWSERS, b"\xff\xfe").await?;
            theirs.publish(FILES, b"\xff\xfe").await?;
            theirs.publish(FILES, &[b'x'; 2000]).await?;
            // More than it takes; more than comes; other bytes than its id says; a length without end.
            let gigabytes = [0xff, 0xff, 0xff, 0xff, 0x7f];
            let of_others = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
            for (file, answer) in [
                ("../../too-long", &gigabytes[..]),
                ("/etc/too-short", &[5, 1, 2]),
                (of_others, &[3, 1, 2, 3]),
                ("endless", &[0xff; 12]),
                ("nothing", &[]),
            ] {
                theirs.answer_raw(file.as_bytes(), answer).await?;
                theirs.publish(FILES, file.as_bytes()).await?;
                ours.shows_after(&format!("{them} offered {file}, but "))
                    .await?;
            }
            let kept = std::fs::read_dir(ours.home.path().join("downloads"))?.count();
            ensure("empty downloads", kept == 0)?;
            let framed = |data: &[u8]| [&[data.len() as u8], data].concat();
            for (protocol, request) in [
                (FILE_PROTOCOL, framed(b"of nobody")),
                (FILE_PROTOCOL, framed(b"../../../../etc/passwd")),
                (FILE_PROTOCOL, framed(b"\xff\xfe")),
                (FILE_PROTOCOL, gigabytes.to_vec()),
                (DIRECT_PROTOCOL, framed(b"\xff\xff\xff")),
                (DIRECT_PROTOCOL, framed(&[0x12, 2, 0xff, 0xfe])),
                (DIRECT_PROTOCOL, gigabytes.to_vec()),
            ] {
                let answer = theirs.send_raw(ours.id, protocol, &request).await?;
                ensure("no answer", answer.is_empty())?;
            }
            // And all that is honest still works.
            we_say(&mut ours, &mut theirs, "still here").await?;
            theirs.send_direct(ours.id, "are you?").await?;
            ours.shows(&format!("{them} (to you alone): are you?"))
                .await?;
            let sent = random();
            let file = theirs.offer(&sent).await?;
            ensure("the same bytes", ours.fetched(them, &file).await? == sent)
        })
        .await;
    cells.finish()
}

#[tokio::test]
async fn what_js_sends_malformed_ends_nothing() -> Result<(), Error> {
    survives(Implementation::Js, "universal-js-malformed").await
}

#[tokio::test]
async fn what_go_sends_malformed_ends_nothing() -> Result<(), Error> {
    survives(Implementation::Go, "universal-go-malformed").await
}

fn parsed(address: &str) -> Result<Multiaddr, Error> {
    let wrong = |error| Error::Wrong(format!("{address}: {error}"));
    address.parse().map_err(wrong)
}

fn random() -> Vec<u8> {
    let mut file = vec![0; FILE];
    rand::fill(&mut file[..]);
    file
}

fn ensure(what: &str, holds: bool) -> Result<(), Error> {
    if holds {
        Ok(())
    } else {
        Err(Error::Wrong(format!("not {what}")))
    }
}
