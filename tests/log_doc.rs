//! docs/log.md against the code: it has every line that the plugin can write to Open vSwitch's log, and every reason that can
//! stand in one, each line with its level; and nothing that the code does not say.

#[path = "common/document.rs"]
mod document;
#[path = "log_doc/lexer.rs"]
mod lexer;
#[path = "common/quoted.rs"]
mod quoted;
#[path = "log_doc/said.rs"]
mod said;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use document::{root, rows};
use quoted::quoted;
use said::{c, everything, has_words, idle_answers, rust, Said, FRAMES, VALUE};

const DOCUMENT: &str = "docs/log.md";

/// A text of the document, with [`VALUE`] for each value, and the level if it is a line's.
#[derive(Debug)]
struct Documented {
    text: String,
    level: Option<String>,
}

impl Documented {
    /// As it stands there, and without what frames it.
    fn texts(&self) -> impl Iterator<Item = &str> {
        let bare = FRAMES.iter().filter_map(|frame| self.text.strip_prefix(frame));
        std::iter::once(self.text.as_str()).chain(bare)
    }

    fn is_of(&self, said: &Said) -> bool {
        match said.is_line {
            true => self.text == said.text,
            false => self.texts().any(|text| text == said.text),
        }
    }
}

/// What the tables have in the first cells of their lines. Tables of four columns are of lines.
fn documented() -> Vec<Documented> {
    let text = fs::read_to_string(root().join(DOCUMENT)).expect("the document");
    let headings = text.lines().filter_map(|line| line.strip_prefix("## "));
    let rows = headings.flat_map(|heading| rows(DOCUMENT, heading));
    let mut found = Vec::new();
    for row in rows {
        let level = (row.len() == 4).then(|| row[1].clone());
        let texts = quoted(&row[0]).map(valued).filter(|text| has_words(text));
        found.extend(texts.map(|text| Documented {
            text,
            level: level.clone(),
        }));
    }
    found
}

/// A text of the document, in which a value is `<name>`, as the code's are.
fn valued(text: &str) -> String {
    let mut parts = text.split('<');
    let mut valued = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (_, rest) = part
            .split_once('>')
            .unwrap_or_else(|| panic!("no end of a value: {text}"));
        valued = valued + VALUE + rest;
    }
    valued
}

#[test]
fn every_line_and_every_reason_is_in_the_document() {
    let (said, documented) = (everything(), documented());
    assert!(said.len() > 200, "only {} found", said.len());
    let is_lacking = |said: &Said| !documented.iter().any(|documented| documented.is_of(said));
    let lacking: BTreeSet<String> = said
        .iter()
        .filter(|(_, said)| is_lacking(said))
        .map(|(file, said)| format!("{}: {}", file.display(), said.text))
        .collect();
    assert!(lacking.is_empty(), "{DOCUMENT} lacks {lacking:#?}");
}

#[test]
fn the_document_has_nothing_that_the_code_does_not_say() {
    let (said, documented) = (everything(), documented());
    let is_said = |documented: &Documented| said.iter().any(|(_, said)| documented.is_of(said));
    let stale: Vec<Documented> = documented.into_iter().filter(|one| !is_said(one)).collect();
    assert!(stale.is_empty(), "nothing says {stale:#?}");
}

#[test]
fn every_line_is_in_the_document_with_its_level() {
    let documented = documented();
    let mut compared = 0;
    for (file, said) in everything() {
        let Some(level) = said.level else { continue };
        let rows: Vec<&Documented> = documented.iter().filter(|row| row.text == said.text).collect();
        let is_right = |row: &&Documented| row.level.as_deref() == Some(level);
        assert!(
            rows.iter().all(is_right),
            "{}: {said:?}, {rows:?}",
            file.display()
        );
        compared += rows.len();
    }
    assert!(compared > 40, "only {compared} compared");
}

