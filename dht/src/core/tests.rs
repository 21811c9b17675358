use multihash_codetable::{Code, MultihashDigest as _};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const RAW: u64 = 0x55;

type Outputs = Vec<Output<u32>>;

fn core(builder: crate::ConfigBuilder) -> Core<u32> {
    Core::new(PeerId::random(), &builder.build().unwrap())
}

fn drain(core: &mut Core<u32>) -> Outputs {
    std::iter::from_fn(|| core.poll_output()).collect()
}

fn cid(n: u32) -> Cid {
    Cid::new_v1(RAW, Code::Sha2_256.digest(&n.to_be_bytes()))
}

fn key(n: u32) -> Vec<u8> {
    cid(n).hash().to_bytes()
}

fn provider(n: u32) -> Announcement {
    Announcement::Provider(key(n))
}

fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "a point to count from")]
    Instant::now()
}

fn ask(core: &mut Core<u32>, question: Question, id: u32) -> Ticket {
    let ticket = core.ask(question, start()).unwrap();
    core.on_started(ticket, id);
    ticket
}

fn terminals(outputs: &Outputs) -> Vec<Ticket> {
    let events = outputs.iter().filter_map(|output| match output {
        Output::Event(event) => event.finishes(),
        _ => None,
    });
    events.collect()
}

#[test]
fn providers_are_reported_as_they_come_and_each_once() {
    let mut core = core(Config::builder());
    let ticket = ask(&mut core, Question::FindProviders(cid(1)), 7);
    let mut peers: Vec<_> = std::iter::repeat_with(PeerId::random).take(3).collect();
    peers.sort_unstable();
    let [a, b, c] = peers[..] else { panic!() };
    let local = core.local;
    assert_eq!(core.on_providers(7, [b, a, local]), [a, b]);
    assert_eq!(core.on_providers(7, [a, c]), [c]);
    assert_eq!(core.on_providers(7, [a, b, c]), []);
    assert_eq!(core.on_providers(8, [a]), [], "not a query of ours");
    core.on_finished(7, Answer::Done, true, Ok(()));
    core.on_finished(7, Answer::Done, true, Ok(()));
    let found = |providers| Event::ProvidersFound {
        ticket,
        cid: cid(1),
        providers,
    };
    let finished = Event::FindProvidersFinished {
        ticket,
        cid: cid(1),
        found: 3,
        result: Ok(()),
    };
    assert_eq!(
        drain(&mut core),
        [found(vec![a, b]), found(vec![c]), finished].map(Output::Event)
    );
}

#[test]
fn every_ticket_is_finished_once_whatever_the_engine_does() {
    let mut core = core(Config::builder());
    let now = start();
    let questions = [
        Question::Provide(cid(1)),
        Question::FindProviders(cid(2)),
        Question::ClosestPeers(PeerId::random().into()),
        Question::PutValue(key(3)),
        Question::GetValue(key(4)),
        Question::Bootstrap,
    ];
    // Done, refused, forgotten, answered twice, ended by the user, answered after the deadline.
    let mut asked = Vec::new();
    for fate in 0..6u32 {
        for (n, question) in (0..).zip(&questions) {
            let id = 10 * fate + n;
            let ticket = core.ask(question.clone(), now).unwrap();
            asked.push(ticket);
            if fate == 1 {
                core.on_refused(ticket, QueryError::NoKnownPeers);
                continue;
            }
            core.on_started(ticket, id);
            match fate {
                0 => core.on_finished(id, Answer::Done, true, Ok(())),
                3 => {
                    core.on_finished(id, Answer::Done, true, Err(QueryError::Timeout));
                    core.on_finished(id, Answer::Done, true, Ok(()));
                }
                4 => core.finish(ticket),
                _ => {}
            }
        }
    }
    let mut outputs = drain(&mut core);
    for output in outputs.clone() {
        if let Output::Finish(id) = output {
            core.on_finished(id, Answer::Done, true, Ok(()));
        }
    }
    core.handle_timeout(now + 200 * SECOND);
    for id in 50..56 {
        core.on_finished(id, Answer::Done, true, Ok(()));
    }
    outputs.extend(drain(&mut core));
    let mut finished = terminals(&outputs);
    finished.sort_unstable();
    assert_eq!(finished, asked);
    assert!(core.queries.is_empty() && core.tickets.is_empty());
    assert_eq!(core.poll_timeout(), None);
}

