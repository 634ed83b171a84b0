//! Heap2: `heap2_desc` in `src/backend/access/rmgrdesc/heapdesc.c`.

use super::{Out, TextError, block_data, heap};
use crate::record::Record;
use crate::rmgr::heap2::{
    self, FreezeCounts, INIT_PAGE, MultiInsert, NewCid, OPCODE_MASK, Offsets, Prune,
    PruneAndFreeze, PruneCounts, Redirections, SharedFreezePlans, Visible, prune_flags,
};
use crate::version::Version;

pub(super) fn identify(info: u8, version: &Version) -> Option<&'static str> {
    const MULTI_INSERT_INIT: u8 = heap2::MULTI_INSERT | INIT_PAGE;
    let merged = version.tables.merge_prune_and_freeze;
    Some(match info {
        heap2::REWRITE => "REWRITE",
        heap2::PRUNE_ON_ACCESS if merged => "PRUNE_ON_ACCESS",
        heap2::PRUNE_VACUUM_SCAN if merged => "PRUNE_VACUUM_SCAN",
        heap2::PRUNE_VACUUM_CLEANUP if merged => "PRUNE_VACUUM_CLEANUP",
        heap2::PRUNE => "PRUNE",
        heap2::VACUUM => "VACUUM",
        heap2::FREEZE_PAGE => "FREEZE_PAGE",
        heap2::VISIBLE => "VISIBLE",
        heap2::MULTI_INSERT => "MULTI_INSERT",
        MULTI_INSERT_INIT => "MULTI_INSERT+INIT",
        heap2::LOCK_UPDATED => "LOCK_UPDATED",
        heap2::NEW_CID => "NEW_CID",
        _ => return None,
    })
}

pub(super) fn describe(
    record: &Record<'_>,
    version: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    if version.text.lists_items { list(record, version, out) } else { tell(record, version, out) }
}

/// In `key: value` lists.
fn list(record: &Record<'_>, version: &Version, out: &mut Out<'_>) -> Result<(), TextError> {
    let main_data = record.main_data;
    match record.header.info & OPCODE_MASK {
        heap2::REWRITE => {}
        heap2::PRUNE_ON_ACCESS | heap2::PRUNE_VACUUM_SCAN | heap2::PRUNE_VACUUM_CLEANUP
            if version.tables.merge_prune_and_freeze =>
        {
            list_prune_and_freeze(record, out)?;
        }
        heap2::PRUNE => list_prune(record, version, out)?,
        heap2::VACUUM => {
            out.text("nunused: ").uint(heap2::read_vacuum_count(main_data)?);
            if let Some(data) = block_data(record, 0) {
                list_offsets(", unused:", heap2::read_vacuum(main_data, data)?, out);
            }
        }
        heap2::FREEZE_PAGE => {
            let counts = FreezeCounts::read(main_data, version)?;
            out.text("snapshotConflictHorizon: ").xid(counts.cutoff_xid);
            out.text(", nplans: ").uint(counts.plans);
            if let Some(data) = block_data(record, 0) {
                list_plans(SharedFreezePlans::read(counts.plans, data)?, out);
            }
        }
        heap2::VISIBLE => {
            let visible = Visible::read(main_data)?;
            out.text("snapshotConflictHorizon: ").xid(visible.cutoff_xid);
            heap::list_flags(visible.flags, out);
        }
        heap2::MULTI_INSERT => {
            let insert = MultiInsert::read(main_data, record.header.info)?;
            out.text("ntuples: ").uint(insert.tuple_count);
            heap::list_flags(insert.flags, out);
            // Not of the block's data, but not without it either.
            if let (Some(offsets), Some(_)) = (insert.offsets, block_data(record, 0)) {
                list_offsets(", offsets:", offsets, out);
            }
        }
        heap2::LOCK_UPDATED => heap::list_lock(main_data, out)?,
        _ => describe_new_cid(main_data, (": ", ", "), out)?,
    }
    Ok(())
}

