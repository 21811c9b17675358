//! Private networks (PSK v1): members of all implementations meet, and nobody else gets in.
#![cfg(feature = "foreign")]

use anypath::swarm_key;
use anypath_interop_tests::peers::{
    Anypath, Cells, Error, Implementation, Kubo, KuboSettings, Peer, Settings, Transport,
};
use cid::Cid;
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use multihash_codetable::{Code, MultihashDigest as _};
use salsa20::cipher::{IvSizeUser as _, KeyIvInit, StreamCipher};
use salsa20::{Salsa20, XSalsa20};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const RAW: u64 = 0x55;

/// What no step takes on a busy machine unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// Several times what two that can connect take.
const DEFECT_PATIENCE: Duration = Duration::from_secs(2);

// Lines of multistream-select.
const MULTISTREAM: &[u8] = b"\x13/multistream/1.0.0\n";
const NOISE: &[u8] = b"\x07/noise\n";

const AS_SPECIFIED: &str = "they encrypt with XSalsa20 and a nonce of 24 bytes each way";

const PY_CIPHER: &str = "py-libp2p encrypts with Salsa20 and a nonce of 8 bytes (`PskConn.write` and `read` in \
    `security/pnet/psk_conn.py`); it is XSalsa20 with one of 24 (PSK v1, \"Algorithm\"), so that its members meet nobody but each other";

const NO_MEMBERS: &str = "no member of py-libp2p's connects to one of ours, for the reason of \"they dial a member of ours, identify and ping it\"";

const NO_BLOCKS: &str =
    "py-libp2p answers wants on the stream that brought them (\"Bitswap\"), whatever the network";

/// A node with the key of this file, or with none.
async fn node(transport: Transport, key_file: Option<&Path>) -> Result<Anypath, Error> {
    let flags = match key_file {
        Some(file) => vec!["--swarm-key-file", text(file)?],
        None => Vec::new(),
    };
    Anypath::start_with(&transport.loopback(), &flags).await
}

async fn peer(
    implementation: Implementation,
    transport: Transport,
    swarm_key: Option<String>,
) -> Result<Peer, Error> {
    let settings = Settings {
        listen: vec![transport.loopback()],
        swarm_key,
        ..Settings::default()
    };
    Peer::start(implementation, &settings).await
}

fn text(path: &Path) -> Result<&str, Error> {
    let wrong = || Error::Wrong(format!("{} is no UTF-8", path.display()));
    path.to_str().ok_or_else(wrong)
}

fn same<T: PartialEq + ?Sized>(what: &str, left: &T, right: &T) -> Result<(), Error> {
    if left == right {
        Ok(())
    } else {
        Err(Error::Wrong(format!("{what} is another one")))
    }
}

/// Each dials the other one; neither dial leads to anything.
async fn apart(node: &Anypath, peer: &mut Peer) -> Result<(), Error> {
    let address = peer.address()?.to_string();
    let arguments = ["connect", address.as_str()];
    let (dialled, called) = tokio::join!(node.run(&arguments), peer.dial(node.address()));
    let connected = |who: &str| Err(Error::Wrong(format!("{who} connected")));
    match (dialled, called) {
        (Err(Error::Peer(_)), Err(Error::Peer(_))) => {}
        (Ok(_), _) => return connected("we"),
        (_, Ok(_)) => return connected("they"),
        // It ended, or did not answer.
        (Err(ours), Err(theirs)) => return Err(Error::Wrong(format!("{ours}; {theirs}"))),
    }
    if !peer.connections(node.id()).await?.is_empty() {
        return connected("they say that we");
    }
    if node.run(&["peers"]).await?.contains(&peer.id().to_string()) {
        return connected("we say that they");
    }
    Ok(())
}

/// How a member encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cipher {
    /// With a nonce of 24 bytes; the specification's.
    XSalsa20,
    /// With a nonce of 8 bytes.
    Salsa20,
}

/// A nonce, and the text after it.
fn sealed<C: KeyIvInit + StreamCipher>(key: &[u8], text: &[u8]) -> Result<Vec<u8>, Error> {
    let mut nonce = vec![0; C::iv_size()];
    rand::fill(&mut nonce[..]);
    let text = encrypted::<C>(key, &nonce, text)?;
    Ok([nonce, text].concat())
}