#[test]
fn a_query_that_the_engine_forgets_times_out_a_second_after_the_engine_should_have() {
    let mut core = core(Config::builder().query_timeout(10 * SECOND));
    let now = start();
    let ticket = core.ask(Question::FindProviders(cid(1)), now).unwrap();
    core.on_started(ticket, 1);
    assert_eq!(core.poll_timeout(), Some(now + 11 * SECOND));
    core.handle_timeout(now + 10 * SECOND);
    assert_eq!(drain(&mut core), []);
    core.handle_timeout(now + 11 * SECOND);
    let error = Err(QueryError::Timeout);
    let event = Event::FindProvidersFinished {
        ticket,
        cid: cid(1),
        found: 0,
        result: error,
    };
    assert_eq!(drain(&mut core), [Output::Finish(1), Output::Event(event)]);
}

#[test]
fn a_refresh_may_take_its_time_as_long_as_it_goes_on_and_keeps_its_first_error() {
    let mut core = core(Config::builder().query_timeout(10 * SECOND));
    let now = start();
    let ticket = core.ask(Question::Bootstrap, now).unwrap();
    core.on_started(ticket, 1);
    for n in 1..20 {
        let at = now + 9 * SECOND * n;
        core.handle_timeout(at);
        core.on_part(
            1,
            if n == 3 {
                Err(QueryError::Timeout)
            } else {
                Ok(())
            },
            at,
        );
    }
    assert_eq!(drain(&mut core), []);
    core.on_finished(1, Answer::Done, true, Ok(()));
    let event = Event::BootstrapFinished {
        ticket,
        result: Err(QueryError::Timeout),
    };
    assert_eq!(drain(&mut core), [Output::Event(event)]);
}

#[test]
fn too_many_queries_fail_at_once_and_do_not_harm_the_others() {
    let mut core = core(Config::builder().max_queries(2));
    let first = ask(&mut core, Question::FindProviders(cid(1)), 1);
    ask(&mut core, Question::FindProviders(cid(2)), 2);
    let refused = core
        .ask(Question::FindProviders(cid(3)), start())
        .unwrap_err();
    let error = Err(QueryError::TooManyQueries);
    let event = Event::FindProvidersFinished {
        ticket: refused,
        cid: cid(3),
        found: 0,
        result: error,
    };
    assert_eq!(drain(&mut core), [Output::Event(event)]);
    core.on_finished(1, Answer::Done, true, Ok(()));
    assert_eq!(terminals(&drain(&mut core)), [first]);
    core.ask(Question::FindProviders(cid(3)), start()).unwrap();
}

#[test]
fn nobody_answered_is_an_error_unless_we_had_the_answer_ourselves() {
    let mut core = core(Config::builder());
    ask(&mut core, Question::FindProviders(cid(1)), 1);
    ask(&mut core, Question::FindProviders(cid(1)), 2);
    core.on_providers(2, [PeerId::random()]);
    drain(&mut core);
    core.on_finished(1, Answer::Done, false, Ok(()));
    core.on_finished(2, Answer::Done, false, Ok(()));
    let results = drain(&mut core).into_iter().map(|output| match output {
        Output::Event(Event::FindProvidersFinished { result, .. }) => result,
        other => panic!("{other:?}"),
    });
    assert_eq!(
        results.collect::<Vec<_>>(),
        [Err(QueryError::Unreachable), Ok(())]
    );
}

