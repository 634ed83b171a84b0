//! Whether a store is, byte for byte, what PostgreSQL's own recovery makes of the same WAL.
//!
//! Both data directories stand behind the same shutdown checkpoint, and nobody runs on either. Every
//! file of both is looked at, and every byte is compared, but for these:
//!
//! ```text
//! masked      main and init forks    pd_lower .. pd_upper, and behind a heap tuple up to MAXALIGN:
//!                                    what was there before, and memory moves leave behind
//!             pd_checksum            of a page that differs there: it is verified instead
//!             free space map         all but the leaves: a hint that a server keeps in part only;
//!                                    the leaves are compared with a standby that keeps them
//! file ends   pages of zeros at the end count as not there
//! pg_control  checkpoint, minimum recovery point, settings; not its times and state
//! excluded    `files::Rule`, each counted
//! ```
//!
//! What is masked is told by the standby's page alone: a wrong page of ours cannot hide itself.

mod files;
mod flips;
mod mask;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use walfmt::checksum::page_checksum;
use walfmt::control::ControlFile;
use walfmt::page::{self, Page};
use walfmt::relation::{BLOCK_SIZE, BLOCKS_PER_FILE, BlockNumber};
use walfmt::{ForkNumber, Lsn};

use crate::identical::files::{Contents, Files, Rule};
use crate::identical::mask::{Mask, Masked};
use crate::standby::{Standby, control_file};

pub use flips::Flips;

/// How many differences are told; the rest is counted.
const TOLD_MAX: usize = 40;

/// Bytes read at a time.
const READ_SIZE: usize = 128 * BLOCK_SIZE;

/// A store and a standby, both at rest behind the same checkpoint.
#[derive(Debug)]
pub struct Directories {
    store: PathBuf,
    standby: PathBuf,
    /// The standby that free space maps are compared with.
    free_space: PathBuf,
    /// Where the base backup's WAL begins.
    redo: Lsn,
    checksums: bool,
    files: Files,
}

/// What was compared, and what differs.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Files compared, by kind.
    pub files: BTreeMap<&'static str, u64>,
    /// Pages compared, by kind; pages of the longer of two files count.
    pub pages: BTreeMap<&'static str, u64>,
    /// Bytes of files that have no pages, by kind.
    pub bytes: BTreeMap<&'static str, u64>,
    /// Pages of the standby that replay changed.
    pub changed_pages: u64,
    /// Masked bytes, by rule.
    pub masked: BTreeMap<Masked, Count>,
    /// Files not compared, by rule.
    pub excluded: BTreeMap<Rule, u64>,
    /// How many pages, files and fields differ, by kind.
    pub different: BTreeMap<&'static str, u64>,
    /// The first of them.
    pub told: Vec<Difference>,
}

/// How many bytes there are, and how many of them differ.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// All.
    pub bytes: u64,
    /// Those that are not the same in store and standby.
    pub different: u64,
}

/// Something that is not as in the standby.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The file, by its name in the data directory.
    pub file: String,
    /// The page in the file, if it has pages.
    pub page: Option<u64>,
    /// What differs.
    pub what: String,
}

impl Directories {
    /// Looks at both directories, and that they may be compared: both control files name the
    /// checkpoint at `last_checkpoint`. Free space maps are compared with those of `free_space`,
    /// which is the same standby if that has no checksums, see [`Standby`].
    ///
    /// # Errors
    /// They do not; or a directory cannot be read.
    pub fn new(
        store: &Path,
        standby: &Standby,
        free_space: &Standby,
        last_checkpoint: Lsn,
    ) -> Result<Self> {
        let ours = control_file(store)?;
        ensure!(
            ours.check_point == last_checkpoint,
            "the store's restart point is {}, the leader's shutdown checkpoint {last_checkpoint}",
            ours.check_point
        );
        let theirs = standby.control_file()?;
        ensure!(theirs.check_point == last_checkpoint, "the standby's is {}", theirs.check_point);
        let keeps = free_space.control_file()?;
        ensure!(keeps.check_point == last_checkpoint, "the second's is {}", keeps.check_point);
        ensure!(
            !keeps.hint_bits_are_logged(),
            "a standby with checksums or wal_log_hints does not keep its free space maps"
        );
        Ok(Self {
            store: store.to_owned(),
            standby: standby.directory().to_owned(),
            free_space: free_space.directory().to_owned(),
            redo: standby.redo(),
            checksums: theirs.data_checksum_version != 0,
            files: Files::of(store, standby.directory())?,
        })
    }

