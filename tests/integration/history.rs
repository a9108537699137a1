//! PRESENCE.EVENTS: what is kept, for how long, what is said to be missing, and how clients wait for more.

use crate::commands::ODD;
use crate::harness::*;
use rand::Rng;
use std::collections::BTreeSet;

/// What PRESENCE.EVENTS says.
#[derive(Debug)]
pub struct Told {
    pub id: String,
    pub gap: bool,
    pub events: Vec<Event>,
}

impl Told {
    #[track_caller]
    pub fn parse(v: &Value) -> Told {
        let [id, gap, events] = fields(v, ["id", "gap", "events"]);
        let gap = match gap {
            Value::Boolean(gap) => *gap,
            Value::Int(gap @ 0..=1) => *gap == 1,
            other => panic!("gap is {other:?}"),
        };
        let event = |v: &Value| {
            let Value::BulkString(payload) = v else { panic!("no event: {v:?}") };
            Event::parse(Message {
                channel: Vec::new(),
                payload: payload.clone(),
                arrived: now_ms(),
            })
        };
        let told = Told { id: text(id), gap, events: items(events).iter().map(event).collect() };
        parse_id(&told.id);
        told
    }

    pub fn raws(&self) -> Vec<&str> {
        self.events.iter().map(|e| e.raw.as_str()).collect()
    }

    pub fn briefs(&self) -> Vec<String> {
        self.events.iter().map(Event::brief).collect()
    }

    pub fn seqs(&self) -> Vec<u64> {
        self.events.iter().map(|e| e.id().1).collect()
    }

    /// Neither events nor a gap: what a wait comes to that ended without anything.
    pub fn is_nothing(&self) -> bool {
        !self.gap && self.events.is_empty()
    }
}

/// `PRESENCE.EVENTS` with these words.
#[track_caller]
pub fn ask(c: &mut Conn, words: &str) -> Told {
    Told::parse(&c.ok(format!("PRESENCE.EVENTS {words}")))
}

/// The reply to a `PRESENCE.EVENTS` that was sent before.
#[track_caller]
pub fn answer(c: &mut Conn) -> Told {
    Told::parse(&c.recv().unwrap())
}

/// Waits until so many clients wait, no more and no fewer.
#[track_caller]
pub fn waiting(c: &mut Conn, n: usize) {
    let n = n.to_string();
    wait_until(&format!("{n} waiting clients"), SOON * 2, || {
        c.info("clients")["blocked_clients"] == n
    });
}

/// A client that waits for events with these words, seen to be waiting.
#[track_caller]
pub fn waiter(server: &Server, c: &mut Conn, words: &str) -> Conn {
    let before: usize = c.info("clients")["blocked_clients"].parse().unwrap();
    let mut w = server.connect();
    w.send(format!("PRESENCE.EVENTS {words}")).unwrap();
    waiting(c, before + 1);
    w
}

/// Runs a command on a connection of its own: Valkey 8.1 and 9.0 leave one in the other database after MOVE and COPY …
/// DB, see `key_lifecycle::a_connection_stays_in_its_database`.
#[track_caller]
pub fn aside(server: &Server, db: i32, line: &str) {
    let mut c = server.connect();
    c.ok(args!["SELECT", db]);
    c.ok(line);
}

fn raws(events: &[Event]) -> Vec<&str> {
    events.iter().map(|e| e.raw.as_str()).collect()
}

#[test]
fn events_tells_the_bytes_that_were_published() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*"]);
    for odd in ODD {
        c.ok(args!["PRESENCE.ONLINE", odd, odd, "SESSION", odd, "META", "{ \"a\" : [1.50, 1e3] }"]);
        c.ok(args!["PRESENCE.ONLINE", odd, odd, "META", "\"\u{1F600}\\u0000\\/\""]);
        c.ok(args!["PRESENCE.MESSAGE", odd, odd, odd, "SESSION", odd]);
        c.ok(args!["PRESENCE.ONLINE", odd, odd, "PX", 30]);
        c.ok(args!["PRESENCE.ONLINE", odd, odd, "META", "null", "PX", 1]);
        let mut published = sub.events(5, SOON);
        assert_eq!(published[4].brief(), format!("remove {odd} (timeout)"));
        c.ok(args!["PRESENCE.OFFLINE", odd, odd]);
        c.ok(args!["PRESENCE.CLOSE", odd]);
        published.extend(sub.events_so_far(&mut c));
        assert_eq!(published.len(), 7, "{published:?}");
        for mut c in [server.connect(), server.connect3()] {
            let told = Told::parse(&c.ok(args!["PRESENCE.EVENTS", odd]));
            assert_eq!(told.raws(), raws(&published));
            assert_eq!((told.id.as_str(), told.gap), (published[6].str("id"), false));
        }
    }
}

/// After each event, from each id, with each count: exactly what is after it, and whether something is missing.
#[test]
fn after_count_and_gap_are_exact() {
    for length in [1u64, 5, 128] {
        let server = Server::with(&[("presence.history-length", &length.to_string())]);
        let mut c = server.connect();
        let mut sub = server.subscribe(&["presence:s"]);
        let mut all: Vec<Event> = Vec::new();
        for step in 0..12 {
            c.ok(match step % 4 {
                0 => "PRESENCE.ONLINE s a META 1".to_string(),
                1 => format!("PRESENCE.MESSAGE s nobody {step}"),
                2 => "PRESENCE.ONLINE s a META 2".to_string(),
                _ => "PRESENCE.OFFLINE s a".to_string(),
            });
            all.extend(sub.events_so_far(&mut c));
            let n = all.len() as u64;
            assert_eq!(n, step + 1);
            let epoch = all[0].id().0;
            let kept = n.min(length);
            let oldest_kept = n - kept;
            for after in 0..=n {
                let from = after.max(oldest_kept);
                for count in 0..=kept + 1 {
                    let what = format!("length {length}, {n} events, AFTER {after} COUNT {count}");
                    let mut words = format!("s AFTER {epoch}-{after}");
                    let mut until = n;
                    if count > 0 {
                        words += &format!(" COUNT {count}");
                        until = n.min(from + count);
                    }
                    let told = ask(&mut c, &words);
                    assert_eq!(told.raws(), raws(&all[from as usize..until as usize]), "{what}");
                    // The seq 0 was never given out.
                    assert_eq!(told.gap, after < oldest_kept || after == 0, "{what}");
                    assert_eq!(told.id, format!("{epoch}-{n}"), "{what}");
                }
            }
            let what = format!("length {length}, {n} events");
            let kept = raws(&all[oldest_kept as usize..]);
            let told = ask(&mut c, "s");
            assert_eq!((told.raws(), told.gap), (kept.clone(), false), "{what}");
            let told = ask(&mut c, "s COUNT 2");
            assert_eq!(told.raws(), kept[..kept.len().min(2)], "{what}: the oldest first");
            let told = ask(&mut c, "s AFTER 0-0");
            assert_eq!((told.raws(), told.gap), (kept.clone(), oldest_kept > 0), "{what}");
            assert!(ask(&mut c, "s AFTER $").is_nothing(), "{what}");
            // What is no id of this life: something is missing, whatever it is.
            let others = [
                format!("{epoch}-{}", n + 1),
                format!("{epoch}-9007199254740993"),
                format!("{}-{n}", epoch + 1),
                format!("{}-{n}", epoch - 1),
                format!("{}-0", epoch - 1),
                format!("{}-0", epoch + 1),
                "0-1".into(),
                format!("0-{n}"),
                "1-0".into(),
            ];
            for id in others {
                let told = ask(&mut c, &format!("s AFTER {id}"));
                assert!(told.gap, "{what}, AFTER {id}: {told:?}");
                assert!(kept.ends_with(&told.raws()), "{what}, AFTER {id}: {told:?}");
                assert_eq!(told.id, format!("{epoch}-{n}"));
            }
        }
    }
}

