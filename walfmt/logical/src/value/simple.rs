//! Types whose text is their bytes in another shape: numbers, bits, hexadecimal.
//!
//! ```text
//! bit, varbit          i32 bit_len, then the bits, highest first, the last byte filled with zeros
//! tid                  u16 block number's high half, u16 low half, u16 item number
//! int2vector,          an array of one dimension without nulls:
//! oidvector            i32 ndim = 1, i32 dataoffset = 0, u32 elemtype, i32 dim1, i32 lbound1,
//!                      the items
//! ```
//!
//! Rules: in `src/backend/utils/adt`: `bool.c`, `int.c`, `int8.c`, `oid.c`, `xid.c`, `varbit.c`,
//! `uuid.c`, `pg_lsn.c`, `tid.c`, `byteaout` in `varlena.c`.

use walfmt::bytes::{i32_at, u16_at, u32_at, u64_at};
use walfmt::cursor::Cursor;

use super::{TEXT_BYTES_MAX, ValueError};

type Result = std::result::Result<(), ValueError>;

/// Appends an integer in decimal.
#[inline]
pub(super) fn decimal(value: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends each byte as two lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len() * 2);
    for chunk in bytes.chunks(32) {
        let mut digits = [0; 64];
        for (pair, &byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(chunk) {
            *pair = [HEX_LOWER[usize::from(byte >> 4)], HEX_LOWER[usize::from(byte & 0x0F)]];
        }
        out.extend_from_slice(&digits[..chunk.len() * 2]);
    }
}

pub(super) fn boolean(datum: &[u8], out: &mut Vec<u8>) -> Result {
    out.push(match datum {
        [0] => b'f',
        [1] => b't',
        _ => {
            let found = datum.first().map_or(-1, |&byte| i64::from(byte));
            return Err(ValueError::Field { field: "bool", found });
        }
    });
    Ok(())
}

pub(super) fn int2(datum: &[u8], out: &mut Vec<u8>) -> Result {
    decimal(u16_at(datum, 0).cast_signed(), out);
    Ok(())
}

pub(super) fn int4(datum: &[u8], out: &mut Vec<u8>) -> Result {
    decimal(i32_at(datum, 0), out);
    Ok(())
}

pub(super) fn int8(datum: &[u8], out: &mut Vec<u8>) -> Result {
    decimal(u64_at(datum, 0).cast_signed(), out);
    Ok(())
}

/// `oid`, `xid`, `cid`.
pub(super) fn uint4(datum: &[u8], out: &mut Vec<u8>) -> Result {
    decimal(u32_at(datum, 0), out);
    Ok(())
}

/// `xid8`.
pub(super) fn uint8(datum: &[u8], out: &mut Vec<u8>) -> Result {
    decimal(u64_at(datum, 0), out);
    Ok(())
}

pub(super) fn bytea(datum: &[u8], out: &mut Vec<u8>) -> Result {
    if datum.len() > (TEXT_BYTES_MAX - 2) / 2 {
        return Err(ValueError::TooLong);
    }
    out.reserve(datum.len() * 2 + 2);
    out.extend_from_slice(b"\\x");
    hex(datum, out);
    Ok(())
}

pub(super) fn uuid(datum: &[u8], out: &mut Vec<u8>) -> Result {
    let mut rest = datum;
    for (index, length) in [4, 2, 2, 2, 6].into_iter().enumerate() {
        if index > 0 {
            out.push(b'-');
        }
        let (group, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        hex(group, out);
        rest = after;
    }
    Ok(())
}

/// `pg_lsn`: both halves in upper-case hexadecimal, without leading zeros.
pub(super) fn pg_lsn(datum: &[u8], out: &mut Vec<u8>) -> Result {
    for (half, separator) in [(u32_at(datum, 4), Some(b'/')), (u32_at(datum, 0), None)] {
        let digits = (32 - (half | 1).leading_zeros()).div_ceil(4);
        for digit in (0..digits).rev() {
            out.push(HEX_LOWER[(half >> (digit * 4) & 0x0F) as usize].to_ascii_uppercase());
        }
        out.extend(separator);
    }
    Ok(())
}

pub(super) fn tid(datum: &[u8], out: &mut Vec<u8>) -> Result {
    out.push(b'(');
    decimal(u32::from(u16_at(datum, 0)) << 16 | u32::from(u16_at(datum, 2)), out);
    out.push(b',');
    decimal(u16_at(datum, 4), out);
    out.push(b')');
    Ok(())
}

/// `bit` and `varbit`.
pub(super) fn bit(datum: &[u8], out: &mut Vec<u8>) -> Result {
    let mut cursor = Cursor::new(datum);
    let bit_len = cursor.i32("bit_len")?;
    let bits = cursor.rest();
    let wrong = ValueError::Field { field: "bit_len", found: i64::from(bit_len) };
    let mut left = usize::try_from(bit_len).map_err(|_| wrong.clone())?;
    if left.div_ceil(8) != bits.len() {
        return Err(wrong);
    }
    if left > TEXT_BYTES_MAX {
        return Err(ValueError::TooLong);
    }
    out.reserve(left);
    for &byte in bits {
        let digits: [u8; 8] = std::array::from_fn(|bit| b'0' + (byte >> (7 - bit) & 1));
        out.extend_from_slice(&digits[..left.min(8)]);
        left = left.saturating_sub(8);
    }
    Ok(())
}

pub(super) fn int2vector(datum: &[u8], out: &mut Vec<u8>) -> Result {
    vector(datum, 21, 2, int2, out)
}

pub(super) fn oidvector(datum: &[u8], out: &mut Vec<u8>) -> Result {
    vector(datum, 26, 4, uint4, out)
}

fn vector(
    datum: &[u8],
    element_oid: u32,
    size: usize,
    append: fn(&[u8], &mut Vec<u8>) -> Result,
    out: &mut Vec<u8>,
) -> Result {
    let mut cursor = Cursor::new(datum);
    for (field, expected) in [("ndim", 1), ("dataoffset", 0), ("elemtype", element_oid)] {
        let found = cursor.u32(field)?;
        if found != expected {
            return Err(ValueError::Field { field, found: i64::from(found) });
        }
    }
    let count = cursor.u32("dim1")? as usize;
    let _lbound1 = cursor.i32("lbound1")?;
    let items = cursor.rest();
    if count.saturating_mul(size) != items.len() {
        return Err(ValueError::Length {
            name: "vector",
            expected: count.saturating_mul(size),
            found: items.len(),
        });
    }
    for (index, item) in items.chunks_exact(size).enumerate() {
        if index > 0 {
            out.push(b' ');
        }
        append(item, out)?;
    }
    Ok(())
}

pub(super) const HEX_LOWER: &[u8; 16] = b"0123456789abcdef";
