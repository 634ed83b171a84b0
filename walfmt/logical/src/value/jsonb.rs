//! `jsonb`: a tree of containers.
//!
//! ```text
//! container, at a multiple of 4 bytes
//!   u32 header      bits 0..28 count, 1 << 28 scalar, 1 << 29 object, 1 << 30 array
//!   u32 JEntry * n  array: n = count; object: n = 2 * count, all keys, then their values
//!   ..              what the entries stand for, in their order
//!
//! JEntry
//!   bits  0..28     length in bytes, or (bit 31) where it ends, from the end of the entries on
//!   bits 28..31     0 string, 1 numeric, 2 false, 3 true, 4 null, 5 container
//!   bit     31      has an offset: the first 28 bits are where it ends
//! ```
//!
//! The length of a numeric or a container counts the padding before it, which takes it to a
//! multiple of 4 bytes. The root is an array or object; a single scalar is an array of one element
//! with the scalar bit. A numeric has its varlena header.
//!
//! Rules: `src/include/utils/jsonb.h`; `JsonbToCStringWorker` in `src/backend/utils/adt/jsonb.c`,
//! `jsonb_util.c`, `escape_json` in `json.c`.

use smallvec::SmallVec;
use walfmt::bytes::u32_at;
use walfmt::cursor::{Cursor, CursorError};

use super::numeric::numeric;
use super::simple::HEX_LOWER;
use super::text;
use super::varlena::Varlena;
use super::{TEXT_BYTES_MAX, ValueError};

/// Appends a document. It keeps its own stack: the server's own limit is its stack's depth, some
/// thousands of levels, and a document that it accepted must not end our thread.
pub(super) fn jsonb(datum: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let start = out.len();
    let root = Container::read(datum)?;
    if root.is_scalar && (root.is_object || root.count != 1) {
        return Err(ValueError::Field { field: "header", found: i64::from(u32_at(datum, 0)) });
    }
    let is_scalar = root.is_scalar;
    if !is_scalar {
        out.push(root.open());
    }
    let mut stack: SmallVec<[Container<'_>; 4]> = SmallVec::new();
    stack.push(root);
    while let Some(container) = stack.last_mut() {
        if out.len() - start > TEXT_BYTES_MAX {
            return Err(ValueError::TooLong);
        }
        match container.append_next(out)? {
            Next::Appended => {}
            Next::Inner(_) if is_scalar => {
                return Err(ValueError::Field { field: "JEntry", found: 5 });
            }
            Next::Inner(inner) => {
                if stack.len() == DEPTH_MAX {
                    return Err(ValueError::Depth { limit: DEPTH_MAX });
                }
                out.push(inner.open());
                stack.push(inner);
            }
            Next::End => {
                if !is_scalar {
                    out.push(container.close());
                }
                stack.pop();
            }
        }
    }
    Ok(())
}

/// A container that is being printed.
struct Container<'a> {
    is_object: bool,
    is_scalar: bool,
    /// How many elements or pairs it has.
    count: usize,
    /// How many of them are printed.
    done: usize,
    entries: &'a [u8],
    data: &'a [u8],
    /// Where in `data` the next key begins.
    key_start: usize,
    /// Where in `data` the next element or value begins.
    value_start: usize,
}

/// What became of an element or a pair.
enum Next<'a> {
    /// It is in the text.
    Appended,
    /// It is a container, which comes next.
    Inner(Container<'a>),
    /// There is none.
    End,
}

