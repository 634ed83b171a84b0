//! A small cluster's directory and WAL records made by hand.
#![allow(dead_code, unreachable_pub)] // each test file uses its own part

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use walferry_store::{Store, StoreConfig};
use walfmt::bytes::put;
use walfmt::control::{CONTROL_FILE_SIZE, ControlFile};
use walfmt::record::{RecordHeader, record_crc};
use walfmt::relation::PageId;
use walfmt::rmgr::RmgrId;
use walfmt::rmgr::xlog::{self, CheckPoint};
use walfmt::{BLOCK_SIZE, ForkNumber, Lsn, RawRecord, RelFileLocator, Timeline};

pub type Page = [u8; BLOCK_SIZE];

/// What is compared of a data directory.
const DIRECTORIES: [&str; 8] = [
    "base/5",
    "global",
    "pg_xact",
    "pg_multixact/offsets",
    "pg_multixact/members",
    "pg_commit_ts",
    "pg_twophase",
    "pg_logical",
];

/// Where the records of all tests begin.
pub const START: Lsn = Lsn(0x200_0028);

pub fn checkpoint(redo: Lsn) -> CheckPoint {
    CheckPoint {
        redo,
        this_timeline: Timeline(1),
        prev_timeline: Timeline(1),
        full_page_writes: true,
        next_xid: 700,
        next_oid: 16384,
        next_multi: 1,
        ..CheckPoint::default()
    }
}

/// A data directory in archive recovery, with nothing in it.
pub fn data_directory(checksums: bool) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in DIRECTORIES.iter().chain(&["pg_tblspc"]) {
        std::fs::create_dir_all(directory.path().join(name)).unwrap();
    }
    std::fs::write(directory.path().join("PG_VERSION"), "15\n").unwrap();
    let mut bytes = [0; CONTROL_FILE_SIZE];
    put(&mut bytes, 0, 7_000_000_000_000_000_001_u64.to_le_bytes());
    for (offset, value) in [
        (8, 1300_u32),
        (12, 202_209_061),
        (16, 5),
        (172, 1),
        (204, 8),
        (216, 8192),
        (220, 131_072),
        (224, 8192),
        (228, 16 << 20),
        (252, u32::from(checksums)),
    ] {
        put(&mut bytes, offset, value.to_le_bytes());
    }
    put(&mut bytes, 32, START.0.to_le_bytes());
    put(&mut bytes, 40, checkpoint(START).to_bytes());
    let crc = crc32c::crc32c(&bytes[..288]);
    put(&mut bytes, 288, crc.to_le_bytes());
    std::fs::write(directory.path().join("global/pg_control"), bytes).unwrap();
    directory
}

pub fn control(directory: &Path) -> ControlFile {
    let bytes = std::fs::read(directory.join("global/pg_control")).unwrap();
    ControlFile::from_bytes(&bytes).unwrap()
}

pub fn change_control(directory: &Path, change: impl FnOnce(&mut ControlFile)) {
    let mut control = control(directory);
    change(&mut control);
    std::fs::write(directory.join("global/pg_control"), control.to_bytes()).unwrap();
}

pub fn config(directory: &Path, workers: usize, cache_pages: u64) -> StoreConfig {
    StoreConfig {
        data_directory: directory.to_owned(),
        workers,
        cache_bytes: cache_pages * BLOCK_SIZE as u64,
        restart_point_interval: Duration::from_secs(3600),
        verify_images: false,
        rows: None,
    }
}

pub fn open(directory: &Path) -> Store {
    Store::open(&config(directory, 2, 256)).unwrap()
}

/// All files that are compared, by name: not the control file.
pub fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for top in DIRECTORIES {
        for entry in std::fs::read_dir(directory.join(top)).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{top}/{}", entry.file_name().to_string_lossy());
            if name != "global/pg_control" {
                files.insert(name, std::fs::read(entry.path()).unwrap());
            }
        }
    }
    files
}