    /// Compares everything.
    ///
    /// # Errors
    /// A file cannot be read; or replay has not changed a single page of the standby, so that
    /// there is nothing to be seen.
    pub fn compare(&self) -> Result<Comparison> {
        let mut comparison =
            Comparison { excluded: self.files.excluded.clone(), ..Comparison::default() };
        for (name, who) in &self.files.only_one {
            comparison.differs(name, "name", None, format!("only the {who} has it"));
        }
        for (name, contents) in &self.files.both {
            self.compare_file(name, *contents, None, &mut comparison)?;
        }
        let controls = (control_file(&self.store)?, control_file(&self.standby)?);
        compare_controls(&controls.0, &controls.1, &mut comparison);
        ensure!(
            comparison.changed_pages > 0,
            "no page of the standby is newer than the backup, which began at {}",
            self.redo
        );
        Ok(comparison)
    }

    /// Compares the pages `range` of a file, or all of it.
    fn compare_file(
        &self,
        name: &str,
        contents: Contents,
        range: Option<Range<u64>>,
        comparison: &mut Comparison,
    ) -> Result<()> {
        let (ours, theirs) = (open(&self.store.join(name))?, open(&self.judge_of(name, contents))?);
        let lengths = (ours.metadata()?.len(), theirs.metadata()?.len());
        let kind = contents.kind();
        *comparison.files.entry(kind).or_default() += 1;
        if let Contents::Bytes(_) = contents {
            let (mut left, mut right) = (vec![0; lengths.0 as usize], vec![0; lengths.1 as usize]);
            ours.read_exact_at(&mut left, 0).with_context(|| name.to_owned())?;
            theirs.read_exact_at(&mut right, 0).with_context(|| name.to_owned())?;
            *comparison.bytes.entry(kind).or_default() += lengths.1;
            if left != right {
                comparison.differs(name, kind, None, differences(&left, &right));
            }
            return Ok(());
        }
        for (who, length) in [("store", lengths.0), ("standby", lengths.1)] {
            if !length.is_multiple_of(BLOCK_SIZE as u64) {
                let what = format!("the {who}'s has {length} bytes and ends in mid-page");
                comparison.differs(name, kind, None, what);
            }
        }
        let pages = lengths.0.max(lengths.1).div_ceil(BLOCK_SIZE as u64);
        let range = range.unwrap_or(0..pages);
        let (mut left, mut right) = (vec![0; READ_SIZE], vec![0; READ_SIZE]);
        let mut next = range.start;
        while next < range.end {
            read_or_zeros(&ours, &mut left, next).with_context(|| name.to_owned())?;
            read_or_zeros(&theirs, &mut right, next).with_context(|| name.to_owned())?;
            let pairs = left.as_chunks().0.iter().zip(right.as_chunks().0);
            for ((ours, theirs), number) in pairs.zip(next..range.end) {
                self.compare_page(name, contents, number, ours, theirs, comparison);
            }
            next += (READ_SIZE / BLOCK_SIZE) as u64;
        }
        Ok(())
    }

    /// The standby's file that a file of the store is held against.
    fn judge_of(&self, name: &str, contents: Contents) -> PathBuf {
        match contents {
            Contents::Fork(ForkNumber::FreeSpace, _) => self.free_space.join(name),
            _ => self.standby.join(name),
        }
    }

    fn compare_page(
        &self,
        name: &str,
        contents: Contents,
        number: u64,
        ours: &Page,
        theirs: &Page,
        comparison: &mut Comparison,
    ) {
        let kind = contents.kind();
        *comparison.pages.entry(kind).or_default() += 1;
        let Contents::Fork(fork, file_number) = contents else {
            if ours != theirs {
                comparison.differs(name, kind, Some(number), differences(ours, theirs));
            }
            return;
        };
        let block = file_number * BLOCKS_PER_FILE + number as BlockNumber;
        comparison.changed_pages += u64::from(page::lsn(theirs) > self.redo);
        let mask = Mask::of(fork, block, theirs);
        comparison.count_masked(&mask, ours, theirs);
        if ours == theirs {
            return;
        }
        let (mut left, mut right) = (*ours, *theirs);
        if self.checksums && *ours != [0; BLOCK_SIZE] {
            let (found, expected) = (page::checksum(ours), page_checksum(ours, block));
            if found != expected {
                let what = format!("the checksum is {found:#06x}, must be {expected:#06x}");
                comparison.differs(name, kind, Some(number), what);
                return;
            }
            mask::clear_checksum(&mut left);
            mask::clear_checksum(&mut right);
        }
        mask.apply(&mut left);
        mask.apply(&mut right);
        if left != right {
            let (ours, theirs) = (page::lsn(ours), page::lsn(theirs));
            let lsns = format!("LSN {ours} for {theirs}, {}", differences(&left, &right));
            comparison.differs(name, kind, Some(number), lsns);
        }
    }
}

impl Comparison {
    /// How many pages were compared.
    #[must_use]
    pub fn pages_compared(&self) -> u64 {
        self.pages.values().sum()
    }

    /// Whether nothing differs.
    #[must_use]
    pub fn is_identical(&self) -> bool {
        self.different.is_empty()
    }

    /// # Errors
    /// Something differs: the error tells the first of it.
    pub fn ensure_identical(&self) -> Result<()> {
        let told: Vec<String> = self.told.iter().map(ToString::to_string).collect();
        ensure!(self.is_identical(), "differences {:?}:\n{}", self.different, told.join("\n"));
        Ok(())
    }

