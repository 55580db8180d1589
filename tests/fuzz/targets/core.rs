//! The packet core on the host, over any packet and any small tables.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nat_tests::fixtures::fuzz::fuzz_core;

fuzz_target!(|data: &[u8]| fuzz_core(data));
