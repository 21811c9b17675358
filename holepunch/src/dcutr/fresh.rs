//! Opens fresh ports for the core: dials a server from each, and hears from it what the port looks like
//! from outside.

use std::collections::{BTreeMap, VecDeque};

use libp2p_core::{ConnectedPoint, Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    ConnectionId,
    dial_opts::{DialOpts, PeerCondition},
};

use crate::{
    Config, Transport,
    address::{Scope, ip_of, without_peer},
    core::punch::{Opening, PortId},
    transport::{Departure, Ports, Purpose, end_of},
};

/// The fresh ports of a node.
#[derive(Debug)]
pub(super) struct Fresh {
    config: Config,
    ports: Option<Ports>,
    /// The relays of the circuits that are up, and where we reach them.
    relays: BTreeMap<ConnectionId, Server>,
    /// Peers that we have dialled and that are connected. They can tell what they see.
    servers: BTreeMap<ConnectionId, Server>,
    /// Where such peers say that they listen, the latest last. Identify tells an address once, however often
    /// the peer is connected again.
    listening: VecDeque<(PeerId, Vec<Multiaddr>)>,
    /// Connections that were made to hear about a port, from their dial to their end.
    looks: BTreeMap<ConnectionId, Look>,
    /// Public addresses of fresh ports, the latest last: they are candidates for one punch alone.
    seen: VecDeque<Multiaddr>,
}

#[derive(Debug, Clone)]
struct Server {
    peer: PeerId,
    address: Multiaddr,
}

#[derive(Debug)]
struct Look {
    port: PortId,
    transport: Transport,
    is_done: bool,
}

