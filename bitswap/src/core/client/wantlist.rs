//! Our wantlist at one peer: what its server has of us, and what it shall have.

use web_time::Instant;

use super::wants::WantId;

/// Cancels that may wait do so until there are this many changes.
const COMPANY: usize = 64;
/// Want-blocks may wait while at least this many are on order …
const BUSY: usize = 16;
/// … until there are this many, or this share of those on order: a message for every block that
/// comes would cost as much as the blocks.
const BATCH: (usize, usize) = (16, 8);

/// What an entry at a peer asks for, or shall ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// May wait for company while others are on order.
    Block,
    BlockNow,
    /// Want-have; absence need not be answered.
    Have,
    /// Want-have; absence shall be answered.
    HaveOrNot,
    Cancel,
    /// A cancel that may wait for company.
    LazyCancel,
}

impl Goal {
    pub(super) fn is_cancel(self) -> bool {
        matches!(self, Goal::Cancel | Goal::LazyCancel)
    }

    /// Whether it may wait.
    fn is_patient(self) -> bool {
        matches!(self, Goal::Block | Goal::LazyCancel)
    }
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The peer had no line for the want and has one now.
    Added,
    /// The line is gone, because the peer never heard of it.
    Removed,
    Unchanged,
}

/// One entry. A (peer, want) pair costs eight bytes here and four in the want.
#[derive(Debug, Clone, Copy)]
struct Line {
    want: WantId,
    goal: Goal,
    /// The peer's server may have an entry of ours.
    sent: bool,
    /// The goal is not sent yet.
    changed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Wantlist {
    /// By want.
    lines: Vec<Line>,
    /// Wants with a changed line, in the order in which they changed.
    changes: Vec<WantId>,
    /// Changes that must go now, and want-blocks that may wait.
    urgent: usize,
    blocks: usize,
    /// When those that may wait must go.
    flush_at: Option<Instant>,
    /// What the server has may differ from what we sent: the next message replaces all of it.
    resync: bool,
}

impl Wantlist {
    fn find(&self, want: WantId) -> Result<usize, usize> {
        self.lines.binary_search_by_key(&want, |line| line.want)
    }

    pub(super) fn line(&self, want: WantId) -> Option<Goal> {
        let index = self.find(want).ok()?;
        self.lines.get(index).map(|line| line.goal)
    }

    /// Whether the peer is asked for this want, and that is not withdrawn.
    pub(super) fn asks(&self, want: WantId) -> bool {
        self.line(want).is_some_and(|goal| !goal.is_cancel())
    }

    /// Entries that its server may have at any moment until the next message is sent, and after.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The peer shall have this entry. `flush_at`: when a change that may wait must go.
    pub(super) fn set(&mut self, want: WantId, goal: Goal, flush_at: Instant) -> Outcome {
        let index = match self.find(want) {
            Ok(index) => index,
            Err(_) if goal.is_cancel() => return Outcome::Unchanged,
            Err(index) => {
                if self.lines.len() == self.lines.capacity() {
                    self.lines.reserve_exact((self.lines.len() / 4).max(4));
                }
                let line = Line {
                    want,
                    goal,
                    sent: false,
                    changed: true,
                };
                self.lines.insert(index, line);
                self.changes.push(want);
                self.count(goal, flush_at);
                return Outcome::Added;
            }
        };
        let Some(line) = self.lines.get_mut(index) else {
            return Outcome::Unchanged;
        };
        let (old, sent) = (*line, line.sent);
        line.goal = goal;
        line.changed = true;
        if old.changed {
            self.discount(old.goal);
        } else {
            self.changes.push(want);
        }
        if goal.is_cancel() && !sent {
            self.lines.remove(index);
            return Outcome::Removed;
        }
        self.count(goal, flush_at);
        Outcome::Unchanged
    }

    fn count(&mut self, goal: Goal, flush_at: Instant) {
        if goal.is_patient() {
            self.flush_at.get_or_insert(flush_at);
        } else {
            self.urgent += 1;
        }
        self.blocks += usize::from(goal == Goal::Block);
    }

    fn discount(&mut self, goal: Goal) {
        self.urgent = self.urgent.saturating_sub(usize::from(!goal.is_patient()));
        self.blocks = self.blocks.saturating_sub(usize::from(goal == Goal::Block));
    }

    pub(super) fn has_changes(&self) -> bool {
        self.resync || !self.changes.is_empty()
    }

    pub(super) fn flush_at(&self) -> Option<Instant> {
        self.flush_at
    }

    /// Whether a message is to be sent now. `on_order`: want-blocks that the peer owes us, unsent
    /// ones included; `more`: there will be others for it as soon as it has room.
    pub(super) fn is_due(&self, now: Instant, on_order: usize, more: bool) -> bool {
        let (most, share) = BATCH;
        let before = on_order.saturating_sub(self.blocks);
        let enough = !more || before < BUSY || self.blocks >= most.min(before.div_ceil(share));
        self.resync
            || self.urgent > 0
            || (self.blocks > 0 && enough)
            || self.changes.len() >= COMPANY
            || self.flush_at.is_some_and(|at| at <= now)
    }

