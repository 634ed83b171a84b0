//! `pg_multixact`: which transactions hold a row together.
//!
//! A multixact's members lie between its own first member and the next one's, so a new multixact
//! writes two entries of `offsets`. Servers do that from 15.16 on, and begin the page of the next
//! multixact before; those before 15.16 begin it only when the next multixact comes. Replay must
//! not take the page away again then: see [`MultiXacts::change`].
//!
//! Rules: `RecordNewMultiXact` and `multixact_redo` in `src/backend/access/transam/multixact.c` of
//! 15.18. There a checkpoint's `oldestMulti` moves only limits for new multixacts; releases before
//! 9.5 relied on it to truncate.

use walfmt::TransactionId;
use walfmt::bytes::{put, u32_at};
use walfmt::rmgr::multixact::{Create, Truncate};
use walfmt::slru::{
    EntryPosition, MULTIXACT_MEMBERS, MULTIXACT_OFFSETS, MemberPosition, segment_of_page,
};
use walfmt_physical::MultiXactChange;

use crate::error::FileError;
use crate::layout::Layout;
use crate::slru::Slru;

/// The first multixact id, also after they wrapped around.
const FIRST_MULTI: u32 = 1;
/// `MultiXactStatusNoKeyUpdate`, and above it `MultiXactStatusUpdate`; those below only lock.
const STATUS_NO_KEY_UPDATE: u8 = 4;
/// No multixact has more members: `MAX_BACKENDS`.
const MEMBERS_LOOKED_AT_MAX: u32 = 0x3_FFFF;

pub(crate) struct MultiXacts {
    offsets: Slru,
    members: Slru,
    /// The last page of `offsets` that was begun, if one was since replay began.
    last_begun: Option<u64>,
    /// The page of `offsets` that a multixact has begun whose record is from before 15.16.
    begun_early: Option<u64>,
}

impl MultiXacts {
    /// `next_multi` and `next_offset` are those of the checkpoint that replay begins from.
    pub(crate) fn new(layout: &Layout, next_multi: u32, next_offset: u32) -> Self {
        let latest_offsets = EntryPosition::of_multixact_offset(next_multi).page;
        let latest_members = MemberPosition::of(next_offset).page;
        Self {
            offsets: Slru::new(layout.clone(), &MULTIXACT_OFFSETS, latest_offsets),
            members: Slru::new(layout.clone(), &MULTIXACT_MEMBERS, latest_members),
            last_begun: None,
            begun_early: None,
        }
    }

    pub(crate) fn change(&mut self, change: &MultiXactChange<'_>) -> Result<(), FileError> {
        match change {
            MultiXactChange::ZeroOffsetsPage(page) => {
                if self.begun_early.take() == Some(*page) {
                    return Ok(());
                }
                self.last_begun = Some(*page);
                self.offsets.zero_page(*page)
            }
            MultiXactChange::ZeroMembersPage(page) => self.members.zero_page(*page),
            MultiXactChange::Create(create) => self.create(create),
            MultiXactChange::Truncate(truncate) => self.truncate(truncate),
        }
    }

    /// The transaction of a multixact that has updated or deleted the row, if one has
    /// (`MultiXactIdGetUpdateXid`).
    pub(crate) fn updater(&mut self, multi: u32) -> Result<Option<TransactionId>, FileError> {
        let next = multi.wrapping_add(1).max(FIRST_MULTI);
        let (mut offset, end) = (self.offset(multi)?, self.offset(next)?);
        // As many as there can be backends, and then some: whatever the pages say.
        for _ in 0..MEMBERS_LOOKED_AT_MAX {
            if offset == end {
                break;
            }
            let place = MemberPosition::of(offset);
            let page = self.members.page(place.page)?;
            if page[place.status] >= STATUS_NO_KEY_UPDATE {
                return Ok(Some(TransactionId(u32_at(page, place.xid))));
            }
            offset = offset.wrapping_add(1);
        }
        Ok(None)
    }

    fn offset(&mut self, multi: u32) -> Result<u32, FileError> {
        let place = EntryPosition::of_multixact_offset(multi);
        Ok(u32_at(self.offsets.page(place.page)?, place.byte))
    }

    /// Writes what was changed. It is durable after the next sync.
    pub(crate) fn write_changed(&mut self) -> Result<(), FileError> {
        self.offsets.write_changed()?;
        self.members.write_changed()
    }

