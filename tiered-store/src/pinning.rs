//! Changes of pin sets, as the writing job carries them out.

use bytes::Bytes;
use cid::Cid;

use crate::{
    MAX_NAME_BYTES, PinError,
    disk::{
        compact,
        index::Entry,
        log::{Draft, Log},
        moves,
        record::{Kind, MORE, put_cid},
    },
    error::WriteFailure,
    group::{Effect, Staged},
    key::Key,
    state::Shared,
};

/// CIDs in one record; longer lists are several records that count together.
const CIDS_PER_RECORD: usize = 16 * 1024;

pub(crate) fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
}

fn write(shared: &Shared, log: &mut Log, draft: Draft) -> Result<(), WriteFailure> {
    compact::append(shared, log, &[draft])?;
    log.sync(shared)
}

fn lists(kind: Kind, set: &str, cids: &[Cid]) -> Vec<Draft> {
    let record = |cids: &[Cid]| {
        let mut payload = Vec::new();
        for cid in cids {
            put_cid(cid, &mut payload);
        }
        Draft::new(kind, set.as_bytes().to_vec(), payload.into())
    };
    let mut drafts: Vec<Draft> = cids.chunks(CIDS_PER_RECORD).map(record).collect();
    let last = drafts.len().saturating_sub(1);
    for draft in drafts.iter_mut().take(last) {
        draft.flags = MORE;
    }
    drafts
}

/// What became of a pin.
pub(crate) enum Pinned {
    Done,
    /// Nothing was done: these blocks have to be promoted first.
    Cold(Vec<Cid>),
}

/// Decides what a pin writes.
pub(crate) fn stage_pin(
    shared: &Shared,
    staged: &mut Staged,
    set: &str,
    cids: &[Cid],
) -> Result<Pinned, PinError> {
    if !is_name(set) {
        return Err(PinError::Name);
    }
    let now = shared.vfs.now_ms();
    let (mut found, mut cold) = (Vec::with_capacity(cids.len()), Vec::new());
    for cid in cids {
        let entry = shared
            .kinds
            .find(cid)
            .and_then(|key| shared.index.get(&key));
        let entry = entry
            .filter(|entry| lasts(shared, entry, now))
            .ok_or(PinError::Missing { cid: *cid })?;
        if entry.is_cold() {
            cold.push(*cid);
        }
        found.push((entry, *cid));
    }
    if !cold.is_empty() {
        return Ok(Pinned::Cold(cold));
    }
    found.sort_unstable_by_key(|(entry, _)| entry.key());
    found.dedup_by_key(|(entry, _)| entry.key());
    found.retain(|(entry, _)| !staged.is_member(shared, set, &entry.key()));
    let new = found
        .iter()
        .filter(|(entry, _)| entry.pins == 0 && !staged.pinned.contains(&entry.key()));
    let needed: u64 = new.map(|(entry, _)| entry.footprint()).sum();
    if needed > 0 && shared.fixed_bytes() + staged.fixed + needed > shared.live_limit() {
        return Err(PinError::Full {
            needed,
            capacity: shared.capacity(),
        });
    }
    if found.is_empty() {
        return Ok(Pinned::Done);
    }
    staged.fixed += needed;
    staged.needs_sync = true;
    let (keys, cids): (Vec<Key>, Vec<Cid>) = found
        .into_iter()
        .map(|(entry, cid)| (entry.key(), cid))
        .unzip();
    staged.keep.extend(keys.iter().copied());
    staged.pinned.extend(keys.iter().copied());
    staged.set_members(set, &keys, true);
    staged.drafts.extend(lists(Kind::Pin, set, &cids));
    staged.effects.push(Effect::Pin {
        set: set.to_owned(),
        keys,
    });
    Ok(Pinned::Done)
}

/// Whether a block is there, to the millisecond: a pin must neither bring back what is over nor refuse what was promised.
fn lasts(shared: &Shared, entry: &Entry, now: u64) -> bool {
    // The index has the seconds, rounded up on disk: in the last of them its record says it.
    let is_certain = entry.is_cold() || entry.is_present(now + 999);
    entry.is_present(now)
        && (is_certain
            || matches!(moves::read(shared, entry), Ok(Some(block)) if block.expiry_ms > now))
}

pub(crate) fn apply_pin(shared: &Shared, set: &str, keys: &[Key]) {
    let mut pins = shared.pins.write();
    for key in keys {
        shared
            .counters
            .pinned
            .add(pins.pin(&shared.index, set, key));
        shared.memory.set_expiry(key, 0);
    }
}

/// Decides what the end of a pin writes.
pub(crate) fn stage_unpin(shared: &Shared, staged: &mut Staged, set: &str, cids: &[Cid]) {
    let member = |cid: &Cid| {
        let key = shared.kinds.find(cid)?;
        staged.is_member(shared, set, &key).then_some((*cid, key))
    };
    let members: Vec<(Cid, Key)> = cids.iter().filter_map(member).collect();
    if members.is_empty() {
        return;
    }
    let (cids, keys): (Vec<Cid>, Vec<Key>) = members.into_iter().unzip();
    staged.needs_sync = true;
    staged.set_members(set, &keys, false);
    staged.drafts.extend(lists(Kind::Unpin, set, &cids));
    staged.effects.push(Effect::Unpin {
        set: set.to_owned(),
        keys,
    });
}

pub(crate) fn apply_unpin(shared: &Shared, set: &str, keys: &[Key]) {
    let mut pins = shared.pins.write();
    for key in keys {
        shared
            .counters
            .pinned
            .sub(pins.unpin(&shared.index, set, key));
        released(shared, key);
    }
}

/// A pin ended that held a block.
fn released(shared: &Shared, key: &Key) {
    let Some(entry) = shared.index.get(key).filter(|entry| entry.pins == 0) else {
        return;
    };
    // Its time to live counts again, and the copy in memory does not know it.
    if entry.expiry_s != 0 {
        shared.memory.remove(key);
    }
    // Nobody waits for its bytes any more.
    if entry.is_lost() {
        shared.index.remove(key);
        shared.kinds.forget(key);
    }
}

pub(crate) fn rename(shared: &Shared, log: &mut Log, from: &str, to: &str) -> Result<(), PinError> {
    if !is_name(to) {
        return Err(PinError::Name);
    }
    {
        let pins = shared.pins.read();
        if !pins.contains_set(from) {
            return Err(PinError::NoSuchSet {
                set: from.to_owned(),
            });
        }
        if from == to {
            return Ok(());
        }
        if pins.contains_set(to) {
            return Err(PinError::SetExists { set: to.to_owned() });
        }
    }
    let record = Draft::new(
        Kind::RenameSet,
        from.as_bytes().to_vec(),
        Bytes::copy_from_slice(to.as_bytes()),
    );
    write(shared, log, record)?;
    shared.pins.write().rename(from, to);
    Ok(())
}

pub(crate) fn drop_set(shared: &Shared, log: &mut Log, set: &str) -> Result<(), PinError> {
    if !shared.pins.read().contains_set(set) {
        return Ok(());
    }
    write(
        shared,
        log,
        Draft::new(Kind::DropSet, set.as_bytes().to_vec(), Bytes::new()),
    )?;
    let mut pins = shared.pins.write();
    let members = pins.members(set);
    shared
        .counters
        .pinned
        .sub(pins.drop_set(&shared.index, set));
    for id in members {
        if let Some(entry) = shared.index.by_id(id) {
            released(shared, &entry.key());
        }
    }
    Ok(())
}
