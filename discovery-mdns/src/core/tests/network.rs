//! Many hosts on one link.

use proptest::prelude::*;

use super::lan::*;
use crate::Config;

/// The share of packets that a busy wireless network loses.
const LOSS: f64 = 0.05;

#[test]
fn two_hosts_find_each_other_in_half_a_second() {
    for seed in 0..200 {
        let mut lan = Lan::new(seed);
        let a = lan.start(&Config::default());
        // The second one comes at any time, also right after an announcement of the first.
        lan.run(millis(seed * 13));
        let begin = lan.now;
        let b = lan.start(&Config::default());
        assert!(lan.run_until(secs(5), Lan::all_know_all), "seed {seed}");
        let took = lan.now - begin;
        assert!(took <= millis(500), "seed {seed}: {took:?}");
        let (a, b) = (&lan.hosts[a], &lan.hosts[b]);
        assert!(a.discovered(&b.peer).is_some() && b.discovered(&a.peer).is_some());
    }
}

#[test]
fn two_hundred_hosts_that_start_together_all_know_all_within_five_seconds() {
    let mut lan = Lan::new(1).with_loss(LOSS);
    for _ in 0..200 {
        lan.start(&Config::default());
        lan.run(millis(1));
    }
    let begin = lan.now;
    assert!(lan.run_until(secs(5), Lan::all_know_all));
    println!(
        "200 hosts: all know all {:?} after the last start",
        lan.now - begin
    );
    let most = lan.hosts.iter().map(|host| host.sent.len()).max();
    println!("packets of one host until then: at most {most:?}");
}

#[test]
fn at_rest_a_host_sends_less_than_ten_packets_a_minute() {
    for (hosts, loss) in [(2, 0.0), (50, 0.0), (50, LOSS)] {
        let mut lan = Lan::new(2).with_loss(loss);
        for _ in 0..hosts {
            lan.start(&Config::default());
        }
        lan.run(secs(180));
        let begin = lan.now;
        const MINUTES: usize = 5;
        lan.run(secs(60) * MINUTES as u32);
        assert!(lan.all_know_all(), "someone was forgotten");
        let sent = lan
            .hosts
            .iter()
            .map(|host| (host.queries_since(begin), host.answers_since(begin)));
        let most = sent
            .clone()
            .map(|(queries, answers)| queries + answers)
            .max();
        let queries: usize = sent.clone().map(|(queries, _)| queries).sum();
        let answers: usize = sent.map(|(_, answers)| answers).sum();
        let mean = |count: usize| count as f64 / (hosts * MINUTES) as f64;
        println!(
            "{hosts} hosts, {:.0} % loss: {:.2} queries and {:.2} answers a host and minute, at most {:.1}",
            loss * 100.0,
            mean(queries),
            mean(answers),
            most.unwrap() as f64 / MINUTES as f64
        );
        assert!(
            most.unwrap() <= 10 * MINUTES,
            "{hosts} hosts: {most:?} packets"
        );
        // A link hears about one query an interval, however many hosts there are.
        assert!(queries <= 3 * MINUTES + hosts / 10, "{queries} queries");
    }
}

#[test]
fn a_goodbye_is_believed_at_once_and_a_silent_end_after_the_time_to_live() {
    let mut lan = Lan::new(3);
    for _ in 0..3 {
        lan.start(&Config::default());
    }
    assert!(lan.run_until(secs(5), Lan::all_know_all));
    let (gone, killed) = (lan.hosts[1].peer, lan.hosts[2].peer);
    let begin = lan.now;
    lan.stop(1);
    lan.kill(2);
    lan.run(millis(5));
    assert!(lan.hosts[0].expired(&gone).is_some());
    assert!(lan.hosts[0].expired(&killed).is_none());
    lan.run(secs(301));
    let expired = lan.hosts[0].expired(&killed).unwrap();
    assert!(expired - begin <= secs(300));
    assert_eq!(lan.hosts[0].core.peers().len(), 0);
    // Nothing is left to be done but asking now and then.
    assert!(lan.hosts[0].core.poll_timeout().unwrap() > lan.now);
}

#[test]
fn a_living_host_is_never_forgotten_although_packets_are_lost() {
    let mut lan = Lan::new(4).with_loss(2.0 * LOSS);
    for _ in 0..20 {
        lan.start(&Config::default());
    }
    lan.run(secs(2 * 3600));
    assert!(lan.all_know_all());
    let expired: usize = lan
        .hosts
        .iter()
        .map(|host| {
            let ends = host.events.iter();
            ends.filter(|(_, event)| matches!(event, crate::Event::Expired { .. }))
                .count()
        })
        .sum();
    assert_eq!(expired, 0);
}

#[test]
fn hosts_with_another_service_name_do_not_meet() {
    let mut lan = Lan::new(5);
    let private = Config::builder().private_network([7; 16]).build().unwrap();
    for config in [&Config::default(), &private, &private] {
        lan.start(config);
    }
    lan.run(secs(10));
    assert_eq!(lan.hosts[0].core.peers().len(), 0);
    assert_eq!(lan.hosts[1].core.peers().len(), 1);
    assert!(lan.hosts[1].discovered(&lan.hosts[2].peer).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever hosts do, half a time to live later all that are there know all that are there.
    #[test]
    fn after_any_history_all_know_all(
        seed: u64,
        history in proptest::collection::vec((0..3_u8, 0..8_usize, 0..4_000_u64), 1..24),
    ) {
        let config = Config::builder()
            .ttl(secs(20))
            .query_interval(secs(5))
            .build()
            .unwrap();
        let mut lan = Lan::new(seed).with_loss(LOSS);
        lan.start(&config);
        for (what, host, wait) in history {
            match what {
                0 => drop(lan.start(&config)),
                1 if host < lan.hosts.len() && lan.hosts[host].on => lan.stop(host),
                2 if host < lan.hosts.len() => lan.kill(host),
                _ => {}
            }
            lan.run(millis(wait));
        }
        prop_assert!(lan.run_until(secs(60), Lan::all_know_all));
    }
}
