#![no_main]

mod seeds;

use anypath_tiered_store::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: seeds::write(fuzzing::seeds("pack")), |bytes: &[u8]| fuzzing::pack(bytes));
