//! The target `peer` as a program of libFuzzer.
#![no_main]

use zkraft_fuzz::targets::Target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| Target::named("peer").check(data));
