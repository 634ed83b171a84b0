//! LogicalMessage: something an application says to logical decoding; nothing on disk.
//!
//! ```text
//! offset  size  field
//!      0     4  dbId
//!      4     1  transactional, then 3 unused
//!      8     8  prefix_size      with its NUL
//!     16     8  message_size
//!     24        prefix, message
//! ```
//!
//! Rules: `src/include/replication/message.h`.

use crate::cursor::{Cursor, CursorError};

/// `XLOG_LOGICAL_MESSAGE`.
pub const MESSAGE: u8 = 0x00;

/// A message (`xl_logical_message`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The database it was sent in.
    pub database: u32,
    /// Whether it is part of its transaction, or sent at once.
    pub transactional: bool,
    /// Whom it is for, without the NUL.
    pub prefix: &'a [u8],
    /// What it says.
    pub contents: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what its own fields say.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let database = cursor.u32("dbId")?;
        let transactional = cursor.u8("transactional")? != 0;
        cursor.take(3, "padding after transactional")?;
        let prefix_size = cursor.u64("prefix_size")?;
        let message_size = cursor.u64("message_size")?;
        let mut text =
            |size: u64, field| cursor.take(usize::try_from(size).unwrap_or(usize::MAX), field);
        let prefix = text(prefix_size, "prefix")?;
        let contents = text(message_size, "message")?;
        cursor.finish("message")?;
        let prefix = prefix.strip_suffix(&[0]).unwrap_or(prefix);
        Ok(Self { database, transactional, prefix, contents })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked() {
        let mut main = vec![5, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
        main.extend(b"p\0abc");
        let message = Message { database: 5, transactional: true, prefix: b"p", contents: b"abc" };
        assert_eq!(Message::read(&main), Ok(message));
        for length in 0..main.len() {
            assert!(Message::read(&main[..length]).is_err());
        }
        main[8..24].fill(0xFF);
        assert!(Message::read(&main).is_err());
    }
}
