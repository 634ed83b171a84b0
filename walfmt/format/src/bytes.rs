//! Little-endian integers at fixed offsets of a byte slice that is known to be long enough.
//!
//! For structures whose whole length was checked beforehand (page headers, control file). A read
//! past the end gives zero instead of a panic; callers check the length once, first.

/// The byte at `offset`, or 0.
#[inline]
#[must_use]
pub fn u8_at(bytes: &[u8], offset: usize) -> u8 {
    bytes.get(offset).copied().unwrap_or_default()
}

#[inline]
fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// The `u16` at `offset`, or 0.
#[inline]
#[must_use]
pub fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, offset))
}

/// The `u32` at `offset`, or 0.
#[inline]
#[must_use]
pub fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

/// The `i32` at `offset`, or 0.
#[inline]
#[must_use]
pub fn i32_at(bytes: &[u8], offset: usize) -> i32 {
    i32::from_le_bytes(array_at(bytes, offset))
}

/// The `u64` at `offset`, or 0.
#[inline]
#[must_use]
pub fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}

/// The `i64` at `offset`, or 0.
#[inline]
#[must_use]
pub fn i64_at(bytes: &[u8], offset: usize) -> i64 {
    i64::from_le_bytes(array_at(bytes, offset))
}

/// Writes `value` at `offset`; the range must lie inside `bytes`.
#[inline]
pub fn put<const N: usize>(bytes: &mut [u8], offset: usize, value: [u8; N]) {
    bytes[offset..offset + N].copy_from_slice(&value);
}
