//! What peers say: blocks, wanted or pushed or neither, and presences.

use cid::Cid;
use libp2p_identity::PeerId;
use smallvec::SmallVec;
use web_time::Instant;

use super::{
    Client, Output,
    peer::PeerKey,
    wantlist::Goal,
    wants::{Phase, WantId, ticket},
};
use crate::{
    Block, SessionId, Ticket,
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
        self.count_unwanted(key, message.unread_bytes as u64);
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
            state.told_silent = None;
        }
        if let Some(state) = self.peers.get_mut(&key)
            && state.credit.values().any(|credit| *credit > 0)
        {
            for cid in &message.promised {
                state.promise(*cid, conn);
                self.promisers.insert(key);
            }
        }
    }

    /// Whether it was wanted, or may be pushed.
    fn on_block(&mut self, key: PeerKey, conn: ConnKey, block: &Block, any_version: bool) -> bool {
        let mut wants = self.wants_for(block.cid());
        wants.retain(|id| {
            let want = self.wants.get(id.0);
            any_version || want.is_some_and(|want| want.cid == *block.cid())
        });
        let bytes = block.data().len() as u64;
        let (now, timeout) = (self.now, self.config.answer_timeout());
        if self.promisers.contains(&key) {
            self.take_promise(key, block.cid());
        }
        let Some(peer) = self.peers.get_mut(&key) else {
            return false;
        };
        let from = peer.id;
        if wants.is_empty() {
            return self.on_unwanted(key, conn, block);
        }
        peer.useful += 1;
        peer.useful_bytes += bytes;
        peer.on_hit();
        peer.on_answer(&wants, timeout, now);
        for id in wants {
            let Some(want) = self.wants.get(id.0) else {
                continue;
            };
            let block = Block::trusted(want.cid, block.data().clone());
            let wishes: SmallVec<[u32; 1]> = self.wishes_of(id).collect();
            let mut sessions: SmallVec<[SessionId; 1]> = SmallVec::new();
            self.dequeue(id);
            for number in wishes {
                if let Some(wish) = self.remove_wish(number) {
                    let ticket = ticket(number, wish.serial);
                    self.deliver(ticket, wish.session, block.clone(), Some((from, conn)));
                    if !sessions.contains(&wish.session) {
                        sessions.push(wish.session);
                    }
                }
            }
            self.close(id, Some((key, bytes)));
            for session in sessions {
                let is_new = self.join(session, key);
                if let Some(state) = self.sessions.get_mut(&session) {
                    state.on_block(key, bytes);
                }
                self.reprice(session);
                if is_new {
                    self.unpark(session, key);
                }
            }
        }
        true
    }

    pub(super) fn deliver(
        &mut self,
        ticket: Ticket,
        session: SessionId,
        block: Block,
        from: Option<(PeerId, ConnKey)>,
    ) {
        let bytes = block.data().len() as u64;
        if bytes > 0 {
            self.unacknowledged.insert(ticket, (bytes, session));
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
        self.count_unwanted(key, block.data().len() as u64);
        false
    }

    fn count_unwanted(&mut self, key: PeerKey, bytes: u64) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.unwanted_bytes += bytes;
        if !peer.reported_unwanted && peer.unwanted_bytes > UNWANTED_BYTES.max(peer.useful_bytes) {
            peer.reported_unwanted = true;
            self.outputs.push_back(Output::UnwantedBlocks {
                peer: peer.id,
                bytes: peer.unwanted_bytes,
            });
        }
    }

    /// Whether it ends an open request.
    fn on_presence(&mut self, key: PeerKey, conn: ConnKey, cid: &Cid, have: bool) -> bool {
        let mut answers = false;
        for id in self.wants_for(cid) {
            let Some(want) = self.wants.get(id.0).filter(|want| want.cid == *cid) else {
                continue;
            };
            let is_asked = want.is_asked_of(key);
            let (now, timeout) = (self.now, self.config.answer_timeout());
            let Some(peer) = self.peers.get_mut(&key) else {
                return false;
            };
            // What was withdrawn may still be answered.
            let listed = peer.list.line(id).is_some();
            peer.on_answer(&[id], timeout, now);
            match (have, is_asked) {
                (true, true) => self.on_withheld(key, conn, id),
                (true, false) if listed => self.on_have(key, id),
                (false, true) => {
                    answers = true;
                    self.drop_request(key, id);
                    self.refuse(key, id);
                    self.settle(id);
                }
                (false, false) if listed => self.refuse(key, id),
                (_, false) => {}
            }
        }
        answers
    }

    fn on_have(&mut self, key: PeerKey, id: WantId) {
        let Some(want) = self.wants.get_mut(id.0) else {
            return;
        };
        want.set_has(key);
        let parked = matches!(
            want.phase,
            Phase::Waiting | Phase::Searching | Phase::Resting
        );
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.on_hit();
        }
        if parked {
            self.set_phase(id, Phase::Pending);
        }
        for session in self.sessions_of(id) {
            if self.join(session, key) {
                self.unpark(session, key);
            }
            if let Some(state) = self.sessions.get_mut(&session) {
                state.on_hit(key);
            }
        }
    }

    /// HAVE in answer to a want-block: the peer has it but cannot send it over this circuit. It is
    /// asked again on a better connection.
    fn on_withheld(&mut self, key: PeerKey, conn: ConnKey, id: WantId) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let allowed = match peer.paths.best() {
            Some((best, Path::Limited(left))) if best == conn => left,
            _ => return,
        };
        peer.paths.set_path(conn, Path::Limited(0));
        self.set_line(key, id, Goal::Cancel);
        self.drop_request(key, id);
        self.settle(id);
        self.warn(id, key, allowed);
    }

    /// The peer lacks the block, or is taken to lack it.
    pub(super) fn refuse(&mut self, key: PeerKey, id: WantId) {
        let Some(want) = self.wants.get_mut(id.0) else {
            return;
        };
        want.set_lacks(key);
        let searching = want.phase == Phase::Searching;
        let goal = self.peers.get(&key).and_then(|peer| peer.list.line(id));
        // A want-have that is searched for stays: the peer tells us when it has the block.
        if !(searching && goal == Some(Goal::Have)) {
            self.set_line(key, id, Goal::LazyCancel);
        }
        for session in self.sessions_of(id) {
            if let Some(state) = self.sessions.get_mut(&session)
                && state.on_miss(key)
            {
                state.members.remove(&key);
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.sessions.remove(&session);
                }
            }
        }
    }
}
