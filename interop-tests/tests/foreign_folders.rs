//! Folders with a real kubo daemon: `anypath add` and `ipfs add -r` give the same CIDs, and each side gets the tree that the other one has.
#![cfg(feature = "foreign")]

use anypath_interop_tests::peers::{Anypath, Cells, Error, Kubo, KuboSettings, Transport};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A chunk of `ipfs add --cid-version=1`.
const CHUNK: usize = 256 << 10;

/// From more bytes of names and CIDs on, a directory is sharded; a CIDv1 with SHA2-256 has 36.
const SHARDED_ABOVE: usize = 256 << 10;
const CID_BYTES: usize = 36;

/// Folders of which each has something that the others have not.
const CORPUS: [Folder; 9] = [
    Folder {
        name: "an empty folder",
        hidden: false,
        fill: |_, _| Ok(()),
    },
    Folder {
        name: "folders in folders, empty ones too",
        hidden: false,
        fill: nested,
    },
    Folder {
        name: "odd names",
        hidden: false,
        fill: odd,
    },
    Folder {
        name: "hidden files, which both leave out",
        hidden: false,
        fill: with_hidden,
    },
    Folder {
        name: "hidden files, which both are told to add",
        hidden: true,
        fill: with_hidden,
    },
    Folder {
        name: "symbolic links",
        hidden: false,
        fill: links,
    },
    Folder {
        name: "as many names as fit into one node",
        hidden: false,
        fill: |folder, salt| names_of(folder, salt, SHARDED_ABOVE),
    },
    Folder {
        name: "one byte of a name more: shards",
        hidden: false,
        fill: |folder, salt| names_of(folder, salt, SHARDED_ABOVE + 1),
    },
    Folder {
        name: "10,000 small files",
        hidden: false,
        fill: |folder, salt| small_files(folder, salt, 10_000),
    },
];

struct Folder {
    name: &'static str,
    /// With what begins with a dot.
    hidden: bool,
    fill: Fill,
}

/// Fills an empty directory. The text is in every file, so that one tree has no block of another's files.
type Fill = fn(&Path, &str) -> std::io::Result<()>;

fn nested(folder: &Path, salt: &str) -> std::io::Result<()> {
    fs::create_dir_all(folder.join("one/two/three/four"))?;
    fs::create_dir_all(folder.join("one/nothing"))?;
    fs::create_dir(folder.join("nothing here either"))?;
    fs::write(folder.join("empty"), "")?;
    fs::write(folder.join("one/two/file"), salt)?;
    fs::write(folder.join("one/two/three/four/file"), salt)?;
    // The same node in two places.
    fs::create_dir_all(folder.join("again/four"))?;
    fs::write(folder.join("again/four/file"), salt)?;
    fs::write(folder.join("one/chunks"), salt.repeat(3 * CHUNK))
}

fn odd(folder: &Path, salt: &str) -> std::io::Result<()> {
    let longest = ["x".repeat(255), "長".repeat(85)];
    let names = [
        "a space",
        " spaces around ",
        "-rf",
        "%2e%2e",
        "...",
        "trailing dot.",
        "back\\slash",
        "quotes '\"`",
        "$HOME; *?[a]<>|&#",
        "tab\tand\nnewline",
        "control\u{1}",
        "ünïcödé 日本語 🦀",
        // The same letter, composed and not.
        "é",
        "e\u{301}",
        "\u{202e}right to left",
        "\u{feff}",
        "Case",
        "case",
        "CON",
        "00",
        "F0",
    ];
    for name in names.into_iter().chain(longest.iter().map(String::as_str)) {
        fs::write(folder.join(name), format!("{salt}{name}"))?;
    }
    let within = folder.join("a folder\twith ünïcödé");
    fs::create_dir(&within)?;
    fs::write(within.join("a file"), salt)
}

fn with_hidden(folder: &Path, salt: &str) -> std::io::Result<()> {
    fs::create_dir_all(folder.join(".hidden/folder"))?;
    fs::create_dir(folder.join("seen"))?;
    for name in [
        ".file",
        "..twice",
        ".hidden/folder/file",
        "seen/.file",
        "seen/file",
    ] {
        fs::write(folder.join(name), format!("{salt}{name}"))?;
    }
    Ok(())
}

fn links(folder: &Path, salt: &str) -> std::io::Result<()> {
    use std::os::unix::fs::symlink;
    fs::create_dir(folder.join("below"))?;
    fs::write(folder.join("file"), salt)?;
    symlink("file", folder.join("to a file"))?;
    symlink("../file", folder.join("below/to a file above"))?;
    symlink("below", folder.join("to a folder"))?;
    symlink("nowhere/日本語", folder.join("to nothing"))
}

