//! Which query belongs to which ticket, what was already reported, and what is still to be announced: pure,
//! on virtual time. Generic over the engine's query ids, because kad's cannot be made in a test.

mod answers;
pub(crate) mod candidates;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::Hash,
    time::Duration,
};

use cid::Cid;
use libp2p_identity::PeerId;
use web_time::Instant;

use self::answers::Answers;
use crate::{Config, Event, Peer, QueryError, Target, Ticket, value::Validators};

/// Announcements of waiting keys that run at a time, so that a node that provides thousands of keys when it
/// joins does not open thousands of connections.
const MAX_ANNOUNCEMENTS: usize = 16;

/// What the engine gets on top of its own timeout before the core gives up on it.
const GRACE: Duration = Duration::from_secs(1);

/// What a ticket was given for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    Provide(Cid),
    FindProviders(Cid),
    ClosestPeers(Target),
    PutValue(Vec<u8>),
    GetValue(Vec<u8>),
    Bootstrap,
}

impl Question {
    /// The longest time that the engine takes: announcing is a lookup and then a round of requests.
    fn phases(&self) -> u32 {
        match self {
            Self::Provide(_) | Self::PutValue(_) => 2,
            Self::FindProviders(_)
            | Self::ClosestPeers(_)
            | Self::GetValue(_)
            | Self::Bootstrap => 1,
        }
    }

    /// What others shall learn by it.
    fn announces(&self) -> Option<Announcement> {
        match self {
            Self::Provide(cid) => Some(Announcement::Provider(cid.hash().to_bytes())),
            Self::PutValue(key) => Some(Announcement::Value(key.clone())),
            _ => None,
        }
    }
}

/// What others shall learn of a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Announcement {
    /// That we provide it.
    Provider(Vec<u8>),
    /// The value that we have put.
    Value(Vec<u8>),
}

/// What the engine answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing but that it is over.
    Done,
    Peers(Vec<Peer>),
    /// So many took the value.
    Stored(usize),
}

/// What the adapter shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output<Q> {
    Event(Event),
    /// End the engine's query; its result is not needed, or wanted at once.
    Finish(Q),
    /// Tell the closest nodes, then call [`Core::on_announcing`].
    Announce(Announcement),
    /// Send these peers the value, which is better than theirs.
    Correct {
        key: Vec<u8>,
        value: Vec<u8>,
        peers: Vec<PeerId>,
        /// So is ours.
        us: bool,
    },
}

#[derive(Debug)]
struct Query<Q> {
    question: Question,
    id: Option<Q>,
    reported: BTreeSet<PeerId>,
    answers: Answers,
    error: Option<QueryError>,
    /// The user does not announce it any more.
    withdrawn: bool,
    /// [`Core::events`] when it was asked.
    asked: u64,
    deadline: Instant,
}

#[derive(Debug)]
pub(crate) struct Core<Q> {
    local: PeerId,
    timeout: Duration,
    max_queries: usize,
    next_ticket: u64,
    queries: BTreeMap<Ticket, Query<Q>>,
    tickets: HashMap<Q, Ticket>,
    /// Counts what happens to announcements, so that the end of an old one says nothing of what came later.
    events: u64,
    /// What no node has heard of yet, and since which event.
    unannounced: BTreeMap<Announcement, u64>,
    /// What of `unannounced` has its turn as soon as an announcement ends.
    waiting: BTreeSet<Announcement>,
    /// And at which event it began.
    announcing: HashMap<Q, (Announcement, u64)>,
    republish_interval: Duration,
    /// The values that we have put, and when each is put again. (The engine does that for what we provide.)
    values: BTreeMap<Vec<u8>, Instant>,
    /// The same in order.
    republish: BTreeSet<(Instant, Vec<u8>)>,
    outputs: VecDeque<Output<Q>>,
}

