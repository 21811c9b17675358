//! `add_directory` and `get` of directories: known answers, interruptions, malice.
//!
//! The known CIDs are those that ipfs-unixfs-importer 17.1.1 (js) prints with kubo's parameters (CIDv1, raw leaves, 256 KiB × 174,
//! sharded above 256 KiB of names and CIDs), and with its profile `unixfs-v1-2025`.

#![cfg(feature = "files")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod content;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    task::Poll,
};

use anypath::files::{
    self, AddDirectoryOptions, AddError, Fetch, Fetched, GetError, GetOptions, Profile, Progress,
    part_path,
};
use bytes::Bytes;
use cid::Cid;
use content::{content, store};
use futures::executor::block_on;
use multihash_codetable::{Code, MultihashDigest as _};

const ODD: &str = "odd name ü 日本語.txt";

/// Blocks by CID, and what was asked for.
#[derive(Default)]
struct Network {
    blocks: HashMap<Cid, Bytes>,
    asked: Mutex<Vec<Cid>>,
    /// Once so many blocks have been given, the rest fails.
    fails_after: Option<usize>,
    withheld: Vec<Cid>,
}

impl Network {
    fn asked(&self) -> Vec<Cid> {
        let asked = self.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds a directory and returns its root.
    fn add(&mut self, path: &Path, profile: Profile) -> Cid {
        block_on(async {
            let (_directory, store) = store().await;
            let options = AddDirectoryOptions {
                profile,
                ..AddDirectoryOptions::default()
            };
            let added = files::add_directory(&store, path, options).await.unwrap();
            for cid in store.pins(&format!("{}{}", files::PIN_SET_PREFIX, added.cid)) {
                let block = store.get(&cid).await.unwrap().unwrap();
                // The pin set knows hashes; a raw leaf and a node differ in their codec.
                for codec in [0x55, 0x70] {
                    let cid = Cid::new_v1(codec, *cid.hash());
                    self.blocks.insert(cid, block.clone());
                }
            }
            added.cid
        })
    }

    /// A node that a stranger made.
    fn node(&mut self, links: &[(&[u8], Cid)], data: &[u8]) -> Cid {
        fn field(number: u8, value: &[u8], out: &mut Vec<u8>) {
            out.push(number << 3 | 2);
            let mut length = value.len();
            while length >= 0x80 {
                out.push(length as u8 | 0x80);
                length >>= 7;
            }
            out.push(length as u8);
            out.extend(value);
        }
        let mut block = Vec::new();
        for (name, cid) in links {
            let mut link = Vec::new();
            field(1, &cid.to_bytes(), &mut link);
            field(2, name, &mut link);
            link.extend([0x18, 1]);
            field(2, &link, &mut block);
        }
        field(1, data, &mut block);
        let cid = Cid::new_v1(0x70, Code::Sha2_256.digest(&block));
        self.blocks.insert(cid, block.into());
        cid
    }

    fn leaf(&mut self, data: &'static [u8]) -> Cid {
        let cid = raw(data);
        self.blocks.insert(cid, Bytes::from_static(data));
        cid
    }

    fn get(&self, cid: Cid, output: &Path) -> Result<Fetched, GetError<std::io::Error>> {
        block_on(files::get(self, cid, output, GetOptions::default()))
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
        let block = self.blocks.get(&cid).cloned();
        block.ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}

fn raw(data: &[u8]) -> Cid {
    Cid::new_v1(0x55, Code::Sha2_256.digest(data))
}

/// A directory with odd names, an empty file, an empty directory and one within another.
fn tree(within: &Path) -> PathBuf {
    let tree = within.join("tree");
    fs::create_dir_all(tree.join("sub/deeper")).unwrap();
    fs::create_dir(tree.join("nothing here")).unwrap();
    for (name, data) in [
        ("empty.bin", Vec::new()),
        ("b.txt", b"hello\n".to_vec()),
        (ODD, content(300_000)),
        ("sub/deeper/x", content(1000)),
        ("sub/Z", b"Z".to_vec()),
        ("sub/a", b"a".to_vec()),
    ] {
        fs::write(tree.join(name), data).unwrap();
    }
    tree
}

/// A directory of many small files, each of which holds its name.
fn many(within: &Path, count: usize) -> PathBuf {
    let directory = within.join(format!("many-{count}"));
    fs::create_dir(&directory).unwrap();
    for n in 0..count {
        let name = format!("file-{n:05}.txt");
        fs::write(directory.join(&name), &name).unwrap();
    }
    directory
}

/// What is in a directory, by path: the bytes of files, none for directories, targets of links.
fn listing(directory: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(directory).unwrap().to_owned();
            let content = if kind.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                Some(format!("-> {}", target.display()).into_bytes())
            } else if kind.is_dir() {
                pending.push(path);
                None
            } else {
                Some(fs::read(path).unwrap())
            };
            found.insert(name, content);
        }
    }
    found
}