impl Fresh {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            ports: None,
            relays: BTreeMap::new(),
            servers: BTreeMap::new(),
            listening: VecDeque::new(),
            looks: BTreeMap::new(),
            seen: VecDeque::new(),
        }
    }

    pub(super) fn set_ports(&mut self, ports: Ports) {
        self.ports = Some(ports);
    }

    /// What the core may open ports for.
    pub(super) fn transports(&self) -> Vec<Transport> {
        self.ports
            .as_ref()
            .map(Ports::transports)
            .unwrap_or_default()
    }

    /// The dial that opens the port, and the addresses that packets leave for at once. `None` if no server
    /// is known that could see it.
    pub(super) fn open(&mut self, opening: &Opening) -> Option<(DialOpts, Vec<Multiaddr>)> {
        let ports = self.ports.as_ref()?;
        let to: Vec<_> = opening.towards.iter().filter_map(end_of).collect();
        let is_v4 = to.first()?.1.is_ipv4();
        let sees = |address: &&Multiaddr| {
            end_of(address).is_some_and(|(transport, address)| {
                transport == opening.transport && address.is_ipv4() == is_v4
            })
        };
        // The circuit's own relay first: it is up.
        let relay = self.relays.get(&opening.relayed);
        let others = self.servers.values().rev();
        let mut servers = relay.into_iter().chain(others);
        let (peer, address) = servers.find_map(|server| {
            let mut addresses = self.addresses_of(server);
            Some((server.peer, addresses.find(sees)?.clone()))
        })?;
        let departure = Departure {
            port: opening.port,
            purpose: Purpose::Open {
                towards: to.into_iter().map(|(_, address)| address).collect(),
                ttl: opening.ttl,
            },
        };
        ports.announce(&address, departure);
        let opts = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(vec![address])
            .allocate_new_port()
            .build();
        let look = Look {
            port: opening.port,
            transport: opening.transport,
            is_done: false,
        };
        self.looks.insert(opts.connection_id(), look);
        Some((opts, opening.towards.clone()))
    }

    /// The next dial to `address` leaves from that port.
    pub(super) fn dial_from(&self, port: PortId, address: &Multiaddr) {
        if let Some(ports) = &self.ports {
            let purpose = Purpose::Punch;
            ports.announce(address, Departure { port, purpose });
        }
    }

    /// Returns the connection that was made for the port, if it may be up.
    pub(super) fn close(&mut self, port: PortId) -> Option<(ConnectionId, PeerId)> {
        if let Some(ports) = &self.ports {
            ports.close(port);
        }
        let mut looks = self.looks.iter_mut();
        let (connection, look) = looks.find(|(_, look)| look.port == port)?;
        look.is_done = true;
        self.servers
            .get(connection)
            .map(|server| (*connection, server.peer))
    }

    /// Whether the connection was made for a port that is closed by now.
    pub(super) fn on_established(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        at: &ConnectedPoint,
    ) -> bool {
        if at.is_relayed() {
            if let Some(relay) = relay_of(at).filter(|relay| self.may_see(&relay.address)) {
                self.relays.insert(connection, relay);
            }
            return false;
        }
        if at.is_dialer() {
            let address = without_peer(at.get_remote_address());
            if self.may_see(&address) {
                self.servers.insert(connection, Server { peer, address });
            }
        }
        self.looks.get(&connection).is_some_and(|look| look.is_done)
    }

    /// A peer tells where it listens.
    pub(super) fn on_peer_address(&mut self, peer: PeerId, address: &Multiaddr) {
        let address = without_peer(address);
        let mut servers = self.relays.values().chain(self.servers.values());
        let may_help = end_of(&address).is_some() && self.may_see(&address);
        if !may_help || !servers.any(|server| server.peer == peer) {
            return;
        }
        let known = self.listening.iter().position(|(other, _)| *other == peer);
        let (_, mut addresses) = known
            .and_then(|at| self.listening.remove(at))
            .unwrap_or((peer, Vec::new()));
        if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
            addresses.push(address);
        }
        if self.listening.len() >= MAX_LISTENING {
            self.listening.pop_front();
        }
        self.listening.push_back((peer, addresses));
    }

    /// Where it is connected, and where else on that host it listens: nobody is to be sent to a stranger.
    fn addresses_of<'a>(&'a self, server: &'a Server) -> impl Iterator<Item = &'a Multiaddr> {
        let known = self.listening.iter();
        let known = known.filter(|(peer, _)| *peer == server.peer);
        let host = ip_of(&server.address);
        let others = known.flat_map(|(_, addresses)| addresses);
        std::iter::once(&server.address).chain(others.filter(move |other| ip_of(other) == host))
    }

    /// The port that waited for this connection in vain.
    pub(super) fn on_gone(&mut self, connection: ConnectionId) -> Option<PortId> {
        self.relays.remove(&connection);
        self.servers.remove(&connection);
        let look = self.looks.remove(&connection)?;
        (!look.is_done).then_some(look.port)
    }

    /// The peer at the other end saw us there: of a fresh port, if this connection was made for one. It is
    /// not believed if it names an address that others know us by: what it says would take that away.
    pub(super) fn on_observed(
        &mut self,
        connection: ConnectionId,
        observed: &Multiaddr,
        usual: &[Multiaddr],
    ) -> Option<(PortId, Option<Multiaddr>)> {
        let look = self.looks.get_mut(&connection)?;
        if std::mem::replace(&mut look.is_done, true) {
            return None;
        }
        let (port, transport) = (look.port, look.transport);
        let observed = without_peer(observed);
        let is_of_it = end_of(&observed).is_some_and(|(of, _)| of == transport);
        if !is_of_it || !self.may_see(&observed) || usual.contains(&observed) {
            return Some((port, None));
        }
        if self.seen.len() >= MAX_SEEN {
            self.seen.pop_front();
        }
        self.seen.push_back(observed.clone());
        Some((port, Some(observed)))
    }

    /// Whether the connection, or this address of ours, belongs to a fresh port: nothing about it holds for
    /// the node.
    pub(super) fn owns(&self, connection: Option<ConnectionId>, observed: &Multiaddr) -> bool {
        connection.is_some_and(|connection| self.looks.contains_key(&connection))
            || self.seen.contains(&without_peer(observed))
    }

    /// Whoever is beyond our NATs.
    fn may_see(&self, address: &Multiaddr) -> bool {
        match Scope::of(address) {
            Scope::Public => true,
            Scope::Loopback => self.config.allow_loopback(),
            Scope::Private | Scope::Useless => false,
        }
    }
}

/// `/…relay…/p2p/<relay>/p2p-circuit/…`, of either end.
fn relay_of(circuit: &ConnectedPoint) -> Option<Server> {
    let address = match circuit {
        ConnectedPoint::Dialer { address, .. } => address,
        ConnectedPoint::Listener { local_addr, .. } => local_addr,
    };
    let until_circuit = address
        .iter()
        .take_while(|part| *part != Protocol::P2pCircuit);
    let relay: Multiaddr = until_circuit.collect();
    let peer = relay.iter().find_map(|part| match part {
        Protocol::P2p(peer) => Some(peer),
        _ => None,
    })?;
    let address = without_peer(&relay);
    Some(Server { peer, address })
}

/// Of one server: it may listen over each transport and IP version, on a port or two.
const MAX_ADDRESSES: usize = 8;

