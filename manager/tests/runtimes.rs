//! The same node under tokio, async-std and smol: each fetches blocks over TCP and over QUIC.

#[expect(dead_code, reason = "the other tests use more of it")]
mod common;

use std::time::Duration;

use anypath::{Executor, SessionOptions};
use common::{Host, QUIC, SOON, TCP, alone, blocks};
use futures::future::{Either, join_all, select};

async fn moves_blocks(executor: impl Executor + Clone) {
    for listen in [TCP, QUIC] {
        let a = Host::start(alone(&[listen]), executor.clone()).await;
        let b = Host::start(alone(&[listen]), executor.clone()).await;
        let data = blocks(50, 100_000);
        let cids = join_all(data.iter().map(|block| a.put(block))).await;
        let session = b.node.session(SessionOptions::default().peers(a.addresses()));
        let got = join_all(cids.iter().map(|cid| session.get(*cid)));
        let got = match select(Box::pin(got), futures_timer::Delay::new(SOON)).await {
            Either::Left((got, _)) => got,
            Either::Right(_) => panic!("no blocks over {listen} within {SOON:?}"),
        };
        for (block, got) in data.iter().zip(got) {
            assert_eq!(&got.unwrap()[..], &block[..]);
        }
        assert_eq!(session.progress().direct, 5_000_000);
        a.node.shutdown().await;
        b.node.shutdown().await;
    }
}

#[test]
fn under_tokio() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(moves_blocks(|task| drop(tokio::spawn(task))));
    runtime.shutdown_timeout(Duration::from_secs(1));
}

#[test]
fn under_async_std() {
    async_std::task::block_on(moves_blocks(|task| drop(async_std::task::spawn(task))));
}

#[test]
fn under_smol() {
    smol::block_on(moves_blocks(|task| smol::spawn(task).detach()));
}