/// The LSNs of all pages of relation files.
pub fn page_lsns(directory: &Path) -> Vec<Lsn> {
    let relation_files = files(directory).into_iter().filter(|(name, _)| name.starts_with("base"));
    let lsn = |page: &[u8]| {
        let half = |at: usize| u64::from(u32::from_le_bytes(page[at..at + 4].try_into().unwrap()));
        Lsn(half(0) << 32 | half(4))
    };
    relation_files
        .flat_map(|(_, bytes)| bytes.chunks(BLOCK_SIZE).map(lsn).collect::<Vec<_>>())
        .collect()
}

pub fn main_page(relation: u32, block: u32) -> PageId {
    let locator = RelFileLocator { tablespace: 1663, database: 5, relation };
    PageId { locator, fork: ForkNumber::Main, block }
}

/// A page that a server could have written, filled with `byte`.
pub fn some_page(byte: u8) -> Page {
    let mut page = [byte; BLOCK_SIZE];
    page[..24].fill(0);
    for (offset, value) in [(12, 24_u16), (14, 24), (16, 8192), (18, 0x2004)] {
        put(&mut page, offset, value.to_le_bytes());
    }
    page
}

/// A record with its own bytes.
pub struct Made {
    pub start: Lsn,
    pub end: Lsn,
    bytes: Vec<u8>,
}

impl Made {
    pub fn raw(&self) -> RawRecord<'_> {
        RawRecord {
            start: self.start,
            end: self.end,
            header: RecordHeader::from_bytes(&self.bytes),
            bytes: &self.bytes,
        }
    }
}

pub struct Block {
    pub page: PageId,
    pub will_init: bool,
    pub image: Option<Box<Page>>,
    pub data: Vec<u8>,
}

/// Makes records one after the other.
pub struct Wal {
    next: Lsn,
    prev: Lsn,
    /// The replication origin that the next records come from, or 0.
    pub origin: u16,
}

impl Wal {
    pub fn new() -> Self {
        Self { next: START, prev: Lsn::INVALID, origin: 0 }
    }

    /// Where the next record begins.
    pub fn next(&self) -> Lsn {
        self.next
    }

    pub fn record(
        &mut self,
        rmgr: RmgrId,
        info: u8,
        xid: u32,
        blocks: &[Block],
        main: &[u8],
    ) -> Made {
        let mut bytes = vec![0; 24];
        for (id, block) in (0_u8..).zip(blocks) {
            let mut flags = block.page.fork as u8;
            flags |= if block.image.is_some() { 0x10 } else { 0 };
            flags |= if block.data.is_empty() { 0 } else { 0x20 };
            flags |= if block.will_init { 0x40 } else { 0 };
            bytes.extend([id, flags]);
            bytes.extend(u16::try_from(block.data.len()).unwrap().to_le_bytes());
            if block.image.is_some() {
                bytes.extend(8192_u16.to_le_bytes());
                bytes.extend([0, 0, 0x02]);
            }
            bytes.extend(locator(block.page.locator));
            bytes.extend(block.page.block.to_le_bytes());
        }
        if self.origin != 0 {
            bytes.push(253);
            bytes.extend(self.origin.to_le_bytes());
        }
        match u8::try_from(main.len()) {
            Ok(0) => {}
            Ok(length) => bytes.extend([255, length]),
            Err(_) => {
                bytes.push(254);
                bytes.extend(u32::try_from(main.len()).unwrap().to_le_bytes());
            }
        }
        for block in blocks {
            bytes.extend(block.image.iter().flat_map(|image| image.iter()));
            bytes.extend(&block.data);
        }
        bytes.extend(main);
        let length = u32::try_from(bytes.len()).unwrap();
        put(&mut bytes, 0, length.to_le_bytes());
        put(&mut bytes, 4, xid.to_le_bytes());
        put(&mut bytes, 8, self.prev.0.to_le_bytes());
        put(&mut bytes, 16, [info, rmgr.0]);
        let crc = record_crc(&bytes);
        put(&mut bytes, 20, crc.to_le_bytes());
        let start = self.next;
        self.prev = start;
        self.next = start.advance(length.into()).align_up();
        Made { start, end: self.next, bytes }
    }

