//! PRESENCE.FEED: every event of a node in order, from any position on, and waiting for more.

use crate::harness::*;
use crate::history::waiting;
use std::collections::BTreeSet;

/// What PRESENCE.FEED says.
#[derive(Debug)]
struct Fed {
    position: String,
    gap: bool,
    events: Vec<Event>,
}

impl Fed {
    #[track_caller]
    fn parse(v: &Value) -> Fed {
        let [position, gap, events] = fields(v, ["position", "gap", "events"]);
        let gap = match gap {
            Value::Boolean(gap) => *gap,
            Value::Int(gap @ 0..=1) => *gap == 1,
            other => panic!("gap is {other:?}"),
        };
        let event = |v: &Value| {
            let Value::BulkString(payload) = v else { panic!("no event: {v:?}") };
            let message =
                Message { channel: Vec::new(), payload: payload.clone(), arrived: now_ms() };
            Event::parse(message)
        };
        Fed { position: text(position), gap, events: items(events).iter().map(event).collect() }
    }

    fn raws(&self) -> Vec<&str> {
        self.events.iter().map(|e| e.raw.as_str()).collect()
    }

    /// `space: event` each, in a line; `!` in front is a gap.
    fn brief(&self) -> String {
        let events: Vec<_> =
            self.events.iter().map(|e| format!("{}: {}", e.str("space"), e.brief())).collect();
        format!("{}{}", if self.gap { "! " } else { "" }, events.join(", "))
    }
}

#[track_caller]
fn feed(c: &mut Conn, words: &str) -> Fed {
    Fed::parse(&c.ok(format!("PRESENCE.FEED {words}").trim_end()))
}

#[track_caller]
fn answer(c: &mut Conn) -> Fed {
    Fed::parse(&c.recv().unwrap())
}

/// The position at which the feed stands.
#[track_caller]
fn here(c: &mut Conn) -> String {
    let fed = feed(c, "AFTER $");
    assert!(!fed.gap && fed.events.is_empty());
    fed.position
}

fn run(c: &mut Conn, lines: &[&str]) {
    lines.iter().for_each(|line| drop(c.ok(*line)));
}

const LINES: [&str; 10] = [
    "PRESENCE.ONLINE a u",
    "PRESENCE.ONLINE b u SESSION x META {\"k\":1}",
    "PRESENCE.ONLINE a USERS 3 v w u",
    "PRESENCE.ONLINE b u SESSION y",
    "PRESENCE.ONLINE b u SESSION y META 2",
    "PRESENCE.MESSAGE a u hello",
    "PRESENCE.OFFLINE b u",
    "PRESENCE.CLOSE a",
    "DEL a",
    "PRESENCE.ONLINE a again",
];

#[test]
fn feed_has_every_event_in_order() {
    let server = Server::with(&[("presence.history-length", "0")]);
    for mut c in [server.connect(), server.connect3()] {
        let mut sub = server.psubscribe(&["presence:*"]);
        let before = here(&mut c);
        run(&mut c, &LINES);
        c.ok("PRESENCE.ONLINE late z PX 1");
        wait_until("the sweep", SOON, || c.int("PRESENCE.COUNT late") == 0);
        let told = sub.events(13, SOON);
        let told: Vec<&str> = told.iter().map(|e| e.raw.as_str()).collect();
        let fed = feed(&mut c, &format!("AFTER {before}"));
        assert_eq!((fed.raws(), fed.gap), (told.clone(), false));
        // From the beginning too, and what is gone since is in it.
        c.ok("FLUSHALL");
        assert!(feed(&mut c, "").raws().ends_with(&told));
        assert!(!feed(&mut c, "").gap);
        // In pages: a position behind each event, no event twice.
        for count in [1, 2, 5, 100] {
            let (mut at, mut all) = (before.clone(), Vec::new());
            loop {
                let fed = feed(&mut c, &format!("COUNT {count} AFTER {at}"));
                assert!(!fed.gap && fed.events.len() <= count);
                if fed.events.is_empty() {
                    break;
                }
                all.extend(fed.events.into_iter().map(|e| e.raw));
                at = fed.position;
            }
            assert_eq!(all, told, "COUNT {count}");
        }
    }
}

