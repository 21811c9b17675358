//! Dials: who wants them, how the strategy has them made, who hears how they ended.

use libp2p::{
    Multiaddr, PeerId, TransportError,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::sync::oneshot;

use super::Driver;
use crate::{
    bootstrap::with_peer,
    error::ConnectError,
    event::{Discovery, Event},
    node::now,
    strategy::{BestPath, DialId, Output, Purpose},
};

/// Connected peers from which on announcements over gossipsub lead to no further connections.
const ENOUGH_PEERS: usize = 32;
/// Connected peers from which on the local network does not either.
const ENOUGH_LOCAL_PEERS: usize = 128;

/// What a failed dial tells the user of a private network, where a wrong key looks like noise.
const PRIVATE_NETWORK: &str =
    "in a private network both ends need the same swarm key, and a TCP or WebSocket address";

/// Who waits for a dial to an address that names no peer.
pub(super) enum Unknown {
    Connect(Multiaddr, oneshot::Sender<Result<PeerId, ConnectError>>),
    Session(u64),
}

impl Driver {
    pub(super) fn connect(
        &mut self,
        address: Multiaddr,
        reply: oneshot::Sender<Result<PeerId, ConnectError>>,
    ) {
        let Some((peer, address)) = with_peer(&address) else {
            self.dial_unknown(address.clone(), Some(Unknown::Connect(address, reply)));
            return;
        };
        if peer == *self.swarm.local_peer_id() {
            drop(reply.send(Err(ConnectError::Myself(peer))));
        } else if self.swarm.is_connected(&peer) {
            drop(reply.send(Ok(peer)));
        } else if self.strategy.want(peer, [address], Purpose::Once, now()) {
            self.connecting.entry(peer).or_default().push(reply);
        } else {
            drop(reply.send(Err(ConnectError::TooMany)));
        }
    }

    pub(super) fn dial_unknown(&mut self, address: Multiaddr, waiter: Option<Unknown>) {
        let opts = DialOpts::unknown_peer_id().address(address).build();
        let connection = opts.connection_id();
        if let Some(waiter) = waiter {
            self.unknown.insert(connection, waiter);
        }
        if let Err(error) = self.swarm.dial(opts) {
            self.on_unknown_failed(connection, &error);
        }
    }

    pub(super) fn auto_connect(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, by: Discovery) {
        let enough = match by {
            Discovery::Pubsub => ENOUGH_PEERS,
            Discovery::Mdns | Discovery::FileRegistry => ENOUGH_LOCAL_PEERS,
        };
        let now = now();
        self.strategy.on_addresses(peer, addresses.clone(), now);
        let idle = !self.swarm.is_connected(&peer) && !self.strategy.is_dialling(&peer);
        if idle && self.peers.len() < enough {
            self.strategy.want(peer, addresses, Purpose::Once, now);
        }
    }

    pub(super) fn drain_strategy(&mut self) {
        while let Some(output) = self.strategy.poll_output() {
            match output {
                Output::Dial {
                    dial,
                    peer,
                    addresses,
                } => self.dial(dial, peer, addresses),
                Output::Close { connection } => {
                    tracing::debug!(%connection, "closing: a better connection is there");
                    self.swarm.close_connection(connection);
                }
                Output::PathChanged { peer, best } => self.on_path(peer, best),
                Output::Unreachable { peer } => self.on_unreachable(peer),
            }
        }
    }

    fn dial(&mut self, dial: DialId, peer: PeerId, addresses: Vec<Multiaddr>) {
        tracing::debug!(%peer, ?addresses, "dialling");
        let opts = DialOpts::peer_id(peer).condition(PeerCondition::Always);
        let opts = if addresses.is_empty() {
            opts.build()
        } else {
            opts.addresses(addresses).build()
        };
        let connection = opts.connection_id();
        self.dials.insert(connection, dial);
        if let Err(error) = self.swarm.dial(opts) {
            self.note_dial_error(peer, &error);
            self.on_dial_failed(connection, &error);
        }
    }

    pub(super) fn on_dial_failed(&mut self, connection: ConnectionId, error: &DialError) {
        let Some(dial) = self.dials.remove(&connection) else {
            return;
        };
        tracing::debug!(%connection, %error, "dial failed");
        self.strategy.on_dial_failed(dial, now());
    }

    pub(super) fn on_unknown_failed(&mut self, connection: ConnectionId, error: &DialError) {
        if let Some(Unknown::Connect(address, reply)) = self.unknown.remove(&connection) {
            let (target, reason) = (address.to_string(), self.describe(error));
            drop(reply.send(Err(ConnectError::Unreachable { target, reason })));
        }
    }

    /// Remembers what to tell those who wait for the peer; nobody else asks.
    pub(super) fn note_dial_error(&mut self, peer: PeerId, error: &DialError) {
        if self.connecting.contains_key(&peer) {
            self.dial_errors.insert(peer, self.describe(error));
        }
    }

    /// What each address of a failed dial said; in a private network, what may be behind it.
    fn describe(&self, error: &DialError) -> String {
        let reason = describe(error);
        match (self.config.has_swarm_key(), error) {
            (true, DialError::Transport(_)) => format!("{reason} ({PRIVATE_NETWORK})"),
            _ => reason,
        }
    }

    fn on_path(&mut self, peer: PeerId, best: Option<BestPath>) {
        self.fetches.on_path(peer, best);
        self.emit(Event::PathChanged {
            peer,
            path: best.map(|best| best.path),
        });
    }

    fn on_unreachable(&mut self, peer: PeerId) {
        let reason = self
            .dial_errors
            .remove(&peer)
            .unwrap_or_else(|| "no address worked".to_owned());
        for reply in self.connecting.remove(&peer).unwrap_or_default() {
            let (target, reason) = (peer.to_string(), reason.clone());
            drop(reply.send(Err(ConnectError::Unreachable { target, reason })));
        }
        if !self.swarm.is_connected(&peer) {
            self.swarm.behaviour_mut().streams.fail_waiting(peer);
        }
    }
}

/// What each address of a failed dial said, in one line.
fn describe(error: &DialError) -> String {
    match error {
        DialError::Transport(errors) => errors
            .iter()
            .map(|(address, error)| match error {
                // Its own text is empty.
                TransportError::Other(cause) => {
                    format!("{address}: {}", in_one_line(&with_causes(cause)))
                }
                error => format!("{address}: {error}"),
            })
            .collect::<Vec<_>>()
            .join("; "),
        DialError::NoAddresses => {
            "no address of it is known (this node's own do not count)".to_owned()
        }
        error => error.to_string(),
    }
}

/// The DNS transport writes a heading and a line for each address.
fn in_one_line(text: &str) -> String {
    text.lines()
        .filter(|line| !line.ends_with("errors occurred:"))
        .map(|line| line.trim_start_matches(" - "))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The error's text and those of its causes that it does not quote already.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_failed_dial_says_what_the_system_said() {
        let address: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let nested = io::Error::other(TransportError::Other(refused));
        let error = DialError::Transport(vec![(address, TransportError::Other(nested))]);
        let text = describe(&error);
        assert_eq!(text, "/ip4/127.0.0.1/tcp/1: connection refused");
        let listed = "Multiple dial errors occurred:\n - refused\n - timed out\n";
        assert_eq!(in_one_line(listed), "refused, timed out");
    }
}
