//! Dials and circuits, with the swarm's part played by the test.

use futures::{channel::oneshot, task::noop_waker_ref};
use libp2p_core::transport::PortUse;
use libp2p_swarm::behaviour::ConnectionEstablished;

use super::*;
use crate::{
    address::CircuitAddress,
    client::{Connection, LossReason},
};

type Answer = oneshot::Receiver<Result<Connection, CircuitError>>;

struct Node {
    behaviour: Behaviour,
    _transport: Transport,
    relay: PeerId,
}

fn address() -> Multiaddr {
    "/ip4/198.51.100.1/tcp/4001".parse().unwrap()
}

fn node() -> Node {
    let (transport, behaviour) = new(PeerId::random(), Config::default());
    Node {
        behaviour,
        _transport: transport,
        relay: PeerId::random(),
    }
}

impl Node {
    fn configure(&mut self) {
        let address = address().with(Protocol::P2p(self.relay));
        self.behaviour.add_relay(address).unwrap();
    }

    fn actions(&mut self) -> Vec<Action> {
        let mut cx = Context::from_waker(noop_waker_ref());
        let mut actions = Vec::new();
        while let Poll::Ready(action) = self.behaviour.poll(&mut cx) {
            actions.push(action);
        }
        actions
    }

    /// What was dialled since.
    fn dials(&mut self) -> Vec<ConnectionId> {
        self.actions()
            .into_iter()
            .filter_map(|action| match action {
                ToSwarm::Dial { opts } => Some(opts.connection_id()),
                _ => None,
            })
            .collect()
    }

    /// Why the relay gave no reservation, since.
    fn failures(&mut self) -> Vec<LossReason> {
        self.actions()
            .into_iter()
            .filter_map(|action| match action {
                ToSwarm::GenerateEvent(Event::Failed { why, .. }) => Some(why),
                _ => None,
            })
            .collect()
    }

    fn circuit(&mut self, transport: Multiaddr) -> Answer {
        let (reply, answer) = oneshot::channel();
        let address = CircuitAddress {
            relay: self.relay,
            transport,
            destination: PeerId::random(),
        };
        self.behaviour.on_dial(address, reply);
        answer
    }

    fn established(&mut self, connection_id: ConnectionId, address: Multiaddr) {
        let endpoint = ConnectedPoint::Dialer {
            address,
            role_override: Endpoint::Dialer,
            port_use: PortUse::Reuse,
        };
        self.behaviour
            .on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id: self.relay,
                connection_id,
                endpoint: &endpoint,
                failed_addresses: &[],
                other_established: 0,
            }));
    }
}

#[test]
fn a_dial_that_fails_beside_another_decides_nothing() {
    let mut node = node();
    node.configure();
    let first = node.dials();
    // Another way to the same relay, for a circuit.
    let elsewhere: Multiaddr = "/ip4/198.51.100.2/tcp/1".parse().unwrap();
    let mut answer = node.circuit(elsewhere);
    let second = node.dials();
    assert_eq!((first.len(), second.len()), (1, 1));
    node.behaviour.on_dial_failed(first[0]);
    assert!(node.failures().is_empty());
    assert!(matches!(answer.try_recv(), Ok(None)), "it still waits");
    node.behaviour.on_dial_failed(second[0]);
    assert_eq!(node.failures(), [LossReason::Unreachable]);
    assert!(matches!(
        answer.try_recv(),
        Ok(Some(Err(CircuitError::Unreachable)))
    ));
}

#[test]
fn a_circuit_waits_for_the_dial_that_is_under_way() {
    let mut node = node();
    node.configure();
    let dials = node.dials();
    let answers = [node.circuit(address()), node.circuit(Multiaddr::empty())];
    assert!(node.dials().is_empty());
    node.established(dials[0], address());
    let opened = node.actions().into_iter().filter(|action| {
        matches!(
            action,
            ToSwarm::NotifyHandler {
                event: Either::Left(Command::Connect { .. }),
                ..
            }
        )
    });
    assert_eq!(opened.count(), 2);
    drop(answers);
}

#[test]
fn circuits_do_not_wait_for_a_relay_that_was_reached_through_another_one() {
    let mut node = node();
    let mut answer = node.circuit(address());
    let dials = node.dials();
    let around = address()
        .with(Protocol::P2p(PeerId::random()))
        .with(Protocol::P2pCircuit)
        .with(Protocol::P2p(node.relay));
    node.established(dials[0], around);
    assert!(matches!(
        answer.try_recv(),
        Ok(Some(Err(CircuitError::Unreachable)))
    ));
    let _answer = node.circuit(address());
    assert_eq!(node.dials().len(), 1, "the next one dials again");
}

#[test]
fn whoever_gave_up_takes_no_place_and_no_circuit() {
    let mut node = node();
    for _ in 0..1000 {
        drop(node.circuit(address()));
    }
    let mut answer = node.circuit(address());
    assert!(matches!(answer.try_recv(), Ok(None)));
    let dials = node.dials();
    assert_eq!(dials.len(), 1);
    drop(node.circuit(address()));
    node.established(dials[0], address());
    let opened = node.actions().into_iter().filter(|action| {
        matches!(
            action,
            ToSwarm::NotifyHandler {
                event: Either::Left(Command::Connect { .. }),
                ..
            }
        )
    });
    assert_eq!(opened.count(), 1);
}

#[test]
fn a_host_that_wakes_up_finds_out_within_a_second_and_asks_every_relay_again() {
    let mut node = node();
    node.configure();
    let dial = node.dials()[0];
    node.established(dial, address());
    let reserves = |node: &mut Node| {
        let asks = |action: &Action| {
            matches!(
                action,
                ToSwarm::NotifyHandler {
                    event: Either::Left(Command::Reserve),
                    ..
                }
            )
        };
        node.actions().iter().filter(|action| asks(action)).count()
    };
    assert_eq!(reserves(&mut node), 1);
    let grant = crate::core::auto_relay::Grant {
        limit: None,
        lifetime: Duration::from_secs(3600),
        addresses: Vec::new(),
    };
    let relay = node.relay;
    node.behaviour
        .on_report(relay, dial, Report::Granted(grant));
    assert_eq!(reserves(&mut node), 0);
    let (clock, wall) = node.behaviour.clocks;
    let (due, _) = node.behaviour.timer.as_ref().unwrap();
    assert!(*due <= clock + CLOCK_CHECK, "it would not notice for long");
    // One second ago by one clock, one hour ago by the other.
    let hour = Duration::from_secs(3600);
    node.behaviour.clocks = (clock - CLOCK_CHECK, wall - hour);
    assert_eq!(reserves(&mut node), 1);
    // It slept once.
    assert_eq!(reserves(&mut node), 0);
}

#[test]
fn a_node_is_no_relay_of_its_own() {
    let mut node = node();
    let itself = address().with(Protocol::P2p(node.behaviour.local));
    assert!(matches!(
        node.behaviour.add_relay(itself),
        Err(InvalidRelayAddress::Itself { .. })
    ));
    assert_eq!(node.dials(), []);
}
