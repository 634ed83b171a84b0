//! Puts together what readers gave, in the order of the WAL, and writes it out.

use std::io::{self, Write};

use walfmt::{Fault, Lsn, Stop, StopKind, Timeline, Version};

use super::arguments::StatsBy;
use super::reader::{Context, Part, Show, Unit, Why};
use super::stats::Stats;
use crate::trouble::{Kind, Trouble};

pub(super) struct Printer<'a> {
    context: &'a Context,
    /// How records are counted, if they are.
    by: Option<StatsBy>,
    /// How many records may still be shown.
    pub(super) limit: u64,
    stats: Stats,
    /// Where the first record begins that was asked for.
    pub(super) first: Option<Lsn>,
    /// Where the last record begins and ends.
    pub(super) last: Option<(Lsn, Lsn)>,
    shown_end: Option<Lsn>,
    version: Option<&'static Version>,
    timeline: Timeline,
    undescribed: Option<(u64, Lsn, String)>,
}

impl<'a> Printer<'a> {
    pub(super) fn new(context: &'a Context, by: Option<StatsBy>, limit: u64) -> Self {
        Self {
            context,
            by,
            limit,
            stats: Stats::default(),
            first: None,
            last: None,
            shown_end: None,
            version: None,
            timeline: Timeline(0),
            undescribed: None,
        }
    }

    /// Takes the next unit's part; why nothing comes after it, if so.
    pub(super) fn take(&mut self, unit: Unit, mut part: Part) -> Option<Why> {
        if self.last.is_some_and(|(_, end)| end >= unit.to) {
            // The fill behind a segment switch, or the middle of a record.
            self.context.give_back(part.output);
            return None;
        }
        if let Err(why) = self.check(&part) {
            return Some(why);
        }
        if let (None, Some(first)) = (self.first, part.first_asked) {
            self.first = Some(first);
            if let Err(why) = self.tell_skipped(first, part.version) {
                return Some(why);
            }
        }
        self.version = part.version.or(self.version);
        self.timeline = self.timeline.max(part.last_timeline);
        self.last = part.last.or(self.last);
        self.shown_end = part.shown_end.or(self.shown_end);
        self.limit = self.limit.saturating_sub(part.shown);
        if let Some((count, at, error)) = part.undescribed.take() {
            self.undescribed.get_or_insert((0, at, error)).0 += count;
        }
        if part.shown > 0
            && let Some(stats) = &part.output.stats
        {
            self.stats.merge(stats);
        }
        let written = write_out(&part.output.bytes);
        self.context.give_back(part.output);
        written.err().or(part.why)
    }

    /// Whether the part is the one that comes next.
    fn check(&self, part: &Part) -> Result<(), Why> {
        let (Some((last, _)), Some(first)) = (self.last, part.first) else { return Ok(()) };
        let stop = |kind, fault| Why::Stop(Stop { kind, at: first.start, fault });
        if first.prev != last {
            let fault = Fault::Prev { expected: last, found: first.prev };
            return Err(stop(StopKind::Torn, fault));
        }
        if part.first_timeline < self.timeline {
            let (before, found) = (self.timeline, part.first_timeline);
            let fault = Fault::Timeline { page: first.start, before, found };
            return Err(stop(StopKind::End, fault));
        }
        match (self.version, part.version) {
            (Some(before), Some(now)) if before != now => {
                let (expected, found) = (before.page_magic, now.page_magic);
                let fault = Fault::OtherMagic { page: first.start, expected, found };
                Err(stop(StopKind::Corrupt, fault))
            }
            _ => Ok(()),
        }
    }

    /// Says what lies between the position that was asked for and the first record, if that position is
    /// not a segment's start.
    fn tell_skipped(&self, first: Lsn, version: Option<&Version>) -> Result<(), Why> {
        let start = self.context.start;
        if first == start || self.context.place.segment_size.offset_of(start) == 0 {
            return Ok(());
        }
        let skipped = first.bytes_since(start);
        let s = if skipped == 1 { "" } else { "s" };
        let words =
            format!("first record is after {start}, at {first}, skipping over {skipped} byte{s}");
        let is_among_records = version.is_some_and(|version| version.tells_skipped_among_records);
        if is_among_records && self.context.show != Show::Json {
            return write_out(format!("{words}\n").as_bytes());
        }
        super::say(&words);
        Ok(())
    }

    /// Writes what is left to write.
    pub(super) fn finish(&self) -> Option<Why> {
        let (Some(by), Some(first), Some(end), Some(version)) =
            (self.by, self.first, self.shown_end, self.version)
        else {
            return None;
        };
        write_out(self.stats.table(by, first, end, version).as_bytes()).err()
    }

    /// Records whose text is not whole.
    pub(super) fn undescribed(&self) -> Option<Trouble> {
        let (count, first, error) = self.undescribed.as_ref()?;
        let words =
            format!("{count} records could not be read in full, first that at {first}: {error}");
        Some(Trouble::new(Kind::Corrupt, words).with_hint(
            "their lengths and checksums are right: please report this, with the record",
        ))
    }
}

pub(super) fn write_out(bytes: &[u8]) -> Result<(), Why> {
    if bytes.is_empty() {
        return Ok(());
    }
    let mut output = io::stdout().lock();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Why::Unread),
        Err(error) => Err(Why::Trouble(Trouble::io("writing records", error))),
    }
}
