//! The processes of a measurement and the lines they speak.
//!
//! A process that listens prints `listening <multiaddr>` and serves until its stdin closes. A process that measures prints its results,
//! one line each (`done <bytes> <nanoseconds>`, `circuit <nanoseconds>`, …), and ends.

use super::Error;
use crate::lab::Host;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::runtime::Handle;

/// Longer than any run takes; an endpoint that says nothing for so long has failed.
const SILENCE: Duration = Duration::from_secs(120);

/// Clock ticks a second in `/proc/<pid>/stat`, fixed by Linux's ABI to user space.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running endpoint. Dropping it kills the process.
#[derive(Debug)]
pub struct Endpoint {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Endpoint {
    /// Starts `program`, or this executable's own `endpoint` command for `None`.
    ///
    /// # Errors
    ///
    /// The program cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        program: Option<&Path>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self, Error> {
        Self::spawn(program, arguments, Command::spawn)
    }

    /// As [`start`](Self::start), on a host of the lab.
    ///
    /// # Errors
    ///
    /// The program cannot be started there.
    pub fn start_on<A: AsRef<OsStr>>(
        host: &Host,
        program: Option<&Path>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self, Error> {
        let runtime = Handle::current();
        Self::spawn(program, arguments, |command| {
            host.enter(|| {
                let _guard = runtime.enter();
                command.spawn()
            })
            .map_err(std::io::Error::other)?
        })
    }

    fn spawn<A: AsRef<OsStr>>(
        program: Option<&Path>,
        arguments: impl IntoIterator<Item = A>,
        spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>,
    ) -> Result<Self, Error> {
        let mut command = match program {
            Some(path) => Command::new(path),
            None => {
                let mut own = Command::new(std::env::current_exe()?);
                own.arg("endpoint");
                own
            }
        };
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child =
            spawn(&mut command).map_err(|error| format!("cannot start {program:?}: {error}"))?;
        let stdout = child.stdout.take().ok_or("the endpoint has no stdout")?;
        Ok(Self {
            child,
            lines: BufReader::new(stdout).lines(),
        })
    }

    /// Waits for the line that begins with `word` and returns what follows it.
    ///
    /// # Errors
    ///
    /// The process ended or stayed silent instead.
    pub async fn line(&mut self, word: &str) -> Result<String, Error> {
        loop {
            let line = tokio::time::timeout(SILENCE, self.lines.next_line())
                .await
                .map_err(|_| format!("an endpoint printed no `{word}` for {SILENCE:?}"))??;
            let Some(line) = line else {
                let status = self.child.wait().await?;
                return Err(format!("an endpoint ended before `{word}` ({status})").into());
            };
            if let Some(rest) = line
                .strip_prefix(word)
                .and_then(|rest| rest.strip_prefix(' '))
            {
                return Ok(rest.to_owned());
            }
        }
    }

    /// Waits for a line of numbers, such as `done 1048576 2000000`.
    ///
    /// # Errors
    ///
    /// As [`line`](Self::line); or the line has other than `N` numbers.
    pub async fn numbers<const N: usize>(&mut self, word: &str) -> Result<[u64; N], Error> {
        let line = self.line(word).await?;
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        numbers
            .try_into()
            .map_err(|_| format!("`{word} {line}` has not {N} numbers").into())
    }

    /// CPU seconds, user and system, that the process has used so far.
    ///
    /// # Errors
    ///
    /// The process has ended, or this is not Linux.
    pub fn cpu_seconds(&self) -> Result<f64, Error> {
        cpu_seconds(self.child.id().ok_or("the endpoint has ended")?)
    }

    /// Kills the process (SIGKILL) and waits for its end.
    ///
    /// # Errors
    ///
    /// It has ended already.
    pub async fn kill(mut self) -> Result<(), Error> {
        Ok(self.child.kill().await?)
    }

    /// Bytes of anonymous memory that the process has in RAM: what it allocated, not what it maps.
    ///
    /// # Errors
    ///
    /// The process has ended, or this is not Linux.
    pub fn anonymous_bytes(&self) -> Result<u64, Error> {
        let pid = self.child.id().ok_or("the endpoint has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kibibytes = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .and_then(|value| value.split_whitespace().next())
            .ok_or("no RssAnon in /proc/<pid>/status")?;
        Ok(kibibytes.parse::<u64>()? * 1024)
    }

    /// Tells the process to go on: an empty line on its stdin.
    ///
    /// # Errors
    ///
    /// The process has ended.
    pub async fn go_on(&mut self) -> Result<(), Error> {
        let stdin = self.child.stdin.as_mut().ok_or("the endpoint has ended")?;
        stdin.write_all(b"\n").await?;
        stdin.flush().await?;
        Ok(())
    }

    /// Closes the process's stdin and waits for its end.
    ///
    /// # Errors
    ///
    /// It does not end, or not well.
    pub async fn end(mut self) -> Result<(), Error> {
        drop(self.child.stdin.take());
        let status = tokio::time::timeout(SILENCE, self.child.wait()).await??;
        if status.success() {
            Ok(())
        } else {
            Err(format!("an endpoint failed ({status})").into())
        }
    }
}

/// CPU seconds, user and system, that a process has used so far.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64, Error> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold spaces; utime and stime are fields 14 and 15, the 12th and 13th behind it.
    let (_, fields) = stat
        .rsplit_once(") ")
        .ok_or("unreadable /proc/<pid>/stat")?;
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<_, _>>()?;
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// In an endpoint: resolves when the parent closes our stdin.
pub async fn stdin_closed() {
    let mut sink = [0; 64];
    while matches!(tokio::io::stdin().read(&mut sink).await, Ok(read) if read > 0) {}
}

/// In an endpoint: waits until the parent says [`go_on`](Endpoint::go_on).
///
/// # Errors
///
/// The parent is gone.
pub async fn next_line() -> std::io::Result<()> {
    let mut byte = [0];
    tokio::io::stdin().read_exact(&mut byte).await?;
    Ok(())
}

/// 10⁶ bytes a second.
#[must_use]
pub fn megabytes_per_second([bytes, nanoseconds]: [u64; 2]) -> f64 {
    bytes as f64 * 1e3 / nanoseconds.max(1) as f64
}
