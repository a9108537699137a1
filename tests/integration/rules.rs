//! `presence.rules`: settings for the spaces that a pattern names.

use crate::harness::*;
use crate::history::ask;
use crate::replication::{primary, replica_of, sync};

fn set_rules(c: &mut Conn, rules: &str) {
    assert_eq!(c.text(["CONFIG", "SET", "presence.rules", rules]), "OK");
}

fn rules(c: &mut Conn) -> String {
    texts(&c.ok("CONFIG GET presence.rules"))[1].clone()
}

/// How long the lease is that a session gets without a time.
#[track_caller]
fn usual_lease(c: &mut Conn, space: &str) -> i64 {
    let now = texts(&c.ok("TIME"));
    c.ok(["PRESENCE.ONLINE", space, "usual"]);
    let now = now[0].parse::<i64>().unwrap() * 1000 + now[1].parse::<i64>().unwrap() / 1000;
    let lease = c.user(space, "usual").unwrap().session("").expires_at - now;
    // The clock goes on between the two commands.
    (lease / 1000) * 1000
}

fn kept(c: &mut Conn, space: &str) -> usize {
    ask(c, space).events.len()
}

#[test]
fn rules_the_first_that_matches_alone_counts() {
    let server = Server::with(&[
        ("presence.history-length", "4"),
        ("presence.max-users-per-space", "3"),
        (
            "presence.rules",
            "chat:* lease-ttl-ms=5000 history-length=0;chat:1 max-users-per-space=1; *:small max-users-per-space=1 max-sessions-per-user=2 ; doc:? max-users-per-space=0",
        ),
    ]);
    let mut c = server.connect();
    assert_eq!(usual_lease(&mut c, "chat:1"), 5000);
    assert_eq!(usual_lease(&mut c, "other"), 30_000);
    assert_eq!((kept(&mut c, "chat:1"), kept(&mut c, "other")), (0, 1));
    // The later rule for chat:1 does not count, nor does one that only begins like the name.
    c.ok("PRESENCE.ONLINE chat:1 USERS 2 a b");
    assert!(c.err("PRESENCE.ONLINE chat:1 d").contains("max-users-per-space is 3"));
    c.ok("PRESENCE.ONLINE a:small a");
    assert!(c.err("PRESENCE.ONLINE a:small b").contains("max-users-per-space is 1"));
    c.ok("PRESENCE.ONLINE a:small a SESSION 1");
    assert!(c.err("PRESENCE.ONLINE a:small a SESSION 2").contains("max-sessions-per-user is 2"));
    c.ok("PRESENCE.ONLINE a:small: USERS 3 a b c");
    // 0 in a rule beats the global setting.
    c.ok("PRESENCE.ONLINE doc:x USERS 5 a b c d e");
    assert!(c.err("PRESENCE.ONLINE doc:xy USERS 5 a b c d e").contains("max-users-per-space is 3"));
    assert_eq!(
        (kept(&mut c, "doc:x"), kept(&mut c, "a:small")),
        (4, 2),
        "what a rule does not name is global"
    );
    // A lease that the command could not give is not given by a rule either.
    c.ok("CONFIG SET presence.max-lease-ttl-ms 1000");
    assert_eq!(usual_lease(&mut c, "chat:2"), 1000);
}

