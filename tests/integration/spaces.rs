//! PRESENCE.SPACES: which spaces of a database have anybody in them.

use crate::harness::*;
use crate::replication::{primary, replica_of, sync};
use std::collections::BTreeMap;

/// A name, users and sessions.
type Space = (String, (i64, i64));
/// What PRESENCE.SPACES says: name -> users and sessions.
type Listed = BTreeMap<String, (i64, i64)>;

#[track_caller]
fn parse(reply: &Value) -> (String, Vec<Space>) {
    let [cursor, spaces] = fields(reply, ["cursor", "spaces"]);
    let number = |value: &Value| match value {
        Value::Int(number) => *number,
        other => panic!("{other:?} is no number"),
    };
    let space = |entry: &Value| {
        let [space, users, sessions] = fields(entry, ["space", "users", "sessions"]);
        (text(space), (number(users), number(sessions)))
    };
    (text(cursor), items(spaces).iter().map(space).collect())
}

/// All at once.
#[track_caller]
fn list(c: &mut Conn, options: &str) -> Listed {
    let (cursor, spaces) = parse(&c.ok(format!("PRESENCE.SPACES {options}")));
    assert_eq!(cursor, "0");
    let listed: Listed = spaces.iter().cloned().collect();
    assert_eq!(listed.len(), spaces.len(), "a space is listed twice: {spaces:?}");
    listed
}

#[track_caller]
fn names(c: &mut Conn, options: &str) -> Vec<String> {
    list(c, options).into_keys().collect()
}

/// The pages, each with a call of `between` behind it.
#[track_caller]
fn paged(c: &mut Conn, options: &str, mut between: impl FnMut(&mut Conn)) -> Vec<Vec<String>> {
    let (mut pages, mut cursor) = (Vec::new(), "0".to_string());
    loop {
        let (next, spaces) = parse(&c.ok(format!("PRESENCE.SPACES CURSOR {cursor} {options}")));
        pages.push(spaces.into_iter().map(|(name, _)| name).collect());
        assert!(pages.len() < 100_000, "paging does not end");
        cursor = next;
        if cursor == "0" {
            return pages;
        }
        between(c);
    }
}

fn counted(spaces: &[(&str, (i64, i64))]) -> Listed {
    spaces.iter().map(|(name, counts)| (name.to_string(), *counts)).collect()
}

#[test]
fn spaces_lists_those_with_anybody_in_them() {
    let server = Server::start();
    for mut c in [server.connect(), server.connect3()] {
        c.ok("FLUSHALL");
        assert_eq!(list(&mut c, ""), Listed::new());
        c.ok("PRESENCE.ONLINE one a EX 600");
        c.ok("PRESENCE.ONLINE three USERS 3 a b c EX 600");
        c.ok("PRESENCE.ONLINE three a SESSION phone EX 600");
        c.ok(["PRESENCE.ONLINE", "odd \0\r\n\u{1F600}*", "a", "EX", "600"]);
        // Nobody is in these.
        c.ok("PRESENCE.ONLINE left a");
        c.ok("PRESENCE.OFFLINE left a");
        c.ok("PRESENCE.MESSAGE written a hello");
        c.ok("PRESENCE.ONLINE closed a");
        c.ok("PRESENCE.CLOSE closed EX 600");
        c.ok("PRESENCE.ONLINE deleted a");
        c.ok("DEL deleted");
        c.ok("PRESENCE.ONLINE overwritten a");
        c.ok("SET overwritten x");
        c.ok("RPUSH a-list 1");
        c.ok("PRESENCE.ONLINE expired a EX 600");
        c.ok("PEXPIRE expired 1");
        c.ok("PRESENCE.ONLINE lapsed a PX 1");
        wait_until("a lease and a key to end", SOON, || {
            c.int("EXISTS expired") == 0 && c.int("PRESENCE.COUNT lapsed") == 0
        });
        let odd = ("odd \0\r\n\u{1F600}*", (1, 1));
        let (one, three) = (("one", (1, 1)), ("three", (3, 4)));
        assert_eq!(list(&mut c, ""), counted(&[one, three, odd]));
        // What came by other ways than ONLINE is listed as well.
        c.ok("RENAME one renamed");
        c.ok("COPY three copied");
        let copied = ("copied", (3, 4));
        assert_eq!(list(&mut c, ""), counted(&[("renamed", (1, 1)), copied, three, odd]));
        // Of more than is asked for, the rest is left out.
        for (options, wanted) in [
            ("MIN 0", vec!["copied", odd.0, "renamed", "three"]),
            ("min 1", vec!["copied", odd.0, "renamed", "three"]),
            ("MIN 3", vec!["copied", "three"]),
            ("MIN 4", vec![]),
            ("MIN 9223372036854775807", vec![]),
            ("MATCH t*", vec!["three"]),
            ("MATCH T*", vec![]),
            ("MATCH *d", vec!["copied", "renamed"]),
            ("MIN 3 MATCH [ct]*", vec!["copied", "three"]),
            ("COUNT 100 MATCH copie?", vec!["copied"]),
        ] {
            assert_eq!(names(&mut c, options), wanted, "{options}");
        }
    }
}

