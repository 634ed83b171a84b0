//! Reading the file so that all that is wrong with it is told at once, each with its line.
//!
//! serde stops at the first mistake. So each section is read by itself, and read again without the
//! key that was wrong, until it is right or nothing more can be said.

use std::ops::Range;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

/// Something wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Counted from 1; nothing where it is no line's fault.
    pub(crate) line: Option<usize>,
    pub(crate) words: String,
    pub(crate) hint: Option<String>,
}

impl Problem {
    pub(crate) fn new(words: impl std::fmt::Display) -> Self {
        Self { line: None, words: words.to_string(), hint: None }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A file's sections, and what was wrong with those that were taken so far.
pub(super) struct Sections<'t> {
    text: &'t str,
    table: DeTable<'t>,
    pub(super) problems: Vec<Problem>,
}

impl<'t> Sections<'t> {
    /// The sections of a file that is TOML at all.
    pub(super) fn parse(text: &'t str) -> Result<Self, Problem> {
        let table = DeTable::parse(text).map_err(|error| {
            let line = error.span().map(|span| line_of(text, &span));
            Problem { line, words: one_line(error.message()), hint: None }
        })?;
        Ok(Self { text, table: table.into_inner(), problems: Vec::new() })
    }

    /// A section that may be left out.
    pub(super) fn take<T: Deserialize<'t>>(&mut self, name: &str) -> Option<T> {
        let (_, mut value) = self.table.remove_entry(name)?;
        loop {
            let error = match T::deserialize(value.clone().into_deserializer()) {
                Ok(section) => return Some(section),
                Err(error) => error,
            };
            let at = error.span().unwrap_or_else(|| value.span());
            let key = value.get_ref().as_table().and_then(|table| key_at(table, &at));
            // That a key is missing says nothing new where one was wrong.
            let told = self.problems.iter().any(|problem| problem.words.starts_with(&of(name, "")));
            if key.is_some() || !told {
                self.problems.push(self.problem(name, key.as_deref(), &error, &at));
            }
            // The value's own key is taken out, and the rest looked at.
            match (value.get_mut(), key) {
                (DeValue::Table(table), Some(key)) => {
                    table.remove(key.as_str());
                }
                _ => return None,
            }
        }
    }

    /// A section that must be there.
    pub(super) fn require<T: Deserialize<'t>>(&mut self, name: &str) -> Option<T> {
        if !self.table.contains_key(name) {
            self.problems.push(Problem::new(format_args!("the section [{name}] is missing")));
        }
        self.take(name)
    }

    /// What is left is known to nobody. Gives everything that was wrong.
    pub(super) fn finish(mut self, known: &[&str]) -> Vec<Problem> {
        for (key, _) in self.table.iter() {
            let line = Some(line_of(self.text, &key.span()));
            let key: &str = key.get_ref();
            let words = format!("{key}: unknown section or key outside of sections");
            self.problems.push(Problem { line, words, hint: nearest(key, known) });
        }
        self.problems.sort_by_key(|problem| problem.line);
        self.problems
    }

    fn problem(
        &self,
        section: &str,
        key: Option<&str>,
        error: &Error,
        at: &Range<usize>,
    ) -> Problem {
        let line = Some(line_of(self.text, at));
        let key = key.unwrap_or_default();
        let (words, hint) = match unknown_field(error.message()) {
            Some((found, known)) => ("unknown key".to_owned(), nearest(found, &known)),
            None => (one_line(error.message()), None),
        };
        Problem { line, words: format!("{} {words}", of(section, key)), hint }
    }
}

/// `[section] key:`
fn of(section: &str, key: &str) -> String {
    if key.is_empty() { format!("[{section}]") } else { format!("[{section}] {key}:") }
}

/// The key whose name or value lies there.
fn key_at(table: &DeTable<'_>, at: &Range<usize>) -> Option<String> {
    let holds = |span: Range<usize>| span.start <= at.start && at.end <= span.end;
    table
        .iter()
        .find(|(key, value): &(&Spanned<_>, &Spanned<_>)| holds(key.span()) || holds(value.span()))
        .map(|(key, _)| key.get_ref().to_string())
}

fn line_of(text: &str, at: &Range<usize>) -> usize {
    let before = text.as_bytes().get(..at.start).unwrap_or(text.as_bytes());
    before.iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// What serde says of a key that it does not know: its name, and those that it does know.
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (found, rest) = rest.split_once('`')?;
    Some((found, rest.split('`').skip(1).step_by(2).collect()))
}

/// The name that is most like it, if one is much alike.
fn nearest(found: &str, known: &[&str]) -> Option<String> {
    let distance = |name: &&&str| strsim::damerau_levenshtein(found, name);
    let nearest =
        known.iter().min_by_key(distance).filter(|name| distance(name) <= 1 + name.len() / 3);
    Some(match nearest {
        Some(name) => format!("did you mean \"{name}\"?"),
        None => format!("known are: {}", known.join(", ")),
    })
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