impl<'a> Container<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, ValueError> {
        let mut cursor = Cursor::new(bytes);
        let header = cursor.u32("header")?;
        let is_object = match header & (JB_FOBJECT | JB_FARRAY) {
            JB_FOBJECT => true,
            JB_FARRAY => false,
            _ => return Err(ValueError::Field { field: "header", found: i64::from(header) }),
        };
        let count = (header & JB_CMASK) as usize;
        let entry_count = if is_object { count * 2 } else { count };
        let entries = cursor.take(entry_count * 4, "JEntry")?;
        let mut container = Self {
            is_object,
            is_scalar: header & JB_FSCALAR != 0,
            count,
            done: 0,
            entries,
            data: cursor.rest(),
            key_start: 0,
            value_start: 0,
        };
        if is_object {
            // Values begin where the last key ends.
            for index in 0..count {
                container.value_start = container.entry(index, container.value_start)?.end;
            }
        }
        Ok(container)
    }

    const fn open(&self) -> u8 {
        if self.is_object { b'{' } else { b'[' }
    }

    const fn close(&self) -> u8 {
        if self.is_object { b'}' } else { b']' }
    }

    fn append_next(&mut self, out: &mut Vec<u8>) -> Result<Next<'a>, ValueError> {
        if self.done == self.count {
            return Ok(Next::End);
        }
        if self.done > 0 {
            out.extend_from_slice(b", ");
        }
        let mut index = self.done;
        if self.is_object {
            let key = self.entry(index, self.key_start)?;
            self.key_start = key.end;
            if key.kind != JENTRY_ISSTRING {
                return Err(ValueError::Field { field: "JEntry", found: i64::from(key.kind) });
            }
            append_string(key.bytes, out)?;
            out.extend_from_slice(b": ");
            index += self.count;
        }
        let value = self.entry(index, self.value_start)?;
        self.value_start = value.end;
        self.done += 1;
        match value.kind {
            JENTRY_ISSTRING => append_string(value.bytes, out)?,
            JENTRY_ISNUMERIC => {
                let (payload, length) = Varlena::read_plain(value.padded()?)?;
                if value.padded()?.len() != length {
                    let (expected, found) = (length, value.padded()?.len());
                    return Err(ValueError::Length { name: "numeric", expected, found });
                }
                numeric(payload, out)?;
            }
            JENTRY_ISBOOL_FALSE => out.extend_from_slice(b"false"),
            JENTRY_ISBOOL_TRUE => out.extend_from_slice(b"true"),
            JENTRY_ISNULL => out.extend_from_slice(b"null"),
            JENTRY_ISCONTAINER => {
                let inner = Self::read(value.padded()?)?;
                if inner.is_scalar {
                    return Err(ValueError::Field {
                        field: "header",
                        found: i64::from(JB_FSCALAR),
                    });
                }
                return Ok(Next::Inner(inner));
            }
            kind => return Err(ValueError::Field { field: "JEntry", found: i64::from(kind) }),
        }
        Ok(Next::Appended)
    }

    /// The entry at `index`, whose bytes begin at `start`. Each begins where the one before ends,
    /// so no byte belongs to two.
    fn entry(&self, index: usize, start: usize) -> Result<Entry<'a>, ValueError> {
        let entry = u32_at(self.entries, index * 4);
        let offset_or_length = (entry & JENTRY_OFFLENMASK) as usize;
        let end = match entry & JENTRY_HAS_OFF {
            0 => start + offset_or_length,
            _ => offset_or_length,
        };
        let bytes = self.data.get(start..end).ok_or(CursorError::Short {
            field: "jsonb node",
            needed: end.saturating_sub(start),
            left: self.data.len().saturating_sub(start),
        })?;
        Ok(Entry { kind: entry >> 28 & 7, bytes, start, end })
    }
}

/// An entry and what it stands for.
struct Entry<'a> {
    kind: u32,
    bytes: &'a [u8],
    start: usize,
    end: usize,
}

impl<'a> Entry<'a> {
    /// The bytes from the next multiple of 4 on.
    fn padded(&self) -> Result<&'a [u8], ValueError> {
        let padding = self.start.next_multiple_of(4) - self.start;
        let mut cursor = Cursor::new(self.bytes);
        cursor.take(padding, "padding")?;
        Ok(cursor.rest())
    }
}

/// Appends a string in quotes. Control characters and what would end the string are escaped;
/// everything else is as it is.
fn append_string(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    text::check(bytes)?;
    out.push(b'"');
    let mut plain = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        if byte >= b' ' && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[plain..index]);
        plain = index + 1;
        let letter = match byte {
            0x08 => b'b',
            0x0C => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            b'"' | b'\\' => byte,
            _ => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX_LOWER[usize::from(byte >> 4)]);
                out.push(HEX_LOWER[usize::from(byte & 0x0F)]);
                continue;
            }
        };
        out.extend_from_slice(&[b'\\', letter]);
    }
    out.extend_from_slice(&bytes[plain..]);
    out.push(b'"');
    Ok(())
}

const JB_CMASK: u32 = 0x0FFF_FFFF;
const JB_FSCALAR: u32 = 0x1000_0000;
const JB_FOBJECT: u32 = 0x2000_0000;
const JB_FARRAY: u32 = 0x4000_0000;
const JENTRY_OFFLENMASK: u32 = 0x0FFF_FFFF;
const JENTRY_HAS_OFF: u32 = 0x8000_0000;
const JENTRY_ISSTRING: u32 = 0;
const JENTRY_ISNUMERIC: u32 = 1;
const JENTRY_ISBOOL_FALSE: u32 = 2;
const JENTRY_ISBOOL_TRUE: u32 = 3;
const JENTRY_ISNULL: u32 = 4;
const JENTRY_ISCONTAINER: u32 = 5;
/// More levels than any server's stack holds.
const DEPTH_MAX: usize = 1 << 16;
