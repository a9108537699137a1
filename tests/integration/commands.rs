//! Every command's forms and replies, in RESP2 and RESP3.

use crate::harness::*;
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;

/// Names that any careless layer breaks: patterns, separators, quotes, control bytes, other scripts.
pub const ODD: &[&str] = &[
    "*",
    "?",
    "[a]",
    "s|x",
    "a:b",
    "{tag}",
    "\"",
    "'",
    "\\",
    "a\0b",
    "\0",
    "a\r\nb",
    "\n",
    " ",
    "a b",
    "%s%n",
    "$",
    "-1",
    "0",
    "null",
    "👩‍👩‍👧 ünï",
    "\u{7f}\u{1}",
    "\u{2028}",
    "\u{fffd}",
    "EX",
    "NX",
    "USERS",
    "SESSIONS",
    "SESSION",
    "META",
    "LINGER",
];

fn json_of(meta: &Option<String>) -> Json {
    meta.as_ref().map_or(Json::Null, |m| serde_json::from_str(m).unwrap())
}

#[test]
fn online_says_who_came_and_renews_the_rest() {
    let server = Server::start();
    for mut c in [server.connect(), server.connect3()] {
        c.ok("FLUSHALL");
        let before = now_ms();
        assert_eq!(c.int("PRESENCE.ONLINE s alice"), 1);
        let after = now_ms();
        let first = c.user("s", "alice").unwrap();
        assert_eq!(first.status, "online");
        assert_eq!(first.sessions.len(), 1);
        let s = first.session("");
        assert!((before..=after).contains(&s.joined_at), "{s:?}");
        assert_eq!(
            s.expires_at - s.joined_at,
            30_000,
            "presence.lease-ttl-ms where the command names none"
        );
        assert_eq!(first.joined_at, Value::Int(s.joined_at));

        assert_eq!(c.int("presence.online s alice px 60000"), 0, "a heartbeat; names in any case");
        let renewed = c.user("s", "alice").unwrap();
        assert_eq!(renewed.joined_at, first.joined_at);
        assert!(renewed.session("").expires_at >= before + 60_000);
        assert_eq!(c.int("PRESENCE.ONLINE s alice PX 5000"), 0);
        assert!(
            c.user("s", "alice").unwrap().session("").expires_at <= now_ms() + 5000,
            "the last writer, also shorter"
        );

        assert_eq!(
            c.int("PRESENCE.ONLINE s alice SESSION phone"),
            0,
            "a further session is nobody coming online"
        );
        assert_eq!(
            c.int("PRESENCE.ONLINE s bob SESSION phone"),
            1,
            "a first session is, whatever it is called"
        );
        assert_eq!(c.ints("PRESENCE.STATUS s alice bob nobody"), [2, 1, 0]);
        assert_eq!(
            c.int(["PRESENCE.ONLINE", "s", "bob", "SESSION", ""]),
            0,
            "the unnamed session by its name"
        );
        assert_eq!(c.int("PRESENCE.ONLINE s bob"), 0);
        assert_eq!(c.ints("PRESENCE.STATUS s bob"), [2], "… is the one without a name");
    }
}

#[test]
fn online_takes_each_unit_of_time() {
    let server = Server::start();
    let mut c = server.connect();
    let lease = |c: &mut Conn, words: &str| {
        let before = now_ms();
        c.int(format!("PRESENCE.ONLINE s u {words}"));
        (c.user("s", "u").unwrap().session("").expires_at, before, now_ms())
    };
    for (words, ttl) in
        [("EX 20", 20_000), ("ex 1", 1000), ("PX 20000", 20_000), ("pX 86400000", 86_400_000)]
    {
        let (lease, before, after) = lease(&mut c, words);
        assert!(
            (before + ttl..=after + ttl).contains(&lease),
            "{words}: {lease} is not {ttl} from {before}..{after}"
        );
    }
    let at = now_ms() / 1000 + 100;
    assert_eq!(lease(&mut c, &format!("EXAT {at}")).0, at * 1000);
    assert_eq!(lease(&mut c, &format!("PXAT {}", at * 1000 + 123)).0, at * 1000 + 123);
    // A lease of 1 ms is one, and ends.
    assert_eq!(c.int("PRESENCE.ONLINE s brief PX 1"), 1);
    wait_until("1 ms to pass", SOON, || c.ints("PRESENCE.STATUS s brief") == [0]);
}