#[test]
fn feed_has_its_shape_in_both_protocols() {
    let server = Server::start();
    server.connect().ok("PRESENCE.ONLINE a u");
    let v = server.connect().ok("PRESENCE.FEED");
    let Value::Array(flat) = &v else { panic!("RESP2: {v:?}") };
    assert_eq!((flat.len(), &flat[3]), (6, &Value::Int(0)));
    let v = server.connect3().ok("PRESENCE.FEED AFTER $ BLOCK 1");
    let Value::Map(pairs) = &v else { panic!("RESP3: {v:?}") };
    assert_eq!((pairs.len(), &pairs[1].1), (3, &Value::Boolean(false)));
    assert_eq!(Fed::parse(&v).events.len(), 0);
}

/// A database has its own events, whatever becomes of the spaces; names can be anything.
#[test]
fn feed_is_of_the_selected_database() {
    let server = Server::start();
    let (mut c, mut d) = (server.connect(), server.connect());
    d.ok("SELECT 3");
    let before = here(&mut c);
    c.ok("PRESENCE.ONLINE a u");
    d.ok("PRESENCE.ONLINE a u");
    d.ok("PRESENCE.MESSAGE b u hi");
    c.ok(args!["PRESENCE.ONLINE", "odd \0*?[\r\n\u{1f600}\"", "u"]);
    assert_eq!(feed(&mut d, "").brief(), "a: join u, b: message u");
    let odd = feed(&mut c, &format!("AFTER {before}"));
    assert_eq!(odd.events[1].str("space"), "odd \0*?[\r\n\u{1f600}\"");
    assert_eq!(feed(&mut c, "MATCH a").events.len(), 1);
    assert_eq!(
        Fed::parse(&c.ok(args!["PRESENCE.FEED", "MATCH", "odd \0\\*\\?\\[*"])).events.len(),
        1
    );
    // A position is one of the node, so it serves in each database.
    assert_eq!(feed(&mut d, &format!("AFTER {before}")).brief(), "a: join u, b: message u");
    // What happened stays where it happened.
    c.ok("SWAPDB 0 3");
    assert_eq!(feed(&mut d, "").brief(), "a: join u, b: message u");
    let at = here(&mut d);
    c.ok("MOVE b 5");
    c.ok("RENAME a c");
    c.ok("PRESENCE.OFFLINE c u");
    assert_eq!(feed(&mut d, &format!("AFTER {at}")).brief(), "");
    assert_eq!(feed(&mut c, &format!("AFTER {at}")).brief(), "c: leave u (offline)");
}

#[test]
fn feed_says_what_is_missing() {
    let server = Server::builder().config("presence.feed-bytes", "16384").aof().start();
    let mut c = server.connect();
    run(&mut c, &["PRESENCE.ONLINE a u", "PRESENCE.ONLINE b u"]);
    let first = feed(&mut c, "COUNT 1").position;
    let last = here(&mut c);
    assert_eq!(feed(&mut c, &format!("AFTER {first}")).brief(), "b: join u");
    // A position that is yet to come was never given out.
    let (run_id, number) = last.split_once('-').unwrap();
    let next = format!("{run_id}-{}", number.parse::<u64>().unwrap() + 1);
    assert_eq!(feed(&mut c, &format!("AFTER {next}")).brief(), "! a: join u, b: join u");
    assert_eq!(feed(&mut c, "AFTER 1234567890123456-0").brief(), "! a: join u, b: join u");
    // Pushed out.
    (0..500).for_each(|n| drop(c.ok(format!("PRESENCE.MESSAGE a u {n}"))));
    assert!(c.stat("feed_bytes") <= 16_384 && c.stat("feed_bytes") > 10_000);
    for position in [&first, &last] {
        let fed = feed(&mut c, &format!("AFTER {position}"));
        assert!(fed.gap && fed.events.len() > 50, "{} events", fed.events.len());
        assert_eq!(fed.events.last().unwrap().str("message"), "499");
    }
    let kept = feed(&mut c, "");
    assert!(!kept.gap);
    assert_eq!(c.stat("feed_events"), kept.events.len() as i64);
    // An event that is larger than the ring.
    let before = here(&mut c);
    c.ok(["PRESENCE.MESSAGE", "a", "u", &"x".repeat(20_000)]);
    assert_eq!(feed(&mut c, &format!("AFTER {before}")).brief(), "! ");
    assert_eq!(feed(&mut c, "").brief(), "");
    // Another run. What the AOF tells was before it.
    let old = here(&mut c);
    c.ok("PRESENCE.ONLINE late u");
    server.restart(Stop::NoSave);
    let mut c = server.connect();
    assert_eq!(c.int("PRESENCE.COUNT late"), 1);
    assert_eq!(feed(&mut c, "").brief(), "");
    let fed = feed(&mut c, &format!("AFTER {old} BLOCK 0"));
    assert_eq!(fed.brief(), "! ");
    assert!(!feed(&mut c, &format!("AFTER {}", fed.position)).gap);
    let before = here(&mut c);
    run(&mut c, &["PRESENCE.ONLINE a v", "DEBUG RELOAD", "PRESENCE.ONLINE a w"]);
    assert_eq!(feed(&mut c, &format!("AFTER {before}")).brief(), "a: join v, a: join w");
}

