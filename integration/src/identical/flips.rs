//! The control: a comparison that cannot find a flipped bit says nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use rand::RngExt;
use rand::rngs::StdRng;
use walfmt::relation::{BLOCK_SIZE, BLOCKS_PER_FILE, BlockNumber};

use super::files::Contents;
use super::mask::Mask;
use super::{Comparison, Directories, open, read_or_zeros};

/// How often a place is looked for in files of one kind: some have hardly a byte that is compared.
const ATTEMPTS: usize = 10_000;

/// Bits of the store that were flipped, one at a time, and whether the comparison found them.
#[derive(Clone, Debug, Default)]
pub struct Flips {
    /// Flipped, by kind of file.
    pub flipped: BTreeMap<&'static str, u64>,
    /// Those that were not found.
    pub unnoticed: Vec<String>,
}

impl Directories {
    /// Flips `count` bits of bytes that are compared, one at a time, in files of every kind in
    /// turn, and compares that page or file again. Each byte gets back what it was. To be asked when
    /// everything was found identical.
    ///
    /// # Errors
    /// A file cannot be read or written; or a place differs before or after its turn.
    pub fn flip_bits(&self, count: u64, random: &mut StdRng) -> Result<Flips> {
        let mut by_kind: BTreeMap<&'static str, Vec<(&str, Contents)>> = BTreeMap::new();
        for (name, contents) in &self.files.both {
            let length = std::fs::metadata(self.store.join(name))?.len();
            if length > 0 {
                by_kind.entry(contents.kind()).or_default().push((name, *contents));
            }
        }
        ensure!(!by_kind.is_empty(), "no files to flip bits in");
        let mut flips = Flips::default();
        let kinds = by_kind.iter().cycle();
        for (kind, files) in kinds.take(usize::try_from(count)?) {
            let place = self.place_in(files, random)?;
            let found = self.flip(&place).with_context(|| place.to_string())?;
            *flips.flipped.entry(kind).or_default() += 1;
            if !found {
                flips.unnoticed.push(place.to_string());
            }
        }
        Ok(flips)
    }

    /// A bit in one of these files that no mask covers.
    fn place_in<'a>(
        &self,
        files: &[(&'a str, Contents)],
        random: &mut StdRng,
    ) -> Result<Place<'a>> {
        for _ in 0..ATTEMPTS {
            let (name, contents) = files[random.random_range(0..files.len())];
            let length = std::fs::metadata(self.store.join(name))?.len();
            let byte = random.random_range(0..length);
            let place = Place { name, contents, byte, bit: random.random_range(0..8) };
            if !self.is_masked(&place)? {
                return Ok(place);
            }
        }
        bail!("no byte is compared in {} files such as {}", files.len(), files[0].0)
    }

    fn is_masked(&self, place: &Place<'_>) -> Result<bool> {
        let Contents::Fork(fork, file_number) = place.contents else { return Ok(false) };
        let theirs = open(&self.judge_of(place.name, place.contents))?;
        let mut page = [0; BLOCK_SIZE];
        read_or_zeros(&theirs, &mut page, place.page())?;
        let block = file_number * BLOCKS_PER_FILE + place.page() as BlockNumber;
        let mask = Mask::of(fork, block, &page);
        Ok(mask.covers((place.byte % BLOCK_SIZE as u64) as usize))
    }

    /// Whether a flipped bit is found.
    fn flip(&self, place: &Place<'_>) -> Result<bool> {
        let file = OpenOptions::new().read(true).write(true).open(self.store.join(place.name))?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, place.byte)?;
        ensure!(self.compare_place(place)?.is_identical(), "it differs before it is flipped");
        file.write_all_at(&[byte[0] ^ 1 << place.bit], place.byte)?;
        let flipped = self.compare_place(place);
        file.write_all_at(&byte, place.byte)?;
        ensure!(self.compare_place(place)?.is_identical(), "it differs after it was restored");
        Ok(!flipped?.is_identical())
    }

    fn compare_place(&self, place: &Place<'_>) -> Result<Comparison> {
        let mut comparison = Comparison::default();
        let page = place.page();
        self.compare_file(place.name, place.contents, Some(page..page + 1), &mut comparison)?;
        Ok(comparison)
    }
}

impl Flips {
    /// # Errors
    /// One was not found; or there were fewer than `count`.
    pub fn ensure_all_found(&self, count: u64) -> Result<()> {
        let flipped: u64 = self.flipped.values().sum();
        ensure!(flipped == count, "{flipped} bits were flipped, not {count}");
        ensure!(self.unnoticed.is_empty(), "unnoticed:\n{}", self.unnoticed.join("\n"));
        Ok(())
    }
}

impl fmt::Display for Flips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flipped: u64 = self.flipped.values().sum();
        let found = flipped - self.unnoticed.len() as u64;
        write!(f, "control: {found} of {flipped} flipped bits found {:?}", self.flipped)
    }
}

struct Place<'a> {
    name: &'a str,
    contents: Contents,
    byte: u64,
    bit: u32,
}

impl Place<'_> {
    fn page(&self) -> u64 {
        self.byte / BLOCK_SIZE as u64
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bit {} of byte {} of {}", self.bit, self.byte, self.name)
    }
}
