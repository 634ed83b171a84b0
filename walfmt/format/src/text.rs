//! Records as text: what `pg_waldump` of the record's major prints of them, byte for byte.
//!
//! Each resource manager has a file here. Its `identify` gives the record's kind, its `describe` what
//! stands behind it; both take from `crate::rmgr` what a record contains, and know of majors only what the
//! [`Version`] row says.
//!
//! Rules: `XLogDumpDisplayRecord` in `src/bin/pg_waldump/pg_waldump.c`, `XLogRecGetBlockRefInfo` in
//! `src/backend/access/rmgrdesc/xlogdesc.c`, and the resource manager's own file beside it.

mod brin;
mod btree;
mod clog;
mod commit_ts;
mod database;
mod generic;
mod gin;
mod gist;
mod hash;
mod heap;
mod heap2;
mod logical_message;
mod multixact;
mod out;
mod relmap;
mod replication_origin;
mod sequence;
mod smgr;
mod spgist;
mod standby;
mod tablespace;
#[cfg(test)]
mod testing;
mod xact;
mod xlog;

pub use self::out::{LocalTime, Out, Utc, Zone};
use crate::cursor::CursorError;
use crate::image::Compression;
use crate::record::{BlockReference, Record};
use crate::relation::{BLOCK_SIZE, ForkNumber};
use crate::rmgr::RmgrId;
use crate::version::Version;

/// A record's contents are not what its kind needs: the text ends where that showed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Too few bytes.
    #[error(transparent)]
    Length(#[from] CursorError),
    /// Anything else.
    #[error("{0}")]
    Contents(String),
}

type Identify = fn(u8, &Version) -> Option<&'static str>;
type Describe = fn(&Record<'_>, &Version, &mut Out<'_>) -> Result<(), TextError>;

/// By number, as `src/include/access/rmgrlist.h`.
const RMGRS: [(Identify, Describe); 22] = [
    (xlog::identify, xlog::describe),
    (xact::identify, xact::describe),
    (smgr::identify, smgr::describe),
    (clog::identify, clog::describe),
    (database::identify, database::describe),
    (tablespace::identify, tablespace::describe),
    (multixact::identify, multixact::describe),
    (relmap::identify, relmap::describe),
    (standby::identify, standby::describe),
    (heap2::identify, heap2::describe),
    (heap::identify, heap::describe),
    (btree::identify, btree::describe),
    (hash::identify, hash::describe),
    (gin::identify, gin::describe),
    (gist::identify, gist::describe),
    (sequence::identify, sequence::describe),
    (spgist::identify, spgist::describe),
    (brin::identify, brin::describe),
    (commit_ts::identify, commit_ts::describe),
    (replication_origin::identify, replication_origin::describe),
    (generic::identify, generic::describe),
    (logical_message::identify, logical_message::describe),
];

/// The name of a record's kind (`rm_identify`), or nothing if the major knows none with this `xl_info`,
/// or the resource manager is an extension's.
#[must_use]
pub fn identify(rmgr: RmgrId, info: u8, version: &Version) -> Option<&'static str> {
    // XLR_INFO_MASK
    RMGRS.get(usize::from(rmgr.0)).and_then(|(identify, _)| identify(info & 0xF0, version))
}

/// Appends what the record says (`rm_desc`), without its kind and its blocks.
///
/// # Errors
/// [`TextError`] if the payload is not what the kind needs; `out` then ends where that showed.
pub fn describe(
    record: &Record<'_>,
    version: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    match RMGRS.get(usize::from(record.header.rmgr.0)) {
        Some((_, describe)) => describe(record, version, out),
        None => {
            out.text("rmid: ").uint(record.header.rmgr.0);
            Ok(())
        }
    }
}

/// What belongs to one of a record's pages (`XLogRecGetBlockData`): nothing if the record does not have the
/// page, or brings it whole instead.
fn block_data<'a>(record: &Record<'a>, id: u8) -> Option<&'a [u8]> {
    let block = record.blocks.iter().find(|block| block.id == id)?;
    (!block.data.is_empty()).then_some(block.data)
}

