//! Users who left and are not back: PRESENCE.SEEN, and what PRESENCE.USER says of them.

use crate::harness::*;
use crate::replication::{primary, replica_of, same, sync};
use std::collections::BTreeMap;

const REMEMBERS: (&str, &str) = ("presence.seen-ttl-ms", "600000");
const NO_HISTORY: (&str, &str) = ("presence.history-length", "0");

/// Live sessions, the time, the reason of the leave.
type Entry = Option<(i64, i64, Option<String>)>;

#[track_caller]
fn seen(c: &mut Conn, space: &str, users: &[&str]) -> Vec<Entry> {
    let mut call = args!["PRESENCE.SEEN", space];
    call.extend(users.iter().map(|user| user.as_bytes().to_vec()));
    let reply = c.ok(call);
    assert_eq!(items(&reply).len(), users.len());
    let entry = |entry: &Value| match entry {
        Value::Nil => None,
        entry => {
            let [sessions, at, reason] = items(entry) else { panic!("{entry:?}") };
            let number = |value: &Value| match value {
                Value::Int(number) => *number,
                other => panic!("{other:?}"),
            };
            let reason = (*reason != Value::Nil).then(|| text(reason));
            Some((number(sessions), number(at), reason))
        }
    };
    items(&reply).iter().map(entry).collect()
}

#[track_caller]
fn one(c: &mut Conn, space: &str, user: &str) -> Entry {
    seen(c, space, &[user]).remove(0)
}

/// The reasons alone; "online", "" for nobody known.
#[track_caller]
fn brief(c: &mut Conn, space: &str, users: &[&str]) -> Vec<String> {
    let word = |entry: Entry| match entry {
        None => String::new(),
        Some((0, _, reason)) => reason.unwrap(),
        Some((_, _, reason)) => {
            assert_eq!(reason, None);
            "online".into()
        }
    };
    seen(c, space, users).into_iter().map(word).collect()
}

#[test]
fn seen_tells_when_and_why_users_left() {
    let server = Server::with(&[REMEMBERS]);
    let odd = "odd \0\r\n\u{1F600}";
    let long = "x".repeat(512);
    for mut c in [server.connect(), server.connect3()] {
        c.ok("FLUSHALL");
        assert_eq!(seen(&mut c, "none", &["a", "b"]), [None, None]);
        let mut sub = server.subscribe(&["presence:s"]);
        c.ok(["PRESENCE.ONLINE", "s", "USERS", "4", "a", "b", odd, &long, "EX", "600"]);
        c.ok("PRESENCE.ONLINE s a SESSION phone EX 600");
        let before = now_ms();
        let online = one(&mut c, "s", "a").unwrap();
        assert!(online.0 == 2 && online.2.is_none() && online.1 >= before, "{online:?}");
        c.ok(["PRESENCE.OFFLINE", "s", "USERS", "3", "b", odd, &long]);
        c.ok("PRESENCE.OFFLINE s a SESSION phone");
        assert_eq!(
            brief(&mut c, "s", &["a", "b", "b", "nobody", odd, &long]),
            ["online", "offline", "offline", "", "offline", "offline"]
        );
        c.ok("PRESENCE.ONLINE s a PX 1");
        let leave = loop {
            let event = sub.event(SOON);
            if event.kind() == "leave" && event.user() == "a" {
                break event;
            }
        };
        let of_sweep = (0, leave.int("at"), Some("timeout".into()));
        assert_eq!(one(&mut c, "s", "a"), Some(of_sweep.clone()));
        // USER says the same, and of the others nothing.
        let reply = c.ok("PRESENCE.USER s a");
        let names = ["status", "joined_at", "sessions", "seen_at", "reason"];
        let [status, joined_at, sessions, seen_at, reason] = fields(&reply, names);
        assert_eq!(
            (text(status), joined_at, items(sessions).len()),
            ("offline".into(), &Value::Nil, 0)
        );
        assert_eq!((seen_at, text(reason)), (&Value::Int(of_sweep.1), "timeout".into()));
        assert!(c.is_null("PRESENCE.USER s nobody"));
        // Who is back has not left.
        c.ok("PRESENCE.ONLINE s a EX 600");
        assert_eq!(brief(&mut c, "s", &["a", "b"]), ["online", "offline"]);
        fields(&c.ok("PRESENCE.USER s a"), ["status", "joined_at", "sessions"]);
        // A linger that ends is a leave that was asked for.
        c.ok("PRESENCE.OFFLINE s a LINGER 1");
        wait_until("the linger", SOON, || brief(&mut c, "s", &["a"]) == ["offline"]);
    }
}

