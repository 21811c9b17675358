//! Opening: lock, format, checkpoint, then what the log holds beyond it.
//!
//! Sealed segments are read by their footers. Others are scanned, cut after their last whole record, and grow on or are sealed. What
//! was never acknowledged may be there or not. Everything is applied in the order of seqs, a few segments in memory at a time.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    io::{self, IoSlice},
    ops::Range,
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use bytes::Bytes;
use cid::Cid;
use hashbrown::HashMap;

use super::{
    aborts,
    checkpoint::{self, Kept, Name, Start},
    filler::Filler,
    index::{self, Entry, EntryId, Place},
    lane::LaneKind,
    log::{Active, Before, Log, Position},
    moves,
    record::{Fields, HEADER, Kind, Record, get_cid},
    segment::{self, Item, Items, SEGMENT_HEADER, SegmentHeader},
};
use crate::{
    Config, FORMAT, OpenError,
    key::Key,
    state::{Shared, Value},
    tiers::claim,
    vfs::{Vfs, VfsFile},
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
                thread::sleep(OWN_LOCK_PAUSE);
            }
        }
    };
    check_format(&*vfs, &dir)?;
    // A process that died between making a name and syncing it left one that shows and is not durable.
    vfs.sync_dir(&dir).map_err(io("syncing the directory"))?;
    let shared = Shared::new(config, lock);
    let mut log = Log::default();
    thread::scope(|scope| recover(&shared, &mut log, Filler::new(scope, &shared.index)))
        .map_err(io("reading the log"))?;
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

fn recover(shared: &Shared, log: &mut Log, mut filler: Filler<'_, '_>) -> io::Result<()> {
    let names = shared.vfs.list(&shared.dir)?;
    for name in [checkpoint::TEMPORARY, aborts::TEMPORARY] {
        if names.iter().any(|other| other == name) {
            // What a crash left half written.
            let _ = shared.vfs.remove(&shared.dir.join(name));
        }
    }
    if names.iter().any(|name| name == aborts::FILE) {
        match aborts::read(&*shared.vfs, &shared.dir)? {
            Some(ranges) => log.aborts = ranges,
            None => tracing::error!("the list of writes that failed is damaged"),
        }
    }
    let mut ids: Vec<u32> = names
        .iter()
        .filter_map(|name| segment::parse_name(name))
        .collect();
    ids.sort_unstable();
    let start = read_checkpoints(shared, log, &mut filler, &names, &ids)?;
    log.next_segment = ids
        .last()
        .map_or(1, |last| last.saturating_add(1))
        .max(start.next_segment)
        .max(1);
    if start == Start::default() {
        let (blocks, ahead) = estimate(shared, &start, &ids);
        shared.index.reserve(usize::try_from(blocks).unwrap_or(0));
        ahead.ask(shared);
    }
    let aborted = log.aborts.iter().map(|range| range.last).max();
    log.next_seq = start.seq.max(aborted.unwrap_or(0)) + 1;
    let mut sources = Vec::new();
    for id in ids {
        sources.extend(look_at(shared, log, &start, id)?);
    }
    replay(shared, log, filler, &start, sources)?;
    settle(shared, log);
    Ok(())
}

