//! PRESENCE.MESSAGE and PRESENCE.CLOSE: texts in a space's order of events, and its end.

use crate::commands::ODD;
use crate::harness::*;
use crate::history::{Told, answer, ask, waiting};

const CLOSED: &str = "CLOSED space is closed";

#[test]
fn a_message_is_an_event_of_the_space() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:s"]);
    // Nobody is there: the message makes the space, and its sender no member of it.
    let before = now_ms();
    let id = c.text("PRESENCE.MESSAGE s alice hello");
    let e = sub.event(SOON);
    assert_eq!(e.keys(), ["id", "space", "type", "user", "message", "users", "at"]);
    assert_eq!(
        (e.str("space"), e.kind(), e.user(), e.str("message")),
        ("s", "message", "alice", "hello")
    );
    assert_eq!((e.int("users"), e.str("id"), e.id().1), (0, id.as_str(), 1));
    assert!((before..=now_ms()).contains(&e.int("at")) && (before..=now_ms()).contains(&e.id().0));
    assert_eq!((c.int("PRESENCE.COUNT s"), c.ints("PRESENCE.STATUS s alice")), (0, vec![0]));
    assert!(c.user("s", "alice").is_none());
    // The id is that of SPACE, and the numbering is that of all events.
    assert_eq!(c.space("s").id, id);
    c.ok("PRESENCE.ONLINE s bob SESSION phone");
    let id = c.text("PRESENCE.MESSAGE s bob hi SESSION phone");
    c.ok("PRESENCE.OFFLINE s bob");
    let events = sub.events_so_far(&mut c);
    assert_eq!(
        events.iter().map(Event::brief).collect::<Vec<_>>(),
        ["join bob/phone", "message bob/phone", "leave bob/phone (offline)"]
    );
    assert_eq!(events.iter().map(|e| e.id().1).collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(
        events[1].keys(),
        ["id", "space", "type", "user", "session", "message", "users", "at"]
    );
    assert_eq!((events[1].str("id"), events[1].int("users")), (id.as_str(), 1));
    // The session is carried as it is said, whether it exists or not; the unnamed one says nothing.
    c.ok("PRESENCE.ONLINE s bob");
    c.ok("PRESENCE.MESSAGE s bob 1 SESSION nosuch");
    c.ok(["PRESENCE.MESSAGE", "s", "bob", "2", "session", ""]);
    c.ok(["PRESENCE.MESSAGE", "s", "bob", "SESSION", "SESSION", "SESSION"]);
    c.ok(["PRESENCE.MESSAGE", "s", "SESSION", ""]);
    let events = sub.events_so_far(&mut c);
    assert_eq!(events[1].str("session"), "nosuch");
    assert!(!events[2].keys().contains(&"session"));
    assert_eq!((events[3].str("session"), events[3].str("message")), ("SESSION", "SESSION"));
    assert_eq!(
        (events[4].user(), events[4].get("message")),
        ("SESSION", &"".into()),
        "an empty text is a text"
    );
    // It renews nothing: a message is no heartbeat.
    let expires = c.user("s", "bob").unwrap().session("").expires_at;
    c.ok("PRESENCE.MESSAGE s bob x");
    assert_eq!(c.user("s", "bob").unwrap().session("").expires_at, expires);
    assert_eq!(c.stat("messages"), 7, "INFO counts them");
    // Both protocols give the id as text.
    assert_eq!(server.connect3().text("PRESENCE.MESSAGE s bob x"), c.space("s").id);
}

#[test]
fn any_text_comes_back_as_it_was() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*"]);
    let json = r#"{"a":[1,"\"",null]}"#;
    let long = "\u{1F600}\0\"\\\r\n".repeat(5000);
    for odd in ODD.iter().copied().chain([json, &long, "", "\u{2028}\u{feff}"]) {
        let name = if odd.is_empty() || odd.len() > 512 { "s" } else { odd };
        let id = c.text(args!["PRESENCE.MESSAGE", name, name, odd, "SESSION", name]);
        let e = sub.event(SOON);
        assert_eq!(e.str("message"), odd);
        assert_eq!((e.str("space"), e.user(), e.str("session")), (name, name, name), "{odd:?}");
        assert_eq!(e.str("id"), id);
        assert!(!e.raw.bytes().any(|b| b < 0x20), "one line, no control bytes: {:?}", e.raw);
        let told = Told::parse(&c.ok(args!["PRESENCE.EVENTS", name]));
        assert_eq!(told.raws().last().unwrap(), &e.raw);
    }
}

