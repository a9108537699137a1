//! Effects as bytes: what goes to replicas, into the AOF, into the RDB.
//!
//! A batch is a version byte and effects, each behind its length, all in bincode 1's
//! variable-length integer form. Bytes come from files and from other nodes, and a checksum proves
//! nothing, so decoding trusts none of them: every effect is bounded by its own bytes, text is
//! borrowed from them and no memory is reserved for it, and what is refused is other versions,
//! unknown effects, text that is not UTF-8, metadata that a command would refuse, and bytes left
//! over. The texts of events are checked by the space, which knows their ids.
//!
//! Effects of owners travel in the same form, in batches of their own.

#![deny(clippy::arithmetic_side_effects)]

use crate::json;
use crate::owners::OwnerEffect;
use crate::space::Effect;
use bincode::Options;
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;

/// An effect longer than this is not ours: its longest text is an event of 16 MiB of message,
/// each byte escaped, in a space with a long name.
const MAX_EFFECT: u64 = 256 << 20;

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_limit(MAX_EFFECT)
}

/// Why a batch could not be read.
#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// Made by a version of the module that this one does not know.
    Version,
    /// Not a batch of effects.
    Malformed,
}

impl Error {
    pub fn message(&self) -> &'static str {
        match self {
            Error::Version => "made by an unknown version of the module",
            Error::Malformed => "malformed",
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for Error {}

/// Begins a batch in `out`.
pub fn begin(out: &mut Vec<u8>) {
    out.clear();
    out.push(VERSION);
}

/// Appends an effect to a batch.
pub fn encode(out: &mut Vec<u8>, effect: &Effect<'_>) {
    append(out, effect);
}

/// Appends an effect to a batch of effects of owners.
pub fn encode_owner(out: &mut Vec<u8>, effect: &OwnerEffect<'_>) {
    append(out, effect);
}

fn append<T: Serialize>(out: &mut Vec<u8>, effect: &T) {
    let before = out.len();
    let length = options().serialized_size(effect).ok().and_then(|size| u32::try_from(size).ok());
    let written = length.is_some_and(|length| {
        options().serialize_into(&mut *out, &length).is_ok()
            && options().serialize_into(&mut *out, effect).is_ok()
    });
    if !written {
        // Only an effect beyond the limit gets here; half of one would spoil the batch.
        out.truncate(before);
    }
}

/// The effects of a batch, in order. Ends after the first error.
pub fn decode(batch: &[u8]) -> impl Iterator<Item = Result<Effect<'_>, Error>> {
    effects(batch, is_valid)
}

/// The effects of a batch of effects of owners, in order. Ends after the first error.
pub fn decode_owners(batch: &[u8]) -> impl Iterator<Item = Result<OwnerEffect<'_>, Error>> {
    effects(batch, OwnerEffect::is_valid)
}

fn effects<'a, T: Deserialize<'a>>(
    batch: &'a [u8],
    is_valid: fn(&T) -> bool,
) -> impl Iterator<Item = Result<T, Error>> {
    let mut rest = match batch.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
        Some(_) => Err(Error::Version),
        None => Err(Error::Malformed),
    };
    std::iter::from_fn(move || {
        let next = match std::mem::replace(&mut rest, Ok(&[])) {
            Ok([]) => return None,
            Ok(bytes) => decode_one(bytes),
            Err(error) => Err(error),
        };
        let next = next.and_then(|(effect, after)| {
            if is_valid(&effect) { Ok((effect, after)) } else { Err(Error::Malformed) }
        });
        Some(next.map(|(effect, after)| {
            rest = Ok(after);
            effect
        }))
    })
}

fn decode_one<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<(T, &'a [u8]), Error> {
    let malformed = |_| Error::Malformed;
    let length: u32 = options().allow_trailing_bytes().deserialize(bytes).map_err(malformed)?;
    let header = options().serialized_size(&length).map_err(malformed)?;
    let header = usize::try_from(header).map_err(|_| Error::Malformed)?;
    let end = header.saturating_add(length as usize);
    let (effect, after) = (bytes.get(header..end), bytes.get(end..));
    let (effect, after) = effect.zip(after).ok_or(Error::Malformed)?;
    let effect = options().reject_trailing_bytes().deserialize(effect).map_err(malformed)?;
    Ok((effect, after))
}

