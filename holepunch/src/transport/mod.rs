//! Dials from local ports that nobody else uses, for the attempts after the first.
//!
//! A packet that reaches a NAT too early can spoil a pair of ports for good (see the README), and libp2p's
//! transports have one port. [`Tcp`] and [`Quic`] stand before them: they take the dials that the
//! [`Behaviour`](crate::Behaviour) has announced through [`Ports`], each from the port it names, and leave
//! all others to the transports behind them. Compose them with
//! [`OrTransport`](libp2p_core::transport::OrTransport) and give the same [`Ports`] to
//! [`Behaviour::with_fresh_ports`](crate::Behaviour::with_fresh_ports):
//!
//! ```
//! use anypath_holepunch::{Behaviour, Config, transport::{Ports, Quic, Tcp}};
//! use libp2p_core::{Transport as _, muxing::StreamMuxerBox, upgrade::Version};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let keypair = libp2p_identity::Keypair::generate_ed25519();
//! let ports = Ports::default();
//!
//! let quic_config = libp2p_quic::Config::new(&keypair);
//! let usual = libp2p_quic::tokio::Transport::new(quic_config.clone());
//! let fresh = Quic::new(&ports, move || libp2p_quic::tokio::Transport::new(quic_config.clone()));
//! let quic = fresh
//!     .or_transport(usual)
//!     .map(|either, _| either.into_inner())
//!     .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
//!
//! let tcp = Tcp::new(&ports)
//!     .or_transport(libp2p_tcp::tokio::Transport::default())
//!     .upgrade(Version::V1Lazy)
//!     .authenticate(libp2p_noise::Config::new(&keypair)?)
//!     .multiplex(libp2p_yamux::Config::default())
//!     .boxed();
//!
//! let transport = quic.or_transport(tcp).map(|either, _| either.into_inner()).boxed();
//! let holepunch = Behaviour::new(keypair.public().to_peer_id(), Config::default())
//!     .with_fresh_ports(ports);
//! # let _ = (transport, holepunch);
//! # Ok(())
//! # }
//! ```
//!
//! They must see the dial when the swarm begins it: put them beside a DNS transport, not behind it.

mod ports;
mod quic;
mod tcp;

pub use ports::Ports;
pub(crate) use ports::{Departure, Purpose, end_of};
pub use quic::{Quic, QuicError};
pub use tcp::{Tcp, TcpStream};
