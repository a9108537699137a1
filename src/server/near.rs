//! Asks the processor for memory that will be needed soon.
//!
//! A heartbeat of a large space waits for memory twice, each time for longer than anything else
//! in it takes. Asked for in time, the memory comes while the rest of the command is looked at.

/// Bytes of a cache line.
const LINE: usize = 64;
/// So many lines of one thing are asked for: the names and the lease of a session are in them.
const MOST_LINES: usize = 2;

/// Has the beginning of `bytes` brought near, without waiting for it.
pub fn fetch(bytes: &[u8]) {
    for line in bytes.chunks(LINE).take(MOST_LINES) {
        fetch_line(line.as_ptr());
    }
}

#[cfg(target_arch = "x86_64")]
fn fetch_line(at: *const u8) {
    use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
    // SAFETY: a hint, which reads nothing as far as the program can tell, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}

#[cfg(target_arch = "aarch64")]
fn fetch_line(at: *const u8) {
    // SAFETY: a hint, which reads nothing as far as the program can tell, whatever the address.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn fetch_line(_: *const u8) {}