impl<Q: Copy + Eq + Hash> Core<Q> {
    pub(crate) fn new(local: PeerId, config: &Config) -> Self {
        Self {
            local,
            timeout: config.query_timeout(),
            max_queries: config.max_queries(),
            next_ticket: 0,
            queries: BTreeMap::new(),
            tickets: HashMap::new(),
            events: 0,
            unannounced: BTreeMap::new(),
            waiting: BTreeSet::new(),
            announcing: HashMap::new(),
            republish_interval: config.value_republish_interval(),
            values: BTreeMap::new(),
            republish: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes a question. `Err` when there are too many: the ticket's terminal event is already on its way, and
    /// the engine must not be asked. Else [`on_started`](Self::on_started) or
    /// [`on_refused`](Self::on_refused) follows.
    pub(crate) fn ask(&mut self, question: Question, now: Instant) -> Result<Ticket, Ticket> {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        if self.queries.len() >= self.max_queries {
            let answer = Answer::Done;
            let result = Err(QueryError::TooManyQueries);
            self.terminal(ticket, question, 0, None, answer, result);
            return Err(ticket);
        }
        let deadline = now + self.timeout * question.phases() + GRACE;
        let query = Query {
            question,
            id: None,
            reported: BTreeSet::new(),
            answers: Answers::default(),
            error: None,
            withdrawn: false,
            asked: self.next_event(),
            deadline,
        };
        self.queries.insert(ticket, query);
        Ok(ticket)
    }

    /// The engine runs the ticket's query under this id.
    pub(crate) fn on_started(&mut self, ticket: Ticket, id: Q) {
        if let Some(query) = self.queries.get_mut(&ticket) {
            query.id = Some(id);
            self.tickets.insert(id, ticket);
        }
    }

    /// The engine could not even begin.
    pub(crate) fn on_refused(&mut self, ticket: Ticket, error: QueryError) {
        self.close(ticket, Answer::Done, Err(error));
    }

    /// The engine found providers; those that the ticket has not heard of are returned and reported.
    pub(crate) fn on_providers(
        &mut self,
        id: Q,
        providers: impl IntoIterator<Item = PeerId>,
    ) -> Vec<PeerId> {
        let Some(ticket) = self.tickets.get(&id) else {
            return Vec::new();
        };
        let Some(query) = self.queries.get_mut(ticket) else {
            return Vec::new();
        };
        let Question::FindProviders(cid) = query.question else {
            return Vec::new();
        };
        let mut new: Vec<_> = providers
            .into_iter()
            .filter(|peer| *peer != self.local && query.reported.insert(*peer))
            .collect();
        new.sort_unstable();
        if !new.is_empty() {
            let event = Event::ProvidersFound {
                ticket: *ticket,
                cid,
                providers: new.clone(),
            };
            self.outputs.push_back(Output::Event(event));
        }
        new
    }

    /// A peer, or our own store, answered with a value.
    pub(crate) fn on_value(
        &mut self,
        id: Q,
        from: Option<PeerId>,
        key: &[u8],
        value: Vec<u8>,
        validators: &Validators,
    ) {
        let Some(ticket) = self.tickets.get(&id) else {
            return;
        };
        let Some(query) = self.queries.get_mut(ticket) else {
            return;
        };
        let Question::GetValue(asked) = &query.question else {
            return;
        };
        let Some(validator) = validators.of(asked) else {
            return;
        };
        // An answer to another question is none.
        if key == asked && query.answers.add(from, key, value, validator) {
            let event = Event::ValueFound {
                ticket: *ticket,
                key: key.to_vec(),
                value: query.answers.best().unwrap_or_default().to_vec(),
            };
            self.outputs.push_back(Output::Event(event));
        }
    }

    /// We have a value of this key: it is put again until [`on_removed_value`](Self::on_removed_value).
    pub(crate) fn on_put_value(&mut self, key: &[u8], now: Instant) {
        let at = now + self.republish_interval;
        if let Some(before) = self.values.insert(key.to_vec(), at) {
            self.republish.remove(&(before, key.to_vec()));
        }
        self.republish.insert((at, key.to_vec()));
    }

    /// We have put no value of this key any more.
    pub(crate) fn on_removed_value(&mut self, key: &[u8]) {
        if let Some(at) = self.values.remove(key) {
            self.republish.remove(&(at, key.to_vec()));
        }
        self.withdraw(&Announcement::Value(key.to_vec()));
    }

    /// One part of a query of several parts (a refresh asks once a bucket) is done.
    pub(crate) fn on_part(&mut self, id: Q, result: Result<(), QueryError>, now: Instant) {
        if let Some(query) = self
            .tickets
            .get(&id)
            .and_then(|ticket| self.queries.get_mut(ticket))
        {
            query.deadline = now + self.timeout + GRACE;
            query.error = query.error.take().or(result.err());
        }
    }

    /// The engine's query is over. `answered` tells whether any peer took part.
    pub(crate) fn on_finished(
        &mut self,
        id: Q,
        answer: Answer,
        answered: bool,
        result: Result<(), QueryError>,
    ) {
        let result = match result {
            Ok(()) if !answered => Err(QueryError::Unreachable),
            result => result,
        };
        if let Some((announced, began)) = self.announcing.remove(&id) {
            if result.err().is_none_or(|error| error.is_final()) {
                self.on_announced(&announced, began);
            }
            self.announce_next();
            return;
        }
        if let Some(ticket) = self.tickets.get(&id).copied() {
            self.close(ticket, answer, result);
        }
    }

    /// The node has (again) found its place in the DHT: announce what nobody has heard of.
    pub(crate) fn on_joined(&mut self) {
        if self.waiting.is_empty() {
            let running = &self.announcing;
            let waits = |waiting: &&Announcement| !running.values().any(|(one, _)| one == *waiting);
            self.waiting = self.unannounced.keys().filter(waits).cloned().collect();
        }
        self.announce_next();
    }

    /// The engine runs an announcement that [`Output::Announce`] asked for; `None` if it refused.
    pub(crate) fn on_announcing(&mut self, announcement: Announcement, id: Option<Q>) {
        match id {
            Some(id) => {
                let began = self.next_event();
                self.announcing.insert(id, (announcement, began));
            }
            None => {
                self.unannounced.remove(&announcement);
                self.announce_next();
            }
        }
    }

    /// The user does not provide this key any more.
    pub(crate) fn on_stopped_providing(&mut self, key: &[u8]) {
        self.withdraw(&Announcement::Provider(key.to_vec()));
    }

    fn withdraw(&mut self, announcement: &Announcement) {
        self.unannounced.remove(announcement);
        for query in self.queries.values_mut() {
            query.withdrawn |= query.question.announces().as_ref() == Some(announcement);
        }
    }

    /// End a query early. Its terminal event comes with what was found.
    pub(crate) fn finish(&mut self, ticket: Ticket) {
        let Some(query) = self.queries.get(&ticket) else {
            return;
        };
        match (&query.question, query.id) {
            // The engine goes through all buckets whatever happens; the user need not wait for it.
            (Question::Bootstrap, _) | (_, None) => self.close(ticket, Answer::Done, Ok(())),
            (_, Some(id)) => self.outputs.push_back(Output::Finish(id)),
        }
    }

    /// Ends every query that the engine has forgotten about, and puts the values again whose time has come.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.republish(now);
        let late: Vec<_> = self
            .queries
            .iter()
            .filter(|(_, query)| query.deadline <= now)
            .map(|(ticket, query)| (*ticket, query.id))
            .collect();
        for (ticket, id) in late {
            self.outputs.extend(id.map(Output::Finish));
            self.close(ticket, Answer::Done, Err(QueryError::Timeout));
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let republish = self.republish.first().map(|(at, _)| *at);
        let queries = self.queries.values().map(|query| query.deadline);
        queries.chain(republish).min()
    }

    /// Drain after every `&mut` call.
    pub(crate) fn poll_output(&mut self) -> Option<Output<Q>> {
        self.outputs.pop_front()
    }

    #[cfg_attr(
        not(feature = "metrics"),
        expect(dead_code, reason = "read by the metrics")
    )]
    pub(crate) fn unannounced(&self) -> usize {
        self.unannounced.len()
    }

