//! A transition as JSON text: made once, here, and then published, kept and replied as it is.

#![deny(clippy::arithmetic_side_effects)]

use super::{MAX_NAME_BYTES, MAX_SPACE_BYTES, MAX_TIMESTAMP, Timestamp};
use crate::json::Checked;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use std::fmt;

/// What happened. The names are those of the `type` key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A user's first session.
    Join,
    /// A further session of a user who is online.
    Add,
    /// A session's metadata changed.
    Update,
    /// A session ended, others of the user remain.
    Remove,
    /// A user's last session ended.
    Leave,
    /// A text was sent into the space.
    Message,
    /// The space was closed.
    Close,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Join => "join",
            Kind::Add => "add",
            Kind::Update => "update",
            Kind::Remove => "remove",
            Kind::Leave => "leave",
            Kind::Message => "message",
            Kind::Close => "close",
        }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Reason {
    /// The application said so.
    Offline,
    /// Its lease ended.
    Timeout,
}

impl Reason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Reason::Offline => "offline",
            Reason::Timeout => "timeout",
        }
    }
}

/// Everything an event tells. `None` and the empty session are left out of the text.
pub struct Event<'a> {
    pub epoch: u64,
    pub seq: u64,
    /// The key's name. Events carry its first bytes if it is very long, and U+FFFD for what of it is
    /// not UTF-8.
    pub space: &'a [u8],
    pub kind: Kind,
    pub user: Option<&'a [u8]>,
    pub session: &'a [u8],
    pub joined_at: Option<Timestamp>,
    /// A JSON value, which goes in as it is.
    pub meta: Option<&'a [u8]>,
    pub reason: Option<Reason>,
    pub message: Option<&'a str>,
    /// Users online after this event.
    pub users: usize,
    pub at: Timestamp,
}

impl<'a> Event<'a> {
    /// An event about nobody, with nothing to add. The space gives it its seq.
    pub fn new(epoch: u64, space: &'a [u8], kind: Kind, users: usize, at: Timestamp) -> Self {
        Event {
            epoch,
            seq: 0,
            space,
            kind,
            user: None,
            session: b"",
            joined_at: None,
            meta: None,
            reason: None,
            message: None,
            users,
            at,
        }
    }

    /// Appends the event as one JSON object, keys in the order of the contract.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"id\":\"");
        write_number(out, self.epoch);
        out.push(b'-');
        write_number(out, self.seq);
        out.extend_from_slice(b"\",\"space\":");
        write_text(out, shown(self.space));
        out.extend_from_slice(b",\"type\":\"");
        out.extend_from_slice(self.kind.name().as_bytes());
        out.push(b'"');
        if let Some(user) = self.user {
            out.extend_from_slice(b",\"user\":");
            write_text(out, user);
        }
        if !self.session.is_empty() {
            out.extend_from_slice(b",\"session\":");
            write_text(out, self.session);
        }
        if let Some(joined_at) = self.joined_at {
            out.extend_from_slice(b",\"joined_at\":");
            write_number(out, joined_at);
        }
        if let Some(meta) = self.meta {
            out.extend_from_slice(b",\"meta\":");
            out.extend_from_slice(meta);
        }
        if let Some(reason) = self.reason {
            out.extend_from_slice(b",\"reason\":\"");
            out.extend_from_slice(reason.name().as_bytes());
            out.push(b'"');
        }
        if let Some(message) = self.message {
            out.extend_from_slice(b",\"message\":");
            write_text(out, message.as_bytes());
        }
        out.extend_from_slice(b",\"users\":");
        write_number(out, self.users as u64);
        out.extend_from_slice(b",\"at\":");
        write_number(out, self.at);
        out.push(b'}');
    }
}

/// The keys of an event, in their order.
const KEYS: [&str; 11] = [
    "id",
    "space",
    "type",
    "user",
    "session",
    "joined_at",
    "meta",
    "reason",
    "message",
    "users",
    "at",
];