#[test]
fn what_nobody_has_heard_of_is_announced_when_the_node_joins() {
    let mut core = core(Config::builder());
    let ticket = core.ask(Question::Provide(cid(1)), start()).unwrap();
    core.on_refused(ticket, QueryError::NoKnownPeers);
    ask(&mut core, Question::Provide(cid(2)), 2);
    core.on_finished(2, Answer::Done, true, Err(QueryError::Timeout));
    ask(&mut core, Question::Provide(cid(3)), 3);
    core.on_finished(3, Answer::Done, true, Ok(()));
    let ticket = core.ask(Question::Provide(cid(4)), start()).unwrap();
    core.on_refused(ticket, QueryError::StoreFull);
    drain(&mut core);

    core.on_joined();
    let mut expected = [provider(1), provider(2)].map(Output::Announce);
    expected.sort_by_key(|output| format!("{output:?}"));
    let mut announced = drain(&mut core);
    announced.sort_by_key(|output| format!("{output:?}"));
    assert_eq!(announced, expected);
    core.on_announcing(provider(1), Some(11));
    core.on_announcing(provider(2), Some(12));
    core.on_finished(11, Answer::Done, true, Ok(()));
    core.on_finished(12, Answer::Done, false, Ok(()));
    assert_eq!(drain(&mut core), [], "no ticket waits for these");

    core.on_joined();
    assert_eq!(drain(&mut core), [Output::Announce(provider(2))]);
    core.on_announcing(provider(2), Some(13));
    core.on_stopped_providing(&key(2));
    core.on_finished(13, Answer::Done, false, Ok(()));
    core.on_joined();
    assert_eq!(drain(&mut core), []);
}

#[test]
fn a_thousand_waiting_keys_are_announced_a_few_at_a_time() {
    let mut core = core(Config::builder());
    for n in 0..1000 {
        let ticket = core.ask(Question::Provide(cid(n)), start()).unwrap();
        core.on_refused(ticket, QueryError::NoKnownPeers);
    }
    drain(&mut core);
    core.on_joined();
    core.on_joined();
    let (mut running, mut next, mut announced) = (VecDeque::new(), 0, BTreeSet::new());
    loop {
        for output in drain(&mut core) {
            let Output::Announce(key) = output else {
                panic!("{output:?}")
            };
            assert!(announced.insert(key.clone()), "announced twice");
            core.on_announcing(key, Some(next));
            running.push_back(next);
            next += 1;
        }
        assert!(running.len() <= MAX_ANNOUNCEMENTS);
        let Some(id) = running.pop_front() else { break };
        core.on_finished(id, Answer::Done, true, Ok(()));
    }
    assert_eq!(announced.len(), 1000);
    assert!(core.unannounced.is_empty() && core.announcing.is_empty());
}

#[test]
fn what_is_no_longer_provided_is_not_announced_later_because_its_announcement_failed() {
    let mut core = core(Config::builder());
    ask(&mut core, Question::Provide(cid(1)), 1);
    ask(&mut core, Question::Provide(cid(2)), 2);
    core.on_stopped_providing(&key(1));
    for id in [1, 2] {
        core.on_finished(id, Answer::Done, true, Err(QueryError::Timeout));
    }
    drain(&mut core);
    core.on_joined();
    assert_eq!(drain(&mut core), [Output::Announce(provider(2))]);
}

/// Values of two bytes are valid; the greater first one is better.
struct Greater;

impl crate::Validator for Greater {
    fn validate(&self, _: &[u8], value: &[u8]) -> Result<(), crate::InvalidValue> {
        match value.len() {
            2 => Ok(()),
            _ => Err(crate::InvalidValue::new("not two bytes")),
        }
    }

    fn compare(&self, _: &[u8], one: &[u8], other: &[u8]) -> std::cmp::Ordering {
        one.first().cmp(&other.first())
    }
}

fn validators() -> Validators {
    let mut validators = Validators::default();
    validators.set("test".into(), std::sync::Arc::new(Greater));
    validators
}

const VALUE_KEY: &[u8] = b"/test/key";

fn value_found(ticket: Ticket, value: &[u8]) -> Output<u32> {
    Output::Event(Event::ValueFound {
        ticket,
        key: VALUE_KEY.to_vec(),
        value: value.to_vec(),
    })
}