#[test]
fn feed_bytes_change_at_run_time() {
    let server = Server::start();
    let mut c = server.connect();
    assert_eq!(c.stat("feed_bytes"), 0, "nothing is allocated for nothing");
    let text = "x".repeat(500);
    (0..2000).for_each(|_| drop(c.ok(["PRESENCE.MESSAGE", "a", "u", &text])));
    assert!(c.stat("feed_bytes") > 900_000);
    let (before, all) = (here(&mut c), feed(&mut c, ""));
    let used = |c: &mut Conn| c.info("memory")["used_memory"].parse::<i64>().unwrap();
    let large = used(&mut c);
    c.ok("CONFIG SET presence.feed-bytes 10000");
    assert!(c.stat("feed_bytes") <= 10_000);
    wait_until("the memory", SOON, || used(&mut c) < large - 800_000);
    // The newest are still there, and no position is lost.
    let fed = feed(&mut c, "");
    assert!(!fed.events.is_empty() && all.raws().ends_with(&fed.raws()));
    assert!(!feed(&mut c, &format!("AFTER {before}")).gap);
    c.ok("CONFIG SET presence.feed-bytes 1mb");
    assert_eq!(feed(&mut c, "").raws(), fed.raws());
    // Off: an error, also for who waits; and what happens meanwhile is a gap.
    let mut w = server.connect();
    w.send("PRESENCE.FEED AFTER $ BLOCK 0").unwrap();
    waiting(&mut c, 1);
    c.ok("CONFIG SET presence.feed-bytes 0");
    for error in [w.recv().unwrap_err(), c.err("PRESENCE.FEED"), c.err("PRESENCE.FEED AFTER $")] {
        assert!(error.contains("feed-bytes is 0"), "{error}");
    }
    assert_eq!((c.stat("feed_bytes"), c.stat("feed_events")), (0, 0));
    c.ok("PRESENCE.MESSAGE a u unseen");
    c.ok("CONFIG SET presence.feed-bytes 1000");
    assert_eq!(feed(&mut c, &format!("AFTER {before}")).brief(), "! ");
    c.ok("PRESENCE.MESSAGE a u seen");
    assert_eq!(feed(&mut c, &format!("AFTER {before}")).brief(), "! a: message u");
}

