use cid::Cid;
use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;

/// Names one query; unique for the life of a behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(crate) u64);

impl std::fmt::Display for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "query {}", self.0)
    }
}

/// A point in the key space that a lookup walks towards.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Target {
    /// The place of a peer.
    Peer(PeerId),
    /// The place of a block's provider records: its multihash.
    Cid(Cid),
}

impl Target {
    /// The bytes whose SHA-256 is the point in the key space.
    pub fn key(&self) -> Vec<u8> {
        match self {
            Self::Peer(peer) => peer.to_bytes(),
            Self::Cid(cid) => cid.hash().to_bytes(),
        }
    }
}

impl From<PeerId> for Target {
    fn from(peer: PeerId) -> Self {
        Self::Peer(peer)
    }
}

impl From<Cid> for Target {
    fn from(cid: Cid) -> Self {
        Self::Cid(cid)
    }
}

/// A peer and where it says that it can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// Its id.
    pub id: PeerId,
    /// Its addresses as other nodes reported them: unverified, at most
    /// [`Config::max_addresses_per_peer`](crate::Config::max_addresses_per_peer), possibly none.
    pub addresses: Vec<Multiaddr>,
}

/// What the DHT has to say. Every ticket gets exactly one of the `…Finished` events, in every case.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Providers that this query had not reported yet; any number of times before
    /// [`FindProvidersFinished`](Self::FindProvidersFinished). Their addresses have been given to the
    /// swarm (`NewExternalAddrOfPeer`) just before.
    ProvidersFound {
        /// From [`Behaviour::find_providers`](crate::Behaviour::find_providers).
        ticket: Ticket,
        /// What they provide.
        cid: Cid,
        /// Never empty, never the local peer.
        providers: Vec<PeerId>,
    },
    /// The search for providers is over.
    FindProvidersFinished {
        /// From [`Behaviour::find_providers`](crate::Behaviour::find_providers).
        ticket: Ticket,
        /// What was searched.
        cid: Cid,
        /// How many providers were reported in all.
        found: usize,
        /// An error does not take back what was found.
        result: Result<(), QueryError>,
    },
    /// The announcement is over. After an error the key stays provided and is announced once the
    /// node has joined the DHT, and again every republish interval, except after
    /// [`QueryError::StoreFull`] and [`QueryError::TooManyQueries`].
    ProvideFinished {
        /// From [`Behaviour::provide`](crate::Behaviour::provide).
        ticket: Ticket,
        /// What is provided.
        cid: Cid,
        /// `Ok` once the record was handed to the connections of the closest nodes; the protocol has no
        /// acknowledgement of it.
        result: Result<(), QueryError>,
    },
    /// The lookup is over.
    ClosestPeersFinished {
        /// From [`Behaviour::get_closest_peers`](crate::Behaviour::get_closest_peers).
        ticket: Ticket,
        /// What was looked up.
        target: Target,
        /// The closest peers that answered, closest first; what was found so far after an error.
        peers: Vec<Peer>,
        /// Whether the lookup ran to its end.
        result: Result<(), QueryError>,
    },
    /// The value is put, or is not. After an error it is put once the node has joined the DHT, and again every republish
    /// interval, except after [`QueryError::NoValidator`], [`QueryError::InvalidValue`], [`QueryError::Superseded`],
    /// [`QueryError::ValuesFull`] and [`QueryError::TooManyQueries`]. After [`QueryError::NotStored`] it is put at the next
    /// interval.
    PutValueFinished {
        /// From [`Behaviour::put_value`](crate::Behaviour::put_value).
        ticket: Ticket,
        /// The value's key.
        key: Vec<u8>,
        /// How many of the nodes closest to the key acknowledged it: go's do so if they keep it, libp2p-kad's whatever they do
        /// with it.
        stored: usize,
        /// `Ok` if any did.
        result: Result<(), QueryError>,
    },
    /// A value that is valid, and better than those that this query had found; any number of times before
    /// [`GetValueFinished`](Self::GetValueFinished).
    ValueFound {
        /// From [`Behaviour::get_value`](crate::Behaviour::get_value).
        ticket: Ticket,
        /// What was asked for.
        key: Vec<u8>,
        /// The best one so far.
        value: Vec<u8>,
    },
    /// The search for a value is over. Nodes that answered with a worse one have been sent the best.
    GetValueFinished {
        /// From [`Behaviour::get_value`](crate::Behaviour::get_value).
        ticket: Ticket,
        /// What was asked for.
        key: Vec<u8>,
        /// The best one that was found; an error does not take it back.
        value: Option<Vec<u8>>,
        /// Whether the lookup ran to its end.
        result: Result<(), QueryError>,
    },
    /// The routing table has been refreshed.
    BootstrapFinished {
        /// From [`Behaviour::bootstrap`](crate::Behaviour::bootstrap).
        ticket: Ticket,
        /// Whether it ran to its end.
        result: Result<(), QueryError>,
    },
    /// A value of ours is put no more, because it has ceased to be valid.
    ValueExpired {
        /// The value's key.
        key: Vec<u8>,
    },
    /// A peer entered the routing table.
    PeerRouted {
        /// The new entry.
        peer: PeerId,
        /// The peer that made room, if one did.
        evicted: Option<PeerId>,
    },
}

