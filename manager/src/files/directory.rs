//! Directories as blocks: one node of links, or a tree of shards where there are too many.

use cid::Cid;

use super::{
    Profile, SizeEstimation,
    dag_pb::{Built, DAG_PB, Link, PbLink, PbNode, UnixFs, put_bytes, put_varint},
    node::{Kind, RAW, Refused},
};

/// Bytes from which on a directory is sharded: kubo's `Import.UnixFSHAMTDirectorySizeThreshold`.
const SHARDING_BYTES: usize = 256 * 1024;
/// Links of a shard: kubo's `Import.UnixFSHAMTDirectoryMaxFanout`.
const FANOUT: u64 = 256;
/// Multicodec `murmur3-x64-64`, the only hash of names in use.
const MURMUR3: u64 = 0x22;
/// The largest fan-out that kubo reads.
const MAX_FANOUT: u64 = 1024;
/// The longest name that file systems take, in bytes.
const MAX_NAME: usize = 255;
/// The longest target of a symbolic link: less than a page, as Linux has it.
const MAX_TARGET: usize = 4095;

/// What a CID is for whoever gets a tree of files.
#[derive(Debug)]
pub(super) enum Object {
    /// A file, or its only block.
    File,
    /// A directory in one block.
    Directory(Vec<Link>),
    /// A part of a directory.
    Shard(Shard),
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
}

/// One block of a sharded directory, with all that it says checked.
#[derive(Debug)]
pub(super) struct Shard {
    /// Entries of the directory.
    pub(super) entries: Vec<Link>,
    /// Shards below.
    pub(super) shards: Vec<(Position, Cid)>,
}

/// Where in the tree a shard is: the bits of their names' hashes that all entries below it share, and how many links its nodes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    bits: u64,
    count: u32,
    fanout: u64,
}

impl Object {
    /// Reads a block. `position` is that of a shard; none at the top of a directory or elsewhere.
    pub(super) fn read(
        cid: &Cid,
        block: &[u8],
        position: Option<Position>,
    ) -> Result<Self, Refused> {
        let object = match cid.codec() {
            RAW => Self::File,
            DAG_PB => read_dag_pb(block, position)?,
            _ => return Err(Refused::NotAFile(Kind::Other)),
        };
        match (position, &object) {
            (None, _) | (Some(_), Self::Shard(_)) => Ok(object),
            (Some(_), _) => Err(Refused::Malformed("it is no part of a sharded directory")),
        }
    }
}

fn read_dag_pb(block: &[u8], position: Option<Position>) -> Result<Object, Refused> {
    let node = PbNode::read(block).ok_or(Refused::NotAFile(Kind::Other))?;
    let data = node.data.ok_or(Refused::NotAFile(Kind::Other))?;
    let unixfs = UnixFs::read(data).ok_or(Refused::Malformed("it is not valid UnixFS"))?;
    match unixfs.kind {
        UnixFs::FILE | UnixFs::RAW => Ok(Object::File),
        UnixFs::DIRECTORY => read_directory(&node),
        UnixFs::HAMT_SHARD => read_shard(&node, &unixfs, position).map(Object::Shard),
        UnixFs::SYMLINK => match unixfs.data {
            [] => Err(Refused::Malformed("it is a symbolic link to nothing")),
            target if target.contains(&0) || target.len() > MAX_TARGET => Err(Refused::Malformed(
                "it is a symbolic link to what no path can be",
            )),
            target => Ok(Object::Symlink(target.to_vec())),
        },
        _ => Err(Refused::NotAFile(Kind::Other)),
    }
}

fn read_directory(node: &PbNode<'_>) -> Result<Object, Refused> {
    let links = node.links.iter().map(|link| read_link(link, link.name));
    let links = links.collect::<Result<Vec<_>, _>>()?;
    let mut names: Vec<_> = links.iter().map(|link| &link.name).collect();
    names.sort_unstable();
    match names.windows(2).all(|pair| pair.first() != pair.last()) {
        true => Ok(Object::Directory(links)),
        false => Err(Refused::Malformed("two of its entries have the same name")),
    }
}