/// Reads the newest checkpoint that is whole.
fn read_checkpoints(
    shared: &Shared,
    log: &mut Log,
    filler: &mut Filler<'_, '_>,
    names: &[String],
    segments: &[u32],
) -> io::Result<Start> {
    let mut numbers: Vec<u32> = names
        .iter()
        .filter_map(|name| checkpoint::parse_name(name))
        .collect();
    numbers.sort_unstable();
    log.checkpoints.next_number = numbers.last().map_or(0, |last| last.wrapping_add(1));
    let mut found = None;
    while let Some(number) = numbers.pop() {
        if let Some((start, bytes)) = read_checkpoint(shared, filler, number, segments)? {
            let seq = start.seq;
            log.checkpoints.kept.push_back(Kept {
                number,
                seq,
                bytes,
                is_checked: true,
            });
            found = Some(start);
            break;
        }
        tracing::error!(number, "a checkpoint is damaged; the one before it is read");
        shared.counters.corruptions.add(1);
        shared.clear();
        if numbers.is_empty() {
            tracing::error!(
                "no checkpoint is whole; the whole log is read, pins and deletions that only they knew are gone"
            );
            // Durable before the trace of it goes.
            if names.iter().any(|name| name == claim::ID_FILE) {
                claim::checkpoint_was_lost(shared)?;
            }
        }
        let _ = shared
            .vfs
            .remove(&shared.dir.join(checkpoint::file_name(number)));
    }
    if found.is_none() && names.iter().any(|name| name == claim::USED_FILE) {
        // There was one before the first pack.
        claim::checkpoint_was_lost(shared)?;
    }
    // The one before is what the next opening falls back to; reading it whole now would take as long again. Older ones are left over.
    if let Some(number) = numbers.pop() {
        let file = shared
            .vfs
            .open(&shared.dir.join(checkpoint::file_name(number)))?;
        if let Some(seq) = checkpoint::seq_of(&*file)? {
            let bytes = file.len()?;
            log.checkpoints.kept.push_front(Kept {
                number,
                seq,
                bytes,
                // Nothing is removed for its sake: the next checkpoint takes its place.
                is_checked: false,
            });
        }
    }
    for number in numbers {
        let _ = shared
            .vfs
            .remove(&shared.dir.join(checkpoint::file_name(number)));
    }
    log.checkpoints.count(shared);
    Ok(found.unwrap_or_default())
}

/// Bytes of the log that the device reads ahead.
const LOG_AHEAD: u64 = 256 << 20;

/// What will be read of segments: the device is asked for it when it has nothing else to do.
#[derive(Default)]
struct Ahead(Vec<(u32, Range<u64>)>);

impl Ahead {
    fn ask(self, shared: &Shared) {
        for (id, bytes) in self.0 {
            // Whatever is wrong with it shows when it is read.
            if let Ok(file) = shared.vfs.open(&shared.dir.join(segment::file_name(id))) {
                file.will_need(bytes.start, bytes.end - bytes.start);
            }
        }
    }
}

/// About how many blocks there are: too few costs a second filling of the index, too many a little memory. And what is read of the
/// segments later.
fn estimate(shared: &Shared, start: &Start, segments: &[u32]) -> (u64, Ahead) {
    let (mut blocks, mut bytes, mut rest) = (start.blocks, 0, 0);
    // Blocks and bytes of the segment that has the most blocks in its bytes.
    let mut densest = (0, 1);
    let (mut ahead, mut left) = (Ahead::default(), LOG_AHEAD);
    for id in segments {
        // Whatever is wrong with it shows when it is read.
        let file = shared.vfs.open(&shared.dir.join(segment::file_name(*id)));
        let Ok((file, len)) = file.and_then(|file| {
            let len = file.len()?;
            Ok((file, len))
        }) else {
            continue;
        };
        let settled = start.open.get(id).copied();
        if *id < start.next_segment && settled.is_none() {
            bytes += len;
            continue;
        }
        let known = settled.unwrap_or(0).min(len);
        let outline = segment::outline(&*file, *id).ok().flatten();
        let wanted = match &outline {
            Some(outline) => outline.items.clone(),
            None => known..len,
        };
        let wanted_bytes = (wanted.end - wanted.start).min(left);
        if wanted_bytes > 0 {
            let bytes = wanted.start..wanted.start + wanted_bytes;
            ahead.0.push((*id, bytes));
            left -= wanted_bytes;
        }
        match outline.filter(|_| settled.is_none()) {
            Some(outline) => {
                blocks += outline.records;
                bytes += len;
                // What has no footer yet has more of them in as many bytes.
                let records = outline.items.start;
                if u128::from(outline.records) * u128::from(densest.1)
                    > u128::from(densest.0) * u128::from(records)
                {
                    densest = (outline.records, records);
                }
            }
            // As many as elsewhere in as many bytes, see below.
            None => {
                bytes += known;
                rest += len - known;
            }
        }
    }
    let at_density = |(blocks, bytes): (u64, u64)| {
        u128::from(rest) * u128::from(blocks) / u128::from(bytes.max(1))
    };
    let more = at_density((blocks, bytes)).max(at_density(densest));
    // Never more than there are bytes for.
    let all = blocks + u64::try_from(more).unwrap_or(0).min(rest / HEADER as u64);
    (all + all / 64, ahead)
}

