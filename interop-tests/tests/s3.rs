//! The store's cold tier on a real S3 server, which runs here: versitygw over a directory.
//!
//! `VERSITYGW_BIN` must name its binary (`interop-tests/install-s3 DIRECTORY` builds it); without it these tests fail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test panics when it fails, and its deadlines are in real time"
)]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use anypath_tiered_store::{
    BlockingStore, ColdConfig, Config, GetError, MaintenanceError, PutError, S3Config, Store,
};
use bytes::Bytes;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest};

const MIB: u64 = 1024 * 1024;
const KEY: &str = "anypath";
const SECRET: &str = "of-this-test-only";
const BUCKET: &str = "blocks";

/// Long enough for a loaded machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

/// versitygw over a directory of its own.
struct Server {
    dir: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Server {
    fn start() -> Server {
        let dir = tempfile::tempdir().unwrap();
        for name in ["root/blocks", "meta"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .unwrap()
            .port();
        let mut server = Server {
            dir,
            port,
            child: None,
        };
        server.run();
        server
    }

    fn run(&mut self) {
        let binary = std::env::var_os("VERSITYGW_BIN").expect(
            "VERSITYGW_BIN must name the versitygw binary: run `interop-tests/install-s3 DIRECTORY`",
        );
        let child = Command::new(&binary)
            .env("ROOT_ACCESS_KEY", KEY)
            .env("ROOT_SECRET_KEY", SECRET)
            .args(["--port", &format!("127.0.0.1:{}", self.port), "--quiet"])
            .args(["posix", "--sidecar"])
            .arg(self.dir.path().join("meta"))
            .arg(self.dir.path().join("root"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", Path::new(&binary).display()));
        self.child = Some(child);
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < until, "the S3 server does not listen");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn config(&self) -> S3Config {
        s3(self.port)
    }

    /// The objects of packs, as the server keeps them.
    fn packs(&self) -> Vec<PathBuf> {
        let mut packs = Vec::new();
        let mut directories = vec![self.dir.path().join("root").join(BUCKET)];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|end| end == "pack") {
                    packs.push(path);
                }
            }
        }
        packs.sort();
        packs
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn s3(port: u16) -> S3Config {
    S3Config::new(BUCKET)
        .endpoint(format!("http://127.0.0.1:{port}"))
        .allow_http(true)
        .region("us-east-1")
        .prefix("stores/of-a-test")
        .credentials(KEY, SECRET)
}

fn cold(s3: S3Config) -> ColdConfig {
    ColdConfig::s3(s3)
        .pack_bytes(MIB)
        .request_timeout(Duration::from_secs(20))
}

fn config(path: &Path, cold: ColdConfig) -> Config {
    Config::builder()
        .path(path)
        .disk_capacity(4 * MIB)
        .memory_capacity(0)
        .cold(cold)
        .build()
        .unwrap()
}

fn block(n: u32) -> (Cid, Bytes) {
    let mut state = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let data: Bytes = (0..65_536)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    let cid = Cid::new_v1(0x55, Code::Sha2_256.digest(&data));
    (cid, data)
}

fn blocks(numbers: std::ops::Range<u32>) -> Vec<(Cid, Bytes)> {
    numbers.map(block).collect()
}

fn fill(store: &BlockingStore, blocks: &[(Cid, Bytes)]) {
    for (cid, data) in blocks {
        store.put(*cid, data.clone()).unwrap();
    }
}

fn assert_all_there(store: &BlockingStore, blocks: &[(Cid, Bytes)]) {
    for (cid, data) in blocks {
        assert_eq!(store.get(cid).unwrap().as_ref(), Some(data));
    }
}

fn settle(store: &BlockingStore) {
    let until = Instant::now() + PATIENCE;
    while store.stats().cold.unwrap().is_moving {
        assert!(Instant::now() < until, "{:?}", store.stats().cold);
        thread::sleep(Duration::from_millis(5));
    }
}

/// A proxy that lets through, holds back, or drops what the server answers.
struct Proxy {
    port: u16,
    delay_ms: Arc<AtomicU64>,
    is_stopped: Arc<AtomicBool>,
}

impl Proxy {
    fn start(server: u16) -> Proxy {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let (delay_ms, is_stopped) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (delay, stopped) = (delay_ms.clone(), is_stopped.clone());
        thread::spawn(move || {
            for client in socket.incoming() {
                if stopped.load(SeqCst) {
                    return;
                }
                let Ok(client) = client else { return };
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else {
                    continue;
                };
                let (to, from) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || copy(from, to, &AtomicU64::new(0)));
                let delay = delay.clone();
                thread::spawn(move || copy(server, client, &delay));
            }
        });
        Proxy {
            port,
            delay_ms,
            is_stopped,
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.is_stopped.store(true, SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, delay_ms: &AtomicU64) {
    let mut buffer = vec![0; 65_536];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let delay = delay_ms.load(SeqCst);
        if delay > 0 {
            thread::sleep(Duration::from_millis(delay));
        }
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn blocks_go_to_the_bucket_and_come_back_under_smol_and_tokio() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let blocks = blocks(0..200);
    futures::executor::block_on(async {
        let store = Store::open(config(dir.path(), cold(server.config())))
            .await
            .unwrap();
        for (cid, data) in &blocks {
            store.put(*cid, data.clone()).await.unwrap();
        }
        for (cid, data) in &blocks {
            assert_eq!(store.get(cid).await.unwrap().as_ref(), Some(data));
        }
        settle(&store.blocking());
        let figures = store.stats().cold.unwrap();
        assert!(figures.blocks > 120 && figures.hits > 120, "{figures:?}");
        assert_eq!(
            figures.put_requests,
            figures.packs_written + 1,
            "one a pack, one for the marker"
        );
        assert_eq!(figures.errors, 0, "{figures:?}");
        assert!(!server.packs().is_empty());
        store.close().await.unwrap();
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Store::open(config(dir.path(), cold(server.config())))
            .await
            .unwrap();
        let cids: Vec<Cid> = blocks.iter().map(|(cid, _)| *cid).collect();
        for (found, (_, data)) in store.get_many(&cids).await.into_iter().zip(&blocks) {
            assert_eq!(found.unwrap().as_ref(), Some(data));
        }
        // What is read again and again leaves the bucket.
        let until = Instant::now() + PATIENCE;
        while store.stats().cold.unwrap().promotions == 0 {
            assert!(Instant::now() < until, "{:?}", store.stats());
            for cid in cids.iter().take(8) {
                store.get(cid).await.unwrap();
            }
        }
        store.pin("kept", &cids[..4]).await.unwrap();
        let report = store.scrub().await.unwrap();
        assert_eq!((report.checked, report.corrupt.len()), (200, 0));
        // The job in the background may have collected some of it, or all, before `gc` comes to it.
        let before = store.stats().cold.unwrap();
        for cid in cids.iter().skip(100) {
            store.delete(cid).await.unwrap();
        }
        let freed = store.gc().await.unwrap();
        let after = store.stats().cold.unwrap();
        assert!(
            after.packs_removed > before.packs_removed && after.used_bytes < before.used_bytes,
            "{freed:?} {before:?} {after:?}"
        );
        store.close().await.unwrap();
    });
}

#[test]
fn wrong_credentials_are_named_and_nothing_is_lost() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let wrong =
        cold(server.config().credentials(KEY, "wrong")).put_patience(Duration::from_millis(500));
    let store = BlockingStore::open(config(dir.path(), wrong)).unwrap();
    let blocks = blocks(0..100);
    let mut put = 0;
    let error = loop {
        let (cid, data) = &blocks[put];
        match store.put(*cid, data.clone()) {
            Ok(()) => put += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, PutError::ColdTier { .. }), "{error}");
    assert_all_there(&store, &blocks[..put]);
    let error = store.gc().unwrap_err();
    assert!(
        matches!(error, MaintenanceError::ColdUnreachable { .. }),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("check the credentials"),
        "{error}"
    );
    assert!(!error.to_string().contains("wrong"), "{error}");
    assert!(!store.stats().cold.unwrap().is_reachable);
    store.close().unwrap();

    let store = BlockingStore::open(config(dir.path(), cold(server.config()))).unwrap();
    fill(&store, &blocks);
    assert_all_there(&store, &blocks);
}

#[test]
fn a_wrong_bucket_is_not_taken_for_lost_blocks() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let store = BlockingStore::open(config(dir.path(), cold(server.config()))).unwrap();
    let blocks = blocks(0..120);
    fill(&store, &blocks);
    store.close().unwrap();

    let other = S3Config::new("another")
        .endpoint(format!("http://127.0.0.1:{}", server.port))
        .allow_http(true)
        .credentials(KEY, SECRET);
    let store = BlockingStore::open(config(dir.path(), cold(other))).unwrap();
    let error = store.get(&blocks[0].0).unwrap_err();
    assert!(
        matches!(error, GetError::ColdUnreachable { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("check the bucket"), "{error}");
    store.close().unwrap();

    let store = BlockingStore::open(config(dir.path(), cold(server.config()))).unwrap();
    assert_all_there(&store, &blocks);
}

#[test]
fn a_server_that_dies_stops_moves_only_and_they_go_on_when_it_is_back() {
    let mut server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let patient = cold(server.config()).put_patience(PATIENCE).attempts(2);
    let store = BlockingStore::open(config(dir.path(), patient)).unwrap();
    let before = blocks(0..120);
    fill(&store, &before);
    settle(&store);
    server.kill();

    let (mut here, mut unreachable) = (Vec::new(), 0);
    for (cid, data) in &before {
        match store.get(cid) {
            Ok(found) => {
                assert_eq!(found.as_ref(), Some(data));
                here.push((*cid, data.clone()));
            }
            Err(error @ GetError::ColdUnreachable { .. }) => {
                assert!(error.to_string().contains("check the endpoint"), "{error}");
                unreachable += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(
        here.len() > 20 && unreachable > 60,
        "{} and {unreachable}",
        here.len()
    );
    assert!(!store.stats().cold.unwrap().is_reachable);

    // Puts go on until the disk is full; then they wait, and none is dropped.
    let more = blocks(1000..1120);
    let writer = {
        let (store, more) = (store.clone(), more.clone());
        thread::spawn(move || fill(&store, &more))
    };
    let until = Instant::now() + PATIENCE;
    while store.stats().cold.unwrap().failed_moves < 2 {
        assert!(Instant::now() < until && !writer.is_finished());
        thread::sleep(Duration::from_millis(10));
    }
    assert_all_there(&store, &here);
    server.run();
    writer.join().unwrap();
    assert_all_there(&store, &before);
    assert_all_there(&store, &more);
    let figures = store.stats().cold.unwrap();
    assert!(figures.is_reachable && figures.errors > 0, "{figures:?}");
    assert_eq!(store.stats().disk.evictions, 0);
    store.close().unwrap();
    let store = BlockingStore::open(config(dir.path(), cold(server.config()))).unwrap();
    store.gc().unwrap();
    assert_all_there(&store, &before);
    assert_all_there(&store, &more);
}

#[test]
fn a_slow_server_is_waited_for_up_to_the_time_limit() {
    let server = Server::start();
    let proxy = Proxy::start(server.port);
    let dir = tempfile::tempdir().unwrap();
    let open = |limit| {
        let cold = cold(s3(proxy.port)).request_timeout(limit).attempts(1);
        BlockingStore::open(config(dir.path(), cold)).unwrap()
    };
    let store = open(PATIENCE);
    let blocks = blocks(0..120);
    proxy.delay_ms.store(20, SeqCst);
    fill(&store, &blocks);
    assert_all_there(&store, &blocks[..20]);
    settle(&store);
    store.close().unwrap();

    let store = open(Duration::from_millis(200));
    proxy.delay_ms.store(5_000, SeqCst);
    let began = Instant::now();
    let error = store.get(&blocks[0].0).unwrap_err();
    let GetError::ColdUnreachable { source, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(source.to_string().contains("no answer within"), "{source}");
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "not the server's time"
    );
    let limited = store.within(Duration::from_millis(1), |store| async move {
        store.get(&block(0).0).await
    });
    assert!(limited.is_none());
    proxy.delay_ms.store(0, SeqCst);
    store.close().unwrap();
    let store = open(PATIENCE);
    assert_all_there(&store, &blocks);
}

#[test]
fn an_object_that_was_damaged_costs_its_blocks_and_no_others() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let store = BlockingStore::open(config(dir.path(), cold(server.config()))).unwrap();
    let blocks = blocks(0..120);
    fill(&store, &blocks);
    settle(&store);
    let pack = server.packs().remove(0);
    let mut bytes = fs::read(&pack).unwrap();
    bytes[70_000] ^= 0x10;
    fs::write(&pack, bytes).unwrap();
    let damaged: Vec<_> = blocks
        .iter()
        .filter(|(cid, data)| match store.get(cid) {
            Ok(found) => {
                assert_eq!(found.as_ref(), Some(data));
                false
            }
            Err(GetError::Corrupt { .. }) => true,
            Err(error) => panic!("{error}"),
        })
        .collect();
    assert_eq!(damaged.len(), 1);
    let (cid, data) = damaged[0];
    store.put(*cid, data.clone()).unwrap();
    assert_all_there(&store, &blocks);
}

#[test]
fn objects_that_nothing_points_to_are_found_by_listing_and_removed() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let store = BlockingStore::open(config(dir.path(), cold(server.config()))).unwrap();
    let blocks = blocks(0..120);
    fill(&store, &blocks);
    settle(&store);
    store.close().unwrap();
    let pack = server.packs().remove(0);
    let orphan = pack.with_file_name("00000007.pack");
    fs::copy(&pack, &orphan).unwrap();
    let strange = pack.with_file_name("not-a-pack");
    fs::write(&strange, b"somebody's").unwrap();
    let store = BlockingStore::open(config(dir.path(), cold(server.config()))).unwrap();
    store.gc().unwrap();
    assert!(!orphan.exists() && strange.exists());
    assert_eq!(store.stats().cold.unwrap().orphans, 1);
    assert_all_there(&store, &blocks);
}