#[test]
fn options_come_in_any_order_and_case() {
    let server = Server::start();
    let mut c = server.connect();
    let options: [&[&str]; 4] = [&["SESSION", "x"], &["META", "[1]"], &["EX", "50"], &["NX"]];
    let mut n = 0;
    for a in 0..4 {
        for b in (0..4).filter(|b| *b != a) {
            for d in (0..4).filter(|d| *d != a && *d != b) {
                let rest = 6 - a - b - d;
                let words: Vec<&str> =
                    [a, b, d, rest].iter().flat_map(|i| options[*i].iter().copied()).collect();
                let words =
                    if n % 2 == 0 { words.join(" ") } else { words.join(" ").to_lowercase() };
                let user = format!("u{n}");
                assert_eq!(c.int(format!("PRESENCE.ONLINE s {user} {words}")), 1, "{words}");
                let u = c.user("s", &user).unwrap();
                let s = u.session("x");
                assert_eq!(json_of(&s.meta), json!([1]), "{words}");
                assert_eq!(s.expires_at - s.joined_at, 50_000, "{words}");
                assert!(
                    c.is_null(format!("PRESENCE.ONLINE s {user} {words}")),
                    "NX was lost in {words}"
                );
                n += 1;
            }
        }
    }
    assert_eq!(n, 24);
    assert_eq!(c.int("PRESENCE.OFFLINE s u0 linger 60000 session x"), 0);
    assert_eq!(c.int("PRESENCE.OFFLINE s u0 SESSION x"), 1);
    assert_eq!(c.int("PRESENCE.ONLINE s users 2 p q px 70000"), 2);
    assert_eq!(c.int("PRESENCE.ONLINE s Sessions 1 p x Ex 70"), 0);
    for words in [
        "CURSOR 0 COUNT 5 WITHSESSIONS",
        "withsessions count 5 cursor 0",
        "Count 5 WithSessions Cursor 0",
    ] {
        let page = Space::parse(&c.ok(format!("presence.space s {words}")));
        assert!(page.members.iter().all(|(_, sessions)| !sessions.is_empty()), "{words}");
        assert!(page.members.len() < 25, "COUNT was lost in {words}");
    }
    assert_eq!(c.int("presence.count s sessions"), c.space("s").sessions);
}

#[test]
fn nx_and_xx_answer_null_and_change_nothing() {
    let server = Server::start();
    for mut c in [server.connect(), server.connect3()] {
        c.ok("FLUSHALL");
        assert!(c.is_null("PRESENCE.ONLINE s a XX"));
        assert_eq!(c.int("EXISTS s"), 0, "an unmet XX makes no key");
        assert_eq!(c.int("PRESENCE.ONLINE s a NX PX 50000"), 1);
        let before = c.space("s");
        assert!(c.is_null("PRESENCE.ONLINE s a NX PX 90000 META 1"));
        assert!(
            c.is_null("PRESENCE.ONLINE s a SESSION x XX"),
            "the condition is about the session, not the user"
        );
        assert_eq!(c.space("s"), before);
        assert_eq!(c.int("PRESENCE.ONLINE s a XX PX 90000"), 0);
        assert!(c.space("s").members[0].1[0].expires_at > before.members[0].1[0].expires_at);
        assert_eq!(c.int("PRESENCE.ONLINE s a SESSION x NX"), 0);
        assert_eq!(c.ints("PRESENCE.STATUS s a"), [2]);
    }
}

