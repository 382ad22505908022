//! The map in src/lib.rs, held to: who may use whom, and where `unsafe` may stand.

use std::fs;
use std::path::{Path, PathBuf};

/// Each layer and the layers it may name. `model` and `fuzzing` serve tests and stand beside them all.
const MAY_USE: &[(&str, &[&str])] = &[
    ("sync", &[]),
    ("panics", &[]),
    ("clock", &[]),
    ("effort", &[]),
    ("memory", &["sync"]),
    ("virtio", &["sync", "memory"]),
    ("datapath", &["sync", "clock", "memory", "virtio"]),
    ("vhost_user", &["sync", "memory", "virtio"]),
    ("qos", &[]),
    ("tap", &["datapath"]),
    (
        "port",
        &[
            "sync",
            "clock",
            "memory",
            "virtio",
            "datapath",
            "vhost_user",
            "qos",
            "tap",
            "panics",
        ],
    ),
    ("ovs", &["datapath", "port", "qos", "panics"]),
    ("model", &["sync", "memory", "virtio", "datapath", "vhost_user"]),
    (
        "fuzzing",
        &["memory", "virtio", "datapath", "vhost_user", "port", "model"],
    ),
];

/// The files that may contain `unsafe`, each with its reason.
const MAY_BE_UNSAFE: &[(&str, &str)] = &[
    ("memory/copy.rs", "copies between guest memory and ours"),
    ("memory/cpu.rs", "prefetches and barriers"),
    (
        "memory/dirty_log.rs",
        "sets bits in memory shared with the front-end",
    ),
    (
        "memory/lost.rs",
        "survives the loss of mapped memory: a signal handler",
    ),
    ("memory/pages.rs", "maps a front-end's memory"),
    (
        "memory/pages_miri.rs",
        "stands in for it where nothing can be mapped",
    ),
    ("memory/stitch.rs", "maps pages of a guest's ring a second time"),
    (
        "memory/inflight.rs",
        "maps the buffer in which a front-end keeps what was in flight",
    ),
    ("memory/numa.rs", "system calls that libc does not wrap"),
    (
        "memory/userfault.rs",
        "waits for missing pages: the kernel's interface, which libc lacks",
    ),
    (
        "virtio/ring.rs",
        "reads and writes ring structures in guest memory",
    ),
    (
        "virtio/packed_ring.rs",
        "reads and writes descriptors in guest memory",
    ),
    ("datapath/gate.rs", "lends the ring to whoever holds the gate"),
    ("datapath/call.rs", "writes the call eventfd, its one system call"),
    ("datapath/slot.rs", "packet memory lent by the host"),
    ("vhost_user/socket/sys.rs", "receives file descriptors"),
    ("sync.rs", "gives the standard cell the face of loom's"),
    ("ovs/", "the border with C"),
    ("model/", "plays the guest: writes the memory a guest would"),
    (
        "fuzzing/fence.rs",
        "maps pages that nobody may touch around a guest's memory",
    ),
];

fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(&root).unwrap().display().to_string();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

/// Files that hold only unit tests, kept apart from a file that would be too long with them.
fn holds_tests(name: &str) -> bool {
    name.contains("/tests/")
        || ["tests.rs", "testing.rs", "hostile.rs"]
            .iter()
            .any(|end| name.ends_with(end))
}

/// The code of a file: neither comments nor its unit tests.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let end = text
        .find("\n#[cfg(test)]\nmod ")
        .or(text.find("\n#[cfg(all(test,"))
        .unwrap_or(text.len());
    text[..end]
        .lines()
        .map(|line| line.split("//").next().unwrap_or(""))
}

#[test]
fn a_layer_uses_only_those_below_it() {
    let mut wrong = Vec::new();
    for (name, text) in sources().into_iter().filter(|(name, _)| !holds_tests(name)) {
        let layer = name.split(['/', '.']).next().unwrap();
        let Some((_, allowed)) = MAY_USE.iter().find(|(l, _)| *l == layer) else {
            assert_eq!(layer, "lib", "{name} belongs to no layer of the map");
            continue;
        };
        for line in code(&text) {
            for used in line.split("crate::").skip(1) {
                let used = used
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next()
                    .unwrap();
                let known = MAY_USE.iter().any(|(l, _)| *l == used);
                if known && used != layer && !allowed.contains(&used) {
                    wrong.push(format!("{name} uses {used}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_the_listed_files_contain_unsafe() {
    let mut wrong = Vec::new();
    for (name, text) in sources().into_iter().filter(|(name, _)| !holds_tests(name)) {
        let allowed = MAY_BE_UNSAFE.iter().any(|(prefix, _)| name.starts_with(prefix));
        let is_unsafe = |line: &&str| line.contains("unsafe ") || line.ends_with("unsafe");
        if let Some(line) = code(&text).find(is_unsafe).filter(|_| !allowed) {
            wrong.push(format!("{name}: {}", line.trim()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_file_says_its_place_in_the_world() {
    for (name, text) in sources() {
        assert!(
            text.starts_with("//!"),
            "{name} opens without a word on what it is"
        );
    }
}

#[test]
fn only_the_border_names_open_vswitch_types() {
    for (name, text) in sources() {
        let names_c = code(&text).any(|line| line.contains("ovs_sys"));
        assert!(!names_c || name.starts_with("ovs/"), "{name} knows a C type");
    }
}

/// What reads the clock that people set, and that jumps.
const WALL_CLOCKS: &[&str] = &[
    "SystemTime",
    "CLOCK_REALTIME",
    "time_wall",
    "gettimeofday",
    "time(NULL)",
];

#[test]
fn a_clock_that_jumps_is_read_for_the_times_in_captures_alone() {
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("c-shim");
    let shim = fs::read_dir(shim).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        (path.display().to_string(), fs::read_to_string(path).unwrap())
    });
    let rust = sources().into_iter().filter(|(name, _)| !holds_tests(name));
    let reads = |text: &str| code(text).any(|line| WALL_CLOCKS.iter().any(|clock| line.contains(clock)));
    let found: Vec<String> = rust
        .chain(shim)
        .filter(|(_, text)| reads(text))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(found, ["tap/capture.rs"]);
}