#[test]
fn bad_messages_are_refused_and_change_nothing() {
    let server = Server::with(&[("presence.max-message-bytes", "1000")]);
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s a");
    c.ok("SET str x");
    c.ok("PRESENCE.MESSAGE shut a x");
    c.ok("PRESENCE.CLOSE shut");
    let mut sub = server.psubscribe(&["*"]);
    let before = (c.digest("s"), ask(&mut c, "s").id);
    let (long, long_name) = ("x".repeat(1001), "x".repeat(513));
    let calls: Vec<(Vec<Vec<u8>>, &[&str])> = vec![
        (args!["PRESENCE.MESSAGE"], &["wrong number"]),
        (args!["PRESENCE.MESSAGE", "s"], &["wrong number"]),
        (args!["PRESENCE.MESSAGE", "s", "a"], &["wrong number"]),
        (args!["PRESENCE.MESSAGE", "s", "a", "x", "y"], &["y"]),
        (args!["PRESENCE.MESSAGE", "s", "a", "x", "SESSION"], &["SESSION"]),
        (args!["PRESENCE.MESSAGE", "s", "a", "x", "SESSION", "1", "SESSION", "1"], &["SESSION"]),
        (args!["PRESENCE.MESSAGE", "s", "a", "x", "SESSION", "1", "y"], &["y"]),
        (args!["PRESENCE.MESSAGE", "s", "a", "x", "EX", "1"], &["EX"]),
        (args!["PRESENCE.MESSAGE", "s", "", "x"], &["user", "empty", "512"]),
        (args!["PRESENCE.MESSAGE", "s", long_name, "x"], &["user", "512"]),
        (args!["PRESENCE.MESSAGE", "s", b"\xff", "x"], &["user", "UTF-8"]),
        (args!["PRESENCE.MESSAGE", "s", "a", "x", "SESSION", long_name], &["session", "512"]),
        (args!["PRESENCE.MESSAGE", "s", "a", "x", "SESSION", b"a\xc3"], &["session", "UTF-8"]),
        (args!["PRESENCE.MESSAGE", "s", "a", long], &["message", "1000"]),
        (args!["PRESENCE.MESSAGE", "s", "a", b"\xff"], &["message", "UTF-8"]),
        (args!["PRESENCE.MESSAGE", "s", "a", b"ok \xf0\x9f\x98"], &["message", "UTF-8"]),
        (args!["PRESENCE.MESSAGE", "s", "a", b"\xed\xa0\x80"], &["message", "UTF-8"]),
        (args!["PRESENCE.MESSAGE", b"\xff", "a", "x"], &["space", "UTF-8"]),
        (args!["PRESENCE.MESSAGE", "str", "a", "x"], &["WRONGTYPE"]),
        // Closed or not there: what is wrong is said all the same.
        (args!["PRESENCE.MESSAGE", "shut", "a", long], &["message", "1000"]),
        (args!["PRESENCE.MESSAGE", "none", "a", b"\xff"], &["message", "UTF-8"]),
    ];
    for (call, words) in calls {
        let e = c.err(&call);
        words.iter().for_each(|w| assert!(e.contains(w), "{}: {e}", show(&call)));
    }
    assert_eq!((c.digest("s"), ask(&mut c, "s").id), before);
    assert!(sub.so_far(&mut c).is_empty());
    assert_eq!(c.int("EXISTS none"), 0);
    // The limit is a limit of bytes, and the last one still goes.
    c.ok(["PRESENCE.MESSAGE", "s", "a", &long[1..]]);
    c.ok(["PRESENCE.MESSAGE", "s", "a", &"é".repeat(500)]);
    c.err(["PRESENCE.MESSAGE", "s", "a", &"é".repeat(501)]);
    c.ok("CONFIG SET presence.max-message-bytes 0");
    c.ok(["PRESENCE.MESSAGE", "s", "a", ""]);
    c.err("PRESENCE.MESSAGE s a x");
    c.ok("CONFIG SET presence.max-message-bytes 1000000");
    let mega = "m".repeat(1_000_000);
    let id = c.text(["PRESENCE.MESSAGE", "s", "a", &mega]);
    let told = ask(&mut c, "s");
    assert_eq!((told.events.last().unwrap().str("message") == mega, told.id), (true, id));
}

