//! Asks the processor for memory that will be needed soon.
//!
//! A heartbeat of a large space looks at two places that are in no cache, and would wait for each
//! longer than for most else that it does. Asked for in time, the memory comes while the rest of the command is looked at.

/// Has a cache line brought near, without waiting for it.
#[cfg(target_arch = "x86_64")]
pub fn prefetch(at: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint, which reads nothing as far as the program can tell, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}

#[cfg(target_arch = "aarch64")]
pub fn prefetch(at: *const u8) {
    // SAFETY: a hint, which reads nothing as far as the program can tell, whatever the address.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn prefetch(_: *const u8) {}
