//! Text: what is stored is what is printed, if it is UTF-8.
//!
//! Rules: `textout` in `src/backend/utils/adt/varlena.c` (and `bpcharout`, which does not take the
//! padding away), `nameout` in `name.c`, `charout` in `char.c`.

use super::ValueError;

/// `text`, `varchar`, `bpchar`, `json` and others.
#[inline]
pub(super) fn text(datum: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    check(datum)?;
    out.extend_from_slice(datum);
    Ok(())
}

/// `name`: 64 bytes, the text ends at the first NUL.
pub(super) fn name(datum: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let end =
        datum.iter().position(|&byte| byte == 0).ok_or(ValueError::Encoding { at: datum.len() })?;
    text(&datum[..end], out)
}

/// `"char"`: one byte; beyond ASCII in octal, 0 is no text at all.
pub(super) fn char(datum: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    match datum {
        [] | [0] => {}
        &[byte, ..] if byte.is_ascii() => out.push(byte),
        &[byte, ..] => {
            let octal = |shift: u8| b'0' + (byte >> shift & 7);
            out.extend_from_slice(&[b'\\', octal(6), octal(3), octal(0)]);
        }
    }
    Ok(())
}

/// Text is UTF-8 without NUL, which a C string could not hold.
#[inline]
pub(super) fn check(bytes: &[u8]) -> Result<(), ValueError> {
    if let Err(error) = std::str::from_utf8(bytes) {
        return Err(ValueError::Encoding { at: error.valid_up_to() });
    }
    match bytes.contains(&0) {
        false => Ok(()),
        true => Err(ValueError::Encoding {
            at: bytes.iter().position(|&byte| byte == 0).unwrap_or_default(),
        }),
    }
}
