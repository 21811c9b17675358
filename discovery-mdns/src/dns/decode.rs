use std::collections::BTreeSet;

use hickory_proto::{
    rr::Name,
    serialize::binary::{BinDecodable, BinDecoder, DecodeError},
};

use super::{
    CLASS_IN, FLAG_RESPONSE, FLAGS_ODD, Names, TOP_BIT, TYPE_A, TYPE_AAAA, TYPE_ANY, TYPE_PTR,
    TYPE_SRV, TYPE_TXT,
};

/// Records of one message that are looked at. 9,000 bytes hold no more than about 40 peers; whoever sends more short ones wants work
/// done.
const MAX_RECORDS: usize = 256;
/// Questions of one message that are looked at.
const MAX_QUESTIONS: usize = 32;
/// Pointers that the name of a record may lead through. Those of real responders have one or two; a chain of thousands is
/// valid, takes two bytes a link, and every record of the message could lead through it.
const MAX_POINTERS: usize = 16;
/// The top bits of a pointer (RFC 1035 §4.1.4); what is less is the length of a label.
const POINTER: usize = 0xc0;
/// Labels of a name: 127 of one byte and the root (RFC 1035 §3.1).
const MAX_LABELS: usize = 128;

/// A message that concerns us.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    Query(Query),
    Response(Response<'a>),
}

#[derive(Debug, Default)]
pub(crate) struct Query {
    pub(crate) id: u16,
    /// All peers of the service.
    pub(crate) peers: Option<Asked>,
    /// The records of this node by its name, as browsers of services do.
    pub(crate) ourselves: Option<Asked>,
    /// The list of services.
    pub(crate) meta: Option<Asked>,
    /// Instances of the service that the asker knows already, and for how many seconds (RFC 6762 §7.1).
    pub(crate) known: Vec<(Name, u32)>,
}

/// How a question wants to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Multicast,
    /// `QU`, RFC 6762 §5.4.
    Unicast,
}

#[derive(Debug, Default)]
pub(crate) struct Response<'a> {
    /// Instances of the service, with their time to live in seconds.
    pub(crate) pointers: Vec<(Name, u32)>,
    pub(crate) texts: Vec<Text<'a>>,
}

/// One TXT record.
#[derive(Debug)]
pub(crate) struct Text<'a> {
    pub(crate) name: Name,
    /// Seconds; 0 is a goodbye (RFC 6762 §10.1).
    pub(crate) ttl: u32,
    /// The cache-flush bit (RFC 6762 §10.2).
    pub(crate) flush: bool,
    data: &'a [u8],
}

impl<'a> Text<'a> {
    /// All of its data, as it came.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.data
    }

    /// Its character strings, up to the first that is cut short.
    pub(crate) fn strings(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.data;
        std::iter::from_fn(move || {
            let (&len, tail) = rest.split_first()?;
            let (string, tail) = tail.split_at_checked(len.into())?;
            rest = tail;
            Some(string)
        })
    }
}

/// Reads a message. `Ok(None)`: well formed, but not for us.
pub(crate) fn decode<'a>(
    packet: &'a [u8],
    names: &Names,
) -> Result<Option<Message<'a>>, DecodeError> {
    let mut from = BinDecoder::new(packet);
    let id = read_u16(&mut from)?;
    let flags = read_u16(&mut from)?;
    let questions = read_u16(&mut from)?;
    let answers = read_u16(&mut from)?;
    let authorities = read_u16(&mut from)?;
    let additionals = read_u16(&mut from)?;
    if flags & FLAGS_ODD != 0 {
        return Ok(None);
    }
    if flags & FLAG_RESPONSE == 0 {
        return decode_query(from, id, questions, answers, names);
    }
    for _ in 0..questions {
        Question::read(&mut from)?;
    }
    // js puts TXT among the answers, rust, go and the specification among the additional records.
    let records = usize::from(answers) + usize::from(authorities) + usize::from(additionals);
    decode_response(from, records, names)
}

fn decode_query<'a>(
    mut from: BinDecoder<'a>,
    id: u16,
    questions: u16,
    answers: u16,
    names: &Names,
) -> Result<Option<Message<'a>>, DecodeError> {
    let mut query = Query {
        id,
        ..Query::default()
    };
    let mut concerns_us = false;
    for _ in 0..usize::from(questions).min(MAX_QUESTIONS) {
        let question = Question::read(&mut from)?;
        let kind = question.kind;
        let slot = if question.name == names.service && matches!(kind, TYPE_PTR | TYPE_ANY) {
            &mut query.peers
        } else if question.name == names.meta && matches!(kind, TYPE_PTR | TYPE_ANY) {
            &mut query.meta
        } else if (question.name == names.instance
            && matches!(kind, TYPE_TXT | TYPE_SRV | TYPE_ANY))
            || (question.name == names.host && matches!(kind, TYPE_A | TYPE_AAAA | TYPE_ANY))
        {
            &mut query.ourselves
        } else {
            continue;
        };
        *slot = Some(question.asked);
        concerns_us = true;
    }
    if !concerns_us || usize::from(questions) > MAX_QUESTIONS {
        return Ok(None);
    }
    for _ in 0..usize::from(answers).min(MAX_RECORDS) {
        let record = Record::read(&mut from)?;
        if record.kind == TYPE_PTR
            && record.name == names.service
            && let Some(target) = record.target()
        {
            query.known.push((target, record.ttl));
        }
    }
    Ok(Some(Message::Query(query)))
}