#[test]
fn cids_of_directories_equal_those_of_another_implementation() {
    let directory = tempfile::tempdir().unwrap();
    let (tree, below, above) = (
        tree(directory.path()),
        many(directory.path(), 5200),
        many(directory.path(), 6000),
    );
    for (path, profile, known, distinct_blocks) in [
        (
            &tree,
            Profile::KUBO,
            "bafybeifza5nnlamr4atio27l7c2642lr4zknrzb3q7gho24szzpmxqnrqy",
            12,
        ),
        (
            &tree,
            Profile::UNIXFS_V1_2025,
            "bafybeidv36rxfuqt5ai7ir7ryqaaqg6ae7gwlpqinsen7w6g5dh4e2yyny",
            10,
        ),
        (
            &below,
            Profile::KUBO,
            "bafybeibruueug4hspgeebrbkg5elojp27denxv5i7ozluhvwyxnr2wt23i",
            5201,
        ),
        (
            &below,
            Profile::UNIXFS_V1_2025,
            "bafybeihr3dqb7zfqjrzrkkkdzfdjus3x7jih5pcafdl2ibbjix3rd6ldki",
            5655,
        ),
        (
            &above,
            Profile::KUBO,
            "bafybeibnx2m5dmwbsolzyjsdzovzshf7jzl5gttn6bg6cylsxbor3rzrfi",
            6519,
        ),
    ] {
        block_on(async {
            let (_directory, store) = store().await;
            let options = AddDirectoryOptions {
                profile,
                ..AddDirectoryOptions::default()
            };
            let added = files::add_directory(&store, path, options).await.unwrap();
            assert_eq!(added.cid.to_string(), known, "{path:?} {profile:?}");
            assert_eq!(added.blocks, distinct_blocks);
            let set = format!("{}{known}", files::PIN_SET_PREFIX);
            assert_eq!(store.pin_sets(), std::slice::from_ref(&set));
            assert_eq!(store.pins(&set).len() as u64, distinct_blocks);
            let scan = files::scan(path, profile, false).unwrap();
            assert_eq!((scan.bytes, scan.files), (added.bytes, added.files));
        });
    }
}

