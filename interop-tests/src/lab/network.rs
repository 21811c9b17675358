//! A built lab: namespaces, bridges, NAT boxes and wires.

use super::leg::Leg;
use super::nat::NatKind;
use super::netns::Namespace;
use super::plan::{Lab, Site};
use super::wire::{End, Links, Traffic, Wire};
use super::{LabError, sandbox};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The core router's address on every leg.
const CORE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Public addresses, where the plan says nothing.
const DOCUMENTATION: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 0);
const CORE_MAC: &str = "02:00:00:00:00:01";
const SITE_MAC: &str = "02:00:00:00:00:02";
/// Sites that the address plan has room for.
const MAX_SITES: usize = 24;

/// A machine of the lab on which programs run.
#[derive(Clone, Debug)]
pub struct Host {
    name: String,
    namespace: Namespace,
    address: Ipv4Addr,
    public: Ipv4Addr,
    kind: NatKind,
    site: usize,
    router: Option<Namespace>,
}

impl Host {
    /// Its name in the plan.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its own (first) address, behind its NAT.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The address that the public network sees.
    pub fn public(&self) -> Ipv4Addr {
        self.public
    }

    /// What it stands behind.
    pub fn nat(&self) -> NatKind {
        self.kind
    }

    /// The box that is its gateway, with the devices `lan` and `wan`; `None` without a NAT.
    pub fn router(&self) -> Option<&Namespace> {
        self.router.as_ref()
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Runs `work` on this host (see [`Namespace::enter`]).
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        self.namespace.enter(work)
    }

    /// Runs a tool on this host to its end and returns its standard output.
    pub fn run<const N: usize>(
        &self,
        program: &str,
        arguments: [&str; N],
    ) -> Result<String, LabError> {
        self.namespace.run(program, arguments)
    }

    /// Starts a process on this host.
    pub fn spawn(&self, command: &mut Command) -> Result<process::Child, LabError> {
        self.namespace.spawn(command)
    }
}

/// A running lab. Dropping it ends its wires and removes its namespaces.
#[derive(Debug)]
pub struct Network {
    // Wires go first, while the devices that they hold still exist.
    wires: Vec<Wire>,
    hosts: BTreeMap<String, Host>,
    boxes: Vec<Namespace>,
    core: Namespace,
    /// Sets the names of this lab apart from another one's in the same sandbox.
    number: u32,
}

impl Network {
    pub(crate) fn build(plan: &Lab) -> Result<Self, LabError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !sandbox::is_inside() {
            return Err(LabError::NotInside);
        }
        if let Some(misuse) = &plan.misuse {
            return Err(LabError::Plan(misuse.clone()));
        }
        if plan.sites.len() > MAX_SITES {
            return Err(LabError::Plan(format!("more than {MAX_SITES} sites")));
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let core = Namespace::create(&format!("n{number}c"))?;
        routing(&core)?;
        let mut network = Self {
            wires: Vec::new(),
            hosts: BTreeMap::new(),
            boxes: Vec::new(),
            core,
            number,
        };
        for (index, site) in plan.sites.iter().enumerate() {
            network.add_site(index, site, plan)?;
        }
        Ok(network)
    }

    /// The host of this name.
    pub fn host(&self, name: &str) -> Result<&Host, LabError> {
        self.hosts
            .get(name)
            .ok_or_else(|| LabError::Plan(format!("no host is called {name}")))
    }