/// The bits of the keys in a set of keys: those of [`KEYS`], in the same order.
const ID: u16 = 1;
const SPACE: u16 = 1 << 1;
const TYPE: u16 = 1 << 2;
const USER: u16 = 1 << 3;
const SESSION: u16 = 1 << 4;
const JOINED_AT: u16 = 1 << 5;
const META: u16 = 1 << 6;
const REASON: u16 = 1 << 7;
const MESSAGE: u16 = 1 << 8;
const USERS: u16 = 1 << 9;
const AT: u16 = 1 << 10;

/// The keys that every event has, those that an event of a session has too, and those that it may
/// have.
const ALWAYS: u16 = ID | SPACE | TYPE | USERS | AT;
const OF_SESSION: u16 = ALWAYS | USER | JOINED_AT;
const MAY: u16 = SESSION | META;

/// The keys that an event of this type has, and those that it may have.
fn keys_of(kind: &str) -> Option<(u16, u16)> {
    match kind {
        "join" | "add" | "update" => Some((OF_SESSION, MAY)),
        "remove" | "leave" => Some((OF_SESSION | REASON, MAY)),
        "message" => Some((ALWAYS | USER | MESSAGE, SESSION)),
        "close" => Some((ALWAYS, 0)),
        _ => None,
    }
}

/// The id of an event by its text, which begins with it.
pub fn id(text: &[u8]) -> Option<(u64, u64)> {
    let rest = text.strip_prefix(b"{\"id\":\"")?;
    let id = rest.get(..rest.iter().position(|byte| *byte == b'"')?)?;
    let (epoch, seq) = std::str::from_utf8(id).ok()?.split_once('-')?;
    let number = |digits: &str| {
        let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse().ok().filter(|number| *number <= MAX_TIMESTAMP);
        number.filter(|_| is_plain && (digits == "0" || !digits.starts_with('0')))
    };
    Some((number(epoch)?, number(seq)?))
}

/// Whether a text is an event as [`Event::write_json`] writes it: a follower can read it. Snapshots
/// bring texts from elsewhere.
pub fn is_event(text: &str) -> bool {
    id(text.as_bytes()).is_some() && serde_json::from_str::<CheckedEvent>(text).is_ok()
}

struct CheckedEvent;

impl<'de> Deserialize<'de> for CheckedEvent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(CheckedEvent)
    }
}

impl<'de> Visitor<'de> for CheckedEvent {
    type Value = CheckedEvent;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<CheckedEvent, A::Error> {
        let wrong = || A::Error::custom("not an event");
        let (mut seen, mut keys) = (0, (0, 0));
        while let Some(key) = entries.next_key_seed(OneOf(&KEYS))? {
            let key = 1u16.checked_shl(key).ok_or_else(wrong)?;
            // Each once, in their order.
            if key <= seen {
                return Err(wrong());
            }
            seen |= key;
            if key == TYPE {
                let kinds = ["join", "add", "update", "remove", "leave", "message", "close"];
                let kind = entries.next_value_seed(OneOf(&kinds))?;
                let kind = kinds.get(kind as usize).copied();
                keys = kind.and_then(keys_of).ok_or_else(wrong)?;
            } else if key == REASON {
                entries.next_value_seed(OneOf(&["offline", "timeout"]))?;
            } else if key == USER || key == SESSION {
                entries.next_value_seed(Text { least: 1, most: MAX_NAME_BYTES })?;
            } else if key & (JOINED_AT | USERS | AT) != 0 {
                let number: u64 = entries.next_value()?;
                if number > MAX_TIMESTAMP {
                    return Err(wrong());
                }
            } else if key == META {
                if let Checked::Null = entries.next_value()? {
                    return Err(wrong());
                }
            } else {
                entries.next_value_seed(Text { least: 0, most: usize::MAX })?;
            }
        }
        let (must, may) = keys;
        let is_whole = must != 0 && seen & must == must && seen & !(must | may) == 0;
        is_whole.then_some(CheckedEvent).ok_or_else(wrong)
    }
}

