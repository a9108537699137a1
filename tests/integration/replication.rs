//! A primary and its replicas: equal state, each event once on each node, nobody but the primary decides.

use crate::harness::*;
use rand::Rng;
use rand::seq::IndexedRandom;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

const KEPT: (&str, &str) = ("presence.history-ttl-ms", "3600000");

pub fn primary() -> Builder {
    Server::builder().config(KEPT.0, KEPT.1).config("repl-diskless-sync-delay", "0")
}

pub fn replica_of(primary: &Server) -> Builder {
    self::primary().line(&format!("replicaof 127.0.0.1 {}", primary.port))
}

/// Waits until the replica is connected and has all that its primary had at the call.
#[track_caller]
pub fn sync(primary: &mut Conn, replica: &mut Conn) {
    wait_until("the link", SOON * 4, || {
        let info = replica.info("replication");
        info.get("master_link_status").is_some_and(|status| status == "up")
            && info.get("master_sync_in_progress").is_some_and(|syncing| syncing == "0")
    });
    let offset = |c: &mut Conn, field: &str| -> i64 {
        c.info("replication").get(field).and_then(|n| n.parse().ok()).unwrap_or(-1)
    };
    let wanted = offset(primary, "master_repl_offset");
    wait_until("the replica to catch up", SOON * 4, || {
        offset(replica, "slave_repl_offset") >= wanted
    });
}

/// Digests of all keys, taken while nothing changes. Left out are those that are to expire: a paused primary keeps them
/// beyond their time, and a replica hides them.
pub fn digests(c: &mut Conn) -> BTreeMap<String, String> {
    let mut keys = texts(&c.ok("KEYS *"));
    keys.retain(|key| c.int(["PTTL", key]) == -1);
    keys.into_iter().map(|key| (c.digest(&key), key)).map(|(digest, key)| (key, digest)).collect()
}

/// Stops the sweep and compares. The primary's pause ends before this returns.
#[track_caller]
pub fn same(p: &mut Conn, r: &mut Conn) {
    p.ok("CLIENT PAUSE 60000 WRITE");
    sync(p, r);
    let (ours, theirs) = (digests(p), digests(r));
    p.ok("CLIENT UNPAUSE");
    assert_eq!(ours, theirs);
}

/// Tells threads to end, also where the test fails before it does so itself.
pub struct Over(pub AtomicBool);

