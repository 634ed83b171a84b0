//! Arrays.
//!
//! ```text
//! offsets count from the 4-byte varlena header, even if the array has none or a shorter one
//! offset  size
//!      4     4  ndim         number of dimensions, 0 for an empty array
//!      8     4  dataoffset   where the elements begin, if there is a null bitmap; else 0
//!     12     4  elemtype     OID of the elements' type
//!     16   4*n  dim          size of each dimension
//!          4*n  lbound       lowest index of each dimension
//!           ..  bitmap       if dataoffset is not 0: a bit for each element, 1 if it is not null
//!           ..  elements     from a multiple of 8 on, each at its type's alignment; nulls take none
//! ```
//!
//! Text: `[2:3]={a,"b c",NULL,{..}}`. Indexes are shown only if one of them does not begin at 1.
//! An element is quoted if it is empty, the word NULL, or has a character that means something.
//!
//! Rules: `array_out` in `src/backend/utils/adt/arrayfuncs.c`, `src/include/utils/array.h`,
//! `array_iter_next` in `arrayaccess.h`.

use walfmt::bytes::i32_at;
use walfmt::cursor::{Cursor, CursorError};

use super::simple::decimal;
use super::varlena::Varlena;
use super::{TEXT_BYTES_MAX, Type, ValueError, append as append_value};

/// Appends an array of `element`s.
pub(super) fn append(element: &Type, datum: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    // Without a rule for the elements there is none for the array, even if it is empty.
    if !element.is_printable() {
        return Err(ValueError::Unsupported { oid: element.oid });
    }
    let start = out.len();
    let shape = Shape::read(element, datum)?;
    if shape.count == 0 {
        out.extend_from_slice(b"{}");
        return Ok(());
    }
    shape.append_bounds(out);

    let mut elements = Elements { element, datum, bitmap: shape.bitmap, offset: shape.data };
    // How many elements are done of each dimension's current row.
    let mut done = [0; DIMENSIONS_MAX];
    let last = shape.dimensions - 1;
    out.extend((0..shape.dimensions).map(|_| b'{'));
    for index in 0..shape.count {
        elements.append_next(index, out)?;
        if out.len() - start > TEXT_BYTES_MAX {
            return Err(ValueError::TooLong);
        }
        // Rows that end here are closed, innermost first, and opened again if there is a next one.
        let mut dimension = last;
        loop {
            done[dimension] += 1;
            if done[dimension] < shape.sizes[dimension] {
                out.push(element.delimiter);
                out.extend((dimension..last).map(|_| b'{'));
                break;
            }
            done[dimension] = 0;
            out.push(b'}');
            match dimension.checked_sub(1) {
                Some(outer) => dimension = outer,
                None => break,
            }
        }
    }
    Ok(())
}

/// An array's header, checked.
struct Shape<'a> {
    dimensions: usize,
    sizes: [usize; DIMENSIONS_MAX],
    lower_bounds: [i32; DIMENSIONS_MAX],
    /// How many elements there are.
    count: usize,
    bitmap: Option<&'a [u8]>,
    /// Where the elements begin, from the 4-byte header on.
    data: usize,
}

impl<'a> Shape<'a> {
    fn read(element: &Type, datum: &'a [u8]) -> Result<Self, ValueError> {
        let wrong = |field, found: i32| ValueError::Field { field, found: i64::from(found) };
        let mut cursor = Cursor::new(datum);
        let ndim = cursor.i32("ndim")?;
        let dataoffset = cursor.i32("dataoffset")?;
        let elemtype = cursor.u32("elemtype")?;
        if elemtype != element.oid {
            return Err(ValueError::Field { field: "elemtype", found: i64::from(elemtype) });
        }
        let dimensions = usize::try_from(ndim)
            .ok()
            .filter(|&dimensions| dimensions <= DIMENSIONS_MAX)
            .ok_or(wrong("ndim", ndim))?;
        let dims = cursor.take(dimensions * 4, "dim")?;
        let lbounds = cursor.take(dimensions * 4, "lbound")?;

        let mut sizes = [0; DIMENSIONS_MAX];
        let mut lower_bounds = [1; DIMENSIONS_MAX];
        let mut count = usize::from(dimensions > 0);
        for dimension in 0..dimensions {
            let size = i32_at(dims, dimension * 4);
            let lower_bound = i32_at(lbounds, dimension * 4);
            sizes[dimension] = usize::try_from(size).map_err(|_| wrong("dim", size))?;
            lower_bounds[dimension] = lower_bound;
            count = count.saturating_mul(sizes[dimension]);
            if lower_bound.checked_add(size).is_none() {
                return Err(wrong("lbound", lower_bound));
            }
        }

        // An element has no less than a byte, or else a bit in the bitmap.
        let header = ARRAY_HEADER_SIZE + dimensions * 8;
        let (bitmap, data) = match dataoffset {
            0 => (None, header.next_multiple_of(8)),
            _ => {
                let bitmap = cursor.take(count.div_ceil(8), "nullbitmap")?;
                (Some(bitmap), (header + bitmap.len()).next_multiple_of(8))
            }
        };
        if dataoffset != 0 && usize::try_from(dataoffset) != Ok(data) {
            return Err(wrong("dataoffset", dataoffset));
        }
        if bitmap.is_none() && count > datum.len() {
            return Err(CursorError::Short {
                field: "array element",
                needed: count,
                left: datum.len(),
            }
            .into());
        }
        Ok(Self { dimensions, sizes, lower_bounds, count, bitmap, data })
    }