/// A string that is one of these: its number.
struct OneOf<'a>(&'a [&'a str]);

impl<'de> serde::de::DeserializeSeed<'de> for OneOf<'_> {
    type Value = u32;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u32, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for OneOf<'_> {
    type Value = u32;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a known word")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<u32, E> {
        let number = self.0.iter().position(|known| *known == word);
        number.and_then(|n| u32::try_from(n).ok()).ok_or_else(|| E::custom("an unknown word"))
    }
}

/// A string of so many bytes.
struct Text {
    least: usize,
    most: usize,
}

impl<'de> serde::de::DeserializeSeed<'de> for Text {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Text {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        let fits = (self.least..=self.most).contains(&text.len());
        fits.then_some(()).ok_or_else(|| E::custom("a text that is empty or too long"))
    }
}

/// The part of a space's name that its events carry: all of it, or its first [`MAX_SPACE_BYTES`]
/// without a character that is cut in two.
pub fn shown(space: &[u8]) -> &[u8] {
    let is_inside = |at: usize| space.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    let cut = space.len().min(MAX_SPACE_BYTES);
    // A character has up to four bytes; anything longer is none.
    let end = (cut.saturating_sub(3)..=cut).rev().find(|at| !is_inside(*at)).unwrap_or(cut);
    space.get(..end).unwrap_or(space)
}

// Writing to a Vec cannot fail.

pub fn write_number(out: &mut Vec<u8>, number: u64) {
    let _ = serde_json::to_writer(out, &number);
}

pub fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    let _ = serde_json::to_writer(out, &String::from_utf8_lossy(text));
}

