//! `walferry decode`: the rows that changed, as JSON lines.
//!
//! It reads the row spool that the agent writes; neither waits for the other. Whole transactions come
//! in the order of their commits.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use walfmt::row::Entry;
use walfmt::{Lsn, Version};
use walfmt_logical::{Body, DecodeError, Decoder, Event, EventSink, Place, Position, json};

use crate::config::Config;
use crate::spool::Reader;
use crate::trouble::{Kind, Trouble};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only databases with such a name; * stands for any letters, ? for one. May be given repeatedly.
    #[arg(long, value_name = "PATTERN")]
    database: Vec<Pattern>,
    /// Only tables with such a name, in any schema, or schema and name with a dot between them. May be
    /// given repeatedly.
    #[arg(long, value_name = "PATTERN")]
    table: Vec<Pattern>,
    /// Only what comes after this: commit_lsn and ordinal of the last line that needs no repeating,
    /// with a slash between them. Lines of kind schema come again.
    #[arg(long, value_name = "LSN/ORDINAL")]
    after: Option<After>,
    /// Go on with what comes, until interrupted.
    #[arg(long)]
    follow: bool,
    /// Only transactions that commit before this position, and with --follow, end when all of them were
    /// printed.
    #[arg(long, value_name = "LSN")]
    until: Option<Lsn>,
}

/// How often it is looked for more: soon after there was some, and then less and less often.
const FOLLOW_INTERVAL_MIN: Duration = Duration::from_millis(1);
const FOLLOW_INTERVAL: Duration = Duration::from_millis(20);
/// Output is written when there is this much of it, in bytes.
const OUTPUT_BYTES: usize = 256 << 10;