/// `history-ttl-ms` alone decides: an event is told for so long and no longer, and what is gone is said to be missing.
#[test]
fn time_is_exact_in_both_directions() {
    let server = Server::with(&[("presence.history-ttl-ms", "400")]);
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:s"]);
    c.ok("PRESENCE.ONLINE s holder EX 600"); // keeps the space
    let mut all = sub.events_so_far(&mut c);
    let epoch = all[0].id().0;
    let (mut dropped, mut partly, mut next) = (0, 0, now_ms());
    let end = now_ms() + 2500;
    let quiet = end - 900;
    while now_ms() < end || dropped < all.len() {
        assert!(now_ms() < end + 5000, "the last events are still told: {all:?}");
        if now_ms() >= next && now_ms() < quiet {
            c.ok("PRESENCE.MESSAGE s a x");
            all.extend(sub.events_so_far(&mut c));
            next = now_ms() + 37;
        }
        let n = all.len();
        let after = dropped.saturating_sub(3).min(n);
        for after in [0, after, dropped, n] {
            let before = now_ms();
            // Before the first event of any life: the seq 0 was never given out.
            let id = if after == 0 { "0-0".into() } else { format!("{epoch}-{after}") };
            let told = ask(&mut c, &format!("s AFTER {id}"));
            let replied = now_ms();
            let first = n - told.events.len();
            assert_eq!(told.raws(), raws(&all[first..]), "AFTER {after}");
            assert!(first >= after, "AFTER {after}: {told:?}");
            assert_eq!(told.gap, first > after, "AFTER {after}: {told:?}");
            if let Some(young) = all[after..first].iter().find(|e| e.int("at") + 400 > replied) {
                panic!("AFTER {after} at {replied}: hidden too early: {young:?}");
            }
            if let Some(old) = all[first..].iter().find(|e| e.int("at") + 400 <= before) {
                panic!("AFTER {after} at {before}: told too late: {old:?}");
            }
            if after == 0 {
                dropped = first;
                partly += (first > 0 && first < n) as u32;
            }
        }
    }
    assert!(partly > 5 && dropped == all.len(), "{partly} {dropped} of {}", all.len());
    // All is over, somebody is here: nothing is missing after the last one, and something after the one before.
    let n = all.len();
    assert!(ask(&mut c, &format!("s AFTER {epoch}-{n}")).is_nothing());
    assert!(ask(&mut c, "s").is_nothing());
    assert!(ask(&mut c, "s AFTER $").is_nothing());
    assert!(ask(&mut c, &format!("s AFTER {epoch}-{}", n - 1)).gap);
    assert!(ask(&mut c, "s AFTER 0-0").gap);
    let id = c.text("PRESENCE.MESSAGE s a x");
    assert_eq!(parse_id(&id), (epoch, n as u64 + 1), "the numbering goes on");
    let told = ask(&mut c, &format!("s AFTER {epoch}-{n}"));
    assert_eq!((told.gap, told.seqs()), (false, vec![n as u64 + 1]));
}

#[test]
fn another_life_is_told_from_this_one() {
    let server = Server::start();
    let mut c = server.connect();
    for id in ["0-0", "$"] {
        let told = ask(&mut c, &format!("s AFTER {id}"));
        assert!(told.is_nothing() && told.id == "0-0", "no space: nothing is missing: {told:?}");
    }
    let told = ask(&mut c, "s AFTER 5-5");
    assert!(told.gap && told.id == "0-0", "an id of a space that is not there: {told:?}");
    assert_eq!(c.int("EXISTS s"), 0, "reading creates nothing");

    let mut old: Vec<String> = Vec::new();
    for ends in [
        &["DEL s"][..],
        &["UNLINK s"],
        &["FLUSHALL"],
        &["FLUSHDB ASYNC"],
        &["RENAME s t", "DEL t"],
        &["SET s x", "DEL s"],
    ] {
        c.ok("MULTI"); // at once: ends and begins in the same millisecond, if it can
        ends.iter().for_each(|line| drop(c.ok(*line)));
        c.ok("PRESENCE.ONLINE s a");
        c.ok("PRESENCE.ONLINE s b");
        let _ = c.ok("EXEC");
        let told = ask(&mut c, "s");
        assert_eq!(told.briefs(), ["join a", "join b"], "after {ends:?}");
        let epoch = told.events[0].id().0;
        for id in &old {
            let (old_epoch, _) = parse_id(id);
            assert!(epoch > old_epoch, "{epoch} after {old_epoch}, by {ends:?}");
            let again = ask(&mut c, &format!("s AFTER {id}"));
            assert!(again.gap, "{id} in the life {epoch} after {ends:?}");
            assert_eq!(again.raws(), told.raws(), "all of this life");
        }
        for (seq, gap, rest) in [(0, true, 2), (1, false, 1), (2, false, 0), (3, true, 0)] {
            let id = format!("{epoch}-{seq}");
            let told = ask(&mut c, &format!("s AFTER {id}"));
            assert_eq!((told.gap, told.events.len()), (gap, rest), "AFTER {id}");
            old.push(id);
        }
    }
    c.ok("DEL s");
    for id in &old {
        assert!(ask(&mut c, &format!("s AFTER {id}")).gap, "{id}, and no space any more");
    }
    assert!(ask(&mut c, "s AFTER 0-0").is_nothing());
}

#[test]
fn nonsense_is_refused() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s a");
    c.ok("SET str x");
    let before = (c.digest("s"), ask(&mut c, "s").id);
    let ids = [
        "-",
        "+",
        "x",
        "1-",
        "-1",
        "1-x",
        "x-1",
        "1-2-3",
        "1--2",
        "-1-2",
        "+1-2",
        "1-+2",
        "1.5-0",
        "1e3-0",
        "0x1-0",
        " 1-1",
        "1-1 ",
        "1 -1",
        "$$",
        "$-1",
        "1-$",
        "99999999999999999999-0",
        "0-99999999999999999999",
        "1_000-0",
        "\u{661}-1",
        "",
    ];
    let bad_ids = ids.iter().flat_map(|id| {
        [
            args!["PRESENCE.EVENTS", "s", "AFTER", id],
            args!["PRESENCE.EVENTS", "none", "AFTER", id, "BLOCK", 0],
        ]
    });
    for call in bad_ids.chain([
        args!["PRESENCE.EVENTS", "s", "AFTER", b"\xff-1"],
        args!["PRESENCE.EVENTS", "s", "AFTER", b"1-1\0"],
    ]) {
        let e = c.err(&call);
        assert!(e.starts_with("ERR ") && e.contains("id"), "{}: {e}", show(&call));
    }
    for (line, words) in [
        ("PRESENCE.EVENTS", "wrong number of arguments"),
        ("PRESENCE.EVENTS s AFTER", "AFTER"),
        ("PRESENCE.EVENTS s COUNT", "COUNT"),
        ("PRESENCE.EVENTS s BLOCK", "BLOCK"),
        ("PRESENCE.EVENTS s COUNT 0", "COUNT"),
        ("PRESENCE.EVENTS s COUNT -1", "COUNT"),
        ("PRESENCE.EVENTS s COUNT x", "integer"),
        ("PRESENCE.EVENTS s COUNT 1.5", "integer"),
        ("PRESENCE.EVENTS s COUNT 99999999999999999999", "integer"),
        ("PRESENCE.EVENTS s BLOCK -1", "timeout"),
        ("PRESENCE.EVENTS s BLOCK x", "timeout"),
        ("PRESENCE.EVENTS s BLOCK 1.5", "timeout"),
        ("PRESENCE.EVENTS s BLOCK 99999999999999999999", "timeout"),
        ("PRESENCE.EVENTS s AFTER 0-0 AFTER 0-0", "AFTER"),
        ("PRESENCE.EVENTS s AFTER 0-0 AFTER $", "AFTER"),
        ("PRESENCE.EVENTS s COUNT 1 COUNT 1", "COUNT"),
        ("PRESENCE.EVENTS s BLOCK 1 BLOCK 1", "BLOCK"),
        ("PRESENCE.EVENTS s NOSUCH", "NOSUCH"),
        ("PRESENCE.EVENTS s 0-0", "0-0"),
        ("PRESENCE.EVENTS s AFTER 0-0 x", "x"),
        ("PRESENCE.EVENTS str", "WRONGTYPE"),
        ("PRESENCE.EVENTS str AFTER $ BLOCK 0", "WRONGTYPE"),
    ] {
        let e = c.err(line);
        assert!(e.contains(words), "{line}: {e}");
    }
    assert_eq!((c.digest("s"), ask(&mut c, "s").id), before);
    assert_eq!(c.info("clients")["blocked_clients"], "0");
    // And sense is not: options in any order and case, an epoch alone as in streams.
    let told = ask(&mut c, "s count 1 block 0 after 0-0");
    assert_eq!(told.briefs(), ["join a"]);
    assert!(ask(&mut c, "s BlOcK 1 CoUnT 5 aFtEr $").is_nothing());
}

/// Not a wait of no time: either such a time is out of range, as for XREAD, or the client waits.
#[test]
fn the_longest_block_is_not_the_shortest() {
    let server = Server::start();
    let mut c = server.connect();
    for block in [i64::MAX, i64::MAX - now_ms() + 1000, i64::MAX - now_ms() - 600_000, 1 << 53] {
        let mut w = server.connect();
        w.send(format!("PRESENCE.EVENTS s BLOCK {block}")).unwrap();
        // Newer servers count a command when it is over, older ones when it begins to wait.
        wait_until("the command", SOON, || {
            c.info("clients")["blocked_clients"] == "1"
                || c.info("commandstats").contains_key("cmdstat_presence.events")
        });
        if c.info("clients")["blocked_clients"] == "1" {
            // Long enough for the server's clock to have looked at its timeouts once.
            std::thread::sleep(ms(250));
            assert_eq!(
                c.info("clients")["blocked_clients"],
                "1",
                "BLOCK {block} came back at once"
            );
            c.ok(format!("PRESENCE.MESSAGE s a {block}"));
            assert!(!answer(&mut w).events.is_empty());
            c.ok("DEL s");
        } else {
            let e = w.recv().expect_err("BLOCK came back at once");
            assert!(e.contains("timeout"), "BLOCK {block}: {e}");
        }
        c.ok("CONFIG RESETSTAT");
    }
}

