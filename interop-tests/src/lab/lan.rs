//! A local network: hosts on one bridge, with IPv4 and IPv6, and no router.

use super::netns::Namespace;
use super::{LabError, sandbox};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};

/// Hosts that the address plan has room for.
const MAX_HOSTS: usize = 250;

/// A running local network. It is real multicast: a Linux bridge floods it, as a switch does.
///
/// Host `n` has the device `eth0` with the addresses `10.x.0.n+1/24` and `fdxx::n+1/64`, where x is the network's own.
#[derive(Debug)]
pub struct Lan {
    switch: Namespace,
    hosts: Vec<Namespace>,
    number: u32,
}

impl Lan {
    /// Builds it with this many hosts, all of them plugged in.
    pub fn start(hosts: usize) -> Result<Self, LabError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !sandbox::is_inside() {
            return Err(LabError::NotInside);
        }
        if hosts > MAX_HOSTS {
            return Err(LabError::Plan(format!("more than {MAX_HOSTS} hosts")));
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let switch = Namespace::create(&format!("l{number}s"))?;
        switch.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        switch.ip("link add lan type bridge forward_delay 0\nlink set lan up\n")?;
        let mut lan = Self {
            switch,
            hosts: Vec::new(),
            number,
        };
        for host in 0..hosts {
            let namespace = Namespace::create(&format!("l{number}h{host}"))?;
            // An address is ready at once, not after a second of looking for its double.
            namespace.sysctl("ipv6/conf/all/accept_dad", "0")?;
            namespace.sysctl("ipv6/conf/default/accept_dad", "0")?;
            lan.hosts.push(namespace);
            lan.join(host, "eth0")?;
        }
        Ok(lan)
    }

    /// The host's namespace.
    pub fn host(&self, host: usize) -> Result<&Namespace, LabError> {
        self.hosts
            .get(host)
            .ok_or_else(|| LabError::Plan(format!("there is no host {host}")))
    }

    /// All hosts, in order.
    pub fn hosts(&self) -> impl Iterator<Item = &Namespace> {
        self.hosts.iter()
    }

    /// The IPv4 address of this place in the network.
    pub fn ipv4(&self, place: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number as u8 + 77, 0, place as u8 + 1)
    }

    /// The IPv6 address of this place that is not link-local.
    pub fn ipv6(&self, place: usize) -> Ipv6Addr {
        let network = 0xfd77 + self.number as u16;
        Ipv6Addr::new(network, 0, 0, 0, 0, 0, 0, place as u16 + 1)
    }

    /// Pulls the host's cable: the device stays up and has no carrier.
    pub fn unplug(&self, host: usize) -> Result<(), LabError> {
        self.switch.ip(&format!("link set p{host}eth0 down\n"))
    }

    /// Plugs it in again.
    pub fn plug(&self, host: usize) -> Result<(), LabError> {
        self.switch.ip(&format!("link set p{host}eth0 up\n"))
    }

    /// Takes the host's device away altogether.
    pub fn remove(&self, host: usize) -> Result<(), LabError> {
        self.host(host)?.ip("link del eth0\n")
    }

    /// Gives the host a device of this name with the host's addresses.
    pub fn join(&self, host: usize, device: &str) -> Result<(), LabError> {
        self.connect(self.host(host)?, host, device, &format!("p{host}{device}"))
    }

    /// Plugs a host of another network in here too, as this network's host number `place`.
    pub fn invite(&self, guest: &Namespace, place: usize, device: &str) -> Result<(), LabError> {
        self.connect(guest, place, device, &format!("g{place}{device}"))
    }

    fn connect(
        &self,
        host: &Namespace,
        place: usize,
        device: &str,
        port: &str,
    ) -> Result<(), LabError> {
        let (switch, inside) = (self.switch.name(), host.name());
        sandbox::run(
            "ip",
            [
                "link", "add", port, "netns", switch, "type", "veth", "peer", "name", device,
                "netns", inside,
            ],
        )?;
        self.switch
            .ip(&format!("link set {port} master lan\nlink set {port} up\n"))?;
        let (v4, v6) = (self.ipv4(place), self.ipv6(place));
        host.ip(&format!(
            "addr add {v4}/24 dev {device}\naddr add {v6}/64 dev {device} nodad\n\
             link set {device} up\n"
        ))
    }
}
