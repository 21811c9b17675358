//! The small key-value namespace, as the writing job carries it out.
//!
//! A record's payload is: length of the hash 1, hash, value.

use bytes::{BufMut, Bytes, BytesMut};
use hashbrown::HashMap;

use crate::{
    ValueError,
    commit::PutValue,
    disk::{
        compact,
        lane::Lane,
        log::{Draft, Log, Position},
        record::Kind,
    },
    group::{Effect, Staged},
    pinning::is_name,
    state::{Shared, Value},
};

/// The longest hash that a value is stored with, in bytes: a multihash of 64 bytes and its prefix.
pub(crate) const MOST_HASH: usize = 128;

/// A value and the hash of what it was computed from, as in a record.
pub(crate) fn payload(value: &[u8], hash: &[u8]) -> Bytes {
    let mut payload = BytesMut::with_capacity(1 + hash.len() + value.len());
    payload.put_u8(u8::try_from(hash.len()).unwrap_or(u8::MAX));
    payload.put_slice(hash);
    payload.put_slice(value);
    payload.freeze()
}

/// The hash and the value; `None` if it is not a payload.
pub(crate) fn parse(mut payload: Bytes) -> Option<(Bytes, Bytes)> {
    let len = usize::from(*payload.first()?);
    if payload.len() <= len {
        return None;
    }
    let hash = payload.slice(1..=len);
    Some((hash, payload.split_off(1 + len)))
}

pub(crate) fn stage_put(
    shared: &Shared,
    staged: &mut Staged,
    put: &PutValue,
    now: u64,
) -> Result<(), ValueError> {
    if !is_name(&put.key) {
        return Err(ValueError::Key);
    }
    let most = shared.config.max_block_bytes;
    let hash = put.payload.first().map_or(0, |len| usize::from(*len));
    let size = put.payload.len().saturating_sub(1 + hash) as u64;
    if size > u64::from(most) {
        return Err(ValueError::TooLarge { size, most });
    }
    let ttl = put.ttl.or(shared.config.value_ttl);
    let expiry_ms = ttl.map_or(0, |ttl| {
        now.saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
            .max(1)
    });
    let draft = Draft {
        kind: Kind::Value,
        lane: if expiry_ms != 0 {
            Lane::until(expiry_ms, now)
        } else {
            Lane::Main
        },
        flags: 0,
        class: 0,
        expiry_ms,
        key: put.key.clone().into_bytes(),
        payload: put.payload.clone(),
        payload_crc: put.crc,
    };
    let bytes = draft.footprint();
    if shared.fixed_bytes() + staged.fixed + bytes > shared.live_limit() {
        return Err(ValueError::Full {
            needed: bytes,
            capacity: shared.capacity(),
        });
    }
    make_room(shared, staged, &put.key);
    staged.live += bytes;
    staged.fixed += bytes;
    staged.needs_sync = true;
    staged.set_value(&shared.values.read(), &put.key, Some(expiry_ms));
    staged.effects.push(Effect::Value {
        key: put.key.clone(),
        draft: staged.drafts.len(),
    });
    staged.drafts.push(draft);
    Ok(())
}

/// Keeps within the number of values: those whose time is over first go, a few more than needed, so that not every put looks for them.
fn make_room(shared: &Shared, staged: &mut Staged, key: &str) {
    let Some(most) = shared.config.max_values.map(|most| most as usize) else {
        return;
    };
    let values = shared.values.read();
    let count = values.len().saturating_add_signed(staged.new_values);
    if staged.has_value(&values, key) || count < most {
        return;
    }
    let before = values
        .iter()
        .filter(|(key, _)| !staged.values.contains_key(*key))
        .map(|(key, value)| (key, value.expiry_ms));
    let new = staged
        .values
        .iter()
        .filter_map(|(key, expiry_ms)| Some((key, (*expiry_ms)?)));
    // What has no end comes last.
    let mut candidates: Vec<_> = before
        .chain(new)
        .map(|(key, expiry_ms)| (expiry_ms.wrapping_sub(1), key.clone()))
        .collect();
    let needed = (count + 1 - most).max(most / 16).min(candidates.len());
    if needed > 0 && needed < candidates.len() {
        candidates.select_nth_unstable(needed - 1);
    }
    for (_, key) in candidates.into_iter().take(needed) {
        push_delete(&values, staged, &key);
    }
}

fn push_delete(values: &HashMap<String, Value>, staged: &mut Staged, key: &str) {
    staged.drafts.push(Draft::new(
        Kind::DeleteValue,
        key.as_bytes().to_vec(),
        Bytes::new(),
    ));
    staged.effects.push(Effect::DeleteValue {
        key: key.to_owned(),
    });
    staged.set_value(values, key, None);
    staged.needs_sync = true;
}

pub(crate) fn apply_put(shared: &Shared, log: &mut Log, key: String, at: Position, draft: &Draft) {
    compact::forget_value(shared, log, &key);
    let value = Value {
        at,
        len: u32::try_from(draft.record_len()).unwrap_or(u32::MAX),
        expiry_ms: draft.expiry_ms,
    };
    shared.values.write().insert(key, value);
    shared.retain_record(log, at.segment, draft.footprint());
    shared.counters.value_bytes.add(draft.footprint());
}

/// Whether it was there.
pub(crate) fn stage_delete(shared: &Shared, staged: &mut Staged, key: &str, now: u64) -> bool {
    let values = shared.values.read();
    if !staged.has_value(&values, key) {
        return false;
    }
    let is_over = match staged.values.get(key) {
        Some(_) => false,
        None => values.get(key).is_some_and(|value| value.is_expired(now)),
    };
    push_delete(&values, staged, key);
    !is_over
}
