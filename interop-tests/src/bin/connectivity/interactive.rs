//! Nodes for people: one that takes commands, one that waits.

use crate::host::{Host, ping, quiet};
use anypath::config::ConfigBuilder;
use anypath::files::{self, AddOptions, GetOptions};
use anypath::{BoxError, Event, Node, Path, SessionOptions};
use blocking::Unblock;
use futures::io::BufReader;
use futures::{AsyncBufReadExt as _, StreamExt as _};

const HELP: &str = "\
connect ADDRESS   connects to the peer at a multiaddr, as others print theirs
ping PEER         a round trip to it
peers             who is connected, and how
add PATH          adds a file, prints its CID
get CID PATH      gets a file from whoever is connected
quit              ends";

/// Prints who and where it is, and waits.
pub(crate) async fn listen(port: u16) -> Result<(), BoxError> {
    let listen = [
        format!("/ip4/0.0.0.0/tcp/{port}"),
        format!("/ip4/0.0.0.0/udp/{port}/quic-v1"),
    ];
    let host = start(quiet(), &listen).await?;
    println!("waiting for others; Ctrl-C ends it");
    tokio::select! {
        () = tell(&host.node) => {}
        ended = tokio::signal::ctrl_c() => ended?,
    }
    host.node.shutdown().await;
    Ok(())
}

/// Prints who and where it is, and does what is typed until `quit` or the end of it. Neighbours are found by mDNS.
pub(crate) async fn take_commands() -> Result<(), BoxError> {
    let config = quiet().enable_mdns(true).enable_pubsub_discovery(true);
    let listen = ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"];
    let host = start(config, &listen).await?;
    println!("{HELP}");
    let commands = async {
        let mut lines = BufReader::new(Unblock::new(std::io::stdin())).lines();
        while let Some(line) = lines.next().await {
            let line = line?;
            if line.trim() == "quit" {
                break;
            }
            match obey(&host.node, &line).await {
                Ok(answer) => println!("{answer}"),
                Err(error) => println!("{}: {error}", line.trim()),
            }
        }
        Ok(())
    };
    let ended: std::io::Result<()> = tokio::select! {
        () = tell(&host.node) => Ok(()),
        ended = commands => ended,
        ended = tokio::signal::ctrl_c() => ended,
    };
    host.node.shutdown().await;
    Ok(ended?)
}

async fn start(config: ConfigBuilder, listen: &[impl AsRef<str>]) -> Result<Host, BoxError> {
    let listen = listen.iter().map(|address| address.as_ref().parse());
    let host = Host::start(config.listen_addrs(listen.collect::<Result<_, _>>()?)).await?;
    println!("peer id {}", host.node.peer_id());
    for address in host.addresses() {
        println!("listening on {address}");
    }
    Ok(host)
}

async fn obey(node: &Node, line: &str) -> Result<String, BoxError> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        [] => Ok(String::new()),
        ["help"] => Ok(HELP.to_owned()),
        ["connect", address] => {
            let peer = node.connect(address.parse()?).await?;
            Ok(format!("connected to {peer}"))
        }
        ["ping", peer] => {
            let peer = peer.parse().map_err(|_| format!("{peer} is no peer id"))?;
            Ok(format!(
                "{peer} answered after {:.1?}",
                ping(node, peer).await?
            ))
        }
        ["peers"] => {
            let peers = node.peers().await?;
            let mut lines = vec![format!("{} connected", peers.len())];
            for peer in peers {
                for connection in peer.connections {
                    let agent = peer.agent.as_deref().unwrap_or("?");
                    lines.push(format!("{} {} {agent:?}", peer.peer_id, connection.address));
                }
            }
            Ok(lines.join("\n"))
        }
        ["add", path] => {
            let file = blocking::unblock({
                let path = path.to_owned();
                move || std::fs::File::open(path)
            });
            let file = Unblock::new(file.await?);
            let added = files::add(node.store(), file, AddOptions::default()).await?;
            Ok(format!("added {} ({} bytes)", added.cid, added.bytes))
        }
        ["get", cid, path] => {
            let session = node.session(SessionOptions::default());
            let fetched = files::get(&session, cid.parse()?, path.as_ref(), GetOptions::default());
            let fetched = fetched.await?;
            Ok(format!("got {} bytes in {path}", fetched.bytes))
        }
        _ => Err("not a command; `help` tells which there are, and what they take".into()),
    }
}

/// Tells who comes and goes, until the node stops.
async fn tell(node: &Node) {
    let mut events = node.events();
    while let Some(event) = events.next().await {
        match event {
            Event::PathChanged { peer, path } => match path {
                Some(Path::Direct) => println!("{peer} is connected"),
                Some(Path::Relayed) => println!("{peer} is connected through a relay"),
                None => println!("{peer} is gone"),
            },
            Event::Discovered { peer, .. } => println!("{peer} was found"),
            _ => {}
        }
    }
}
