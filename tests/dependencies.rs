//! What is depended on: under licenses that deny.toml allows, from crates.io, and each for a reason that is written beside it.
//!
//! The licenses are also cargo-deny's to check (`make audit`), with advisories, which takes a network.

use std::fs;
use std::iter::Peekable;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const MANIFESTS: [&str; 4] = [
    "Cargo.toml",
    "ffi/ovs-sys/Cargo.toml",
    "ffi/dpdk-sys/Cargo.toml",
    "fuzz/Cargo.toml",
];

/// The repository's folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of one of its files.
fn text(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Name and license of every package that this workspace is built and tested with, on this architecture.
fn packages() -> Vec<(String, String)> {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version=1",
            "--locked",
            "--filter-platform",
            &platform,
        ])
        .current_dir(root())
        .output()
        .expect("cargo");
    let error = String::from_utf8_lossy(&output.stderr);
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{error}"));
    let packages = metadata["packages"].as_array().expect("packages");
    let word = |package: &Value, key: &str| package[key].as_str().unwrap_or_default().to_owned();
    packages
        .iter()
        .map(|package| (word(package, "name"), word(package, "license")))
        .collect()
}

/// The licenses that deny.toml allows.
fn allowed_licenses() -> Vec<String> {
    let text = text("deny.toml");
    let (_, list) = text.split_once("\nallow = [").expect("a list");
    let (list, _) = list.split_once(']').expect("its end");
    list.split('"').skip(1).step_by(2).map(String::from).collect()
}

/// Whether an SPDX expression leaves a choice that is on the list. `/` is an older way to write `OR`.
fn is_allowed(expression: &str, list: &[String]) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    any(&mut spaced.split_whitespace().peekable(), list)
}

fn any<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>, list: &[String]) -> bool {
    let mut is_allowed = all(words, list);
    while words.next_if_eq(&"OR").is_some() {
        is_allowed |= all(words, list);
    }
    is_allowed
}

fn all<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>, list: &[String]) -> bool {
    let mut is_allowed = one(words, list);
    while words.next_if_eq(&"AND").is_some() {
        is_allowed &= one(words, list);
    }
    is_allowed
}

fn one<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>, list: &[String]) -> bool {
    match words.next() {
        Some("(") => {
            let is_allowed = any(words, list);
            words.next();
            is_allowed
        }
        // With an exception it is another license.
        Some(name) => match words.next_if_eq(&"WITH") {
            Some(_) => {
                words.next();
                false
            }
            None => list.iter().any(|allowed| allowed == name),
        },
        None => false,
    }
}

#[test]
fn expressions_are_read_as_spdx_writes_them() {
    let list = ["MIT", "ISC"].map(String::from);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-2.0", false),
        ("", false),
        ("GPL-2.0 OR MIT", true),
        ("GPL-2.0/MIT", true),
        ("MIT AND GPL-2.0", false),
        ("MIT AND ISC", true),
        ("GPL-2.0 AND MIT OR ISC", true),
        ("(GPL-2.0 OR MIT) AND ISC", true),
        ("(GPL-2.0 OR MIT) AND Zlib", false),
        ("MIT WITH something", false),
        ("MIT WITH something OR ISC", true),
    ] {
        assert_eq!(is_allowed(expression, &list), expected, "{expression}");
    }
}

#[test]
fn every_dependency_is_under_a_license_that_is_allowed() {
    let (packages, list) = (packages(), allowed_licenses());
    assert!(packages.len() > 50, "only {} packages", packages.len());
    assert!(list.len() > 3, "only {list:?}");
    let wrong: Vec<_> = packages
        .iter()
        .filter(|(_, license)| !is_allowed(license, &list))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_dependency_is_from_crates_io_and_locked() {
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let text = text(lock);
        let sources = text.lines().filter_map(|line| line.strip_prefix("source = "));
        let elsewhere: Vec<_> = sources
            .filter(|source| *source != "\"registry+https://github.com/rust-lang/crates.io-index\"")
            .collect();
        assert!(elsewhere.is_empty(), "{lock}: {elsewhere:#?}");
    }
}

#[test]
fn every_direct_dependency_has_its_reason_beside_it() {
    let mut seen = 0;
    for manifest in MANIFESTS {
        let (text, mut section, mut line_before) = (text(manifest), "", "");
        for line in text.lines() {
            let ours = line.contains("path = ");
            if line.starts_with('[') {
                section = line;
            } else if section.ends_with("dependencies]") && line.contains(" = ") && !ours {
                let explained = line.contains(" # ") || line_before.starts_with("# ");
                assert!(explained, "{manifest}: what is this for? {line}");
                seen += 1;
            }
            line_before = line;
        }
    }
    assert!(seen > 20, "only {seen} dependencies");
}
