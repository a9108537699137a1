//! Cursors of listings that follow the hashes of names.

use crate::server::ffi::args::{Args, set_once, unsigned};
use crate::server::ffi::error::Error;
use presence_core::collections::hash_of;
use std::sync::LazyLock;

/// Reads what follows `CURSOR`.
pub fn read(args: &mut Args<'_>, cursor: &mut Option<u64>) -> Result<(), Error> {
    let value = unsigned(args.value_of("CURSOR")?).ok_or_else(|| Error::new("invalid cursor"))?;
    set_once(cursor, value, "CURSOR")
}

/// Places are those of one process: loaded again, or on another node, the same names have others.
/// A cursor carries 20 bits that tell the process, and one of another process begins anew: so a
/// listing that is interrupted by a restart repeats names, but misses none. In all it has 52
/// bits, which every client can hold as a number.
pub fn cursor_of(place: u32) -> u64 {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| hash_of(b"cursor") & 0xf_ffff);
    *PROCESS << 32 | u64::from(place)
}

/// The place at which a listing goes on; the first one for a cursor of another process.
pub fn place_of(cursor: Option<u64>) -> u32 {
    cursor.and_then(|cursor| u32::try_from(cursor ^ cursor_of(0)).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_good_for_its_process_only() {
        assert_eq!(place_of(Some(cursor_of(7))), 7);
        assert_eq!(place_of(Some(cursor_of(7) ^ 1 << 40)), 0);
        assert_eq!(place_of(Some(7)), 0);
        assert_eq!(place_of(None), 0);
        assert!(cursor_of(u32::MAX) < 1 << 53);
    }
}
