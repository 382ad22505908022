//! The tests that documents name: whether there is one of that name.

use std::fs;
use std::path::PathBuf;

use crate::document::root;

/// All tests and end-to-end cases.
pub struct Names {
    code: String,
    cases: String,
}

impl Names {
    pub fn read() -> Names {
        Names {
            code: sources(root().join("src")) + &sources(root().join("tests")),
            cases: fs::read_to_string(root().join("tests/e2e/cases/mod.rs")).expect("the table of cases"),
        }
    }

    /// Whether there is a test called so or, with a `/` in it, a case.
    pub fn contain(&self, name: &str) -> bool {
        match name.contains('/') {
            true => self.cases.contains(&format!("\"{name}\"")),
            false => ["(", "<"]
                .iter()
                .any(|end| self.code.contains(&format!("fn {name}{end}"))),
        }
    }
}

/// The text of every source file below `folder`.
fn sources(folder: PathBuf) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            text += &sources(path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &fs::read_to_string(path).expect("a source file");
        }
    }
    text
}
