//! Source text, Rust's or C's, cut into tokens: as much of both languages as it takes to tell a string from a comment, and
//! what a string is an argument of.

use std::iter::Peekable;
use std::str::Chars;

/// A piece of source text. Comments and space are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A name, a keyword or a number.
    Word(String),
    /// A string, of C adjacent ones as one, after its escapes.
    Text(String),
    /// Any other character.
    Mark(char),
}

impl Token {
    pub fn is(&self, text: &str) -> bool {
        match self {
            Token::Word(word) => word == text,
            Token::Mark(mark) => text.chars().eq([*mark]),
            Token::Text(_) => false,
        }
    }

    /// What a string says.
    pub fn text(&self) -> Option<&str> {
        match self {
            Token::Text(text) => Some(text),
            Token::Word(_) | Token::Mark(_) => None,
        }
    }
}

/// All tokens of a source.
pub fn tokens(source: &str) -> Vec<Token> {
    let mut lexer = Lexer {
        rest: source.chars().peekable(),
        found: Vec::new(),
    };
    while lexer.step().is_some() {}
    lexer.found
}

struct Lexer<'a> {
    rest: Peekable<Chars<'a>>,
    found: Vec<Token>,
}

impl Lexer<'_> {
    /// Takes one token, or what is none. None at the end.
    fn step(&mut self) -> Option<()> {
        let first = self.rest.next()?;
        match first {
            '/' if self.starts("/") => self.skip_past("\n"),
            '/' if self.starts("*") => self.skip_past("*/"),
            '"' => {
                let text = self.text();
                self.put_text(text);
            }
            'r' if self.starts("\"") || self.starts("#\"") || self.starts("##\"") => {
                let text = self.raw_text();
                self.put_text(text);
            }
            '\'' => self.skip_character(),
            _ if is_of_word(first) => {
                let word = self.word(first);
                self.found.push(Token::Word(word));
            }
            '\\' if self.starts("\n") => {}
            _ if first.is_whitespace() => {}
            _ => self.found.push(Token::Mark(first)),
        }
        Some(())
    }

    fn starts(&self, text: &str) -> bool {
        let mut ahead = self.rest.clone();
        text.chars().all(|wanted| ahead.next() == Some(wanted))
    }

    fn skip_past(&mut self, end: &str) {
        while !self.starts(end) && self.rest.next().is_some() {}
        self.skip(end);
    }

    fn skip(&mut self, text: &str) {
        for _ in text.chars() {
            self.rest.next();
        }
    }

    /// Behind a quote: a character, or the name of a lifetime, which is a token like others.
    fn skip_character(&mut self) {
        let mut ahead = self.rest.clone();
        match (ahead.next(), ahead.next()) {
            (Some('\\'), _) => {
                self.rest.nth(1);
                self.skip_past("'");
            }
            (_, Some('\'')) => drop(self.rest.nth(1)),
            _ => {}
        }
    }

    fn word(&mut self, first: char) -> String {
        let mut word = String::from(first);
        word.extend(std::iter::from_fn(|| self.rest.next_if(|next| is_of_word(*next))));
        word
    }

    /// Behind its first quote.
    fn text(&mut self) -> String {
        let mut text = String::new();
        while let Some(next) = self.rest.next().filter(|next| *next != '"') {
            match next {
                '\\' => self.escape(&mut text),
                _ => text.push(next),
            }
        }
        text
    }

    fn escape(&mut self, text: &mut String) {
        match self.rest.next() {
            Some('\n') => while self.rest.next_if(|next| next.is_whitespace()).is_some() {},
            Some('n' | 't') => text.push(' '),
            Some(other) => text.push(other),
            None => {}
        }
    }

    /// Behind its `r`.
    fn raw_text(&mut self) -> String {
        let mut end = String::from('"');
        while self.rest.next_if_eq(&'#').is_some() {
            end.push('#');
        }
        self.rest.next();
        let mut text = String::new();
        while !self.starts(&end) {
            let Some(next) = self.rest.next() else { break };
            text.push(next);
        }
        self.skip(&end);
        text
    }

    /// A string goes on in the next one, in C also behind a macro for the rest of a conversion (`"%" PRIu32 " bytes"`).
    fn put_text(&mut self, more: String) {
        match &mut self.found[..] {
            [.., Token::Text(text)] => text.push_str(&more),
            [.., Token::Text(text), Token::Word(word)] if word.starts_with("PRI") => {
                text.push('u');
                text.push_str(&more);
                self.found.pop();
            }
            _ => self.found.push(Token::Text(more)),
        }
    }
}

fn is_of_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}
