//! `get` against a network that is a map: order, windows, interruptions, malice.

#![cfg(feature = "files")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod content;

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
    task::Poll,
};

use anypath::files::{self, AddOptions, Fetch, GetError, GetOptions, Profile, Progress, part_path};
use bytes::Bytes;
use cid::Cid;
use content::{content, store};
use futures::executor::block_on;
use multihash_codetable::{Code, MultihashDigest as _};
use proptest::prelude::*;

/// Blocks by CID, and what was asked for.
#[derive(Default)]
struct Network {
    blocks: HashMap<Cid, Bytes>,
    asked: Mutex<Vec<Cid>>,
    /// Once so many blocks have been given, the rest fails.
    fails_after: Option<usize>,
    /// Blocks that never come.
    withheld: Vec<Cid>,
}

impl Network {
    fn asked(&self) -> Vec<Cid> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Adds `data` as a file and returns its root.
    async fn add(&mut self, data: &[u8], profile: Profile) -> Cid {
        let (_directory, store) = store().await;
        let added = files::add(
            &store,
            data,
            AddOptions {
                profile,
                ..AddOptions::default()
            },
        )
        .await
        .unwrap();
        for cid in store.pins(&format!("{}{}", files::PIN_SET_PREFIX, added.cid)) {
            let block = store.get(&cid).await.unwrap().unwrap();
            // The pin set knows hashes; a raw leaf and a node differ in their codec.
            for codec in [0x55, 0x70] {
                self.blocks
                    .insert(Cid::new_v1(codec, *cid.hash()), block.clone());
            }
        }
        added.cid
    }
}

impl Fetch for Network {
    type Error = std::io::Error;

