//! The target `frame` as a program of libFuzzer.
#![no_main]

use zkraft_fuzz::targets::Target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| Target::named("frame").check(data));