fn decode_response<'a>(
    mut from: BinDecoder<'a>,
    records: usize,
    names: &Names,
) -> Result<Option<Message<'a>>, DecodeError> {
    let mut response = Response::default();
    for _ in 0..records.min(MAX_RECORDS) {
        let record = Record::read(&mut from)?;
        if record.class & !TOP_BIT != CLASS_IN {
            continue;
        }
        match record.kind {
            TYPE_PTR if record.name == names.service => {
                if let Some(target) = record.target() {
                    response.pointers.push((target, record.ttl));
                }
            }
            TYPE_TXT => response.texts.push(Text {
                ttl: record.ttl,
                flush: record.class & TOP_BIT != 0,
                data: record.data(),
                name: record.name,
            }),
            _ => {}
        }
    }
    // The text of another service on the same host is no business of ours. rust-libp2p names a peer without the
    // service, so a name counts as well if a pointer of this message leads to it.
    let Response { pointers, texts } = &mut response;
    let targets: BTreeSet<&Name> = pointers.iter().map(|(target, _)| target).collect();
    texts.retain(|text| names.service.zone_of(&text.name) || targets.contains(&text.name));
    let concerns_us = !(pointers.is_empty() && texts.is_empty());
    Ok(concerns_us.then_some(Message::Response(response)))
}

struct Question {
    name: Name,
    kind: u16,
    asked: Asked,
}

impl Question {
    fn read(from: &mut BinDecoder<'_>) -> Result<Self, DecodeError> {
        let name = read_name(from)?;
        let kind = read_u16(from)?;
        let class = read_u16(from)?;
        let asked = if class & TOP_BIT == 0 {
            Asked::Multicast
        } else {
            Asked::Unicast
        };
        Ok(Self { name, kind, asked })
    }
}

struct Record<'a> {
    name: Name,
    kind: u16,
    class: u16,
    ttl: u32,
    /// Stands at the record's data, so that names inside it can point back into the message.
    at_data: BinDecoder<'a>,
    data: &'a [u8],
}

impl<'a> Record<'a> {
    fn read(from: &mut BinDecoder<'a>) -> Result<Self, DecodeError> {
        let name = read_name(from)?;
        let kind = read_u16(from)?;
        let class = read_u16(from)?;
        let ttl = from.read_u32()?.unverified();
        let len = read_u16(from)?;
        let start = from.index();
        let data = from.read_slice(len.into())?.unverified();
        let start = u16::try_from(start).map_err(|_| DecodeError::InsufficientBytes)?;
        Ok(Self {
            name,
            kind,
            class,
            ttl,
            at_data: from.clone(start),
            data,
        })
    }

    fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The name that a PTR record leads to, if its data is exactly that.
    fn target(&self) -> Option<Name> {
        let mut data = self
            .at_data
            .clone(u16::try_from(self.at_data.index()).ok()?);
        let start = data.index();
        let name = read_name(&mut data).ok()?;
        (data.index() == start + self.data.len()).then_some(name)
    }
}

/// Reads a name that does not lead through many pointers.
fn read_name(from: &mut BinDecoder<'_>) -> Result<Name, DecodeError> {
    let start = u16::try_from(from.index()).map_err(|_| DecodeError::InsufficientBytes)?;
    let mut at = from.clone(start);
    let mut pointers = 0;
    for _ in 0..MAX_LABELS + MAX_POINTERS {
        let index = at.index();
        let Some(length) = at.peek().map(|byte| usize::from(byte.unverified())) else {
            return Err(DecodeError::InsufficientBytes);
        };
        if length == 0 {
            return Name::read(from);
        }
        if length < POINTER {
            at.read_slice(1 + length)?;
            continue;
        }
        let target = read_u16(&mut at)? & 0x3fff;
        pointers += 1;
        if pointers > MAX_POINTERS || usize::from(target) >= index {
            return Err(DecodeError::PointerNotPriorToLabel {
                idx: index,
                ptr: target,
            });
        }
        at = at.clone(target);
    }
    Err(DecodeError::DomainNameTooLong(MAX_LABELS))
}

fn read_u16(from: &mut BinDecoder<'_>) -> Result<u16, DecodeError> {
    Ok(from.read_u16()?.unverified())
}
