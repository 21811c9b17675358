use std::net::IpAddr;

use hickory_proto::op;
use proptest::prelude::*;

use super::*;

pub(crate) fn golden(name: &str) -> Vec<u8> {
    let (_, text) = GOLDEN.iter().find(|(known, _)| *known == name).unwrap();
    from_hex(text)
}

fn names() -> Names {
    Names::new("_p2p._udp.local", "0123456789abcdefghijklmnopqrstuv")
}

fn response(packet: &[u8]) -> Response<'_> {
    match decode(packet, &names()) {
        Ok(Some(Message::Response(response))) => response,
        other => panic!("not a response: {other:?}"),
    }
}

fn query_of(packet: &[u8]) -> Query {
    match decode(packet, &names()) {
        Ok(Some(Message::Query(query))) => query,
        other => panic!("not a query: {other:?}"),
    }
}

/// Time to live, cache-flush bit and the strings of all TXT records.
fn texts(packet: &[u8]) -> Vec<(u32, bool, Vec<String>)> {
    let response = response(packet);
    let texts = response.texts.iter();
    texts
        .map(|text| {
            let strings = text.strings();
            let strings = strings.map(|string| String::from_utf8(string.to_vec()).unwrap());
            (text.ttl, text.flush, strings.collect())
        })
        .collect()
}

#[test]
fn queries_of_all_implementations_are_understood() {
    for name in ["js-query", "rust-query"] {
        let query = query_of(&golden(name));
        assert_eq!(query.peers, Some(Asked::Multicast), "{name}");
        assert_eq!((query.meta, query.ourselves), (None, None), "{name}");
    }
    assert!(decode(&golden("go-probe"), &names()).unwrap().is_none());
}

#[test]
fn ours_is_the_query_that_js_sends() {
    assert_eq!(query(&names(), false, []), golden("js-query"));
}

#[test]
fn text_is_found_among_answers_and_additional_records() {
    const GO: [&str; 4] = [
        "/ip4/127.0.0.1/tcp/4001",
        "/ip4/10.9.0.1/tcp/4001",
        "/ip6/::1/tcp/4001",
        "/ip6/fd09::1/tcp/4001",
    ];
    let all: [(&str, u32, &[&str]); 4] = [
        ("go-announcement", 3200, &GO),
        ("go-answer", 3200, &GO),
        (
            "js-answer",
            120,
            &[
                "/ip4/10.9.0.1/tcp/4001",
                "/ip4/10.9.0.1/tcp/4002/ws",
                "/ip4/127.0.0.1/tcp/4001",
            ],
        ),
        (
            "rust-answer",
            360,
            &["/ip4/10.9.0.1/tcp/4001", "/ip4/10.9.0.1/tcp/4002"],
        ),
    ];
    for (name, ttl, addresses) in all {
        let packet = golden(name);
        let response = response(&packet);
        let [(instance, pointer_ttl)] = response.pointers.as_slice() else {
            panic!("{name}: {:?}", response.pointers);
        };
        assert_eq!(*pointer_ttl, ttl, "{name}");
        assert!(response.texts.iter().all(|text| text.name == *instance));
        let texts = texts(&packet);
        assert!(texts.iter().all(|(text_ttl, ..)| *text_ttl == ttl));
        let strings = texts.iter().flat_map(|(.., strings)| strings);
        let found: Vec<_> = strings
            .map(|string| {
                let address = string.strip_prefix("dnsaddr=").unwrap();
                address.split_once("/p2p/").unwrap().0
            })
            .collect();
        let mut expected = addresses.to_vec();
        let mut found = found;
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected, "{name}");
    }
}

fn service(addresses: usize) -> Service {
    Service {
        attributes: (0..addresses)
            .map(|port| format!("dnsaddr=/ip4/10.0.0.1/tcp/{port}/p2p/{}", "Q".repeat(46)).into())
            .collect(),
        ips: vec![
            IpAddr::from([10, 0, 0, 1]),
            IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]),
        ],
        port: 4001,
    }
}

