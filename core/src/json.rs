//! Is this one JSON value that every reader of events can take?
//!
//! Metadata goes into events as it came. What a strict reader would refuse (numbers beyond
//! double precision's range, lone surrogates, deep nesting) is therefore refused at the door.

#![deny(clippy::arithmetic_side_effects)]

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// A value that is looked at to its depths and then forgotten. Nesting is bounded by
/// `serde_json`'s own limit of 128 levels, since every level is visited by recursion.
pub enum Checked {
    Null,
    Other,
}

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Look)
    }
}

struct Look;

impl<'de> Visitor<'de> for Look {
    type Value = Checked;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Checked, E> {
        Ok(Checked::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Checked, E> {
        Ok(Checked::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Checked, E> {
        Ok(Checked::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Checked, E> {
        Ok(Checked::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Checked, E> {
        Ok(Checked::Other)
    }

    fn visit_unit<E>(self) -> Result<Checked, E> {
        Ok(Checked::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Checked, A::Error> {
        while items.next_element::<Checked>()?.is_some() {}
        Ok(Checked::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Checked, A::Error> {
        while let Some((Key, _)) = entries.next_entry::<Key, Checked>()? {}
        Ok(Checked::Other)
    }
}

/// An object's key: any string.
struct Key;

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(KeyVisitor)
    }
}

struct KeyVisitor;

impl Visitor<'_> for KeyVisitor {
    type Value = Key;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E>(self, _: &str) -> Result<Key, E> {
        Ok(Key)
    }
}

/// Whether `text` is one JSON value, with the reason where it is not.
pub fn check(text: &str) -> Result<(), serde_json::Error> {
    serde_json::from_str::<Checked>(text).map(|_| ())
}

/// Whether a JSON text is `null`: no metadata.
pub fn is_null(text: &str) -> bool {
    text.trim_matches([' ', '\t', '\r', '\n']) == "null"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_json() {
        for text in [
            "null",
            " {\"a\": [1, -2.5e3, true, \"\\u00e9\\ud83d\\ude00\"], \"\": {}} ",
            "\"\"",
            "0",
            "[[]]",
            "18446744073709551616",
        ] {
            check(text).unwrap();
        }
        check(&format!("{}{}", "[".repeat(100), "]".repeat(100))).unwrap();
    }

    #[test]
    fn null_is_told_from_the_rest() {
        assert!(is_null("null") && is_null(" null\r\n"));
        assert!(!is_null("\"null\"") && !is_null("[null]"));
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "",
            " ",
            "{",
            "nul",
            "{'a':1}",
            "[1,]",
            "1 2",
            "\"\n\"",
            "\"\\ud800\"",
            "1e999",
            "NaN",
            "{1:2}",
            "\u{feff}{}",
            "{\"a\":1}}",
        ] {
            assert!(check(text).is_err(), "{text:?}");
        }
        assert!(check(&"[".repeat(100_000)).is_err());
        assert!(check(&format!("{}{}", "[".repeat(129), "]".repeat(129))).is_err());
    }
}