#[test]
fn a_directory_comes_out_as_it_went_in() {
    let directory = tempfile::tempdir().unwrap();
    let (tree, many) = (tree(directory.path()), many(directory.path(), 6000));
    #[cfg(unix)]
    for (target, name) in [
        ("b.txt", "link"),
        ("/nowhere/at all", "sub/dangling"),
        ("..", "sub/up"),
    ] {
        std::os::unix::fs::symlink(target, tree.join(name)).unwrap();
    }
    for (path, files) in [(&tree, 6), (&many, 6000)] {
        let mut network = Network::default();
        let cid = network.add(path, Profile::KUBO);
        let output = directory.path().join("out");
        let last = Mutex::new(Progress::default());
        let options = GetOptions {
            on_progress: Some(Box::new(|progress| *last.lock().unwrap() = progress)),
            ..GetOptions::default()
        };
        let fetched = block_on(files::get(&network, cid, &output, options)).unwrap();
        assert_eq!(listing(path), listing(&output));
        let bytes = files::scan(path, Profile::KUBO, true).unwrap().bytes;
        assert_eq!(
            (fetched.bytes, fetched.files, fetched.resumed),
            (bytes, files, 0)
        );
        let last = *last.lock().unwrap();
        assert_eq!((last.written, last.total, last.resumed), (bytes, bytes, 0));
        assert!(!part_path(&output, &cid).exists());
        // What was got is the same directory again.
        assert_eq!(Network::default().add(&output, Profile::KUBO), cid);
        fs::remove_dir_all(output).unwrap();
    }
}

#[test]
fn hidden_files_are_added_only_when_asked_for_and_counted_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let tree = tree(directory.path());
    fs::create_dir(tree.join(".hidden")).unwrap();
    fs::write(tree.join(".hidden/x"), "x").unwrap();
    fs::write(tree.join("sub/.y"), "y").unwrap();
    block_on(async {
        let (_directory, store) = store().await;
        let added = files::add_directory(&store, &tree, AddDirectoryOptions::default());
        let added = added.await.unwrap();
        // As without them.
        let known = "bafybeifza5nnlamr4atio27l7c2642lr4zknrzb3q7gho24szzpmxqnrqy";
        assert_eq!((added.cid.to_string().as_str(), added.left_out), (known, 2));
        let options = AddDirectoryOptions {
            hidden: true,
            ..AddDirectoryOptions::default()
        };
        let added = files::add_directory(&store, &tree, options).await.unwrap();
        assert_eq!((added.files, added.left_out), (8, 0));
        assert_ne!(added.cid.to_string(), known);
    });
}

#[test]
fn an_interrupted_get_continues_with_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let many = many(directory.path(), 1000);
    fs::write(many.join("large"), content(3_000_000)).unwrap();
    let mut network = Network::default();
    let cid = network.add(&many, Profile::KUBO);
    let output = directory.path().join("out");
    network.fails_after = Some(700);
    let error = network.get(cid, &output).unwrap_err();
    assert!(matches!(error, GetError::Fetch { .. }), "{error}");
    assert!(!output.exists(), "nothing has the final name yet");
    let part = part_path(&output, &cid);
    // Of some there is the name only.
    let is_whole = |(name, data): &(PathBuf, Option<Vec<u8>>)| {
        data.as_deref() == Some(name.to_str().unwrap().as_bytes())
    };
    let files = listing(&part).into_iter().filter(is_whole).count();
    assert!(files > 100, "{files}");
    // What a crash or somebody else may leave.
    let damaged = fs::read_dir(&part).unwrap().next().unwrap().unwrap().path();
    fs::write(damaged, "something else that is longer").unwrap();
    fs::write(part.join("large"), &content(3_000_000)[..1_000_000]).unwrap();

    network.fails_after = None;
    network.asked.lock().unwrap().clear();
    let fetched = network.get(cid, &output).unwrap();
    assert_eq!(listing(&many), listing(&output));
    let asked = network.asked().len();
    assert!(
        asked < 1015 - files + 10,
        "{asked} of 1015 blocks, {files} files were there"
    );
    assert!(fetched.resumed > 3 * 262_144, "{}", fetched.resumed);
    let large: Vec<_> = content(3_000_000).chunks(262_144).map(raw).collect();
    let asked = network.asked();
    let again: Vec<_> = large.iter().map(|leaf| asked.contains(leaf)).collect();
    assert_eq!(again[..4], [false, false, false, true]);
}

