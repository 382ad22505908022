//! The documents as a whole: what they lead to must be there.

use std::fs;
use std::path::{Path, PathBuf};

/// The repository's folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every document, with its text.
fn documents() -> Vec<(PathBuf, String)> {
    let in_docs = fs::read_dir(root().join("docs")).expect("docs");
    in_docs
        .map(|entry| entry.expect("an entry of docs").path())
        .chain(
            [
                "README.md",
                "CONTRIBUTING.md",
                "SECURITY.md",
                "ovs-patches/README.md",
            ]
            .map(|name| root().join(name)),
        )
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .map(|path| {
            let text = fs::read_to_string(&path).expect("a document");
            (path, text)
        })
        .collect()
}

/// What stands between `open` and the next `close`, each time.
fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(open)
        .skip(1)
        .filter_map(move |rest| rest.split_once(close).map(|(inside, _)| inside))
}

#[test]
fn every_link_leads_to_a_file_that_is_there() {
    let mut links = 0;
    for (document, text) in documents() {
        let directory = document.parent().unwrap_or(Path::new("."));
        for link in between(&text, "](", ")").filter(|link| !link.contains("://")) {
            let (file, _) = link.split_once('#').unwrap_or((link, ""));
            assert!(
                directory.join(file).exists(),
                "{} leads to {link}",
                document.display()
            );
            links += 1;
        }
    }
    assert!(links > 20, "only {links} links");
}

#[test]
fn every_document_is_led_to_by_the_readme() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    for (document, _) in documents() {
        let name = document.strip_prefix(root()).expect("below the root");
        let is_led_to = name == Path::new("README.md") || readme.contains(&format!("]({})", name.display()));
        assert!(is_led_to, "README.md does not lead to {}", name.display());
    }
}

#[test]
fn every_case_that_a_reader_is_told_to_run_exists() {
    let table = fs::read_to_string(root().join("tests/e2e/cases/mod.rs")).expect("the table of cases");
    let cases: Vec<&str> = table
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|name| name.contains('/'))
        .collect();
    for (document, text) in documents() {
        for part in between(&text, "CASES=\"", "\"").flat_map(|parts| parts.split(' ')) {
            assert!(
                cases.iter().any(|case| case.contains(part)),
                "{}: no case is called like {part}",
                document.display()
            );
        }
    }
}

#[test]
fn every_make_target_that_a_reader_is_told_to_run_exists() {
    let makefile = fs::read_to_string(root().join("Makefile")).expect("Makefile");
    let targets: Vec<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(':').map(|(target, _)| target))
        .collect();
    // The targets that ovs-patches speaks of are Open vSwitch's.
    let ours = |(document, _): &(PathBuf, String)| !document.ends_with("ovs-patches/README.md");
    for (document, text) in documents().into_iter().filter(ours) {
        for told in between(&text, "`make ", "`").filter_map(|rest| rest.split_whitespace().next()) {
            assert!(
                targets.contains(&told),
                "{}: there is no target {told}",
                document.display()
            );
        }
    }
}

/// Lines without what indents them: a part of a file stands further left where it is quoted.
fn lines(text: &str) -> String {
    text.lines().map(|line| line.trim().to_owned() + "\n").collect()
}

#[test]
fn xml_that_is_quoted_stands_in_a_file_to_copy() {
    let folder = fs::read_dir(root().join("docs/libvirt")).expect("docs/libvirt");
    let files: Vec<String> = folder
        .map(|entry| entry.expect("an entry of docs/libvirt").path())
        .map(|path| lines(&fs::read_to_string(path).expect("a domain")))
        .collect();
    let mut quotes = 0;
    for (document, text) in documents() {
        for quote in between(&text, "```xml\n", "```") {
            let is_there = files.iter().any(|file| file.contains(&lines(quote)));
            assert!(
                is_there,
                "{} quotes what no domain has:\n{quote}",
                document.display()
            );
            quotes += 1;
        }
    }
    assert!(quotes > 2, "only {quotes} quotes");
}
