//! A peer of libp2p's universal-connectivity app: chat, files, direct messages, and being found by its browsers.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anypath::{
    BoxError, IncomingStreams, Node, Stream, Subscription,
    libp2p::{PeerId, StreamProtocol},
};
use blocking::Unblock;
use cid::{Cid, multihash::Multihash};
use futures::{
    AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _, StreamExt as _, future::BoxFuture,
    io::copy, stream::FuturesUnordered,
};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::wire;

/// The app's names.
const NAME: &str = "universal-connectivity";
const CHAT: &str = "universal-connectivity";
const FILES: &str = "universal-connectivity-file";
const FILE_PROTOCOL: StreamProtocol = StreamProtocol::new("/universal-connectivity-file/1");
const DIRECT_PROTOCOL: StreamProtocol = StreamProtocol::new("/universal-connectivity/dm/1.0.0");

/// The longest id of a file; others use 36 characters.
const MAX_ID: u64 = 1024;
/// The largest file that is fetched. rust-peer takes 500 MB, and into memory; this one writes what comes to disk.
pub(crate) const MAX_FILE: u64 = 100 * 1024 * 1024;
/// The longest direct message.
const MAX_DIRECT: u64 = 64 * 1024;
/// Files that are fetched or served, and messages that are answered, at a time.
const MAX_WORK: usize = 32;
/// Files that are fetched in one run: whoever is in the room can announce any number.
const MAX_FETCHED: usize = 1000;
/// How long one of them may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the answer to a direct message may take; js-peer waits 5 s.
const ANSWER: Duration = Duration::from_secs(10);

/// What a file is called here: raw bytes by their SHA2-256, so that whoever knows CIDs can check them.
const RAW: u64 = 0x55;
const SHA2_256: u64 = 0x12;

/// What happened in the room. Text is from strangers: whoever prints it takes control characters out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Somebody said something to all.
    Chat { from: PeerId, text: String },
    /// Somebody sent a message to this peer alone.
    Direct { from: PeerId, text: String },
    /// A file that somebody offered is here.
    File {
        from: PeerId,
        id: String,
        path: PathBuf,
        bytes: u64,
    },
    /// It could not be had.
    NoFile {
        from: PeerId,
        id: String,
        reason: String,
    },
}

/// What a user does in the room. Clones are handles of the same peer.
#[derive(Clone)]
pub(crate) struct Room {
    node: Node,
    offered: Arc<Mutex<BTreeMap<String, PathBuf>>>,
}

impl Room {
    /// Says something to all.
    pub(crate) async fn say(&self, text: &str) -> Result<(), BoxError> {
        Ok(self.node.publish(CHAT, text.to_owned()).await?)
    }

    /// Offers a file to all, who ask for it then; returns its id.
    pub(crate) async fn offer(&self, path: PathBuf) -> Result<String, BoxError> {
        let (id, path) = blocking::unblock(move || -> io::Result<_> {
            let mut hash = Sha256::new();
            io::copy(&mut File::open(&path)?, &mut hash)?;
            Ok((cid_of(hash)?.to_string(), path))
        })
        .await?;
        lock(&self.offered).insert(id.clone(), path);
        self.node.publish(FILES, id.clone()).await?;
        Ok(id)
    }

    /// Sends a message to one peer alone, and returns when that one has it.
    pub(crate) async fn send(&self, to: PeerId, text: &str) -> Result<(), BoxError> {
        let request = wire::request(text, now_ms());
        let mut stream = self.node.open_stream(to, DIRECT_PROTOCOL).await?;
        let exchange = async {
            wire::write_frame(&mut stream, &request).await?;
            wire::read_frame(&mut stream, MAX_DIRECT).await
        };
        let answer = timeout(ANSWER, exchange).await??;
        match wire::is_taken(&answer)? {
            true => Ok(()),
            false => Err("the other end refused the message".into()),
        }
    }
}

/// Serves the room and watches it.
pub(crate) struct App {
    room: Room,
    chat: Subscription,
    files: Subscription,
    requests: IncomingStreams,
    direct: IncomingStreams,
    downloads: PathBuf,
    fetched: usize,
}

impl App {
    /// Enters the room; files that others offer go to `downloads`, a directory.
    pub(crate) async fn join(node: Node, downloads: PathBuf) -> Result<Self, BoxError> {
        node.discover(NAME).await?;
        Ok(Self {
            chat: node.subscribe(CHAT).await?,
            files: node.subscribe(FILES).await?,
            requests: node.register_protocol(FILE_PROTOCOL).await?,
            direct: node.register_protocol(DIRECT_PROTOCOL).await?,
            room: Room {
                node,
                offered: Arc::default(),
            },
            downloads,
            fetched: 0,
        })
    }

    pub(crate) fn room(&self) -> Room {
        self.room.clone()
    }