#[test]
fn two_gets_of_one_directory_to_one_output_do_not_mix() {
    let directory = tempfile::tempdir().unwrap();
    let mut network = Network::default();
    let cid = network.add(&tree(directory.path()), Profile::KUBO);
    network.withheld = vec![raw(b"a")];
    let output = directory.path().join("out");
    let mut first = Box::pin(files::get(&network, cid, &output, GetOptions::default()));
    block_on(futures::future::poll_fn(|context| {
        assert!(first.as_mut().poll(context).is_pending());
        context.waker().wake_by_ref();
        match network.asked().contains(&raw(b"a")) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }));
    let error = network.get(cid, &output).unwrap_err();
    assert!(matches!(error, GetError::InProgress { .. }), "{error}");
    drop(first);
    network.withheld.clear();
    network.get(cid, &output).unwrap();
}

#[test]
fn a_directory_replaces_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut network = Network::default();
    let cid = network.add(&tree(directory.path()), Profile::KUBO);
    let output = directory.path().join("out");
    fs::write(&output, "mine").unwrap();
    let options = || GetOptions {
        force: true,
        ..GetOptions::default()
    };
    let error = block_on(files::get(&network, cid, &output, options())).unwrap_err();
    assert!(matches!(error, GetError::InTheWay { .. }), "{error}");
    assert_eq!(fs::read(&output).unwrap(), b"mine");
    fs::remove_file(&output).unwrap();
    fs::create_dir(&output).unwrap();
    let error = block_on(files::get(&network, cid, &output, options())).unwrap_err();
    assert!(matches!(error, GetError::IsDirectory { .. }), "{error}");
    assert_eq!(fs::read_dir(&output).unwrap().count(), 0);
}

const DIRECTORY: &[u8] = &[8, 1];

#[test]
fn no_entry_leads_out_of_the_directory() {
    for name in [
        &b".."[..],
        b".",
        b"",
        b"../escaped",
        b"/tmp/escaped",
        b"a/../../escaped",
        b"a\0",
        b"\xff\xfe",
        &[b'a'; 256],
    ] {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("inside");
        fs::create_dir(&inside).unwrap();
        let mut network = Network::default();
        let leaf = network.leaf(b"evil");
        let bad = network.node(&[(name, leaf)], DIRECTORY);
        let root = network.node(&[(b"good", leaf), (b"sub", bad)], DIRECTORY);
        for cid in [bad, root] {
            let error = network.get(cid, &inside.join("out")).unwrap_err();
            assert!(
                matches!(error, GetError::Malformed { .. }),
                "{name:?}: {error}"
            );
        }
        let outside: Vec<_> = listing(directory.path()).into_keys().collect();
        let is_inside = |path: &PathBuf| path.starts_with("inside");
        assert!(outside.iter().all(is_inside), "{name:?}: {outside:?}");
        assert!(!inside.join("out").exists());
    }
}

/// A block of 2 MiB that is linked a million times.
#[test]
fn symbolic_links_do_not_fill_the_memory() {
    let mut network = Network::default();
    let link = |target: &[u8]| {
        let length = target.len();
        let length = [(length & 0x7f) as u8 | 0x80, (length >> 7) as u8];
        [&[8, 4, 0x12][..], &length, target].concat()
    };
    let directory = tempfile::tempdir().unwrap();
    let long = network.node(&[], &link(&[b'x'; 4096]));
    let root = network.node(&[(b"a", long)], DIRECTORY);
    let error = network.get(root, &directory.path().join("long"));
    assert!(matches!(error, Err(GetError::Malformed { .. })));
    let longest = network.node(&[], &link(&[b'x'; 4095]));
    let names: Vec<_> = (0..20_000)
        .map(|n: u32| n.to_string().into_bytes())
        .collect();
    let links: Vec<_> = names.iter().map(|name| (&name[..], longest)).collect();
    let root = network.node(&links, DIRECTORY);
    let error = network
        .get(root, &directory.path().join("many"))
        .unwrap_err();
    assert!(
        error.to_string().contains("too many symbolic links"),
        "{error}"
    );
}

