//! One WAL record: its header, block references and data.
//!
//! ```text
//! header, 24 bytes (XLogRecord)
//! offset  size  field
//!      0     4  xl_tot_len   length of the whole record, this header included
//!      4     4  xl_xid       transaction, or 0
//!      8     8  xl_prev      where the previous record begins
//!     16     1  xl_info      high half: the resource manager's opcode; low half: XLR_* flags
//!     17     1  xl_rmid      resource manager
//!     18     2  (zero)       inside the CRC
//!     20     4  xl_crc       CRC-32C of bytes 24.. and then of bytes 0..20
//!
//! body: first all headers, then all data, nothing aligned
//!   block header       id 0..=32 u8, fork and flags u8, data length u16
//!     [image header    length u16, hole offset u16, bimg_info u8, [hole length u16]]
//!     [locator         12 bytes, unless the same as of the block header before]
//!     block number     u32
//!   origin             253 u8, u16
//!   top-level xid      252 u8, u32
//!   main data header   255 u8, length u8   or   254 u8, length u32
//!   for each block: image bytes, then data bytes
//!   main data
//! ```
//!
//! Rules: `src/include/access/xlogrecord.h`, `DecodeXLogRecord` in
//! `src/backend/access/transam/xlogreader.c`.

use smallvec::SmallVec;

use crate::bytes::{u8_at, u32_at, u64_at};
use crate::cursor::{Cursor, CursorError};
use crate::image::BlockImage;
use crate::lsn::{Lsn, TransactionId};
use crate::relation::{BlockNumber, ForkNumber, PageId};
use crate::rmgr::RmgrId;
use crate::version::Version;

/// Size of the record header, in bytes (`SizeOfXLogRecord`).
pub const RECORD_HEADER_SIZE: usize = 24;

/// The longest record a server writes: 1020 MB since 16 (`XLogRecordMaxSize`); before that nothing
/// but the 1 GB limit of an allocation stood against longer ones.
pub const RECORD_SIZE_MAX: usize = 1020 << 20;

/// The highest block id a record may use (`XLR_MAX_BLOCK_ID`).
pub const BLOCK_ID_MAX: u8 = 32;

const BLOCK_ID_DATA_SHORT: u8 = 255;
const BLOCK_ID_DATA_LONG: u8 = 254;
const BLOCK_ID_ORIGIN: u8 = 253;
const BLOCK_ID_TOPLEVEL_XID: u8 = 252;

const BKPBLOCK_FORK_MASK: u8 = 0x0F;
const BKPBLOCK_HAS_IMAGE: u8 = 0x10;
const BKPBLOCK_HAS_DATA: u8 = 0x20;
const BKPBLOCK_WILL_INIT: u8 = 0x40;
const BKPBLOCK_SAME_REL: u8 = 0x80;

/// The fixed first 24 bytes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Length of the record in bytes, header included, padding not (`xl_tot_len`).
    pub total_length: u32,
    /// The transaction, or 0 (`xl_xid`).
    pub xid: TransactionId,
    /// Where the previous record begins (`xl_prev`).
    pub prev: Lsn,
    /// Opcode and flags (`xl_info`).
    pub info: u8,
    /// Resource manager (`xl_rmid`).
    pub rmgr: RmgrId,
    /// `xl_crc`.
    pub crc: u32,
}

impl RecordHeader {
    const BLANK: Self = Self {
        total_length: 0,
        xid: TransactionId::INVALID,
        prev: Lsn::INVALID,
        info: 0,
        rmgr: RmgrId::XLOG,
        crc: 0,
    };

    /// Reads a header. Nothing is checked; fewer than 24 bytes read as if zeros followed.
    #[inline]
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        match bytes.first_chunk() {
            Some(whole) => Self::from_whole(whole),
            None => {
                let mut padded = [0; RECORD_HEADER_SIZE];
                padded[..bytes.len()].copy_from_slice(bytes);
                Self::from_whole(&padded)
            }
        }
    }

    #[inline]
    fn from_whole(bytes: &[u8; RECORD_HEADER_SIZE]) -> Self {
        Self {
            total_length: u32_at(bytes, 0),
            xid: TransactionId(u32_at(bytes, 4)),
            prev: Lsn(u64_at(bytes, 8)),
            info: u8_at(bytes, 16),
            rmgr: RmgrId(u8_at(bytes, 17)),
            crc: u32_at(bytes, 20),
        }
    }

    /// The half of `xl_info` that is the resource manager's own.
    #[must_use]
    pub const fn opcode(&self) -> u8 {
        self.info & 0xF0
    }
}

