//! What is wrong gets an error that names it, and nothing has changed.

use crate::harness::*;

/// A server with one space `s`, a subscriber to everything, and what must not change.
struct Fixture {
    server: Server,
    c: Conn,
    sub: Subscriber,
    before: Vec<(Value, String)>,
    keys: i64,
}

const SPACES: [&str; 2] = ["s", "other"];

impl Fixture {
    fn new(config: &[(&str, &str)]) -> Fixture {
        let server = Server::with(config);
        let mut c = server.connect();
        c.ok("PRESENCE.ONLINE s a META {\"k\":1} EX 5000");
        c.ok("PRESENCE.ONLINE s SESSIONS 3 a x b y c z EX 6000");
        c.ok("PRESENCE.ONLINE other a EX 5000");
        for line in [
            "SET string 1",
            "RPUSH list 1",
            "HSET hash k v",
            "XADD stream * k v",
            "SADD set 1",
            "ZADD zset 1 1",
            "SETEX brief 5000 v",
        ] {
            c.ok(line);
        }
        let sub = server.psubscribe(&["*"]);
        let mut f = Fixture { server, c, sub, before: Vec::new(), keys: 0 };
        f.before = f.state();
        f.keys = f.c.int("DBSIZE");
        f
    }

    fn state(&mut self) -> Vec<(Value, String)> {
        let c = &mut self.c;
        SPACES.iter().map(|s| (c.ok(["PRESENCE.SPACE", s, "WITHSESSIONS"]), c.digest(s))).collect()
    }

    /// The command gets an error with one of `words` in it (any case), and changes nothing.
    #[track_caller]
    fn refused(&mut self, args: impl Args, words: &[&str]) {
        let args = args.args();
        let shown = show(&args);
        let error = match self.c.try_cmd(&args[..]) {
            Err(e) => e,
            Ok(reply) => panic!("{shown}: accepted, {reply:?}"),
        };
        let lower = error.to_lowercase();
        assert!(
            words.iter().any(|w| lower.contains(&w.to_lowercase())),
            "{shown}: {error:?} says nothing of {words:?}"
        );
        self.unchanged(&shown);
    }

    #[track_caller]
    fn unchanged(&mut self, after: &str) {
        assert_eq!(self.state(), self.before, "changed by {after}");
        let told = self.sub.so_far(&mut self.c);
        assert!(told.is_empty(), "published by {after}: {told:?}");
        assert_eq!(self.c.int("DBSIZE"), self.keys, "keys after {after}");
        assert!(self.server.alive());
    }
}

#[test]
fn wrong_arity() {
    let mut f = Fixture::new(&[]);
    for line in [
        "PRESENCE.ONLINE",
        "PRESENCE.ONLINE s",
        "PRESENCE.OFFLINE",
        "PRESENCE.OFFLINE s",
        "PRESENCE.STATUS",
        "PRESENCE.STATUS s",
        "PRESENCE.USER",
        "PRESENCE.USER s",
        "PRESENCE.USER s a b",
        "PRESENCE.SPACE",
        "PRESENCE.COUNT",
        "PRESENCE.SEEN",
        "PRESENCE.SEEN s",
        "PRESENCE.READ",
        "PRESENCE.READ SPACES s",
    ] {
        f.refused(line, &["wrong number of arguments"]);
    }
}