#[test]
fn an_announcement_has_shared_and_unique_records() {
    let names = names();
    let packets = announcement(&names, &service(2), 300, 7);
    let [packet] = packets.as_slice() else {
        panic!("{} packets", packets.len());
    };
    // hickory's own reader is the judge.
    let message = op::Message::from_vec(packet).unwrap();
    assert_eq!(message.metadata.id, 7);
    assert!(message.metadata.authoritative);
    let class = |records: &[hickory_proto::rr::Record]| {
        let records = records.iter();
        records
            .map(|record| (record.record_type().to_string(), record.mdns_cache_flush))
            .collect::<Vec<_>>()
    };
    // RFC 6762 §10.2: no cache-flush bit on what all peers share.
    assert_eq!(class(&message.answers), [("PTR".to_owned(), false)]);
    let unique = ["SRV", "A", "AAAA", "TXT"].map(|kind| (kind.to_owned(), true));
    assert_eq!(class(&message.additionals), unique);
    assert_eq!(texts(packet).len(), 1);
    assert_eq!(response(packet).pointers, [(names.instance, 300)]);
}

#[test]
fn addresses_that_do_not_fit_into_one_packet_go_into_several() {
    let service = service(40);
    let packets = announcement(&names(), &service, 300, 0);
    assert!(packets.len() > 1);
    let mut told = Vec::new();
    for packet in &packets {
        assert!(packet.len() <= MAX_SENT, "{} bytes", packet.len());
        assert_eq!(response(packet).pointers.len(), 1);
        told.extend(texts(packet).into_iter().flat_map(|(.., strings)| strings));
    }
    let all: Vec<_> = service
        .attributes
        .iter()
        .map(|attribute| String::from_utf8(attribute.clone()).unwrap())
        .collect();
    assert_eq!(told, all);
}

#[test]
fn a_query_carries_as_many_known_answers_as_fit() {
    let names = names();
    let known: Vec<_> = (0..1000)
        .map(|n| Names::new("_p2p._udp.local", &format!("{n:032}")).instance)
        .collect();
    let packet = query(&names, true, known.iter().map(|name| (name, 200)));
    assert!(packet.len() <= MAX_SENT, "{} bytes", packet.len());
    let query = query_of(&packet);
    assert_eq!(query.peers, Some(Asked::Unicast));
    assert!(query.known.len() >= 20, "{}", query.known.len());
    let expected = known.into_iter().map(|name| (name, 200));
    assert!(expected.zip(&query.known).all(|(ours, read)| ours == *read));
    op::Message::from_vec(&packet).unwrap();
}

#[test]
fn names_are_compared_without_case() {
    let packet = golden("js-query").to_ascii_uppercase();
    assert!(query_of(&packet).peers.is_some());
}

#[test]
fn questions_of_service_browsers_are_recognised() {
    let names = names();
    let ask = |name: &hickory_proto::rr::Name, kind: hickory_proto::rr::RecordType| {
        let mut message = op::Message::query();
        message.add_query(op::Query::query(name.clone(), kind));
        query_of(&message.to_vec().unwrap())
    };
    use hickory_proto::rr::RecordType;
    assert!(ask(&names.meta, RecordType::PTR).meta.is_some());
    assert!(ask(&names.instance, RecordType::TXT).ourselves.is_some());
    assert!(ask(&names.instance, RecordType::SRV).ourselves.is_some());
    assert!(ask(&names.host, RecordType::AAAA).ourselves.is_some());
    assert!(ask(&names.service, RecordType::ANY).peers.is_some());
    let answer = meta_answer(&names, 300);
    let answer = op::Message::from_vec(&answer).unwrap();
    assert_eq!(answer.answers[0].name, names.meta);
    assert!(!answer.answers[0].mdns_cache_flush);
}

/// A header that announces `answers` records, and then `body`.
fn answers(count: u16, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0, 0, 0x84, 0, 0, 0];
    packet.extend(count.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(body);
    packet
}

#[test]
fn compression_loops_are_refused() {
    for pointer in [[0xc0, 12], [0xc0, 13], [0xff, 0xff]] {
        assert!(decode(&answers(1, &pointer), &names()).is_err());
    }
    // Each name points to the one before: allowed once, a loop never.
    let mut body = vec![1, b'a', 0xc0, 14];
    body.extend([0; 10]);
    assert!(decode(&answers(1, &body), &names()).is_err());
}

