use std::{any::Any, path::Path, sync::Arc};

use futures::channel::oneshot;

use super::*;
use crate::{
    Config, PutOptions,
    commit::{Op, Origin, Put},
    disk::recovery,
    vfs::{SimVfs, Vfs, VfsFile},
};

/// A file system that creates a checkpoint only when it is told to.
struct Gate {
    vfs: SimVfs,
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Vfs for Gate {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.vfs.create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.vfs.list(dir)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        if path.ends_with(TEMPORARY) {
            let mut is_open = self.is_open.lock();
            while !*is_open {
                self.opened.wait(&mut is_open);
            }
        }
        self.vfs.create(path)
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.vfs.open(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.vfs.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.vfs.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.vfs.sync_dir(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        self.vfs.lock(path)
    }
    fn now_ms(&self) -> u64 {
        self.vfs.now_ms()
    }
}

fn open(vfs: Arc<dyn Vfs>) -> Arc<Shared> {
    let config = Config::builder()
        .path("/store")
        .memory_capacity(0)
        .vfs(vfs)
        .build()
        .unwrap();
    Arc::new(recovery::open(config).unwrap())
}

fn cid(n: u8) -> Cid {
    Cid::new_v1(0x55, multihash::Multihash::wrap(0x12, &[n; 32]).unwrap())
}

async fn put(shared: &Arc<Shared>, n: u8, set: Option<&str>) {
    let data = bytes::Bytes::from(vec![n; 1000]);
    let (reply, answer) = oneshot::channel();
    let put = Put {
        cid: cid(n),
        crc: crc32c::crc32c(&data),
        data,
        options: Arc::new(PutOptions {
            pin: set.map(str::to_owned),
            ..PutOptions::default()
        }),
        origin: Origin::User,
        reply,
    };
    commit::submit(shared, Op::Put(put)).await.unwrap();
    answer.await.unwrap().unwrap();
}

#[test]
fn puts_go_on_while_a_checkpoint_is_written_and_it_is_of_the_moment_when_it_began() {
    let gate = Arc::new(Gate {
        vfs: SimVfs::new(),
        is_open: Mutex::new(false),
        opened: Condvar::new(),
    });
    smol::block_on(async {
        let shared = open(gate.clone());
        put(&shared, 1, Some("old name")).await;
        put(&shared, 2, None).await;
        let also = shared.clone();
        let begun = commit::task(&shared, move |_, log| start(&also, log));
        begun.await.unwrap().unwrap();
        // What comes now is in the log only, and some of it in the checkpoint already.
        put(&shared, 3, Some("p")).await;
        let renamed = commit::task(&shared, |shared, log| {
            crate::pinning::rename(shared, log, "old name", "new name")
        });
        renamed.await.unwrap().unwrap();
        put(&shared, 4, Some("old name")).await;
        assert!(
            !gate
                .vfs
                .live_image()
                .keys()
                .any(|path| { path.to_string_lossy().contains(PREFIX) })
        );
        *gate.is_open.lock() = true;
        gate.opened.notify_all();
        loop {
            let written = commit::task(&shared, |shared, log| {
                finish_if_written(shared, log);
                log.checkpoints.kept.len()
            });
            if written.await.unwrap() == 1 {
                break;
            }
        }
        let image = gate.vfs.live_image();
        let after = open(Arc::new(SimVfs::from_image(image, 0)));
        assert_eq!(after.index.len(), 4);
        let pins = after.pins.read();
        assert_eq!(pins.names(), ["new name", "old name", "p"]);
        for (set, n) in [("new name", 1), ("old name", 4), ("p", 3)] {
            let key = after.kinds.find(&cid(n)).unwrap();
            assert_eq!(pins.members(set), [after.index.id(&key).unwrap()], "{set}");
        }
    });
}

/// Between the end of a checkpoint and the job's note of it, the store of a caller that waits would otherwise be taken from it.
#[test]
fn a_checkpoint_that_was_written_does_not_make_the_store_look_abandoned() {
    let (job, store) = {
        let shared = open(Arc::new(SimVfs::new()));
        (shared.clone(), shared)
    };
    let writer = job.clone();
    let mut log = job.log.lock();
    let result = Slot::default();
    log.checkpoints.writing = Some(Writing {
        number: 1,
        seq: 0,
        since: 0,
        result: result.clone(),
    });
    assert!(!commit::is_abandoned(&job, &log), "the store has it");
    drop(store);
    assert!(commit::is_abandoned(&job, &log), "only job and writer");
    let store = job.clone();
    *result.0.lock() = Some(Ok(0));
    drop(writer);
    assert!(!commit::is_abandoned(&job, &log), "the writer let go");
    drop(store);
    assert!(commit::is_abandoned(&job, &log), "only the job");
}

#[test]
fn every_flipped_bit_of_a_checkpoint_is_detected() {
    let vfs = SimVfs::new();
    smol::block_on(async {
        let shared = open(Arc::new(vfs.clone()));
        for n in 0..3 {
            put(&shared, n, Some("p")).await;
        }
        commit::task(&shared, write).await.unwrap().unwrap();
    });
    let image = vfs.live_image();
    let bytes = image
        .iter()
        .find(|(path, _)| path.to_string_lossy().contains(PREFIX))
        .unwrap()
        .1
        .clone();
    let file = vfs.create("/copy".as_ref()).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        file.write_all_at(0, &[IoSlice::new(&flipped)]).unwrap();
        assert!(!read(&*file, |_| {}).unwrap(), "bit {bit}");
    }
    file.write_all_at(0, &[IoSlice::new(&bytes)]).unwrap();
    assert!(read(&*file, |_| {}).unwrap());
    assert!(seq_of(&*file).unwrap().is_some());
}