#[test]
fn meta_replaces_stays_and_clears() {
    let server = Server::start();
    let mut c = server.connect();
    let mut meta = |words: &[&str]| {
        c.int([&["PRESENCE.ONLINE", "s", "u"][..], words].concat());
        c.user("s", "u").unwrap().session("").meta.clone()
    };
    assert_eq!(meta(&[]), None);
    for value in [
        r#"{"z":1,"a":[true,null,{"b":"\u00e9\n"}]}"#,
        "[]",
        "\"text\"",
        "0",
        "-1.5e3",
        "false",
        " {\"a\" : 1 } ",
    ] {
        let wanted: Json = serde_json::from_str(value).unwrap();
        assert_eq!(json_of(&meta(&["META", value])), wanted);
        assert_eq!(json_of(&meta(&[])), wanted, "without META it stays");
    }
    assert_eq!(
        meta(&["META", r#"{"z":1,"a":2}"#]).unwrap(),
        r#"{"z":1,"a":2}"#,
        "the text comes back as it was"
    );
    let big = r#"{"n":12345678901234567890123,"f":0.10000000000000000001}"#;
    assert_eq!(meta(&["META", big]).unwrap(), big, "no number loses digits");
    assert_eq!(meta(&["META", "null"]), None);
    meta(&["META", "1"]);
    assert_eq!(meta(&["META", " null\n"]), None, "JSON's null, blanks and all");
    // Each session has its own.
    c.ok("PRESENCE.ONLINE s u SESSION x META 1");
    c.ok("PRESENCE.ONLINE s u SESSION y META 2");
    c.ok("PRESENCE.ONLINE s u SESSION y META null");
    let u = c.user("s", "u").unwrap();
    let metas: Vec<_> = ["", "x", "y"].iter().map(|s| u.session(s).meta.as_deref()).collect();
    assert_eq!(metas, [None, Some("1"), None]);
    // As large as allowed, and as deep.
    let large = format!("\"{}\"", "x".repeat(4094));
    c.ok(["PRESENCE.ONLINE", "s", "u", "META", &large]);
    assert_eq!(c.user("s", "u").unwrap().session("").meta, Some(large));
    let deep = "[".repeat(100) + &"]".repeat(100);
    c.ok(["PRESENCE.ONLINE", "s", "u", "META", &deep]);
    assert_eq!(c.user("s", "u").unwrap().session("").meta, Some(deep));
}

#[test]
fn list_forms_do_many_at_once() {
    let server = Server::start();
    let mut c = server.connect();
    assert_eq!(c.int("PRESENCE.ONLINE s USERS 3 a b c PX 50000"), 3);
    assert_eq!(c.int("PRESENCE.ONLINE s USERS 3 c d a PX 70000"), 1);
    let leases: BTreeSet<_> = c
        .space("s")
        .members
        .into_iter()
        .map(|(u, s)| (u, s[0].expires_at - s[0].joined_at >= 70_000))
        .collect();
    let wanted = [("a", true), ("b", false), ("c", true), ("d", true)]
        .map(|(u, long)| (u.to_string(), long));
    assert_eq!(leases, BTreeSet::from(wanted), "each of the list has the new lease, nobody else");

    assert_eq!(c.int("PRESENCE.ONLINE s SESSIONS 3 e x e y a x"), 1);
    assert_eq!(c.ints("PRESENCE.STATUS s a b c d e"), [2, 1, 1, 1, 2]);
    assert_eq!(c.int("PRESENCE.COUNT s"), 5);
    assert_eq!(c.int("PRESENCE.COUNT s SESSIONS"), 7);
    assert_eq!(c.int("PRESENCE.ONLINE s USERS 4 d f d f"), 1, "a duplicate is one");
    assert_eq!(c.int("PRESENCE.ONLINE s SESSIONS 3 g x g x g y"), 1);
    assert_eq!(c.ints("PRESENCE.STATUS s f g"), [1, 2]);
    assert_eq!(
        c.int(["PRESENCE.ONLINE", "s", "SESSIONS", "1", "h", ""]),
        1,
        "the unnamed session in a list"
    );
    assert_eq!(c.user("s", "h").unwrap().sessions[0].session, "");

    assert_eq!(c.int("PRESENCE.OFFLINE s SESSIONS 3 e x nobody x a nowhere"), 0);
    assert_eq!(c.int("PRESENCE.OFFLINE s SESSIONS 2 e y e y"), 1);
    assert_eq!(
        c.int("PRESENCE.OFFLINE s USERS 4 a a nobody g"),
        2,
        "users end with all their sessions"
    );
    assert_eq!(c.int("PRESENCE.OFFLINE s USERS 2 a g"), 0);
    assert_eq!(c.space("s").names(), ["b", "c", "d", "f", "h"]);

    let many: Vec<String> = (0..5000).map(|i| format!("u{i}")).collect();
    let mut call = args!["PRESENCE.ONLINE", "many", "USERS", many.len()];
    call.extend(many.iter().map(|u| u.clone().into_bytes()));
    assert_eq!(c.int(&call), 5000);
    assert_eq!(c.int("PRESENCE.COUNT many"), 5000);
    call[0] = b"PRESENCE.OFFLINE".to_vec();
    assert_eq!(c.int(&call), 5000);
}

#[test]
fn a_list_with_xx_renews_who_is_there_and_brings_nobody_back() {
    let server = Server::start();
    let mut c = server.connect();
    assert_eq!(c.ints("PRESENCE.ONLINE s USERS 2 a b XX"), [0, 1]);
    assert_eq!(c.int("EXISTS s"), 0, "an unmet XX makes no key");
    for others in [0, 100] {
        c.ok("DEL s");
        for n in 0..others {
            c.ok(args!["PRESENCE.ONLINE", "s", format!("other{n}")]);
        }
        c.ok("PRESENCE.ONLINE s a PX 50000");
        c.ok("PRESENCE.ONLINE s b SESSION tab META {\"n\":1} PX 50000");
        c.ok("PRESENCE.ONLINE s gone PX 60");
        wait_until("gone to expire", SOON, || c.ints("PRESENCE.STATUS s gone") == [0]);
        assert_eq!(c.ints("PRESENCE.ONLINE s USERS 4 gone a nobody b PX 70000 XX"), [0, 2, 3]);
        assert_eq!(
            c.ints("PRESENCE.ONLINE s SESSIONS 4 b tab a none b tab gone x XX PX 80000"),
            [1, 3]
        );
        assert_eq!(c.ints("PRESENCE.ONLINE s USERS 2 a a XX PX 70000"), Vec::<i64>::new());
        let ttl = |c: &mut Conn, user: &str, session: &str| {
            c.user("s", user).unwrap().session(session).expires_at - now_ms()
        };
        within("lease of a", ttl(&mut c, "a", ""), 60_000, 70_000);
        within("lease of b", ttl(&mut c, "b", "tab"), 70_001, 80_000);
        assert_eq!(
            c.user("s", "b").unwrap().session("tab").meta.as_deref(),
            Some("{\"n\":1}"),
            "the metadata stays"
        );
        assert!(c.user("s", "gone").is_none() && c.user("s", "nobody").is_none());
        assert_eq!(c.space("s").names().len(), others + 2);
        assert!(c.err("PRESENCE.ONLINE s USERS 2 a b XX NX").contains("NX"));
    }
    c.ok("PRESENCE.CLOSE s");
    assert!(c.err("PRESENCE.ONLINE s USERS 1 a XX").starts_with("CLOSED"));
}

#[test]
fn words_of_the_syntax_are_names_as_well() {
    let server = Server::start();
    let mut c = server.connect();
    let words = [
        "USERS",
        "SESSIONS",
        "SESSION",
        "EX",
        "PX",
        "META",
        "NX",
        "XX",
        "LINGER",
        "EXAT",
        "PXAT",
        "COUNT",
        "WITHSESSIONS",
    ];
    for word in words {
        assert_eq!(c.int(["PRESENCE.ONLINE", "s", word]), 1, "{word}");
        assert_eq!(c.int(["PRESENCE.ONLINE", "s", word, "EX", "100"]), 0, "{word}");
        assert_eq!(
            c.int(["PRESENCE.ONLINE", "s", word, "SESSION", word, "META", "1"]),
            0,
            "{word}"
        );
        assert_eq!(c.ints(["PRESENCE.STATUS", "s", word, word]), [2, 2], "{word}");
        let u = c.user("s", word).unwrap();
        assert_eq!(u.session(word).meta.as_deref(), Some("1"));
        assert_eq!(c.int(["PRESENCE.OFFLINE", "s", word, "SESSION", word]), 0, "{word}");
        assert_eq!(c.int(["PRESENCE.OFFLINE", "s", word, "LINGER", "90000"]), 0, "{word}");
        assert_eq!(c.int(["PRESENCE.OFFLINE", "s", word]), 1, "{word}");
    }
    assert_eq!(c.int("PRESENCE.ONLINE s USERS 3 USERS EX SESSION"), 3);
    assert_eq!(c.int("PRESENCE.ONLINE s SESSIONS 2 META META EX EX"), 1);
    assert_eq!(c.int("PRESENCE.ONLINE s 3"), 1, "a user called 3");
    assert_eq!(c.int("PRESENCE.OFFLINE s USERS 2 USERS SESSION LINGER 90000"), 0);
    assert_eq!(c.space("s").names(), ["3", "EX", "META", "SESSION", "USERS"]);
}

#[test]
fn names_are_opaque() {
    let server = Server::start();
    for mut c in [server.connect(), server.connect3()] {
        c.ok("FLUSHALL");
        for (i, odd) in ODD.iter().enumerate() {
            let space = format!("s{i}{odd}");
            assert_eq!(c.int(["PRESENCE.ONLINE", &space, odd, "SESSION", odd]), 1, "{odd:?}");
            assert_eq!(
                c.int(["PRESENCE.ONLINE", &space, odd, "SESSION", &format!("{odd}2")]),
                0,
                "{odd:?}"
            );
            assert_eq!(
                c.int(["PRESENCE.ONLINE", "all", odd, "SESSION", odd]),
                1,
                "{odd:?} is like another"
            );
            let s = c.space(&space);
            assert_eq!((s.names(), s.users, s.sessions), (vec![*odd], 1, 2));
            let u = c.user(&space, odd).unwrap();
            assert_eq!(s.members[0].1.len(), 2);
            u.session(odd);
            assert_eq!(c.ints(["PRESENCE.STATUS", &space, odd, "x"]), [2, 0]);
        }
        let mut wanted = ODD.to_vec();
        wanted.sort();
        assert_eq!(c.space("all").names(), wanted);
        assert_eq!(c.int("DBSIZE"), ODD.len() as i64 + 1);
        for odd in ODD {
            assert_eq!(c.int(["PRESENCE.OFFLINE", "all", odd, "SESSION", odd]), 1, "{odd:?}");
        }
        assert_eq!(c.int("PRESENCE.COUNT all"), 0);

        let (long, longer) = ("ü".repeat(256), "ü".repeat(256) + "x");
        assert_eq!(
            c.int(["PRESENCE.ONLINE", "s", &long, "SESSION", &long]),
            1,
            "512 bytes are allowed"
        );
        assert_eq!(c.user("s", &long).unwrap().sessions[0].session, long);
        assert!(c.err(["PRESENCE.ONLINE", "s", &longer]).contains("512"));
        assert!(c.err(["PRESENCE.ONLINE", "s", "u", "SESSION", &longer]).contains("512"));
        assert_eq!(c.int(["PRESENCE.OFFLINE", "s", &long, "SESSION", &long]), 1);
    }
}

/// A key may have any bytes, the empty name among them. What a space cannot be called gets an error; nothing crashes.
#[test]
fn keys_are_opaque_too() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["*"]);
    assert_eq!(c.int(["PRESENCE.ONLINE", "", "a"]), 1);
    assert_eq!(c.int(["PRESENCE.COUNT", ""]), 1);
    assert_eq!(sub.event(SOON).get("space"), "");
    match c.try_cmd(args!["PRESENCE.ONLINE", b"\xff\xfe", "a"]) {
        Ok(reply) => {
            assert_eq!(reply, Value::Int(1));
            sub.event(SOON); // is UTF-8, or this fails
        }
        Err(e) => {
            assert!(e.to_lowercase().contains("space") || e.to_lowercase().contains("key"), "{e}");
            assert_eq!(c.int(args!["EXISTS", b"\xff\xfe"]), 0);
        }
    }
    let long = "k".repeat(4096);
    assert_eq!(c.int(["PRESENCE.ONLINE", &long, "a"]), 1);
    assert_eq!(sub.event(SOON).str("space"), long);
    assert!(server.alive());
}