/// Names that make exactly so many bytes with their CIDs: ten of them have another length.
fn names_of(folder: &Path, salt: &str, bytes: usize) -> std::io::Result<()> {
    const NAME_BYTES: usize = 244;
    let entry = NAME_BYTES + CID_BYTES;
    let (count, mut more) = (bytes / entry, bytes % entry);
    for number in 0..count {
        let longer = more.min(255 - NAME_BYTES);
        more -= longer;
        let name = format!("{number:0width$}", width = NAME_BYTES + longer);
        fs::write(folder.join(name), format!("{salt}{number}"))?;
    }
    match more {
        0 => Ok(()),
        _ => Err(std::io::Error::other("the names do not get long enough")),
    }
}

/// A directory whose node is as large as one may be with the profile `unixfs-v1-2025`, which counts that: 256 KiB, of which it takes
/// 4 itself, 246 for a name of 200 and 150 for one of 105. Each byte of `longer` is one more.
fn full_node(folder: &Path, salt: &str, longer: usize) -> std::io::Result<()> {
    for number in 0..1065 {
        fs::write(folder.join(format!("{number:0200}")), salt)?;
    }
    fs::write(folder.join("x".repeat(105 + longer)), salt)
}

fn small_files(folder: &Path, salt: &str, count: usize) -> std::io::Result<()> {
    for number in 0..count {
        let name = format!("file {number:05}");
        fs::write(folder.join(&name), format!("{salt}{name}"))?;
    }
    Ok(())
}

/// An entry of a tree of files.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Folder,
    File(Vec<u8>),
    Link(PathBuf),
}

/// All entries by path, without those that begin with a dot unless they count.
fn tree(folder: &Path, hidden: bool) -> std::io::Result<BTreeMap<PathBuf, Entry>> {
    let mut entries = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(within) = pending.pop() {
        for entry in fs::read_dir(folder.join(&within))? {
            let entry = entry?;
            if !hidden && entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = within.join(entry.file_name());
            let kind = entry.file_type()?;
            let found = if kind.is_dir() {
                pending.push(path.clone());
                Entry::Folder
            } else if kind.is_symlink() {
                Entry::Link(fs::read_link(entry.path())?)
            } else {
                Entry::File(fs::read(entry.path())?)
            };
            entries.insert(path, found);
        }
    }
    Ok(entries)
}

/// The copy has all that it has to have, and nothing else.
fn same(folder: &Path, copy: &Path, hidden: bool) -> Result<(), Error> {
    let (wanted, found) = (tree(folder, hidden)?, tree(copy, true)?);
    if wanted == found {
        return Ok(());
    }
    let differs = |path: &&PathBuf| wanted.get(*path) != found.get(*path);
    let first = wanted.keys().chain(found.keys()).find(differs);
    Err(Error::Wrong(format!(
        "{} entries, {} in the copy; {first:?} differs",
        wanted.len(),
        found.len()
    )))
}

fn equal(ours: &str, theirs: &str) -> Result<(), Error> {
    if ours == theirs {
        Ok(())
    } else {
        Err(Error::Wrong(format!("ours is {ours}, kubo's {theirs}")))
    }
}

fn text(path: &Path) -> Result<&str, Error> {
    let wrong = || Error::Wrong(format!("{} is no UTF-8", path.display()));
    path.to_str().ok_or_else(wrong)
}

/// `anypath add` of a folder.
async fn add(node: &Anypath, folder: &Path, hidden: bool) -> Result<String, Error> {
    let flags: &[&str] = if hidden { &["--hidden"] } else { &[] };
    node.run(&[&["add", text(folder)?], flags].concat()).await
}

/// `ipfs add -r` of a folder, with CIDv1.
async fn ipfs_add(
    kubo: &Kubo,
    folder: &Path,
    hidden: bool,
    only_hash: bool,
) -> Result<String, Error> {
    let mut arguments = vec!["add", "-Q", "-r", "--cid-version=1"];
    if hidden {
        arguments.push("--hidden");
    }
    if only_hash {
        arguments.push("--only-hash");
    }
    arguments.push(text(folder)?);
    kubo.run(&arguments).await
}

