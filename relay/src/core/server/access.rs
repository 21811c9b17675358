use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use libp2p_identity::PeerId;

use super::{bandwidth::Class, network::Network};

/// Who may use the relay, and how well it treats them.
///
/// An allowed peer or network is served whatever the denied ones say, without limits of time and bytes on its circuits, and in
/// [`Class::High`] unless [`class`](Self::class) says otherwise. Everyone denied is told `PERMISSION_DENIED`.
///
/// ```
/// use anypath_relay::server::Access;
///
/// let access = Access::default()
///     .allow_network("203.0.113.0/24".parse()?)
///     .only_allowed(true);
/// # Ok::<(), anypath_relay::server::InvalidNetwork>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    #[serde(deserialize_with = "peers")]
    allowed_peers: HashSet<PeerId>,
    allowed_networks: Vec<Network>,
    #[serde(deserialize_with = "peers")]
    denied_peers: HashSet<PeerId>,
    denied_networks: Vec<Network>,
    only_allowed: bool,
    #[serde(deserialize_with = "classes")]
    classes: HashMap<PeerId, Class>,
}

impl Access {
    /// Serves this peer without limits on its circuits.
    #[must_use]
    pub fn allow_peer(mut self, peer: PeerId) -> Self {
        self.allowed_peers.insert(peer);
        self
    }

    /// Serves all peers that connect from this network without limits on their circuits.
    #[must_use]
    pub fn allow_network(mut self, network: Network) -> Self {
        self.allowed_networks.push(network);
        self
    }

    /// Serves this peer not at all.
    #[must_use]
    pub fn deny_peer(mut self, peer: PeerId) -> Self {
        self.denied_peers.insert(peer);
        self
    }

    /// Serves no peer that connects from this network, unless it is allowed.
    #[must_use]
    pub fn deny_network(mut self, network: Network) -> Self {
        self.denied_networks.push(network);
        self
    }

    /// Whether everyone is denied who is not allowed: a private relay. Default false.
    ///
    /// A private relay still lets strangers connect to the peers that it serves, as that is what they reserve for; see
    /// [`deny_network`](Self::deny_network) for those who may not even do that.
    #[must_use]
    pub fn only_allowed(mut self, only: bool) -> Self {
        self.only_allowed = only;
        self
    }

    /// Puts this peer's circuits into a class of bandwidth. A circuit is in the better of its ends' classes.
    #[must_use]
    pub fn class(mut self, peer: PeerId, class: Class) -> Self {
        self.classes.insert(peer, class);
        self
    }

    pub(crate) fn is_allowed(&self, peer: PeerId, from: Option<IpAddr>) -> bool {
        self.allowed_peers.contains(&peer) || within(&self.allowed_networks, from)
    }

    fn is_denied(&self, peer: PeerId, from: Option<IpAddr>) -> bool {
        self.denied_peers.contains(&peer) || within(&self.denied_networks, from)
    }

    pub(crate) fn may_reserve(&self, peer: PeerId, from: Option<IpAddr>) -> bool {
        self.is_allowed(peer, from) || !(self.only_allowed || self.is_denied(peer, from))
    }

    pub(crate) fn may_connect(&self, peer: PeerId, from: Option<IpAddr>) -> bool {
        self.is_allowed(peer, from) || !self.is_denied(peer, from)
    }

    pub(crate) fn class_of(&self, peer: PeerId, from: Option<IpAddr>) -> Class {
        self.classes.get(&peer).copied().unwrap_or_else(|| {
            if self.is_allowed(peer, from) {
                Class::High
            } else {
                Class::Normal
            }
        })
    }
}

fn within(networks: &[Network], address: Option<IpAddr>) -> bool {
    address.is_some_and(|address| networks.iter().any(|network| network.contains(address)))
}

fn peers<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<HashSet<PeerId>, D::Error> {
    let names: Vec<String> = serde::Deserialize::deserialize(deserializer)?;
    names.iter().map(|name| peer(name)).collect()
}

fn classes<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<HashMap<PeerId, Class>, D::Error> {
    let names: HashMap<String, Class> = serde::Deserialize::deserialize(deserializer)?;
    names
        .into_iter()
        .map(|(name, class)| Ok((peer(&name)?, class)))
        .collect()
}

fn peer<E: serde::de::Error>(name: &str) -> Result<PeerId, E> {
    name.parse().map_err(E::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(address: &str) -> Option<IpAddr> {
        Some(address.parse().unwrap())
    }

    #[test]
    fn allowed_beats_denied_and_denied_beats_the_rest() {
        let (friend, foe, other) = (PeerId::random(), PeerId::random(), PeerId::random());
        let access = Access::default()
            .allow_peer(friend)
            .deny_peer(foe)
            .deny_network("198.51.100.0/24".parse().unwrap())
            .allow_network("198.51.100.7".parse().unwrap());
        assert!(access.may_reserve(friend, from("198.51.100.1")));
        assert!(!access.may_reserve(foe, from("203.0.113.1")));
        assert!(!access.may_connect(foe, None));
        assert!(!access.may_reserve(other, from("198.51.100.1")));
        assert!(access.may_reserve(other, from("198.51.100.7")));
        assert!(access.may_reserve(other, from("203.0.113.1")));
        assert!(access.may_reserve(other, None));
        assert_eq!(access.class_of(friend, None), Class::High);
        assert_eq!(access.class_of(other, None), Class::Normal);
    }

    #[test]
    fn a_private_relay_serves_its_own_and_lets_strangers_reach_them() {
        let friend = PeerId::random();
        let access = Access::default().allow_peer(friend).only_allowed(true);
        let stranger = PeerId::random();
        assert!(access.may_reserve(friend, None));
        assert!(!access.may_reserve(stranger, None));
        assert!(access.may_connect(stranger, None));
    }

    #[test]
    fn it_is_read_from_a_file() {
        let peer = PeerId::random();
        let text = format!(
            r#"{{"allowed_networks": ["10.0.0.0/8"], "denied_peers": ["{peer}"], "classes": {{"{peer}": "low"}}}}"#
        );
        let access: Access = serde_json::from_str(&text).unwrap();
        assert!(!access.may_reserve(peer, None));
        assert!(access.may_reserve(peer, from("10.1.2.3")));
        assert_eq!(access.class_of(peer, None), Class::Low);
        assert!(serde_json::from_str::<Access>(r#"{"denied_peers": ["me"]}"#).is_err());
        assert!(serde_json::from_str::<Access>(r#"{"denied": []}"#).is_err());
    }
}
