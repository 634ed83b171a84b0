//! Our text of records beside `pg_waldump`'s, byte by byte.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{Context, Result, bail, ensure};
use walfmt::text::{self, Out, Utc};
use walfmt::{Lsn, RawRecord, Record, RecordStream, Step, StopKind, StreamStart, Version};

use crate::account::Account;
use crate::binaries::Binaries;
use crate::opcodes::Wal;

/// A resource manager and the kind of a record, as `pg_waldump` calls them.
pub type Kind = (String, String);

/// What a comparison went through, for one kind of records.
#[derive(Clone, Debug, Default)]
pub struct Compared {
    /// Records of it.
    pub records: u64,
    /// Those whose text is the same.
    pub equal: u64,
    /// Lines that `pg_waldump` printed of them.
    pub lines: u64,
    /// Bytes of those lines.
    pub bytes: u64,
    /// The first that differs: ours and theirs.
    pub difference: Option<(String, String)>,
}

/// What comparisons went through, by kind.
#[derive(Clone, Debug, Default)]
pub struct Tally(pub BTreeMap<Kind, Compared>);

/// Compares all records of `wal`, with `details` as `--bkp-details` prints them. `spoil` may alter our
/// text of a record (its number among all and its kind are given) before it is compared.
///
/// # Errors
/// One of both finds an end before the other, or something that is no record.
pub fn compare(
    wal: &Wal,
    version: &'static Version,
    binaries: &Binaries,
    account: Account,
    details: bool,
    mut spoil: impl FnMut(u64, &Kind, &mut Vec<u8>),
) -> Result<Tally> {
    let mut dump = Dump::start(wal, binaries, account, details)?;
    let mut tally = Tally::default();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut number = 0;
    let mut last = Lsn::INVALID;
    let mut take = |raw: &RawRecord<'_>| -> Result<()> {
        let record = Record::decode(raw, version).with_context(|| format!("at {}", raw.start))?;
        ours.clear();
        // What could not be said shows in the text.
        let _ = text::write(&record, version, details, &mut Out::new(&mut ours, &Utc));
        ensure!(dump.next(&mut theirs)?, "pg_waldump ends before {}", raw.start);
        let kind = kind_of(&theirs)?;
        let position =
            format!(", lsn: {:X}/{:08X}, ", raw.start.0 >> 32, raw.start.0 & 0xFFFF_FFFF);
        ensure!(
            theirs.windows(position.len()).any(|part| part == position.as_bytes()),
            "at {} pg_waldump has {}",
            raw.start,
            String::from_utf8_lossy(&theirs)
        );
        spoil(number, &kind, &mut ours);
        tally.0.entry(kind).or_default().count(&ours, &theirs);
        number += 1;
        last = raw.start;
        Ok(())
    };

    let segments = &wal.segments;
    let mut stream = RecordStream::new(StreamStart {
        lsn: segments.start(),
        segment_size: segments.size(),
        system_identifier: None,
    });
    stream.set_known_end(wal.last_record);
    let mut stopped = None;
    segments.read(segments.start(), segments.end(), 128 << 10, |bytes| {
        stream.push(bytes);
        loop {
            match stream.poll() {
                Step::Record(raw) => take(&raw)?,
                Step::NeedMore => return Ok(true),
                Step::Stop(stop) => {
                    stopped = Some(stop);
                    return Ok(false);
                }
            }
        }
    })?;
    if let Some(stop) = stopped {
        ensure!(stop.kind == StopKind::End, "{}: {stop}", wal.name);
    }
    ensure!(last == wal.last_record, "the last record is {last}, not {}", wal.last_record);
    ensure!(!dump.next(&mut theirs)?, "pg_waldump has more: {}", String::from_utf8_lossy(&theirs));
    Ok(tally)
}

/// A running `pg_waldump`, read record by record.
struct Dump {
    child: Child,
    output: BufReader<ChildStdout>,
    /// The line behind the record that was given last; empty at the end.
    line: Vec<u8>,
}

const RECORD: &[u8] = b"rmgr: ";