/// Lists nothing is in are left out.
fn list_prune_and_freeze(record: &Record<'_>, out: &mut Out<'_>) -> Result<(), TextError> {
    let prune = PruneAndFreeze::read(record.main_data)?;
    if let Some(horizon) = prune.conflict_horizon {
        out.text("snapshotConflictHorizon: ").xid(horizon);
    }
    // With a comma before it even if it is the first.
    out.text(", isCatalogRel: ").letter(prune.has(prune_flags::IS_CATALOG_REL));
    let Some(data) = block_data(record, 0) else { return Ok(()) };
    let items = prune.items(data)?;
    out.text(", nplans: ").uint(items.plans.len() as u64);
    out.text(", nredirected: ").uint(items.redirections.len() as u64);
    out.text(", ndead: ").uint(items.dead.len() as u64);
    out.text(", nunused: ").uint(items.unused.len() as u64);
    if !items.plans.is_empty() {
        list_plans(items.plans, out);
    }
    if !items.redirections.is_empty() {
        list_redirections(items.redirections, out);
    }
    if !items.dead.is_empty() {
        list_offsets(", dead:", items.dead, out);
    }
    if !items.unused.is_empty() {
        list_offsets(", unused:", items.unused, out);
    }
    Ok(())
}

fn list_prune(record: &Record<'_>, version: &Version, out: &mut Out<'_>) -> Result<(), TextError> {
    let counts = PruneCounts::read(record.main_data, version)?;
    out.text("snapshotConflictHorizon: ").xid(counts.latest_removed_xid);
    out.text(", nredirected: ").uint(counts.redirected).text(", ndead: ").uint(counts.dead);
    if let Some(data) = block_data(record, 0) {
        let prune = Prune::read(record.main_data, data)?;
        out.text(", nunused: ").uint(prune.unused.len() as u64);
        list_redirections(prune.redirections, out);
        list_offsets(", dead:", prune.dead, out);
        list_offsets(", unused:", prune.unused, out);
    }
    Ok(())
}

fn list_plans(plans: SharedFreezePlans<'_>, out: &mut Out<'_>) {
    out.text(", plans:").array(plans.iter(), |out, plan| {
        out.text("{ xmax: ").xid(plan.xmax).text(", infomask: ").uint(plan.infomask);
        out.text(", infomask2: ").uint(plan.infomask2);
        out.text(", ntuples: ").uint(plan.offsets.len() as u64);
        list_offsets(", offsets:", plan.offsets, out);
        out.text(" }");
    });
}

fn list_redirections(redirections: Redirections<'_>, out: &mut Out<'_>) {
    out.text(", redirected:").array(redirections.iter(), |out, (from, to)| {
        out.uint(from).text("->").uint(to);
    });
}

fn list_offsets(key: &str, offsets: Offsets<'_>, out: &mut Out<'_>) {
    out.text(key).array(offsets.iter(), |out, offset| {
        out.uint(offset);
    });
}

/// In words.
fn tell(record: &Record<'_>, version: &Version, out: &mut Out<'_>) -> Result<(), TextError> {
    let main_data = record.main_data;
    match record.header.info & OPCODE_MASK {
        heap2::REWRITE => {}
        heap2::PRUNE => {
            let counts = PruneCounts::read(main_data, version)?;
            out.text("latestRemovedXid ").xid(counts.latest_removed_xid);
            out.text(" nredirected ").uint(counts.redirected).text(" ndead ").uint(counts.dead);
        }
        heap2::VACUUM => {
            out.text("nunused ").uint(heap2::read_vacuum_count(main_data)?);
        }
        heap2::FREEZE_PAGE => {
            let counts = FreezeCounts::read(main_data, version)?;
            out.text("cutoff xid ").xid(counts.cutoff_xid);
            out.text(" ntuples ").uint(counts.plans);
        }
        heap2::VISIBLE => {
            let visible = Visible::read(main_data)?;
            out.text("cutoff xid ").xid(visible.cutoff_xid);
            out.text(" flags 0x").hex_upper_padded(visible.flags, 2);
        }
        heap2::MULTI_INSERT => {
            let insert = MultiInsert::read(main_data, record.header.info)?;
            out.uint(insert.tuple_count).text(" tuples");
            out.text(" flags 0x").hex_upper_padded(insert.flags, 2);
        }
        heap2::LOCK_UPDATED => heap::tell_lock(main_data, " xmax ", out)?,
        _ => describe_new_cid(main_data, (" ", "; "), out)?,
    }
    Ok(())
}

