//! The objects of one store: put, read, list, delete, each with a time limit and retries, under any executor.

use std::{
    error::Error,
    fmt,
    hash::{BuildHasher, RandomState},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{
    StreamExt, TryStreamExt,
    future::{BoxFuture, Either, FutureExt, select},
};
use futures_timer::Delay;
use object_store::{
    GetOptions, GetRange, ObjectStore, PutMode, PutOptions, PutPayload, path::Path,
};
use parking_lot::Mutex;
use web_time::Instant;

use super::health::{Backoff, Health};
use crate::{ColdFailure, state::Counter};

/// Between the attempts of one request.
const ATTEMPTS: Backoff = Backoff {
    first: Duration::from_millis(200),
    most: Duration::from_secs(10),
};

/// Between the tries of the moves while the bucket does not answer.
const TRIES: Backoff = Backoff {
    first: Duration::from_secs(1),
    most: Duration::from_secs(60),
};

/// On top of the time limit of a request: the slowest transfer that is waited for, in bytes a second.
const SLOWEST: u64 = 1024 * 1024;

/// The object that says that a prefix belongs to a store. Tells a missing pack from a wrong bucket.
const MARKER: &str = "STORE";

/// Whose threads a request runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drive {
    /// Those of the `blocking` crate: object_store reads local files on the calling thread where tokio does not run.
    Threads,
    /// The caller's, with tokio's reactor around: what object_store's HTTP client needs.
    #[cfg(feature = "s3")]
    Reactor,
}

/// Why a request failed, after its retries.
#[derive(Debug, Clone)]
pub(crate) enum BucketError {
    /// No answer, or a server that cannot answer now.
    Unreachable(Cause),
    /// The server refuses these credentials or this request.
    Refused(Cause),
    /// There is no such object.
    Missing(Cause),
    /// There is such an object already.
    Exists,
    /// The object is not what was put.
    Damaged(Cause),
}

/// What happened, for the log and the user.
pub(crate) type Cause = Arc<dyn Error + Send + Sync>;

pub(crate) fn cause(error: impl Error + Send + Sync + 'static) -> Cause {
    Arc::new(error)
}

impl fmt::Display for BucketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BucketError::Unreachable(cause)
            | BucketError::Refused(cause)
            | BucketError::Missing(cause)
            | BucketError::Damaged(cause) => write!(f, "{}: {cause}", self.advice()),
            BucketError::Exists => f.write_str(self.advice()),
        }
    }
}

impl BucketError {
    /// What the user can look at.
    pub(crate) fn advice(&self) -> &'static str {
        match self {
            BucketError::Unreachable(_) => "check the endpoint and the network, or the disk",
            BucketError::Refused(_) => "check the credentials, the region and the bucket's policy",
            BucketError::Missing(_) => {
                "check the bucket, the prefix and its lifecycle rules, or the directory"
            }
            BucketError::Exists => "another store writes under this prefix",
            BucketError::Damaged(_) => "check the storage behind it",
        }
    }

    pub(crate) fn cause(&self) -> Option<Cause> {
        match self {
            BucketError::Unreachable(cause)
            | BucketError::Refused(cause)
            | BucketError::Missing(cause)
            | BucketError::Damaged(cause) => Some(cause.clone()),
            BucketError::Exists => None,
        }
    }

    pub(crate) fn source_or_advice(&self) -> Cause {
        self.cause().unwrap_or_else(|| cause(Wrong(self.advice())))
    }

    fn of(error: object_store::Error) -> BucketError {
        use object_store::Error as E;
        match &error {
            E::NotFound { .. } => BucketError::Missing(Arc::new(error)),
            E::AlreadyExists { .. } | E::Precondition { .. } => BucketError::Exists,
            E::PermissionDenied { .. }
            | E::Unauthenticated { .. }
            | E::NotSupported { .. }
            | E::NotImplemented { .. }
            | E::InvalidPath { .. }
            | E::UnknownConfigurationKey { .. } => BucketError::Refused(Arc::new(error)),
            E::Generic { source, .. } if is_refusal(source.as_ref()) => {
                BucketError::Refused(Arc::new(error))
            }
            _ => BucketError::Unreachable(Arc::new(error)),
        }
    }

    /// Whether the same request may succeed a moment later.
    fn is_transient(&self) -> bool {
        matches!(self, BucketError::Unreachable(_))
    }
}