/// What numbers of kinds in a checkpoint stand for here.
struct Numbers {
    /// With digest lengths.
    hashes: [Option<(u8, u8)>; 256],
    codecs: [u8; 256],
}

fn read_checkpoint(
    shared: &Shared,
    filler: &mut Filler<'_, '_>,
    number: u32,
    segments: &[u32],
) -> io::Result<Option<(Start, u64)>> {
    let file = shared
        .vfs
        .open(&shared.dir.join(checkpoint::file_name(number)))?;
    let mut start = Start::default();
    let mut numbers = Numbers {
        hashes: [None; 256],
        codecs: [0; 256],
    };
    let mut pinned = Pinned::default();
    // A declared number allocates nothing that the file has no bytes for.
    let most_blocks = file.len()? / checkpoint::BLOCK_BYTES;
    let mut is_sound = true;
    // After so many blocks the whole checkpoint has been asked for.
    let (mut log_ahead, mut asked_after) = (None::<Ahead>, usize::MAX);
    let whole = checkpoint::read(&*file, |entry| match entry {
        checkpoint::Entry::Start(read) => {
            let blocks = usize::try_from(read.blocks.min(most_blocks)).unwrap_or(0);
            // One table for all that comes: growing it step by step would cost as much as filling it.
            let (all, ahead) = estimate(
                shared,
                &Start {
                    blocks: blocks as u64,
                    ..read.clone()
                },
                segments,
            );
            shared.index.reserve(usize::try_from(all).unwrap_or(0));
            // Pins name blocks by their numbers in the file.
            filler.keep_ids(blocks);
            let last = usize::try_from(checkpoint::AHEAD / 2 / checkpoint::BLOCK_BYTES);
            asked_after = blocks.saturating_sub(last.unwrap_or(0));
            log_ahead = Some(ahead);
            start = read;
        }
        checkpoint::Entry::Hash { number, code, size } => {
            if let Some(place) = numbers.hashes.get_mut(usize::from(number)) {
                *place = shared
                    .kinds
                    .intern_hash(code, size)
                    .map(|number| (number, size));
            }
        }
        checkpoint::Entry::Codec {
            number,
            is_v0,
            codec,
        } => {
            if let Some(place) = numbers.codecs.get_mut(usize::from(number)) {
                *place = shared.kinds.intern_codec(is_v0, codec);
            }
        }
        checkpoint::Entry::Block(block) => {
            is_sound &= insert(shared, filler, &numbers, &block).is_some();
            if filler.len() >= asked_after
                && let Some(ahead) = log_ahead.take()
            {
                ahead.ask(shared);
            }
        }
        checkpoint::Entry::Pins { set, blocks } => {
            is_sound &= filler.settle().is_some();
            if pinned.set != set {
                pinned.settle(shared);
                pinned.set = set;
            }
            for number in blocks {
                match filler.ids().get(number as usize) {
                    Some(id) => pinned.ids.push(*id),
                    None => is_sound = false,
                }
            }
        }
        checkpoint::Entry::Value { key, value } => {
            shared.values.write().insert(key, value);
        }
    })?;
    log_ahead.take().unwrap_or_default().ask(shared);
    is_sound &= filler.settle().is_some();
    filler.drop_ids();
    pinned.settle(shared);
    Ok(if whole && is_sound {
        Some((start, file.len()?))
    } else {
        None
    })
}

/// Members of a pin set.
#[derive(Default)]
struct Pinned {
    set: String,
    ids: Vec<EntryId>,
}

impl Pinned {
    fn settle(&mut self, shared: &Shared) {
        // In the order in which the set and the index have them.
        self.ids.sort_unstable();
        let mut pins = shared.pins.write();
        for id in self.ids.drain(..) {
            pins.pin_id(&shared.index, &self.set, id);
        }
    }
}

