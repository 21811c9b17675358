use std::net::IpAddr;

use hickory_proto::{
    ProtoError,
    rr::Name,
    serialize::binary::{BinEncodable as _, BinEncoder, NameEncoding},
};

use super::{
    CLASS_IN, FLAG_AUTHORITATIVE, FLAG_RESPONSE, MAX_SENT, Names, TOP_BIT, TYPE_A, TYPE_AAAA,
    TYPE_PTR, TYPE_SRV, TYPE_TXT,
};

/// IP addresses in one message: enough for those who want to see one at all.
const MAX_IPS: usize = 4;

/// What a node tells about itself on one link.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    /// `dnsaddr=<address>/p2p/<peer>`, at most 255 bytes each.
    pub(crate) attributes: Vec<Vec<u8>>,
    /// go-libp2p ignores an instance without SRV and A or AAAA records.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) port: u16,
}

/// An instance that a query need not bring up again, for this many seconds.
pub(crate) type KnownAnswer<'a> = (&'a Name, u32);

/// A query for all peers. As many known answers come along as fit into one packet.
pub(crate) fn query<'a>(
    names: &Names,
    unicast: bool,
    known: impl IntoIterator<Item = KnownAnswer<'a>>,
) -> Vec<u8> {
    let mut packet = Vec::new();
    let mut count = 0;
    let written = (|| -> Result<(), ProtoError> {
        let mut to = BinEncoder::new(&mut packet);
        // RFC 6762 §18.1: the identifier of a multicast query should be zero.
        header(&mut to, 0, 0, [1, 0, 0])?;
        names.service.emit(&mut to)?;
        to.emit_u16(TYPE_PTR)?;
        to.emit_u16(CLASS_IN | if unicast { TOP_BIT } else { 0 })?;
        for (instance, ttl) in known {
            if to.len() + instance.len() + RECORD_HEAD > MAX_SENT {
                break;
            }
            pointer(&mut to, &names.service, instance, ttl)?;
            count += 1;
        }
        Ok(())
    })();
    finish(packet, written, [1, count, 0])
}

/// The records of this node: in one packet, or in several if they do not fit. With a `ttl` of 0 they are its goodbye (RFC 6762
/// §10.1). Nothing if there is no address to tell.
pub(crate) fn announcement(names: &Names, service: &Service, ttl: u32, id: u16) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut rest = service.attributes.as_slice();
    while !rest.is_empty() {
        let (packet, told) = announcement_packet(names, service, rest, packets.is_empty(), ttl, id);
        // An attribute that does not even fit alone cannot be told; `Service` has none.
        rest = rest.get(told.max(1)..).unwrap_or_default();
        if told > 0 {
            packets.push(packet);
        }
    }
    packets
}

/// Returns how many of the attributes are in the packet.
fn announcement_packet(
    names: &Names,
    service: &Service,
    attributes: &[Vec<u8>],
    first: bool,
    ttl: u32,
    id: u16,
) -> (Vec<u8>, usize) {
    let mut packet = Vec::new();
    let mut additionals = 0;
    let mut told = 0;
    let written = (|| -> Result<(), ProtoError> {
        let mut to = BinEncoder::new(&mut packet);
        header(&mut to, id, FLAG_RESPONSE | FLAG_AUTHORITATIVE, [0, 1, 0])?;
        // The pointer is shared by all peers: no cache-flush bit (RFC 6762 §10.2).
        pointer(&mut to, &names.service, &names.instance, ttl)?;
        if first {
            additionals += host_records(&mut to, names, service, ttl)?;
        }
        // One record with several strings: go-libp2p keeps the last TXT record only, the others read either.
        record_head(&mut to, &names.instance, TYPE_TXT, CLASS_IN | TOP_BIT, ttl)?;
        let len = to.place::<u16>()?;
        for attribute in attributes {
            if to.len() + 1 + attribute.len() > MAX_SENT {
                break;
            }
            to.emit_character_data(attribute)?;
            told += 1;
        }
        let written = u16::try_from(to.len_since_place(&len)).unwrap_or(u16::MAX);
        to.emit_at(len, written)?;
        additionals += 1;
        Ok(())
    })();
    (finish(packet, written, [0, 1, additionals]), told)
}