/// object_store says what a refused list or bulk delete is in words only.
fn is_refusal(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if text.contains("403 Forbidden") || text.contains("401 Unauthorized") {
            return true;
        }
        next = error.source();
    }
    false
}

#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
struct TimedOut(Duration);

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Wrong(&'static str);

/// Requests and what came of them.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    pub(crate) puts: Counter,
    pub(crate) gets: Counter,
    pub(crate) lists: Counter,
    pub(crate) deletes: Counter,
    pub(crate) retries: Counter,
    pub(crate) errors: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
}

/// The packs of one store under `<prefix>/<store id>/`.
pub(crate) struct Bucket {
    store: Arc<dyn ObjectStore>,
    /// Where it is, for messages.
    at: String,
    root: Path,
    mode: PutMode,
    drive: Drive,
    timeout: Duration,
    attempts: u32,
    health: Mutex<Health>,
    random: RandomState,
    pub(crate) requests: Requests,
}

impl Bucket {
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        at: String,
        root: Path,
        conditional: bool,
        drive: Drive,
        (timeout, attempts): (Duration, u32),
    ) -> Bucket {
        let mode = if conditional {
            PutMode::Create
        } else {
            PutMode::Overwrite
        };
        Bucket {
            store,
            at,
            root,
            mode,
            drive,
            timeout,
            attempts,
            health: Mutex::default(),
            random: RandomState::new(),
            requests: Requests::default(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.health.lock().is_up()
    }

    /// What a request that failed tells the user.
    pub(crate) fn failure(&self, error: &BucketError) -> Arc<ColdFailure> {
        Arc::new(ColdFailure {
            at: self.at.clone(),
            check: error.advice(),
            cause: error.source_or_advice(),
        })
    }

    /// How long moves wait before they try the bucket again.
    pub(crate) fn wait(&self) -> Duration {
        self.health.lock().wait(now())
    }

    fn path(&self, pack: u32) -> Path {
        self.root.clone().join(format!("{pack:08x}.pack"))
    }

    /// Writes a pack that is not there yet, with one request.
    pub(crate) async fn put(&self, pack: u32, parts: Vec<Bytes>) -> Result<(), BucketError> {
        self.put_object(self.path(pack), parts).await
    }

    async fn put_object(&self, path: Path, parts: Vec<Bytes>) -> Result<(), BucketError> {
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        let payload = PutPayload::from_iter(parts);
        self.requests.bytes_out.add(bytes);
        let result = self
            .request(&self.requests.puts, bytes, |store| {
                let (path, payload) = (path.clone(), payload.clone());
                let options = PutOptions {
                    mode: self.mode.clone(),
                    ..PutOptions::default()
                };
                async move { store.put_opts(&path, payload, options).await }.boxed()
            })
            .await;
        result.map(drop)
    }

    /// Some bytes of a pack, with one request. Fewer if the pack ends before.
    pub(crate) async fn get(&self, pack: u32, range: Range<u64>) -> Result<Bytes, BucketError> {
        let bytes = range.end.saturating_sub(range.start);
        let path = self.path(pack);
        self.request(&self.requests.gets, bytes, |store| {
            let (path, range) = (path.clone(), range.clone());
            async move {
                let options = GetOptions {
                    range: Some(GetRange::Bounded(range)),
                    ..GetOptions::default()
                };
                collect(store.get_opts(&path, options).await?, bytes).await
            }
            .boxed()
        })
        .await
        .inspect(|data| self.requests.bytes_in.add(data.len() as u64))
    }

    /// The last bytes of a pack and its length.
    pub(crate) async fn get_end(&self, pack: u32, len: u64) -> Result<(Bytes, u64), BucketError> {
        let path = self.path(pack);
        self.request(&self.requests.gets, len, |store| {
            let path = path.clone();
            async move {
                let options = GetOptions {
                    range: Some(GetRange::Suffix(len)),
                    ..GetOptions::default()
                };
                let result = store.get_opts(&path, options).await?;
                let size = result.meta.size;
                Ok((collect(result, len).await?, size))
            }
            .boxed()
        })
        .await
        .inspect(|(data, _)| self.requests.bytes_in.add(data.len() as u64))
    }

    /// Reads a pack back and compares its length and CRC32C, with one request and without holding it.
    pub(crate) async fn verify(&self, pack: u32, len: u64, crc: u32) -> Result<(), BucketError> {
        let path = self.path(pack);
        let (found, actual) = self
            .request(&self.requests.gets, len, |store| {
                let path = path.clone();
                async move {
                    let mut data = store
                        .get_opts(&path, GetOptions::default())
                        .await?
                        .into_stream();
                    let (mut found, mut actual) = (0, 0);
                    while let Some(piece) = data.next().await {
                        let piece = piece?;
                        found += piece.len() as u64;
                        actual = crc32c::crc32c_append(actual, &piece);
                        if found > len {
                            break;
                        }
                    }
                    Ok((found, actual))
                }
                .boxed()
            })
            .await?;
        self.requests.bytes_in.add(found);
        if (found, actual) == (len, crc) {
            Ok(())
        } else {
            let what = "what was read back is not what was written";
            Err(BucketError::Damaged(Arc::new(Wrong(what))))
        }
    }

    /// The packs that are there, with their lengths. Other objects are passed over.
    pub(crate) async fn list(&self) -> Result<Vec<(u32, u64)>, BucketError> {
        let root = self.root.clone();
        self.request(&self.requests.lists, 0, |store| {
            let root = root.clone();
            async move {
                let mut packs = Vec::new();
                let mut objects = store.list(Some(&root));
                while let Some(object) = objects.try_next().await? {
                    let number = object
                        .location
                        .filename()
                        .and_then(|name| name.strip_suffix(".pack"))
                        .filter(|digits| digits.len() == 8)
                        .and_then(|digits| u32::from_str_radix(digits, 16).ok());
                    if let Some(number) = number {
                        packs.push((number, object.size));
                    }
                }
                Ok(packs)
            }
            .boxed()
        })
        .await
    }

    /// Removes a pack; no error if there is none.
    pub(crate) async fn delete(&self, pack: u32) -> Result<(), BucketError> {
        let path = self.path(pack);
        let result = self
            .request(&self.requests.deletes, 0, |store| {
                let paths = futures::stream::iter([Ok(path.clone())]).boxed();
                async move {
                    let mut deleted = store.delete_stream(paths);
                    while deleted.try_next().await?.is_some() {}
                    Ok(())
                }
                .boxed()
            })
            .await;
        match result {
            Err(BucketError::Missing(_)) => Ok(()),
            result => result,
        }
    }

    /// Says that this prefix belongs to this store, if nothing does yet.
    pub(crate) async fn mark(&self) -> Result<(), BucketError> {
        let words = "This prefix belongs to a store of anypath-tiered-store. Its directory's file COLD has the same id.\n";
        let path = self.root.clone().join(MARKER);
        match self
            .put_object(path, vec![Bytes::from_static(words.as_bytes())])
            .await
        {
            Err(BucketError::Exists) => Ok(()),
            result => result,
        }
    }

    /// Whether this prefix was marked: a pack that is missing although it was is gone.
    pub(crate) async fn is_marked(&self) -> Result<bool, BucketError> {
        let path = self.root.clone().join(MARKER);
        let result = self
            .request(&self.requests.gets, 0, |store| {
                let path = path.clone();
                let options = GetOptions {
                    head: true,
                    ..GetOptions::default()
                };
                async move { store.get_opts(&path, options).await.map(drop) }.boxed()
            })
            .await;
        match result {
            Ok(()) => Ok(true),
            Err(BucketError::Missing(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Runs a request, again where that may help.
    async fn request<T: Send + 'static>(
        &self,
        counter: &Counter,
        bytes: u64,
        start: impl Fn(Arc<dyn ObjectStore>) -> BoxFuture<'static, object_store::Result<T>>,
    ) -> Result<T, BucketError> {
        let limit = self.timeout + Duration::from_secs(bytes / SLOWEST);
        let attempts = self.health.lock().attempts(self.attempts);
        let mut failures = 0;
        loop {
            counter.add(1);
            let error = match self.attempt(start(self.store.clone()), limit).await {
                Ok(answer) => {
                    self.on_answer();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            self.requests.errors.add(1);
            if !error.is_transient() {
                // Refused counts as down too: nothing can be moved until somebody looks.
                if matches!(error, BucketError::Refused(_)) {
                    self.on_failure(&error);
                } else {
                    self.on_answer();
                }
                return Err(error);
            }
            failures += 1;
            if failures >= attempts {
                self.on_failure(&error);
                return Err(error);
            }
            self.requests.retries.add(1);
            Delay::new(ATTEMPTS.delay(failures, self.random())).await;
        }
    }

    async fn attempt<T: Send + 'static>(
        &self,
        request: BoxFuture<'static, object_store::Result<T>>,
        limit: Duration,
    ) -> Result<T, BucketError> {
        let request: BoxFuture<'static, _> = match self.drive {
            Drive::Threads => {
                blocking::unblock(move || crate::blocking_store::block_on(request)).boxed()
            }
            #[cfg(feature = "s3")]
            Drive::Reactor => async_compat::Compat::new(request).boxed(),
        };
        match select(request, Delay::new(limit)).await {
            Either::Left((answer, _)) => answer.map_err(BucketError::of),
            Either::Right(((), _)) => Err(BucketError::Unreachable(Arc::new(TimedOut(limit)))),
        }
    }

    fn on_answer(&self) {
        if self.health.lock().on_answer() {
            tracing::info!(at = self.at, "the cold tier answers again");
        }
    }

    fn on_failure(&self, error: &BucketError) {
        let random = self.random();
        if self.health.lock().on_failure(now(), TRIES, random) {
            tracing::warn!(at = self.at, %error, "the cold tier cannot be reached; moves wait, its blocks cannot be read");
        }
    }

    fn random(&self) -> u32 {
        self.random.hash_one(self.requests.errors.get()) as u32
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the adapter's clock; health takes `now`"
)]
fn now() -> Instant {
    Instant::now()
}

/// The bytes of an answer; an error if there are more than were asked for, whatever the server says.
async fn collect(answer: object_store::GetResult, most: u64) -> object_store::Result<Bytes> {
    let expected = answer
        .range
        .end
        .saturating_sub(answer.range.start)
        .min(most);
    let mut pieces = answer.into_stream();
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    let mut len = 0;
    while let Some(piece) = pieces.try_next().await? {
        len += piece.len() as u64;
        if len > most {
            return Err(generic("more bytes came than were asked for"));
        }
        if rest.is_empty() && first.is_empty() {
            first = piece;
        } else {
            if rest.is_empty() {
                rest.reserve(usize::try_from(expected).unwrap_or_default());
                rest.extend_from_slice(&first);
            }
            rest.extend_from_slice(&piece);
        }
    }
    if len < expected {
        return Err(generic("the answer ended early"));
    }
    Ok(if rest.is_empty() {
        first
    } else {
        rest.freeze()
    })
}

fn generic(what: &'static str) -> object_store::Error {
    object_store::Error::Generic {
        store: "cold tier",
        source: Box::new(Wrong(what)),
    }
}