#[test]
fn unknown_doubled_and_contradicting_options() {
    let mut f = Fixture::new(&[]);
    for (line, word) in [
        ("PRESENCE.ONLINE s a WHAT", "what"),
        ("PRESENCE.ONLINE s a EX 10 WHAT", "what"),
        ("PRESENCE.ONLINE s a b", "b"),
        ("PRESENCE.ONLINE s a KEEPTTL", "keepttl"),
        ("PRESENCE.ONLINE s a LINGER 10", "linger"),
        ("PRESENCE.ONLINE s a SESSION", "session"),
        ("PRESENCE.ONLINE s a META", "meta"),
        ("PRESENCE.ONLINE s a EX", "ex"),
        ("PRESENCE.ONLINE s a NX PX", "px"),
        ("PRESENCE.ONLINE s a EX 10 EX 10", "ex"),
        ("PRESENCE.ONLINE s a EX 10 PX 10000", "px"),
        ("PRESENCE.ONLINE s a PX 10000 EXAT 99999999999", "exat"),
        ("PRESENCE.ONLINE s a PXAT 99999999999999 PX 10000", "px"),
        ("PRESENCE.ONLINE s a NX XX", "xx"),
        ("PRESENCE.ONLINE s a XX NX", "nx"),
        ("PRESENCE.ONLINE s a NX NX", "nx"),
        ("PRESENCE.ONLINE s a XX XX", "xx"),
        ("PRESENCE.ONLINE s a SESSION x SESSION x", "session"),
        ("PRESENCE.ONLINE s a META 1 META 1", "meta"),
        ("PRESENCE.ONLINE s USERS 1 a NX", "nx"),
        ("PRESENCE.ONLINE s USERS 1 a XX XX", "xx"),
        ("PRESENCE.ONLINE s USERS 1 a XX NX", "nx"),
        ("PRESENCE.ONLINE s USERS 1 a META 1", "meta"),
        ("PRESENCE.ONLINE s USERS 1 a SESSION x", "session"),
        ("PRESENCE.ONLINE s SESSIONS 1 a x META 1", "meta"),
        ("PRESENCE.ONLINE s USERS 1 a USERS 1 b", "users"),
        ("PRESENCE.ONLINE s EX 10 USERS 1 a", "10"),
        ("PRESENCE.OFFLINE s a WHAT", "what"),
        ("PRESENCE.OFFLINE s a SESSION", "session"),
        ("PRESENCE.OFFLINE s a LINGER", "linger"),
        ("PRESENCE.OFFLINE s a SESSION x SESSION x", "session"),
        ("PRESENCE.OFFLINE s a LINGER 10 LINGER 10", "linger"),
        ("PRESENCE.OFFLINE s a EX 10", "ex"),
        ("PRESENCE.OFFLINE s a NX", "nx"),
        ("PRESENCE.OFFLINE s a META 1", "meta"),
        ("PRESENCE.OFFLINE s USERS 1 a SESSION x", "session"),
        ("PRESENCE.OFFLINE s SESSIONS 1 a x WHAT", "what"),
        ("PRESENCE.SPACE s WHAT", "what"),
        ("PRESENCE.SPACE s CURSOR", "cursor"),
        ("PRESENCE.SPACE s COUNT", "count"),
        ("PRESENCE.SPACE s COUNT 1 COUNT 1", "count"),
        ("PRESENCE.SPACE s CURSOR 0 CURSOR 0", "cursor"),
        ("PRESENCE.SPACE s WITHSESSIONS WITHSESSIONS", "withsessions"),
        ("PRESENCE.SPACE s JSON WITHSESSIONS JSON", "json"),
        ("PRESENCE.SPACES WHAT", "what"),
        ("PRESENCE.SPACES MATCH", "match"),
        ("PRESENCE.COUNT s WHAT", "what"),
        ("PRESENCE.COUNT s SESSIONS SESSIONS", "sessions"),
        ("PRESENCE.COUNT s SESSIONS 1", "1"),
    ] {
        f.refused(line, &["syntax", word]);
    }
}

