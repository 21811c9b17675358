//! Connections both ways: each end learns who the other one is, and pings it.
#![cfg(feature = "foreign")]

use anypath_interop_tests::peers::{
    Anypath, Cells, Error, Implementation, Node, NodeSettings, PY_STOPS, Peer, Settings, Stopping,
    Transport, ends_with_a_ping,
};
use libp2p::StreamProtocol;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::ConnectionId;

async fn start(implementation: Implementation, transport: Transport) -> Result<Peer, Error> {
    let settings = Settings {
        listen: vec![transport.loopback()],
        ..Settings::default()
    };
    Peer::start(implementation, &settings).await
}

/// Who dials.
#[derive(Clone, Copy)]
enum Dialler {
    We,
    They,
}

async fn meet(
    implementation: Implementation,
    transport: Transport,
    test: &'static str,
) -> Result<(), Error> {
    let column = format!("{} {}", implementation.name(), transport.name());
    let mut cells = Cells::new("Identify and ping", column, test);
    for dialler in [Dialler::We, Dialler::They] {
        let mut peer = start(implementation, transport).await?;
        let mut node = Node::start(transport, NodeSettings::default()).await?;
        let (title, connection) = match dialler {
            Dialler::We => ("we dial", node.dial(peer.address()?).await?.1),
            Dialler::They => {
                peer.dial(node.address()).await?;
                ("they dial", node.dialled_by(peer.id()).await?)
            }
        };
        let they_identify = format!("{title}: they identify us");
        match (implementation, transport) {
            (Implementation::Py, Transport::Quic) => {
                let heard = they_hear_after_stop_sending(&mut peer, dialler).await?;
                let attempt = async { has("our answer", heard, &"what they read") };
                cells.defect(&they_identify, PY_STOPS, attempt).await;
            }
            _ => {
                let identified = they_identify_us(&mut peer, &node);
                cells.works(&they_identify, identified).await;
            }
        }
        cells
            .works(
                &format!("{title}: we identify them"),
                we_identify_them(&mut node, &peer),
            )
            .await;
        cells
            .works(&format!("{title}: pings both ways"), async {
                pings(&mut node, &mut peer, connection).await
            })
            .await;
        cells
            .works(
                &format!("{title}: 1 MiB there and back on one stream"),
                async {
                    node.echo(peer.id(), 1 << 20).await?;
                    peer.echo(node.id(), 1 << 20).await
                },
            )
            .await;
    }
    if transport == Transport::Tcp {
        let ended = ends_with_a_ping(&start(implementation, transport).await?.address()?).await?;
        let attempt = async { has("the end", ended, &"what came back") };
        match implementation {
            Implementation::Js => cells.defect(TO_THE_END, JS_ENDS, attempt).await,
            _ => cells.works(TO_THE_END, attempt).await,
        }
    }
    cells.finish()
}

const TO_THE_END: &str =
    "a stream of ours that has ended when they take it: a ping and the end come back";

const JS_ENDS: &str = "js-libp2p knows no end that came before a protocol's handler listens (`[Symbol.asyncIterator]` of `AbstractMessageStream`, @libp2p/utils 7.4.1, waits for `remoteCloseWrite` and does not look at `remoteWriteStatus`); its handler of `/ipfs/ping/1.0.0` waits for ever";

async fn they_identify_us(peer: &mut Peer, node: &Node) -> Result<(), Error> {
    let us = peer.identify(node.id()).await?;
    has("the agent", us.agent.starts_with("anypath-interop/"), &us)?;
    for protocol in ["/ipfs/bitswap/1.2.0", "/ipfs/ping/1.0.0", "/meshsub/1.1.0"] {
        has(protocol, us.protocols.iter().any(|p| p == protocol), &us)?;
    }
    let at: String = without_name(node.address()).to_string();
    has(&at, us.addresses.iter().any(|a| a.starts_with(&at)), &us)
}

const IDENTIFY: StreamProtocol = StreamProtocol::new("/ipfs/id/1.0.0");
const AGENT: &str = "anypath-interop/stopping";

