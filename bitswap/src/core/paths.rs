//! The connections of one peer, and which of them is the best.

use smallvec::SmallVec;

/// A connection, numbered by the adapter; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnKey(pub u64);

/// How a connection reaches the peer; a greater one is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// Through a relay that passes so many bytes more, as far as we know.
    Limited(u64),
    /// Through a relay without limit.
    Relayed,
    /// Without a relay.
    Direct,
}

impl Path {
    fn rank(self) -> u8 {
        match self {
            Path::Limited(_) => 0,
            Path::Relayed => 1,
            Path::Direct => 2,
        }
    }
}

/// What of a circuit's bytes is left to other protocols and to framing.
const CIRCUIT_RESERVE_BYTES: u64 = 4 * 1024;

/// The connections of one peer.
#[derive(Debug, Default)]
pub(super) struct Paths {
    open: SmallVec<[(ConnKey, Path, bool); 2]>,
    /// Wins over its equals.
    preferred: Option<ConnKey>,
}

impl Paths {
    pub(super) fn insert(&mut self, conn: ConnKey, path: Path) {
        self.remove(conn);
        self.open.push((conn, path, true));
    }

    pub(super) fn remove(&mut self, conn: ConnKey) {
        self.open.retain(|(key, ..)| *key != conn);
        self.preferred = self.preferred.filter(|key| *key != conn);
    }

    /// The peer uses this one: it wins over its equals.
    pub(super) fn prefer(&mut self, conn: ConnKey) {
        self.preferred = Some(conn);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn set_path(&mut self, conn: ConnKey, path: Path) {
        for entry in self.open.iter_mut().filter(|(key, ..)| *key == conn) {
            entry.1 = path;
        }
    }

    /// Whether the peer speaks bitswap on this connection.
    pub(super) fn set_usable(&mut self, conn: ConnKey, usable: bool) {
        for entry in self.open.iter_mut().filter(|(key, ..)| *key == conn) {
            entry.2 = usable;
        }
    }

    /// Direct beats relayed beats limited; among equals the preferred one, then the one that came
    /// first.
    pub(super) fn best(&self) -> Option<(ConnKey, Path)> {
        let usable = self.open.iter().filter(|(.., usable)| *usable);
        usable
            .min_by_key(|(key, path, _)| {
                let preferred = self.preferred == Some(*key);
                (std::cmp::Reverse((path.rank(), preferred)), *key)
            })
            .map(|(key, path, _)| (*key, *path))
    }

    /// Whether `bytes` more may travel on `path`.
    pub(super) fn fits(path: Path, bytes: u64) -> bool {
        match path {
            Path::Limited(left) => bytes.saturating_add(CIRCUIT_RESERVE_BYTES) <= left,
            Path::Relayed | Path::Direct => true,
        }
    }

    /// Counts bytes that went through a connection.
    pub(super) fn spend(&mut self, conn: ConnKey, bytes: u64) {
        for (_, path, _) in self.open.iter_mut().filter(|(key, ..)| *key == conn) {
            if let Path::Limited(left) = path {
                *left = left.saturating_sub(bytes);
            }
        }
    }
}
