//! What is dialled, and when.

use std::time::Duration;

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use web_time::Instant;

use super::{
    As, Dial, DialId, Output, PortId, Punches,
    ports::HELD_BACK,
    state::{Stage, punch_may_retry},
    targets::{self, Situation, Target},
};
use crate::{
    NoPunch, Role, Transport,
    address::{Scope, without_peer},
    message::Message,
};
impl Punches {
    /// An address of the peer became known by other means. A public one is dialled while the
    /// exchange runs.
    pub(crate) fn on_peer_address(&mut self, peer: PeerId, address: &Multiaddr) {
        let address = without_peer(address);
        let Some(punch) = self.punches.get(&peer) else {
            return;
        };
        // The responder's own side has dialled what it knew before it took to the relay.
        if punch.role == Role::Responder
            || matches!(punch.stage, Stage::Queued)
            || punch.tried.len() >= self.config.max_direct_dials()
            || Scope::of(&address) != Scope::Public
            || punch.tried.contains(&address)
            || self.own.candidates.contains(&address)
        {
            return;
        }
        let how = match Transport::of(&address) {
            Transport::Quic => As::Client,
            Transport::Tcp => As::Stranger,
            _ => return,
        };
        self.dial(peer, &address, how, None);
    }

    pub(super) fn targets(
        &mut self,
        peer: PeerId,
        message: &Message,
    ) -> (Option<NoPunch>, Vec<Target>) {
        let Some(punch) = self.punches.get(&peer) else {
            return (None, Vec::new());
        };
        let situation = Situation {
            config: &self.config,
            peer,
            role: punch.role,
            attempt: punch.attempt,
            nat: &punch.told,
            candidates: &self.own.candidates,
            local: &self.own.local,
        };
        let peers_at = targets::usable(&situation, &message.addresses);
        let targets = targets::targets(&situation, message);
        if let Some(punch) = self.punches.get_mut(&peer) {
            punch.peers_at = peers_at;
        }
        match targets {
            Ok(targets) => (None, targets),
            Err(no_punch) => (Some(no_punch), Vec::new()),
        }
    }

    pub(super) fn start_dialling(&mut self, peer: PeerId, targets: Vec<Target>, now: Instant) {
        let patience = self.patience(peer, now);
        let (half, until) = (now + patience / 2, now + patience);
        let attempts = self.config.attempts();
        if let Some(punch) = self.punches.get_mut(&peer) {
            let leaves_it_to_us = punch.role == Role::Responder && punch.peers.is_none();
            let held = (leaves_it_to_us && !punch.ports.is_empty()).then(|| now + HELD_BACK);
            punch.stage = Stage::Dialling {
                since: now,
                until,
                prepares: punch_may_retry(punch, attempts).then_some(half),
                held,
            };
        }
        self.dial_all(peer, targets);
    }

    pub(super) fn dial_all(&mut self, peer: PeerId, targets: Vec<Target>) {
        for target in targets {
            self.dial(peer, &target.address, target.how, None);
        }
    }

    pub(super) fn dial(
        &mut self,
        peer: PeerId,
        address: &Multiaddr,
        how: As,
        from: Option<PortId>,
    ) {
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        let attempt = punch.attempt;
        let under_way = || self.dials.values().filter(|dial| dial.peer == peer);
        // Two sockets cannot connect the same two addresses, and TCP repeats its SYN by itself. A
        // QUIC handshake that lost its first packet repeats it only after a second.
        let repeats = under_way().any(|dial| {
            dial.address == *address
                && dial.from == from
                && match (Transport::of(address), how) {
                    (Transport::Quic, As::Client) => dial.how == how && dial.attempt == attempt,
                    (Transport::Quic, _) | (_, As::Stranger) => dial.how == how,
                    (Transport::Tcp, _) => dial.how != As::Stranger,
                    _ => true,
                }
        });
        let max = self.config.max_dials_per_peer();
        let Some(relayed) = self.relayed.get_mut(&punch.relayed) else {
            return;
        };
        let spent = relayed.dials >= max * usize::from(self.config.attempts());
        if repeats || spent || under_way().count() >= max {
            return;
        }
        relayed.dials += 1;
        if !punch.tried.contains(address) && punch.tried.len() < MAX_TRIED {
            punch.tried.push(address.clone());
        }
        let dial = DialId(self.next_dial);
        self.next_dial += 1;
        self.dials.insert(
            dial,
            Dial {
                peer,
                address: address.clone(),
                how,
                from,
                attempt,
            },
        );
        self.outputs.push_back(Output::Dial {
            dial,
            peer,
            address: address.clone(),
            how,
            from,
        });
    }

    /// A dial of ours led nowhere.
    pub(crate) fn on_dial_failed(&mut self, dial: DialId, now: Instant) {
        let Some(Dial { peer, .. }) = self.dials.remove(&dial) else {
            return;
        };
        let any = self.dials.values().any(|dial| dial.peer == peer);
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        if let Stage::Dialling { since, until, .. } = &mut punch.stage
            && !any
        {
            // The peer's dials may still get through for a moment.
            *until = (*until).min((*since + MIN_ATTEMPT).max(now));
        }
    }
}

/// An attempt whose own dials failed at once waits this long for the peer's: ten round trips of a
/// usual path.
const MIN_ATTEMPT: Duration = Duration::from_millis(500);

/// Addresses that an outcome names: three attempts at eight.
const MAX_TRIED: usize = 24;
