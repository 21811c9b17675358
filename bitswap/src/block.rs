//! [`Block`]: data whose hash was checked against its CID.

use bytes::Bytes;
use cid::Cid;

use crate::hash;

/// A content identifier and the data it names. A `Block` exists only if the hash matches.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    cid: Cid,
    data: Bytes,
}

/// Why data is no [`Block`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The multihash code or its digest length is not on the allow-list (see the crate docs).
    #[error("hash function 0x{code:x} with a digest of {digest_bytes} bytes is not supported")]
    UnsupportedHash {
        /// The multihash code.
        code: u64,
        /// Digest length in bytes.
        digest_bytes: u8,
    },
    /// The data has another hash.
    #[error("the data does not hash to {0}")]
    Mismatch(Cid),
}

impl Block {
    /// Hashes `data` and compares it with `cid`.
    pub fn new(cid: Cid, data: Bytes) -> Result<Self, BlockError> {
        let hash = cid.hash();
        if hash.code() == hash::IDENTITY {
            return if hash.digest() == data.as_ref() {
                Ok(Self { cid, data })
            } else {
                Err(BlockError::Mismatch(cid))
            };
        }
        match hash::digest(hash.code(), usize::from(hash.size()), &data) {
            Some(actual) if actual == *hash => Ok(Self { cid, data }),
            Some(_) => Err(BlockError::Mismatch(cid)),
            None => Err(BlockError::UnsupportedHash {
                code: hash.code(),
                digest_bytes: hash.size(),
            }),
        }
    }

    /// A CIDv1 block with codec raw and SHA2-256.
    pub fn raw(data: impl Into<Bytes>) -> Self {
        let data = data.into();
        let cid = Cid::new_v1(hash::RAW, hash::sha2_256(&data));
        Self { cid, data }
    }

    /// For callers that have just computed `cid` from `data`.
    pub(crate) fn trusted(cid: Cid, data: Bytes) -> Self {
        Self { cid, data }
    }

    /// The identifier.
    pub fn cid(&self) -> &Cid {
        &self.cid
    }

    /// The data; a clone of `Bytes` copies nothing.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Takes the block apart.
    pub fn into_parts(self) -> (Cid, Bytes) {
        (self.cid, self.data)
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({}, {} bytes)", self.cid, self.data.len())
    }
}