/// The text after a nonce.
fn opened<C: KeyIvInit + StreamCipher>(key: &[u8], bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let short = || Error::Wrong("shorter than a nonce".to_owned());
    let (nonce, text) = bytes.split_at_checked(C::iv_size()).ok_or_else(short)?;
    encrypted::<C>(key, nonce, text)
}

/// Both ways, as it is a stream cipher.
fn encrypted<C: KeyIvInit + StreamCipher>(
    key: &[u8],
    nonce: &[u8],
    text: &[u8],
) -> Result<Vec<u8>, Error> {
    let wrong = |_| Error::Wrong("a key or a nonce of another length".to_owned());
    let mut cipher = C::new_from_slices(key, nonce).map_err(wrong)?;
    let mut text = text.to_vec();
    cipher.apply_keystream(&mut text);
    Ok(text)
}

/// How a member encrypts when it dials, and takes what is encrypted so when it is dialled: the other end is bare TCP both times.
async fn cipher(peer: &mut Peer, key_file: &str) -> Result<Cipher, Error> {
    let wrong = |what: &str| Error::Wrong(what.to_owned());
    let key = key_file
        .lines()
        .last()
        .and_then(|key| hex::decode(key).ok());
    let key = key.ok_or_else(|| wrong("no key in hexadecimal digits"))?;

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let (port, nobody) = (
        listener.local_addr()?.port(),
        Keypair::generate_ed25519().public().to_peer_id(),
    );
    let address = Multiaddr::from(Ipv4Addr::LOCALHOST)
        .with(Protocol::Tcp(port))
        .with(Protocol::P2p(nobody));
    let says = async {
        let (mut tcp, _) = listener.accept().await?;
        // A nonce of ours, long enough for either: one that waits for it goes on.
        tcp.write_all(&rand::random::<[u8; 24]>()).await?;
        let mut said = vec![0; Salsa20::iv_size() + MULTISTREAM.len()];
        tcp.read_exact(&mut said).await?;
        if opened::<Salsa20>(&key, &said)? == MULTISTREAM {
            return Ok(Cipher::Salsa20);
        }
        let mut more = [0; 16];
        tcp.read_exact(&mut more).await?;
        said.extend(more);
        if opened::<XSalsa20>(&key, &said)? == MULTISTREAM {
            return Ok(Cipher::XSalsa20);
        }
        Err(wrong("neither cipher gives their first line"))
    };
    let (dialled, said) = tokio::join!(peer.dial(&address), within("their first line", says));
    let cipher = said?;
    if dialled.is_ok() {
        return Err(wrong("they connected to nobody"));
    }

    let at = peer.address()?;
    let port = at.iter().find_map(|part| match part {
        Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    let port = port.ok_or_else(|| wrong("they listen at no TCP port"))?;
    let answers = async {
        let mut tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let lines = [MULTISTREAM, NOISE].concat();
        let asked = match cipher {
            Cipher::XSalsa20 => sealed::<XSalsa20>(&key, &lines),
            Cipher::Salsa20 => sealed::<Salsa20>(&key, &lines),
        }?;
        tcp.write_all(&asked).await?;
        let mut answer = vec![0; asked.len()];
        tcp.read_exact(&mut answer).await?;
        let answer = match cipher {
            Cipher::XSalsa20 => opened::<XSalsa20>(&key, &answer),
            Cipher::Salsa20 => opened::<Salsa20>(&key, &answer),
        }?;
        same("their answer", &answer, &lines)
    };
    within("their answer", answers).await?;
    Ok(cipher)
}

async fn within<T>(what: &str, step: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    in_time(what, PATIENCE, step).await
}

async fn in_time<T>(
    what: &str,
    within: Duration,
    step: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(within, step).await.unwrap_or_else(|_| {
        Err(Error::Timeout {
            what: what.to_owned(),
            within,
        })
    })
}

async fn private_network(
    implementation: Implementation,
    transport: Transport,
    test: &'static str,
) -> Result<(), Error> {
    let column = format!("{} {}", implementation.name(), transport.name());
    let mut cells = Cells::new("Private networks", column, test);
    let scratch = tempfile::tempdir()?;
    let key_file = scratch.path().join("swarm.key");
    let key = swarm_key::generate().to_key_file();
    std::fs::write(&key_file, &key)?;
    let member = node(transport, Some(&key_file)).await?;
    let mut other_member = peer(implementation, transport, Some(key.clone())).await?;
    cells
        .works("they dial a member of ours, identify and ping it", async {
            other_member.dial(member.address()).await?;
            let us = other_member.identify(member.id()).await?;
            same("the agent", &us.agent.starts_with("anypath/"), &true)?;
            other_member.ping(member.id()).await.map(drop)
        })
        .await;
    cells
        .works("they get a block from us", async {
            let file = scratch.path().join("ours");
            std::fs::write(&file, "of ours, for members")?;
            let cid: Cid = member.run(&["add", text(&file)?]).await?.parse()?;
            same(
                "the block",
                &other_member.get(&cid).await?[..],
                b"of ours, for members",
            )
        })
        .await;
    // A new one, which we dial.
    let mut third_member = peer(implementation, transport, Some(key.clone())).await?;
    cells
        .works(
            "we dial a member of theirs and get a block from it",
            async {
                let data = b"of theirs, for members";
                let like = Cid::new_v1(RAW, Code::Sha2_256.digest(data));
                let cid = third_member.add(&like, data).await?;
                let (at, copy) = (third_member.address()?, scratch.path().join("copy"));
                get(&member, &cid, &at, &copy).await?;
                same("the block", &std::fs::read(&copy)?[..], data)?;
                third_member.ping(member.id()).await.map(drop)
            },
        )
        .await;

    let other_key = swarm_key::generate().to_key_file();
    let mut other_network = peer(implementation, transport, Some(other_key)).await?;
    let mut outsider = peer(implementation, transport, None).await?;
    let outside = node(transport, None).await?;
    let (another_key, no_key, no_key_of_ours) = tokio::join!(
        apart(&member, &mut other_network),
        apart(&member, &mut outsider),
        apart(&outside, &mut third_member),
    );
    for (name, result) in [
        ("with another key, neither reaches the other", another_key),
        (
            "without a key, they reach nobody, and nobody reaches them",
            no_key,
        ),
        (
            "without a key, we reach nobody, and nobody reaches us",
            no_key_of_ours,
        ),
    ] {
        cells.works(name, async { result }).await;
    }
    cells
        .works(AS_SPECIFIED, async {
            let encrypts = cipher(&mut other_member, &key).await?;
            same("the cipher", &encrypts, &Cipher::XSalsa20)
        })
        .await;
    // The address was right, and whoever may be there is there.
    cells
        .works("those that may connect still do", async {
            other_member.ping(member.id()).await?;
            third_member.ping(member.id()).await.map(drop)
        })
        .await;
    cells.finish()
}

/// py-libp2p's members meet each other alone, as a bare end that encrypts as they do proves; those without a key meet.
async fn with_py(transport: Transport, test: &'static str) -> Result<(), Error> {
    let column = format!("{} {}", Implementation::Py.name(), transport.name());
    let mut cells = Cells::new("Private networks", column, test);
    let scratch = tempfile::tempdir()?;
    let key_file = scratch.path().join("swarm.key");
    let key = swarm_key::generate().to_key_file();
    std::fs::write(&key_file, &key)?;
    let member = node(transport, Some(&key_file)).await?;
    let outside = node(transport, None).await?;
    let (theirs, outsider) = tokio::join!(
        peer(Implementation::Py, transport, Some(key.clone())),
        peer(Implementation::Py, transport, None),
    );
    let (mut theirs, mut outsider) = (theirs?, outsider?);
    let at = theirs.address()?.to_string();
    // What cannot connect takes its time.
    let ((they_dial, no_key_of_ours, encrypts), we_dial, no_key) = tokio::join!(
        async {
            let dialled = in_time("their dial", DEFECT_PATIENCE, async {
                theirs.dial(member.address()).await?;
                theirs.identify(member.id()).await?;
                theirs.ping(member.id()).await.map(drop)
            })
            .await;
            let apart = apart(&outside, &mut theirs).await;
            (dialled, apart, cipher(&mut theirs, &key).await)
        },
        in_time("our dial", DEFECT_PATIENCE, async {
            member.run(&["connect", &at]).await.map(drop)
        }),
        apart(&member, &mut outsider),
    );
    // Whatever they say, a bare end understands.
    let encrypts = encrypts?;
    cells
        .defect(AS_SPECIFIED, PY_CIPHER, async {
            same("the cipher", &encrypts, &Cipher::XSalsa20)
        })
        .await;
    for (name, result) in [
        (
            "they dial a member of ours, identify and ping it",
            they_dial,
        ),
        ("we dial a member of theirs", we_dial),
    ] {
        cells.defect(name, PY_CIPHER, async { result }).await;
    }
    cells.unsupported(
        "we dial a member of theirs and get a block from it",
        NO_BLOCKS,
    );
    for name in [
        "they get a block from us",
        "with another key, neither reaches the other",
    ] {
        cells.unsupported(name, NO_MEMBERS);
    }
    for (name, result) in [
        (
            "without a key, they reach nobody, and nobody reaches them",
            no_key,
        ),
        (
            "without a key, we reach nobody, and nobody reaches us",
            no_key_of_ours,
        ),
    ] {
        cells.works(name, async { result }).await;
    }
    cells
        .works("those that may connect still do", async {
            outsider.dial(outside.address()).await?;
            outsider.ping(outside.id()).await.map(drop)
        })
        .await;
    cells.finish()
}

async fn get(node: &Anypath, cid: &Cid, from: &Multiaddr, to: &Path) -> Result<(), Error> {
    let (cid, from) = (cid.to_string(), from.to_string());
    let arguments = ["get", &cid, "-o", text(to)?, "--peer", &from];
    node.run(&arguments).await.map(drop)
}

async fn with_kubo(transport: Transport, test: &'static str) -> Result<(), Error> {
    let column = format!("kubo {}", transport.name());
    let mut cells = Cells::new("Private networks", column, test);
    let scratch = tempfile::tempdir()?;
    let key_file = scratch.path().join("swarm.key");
    // The file that our command makes, and kubo's place for it.
    let key = swarm_key::generate().to_key_file();
    std::fs::write(&key_file, &key)?;
    let member = node(transport, Some(&key_file)).await?;
    let outside = node(transport, None).await?;
    let settings = KuboSettings {
        swarm_key: Some(&key),
        ..KuboSettings::default()
    };
    let kubo = Kubo::start_with(transport, settings).await?;
    let at = member.address().to_string();
    cells
        .works("they get a file from us", async {
            let (file, copy) = (
                scratch.path().join("ours"),
                scratch.path().join("kubo's copy"),
            );
            std::fs::write(&file, vec![1; 1_000_000])?;
            let cid = member.run(&["add", text(&file)?]).await?;
            kubo.run(&["swarm", "connect", &at]).await?;
            kubo.run(&["get", "-o", text(&copy)?, &cid]).await?;
            same("the file", &std::fs::read(&copy)?, &std::fs::read(&file)?)
        })
        .await;
    cells
        .works("we get a file from them", async {
            let (file, copy) = (
                scratch.path().join("theirs"),
                scratch.path().join("our copy"),
            );
            std::fs::write(&file, vec![2; 1_000_000])?;
            let cid = kubo
                .run(&["add", "-Q", "--cid-version=1", text(&file)?])
                .await?;
            get(&member, &cid.parse()?, kubo.address(), &copy).await?;
            same("the file", &std::fs::read(&copy)?, &std::fs::read(&file)?)
        })
        .await;
    cells
        .works(
            "without a key, we reach nobody, and nobody reaches us",
            async {
                let (to_kubo, to_us) = (kubo.address().to_string(), outside.address().to_string());
                let ours = ["connect", to_kubo.as_str()];
                let theirs = ["swarm", "connect", to_us.as_str()];
                let connected = tokio::join!(outside.run(&ours), kubo.run(&theirs));
                match connected {
                    (Err(Error::Peer(_)), Err(Error::Peer(_))) => Ok(()),
                    other => Err(Error::Wrong(format!("{other:?}"))),
                }
            },
        )
        .await;
    cells.finish()
}

/// Side by side, as both wait for our node's timeouts most of the time.
#[tokio::test]
async fn only_members_meet_with_go_and_none_with_py_over_tcp() -> Result<(), Error> {
    let (go, py) = tokio::join!(
        private_network(Implementation::Go, Transport::Tcp, "private-go-tcp"),
        with_py(Transport::Tcp, "private-py-tcp"),
    );
    go.and(py)
}

#[tokio::test]
async fn only_members_meet_with_js_over_tcp() -> Result<(), Error> {
    private_network(Implementation::Js, Transport::Tcp, "private-js-tcp").await
}

#[tokio::test]
async fn kubo_and_we_are_members_of_one_network() -> Result<(), Error> {
    with_kubo(Transport::Tcp, "private-kubo-tcp").await
}
