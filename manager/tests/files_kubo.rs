//! Known answers: what kubo 0.40.1 printed for the same content, and trees that only kubo makes.
//!
//! The content is SHA2-256(0) ‖ SHA2-256(1) ‖ …, each number as 8 bytes little-endian, cut to its length.
//! The commands: `ipfs add -Q --only-hash --cid-version=1 --chunker=size-262144 --max-file-links=174`,
//! `ipfs add -Q --only-hash` in a repository made by `ipfs init --profile=unixfs-v1-2025`, and with
//! `--chunker=size-1024 --max-file-links=3` for trees that are deep and small.

#![cfg(feature = "files")]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod content;

use std::str::FromStr as _;

use anypath::files::{self, AddDirectoryOptions, AddOptions, Fetch, GetOptions, Profile};
use bytes::Bytes;
use cid::Cid;
use content::{content, store};
use futures::executor::block_on;

const KUBO: &[(usize, &str)] = &[
    (
        0,
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
    ),
    (
        1,
        "bafkreic2nz5eovfprz7up7eusmca3bj6pma6hhktpsy52nj4so324whlhu",
    ),
    (
        262_143,
        "bafkreiacynj7kazgaqp2746fk7q4jjg26y54cgc27n4bgi55htin2cqk3i",
    ),
    (
        262_144,
        "bafkreiaqvmtqltef4yrmjn237esoqzwbgfwbjrrrbpsr3qctlxgvlm62me",
    ),
    (
        262_145,
        "bafybeicml3tuikq2go6eoyfpwdbykmev4a5nfam3hmkvce4xs6ilkyvkxi",
    ),
    (
        174 * 262_144,
        "bafybeidf3mza7quxvcyimhuactgvoawsutzsfi24cflrh3gqgrqwiggprq",
    ),
    (
        174 * 262_144 + 1,
        "bafybeief5hxfbzqgcdvao6zzuky7tlnenazc4hfbiuguyhmcel24r2r7q4",
    ),
    (
        175 * 262_144,
        "bafybeifc4bniiatnym575g4ykjxajobyb2vdcktvmnla7vt4liibbkpzcy",
    ),
    (
        47_198_265,
        "bafybeibkzoxjmwrqs5sflrck3rwfgrmxsewtclwy7lorn7gypmzef6o7ya",
    ),
];

const UNIXFS_V1_2025: &[(usize, &str)] = &[
    (
        0,
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
    ),
    (
        1,
        "bafkreic2nz5eovfprz7up7eusmca3bj6pma6hhktpsy52nj4so324whlhu",
    ),
    (
        1_048_575,
        "bafkreicdeounrg7meiqpmxwl24j35ggafc4oh6nzg44tnnmxlnq3k5bcgm",
    ),
    (
        1_048_576,
        "bafkreiejgzer67t52pfcs6la5rbf5a3v6g45wujhrvp76vebeboatevbgi",
    ),
    (
        1_048_577,
        "bafybeiec4zswoujjko62l636uj52b5xc5o7repfvux5pgxbh2fuddlguke",
    ),
    (
        47_198_265,
        "bafybeihg4dif2t3ake47mipofcslwnya4leal5tibs24owlzp7xjngh6eq",
    ),
];

const CHUNKS_OF_1024_AND_3_LINKS: &[(usize, &str)] = &[
    (
        1024,
        "bafkreifhpe4abjziemu3anjlttiga7zewn5onxfpzp4sbg34zyeiur2yrm",
    ),
    (
        3072,
        "bafybeify24xmqgwumr27etvt7ywatt7y3nwex7ftsdiuwt3jp5wikzjhra",
    ),
    (
        3073,
        "bafybeibw6d54in6m3zei6nqx6hkn7y5jxm67xkrbb32lor2z6hzt6lh5k4",
    ),
    (
        9216,
        "bafybeid55l5evtyvppwu3wj36fkhikwede46oylayvfptmq5d7qb7cdngy",
    ),
    (
        9217,
        "bafybeigr4qq4yg5iasee7gzdlp62mev4pxdswdtxgtdpvuvplfnhpuh2gm",
    ),
    (
        27_649,
        "bafybeie5yjaqv2zy53kbk2qyw2bszk6lfhwchxo7rvmrnpc7ymejy3jehm",
    ),
    (
        100_001,
        "bafybeibxjb7yefklea46i443hn6q6ouvhwypsnmyeuxqpdwrlmihdg2gye",
    ),
];

