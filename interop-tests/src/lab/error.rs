//! What can go wrong while a lab is built or used.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// A lab could not be entered, built or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// Neither an unprivileged user namespace nor root is available.
    #[error(
        "no network namespaces here ({reason}): allow unprivileged user namespaces with \
         `sysctl -w kernel.unprivileged_userns_clone=1` (Debian), \
         `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu) or \
         `sysctl -w user.max_user_namespaces=15000`, or run as root"
    )]
    NoNamespaces {
        /// What `unshare` answered.
        reason: String,
    },
    /// The lab is used outside its own namespaces.
    #[error("not inside the lab's namespaces: call `lab::enter` or `lab::isolated` first")]
    NotInside,
    /// A tool the lab needs is not installed.
    #[error("cannot run `{program}` (install nftables, iproute2, ethtool, iputils-ping)")]
    Tool {
        /// The program's name.
        program: String,
        /// Why it did not start.
        #[source]
        source: io::Error,
    },
    /// A tool refused what the lab asked for.
    #[error("`{command}` failed with {status}: {stderr}")]
    Refused {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// A file of the lab could not be read or written.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A socket, device or thread of the lab failed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The plan of the lab makes no sense.
    #[error("{0}")]
    Plan(String),
    /// A node did not do what the scenario waits for.
    #[error("{node}: {what} (log: {log})")]
    Node {
        /// The host it runs on.
        node: String,
        /// What was waited for, or what it said.
        what: String,
        /// Its log file.
        log: PathBuf,
    },
}

impl LabError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
