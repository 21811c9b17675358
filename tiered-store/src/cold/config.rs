//! Where the cold tier is and how it packs.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use object_store::{ObjectStore, local::LocalFileSystem};
use serde::Deserialize;

use super::bucket::{Bucket, Cause, Drive, cause};
use crate::ConfigError;

const MIB: u64 = 1024 * 1024;

/// The smallest pack: one block of the usual 256 KiB must fit several times, and every pack is a request.
pub const MIN_PACK_BYTES: u64 = 1024 * 1024;

/// The largest pack. It is in memory while it is written.
pub const MAX_PACK_BYTES: u64 = 256 * 1024 * 1024;

/// Configuration of the cold tier: a directory or a bucket that takes the coldest blocks, compressed, when the disk tier is full.
///
/// ```
/// use anypath_tiered_store::{ColdConfig, Config, S3Config};
///
/// // In the directory `cold` of the store:
/// let beside = ColdConfig::default();
/// // On a slower disk, up to 1 TiB:
/// let slow = ColdConfig::directory("/mnt/slow/blocks").capacity(1 << 40);
/// // In a bucket, credentials from the environment (feature `s3`):
/// let bucket = ColdConfig::s3(S3Config::new("blocks").region("eu-central-1"));
/// let config = Config::builder().path("store").cold(slow).build()?;
/// # Ok::<(), anypath_tiered_store::ConfigError>(())
/// ```
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColdConfig {
    directory: Option<PathBuf>,
    s3: Option<S3Config>,
    #[serde(skip)]
    object_store: Option<Arc<dyn ObjectStore>>,
    pub(crate) capacity: Option<u64>,
    pub(crate) pack_bytes: u64,
    pub(crate) compression_level: i32,
    pub(crate) repack_live_percent: u8,
    #[serde(with = "humantime_serde")]
    pub(crate) request_timeout: Duration,
    pub(crate) attempts: u32,
    #[serde(with = "humantime_serde")]
    pub(crate) put_patience: Duration,
}

impl Default for ColdConfig {
    /// The directory `cold` in that of the store, without a limit.
    fn default() -> Self {
        ColdConfig {
            directory: None,
            s3: None,
            object_store: None,
            capacity: None,
            pack_bytes: 32 * MIB,
            compression_level: 3,
            repack_live_percent: 50,
            request_timeout: Duration::from_secs(30),
            attempts: 4,
            put_patience: Duration::from_secs(60),
        }
    }
}

impl fmt::Debug for ColdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ColdConfig")
            .field("directory", &self.directory)
            .field("s3", &self.s3)
            .field("object_store", &self.object_store)
            .field("capacity", &self.capacity)
            .field("pack_bytes", &self.pack_bytes)
            .finish_non_exhaustive()
    }
}

