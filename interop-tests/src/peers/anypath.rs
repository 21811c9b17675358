//! The node itself: the `anypath` command.

use super::daemon::Daemon;
use super::{Error, Transport, target};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A running `anypath start`. Dropping it kills it.
#[derive(Debug)]
pub struct Anypath {
    daemon: Daemon,
    id: PeerId,
    address: Multiaddr,
}

impl Anypath {
    /// Starts the command that `ANYPATH_BIN` names, else that of the target directory, on loopback.
    ///
    /// # Errors
    ///
    /// It is not built, or does not come up.
    pub async fn start(transport: Transport) -> Result<Self, Error> {
        Self::start_with(&transport.loopback(), &[]).await
    }

    /// As [`start`](Self::start), at any address, with more flags.
    ///
    /// # Errors
    ///
    /// It is not built, or does not come up.
    pub async fn start_with(listen: &Multiaddr, flags: &[&str]) -> Result<Self, Error> {
        let program = std::env::var_os("ANYPATH_BIN")
            .map_or_else(|| target().join("release/anypath"), PathBuf::from);
        let mut daemon = Daemon::new(program)?;
        let data = daemon.home.path().join("data").display().to_string();
        let listen = listen.to_string();
        let mut arguments = vec![
            "--data-dir",
            &data,
            "--json",
            "start",
            "--private",
            "--no-mdns",
            "--port",
            "0",
            "--listen",
            &listen,
        ];
        arguments.extend(flags);
        let started = daemon
            .start(&arguments, |output| {
                output.lines().find_map(|line| {
                    let event: Value = serde_json::from_str(line).ok()?;
                    (event.get("event")? == "started").then_some(event)
                })
            })
            .await?;
        let text = |pointer: &str| {
            let found = started.pointer(pointer).and_then(Value::as_str);
            found.ok_or_else(|| Error::Wrong(format!("no {pointer} in {started}")))
        };
        let wrong = |error: &dyn std::error::Error| Error::Wrong(error.to_string());
        let id: PeerId = text("/peer_id")?.parse().map_err(|error| wrong(&error))?;
        let listen: Multiaddr = text("/listen/0")?.parse().map_err(|error| wrong(&error))?;
        let address = match listen.iter().last() {
            Some(Protocol::P2p(_)) => listen,
            _ => listen.with(Protocol::P2p(id)),
        };
        Ok(Self {
            daemon,
            id,
            address,
        })
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// Where it listens, ending in its name.
    #[must_use]
    pub fn address(&self) -> &Multiaddr {
        &self.address
    }

    /// Runs `anypath` with these arguments and returns what it printed.
    ///
    /// # Errors
    ///
    /// The command's.
    pub async fn run(&self, arguments: &[&str]) -> Result<String, Error> {
        let data = self.daemon.home.path().join("data");
        self.daemon
            .run(&[Path::new("--data-dir"), &data], arguments)
            .await
    }
}
