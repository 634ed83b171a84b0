//! `numeric`: decimal digits, four to a word.
//!
//! ```text
//! u16 n_header, its two highest bits:
//!   10  short     bit 13 negative, bits 7..13 dscale, bits 0..7 weight, with sign; then digits
//!   00  positive  bits 0..14 dscale;  i16 n_weight;  then digits
//!   01  negative  the same
//!   11  special   0xC000 NaN, 0xD000 Infinity, 0xF000 -Infinity
//!
//! digits: i16 each, 0..=9999. The first stands for digit * 10000^weight, the next for
//! digit * 10000^(weight - 1) and so on; missing ones are 0. dscale is how many decimal digits are
//! shown after the point.
//! ```
//!
//! Rules: `numeric_out` and `get_str_from_var` in `src/backend/utils/adt/numeric.c`.

use walfmt::bytes::u16_at;
use walfmt::cursor::Cursor;

use super::ValueError;

/// Appends a number; also for those within a `jsonb`.
pub(super) fn numeric(datum: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let mut cursor = Cursor::new(datum);
    let header = cursor.u16("n_header")?;
    let (negative, dscale, weight) = match header & NUMERIC_SIGN_MASK {
        NUMERIC_SHORT => {
            let weight = (header & 0x7F).cast_signed();
            let weight = if weight & 0x40 != 0 { weight - 0x80 } else { weight };
            (header & 0x2000 != 0, usize::from(header >> 7 & 0x3F), weight)
        }
        NUMERIC_SPECIAL => {
            out.extend_from_slice(match header {
                0xC000 => b"NaN",
                0xD000 => b"Infinity",
                0xF000 => b"-Infinity",
                _ => {
                    let found = i64::from(header);
                    return Err(ValueError::Field { field: "n_header", found });
                }
            });
            return Ok(cursor.finish("n_header")?);
        }
        sign => {
            let weight = cursor.u16("n_weight")?.cast_signed();
            (sign == NUMERIC_NEG, usize::from(header & 0x3FFF), weight)
        }
    };
    let digits = Digits::new(cursor.rest())?;

    if negative {
        out.push(b'-');
    }
    if weight < 0 {
        out.push(b'0');
    } else {
        // Of the first digit leading zeros are left out, but not the last one.
        let first = decimals(digits.at(0));
        let leading = first[..3].iter().take_while(|&&digit| digit == b'0').count();
        out.extend_from_slice(&first[leading..]);
        for index in 1..=i32::from(weight) {
            out.extend_from_slice(&decimals(digits.at(index)));
        }
    }
    if dscale > 0 {
        out.push(b'.');
        let end = out.len() + dscale;
        let mut index = i32::from(weight) + 1;
        while out.len() < end {
            out.extend_from_slice(&decimals(digits.at(index)));
            index += 1;
        }
        out.truncate(end);
    }
    Ok(())
}

/// The words, each known to be 0..=9999.
struct Digits<'a> {
    bytes: &'a [u8],
}

impl<'a> Digits<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, ValueError> {
        let (words, rest) = bytes.as_chunks::<2>();
        if !rest.is_empty() {
            let expected = bytes.len() + 1;
            return Err(ValueError::Length { name: "n_data", expected, found: bytes.len() });
        }
        match words.iter().map(|&word| u16::from_le_bytes(word)).find(|&word| word > 9999) {
            None => Ok(Self { bytes }),
            Some(word) => {
                let found = i64::from(word.cast_signed());
                Err(ValueError::Field { field: "n_data", found })
            }
        }
    }

    /// The word at `index`; those before the first and after the last are 0.
    #[inline]
    fn at(&self, index: i32) -> u16 {
        usize::try_from(index).map_or(0, |index| u16_at(self.bytes, index * 2))
    }
}

/// Four decimal digits; `word` is 0..=9999.
#[inline]
fn decimals(word: u16) -> [u8; 4] {
    let digit = |unit: u16| b'0' + (word / unit % 10) as u8;
    [digit(1000), digit(100), digit(10), digit(1)]
}

const NUMERIC_SIGN_MASK: u16 = 0xC000;
const NUMERIC_NEG: u16 = 0x4000;
const NUMERIC_SHORT: u16 = 0x8000;
const NUMERIC_SPECIAL: u16 = 0xC000;
