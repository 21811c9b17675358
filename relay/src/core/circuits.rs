//! Which circuits are open, each counted once.

use std::collections::BTreeMap;

use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;

/// The open circuits of a relay.
///
/// The stock behaviour reports the end of a circuit twice when the destination's connection
/// closes first: at once, and again when the source's handler notices. This removes the echo.
#[derive(Debug, Default)]
pub(crate) struct Circuits {
    /// By the source's connection and the destination.
    open: BTreeMap<(ConnectionId, PeerId), Entry>,
}

#[derive(Debug)]
struct Entry {
    source: PeerId,
    active: usize,
    /// Circuits reported as closed whose handler will report it again.
    echoes: usize,
}

impl Circuits {
    /// The source's handler opened a circuit.
    pub(crate) fn on_accepted(
        &mut self,
        source: PeerId,
        connection: ConnectionId,
        destination: PeerId,
    ) {
        self.open
            .entry((connection, destination))
            .or_insert(Entry {
                source,
                active: 0,
                echoes: 0,
            })
            .active += 1;
    }

    /// The source's handler reports the end of a circuit. True if that is news.
    pub(crate) fn on_handler_closed(
        &mut self,
        connection: ConnectionId,
        destination: PeerId,
    ) -> bool {
        let Some(entry) = self.open.get_mut(&(connection, destination)) else {
            return false;
        };
        let news = entry.echoes == 0;
        if news {
            entry.active = entry.active.saturating_sub(1);
        } else {
            entry.echoes -= 1;
        }
        self.drop_if_done(connection, destination);
        news
    }

    /// `closed` closed and one of its circuits ends with it. True if that is news.
    pub(crate) fn on_connection_closed(
        &mut self,
        closed: ConnectionId,
        source: PeerId,
        destination: PeerId,
    ) -> bool {
        // The source's own connection first: its handler is gone and will not report again.
        if let Some(entry) = self.open.get_mut(&(closed, destination)) {
            let news = entry.active > 0;
            entry.active = entry.active.saturating_sub(1);
            self.drop_if_done(closed, destination);
            return news;
        }
        let lost = self.open.iter_mut().find(|((_, to), entry)| {
            *to == destination && entry.source == source && entry.active > 0
        });
        let Some((_, entry)) = lost else {
            return false;
        };
        entry.active -= 1;
        entry.echoes += 1;
        true
    }

    /// Forgets a connection for good, after its circuits were reported.
    pub(crate) fn forget_connection(&mut self, connection: ConnectionId) {
        self.open.retain(|(source, _), _| *source != connection);
    }

    pub(crate) fn len(&self) -> usize {
        self.open.values().map(|entry| entry.active).sum()
    }

    fn drop_if_done(&mut self, connection: ConnectionId, destination: PeerId) {
        if let Some(entry) = self.open.get(&(connection, destination))
            && entry.active == 0
            && entry.echoes == 0
        {
            self.open.remove(&(connection, destination));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(id: usize) -> ConnectionId {
        ConnectionId::new_unchecked(id)
    }

    #[test]
    fn a_circuit_whose_destination_leaves_first_ends_once() {
        let (source, destination) = (PeerId::random(), PeerId::random());
        let mut circuits = Circuits::default();
        circuits.on_accepted(source, connection(1), destination);
        circuits.on_accepted(source, connection(1), destination);
        assert_eq!(circuits.len(), 2);
        assert!(circuits.on_connection_closed(connection(2), source, destination));
        assert!(circuits.on_connection_closed(connection(2), source, destination));
        assert_eq!(circuits.len(), 0);
        assert!(
            !circuits.on_handler_closed(connection(1), destination),
            "echo"
        );
        assert!(
            !circuits.on_handler_closed(connection(1), destination),
            "echo"
        );
        assert!(circuits.open.is_empty());
    }

    #[test]
    fn a_circuit_whose_source_leaves_ends_once_and_leaves_nothing() {
        let (source, destination) = (PeerId::random(), PeerId::random());
        let mut circuits = Circuits::default();
        circuits.on_accepted(source, connection(1), destination);
        assert!(circuits.on_connection_closed(connection(1), source, destination));
        circuits.forget_connection(connection(1));
        assert_eq!(circuits.len(), 0);
        assert!(circuits.open.is_empty());
    }

    #[test]
    fn an_orderly_end_is_reported_once() {
        let (source, destination) = (PeerId::random(), PeerId::random());
        let mut circuits = Circuits::default();
        circuits.on_accepted(source, connection(1), destination);
        assert!(circuits.on_handler_closed(connection(1), destination));
        assert!(!circuits.on_handler_closed(connection(1), destination));
        assert_eq!(circuits.len(), 0);
    }
}