pub(crate) fn run(config: &Path, arguments: Arguments) -> Result<(), Trouble> {
    let config = Config::load(config)?;
    let Some(section) = &config.decode else {
        return Err(Trouble::misuse("there is no [decode] section in the configuration")
            .with_hint(
                "with [decode] directory = \"...\" the agent captures rows while it replays",
            ));
    };
    let after = arguments.after.map(|After(position)| position);
    let mut reader = loop {
        match Reader::open(&section.directory, after.map(|after| after.commit))? {
            Some(reader) => break reader,
            None if arguments.follow => thread::sleep(FOLLOW_INTERVAL),
            None => {
                return Err(Trouble::new(
                    Kind::NotThere,
                    format_args!("no rows in {} yet", section.directory.display()),
                )
                .with_hint(
                    "the agent captures rows from when its store is consistent: walferry status",
                ));
            }
        }
    };
    let major = reader.header().major;
    let version = Version::from_major(major).ok_or_else(|| {
        Trouble::new(Kind::Unsupported, format_args!("rows of PostgreSQL {major}"))
    })?;
    let mut decoder = Decoder::new(version);
    let mut printer = Printer::new(arguments, after);
    let mut pause = FOLLOW_INTERVAL_MIN;
    let until = printer.arguments.until.unwrap_or(Lsn(u64::MAX));
    let start = reader.header().start;
    if until <= start {
        return match after {
            Some(after) if after.commit >= until => Ok(()),
            _ => Err(Trouble::new(
                Kind::NotThere,
                format_args!(
                    "rows from before {start} are not there: they were not captured, or removed"
                ),
            )),
        };
    }
    loop {
        let is_over = reader.end() >= until;
        let chunk = if is_over { None } else { reader.next()? };
        let Some(chunk) = chunk else {
            printer.flush()?;
            if is_over || !printer.arguments.follow {
                return ensure_telling(&decoder);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(FOLLOW_INTERVAL);
            continue;
        };
        pause = FOLLOW_INTERVAL_MIN;
        let all = chunk.entries();
        let mut rest = all;
        while !rest.is_empty() {
            let place = Place(chunk.place + (all.len() - rest.len()) as u64);
            let (entry, behind) = Entry::read(rest).map_err(|error| corrupt(&error))?;
            if entry.start >= until {
                break;
            }
            match decoder.push(&entry, place, &mut reader, &mut printer) {
                Ok(()) => {}
                Err(error) => {
                    printer.flush()?;
                    return Err(match error {
                        DecodeError::Source(trouble) | DecodeError::Sink(trouble) => trouble,
                        error => corrupt(&error),
                    });
                }
            }
            rest = behind;
        }
        if printer.arguments.follow {
            printer.flush()?;
        }
    }
}

/// That nothing happened, and that nothing of it can be told, are two answers.
fn ensure_telling(decoder: &Decoder) -> Result<(), Trouble> {
    if decoder.is_telling() || decoder.waits_for().next().is_none() {
        return Ok(());
    }
    let mut xids: Vec<u32> = decoder.waits_for().map(|xid| xid.0).collect();
    xids.sort_unstable();
    let shown: Vec<String> = xids.iter().take(8).map(u32::to_string).collect();
    let more = if xids.len() > shown.len() { ", ..." } else { "" };
    let words = format_args!(
        "nothing is told before these transactions have ended, which had begun before: {}{more}",
        shown.join(", ")
    );
    Err(Trouble::new(Kind::NotThere, words).with_hint(
        "rows before their ends cannot be told, theirs never; on the leader pg_prepared_xacts has those \
         that are prepared, pg_stat_activity.backend_xid the others",
    ))
}

fn corrupt(error: &dyn std::fmt::Display) -> Trouble {
    Trouble::new(Kind::Corrupt, format_args!("rows: {error}")).with_hint(
        "nothing after this can be told; to begin anew from now on, stop the agent, move the files \
         of [decode] directory away, and start it",
    )
}

/// Prints what passes.
struct Printer {
    arguments: Arguments,
    after: Option<Position>,
    buffer: Vec<u8>,
    /// The begin of a transaction of which nothing has passed yet.
    begin: Vec<u8>,
    /// Something of the transaction has passed.
    has_begun: bool,
    /// Tables whose shapes were printed, by database and OID: those told before `after` are not.
    printed: HashSet<(u32, u32), foldhash::fast::RandomState>,
}

impl Printer {
    fn new(arguments: Arguments, after: Option<Position>) -> Self {
        Self {
            arguments,
            after,
            buffer: Vec::new(),
            begin: Vec::new(),
            has_begun: false,
            printed: HashSet::default(),
        }
    }

    fn passes(&self, event: &Event<'_>) -> bool {
        let (database, table) = match &event.body {
            Body::Insert(row) | Body::Delete(row) | Body::Update { new: row, .. } => {
                (&*row.relation.database, Some(row.relation))
            }
            Body::Schema(relation) | Body::Truncate(relation) | Body::Sequence { relation, .. } => {
                (&*relation.database, Some(*relation))
            }
            Body::Message { database, .. }
            | Body::Begin { database }
            | Body::Commit { database } => (*database, None),
        };
        let Arguments { database: databases, table: tables, .. } = &self.arguments;
        let any = |patterns: &[Pattern], fits: &dyn Fn(&Pattern) -> bool| {
            patterns.is_empty() || patterns.iter().any(fits)
        };
        any(databases, &|pattern| pattern.fits(database))
            && table.is_none_or(|table| {
                any(tables, &|pattern| pattern.fits_table(&table.schema, &table.name))
            })
    }

    fn flush(&mut self) -> Result<(), Trouble> {
        let mut output = io::stdout().lock();
        let written = output.write_all(&self.buffer).and_then(|()| output.flush());
        self.buffer.clear();
        written.map_err(|error| Trouble::io("writing rows", error))
    }
}

impl EventSink for Printer {
    type Error = Trouble;

    fn event(&mut self, event: &Event<'_>) -> Result<(), Trouble> {
        if let Body::Begin { .. } = event.body {
            self.has_begun = false;
            self.begin.clear();
            if self.after.is_none_or(|after| event.position > after) {
                write(event, &mut self.begin)?;
            }
            return Ok(());
        }
        if let Body::Schema(relation) = event.body {
            // Printed before the row that it is told for, if that is.
            self.printed.remove(&(relation.database_oid, relation.oid));
            return Ok(());
        }
        if self.after.is_some_and(|after| event.position <= after) || !self.passes(event) {
            return Ok(());
        }
        let is_commit = matches!(event.body, Body::Commit { .. });
        // What was told before is told by its commit that it is over.
        if is_commit && !self.has_begun && !self.begin.is_empty() {
            return Ok(());
        }
        let is_alone = event.position.ordinal == 0;
        if !is_alone {
            self.has_begun = true;
            self.buffer.append(&mut self.begin);
        }
        if let Body::Insert(row) | Body::Delete(row) | Body::Update { new: row, .. } = &event.body
            && self.printed.insert((row.relation.database_oid, row.relation.oid))
        {
            // As part of what came before: whoever has only this of the two goes on with the row.
            let ordinal = event.position.ordinal.saturating_sub(1);
            let position = Position { ordinal, ..event.position };
            let body = Body::Schema(row.relation);
            write(&event.beside(position, body), &mut self.buffer)?;
        }
        write(event, &mut self.buffer)?;
        if self.buffer.len() >= OUTPUT_BYTES {
            self.flush()?;
        }
        Ok(())
    }
}

fn write(event: &Event<'_>, buffer: &mut Vec<u8>) -> Result<(), Trouble> {
    json::write(event, buffer).map_err(|error| {
        let words = format_args!("record at {}: {error}", event.lsn);
        Trouble::new(Kind::Corrupt, words)
    })
}

/// A position on the command line.
#[derive(Clone, Copy, Debug)]
struct After(Position);

impl FromStr for After {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.rsplit_once('/');
        let parse = |(lsn, ordinal): (&str, &str)| {
            Some(Position { commit: lsn.parse::<Lsn>().ok()?, ordinal: ordinal.parse().ok()? })
        };
        parts.and_then(parse).map(Self).ok_or_else(|| "expected as 0/1A2B3C8/12".to_owned())
    }
}

