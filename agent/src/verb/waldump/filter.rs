//! Which records are shown.

use walfmt::record::RecordHeader;
use walfmt::{BlockNumber, ForkNumber, Record, RelFileLocator, TransactionId};

use super::arguments::{Arguments, RmgrArgument};

/// What a record must be like. A condition that is not set lets all pass.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    /// By number; nothing if all pass.
    rmgrs: Option<Box<[bool; 256]>>,
    xid: Option<TransactionId>,
    relation: Option<RelFileLocator>,
    block: Option<BlockNumber>,
    fork: Option<ForkNumber>,
    only_images: bool,
}

impl Filter {
    pub(super) fn new(arguments: &Arguments) -> Self {
        let mut rmgrs = None;
        for rmgr in &arguments.rmgr {
            if let RmgrArgument::One(rmgr) = rmgr {
                rmgrs.get_or_insert_with(|| Box::new([false; 256]))[usize::from(rmgr.0)] = true;
            }
        }
        Self {
            rmgrs,
            xid: arguments.xid.map(TransactionId),
            relation: arguments.relation,
            block: arguments.block,
            fork: arguments.fork,
            only_images: arguments.only_images,
        }
    }

    /// What the header alone decides.
    pub(super) fn passes_header(&self, header: &RecordHeader) -> bool {
        self.rmgrs.as_ref().is_none_or(|rmgrs| rmgrs[usize::from(header.rmgr.0)])
            && self.xid.is_none_or(|xid| xid == header.xid)
    }

    /// What the blocks decide: one of them must meet all that is asked of blocks.
    pub(super) fn passes_blocks(&self, record: &Record<'_>) -> bool {
        let Self { relation, block, fork, .. } = *self;
        let asks = relation.is_some() || block.is_some() || fork.is_some();
        let meets = |page: &walfmt::relation::PageId| {
            relation.is_none_or(|relation| relation == page.locator)
                && block.is_none_or(|block| block == page.block)
                && fork.is_none_or(|fork| fork == page.fork)
        };
        (!asks || record.blocks.iter().any(|reference| meets(&reference.page)))
            && (!self.only_images || record.blocks.iter().any(|block| block.image.is_some()))
    }
}