/// The first ones of the corpus, so many.
async fn folders(transport: Transport, count: usize, test: &'static str) -> Result<(), Error> {
    let mut cells = Cells::new("Folders", format!("kubo {}", transport.name()), test);
    let kubo = Kubo::start(transport).await?;
    let node = Anypath::start(transport).await?;
    let (at, from) = (node.address().to_string(), kubo.address().to_string());

    for Folder { name, hidden, fill } in CORPUS.into_iter().take(count) {
        let scratch = tempfile::tempdir()?;
        let within = |name: &str| scratch.path().join(name);
        cells
            .works(
                &format!("{name}: the same CID, kubo gets it from us"),
                async {
                    let (folder, copy) = (within("ours"), within("kubo's copy"));
                    fs::create_dir(&folder)?;
                    fill(&folder, "ours")?;
                    let ours = add(&node, &folder, hidden).await?;
                    equal(&ours, &ipfs_add(&kubo, &folder, hidden, true).await?)?;
                    kubo.run(&["swarm", "connect", &at]).await?;
                    // `ipfs get` alone asks for one block after the other, 20 ms each, and of another kubo as well.
                    kubo.run(&["pin", "add", &ours]).await?;
                    kubo.run(&["get", "-o", text(&copy)?, &ours]).await?;
                    same(&folder, &copy, hidden)
                },
            )
            .await;
        cells
            .works(
                &format!("{name}: the same CID, we get it from kubo"),
                async {
                    let (folder, copy) = (within("kubo's"), within("our copy"));
                    fs::create_dir(&folder)?;
                    fill(&folder, "kubo's")?;
                    let theirs = ipfs_add(&kubo, &folder, hidden, false).await?;
                    node.run(&["get", &theirs, "-o", text(&copy)?, "--peer", &from])
                        .await?;
                    same(&folder, &copy, hidden)?;
                    equal(&add(&node, &folder, hidden).await?, &theirs)
                },
            )
            .await;
    }

    let scratch = tempfile::tempdir()?;
    cells
        .works(
            "CIDv0, as `ipfs add -r` gives it: we get it from kubo",
            async {
                let (folder, copy) = (scratch.path().join("v0"), scratch.path().join("copy"));
                fs::create_dir(&folder)?;
                nested(&folder, "v0")?;
                // Its CIDs are two bytes shorter.
                names_of(&folder.join("again"), "v0", SHARDED_ABOVE + 4096)?;
                let cid = kubo.run(&["add", "-Q", "-r", text(&folder)?]).await?;
                node.run(&["get", &cid, "-o", text(&copy)?, "--peer", &from])
                    .await?;
                same(&folder, &copy, false)
            },
        )
        .await;
    cells
        .works("kubo pins a folder that only we have", async {
            let (folder, copy) = (scratch.path().join("ours"), scratch.path().join("pinned"));
            fs::create_dir(&folder)?;
            nested(&folder, "pinned")?;
            let cid = add(&node, &folder, false).await?;
            kubo.run(&["swarm", "connect", &at]).await?;
            kubo.run(&["pin", "add", &cid]).await?;
            kubo.run(&["repo", "gc"]).await?;
            // Without us.
            kubo.run(&["swarm", "disconnect", &at]).await?;
            kubo.run(&["get", "-o", text(&copy)?, &cid]).await?;
            same(&folder, &copy, false)
        })
        .await;
    cells.finish()
}

/// What a directory may take before it is sharded is counted in another way with this profile.
async fn with_profile(test: &'static str) -> Result<(), Error> {
    let mut cells = Cells::new("Folders", "kubo tcp", test);
    let profile = "unixfs-v1-2025";
    let settings = KuboSettings {
        profile: Some(profile),
        ..KuboSettings::default()
    };
    let kubo = Kubo::start_with(Transport::Tcp, settings).await?;
    let node = Anypath::start(Transport::Tcp).await?;
    let scratch = tempfile::tempdir()?;
    for (name, fill) in [
        ("folders in folders", nested as Fill),
        ("a full node", |folder, salt| full_node(folder, salt, 0)),
        ("a full node + 1 B", |folder, salt| {
            full_node(folder, salt, 1)
        }),
    ] {
        cells
            .works(&format!("{name} with {profile}: the same CID"), async {
                let folder = scratch.path().join(name);
                fs::create_dir(&folder)?;
                fill(&folder, profile)?;
                let ours = ["add", "--profile", profile, text(&folder)?];
                let theirs = ["add", "-Q", "-r", "--only-hash", text(&folder)?];
                equal(&node.run(&ours).await?, &kubo.run(&theirs).await?)
            })
            .await;
    }
    cells.finish()
}

#[tokio::test]
async fn kubo_and_we_name_and_exchange_the_same_folders_over_tcp() -> Result<(), Error> {
    folders(Transport::Tcp, CORPUS.len(), "folders-kubo-tcp").await
}

#[tokio::test]
async fn kubo_and_we_name_the_same_folders_with_its_profile_of_2025() -> Result<(), Error> {
    with_profile("folders-kubo-profile").await
}

#[tokio::test]
async fn kubo_and_we_name_and_exchange_the_same_folders_over_quic() -> Result<(), Error> {
    // Names and trees are the same over any transport.
    folders(Transport::Quic, 3, "folders-kubo-quic").await
}