    fn append_bounds(&self, out: &mut Vec<u8>) {
        let bounds = &self.lower_bounds[..self.dimensions];
        if bounds.iter().all(|&bound| bound == 1) {
            return;
        }
        for (&lower_bound, &size) in bounds.iter().zip(&self.sizes) {
            out.push(b'[');
            decimal(lower_bound, out);
            out.push(b':');
            decimal(i64::from(lower_bound) + size as i64 - 1, out);
            out.push(b']');
        }
        out.push(b'=');
    }
}

/// The elements, one after the other.
struct Elements<'a> {
    element: &'a Type,
    datum: &'a [u8],
    bitmap: Option<&'a [u8]>,
    /// Where the next element begins, from the 4-byte header on.
    offset: usize,
}

impl Elements<'_> {
    fn append_next(&mut self, index: usize, out: &mut Vec<u8>) -> Result<(), ValueError> {
        if let Some(bitmap) = self.bitmap
            && bitmap.get(index / 8).is_none_or(|byte| byte >> (index % 8) & 1 == 0)
        {
            out.extend_from_slice(b"NULL");
            return Ok(());
        }
        self.offset = self.element.align.up(self.offset);
        let rest = self.datum.get(self.offset - HEADER_SIZE..).unwrap_or_default();
        let (payload, length) = match self.element.length {
            -1 => Varlena::read_plain(rest)?,
            -2 => {
                let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
                (&rest[..end], end + 1)
            }
            length => {
                let length = usize::try_from(length)
                    .map_err(|_| ValueError::Field { field: "typlen", found: i64::from(length) })?;
                (Cursor::new(rest).take(length, "array element")?, length)
            }
        };
        self.offset += length;

        let start = out.len();
        append_value(self.element, payload, out)?;
        quote(start, self.element.delimiter, out);
        Ok(())
    }
}

/// Puts what `out` has from `start` on in quotes, if it needs them.
fn quote(start: usize, delimiter: u8, out: &mut Vec<u8>) {
    let text = &out[start..];
    let means_something = |&byte: &u8| {
        matches!(byte, b'"' | b'\\' | b'{' | b'}' | b' ' | b'\t'..=b'\r') || byte == delimiter
    };
    let needed = text.is_empty()
        || text.iter().any(means_something)
        || text.len() == 4 && text.eq_ignore_ascii_case(b"NULL");
    if !needed {
        return;
    }
    let escapes = text.iter().filter(|byte| matches!(byte, b'"' | b'\\')).count();
    // From the end on each byte moves to its place, so that nothing needs a copy.
    let mut from = out.len();
    let mut to = from + escapes + 2;
    out.resize(to, b'"');
    to -= 1;
    while from > start {
        from -= 1;
        to -= 1;
        out[to] = out[from];
        if matches!(out[from], b'"' | b'\\') {
            to -= 1;
            out[to] = b'\\';
        }
    }
    out[start] = b'"';
}

/// `MAXDIM`.
const DIMENSIONS_MAX: usize = 6;
/// The varlena header that offsets count from, in bytes.
const HEADER_SIZE: usize = 4;
/// `sizeof(ArrayType)`, with the varlena header.
const ARRAY_HEADER_SIZE: usize = 16;
