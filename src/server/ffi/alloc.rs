//! The module's memory is the server's: it counts towards `maxmemory` and `INFO memory`.

use redis_module::raw;
use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_void;

/// Allocates from the server.
pub struct ServerAlloc;

/// What the server's allocator aligns to.
const ALIGNED: usize = 16;

/// The size to ask for. The allocator is jemalloc or libc, which align an allocation whose size is
/// a multiple of a larger power of two to that power, up to a page; nothing here asks for more.
fn size(layout: Layout) -> usize {
    if layout.align() <= ALIGNED {
        layout.size()
    } else {
        layout.size().next_multiple_of(layout.align())
    }
}

// SAFETY: the server's allocator is a correct one; sizes and pointers are handed through. It
// aborts the process itself when memory is out.
unsafe impl GlobalAlloc for ServerAlloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the pointer is written once, when the module begins to load. The function takes any
        // size.
        unsafe {
            match raw::RedisModule_Alloc {
                Some(alloc) => alloc(size(layout)).cast(),
                None => std::ptr::null_mut(),
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe {
            match raw::RedisModule_Calloc {
                Some(calloc) => calloc(1, size(layout)).cast(),
                None => std::ptr::null_mut(),
            }
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller guarantees that the new size, rounded up to the alignment, does not
        // exceed `isize::MAX`. The alignment is that of a valid layout.
        let wanted = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: as in `alloc`. The caller guarantees that `pointer` comes from this allocator, which
        // is the server's.
        unsafe {
            match raw::RedisModule_Realloc {
                Some(realloc) => realloc(pointer.cast::<c_void>(), size(wanted)).cast(),
                None => std::ptr::null_mut(),
            }
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, _: Layout) {
        // SAFETY: as in `realloc`: the pointer comes from the server's allocator, and is freed once.
        unsafe {
            if let Some(free) = raw::RedisModule_Free {
                free(pointer.cast::<c_void>());
            }
        }
    }
}
