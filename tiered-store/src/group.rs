//! A group of writes: what each of them changes is decided, all of it is written and synced together, then the index is changed.

use bytes::Bytes;
use cid::Cid;
use hashbrown::{HashMap, HashSet};

use crate::{
    DeleteError, Durability, PinError, PutError, ValueError,
    commit::{Delete, Op, Origin, Put},
    disk::{
        compact::{self, NoRoom},
        index::Entry,
        lane::Lane,
        log::{Draft, Log, Position},
        moves,
        record::{HEADER, Kind, MORE, put_cid},
    },
    error::WriteFailure,
    key::Key,
    pinning::{self, Pinned},
    placement::{self, Placement},
    state::{Shared, Value},
    values,
};

/// What a group will change once it is on the disk.
#[derive(Default)]
pub(crate) struct Staged {
    pub(crate) drafts: Vec<Draft>,
    /// In the order of the ops.
    pub(crate) effects: Vec<Effect>,
    /// Bytes that become live.
    pub(crate) live: u64,
    /// Those of them, and of what is live, that neither eviction nor the cold tier can take afterwards.
    pub(crate) fixed: u64,
    /// What is written or pinned by this group must not be evicted for it.
    pub(crate) keep: HashSet<Key>,
    /// Blocks that this group writes, and when their time is over.
    written: HashMap<Key, Expiry>,
    pub(crate) pinned: HashSet<Key>,
    /// Who enters a pin set by this group, and who leaves it.
    members: HashMap<String, HashMap<Key, bool>>,
    /// Values that this group writes, and when their time is over; `None`: it deletes them.
    pub(crate) values: HashMap<String, Option<u64>>,
    /// How many more values there are after this group.
    pub(crate) new_values: isize,
    pub(crate) needs_sync: bool,
}

impl Staged {
    /// Whether a block is in a pin set, after what this group did so far.
    pub(crate) fn is_member(&self, shared: &Shared, set: &str, key: &Key) -> bool {
        let staged = self.members.get(set).and_then(|members| members.get(key));
        staged.copied().unwrap_or_else(|| {
            let id = shared.index.id(key);
            id.is_some_and(|id| shared.pins.read().is_member(set, id))
        })
    }

    /// Whether there is a value, after what this group did so far.
    pub(crate) fn has_value(&self, values: &HashMap<String, Value>, key: &str) -> bool {
        let staged = self.values.get(key).map(Option::is_some);
        staged.unwrap_or_else(|| values.contains_key(key))
    }

    pub(crate) fn set_value(
        &mut self,
        values: &HashMap<String, Value>,
        key: &str,
        expiry_ms: Option<u64>,
    ) {
        let was_there = self.has_value(values, key);
        self.new_values += isize::from(expiry_ms.is_some()) - isize::from(was_there);
        self.values.insert(key.to_owned(), expiry_ms);
    }

    pub(crate) fn set_members(&mut self, set: &str, keys: &[Key], are: bool) {
        let members = self.members.entry_ref(set).or_default();
        members.extend(keys.iter().map(|key| (*key, are)));
    }
}

/// When a block's time is over, in milliseconds since 1970; 0 for never.
#[derive(Debug, Clone, Copy)]
struct Expiry(u64);

impl Expiry {
    /// What a block in the cold tier was promised there: whole seconds, and its record on disk will say no other.
    fn of_cold(entry: &Entry) -> Expiry {
        Expiry(u64::from(entry.expiry_s) * 1000)
    }

    /// What a block was promised, exactly if `other` is so close that it matters: the index has the seconds of one on disk, rounded up. `None` for
    /// one whose time is over and for one that cannot be read.
    fn promised(shared: &Shared, entry: &Entry, other: Expiry, now: u64) -> Option<Expiry> {
        if !entry.is_present(now) {
            return None;
        }
        let rounded = Expiry::of_cold(entry);
        let is_close = other.0 <= rounded.0 && rounded.0 - other.0 < 1000;
        if entry.is_cold() || !is_close || other.0 == 0 {
            return Some(rounded);
        }
        let record = moves::read(shared, entry).ok().flatten()?;
        Some(Expiry(record.expiry_ms))
    }

    fn is_no_earlier_than(self, other: Expiry) -> bool {
        self.0 == 0 || other.0 != 0 && self.0 >= other.0
    }

    fn later(self, other: Expiry) -> Expiry {
        if self.is_no_earlier_than(other) {
            self
        } else {
            other
        }
    }
}