fn read_link(link: &PbLink<'_>, name: &[u8]) -> Result<Link, Refused> {
    Ok(Link {
        name: check_name(name).map_err(Refused::Malformed)?.to_owned(),
        cid: link.cid().ok_or(Refused::Malformed("a link has no CID"))?,
        size: link.size,
    })
}

/// The name of an entry if it can be that of a file, and of nothing outside its directory.
pub(super) fn check_name(name: &[u8]) -> Result<&str, &'static str> {
    let name = std::str::from_utf8(name).map_err(|_| "the name of an entry is not UTF-8")?;
    match name {
        "" => Err("an entry has no name"),
        "." | ".." => Err("an entry is named `.` or `..`"),
        _ if name.len() > MAX_NAME => Err("the name of an entry has more than 255 bytes"),
        _ if name.contains(['/', '\0']) => Err("the name of an entry has a slash or a NUL in it"),
        _ if cfg!(windows) && !is_name_on_windows(name) => {
            Err("the name of an entry cannot be that of a file on Windows")
        }
        _ => Ok(name),
    }
}

/// Windows takes some names for devices, streams or paths.
fn is_name_on_windows(name: &str) -> bool {
    const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];
    let stem = name.split('.').next().unwrap_or_default().trim_end();
    let stem = stem.to_ascii_lowercase();
    let numbered = |prefix| {
        let number = stem.strip_prefix(prefix);
        number.is_some_and(|number: &str| number.chars().count() == 1)
    };
    !name.contains(['\\', ':', '*', '?', '"', '<', '>', '|'])
        && !name.contains(|c: char| c.is_ascii_control())
        && !name.ends_with(['.', ' '])
        && !DEVICES.contains(&stem.as_str())
        && !numbered("com")
        && !numbered("lpt")
}

/// Every entry has to be where its name's hash puts it. So no name can be there twice, in whichever shards.
fn read_shard(
    node: &PbNode<'_>,
    unixfs: &UnixFs<'_>,
    position: Option<Position>,
) -> Result<Shard, Refused> {
    let malformed = |reason| Err(Refused::Malformed(reason));
    let fanout = unixfs.fanout.unwrap_or(0);
    if unixfs.hash != Some(MURMUR3) {
        return malformed("its names are hashed in an unknown way");
    }
    if !fanout.is_power_of_two() || !(8..=MAX_FANOUT).contains(&fanout) {
        return malformed("its fan-out is not a power of two from 8 to 1024");
    }
    let position = position.unwrap_or(Position {
        bits: 0,
        count: 0,
        fanout,
    });
    let step = fanout.trailing_zeros();
    if fanout != position.fanout {
        return malformed("its fan-out is not that of the shards above");
    }
    if position.count + step > u64::BITS {
        return malformed("it is deeper than names have bits");
    }
    let digits = format!("{:X}", fanout - 1).len();
    let mut shard = Shard {
        entries: Vec::new(),
        shards: Vec::new(),
    };
    let mut last = None;
    for link in &node.links {
        let split = link.name.split_at_checked(digits);
        let index = split.and_then(|(prefix, name)| Some((read_index(prefix, fanout)?, name)));
        let Some((index, name)) = index else {
            return malformed("a link of a shard has no index before its name");
        };
        if last >= Some(index) {
            return malformed("the links of a shard are not in order");
        }
        last = Some(index);
        let below = Position {
            bits: position.bits << step | index,
            count: position.count + step,
            fanout,
        };
        if name.is_empty() {
            let cid = link.cid().ok_or(Refused::Malformed("a link has no CID"))?;
            shard.shards.push((below, cid));
        } else if hash(name) >> (u64::BITS - below.count) == below.bits {
            shard.entries.push(read_link(link, name)?);
        } else {
            return malformed("an entry is not where its name belongs");
        }
    }
    Ok(shard)
}

/// Hexadecimal digits, the letters in upper case.
fn read_index(digits: &[u8], fanout: u64) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'A'..=b'F');
    let index = u64::from_str_radix(text, 16).ok()?;
    (digits.iter().all(is_digit) && index < fanout).then_some(index)
}

/// The first half of murmur3-x64-128, of which shards use the most significant bits first.
fn hash(name: &[u8]) -> u64 {
    // Reading from memory does not fail.
    let hash = murmur3::murmur3_x64_128(&mut &name[..], 0).unwrap_or_default();
    (hash & u128::from(u64::MAX)) as u64
}

