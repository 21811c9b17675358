//! How fast a file becomes blocks and blocks a file, without network: hashing, tree building, the store's log, and
//! `get`'s plan with its sequential output.
#![expect(clippy::expect_used, reason = "a bench that cannot run must say so")]

use anypath::{
    files::{self, AddOptions, Fetch, GetOptions},
    tiered_store::{Config, Store},
};
use bytes::Bytes;
use cid::Cid;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures::executor::block_on;

const FILE_BYTES: usize = 16 * 1024 * 1024;

/// The store as the only place that blocks come from.
struct Local(Store);

impl Fetch for Local {
    type Error = std::io::Error;

    async fn get(&self, cid: Cid) -> Result<Bytes, std::io::Error> {
        let block = self.0.get(&cid).await.map_err(std::io::Error::other)?;
        block.ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}

fn add_and_get(criterion: &mut Criterion) {
    let mut data = vec![0_u8; FILE_BYTES];
    // No two chunks are equal.
    for (number, chunk) in (0_u64..).zip(data.chunks_mut(8)) {
        chunk.copy_from_slice(&number.to_le_bytes());
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let open = |name: &str| {
        block_on(Store::open(Config::new(directory.path().join(name)))).expect("a store")
    };
    let mut group = criterion.benchmark_group("files");
    group
        .throughput(Throughput::Bytes(FILE_BYTES as u64))
        .sample_size(10);

    let mut stores = 0;
    group.bench_function("add_16MiB", |bencher| {
        bencher.iter_batched(
            || {
                stores += 1;
                open(&format!("add-{stores}"))
            },
            |store| {
                block_on(files::add(&store, &data[..], AddOptions::default())).expect("added");
                block_on(store.close()).expect("closed");
            },
            BatchSize::PerIteration,
        );
    });

    let store = open("get");
    let added = block_on(files::add(&store, &data[..], AddOptions::default())).expect("added");
    let (local, output) = (Local(store), directory.path().join("out"));
    group.bench_function("get_16MiB_from_the_store", |bencher| {
        bencher.iter(|| {
            let options = GetOptions {
                force: true,
                ..GetOptions::default()
            };
            block_on(files::get(&local, added.cid, &output, options)).expect("written")
        });
    });
    group.finish();
}

criterion_group!(benches, add_and_get);
criterion_main!(benches);
