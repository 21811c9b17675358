//! What the engine keeps for one link: when to ask, when to answer, whom it heard.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{DefaultHasher, Hasher as _},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use hickory_proto::rr::Name;
use libp2p_identity::PeerId;
use rand::{RngExt as _, rngs::StdRng};
use web_time::Instant;

use super::{MDNS_PORT, Network};
use crate::{
    Config,
    dns::{Asked, Names, Service, Text},
};

/// Letters and digits of the random peer name. The specification wants 32 to 63; a short one leaves room in the packet.
const PEER_NAME_LEN: usize = 32;
/// Before the first query, in milliseconds (RFC 6762 §5.2 wants 20 to 120; the promise is 100).
const FIRST_QUERY: RangeInclusive<u64> = 20..=80;
/// Before an answer that several hosts may give at once, in milliseconds (RFC 6762 §6).
const SHARED_ANSWER: RangeInclusive<u64> = 20..=120;
/// Before a unicast answer, in milliseconds: 50 of them shall not meet at the asker's socket.
const UNICAST_ANSWER: RangeInclusive<u64> = 5..=40;
/// Before an announcement, in milliseconds, so that the addresses of all listeners are in it.
const ANNOUNCEMENT: RangeInclusive<u64> = 10..=40;
/// The same query, and the same record, not more often than this (RFC 6762 §5.2, §6).
const PAUSE: Duration = Duration::from_secs(1);
/// Announcements after a change (RFC 6762 §8.3 wants two).
const ANNOUNCEMENTS: u8 = 2;
/// A query of another host counts as ours unless ours was only just sent: it may be that very one, come back.
const ECHO: Duration = Duration::from_millis(500);
/// Unicast answers that may wait, and that may be sent at once; after that one each quarter second. Whoever asks more waits for the
/// multicast.
const UNICAST_BURST: u32 = 4;
const UNICAST_PAUSE: Duration = Duration::from_millis(250);
/// Instances with a shorter life are not asked after before they expire.
const REFRESHED_FROM: Duration = Duration::from_secs(10);
/// When an instance is asked after for the second time, in twentieths of its life (RFC 6762 §5.2: 80, 85, 90 and 95 %).
const SECOND_REFRESH: u32 = 17;

