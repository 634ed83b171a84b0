//! PostgreSQL's own LZ compression, of page images and of values.
//!
//! ```text
//! control byte, then 8 items, its lowest bit first:
//!   0   one literal byte
//!   1   a match: b0 b1 [b2]    length = (b0 & 0x0F) + 3, if that is 18: + b2
//!                              distance = (b0 & 0xF0) << 4 | b1, 1..=4095; may overlap itself
//! ```
//!
//! The stream says neither its own length nor that of what it unpacks to; whoever keeps it must
//! know both. Rules: `pglz_decompress` in `src/common/pg_lzcompress.c`, with `check_complete`.

/// What one byte of a stream can unpack to at most, in bytes: a match of three bytes gives 273.
pub const EXPANSION_MAX: usize = 91;

/// A stream that does not unpack to what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PglzError {
    /// The stream ends before the output is full.
    #[error("pglz stream ends early")]
    Short,
    /// The output is full before the stream ends.
    #[error("{left} bytes left of pglz stream")]
    Trailing {
        /// How many bytes too many.
        left: usize,
    },
    /// A match begins before the output does, or refers to itself.
    #[error("pglz match at {at} reaches back {distance} bytes")]
    Match {
        /// Where in the output.
        at: usize,
        /// How far back.
        distance: usize,
    },
}

/// Unpacks a stream. Input must be used up and output filled, both exactly.
///
/// # Errors
/// [`PglzError`]; `output` is then undefined.
pub fn decompress(input: &[u8], output: &mut [u8]) -> Result<(), PglzError> {
    let mut input = input.iter().copied();
    let mut next = || input.next().ok_or(PglzError::Short);
    let mut filled = 0;
    while filled < output.len() {
        let control = next()?;
        for bit in 0..8 {
            if filled == output.len() {
                break;
            }
            if control >> bit & 1 == 0 {
                output[filled] = next()?;
                filled += 1;
                continue;
            }
            let (b0, b1) = (next()?, next()?);
            let mut length = usize::from(b0 & 0x0F) + 3;
            if length == 18 {
                length += usize::from(next()?);
            }
            let distance = usize::from(b0 & 0xF0) << 4 | usize::from(b1);
            if distance == 0 || distance > filled {
                return Err(PglzError::Match { at: filled, distance });
            }
            let end = (filled + length).min(output.len());
            if filled + distance >= end {
                output.copy_within(filled - distance..end - distance, filled);
                filled = end;
            }
            while filled < end {
                output[filled] = output[filled - distance];
                filled += 1;
            }
        }
    }
    match input.len() {
        0 => Ok(()),
        left => Err(PglzError::Trailing { left }),
    }
}
