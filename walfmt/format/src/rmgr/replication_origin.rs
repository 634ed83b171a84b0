//! ReplicationOrigin: how far changes that come from elsewhere were applied here.
//!
//! ```text
//! SET, 16 bytes                       DROP, 2 bytes
//! offset  size  field                 offset  size  field
//!      0     8  remote_lsn                 0     2  node_id
//!      8     2  node_id
//!     10     1  force, then 5 unused
//! ```
//!
//! Most progress is in commit, abort and prepare records. Rules: `src/include/replication/origin.h`.

use crate::cursor::{Cursor, CursorError};
use crate::lsn::Lsn;

/// `XLOG_REPLORIGIN_SET`.
pub const SET: u8 = 0x00;
/// `XLOG_REPLORIGIN_DROP`.
pub const DROP: u8 = 0x10;

/// No origin: the change was made here (`InvalidRepOriginId`).
pub const NO_ORIGIN: u16 = 0;
/// The change comes from elsewhere, and nobody asks from where (`DoNotReplicateId`).
pub const DO_NOT_REPLICATE: u16 = u16::MAX;

/// SET (`xl_replorigin_set`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    /// How far, in the origin's own WAL.
    pub remote_lsn: Lsn,
    /// Which origin.
    pub origin: u16,
    /// Whether progress may also go back.
    pub force: bool,
}

impl Set {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        Ok(Self {
            remote_lsn: Lsn(cursor.u64("remote_lsn")?),
            origin: cursor.u16("node_id")?,
            force: cursor.u8("force")? != 0,
        })
    }
}

/// Reads DROP's main data: the origin that is forgotten.
///
/// # Errors
/// [`CursorError`] if it is too short.
pub fn read_drop(main_data: &[u8]) -> Result<u16, CursorError> {
    Cursor::new(main_data).u16("node_id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_layout_says() {
        let main = [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 1, 9, 9, 9, 9, 9];
        let set = Set { remote_lsn: Lsn(0x2_0000_0001), origin: 3, force: true };
        assert_eq!(Set::read(&main), Ok(set));
        assert!(Set::read(&main[..10]).is_err());
        assert_eq!(read_drop(&[5, 1]), Ok(0x105));
    }
}