/// A name with wildcards.
#[derive(Clone, Debug)]
struct Pattern(String);

impl FromStr for Pattern {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl Pattern {
    fn fits(&self, name: &str) -> bool {
        fits(self.0.as_bytes(), name.as_bytes())
    }

    /// With a dot, the schema before it; without, the name alone.
    fn fits_table(&self, schema: &str, name: &str) -> bool {
        self.fits(name)
            || self.0.split_once('.').is_some_and(|(of_schema, of_name)| {
                fits(of_schema.as_bytes(), schema.as_bytes())
                    && fits(of_name.as_bytes(), name.as_bytes())
            })
    }
}

/// Whether a name fits a pattern. Each star is tried at its first place, and moved on when what follows
/// does not fit: that is enough, and takes no more than the product of both lengths.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut of) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while of < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, of));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[of] => {
                at += 1;
                of += 1;
            }
            _ => match star {
                Some((behind, from)) => {
                    star = Some((behind, from + 1));
                    (at, of) = (behind, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_names() {
        let fits = |pattern: &str, name: &str| Pattern(pattern.to_owned()).fits(name);
        assert!(fits("orders", "orders") && !fits("orders", "orders2") && !fits("order", "orders"));
        assert!(fits("ord*", "orders") && fits("*", "") && fits("o*r*s", "orders"));
        assert!(fits("order?", "orders") && !fits("order?", "order") && !fits("?", ""));
        assert!(!fits("a*b*c", "aXbX") && fits("*a*ab", "aaab"));
        let table = |pattern: &str| Pattern(pattern.to_owned()).fits_table("shop", "orders");
        assert!(table("orders") && table("shop.orders") && table("shop.*") && !table("other.*"));
    }

    #[test]
    fn a_position_is_read() {
        let After(position) = "1/A0/7".parse().expect("a position");
        assert_eq!(position, Position { commit: Lsn(0x1_0000_00A0), ordinal: 7 });
        assert!("1/A0".parse::<After>().is_err() && "x/1/2".parse::<After>().is_err());
    }
}