#[test]
fn rules_are_those_of_the_name_that_the_key_has_now() {
    let server = Server::with(&[(
        "presence.rules",
        "a lease-ttl-ms=100000 history-length=0; b lease-ttl-ms=200000 max-users-per-space=1",
    )]);
    let mut c = server.connect();
    let renames: [fn(&mut Conn, &str, &str); 3] = [
        |c, from, to| drop(c.ok(["RENAME", from, to])),
        |c, from, to| {
            c.ok("MULTI");
            c.ok(["RENAME", from, "between"]);
            c.ok(["RENAME", "between", to]);
            c.ok("EXEC");
        },
        |c, from, to| drop(c.ok(["EVAL", "redis.call('RENAME', KEYS[1], KEYS[2])", "2", from, to])),
    ];
    for rename in renames {
        assert_eq!(usual_lease(&mut c, "a"), 100_000);
        rename(&mut c, "a", "b");
        assert_eq!(usual_lease(&mut c, "b"), 200_000);
        assert!(c.err("PRESENCE.ONLINE b second").contains("max-users-per-space is 1"));
        rename(&mut c, "b", "c");
        assert_eq!(usual_lease(&mut c, "c"), 30_000);
        c.ok("PRESENCE.ONLINE c second");
        assert_eq!(kept(&mut c, "c"), 1, "history-length is global again");
        rename(&mut c, "c", "a");
        assert_eq!(usual_lease(&mut c, "a"), 100_000);
        assert_eq!(kept(&mut c, "a"), 0);
        // A copy has the rule of its own name, and the original keeps its own.
        c.ok("COPY a b");
        assert_eq!((usual_lease(&mut c, "b"), usual_lease(&mut c, "a")), (200_000, 100_000));
        c.ok("MOVE b 1");
        c.ok("SELECT 1");
        assert_eq!(usual_lease(&mut c, "b"), 200_000);
        c.ok("SELECT 0");
        c.ok("FLUSHALL");
    }
}

/// Also when the timer is to look at a space: one that keeps its history for long is deleted soon after the rule for it
/// says so, and a renamed one by its new name.
#[test]
fn rules_that_change_hold_at_once() {
    let server = Server::with(&[("presence.history-ttl-ms", "600000")]);
    let mut c = server.connect();
    for space in ["a", "b", "c"] {
        c.ok(["PRESENCE.ONLINE", space, "x"]);
        c.ok(["PRESENCE.OFFLINE", space, "x"]);
        assert_eq!(kept(&mut c, space), 2);
    }
    set_rules(&mut c, "a history-length=1; b history-ttl-ms=1");
    assert_eq!((kept(&mut c, "a"), kept(&mut c, "c")), (1, 2));
    wait_until("b to be deleted", SOON, || c.int("EXISTS b") == 0);
    assert_eq!(c.int("EXISTS a c"), 2);
    c.ok("RENAME c b");
    wait_until("it to be deleted under its new name", SOON, || c.int("EXISTS b c") == 0);
    set_rules(&mut c, "");
    assert_eq!(usual_lease(&mut c, "a"), 30_000);
    set_rules(&mut c, "[a-c] lease-ttl-ms=70000");
    assert_eq!(usual_lease(&mut c, "a"), 70_000);
    // CLOSE without a time takes that of the space.
    set_rules(&mut c, "a history-ttl-ms=1");
    c.ok("PRESENCE.CLOSE a");
    wait_until("the closed space to be over", SOON, || c.int("EXISTS a") == 0);
}