/// By what time a space is to be gone that is closed at some moment from `.0` to `.1`.
fn closed(c: &mut Conn, line: &str) -> (i64, i64) {
    let before = now_ms();
    assert_eq!(c.int(line), 1, "{line}");
    (before, now_ms())
}

#[test]
fn close_ends_a_space_with_one_event() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:s"]);
    c.ok("PRESENCE.ONLINE s USERS 3 a b c EX 600");
    c.ok("PRESENCE.ONLINE s a SESSION x META 1 PX 400");
    c.ok("PRESENCE.MESSAGE s a bye");
    let before = sub.events_so_far(&mut c);
    assert_eq!(before.len(), 5);
    let (earliest, latest) = closed(&mut c, "PRESENCE.CLOSE s");
    let e = sub.event(SOON);
    assert_eq!(e.keys(), ["id", "space", "type", "users", "at"]);
    assert_eq!((e.kind(), e.str("space"), e.int("users")), ("close", "s", 0));
    assert_eq!(e.id(), (before[0].id().0, 6));
    assert!((earliest..=latest).contains(&e.int("at")));
    assert!(sub.so_far(&mut c).is_empty(), "no leaves");

    // Nobody is there, nobody gets in, and nothing that is said changes anything.
    assert_eq!(c.int("PRESENCE.COUNT s"), 0);
    assert_eq!(c.int("PRESENCE.COUNT s SESSIONS"), 0);
    assert_eq!(c.ints("PRESENCE.STATUS s a b c"), [0, 0, 0]);
    assert!(c.user("s", "a").is_none());
    let s = c.space("s");
    assert_eq!((s.users, s.sessions, s.members.len(), s.id.as_str()), (0, 0, 0, e.str("id")));
    let digest = c.digest("s");
    for line in [
        "PRESENCE.ONLINE s a",
        "PRESENCE.ONLINE s a SESSION x",
        "PRESENCE.ONLINE s z",
        "PRESENCE.ONLINE s a NX",
        "PRESENCE.ONLINE s a XX",
        "PRESENCE.ONLINE s a META 1 EX 10",
        "PRESENCE.ONLINE s USERS 2 a z",
        "PRESENCE.ONLINE s SESSIONS 1 a x PX 5",
    ] {
        assert_eq!(c.err(line), CLOSED, "{line}");
    }
    assert_eq!(c.int("PRESENCE.OFFLINE s a"), 0);
    assert_eq!(c.int("PRESENCE.OFFLINE s a SESSION x LINGER 10"), 0);
    assert_eq!(c.int("PRESENCE.OFFLINE s USERS 2 a b"), 0);
    assert!(c.is_null("PRESENCE.MESSAGE s a hi"));
    assert!(c.is_null("PRESENCE.MESSAGE s a hi SESSION x"));
    assert!(server.connect3().is_null("PRESENCE.MESSAGE s a hi"));
    for line in ["PRESENCE.CLOSE s", "PRESENCE.CLOSE s EX 1000", "PRESENCE.CLOSE s PX 1"] {
        assert_eq!(c.int(line), 0, "{line}");
    }
    assert_eq!(c.digest("s"), digest, "nothing of this has changed anything");
    // Past the end of a lease that was live when the space was closed: no leave of it.
    sub.expect_none_for(ms(700));
    let told = ask(&mut c, "s AFTER 0-0");
    assert_eq!((told.gap, told.seqs()), (false, vec![1, 2, 3, 4, 5, 6]));
    assert_eq!(told.raws()[5], e.raw);
    assert!(ask(&mut c, "s AFTER $").is_nothing());
    assert_eq!(c.text("TYPE s").len(), 9);
}

