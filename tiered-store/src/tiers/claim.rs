//! Which packs are this store's: its id, the mark of its place in the cold tier, and what must be adopted after a checkpoint was lost.
//!
//! | file | says |
//! |---|---|
//! | `COLD` | the store's id, the name of its directory in the cold tier |
//! | `COLD.USED` | packs were or are there, and a checkpoint was written before the first one |
//! | `COLD.ADOPT` | packs have blocks that the index lost with its checkpoint |
//!
//! A place without its mark is another one: a directory that is not mounted, a bucket or prefix that was mistyped. Nothing is written there and
//! nothing is swept up once packs are known to be elsewhere, or they would count as lost or as left over later.

use std::{
    hash::{BuildHasher, RandomState},
    io::{self, IoSlice},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use web_time::Instant;

use super::{Mover, Stop, now};
use crate::{
    cold::bucket::{BucketError, cause},
    disk::checkpoint,
    state::Shared,
};

/// The store's name in the cold tier, in its directory.
pub(crate) const ID_FILE: &str = "COLD";

/// Says that packs were written. Never removed.
pub(crate) const USED_FILE: &str = "COLD.USED";

/// Says that packs have blocks that the index lost with its checkpoint.
pub(super) const ADOPT_FILE: &str = "COLD.ADOPT";

/// Between two looks for a mark that is missing.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether this is the place where the packs are.
#[derive(Debug, Default)]
pub(super) struct Claim {
    /// Packs were written: the mark must be there.
    pub(super) is_used: bool,
    /// It was not. Not asked again before.
    missing: Option<(Instant, BucketError)>,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "packs of this store were written elsewhere: its directory or prefix here has no object STORE. If those packs are lost for good, put an empty one there"
)]
struct Unmarked;

impl Claim {
    /// What the index and the files say. Blocks.
    pub(super) fn new(shared: &Shared) -> io::Result<Claim> {
        let knows_packs = !shared.packs.all().is_empty();
        let was_used = read_file(shared, USED_FILE)?.is_some();
        // Written by a version without this file, or after a checkpoint could not be.
        if knows_packs && !was_used && !shared.log.lock().checkpoints.kept.is_empty() {
            write_file(shared, USED_FILE, b"used\n")?;
        }
        Ok(Claim {
            is_used: knows_packs || was_used,
            missing: None,
        })
    }
}

impl Mover {
    /// Before packs are written or swept up: is this the right place? Marks it if no pack was ever written.
    pub(super) fn claim(&self) -> Result<(), Stop> {
        let is_used = {
            let claim = &self.state.lock().claim;
            if let Some((until, error)) = &claim.missing
                && now() < *until
            {
                return Err(Stop::Bucket(error.clone()));
            }
            claim.is_used
        };
        if !is_used {
            return self.mark();
        }
        if self.ask(self.cold.bucket.is_marked())? {
            self.state.lock().claim.missing = None;
            return Ok(());
        }
        let error = BucketError::Missing(cause(Unmarked));
        let missing = Some((now() + PAUSE, error.clone()));
        if std::mem::replace(&mut self.state.lock().claim.missing, missing).is_none() {
            tracing::error!(%error, "the cold tier is not the one that has this store's packs; nothing is moved there");
        }
        Err(Stop::Bucket(error))
    }

    /// The first pack is about to be written. From then on a log without a checkpoint is one that lost it.
    fn mark(&self) -> Result<(), Stop> {
        self.ask(self.cold.bucket.mark())?;
        let checkpointed = self.write(|shared, log| {
            if log.checkpoints.kept.is_empty() {
                checkpoint::write(shared, log)?;
            }
            Ok(())
        });
        match checkpointed {
            Ok(()) => {
                let shared = self.shared()?;
                write_file(&shared, USED_FILE, b"used\n")
                    .map_err(|error| Stop::Disk(cause(error)))?;
            }
            Err(Stop::Ended) => return Err(Stop::Ended),
            // A device that is full needs the demotion all the more.
            Err(stop) => tracing::warn!(?stop, "no checkpoint before the first pack"),
        }
        self.state.lock().claim.is_used = true;
        Ok(())
    }
}

/// While opening, before the last trace of a lost checkpoint goes: what packs have is to be adopted, whatever comes in between.
pub(crate) fn checkpoint_was_lost(shared: &Shared) -> io::Result<()> {
    shared.checkpoint_lost.store(true, Relaxed);
    write_file(shared, ADOPT_FILE, b"adopt\n")
}

/// The store's id, made on first use: 32 hex digits.
pub(super) fn store_id(shared: &Shared) -> io::Result<String> {
    if let Some(bytes) = read_file(shared, ID_FILE)? {
        let text = String::from_utf8_lossy(&bytes);
        let id = text.trim();
        if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(id.to_owned());
        }
        // Guessing a new one would lose what is under the old one.
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the file COLD is damaged: it should have 32 hex digits, the name of this store's directory in the cold tier",
        ));
    }
    let random = || RandomState::new().hash_one(shared.vfs.now_ms());
    let id = format!("{:016x}{:016x}", random(), random());
    write_file(shared, ID_FILE, format!("{id}\n").as_bytes())?;
    Ok(id)
}

pub(super) fn read_file(shared: &Shared, name: &str) -> io::Result<Option<Vec<u8>>> {
    match shared.vfs.open(&shared.dir.join(name)) {
        Ok(file) => {
            let mut bytes = vec![0; usize::try_from(file.len()?.min(4096)).unwrap_or(0)];
            file.read_exact_at(0, &mut bytes)?;
            Ok(Some(bytes))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a small file, whole or not at all.
pub(super) fn write_file(shared: &Shared, name: &str, bytes: &[u8]) -> io::Result<()> {
    let (path, temporary) = (
        shared.dir.join(name),
        shared.dir.join(format!("{name}.tmp")),
    );
    let file = shared.vfs.create(&temporary)?;
    file.write_all_at(0, &[IoSlice::new(bytes)])?;
    file.sync_data()?;
    shared.vfs.rename(&temporary, &path)?;
    shared.vfs.sync_dir(&shared.dir)
}
