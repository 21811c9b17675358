#![no_main]
#![expect(dead_code, unused_imports, reason = "a part of the manager")]

mod seeds;

/// What the manager has under the same names.
mod noise {
    #[path = "../../../../manager/src/noise/buffers.rs"]
    mod buffers;
    #[path = "../../../../manager/src/noise/cipher.rs"]
    mod cipher;
    #[path = "../../../../manager/src/noise/stream.rs"]
    mod stream;

    use buffers::Pools;
    use cipher::Cipher;
    use stream::Stream;

    /// Two ends with the same keys, the first one's are the other's.
    pub fn pair<S>(one: S, other: S) -> (Stream<S>, Stream<S>) {
        let pools = Pools::default();
        let cipher = |byte| Cipher::new(&[byte; 32]).expect("a key of 32 bytes");
        (
            Stream::new(one, cipher(1), cipher(2), &pools),
            Stream::new(other, cipher(2), cipher(1), &pools),
        )
    }
}

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use futures::{AsyncRead, AsyncWrite};
use libfuzzer_sys::fuzz_target;

/// What is on its way from the writer to the reader.
#[derive(Default)]
struct Way {
    bytes: VecDeque<u8>,
    /// So many more are taken from the writer, and given to the reader.
    room: usize,
    given: usize,
    is_closed: bool,
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

fn run(bytes: &[u8]) {
    let mut context = Context::from_waker(Waker::noop());
    let socket = Socket::default();
    let (mut writer, mut reader) = noise::pair(socket.clone(), socket.clone());
    let (mut sent, mut came) = (0_usize, 0_usize);
    // A changed byte's place among all that were written, and whether the end was cut off.
    let mut is_changed = false;
    let content = |from: usize, length: usize| (from..from + length).map(|at| (at % 251) as u8);
    let mut read = |reader: &mut _, context: &mut Context<'_>, sent: usize, size: usize, is_changed: bool| loop {
        let mut to = vec![0; size.max(1)];
        match Pin::new(&mut *reader).poll_read(context, &mut to) {
            Poll::Pending => return false,
            Poll::Ready(Ok(0)) => return true,
            Poll::Ready(Ok(size)) => {
                assert!(content(came, size).eq(to[..size].iter().copied()), "other bytes came");
                came += size;
                assert!(came <= sent, "more came than was sent");
            }
            Poll::Ready(Err(error)) => {
                assert!(is_changed, "{error} without a reason");
                return true;
            }
        }
    };
    for (what, much) in steps(bytes) {
        match what % 6 {
            0 => {
                let part: Vec<u8> = content(sent, much).collect();
                if let Poll::Ready(written) = Pin::new(&mut writer).poll_write(&mut context, &part) {
                    sent += written.expect("the socket does not fail");
                }
            }
            1 => {
                let _ = Pin::new(&mut writer).poll_flush(&mut context);
            }
            2 => socket.0.borrow_mut().room += much,
            3 => socket.0.borrow_mut().given += much,
            4 => {
                read(&mut reader, &mut context, sent, much, is_changed);
            }
            _ => {
                let mut way = socket.0.borrow_mut();
                let length = way.bytes.len();
                if length > 0 {
                    way.bytes[much % length] ^= 1 << (what / 6 % 8);
                    is_changed = true;
                }
            }
        }
    }
    // Everything that is under way arrives.
    let mut way = socket.0.borrow_mut();
    (way.room, way.given) = (usize::MAX / 2, usize::MAX / 2);
    drop(way);
    assert!(Pin::new(&mut writer).poll_close(&mut context).is_ready());
    let mut turns = 0;
    while !read(&mut reader, &mut context, sent, 70_000, is_changed) {
        turns += 1;
        assert!(turns < 100_000, "the reader turns without an end");
    }
    assert!(is_changed || came == sent, "{came} of {sent} bytes came");
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
        ("changed".to_owned(), script(&[(0, 500), (2, 60_000), (1, 0), (5, 77), (3, 60_000), (4, 10)])),
    ]
}

fuzz_target!(init: seeds::write(examples()), |bytes: &[u8]| run(bytes));
