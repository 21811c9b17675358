//! Typed messages of `/anypath/nat-probe/1` and all their limits.

use std::net::IpAddr;

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;
use prost::Message as _;

use crate::{
    core::probe::{
        Outcome,
        client::MAX_KNOWN,
        server::{Answer, MIN_PADDING},
    },
    generated::probe as wire,
};

/// A request for help with its padding, and something for what later versions may add.
pub(crate) const MAX_REQUEST_BYTES: usize = MIN_PADDING + 2048;
pub(crate) const MAX_RESPONSE_BYTES: usize = 2048;
/// Protocols of an address; a real one has three.
const MAX_ADDRESS_PARTS: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// Dial me back.
    Probe { known: Vec<IpAddr> },
    /// Dial somebody for me.
    Help {
        peer: PeerId,
        address: Multiaddr,
        padding: usize,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) answer: Answer,
    pub(crate) observed: Option<Multiaddr>,
}

/// A message that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message is malformed")]
pub(crate) struct Malformed;

impl Request {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let kind = match self {
            Self::Probe { known } => wire::request::Kind::Probe(wire::Probe {
                known: known.iter().map(|ip| ip_bytes(ip).into()).collect(),
            }),
            Self::Help {
                peer,
                address,
                padding,
            } => wire::request::Kind::Help(wire::Help {
                peer: peer.to_bytes().into(),
                address: address.to_vec().into(),
                padding: vec![0; *padding].into(),
            }),
        };
        wire::Request { kind: Some(kind) }.encode_to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let request = wire::Request::decode(bytes).map_err(|_| Malformed)?;
        match request.kind.ok_or(Malformed)? {
            wire::request::Kind::Probe(probe) if probe.known.len() <= MAX_KNOWN => {
                let known: Option<Vec<IpAddr>> =
                    probe.known.iter().map(|bytes| ip(bytes)).collect();
                Ok(Self::Probe {
                    known: known.ok_or(Malformed)?,
                })
            }
            wire::request::Kind::Probe(_) => Err(Malformed),
            wire::request::Kind::Help(help) => Ok(Self::Help {
                peer: PeerId::from_bytes(&help.peer).map_err(|_| Malformed)?,
                address: address(help.address.to_vec())?,
                padding: help.padding.len(),
            }),
        }
    }
}

impl Response {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let outcome = |outcome| match outcome {
            Outcome::NotTried => wire::Outcome::NotTried,
            Outcome::Reached => wire::Outcome::Reached,
            Outcome::Unreached => wire::Outcome::Unreached,
        };
        let answer = &self.answer;
        let status = if answer.refused {
            wire::Status::Refused
        } else {
            wire::Status::Ok
        };
        wire::Response {
            status: status.into(),
            observed: self
                .observed
                .as_ref()
                .map(|observed| observed.to_vec().into())
                .unwrap_or_default(),
            from_other_port: outcome(answer.from_other_port).into(),
            from_other_address: outcome(answer.from_other_address).into(),
            helper: answer
                .helper
                .map(|helper| ip_bytes(&helper).into())
                .unwrap_or_default(),
        }
        .encode_to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let response = wire::Response::decode(bytes).map_err(|_| Malformed)?;
        let outcome = |outcome| match outcome {
            wire::Outcome::NotTried => Outcome::NotTried,
            wire::Outcome::Reached => Outcome::Reached,
            wire::Outcome::Unreached => Outcome::Unreached,
        };
        Ok(Self {
            answer: Answer {
                refused: response.status() != wire::Status::Ok,
                from_other_port: outcome(response.from_other_port()),
                from_other_address: outcome(response.from_other_address()),
                helper: match response.helper.as_ref() {
                    [] => None,
                    bytes => Some(ip(bytes).ok_or(Malformed)?),
                },
            },
            observed: match response.observed.as_ref() {
                [] => None,
                bytes => Some(address(bytes.to_vec())?),
            },
        })
    }
}

fn ip_bytes(ip: &IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(octets));
    }
    let octets = <[u8; 16]>::try_from(bytes).ok()?;
    Some(IpAddr::from(octets).to_canonical())
}

fn address(bytes: Vec<u8>) -> Result<Multiaddr, Malformed> {
    let address = Multiaddr::try_from(bytes).map_err(|_| Malformed)?;
    let by_name =
        |protocol: &Protocol<'_>| !matches!(protocol, Protocol::Ip4(_) | Protocol::Ip6(_));
    let refused = address.iter().count() > MAX_ADDRESS_PARTS
        || address.iter().next().is_none_or(|first| by_name(&first));
    if refused { Err(Malformed) } else { Ok(address) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written() {
        let requests = [
            Request::Probe {
                known: vec![
                    "203.0.113.7".parse().unwrap(),
                    "2001:db8::7".parse().unwrap(),
                ],
            },
            Request::Help {
                peer: PeerId::random(),
                address: "/ip4/203.0.113.7/udp/1/quic-v1".parse().unwrap(),
                padding: MIN_PADDING,
            },
        ];
        for request in requests {
            let bytes = request.encode();
            assert!(bytes.len() <= MAX_REQUEST_BYTES);
            assert_eq!(Request::decode(&bytes), Ok(request));
        }
        let response = Response {
            answer: Answer {
                refused: false,
                from_other_port: Outcome::Reached,
                from_other_address: Outcome::Unreached,
                helper: Some("203.0.113.8".parse().unwrap()),
            },
            observed: Some("/ip4/203.0.113.7/tcp/40000".parse().unwrap()),
        };
        assert_eq!(Response::decode(&response.encode()), Ok(response));
    }

    #[test]
    fn what_no_node_of_ours_sends_is_refused() {
        let probe = |known: Vec<Vec<u8>>| {
            let kind = wire::request::Kind::Probe(wire::Probe {
                known: known.into_iter().map(Into::into).collect(),
            });
            Request::decode(&wire::Request { kind: Some(kind) }.encode_to_vec())
        };
        assert!(probe(vec![vec![1, 2, 3, 4]; MAX_KNOWN]).is_ok());
        assert_eq!(probe(vec![vec![1, 2, 3, 4]; MAX_KNOWN + 1]), Err(Malformed));
        assert_eq!(probe(vec![vec![1, 2, 3]]), Err(Malformed));
        let help = |address: &str| {
            let address: Multiaddr = address.parse().unwrap();
            let kind = wire::request::Kind::Help(wire::Help {
                peer: PeerId::random().to_bytes().into(),
                address: address.to_vec().into(),
                padding: Vec::new().into(),
            });
            Request::decode(&wire::Request { kind: Some(kind) }.encode_to_vec())
        };
        assert!(help("/ip4/203.0.113.7/tcp/1").is_ok());
        assert_eq!(help("/dns4/victim.example/tcp/1"), Err(Malformed));
        assert_eq!(help(&"/ip4/203.0.113.7/tcp/1".repeat(5)), Err(Malformed));
        assert_eq!(Request::decode(&[]), Err(Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange_to_read(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Request::decode(&bytes);
            let _ = Response::decode(&bytes);
        }
    }
}
