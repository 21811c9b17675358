//! Kademlia both ways: provider records and values of ours and of theirs, looked up by the other.
#![cfg(feature = "foreign")]
#![expect(
    clippy::disallowed_methods,
    reason = "IPNS records end by the wall clock"
)]

use anypath_bitswap::Block;
use anypath_dht::{Event, Ipns, IpnsRecord, Mode};
use anypath_interop_tests::peers::{
    BehaviourEvent, Cells, Error, Implementation, Node, NodeSettings, Peer, Settings, Stopping,
    Transport, VALUES,
};
use cid::Cid;
use libp2p::identity::Keypair;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, sleep};

const REPLACES: &str = "js-libp2p's server takes any valid value in place of a better one (`PutValueHandler` asks no selector; kad-dht, \"Entry validation\")";

const KAD: StreamProtocol = StreamProtocol::new("/ipfs/kad/1.0.0");

fn block(name: &str) -> Cid {
    *Block::raw(name.to_owned().into_bytes()).cid()
}

async fn provide(node: &mut Node, cid: Cid) -> Result<(), Error> {
    let provided = node
        .with(move |swarm| {
            let dht = swarm.behaviour_mut().dht.as_mut();
            dht.map(|dht| dht.provide(cid))
        })
        .await?;
    node.wait("end of the announcement", |event| match event {
        SwarmEvent::Behaviour(BehaviourEvent::Dht(Event::ProvideFinished {
            ticket,
            result,
            ..
        })) if Some(*ticket) == provided => Some(
            result
                .clone()
                .map_err(|error| Error::Wrong(error.to_string())),
        ),
        _ => None,
    })
    .await?
}

async fn find(node: &mut Node, cid: Cid) -> Result<Vec<PeerId>, Error> {
    let looked_up = node
        .with(move |swarm| {
            let dht = swarm.behaviour_mut().dht.as_mut();
            dht.map(|dht| dht.find_providers(cid))
        })
        .await?;
    let mut found = Vec::new();
    loop {
        let more = node
            .wait("providers", |event| match event {
                SwarmEvent::Behaviour(BehaviourEvent::Dht(Event::ProvidersFound {
                    ticket,
                    providers,
                    ..
                })) if Some(*ticket) == looked_up => Some(Some(providers.clone())),
                SwarmEvent::Behaviour(BehaviourEvent::Dht(Event::FindProvidersFinished {
                    ticket,
                    ..
                })) if Some(*ticket) == looked_up => Some(None),
                _ => None,
            })
            .await?;
        match more {
            Some(providers) => found.extend(providers),
            None => return Ok(found),
        }
    }
}

