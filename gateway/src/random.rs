//! Random names.

use crate::core::token::hex;

/// The system has no random numbers: a client then does not get in.
pub type Result<T> = std::result::Result<T, getrandom::Error>;

fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

pub fn number() -> Result<u64> {
    bytes().map(u64::from_le_bytes)
}

/// A token: 32 hexadecimal digits.
pub fn token() -> Result<String> {
    bytes::<16>().map(|bytes| hex(&bytes))
}

/// A UUID of version 4.
pub fn uuid() -> Result<String> {
    bytes().map(|bytes| uuid_of(u128::from_be_bytes(bytes)))
}

fn uuid_of(random: u128) -> String {
    // The 4 bits of the version and the 2 bits of the variant are fixed.
    let (high, low) = ((random >> 64) as u64, random as u64);
    let high = high & !0xf000 | 0x4000;
    let low = low & !(0b11 << 62) | 0b10 << 62;
    let node = low & 0xffff_ffff_ffff;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{node:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_have_the_version_and_the_variant() {
        assert_eq!(uuid_of(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid_of(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        let some = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef;
        assert_eq!(uuid_of(some), "01234567-89ab-4def-8123-456789abcdef");
    }

    #[test]
    fn tokens_differ() {
        assert_ne!(token().unwrap(), token().unwrap());
        assert_eq!(token().unwrap().len(), 32);
    }
}
