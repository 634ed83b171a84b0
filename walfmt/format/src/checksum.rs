//! The data page checksum: 32 FNV-1a sums over the page's columns, folded to 16 bits.
//!
//! ```text
//! page as 64 rows of 32 columns of u32, pd_checksum taken as 0
//!   sum[column] := BASE[column]
//!   for each row, then for two rows of zeros:
//!     t := sum[column] ^ value;   sum[column] := t * 16777619 ^ t >> 17
//!   all sums XORed together, XORed with the block number, modulo 65535, plus 1
//! ```
//!
//! The columns do not depend on each other, so that the inner loop below becomes SIMD code.
//!
//! Rules: `src/include/storage/checksum_impl.h`.

use crate::bytes::u16_at;
use crate::page::{Page, field};
use crate::relation::BlockNumber;

const COLUMNS: usize = 32;
const FNV_PRIME: u32 = 16_777_619;

/// Where each column's sum starts (`checksumBaseOffsets`): random numbers, part of the format.
const BASE: [u32; COLUMNS] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

/// What `pd_checksum` of this page must be; never 0 (`pg_checksum_page`). `block` is the page's
/// number within its fork, across the fork's files.
///
/// A new page (all zero) has no checksum; do not ask for one.
#[must_use]
pub fn page_checksum(page: &Page, block: BlockNumber) -> u16 {
    // pd_checksum itself is the low half of a word in the first row.
    const FIRST_ROW_COLUMN: usize = field::PD_CHECKSUM / 4;

    let mut sums = BASE;
    let (rows, _) = page.as_chunks::<{ COLUMNS * 4 }>();
    for (number, row) in rows.iter().enumerate() {
        let (words, _) = row.as_chunks::<4>();
        let mut values = [0; COLUMNS];
        for (value, word) in values.iter_mut().zip(words) {
            *value = u32::from_le_bytes(*word);
        }
        if number == 0 {
            values[FIRST_ROW_COLUMN] ^= u32::from(u16_at(page, field::PD_CHECKSUM));
        }
        mix(&mut sums, &values);
    }
    mix(&mut sums, &[0; COLUMNS]);
    mix(&mut sums, &[0; COLUMNS]);
    let folded = sums.iter().fold(block, |folded, sum| folded ^ sum);
    (folded % 65_535) as u16 + 1
}

#[inline(always)]
fn mix(sums: &mut [u32; COLUMNS], values: &[u32; COLUMNS]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        let mixed = *sum ^ value;
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ mixed >> 17;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relation::BLOCK_SIZE;

    fn page(seed: usize) -> Page {
        let mut page = [0; BLOCK_SIZE];
        for (i, byte) in page.iter_mut().enumerate() {
            *byte = (i * i * 7 + i * 13 + (i >> 8) * seed + seed) as u8;
        }
        page
    }

    /// The numbers are what `page_checksum()` of the extension pageinspect gave on a server of
    /// PostgreSQL 15 for the same bytes (as a signed number there).
    #[test]
    fn checksums_are_those_of_a_real_server() {
        for (seed, block, expected) in [
            (1, 0, 25_982),
            (1, 1, 25_981),
            (200, 0, 3_762),
            (77, 131_072, (-4_454_i16).cast_unsigned()),
            (77, 2_147_483_647, (-28_315_i16).cast_unsigned()),
        ] {
            assert_eq!(page_checksum(&page(seed), block), expected, "seed {seed}, block {block}");
        }
    }

    #[test]
    fn every_byte_counts_but_the_checksum_itself() {
        let good = page(3);
        let expected = page_checksum(&good, 5);
        for at in 0..BLOCK_SIZE {
            let mut spoiled = good;
            spoiled[at] ^= 0x40;
            let own = (field::PD_CHECKSUM..field::PD_CHECKSUM + 2).contains(&at);
            assert_eq!(page_checksum(&spoiled, 5) == expected, own, "byte {at}");
        }
    }
}
