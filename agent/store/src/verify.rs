//! The leader's own word on a page: the image that a server with `wal_consistency_checking`
//! attaches to each record, of the page as it is after the change.
//!
//! What may differ is masked on both sides, by PostgreSQL's rules and no stricter ones: hints,
//! unused space, and what redo leaves out on purpose. Not looked at, as in a server: a page whose
//! image was put in its place, one that is newer than the record, and one that is missing.
//!
//! Rules: `verifyBackupPageConsistency` in `src/backend/access/transam/xlogrecovery.c`.

use walfmt::bytes::u8_at;
use walfmt::relation::{BLOCK_SIZE, PageId};
use walfmt::{BlockReference, Record};
use walfmt_physical::{Page, mask, page};

use crate::error::PageFault;

/// What a test does to each page after its redo, before it is verified.
pub type BrokenRule = fn(&Record<'_>, &mut Page);

/// Compares a page with the image that the record carries of it, if there is one to compare with.
/// Gives whether there was.
pub(crate) fn verify(
    record: &Record<'_>,
    block: &BlockReference<'_>,
    page_id: PageId,
    replayed: &Page,
) -> Result<bool, PageFault> {
    let Some(image) = block.image.as_ref().filter(|image| !image.apply) else {
        return Ok(false);
    };
    if page::lsn(replayed) > record.end {
        return Ok(false);
    }
    let mut expected: Page = [0; BLOCK_SIZE];
    image
        .restore(&mut expected)
        .map_err(|source| PageFault::Image { page: page_id, what: source.to_string() })?;
    let mut found = *replayed;
    for page in [&mut expected, &mut found] {
        mask::mask(record.header.rmgr, page_id, page)
            .map_err(|source| PageFault::Image { page: page_id, what: source.to_string() })?;
    }
    match expected.iter().zip(&found).position(|(expected, found)| expected != found) {
        None => Ok(true),
        Some(offset) => Err(PageFault::Differs {
            page: page_id,
            rmgr: record.header.rmgr,
            opcode: record.header.opcode(),
            offset,
            expected: u8_at(&expected, offset),
            found: u8_at(&found, offset),
        }),
    }
}
