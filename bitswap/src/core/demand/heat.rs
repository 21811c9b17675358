//! How much a block is wanted by how many: a score for each of a bounded number of blocks.
//!
//! Every peer that asks adds one, and all fades with a half-life (forward decay, Cormode et al. 2009:
//! scores are kept as logarithms on a scale that time does not move, so that order changes only
//! where somebody asks). A peer counts once a half-life for a block, so that alone it never brings a
//! block above 2.

use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use cid::Cid;
use libp2p_identity::PeerId;
use web_time::Instant;

/// Who has asked in a half-life, one bit a peer: 128 bits tell about 600 peers apart (linear
/// counting, Whang et al. 1990).
const BITS: u32 = 128;
/// Peers share so many counters of how many blocks they brought into a full table.
const NEWCOMER_COUNTERS: usize = 1024;
/// And each of them may fill this part of it in a half-life.
const NEWCOMER_SHARE: usize = 16;

/// A score as log₂, on a scale where a point one half-life later is worth one more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rank(f64);

impl Eq for Rank {}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[derive(Debug)]
struct Record {
    rank: Rank,
    /// Who asked in this half-life and in the one before.
    asked: [u128; 2],
    /// The number of the half-life that `asked` begins with.
    epoch: u64,
}

#[derive(Debug)]
pub(super) struct Heat {
    capacity: usize,
    half_life: Duration,
    start: Instant,
    seed: [u8; 32],
    blocks: HashMap<Arc<Cid>, Record>,
    ranking: BTreeSet<(Rank, Arc<Cid>)>,
    /// Blocks brought into the full table in this half-life, by the peer's counter.
    newcomers: Vec<u32>,
    epoch: u64,
}

impl Heat {
    pub(super) fn new(capacity: usize, half_life: Duration, seed: [u8; 32], now: Instant) -> Self {
        Self {
            capacity,
            half_life,
            start: now,
            seed,
            blocks: HashMap::new(),
            ranking: BTreeSet::new(),
            newcomers: Vec::new(),
            epoch: 0,
        }
    }

    /// A peer asks for a block.
    pub(super) fn touch(&mut self, peer: &PeerId, cid: &Arc<Cid>, now: Instant) {
        let age = self.age(now);
        let epoch = age as u64;
        let number = self.number(peer);
        let bit = 1_u128 << (number % u64::from(BITS));
        if !self.blocks.contains_key(cid) {
            if !self.make_room(number, epoch) {
                return;
            }
            let record = Record {
                rank: Rank(f64::NEG_INFINITY),
                asked: [0; 2],
                epoch,
            };
            self.blocks.insert(Arc::clone(cid), record);
        }
        let Some(record) = self.blocks.get_mut(cid) else {
            return;
        };
        record.asked = match epoch.saturating_sub(record.epoch) {
            0 => record.asked,
            1 => [0, record.asked[0]],
            _ => [0; 2],
        };
        record.epoch = record.epoch.max(epoch);
        let [current, before] = record.asked;
        if (current | before) & bit != 0 {
            return;
        }
        // Another peer may have the same bit; the fuller the bits, the more each new one stands for.
        let free = (current | before).count_zeros();
        let gain = (f64::from(BITS) / f64::from(free)).log2() + age;
        record.asked = [current | bit, before];
        let old = record.rank;
        record.rank = Rank(log2_sum(old.0, gain));
        let new = record.rank;
        self.ranking.remove(&(old, Arc::clone(cid)));
        self.ranking.insert((new, Arc::clone(cid)));
    }

    /// How many peers asked for a block lately, those a half-life ago counting half.
    pub(super) fn of(&self, cid: &Cid, now: Instant) -> f64 {
        self.rank(cid).map_or(0.0, |rank| self.heat(rank, now))
    }

    /// For comparison with other blocks.
    pub(super) fn rank(&self, cid: &Cid) -> Option<Rank> {
        self.blocks.get(cid).map(|record| record.rank)
    }

    /// Blocks, the hottest first, with their heat.
    pub(super) fn hottest(&self, now: Instant) -> impl Iterator<Item = (&Cid, f64)> {
        let ranking = self.ranking.iter().rev();
        ranking.map(move |(rank, cid)| (&**cid, self.heat(*rank, now)))
    }

    fn heat(&self, rank: Rank, now: Instant) -> f64 {
        (rank.0 - self.age(now)).exp2()
    }

    /// Half-lives since the start.
    fn age(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.start);
        age.as_secs_f64() / self.half_life.as_secs_f64()
    }

    /// What stands for a peer; it cannot know which.
    fn number(&self, peer: &PeerId) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.seed, peer).hash(&mut hasher);
        hasher.finish()
    }

    /// Whether a new block may enter; the coldest one goes if the table is full. One peer can push
    /// out only so many, so that its flood does not wash away what others ask for.
    fn make_room(&mut self, number: u64, epoch: u64) -> bool {
        if self.blocks.len() < self.capacity {
            return true;
        }
        if self.epoch != epoch {
            self.epoch = epoch;
            self.newcomers.clear();
        }
        self.newcomers.resize(NEWCOMER_COUNTERS, 0);
        // Other bits than those that choose the peer's bit in a record.
        let counter = (number >> 32) as usize % NEWCOMER_COUNTERS;
        let share = self.capacity / NEWCOMER_SHARE;
        match self.newcomers.get_mut(counter) {
            Some(count) if (*count as usize) < share => *count += 1,
            _ => return false,
        }
        if let Some((_, coldest)) = self.ranking.pop_first() {
            self.blocks.remove(&coldest);
        }
        true
    }
}

/// log₂(2^a + 2^b).
fn log2_sum(a: f64, b: f64) -> f64 {
    let (least, most) = if a < b { (a, b) } else { (b, a) };
    most + (least - most).exp2().ln_1p() * std::f64::consts::LOG2_E
}