    async fn get(&self, cid: Cid) -> Result<Bytes, std::io::Error> {
        let count = {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.push(cid);
            asked.len()
        };
        if self.withheld.contains(&cid) {
            return futures::future::pending().await;
        }
        if self.fails_after.is_some_and(|limit| count > limit) {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        self.blocks
            .get(&cid)
            .cloned()
            .ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}

fn small() -> Profile {
    Profile::new(1024, 4).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_interrupted_get_leaves_no_file_under_the_final_name_and_the_next_one_fetches_only_the_rest() {
    block_on(async {
        let data = content(100_000);
        let mut network = Network::default();
        let root = network.add(&data, small()).await;
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out");

        network.fails_after = Some(80);
        let error = files::get(&network, root, &output, GetOptions::default())
            .await
            .unwrap_err();
        assert!(matches!(error, GetError::Fetch { .. }), "{error}");
        let part = part_path(&output, &root);
        assert_eq!(
            names(directory.path()),
            [part.file_name().unwrap().to_str().unwrap()]
        );

        // What a crash may leave: a part file whose last bytes never reached the disk.
        let half = 40 * 1024 + 100;
        fs::write(&part, &data[..half]).unwrap();
        network.fails_after = None;
        network.asked.lock().unwrap().clear();
        let fetched = files::get(&network, root, &output, GetOptions::default())
            .await
            .unwrap();
        assert_eq!((fetched.bytes, fetched.resumed), (100_000, 40 * 1024));
        assert_eq!(fs::read(&output).unwrap(), data);
        assert_eq!(names(directory.path()), ["out"]);
        let leaves = network
            .asked()
            .iter()
            .filter(|cid| cid.codec() == 0x55)
            .count();
        assert_eq!(leaves, 98 - 40, "only the missing leaves are asked for");
    });
}

#[test]
fn partial_output_that_is_wrong_is_fetched_again() {
    block_on(async {
        let data = content(50_000);
        let mut network = Network::default();
        let root = network.add(&data, small()).await;
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out");
        let mut partial = data.clone();
        partial[20_000] ^= 1;
        partial.extend_from_slice(b"and more than the file has");
        fs::write(part_path(&output, &root), partial).unwrap();
        files::get(&network, root, &output, GetOptions::default())
            .await
            .unwrap();
        assert_eq!(fs::read(&output).unwrap(), data);
    });
}

#[test]
fn an_output_that_exists_is_replaced_only_by_force() {
    block_on(async {
        let mut network = Network::default();
        let root = network.add(b"new", Profile::KUBO).await;
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out");
        fs::write(&output, "old").unwrap();
        let error = files::get(&network, root, &output, GetOptions::default())
            .await
            .unwrap_err();
        assert!(matches!(error, GetError::Exists { .. }), "{error}");
        assert!(error.to_string().contains("--force"));
        assert_eq!(fs::read(&output).unwrap(), b"old");
        assert!(network.asked().is_empty());

        let options = GetOptions {
            force: true,
            ..GetOptions::default()
        };
        files::get(&network, root, &output, options).await.unwrap();
        assert_eq!(fs::read(&output).unwrap(), b"new");
    });
}

#[test]
#[cfg(unix)]
fn an_output_that_is_no_regular_file_is_never_replaced() {
    block_on(async {
        let mut network = Network::default();
        let root = network.add(b"new", Profile::KUBO).await;
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&output).unwrap();
        let options = GetOptions {
            force: true,
            ..GetOptions::default()
        };
        let error = files::get(&network, root, &output, options)
            .await
            .unwrap_err();
        assert!(matches!(error, GetError::NotRegular { .. }), "{error}");
        assert!(!fs::metadata(&output).unwrap().is_file());
    });
}

#[test]
fn the_first_bytes_are_in_the_output_while_the_rest_is_on_its_way() {
    block_on(async {
        let data = content(100_000);
        let mut network = Network::default();
        let root = network.add(&data, small()).await;
        network.withheld = vec![Cid::new_v1(0x55, Code::Sha2_256.digest(&data[1024..2048]))];
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out");
        let written = Mutex::new(0);
        let on_progress =
            Box::new(|progress: Progress| *written.lock().unwrap() = progress.written);
        let options = GetOptions {
            on_progress: Some(on_progress),
            ..GetOptions::default()
        };
        let mut get = std::pin::pin!(files::get(&network, root, &output, options));
        futures::future::poll_fn(|context| {
            assert!(get.as_mut().poll(context).is_pending());
            match *written.lock().unwrap() {
                0 => Poll::Pending,
                _ => Poll::Ready(()),
            }
        })
        .await;
        assert_eq!(fs::read(part_path(&output, &root)).unwrap(), &data[..1024]);
        assert_eq!(
            network
                .asked()
                .iter()
                .filter(|cid| cid.codec() == 0x55)
                .count(),
            98,
            "all are asked for ahead"
        );
    });
}

#[test]
fn requests_run_ahead_of_the_output_by_the_window_only() {
    block_on(async {
        // 1 MiB leaves, all the same: 200 leaves under one root are asked for once.
        let leaf = Bytes::from(vec![7; 1024 * 1024]);
        let mut network = Network::default();
        let same = network.add(&leaf.repeat(20), Profile::UNIXFS_V1_2025).await;
        let directory = tempfile::tempdir().unwrap();
        files::get(
            &network,
            same,
            &directory.path().join("same"),
            GetOptions::default(),
        )
        .await
        .unwrap();
        assert_eq!(
            network.asked().len(),
            2,
            "a block that the file repeats is asked for once"
        );

        let data = content(40 * 1024 * 1024);
        let mut network = Network::default();
        let root = network.add(&data, Profile::UNIXFS_V1_2025).await;
        network.withheld = vec![Cid::new_v1(
            0x55,
            Code::Sha2_256.digest(&data[..1024 * 1024]),
        )];
        let output = directory.path().join("out");
        let mut get = std::pin::pin!(files::get(&network, root, &output, GetOptions::default()));
        let mut polls_since = 0;
        futures::future::poll_fn(|context| {
            assert!(get.as_mut().poll(context).is_pending());
            context.waker().wake_by_ref();
            polls_since += usize::from(network.asked().len() >= 33);
            if polls_since < 1000 {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
        assert_eq!(
            network.asked().len(),
            1 + 32,
            "the root and 32 MiB of leaves"
        );
    });
}

#[test]
fn two_gets_of_one_file_to_one_output_do_not_mix() {
    block_on(async {
        let data = content(10_000);
        let mut network = Network::default();
        let root = network.add(&data, small()).await;
        network.withheld = vec![Cid::new_v1(0x55, Code::Sha2_256.digest(&data[..1024]))];
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out");
        let part = part_path(&output, &root);
        let mut first = std::pin::pin!(files::get(&network, root, &output, GetOptions::default()));
        futures::future::poll_fn(|context| {
            assert!(first.as_mut().poll(context).is_pending());
            context.waker().wake_by_ref();
            if part.exists() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        // It exists; locked it is when the first get goes on to ask for leaves.
        futures::future::poll_fn(|context| {
            assert!(first.as_mut().poll(context).is_pending());
            context.waker().wake_by_ref();
            if network.asked().len() > 3 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        let error = files::get(&network, root, &output, GetOptions::default())
            .await
            .unwrap_err();
        assert!(matches!(error, GetError::InProgress { .. }), "{error}");
    });
}

#[test]
fn a_file_larger_than_the_disk_is_refused_before_anything_is_fetched_but_the_root() {
    // A node whose only link is a file of 2^60 bytes, as a malicious author may write it.
    let leaf = Cid::new_v1(0x55, Code::Sha2_256.digest(b"leaf")).to_bytes();
    let mut link = vec![0x0a, leaf.len() as u8];
    link.extend(&leaf);
    let size = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    let data = [&[8, 2, 0x18][..], &size, &[0x20], &size].concat();
    let block = [
        &[0x12, link.len() as u8][..],
        &link,
        &[0x0a, data.len() as u8],
        &data,
    ]
    .concat();
    let root = Cid::new_v1(0x70, Code::Sha2_256.digest(&block));
    let network = Network {
        blocks: HashMap::from([(root, block.into())]),
        ..Network::default()
    };
    let directory = tempfile::tempdir().unwrap();
    let error = block_on(files::get(
        &network,
        root,
        &directory.path().join("out"),
        GetOptions::default(),
    ))
    .unwrap_err();
    assert!(
        matches!(error, GetError::NoSpace { needed, .. } if needed == 1 << 60),
        "{error}"
    );
    assert_eq!(network.asked().len(), 1);
}

#[test]
fn what_does_not_fit_into_the_store_fails_before_it_is_written() {
    block_on(async {
        let (_directory, store) = store().await;
        let room = store.room_for_pinned();
        let source = futures::io::AsyncReadExt::take(futures::io::repeat(0), 0);
        let options = AddOptions {
            size: Some(room + 1),
            ..AddOptions::default()
        };
        let error = files::add(&store, source, options).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("disk_capacity") && text.contains(&room.to_string()),
            "{text}"
        );
        assert!(store.pin_sets().is_empty());
    });
}

#[test]
fn an_add_that_fails_leaves_nothing_pinned() {
    struct Broken(usize);
    impl futures::AsyncRead for Broken {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buffer: &mut [u8],
        ) -> Poll<std::io::Result<usize>> {
            if self.0 == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()));
            }
            let length = buffer.len().min(self.0);
            self.0 -= length;
            Poll::Ready(Ok(length))
        }
    }
    block_on(async {
        let (_directory, store) = store().await;
        let error = files::add(&store, Broken(9_000_000), AddOptions::default())
            .await
            .unwrap_err();
        assert!(matches!(error, files::AddError::Read { .. }), "{error}");
        assert!(store.pin_sets().is_empty());
    });
}

#[test]
fn a_file_is_pinned_under_its_root_and_adding_it_again_changes_nothing() {
    block_on(async {
        let (_directory, store) = store().await;
        for _ in 0..2 {
            let (data, options) = (
                content(10_000),
                AddOptions {
                    profile: small(),
                    ..AddOptions::default()
                },
            );
            let added = files::add(&store, &data[..], options).await.unwrap();
            assert_eq!(
                store.pin_sets(),
                [format!("{}{}", files::PIN_SET_PREFIX, added.cid)]
            );
            assert_eq!((added.blocks, added.bytes), (10 + 3 + 1, 10_000));
        }
    });
}

#[test]
fn what_an_add_that_was_cut_off_has_pinned_is_dropped_at_the_next_start() {
    block_on(async {
        let (_directory, store) = store().await;
        let never_ends = futures::AsyncReadExt::chain(
            futures::io::Cursor::new(content(9_000_000)),
            // The source that a killed process leaves behind.
            PendingReader,
        );
        {
            let mut add = std::pin::pin!(files::add(&store, never_ends, AddOptions::default()));
            futures::future::poll_fn(|context| {
                assert!(add.as_mut().poll(context).is_pending());
                context.waker().wake_by_ref();
                if store.pin_sets().is_empty() {
                    Poll::Pending
                } else {
                    Poll::Ready(())
                }
            })
            .await;
        }
        files::clean_up(&store).await.unwrap();
        assert!(store.pin_sets().is_empty());
    });
}

struct PendingReader;

impl futures::AsyncRead for PendingReader {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut [u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Pending
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever an earlier run has left, the output is the file.
    #[test]
    fn any_file_comes_out_as_it_went_in(
        length in 0_usize..20_000,
        chunk in 1_u32..2_000,
        links in 2_u32..6,
        kept in 0_usize..20_000,
        damage in proptest::option::of(0_usize..20_000),
    ) {
        // Trees of thousands of one-byte leaves take long and show nothing new.
        let length = length.min(chunk as usize * 300);
        block_on(async {
            let data = content(length);
            let mut network = Network::default();
            let root = network.add(&data, Profile::new(chunk, links).unwrap()).await;
            let directory = tempfile::tempdir().unwrap();
            let output = directory.path().join("out");
            let mut partial = data[..kept.min(length)].to_vec();
            if let Some(byte) = damage.and_then(|at| partial.get_mut(at)) {
                *byte ^= 0x55;
            }
            fs::write(part_path(&output, &root), partial).unwrap();
            let fetched = files::get(&network, root, &output, GetOptions::default()).await.unwrap();
            prop_assert_eq!(fetched.bytes, length as u64);
            prop_assert_eq!(fs::read(&output).unwrap(), data);
            Ok(())
        })?;
    }
}
