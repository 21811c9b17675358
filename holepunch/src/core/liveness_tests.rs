use super::*;

const TIMEOUT: Duration = Duration::from_secs(2);
const TCP: Kind = Kind {
    relayed: false,
    quic: false,
    dialled: false,
};
const QUIC: Kind = Kind { quic: true, ..TCP };
const CIRCUIT: Kind = Kind {
    relayed: true,
    ..TCP
};

fn connection(n: usize) -> ConnectionId {
    ConnectionId::new_unchecked(n)
}

fn ask(peer: PeerId, n: usize) -> Output {
    let connection = connection(n);
    Output::Ask { peer, connection }
}

fn alive(peer: PeerId, n: usize) -> Output {
    let connection = connection(n);
    Output::Alive { peer, connection }
}

fn late(peer: PeerId, n: usize) -> Output {
    let connection = connection(n);
    Output::Late { peer, connection }
}

fn lost(peer: PeerId, n: usize) -> Output {
    let connection = connection(n);
    Output::Lost { peer, connection }
}

struct Bench {
    core: Liveness,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
        let now = Instant::now();
        Self {
            core: Liveness::new(TIMEOUT),
            now,
        }
    }

    fn up(&mut self, n: usize, peer: PeerId, kind: Kind) {
        self.core.on_connected(connection(n), peer, kind, self.now);
    }

    fn doubt(&mut self, n: usize, peer: PeerId) {
        self.core.doubt(connection(n), peer, self.now);
    }

    fn answer(&mut self, n: usize, peer: PeerId) {
        self.core.on_answer(connection(n), peer, self.now);
    }

    /// Handles every deadline in its time.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.core.poll_timeout().filter(|due| *due <= end) {
            assert!(due >= self.now, "a deadline that is over");
            self.now = due;
            self.core.handle_timeout(due);
        }
        self.now = end;
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.core.poll_output()).collect()
    }
}

#[test]
fn who_is_silent_is_lost_and_who_answers_is_not() {
    let (mut bench, a, b) = (Bench::new(), PeerId::random(), PeerId::random());
    bench.up(1, a, TCP);
    bench.up(2, b, TCP);
    bench.doubt(1, a);
    bench.doubt(2, b);
    assert_eq!(bench.outputs(), [ask(a, 1), ask(b, 2)]);
    bench.pass(TIMEOUT / 8);
    bench.answer(2, b);
    assert_eq!(bench.outputs(), [alive(b, 2)]);
    bench.pass(TIMEOUT / 8);
    assert_eq!(bench.outputs(), [late(a, 1)]);
    bench.pass(TIMEOUT * 3 / 4 + GRACE);
    assert_eq!(bench.outputs(), [lost(a, 1)]);
    assert_eq!(bench.core.poll_timeout(), None);
    // Told once, and an answer comes too late.
    bench.answer(1, a);
    bench.doubt(1, a);
    bench.core.doubt_direct(a, bench.now);
    assert_eq!(bench.outputs(), []);
}

#[test]
fn an_answer_that_was_there_when_the_time_was_over_counts() {
    let (mut bench, a) = (Bench::new(), PeerId::random());
    bench.up(1, a, TCP);
    bench.doubt(1, a);
    bench.pass(TIMEOUT);
    assert_eq!(bench.outputs(), [ask(a, 1), late(a, 1)]);
    bench.answer(1, a);
    bench.pass(TIMEOUT);
    assert_eq!(bench.outputs(), [alive(a, 1)]);
}

#[test]
fn whoever_doubts_a_peer_is_asked_once_and_not_again_soon() {
    let (mut bench, a) = (Bench::new(), PeerId::random());
    bench.up(1, a, TCP);
    for _ in 0..100 {
        bench.doubt(1, a);
    }
    assert_eq!(bench.outputs(), [ask(a, 1)]);
    bench.answer(1, a);
    assert_eq!(bench.outputs(), [alive(a, 1)]);
    bench.pass(JUST_ANSWERED / 2);
    bench.doubt(1, a);
    assert_eq!(bench.outputs(), [alive(a, 1)]);
    bench.pass(JUST_ANSWERED / 2);
    bench.doubt(1, a);
    assert_eq!(bench.outputs(), [ask(a, 1)]);
}