fn value_finished(
    ticket: Ticket,
    value: Option<&[u8]>,
    result: Result<(), QueryError>,
) -> Output<u32> {
    Output::Event(Event::GetValueFinished {
        ticket,
        key: VALUE_KEY.to_vec(),
        value: value.map(<[u8]>::to_vec),
        result,
    })
}

#[test]
fn the_best_value_is_told_as_it_is_found_and_who_has_a_worse_one_is_sent_it() {
    let mut core = core(Config::builder());
    let ticket = ask(&mut core, Question::GetValue(VALUE_KEY.to_vec()), 1);
    let mut peers: Vec<_> = std::iter::repeat_with(PeerId::random).take(6).collect();
    peers.sort_unstable();
    let [a, b, c, d, e, f] = peers[..] else {
        panic!()
    };
    let mut answer = |from, key: &[u8], value: &[u8]| {
        core.on_value(1, Some(from), key, value.to_vec(), &validators());
    };
    answer(a, VALUE_KEY, b"10");
    answer(b, VALUE_KEY, b"20");
    // Not better, invalid, to another question, as good but another one, the same.
    answer(c, VALUE_KEY, b"10");
    answer(d, VALUE_KEY, b"900");
    answer(e, b"/test/other", b"90");
    answer(e, VALUE_KEY, b"21");
    answer(f, VALUE_KEY, b"20");
    core.on_finished(1, Answer::Done, true, Ok(()));
    let correct = Output::Correct {
        key: VALUE_KEY.to_vec(),
        value: b"20".to_vec(),
        peers: vec![a, c, d, e],
        us: false,
    };
    let expected = [
        value_found(ticket, b"10"),
        value_found(ticket, b"20"),
        correct,
        value_finished(ticket, Some(b"20"), Ok(())),
    ];
    assert_eq!(drain(&mut core), expected);
}

#[test]
fn our_own_store_is_corrected_too() {
    let mut core = core(Config::builder());
    let ticket = ask(&mut core, Question::GetValue(VALUE_KEY.to_vec()), 1);
    core.on_value(1, None, VALUE_KEY, b"10".to_vec(), &validators());
    let better = Some(PeerId::random());
    core.on_value(1, better, VALUE_KEY, b"20".to_vec(), &validators());
    core.on_finished(1, Answer::Done, true, Ok(()));
    let correct = Output::Correct {
        key: VALUE_KEY.to_vec(),
        value: b"20".to_vec(),
        peers: Vec::new(),
        us: true,
    };
    let expected = [
        value_found(ticket, b"10"),
        value_found(ticket, b"20"),
        correct,
        value_finished(ticket, Some(b"20"), Ok(())),
    ];
    assert_eq!(drain(&mut core), expected);
}

#[test]
fn the_end_of_an_old_announcement_says_nothing_of_a_newer_one_that_failed() {
    let again = || Output::Announce(Announcement::Value(VALUE_KEY.to_vec()));
    let announcement = || Announcement::Value(VALUE_KEY.to_vec());
    // Two puts of the same key: the second one fails before the first one is through.
    let mut core = core(Config::builder());
    ask(&mut core, Question::PutValue(VALUE_KEY.to_vec()), 1);
    ask(&mut core, Question::PutValue(VALUE_KEY.to_vec()), 2);
    core.on_finished(2, Answer::Stored(0), true, Err(QueryError::Timeout));
    core.on_finished(1, Answer::Stored(1), true, Ok(()));
    drain(&mut core);
    core.on_joined();
    assert_eq!(drain(&mut core), [again()]);
    // While that runs, a third one fails, and joining again starts no second one.
    core.on_announcing(announcement(), Some(3));
    ask(&mut core, Question::PutValue(VALUE_KEY.to_vec()), 4);
    core.on_finished(4, Answer::Stored(0), true, Err(QueryError::Timeout));
    drain(&mut core);
    core.on_joined();
    assert_eq!(drain(&mut core), []);
    core.on_finished(3, Answer::Stored(1), true, Ok(()));
    core.on_joined();
    assert_eq!(drain(&mut core), [again()]);
    core.on_announcing(announcement(), Some(5));
    core.on_finished(5, Answer::Stored(1), true, Ok(()));
    assert!(core.unannounced.is_empty());
}