/// The node of a symbolic link.
pub(super) fn symlink(target: &[u8]) -> Built {
    let mut data = Vec::new();
    put_varint(1, UnixFs::SYMLINK, &mut data);
    put_bytes(2, target, &mut data);
    Built::new(&[], &data)
}

/// Two entries cannot be told apart by their hashes.
#[derive(Debug)]
pub(super) struct Collision;

/// The nodes of a directory, those below before those above, the directory itself last. Its entries have different names.
pub(super) fn build(profile: Profile, mut links: Vec<Link>) -> Result<Vec<Built>, Collision> {
    links.sort_unstable_by(|one, other| one.name.as_bytes().cmp(other.name.as_bytes()));
    let mut data = Vec::new();
    put_varint(1, UnixFs::DIRECTORY, &mut data);
    let node = Built::new(&links, &data);
    let estimate = match profile.estimation {
        SizeEstimation::Links => links
            .iter()
            .map(|link| link.name.len() + link.cid.encoded_len())
            .sum(),
        SizeEstimation::Block => node.block.len(),
    };
    if estimate <= SHARDING_BYTES {
        return Ok(vec![node]);
    }
    let entries = links.into_iter();
    let mut entries: Vec<_> = entries
        .map(|link| (hash(link.name.as_bytes()), link))
        .collect();
    entries.sort_unstable_by_key(|(hash, _)| *hash);
    let mut nodes = Vec::new();
    let top = build_shard(&entries, 0, &mut nodes)?;
    nodes.push(top);
    Ok(nodes)
}

/// The shard of these entries, whose first `depth` indices are the same; the shards below go to `nodes`.
fn build_shard(
    entries: &[(u64, Link)],
    depth: u32,
    nodes: &mut Vec<Built>,
) -> Result<Built, Collision> {
    const STEP: u32 = FANOUT.trailing_zeros();
    if (depth + 1) * STEP > u64::BITS {
        return Err(Collision);
    }
    let index = |hash: u64| (hash >> (u64::BITS - (depth + 1) * STEP)) & (FANOUT - 1);
    let mut links = Vec::new();
    let mut bitfield = [0_u8; FANOUT as usize / 8];
    for group in entries.chunk_by(|(one, _), (other, _)| index(*one) == index(*other)) {
        let [(hash, first), others @ ..] = group else {
            continue;
        };
        let at = index(*hash);
        // Big endian: the last byte has the first indices.
        if let Some(byte) = bitfield.iter_mut().rev().nth((at / 8) as usize) {
            *byte |= 1 << (at % 8);
        }
        links.push(if others.is_empty() {
            Link {
                name: format!("{at:02X}{}", first.name),
                ..first.clone()
            }
        } else {
            let shard = build_shard(group, depth + 1, nodes)?;
            let link = Link {
                name: format!("{at:02X}"),
                cid: shard.cid,
                size: shard.size,
            };
            nodes.push(shard);
            link
        });
    }
    let zeros = bitfield.iter().take_while(|byte| **byte == 0).count();
    let mut data = Vec::new();
    put_varint(1, UnixFs::HAMT_SHARD, &mut data);
    put_bytes(2, bitfield.get(zeros..).unwrap_or_default(), &mut data);
    put_varint(5, MURMUR3, &mut data);
    put_varint(6, FANOUT, &mut data);
    Ok(Built::new(&links, &data))
}

#[cfg(test)]
mod tests {
    use multihash_codetable::{Code, MultihashDigest as _};
    use proptest::prelude::*;

    use super::*;

    fn link(name: &str) -> Link {
        Link {
            name: name.to_owned(),
            cid: Cid::new_v1(RAW, Code::Sha2_256.digest(name.as_bytes())),
            size: name.len() as u64,
        }
    }

    /// A directory of these links, whatever they are.
    fn directory(links: &[Link]) -> Built {
        Built::new(links, &[8, 1])
    }

    fn read(built: &Built) -> Result<Object, Refused> {
        Object::read(&built.cid, &built.block, None)
    }

