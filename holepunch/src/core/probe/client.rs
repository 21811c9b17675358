//! Which servers to ask for a dial-back, and when.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
};

use libp2p_swarm::ConnectionId;
use web_time::Instant;

use crate::{
    Config,
    core::nat::{Endpoint, Prefix, Proto},
};

/// Addresses of servers that a request can name.
pub(crate) const MAX_KNOWN: usize = 16;
/// Servers that are remembered.
const MAX_SERVERS: usize = 64;

/// Ask the server at the other end of this connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) connection: ConnectionId,
    /// Servers that this node has sent to.
    pub(crate) known: Vec<IpAddr>,
}

/// Asks as many servers for each transport as are needed to believe them, and again after a while.
#[derive(Debug)]
pub(crate) struct Client {
    config: Config,
    servers: BTreeMap<ConnectionId, Server>,
    outputs: VecDeque<Ask>,
}

#[derive(Debug, Clone, Copy)]
struct Server {
    at: Endpoint,
    asked: Option<Instant>,
}

impl Client {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            servers: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// The peer at the other end of a connection, which this node dialled from its listen port, is
    /// a server.
    pub(crate) fn on_server(&mut self, connection: ConnectionId, at: Endpoint, now: Instant) {
        if self.servers.len() < MAX_SERVERS {
            let server = Server { at, asked: None };
            self.servers.entry(connection).or_insert(server);
        }
        self.ask(now);
    }

    /// The connection closed, or the peer is a server no more.
    pub(crate) fn on_gone(&mut self, connection: ConnectionId, now: Instant) {
        self.servers.remove(&connection);
        self.ask(now);
    }

    /// Everything may have changed: ask again.
    pub(crate) fn on_changed(&mut self, now: Instant) {
        for server in self.servers.values_mut() {
            server.asked = None;
        }
        self.ask(now);
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.ask(now);
    }

    pub(crate) fn poll_output(&mut self) -> Option<Ask> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let asked = self.servers.values().filter_map(|server| server.asked);
        asked.map(|at| at + self.config.probe_interval()).min()
    }

    fn ask(&mut self, now: Instant) {
        let interval = self.config.probe_interval();
        // What was asked longer ago is to be asked again.
        for server in self.servers.values_mut() {
            server.asked = server
                .asked
                .filter(|at| now.saturating_duration_since(*at) < interval);
        }
        let prefix =
            |at: Endpoint| Prefix::of(at.ip(), self.config.prefix_v4(), self.config.prefix_v6());
        let way = |at: Endpoint| (at.proto, at.socket.is_ipv4());
        // Of several connections to a server the older ones may be dead without anybody knowing yet, after the
        // network has changed.
        let latest: BTreeMap<Endpoint, ConnectionId> = self
            .servers
            .iter()
            .map(|(connection, server)| (server.at, *connection))
            .collect();
        let is_latest =
            |connection: &ConnectionId, server: &Server| latest.get(&server.at) == Some(connection);
        let mut asked: BTreeMap<(Proto, bool), BTreeSet<Prefix>> = BTreeMap::new();
        let recently = self
            .servers
            .iter()
            .filter(|(connection, server)| server.asked.is_some() && is_latest(connection, server));
        for (_, server) in recently {
            asked
                .entry(way(server.at))
                .or_default()
                .insert(prefix(server.at));
        }
        let ips: BTreeSet<IpAddr> = self.servers.values().map(|server| server.at.ip()).collect();
        for (connection, server) in &mut self.servers {
            let done = asked.entry(way(server.at)).or_default();
            let enough = done.len() >= self.config.probe_servers();
            if server.asked.is_some()
                || enough
                || !is_latest(connection, server)
                || !done.insert(prefix(server.at))
            {
                continue;
            }
            server.asked = Some(now);
            self.outputs.push_back(Ask {
                connection: *connection,
                known: ips.iter().copied().take(MAX_KNOWN).collect(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn bench() -> (Client, Instant) {
        (Client::new(Config::default()), Instant::now())
    }

    fn connection(n: usize) -> ConnectionId {
        ConnectionId::new_unchecked(n)
    }

    fn server(address: &str) -> Endpoint {
        Endpoint::of(&address.parse().unwrap()).unwrap()
    }

    fn asked(client: &mut Client) -> Vec<ConnectionId> {
        std::iter::from_fn(|| client.poll_output())
            .map(|ask| ask.connection)
            .collect()
    }

    #[test]
    fn a_few_servers_are_asked_for_each_transport_and_one_of_each_prefix() {
        let (mut client, now) = bench();
        client.on_server(connection(1), server("/ip4/198.51.100.1/tcp/1"), now);
        client.on_server(connection(2), server("/ip4/198.51.100.1/tcp/2"), now);
        client.on_server(
            connection(3),
            server("/ip4/198.51.100.1/udp/1/quic-v1"),
            now,
        );
        assert_eq!(asked(&mut client), [connection(1), connection(3)]);
        for n in 4..20 {
            let address = format!("/ip4/198.51.100.{n}/tcp/1");
            client.on_server(connection(n), server(&address), now);
        }
        let more = Config::default().probe_servers() - 1;
        assert_eq!(asked(&mut client).len(), more);
        client.on_gone(connection(1), now);
        assert_eq!(asked(&mut client).len(), 1, "another one takes its place");
    }

    #[test]
    fn servers_are_asked_again_after_the_interval_and_when_something_changed() {
        let (mut client, mut now) = bench();
        client.on_server(connection(1), server("/ip4/198.51.100.1/tcp/1"), now);
        asked(&mut client);
        client.on_changed(now);
        assert_eq!(asked(&mut client), [connection(1)]);
        now += Config::default().probe_interval();
        assert_eq!(client.poll_timeout(), Some(now));
        client.handle_timeout(now);
        assert_eq!(asked(&mut client), [connection(1)]);
    }

    #[test]
    fn of_two_connections_to_a_server_the_new_one_is_asked() {
        let (mut client, now) = bench();
        let at = server("/ip4/198.51.100.1/udp/1/quic-v1");
        client.on_server(connection(1), at, now);
        assert_eq!(asked(&mut client), [connection(1)]);
        // Nobody knows yet that the first one leads nowhere.
        client.on_changed(now);
        assert_eq!(asked(&mut client), [connection(1)]);
        client.on_server(connection(2), at, now);
        assert_eq!(asked(&mut client), [connection(2)]);
        client.on_changed(now);
        assert_eq!(asked(&mut client), [connection(2)]);
        client.on_gone(connection(1), now);
        assert_eq!(asked(&mut client), []);
    }

    #[test]
    fn thousands_of_servers_are_not_remembered() {
        let (mut client, now) = bench();
        for n in 0..5000 {
            let address = format!("/ip4/198.51.{}.{}/tcp/1", n / 250, n % 250);
            client.on_server(connection(n), server(&address), now);
        }
        assert_eq!(client.servers.len(), MAX_SERVERS);
        assert_eq!(asked(&mut client).len(), Config::default().probe_servers());
    }
}