#[test]
fn seen_knows_only_who_is_online_without_the_setting() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s USERS 2 a b EX 600");
    c.ok("PRESENCE.OFFLINE s a");
    assert_eq!(brief(&mut c, "s", &["a", "b"]), ["", "online"]);
    assert!(c.is_null("PRESENCE.USER s a"));
    // A rule for some spaces.
    c.ok(["CONFIG", "SET", "presence.rules", "doc:* seen-ttl-ms=600000"]);
    for space in ["s", "doc:1"] {
        c.ok(["PRESENCE.ONLINE", space, "USERS", "2", "a", "b"]);
        c.ok(["PRESENCE.OFFLINE", space, "a"]);
    }
    assert_eq!(brief(&mut c, "doc:1", &["a", "b"]), ["offline", "online"]);
    assert_eq!(brief(&mut c, "s", &["a", "b"]), ["", "online"]);
}

/// On a replica nothing sweeps, and on a paused primary neither.
#[test]
fn seen_remembers_who_lapsed_before_the_sweep() {
    let p = primary().config(REMEMBERS.0, REMEMBERS.1).start();
    let r = replica_of(&p).config(REMEMBERS.0, REMEMBERS.1).start();
    let (mut c, mut of_replica) = (p.connect(), r.connect());
    sync(&mut c, &mut of_replica);
    let lease = now_ms() + 3000;
    c.ok(args!["PRESENCE.ONLINE", "s", "a", "SESSION", "early", "PXAT", lease - 200]);
    c.ok(args!["PRESENCE.ONLINE", "s", "a", "PXAT", lease]);
    sync(&mut c, &mut of_replica);
    c.ok("CLIENT PAUSE 60000 WRITE");
    assert!(now_ms() < lease - 200, "the sweep was there before the pause");
    for c in [&mut c, &mut of_replica] {
        wait_until("the lease to end", SOON, || brief(c, "s", &["a"]) == ["timeout"]);
        assert_eq!(one(c, "s", "a"), Some((0, lease, Some("timeout".into()))));
        fields(
            &c.ok("PRESENCE.USER s a"),
            ["status", "joined_at", "sessions", "seen_at", "reason"],
        );
    }
    c.ok("CLIENT UNPAUSE");
    wait_until("the sweep", SOON, || {
        sync(&mut c, &mut of_replica);
        one(&mut of_replica, "s", "a").is_some_and(|(_, at, _)| at > lease)
            || c.stat("sessions") == 0
    });
    assert_eq!(brief(&mut of_replica, "s", &["a"]), ["timeout"]);
}

#[test]
fn seen_forgets_the_longest_gone_first() {
    let server = Server::with(&[REMEMBERS, ("presence.max-seen", "3")]);
    let mut c = server.connect();
    let all = ["a", "b", "c", "d", "e"];
    for user in all {
        c.ok(["PRESENCE.ONLINE", "s", user]);
        c.ok(["PRESENCE.OFFLINE", "s", user]);
    }
    assert_eq!(brief(&mut c, "s", &all), ["", "", "offline", "offline", "offline"]);
    // Who is back and leaves again has left last; who is online does not count.
    c.ok("PRESENCE.ONLINE s USERS 3 c x y EX 600");
    assert_eq!(brief(&mut c, "s", &all), ["", "", "online", "offline", "offline"]);
    c.ok("PRESENCE.OFFLINE s USERS 2 c a");
    c.ok("PRESENCE.OFFLINE s x");
    assert_eq!(brief(&mut c, "s", &["d", "e", "c", "x"]), ["", "offline", "offline", "offline"]);
    // Fewer at once: the sweep forgets the rest.
    c.ok("CONFIG SET presence.max-seen 1");
    wait_until("the sweep", SOON, || {
        brief(&mut c, "s", &["e", "c", "x", "y"]) == ["", "", "offline", "online"]
    });
    c.ok("CONFIG SET presence.max-seen 0");
    c.ok("PRESENCE.OFFLINE s y");
    assert_eq!(brief(&mut c, "s", &["y"]), [""]);
}

