#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ovs_vhost::fuzzing::run("device", data));
