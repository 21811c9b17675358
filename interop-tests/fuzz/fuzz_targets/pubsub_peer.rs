#![no_main]

mod seeds;

use anypath_discovery_pubsub::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: seeds::write(fuzzing::seeds("peer")), |bytes: &[u8]| fuzzing::peer(bytes));
