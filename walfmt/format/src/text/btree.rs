//! Btree: `src/backend/access/rmgrdesc/nbtdesc.c`.

use super::{Out, TextError, block_data};
use crate::record::Record;
use crate::rmgr::btree::{
    self, DedupInterval, Deletion, Insert, MarkPageHalfDead, Metadata, NewRoot, ReusePage, Split,
    UnlinkPage,
};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    btree::opcode_name(info)
}

pub(super) fn describe(
    record: &Record<'_>,
    version: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    let main_data = record.main_data;
    let items = version.text.lists_items;
    // What stands behind a key, and between two of them.
    let (is, and) = if items { (": ", ", ") } else { (" ", "; ") };
    match record.header.opcode() {
        btree::XLOG_BTREE_INSERT_LEAF
        | btree::XLOG_BTREE_INSERT_UPPER
        | btree::XLOG_BTREE_INSERT_META
        | btree::XLOG_BTREE_INSERT_POST => {
            out.text("off").text(is).uint(Insert::read(main_data)?.item);
        }
        btree::XLOG_BTREE_SPLIT_L | btree::XLOG_BTREE_SPLIT_R => {
            // Always with commas.
            let split = Split::read(main_data)?;
            out.text("level").text(is).uint(split.level);
            out.text(", firstrightoff").text(is).uint(split.first_right_item);
            out.text(", newitemoff").text(is).uint(split.new_item);
            out.text(", postingoff").text(is).uint(split.posting_offset);
        }
        btree::XLOG_BTREE_DEDUP => {
            out.text("nintervals").text(is).uint(DedupInterval::read_count(main_data)?);
        }
        btree::XLOG_BTREE_VACUUM => {
            let deletion = Deletion::read_vacuum(main_data)?;
            out.text("ndeleted").text(is).uint(deletion.deleted);
            out.text(and).text("nupdated").text(is).uint(deletion.updated);
            list_deletions(deletion, record, version, out)?;
        }
        btree::XLOG_BTREE_DELETE => {
            let (deletion, is_catalog) = Deletion::read_delete_of(main_data, version)?;
            out.text(horizon(version)).text(is);
            out.xid(deletion.latest_removed_xid.unwrap_or_default());
            out.text(and).text("ndeleted").text(is).uint(deletion.deleted);
            out.text(and).text("nupdated").text(is).uint(deletion.updated);
            say_catalog(is_catalog, version, out);
            list_deletions(deletion, record, version, out)?;
        }
        btree::XLOG_BTREE_MARK_PAGE_HALFDEAD => {
            let mark = MarkPageHalfDead::read(main_data)?;
            out.text("topparent").text(is).uint(mark.top_parent);
            out.text(and).text("leaf").text(is).uint(mark.leaf);
            out.text(and).text("left").text(is).uint(mark.left);
            out.text(and).text("right").text(is).uint(mark.right);
        }
        btree::XLOG_BTREE_UNLINK_PAGE | btree::XLOG_BTREE_UNLINK_PAGE_META => {
            let unlink = UnlinkPage::read(main_data)?;
            out.text("left").text(is).uint(unlink.left);
            out.text(and).text("right").text(is).uint(unlink.right);
            out.text(and).text("level").text(is).uint(unlink.level);
            out.text(and).text("safexid").text(is).full_xid(unlink.safe_xid);
            out.text(and).text("leafleft").text(is).uint(unlink.leaf_left);
            out.text(and).text("leafright").text(is).uint(unlink.leaf_right);
            out.text(and).text("leaftopparent").text(is).uint(unlink.leaf_top_parent);
        }
        btree::XLOG_BTREE_NEWROOT => {
            let key = if items { "level: " } else { "lev " };
            out.text(key).uint(NewRoot::read(main_data)?.level);
        }
        btree::XLOG_BTREE_REUSE_PAGE => {
            let (reuse, is_catalog) = ReusePage::read_of(main_data, version)?;
            out.text("rel").text(is).locator(reuse.locator);
            out.text(and).text(horizon(version)).text(is).full_xid(reuse.safe_xid);
            say_catalog(is_catalog, version, out);
        }
        btree::XLOG_BTREE_META_CLEANUP => {
            let metadata = Metadata::read(block_data(record, 0).unwrap_or_default())?;
            out.text("last_cleanup_num_delpages").text(is);
            out.uint(metadata.last_cleanup_deleted_pages);
        }
        _ => {}
    }
    Ok(())
}

