//! Spaces with contents, and how to read them page by page.

use crate::{Conn, Roster, Space, args, now_ms};

/// Fills a space with a little of everything that has to survive: odd names, metadata, several sessions, a session
/// that lingers, an event of each kind. All leases are about an hour away, each another. Returns who is there.
#[track_caller]
pub fn furnish(c: &mut Conn, space: &str) -> Roster {
    let lease = now_ms() + 3_600_000;
    let long = "x".repeat(512);
    let people = [
        ("alice", "", None),
        ("alice", "phone", Some(r#"{"device":"ios","n":[1,2.5,-3e9,null,true]}"#)),
        ("alice", "tab\r\n2", Some(r#""text""#)),
        ("bob \0 | *", "[a]", None),
        ("\u{1F600} émile", "\u{1F4F1}", Some("{\"é\":\"\u{1F600} \\\" \\\\ \\u0000\"}")),
        (&long, &long, Some("0")),
        ("was two", "first", None),
        ("was two", "second", Some("[]")),
        ("gone", "", Some("[1]")),
    ];
    for (i, (user, session, meta)) in people.iter().enumerate() {
        let mut words = args![
            "PRESENCE.ONLINE",
            space,
            user,
            "SESSION",
            session,
            "PXAT",
            lease + 1000 * i as i64
        ];
        if let Some(meta) = meta {
            words.extend(args!["META", meta]);
        }
        c.ok(words);
    }
    let update = r#"{"device":"android"}"#;
    c.ok(args![
        "PRESENCE.ONLINE",
        space,
        "alice",
        "SESSION",
        "phone",
        "PXAT",
        lease + 77,
        "META",
        update
    ]);
    c.ok(["PRESENCE.OFFLINE", space, "was two", "SESSION", "first"]);
    c.ok(["PRESENCE.OFFLINE", space, "gone"]);
    c.ok(["PRESENCE.OFFLINE", space, "bob \0 | *", "LINGER", "3000000"]);
    c.space(space).roster()
}

/// Reads a space page by page, `count` at a time, and calls `between` after each page but the last.
#[track_caller]
pub fn pages(
    c: &mut Conn,
    space: &str,
    count: usize,
    mut between: impl FnMut(&mut Conn),
) -> Vec<Space> {
    let (mut pages, mut cursor) = (Vec::new(), "0".to_string());
    loop {
        let page = Space::parse(&c.ok([
            "PRESENCE.SPACE",
            space,
            "CURSOR",
            &cursor,
            "COUNT",
            &count.to_string(),
        ]));
        cursor = page.cursor.clone();
        pages.push(page);
        assert!(pages.len() < 1_000_000, "paging does not end");
        if cursor == "0" {
            return pages;
        }
        between(c);
    }
}
