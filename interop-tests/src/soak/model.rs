//! What a task's operations must have left behind.

use super::Random;
use bytes::Bytes;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest as _};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// Blocks, sets and values of a task.
pub const BLOCKS: u32 = 96;
/// As [`BLOCKS`].
pub const SETS: u32 = 3;
/// As [`BLOCKS`].
pub const VALUES: u32 = 6;

/// An operation of a task. Numbers are its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Put block, for good.
    Put(u32),
    /// Put blocks from the first on, so many, for good.
    PutMany(u32, u32),
    /// Put block with a time to live in milliseconds.
    PutTtl(u32, u64),
    /// Put block and pin it in set, as one.
    PutPinned(u32, u32),
    /// Delete block.
    Delete(u32),
    /// Pin block in set.
    Pin(u32, u32),
    /// Unpin block from set.
    Unpin(u32, u32),
    /// Rename set to another.
    Rename(u32, u32),
    /// Drop set.
    Drop(u32),
    /// Put a value in this version, with a time to live in milliseconds or 0.
    PutValue(u32, u64, u64),
    /// Delete a value.
    DeleteValue(u32),
    /// Give garbage back.
    Gc,
    /// Make everything durable.
    Flush,
}

/// As on the pipe: JSON.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

impl FromStr for Operation {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}

/// When something ends: somewhere between two moments, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiry {
    /// Until then it is there.
    pub first: u64,
    /// From then on it is not.
    pub last: u64,
}

/// A task's possessions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// Blocks, and when they end.
    pub blocks: BTreeMap<u32, Option<Expiry>>,
    /// Members of sets; no set is empty.
    pub sets: BTreeMap<u32, BTreeSet<u32>>,
    /// Versions of values, and when they end.
    pub values: BTreeMap<u32, (u64, Option<Expiry>)>,
    /// So many milliseconds before its time a block may be gone: the cold tier counts in whole seconds, rounded down once.
    pub early_ms: u64,
}

/// A time of this many milliseconds is too short to count on while the machine is busy.
const LATE_MS: u64 = 1;

impl State {
    /// Whether a block is in any set.
    #[must_use]
    pub fn is_pinned(&self, block: u32) -> bool {
        self.sets.values().any(|set| set.contains(&block))
    }

    /// Whether a block is there at a time; None: it may be or not.
    #[must_use]
    pub fn is_there(&self, block: u32, now_ms: u64) -> Option<bool> {
        match self.blocks.get(&block) {
            None => Some(false),
            Some(_) if self.is_pinned(block) => Some(true),
            Some(expiry) => lasts(*expiry, now_ms),
        }
    }

    /// The version of a value at a time; None: unknown.
    #[must_use]
    pub fn version(&self, value: u32, now_ms: u64) -> Option<Option<u64>> {
        match self.values.get(&value) {
            None => Some(None),
            Some((version, expiry)) => {
                lasts(*expiry, now_ms).map(|there| there.then_some(*version))
            }
        }
    }

    /// What an operation that was carried out between two moments makes of it.
    pub fn apply(&mut self, operation: Operation, began: u64, ended: u64) {
        let early_ms = self.early_ms;
        let until = |ttl: u64| Expiry {
            first: (began + ttl).saturating_sub(early_ms),
            last: ended + ttl + LATE_MS,
        };
        // Blocks whose time is over are gone for good before anything else happens to them, or, near that moment, may be.
        match operation {
            Operation::Put(block) => drop(self.blocks.insert(block, None)),
            Operation::PutMany(first, count) => {
                for block in first..first + count {
                    self.blocks.insert(block, None);
                }
            }
            // The put that keeps a block longest counts.
            Operation::PutTtl(block, ttl) => match self.blocks.get_mut(&block) {
                Some(None) => {}
                Some(Some(before)) => {
                    let until = until(ttl);
                    before.first = before.first.max(until.first);
                    before.last = before.last.max(until.last);
                }
                None => drop(self.blocks.insert(block, Some(until(ttl)))),
            },
            Operation::PutPinned(block, set) => {
                self.blocks.insert(block, None);
                self.sets.entry(set).or_default().insert(block);
            }
            Operation::Delete(block) => drop(self.blocks.remove(&block)),
            Operation::Pin(block, set) => drop(self.sets.entry(set).or_default().insert(block)),
            Operation::Unpin(block, set) => {
                if let Some(members) = self.sets.get_mut(&set) {
                    members.remove(&block);
                    if members.is_empty() {
                        self.sets.remove(&set);
                    }
                }
            }
            Operation::Rename(from, to) => {
                if let Some(members) = self.sets.remove(&from) {
                    self.sets.insert(to, members);
                }
            }
            Operation::Drop(set) => drop(self.sets.remove(&set)),
            Operation::PutValue(value, version, ttl) => {
                let expiry = (ttl > 0).then(|| until(ttl));
                self.values.insert(value, (version, expiry));
            }
            Operation::DeleteValue(value) => drop(self.values.remove(&value)),
            Operation::Gc | Operation::Flush => {}
        }
    }