#[inline]
fn insert(
    shared: &Shared,
    filler: &mut Filler<'_, '_>,
    numbers: &Numbers,
    block: &checkpoint::Block<'_>,
) -> Option<()> {
    let (key, codec) = match &block.name {
        Name::Short {
            hash,
            codec,
            digest,
        } => {
            let (hash, size) = (*numbers.hashes.get(usize::from(*hash))?)?;
            let codec = *numbers.codecs.get(usize::from(*codec))?;
            let digest = **digest;
            // Shorter digests are filled up with zeros.
            if digest.iter().skip(usize::from(size)).any(|byte| *byte != 0) {
                return None;
            }
            (Key { digest, hash }, codec)
        }
        Name::Long(cid) => shared.kinds.intern(cid),
    };
    let mut entry = match block.place {
        Place::Disk(at) => Entry::new(key, codec, at, block.head, block.len, 0, block.heat),
        Place::Cold(at) => Entry::cold(key, codec, at, block.len, 0, block.heat),
    };
    if entry.is_lost() {
        entry = Entry::lost(key, codec);
    }
    entry.expiry_s = block.expiry_s;
    filler.push(entry)
}

/// So many blocks are worth a thread.
const MANY: usize = 64 * 1024;

/// A segment that has something to say beyond the checkpoint.
struct Source {
    id: u32,
    /// No record in it has a lower seq.
    first_seq: u64,
    header: Option<SegmentHeader>,
    /// Up to here it was durable when the checkpoint was written.
    settled: u64,
}

/// Registers a segment. `None`: the checkpoint knows everything that it says.
fn look_at(shared: &Shared, log: &mut Log, start: &Start, id: u32) -> io::Result<Option<Source>> {
    let file = shared.vfs.open(&shared.dir.join(segment::file_name(id)))?;
    let len = file.len()?;
    let settled = match start.open.get(&id) {
        Some(settled) => *settled,
        None if id < start.next_segment => {
            log.set_len(shared, id, len);
            return Ok(None);
        }
        None => 0,
    };
    if len < SEGMENT_HEADER && settled == 0 {
        // The power went while it was created.
        shared
            .vfs
            .remove(&shared.dir.join(segment::file_name(id)))?;
        shared.vfs.sync_dir(&shared.dir)?;
        return Ok(None);
    }
    log.set_len(shared, id, len);
    let header = segment::read_header(&*file, id)?;
    if header.is_none() {
        tracing::error!(segment = id, "the header of a segment is damaged");
        shared.counters.corruptions.add(1);
    }
    if settled == len && header.is_some_and(|header| header.lane.lane().is_none()) {
        // The checkpoint was the last to hear of it, and nothing goes into it any more. Compaction does without its list.
        return Ok(None);
    }
    log.since_checkpoint += len.saturating_sub(settled);
    Ok(Some(Source {
        id,
        first_seq: header.map_or(0, |header| header.first_seq),
        header,
        settled,
    }))
}

/// A source whose items are in memory.
struct Loaded {
    id: u32,
    items: Items,
    position: usize,
}

impl Loaded {
    fn seq(&self) -> Option<u64> {
        self.items.at(self.position).map(|(item, _)| item.seq)
    }
}

/// Applies what segments say beyond the checkpoint in the order of seqs. A segment is read when its first seq is next, and dropped after its
/// last: as many are in memory as lanes were open at a time.
fn replay(
    shared: &Shared,
    log: &mut Log,
    filler: Filler<'_, '_>,
    start: &Start,
    mut sources: Vec<Source>,
) -> io::Result<()> {
    sources.sort_by_key(|source| (source.first_seq, source.id));
    // The last segment of each lane may grow on.
    let mut last = BTreeMap::new();
    for source in &sources {
        if let Some(header) = source.header {
            last.insert(header.lane, source.id);
        }
    }
    let aborts = log.aborts.clone();
    let mut sources = VecDeque::from(sources);
    let mut loaded: Vec<Option<Loaded>> = Vec::new();
    let mut order = BinaryHeap::new();
    let mut blocks = Blocks {
        filler,
        usual: None,
    };
    blocks.settle()?;
    // The list of one segment goes into the memory of another: allocators give such pieces back late.
    let mut spare = Vec::new();
    loop {
        while let Some(source) = sources.front()
            && order
                .peek()
                .is_none_or(|Reverse((seq, _))| source.first_seq <= *seq)
        {
            let Some(source) = sources.pop_front() else {
                break;
            };
            let next = load(shared, log, &source, &last, std::mem::take(&mut spare))?;
            if let Some(seq) = next.seq() {
                order.push(Reverse((seq, loaded.len())));
                loaded.push(Some(next));
            }
        }
        let Some(Reverse((_, number))) = order.pop() else {
            if sources.is_empty() {
                return blocks.settle();
            }
            continue;
        };
        let Some(Some(current)) = loaded.get_mut(number) else {
            continue;
        };
        // As long as nothing else comes first.
        let mut until = order.peek().map_or(u64::MAX, |Reverse((seq, _))| *seq);
        if let Some(source) = sources.front() {
            until = until.min(source.first_seq);
        }
        let next = loop {
            let Some((item, next)) = current.items.at(current.position) else {
                break None;
            };
            if item.seq > until {
                break Some(item.seq);
            }
            current.position = next;
            log.next_seq = log.next_seq.max(item.seq + 1);
            if item.seq > start.seq
                && !aborts
                    .iter()
                    .any(|range| range.covers(current.id, item.seq))
            {
                if item.kind == Kind::Block {
                    blocks.push(shared, current.id, &item)?;
                } else {
                    if !matches!(item.kind, Kind::Value | Kind::DeleteValue) {
                        blocks.settle()?;
                    }
                    apply(shared, current.id, &item)?;
                }
            }
        };
        match next {
            Some(seq) => order.push(Reverse((seq, number))),
            None => {
                if let Some(place) = loaded.get_mut(number).and_then(Option::take) {
                    spare = place.items.bytes;
                }
            }
        }
    }
}