#[test]
fn names_that_are_there_twice_are_refused() {
    let mut network = Network::default();
    let (one, other) = (network.leaf(b"one"), network.leaf(b"other"));
    let below = network.node(&[(b"x", other)], DIRECTORY);
    let directory = tempfile::tempdir().unwrap();
    for root in [
        network.node(&[(b"a", one), (b"a", other)], DIRECTORY),
        // A file, and a directory below the same name.
        network.node(&[(b"a", one), (b"a", below)], DIRECTORY),
    ] {
        let error = network
            .get(root, &directory.path().join("out"))
            .unwrap_err();
        assert!(error.to_string().contains("same name"), "{error}");
    }
}

/// A link that leads out of the directory, and, if names could be there twice, a file to be written through it.
#[cfg(unix)]
#[test]
fn nothing_is_written_through_a_symbolic_link() {
    let directory = tempfile::tempdir().unwrap();
    let outside = directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("x"), "untouched").unwrap();
    let mut network = Network::default();
    let leaf = network.leaf(b"evil");
    let target = outside.to_str().unwrap().as_bytes();
    let data = [&[8, 4, 0x12, target.len() as u8], target].concat();
    let link = network.node(&[], &data);
    let sub = network.node(&[(b"x", leaf)], DIRECTORY);
    let root = network.node(&[(b"sub", sub), (b"way out", link)], DIRECTORY);
    let output = directory.path().join("out");
    network.get(root, &output).unwrap();
    assert_eq!(fs::read_link(output.join("way out")).unwrap(), outside);
    fs::remove_dir_all(&output).unwrap();
    // Somebody who may write here has put links into the place of the part that an earlier run would have left.
    let part = part_path(&output, &root);
    for (place, target) in [
        (part.clone(), outside.clone()),
        (part.join("sub"), outside.clone()),
        (part.join("sub/x"), outside.join("x")),
    ] {
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, &place).unwrap();
        let error = network.get(root, &output).unwrap_err();
        assert!(matches!(error, GetError::Io { .. }), "{place:?}: {error}");
        assert_eq!(listing(&outside).len(), 1, "{place:?}");
        assert_eq!(fs::read(outside.join("x")).unwrap(), b"untouched");
        match place == part {
            true => fs::remove_file(&part).unwrap(),
            false => fs::remove_dir_all(&part).unwrap(),
        }
    }
}

