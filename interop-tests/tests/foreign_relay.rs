//! Circuit Relay v2 with others in every role: the relay, who reserves, who calls.
#![cfg(feature = "foreign")]

use anypath_interop_tests::peers::{
    Cells, Error, Implementation, Node, NodeSettings, Peer, RelayLimits, Settings, Transport,
};
use anypath_relay::{CircuitLimit, server};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use std::time::Duration;

/// What passes a circuit of the reference limits (128 KiB each way), with all that else goes over it.
const FITS: u64 = 64 << 10;
/// What does not.
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

/// What an implementation does not tell, so that it cannot be compared.
#[derive(Clone, Copy)]
struct Telling {
    /// The limits of the reservation.
    limits: bool,
    /// The voucher.
    voucher: bool,
}

async fn we_relay(
    implementation: Implementation,
    transport: Transport,
    test: &'static str,
    tells: Telling,
) -> Result<(), Error> {
    let column = format!("{} {}", implementation.name(), transport.name());
    let mut cells = Cells::new("Relay", column, test);
    let relay = relay(transport, 2).await?;
    let mut destination = foreign(implementation, transport).await?;

    cells
        .works("we relay: they reserve", async {
            let reservation = destination.reserve(relay.address()).await?;
            if tells.limits {
                ensure("120 s", reservation.limit_seconds == 120)?;
                ensure("128 KiB", reservation.limit_bytes == 128 << 10)?;
            }
            let hour = Duration::from_secs(3590).as_secs()..=3600;
            ensure("an hour", hour.contains(&reservation.expires_seconds))?;
            if tells.voucher {
                let voucher = reservation.voucher;
                let names = voucher.map(|voucher| (voucher.relay, voucher.peer));
                let expected = (relay.id(), destination.id());
                ensure("the voucher's names", names == Some(expected))?;
            }
            Ok(())
        })
        .await;
    cells
        .works("we relay: they renew", async {
            destination.reserve(relay.address()).await.map(drop)
        })
        .await;

    let mut source = client(transport).await?;
    cells
        .works("we relay: we reach them and ping over the circuit", async {
            let (peer, circuit) = source
                .dial(through(relay.address(), destination.id()))
                .await?;
            source.ping(circuit).await?;
            source.identified(peer).await?;
            destination.ping(source.id()).await?;
            let seen = destination.connections(source.id()).await?;
            ensure("a limited connection", seen.iter().all(|c| c.limited))
        })
        .await;
    cells
        .works(
            "we relay: the limit lets 64 KiB through, and ends the circuit at 256 KiB",
            async {
                source.echo(destination.id(), FITS as usize).await?;
                ensure(
                    "an end",
                    source
                        .echo(destination.id(), TOO_MUCH as usize)
                        .await
                        .is_err(),
                )
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
                caller.echo(destination.id(), FITS).await
            },
        )
        .await;

    let mut ours = client(transport).await?;
    cells
        .works("we relay: they reach us and ping over the circuit", async {
            let (at, _) = ours.reserve(relay.address().clone()).await?;
            let mut caller = foreign(implementation, transport).await?;
            caller.dial(&at).await?;
            caller.ping(ours.id()).await?;
            let circuit = ours.dialled_by(caller.id()).await?;
            ours.ping(circuit).await?;
            caller.echo(ours.id(), FITS).await
        })
        .await;
    cells
        .works(
            "we relay: full, they are refused, and renew what they have",
            async {
                refused(
                    foreign(implementation, transport)
                        .await?
                        .reserve(relay.address())
                        .await,
                    "RESERVATION_REFUSED",
                )?;
                destination.reserve(relay.address()).await.map(drop)
            },
        )
        .await;
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

async fn they_relay(
    implementation: Implementation,
    transport: Transport,
    test: &'static str,
) -> Result<(), Error> {
    let column = format!("{} {}", implementation.name(), transport.name());
    let mut cells = Cells::new("Relay", column, test);
    let relay = Peer::start(
        implementation,
        &Settings {
            listen: vec![transport.loopback()],
            relay: Some(RelayLimits {
                max_reservations: 2,
                ..RelayLimits::default()
            }),
            ..Settings::default()
        },
    )
    .await?;
    let at = relay.address()?;
    let mut destination = client(transport).await?;
    let mut reached_at = Multiaddr::empty();
    cells
        .works("they relay: we reserve", async {
            let (address, limit) = destination.reserve(at.clone()).await?;
            reached_at = address;
            ensure(
                "the reference limits",
                limit == Some(CircuitLimit::REFERENCE),
            )
        })
        .await;
    cells
        .works("they relay: we reach us and ping over the circuit", async {
            let mut source = client(transport).await?;
            let (_, circuit) = source.dial(reached_at.clone()).await?;
            source.ping(circuit).await?;
            source.echo(destination.id(), FITS as usize).await
        })
        .await;
    cells
        .works(
            "they relay: they reach us and ping over the circuit",
            async {
                let mut source = foreign(implementation, transport).await?;
                source.dial(&reached_at).await?;
                source.ping(destination.id()).await?;
                source.echo(destination.id(), FITS).await?;
                ensure(
                    "an end",
                    source.echo(destination.id(), TOO_MUCH).await.is_err(),
                )
            },
        )
        .await;
    cells
        .works(
            "they relay: we reach them and ping over the circuit",
            async {
                let mut reserved = foreign(implementation, transport).await?;
                reserved.reserve(&at).await?;
                let mut source = client(transport).await?;
                let (_, circuit) = source.dial(through(&at, reserved.id())).await?;
                source.ping(circuit).await?;
                source.echo(reserved.id(), FITS as usize).await?;
                // It goes before the next cell fills the relay again.
                let mut full = client(transport).await?;
                refused(full.reserve(at.clone()).await, "refused")
            },
        )
        .await;
    cells
        .works("they relay: a call to nobody is refused", async {
            let nobody = client(transport).await?.id();
            let mut source = client(transport).await?;
            refused(source.dial(through(&at, nobody)).await, "reservation")
        })
        .await;
    cells.finish()
}

const GO: Telling = Telling {
    limits: true,
    voucher: true,
};

#[tokio::test]
async fn we_relay_for_go_over_tcp() -> Result<(), Error> {
    we_relay(Implementation::Go, Transport::Tcp, "relay-go-tcp-ours", GO).await
}

#[tokio::test]
async fn we_relay_for_go_over_quic() -> Result<(), Error> {
    we_relay(
        Implementation::Go,
        Transport::Quic,
        "relay-go-quic-ours",
        GO,
    )
    .await
}

#[tokio::test]
async fn go_relays_for_us_over_tcp() -> Result<(), Error> {
    they_relay(Implementation::Go, Transport::Tcp, "relay-go-tcp-theirs").await
}

#[tokio::test]
async fn go_relays_for_us_over_quic() -> Result<(), Error> {
    they_relay(Implementation::Go, Transport::Quic, "relay-go-quic-theirs").await
}

/// Its client checks the voucher and does not tell; it renews when the end is near, not when it is told to.
const JS: Telling = Telling {
    limits: true,
    voucher: false,
};

#[tokio::test]
async fn we_relay_for_js_over_tcp() -> Result<(), Error> {
    we_relay(Implementation::Js, Transport::Tcp, "relay-js-tcp-ours", JS).await
}

#[tokio::test]
async fn we_relay_for_js_over_quic() -> Result<(), Error> {
    we_relay(
        Implementation::Js,
        Transport::Quic,
        "relay-js-quic-ours",
        JS,
    )
    .await
}

#[tokio::test]
async fn js_relays_for_us_over_tcp() -> Result<(), Error> {
    they_relay(Implementation::Js, Transport::Tcp, "relay-js-tcp-theirs").await
}

#[tokio::test]
async fn js_relays_for_us_over_quic() -> Result<(), Error> {
    they_relay(Implementation::Js, Transport::Quic, "relay-js-quic-theirs").await
}