#[test]
fn a_value_whose_time_comes_while_it_is_put_is_not_put_twice() {
    let mut core = core(Config::builder().value_republish_interval(SECOND));
    let now = start();
    let announcement = || Announcement::Value(VALUE_KEY.to_vec());
    core.on_put_value(VALUE_KEY, now);
    core.handle_timeout(now + SECOND);
    assert_eq!(drain(&mut core), [Output::Announce(announcement())]);
    core.on_announcing(announcement(), Some(1));
    for n in 2..1000 {
        core.handle_timeout(now + n * SECOND);
    }
    assert_eq!(drain(&mut core), []);
    assert!(core.waiting.is_empty() && core.republish.len() == 1);
    core.on_finished(1, Answer::Stored(0), true, Err(QueryError::NotStored));
    core.handle_timeout(now + 1000 * SECOND);
    assert_eq!(drain(&mut core), [Output::Announce(announcement())]);
}

#[test]
fn a_value_that_we_have_is_an_answer_and_none_is_no_error() {
    let mut core = core(Config::builder());
    let own = ask(&mut core, Question::GetValue(VALUE_KEY.to_vec()), 1);
    core.on_value(1, None, VALUE_KEY, b"10".to_vec(), &validators());
    core.on_finished(1, Answer::Done, false, Ok(()));
    let none = ask(&mut core, Question::GetValue(VALUE_KEY.to_vec()), 2);
    core.on_finished(2, Answer::Done, true, Ok(()));
    let expected = [
        value_found(own, b"10"),
        value_finished(own, Some(b"10"), Ok(())),
        value_finished(none, None, Ok(())),
    ];
    assert_eq!(drain(&mut core), expected);
}

#[test]
fn a_value_is_put_again_and_again_until_it_is_removed() {
    let hour = Duration::from_secs(3600);
    let builder = Config::builder().value_republish_interval(22 * hour);
    let (mut core, now) = (core(builder), start());
    let announce = || Output::Announce(Announcement::Value(VALUE_KEY.to_vec()));
    ask(&mut core, Question::PutValue(VALUE_KEY.to_vec()), 1);
    core.on_put_value(VALUE_KEY, now);
    core.on_finished(1, Answer::Stored(3), true, Ok(()));
    drain(&mut core);
    // Put anew after an hour, which begins the time again.
    core.on_put_value(VALUE_KEY, now + hour);
    for (n, id) in (1..4).zip(10..) {
        let at = now + hour + 22 * n * hour;
        core.handle_timeout(at - SECOND);
        assert_eq!(drain(&mut core), []);
        core.handle_timeout(at);
        assert_eq!(drain(&mut core), [announce()]);
        core.on_announcing(Announcement::Value(VALUE_KEY.to_vec()), Some(id));
        core.on_finished(id, Answer::Stored(1), true, Ok(()));
    }
    assert!(core.unannounced.is_empty());
    core.on_removed_value(VALUE_KEY);
    core.handle_timeout(now + 1000 * hour);
    assert_eq!(drain(&mut core), []);
    assert_eq!(core.poll_timeout(), None);
}

#[test]
fn a_value_that_reached_no_node_is_put_when_the_node_joins_again_and_one_that_was_refused_is_not() {
    let mut core = core(Config::builder());
    ask(&mut core, Question::PutValue(VALUE_KEY.to_vec()), 1);
    core.on_finished(1, Answer::Stored(0), true, Err(QueryError::Unreachable));
    ask(&mut core, Question::PutValue(b"/test/refused".to_vec()), 2);
    core.on_finished(2, Answer::Stored(0), true, Err(QueryError::NotStored));
    let refused = core.ask(Question::PutValue(b"/test/worse".to_vec()), start());
    core.on_refused(refused.unwrap(), QueryError::Superseded);
    drain(&mut core);
    core.on_joined();
    let again = Announcement::Value(VALUE_KEY.to_vec());
    assert_eq!(drain(&mut core), [Output::Announce(again)]);
}
