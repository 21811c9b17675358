//! The small key-value namespace, as the writing job carries it out.

use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashSet;

use crate::{
    ValueError,
    disk::{
        compact::{self, NoRoom},
        log::{Draft, Log},
        record::Kind,
    },
    pinning::is_name,
    state::{Shared, Value},
};

pub(crate) fn put(
    shared: &Shared,
    log: &mut Log,
    key: String,
    value: Bytes,
    payload_crc: u32,
    ttl: Option<Duration>,
) -> Result<(), ValueError> {
    if !is_name(&key) {
        return Err(ValueError::Key);
    }
    let most = shared.config.max_block_bytes;
    if value.len() as u64 > u64::from(most) {
        return Err(ValueError::TooLarge {
            size: value.len() as u64,
            most,
        });
    }
    let now = shared.vfs.now_ms();
    let draft = Draft {
        kind: Kind::Value,
        flags: 0,
        class: 0,
        expiry_ms: ttl.map_or(0, |ttl| {
            now.saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
                .max(1)
        }),
        key: key.clone().into_bytes(),
        payload: value,
        payload_crc,
    };
    let len = draft.record_len();
    let bytes = draft.footprint();
    match compact::make_room(shared, log, bytes, bytes, &HashSet::new()) {
        Ok(()) => {}
        Err(NoRoom::Full { needed }) => {
            return Err(ValueError::Full {
                needed,
                capacity: shared.capacity(),
            });
        }
        // The cold tier will take something, and until then the reserve takes small values.
        Err(NoRoom::Wait) => {}
        Err(NoRoom::Failed(failure)) => return Err(failure.into()),
    }
    let expiry_ms = draft.expiry_ms;
    let places = log.append(shared, &[draft])?;
    log.sync(shared)?;
    for place in places {
        compact::forget_value(shared, log, &key);
        let value = Value {
            at: place,
            len: u32::try_from(len).unwrap_or(u32::MAX),
            expiry_ms,
        };
        shared.values.write().insert(key.clone(), value);
        shared.retain_record(log, place.segment, bytes);
        shared.counters.value_bytes.add(bytes);
    }
    Ok(())
}

pub(crate) fn delete(shared: &Shared, log: &mut Log, key: &str) -> Result<bool, ValueError> {
    let now = shared.vfs.now_ms();
    let Some(value) = shared.values.read().get(key).copied() else {
        return Ok(false);
    };
    log.append(
        shared,
        &[Draft::new(
            Kind::DeleteValue,
            key.as_bytes().to_vec(),
            Bytes::new(),
        )],
    )?;
    log.sync(shared)?;
    compact::forget_value(shared, log, key);
    Ok(!value.is_expired(now))
}