impl ColdConfig {
    /// In a directory, which is created if missing. Packs are synced before the blocks leave the disk tier.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        ColdConfig {
            directory: Some(path.into()),
            ..ColdConfig::default()
        }
    }

    /// In a bucket of S3 or of what speaks its protocol. Needs feature `s3`.
    pub fn s3(s3: S3Config) -> Self {
        ColdConfig {
            s3: Some(s3),
            ..ColdConfig::default()
        }
    }

    /// In any store of the [`object_store`] crate (version 0.14): Google's, Azure's, one of your own. It must support `PutMode::Create`, and
    /// a put that returned must be durable. Its own retries come on top of this crate's.
    pub fn object_store(store: Arc<dyn ObjectStore>) -> Self {
        ColdConfig {
            object_store: Some(store),
            ..ColdConfig::default()
        }
    }

    /// Bytes of packs that it may take, compressed. Default: no limit. Above it its coldest packs are
    /// forgotten. At least four packs. Exceeded by one while packs are written again.
    pub fn capacity(mut self, bytes: u64) -> Self {
        self.capacity = Some(bytes);
        self
    }

    /// Size of a pack, that is of one object and one put request. Default 32 MiB, range [`MIN_PACK_BYTES`] to [`MAX_PACK_BYTES`]. A pack is
    /// held in memory while it is written; it is cut short when puts wait for the room.
    pub fn pack_bytes(mut self, bytes: u64) -> Self {
        self.pack_bytes = bytes;
        self
    }

    /// Level of zstd, default 3, range 1 to 19. What does not shrink by a twentieth is kept as it is.
    pub fn compression_level(mut self, level: i32) -> Self {
        self.compression_level = level;
        self
    }

    /// A pack of which less is needed is written again with what is, in percent of its bytes. Default 50, range 5 to 90.
    pub fn repack_live_percent(mut self, percent: u8) -> Self {
        self.repack_live_percent = percent;
        self
    }

    /// How long one attempt of a request may take, and a second more for every MiB in it. Default 30 s, range 100 ms to 10 min.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Attempts of a request that gets no answer, 200 ms to 10 s apart. Default 4, range 1 to 20. While the cold tier is known
    /// not to answer a get makes one.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// How long puts into a full disk tier wait for a cold tier that does not answer before they fail with
    /// [`PutError::Full`](crate::PutError::Full). Default 60 s.
    pub fn put_patience(mut self, patience: Duration) -> Self {
        self.put_patience = patience;
        self
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, range| Err(ConfigError::Cold { key, range });
        let places = [
            self.directory.is_some(),
            self.s3.is_some(),
            self.object_store.is_some(),
        ];
        if places.iter().filter(|given| **given).count() > 1 {
            return wrong("directory and s3", "one of them");
        }
        if self.s3.is_some() && !cfg!(feature = "s3") {
            return wrong(
                "s3",
                "left out: this program was built without feature `s3`",
            );
        }
        if self.s3.as_ref().is_some_and(|s3| s3.bucket.is_empty()) {
            return wrong("s3.bucket", "a name");
        }
        if !(MIN_PACK_BYTES..=MAX_PACK_BYTES).contains(&self.pack_bytes) {
            return wrong("pack_bytes", "between 1 MiB and 256 MiB");
        }
        if self
            .capacity
            .is_some_and(|bytes| bytes < 4 * self.pack_bytes)
        {
            return wrong("capacity", "at least four times pack_bytes");
        }
        if !(1..=19).contains(&self.compression_level) {
            return wrong("compression_level", "between 1 and 19");
        }
        if !(5..=90).contains(&self.repack_live_percent) {
            return wrong("repack_live_percent", "between 5 and 90");
        }
        let timeouts = Duration::from_millis(100)..=Duration::from_secs(600);
        if !timeouts.contains(&self.request_timeout) {
            return wrong("request_timeout", "between 100ms and 10m");
        }
        if !(1..=20).contains(&self.attempts) {
            return wrong("attempts", "between 1 and 20");
        }
        Ok(())
    }

    /// The bucket of the store in `store_dir` whose id is `id`. Local only: a server is not asked.
    pub(crate) fn bucket(&self, store_dir: &Path, id: &str) -> Result<Bucket, (String, Cause)> {
        let limits = (self.request_timeout, self.attempts);
        if let Some(store) = &self.object_store {
            let at = store.to_string();
            return Ok(Bucket::new(
                store.clone(),
                at,
                id.into(),
                true,
                THREADS_OR_REACTOR,
                limits,
            ));
        }
        if let Some(s3) = &self.s3 {
            return s3
                .bucket(id, limits)
                .map_err(|cause| (s3.to_string(), cause));
        }
        let directory = match &self.directory {
            Some(directory) => directory.clone(),
            None => store_dir.join("cold"),
        };
        let at = directory.display().to_string();
        let open = || -> Result<LocalFileSystem, Cause> {
            std::fs::create_dir_all(&directory).map_err(cause)?;
            remove_unfinished(&directory.join(id));
            Ok(LocalFileSystem::new_with_prefix(&directory)
                .map_err(cause)?
                .with_fsync(true))
        };
        match open() {
            Ok(store) => {
                let store = Arc::new(store);
                Ok(Bucket::new(
                    store,
                    at,
                    id.into(),
                    true,
                    Drive::Threads,
                    limits,
                ))
            }
            Err(cause) => Err((at, cause)),
        }
    }
}

/// object_store writes to `<name>#<n>` and links that to `<name>`; a crash leaves the former, which it never lists.
fn remove_unfinished(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.contains(".pack#")) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(feature = "s3")]
const THREADS_OR_REACTOR: Drive = Drive::Reactor;
#[cfg(not(feature = "s3"))]
const THREADS_OR_REACTOR: Drive = Drive::Threads;

/// A bucket of S3, or of a server that speaks its protocol (MinIO, Ceph, R2, Garage, …).
///
/// What is not set here is read from the environment as AWS's tools do: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
/// `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`, web identity and container credentials, and last the instance's own role.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Config {
    bucket: String,
    endpoint: Option<String>,
    region: Option<String>,
    prefix: String,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    session_token: Option<String>,
    allow_http: bool,
    virtual_hosted_style: bool,
    unconditional_put: bool,
}

impl fmt::Debug for S3Config {
    /// Without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Config")
            .field("bucket", &self.bucket)
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for S3Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3 bucket {}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, ", prefix {}", self.prefix)?;
        }
        match &self.endpoint {
            Some(endpoint) => write!(f, " at {endpoint}"),
            None => Ok(()),
        }
    }
}