#[test]
fn the_reply_has_its_shape_in_both_protocols() {
    let server = Server::with(&[("presence.history-length", "1")]);
    let mut c = server.connect();
    c.ok("PRESENCE.MESSAGE s a 1");
    c.ok("PRESENCE.MESSAGE s a 2");
    for (words, gap, events) in [
        ("AFTER 0-0", true, 1),
        ("AFTER $", false, 0),
        ("", false, 1),
        ("AFTER $ BLOCK 1", false, 0),
        ("AFTER 1-1 BLOCK 0", true, 1),
    ] {
        let v = server.connect().ok(format!("PRESENCE.EVENTS s {words}"));
        let Value::Array(flat) = &v else { panic!("RESP2: {v:?}") };
        assert_eq!(flat.len(), 6);
        assert_eq!(flat[3], Value::Int(gap as i64), "RESP2, {words}");
        assert!(matches!(&flat[1], Value::BulkString(_)));
        assert_eq!(items(&flat[5]).len(), events);
        let v = server.connect3().ok(format!("PRESENCE.EVENTS s {words}"));
        let Value::Map(pairs) = &v else { panic!("RESP3: {v:?}") };
        assert_eq!(pairs.len(), 3);
        assert_eq!(pairs[1].1, Value::Boolean(gap), "RESP3, {words}");
        assert_eq!(items(&pairs[2].1).len(), events);
    }
    // The same for who has waited.
    let mut w2 = waiter(&server, &mut c, "s AFTER $ BLOCK 0");
    let mut w3 = server.connect3();
    w3.send("PRESENCE.EVENTS s AFTER $ BLOCK 0").unwrap();
    waiting(&mut c, 2);
    ["MULTI", "PRESENCE.MESSAGE s a 3", "PRESENCE.MESSAGE s a 4", "EXEC"]
        .iter()
        .for_each(|l| drop(c.ok(*l)));
    let (v2, v3) = (w2.recv().unwrap(), w3.recv().unwrap());
    let (Value::Array(flat), Value::Map(pairs)) = (&v2, &v3) else { panic!("{v2:?} {v3:?}") };
    assert_eq!((&flat[3], &pairs[1].1), (&Value::Int(1), &Value::Boolean(true)));
    assert_eq!((Told::parse(&v2).seqs(), Told::parse(&v3).seqs()), (vec![4], vec![4]));
}

#[test]
fn without_history_nothing_is_kept_and_that_is_said() {
    let server = Server::with(&[("presence.history-length", "0")]);
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:s"]);
    for line in ["PRESENCE.ONLINE s a", "PRESENCE.ONLINE s b", "PRESENCE.MESSAGE s c hi"] {
        c.ok(line);
    }
    let published = sub.events_so_far(&mut c);
    assert_eq!(published.iter().map(|e| e.id().1).collect::<Vec<_>>(), [1, 2, 3]);
    let epoch = published[0].id().0;
    let told = ask(&mut c, "s");
    assert!(told.is_nothing() && told.id == format!("{epoch}-3"), "{told:?}");
    for (after, gap) in [(0, true), (1, true), (2, true), (3, false), (4, true)] {
        let told = ask(&mut c, &format!("s AFTER {epoch}-{after}"));
        assert_eq!((told.gap, told.events.len()), (gap, 0), "AFTER {after}");
    }
    // Who waits is told that something happened, though not what.
    let mut w = waiter(&server, &mut c, "s AFTER $ BLOCK 0");
    c.ok("PRESENCE.MESSAGE s c hi");
    let told = answer(&mut w);
    assert!(told.gap && told.events.is_empty() && told.id == format!("{epoch}-4"), "{told:?}");
    // A space that nobody is in has nothing to keep.
    c.ok("PRESENCE.OFFLINE s USERS 2 a b");
    wait_until("the empty space to go", SOON, || c.int("EXISTS s") == 0);
    let mut last = (epoch, 6);
    for i in 0..20 {
        let id = parse_id(&c.text("PRESENCE.MESSAGE quiet c hi"));
        assert!(i == 0 || id > last, "{id:?} after {last:?}");
        last = id;
        wait_until("the space of one message to go", SOON, || c.int("EXISTS quiet") == 0);
    }
}

#[test]
fn settings_take_effect_at_once() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s a EX 600");
    (2..=10).for_each(|i| drop(c.ok(format!("PRESENCE.MESSAGE s a {i}"))));
    let epoch = ask(&mut c, "s").events[0].id().0;
    let after = |c: &mut Conn, seq: u64| {
        let told = ask(c, &format!("s AFTER {epoch}-{seq}"));
        (told.gap, told.seqs())
    };
    c.ok("CONFIG SET presence.history-length 3");
    assert_eq!(ask(&mut c, "s").seqs(), [8, 9, 10]);
    assert_eq!(
        (after(&mut c, 6), after(&mut c, 7)),
        ((true, vec![8, 9, 10]), (false, vec![8, 9, 10]))
    );
    c.ok("PRESENCE.MESSAGE s a 11");
    assert_eq!(ask(&mut c, "s").seqs(), [9, 10, 11]);
    c.ok("CONFIG SET presence.history-length 0");
    assert_eq!(ask(&mut c, "s").seqs(), [] as [u64; 0]);
    assert_eq!((after(&mut c, 10), after(&mut c, 11)), ((true, vec![]), (false, vec![])));
    c.ok("PRESENCE.MESSAGE s a 12");
    c.ok("CONFIG SET presence.history-length 5");
    c.ok("PRESENCE.MESSAGE s a 13");
    c.ok("PRESENCE.MESSAGE s a 14");
    // 12 was not kept: what is told has no hole.
    assert_eq!(ask(&mut c, "s").seqs(), [13, 14]);
    assert_eq!(
        (after(&mut c, 11), after(&mut c, 12)),
        ((true, vec![13, 14]), (false, vec![13, 14]))
    );
    c.ok("CONFIG SET presence.history-ttl-ms 1");
    let last = now_ms();
    wait_until("the clock", SOON, || now_ms() > last + 1);
    assert_eq!((after(&mut c, 13), after(&mut c, 14)), ((true, vec![]), (false, vec![])));
    c.ok("CONFIG SET presence.history-ttl-ms 60000");
    c.ok("PRESENCE.MESSAGE s a 15");
    let (gap, seqs) = after(&mut c, 14);
    assert_eq!((gap, seqs), (false, vec![15]));
    let (gap, seqs) = after(&mut c, 12);
    assert_eq!(gap, seqs != [13, 14, 15], "either all or a gap: {seqs:?}");
}

