//! One block in a pack: compressed on its own, so that it can be read on its own. All numbers are little-endian.
//!
//! ```text
//!  0  crc          4   CRC32C of bytes 4..32, key and stored bytes
//!  4  coding       1   0 as it is, 1 zstd
//!  5  class        1   as in a record of the log
//!  6  key length   1
//!  7  zero         1
//!  8  length       4   of the block
//! 12  stored       4   bytes in this frame, never more than the block has
//! 16  expiry       8   milliseconds since 1970, 0 for never
//! 24  block crc    4   CRC32C of the block
//! 28  pack         4   number of the pack that it belongs to
//! 32  key (the CID), stored bytes
//! ```

use std::io;

use bytes::Bytes;

use crate::disk::record::Fields;

/// Bytes before the key.
pub(crate) const HEADER: usize = 32;

const AS_IT_IS: u8 = 0;
const ZSTD: u8 = 1;

/// Compression must save a twentieth, or the block is kept as it is and costs no time when it is read.
const LEAST_SAVING: usize = 20;

/// Blocks above this size are tried on a sample first: most of what is large is compressed already.
const SAMPLED_BYTES: usize = 128 * 1024;

/// Pieces of the sample, from the beginning, the middle and the end.
const SAMPLE_BYTES: usize = 8 * 1024;

/// A frame's fixed part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    coding: u8,
    pub(crate) class: u8,
    key_len: u8,
    /// Bytes of the block.
    pub(crate) len: u32,
    /// Bytes in the frame.
    pub(crate) stored: u32,
    /// Milliseconds since 1970; 0 for never.
    pub(crate) expiry_ms: u64,
    block_crc: u32,
    pack: u32,
}

/// A frame whose checksum is right, its block still coded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) header: Header,
    /// The CID's bytes.
    pub(crate) key: &'a [u8],
    stored: &'a [u8],
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("it ends too early")]
    Short,
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it says that the block has {len} bytes, the store takes up to {most}")]
    TooLarge { len: u32, most: u32 },
    #[error("it belongs to another pack or block")]
    Misplaced,
    #[error("it does not decompress to what it says")]
    Coding,
}

impl<'a> Frame<'a> {
    /// Checks the frame at the beginning of `bytes`; what follows it is passed over.
    pub(crate) fn parse(bytes: &'a [u8], pack: u32) -> Result<Frame<'a>, FrameError> {
        let (header, crc) = Header::parse(bytes).ok_or(FrameError::Short)?;
        let key_end = HEADER + usize::from(header.key_len);
        let stored = usize::try_from(header.stored).map_err(|_| FrameError::Short)?;
        let end = key_end.checked_add(stored).ok_or(FrameError::Short)?;
        let covered = bytes.get(4..end).ok_or(FrameError::Short)?;
        if crc32c::crc32c(covered) != crc {
            return Err(FrameError::Checksum);
        }
        if header.pack != pack {
            return Err(FrameError::Misplaced);
        }
        Ok(Frame {
            header,
            key: bytes.get(HEADER..key_end).ok_or(FrameError::Short)?,
            stored: bytes.get(key_end..end).ok_or(FrameError::Short)?,
        })
    }

    /// Checks a frame that this process made, whatever pack it names.
    pub(crate) fn parse_own(bytes: &'a [u8]) -> Result<Frame<'a>, FrameError> {
        let (header, _) = Header::parse(bytes).ok_or(FrameError::Short)?;
        Frame::parse(bytes, header.pack)
    }

    /// The block. Allocates its length, which `most` bounds, and writes no more whatever the frame holds.
    pub(crate) fn block(&self, most: u32) -> Result<Bytes, FrameError> {
        let Header {
            coding,
            len,
            stored,
            block_crc,
            ..
        } = self.header;
        if len > most {
            return Err(FrameError::TooLarge { len, most });
        }
        let size = usize::try_from(len).map_err(|_| FrameError::Coding)?;
        let block = match coding {
            AS_IT_IS if stored == len => self.stored.to_vec(),
            ZSTD if stored < len => {
                let mut block = Vec::with_capacity(size);
                // Fails where the room does not do: a frame cannot grow beyond what it declared.
                zstd::bulk::Decompressor::new()
                    .and_then(|mut coder| coder.decompress_to_buffer(self.stored, &mut block))
                    .map_err(|_| FrameError::Coding)?;
                block
            }
            _ => return Err(FrameError::Coding),
        };
        if block.len() != size || crc32c::crc32c(&block) != block_crc {
            return Err(FrameError::Coding);
        }
        Ok(block.into())
    }

    /// The same frame for another pack, without coding it anew.
    pub(crate) fn moved_to(&self, pack: u32) -> Vec<u8> {
        let header = Header {
            pack,
            ..self.header
        };
        header.encode(self.key, self.stored)
    }
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<(Header, u32)> {
        let mut fields = Fields(bytes);
        let crc = fields.u32()?;
        let (coding, class, key_len, _zero) =
            (fields.u8()?, fields.u8()?, fields.u8()?, fields.u8()?);
        let header = Header {
            coding,
            class,
            key_len,
            len: fields.u32()?,
            stored: fields.u32()?,
            expiry_ms: fields.u64()?,
            block_crc: fields.u32()?,
            pack: fields.u32()?,
        };
        Some((header, crc))
    }

    fn encode(&self, key: &[u8], stored: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + key.len() + stored.len());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&[self.coding, self.class, self.key_len, 0]);
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.stored.to_le_bytes());
        out.extend_from_slice(&self.expiry_ms.to_le_bytes());
        out.extend_from_slice(&self.block_crc.to_le_bytes());
        out.extend_from_slice(&self.pack.to_le_bytes());
        out.extend_from_slice(key);
        out.extend_from_slice(stored);
        let crc = crc32c::crc32c(out.get(4..).unwrap_or_default());
        if let Some(place) = out.get_mut(..4) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
        out
    }
}

