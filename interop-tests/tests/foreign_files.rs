//! Files with a real kubo daemon: the same CIDs, and each side gets what the other one has.
#![cfg(feature = "foreign")]

use anypath_interop_tests::peers::{Anypath, Cells, Error, Kubo, Transport};
use rand::{Rng as _, SeedableRng as _};
use std::fs::File;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};

/// A chunk of `ipfs add --cid-version=1`, and how many a node of the tree links to.
const CHUNK: u64 = 256 << 10;
const LINKS: u64 = 174;

/// Every way in which a file can end at the edge of a chunk or of a node of its tree.
const CORPUS: [(&str, u64); 10] = [
    ("empty", 0),
    ("1 B", 1),
    ("1 KiB", 1 << 10),
    ("a chunk - 1 B", CHUNK - 1),
    ("a chunk", CHUNK),
    ("a chunk + 1 B", CHUNK + 1),
    ("2 chunks", 2 * CHUNK),
    ("a full node", LINKS * CHUNK),
    ("a full node + 1 B", LINKS * CHUNK + 1),
    ("100 MB", 100_000_000),
];

/// A file of bytes that depend on its size, `salt` and nothing else.
fn file(directory: &Path, bytes: u64, salt: u64) -> Result<PathBuf, Error> {
    let path = directory.join(format!("{salt}-{bytes}"));
    let mut file = File::create(&path)?;
    let mut random = rand::rngs::SmallRng::seed_from_u64(bytes.wrapping_mul(2) + salt);
    let mut piece = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        random.fill_bytes(&mut piece);
        let now = left.min(piece.len() as u64);
        std::io::copy(&mut piece.as_slice().take(now), &mut file)?;
        left -= now;
    }
    file.flush()?;
    Ok(path)
}

fn same(one: &Path, other: &Path) -> Result<(), Error> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        right.clear();
        Read::by_ref(&mut one)
            .take(1 << 20)
            .read_to_end(&mut left)?;
        Read::by_ref(&mut other)
            .take(1 << 20)
            .read_to_end(&mut right)?;
        if left != right {
            return Err(Error::Wrong("the file is another one".to_owned()));
        }
        if left.is_empty() {
            return Ok(());
        }
    }
}

fn text(path: &Path) -> Result<&str, Error> {
    let wrong = || Error::Wrong(format!("{} is no UTF-8", path.display()));
    path.to_str().ok_or_else(wrong)
}

async fn files(transport: Transport, test: &'static str) -> Result<(), Error> {
    let mut cells = Cells::new("Files", format!("kubo {}", transport.name()), test);
    let kubo = Kubo::start(transport).await?;
    let node = Anypath::start(transport).await?;
    let at = node.address().to_string();
    let scratch = tempfile::tempdir()?;

    for (name, bytes) in CORPUS {
        let source = file(scratch.path(), bytes, 0)?;
        let copy = scratch.path().join("copy");
        cells
            .works(
                &format!("{name}: the same CID, kubo gets it from us"),
                async {
                    let ours = node.run(&["add", text(&source)?]).await?;
                    let only_hash = ["add", "-Q", "--cid-version=1", "--only-hash"];
                    let theirs = kubo
                        .run(&[&only_hash[..], &[text(&source)?]].concat())
                        .await?;
                    equal(&ours, &theirs)?;
                    kubo.run(&["swarm", "connect", &at]).await?;
                    kubo.run(&["get", "-o", text(&copy)?, &ours]).await?;
                    same(&source, &copy)
                },
            )
            .await;
        remove(&[&source, &copy])?;

        let source = file(scratch.path(), bytes, 1)?;
        cells
            .works(
                &format!("{name}: the same CID, we get it from kubo"),
                async {
                    let theirs = kubo
                        .run(&["add", "-Q", "--cid-version=1", text(&source)?])
                        .await?;
                    let from = kubo.address().to_string();
                    node.run(&["get", &theirs, "-o", text(&copy)?, "--peer", &from])
                        .await?;
                    same(&source, &copy)?;
                    equal(&node.run(&["add", text(&source)?]).await?, &theirs)
                },
            )
            .await;
        remove(&[&source, &copy])?;
    }

    cells
        .works("kubo pins a file that only we have", async {
            let source = file(scratch.path(), 3 * CHUNK + 7, 2)?;
            let cid = node.run(&["add", text(&source)?]).await?;
            kubo.run(&["swarm", "connect", &at]).await?;
            kubo.run(&["pin", "add", &cid]).await?;
            kubo.run(&["repo", "gc"]).await?;
            // Without us.
            kubo.run(&["swarm", "disconnect", &at]).await?;
            let copy = scratch.path().join("pinned");
            kubo.run(&["get", "-o", text(&copy)?, &cid]).await?;
            same(&source, &copy)
        })
        .await;
    cells
        .works("kubo pings us", async {
            let peer = format!("/p2p/{}", node.id());
            kubo.run(&["swarm", "connect", &at]).await?;
            kubo.run(&["ping", "-n", "2", &peer]).await.map(drop)
        })
        .await;
    cells.finish()
}

fn equal(ours: &str, theirs: &str) -> Result<(), Error> {
    if ours == theirs {
        Ok(())
    } else {
        Err(Error::Wrong(format!("ours is {ours}, kubo's {theirs}")))
    }
}

/// What a failed cell left unwritten is not there.
fn remove(files: &[&Path]) -> Result<(), Error> {
    for file in files {
        if file.exists() {
            std::fs::remove_file(file)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn kubo_and_we_name_and_exchange_the_same_files_over_tcp() -> Result<(), Error> {
    files(Transport::Tcp, "files-kubo-tcp").await
}

#[tokio::test]
async fn kubo_and_we_name_and_exchange_the_same_files_over_quic() -> Result<(), Error> {
    files(Transport::Quic, "files-kubo-quic").await
}
