//! Tuples: which bytes are which attribute.
//!
//! ```text
//! TupleImage.bytes   | null bitmap, if HEAP_HASNULL | padding | attributes, each aligned |
//!                    0                                        hoff - 23
//! ```
//!
//! Attributes that the tuple is too short for were added to the table later: they have the value that
//! `ALTER TABLE` noted as missing then, or are null.
//!
//! Rules: `heap_deform_tuple` and `getmissingattr` in `src/backend/access/common/heaptuple.c`.

use std::ops::Range;

use walfmt::page::{HEAP_HASNULL, HEAP_NATTS_MASK, HeapTupleHeader};
use walfmt::rmgr::heap::TupleImage;

use crate::value::varlena::{self, Varlena};
use crate::value::{Align, VarlenaError};

/// How an attribute lies in a tuple (`attlen`, `attalign`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// In bytes; -1 for a varlena, -2 for a C string.
    pub length: i16,
    /// Where it may begin.
    pub align: Align,
}

/// One attribute of a tuple.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// The tuple is older than the attribute.
    Missing,
    /// Null.
    Null,
    /// These bytes of the tuple's user data, a varlena with its header.
    At(Range<usize>),
}

/// A tuple that its table's attributes do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TupleError {
    /// `t_hoff` points outside.
    #[error("t_hoff is {hoff}, with {bytes} bytes of tuple")]
    Hoff {
        /// `t_hoff`.
        hoff: u8,
        /// What follows the header.
        bytes: usize,
    },
    /// The null bitmap is cut off.
    #[error("{natts} attributes, with {bytes} bytes before the first")]
    Bitmap {
        /// How many the tuple has.
        natts: usize,
        /// What there is for their bitmap.
        bytes: usize,
    },
    /// An attribute is cut off.
    #[error("attribute {number} begins at {at}, the tuple has {bytes} bytes")]
    Short {
        /// `attnum`.
        number: usize,
        /// Where it begins in the user data.
        at: usize,
        /// All of that.
        bytes: usize,
    },
    /// An attribute's varlena cannot be read.
    #[error("attribute {number}: {source}")]
    Varlena {
        /// `attnum`.
        number: usize,
        /// Why not.
        source: VarlenaError,
    },
}

/// The user data of a tuple: what [`Attribute::At`] speaks of.
///
/// # Errors
/// [`TupleError::Hoff`].
#[inline]
pub fn user_data<'a>(tuple: &TupleImage<'a>) -> Result<&'a [u8], TupleError> {
    let start = usize::from(tuple.hoff).checked_sub(HeapTupleHeader::SIZE);
    let bad = TupleError::Hoff { hoff: tuple.hoff, bytes: tuple.bytes.len() };
    start.and_then(|start| tuple.bytes.get(start..)).ok_or(bad)
}

/// Finds all attributes of a tuple; `found` is emptied first.
///
/// # Errors
/// [`TupleError`] if the tuple cannot be one of a table with these attributes.
pub fn deform(
    tuple: &TupleImage<'_>,
    shapes: impl Iterator<Item = Shape>,
    found: &mut Vec<Attribute>,
) -> Result<(), TupleError> {
    found.clear();
    let data = user_data(tuple)?;
    let natts = usize::from(tuple.infomask2 & HEAP_NATTS_MASK);
    let bitmap = if tuple.infomask & HEAP_HASNULL == 0 {
        None
    } else {
        let before = tuple.bytes.len() - data.len();
        let bitmap = tuple.bytes.get(..natts.div_ceil(8)).filter(|bitmap| bitmap.len() <= before);
        Some(bitmap.ok_or(TupleError::Bitmap { natts, bytes: before })?)
    };
    let mut at = 0;
    for (index, shape) in shapes.enumerate() {
        if index >= natts {
            found.push(Attribute::Missing);
            continue;
        }
        if bitmap.is_some_and(|bitmap| bitmap[index / 8] & 1 << (index % 8) == 0) {
            found.push(Attribute::Null);
            continue;
        }
        let number = index + 1;
        let range = place(data, at, shape, number)?;
        at = range.end;
        found.push(Attribute::At(range));
    }
    Ok(())
}

#[inline]
fn place(data: &[u8], at: usize, shape: Shape, number: usize) -> Result<Range<usize>, TupleError> {
    let (start, length) = match shape.length {
        -1 => {
            let start = varlena::position(data, at, shape.align);
            let rest = data.get(start..).unwrap_or_default();
            let (_, length) =
                Varlena::read(rest).map_err(|source| TupleError::Varlena { number, source })?;
            (start, length)
        }
        -2 => {
            let start = shape.align.up(at);
            let rest = data.get(start..).unwrap_or_default();
            let length = rest.iter().position(|byte| *byte == 0);
            // With its NUL, which is not part of the value.
            (start, length.map_or(usize::MAX, |length| length + 1))
        }
        length => (shape.align.up(at), usize::try_from(length).unwrap_or(usize::MAX)),
    };
    let end = start.saturating_add(length);
    if end > data.len() {
        return Err(TupleError::Short { number, at: start, bytes: data.len() });
    }
    Ok(start..end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INT4: Shape = Shape { length: 4, align: Align::Int };
    const TEXT: Shape = Shape { length: -1, align: Align::Int };
    const BOOL: Shape = Shape { length: 1, align: Align::Char };

    #[test]
    fn attributes_are_found_behind_nulls_and_padding() {
        // (true, null, 7, 'ab', missing)
        let mut bytes = vec![0b1101]; // up to byte 24
        bytes.extend([1, 0, 0, 0, 7, 0, 0, 0, 7, b'a', b'b']);
        let tuple = TupleImage { infomask2: 4, infomask: HEAP_HASNULL, hoff: 24, bytes: &bytes };
        let mut found = Vec::new();
        let shapes = [BOOL, INT4, INT4, TEXT, INT4];
        deform(&tuple, shapes.into_iter(), &mut found).expect("sound");
        use Attribute::{At, Missing, Null};
        assert_eq!(found, [At(0..1), Null, At(4..8), At(8..11), Missing]);
    }

    #[test]
    fn a_tuple_that_ends_early_is_refused() {
        let bytes = [0, 1, 0, 0];
        let tuple = TupleImage { infomask2: 1, infomask: 0, hoff: 24, bytes: &bytes };
        let error = deform(&tuple, [INT4].into_iter(), &mut Vec::new()).expect_err("cut off");
        assert_eq!(error, TupleError::Short { number: 1, at: 0, bytes: 3 });
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
            infomask2: u16, infomask: u16, hoff: u8,
        ) {
            let tuple = TupleImage { infomask2, infomask, hoff, bytes: &bytes };
            let shapes = [BOOL, TEXT, INT4, TEXT, Shape { length: -2, align: Align::Char }];
            let mut found = Vec::new();
            if deform(&tuple, shapes.into_iter(), &mut found).is_ok() {
                prop_assert_eq!(found.len(), 5);
            }
        }
    }
}
