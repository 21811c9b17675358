//! `MATRIX.md`, made of what the tests found.

use super::Error;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Write as _};
use std::path::{Path, PathBuf};

/// One thing that was tried with one peer over one transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// The table.
    pub area: String,
    /// The peer and the transport.
    pub column: String,
    /// What was tried: the row.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// As it should.
    Works,
    /// It failed, and nobody knows better: the test failed, too.
    Fails(String),
    /// It failed because of the peer.
    Defect(String),
    /// It failed because of a library of ours.
    Fault(String),
    /// Not tried: the peer cannot do it, or we cannot.
    Unsupported(String),
}

impl Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.write_str("ok"),
            Self::Fails(why) => write!(f, "FAILED ({why})"),
            Self::Defect(why) => write!(f, "the peer's defect ({why})"),
            Self::Fault(why) => write!(f, "our library's fault ({why})"),
            Self::Unsupported(why) => write!(f, "not supported ({why})"),
        }
    }
}

/// Where the tests leave their cells: `matrix` in the target directory.
#[must_use]
pub fn results() -> PathBuf {
    super::cells::results()
}

/// All cells that the tests left, in the order of the tests' names.
///
/// # Errors
///
/// The directory cannot be read, or holds something else.
pub fn read(directory: &Path) -> Result<Vec<Cell>, Error> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    files.sort();
    let mut cells = Vec::new();
    for file in files {
        for line in std::fs::read_to_string(file)?.lines() {
            cells.push(serde_json::from_str(line)?);
        }
    }
    Ok(cells)
}

/// The text of `MATRIX.md`.
#[must_use]
pub fn render(cells: &[Cell]) -> String {
    let mut text = String::from(HEAD);
    let mut areas: Vec<&str> = Vec::new();
    for cell in cells {
        if !areas.contains(&cell.area.as_str()) {
            areas.push(&cell.area);
        }
    }
    for area in areas {
        let of_area: Vec<&Cell> = cells.iter().filter(|cell| cell.area == area).collect();
        table(&mut text, area, &of_area);
    }
    text
}

const HEAD: &str = "\
# What works with whom

Made by `cargo run -p anypath-interop-tests --bin interop-matrix -- --write` of the results that the tests `foreign_*` leave; not edited by hand.
Versions of the peers: `peers/go/go.mod`, `peers/js/package.json`, `peers/browser/package.json`; Chromium is the system's.

Yes: it works, and the test fails if it ceases to. No: tried, and does not work, for the reason below. –: not tried, for the reason below.
";

fn table(text: &mut String, area: &str, cells: &[&Cell]) {
    let columns: BTreeSet<&str> = cells.iter().map(|cell| cell.column.as_str()).collect();
    let mut rows: Vec<&str> = Vec::new();
    let mut found = BTreeMap::new();
    for cell in cells {
        if !rows.contains(&cell.name.as_str()) {
            rows.push(&cell.name);
        }
        found.insert((cell.name.as_str(), cell.column.as_str()), &cell.outcome);
    }
    let mut notes: Vec<String> = Vec::new();
    let mut note = |kind: &str, why: &str| {
        let note = format!("{kind}{why}");
        let known = notes.iter().position(|other| *other == note);
        known.unwrap_or_else(|| {
            notes.push(note);
            notes.len() - 1
        }) + 1
    };
    let _ = write!(text, "\n## {area}\n\n|  |");
    for column in &columns {
        let _ = write!(text, " {column} |");
    }
    let _ = write!(text, "\n|---|{}\n", "---|".repeat(columns.len()));
    for row in rows {
        let _ = write!(text, "| {row} |");
        for column in &columns {
            let _ = match found.get(&(row, *column)) {
                None => write!(text, "  |"),
                Some(Outcome::Works) => write!(text, " yes |"),
                Some(Outcome::Fails(why)) => {
                    write!(text, " no ({}) |", note("Fails, cause unknown: ", why))
                }
                Some(Outcome::Defect(why)) => {
                    write!(text, " no ({}) |", note("The peer's defect: ", why))
                }
                Some(Outcome::Fault(why)) => {
                    write!(text, " no ({}) |", note("Our library's fault: ", why))
                }
                Some(Outcome::Unsupported(why)) => write!(text, " – ({}) |", note("", why)),
            };
        }
        text.push('\n');
    }
    for (index, note) in notes.iter().enumerate() {
        let _ = write!(text, "\n{}. {note}", index + 1);
    }
    if !notes.is_empty() {
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(column: &str, name: &str, outcome: Outcome) -> Cell {
        Cell {
            area: "ping".to_owned(),
            column: column.to_owned(),
            name: name.to_owned(),
            outcome,
        }
    }

    #[test]
    fn a_reason_is_told_once_and_every_cell_has_its_place() {
        let text = render(&[
            cell("go tcp", "they ping us", Outcome::Works),
            cell("go tcp", "we ping them", Outcome::Defect("deaf".to_owned())),
            cell("js tcp", "we ping them", Outcome::Defect("deaf".to_owned())),
        ]);
        let table = text.split("## ping\n\n").nth(1);
        assert_eq!(
            table,
            Some(
                "|  | go tcp | js tcp |\n|---|---|---|\n\
                 | they ping us | yes |  |\n\
                 | we ping them | no (1) | no (1) |\n\
                 \n1. The peer's defect: deaf\n"
            )
        );
    }
}
