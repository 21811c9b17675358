//! Against a server on two loopback addresses, whose answers a NAT would or would not let in.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use futures::executor::block_on;

use super::*;

/// What a server and the NAT before it do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// It does as it is asked, and the NAT filters so.
    Honest(Filtering),
    /// It answers from where it was asked, whatever it was asked.
    Changeless,
    /// Its other address is one of the victim's network.
    Misleading,
    /// It answers from another port, unasked.
    Elsewhere,
    /// It answers another question.
    Confused,
}

/// Two addresses with two ports each.
struct Server {
    sockets: Arc<[UdpSocket; 4]>,
    end: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Server {
    fn start(manner: Manner) -> Self {
        let bind = |ip: [u8; 4], port| UdpSocket::bind((Ipv4Addr::from(ip), port)).unwrap();
        let (first, third) = (bind([127, 0, 0, 1], 0), bind([127, 0, 0, 1], 0));
        let ports = [&first, &third].map(|socket| socket.local_addr().unwrap().port());
        let [second, fourth] = ports.map(|port| bind([127, 0, 0, 2], port));
        let sockets = Arc::new([first, second, third, fourth]);
        let end = Arc::new(AtomicBool::new(false));
        let threads = (0..4)
            .map(|index| {
                let (sockets, end) = (sockets.clone(), end.clone());
                thread::spawn(move || serve(&sockets, index, manner, &end))
            })
            .collect();
        Self {
            sockets,
            end,
            threads,
        }
    }

    fn address(&self) -> SocketAddr {
        self.sockets[0].local_addr().unwrap()
    }

    fn found(&self) -> io::Result<Found> {
        block_on(discover(self.address(), true))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

/// Sockets: address 1 port 1, address 2 port 1, address 1 port 2, address 2 port 2.
fn serve(sockets: &[UdpSocket; 4], index: usize, manner: Manner, end: &AtomicBool) {
    let socket = &sockets[index];
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let other = match manner {
        Manner::Misleading => "10.0.0.1:22".parse().unwrap(),
        _ => sockets[3].local_addr().unwrap(),
    };
    let mut bytes = [0; MAX_BYTES];
    while !end.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut bytes) else {
            continue;
        };
        let (mut answer, change) = message::answer(&bytes[..length], from, other);
        let passes = match manner {
            Manner::Honest(Filtering::AddressDependent) => change != Change::AddressAndPort,
            Manner::Honest(Filtering::AddressAndPortDependent) => change == Change::Nothing,
            _ => true,
        };
        let via = match (manner, change) {
            (Manner::Elsewhere, _) => index ^ 2,
            (Manner::Changeless, _) | (_, Change::Nothing) => index,
            (_, Change::Port) => index ^ 2,
            (_, Change::AddressAndPort) => index ^ 3,
        };
        if manner == Manner::Confused {
            answer[19] ^= 1;
        }
        if passes {
            sockets[via].send_to(&answer, from).unwrap();
        }
    }
}

#[test]
fn mapping_and_filtering_are_found_out_with_two_addresses() {
    for filtering in [
        Filtering::EndpointIndependent,
        Filtering::AddressDependent,
        Filtering::AddressAndPortDependent,
    ] {
        let server = Server::start(Manner::Honest(filtering));
        let found = server.found().unwrap();
        assert_eq!(found.filtering, Some(filtering));
        let others: Vec<SocketAddr> = found.seen.iter().map(|(to, _)| *to).collect();
        let expected = [0, 1, 3].map(|index| server.sockets[index].local_addr().unwrap());
        assert_eq!(others, expected);
        let own = SocketAddr::from(([127, 0, 0, 1], found.local_port));
        assert!(found.seen.iter().all(|(_, seen)| *seen == own));
        assert_eq!(found.hairpin, Some(true), "nothing is in between");
    }
}

#[test]
fn a_server_that_changes_nothing_tells_nothing_of_the_filter() {
    let found = Server::start(Manner::Changeless).found().unwrap();
    assert_eq!(found.filtering, None);
    assert_eq!(found.seen.len(), 3);
}

#[test]
fn nobody_of_our_own_network_is_sent_anything_on_a_servers_word() {
    let found = Server::start(Manner::Misleading).found().unwrap();
    assert_eq!((found.seen.len(), found.filtering), (1, None));
}

#[test]
fn an_answer_from_elsewhere_or_to_another_question_is_none() {
    for manner in [Manner::Elsewhere, Manner::Confused] {
        let error = Server::start(manner).found().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{manner:?}");
    }
}

#[test]
fn a_server_of_our_own_network_is_not_asked() {
    // No NAT lies in between.
    let near = "/ip4/127.0.0.1/udp/9".parse().unwrap();
    let error = block_on(ask(near, false)).unwrap_err();
    assert!(error.to_string().contains("no public"), "{error}");
}
