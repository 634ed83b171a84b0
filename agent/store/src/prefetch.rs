//! Asking the processor to bring memory near, without waiting for it.
//!
//! The only `unsafe` of this crate. A prefetch neither reads nor writes as far as the program can
//! tell and cannot fault, whatever the address; here it is that of a value besides. The instruction
//! is part of x86-64 itself, so there is nothing to detect. Elsewhere nothing is done.
#![allow(unsafe_code)]

/// Brings the cache line of `bytes[at]` near; does nothing if there is no such byte.
#[inline]
pub(crate) fn prefetch(bytes: &[u8], at: usize) {
    if let Some(byte) = bytes.get(at) {
        prefetch_start(byte);
    }
}

/// Brings the cache line near in which `value` begins.
#[inline]
pub(crate) fn prefetch_start<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: see above.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