fn is_valid(effect: &Effect<'_>) -> bool {
    let meta = match effect {
        Effect::Online { meta, .. }
        | Effect::OwnedOnline { meta, .. }
        | Effect::OwnedSession { meta, .. }
        | Effect::Update { meta, .. }
        | Effect::Session { meta, .. }
        | Effect::BoundSession { meta, .. } => *meta,
        _ => None,
    };
    meta.is_none_or(|meta| json::check(meta).is_ok() && !json::is_null(meta))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::{LeaseBound, Reason};
    use proptest::prelude::*;

    fn samples() -> Vec<Effect<'static>> {
        vec![
            Effect::Begin { epoch: 1 << 41, seq: 300, closed_until: 0 },
            Effect::Keep { length: 128, ttl: 60_000 },
            Effect::Online {
                user: "alice",
                session: "",
                lease: 9,
                at: 3,
                meta: Some("{\"a\":[1]}"),
            },
            Effect::Lease { user: "a\0b", session: "s", lease: u64::MAX, lingering: true },
            Effect::Update { user: "alice", session: "é", at: 4, meta: None },
            Effect::Offline { user: "alice", session: "", at: 5, reason: Reason::Timeout },
            Effect::Grace { until: 77 },
            Effect::Message { user: "bob", session: "", at: 6, text: "line\r\n" },
            Effect::Close { at: 7, until: 8 },
            Effect::Trim { keep: 0 },
            Effect::Session {
                user: "u",
                session: "v",
                lease: 1,
                joined_at: 2,
                since: 1,
                lingering: false,
                meta: Some("[null]"),
            },
            Effect::Event { at: 1, text: "{\"id\":\"1-1\"}" },
            Effect::NewLine { epoch: 1 << 42 },
            Effect::PastLine { epoch: 1 << 40, first: 1, last: 299 },
            Effect::LineDue,
            Effect::OwnedOnline {
                user: "alice",
                session: "tab",
                owner: "gateway-1",
                lease: 9,
                at: 3,
                meta: Some("[1]"),
            },
            Effect::Own { user: "alice", session: "", owner: "gateway-2", lease: 10 },
            Effect::Owner { name: "gateway-1", lease: 9, offline: true },
            Effect::OwnedSession {
                user: "u",
                session: "v",
                owner: 0,
                joined_at: 2,
                since: 1,
                meta: None,
            },
            Effect::KeepSeen { ttl: 1, users: 2 },
            Effect::Forget { users: 3 },
            Effect::Seen { user: "bob", at: 4, reason: Reason::Offline },
            Effect::Bound {
                user: "alice",
                session: None,
                until: LeaseBound { lease: 1 << 41, slack: 29_952 },
            },
            Effect::BoundSession {
                user: "u",
                session: "v",
                until: LeaseBound { lease: 1 << 50, slack: 0 },
                joined_at: 2,
                since: 1,
                lingering: true,
                meta: Some("1"),
            },
        ]
    }

    fn batch(effects: &[Effect]) -> Vec<u8> {
        let mut out = Vec::new();
        begin(&mut out);
        for effect in effects {
            encode(&mut out, effect);
        }
        out
    }

    #[test]
    fn gives_back_what_it_took() {
        let effects = samples();
        let bytes = batch(&effects);
        let back: Result<Vec<Effect>, Error> = decode(&bytes).collect();
        assert_eq!(back.unwrap(), effects);
    }

    /// What an older version wrote is read: a new effect never changes the number of another.
    #[test]
    fn effects_keep_their_numbers() {
        for (number, effect) in samples().into_iter().enumerate() {
            let bytes = batch(&[effect]);
            // The version, the length, the effect.
            assert_eq!((bytes[0], usize::from(bytes[2])), (1, number), "{effect:?}");
        }
        let begin = [1, 12, 0, 253, 0, 0, 0, 0, 1, 0, 0, 0, 7, 0];
        let begin: Vec<Effect> = decode(&begin).map(Result::unwrap).collect();
        assert_eq!(begin, [Effect::Begin { epoch: 1 << 32, seq: 7, closed_until: 0 }]);
    }

    #[test]
    fn effects_of_owners_come_back_and_keep_their_numbers() {
        let reason = Reason::Offline;
        let effects = [
            OwnerEffect::Begin { owner: "gw-1", lease: 9, bound: 18 },
            OwnerEffect::Lease { owner: "\0", lease: 10, bound: 10 },
            OwnerEffect::Cut { owner: "\u{1f600}", lease: 11, reason: Reason::Timeout },
            OwnerEffect::End { owner: "gw-1", at: 12, reason },
        ];
        let mut bytes = Vec::new();
        begin(&mut bytes);
        for (number, effect) in effects.iter().enumerate() {
            let before = bytes.len();
            encode_owner(&mut bytes, effect);
            assert_eq!(usize::from(bytes[before + 1]), number, "{effect:?}");
        }
        let back: Result<Vec<OwnerEffect>, Error> = decode_owners(&bytes).collect();
        assert_eq!(back.unwrap(), effects);
        let long = "x".repeat(513);
        for bad in [
            OwnerEffect::End { owner: "", at: 1, reason },
            OwnerEffect::End { owner: &long, at: 1, reason },
            OwnerEffect::End { owner: "o", at: u64::MAX, reason },
            OwnerEffect::Cut { owner: "o", lease: u64::MAX, reason },
            OwnerEffect::Begin { owner: "o", lease: 2, bound: 1 },
            OwnerEffect::Lease { owner: "o", lease: 1, bound: u64::MAX },
        ] {
            begin(&mut bytes);
            encode_owner(&mut bytes, &bad);
            assert_eq!(decode_owners(&bytes).next(), Some(Err(Error::Malformed)), "{bad:?}");
        }
        for end in 0..bytes.len() {
            assert!(decode_owners(&bytes[..end]).all(|effect| effect.is_err()));
        }
    }

    #[test]
    fn errors_have_texts() {
        let text =
            |error: Error| -> String { Box::<dyn std::error::Error>::from(error).to_string() };
        assert_eq!(text(Error::Version), "made by an unknown version of the module");
        assert_eq!(text(Error::Malformed), "malformed");
    }

    #[test]
    fn refuses_what_is_not_a_batch() {
        let first = |bytes: &[u8]| decode(bytes).find_map(Result::err);
        assert_eq!(first(b""), Some(Error::Malformed));
        assert_eq!(first(&[VERSION + 1, 1]), Some(Error::Version));
        assert_eq!(first(&[VERSION, 0]), Some(Error::Malformed), "an empty effect");
        assert_eq!(first(&[VERSION, 1, 200]), Some(Error::Malformed), "an unknown effect");
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        for meta in ["no json", "null", "1e999", "\"\\ud800\"", &deep] {
            let update = Effect::Update { user: "u", session: "", at: 1, meta: Some(meta) };
            assert_eq!(first(&batch(&[update])), Some(Error::Malformed));
        }
        let mut bytes = batch(&[Effect::Trim { keep: 0 }]);
        bytes[1] += 1;
        bytes.push(0);
        assert_eq!(first(&bytes), Some(Error::Malformed), "bytes left over in an effect");
    }

    #[test]
    fn every_truncation_is_an_error_or_a_shorter_batch() {
        let effects = samples();
        let bytes = batch(&effects);
        for end in 0..bytes.len() {
            let back: Vec<_> = decode(&bytes[..end]).map_while(Result::ok).collect();
            assert!(back.len() < effects.len());
            assert_eq!(back, effects[..back.len()]);
        }
    }

    proptest! {
        #[test]
        fn noise_is_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (decode(&bytes).count(), decode_owners(&bytes).count());
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let _ = (decode(&bytes).count(), decode_owners(&bytes).count());
        }

        #[test]
        fn flipped_bits_are_survived(at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut bytes = batch(&samples());
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let _ = decode(&bytes).count();
        }
    }
}
