//! Blocks that are not here, fetched from elsewhere.

use std::{error::Error, sync::Arc, time::Duration};

use bytes::Bytes;
use cid::Cid;
use futures::future::{BoxFuture, Either, select};
use futures_timer::Delay;
use multihash_codetable::{Code, MultihashDigest};
use web_time::Instant;

use crate::{GetError, PutOptions, config::Config};

/// Why a [`Source`] has no answer. Any error will do.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Where blocks come from that are not in the store: peers, a gateway, an archive. Set with
/// [`ConfigBuilder::source`](crate::ConfigBuilder::source).
///
/// [`Store::get`](crate::Store::get) asks it for what no tier has, checks the answer against the CID (what it cannot check it refuses), stores it as
/// [`ConfigBuilder::source_options`](crate::ConfigBuilder::source_options) say and returns it. However many gets of one block wait, it is
/// asked once. [`has`](crate::Store::has), [`size`](crate::Store::size) and [`get_local`](crate::Store::get_local) never ask it.
///
/// ```
/// use anypath_tiered_store::{BoxError, Source};
/// use bytes::Bytes;
/// use cid::Cid;
/// use futures::{FutureExt, future::BoxFuture};
///
/// struct Gateway;
///
/// impl Source for Gateway {
///     fn fetch<'a>(&'a self, cid: &'a Cid) -> BoxFuture<'a, Result<Option<Bytes>, BoxError>> {
///         async move {
///             let _url = format!("https://gateway.example/ipfs/{cid}?format=raw");
///             Ok(None) // what the request returns
///         }
///         .boxed()
///     }
/// }
/// ```
pub trait Source: Send + Sync + 'static {
    /// The block, or `None` if it cannot be found there.
    ///
    /// Dropped when nobody waits for the block any more, or after
    /// [`ConfigBuilder::source_timeout`](crate::ConfigBuilder::source_timeout). Runs on the executor of whoever asks.
    fn fetch<'a>(&'a self, cid: &'a Cid) -> BoxFuture<'a, Result<Option<Bytes>, BoxError>>;
}

/// What asking the source needs.
pub(crate) struct Origin {
    source: Arc<dyn Source>,
    pub(crate) options: Arc<PutOptions>,
    timeout: Duration,
    max_block_bytes: u32,
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("no answer within {0:?}; raise source_timeout or check the source")]
    Timeout(Duration),
    #[error("it has {size} bytes, the store takes up to {most}")]
    TooLarge { size: usize, most: u32 },
    #[error(
        "its hash function {0:#x} is not built in, or its digest is empty: what came cannot be checked"
    )]
    Unchecked(u64),
}

impl Origin {
    pub(crate) fn new(config: &Config) -> Option<Origin> {
        Some(Origin {
            source: config.source.clone()?,
            options: Arc::new(config.source_options.clone()),
            timeout: config.source_timeout,
            max_block_bytes: config.max_block_bytes,
        })
    }

    /// Asks, and checks what comes. Tells how long that took.
    pub(crate) async fn fetch(&self, cid: &Cid) -> (Result<Option<Bytes>, GetError>, Duration) {
        #[expect(
            clippy::disallowed_methods,
            reason = "a figure, no decision depends on it"
        )]
        let began = Instant::now();
        let fetched = self.ask(cid).await;
        (fetched, began.elapsed())
    }

    async fn ask(&self, cid: &Cid) -> Result<Option<Bytes>, GetError> {
        let failed = |source: BoxError| GetError::Source {
            cid: *cid,
            source: source.into(),
        };
        let answer = match select(self.source.fetch(cid), Delay::new(self.timeout)).await {
            Either::Left((answer, _)) => answer.map_err(failed)?,
            Either::Right(_) => return Err(failed(Fault::Timeout(self.timeout).into())),
        };
        let Some(data) = answer else {
            return Ok(None);
        };
        let (size, most) = (data.len(), self.max_block_bytes);
        if size as u64 > u64::from(most) {
            return Err(failed(Fault::TooLarge { size, most }.into()));
        }
        // Hashing a block takes as long as reading it from a disk.
        let check = (*cid, data.clone());
        let is_right = blocking::unblock(move || matches_hash(&check.0, &check.1)).await;
        match is_right {
            Some(true) => Ok(Some(data)),
            Some(false) => Err(GetError::WrongBlock { cid: *cid }),
            None => Err(failed(Fault::Unchecked(cid.hash().code()).into())),
        }
    }
}

/// Multicodec `identity`: the digest is the block.
const IDENTITY: u64 = 0;

/// Whether a block has the hash of its CID; `None` if the hash function is not built in or the digest has no byte to compare. A multihash may
/// hold a shortened digest.
pub(crate) fn matches_hash(cid: &Cid, data: &[u8]) -> Option<bool> {
    let expected = cid.hash().digest();
    if cid.hash().code() == IDENTITY {
        return Some(expected == data);
    }
    let code = Code::try_from(cid.hash().code()).ok()?;
    if expected.is_empty() {
        return None;
    }
    Some(code.digest(data).digest().get(..expected.len()) == Some(expected))
}
