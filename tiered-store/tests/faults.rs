//! Failing devices: an error at every call site, one at a time and for ever.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test panics when it fails"
)]

mod common;

use std::{
    any::Any,
    io::{self, IoSlice},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use anypath_tiered_store::{
    Config, DeleteError, GetError, PutError, PutOptions, Store,
    vfs::{Fault, Op, SimVfs, Vfs, VfsFile},
};
use bytes::Bytes;
use common::{MIB, block, open_sim, run, try_open_sim};

const CAPACITY: u64 = 2 * MIB;

/// Puts, pins, deletes and collects; returns the pinned blocks that were acknowledged.
async fn work(vfs: &SimVfs) -> Vec<u32> {
    let mut acked = Vec::new();
    let Ok(store) = try_open_sim(vfs, CAPACITY).await else {
        return acked;
    };
    for n in 0..24 {
        let (cid, data) = block(n, 30_000);
        if n % 2 == 0 {
            if store
                .put_with(cid, data, PutOptions::pinned("p"))
                .await
                .is_ok()
            {
                acked.push(n);
            }
        } else if store.put(cid, data).await.is_ok() && n % 3 == 0 {
            let _ = store.delete(&cid).await;
        }
        let _ = store.put_value("n", Bytes::from(vec![n as u8]), None).await;
    }
    let _ = store.gc().await;
    // Whatever failed, what was acknowledged can be read, now that the device answers reads.
    vfs.inject(|_, op| (op != Op::Read).then_some(Fault::Error(io::ErrorKind::Other)));
    for n in &acked {
        let (cid, data) = block(*n, 30_000);
        let read = store.get(&cid).await;
        assert_eq!(read.unwrap(), Some(data), "block {n} cannot be read");
    }
    vfs.heal();
    let _ = store.close().await;
    acked
}

fn check(vfs: &SimVfs, acked: &[u32], what: &str) {
    vfs.heal();
    run(async {
        let store = open_sim(vfs, CAPACITY).await;
        for n in acked {
            let (cid, data) = block(*n, 30_000);
            assert_eq!(
                store.get(&cid).await.unwrap(),
                Some(data),
                "{what}: block {n} is lost"
            );
            assert!(store.is_pinned(&cid), "{what}: pin of {n} is lost");
        }
        let (cid, data) = block(500, 30_000);
        store.put(cid, data).await.unwrap();
    });
}

fn every_call(fault: Fault, what: &str) {
    let calls = {
        let vfs = SimVfs::new();
        run(work(&vfs));
        vfs.calls()
    };
    assert!(calls > 100);
    for at in 0..calls {
        for forever in [false, true] {
            let vfs = SimVfs::new();
            vfs.inject(move |call, _| (call == at || forever && call > at).then_some(fault));
            let acked = run(work(&vfs));
            check(
                &vfs,
                &acked,
                &format!("{what} at call {at}, for ever {forever}"),
            );
        }
    }
}

#[test]
fn an_io_error_at_any_call_loses_nothing_acknowledged() {
    every_call(Fault::Error(io::ErrorKind::Other), "EIO");
}

#[test]
fn no_space_at_any_call_loses_nothing_acknowledged() {
    every_call(Fault::Error(io::ErrorKind::StorageFull), "ENOSPC");
}

#[test]
fn a_short_write_at_any_call_loses_nothing_acknowledged() {
    every_call(Fault::Short, "short write");
}

#[test]
fn a_full_device_is_an_error_that_leaves_the_store_readable_and_ends_with_the_lack_of_space() {
    let vfs = SimVfs::new();
    run(async {
        let store = open_sim(&vfs, 16 * MIB).await;
        let (first, first_data) = block(1, 30_000);
        store.put(first, first_data.clone()).await.unwrap();
        vfs.inject(|_, op| (op == Op::Write).then_some(Fault::Short));
        let (second, second_data) = block(2, 30_000);
        let error = store.put(second, second_data.clone()).await.unwrap_err();
        assert!(matches!(error, PutError::DiskFull { .. }), "{error}");
        assert!(!store.has(&second));
        assert_eq!(store.get(&first).await.unwrap(), Some(first_data.clone()));
        vfs.heal();
        store.put(second, second_data.clone()).await.unwrap();
        drop(store);
        let store = open_sim(&vfs, 16 * MIB).await;
        assert_eq!(store.get(&first).await.unwrap(), Some(first_data));
        assert_eq!(store.get(&second).await.unwrap(), Some(second_data));
    });
}

#[test]
fn a_failed_sync_is_reported_and_the_segment_never_synced_again() {
    let vfs = SimVfs::new();
    run(async {
        let store = open_sim(&vfs, 16 * MIB).await;
        for n in 0..3 {
            let (cid, data) = block(n, 3000);
            store.put(cid, data).await.unwrap();
        }
        // The file cannot be cut after that either.
        let mut synced = false;
        vfs.inject(move |_, op| {
            let cut = op == Op::Write && std::mem::take(&mut synced);
            synced |= op == Op::Sync;
            (cut || synced).then_some(Fault::Error(io::ErrorKind::Other))
        });
        // A deletion that failed must not come true later.
        let deleted = store.delete(&block(0, 3000).0).await;
        assert!(
            matches!(deleted, Err(DeleteError::Sync { .. })),
            "{deleted:?}"
        );
        let (cid, data) = block(3, 3000);
        assert!(store.put(cid, data.clone()).await.is_err());
        vfs.heal();
        assert!(!store.has(&cid));
        store.pin("p", &[block(0, 3000).0]).await.unwrap();
        store.put(cid, data.clone()).await.unwrap();
        assert!(store.stats().disk.poisoned_segments >= 1);
        assert!(store.stats().disk.segments >= 2);
        drop(store);
        // Everything reached the device after all: the failed deletion too.
        let vfs = SimVfs::from_image(vfs.live_image(), 0);
        let store = open_sim(&vfs, 16 * MIB).await;
        assert!(store.is_pinned(&block(0, 3000).0));
        for n in 0..4 {
            let (cid, data) = block(n, 3000);
            assert_eq!(store.get(&cid).await.unwrap(), Some(data), "block {n}");
        }
    });
}

/// Bytes of a file that the device does not give.
type Bad = Arc<Mutex<Option<(PathBuf, Range<u64>)>>>;

/// A disk with a bad place.
#[derive(Clone)]
struct BadDisk {
    disk: SimVfs,
    bad: Bad,
}

struct BadFile {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    bad: Bad,
}

impl BadDisk {
    fn file(&self, path: &Path, file: Arc<dyn VfsFile>) -> Arc<dyn VfsFile> {
        Arc::new(BadFile {
            file,
            path: path.to_owned(),
            bad: self.bad.clone(),
        })
    }

    async fn open_store(&self) -> Store {
        let config = Config::builder()
            .path("/store")
            .disk_capacity(CAPACITY)
            .memory_capacity(0)
            .vfs(Arc::new(self.clone()));
        Store::open(config.build().unwrap()).await.unwrap()
    }
}

impl Vfs for BadDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        Ok(self.file(path, self.disk.create(path)?))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        Ok(self.file(path, self.disk.open(path)?))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        self.disk.lock(path)
    }
    fn now_ms(&self) -> u64 {
        self.disk.now_ms()
    }
}

