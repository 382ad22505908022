//! What of an answer counts: its text as a list of items, one for each line, member of a map or set, or cell of a table,
//! without what differs from one run of the same switch to the next.

use serde_json::Value;

/// What comes behind these differs from run to run: how often a guest was called as its rings start, and how busy a poll
/// thread seems at this moment.
const FLEETING: [&str; 3] = ["_guest_notifications=", "pmd usage:", "overhead:"];

/// The items of `text`.
pub fn items(text: &str) -> Vec<String> {
    let mut items = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match serde_json::from_str(line) {
            Ok(value @ (Value::Object(_) | Value::Array(_))) => put_json("", &value, &mut items),
            _ => put_line(line, &mut items),
        }
    }
    for item in &mut items {
        for name in FLEETING {
            if let Some(at) = item.find(name) {
                item.truncate(at + name.len());
            }
        }
    }
    items
}

/// A line of text; of what stands in brackets at its end each member is an item, and each of a list of counters.
fn put_line(line: &str, items: &mut Vec<String>) {
    let line = line
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replacen(" : ", ": ", 1);
    let opened = line
        .find(['{', '[', '('])
        .filter(|_| line.ends_with(['}', ']', ')']));
    let Some(at) = opened.filter(|at| line.len() > at + 2) else {
        match line.contains('=') {
            true => items.extend(line.trim_end_matches(',').split(", ").map(str::to_owned)),
            false => items.push(line),
        }
        return;
    };
    let (head, members) = (&line[..at], &line[at + 1..line.len() - 1]);
    items.extend(members.split(", ").map(|member| format!("{head}{member}")));
}

/// A value in the JSON of the database, with the name of its column.
fn put_json(name: &str, value: &Value, items: &mut Vec<String>) {
    match value {
        Value::Object(table) if table.contains_key("headings") => {
            let columns = table["headings"].as_array().into_iter().flatten();
            let columns: Vec<&str> = columns.filter_map(Value::as_str).collect();
            for row in table["data"].as_array().into_iter().flatten() {
                for (column, cell) in columns.iter().zip(row.as_array().into_iter().flatten()) {
                    put_json(column, cell, items);
                }
            }
        }
        Value::Object(members) => members
            .iter()
            .for_each(|(key, value)| put_json(key, value, items)),
        Value::Array(pair) => match (pair.first().and_then(Value::as_str), pair.get(1)) {
            (Some("map"), Some(Value::Array(pairs))) => {
                items.extend(
                    pairs
                        .iter()
                        .map(|pair| format!("{name}: {}={}", bare(&pair[0]), bare(&pair[1]))),
                );
            }
            (Some("set"), Some(Value::Array(set))) if set.is_empty() => items.push(format!("{name}: []")),
            (Some("set"), Some(Value::Array(set))) => {
                set.iter().for_each(|value| put_json(name, value, items))
            }
            _ => pair.iter().for_each(|value| put_json(name, value, items)),
        },
        scalar => items.push(format!("{name}: {}", bare(scalar))),
    }
}

fn bare(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What is made at random: its form, with `h` for a hexadecimal digit, and what stands for it.
const RANDOM: [(&str, &str); 2] = [
    ("hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh", "UUID"),
    ("hh:hh:hh:hh:hh:hh", "MAC"),
];

/// What is of a random form and says something.
const NO_MAC: &str = "00:00:00:00:00:00";

/// `text` without what is made at random.
pub fn without_chance(text: &str) -> String {
    let has_form = |text: &str, form: &str| {
        let fits = |(byte, form): (u8, u8)| match form {
            b'h' => byte.is_ascii_hexdigit(),
            _ => byte == form,
        };
        text.len() >= form.len() && text.bytes().zip(form.bytes()).all(fits)
    };
    let (mut out, mut rest) = (String::new(), text);
    while let Some(first) = rest.chars().next() {
        let random = RANDOM
            .iter()
            .find(|(form, _)| has_form(rest, form) && !rest.starts_with(NO_MAC));
        if let Some((form, name)) = random {
            out.push_str(name);
            rest = &rest[form.len()..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

/// `text` with N for every number that is not part of a name, and without the names of memory pools.
pub fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    let flush = |word: &mut String, out: &mut String| {
        let hex = word
            .strip_prefix("0x")
            .is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let digits = word.strip_suffix('s').unwrap_or(word);
        let number = digits.bytes().any(|b| b.is_ascii_digit())
            && digits
                .bytes()
                .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-' | b'e'));
        out.push_str(if hex || number { "N" } else { word });
        word.clear();
    };
    let mut in_pool_name = false;
    for c in text.chars() {
        in_pool_name = c == '<' || in_pool_name && c != '>';
        if in_pool_name && c != '<' {
            continue;
        }
        if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '+' | '-') {
            word.push(c);
        } else {
            flush(&mut word, &mut out);
            out.push(c);
        }
    }
    flush(&mut word, &mut out);
    out
}
