//! Private networks (PSK v1): members of all implementations meet, and nobody else gets in.
#![cfg(feature = "foreign")]

use anypath::swarm_key;
use anypath_interop_tests::peers::{
    Anypath, Cells, Error, Implementation, Kubo, KuboSettings, Peer, Settings, Transport,
};
use cid::Cid;
use libp2p::Multiaddr;
use multihash_codetable::{Code, MultihashDigest as _};
use std::path::Path;

const RAW: u64 = 0x55;

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
    let mut third_member = peer(implementation, transport, Some(key)).await?;
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
    // The address was right, and whoever may be there is there.
    cells
        .works("those that may connect still do", async {
            other_member.ping(member.id()).await?;
            third_member.ping(member.id()).await.map(drop)
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

#[tokio::test]
async fn only_members_meet_with_go_over_tcp() -> Result<(), Error> {
    private_network(Implementation::Go, Transport::Tcp, "private-go-tcp").await
}

#[tokio::test]
async fn only_members_meet_with_js_over_tcp() -> Result<(), Error> {
    private_network(Implementation::Js, Transport::Tcp, "private-js-tcp").await
}

#[tokio::test]
async fn kubo_and_we_are_members_of_one_network() -> Result<(), Error> {
    with_kubo(Transport::Tcp, "private-kubo-tcp").await
}