/// The space lives as long as somebody is remembered, and no longer.
#[test]
fn seen_keeps_the_space_until_the_time_is_over() {
    let server = Server::with(&[("presence.seen-ttl-ms", "700"), NO_HISTORY]);
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s USERS 2 a b EX 600");
    c.ok("PRESENCE.OFFLINE s a");
    c.ok("PRESENCE.OFFLINE s b");
    let (_, at, _) = one(&mut c, "s", "b").unwrap();
    assert_eq!((c.int("EXISTS s"), c.int("PRESENCE.COUNT s")), (1, 0));
    wait_until("the time to be over", SOON, || brief(&mut c, "s", &["b"]) == [""]);
    assert!(now_ms() >= at + 700, "too early");
    wait_until("the key to go", SOON, || c.int("EXISTS s") == 0);
    assert!(now_ms() >= at + 700, "too early");

    // A shorter time forgets at once, also if nothing sweeps.
    c.ok("CONFIG SET presence.seen-ttl-ms 600000");
    c.ok("PRESENCE.ONLINE s USERS 2 a b EX 600");
    c.ok("PRESENCE.OFFLINE s a");
    assert_eq!(brief(&mut c, "s", &["a", "b"]), ["offline", "online"]);
    c.ok("CLIENT PAUSE 60000 WRITE");
    c.ok("CONFIG SET presence.seen-ttl-ms 1");
    wait_until("a millisecond", SOON, || brief(&mut c, "s", &["a", "b"]) == ["", "online"]);
    c.ok("CONFIG SET presence.seen-ttl-ms 0");
    assert_eq!(brief(&mut c, "s", &["a", "b"]), ["", "online"]);
    c.ok("CLIENT UNPAUSE");
    c.ok("PRESENCE.OFFLINE s b");
    wait_until("the key to go", SOON, || c.int("EXISTS s") == 0);
}

#[test]
fn seen_after_a_close_is_nobody() {
    let server = Server::with(&[REMEMBERS]);
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s USERS 2 a b EX 600");
    c.ok("PRESENCE.OFFLINE s a");
    c.ok("PRESENCE.CLOSE s PX 300");
    assert_eq!(brief(&mut c, "s", &["a", "b"]), ["", ""]);
    assert!(c.is_null("PRESENCE.USER s a"));
    wait_until("the end of the close", SOON, || c.int("EXISTS s") == 0);
    assert_eq!(brief(&mut c, "s", &["a", "b"]), ["", ""]);
}

/// Fills a space with all that can be remembered.
fn furnish_seen(c: &mut Conn) -> Vec<Entry> {
    furnish(c, "s");
    for n in 0..300 {
        c.ok(format!("PRESENCE.ONLINE s left{n} EX 600"));
    }
    c.ok("PRESENCE.ONLINE s late PX 1");
    wait_until("a timeout", SOON, || brief(c, "s", &["late"]) == ["timeout"]);
    wait_until("the sweep", SOON, || c.stat("sweep_backlog") == 0);
    for n in 0..300 {
        c.ok(format!("PRESENCE.OFFLINE s left{n}"));
    }
    everybody(c, "s")
}

fn everybody(c: &mut Conn, space: &str) -> Vec<Entry> {
    let names: Vec<String> = (0..300).map(|n| format!("left{n}")).collect();
    let mut users: Vec<&str> = names.iter().map(String::as_str).collect();
    users.extend(["late", "gone"]);
    seen(c, space, &users)
}

#[test]
fn seen_is_kept_by_restarts_and_travels_with_the_key() {
    for aof in [false, true] {
        let mut builder = Server::builder().config(REMEMBERS.0, REMEMBERS.1);
        if aof {
            builder = builder.aof();
        }
        let server = builder.start();
        let mut c = server.connect();
        let wanted = furnish_seen(&mut c);
        assert!(wanted.iter().all(Option::is_some));
        let digest = c.digest("s");
        if aof {
            // First by the effects, then by the rewritten file.
            server.restart(Stop::Kill);
            let mut c = server.connect();
            assert_eq!(everybody(&mut c, "s"), wanted);
            c.ok("BGREWRITEAOF");
            wait_until("the rewrite", SOON * 4, || {
                let info = c.info("persistence");
                info["aof_rewrite_in_progress"] == "0" && info["aof_rewrite_scheduled"] == "0"
            });
        }
        server.restart(if aof { Stop::Kill } else { Stop::Save });
        let mut c = server.connect();
        assert_eq!(everybody(&mut c, "s"), wanted, "aof {aof}");
        assert_ne!(digest, "0".repeat(40));
        c.ok("COPY s copied");
        c.ok("RENAME copied renamed");
        let dump = c.ok("DUMP renamed");
        let Value::BulkString(dump) = dump else { panic!() };
        c.ok(args!["RESTORE", "restored", "0", dump]);
        for space in ["renamed", "restored"] {
            assert_eq!(everybody(&mut c, space), wanted, "{space}");
            assert_eq!(c.digest(space), c.digest("s"), "{space}");
        }
    }
}

