//! Gist.
//!
//! Rules: `src/backend/access/rmgrdesc/gistdesc.c`.

use super::{Out, TextError};
use crate::record::Record;
use crate::rmgr::gist::{self, Delete, PageDelete, PageReuse, PageSplit};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    Some(match info {
        gist::XLOG_GIST_PAGE_UPDATE => "PAGE_UPDATE",
        gist::XLOG_GIST_DELETE => "DELETE",
        gist::XLOG_GIST_PAGE_REUSE => "PAGE_REUSE",
        gist::XLOG_GIST_PAGE_SPLIT => "PAGE_SPLIT",
        gist::XLOG_GIST_PAGE_DELETE => "PAGE_DELETE",
        gist::XLOG_GIST_ASSIGN_LSN => "ASSIGN_LSN",
        _ => return None,
    })
}

pub(super) fn describe(
    record: &Record<'_>,
    version: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    let main_data = record.main_data;
    match record.header.opcode() {
        gist::XLOG_GIST_PAGE_REUSE => {
            let reuse = PageReuse::read(main_data, version)?;
            out.text("rel ").locator(reuse.locator).text("; blk ").uint(reuse.block).text("; ");
            conflict_horizon(version, out);
            full_xid(reuse.conflict_horizon, out);
            catalog(reuse.is_catalog, version, out);
        }
        gist::XLOG_GIST_DELETE => {
            let delete = Delete::read(main_data, version)?;
            out.text("delete: ");
            conflict_horizon(version, out);
            out.xid(delete.conflict_horizon);
            out.text(", nitems: ").uint(delete.deleted.len() as u64);
            catalog(delete.is_catalog, version, out);
        }
        gist::XLOG_GIST_PAGE_SPLIT => {
            let split = PageSplit::read(main_data)?;
            out.text("page_split: splits to ").uint(split.pages).text(" pages");
        }
        gist::XLOG_GIST_PAGE_DELETE => {
            let delete = PageDelete::read(main_data)?;
            out.text("deleteXid ");
            full_xid(delete.delete_xid, out);
            out.text("; downlink ").uint(delete.parent_item);
        }
        _ => {}
    }
    Ok(())
}

fn conflict_horizon(version: &Version, out: &mut Out<'_>) {
    out.text(if version.text.says_conflict_horizon {
        "snapshotConflictHorizon "
    } else {
        "latestRemovedXid "
    });
}

fn catalog(is_catalog: bool, version: &Version, out: &mut Out<'_>) {
    if version.text.says_catalog {
        out.text(", isCatalogRel ").letter(is_catalog);
    }
}

/// `%u:%u`: a 64-bit transaction id's epoch, and the id.
fn full_xid(xid: u64, out: &mut Out<'_>) {
    out.uint(xid >> 32).text(":").uint(xid & 0xFFFF_FFFF);
}

#[cfg(test)]
mod tests {
    use crate::rmgr::RmgrId;
    use crate::text::testing;

    #[test]
    fn the_catalog_flag_is_in_the_record_before_it_is_in_the_text() {
        let delete = [7, 0, 0, 0, 1, 0, 1, 0, 9, 0];
        let text = |major, bytes: &[u8]| testing::text(major, RmgrId::GIST, 0x10, bytes, &[]);
        let without = [&delete[..6], &delete[8..]].concat();
        assert_eq!(text(15, &without), "DELETE delete: latestRemovedXid 7, nitems: 1");
        assert_eq!(text(16, &delete), "DELETE delete: snapshotConflictHorizon 7, nitems: 1");
        let said = "DELETE delete: snapshotConflictHorizon 7, nitems: 1, isCatalogRel T";
        assert_eq!(text(17, &delete), said);
        assert!(text(17, &without).contains("cannot be read"));
    }

    #[test]
    fn a_reused_page_has_a_transaction_with_its_epoch() {
        let mut reuse = [1_u32, 2, 3, 4, 5, 6].map(u32::to_le_bytes).concat();
        let text = |major, bytes: &[u8]| testing::text(major, RmgrId::GIST, 0x20, bytes, &[]);
        assert_eq!(text(15, &reuse), "PAGE_REUSE rel 1/2/3; blk 4; latestRemovedXid 6:5");
        reuse.push(0);
        let said = "PAGE_REUSE rel 1/2/3; blk 4; snapshotConflictHorizon 6:5";
        assert_eq!(text(16, &reuse), said);
        assert_eq!(text(18, &reuse), format!("{said}, isCatalogRel F"));
    }
}
