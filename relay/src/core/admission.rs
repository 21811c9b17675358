//! Who may reserve, and who does.

use std::collections::BTreeMap;

use libp2p_swarm::ConnectionId;

/// The reservations of a relay and the decision on the next one.
///
/// A reservation belongs to a connection; asking again on the same connection renews it. Renewals
/// are never refused for lack of room: the room is theirs already.
#[derive(Debug)]
pub(crate) struct Admission {
    max: usize,
    held: BTreeMap<ConnectionId, Place>,
    accepted: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Promised; the answer is on its way.
    Promised,
    /// The peer has its answer.
    Accepted,
    /// It has, and asked again; the answer to that is on its way.
    Renewing,
}

impl Admission {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            held: BTreeMap::new(),
            accepted: 0,
        }
    }

    /// Whether there is room for a request on `connection`. If so, the place is taken.
    pub(crate) fn admit(&mut self, connection: ConnectionId) -> bool {
        if let Some(place) = self.held.get_mut(&connection) {
            if *place == Place::Accepted {
                *place = Place::Renewing;
            }
            return true;
        }
        let room = self.held.len() < self.max;
        if room {
            self.held.insert(connection, Place::Promised);
        }
        room
    }

    /// The peer has its reservation, or its renewal. True if it is new.
    pub(crate) fn on_accepted(&mut self, connection: ConnectionId) -> bool {
        let before = self.held.insert(connection, Place::Accepted);
        let new = matches!(before, None | Some(Place::Promised));
        if new {
            self.accepted += 1;
        }
        new
    }

    /// The request came to nothing after all: another rule refused it, or the answer was lost. A
    /// reservation that was to be renewed stays.
    pub(crate) fn on_refused(&mut self, connection: ConnectionId) {
        match self.held.get_mut(&connection) {
            Some(Place::Promised) => drop(self.held.remove(&connection)),
            Some(place) => *place = Place::Accepted,
            None => {}
        }
    }

    /// Whether an answer to a renewal is on its way.
    pub(crate) fn is_renewing(&self, connection: ConnectionId) -> bool {
        self.held.get(&connection) == Some(&Place::Renewing)
    }

    /// A connection closed or its reservation expired. True if it held a reservation.
    pub(crate) fn on_ended(&mut self, connection: ConnectionId) -> bool {
        let place = self.held.remove(&connection);
        let held = matches!(place, Some(Place::Accepted | Place::Renewing));
        if held {
            self.accepted -= 1;
        }
        held
    }

    /// How many reservations peers hold.
    pub(crate) fn len(&self) -> usize {
        self.accepted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(id: usize) -> ConnectionId {
        ConnectionId::new_unchecked(id)
    }

    #[test]
    fn a_full_relay_refuses_new_reservations_but_renews_old_ones() {
        let mut admission = Admission::new(2);
        for id in 0..2 {
            assert!(admission.admit(connection(id)));
            assert!(admission.on_accepted(connection(id)));
        }
        assert!(!admission.admit(connection(2)));
        for id in 0..2 {
            assert!(admission.admit(connection(id)));
            assert!(!admission.on_accepted(connection(id)), "a renewal");
        }
        assert_eq!(admission.len(), 2);
    }

    #[test]
    fn requests_that_arrive_together_do_not_share_one_place() {
        let mut admission = Admission::new(1);
        assert!(admission.admit(connection(0)));
        assert!(!admission.admit(connection(1)));
    }

    #[test]
    fn a_request_that_another_rule_refuses_gives_its_place_back() {
        let mut admission = Admission::new(1);
        assert!(admission.admit(connection(0)));
        admission.on_refused(connection(0));
        assert!(admission.admit(connection(1)));
        assert!(admission.on_accepted(connection(1)));
        admission.on_refused(connection(1));
        assert_eq!(admission.len(), 1, "a refused renewal ends nothing");
    }

    #[test]
    fn an_ended_reservation_leaves_room_and_ends_once() {
        let mut admission = Admission::new(1);
        assert!(admission.admit(connection(0)));
        assert!(admission.on_accepted(connection(0)));
        assert!(!admission.on_ended(connection(7)), "it held none");
        assert!(admission.on_ended(connection(0)));
        assert!(!admission.on_ended(connection(0)));
        assert!(admission.admit(connection(1)));
        assert_eq!(admission.len(), 0);
    }
}
