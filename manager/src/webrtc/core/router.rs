//! Which connection of a listener a datagram is for, and who may begin a new one.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use super::{stun, ufrag::Ufrag};

/// Handshakes under way, of all and of one address. Each ends after [`super::connection::HANDSHAKE`].
pub(crate) const MAX_HANDSHAKES: usize = 32;
pub(crate) const MAX_HANDSHAKES_PER_IP: usize = 8;

/// How many addresses of the other end a connection remembers.
pub(super) const MAX_PATHS: usize = 8;

/// A connection of the listener. None gets the number of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnectionId(u64);

/// What to do with a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    Connection(ConnectionId),
    /// A stranger begins; the router counts it until [`Router::on_closed`].
    New(ConnectionId, Ufrag),
    /// Nothing: it is from a stranger and no beginning, or there are too many.
    Drop,
}

#[derive(Debug)]
struct Connection {
    ufrag: Ufrag,
    addresses: Vec<SocketAddr>,
    /// Who is in a handshake.
    handshake: Option<IpAddr>,
}

/// The connections of one listener.
#[derive(Debug, Default)]
pub(crate) struct Router {
    connections: BTreeMap<ConnectionId, Connection>,
    by_address: HashMap<SocketAddr, ConnectionId>,
    by_ufrag: HashMap<Ufrag, ConnectionId>,
    handshakes: HashMap<IpAddr, usize>,
    in_handshake: usize,
    next: u64,
}

impl Router {
    /// Finds out whom a datagram is for. STUN is known by the name of its connection, everything else by its source, which must have sent
    /// STUN before.
    pub(crate) fn route(&mut self, source: SocketAddr, datagram: &[u8]) -> Route {
        if !stun::is_stun(datagram) {
            return match self.by_address.get(&source) {
                Some(id) => Route::Connection(*id),
                None => Route::Drop,
            };
        }
        let Some(request) = stun::request(datagram) else {
            return Route::Drop;
        };
        let Some(ufrag) = Ufrag::new(request.ufrag) else {
            return Route::Drop;
        };
        if let Some(id) = self.by_ufrag.get(&ufrag).copied() {
            self.remember(id, source);
            return Route::Connection(id);
        }
        let host = host(source.ip());
        let of_host = self.handshakes.get(&host).copied().unwrap_or_default();
        if self.in_handshake >= MAX_HANDSHAKES || of_host >= MAX_HANDSHAKES_PER_IP {
            return Route::Drop;
        }
        let id = ConnectionId(self.next);
        self.next += 1;
        self.handshakes.insert(host, of_host + 1);
        self.in_handshake += 1;
        self.by_ufrag.insert(ufrag.clone(), id);
        let connection = Connection {
            ufrag: ufrag.clone(),
            addresses: Vec::new(),
            handshake: Some(host),
        };
        self.connections.insert(id, connection);
        self.remember(id, source);
        Route::New(id, ufrag)
    }

    fn remember(&mut self, id: ConnectionId, source: SocketAddr) {
        let before = self.by_address.insert(source, id);
        if before == Some(id) {
            return;
        }
        // A client that begins again from the same port.
        if let Some(other) = before.and_then(|before| self.connections.get_mut(&before)) {
            other.addresses.retain(|address| *address != source);
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            if connection.addresses.len() == MAX_PATHS {
                let oldest = connection.addresses.remove(0);
                self.by_address.remove(&oldest);
            }
            connection.addresses.push(source);
        }
    }

    /// The other end has shown who it is.
    pub(crate) fn on_authenticated(&mut self, id: ConnectionId) {
        let host = self
            .connections
            .get_mut(&id)
            .and_then(|connection| connection.handshake.take());
        if let Some(host) = host {
            self.end_handshake(host);
        }
    }

    fn end_handshake(&mut self, host: IpAddr) {
        self.in_handshake -= 1;
        if let Some(count) = self.handshakes.get_mut(&host) {
            *count -= 1;
            if *count == 0 {
                self.handshakes.remove(&host);
            }
        }
    }

    /// It is over, whether it ever began or not.
    pub(crate) fn on_closed(&mut self, id: ConnectionId) {
        self.on_authenticated(id);
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        self.by_ufrag.remove(&connection.ufrag);
        for address in connection.addresses {
            self.by_address.remove(&address);
        }
    }
}

