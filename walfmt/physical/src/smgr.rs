//! What Storage's records do: create and shorten the files of relations.
//!
//! Rules: `smgr_redo` in `src/backend/catalog/storage.c`.

use walfmt::Record;
use walfmt::relation::{ForkNumber, PageId, RelFork};
use walfmt::rmgr::smgr::{self, Truncate};

use crate::fault::Fault;
use crate::{PageAccess, PageChange, freespace, visibilitymap};

/// A change to a relation's files.
pub(crate) enum FileChange {
    Create(RelFork),
    Truncate(Truncate),
}

/// Reads a Storage record.
pub(crate) fn read(record: &Record<'_>) -> Result<FileChange, Fault> {
    match record.header.opcode() {
        smgr::CREATE => Ok(FileChange::Create(smgr::read_create(record.main_data)?)),
        smgr::TRUNCATE => Ok(FileChange::Truncate(Truncate::read(record.main_data)?)),
        opcode => Err(Fault::unknown_opcode(opcode)),
    }
}

impl FileChange {
    pub(crate) fn apply<A: PageAccess>(
        &self,
        record: &Record<'_>,
        access: &mut A,
    ) -> Result<(), A::Error> {
        match self {
            Self::Create(fork) => access.create_fork(*fork),
            Self::Truncate(truncate) => apply_truncate(truncate, record, access),
        }
    }
}

/// First what the maps' last pages say of removed blocks is forgotten: the heap may grow again.
/// The main fork is created if it is missing; a later record will have dropped it.
fn apply_truncate<A: PageAccess>(
    truncate: &Truncate,
    record: &Record<'_>,
    access: &mut A,
) -> Result<(), A::Error> {
    let Truncate { blocks: heap_blocks, locator, flags } = *truncate;
    let fork = |fork| RelFork { locator, fork };
    let map_page = |fork, block| PageId { locator, fork, block };

    access.create_fork(fork(ForkNumber::Main))?;
    if flags & smgr::TRUNCATE_FSM != 0 {
        for (block, _) in freespace::cut_pages(heap_blocks) {
            let page = map_page(ForkNumber::FreeSpace, block);
            access.change_page(record, page, PageChange::TruncateFreeSpace { heap_blocks })?;
        }
    }
    if flags & smgr::TRUNCATE_VM != 0
        && let Some(block) = visibilitymap::boundary_block(heap_blocks)
    {
        let page = map_page(ForkNumber::VisibilityMap, block);
        access.change_page(record, page, PageChange::TruncateVisibility { heap_blocks })?;
    }

    if flags & smgr::TRUNCATE_HEAP != 0 {
        access.truncate_fork(fork(ForkNumber::Main), heap_blocks)?;
    }
    if flags & smgr::TRUNCATE_FSM != 0 {
        let blocks = freespace::blocks_after_truncation(heap_blocks);
        access.truncate_fork(fork(ForkNumber::FreeSpace), blocks)?;
    }
    if flags & smgr::TRUNCATE_VM != 0 {
        let blocks = visibilitymap::blocks_after_truncation(heap_blocks);
        access.truncate_fork(fork(ForkNumber::VisibilityMap), blocks)?;
    }
    Ok(())
}