/// One of each way to write a line, and of each way to say why; and words that are none.
const SOURCE: &str = r##"
    //! log::error!("in a comment")
    /* log::error!("in another") /* */
    fn speak(port: &'static str, mark: char) {
        ::log::error!("{complaint}: of a crate's");
        log::warn!(
            "over \
             several {:#x} lines",
            number
        );
        log::debug!("port '{}': {}", port, if it { "or so it seems" } else { "no" });
        log::log!(level, "of any level");
        vhost_config!(self, now, Level::Error, "of the {socket}");
        vhost_config!(self, now, level, "{passed_on}");
        self.journal
            .write(now, Level::Info, format_args!("of the \"journal\" of '{port}'"));
        assert!(mark != '"', "of an assertion");
        opened.expect("a socket");
        Err(format!("is not {what}, {{as it should be}}"))
    }
    #[derive(Debug, Error)]
    #[expect(lint, reason = "a reason for readers")]
    enum Why {
        #[error("it {0} so")]
        So(u8),
        #[error(transparent)]
        Other,
        #[cfg(feature = "fault-injection")]
        #[error("on purpose {0}")]
        OnPurpose(u8),
        #[error("{0}")]
        Last(&'static str),
    }
    #[cfg(not(test))]
    const NOTE: &str = r#"a "raw" string"#;
    #[cfg(test)]
    mod tests {
        fn speak() { log::error!("of a test") }
    }
    #[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
    fn fuzz<A, B>(a: A) -> B { log::error!("of a fuzzer") }
    fn last() { log::info!("at the end") }
"##;

#[test]
fn every_way_to_say_something_is_found_and_nothing_else() {
    let found = rust(SOURCE);
    let found: Vec<(&str, &str)> = found
        .iter()
        .map(|said| match (said.is_line, said.level) {
            (true, level) => (level.unwrap_or("some"), said.text.as_str()),
            (false, _) => ("why", said.text.as_str()),
        })
        .collect();
    let expected = [
        ("ERR", "<>: of a crate's"),
        ("WARN", "over several <> lines"),
        ("why", "or so it seems"),
        ("some", "of any level"),
        ("ERR", "VHOST_CONFIG: (<>) of the <>"),
        ("INFO", "of the \"journal\" of '<>'"),
        ("why", "is not <>, {as it should be}"),
        ("why", "it <> so"),
        ("why", "a \"raw\" string"),
        ("INFO", "at the end"),
    ];
    assert_eq!(found, expected);
}

#[test]
fn what_c_says_is_found() {
    let source = r#"
        shim_log(VLL_WARN, "of %.*s with "
                 "%"PRIu32" bytes, %d%s", 3); /* shim_log(VLL_ERR, "no"); */
        shim_log(level, "%s", "passed on");
        log_nothing(VLL_ERR, "to nobody");
        #define CHECK(NAME) \
            if (it) { \
                return xasprintf("built with %"PRIu32" " \
                                 "of %s", 3, #NAME); \
            }
        VLOG_FATAL("%s: the end", "of it");
        ovs_fatal(0, "in the end");
    "#;
    let found: Vec<_> = c(source)
        .into_iter()
        .map(|said| (said.level.unwrap_or("why"), said.text))
        .collect();
    let expected = [
        ("WARN", "of <> with <> bytes, <><>"),
        ("why", "built with <> of <>"),
        ("EMER", "<>: the end"),
        ("ERR", "in the end"),
    ];
    assert_eq!(found, expected.map(|(level, text)| (level, text.to_owned())));
}

#[test]
fn each_way_is_found_where_it_is_known_to_be_used() {
    let known = [
        ("src/port/control.rs", "internal error in the control thread: <>"),
        ("src/port/peer.rs", "VHOST_CONFIG: (<>) reconnecting..."),
        ("src/port/peer.rs", "vHost Device '<>' has been removed"),
        ("src/port/migration.rs", "dirty logging ends"),
        ("src/virtio/chain.rs", "chain of more than <> descriptors"),
        (
            "src/memory/region.rs",
            "[guest <> size <> front-end <> offset <>]",
        ),
        ("src/tap/writer.rs", "it was stopped"),
        ("c-shim/packet_pool.c", "Reusing mempool \"<>\""),
        ("ovs-patches/3.1", "<> ports are provided by a plugin."),
    ];
    let found = everything();
    for (place, text) in known {
        let is_it = |(file, said): &(PathBuf, Said)| file.starts_with(place) && said.text == text;
        assert!(found.iter().any(is_it), "{place}: {text}");
    }
    let idle = idle_answers();
    assert!(idle.is_empty(), "no answers in {idle:?}: they need no exception");
}
