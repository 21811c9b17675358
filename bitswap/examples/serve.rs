//! Serves the files of a directory to every peer that speaks bitswap. Each file is a UnixFS file: raw leaves
//! of 256 KiB, which are read from the disk when somebody wants them, below one node of links.
//!
//! `cargo run --release -p anypath-bitswap --example serve -- DIRECTORY [/ip4/0.0.0.0/tcp/4001]`
//!
//! Prints the address, and the CID of each file; `--example fetch` gets one.

mod node;

use std::{
    collections::HashMap,
    error::Error,
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use anypath_bitswap::{Behaviour, Block, BlockSource, BoxError, Config, MemorySource};
use bytes::Bytes;
use cid::Cid;
use futures::{
    StreamExt,
    future::{BoxFuture, FutureExt},
};
use libp2p_core::multiaddr::Protocol;
use libp2p_swarm::SwarmEvent;
use multihash_codetable::{Code, MultihashDigest};

/// The usual UnixFS chunk.
const LEAF_BYTES: usize = 256 * 1024;
const DAG_PB: u64 = 0x70;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("usage: serve DIRECTORY [ADDRESS]")?;
    let address = arguments.next().unwrap_or("/ip4/0.0.0.0/tcp/0".into());

    let mut files = Files::default();
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    for path in paths {
        println!("{} {}", files.add(&path)?, path.display());
    }

    let bitswap = Behaviour::new(Config::default(), Arc::new(files));
    let mut swarm = node::swarm(bitswap)?;
    swarm.listen_on(address.parse()?)?;
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            println!("{}", address.with(Protocol::P2p(*swarm.local_peer_id())));
        }
    }
}

/// Where a leaf lies.
#[derive(Clone)]
struct Leaf {
    path: Arc<Path>,
    offset: u64,
    bytes: u32,
}

/// The files of a directory as blocks.
#[derive(Default)]
struct Files {
    /// By multihash: a CIDv0 and a CIDv1 of one hash are the same data.
    leaves: HashMap<Vec<u8>, Leaf>,
    roots: MemorySource,
}

impl Files {
    fn add(&mut self, path: &Path) -> Result<Cid, Box<dyn Error>> {
        let path: Arc<Path> = path.into();
        let mut file = BufReader::new(File::open(&path)?);
        let (mut offset, mut leaves) = (0, Vec::new());
        loop {
            let mut data = Vec::new();
            file.by_ref()
                .take(LEAF_BYTES as u64)
                .read_to_end(&mut data)?;
            if data.is_empty() && !leaves.is_empty() {
                break;
            }
            let bytes = u32::try_from(data.len())?;
            let block = Block::raw(data);
            let leaf = Leaf {
                path: Arc::clone(&path),
                offset,
                bytes,
            };
            leaves.push((*block.cid(), u64::from(bytes)));
            self.leaves.insert(block.cid().hash().to_bytes(), leaf);
            offset += u64::from(bytes);
            if bytes == 0 {
                break;
            }
        }
        let root = file_node(&leaves)?;
        let cid = *root.cid();
        self.roots.insert(root);
        Ok(cid)
    }
}

impl BlockSource for Files {
    fn get(&self, cid: &Cid) -> BoxFuture<'static, Result<Option<Bytes>, BoxError>> {
        let Some(leaf) = self.leaves.get(&cid.hash().to_bytes()).cloned() else {
            return self.roots.get(cid);
        };
        async move {
            let read = tokio::task::spawn_blocking(move || {
                let mut file = File::open(&leaf.path)?;
                file.seek(SeekFrom::Start(leaf.offset))?;
                let mut data = vec![0; leaf.bytes as usize];
                file.read_exact(&mut data)?;
                Ok::<_, std::io::Error>(Bytes::from(data))
            });
            let data = read.await??;
            Ok(Some(data))
        }
        .boxed()
    }

    fn size(&self, cid: &Cid) -> Option<u32> {
        match self.leaves.get(&cid.hash().to_bytes()) {
            Some(leaf) => Some(leaf.bytes),
            None => self.roots.size(cid),
        }
    }
}

/// A UnixFS file node over its leaves.
fn file_node(leaves: &[(Cid, u64)]) -> Result<Block, Box<dyn Error>> {
    let mut node = Vec::new();
    // PBNode.Links: Hash, Name, Tsize.
    for (cid, bytes) in leaves {
        let mut link = Vec::new();
        field(&mut link, 1, &cid.to_bytes());
        field(&mut link, 2, &[]);
        number(&mut link, 3, *bytes);
        field(&mut node, 2, &link);
    }
    // PBNode.Data: UnixFS of type File, its size, and those of the leaves.
    let mut unixfs = Vec::new();
    number(&mut unixfs, 1, 2);
    number(&mut unixfs, 3, leaves.iter().map(|(_, bytes)| bytes).sum());
    for (_, bytes) in leaves {
        number(&mut unixfs, 4, *bytes);
    }
    field(&mut node, 1, &unixfs);
    let cid = Cid::new_v1(DAG_PB, Code::Sha2_256.digest(&node));
    Ok(Block::new(cid, node.into())?)
}

fn field(to: &mut Vec<u8>, tag: u64, value: &[u8]) {
    varint(to, tag << 3 | 2);
    varint(to, value.len() as u64);
    to.extend(value);
}

fn number(to: &mut Vec<u8>, tag: u64, value: u64) {
    varint(to, tag << 3);
    varint(to, value);
}

fn varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}