#[test]
fn offline_ends_sessions() {
    let server = Server::start();
    for mut c in [server.connect(), server.connect3()] {
        c.ok("FLUSHALL");
        assert_eq!(c.int("PRESENCE.OFFLINE none u"), 0);
        assert_eq!(c.int("PRESENCE.OFFLINE none u SESSION x LINGER 5"), 0);
        assert_eq!(c.int("PRESENCE.OFFLINE none USERS 2 u v"), 0);
        assert_eq!(c.int("PRESENCE.OFFLINE none SESSIONS 1 u v"), 0);
        assert_eq!(c.int("EXISTS none"), 0, "taking away makes nothing");

        c.ok("PRESENCE.ONLINE s SESSIONS 3 a x a y b x");
        assert_eq!(c.int("PRESENCE.OFFLINE s a SESSION x"), 0, "y is still there");
        assert_eq!(c.int("PRESENCE.OFFLINE s a SESSION x"), 0);
        assert_eq!(
            c.int(["PRESENCE.OFFLINE", "s", "a", "SESSION", ""]),
            0,
            "the unnamed session, not all of them"
        );
        assert_eq!(c.ints("PRESENCE.STATUS s a b"), [1, 1]);
        assert_eq!(c.int("PRESENCE.OFFLINE s a SESSION y"), 1);
        assert_eq!(c.int("PRESENCE.OFFLINE s a"), 0);
        c.ok("PRESENCE.ONLINE s SESSIONS 2 b y b z");
        assert_eq!(c.int("PRESENCE.OFFLINE s b"), 1, "no session named: all of them");
        assert_eq!(c.ints("PRESENCE.STATUS s a b"), [0, 0]);
        assert_eq!((c.int("PRESENCE.COUNT s"), c.int("PRESENCE.COUNT s SESSIONS")), (0, 0));
    }
}

