//! Circuit Relay v2 with others in every role: the relay, who reserves, who calls.
#![cfg(feature = "foreign")]
#![expect(
    clippy::disallowed_methods,
    reason = "reservations end by the wall clock"
)]

use anypath_interop_tests::peers::{
    Cells, Error, Implementation, Node, NodeSettings, PY_STOPS, Peer, RelayLimits, Settings,
    Stopping, Transport,
};
use anypath_relay::{CircuitLimit, HOP_PROTOCOL_NAME, server};
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

/// Passes any circuit of the reference limits (128 KiB each way), with all that else goes over it.
const SMALL: u64 = 16 << 10;
/// Passes if the limit is each way's own, as the specification says; there and back it is more than 128 KiB with what else goes over it.
const HALF: u64 = 64 << 10;
/// Passes in no case.
const TOO_MUCH: u64 = 256 << 10;

async fn foreign(implementation: Implementation, transport: Transport) -> Result<Peer, Error> {
    let settings = Settings {
        listen: vec![transport.loopback()],
        ..Settings::default()
    };
    Peer::start(implementation, &settings).await
}

async fn client(transport: Transport) -> Result<Node, Error> {
    Node::start(transport, NodeSettings::default()).await
}

/// A relay of ours with the specification's limits, and room for so many.
async fn relay(transport: Transport, reservations: usize) -> Result<Node, Error> {
    let config = server::Config::builder()
        .max_reservations(reservations)
        .build()
        .map_err(|error| Error::Wrong(error.to_string()))?;
    let settings = NodeSettings {
        relay: Some(config),
        ..NodeSettings::default()
    };
    Node::start(transport, settings).await
}

fn through(relay: &Multiaddr, to: libp2p::PeerId) -> Multiaddr {
    relay
        .clone()
        .with(Protocol::P2pCircuit)
        .with(Protocol::P2p(to))
}

fn ensure(what: &str, holds: bool) -> Result<(), Error> {
    if holds {
        Ok(())
    } else {
        Err(Error::Wrong(what.to_owned()))
    }
}

/// The error of what has to be refused.
fn refused<T>(result: Result<T, Error>, because: &str) -> Result<(), Error> {
    match result {
        Ok(_) => Err(Error::Wrong(format!("granted, not {because}"))),
        Err(error) if error.to_string().contains(because) => Ok(()),
        Err(error) => Err(Error::Wrong(format!("{error}, not {because}"))),
    }
}

/// Whether an implementation's client tells what it was granted, and renews when it is told to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    Tells,
    /// py: it renews, but tells no limits, no voucher and no reason of a refusal.
    Terse,
    /// js: it checks nothing of it, and renews when ten minutes are left.
    Silent,
}

