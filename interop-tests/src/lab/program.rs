//! A program that runs on a host of the lab.

use super::{Host, LabError, now};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Lines of standard output that wait for their reader; the program blocks when there are more.
const WAITING_LINES: usize = 1024;
/// How often a program's end is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// A line that a program printed, and when.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it was read.
    pub at: Instant,
    /// Without its end.
    pub text: String,
}

/// A running program. It is killed, by its id, when dropped.
#[derive(Debug)]
pub struct Program {
    host: String,
    child: Child,
    lines: Receiver<Line>,
    log: PathBuf,
    began: Instant,
}

impl Program {
    /// Starts it on `host`; standard error is appended to the file `log`.
    pub fn start(host: &Host, command: &mut Command, log: &Path) -> Result<Self, LabError> {
        let errors = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(LabError::file(log))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors);
        let began = now();
        let mut child = host.spawn(command)?;
        let (sender, lines) = sync_channel(WAITING_LINES);
        if let Some(output) = child.stdout.take() {
            thread::spawn(move || {
                for text in BufReader::new(output).lines().map_while(Result::ok) {
                    if sender.send(Line { at: now(), text }).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Self {
            host: host.name().to_owned(),
            child,
            lines,
            log: log.to_owned(),
            began,
        })
    }

    /// When it was started.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The next line of its standard output; `None` at its end.
    pub fn line(&self, deadline: Instant) -> Result<Option<Line>, LabError> {
        match self
            .lines
            .recv_timeout(deadline.saturating_duration_since(now()))
        {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(self.failure("prints nothing more")),
        }
    }

    /// How it ended, once it has.
    pub fn wait(&mut self, deadline: Instant) -> Result<ExitStatus, LabError> {
        loop {
            let status = self
                .child
                .try_wait()
                .map_err(LabError::io("waiting for a program"))?;
            match status {
                Some(status) => return Ok(status),
                None if now() >= deadline => return Err(self.failure("does not end")),
                None => thread::sleep(LOOK),
            }
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) -> Result<(), LabError> {
        self.child
            .kill()
            .map_err(LabError::io("killing a program"))?;
        self.child
            .wait()
            .map_err(LabError::io("waiting for a killed program"))?;
        Ok(())
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&self) -> Result<(), LabError> {
        let id = i32::try_from(self.child.id()).map_err(|_| self.failure("has an odd id"))?;
        kill(Pid::from_raw(id), Signal::SIGTERM)
            .map_err(|error| LabError::io("ending a program")(error.into()))
    }

    /// The memory that it occupies now, in bytes (`VmRSS`); `None` once it has ended.
    pub fn memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace()
            .nth(1)?
            .parse::<u64>()
            .ok()
            .map(|kilobytes| kilobytes * 1024)
    }

    /// An error that carries the end of this program's log.
    pub fn failure(&self, what: impl Into<String>) -> LabError {
        let mut what = what.into();
        if let Ok(log) = fs::read_to_string(&self.log) {
            let lines = log.lines().rev().take(3).collect::<Vec<_>>();
            for line in lines.into_iter().rev() {
                what += "\n    ";
                what += line;
            }
        }
        LabError::Node {
            node: self.host.clone(),
            what,
            log: self.log.clone(),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