#[test]
fn linger_leaves_time_to_come_back() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:s"]);
    let expiry = |c: &mut Conn, user: &str| c.user("s", user).unwrap().session("").expires_at;

    c.ok("PRESENCE.ONLINE s a");
    let before = now_ms();
    assert_eq!(c.int("PRESENCE.OFFLINE s a LINGER 5000"), 0, "not gone yet");
    assert!((before + 5000..=now_ms() + 5000).contains(&expiry(&mut c, "a")));
    assert_eq!(c.int("PRESENCE.OFFLINE s a LINGER 60000"), 0);
    assert!(
        expiry(&mut c, "a") <= now_ms() + 5000,
        "at most: a longer one does not prolong the lease"
    );
    assert_eq!(c.ints("PRESENCE.STATUS s a"), [1]);
    assert_eq!(c.int("PRESENCE.ONLINE s a PX 300"), 0, "back again, never gone");
    assert_eq!(sub.events_so_far(&mut c).len(), 1, "the join alone");
    let leave = sub.event(SOON);
    assert_eq!(leave.brief(), "leave a (timeout)", "what OFFLINE said is forgotten");

    c.ok("PRESENCE.ONLINE s SESSIONS 3 b x b y c x PX 60000");
    let ends = now_ms() + 150;
    assert_eq!(c.int("PRESENCE.OFFLINE s USERS 2 b c LINGER 150"), 0);
    assert_eq!(c.int("PRESENCE.COUNT s SESSIONS"), 3);
    let events = sub.events(6, SOON);
    assert!(events[3..].iter().all(|e| e.arrived >= ends && e.int("at") >= ends), "never early");
    let mut ended: Vec<_> =
        events[3..].iter().map(|e| (e.kind(), e.user(), e.str("reason"))).collect();
    ended.sort();
    assert_eq!(
        ended,
        [("leave", "b", "offline"), ("leave", "c", "offline"), ("remove", "b", "offline")]
    );

    // One session of two lingers; a lease that ends sooner keeps its end, and the reason is that OFFLINE said so.
    c.ok("PRESENCE.ONLINE s SESSIONS 2 d x d y PX 60000");
    c.ok("PRESENCE.ONLINE s e PX 100");
    assert_eq!(c.int("PRESENCE.OFFLINE s SESSIONS 1 d x LINGER 100"), 0);
    assert_eq!(c.int("PRESENCE.OFFLINE s e LINGER 60000"), 0);
    let mut ended: Vec<_> = sub.events(5, SOON)[3..].iter().map(Event::brief).collect();
    ended.sort();
    assert_eq!(ended, ["leave e (offline)", "remove d/x (offline)"]);
    assert_eq!(c.ints("PRESENCE.STATUS s d e"), [1, 0]);

    // To linger for no time is to leave.
    c.ok("PRESENCE.ONLINE s f");
    c.ok("PRESENCE.OFFLINE s f LINGER 0");
    assert_eq!(c.ints("PRESENCE.STATUS s f"), [0]);
    assert_eq!(sub.events(2, SOON)[1].brief(), "leave f (offline)");
    sub.expect_none_for(ms(50));
}

