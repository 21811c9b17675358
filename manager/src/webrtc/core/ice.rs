//! The part of ICE ([RFC 8445](https://www.rfc-editor.org/rfc/rfc8445)) that WebRTC-direct needs: the server is lite, it answers checks; the
//! client checks its one pair and nominates it at once. Both ask for consent as long as they live
//! ([RFC 7675](https://www.rfc-editor.org/rfc/rfc7675)).

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use web_time::Instant;

use super::{
    Path, Ufrag,
    router::MAX_PATHS,
    stun::{self, Transaction},
};

/// A first check is repeated after so long, and so on with twice the time.
const FIRST_REPEAT: Duration = Duration::from_millis(100);
const LAST_REPEAT: Duration = Duration::from_millis(1600);

/// RFC 7675 §5.1.
const CONSENT_INTERVAL: Duration = Duration::from_secs(5);

/// How long the other end may be silent. Browsers, pion and libjuice check every 5 s at most.
pub(super) const SILENCE: Duration = Duration::from_secs(25);

#[derive(Debug)]
pub(super) struct Ice {
    ufrag: Ufrag,
    /// None: the server.
    checks: Option<Checks>,
    /// In the order of their use, the one to send to last.
    paths: Vec<Path>,
    is_nominated: bool,
    heard: Instant,
}

#[derive(Debug)]
struct Checks {
    transaction: Transaction,
    next: Instant,
    repeat: Duration,
    is_answered: bool,
    tie: u64,
    random: StdRng,
}

impl Ice {
    pub(super) fn client(ufrag: Ufrag, server: Path, seed: [u8; 32], now: Instant) -> Self {
        let mut random = StdRng::from_seed(seed);
        Self {
            ufrag,
            checks: Some(Checks {
                transaction: random.random(),
                next: now,
                repeat: FIRST_REPEAT,
                is_answered: false,
                tie: random.random(),
                random,
            }),
            paths: vec![server],
            is_nominated: true,
            heard: now,
        }
    }

    pub(super) fn server(ufrag: Ufrag, now: Instant) -> Self {
        Self {
            ufrag,
            checks: None,
            paths: Vec::new(),
            is_nominated: false,
            heard: now,
        }
    }

    /// Where to send.
    pub(super) fn path(&self) -> Option<Path> {
        self.paths.last().copied()
    }

    /// Whether the other end is there.
    pub(super) fn is_connected(&self) -> bool {
        match &self.checks {
            Some(checks) => checks.is_answered,
            None => !self.paths.is_empty(),
        }
    }

    /// Whether it has shown that it is the other end, so that DTLS from there is worth a look.
    pub(super) fn knows(&self, path: Path) -> bool {
        self.paths.iter().any(|known| known.remote == path.remote)
    }

    /// The other end has sent something that only it could send.
    pub(super) fn on_heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Takes a STUN packet, and says what to answer.
    pub(super) fn on_stun(&mut self, path: Path, datagram: &[u8], now: Instant) -> Option<Vec<u8>> {
        if let Some(request) = stun::request(datagram) {
            if request.ufrag != self.ufrag.as_str() {
                return None;
            }
            self.on_heard(now);
            if self.checks.is_none() {
                self.remember(path, request.nominates);
            }
            return Some(stun::write_response(&request, path.remote));
        }
        let checks = self.checks.as_mut()?;
        if stun::response(datagram, &self.ufrag)? == checks.transaction {
            checks.is_answered = true;
            checks.next = now + CONSENT_INTERVAL;
            checks.repeat = FIRST_REPEAT;
            checks.transaction = checks.random.random();
            self.on_heard(now);
        }
        None
    }

    fn remember(&mut self, path: Path, nominates: bool) {
        let known = self.paths.iter().position(|p| p.remote == path.remote);
        if let Some(at) = known {
            self.paths.remove(at);
        } else if self.paths.len() == MAX_PATHS {
            self.paths.remove(0);
        }
        // Before any is nominated, the first one is as good as another.
        if nominates || (self.paths.is_empty() && !self.is_nominated) || self.is_last(known) {
            self.is_nominated |= nominates;
            self.paths.push(path);
        } else {
            let before_last = self.paths.len().saturating_sub(1);
            self.paths.insert(before_last, path);
        }
    }

    /// Whether the path that was at `at` was the one to send to.
    fn is_last(&self, at: Option<usize>) -> bool {
        at == Some(self.paths.len())
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        let silent = self.heard + SILENCE;
        match &self.checks {
            Some(checks) => checks.next.min(silent),
            None => silent,
        }
    }

    pub(super) fn is_silent(&self, now: Instant) -> bool {
        now >= self.heard + SILENCE
    }

    /// The check that is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<Vec<u8>> {
        let checks = self.checks.as_mut()?;
        if now < checks.next {
            return None;
        }
        checks.next = now + checks.repeat;
        checks.repeat = (checks.repeat * 2).min(LAST_REPEAT);
        Some(stun::write_request(
            &self.ufrag,
            checks.transaction,
            checks.tie,
        ))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a simulation begins now")]
mod tests {
    use super::*;

    fn path(port: u16) -> Path {
        Path {
            remote: ([192, 0, 2, 1], port).into(),
            local: None,
        }
    }

    fn ufrag() -> Ufrag {
        Ufrag::random([3; 32])
    }

    #[test]
    fn checks_are_repeated_until_they_are_answered_and_again_for_consent() {
        let start = Instant::now();
        let mut client = Ice::client(ufrag(), path(1), [1; 32], start);
        let mut server = Ice::server(ufrag(), start);
        let mut now = start;
        let mut sent = Vec::new();
        while sent.len() < 5 {
            now = client.poll_timeout();
            sent.extend(client.handle_timeout(now));
        }
        assert_eq!(now - start, Duration::from_millis(100 + 200 + 400 + 800));
        assert!(!client.is_connected() && !server.is_connected());
        let answer = server.on_stun(path(2), &sent[4], now).unwrap();
        assert_eq!(server.path(), Some(path(2)));
        assert_eq!(client.on_stun(path(1), &answer, now), None);
        assert!(client.is_connected() && server.is_connected());
        assert_eq!(client.poll_timeout() - now, CONSENT_INTERVAL);
        // An answer that comes again says nothing of later.
        let later = now + Duration::from_secs(20);
        client.on_stun(path(1), &answer, later);
        assert!(client.is_silent(now + SILENCE));
    }

    #[test]
    fn a_server_sends_where_it_is_told_to_and_remembers_few_addresses() {
        let now = Instant::now();
        let mut server = Ice::server(ufrag(), now);
        let nominating = stun::write_request(&ufrag(), [1; 12], 1);
        let name = ufrag();
        let plain = stun::tests::forged(&format!("{0}:{0}", name.as_str()), name.as_str());
        server.on_stun(path(1), &plain, now);
        server.on_stun(path(2), &plain, now);
        assert_eq!(server.path(), Some(path(1)));
        server.on_stun(path(2), &nominating, now);
        assert_eq!(server.path(), Some(path(2)));
        for port in 3..100 {
            server.on_stun(path(port), &plain, now);
            assert_eq!(server.path(), Some(path(2)));
        }
        assert_eq!(server.paths.len(), MAX_PATHS);
        assert!(server.knows(path(99)) && server.knows(path(2)) && !server.knows(path(1)));
        // Consent keeps it.
        server.on_stun(path(2), &plain, now);
        assert_eq!(server.path(), Some(path(2)));
        let other = stun::write_request(&Ufrag::random([4; 32]), [1; 12], 1);
        assert_eq!(server.on_stun(path(200), &other, now), None);
        assert!(!server.knows(path(200)));
    }
}
