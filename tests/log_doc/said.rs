//! All that the code can say to the log: a scanner over the sources.
//!
//! No list says which strings are lines. Every string of words counts, unless it is plain that the log never sees it: tests,
//! assertions, attributes, what only commands answer. So whoever finds a new way to write a line finds it here as well.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::document::root;
use crate::lexer::{tokens, Token};

/// What stands for a value, in the code's texts and in the document's.
pub const VALUE: &str = "<>";

/// What begins each line about a port's socket.
const SOCKET: &str = "VHOST_CONFIG: (<>) ";

/// What lines begin with that have the rest from elsewhere.
pub const FRAMES: [&str; 3] = [SOCKET, "port '<>': ", "<>: "];

/// Something that the code says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Said {
    /// With [`VALUE`] for each value.
    pub text: String,
    /// Of a whole line, as Open vSwitch names it, where it stands beside the text.
    pub level: Option<&'static str>,
    /// A line, and not what one is made of.
    pub is_line: bool,
}

/// Macros whose words are for developers, or for who asked by a command, or for readers of the code.
const FOR_OTHERS: [&str; 11] = [
    "assert",
    "assert_eq",
    "assert_ne",
    "debug_assert",
    "debug_assert_eq",
    "panic",
    "unreachable",
    "compile_error",
    "asm",
    "json",
    "features",
];

/// Functions whose string is not said, or not to the log.
const FOR_NOBODY: [&str; 3] = ["expect", "find", "join"];

/// Files whose words only commands answer. Lines in them count all the same.
const ANSWERS: [&str; 8] = [
    "src/port/describe.rs",
    "src/port/ring_dump.rs",
    "src/port/tapped.rs",
    "src/tap/file.rs",
    "src/tap/mod.rs",
    "src/tap/options.rs",
    "src/tap/pcapng.rs",
    "src/tap/trace.rs",
];

/// Words of a `cfg` that no operator's build has.
const OF_TESTS: [&str; 4] = ["test", "fuzzing", "model", "fault-injection"];

/// What all sources say, each with the file.
pub fn everything() -> Vec<(PathBuf, Said)> {
    let mut all = Vec::new();
    for file in files("src", "rs") {
        let answers = ANSWERS.iter().any(|answering| file == Path::new(answering));
        let found = rust(&text(&file));
        let counts = |said: &Said| said.is_line || !answers;
        all.extend(found.into_iter().filter(counts).map(|said| (file.clone(), said)));
    }
    for file in files("c-shim", "c") {
        all.extend(c(&text(&file)).into_iter().map(|said| (file.clone(), said)));
    }
    for file in files("ovs-patches", "patch") {
        let found = c(&added(&text(&file)));
        all.extend(found.into_iter().map(|said| (file.clone(), said)));
    }
    all
}

/// Files that say nothing to the log although they are thought to have something to answer.
pub fn idle_answers() -> Vec<&'static str> {
    let is_idle = |file: &&str| rust(&text(Path::new(file))).iter().all(|said| said.is_line);
    ANSWERS.into_iter().filter(is_idle).collect()
}

fn text(file: &Path) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// The files of a folder and of those in it, but for modules that only tests have.
fn files(folder: &str, extension: &str) -> BTreeSet<PathBuf> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![PathBuf::from(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).expect("a folder").flatten() {
            let path = folder.join(entry.file_name());
            if root().join(&path).is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.insert(path);
            }
        }
    }
    let of_tests: Vec<PathBuf> = found.iter().flat_map(|file| modules_of_tests(file)).collect();
    let is_of_tests = |file: &PathBuf| {
        of_tests
            .iter()
            .any(|test| file.with_extension("").starts_with(test))
    };
    found.retain(|file| !is_of_tests(file));
    found
}

/// The modules in other files that a file has for tests only, as paths without an extension.
fn modules_of_tests(file: &Path) -> Vec<PathBuf> {
    let home = match file.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib") => file.with_file_name(""),
        _ => file.with_extension(""),
    };
    let tokens = tokens(&text(file));
    let mut found = Vec::new();
    for (at, _) in tokens.iter().enumerate().filter(|(_, token)| token.is("#")) {
        let Some(end) = attribute(&tokens, at).filter(|end| is_of_tests(&tokens[at..*end])) else {
            continue;
        };
        let item = tokens[end..]
            .iter()
            .take_while(|token| !token.is(";") && !token.is("{"));
        let words: Vec<&Token> = item.collect();
        if let [.., module, Token::Word(name)] = words[..] {
            if module.is("mod") {
                found.push(home.join(name));
            }
        }
    }
    found
}

