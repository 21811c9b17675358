//! Whom to ask, and whom to let go.

use std::time::Duration;

use libp2p_identity::PeerId;
use web_time::Instant;

use super::{AutoRelay, Output, Prefix, Relay, RoundTrip, Stage, State, Status, Wish, rank::Rank};

/// While a choice is open, round trips are measured for so long: what answers later is not near.
pub(super) const CHOICE: Duration = Duration::from_millis(400);

/// Candidates that are measured at the same time.
const MAX_MEASURED: usize = 12;

/// A relay that did not answer within this time is not waited for: another one is asked, too.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// The first wait before candidates are asked for once more.
const FIRST_WISH: Duration = Duration::from_secs(2);

/// A candidate that nobody named for so long is forgotten (go-libp2p's `maxCandidateAge`).
const MAX_AGE: Duration = Duration::from_secs(30 * 60);

/// A candidate that failed so often in a row is forgotten.
const HOPELESS: u32 = 10;

impl AutoRelay {
    /// Does what follows from a fact.
    pub(super) fn settle(&mut self, now: Instant) {
        self.settled_at = now;
        self.begun = None;
        if self.public.is_none() {
            self.ask_configured(now);
            self.ask_candidates(now);
            self.trim(now);
            self.wish(now);
        } else {
            self.choosing = None;
            self.wish = Wish::None;
        }
        let held = self
            .relays
            .values()
            .filter(|relay| relay.hold().is_some())
            .count();
        if held != self.status.held {
            let target = self.config.target_reservations();
            self.status = Status { held, target };
            self.outputs.push_back(Output::Status(self.status));
        }
    }

    fn ask_configured(&mut self, now: Instant) {
        let due: Vec<_> = self
            .relays
            .iter()
            .filter(|(_, relay)| relay.configured && relay.is_due(now))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in due {
            self.ask(peer, false, now);
        }
    }

    fn ask_candidates(&mut self, now: Instant) {
        let missing = self.missing(now);
        if missing == 0 {
            self.choosing = None;
            return;
        }
        let due = self.due(now).count();
        if due == 0 {
            self.choosing = None;
            return;
        }
        if due > missing && !self.is_choice_ripe(now) {
            return;
        }
        self.choosing = None;
        for _ in 0..missing {
            let best = self
                .due(now)
                .map(|peer| (self.rank(peer), peer))
                .min_by_key(|(rank, _)| *rank);
            let Some((_, peer)) = best else {
                break;
            };
            self.ask(peer, false, now);
        }
    }

    /// Measures the round trips of some candidates. True when they are known, or late.
    fn is_choice_ripe(&mut self, now: Instant) -> bool {
        let since = *self.choosing.get_or_insert(now);
        if now.saturating_duration_since(since) >= CHOICE {
            return true;
        }
        let asked = |relay: &Relay| matches!(relay.trip, RoundTrip::Asked(_));
        let mut measured = self.relays.values().filter(|relay| asked(relay)).count();
        let mut unknown: Vec<_> = self
            .due(now)
            .filter(|peer| {
                self.relays
                    .get(peer)
                    .is_some_and(|relay| relay.trip == RoundTrip::Unknown)
            })
            .map(|peer| (self.rank(peer), peer))
            .collect();
        unknown.sort_unstable();
        for (_, peer) in unknown {
            if measured >= MAX_MEASURED {
                break;
            }
            self.measure(peer, now);
            measured += 1;
        }
        measured == 0
    }

