//! What this node announces of itself.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use cid::Cid;
use libp2p_core::Multiaddr;

use crate::{
    Announcement, Body, Content, Role, Service, address::is_relayed, announcement::encoded_len,
};

/// Bytes of an announcement around its items.
const ENVELOPE_BYTES: usize = 64;
/// Withdrawn content in one announcement, and remembered until then.
const MAX_WITHDRAWN: usize = 64;

/// The origin of an address of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// Confirmed as reachable from outside, relayed ones included.
    External,
    /// A listener's.
    Listen,
}

#[derive(Debug)]
pub(super) struct Own {
    addresses: BTreeSet<(Origin, Multiaddr)>,
    content: VecDeque<Content>,
    /// What is still to be said of it in this round.
    unsaid: VecDeque<Cid>,
    withdrawn: VecDeque<Cid>,
    relay: Option<Bytes>,
    role: Option<Role>,
    sequence: u64,
}

impl Own {
    pub(super) fn new() -> Self {
        Self {
            addresses: BTreeSet::new(),
            content: VecDeque::new(),
            unsaid: VecDeque::new(),
            withdrawn: VecDeque::new(),
            relay: None,
            role: None,
            sequence: 0,
        }
    }

    /// Returns whether the address is new.
    pub(super) fn add_address(&mut self, origin: Origin, address: Multiaddr) -> bool {
        let known = self.knows(&address);
        self.addresses.insert((origin, address));
        !known
    }

    /// Returns whether the address is gone altogether.
    pub(super) fn remove_address(&mut self, origin: Origin, address: Multiaddr) -> bool {
        let key = (origin, address);
        self.addresses.remove(&key) && !self.knows(&key.1)
    }

    fn knows(&self, address: &Multiaddr) -> bool {
        self.addresses.iter().any(|(_, ours)| ours == address)
    }

    /// The most useful first: confirmed direct ones, relayed ones, listeners' own.
    pub(super) fn addresses(&self, max: usize) -> Vec<Multiaddr> {
        let mut ranked: Vec<_> = self
            .addresses
            .iter()
            .map(|(origin, address)| ((*origin, is_relayed(address)), address))
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let mut seen = BTreeSet::new();
        ranked
            .into_iter()
            .map(|(_, address)| address)
            .filter(|address| seen.insert(*address))
            .take(max)
            .cloned()
            .collect()
    }

    pub(super) fn content(&self) -> impl Iterator<Item = &Content> {
        self.content.iter()
    }

    pub(super) fn relay(&self) -> Option<&Bytes> {
        self.relay.as_ref()
    }

    pub(super) fn role(&self) -> Option<&Role> {
        self.role.as_ref()
    }

    pub(super) fn add_content(&mut self, content: Content, max: usize) {
        self.withdrawn.retain(|cid| *cid != content.cid);
        self.forget_content(&content.cid);
        self.unsaid.push_front(content.cid);
        self.content.push_front(content);
        while self.content.len() > max
            && let Some(oldest) = self.content.pop_back()
        {
            self.unsaid.retain(|cid| *cid != oldest.cid);
        }
    }

    /// Returns whether it was announced.
    pub(super) fn remove_content(&mut self, cid: &Cid) -> bool {
        if !self.forget_content(cid) {
            return false;
        }
        if self.withdrawn.len() >= MAX_WITHDRAWN {
            self.withdrawn.pop_front();
        }
        self.withdrawn.push_back(*cid);
        true
    }

    fn forget_content(&mut self, cid: &Cid) -> bool {
        let before = self.content.len();
        self.content.retain(|content| content.cid != *cid);
        self.unsaid.retain(|other| other != cid);
        self.content.len() < before
    }

    /// Returns whether it is another one than before.
    pub(super) fn set_relay(&mut self, relay: Option<Bytes>) -> bool {
        let changed = self.relay != relay;
        self.relay = relay;
        changed
    }

    /// Returns whether it is another one than before.
    pub(super) fn set_role(&mut self, role: Option<Role>) -> bool {
        let changed = self.role != role;
        self.role = role;
        changed
    }

    /// All content is to be said once more.
    pub(super) fn repeat_content(&mut self) {
        self.unsaid = self.content.iter().map(|content| content.cid).collect();
    }

    /// Whether a part of the content is still to be said.
    pub(super) fn has_unsaid(&self) -> bool {
        !self.unsaid.is_empty()
    }

    /// The next announcement for `service`, of at most `max_bytes`; `None` if there is nothing to say.
    pub(super) fn announcement(
        &mut self,
        service: Service,
        max_bytes: usize,
        since_1970_millis: u64,
    ) -> Option<Announcement> {
        let body = match service {
            Service::Content => self.content_body(max_bytes)?,
            Service::Relay => Body::Relay(self.relay.clone()?),
            Service::Role => Body::Role(self.role.clone()?),
        };
        Some(self.numbered(body, since_1970_millis))
    }

    /// Gives an announcement its number.
    pub(super) fn numbered(&mut self, body: Body, since_1970_millis: u64) -> Announcement {
        self.sequence = since_1970_millis.max(self.sequence.saturating_add(1));
        Announcement {
            sequence: self.sequence,
            body,
        }
    }

    fn content_body(&mut self, max_bytes: usize) -> Option<Body> {
        let mut room = max_bytes.saturating_sub(ENVELOPE_BYTES);
        let mut withdrawn = Vec::new();
        while let Some(cid) = self.withdrawn.front()
            && let Some(left) = room.checked_sub(cid.encoded_len() + 3)
        {
            room = left;
            withdrawn.push(*cid);
            self.withdrawn.pop_front();
        }
        let mut items = Vec::new();
        while let Some(cid) = self.unsaid.front() {
            if let Some(content) = self.content.iter().find(|content| content.cid == *cid) {
                let Some(left) = room.checked_sub(encoded_len(content)) else {
                    // What never fits is left out; the rest comes next time.
                    if items.is_empty() && withdrawn.is_empty() {
                        self.unsaid.pop_front();
                        continue;
                    }
                    break;
                };
                room = left;
                items.push(content.clone());
            }
            self.unsaid.pop_front();
        }
        (!items.is_empty() || !withdrawn.is_empty()).then_some(Body::Content { items, withdrawn })
    }
}