const fn horizon(version: &Version) -> &'static str {
    if version.text.says_conflict_horizon { "snapshotConflictHorizon" } else { "latestRemovedXid" }
}

fn say_catalog(is_catalog: Option<bool>, version: &Version, out: &mut Out<'_>) {
    if let Some(is_catalog) = is_catalog.filter(|_| version.text.says_catalog) {
        out.text(", isCatalogRel: ").letter(is_catalog);
    }
}

/// `delvacuum_desc`.
fn list_deletions(
    deletion: Deletion,
    record: &Record<'_>,
    version: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    if !version.text.lists_items {
        return Ok(());
    }
    let Some(data) = block_data(record, 0) else { return Ok(()) };
    let items = deletion.items(data)?;
    out.text(", deleted:").array(items.deleted.iter(), |out, item| {
        out.uint(item);
    });
    out.text(", updated: [");
    for (at, update) in items.updates().enumerate() {
        let (item, positions) = update?;
        out.text(if at > 0 { ", { off: " } else { "{ off: " }).uint(item);
        out.text(", nptids: ").uint(positions.len() as u64).text(", ptids:");
        out.array(positions.iter(), |out, position| {
            out.uint(position);
        });
        out.text(" }");
    }
    out.text("]");
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{describe, describe_as_all, words};
    use super::*;
    use crate::rmgr::RmgrId;

    #[test]
    fn what_a_vacuum_deletes_is_listed_if_it_is_there() {
        let data = words(&[3, 4, 7, 8, 2, 0, 5, 1, 9]);
        let vacuum = |major, data: &[u8]| {
            let main_data = words(&[2, 2]);
            describe(major, RmgrId::BTREE, btree::XLOG_BTREE_VACUUM, &main_data, data)
        };
        assert_eq!(vacuum(15, &data).as_deref(), Ok("ndeleted 2; nupdated 2"));
        assert_eq!(vacuum(16, &[]).as_deref(), Ok("ndeleted: 2, nupdated: 2"));
        let list = "ndeleted: 2, nupdated: 2, deleted: [3, 4], updated: [\
                    { off: 7, nptids: 2, ptids: [0, 5] }, { off: 8, nptids: 1, ptids: [9] }]";
        assert_eq!(vacuum(16, &data).as_deref(), Ok(list));
        assert!(vacuum(16, &data[..17]).is_err());
    }

    #[test]
    fn a_catalog_is_in_the_record_before_it_is_in_the_text() {
        let delete = |major, main_data: &[u8]| {
            describe(major, RmgrId::BTREE, btree::XLOG_BTREE_DELETE, main_data, &[3, 0])
        };
        let main_data = [9, 0, 0, 0, 1, 0, 0, 0, 1];
        let told = "latestRemovedXid 9; ndeleted 1; nupdated 0";
        assert_eq!(delete(15, &main_data[..8]).as_deref(), Ok(told));
        assert!(delete(15, &main_data).is_err());
        let list =
            "snapshotConflictHorizon: 9, ndeleted: 1, nupdated: 0, deleted: [3], updated: []";
        assert_eq!(delete(16, &main_data).as_deref(), Ok(list));
        let list = "snapshotConflictHorizon: 9, ndeleted: 1, nupdated: 0, isCatalogRel: T, \
                    deleted: [3], updated: []";
        assert_eq!(delete(17, &main_data).as_deref(), Ok(list));
        assert!(delete(17, &main_data[..8]).is_err());
    }

    #[test]
    fn a_meta_page_is_not_described_without_its_data() {
        let cleanup =
            |data: &[u8]| describe(15, RmgrId::BTREE, btree::XLOG_BTREE_META_CLEANUP, &[], data);
        let mut metadata = [0; 28];
        metadata[20] = 7;
        assert_eq!(cleanup(&metadata).as_deref(), Ok("last_cleanup_num_delpages 7"));
        assert!(cleanup(&[]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(
            main_data in proptest::collection::vec(any::<u8>(), 0..60),
            data in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            describe_as_all(RmgrId::BTREE, &main_data, &data);
        }
    }
}
