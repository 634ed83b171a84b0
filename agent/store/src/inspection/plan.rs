//! What there is to be looked at.

use std::collections::BTreeMap;
use std::path::Path;

use walfmt::BlockNumber;
use walfmt::relation::BLOCKS_PER_FILE;
use walfmt::rmgr::relmap;
use walfmt::slru::{self, segment_number};
use walfmt::two_phase::xid_of_file_name;

use super::PAGE;
use super::findings::{Damage, DamageKind};
use crate::cleanup::{INIT_FILE, RelationFile};
use crate::disk::EntryKind;
use crate::error::FileError;
use crate::layout::{FILE_SIZE_MAX, Layout};
use crate::origins;

/// How much of a file one thread reads at a time: enough that they seldom meet, and little enough
/// that they end together. In bytes.
const PIECE: u64 = 64 << 20;

/// All files, in pieces.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) pieces: Vec<Piece>,
    pub(super) others: Vec<Other>,
    /// How many files of relations there are.
    pub(super) files: u64,
    /// What is wrong at first sight.
    pub(super) damages: Vec<Damage>,
    /// Files that are not known.
    pub(super) not_checked: Vec<String>,
}

/// A run of whole pages in a relation's file.
#[derive(Debug)]
pub(super) struct Piece {
    /// The file, relative to the data directory.
    pub(super) file: String,
    /// Where it begins in the file, in bytes.
    pub(super) offset: u64,
    /// Its length.
    pub(super) bytes: u64,
    /// Its first page, counted from the begin of the fork.
    pub(super) block: BlockNumber,
    /// Whether these are pages of a free space or visibility map.
    pub(super) is_map: bool,
}

/// A file that is not a relation's.
#[derive(Debug)]
pub(super) struct Other {
    pub(super) name: String,
    pub(super) kind: OtherKind,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum OtherKind {
    RelationMap,
    Slru,
    Prepared,
    Origins,
}

/// Name and length of a fork's files, by number.
type ForkFiles = BTreeMap<u32, (String, u64)>;

impl Plan {
    pub(super) fn make(layout: &Layout) -> Result<Self, FileError> {
        let mut plan = Self::default();
        plan.check_tablespaces(layout)?;
        plan.add_relations(layout, &layout.at("global"))?;
        for directory in layout.database_directories()? {
            plan.add_relations(layout, &directory)?;
        }
        let slrus =
            [&slru::CLOG, &slru::COMMIT_TS, &slru::MULTIXACT_OFFSETS, &slru::MULTIXACT_MEMBERS];
        for slru in slrus {
            let is_one = |name: &str| segment_number(name).is_some();
            plan.add_others(layout, slru.directory, OtherKind::Slru, is_one)?;
        }
        let is_one = |name: &str| xid_of_file_name(name).is_some();
        plan.add_others(layout, "pg_twophase", OtherKind::Prepared, is_one)?;
        if layout.metadata(&layout.at(origins::NAME))?.is_some() {
            plan.others.push(Other { name: origins::NAME.to_owned(), kind: OtherKind::Origins });
        }
        Ok(plan)
    }

    /// A link that leads nowhere would hide all that should be there.
    fn check_tablespaces(&mut self, layout: &Layout) -> Result<(), FileError> {
        for entry in layout.list_existing(&layout.at("pg_tblspc"))? {
            let path = layout.at("pg_tblspc").join(&entry.name);
            if entry.kind == EntryKind::Link && layout.metadata(&path)?.is_none() {
                let kind = DamageKind::Whole("the tablespace is not there".to_owned());
                self.damages.push(Damage { file: relative(layout, &path), block: None, kind });
            }
        }
        Ok(())
    }

    fn add_relations(&mut self, layout: &Layout, directory: &Path) -> Result<(), FileError> {
        let entries = layout.list(directory)?;
        let mut forks: BTreeMap<(&str, &str), ForkFiles> = BTreeMap::new();
        for entry in &entries {
            let path = directory.join(&entry.name);
            let name = relative(layout, &path);
            if let Some(file) = RelationFile::parse(&entry.name) {
                let length = layout.metadata(&path)?.map_or(0, |metadata| metadata.length);
                let files = forks.entry((file.relation, file.fork)).or_default();
                files.insert(file.number, (name, length));
            } else if entry.name == relmap::FILE_NAME {
                self.others.push(Other { name, kind: OtherKind::RelationMap });
            } else if !(["PG_VERSION", "pg_control"].contains(&&*entry.name)
                || entry.name.starts_with(INIT_FILE))
            {
                self.not_checked.push(name);
            }
        }
        for ((_, fork), files) in forks {
            self.add_fork(["fsm", "vm"].contains(&fork), files);
        }
        Ok(())
    }

    /// The files of one fork: full ones, one that need not be, and after that only empty ones.
    fn add_fork(&mut self, is_map: bool, files: ForkFiles) {
        let last = files.iter().rev().find(|(_, (_, length))| *length > 0);
        let last = last.map_or(0, |(number, _)| *number);
        let mut expected_number = 0;
        for (number, (file, length)) in files {
            self.files += 1;
            let expected = if number <= last && number != expected_number {
                Some("the file before it to be there")
            } else if number < last && length != FILE_SIZE_MAX {
                Some("1 GB, as a later file is not empty")
            } else if length > FILE_SIZE_MAX {
                Some("at most 1 GB")
            } else if !length.is_multiple_of(PAGE) {
                Some("whole pages of 8192 bytes")
            } else {
                None
            };
            if let Some(expected) = expected {
                let kind = DamageKind::Length { expected, found: length };
                self.damages.push(Damage { file: file.clone(), block: None, kind });
            }
            expected_number = number.saturating_add(1);
            let length = length.min(FILE_SIZE_MAX) / PAGE * PAGE;
            for offset in (0..length).step_by(PIECE as usize) {
                let block = u64::from(number) * u64::from(BLOCKS_PER_FILE) + offset / PAGE;
                // A number that high belongs to no relation: its length was found wrong above.
                let Ok(block) = BlockNumber::try_from(block) else { break };
                let bytes = PIECE.min(length - offset);
                self.pieces.push(Piece { file: file.clone(), offset, bytes, block, is_map });
            }
        }
    }

    fn add_others(
        &mut self,
        layout: &Layout,
        directory: &str,
        kind: OtherKind,
        is_one: impl Fn(&str) -> bool,
    ) -> Result<(), FileError> {
        for entry in layout.list_existing(&layout.at(directory))? {
            let name = format!("{directory}/{}", entry.name);
            if is_one(&entry.name) {
                self.others.push(Other { name, kind });
            } else {
                self.not_checked.push(name);
            }
        }
        Ok(())
    }
}

fn relative(layout: &Layout, path: &Path) -> String {
    path.strip_prefix(layout.root()).unwrap_or(path).display().to_string()
}
