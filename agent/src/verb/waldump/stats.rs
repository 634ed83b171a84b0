//! Counts and sizes of records, and `pg_waldump`'s table of them.
//!
//! Rules: `src/backend/access/transam/xlogstats.c`, `XLogDumpDisplayStats` in
//! `src/bin/pg_waldump/pg_waldump.c`.

use std::fmt::Write;

use walfmt::rmgr::RmgrId;
use walfmt::{Lsn, Record, Version, text};

use super::arguments::StatsBy;

/// How many kinds of record a resource manager can have: the upper half of `xl_info`.
const KINDS: usize = 16;

/// How many records, and how many bytes they take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    records: u64,
    /// Without page images.
    record_bytes: u64,
    image_bytes: u64,
}

/// What has been counted, by resource manager and kind.
#[derive(Clone, Debug)]
pub(super) struct Stats(Vec<[Count; KINDS]>);

impl Default for Stats {
    fn default() -> Self {
        Self(vec![[Count::default(); KINDS]; 256])
    }
}

impl Count {
    fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.record_bytes += other.record_bytes;
        self.image_bytes += other.image_bytes;
    }
}

impl Stats {
    #[inline]
    pub(super) fn count(&mut self, record: &Record<'_>) {
        let header = &record.header;
        let mut kind = usize::from(header.info >> 4);
        if header.rmgr == RmgrId::XACT {
            kind &= 0x07; // the highest bit is a flag there
        }
        let images = text::image_length(record);
        self.0[usize::from(header.rmgr.0)][kind].add(&Count {
            records: 1,
            record_bytes: header.total_length.saturating_sub(images).into(),
            image_bytes: images.into(),
        });
    }

    /// Adds the counts of other records.
    pub(super) fn merge(&mut self, other: &Self) {
        for (kinds, others) in self.0.iter_mut().zip(&other.0) {
            for (count, other) in kinds.iter_mut().zip(others) {
                count.add(other);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.fill([Count::default(); KINDS]);
    }

    /// The table, of the records between two positions.
    pub(super) fn table(&self, by: StatsBy, start: Lsn, end: Lsn, version: &Version) -> String {
        let mut total = Count::default();
        self.0.iter().flatten().for_each(|count| total.add(count));
        let mut table = format!("WAL statistics between {start} and {end}:\n");
        line(
            &mut table,
            ["Type", "N", "(%)", "Record size", "(%)", "FPI size", "(%)", "Combined size", "(%)"],
        );
        line(
            &mut table,
            ["----", "-", "---", "-----------", "---", "--------", "---", "-------------", "---"],
        );
        for (rmgr, kinds) in (0..=u8::MAX).zip(&self.0) {
            let rmgr = RmgrId(rmgr);
            match by {
                StatsBy::Rmgr => {
                    let mut sum = Count::default();
                    kinds.iter().for_each(|count| sum.add(count));
                    // Of an extension's, only those that were seen.
                    if rmgr.name().is_some() || sum.records > 0 {
                        row(&mut table, &rmgr.to_string(), &sum, &total);
                    }
                }
                StatsBy::Record => {
                    for (info, count) in (0..=u8::MAX).step_by(KINDS).zip(kinds) {
                        if count.records == 0 {
                            continue;
                        }
                        let kind = text::identify(rmgr, info, version)
                            .map_or_else(|| format!("UNKNOWN ({info:x})"), str::to_owned);
                        row(&mut table, &format!("{rmgr}/{kind}"), count, &total);
                    }
                }
            }
        }
        let dashes = "--------";
        let _ = writeln!(
            table,
            "{:<27} {dashes:>20} {:>8} {dashes:>20} {:>8} {dashes:>20} {:>8} {dashes:>20}",
            "", "", "", ""
        );
        // These are shares of the row, not of the column.
        let all = total.record_bytes + total.image_bytes;
        let share = |part| format!("[{:.2}%]", percent(part, all));
        let _ = writeln!(
            table,
            "{:<27} {:>20} {:<9}{:>20} {:<9}{:>20} {:<9}{:>20} {:<6}",
            "Total",
            total.records,
            "",
            total.record_bytes,
            share(total.record_bytes),
            total.image_bytes,
            share(total.image_bytes),
            all,
            "[100%]"
        );
        table
    }
}

fn line(table: &mut String, [kind, columns @ ..]: [&str; 9]) {
    let _ = write!(table, "{kind:<27}");
    for pair in columns.chunks_exact(2) {
        let _ = write!(table, " {:>20} {:>8}", pair[0], pair[1]);
    }
    table.push('\n');
}

fn row(table: &mut String, name: &str, count: &Count, total: &Count) {
    let _ = write!(table, "{name:<27}");
    let cells = [
        (count.records, total.records),
        (count.record_bytes, total.record_bytes),
        (count.image_bytes, total.image_bytes),
        (count.record_bytes + count.image_bytes, total.record_bytes + total.image_bytes),
    ];
    for (part, all) in cells {
        let _ = write!(table, " {part:>20} ({:>6.2})", percent(part, all));
    }
    table.push('\n');
}

fn percent(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { 100.0 * part as f64 / all as f64 }
}
