//! A router that maps ports on request: Debian's miniupnpd over nftables, in the namespace of a NAT box.

use super::{LabError, Namespace};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The table that miniupnpd writes to. The NAT's own rules forward whatever it translates.
const TABLE: &str = "table inet miniupnpd {
 chain forward { type filter hook forward priority filter; policy accept; jump miniupnpd; }
 chain prerouting { type nat hook prerouting priority dstnat; policy accept; jump prerouting_miniupnpd; }
 chain postrouting { type nat hook postrouting priority srcnat; policy accept; jump postrouting_miniupnpd; }
 chain miniupnpd { }
 chain prerouting_miniupnpd { }
 chain postrouting_miniupnpd { }
}
";
/// Requests of PCP (version 2) vanish, as with gateways that know NAT-PMP alone.
const WITHOUT_PCP: &str = "table inet without_pcp {
 chain input { type filter hook input priority -10; policy accept;
  iifname \"lan\" udp dport 5351 @th,64,8 2 drop
 }
}
";

/// What the router speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// PCP and NAT-PMP.
    Pcp,
    /// NAT-PMP; it does not answer PCP at all.
    NatPmp,
    /// UPnP IGD.
    Upnp,
}

/// A running miniupnpd. It is killed, by its id, when dropped.
#[derive(Debug)]
pub struct Miniupnpd {
    router: Namespace,
    configuration: PathBuf,
    log: PathBuf,
    child: Child,
}

impl Miniupnpd {
    /// Starts it on a NAT box. Its devices are `lan` and `wan`, whose address must not be one for private use or for
    /// documentation ([`Lab::public`](super::Lab::public)): miniupnpd maps nothing to such.
    pub fn start(router: &Namespace, speaks: Speaks, directory: &Path) -> Result<Self, LabError> {
        let (natpmp, upnp) = match speaks {
            Speaks::Pcp | Speaks::NatPmp => ("yes", "no"),
            Speaks::Upnp => ("no", "yes"),
        };
        if speaks == Speaks::NatPmp {
            router.nft(WITHOUT_PCP)?;
        }
        let name = router.name();
        let configuration = directory.join(format!("{name}.conf"));
        let text = format!(
            "ext_ifname=wan\nlistening_ip=lan\nhttp_port=5000\nenable_natpmp={natpmp}\nenable_upnp={upnp}\n\
             secure_mode=yes\nsystem_uptime=no\nupnp_table_name=miniupnpd\nupnp_nat_table_name=miniupnpd\n\
             uuid=1b2c3d4e-0000-4000-8000-000000000001\nallow 1024-65535 10.0.0.0/8 1024-65535\n\
             deny 0-65535 0.0.0.0/0 0-65535\n"
        );
        fs::write(&configuration, text).map_err(LabError::file(&configuration))?;
        router.nft(TABLE)?;
        let log = directory.join(format!("{name}.log"));
        let child = launch(router, &configuration, &log)?;
        Ok(Self {
            router: router.clone(),
            configuration,
            log,
            child,
        })
    }

    /// The power fails for a moment: all mappings are lost.
    pub fn restart(&mut self) -> Result<(), LabError> {
        self.kill();
        self.router
            .nft(&format!("delete table inet miniupnpd\n{TABLE}"))?;
        self.child = launch(&self.router, &self.configuration, &self.log)?;
        Ok(())
    }

    /// The ports that are mapped, as in `udp 9100 to 10.1.0.10:9100`, sorted.
    pub fn mappings(&self) -> Result<Vec<String>, LabError> {
        let chain = ["list", "chain", "inet", "miniupnpd", "prerouting_miniupnpd"];
        let rules = self.router.run("nft", chain)?;
        let mut mappings: Vec<String> = rules
            .lines()
            .filter_map(|rule| {
                let (condition, target) = rule.split_once("dnat ip to ")?;
                let port = condition
                    .split_once("dport ")?
                    .1
                    .split_whitespace()
                    .next()?;
                // nft does not know miniupnpd's way to ask for the protocol: a byte of the network header.
                let protocol = match condition {
                    udp if udp.contains("0x11") || udp.contains("udp") => "udp",
                    _ => "tcp",
                };
                Some(format!("{protocol} {port} to {}", target.trim()))
            })
            .collect();
        mappings.sort();
        Ok(mappings)
    }

    fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn launch(router: &Namespace, configuration: &Path, log: &Path) -> Result<Child, LabError> {
    let output = File::options()
        .create(true)
        .append(true)
        .open(log)
        .map_err(LabError::file(log))?;
    let errors = output.try_clone().map_err(LabError::file(log))?;
    let mut command = Command::new("miniupnpd");
    // In the foreground.
    command.args(["-d", "-f"]).arg(configuration);
    command
        .arg("-P")
        .arg(log.with_extension("pid"))
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors);
    router.spawn(&mut command)
}

impl Drop for Miniupnpd {
    fn drop(&mut self) {
        self.kill();
    }
}
