//! Which crate may depend on which, read from `cargo metadata`.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const PROTOCOLS: [&str; 6] = [
    "anypath-relay",
    "anypath-holepunch",
    "anypath-discovery-mdns",
    "anypath-discovery-pubsub",
    "anypath-dht",
    "anypath-bitswap",
];
const STORE: &str = "anypath-tiered-store";
const NODE: &str = "anypath";
const TESTS: &str = "anypath-interop-tests";

/// One `[dependencies]` line of a workspace member.
struct Edge {
    from: String,
    to: String,
    kind: Kind,
    optional: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Build,
    Dev,
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

/// Members and their declared dependencies, whatever feature or platform switches them on.
fn workspace() -> (BTreeSet<String>, Vec<Edge>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("workspace root");
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(root)
        .output()
        .expect("cargo metadata runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let members = packages
        .iter()
        .map(|package| text(package, "name"))
        .collect();
    let edges = packages
        .iter()
        .flat_map(|package| {
            package["dependencies"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|dependency| Edge {
                    from: text(package, "name"),
                    to: text(dependency, "name"),
                    kind: match dependency["kind"].as_str() {
                        None => Kind::Normal,
                        Some("build") => Kind::Build,
                        Some(_) => Kind::Dev,
                    },
                    optional: dependency["optional"] == Value::Bool(true),
                })
        })
        .collect();
    (members, edges)
}

fn show<'a>(edges: impl Iterator<Item = &'a Edge>) -> Vec<String> {
    edges
        .map(|edge| format!("{} -> {}", edge.from, edge.to))
        .collect()
}

#[test]
fn the_workspace_has_the_nine_members_of_the_design() {
    let (members, _) = workspace();
    let expected = PROTOCOLS
        .into_iter()
        .chain([STORE, NODE, TESTS])
        .map(str::to_owned)
        .collect::<BTreeSet<_>>();
    assert_eq!(members, expected);
}

#[test]
fn crates_depend_on_each_other_only_as_the_design_allows() {
    let (members, edges) = workspace();
    let wrong = edges
        .iter()
        .filter(|edge| members.contains(&edge.to) && edge.from != edge.to)
        .filter(|edge| match edge.from.as_str() {
            NODE => edge.to == TESTS,
            TESTS => false,
            "anypath-bitswap" => !(edge.to == STORE && (edge.optional || edge.kind == Kind::Dev)),
            _ => true,
        });
    assert_eq!(show(wrong), Vec::<String>::new());
}

#[test]
fn protocol_crates_name_libp2p_sub_crates_and_never_the_umbrella() {
    let (_, edges) = workspace();
    let wrong = edges.iter().filter(|edge| {
        PROTOCOLS.contains(&edge.from.as_str()) && edge.to == "libp2p" && edge.kind != Kind::Dev
    });
    assert_eq!(show(wrong), Vec::<String>::new());
}

#[test]
fn the_store_knows_nothing_of_libp2p() {
    let (_, edges) = workspace();
    let wrong = edges
        .iter()
        .filter(|edge| edge.from == STORE && edge.to.starts_with("libp2p"));
    assert_eq!(show(wrong), Vec::<String>::new());
}

#[test]
fn no_published_crate_depends_on_async_std() {
    let (_, edges) = workspace();
    let wrong = edges
        .iter()
        .filter(|edge| edge.from != TESTS && edge.to == "async-std" && edge.kind != Kind::Dev);
    assert_eq!(show(wrong), Vec::<String>::new());
}

#[test]
fn each_crate_builds_on_the_package_that_the_design_names() {
    let (_, edges) = workspace();
    let missing: Vec<_> = [
        // Their own wire formats; libp2p-relay and libp2p-dcutr are the peers of their tests.
        ("anypath-relay", "prost"),
        ("anypath-holepunch", "prost"),
        ("anypath-discovery-mdns", "hickory-proto"),
        ("anypath-discovery-pubsub", "libp2p-gossipsub"),
        ("anypath-dht", "libp2p-kad"),
        ("anypath-bitswap", "libp2p-swarm"),
        ("anypath-bitswap", "prost"),
        ("anypath-discovery-pubsub", "prost"),
        // With its `autonat`, `gossipsub`, `identify`, … features.
        (NODE, "libp2p"),
    ]
    .into_iter()
    .filter(|(from, to)| {
        !edges
            .iter()
            .any(|edge| edge.from == *from && edge.to == *to && edge.kind == Kind::Normal)
    })
    .collect();
    assert_eq!(missing, []);
}

#[test]
fn every_published_crate_has_its_readme_changelog_tests_bench_and_schemas() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("workspace root");
    let folders = PROTOCOLS
        .into_iter()
        .chain([STORE])
        .map(|name| name.trim_start_matches("anypath-"))
        .chain(["manager"]);
    for folder in folders {
        let folder = root.join(folder);
        for room in [
            "README.md",
            "CHANGELOG.md",
            "src/lib.rs",
            "tests",
            "benches",
        ] {
            assert!(
                folder.join(room).exists(),
                "{} is missing {room}",
                folder.display()
            );
        }
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).expect("a manifest");
        assert!(
            manifest.contains("criterion.workspace"),
            "{}",
            folder.display()
        );
        assert!(
            !manifest.contains("publish = false"),
            "{}",
            folder.display()
        );
        // Generated code comes from a schema, and a test says that it is fresh.
        let generated = folder.join("src/generated").exists();
        assert_eq!(
            generated,
            folder.join("proto").exists(),
            "{}",
            folder.display()
        );
        assert!(
            !generated || folder.join("tests/codegen.rs").exists(),
            "{}",
            folder.display()
        );
    }
}
