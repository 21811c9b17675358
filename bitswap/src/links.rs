//! The links of a dag-pb node: `PBNode.Links` (field 2), of each `PBLink.Hash` (field 1).

use bytes::{Buf, Bytes};
use cid::Cid;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::hash;

/// A node of 2 MiB holds about 40,000 links; nobody is pushed that many.
const MAX_LINKS: usize = 4096;

/// The links of `data` if `cid` says dag-pb, at most 4096; of a malformed node, those before the
/// damage.
pub(crate) fn dag_pb(cid: &Cid, data: &Bytes) -> Vec<Cid> {
    let mut found = Vec::new();
    if cid.codec() == hash::DAG_PB {
        let mut node = data.clone();
        while node.has_remaining() && found.len() < MAX_LINKS {
            match field(&mut node, 2) {
                Some(Some(mut link)) => {
                    while link.has_remaining() {
                        match field(&mut link, 1) {
                            Some(Some(hash)) => found.extend(Cid::try_from(hash.as_ref()).ok()),
                            Some(None) => {}
                            None => return found,
                        }
                    }
                }
                Some(None) => {}
                None => return found,
            }
        }
    }
    found
}

/// Reads one field; its bytes if it is `wanted` and length-delimited. `None`: malformed.
fn field(buf: &mut Bytes, wanted: u32) -> Option<Option<Bytes>> {
    let (tag, wire) = decode_key(buf).ok()?;
    if tag == wanted && wire == WireType::LengthDelimited {
        let length = usize::try_from(decode_varint(buf).ok()?).ok()?;
        (length <= buf.remaining()).then(|| Some(buf.split_to(length)))
    } else {
        skip_field(wire, tag, buf, DecodeContext::default()).ok()?;
        Some(None)
    }
}
