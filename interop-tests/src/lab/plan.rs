//! What a lab consists of, before it is built.

use super::LabError;
use super::leg::Leg;
use super::nat::NatKind;
use super::network::Network;
use super::wire::Links;
use std::net::Ipv4Addr;

/// The plan of a lab: sites behind NATs, servers with public addresses, and the legs that join them
/// at one core router.
///
/// ```no_run
/// use anypath_interop_tests::lab::{Lab, NatKind};
///
/// let network = Lab::new()
///     .nat(NatKind::PortRestricted)
///     .host("alice")
///     .nat(NatKind::Symmetric)
///     .host("bob")
///     .server("relay", &["203.0.113.100".parse()?])
///     .start()?;
/// network.host("alice")?.run("ping", ["-c", "1", "203.0.113.100"])?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Lab {
    pub(crate) sites: Vec<Site>,
    pub(crate) leg: Leg,
    pub(crate) links: Links,
    pub(crate) public: Option<Ipv4Addr>,
    pub(crate) misuse: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) kind: NatKind,
    pub(crate) leg: Leg,
    pub(crate) hosts: Vec<String>,
    /// Given by the plan for servers; counted for the rest.
    pub(crate) addresses: Vec<Ipv4Addr>,
}

impl Lab {
    /// An empty plan with legs of 12.5 ms: 50 ms from site to site and back.
    pub fn new() -> Self {
        Self::default()
    }

    /// The leg of every site that follows.
    #[must_use]
    pub fn leg(mut self, leg: Leg) -> Self {
        self.leg = leg;
        self
    }

    /// How the ends of legs are made.
    #[must_use]
    pub fn links(mut self, links: Links) -> Self {
        self.links = links;
        self
    }

    /// The /24 from which sites without addresses of their own get them: 203.0.113.0 unless another one is asked for. That
    /// is a range for documentation, which some programs do not take for public.
    #[must_use]
    pub fn public(mut self, network: Ipv4Addr) -> Self {
        self.public = Some(network);
        self
    }

    /// A new site behind such a NAT; the hosts that follow stand there, on one bridge.
    #[must_use]
    pub fn nat(mut self, kind: NatKind) -> Self {
        let leg = self.leg;
        self.sites.push(Site {
            kind,
            leg,
            hosts: Vec::new(),
            addresses: Vec::new(),
        });
        self
    }

    /// A host at the last site.
    #[must_use]
    pub fn host(mut self, name: &str) -> Self {
        match self.sites.last_mut() {
            // Without a NAT there is no bridge to share: each host has a leg of its own.
            Some(site) if site.kind == NatKind::None && !site.hosts.is_empty() => {
                let leg = site.leg;
                let (kind, hosts) = (NatKind::None, vec![name.to_owned()]);
                self.sites.push(Site {
                    kind,
                    leg,
                    hosts,
                    addresses: Vec::new(),
                });
            }
            Some(site) if site.addresses.is_empty() => site.hosts.push(name.to_owned()),
            _ => self.misuse = Some(format!("host {name} stands at no site: call `nat` first")),
        }
        self
    }

    /// A host with these public addresses and no NAT.
    #[must_use]
    pub fn server(mut self, name: &str, addresses: &[Ipv4Addr]) -> Self {
        if addresses.is_empty() {
            self.misuse = Some(format!("server {name} has no address"));
        }
        self.sites.push(Site {
            kind: NatKind::None,
            leg: self.leg,
            hosts: vec![name.to_owned()],
            addresses: addresses.to_vec(),
        });
        self
    }

    /// Builds it. The process must be [inside](super::enter).
    pub fn start(self) -> Result<Network, LabError> {
        Network::build(&self)
    }
}
