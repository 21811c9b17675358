//! Messages of the NAT Port Mapping Protocol ([RFC 6886](https://www.rfc-editor.org/rfc/rfc6886)).

use std::net::Ipv4Addr;

use super::{PortKey, array};
use crate::core::nat::Proto;

const VERSION: u8 = 0;
/// Added to the operation in an answer.
const RESPONSE: u8 = 128;
const EXTERNAL_ADDRESS: u8 = 0;
const MAP_UDP: u8 = 1;
const MAP_TCP: u8 = 2;
/// Result codes of §3.5.
const SUCCESS: u16 = 0;
const UNSUPPORTED_VERSION: u16 = 1;

/// What a gateway answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Response {
    /// It speaks this protocol and no later one: the answer to a request of PCP.
    OnlyThis,
    /// Its address on the far side, and the seconds since it lost its mappings last (§3.6).
    ExternalAddress {
        epoch: u32,
        result: Result<Ipv4Addr, u16>,
    },
    /// To a request for a mapping: the public port and the seconds that it is ours.
    Map {
        epoch: u32,
        port: PortKey,
        result: Result<(u16, u32), u16>,
    },
}

/// Asks for the gateway's address on the far side (§3.2).
pub(super) fn external_address() -> Vec<u8> {
    vec![VERSION, EXTERNAL_ADDRESS]
}

/// Asks for a mapping (§3.3), at the public port `suggested` if that can be; 0 seconds delete it
/// (§3.4).
pub(super) fn map(port: PortKey, suggested: u16, seconds: u32) -> Vec<u8> {
    let operation = match port.proto {
        Proto::Udp => MAP_UDP,
        Proto::Tcp => MAP_TCP,
    };
    let mut request = vec![VERSION, operation, 0, 0];
    request.extend(port.number.to_be_bytes());
    // "The external port MUST be 0" in a deletion.
    let suggested = if seconds == 0 { 0 } else { suggested };
    request.extend(suggested.to_be_bytes());
    request.extend(seconds.to_be_bytes());
    request
}

/// Reads an answer; `None`: it is none of this protocol, or none that we can have asked for.
pub(super) fn decode(bytes: &[u8]) -> Option<Response> {
    let [version, operation] = array(bytes, 0)?;
    if version != VERSION {
        return None;
    }
    let operation = operation.checked_sub(RESPONSE)?;
    let code = u16::from_be_bytes(array(bytes, 2)?);
    let epoch = u32::from_be_bytes(array(bytes, 4)?);
    if code == UNSUPPORTED_VERSION {
        return Some(Response::OnlyThis);
    }
    let proto = match operation {
        EXTERNAL_ADDRESS => {
            let result = match code {
                SUCCESS => Ok(Ipv4Addr::from(array::<4>(bytes, 8)?)),
                code => Err(code),
            };
            return Some(Response::ExternalAddress { epoch, result });
        }
        MAP_UDP => Proto::Udp,
        MAP_TCP => Proto::Tcp,
        _ => return None,
    };
    let result = match code {
        SUCCESS => Ok((
            u16::from_be_bytes(array(bytes, 10)?),
            u32::from_be_bytes(array(bytes, 12)?),
        )),
        code => Err(code),
    };
    Some(Response::Map {
        epoch,
        port: PortKey {
            proto,
            number: u16::from_be_bytes(array(bytes, 8)?),
        },
        result,
    })
}