#[test]
fn what_there_is_to_close() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*"]);
    assert_eq!(c.int("PRESENCE.CLOSE s"), 0);
    assert_eq!(c.int("PRESENCE.CLOSE s EX 5"), 0);
    assert_eq!(c.int("EXISTS s"), 0, "nothing was there, nothing is made");
    assert!(sub.so_far(&mut c).is_empty());
    // Nobody is in it, but it is a space.
    c.ok("PRESENCE.ONLINE s a");
    c.ok("PRESENCE.OFFLINE s a");
    assert_eq!(c.int("PRESENCE.CLOSE s"), 1);
    assert_eq!(c.err("PRESENCE.ONLINE s a"), CLOSED);
    c.ok("PRESENCE.MESSAGE t a x");
    assert_eq!(c.int("PRESENCE.CLOSE t"), 1);
    assert_eq!(sub.events_so_far(&mut c).last().unwrap().kind(), "close");
    c.ok("SET str x");
    for (line, word) in [
        ("PRESENCE.CLOSE", "wrong number"),
        ("PRESENCE.CLOSE str", "WRONGTYPE"),
        ("PRESENCE.CLOSE u EX", "EX"),
        ("PRESENCE.CLOSE u EX 0", "invalid expire time in 'presence.close' command"),
        ("PRESENCE.CLOSE u PX 0", "invalid expire time in 'presence.close' command"),
        ("PRESENCE.CLOSE u EX -1", "invalid expire time in 'presence.close' command"),
        (
            "PRESENCE.CLOSE u PX -9223372036854775808",
            "invalid expire time in 'presence.close' command",
        ),
        (
            "PRESENCE.CLOSE u EX 9223372036854775807",
            "invalid expire time in 'presence.close' command",
        ),
        (
            "PRESENCE.CLOSE u PX 9223372036854775807",
            "invalid expire time in 'presence.close' command",
        ),
        ("PRESENCE.CLOSE u EX 1.5", "integer"),
        ("PRESENCE.CLOSE u EX x", "integer"),
        ("PRESENCE.CLOSE u EX 1 PX 1", "PX"),
        ("PRESENCE.CLOSE u EX 1 EX 1", "EX"),
        ("PRESENCE.CLOSE u EXAT 99999999999", "EXAT"),
        ("PRESENCE.CLOSE u PXAT 99999999999999", "PXAT"),
        ("PRESENCE.CLOSE u 5", "5"),
        ("PRESENCE.CLOSE u NX", "NX"),
    ] {
        // The same with a space there and without.
        c.ok("DEL u");
        let e = c.err(line);
        assert!(e.contains(word), "{line}: {e}");
        c.ok("PRESENCE.ONLINE u a");
        let e = c.err(line);
        assert!(e.contains(word), "{line}: {e}");
        assert_eq!(c.int("PRESENCE.COUNT u"), 1, "{line}");
    }
}

/// Closed for exactly as long as was said, and then the key goes; all of it can be read to the end, though
/// `history-ttl-ms` is far shorter.
#[test]
fn a_closed_space_stays_for_its_time_and_tells_all_of_it() {
    let server =
        Server::with(&[("presence.history-ttl-ms", "300"), ("notify-keyspace-events", "KEA")]);
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*"]);
    for (how, time) in [("", 300), ("PX 1200", 1200), ("EX 2", 2000), ("PX 40", 40)] {
        c.ok("PRESENCE.ONLINE s USERS 2 a b");
        c.ok("PRESENCE.MESSAGE s a hi");
        let (earliest, latest) = closed(&mut c, &format!("PRESENCE.CLOSE s {how}"));
        let told = ask(&mut c, "s AFTER 0-0");
        let all = told.raws();
        assert_eq!((told.gap, told.seqs()), (false, vec![1, 2, 3, 4]), "{how}");
        loop {
            let asked = now_ms();
            let now = ask(&mut c, "s AFTER 0-0");
            let (refused, count) = (c.try_cmd("PRESENCE.OFFLINE s a"), c.int("PRESENCE.COUNT s"));
            let exists = c.int("EXISTS s");
            if now_ms() < earliest + time {
                assert_eq!((now.gap, now.raws()), (false, all.clone()), "{how}");
                assert_eq!((refused, count, exists), (Ok(Value::Int(0)), 0, 1), "{how}");
                let late = c.try_cmd("PRESENCE.ONLINE s late XX");
                if now_ms() < earliest + time {
                    assert_eq!(late, Err(CLOSED.into()), "{how}");
                }
            }
            if exists == 0 {
                break;
            }
            assert!(asked < latest + time + 2000, "{how}: still there");
        }
        assert!(now_ms() >= earliest + time, "{how}: gone too early");
        // Silently: no leave, no second close.
        let published = sub.events_so_far(&mut c);
        assert_eq!(
            published.iter().map(Event::kind).collect::<Vec<_>>(),
            ["join", "join", "message", "close"],
            "{how}"
        );
        assert!(ask(&mut c, "s AFTER 0-0").is_nothing());
        assert!(ask(&mut c, &format!("s AFTER {}", told.id)).gap);
        // And the room is a new one.
        assert_eq!(c.int("PRESENCE.ONLINE s a"), 1);
        let fresh = ask(&mut c, "s");
        assert_eq!(fresh.briefs(), ["join a"]);
        assert!(fresh.events[0].id().0 > parse_id(&told.id).0);
        c.ok("DEL s");
        sub.so_far(&mut c);
    }
}

