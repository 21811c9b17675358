//! Searching for wants that no connected peer of their sessions is likely to have: want-have in
//! waves, and a question for providers.

use std::time::Duration;

use rand::RngExt as _;
use web_time::Instant;

use super::{
    Client, Output,
    peer::PeerKey,
    wantlist::Goal,
    wants::{Phase, WantId},
};

/// A peer this likely to have the block is asked before the owner is told that providers are wanted.
const LIKELY: f64 = 0.5;
/// Peers less likely than this are only found by chance.
const LEARNED: f64 = 0.1;
/// Of a wave, the share of peers that had things before; the others are drawn at random, so that
/// every peer is asked sooner or later.
const LEARNED_SHARE: (usize, usize) = (3, 4);
/// A wave has so many of the longest of its round trips to answer, but at least and at most this
/// long, and so long if none of them is known.
const WAVE_ROUND_TRIPS: u32 = 2;
const WAVE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));
const UNKNOWN_WAVE: Duration = Duration::from_millis(250);
/// If others wait for their turn, a search ends after this share of the interval.
const SHORT_SEARCH: u32 = 6;

/// A want that is, or was, searched for.
#[derive(Debug)]
pub(super) struct Search {
    began: Instant,
    /// When its timer fires.
    at: Instant,
    /// The owner knows that providers are wanted.
    announced: bool,
    /// Every connected peer was asked.
    exhausted: bool,
}

impl Client {
    /// Gives waiting wants their turn.
    pub(super) fn start_searches(&mut self) {
        let most = self.config.search_wants();
        let mut due: Vec<WantId> = Vec::new();
        for session in self.sessions.values() {
            let room = most.saturating_sub(session.searching.len());
            due.extend(session.waiting.iter().take(room).map(|(_, rank)| rank.2));
        }
        due.sort_unstable();
        due.dedup();
        if due.is_empty() {
            return;
        }
        let order = self.search_order();
        for id in due {
            self.set_phase(id, Phase::Searching);
            self.begin_search(id, &order);
        }
    }

    fn begin_search(&mut self, id: WantId, order: &[PeerKey]) {
        let search = Search {
            began: self.now,
            at: self.now,
            announced: false,
            exhausted: false,
        };
        self.search_timers.insert((search.at, id));
        self.searches.insert(id, search);
        let (asked, likely) = self.wave(id, order);
        // Once it was searched for in vain, whatever we learned does not hold for it.
        let again = self.wants.get(id.0).is_some_and(|want| want.rounds > 0);
        if asked == 0 || !likely || again {
            self.announce(id);
        }
    }

    fn announce(&mut self, id: WantId) {
        if let Some(search) = self.searches.get_mut(&id)
            && !std::mem::replace(&mut search.announced, true)
            && let Some(want) = self.wants.get(id.0)
        {
            let cid = want.cid;
            for ticket in self.tickets_of(id) {
                self.outputs
                    .push_back(Output::ProvidersWanted { ticket, cid });
            }
        }
    }

    /// Asks the next peers. Returns how many, and whether one of them is likely to have the block.
    fn wave(&mut self, id: WantId, order: &[PeerKey]) -> (usize, bool) {
        let most = self.config.max_outstanding_per_peer().div_ceil(2);
        let size = self.config.search_peers();
        let Some(want) = self.wants.get(id.0) else {
            return (0, false);
        };
        let (mut learned, mut others) = (Vec::new(), Vec::new());
        for key in order {
            let open = self.peers.get(key).filter(|peer| {
                // Who lacks it is asked too: it tells us when it has it.
                !peer.list.asks(id)
                    && peer.list.len() < most
                    && (peer.presences || !want.lacks(*key))
            });
            match open.map(|peer| peer.likelihood()) {
                Some(likelihood) if likelihood >= LEARNED => learned.push((*key, likelihood)),
                Some(likelihood) => others.push((*key, likelihood)),
                None => {}
            }
        }
        let (share, of) = LEARNED_SHARE;
        let first = learned.len().min((size * share).div_ceil(of));
        let random = others.len().min(size - first);
        let first = learned.len().min(size - random);
        learned.truncate(first);
        learned.extend(others.into_iter().take(random));

        let mut wait = None;
        let mut legacy = false;
        let likely = learned.iter().any(|(_, likelihood)| *likelihood >= LIKELY);
        for (key, _) in &learned {
            let Some(peer) = self.peers.get(key) else {
                continue;
            };
            wait = wait.max(peer.window.rtt());
            if peer.presences {
                self.ask_have(id, *key, Goal::Have);
            } else if let Some(want) = self.wants.get_mut(id.0) {
                // Knows no want-have: it may be asked for the block itself.
                legacy = true;
                want.set_maybe(*key);
            }
        }
        let wait = wait.map_or(UNKNOWN_WAVE, |rtt| {
            (rtt * WAVE_ROUND_TRIPS).clamp(WAVE.0, WAVE.1)
        });
        let exhausted = learned.is_empty();
        self.set_timer(id, |search, now, interval| {
            search.exhausted = exhausted;
            match exhausted {
                true => search.began + interval / SHORT_SEARCH,
                false => now + wait,
            }
        });
        if legacy {
            self.set_phase(id, Phase::Pending);
        }
        (learned.len(), likely)
    }

