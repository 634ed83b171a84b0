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

/// What Heap, Heap2 and Btree records contain beyond what all majors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRecords {
    /// A freeze plan is for as many tuples as it fits, and these are listed after the plans; before, each
    /// tuple had a plan of its own.
    pub share_freeze_plans: bool,
    /// What vacuum does to a heap page is one layout with optional parts, under three opcodes that say on
    /// what occasion (PRUNE_*), instead of PRUNE, VACUUM and FREEZE_PAGE.
    pub merge_prune_and_freeze: bool,
    /// INPLACE carries invalidation messages.
    pub inplace_has_invalidations: bool,
}

/// How `pg_waldump` words what it prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextStyle {
    /// Descriptions of tables and btree indexes are lists of `key: value` in which arrays are written out;
    /// before, they were words and counts.
    pub lists_items: bool,
    /// The newest transaction that a standby's queries must see as ended is called
    /// `snapshotConflictHorizon`, whatever the record; before, each had a name of its own for it.
    pub says_conflict_horizon: bool,
    /// Descriptions say `isCatalogRel`.
    pub says_catalog: bool,
    /// RUNNING_XACTS lists its subtransactions, and "overflowed" is written out.
    pub lists_running_subxacts: bool,
}

/// One PostgreSQL major.
#[derive(Debug, PartialEq, Eq)]
pub struct Version {
    /// The major's number.
    pub major: u16,
    /// Whether walferry replays records of this major. It reads those of all that have a row.
    pub is_replayed: bool,
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
    /// Checkpoints and ends of recovery say the `wal_level`, and where a checkpoint begins there is a
    /// record that says it too (`XLOG_CHECKPOINT_REDO`).
    pub checkpoints_say_wal_level: bool,
    /// Records of tables and btree indexes.
    pub tables: TableRecords,
    /// There are invalidation messages about what a relation publishes (`SHAREDINVALRELSYNC_ID`).
    pub relsync_invalidations: bool,
    /// Records that a standby's queries may conflict with say whether the table is one of the catalogs that
    /// logical decoding reads (`isCatalogRel`).
    pub conflicts_have_catalog_flag: bool,
    /// How they are described.
    pub text: TextStyle,
    /// Whether `pg_waldump` tells on its standard output, among the records, how many bytes it left out
    /// to find the first one. (Otherwise on its standard error.)
    pub tells_skipped_among_records: bool,
}

/// The majors walferry knows, oldest first.
pub const VERSIONS: &[Version] = &[
    Version {
        major: 15,
        is_replayed: true,
        page_magic: 0xD110,
        catalog_version: 202_209_061,
        control_version: 1300,
        control_crc_offset: 288,
        slru_page_number_size: 4,
        image: IMAGE_FLAGS,
        dropped_stats_item_size: 12,
        relation_map_slots: 62,
        relation_map_size: 512,
        checkpoints_say_wal_level: false,
        tables: TableRecords {
            share_freeze_plans: false,
            merge_prune_and_freeze: false,
            inplace_has_invalidations: false,
        },
        relsync_invalidations: false,
        conflicts_have_catalog_flag: false,
        text: TextStyle {
            lists_items: false,
            says_conflict_horizon: false,
            says_catalog: false,
            lists_running_subxacts: false,
        },
        tells_skipped_among_records: true,
    },
    Version {
        major: 16,
        is_replayed: false,
        page_magic: 0xD113,
        catalog_version: 202_307_071,
        control_version: 1300,
        control_crc_offset: 288,
        slru_page_number_size: 4,
        image: IMAGE_FLAGS,
        dropped_stats_item_size: 12,
        relation_map_slots: 64,
        relation_map_size: 524,
        checkpoints_say_wal_level: false,
        tables: TableRecords {
            share_freeze_plans: true,
            merge_prune_and_freeze: false,
            inplace_has_invalidations: false,
        },
        relsync_invalidations: false,
        conflicts_have_catalog_flag: true,
        text: TextStyle {
            lists_items: true,
            says_conflict_horizon: true,
            says_catalog: false,
            lists_running_subxacts: true,
        },
        tells_skipped_among_records: true,
    },
    Version {
        major: 17,
        is_replayed: false,
        page_magic: 0xD116,
        catalog_version: 202_406_281,
        control_version: 1700,
        control_crc_offset: 288,
        slru_page_number_size: 8,
        image: IMAGE_FLAGS,
        dropped_stats_item_size: 12,
        relation_map_slots: 64,
        relation_map_size: 524,
        checkpoints_say_wal_level: true,
        tables: TableRecords {
            share_freeze_plans: true,
            merge_prune_and_freeze: true,
            inplace_has_invalidations: false,
        },
        relsync_invalidations: false,
        conflicts_have_catalog_flag: true,
        text: TextStyle {
            lists_items: true,
            says_conflict_horizon: true,
            says_catalog: true,
            lists_running_subxacts: true,
        },
        tells_skipped_among_records: false,
    },
    Version {
        major: 18,
        is_replayed: false,
        page_magic: 0xD118,
        catalog_version: 202_506_291,
        control_version: 1800,
        control_crc_offset: 292,
        slru_page_number_size: 8,
        image: IMAGE_FLAGS,
        dropped_stats_item_size: 16,
        relation_map_slots: 64,
        relation_map_size: 524,
        checkpoints_say_wal_level: true,
        tables: TableRecords {
            share_freeze_plans: true,
            merge_prune_and_freeze: true,
            inplace_has_invalidations: true,
        },
        relsync_invalidations: true,
        conflicts_have_catalog_flag: true,
        text: TextStyle {
            lists_items: true,
            says_conflict_horizon: true,
            says_catalog: true,
            lists_running_subxacts: true,
        },
        tells_skipped_among_records: false,
    },
];

/// Of 15 and later.
const IMAGE_FLAGS: ImageFlags =
    ImageFlags { has_hole: 0x01, apply: 0x02, pglz: 0x04, lz4: 0x08, zstd: 0x10 };

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