#[test]
fn bad_times() {
    let mut f = Fixture::new(&[]);
    let forms = [
        "PRESENCE.ONLINE s a",
        "PRESENCE.ONLINE s new",
        "PRESENCE.ONLINE none a",
        "PRESENCE.ONLINE s USERS 2 a new",
        "PRESENCE.ONLINE s SESSIONS 1 a x",
    ];
    let invalid = "ERR invalid expire time in 'presence.online' command";
    let no_integer = "ERR value is not an integer or out of range";
    let (past_s, past_ms) = ((now_ms() / 1000 - 10).to_string(), (now_ms() - 1000).to_string());
    for form in forms {
        for unit in ["EX", "PX", "EXAT", "PXAT"] {
            for time in ["0", "-1", "-9223372036854775808"] {
                f.refused(format!("{form} {unit} {time}"), &[invalid]);
            }
            // Beyond an i64, with a fraction, with junk.
            for time in [
                "9223372036854775808",
                "99999999999999999999",
                "1.5",
                "1e3",
                "10s",
                "0x10",
                "+",
                "-",
                "abc",
                "1_000",
                "٣",
            ] {
                f.refused(format!("{form} {unit} {time}"), &[no_integer]);
            }
            for time in ["", " 1", "1 ", "1\0", "1\n"] {
                f.refused([form.args(), args![unit, time]].concat(), &[no_integer]);
            }
        }
        // Overflows once it is in milliseconds, or once now is added.
        for words in [
            "EX 9223372036854775807",
            "EX 9223372036854775",
            "EX 9223372036854776",
            "EXAT 9223372036854775807",
            "EXAT 9223372036854776",
        ] {
            f.refused(format!("{form} {words}"), &[invalid]);
        }
        f.refused(format!("{form} PX 9223372036854775807"), &[invalid]);
        f.refused(format!("{form} EXAT {past_s}"), &[invalid]);
        f.refused(format!("{form} PXAT {past_ms}"), &[invalid]);
        f.refused(format!("{form} PXAT 1"), &[invalid]);
        // Longer than presence.max-lease-ttl-ms, a day.
        for words in [
            "EX 86401".to_string(),
            "PX 86400001".into(),
            format!("PXAT {}", now_ms() + 86_500_000),
            format!("EXAT {}", now_ms() / 1000 + 86_500),
            "PXAT 9223372036854775807".into(),
        ] {
            f.refused(format!("{form} {words}"), &["invalid expire time", "max-lease-ttl"]);
        }
    }
    f.c.ok("CONFIG SET presence.max-lease-ttl-ms 60000");
    f.refused("PRESENCE.ONLINE s a PX 60001", &["invalid expire time", "max-lease-ttl"]);
    for word in ["-1", "-9223372036854775808", "1.5", "junk", "", "99999999999999999999"] {
        f.refused(["PRESENCE.OFFLINE", "s", "a", "LINGER", word], &["linger", "integer", "time"]);
        f.refused(
            ["PRESENCE.OFFLINE", "s", "USERS", "1", "a", "LINGER", word],
            &["linger", "integer", "time"],
        );
    }
}

#[test]
fn bad_lists_are_refused_whole() {
    let mut f = Fixture::new(&[]);
    let long = "x".repeat(513);
    for command in ["PRESENCE.ONLINE", "PRESENCE.OFFLINE"] {
        for (words, about) in [
            ("USERS 0", "users"),
            ("USERS 0 a", "users"),
            ("USERS -1 a", "users"),
            ("USERS 1", "users"),
            ("USERS 3 a b", "users"),
            ("USERS 1 a b", "b"),
            ("USERS 2 a", "users"),
            ("USERS 99999999999999999999 a", "users"),
            ("USERS 9223372036854775807 a", "users"),
            ("USERS 1.5 a", "users"),
            ("USERS 1x a", "users"),
            ("USERS 18446744073709551616 a", "users"),
            ("USERS 4294967297 a", "users"),
            ("SESSIONS 0", "sessions"),
            ("SESSIONS 0 a x", "sessions"),
            ("SESSIONS 1 a", "sessions"),
            ("SESSIONS 2 a x b", "sessions"),
            ("SESSIONS 1 a x b", "b"),
            ("SESSIONS -1 a x", "sessions"),
            ("SESSIONS 4611686018427387905 a x", "sessions"),
            ("SESSIONS 9223372036854775807 a x", "sessions"),
            ("SESSIONS 99999999999999999999 a x", "sessions"),
        ] {
            f.refused(format!("{command} s {words}"), &["syntax", about, "integer", "number"]);
        }
        // One bad name, last, and nobody before it has come or gone.
        f.refused([command, "s", "USERS", "3", "new", "a", ""], &["user"]);
        f.refused([command, "s", "USERS", "3", "new", "a", &long], &["user"]);
        f.refused(args![command, "s", "USERS", 3, "new", "a", b"\xff"], &["user"]);
        f.refused([command, "s", "SESSIONS", "2", "new", "x", "", "x"], &["user"]);
        f.refused([command, "s", "SESSIONS", "2", "new", "x", "a", &long], &["session"]);
        f.refused(args![command, "s", "SESSIONS", 2, "new", "x", "a", b"a\xc0\x80"], &["session"]);
        f.refused([command, "none", "USERS", "2", "new", ""], &["user"]);
    }
}

