//! Which block to ask for next, and what to write where: the core of `get`, without disk or network.
//!
//! The file is a row of slots, each a subtree or leaf at its offset. A branch that arrives is replaced by its
//! children. Blocks are asked for from the front, as far ahead as the window allows, so that output is sequential,
//! the pipe stays full and memory is bounded.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use cid::Cid;

use super::node::{self, Node, RAW, Refused};

/// How far ahead of the written bytes blocks are asked for: 32 MiB keep a path of 1 Gbit/s and 250 ms full.
pub(super) const WINDOW_BYTES: u64 = 32 * 1024 * 1024;
/// Blocks asked for or held at the same time, for files of small leaves.
const MAX_BLOCKS_AHEAD: usize = 1024;
/// Branches asked for at the same time; each may bring thousands of slots.
const MAX_BRANCHES_ASKED: usize = 16;
/// Slots from which on only the branch that is next in the file is asked for: trees of small blocks
/// can name millions of subtrees.
const MAX_SLOTS: usize = 65_536;
/// Depth of a tree. Balanced trees of 1 EiB are 6 deep; a chain of nodes with one link each must end.
const MAX_DEPTH: u8 = 32;

#[derive(Debug)]
pub(super) struct Plan {
    /// By offset; together they cover the file from `written` to its end.
    slots: BTreeMap<u64, Slot>,
    /// Which slots wait for a block that is asked for.
    asked: HashMap<Cid, Vec<u64>>,
    /// Size of the file, once the root is known.
    total: Option<u64>,
    /// Everything before this offset is in the output.
    written: u64,
    /// Bytes that an earlier run left in the output and that may be right.
    partial: u64,
    /// Bytes that an earlier run left in the output and that are right.
    kept: u64,
    /// How far ahead of the written bytes blocks are asked for.
    window: u64,
}

#[derive(Debug)]
struct Slot {
    cid: Cid,
    /// Unknown for the root only.
    size: Option<u64>,
    depth: u8,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Wanted,
    Asked,
    /// The bytes that are in the output already are being compared with the CID.
    Compared,
    Ready(Bytes),
    InOutput,
}

/// What the adapter has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Get a block; answered by [`Plan::on_block`].
    Fetch(Cid),
    /// Compare the output's bytes with a leaf's CID; answered by [`Plan::on_compared`].
    Compare { cid: Cid, offset: u64, size: u64 },
}

/// Why the file cannot be put together, and which block is to blame.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) cid: Cid,
    pub(super) refused: Refused,
}

impl Plan {
    pub(super) fn new(root: Cid) -> Self {
        let slot = Slot {
            cid: root,
            size: None,
            depth: 0,
            state: State::Wanted,
        };
        let slots = BTreeMap::from([(0, slot)]);
        Self {
            slots,
            asked: HashMap::new(),
            total: None,
            written: 0,
            partial: 0,
            kept: 0,
            window: WINDOW_BYTES,
        }
    }

    /// Asks for blocks so many bytes ahead of the written ones, from now on.
    pub(super) fn set_window(&mut self, bytes: u64) {
        self.window = bytes;
    }

    /// Size of the file, once the root has arrived.
    pub(super) fn total(&self) -> Option<u64> {
        self.total
    }

    /// Everything before this offset is in the output.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Bytes among those written that an earlier run had left.
    pub(super) fn kept(&self) -> u64 {
        self.kept
    }

    pub(super) fn is_complete(&self) -> bool {
        self.total == Some(self.written) && self.slots.is_empty()
    }

    /// The output holds `bytes` from an earlier run. Leaves that lie within are compared before they are fetched.
    pub(super) fn set_partial(&mut self, bytes: u64) {
        self.partial = bytes;
    }

    /// The next thing to do, in the order of the file; none while the window is full.
    pub(super) fn poll_request(&mut self) -> Result<Option<Request>, Fault> {
        loop {
            let Some(offset) = self.next_wanted() else {
                return Ok(None);
            };
            let Some(slot) = self.slots.get_mut(&offset) else {
                return Ok(None);
            };
            let (cid, size) = (slot.cid, slot.size);
            if let Some(data) = node::inlined(&cid) {
                slot.state = State::Asked;
                self.fill(offset, &data)?;
                continue;
            }
            match size {
                Some(size) if cid.codec() == RAW && offset.saturating_add(size) <= self.partial => {
                    slot.state = State::Compared;
                    return Ok(Some(Request::Compare { cid, offset, size }));
                }
                _ => slot.state = State::Asked,
            }
            let waiting = self.asked.entry(cid).or_default();
            waiting.push(offset);
            // One request for a block, however often the file repeats it.
            if waiting.len() == 1 {
                return Ok(Some(Request::Fetch(cid)));
            }
        }
    }

    fn next_wanted(&self) -> Option<u64> {
        let mut branches = 0;
        let is_full = self.slots.len() >= MAX_SLOTS;
        let window = self.written.saturating_add(self.window);
        let near = self.slots.range(..window).take(MAX_BLOCKS_AHEAD);
        for (index, (offset, slot)) in near.enumerate() {
            let is_branch = slot.cid.codec() != RAW;
            match slot.state {
                State::Wanted if is_branch && branches >= MAX_BRANCHES_ASKED => {}
                State::Wanted if is_branch && is_full && index > 0 => {}
                State::Wanted => return Some(*offset),
                State::Asked if is_branch => branches += 1,
                _ => {}
            }
        }
        None
    }

    /// A block has arrived.
    pub(super) fn on_block(&mut self, cid: Cid, block: &Bytes) -> Result<(), Fault> {
        for offset in self.asked.remove(&cid).unwrap_or_default() {
            self.fill(offset, block)?;
        }
        Ok(())
    }

