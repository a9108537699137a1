//! Hashes of names, keyed by a secret of the process: names come from clients, who must not be able to
//! choose names that collide. SipHash-1-3, as Rust's own tables use it.

use siphasher::sip::SipHasher13;
use siphasher::sip128::SipHasher13 as SipHasher13Of128;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

struct Keys {
    first: SipHasher13Of128,
    second: [u64; 2],
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let random = RandomState::new();
    let [a, b, c, d] = [0, 1, 2, 3].map(|n: u64| random.hash_one(n));
    Keys { first: SipHasher13Of128::new_with_keys(a, b), second: [c, d] }
});

/// The hash of a name, of 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameHash {
    first: u64,
    rest: u64,
}

impl NameHash {
    pub fn of(name: &[u8]) -> Self {
        let hash = KEYS.first.hash(name);
        NameHash { first: hash.h1, rest: hash.h2 }
    }

    /// The part of it by which names are indexed: [`hash_of`] the name.
    pub fn first(self) -> u64 {
        self.first
    }

    /// The fingerprint of a name of two parts of which the first has this hash. What is not kept of it is part
    /// of the key under which the second is hashed: a cascade (Bellare, Canetti and Krawczyk 1996).
    pub fn fingerprint(self, second: &[u8]) -> Fingerprint {
        let [a, b] = KEYS.second;
        let hasher = SipHasher13::new_with_keys(a ^ self.rest, b);
        Fingerprint { first: self.first, both: hasher.hash(second) }
    }
}

/// The hash of a name, of 64 bits.
pub fn hash_of(name: &[u8]) -> u64 {
    NameHash::of(name).first
}

/// By what a name of two parts is told from another without a comparison: the hash of the first part,
/// and one of both. That two names are taken for the same has a chance of 1 in 2^128, or of 1 in 2^64
/// where their first parts are the same, and nobody who does not know the secret can choose names to
/// better it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    pub first: u64,
    pub both: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_name_are_kept_apart() {
        let fingerprint = |first: &[u8], second: &[u8]| NameHash::of(first).fingerprint(second);
        let names: [(&[u8], &[u8]); 6] = [
            (b"ab", b"c"),
            (b"a", b"bc"),
            (b"abc", b""),
            (b"", b"abc"),
            (b"ab", b"d"),
            (b"b", b"c"),
        ];
        for (at, one) in names.iter().enumerate() {
            assert_eq!(fingerprint(one.0, one.1), fingerprint(one.0, one.1));
            assert_eq!(fingerprint(one.0, one.1).first, hash_of(one.0));
            for other in &names[..at] {
                let (this, that) = (fingerprint(one.0, one.1), fingerprint(other.0, other.1));
                assert_ne!(this.both, that.both);
                assert_eq!(this.first == that.first, one.0 == other.0);
            }
        }
    }

    /// The two hashes of a fingerprint do not collide together.
    #[test]
    fn prints_have_128_bits() {
        let fingerprints = (0..4000u32).map(|n| NameHash::of(&n.to_le_bytes()).fingerprint(b""));
        let mut shortened: Vec<_> = fingerprints
            .map(|fingerprint| (fingerprint.first & 0xffff, fingerprint.both & 0xffff))
            .collect();
        shortened.sort_unstable();
        let same_first = shortened.windows(2).filter(|pair| pair[0].0 == pair[1].0).count();
        shortened.dedup();
        assert!(same_first > 50 && shortened.len() >= 3998, "{same_first} {}", shortened.len());
        // Nor where what names are heap slot by is the same.
        let hash = NameHash::of(b"alice");
        let twin = NameHash { rest: hash.rest ^ 1, ..hash };
        assert_ne!(hash.fingerprint(b""), twin.fingerprint(b""));
    }
}
