//! A space as one JSON text: the reply of `PRESENCE.SPACE … JSON`.
//!
//! The text is written straight from the records into one buffer. Names are checked when they come in, so they are
//! UTF-8, and metadata is JSON already: it is copied as it is.

use super::event::{write_number, write_text};
use super::{SessionRecord, Space, Timestamp, User};

/// What the text tells of the space before the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceHead {
    /// The id of the last event.
    pub id: (u64, u64),
    /// Users online, and live sessions.
    pub users: usize,
    pub sessions: usize,
    /// Where the next page begins; 0 after the last.
    pub cursor: u64,
}

/// Bytes of a text beside the names and the metadata: per user, per session, and of the rest. Estimates.
const USER_BYTES: usize = 28;
const SESSION_BYTES: usize = 78;
const HEAD_BYTES: usize = 128;

impl SpaceHead {
    /// Appends the text for these members.
    pub fn write_json<'a>(
        &self,
        out: &mut Vec<u8>,
        members: impl Iterator<Item = User<'a>>,
        with_sessions: bool,
    ) {
        out.extend_from_slice(b"{\"id\":\"");
        write_number(out, self.id.0);
        out.push(b'-');
        write_number(out, self.id.1);
        out.extend_from_slice(b"\",\"users\":");
        write_number(out, self.users as u64);
        out.extend_from_slice(b",\"sessions\":");
        write_number(out, self.sessions as u64);
        // A string as in the reply that is a map: it has more digits than some readers keep of a number.
        out.extend_from_slice(b",\"cursor\":\"");
        write_number(out, self.cursor);
        out.extend_from_slice(b"\",\"members\":[");
        for (n, user) in members.enumerate() {
            if n > 0 {
                out.push(b',');
            }
            if with_sessions {
                write_user(out, &user);
            } else {
                write_name(out, user.name());
            }
        }
        out.extend_from_slice(b"]}");
    }
}

impl Space {
    /// About how many bytes the text for all members takes at `now`, to which the space has been advanced.
    pub fn json_bytes(&self, now: Timestamp, with_sessions: bool) -> usize {
        let (users, sessions) = self.counts(now);
        if !with_sessions {
            return HEAD_BYTES + users * USER_BYTES;
        }
        // What has expired is not part of the text.
        let (_, stored) = self.stored();
        let live_bytes = self.members.record_bytes() / stored.max(1) * sessions;
        HEAD_BYTES + users * USER_BYTES + sessions * SESSION_BYTES + live_bytes
    }
}

fn write_user(out: &mut Vec<u8>, user: &User<'_>) {
    out.extend_from_slice(b"{\"user\":");
    write_name(out, user.name());
    out.extend_from_slice(b",\"sessions\":[");
    for (n, session) in user.sessions().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        write_session(out, session);
    }
    out.extend_from_slice(b"]}");
}

/// The keys of a session stand in the order of the reply that is a map. What says nothing is left out.
fn write_session(out: &mut Vec<u8>, session: SessionRecord<'_>) {
    out.push(b'{');
    let name = session.session();
    if !name.is_empty() {
        out.extend_from_slice(b"\"session\":");
        write_name(out, name);
        out.push(b',');
    }
    out.extend_from_slice(b"\"joined_at\":");
    write_number(out, session.joined_at());
    out.extend_from_slice(b",\"expires_at\":");
    write_number(out, session.lease().until());
    if let Some(meta) = session.meta() {
        out.extend_from_slice(b",\"meta\":");
        out.extend_from_slice(meta);
    }
    if let Some(owner) = session.owner() {
        out.extend_from_slice(b",\"owner\":");
        write_name(out, owner.as_bytes());
    }
    out.push(b'}');
}

