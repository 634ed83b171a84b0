//! One thread's part: pieces of relation files, page by page.

use std::sync::atomic::{AtomicU64, Ordering};

use walfmt::checksum::page_checksum;
use walfmt::page::{self, Page};
use walfmt::{BLOCK_SIZE, BlockNumber, Lsn};

use super::findings::{Damage, DamageKind, Findings};
use super::plan::Piece;
use crate::disk::DiskFile;
use crate::layout::Layout;

/// How much is read at once, in bytes.
const READ: usize = 1 << 20;

pub(super) struct PageReader<'a> {
    layout: &'a Layout,
    checksums: bool,
    /// No page may be newer, if that is known.
    newest: Option<Lsn>,
    buffer: Vec<u8>,
    pub(super) findings: Findings,
}

impl<'a> PageReader<'a> {
    pub(super) fn new(layout: &'a Layout, checksums: bool, newest: Option<Lsn>) -> Self {
        let findings = Findings::default();
        Self { layout, checksums, newest, buffer: vec![0; READ], findings }
    }

    pub(super) fn read(&mut self, piece: &Piece, progress: &AtomicU64) {
        let file = match self.layout.open_existing(&self.layout.at(&piece.file)) {
            Ok(Some(file)) => file,
            Ok(None) => return self.unreadable(piece, None, "it is not there"),
            Err(error) => return self.unreadable(piece, None, error.source),
        };
        let mut done = 0;
        while done < piece.bytes {
            let length = usize::try_from(piece.bytes - done).map_or(READ, |left| left.min(READ));
            let first = piece.block + (done / BLOCK_SIZE as u64) as BlockNumber;
            let mut buffer = std::mem::take(&mut self.buffer);
            match file.read_at(piece.offset + done, &mut buffer[..length]) {
                Ok(read) => self.check_pages(piece, first, &buffer[..length], read),
                Err(_) => self.read_singly(piece, first, &*file, piece.offset + done, length),
            }
            self.buffer = buffer;
            done += length as u64;
            progress.fetch_add(length as u64, Ordering::Relaxed);
        }
    }

    /// The disk does not give all of it: which pages is it?
    fn read_singly(
        &mut self,
        piece: &Piece,
        first: BlockNumber,
        file: &dyn DiskFile,
        offset: u64,
        length: usize,
    ) {
        let mut page = [0; BLOCK_SIZE];
        for (block, start) in (first..).zip((0..length).step_by(BLOCK_SIZE)) {
            match file.read_at(offset + start as u64, &mut page) {
                Ok(read) => self.check_pages(piece, block, &page, read),
                Err(error) => {
                    self.findings.pages += 1;
                    self.unreadable(piece, Some(block), error.source);
                }
            }
        }
    }

    /// Pages from `first` on, of which only `read` bytes are there if the file was cut meanwhile.
    fn check_pages(&mut self, piece: &Piece, first: BlockNumber, bytes: &[u8], read: usize) {
        let (pages, _) = bytes.as_chunks::<BLOCK_SIZE>();
        for ((block, page), end) in (first..).zip(pages).zip((BLOCK_SIZE..).step_by(BLOCK_SIZE)) {
            self.findings.pages += 1;
            if end > read {
                self.unreadable(piece, Some(block), "the file has become shorter");
            } else {
                self.check_page(piece, block, page);
            }
        }
    }

    fn check_page(&mut self, piece: &Piece, block: BlockNumber, page: &Page) {
        let found = self.damage_of(block, page);
        let Some(kind) = found else { return };
        let counts_as_zeros = piece.is_map && !matches!(kind, DamageKind::Newer { .. });
        let damage = Damage { file: piece.file.clone(), block: Some(block), kind };
        if counts_as_zeros {
            self.findings.damaged_maps.push(damage);
        } else {
            self.findings.damages.push(damage);
        }
    }

    /// In the order of `PageIsVerifiedExtended`.
    fn damage_of(&mut self, block: BlockNumber, page: &Page) -> Option<DamageKind> {
        if page::is_new(page) {
            let checked = page::validate(page);
            self.findings.empty_pages += u64::from(checked.is_ok());
            return checked.err().map(DamageKind::from);
        }
        if self.checksums {
            let (expected, found) = (page_checksum(page, block), page::checksum(page));
            if expected != found {
                return Some(DamageKind::Checksum { expected, found });
            }
        }
        if let Err(error) = page::validate(page) {
            return Some(error.into());
        }
        let found = page::lsn(page);
        let newest = self.newest.filter(|newest| found > *newest)?;
        Some(DamageKind::Newer { newest, found })
    }

    fn unreadable(
        &mut self,
        piece: &Piece,
        block: Option<BlockNumber>,
        what: impl std::fmt::Display,
    ) {
        let kind = DamageKind::Unreadable(what.to_string());
        self.findings.damages.push(Damage { file: piece.file.clone(), block, kind });
    }
}
