//! Messages of the Port Control Protocol ([RFC 6887](https://www.rfc-editor.org/rfc/rfc6887)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

use super::{PortKey, array};
use crate::core::nat::Proto;

/// Version 2; version 0 is NAT-PMP.
const VERSION: u8 = 2;
/// Set in the second byte of an answer.
const RESPONSE: u8 = 0x80;
const ANNOUNCE: u8 = 0;
const MAP: u8 = 1;
/// Result codes of §7.4 that say something about the server itself.
const SUCCESS: u8 = 0;
const UNSUPP_VERSION: u8 = 1;
const NOT_AUTHORIZED: u8 = 2;

/// Tells this node's requests from those of others (§11.1).
pub(super) type Nonce = [u8; 12];

/// What a gateway answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Response {
    /// It does not speak this version, or not with us.
    Unsupported,
    /// It lives: seconds since it lost its mappings last (§8.5).
    Announce { epoch: u32 },
    /// To a request for a mapping.
    Map {
        epoch: u32,
        nonce: Nonce,
        port: PortKey,
        result: Result<Granted, u8>,
    },
}

/// A mapping as the gateway grants it; one of no lifetime is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) external: SocketAddrV4,
    pub(super) seconds: u32,
}

/// Asks whether the server is there, and since when (§14.1).
pub(super) fn announce(local: Ipv4Addr) -> Vec<u8> {
    header(ANNOUNCE, 0, local)
}

/// Asks for a mapping (§11.1), at `suggested` if that can be; 0 seconds delete it (§15).
pub(super) fn map(
    local: Ipv4Addr,
    nonce: Nonce,
    port: PortKey,
    suggested: SocketAddrV4,
    seconds: u32,
) -> Vec<u8> {
    let mut request = header(MAP, seconds, local);
    request.extend(nonce);
    request.extend([protocol_number(port.proto), 0, 0, 0]);
    request.extend(port.number.to_be_bytes());
    request.extend(suggested.port().to_be_bytes());
    request.extend(suggested.ip().to_ipv6_mapped().octets());
    request
}

fn header(opcode: u8, seconds: u32, local: Ipv4Addr) -> Vec<u8> {
    let mut header = vec![VERSION, opcode, 0, 0];
    header.extend(seconds.to_be_bytes());
    header.extend(local.to_ipv6_mapped().octets());
    header
}

/// Reads an answer; `None`: it is none of this protocol, or none that we can have asked for.
pub(super) fn decode(bytes: &[u8]) -> Option<Response> {
    let [version, opcode, _reserved, code] = array(bytes, 0)?;
    if version != VERSION || opcode & RESPONSE == 0 {
        return None;
    }
    if matches!(code, UNSUPP_VERSION) {
        return Some(Response::Unsupported);
    }
    let seconds = u32::from_be_bytes(array(bytes, 4)?);
    let epoch = u32::from_be_bytes(array(bytes, 8)?);
    match opcode & !RESPONSE {
        ANNOUNCE if code == NOT_AUTHORIZED => Some(Response::Unsupported),
        // A server that does not know this operation has answered all the same.
        ANNOUNCE => Some(Response::Announce { epoch }),
        MAP => {
            let proto = match array(bytes, 36)? {
                [17] => Proto::Udp,
                [6] => Proto::Tcp,
                _ => return None,
            };
            let port = PortKey {
                proto,
                number: u16::from_be_bytes(array(bytes, 40)?),
            };
            let address = Ipv6Addr::from(array::<16>(bytes, 44)?).to_canonical();
            let number = u16::from_be_bytes(array(bytes, 42)?);
            let result = match (code, address) {
                (SUCCESS, IpAddr::V4(ip)) => Ok(Granted {
                    external: SocketAddrV4::new(ip, number),
                    seconds,
                }),
                (SUCCESS, IpAddr::V6(_)) => return None,
                (code, _) => Err(code),
            };
            Some(Response::Map {
                epoch,
                nonce: array(bytes, 24)?,
                port,
                result,
            })
        }
        _ => None,
    }
}

fn protocol_number(proto: Proto) -> u8 {
    match proto {
        Proto::Udp => 17,
        Proto::Tcp => 6,
    }
}