    /// What to send: the changes in order, whether they replace the whole list, and the wants whose
    /// line is gone now.
    pub(super) fn take(&mut self) -> (Vec<(WantId, Goal)>, bool, Vec<WantId>) {
        let changes = std::mem::take(&mut self.changes);
        let mut entries = Vec::with_capacity(changes.len());
        let mut removed = Vec::new();
        for want in changes {
            let Ok(index) = self.find(want) else {
                continue;
            };
            let Some(line) = self.lines.get_mut(index).filter(|line| line.changed) else {
                continue;
            };
            line.changed = false;
            line.sent = true;
            entries.push((want, line.goal));
            if line.goal.is_cancel() {
                removed.push(want);
            }
        }
        if !removed.is_empty() {
            self.lines
                .retain(|line| line.changed || !line.goal.is_cancel());
        }
        if self.lines.is_empty() {
            self.lines = Vec::new();
        }
        (self.urgent, self.blocks, self.flush_at) = (0, 0, None);
        (entries, std::mem::take(&mut self.resync), removed)
    }

    /// The peer may have lost what was sent, or may have more than we know: all but `lost` (sorted) is
    /// sent again, in a full list. Returns the wants whose line is gone.
    pub(super) fn restart(&mut self, lost: &[WantId]) -> Vec<WantId> {
        let heard = self.lines.iter().any(|line| line.sent);
        let mut dropped = Vec::new();
        let mut changes = Vec::new();
        self.lines.retain_mut(|line| {
            let stays = !line.goal.is_cancel() && lost.binary_search(&line.want).is_err();
            line.sent = false;
            line.changed = true;
            if stays {
                changes.push(line.want);
            } else {
                dropped.push(line.want);
            }
            stays
        });
        (self.urgent, self.blocks, self.flush_at) = (changes.len(), 0, None);
        self.changes = changes;
        self.resync |= heard;
        dropped
    }

    /// Every want with a line.
    pub(super) fn wants(&self) -> impl Iterator<Item = WantId> + '_ {
        self.lines.iter().map(|line| line.want)
    }

    /// Bytes allocated.
    pub(super) fn allocated(&self) -> usize {
        self.lines.capacity() * size_of::<Line>() + self.changes.capacity() * size_of::<WantId>()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        time::Duration,
    };

    use rand::{RngExt as _, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::testing::origin;

    /// A server that does what messages say, and the owner's view of it.
    #[derive(Default)]
    struct Model {
        server: BTreeMap<WantId, Goal>,
        goals: BTreeMap<WantId, Goal>,
        /// Wants with a line, by the outcomes reported.
        lines: BTreeSet<WantId>,
    }

    impl Model {
        fn deliver(&mut self, list: &mut Wantlist) {
            let (entries, full, removed) = list.take();
            if full {
                self.server.clear();
            }
            for (want, goal) in entries {
                if goal.is_cancel() {
                    self.server.remove(&want);
                } else {
                    self.server.insert(want, goal);
                }
            }
            for want in removed {
                assert!(self.lines.remove(&want), "a line ends once");
            }
        }
    }

    #[test]
    fn whatever_changes_and_breaks_the_server_ends_up_with_what_it_shall_have() {
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut list, mut model) = (Wantlist::default(), Model::default());
            let now = origin();
            for _ in 0..300 {
                let want = WantId(rng.random_range(0..12));
                let goal = match rng.random_range(0..5) {
                    0 => Goal::Block,
                    1 => Goal::BlockNow,
                    2 => Goal::HaveOrNot,
                    3 => Goal::Cancel,
                    _ => Goal::LazyCancel,
                };
                match rng.random_range(0..10) {
                    0 => {
                        // The stream breaks; the server keeps what it had, or lost any of it.
                        model.server.retain(|_, _| rng.random());
                        let lost: Vec<WantId> = (0..12)
                            .map(WantId)
                            .filter(|_| rng.random_bool(0.2))
                            .collect();
                        for want in list.restart(&lost) {
                            assert!(model.lines.remove(&want));
                            model.goals.remove(&want);
                        }
                    }
                    1..3 => model.deliver(&mut list),
                    _ => {
                        match list.set(want, goal, now + Duration::from_millis(20)) {
                            Outcome::Added => assert!(model.lines.insert(want)),
                            Outcome::Removed => assert!(model.lines.remove(&want)),
                            Outcome::Unchanged => {}
                        }
                        if goal.is_cancel() {
                            model.goals.remove(&want);
                        } else {
                            model.goals.insert(want, goal);
                        }
                    }
                }
                assert_eq!(list.wants().collect::<BTreeSet<_>>(), model.lines);
                assert!(list.has_changes() || !list.is_due(now + Duration::from_secs(1), 0, false));
            }
            model.deliver(&mut list);
            assert_eq!(model.server, model.goals, "seed {seed}");
            assert!(!list.has_changes());
        }
    }

    #[test]
    fn want_blocks_wait_for_company_only_while_others_are_on_order() {
        let now = origin();
        let later = now + Duration::from_millis(20);
        let mut list = Wantlist::default();
        list.set(WantId(0), Goal::Block, later);
        assert!(list.is_due(now, 1, true), "nothing else is on order");
        assert!(!list.is_due(now, 101, true));
        assert!(list.is_due(now, 101, false), "nothing will follow");
        assert!(list.is_due(later, 101, true));
        for want in 1..13 {
            list.set(WantId(want), Goal::Block, later);
        }
        assert!(list.is_due(now, 113, true), "13 are an eighth of 100");
        list.take();
        list.set(WantId(20), Goal::BlockNow, later);
        assert!(list.is_due(now, 101, true));
    }
}
