//! Pages in a browser that know nothing but the address of `anypath start`.
#![cfg(feature = "foreign")]

use anypath_interop_tests::peers::{
    Anypath, Cells, Error, Implementation, Peer, Settings, Transport,
};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;

const TOPIC: &str = "anypath-interop/chat/1";

/// Several blocks in either side's shape of files.
const FILE: usize = 3_000_000;

/// Longer than gossipsub takes to tell of a subscription, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Of gossipsub, in every implementation.
const HEARTBEAT: Duration = Duration::from_secs(1);

async fn page() -> Result<Peer, Error> {
    let settings = Settings {
        // It can be called over WebRTC at whichever relay it has reserved.
        listen: vec![Multiaddr::empty().with(Protocol::WebRTC)],
        discovery: true,
        ..Settings::default()
    };
    Peer::start(Implementation::Browser, &settings).await
}

async fn start(transport: Transport) -> Result<(Anypath, Peer), Error> {
    let node = Anypath::start_with(&transport.loopback(), &["--relay-server"]).await?;
    Ok((node, page().await?))
}

const DIALS: &str = "a page dials `anypath start`, identifies and pings it";
const GETS: &str = "a page gets a file of 3 MB that `anypath add` added";
const SERVES: &str = "`anypath get` gets a file of 3 MB that only a page has";
const IS_HEARD: &str = "`anypath subscribe` hears a page";
const HEARS: &str = "a page hears `anypath publish`";
const RESERVES: &str = "pages reserve on our relay";
const FINDS: &str = "a page finds another by the announcements that we pass on";
const REACHES: &str = "a page reaches another over WebRTC, through our relay for the signals";
const STAYS: &str = "a page gets a file of 3 MB from another after our node has ended";

async fn they_dial(page: &mut Peer, node: &Anypath) -> Result<(), Error> {
    page.dial(node.address()).await?;
    let us = page.identify(node.id()).await?;
    ensure("our agent", us.agent.starts_with("anypath/"))?;
    page.ping(node.id()).await.map(drop)
}

#[tokio::test]
async fn pages_meet_and_files_and_messages_pass_both_ways_over_websocket() -> Result<(), Error> {
    pages_meet(Transport::WebSocket, "browser-ws").await
}

#[tokio::test]
async fn pages_meet_and_files_and_messages_pass_both_ways_over_webrtc() -> Result<(), Error> {
    pages_meet(Transport::WebRtc, "browser-webrtc").await
}

async fn pages_meet(transport: Transport, test: &'static str) -> Result<(), Error> {
    let column = format!("browser {}", transport.name());
    let mut cells = Cells::new("Browser", column, test);
    let (started, two) = tokio::join!(start(transport), page());
    let ((node, mut one), mut two) = (started?, two?);
    cells.works(DIALS, they_dial(&mut one, &node)).await;
    cells.works(GETS, they_get(&mut one, &node)).await;
    cells.works(SERVES, we_get(&node, &mut one)).await;
    cells.works(IS_HEARD, we_hear(&node, &mut one)).await;
    cells.works(HEARS, they_hear(&mut one, &node)).await;
    cells
        .works(RESERVES, async {
            one.reserve(node.address()).await?;
            two.reserve(node.address()).await.map(drop)
        })
        .await;
    cells
        .works(FINDS, async { callable(&mut two, &one).await.map(drop) })
        .await;
    cells
        .works(REACHES, async {
            let address = callable(&mut one, &two).await?;
            one.dial(&address).await?;
            let connections = one.connections(two.id()).await?;
            let is_direct = connections.iter().any(|connection| {
                let mut parts = connection.address.iter();
                !connection.limited && parts.any(|part| part == Protocol::WebRTC)
            });
            ensure("a direct connection over WebRTC", is_direct)?;
            one.ping(two.id()).await.map(drop)
        })
        .await;
    drop(node);
    cells
        .works(STAYS, async {
            let file = random();
            let cid = two.add_file(&file).await?;
            ensure("the same bytes", one.get_file(&cid).await? == file)
        })
        .await;
    one.stop().await?;
    two.stop().await?;
    cells.finish()
}

async fn they_get(page: &mut Peer, node: &Anypath) -> Result<(), Error> {
    let file = random();
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("file");
    std::fs::write(&path, &file)?;
    let cid = node.run(&["add", &path.display().to_string()]).await?;
    let got = page.get_file(&cid.parse()?).await?;
    ensure("the same bytes", got == file)
}

async fn we_get(node: &Anypath, page: &mut Peer) -> Result<(), Error> {
    let file = random();
    let cid = page.add_file(&file).await?.to_string();
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("file");
    node.run(&["get", &cid, "-o", &path.display().to_string()])
        .await?;
    ensure("the same bytes", std::fs::read(&path)? == file)
}

async fn we_hear(node: &Anypath, page: &mut Peer) -> Result<(), Error> {
    let arguments = ["--json", "subscribe", TOPIC, "--count", "1"];
    let mut heard = std::pin::pin!(node.run(&arguments));
    // Until it is heard: our node subscribes when the command asks it to.
    let lines = loop {
        page.publish(TOPIC, b"from a page").await?;
        if let Ok(lines) = tokio::time::timeout(HEARTBEAT, &mut heard).await {
            break lines?;
        }
    };
    ensure("the author", lines.contains(&page.id().to_string()))?;
    ensure("the text", lines.contains("from a page"))
}

async fn they_hear(page: &mut Peer, node: &Anypath) -> Result<(), Error> {
    page.subscribe(TOPIC).await?;
    // It fails until the page's subscription has come.
    until(|| async { node.run(&["publish", TOPIC, "from anypath"]).await }).await?;
    let message = page.message(TOPIC).await?;
    ensure("the author", message.from == node.id().to_string())?;
    ensure("the text", message.data == b"from anypath".as_slice())
}

/// Where a page has announced that it can be called over WebRTC, as another one has heard.
async fn callable(page: &mut Peer, other: &Peer) -> Result<Multiaddr, Error> {
    let began = Instant::now();
    loop {
        let addresses = page.discovered(other.id()).await?;
        let webrtc = |address: &Multiaddr| address.iter().any(|part| part == Protocol::WebRTC);
        if let Some(address) = addresses.into_iter().find(webrtc) {
            return Ok(address);
        }
        ensure("an address with /webrtc", began.elapsed() < PATIENCE)?;
    }
}

async fn until<T, F: Future<Output = Result<T, Error>>>(
    mut attempt: impl FnMut() -> F,
) -> Result<T, Error> {
    let began = Instant::now();
    loop {
        match attempt().await {
            Err(_) if began.elapsed() < PATIENCE => {}
            ended => return ended,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
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