#[test]
fn replies_have_their_shape_in_both_protocols() {
    let server = Server::start();
    let (mut c2, mut c3) = (server.connect(), server.connect3());
    c2.ok("PRESENCE.ONLINE s a SESSION x META {\"k\":1}");
    let joined = now_ms();
    wait_until("a millisecond to pass", SOON, || now_ms() > joined);
    c2.ok("PRESENCE.ONLINE s a");

    for c in [&mut c2, &mut c3] {
        assert!(c.is_null("PRESENCE.USER s nobody"));
        assert!(c.is_null("PRESENCE.USER none nobody"));
        assert_eq!(c.ints("PRESENCE.STATUS none a b"), [0, 0]);
        assert_eq!(c.ints("PRESENCE.STATUS s a nobody a"), [2, 0, 2], "duplicates are repeated");
        assert_eq!(c.int("PRESENCE.COUNT none"), 0);
        assert_eq!(c.int("PRESENCE.COUNT none SESSIONS"), 0);
        assert_eq!((c.int("PRESENCE.COUNT s"), c.int("PRESENCE.COUNT s SESSIONS")), (1, 2));
        for words in ["", "WITHSESSIONS", "COUNT 10", "CURSOR 0 COUNT 1 WITHSESSIONS"] {
            let s = Space::parse(&c.ok(format!("PRESENCE.SPACE none {words}")));
            assert_eq!(
                s,
                Space {
                    id: "0-0".into(),
                    users: 0,
                    sessions: 0,
                    cursor: "0".into(),
                    members: vec![]
                }
            );
        }
        assert_eq!(c.int("EXISTS none"), 0, "reading makes nothing");
        let s = Space::parse(&c.ok("PRESENCE.SPACE s"));
        assert_eq!((parse_id(&s.id).1, s.users, s.sessions, s.cursor.as_str()), (2, 1, 2, "0"));
        assert_eq!(s.members, [("a".to_string(), vec![])]);
        assert_eq!(
            c.space("s").roster(),
            Roster::from([("a".into(), ["".into(), "x".into()].into())])
        );
        let u = c.user("s", "a").unwrap();
        assert_eq!(u.session("x").meta.as_deref(), Some("{\"k\":1}"));
        assert_eq!(c.space("s").members[0].1, u.sessions, "USER and SPACE tell the same");
    }
    // RESP3 has maps, all the way down; RESP2 flat arrays.
    for command in ["PRESENCE.USER s a", "PRESENCE.SPACE s WITHSESSIONS"] {
        assert!(matches!(c2.ok(command), Value::Array(_)));
        let reply = c3.ok(command);
        assert!(matches!(reply, Value::Map(_)), "{reply:?}");
        let (_, inner) = pairs(&reply).pop().unwrap();
        assert!(matches!(items(inner)[0], Value::Map(_)), "{reply:?}");
    }
    // joined_at of a user is when the user came, whichever sessions have come and gone since.
    let joined = c2.user("s", "a").unwrap().session("x").joined_at;
    wait_until("a millisecond to pass", SOON, || now_ms() > joined + 5);
    c2.ok("PRESENCE.ONLINE s a SESSION late");
    c2.ok("PRESENCE.OFFLINE s SESSIONS 1 a x");
    let u = c2.user("s", "a").unwrap();
    assert_eq!(u.joined_at, Value::Int(joined));
    assert!(u.session("late").joined_at > joined);
}

/// To the millisecond: live before the lease's end, and not from it on.
#[test]
fn a_read_agrees_with_the_clock() {
    let server = Server::start();
    let mut c = server.connect();
    let (mut last_live, mut first_dead) = (i64::MIN, i64::MAX);
    for i in 0..40 {
        c.ok(format!("PRESENCE.ONLINE s u{i} PX 25"));
        let ends = c.user("s", format!("u{i}")).unwrap().session("").expires_at;
        loop {
            let before = now_ms();
            let live = c.ints(format!("PRESENCE.STATUS s u{i}")) == [1];
            let after = now_ms();
            if live {
                assert!(before < ends, "live {} ms after its end", before - ends);
                last_live = last_live.max(before - ends);
            } else {
                assert!(after >= ends, "gone {} ms before its end", ends - after);
                first_dead = first_dead.min(after - ends);
                break;
            }
        }
    }
    assert!(
        last_live >= -5 && first_dead <= 5,
        "looked too seldom to tell: {last_live} {first_dead}"
    );
}