    fn create(&mut self, create: &Create<'_>) -> Result<(), FileError> {
        if let Some(page) = self.begun_early.take() {
            tracing::warn!(page, "no record began this page of pg_multixact/offsets");
        }
        let own = EntryPosition::of_multixact_offset(create.multi);
        let next_multi = create.multi.wrapping_add(1).max(FIRST_MULTI);
        let next = EntryPosition::of_multixact_offset(next_multi);
        if next.page != own.page {
            self.begin_next_page(own.page, next.page)?;
        }
        put(self.offsets.change_page(own.page)?, own.byte, create.offset.to_le_bytes());
        // Member 0 is never used: 0 in `offsets` means that nothing was written there.
        let next_offset = create.end_offset().max(1);
        put(self.offsets.change_page(next.page)?, next.byte, next_offset.to_le_bytes());

        let mut offset = create.offset;
        for member in create.members() {
            let place = MemberPosition::of(offset);
            let page = self.members.change_page(place.page)?;
            page[place.status] = member.status;
            put(page, place.xid, member.xid.0.to_le_bytes());
            offset = offset.wrapping_add(1);
        }
        Ok(())
    }

    /// The next multixact is on another page. If no record has begun that page, none will before
    /// its first multixact: its server is older than 15.16.
    ///
    /// Records that begin pages are in order, so the last of them tells whether this one was
    /// begun; files are asked only if there was none yet.
    fn begin_next_page(&mut self, own_page: u64, next_page: u64) -> Result<(), FileError> {
        let is_missing = match self.last_begun {
            Some(last_begun) => last_begun == own_page,
            None => !self.offsets.page_exists(next_page)?,
        };
        if is_missing {
            self.offsets.zero_page(next_page)?;
            self.begun_early = Some(next_page);
            self.last_begun = Some(next_page);
        }
        Ok(())
    }

    fn truncate(&mut self, truncate: &Truncate) -> Result<(), FileError> {
        // Members may fill nearly their whole circle, so their pages cannot be compared: what goes
        // is what lies between the two ends.
        let segment_of = |offset| segment_of_page(MemberPosition::of(offset).page);
        let (start, end) = (segment_of(truncate.start_offset), segment_of(truncate.end_offset));
        self.members.remove_segments(|segment| {
            if start <= end {
                (start..end).contains(&segment)
            } else {
                segment >= start || segment < end
            }
        })?;
        // The page of the oldest multixact may not be there yet, if it is also the next one.
        let before = match truncate.end_multi.wrapping_sub(1) {
            0 => u32::MAX,
            before => before,
        };
        self.offsets.truncate(EntryPosition::of_multixact_offset(before).page)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn open(directory: &Path, next_multi: u32) -> MultiXacts {
        for slru in [&MULTIXACT_OFFSETS, &MULTIXACT_MEMBERS] {
            std::fs::create_dir_all(directory.join(slru.directory)).unwrap();
        }
        MultiXacts::new(&Layout::new(directory).unwrap(), next_multi, 1)
    }

    fn create(multixacts: &mut MultiXacts, multi: u32, offset: u32, xids: &[u32]) {
        let mut main = Vec::new();
        for word in [multi, offset, xids.len() as u32] {
            main.extend(word.to_le_bytes());
        }
        for xid in xids {
            main.extend(xid.to_le_bytes());
            main.extend(4_u32.to_le_bytes());
        }
        let create = Create::read(&main).unwrap();
        multixacts.change(&MultiXactChange::Create(create)).unwrap();
    }

    fn offsets(multixacts: &mut MultiXacts, multi: u32) -> u32 {
        let place = EntryPosition::of_multixact_offset(multi);
        u32_at(multixacts.offsets.page(place.page).unwrap(), place.byte)
    }

    #[test]
    fn a_multixact_says_where_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let mut multixacts = open(directory.path(), 1);
        create(&mut multixacts, 5, 9, &[700, 701, 702]);
        assert_eq!((offsets(&mut multixacts, 5), offsets(&mut multixacts, 6)), (9, 12));
        multixacts.write_changed().unwrap();
        let members = directory.path().join("pg_multixact/members/0000");
        let members = std::fs::read(members).unwrap();
        // Members 9, 10 and 11 are in the third group, after its first one.
        assert_eq!(members[40..44], [0, 4, 4, 4]);
        assert_eq!(members[48..52], 700_u32.to_le_bytes());
        assert_eq!(members[56..60], 702_u32.to_le_bytes());
        assert_eq!(members.len(), 8192);
    }