#[test]
fn bad_names() {
    let mut f = Fixture::new(&[]);
    let long = "x".repeat(513);
    // Not UTF-8: a lone byte, a cut sequence, an overlong NUL, a surrogate, beyond U+10FFFF.
    let raw: [&[u8]; 5] =
        [b"\xff", b"ab\xe2\x82", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"];
    for command in ["PRESENCE.ONLINE", "PRESENCE.OFFLINE", "PRESENCE.USER", "PRESENCE.STATUS"] {
        f.refused([command, "s", ""], &["user"]);
        f.refused([command, "s", &long], &["512"]);
        f.refused([command, "s", &"x".repeat(1_000_000)], &["user"]);
        raw.iter().for_each(|bytes| f.refused(args![command, "s", bytes], &["user"]));
    }
    f.refused(["PRESENCE.STATUS", "s", "a", ""], &["user"]);
    for command in ["PRESENCE.ONLINE", "PRESENCE.OFFLINE"] {
        f.refused([command, "s", "a", "SESSION", &long], &["512"]);
        f.refused([command, "s", "a", "SESSION", &long], &["session"]);
        raw.iter()
            .for_each(|bytes| f.refused(args![command, "s", "a", "SESSION", bytes], &["session"]));
    }
}

#[test]
fn bad_metadata() {
    let mut f = Fixture::new(&[]);
    let meta = |json: &[u8]| args!["PRESENCE.ONLINE", "s", "a", "META", json];
    for json in [
        "",
        " ",
        "{",
        "}",
        "{\"a\":}",
        "{'a':1}",
        "{a:1}",
        "[1,]",
        "[1,,2]",
        "nul",
        "nulll",
        "NULL",
        "True",
        "01",
        "1.",
        ".5",
        "+1",
        "1 2",
        "{}{}",
        "null null",
        "NaN",
        "Infinity",
        "-",
        "\"",
        "\"\\x\"",
        "\"a\nb\"",
        "\"\0\"",
        "{}\0",
        "[1] x",
        "// c\n1",
        "{\"a\":1,}",
    ] {
        f.refused(meta(json.as_bytes()), &["meta"]);
    }
    f.refused(meta(b"\"\xff\""), &["meta"]);
    f.refused(meta(b"\xef\xbb\xbf1"), &["meta"]); // no byte order mark
    for depth in [129, 200, 2000] {
        let arrays = "[".repeat(depth) + &"]".repeat(depth);
        let objects = "{\"a\":".repeat(depth.min(600)) + "1" + &"}".repeat(depth.min(600));
        f.refused(meta(arrays.as_bytes()), &["meta"]);
        f.refused(meta(objects.as_bytes()), &["meta"]);
    }
    f.refused(meta("[".repeat(4000).as_bytes()), &["meta"]);
    f.refused(meta(format!("\"{}\"", "x".repeat(4095)).as_bytes()), &["4096"]);
    f.refused(meta(format!("\"{}\"", "x".repeat(10_000_000)).as_bytes()), &["meta"]);
    f.refused(meta(format!("{}null", " ".repeat(5000)).as_bytes()), &["meta"]);
    f.c.ok("CONFIG SET presence.max-meta-bytes 10");
    f.refused(meta(b"[1,2,3,4,5,6]"), &["10"]);
    // A bad value beside an option that would not have been met is still an error.
    f.refused("PRESENCE.ONLINE s nobody XX META {", &["meta"]);
    f.refused("PRESENCE.ONLINE s a NX EX 0", &["invalid expire time"]);
}

#[test]
fn bad_pages() {
    let mut f = Fixture::new(&[]);
    for (words, about) in [
        ("COUNT 0", "count"),
        ("COUNT -1", "count"),
        ("COUNT junk", "count"),
        ("COUNT 1.5", "count"),
        ("COUNT 99999999999999999999", "count"),
        ("CURSOR -1", "cursor"),
        ("CURSOR junk", "cursor"),
        ("CURSOR 1.5", "cursor"),
        ("CURSOR 99999999999999999999", "cursor"),
        ("CURSOR 0 COUNT", "count"),
    ] {
        for space in ["s", "none"] {
            f.refused(format!("PRESENCE.SPACE {space} {words}"), &["syntax", "integer", about]);
        }
    }
    f.refused(["PRESENCE.SPACE", "s", "CURSOR", ""], &["cursor"]);
}

/// Numbers have one form, as in core commands: digits, at most a minus sign in front, no more digits than needed.
#[test]
fn numbers_have_one_form() {
    let mut f = Fixture::new(&[]);
    let forms: [&[u8]; 16] = [
        b"+5",
        b"007",
        b"00",
        b"-0",
        b"1e3",
        b"0x10",
        b" 5",
        b"5 ",
        b"5\n",
        b"5\0",
        b"5.0",
        b"5,0",
        b"--5",
        b"",
        b"99999999999999999999",
        "\u{665}".as_bytes(),
    ];
    let calls = [
        "PRESENCE.ONLINE s a EX #",
        "PRESENCE.ONLINE s a PX #",
        "PRESENCE.ONLINE s a EXAT #",
        "PRESENCE.ONLINE s a PXAT #",
        "PRESENCE.ONLINE s USERS 1 a PX #",
        "PRESENCE.ONLINE s USERS # a b c d e",
        "PRESENCE.ONLINE s SESSIONS # a b c d e f g h i j",
        "PRESENCE.OFFLINE s a LINGER #",
        "PRESENCE.OFFLINE s USERS # a b c d e",
        "PRESENCE.OFFLINE s SESSIONS # a b c d e f g h i j",
        "PRESENCE.CLOSE s EX #",
        "PRESENCE.CLOSE s PX #",
        "PRESENCE.SPACE s COUNT #",
        "PRESENCE.SPACE s CURSOR #",
        "PRESENCE.SPACE s CURSOR # COUNT 1",
        "PRESENCE.EVENTS s COUNT #",
        "PRESENCE.EVENTS s BLOCK #",
        "PRESENCE.EVENTS s AFTER #",
        "PRESENCE.EVENTS s AFTER #-1",
        "PRESENCE.EVENTS s AFTER 1-#",
        "PRESENCE.READ COUNT # SPACES s 0",
        "PRESENCE.READ BLOCK # SPACES s 0",
        "PRESENCE.READ SPACES s t 0 #-1",
        "PRESENCE.FEED COUNT #",
        "PRESENCE.FEED BLOCK #",
        "PRESENCE.READ SPACES s 1-#",
    ];
    for call in calls {
        for form in forms {
            let word = |word: &str| match word.split_once('#') {
                Some((before, behind)) => [before.as_bytes(), form, behind.as_bytes()].concat(),
                None => word.as_bytes().to_vec(),
            };
            let words: Vec<Vec<u8>> = call.split(' ').map(word).collect();
            let about = ["integer", "count", "cursor", "id", "syntax", "needs"];
            f.refused(words, &about);
        }
    }
    // The numbers themselves are fine.
    for cursor in ["0", "5", "9007199254740993", "18446744073709551615"] {
        f.c.ok(["PRESENCE.SPACE", "s", "CURSOR", cursor]);
    }
}

#[test]
fn another_type_at_the_key() {
    let mut f = Fixture::new(&[]);
    for key in ["string", "list", "hash", "stream", "set", "zset", "brief"] {
        let dump = f.c.ok(["DUMP", key]);
        for line in [
            "PRESENCE.ONLINE K a",
            "PRESENCE.ONLINE K a NX",
            "PRESENCE.ONLINE K a XX",
            "PRESENCE.ONLINE K USERS 2 a b",
            "PRESENCE.ONLINE K SESSIONS 1 a x",
            "PRESENCE.OFFLINE K a",
            "PRESENCE.OFFLINE K a SESSION x LINGER 5",
            "PRESENCE.OFFLINE K USERS 1 a",
            "PRESENCE.STATUS K a b",
            "PRESENCE.USER K a",
            "PRESENCE.SPACE K",
            "PRESENCE.SPACE K WITHSESSIONS COUNT 1",
            "PRESENCE.COUNT K",
            "PRESENCE.COUNT K SESSIONS",
            "PRESENCE.SEEN K a b",
            "PRESENCE.READ SPACES other K 0 0",
        ] {
            let error = f.c.err(line.replace('K', key));
            assert!(error.starts_with("WRONGTYPE "), "{line}: {error}");
        }
        assert_eq!(f.c.ok(["DUMP", key]), dump, "{key} is as it was");
    }
    f.unchanged("WRONGTYPE");
    // And other types' commands on a space.
    for line in [
        "GET s",
        "LPUSH s 1",
        "HGETALL s",
        "XADD s * k v",
        "INCR s",
        "ZADD s 1 1",
        "SADD s 1",
        "APPEND s x",
        "PFADD s x",
    ] {
        assert!(f.c.err(line).starts_with("WRONGTYPE "), "{line}");
    }
    f.unchanged("commands of other types");
}

#[test]
fn limits_refuse_the_new_and_let_the_old_be() {
    let mut f = Fixture::new(&[
        ("presence.max-sessions-per-user", "2"),
        ("presence.max-users-per-space", "4"),
    ]);
    f.refused("PRESENCE.ONLINE s a SESSION third", &["max-sessions-per-user", "2"]);
    f.refused("PRESENCE.ONLINE s SESSIONS 2 b second a third", &["max-sessions-per-user", "2"]);
    f.refused("PRESENCE.ONLINE s SESSIONS 3 d 1 d 2 d 3", &["max-sessions-per-user", "2"]);
    f.refused("PRESENCE.ONLINE s USERS 2 d e", &["max-users-per-space", "4"]);
    let c = &mut f.c;
    assert_eq!(c.int("PRESENCE.ONLINE s a SESSION x EX 6000"), 0, "a renewal at the limit");
    assert_eq!(c.int("PRESENCE.ONLINE s USERS 2 d a EX 5000"), 1, "up to the limit");
    assert!(c.err("PRESENCE.ONLINE s e").to_lowercase().contains("users"));
    assert_eq!(c.int("PRESENCE.ONLINE s SESSIONS 3 d 1 d 1 d 1"), 0, "duplicates count once");
    assert_eq!(c.int("PRESENCE.ONLINE s USERS 3 d d d"), 0);
    assert_eq!(c.int("PRESENCE.OFFLINE s b"), 1);
    assert_eq!(c.int("PRESENCE.ONLINE s e"), 1, "whoever goes makes room");
    assert_eq!(c.int("PRESENCE.ONLINE third USERS 4 a b c d"), 4, "each space has its own");
    // Who has lapsed takes no room, swept or not: the server sleeps past the lease and has had no time to sweep.
    let lines = [
        "DEL s",
        "PRESENCE.ONLINE s USERS 4 a b c d PX 30",
        "DEBUG SLEEP 0.06",
        "PRESENCE.ONLINE s USERS 4 e f g h",
    ];
    lines.iter().for_each(|l| c.send(*l).unwrap());
    let replies: Vec<_> = lines.iter().map(|_| c.recv()).collect();
    assert_eq!(replies[3], Ok(Value::Int(4)));
    assert_eq!(c.int("PRESENCE.COUNT s"), 4);
    // A lingering session counts as a live one.
    c.ok("PRESENCE.ONLINE lingering a SESSION x EX 6000");
    c.ok("CONFIG SET presence.max-sessions-per-user 1");
    c.ok("PRESENCE.OFFLINE lingering a SESSION x LINGER 60000");
    let error = c.err("PRESENCE.ONLINE lingering a SESSION y");
    assert!(error.contains("presence.max-sessions-per-user is 1"), "{error}");
    c.ok("CONFIG SET presence.max-users-per-space 1");
    let error = c.err("PRESENCE.ONLINE lingering b");
    assert!(error.contains("presence.max-users-per-space is 1"), "{error}");
    // A limit that shrinks throws nobody out.
    c.ok("CONFIG SET presence.max-users-per-space 1");
    c.ok("CONFIG SET presence.max-sessions-per-user 1");
    assert_eq!(c.int("PRESENCE.ONLINE s USERS 4 e f g h"), 0);
    assert!(c.try_cmd("PRESENCE.ONLINE s i").is_err());
    assert!(c.try_cmd("PRESENCE.ONLINE s e SESSION second").is_err());
    assert_eq!(c.int("PRESENCE.COUNT s SESSIONS"), 4);
}

#[test]
fn out_of_memory_refuses_new_sessions_only() {
    let mut f = Fixture::new(&[]);
    f.c.ok("CONFIG SET maxmemory 1");
    for line in [
        "PRESENCE.ONLINE s new",
        "PRESENCE.ONLINE s a SESSION new",
        "PRESENCE.ONLINE none a",
        "PRESENCE.ONLINE s USERS 2 a new",
        "PRESENCE.ONLINE s SESSIONS 2 a x new x",
        "PRESENCE.ONLINE s new NX",
    ] {
        let error = f.c.err(line);
        assert!(error.starts_with("OOM "), "{line}: {error}");
        f.unchanged(line);
    }
    let c = &mut f.c;
    assert_eq!(c.int("PRESENCE.ONLINE s a EX 7000"), 0, "a renewal is never refused for memory");
    assert_eq!(c.int("PRESENCE.ONLINE s USERS 1 a"), 0);
    assert_eq!(c.int("PRESENCE.ONLINE s SESSIONS 2 a x b y"), 0);
    assert!(c.is_null("PRESENCE.ONLINE s new XX"));
    assert!(c.is_null("PRESENCE.ONLINE s a NX"));
    assert_eq!(c.ints("PRESENCE.STATUS s a b"), [2, 1]);
    assert_eq!(c.int("PRESENCE.OFFLINE s c"), 1, "leaving is always possible");
    assert_eq!(c.int("PRESENCE.ONLINE s a PX 50"), 0);
    wait_until("a lease to lapse out of memory", SOON, || c.int("PRESENCE.COUNT s SESSIONS") == 2);
    c.ok("CONFIG SET maxmemory 0");
    assert_eq!(c.int("PRESENCE.ONLINE s new"), 1);
}

/// A space that was closed and is over is as good as gone, but only a command that does something takes
/// it away. The server does nothing else meanwhile, so no sweep does.
#[test]
fn a_space_that_is_over_stays_for_what_is_refused() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s a");
    let replies = c.batch([
        "PRESENCE.CLOSE s PX 1",
        "DEBUG SLEEP 0.02",
        "PRESENCE.ONLINE s a EX 0",
        "DBSIZE",
        "PRESENCE.ONLINE s a NX XX",
        "DBSIZE",
        "PRESENCE.ONLINE s a",
    ]);
    assert_eq!([&replies[3], &replies[5], &replies[6]], [&Ok(Value::Int(1)); 3]);
    assert_eq!(c.space("s").names(), ["a"]);
}

