//! SPGist.
//!
//! Rules: `src/backend/access/rmgrdesc/spgdesc.c`.

use super::{Out, TextError};
use crate::record::Record;
use crate::rmgr::spgist::{
    self, AddLeaf, AddNode, MoveLeafs, ParentLink, PickSplit, SplitTuple, VacuumLeaf,
    VacuumRedirect, VacuumRoot,
};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    Some(match info {
        spgist::XLOG_SPGIST_ADD_LEAF => "ADD_LEAF",
        spgist::XLOG_SPGIST_MOVE_LEAFS => "MOVE_LEAFS",
        spgist::XLOG_SPGIST_ADD_NODE => "ADD_NODE",
        spgist::XLOG_SPGIST_SPLIT_TUPLE => "SPLIT_TUPLE",
        spgist::XLOG_SPGIST_PICKSPLIT => "PICKSPLIT",
        spgist::XLOG_SPGIST_VACUUM_LEAF => "VACUUM_LEAF",
        spgist::XLOG_SPGIST_VACUUM_ROOT => "VACUUM_ROOT",
        spgist::XLOG_SPGIST_VACUUM_REDIRECT => "VACUUM_REDIRECT",
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
        spgist::XLOG_SPGIST_ADD_LEAF => {
            let add = AddLeaf::read(main_data)?;
            out.text("off: ").uint(add.item).text(", headoff: ").uint(add.head);
            parent(add.parent, out);
            flag(add.is_new_page, " (newpage)", out);
            flag(add.stores_nulls, " (nulls)", out);
        }
        spgist::XLOG_SPGIST_MOVE_LEAFS => {
            let moved = MoveLeafs::read(main_data)?;
            out.text("nmoves: ").uint(moved.deleted.len() as u64);
            parent(moved.parent, out);
            flag(moved.is_new_page, " (newpage)", out);
            flag(moved.replaces_dead, " (replacedead)", out);
            flag(moved.stores_nulls, " (nulls)", out);
        }
        spgist::XLOG_SPGIST_ADD_NODE => {
            let add = AddNode::read(main_data)?;
            out.text("off: ").uint(add.item).text(", newoff: ").uint(add.new_item);
            out.text(", parentBlk: ").int(add.parent_block);
            parent(add.parent, out);
            flag(add.is_new_page, " (newpage)", out);
        }
        spgist::XLOG_SPGIST_SPLIT_TUPLE => {
            let split = SplitTuple::read(main_data)?;
            out.text("prefixoff: ").uint(split.prefix_item);
            out.text(", postfixoff: ").uint(split.postfix_item);
            flag(split.is_new_page, " (newpage)", out);
            flag(split.is_same_page, " (same)", out);
        }
        spgist::XLOG_SPGIST_PICKSPLIT => {
            let split = PickSplit::read(main_data)?;
            out.text("ndelete: ").uint(split.deleted.len() as u64);
            out.text(", ninsert: ").uint(split.inserted.len() as u64);
            out.text(", inneroff: ").uint(split.inner_item);
            parent(split.parent, out);
            flag(split.inner_is_parent, " (innerIsParent)", out);
            flag(split.stores_nulls, " (nulls)", out);
            flag(split.is_root_split, " (isRootSplit)", out);
        }
        spgist::XLOG_SPGIST_VACUUM_LEAF => {
            let vacuum = VacuumLeaf::read(main_data)?;
            out.text("ndead: ").uint(vacuum.dead.len() as u64);
            out.text(", nplaceholder: ").uint(vacuum.placeholders.len() as u64);
            out.text(", nmove: ").uint(vacuum.moved_from.len() as u64);
            out.text(", nchain: ").uint(vacuum.linked.len() as u64);
        }
        spgist::XLOG_SPGIST_VACUUM_ROOT => {
            out.text("ndelete: ").uint(VacuumRoot::read(main_data)?.deleted.len() as u64);
        }
        spgist::XLOG_SPGIST_VACUUM_REDIRECT => {
            let vacuum = VacuumRedirect::read(main_data, version)?;
            out.text("ntoplaceholder: ").uint(vacuum.placeholders.len() as u64);
            out.text(", firstplaceholder: ").uint(vacuum.first_placeholder);
            out.text(if version.text.says_conflict_horizon {
                ", snapshotConflictHorizon: "
            } else {
                ", newestredirectxid: "
            });
            out.xid(vacuum.conflict_horizon);
            if version.text.says_catalog {
                out.text(", isCatalogRel: ").letter(vacuum.is_catalog);
            }
        }
        _ => {}
    }
    Ok(())
}

fn parent(link: ParentLink, out: &mut Out<'_>) {
    out.text(", parentoff: ").uint(link.item).text(", nodeI: ").uint(link.node);
}

fn flag(is_set: bool, text: &str, out: &mut Out<'_>) {
    if is_set {
        out.text(text);
    }
}

#[cfg(test)]
mod tests {
    use crate::rmgr::RmgrId;
    use crate::text::testing;

    #[test]
    fn the_catalog_flag_is_in_the_record_before_it_is_in_the_text() {
        let redirect = [1, 0, 3, 0, 7, 0, 0, 0, 1, 0, 9, 0];
        let text = |major, bytes: &[u8]| testing::text(major, RmgrId::SPGIST, 0x80, bytes, &[]);
        let said = "VACUUM_REDIRECT ntoplaceholder: 1, firstplaceholder: 3, ";
        let without = [&redirect[..8], &redirect[10..]].concat();
        assert_eq!(text(15, &without), format!("{said}newestredirectxid: 7"));
        assert_eq!(text(16, &redirect), format!("{said}snapshotConflictHorizon: 7"));
        let horizon = "snapshotConflictHorizon: 7, isCatalogRel: T";
        assert_eq!(text(17, &redirect), format!("{said}{horizon}"));
    }

    #[test]
    fn no_parent_is_block_minus_one() {
        let mut node = [0; 28];
        (node[0], node[5], node[24]) = (2, 0xFF, 8);
        let said = "ADD_NODE off: 2, newoff: 0, parentBlk: -1, parentoff: 0, nodeI: 0";
        assert_eq!(testing::text(18, RmgrId::SPGIST, 0x30, &node, &[]), said);
    }
}