/// The CRC that belongs into a record's header: over the body, then over the header's first 20
/// bytes.
#[must_use]
pub fn record_crc(record: &[u8]) -> u32 {
    let (header, body) = record.split_at(RECORD_HEADER_SIZE.min(record.len()));
    crc32c::crc32c_append(crc32c::crc32c(body), header.get(..20).unwrap_or(header))
}

/// A record whose framing and CRC are right: a header and undecoded bytes.
#[derive(Clone, Copy, Debug)]
pub struct RawRecord<'a> {
    /// Where it begins.
    pub start: Lsn,
    /// Where it ends, padding included (`EndRecPtr`): the LSN that replay stamps on pages. If the
    /// record fills a page, this is the page's end, before the next page's header; after a segment
    /// switch, it is the segment's end.
    pub end: Lsn,
    /// Its header.
    pub header: RecordHeader,
    /// All of it, header included, put together from the pages it lies on.
    pub bytes: &'a [u8],
}

/// One page that a record changes.
#[derive(Clone, Copy, Debug)]
pub struct BlockReference<'a> {
    /// The record's own number for it.
    pub id: u8,
    /// Which page.
    pub page: PageId,
    /// The record rebuilds the page from nothing, whatever is there (`BKPBLOCK_WILL_INIT`).
    pub will_init: bool,
    /// A copy of the page.
    pub image: Option<BlockImage<'a>>,
    /// What belongs to this page; may be empty.
    pub data: &'a [u8],
}

impl<'a> BlockReference<'a> {
    /// The image, if replay must put it in place of the page (`BKPIMAGE_APPLY`). An image without
    /// that flag is there for comparison only.
    #[must_use]
    pub fn image_to_apply(&self) -> Option<&BlockImage<'a>> {
        self.image.as_ref().filter(|image| image.apply)
    }
}

/// A decoded record.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Where it begins.
    pub start: Lsn,
    /// Where it ends (`EndRecPtr`), see [`RawRecord::end`].
    pub end: Lsn,
    /// Its header.
    pub header: RecordHeader,
    /// Its block references, by ascending id; ids may be left out.
    pub blocks: SmallVec<[BlockReference<'a>; 3]>,
    /// What belongs to no page.
    pub main_data: &'a [u8],
    /// Replication origin (`RepOriginId`), 0 for none.
    pub origin: u16,
    /// The top-level transaction, when the record says it (`wal_level=logical`, 14 and later).
    pub toplevel_xid: TransactionId,
}

/// A record whose CRC is right but whose contents are not: corrupt beyond doubt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Too few or too many bytes.
    #[error(transparent)]
    Length(#[from] CursorError),
    /// A block id that does not exist or is out of order.
    #[error("block id {0} is invalid or out of order")]
    BlockId(u8),
    /// A fork number that does not exist.
    #[error("block {id} has fork number {fork}")]
    Fork {
        /// The block's id.
        id: u8,
        /// The fork number found.
        fork: u8,
    },
    /// "Same relation as before" on the first block reference.
    #[error("block {0} refers to a relation before it, and there is none")]
    NoRelationBefore(u8),
    /// `BKPBLOCK_HAS_DATA` and the data length contradict each other.
    #[error("block {id} has data flag and data length {length} that contradict each other")]
    DataFlag {
        /// The block's id.
        id: u8,
        /// The length found.
        length: u16,
    },
    /// An image's header contradicts itself.
    #[error(
        "image of block {id} contradicts itself: length {length}, hole {hole_offset}+{hole_length}, flags {flags:#04x}"
    )]
    Image {
        /// The block's id.
        id: u8,
        /// `bimg_len`.
        length: u16,
        /// `hole_offset`.
        hole_offset: u16,
        /// `hole_length`.
        hole_length: u16,
        /// `bimg_info`.
        flags: u8,
    },
}

impl<'a> Record<'a> {
    /// Decodes a record's body.
    ///
    /// # Errors
    /// [`DecodeError`] if the contents contradict themselves.
    pub fn decode(raw: &RawRecord<'a>, version: &Version) -> Result<Self, DecodeError> {
        let mut record = Self::blank();
        record.read(raw, version)?;
        Ok(record)
    }

    /// A record with nothing in it, for [`Record::read`].
    #[must_use]
    pub const fn blank() -> Self {
        Self {
            start: Lsn::INVALID,
            end: Lsn::INVALID,
            header: RecordHeader::BLANK,
            blocks: SmallVec::new_const(),
            main_data: &[],
            origin: 0,
            toplevel_xid: TransactionId::INVALID,
        }
    }

