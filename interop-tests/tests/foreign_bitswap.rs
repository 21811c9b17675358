//! Blocks go both ways between our bitswap and those of others: every size, codec, hash function and protocol version.
#![cfg(feature = "foreign")]

use anypath_bitswap::Block;
use anypath_interop_tests::peers::{
    Cells, Error, Implementation, Node, NodeSettings, Peer, Settings, Transport,
};
use bytes::Bytes;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest as _};
use rand::{Rng as _, SeedableRng as _};

const RAW: u64 = 0x55;
const DAG_PB: u64 = 0x70;
const DAG_CBOR: u64 = 0x71;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

struct Case {
    name: String,
    block: Block,
}

/// Bytes that no two cases share.
fn random(bytes: usize, seed: u64) -> Vec<u8> {
    let mut data = vec![0; bytes];
    rand::rngs::SmallRng::seed_from_u64(seed).fill_bytes(&mut data);
    data
}

/// A field of a protobuf message, or a CBOR byte string: 1 KiB of data with its head.
fn with_head(head: &[u8], seed: u64) -> Vec<u8> {
    [head, &random(KIB, seed)].concat()
}

/// `salt` tells the blocks of one direction from those of the other.
fn cases(salt: u64) -> Result<Vec<Case>, Error> {
    let mut cases = Vec::new();
    let mut case = |name: &str, cid: Cid, data: Vec<u8>| {
        cases.push(Case {
            name: name.to_owned(),
            block: Block::new(cid, Bytes::from(data))?,
        });
        Ok::<_, Error>(())
    };
    for (name, bytes) in [
        ("0 B", 0),
        ("1 B", 1),
        ("1 KiB - 1", KIB - 1),
        ("1 KiB", KIB),
        ("1 KiB + 1", KIB + 1),
        ("256 KiB", 256 * KIB),
        ("1 MiB", MIB),
        ("2 MiB", 2 * MIB),
    ] {
        let data = random(bytes, salt + bytes as u64);
        case(name, Cid::new_v1(RAW, Code::Sha2_256.digest(&data)), data)?;
    }
    // PBNode.Data; a byte string of 1,024.
    let dag_pb = with_head(&[0x0a, 0x80, 0x08], salt + 1);
    case(
        "CIDv0",
        Cid::new_v0(Code::Sha2_256.digest(&dag_pb))?,
        dag_pb,
    )?;
    let dag_pb = with_head(&[0x0a, 0x80, 0x08], salt + 2);
    case(
        "dag-pb",
        Cid::new_v1(DAG_PB, Code::Sha2_256.digest(&dag_pb)),
        dag_pb,
    )?;
    let dag_cbor = with_head(&[0x59, 0x04, 0x00], salt + 3);
    case(
        "dag-cbor",
        Cid::new_v1(DAG_CBOR, Code::Sha2_256.digest(&dag_cbor)),
        dag_cbor,
    )?;
    for (name, code) in [
        ("sha2-512", Code::Sha2_512),
        ("blake2b-256", Code::Blake2b256),
        ("blake3", Code::Blake3_256),
        ("sha3-256", Code::Sha3_256),
    ] {
        let data = random(4 * KIB, salt + u64::from(code));
        case(name, Cid::new_v1(RAW, code.digest(&data)), data)?;
    }
    Ok(cases)
}

