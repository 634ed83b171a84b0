//! Where a record's effects go: to pages, to files, to `pg_xact`, to the server's state.

use walfmt::Record;
use walfmt::relation::PageId;
use walfmt::rmgr::RmgrId;
use walfmt::rmgr::heap2::RewriteMapping;
use walfmt::rmgr::relmap::RelationMap;
use walfmt::rmgr::xlog::{self as xlog_records, Change};

use crate::database::DatabaseChange;
use crate::fault::Fault;
use crate::heap::Clears;
use crate::tablespace::TablespaceChange;
use crate::{
    CommitTsChange, MultiXactChange, OriginChange, PageAccess, PageChange, RedoContext, RedoError,
    btree, clog, commit_ts, database, generic, heap, heap2, logical_message, multixact, relmap,
    replication_origin, sequence, smgr, tablespace, visibilitymap, xact, xlog,
};

/// Why a record had not all of its effects.
#[derive(Debug, thiserror::Error)]
pub enum RouteError<E> {
    /// It cannot be replayed; none of its effects was begun.
    #[error(transparent)]
    Redo(#[from] RedoError),
    /// One of its effects was not taken; those before it were.
    #[error(transparent)]
    Access(E),
}

/// Hands all effects of a record to `access`, in the order that matters: the transaction id, bits
/// of the visibility map that the record clears without naming the page, block references by
/// ascending id, then what is not a page.
///
/// # Errors
/// [`RouteError::Redo`] before the first call if the record is not supported or its contents are
/// not what they can be; [`RouteError::Access`] as soon as a call fails.
pub fn route<A: PageAccess>(
    record: &Record<'_>,
    context: &RedoContext,
    access: &mut A,
) -> Result<(), RouteError<A::Error>> {
    let mut clears = Clears::new();
    if check_pages(record, &mut clears).map_err(|fault| fault.of(record))? {
        return change_pages(record, &clears, access).map_err(RouteError::Access);
    }
    let effect = Effect::read(record, context).map_err(|fault| fault.of(record))?;
    change_pages(record, &clears, access)
        .and_then(|()| apply(record, &effect, access))
        .map_err(RouteError::Access)
}

/// Checks a record that has no effect but on pages, as nearly all have; says whether it is one. Adds
/// the bits of the visibility map that it clears on pages it does not refer to.
fn check_pages(record: &Record<'_>, clears: &mut Clears) -> Result<bool, Fault> {
    match record.header.rmgr {
        RmgrId::HEAP => heap::check(record, clears)?,
        RmgrId::HEAP2 if !heap2::is_rewrite(record) => heap2::check(record, clears)?,
        RmgrId::BTREE => btree::check(record)?,
        RmgrId::SEQUENCE => sequence::check(record)?,
        RmgrId::GENERIC => generic::check(record)?,
        _ => return Ok(false),
    }
    if record.blocks.iter().any(|block| heap::is_registered_map(record, block)) {
        clears.clear();
    }
    Ok(true)
}

/// What a record does beside changing the pages of its block references.
enum Effect<'a> {
    /// Nothing.
    None,
    Transaction(xact::TransactionChange<'a>),
    Files(smgr::FileChange),
    Clog(clog::ClogChange),
    MultiXact(MultiXactChange<'a>),
    CommitTs(CommitTsChange),
    Origin(OriginChange),
    RelationMap(RelationMap<'a>),
    Database(DatabaseChange<'a>),
    Tablespace(TablespaceChange<'a>),
    RewriteMapping(RewriteMapping<'a>),
    Server(Change),
}

impl<'a> Effect<'a> {
    /// Checks that the record can be replayed and reads its effect.
    fn read(record: &Record<'a>, context: &RedoContext) -> Result<Self, Fault> {
        let effect = match record.header.rmgr {
            RmgrId::XLOG => return Ok(xlog::read(record)?.map_or(Self::None, Self::Server)),
            RmgrId::HEAP2 => Self::RewriteMapping(heap2::rewrite_mapping(record)?),
            RmgrId::XACT => xact::read(record, context)?.map_or(Self::None, Self::Transaction),
            RmgrId::SMGR => Self::Files(smgr::read(record)?),
            RmgrId::CLOG => Self::Clog(clog::read(record, context)?),
            RmgrId::MULTIXACT => Self::MultiXact(multixact::read(record, context)?),
            RmgrId::COMMIT_TS => Self::CommitTs(commit_ts::read(record, context)?),
            RmgrId::REPLICATION_ORIGIN => {
                replication_origin::read(record)?.map_or(Self::None, Self::Origin)
            }
            RmgrId::LOGICAL_MESSAGE => logical_message::check(record).map(|()| Self::None)?,
            RmgrId::STANDBY => Self::None,
            RmgrId::DATABASE => Self::Database(database::read(record)?),
            RmgrId::TABLESPACE => Self::Tablespace(tablespace::read(record)?),
            RmgrId::RELMAP => Self::RelationMap(relmap::read(record, context)?),
            _ => return Err(Fault::Unsupported("records of this resource manager")),
        };
        match record.blocks.first() {
            Some(block) => Err(Fault::corrupt(format!("block reference to {}", block.page))),
            None => Ok(effect),
        }
    }
}

/// The transaction id, and then the pages.
fn change_pages<A: PageAccess>(
    record: &Record<'_>,
    clears: &Clears,
    access: &mut A,
) -> Result<(), A::Error> {
    if record.header.xid.is_normal() {
        access.advance_next_xid(record.header.xid)?;
    }
    for &(heap_block, bits) in clears {
        if let Some(heap) = record.block(0) {
            let heap = PageId { block: heap_block, ..heap.page };
            let change = PageChange::ClearVisibility { heap_block, bits };
            access.change_page(record, visibilitymap::visibility_page(heap), change)?;
        }
    }
    let image_may_be_missing =
        record.header.rmgr == RmgrId::XLOG && record.header.opcode() == xlog_records::FPI_FOR_HINT;
    for (index, block) in (0_u8..).zip(&record.blocks) {
        if !(image_may_be_missing && block.image.is_none()) {
            access.change_page(record, block.page, PageChange::Block(index))?;
        }
    }
    Ok(())
}

/// What is not a page.
fn apply<A: PageAccess>(
    record: &Record<'_>,
    effect: &Effect<'_>,
    access: &mut A,
) -> Result<(), A::Error> {
    match effect {
        Effect::None => Ok(()),
        Effect::Transaction(change) => change.apply(record, access),
        Effect::Files(change) => change.apply(record, access),
        Effect::Clog(change) => change.apply(access),
        Effect::MultiXact(change) => multixact::apply(change, record, access),
        Effect::CommitTs(change) => access.change_commit_times(change),
        Effect::Origin(change) => access.change_origin(change),
        Effect::RelationMap(map) => access.write_relation_map(map),
        Effect::Database(change) => change.apply(access),
        Effect::Tablespace(change) => change.apply(access),
        Effect::RewriteMapping(mapping) => access.write_rewrite_mapping(record, mapping),
        Effect::Server(change) => access.server_state(record, change),
    }
}

#[cfg(test)]
mod tests {
    use walfmt::TransactionId;
    use walfmt::bytes::put;
    use walfmt::relation::ForkNumber;
    use walfmt::rmgr::{
        clog, commit_ts as commit_times, heap, heap2, multixact as multixacts,
        replication_origin as replication_origins, sequence, smgr, xact,
    };

    use super::*;
    use crate::fixture::{Calls, block, context, page_id, record};

    fn calls(record: &Record<'_>) -> Vec<String> {
        let mut calls = Calls::default();
        route(record, &context(), &mut calls).expect("supported");
        calls.0
    }

    fn refusal(record: &Record<'_>) -> String {
        let mut calls = Calls::default();
        let error = route(record, &context(), &mut calls).expect_err("refused");
        assert!(calls.0.is_empty(), "no effect was begun: {:?}", calls.0);
        error.to_string()
    }

    #[test]
    fn bits_are_cleared_before_the_page_is_changed() {
        let main = [0, 0, 0, 0, 1, 0, 0, heap::delete_flags::ALL_VISIBLE_CLEARED];
        let blocks = [block(0, page_id(ForkNumber::Main, 40_000), &[])];
        assert_eq!(
            calls(&record(RmgrId::HEAP, heap::DELETE, &main, &blocks)),
            [
                "xid 700",
                "change 1663/5/16384_vm block 1 ClearVisibility { heap_block: 40000, bits: 3 }",
                "change 1663/5/16384 block 40000 Block(0)",
            ]
        );
    }

    #[test]
    fn registered_map_pages_are_changed_like_others() {
        let main = [0, 0, 0, 0, 1, 0, 0, heap::LOCK_ALL_FROZEN_CLEARED];
        let blocks = [
            block(0, page_id(ForkNumber::Main, 7), &[]),
            block(1, page_id(ForkNumber::VisibilityMap, 0), &[]),
        ];
        assert_eq!(
            calls(&record(RmgrId::HEAP, heap::LOCK, &main, &blocks)),
            [
                "xid 700",
                "change 1663/5/16384 block 7 Block(0)",
                "change 1663/5/16384_vm block 0 Block(1)",
            ]
        );
    }

    #[test]
    fn an_update_clears_bits_of_both_its_pages() {
        let mut main = [0; 14];
        main[7] = heap::update_flags::OLD_ALL_VISIBLE_CLEARED
            | heap::update_flags::NEW_ALL_VISIBLE_CLEARED;
        let blocks = [
            block(0, page_id(ForkNumber::Main, 9), &[]),
            block(1, page_id(ForkNumber::Main, 4), &[]),
        ];
        assert_eq!(
            calls(&record(RmgrId::HEAP, heap::UPDATE, &main, &blocks))[1..3],
            [
                "change 1663/5/16384_vm block 0 ClearVisibility { heap_block: 4, bits: 3 }",
                "change 1663/5/16384_vm block 0 ClearVisibility { heap_block: 9, bits: 3 }",
            ]
        );
    }

    #[test]
    fn a_commit_sets_status_and_drops_files() {
        let mut main = vec![0; 8];
        main.extend((xact::xinfo::SUBXACTS | xact::xinfo::RELFILENODES).to_le_bytes());
        main.extend([2, 0, 0, 0, 189, 2, 0, 0, 190, 2, 0, 0]);
        main.extend([1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!(
            calls(&record(RmgrId::XACT, xact::COMMIT | xact::HAS_INFO, &main, &[])),
            [
                "xid 700",
                "xid 702",
                "committed at 0 by origin 0: [700, 701, 702]",
                "Committed [700, 701, 702]",
                "drop [1/2/3]",
            ]
        );
        assert_eq!(
            calls(&record(RmgrId::XACT, xact::ABORT, &[0; 8], &[])),
            ["xid 700", "Aborted [700]"]
        );
    }

    #[test]
    fn a_prepared_transaction_waits_for_its_end() {
        let mut state = vec![0; 80];
        for (offset, word) in [(0, xact::TWO_PHASE_MAGIC), (4, 84), (8, 700), (56, 0x77)] {
            put(&mut state, offset, word.to_le_bytes());
        }
        let mut prepare = record(RmgrId::XACT, xact::PREPARE, &state, &[]);
        assert_eq!(calls(&prepare), ["xid 700", "prepare 700, 80 bytes"]);
        prepare.origin = 3;
        let progress = "origin Advance { origin: 3, remote_lsn: 0/77, force: false }";
        assert_eq!(calls(&prepare)[2], progress);

        let mut main = vec![9, 0, 0, 0, 0, 0, 0, 0];
        main.extend((xact::xinfo::TWOPHASE | xact::xinfo::ORIGIN).to_le_bytes());
        main.extend(690_u32.to_le_bytes());
        main.extend([0x78, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        let mut commit = record(RmgrId::XACT, xact::COMMIT_PREPARED | xact::HAS_INFO, &main, &[]);
        commit.header.xid = TransactionId::INVALID;
        commit.origin = 3;
        assert_eq!(
            calls(&commit),
            [
                "xid 690",
                "committed at 5 by origin 3: [690]",
                "Committed [690]",
                "origin Advance { origin: 3, remote_lsn: 0/78, force: false }",
                "finish prepared 690",
            ]
        );
        commit.header.info = xact::ABORT_PREPARED | xact::HAS_INFO;
        commit.origin = replication_origins::DO_NOT_REPLICATE;
        assert_eq!(calls(&commit), ["xid 690", "Aborted [690]", "finish prepared 690"]);
        commit.origin = replication_origins::NO_ORIGIN;
        assert!(refusal(&commit).contains("replication origin 0"));
        let nameless = record(RmgrId::XACT, xact::COMMIT_PREPARED, &[0; 8], &[]);
        assert!(refusal(&nameless).contains("which prepared transaction"));
    }

    #[test]
    fn multixacts_move_the_next_transaction_id() {
        let mut main = Vec::new();
        for word in [5_u32, 9, 2, 698, 0, 705, 4] {
            main.extend(word.to_le_bytes());
        }
        let create = record(RmgrId::MULTIXACT, multixacts::CREATE_ID, &main, &[]);
        assert_eq!(
            calls(&create),
            ["xid 700", "multixact 5 at 9: [(698, 0), (705, 4)]", "xid 705"]
        );
        let page = record(RmgrId::MULTIXACT, multixacts::ZERO_MEM_PAGE, &[2, 0, 0, 0], &[]);
        assert_eq!(calls(&page)[1..], ["multixacts ZeroMembersPage(2)"]);
        let unknown = record(RmgrId::MULTIXACT, 0x40, &main, &[]);
        assert!(refusal(&unknown).contains("no opcode 0x40"));
    }

    #[test]
    fn commit_times_origins_and_messages() {
        let zero = record(RmgrId::COMMIT_TS, commit_times::ZEROPAGE, &[2, 0, 0, 0], &[]);
        assert_eq!(calls(&zero)[1..], ["commit times ZeroPage(2)"]);
        let main = [0x77, 0, 0, 0, 0, 0, 0, 0, 3, 0, 1, 0, 0, 0, 0, 0];
        let mut set = record(RmgrId::REPLICATION_ORIGIN, replication_origins::SET, &main, &[]);
        set.header.xid = TransactionId::INVALID;
        let progress = "origin Advance { origin: 3, remote_lsn: 0/77, force: true }";
        assert_eq!(calls(&set), [progress]);
        let drop = record(RmgrId::REPLICATION_ORIGIN, replication_origins::DROP, &[3, 0], &[]);
        assert_eq!(calls(&drop)[1..], ["origin Drop { origin: 3 }"]);
        assert_eq!(calls(&record(RmgrId::LOGICAL_MESSAGE, 0, &[0; 24], &[])), ["xid 700"]);
        assert!(refusal(&record(RmgrId::LOGICAL_MESSAGE, 0, &[0; 23], &[])).contains("needs"));
    }

    #[test]
    fn a_truncation_cuts_the_maps_too() {
        let mut main = 5000_u32.to_le_bytes().to_vec();
        main.extend([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(
            calls(&record(RmgrId::SMGR, smgr::TRUNCATE, &main, &[])),
            [
                "xid 700",
                "create 1/2/3",
                "change 1/2/3_fsm block 0 TruncateFreeSpace { heap_blocks: 5000 }",
                "change 1/2/3_fsm block 1 TruncateFreeSpace { heap_blocks: 5000 }",
                "change 1/2/3_fsm block 3 TruncateFreeSpace { heap_blocks: 5000 }",
                "change 1/2/3_vm block 0 TruncateVisibility { heap_blocks: 5000 }",
                "cut 1/2/3 to 5000",
                "cut 1/2/3_fsm to 4",
                "cut 1/2/3_vm to 1",
            ]
        );
        main[..4].fill(0);
        assert_eq!(
            calls(&record(RmgrId::SMGR, smgr::TRUNCATE, &main, &[]))[1..],
            [
                "create 1/2/3",
                "change 1/2/3_fsm block 0 TruncateFreeSpace { heap_blocks: 0 }",
                "change 1/2/3_fsm block 1 TruncateFreeSpace { heap_blocks: 0 }",
                "cut 1/2/3 to 0",
                "cut 1/2/3_fsm to 2",
                "cut 1/2/3_vm to 0",
            ]
        );
    }

    #[test]
    fn pg_xact_grows_and_shrinks() {
        let zero = record(RmgrId::CLOG, clog::ZEROPAGE, &[2, 0, 0, 0], &[]);
        assert_eq!(calls(&zero)[1..], ["zero clog 2"]);
        let main = [3, 0, 0, 0, 9, 0, 0, 0, 5, 0, 0, 0];
        let truncate = record(RmgrId::CLOG, clog::TRUNCATE, &main, &[]);
        assert_eq!(calls(&truncate)[1..], ["cut clog before 3"]);
    }

    #[test]
    fn directories_and_maps_come_and_go() {
        let words = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        let mut map = words(&[5, 1663, 512, 0, 1]);
        map.resize(12 + 512, 0);
        let mut mapping = words(&[500, 5, 1259, 0, 0, 0, 1, 0, 9, 0]);
        mapping.resize(40 + 36, 7);
        for (rmgr, opcode, main, expected) in [
            (RmgrId::RELMAP, 0x00, &map, "map of"),
            (RmgrId::DATABASE, 0x00, &words(&[7, 1663, 1, 1663]), "copy"),
            (RmgrId::DATABASE, 0x10, &words(&[7, 16390]), "create DatabaseLocator"),
            (RmgrId::DATABASE, 0x20, &words(&[7, 1, 1663]), "drop ["),
            (RmgrId::TABLESPACE, 0x00, &vec![1, 64, 0, 0, 0], "create tablespace 16385 in place"),
            (RmgrId::TABLESPACE, 0x10, &words(&[16385]), "drop tablespace 16385"),
            (RmgrId::HEAP2, heap2::REWRITE, &mapping, "write map-5-4eb-0_9-1f4-2bc"),
        ] {
            let called = calls(&record(rmgr, opcode, main, &[]));
            assert_eq!(called.len(), 2, "{called:?}");
            assert!(called[1].starts_with(expected), "{called:?}");
            for length in 0..main.len() {
                refusal(&record(rmgr, opcode, &main[..length], &[]));
            }
        }
        for rmgr in [RmgrId::RELMAP, RmgrId::DATABASE, RmgrId::TABLESPACE] {
            assert!(refusal(&record(rmgr, 0x70, &[], &[])).contains("no opcode 0x70"));
        }
        mapping[16..24].fill(0xFF);
        let beyond = record(RmgrId::HEAP2, heap2::REWRITE, &mapping, &[]);
        assert!(refusal(&beyond).contains("a mapping file written at"));
    }

    #[test]
    fn a_hint_may_have_no_image_and_other_images_may_not() {
        let blocks = [block(0, page_id(ForkNumber::Main, 1), &[])];
        let hint = record(RmgrId::XLOG, xlog_records::FPI_FOR_HINT, &[], &blocks);
        assert_eq!(calls(&hint), ["xid 700"]);
        let image = record(RmgrId::XLOG, xlog_records::FPI, &[], &blocks);
        assert!(refusal(&image).contains("no image of 1663/5/16384 block 1"));
    }

    #[test]
    fn what_is_not_supported_has_no_effect_at_all() {
        for rmgr in [12, 13, 14, 16, 17, 128, 255] {
            let record = record(RmgrId(rmgr), 0, &[], &[]);
            assert!(refusal(&record).contains("this resource manager"), "{rmgr}");
        }
    }

    #[test]
    fn contradictions_have_no_effect_at_all() {
        let main = [1, 0, 0];
        let heap_page = block(0, page_id(ForkNumber::Main, 0), &[]);
        let init = record(RmgrId::HEAP, heap::INSERT | heap::INIT_PAGE, &main, &[heap_page]);
        assert!(refusal(&init).contains("whether the page is new"));
        assert!(refusal(&record(RmgrId::HEAP, heap::INSERT, &main, &[])).contains("missing"));
        let used = block(0, page_id(ForkNumber::Main, 0), &[]);
        let sequence = record(RmgrId::SEQUENCE, sequence::LOG, &[0; 60], &[used]);
        assert!(refusal(&sequence).contains("built anew"));
        let fragment = block(0, page_id(ForkNumber::Main, 0), &[0xFF, 0x1F, 2, 0, 7, 7]);
        let generic = record(RmgrId::GENERIC, 0, &[], &[fragment]);
        assert!(refusal(&generic).contains("2 bytes at offset 8191"));
        let map = block(0, page_id(ForkNumber::VisibilityMap, 1), &[]);
        let heap_page = block(1, page_id(ForkNumber::Main, 5), &[]);
        let visible = record(RmgrId::HEAP2, heap2::VISIBLE, &[0, 0, 0, 0, 1], &[map, heap_page]);
        assert!(refusal(&visible).contains("whose bits are on 1663/5/16384_vm block 0"));
    }
}