/// How many bytes of a record are page images, as they are in it.
#[must_use]
pub fn image_length(record: &Record<'_>) -> u32 {
    let images = record.blocks.iter().filter_map(|block| block.image.as_ref());
    // Part of a record, whose length is 4 bytes.
    images.map(|image| image.bytes.len() as u32).sum()
}

/// Appends the record's line, or with `details` (`--bkp-details`) its lines, with a newline at the end.
///
/// # Errors
/// [`TextError`] as [`describe`]; the text is whole even then, with the error in the place of what could
/// not be said.
pub fn write(
    record: &Record<'_>,
    version: &Version,
    details: bool,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    let header = &record.header;
    out.text("rmgr: ");
    match header.rmgr.name() {
        Some(name) => out.left(name, 11),
        None => out.left(&header.rmgr.to_string(), 11),
    };
    let length = header.total_length.saturating_sub(image_length(record));
    out.text(" len (rec/tot): ").right(length, 6).text("/").right(header.total_length, 6);
    out.text(", tx: ").right(header.xid.0, 10);
    out.text(", lsn: ").lsn_padded(record.start).text(", prev ").lsn_padded(header.prev);
    out.text(", desc: ");
    match identify(header.rmgr, header.info, version) {
        Some(kind) => out.text(kind).text(" "),
        None => out.text("UNKNOWN (").hex(header.info & 0xF0).text(") "),
    };
    let described = describe(record, version, out);
    if let Err(error) = &described {
        out.text(" (cannot be read: ").text(&error.to_string()).text(")");
    }
    write_blocks(record, details, out);
    described
}

fn write_blocks(record: &Record<'_>, details: bool, out: &mut Out<'_>) {
    if details {
        out.text("\n");
    }
    for block in &record.blocks {
        if details {
            write_block_details(block, out);
        } else {
            write_block(block, out);
        }
    }
    if !details {
        out.text("\n");
    }
}

fn write_block(block: &BlockReference<'_>, out: &mut Out<'_>) {
    out.text(", blkref #").uint(block.id).text(": rel ").locator(block.page.locator);
    if block.page.fork != ForkNumber::Main {
        out.text(" fork ").text(fork_name(block.page.fork));
    }
    out.text(" blk ").uint(block.page.block);
    if let Some(image) = &block.image {
        out.text(if image.apply { " FPW" } else { " FPW for WAL verification" });
    }
}

fn write_block_details(block: &BlockReference<'_>, out: &mut Out<'_>) {
    out.text("\tblkref #").uint(block.id).text(": rel ").locator(block.page.locator);
    out.text(" fork ").text(fork_name(block.page.fork)).text(" blk ").uint(block.page.block);
    if let Some(image) = &block.image {
        out.text(if image.apply { " (FPW)" } else { " (FPW for WAL verification)" });
        out.text("; hole: offset: ").uint(image.hole_offset);
        out.text(", length: ").uint(image.hole_length);
        let method = match image.compression {
            Compression::None => None,
            Compression::Pglz => Some("pglz"),
            Compression::Lz4 => Some("lz4"),
            Compression::Zstd => Some("zstd"),
        };
        if let Some(method) = method {
            let taken = usize::from(image.hole_length) + image.bytes.len();
            out.text(", compression saved: ").uint(BLOCK_SIZE.saturating_sub(taken) as u64);
            out.text(", method: ").text(method);
        }
    }
    out.text("\n");
}

/// A fork's name in text (`forkNames`).
const fn fork_name(fork: ForkNumber) -> &'static str {
    match fork {
        ForkNumber::Main => "main",
        ForkNumber::FreeSpace => "fsm",
        ForkNumber::VisibilityMap => "vm",
        ForkNumber::Init => "init",
    }
}