    fn set_timer(
        &mut self,
        id: WantId,
        at: impl FnOnce(&mut Search, Instant, Duration) -> Instant,
    ) {
        if let Some(search) = self.searches.get_mut(&id) {
            self.search_timers.remove(&(search.at, id));
            let next = at(search, self.now, self.config.search_interval());
            // Never twice at one instant.
            search.at = next.max(self.now + Duration::from_millis(1));
            self.search_timers.insert((search.at, id));
        }
    }

    /// A wave has had its time, or a search, or a rest.
    pub(super) fn on_search_timer(&mut self, id: WantId) {
        let (Some(search), Some(want)) = (self.searches.get(&id), self.wants.get(id.0)) else {
            self.end_search(id);
            return;
        };
        let ends = search.began + self.config.search_interval();
        if self.now >= ends {
            self.set_phase_after_round(id);
        } else if want.phase == Phase::Resting {
            self.set_timer(id, |_, _, _| ends);
        } else if !search.exhausted {
            self.announce(id);
            let order = self.search_order();
            self.wave(id, &order);
        } else if self.others_wait(id) {
            self.rest(id);
            self.set_timer(id, |_, _, _| ends);
        } else {
            self.set_timer(id, |_, now, interval| {
                ends.min(now + interval / SHORT_SEARCH)
            });
        }
    }

    /// Whether a session of the want has others that wait for their turn.
    fn others_wait(&self, id: WantId) -> bool {
        let sessions = self.sessions_of(id);
        let waiting = |session| {
            let session = self.sessions.get(session);
            session.is_some_and(|session| session.wants_search())
        };
        sessions.iter().any(waiting)
    }

    /// Makes room for other searches. What peers hold for it is withdrawn.
    fn rest(&mut self, id: WantId) {
        // The record stays, and with it the time at which it is its turn again.
        let record = self.searches.remove(&id);
        self.set_phase(id, Phase::Resting);
        if let Some(record) = record {
            self.search_timers.insert((record.at, id));
            self.searches.insert(id, record);
        }
        let asked: Vec<PeerKey> = self
            .wants
            .get(id.0)
            .map_or_else(Vec::new, |want| want.listed());
        for key in asked {
            self.set_line(key, id, Goal::LazyCancel);
        }
    }

    /// The next round: who did not have it then may have it now.
    fn set_phase_after_round(&mut self, id: WantId) {
        self.dequeue(id);
        let seq = self.seq();
        if let Some(want) = self.wants.get_mut(id.0) {
            want.forgive();
            want.rounds = want.rounds.saturating_add(1);
            want.seq = seq;
            want.phase = Phase::Waiting;
        }
        self.enqueue(id);
    }

    pub(super) fn end_search(&mut self, id: WantId) {
        if let Some(search) = self.searches.remove(&id) {
            self.search_timers.remove(&(search.at, id));
        } else {
            self.search_timers.retain(|(_, other)| *other != id);
        }
    }

    /// Connected peers: those that had most of what they were asked first, equals at random.
    fn search_order(&mut self) -> Vec<PeerKey> {
        let peers = self.peers.iter();
        let open = peers.filter(|(_, peer)| peer.paths.best().is_some() && peer.stalls == 0);
        let mut order: Vec<(u64, u32, PeerKey)> = open
            .map(|(key, peer)| {
                // Below `LEARNED` differences say nothing. Bits of positive numbers are in order.
                let likelihood = Some(peer.likelihood()).filter(|share| *share >= LEARNED);
                let rank = u64::MAX - likelihood.unwrap_or(0.0).to_bits();
                (rank, self.rng.random(), *key)
            })
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(.., key)| key).collect()
    }

    /// A peer has just connected: it is asked for what is being searched for.
    pub(super) fn ask_newcomer(&mut self, key: PeerKey) {
        let most = self.config.max_outstanding_per_peer().div_ceil(2);
        let running: Vec<WantId> = self.searches.keys().copied().take(most).collect();
        for id in running {
            let searching = self.wants.get(id.0).map(|want| want.phase);
            if searching == Some(Phase::Searching) {
                self.ask_have(id, key, Goal::Have);
            }
        }
    }
}
