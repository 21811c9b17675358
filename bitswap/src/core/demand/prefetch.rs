//! Which missing blocks are being fetched, and which are next: those assigned by the user first, then
//! the hottest.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use cid::Cid;
use hashlink::LinkedHashMap;
use web_time::Instant;

use super::{Output, REST, heat::Rank};
use crate::Config;

/// Blocks that wait to be fetched because others want them.
const MAX_WAITING: usize = 256;
/// Blocks remembered because they are left alone for a while.
const MAX_RESTING: usize = 4096;

#[derive(Debug)]
pub(super) struct Prefetch {
    max_running: usize,
    max_assigned: usize,
    patience: Duration,
    /// Wanted by others.
    waiting: BTreeSet<Arc<Cid>>,
    /// When each is given up.
    running: BTreeMap<Cid, Instant>,
    /// Until when each is left alone, the first of them first.
    resting: LinkedHashMap<Cid, Instant>,
    /// Blocks the user wants here, with their place in `agenda`.
    assigned: HashMap<Cid, (Instant, u64)>,
    /// Assignments by when they may be tried, then by age.
    agenda: BTreeMap<(Instant, u64), Cid>,
    next: u64,
    outputs: VecDeque<Output>,
}

impl Prefetch {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            max_running: config.max_prefetches(),
            max_assigned: config.max_assigned(),
            patience: config.prefetch_timeout(),
            waiting: BTreeSet::new(),
            running: BTreeMap::new(),
            resting: LinkedHashMap::new(),
            assigned: HashMap::new(),
            agenda: BTreeMap::new(),
            next: 0,
            outputs: VecDeque::new(),
        }
    }

    /// Whether a block that others want may wait to be fetched.
    pub(super) fn may_add(&self, cid: &Cid, now: Instant) -> bool {
        self.max_running > 0
            && self.waiting.len() < MAX_WAITING
            && !self.waiting.contains(cid)
            && !self.running.contains_key(cid)
            && self.resting.get(cid).is_none_or(|until| *until <= now)
    }

    pub(super) fn add(&mut self, cid: &Arc<Cid>) {
        self.waiting.insert(Arc::clone(cid));
    }

    /// Others want it no more.
    pub(super) fn drop_waiting(&mut self, cid: &Cid) {
        self.waiting.remove(cid);
    }

    /// Whether it is accepted.
    pub(super) fn assign(&mut self, cid: &Cid, now: Instant) -> bool {
        if self.assigned.contains_key(cid) {
            return true;
        }
        if self.max_running == 0 || self.assigned.len() >= self.max_assigned {
            return false;
        }
        self.schedule(*cid, now);
        true
    }

    fn schedule(&mut self, cid: Cid, at: Instant) {
        self.next += 1;
        let place = (at, self.next);
        if let Some(old) = self.assigned.insert(cid, place) {
            self.agenda.remove(&old);
        }
        self.agenda.insert(place, cid);
    }

    pub(super) fn unassign(&mut self, cid: &Cid) {
        if let Some(place) = self.assigned.remove(cid) {
            self.agenda.remove(&place);
            self.end(cid);
        }
    }

    /// The block is here, however it came.
    pub(super) fn on_have(&mut self, cid: &Cid) {
        self.waiting.remove(cid);
        self.resting.remove(cid);
        self.unassign(cid);
        self.end(cid);
    }

    fn end(&mut self, cid: &Cid) {
        if self.running.remove(cid).is_some() {
            self.outputs.push_back(Output::End(*cid));
        }
    }

    /// The block has come; if the user keeps it, `on_have` follows.
    pub(super) fn on_fetched(&mut self, cid: &Cid, now: Instant) {
        self.running.remove(cid);
        self.rest(*cid, now);
    }

    fn rest(&mut self, cid: Cid, now: Instant) {
        let until = now + REST;
        if self.assigned.contains_key(&cid) {
            self.schedule(cid, until);
        }
        self.resting.remove(&cid);
        self.resting.insert(cid, until);
        while self.resting.len() > MAX_RESTING {
            self.resting.pop_front();
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let given_up = self.running.values().min().copied();
        let next = self.agenda.first_key_value().map(|((at, _), _)| *at);
        let next = next.filter(|_| self.running.len() < self.max_running);
        given_up.into_iter().chain(next).min()
    }

    /// Blocks nobody has are given up, for a while.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let late = self.running.iter().filter(|(_, at)| **at <= now);
        let late: Vec<Cid> = late.map(|(cid, _)| *cid).collect();
        for cid in late {
            self.end(&cid);
            self.rest(cid, now);
        }
        while self.resting.front().is_some_and(|(_, at)| *at <= now) {
            self.resting.pop_front();
        }
    }

    /// `rank` says which of two blocks is hotter.
    pub(super) fn poll_output(
        &mut self,
        now: Instant,
        rank: impl Fn(&Cid) -> Option<Rank>,
    ) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        if self.running.len() >= self.max_running {
            return None;
        }
        let cid = self.next_assigned(now).or_else(|| {
            let hottest = self.waiting.iter().max_by_key(|cid| rank(cid)).cloned()?;
            self.waiting.remove(&hottest);
            Some(*hottest)
        })?;
        self.running.insert(cid, now + self.patience);
        Some(Output::Fetch(cid))
    }

    fn next_assigned(&mut self, now: Instant) -> Option<Cid> {
        let ((at, _), cid) = self.agenda.first_key_value()?;
        let cid = (*at <= now).then_some(*cid)?;
        self.waiting.remove(&cid);
        // Until it has come or is given up it is running, and not due.
        self.schedule(cid, now + self.patience + REST);
        Some(cid)
    }
}