#[test]
fn rules_that_are_bad_are_refused_with_their_place() {
    let server = Server::start();
    let mut c = server.connect();
    let good = "a* history-length=1; b lease-ttl-ms=5";
    set_rules(&mut c, good);
    for (bad, place) in [
        ("a", "rule 1 at byte 0: a setting is missing after the pattern"),
        ("a history-length=2; b  junk=1", "rule 2 at byte 23: rules have no setting 'junk'"),
        ("a feed-bytes=1", "rule 1 at byte 2: rules have no setting 'feed-bytes'"),
        ("a channel-prefix=x", "rule 1 at byte 2: rules have no setting"),
        ("a lease-ttl-ms=0", "lease-ttl-ms is a number from 1 to 31536000000, not '0'"),
        ("a history-length=99999999999999999999", "history-length is a number"),
        ("a user-channels=maybe", "user-channels is no, transitions, all, not 'maybe'"),
        ("a max-seen=1 max-seen=2", "rule 1 at byte 13: max-seen is there twice"),
    ] {
        let error = c.err(["CONFIG", "SET", "presence.rules", bad]);
        assert!(error.contains(place), "{bad}: {error}");
        assert_eq!(rules(&mut c), good);
    }
    c.err(args!["CONFIG", "SET", "presence.rules", &b"a\xff max-seen=1"[..]]);
    c.err(args!["CONFIG", "SET", "presence.rules", &b"a\0 max-seen=1"[..]]);
    c.err(["CONFIG", "SET", "presence.rules", &" ".repeat(40_000)]);
    c.err(["CONFIG", "SET", "presence.rules", "a\r\nb"]);
    // Refused together with another setting, or as part of it, it changes nothing.
    c.err(["CONFIG", "SET", "presence.rules", "a history-length=0", "presence.lease-ttl-ms", "0"]);
    assert_eq!(rules(&mut c), good);
    c.ok("PRESENCE.ONLINE a USERS 3 x y z");
    assert_eq!(kept(&mut c, "a"), 1);
    assert!(Server::builder().config("presence.rules", "a lease-ttl-ms=0").try_start().is_err());
    // Patterns that would take long to match, and many rules, are no danger.
    let hostile = format!("{} history-length=0", "*a".repeat(500));
    set_rules(&mut c, &hostile);
    let name = "a".repeat(4000);
    let began = std::time::Instant::now();
    c.ok(["PRESENCE.ONLINE", &name, "x"]);
    assert_eq!(kept(&mut c, &name), 0);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    set_rules(&mut c, &"*b max-seen=1;".repeat(256));
    assert!(
        c.err(["CONFIG", "SET", "presence.rules", &"*b max-seen=1;".repeat(257)])
            .contains("256 rules")
    );
}

/// White space and quotes come back as they were, also from a file that CONFIG REWRITE wrote. A server that could not
/// read such a file does not take the quotes.
#[test]
fn rules_are_kept_by_config_rewrite() {
    let server = Server::start();
    let mut c = server.connect();
    let plain =
        "room:* history-length=0;\t[!x]'\u{1F600}? max-users-per-space=2\n; * lease-ttl-ms=5000";
    let quoted = "\"a\\*b\" history-length=0; 'c' lease-ttl-ms=7000";
    for text in [plain, quoted, ""] {
        if let Err(error) = c.try_cmd(["CONFIG", "SET", "presence.rules", text]) {
            assert!(text == quoted && error.contains("CONFIG REWRITE of this server"), "{error}");
            eprintln!("this server cannot rewrite quotes");
            continue;
        }
        assert_eq!(rules(&mut c), text);
        c.ok("CONFIG REWRITE");
        server.restart(Stop::NoSave);
        c = server.connect();
        assert_eq!(rules(&mut c), text);
        if text == quoted {
            assert_eq!((usual_lease(&mut c, "\"a*b\""), kept(&mut c, "\"a*b\"")), (30_000, 0));
            assert_eq!((usual_lease(&mut c, "'c'"), kept(&mut c, "\"axb\"")), (7000, 0));
        }
    }
}

/// A primary's rules decide what replicas and the AOF keep.
#[test]
fn rules_are_decided_by_the_primary() {
    let first = primary()
        .config("presence.rules", "s history-length=2 max-users-per-space=9")
        .aof()
        .start();
    let second = replica_of(&first).start();
    let (mut c, mut r) = (first.connect(), second.connect());
    c.ok("PRESENCE.ONLINE s USERS 5 a b c d e EX 600");
    sync(&mut c, &mut r);
    assert_eq!(c.digest("s"), r.digest("s"));
    r.ok("CONFIG SET presence.history-length 1000");
    assert_eq!(kept(&mut r, "s"), 2);
    first.restart(Stop::NoSave);
    let mut c = first.connect();
    assert_eq!((kept(&mut c, "s"), c.int("PRESENCE.COUNT s")), (2, 5));
}