#[test]
fn spaces_are_those_of_the_selected_database() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE zero a EX 600");
    c.ok("SELECT 1");
    c.ok("PRESENCE.ONLINE first a EX 600");
    assert_eq!(names(&mut c, ""), ["first"]);
    c.ok("MOVE first 0");
    assert!(names(&mut c, "").is_empty());
    c.ok("SWAPDB 0 1");
    assert_eq!(names(&mut c, ""), ["first", "zero"]);
    c.ok("SELECT 0");
    assert!(names(&mut c, "").is_empty());
    c.ok("SELECT 7");
    assert!(names(&mut c, "").is_empty());
    c.ok("SELECT 1");
    server.restart(Stop::Save);
    let mut c = server.connect();
    c.ok("SELECT 1");
    assert_eq!(names(&mut c, ""), ["first", "zero"], "they are there after a restart");
    c.ok("FLUSHDB");
    assert!(names(&mut c, "").is_empty());
}

#[test]
fn spaces_in_pages_miss_none_that_stays() {
    let server = Server::start();
    let mut c = server.connect();
    const STAY: usize = 2000;
    let online = (0..STAY).map(|n| format!("PRESENCE.ONLINE stays{n} a EX 600"));
    c.batch(online);
    let mut n = 0;
    let pages = paged(&mut c, "COUNT 20", |c| {
        for _ in 0..10 {
            c.ok(format!("PRESENCE.ONLINE comes{n} a EX 600"));
            c.ok(format!("DEL comes{}", n / 2));
            n += 1;
        }
    });
    assert!(pages.len() >= STAY / 40, "{} pages", pages.len());
    assert!(pages.iter().all(|page| page.len() <= 25), "a page is about as long as asked for");
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    pages.iter().flatten().for_each(|name| *times.entry(name).or_default() += 1);
    assert!(times.values().all(|times| *times == 1));
    assert_eq!(times.keys().filter(|name| name.starts_with("stays")).count(), STAY);

    // A page looks at a bounded number of spaces, also if nothing matches.
    for options in ["COUNT 1 MATCH nothing*", "COUNT 1 MIN 2"] {
        let pages = paged(&mut c, options, |_| ());
        assert!(pages.iter().all(Vec::is_empty));
        assert!(pages.len() >= STAY / 200, "{options}: {} pages", pages.len());
    }
    // One cursor of another run of the server, and one that is none, begin anew.
    for cursor in ["1", "18446744073709551615", "4503599627370495"] {
        let reply = c.ok(["PRESENCE.SPACES", "COUNT", "10", "CURSOR", cursor]);
        assert!(parse(&reply).1.len() >= 10, "{cursor}");
    }
    assert_eq!(list(&mut c, "MATCH stays*").len(), STAY);
}

#[test]
fn spaces_refuses_bad_arguments() {
    let server = Server::start();
    let mut c = server.connect();
    for (options, words) in [
        ("WHAT", "syntax error: unknown option 'WHAT'"),
        ("MATCH", "MATCH"),
        ("MATCH a MATCH b", "MATCH"),
        ("MIN", "MIN"),
        ("MIN -1", "MIN takes a number of 0 or more"),
        ("MIN x", "not an integer"),
        ("MIN 1.5", "not an integer"),
        ("MIN 9223372036854775808", "not an integer"),
        ("MIN 1 MIN 1", "MIN"),
        ("COUNT 0", "COUNT takes a number of 1 or more"),
        ("COUNT x", "not an integer"),
        ("CURSOR x", "invalid cursor"),
        ("CURSOR -1", "invalid cursor"),
        ("CURSOR 0 CURSOR 0", "CURSOR"),
    ] {
        let error = c.err(format!("PRESENCE.SPACES {options}"));
        assert!(error.starts_with("ERR ") && error.contains(words), "{options}: {error}");
    }
    let pattern = "x".repeat(1025);
    let error = c.err(["PRESENCE.SPACES", "MATCH", &pattern]);
    assert!(error.contains("MATCH is longer than 1024 bytes"), "{error}");
    c.ok(["PRESENCE.SPACES", "MATCH", &pattern[1..]]);
    // A pattern that makes a simple matcher slow.
    c.ok(["PRESENCE.ONLINE", &"a".repeat(4000), "u", "EX", "600"]);
    let pattern = "*a".repeat(500) + "b";
    assert!(parse(&c.ok(["PRESENCE.SPACES", "MATCH", &pattern])).1.is_empty());
}

