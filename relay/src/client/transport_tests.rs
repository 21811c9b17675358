use futures::task::noop_waker_ref;
use libp2p_core::Transport as _;

use super::*;

fn events(transport: &mut Transport) -> Vec<TransportEvent<Upgrade, TransportError>> {
    let mut cx = Context::from_waker(noop_waker_ref());
    let mut events = Vec::new();
    while let Poll::Ready(event) = Pin::new(&mut *transport).poll(&mut cx) {
        events.push(event);
    }
    events
}

fn news(transport: &mut Transport) -> Vec<ListenerId> {
    events(transport)
        .into_iter()
        .filter_map(|event| match event {
            TransportEvent::NewAddress { listener_id, .. } => Some(listener_id),
            _ => None,
        })
        .collect()
}

fn relay() -> (PeerId, Multiaddr) {
    let relay = PeerId::random();
    let at: Multiaddr = "/ip4/198.51.100.1/tcp/4001".parse().unwrap();
    let at = at.with(Protocol::P2p(relay)).with(Protocol::P2pCircuit);
    (relay, at)
}

#[test]
fn every_listener_on_a_relay_has_its_addresses_and_keeps_them_when_another_ends() {
    let (mut transport, mut requests, mut notices) = Transport::new();
    let (relay, address) = relay();
    let ids = [ListenerId::next(), ListenerId::next()];
    for id in ids {
        transport.listen_on(id, address.clone()).unwrap();
    }
    notices
        .try_send(Notice::Announce {
            relay,
            address: address.clone(),
        })
        .unwrap();
    assert_eq!(news(&mut transport), ids);
    let third = ListenerId::next();
    transport.listen_on(third, address.clone()).unwrap();
    assert_eq!(news(&mut transport), [third], "once");
    assert!(transport.remove_listener(ids[0]));
    // The swarm takes the address back with the listener: the others tell it again, after that.
    let after = events(&mut transport);
    assert!(
        matches!(after[0], TransportEvent::ListenerClosed { listener_id, .. } if listener_id == ids[0])
    );
    assert_eq!(after.len(), 3);
    // Whoever is left keeps the reservation.
    let asked = |request: &Request| matches!(request, Request::Listen(..));
    for _ in 0..3 {
        assert!(asked(&requests.try_recv().unwrap()));
    }
    assert!(requests.try_recv().is_err());
    for id in [ids[1], third] {
        assert!(transport.remove_listener(id));
    }
    events(&mut transport);
    assert!(matches!(requests.try_recv(), Ok(Request::Unlisten(of)) if of == relay));
}

#[test]
fn however_many_listeners_end_at_once_the_behaviour_hears_of_every_relay() {
    let (mut transport, mut requests, _notices) = Transport::new();
    let count = 2 * MAX_REQUESTS;
    let mut listeners = Vec::new();
    for _ in 0..count {
        let id = ListenerId::next();
        transport.listen_on(id, relay().1).unwrap();
        listeners.push(id);
        assert!(matches!(requests.try_recv(), Ok(Request::Listen(..))));
    }
    let (again, at) = relay();
    let kept = [ListenerId::next(), ListenerId::next()];
    transport.listen_on(kept[0], at.clone()).unwrap();
    assert!(matches!(requests.try_recv(), Ok(Request::Listen(..))));
    listeners.push(kept[0]);
    for id in listeners {
        assert!(transport.remove_listener(id));
    }
    // Somebody listens there again before anybody heard that it had ended.
    transport.listen_on(kept[1], at).unwrap();
    let mut ended = 0;
    loop {
        events(&mut transport);
        let Ok(request) = requests.try_recv() else {
            break;
        };
        match request {
            Request::Unlisten(relay) => {
                assert_ne!(relay, again);
                ended += 1;
            }
            Request::Listen(..) => {}
            Request::Dial { .. } => panic!("nobody dials"),
        }
    }
    assert_eq!(ended, count);
}

#[test]
fn a_listener_that_is_refused_says_so_and_ends() {
    let (mut transport, _requests, mut notices) = Transport::new();
    let (_, address) = relay();
    let id = ListenerId::next();
    transport.listen_on(id, address).unwrap();
    let error = InvalidRelayAddress::TooMany { max: 1 };
    let refused = Notice::Refused {
        listener: id,
        error: error.clone(),
    };
    notices.try_send(refused).unwrap();
    let told = events(&mut transport);
    let expected = TransportError::Address(error);
    assert!(matches!(
        &told[..],
        [
            TransportEvent::ListenerError { error, .. },
            TransportEvent::ListenerClosed { reason: Err(why), .. }
        ] if *error == expected && *why == expected
    ));
    assert!(!transport.remove_listener(id), "it is gone");
}
