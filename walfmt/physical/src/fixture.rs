//! Handmade records and pages, and a [`PageAccess`] that writes down what it is told.

use std::convert::Infallible;

use walfmt::record::RecordHeader;
use walfmt::relation::{BlockNumber, DatabaseLocator, ForkNumber, PageId, RelFileLocator, RelFork};
use walfmt::rmgr::RmgrId;
use walfmt::rmgr::heap2::RewriteMapping;
use walfmt::rmgr::relmap::RelationMap;
use walfmt::rmgr::tablespace::CreateTablespace;
use walfmt::rmgr::xact::Prepare;
use walfmt::rmgr::xlog::Change;
use walfmt::version::VERSIONS;
use walfmt::{BLOCK_SIZE, BlockReference, Lsn, Record, TransactionId};

use crate::{
    CommitTsChange, MultiXactChange, OriginChange, Page, PageAccess, PageChange, RedoContext,
    TransactionStatus, page,
};

pub(crate) const XID: TransactionId = TransactionId(700);
pub(crate) const END: Lsn = Lsn(0x1000);

pub(crate) fn context() -> RedoContext {
    RedoContext { version: &VERSIONS[0], hint_bits_are_logged: true }
}

pub(crate) fn page_id(fork: ForkNumber, block: BlockNumber) -> PageId {
    PageId {
        locator: RelFileLocator { tablespace: 1663, database: 5, relation: 16384 },
        fork,
        block,
    }
}

pub(crate) fn record<'a>(
    rmgr: RmgrId,
    info: u8,
    main_data: &'a [u8],
    blocks: &[BlockReference<'a>],
) -> Record<'a> {
    Record {
        start: Lsn(0xF00),
        end: END,
        header: RecordHeader { total_length: 0, xid: XID, prev: Lsn(0xE00), info, rmgr, crc: 0 },
        blocks: blocks.iter().copied().collect(),
        main_data,
        origin: 0,
        toplevel_xid: TransactionId::INVALID,
    }
}

pub(crate) fn block(id: u8, page: PageId, data: &[u8]) -> BlockReference<'_> {
    BlockReference { id, page, will_init: false, image: None, data }
}

/// A page of a heap with tuples of 32 bytes, all attributes 0xAA.
pub(crate) fn heap_page(tuples: u16) -> Page {
    let mut page = [0; BLOCK_SIZE];
    page::init(&mut page, 0);
    page::set_lsn(&mut page, Lsn(0x800));
    let mut tuple = [0xAA; 32];
    tuple[..24].fill(0);
    tuple[0] = 3; // xmin
    tuple[22] = 24; // t_hoff
    for item in 1..=tuples {
        page::put_item(&mut page, item, &tuple).expect("room for it");
    }
    page
}

/// Writes down each call, one line each.
#[derive(Default)]
pub(crate) struct Calls(pub(crate) Vec<String>);

impl PageAccess for Calls {
    type Error = Infallible;

    fn change_page(
        &mut self,
        _record: &Record<'_>,
        page: PageId,
        change: PageChange,
    ) -> Result<(), Infallible> {
        self.0.push(format!("change {page} {change:?}"));
        Ok(())
    }

    fn create_fork(&mut self, fork: RelFork) -> Result<(), Infallible> {
        self.0.push(format!("create {}{}", fork.locator, fork.fork.file_suffix()));
        Ok(())
    }

    fn truncate_fork(&mut self, fork: RelFork, blocks: BlockNumber) -> Result<(), Infallible> {
        self.0.push(format!("cut {}{} to {blocks}", fork.locator, fork.fork.file_suffix()));
        Ok(())
    }

    fn drop_relations(
        &mut self,
        locators: &mut dyn Iterator<Item = RelFileLocator>,
    ) -> Result<(), Infallible> {
        self.0.push(format!("drop {:?}", locators.collect::<Vec<_>>()));
        Ok(())
    }

    fn write_relation_map(&mut self, map: &RelationMap<'_>) -> Result<(), Infallible> {
        self.0.push(format!("map of {:?}", map.database));
        Ok(())
    }

