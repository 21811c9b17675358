//! Which addresses through relays others are told.

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;

use super::{AutoRelay, Output, Told};
use crate::address::RelayAddress;

/// Addresses of a relay that are told to others: its own, and the one that was dialled.
const MAX_LISTED: usize = 8;

impl AutoRelay {
    /// Tells others the addresses of a reservation, and takes back those that are no more.
    pub(super) fn tell(&mut self, peer: PeerId, external: RelayAddress, listed: Vec<Multiaddr>) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        let mut fresh: Vec<RelayAddress> = Vec::new();
        for transport in listed {
            let address = RelayAddress {
                relay: peer,
                transport,
            };
            if address != external && !fresh.contains(&address) && fresh.len() < MAX_LISTED {
                fresh.push(address);
            }
        }
        let new = Told {
            external,
            listed: fresh,
            withdraw_at: None,
        };
        let old = relay.told.replace(new);
        let Some(new) = &relay.told else {
            return;
        };
        let was = |address: &RelayAddress, external: bool| {
            old.as_ref().is_some_and(|old| old.has(address, external))
        };
        for (address, external) in new.all() {
            if !was(address, external) {
                self.outputs.push_back(Output::Announce {
                    address: address.clone(),
                    external,
                });
            }
        }
        for (address, external) in old.iter().flat_map(Told::all) {
            if !new.has(address, external) {
                self.outputs.push_back(Output::Withdraw {
                    address: address.clone(),
                    external,
                });
            }
        }
    }

    pub(super) fn withdraw(&mut self, peer: PeerId) {
        let told = self
            .relays
            .get_mut(&peer)
            .and_then(|relay| relay.told.take());
        for (address, external) in told.iter().flat_map(Told::all) {
            self.outputs.push_back(Output::Withdraw {
                address: address.clone(),
                external,
            });
        }
    }
}

impl Told {
    fn all(&self) -> impl Iterator<Item = (&RelayAddress, bool)> {
        std::iter::once((&self.external, true))
            .chain(self.listed.iter().map(|address| (address, false)))
    }

    fn has(&self, address: &RelayAddress, external: bool) -> bool {
        self.all().any(|known| known == (address, external))
    }
}
