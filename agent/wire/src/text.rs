//! Text that comes from a peer and goes into logs, metrics and terminals.

use std::fmt;
use std::str::FromStr;

/// A text that may not be used where it was meant to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Too many bytes.
    #[error("{length} bytes long, at most {max} are allowed")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The most that is allowed.
        max: usize,
    },
    /// A node needs a name.
    #[error("empty")]
    Empty,
    /// A character that is not allowed.
    #[error("character {found:?} is not allowed")]
    Character {
        /// The first such character.
        found: char,
    },
    /// Not text.
    #[error("not UTF-8")]
    NotUtf8,
}

/// What an agent is called: 1 to 64 letters, digits, `.`, `_` and `-` of ASCII, the first of them
/// no punctuation. It can be a metric label, a file name and a slot name's part as it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

impl NodeName {
    /// The longest name, in bytes.
    pub const LEN_MAX: usize = 64;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > Self::LEN_MAX {
            return Err(TextError::TooLong { length: text.len(), max: Self::LEN_MAX });
        }
        if text.is_empty() {
            return Err(TextError::Empty);
        }
        let allowed = |(index, c): &(usize, char)| {
            c.is_ascii_alphanumeric() || (*index > 0 && matches!(c, '.' | '_' | '-'))
        };
        match text.char_indices().find(|place| !allowed(place)) {
            Some((_, found)) => Err(TextError::Character { found }),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// At most `MAX` bytes of UTF-8 without control characters: a peer cannot write a line of its own
/// into our log, nor move the cursor of a terminal.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlainText<const MAX: usize>(String);

impl<const MAX: usize> PlainText<MAX> {
    /// Makes any text fit: control characters become spaces, and what is too long is cut between
    /// two characters.
    #[must_use]
    pub fn fitted(text: &str) -> Self {
        let mut fitted = String::new();
        for c in text.chars() {
            let c = if c.is_control() { ' ' } else { c };
            if fitted.len() + c.len_utf8() > MAX {
                break;
            }
            fitted.push(c);
        }
        Self(fitted)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> FromStr for PlainText<MAX> {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX {
            return Err(TextError::TooLong { length: text.len(), max: MAX });
        }
        match text.chars().find(|c| c.is_control()) {
            Some(found) => Err(TextError::Character { found }),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl<const MAX: usize> fmt::Display for PlainText<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<const MAX: usize> fmt::Debug for PlainText<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names() {
        for name in ["a", "db-1.example.org", "7_x", &"n".repeat(64)] {
            assert_eq!(name.parse::<NodeName>().expect("allowed").as_str(), name);
        }
        for name in ["", "-a", ".", "a b", "a/b", "ä", "a\n", &"n".repeat(65)] {
            assert!(name.parse::<NodeName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn plain_text_is_cut_between_characters() {
        assert_eq!(PlainText::<4>::fitted("a\nöäx").as_str(), "a ö");
        assert_eq!("a\nb".parse::<PlainText<9>>(), Err(TextError::Character { found: '\n' }));
        assert_eq!("abc".parse::<PlainText<2>>(), Err(TextError::TooLong { length: 3, max: 2 }));
        assert!("abc".parse::<PlainText<3>>().is_ok());
    }
}
