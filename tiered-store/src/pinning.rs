//! Changes of pin sets, as the writing job carries them out.

use bytes::Bytes;
use cid::Cid;

use crate::{
    MAX_NAME_BYTES, PinError,
    disk::{
        log::{Draft, Log},
        record::{Kind, MORE, put_cid},
    },
    error::WriteFailure,
    key::Key,
    state::Shared,
};

/// CIDs in one record; longer lists are several records that count together.
const CIDS_PER_RECORD: usize = 16 * 1024;

pub(crate) fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
}

fn write(shared: &Shared, log: &mut Log, mut drafts: Vec<Draft>) -> Result<(), WriteFailure> {
    let last = drafts.len().saturating_sub(1);
    for draft in drafts.iter_mut().take(last) {
        draft.flags = MORE;
    }
    log.append(shared, &drafts)?;
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
    cids.chunks(CIDS_PER_RECORD).map(record).collect()
}

/// What became of a pin.
pub(crate) enum Pinned {
    Done,
    /// Nothing was done: these blocks have to be promoted first.
    Cold(Vec<Cid>),
}

pub(crate) fn pin(
    shared: &Shared,
    log: &mut Log,
    set: &str,
    cids: &[Cid],
) -> Result<Pinned, PinError> {
    if !is_name(set) {
        return Err(PinError::Name);
    }
    let now = shared.vfs.now_ms();
    let mut keys: Vec<Key> = Vec::new();
    for cid in cids {
        let key = shared.kinds.find(cid).filter(|key| {
            shared
                .index
                .get(key)
                .is_some_and(|entry| entry.is_present(now))
        });
        keys.push(key.ok_or(PinError::Missing { cid: *cid })?);
    }
    let is_cold = |key: &Key| shared.index.get(key).is_some_and(|entry| entry.is_cold());
    let cold: Vec<Cid> = cids
        .iter()
        .zip(&keys)
        .filter(|(_, key)| is_cold(key))
        .map(|(cid, _)| *cid)
        .collect();
    if !cold.is_empty() {
        return Ok(Pinned::Cold(cold));
    }
    let mut unique = keys.clone();
    unique.sort_unstable();
    unique.dedup();
    let entries = unique.iter().filter_map(|key| shared.index.get(key));
    let needed: u64 = entries
        .filter(|entry| entry.pins == 0)
        .map(|entry| entry.footprint())
        .sum();
    if needed > 0 && shared.fixed_bytes() + needed > shared.live_limit() {
        return Err(PinError::Full {
            needed,
            capacity: shared.capacity(),
        });
    }
    if keys.is_empty() {
        return Ok(Pinned::Done);
    }
    write(shared, log, lists(Kind::Pin, set, cids))?;
    let mut pins = shared.pins.write();
    for key in &unique {
        shared
            .counters
            .pinned
            .add(pins.pin(&shared.index, set, key));
        shared.memory.set_expiry(key, 0);
    }
    Ok(Pinned::Done)
}

pub(crate) fn unpin(
    shared: &Shared,
    log: &mut Log,
    set: &str,
    cids: &[Cid],
) -> Result<(), PinError> {
    let members: Vec<(Cid, Key)> = {
        let pins = shared.pins.read();
        let member = |cid: &Cid| {
            let key = shared.kinds.find(cid)?;
            pins.is_member(set, shared.index.id(&key)?)
                .then_some((*cid, key))
        };
        cids.iter().filter_map(member).collect()
    };
    if members.is_empty() {
        return Ok(());
    }
    let cids: Vec<Cid> = members.iter().map(|(cid, _)| *cid).collect();
    write(shared, log, lists(Kind::Unpin, set, &cids))?;
    let mut pins = shared.pins.write();
    for (_, key) in &members {
        shared
            .counters
            .pinned
            .sub(pins.unpin(&shared.index, set, key));
        // Its time to live counts again, and the copy in memory does not know it.
        if shared
            .index
            .get(key)
            .is_some_and(|entry| entry.expiry_s != 0)
        {
            shared.memory.remove(key);
        }
    }
    Ok(())
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
    write(shared, log, vec![record])?;
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
        vec![Draft::new(
            Kind::DropSet,
            set.as_bytes().to_vec(),
            Bytes::new(),
        )],
    )?;
    let mut pins = shared.pins.write();
    for id in pins.members(set) {
        if let Some(entry) = shared.index.by_id(id).filter(|entry| entry.expiry_s != 0) {
            shared.memory.remove(&entry.key());
        }
    }
    shared
        .counters
        .pinned
        .sub(pins.drop_set(&shared.index, set));
    Ok(())
}