    /// All hosts, by name.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.values()
    }

    /// What the leg of this host's site has carried.
    pub fn traffic(&self, host: &Host) -> Option<&Traffic> {
        self.wires.get(host.site).map(Wire::traffic)
    }

    /// Cuts the leg of this host's site, in silence: nothing passes, and no end is told.
    pub fn cut(&self, host: &Host) {
        self.set_cut(host, true);
    }

    /// Mends what [`cut`](Self::cut) cut.
    pub fn mend(&self, host: &Host) {
        self.set_cut(host, false);
    }

    fn set_cut(&self, host: &Host, cut: bool) {
        if let Some(wire) = self.wires.get(host.site) {
            wire.set_cut(cut);
        }
    }

    /// Gives the NAT box of this host's site another public address, as a provider does. The
    /// hosts behind it are not told. For the kinds that masquerade.
    pub fn renumber(&mut self, host: &str, public: Ipv4Addr) -> Result<(), LabError> {
        let (site, old) = self.host(host).map(|host| (host.site, host.public))?;
        self.edge(host)?.ip(&format!(
            "addr add {public}/32 dev wan\naddr del {old}/32 dev wan\n\
             route replace default via {CORE} dev wan\n"
        ))?;
        let mut outer =
            format!("route del {old}/32 dev w{site}\nroute add {public}/32 dev w{site}\n");
        // Where neighbours are told, not asked for.
        if Links::Auto.resolve() == Links::Packet {
            outer += &format!("neigh add {public} lladdr {SITE_MAC} dev w{site}\n");
        }
        self.core.ip(&outer)?;
        for host in self.hosts.values_mut().filter(|host| host.site == site) {
            host.public = public;
        }
        Ok(())
    }

    /// Restarts the NAT box of this host's site: for so long nothing gets through, and after that it knows no flow any
    /// more. The hosts behind it are not told. For the kinds that masquerade.
    pub fn reboot(&self, host: &str, outage: Duration) -> Result<(), LabError> {
        let (edge, public) = (self.edge(host)?, self.host(host)?.public);
        // With its address go the flows that have it.
        edge.ip(&format!("addr del {public}/32 dev wan\n"))?;
        std::thread::sleep(outage);
        edge.ip(&format!(
            "addr add {public}/32 dev wan\nroute replace {CORE}/32 dev wan\nroute replace default via {CORE} dev wan\n"
        ))
    }

    /// The NAT box of this host's site.
    fn edge(&self, host: &str) -> Result<&Namespace, LabError> {
        let name = format!("n{}s{}", self.number, self.host(host)?.site);
        self.boxes
            .iter()
            .find(|edge| edge.name() == name)
            .ok_or_else(|| LabError::Plan(format!("{host} stands behind no NAT")))
    }

    /// Takes the host's interface down and up again with another address, as when it changes
    /// from one network to another behind the same NAT.
    pub fn move_host(&mut self, name: &str, octet: u8) -> Result<(), LabError> {
        let host = self
            .hosts
            .get_mut(name)
            .ok_or_else(|| LabError::Plan(format!("no host is called {name}")))?;
        let old = host.address;
        let [a, b, c, _] = old.octets();
        let (new, gateway) = (Ipv4Addr::new(a, b, c, octet), Ipv4Addr::new(a, b, c, 1));
        host.namespace.ip(&format!(
            "link set eth0 down\naddr del {old}/24 dev eth0\naddr add {new}/24 dev eth0\n\
             link set eth0 up\nroute add default via {gateway}\n"
        ))?;
        host.address = new;
        Ok(())
    }

    fn add_site(&mut self, index: usize, site: &Site, plan: &Lab) -> Result<(), LabError> {
        let number = self.number;
        let [a, b, c, _] = plan.public.unwrap_or(DOCUMENTATION).octets();
        let counted = Ipv4Addr::new(a, b, c, counted_octet(index));
        let addresses = if site.addresses.is_empty() {
            vec![counted]
        } else {
            site.addresses.clone()
        };
        let public = addresses.first().copied().unwrap_or(counted);
        let edge = Namespace::create(&format!("n{number}s{index}"))?;
        self.lay_wire(index, &edge, &addresses, site.leg, plan.links)?;
        let Some(rules) = site.kind.rules(public) else {
            for name in &site.hosts {
                let host = Host {
                    name: name.clone(),
                    namespace: edge.clone(),
                    address: public,
                    public,
                    kind: site.kind,
                    site: index,
                    router: None,
                };
                self.add_host(host)?;
            }
            return Ok(());
        };
        routing(&edge)?;
        edge.nft(&rules)?;
        let router = if site.kind.has_home_router() {
            self.add_home_router(index, &edge)?
        } else {
            edge.clone()
        };
        self.boxes.push(edge);
        self.add_lan(index, site, public, &router)
    }

    fn add_host(&mut self, host: Host) -> Result<(), LabError> {
        match self.hosts.insert(host.name.clone(), host) {
            None => Ok(()),
            Some(twin) => Err(LabError::Plan(format!(
                "two hosts are called {}",
                twin.name
            ))),
        }
    }

    /// The leg from the core to the site's device `wan`.
    fn lay_wire(
        &mut self,
        index: usize,
        edge: &Namespace,
        addresses: &[Ipv4Addr],
        leg: Leg,
        links: Links,
    ) -> Result<(), LabError> {
        let device = format!("w{index}");
        let leg = Leg {
            seed: leg.seed.wrapping_add(index as u64),
            ..leg
        };
        let near = End {
            namespace: edge,
            device: "wan",
            mac: SITE_MAC,
        };
        let far = End {
            namespace: &self.core,
            device: &device,
            mac: CORE_MAC,
        };
        self.wires.push(Wire::lay(&near, &far, leg, links)?);
        // Neighbours are told, not asked for: the first packet of a pair would pay for the question.
        let told = links.resolve() == Links::Packet;
        let mut inner = String::new();
        let mut outer = format!("addr add {CORE}/32 dev {device}\n");
        for address in addresses {
            inner += &format!("addr add {address}/32 dev wan\n");
            outer += &format!("route add {address}/32 dev {device}\n");
            if told {
                outer += &format!("neigh add {address} lladdr {SITE_MAC} dev {device}\n");
            }
        }
        inner += &format!("route add {CORE}/32 dev wan\n");
        if told {
            inner += &format!("neigh add {CORE} lladdr {CORE_MAC} dev wan\n");
        }
        inner += &format!("route add default via {CORE} dev wan\n");
        edge.ip(&inner)?;
        self.core.ip(&outer)
    }

    /// The customer's own port-restricted NAT behind the carrier's.
    fn add_home_router(&mut self, index: usize, edge: &Namespace) -> Result<Namespace, LabError> {
        let router = Namespace::create(&format!("n{}r{index}", self.number))?;
        routing(&router)?;
        sandbox::run(
            "ip",
            [
                "link",
                "add",
                "lan",
                "netns",
                edge.name(),
                "type",
                "veth",
                "peer",
                "name",
                "wan",
                "netns",
                router.name(),
            ],
        )?;
        let (carrier, customer) = (
            Ipv4Addr::new(100, 64, index as u8, 1),
            Ipv4Addr::new(100, 64, index as u8, 2),
        );
        edge.ip(&format!("addr add {carrier}/24 dev lan\nlink set lan up\n"))?;
        router.ip(&format!(
            "addr add {customer}/24 dev wan\nlink set wan up\nroute add default via {carrier}\n"
        ))?;
        if let Some(rules) = NatKind::PortRestricted.rules(customer) {
            router.nft(&rules)?;
        }
        self.boxes.push(router.clone());
        Ok(router)
    }

    /// The bridge `lan` with the site's hosts.
    fn add_lan(
        &mut self,
        index: usize,
        site: &Site,
        public: Ipv4Addr,
        router: &Namespace,
    ) -> Result<(), LabError> {
        let gateway = Ipv4Addr::new(10, index as u8 + 1, 0, 1);
        router.ip(&format!(
            "link add lan type bridge forward_delay 0\naddr add {gateway}/24 dev lan\n\
             link set lan up\n"
        ))?;
        for (position, name) in site.hosts.iter().enumerate() {
            let namespace = Namespace::create(&format!("n{}h{index}x{position}", self.number))?;
            let port = format!("port{position}");
            sandbox::run(
                "ip",
                [
                    "link",
                    "add",
                    &port,
                    "netns",
                    router.name(),
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "eth0",
                    "netns",
                    namespace.name(),
                ],
            )?;
            router.ip(&format!("link set {port} master lan\nlink set {port} up\n"))?;
            let address = Ipv4Addr::new(10, index as u8 + 1, 0, 10 + position as u8);
            namespace.ip(&format!(
                "addr add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n"
            ))?;
            self.add_host(Host {
                name: name.clone(),
                namespace,
                address,
                public,
                kind: site.kind,
                site: index,
                router: Some(router.clone()),
            })?;
        }
        Ok(())
    }
}

/// .10, .20, … .90, then .119 and up, so that .100 is free for a relay.
fn counted_octet(index: usize) -> u8 {
    let index = index as u8;
    if index < 9 {
        10 * (index + 1)
    } else {
        110 + index
    }
}

/// Forwarding on; bridged frames stay out of the IP hooks, where they would lose their device's name.
fn routing(namespace: &Namespace) -> Result<(), LabError> {
    namespace.sysctl("ipv4/ip_forward", "1")?;
    namespace.sysctl("ipv4/conf/all/rp_filter", "0")?;
    let bridged = "bridge/bridge-nf-call-iptables";
    if std::path::Path::new("/proc/sys/net").join(bridged).exists() {
        namespace.sysctl(bridged, "0")?;
    }
    Ok(())
}