impl Event {
    /// The ticket that this event finishes, if it is a terminal one.
    pub fn finishes(&self) -> Option<Ticket> {
        match self {
            Self::FindProvidersFinished { ticket, .. }
            | Self::ProvideFinished { ticket, .. }
            | Self::ClosestPeersFinished { ticket, .. }
            | Self::PutValueFinished { ticket, .. }
            | Self::GetValueFinished { ticket, .. }
            | Self::BootstrapFinished { ticket, .. } => Some(*ticket),
            Self::ProvidersFound { .. }
            | Self::ValueFound { .. }
            | Self::ValueExpired { .. }
            | Self::PeerRouted { .. } => None,
        }
    }
}

/// Why a query did not run to its end, or could not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// No peer of this DHT is known.
    #[error("no peer of this DHT is known yet: add the address of one, or connect to one")]
    NoKnownPeers,
    /// Peers are known, but none of them answered.
    #[error("no known peer of this DHT answered: check the network, or add the address of another")]
    Unreachable,
    /// The query took longer than `query_timeout`.
    #[error("the query took longer than query_timeout")]
    Timeout,
    /// As many queries as `max_queries` allows are running.
    #[error("max_queries queries are running: wait for some to finish")]
    TooManyQueries,
    /// As many keys as `max_provided_keys` allows are provided.
    #[error("max_provided_keys keys are provided: raise it or stop providing some")]
    StoreFull,
    /// The key's namespace has no validator.
    #[error(
        "no validator for values of the namespace {0:?}: give one with Behaviour::with_validator"
    )]
    NoValidator(String),
    /// The key cannot have this value.
    #[error("the value is not valid for the key: {0}")]
    InvalidValue(String),
    /// The value is not better than one that is known.
    #[error("a value that is as good or better is known: get it, and put one that is better")]
    Superseded,
    /// As many values as `max_values` allows are put.
    #[error("max_values values are put: raise it or remove some")]
    ValuesFull,
    /// The nodes that are closest to the key were found, and none of them took the value.
    #[error(
        "no node took the value: those that are closest to its key may have a better one, or not know its namespace"
    )]
    NotStored,
}

impl QueryError {
    /// Whether to join the DHT again is no reason to announce it again.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::TooManyQueries
            | Self::StoreFull
            | Self::NoValidator(_)
            | Self::InvalidValue(_)
            | Self::Superseded
            | Self::ValuesFull
            // Kept, but who refused it once refuses it again: it is put at the next interval.
            | Self::NotStored => true,
            Self::NoKnownPeers | Self::Unreachable | Self::Timeout => false,
        }
    }
}
