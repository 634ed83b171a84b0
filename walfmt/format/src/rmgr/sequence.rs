//! Sequence: the one row of a sequence, whole, each time it is written.
//!
//! ```text
//! LOG, with block 0, a page that is always built from nothing
//! offset  size  field
//!      0    12  node
//!     12        the tuple, header included, up to the end
//! ```
//!
//! Rules: `src/include/commands/sequence.h`, `seq_redo` in `src/backend/commands/sequence.c`.

use crate::cursor::{Cursor, CursorError};
use crate::relation::RelFileLocator;

/// `XLOG_SEQ_LOG`.
pub const LOG: u8 = 0x00;

/// The special space of a sequence's page (`sequence_magic`), in bytes before it is rounded up.
pub const SPECIAL_SIZE: usize = 4;
/// The number in the special space (`SEQ_MAGIC`).
pub const MAGIC: u32 = 0x1717;

/// LOG (`xl_seq_rec`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceRow<'a> {
    /// The sequence.
    pub locator: RelFileLocator,
    /// Its row as it lies on the page.
    pub tuple: &'a [u8],
}

impl<'a> SequenceRow<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        Ok(Self { locator: cursor.locator("node")?, tuple: cursor.rest() })
    }
}