    #[test]
    fn an_empty_directory_is_the_one_that_everybody_knows() {
        let built = build(Profile::KUBO, Vec::new()).unwrap_or_default();
        let [node] = &built[..] else { panic!() };
        assert_eq!(&node.block[..], [0x0a, 2, 8, 1]);
        let cid = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354";
        assert_eq!(node.cid.to_string(), cid);
        assert_eq!(node.size, 4);
        assert!(matches!(read(node), Ok(Object::Directory(links)) if links.is_empty()));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "/",
            "/etc/passwd",
            "a/b",
            "../x",
            "a\0b",
            &"é".repeat(128),
        ] {
            assert!(read(&directory(&[link(name)])).is_err(), "{name:?}");
        }
        for name in [
            " ",
            "...",
            "..a",
            "-rf",
            "a b",
            "ü",
            "日本語",
            "\u{202e}txt.exe",
            "a\nb",
            "~",
            "$HOME",
            "\\",
        ] {
            let on_windows = is_name_on_windows(name);
            let is_read = read(&directory(&[link(name)])).is_ok();
            assert_eq!(is_read, cfg!(not(windows)) || on_windows, "{name:?}");
        }
        for name in [
            "con",
            "Aux.txt",
            "COM1",
            "lpt9.tar.gz",
            "a:b",
            "a.",
            "a ",
            "..\\x",
            "a\u{1}",
        ] {
            assert!(!is_name_on_windows(name), "{name:?}");
        }
        assert!(is_name_on_windows("console") && is_name_on_windows("com10"));
        let node = directory(&[link("b"), link("a"), link("b")]);
        assert!(
            matches!(read(&node), Err(Refused::Malformed(reason)) if reason.contains("same name"))
        );
        let mut block = directory(&[link("a")]).block.to_vec();
        let at = block.iter().rposition(|byte| *byte == b'a').unwrap_or(0);
        block[at] = 0xff;
        assert!(
            Object::read(&directory(&[]).cid, &block, None).is_err(),
            "not UTF-8"
        );
    }

    /// The known hashes are those of murmur3's reference implementation.
    #[test]
    fn names_are_hashed_as_kubo_hashes_them() {
        assert_eq!(hash(b""), 0);
        assert_eq!(hash(b"hello"), 0xcbd8_a7b3_41bd_9b02);
        assert_eq!(hash(b"hello, world"), 0x342f_ac62_3a5e_bc8e);
    }

    /// Reads a directory from its blocks, as `get` does.
    fn list(nodes: &[Built]) -> Result<Vec<Link>, Refused> {
        let mut found = Vec::new();
        let mut pending = vec![(None, nodes.last().map(|node| node.cid))];
        while let Some((position, cid)) = pending.pop() {
            let Some(node) = nodes.iter().find(|node| Some(node.cid) == cid) else {
                panic!("a block is missing");
            };
            match Object::read(&node.cid, &node.block, position)? {
                Object::Directory(links) => found.extend(links),
                Object::Shard(shard) => {
                    found.extend(shard.entries);
                    let below = shard.shards.into_iter();
                    pending.extend(below.map(|(position, cid)| (Some(position), Some(cid))));
                }
                other => panic!("{other:?}"),
            }
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    #[test]
    fn a_directory_is_sharded_when_it_exceeds_the_threshold_and_not_at_it() {
        // 36 bytes of CID and 28 of name: 4,096 of them are the threshold.
        let mut links: Vec<_> = (0..4096).map(|n| link(&format!("{n:028}"))).collect();
        assert_eq!(
            build(Profile::KUBO, links.clone())
                .unwrap_or_default()
                .len(),
            1
        );
        // The whole block is larger.
        assert!(
            build(Profile::UNIXFS_V1_2025, links.clone())
                .unwrap_or_default()
                .len()
                > 1
        );
        links.push(link("z"));
        let nodes = build(Profile::KUBO, links.clone()).unwrap_or_default();
        assert!(nodes.len() > 200, "{}", nodes.len());
        assert_eq!(list(&nodes).ok(), Some(links.clone()));
        let all: u64 = nodes.iter().map(|node| node.block.len() as u64).sum();
        let files: u64 = links.iter().map(|link| link.size).sum();
        assert_eq!(nodes.last().map(|node| node.size), Some(all + files));
    }

    /// Whoever knows how murmur3 is attacked can make such names.
    #[test]
    fn names_with_the_same_hash_cannot_be_sharded_and_are_an_error() {
        let entries = [(7, link("a")), (7, link("b")), (8, link("c"))];
        assert!(build_shard(&entries, 0, &mut Vec::new()).is_err());
        assert!(build_shard(&entries[1..], 0, &mut Vec::new()).is_ok());
    }

    #[test]
    fn a_shard_whose_entries_are_not_where_they_belong_is_refused() {
        let data = |hash: u64, fanout: u64| {
            let mut data = vec![8, 5];
            put_varint(5, hash, &mut data);
            put_varint(6, fanout, &mut data);
            data
        };
        // A name whose index has a letter, which can be in the wrong case.
        let has_letter = |name: &String| {
            format!("{:02X}", hash(name.as_bytes()) >> 56)
                != format!("{:02x}", hash(name.as_bytes()) >> 56)
        };
        let mut names = (0..1000).map(|n| format!("name {n}"));
        let name = names.find(has_letter).unwrap_or_default();
        let (index, rest) = (
            hash(name.as_bytes()) >> 56,
            hash(name.as_bytes()) >> 48 & 0xff,
        );
        let right = format!("{index:02X}{name}");
        let shard = |names: &[&str], data: &[u8]| {
            let links: Vec<_> = names.iter().map(|name| link(name)).collect();
            Built::new(&links, data)
        };
        let standard = data(MURMUR3, 256);
        assert!(read(&shard(&[&right], &standard)).is_ok());
        let below = format!("{index:02X}");
        for (names, data) in [
            (vec![format!("{:02X}{name}", index ^ 1)], standard.clone()),
            (vec![format!("{index:02x}{name}")], standard.clone()),
            (vec![right.clone(), right.clone()], standard.clone()),
            (vec![below.clone(), right.clone()], standard.clone()),
            (vec!["F".to_owned()], standard.clone()),
            (vec![String::new()], standard.clone()),
            (vec![format!("{index:02X}../x")], standard.clone()),
            (vec![right.clone()], data(0x12, 256)),
            (vec![right.clone()], data(MURMUR3, 255)),
            (vec![right.clone()], data(MURMUR3, 1 << 40)),
            (vec![right.clone()], vec![8, 5]),
        ] {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            assert!(read(&shard(&names, &data)).is_err(), "{names:?} {data:?}");
        }
        let Ok(Object::Shard(Shard { shards, .. })) = read(&shard(&[&below], &standard)) else {
            panic!()
        };
        let position = Some(shards[0].0);
        let second = shard(&[&format!("{rest:02X}{name}")], &standard);
        assert!(Object::read(&second.cid, &second.block, position).is_ok());
        let first = shard(&[&right], &standard);
        if index != rest {
            assert!(Object::read(&first.cid, &first.block, position).is_err());
        }
        let plain = directory(&[]);
        assert!(Object::read(&plain.cid, &plain.block, position).is_err());
    }

    #[test]
    fn shards_that_go_on_for_ever_end() {
        let data = [&[8, 5][..], &[0x28, 0x22, 0x30, 0x80, 2]].concat();
        let chain = Built::new(&[link("00")], &data);
        let mut position = None;
        let depth = (0..100).find(|_| match Object::read(&chain.cid, &chain.block, position) {
            Ok(Object::Shard(shard)) => {
                position = shard.shards.first().map(|(position, _)| *position);
                false
            }
            _ => true,
        });
        assert_eq!(depth, Some(8));
    }

    proptest! {
        #[test]
        fn no_block_makes_it_panic(block in proptest::collection::vec(any::<u8>(), 0..200)) {
            let cid = directory(&[]).cid;
            let _ = Object::read(&cid, &block, None);
        }

        #[test]
        fn no_change_of_a_shard_makes_it_panic(at in 0_usize..10_000, byte: u8) {
            let data = [8, 5, 0x28, 0x22, 0x30, 0x80, 2];
            let names: Vec<_> = (0..8_u64).map(|n| link(&format!("{:02X}", n * 31))).collect();
            let node = Built::new(&names, &data);
            let mut block = node.block.to_vec();
            let at = at % block.len();
            block[at] = byte;
            let _ = Object::read(&node.cid, &block, None);
        }
    }
}
