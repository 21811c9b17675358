//! What can be compared, and what cannot yet.

use super::{Effort, Error, bitswap, figure::Figure, punch, relay, store};

/// A group of figures.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Area {
    /// Our bitswap against a raw libp2p stream, beetswap and litep2p, or against Helia or boxo: loopback TCP and QUIC, and the lab's links
    Bitswap(bitswap::Options),
    /// Our relay and its client against stock libp2p-relay and a direct connection, or against go-libp2p's relay
    Relay(relay::Options),
    /// Our block store against raw appends, a file per block, fjall and redb: puts, gets, space, memory, reopening
    Store(store::Options),
    /// Our hole punching against stock libp2p-dcutr: every pair of NATs in the lab (Linux, nftables, iproute2, ethtool)
    Punch(punch::Options),
    /// Not built yet (no issue planned so far)
    Dht,
    /// Not built yet (no issue planned so far)
    Select,
}

/// An area without figures.
#[derive(Debug, thiserror::Error)]
#[error("`compare -- {name}` is not built yet ({plan}); built are: bitswap, relay, store, punch")]
pub struct NotBuilt {
    name: &'static str,
    plan: &'static str,
}

impl Area {
    /// All that have figures.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let store = store::Options::default();
        let punch = punch::Options::default();
        vec![
            Self::Bitswap(bitswap::Options::default()),
            Self::Relay(relay::Options::default()),
            Self::Store(store),
            Self::Punch(punch),
        ]
    }

    /// Whether this area has figures.
    ///
    /// # Errors
    ///
    /// [`NotBuilt`] says which issue brings it.
    pub fn built(&self) -> Result<(), NotBuilt> {
        let (name, plan) = match self {
            Self::Bitswap(_) | Self::Relay(_) | Self::Store(_) | Self::Punch(_) => return Ok(()),
            Self::Dht => ("dht", "no issue planned so far"),
            Self::Select => ("select", "no issue planned so far"),
        };
        Err(NotBuilt { name, plan })
    }

    /// Measures and hands each figure to `report` as soon as it is known.
    ///
    /// # Errors
    ///
    /// [`NotBuilt`], or the first endpoint that failed.
    pub async fn measure(
        self,
        effort: Effort,
        report: &mut dyn FnMut(Figure),
    ) -> Result<(), Error> {
        self.built()?;
        match self {
            Self::Bitswap(options) => bitswap::measure(options, effort, report).await,
            Self::Relay(options) => relay::measure(options, effort, report).await,
            Self::Store(options) => store::measure(options, effort, report).await,
            Self::Punch(options) => punch::measure(&options, effort, report),
            Self::Dht | Self::Select => Ok(()),
        }
    }
}