/// The replica does what the primary decided, whatever its own settings are.
#[test]
fn seen_on_a_replica_is_as_on_the_primary() {
    let p = primary().config(REMEMBERS.0, REMEMBERS.1).config("presence.max-seen", "50").start();
    let r = replica_of(&p)
        .config("presence.seen-ttl-ms", "700000")
        .config("presence.max-seen", "7")
        .start();
    let (mut c, mut of_replica) = (p.connect(), r.connect());
    sync(&mut c, &mut of_replica);
    let users: Vec<String> = (0..100).map(|n| format!("user{n}")).collect();
    let mut rng = rng(72);
    for step in 0..2000 {
        use rand::seq::IndexedRandom;
        let user = users.choose(&mut rng).unwrap();
        match step % 5 {
            0 | 1 => c.ok(["PRESENCE.ONLINE", "s", user, "EX", "600"]),
            2 => c.ok(["PRESENCE.ONLINE", "s", user, "PX", "5"]),
            _ => c.ok(["PRESENCE.OFFLINE", "s", user]),
        };
        if step == 1000 {
            c.ok("CONFIG SET presence.max-seen 20");
        }
    }
    // The replica knows only bounds of the last leases, until the primary says that they have ended.
    sleep_until(now_ms() + 6);
    wait_until("the last leases to end", SOON, || {
        c.stat("sessions") == c.int("PRESENCE.COUNT s SESSIONS")
    });
    same(&mut c, &mut of_replica);
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    c.ok("CLIENT PAUSE 60000 WRITE");
    sync(&mut c, &mut of_replica);
    let leaves = |c: &mut Conn| -> BTreeMap<String, (i64, Option<String>)> {
        let entries = users.iter().map(|user| user.to_string()).zip(seen(c, "s", &users));
        let left = |(user, entry): (String, Entry)| {
            let (sessions, at, reason) = entry?;
            (sessions == 0).then_some((user, (at, reason)))
        };
        entries.filter_map(left).collect()
    };
    assert_eq!(leaves(&mut of_replica), leaves(&mut c));
    assert!(leaves(&mut c).len() >= 20);
    c.ok("CLIENT UNPAUSE");
    // What the sweep forgets is forgotten there too.
    c.ok("CONFIG SET presence.seen-ttl-ms 1");
    c.ok("PRESENCE.ONLINE s stays EX 600");
    wait_until("the sweep", SOON, || {
        same(&mut c, &mut of_replica);
        brief(&mut of_replica, "s", &users).iter().all(|word| word.is_empty() || word == "online")
    });
    // It is promoted, and decides by its own settings from now on.
    of_replica.ok("REPLICAOF NO ONE");
    of_replica.ok("PRESENCE.OFFLINE s stays");
    assert_eq!(brief(&mut of_replica, "s", &["stays"]), ["offline"]);
}

/// Who leaves while memory is out makes the space no larger.
#[test]
fn seen_takes_no_memory_when_there_is_none() {
    let server = Server::with(&[REMEMBERS, NO_HISTORY]);
    let mut c = server.connect();
    // Sessions of one user after the other end; the space would take more for the names than it gets back.
    for n in 0..3000 {
        c.ok(format!("PRESENCE.ONLINE s user{n} EX 600"));
    }
    let used = |c: &mut Conn| c.int("MEMORY USAGE s");
    let full = used(&mut c);
    c.ok("CONFIG SET maxmemory 1");
    let mut before = full;
    for n in 0..3000 {
        assert_eq!(c.int(format!("PRESENCE.OFFLINE s user{n}")), 1);
        let now = used(&mut c);
        assert!(now <= before, "{now} after {before}");
        before = now;
    }
    c.ok("CONFIG SET maxmemory 0");
    assert!(before < full / 2, "{before} of {full}");
}

#[test]
fn seen_refuses_bad_arguments() {
    let server = Server::with(&[REMEMBERS]);
    let mut c = server.connect();
    for line in ["PRESENCE.SEEN", "PRESENCE.SEEN s"] {
        assert!(c.err(line).contains("wrong number of arguments"), "{line}");
    }
    assert!(c.err(["PRESENCE.SEEN", "s", "a", ""]).contains("user is empty"));
    assert!(c.err(["PRESENCE.SEEN", "s", &"x".repeat(513)]).contains("user is longer than 512"));
    assert!(c.err(args!["PRESENCE.SEEN", "s", &b"\xff"[..]]).contains("user is not UTF-8"));
    c.ok("SET text x");
    assert!(c.err("PRESENCE.SEEN text a").starts_with("WRONGTYPE"));
    c.ok("ACL SETUSER reader on >p %R~s* +@read");
    c.ok("PRESENCE.ONLINE s a");
    c.ok("PRESENCE.OFFLINE s a");
    c.ok("MULTI");
    c.ok("PRESENCE.SEEN s a");
    c.ok("PRESENCE.USER s a");
    assert_eq!(items(&c.ok("EXEC")).len(), 2);
    let script = "return redis.call('PRESENCE.SEEN', KEYS[1], 'a')[1][3]";
    assert_eq!(c.text(["EVAL", script, "1", "s"]), "offline");
}
