//! One network namespace of the lab.

use super::LabError;
use super::sandbox::{complete, run};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;

/// A named network namespace; clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: Arc<str>,
    file: Arc<File>,
}

impl Namespace {
    /// Creates the namespace with loopback up.
    pub(crate) fn create(name: &str) -> Result<Self, LabError> {
        run("ip", ["netns", "add", name])?;
        let path = format!("/run/netns/{name}");
        let file = File::open(&path).map_err(LabError::file(&path))?;
        let namespace = Self {
            name: name.into(),
            file: Arc::new(file),
        };
        namespace.ip("link set lo up\n")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` shows it inside the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread of its own inside the namespace; sockets that it opens, threads and
    /// processes that it starts belong there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                    .map_err(|error| LabError::Io {
                        what: format!("entering namespace {}", self.name),
                        source: error.into(),
                    })?;
                Ok(work())
            });
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a process inside the namespace.
    pub fn spawn(&self, command: &mut Command) -> Result<Child, LabError> {
        self.enter(|| command.spawn())?
            .map_err(|source| LabError::Tool {
                program: command.get_program().to_string_lossy().into_owned(),
                source,
            })
    }

    /// Runs a tool inside the namespace to its end and returns its standard output.
    pub fn run<const N: usize>(
        &self,
        program: &str,
        arguments: [&str; N],
    ) -> Result<String, LabError> {
        self.enter(|| run(program, arguments))?
    }

    /// Applies lines of `ip` commands, without the word `ip`.
    pub(crate) fn ip(&self, batch: &str) -> Result<(), LabError> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name, "-batch", "-"]);
        complete(command, Some(batch)).map(drop)
    }

    /// Loads an nftables rule set.
    pub fn nft(&self, rules: &str) -> Result<(), LabError> {
        self.enter(|| {
            let mut command = Command::new("nft");
            command.args(["-f", "-"]);
            complete(command, Some(rules)).map(drop)
        })?
    }

    /// Writes a value below `/proc/sys/net`.
    pub(crate) fn sysctl(&self, key: &str, value: &str) -> Result<(), LabError> {
        let path = format!("/proc/sys/net/{key}");
        self.enter(|| fs::write(&path, value))?
            .map_err(LabError::file(path))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if Arc::strong_count(&self.file) == 1 {
            // The mount is private: what is left of it goes with the sandbox anyway.
            run("ip", ["netns", "delete", &*self.name]).ok();
        }
    }
}
