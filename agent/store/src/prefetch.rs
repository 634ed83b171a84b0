//! Asking the processor to bring memory near, without waiting for it.
//!
//! The only `unsafe` of this crate. A prefetch neither reads nor writes as far as the program can
//! tell and cannot fault, whatever the address; here the address is one of a slice besides. The
//! instruction is part of x86-64 itself, so there is nothing to detect. Elsewhere the byte is read
//! instead: the processor goes on meanwhile as far as its window reaches.
#![allow(unsafe_code)]

/// Brings the cache line of `bytes[at]` near; does nothing if there is no such byte.
#[inline]
pub(crate) fn prefetch(bytes: &[u8], at: usize) {
    let Some(byte) = bytes.get(at) else { return };
    #[cfg(target_arch = "x86_64")]
    // SAFETY: see above.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(byte).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::hint::black_box(*byte);
}
