//! The same node under tokio, async-std and smol: each moves a file over TCP and over QUIC.
#![cfg(feature = "files")]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and brings its own runtime"
)]

#[expect(dead_code, reason = "the other tests use more of it")]
mod common;

use std::time::Duration;

use anypath::{
    Executor, SessionOptions,
    files::{self, AddOptions, GetOptions},
};
use common::{Host, QUIC, SOON, TCP, alone, blocks};
use futures::future::{Either, select};

async fn moves_a_file(executor: impl Executor + Clone) {
    for listen in [TCP, QUIC] {
        let a = Host::start(alone(&[listen]), executor.clone()).await;
        let b = Host::start(alone(&[listen]), executor.clone()).await;
        let file: Vec<u8> = blocks(50, 100_000).concat();
        let added = files::add(a.node.store(), &file[..], AddOptions::default())
            .await
            .unwrap();
        let session = b
            .node
            .session(SessionOptions::default().peers(a.addresses()));
        let output = b.directory.path().join("file");
        let got = files::get(&session, added.cid, &output, GetOptions::default());
        match select(Box::pin(got), futures_timer::Delay::new(SOON)).await {
            Either::Left((got, _)) => drop(got.unwrap()),
            Either::Right(_) => panic!("no file over {listen} within {SOON:?}"),
        }
        assert!(std::fs::read(&output).unwrap() == file, "the file differs");
        assert!(
            session.progress().direct >= 5_000_000,
            "and it did not come from elsewhere"
        );
        a.node.shutdown().await;
        b.node.shutdown().await;
    }
}

#[test]
fn under_tokio() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(moves_a_file(|task| drop(tokio::spawn(task))));
    runtime.shutdown_timeout(Duration::from_secs(1));
}

#[test]
fn under_async_std() {
    async_std::task::block_on(moves_a_file(|task| drop(async_std::task::spawn(task))));
}

#[test]
fn under_smol() {
    smol::block_on(moves_a_file(|task| smol::spawn(task).detach()));
}