    fn create_database(&mut self, directory: DatabaseLocator) -> Result<(), Infallible> {
        self.0.push(format!("create {directory:?}"));
        Ok(())
    }

    fn copy_database(
        &mut self,
        from: DatabaseLocator,
        to: DatabaseLocator,
    ) -> Result<(), Infallible> {
        self.0.push(format!("copy {from:?} to {to:?}"));
        Ok(())
    }

    fn drop_databases(
        &mut self,
        directories: &mut dyn Iterator<Item = DatabaseLocator>,
    ) -> Result<(), Infallible> {
        self.0.push(format!("drop {:?}", directories.collect::<Vec<_>>()));
        Ok(())
    }

    fn create_tablespace(&mut self, create: &CreateTablespace<'_>) -> Result<(), Infallible> {
        let place = if create.location.is_empty() { "in place" } else { "elsewhere" };
        self.0.push(format!("create tablespace {} {place}", create.tablespace));
        Ok(())
    }

    fn drop_tablespace(&mut self, tablespace: u32) -> Result<(), Infallible> {
        self.0.push(format!("drop tablespace {tablespace}"));
        Ok(())
    }

    fn write_rewrite_mapping(
        &mut self,
        record: &Record<'_>,
        mapping: &RewriteMapping<'_>,
    ) -> Result<(), Infallible> {
        self.0.push(format!("write {}", mapping.file_name(record.header.xid)));
        Ok(())
    }

    fn set_transaction_status(
        &mut self,
        xids: &mut dyn Iterator<Item = TransactionId>,
        status: TransactionStatus,
    ) -> Result<(), Infallible> {
        self.0.push(format!("{status:?} {:?}", xids.collect::<Vec<_>>()));
        Ok(())
    }

    fn zero_clog_page(&mut self, page: u64) -> Result<(), Infallible> {
        self.0.push(format!("zero clog {page}"));
        Ok(())
    }

    fn truncate_clog(&mut self, page: u64) -> Result<(), Infallible> {
        self.0.push(format!("cut clog before {page}"));
        Ok(())
    }

    fn change_multixacts(&mut self, change: &MultiXactChange<'_>) -> Result<(), Infallible> {
        self.0.push(match change {
            MultiXactChange::Create(create) => {
                let members = create.members().map(|member| (member.xid, member.status));
                let members: Vec<_> = members.collect();
                format!("multixact {} at {}: {members:?}", create.multi, create.offset)
            }
            change => format!("multixacts {change:?}"),
        });
        Ok(())
    }

    fn change_commit_times(&mut self, change: &CommitTsChange) -> Result<(), Infallible> {
        self.0.push(format!("commit times {change:?}"));
        Ok(())
    }

    fn set_commit_time(
        &mut self,
        xids: &mut dyn Iterator<Item = TransactionId>,
        time: i64,
        origin: u16,
    ) -> Result<(), Infallible> {
        let xids: Vec<_> = xids.collect();
        self.0.push(format!("committed at {time} by origin {origin}: {xids:?}"));
        Ok(())
    }

    fn prepare_transaction(
        &mut self,
        record: &Record<'_>,
        prepare: &Prepare<'_>,
    ) -> Result<bool, Infallible> {
        self.0.push(format!("prepare {}, {} bytes", prepare.xid, record.main_data.len()));
        Ok(true)
    }

    fn finish_prepared(&mut self, xid: TransactionId) -> Result<(), Infallible> {
        self.0.push(format!("finish prepared {xid}"));
        Ok(())
    }

    fn change_origin(&mut self, change: &OriginChange) -> Result<(), Infallible> {
        self.0.push(format!("origin {change:?}"));
        Ok(())
    }

    fn advance_next_xid(&mut self, xid: TransactionId) -> Result<(), Infallible> {
        self.0.push(format!("xid {xid}"));
        Ok(())
    }

    fn server_state(&mut self, _record: &Record<'_>, change: &Change) -> Result<(), Infallible> {
        self.0.push(format!("server {change:?}"));
        Ok(())
    }
}