    /// Runs until the node stops. Nothing that others send ends it.
    pub(crate) async fn run(mut self, mut on_event: impl FnMut(Event)) {
        let mut work: FuturesUnordered<BoxFuture<'static, Option<Event>>> = FuturesUnordered::new();
        loop {
            let has_room = work.len() < MAX_WORK;
            tokio::select! {
                message = self.chat.next() => {
                    let Some(message) = message else { return };
                    if let Ok(text) = String::from_utf8(message.data.to_vec()) {
                        on_event(Event::Chat { from: message.from, text });
                    }
                }
                Some(event) = work.next() => {
                    if let Some(event) = event {
                        on_event(event);
                    }
                }
                message = self.files.next(), if has_room => {
                    let Some(message) = message else { return };
                    if let Ok(id) = String::from_utf8(message.data.to_vec())
                        && id.len() as u64 <= MAX_ID
                        && self.fetched < MAX_FETCHED
                    {
                        self.fetched += 1;
                        work.push(self.fetch(message.from, id));
                    }
                }
                request = self.requests.next(), if has_room => {
                    let Some((_, stream)) = request else { return };
                    let offered = self.room.offered.clone();
                    // Whoever asks for what is not here, or hangs up, is nobody's business.
                    let served = timeout(PATIENCE, serve(stream, offered)).map(|_| None);
                    work.push(served.boxed());
                }
                message = self.direct.next(), if has_room => {
                    let Some((from, stream)) = message else { return };
                    let taken = timeout(ANSWER, take(stream));
                    let event = move |taken| match taken {
                        Ok(Ok(text)) => Some(Event::Direct { from, text }),
                        _ => None,
                    };
                    work.push(taken.map(event).boxed());
                }
            }
        }
    }

    fn fetch(&self, from: PeerId, id: String) -> BoxFuture<'static, Option<Event>> {
        let node = self.room.node.clone();
        let path = self.downloads.join(name_of(from, &id));
        let fetched = async move {
            let fetched = match timeout(PATIENCE, fetch(&node, from, &id, &path)).await {
                Ok(fetched) => fetched,
                Err(_) => Err("it took too long".into()),
            };
            Some(match fetched {
                Ok(bytes) => Event::File {
                    from,
                    id,
                    path,
                    bytes,
                },
                Err(reason) => Event::NoFile {
                    from,
                    id,
                    reason: reason.to_string(),
                },
            })
        };
        fetched.boxed()
    }
}

/// A name that nothing in the id can lead elsewhere, and no other peer's file has.
fn name_of(from: PeerId, id: &str) -> String {
    let hash = Sha256::digest([&from.to_bytes()[..], id.as_bytes()].concat());
    format!("{}.bin", hex::encode(hash))
}

/// Asks the peer that offered a file for it.
async fn fetch(node: &Node, from: PeerId, id: &str, path: &Path) -> Result<u64, BoxError> {
    let mut stream = node.open_stream(from, FILE_PROTOCOL).await?;
    wire::write_frame(&mut stream, id.as_bytes()).await?;
    let length = wire::read_length(&mut stream).await?;
    if length > MAX_FILE {
        return Err(format!("it has {length} bytes, more than {MAX_FILE}").into());
    }
    let part = path.with_extension("part");
    let file = blocking::unblock({
        let part = part.clone();
        move || File::create(part)
    });
    let mut file = Unblock::new(file.await?);
    let received = receive(stream.take(length), &mut file, length, id).await;
    let done = match received {
        Ok(()) => file.close().await.map_err(BoxError::from),
        Err(error) => Err(error),
    };
    let path = path.to_owned();
    blocking::unblock(move || match done {
        Ok(()) => Ok(std::fs::rename(part, path)?),
        Err(error) => {
            // What is left of it is of no use.
            let _ = std::fs::remove_file(part);
            Err(error)
        }
    })
    .await?;
    Ok(length)
}

/// Writes what comes, as it comes, and checks it where the id tells what it has to be.
async fn receive(
    mut stream: impl futures::AsyncRead + Unpin,
    file: &mut Unblock<File>,
    length: u64,
    id: &str,
) -> Result<(), BoxError> {
    let (mut hash, mut received) = (Sha256::new(), 0_u64);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = stream.read(&mut buffer).await?;
        let Some(data) = buffer.get(..read).filter(|data| !data.is_empty()) else {
            break;
        };
        hash.update(data);
        file.write_all(data).await?;
        received += read as u64;
    }
    if received != length {
        return Err(format!("it ended after {received} of {length} bytes").into());
    }
    match id.parse::<Cid>() {
        Ok(cid) if cid.codec() == RAW && cid.hash().code() == SHA2_256 && cid != cid_of(hash)? => {
            Err("its content is not the one that its id names".into())
        }
        _ => Ok(()),
    }
}

/// Sends a file that is offered here; the path comes from the list of those, never from the id.
async fn serve(
    mut stream: Stream,
    offered: Arc<Mutex<BTreeMap<String, PathBuf>>>,
) -> io::Result<()> {
    let id = wire::read_frame(&mut stream, MAX_ID).await?;
    let path = std::str::from_utf8(&id)
        .ok()
        .and_then(|id| lock(&offered).get(id).cloned())
        .ok_or(io::ErrorKind::NotFound)?;
    let file = blocking::unblock(move || {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        io::Result::Ok((file, length))
    });
    let (file, length) = file.await?;
    wire::write_length(&mut stream, length).await?;
    copy(Unblock::new(file).take(length), &mut stream).await?;
    stream.close().await
}

/// Takes a direct message and says so.
async fn take(mut stream: Stream) -> Result<String, BoxError> {
    let message = wire::read_frame(&mut stream, MAX_DIRECT).await?;
    let text = wire::read_request(&message)?;
    wire::write_frame(&mut stream, &wire::response(now_ms())).await?;
    // It is here, whether or not the other end still waits for the end of the stream.
    let _ = stream.close().await;
    Ok(text)
}

fn cid_of(hash: Sha256) -> io::Result<Cid> {
    let hash = Multihash::wrap(SHA2_256, &hash.finalize()).map_err(io::Error::other)?;
    Ok(Cid::new_v1(RAW, hash))
}

#[expect(clippy::disallowed_methods, reason = "messages carry wall-clock time")]
fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
