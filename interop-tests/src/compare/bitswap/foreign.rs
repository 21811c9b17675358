//! Beside implementations in other languages: between two of ours, between two of theirs, and from theirs to ours.

use super::{Blocks, Load, WINDOW, address, far};
use crate::compare::endpoint::{Endpoint, megabytes_per_second};
use crate::compare::figure::{Figure, Unit};
use crate::compare::swarm::Transport;
use crate::compare::{Effort, Error, blocks};
use crate::lab::Host;
use crate::peers::{Implementation, Peer, Settings};
use cid::Cid;

/// An implementation that is not written in Rust.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Foreign {
    /// Helia with js-libp2p, on Node
    Helia,
    /// boxo with go-libp2p
    Boxo,
}

impl Foreign {
    /// As it stands in figures and arguments.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Helia => "helia",
            Self::Boxo => "boxo",
        }
    }

    fn implementation(self) -> Implementation {
        match self {
            Self::Helia => Implementation::Js,
            Self::Boxo => Implementation::Go,
        }
    }

    /// What ours does with its blocks beside this one: Helia's get puts them into its store, boxo's client hands them on.
    fn blocks(self) -> Blocks {
        match self {
            Self::Helia => Blocks::Kept,
            Self::Boxo => Blocks::Dropped,
        }
    }
}

/// Block sizes, with their name in figures and how many make a run of 256 MiB.
const SIZES: [(usize, &str, u64); 2] = [(256 << 10, "256KiB", 1024), (1 << 20, "1MiB", 256)];

/// All figures beside `peer`.
pub(super) async fn measure(
    peer: Foreign,
    effort: Effort,
    report: &mut dyn FnMut(Figure),
) -> Result<(), Error> {
    for transport in Transport::ALL {
        for (block_bytes, size, blocks) in SIZES {
            let load = Load {
                transport,
                block_bytes,
                blocks: effort.scale(blocks),
            };
            let pair = Pair::new(peer, load, None);
            let mut rounds = Vec::new();
            for _ in 0..effort.runs() {
                rounds.push(pair.round().await?);
            }
            let what = format!("bitswap.{}.{size}", transport.name());
            report_rounds(&what, peer, load, &rounds, report);
        }
        far::beside(peer, transport, effort, report).await?;
    }
    Ok(())
}

/// The figure of each pair of ends: ours beside theirs, and mixed beside theirs.
pub(super) fn report_rounds(
    what: &str,
    peer: Foreign,
    load: Load,
    rounds: &[Round],
    report: &mut dyn FnMut(Figure),
) {
    let name = peer.name();
    let speed = |nanoseconds| megabytes_per_second([load.bytes(), nanoseconds]);
    let figure = |what: String, run: fn(&Round) -> u64| {
        let runs = rounds
            .iter()
            .map(|round| (speed(run(round)), speed(round.theirs)));
        Figure::new(what, Unit::MegabytesPerSecond, runs.collect())
    };
    report(figure(format!("{what}.{name}"), |round| round.ours));
    report(figure(format!("{what}.{name}_to_ours"), |round| {
        round.mixed
    }));
}

/// Nanoseconds of one run of each.
pub(super) struct Round {
    /// Between two of ours.
    pub(super) ours: u64,
    /// Between two of theirs.
    pub(super) theirs: u64,
    /// From theirs to ours.
    pub(super) mixed: u64,
}

/// Where an end runs: on loopback for None.
type Place<'a> = Option<&'a Host>;

/// A seed and a leech of either kind, and what goes from one to the other.
pub(super) struct Pair<'a> {
    peer: Foreign,
    load: Load,
    cids: Vec<Cid>,
    hosts: Option<(&'a Host, &'a Host)>,
}

impl<'a> Pair<'a> {
    /// On the hosts of a seed and of a leech, or on loopback.
    pub(super) fn new(peer: Foreign, load: Load, hosts: Option<(&'a Host, &'a Host)>) -> Self {
        let cids = blocks::all(load.blocks, load.block_bytes).map(|(cid, _)| cid);
        Self {
            peer,
            load,
            cids: cids.collect(),
            hosts,
        }
    }

    /// One run of each, every end a fresh process.
    pub(super) async fn round(&self) -> Result<Round, Error> {
        let (seed, leech) = self.hosts.unzip();

        let mut ours = self.our_seed(seed)?;
        let address = ours.line("listening").await?;
        let ours_to_ours = self.our_leech(leech, &address).await?;
        ours.end().await?;

        let theirs = self.their_seed(seed).await?;
        let theirs_to_theirs = self.their_leech(leech, &theirs).await?;
        theirs.stop().await?;

        // A seed that has served before would know what it need not send again.
        let theirs = self.their_seed(seed).await?;
        let address = theirs.address()?.to_string();
        let theirs_to_ours = self.our_leech(leech, &address).await?;
        theirs.stop().await?;

        Ok(Round {
            ours: ours_to_ours,
            theirs: theirs_to_theirs,
            mixed: theirs_to_ours,
        })
    }

    fn our_seed(&self, place: Place<'_>) -> Result<Endpoint, Error> {
        let mut arguments = self.load.arguments(None, "seed");
        if let Some(host) = place {
            arguments.extend(["--on".to_owned(), host.address().to_string()]);
        }
        start(place, arguments)
    }

    async fn our_leech(&self, place: Place<'_>, seed: &str) -> Result<u64, Error> {
        let mut arguments = self.load.arguments(None, "leech");
        if self.peer.blocks() == Blocks::Kept {
            arguments.push("--keep".to_owned());
        }
        arguments.extend([WINDOW.to_string(), seed.to_owned()]);
        let mut leech = start(place, arguments)?;
        let [bytes, nanoseconds] = leech.numbers("done").await?;
        leech.end().await?;
        self.complete(bytes)?;
        Ok(nanoseconds)
    }

    async fn their_seed(&self, place: Place<'_>) -> Result<Peer, Error> {
        let on = place.map(Host::address);
        let mut seed = self.theirs(place, vec![address(self.load, on)]).await?;
        seed.generate(self.load.blocks, self.load.block_bytes)
            .await?;
        Ok(seed)
    }

    async fn their_leech(&self, place: Place<'_>, seed: &Peer) -> Result<u64, Error> {
        let mut leech = self.theirs(place, Vec::new()).await?;
        let peer = leech.dial(&seed.address()?).await?;
        // Before, js-libp2p does not know that the other speaks bitswap.
        leech.identify(peer).await?;
        let fetched = leech.fetch(&self.cids).await?;
        leech.stop().await?;
        self.complete(fetched.bytes)?;
        Ok(fetched.nanoseconds)
    }

    async fn theirs(
        &self,
        place: Place<'_>,
        listen: Vec<libp2p::Multiaddr>,
    ) -> Result<Peer, Error> {
        let implementation = self.peer.implementation();
        let settings = Settings {
            listen,
            ..Settings::default()
        };
        Ok(match place {
            None => Peer::start(implementation, &settings).await?,
            Some(host) => Peer::start_on(host, implementation, &settings).await?,
        })
    }

    fn complete(&self, bytes: u64) -> Result<(), Error> {
        if bytes == self.load.bytes() {
            return Ok(());
        }
        Err(format!("{bytes} bytes arrived of {} blocks", self.load.blocks).into())
    }
}

fn start(place: Place<'_>, arguments: Vec<String>) -> Result<Endpoint, Error> {
    match place {
        None => Endpoint::start(None, arguments),
        Some(host) => Endpoint::start_on(host, None, arguments),
    }
}
