//! Which connections still reach their peers.
//!
//! Asked only where something speaks against it. A NAT that restarts, or gets another address, tells nobody: what was connected
//! through it is silent from then on, and transports take 10 s and more to give it up.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;
use web_time::Instant;

/// What the adapter is to do or to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Ask the peer for a sign of life on this connection; tell with [`Liveness::on_answer`] when it gives one.
    Ask {
        peer: PeerId,
        connection: ConnectionId,
    },
    /// A doubt was answered, now or a moment ago.
    Alive {
        peer: PeerId,
        connection: ConnectionId,
    },
    /// A quarter of the time is over, and nothing came back.
    Late {
        peer: PeerId,
        connection: ConnectionId,
    },
    /// Nothing came back in time: of no use any more.
    Lost {
        peer: PeerId,
        connection: ConnectionId,
    },
}

/// How a connection came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) relayed: bool,
    pub(crate) quic: bool,
    /// By a dial of ours.
    pub(crate) dialled: bool,
}

#[derive(Debug)]
pub(crate) struct Liveness {
    timeout: Duration,
    /// As many as the swarm has, those of a peer side by side.
    connections: BTreeMap<(PeerId, ConnectionId), Connection>,
    /// Who was asked, and until when an answer counts; the earliest first.
    asked: VecDeque<(Instant, (PeerId, ConnectionId))>,
    /// When all were asked last.
    all_asked: Option<Instant>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Connection {
    kind: Kind,
    /// The longest that an answer took.
    slowest: Duration,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Undoubted,
    Asked {
        at: Instant,
        until: Instant,
    },
    /// The same, and it should have answered by now.
    Late {
        at: Instant,
        until: Instant,
    },
    /// The time is over, but an answer may have come that nobody has looked at yet.
    Ending {
        at: Instant,
        until: Instant,
    },
    Answered {
        at: Instant,
    },
    Lost,
}

impl Liveness {
    /// Whoever gives no sign of life within `timeout` is lost.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            connections: BTreeMap::new(),
            asked: VecDeque::new(),
            all_asked: None,
            outputs: VecDeque::new(),
        }
    }

    /// A connection is up. A second direct one speaks against the first: whoever has one that works needs no other. Only over QUIC,
    /// where a question does not wait behind a transfer.
    pub(crate) fn on_connected(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        kind: Kind,
        now: Instant,
    ) {
        if !kind.relayed {
            self.doubt_some(peer, |_, other| !other.relayed && other.quic, now);
        }
        let known = Connection {
            kind,
            slowest: Duration::ZERO,
            state: State::Undoubted,
        };
        self.connections.insert((peer, connection), known);
    }

    /// A connection is gone.
    pub(crate) fn on_closed(&mut self, connection: ConnectionId, peer: PeerId) {
        self.connections.remove(&(peer, connection));
    }

    /// Something speaks against this connection.
    pub(crate) fn doubt(&mut self, connection: ConnectionId, peer: PeerId, now: Instant) {
        self.doubt_some(peer, |id, _| id == connection, now);
    }

    /// Something speaks against the direct connections to this peer.
    pub(crate) fn doubt_direct(&mut self, peer: PeerId, now: Instant) {
        self.doubt_some(peer, |_, kind| !kind.relayed, now);
    }

    /// This node has another address, says a peer on this connection. Whoever came to us may say what it likes; whom we dialled is believed,
    /// not too often.
    pub(crate) fn on_new_address(&mut self, told_on: ConnectionId, by: PeerId, now: Instant) {
        let told_on = self.connections.get(&(by, told_on));
        let is_recent = |at: Instant| now.saturating_duration_since(at) < ALL_AGAIN;
        if !told_on.is_some_and(|told_on| told_on.kind.dialled)
            || self.all_asked.is_some_and(is_recent)
        {
            return;
        }
        self.all_asked = Some(now);
        let all: Vec<_> = self.connections.keys().copied().collect();
        for (peer, connection) in all {
            self.doubt(connection, peer, now);
        }
    }

    fn doubt_some(
        &mut self,
        peer: PeerId,
        which: impl Fn(ConnectionId, Kind) -> bool,
        now: Instant,
    ) {
        let first = ConnectionId::new_unchecked(0);
        let last = ConnectionId::new_unchecked(usize::MAX);
        let of_peer = self.connections.range_mut((peer, first)..=(peer, last));
        for ((_, id), connection) in of_peer {
            if !which(*id, connection.kind) {
                continue;
            }
            match connection.state {
                State::Asked { .. } | State::Late { .. } | State::Ending { .. } | State::Lost => {
                    continue;
                }
                State::Answered { at } if now.saturating_duration_since(at) < JUST_ANSWERED => {
                    let connection = *id;
                    self.outputs.push_back(Output::Alive { peer, connection });
                    continue;
                }
                State::Undoubted | State::Answered { .. } => {}
            }
            ask(&mut self.asked, connection, (peer, *id), self.timeout, now);
            let connection = *id;
            self.outputs.push_back(Output::Ask { peer, connection });
        }
    }

    /// The peer gave a sign of life.
    pub(crate) fn on_answer(&mut self, connection: ConnectionId, peer: PeerId, now: Instant) {
        if let Some(known) = self.connections.get_mut(&(peer, connection))
            && let State::Asked { at, .. } | State::Late { at, .. } | State::Ending { at, .. } =
                known.state
        {
            known.slowest = known
                .slowest
                .max(now.saturating_duration_since(at))
                .min(SLOWEST);
            known.state = State::Answered { at: now };
            self.outputs.push_back(Output::Alive { peer, connection });
        }
    }

    /// Something may be due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let mut lost = Vec::new();
        while let Some((due, (peer, id))) = self.asked.pop_front_if(|(due, _)| *due <= now) {
            let Some(connection) = self.connections.get_mut(&(peer, id)) else {
                continue;
            };
            let (at, until) = match connection.state {
                State::Asked { at, until } | State::Late { at, until } => (at, until),
                State::Ending { until, .. } if until == due => {
                    connection.state = State::Lost;
                    lost.push((connection.kind.relayed, peer, id));
                    continue;
                }
                _ => continue,
            };
            if now.saturating_duration_since(due) > LATE {
                // It was us who slept: the question, or its answer, may never have had its time.
                ask(&mut self.asked, connection, (peer, id), self.timeout, now);
                let connection = id;
                self.outputs.push_back(Output::Ask { peer, connection });
            } else if until == due {
                let until = now + GRACE;
                connection.state = State::Ending { at, until };
                insert(&mut self.asked, until, (peer, id));
            } else if matches!(connection.state, State::Asked { .. })
                && due == at + (until - at) / 4
            {
                connection.state = State::Late { at, until };
                insert(&mut self.asked, until, (peer, id));
                let connection = id;
                self.outputs.push_back(Output::Late { peer, connection });
            }
        }
        // Relayed ones first: what replaces a direct one should not begin with a circuit that is lost as well.
        lost.sort_by_key(|(relayed, ..)| !relayed);
        for (_, peer, connection) in lost {
            self.outputs.push_back(Output::Lost { peer, connection });
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.asked.front().map(|(due, _)| *due)
    }

    /// Drain after every call that changes something.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }
}