    fn differs(&mut self, file: &str, kind: &'static str, page: Option<u64>, what: String) {
        *self.different.entry(kind).or_default() += 1;
        if self.told.len() < TOLD_MAX {
            self.told.push(Difference { file: file.to_owned(), page, what });
        }
    }

    fn count_masked(&mut self, mask: &Mask, ours: &Page, theirs: &Page) {
        for (range, rule) in mask.ranges() {
            let (left, right) = (&ours[range.clone()], &theirs[range.clone()]);
            let count = self.masked.entry(*rule).or_default();
            count.bytes += range.len() as u64;
            if left != right {
                let different = left.iter().zip(right).filter(|(left, right)| left != right);
                count.different += different.count() as u64;
            }
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: u64 = self.files.values().sum();
        writeln!(f, "{} pages in {files} files compared:", self.pages_compared())?;
        for (kind, files) in &self.files {
            let pages = self.pages.get(kind).map(|pages| format!("{pages} pages in "));
            let bytes = self.bytes.get(kind).map(|bytes| format!("{bytes} bytes in "));
            let different = self.different.get(kind).copied().unwrap_or_default();
            let size = pages.or(bytes).unwrap_or_default();
            writeln!(f, "  {kind:12} {size}{files} files, {different} different")?;
        }
        for (kind, different) in &self.different {
            if !self.files.contains_key(kind) {
                writeln!(f, "  {kind:12} {different} different")?;
            }
        }
        writeln!(f, "  replay changed {} of the pages", self.changed_pages)?;
        for (rule, Count { bytes, different }) in &self.masked {
            writeln!(f, "  masked: {bytes} bytes, {rule}; {different} of them differ")?;
        }
        for (rule, files) in &self.excluded {
            writeln!(f, "  not compared: {files} files, {rule}")?;
        }
        write!(f, "  {}", if self.is_identical() { "identical" } else { "NOT IDENTICAL" })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.page {
            Some(page) => write!(f, "{} page {page}: {}", self.file, self.what),
            None => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

/// The fields of `pg_control` that recovery decides.
fn compare_controls(ours: &ControlFile, theirs: &ControlFile, comparison: &mut Comparison) {
    // A setting, or a position: what a field's text is does not matter.
    let fields = |control: &ControlFile| {
        [
            ("system identifier", format!("{}", control.system_identifier)),
            ("checkpoint", format!("{} {:?}", control.check_point, control.check_point_copy)),
            ("minimum recovery point", format!("{}", control.min_recovery_point)),
            ("its timeline", format!("{:?}", control.min_recovery_point_timeline)),
            ("backup start", format!("{}", control.backup_start_point)),
            ("backup end", format!("{}", control.backup_end_point)),
            ("backup end required", format!("{}", control.backup_end_required)),
            ("wal_level", format!("{}", control.wal_level)),
            ("wal_log_hints", format!("{}", control.wal_log_hints)),
            ("max_connections", format!("{}", control.max_connections)),
            ("max_worker_processes", format!("{}", control.max_worker_processes)),
            ("max_wal_senders", format!("{}", control.max_wal_senders)),
            ("max_prepared_transactions", format!("{}", control.max_prepared_transactions)),
            ("max_locks_per_transaction", format!("{}", control.max_locks_per_transaction)),
            ("track_commit_timestamp", format!("{}", control.track_commit_timestamp)),
            ("checksums", format!("{}", control.data_checksum_version)),
        ]
    };
    for ((field, ours), (_, theirs)) in fields(ours).into_iter().zip(fields(theirs)) {
        if ours != theirs {
            let what = format!("{field} is {ours}, in the standby {theirs}");
            comparison.differs("global/pg_control", "control", None, what);
        }
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Fills `buffer` from page `number` on, with zeros behind the end of the file.
fn read_or_zeros(file: &File, buffer: &mut [u8], number: u64) -> std::io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let place = number * BLOCK_SIZE as u64 + filled as u64;
        match file.read_at(&mut buffer[filled..], place)? {
            0 => break,
            length => filled += length,
        }
    }
    buffer[filled..].fill(0);
    Ok(())
}

/// The first places where two files or pages differ.
fn differences(ours: &[u8], theirs: &[u8]) -> String {
    let length = ours.len().min(theirs.len());
    let places = (0..length).filter(|at| ours[*at] != theirs[*at]);
    let count = places.clone().count();
    let shown: Vec<String> = places
        .take(12)
        .map(|at| format!("@{at} {:02x} for {:02x}", ours[at], theirs[at]))
        .collect();
    let lengths = if ours.len() == theirs.len() {
        String::new()
    } else {
        format!("{} bytes long, not {}; ", ours.len(), theirs.len())
    };
    format!("{lengths}{count} bytes differ: {}", shown.join(", "))
}
