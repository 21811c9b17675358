//! A peer of [libp2p's universal-connectivity app](https://github.com/libp2p/universal-connectivity), with all that the app has: the chat
//! topic, files served and fetched, direct messages, the browsers' discovery topic, and a relay for its browsers.
//!
//! `cargo run --example universal_connectivity -- [MULTIADDR]…` connects to the peers named and enters the room. What is typed is said to
//! all; `/file PATH` offers a file, `/dm PEER TEXT` tells one peer alone, `/peers` lists who is connected, `/quit` leaves.
//!
//! The node is configured by `ANYPATH_…` variables as the command is: without any it is on the public network. For browsers on this
//! machine: `ANYPATH_ENABLE_RELAY_SERVER=true ANYPATH_WS_PORT=9095`; for those elsewhere a web server with a certificate before it.
//! Identity and downloads are in `universal-connectivity/` here, or in `ANYPATH_DATA_DIR`.
//!
//! rust-peer dials no other agent than its own by itself: name this peer's address to it (`--connect`), or its address to this one.

mod app;
mod wire;

use std::{fs, io, path::PathBuf};

use anypath::{
    BoxError, Node,
    config::{self, Sources},
    data_dir::DataDir,
    identity, tiered_store,
};
use futures::{AsyncBufReadExt as _, StreamExt as _};

use self::app::{App, Event, Room};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let directory = std::env::var_os("ANYPATH_DATA_DIR");
    let directory = directory.map_or_else(|| PathBuf::from("universal-connectivity"), Into::into);
    let data = DataDir::open(directory)?;
    let config = config::load(&Sources {
        environment: std::env::vars().collect(),
        ..Sources::default()
    })?;
    let store = tiered_store::Config::new(data.store());
    let store = tiered_store::Store::open(store).await?;
    let keypair = identity::load_or_create(&data.identity_file())?;
    #[expect(
        clippy::disallowed_methods,
        reason = "this program chooses its runtime"
    )]
    let executor = |task| drop(tokio::spawn(task));
    let node = Node::start(config, keypair, store.clone(), executor).await?;
    for address in node.listen_addrs() {
        println!("listening on {address}/p2p/{}", node.peer_id());
    }
    for address in std::env::args().skip(1) {
        match node.connect(address.parse()?).await {
            Ok(peer) => println!("connected to {peer}"),
            Err(error) => eprintln!("{error}"),
        }
    }
    let downloads = data.path().join("downloads");
    fs::create_dir_all(&downloads)?;
    let app = App::join(node.clone(), downloads).await?;
    let room = app.room();
    tokio::select! {
        () = app.run(show) => {}
        () = show_found(&node) => {}
        ended = read_commands(&node, &room) => ended?,
        _ = tokio::signal::ctrl_c() => {}
    }
    node.shutdown().await;
    store.close().await?;
    Ok(())
}

async fn read_commands(node: &Node, room: &Room) -> io::Result<()> {
    let input = futures::io::BufReader::new(blocking::Unblock::new(io::stdin()));
    let mut lines = input.lines();
    while let Some(line) = lines.next().await {
        let line = line?;
        let (command, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let done: Result<(), BoxError> = match command {
            "/quit" => return Ok(()),
            "/peers" => node.peers().await.map_err(Into::into).map(|peers| {
                for peer in peers {
                    println!("{}", peer.peer_id);
                }
            }),
            "/file" => {
                let offered = room.offer(rest.into()).await;
                offered.map(|id| println!("offered as {id}"))
            }
            "/dm" => match rest
                .split_once(' ')
                .map(|(peer, text)| (peer.parse(), text))
            {
                Some((Ok(peer), text)) => {
                    let sent = room.send(peer, text).await;
                    sent.map(|()| println!("{peer} has it"))
                }
                _ => Err("/dm PEER TEXT".into()),
            },
            _ if line.is_empty() => Ok(()),
            _ => room.say(&line).await,
        };
        if let Err(error) = done {
            eprintln!("{error}");
        }
    }
    Ok(())
}

/// Tells who announces itself, browsers too.
async fn show_found(node: &Node) {
    let mut events = node.events();
    while let Some(event) = events.next().await {
        if let anypath::Event::Discovered {
            peer, addresses, ..
        } = event
        {
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            println!("found {peer} at {}", plain(&addresses.join(", ")));
        }
    }
}

/// No escape sequences of strangers on a terminal.
fn plain(text: &str) -> String {
    text.replace(|c: char| c.is_control(), "\u{fffd}")
}

fn show(event: Event) {
    match event {
        Event::Chat { from, text } => println!("{from}: {}", plain(&text)),
        Event::Direct { from, text } => println!("{from} (to you alone): {}", plain(&text)),
        Event::File {
            from,
            id,
            path,
            bytes,
        } => {
            let (id, path) = (plain(&id), path.display());
            println!("{from} offered {id}: {bytes} bytes in {path}");
        }
        Event::NoFile { from, id, reason } => {
            println!("{from} offered {}, but {}", plain(&id), plain(&reason));
        }
    }
}
