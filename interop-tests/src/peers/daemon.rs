//! A daemon that is controlled by its own command: kubo, and the node itself.

use super::Error;
use crate::lab::Host;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

/// Adding, getting or pinning 100 MB on a busy machine, unoptimised.
const PATIENCE: Duration = Duration::from_secs(120);

/// A program with a directory of its own, in which its daemon runs.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) program: PathBuf,
    pub(super) home: TempDir,
    process: Option<Child>,
    /// Variables of its commands.
    pub(super) variables: Vec<(String, String)>,
    /// Where in the lab it runs, and its commands.
    pub(super) host: Option<Host>,
}

impl Daemon {
    /// The daemon's output goes to files in its directory.
    pub(super) fn new(program: PathBuf) -> Result<Self, Error> {
        Ok(Self {
            program,
            home: TempDir::new()?,
            process: None,
            variables: Vec::new(),
            host: None,
        })
    }

    /// The program with nothing of this machine's configuration.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("HOME", self.home.path())
            .env("XDG_CACHE_HOME", self.home.path().join("cache"))
            .envs(self.variables.iter().cloned())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    fn spawn(&self, mut command: Command) -> Result<Child, Error> {
        let spawned = match &self.host {
            None => command.spawn(),
            Some(host) => {
                let runtime = Handle::current();
                host.enter(|| {
                    let _guard = runtime.enter();
                    command.spawn()
                })?
            }
        };
        spawned.map_err(|source| Error::Start {
            program: self.program.display().to_string(),
            source,
        })
    }

    /// Starts the daemon and waits until `ready` finds what it looks for in its output.
    pub(super) async fn start<T>(
        &mut self,
        arguments: &[&str],
        ready: impl Fn(&str) -> Option<T>,
    ) -> Result<T, Error> {
        let output = self.home.path().join("stdout");
        let errors = self.home.path().join("stderr");
        let mut command = self.command();
        command
            .args(arguments)
            .stdout(std::fs::File::create(&output)?)
            .stderr(std::fs::File::create(&errors)?);
        let child = self.spawn(command)?;
        let child = self.process.insert(child);
        let began = tokio::time::Instant::now();
        loop {
            // Whole lines only.
            let text = std::fs::read_to_string(&output)?;
            let text = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
            if let Some(found) = ready(text) {
                return Ok(found);
            }
            if let Some(status) = child.try_wait()? {
                let errors = std::fs::read_to_string(&errors)?;
                return Err(Error::Ended(format!("{status}\n{text}\n{errors}")));
            }
            if began.elapsed() > PATIENCE {
                return Err(Error::Timeout {
                    what: format!("daemon of {}", self.program.display()),
                    within: PATIENCE,
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs a command to its end and returns what it printed.
    pub(super) async fn run<A: AsRef<OsStr>>(
        &self,
        before: &[&Path],
        arguments: &[A],
    ) -> Result<String, Error> {
        let mut command = self.command();
        command
            .args(before)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let what = format!("end of {command:?}");
        let child = self.spawn(command)?;
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
            .await
            .map_err(|_| Error::Timeout {
                what,
                within: PATIENCE,
            })??;
        if output.status.success() {
            Ok(String::from_utf8(output.stdout)?.trim().to_owned())
        } else {
            let errors = String::from_utf8_lossy(&output.stderr);
            Err(Error::Peer(errors.trim().to_owned()))
        }
    }
}
