#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ovs_vhost::fuzzing::run("split_ring", data));
