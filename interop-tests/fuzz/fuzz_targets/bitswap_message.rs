#![no_main]

mod seeds;

use anypath_bitswap::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: seeds::write(fuzzing::seeds("message")), |bytes: &[u8]| fuzzing::message(bytes));