/// Why a case does not work.
enum Why {
    /// The peer's; tried.
    Defect(&'static str),
    /// The peer has it not.
    Unsupported(&'static str),
}

/// Tries a case as it has to end.
async fn attempt(
    cells: &mut Cells,
    cell: &str,
    exception: Option<Why>,
    got: impl Future<Output = Result<(), Error>>,
) {
    match exception {
        None => cells.works(cell, got).await,
        Some(Why::Defect(defect)) => cells.defect(cell, defect, got).await,
        Some(Why::Unsupported(why)) => cells.unsupported(cell, why),
    }
}

/// Of the case that is named; none where all has to work.
type Exceptions = fn(&str) -> Option<Why>;

fn none(_: &str) -> Option<Why> {
    None
}

/// Both directions over one connection, which we dialled.
async fn exchange(
    implementation: Implementation,
    transport: Transport,
    test: &'static str,
    they_serve: Exceptions,
    they_get: Exceptions,
) -> Result<(), Error> {
    let column = format!("{} {}", implementation.name(), transport.name());
    let mut cells = Cells::new("Bitswap", column, test);
    let mut peer = Peer::start(
        implementation,
        &Settings {
            listen: vec![transport.loopback()],
            ..Settings::default()
        },
    )
    .await?;
    let mut node = Node::start(transport, NodeSettings::default()).await?;
    node.dial(peer.address()?).await?;
    match (implementation, transport) {
        // It loses what identify answers, by chance (foreign_identify), and asks without.
        (Implementation::Py, Transport::Quic) => peer.ping(node.id()).await.map(drop)?,
        _ => peer.identify(node.id()).await.map(drop)?,
    }

    for Case { name, block } in cases(1 << 32)? {
        let cell = format!("we get from them: {name}");
        let got = they_serve_one(&mut node, &mut peer, &block);
        attempt(&mut cells, &cell, they_serve(&name), got).await;
    }
    for Case { name, block } in cases(2 << 32)? {
        let cell = format!("they get from us: {name}");
        let got = we_serve_one(&node, &mut peer, block);
        attempt(&mut cells, &cell, they_get(&name), got).await;
    }
    cells.finish()
}

async fn they_serve_one(node: &mut Node, peer: &mut Peer, block: &Block) -> Result<(), Error> {
    let theirs = peer.add(block.cid(), block.data()).await?;
    same("the CID", &theirs, block.cid())?;
    let data = node.get(theirs, peer.id()).await?;
    same("the data", &data, block.data())
}

async fn we_serve_one(node: &Node, peer: &mut Peer, block: Block) -> Result<(), Error> {
    let (cid, data) = (*block.cid(), block.data().clone());
    node.add(block).await?;
    let got = peer.get(&cid).await?;
    same("the data", &got, &data)
}

fn same<T: PartialEq>(what: &str, left: &T, right: &T) -> Result<(), Error> {
    if left == right {
        Ok(())
    } else {
        Err(Error::Wrong(format!("{what} is another one")))
    }
}

fn go_serves(name: &str) -> Option<Why> {
    (name == "0 B").then_some(Why::Defect(
        "boxo's server takes a block of size 0 for one that it has not (`getBlockSizes` of its decision engine skips it)",
    ))
}

fn py_serves(name: &str) -> Option<Why> {
    Some(match name {
        "1 KiB" => Why::Defect(
            "py-libp2p answers on the stream that brought the want (`_send_wantlist_responses_inline`); a server sends blocks on a stream of its own (bitswap 1.0.0, interaction pattern)",
        ),
        _ => Why::Unsupported("py-libp2p answers as it does for 1 KiB"),
    })
}

/// As over TCP, whose test waits for the blocks that do not come.
fn py_serves_over_quic(_: &str) -> Option<Why> {
    Some(Why::Unsupported(
        "py-libp2p answers as it does over TCP, on the stream that brought the want",
    ))
}

fn py_gets(name: &str) -> Option<Why> {
    matches!(name, "blake2b-256" | "blake3" | "sha3-256").then_some(Why::Unsupported(
        "py-libp2p verifies SHA2-256 and SHA2-512 only (py-cid)",
    ))
}

#[tokio::test]
async fn blocks_go_both_ways_with_go_over_tcp() -> Result<(), Error> {
    exchange(
        Implementation::Go,
        Transport::Tcp,
        "bitswap-go-tcp",
        go_serves,
        none,
    )
    .await
}

#[tokio::test]
async fn blocks_go_both_ways_with_go_over_quic() -> Result<(), Error> {
    exchange(
        Implementation::Go,
        Transport::Quic,
        "bitswap-go-quic",
        go_serves,
        none,
    )
    .await
}

/// boxo with one protocol version, and blocks of both shapes that the old versions can carry.
#[tokio::test]
async fn blocks_go_both_ways_with_every_version_that_go_speaks() -> Result<(), Error> {
    let mut cells = Cells::new("Bitswap", "go tcp", "bitswap-go-versions");
    for (index, version) in [
        "/ipfs/bitswap/1.2.0",
        "/ipfs/bitswap/1.1.0",
        "/ipfs/bitswap/1.0.0",
        "/ipfs/bitswap",
    ]
    .into_iter()
    .enumerate()
    {
        let mut peer = Peer::start(
            Implementation::Go,
            &Settings {
                listen: vec![Transport::Tcp.loopback()],
                bitswap: vec![version],
                ..Settings::default()
            },
        )
        .await?;
        let mut node = Node::start(Transport::Tcp, NodeSettings::default()).await?;
        // They dial.
        peer.dial(node.address()).await?;
        node.dialled_by(peer.id()).await?;
        let salt = index as u64 + 10;
        let data = random(256 * KIB, salt);
        // The oldest versions carry no CIDs with their blocks: SHA2-256 is all that they know.
        let theirs = Block::new(
            Cid::new_v0(Code::Sha2_256.digest(&data))?,
            Bytes::from(data),
        )?;
        let data = random(256 * KIB, salt + 100);
        let ours = Block::new(
            Cid::new_v0(Code::Sha2_256.digest(&data))?,
            Bytes::from(data),
        )?;
        let got = they_serve_one(&mut node, &mut peer, &theirs);
        cells
            .works(&format!("we get from them with {version} alone"), got)
            .await;
        let got = we_serve_one(&node, &mut peer, ours);
        cells
            .works(&format!("they get from us with {version} alone"), got)
            .await;
    }
    cells.finish()
}

#[tokio::test]
async fn blocks_go_both_ways_with_js_over_tcp() -> Result<(), Error> {
    exchange(
        Implementation::Js,
        Transport::Tcp,
        "bitswap-js-tcp",
        none,
        none,
    )
    .await
}

#[tokio::test]
async fn blocks_go_both_ways_with_js_over_quic() -> Result<(), Error> {
    exchange(
        Implementation::Js,
        Transport::Quic,
        "bitswap-js-quic",
        none,
        none,
    )
    .await
}

#[tokio::test]
async fn blocks_go_both_ways_with_go_over_websocket() -> Result<(), Error> {
    exchange(
        Implementation::Go,
        Transport::WebSocket,
        "bitswap-go-ws",
        go_serves,
        none,
    )
    .await
}

#[tokio::test]
async fn blocks_go_both_ways_with_js_over_websocket() -> Result<(), Error> {
    exchange(
        Implementation::Js,
        Transport::WebSocket,
        "bitswap-js-ws",
        none,
        none,
    )
    .await
}

#[tokio::test]
async fn blocks_go_both_ways_with_go_over_webrtc() -> Result<(), Error> {
    exchange(
        Implementation::Go,
        Transport::WebRtc,
        "bitswap-go-webrtc",
        go_serves,
        none,
    )
    .await
}

#[tokio::test]
async fn blocks_go_both_ways_with_js_over_webrtc() -> Result<(), Error> {
    exchange(
        Implementation::Js,
        Transport::WebRtc,
        "bitswap-js-webrtc",
        none,
        none,
    )
    .await
}

#[tokio::test]
async fn blocks_go_both_ways_with_py_over_tcp() -> Result<(), Error> {
    exchange(
        Implementation::Py,
        Transport::Tcp,
        "bitswap-py-tcp",
        py_serves,
        py_gets,
    )
    .await
}

#[tokio::test]
async fn blocks_go_both_ways_with_py_over_websocket() -> Result<(), Error> {
    exchange(
        Implementation::Py,
        Transport::WebSocket,
        "bitswap-py-ws",
        py_serves,
        py_gets,
    )
    .await
}

#[tokio::test]
async fn blocks_go_both_ways_with_py_over_quic() -> Result<(), Error> {
    exchange(
        Implementation::Py,
        Transport::Quic,
        "bitswap-py-quic",
        py_serves_over_quic,
        py_gets,
    )
    .await
}