/// A change of the index. `draft` is the number of the record that it is about.
pub(crate) enum Effect {
    Block(NewBlock),
    Pin { set: String, keys: Vec<Key> },
    Unpin { set: String, keys: Vec<Key> },
    Value { key: String, draft: usize },
    DeleteValue { key: String },
}

pub(crate) struct NewBlock {
    draft: usize,
    key: Key,
    codec: u8,
    head: u8,
    data: Bytes,
    /// Of a new block; `None`: it keeps its heat.
    placement: Option<Placement>,
    expiry_ms: u64,
}

/// What became of an op, if the group is written.
enum Decided {
    Put(Result<bool, PutError>),
    Pin(Result<Pinned, PinError>),
    Unpin(Result<(), PinError>),
    PutValue(Result<(), ValueError>),
    DeleteValue(Result<bool, ValueError>),
}

/// Why a group was not written.
enum NotWritten {
    /// There will be room once the cold tier took some blocks.
    Wait,
    Full {
        needed: u64,
    },
    Failed(WriteFailure),
}

/// Writes a group and answers its callers. Returns those that have to wait for room.
pub(crate) fn write(shared: &Shared, log: &mut Log, ops: Vec<Op>) -> Option<Vec<Op>> {
    let now = shared.vfs.now_ms();
    let mut staged = Staged::default();
    let decided: Vec<Decided> = ops
        .iter()
        .map(|op| decide(shared, &mut staged, op, now))
        .collect();
    let result = match write_staged(shared, log, &staged) {
        Ok(positions) => {
            // A write that needs no room says nothing about those that wait for some.
            if staged.live > 0 {
                log.lacking_since = None;
            }
            apply(shared, log, staged, &positions);
            Ok(())
        }
        // One after the other they may find room, or need none.
        Err(NotWritten::Wait | NotWritten::Full { .. }) if ops.len() > 1 => {
            let mut waiting = Vec::new();
            for op in ops {
                if waiting.is_empty() || !op.needs_room() {
                    waiting.extend(write(shared, log, vec![op]).unwrap_or_default());
                } else {
                    waiting.push(op);
                }
            }
            return (!waiting.is_empty()).then_some(waiting);
        }
        Err(NotWritten::Wait) => return Some(ops),
        Err(error) => {
            // What was interned for blocks that did not arrive.
            for effect in &staged.effects {
                if let Effect::Block(block) = effect
                    && shared.index.id(&block.key).is_none()
                {
                    shared.kinds.forget(&block.key);
                }
            }
            Err(error)
        }
    };
    for (op, decided) in ops.into_iter().zip(decided) {
        answer(shared, op, decided, &result);
    }
    None
}

fn decide(shared: &Shared, staged: &mut Staged, op: &Op, now: u64) -> Decided {
    match op {
        Op::Pin(pin) => Decided::Pin(pinning::stage_pin(shared, staged, &pin.set, &pin.cids)),
        Op::Unpin(unpin) => {
            pinning::stage_unpin(shared, staged, &unpin.set, &unpin.cids);
            Decided::Unpin(Ok(()))
        }
        Op::PutValue(put) => Decided::PutValue(values::stage_put(shared, staged, put, now)),
        Op::DeleteValue(delete) => {
            Decided::DeleteValue(Ok(values::stage_delete(shared, staged, &delete.key, now)))
        }
        Op::Put(put) => Decided::Put(stage(shared, staged, put, now)),
        // They have groups of their own.
        Op::Delete(_) | Op::Task(_) => Decided::Put(Ok(false)),
    }
}