/// Nobody there: everything is told until its time is over, then the key goes, by the sweep alone.
#[test]
fn an_empty_space_keeps_its_history_to_its_end() {
    let server =
        Server::with(&[("presence.history-ttl-ms", "500"), ("notify-keyspace-events", "KEA")]);
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*", "__keyspace@0__:*"]);
    for (space, lines) in [
        ("left", &["PRESENCE.ONLINE left a", "PRESENCE.OFFLINE left a"][..]),
        ("lapsed", &["PRESENCE.ONLINE lapsed a PX 20"]),
        ("said", &["PRESENCE.MESSAGE said a hi", "PRESENCE.MESSAGE said b ho"]),
    ] {
        lines.iter().for_each(|line| drop(c.ok(*line)));
        let n = if space == "lapsed" { 2 } else { lines.len() };
        wait_until("the events", SOON, || ask(&mut c, space).events.len() == n);
        let told = ask(&mut c, space);
        let (raws, last) = (told.raws(), &told.events[n - 1]);
        let over = last.int("at") + 500;
        loop {
            let before = now_ms();
            let (now, exists) = (
                ask(&mut c, &format!("{space} AFTER {}", last.str("id"))),
                c.int("EXISTS ".to_string() + space),
            );
            let replied = now_ms();
            if exists == 0 {
                assert!(replied >= over, "{space} gone {} ms early", over - replied);
                break;
            }
            assert!(before < over + 5000, "{space} is still there");
            if replied < over {
                assert!(now.is_nothing(), "{space}: nothing is after the last one: {now:?}");
                let again = ask(&mut c, space);
                if now_ms() < over {
                    assert!(!again.events.is_empty() && raws.ends_with(&again.raws()), "{again:?}");
                    assert_eq!(again.id, last.str("id"));
                }
            }
        }
        assert_eq!(c.int(["PRESENCE.COUNT", space]), 0);
        assert!(ask(&mut c, space).is_nothing());
        // Silent but for what the server says of a key that goes.
        let after: Vec<_> = sub
            .so_far(&mut c)
            .into_iter()
            .filter(|m| !m.channel.starts_with(b"presence:"))
            .map(|m| String::from_utf8(m.payload).unwrap())
            .collect();
        assert_eq!(after.last().map(String::as_str), Some("del"), "{space}: {after:?}");
    }
    assert_eq!(c.stat("spaces"), 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Kept over everything that happens to a key

/// A space with an event of each kind, some of which are no longer kept. Returns what EVENTS says of it.
fn lively(c: &mut Conn, space: &str) -> Told {
    furnish(c, space);
    for i in 0..30 {
        c.ok(args![
            "PRESENCE.MESSAGE",
            space,
            "\u{1F600} \0",
            format!("{i}\r\n\"é\u{1F600}\0"),
            "SESSION",
            "s|1"
        ]);
    }
    c.ok(args!["PRESENCE.MESSAGE", space, "big", "x".repeat(60_000)]);
    let told = Told::parse(&c.ok(args!["PRESENCE.EVENTS", space, "AFTER", "0-0"]));
    assert!(told.gap && told.events.len() == 20, "{told:?}");
    told
}

/// The history is there with each byte, says the same of what is missing, and goes on.
#[track_caller]
fn goes_on(c: &mut Conn, space: &str, was: &Told, what: &str) {
    goes_on_in(c, space, was, false, what);
}

/// The same after a load, or else without one: the first event after a load begins a new line.
#[track_caller]
fn goes_on_in(c: &mut Conn, space: &str, was: &Told, loaded: bool, what: &str) {
    let told = Told::parse(&c.ok(args!["PRESENCE.EVENTS", space, "AFTER", "0-0"]));
    assert_eq!((told.raws(), &told.id, told.gap), (was.raws(), &was.id, true), "{what}");
    let (epoch, first) = was.events[0].id();
    let ask_after = |c: &mut Conn, (epoch, seq): (i64, u64)| {
        Told::parse(&c.ok(args!["PRESENCE.EVENTS", space, "AFTER", format!("{epoch}-{seq}")]))
    };
    assert!(
        ask_after(c, (epoch, first - 2)).gap && !ask_after(c, (epoch, first - 1)).gap,
        "{what}"
    );
    let (epoch, last) = parse_id(&was.id);
    let id = parse_id(&c.text(args!["PRESENCE.MESSAGE", space, "a", "one more"]));
    assert_eq!((id.0 > epoch, id.0 >= epoch, id.1), (loaded, true, last + 1), "{what}");
    let told = ask_after(c, (epoch, last));
    assert_eq!((told.gap, told.seqs()), (false, vec![last + 1]), "{what}");
    assert_eq!(told.events[0].str("space"), space, "{what}");
}

const KEEP: &[(&str, &str)] =
    &[("presence.history-length", "20"), ("presence.history-ttl-ms", "3600000")];

fn keeper() -> Builder {
    KEEP.iter().fold(Server::builder(), |b, (name, value)| b.config(name, value))
}

#[test]
fn rdb_and_aof_keep_the_history() {
    let ways: &[(&str, Builder, Stop, &[&str])] = &[
        ("RDB", keeper(), Stop::Save, &[]),
        ("DEBUG RELOAD", keeper(), Stop::Save, &["DEBUG RELOAD"]),
        ("AOF", keeper().aof(), Stop::Kill, &[]),
        ("AOF, LOADAOF", keeper().aof(), Stop::Kill, &["DEBUG LOADAOF"]),
        (
            "AOF rewritten with preamble",
            keeper().aof().config("aof-use-rdb-preamble", "yes"),
            Stop::Kill,
            &["BGREWRITEAOF"],
        ),
        (
            "AOF rewritten as commands",
            keeper().aof().config("aof-use-rdb-preamble", "no"),
            Stop::Kill,
            &["BGREWRITEAOF"],
        ),
        (
            "AOF rewritten twice",
            keeper().aof().config("aof-use-rdb-preamble", "no"),
            Stop::NoSave,
            &["BGREWRITEAOF", "BGREWRITEAOF"],
        ),
    ];
    for (what, builder, stop, lines) in ways {
        let server = builder.clone().start();
        let mut c = server.connect();
        let was = lively(&mut c, "s");
        c.ok("PRESENCE.MESSAGE quiet a hi"); // nobody is in it: a history and nothing else
        let quiet = ask(&mut c, "quiet");
        for line in *lines {
            c.ok(*line);
            wait_until("the rewrite", SOON * 4, || {
                let info = c.info("persistence");
                info["aof_rewrite_in_progress"] == "0" && info["aof_rewrite_scheduled"] == "0"
            });
        }
        server.restart(*stop);
        let mut c = server.connect();
        let told = ask(&mut c, "quiet AFTER 0-0");
        assert_eq!((told.raws(), told.gap), (quiet.raws(), false), "{what}");
        assert_eq!(c.int("PRESENCE.COUNT quiet"), 0);
        goes_on_in(&mut c, "s", &was, true, what);
        // What came after the restart survives the next one.
        let was = ask(&mut c, "s AFTER 0-0");
        server.restart(*stop);
        goes_on_in(&mut server.connect(), "s", &was, true, &format!("{what}, again"));
    }
}

#[test]
fn the_time_of_the_history_goes_on_while_the_server_is_down() {
    for stop in [Stop::Save, Stop::Kill] {
        let server = Server::builder().aof().config("presence.history-ttl-ms", "1500").start();
        let mut c = server.connect();
        c.ok("PRESENCE.MESSAGE empty a hi");
        c.ok("PRESENCE.ONLINE full a EX 600");
        let over = ask(&mut c, "full").events[0].int("at") + 1500;
        server.restart(stop);
        let mut c = server.connect();
        let told = ask(&mut c, "full AFTER 0-0");
        if now_ms() < over - 100 {
            assert_eq!((told.gap, told.events.len()), (false, 1), "{stop:?}");
        }
        server.stop(stop);
        sleep_until(over);
        server.start_again();
        let mut c = server.connect();
        let told = ask(&mut c, "full AFTER 0-0");
        assert_eq!((told.gap, told.events.len()), (true, 0), "{stop:?}");
        wait_until("the empty space to go", SOON, || c.int("EXISTS empty") == 0);
        assert_eq!(c.int("PRESENCE.COUNT full"), 1);
    }
}

#[test]
fn dump_restore_copy_rename_and_move_keep_the_history() {
    let server = keeper().start();
    let mut c = server.connect();
    let was = lively(&mut c, "s");
    let Value::BulkString(payload) = c.ok("DUMP s") else { panic!() };
    c.ok(args!["RESTORE", "restored", 0, payload]);
    c.ok("COPY s copied");
    aside(&server, 0, "COPY s copied DB 1");
    for space in ["restored", "copied"] {
        assert_eq!(c.digest(space), c.digest("s"), "{space}");
        goes_on(&mut c, space, &was, space);
    }
    goes_on(&mut c, "s", &was, "the original");
    let was = ask(&mut c, "s");
    c.ok("RENAME s renamed");
    assert!(ask(&mut c, "s").is_nothing());
    goes_on(&mut c, "renamed", &Told { gap: true, ..was }, "renamed");
    let was = ask(&mut c, "renamed");
    aside(&server, 0, "MOVE renamed 1");
    c.ok("SELECT 1");
    goes_on(&mut c, "renamed", &Told { gap: true, ..was }, "moved");
    let was = ask(&mut c, "copied");
    c.ok("SWAPDB 0 1");
    c.ok("SELECT 0");
    goes_on(&mut c, "copied", &Told { gap: true, ..was }, "swapped");
}

/// The history's time goes with the space, under whatever name it has by then.
#[test]
fn an_empty_space_goes_in_time_under_its_new_name_too() {
    let server = Server::with(&[("presence.history-ttl-ms", "700")]);
    let mut c = server.connect();
    for space in ["a", "b", "c", "d"] {
        c.ok(["PRESENCE.MESSAGE", space, "u", "hi"]);
    }
    let over = ask(&mut c, "a").events[0].int("at") + 700;
    c.ok("RENAME a a2");
    aside(&server, 0, "MOVE b 1");
    c.ok("COPY c c2");
    let Value::BulkString(payload) = c.ok("DUMP d") else { panic!() };
    c.ok(args!["RESTORE", "d2", 0, payload]);
    assert_eq!(c.int("EXISTS a2 c c2 d d2"), 5);
    wait_until("all to go", SOON, || c.int("EXISTS a2 c c2 d d2") == 0);
    assert!(now_ms() >= over);
    c.ok("SELECT 1");
    wait_until("the moved one to go", SOON, || c.int("EXISTS b") == 0);
}

#[test]
fn memory_usage_counts_the_history() {
    let server = Server::with(&[
        ("presence.history-length", "1000"),
        ("presence.history-ttl-ms", "3600000"),
    ]);
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s a EX 600");
    let usage = |c: &mut Conn| c.int("MEMORY USAGE s");
    let empty = usage(&mut c);
    let text = "x".repeat(1000);
    (0..100).for_each(|_| drop(c.ok(["PRESENCE.MESSAGE", "s", "a", &text])));
    let bytes: usize = ask(&mut c, "s").events.iter().map(|e| e.raw.len()).sum();
    let full = usage(&mut c) - empty;
    assert!(full >= 100_000, "{full} bytes for {bytes} bytes of text");
    assert!(full <= bytes as i64 * 5 / 4 + 8192, "{full} bytes for {bytes} bytes of text");
    let info = c.stat("bytes_used");
    assert!(info >= full, "INFO counts it as well: {info}");
    // What an event costs is its text and little else.
    let before = usage(&mut c);
    (0..500).for_each(|i| drop(c.ok(format!("PRESENCE.MESSAGE s a {i}"))));
    let told = ask(&mut c, "s");
    let bytes: usize = told.events[101..].iter().map(|e| e.raw.len()).sum();
    let each = (usage(&mut c) - before) as f64 / 500.0;
    assert!(each < bytes as f64 / 500.0 + 96.0, "{each} bytes an event of {} bytes", bytes / 500);
    // It gives back what it no longer keeps.
    c.ok("CONFIG SET presence.history-length 1");
    c.ok("PRESENCE.MESSAGE s a x");
    assert!(usage(&mut c) < empty + 20_000, "{} after {empty}", usage(&mut c));
    c.ok("CONFIG SET presence.history-length 0");
    c.ok("PRESENCE.MESSAGE s a x");
    assert!(usage(&mut c) <= empty, "{} after {empty}", usage(&mut c));
}

/// Thousands of quiet rooms that had one visitor each: little while the history lasts, nothing after.
#[test]
fn thousands_of_quiet_rooms_cost_little_and_then_nothing() {
    // The ring of PRESENCE.FEED keeps its memory: here it is small.
    let settings = [("presence.history-ttl-ms", "3000"), ("presence.feed-bytes", "16384")];
    let server = Server::with(&settings);
    let mut c = server.connect();
    let used = |c: &mut Conn| c.info("memory")["used_memory"].parse::<i64>().unwrap();
    let before = used(&mut c);
    let began = now_ms();
    for portion in 0..10 {
        c.batch((0..500).flat_map(|i| {
            let room = portion * 500 + i;
            [
                format!("PRESENCE.ONLINE room{room} alice"),
                format!("PRESENCE.OFFLINE room{room} alice"),
            ]
        }));
    }
    if now_ms() < began + 2500 {
        let each = (used(&mut c) - before) / 5000;
        assert!(each < 1000, "{each} bytes a room with two events");
    }
    wait_until("all rooms to go", SOON * 4, || c.int("DBSIZE") == 0);
    assert_eq!(c.stat("spaces"), 0);
    wait_until("the memory to come back", SOON, || used(&mut c) < before + 1_000_000);
}

// ---------------------------------------------------------------------------------------------------------------------
// BLOCK

#[test]
fn waiting_ends_with_each_kind_of_event() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:s"]);
    c.ok("PRESENCE.ONLINE s stays EX 600");
    sub.events_so_far(&mut c);
    for (line, brief) in [
        ("PRESENCE.ONLINE s a", "join a"),
        ("PRESENCE.ONLINE s a SESSION x", "add a/x"),
        ("PRESENCE.ONLINE s a META 1", "update a"),
        ("PRESENCE.OFFLINE s a SESSION x", "remove a/x (offline)"),
        ("PRESENCE.OFFLINE s a", "leave a (offline)"),
        ("PRESENCE.MESSAGE s a hi", "message a"),
        ("PRESENCE.ONLINE s USERS 1 b", "join b"),
        ("PRESENCE.CLOSE s", "close "),
    ] {
        let mut w = waiter(&server, &mut c, "s AFTER $ BLOCK 0");
        let mut without = waiter(&server, &mut c, "none BLOCK 0");
        c.ok(line);
        let told = answer(&mut w);
        assert_eq!((told.briefs(), told.gap), (vec![brief.to_string()], false), "{line}");
        assert_eq!(told.raws(), raws(&sub.events_so_far(&mut c)));
        assert_eq!(told.id, told.events[0].str("id"));
        // Another space is nobody's business, and the connection goes on as if nothing had been.
        waiting(&mut c, 1);
        assert_eq!(w.text("PING"), "PONG");
        c.ok("PRESENCE.MESSAGE none a hi");
        assert_eq!(answer(&mut without).briefs(), ["message a"]);
        c.ok("DEL none");
    }
    // What is no event wakes nobody.
    c.ok("DEL s");
    c.ok("PRESENCE.ONLINE s a META 1");
    let mut w = waiter(&server, &mut c, "s AFTER $ BLOCK 0");
    for line in [
        "PRESENCE.ONLINE s a",
        "PRESENCE.ONLINE s a META 1 EX 50",
        "PRESENCE.ONLINE s a NX",
        "PRESENCE.ONLINE s z XX",
        "PRESENCE.OFFLINE s z",
        "PRESENCE.OFFLINE s a LINGER 60000",
        "PRESENCE.STATUS s a",
        "EXPIRE s 500",
        "PERSIST s",
        "DEL other",
        "COPY s other",
    ] {
        c.ok(line);
        waiting(&mut c, 1);
    }
    c.ok("PRESENCE.MESSAGE s a hi");
    assert_eq!(answer(&mut w).briefs(), ["message a"]);
}

#[test]
fn waiting_ends_with_a_sweep() {
    let server = Server::start();
    let mut c = server.connect();
    for (setup, brief) in [
        ("PRESENCE.ONLINE s a PX 80", "leave a (timeout)"),
        ("PRESENCE.ONLINE s SESSIONS 1 b x PX 80", "leave b/x (timeout)"),
    ] {
        c.ok("PRESENCE.ONLINE s stays EX 600");
        let before = now_ms();
        c.ok(setup);
        let mut many: Vec<Conn> = (0..20).map(|_| server.connect()).collect();
        many.iter_mut().for_each(|w| w.send("PRESENCE.EVENTS s AFTER $ BLOCK 0").unwrap());
        for w in &mut many {
            let told = answer(w);
            let last = told.events.last().unwrap();
            assert_eq!((last.brief().as_str(), told.gap), (brief, false), "{told:?}");
            assert!(now_ms() >= before + 80, "early");
            assert!(last.arrived <= last.int("at") + 2000, "late: {last:?}");
        }
    }
    // A linger ends by the sweep as well.
    c.ok("PRESENCE.ONLINE s l");
    c.ok("PRESENCE.OFFLINE s l LINGER 50");
    let told = ask(&mut c, "s AFTER $ BLOCK 0");
    assert_eq!(told.briefs(), ["leave l (offline)"]);
    waiting(&mut c, 0);
}

/// All that waits gets everything, each on its own terms; who waits elsewhere goes on waiting.
#[test]
fn any_number_of_clients_wait() {
    let server = Server::with(&[("maxclients", "4000")]);
    let mut c = server.connect();
    c.ok("PRESENCE.MESSAGE s a 1");
    let connect = |n: usize, words: &str| -> Vec<Conn> {
        (0..n)
            .map(|_| {
                let mut w = server.connect();
                w.send(format!("PRESENCE.EVENTS {words}")).unwrap();
                w
            })
            .collect()
    };
    let mut here = connect(400, "s AFTER $ BLOCK 0");
    let mut one = connect(100, "s AFTER $ COUNT 1 BLOCK 60000");
    let mut there: Vec<Vec<Conn>> = (0..40).map(|i| connect(5, &format!("t{i} BLOCK 0"))).collect();
    waiting(&mut c, 700);
    ["MULTI", "PRESENCE.MESSAGE s a 2", "PRESENCE.MESSAGE s a 3", "EXEC"]
        .iter()
        .for_each(|l| drop(c.ok(*l)));
    let epoch = parse_id(&ask(&mut c, "s").id).0;
    for w in &mut here {
        let told = answer(w);
        assert_eq!((told.seqs(), told.gap), (vec![2, 3], false));
    }
    for w in &mut one {
        let told = answer(w);
        assert_eq!((told.seqs(), told.id), (vec![2], format!("{epoch}-3")));
    }
    waiting(&mut c, 200);
    for (i, waiters) in there.iter_mut().enumerate() {
        c.ok(format!("PRESENCE.ONLINE t{i} u{i}"));
        for w in waiters {
            assert_eq!(answer(w).briefs(), [format!("join u{i}")]);
        }
    }
    waiting(&mut c, 0);
    // Again on the same connections: nothing is left over from before.
    here.iter_mut().for_each(|w| w.send("PRESENCE.EVENTS s AFTER $ BLOCK 0").unwrap());
    waiting(&mut c, 400);
    c.ok("PRESENCE.MESSAGE s a 4");
    here.iter_mut().for_each(|w| assert_eq!(answer(w).seqs(), [4]));
}

/// A thousand waits end at the same moment: each on time, none early, and the server stays with it.
#[test]
fn waiting_ends_on_time() {
    let server = Server::with(&[("maxclients", "4000")]);
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s a EX 600");
    let id = ask(&mut c, "s").id;
    for block in [1, 50, 300] {
        for words in ["s AFTER $", &format!("s AFTER {id}"), "none", "none AFTER 0-0"] {
            let before = now_ms();
            let told = ask(&mut c, &format!("{words} BLOCK {block}"));
            let took = now_ms() - before;
            assert!(told.is_nothing(), "{words}: {told:?}");
            assert_eq!(told.id, if words.starts_with('s') { &id } else { "0-0" });
            assert!(took >= block, "{words} BLOCK {block}: back after {took} ms");
            assert!(took < block + 1500, "{words} BLOCK {block}: back after {took} ms");
        }
    }
    // Something to tell: no wait at all, not even a long one.
    let before = now_ms();
    assert_eq!(ask(&mut c, "s BLOCK 0").briefs(), ["join a"]);
    assert_eq!(ask(&mut c, "s AFTER 0-0 BLOCK 60000").briefs(), ["join a"]);
    assert!(ask(&mut c, "s AFTER 1-1 BLOCK 60000").gap, "a gap is news");
    assert!(ask(&mut c, "none AFTER 1-1 BLOCK 60000").gap, "a gap is news");
    assert!(now_ms() < before + 10_000);

    let before = now_ms();
    let mut many: Vec<Conn> = (0..1000).map(|_| server.connect()).collect();
    let sent: Vec<i64> = many
        .iter_mut()
        .map(|w| {
            let sent = now_ms();
            w.send("PRESENCE.EVENTS s AFTER $ BLOCK 700").unwrap();
            sent
        })
        .collect();
    for (w, sent) in many.iter_mut().zip(sent) {
        assert!(answer(w).is_nothing());
        assert!(now_ms() >= sent + 700, "{} ms early", sent + 700 - now_ms());
    }
    assert!(now_ms() < before + 20_000);
    waiting(&mut c, 0);
    // What timed out is not told again.
    c.ok("PRESENCE.MESSAGE s a hi");
    many.iter_mut().for_each(|w| assert_eq!(w.text("PING"), "PONG"));
}

/// However a space ends: who waits for it is told that it has.
#[test]
fn waiting_ends_when_the_space_does() {
    let server = Server::start();
    let mut c = server.connect();
    let ends: &[&[&str]] = &[
        &["DEL s"],
        &["UNLINK s"],
        &["FLUSHALL"],
        &["FLUSHALL ASYNC"],
        &["FLUSHDB"],
        &["FLUSHDB ASYNC"],
        &["RENAME s elsewhere", "DEL elsewhere"],
        &["MOVE s 3", "FLUSHALL"],
        &["SWAPDB 0 1", "FLUSHALL"],
        &["SWAPDB 1 0", "FLUSHALL"],
        &["PEXPIRE s 20"],
        &["PEXPIREAT s 1"],
        &["MULTI", "DEL s", "EXEC"],
        &["EVAL return(redis.call('DEL','s')) 0"],
    ];
    for lines in ends {
        c.ok("PRESENCE.ONLINE s a EX 600");
        let id = ask(&mut c, "s").id;
        let mut w = waiter(&server, &mut c, "s AFTER $ BLOCK 0");
        let mut all = waiter(&server, &mut c, &format!("s AFTER {id} COUNT 5 BLOCK 60000"));
        for line in *lines {
            if line.starts_with("MOVE") {
                aside(&server, 0, line);
            } else {
                c.ok(*line);
            }
        }
        for w in [&mut w, &mut all] {
            let told = answer(w);
            assert!(told.gap && told.events.is_empty() && told.id == "0-0", "{lines:?}: {told:?}");
        }
        waiting(&mut c, 0);
        assert_eq!(c.int("DBSIZE"), 0, "{lines:?}");
    }
    // Another value at the key is an error for who reads it, waiting or not.
    c.ok("PRESENCE.ONLINE s a");
    let mut w = waiter(&server, &mut c, "s AFTER $ BLOCK 0");
    c.ok("SET s x");
    let e = w.recv().unwrap_err();
    assert!(e.starts_with("WRONGTYPE"), "{e}");
    c.ok("DEL s");
    // It ends and is there again before anybody looks: another life.
    c.ok("PRESENCE.ONLINE s a");
    let old = ask(&mut c, "s").id;
    let mut w = waiter(&server, &mut c, "s AFTER $ BLOCK 0");
    ["MULTI", "DEL s", "PRESENCE.ONLINE s b", "EXEC"].iter().for_each(|l| drop(c.ok(*l)));
    let told = answer(&mut w);
    assert_eq!(
        (told.gap, told.briefs()),
        (true, vec!["join b".to_string()]),
        "after {old}: {told:?}"
    );
    // And by itself, when nobody is in it any more and its history is over.
    c.ok("CONFIG SET presence.history-ttl-ms 300");
    c.ok("PRESENCE.OFFLINE s b");
    let id = ask(&mut c, "s").id;
    let told = ask(&mut c, &format!("s AFTER {id} BLOCK 0"));
    assert!(told.gap && told.id == "0-0", "{told:?}");
    assert_eq!(c.int("EXISTS s"), 0);
}

/// A space with the same name in another database is another space.
#[test]
fn waiting_is_in_one_database() {
    let server = Server::start();
    let mut c = server.connect();
    let mut other = server.connect();
    other.ok("SELECT 1");
    let mut w0 = waiter(&server, &mut c, "s BLOCK 0");
    let mut w1 = server.connect();
    w1.ok("SELECT 1");
    w1.send("PRESENCE.EVENTS s BLOCK 0").unwrap();
    waiting(&mut c, 2);
    other.ok("PRESENCE.ONLINE s in1");
    assert_eq!(answer(&mut w1).briefs(), ["join in1"]);
    waiting(&mut c, 1);
    other.ok("DEL s");
    other.ok("PRESENCE.ONLINE s in1");
    waiting(&mut c, 1);
    c.ok("PRESENCE.ONLINE s in0");
    assert_eq!(answer(&mut w0).briefs(), ["join in0"]);
}

#[test]
fn client_unblock_ends_the_wait() {
    let server = Server::start();
    let mut c = server.connect();
    for (space, block) in [("s", 0), ("s", 60_000), ("none", 0)] {
        c.ok("FLUSHALL");
        c.ok("PRESENCE.ONLINE s a EX 600");
        let id = ask(&mut c, space).id;
        let mut w = server.connect();
        let client = w.int("CLIENT ID");
        for round in 0..20 {
            w.send(format!("PRESENCE.EVENTS {space} AFTER $ BLOCK {block}")).unwrap();
            waiting(&mut c, 1);
            if round % 3 == 2 {
                assert_eq!(c.int(format!("CLIENT UNBLOCK {client} ERROR")), 1);
                let e = w.recv().unwrap_err();
                assert!(e.starts_with("UNBLOCKED "), "{e}");
            } else {
                let how = ["", "TIMEOUT"][round % 3];
                assert_eq!(c.int(format!("CLIENT UNBLOCK {client} {how}")), 1);
                let told = answer(&mut w);
                assert!(told.is_nothing() && told.id == id, "{told:?}");
            }
            assert_eq!(w.text("PING"), "PONG");
            assert_eq!(c.int(format!("CLIENT UNBLOCK {client}")), 0, "it no longer waits");
        }
        // The event comes to the wait that goes on, once, and to none of those that ended before.
        w.send(format!("PRESENCE.EVENTS {space} AFTER $ BLOCK {block}")).unwrap();
        waiting(&mut c, 1);
        c.ok(format!("PRESENCE.MESSAGE {space} a hi"));
        assert_eq!(answer(&mut w).briefs(), ["message a"]);
        assert_eq!(w.text("PING"), "PONG");
    }
}

/// An event and the end of the wait in the same turn of the server: one reply, either with the event or without.
#[test]
fn a_wait_that_ends_in_the_moment_of_an_event_gets_one_reply() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s a EX 600");
    let busy = "
        redis.call('PRESENCE.MESSAGE', KEYS[1], 'a', 'hi')
        local function now() local t = redis.call('TIME'); return t[1] * 1000 + math.floor(t[2] / 1000) end
        local till, n = now() + 120, 0
        while now() <= till and n < 3000000 do n = n + 1 end";
    for way in ["time", "CLIENT UNBLOCK", "CLIENT UNBLOCK ERROR", "gone"] {
        let block = if way == "time" { 60 } else { 0 };
        let mut w = waiter(&server, &mut c, &format!("s AFTER $ BLOCK {block}"));
        let list = c.text("CLIENT LIST");
        let client = list.lines().find(|l| l.contains("cmd=presence.events")).unwrap();
        let client = client.split_once(' ').unwrap().0.trim_start_matches("id=").to_string();
        if way == "time" {
            c.ok(args!["EVAL", busy, 1, "s"]);
        } else {
            let (verb, how) = match way {
                "gone" => ("KILL ID", ""),
                _ => ("UNBLOCK", way.trim_start_matches("CLIENT UNBLOCK")),
            };
            c.ok("MULTI");
            c.ok("PRESENCE.MESSAGE s a hi");
            c.ok(format!("CLIENT {verb} {client} {how}"));
            c.ok("EXEC");
        }
        waiting(&mut c, 0);
        w.send("ECHO marker").unwrap();
        if way == "gone" {
            wait_until("the connection to end", SOON, || {
                w.recv().is_err_and(|e| e.starts_with("lost"))
            });
            continue;
        }
        let first = w.recv();
        let marker = |v: &Value| matches!(v, Value::BulkString(b) if b == b"marker");
        assert!(!first.as_ref().is_ok_and(marker), "{way}: EVENTS got no reply");
        match first {
            Ok(told) => drop(Told::parse(&told)),
            Err(e) => assert!(way.ends_with("ERROR") && e.starts_with("UNBLOCKED"), "{way}: {e}"),
        }
        assert_eq!(text(&w.recv().unwrap()), "marker", "{way}");
    }
    // The same by chance: short waits while much happens. Each gets its reply, and none is told twice.
    let server = Server::start();
    let mut clients: Vec<Conn> = (0..20).map(|_| server.connect()).collect();
    let mut c = server.connect();
    let end = now_ms() + 2000;
    while now_ms() < end {
        for (i, w) in clients.iter_mut().enumerate() {
            w.send(format!("PRESENCE.EVENTS s AFTER $ BLOCK {}", 1 + i % 4)).unwrap();
            w.send(format!("ECHO {i}")).unwrap();
        }
        for _ in 0..20 {
            c.ok("PRESENCE.MESSAGE s a hi");
        }
        for (i, w) in clients.iter_mut().enumerate() {
            let first = w.recv().unwrap();
            assert!(matches!(first, Value::Array(_)), "client {i}: EVENTS got no reply");
            assert_eq!(text(&w.recv().unwrap()), i.to_string());
        }
    }
}

