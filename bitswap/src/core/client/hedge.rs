//! The tail: when nothing is left to be asked for, peers with room take over what others are late
//! with, or will not come to for long.
//!
//! What the other peer has certainly not begun to send is withdrawn there and asked here. What it
//! may be sending is asked of both; the first block ends the want, and the cancel goes to the
//! other. The bytes of such doubles are bounded by a share of what the session has received.

use std::{collections::BTreeMap, time::Duration};

use web_time::Instant;

use super::{
    Client,
    peer::PeerKey,
    schedule::{Room, Seat, Terms},
    wantlist::Goal,
    wants::WantId,
};
use crate::{SessionId, core::Path};

/// Shortest time between two looks; longer while many requests are open.
const TICK: Duration = Duration::from_millis(10);
const TICK_PER_REQUEST: Duration = Duration::from_micros(4);
/// Another peer takes over if it is expected to take less than this share of the time that is left,
/// less `GRACE` seconds: estimates are rough, and a double costs as much as a block.
const SHARE: f64 = 0.33;
const GRACE: f64 = 0.1;
/// Bytes that a server may have read already, beside those on the way: they come even if they are
/// cancelled (boxo: 1 MiB a peer; we: 4 MiB).
const COMMITTED: u64 = 4 * 1024 * 1024;
/// Doubles may be this share of what the session received, and always two blocks.
const DOUBLES: u64 = 400;
const DOUBLES_FREE: u64 = 2;
/// While nothing is known about a peer it may take this share of `answer_timeout`.
const UNKNOWN: f64 = 0.3;

/// A request that may be late.
struct Late {
    /// Seconds that it is expected to take still.
    left: f64,
    want: WantId,
    holder: PeerKey,
    /// The holder has certainly not begun to send it, and will not before a cancel arrives.
    untouched: bool,
    session: SessionId,
}

impl Client {
    pub(super) fn hedge(&mut self) {
        self.hedge_at = None;
        let tail = |(_, session): (&SessionId, &super::Session)| {
            session.pending.is_empty() && session.members.len() > 1
        };
        if !self.sessions.iter().any(tail) || self.busy.is_empty() {
            return;
        }
        let open: usize = self
            .busy
            .iter()
            .filter_map(|key| Some(self.peers.get(key)?.requests.len()))
            .sum();
        let pause = TICK.max(TICK_PER_REQUEST * u32::try_from(open).unwrap_or(u32::MAX));
        if let Some(last) = self.hedged_at.filter(|last| self.now < *last + pause) {
            self.hedge_at = Some(last + pause);
            return;
        }
        self.hedged_at = Some(self.now);
        let (mut late, mut next) = (Vec::new(), None);
        self.find_late(&mut late, &mut next);
        self.hedge_at = next.map(|at: Instant| at.max(self.now + pause));
        // What takes longest first.
        late.sort_by(|a, b| b.left.total_cmp(&a.left).then(a.want.cmp(&b.want)));
        let mut known: BTreeMap<SessionId, (Terms, Vec<Seat>)> = BTreeMap::new();
        for late in late {
            let Some(session) = self.sessions.get(&late.session) else {
                continue;
            };
            let (terms, seats) = known.entry(late.session).or_insert_with(|| {
                let terms = self.terms(session);
                (terms, self.seats(session, &terms))
            });
            if let Some(taker) = self.taker(&late, seats) {
                self.take_over(&late, taker, terms);
                let terms = *terms;
                self.reseat(seats, taker, &terms);
            }
        }
    }

    /// Requests that are late, or will be for long; and when the next one of the others is.
    fn find_late(&self, late: &mut Vec<Late>, next: &mut Option<Instant>) {
        let unknown = self.config.answer_timeout().mul_f64(UNKNOWN);
        for key in &self.busy {
            let Some(peer) = self.peers.get(key) else {
                continue;
            };
            let mut ahead = 0;
            for request in &peer.requests {
                let before = ahead;
                ahead += u64::from(request.estimate);
                let session = self
                    .wishes_of(request.want)
                    .find_map(|number| Some(self.wishes.get(number)?.session));
                let Some((id, session)) =
                    session.and_then(|id| Some((id, self.sessions.get(&id)?)))
                else {
                    continue;
                };
                if !session.pending.is_empty() || session.options.background {
                    continue;
                }
                let due = peer.window.due(&request.mark, u64::from(request.estimate));
                let (left, look_at) = match due {
                    Some((due, slack)) => {
                        let overdue = due + Duration::from_secs_f64(slack.clamp(GRACE, 1e6));
                        let left = if self.now < due && peer.window.is_measured() {
                            due.duration_since(self.now)
                        } else if self.now >= overdue {
                            // It will take as long again.
                            self.now.duration_since(due)
                        } else {
                            Duration::ZERO
                        };
                        (left.as_secs_f64(), overdue)
                    }
                    None => {
                        let since = self.now.duration_since(request.mark.sent);
                        let left = if since >= unknown {
                            since
                        } else {
                            Duration::ZERO
                        };
                        (left.as_secs_f64(), request.mark.sent + unknown)
                    }
                };
                let committed = COMMITTED as f64 + peer.window.on_the_way();
                if left > GRACE {
                    late.push(Late {
                        left,
                        want: request.want,
                        holder: *key,
                        untouched: before as f64 >= committed,
                        session: id,
                    });
                }
                // What is late and has no taker now may have one later.
                let look_at = match look_at > self.now {
                    true => look_at,
                    false => self.now + (10 * TICK).max(Duration::from_secs_f64(left / 4.0)),
                };
                *next = Some(next.map_or(look_at, |at| at.min(look_at)));
            }
        }
    }

    /// Who would deliver it much sooner.
    fn taker(&self, late: &Late, seats: &[Seat]) -> Option<PeerKey> {
        let want = self.wants.get(late.want.0)?;
        let free = seats.iter().filter(|seat| {
            seat.room == Room::Yes
                && !want.lacks(seat.key)
                && !want.is_asked_of(seat.key)
                && self.peers.get(&seat.key).is_some_and(|peer| {
                    peer.stalls == 0 && !matches!(peer.paths.best(), Some((_, Path::Limited(_))))
                })
        });
        let best = free.min_by(|a, b| {
            let (a, b) = (a.cost(want.has(a.key)), b.cost(want.has(b.key)));
            a.total_cmp(&b)
        })?;
        let cost = best.cost(want.has(best.key));
        (cost < SHARE * (late.left - GRACE)).then_some(best.key)
    }

    fn take_over(&mut self, late: &Late, taker: PeerKey, terms: &Terms) {
        let Some(want) = self.wants.get(late.want.0) else {
            return;
        };
        let is_doubled = want.asked.iter().all(Option::is_some);
        if is_doubled && want.asked.first() != Some(&Some(late.holder)) {
            // Its first holder is judged on its own.
            return;
        }
        if !self.is_affordable(terms.estimate) {
            return;
        }
        let Some(session) = self.sessions.get_mut(&late.session) else {
            return;
        };
        // As long as sizes are assumed, so is what is untouched.
        let moves = !is_doubled && late.untouched && session.priced.is_some();
        if !moves {
            let allowed = session.received / DOUBLES + DOUBLES_FREE * terms.estimate;
            if session.hedged + terms.estimate > allowed {
                return;
            }
            session.hedged += terms.estimate;
        }
        if moves || is_doubled {
            self.drop_request(late.holder, late.want);
            self.set_line(late.holder, late.want, Goal::Cancel);
        }
        tracing::trace!(left = late.left, moves, "hedged");
        self.ask(late.want, taker, terms);
    }
}