/// Between the end of a lease and the sweep nobody sees the session. DEBUG SLEEP, in one write with the rest, keeps the
/// sweep away: what comes after it is answered before any timer runs.
#[test]
fn live_means_live_before_any_sweep() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:s"]);
    let mut lapse_then = |set: &[&str], then: &[&str]| {
        c.ok("DEL s");
        let all: Vec<&str> =
            set.iter().copied().chain(["DEBUG SLEEP 0.06"]).chain(then.iter().copied()).collect();
        all.iter().for_each(|line| c.send(*line).unwrap());
        let replies: Vec<_> =
            all.iter().map(|line| c.recv().unwrap_or_else(|e| panic!("{line}: {e}"))).collect();
        (replies[set.len() + 1..].to_vec(), sub.events_so_far(&mut c))
    };
    let briefs = |events: &[Event]| events.iter().map(Event::brief).collect::<Vec<_>>();

    let set =
        ["PRESENCE.ONLINE s SESSIONS 2 a x b x PX 30", "PRESENCE.ONLINE s SESSIONS 2 b y c x"];
    let reads = [
        "PRESENCE.STATUS s a b c",
        "PRESENCE.COUNT s",
        "PRESENCE.COUNT s SESSIONS",
        "PRESENCE.USER s a",
        "PRESENCE.USER s b",
        "PRESENCE.SPACE s WITHSESSIONS",
    ];
    let (r, _) = lapse_then(&set, &reads);
    assert_eq!(
        r[..3],
        [
            Value::Array(vec![Value::Int(0), Value::Int(1), Value::Int(1)]),
            Value::Int(2),
            Value::Int(2)
        ]
    );
    assert!(
        User::parse(&r[3]).is_none_or(|u| u.status == "offline" && u.sessions.is_empty()),
        "{:?}",
        r[3]
    );
    let b = User::parse(&r[4]).unwrap();
    assert_eq!(
        (b.status.as_str(), b.sessions.len(), b.sessions[0].session.as_str()),
        ("online", 1, "y")
    );
    let s = Space::parse(&r[5]);
    assert_eq!((s.users, s.sessions), (2, 2));
    assert_eq!(
        s.roster(),
        Roster::from([("b".into(), ["y".into()].into()), ("c".into(), ["x".into()].into())])
    );

    // A write records the leave first, then what it does itself.
    let one = ["PRESENCE.ONLINE s a PX 30"];
    let (r, events) = lapse_then(&one, &["PRESENCE.ONLINE s a"]);
    assert_eq!(r, [Value::Int(1)]);
    assert_eq!(briefs(&events), ["join a", "leave a (timeout)", "join a"]);
    assert_eq!(
        events.iter().map(|e| (e.id().1, e.int("users"))).collect::<Vec<_>>(),
        [(1, 1), (2, 0), (3, 1)]
    );
    assert!(events[1].int("at") >= events[0].int("joined_at") + 30);
    assert!(events[2].int("joined_at") >= events[0].int("joined_at") + 60);

    let (r, events) = lapse_then(&one, &["PRESENCE.ONLINE s a NX"]);
    assert_eq!(
        (r, briefs(&events)),
        (vec![Value::Int(1)], ["join a", "leave a (timeout)", "join a"].map(String::from).to_vec())
    );
    let (r, _) = lapse_then(&one, &["PRESENCE.ONLINE s a XX", "PRESENCE.STATUS s a"]);
    assert_eq!(r, [Value::Nil, Value::Array(vec![Value::Int(0)])]);
    let (r, events) = lapse_then(&one, &["PRESENCE.OFFLINE s a"]);
    assert_eq!(r, [Value::Int(0)], "was offline before");
    assert_eq!(
        events.iter().filter(|e| e.kind() == "leave").map(Event::brief).collect::<Vec<_>>(),
        ["leave a (timeout)"]
    );
    let (r, events) =
        lapse_then(&one, &["PRESENCE.OFFLINE s a LINGER 1000", "PRESENCE.ONLINE s a META 1"]);
    assert_eq!(r, [Value::Int(0), Value::Int(1)]);
    assert_eq!(
        briefs(&events),
        ["join a", "leave a (timeout)", "join a"],
        "who lapsed does not linger"
    );

    let two = ["PRESENCE.ONLINE s a SESSION x PX 30", "PRESENCE.ONLINE s a SESSION y"];
    let (r, events) = lapse_then(&two, &["PRESENCE.ONLINE s a SESSION x"]);
    assert_eq!(r, [Value::Int(0)]);
    assert_eq!(briefs(&events), ["join a/x", "add a/y", "remove a/x (timeout)", "add a/x"]);
    let (r, events) = lapse_then(&two, &["PRESENCE.OFFLINE s a"]);
    assert_eq!(r, [Value::Int(1)]);
    assert_eq!(briefs(&events)[2..], ["remove a/x (timeout)", "leave a/y (offline)"]);
    let (r, events) =
        lapse_then(&["PRESENCE.ONLINE s USERS 2 a b PX 30"], &["PRESENCE.ONLINE s USERS 3 a c b"]);
    assert_eq!(r, [Value::Int(3)]);
    let mut roster = Roster::new();
    events.iter().for_each(|e| e.fold(&mut roster));
    assert_eq!(roster.len(), 3);
    assert_eq!(events.len(), 7);
}

#[test]
fn multi_and_lua_do_as_the_commands() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:s"]);
    c.ok("MULTI");
    for line in [
        "PRESENCE.ONLINE s a",
        "PRESENCE.ONLINE s a SESSION x",
        "PRESENCE.STATUS s a",
        "PRESENCE.OFFLINE s a",
        "PRESENCE.COUNT s",
    ] {
        assert_eq!(c.text(line), "QUEUED");
    }
    let wanted = [
        Value::Int(1),
        Value::Int(0),
        Value::Array(vec![Value::Int(2)]),
        Value::Int(1),
        Value::Int(0),
    ];
    assert_eq!(items(&c.ok("EXEC")), wanted);
    let script = "redis.call('PRESENCE.ONLINE', KEYS[1], 'b', 'META', '{}') return redis.call('PRESENCE.COUNT', KEYS[1])";
    assert_eq!(c.int(["EVAL", script, "1", "s"]), 1);
    let script = "redis.setresp(3) return redis.call('PRESENCE.SPACE', KEYS[1]).map.users";
    assert_eq!(c.int(["EVAL", script, "1", "s"]), 1);
    let kinds: Vec<_> = sub.events_so_far(&mut c).iter().map(|e| e.kind().to_string()).collect();
    assert_eq!(kinds, ["join", "add", "remove", "leave", "join"]);
}

