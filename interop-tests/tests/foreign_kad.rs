//! Kademlia both ways: provider records of ours and of theirs, looked up by the other.
#![cfg(feature = "foreign")]

use anypath_bitswap::Block;
use anypath_dht::{Event, Mode};
use anypath_interop_tests::peers::{
    BehaviourEvent, Cells, Error, Implementation, Node, NodeSettings, Peer, Settings, Transport,
};
use cid::Cid;
use libp2p::PeerId;
use libp2p::swarm::SwarmEvent;

const VALUES: &str = "anypath-dht has no value records yet";

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
            is(&find(&mut seeker, cid).await?, ours.id())
        })
        .await;
    cells
        .works("they provide at our server, and we find it", async {
            let cid = block("theirs at ours");
            theirs.provide(&cid).await?;
            is(&find(&mut ours, cid).await?, theirs.id())
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
                is(&theirs.find(&cid).await?, provider.id())
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
                is(&find(&mut ours, cid).await?, client.id())?;
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
    cells.unsupported("values are put and got", VALUES);
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
