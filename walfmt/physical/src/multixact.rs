//! What MultiXact's records do to `pg_multixact`.
//!
//! Rules: `multixact_redo` in `src/backend/access/transam/multixact.c`.

use walfmt::Record;
use walfmt::rmgr::multixact::{self, Create, Truncate};

use crate::fault::Fault;
use crate::{PageAccess, RedoContext};

/// A change to the pages of `pg_multixact`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultiXactChange<'a> {
    /// Make this page of `pg_multixact/offsets` zeros, unless [`Create`](Self::Create) has begun it.
    ZeroOffsetsPage(u64),
    /// Make this page of `pg_multixact/members` zeros.
    ZeroMembersPage(u64),
    /// Write a new multixact's members, where they begin, and where the next one's do.
    Create(Create<'a>),
    /// Remove the segments that hold nothing but what is not needed any more.
    Truncate(Truncate),
}

/// Reads a MultiXact record.
pub(crate) fn read<'a>(
    record: &Record<'a>,
    context: &RedoContext,
) -> Result<MultiXactChange<'a>, Fault> {
    let (main, version) = (record.main_data, context.version);
    Ok(match record.header.opcode() {
        multixact::ZERO_OFF_PAGE => {
            MultiXactChange::ZeroOffsetsPage(multixact::read_zero_offsets_page(main, version)?)
        }
        multixact::ZERO_MEM_PAGE => {
            MultiXactChange::ZeroMembersPage(multixact::read_zero_members_page(main, version)?)
        }
        multixact::CREATE_ID => MultiXactChange::Create(Create::read(main)?),
        multixact::TRUNCATE_ID => MultiXactChange::Truncate(Truncate::read(main)?),
        opcode => return Err(Fault::unknown_opcode(opcode)),
    })
}

/// The members of a new multixact have been given out too, if by nothing else.
pub(crate) fn apply<A: PageAccess>(
    change: &MultiXactChange<'_>,
    record: &Record<'_>,
    access: &mut A,
) -> Result<(), A::Error> {
    access.change_multixacts(change)?;
    if let MultiXactChange::Create(create) = change {
        let newest = create.members().fold(record.header.xid, |newest, member| {
            if newest.precedes(member.xid) { member.xid } else { newest }
        });
        access.advance_next_xid(newest)?;
    }
    Ok(())
}
