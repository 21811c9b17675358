//! Nodes of one user on one machine meet through files.
//!
//! Each node keeps `peer_<peer id>.json` in a directory that all share. (The seed system named the
//! file after the host, so that two instances overwrote each other.) Files whose process is gone, or
//! that were not refreshed for 30 minutes, are removed by whoever reads them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};

/// After this long without a refresh an entry is stale (seed: TTL 30 min).
const TTL: Duration = Duration::from_secs(30 * 60);
/// How often the own entry is written again although nothing changed.
const REFRESH: Duration = Duration::from_secs(5 * 60);
/// Entries that are read at most; a directory that anybody can write to may hold more.
const MAX_ENTRIES: usize = 256;
/// Bytes of one entry that are read at most.
const MAX_ENTRY_BYTES: u64 = 16 * 1024;
/// Addresses taken from one entry.
const MAX_ADDRESSES: usize = 16;

/// Another node's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) peer: PeerId,
    pub(crate) addresses: Vec<Multiaddr>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    peer_id: String,
    multiaddrs: Vec<String>,
    pid: u32,
    /// Seconds since 1970.
    last_seen: u64,
}

/// The shared directory, seen from one node. Its methods block: call them off the driver.
#[derive(Debug)]
pub(crate) struct Registry {
    directory: PathBuf,
    local: PeerId,
    written: Option<Entry>,
}

impl Registry {
    /// `directory`, or `~/.cache/p2p_peers`. `None` where no home is known.
    pub(crate) fn new(directory: Option<&Path>, local: PeerId) -> Option<Self> {
        let directory = match directory {
            Some(directory) => directory.to_owned(),
            None => directories::BaseDirs::new()?
                .home_dir()
                .join(".cache")
                .join("p2p_peers"),
        };
        Some(Self {
            directory,
            local,
            written: None,
        })
    }

    /// Writes the own entry if it is due, and reads those of the others.
    pub(crate) fn sync(
        &mut self,
        addresses: &[Multiaddr],
        now: Duration,
    ) -> io::Result<Vec<Found>> {
        self.write(addresses, now)?;
        self.read(now)
    }

    /// Removes the own entry.
    pub(crate) fn deregister(&mut self) -> io::Result<()> {
        match self.written.take() {
            Some(_) => fs::remove_file(self.path()),
            None => Ok(()),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join(format!("peer_{}.json", self.local))
    }

    fn write(&mut self, addresses: &[Multiaddr], now: Duration) -> io::Result<()> {
        let entry = Entry {
            peer_id: self.local.to_string(),
            multiaddrs: addresses
                .iter()
                .take(MAX_ADDRESSES)
                .map(ToString::to_string)
                .collect(),
            pid: std::process::id(),
            last_seen: now.as_secs(),
        };
        let due = self.written.as_ref().is_none_or(|written| {
            written.multiaddrs != entry.multiaddrs
                || entry.last_seen.saturating_sub(written.last_seen) >= REFRESH.as_secs()
        });
        if !due && self.path().exists() {
            return Ok(());
        }
        fs::create_dir_all(&self.directory)?;
        // Readers never see half an entry.
        let temporary = self.directory.join(format!(".{}.tmp", self.local));
        fs::write(&temporary, serde_json::to_vec_pretty(&entry)?)?;
        fs::rename(temporary, self.path())?;
        self.written = Some(entry);
        Ok(())
    }

    fn read(&self, now: Duration) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for file in fs::read_dir(&self.directory)?.take(MAX_ENTRIES) {
            let path = file?.path();
            let is_entry = path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with("peer_") && name.ends_with(".json"));
            if !is_entry || path == self.path() {
                continue;
            }
            let Some(entry) = read_entry(&path) else {
                continue;
            };
            let age = now.as_secs().saturating_sub(entry.last_seen);
            if age >= TTL.as_secs() || !is_alive(entry.pid) {
                // Another reader may have been faster.
                let _ = fs::remove_file(&path);
                continue;
            }
            if let Ok(peer) = entry.peer_id.parse()
                && peer != self.local
            {
                let addresses = entry.multiaddrs.iter().take(MAX_ADDRESSES);
                let addresses = addresses
                    .filter_map(|address| address.parse().ok())
                    .collect();
                found.push(Found { peer, addresses });
            }
        }
        Ok(found)
    }
}

/// `None` for what is no entry of ours: it is left alone.
fn read_entry(path: &Path) -> Option<Entry> {
    use io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path)
        .ok()?
        .take(MAX_ENTRY_BYTES)
        .read_to_end(&mut bytes)
        .ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(unix)]
fn is_alive(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    else {
        return false;
    };
    // EPERM: alive, but not ours.
    rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

#[cfg(not(unix))]
fn is_alive(_: u32) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_000_000);

    fn addresses() -> Vec<Multiaddr> {
        vec!["/ip4/127.0.0.1/tcp/9100".parse().unwrap()]
    }

    fn registry(directory: &Path) -> Registry {
        Registry::new(Some(directory), PeerId::random()).unwrap()
    }

    #[test]
    fn two_nodes_on_one_machine_find_each_other_and_not_themselves() {
        let directory = tempfile::tempdir().unwrap();
        let (mut a, mut b) = (registry(directory.path()), registry(directory.path()));
        assert_eq!(a.sync(&addresses(), NOW).unwrap(), []);
        let found = b.sync(&[], NOW).unwrap();
        assert_eq!(
            found,
            [Found {
                peer: a.local,
                addresses: addresses()
            }]
        );
        assert_eq!(a.sync(&addresses(), NOW).unwrap()[0].peer, b.local);

        a.deregister().unwrap();
        assert_eq!(b.sync(&[], NOW).unwrap(), []);
    }

    #[test]
    fn entries_of_dead_processes_and_old_ones_are_removed_by_the_reader() {
        let directory = tempfile::tempdir().unwrap();
        let (mut a, mut b) = (registry(directory.path()), registry(directory.path()));
        a.sync(&addresses(), NOW).unwrap();
        assert_eq!(b.sync(&[], NOW + TTL).unwrap(), []);
        assert!(!a.path().exists(), "the stale file is gone");

        // Beyond the largest process id of Linux.
        let dead = Entry {
            pid: 1 << 22 | 1,
            ..a.written.clone().unwrap()
        };
        fs::write(a.path(), serde_json::to_vec(&dead).unwrap()).unwrap();
        assert_eq!(b.sync(&[], NOW).unwrap(), []);
        assert!(!a.path().exists(), "so is that of the dead process");

        a.sync(&addresses(), NOW + Duration::from_secs(2)).unwrap();
        assert!(a.path().exists(), "a live node writes its file again");
    }

    #[test]
    fn files_of_others_and_broken_ones_do_no_harm() {
        let directory = tempfile::tempdir().unwrap();
        let mut a = registry(directory.path());
        fs::write(directory.path().join("peer_broken.json"), "{").unwrap();
        fs::write(directory.path().join("notes.txt"), "mine").unwrap();
        assert_eq!(a.sync(&addresses(), NOW).unwrap(), []);
        assert!(directory.path().join("peer_broken.json").exists());
        assert!(directory.path().join("notes.txt").exists());
    }
}