// --- names of spaces -------------------------------------------------------------------------------------------------

const LONGEST: usize = 4096;

/// A call of each command that takes a space, and of each of its forms.
fn calls(space: &str) -> Vec<Vec<Vec<u8>>> {
    vec![
        args!["PRESENCE.ONLINE", space, "a"],
        args!["PRESENCE.ONLINE", space, "a", "XX"],
        args!["PRESENCE.ONLINE", space, "USERS", 2, "a", "b"],
        args!["PRESENCE.ONLINE", space, "SESSIONS", 1, "a", "x"],
        args!["PRESENCE.OFFLINE", space, "b"],
        args!["PRESENCE.OFFLINE", space, "USERS", 1, "b", "LINGER", 10],
        args!["PRESENCE.STATUS", space, "a"],
        args!["PRESENCE.USER", space, "a"],
        args!["PRESENCE.SPACE", space],
        args!["PRESENCE.SPACE", space, "COUNT", 1],
        args!["PRESENCE.COUNT", space],
        args!["PRESENCE.EVENTS", space],
        args!["PRESENCE.EVENTS", space, "AFTER", "$", "BLOCK", 1],
        args!["PRESENCE.READ", "SPACES", space, "0"],
        args!["PRESENCE.READ", "BLOCK", 1, "SPACES", "other", space, "$", "$"],
        args!["PRESENCE.MESSAGE", space, "a", "hello"],
        args!["PRESENCE.CLOSE", space],
    ]
}