impl Dump {
    fn start(wal: &Wal, binaries: &Binaries, account: Account, details: bool) -> Result<Self> {
        let mut command = account.command(binaries.program("pg_waldump"));
        command.arg("-p").arg(wal.segments.directory());
        command.arg("-t").arg(wal.timeline.0.to_string());
        command.arg("-s").arg(wal.segments.start().to_string());
        if details {
            command.arg("--bkp-details");
        }
        // It says on its standard error how the WAL ended, which always is an error to it.
        command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start pg_waldump")?;
        let stdout = child.stdout.take().context("pg_waldump has no standard output")?;
        let mut dump =
            Self { child, output: BufReader::with_capacity(1 << 20, stdout), line: Vec::new() };
        // Where a range begins inside a record, it says how much it leaves out.
        loop {
            dump.next_line()?;
            if dump.line.is_empty() || dump.line.starts_with(RECORD) {
                return Ok(dump);
            }
            if dump.line != b"\n" && !dump.line.starts_with(b"first record is after ") {
                bail!("pg_waldump printed {}", String::from_utf8_lossy(&dump.line));
            }
        }
    }

    fn next_line(&mut self) -> Result<()> {
        self.line.clear();
        self.output.read_until(b'\n', &mut self.line).context("cannot read from pg_waldump")?;
        Ok(())
    }

    /// All lines of the next record; false at the end.
    fn next(&mut self, record: &mut Vec<u8>) -> Result<bool> {
        record.clear();
        if self.line.is_empty() {
            return Ok(false);
        }
        loop {
            record.extend_from_slice(&self.line);
            self.next_line()?;
            if self.line.is_empty() || self.line.starts_with(RECORD) {
                return Ok(true);
            }
        }
    }
}

impl Drop for Dump {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The kind of the record in its text:
///
/// ```text
/// rmgr: Heap        len (rec/tot):     59/    59, tx:        735, lsn: 0/015A3B78,
/// prev 0/015A3B38, desc: INSERT off 3 flags 0x08, blkref #0: rel 1663/5/16384 blk 0
/// ```
fn kind_of(text: &[u8]) -> Result<Kind> {
    let text = String::from_utf8_lossy(text);
    let kind = || {
        let rmgr = text.strip_prefix("rmgr: ")?.split(' ').next()?;
        let (_, described) = text.split_once(", desc: ")?;
        let kind = described.split([' ', '\n']).next()?;
        Some((rmgr.to_owned(), kind.to_owned()))
    };
    kind().with_context(|| format!("pg_waldump printed {text:?}"))
}

impl Compared {
    fn count(&mut self, ours: &[u8], theirs: &[u8]) {
        self.records += 1;
        self.bytes += theirs.len() as u64;
        self.lines += theirs.iter().filter(|byte| **byte == b'\n').count() as u64;
        if ours == theirs {
            self.equal += 1;
        } else if self.difference.is_none() {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            self.difference = Some((text(ours), text(theirs)));
        }
    }
}

impl Tally {
    /// Adds what another comparison went through.
    pub fn add(&mut self, other: Self) {
        for (kind, more) in other.0 {
            let entry = self.0.entry(kind).or_default();
            entry.records += more.records;
            entry.equal += more.equal;
            entry.lines += more.lines;
            entry.bytes += more.bytes;
            if entry.difference.is_none() {
                entry.difference = more.difference;
            }
        }
    }

    /// All kinds together, with the first difference of any.
    #[must_use]
    pub fn total(&self) -> Compared {
        let mut total = Self::default();
        for compared in self.0.values() {
            total.add(Self([((String::new(), String::new()), compared.clone())].into()));
        }
        total.0.into_values().next().unwrap_or_default()
    }

    /// Kinds with records whose text differs.
    pub fn different(&self) -> impl Iterator<Item = (&Kind, &Compared)> {
        self.0.iter().filter(|(_, compared)| compared.equal < compared.records)
    }
}

impl fmt::Display for Tally {
    /// A line for each resource manager: its kinds, with the equal records of all.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "";
        for ((rmgr, kind), compared) in &self.0 {
            if rmgr != before {
                let lead = if before.is_empty() { "  " } else { "\n  " };
                write!(f, "{lead}{rmgr}:")?;
                before = rmgr;
            }
            write!(f, " {kind} {}", compared.equal)?;
            if compared.equal < compared.records {
                write!(f, " OF {}", compared.records)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { records, equal, lines, bytes, .. } = self;
        write!(f, "{equal} of {records} records equal, {lines} lines, {bytes} bytes")
    }
}