/// What a Rust source says.
pub fn rust(source: &str) -> Vec<Said> {
    let tokens = tokens(source);
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(token) = tokens.get(at) {
        at = match token {
            Token::Mark('#') => match attribute(&tokens, at) {
                Some(end) if is_of_tests(&tokens[at..end]) => item(&tokens, end),
                Some(end) => {
                    found.extend(error_attribute(&tokens[at..end]));
                    end
                }
                None => at + 1,
            },
            Token::Word(word) if is_macro(&tokens, at) && FOR_OTHERS.contains(&word.as_str()) => {
                group(&tokens, at + 2)
            }
            Token::Word(word) if FOR_NOBODY.contains(&word.as_str()) => match tokens.get(at + 1..at + 3) {
                Some([open, Token::Text(_)]) if open.is("(") => at + 3,
                _ => at + 1,
            },
            Token::Word(_) => match line(&tokens, at) {
                Some((end, said)) => {
                    found.extend(said);
                    end
                }
                None => at + 1,
            },
            Token::Text(text) => {
                found.extend(reason(text));
                at + 1
            }
            Token::Mark(_) => at + 1,
        }
    }
    found
}

/// What a C source says: `shim_log(VLL_WARN, "...", ...)`, and in Open vSwitch itself `VLOG_WARN("...", ...)` and the like.
pub fn c(source: &str) -> Vec<Said> {
    let tokens = tokens(source);
    let said = |(at, token): (usize, &Token)| {
        let Token::Word(name) = token else { return None };
        let call = &tokens[at + 1..group(&tokens, at + 1).max(at + 1)];
        let text = conversions(call.iter().find_map(Token::text)?);
        match (name.as_str(), call) {
            ("shim_log", [_, Token::Word(level), ..]) => {
                said(text, level_of(level.trim_start_matches("VLL_")), true)
            }
            ("ovs_fatal", _) => said(text, Some("ERR"), true),
            ("xstrdup" | "xasprintf", _) => said(text, None, false),
            _ => said(text, Some(level_of(name.strip_prefix("VLOG_")?)?), true),
        }
    };
    tokens.iter().enumerate().filter_map(said).collect()
}

/// What a patch adds to Open vSwitch, without that to its tests.
fn added(patch: &str) -> String {
    let files = patch
        .split("\n+++ b/")
        .skip(1)
        .filter(|file| !file.starts_with("tests/"));
    let lines = files
        .flat_map(str::lines)
        .filter_map(|line| line.strip_prefix('+'));
    lines.map(|line| line.to_owned() + "\n").collect()
}

/// The line that is written at `at`, if one is, and where to go on behind its text.
fn line(tokens: &[Token], at: usize) -> Option<(usize, Option<Said>)> {
    let Token::Word(name) = &tokens[at] else {
        return None;
    };
    let is_macro = is_macro(tokens, at);
    let after_log = at >= 3 && tokens[at - 3].is("log") && tokens[at - 1].is(":");
    let (prefix, level) = match name.as_str() {
        "error" | "warn" | "info" | "debug" if is_macro && after_log => ("", level_of(name)),
        "log" if is_macro && after_log => ("", None),
        "vhost_config" if is_macro => (SOCKET, None),
        "write" if at >= 3 && tokens[at - 2].is("journal") => ("", None),
        _ => return None,
    };
    let open = at + 1 + usize::from(is_macro);
    let end = group(tokens, open);
    let call = tokens.get(open..end)?;
    let text = call.iter().position(|token| matches!(token, Token::Text(_)))?;
    let Token::Text(words) = &call[text] else {
        return None;
    };
    let named = |pair: &[Token]| match pair {
        [before, Token::Word(level)] if before.is(":") => level_of(level),
        _ => None,
    };
    let level = level.or_else(|| call[..text].windows(2).find_map(named));
    Some((
        open + text + 1,
        said(format!("{prefix}{}", values(words)), level, true),
    ))
}

/// The levels of Rust, C and Open vSwitch.
fn level_of(name: &str) -> Option<&'static str> {
    match name {
        "error" | "Error" | "ERR" => Some("ERR"),
        "warn" | "Warn" | "WARN" => Some("WARN"),
        "info" | "Info" | "INFO" => Some("INFO"),
        "debug" | "Debug" | "DBG" => Some("DBG"),
        "FATAL" => Some("EMER"),
        _ => None,
    }
}

