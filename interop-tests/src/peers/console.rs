//! A program that is typed to and that prints lines, as a person at a terminal sees it.

use super::Error;
use std::collections::VecDeque;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// What of a dead program's stderr goes into the error.
const LAST_WORDS: u64 = 4096;

/// The running program. Dropping it kills it.
#[derive(Debug)]
pub struct Console {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    stderr: std::fs::File,
    shown: VecDeque<String>,
}

impl Console {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// It is not there.
    pub fn start(command: Command) -> Result<Self, Error> {
        Self::start_by(command, Command::spawn)
    }

    /// `spawn` starts the command, here or elsewhere.
    pub(super) fn start_by(
        mut command: Command,
        spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>,
    ) -> Result<Self, Error> {
        let stderr = tempfile::tempfile()?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr.try_clone()?)
            .kill_on_drop(true);
        let mut child = spawn(&mut command).map_err(|source| Error::Start {
            program: command.as_std().get_program().display().to_string(),
            source,
        })?;
        let piped = || Error::Wrong("a piped process has no pipe".to_owned());
        let input = child.stdin.take().ok_or_else(piped)?;
        let output = child.stdout.take().ok_or_else(piped)?;
        Ok(Self {
            child,
            input,
            lines: BufReader::new(output).lines(),
            stderr,
            shown: VecDeque::new(),
        })
    }

    /// Types a line.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub async fn enter(&mut self, line: &str) -> Result<(), Error> {
        self.input.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(self.input.flush().await?)
    }

    /// The first line, of those before that nobody took and those to come, that `pick` takes.
    ///
    /// # Errors
    ///
    /// There is none within that time, or it ended.
    pub async fn shows<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut pick: impl FnMut(&str) -> Option<T>,
    ) -> Result<T, Error> {
        for index in 0..self.shown.len() {
            if let Some(found) = self.shown.get(index).and_then(|line| pick(line)) {
                self.shown.remove(index);
                return Ok(found);
            }
        }
        let found = async {
            loop {
                let line = self.line().await?;
                if let Some(found) = pick(&line) {
                    return Ok(found);
                }
                self.shown.push_back(line);
            }
        };
        let found = tokio::time::timeout(within, found).await;
        found.unwrap_or_else(|_| {
            Err(Error::Timeout {
                what: format!("{what} (it said: {:?})", self.shown),
                within,
            })
        })
    }

    /// The next line.
    pub(super) async fn line(&mut self) -> Result<String, Error> {
        match self.lines.next_line().await? {
            Some(line) => Ok(line),
            None => {
                let status = self.child.wait().await?;
                Err(Error::Ended(format!("{status}\n{}", self.errors()?)))
            }
        }
    }

    /// The end of what it has written to stderr.
    ///
    /// # Errors
    ///
    /// The file's.
    pub fn errors(&mut self) -> Result<String, Error> {
        let length = self.stderr.metadata()?.len();
        self.stderr
            .seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
        let mut words = Vec::new();
        self.stderr.read_to_end(&mut words)?;
        Ok(String::from_utf8_lossy(&words).into_owned())
    }

    /// The operating system's number of it, while it runs.
    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Closes its stdin and waits until it has ended.
    ///
    /// # Errors
    ///
    /// It does not end in time.
    pub async fn stop(self, within: Duration) -> Result<ExitStatus, Error> {
        let Self {
            mut child, input, ..
        } = self;
        drop(input);
        let ended = tokio::time::timeout(within, child.wait()).await;
        let ended = ended.map_err(|_| Error::Timeout {
            what: "end of the program".to_owned(),
            within,
        })?;
        Ok(ended?)
    }
}