#[test]
fn space_pages_show_everybody() {
    let server = Server::start();
    let mut c = server.connect();
    let names: BTreeSet<String> = (0..1000).map(|i| format!("u{i}")).collect();
    let mut call = args!["PRESENCE.ONLINE", "s", "USERS", names.len()];
    call.extend(names.iter().map(|u| u.clone().into_bytes()));
    c.ok(&call);
    for count in [1, 7, 100, 999, 1000, 5000] {
        let pages = pages(&mut c, "s", count, |_| {});
        let seen: BTreeSet<_> =
            pages.iter().flat_map(|p| p.members.iter().map(|m| m.0.clone())).collect();
        assert_eq!(seen, names, "COUNT {count}");
        assert!(
            pages.iter().all(|p| (p.users, p.sessions) == (1000, 1000)),
            "the totals stand on each page"
        );
        let fair = 1000usize.div_ceil(count);
        assert!(
            (fair.div_ceil(4)..=fair * 4 + 2).contains(&pages.len()),
            "about {count} a page, but {} pages",
            pages.len()
        );
        assert!(pages.iter().all(|p| p.members.len() <= count * 4 + 16), "about {count} a page");
    }
    let whole = Space::parse(&c.ok("PRESENCE.SPACE s"));
    assert_eq!(
        (whole.members.len(), whole.cursor.as_str()),
        (1000, "0"),
        "without COUNT everything at once"
    );
    assert_eq!(Space::parse(&c.ok("PRESENCE.SPACE s CURSOR 0")).members.len(), 1000);
    let page = Space::parse(&c.ok("PRESENCE.SPACE s WITHSESSIONS COUNT 10"));
    assert!(page.members.iter().all(|(_, s)| s.len() == 1) && page.cursor != "0");
    let page = Space::parse(&c.ok("PRESENCE.SPACE s COUNT 9223372036854775807"));
    assert_eq!(
        (page.members.len(), page.cursor.as_str()),
        (1000, "0"),
        "no page is reserved in advance"
    );
    // A cursor from nowhere is no reason to crash.
    for cursor in ["1", "12345678", "4294967296", "9223372036854775807", "18446744073709551615"] {
        let _ = c.try_cmd(["PRESENCE.SPACE", "s", "CURSOR", cursor, "COUNT", "10"]);
        let _ = c.try_cmd(["PRESENCE.SPACE", "none", "CURSOR", cursor]);
        assert_eq!(c.text("PING"), "PONG");
    }
}

/// Who is online from the first page to the last is on one of them, whatever the others do meanwhile, and whatever
/// happens to his own sessions and leases.
#[test]
fn space_pages_lose_nobody_under_churn() {
    let server = Server::start();
    let mut c = server.connect();
    let steady: Vec<String> = (0..300).map(|i| format!("steady{i}")).collect();
    for (round, count) in [(0, 3), (1, 10), (2, 50)] {
        c.ok("DEL s");
        let mut users = args!["PRESENCE.ONLINE", "s", "USERS", steady.len() + 300];
        users.extend(steady.iter().map(|u| u.clone().into_bytes()));
        users.extend((0..300).map(|i| format!("old{i}").into_bytes()));
        c.ok(&users);
        let mut step = 0;
        // What ends the device each steady user is on now.
        let mut gone: Vec<_> = (0..300)
            .map(|i| args!["PRESENCE.OFFLINE", "s", format!("steady{i}"), "SESSION", ""])
            .collect();
        let pages = pages(&mut c, "s", count, |c| {
            let mut lines: Vec<Vec<Vec<u8>>> = Vec::new();
            for i in 0..10 {
                let n = step * 10 + i;
                // Others go and come, so that every table grows, shrinks and moves.
                lines.push(format!("PRESENCE.OFFLINE s old{n}").args());
                lines.push(format!("PRESENCE.ONLINE s new{round}.{n} SESSION {n}").args());
                lines.push(format!("PRESENCE.OFFLINE s new{round}.{}", n * 7 % (n + 1)).args());
                // The steady ones renew, sooner or later, and move to another device: come there first, then go here.
                let (renews, moves) = (n * 31 % 300, (n * 17 + 150) % 300);
                lines.push(
                    format!(
                        "PRESENCE.ONLINE s steady{renews} SESSION stays PX {}",
                        20_000 + n * 7919 % 60_000
                    )
                    .args(),
                );
                lines.push(format!("PRESENCE.ONLINE s steady{moves} SESSION to{n} EX 5000").args());
                lines.push(std::mem::replace(
                    &mut gone[moves],
                    format!("PRESENCE.OFFLINE s steady{moves} SESSION to{n}").args(),
                ));
            }
            // A burst now and then: ten times as many users, and gone again.
            if step == 8 || step == 24 {
                lines.extend((0..3000).map(|i| format!("PRESENCE.ONLINE s burst{i}").args()));
            }
            if step == 16 || step == 32 {
                lines.extend((0..3000).map(|i| format!("PRESENCE.OFFLINE s burst{i}").args()));
            }
            lines.iter().for_each(|l| c.send(l).unwrap());
            lines.iter().for_each(|_| drop(c.recv().unwrap()));
            step += 1;
        });
        let seen: BTreeSet<&String> =
            pages.iter().flat_map(|p| p.members.iter().map(|m| &m.0)).collect();
        let missed: Vec<_> = steady.iter().filter(|u| !seen.contains(u)).collect();
        assert!(
            missed.is_empty(),
            "COUNT {count}, {} pages, online throughout and never seen: {missed:?}",
            pages.len()
        );
    }
}