async fn we_relay(
    implementation: Implementation,
    transport: Transport,
    test: &'static str,
    client_is: Client,
) -> Result<(), Error> {
    let column = format!("{} {}", implementation.name(), transport.name());
    let mut cells = Cells::new("Relay", column, test);
    let relay = relay(transport, 2).await?;
    let mut destination = foreign(implementation, transport).await?;

    cells
        .works("we relay: they reserve", async {
            let reservation = destination.reserve(relay.address()).await?;
            let hour = Duration::from_secs(3590).as_secs()..=3600;
            ensure("an hour", hour.contains(&reservation.expires_seconds))?;
            if client_is == Client::Tells {
                ensure("120 s", reservation.limit_seconds == 120)?;
                ensure("128 KiB", reservation.limit_bytes == 128 << 10)?;
                let voucher = reservation.voucher;
                let names = voucher.map(|voucher| (voucher.relay, voucher.peer));
                let expected = (relay.id(), destination.id());
                ensure("the voucher's names", names == Some(expected))?;
            }
            Ok(())
        })
        .await;
    const RENEWS: &str = "we relay: they renew";
    match client_is {
        Client::Tells | Client::Terse => {
            cells
                .works(RENEWS, async {
                    destination.reserve(relay.address()).await.map(drop)
                })
                .await;
        }
        Client::Silent => cells.unsupported(RENEWS, SILENT),
    }

    let mut source = client(transport).await?;
    cells
        .works("we relay: we reach them and ping over the circuit", async {
            let (peer, circuit) = source
                .dial(through(relay.address(), destination.id()))
                .await?;
            source.ping(circuit).await?;
            source.identified(peer).await?;
            destination.identify(source.id()).await?;
            // Now: js makes a direct connection as soon as it wants a stream.
            let seen = destination.connections(source.id()).await?;
            ensure("a limited connection", seen.iter().all(|c| c.limited))?;
            destination.ping(source.id()).await.map(drop)
        })
        .await;
    cells
        .works(
            "we relay: 64 KiB there and back fit the limit, 256 KiB end the circuit",
            async {
                let mut source = client(transport).await?;
                let to = through(relay.address(), destination.id());
                source.dial(to.clone()).await?;
                source.echo(destination.id(), HALF as usize).await?;
                let too_much = source.echo(destination.id(), TOO_MUCH as usize).await;
                ensure("an end", too_much.is_err())
            },
        )
        .await;

    let mut caller = foreign(implementation, transport).await?;
    cells
        .works(
            "we relay: they reach them and ping over the circuit",
            async {
                caller
                    .dial(&through(relay.address(), destination.id()))
                    .await?;
                caller.ping(destination.id()).await?;
                caller.echo(destination.id(), SMALL).await
            },
        )
        .await;

    let mut ours = client(transport).await?;
    cells
        .works(
            REACH_US,
            they_reach(&mut ours, &relay, implementation, transport),
        )
        .await;
    cells
        .works("we relay: full, they are refused", async {
            let mut newcomer = foreign(implementation, transport).await?;
            let because = match client_is {
                Client::Tells | Client::Silent => "RESERVATION_REFUSED",
                Client::Terse => "refused",
            };
            refused(newcomer.reserve(relay.address()).await, because)
        })
        .await;
    const FULL: &str = "we relay: full, they renew what they have";
    match client_is {
        Client::Tells | Client::Terse => {
            cells
                .works(FULL, async {
                    destination.reserve(relay.address()).await.map(drop)
                })
                .await;
        }
        Client::Silent => cells.unsupported(FULL, SILENT),
    }
    cells
        .works("we relay: a call to nobody is refused", async {
            let nobody = client(transport).await?.id();
            refused(
                caller.dial(&through(relay.address(), nobody)).await,
                "NO_RESERVATION",
            )
        })
        .await;
    cells.finish()
}

const BY_CHANCE: &str =
    "py-libp2p loses our relay's answer over QUIC by chance, for the reason of \"they reserve\"";

/// Our relay for py-libp2p over QUIC: it calls, and what needs an answer on a stream that ends with it is lost by chance.
async fn we_relay_for_callers(test: &'static str) -> Result<(), Error> {
    let (implementation, transport) = (Implementation::Py, Transport::Quic);
    let column = format!("{} {}", implementation.name(), transport.name());
    let mut cells = Cells::new("Relay", column, test);
    let reserves = they_reserve_after_stop_sending().await?;
    cells
        .defect("we relay: they reserve", PY_STOPS, async {
            ensure("a reservation", reserves)
        })
        .await;
    for cell in [
        "we relay: they renew",
        "we relay: we reach them and ping over the circuit",
        "we relay: 64 KiB there and back fit the limit, 256 KiB end the circuit",
        "we relay: they reach them and ping over the circuit",
    ] {
        cells.unsupported(cell, BY_CHANCE);
    }
    let relay = relay(transport, 2).await?;
    let mut ours = client(transport).await?;
    cells
        .works(
            REACH_US,
            they_reach(&mut ours, &relay, implementation, transport),
        )
        .await;
    for cell in [
        "we relay: full, they are refused",
        "we relay: full, they renew what they have",
        "we relay: a call to nobody is refused",
    ] {
        cells.unsupported(cell, BY_CHANCE);
    }
    cells.finish()
}

