#![no_main]

#[path = "../../../manager/src/noise/buffers.rs"]
mod buffers;
#[path = "../../../manager/src/noise/cipher.rs"]
mod cipher;
mod seeds;
#[path = "../../../manager/src/noise/stream.rs"]
mod stream;

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use buffers::Pools;
use cipher::Cipher;
use futures::{AsyncRead, AsyncWrite};
use libfuzzer_sys::fuzz_target;
use stream::Stream;

/// Two ends, the keys of each the other's.
fn pair(one: Socket, other: Socket) -> (Stream<Socket>, Stream<Socket>) {
    let pools = Pools::default();
    let cipher = |byte| Cipher::new(&[byte; 32]).expect("a key of 32 bytes");
    (
        Stream::new(one, cipher(1), cipher(2), &pools),
        Stream::new(other, cipher(2), cipher(1), &pools),
    )
}

/// What is on its way from the writer to the reader.
#[derive(Default)]
struct Way {
    bytes: VecDeque<u8>,
    /// So many more are taken from the writer, and given to the reader.
    room: usize,
    given: usize,
    is_closed: bool,
    /// The last read found nothing.
    waits: bool,
}

#[derive(Clone, Default)]
struct Socket(Rc<RefCell<Way>>);

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut way = self.0.borrow_mut();
        assert!(!to.is_empty(), "a read without room would look like the end");
        let size = to.len().min(way.given).min(way.bytes.len());
        if size == 0 {
            let is_over = way.is_closed && way.bytes.is_empty();
            way.waits = !is_over;
            return if is_over { Poll::Ready(Ok(0)) } else { Poll::Pending };
        }
        way.given -= size;
        for (to, from) in to.iter_mut().zip(way.bytes.drain(..size)) {
            *to = from;
        }
        Poll::Ready(Ok(size))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let mut way = self.0.borrow_mut();
        assert!(!from.is_empty(), "nothing was written");
        let size = from.len().min(way.room);
        if size == 0 {
            return Poll::Pending;
        }
        way.room -= size;
        way.bytes.extend(&from[..size]);
        Poll::Ready(Ok(size))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().is_closed = true;
        Poll::Ready(Ok(()))
    }
}

/// Three bytes a step: what, and how much.
fn steps(bytes: &[u8]) -> impl Iterator<Item = (u8, usize)> {
    bytes
        .chunks_exact(3)
        .map(|step| (step[0], usize::from(u16::from_be_bytes([step[1], step[2]]))))
}

/// Whether somebody was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Bytes that are where they belong: whoever gets others has been deceived.
fn content(from: usize, length: usize) -> impl Iterator<Item = u8> {
    (from..from + length).map(|at| (at % 251) as u8)
}

struct Peer<S> {
    reader: S,
    socket: Socket,
    came: usize,
}

/// How a turn of the reader ended.
#[derive(PartialEq)]
enum Turn {
    /// The socket has nothing more.
    Waits,
    /// It wants another one.
    Again,
    /// Nothing more comes, because of an error or without.
    Ends(Option<io::ErrorKind>),
}

impl<S: AsyncRead + Unpin> Peer<S> {
    /// Reads `size` bytes at once, until there is nothing or others should have their turn.
    fn turn(&mut self, sent: usize, size: usize) -> Turn {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        let mut to = vec![0; size.max(1)];
        loop {
            self.socket.0.borrow_mut().waits = false;
            match Pin::new(&mut self.reader).poll_read(&mut context, &mut to) {
                Poll::Ready(Ok(0)) => return Turn::Ends(None),
                Poll::Ready(Ok(size)) => {
                    assert!(content(self.came, size).eq(to[..size].iter().copied()), "other bytes came");
                    self.came += size;
                    assert!(self.came <= sent, "more came than was sent");
                }
                Poll::Ready(Err(error)) => return Turn::Ends(Some(error.kind())),
                Poll::Pending if woken.0.load(Ordering::Relaxed) => return Turn::Again,
                Poll::Pending => {
                    assert!(self.socket.0.borrow().waits, "nobody will wake the reader");
                    return Turn::Waits;
                }
            }
        }
    }
}

