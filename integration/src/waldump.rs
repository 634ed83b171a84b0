//! `pg_waldump`'s output, record by record.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{Context, Result, bail};
use walfmt::Lsn;

use crate::endpoint::Endpoint;

/// What `pg_waldump` prints of a record, as far as it is the same for every resource manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpedRecord {
    /// Where it begins.
    pub start: Lsn,
    /// Where the record before it begins.
    pub prev: Lsn,
    /// The resource manager's name.
    pub rmgr: String,
    /// The transaction, or 0.
    pub xid: u32,
    /// Length in bytes, header included.
    pub total_length: u32,
    /// The same without page images (as they are stored, perhaps compressed).
    pub length_without_images: u32,
    /// How many pages it refers to.
    pub blocks: usize,
}

/// A running `pg_waldump`, to be read to its end.
#[derive(Debug)]
pub struct Waldump {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Waldump {
    /// Starts `pg_waldump` over the segments in `directory`, from `start` to the end of WAL.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(server: &Endpoint, directory: &Path, start: Lsn) -> Result<Self> {
        let mut command = server.account.command(server.binaries.program("pg_waldump"));
        command.arg("-p").arg(directory).arg("-s").arg(start.to_string());
        // It says on its standard error how the WAL ended, which always is an error to it.
        command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start pg_waldump")?;
        let stdout = child.stdout.take().context("pg_waldump has no standard output")?;
        Ok(Self { child, lines: BufReader::with_capacity(1 << 20, stdout).lines() })
    }

    /// The next record; nothing at the end.
    ///
    /// # Errors
    /// A line is not what `pg_waldump` is known to print.
    pub fn next_record(&mut self) -> Result<Option<DumpedRecord>> {
        for line in self.lines.by_ref() {
            let line = line.context("cannot read from pg_waldump")?;
            if line.starts_with("rmgr: ") {
                return DumpedRecord::parse(&line).with_context(|| line).map(Some);
            }
            // Where a range begins inside a record, it says how much it leaves out.
            if !line.is_empty() && !line.starts_with("first record is after ") {
                bail!("pg_waldump printed {line:?}");
            }
        }
        Ok(None)
    }
}

impl Drop for Waldump {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl DumpedRecord {
    /// Reads one line:
    ///
    /// ```text
    /// rmgr: Heap        len (rec/tot):     59/    59, tx:        735, lsn: 0/015A3B78,
    /// prev 0/015A3B38, desc: INSERT off 3 flags 0x08, blkref #0: rel 1663/5/16384 blk 0
    /// ```
    ///
    /// # Errors
    /// A field is missing.
    pub fn parse(line: &str) -> Result<Self> {
        let between = |before: &str, after: &str| -> Result<&str> {
            let (_, rest) = line.split_once(before).with_context(|| format!("no {before:?}"))?;
            let (field, _) = rest.split_once(after).with_context(|| format!("no {after:?}"))?;
            Ok(field.trim())
        };
        let lengths = between("len (rec/tot): ", ",")?;
        let (without_images, total) = lengths.split_once('/').context("one length only")?;
        Ok(Self {
            start: between("lsn: ", ",")?.parse().context("lsn")?,
            prev: between("prev ", ",")?.parse().context("prev")?,
            rmgr: between("rmgr: ", "len (rec/tot): ")?.to_owned(),
            xid: between("tx: ", ",")?.parse().context("tx")?,
            total_length: total.trim().parse().context("total length")?,
            length_without_images: without_images.trim().parse().context("record length")?,
            blocks: line.matches(", blkref #").count(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read() {
        let line = "rmgr: Btree       len (rec/tot):     53/  5489, tx:        735, \
            lsn: 0/015A3B78, prev 1/015A3B38, desc: INSERT_LEAF off 3, \
            blkref #0: rel 1663/5/16384 blk 1 FPW, blkref #1: rel 1663/5/16384 fork fsm blk 0";
        let expected = DumpedRecord {
            start: Lsn(0x15A_3B78),
            prev: Lsn(0x1_015A_3B38),
            rmgr: "Btree".to_owned(),
            xid: 735,
            total_length: 5489,
            length_without_images: 53,
            blocks: 2,
        };
        assert_eq!(DumpedRecord::parse(line).expect("a line"), expected);
        assert!(DumpedRecord::parse("rmgr: Btree len (rec/tot): 53, tx: 1").is_err());
    }
}