fn millis(rng: &mut StdRng, range: RangeInclusive<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

#[derive(Debug)]
pub(super) struct LinkState {
    /// A name for each link: go-libp2p keeps only the first packet of a name, with the addresses of one family.
    pub(super) names: Names,
    pub(super) networks: Vec<Network>,
    pub(super) loopback: bool,
    /// What is told on this link.
    pub(super) service: Service,
    pub(super) queries: Queries,
    pub(super) answers: Answers,
    pub(super) instances: Instances,
}

impl LinkState {
    pub(super) fn new(
        networks: Vec<Network>,
        loopback: bool,
        config: &Config,
        rng: &mut StdRng,
        now: Instant,
    ) -> Self {
        const LETTERS: [u8; 36] = *b"abcdefghijklmnopqrstuvwxyz0123456789";
        let peer_name: String = (0..PEER_NAME_LEN)
            .filter_map(|_| LETTERS.get(rng.random_range(0..LETTERS.len())))
            .map(|&letter| char::from(letter))
            .collect();
        Self {
            names: Names::new(config.service_name(), &peer_name),
            networks,
            loopback,
            service: Service::default(),
            queries: Queries {
                next: now + millis(rng, FIRST_QUERY),
                wait: PAUSE,
                longest: config.query_interval(),
                last: None,
                first: true,
                urgent: false,
            },
            answers: Answers::new(now),
            instances: Instances {
                known: BTreeMap::new(),
                due: BTreeSet::new(),
                max: config.max_peers(),
            },
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.answers
            .next_timeout()
            .into_iter()
            .chain(self.instances.next_due())
            .chain([self.queries.next])
            .min()
    }

    /// Answers a question for our records, later.
    pub(super) fn answer(
        &mut self,
        asked: Asked,
        source: SocketAddr,
        id: u16,
        rng: &mut StdRng,
        now: Instant,
    ) {
        if self.service.attributes.is_empty() {
            return;
        }
        let alone = asked == Asked::Unicast && source.port() == MDNS_PORT;
        // The second condition of RFC 6762 §5.4 the other way round: what was multicast a moment ago must not be
        // multicast again, and what was not shall be heard by all.
        let answered = alone
            && self.answers.was_just_multicast(now)
            && self.answers.unicast(source, id, rng, now);
        if !answered {
            self.answers.multicast(millis(rng, SHARED_ANSWER), now);
        }
    }

    /// Tells everybody, soon and once more.
    pub(super) fn announce(&mut self, rng: &mut StdRng, now: Instant) {
        self.answers.multicast(millis(rng, ANNOUNCEMENT), now);
        self.answers.repeats = ANNOUNCEMENTS - 1;
    }

    pub(super) fn answer_meta(&mut self, rng: &mut StdRng, now: Instant) {
        if !self.service.attributes.is_empty() {
            let at =
                (now + millis(rng, SHARED_ANSWER)).max(after(self.answers.last_meta, PAUSE, now));
            let due = &mut self.answers.meta_due;
            *due = Some(due.map_or(at, |due| due.min(at)));
        }
    }

    /// Whether another host's query gets us all the answers that ours would: it knows nobody whom we would not name as known
    /// (RFC 6762 §7.3). So whoever missed an answer asks itself.
    pub(super) fn knows_all(&self, known: &[(Name, u32)], now: Instant) -> bool {
        known
            .iter()
            .all(|(name, _)| *name == self.names.instance || self.instances.is_known(name, now))
    }
}

/// `pause` after `last`, or now.
fn after(last: Option<Instant>, pause: Duration, now: Instant) -> Instant {
    last.map_or(now, |last| last + pause)
}

#[derive(Debug)]
pub(super) struct Queries {
    next: Instant,
    /// Until the query after the next one: doubles up to `longest` (RFC 6762 §5.2).
    wait: Duration,
    longest: Duration,
    last: Option<Instant>,
    first: bool,
    /// Somebody is about to be forgotten although an answer was due.
    urgent: bool,
}

impl Queries {
    /// Begins anew: the network has changed.
    pub(super) fn restart(&mut self, rng: &mut StdRng, now: Instant) {
        self.wait = PAUSE;
        self.first = true;
        self.sooner(now + millis(rng, FIRST_QUERY), now);
    }

    /// Not later than `at`, but not too soon after the last one.
    fn sooner(&mut self, at: Instant, now: Instant) {
        self.next = self.next.min(at.max(after(self.last, PAUSE, now)));
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next <= now
    }

    /// Whether the answers may come by unicast: in the first query (RFC 6762 §5.4).
    pub(super) fn is_first(&self) -> bool {
        self.first
    }

    pub(super) fn sent(&mut self, rng: &mut StdRng, now: Instant) {
        let wait = self.wait.min(self.longest);
        // Spread, so that of many hosts one asks and the others need not.
        let spread = u64::try_from(wait.as_millis() / 8).unwrap_or(u64::MAX);
        self.next = now + wait + millis(rng, 0..=spread);
        self.wait = wait.saturating_mul(2);
        self.last = Some(now);
        self.first = false;
        self.urgent = false;
    }

    /// Another host asked what we would have asked. Returns whether that spares us a query: not the first one, because the asker itself
    /// may have answered just before; nor one that is asked because nobody answered the one before, because that may have come to us
    /// alone, by unicast.
    pub(super) fn asked_by_another(&mut self, rng: &mut StdRng, now: Instant) -> bool {
        let news = !self.first && !self.urgent && self.last.is_none_or(|last| now >= last + ECHO);
        if news {
            self.sent(rng, now);
        }
        news
    }
}

#[derive(Debug)]
pub(super) struct Answers {
    due: Option<Instant>,
    last: Option<Instant>,
    /// Announcements still to make.
    repeats: u8,
    meta_due: Option<Instant>,
    last_meta: Option<Instant>,
    unicast: VecDeque<(Instant, SocketAddr, u16)>,
    tokens: u32,
    refilled: Instant,
}

impl Answers {
    fn new(now: Instant) -> Self {
        Self {
            due: None,
            last: None,
            repeats: 0,
            meta_due: None,
            last_meta: None,
            unicast: VecDeque::new(),
            tokens: UNICAST_BURST,
            refilled: now,
        }
    }

    fn next_timeout(&self) -> Option<Instant> {
        let unicast = self.unicast.iter().map(|(at, ..)| *at);
        unicast.chain(self.due).chain(self.meta_due).min()
    }

    fn was_just_multicast(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now < last + PAUSE)
    }

    fn multicast(&mut self, delay: Duration, now: Instant) {
        let at = (now + delay).max(after(self.last, PAUSE, now));
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Returns whether the host will get its answer.
    fn unicast(&mut self, to: SocketAddr, id: u16, rng: &mut StdRng, now: Instant) -> bool {
        if self.unicast.iter().any(|(_, waiting, _)| *waiting == to) {
            return true;
        }
        let elapsed = now.saturating_duration_since(self.refilled);
        let tokens = u32::try_from(elapsed.as_millis() / UNICAST_PAUSE.as_millis());
        if let Ok(tokens) = tokens
            && tokens > 0
        {
            self.tokens = self.tokens.saturating_add(tokens).min(UNICAST_BURST);
            self.refilled = now;
        }
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        self.unicast
            .push_back((now + millis(rng, UNICAST_ANSWER), to, id));
        true
    }

    /// Whether to multicast our records now.
    pub(super) fn take_due(&mut self, rng: &mut StdRng, now: Instant) -> bool {
        if self.due.is_none_or(|due| due > now) {
            return false;
        }
        self.last = Some(now);
        self.due = None;
        if self.repeats > 0 {
            self.repeats -= 1;
            self.multicast(PAUSE + millis(rng, 0..=100), now);
        }
        true
    }

    /// Whether to name the service now.
    pub(super) fn take_due_meta(&mut self, now: Instant) -> bool {
        let due = self.meta_due.is_some_and(|due| due <= now);
        if due {
            self.last_meta = Some(now);
            self.meta_due = None;
        }
        due
    }

    /// A host to answer now, and the identifier of its query.
    pub(super) fn take_due_unicast(&mut self, now: Instant) -> Option<(SocketAddr, u16)> {
        let index = self.unicast.iter().position(|(at, ..)| *at <= now)?;
        let (_, to, id) = self.unicast.remove(index)?;
        Some((to, id))
    }

    /// There is nothing to tell any more.
    pub(super) fn cancel(&mut self) {
        *self = Self {
            last: self.last,
            last_meta: self.last_meta,
            ..Self::new(self.refilled)
        };
    }
}

/// The instances of the service that were heard on a link: known answers, and what to ask after.
#[derive(Debug)]
pub(super) struct Instances {
    known: BTreeMap<Name, Instance>,
    /// Each instance once.
    due: BTreeSet<(Instant, Name)>,
    max: usize,
}

/// The text of an instance, in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Said {
    source: IpAddr,
    hash: u64,
}

impl Said {
    pub(super) fn new(source: IpAddr, text: &Text<'_>) -> Self {
        // Who finds two texts of one hash deceives about its own addresses only, which it could leave unsaid.
        let mut hash = DefaultHasher::new();
        hash.write(text.bytes());
        hash.write_u8(u8::from(text.flush));
        Self {
            source,
            hash: hash.finish(),
        }
    }
}

#[derive(Debug)]
struct Instance {
    owner: Option<PeerId>,
    /// What was said about the owner, and how many addresses were learned from it.
    said: Option<(Said, usize)>,
    learned: Instant,
    ttl: Duration,
    /// Heard twice under this name. rust-libp2p takes a new one for each answer, which is no use as a known answer.
    stable: bool,
    due: Instant,
}

impl Instance {
    /// What is left of its life, if that is enough for a known answer (RFC 6762 §7.1: more than half).
    fn left_if_known(&self, now: Instant) -> Option<Duration> {
        let left = (self.learned + self.ttl).saturating_duration_since(now);
        (self.stable && left > self.ttl / 2).then_some(left)
    }

    /// RFC 6762 §5.2: ask after a record at 80, 85, 90 and 95 % of its life, then forget it.
    fn due_after(&self, now: Instant) -> Instant {
        let expiry = self.learned + self.ttl;
        if !self.stable || self.ttl < REFRESHED_FROM {
            return expiry;
        }
        [16, SECOND_REFRESH, 18, 19]
            .into_iter()
            .map(|twentieths| self.learned + self.ttl / 20 * twentieths)
            .find(|at| *at > now)
            .unwrap_or(expiry)
    }
}

impl Instances {
    pub(super) fn insert(&mut self, name: &Name, ttl: Duration, now: Instant) {
        if let Some(instance) = self.known.get_mut(name) {
            self.due.remove(&(instance.due, name.clone()));
            instance.stable |= now >= instance.learned + ECHO;
            instance.learned = now;
            instance.ttl = ttl;
            instance.due = instance.due_after(now);
            self.due.insert((instance.due, name.clone()));
            return;
        }
        if self.known.len() >= self.max {
            // A flood names a long life; the one who claims the longest and was heard once gives way.
            let Some((_, longest)) = self.due.last().cloned() else {
                return;
            };
            if self.known.get(&longest).is_none_or(|it| it.stable) {
                return;
            }
            self.remove(&longest);
        }
        let due = now + ttl;
        let instance = Instance {
            owner: None,
            said: None,
            learned: now,
            ttl,
            stable: false,
            due,
        };
        self.known.insert(name.clone(), instance);
        self.due.insert((due, name.clone()));
    }

    pub(super) fn remove(&mut self, name: &Name) {
        if let Some(instance) = self.known.remove(name) {
            self.due.remove(&(instance.due, name.clone()));
        }
    }

    pub(super) fn owner(&self, name: &Name) -> Option<PeerId> {
        self.known.get(name)?.owner
    }

    /// `said`: what was said about the owner, and how many addresses were learned from it.
    pub(super) fn set_owner(&mut self, name: &Name, owner: PeerId, said: Option<(Said, usize)>) {
        if let Some(instance) = self.known.get_mut(name) {
            instance.owner = Some(owner);
            instance.said = said;
        }
    }

    /// All that is said is read again.
    pub(super) fn forget_said(&mut self) {
        for instance in self.known.values_mut() {
            instance.said = None;
        }
    }

    /// Of whom this was said before, and how many addresses were learned from it.
    pub(super) fn said_before(&self, name: &Name, said: &Said) -> Option<(PeerId, usize)> {
        let instance = self.known.get(name)?;
        let (before, addresses) = instance.said?;
        (before == *said).then_some((instance.owner?, addresses))
    }

    fn is_known(&self, name: &Name, now: Instant) -> bool {
        let instance = self.known.get(name);
        instance.is_some_and(|instance| instance.left_if_known(now).is_some())
    }

    fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Forgets what has expired. Returns whether something is about to, so that a query is called for, and whether that is not the
    /// first time.
    fn on_due(&mut self, now: Instant) -> (bool, bool) {
        let (mut ask, mut again) = (false, false);
        while let Some((at, name)) = self.due.first().cloned()
            && at <= now
        {
            self.due.pop_first();
            let Some(instance) = self.known.get_mut(&name) else {
                continue;
            };
            if now >= instance.learned + instance.ttl {
                self.known.remove(&name);
                continue;
            }
            ask = true;
            again |= now >= instance.learned + instance.ttl / 20 * SECOND_REFRESH;
            instance.due = instance.due_after(now);
            self.due.insert((instance.due, name));
        }
        (ask, again)
    }

    /// For a query: who need not answer, those first who were heard last, with the seconds that their record has left.
    pub(super) fn known_answers(&self, now: Instant) -> Vec<(&Name, u32)> {
        let mut known: Vec<_> = self
            .known
            .iter()
            .filter_map(|(name, instance)| Some((name, instance.left_if_known(now)?)))
            .collect();
        known.sort_by_key(|(_, left)| std::cmp::Reverse(*left));
        known
            .into_iter()
            .map(|(name, left)| (name, u32::try_from(left.as_secs()).unwrap_or(u32::MAX)))
            .collect()
    }
}

impl LinkState {
    /// Looks after the instances that are about to expire.
    pub(super) fn refresh_instances(&mut self, rng: &mut StdRng, now: Instant) {
        let (ask, again) = self.instances.on_due(now);
        self.queries.urgent |= again;
        if ask {
            self.queries.sooner(now + millis(rng, 0..=100), now);
        }
    }
}
