//! What ends when, in the order in which it ends.

use libp2p_swarm::ConnectionId;
use web_time::Instant;

/// Reservations in the order of their ends: a doubly linked list in a vector.
///
/// All of them last equally long, so the one that was made or renewed last ends last: every change is at the end of the list or
/// takes a known entry out, and costs the same however many there are. Entries that were taken out are used again, so there are
/// never more than there have been reservations at the same time.
#[derive(Debug, Default)]
pub(crate) struct Expiries {
    entries: Vec<Entry>,
    first: Option<Ticket>,
    last: Option<Ticket>,
    free: Vec<Ticket>,
}

/// Which entry is whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u32);

#[derive(Debug)]
struct Entry {
    until: Instant,
    connection: ConnectionId,
    before: Option<Ticket>,
    after: Option<Ticket>,
}

impl Expiries {
    /// The one that ends first.
    pub(crate) fn first(&self) -> Option<(Instant, Ticket, ConnectionId)> {
        let first = self.first?;
        let entry = self.entry(first)?;
        Some((entry.until, first, entry.connection))
    }

    /// Adds one that ends no earlier than all others: if it would, it ends with the last of them.
    pub(crate) fn push(&mut self, until: Instant, connection: ConnectionId) -> Ticket {
        let last = self.last.and_then(|last| self.entry(last));
        let entry = Entry {
            until: last.map_or(until, |last| until.max(last.until)),
            connection,
            before: self.last,
            after: None,
        };
        let free = self.free.pop();
        let ticket = match free.and_then(|ticket| Some((ticket, self.entry_mut(ticket)?))) {
            Some((ticket, place)) => {
                *place = entry;
                ticket
            }
            None => {
                // As many as there are connections, which are files of the system.
                let ticket = Ticket(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
                self.entries.push(entry);
                ticket
            }
        };
        self.link(self.last, Some(ticket));
        self.last = Some(ticket);
        if self.first.is_none() {
            self.first = Some(ticket);
        }
        ticket
    }

    /// Takes one out that [`push`](Self::push) returned, once.
    pub(crate) fn remove(&mut self, ticket: Ticket) {
        let Some(entry) = self.entry_mut(ticket) else {
            return;
        };
        let (before, after) = (entry.before.take(), entry.after.take());
        self.link(before, after);
        if self.first == Some(ticket) {
            self.first = after;
        }
        if self.last == Some(ticket) {
            self.last = before;
        }
        self.free.push(ticket);
    }

    /// Leaves an end to another connection.
    pub(crate) fn pass_on(&mut self, ticket: Ticket, heir: ConnectionId) {
        if let Some(entry) = self.entry_mut(ticket) {
            entry.connection = heir;
        }
    }

    fn link(&mut self, before: Option<Ticket>, after: Option<Ticket>) {
        if let Some(entry) = before.and_then(|before| self.entry_mut(before)) {
            entry.after = after;
        }
        if let Some(entry) = after.and_then(|after| self.entry_mut(after)) {
            entry.before = before;
        }
    }

    fn entry(&self, Ticket(at): Ticket) -> Option<&Entry> {
        self.entries.get(usize::try_from(at).ok()?)
    }

    fn entry_mut(&mut self, Ticket(at): Ticket) -> Option<&mut Entry> {
        self.entries.get_mut(usize::try_from(at).ok()?)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use std::time::Duration;

    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    /// Against a list that is kept by hand, forwards and backwards.
    #[test]
    fn what_is_left_stays_in_order_and_places_are_used_again() {
        for seed in 0..20 {
            let mut random = StdRng::seed_from_u64(seed);
            let (mut expiries, mut model) = (Expiries::default(), Vec::new());
            let (mut now, mut most) = (Instant::now(), 0);
            for step in 0..3000 {
                let connection = ConnectionId::new_unchecked(step);
                match random.random_range(0..5) {
                    0 | 1 if model.len() < 20 => {
                        now += Duration::from_millis(random.random_range(0..3));
                        let end = expiries.push(now, connection);
                        model.push((now, end, connection));
                    }
                    2 if !model.is_empty() => {
                        let (_, end, _) = model.remove(random.random_range(0..model.len()));
                        expiries.remove(end);
                    }
                    3 if !model.is_empty() => {
                        let at = random.random_range(0..model.len());
                        let (_, end, holder) = &mut model[at];
                        *holder = connection;
                        expiries.pass_on(*end, connection);
                    }
                    _ => {}
                }
                most = most.max(model.len());
                assert_eq!(expiries.first(), model.first().copied());
                assert_eq!(expiries.len(), model.len());
                assert_eq!(expiries.entries.len(), most);
                let mut back = Vec::new();
                let mut at = expiries.last;
                while let Some(ticket) = at {
                    let entry = expiries.entry(ticket).unwrap();
                    back.push((entry.until, ticket, entry.connection));
                    at = entry.before;
                }
                back.reverse();
                assert_eq!(back, model);
            }
        }
    }

    #[test]
    fn a_clock_that_goes_back_leaves_the_order_as_it_is() {
        let mut expiries = Expiries::default();
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let first = expiries.push(later, ConnectionId::new_unchecked(1));
        let second = expiries.push(now, ConnectionId::new_unchecked(2));
        expiries.remove(first);
        let connection = ConnectionId::new_unchecked(2);
        assert_eq!(expiries.first(), Some((later, second, connection)));
    }
}