    fn next_event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    fn on_unannounced(&mut self, announcement: Announcement) {
        let event = self.next_event();
        self.unannounced.insert(announcement, event);
    }

    /// What began at this event is through; what failed later is not.
    fn on_announced(&mut self, announcement: &Announcement, began: u64) {
        if self
            .unannounced
            .get(announcement)
            .is_some_and(|since| *since < began)
        {
            self.unannounced.remove(announcement);
        }
    }

    fn republish(&mut self, now: Instant) {
        while let Some((at, key)) = self.republish.first()
            && *at <= now
        {
            let key = key.clone();
            self.on_put_value(&key, now);
            let announcement = Announcement::Value(key);
            self.on_unannounced(announcement.clone());
            let mut running = self.announcing.values();
            if !running.any(|(running, _)| *running == announcement) {
                self.waiting.insert(announcement);
            }
        }
        self.announce_next();
    }

    fn announce_next(&mut self) {
        let asked = self
            .outputs
            .iter()
            .filter(|o| matches!(o, Output::Announce(_)))
            .count();
        let mut free = MAX_ANNOUNCEMENTS.saturating_sub(self.announcing.len() + asked);
        while free > 0 {
            let Some(announcement) = self.waiting.pop_first() else {
                return;
            };
            if self.unannounced.contains_key(&announcement) {
                self.outputs.push_back(Output::Announce(announcement));
                free -= 1;
            }
        }
    }

