//! Which addresses through relays others are told.

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;

use super::{AutoRelay, Output, Told};
use crate::{address::RelayAddress, public::is_public};

/// Addresses of a relay that are told to others: its own, and the one that was dialled.
const MAX_LISTED: usize = 8;

impl AutoRelay {
    /// Tells others the addresses of a reservation, and takes back those that are no more.
    pub(super) fn tell(&mut self, peer: PeerId, external: RelayAddress, listed: Vec<Multiaddr>) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        // A relay that was reached in public sends nobody to private addresses.
        let any = self.config.allow_private() || !is_public(&external.transport);
        let listed = listed
            .into_iter()
            .filter(|address| any || is_public(address));
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
        self.outputs.extend(changes(old.as_ref(), Some(new)));
    }

    pub(super) fn withdraw(&mut self, peer: PeerId) {
        let told = self
            .relays
            .get_mut(&peer)
            .and_then(|relay| relay.told.take());
        self.outputs.extend(changes(told.as_ref(), None));
    }
}

/// What changes for others. An address that stays is not touched, also where it becomes the external one or no longer is;
/// what goes is taken back before what comes is told.
fn changes(old: Option<&Told>, new: Option<&Told>) -> Vec<Output> {
    let external = |told: Option<&Told>| told.map(|told| told.external.clone());
    let expired = external(old).filter(|_| external(old) != external(new));
    let confirmed = external(new).filter(|_| external(old) != external(new));
    let beyond = |told: Option<&Told>, other: Option<&Told>| -> Vec<RelayAddress> {
        told.into_iter()
            .flat_map(Told::all)
            .filter(|address| other.is_none_or(|other| !other.has(address)))
            .cloned()
            .collect()
    };
    let withdrawn = beyond(old, new).into_iter();
    let announced = beyond(new, old).into_iter();
    expired
        .map(|address| Output::Expire { address })
        .into_iter()
        .chain(withdrawn.map(|address| Output::Withdraw { address }))
        .chain(announced.map(|address| Output::Announce { address }))
        .chain(confirmed.map(|address| Output::Confirm { address }))
        .collect()
}

impl Told {
    pub(super) fn all(&self) -> impl Iterator<Item = &RelayAddress> {
        std::iter::once(&self.external).chain(&self.listed)
    }

    fn has(&self, address: &RelayAddress) -> bool {
        self.all().any(|known| known == address)
    }
}