/// What was too old before the close stays gone; what was told at the close is told to the end, whatever is set.
#[test]
fn what_is_kept_at_the_close_is_kept() {
    let server =
        Server::with(&[("presence.history-ttl-ms", "250"), ("presence.history-length", "6")]);
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s a EX 600");
    let over = ask(&mut c, "s").events[0].int("at") + 250;
    sleep_until(over);
    (0..8).for_each(|i| drop(c.ok(format!("PRESENCE.MESSAGE s a {i}"))));
    c.ok("PRESENCE.CLOSE s PX 1500");
    let closed_at = now_ms();
    let told = ask(&mut c, "s AFTER 0-0");
    assert!(told.gap && told.seqs() == [5, 6, 7, 8, 9, 10], "{told:?}");
    let epoch = told.events[0].id().0;
    sleep_until(closed_at + 600);
    for seq in 0..=10 {
        let told = ask(&mut c, &format!("s AFTER {epoch}-{seq}"));
        assert_eq!(
            (told.gap, told.seqs()),
            (seq < 4, (seq.max(4) + 1..=10).collect()),
            "AFTER {seq}"
        );
    }
}

#[test]
fn del_opens_a_closed_space_at_once() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:s"]);
    let mut last = (0, 0);
    for line in ["DEL s", "UNLINK s", "FLUSHALL", "FLUSHDB ASYNC", "RENAME s t", "PEXPIREAT s 1"] {
        assert_eq!(c.int("PRESENCE.ONLINE s a"), 1, "before {line}");
        let id = ask(&mut c, "s").events[0].id();
        assert!(id.0 > last.0, "{id:?} after {last:?}, by {line}");
        assert_eq!(c.int("PRESENCE.CLOSE s EX 600"), 1);
        last = parse_id(&c.space("s").id);
        assert_eq!(c.err("PRESENCE.ONLINE s a"), CLOSED);
        c.ok(line);
        let kinds: Vec<_> =
            sub.events_so_far(&mut c).iter().map(|e| e.kind().to_string()).collect();
        assert_eq!(kinds, ["join", "close"], "{line}: silent");
    }
    assert_eq!(c.int("PRESENCE.ONLINE s a"), 1);
    // All in one transaction, in one millisecond.
    c.ok("MULTI");
    for line in [
        "PRESENCE.CLOSE s",
        "PRESENCE.ONLINE s a",
        "DEL s",
        "PRESENCE.ONLINE s a",
        "PRESENCE.MESSAGE s a hi",
    ] {
        c.ok(line);
    }
    c.send("EXEC").unwrap();
    let Ok(Value::Array(replies)) = c.recv() else { panic!("EXEC") };
    assert_eq!(
        (&replies[0], &replies[2], &replies[3]),
        (&Value::Int(1), &Value::Int(1), &Value::Int(1))
    );
    let Value::ServerError(e) = &replies[1] else { panic!("{replies:?}") };
    assert_eq!(e.code(), "CLOSED");
    assert_eq!(ask(&mut c, "s").briefs(), ["join a", "message a"]);
    assert_eq!(c.int("PRESENCE.COUNT s"), 1);
    // A renamed one is closed under its new name, to the end of its time.
    c.ok("DEL s t");
    c.ok("PRESENCE.ONLINE s a");
    let (earliest, _) = closed(&mut c, "PRESENCE.CLOSE s PX 400");
    c.ok("RENAME s t");
    assert_eq!(c.int("PRESENCE.ONLINE s a"), 1);
    assert_eq!(c.err("PRESENCE.ONLINE t a"), CLOSED);
    wait_until("the closed space to go", SOON, || c.int("EXISTS t") == 0);
    assert!(now_ms() >= earliest + 400);
    assert_eq!(c.int("PRESENCE.COUNT s"), 1);
}