/// Who has one address of IPv6 has 64 bits of them.
fn host(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => ip.into(),
            None => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(number: u64) -> Vec<u8> {
        let name = format!("libp2p+webrtc+v1/{number:08}");
        stun::tests::forged(&format!("{name}:{name}"), &name)
    }

    fn source(ip: u8, port: u16) -> SocketAddr {
        ([192, 0, 2, ip], port).into()
    }

    fn sizes(router: &Router) -> [usize; 5] {
        [
            router.connections.len(),
            router.by_address.len(),
            router.by_ufrag.len(),
            router.handshakes.len(),
            router.in_handshake,
        ]
    }

    fn begin(router: &mut Router, source: SocketAddr, number: u64) -> Option<ConnectionId> {
        match router.route(source, &request(number)) {
            Route::New(id, _) => Some(id),
            _ => None,
        }
    }

    #[test]
    fn strangers_leave_nothing_unless_they_begin_properly() {
        let mut router = Router::default();
        let mut wrong_key = request(1);
        let end = wrong_key.len() - 20;
        wrong_key[end] ^= 1;
        let name = "libp2p+webrtc+v9/abcdefgh";
        let other_name = stun::tests::forged(&format!("{name}:{name}"), name);
        for packet in [
            &wrong_key[..],
            &other_name,
            &[],
            &[0; 40],
            &[22; 100],
            b"GET /",
        ] {
            for port in 1..1000 {
                assert_eq!(router.route(source(1, port), packet), Route::Drop);
            }
        }
        assert_eq!(sizes(&router), [0; 5]);
    }

    #[test]
    fn handshakes_are_bounded_in_all_and_for_each_host() {
        let mut router = Router::default();
        let mut begun = Vec::new();
        for number in 0..1000 {
            // One host.
            begun.extend(begin(&mut router, source(1, 1000 + number as u16), number));
        }
        assert_eq!(begun.len(), MAX_HANDSHAKES_PER_IP);
        for number in 1000..2000 {
            let ip = 2 + (number % 200) as u8;
            begun.extend(begin(&mut router, source(ip, number as u16), number));
        }
        assert_eq!(begun.len(), MAX_HANDSHAKES);
        for id in &begun {
            router.on_closed(*id);
        }
        assert_eq!(sizes(&router), [0; 5]);
        assert!(begin(&mut router, source(1, 1), 5000).is_some());
    }

    #[test]
    fn hosts_of_ipv6_are_networks() {
        let mut router = Router::default();
        let begun = (0..100).filter(|number| {
            let source = SocketAddr::new(format!("2001:db8::{number:x}").parse().unwrap(), 5);
            begin(&mut router, source, *number).is_some()
        });
        assert_eq!(begun.count(), MAX_HANDSHAKES_PER_IP);
    }

    #[test]
    fn a_connection_is_its_name_whatever_its_addresses_and_remembers_few() {
        let mut router = Router::default();
        let id = begin(&mut router, source(1, 1), 1).unwrap();
        assert_eq!(
            router.route(source(9, 9), &request(1)),
            Route::Connection(id)
        );
        assert_eq!(router.route(source(9, 9), &[22]), Route::Connection(id));
        assert_eq!(router.route(source(9, 8), &[22]), Route::Drop);
        router.on_authenticated(id);
        router.on_authenticated(id);
        assert_eq!(sizes(&router), [1, 2, 1, 0, 0]);
        for port in 1..1000 {
            router.route(source(5, port), &request(1));
        }
        assert_eq!(sizes(&router), [1, MAX_PATHS, 1, 0, 0]);
        router.on_closed(id);
        router.on_closed(id);
        assert_eq!(sizes(&router), [0; 5]);
    }

    #[test]
    fn who_begins_again_from_the_same_port_takes_it_along() {
        let mut router = Router::default();
        let first = begin(&mut router, source(1, 1), 1).unwrap();
        let second = begin(&mut router, source(1, 1), 2).unwrap();
        assert_eq!(router.route(source(1, 1), &[22]), Route::Connection(second));
        router.on_closed(first);
        assert_eq!(router.route(source(1, 1), &[22]), Route::Connection(second));
    }
}
