//! The transport is the stock one: it dials and listens on `…/p2p-circuit` addresses and nothing
//! else.

/// Dials and listens on relayed addresses; combine it with the transport that reaches the relays:
/// `relay_transport.or_transport(tcp)`.
///
/// The [`Behaviour`](super::Behaviour) that [`new`](super::new) returns with it does the work:
/// keep both in one swarm, and drop neither before the other.
pub type Transport = libp2p_relay::client::Transport;

/// One circuit, before it is secured and multiplexed.
pub type Connection = libp2p_relay::client::Connection;

/// Why a relayed address could not be dialled or listened on.
pub type TransportError = libp2p_relay::client::transport::Error;
