//! What peers answered when they were asked for a value.

use std::collections::BTreeSet;

use libp2p_identity::PeerId;

use crate::value::Validator;

/// Peers of one query that are sent the best value; the rest learn it otherwise.
const MAX_CORRECTIONS: usize = 20;

/// The best value so far, and who has a worse one (kad-dht specification, "Entry correction").
#[derive(Debug, Default)]
pub(crate) struct Answers {
    best: Option<Vec<u8>>,
    holders: BTreeSet<PeerId>,
    behind: BTreeSet<PeerId>,
    /// What our own store answered.
    ours: Option<Vec<u8>>,
}

impl Answers {
    /// Takes an answer, `from` nobody if it is our own store's. Returns whether it is better than those before.
    pub(crate) fn add(
        &mut self,
        from: Option<PeerId>,
        key: &[u8],
        value: Vec<u8>,
        validator: &dyn Validator,
    ) -> bool {
        if from.is_none() {
            self.ours = Some(value.clone());
        }
        if validator.validate(key, &value).is_err() {
            self.behind.extend(from);
            return false;
        }
        let known = self.best.as_ref();
        if known.is_some_and(|best| *best == value) {
            self.holders.extend(from);
            return false;
        }
        if known.is_some_and(|best| validator.compare(key, &value, best).is_le()) {
            self.behind.extend(from);
            return false;
        }
        self.best = Some(value);
        self.behind.append(&mut self.holders);
        self.holders.extend(from);
        true
    }

    pub(crate) fn best(&self) -> Option<&[u8]> {
        self.best.as_deref()
    }

    /// The best one, whom to send it, and whether our own store has a worse one.
    pub(crate) fn into_best(self) -> (Option<Vec<u8>>, Vec<PeerId>, bool) {
        let behind = self.behind.difference(&self.holders).copied();
        let behind = behind.take(MAX_CORRECTIONS).collect();
        let us = self.ours.is_some() && self.ours != self.best;
        (self.best, behind, us)
    }
}