/// Clients that go away while they wait leave nothing behind, however they go.
#[test]
fn who_is_gone_no_longer_waits() {
    let server = Server::with(&[("maxclients", "4000")]);
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s a EX 600");
    let mut used = Vec::new();
    for round in 0..12 {
        let mut many: Vec<Conn> = (0..200).map(|_| server.connect()).collect();
        for (i, w) in many.iter_mut().enumerate() {
            let space = ["s", "none", "other"][i % 3];
            w.send(format!("PRESENCE.EVENTS {space} AFTER $ BLOCK {}", [0, 600_000][i % 2]))
                .unwrap();
        }
        waiting(&mut c, 200);
        match round % 3 {
            0 => many.clear(),
            1 => {
                c.ok("CLIENT KILL TYPE normal SKIPME yes");
                many.iter_mut().for_each(|w| assert!(w.recv().unwrap_err().starts_with("lost")));
            }
            _ => {
                // Half of them go, the others are told what happens next.
                many.truncate(100);
                waiting(&mut c, 100);
                for space in ["s", "none", "other"] {
                    c.ok(["PRESENCE.MESSAGE", space, "a", "hi"]);
                }
                many.iter_mut().for_each(|w| assert_eq!(answer(w).briefs(), ["message a"]));
                c.ok("DEL none other");
                many.clear();
            }
        }
        waiting(&mut c, 0);
        wait_until("the connections to go", SOON, || c.info("clients")["connected_clients"] == "1");
        used.push(c.info("memory")["used_memory"].parse::<i64>().unwrap());
    }
    // A handle that stayed would be some hundred bytes, and there were 200 a round.
    let grown = used[11] - used[2];
    assert!(grown < 9 * 200 * 40, "memory grows by {} bytes a round: {used:?}", grown / 9);
    c.ok("PRESENCE.MESSAGE s a hi");
    assert_eq!(ask(&mut c, "s AFTER 0-0").events.last().unwrap().brief(), "message a");
}

