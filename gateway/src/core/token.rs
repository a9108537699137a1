//! Tokens, which prove that an id is a client's.

use sha2::{Digest, Sha256};
use std::fmt::Write;

/// The hash of a token. It goes into metadata, which every user of the server can read.
pub fn hash(token: &str) -> String {
    hex(Sha256::digest(token).iter().take(16))
}

pub fn hex<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> String {
    let mut out = String::new();
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_half_of_sha256() {
        assert_eq!(hash(""), "e3b0c44298fc1c149afbf4c8996fb924");
        assert_eq!(hash("a").len(), 32);
    }
}
