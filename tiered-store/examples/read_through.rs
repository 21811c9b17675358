//! What is not here is fetched, checked and kept: `cargo run -p anypath-tiered-store --example read_through`.
//!
//! The source is another store here; elsewhere it is a gateway, an archive, or peers.

use std::{error::Error, sync::Arc};

use anypath_tiered_store::{BoxError, Config, PutOptions, Source, Store};
use bytes::Bytes;
use cid::Cid;
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use multihash_codetable::{Code, MultihashDigest};

struct Archive(Store);

impl Source for Archive {
    fn fetch<'a>(&'a self, cid: &'a Cid) -> BoxFuture<'a, Result<Option<Bytes>, BoxError>> {
        async move {
            println!("fetching {cid}");
            Ok(self.0.get(cid).await?)
        }
        .boxed()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    smol::block_on(async {
        let archive = Store::open(Config::new(temporary.path().join("archive"))).await?;
        let data = Bytes::from_static(b"from the archive");
        let cid = Cid::new_v1(0x55, Code::Sha2_256.digest(&data));
        archive.put(cid, data).await?;

        let config = Config::builder()
            .path(temporary.path().join("near"))
            .source(Arc::new(Archive(archive)))
            .source_options(PutOptions::default().with_class(anypath_tiered_store::Class::Cache))
            .build()?;
        let near = Store::open(config).await?;
        println!("here: {:?}", near.get_local(&cid).await?);
        // One fetch for all of them.
        for found in join_all((0..100).map(|_| near.get(&cid))).await {
            assert!(found?.is_some());
        }
        println!("here: {:?}", near.get_local(&cid).await?);
        near.close().await?;
        Ok(())
    })
}