#[test]
fn names_of_spaces_have_an_end_in_every_command() {
    let mut f = Fixture::new(&[]);
    for long in ["x".repeat(LONGEST + 1), "\u{e9}".repeat(LONGEST / 2 + 1), "y".repeat(1 << 20)] {
        for call in calls(&long) {
            f.refused(call, &["space is longer than 4096 bytes"]);
        }
        f.refused(
            args!["EVAL", "return redis.call('PRESENCE.COUNT', KEYS[1])", 1, long],
            &["4096"],
        );
    }
    // The longest that there is.
    let longest = "x".repeat(LONGEST);
    for call in calls(&longest) {
        f.c.ok(call);
    }
    // A long name of another type says that it is one.
    let string = "s".repeat(LONGEST + 1);
    f.c.ok(["SET", &string, "1"]);
    for call in calls(&string) {
        assert!(f.c.err(call).starts_with("WRONGTYPE"));
    }
}

/// A longer name comes by RENAME, COPY, RESTORE or MOVE. Such a space is served, and its events carry the first bytes.
#[test]
fn a_space_whose_name_became_longer_is_served() {
    let server = Server::start();
    let mut c = server.connect();
    let names = [
        ("x".repeat(LONGEST + 1), "x".repeat(LONGEST)),
        ("x".repeat(LONGEST - 1) + "\u{1F600}", "x".repeat(LONGEST - 1)),
        ("z".repeat(200_000), "z".repeat(LONGEST)),
    ];
    for (n, (long, shown)) in names.iter().enumerate() {
        let from = format!("from{n}");
        c.ok(["PRESENCE.ONLINE", &from, "a", "PX", "600000"]);
        match n {
            0 => c.ok(["RENAME", &from, long]),
            1 => c.ok(["COPY", &from, long]),
            _ => {
                let Value::BulkString(dump) = c.ok(["DUMP", &from]) else { panic!() };
                c.ok(args!["RESTORE", long, 0, dump])
            }
        };
        let mut sub = server.subscribe(&[format!("presence:{long}")]);
        let mut waiting = server.connect();
        waiting.send(["PRESENCE.EVENTS", long, "AFTER", "$", "BLOCK", "0"]).unwrap();
        crate::history::waiting(&mut c, 1);
        assert_eq!(c.int(["PRESENCE.ONLINE", long, "b", "PX", "60"]), 1);
        let told = crate::history::answer(&mut waiting);
        let events = sub.events(2, SOON);
        assert_eq!(told.raws(), [&*events[0].raw]);
        assert_eq!(events[0].brief(), "join b");
        assert_eq!(events[1].brief(), "leave b (timeout)", "the sweep ends leases there");
        for event in &events {
            assert_eq!(event.str("space"), shown);
        }
        for call in calls(long) {
            c.ok(call);
        }
        assert_eq!(sub.events_so_far(&mut c).last().unwrap().kind(), "close");
        // The name is free again when the space is gone, and then too long.
        c.ok(["DEL", long]);
        assert!(c.err(["PRESENCE.ONLINE", long, "a"]).contains("space is longer than 4096 bytes"));
        assert!(c.err(["PRESENCE.COUNT", long]).contains("space is longer than 4096 bytes"));
        c.ok("FLUSHALL");
    }
    // Closed, and the time is over: it is not there, and cannot come again.
    let long = &names[2].0;
    c.ok("PRESENCE.ONLINE s a");
    c.ok(["RENAME", "s", long]);
    c.ok("PRESENCE.ONLINE s a");
    let replies = c.batch([
        args!["PRESENCE.CLOSE", long, "PX", 50],
        args!["DEBUG", "SLEEP", "0.1"],
        args!["PRESENCE.ONLINE", long, "a"],
        args!["PRESENCE.COUNT", long],
    ]);
    assert_eq!(replies[0], Ok(Value::Int(1)));
    for reply in &replies[2..] {
        assert!(reply.as_ref().unwrap_err().contains("space is longer than 4096 bytes"));
    }
    wait_until("the sweep to delete it", SOON, || c.int(["EXISTS", long]) == 0);
}

/// What was decided elsewhere is done under any name: on a replica, and from the AOF.
#[test]
fn a_longer_name_travels() {
    let server = Server::builder().aof().start();
    let r_server = crate::replication::replica_of(&server).start();
    let (mut c, mut r) = (server.connect(), r_server.connect());
    crate::replication::sync(&mut c, &mut r);
    let long = "z".repeat(100_000);
    c.ok("PRESENCE.ONLINE s USERS 2 a b EX 3600");
    c.ok(["RENAME", "s", &long]);
    c.ok(["PRESENCE.ONLINE", &long, "c", "EX", "3600"]);
    c.ok(["PRESENCE.OFFLINE", &long, "a"]);
    crate::replication::same(&mut c, &mut r);
    let before = c.space(&long);
    assert_eq!(before.names(), ["b", "c"]);
    server.restart(Stop::Kill);
    let after = server.connect().space(&long);
    assert_eq!((after.names(), &after.id), (before.names(), &before.id));
}
