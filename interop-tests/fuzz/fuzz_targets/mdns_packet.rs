#![no_main]

mod seeds;

use anypath_discovery_mdns::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: seeds::write(fuzzing::seeds()), |bytes: &[u8]| fuzzing::packet(bytes));
