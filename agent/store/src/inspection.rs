//! Whether a store at rest is sound: every page of every relation, and every other file that says
//! by itself whether it is whole.
//!
//! ```text
//! global, base/*, pg_tblspc/*  relation files    header and checksum of each page, its LSN; lengths
//!                              pg_filenode.map   magic and CRC
//! pg_xact, pg_multixact, ...   SLRU segments     lengths: their pages have no checksums
//! pg_twophase                  prepared          CRC
//! pg_logical                   origins           magic and CRC
//! global/pg_control                              CRC, before anything else
//! ```
//!
//! When can that be asked? A store that was stopped cleanly is sound, and no page of it is newer
//! than the control file's minimum recovery point. After an unclean stop, replay begins at the last
//! restart point and *rewinds*: pages may be torn, and of any time up to the archive's end, and both
//! are repaired on the way there. Until then nothing can be said of a page; nor of the pages of a
//! base backup before its end was replayed, and for the same reason.
//!
//! A page of a free space or visibility map that is damaged counts as zeros, for redo and for
//! servers: nothing is lost with it, and an unclean stop can leave one that no later replay touches.
//! Those are told apart. What cannot be seen from here: a file that is missing as a whole, changes
//! in what has no checksum, and whether the pages of a store that was stopped cleanly *on its way*
//! from the restart point are all of one time: each is sound, and a running agent says the rest.
//!
//! Rules: `PageIsVerifiedExtended` in `src/backend/storage/page/bufpage.c`, `scan_file` in
//! `src/bin/pg_checksums/pg_checksums.c`.

mod findings;
mod pages;
mod plan;

use std::num::NonZero;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use walfmt::Lsn;
use walfmt::control::ControlFile;
use walfmt::replication_state;
use walfmt::rmgr::relmap;
use walfmt::slru::PAGES_PER_SEGMENT;
use walfmt::two_phase::{self, xid_of_file_name};

use crate::control;
use crate::error::{FileError, NotConsistent, OpenError};
use crate::inspection::pages::PageReader;
use crate::inspection::plan::{Other, OtherKind, Plan};
use crate::layout::Layout;
use crate::lock::AtRest;
use crate::store::check_directory;

pub use findings::{Damage, DamageKind, Findings, Listing};

/// A store that stands still, about to be looked at. No agent can take it meanwhile.
#[derive(Debug)]
pub struct Inspection {
    layout: Layout,
    at_rest: AtRest,
    control: ControlFile,
    plan: Plan,
}

impl Inspection {
    /// Makes sure that this is a store and that nobody has it, and lists its files. Nothing in it is
    /// changed, now or later.
    ///
    /// # Errors
    /// [`OpenError`] as for an agent that would open it.
    pub fn begin(data_directory: &Path) -> Result<Self, OpenError> {
        let layout = Layout::new(data_directory)?;
        let control = ControlFile::from_bytes(&control::read(&layout)?)?;
        let layout = layout.of_version(control.version);
        check_directory(&layout, &control)?;
        let at_rest = AtRest::take(&layout)?;
        // As of now: the one above may be from before the last agent let go.
        let control = ControlFile::from_bytes(&control::read(&layout)?)?;
        check_directory(&layout, &control)?;
        let plan = Plan::make(&layout)?;
        Ok(Self { layout, at_rest, control, plan })
    }

    /// Whether pages can be judged at all.
    ///
    /// # Errors
    /// [`NotConsistent`] if pages may be torn, and newer than anybody knows, without a fault.
    pub fn consistency(&self) -> Result<(), NotConsistent> {
        if self.at_rest.after_unclean_stop {
            return Err(NotConsistent::UncleanStop);
        }
        let start = self.control.backup_start_point;
        if start.is_valid() || self.control.backup_end_point.is_valid() {
            return Err(NotConsistent::BackupEnd { start });
        }
        Ok(())
    }

    /// No page is newer than this, in a store that is [consistent](Self::consistency).
    #[must_use]
    pub const fn newest(&self) -> Lsn {
        self.control.min_recovery_point
    }

