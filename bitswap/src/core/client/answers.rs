//! What peers say: blocks, wanted or pushed or neither, and presences.

use cid::Cid;
use libp2p_identity::PeerId;
use smallvec::SmallVec;
use web_time::Instant;

use super::{
    Client, Output, State, WantId,
    peer::{Change, PeerKey},
};
use crate::{
    Block, Ticket,
    core::{ConnKey, Path},
    message::Message,
};

/// Unwanted bytes that are reported, if they are also more than the wanted ones.
const UNWANTED_BYTES: u64 = 16 * 1024 * 1024;

impl Client {
    /// Blocks, presences and promises of a message; the rest of it is the server's business.
    pub fn on_message(&mut self, peer: PeerId, conn: ConnKey, message: &Message, now: Instant) {
        self.now = now;
        let Some(key) = self.keys.get(&peer).copied() else {
            return;
        };
        if let Some(state) = self.peers.get_mut(&key) {
            state.paths.spend(conn, message.frame_bytes as u64);
            self.dirty |= !message.blocks.is_empty() || !message.presences.is_empty();
        }
        let mut answers = false;
        for block in &message.blocks {
            answers |= self.on_block(key, conn, block, false);
        }
        for block in &message.legacy_blocks {
            answers |= self.on_block(key, conn, block, true);
        }
        for presence in &message.presences {
            answers |= self.on_presence(key, conn, &presence.cid, presence.have);
        }
        // A peer that talks about something else holds what it was asked for no longer than a silent one.
        if let Some(state) = self.peers.get_mut(&key)
            && (answers || state.requests.is_empty())
        {
            state.last_progress = now;
            state.stalls = 0;
        }
        if let Some(state) = self.peers.get_mut(&key)
            && state.credit.values().any(|credit| *credit > 0)
        {
            for cid in &message.promised {
                state.promise(*cid, conn);
            }
        }
    }

    /// Whether it was wanted, or may be pushed.
    fn on_block(&mut self, key: PeerKey, conn: ConnKey, block: &Block, any_version: bool) -> bool {
        let wants: SmallVec<[WantId; 1]> = self
            .by_hash
            .get(block.cid().hash())
            .into_iter()
            .flatten()
            .copied()
            .filter(|id| {
                any_version
                    || self
                        .wants
                        .get(id)
                        .is_some_and(|want| want.cid == *block.cid())
            })
            .collect();
        let bytes = block.data().len() as u64;
        let Some(peer) = self.peers.get_mut(&key) else {
            return false;
        };
        peer.take_promise(block.cid());
        let from = peer.id;
        if wants.is_empty() {
            return self.on_unwanted(key, conn, block);
        }
        peer.useful += 1;
        peer.useful_bytes += bytes;
        peer.miss_rate *= 0.9;
        for id in wants {
            let Some(want) = self.wants.get_mut(&id) else {
                continue;
            };
            let block = Block::trusted(want.cid, block.data().clone());
            let tickets = std::mem::take(&mut want.tickets);
            let sessions = self.sessions_by(&tickets);
            self.close(id, &sessions, Some((key, bytes)));
            for session in sessions {
                self.join(session, key);
                if let Some(state) = self.sessions.get_mut(&session) {
                    state.on_block(bytes);
                    state.peers.insert(key, 0);
                }
            }
            for ticket in tickets {
                self.wishes.remove(&ticket);
                self.deliver(ticket, block.clone(), Some((from, conn)));
            }
        }
        true
    }

    pub(super) fn deliver(
        &mut self,
        ticket: Ticket,
        block: Block,
        from: Option<(PeerId, ConnKey)>,
    ) {
        let bytes = block.data().len() as u64;
        if bytes > 0 {
            self.unacknowledged.insert(ticket, bytes);
            self.unacknowledged_bytes += bytes;
        }
        self.outputs.push_back(Output::Block {
            ticket,
            block,
            from,
        });
    }