#[test]
fn feed_refuses_what_does_not_fit() {
    let server = Server::start();
    let mut c = server.connect();
    let long = "*".repeat(1025);
    for (words, about) in [
        ("WHAT", "unknown option"),
        ("AFTER", "needs a value"),
        ("AFTER x", "invalid position"),
        ("AFTER 0", "invalid position"),
        ("AFTER 1-x", "invalid position"),
        ("AFTER $ AFTER $", "twice"),
        ("COUNT 0", "COUNT"),
        ("COUNT -1", "COUNT"),
        ("COUNT x", "integer"),
        ("COUNT 1 COUNT 1", "twice"),
        ("BLOCK -1", "negative"),
        ("BLOCK x", "integer"),
        ("BLOCK 9223372036854775807", "out of range"),
        ("MATCH", "needs a value"),
        ("MATCH a MATCH a", "twice"),
        (&format!("MATCH {long}"), "longer than 1024"),
    ] {
        let error = c.err(format!("PRESENCE.FEED {words}"));
        assert!(error.contains(about), "{words}: {error}");
    }
    let reply = c.ok("COMMAND INFO presence.feed");
    let info = items(&items(&reply)[0]);
    assert_eq!(text(&info[1]), "-1");
    let flags = texts(&info[2]);
    assert!(["readonly", "blocking"].iter().all(|f| flags.iter().any(|g| g == f)), "{flags:?}");
    assert_eq!([3, 4, 5].map(|i| text(&info[i])), ["0", "0", "0"], "no key");
    assert_eq!(texts(&info[7]), ["request_policy:all_shards"]);
}

