//! Opening: lock, format, checkpoint, then what the log holds beyond it.
//!
//! Sealed segments are read by their footers. Others are scanned; the last one is cut at its first damaged record and grows on. What
//! was never acknowledged may be there or not. Everything is applied in the order of seqs.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSlice},
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use cid::Cid;

use super::{
    checkpoint,
    index::{Entry, Place},
    log::{Active, Log, Position},
    moves,
    record::{Fields, HEADER, Header, Kind, Record, get_cid},
    segment::{self, Item, SEGMENT_HEADER},
};
use crate::{
    Config, FORMAT, OpenError,
    key::Key,
    state::{Shared, Value},
    vfs::Vfs,
};

const FORMAT_FILE: &str = "FORMAT";
const FORMAT_TEXT: &str = "anypath-tiered-store ";
const LOCK_FILE: &str = "LOCK";

/// How long the last job of a store that this process has just dropped may take to let go.
const OWN_LOCK_ATTEMPTS: u32 = 50;
const OWN_LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Opens a directory. Blocks.
pub(crate) fn open(config: Config) -> Result<Shared, OpenError> {
    let (vfs, dir) = (config.vfs.clone(), config.path.clone());
    let io = |what| {
        let path = dir.clone();
        move |source| OpenError::Io { path, what, source }
    };
    vfs.create_dir_all(&dir)
        .map_err(io("creating the directory"))?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        // Not every parent can be synced, and losing an empty store loses nothing.
        let _ = vfs.sync_dir(parent);
    }
    let mut attempts = 0;
    let lock = loop {
        match vfs.lock(&dir.join(LOCK_FILE)).map_err(io("locking"))? {
            Some(lock) => break lock,
            None => {
                let pid = read_text(&*vfs, &dir.join(LOCK_FILE))
                    .ok()
                    .and_then(|text| text.trim().parse().ok());
                attempts += 1;
                if pid.is_some_and(|pid: u32| pid != std::process::id())
                    || attempts > OWN_LOCK_ATTEMPTS
                {
                    return Err(OpenError::Locked { path: dir, pid });
                }
                std::thread::sleep(OWN_LOCK_PAUSE);
            }
        }
    };
    check_format(&*vfs, &dir)?;
    // A process that died between making a name and syncing it left one that shows and is not durable.
    vfs.sync_dir(&dir).map_err(io("syncing the directory"))?;
    let shared = Shared::new(config, lock);
    let mut log = Log::default();
    recover(&shared, &mut log).map_err(io("reading the log"))?;
    *shared.log.lock() = log;
    Ok(shared)
}