fn answer(shared: &Shared, op: Op, decided: Decided, result: &Result<(), NotWritten>) {
    let capacity = shared.capacity();
    let failure = result.as_ref().err();
    match (op, decided) {
        (Op::Put(put), Decided::Put(decided)) => {
            let answer = decided.and_then(|new| match failure {
                None => Ok(new),
                Some(NotWritten::Failed(failure)) => Err(failure.clone().into()),
                Some(NotWritten::Full { needed }) => Err(PutError::Full {
                    needed: *needed,
                    capacity,
                }),
                Some(NotWritten::Wait) => Err(PutError::Closed),
            });
            if let (Ok(new), Origin::User) = (&answer, put.origin) {
                shared.counters.puts.add(1);
                if *new {
                    shared.counters.user_bytes.add(put.data.len() as u64);
                } else {
                    shared.counters.duplicate_puts.add(1);
                }
            }
            let _ = put.reply.send(answer);
        }
        (Op::Pin(pin), Decided::Pin(decided)) => {
            let _ = pin.reply.send(decided.and_then(|done| match failure {
                None => Ok(done),
                Some(failure) => Err(pin_error(failure, capacity)),
            }));
        }
        (Op::Unpin(unpin), Decided::Unpin(decided)) => {
            let _ = unpin.reply.send(decided.and_then(|()| match failure {
                None => Ok(()),
                Some(failure) => Err(pin_error(failure, capacity)),
            }));
        }
        (Op::PutValue(put), Decided::PutValue(decided)) => {
            let _ = put.reply.send(decided.and_then(|()| match failure {
                None => Ok(()),
                Some(failure) => Err(value_error(failure, capacity)),
            }));
        }
        (Op::DeleteValue(delete), Decided::DeleteValue(decided)) => {
            let _ = delete
                .reply
                .send(decided.and_then(|was_there| match failure {
                    None => Ok(was_there),
                    Some(failure) => Err(value_error(failure, capacity)),
                }));
        }
        _ => {}
    }
}

fn pin_error(failure: &NotWritten, capacity: u64) -> PinError {
    match failure {
        NotWritten::Failed(failure) => failure.clone().into(),
        NotWritten::Full { needed } => PinError::Full {
            needed: *needed,
            capacity,
        },
        NotWritten::Wait => PinError::Closed,
    }
}

fn value_error(failure: &NotWritten, capacity: u64) -> ValueError {
    match failure {
        NotWritten::Failed(failure) => failure.clone().into(),
        NotWritten::Full { needed } => ValueError::Full {
            needed: *needed,
            capacity,
        },
        NotWritten::Wait => ValueError::Closed,
    }
}

/// Decides what a put writes. `Ok(false)`: the block is there already.
fn stage(shared: &Shared, staged: &mut Staged, put: &Put, now: u64) -> Result<bool, PutError> {
    if let Origin::Cold { class, urgent } = put.origin {
        return stage_promotion(shared, staged, put, class, urgent, now);
    }
    let (key, codec) = shared.kinds.intern(&put.cid);
    let entry = shared.index.get(&key);
    let asked = Expiry(match put.options.ttl {
        Some(ttl) => now
            .saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
            .max(1),
        None => 0,
    });
    let written = staged.written.get(&key).copied();
    let promised =
        written.or_else(|| entry.and_then(|entry| Expiry::promised(shared, &entry, asked, now)));
    // What is pinned has to be on disk.
    let entry = entry.filter(|entry| !entry.is_cold() || put.options.pin.is_none());
    // A block whose time would be over before is written again, even where a pin holds it for now: every put is a promise.
    let there = (written.is_some() || entry.is_some())
        && promised.is_some_and(|promised| promised.is_no_earlier_than(asked));
    let Expiry(expiry_ms) = promised.map_or(asked, |promised| promised.later(asked));
    let is_held = put.options.pin.is_some()
        || entry.is_some_and(|entry| entry.pins > 0)
        || staged.pinned.contains(&key);
    let draft = Draft {
        kind: Kind::Block,
        lane: if expiry_ms != 0 && !is_held {
            Lane::until(expiry_ms, now)
        } else {
            Lane::Main
        },
        flags: if put.options.pin.is_some() { MORE } else { 0 },
        class: put.options.class as u8 | (put.options.importance as u8) << 4,
        expiry_ms,
        key: put.cid.to_bytes(),
        payload: put.data.clone(),
        payload_crc: put.crc,
    };
    let bytes = draft.footprint();
    let already_pinned = entry.is_some_and(|entry| entry.pins > 0) || staged.pinned.contains(&key);
    // What it takes the place of goes when it is written.
    let replaced = entry.filter(|_| written.is_none());
    let replaced = replaced.map_or(0, |entry| entry.footprint());
    let adds_live = if there {
        0
    } else {
        bytes.saturating_sub(replaced)
    };
    let adds_fixed = if put.options.pin.is_some() && !already_pinned {
        bytes
    } else {
        0
    };
    let fixed = shared.fixed_bytes() + staged.fixed;
    let unpinned_floor = if put.options.pin.is_none() && !there && !already_pinned {
        bytes
    } else {
        0
    };
    if fixed + adds_fixed + unpinned_floor > shared.live_limit() {
        return Err(PutError::Full {
            needed: adds_fixed.max(unpinned_floor),
            capacity: shared.capacity(),
        });
    }
    staged.live += adds_live;
    staged.fixed += adds_fixed;
    staged.keep.insert(key);
    let durability = put.options.durability.unwrap_or(shared.config.durability);
    // What takes the place of a durable record is durable: a power cut must leave one of both.
    let replaces = !there && entry.is_some_and(|entry| entry.is_present(now));
    staged.needs_sync |= durability != Durability::Relaxed || put.options.pin.is_some() || replaces;
    if !there {
        staged.written.insert(key, Expiry(expiry_ms));
        staged.effects.push(Effect::Block(NewBlock {
            draft: staged.drafts.len(),
            key,
            codec,
            head: u8::try_from(HEADER + draft.key.len()).unwrap_or(u8::MAX),
            data: put.data.clone(),
            placement: Some(placement::place(
                &shared.config.policy,
                shared.memory.capacity(),
                put.data.len(),
                &put.options,
            )),
            expiry_ms,
        }));
        staged.drafts.push(draft);
    }
    if let Some(set) = &put.options.pin {
        if !staged.is_member(shared, set, &key) || !there {
            let mut payload = Vec::new();
            put_cid(&put.cid, &mut payload);
            staged.drafts.push(Draft::new(
                Kind::Pin,
                set.clone().into_bytes(),
                payload.into(),
            ));
        }
        staged.set_members(set, &[key], true);
        staged.effects.push(Effect::Pin {
            set: set.clone(),
            keys: vec![key],
        });
        staged.pinned.insert(key);
    }
    Ok(!there)
}

