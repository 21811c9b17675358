//! Included by every target: writes what a crate gives as seeds where `run` lets libFuzzer look for them.

use std::path::PathBuf;

/// Called before the fuzzer reads its corpus.
pub fn write(seeds: Vec<(String, Vec<u8>)>) {
    let Some(directory) = std::env::var_os("ANYPATH_FUZZ_SEEDS").map(PathBuf::from) else {
        return;
    };
    for (name, bytes) in seeds {
        std::fs::write(directory.join(name), bytes).expect("the directory of seeds is writable");
    }
}