fn read_text(vfs: &dyn Vfs, path: &Path) -> io::Result<String> {
    let file = vfs.open(path)?;
    let mut bytes = vec![0; usize::try_from(file.len()?.min(256)).unwrap_or(0)];
    file.read_exact_at(0, &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn check_format(vfs: &dyn Vfs, dir: &Path) -> Result<(), OpenError> {
    let io = |what| {
        move |source| OpenError::Io {
            path: dir.to_owned(),
            what,
            source,
        }
    };
    match read_text(vfs, &dir.join(FORMAT_FILE)) {
        Ok(text) => {
            let found = text
                .strip_prefix(FORMAT_TEXT)
                .and_then(|number| number.trim().parse().ok());
            match found {
                Some(found) if found > FORMAT => Err(OpenError::NewerFormat {
                    path: dir.to_owned(),
                    found,
                    supported: FORMAT,
                }),
                Some(found) if found < FORMAT => Err(OpenError::OlderFormat {
                    path: dir.to_owned(),
                    found,
                    supported: FORMAT,
                }),
                Some(_) => Ok(()),
                None => Err(OpenError::Foreign {
                    path: dir.to_owned(),
                }),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let write = || {
                let temporary = dir.join("FORMAT.tmp");
                let file = vfs.create(&temporary)?;
                file.write_all_at(
                    0,
                    &[IoSlice::new(format!("{FORMAT_TEXT}{FORMAT}\n").as_bytes())],
                )?;
                file.sync_data()?;
                vfs.rename(&temporary, &dir.join(FORMAT_FILE))?;
                vfs.sync_dir(dir)
            };
            write().map_err(io("writing FORMAT"))
        }
        Err(error) => Err(io("reading FORMAT")(error)),
    }
}

/// Where the checkpoint ends and the log goes on.
#[derive(Default, Clone, Copy)]
struct Tail {
    seq: u64,
    segment: u32,
    offset: u64,
}

type PinsByKey = BTreeMap<String, BTreeSet<Key>>;

fn recover(shared: &Shared, log: &mut Log) -> io::Result<()> {
    let names = shared.vfs.list(&shared.dir)?;
    let ids: BTreeSet<u32> = names
        .iter()
        .filter_map(|name| segment::parse_name(name))
        .collect();
    let mut pins = PinsByKey::new();
    let mut tail = Tail::default();
    if names.iter().any(|name| name == checkpoint::FILE) {
        match read_checkpoint(shared, &mut pins)? {
            Some((read, bytes)) => {
                tail = read;
                log.checkpoint_bytes = bytes;
            }
            None => {
                tracing::error!(
                    "the checkpoint is damaged; the whole log is read, pins and deletions that were compacted are gone"
                );
                pins.clear();
                clear(shared);
                shared.checkpoint_lost.store(true, Relaxed);
            }
        }
    }
    log.checkpoint_seq = tail.seq;
    let last = ids.last().copied();
    let mut replay = Vec::new();
    for id in &ids {
        open_segment(shared, log, *id, last == Some(*id), tail, &mut replay)?;
    }
    log.next_segment = last.unwrap_or(0).max(tail.segment).saturating_add(1);
    log.next_seq = replay
        .iter()
        .map(|(_, item)| item.seq)
        .max()
        .unwrap_or(0)
        .max(tail.seq)
        + 1;
    log.has_shadows = !replay.is_empty();
    apply(shared, replay, &mut pins)?;
    settle(shared, log, pins);
    Ok(())
}

fn clear(shared: &Shared) {
    let mut keys = Vec::new();
    shared.index.for_each(|entry| keys.push(entry.key()));
    for key in keys {
        shared.index.remove(&key);
    }
    shared.values.write().clear();
}

fn read_checkpoint(shared: &Shared, pins: &mut PinsByKey) -> io::Result<Option<(Tail, u64)>> {
    let file = shared.vfs.open(&shared.dir.join(checkpoint::FILE))?;
    let mut tail = Tail::default();
    let whole = checkpoint::read(&*file, |entry| match entry {
        checkpoint::Entry::Start {
            seq,
            segment,
            offset,
        } => {
            tail = Tail {
                seq,
                segment,
                offset,
            }
        }
        checkpoint::Entry::Block(block) => {
            let (key, codec) = shared.kinds.intern(&block.cid);
            let mut entry = match block.place {
                Place::Disk(at) => Entry::new(key, codec, at, block.head, block.len, 0, block.heat),
                Place::Cold(at) => Entry::cold(key, codec, at, block.len, 0, block.heat),
            };
            entry.expiry_s = block.expiry_s;
            shared.index.insert(entry);
        }
        checkpoint::Entry::Pin { set, cid } => {
            pins.entry(set)
                .or_default()
                .insert(shared.kinds.intern(&cid).0);
        }
        checkpoint::Entry::Value {
            key,
            at,
            len,
            expiry_ms,
        } => {
            let value = Value { at, len, expiry_ms };
            shared.values.write().insert(key, value);
        }
    })?;
    Ok(if whole {
        Some((tail, file.len()?))
    } else {
        None
    })
}

/// Registers a segment and collects what it says beyond the checkpoint.
fn open_segment(
    shared: &Shared,
    log: &mut Log,
    id: u32,
    is_last: bool,
    tail: Tail,
    replay: &mut Vec<(u32, Item)>,
) -> io::Result<()> {
    let file = shared.file(id)?;
    let mut len = file.len()?;
    if id < tail.segment && !is_last {
        log.set_len(shared, id, len);
        return Ok(());
    }
    let covered = if id == tail.segment { tail.offset } else { 0 };
    let items = match segment::read_footer(&*file, id)? {
        Some(items) => items,
        None => {
            let (mut items, end) = segment::scan(&file, id, 0)?;
            if len < SEGMENT_HEADER && is_last {
                // The power went while it was created.
                shared.drop_file(id);
                shared
                    .vfs
                    .remove(&shared.dir.join(segment::file_name(id)))?;
                return shared.vfs.sync_dir(&shared.dir);
            }
            if end < covered {
                tracing::error!(
                    segment = id,
                    offset = end,
                    "a record that was durable is damaged; the segment is kept as it is"
                );
                items.extend(segment::scan(&file, id, covered)?.0);
            } else if is_last && id >= tail.segment {
                if end < len {
                    tracing::info!(
                        segment = id,
                        bytes = len - end,
                        "cutting what was not finished"
                    );
                    file.set_len(end)?;
                    len = end;
                }
                // What the death of the process left may be in the page cache only, and what follows must not be more durable.
                file.sync_data()?;
                log.active = Some(resume(id, file.clone(), end, &items));
            }
            items
        }
    };
    log.set_len(shared, id, len);
    log.since_checkpoint += len.saturating_sub(covered);
    if id >= tail.segment {
        replay.extend(
            items
                .into_iter()
                .filter(|item| u64::from(item.offset) >= covered)
                .map(|item| (id, item)),
        );
    }
    Ok(())
}

fn resume(id: u32, file: Arc<dyn crate::vfs::VfsFile>, len: u64, items: &[Item]) -> Active {
    let mut bytes = Vec::new();
    for item in items {
        let header = Header {
            kind: item.kind,
            flags: 0,
            class: item.class,
            key_len: u16::try_from(item.key.len()).unwrap_or(u16::MAX),
            payload_len: item.payload_len,
            expiry_ms: item.expiry_ms,
            seq: item.seq,
        };
        segment::push_item(&header, item.offset, &item.key, &mut bytes);
    }
    Active {
        id,
        file,
        len,
        synced: len,
        unsynced_seq: 0,
        items: bytes,
        count: u32::try_from(items.len()).unwrap_or(u32::MAX),
    }
}

fn apply(shared: &Shared, mut replay: Vec<(u32, Item)>, pins: &mut PinsByKey) -> io::Result<()> {
    replay.sort_by_key(|(_, item)| item.seq);
    let mut aborted = Vec::new();
    for (segment, item) in replay.iter().filter(|(_, item)| item.kind == Kind::Abort) {
        if let Some(payload) = payload(shared, *segment, item)? {
            let mut fields = Fields(&payload);
            aborted.extend(fields.u64().zip(fields.u64()));
        }
    }
    for (segment, item) in replay {
        if aborted
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&item.seq))
        {
            continue;
        }
        apply_one(shared, segment, &item, pins)?;
    }
    Ok(())
}

/// The payload of a record that an index does not point to; `None` if it is damaged.
fn payload(shared: &Shared, segment: u32, item: &Item) -> io::Result<Option<bytes::Bytes>> {
    let at = Position {
        segment,
        offset: item.offset,
    };
    let bytes = match shared.read(at, item.record_len() as u64) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let record =
        Record::parse(&bytes).map(|record| bytes.slice(bytes.len() - record.payload.len()..));
    if record.is_none() {
        tracing::error!(
            segment,
            offset = item.offset,
            "a record is damaged; what it said is lost"
        );
        shared.counters.corruptions.add(1);
    }
    Ok(record)
}

fn apply_one(shared: &Shared, segment: u32, item: &Item, pins: &mut PinsByKey) -> io::Result<()> {
    let text = || String::from_utf8_lossy(&item.key).into_owned();
    let at = Position {
        segment,
        offset: item.offset,
    };
    match item.kind {
        Kind::Block => {
            let Ok(cid) = Cid::try_from(item.key.as_slice()) else {
                return Ok(());
            };
            let (key, codec) = shared.kinds.intern(&cid);
            let head = u8::try_from(HEADER + item.key.len()).unwrap_or(u8::MAX);
            let heat = shared.clock.tick(shared.index.len()).fresh(1.0);
            shared.index.insert(Entry::new(
                key,
                codec,
                at,
                head,
                item.payload_len,
                item.expiry_ms,
                heat,
            ));
        }
        Kind::Delete => {
            if let Some(key) = Cid::try_from(item.key.as_slice())
                .ok()
                .and_then(|cid| shared.kinds.find(&cid))
            {
                shared.index.remove(&key);
            }
        }
        Kind::Pin | Kind::Unpin => {
            let Some(payload) = payload(shared, segment, item)? else {
                return Ok(());
            };
            let mut fields = Fields(&payload);
            let set = text();
            while let Some(cid) = get_cid(&mut fields) {
                let (key, _) = shared.kinds.intern(&cid);
                if item.kind == Kind::Pin {
                    pins.entry(set.clone()).or_default().insert(key);
                } else if let Some(members) = pins.get_mut(&set) {
                    members.remove(&key);
                }
            }
        }
        Kind::RenameSet => {
            let Some(payload) = payload(shared, segment, item)? else {
                return Ok(());
            };
            if let Some(members) = pins.remove(&text()) {
                pins.insert(String::from_utf8_lossy(&payload).into_owned(), members);
            }
        }
        Kind::DropSet => {
            pins.remove(&text());
        }
        Kind::Value => {
            let value = Value {
                at,
                len: u32::try_from(item.record_len()).unwrap_or(u32::MAX),
                expiry_ms: item.expiry_ms,
            };
            shared.values.write().insert(text(), value);
        }
        Kind::DeleteValue => {
            shared.values.write().remove(&text());
        }
        Kind::Abort => {}
        Kind::Demoted => {
            let Some(payload) = payload(shared, segment, item)? else {
                return Ok(());
            };
            for block in moves::parse_demoted(&payload).unwrap_or_default() {
                let (key, codec) = shared.kinds.intern(&block.cid);
                let heat = shared.clock.get().fresh(1.0);
                let entry = Entry::cold(key, codec, block.at, block.len, block.expiry_s, heat);
                shared.index.insert(entry);
            }
        }
        Kind::DropPack => {
            let Some(payload) = payload(shared, segment, item)? else {
                return Ok(());
            };
            if let Some(pack) = Fields(&payload).u32() {
                for entry in moves::in_pack(shared, pack) {
                    shared.index.remove(&entry.key());
                }
            }
        }
    }
    Ok(())
}

/// Drops what points nowhere (evicted before its segment went), counts what is needed, and pins.
fn settle(shared: &Shared, log: &mut Log, pins: PinsByKey) {
    let (mut gone, mut there) = (Vec::new(), Vec::new());
    shared.index.for_each(|entry| {
        let Place::Disk(at) = entry.place() else {
            there.push(*entry);
            return;
        };
        let end = u64::from(at.offset) + entry.record_len();
        match log.segments.get(&at.segment) {
            Some(segment) if end <= segment.len => there.push(*entry),
            _ => gone.push(entry.key()),
        }
    });
    for key in &gone {
        shared.index.remove(key);
    }
    for entry in there {
        shared.retain(log, &entry);
    }
    let mut values = shared.values.write();
    values.retain(|_, value| {
        log.segments
            .get(&value.at.segment)
            .is_some_and(|segment| u64::from(value.at.offset) + u64::from(value.len) <= segment.len)
    });
    for (key, value) in values.iter() {
        let bytes = value.footprint(key);
        shared.retain_record(log, value.at.segment, bytes);
        shared.counters.value_bytes.add(bytes);
    }
    let mut table = shared.pins.write();
    for (set, keys) in pins {
        for key in keys {
            let pinned = table.pin(&shared.index, &set, &key);
            shared.counters.pinned.add(pinned);
            if shared.index.id(&key).is_none() {
                tracing::error!(set, "a pinned block is missing");
            }
        }
    }
}
