//! Hash.
//!
//! Rules: `src/backend/access/rmgrdesc/hashdesc.c`.

use super::{Out, TextError};
use crate::record::Record;
use crate::rmgr::hash::{
    self, AddOverflowPage, Delete, InitMetaPage, MovePageContents, SplitAllocatePage,
    SplitComplete, SqueezePage, VacuumOnePage,
};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    Some(match info {
        hash::XLOG_HASH_INIT_META_PAGE => "INIT_META_PAGE",
        hash::XLOG_HASH_INIT_BITMAP_PAGE => "INIT_BITMAP_PAGE",
        hash::XLOG_HASH_INSERT => "INSERT",
        hash::XLOG_HASH_ADD_OVFL_PAGE => "ADD_OVFL_PAGE",
        hash::XLOG_HASH_SPLIT_ALLOCATE_PAGE => "SPLIT_ALLOCATE_PAGE",
        hash::XLOG_HASH_SPLIT_PAGE => "SPLIT_PAGE",
        hash::XLOG_HASH_SPLIT_COMPLETE => "SPLIT_COMPLETE",
        hash::XLOG_HASH_MOVE_PAGE_CONTENTS => "MOVE_PAGE_CONTENTS",
        hash::XLOG_HASH_SQUEEZE_PAGE => "SQUEEZE_PAGE",
        hash::XLOG_HASH_DELETE => "DELETE",
        hash::XLOG_HASH_SPLIT_CLEANUP => "SPLIT_CLEANUP",
        hash::XLOG_HASH_UPDATE_META_PAGE => "UPDATE_META_PAGE",
        hash::XLOG_HASH_VACUUM_ONE_PAGE => "VACUUM_ONE_PAGE",
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
        hash::XLOG_HASH_INIT_META_PAGE => {
            let meta = InitMetaPage::read(main_data)?;
            out.text("num_tuples ").general(meta.tuples);
            out.text(", fillfactor ").uint(meta.fill_factor);
        }
        hash::XLOG_HASH_INIT_BITMAP_PAGE => {
            out.text("bmsize ").uint(hash::read_init_bitmap_page(main_data)?);
        }
        hash::XLOG_HASH_INSERT => {
            out.text("off ").uint(hash::read_insert(main_data)?);
        }
        hash::XLOG_HASH_ADD_OVFL_PAGE => {
            let page = AddOverflowPage::read(main_data)?;
            out.text("bmsize ").uint(page.bitmap_size);
            out.text(", bmpage_found ").letter(page.is_used_again);
        }
        hash::XLOG_HASH_SPLIT_ALLOCATE_PAGE => {
            let split = SplitAllocatePage::read(main_data)?;
            out.text("new_bucket ").uint(split.new_bucket);
            out.text(", meta_page_masks_updated ").letter(split.updates_masks());
            out.text(", issplitpoint_changed ").letter(split.updates_split_point());
        }
        hash::XLOG_HASH_SPLIT_COMPLETE => {
            let split = SplitComplete::read(main_data)?;
            out.text("old_bucket_flag ").uint(split.old_bucket_flag);
            out.text(", new_bucket_flag ").uint(split.new_bucket_flag);
        }
        hash::XLOG_HASH_MOVE_PAGE_CONTENTS => {
            let moved = MovePageContents::read(main_data)?;
            out.text("ntups ").uint(moved.tuples);
            out.text(", is_primary ").letter(moved.is_bucket_page);
        }
        hash::XLOG_HASH_SQUEEZE_PAGE => {
            let squeeze = SqueezePage::read(main_data)?;
            out.text("prevblkno ").uint(squeeze.prev).text(", nextblkno ").uint(squeeze.next);
            out.text(", ntups ").uint(squeeze.tuples);
            out.text(", is_primary ").letter(squeeze.is_bucket_page);
        }
        hash::XLOG_HASH_DELETE => {
            let delete = Delete::read(main_data)?;
            out.text("clear_dead_marking ").letter(delete.clears_dead_marking);
            out.text(", is_primary ").letter(delete.is_bucket_page);
        }
        hash::XLOG_HASH_UPDATE_META_PAGE => {
            out.text("ntuples ").general(hash::read_update_meta_page(main_data)?);
        }
        hash::XLOG_HASH_VACUUM_ONE_PAGE => {
            let page = VacuumOnePage::read(main_data, version)?;
            out.text("ntuples ").uint(page.deleted.len() as u64);
            out.text(if version.text.says_conflict_horizon {
                ", snapshotConflictHorizon "
            } else {
                ", latestRemovedXid "
            });
            out.xid(page.conflict_horizon);
            if version.text.says_catalog {
                out.text(", isCatalogRel ").letter(page.is_catalog);
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::rmgr::RmgrId;
    use crate::text::testing;

    #[test]
    fn the_catalog_flag_is_in_the_record_before_it_is_in_the_text() {
        let page = [7, 0, 0, 0, 1, 0, 0, 0, 9, 0];
        let text = |major| testing::text(major, RmgrId::HASH, 0xC0, &page, &[]);
        assert_eq!(text(15), "VACUUM_ONE_PAGE ntuples 1, latestRemovedXid 7");
        assert_eq!(text(16), "VACUUM_ONE_PAGE ntuples 1, snapshotConflictHorizon 7");
        let said = "VACUUM_ONE_PAGE ntuples 1, snapshotConflictHorizon 7, isCatalogRel F";
        assert_eq!(text(17), said);
    }

    #[test]
    fn kinds_with_nothing_to_say_end_with_a_space() {
        assert_eq!(testing::text(18, RmgrId::HASH, 0x50, &[], &[]), "SPLIT_PAGE ");
    }
}
