//! Feature `tiered-store`: what is put into a store is served from it.

#![cfg(feature = "tiered-store")]

use anypath_bitswap::{Block, BlockSource};
use anypath_tiered_store::{Config, Store};
use cid::Cid;

#[tokio::test]
async fn a_stored_block_is_found_by_the_multihash_of_any_cid() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(Config::new(folder.path())).await.unwrap();
    let (cid, data) = Block::raw("stored").into_parts();
    store.put(cid, data.clone()).await.unwrap();
    let source: &dyn BlockSource = &store;
    let v0 = Cid::new_v0(*cid.hash()).unwrap();
    for asked in [cid, v0] {
        assert_eq!(source.size(&asked), Some(6));
        assert_eq!(source.get(&asked).await.unwrap(), Some(data.clone()));
    }
    let absent = *Block::raw("absent").cid();
    assert_eq!(source.size(&absent), None);
    assert_eq!(source.get(&absent).await.unwrap(), None);
}
