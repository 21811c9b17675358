//! What `compare` asks of foreign peers: the blocks that its own endpoints make, and a relay without limits.
#![cfg(feature = "foreign")]

use anypath_interop_tests::compare::blocks;
use anypath_interop_tests::compare::endpoint::Endpoint;
use anypath_interop_tests::peers::{
    Error, Fetched, Implementation, Peer, RelayLimits, Settings, Transport,
};
use std::path::Path;

async fn carries_the_blocks_of_a_measurement(implementation: Implementation) -> Result<(), Error> {
    // An odd size shows how the last word is cut.
    let (count, block_bytes) = (5, (256 << 10) - 3);
    let wanted: Vec<_> = blocks::all(count, block_bytes)
        .map(|(cid, _)| cid)
        .collect();
    let settings = Settings {
        listen: vec![Transport::Tcp.loopback()],
        ..Settings::default()
    };
    let mut seed = Peer::start(implementation, &settings).await?;
    seed.generate(count, block_bytes).await?;
    let mut leech = Peer::start(implementation, &Settings::default()).await?;
    let dialled = leech.dial(&seed.address()?).await?;
    leech.identify(dialled).await?;
    let Fetched { bytes, nanoseconds } = leech.fetch(&wanted).await?;
    assert_eq!(bytes, count * block_bytes as u64);
    assert!(nanoseconds > 0);
    Ok(())
}

#[tokio::test]
async fn helia_serves_and_fetches_the_blocks_of_a_measurement() -> Result<(), Error> {
    carries_the_blocks_of_a_measurement(Implementation::Js).await
}

#[tokio::test]
async fn boxo_serves_and_fetches_the_blocks_of_a_measurement() -> Result<(), Error> {
    carries_the_blocks_of_a_measurement(Implementation::Go).await
}

/// js-libp2p fills a window of several megabytes with one frame of Yamux, at which libp2p-yamux ends the connection.
#[tokio::test]
async fn our_leech_takes_megabytes_from_helia_over_tcp() -> Result<(), Error> {
    let (count, block_bytes) = (128, 256 << 10);
    let settings = Settings {
        listen: vec![Transport::Tcp.loopback()],
        ..Settings::default()
    };
    let mut seed = Peer::start(Implementation::Js, &settings).await?;
    seed.generate(count, block_bytes).await?;
    let what = [
        count.to_string(),
        "32".to_owned(),
        seed.address()?.to_string(),
    ];
    let command = ["endpoint", "bitswap", "ours", "leech", "tcp", "262144"];
    let arguments = command.into_iter().map(str::to_owned).chain(what);
    let program = Path::new(env!("CARGO_BIN_EXE_compare"));
    let mut leech = Endpoint::start(Some(program), arguments)?;
    let [bytes, _] = leech.numbers("done").await?;
    assert_eq!(bytes, count * block_bytes as u64);
    Ok(())
}

#[tokio::test]
async fn the_relay_of_go_libp2p_lets_a_measurement_do_what_it_likes() -> Result<(), Error> {
    let settings = Settings {
        listen: vec![Transport::Tcp.loopback()],
        relay: Some(RelayLimits::NONE),
        ..Settings::default()
    };
    let relay = Peer::start(Implementation::Go, &settings).await?;
    // More than it takes from one host by default.
    let mut clients = Vec::new();
    for _ in 0..9 {
        let mut client = Peer::start(Implementation::Go, &Settings::default()).await?;
        let reservation = client.reserve(&relay.address()?).await?;
        assert_eq!((reservation.limit_seconds, reservation.limit_bytes), (0, 0));
        clients.push(client);
    }
    assert!(relay.cpu_seconds()? > 0.0);
    Ok(())
}