    /// Whether the store may refuse an operation.
    #[must_use]
    pub fn may_refuse(&self, operation: Operation, began: u64, ended: u64) -> bool {
        let absent = |block| {
            self.is_there(block, began) != Some(true) || self.is_there(block, ended) != Some(true)
        };
        match operation {
            Operation::Delete(block) => self.is_pinned(block),
            Operation::Pin(block, _) => absent(block),
            Operation::Rename(from, to) => {
                !self.sets.contains_key(&from) || self.sets.contains_key(&to)
            }
            _ => false,
        }
    }

    /// Whether the store must refuse it.
    #[must_use]
    pub fn must_refuse(&self, operation: Operation, began: u64, ended: u64) -> bool {
        match operation {
            // Where a block is only looked up, its time counts in whole seconds, rounded up.
            Operation::Pin(block, _) => {
                self.is_there(block, began.saturating_sub(1000)) == Some(false)
                    && self.is_there(block, ended) == Some(false)
            }
            operation => self.may_refuse(operation, began, ended),
        }
    }
}

fn lasts(expiry: Option<Expiry>, now_ms: u64) -> Option<bool> {
    match expiry {
        None => Some(true),
        Some(expiry) if now_ms < expiry.first => Some(true),
        Some(expiry) if now_ms >= expiry.last => Some(false),
        Some(_) => None,
    }
}

/// What a task has, and what it was doing when the child was killed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Task {
    /// Acknowledged.
    pub state: State,
    /// Began then, and nobody knows how it ended.
    pub unanswered: Option<(Operation, u64)>,
    /// The same operation was begun before and may have happened.
    pub again: bool,
}

impl Task {
    /// An operation begins; after a kill, the one that was under way begins again.
    ///
    /// # Errors
    ///
    /// Another one is under way.
    pub fn begin(&mut self, operation: Operation, began: u64) -> Result<(), String> {
        match self.unanswered {
            None => self.unanswered = Some((operation, began)),
            Some((before, _)) if before == operation => self.again = true,
            Some((before, _)) => {
                return Err(format!("{operation} begins while {before} is not answered"));
            }
        }
        Ok(())
    }

    /// The store has answered the operation that is under way.
    ///
    /// # Errors
    ///
    /// It did what it had to refuse, or the other way round.
    pub fn answer(&mut self, ended: u64, done: bool) -> Result<(), String> {
        let (operation, began) = self
            .unanswered
            .take()
            .ok_or("an answer without a question")?;
        let again = std::mem::take(&mut self.again);
        let must_refuse = self.state.must_refuse(operation, began, ended);
        match (done, operation) {
            (true, _) if must_refuse => return Err(format!("{operation} was not refused")),
            // Refused because it had happened the first time.
            (false, Operation::Rename(..)) if again && !must_refuse => {}
            (false, _) if self.state.may_refuse(operation, began, ended) => return Ok(()),
            (false, _) => return Err(format!("{operation} was refused")),
            (true, _) => {}
        }
        self.state.apply(operation, began, ended);
        Ok(())
    }
}

/// The block of a task: 1 byte to 90 kB, half of it compressible.
#[must_use]
pub fn block(task: u32, number: u32) -> (Cid, Bytes) {
    const SIZES: [usize; 8] = [1, 60, 700, 4096, 9_000, 20_000, 33_000, 90_000];
    let size = SIZES
        .get(number as usize % SIZES.len())
        .copied()
        .unwrap_or(1);
    let mut random = Random::new(&[u64::from(task), u64::from(number)]);
    let mut data = Vec::with_capacity(size + 16);
    // Even the shortest are told apart: by their length and these four bytes.
    data.extend_from_slice(&(task * BLOCKS + number).to_le_bytes());
    while data.len() < size {
        let word = random.next().to_le_bytes();
        data.extend_from_slice(&word);
        if number.is_multiple_of(2) {
            data.extend_from_slice(&[0; 8]);
        }
    }
    (Cid::new_v1(0x55, Code::Sha2_256.digest(&data)), data.into())
}

/// The name of a task's set.
#[must_use]
pub fn set_name(task: u32, set: u32) -> String {
    format!("task {task} set {set}")
}

/// The key of a task's value.
#[must_use]
pub fn value_key(task: u32, value: u32) -> String {
    format!("task {task} value {value}")
}

/// A value in a version.
#[must_use]
pub fn value_of(task: u32, value: u32, version: u64) -> Bytes {
    let text = format!("{task} {value} {version} ");
    text.repeat(1 + version as usize % 40).into()
}