    fn fill(&mut self, offset: u64, block: &Bytes) -> Result<(), Fault> {
        let Some(slot) = self.slots.get_mut(&offset) else {
            return Ok(());
        };
        let (cid, depth) = (slot.cid, slot.depth);
        let fault = |refused| Fault { cid, refused };
        let node = node::decode(&cid, block.clone(), slot.size).map_err(fault)?;
        let size = node
            .size()
            .ok_or_else(|| fault(Refused::Malformed("it is larger than any file")))?;
        let total = *self.total.get_or_insert(size);
        match node {
            Node::Leaf(data) => {
                slot.size = Some(size);
                slot.state = State::Ready(data);
            }
            Node::Branch(_) if depth >= MAX_DEPTH => {
                return Err(fault(Refused::Malformed(
                    "the tree is deeper than 32 levels",
                )));
            }
            Node::Branch(children) => {
                self.slots.remove(&offset);
                let mut start = offset;
                for child in children {
                    let end = start.saturating_add(child.size);
                    debug_assert!(end <= total, "the children's sizes add up to the parent's");
                    let size = Some(child.size);
                    let slot = Slot {
                        cid: child.cid,
                        size,
                        depth: depth + 1,
                        state: State::Wanted,
                    };
                    self.slots.insert(start, slot);
                    start = end;
                }
            }
        }
        Ok(())
    }

    /// The output's bytes at `offset` are, or are not, those of the leaf.
    pub(super) fn on_compared(&mut self, offset: u64, equal: bool) {
        let Some(slot) = self.slots.get_mut(&offset) else {
            return;
        };
        if equal {
            slot.state = State::InOutput;
            self.skip_what_is_in_the_output();
        } else {
            // The earlier run was cut off here, or someone changed the file: nothing from here on is worth a look.
            slot.state = State::Wanted;
            self.partial = self.partial.min(offset);
        }
    }

    /// Takes what can be written now: bytes that follow each other, and the offset of the first. At most about
    /// `limit` bytes, so that progress shows.
    pub(super) fn take_writable(&mut self, limit: usize) -> Option<(u64, Vec<Bytes>)> {
        let start = *self.slots.first_key_value()?.0;
        let (mut run, mut length) = (Vec::new(), 0);
        while length < limit
            && let Some(first) = self.slots.first_entry()
            && matches!(first.get().state, State::Ready(_))
        {
            if let State::Ready(data) = first.remove().state {
                length += data.len();
                run.push(data);
            }
        }
        (!run.is_empty()).then_some((start, run))
    }

    /// Everything before `offset` has been written; before the next [`Plan::take_writable`].
    pub(super) fn on_written(&mut self, offset: u64) {
        self.written = self.written.max(offset);
        self.skip_what_is_in_the_output();
    }

    fn skip_what_is_in_the_output(&mut self) {
        while let Some(first) = self.slots.first_entry()
            && first.get().state == State::InOutput
            && *first.key() == self.written
        {
            let size = first.remove().size.unwrap_or(0);
            self.written = self.written.saturating_add(size);
            self.kept = self.kept.saturating_add(size);
        }
    }
}

#[cfg(test)]
mod tests {
    use multihash_codetable::{Code, MultihashDigest as _};

    use super::*;

    fn dag_pb(block: &[u8]) -> Cid {
        Cid::new_v1(0x70, Code::Sha2_256.digest(block))
    }

    fn field(number: u8, value: &[u8], out: &mut Vec<u8>) {
        out.push(number << 3 | 2);
        varint(value.len() as u64, out);
        out.extend(value);
    }

    fn varint(mut value: u64, out: &mut Vec<u8>) {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    /// A node of a file above these subtrees.
    fn branch(children: &[(Cid, u64)]) -> Bytes {
        let mut node = Vec::new();
        let mut data = vec![8, 2, 0x18];
        varint(children.iter().map(|(_, size)| size).sum(), &mut data);
        for (cid, size) in children {
            let mut link = Vec::new();
            field(1, &cid.to_bytes(), &mut link);
            field(2, b"", &mut link);
            field(2, &link, &mut node);
            data.push(0x20);
            varint(*size, &mut data);
        }
        field(1, &data, &mut node);
        node.into()
    }

    /// Ten blocks, each of which links the one below 16 times and thousands of others once.
    #[test]
    fn a_tree_that_names_more_and_more_subtrees_is_held_only_in_part() {
        let mut blocks = HashMap::new();
        let (mut top, mut size) = (dag_pb(b"never comes"), 1);
        for _ in 0..10 {
            let mut children = vec![(top, size); 16];
            children.resize(8000, (dag_pb(b"nor does this"), 1));
            let block = branch(&children);
            (top, size) = (dag_pb(&block), 16 * size + 7984);
            blocks.insert(top, block);
        }
        let mut plan = Plan::new(top);
        loop {
            // All that is asked for comes at once.
            let mut asked = Vec::new();
            while let Some(request) = plan.poll_request().unwrap() {
                asked.push(request);
            }
            let known = asked.iter().filter_map(|request| match request {
                Request::Fetch(cid) => Some((*cid, blocks.get(cid)?)),
                Request::Compare { .. } => None,
            });
            let known: Vec<_> = known.collect();
            if known.is_empty() {
                break;
            }
            for (cid, block) in known {
                plan.on_block(cid, block).unwrap();
            }
        }
        assert!(plan.slots.len() < 5 * MAX_SLOTS, "{}", plan.slots.len());
    }
}