/// Waits that end by themselves, on a space where nothing ever happens, leave nothing behind either.
#[test]
fn waits_that_end_without_news_leave_nothing_behind() {
    let server = Server::start();
    let mut c = server.connect();
    let mut w = server.connect();
    let client = w.int("CLIENT ID");
    let used = |c: &mut Conn| c.info("memory")["used_memory"].parse::<i64>().unwrap();
    for how in ["TIMEOUT", "ERROR", "by time"] {
        let mut round = |c: &mut Conn, n: usize| {
            for _ in 0..n {
                if how == "by time" {
                    assert!(ask(&mut w, "never BLOCK 1").is_nothing());
                    continue;
                }
                w.send("PRESENCE.EVENTS never BLOCK 0").unwrap();
                // It may not have come to wait yet.
                wait_until("the client to wait", SOON, || {
                    c.int(format!("CLIENT UNBLOCK {client} {how}")) == 1
                });
                assert_eq!(w.recv().is_err(), how == "ERROR");
            }
        };
        let n = if how == "by time" { 60 } else { 2000 };
        round(&mut c, n / 4);
        let before = used(&mut c);
        round(&mut c, n);
        let each = (used(&mut c) - before) as f64 / n as f64;
        assert!(each < 60.0, "{how}: {each} bytes are left of each wait");
    }
}

