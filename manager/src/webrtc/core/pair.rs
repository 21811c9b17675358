//! Two connections and a link between them, in virtual time.

use std::{collections::BinaryHeap, io, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use web_time::Instant;

use super::{CloseReason, Connection, Event, Path, StreamKey, Ufrag};
use crate::webrtc::certificate::Certificate;

/// What the link does to datagrams.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) delay: Duration,
    /// Up to so much more, for each on its own: they overtake each other.
    pub(super) jitter: Duration,
    /// Of 100.
    pub(super) loss: u32,
    pub(super) is_cut: bool,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss: 0,
            is_cut: false,
        }
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    at: std::cmp::Reverse<Instant>,
    number: std::cmp::Reverse<u64>,
    to_server: bool,
    bytes: Vec<u8>,
}

/// One end, and what it was told.
pub(super) struct End {
    pub(super) connection: Connection,
    pub(super) secured: Option<StreamKey>,
    pub(super) opened: Vec<StreamKey>,
    pub(super) closed: Option<CloseReason>,
}

impl End {
    fn new(connection: Connection) -> Self {
        Self {
            connection,
            secured: None,
            opened: Vec::new(),
            closed: None,
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.connection.poll_event() {
            match event {
                Event::Secured(_, key) => self.secured = Some(key),
                Event::Opened(key) => self.opened.push(key),
                Event::Closed(reason) => self.closed = Some(reason),
                Event::Changed(_) | Event::CanOpen => {}
            }
        }
    }
}

pub(super) struct Pair {
    pub(super) now: Instant,
    start: Instant,
    pub(super) client: End,
    pub(super) server: End,
    pub(super) link: Link,
    flights: BinaryHeap<Flight>,
    sent: u64,
    random: StdRng,
}

pub(super) fn paths() -> (Path, Path) {
    let path = |port| Path {
        remote: ([192, 0, 2, 1], port).into(),
        local: None,
    };
    (path(1), path(2))
}

impl Pair {
    pub(super) fn new(link: Link) -> Self {
        let server = Certificate::generate().unwrap();
        let expected = server.fingerprint;
        Self::with_certificates(link, &server, expected)
    }

    pub(super) fn with_certificates(
        link: Link,
        server: &Certificate,
        expected: super::Fingerprint,
    ) -> Self {
        let now = Instant::now();
        let client = Certificate::generate().unwrap();
        let seed = [7; 32];
        let dialled = Connection::dial(paths().1, expected, &client.der, seed, now).unwrap();
        let accepted = Connection::accept(Ufrag::random(seed), &server.der, now).unwrap();
        Self {
            now,
            start: now,
            client: End::new(dialled),
            server: End::new(accepted),
            link,
            flights: BinaryHeap::new(),
            sent: 0,
            random: StdRng::seed_from_u64(1),
        }
    }

    /// Both have the stream for the handshake, and take each other for authenticated.
    pub(super) fn connected(link: Link) -> Self {
        let mut pair = Self::new(link);
        pair.run_until(|pair| pair.client.secured.is_some() && pair.server.secured.is_some());
        pair.client.connection.on_authenticated();
        pair.server.connection.on_authenticated();
        pair
    }

    /// When the client dialled.
    pub(super) fn client_started(&self) -> Instant {
        self.start
    }

    fn collect(&mut self) {
        for to_server in [true, false] {
            let end = match to_server {
                true => &mut self.client,
                false => &mut self.server,
            };
            while let Some(transmit) = end.connection.poll_transmit(self.now) {
                for bytes in transmit.bytes.chunks(transmit.segment) {
                    assert!(bytes.len() <= 1472, "{} bytes", bytes.len());
                    if self.link.is_cut || self.random.random_range(0..100) < self.link.loss {
                        continue;
                    }
                    self.sent += 1;
                    let jitter = self.link.jitter.mul_f64(self.random.random_range(0.0..1.0));
                    self.flights.push(Flight {
                        at: std::cmp::Reverse(self.now + self.link.delay + jitter),
                        number: std::cmp::Reverse(self.sent),
                        to_server,
                        bytes: bytes.to_vec(),
                    });
                }
            }
            end.take_events();
        }
    }

    /// What happens next, happens. False: nothing ever does.
    pub(super) fn step(&mut self) -> bool {
        self.collect();
        let arrives = self.flights.peek().map(|flight| flight.at.0);
        let ends = [&self.client, &self.server];
        let timers = ends
            .iter()
            .filter_map(|end| end.connection.poll_timeout())
            .min();
        let Some(next) = arrives.into_iter().chain(timers).min() else {
            return false;
        };
        self.now = self.now.max(next);
        if arrives == Some(next)
            && let Some(flight) = self.flights.pop()
        {
            let (of_client, of_server) = paths();
            match flight.to_server {
                true => self
                    .server
                    .connection
                    .handle_datagram(of_client, &flight.bytes, self.now),
                false => self
                    .client
                    .connection
                    .handle_datagram(of_server, &flight.bytes, self.now),
            }
        } else {
            for end in [&mut self.client, &mut self.server] {
                if end
                    .connection
                    .poll_timeout()
                    .is_some_and(|due| due <= self.now)
                {
                    end.connection.handle_timeout(self.now);
                }
            }
        }
        self.collect();
        true
    }

    pub(super) fn run_until(&mut self, mut is_done: impl FnMut(&mut Self) -> bool) {
        let end = self.now + Duration::from_secs(600);
        while !is_done(self) {
            assert!(self.step() && self.now < end, "it never happens");
        }
    }

    pub(super) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.collect();
            let arrives = self.flights.peek().map(|flight| flight.at.0);
            let timers = [&self.client, &self.server].map(|end| end.connection.poll_timeout());
            let next = timers.into_iter().flatten().chain(arrives).min();
            if next.is_none_or(|next| next > end) {
                self.now = end;
                return;
            }
            self.step();
        }
    }

    /// A stream that the client opens, with some bytes, as both ends know it.
    pub(super) fn stream(&mut self) -> (StreamKey, StreamKey) {
        let key = self.client.connection.open(self.now).unwrap().unwrap();
        let before = self.server.opened.len();
        self.run_until(|pair| pair.server.opened.len() > before);
        (key, *self.server.opened.last().unwrap())
    }
}

/// Everything that a stream has now; none at its end.
pub(super) fn read_all(
    connection: &mut Connection,
    key: StreamKey,
    now: Instant,
    into: &mut Vec<u8>,
) -> io::Result<bool> {
    let mut buffer = vec![0; 20_000];
    while let Some(read) = connection.read(key, &mut buffer, now) {
        match read? {
            0 => return Ok(true),
            length => into.extend_from_slice(&buffer[..length]),
        }
    }
    Ok(false)
}