    /// A block that is pushed as asked goes to the stash: true. Anything else is counted.
    fn on_unwanted(&mut self, key: PeerKey, conn: ConnKey, block: &Block) -> bool {
        let Some(peer) = self.peers.get_mut(&key) else {
            return false;
        };
        let creditor = peer.credit.iter_mut().find(|(_, credit)| **credit > 0);
        if let Some((session, credit)) = creditor {
            *credit -= 1;
            if let Some(session) = self.sessions.get_mut(session) {
                let max = self.config.max_stash_bytes();
                session.stash.insert(block.clone(), peer.id, conn, max);
                return true;
            }
        }
        peer.unwanted_bytes += block.data().len() as u64;
        if !peer.reported_unwanted && peer.unwanted_bytes > UNWANTED_BYTES.max(peer.useful_bytes) {
            peer.reported_unwanted = true;
            self.outputs.push_back(Output::UnwantedBlocks {
                peer: peer.id,
                bytes: peer.unwanted_bytes,
            });
        }
        false
    }

    /// Whether it ends an open request.
    fn on_presence(&mut self, key: PeerKey, conn: ConnKey, cid: &Cid, have: bool) -> bool {
        let Some(ids) = self.by_hash.get(cid.hash()).cloned() else {
            return false;
        };
        let mut answers = false;
        for id in ids {
            let Some(want) = self.wants.get_mut(&id).filter(|want| want.cid == *cid) else {
                continue;
            };
            let Some(peer) = self.peers.get_mut(&key) else {
                return false;
            };
            let asked = peer.asked.contains(&id) || peer.registered.contains(&id);
            let current = match want.state {
                State::InFlight(holder, number) if holder == key => Some(number),
                _ => None,
            };
            match (have, current) {
                (true, Some(number)) => self.on_withheld(key, conn, id, number),
                (true, None) if asked => {
                    want.refused.retain(|k| *k != key);
                    if !want.providers.contains(&key) {
                        want.providers.push(key);
                    }
                    let sessions = self.sessions_of(id);
                    for session in sessions {
                        self.join(session, key);
                        self.unpark(session);
                    }
                }
                (false, Some(number)) => {
                    answers = true;
                    self.drop_request(key, number);
                    self.refuse(key, id);
                    self.set_state(id, State::Pending);
                }
                (false, None) if asked => self.refuse(key, id),
                (_, None) => {}
            }
        }
        answers
    }

    /// HAVE in answer to a want-block: the peer has it but cannot send it over this circuit. It is
    /// asked again on a better connection.
    fn on_withheld(&mut self, key: PeerKey, conn: ConnKey, id: WantId, number: u64) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if !matches!(peer.paths.best(), Some((best, Path::Limited(_))) if best == conn) {
            return;
        }
        if let Some(want) = self.wants.get(&id) {
            peer.push(id, want.cid, Change::Cancel { lazy: false });
        }
        let allowed = match peer.paths.best() {
            Some((_, Path::Limited(left))) => left,
            _ => return,
        };
        peer.paths.set_path(conn, Path::Limited(0));
        self.drop_request(key, number);
        self.set_state(id, State::Pending);
        self.warn(id, key, allowed);
    }

    pub(super) fn refuse(&mut self, key: PeerKey, id: WantId) {
        let Some(want) = self.wants.get_mut(&id) else {
            return;
        };
        want.providers.retain(|k| *k != key);
        if !want.refused.contains(&key) {
            want.refused.push(key);
        }
        let searching = matches!(want.state, State::Searching(_));
        let cid = want.cid;
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.miss_rate = peer.miss_rate * 0.9 + 0.1;
            // A want-have that is searched for stays: the peer tells us when it has the block.
            if !(searching && peer.asked.contains(&id)) {
                peer.asked.remove(&id);
                peer.push(id, cid, Change::Cancel { lazy: true });
            }
        }
        for session in self.sessions_of(id) {
            if let Some(state) = self.sessions.get_mut(&session)
                && state.on_miss(key)
            {
                state.peers.remove(&key);
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.sessions.remove(&session);
                }
            }
        }
    }
}
