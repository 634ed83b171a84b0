//! Storage: relation files that come into being or become shorter.
//!
//! ```text
//! CREATE, 16 bytes             TRUNCATE, 20 bytes
//! offset  size  field          offset  size  field
//!      0    12  locator             0     4  blkno     blocks that are left
//!     12     4  forkNum             4    12  locator
//!                                  16     4  flags     which forks
//! ```
//!
//! Files are removed by Transaction records. Rules: `src/include/catalog/storage_xlog.h`.

use crate::cursor::{Cursor, CursorError};
use crate::relation::{BlockNumber, ForkNumber, RelFileLocator, RelFork};

/// `XLOG_SMGR_CREATE`.
pub const CREATE: u8 = 0x10;
/// `XLOG_SMGR_TRUNCATE`.
pub const TRUNCATE: u8 = 0x20;

/// The main fork is cut (`SMGR_TRUNCATE_HEAP`).
pub const TRUNCATE_HEAP: i32 = 0x01;
/// The visibility map is cut (`SMGR_TRUNCATE_VM`).
pub const TRUNCATE_VM: i32 = 0x02;
/// The free space map is cut (`SMGR_TRUNCATE_FSM`).
pub const TRUNCATE_FSM: i32 = 0x04;

/// A Storage record that is not what it can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SmgrError {
    /// Too few bytes.
    #[error(transparent)]
    Length(#[from] CursorError),
    /// No such fork.
    #[error("fork number {0}, expected 0 to 3")]
    Fork(u32),
}

/// Reads CREATE's main data: the fork whose file is created.
///
/// # Errors
/// [`SmgrError`] if it is too short or there is no such fork.
pub fn read_create(main_data: &[u8]) -> Result<RelFork, SmgrError> {
    let mut cursor = Cursor::new(main_data);
    let locator = cursor.locator("rnode")?;
    let fork = cursor.u32("forkNum")?;
    let fork = ForkNumber::from_number(fork).ok_or(SmgrError::Fork(fork))?;
    Ok(RelFork { locator, fork })
}

/// TRUNCATE (`xl_smgr_truncate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncate {
    /// How many blocks of the main fork are left.
    pub blocks: BlockNumber,
    /// The relation.
    pub locator: RelFileLocator,
    /// [`TRUNCATE_HEAP`], [`TRUNCATE_VM`], [`TRUNCATE_FSM`].
    pub flags: i32,
}

impl Truncate {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        Ok(Self {
            blocks: cursor.u32("blkno")?,
            locator: cursor.locator("rnode")?,
            flags: cursor.i32("flags")?,
        })
    }
}
