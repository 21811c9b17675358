use super::Error;
use super::matrix::{Cell, Outcome};
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

/// Long enough for what works, and not much longer for what does not.
const DEFECT_PATIENCE: Duration = Duration::from_secs(5);

/// The cells of one test: what was tried with one peer over one transport, and how it ended.
///
/// Every cell is told as it ends; [`finish`](Self::finish) writes them down for the matrix and fails the test if one did not end as it had to.
#[derive(Debug)]
pub struct Cells {
    area: &'static str,
    column: String,
    test: &'static str,
    cells: Vec<Cell>,
    failed: Vec<String>,
}

impl Cells {
    /// None yet. `test` is the name of the test, `column` that of the peer and the transport.
    #[must_use]
    pub fn new(area: &'static str, column: impl Into<String>, test: &'static str) -> Self {
        Self {
            area,
            column: column.into(),
            test,
            cells: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Has to work.
    pub async fn works(&mut self, name: &str, attempt: impl Future<Output = Result<(), Error>>) {
        match attempt.await {
            Ok(()) => self.push(name, Outcome::Works),
            Err(error) => {
                self.push(name, Outcome::Fails(error.to_string()));
                self.fail(name, &error.to_string());
            }
        }
    }

    /// Does not work, and that is the peer's defect: the test fails once it does.
    pub async fn defect(
        &mut self,
        name: &str,
        defect: &str,
        attempt: impl Future<Output = Result<(), Error>>,
    ) {
        let tried = tokio::time::timeout(DEFECT_PATIENCE, attempt);
        match tried.await.unwrap_or(Err(Error::Timeout {
            what: "success".to_owned(),
            within: DEFECT_PATIENCE,
        })) {
            Ok(()) => {
                self.push(name, Outcome::Works);
                self.fail(name, "works by now: take the note of the defect away");
            }
            Err(error) => {
                println!("{} / {}: {name}: {error}", self.area, self.column);
                self.push(name, Outcome::Defect(defect.to_owned()));
            }
        }
    }

    /// The peer cannot do it, or we cannot.
    pub fn unsupported(&mut self, name: &str, why: &str) {
        self.push(name, Outcome::Unsupported(why.to_owned()));
    }

    fn push(&mut self, name: &str, outcome: Outcome) {
        println!("cell {} / {}: {name}: {outcome}", self.area, self.column);
        self.cells.push(Cell {
            area: self.area.to_owned(),
            column: self.column.clone(),
            name: name.to_owned(),
            outcome,
        });
    }

    fn fail(&mut self, name: &str, why: &str) {
        self.failed.push(format!("{name}: {why}"));
    }

    /// Whether a cell did not end as it had to, so that [`finish`](Self::finish) fails.
    #[must_use]
    pub fn failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Writes the cells to `matrix` in the target directory, for `interop-matrix`.
    ///
    /// # Errors
    ///
    /// A cell did not end as it had to, or cannot be written.
    pub fn finish(self) -> Result<(), Error> {
        let directory = results();
        std::fs::create_dir_all(&directory)?;
        let mut lines = String::new();
        for cell in &self.cells {
            lines.push_str(&serde_json::to_string(cell)?);
            lines.push('\n');
        }
        std::fs::write(directory.join(format!("{}.jsonl", self.test)), lines)?;
        if self.failed.is_empty() {
            Ok(())
        } else {
            Err(Error::Wrong(self.failed.join("\n")))
        }
    }
}

/// Where the tests leave their cells.
#[must_use]
pub(super) fn results() -> PathBuf {
    super::target().join("matrix")
}