fn describe_new_cid(
    main_data: &[u8],
    (is, and): (&str, &str),
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    let cid = NewCid::read(main_data)?;
    out.text("rel").text(is).locator(cid.locator);
    out.text(and).text("tid").text(is).uint(cid.tid.block).text("/").uint(cid.tid.offset);
    // From here on the same in all majors.
    out.text(and).text("cmin: ").uint(cid.cmin).text(", cmax: ").uint(cid.cmax);
    out.text(", combo: ").uint(cid.combo_cid);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{describe, describe_as_all, words};
    use super::*;
    use crate::rmgr::RmgrId;

    #[test]
    fn a_prune_without_a_horizon_begins_with_a_comma() {
        let text = |main_data: &[u8], data: &[u8]| {
            describe(17, RmgrId::HEAP2, heap2::PRUNE_VACUUM_SCAN, main_data, data).expect("exact")
        };
        let unused = prune_flags::HAS_NOW_UNUSED_ITEMS;
        let list =
            ", isCatalogRel: F, nplans: 0, nredirected: 0, ndead: 0, nunused: 2, unused: [4, 5]";
        assert_eq!(text(&[0, unused], &words(&[2, 4, 5])), list);
        assert_eq!(text(&[0, unused], &[]), ", isCatalogRel: F", "with an image");

        let plans = prune_flags::HAS_FREEZE_PLANS | prune_flags::HAS_CONFLICT_HORIZON;
        let data = words(&[2, 0, 7, 0, 1, 2, 0, 2, 8, 0, 3, 4, 0, 1, 20, 21, 22]);
        let list = "snapshotConflictHorizon: 9, isCatalogRel: T, nplans: 2, nredirected: 0, ndead: 0, \
                    nunused: 0, plans: [{ xmax: 7, infomask: 2, infomask2: 1, ntuples: 2, offsets: [20, 21] }, \
                    { xmax: 8, infomask: 4, infomask2: 3, ntuples: 1, offsets: [22] }]";
        assert_eq!(text(&[0, plans | prune_flags::IS_CATALOG_REL, 9, 0, 0, 0], &data), list);
    }

    #[test]
    fn a_prune_of_counts_says_empty_lists_too() {
        let main_data = [9, 0, 0, 0, 1, 0, 0, 0, 1];
        let prune = |major, data: &[u8]| {
            describe(major, RmgrId::HEAP2, heap2::PRUNE, &main_data, data).expect("long enough")
        };
        let told = "latestRemovedXid 9 nredirected 1 ndead 0";
        assert_eq!(prune(15, &words(&[1, 2])), told);
        let list = "snapshotConflictHorizon: 9, nredirected: 1, ndead: 0";
        assert_eq!(prune(16, &[]), list);
        let more = ", nunused: 0, redirected: [1->2], dead: [], unused: []";
        assert_eq!(prune(16, &words(&[1, 2])), format!("{list}{more}"));
    }

    #[test]
    fn inserted_items_are_listed_unless_the_page_is_new_or_whole() {
        let text = |info, main_data: &[u8], data: &[u8]| {
            describe(18, RmgrId::HEAP2, info, main_data, data).expect("long enough")
        };
        let main_data = [0x22, 0, 2, 0, 7, 0, 9, 0];
        let list = "ntuples: 2, flags: 0x22, offsets: [7, 9]";
        assert_eq!(text(heap2::MULTI_INSERT, &main_data, &[1]), list);
        assert_eq!(text(heap2::MULTI_INSERT, &main_data, &[]), "ntuples: 2, flags: 0x22");
        let init = text(heap2::MULTI_INSERT | INIT_PAGE, &main_data[..4], &[1]);
        assert_eq!(init, "ntuples: 2, flags: 0x22");
    }

    #[test]
    fn new_cid_changed_half_of_its_separators() {
        let mut main_data = Vec::new();
        main_data
            .extend([700_u32, 1, 2, u32::MAX, 1663, 5, 1259].iter().flat_map(|n| n.to_le_bytes()));
        main_data.extend(words(&[1, 2, 3]));
        let text = |major| {
            describe(major, RmgrId::HEAP2, heap2::NEW_CID, &main_data, &[]).expect("long enough")
        };
        let rest = "cmin: 1, cmax: 2, combo: 4294967295";
        assert_eq!(text(15), format!("rel 1663/5/1259; tid 65538/3; {rest}"));
        assert_eq!(text(16), format!("rel: 1663/5/1259, tid: 65538/3, {rest}"));
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(
            main_data in proptest::collection::vec(any::<u8>(), 0..60),
            data in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            describe_as_all(RmgrId::HEAP2, &main_data, &data);
        }
    }
}