/// A block comes back from the cold tier, if it is still there.
fn stage_promotion(
    shared: &Shared,
    staged: &mut Staged,
    put: &Put,
    class: u8,
    urgent: bool,
    now: u64,
) -> Result<bool, PutError> {
    let found = shared.kinds.find(&put.cid).and_then(|key| {
        let entry = shared.index.get(&key)?;
        Some((key, entry))
    });
    let Some((key, entry)) = found.filter(|(key, entry)| {
        entry.is_cold() && entry.is_present(now) && !staged.written.contains_key(key)
    }) else {
        return Ok(false);
    };
    let key_bytes = shared
        .kinds
        .cid(&key, entry.codec)
        .unwrap_or(put.cid)
        .to_bytes();
    let expiry_ms = u64::from(entry.expiry_s) * 1000;
    let draft = Draft {
        kind: Kind::Block,
        lane: if expiry_ms != 0 {
            Lane::until(expiry_ms, now)
        } else {
            Lane::Main
        },
        flags: 0,
        class,
        expiry_ms,
        key: key_bytes,
        payload: put.data.clone(),
        payload_crc: put.crc,
    };
    let bytes = draft.footprint();
    let room = shared
        .live_limit()
        .saturating_sub(shared.counters.live.get() + staged.live);
    if !urgent && bytes > room {
        return Ok(false);
    }
    if shared.fixed_bytes() + staged.fixed + bytes > shared.live_limit() {
        return Err(PutError::Full {
            needed: bytes,
            capacity: shared.capacity(),
        });
    }
    staged.live += bytes;
    staged.keep.insert(key);
    // The copy in the cold tier is given up for it.
    staged.needs_sync = true;
    staged.written.insert(key, Expiry::of_cold(&entry));
    staged.effects.push(Effect::Block(NewBlock {
        draft: staged.drafts.len(),
        key,
        codec: entry.codec,
        head: u8::try_from(HEADER + draft.key.len()).unwrap_or(u8::MAX),
        data: put.data.clone(),
        placement: None,
        expiry_ms,
    }));
    staged.drafts.push(draft);
    Ok(true)
}

fn write_staged(
    shared: &Shared,
    log: &mut Log,
    staged: &Staged,
) -> Result<Vec<Position>, NotWritten> {
    let bytes = staged.drafts.iter().map(Draft::footprint).sum();
    if staged.live > 0 || !staged.written.is_empty() {
        log.keep.clone_from(&staged.keep);
        let room = compact::make_room(shared, log, staged.live, bytes);
        log.keep.clear();
        match room {
            Ok(()) => {}
            Err(NoRoom::Full { needed }) => return Err(NotWritten::Full { needed }),
            Err(NoRoom::Wait) => return Err(NotWritten::Wait),
            Err(NoRoom::Failed(failure)) => return Err(NotWritten::Failed(failure)),
        }
    }
    let positions = if staged.drafts.is_empty() {
        Vec::new()
    } else {
        compact::append(shared, log, &staged.drafts).map_err(NotWritten::Failed)?
    };
    if staged.needs_sync {
        log.sync(shared).map_err(NotWritten::Failed)?;
    } else {
        log.applied();
    }
    Ok(positions)
}