#[test]
fn in_multi_and_scripts_it_does_not_wait() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s a");
    let id = ask(&mut c, "s").id;
    let before = now_ms();
    c.ok("MULTI");
    c.ok("PRESENCE.EVENTS s AFTER $ BLOCK 60000");
    c.ok("PRESENCE.EVENTS none BLOCK 0");
    c.ok("PRESENCE.MESSAGE s a hi");
    c.ok(format!("PRESENCE.EVENTS s AFTER {id} BLOCK 0"));
    let replies = c.ok("EXEC");
    let replies = items(&replies);
    assert!(Told::parse(&replies[0]).is_nothing());
    assert!(Told::parse(&replies[1]).is_nothing());
    assert_eq!(Told::parse(&replies[3]).briefs(), ["message a"], "what the transaction itself did");
    for (script, n) in [
        ("return redis.call('PRESENCE.EVENTS', KEYS[1], 'AFTER', '$', 'BLOCK', 0)", 0),
        ("return redis.call('PRESENCE.EVENTS', 'none', 'BLOCK', 60000)", 0),
        (
            "redis.call('PRESENCE.MESSAGE', KEYS[1], 'a', 'x'); return redis.call('PRESENCE.EVENTS', KEYS[1], 'COUNT', 2, 'BLOCK', 0)",
            2,
        ),
    ] {
        let v = c.ok(args!["EVAL", script, 1, "s"]);
        assert_eq!(Told::parse(&v).events.len(), n, "{script}");
    }
    assert!(now_ms() < before + 10_000);
    assert_eq!(c.info("clients")["blocked_clients"], "0");
    // Who waits outside is woken by what happens inside, once it is over, with all of it at once.
    let mut w = waiter(&server, &mut c, "s AFTER $ BLOCK 0");
    c.ok(args![
        "EVAL",
        "for i = 1, 5 do redis.call('PRESENCE.MESSAGE', KEYS[1], 'a', i) end",
        1,
        "s"
    ]);
    assert_eq!(answer(&mut w).events.len(), 5);
    let mut w = waiter(&server, &mut c, "s AFTER $ BLOCK 0");
    for line in
        ["MULTI", "PRESENCE.ONLINE s b", "PRESENCE.OFFLINE s b", "PRESENCE.ONLINE s b", "EXEC"]
    {
        c.ok(line);
    }
    assert_eq!(answer(&mut w).briefs(), ["join b", "leave b (offline)", "join b"]);
    // A transaction that takes all back but for the ids.
    let mut w = waiter(&server, &mut c, "fresh BLOCK 300");
    ["MULTI", "PRESENCE.ONLINE fresh b", "DEL fresh", "EXEC"].iter().for_each(|l| drop(c.ok(*l)));
    assert!(answer(&mut w).events.is_empty());
}