impl VfsFile for BadFile {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if let Some((path, bad)) = &*self.bad.lock().unwrap()
            && *path == self.path
            && offset < bad.end
            && bad.start < offset + buf.len() as u64
        {
            return Err(io::Error::other("a bad sector"));
        }
        self.file.read_exact_at(offset, buf)
    }
    fn write_all_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.file.write_all_at(offset, parts)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

/// Where the bytes are.
fn find(disk: &SimVfs, bytes: &[u8]) -> (PathBuf, u64) {
    let image = disk.live_image();
    let mut places = image.into_iter().filter_map(|(path, data)| {
        let at = data.windows(bytes.len()).position(|part| part == bytes)?;
        Some((path, at as u64))
    });
    places.next().unwrap()
}

#[test]
fn puts_into_a_full_store_go_on_beside_a_sector_that_cannot_be_read() {
    run(async {
        for of_footer in [false, true] {
            let vfs = BadDisk {
                disk: SimVfs::new(),
                bad: Bad::default(),
            };
            let store = vfs.open_store().await;
            let (pinned, data) = block(0, 30_000);
            let options = PutOptions::pinned("p");
            store.put_with(pinned, data.clone(), options).await.unwrap();
            for n in 1..40 {
                let (cid, data) = block(n, 30_000);
                store.put(cid, data).await.unwrap();
            }
            let (path, at) = find(&vfs.disk, &data);
            let sector = if of_footer {
                let end = vfs.disk.open(&path).unwrap().len().unwrap();
                end - 30..end
            } else {
                at + 1000..at + 1512
            };
            *vfs.bad.lock().unwrap() = Some((path.clone(), sector));
            for n in 40..300 {
                let (cid, data) = block(n, 30_000);
                store.put(cid, data.clone()).await.unwrap();
                assert_eq!(store.get(&cid).await.unwrap(), Some(data), "block {n}");
            }
            assert!(store.stats().disk.compactions > 5);
            let used = store.stats().disk.used_bytes;
            assert!(used < CAPACITY + CAPACITY / 4, "{used} bytes");
            if !of_footer {
                let read = store.get(&pinned).await;
                assert!(matches!(read, Err(GetError::Io { .. })), "{read:?}");
                assert!(store.gc().await.is_ok());
                let report = store.scrub().await.unwrap();
                assert_eq!((report.unreadable, report.corrupt.len()), (1, 0));
                assert!(report.checked > 10, "{report:?}");
                // It was a cable.
                *vfs.bad.lock().unwrap() = None;
            }
            assert_eq!(store.get(&pinned).await.unwrap(), Some(data.clone()));
            assert!(store.is_pinned(&pinned));
            store.close().await.unwrap();
            let store = vfs.open_store().await;
            assert_eq!(store.get(&pinned).await.unwrap(), Some(data));
        }
    });
}
