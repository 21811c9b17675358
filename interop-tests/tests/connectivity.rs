//! The program `connectivity`, as people run it.
#![cfg(feature = "natlab")]
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use anypath_interop_tests::lab::{binary, explain, isolated};
use anypath_interop_tests::peers::{Console, Error};
use std::future::Future;
use std::process::{Command, Output};
use std::time::Duration;

const CHECKS: [&str; 8] = [
    "tcp",
    "quic",
    "websocket",
    "relay",
    "announcements",
    "bitswap",
    "mdns",
    "hole punch",
];

/// A bound that only a hanging test reaches.
const PATIENCE: Duration = Duration::from_secs(60);

fn automated(more: impl FnOnce(&mut Command)) -> (Vec<String>, Output) {
    let anypath = binary().unwrap_or_else(|error| panic!("{}", explain(&error)));
    let mut command = Command::new(env!("CARGO_BIN_EXE_connectivity"));
    command.arg("--automated").env("ANYPATH_BIN", anypath);
    more(&mut command);
    let output = command.output().expect("the program runs");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    (text.lines().map(str::to_owned).collect(), output)
}

fn assert_checked(lines: &[String], verdict: &str, check: &str) {
    let begins = format!("{verdict:<8}{check} ");
    let is_it = |line: &&String| line.starts_with(&begins);
    assert_eq!(
        lines.iter().filter(is_it).count(),
        1,
        "{begins:?} in {lines:#?}"
    );
}

#[test]
fn every_way_between_real_nodes_is_checked_and_works() {
    let (lines, output) = automated(|_| ());
    for check in CHECKS {
        assert_checked(&lines, "ok", check);
    }
    let last = lines.last().map(String::as_str);
    assert_eq!(last, Some("8 passed, 0 failed, 0 not run"));
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn where_there_can_be_no_lab_its_checks_are_named_as_not_run() {
    // `unshare` is not found.
    let (lines, output) = automated(|command| {
        command.env("PATH", "");
    });
    for check in CHECKS {
        let needs_the_lab = ["mdns", "hole punch"].contains(&check);
        let verdict = if needs_the_lab { "NOT RUN" } else { "ok" };
        assert_checked(&lines, verdict, check);
    }
    let last = lines.last().map(String::as_str);
    assert_eq!(last, Some("6 passed, 0 failed, 2 not run"));
    assert!(output.status.success(), "{output:?}");
}

fn on_a_runtime(test: impl Future<Output = Result<(), Error>>) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(test).expect("the test");
}

fn start(arguments: &[&str]) -> Result<Console, Error> {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_connectivity"));
    command.args(arguments);
    Console::start(command)
}

async fn after(console: &mut Console, beginning: &str) -> Result<String, Error> {
    let rest = |line: &str| line.strip_prefix(beginning).map(str::to_owned);
    console.shows(beginning, PATIENCE, rest).await
}

/// Alone on a machine of its own, where port 9200 is free.
#[test]
fn one_that_takes_commands_meets_one_that_waits() {
    isolated(|| {
        on_a_runtime(async {
            let mut waits = start(&["listen"])?;
            let id = after(&mut waits, "peer id ").await?;
            let address = after(&mut waits, "listening on /ip4/127.0.0.1/tcp/9200").await?;
            assert_eq!(address, format!("/p2p/{id}"));
            after(&mut waits, "waiting for others").await?;

            let mut asks = start(&[])?;
            let own = after(&mut asks, "peer id ").await?;
            asks.enter("hello").await?;
            after(&mut asks, "hello: not a command; `help` tells").await?;
            asks.enter("connect nowhere").await?;
            after(&mut asks, "connect nowhere: invalid multiaddr").await?;
            asks.enter(&format!("ping {id}")).await?;
            after(&mut asks, &format!("ping {id}: ")).await?;
            asks.enter(&format!("connect /ip4/127.0.0.1/tcp/9200/p2p/{id}"))
                .await?;
            after(&mut asks, &format!("connected to {id}")).await?;
            after(&mut waits, &format!("{own} is connected")).await?;
            asks.enter(&format!("ping {id}")).await?;
            after(&mut asks, &format!("{id} answered after ")).await?;
            asks.enter("peers").await?;
            after(&mut asks, "1 connected").await?;
            after(&mut asks, &format!("{id} /ip4/127.0.0.1/tcp/9200")).await?;
            asks.enter("quit").await?;
            assert!(asks.stop(PATIENCE).await?.success());
            after(&mut waits, &format!("{own} is gone")).await?;

            // A second one finds the port taken, and says so.
            let ended = after(&mut start(&["listen"])?, "waiting for others").await;
            let error = ended.map_err(|error| error.to_string());
            assert!(
                matches!(&error, Err(why) if why.contains("9200")),
                "{error:?}"
            );
            Ok(())
        });
    });
}

#[test]
fn what_one_adds_another_gets() {
    isolated(|| {
        on_a_runtime(async {
            let directory = tempfile::tempdir()?;
            let (file, copy) = (directory.path().join("file"), directory.path().join("copy"));
            std::fs::write(&file, [7; 1_000_000])?;
            let (mut one, mut two) = (start(&[])?, start(&[])?);
            let address = after(&mut one, "listening on ").await?;
            two.enter(&format!("connect {address}")).await?;
            after(&mut two, "connected to ").await?;
            one.enter(&format!("add {}", file.display())).await?;
            let added = after(&mut one, "added ").await?;
            let (cid, _) = added.split_once(' ').unwrap_or_default();
            two.enter(&format!("get {cid} {}", copy.display())).await?;
            after(&mut two, "got 1000000 bytes in ").await?;
            assert_eq!(std::fs::read(&copy)?, std::fs::read(&file)?);
            // It is there already.
            two.enter(&format!("get {cid} {}", copy.display())).await?;
            after(&mut two, &format!("get {cid} ")).await?;
            Ok(())
        });
    });
}
