//! A transition as JSON text: made once, here, and then published, kept and replied as it is.

use super::{Timestamp, MAX_SPACE_BYTES};

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
        match self.reason {
            Some(Reason::Offline) => out.extend_from_slice(b",\"reason\":\"offline\""),
            Some(Reason::Timeout) => out.extend_from_slice(b",\"reason\":\"timeout\""),
            None => {}
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

fn write_number(out: &mut Vec<u8>, number: u64) {
    let _ = serde_json::to_writer(out, &number);
}

fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    let _ = serde_json::to_writer(out, &String::from_utf8_lossy(text));
}

/// How many bytes a text takes as JSON.
pub fn text_len(text: &[u8]) -> usize {
    struct Counter(usize);
    impl std::io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
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
}
