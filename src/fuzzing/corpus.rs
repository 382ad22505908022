//! The corpus of `fuzz/`, replayed: what a fuzzer once found worth keeping, on any toolchain and without one.

use std::fs;
use std::path::{Path, PathBuf};

use super::{run, TARGETS};

pub(super) fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target)
}

/// Runs `target` on every file of its corpus, of which there are some.
fn replay(target: &str) {
    let mut files: Vec<_> = fs::read_dir(folder(target))
        .expect("a corpus")
        .flatten()
        .collect();
    assert!(!files.is_empty());
    files.sort_by_key(fs::DirEntry::path);
    for file in files {
        let name = file.path();
        // What fails says by which input: the last one that is named.
        println!("{}", name.display());
        run(target, &fs::read(name).expect("a file"));
    }
}

#[test]
fn every_target_has_a_corpus_and_a_program() {
    for (target, _) in TARGETS {
        assert!(folder(target).is_dir(), "{target}");
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fuzz/fuzz_targets/{target}.rs"));
        assert!(program.is_file(), "{target}");
    }
    assert_eq!(fs::read_dir(folder("")).expect("corpora").count(), TARGETS.len());
}

macro_rules! replays {
    ($($test:ident: $target:literal;)*) => {$(
        #[test]
        fn $test() {
            replay($target);
        }
    )*};
}

replays! {
    the_corpus_of_devices_is_survived: "device";
    the_corpus_of_messages_is_survived: "messages";
    the_corpus_of_headers_is_survived: "net_hdr";
    the_corpus_of_options_is_survived: "options";
    the_corpus_of_packed_rings_is_survived: "packed_ring";
    the_corpus_of_split_rings_is_survived: "split_ring";
}