    /// Whether pages have checksums. Without, what they contain cannot be checked.
    #[must_use]
    pub const fn has_checksums(&self) -> bool {
        self.control.data_checksum_version != 0
    }

    /// How many bytes of relations there are to read.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.plan.pieces.iter().map(|piece| piece.bytes).sum()
    }

    /// Reads and checks everything, with this many threads. `progress` counts the bytes of
    /// relations on the way.
    ///
    /// # Errors
    /// [`OpenError`] if somebody has taken the store meanwhile, so that nothing found says anything.
    /// A file that cannot be read is damage.
    pub fn run(self, threads: NonZero<usize>, progress: &AtomicU64) -> Result<Findings, OpenError> {
        let newest = self.consistency().is_ok().then_some(self.newest());
        let next = AtomicUsize::new(0);
        let work = || {
            let mut reader = PageReader::new(&self.layout, self.has_checksums(), newest);
            while let Some(piece) = self.plan.pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                reader.read(piece, progress);
            }
            reader.findings
        };
        let mut findings = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads.get()).map(|_| scope.spawn(work)).collect();
            let mut all = Findings::default();
            for thread in threads {
                match thread.join() {
                    Ok(findings) => all.add(findings),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            all
        });
        for other in &self.plan.others {
            self.check_other(other, &mut findings);
        }
        for damage in self.plan.damages {
            findings.damages.push(damage);
        }
        findings.files = self.plan.files;
        findings.not_checked = self.plan.not_checked;
        findings.sort();
        self.at_rest.check()?;
        Ok(findings)
    }

    fn check_other(&self, other: &Other, findings: &mut Findings) {
        let path = self.layout.at(&other.name);
        let version = self.control.version;
        let read = || found(self.layout.read(&path));
        let checked = match other.kind {
            OtherKind::RelationMap => {
                findings.relation_maps += 1;
                read().and_then(|bytes| relmap::check_file(&bytes, version).map_err(whole))
            }
            OtherKind::Slru => match self.layout.metadata(&path) {
                Ok(metadata) => {
                    let found = metadata.map_or(0, |metadata| metadata.length);
                    findings.slru_pages += found / PAGE;
                    let whole = found.is_multiple_of(PAGE) && found <= PAGES_PER_SEGMENT * PAGE;
                    let expected = "whole pages of 8192 bytes, at most 32";
                    if whole { Ok(()) } else { Err(DamageKind::Length { expected, found }) }
                }
                Err(error) => Err(DamageKind::Unreadable(error.source.to_string())),
            },
            OtherKind::Prepared => {
                findings.prepared_transactions += 1;
                // By its name it is one.
                let xid = Path::new(&other.name).file_name().and_then(|name| name.to_str());
                let xid = xid.and_then(xid_of_file_name).unwrap_or_default();
                found(read_large(&self.layout, &path)).and_then(|bytes| {
                    two_phase::read_file(&bytes, xid, version).map(drop).map_err(whole)
                })
            }
            OtherKind::Origins => read()
                .and_then(|bytes| replication_state::read_file(&bytes).map(drop).map_err(whole)),
        };
        if let Err(kind) = checked {
            findings.damages.push(Damage { file: other.name.clone(), block: None, kind });
        }
    }
}

/// A page's length in a file, in bytes.
const PAGE: u64 = walfmt::BLOCK_SIZE as u64;

fn whole(error: impl std::fmt::Display) -> DamageKind {
    DamageKind::Whole(error.to_string())
}

fn found(read: Result<Option<Vec<u8>>, FileError>) -> Result<Vec<u8>, DamageKind> {
    match read {
        Ok(bytes) => bytes.ok_or_else(|| DamageKind::Unreadable("it is not there".to_owned())),
        Err(error) => Err(DamageKind::Unreadable(error.source.to_string())),
    }
}

/// All of a two-phase file: the one that may be longer than those that are read whole elsewhere.
fn read_large(layout: &Layout, path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let Some(file) = layout.open_existing(path)? else { return Ok(None) };
    let length = file.metadata()?.length.min(crate::two_phase::FILE_BYTES_MAX);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    let count = file.read_at(0, &mut bytes)?;
    bytes.truncate(count);
    Ok(Some(bytes))
}