/// Devices that have not heard of it go on with their heartbeats.
#[test]
fn late_heartbeats_do_not_reopen() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:s"]);
    let users: Vec<String> = (0..200).map(|i| format!("u{i}")).collect();
    c.batch(users.iter().map(|u| format!("PRESENCE.ONLINE s {u} PX 800")));
    let (earliest, _) = closed(&mut c, "PRESENCE.CLOSE s PX 1000");
    sub.so_far(&mut c);
    let (usage, id) = (c.int("MEMORY USAGE s"), c.space("s").id);
    let mut beats = 0;
    while now_ms() < earliest + 900 {
        for reply in c.batch(users.iter().map(|u| format!("PRESENCE.ONLINE s {u} EX 30"))) {
            if now_ms() < earliest + 1000 {
                assert_eq!(reply, Err(CLOSED.into()));
                beats += 1;
            }
        }
    }
    assert!(beats >= 200, "{beats}");
    if now_ms() < earliest + 1000 {
        assert_eq!((c.int("MEMORY USAGE s"), c.space("s").id), (usage, id));
    }
    wait_until("the closed space to go", SOON, || c.int("EXISTS s") == 0);
    assert!(sub.so_far(&mut c).is_empty(), "they left no trace");
}

/// The end of the time is the end, also for a call that comes before the sweep.
#[test]
fn the_end_of_the_closed_time_needs_no_sweep() {
    let server = Server::start();
    let mut c = server.connect();
    // No timer comes between the commands of a pipeline.
    let replies = c.batch([
        "PRESENCE.ONLINE s a",
        "PRESENCE.CLOSE s PX 5",
        "DEBUG SLEEP 0.03",
        "PRESENCE.EVENTS s",
        "PRESENCE.ONLINE s b",
    ]);
    let seen = replies[3].as_ref().map(|reply| items(pairs(reply)[2].1).len());
    assert_eq!(seen, Ok(0), "what is over is not told any more");
    assert_eq!(replies[4], Ok(Value::Int(1)), "b came in");
    let told = ask(&mut c, "s AFTER 0-0");
    assert_eq!((told.gap, told.briefs()), (false, vec!["join b".to_string()]), "a new life");
    // While writes are paused nothing is swept, and a read tells what is so.
    c.ok("PRESENCE.ONLINE s a");
    c.ok("CLIENT PAUSE 1500 WRITE");
    let told = ask(&mut c, "s");
    assert!(!told.events.is_empty());
    c.ok("CLIENT UNPAUSE");
}

#[test]
fn a_closed_space_survives_a_restart() {
    let ways: &[(&str, Builder, Stop, &[&str])] = &[
        ("RDB", Server::builder(), Stop::Save, &[]),
        ("AOF", Server::builder().aof(), Stop::Kill, &[]),
        (
            "AOF rewritten",
            Server::builder().aof().config("aof-use-rdb-preamble", "no"),
            Stop::Kill,
            &["BGREWRITEAOF"],
        ),
        ("AOF with preamble", Server::builder().aof(), Stop::NoSave, &["BGREWRITEAOF"]),
        ("RELOAD", Server::builder(), Stop::Save, &["DEBUG RELOAD"]),
    ];
    for (what, builder, stop, lines) in ways {
        let server = builder.clone().config("presence.history-ttl-ms", "200").start();
        let mut c = server.connect();
        // However long it takes until the spaces are closed: what is kept then stays.
        c.ok("CONFIG SET presence.history-ttl-ms 60000");
        for space in ["long", "short", "del"] {
            c.ok(["PRESENCE.ONLINE", space, "USERS", "2", "a", "b"]);
            c.ok(["PRESENCE.MESSAGE", space, "a", "bye"]);
        }
        let (earliest, latest) = closed(&mut c, "PRESENCE.CLOSE long PX 6000");
        c.ok("PRESENCE.CLOSE short PX 700");
        let short = now_ms() + 700;
        c.ok("PRESENCE.CLOSE del EX 600");
        c.ok("CONFIG SET presence.history-ttl-ms 200");
        let told = ask(&mut c, "long");
        assert_eq!(told.seqs(), [1, 2, 3, 4]);
        for line in *lines {
            c.ok(*line);
            wait_until("the rewrite", SOON * 4, || {
                let info = c.info("persistence");
                info["aof_rewrite_in_progress"] == "0" && info["aof_rewrite_scheduled"] == "0"
            });
        }
        server.stop(*stop);
        sleep_until(short);
        server.start_again();
        let mut c = server.connect();
        let again = ask(&mut c, "long AFTER 0-0");
        let refused = c.try_cmd("PRESENCE.ONLINE long a XX");
        let message = c.try_cmd("PRESENCE.MESSAGE long a hi");
        let close = c.try_cmd("PRESENCE.CLOSE long");
        assert!(now_ms() < earliest + 6000, "{what}: this machine is too slow for this test");
        assert_eq!((again.gap, again.raws(), &again.id), (false, told.raws(), &told.id), "{what}");
        assert_eq!(
            (refused, message, close),
            (Err(CLOSED.into()), Ok(Value::Nil), Ok(Value::Int(0))),
            "{what}"
        );
        assert_eq!(c.int("PRESENCE.COUNT long"), 0);
        wait_until("the one whose time was over to go", SOON, || c.int("EXISTS short") == 0);
        assert_eq!(c.err("PRESENCE.ONLINE del a"), CLOSED);
        c.ok("DEL del");
        assert_eq!(c.int("PRESENCE.ONLINE del a"), 1);
        // No grace for what is closed: the end is the end.
        wait_until("the closed space to go", ms(12_000), || c.int("EXISTS long") == 0);
        assert!(
            (earliest + 6000..latest + 8000).contains(&now_ms()),
            "{what}: {} ms late",
            now_ms() - latest - 6000
        );
        assert_eq!(c.int("PRESENCE.ONLINE long a"), 1);
        // And the end itself is kept: the next start knows nothing of it.
        if what.starts_with("AOF") {
            server.restart(*stop);
            let mut c = server.connect();
            assert_eq!(
                (c.int("EXISTS short"), c.ints("PRESENCE.STATUS long a b")),
                (0, vec![1, 0]),
                "{what}"
            );
        }
    }
}

