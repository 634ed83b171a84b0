//! Positions in the WAL, timelines and transaction ids.

use std::fmt;
use std::str::FromStr;

/// A byte position in the WAL of one cluster, from its creation on.
///
/// Shown and parsed as PostgreSQL does: two hexadecimal halves, `16/B374D848`
/// (`src/backend/utils/adt/pg_lsn.c`).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// PostgreSQL's `InvalidXLogRecPtr`: no position.
    pub const INVALID: Self = Self(0);

    /// Whether this is a position at all.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// The next position at or after this one where a record may begin: records are placed at
    /// multiples of 8 (`MAXALIGN`).
    #[must_use]
    pub const fn align_up(self) -> Self {
        Self(self.0.saturating_add(7) & !7)
    }

    /// `self + bytes`, stopping at the end of the number range rather than wrapping.
    #[must_use]
    pub const fn advance(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// How many bytes lie from `earlier` to here; 0 if `earlier` is later.
    #[must_use]
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a WAL position: expected two hexadecimal numbers like 16/B374D848")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
        };
        let parsed = text.split_once('/').and_then(|(high, low)| Some((half(high)?, half(low)?)));
        match parsed {
            Some((high, low)) => Ok(Self(u64::from(high) << 32 | u64::from(low))),
            None => Err(ParseLsnError(text.to_owned())),
        }
    }
}

/// A timeline id (`TimeLineID`): which branch of a cluster's history. The first is 1.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A 32-bit transaction id as records carry it. Ids wrap around, so they have no total order:
/// compare with [`TransactionId::precedes`].
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct TransactionId(pub u32);

impl TransactionId {
    /// PostgreSQL's `InvalidTransactionId`.
    pub const INVALID: Self = Self(0);
    /// PostgreSQL's `FrozenTransactionId`.
    pub const FROZEN: Self = Self(2);
    /// The first id given to an ordinary transaction.
    pub const FIRST_NORMAL: Self = Self(3);

    /// Whether this is an id at all.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// Whether this is an ordinary id, not one of the three reserved ones.
    #[must_use]
    pub const fn is_normal(self) -> bool {
        self.0 >= 3
    }

    /// Whether this id was given out before `other`: modulo 2^32, with the reserved ids before all
    /// others (`TransactionIdPrecedes`, `src/backend/access/transam/transam.c`).
    #[must_use]
    pub const fn precedes(self, other: Self) -> bool {
        if !self.is_normal() || !other.is_normal() {
            return self.0 < other.0;
        }
        (self.0.wrapping_sub(other.0) as i32) < 0
    }
}

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_text_is_postgresql_text() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "0/1000028"] {
            assert_eq!(text.parse::<Lsn>().expect("valid").to_string(), text);
        }
        for text in ["", "/", "1", "1/", "/1", "g/1", "1/+2", "100000000/0", "1/2/3"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }

    #[test]
    fn transaction_ids_compare_modulo_their_range() {
        let xid = TransactionId;
        assert!(xid(100).precedes(xid(101)));
        assert!(xid(u32::MAX).precedes(xid(3)));
        assert!(!xid(3).precedes(xid(u32::MAX)));
        assert!(TransactionId::FROZEN.precedes(xid(u32::MAX)));
    }
}