    /// [`Record::decode`] into a record that is there already: one is too large to be handed
    /// around for each of millions.
    ///
    /// # Errors
    /// [`DecodeError`] if the contents contradict themselves; the record is then undefined.
    #[inline]
    pub fn read(&mut self, raw: &RawRecord<'a>, version: &Version) -> Result<(), DecodeError> {
        // Apart from the rest, so that in the caller these are values at hand: copied from memory
        // they would wait for what was just written there in parts.
        (self.start, self.end, self.header) = (raw.start, raw.end, raw.header);
        self.read_body(raw.bytes, version)
    }

    fn read_body(&mut self, bytes: &'a [u8], version: &Version) -> Result<(), DecodeError> {
        (self.origin, self.toplevel_xid) = (0, TransactionId::INVALID);
        self.blocks.clear();
        let mut announced = 0_usize; // bytes of images and data that the headers so far speak of
        let mut main_length = 0_usize;
        let mut cursor = Cursor::new(bytes.get(RECORD_HEADER_SIZE..).unwrap_or_default());

        while cursor.rest().len() > announced {
            let id = cursor.u8("block id")?;
            match id {
                0..=BLOCK_ID_MAX => {
                    announced += self.read_block_header(&mut cursor, id, bytes, version)?;
                }
                BLOCK_ID_ORIGIN => self.origin = cursor.u16("origin")?,
                BLOCK_ID_TOPLEVEL_XID => {
                    self.toplevel_xid = TransactionId(cursor.u32("toplevel_xid")?);
                }
                BLOCK_ID_DATA_SHORT | BLOCK_ID_DATA_LONG => {
                    main_length = if id == BLOCK_ID_DATA_SHORT {
                        usize::from(cursor.u8("main data length")?)
                    } else {
                        cursor.u32("main data length")? as usize
                    };
                    break;
                }
                _ => return Err(DecodeError::BlockId(id)),
            }
        }

        for block in &mut self.blocks {
            if let Some(image) = &mut block.image {
                image.bytes = cursor.take(image.bytes.len(), "block image")?;
            }
            block.data = cursor.take(block.data.len(), "block data")?;
        }
        self.main_data = cursor.take(main_length, "main data")?;
        cursor.finish("main data")?;
        Ok(())
    }

    /// Reads a block header behind its id. The image and the data of the new reference have their
    /// lengths, and not yet their places: they are as many bytes from the record's start. Gives what
    /// both take together.
    #[inline]
    fn read_block_header(
        &mut self,
        cursor: &mut Cursor<'_>,
        id: u8,
        record: &'a [u8],
        version: &Version,
    ) -> Result<usize, DecodeError> {
        let before = self.blocks.last();
        if before.is_some_and(|before| before.id >= id) {
            return Err(DecodeError::BlockId(id));
        }
        let fork_flags = cursor.u8("fork_flags")?;
        let data_length = cursor.u16("data_length")?;
        let fork = fork_flags & BKPBLOCK_FORK_MASK;
        let fork = ForkNumber::from_number(fork.into()).ok_or(DecodeError::Fork { id, fork })?;
        if (fork_flags & BKPBLOCK_HAS_DATA != 0) != (data_length > 0) {
            return Err(DecodeError::DataFlag { id, length: data_length });
        }
        let placeholder = |length: u16, field| {
            let (needed, left) = (usize::from(length), record.len());
            record.get(..needed).ok_or(CursorError::Short { field, needed, left })
        };
        let data = placeholder(data_length, "block data")?;
        let mut announced = data.len();
        let image = if fork_flags & BKPBLOCK_HAS_IMAGE != 0 {
            let (image, length) = BlockImage::read_header(cursor, id, version)?;
            let bytes = placeholder(length, "block image")?;
            announced += bytes.len();
            Some(BlockImage { bytes, ..image })
        } else {
            None
        };
        let locator = if fork_flags & BKPBLOCK_SAME_REL == 0 {
            cursor.locator("locator")?
        } else {
            before.ok_or(DecodeError::NoRelationBefore(id))?.page.locator
        };
        let block: BlockNumber = cursor.u32("block number")?;
        self.blocks.push(BlockReference {
            id,
            page: PageId { locator, fork, block },
            will_init: fork_flags & BKPBLOCK_WILL_INIT != 0,
            image,
            data,
        });
        Ok(announced)
    }

    /// The block reference with this id, if the record has one.
    #[must_use]
    pub fn block(&self, id: u8) -> Option<&BlockReference<'a>> {
        self.blocks.iter().find(|block| block.id == id)
    }
}