/// The text of `#[error("...")]`, which is an error's `Display`.
fn error_attribute(attribute: &[Token]) -> Option<Said> {
    match attribute {
        [_, _, name, _, Token::Text(text), ..] if name.is("error") => said(values(text), None, false),
        _ => None,
    }
}

/// A string somewhere in the code, if it is words and not one word.
fn reason(text: &str) -> Option<Said> {
    let is_phrase = text.trim().contains(' ');
    said(values(text), None, false).filter(|_| is_phrase)
}

/// Whether a text has words beside its values and what ports' lines begin with. If not, it is the values that say something.
pub fn has_words(text: &str) -> bool {
    let own = FRAMES.iter().find_map(|frame| text.strip_prefix(frame));
    let own = own.unwrap_or(text).replace(VALUE, "");
    own.contains(char::is_alphabetic)
}

fn said(text: String, level: Option<&'static str>, is_line: bool) -> Option<Said> {
    let text = text.trim().to_owned();
    has_words(&text).then_some(Said { text, level, is_line })
}

/// A format of Rust, with [`VALUE`] for what is between braces.
fn values(format: &str) -> String {
    const BRACES: [(&str, &str, &str); 2] = [("{{", "\u{1}", "{"), ("}}", "\u{2}", "}")];
    let hide = |format: String, (twice, mark, _): &(&str, &str, &str)| format.replace(twice, mark);
    let show = |text: String, (_, mark, brace): &(&str, &str, &str)| text.replace(mark, brace);
    let format = BRACES.iter().fold(format.to_owned(), hide);
    let mut text = String::new();
    let mut rest = format.as_str();
    while let Some((before, behind)) = rest.split_once('{') {
        let (_, after) = behind.split_once('}').unwrap_or((behind, ""));
        text = text + before + VALUE;
        rest = after;
    }
    BRACES.iter().fold(text + rest, show)
}

/// A format of C, likewise.
fn conversions(format: &str) -> String {
    let mut parts = format.split('%');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part
            .find(['d', 'i', 'u', 'x', 's', 'c'])
            .map_or(part.len(), |at| at + 1);
        text = text + VALUE + &part[end..];
    }
    text
}

fn is_macro(tokens: &[Token], at: usize) -> bool {
    let opens = |token: &Token| ["(", "[", "{"].iter().any(|open| token.is(open));
    tokens.get(at + 1).is_some_and(|token| token.is("!")) && tokens.get(at + 2).is_some_and(opens)
}

/// The end of the group that opens at `open`; `open` itself if none does.
fn group(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token {
            Token::Mark('(' | '[' | '{') => depth += 1,
            Token::Mark(')' | ']' | '}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return if at == open { open } else { at + 1 };
        }
    }
    tokens.len()
}

/// The end of the attribute at `at`, if there is one.
fn attribute(tokens: &[Token], at: usize) -> Option<usize> {
    let open = at + 1 + usize::from(tokens.get(at + 1)?.is("!"));
    tokens[open].is("[").then(|| group(tokens, open))
}

/// Whether what follows an attribute is compiled for tests only.
fn is_of_tests(attribute: &[Token]) -> bool {
    let mut at = 0;
    let mut is_conditional = false;
    while let Some(token) = attribute.get(at) {
        at = match token {
            Token::Word(word) if word == "not" => group(attribute, at + 1),
            Token::Word(word) | Token::Text(word) if is_conditional && OF_TESTS.contains(&word.as_str()) => {
                return true
            }
            _ => at + 1,
        };
        is_conditional |= token.is("cfg");
    }
    false
}

/// The end of the item that begins at `at`: its block, its semicolon, or of a field or a variant the comma.
fn item(tokens: &[Token], at: usize) -> usize {
    let mut now = at;
    while let Some(token) = tokens.get(now) {
        match token {
            Token::Mark('{') => return group(tokens, now),
            Token::Mark('(' | '[') => now = group(tokens, now),
            Token::Mark('#') => now = attribute(tokens, now).unwrap_or(now + 1),
            Token::Mark(';') => return now + 1,
            Token::Mark('}' | ')') => return now,
            _ => now += 1,
        }
    }
    now
}
