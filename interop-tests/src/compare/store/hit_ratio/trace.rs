//! Recorded accesses, in the formats in which their authors publish them.

use super::super::Error;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Where each file is had.
const SOURCES: &str = "arc-OLTP.lis.zst and arc-P3.lis.zst: OLTP.lis.zst and P3.lis.zst in the folder arc of github.com/moka-rs/cache-trace (cite N. Megiddo and \
D. S. Modha, \"ARC: A Self-Tuning, Low Overhead Replacement Cache\", FAST 03); cloudphysics-w106.trace.xz and adaptsize-request.trace.xz: w106.trace.xz and \
request.trace.xz in the simulator's resources of github.com/ben-manes/caffeine";

/// A folder without a trace, or a file that is not what its name says.
#[derive(Debug, thiserror::Error)]
pub(super) enum TraceError {
    /// There is no such file.
    #[error(
        "{path} is not there. Say where the traces lie with --traces; they come from: {SOURCES}"
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        #[source]
        source: std::io::Error,
    },
    /// Something in it is not an access.
    #[error("{path}: access {number} is not one; fetch the file again ({SOURCES})")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which line or record, from 1.
        number: usize,
    },
    /// It cannot be decompressed.
    #[error("{path} cannot be read; fetch the file again ({SOURCES})")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        #[source]
        source: std::io::Error,
    },
}

/// Accesses in their order.
pub(super) struct Trace {
    /// As figures name it.
    pub(super) name: &'static str,
    /// What was asked for, numbered by first appearance.
    pub(super) keys: Vec<u32>,
    /// Bytes by key; none where the trace does not know.
    pub(super) sizes: Option<Vec<u32>>,
}

impl Trace {
    /// Numbers the keys.
    pub(super) fn new<K: std::hash::Hash + Eq>(
        name: &'static str,
        accesses: impl IntoIterator<Item = K>,
    ) -> Self {
        let mut numbers = HashMap::new();
        let mut number = |key| {
            let next = numbers.len();
            u32::try_from(*numbers.entry(key).or_insert(next)).unwrap_or(u32::MAX)
        };
        let keys = accesses.into_iter().map(&mut number).collect();
        Self {
            name,
            keys,
            sizes: None,
        }
    }

    /// How many different keys there are.
    pub(super) fn unique(&self) -> usize {
        self.keys.iter().collect::<HashSet<_>>().len()
    }

    /// Bytes of all keys together, each once; None without sizes.
    pub(super) fn unique_bytes(&self) -> Option<u64> {
        let sizes = self.sizes.as_ref()?;
        Some(sizes.iter().map(|size| u64::from(*size)).sum())
    }

    /// Bytes of a key; 1 without sizes.
    pub(super) fn size(&self, key: u32) -> u32 {
        let sizes = self.sizes.as_ref();
        sizes
            .and_then(|sizes| sizes.get(key as usize))
            .copied()
            .unwrap_or(1)
    }
}

/// The four traces in `folder`.
pub(super) fn recorded(folder: &Path) -> Result<[Trace; 4], Error> {
    Ok([
        arc(folder, "arc-OLTP.lis.zst", "oltp")?,
        arc(folder, "arc-P3.lis.zst", "p3")?,
        cloudphysics(folder, "cloudphysics-w106.trace.xz", "w106")?,
        adaptsize(folder, "adaptsize-request.trace.xz", "adaptsize")?,
    ])
}

fn open(path: &Path) -> Result<File, TraceError> {
    File::open(path).map_err(|source| TraceError::Missing {
        path: path.to_owned(),
        source,
    })
}

fn damaged(path: &Path) -> impl FnOnce(std::io::Error) -> TraceError {
    |source| TraceError::Damaged {
        path: path.to_owned(),
        source,
    }
}

/// Numbers in the columns of each line.
fn table(path: &Path, text: impl Read) -> Result<Vec<Vec<u64>>, TraceError> {
    let mut rows = Vec::new();
    for (number, line) in BufReader::new(text).lines().enumerate() {
        let line = line.map_err(damaged(path))?;
        let row: Result<Vec<u64>, _> = line.split_ascii_whitespace().map(str::parse).collect();
        match row {
            Ok(row) if row.is_empty() => {}
            Ok(row) if row.len() >= 3 => rows.push(row),
            _ => {
                return Err(TraceError::Malformed {
                    path: path.to_owned(),
                    number: number + 1,
                });
            }
        }
    }
    Ok(rows)
}