/// Codes blocks. Keeps the compressor's tables from block to block.
pub(crate) struct Coder(zstd::bulk::Compressor<'static>);

impl Coder {
    /// `level` as zstd counts them.
    pub(crate) fn new(level: i32) -> io::Result<Coder> {
        zstd::bulk::Compressor::new(level).map(Coder)
    }

    /// The frame of a block.
    pub(crate) fn frame(
        &mut self,
        pack: u32,
        key: &[u8],
        class: u8,
        expiry_ms: u64,
        block: &[u8],
    ) -> io::Result<Vec<u8>> {
        let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "too long for a frame");
        let compressed = self.compress(block)?;
        let stored = compressed.as_deref().unwrap_or(block);
        let header = Header {
            coding: if compressed.is_some() { ZSTD } else { AS_IT_IS },
            class,
            key_len: u8::try_from(key.len()).map_err(too_long)?,
            len: u32::try_from(block.len()).map_err(too_long)?,
            stored: u32::try_from(stored.len()).map_err(too_long)?,
            expiry_ms,
            block_crc: crc32c::crc32c(block),
            pack,
        };
        Ok(header.encode(key, stored))
    }

    /// `None` if it does not pay.
    fn compress(&mut self, block: &[u8]) -> io::Result<Option<Vec<u8>>> {
        if block.len() > SAMPLED_BYTES {
            let middle = block.len() / 2;
            let pieces = [0, middle, block.len() - SAMPLE_BYTES];
            let sample: Vec<u8> = pieces
                .iter()
                .filter_map(|at| block.get(*at..at + SAMPLE_BYTES))
                .flatten()
                .copied()
                .collect();
            if !pays(sample.len(), self.0.compress(&sample)?.len()) {
                return Ok(None);
            }
        }
        let compressed = self.0.compress(block)?;
        Ok(pays(block.len(), compressed.len()).then_some(compressed))
    }
}

fn pays(len: usize, compressed: usize) -> bool {
    compressed + len.div_ceil(LEAST_SAVING) <= len
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u32 = 4 << 20;

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect()
    }

    fn frame(block: &[u8]) -> Vec<u8> {
        let mut coder = Coder::new(3).unwrap();
        coder.frame(7, b"the key", 0x12, 99, block).unwrap()
    }

    #[test]
    fn what_shrinks_is_compressed_and_what_does_not_is_kept_as_it_is() {
        for (block, coding) in [
            (vec![5; 100_000], ZSTD),
            (noise(100_000), AS_IT_IS),
            (noise(1 << 20), AS_IT_IS),
            (vec![5; 1 << 20], ZSTD),
            (vec![1], AS_IT_IS),
            (vec![], AS_IT_IS),
        ] {
            let bytes = frame(&block);
            let frame = Frame::parse(&bytes, 7).unwrap();
            assert_eq!(frame.header.coding, coding, "{} bytes", block.len());
            let after = [bytes.as_slice(), b"what follows"].concat();
            assert!(Frame::parse(&after, 7).is_ok());
            assert_eq!((frame.header.class, frame.header.expiry_ms), (0x12, 99));
            assert_eq!(frame.key, b"the key");
            assert_eq!(frame.block(MOST).unwrap(), block);
            let moved = frame.moved_to(8);
            assert_eq!(Frame::parse(&moved, 8).unwrap().block(MOST).unwrap(), block);
            assert_eq!(Frame::parse(&moved, 7).unwrap_err(), FrameError::Misplaced);
        }
    }

    #[test]
    fn every_flipped_bit_is_detected() {
        for block in [vec![3; 300], noise(70)] {
            let bytes = frame(&block);
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(Frame::parse(&flipped, 7).is_err(), "bit {bit}");
            }
            for len in 0..bytes.len() {
                assert!(Frame::parse(&bytes[..len], 7).is_err(), "cut at {len}");
            }
        }
    }

    /// A frame with a right checksum around bytes that it should not have.
    fn forged(coding: u8, len: u32, stored: &[u8]) -> Vec<u8> {
        let header = Header {
            coding,
            class: 0,
            key_len: 0,
            len,
            stored: stored.len() as u32,
            expiry_ms: 0,
            block_crc: 0,
            pack: 7,
        };
        header.encode(&[], stored)
    }

    #[test]
    fn a_decompression_bomb_ends_at_its_declared_length() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        let bytes = forged(ZSTD, 1 << 20, &bomb);
        let error = Frame::parse(&bytes, 7).unwrap().block(MOST).unwrap_err();
        assert_eq!(error, FrameError::Coding);
        let bytes = forged(ZSTD, 64 << 20, &bomb);
        let error = Frame::parse(&bytes, 7).unwrap().block(MOST).unwrap_err();
        assert_eq!(
            error,
            FrameError::TooLarge {
                len: 64 << 20,
                most: MOST
            }
        );
    }

    #[test]
    fn lengths_and_codings_that_do_not_fit_are_refused() {
        for bytes in [
            forged(AS_IT_IS, 5, b"four"),
            forged(AS_IT_IS, 3, b"four"),
            forged(ZSTD, 400, b"noise"),
            forged(2, 4, b"four"),
        ] {
            let error = Frame::parse(&bytes, 7).unwrap().block(MOST).unwrap_err();
            assert_eq!(error, FrameError::Coding);
        }
    }
}