    #[test]
    fn numbers_wrap_around() {
        let directory = tempfile::tempdir().unwrap();
        let mut multixacts = open(directory.path(), u32::MAX);
        create(&mut multixacts, u32::MAX, u32::MAX - 1, &[700, 701]);
        assert_eq!(offsets(&mut multixacts, u32::MAX), u32::MAX - 1);
        assert_eq!(offsets(&mut multixacts, 1), 1, "0 is skipped, by multixacts and by members");
        let last = MemberPosition::of(u32::MAX);
        assert_eq!(multixacts.members.page(last.page).unwrap()[last.status], 4);
    }

    #[test]
    fn pages_begun_by_their_record_stay_the_records() {
        // As a server writes them from 15.16 on: the next page begins before its predecessor's end.
        let directory = tempfile::tempdir().unwrap();
        let mut multixacts = open(directory.path(), 1);
        multixacts.change(&MultiXactChange::ZeroOffsetsPage(1)).unwrap();
        create(&mut multixacts, 2047, 9, &[700]);
        assert_eq!(multixacts.begun_early, None);
        assert_eq!(offsets(&mut multixacts, 2048), 10);
    }

    #[test]
    fn records_from_before_15_16_begin_a_page_too_late() {
        let directory = tempfile::tempdir().unwrap();
        let mut multixacts = open(directory.path(), 1);
        create(&mut multixacts, 2047, 9, &[700]);
        assert_eq!(multixacts.begun_early, Some(1));
        multixacts.change(&MultiXactChange::ZeroOffsetsPage(1)).unwrap();
        assert_eq!(offsets(&mut multixacts, 2048), 10, "the late record takes nothing away");
        create(&mut multixacts, 2048, 10, &[701]);
        assert_eq!(offsets(&mut multixacts, 2049), 11);

        // Also when pages were begun by records before, and when the file has the page already.
        multixacts.change(&MultiXactChange::ZeroOffsetsPage(2)).unwrap();
        create(&mut multixacts, 3 * 2048 - 1, 20, &[700]);
        assert_eq!(multixacts.begun_early, Some(3));
        multixacts.write_changed().unwrap();
        let mut multixacts = open(directory.path(), 1);
        create(&mut multixacts, 3 * 2048 - 1, 20, &[700]);
        assert_eq!(multixacts.begun_early, None);
    }

    #[test]
    fn truncation_removes_what_lies_between() {
        let directory = tempfile::tempdir().unwrap();
        let per_segment = |entries: u32| entries * 32;
        let names = |slru: &str| {
            let entries = std::fs::read_dir(directory.path().join(slru)).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = names.collect();
            names.sort();
            names
        };
        let mut multixacts = open(directory.path(), 1);
        for segment in 0..4 {
            multixacts.change(&MultiXactChange::ZeroOffsetsPage(segment * 32)).unwrap();
            multixacts.change(&MultiXactChange::ZeroMembersPage(segment * 32)).unwrap();
        }
        let last = segment_of_page(MULTIXACT_MEMBERS.page_max) * 32;
        multixacts.change(&MultiXactChange::ZeroMembersPage(last)).unwrap();
        multixacts.write_changed().unwrap();
        let mut truncate = Truncate {
            oldest_multi_db: 5,
            start_multi: 1,
            end_multi: per_segment(2048) * 2,
            start_offset: 1,
            end_offset: per_segment(1636) * 2 + 7,
        };
        multixacts.change(&MultiXactChange::Truncate(truncate)).unwrap();
        assert_eq!(names("pg_multixact/offsets"), ["0001", "0002", "0003"]);
        assert_eq!(names("pg_multixact/members"), ["0002", "0003", "14078"]);
        truncate.start_offset = u32::MAX;
        truncate.end_offset = per_segment(1636) * 3;
        multixacts.change(&MultiXactChange::Truncate(truncate)).unwrap();
        assert_eq!(names("pg_multixact/members"), ["0003"]);
    }
}