/// How many bytes a text takes as JSON.
pub fn text_len(text: &[u8]) -> usize {
    struct Counter(usize);
    impl std::io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    let _ = serde_json::to_writer(&mut counter, &String::from_utf8_lossy(text));
    counter.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_in_the_order_of_the_contract() {
        let mut event = Event {
            epoch: 1700000000000,
            seq: 7,
            space: b"lob\"by\0",
            kind: Kind::Leave,
            user: Some("ali\u{1F600}ce".as_bytes()),
            session: b"phone",
            joined_at: Some(5),
            meta: Some(br#"{"b": 1, "a":[]}"#),
            reason: Some(Reason::Timeout),
            message: Some("line\nbreak"),
            users: 3,
            at: 9,
        };
        let mut out = Vec::new();
        event.write_json(&mut out);
        assert_eq!(
            String::from_utf8(out.clone()).unwrap(),
            "{\"id\":\"1700000000000-7\",\"space\":\"lob\\\"by\\u0000\",\"type\":\"leave\",\
             \"user\":\"ali\u{1F600}ce\",\"session\":\"phone\",\"joined_at\":5,\
             \"meta\":{\"b\": 1, \"a\":[]},\"reason\":\"timeout\",\"message\":\"line\\nbreak\",\
             \"users\":3,\"at\":9}"
        );
        serde_json::from_slice::<serde_json::Value>(&out).unwrap();

        event = Event { seq: 7, ..Event::new(event.epoch, b"\xff", Kind::Close, 3, 9) };
        out.clear();
        event.write_json(&mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"id\":\"1700000000000-7\",\"space\":\"\u{fffd}\",\"type\":\"close\",\"users\":3,\"at\":9}"
        );
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let shown_length = |name: &str| shown(name.as_bytes()).len();
        assert_eq!(shown_length(""), 0);
        assert_eq!(shown_length(&"x".repeat(4096)), 4096);
        assert_eq!(shown_length(&"x".repeat(100_000)), 4096);
        for (before, end) in [(4092, 4096), (4093, 4093), (4094, 4094), (4095, 4095)] {
            let name = "x".repeat(before) + &"\u{1F600}".repeat(9);
            assert_eq!(shown_length(&name), end, "{before}");
            assert!(std::str::from_utf8(shown(name.as_bytes())).is_ok());
        }
        let exact = "x".repeat(4092) + "\u{1F600}";
        assert_eq!(shown_length(&exact), 4096);
        assert_eq!(shown(&[0x80; 5000]).len(), 4096, "not UTF-8 at all");
        assert_eq!(text_len("a\u{1}\u{e9}\"".as_bytes()), 13);
    }

    #[test]
    fn what_is_written_is_an_event_and_what_differs_is_none() {
        let session = |kind| Event {
            user: Some(b"u\"\x01"),
            session: b"s",
            joined_at: Some(5),
            meta: Some(b"{\"a\": [1]}"),
            ..Event::new(3, b"\xff{x}", kind, 2, 9)
        };
        let join = session(Kind::Join);
        let left = |kind| Event { reason: Some(Reason::Offline), ..session(kind) };
        let message = Event {
            user: Some(b"u"),
            message: Some("a\u{1F600}\n"),
            ..Event::new(3, b"", Kind::Message, 0, 9)
        };
        let all = [
            session(Kind::Add),
            session(Kind::Update),
            left(Kind::Leave),
            left(Kind::Remove),
            Event { session: b"", meta: None, ..session(Kind::Join) },
            message,
            Event::new(3, b"s", Kind::Close, 0, 9),
        ];
        let text = |event: &Event<'_>| {
            let mut out = Vec::new();
            event.write_json(&mut out);
            String::from_utf8(out).unwrap()
        };
        for event in all.iter().chain([&join]) {
            let text = text(event);
            assert!(is_event(&text), "{text}");
            assert_eq!(id(text.as_bytes()), Some((3, 0)));
            // Nothing can be left out but what may be absent anyway, and nothing can be moved.
            let serde_json::Value::Object(map) = serde_json::from_str(&text).unwrap() else {
                panic!()
            };
            for key in map.keys().filter(|key| !["session", "meta"].contains(&key.as_str())) {
                let mut less = map.clone();
                less.remove(key);
                let rest: Vec<String> = KEYS
                    .iter()
                    .filter_map(|key| Some(format!("{key:?}:{}", less.get(*key)?)))
                    .collect();
                assert!(!is_event(&format!("{{{}}}", rest.join(","))), "{text} without {key}");
            }
        }
        let join = text(&join);
        let deep = "[".repeat(200) + &"]".repeat(200);
        for (from, to) in [
            ("{\"id\"", " {\"id\""),
            ("\"3-0\"", "\"03-0\""),
            ("\"3-0\"", "\"3-+0\""),
            ("\"3-0\"", "\"3\""),
            ("\"3-0\"", "\"3-99999999999999999999\""),
            ("\"3-0\"", "3"),
            ("join", "joined"),
            ("join", "close"),
            ("join", "leave"),
            ("join", "message"),
            ("\"joined_at\":5", "\"joined_at\":-5"),
            ("\"joined_at\":5", "\"joined_at\":5.0"),
            ("\"joined_at\":5", "\"joined_at\":\"5\""),
            ("\"at\":9", "\"at\":9,\"at\":9"),
            ("\"at\":9", "\"at\":9,\"more\":1"),
            ("\"users\":2,\"at\":9", "\"at\":9,\"users\":2"),
            ("{\"a\": [1]}", "null"),
            ("{\"a\": [1]}", "1e999"),
            ("{\"a\": [1]}", "\"\\udfff\""),
            ("{\"a\": [1]}", &deep),
            ("\"s\"", "\"\""),
            ("9}", "9}}"),
        ] {
            let changed = join.replacen(from, to, 1);
            assert_ne!(changed, join, "{from}");
            assert!(!is_event(&changed), "{changed}");
        }
        for text in ["", "[]", "{}", "\"\"", "1"] {
            assert!(!is_event(text));
        }
    }
}
