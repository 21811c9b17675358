//! `FEATURES.md` maps every feature id to the test that proves it. Here: every id is there once, and every named test exists.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A row `| id | feature | tests or "missing" |`.
struct Row {
    id: String,
    proof: Proof,
}

enum Proof {
    /// Nothing proves this feature yet.
    Missing,
    /// `path::to/file.rs::function`, as written between backticks.
    Tests(Vec<String>),
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("workspace root")
        .to_owned()
}

/// `S0.1`, `S1.40a`, `C.6`; None for any other text.
fn feature_id(text: &str) -> Option<&str> {
    let (family, number) = text.split_once('.')?;
    let known = matches!(family, "C" | "S0" | "S1" | "S2" | "S3" | "S4");
    let digits = number.trim_end_matches(|c: char| c.is_ascii_lowercase());
    (known
        && !digits.is_empty()
        && digits.bytes().all(|b| b.is_ascii_digit())
        && number.len() - digits.len() <= 1)
        .then_some(text)
}

fn rows() -> Vec<Row> {
    let map = fs::read_to_string(root().join("interop-tests/FEATURES.md")).expect("FEATURES.md");
    map.lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
            let id = feature_id(cells.next()?)?.to_owned();
            let proof = cells.nth(1).unwrap_or_default();
            let named: Vec<String> = proof
                .split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect();
            assert!(
                (proof == "missing") == named.is_empty(),
                "{id}: say \"missing\" or name tests in backticks, not {proof:?}"
            );
            Some(Row {
                id,
                proof: if named.is_empty() {
                    Proof::Missing
                } else {
                    Proof::Tests(named)
                },
            })
        })
        .collect()
}

/// The names of the test functions of a file: the `fn` after an attribute that ends in `test` or `test(…)`,
/// or inside a `proptest!` block.
fn tests_in(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut marked = false;
    for line in source.lines().map(str::trim) {
        if let Some(attribute) = line.strip_prefix("#[") {
            let name = attribute.split(['(', ']']).next().unwrap_or_default();
            marked |= name == "test" || name.ends_with("::test");
        } else if let Some(rest) = line.strip_prefix("async fn ").or(line.strip_prefix("fn ")) {
            if marked {
                found.insert(rest.split(['(', '<']).next().unwrap_or_default().to_owned());
            }
            marked = false;
        }
    }
    found
}

#[test]
fn every_feature_id_has_one_row() {
    let mut seen = BTreeMap::<String, usize>::new();
    for row in rows() {
        *seen.entry(row.id).or_default() += 1;
    }
    let repeated: Vec<_> = seen.iter().filter(|(_, count)| **count > 1).collect();
    assert!(
        repeated.is_empty(),
        "ids with more than one row: {repeated:?}"
    );

    // The list itself lives beside the checkout of this project's authors; elsewhere the count stands for it.
    match fs::read_to_string(root().join("../shared/FEATURES.md")) {
        Ok(list) => {
            let listed: BTreeSet<String> = list
                .lines()
                .filter_map(|line| feature_id(line.split_whitespace().next()?))
                .map(str::to_owned)
                .collect();
            let mapped: BTreeSet<String> = seen.into_keys().collect();
            let lost: Vec<_> = listed.difference(&mapped).collect();
            let unknown: Vec<_> = mapped.difference(&listed).collect();
            assert!(
                lost.is_empty() && unknown.is_empty(),
                "no row: {lost:?}; unknown: {unknown:?}"
            );
        }
        Err(_) => assert_eq!(seen.len(), 293, "feature ids"),
    }
}

#[test]
fn every_test_that_the_map_names_exists() {
    let mut wrong = Vec::new();
    for row in rows() {
        let Proof::Tests(named) = row.proof else {
            continue;
        };
        for name in named {
            let Some((file, test)) = name.rsplit_once("::") else {
                wrong.push(format!("{}: `{name}` is not file::test", row.id));
                continue;
            };
            match fs::read_to_string(root().join(file)) {
                Ok(source) if tests_in(&source).contains(test) => {}
                Ok(_) => wrong.push(format!("{}: no test {test} in {file}", row.id)),
                Err(_) => wrong.push(format!("{}: no file {file}", row.id)),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
