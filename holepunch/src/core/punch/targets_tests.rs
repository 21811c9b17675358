use super::*;
use crate::{
    core::nat::report::{NatType, TransportNat},
    message::{Extras, Kind},
};

fn addresses(texts: &[&str]) -> Vec<Multiaddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn nat(kind: NatType) -> NatReport {
    NatReport {
        udp: TransportNat::of(kind),
        tcp: TransportNat::of(kind),
        ..NatReport::default()
    }
}

struct Bench {
    config: Config,
    role: Role,
    attempt: u8,
    nat: NatReport,
    candidates: Vec<Multiaddr>,
    local: Vec<Multiaddr>,
}

impl Bench {
    fn new(role: Role) -> Self {
        Self {
            config: Config::default(),
            role,
            attempt: 1,
            nat: NatReport::default(),
            candidates: addresses(&["/ip4/203.0.113.10/udp/9100/quic-v1"]),
            local: addresses(&["/ip4/10.1.0.10/udp/9100/quic-v1"]),
        }
    }

    fn behind(mut self, kind: NatType) -> Self {
        self.nat = nat(kind);
        self
    }

    fn targets(&self, message: &Message) -> Result<Vec<Target>, NoPunch> {
        targets(
            &Situation {
                config: &self.config,
                peer: PeerId::random(),
                role: self.role,
                attempt: self.attempt,
                nat: &self.nat,
                candidates: &self.candidates,
                local: &self.local,
            },
            message,
        )
    }

    fn dials(&self, message: &Message) -> Vec<(String, As)> {
        let targets = self.targets(message).unwrap();
        let text = |target: Target| (target.address.to_string(), target.how);
        targets.into_iter().map(text).collect()
    }
}

fn stock(texts: &[&str]) -> Message {
    Message {
        kind: Kind::Connect,
        addresses: addresses(texts),
        extras: None,
    }
}

fn ours(kind: NatType, texts: &[&str], local: &[&str]) -> Message {
    Message {
        extras: Some(Extras {
            attempt: 1,
            nat: nat(kind),
            local: addresses(local),
            failure: None,
        }),
        ..stock(texts)
    }
}

const QUIC: &str = "/ip4/203.0.113.20/udp/9100/quic-v1";
const TCP: &str = "/ip4/203.0.113.20/tcp/9100";

#[test]
fn where_nothing_is_known_both_are_quic_clients_and_the_tcp_initiator_takes_both_parts() {
    let message = stock(&[QUIC, TCP]);
    let dial = |address: &str, how| (address.to_owned(), how);
    assert_eq!(
        Bench::new(Role::Responder).dials(&message),
        [dial(QUIC, As::Client), dial(TCP, As::Client)]
    );
    assert_eq!(
        Bench::new(Role::Initiator).dials(&message),
        [
            dial(QUIC, As::Client),
            dial(TCP, As::Server),
            dial(TCP, As::Stranger)
        ]
    );
}

#[test]
fn the_harder_nat_begins_and_the_other_opens_itself() {
    let message = ours(NatType::RestrictedCone, &[QUIC, TCP], &[]);
    let bench = Bench::new(Role::Initiator).behind(NatType::Symmetric);
    let hows: Vec<As> = bench
        .dials(&message)
        .into_iter()
        .map(|(_, how)| how)
        .collect();
    assert_eq!(hows, [As::Client, As::Client]);
    let message = ours(NatType::Symmetric, &[QUIC, TCP], &[]);
    let mut bench = Bench::new(Role::Responder).behind(NatType::RestrictedCone);
    let hows: Vec<As> = bench
        .dials(&message)
        .into_iter()
        .map(|(_, how)| how)
        .collect();
    assert_eq!(hows, [As::Opener, As::Server]);
    // What was believed did not work: now everything.
    bench.attempt = 2;
    let hows: Vec<As> = bench
        .dials(&message)
        .into_iter()
        .map(|(_, how)| how)
        .collect();
    assert_eq!(hows, [As::Client, As::Client]);
}

#[test]
fn a_punch_that_cannot_succeed_is_not_attempted() {
    let message = ours(NatType::Symmetric, &[QUIC, TCP], &[]);
    let bench = Bench::new(Role::Initiator).behind(NatType::Symmetric);
    assert_eq!(bench.targets(&message), Err(NoPunch::BothSymmetric));
}

#[test]
fn private_addresses_are_dialled_behind_the_same_nat_and_next_to_our_own_alone() {
    let local = [
        "/ip4/10.1.0.11/udp/9100/quic-v1",
        "/ip4/10.1.0.11/tcp/9100",
        "/ip4/10.1.7.1/tcp/22",
        "/ip4/192.168.0.1/tcp/80",
        "/ip4/10.1.0.12/tcp/1",
        "/ip4/10.1.0.13/tcp/1",
        "/ip4/127.0.0.1/tcp/1",
    ];
    let bench = Bench::new(Role::Responder);
    let same = ours(NatType::Unknown, &["/ip4/203.0.113.10/tcp/7"], &local);
    let dials = bench.dials(&same);
    let private: Vec<&str> = dials
        .iter()
        .map(|(address, _)| address.as_str())
        .filter(|address| !address.contains("203.0.113"))
        .collect();
    assert_eq!(
        private,
        [local[0], local[1], local[4]],
        "near ones, at most two for each transport"
    );
    let elsewhere = ours(NatType::Unknown, &[TCP], &local);
    assert_eq!(bench.dials(&elsewhere).len(), 1);
    let offered = stock(&["/ip4/10.1.0.11/tcp/9100", "/ip4/192.168.0.1/tcp/80"]);
    assert_eq!(
        bench.dials(&offered),
        [],
        "as ordinary addresses they count for nothing"
    );
}

#[test]
fn two_symmetric_nats_are_no_obstacle_between_neighbours() {
    let message = ours(
        NatType::Symmetric,
        &["/ip4/203.0.113.10/udp/7/quic-v1"],
        &["/ip4/10.1.0.11/udp/9100/quic-v1"],
    );
    let bench = Bench::new(Role::Responder).behind(NatType::Symmetric);
    assert_eq!(
        bench.dials(&message),
        [("/ip4/10.1.0.11/udp/9100/quic-v1".to_owned(), As::Client)]
    );
}

#[test]
fn what_would_make_us_ask_or_bother_others_is_left_out() {
    let other = PeerId::random();
    let named = format!("{TCP}/p2p/{other}");
    let message = stock(&[
        "/dns4/victim.example/tcp/443",
        "/ip4/203.0.113.20/tcp/443/tls/sni/victim.example/ws",
        "/ip4/203.0.113.20/udp/53",
        "/ip4/203.0.113.20/tcp/0",
        "/ip4/127.0.0.1/tcp/9100",
        "/ip6/2001:db8::1/tcp/9100",
        "/ip4/224.0.0.1/udp/1/quic-v1",
        // Our own.
        "/ip4/203.0.113.10/udp/9100/quic-v1",
        named.as_str(),
        QUIC,
        QUIC,
    ]);
    let dials = Bench::new(Role::Responder).dials(&message);
    assert_eq!(dials, [(QUIC.to_owned(), As::Client)]);
}