/// Blocks that the log names one after the other.
struct Blocks<'scope, 'env> {
    filler: Filler<'scope, 'env>,
    /// How the last CID of the usual length began, and what its key has for that.
    usual: Option<([u8; 4], u8, u8)>,
}

impl Blocks<'_, '_> {
    fn push(&mut self, shared: &Shared, segment: u32, item: &Item<'_>) -> io::Result<()> {
        let Some((key, codec)) = self.key(shared, item.key) else {
            return Ok(());
        };
        let at = Position {
            segment,
            offset: item.offset,
        };
        let head = u8::try_from(HEADER + item.key.len()).unwrap_or(u8::MAX);
        let heat = shared.clock.tick(self.filler.len()).fresh(1.0);
        let len = item.payload_len;
        let entry = Entry::new(key, codec, at, head, len, item.expiry_ms, heat);
        self.filler.push(entry).ok_or_else(is_full)
    }

    /// The key of a CID as it is in the log.
    fn key(&mut self, shared: &Shared, name: &[u8]) -> Option<(Key, u8)> {
        let whole = name.len() == 36;
        let (begin, digest) = name.split_first_chunk::<4>()?;
        if let Some((usual, hash, codec)) = self.usual
            && whole
            && usual == *begin
        {
            let digest = digest.try_into().ok()?;
            return Some((Key { digest, hash }, codec));
        }
        let cid = Cid::try_from(name).ok()?;
        let (key, codec) = shared.kinds.intern(&cid);
        // One byte each for version, codec, hash function and length: what follows is the digest.
        if whole && cid.hash().digest() == digest && key.digest == *digest {
            self.usual = Some((*begin, key.hash, codec));
        }
        Some((key, codec))
    }

    /// Everything else comes after them.
    fn settle(&mut self) -> io::Result<()> {
        self.filler.settle().ok_or_else(is_full)
    }
}

fn is_full() -> io::Error {
    io::Error::other("more blocks than the index can hold")
}

/// Reads what a segment says. One without a footer is cut behind its last whole record, and grows on or is sealed.
fn load(
    shared: &Shared,
    log: &mut Log,
    source: &Source,
    last: &BTreeMap<LaneKind, u32>,
    spare: Vec<u8>,
) -> io::Result<Loaded> {
    let id = source.id;
    let file = shared.file(id)?;
    let footer = match &source.header {
        Some(header) => segment::read_footer_into(&*file, header, spare)?,
        None => Err(spare),
    };
    let items = match footer {
        Ok(items) => items,
        Err(spare) => {
            let scan = segment::scan_into(&file, source.header, source.settled, spare)?;
            for (offset, bytes) in &scan.damaged {
                tracing::error!(
                    segment = id,
                    offset,
                    bytes,
                    "records that were durable are damaged; what they said is lost"
                );
                shared.counters.corruptions.add(1);
            }
            close_tail(shared, log, source, last, &file, scan.end, &scan.items)?;
            scan.items
        }
    };
    shared.drop_file(id);
    Ok(Loaded {
        id,
        items,
        position: 0,
    })
}