/// Peers whose addresses are remembered: one is enough for a fresh port.
const MAX_LISTENING: usize = 32;

/// Twice as many as are open at a time; late words about closed ones are still about them.
const MAX_SEEN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(says: &str) -> (Fresh, Option<(PortId, Option<Multiaddr>)>) {
        let mut fresh = Fresh::new(Config::default());
        let connection = ConnectionId::new_unchecked(1);
        let look = Look {
            port: PortId(7),
            transport: Transport::Quic,
            is_done: false,
        };
        fresh.looks.insert(connection, look);
        let usual = ["/ip4/203.0.113.10/udp/9100/quic-v1".parse().unwrap()];
        let told = fresh.on_observed(connection, &says.parse().unwrap(), &usual);
        (fresh, told)
    }

    #[test]
    fn what_a_server_sees_of_a_fresh_port_is_not_taken_for_the_nodes() {
        let says = "/ip4/203.0.113.10/udp/40000/quic-v1";
        let address: Multiaddr = says.parse().unwrap();
        let (fresh, told) = observed(says);
        assert_eq!(told, Some((PortId(7), Some(address.clone()))));
        assert!(fresh.owns(None, &address));
    }

    #[test]
    fn a_server_may_look_over_another_transport_of_its_own_host_alone() {
        let mut fresh = Fresh::new(Config::default());
        let ports = Ports::default();
        fresh.set_ports(ports);
        let relay = PeerId::random();
        let at = ConnectedPoint::Dialer {
            address: "/ip4/203.0.113.100/udp/4001/quic-v1".parse().unwrap(),
            role_override: libp2p_core::Endpoint::Dialer,
            port_use: libp2p_core::transport::PortUse::Reuse,
        };
        fresh.on_established(ConnectionId::new_unchecked(1), relay, &at);
        let opening = |fresh: &mut Fresh| {
            let opening = Opening {
                port: PortId(1),
                transport: Transport::Tcp,
                relayed: ConnectionId::new_unchecked(9),
                towards: vec!["/ip4/203.0.113.20/tcp/9100".parse().unwrap()],
                ttl: 2,
            };
            fresh.open(&opening).is_some()
        };
        assert!(!opening(&mut fresh), "no TCP address is known");
        // Those of its own network take no place of what may help.
        let private = (1..50).map(|host| format!("/ip4/10.0.0.{host}/tcp/4001"));
        let elsewhere = ["/ip4/198.51.100.7/tcp/25", "/ip4/203.0.113.100/tcp/1/ws"];
        for elsewhere in private.chain(elsewhere.map(str::to_owned)) {
            fresh.on_peer_address(relay, &elsewhere.parse().unwrap());
        }
        assert!(!opening(&mut fresh), "a stranger's, or not TCP alone");
        let own = "/ip4/203.0.113.100/tcp/4001".parse().unwrap();
        fresh.on_peer_address(PeerId::random(), &own);
        assert!(!opening(&mut fresh), "another peer's word");
        fresh.on_peer_address(relay, &own);
        assert!(opening(&mut fresh));
        // It is told once, and remembered when the relay comes back.
        fresh.on_gone(ConnectionId::new_unchecked(1));
        assert!(!opening(&mut fresh));
        fresh.on_established(ConnectionId::new_unchecked(2), relay, &at);
        assert!(opening(&mut fresh));
        for _ in 0..1000 {
            let peer = PeerId::random();
            fresh.on_established(ConnectionId::new_unchecked(3), peer, &at);
            for port in 1..100 {
                let address = format!("/ip4/203.0.113.100/tcp/{port}");
                fresh.on_peer_address(peer, &address.parse().unwrap());
            }
        }
        let remembered = fresh.listening.iter().map(|(_, addresses)| addresses.len());
        assert_eq!(
            remembered.collect::<Vec<_>>(),
            [MAX_ADDRESSES; MAX_LISTENING]
        );
    }

    #[test]
    fn a_server_cannot_name_what_no_fresh_port_has() {
        for says in [
            "/ip4/203.0.113.10/udp/9100/quic-v1",
            "/ip4/203.0.113.10/tcp/40000",
            "/ip4/10.0.0.1/udp/40000/quic-v1",
            "/dns/example.org/udp/40000/quic-v1",
        ] {
            let (fresh, told) = observed(says);
            assert_eq!(told, Some((PortId(7), None)), "{says}");
            assert!(!fresh.owns(None, &says.parse().unwrap()), "{says}");
        }
    }
}
