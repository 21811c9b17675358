//! Datagrams that wait to be sent, in batches that the system takes at once (UDP segmentation offload).

use std::collections::VecDeque;

use super::Path;

/// What Linux takes in one call.
const MAX_SEGMENTS: usize = 64;
const MAX_BATCH_BYTES: usize = 60_000;

/// Datagrams to one address, all of `segment` bytes but the last, which may be shorter.
#[derive(Debug)]
pub(crate) struct Transmit {
    pub(crate) path: Path,
    pub(crate) bytes: Vec<u8>,
    pub(crate) segment: usize,
}

#[derive(Debug, Default)]
pub(super) struct Outbox {
    batches: VecDeque<Transmit>,
}

impl Outbox {
    pub(super) fn push(&mut self, path: Path, datagram: &[u8]) {
        if let Some(last) = self.batches.back_mut()
            && last.path == path
            && last.bytes.len() % last.segment == 0
            && datagram.len() <= last.segment
            && last.bytes.len() / last.segment < MAX_SEGMENTS
            && last.bytes.len() + datagram.len() <= MAX_BATCH_BYTES
        {
            last.bytes.extend_from_slice(datagram);
        } else if !datagram.is_empty() {
            self.batches.push_back(Transmit {
                path,
                bytes: datagram.to_vec(),
                segment: datagram.len(),
            });
        }
    }

    pub(super) fn pop(&mut self) -> Option<Transmit> {
        self.batches.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_of_one_size_go_together_and_a_shorter_one_ends_them() {
        let path = |port| Path {
            remote: ([192, 0, 2, 1], port).into(),
            local: None,
        };
        let mut outbox = Outbox::default();
        for size in [10, 10, 10, 4, 10, 11] {
            outbox.push(path(1), &vec![0; size]);
        }
        outbox.push(path(2), &[0; 11]);
        for _ in 0..100 {
            outbox.push(path(3), &[0; 1000]);
        }
        let mut batches = Vec::new();
        while let Some(batch) = outbox.pop() {
            batches.push((batch.path.remote.port(), batch.segment, batch.bytes.len()));
        }
        assert_eq!(
            batches,
            [
                (1, 10, 34),
                (1, 10, 10),
                (1, 11, 11),
                (2, 11, 11),
                (3, 1000, 60_000),
                (3, 1000, 40_000)
            ]
        );
    }
}
