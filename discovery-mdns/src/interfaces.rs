//! The machine's interfaces, as they come and go.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _};
use futures_timer::Delay;
use if_addrs::{IfAddr, IfOperStatus};

use crate::{
    Config, Family,
    core::{LinkId, Network},
};

/// How often interfaces are looked at anyway: a cable that is plugged in changes no address.
const LOOK: Duration = Duration::from_secs(5);
/// Changes come in groups: the first is acted on at once, the rest after this time.
const SETTLE: Duration = Duration::from_millis(50);

/// An interface in one family that peers can be searched on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) id: LinkId,
    pub(crate) name: String,
    /// Never empty.
    pub(crate) networks: Vec<Network>,
    pub(crate) loopback: bool,
}

/// Says when to look at the interfaces again.
#[derive(Debug)]
pub(crate) struct Watcher {
    changes: Option<if_watch::smol::IfWatcher>,
    timer: Delay,
}

impl Watcher {
    pub(crate) fn new() -> Self {
        let changes = if_watch::smol::IfWatcher::new()
            .inspect_err(|error| {
                tracing::debug!(%error, "changes of interfaces are noticed every 5 s only");
            })
            .ok();
        Self {
            changes,
            timer: Delay::new(LOOK),
        }
    }

    /// Ready when something may have changed.
    pub(crate) fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut changed = false;
        while let Some(changes) = &mut self.changes {
            match changes.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(_))) => changed = true,
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "changes of interfaces are noticed every 5 s only");
                    self.changes = None;
                }
                Poll::Ready(None) => self.changes = None,
                Poll::Pending => break,
            }
        }
        if changed {
            // The interface may not be ready for its new address yet.
            self.timer.reset(SETTLE);
        }
        while self.timer.poll_unpin(cx).is_ready() {
            changed = true;
            self.timer.reset(LOOK);
        }
        if changed {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// The interfaces that are up now, within the limits of `config`.
pub(crate) fn list(
    config: &Config,
    families: &[Family],
) -> io::Result<BTreeMap<LinkId, Interface>> {
    let mut interfaces: BTreeMap<LinkId, Interface> = BTreeMap::new();
    for entry in if_addrs::get_if_addrs()? {
        let down = matches!(
            entry.oper_status,
            IfOperStatus::Down | IfOperStatus::NotPresent | IfOperStatus::LowerLayerDown
        );
        let (address, prefix) = match &entry.addr {
            IfAddr::V4(v4) => (IpAddr::V4(v4.ip), v4.prefixlen),
            IfAddr::V6(v6) => (IpAddr::V6(v6.ip), v6.prefixlen),
        };
        let family = match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        };
        let loopback = address.is_loopback();
        let Some(index) = entry.index else {
            continue;
        };
        if down || !families.contains(&family) || (loopback && !config.enable_loopback()) {
            continue;
        }
        let id = LinkId {
            interface: index,
            family,
        };
        let interface = interfaces.entry(id).or_insert_with(|| Interface {
            id,
            name: entry.name,
            networks: Vec::new(),
            loopback,
        });
        interface.networks.push(Network { address, prefix });
    }
    interfaces.retain(|_, interface| {
        interface.networks.sort_unstable();
        interface.networks.dedup();
        // Nobody can be dialled at a link-local address alone; the ports of a machine's virtual bridges have no other.
        let reachable = |network: &Network| match network.address {
            IpAddr::V4(_) => true,
            IpAddr::V6(ip) => !ip.is_unicast_link_local(),
        };
        interface.networks.iter().any(reachable)
    });
    while interfaces.len() > config.max_interfaces() {
        interfaces.pop_last();
    }
    Ok(interfaces)
}