fn run(bytes: &[u8]) {
    let mut context = Context::from_waker(Waker::noop());
    let socket = Socket::default();
    let (mut writer, reader) = pair(socket.clone(), socket.clone());
    let mut peer = Peer {
        reader,
        socket: socket.clone(),
        came: 0,
    };
    let mut sent = 0;
    // Whether what is on the way is what was written.
    let mut is_changed = false;
    let mut ended = None;
    for (what, much) in steps(bytes) {
        let mut way = socket.0.borrow_mut();
        let length = way.bytes.len();
        match what % 8 {
            0 => {
                drop(way);
                let part: Vec<u8> = content(sent, much).collect();
                if let Poll::Ready(written) = Pin::new(&mut writer).poll_write(&mut context, &part) {
                    sent += written.expect("the socket does not fail");
                }
            }
            1 => {
                drop(way);
                let _ = Pin::new(&mut writer).poll_flush(&mut context);
            }
            2 => way.room += much,
            3 => way.given += much,
            4 => {
                drop(way);
                if let Turn::Ends(why) = peer.turn(sent, much) {
                    ended.get_or_insert(why);
                }
            }
            5 if length > 0 => {
                way.bytes[much % length] ^= 1 << (what / 8 % 8);
                is_changed = true;
            }
            // Lost at its end, or there twice.
            6 if much % (length + 1) < length => {
                way.bytes.truncate(much % (length + 1));
                is_changed = true;
            }
            7 if length > 0 => {
                let again: Vec<u8> = way.bytes.iter().copied().take(much % length + 1).collect();
                way.bytes.extend(again);
                is_changed = true;
            }
            _ => {}
        }
    }
    // Everything that is under way arrives.
    let mut way = socket.0.borrow_mut();
    (way.room, way.given) = (usize::MAX / 2, usize::MAX / 2);
    drop(way);
    assert!(Pin::new(&mut writer).poll_close(&mut context).is_ready());
    let mut turns = 0;
    let why = loop {
        match peer.turn(sent, 70_000) {
            Turn::Ends(why) => break why,
            Turn::Again => turns += 1,
            Turn::Waits => panic!("the end is not seen"),
        }
        assert!(turns < 10_000, "turns without an end");
    };
    assert!(ended.is_none_or(|ended| ended == why), "{ended:?}, then {why:?}");
    if !is_changed {
        assert_eq!((why, peer.came), (None, sent), "of {sent} bytes");
    }
}

fn examples() -> Vec<(String, Vec<u8>)> {
    let script = |steps: &[(u8, u16)]| {
        steps.iter().flat_map(|(what, much)| {
            let [high, low] = much.to_be_bytes();
            [*what, high, low]
        }).collect::<Vec<_>>()
    };
    vec![
        ("whole".to_owned(), script(&[(2, 60_000), (0, 40_000), (1, 0), (3, 60_000), (4, 100), (0, 65_535), (0, 65_535)])),
        ("pieces".to_owned(), script(&[(0, 5), (2, 10), (1, 0), (3, 3), (4, 1), (2, 100), (1, 0), (3, 100), (4, 9)])),
        ("lost".to_owned(), script(&[(0, 500), (2, 60_000), (1, 0), (6, 77), (3, 60_000), (4, 10)])),
        ("twice".to_owned(), script(&[(0, 500), (2, 60_000), (1, 0), (7, 60_000), (3, 60_000), (4, 10)])),
        ("changed".to_owned(), script(&[(0, 500), (2, 60_000), (1, 0), (5, 77), (3, 60_000), (4, 10)])),
    ]
}

fuzz_target!(init: seeds::write(examples()), |bytes: &[u8]| run(bytes));