const REACH_US: &str = "we relay: they reach us and ping over the circuit";

async fn they_reach(
    ours: &mut Node,
    relay: &Node,
    implementation: Implementation,
    transport: Transport,
) -> Result<(), Error> {
    let (at, _) = ours.reserve(relay.address().clone()).await?;
    let mut caller = foreign(implementation, transport).await?;
    caller.dial(&at).await?;
    caller.ping(ours.id()).await?;
    let circuit = ours.dialled_by(caller.id()).await?;
    ours.ping(circuit).await?;
    caller.echo(ours.id(), SMALL).await
}

/// What a relay answers to `RESERVE`: a status of OK and when the reservation ends.
fn granted() -> Result<Vec<u8>, Error> {
    let hour = SystemTime::now() + Duration::from_secs(3600);
    let expires = hour
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|error| Error::Other(error.into()))?;
    let mut varint = Vec::new();
    let mut rest = expires.as_secs();
    while rest >= 0x80 {
        varint.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    varint.push(rest as u8);
    let length = varint.len() as u8;
    let mut message = vec![length + 7, 0x08, 2, 0x1a, length + 1, 0x08];
    message.extend(varint);
    message.extend([0x28, 100]);
    Ok(message)
}

/// Whether a relay's answer reaches them when STOP_SENDING has come before it. Without it, the same answer does.
async fn they_reserve_after_stop_sending() -> Result<bool, Error> {
    let mut peer = foreign(Implementation::Py, Transport::Quic).await?;
    for stops in [false, true] {
        let key = Keypair::generate_ed25519();
        let ours = Stopping::start(&key, HOP_PROTOCOL_NAME, granted()?, stops)?;
        let reserved = peer.reserve(&ours.address()?).await;
        ours.arrived().await?;
        match reserved {
            Ok(reservation) => ensure("an hour", reservation.expires_seconds > 3500)?,
            Err(error) if stops => {
                println!("STOP_SENDING before the answer: {error}");
                let told = error.to_string();
                let lost = ["QUICStreamClosedError", "does not tell why"];
                ensure("a lost answer", lost.iter().any(|why| told.contains(why)))?;
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// What a relay does against the specification.
#[derive(Clone, Copy)]
struct Defects {
    announced: Option<&'static str>,
    counted: Option<&'static str>,
    /// It takes bytes of circuits for requests.
    circuits_are_read: Option<&'static str>,
    /// It ends one circuit to a peer for another.
    circuits_are_one: Option<&'static str>,
    /// What it says to one reservation too many.
    refusal: &'static str,
}

async fn attempt(
    cells: &mut Cells,
    name: &str,
    defect: Option<&str>,
    attempt: impl Future<Output = Result<(), Error>>,
) {
    match defect {
        None => cells.works(name, attempt).await,
        Some(why) => cells.defect(name, why, attempt).await,
    }
}

async fn relay_of_theirs(
    implementation: Implementation,
    transport: Transport,
    limits: RelayLimits,
) -> Result<(Peer, Multiaddr), Error> {
    let settings = Settings {
        listen: vec![transport.loopback()],
        relay: Some(limits),
        ..Settings::default()
    };
    let relay = Peer::start(implementation, &settings).await?;
    let at = relay.address()?;
    Ok((relay, at))
}

/// One of us with a reservation at a relay, and the address over which others reach it.
async fn reserved(transport: Transport, relay: &Multiaddr) -> Result<(Node, Multiaddr), Error> {
    let mut node = client(transport).await?;
    let (reached_at, _) = node.reserve(relay.clone()).await?;
    Ok((node, reached_at))
}

async fn they_relay(
    implementation: Implementation,
    transport: Transport,
    test: &'static str,
    defects: Defects,
) -> Result<(), Error> {
    let column = format!("{} {}", implementation.name(), transport.name());
    let mut cells = Cells::new("Relay", column, test);
    let limits = RelayLimits::default();
    let (_relay, at) = relay_of_theirs(implementation, transport, limits).await?;
    let mut destination = client(transport).await?;
    let mut announced = None;
    cells
        .works("they relay: we reserve", async {
            (_, announced) = destination.reserve(at.clone()).await?;
            Ok(())
        })
        .await;
    attempt(
        &mut cells,
        "they relay: they announce the limits that they have",
        defects.announced,
        async {
            let reference = Some(CircuitLimit::REFERENCE);
            ensure("the reference limits", announced == reference)
        },
    )
    .await;
    let mut source = client(transport).await?;
    let asked = asks_over_a_circuit(&mut source, transport, &at, destination.id()).await?;
    attempt(
        &mut cells,
        "they relay: what comes over a circuit is no request to them",
        defects.circuits_are_read,
        async { ensure("no reservation", !asked) },
    )
    .await;
    attempt(
        &mut cells,
        "they relay: a circuit stays when another one to the same peer ends",
        defects.circuits_are_one,
        stays_when_another_ends(transport, &at),
    )
    .await;
    let mut theirs = foreign(implementation, transport).await?;
    let mut source = client(transport).await?;
    cells
        .works("they relay: we reach them", async {
            theirs.reserve(&at).await?;
            let (_, circuit) = source.dial(through(&at, theirs.id())).await?;
            source.ping(circuit).await.map(drop)
        })
        .await;
    cells
        .works(
            "they relay: 16 KiB there and back from us to them",
            source.echo(theirs.id(), SMALL as usize),
        )
        .await;
    cells
        .works("they relay: full, we are refused", async {
            let one = RelayLimits {
                max_reservations: 1,
                ..limits
            };
            let (_relay, at) = relay_of_theirs(implementation, transport, one).await?;
            let _only = reserved(transport, &at).await?;
            let mut newcomer = client(transport).await?;
            refused(newcomer.reserve(at).await, defects.refusal)
        })
        .await;
    cells
        .works("they relay: a call to nobody is refused", async {
            let nobody = client(transport).await?.id();
            let mut source = client(transport).await?;
            refused(source.dial(through(&at, nobody)).await, "reservation")
        })
        .await;
    // Each reaches one whom nobody else has reached: py's relay lets no more than one circuit to a peer live.
    cells
        .works("they relay: one of us reaches another", async {
            let (destination, reached_at) = reserved(transport, &at).await?;
            let mut source = client(transport).await?;
            let (_, circuit) = source.dial(reached_at).await?;
            source.ping(circuit).await?;
            source.echo(destination.id(), SMALL as usize).await
        })
        .await;
    cells
        .works("they relay: they reach us", async {
            let (destination, reached_at) = reserved(transport, &at).await?;
            let mut source = foreign(implementation, transport).await?;
            source.dial(&reached_at).await?;
            source.ping(destination.id()).await?;
            source.echo(destination.id(), SMALL).await
        })
        .await;
    attempt(
        &mut cells,
        "they relay: 64 KiB there and back fit the limit",
        defects.counted,
        async {
            let (destination, reached_at) = reserved(transport, &at).await?;
            let mut source = client(transport).await?;
            source.dial(reached_at).await?;
            source.echo(destination.id(), HALF as usize).await
        },
    )
    .await;
    cells
        .works("they relay: 256 KiB end the circuit", async {
            let (destination, reached_at) = reserved(transport, &at).await?;
            let mut source = client(transport).await?;
            source.dial(reached_at).await?;
            let too_much = source.echo(destination.id(), TOO_MUCH as usize).await;
            ensure("an end", too_much.is_err())
        })
        .await;
    cells.finish()
}

/// How many pings, of one a second, show that a circuit stays: py closes the other one after 0.6 s (three attempts to read of an end).
const STAYS: usize = 4;

/// Two circuits to one peer, one of which it ends.
async fn stays_when_another_ends(transport: Transport, relay: &Multiaddr) -> Result<(), Error> {
    let (destination, reached_at) = reserved(transport, relay).await?;
    let (mut leaves, mut stays) = (client(transport).await?, client(transport).await?);
    let (_, ends) = leaves.dial(reached_at.clone()).await?;
    let (_, lives) = stays.dial(reached_at).await?;
    let left = leaves.id();
    destination
        .with(move |swarm| swarm.disconnect_peer_id(left))
        .await?
        .map_err(|()| Error::Wrong("the circuit is gone".to_owned()))?;
    tokio::select! {
        ended = leaves.closed(ends) => ended?,
        ended = stays.closed(lives) => {
            ended?;
            return Err(Error::Wrong("the other circuit ended".to_owned()));
        }
    }
    for _ in 0..STAYS {
        stays.ping(lives).await?;
    }
    stays.echo(destination.id(), SMALL as usize).await
}

/// A `RESERVE` of the hop protocol: its fields are all at their defaults, so that it is empty, and one byte with its length.
const RESERVE: [u8; 1] = [0];

/// How many bytes a relay may take for the end of a circuit before one is left for what it does next.
const BYTES: usize = 5;

/// "at this point the original `hop` stream becomes the relayed connection" (circuit-v2, Connection Initiation): what comes over it is never
/// a request again. `source` opens a circuit, waits until the destination has ended it, and sends bytes that would be requests for
/// reservations. Returns whether it holds one then: another peer calls it.
async fn asks_over_a_circuit(
    source: &mut Node,
    transport: Transport,
    relay: &Multiaddr,
    destination: PeerId,
) -> Result<bool, Error> {
    let (relay_id, _) = source.dial(relay.clone()).await?;
    let mut control = source
        .with(|swarm| swarm.behaviour().streams.new_control())
        .await?;
    let mut circuit = control
        .open_stream(relay_id, HOP_PROTOCOL_NAME)
        .await
        .map_err(|error| Error::Wrong(error.to_string()))?;
    let name = destination.to_bytes();
    let mut connect = vec![0x08, 1, 0x12, name.len() as u8 + 2, 0x0a, name.len() as u8];
    connect.extend(name);
    connect.insert(0, connect.len() as u8);
    circuit.write_all(&connect).await?;
    circuit.flush().await?;
    let mut length = [0];
    circuit.read_exact(&mut length).await?;
    let [length] = length;
    let mut answer = vec![0; length.into()];
    circuit.read_exact(&mut answer).await?;
    ensure(
        "the status OK",
        answer.windows(2).any(|two| two == [0x28, 100]),
    )?;
    // The destination cannot make a connection of this.
    circuit.write_all(b"\xff\xff\xff\xff\xff").await?;
    circuit.flush().await?;
    let mut rest = Vec::new();
    let _its_end = timeout(Duration::from_secs(10), circuit.read_to_end(&mut rest))
        .await
        .map_err(|_| Error::Wrong("the circuit does not end".to_owned()))?;
    let mut caller = client(transport).await?;
    for _ in 0..BYTES {
        let more = async {
            circuit.write_all(&RESERVE).await?;
            circuit.flush().await
        };
        let ended = more.await.is_err();
        let called = caller.dial(through(relay, source.id())).await;
        // A source that holds a reservation is asked, and takes no circuits that it does not want.
        if refused(called, "reservation").is_err() {
            let called = caller.dial(through(relay, source.id())).await;
            return refused(called, "could not reach the destination").map(|()| true);
        }
        if ended {
            break;
        }
    }
    Ok(false)
}

const SILENT: &str = "js-libp2p renews by itself when ten minutes are left, and not before";

const NO_DEFECTS: Defects = Defects {
    announced: None,
    counted: None,
    circuits_are_read: None,
    circuits_are_one: None,
    refusal: "refused",
};

const JS_DEFECTS: Defects = Defects {
    announced: Some(
        "js-libp2p announces the life of a circuit in milliseconds; it is in seconds (circuit-v2, `Limit.duration`)",
    ),
    counted: Some(
        "js-libp2p counts both directions against one limit (`createLimitedRelay`); it is each direction's (circuit-v2, `Limit.data`)",
    ),
    circuits_are_read: None,
    circuits_are_one: None,
    refusal: "refused",
};

const PY_DEFECTS: Defects = Defects {
    announced: None,
    counted: Some(
        "py-libp2p counts both directions against one limit (`_relay_data`); it is each direction's (circuit-v2, `Limit.data`)",
    ),
    circuits_are_read: Some(
        "py-libp2p reads requests from the stream of a circuit that has ended (the loop of `_handle_hop_stream`); what a source still sends, its ciphertext, too, makes it hold reservations that nobody asked for, and refuse others",
    ),
    circuits_are_one: Some(
        "py-libp2p keeps one circuit for each destination (`_active_relays`), and when one ends, it closes the streams of the last one that began",
    ),
    refusal: "limits",
};

#[tokio::test]
async fn we_relay_for_go_over_tcp() -> Result<(), Error> {
    let test = "relay-go-tcp-ours";
    we_relay(Implementation::Go, Transport::Tcp, test, Client::Tells).await
}

#[tokio::test]
async fn we_relay_for_go_over_quic() -> Result<(), Error> {
    let test = "relay-go-quic-ours";
    we_relay(Implementation::Go, Transport::Quic, test, Client::Tells).await
}

#[tokio::test]
async fn go_relays_for_us_over_tcp() -> Result<(), Error> {
    let test = "relay-go-tcp-theirs";
    they_relay(Implementation::Go, Transport::Tcp, test, NO_DEFECTS).await
}

#[tokio::test]
async fn go_relays_for_us_over_quic() -> Result<(), Error> {
    let test = "relay-go-quic-theirs";
    they_relay(Implementation::Go, Transport::Quic, test, NO_DEFECTS).await
}

#[tokio::test]
async fn we_relay_for_js_over_tcp() -> Result<(), Error> {
    let test = "relay-js-tcp-ours";
    we_relay(Implementation::Js, Transport::Tcp, test, Client::Silent).await
}

#[tokio::test]
async fn we_relay_for_js_over_quic() -> Result<(), Error> {
    let test = "relay-js-quic-ours";
    we_relay(Implementation::Js, Transport::Quic, test, Client::Silent).await
}

#[tokio::test]
async fn js_relays_for_us_over_tcp() -> Result<(), Error> {
    let test = "relay-js-tcp-theirs";
    they_relay(Implementation::Js, Transport::Tcp, test, JS_DEFECTS).await
}

#[tokio::test]
async fn js_relays_for_us_over_quic() -> Result<(), Error> {
    let test = "relay-js-quic-theirs";
    they_relay(Implementation::Js, Transport::Quic, test, JS_DEFECTS).await
}

#[tokio::test]
async fn we_relay_for_py_over_tcp() -> Result<(), Error> {
    let test = "relay-py-tcp-ours";
    we_relay(Implementation::Py, Transport::Tcp, test, Client::Terse).await
}

#[tokio::test]
async fn py_relays_for_us_over_tcp() -> Result<(), Error> {
    let test = "relay-py-tcp-theirs";
    they_relay(Implementation::Py, Transport::Tcp, test, PY_DEFECTS).await
}

#[tokio::test]
async fn we_relay_for_py_over_quic() -> Result<(), Error> {
    let test = "relay-py-quic-ours";
    we_relay_for_callers(test).await
}

#[tokio::test]
async fn py_relays_for_us_over_quic() -> Result<(), Error> {
    let test = "relay-py-quic-theirs";
    let defects = Defects {
        // A QUIC stream that py-libp2p has closed brings it nothing any more.
        circuits_are_read: None,
        ..PY_DEFECTS
    };
    they_relay(Implementation::Py, Transport::Quic, test, defects).await
}
