//! Timeline history files: how a timeline came to be.
//!
//! ```text
//! 1 <tab> 0/3000000 <tab> no recovery target specified      parent, where it ends, why
//! 2 <tab> 0/5000060 <tab> before promotion test
//! # lines like this and empty ones say nothing
//! ```
//!
//! Rules: `src/backend/access/transam/timeline.c`.

use crate::lsn::{Lsn, Timeline};

/// One timeline that a later one came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// The timeline.
    pub timeline: Timeline,
    /// Where the next one left it: the first position that is not its own.
    pub end: Lsn,
}

/// A timeline's ancestors, oldest first. Timeline 1 has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The ancestors.
    pub ancestors: Vec<Ancestor>,
}

/// A history file that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the timeline history: {what}")]
pub struct HistoryError {
    line: usize,
    what: &'static str,
}

impl TimelineHistory {
    /// Reads the history of `timeline`.
    ///
    /// # Errors
    /// [`HistoryError`] for a line that is not `timeline, LSN, reason`, or timelines that do not
    /// ascend to `timeline`.
    pub fn parse(timeline: Timeline, text: &str) -> Result<Self, HistoryError> {
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let fail = |what| HistoryError { line: number + 1, what };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut fields = line.split_ascii_whitespace();
            let parent = fields
                .next()
                .and_then(|field| field.parse().ok())
                .map(Timeline)
                .ok_or_else(|| fail("expected a timeline number"))?;
            let end = fields
                .next()
                .and_then(|field| field.parse().ok())
                .ok_or_else(|| fail("expected the position where the timeline ends"))?;
            if ancestors.last().is_some_and(|last| last.timeline >= parent) || parent >= timeline {
                return Err(fail("timelines must ascend and stay below the file's own"));
            }
            ancestors.push(Ancestor { timeline: parent, end });
        }
        Ok(Self { ancestors })
    }

    /// Which timeline the byte at `lsn` belongs to, in the history of `own`.
    #[must_use]
    pub fn timeline_at(&self, own: Timeline, lsn: Lsn) -> Timeline {
        self.ancestors.iter().find(|ancestor| lsn < ancestor.end).map_or(own, |a| a.timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_a_server_writes() {
        let text = "1\t0/3000000\tno recovery target specified\n\n# note\n3\t1/60\tx\n";
        let history = TimelineHistory::parse(Timeline(4), text).expect("valid");
        assert_eq!(history.timeline_at(Timeline(4), Lsn(0x2FF_FFFF)), Timeline(1));
        assert_eq!(history.timeline_at(Timeline(4), Lsn(0x300_0000)), Timeline(3));
        assert_eq!(history.timeline_at(Timeline(4), Lsn(0x1_0000_0060)), Timeline(4));
    }

    #[test]
    fn refuses_what_it_cannot_be() {
        for text in ["x\t0/1\t\n", "1\tzero\n", "2\t0/1\n1\t0/2\n", "4\t0/1\n"] {
            assert!(TimelineHistory::parse(Timeline(4), text).is_err(), "{text:?}");
        }
    }
}