#[test]
fn a_closed_space_moves_and_is_copied_as_any_key() {
    let server = Server::with(&[("presence.history-ttl-ms", "100")]);
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s a");
    c.ok("PRESENCE.CLOSE s EX 600");
    let told = ask(&mut c, "s");
    let Value::BulkString(payload) = c.ok("DUMP s") else { panic!() };
    c.ok(args!["RESTORE", "restored", 0, payload]);
    c.ok("COPY s copied");
    for space in ["restored", "copied"] {
        assert_eq!(c.digest(space), c.digest("s"));
        assert_eq!(c.err(["PRESENCE.ONLINE", space, "a"]), CLOSED);
        assert_eq!(ask(&mut c, space).raws(), told.raws());
    }
    // Closing says nothing of the key's own expiry.
    c.ok("PEXPIRE copied 60");
    wait_until("the key to expire", SOON, || c.int("EXISTS copied") == 0);
    assert_eq!(c.int("PTTL s"), -1);
}

/// Who waits is told of the end when it is said, and of the key's end when it comes.
#[test]
fn who_waits_hears_of_the_close() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s a");
    let mut many: Vec<Conn> = (0..50).map(|_| server.connect()).collect();
    many.iter_mut().for_each(|w| w.send("PRESENCE.EVENTS s AFTER $ BLOCK 0").unwrap());
    waiting(&mut c, 50);
    let (earliest, _) = closed(&mut c, "PRESENCE.CLOSE s PX 500");
    let mut id = String::new();
    for w in &mut many {
        let told = answer(w);
        assert_eq!((told.gap, told.briefs()), (false, vec!["close ".to_string()]));
        id = told.id;
        w.send(format!("PRESENCE.EVENTS s AFTER {id} BLOCK 0")).unwrap();
    }
    for w in &mut many {
        let told = answer(w);
        assert!(told.gap && told.events.is_empty() && told.id == "0-0", "{told:?}");
        assert!(now_ms() >= earliest + 500, "after {id}");
    }
}

/// Sessions whose leases were over before the close, but which no sweep had seen yet, left before it.
#[test]
fn who_lapsed_before_the_close_is_not_hidden_by_it() {
    let server = Server::start();
    let mut c = server.connect();
    // No timer comes between the commands of a pipeline.
    let replies = c.batch([
        "PRESENCE.ONLINE s a PX 5",
        "PRESENCE.ONLINE s b",
        "DEBUG SLEEP 0.03",
        "PRESENCE.COUNT s",
        "PRESENCE.CLOSE s",
    ]);
    let briefs = ask(&mut c, "s").briefs();
    assert_eq!(replies[3], Ok(Value::Int(1)), "COUNT does not show her any more");
    assert_eq!(briefs, ["join a", "join b", "leave a (timeout)", "close "]);
}

