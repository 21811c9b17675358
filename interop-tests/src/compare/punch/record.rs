//! What the runs came to, kept in a file so that a measurement of hours can be continued.

use super::Implementation;
use crate::compare::Error;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::time::Duration;

/// One run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    /// From relayed to direct; `None` if there was no direct connection.
    pub(super) direct: Option<Duration>,
    /// When it was known how it ends.
    pub(super) ended: Duration,
    /// Direct connections that were left a moment later.
    pub(super) left: usize,
}

impl Run {
    /// One that did not come to its end: no success.
    pub(super) fn broken() -> Self {
        Self {
            direct: None,
            ended: Duration::ZERO,
            left: 0,
        }
    }
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    cell: String,
    side: String,
    run: Run,
}

/// All runs so far.
#[derive(Debug, Default)]
pub(super) struct Record {
    file: Option<File>,
    runs: BTreeMap<(String, &'static str), Vec<Run>>,
}

impl Record {
    /// Reads what an earlier measurement wrote. A line that was cut off is left out.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, Error> {
        let mut record = Self::default();
        let Some(path) = path else {
            return Ok(record);
        };
        if path.exists() {
            for line in BufReader::new(File::open(path)?).lines() {
                let Ok(line) = serde_json::from_str::<Line>(&line?) else {
                    continue;
                };
                let side = match line.side.as_str() {
                    "ours" => Implementation::Ours,
                    _ => Implementation::Stock,
                };
                record.keep(&line.cell, side, line.run);
            }
        }
        record.file = Some(File::options().create(true).append(true).open(path)?);
        Ok(record)
    }

    pub(super) fn add(&mut self, cell: &str, side: Implementation, run: Run) {
        let line = Line {
            cell: cell.to_owned(),
            side: side.name().to_owned(),
            run,
        };
        if let (Some(file), Ok(text)) = (&mut self.file, serde_json::to_string(&line))
            && let Err(error) = writeln!(file, "{text}")
        {
            eprintln!("compare: a run is not recorded: {error}");
        }
        self.keep(cell, side, run);
    }

    fn keep(&mut self, cell: &str, side: Implementation, run: Run) {
        let key = (cell.to_owned(), side.name());
        self.runs.entry(key).or_default().push(run);
    }

    pub(super) fn count(&self, cell: &str, side: Implementation) -> usize {
        self.runs(cell, side).len()
    }

    pub(super) fn runs(&self, cell: &str, side: Implementation) -> Vec<Run> {
        let key = (cell.to_owned(), side.name());
        self.runs.get(&key).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_goes_on_where_it_was_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let run = Run {
            direct: Some(Duration::from_millis(250)),
            ended: Duration::from_millis(250),
            left: 1,
        };
        let mut record = Record::open(Some(&path)).unwrap();
        record.add("punch.quic.port.port", Implementation::Ours, run);
        record.add("punch.quic.port.port", Implementation::Stock, Run::broken());
        drop(record);
        let mut file = File::options().append(true).open(&path).unwrap();
        write!(file, r#"{{"cell":"punch.quic.po"#).unwrap();
        let record = Record::open(Some(&path)).unwrap();
        let ours = record.runs("punch.quic.port.port", Implementation::Ours);
        assert_eq!(ours, [run]);
        assert_eq!(
            record.count("punch.quic.port.port", Implementation::Stock),
            1
        );
    }
}