/// The space that is waited for does not exist yet, and comes in one way or another.
#[test]
fn waiting_for_a_space_that_is_still_to_come() {
    let server = Server::start();
    let mut c = server.connect();
    let mut payload = Vec::new();
    let ways: &[(&str, &[&str])] = &[
        ("ONLINE", &["PRESENCE.ONLINE s a"]),
        ("MESSAGE", &["PRESENCE.MESSAGE s a hi"]),
        ("RENAME", &["RENAME src s"]),
        ("RENAMENX", &["RENAMENX src s"]),
        ("COPY", &["COPY src s"]),
        ("MOVE", &[]),
        ("SWAPDB", &["SWAPDB 0 1"]),
        ("RESTORE", &[]),
    ];
    for (way, lines) in ways {
        c.ok("FLUSHALL");
        c.ok("PRESENCE.ONLINE src a");
        aside(&server, 0, "COPY src s DB 1");
        if let Value::BulkString(p) = c.ok("DUMP src") {
            payload = p;
        }
        let mut waiters: Vec<Conn> = [
            "s BLOCK 0",
            "s AFTER 0-0 BLOCK 0",
            "s AFTER $ BLOCK 60000",
            "s AFTER 0-0 COUNT 1 BLOCK 0",
        ]
        .iter()
        .map(|words| waiter(&server, &mut c, words))
        .collect();
        match *way {
            "RESTORE" => drop(c.ok(args!["RESTORE", "s", 0, payload])),
            "MOVE" => aside(&server, 1, "MOVE s 0"),
            _ => lines.iter().for_each(|line| drop(c.ok(*line))),
        }
        let brief = if *way == "MESSAGE" { "message a" } else { "join a" };
        for w in &mut waiters {
            let told = answer(w);
            assert_eq!((told.briefs(), told.gap), (vec![brief.to_string()], false), "{way}");
        }
        let id = ask(&mut c, "s").id;
        // And what follows it there.
        let mut w = waiter(&server, &mut c, &format!("s AFTER {id} BLOCK 0"));
        c.ok("PRESENCE.ONLINE s next");
        assert_eq!(answer(&mut w).briefs(), ["join next"], "{way}");
    }
    // A space with another life, an older or a younger one, takes the place of the one that is waited for.
    for (line, first) in [
        ("RENAME src s", "s"),
        ("RENAME src s", "src"),
        ("COPY src s REPLACE", "s"),
        ("COPY src s REPLACE", "src"),
    ] {
        c.ok("FLUSHALL");
        c.ok(["PRESENCE.ONLINE", first, "a"]);
        let made = now_ms();
        wait_until("another millisecond", SOON, || now_ms() > made);
        c.ok(["PRESENCE.ONLINE", if first == "s" { "src" } else { "s" }, "b"]);
        let mut w = waiter(&server, &mut c, "s AFTER $ BLOCK 0");
        c.ok(line);
        let told = answer(&mut w);
        assert_eq!((told.gap, told.events.len()), (true, 1), "{line}, {first} is older: {told:?}");
    }
}

/// Commands behind one that waits are carried out when it is over, in their order.
#[test]
fn a_pipeline_goes_on_after_the_wait() {
    let server = Server::start();
    let mut c = server.connect();
    let mut w = server.connect();
    for line in [
        "PING",
        "PRESENCE.EVENTS s AFTER $ BLOCK 0",
        "PRESENCE.COUNT s",
        "PRESENCE.EVENTS s AFTER $ BLOCK 0",
        "PING",
    ] {
        w.send(line).unwrap();
    }
    waiting(&mut c, 1);
    c.ok("PRESENCE.ONLINE s a");
    assert_eq!(text(&w.recv().unwrap()), "PONG");
    assert_eq!(answer(&mut w).briefs(), ["join a"]);
    assert_eq!(w.recv().unwrap(), Value::Int(1));
    waiting(&mut c, 1);
    c.ok("PRESENCE.ONLINE s b");
    assert_eq!(answer(&mut w).briefs(), ["join b"]);
    assert_eq!(text(&w.recv().unwrap()), "PONG");
}

/// Followers that only ever wait for what is next see each event once, in order, whoever makes it.
#[test]
fn followers_miss_nothing() {
    let mut rng = rng(11);
    let server = Server::with(&[
        ("presence.history-length", "100000"),
        ("presence.history-ttl-ms", "3600000"),
    ]);
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s keeper EX 600");
    let start = ask(&mut c, "s").id;
    let followers: Vec<_> = (0..8)
        .map(|i| {
            let mut w = server.connect();
            let mut last = start.clone();
            std::thread::spawn(move || {
                let mut seen: Vec<String> = Vec::new();
                loop {
                    let told = ask(
                        &mut w,
                        &format!("s AFTER {last} COUNT {} BLOCK {}", 1 + i * 7, [0, 20][i % 2]),
                    );
                    assert!(!told.gap, "{told:?}");
                    for e in told.events {
                        last = e.str("id").to_string();
                        let end = e.str("message") == "end";
                        seen.push(e.raw);
                        if end {
                            return seen;
                        }
                    }
                }
            })
        })
        .collect();
    for i in 0..3000 {
        let u = rng.random_range(0..20);
        let n = rng.random_range(1..25);
        let line = match rng.random_range(0..10) {
            0..4 => format!("PRESENCE.ONLINE s u{u} PX {n}"),
            4 | 5 => format!("PRESENCE.ONLINE s u{u} SESSION {n} PX {n}"),
            6 => format!("PRESENCE.OFFLINE s u{u}"),
            7 => format!("PRESENCE.OFFLINE s u{u} LINGER {n}"),
            8 => format!("PRESENCE.MESSAGE s u{u} {i}"),
            _ => "PING".to_string(),
        };
        c.ok(line);
    }
    wait_until("all leases to end", SOON, || c.int("PRESENCE.COUNT s SESSIONS") == 1);
    c.ok("PRESENCE.MESSAGE s keeper end");
    let mut all = ask(&mut c, &format!("s AFTER {start}"));
    // Leases that were over, but had not been swept yet, end after it.
    let end = all.events.iter().position(|e| e.str("message") == "end").unwrap();
    all.events.truncate(end + 1);
    assert!(!all.gap && all.events.len() > 2000, "{} events", all.events.len());
    let ids: BTreeSet<_> = all.events.iter().map(Event::id).collect();
    assert_eq!(ids.len(), all.events.len());
    for (i, follower) in followers.into_iter().enumerate() {
        let seen = follower.join().unwrap();
        assert_eq!(seen.len(), all.events.len(), "follower {i}");
        assert!(seen == all.raws(), "follower {i} saw something else");
    }
}

// --- histories that are removed --------------------------------------------------------------------------------------

/// What INFO counts is what is there, also when no event tells of a change.
#[track_caller]
fn counted_is_there(c: &mut Conn, spaces: &[String]) {
    let real: i64 = spaces.iter().map(|s| c.int(["MEMORY", "USAGE", s])).sum();
    let told = c.stat("bytes_used");
    // INFO has the expiry queue in it too, MEMORY USAGE the keys.
    assert!((told - real).abs() < real / 10 + 65_536, "bytes_used {told}, MEMORY USAGE {real}");
}

#[test]
fn memory_of_a_history_that_the_sweep_removes_is_counted_out() {
    let server = Server::with(&[
        ("presence.history-length", "100000"),
        ("presence.history-ttl-ms", "3600000"),
        ("presence.lease-ttl-ms", "3600000"),
    ]);
    let mut c = server.connect();
    let spaces: Vec<String> = (0..20).map(|s| format!("s{s}")).collect();
    for space in &spaces {
        c.ok(["PRESENCE.ONLINE", space, "a"]);
        c.batch((0..1500).map(|n| args!["PRESENCE.MESSAGE", space, "a", format!("line {n}")]));
    }
    counted_is_there(&mut c, &spaces);
    let full = c.stat("bytes_used");
    // Shorter by the settings: what is too much goes, what is left is the end of it.
    c.ok("CONFIG SET presence.history-length 1000");
    wait_until("the older events to be removed", SOON, || c.stat("bytes_used") < full * 3 / 4);
    counted_is_there(&mut c, &spaces);
    for space in &spaces {
        assert!(ask(&mut c, space).seqs().into_iter().eq(502..=1501));
    }
    // Too old: all of it goes.
    c.ok("CONFIG SET presence.history-ttl-ms 50");
    wait_until("the histories to be removed", SOON, || c.stat("bytes_used") < 100_000);
    counted_is_there(&mut c, &spaces);
    assert!(spaces.iter().all(|space| ask(&mut c, space).events.is_empty()));
    assert_eq!((c.stat("spaces"), c.stat("sessions")), (20, 20));
}

/// One event would remove thousands: it removes some, and the sweep the rest, on the replica too.
#[test]
fn an_event_after_many_old_ones_leaves_most_of_them_to_the_sweep() {
    let p_server = crate::replication::primary()
        .config("presence.history-length", "100000")
        .config("presence.history-ttl-ms", "1500")
        .start();
    let r_server = crate::replication::replica_of(&p_server).start();
    let (mut p, mut r) = (p_server.connect(), r_server.connect());
    crate::replication::sync(&mut p, &mut r);
    p.ok("PRESENCE.ONLINE s a EX 3600");
    p.batch((0..30_000).map(|n| args!["PRESENCE.MESSAGE", "s", "a", format!("line {n}")]));
    let full = p.int("MEMORY USAGE s");
    let last = ask(&mut p, "s COUNT 1").id;
    // The last of them is young for longer than the others.
    sleep_until(now_ms() + 1000);
    p.ok("PRESENCE.MESSAGE s a last-but-one");
    sleep_until(now_ms() + 600);
    p.ok("PRESENCE.MESSAGE s a last");
    let told = ask(&mut p, &format!("s AFTER {last}"));
    assert_eq!((told.gap, told.events.len()), (false, 2));
    wait_until("the old events to be removed", SOON, || p.int("MEMORY USAGE s") < full / 20);
    assert_eq!(ask(&mut p, "s").seqs(), [30_002, 30_003]);
    crate::replication::same(&mut p, &mut r);
    wait_until("the replica to remove them", SOON, || r.int("MEMORY USAGE s") < full / 20);
    counted_is_there(&mut r, &["s".into()]);
}
