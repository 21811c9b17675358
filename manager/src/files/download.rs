//! A `get` through a node, with what the user wants to see of it.

use std::{path::PathBuf, sync::Mutex};

use bytes::Bytes;
use cid::Cid;
use futures::{StreamExt as _, future::Either};
use libp2p::Multiaddr;
use serde::Serialize;

use super::{Fetch, GetError, GetOptions, Progress, get};
use crate::{FetchError, Node, Path, Session, SessionEvent, SessionOptions, node::now};

impl Fetch for Session {
    type Error = FetchError;

    async fn get(&self, cid: Cid) -> Result<Bytes, FetchError> {
        Self::get(self, cid).await
    }
}

/// What to get, and where to put it.
#[derive(Debug, Clone)]
pub struct Download {
    /// The file or directory.
    pub cid: Cid,
    /// Where it goes.
    pub output: PathBuf,
    /// Peers that probably have it; they are asked first.
    pub peers: Vec<Multiaddr>,
    /// Replace the output if it exists, a file by a file.
    pub force: bool,
}

/// How a [`download`] goes. Times are milliseconds since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum DownloadEvent {
    /// A relayed connection to a peer that may have the file is up.
    Relayed {
        /// When.
        t_ms: u64,
    },
    /// A direct connection to a peer that may have the file is up.
    Direct {
        /// When.
        t_ms: u64,
    },
    /// The first bytes of the file are in the output.
    FirstBytes {
        /// When.
        t_ms: u64,
        /// How they came; none if from this node's own store.
        path: Option<Path>,
    },
    /// The relay allows too little for the rest, which waits for a direct connection.
    WaitingForDirect {
        /// When.
        t_ms: u64,
        /// Bytes that the relay still lets through.
        allowed: u64,
    },
    /// More bytes are in the output.
    Progress {
        /// Bytes in the output.
        written: u64,
        /// Size of the file. Of a directory, as far as it is known; before, what its author says.
        total: u64,
        /// Bytes among those written that an earlier run had left.
        resumed: u64,
    },
    /// The file is complete.
    Done {
        /// Size of the file, or of all files of the directory.
        bytes: u64,
        /// Regular files: 1, or those of the directory.
        files: u64,
        /// Bytes of blocks that came through relays.
        relayed_bytes: u64,
        /// Bytes of blocks that came over direct connections.
        direct_bytes: u64,
        /// Bytes of blocks that were in this node's store.
        local_bytes: u64,
        /// Bytes of the file that an earlier run had left in the output.
        resumed_bytes: u64,
        /// How long it took.
        elapsed_ms: u64,
    },
}

/// Gets a file through `node`, as [`get`](super::get()) does, and tells `on_event` how it goes; the last event is
/// [`DownloadEvent::Done`]. `on_event` must return quickly. Dropping the future ends the transfer and leaves the part
/// file for the next one.
pub async fn download(
    node: &Node,
    request: Download,
    on_event: impl FnMut(DownloadEvent) + Send,
) -> Result<(), GetError<FetchError>> {
    let started = now();
    let session = node.session(SessionOptions::default().peers(request.peers));
    let mut paths = session.events();
    // Both the transfer and its paths report; never at the same time, for both run in this future.
    let report = Mutex::new(Report {
        started,
        has_first_bytes: false,
        on_event,
    });
    let on_progress =
        Box::new(|progress| report_to(&report, |report| report.progress(&session, progress)));
    let options = GetOptions {
        force: request.force,
        on_progress: Some(on_progress),
    };
    let mut transfer = std::pin::pin!(get(&session, request.cid, &request.output, options));
    let fetched = loop {
        match futures::future::select(transfer.as_mut(), paths.next()).await {
            Either::Left((fetched, _)) => break fetched?,
            Either::Right((Some(event), _)) => report_to(&report, |report| report.path(&event)),
            Either::Right((None, _)) => break transfer.await?,
        }
    };
    let progress = session.progress();
    report_to(&report, |report| {
        let elapsed_ms = report.elapsed_ms();
        (report.on_event)(DownloadEvent::Done {
            bytes: fetched.bytes,
            files: fetched.files,
            relayed_bytes: progress.relayed,
            direct_bytes: progress.direct,
            local_bytes: progress.local,
            resumed_bytes: fetched.resumed,
            elapsed_ms,
        });
    });
    Ok(())
}

struct Report<E> {
    started: web_time::Instant,
    has_first_bytes: bool,
    on_event: E,
}

fn report_to<E>(report: &Mutex<Report<E>>, tell: impl FnOnce(&mut Report<E>)) {
    tell(
        &mut report
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner),
    );
}

impl<E: FnMut(DownloadEvent)> Report<E> {
    fn elapsed_ms(&self) -> u64 {
        u64::try_from(now().saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    fn progress(&mut self, session: &Session, progress: Progress) {
        if progress.written > progress.resumed && !self.has_first_bytes {
            self.has_first_bytes = true;
            let t_ms = self.elapsed_ms();
            (self.on_event)(DownloadEvent::FirstBytes {
                t_ms,
                path: first_path(session, progress.written.saturating_sub(progress.resumed)),
            });
        }
        let Progress {
            written,
            total,
            resumed,
        } = progress;
        (self.on_event)(DownloadEvent::Progress {
            written,
            total,
            resumed,
        });
    }

    fn path(&mut self, event: &SessionEvent) {
        let t_ms = self.elapsed_ms();
        match event {
            SessionEvent::Relayed { .. } => (self.on_event)(DownloadEvent::Relayed { t_ms }),
            SessionEvent::Direct { .. } => (self.on_event)(DownloadEvent::Direct { t_ms }),
            SessionEvent::WaitingForDirect { allowed, .. } => {
                (self.on_event)(DownloadEvent::WaitingForDirect {
                    t_ms,
                    allowed: *allowed,
                });
            }
            _ => {}
        }
    }
}

/// How the first `bytes` of the file came: over the path that delivered as many, the earlier one if both did. (The
/// blocks above the first leaf are small, and may have come another way.)
fn first_path(session: &Session, bytes: u64) -> Option<Path> {
    let progress = session.progress();
    let first = |delivered: u64, first| if delivered >= bytes { first } else { None };
    let relayed = first(progress.relayed, progress.first_relayed);
    let direct = first(progress.direct, progress.first_direct);
    match (relayed, direct) {
        (Some(relayed), Some(direct)) if direct < relayed => Some(Path::Direct),
        (Some(_), _) => Some(Path::Relayed),
        (None, Some(_)) => Some(Path::Direct),
        (None, None) => None,
    }
}
