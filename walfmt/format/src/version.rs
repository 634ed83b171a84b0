//! What differs between PostgreSQL majors: one row each.
//!
//! Nothing outside this file asks which major it is dealing with; it asks the row. To add a major,
//! add a row.

/// The bits of a block image's `bimg_info` (`src/include/access/xlogrecord.h`); the same bit means
/// different things in different majors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageFlags {
    /// The image leaves out the unused middle of the page.
    pub has_hole: u8,
    /// Replay must apply the image, not only compare with it.
    pub apply: u8,
    /// Compressed with pglz.
    pub pglz: u8,
    /// Compressed with LZ4.
    pub lz4: u8,
    /// Compressed with Zstandard.
    pub zstd: u8,
}

/// One PostgreSQL major.
#[derive(Debug, PartialEq, Eq)]
pub struct Version {
    /// The major's number.
    pub major: u16,
    /// `XLOG_PAGE_MAGIC`, the first two bytes of each WAL page.
    pub page_magic: u16,
    /// `CATALOG_VERSION_NO`, in `pg_control`.
    pub catalog_version: u32,
    /// `PG_CONTROL_VERSION`.
    pub control_version: u32,
    /// Where `pg_control`'s CRC lies, in bytes.
    pub control_crc_offset: usize,
    /// Size of the SLRU page numbers in records: 4 or 8 bytes.
    pub slru_page_number_size: usize,
    /// The meaning of an image's flag bits.
    pub image: ImageFlags,
    /// Size of one dropped-statistics item in commit and abort records, in bytes.
    pub dropped_stats_item_size: usize,
    /// How many catalogs a relation map has room for (`MAX_MAPPINGS`).
    pub relation_map_slots: usize,
    /// A relation map's size in bytes (`RelMapFile`).
    pub relation_map_size: usize,
}

/// The majors walferry knows, oldest first.
pub const VERSIONS: &[Version] = &[Version {
    major: 15,
    page_magic: 0xD110,
    catalog_version: 202_209_061,
    control_version: 1300,
    control_crc_offset: 288,
    slru_page_number_size: 4,
    image: ImageFlags { has_hole: 0x01, apply: 0x02, pglz: 0x04, lz4: 0x08, zstd: 0x10 },
    dropped_stats_item_size: 12,
    relation_map_slots: 62,
    relation_map_size: 512,
}];

impl Version {
    /// The directory within a tablespace that belongs to this major
    /// (`TABLESPACE_VERSION_DIRECTORY`).
    #[must_use]
    pub fn tablespace_directory(&self) -> String {
        format!("PG_{}_{}", self.major, self.catalog_version)
    }

    /// The major whose WAL pages begin with `magic`.
    #[must_use]
    pub fn from_page_magic(magic: u16) -> Option<&'static Self> {
        VERSIONS.iter().find(|version| version.page_magic == magic)
    }

    /// The major whose clusters have this catalog version. (`pg_control_version` will not do: 13
    /// to 16 share 1300.)
    #[must_use]
    pub fn from_catalog_version(catalog_version: u32) -> Option<&'static Self> {
        VERSIONS.iter().find(|version| version.catalog_version == catalog_version)
    }

    /// The major with this number.
    #[must_use]
    pub fn from_major(major: u16) -> Option<&'static Self> {
        VERSIONS.iter().find(|version| version.major == major)
    }
}