/// As soon as a record has come: the protocol acknowledges none, so that who announces is through before it is there.
async fn find_in_time(node: &mut Node, cid: Cid) -> Result<Vec<PeerId>, Error> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = find(node, cid).await?;
        if !found.is_empty() || Instant::now() > deadline {
            return Ok(found);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn is(found: &[PeerId], provider: PeerId) -> Result<(), Error> {
    if found == [provider] {
        Ok(())
    } else {
        Err(Error::Wrong(format!("{found:?}, not {provider}")))
    }
}

/// A node that takes part as a server.
async fn server(transport: Transport) -> Result<Node, Error> {
    let settings = NodeSettings {
        dht: Some(Mode::Server),
        ..NodeSettings::default()
    };
    Node::start(transport, settings).await
}

async fn foreign(
    implementation: Implementation,
    transport: Transport,
    mode: &'static str,
) -> Result<Peer, Error> {
    let settings = Settings {
        listen: vec![transport.loopback()],
        dht: Some(mode),
        ..Settings::default()
    };
    Peer::start(implementation, &settings).await
}

async fn routed(node: &mut Node, them: PeerId) -> Result<(), Error> {
    node.wait("place in the routing table", |event| match event {
        SwarmEvent::Behaviour(BehaviourEvent::Dht(Event::PeerRouted { peer, .. }))
            if *peer == them =>
        {
            Some(())
        }
        _ => None,
    })
    .await
}

async fn provide_and_find(
    implementation: Implementation,
    transport: Transport,
    test: &'static str,
) -> Result<(), Error> {
    let column = format!("{} {}", implementation.name(), transport.name());
    let mut cells = Cells::new("Kademlia", column, test);
    let mut theirs = foreign(implementation, transport, "server").await?;
    let mut ours = server(transport).await?;
    ours.dial(theirs.address()?).await?;
    cells
        .works("a server of theirs is in our routing table", async {
            routed(&mut ours, theirs.id()).await
        })
        .await;
    cells
        .works("we provide at their server, and find it there", async {
            let cid = block("ours at theirs");
            provide(&mut ours, cid).await?;
            // Another one of ours, which knows only their server.
            let mut seeker = server(transport).await?;
            seeker.dial(theirs.address()?).await?;
            routed(&mut seeker, theirs.id()).await?;
            is(&find_in_time(&mut seeker, cid).await?, ours.id())
        })
        .await;
    cells
        .works("they provide at our server, and we find it", async {
            let cid = block("theirs at ours");
            theirs.provide(&cid).await?;
            is(&find_in_time(&mut ours, cid).await?, theirs.id())
        })
        .await;
    cells
        .works(
            "they find at our server what another of ours provides",
            async {
                let cid = block("ours at ours");
                let mut provider = server(transport).await?;
                provider.dial(ours.address().clone()).await?;
                routed(&mut provider, ours.id()).await?;
                provide(&mut provider, cid).await?;
                let deadline = Instant::now() + Duration::from_secs(10);
                let mut found = theirs.find(&cid).await?;
                while found.is_empty() && Instant::now() < deadline {
                    sleep(Duration::from_millis(50)).await;
                    found = theirs.find(&cid).await?;
                }
                is(&found, provider.id())
            },
        )
        .await;
    cells
        .works(
            "a client of theirs provides and finds at our server",
            async {
                let mut client = foreign(implementation, transport, "client").await?;
                client.dial(ours.address()).await?;
                client.identify(ours.id()).await?;
                let cid = block("a client's");
                client.provide(&cid).await?;
                is(&find_in_time(&mut ours, cid).await?, client.id())?;
                let table = ours
                    .with(|swarm| {
                        let dht = swarm.behaviour_mut().dht.as_mut();
                        dht.map(anypath_dht::Behaviour::routing_table)
                    })
                    .await?;
                let routed = table.unwrap_or_default();
                if routed.iter().any(|peer| peer.id == client.id()) {
                    return Err(Error::Wrong("a client is routed to".to_owned()));
                }
                Ok(())
            },
        )
        .await;
    cells.finish()
}

/// What is put under one key, later ones better.
struct Values {
    key: Vec<u8>,
    values: [Vec<u8>; 3],
}

/// Whether an implementation can name keys that are no text, as IPNS's are: py cannot.
fn values_for(implementation: Implementation, name: &str) -> Result<Values, Error> {
    if implementation == Implementation::Py {
        let key = format!("/{VALUES}/{name}").into_bytes();
        let values = ["1", "2", "3"].map(|value| format!("{value} {name}").into_bytes());
        return Ok(Values { key, values });
    }
    let pair = Keypair::generate_ed25519();
    let sign = |sequence| {
        let record = IpnsRecord {
            value: format!("/ipfs/{}", block(name)).into_bytes(),
            sequence,
            valid_until: SystemTime::now() + Duration::from_secs(3600),
            ttl: Duration::from_secs(60),
        };
        record
            .sign(&pair)
            .map_err(|error| Error::Wrong(error.to_string()))
    };
    Ok(Values {
        key: Ipns::key(&pair.public().to_peer_id()),
        values: [sign(1)?, sign(2)?, sign(3)?],
    })
}

async fn put(node: &mut Node, key: &[u8], value: &[u8]) -> Result<usize, Error> {
    let (key, value) = (key.to_vec(), value.to_vec());
    let put = node
        .with(move |swarm| {
            let dht = swarm.behaviour_mut().dht.as_mut();
            dht.map(|dht| dht.put_value(key, value))
        })
        .await?;
    node.wait("end of the putting", |event| match event {
        SwarmEvent::Behaviour(BehaviourEvent::Dht(Event::PutValueFinished {
            ticket,
            stored,
            result,
            ..
        })) if Some(*ticket) == put => {
            let result = result.clone().map(|()| *stored);
            Some(result.map_err(|error| Error::Wrong(error.to_string())))
        }
        _ => None,
    })
    .await?
}

async fn get(node: &mut Node, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    let key = key.to_vec();
    let asked = node
        .with(move |swarm| {
            let dht = swarm.behaviour_mut().dht.as_mut();
            dht.map(|dht| dht.get_value(key))
        })
        .await?;
    node.wait("value", |event| match event {
        SwarmEvent::Behaviour(BehaviourEvent::Dht(Event::GetValueFinished {
            ticket,
            value,
            ..
        })) if Some(*ticket) == asked => Some(value.clone()),
        _ => None,
    })
    .await
}

fn is_value(found: Option<Vec<u8>>, value: &[u8]) -> Result<(), Error> {
    if found.as_deref() == Some(value) {
        Ok(())
    } else {
        Err(Error::Wrong(format!("{found:?}, not {value:?}")))
    }
}

/// A client of ours that knows one server.
async fn client_of(
    transport: Transport,
    address: Multiaddr,
    server: PeerId,
) -> Result<Node, Error> {
    let settings = NodeSettings {
        dht: Some(Mode::Client),
        ..NodeSettings::default()
    };
    let mut client = Node::start(transport, settings).await?;
    client.dial(address).await?;
    routed(&mut client, server).await?;
    Ok(client)
}

/// A peer of theirs, connected to a server of ours alone.
async fn at_ours(
    implementation: Implementation,
    transport: Transport,
    mode: &'static str,
    ours: &Node,
) -> Result<Peer, Error> {
    let mut peer = foreign(implementation, transport, mode).await?;
    peer.dial(ours.address()).await?;
    peer.identify(ours.id()).await?;
    Ok(peer)
}

/// Servers here know nobody but their clients, so that what is found is found where it was put.
async fn put_and_get(
    implementation: Implementation,
    transport: Transport,
    test: &'static str,
) -> Result<(), Error> {
    let column = format!("{} {}", implementation.name(), transport.name());
    let mut cells = Cells::new("Kademlia", column, test);
    let theirs = foreign(implementation, transport, "server").await?;
    let ours = server(transport).await?;
    let (their_address, our_address) = (theirs.address()?, ours.address().clone());
    let at_theirs = || client_of(transport, their_address.clone(), theirs.id());
    let of_ours = || client_of(transport, our_address.clone(), ours.id());

    cells
        .works("values: we put at their server and get there", async {
            let Values { key, values } = values_for(implementation, "ours at theirs")?;
            let [value, ..] = values;
            put(&mut at_theirs().await?, &key, &value).await?;
            is_value(get(&mut at_theirs().await?, &key).await?, &value)
        })
        .await;
    cells
        .works("values: they put at our server and get there", async {
            let Values { key, values } = values_for(implementation, "theirs at ours")?;
            let [value, ..] = values;
            let mut putter = at_ours(implementation, transport, "client", &ours).await?;
            putter.put_value(&key, &value).await?;
            drop(putter);
            let mut getter = at_ours(implementation, transport, "client", &ours).await?;
            is_value(Some(getter.get_value(&key).await?), &value)
        })
        .await;
    cells
        .works(
            "values: what one puts at our server, the other gets there",
            async {
                let Values { key, values } = values_for(implementation, "both at ours")?;
                let [first, second, _] = values;
                put(&mut of_ours().await?, &key, &first).await?;
                let mut getter = at_ours(implementation, transport, "client", &ours).await?;
                is_value(Some(getter.get_value(&key).await?), &first)?;
                let mut putter = at_ours(implementation, transport, "client", &ours).await?;
                putter.put_value(&key, &second).await?;
                is_value(get(&mut of_ours().await?, &key).await?, &second)
            },
        )
        .await;
    cells
        .works("values: at our server the newest stays", async {
            let Values { key, values } = values_for(implementation, "newest at ours")?;
            let [first, second, third] = values;
            let mut putters = Vec::new();
            for value in [&third, &first, &second] {
                // One that knows of no other.
                let mut putter = at_ours(implementation, transport, "client", &ours).await?;
                putter.put_value(&key, value).await?;
                putters.push(putter);
            }
            is_value(get(&mut of_ours().await?, &key).await?, &third)
        })
        .await;
    const NEWEST: &str = "values: at their server the newest stays";
    let newest = async {
        let Values { key, values } = values_for(implementation, "newest at theirs")?;
        let [first, second, third] = values;
        let mut putters = Vec::new();
        for value in [&third, &first, &second] {
            let mut putter = at_theirs().await?;
            // What a server refuses is no error of the test's.
            let _refused = put(&mut putter, &key, value).await;
            putters.push(putter);
        }
        is_value(get(&mut at_theirs().await?, &key).await?, &third)
    };
    match implementation {
        Implementation::Js => cells.defect(NEWEST, REPLACES, newest).await,
        _ => cells.works(NEWEST, newest).await,
    }
    cells.finish()
}

#[tokio::test]
async fn we_and_go_provide_and_find_over_tcp() -> Result<(), Error> {
    provide_and_find(Implementation::Go, Transport::Tcp, "kad-go-tcp").await
}

#[tokio::test]
async fn we_and_go_provide_and_find_over_quic() -> Result<(), Error> {
    provide_and_find(Implementation::Go, Transport::Quic, "kad-go-quic").await
}

#[tokio::test]
async fn we_and_js_provide_and_find_over_tcp() -> Result<(), Error> {
    provide_and_find(Implementation::Js, Transport::Tcp, "kad-js-tcp").await
}

#[tokio::test]
async fn we_and_js_provide_and_find_over_quic() -> Result<(), Error> {
    provide_and_find(Implementation::Js, Transport::Quic, "kad-js-quic").await
}

#[tokio::test]
async fn we_and_py_provide_and_find_over_tcp() -> Result<(), Error> {
    provide_and_find(Implementation::Py, Transport::Tcp, "kad-py-tcp").await
}

#[tokio::test]
async fn we_and_go_put_and_get_values_over_tcp() -> Result<(), Error> {
    put_and_get(Implementation::Go, Transport::Tcp, "values-go-tcp").await
}

#[tokio::test]
async fn we_and_go_put_and_get_values_over_quic() -> Result<(), Error> {
    put_and_get(Implementation::Go, Transport::Quic, "values-go-quic").await
}

#[tokio::test]
async fn we_and_js_put_and_get_values_over_tcp() -> Result<(), Error> {
    put_and_get(Implementation::Js, Transport::Tcp, "values-js-tcp").await
}

#[tokio::test]
async fn we_and_js_put_and_get_values_over_quic() -> Result<(), Error> {
    put_and_get(Implementation::Js, Transport::Quic, "values-js-quic").await
}

#[tokio::test]
async fn we_and_py_put_and_get_values_over_tcp() -> Result<(), Error> {
    put_and_get(Implementation::Py, Transport::Tcp, "values-py-tcp").await
}

const GIVES_UP: &str = "py-libp2p gives up what comes on a stream after STOP_SENDING, as it cannot answer the negotiation (`Multiselect.negotiate`); STOP_SENDING asks for the end of the other direction (RFC 9000, sections 2.4 and 3.5), and `ADD_PROVIDER` has no answer";
const RESETS: &str = "py-libp2p resets the stream of a request that has ended, and its answer with it (`_do_handle_stream` in `kad_dht.py` takes the end for an error, and the answer may not have gone yet; over TCP it has)";
const BY_CHANCE: &str = "py-libp2p answers over QUIC by chance, for the reason of \"values: we put at their server and get there\"";
const UNIDENTIFIED: &str = "py-libp2p learns by identify to which servers it can route; over QUIC it loses our answer by chance (\"Identify and ping\")";

/// A field of a message, shorter than 128 bytes.
fn field(tag: u8, value: &[u8]) -> Result<Vec<u8>, Error> {
    let length = u8::try_from(value.len()).map_err(|error| Error::Other(error.into()))?;
    Ok([&[tag, length], value].concat())
}

/// A message with its length.
fn framed(fields: &[Vec<u8>]) -> Result<Vec<u8>, Error> {
    let message = fields.concat();
    let length = u8::try_from(message.len()).map_err(|error| Error::Other(error.into()))?;
    Ok([vec![length], message].concat())
}

/// `PUT_VALUE`.
fn value(name: &str) -> Result<Vec<u8>, Error> {
    let key = format!("/{VALUES}/{name}");
    let record = [field(0x0a, key.as_bytes())?, field(0x12, name.as_bytes())?].concat();
    framed(&[field(0x12, key.as_bytes())?, field(0x1a, &record)?])
}

/// Whether their server's answer is still there when the request's stream has ended. Until it has, it is.
async fn they_answer_what_has_ended() -> Result<bool, Error> {
    let theirs = foreign(Implementation::Py, Transport::Quic, "server").await?;
    let mut answered = true;
    for finishes in [false, true] {
        let key = Keypair::generate_ed25519();
        let ours = Stopping::start(&key, KAD, value("answered")?, false)?;
        answered = ours.ask(&theirs.address()?, finishes).await?;
        if !finishes && !answered {
            return Err(Error::Wrong("no answer at all".to_owned()));
        }
    }
    Ok(answered)
}

/// `ADD_PROVIDER` of a peer for a CID, which it sends for itself.
fn announcement(provider: PeerId, cid: &Cid) -> Result<Vec<u8>, Error> {
    let address = Transport::Quic.at(Ipv4Addr::LOCALHOST, 1).to_vec();
    let named = [field(0x0a, &provider.to_bytes())?, field(0x12, &address)?].concat();
    let key = field(0x12, &cid.hash().to_bytes())?;
    framed(&[vec![0x08, 2], key, field(0x4a, &named)?])
}

/// Whether they keep a record that came after STOP_SENDING on its stream. Without it, they do.
async fn they_take_after_stop_sending() -> Result<bool, Error> {
    let mut theirs = foreign(Implementation::Py, Transport::Quic, "server").await?;
    for stops in [false, true] {
        let key = Keypair::generate_ed25519();
        let cid = block(if stops { "stopped" } else { "open" });
        let message = announcement(key.public().to_peer_id(), &cid)?;
        let ours = Stopping::start(&key, KAD, message, stops)?;
        ours.tell(&theirs.address()?).await?;
        let found = theirs.find(&cid).await?;
        if stops && found.is_empty() {
            return Ok(false);
        }
        is(&found, ours.id())?;
    }
    Ok(true)
}

/// What does not depend on whether py-libp2p's QUIC loses an answer, and the proofs that it loses them.
#[tokio::test]
async fn we_and_py_meet_in_the_dht_over_quic() -> Result<(), Error> {
    let mut cells = Cells::new("Kademlia", "py quic", "kad-py-quic");
    cells
        .works("a server of theirs is in our routing table", async {
            let theirs = foreign(Implementation::Py, Transport::Quic, "server").await?;
            let mut ours = server(Transport::Quic).await?;
            ours.dial(theirs.address()?).await?;
            routed(&mut ours, theirs.id()).await
        })
        .await;
    let lost = |kept: bool| match kept {
        true => Ok(()),
        false => Err(Error::Wrong("lost".to_owned())),
    };
    let kept = they_take_after_stop_sending().await?;
    let cell = "we provide at their server, and find it there";
    cells.defect(cell, GIVES_UP, async { lost(kept) }).await;
    for cell in [
        "they provide at our server, and we find it",
        "they find at our server what another of ours provides",
        "a client of theirs provides and finds at our server",
    ] {
        cells.unsupported(cell, UNIDENTIFIED);
    }
    let kept = they_answer_what_has_ended().await?;
    let cell = "values: we put at their server and get there";
    cells.defect(cell, RESETS, async { lost(kept) }).await;
    for cell in [
        "values: they put at our server and get there",
        "values: what one puts at our server, the other gets there",
        "values: at our server the newest stays",
    ] {
        cells.unsupported(cell, UNIDENTIFIED);
    }
    cells.unsupported("values: at their server the newest stays", BY_CHANCE);
    cells.finish()
}