/// Asks, and says when that is late.
fn ask(
    asked: &mut VecDeque<(Instant, (PeerId, ConnectionId))>,
    connection: &mut Connection,
    which: (PeerId, ConnectionId),
    timeout: Duration,
    now: Instant,
) {
    let timeout = timeout.max(4 * connection.slowest);
    let until = now + timeout;
    connection.state = State::Asked { at: now, until };
    insert(asked, now + timeout / 4, which);
}

/// Nearly always at the end.
fn insert<T>(queue: &mut VecDeque<(Instant, T)>, due: Instant, entry: T) {
    let at = queue.partition_point(|(other, _)| *other <= due);
    queue.insert(at, (due, entry));
}

/// How long an answer holds: whoever doubts, a peer is not asked more often.
const JUST_ANSWERED: Duration = Duration::from_millis(500);

/// How soon all connections may be asked again.
const ALL_AGAIN: Duration = Duration::from_secs(30);

/// The longest time that an answer may claim for later ones, a quarter of what they get.
const SLOWEST: Duration = Duration::from_secs(5);

/// After the time is over, for answers that came and were not looked at.
const GRACE: Duration = Duration::from_millis(100);

/// Who looks at the clock so late has not looked at answers either.
const LATE: Duration = Duration::from_millis(250);

#[cfg(test)]
#[path = "liveness_tests.rs"]
mod tests;