/// A name as a JSON string. Most names are copied as they are.
fn write_name(out: &mut Vec<u8>, name: &[u8]) {
    // Without a branch, so that many bytes are compared at once.
    let is_escaped = |byte: &u8| *byte < b' ' || *byte == b'"' || *byte == b'\\';
    if name.iter().fold(false, |any, byte| any | is_escaped(byte)) {
        write_text(out, name);
        return;
    }
    out.push(b'"');
    out.extend_from_slice(name);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const LIMITS: Limits = Limits {
        sessions_per_user: u64::MAX,
        users: 0,
        retention: Retention::of_events(4, 1000),
        slack: 0,
    };

    fn online(space: &mut Space, now: u64, who: (&str, &str), lease: u64, meta: Meta) {
        let at = ChangeCtx { space: b"room", now, limits: LIMITS };
        let meta = MetaChange::To(meta);
        let request =
            OnlineRequest { who, keeper: lease.into(), meta, condition: Condition::Always };
        space.online(at, &Lookup::default(), request, |_| true, &mut NullSink).unwrap();
    }

    fn head_of(space: &Space, now: u64) -> SpaceHead {
        let (users, sessions) = space.counts(now);
        SpaceHead { id: space.last_id(), users, sessions, cursor: 0 }
    }

    fn text_of(space: &Space, now: u64, with_sessions: bool) -> String {
        let mut out = Vec::new();
        head_of(space, now).write_json(&mut out, space.users(now), with_sessions);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn keys_stand_in_the_order_of_the_contract_and_are_absent_where_they_say_nothing() {
        let mut space = Space::new(7);
        let meta = "{\"b\": 1,\n\"a\":[]}";
        online(&mut space, 1, ("a\"\u{1}\u{1F600}", ""), 10, None);
        online(&mut space, 2, ("a\"\u{1}\u{1F600}", "tab\t"), 20, Some(meta));
        online(&mut space, 3, ("b", "s"), 30, None);
        assert_eq!(
            text_of(&space, 5, true),
            "{\"id\":\"7-3\",\"users\":2,\"sessions\":3,\"cursor\":\"0\",\"members\":[\
             {\"user\":\"a\\\"\\u0001\u{1F600}\",\"sessions\":[\
             {\"joined_at\":1,\"expires_at\":10},\
             {\"session\":\"tab\\t\",\"joined_at\":2,\"expires_at\":20,\"meta\":{\"b\": 1,\n\"a\":[]}}]},\
             {\"user\":\"b\",\"sessions\":[{\"session\":\"s\",\"joined_at\":3,\"expires_at\":30}]}]}"
        );
        assert_eq!(
            text_of(&space, 5, false),
            "{\"id\":\"7-3\",\"users\":2,\"sessions\":3,\"cursor\":\"0\",\"members\":[\
             \"a\\\"\\u0001\u{1F600}\",\"b\"]}"
        );
        assert_eq!(
            text_of(&Space::new(9), 5, true),
            "{\"id\":\"9-0\",\"users\":0,\"sessions\":0,\"cursor\":\"0\",\"members\":[]}"
        );
    }

    #[test]
    fn the_estimate_is_close() {
        let mut space = Space::new(7);
        let now = 1_700_000_000_000;
        for n in 0..10_000 {
            let meta = format!("{{\"status\":\"away\",\"n\":{n}}}");
            let (user, session) = (format!("user-{n}"), format!("session-{}", n % 7));
            online(&mut space, now, (&user, &session), now + 1 + n % 2 * 5000, Some(&meta));
        }
        for at in [now, now + 100] {
            space.advance(at);
            let (bytes, text) = (space.json_bytes(at, true), text_of(&space, at, true));
            assert!(bytes >= text.len(), "{bytes} for {}", text.len());
            assert!(bytes < text.len() * 3 / 2, "{bytes} for {}", text.len());
        }
    }

    fn name(least: usize) -> impl Strategy<Value = String> {
        let any = prop::collection::vec(any::<char>(), least..20);
        let odd = prop::sample::select(vec![
            '"',
            '\\',
            '/',
            '\0',
            '\u{7}',
            '\u{8}',
            '\u{c}',
            '\n',
            '\u{1f}',
            '\u{7f}',
            ' ',
            '*',
            '\u{80}',
            '\u{2028}',
            '\u{ffff}',
            '\u{1F600}',
            'a',
        ]);
        let odd = prop::collection::vec(odd, least..20);
        let plain = prop::collection::vec(prop::char::range('a', 'd'), least..3);
        prop_oneof![any, odd, plain].prop_map(String::from_iter)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn the_text_is_what_serde_makes_of_the_members(
            sessions in prop::collection::vec(
                (name(1), name(0), 1..100u64, prop::option::of(name(0))),
                0..40,
            ),
            now in 40..100u64,
            count in 1..10usize,
        ) {
            let mut space = Space::new(7);
            for (at, (user, session, ttl, meta)) in (1..).zip(&sessions) {
                let meta = meta.as_ref().map(|text| json!({ "text": text, "n": [1, null] }).to_string());
                online(&mut space, at, (user, session), at + ttl, meta.as_deref());
            }
            space.advance(now);
            let member = |user: User<'_>| {
                let sessions: Vec<Value> = user.sessions().map(|session| {
                    let mut entry = json!({
                        "joined_at": session.joined_at(),
                        "expires_at": session.lease().until(),
                    });
                    if !session.session().is_empty() {
                        entry["session"] = json!(text(session.session()));
                    }
                    if let Some(meta) = session.meta() {
                        entry["meta"] = serde_json::from_slice(meta).unwrap();
                    }
                    entry
                }).collect();
                (json!(text(user.name())), json!(sessions))
            };
            let members: Vec<_> = space.users(now).map(member).collect();
            let whole = |text: &str, cursor: &str, members: Vec<Value>| {
                let (users, sessions) = space.counts(now);
                let (epoch, seq) = space.last_id();
                let expected = json!({
                    "id": format!("{epoch}-{seq}"), "users": users, "sessions": sessions,
                    "cursor": cursor, "members": members,
                });
                assert_eq!(serde_json::from_str::<Value>(text).unwrap(), expected);
            };
            let names = members.iter().map(|(name, _)| name.clone()).collect();
            whole(&text_of(&space, now, false), "0", names);
            let maps = |members: &[(Value, Value)]| {
                members.iter().map(|(user, sessions)| json!({ "user": user, "sessions": sessions })).collect()
            };
            whole(&text_of(&space, now, true), "0", maps(&members));
            // A page is a text of its own.
            let (page, _) = space.page(0, count, now, |_| {});
            let of_page: Vec<_> = space.page(0, count, now, |_| {}).0.into_iter().map(member).collect();
            let mut out = Vec::new();
            let head = SpaceHead { cursor: 5, ..head_of(&space, now) };
            head.write_json(&mut out, page.into_iter(), true);
            whole(std::str::from_utf8(&out).unwrap(), "5", maps(&of_page));
            // Byte for byte, as serde writes a string.
            for (user, _, _, _) in &sessions {
                let mut out = Vec::new();
                write_name(&mut out, user.as_bytes());
                prop_assert_eq!(out, serde_json::to_vec(user).unwrap());
            }
        }
    }
}
