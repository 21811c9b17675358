//! The handle.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cid::Cid;
use futures::stream::BoxStream;

use crate::{
    Config, DeleteError, GcReport, GetError, MaintenanceError, OpenError, PinError, PutError,
    PutOptions, ScrubReport, Stats, ValueError,
};

/// An open store. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub struct Store {
    _inner: Arc<()>,
}
#[allow(
    missing_docs,
    clippy::unused_async,
    unused_variables,
    reason = "signatures first"
)]
impl Store {
    pub async fn open(config: Config) -> Result<Store, OpenError> {
        unimplemented!()
    }
    pub async fn put(&self, cid: Cid, data: Bytes) -> Result<(), PutError> {
        unimplemented!()
    }
    pub async fn put_with(
        &self,
        cid: Cid,
        data: Bytes,
        options: PutOptions,
    ) -> Result<(), PutError> {
        unimplemented!()
    }
    pub async fn put_many(
        &self,
        blocks: Vec<(Cid, Bytes)>,
        options: PutOptions,
    ) -> Result<(), PutError> {
        unimplemented!()
    }
    pub async fn get(&self, cid: &Cid) -> Result<Option<Bytes>, GetError> {
        unimplemented!()
    }
    pub async fn get_many(&self, cids: &[Cid]) -> Vec<Result<Option<Bytes>, GetError>> {
        unimplemented!()
    }
    pub fn has(&self, cid: &Cid) -> bool {
        unimplemented!()
    }
    pub fn size(&self, cid: &Cid) -> Option<u32> {
        unimplemented!()
    }
    pub async fn delete(&self, cid: &Cid) -> Result<bool, DeleteError> {
        unimplemented!()
    }
    pub async fn pin(&self, set: &str, cids: &[Cid]) -> Result<(), PinError> {
        unimplemented!()
    }
    pub async fn unpin(&self, set: &str, cids: &[Cid]) -> Result<(), PinError> {
        unimplemented!()
    }
    pub async fn rename_pin_set(&self, from: &str, to: &str) -> Result<(), PinError> {
        unimplemented!()
    }
    pub async fn drop_pin_set(&self, set: &str) -> Result<bool, PinError> {
        unimplemented!()
    }
    pub fn pin_sets(&self) -> Vec<String> {
        unimplemented!()
    }
    pub fn pins(&self, set: &str) -> Vec<Cid> {
        unimplemented!()
    }
    pub fn is_pinned(&self, cid: &Cid) -> bool {
        unimplemented!()
    }
    pub fn iter(&self) -> impl Iterator<Item = Cid> + Send + use<> {
        std::iter::empty()
    }
    pub fn scan(&self) -> BoxStream<'static, Result<(Cid, Bytes), GetError>> {
        unimplemented!()
    }
    pub async fn warm(&self, cids: &[Cid]) -> usize {
        unimplemented!()
    }
    pub async fn put_value(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<(), ValueError> {
        unimplemented!()
    }
    pub async fn get_value(&self, key: &str) -> Result<Option<Bytes>, ValueError> {
        unimplemented!()
    }
    pub async fn delete_value(&self, key: &str) -> Result<bool, ValueError> {
        unimplemented!()
    }
    pub async fn flush(&self) -> Result<(), MaintenanceError> {
        unimplemented!()
    }
    pub async fn gc(&self) -> Result<GcReport, MaintenanceError> {
        unimplemented!()
    }
    pub async fn scrub(&self) -> Result<ScrubReport, MaintenanceError> {
        unimplemented!()
    }
    pub async fn set_capacity(&self, memory: u64, disk: u64) -> Result<(), MaintenanceError> {
        unimplemented!()
    }
    pub fn room_for_pinned(&self) -> u64 {
        unimplemented!()
    }
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }
    pub async fn close(&self) -> Result<(), MaintenanceError> {
        unimplemented!()
    }
}