/// The name of this service, for those who list services (RFC 6763 §9).
pub(crate) fn meta_answer(names: &Names, ttl: u32) -> Vec<u8> {
    let mut packet = Vec::new();
    let written = (|| -> Result<(), ProtoError> {
        let mut to = BinEncoder::new(&mut packet);
        header(&mut to, 0, FLAG_RESPONSE | FLAG_AUTHORITATIVE, [0, 1, 0])?;
        pointer(&mut to, &names.meta, &names.service, ttl)
    })();
    finish(packet, written, [0, 1, 0])
}

/// Type, class, time to live and length; and the owner as a pointer.
const RECORD_HEAD: usize = 12;

/// Where the header counts the answers and the additional records.
const ANSWERS_AT: usize = 6;
const ADDITIONALS_AT: usize = 10;

fn header(
    to: &mut BinEncoder<'_>,
    id: u16,
    flags: u16,
    [questions, answers, additionals]: [u16; 3],
) -> Result<(), ProtoError> {
    for field in [id, flags, questions, answers, 0, additionals] {
        to.emit_u16(field)?;
    }
    Ok(())
}

/// Corrects the counts. A message that could not be written (it always can: names and lengths are checked before) is sent to nobody.
fn finish(mut packet: Vec<u8>, written: Result<(), ProtoError>, counts: [u16; 3]) -> Vec<u8> {
    if written.is_err() {
        return Vec::new();
    }
    let [_, answers, additionals] = counts;
    for (at, count) in [(ANSWERS_AT, answers), (ADDITIONALS_AT, additionals)] {
        if let Some(field) = packet.get_mut(at..at + 2) {
            field.copy_from_slice(&count.to_be_bytes());
        }
    }
    packet
}

fn record_head(
    to: &mut BinEncoder<'_>,
    name: &Name,
    kind: u16,
    class: u16,
    ttl: u32,
) -> Result<(), ProtoError> {
    name.emit(to)?;
    to.emit_u16(kind)?;
    to.emit_u16(class)?;
    to.emit_u32(ttl)
}

fn pointer(
    to: &mut BinEncoder<'_>,
    owner: &Name,
    target: &Name,
    ttl: u32,
) -> Result<(), ProtoError> {
    record_head(to, owner, TYPE_PTR, CLASS_IN, ttl)?;
    let len = to.place::<u16>()?;
    target.emit(to)?;
    let written = u16::try_from(to.len_since_place(&len)).unwrap_or(u16::MAX);
    to.emit_at(len, written)
}

/// SRV, A and AAAA. Returns how many records they are.
fn host_records(
    to: &mut BinEncoder<'_>,
    names: &Names,
    service: &Service,
    ttl: u32,
) -> Result<u16, ProtoError> {
    if service.ips.is_empty() {
        return Ok(0);
    }
    record_head(to, &names.instance, TYPE_SRV, CLASS_IN | TOP_BIT, ttl)?;
    let len = to.place::<u16>()?;
    for field in [0, 0, service.port] {
        to.emit_u16(field)?;
    }
    // RFC 2782: the target is not compressed.
    {
        let mut to = to.with_name_encoding(NameEncoding::Uncompressed);
        names.host.emit(&mut to)?;
    }
    let written = u16::try_from(to.len_since_place(&len)).unwrap_or(u16::MAX);
    to.emit_at(len, written)?;
    let mut count = 1;
    for ip in service.ips.iter().take(MAX_IPS) {
        let kind = if ip.is_ipv4() { TYPE_A } else { TYPE_AAAA };
        record_head(to, &names.host, kind, CLASS_IN | TOP_BIT, ttl)?;
        match ip {
            IpAddr::V4(ip) => {
                to.emit_u16(4)?;
                to.emit_vec(&ip.octets())?;
            }
            IpAddr::V6(ip) => {
                to.emit_u16(16)?;
                to.emit_vec(&ip.octets())?;
            }
        }
        count += 1;
    }
    Ok(count)
}
