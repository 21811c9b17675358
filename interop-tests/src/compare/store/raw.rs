//! What the disk can do: payloads appended to files, nothing else.

use super::data::{Digest, digest_of};
use super::group::{Commit, Group};
use super::peer::Blocks;
use crate::compare::Error;
use bytes::Bytes;
use cid::Cid;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// As our own segments'.
const SEGMENT: u64 = 64 << 20;

/// Where the index is written by [`Raw::close`], so that another process can read; not part of any figure.
const INDEX: &str = "index";

#[derive(Debug, Clone, Copy)]
struct Place {
    file: u32,
    len: u32,
    offset: u64,
}

struct Append {
    directory: PathBuf,
    files: RwLock<Vec<Arc<File>>>,
    places: RwLock<HashMap<Digest, Place>>,
    /// Length of the last file.
    end: Mutex<u64>,
}

pub(super) struct Raw {
    shared: Arc<Append>,
    group: Option<Group>,
}

/// One store for the caller and the committer.
struct Shared(Arc<Append>);

impl Commit for Shared {
    fn commit(&self, blocks: &[(Digest, Bytes)]) -> Result<(), Error> {
        self.0.append(blocks)?.sync_data()?;
        Ok(())
    }
}

impl Append {
    fn append(&self, blocks: &[(Digest, Bytes)]) -> Result<Arc<File>, Error> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        if *end >= SEGMENT || files.is_empty() {
            if let Some(last) = files.last() {
                last.sync_data()?;
            }
            let path = self.directory.join(format!("{:08}", files.len()));
            files.push(Arc::new(File::create_new(path)?));
            File::open(&self.directory)?.sync_all()?;
            *end = 0;
        }
        let number = u32::try_from(files.len() - 1)?;
        let file = files.last().cloned().ok_or("no file")?;
        drop(files);
        // One call for up to 1,024 payloads, the kernel's limit.
        for blocks in blocks.chunks(1024) {
            let mut parts: Vec<_> = blocks
                .iter()
                .map(|(_, data)| std::io::IoSlice::new(data))
                .collect();
            let mut parts = parts.as_mut_slice();
            while !parts.is_empty() {
                let written = (&*file).write_vectored(parts)?;
                std::io::IoSlice::advance_slices(&mut parts, written);
            }
        }
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        for (key, data) in blocks {
            let place = Place {
                file: number,
                len: u32::try_from(data.len())?,
                offset: *end,
            };
            places.insert(*key, place);
            *end += data.len() as u64;
        }
        Ok(file)
    }
}

impl Raw {
    pub(super) fn open(directory: &Path, alone: bool) -> Result<Self, Error> {
        let (mut files, mut places) = (Vec::new(), HashMap::new());
        if let Ok(mut index) = File::open(directory.join(INDEX)) {
            let mut bytes = Vec::new();
            index.read_to_end(&mut bytes)?;
            for item in bytes.as_chunks::<48>().0 {
                let (key, place) = item.split_at(32);
                let (file, rest) = place.split_at(4);
                let (len, offset) = rest.split_at(4);
                let place = Place {
                    file: u32::from_le_bytes(file.try_into()?),
                    len: u32::from_le_bytes(len.try_into()?),
                    offset: u64::from_le_bytes(offset.try_into()?),
                };
                places.insert(key.try_into()?, place);
            }
            while let Ok(file) = File::open(directory.join(format!("{:08}", files.len()))) {
                files.push(Arc::new(file));
            }
        }
        let shared = Arc::new(Append {
            directory: directory.to_owned(),
            files: RwLock::new(files),
            places: RwLock::new(places),
            // What was written is never appended to.
            end: Mutex::new(SEGMENT),
        });
        let group = (!alone).then(|| Group::new(Shared(shared.clone())));
        Ok(Self { shared, group })
    }
}

impl Blocks for Raw {
    fn put(&self, cid: &Cid, data: &Bytes) -> Result<(), Error> {
        match &self.group {
            Some(group) => group.put(digest_of(cid), data),
            None => Shared(self.shared.clone()).commit(&[(digest_of(cid), data.clone())]),
        }
    }

    fn fill(&self, blocks: &mut dyn Iterator<Item = (Cid, Bytes)>) -> Result<(), Error> {
        for (cid, data) in blocks {
            self.shared.append(&[(digest_of(&cid), data)])?;
        }
        Ok(())
    }

    fn get(&self, cid: &Cid) -> Result<Option<usize>, Error> {
        let places = self
            .shared
            .places
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(place) = places.get(&digest_of(cid)).copied() else {
            return Ok(None);
        };
        drop(places);
        let files = self
            .shared
            .files
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let file = files.get(place.file as usize).cloned().ok_or("no file")?;
        drop(files);
        let mut bytes = vec![0; place.len as usize];
        file.read_exact_at(&mut bytes, place.offset)?;
        Ok(Some(std::hint::black_box(bytes).len()))
    }

    fn has(&self, cid: &Cid) -> Result<bool, Error> {
        let places = self
            .shared
            .places
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(places.contains_key(&digest_of(cid)))
    }

    fn delete(&self, _: &[Cid]) -> Result<(), Error> {
        Err("what only appends forgets nothing".into())
    }

    fn close(self: Box<Self>) -> Result<(), Error> {
        drop(self.group);
        let places = self
            .shared
            .places
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut bytes = Vec::with_capacity(places.len() * 48);
        #[expect(clippy::iter_over_hash_type, reason = "read back into a hash map")]
        for (key, place) in places.iter() {
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(&place.file.to_le_bytes());
            bytes.extend_from_slice(&place.len.to_le_bytes());
            bytes.extend_from_slice(&place.offset.to_le_bytes());
        }
        File::create(self.shared.directory.join(INDEX))?.write_all(&bytes)?;
        Ok(())
    }
}