    pub(super) fn measure(&mut self, peer: PeerId, now: Instant) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        relay.trip = RoundTrip::Asked(now);
        self.outputs.push_back(match relay.links.last() {
            Some(link) => Output::Probe {
                relay: peer,
                link: link.id,
            },
            None => Output::Dial {
                relay: peer,
                addresses: relay.addresses.iter().cloned().collect(),
            },
        });
    }

    /// Asks one relay, over the newest connection to it unless a `fresh` one is wanted.
    pub(super) fn ask(&mut self, peer: PeerId, fresh: bool, now: Instant) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        let link = relay.links.last().filter(|_| !fresh).map(|known| known.id);
        // A dial that measures the way is one that is under way.
        let dialled = !fresh && matches!(relay.trip, RoundTrip::Asked(_));
        let (stage, output) = match link {
            Some(link) => (
                Stage::Reserving(link),
                Some(Output::Reserve { relay: peer, link }),
            ),
            None if dialled => (Stage::Dialling, None),
            None => (
                Stage::Dialling,
                Some(Output::Dial {
                    relay: peer,
                    addresses: relay.addresses.iter().cloned().collect(),
                }),
            ),
        };
        relay.state = State::Asking { since: now, stage };
        self.outputs.extend(output);
    }

    /// Lets the worst candidates go where more reservations are held than wanted.
    fn trim(&mut self, now: Instant) {
        let target = self.config.target_reservations();
        loop {
            let held = self
                .relays
                .values()
                .filter(|relay| relay.hold().is_some() && relay.counts(PATIENCE, now));
            if held.count() <= target {
                return;
            }
            let worst = self
                .relays
                .iter()
                .filter(|(_, relay)| !relay.configured && relay.hold().is_some())
                .map(|(peer, _)| (self.rank(*peer), *peer))
                .max();
            let Some((_, peer)) = worst else {
                return;
            };
            self.release(peer);
        }
    }

    /// Asks a candidate that is much better than the worst one in use; `trim` does the rest.
    pub(super) fn improve(&mut self, now: Instant) {
        if self.public.is_some() || self.missing(now) > 0 {
            return;
        }
        let worst = self
            .relays
            .iter()
            .filter(|(_, relay)| !relay.configured && relay.hold().is_some())
            .map(|(peer, _)| self.rank(*peer))
            .max();
        let best = self
            .due(now)
            .map(|peer| (self.rank(peer), peer))
            .min_by_key(|(rank, _)| *rank);
        if let (Some(worst), Some((best, peer))) = (worst, best)
            && best.is_much_better_than(&worst)
        {
            self.ask(peer, false, now);
        }
    }

    fn wish(&mut self, now: Instant) {
        let missing = self.missing(now);
        if missing == 0 {
            self.wish = Wish::None;
            return;
        }
        if self.choosing.is_some() {
            return;
        }
        let longest = self.config.candidates_interval();
        let wait = match self.wish {
            Wish::None => FIRST_WISH.min(longest),
            Wish::Told { next, .. } if now < next => return,
            Wish::Told { wait, .. } => (wait * 2).min(longest),
        };
        self.wish = Wish::Told {
            next: now + wait,
            wait,
        };
        self.outputs.push_back(Output::CandidatesWanted { missing });
    }

    /// Reservations wanted beyond those that are held or on their way.
    pub(super) fn missing(&self, now: Instant) -> usize {
        let used = self
            .relays
            .values()
            .filter(|relay| relay.counts(PATIENCE, now))
            .count();
        self.config.target_reservations().saturating_sub(used)
    }

    /// Candidates that may be asked now.
    fn due(&self, now: Instant) -> impl Iterator<Item = PeerId> {
        self.relays
            .iter()
            .filter(move |(_, relay)| relay.is_due(now))
            .map(|(peer, _)| *peer)
    }

    fn rank(&self, peer: PeerId) -> Rank {
        let Some(relay) = self.relays.get(&peer) else {
            return Rank::new(u32::MAX, usize::MAX, None, None, u64::MAX);
        };
        let prefix = relay.prefix();
        let neighbours = self.relays.iter().filter(|(other, known)| {
            **other != peer && !known.is_idle() && prefix.is_some() && known.prefix() == prefix
        });
        relay.rank(neighbours.count())
    }

    /// Makes room for one more candidate. False if all that are known are better than nothing, or
    /// if one network offers so many that others would find no place.
    pub(super) fn make_room(&mut self, prefix: Option<Prefix>, now: Instant) -> bool {
        self.forget(now);
        let max = self.config.max_candidates();
        let candidates = || self.relays.values().filter(|relay| !relay.configured);
        let same = candidates().filter(|relay| prefix.is_some() && relay.prefix() == prefix);
        let crowded = same.count() >= (max / 4).max(8);
        if !crowded && candidates().count() < max {
            return true;
        }
        let worst = self
            .relays
            .iter()
            .filter(|(_, relay)| {
                !relay.configured
                    && relay.is_idle()
                    && relay.told.is_none()
                    && relay.failures > 0
                    && (!crowded || relay.prefix() == prefix)
            })
            .max_by_key(|(_, relay)| relay.rank(0))
            .map(|(peer, _)| *peer);
        worst.is_some_and(|peer| self.relays.remove(&peer).is_some())
    }

    /// Forgets candidates that are out of date.
    pub(super) fn forget(&mut self, now: Instant) {
        self.relays.retain(|_, relay| {
            let stale = relay.announced_until.is_some_and(|until| until <= now)
                || now.saturating_duration_since(relay.seen) > MAX_AGE;
            let useless = relay.failures >= HOPELESS || (stale && relay.links.is_empty());
            relay.configured || !relay.is_idle() || relay.told.is_some() || !useless
        });
    }
}