fn close_tail(
    shared: &Shared,
    log: &mut Log,
    source: &Source,
    last: &BTreeMap<LaneKind, u32>,
    file: &Arc<dyn VfsFile>,
    end: u64,
    items: &Items,
) -> io::Result<()> {
    let id = source.id;
    let len = file.len()?;
    let Some(header) = source.header.filter(|_| end >= source.settled) else {
        // More than a tail is damaged: it stays as it is.
        return Ok(());
    };
    if end < len {
        tracing::info!(
            segment = id,
            bytes = len - end,
            "cutting what was not finished"
        );
        file.set_len(end)?;
        log.set_len(shared, id, end);
    }
    // What the death of the process left may be in the page cache only, and what follows must not be more durable.
    file.sync_data()?;
    let lane = header
        .lane
        .lane()
        .filter(|_| last.get(&header.lane) == Some(&id));
    match lane {
        Some(lane) => {
            log.active.insert(
                lane,
                Active {
                    header,
                    file: file.clone(),
                    len: end,
                    synced: end,
                    unsynced_seq: 0,
                    before: Before {
                        end,
                        count: items.count,
                        bytes: items.bytes.len(),
                    },
                    items: Items::default(),
                    used_seq: 0,
                },
            );
        }
        // Its lane went on in another segment, or ends with the process. The footer saves the next opening the scan, and nothing else.
        None => match segment::write_footer(&**file, end, &header, items) {
            Ok(bytes) => {
                log.set_len(shared, id, end + bytes);
                if let Err(error) = file.sync_data() {
                    tracing::warn!(segment = id, %error, "the footer was not confirmed");
                }
            }
            Err(error) => {
                tracing::warn!(segment = id, %error, "no footer");
                file.set_len(end)?;
            }
        },
    }
    Ok(())
}

/// The payload of a record that an index does not point to; `None` if it is damaged.
fn payload(shared: &Shared, segment: u32, item: &Item<'_>) -> io::Result<Option<Bytes>> {
    let at = Position {
        segment,
        offset: item.offset,
    };
    let bytes = match shared.read(at, item.record_len()) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Bytes::new(),
        Err(error) => return Err(error),
    };
    let record = Record::parse(&bytes)
        .filter(|record| record.header.seq == item.seq)
        .map(|record| bytes.slice(bytes.len() - record.payload.len()..));
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

