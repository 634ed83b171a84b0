//! What redo functions say is wrong, before it is known which record said it.

use walfmt::Record;
use walfmt::cursor::CursorError;
use walfmt::image::ImageError;
use walfmt::page::PageError;
use walfmt::relation::PageId;

use crate::RedoError;

/// A record that cannot be replayed.
#[derive(Debug)]
pub(crate) enum Fault {
    /// See [`RedoError::Unsupported`].
    Unsupported(&'static str),
    /// See [`RedoError::Corrupt`].
    Corrupt(String),
}

impl Fault {
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }

    pub(crate) fn corrupt_by(error: impl std::fmt::Display) -> Self {
        Self::Corrupt(error.to_string())
    }

    pub(crate) fn unknown_opcode(opcode: u8) -> Self {
        Self::Corrupt(format!("there is no opcode {opcode:#04x}"))
    }

    /// The error about this record.
    pub(crate) fn of(self, record: &Record<'_>) -> RedoError {
        let (rmgr, opcode, lsn) = (record.header.rmgr, record.header.opcode(), record.start);
        match self {
            Self::Unsupported(what) => RedoError::Unsupported { rmgr, opcode, lsn, what },
            Self::Corrupt(what) => RedoError::Corrupt { rmgr, opcode, lsn, what },
        }
    }

    /// Says also which page it is about.
    pub(crate) fn on(self, page: PageId) -> Self {
        match self {
            Self::Corrupt(what) => Self::Corrupt(format!("{page}: {what}")),
            unsupported @ Self::Unsupported(_) => unsupported,
        }
    }
}

macro_rules! corrupt_from {
    ($($error:ty),*) => {
        $(impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                Self::Corrupt(error.to_string())
            }
        })*
    };
}
corrupt_from!(CursorError, ImageError, PageError);
corrupt_from!(walfmt::rmgr::clog::ClogError, walfmt::rmgr::smgr::SmgrError);
corrupt_from!(
    walfmt::rmgr::relmap::RelMapError,
    walfmt::rmgr::database::DatabaseError,
    walfmt::rmgr::tablespace::TablespaceError
);
corrupt_from!(walfmt::rmgr::xlog::XlogError, walfmt::rmgr::generic::FragmentError);
corrupt_from!(walfmt::rmgr::commit_ts::CommitTsError, walfmt::rmgr::multixact::MultiXactError);
corrupt_from!(walfmt::rmgr::xact::PrepareError);