    fn close(&mut self, ticket: Ticket, answer: Answer, result: Result<(), QueryError>) {
        let Some(query) = self.queries.remove(&ticket) else {
            return;
        };
        if let Some(id) = query.id {
            self.tickets.remove(&id);
        }
        let found = query.reported.len();
        let (value, behind, us) = query.answers.into_best();
        let result = match query.error {
            Some(error) => Err(error),
            // What our own store has is an answer, even if nobody else gave one.
            None if (found > 0 || value.is_some()) && result == Err(QueryError::Unreachable) => {
                Ok(())
            }
            None => result,
        };
        if let Some(announcement) = query.question.announces() {
            match &result {
                Ok(()) => self.on_announced(&announcement, query.asked),
                Err(error) if error.is_final() || query.withdrawn => {}
                Err(_) => self.on_unannounced(announcement),
            }
        }
        if let (Question::GetValue(key), Some(value)) = (&query.question, &value)
            && (us || !behind.is_empty())
        {
            self.outputs.push_back(Output::Correct {
                key: key.clone(),
                value: value.clone(),
                peers: behind,
                us,
            });
        }
        self.terminal(ticket, query.question, found, value, answer, result);
    }

    fn terminal(
        &mut self,
        ticket: Ticket,
        question: Question,
        found: usize,
        value: Option<Vec<u8>>,
        answer: Answer,
        result: Result<(), QueryError>,
    ) {
        let event = match question {
            Question::Provide(cid) => Event::ProvideFinished {
                ticket,
                cid,
                result,
            },
            Question::FindProviders(cid) => Event::FindProvidersFinished {
                ticket,
                cid,
                found,
                result,
            },
            Question::ClosestPeers(target) => {
                let peers = match answer {
                    Answer::Peers(peers) => peers,
                    Answer::Done | Answer::Stored(_) => Vec::new(),
                };
                Event::ClosestPeersFinished {
                    ticket,
                    target,
                    peers,
                    result,
                }
            }
            Question::PutValue(key) => Event::PutValueFinished {
                ticket,
                key,
                stored: match answer {
                    Answer::Stored(stored) => stored,
                    Answer::Done | Answer::Peers(_) => 0,
                },
                result,
            },
            Question::GetValue(key) => Event::GetValueFinished {
                ticket,
                key,
                value,
                result,
            },
            Question::Bootstrap => Event::BootstrapFinished { ticket, result },
        };
        self.outputs.push_back(Output::Event(event));
    }
}

#[cfg(test)]
mod tests;