/// What identify answers: the key and the agent.
fn identity(key: &Keypair) -> Result<Vec<u8>, Error> {
    let mut message = Vec::new();
    for (tag, value) in [
        (0x0a, key.public().encode_protobuf()),
        (0x32, AGENT.as_bytes().to_vec()),
    ] {
        let wrong = |error| Error::Other(Box::new(error));
        message.extend([tag, u8::try_from(value.len()).map_err(wrong)?]);
        message.extend(value);
    }
    let length = u8::try_from(message.len()).map_err(|error| Error::Other(error.into()))?;
    message.insert(0, length);
    Ok(message)
}

/// Whether identify's answer reaches them when STOP_SENDING has come before it. Without it, the same answer does.
async fn they_hear_after_stop_sending(peer: &mut Peer, dialler: Dialler) -> Result<bool, Error> {
    for stops in [false, true] {
        let key = Keypair::generate_ed25519();
        let ours = Stopping::start(&key, IDENTIFY, identity(&key)?, stops)?;
        match dialler {
            Dialler::We => ours.dial(&peer.address()?).await?,
            Dialler::They => peer.dial(&ours.address()?).await.map(drop)?,
        }
        let told = peer.identify(ours.id()).await;
        ours.arrived().await?;
        match told {
            Ok(us) => has("the agent", us.agent == AGENT, &us)?,
            Err(error) if stops => {
                println!("STOP_SENDING before the answer: {error}");
                let closed = error.to_string().contains("QUICStreamClosedError");
                has("the closed stream", closed, &error)?;
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

async fn we_identify_them(node: &mut Node, peer: &Peer) -> Result<(), Error> {
    let them = node.identified(peer.id()).await?;
    let protocols: Vec<_> = them.protocols.iter().map(AsRef::as_ref).collect();
    has("ping", protocols.contains(&"/ipfs/ping/1.0.0"), &protocols)?;
    has(
        "their key",
        them.public_key.to_peer_id() == peer.id(),
        &them,
    )?;
    let at = without_name(&peer.address()?);
    has(
        "their address",
        them.listen_addrs.iter().any(|a| without_name(a) == at),
        &them,
    )
}

async fn pings(node: &mut Node, peer: &mut Peer, connection: ConnectionId) -> Result<(), Error> {
    node.ping(connection).await?;
    peer.ping(node.id()).await?;
    Ok(())
}

fn has(what: &str, there: bool, told: &impl std::fmt::Debug) -> Result<(), Error> {
    if there {
        Ok(())
    } else {
        Err(Error::Wrong(format!("{what} is missing in {told:?}")))
    }
}

fn without_name(address: &libp2p::Multiaddr) -> libp2p::Multiaddr {
    address
        .iter()
        .filter(|part| !matches!(part, Protocol::P2p(_)))
        .collect()
}

/// The `anypath` command, whose transports are its own: negotiation in one round trip less, TLS beside Noise.
async fn meet_the_command(
    implementation: Implementation,
    transport: Transport,
    test: &'static str,
) -> Result<(), Error> {
    let column = format!("{} {}", implementation.name(), transport.name());
    let mut cells = Cells::new("Identify and ping", column, test);
    let hears = (implementation, transport) != (Implementation::Py, Transport::Quic);
    let mut peer = start(implementation, transport).await?;
    let node = Anypath::start(transport).await?;
    cells
        .works("they dial `anypath start` and ping it", async {
            peer.dial(node.address()).await?;
            peer.ping(node.id()).await?;
            Ok(())
        })
        .await;
    const IDENTIFY: &str = "they identify `anypath start`";
    if hears {
        cells
            .works(IDENTIFY, async {
                let us = peer.identify(node.id()).await?;
                has("the agent", us.agent.starts_with("anypath/"), &us)
            })
            .await;
    } else {
        cells.unsupported(IDENTIFY, "py-libp2p loses our answer over QUIC by chance, for the reason of \"they identify us\"");
    }
    let mut peer = start(implementation, transport).await?;
    cells
        .works("`anypath connect` reaches them", async {
            node.run(&["connect", &peer.address()?.to_string()]).await?;
            if hears {
                peer.identify(node.id()).await?;
            }
            peer.ping(node.id()).await?;
            Ok(())
        })
        .await;
    cells.finish()
}

#[tokio::test]
async fn we_and_go_identify_and_ping_each_other_over_tcp() -> Result<(), Error> {
    meet(Implementation::Go, Transport::Tcp, "identify-go-tcp").await
}

#[tokio::test]
async fn we_and_go_identify_and_ping_each_other_over_quic() -> Result<(), Error> {
    meet(Implementation::Go, Transport::Quic, "identify-go-quic").await
}

#[tokio::test]
async fn go_and_the_command_meet_over_tcp() -> Result<(), Error> {
    meet_the_command(
        Implementation::Go,
        Transport::Tcp,
        "identify-go-tcp-command",
    )
    .await
}

#[tokio::test]
async fn go_and_the_command_meet_over_quic() -> Result<(), Error> {
    meet_the_command(
        Implementation::Go,
        Transport::Quic,
        "identify-go-quic-command",
    )
    .await
}

#[tokio::test]
async fn we_and_js_identify_and_ping_each_other_over_tcp() -> Result<(), Error> {
    meet(Implementation::Js, Transport::Tcp, "identify-js-tcp").await
}

#[tokio::test]
async fn we_and_js_identify_and_ping_each_other_over_quic() -> Result<(), Error> {
    meet(Implementation::Js, Transport::Quic, "identify-js-quic").await
}

#[tokio::test]
async fn js_and_the_command_meet_over_tcp() -> Result<(), Error> {
    meet_the_command(
        Implementation::Js,
        Transport::Tcp,
        "identify-js-tcp-command",
    )
    .await
}

#[tokio::test]
async fn js_and_the_command_meet_over_quic() -> Result<(), Error> {
    meet_the_command(
        Implementation::Js,
        Transport::Quic,
        "identify-js-quic-command",
    )
    .await
}

#[tokio::test]
async fn we_and_go_identify_and_ping_each_other_over_websocket() -> Result<(), Error> {
    meet(Implementation::Go, Transport::WebSocket, "identify-go-ws").await
}

#[tokio::test]
async fn go_and_the_command_meet_over_websocket() -> Result<(), Error> {
    meet_the_command(
        Implementation::Go,
        Transport::WebSocket,
        "identify-go-ws-command",
    )
    .await
}

#[tokio::test]
async fn we_and_js_identify_and_ping_each_other_over_websocket() -> Result<(), Error> {
    meet(Implementation::Js, Transport::WebSocket, "identify-js-ws").await
}

#[tokio::test]
async fn js_and_the_command_meet_over_websocket() -> Result<(), Error> {
    meet_the_command(
        Implementation::Js,
        Transport::WebSocket,
        "identify-js-ws-command",
    )
    .await
}

#[tokio::test]
async fn we_and_py_identify_and_ping_each_other_over_tcp() -> Result<(), Error> {
    meet(Implementation::Py, Transport::Tcp, "identify-py-tcp").await
}

#[tokio::test]
async fn py_and_the_command_meet_over_tcp() -> Result<(), Error> {
    meet_the_command(
        Implementation::Py,
        Transport::Tcp,
        "identify-py-tcp-command",
    )
    .await
}

#[tokio::test]
async fn we_and_py_identify_and_ping_each_other_over_websocket() -> Result<(), Error> {
    meet(Implementation::Py, Transport::WebSocket, "identify-py-ws").await
}

#[tokio::test]
async fn py_and_the_command_meet_over_websocket() -> Result<(), Error> {
    meet_the_command(
        Implementation::Py,
        Transport::WebSocket,
        "identify-py-ws-command",
    )
    .await
}

#[tokio::test]
async fn we_and_go_identify_and_ping_each_other_over_webrtc() -> Result<(), Error> {
    meet(Implementation::Go, Transport::WebRtc, "identify-go-webrtc").await
}

#[tokio::test]
async fn we_and_js_identify_and_ping_each_other_over_webrtc() -> Result<(), Error> {
    meet(Implementation::Js, Transport::WebRtc, "identify-js-webrtc").await
}

#[tokio::test]
async fn we_and_py_identify_and_ping_each_other_over_quic() -> Result<(), Error> {
    meet(Implementation::Py, Transport::Quic, "identify-py-quic").await
}

#[tokio::test]
async fn py_and_the_command_meet_over_quic() -> Result<(), Error> {
    meet_the_command(
        Implementation::Py,
        Transport::Quic,
        "identify-py-quic-command",
    )
    .await
}
