#![no_main]

mod seeds;

use anypath_relay::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: seeds::write(fuzzing::seeds("voucher")), |bytes: &[u8]| fuzzing::voucher(bytes));