fn apply(shared: &Shared, log: &mut Log, staged: Staged, positions: &[Position]) {
    for effect in staged.effects {
        match effect {
            Effect::Block(block) => {
                if let (Some(at), Some(draft)) =
                    (positions.get(block.draft), staged.drafts.get(block.draft))
                {
                    apply_block(shared, log, block, *at, &draft.key);
                }
            }
            Effect::Pin { set, keys } => pinning::apply_pin(shared, &set, &keys),
            Effect::Unpin { set, keys } => pinning::apply_unpin(shared, &set, &keys),
            Effect::Value { key, draft } => {
                if let (Some(at), Some(draft)) = (positions.get(draft), staged.drafts.get(draft)) {
                    values::apply_put(shared, log, key, *at, draft);
                }
            }
            Effect::DeleteValue { key } => compact::forget_value(shared, log, &key),
        }
    }
}

fn apply_block(shared: &Shared, log: &mut Log, block: NewBlock, at: Position, name: &[u8]) {
    // The long form may have been forgotten with the block's entry while room was made.
    if let Ok(cid) = Cid::try_from(name) {
        shared.kinds.intern(&cid);
    }
    let heat = match block.placement {
        Some(placement) => shared.clock.tick(shared.index.len()).fresh(placement.reads),
        None => f32::NEG_INFINITY,
    };
    let len = u32::try_from(block.data.len()).unwrap_or(u32::MAX);
    let entry = Entry::new(
        block.key,
        block.codec,
        at,
        block.head,
        len,
        block.expiry_ms,
        heat,
    );
    if let Some(old) = shared.index.insert(entry) {
        shared.release(log, &old);
        if old.pins > 0 {
            // The name may be of another length.
            shared.counters.pinned.add(entry.footprint());
            shared.counters.pinned.sub(old.footprint());
        }
    }
    shared.retain(log, &entry);
    if shared.memory.capacity() > 0
        && let Some(placement) = block.placement
    {
        shared.memory.set_expiry(&block.key, block.expiry_ms);
        // What stays for good is offered by its caller's thread once it was told.
        if placement.in_memory && block.expiry_ms != 0 {
            // A copy, as the caller's bytes may be a small part of a large buffer that would stay with them.
            let mut copy = shared.memory.buffer(block.data.len());
            copy.extend_from_slice(&block.data);
            let (reads, expiry_ms) = (placement.reads, block.expiry_ms);
            shared
                .memory
                .insert(block.key, copy.freeze(), reads, expiry_ms);
        }
    }
}

/// Deletes a group of blocks and answers their callers.
pub(crate) fn delete(shared: &Shared, log: &mut Log, deletes: Vec<Delete>) {
    let now = shared.vfs.now_ms();
    let (mut drafts, mut keys, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for delete in deletes {
        let Some(entry) = find(shared, &delete.cid) else {
            answers.push((delete.reply, false));
            continue;
        };
        if entry.pins > 0 {
            let _ = delete
                .reply
                .send(Err(DeleteError::Pinned { cid: delete.cid }));
            continue;
        }
        let first = seen.insert(entry.key());
        if first {
            drafts.push(Draft::new(
                Kind::Delete,
                delete.cid.to_bytes(),
                Bytes::new(),
            ));
            keys.push(entry.key());
        }
        answers.push((delete.reply, first && entry.is_present(now)));
    }
    // Deleting must work in a full store, so it asks for no room: its records are small and become garbage at once. What is not here may
    // be what the store forgot by itself: that is durable then, too.
    let written = if drafts.is_empty() && !log.has_gone() {
        Ok(())
    } else {
        compact::append(shared, log, &drafts).and_then(|_| log.sync(shared))
    };
    if written.is_ok() {
        for key in keys {
            shared.forget(log, &key);
        }
    }
    for (reply, there) in answers {
        let _ = reply.send(written.clone().map(|()| there).map_err(DeleteError::from));
    }
}

fn find(shared: &Shared, cid: &Cid) -> Option<Entry> {
    shared.index.get(&shared.kinds.find(cid)?)
}