/// First block and number of blocks in each line, and two columns that do not matter.
fn arc(folder: &Path, file: &str, name: &'static str) -> Result<Trace, TraceError> {
    let path = folder.join(file);
    let text = zstd::Decoder::new(open(&path)?).map_err(damaged(&path))?;
    let rows = table(&path, text)?;
    let runs = rows.iter().filter_map(|row| match row.as_slice() {
        [first, blocks, ..] => Some(*first..first.saturating_add(*blocks)),
        _ => None,
    });
    Ok(Trace::new(name, runs.flatten()))
}

/// Keys of four bytes, big-endian.
fn cloudphysics(folder: &Path, file: &str, name: &'static str) -> Result<Trace, TraceError> {
    let path = folder.join(file);
    let mut bytes = Vec::new();
    xz(&path)?.read_to_end(&mut bytes).map_err(damaged(&path))?;
    let (keys, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(TraceError::Malformed {
            path,
            number: keys.len() + 1,
        });
    }
    Ok(Trace::new(
        name,
        keys.iter().map(|key| u32::from_be_bytes(*key)),
    ))
}

/// Time, key and bytes in each line. The size of a key is the first that is said of it: what a CID names never changes.
fn adaptsize(folder: &Path, file: &str, name: &'static str) -> Result<Trace, TraceError> {
    let path = folder.join(file);
    let rows = table(&path, xz(&path)?)?;
    let column = |number: usize| {
        let rows = rows.iter();
        rows.filter_map(move |row| row.get(number).copied())
    };
    let mut trace = Trace::new(name, column(1));
    let mut sizes = vec![0; trace.unique()];
    for (key, size) in trace.keys.iter().zip(column(2)) {
        if let Some(known) = sizes.get_mut(*key as usize)
            && *known == 0
        {
            *known = u32::try_from(size.max(1)).unwrap_or(u32::MAX);
        }
    }
    trace.sizes = Some(sizes);
    Ok(trace)
}

fn xz(path: &Path) -> Result<lzma_rust2::XzReader<BufReader<File>>, TraceError> {
    // The largest dictionary of xz's presets is 64 MiB.
    const MOST_KIB: u32 = 128 * 1024;
    let file = BufReader::new(open(path)?);
    Ok(lzma_rust2::XzReader::new_mem_limit(file, true, MOST_KIB))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_traces_says_where_they_are_had() {
        let empty = tempfile::tempdir().unwrap();
        let error = recorded(empty.path()).err().unwrap().to_string();
        assert!(error.contains("arc-OLTP.lis.zst is not there"), "{error}");
        assert!(error.contains("--traces") && error.contains("github.com/moka-rs/cache-trace"));
    }

    #[test]
    fn a_run_of_blocks_is_an_access_to_each() {
        let folder = tempfile::tempdir().unwrap();
        let text = "7 3 0 0\n8 1 0 1\n\n100 2 0 2\n";
        let path = folder.path().join("x");
        std::fs::write(&path, zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
        let trace = arc(folder.path(), "x", "x").unwrap();
        assert_eq!(trace.keys, [0, 1, 2, 1, 3, 4]);
        assert_eq!((trace.unique(), trace.unique_bytes()), (5, None));
    }

    #[test]
    fn a_line_that_is_no_access_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(
            &path,
            zstd::encode_all("7 3 0 0\n8 one 0 1\n".as_bytes(), 1).unwrap(),
        )
        .unwrap();
        let error = arc(folder.path(), "x", "x").err().unwrap().to_string();
        assert!(error.contains("access 2"), "{error}");
        std::fs::write(&path, b"not zstd").unwrap();
        assert!(matches!(
            arc(folder.path(), "x", "x"),
            Err(TraceError::Damaged { .. })
        ));
        assert!(matches!(
            cloudphysics(folder.path(), "x", "x"),
            Err(TraceError::Damaged { .. })
        ));
    }
}