#[test]
fn feed_matches_as_keys_does() {
    let server = Server::start();
    let mut c = server.connect();
    let names = ["room:1", "room:2", "rooms", "r*om", "[x]", "a-b", "\u{e9}t\u{e9}"];
    names.iter().for_each(|name| drop(c.ok(["PRESENCE.MESSAGE", name, "u", "hi"])));
    for pattern in [
        "*",
        "room:*",
        "room:[12]",
        "room:[^1]",
        "room:?",
        "r\\*om",
        "\\[x\\]",
        "[a-c]-b",
        "none",
        "\u{e9}*",
        "*[s]",
        "??????",
    ] {
        let fed = Fed::parse(&c.ok(["PRESENCE.FEED", "MATCH", pattern]));
        let spaces: BTreeSet<_> = fed.events.iter().map(|e| e.str("space").to_string()).collect();
        let keys: BTreeSet<_> = texts(&c.ok(["KEYS", pattern])).into_iter().collect();
        assert_eq!(spaces, keys, "{pattern}");
    }
    // A hostile pattern against hostile names is not slow.
    let name = "a".repeat(4000);
    (0..200).for_each(|_| drop(c.ok(["PRESENCE.MESSAGE", &name, "u", "hi"])));
    let began = std::time::Instant::now();
    let fed = Fed::parse(&c.ok(["PRESENCE.FEED", "MATCH", &("*a".repeat(500) + "*b")]));
    assert!(fed.events.is_empty() && began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[test]
fn feed_waits_for_what_is_for_it() {
    let server = Server::start();
    let mut c = server.connect();
    let mut w = server.connect();
    let id = w.int("CLIENT ID");
    for (words, others, end, wanted) in [
        ("", &[][..], "PRESENCE.ONLINE a u", "a: join u"),
        (
            "MATCH r*",
            &["PRESENCE.MESSAGE x u 1", "PRESENCE.ONLINE y u"],
            "PRESENCE.ONLINE r u",
            "r: join u",
        ),
        ("MATCH r", &["PRESENCE.ONLINE s u"], "PRESENCE.ONLINE r v", "r: join v"),
        ("MATCH none*", &["DEL s", "SET x2 1"], "PRESENCE.CLOSE a", ""),
        ("COUNT 1", &[], "PRESENCE.OFFLINE s u", ""),
    ] {
        wait_until("the sweep", SOON, || c.stat("sweep_backlog") == 0);
        let before = here(&mut c);
        w.send(format!("PRESENCE.FEED AFTER $ BLOCK 0 {words}").trim_end()).unwrap();
        waiting(&mut c, 1);
        run(&mut c, others);
        c.ok(end);
        if wanted.is_empty() {
            // Nothing for this one: it goes on waiting.
            assert_eq!(c.text("ECHO x"), "x");
            assert_eq!(c.info("clients")["blocked_clients"], "1", "{words}");
            c.ok(format!("CLIENT UNBLOCK {id}"));
            let fed = answer(&mut w);
            assert_eq!(fed.brief(), "", "{words}");
            assert_eq!(fed.position, here(&mut c), "a reply without events moves on");
        } else {
            let fed = answer(&mut w);
            assert_eq!(fed.brief(), wanted, "{words}");
            assert!(!feed(&mut c, &format!("AFTER {before}")).gap);
        }
    }
}

/// A reader that waits for something else is not behind: what it did not want is no gap when it goes on.
#[test]
fn feed_a_long_wait_has_no_gap() {
    let server = Server::with(&[("presence.feed-bytes", "4096")]);
    let mut c = server.connect();
    let mut w = server.connect();
    w.send("PRESENCE.FEED BLOCK 0 MATCH wanted").unwrap();
    waiting(&mut c, 1);
    // Many times what the ring holds, a little at a time.
    (0..300).for_each(|n| drop(c.ok(format!("PRESENCE.MESSAGE other u {n}"))));
    c.ok("PRESENCE.MESSAGE wanted u now");
    assert_eq!(answer(&mut w).brief(), "wanted: message u");
    w.send("PRESENCE.FEED AFTER $ BLOCK 50 MATCH wanted").unwrap();
    waiting(&mut c, 1);
    assert_eq!(answer(&mut w).brief(), "");
    // More at once than the ring holds: what pushed out the rest may have been wanted.
    w.send("PRESENCE.FEED AFTER $ BLOCK 0 MATCH wanted").unwrap();
    waiting(&mut c, 1);
    let names: Vec<String> = (0..300).map(|n| format!("u{n}")).collect();
    c.ok(format!("PRESENCE.ONLINE other USERS 300 {}", names.join(" ")));
    let fed = answer(&mut w);
    assert_eq!(fed.brief(), "! ");
    assert!(!feed(&mut c, &format!("AFTER {}", fed.position)).gap);
}

#[test]
fn feed_waits_end_with_one_reply() {
    let server = Server::start();
    let mut c = server.connect();
    let mut w = server.connect();
    let began = std::time::Instant::now();
    assert_eq!(feed(&mut w, "AFTER $ BLOCK 60").brief(), "");
    assert!(began.elapsed() >= ms(60));
    for _ in 0..3 {
        w.send("PRESENCE.FEED AFTER $ BLOCK 10").unwrap();
        w.send("ECHO behind").unwrap();
        answer(&mut w);
        assert_eq!(text(&w.recv().unwrap()), "behind");
    }
    // In MULTI and scripts there is no wait.
    run(
        &mut c,
        &["MULTI", "PRESENCE.FEED BLOCK 0", "PRESENCE.ONLINE a u", "PRESENCE.FEED BLOCK 0"],
    );
    let replies = c.ok("EXEC");
    assert_eq!(Fed::parse(&items(&replies)[0]).brief(), "");
    assert_eq!(Fed::parse(&items(&replies)[2]).brief(), "a: join u");
    let script = "return redis.call('PRESENCE.FEED', 'AFTER', '$', 'BLOCK', '0')";
    assert_eq!(Fed::parse(&c.ok(["EVAL", script, "0"])).brief(), "");
    // A connection that the server may not be able to block.
    let mut subscribed = server.connect3();
    subscribed.send("SUBSCRIBE x").unwrap();
    subscribed.ok("PING");
    for _ in 0..20 {
        subscribed.send("PRESENCE.FEED AFTER $ BLOCK 5").unwrap();
        subscribed.send("ECHO behind").unwrap();
        answer(&mut subscribed);
        assert_eq!(text(&subscribed.recv().unwrap()), "behind");
    }
    // Clients that go while they wait.
    let mut gone: Vec<Conn> = (0..20).map(|_| server.connect()).collect();
    gone.iter_mut().for_each(|w| w.send("PRESENCE.FEED AFTER $ BLOCK 0").unwrap());
    waiting(&mut c, 20);
    drop(gone);
    waiting(&mut c, 0);
    c.ok("PRESENCE.ONLINE b u");
    c.ok("FLUSHALL");
    assert!(server.alive());
}

/// The reader is shown the spaces whose keys it may read, and is not woken by others.
#[test]
fn feed_shows_what_the_acl_allows() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("ACL SETUSER reader on >p %R~s* +@all");
    c.ok("ACL SETUSER writer on >p %W~* +@all");
    c.ok("ACL SETUSER nobody on >p +@all resetkeys");
    let login = |user: &str| {
        let mut c = server.connect();
        c.ok(["AUTH", user, "p"]);
        c
    };
    let (mut reader, mut writer, mut nobody) = (login("reader"), login("writer"), login("nobody"));
    let lines = ["PRESENCE.ONLINE s1 u", "PRESENCE.ONLINE t u", "PRESENCE.ONLINE s2 u"];
    run(&mut c, &lines);
    assert_eq!(feed(&mut reader, "").brief(), "s1: join u, s2: join u");
    assert_eq!(feed(&mut reader, "MATCH ?2").brief(), "s2: join u");
    assert_eq!(feed(&mut reader, "MATCH t").brief(), "");
    assert_eq!(feed(&mut writer, "").brief(), "");
    assert_eq!(feed(&mut nobody, "").brief(), "");
    assert_eq!(feed(&mut c, "").events.len(), 3);
    // COUNT counts what is shown, and the position says nothing else.
    let fed = feed(&mut reader, "COUNT 1");
    assert_eq!(feed(&mut reader, &format!("COUNT 1 AFTER {}", fed.position)).brief(), "s2: join u");
    let script = "return redis.call('PRESENCE.FEED')";
    assert_eq!(Fed::parse(&reader.ok(["EVAL", script, "0"])).brief(), "s1: join u, s2: join u");
    reader.ok("MULTI");
    reader.ok("PRESENCE.FEED");
    assert_eq!(Fed::parse(&items(&reader.ok("EXEC"))[0]).events.len(), 2);
    // Who waits.
    reader.send("PRESENCE.FEED AFTER $ BLOCK 0").unwrap();
    nobody.send("PRESENCE.FEED AFTER $ BLOCK 0").unwrap();
    waiting(&mut c, 2);
    c.ok("PRESENCE.MESSAGE t u hidden");
    waiting(&mut c, 2);
    c.ok("PRESENCE.MESSAGE s9 u shown");
    assert_eq!(answer(&mut reader).brief(), "s9: message u");
    waiting(&mut c, 1);
    // The rights of the moment count.
    c.ok("ACL SETUSER nobody ~new*");
    run(&mut c, &["PRESENCE.MESSAGE old u hi", "PRESENCE.MESSAGE new1 u hi"]);
    assert_eq!(answer(&mut nobody).brief(), "new1: message u");
}

#[test]
fn feed_of_a_replica_is_its_own() {
    let primary = Server::start();
    let replica =
        Server::builder().config("replicaof", &format!("127.0.0.1 {}", primary.port)).start();
    let (mut p, mut r) = (primary.connect(), replica.connect());
    p.ok("PRESENCE.ONLINE a u");
    wait_until("the replica", SOON, || r.int("PRESENCE.COUNT a") == 1);
    let (at_primary, at_replica) = (here(&mut p), here(&mut r));
    let mut w = replica.connect();
    w.send("PRESENCE.FEED AFTER $ BLOCK 0 MATCH a").unwrap();
    waiting(&mut r, 1);
    run(&mut p, &LINES);
    p.ok("PRESENCE.ONLINE late z PX 1");
    wait_until("the sweep", SOON, || p.int("PRESENCE.COUNT late") == 0 && p.stat("timeouts") == 1);
    let told = feed(&mut p, &format!("AFTER {at_primary}"));
    wait_until("the replica", SOON, || {
        feed(&mut r, &format!("AFTER {at_replica}")).events.len() == told.events.len()
    });
    let there = feed(&mut r, &format!("AFTER {at_replica}"));
    assert_eq!((there.raws(), there.gap), (told.raws(), false), "the same, byte for byte");
    assert!(answer(&mut w).brief().starts_with("a: join v"));
    // The position of another node is a gap.
    assert!(feed(&mut r, &format!("AFTER {at_primary}")).gap);
    assert!(feed(&mut p, &format!("AFTER {at_replica}")).gap);
    // A promotion is no new run.
    let before = here(&mut r);
    r.ok("REPLICAOF NO ONE");
    r.ok("PRESENCE.ONLINE b promoted");
    let fed = feed(&mut r, &format!("AFTER {before}"));
    assert_eq!(fed.brief(), "b: join promoted");
    // Another dataset comes as a whole: events may have happened in it that this node never got.
    let before = here(&mut r);
    p.ok("PRESENCE.ONLINE c unseen");
    r.ok(format!("REPLICAOF 127.0.0.1 {}", primary.port));
    wait_until("the new dataset", SOON, || {
        r.try_cmd("PRESENCE.COUNT c").is_ok_and(|n| n == Value::Int(1))
    });
    assert!(feed(&mut r, &format!("AFTER {before}")).gap);
    let before = here(&mut r);
    p.ok("PRESENCE.MESSAGE c u hi");
    wait_until("the event", SOON, || {
        feed(&mut r, &format!("AFTER {before}")).brief() == "c: message u"
    });
}

/// Many readers with many patterns follow a busy server: each gets each event that is for it once, in order.
#[test]
fn feed_many_readers_miss_nothing() {
    let server = Server::with(&[("presence.feed-bytes", "64mb")]);
    let mut c = server.connect();
    c.ok("ACL SETUSER even on >p %R~*0 %R~*2 %R~*4 %R~*6 %R~*8 +@all");
    struct Reader {
        conn: Conn,
        pattern: String,
        even: bool,
        seen: Vec<String>,
        position: String,
    }
    let start = here(&mut c);
    let mut readers: Vec<Reader> = (0..120)
        .map(|i| {
            let mut conn = server.connect();
            if i % 3 == 0 {
                conn.ok("AUTH even p");
            }
            let pattern = match i % 4 {
                0 => "*".to_string(),
                1 => format!("s:{}", i % 10),
                2 => "s:[3-6]".to_string(),
                _ => "*7".to_string(),
            };
            Reader { conn, pattern, even: i % 3 == 0, seen: Vec::new(), position: start.clone() }
        })
        .collect();
    let ask = |reader: &mut Reader| {
        let Reader { conn, pattern, position, .. } = reader;
        conn.send(format!("PRESENCE.FEED MATCH {pattern} AFTER {position} BLOCK 0")).unwrap();
    };
    readers.iter_mut().for_each(ask);
    waiting(&mut c, readers.len());
    // Joins and leaves in lists, and leases that end.
    for round in 0..30 {
        let space = format!("s:{}", round % 10);
        let users: Vec<String> = (0..40).map(|n| format!("u{round}-{n}")).collect();
        let users = users.join(" ");
        c.ok(format!("PRESENCE.ONLINE {space} USERS 40 {users} PX {}", 1 + round % 3 * 100_000));
    }
    wait_until("the sweep", SOON, || c.stat("timeouts") == 400);
    (0..10).for_each(|n| drop(c.ok(format!("PRESENCE.MESSAGE s:{n} u last"))));
    let all = feed(&mut c, &format!("AFTER {start}"));
    assert!(!all.gap && all.events.len() == 30 * 40 + 400 + 10);
    for reader in &mut readers {
        let is_for_it = |e: &&Event| {
            let digit = e.str("space").as_bytes()[2];
            let matches = match reader.pattern.as_str() {
                "*" => true,
                "s:[3-6]" => (b'3'..=b'6').contains(&digit),
                "*7" => digit == b'7',
                other => other == e.str("space"),
            };
            matches && (!reader.even || digit.is_multiple_of(2))
        };
        let wanted: Vec<_> = all.events.iter().filter(is_for_it).map(|e| e.raw.clone()).collect();
        while reader.seen.len() < wanted.len() {
            let fed = answer(&mut reader.conn);
            assert!(!fed.gap && !fed.events.is_empty());
            reader.seen.extend(fed.events.into_iter().map(|e| e.raw));
            reader.position = fed.position;
            ask(reader);
        }
        assert_eq!(reader.seen, wanted, "{}", reader.pattern);
    }
    waiting(&mut c, readers.len());
    drop(readers);
    waiting(&mut c, 0);
}