impl S3Config {
    /// The bucket's name. It must exist.
    pub fn new(bucket: impl Into<String>) -> Self {
        S3Config {
            bucket: bucket.into(),
            ..S3Config::default()
        }
    }

    /// URL of the server. Default: AWS's for the region.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = Some(url.into());
        self
    }

    /// The region. Default: from the environment, else `us-east-1`.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }

    /// Names of objects begin with it and with the store's id, so that stores may share a bucket. Default: none.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Access key and secret. Default: from the environment.
    pub fn credentials(mut self, key: impl Into<String>, secret: impl Into<String>) -> Self {
        self.access_key_id = Some(key.into());
        self.secret_access_key = Some(secret.into());
        self
    }

    /// Token of temporary credentials. Default: from the environment.
    pub fn session_token(mut self, token: impl Into<String>) -> Self {
        self.session_token = Some(token.into());
        self
    }

    /// Allows an endpoint without TLS: a server on this machine or in a network of your own. Default false.
    pub fn allow_http(mut self, allow: bool) -> Self {
        self.allow_http = allow;
        self
    }

    /// Puts the bucket into the host's name instead of the path. Default false.
    pub fn virtual_hosted_style(mut self, virtual_hosted: bool) -> Self {
        self.virtual_hosted_style = virtual_hosted;
        self
    }

    /// For servers that do not know `If-None-Match`: writes packs without asking that there be none of that name. Default false.
    pub fn unconditional_put(mut self, unconditional: bool) -> Self {
        self.unconditional_put = unconditional;
        self
    }

    #[cfg(feature = "s3")]
    fn bucket(&self, id: &str, limits: (Duration, u32)) -> Result<Bucket, Cause> {
        use object_store::{ClientOptions, RetryConfig, aws::AmazonS3Builder};
        // The time limit of a request is ours, which knows its size; a connection that stalls is found sooner.
        let client = ClientOptions::new()
            .with_timeout_disabled()
            .with_connect_timeout(limits.0.min(Duration::from_secs(5)))
            .with_read_timeout(limits.0)
            .with_allow_http(self.allow_http);
        // Retries are ours: they know what may wait and what a user waits for.
        let retry = RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        };
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(&self.bucket)
            .with_client_options(client)
            .with_retry(retry);
        if self.virtual_hosted_style {
            builder = builder.with_virtual_hosted_style_request(true);
        }
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(region) = &self.region {
            builder = builder.with_region(region);
        }
        if let Some(key) = &self.access_key_id {
            builder = builder.with_access_key_id(key);
        }
        if let Some(secret) = &self.secret_access_key {
            builder = builder.with_secret_access_key(secret);
        }
        if let Some(token) = &self.session_token {
            builder = builder.with_token(token);
        }
        let store = Arc::new(builder.build().map_err(cause)?);
        let root = object_store::path::Path::from(self.prefix.as_str()).join(id);
        let conditional = !self.unconditional_put;
        Ok(Bucket::new(
            store,
            self.to_string(),
            root,
            conditional,
            Drive::Reactor,
            limits,
        ))
    }

    #[cfg(not(feature = "s3"))]
    #[expect(clippy::unused_self, reason = "as with the feature")]
    fn bucket(&self, _id: &str, _limits: (Duration, u32)) -> Result<Bucket, Cause> {
        Err(Arc::new(std::io::Error::other(
            "built without feature `s3`",
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_and_display_keep_the_secret() {
        let s3 = S3Config::new("b")
            .credentials("AKIDEXAMPLE", "wJalrXUtnFEMI")
            .session_token("token-of-mine");
        let config = ColdConfig::s3(s3.clone());
        for text in [format!("{s3:?}"), format!("{s3}"), format!("{config:?}")] {
            assert!(
                !text.contains("wJalr") && !text.contains("token-of"),
                "{text}"
            );
        }
    }

    #[test]
    fn ranges_are_checked_with_words() {
        let wrong = [
            ColdConfig::default().pack_bytes(1),
            ColdConfig::default().pack_bytes(1 << 40),
            ColdConfig::default().capacity(1),
            ColdConfig::default().compression_level(30),
            ColdConfig::default().repack_live_percent(100),
            ColdConfig::default().request_timeout(Duration::ZERO),
            ColdConfig::default().attempts(0),
            ColdConfig {
                directory: Some("a".into()),
                s3: Some(S3Config::new("b")),
                ..ColdConfig::default()
            },
        ];
        for config in wrong {
            let error = config.check().unwrap_err().to_string();
            assert!(error.starts_with("cold."), "{error}");
        }
        assert_eq!(ColdConfig::default().check(), Ok(()));
    }
}
