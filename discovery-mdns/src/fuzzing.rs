//! The parser of packets and what it feeds, for `interop-tests/fuzz`. Not part of the API.

#![expect(clippy::expect_used, reason = "a fuzz target fails by panicking")]

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use libp2p_identity::PeerId;
use web_time::Instant;

use crate::{
    Config, Event, Family,
    core::{Core, LinkId, MDNS_PORT, Network, Output},
    dns::{self, MAX_SENT, Message, Names, Service},
};

const MAX_PEERS: usize = 4;
const MAX_ADDRESSES: usize = 3;
const LINK: LinkId = LinkId {
    interface: 2,
    family: Family::V4,
};

/// Packets of other implementations and of ours.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds: Vec<_> = dns::GOLDEN
        .iter()
        .map(|(name, text)| ((*name).to_owned(), dns::from_hex(text)))
        .collect();
    let names = Names::new("_p2p._udp.local", "seed");
    let service = Service {
        attributes: vec![
            b"dnsaddr=/ip4/10.0.0.7/tcp/1/p2p/12D3KooWCmgpYwYECU6GKEi7Ubb7sT773Lgp1eXxXRdjFJBNQ8vM"
                .to_vec(),
        ],
        ips: vec![[10, 0, 0, 7].into()],
        port: 1,
    };
    for (name, ttl) in [("announcement", 300), ("goodbye", 0)] {
        let packets = dns::announcement(&names, &service, ttl, 0);
        seeds.extend(packets.into_iter().map(|packet| (name.to_owned(), packet)));
    }
    let known = [(&names.instance, 200)];
    seeds.push(("query".to_owned(), dns::query(&names, true, known)));
    seeds
}

/// Whatever a neighbour sends, the engine stays within its bounds, tells the application the truth and forgets it all in time.
pub fn packet(bytes: &[u8]) {
    let config = Config::builder()
        .max_peers(MAX_PEERS)
        .max_addresses_per_peer(MAX_ADDRESSES)
        .build()
        .expect("a configuration");
    let names = Names::new("_p2p._udp.local", "fuzz");
    if let Ok(Some(Message::Response(response))) = dns::decode(bytes, &names) {
        let strings = response.texts.iter().flat_map(dns::Text::strings);
        assert!(strings.map(<[u8]>::len).sum::<usize>() <= bytes.len());
    }
    #[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
    let mut now = Instant::now();
    let mut core = Core::new(
        PeerId::from_bytes(&[0, 1, 7]).expect("a peer"),
        config,
        [7; 32],
    );
    let network = Network {
        address: [10, 0, 0, 1].into(),
        prefix: 24,
    };
    core.on_link_up(LINK, vec![network], false, now);
    core.on_listening(&"/ip4/10.0.0.1/tcp/4001".parse().expect("an address"), now);
    let mut known = BTreeSet::new();
    // A second time it is an old acquaintance; from another host it contradicts the first.
    for (host, wait) in [(7, 0), (7, 2), (8, 1)] {
        now += Duration::from_secs(wait);
        let source = SocketAddr::from(([10, 0, 0, host], MDNS_PORT));
        core.on_packet(LINK, source, bytes, now);
        check(&mut core, &mut known);
        core.handle_timeout(now);
        check(&mut core, &mut known);
    }
    let end = now + Duration::from_secs(75 * 60);
    for _ in 0..MAX_PEERS * MAX_ADDRESSES * 4 {
        core.handle_timeout(end);
        check(&mut core, &mut known);
    }
    assert!(known.is_empty(), "outlives 75 minutes: {known:?}");
}

fn check(core: &mut Core, known: &mut BTreeSet<(PeerId, String)>) {
    while let Some(output) = core.poll_output() {
        match output {
            Output::Send { packet, .. } => assert!(!packet.is_empty() && packet.len() <= MAX_SENT),
            Output::Event(Event::Discovered { peer, addresses }) => {
                assert!(!addresses.is_empty());
                for address in addresses {
                    assert!(known.insert((peer, address.to_string())), "told twice");
                }
            }
            Output::Event(Event::Expired { peer, addresses }) => {
                assert!(!addresses.is_empty());
                for address in addresses {
                    assert!(known.remove(&(peer, address.to_string())), "never told");
                }
            }
        }
    }
    assert!(core.peers().len() <= MAX_PEERS);
    let mut count = 0;
    for peer in core.peers() {
        for address in core.addresses(peer) {
            assert!(known.contains(&(*peer, address.to_string())));
            count += 1;
        }
        assert!(core.addresses(peer).count() <= MAX_ADDRESSES);
    }
    assert_eq!(count, known.len());
}