#[test]
fn long_chains_of_pointers_are_refused() {
    // Each pointer leads to the one before it, the first of them to a root name: valid, and as much work as its length.
    let chain = |links: u16| {
        let mut body = vec![0, 0, 16, 0, 1, 0, 0, 0, 9];
        let data = body.len() as u16 + 12 + 2;
        body.extend((2 * links + 1).to_be_bytes());
        body.push(0);
        for link in 0..links {
            let to = if link == 0 {
                data
            } else {
                data + 1 + 2 * (link - 1)
            };
            body.extend((0xc000 | to).to_be_bytes());
        }
        // The next record's name leads through all of them.
        body.extend((0xc000 | (data + 1 + 2 * (links - 1))).to_be_bytes());
        body.extend([0, 16, 0, 1, 0, 0, 0, 9, 0, 0]);
        answers(2, &body)
    };
    // Of those in the record's data and the one that leads to them.
    assert!(decode(&chain(15), &names()).unwrap().is_none());
    for links in [16, 4_000] {
        assert!(decode(&chain(links), &names()).is_err(), "{links}");
    }
}

#[test]
fn records_that_declare_more_than_there_is_are_refused() {
    let mut packet = golden("js-answer");
    let len = packet.len();
    for cut in 0..len {
        let cut = &packet[..cut];
        assert!(decode(cut, &names()).is_err(), "{} bytes", cut.len());
    }
    // The last record's length, two bytes before its 89 bytes of data.
    packet[len - 91] = 0xff;
    assert!(decode(&packet, &names()).is_err());
}

#[test]
fn an_odd_record_does_not_hide_its_neighbours() {
    let names = names();
    // An empty A record, an empty TXT record and a pointer with something behind it, then ours.
    let mut body = Vec::new();
    for (kind, data) in [(1, &[][..]), (16, &[]), (12, &[0, 1, 2]), (47, &[9; 30])] {
        body.extend([0, 0, kind, 0x80, 1, 0, 0, 0, 9, 0, data.len() as u8]);
        body.extend(data);
    }
    let ours = &announcement(&names, &service(1), 300, 0)[0];
    let mut packet = ours[..12].to_vec();
    packet[7] += 4;
    // Compressed names of ours would point to other places now, so the odd ones go to the end.
    packet.extend(&ours[12..]);
    packet.extend(body);
    assert_eq!(texts(&packet).len(), 1);
}

#[test]
fn work_is_bounded_by_the_number_of_records() {
    // 800 records of the root name.
    let body: Vec<u8> = std::iter::repeat_n([0, 0, 16, 0, 1, 0, 0, 0, 9, 0, 0], 800)
        .flatten()
        .collect();
    assert!(decode(&answers(800, &body), &names()).unwrap().is_none());
    let many = [0, 0, 12, 0, 1].repeat(100);
    let mut packet = vec![0, 0, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0];
    packet.extend(many);
    assert!(decode(&packet, &names()).unwrap().is_none());
}

#[test]
fn other_operations_and_errors_are_ignored() {
    for flags in [[0x28, 0], [0x84, 3], [0x20, 0]] {
        let mut packet = golden("js-answer");
        packet[2..4].copy_from_slice(&flags);
        assert!(decode(&packet, &names()).unwrap().is_none());
    }
}

proptest! {
    #[test]
    fn no_packet_panics(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = decode(&packet, &names());
    }

    #[test]
    fn no_damaged_packet_panics(
        which in 0..GOLDEN.len(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut packet = golden(GOLDEN[which].0);
        for (at, byte) in damage {
            let at = at.index(packet.len());
            packet[at] = byte;
        }
        if let Ok(Some(Message::Response(response))) = decode(&packet, &names()) {
            let strings = response.texts.iter().flat_map(decode::Text::strings);
            prop_assert!(strings.map(<[u8]>::len).sum::<usize>() <= packet.len());
        }
    }

    #[test]
    fn what_is_written_is_read(
        attributes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..=255), 1..40),
        ttl in any::<u32>(),
    ) {
        let service = Service { attributes: attributes.clone(), ..service(0) };
        let mut read = Vec::new();
        for packet in announcement(&names(), &service, ttl, 0) {
            prop_assert!(packet.len() <= MAX_SENT);
            op::Message::from_vec(&packet).unwrap();
            let response = response(&packet);
            prop_assert_eq!(&response.pointers, &[(names().instance, ttl)]);
            for text in &response.texts {
                prop_assert!(text.flush && text.ttl == ttl);
                read.extend(text.strings().map(<[u8]>::to_vec));
            }
        }
        prop_assert_eq!(read, attributes);
    }
}
