//! [`BlockSource`] for [`anypath_tiered_store::Store`].

use anypath_tiered_store::Store;
use bytes::Bytes;
use cid::Cid;
use futures::future::{BoxFuture, FutureExt};

use crate::{BlockSource, BoxError};

impl BlockSource for Store {
    fn get(&self, cid: &Cid) -> BoxFuture<'static, Result<Option<Bytes>, BoxError>> {
        let (store, cid) = (self.clone(), *cid);
        // Without the store's source: what peers ask for must not make this node fetch.
        async move { store.get_local(&cid).await.map_err(BoxError::from) }.boxed()
    }

    fn size(&self, cid: &Cid) -> Option<u32> {
        Store::size(self, cid)
    }
}