fn cids_equal(profile: Profile, known: &[(usize, &str)]) {
    let longest = content(known.iter().map(|(length, _)| *length).max().unwrap());
    block_on(async {
        let (_directory, store) = store().await;
        for (length, cid) in known {
            let options = AddOptions {
                profile,
                size: Some(*length as u64),
                ..AddOptions::default()
            };
            let added = files::add(&store, &longest[..*length], options)
                .await
                .unwrap();
            assert_eq!(added.cid.to_string(), *cid, "{length} bytes");
            assert_eq!(added.bytes, *length as u64);
        }
    });
}

#[test]
fn cids_equal_those_of_ipfs_add_with_256_kib_chunks() {
    cids_equal(Profile::KUBO, KUBO);
}

#[test]
fn cids_equal_those_of_the_profile_unixfs_v1_2025() {
    cids_equal(Profile::UNIXFS_V1_2025, UNIXFS_V1_2025);
}

#[test]
fn cids_of_deep_trees_equal_those_of_ipfs_add() {
    cids_equal(Profile::new(1024, 3).unwrap(), CHUNKS_OF_1024_AND_3_LINKS);
}

/// The blocks of a CAR file (version 1).
struct Car(Vec<(Cid, Bytes)>);

impl Car {
    fn read(mut car: &[u8]) -> Self {
        let mut sections = Vec::new();
        while !car.is_empty() {
            let mut length = 0;
            for shift in (0..).step_by(7) {
                let (byte, rest) = car.split_first().unwrap();
                car = rest;
                length |= usize::from(byte & 0x7f) << shift;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let (section, rest) = car.split_at(length);
            car = rest;
            sections.push(section);
        }
        // The first one is the header.
        Self(
            sections[1..]
                .iter()
                .map(|section| {
                    let mut data = *section;
                    let cid = Cid::read_bytes(&mut data).unwrap();
                    (cid, Bytes::copy_from_slice(data))
                })
                .collect(),
        )
    }
}

impl Fetch for Car {
    type Error = std::io::Error;

    async fn get(&self, cid: Cid) -> Result<Bytes, std::io::Error> {
        let found = self.0.iter().find(|(have, _)| *have == cid);
        found
            .map(|(_, data)| data.clone())
            .ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}

#[test]
fn trees_that_others_make_are_read() {
    for (name, car, root, length) in [
        (
            "CIDv0",
            &include_bytes!("fixtures/v0.car")[..],
            "QmSVksS6xzKMJXZUS8PFciL3oTCDLZ4eCLDVTMWuo1eWYM",
            700,
        ),
        (
            "trickle",
            include_bytes!("fixtures/trickle.car"),
            "bafybeib4xbxpewrb47kfvon5wb25w6uat4a2wzltumac6j4fz4vzok6zn4",
            700,
        ),
        (
            "mode and time",
            include_bytes!("fixtures/mode.car"),
            "bafybeigcffmir5qal3emzbi7yunwnxqczjz4lincg453wbfmtw7wrd35fa",
            700,
        ),
        (
            "inlined leaves",
            include_bytes!("fixtures/inline.car"),
            "bafybeibi432hufgqn7ylzlpnp5ssfdl6nk4j7c5mnbo5vdjtsw2fgy3qcu",
            700,
        ),
        (
            "one dag-pb leaf with a mode",
            include_bytes!("fixtures/v0small.car"),
            "QmZ1pVX4GefrzGBkVerzo3BCfkJb3iss83ENAUdptuMjiH",
            700,
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out");
        let cid = Cid::from_str(root).unwrap();
        let fetched = block_on(files::get(
            &Car::read(car),
            cid,
            &output,
            GetOptions::default(),
        ));
        assert_eq!(
            fetched
                .unwrap_or_else(|error| panic!("{name}: {error}"))
                .bytes,
            length as u64
        );
        assert_eq!(std::fs::read(&output).unwrap(), content(length), "{name}");
    }
}

#[test]
fn a_directory_that_kubo_made_is_read_and_added_again_with_the_same_cid() {
    let car = Car::read(include_bytes!("fixtures/dir.car"));
    let cid = Cid::from_str("bafybeictkvzc6r77dihtvus4mf25nztrjsuiuuv4sa2tezaftfcne7qhsy").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("out");
    let fetched = block_on(files::get(&car, cid, &output, GetOptions::default())).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(&output)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(fetched.files, 2);
    let added = block_on(async {
        let (_directory, store) = store().await;
        files::add_directory(&store, &output, AddDirectoryOptions::default()).await
    });
    assert_eq!(added.unwrap().cid, cid);
}
