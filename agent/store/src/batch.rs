//! What travels from the dispatcher to the workers: record bytes once, and many small tasks.
//!
//! ```text
//! RecordBuffer:   [start u64][end u64][record bytes] [start][end][record bytes] ...
//!                  ▲                                  ▲
//! tasks of worker 0: {record, page, change}           │
//! tasks of worker 1:                  {record, page, change}, ...
//! ```
//!
//! All workers share one buffer. Records without tasks are not copied into it.

use std::sync::Arc;

use walfmt::bytes::u64_at;
use walfmt::record::RecordHeader;
use walfmt::relation::BlockNumber;
use walfmt::{Lsn, RawRecord};
use walfmt_physical::{PageChange, PageNeed, RedoContext};

use crate::cache::PageKey;
use crate::relations::ForkId;

const POSITIONS_SIZE: usize = 16;

/// The bytes of a batch's records.
#[derive(Debug, Default)]
pub(crate) struct RecordBuffer(Vec<u8>);

impl RecordBuffer {
    /// An empty buffer with room for this.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// Adds a record; gives its place in the buffer.
    pub(crate) fn push(&mut self, record: &RawRecord<'_>) -> u32 {
        let place = u32::try_from(self.0.len()).expect("a batch ends long before 4 GB");
        self.0.extend_from_slice(&record.start.0.to_le_bytes());
        self.0.extend_from_slice(&record.end.0.to_le_bytes());
        self.0.extend_from_slice(record.bytes);
        place
    }

    /// Takes back the record at `place` and all after it.
    pub(crate) fn truncate(&mut self, place: u32) {
        self.0.truncate(place as usize);
    }

    /// The bytes of the record at `place`, and those behind.
    #[inline]
    pub(crate) fn bytes(&self, place: u32) -> &[u8] {
        self.0.get(place as usize + POSITIONS_SIZE..).unwrap_or_default()
    }

    /// The record at `place`.
    pub(crate) fn get(&self, place: u32) -> RawRecord<'_> {
        let entry = self.0.get(place as usize..).unwrap_or_default();
        let bytes = entry.get(POSITIONS_SIZE..).unwrap_or_default();
        let header = RecordHeader::from_bytes(bytes);
        RawRecord {
            start: Lsn(u64_at(entry, 0)),
            end: Lsn(u64_at(entry, 8)),
            header,
            bytes: bytes.get(..header.total_length as usize).unwrap_or_default(),
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }

    /// Empties the buffer for its next use. One that a huge record has blown up is let go.
    pub(crate) fn reset(&mut self, capacity_max: usize) {
        self.0.clear();
        if self.0.capacity() > capacity_max {
            self.0 = Vec::new();
        }
    }
}

/// One change to one page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    /// The record's place in the batch's buffer.
    pub(crate) record: u32,
    pub(crate) fork: ForkId,
    pub(crate) block: BlockNumber,
    pub(crate) change: PageChange,
    pub(crate) need: PageNeed,
    /// The fork did not reach this page before: there is nothing to read, and the page is written
    /// even if the change leaves it empty.
    pub(crate) extends: bool,
}

impl Task {
    pub(crate) const fn page_key(&self) -> PageKey {
        PageKey { fork: self.fork, block: self.block }
    }
}

/// One worker's share of some records.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) records: Arc<RecordBuffer>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) context: RedoContext,
    /// The end of the last record that is in this batch or before it.
    pub(crate) end: Lsn,
}