fn apply(shared: &Shared, segment: u32, item: &Item<'_>) -> io::Result<()> {
    let text = || String::from_utf8_lossy(item.key).into_owned();
    let at = Position {
        segment,
        offset: item.offset,
    };
    let cid_of_key = || Cid::try_from(item.key).ok();
    // What records without data say is in their payload.
    let said = match item.kind {
        Kind::Block | Kind::Delete | Kind::DropSet | Kind::Value | Kind::DeleteValue => {
            Bytes::new()
        }
        Kind::Pin | Kind::Unpin | Kind::RenameSet | Kind::Demoted | Kind::DropPack | Kind::Gone => {
            match payload(shared, segment, item)? {
                Some(said) => said,
                None => return Ok(()),
            }
        }
    };
    let mut fields = Fields(&said);
    match item.kind {
        // They have come together; see `Blocks`.
        Kind::Block => {}
        Kind::Delete => {
            if let Some(cid) = cid_of_key() {
                remove(shared, &cid);
            }
        }
        Kind::Gone => {
            while let Some(cid) = get_cid(&mut fields) {
                remove(shared, &cid);
            }
        }
        Kind::Pin => {
            let set = text();
            let mut pins = shared.pins.write();
            while let Some(cid) = get_cid(&mut fields) {
                let (key, codec) = shared.kinds.intern(&cid);
                if shared.index.id(&key).is_none() {
                    // Its record is damaged, or its deletion follows.
                    shared.index.insert(Entry::lost(key, codec));
                }
                pins.pin(&shared.index, &set, &key);
            }
        }
        Kind::Unpin => {
            let set = text();
            let mut pins = shared.pins.write();
            while let Some(cid) = get_cid(&mut fields) {
                if let Some(key) = shared.kinds.find(&cid) {
                    pins.unpin(&shared.index, &set, &key);
                }
            }
        }
        Kind::RenameSet => {
            let to = String::from_utf8_lossy(&said).into_owned();
            shared.pins.write().rename(&text(), &to);
        }
        Kind::DropSet => {
            shared.pins.write().drop_set(&shared.index, &text());
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
        Kind::Demoted => {
            for block in moves::parse_demoted(&said).unwrap_or_default() {
                let (key, codec) = shared.kinds.intern(&block.cid);
                let heat = shared.clock.get().fresh(1.0);
                let entry = Entry::cold(key, codec, block.at, block.len, block.expiry_s, heat);
                shared.index.insert(entry);
            }
        }
        Kind::DropPack => {
            if let Some(pack) = fields.u32() {
                for entry in moves::in_pack(shared, pack) {
                    shared.index.remove(&entry.key());
                }
            }
        }
    }
    Ok(())
}

/// A block is not in the store any more. One that is pinned all the same has lost its bytes.
fn remove(shared: &Shared, cid: &Cid) {
    let Some(key) = shared.kinds.find(cid) else {
        return;
    };
    match shared.index.get(&key) {
        Some(entry) if entry.pins > 0 => {
            shared.index.insert(Entry::lost(key, entry.codec));
        }
        Some(_) => drop(shared.index.remove(&key)),
        None => {}
    }
}

/// What the index needs of segments.
#[derive(Default)]
struct Needs {
    /// Of each, in bytes.
    live: HashMap<u32, u64>,
    pinned: u64,
    /// What points nowhere.
    gone: Vec<Entry>,
}

impl Needs {
    /// Of some shards of the index. `lens` are the lengths of segments.
    fn of(shared: &Shared, lens: &HashMap<u32, u64>, shards: Range<usize>) -> Needs {
        let mut needs = Needs::default();
        // Neighbours were mostly written one after the other.
        let (mut segment, mut len, mut live) = (0, None, 0);
        shared.index.for_each_of(shards, |entry| {
            let at = match entry.place() {
                Place::Cold(at) => return shared.packs.retain(at, entry.len()),
                Place::Disk(at) => at,
            };
            if at.segment != segment {
                *needs.live.entry(segment).or_default() += live;
                (segment, len, live) = (at.segment, lens.get(&at.segment), 0);
            }
            if len.is_some_and(|len| u64::from(at.offset) + entry.record_len() <= *len) {
                let footprint = entry.footprint();
                live += footprint;
                if entry.pins > 0 {
                    needs.pinned += footprint;
                }
            } else {
                needs.gone.push(*entry);
            }
        });
        *needs.live.entry(segment).or_default() += live;
        needs
    }

    fn add(&mut self, mut other: Needs) {
        for (id, live) in other.live {
            *self.live.entry(id).or_default() += live;
        }
        self.pinned += other.pinned;
        self.gone.append(&mut other.gone);
    }
}

/// Drops what points nowhere, and counts what is needed.
fn settle(shared: &Shared, log: &mut Log) {
    let segments = log.segments.iter();
    let lens: HashMap<u32, u64> = segments.map(|(id, segment)| (*id, segment.len)).collect();
    // Two threads see twice as much of the index in a time.
    const HALF: usize = index::SHARDS / 2;
    let needs = thread::scope(|scope| {
        let count = || Needs::of(shared, &lens, HALF..index::SHARDS);
        let beside = (shared.index.len() >= MANY)
            .then(|| thread::Builder::new().spawn_scoped(scope, count).ok())
            .flatten();
        let mut needs = Needs::of(shared, &lens, 0..HALF);
        match beside.map(|thread| thread.join()) {
            Some(Ok(others)) => needs.add(others),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => needs.add(count()),
        }
        needs
    });
    let Needs { live, pinned, gone } = needs;
    for entry in gone {
        let key = entry.key();
        if entry.pins == 0 {
            shared.index.remove(&key);
            shared.kinds.forget(&key);
        } else {
            tracing::error!(cid = ?shared.kinds.cid(&key, entry.codec), "a pinned block is missing");
            shared.counters.corruptions.add(1);
            shared.index.insert(Entry::lost(key, entry.codec));
        }
    }
    for (id, live) in live {
        shared.retain_record(log, id, live);
    }
    shared.counters.pinned.add(pinned);
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
}