#[test]
fn a_second_direct_connection_speaks_against_the_first_over_quic() {
    let (mut bench, a, b) = (Bench::new(), PeerId::random(), PeerId::random());
    bench.up(1, a, QUIC);
    bench.up(2, a, TCP);
    assert_eq!(bench.outputs(), [ask(a, 1)]);
    bench.up(3, b, TCP);
    bench.up(4, b, QUIC);
    assert_eq!(bench.outputs(), []);
    bench.up(5, b, CIRCUIT);
    assert_eq!(bench.outputs(), []);
    bench.core.doubt_direct(b, bench.now);
    assert_eq!(bench.outputs(), [ask(b, 3), ask(b, 4)]);
}

#[test]
fn who_came_to_us_cannot_have_everybody_asked_and_nobody_can_often() {
    let (mut bench, a, b) = (Bench::new(), PeerId::random(), PeerId::random());
    bench.up(1, a, TCP);
    bench.up(
        2,
        b,
        Kind {
            dialled: true,
            ..TCP
        },
    );
    bench.core.on_new_address(connection(1), a, bench.now);
    assert_eq!(bench.outputs(), []);
    bench.core.on_new_address(connection(2), b, bench.now);
    assert_eq!(bench.outputs().len(), 2);
    bench.answer(1, a);
    bench.answer(2, b);
    bench.pass(ALL_AGAIN / 2);
    bench.outputs();
    bench.core.on_new_address(connection(2), b, bench.now);
    assert_eq!(bench.outputs(), []);
    bench.pass(ALL_AGAIN / 2);
    bench.core.on_new_address(connection(2), b, bench.now);
    assert_eq!(bench.outputs().len(), 2);
}

#[test]
fn after_a_sleep_of_our_own_a_peer_is_asked_again() {
    let (mut bench, a) = (Bench::new(), PeerId::random());
    bench.up(1, a, TCP);
    bench.doubt(1, a);
    bench.outputs();
    bench.now += Duration::from_secs(60);
    bench.core.handle_timeout(bench.now);
    assert_eq!(bench.outputs(), [ask(a, 1)]);
    assert_eq!(bench.core.poll_timeout(), Some(bench.now + TIMEOUT / 4));
    bench.answer(1, a);
    bench.pass(2 * TIMEOUT);
    assert_eq!(bench.outputs(), [alive(a, 1)]);
}

#[test]
fn who_answered_slowly_once_has_more_time() {
    let (mut bench, a) = (Bench::new(), PeerId::random());
    bench.up(1, a, TCP);
    bench.doubt(1, a);
    bench.pass(TIMEOUT * 3 / 4);
    bench.answer(1, a);
    bench.pass(JUST_ANSWERED);
    bench.outputs();
    bench.doubt(1, a);
    bench.pass(2 * TIMEOUT);
    assert_eq!(bench.outputs(), [ask(a, 1), late(a, 1)]);
    bench.pass(TIMEOUT + GRACE);
    assert_eq!(bench.outputs(), [lost(a, 1)]);
}

#[test]
fn of_two_that_are_lost_the_circuit_is_told_first() {
    let (mut bench, a) = (Bench::new(), PeerId::random());
    bench.up(1, a, TCP);
    bench.up(2, a, CIRCUIT);
    bench.doubt(1, a);
    bench.doubt(2, a);
    bench.pass(TIMEOUT);
    bench.outputs();
    bench.pass(GRACE);
    assert_eq!(bench.outputs(), [lost(a, 2), lost(a, 1)]);
}

#[test]
fn of_what_is_closed_nothing_is_left() {
    let (mut bench, a) = (Bench::new(), PeerId::random());
    bench.up(1, a, TCP);
    bench.doubt(1, a);
    bench.core.on_closed(connection(1), a);
    bench.outputs();
    bench.pass(2 * TIMEOUT);
    assert_eq!(bench.outputs(), []);
    assert!(bench.core.connections.is_empty() && bench.core.asked.is_empty());
}