/// On every engine the server must say who calls: directly, in a transaction, in a script.
#[test]
fn spaces_leaves_out_what_the_caller_may_not_read() {
    let server = Server::start();
    let mut admin = server.connect();
    for space in ["room:1", "room:2", "lobby", "inbox"] {
        admin.ok(["PRESENCE.ONLINE", space, "a", "EX", "600"]);
    }
    let all = ["inbox", "lobby", "room:1", "room:2"];
    assert_eq!(names(&mut admin, ""), all);
    let cases: [(&str, &[&str]); 5] = [
        ("~*", &all),
        ("~room:* %R~lobby", &["lobby", "room:1", "room:2"]),
        ("%W~* %R~room:2", &["room:2"]),
        ("~x*", &[]),
        ("resetkeys", &[]),
    ];
    for (n, (rules, wanted)) in cases.iter().enumerate() {
        admin.ok(format!("ACL SETUSER u{n} on >p {rules} +@all"));
        let mut c = server.connect();
        c.ok(format!("AUTH u{n} p"));
        assert_eq!(names(&mut c, ""), *wanted, "{rules}");
        assert_eq!(paged(&mut c, "COUNT 1", |_| ()).concat().len(), wanted.len(), "{rules}");
        c.ok("MULTI");
        c.ok("PRESENCE.SPACES");
        let reply = c.ok("EXEC");
        assert_eq!(parse(&items(&reply)[0]).1.len(), wanted.len(), "{rules}");
        let script = "return #redis.call('PRESENCE.SPACES')[4]";
        assert_eq!(c.int(["EVAL", script, "0"]), wanted.len() as i64, "{rules}");
    }
    admin.ok("ACL SETUSER nothing on >p ~* +@all -presence.spaces");
    let mut c = server.connect();
    c.ok("AUTH nothing p");
    assert!(c.err("PRESENCE.SPACES").starts_with("NOPERM"));
}

#[test]
fn spaces_on_a_replica_are_those_of_the_primary() {
    let p = primary().start();
    let mut c = p.connect();
    for n in 0..50 {
        c.ok(format!("PRESENCE.ONLINE before{n} a EX 600"));
    }
    let r = replica_of(&p).start();
    let mut of_replica = r.connect();
    sync(&mut c, &mut of_replica);
    for n in 0..50 {
        c.ok(format!("PRESENCE.ONLINE after{n} USERS 2 a b EX 600"));
    }
    c.ok("PRESENCE.OFFLINE before7 a");
    c.ok("PRESENCE.CLOSE after7");
    c.ok("RENAME before8 renamed");
    c.ok("DEL before9");
    sync(&mut c, &mut of_replica);
    let listed = list(&mut c, "");
    assert_eq!(listed.len(), 97);
    assert_eq!(list(&mut of_replica, ""), listed);
    assert_eq!(paged(&mut of_replica, "COUNT 5", |_| ()).concat().len(), 97);
    // A lease that has ended is not shown, though the primary cannot say so.
    c.ok("PRESENCE.ONLINE short a PX 300");
    sync(&mut c, &mut of_replica);
    c.ok("CLIENT PAUSE 60000 WRITE");
    wait_until("the lease to end on the replica", SOON, || {
        !list(&mut of_replica, "").contains_key("short")
    });
    assert_eq!(of_replica.int("EXISTS short"), 1);
    c.ok("CLIENT UNPAUSE");
}

/// A listing is no use of the keys that it visits: eviction by idle time goes by what clients use.
#[test]
fn spaces_makes_no_key_less_idle() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s a EX 600");
    let idle = |c: &mut Conn| c.int("OBJECT IDLETIME s");
    wait_until("the key to be idle", SOON, || idle(&mut c) >= 1);
    assert_eq!(names(&mut c, ""), ["s"]);
    assert!(idle(&mut c) >= 1);
}
