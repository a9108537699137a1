//! Hashes of names, keyed by a secret of the process: names come from clients, who must not be able to
//! choose names that collide. SipHash-1-3, as Rust's own tables use it.

use siphasher::sip::SipHasher13;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

struct Keys {
    first: SipHasher13,
    second: [u64; 2],
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let random = RandomState::new();
    let [a, b, c, d] = [0, 1, 2, 3].map(|n: u64| random.hash_one(n));
    Keys { first: SipHasher13::new_with_keys(a, b), second: [c, d] }
});

/// The hash of a name.
pub fn hash_of(name: &[u8]) -> u64 {
    KEYS.first.hash(name)
}

/// By what a name of two parts is told from another without a comparison: the hash of the first part,
/// and one of both. That two names are taken for the same has a chance of 1 in 2^128, or of 1 in 2^64
/// where their first parts are the same, and nobody who does not know the secret can choose names to
/// better it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Print {
    pub first: u64,
    pub both: u64,
}

impl Print {
    /// Of a first part that has this hash and the second part. The hash of the first is part of the key
    /// under which the second is hashed: a cascade of keyed hashes (Bellare, Canetti and Krawczyk 1996).
    pub fn new(first: u64, second: &[u8]) -> Self {
        let [a, b] = KEYS.second;
        Print { first, both: SipHasher13::new_with_keys(a ^ first, b).hash(second) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_name_are_kept_apart() {
        let print = |first: &[u8], second: &[u8]| Print::new(hash_of(first), second);
        let names: [(&[u8], &[u8]); 6] = [
            (b"ab", b"c"),
            (b"a", b"bc"),
            (b"abc", b""),
            (b"", b"abc"),
            (b"ab", b"d"),
            (b"b", b"c"),
        ];
        for (at, one) in names.iter().enumerate() {
            assert_eq!(print(one.0, one.1), print(one.0, one.1));
            for other in &names[..at] {
                assert_ne!(print(one.0, one.1).both, print(other.0, other.1).both);
                assert_eq!(
                    print(one.0, one.1).first == print(other.0, other.1).first,
                    one.0 == other.0
                );
            }
        }
    }
}
