//! Effects as bytes: what goes to replicas, into the AOF, into the RDB.
//!
//! A batch is a version byte and effects, each behind its length, all in bincode 1's
//! variable-length integer form. Bytes come from files and from other nodes, and a checksum proves
//! nothing, so decoding trusts none of them: every effect is bounded by its own bytes, text is
//! borrowed from them and no memory is reserved for it, and what is refused is other versions,
//! unknown effects, text that is not UTF-8, metadata that a command would refuse, and bytes left
//! over. The texts of events are checked by the space, which knows their ids.

use crate::json;
use crate::space::Effect;
use bincode::Options;

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
        Some(next.map(|(effect, after)| {
            rest = Ok(after);
            effect
        }))
    })
}

fn decode_one(bytes: &[u8]) -> Result<(Effect<'_>, &[u8]), Error> {
    let malformed = |_| Error::Malformed;
    let length: u32 = options().allow_trailing_bytes().deserialize(bytes).map_err(malformed)?;
    let header = options().serialized_size(&length).map_err(malformed)?;
    let header = usize::try_from(header).map_err(|_| Error::Malformed)?;
    let end = header.saturating_add(length as usize);
    let (effect, after) = (bytes.get(header..end), bytes.get(end..));
    let (effect, after) = effect.zip(after).ok_or(Error::Malformed)?;
    let effect: Effect =
        options().reject_trailing_bytes().deserialize(effect).map_err(malformed)?;
    let meta = match effect {
        Effect::Online { meta, .. }
        | Effect::Update { meta, .. }
        | Effect::Session { meta, .. } => meta,
        _ => None,
    };
    if meta.is_some_and(|meta| json::check(meta).is_err() || json::is_null(meta)) {
        return Err(Error::Malformed);
    }
    Ok((effect, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::Reason;
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
            let _ = decode(&bytes).count();
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let _ = decode(&bytes).count();
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
