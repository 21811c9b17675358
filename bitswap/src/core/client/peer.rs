//! What the client knows about one connected peer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    num::NonZeroU32,
    time::Duration,
};

use cid::Cid;
use libp2p_identity::PeerId;
use web_time::Instant;

use super::{
    wantlist::{Goal, Wantlist},
    wants::{Want, WantId},
    window::{Mark, Window},
};
use crate::{
    Config, SessionId,
    core::{ConnKey, paths::Paths},
    message::{Entry, WantType},
};

/// Promises remembered of one peer; a server promises at most `max_descend` blocks a want.
const MAX_PROMISES: usize = 256;
/// Questions after which old ones count half.
const MEMORY: f64 = 32.0;

/// A peer, by a number of 28 bits; smaller than a `PeerId` where there are many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PeerKey(NonZeroU32);

impl PeerKey {
    pub(super) const FIRST: PeerKey = PeerKey(NonZeroU32::MIN);

    pub(super) fn number(self) -> u32 {
        self.0.get()
    }

    pub(super) fn from_number(number: u32) -> Option<Self> {
        NonZeroU32::new(number & (u32::MAX >> 4)).map(Self)
    }

    /// The key after this one; after 2^28 they start over.
    pub(super) fn next(self) -> Self {
        Self::from_number(self.number() + 1).unwrap_or(Self::FIRST)
    }
}

/// A want-block that a peer is expected to answer.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) want: WantId,
    pub(super) estimate: u32,
    pub(super) conn: ConnKey,
    pub(super) mark: Mark,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) paths: Paths,
    /// Speaks 1.2.0: answers want-have, and says DONT_HAVE.
    pub(super) presences: bool,
    /// Want-blocks on order, in the order in which they were sent.
    pub(super) requests: VecDeque<Request>,
    pub(super) list: Wantlist,
    pub(super) window: Window,
    /// The connection that `window` describes.
    pub(super) asked_over: Option<ConnKey>,
    /// A message is on its way to the socket.
    pub(super) writing: bool,
    /// A want-have whose answer shows the round trip.
    pub(super) probe: Option<(WantId, Instant)>,
    pub(super) sessions: BTreeSet<SessionId>,
    /// Priority of the block it was asked for last.
    pub(super) last_priority: i32,
    pub(super) last_progress: Instant,
    /// How many times in a row it was silent for too long.
    pub(super) stalls: u32,
    /// When it was told last that it is silent, and how often since its last answer.
    pub(super) told_silent: Option<(Instant, u32)>,
    /// What it was asked, and what it had of that, the newest counting most.
    questions: f64,
    hits: f64,
    /// Blocks it delivered.
    pub(super) useful: u64,
    pub(super) unwanted_bytes: u64,
    pub(super) useful_bytes: u64,
    pub(super) reported_unwanted: bool,
    /// Blocks it may push, by session.
    pub(super) credit: BTreeMap<SessionId, u32>,
    promises: HashMap<Cid, ConnKey>,
}

impl Peer {
    pub(super) fn new(id: PeerId, config: &Config, now: Instant) -> Self {
        Self {
            id,
            paths: Paths::default(),
            presences: true,
            requests: VecDeque::new(),
            list: Wantlist::default(),
            window: Window::new(
                config.initial_window_bytes(),
                config.max_window_bytes(),
                now,
            ),
            asked_over: None,
            writing: false,
            probe: None,
            sessions: BTreeSet::new(),
            last_priority: i32::MIN,
            last_progress: now,
            stalls: 0,
            told_silent: None,
            questions: 0.0,
            hits: 0.0,
            useful: 0,
            unwanted_bytes: 0,
            useful_bytes: 0,
            reported_unwanted: false,
            credit: BTreeMap::new(),
            promises: HashMap::new(),
        }
    }

    /// It was asked whether it has something, or for it.
    pub(super) fn on_question(&mut self) {
        if self.questions >= MEMORY {
            self.questions /= 2.0;
            self.hits /= 2.0;
        }
        self.questions += 1.0;
    }

    /// It answered about these wants: if one of them is the probe, that shows the round trip. What
    /// takes longer than `timeout` is no answer, but a block that the peer got later.
    pub(super) fn on_answer(&mut self, wants: &[WantId], timeout: Duration, now: Instant) {
        if let Some((_, sent)) = self.probe.take_if(|(id, _)| wants.contains(id)) {
            let span = now.duration_since(sent);
            if span <= timeout {
                let clean = self.requests.is_empty();
                self.window.on_round_trip(span, clean, now);
            }
        }
    }

    /// Whether blocks may come from it that are not unwanted.
    pub(super) fn may_send(&self) -> bool {
        !self.requests.is_empty()
            || !self.list.is_empty()
            || self.list.has_changes()
            || !self.promises.is_empty()
            || self.credit.values().any(|credit| *credit > 0)
    }

    /// It had what it was asked for.
    pub(super) fn on_hit(&mut self) {
        self.hits = (self.hits + 1.0).min(self.questions);
    }

    /// How likely it is to have a block that nothing else is known about, 0 to 1.
    pub(super) fn likelihood(&self) -> f64 {
        self.hits / (self.questions + 1.0)
    }

    /// Takes a request out.
    pub(super) fn take_request(&mut self, want: WantId) -> Option<Request> {
        let index = self
            .requests
            .iter()
            .position(|request| request.want == want)?;
        let request = self.requests.remove(index);
        if self.requests.is_empty() && self.requests.capacity() > 16 {
            self.requests = VecDeque::new();
        }
        request
    }

    pub(super) fn promise(&mut self, cid: Cid, conn: ConnKey) {
        if self.promises.len() < MAX_PROMISES {
            self.promises.insert(cid, conn);
        }
    }

    pub(super) fn take_promise(&mut self, cid: &Cid) -> Option<ConnKey> {
        self.promises.remove(cid)
    }

    pub(super) fn has_promises(&self) -> bool {
        !self.promises.is_empty()
    }

    pub(super) fn forget_promises_on(&mut self, conn: ConnKey) {
        self.promises.retain(|_, on| *on != conn);
    }
}

/// The entry that makes a server's list say so.
pub(super) fn entry(want: &Want, goal: Goal, presences: bool) -> Entry {
    let blank = Entry {
        cid: want.cid,
        priority: 0,
        cancel: false,
        want_type: WantType::Block,
        send_dont_have: false,
        descend: 0,
    };
    match goal {
        Goal::Block | Goal::BlockNow => Entry {
            priority: want.priority,
            descend: want.descend,
            send_dont_have: presences,
            ..blank
        },
        Goal::Have | Goal::HaveOrNot => Entry {
            priority: want.priority,
            want_type: WantType::Have,
            send_dont_have: goal == Goal::HaveOrNot,
            ..blank
        },
        Goal::Cancel | Goal::LazyCancel => Entry {
            cancel: true,
            ..blank
        },
    }
}