impl Over {
    pub fn yet(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub struct EndOnDrop<'a>(pub &'a Over);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// A random change, of any kind.
fn change(c: &mut Conn, rng: &mut impl Rng) {
    let space = *["s0", "s1", "s2", "s3"].choose(rng).unwrap();
    let user = format!("u{}", rng.random_range(0..12));
    let session = *["", "a", "b"].choose(rng).unwrap();
    let ttl = rng.random_range(1..400);
    let reply = match rng.random_range(0..100) {
        0..45 => c.try_cmd(args!["PRESENCE.ONLINE", space, &user, "SESSION", session, "PX", ttl]),
        45..53 => c.try_cmd(args!["PRESENCE.ONLINE", space, &user, "META", ttl, "PX", ttl]),
        53..60 => c.try_cmd(args!["PRESENCE.ONLINE", space, "USERS", 3, &user, "x", "y", "PX", ttl]),
        60..68 => c.try_cmd(args!["PRESENCE.OFFLINE", space, &user]),
        68..73 => c.try_cmd(args!["PRESENCE.OFFLINE", space, &user, "LINGER", ttl / 2]),
        73..79 => c.try_cmd(args!["PRESENCE.MESSAGE", space, &user, "h\u{e9}"]),
        79..81 => c.try_cmd(args!["PRESENCE.CLOSE", space, "PX", 30]),
        81..83 => c.try_cmd(["DEL", space]),
        83..85 => c.try_cmd(["RENAME", space, "s3"]),
        85..87 => c.try_cmd(["COPY", space, "s2", "REPLACE"]),
        87..88 => c.try_cmd(args!["PEXPIRE", space, 40]),
        88..89 => c.try_cmd(["CONFIG", "SET", "presence.history-length", ["0", "5", "128"].choose(rng).unwrap()]),
        89..95 => {
            c.ok("MULTI");
            c.ok(args!["PRESENCE.ONLINE", space, &user, "PX", ttl]);
            c.ok(args!["SET", "plain", ttl]);
            c.ok(args!["PRESENCE.OFFLINE", space, "u1"]);
            c.try_cmd("EXEC")
        }
        _ => c.try_cmd(args![
            "EVAL",
            "for i = 1, 3 do redis.call('PRESENCE.ONLINE', KEYS[1], ARGV[1] .. i, 'PX', ARGV[2]) end \
             return redis.call('PRESENCE.OFFLINE', KEYS[1], ARGV[1] .. 2)",
            1, space, &user, ttl
        ]),
    };
    if let Err(e) = reply {
        let expected = ["CLOSED", "ERR no such key", "ERR source and destination"];
        assert!(expected.iter().any(|start| e.starts_with(start)), "{e}");
    }
}

/// Events of one channel, by epoch: the ids of each must be 1, 2, 3 … from where it begins.
#[track_caller]
pub fn without_holes(events: &[Event]) {
    let mut last: BTreeMap<(Vec<u8>, i64), u64> = BTreeMap::new();
    for event in events {
        let (epoch, seq) = event.id();
        let before = last.insert((event.channel.clone(), epoch), seq);
        if let Some(before) = before {
            assert_eq!(seq, before + 1, "a hole or a repetition before {event:?}");
        }
    }
}

#[test]
fn a_replica_is_equal_and_hears_every_event_once() {
    let mut rng = rng(41);
    let p_server = primary().aof().start();
    let r_server = replica_of(&p_server).aof().start();
    let (mut p, mut r) = (p_server.connect(), r_server.connect());
    sync(&mut p, &mut r);
    let channels = ["presence:s0", "presence:s1", "presence:s2", "presence:s3"];
    let (mut at_p, mut at_r) = (p_server.subscribe(&channels), r_server.subscribe(&channels));
    for round in 0..12 {
        for _ in 0..250 {
            change(&mut p, &mut rng);
        }
        if round % 3 == 2 {
            same(&mut p, &mut r);
        }
    }
    wait_until("everybody to lapse", SOON, || {
        ["s0", "s1", "s2", "s3"].iter().all(|s| p.int(["PRESENCE.COUNT", s]) == 0)
    });
    p.ok("CONFIG SET presence.history-length 128");
    wait_until("the sweep", SOON, || p.stat("users") == 0);
    sync(&mut p, &mut r);
    let (mut heard_p, mut heard_r) = (at_p.so_far(&mut p), at_r.so_far(&mut p));
    heard_p.retain(|m| m.channel.starts_with(b"presence:"));
    heard_r.retain(|m| m.channel.starts_with(b"presence:"));
    let raw = |messages: &[Message]| -> Vec<Vec<u8>> {
        messages.iter().map(|m| m.payload.clone()).collect()
    };
    assert!(heard_p.len() > 1000, "only {} events", heard_p.len());
    assert_eq!(raw(&heard_p), raw(&heard_r));
    same(&mut p, &mut r);
    // What the replica wrote into its own AOF makes the same again.
    let before = digests(&mut r);
    r.ok(["REPLICAOF", "NO", "ONE"]);
    assert_eq!(r.ok("CONFIG SET presence.restart-grace-ms 0"), Value::Okay);
    r_server.restart(Stop::Kill);
    let mut r = r_server.connect();
    let after = digests(&mut r);
    assert_eq!(before, after);
}

#[test]
fn a_replica_hides_what_lapsed_and_ends_nothing() {
    let p_server = primary().start();
    let r_server = replica_of(&p_server).start();
    let w_server = replica_of(&p_server).config("replica-read-only", "no").start();
    let (mut p, mut r, mut w) = (p_server.connect(), r_server.connect(), w_server.connect());
    sync(&mut p, &mut r);
    sync(&mut p, &mut w);
    let mut at_r = r_server.subscribe(&["presence:s"]);
    let ends = now_ms() + 700;
    p.ok(args!["PRESENCE.ONLINE", "s", "USERS", 3, "a", "b", "c", "PXAT", ends]);
    p.ok(args!["PRESENCE.ONLINE", "s", "stays", "EX", 100]);
    // While the primary is paused, nobody may end anything.
    p.ok("CLIENT PAUSE 60000 WRITE");
    sync(&mut p, &mut r);
    sync(&mut p, &mut w);
    let digest = r.digest("s");
    if r.int("PRESENCE.COUNT s") != 4 {
        assert!(now_ms() >= ends, "hidden too early");
    }
    sleep_until(ends);
    for c in [&mut r, &mut w] {
        assert_eq!(c.int("PRESENCE.COUNT s"), 1);
        assert_eq!(c.ints("PRESENCE.STATUS s a stays"), [0, 1]);
        assert_eq!(c.space("s").names(), ["stays"]);
        assert!(c.user("s", "b").is_none());
    }
    assert_eq!(at_r.events(4, SOON).len(), 4);
    at_r.expect_none_for(ms(300));
    assert_eq!((r.digest("s"), w.digest("s")), (digest.clone(), digest));
    assert!(r.err("PRESENCE.ONLINE s d").starts_with("READONLY"));
    p.ok("CLIENT UNPAUSE");
    let mut left: Vec<String> = at_r.events(3, SOON).iter().map(Event::brief).collect();
    left.sort();
    assert_eq!(left, ["leave a (timeout)", "leave b (timeout)", "leave c (timeout)"]);
    at_r.expect_none_for(ms(100));
    same(&mut p, &mut r);
    same(&mut p, &mut w);
}

/// Full syncs while changes go on; a replica of a replica.
#[test]
fn replicas_that_join_under_load_become_equal() {
    for (diskless, load) in [("no", "disabled"), ("yes", "disabled"), ("yes", "swapdb")] {
        let p_server = primary().config("repl-diskless-sync", diskless).start();
        let mut p = p_server.connect();
        for i in 0..3000 {
            let ttl = 200 + i % 1500;
            p.ok(args![
                "PRESENCE.ONLINE",
                format!("big{}", i % 7),
                format!("u{i}"),
                "PX",
                ttl,
                "META",
                i
            ]);
        }
        let over = Over(AtomicBool::new(false));
        thread::scope(|scope| {
            let end = EndOnDrop(&over);
            let writer = scope.spawn(|| {
                let mut c = p_server.connect();
                let mut rng = rng(43);
                while !over.yet() {
                    change(&mut c, &mut rng);
                }
            });
            let first = replica_of(&p_server).config("repl-diskless-load", load).start();
            let mut r = first.connect();
            sync(&mut p, &mut r);
            let second = replica_of(&first).config("repl-diskless-load", load).start();
            let mut r2 = second.connect();
            sync(&mut p, &mut r2);
            // Once more, over a dataset that is there already.
            r.ok(["REPLICAOF", "NO", "ONE"]);
            r.ok("PRESENCE.ONLINE local local PX 50");
            r.ok(args!["REPLICAOF", "127.0.0.1", p_server.port.to_string()]);
            sync(&mut p, &mut r);
            drop(end);
            writer.join().unwrap();
            same(&mut p, &mut r);
            wait_until("the chain", SOON * 4, || {
                r2.info("replication")["master_link_status"] == "up"
            });
            wait_until("everybody to lapse", SOON, || p.stat("users") == 0);
            same(&mut p, &mut r);
            same(&mut p, &mut r2);
        });
    }
}

#[test]
fn a_promotion_gives_live_leases_their_grace_and_ids_go_on() {
    let grace = 3000;
    let p_server = primary().start();
    let r_server =
        replica_of(&p_server).config("presence.restart-grace-ms", &grace.to_string()).start();
    let r2_server = replica_of(&r_server).start();
    let (mut p, mut r, mut r2) = (p_server.connect(), r_server.connect(), r2_server.connect());
    sync(&mut p, &mut r);
    p.ok(args!["PRESENCE.ONLINE", "s", "USERS", 2, "renews", "ghost", "PX", 1500]);
    p.ok(args!["PRESENCE.ONLINE", "s", "far", "EX", 1000]);
    sync(&mut p, &mut r);
    sync(&mut p, &mut r2);
    let (epoch, seq) = parse_id(&p.space("s").id);
    let far = r.user("s", "far").unwrap().sessions[0].expires_at;
    let mut heard = r_server.subscribe(&["presence:s"]);
    p_server.stop(Stop::Kill);
    let promoted = now_ms();
    r.ok(["REPLICAOF", "NO", "ONE"]);
    let known = now_ms();
    assert_eq!(r.int("PRESENCE.COUNT s"), 3);
    let until = r.user("s", "ghost").unwrap().sessions[0].expires_at;
    within("the end of the grace", until, promoted + grace, known + grace);
    assert_eq!(r.user("s", "far").unwrap().sessions[0].expires_at, far);
    // Leases given now are exact, also shorter ones.
    assert_eq!(r.int("PRESENCE.ONLINE s renews PX 300"), 0);
    assert_eq!(r.int("PRESENCE.ONLINE s renews EX 100"), 0);
    let leave = heard.event(SOON);
    assert_eq!(leave.brief(), "leave ghost (timeout)");
    assert!(leave.id().0 > epoch && leave.id().1 == seq + 1, "{leave:?} after {epoch}-{seq}");
    assert!(leave.int("at") >= until && leave.arrived >= until, "too early: {leave:?}");
    heard.expect_none_for(ms(100));
    same(&mut r, &mut r2);
}

/// FAILOVER back and forth while changes and lapses go on: no abort, no hole, nothing twice.
#[test]
fn failover_under_load() {
    let a = primary().config("presence.restart-grace-ms", "300").start();
    let b = replica_of(&a).config("presence.restart-grace-ms", "300").start();
    let (mut ca, mut cb) = (a.connect(), b.connect());
    sync(&mut ca, &mut cb);
    let mut at_b = b.subscribe(&["presence:s0", "presence:s1"]);
    let over = Over(AtomicBool::new(false));
    thread::scope(|scope| {
        let end = EndOnDrop(&over);
        for seed in [1, 2] {
            let (a, b, over) = (&a, &b, &over);
            scope.spawn(move || {
                let (mut ca, mut cb) = (a.connect(), b.connect());
                let mut rng = rng(seed);
                while !over.yet() {
                    let space = format!("s{}", rng.random_range(0..2));
                    let user = format!("u{}", rng.random_range(0..30));
                    let ttl = rng.random_range(5..300);
                    let command = args!["PRESENCE.ONLINE", space, user, "PX", ttl];
                    for c in [&mut ca, &mut cb] {
                        if let Err(e) = c.try_cmd(&command[..]) {
                            let expected = ["READONLY", "UNBLOCKED", "MASTERDOWN"];
                            assert!(expected.iter().any(|code| e.starts_with(code)), "{e}");
                        }
                    }
                }
            });
        }
        for _ in 0..4 {
            for (from, to) in [(&a, &b), (&b, &a)] {
                let (mut old, mut new) = (from.connect(), to.connect());
                let settled = Instant::now();
                wait_until("a little load", SOON, || settled.elapsed() > ms(150));
                old.ok("FAILOVER TIMEOUT 5000");
                wait_until("the failover", SOON * 2, || {
                    new.info("replication")["role"] == "master"
                        && old
                            .info("replication")
                            .get("master_link_status")
                            .is_some_and(|s| s == "up")
                });
            }
        }
        drop(end);
    });
    wait_until("everybody to lapse", SOON, || ca.stat("users") == 0);
    sync(&mut ca, &mut cb);
    let events: Vec<Event> = at_b.so_far(&mut ca).into_iter().map(Event::parse).collect();
    assert!(events.len() > 200, "only {} events", events.len());
    without_holes(&events);
    for space in ["s0", "s1"] {
        let mut roster = Roster::new();
        let channel = format!("presence:{space}").into_bytes();
        events.iter().filter(|e| e.channel == channel).for_each(|e| e.fold(&mut roster));
        assert!(roster.is_empty(), "{roster:?}");
    }
    same(&mut ca, &mut cb);
}

#[test]
fn pauses_and_shutdowns_with_lapses_due() {
    let p_server = primary().config("shutdown-timeout", "2").start();
    let r_server = replica_of(&p_server).start();
    let (mut p, mut r) = (p_server.connect(), r_server.connect());
    sync(&mut p, &mut r);
    for mode in ["WRITE", "ALL"] {
        let mut heard = p_server.subscribe(&["presence:s"]);
        let mut at_r = r_server.subscribe(&["presence:s"]);
        for i in 0..200 {
            p.ok(args!["PRESENCE.ONLINE", "s", format!("u{i}"), "PX", 50 + i % 100]);
        }
        let began = now_ms();
        p.ok(args!["CLIENT", "PAUSE", 400, mode]);
        let events = heard.events(400, SOON);
        let late =
            events.iter().filter(|e| e.kind() == "leave" && e.int("at") >= began + 400).count();
        assert!(late > 100, "{late} leaves came after the pause");
        without_holes(&events);
        let raw = |events: &[Event]| events.iter().map(|e| e.raw.clone()).collect::<Vec<_>>();
        assert_eq!(raw(&at_r.events(400, SOON)), raw(&events));
        assert!(heard.so_far(&mut p).is_empty() && at_r.so_far(&mut p).is_empty());
    }
    // A replica that lags holds the shutdown up, and the server is paused meanwhile.
    for i in 0..500 {
        p.ok(args!["PRESENCE.ONLINE", "s", format!("u{i}"), "PX", 100 + i]);
    }
    signal(r_server.pid(), Signal::STOP);
    for i in 0..500 {
        p.ok(args!["PRESENCE.ONLINE", "s", format!("v{i}"), "PX", 100 + i]);
    }
    p_server.stop(Stop::Save);
    signal(r_server.pid(), Signal::CONT);
    assert!(!p_server.log().contains("ASSERT"), "{}", tail(&p_server.log()));
    p_server.start_again();
    let mut p = p_server.connect();
    sync(&mut p, &mut r);
    same(&mut p, &mut r);
}