/// The message hub's sequence, literally.
#[test]
fn the_message_hubs_sequence() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:hub"]);
    assert_eq!(c.int("PRESENCE.ONLINE hub u1 SESSION s1"), 1);
    assert_eq!(c.int("PRESENCE.ONLINE hub u2 SESSION s1"), 1);
    assert_eq!(c.int("PRESENCE.ONLINE hub u2 SESSION s2"), 0);
    assert_eq!(c.int("PRESENCE.ONLINE hub u3 SESSION s1"), 1);
    assert!(c.is_null("PRESENCE.ONLINE hub u3 SESSION s1 NX"));
    let fifth = c.text("PRESENCE.MESSAGE hub u1 one SESSION s1");
    assert_eq!(c.int("PRESENCE.OFFLINE hub u1 SESSION s1"), 1);
    assert_eq!(c.int("PRESENCE.OFFLINE hub u2 SESSION s2"), 0);
    assert_eq!(c.int("PRESENCE.OFFLINE hub u2 SESSION s2"), 0);
    let eighth = c.text("PRESENCE.MESSAGE hub u2 two SESSION s1");
    assert_eq!(c.int("PRESENCE.CLOSE hub"), 1);
    let wanted = [
        (1, "join u1/s1"),
        (2, "join u2/s1"),
        (3, "add u2/s2"),
        (4, "join u3/s1"),
        (5, "message u1/s1"),
        (6, "leave u1/s1 (offline)"),
        (7, "remove u2/s2 (offline)"),
        (8, "message u2/s1"),
        (9, "close "),
    ];
    let published = sub.events_so_far(&mut c);
    let got: Vec<(u64, String)> = published.iter().map(|e| (e.id().1, e.brief())).collect();
    assert_eq!(got, wanted.map(|(seq, brief)| (seq, brief.to_string())));
    assert_eq!(
        published.iter().map(|e| e.int("users")).collect::<Vec<_>>(),
        [1, 2, 2, 3, 3, 2, 2, 2, 0]
    );
    assert_eq!((published[4].str("id"), published[7].str("id")), (fifth.as_str(), eighth.as_str()));
    assert_eq!((published[4].str("message"), published[7].str("message")), ("one", "two"));
    for words in ["hub", "hub AFTER 0-0"] {
        let told = ask(&mut c, words);
        let raws: Vec<_> = published.iter().map(|e| e.raw.as_str()).collect();
        assert_eq!((told.gap, told.raws()), (false, raws), "the nine after the close");
    }
    assert_eq!(c.err("PRESENCE.ONLINE hub u1 SESSION s1"), CLOSED);
}

/// With history-length 5: after n events the last min(n, 5) come, oldest first; with 0 none, and all else works.
#[test]
fn the_message_hubs_history() {
    for length in [5u64, 0] {
        let server = Server::with(&[("presence.history-length", &length.to_string())]);
        let mut c = server.connect();
        let mut sub = server.subscribe(&["presence:hub"]);
        let mut n = 0;
        for wanted in [1, 3, 5, 6, 7, 12] {
            while n < wanted {
                n += 1;
                c.ok(format!("PRESENCE.ONLINE hub u{n} SESSION s1"));
            }
            let told = ask(&mut c, "hub");
            let first = n - n.min(length) + 1;
            assert_eq!(told.seqs(), (first..=n).collect::<Vec<_>>(), "length {length}, {n} events");
            assert_eq!(
                told.briefs(),
                (first..=n).map(|i| format!("join u{i}/s1")).collect::<Vec<_>>()
            );
            assert!(told.id.ends_with(&format!("-{n}")) && !told.gap);
        }
        assert_eq!(c.int("PRESENCE.COUNT hub"), 12);
        assert_eq!(c.int("PRESENCE.OFFLINE hub u1"), 1);
        assert!(c.text("PRESENCE.MESSAGE hub u2 hi").ends_with("-14"));
        assert_eq!(c.int("PRESENCE.CLOSE hub EX 60"), 1);
        let seqs: Vec<_> = sub.events_so_far(&mut c).iter().map(|e| e.id().1).collect();
        assert_eq!(seqs, (1..=15).collect::<Vec<_>>(), "length {length}");
        assert_eq!(ask(&mut c, "hub").seqs(), (16 - length..=15).collect::<Vec<_>>());
        assert_eq!(
            c.err("PRESENCE.ONLINE hub u1"),
            CLOSED,
            "length {length}: closed without a history, too"
        );
        let told = ask(&mut c, "hub AFTER 0-0");
        assert!(told.gap && told.id.ends_with("-15"), "length {length}: {told:?}");
    }
}