    /// A page image.
    pub fn image(&mut self, page: PageId, image: Page) -> Made {
        let block = Block { page, will_init: false, image: Some(Box::new(image)), data: vec![] };
        self.record(RmgrId::XLOG, xlog::FPI, 0, &[block], &[])
    }

    /// A heap insert of `size` bytes at `item`; the first one on a page rebuilds it.
    pub fn insert(
        &mut self,
        page: PageId,
        item: u16,
        size: usize,
        all_visible_cleared: bool,
    ) -> Made {
        let will_init = item == 1;
        let mut data = vec![1, 0, 0, 8, 24];
        data.extend(std::iter::repeat_n(item as u8, size));
        let block = Block { page, will_init, image: None, data };
        let [low, high] = item.to_le_bytes();
        let info = if will_init { 0x80 } else { 0 };
        self.record(RmgrId::HEAP, info, 701, &[block], &[low, high, u8::from(all_visible_cleared)])
    }

    pub fn checkpoint(&mut self, opcode: u8, contents: &CheckPoint) -> Made {
        self.record(RmgrId::XLOG, opcode, 0, &[], &contents.to_bytes())
    }

    /// An online checkpoint with its own beginning as redo pointer.
    pub fn checkpoint_here(&mut self) -> Made {
        let contents = checkpoint(self.next);
        self.checkpoint(xlog::CHECKPOINT_ONLINE, &contents)
    }

    pub fn commit(&mut self, xid: u32) -> Made {
        self.record(RmgrId::XACT, 0, xid, &[], &[0; 8])
    }

    pub fn drop_relation(&mut self, xid: u32, dropped: RelFileLocator) -> Made {
        let mut main = vec![0; 8];
        main.extend((1_u32 << 2).to_le_bytes()); // XACT_XINFO_HAS_RELFILELOCATORS
        main.extend(1_u32.to_le_bytes());
        main.extend(locator(dropped));
        self.record(RmgrId::XACT, 0x80, xid, &[], &main)
    }

    pub fn create(&mut self, created: RelFileLocator) -> Made {
        let mut main = locator(created);
        main.extend(0_u32.to_le_bytes());
        self.record(RmgrId::SMGR, 0x10, 701, &[], &main)
    }

    pub fn truncate(&mut self, cut: RelFileLocator, blocks: u32) -> Made {
        let mut main = blocks.to_le_bytes().to_vec();
        main.extend(locator(cut));
        main.extend(7_u32.to_le_bytes());
        self.record(RmgrId::SMGR, 0x20, 701, &[], &main)
    }

    /// A Database, Tablespace or RelMap record, whose contents are these words.
    pub fn words(&mut self, rmgr: RmgrId, opcode: u8, words: &[u32]) -> Made {
        let main: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.record(rmgr, opcode, 701, &[], &main)
    }

    pub fn copy_database(&mut self, from: (u32, u32), to: (u32, u32)) -> Made {
        self.words(RmgrId::DATABASE, 0x00, &[to.1, to.0, from.1, from.0])
    }

    pub fn drop_database(&mut self, tablespace: u32, database: u32) -> Made {
        self.words(RmgrId::DATABASE, 0x20, &[database, 1, tablespace])
    }

    pub fn create_tablespace(&mut self, tablespace: u32, location: &str) -> Made {
        let main = [&tablespace.to_le_bytes()[..], location.as_bytes(), &[0]].concat();
        self.record(RmgrId::TABLESPACE, 0x00, 701, &[], &main)
    }

    /// A record that nobody replays.
    pub fn unsupported(&mut self) -> Made {
        self.record(RmgrId(200), 0, 0, &[], &[1, 2, 3])
    }
}

fn locator(locator: RelFileLocator) -> Vec<u8> {
    let RelFileLocator { tablespace, database, relation } = locator;
    [tablespace, database, relation].iter().flat_map(|oid| oid.to_le_bytes()).collect()
}

/// Pseudo-random numbers from a seed (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        ((high * u64::from(limit)) >> 32) as u32
    }
}