#[test]
fn a_tree_that_unfolds_for_ever_ends() {
    let mut network = Network::default();
    let mut deep = network.node(&[], DIRECTORY);
    for _ in 0..200 {
        deep = network.node(&[(b"d", deep)], DIRECTORY);
    }
    // Two blocks, and 900 million files.
    let names: Vec<_> = (0..30_000)
        .map(|n: u32| n.to_string().into_bytes())
        .collect();
    let leaf = network.leaf(b"");
    let links: Vec<_> = names.iter().map(|name| (&name[..], leaf)).collect();
    let wide = network.node(&links, DIRECTORY);
    let links: Vec<_> = names.iter().map(|name| (&name[..], wide)).collect();
    let wider = network.node(&links, DIRECTORY);
    for (root, why) in [(deep, "128 directories"), (wider, "a million entries")] {
        let directory = tempfile::tempdir().unwrap();
        let error = network
            .get(root, &directory.path().join("out"))
            .unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn a_large_file_in_a_directory_is_asked_for_as_far_ahead_as_one_that_is_alone() {
    let directory = tempfile::tempdir().unwrap();
    let tree = tree(directory.path());
    let data = content(40 * 1024 * 1024);
    for name in ["first", "second"] {
        fs::write(tree.join(name), &data).unwrap();
    }
    // Two files with the same leaves would share them.
    let other = [&b"x"[..], &data].concat();
    fs::write(tree.join("second"), &other).unwrap();
    let mut network = Network::default();
    let cid = network.add(&tree, Profile::UNIXFS_V1_2025);
    let leaves = |data: &[u8]| data.chunks(1024 * 1024).map(raw).collect::<Vec<_>>();
    let (first, second) = (leaves(&data), leaves(&other));
    network.withheld = vec![first[0], second[0]];
    let output = directory.path().join("out");
    let mut get = Box::pin(files::get(&network, cid, &output, GetOptions::default()));
    let count = |leaves: &[Cid]| {
        let asked = network.asked();
        leaves.iter().filter(|leaf| asked.contains(leaf)).count()
    };
    let mut polls = 0;
    block_on(futures::future::poll_fn(|context| {
        assert!(get.as_mut().poll(context).is_pending());
        context.waker().wake_by_ref();
        let most = count(&first).max(count(&second));
        polls += usize::from(most >= 32);
        match polls {
            200.. => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }));
    let mut both = [count(&first), count(&second)];
    both.sort_unstable();
    assert_eq!(both, [1, 32], "one looks ahead, the other one waits");
}

#[test]
fn what_cannot_be_added_is_named_and_leaves_nothing_pinned() {
    let directory = tempfile::tempdir().unwrap();
    let tree = tree(directory.path());
    let fails = |tree: &Path| {
        block_on(async {
            let (_directory, store) = store().await;
            let added = files::add_directory(&store, tree, AddDirectoryOptions::default());
            let error = added.await.unwrap_err();
            assert!(store.pin_sets().is_empty());
            error
        })
    };
    let error = fails(&directory.path().join("missing"));
    assert!(error.to_string().contains("missing"), "{error}");
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt as _;
        let socket = tree.join("sub/socket");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let error = fails(&tree).to_string();
        assert!(
            error.contains("sub/socket") && error.contains("a socket"),
            "{error}"
        );
        drop(listener);
        fs::remove_file(socket).unwrap();
        let name = std::ffi::OsStr::from_bytes(b"sub/\xff");
        // Some file systems refuse it.
        if fs::write(tree.join(name), "x").is_ok() {
            let error = fails(&tree);
            assert!(error.to_string().contains("UTF-8"), "{error}");
            fs::remove_file(tree.join(name)).unwrap();
        }
    }
    let mut deep = tree.clone();
    for _ in 0..130 {
        deep.push("d");
    }
    fs::create_dir_all(deep).unwrap();
    assert!(fails(&tree).to_string().contains("128 directories"));
}

#[test]
fn an_add_that_nobody_waits_for_stops_and_leaves_nothing_pinned() {
    let directory = tempfile::tempdir().unwrap();
    let many = many(directory.path(), 1000);
    block_on(async {
        let (_directory, store) = store().await;
        let mut calls = 0;
        let options = AddDirectoryOptions {
            on_progress: Some(Box::new(|read, total| {
                calls += 1;
                assert!(read <= total && total == 14_000);
                match read {
                    7000.. => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                }
            })),
            ..AddDirectoryOptions::default()
        };
        let error = files::add_directory(&store, &many, options)
            .await
            .unwrap_err();
        assert!(matches!(error, AddError::Stopped), "{error}");
        assert!(store.pin_sets().is_empty());
        assert_eq!(calls, 500);
    });
}

#[test]
fn a_directory_that_does_not_fit_into_the_store_fails_before_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let tree = tree(directory.path());
    block_on(async {
        let (_directory, store) = store().await;
        let room = store.room_for_pinned();
        // Takes no space.
        let sparse = fs::File::create(tree.join("huge")).unwrap();
        sparse.set_len(room).unwrap();
        let error = files::add_directory(&store, &tree, AddDirectoryOptions::default()).await;
        let error = error.unwrap_err();
        assert!(
            matches!(error, AddError::NoRoom { needed, .. } if needed > room),
            "{error}"
        );
    });
}
