//! Memory: what is refused, evicted and given back when there is too little of it or too much to free.

use crate::harness::*;
use crate::key_lifecycle::{all_gone, leaves, online};
use rand::Rng;
use rand::seq::IndexedRandom;
use std::collections::BTreeMap;

// --- eviction --------------------------------------------------------------------------------------------------------

/// A test for each policy, so that they run side by side.
macro_rules! under_policies {
    ($($name:ident $policy:literal),* $(,)?) => {
        mod under_full_memory {
            $(#[test] fn $name() { super::renewals_go_on_and_what_is_evicted_is_silent($policy); })*
        }
    };
}

under_policies! {
    noeviction "noeviction",
    allkeys_lru "allkeys-lru",
    allkeys_lfu "allkeys-lfu",
    allkeys_random "allkeys-random",
    volatile_lru "volatile-lru",
    volatile_lfu "volatile-lfu",
    volatile_random "volatile-random",
    volatile_ttl "volatile-ttl",
}

/// Whether the policy has something left that it may evict.
fn can_evict(c: &mut Conn, policy: &str) -> bool {
    let keys = c.info("keyspace").remove("db0").unwrap_or_default();
    match policy.split('-').next() {
        Some("allkeys") => !keys.is_empty(),
        Some("volatile") => !keys.is_empty() && !keys.contains("expires=0"),
        _ => false,
    }
}

/// One life of a space, as its events tell it.
struct Life {
    epoch: i64,
    seq: u64,
    roster: Roster,
}

fn renewals_go_on_and_what_is_evicted_is_silent(policy: &str) {
    const ROUNDS: usize = 5000;
    let mut rng = rng(11);
    // The memory is for the spaces.
    let server = Server::with(&[
        ("maxmemory-policy", policy),
        ("presence.history-length", "4"),
        ("presence.feed-bytes", "16384"),
    ]);
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*"]);
    let used: i64 = c.info("memory")["used_memory"].parse().unwrap();
    c.ok(args!["CONFIG", "SET", "maxmemory", used + 700_000]);
    let far = now_ms() + 3_600_000;
    let mut known: Vec<(String, String)> = Vec::new();
    let (mut refused, mut renewed) = (0, 0);
    for round in 0..ROUNDS {
        // Half of the spaces have a time to live, so that the volatile policies have what they may evict.
        let mortal = rng.random_bool(0.5);
        let space =
            format!("{}{}", if mortal { "mortal" } else { "lasting" }, rng.random_range(0..150));
        let user = format!("{round}:{}", "u".repeat(rng.random_range(10..200)));
        match c.try_cmd(args!["PRESENCE.ONLINE", &space, &user, "PXAT", far]) {
            Ok(joined) => {
                assert_eq!(joined, Value::Int(1));
                if mortal {
                    c.ok(args!["PEXPIREAT", &space, far + rng.random_range(0..1000)]);
                }
                known.push((space, user));
            }
            Err(e) => {
                assert!(e.starts_with("OOM "), "{e}");
                assert!(
                    !can_evict(&mut c, policy),
                    "refused, and something could have been evicted"
                );
                refused += 1;
            }
        }
        // Whoever is there when the renewal comes is renewed. Nothing is evicted within a script.
        let Some((space, user)) = known.choose(&mut rng) else { continue };
        let again = match round % 3 {
            0 => "KEYS[1], ARGV[1], 'PXAT', ARGV[2]",
            1 => "KEYS[1], 'USERS', 1, ARGV[1], 'PXAT', ARGV[2]",
            _ => "KEYS[1], ARGV[1], 'XX', 'PXAT', ARGV[2]",
        };
        let script = format!(
            "return {{redis.call('PRESENCE.STATUS', KEYS[1], ARGV[1])[1], redis.pcall('PRESENCE.ONLINE', {again})}}"
        );
        let Value::Array(replies) = c.ok(args!["EVAL", script, 1, space, user, far + 1]) else {
            panic!("no array")
        };
        match (&replies[0], &replies[1]) {
            (Value::Int(1), Value::Int(0)) => renewed += 1,
            (Value::Int(0), Value::Nil) if round % 3 == 2 => {}
            (Value::Int(0), Value::Int(1)) if round % 3 < 2 => {}
            (Value::Int(0), Value::ServerError(e))
                if e.code() == "OOM" && !can_evict(&mut c, policy) => {}
            other => panic!("online with so many sessions, and the reply to ONLINE was {other:?}"),
        }
    }
    c.ok("CONFIG SET maxmemory 0");
    let evicted: usize = c.info("stats")["evicted_keys"].parse().unwrap();
    println!("{policy}: {evicted} keys evicted, {refused} new sessions refused, {renewed} renewed");
    assert!(renewed > ROUNDS / 10, "{renewed} renewals in full memory");
    match policy.split('-').next() {
        Some("allkeys") => {
            assert!(evicted > 100 && refused == 0, "{evicted} evicted, {refused} refused")
        }
        Some("volatile") => {
            assert!(evicted > 50 && refused > 100, "{evicted} evicted, {refused} refused")
        }
        _ => assert!(evicted == 0 && refused > 100, "{evicted} evicted, {refused} refused"),
    }

    // Each space was told of by joins alone, and after it was evicted by joins of a new epoch.
    let mut lives: BTreeMap<String, Life> = BTreeMap::new();
    let mut began_anew = 0;
    for e in sub.events_so_far(&mut c) {
        assert_eq!(e.kind(), "join", "nobody left: {e:?}");
        let (epoch, seq) = e.id();
        let life = lives.entry(e.str("space").into()).or_insert(Life {
            epoch: 0,
            seq: 0,
            roster: Roster::new(),
        });
        if epoch != life.epoch {
            assert!(epoch > life.epoch, "{e:?} after epoch {}", life.epoch);
            began_anew += usize::from(life.epoch > 0);
            *life = Life { epoch, seq: 0, roster: Roster::new() };
        }
        assert_eq!(seq, life.seq + 1, "{e:?}");
        life.seq = seq;
        e.fold(&mut life.roster);
    }
    let (mut gone, mut users, mut spaces) = (Vec::new(), 0, 0);
    for (name, life) in &lives {
        let space = c.space(name);
        if space.id == "0-0" {
            gone.push(name);
            continue;
        }
        assert_eq!(
            (parse_id(&space.id), space.roster()),
            ((life.epoch, life.seq), life.roster.clone())
        );
        users += space.users;
        spaces += 1;
    }
    assert_eq!(began_anew + gone.len(), evicted, "each eviction is the end of one life");
    if policy.starts_with("volatile") {
        assert!(gone.iter().all(|name| name.starts_with("mortal")), "{gone:?}");
    }
    // What was evicted may still be being freed.
    wait_until("INFO to count what is there", SOON, || {
        (c.stat("spaces"), c.stat("users"), c.stat("sessions")) == (spaces, users, users)
    });
    for name in gone {
        assert_eq!(c.int(["PRESENCE.ONLINE", name, "again"]), 1);
        let join = sub.event(SOON);
        assert_eq!(
            (join.str("space"), join.brief(), join.int("users")),
            (name.as_str(), "join again".into(), 1)
        );
        assert!(join.id().0 > lives[name].epoch && join.id().1 == 1, "{join:?}");
    }
}

/// Far more than fits: the server evicts a little before each command and takes writes meanwhile, so new sessions too.
#[test]
fn while_the_server_is_still_evicting_it_takes_new_sessions() {
    let server =
        Server::with(&[("maxmemory-policy", "allkeys-lru"), ("maxmemory-eviction-tenacity", "0")]);
    let mut c = server.connect();
    let used: i64 = c.info("memory")["used_memory"].parse().unwrap();
    for chunk in 0..20 {
        let spaces =
            (0..1000).map(|s| args!["PRESENCE.ONLINE", format!("s{chunk}:{s}"), "a", "EX", 3600]);
        c.batch(spaces).into_iter().for_each(|reply| assert_eq!(reply.unwrap(), Value::Int(1)));
    }
    let replies = c.batch([
        args!["CONFIG", "SET", "maxmemory", used + 1_000_000],
        args!["SET", "foreign", "x"],
        args!["PRESENCE.ONLINE", "new", "a"],
        args!["PRESENCE.ONLINE", "new", "USERS", 2, "b", "c"],
        args!["PRESENCE.MESSAGE", "new", "a", "hello"],
        args!["INFO", "memory"],
    ]);
    let memory = text(replies[5].as_ref().unwrap());
    let still: i64 =
        memory.lines().find_map(|l| l.strip_prefix("used_memory:")).unwrap().parse().unwrap();
    assert!(still > used + 1_000_000, "too quick for this test: {still}, {used}");
    assert!(replies[1].is_ok(), "{replies:?}");
    assert_eq!(replies[2..4], [Ok(Value::Int(1)), Ok(Value::Int(2))]);
    assert!(replies[4].is_ok(), "{replies:?}");
}

/// How the module asks the server whether it takes something new leaves no trace: no command in MONITOR, in the slow log
/// or in statistics that no client sent, and no error.
#[test]
fn asking_for_memory_leaves_no_trace() {
    for policy in ["allkeys-lru", "noeviction"] {
        let server = Server::with(&[
            ("maxmemory-policy", policy),
            ("maxmemory-eviction-tenacity", "0"),
            ("slowlog-log-slower-than", "0"),
        ]);
        let mut c = server.connect();
        let used = used_memory(&mut c);
        for chunk in 0..20 {
            let spaces = (0..1000)
                .map(|s| args!["PRESENCE.ONLINE", format!("s{chunk}:{s}"), "a", "EX", 3600]);
            c.batch(spaces).into_iter().for_each(|reply| assert_eq!(reply.unwrap(), Value::Int(1)));
        }
        let mut monitor = server.connect();
        monitor.ok("MONITOR");
        let limit = [args!["CONFIG", "SET", "maxmemory", used + 1_000_000]];
        let joins = (0..20).map(|i| args!["PRESENCE.ONLINE", "new", format!("u{i}")]);
        let end = [
            args!["INFO", "memory"],
            args!["CONFIG", "SET", "maxmemory", 0],
            args!["ECHO", "the end"],
        ];
        let mut replies = c.batch(limit.into_iter().chain(joins).chain(end));
        let memory = text(replies[21].as_ref().unwrap());
        let still: i64 =
            memory.lines().find_map(|l| l.strip_prefix("used_memory:")).unwrap().parse().unwrap();
        assert!(still > used + 1_000_000, "too quick for this test: {still}, {used}");
        let refused = replies.drain(1..21).filter(Result::is_err).count();
        assert_eq!(refused, if policy == "noeviction" { 20 } else { 0 });

        // What evicts is of the server; all the rest is what was sent.
        let mut seen = Vec::new();
        loop {
            let line = text(&monitor.recv().unwrap()).to_lowercase();
            if line.contains("the end") {
                break;
            }
            seen.push(line);
        }
        assert_eq!(seen.iter().filter(|line| line.contains("presence.online")).count(), 20);
        assert!(!seen.iter().any(|line| line.contains("presence.message")), "{seen:?}");
        let odd = seen
            .iter()
            .filter(|line| line.contains("presence.") && !line.contains("presence.online"));
        assert_eq!(odd.count(), 0, "{seen:?}");
        let calls = c.info("commandstats");
        let ours = calls.keys().filter(|name| name.starts_with("cmdstat_presence"));
        assert_eq!(ours.collect::<Vec<_>>(), ["cmdstat_presence.online"], "{calls:?}");
        let slow = format!("{:?}", c.ok("SLOWLOG GET -1")).to_lowercase();
        assert!(!slow.contains("presence.message"));
        let errors = c.info("errorstats");
        let oom = errors.get("errorstat_OOM").map_or("", String::as_str);
        assert_eq!(oom, if refused > 0 { "count=20" } else { "" }, "{errors:?}");
        assert_eq!(errors.len(), usize::from(refused > 0), "{errors:?}");
    }
}

#[test]
fn eviction_while_the_sweep_runs() {
    for policy in ["allkeys-lru", "allkeys-random", "volatile-ttl"] {
        let server = Server::with(&[("maxmemory-policy", policy)]);
        let mut c = server.connect();
        let used: i64 = c.info("memory")["used_memory"].parse().unwrap();
        c.ok(args!["CONFIG", "SET", "maxmemory", used + 1_500_000]);
        let mut rng = rng(5);
        let mut refused = 0;
        for s in 0..3000 {
            if policy == "volatile-ttl" {
                // When spaces alone fill the memory, nothing is left that this policy may evict.
                let set = args!["SET", format!("k{s}"), vec![b'x'; 2000], "PX", 500_000 + s];
                if let Err(e) = c.try_cmd(set) {
                    assert!(e.starts_with("OOM "), "{e}");
                    let keys = c.info("keyspace").remove("db0").unwrap_or_default();
                    assert!(keys.contains("expires=0"), "{e}, but something could go: {keys}");
                }
            }
            let ttl = if rng.random_bool(0.5) { rng.random_range(1..100) } else { 60_000 };
            let mut words = args!["PRESENCE.ONLINE", format!("s{}", s % 400), "USERS", 4];
            words.extend((0..4).map(|u| format!("user-{u}-{s}").into_bytes()));
            words.extend(args!["PX", ttl]);
            match c.try_cmd(words) {
                Ok(_) => {}
                Err(e) if e.starts_with("OOM ") => refused += 1,
                Err(e) => panic!("{e}"),
            }
        }
        let evicted: i64 = c.info("stats")["evicted_keys"].parse().unwrap();
        assert!(evicted > 100, "{policy}: {evicted} keys evicted, {refused} calls refused");
        // Whatever is left is whole.
        let counted = (c.stat("users"), c.stat("sessions"));
        let (mut users, mut sessions) = (0, 0);
        for s in 0..400 {
            let space = c.space(format!("s{s}"));
            assert_eq!(space.users as usize, space.members.len());
            users += space.users;
            sessions += space.sessions;
        }
        // INFO counts those who lapsed until they are swept, so it had at least these.
        assert!(counted.0 >= users && counted.1 >= sessions, "{counted:?}, {users}, {sessions}");
        c.ok("CONFIG SET maxmemory 0");
        wait_until("the short leases to go", SOON, || c.stat("sweep_backlog") == 0);
        c.ok("FLUSHALL");
        all_gone(&mut c);
    }
}

#[test]
fn without_memory_renewals_and_offlines_go_on_and_new_sessions_do_not() {
    steady(|| {
        let server = Server::with(&[("maxmemory-policy", "noeviction")]);
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        c.ok("PRESENCE.ONLINE s USERS 3 a b c PX 60000");
        c.ok("PRESENCE.ONLINE s d PX 2000");
        sub.events_so_far(&mut c);
        let before = c.digest("s");
        c.ok("CONFIG SET maxmemory 1");
        assert!(c.err("SET x y").starts_with("OOM "));
        for refused in [
            "PRESENCE.ONLINE s new",
            "PRESENCE.ONLINE s a SESSION new",
            "PRESENCE.ONLINE s USERS 3 a b new",
            "PRESENCE.ONLINE s SESSIONS 2 a new b new",
            "PRESENCE.ONLINE newspace a",
        ] {
            assert!(c.err(refused).starts_with("OOM "), "{refused}");
        }
        assert_eq!(c.digest("s"), before, "a refused call changed something");
        assert_eq!(c.int("EXISTS newspace"), 0);
        let inside = "return redis.pcall('PRESENCE.ONLINE', KEYS[1], ARGV[1])";
        assert!(c.err(args!["EVAL", inside, 1, "s", "new"]).contains("OOM "));
        assert!(sub.events_so_far(&mut c).is_empty());

        assert_eq!(c.int("PRESENCE.ONLINE s a PX 70000"), 0);
        assert_eq!(c.int("PRESENCE.ONLINE s USERS 2 a b PX 70000"), 0);
        assert!(sub.events_so_far(&mut c).iter().all(|e| e.brief() == "leave d (timeout)"));
    });
}

#[test]
fn without_memory_leaves_still_come() {
    steady(|| {
        let server = Server::with(&[("maxmemory-policy", "noeviction")]);
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        c.ok("PRESENCE.ONLINE s a PX 60000");
        let lease = now_ms() + 400;
        online(&mut c, "s", "b", lease);
        online(&mut c, "s", "c", lease + 60_000);
        c.ok("CONFIG SET maxmemory 1");
        sub.events_so_far(&mut c);
        leaves(&mut sub, "s", "b", lease);
        assert_eq!(c.int("PRESENCE.OFFLINE s a"), 1);
        assert_eq!(c.int("PRESENCE.ONLINE s c"), 0);
        assert_eq!(c.ok("PRESENCE.ONLINE s nobody XX"), Value::Nil);
        assert_eq!(c.int("PRESENCE.OFFLINE s c LINGER 10"), 0);
        assert_eq!(
            sub.events(2, SOON).iter().map(Event::brief).collect::<Vec<_>>(),
            ["leave a (offline)", "leave c (offline)"]
        );
    });
}

#[test]
fn memory_usage_follows_the_members() {
    let server = Server::with(&[("presence.history-length", "0")]);
    let mut c = server.connect();
    let mut usage = Vec::new();
    let mut n = 0;
    for target in [1, 10, 100, 1000, 10_000] {
        let fresh: Vec<_> = (n..target)
            .map(|u| args!["PRESENCE.ONLINE", "s", format!("user-{u:05}"), "PX", 600_000])
            .collect();
        c.batch(fresh);
        n = target;
        usage.push(c.int("MEMORY USAGE s"));
    }
    println!("MEMORY USAGE of 1, 10, 100, 1000, 10000 users: {usage:?}");
    assert!(usage.windows(2).all(|w| w[0] < w[1]));
    let each = (usage[4] - usage[3]) / 9000;
    assert!((40..400).contains(&each), "{each} bytes a member");
    // What it says is about what the server sees.
    let used = |c: &mut Conn| c.info("memory")["used_memory"].parse::<i64>().unwrap();
    let before = used(&mut c);
    c.ok("DEL s");
    // Some servers free in the background.
    let mut freed = 0;
    wait_until("about as much memory as MEMORY USAGE said to be freed", SOON, || {
        freed = before - used(&mut c);
        (freed - usage[4]).abs() < usage[4] / 2
    });
    println!("MEMORY USAGE said {}, DEL freed {freed}", usage[4]);

    c.ok(args!["PRESENCE.ONLINE", "m", "a", "META", format!("\"{}\"", "x".repeat(3000))]);
    let with_meta = c.int("MEMORY USAGE m");
    c.ok("PRESENCE.ONLINE m a META null");
    assert!(with_meta - c.int("MEMORY USAGE m") > 2500);
}

// --- much to free ----------------------------------------------------------------------------------------------------

const MILLION: usize = 1_000_000;

/// So many sessions in so many spaces of the selected database.
fn fill(c: &mut Conn, sessions: usize, spaces: usize, lease: i64) {
    let users = sessions / spaces;
    let portion = 1000.min(users);
    for first in (0..sessions).step_by(100_000) {
        let calls = (first..first + 100_000).step_by(portion).map(|i| {
            let mut call = args!["PRESENCE.ONLINE", format!("big{}", i / users), "USERS", portion];
            call.extend((i..i + portion).map(|u| format!("user:{u}").into_bytes()));
            call.extend(args!["PXAT", lease]);
            call
        });
        c.batch(calls)
            .into_iter()
            .for_each(|reply| assert_eq!(reply.unwrap(), Value::Int(portion as i64)));
    }
}

fn used_memory(c: &mut Conn) -> i64 {
    c.info("memory")["used_memory"].parse().unwrap()
}

/// Waits until nothing is left to be freed in the background, and until memory is nearly what it was: of what a million
/// sessions took, no tenth may stay.
#[track_caller]
fn comes_back(c: &mut Conn, before: i64, full: i64) {
    wait_until("the server to have freed", SOON * 12, || {
        c.info("memory")["lazyfree_pending_objects"] == "0"
    });
    let mut now = 0;
    wait_until("the memory to come back", SOON * 2, || {
        now = used_memory(c);
        now - before < (full - before) / 10
    });
    println!("used_memory {before} before, {full} with a million sessions, {now} after");
}

/// A million sessions are thrown away while other databases are at work, and then while they are being swept themselves.
fn a_million_flushed_in_the_background(spaces: usize) {
    let server = Server::with(&[("presence.history-length", "0")]);
    let (mut c, mut other) = (server.connect(), server.connect());
    other.ok("SELECT 1");
    other.ok("PRESENCE.ONLINE beat heart EX 3600");
    let (before, empty) = (used_memory(&mut c), c.stat("bytes_used"));
    let began = now_ms();
    fill(&mut c, MILLION, spaces, began + 3_600_000);
    let took_to_fill = now_ms() - began;
    let full = used_memory(&mut c);
    let mut sub = server.psubscribe(&["presence:*"]);
    let leases = now_ms() + 3000;
    for u in 0..200 {
        online(&mut other, &format!("lapse{}", u % 10), &format!("u{u}"), leases + 5 * u);
    }
    assert_eq!(c.stat("sessions"), MILLION as i64 + 201);
    sub.events_so_far(&mut c);

    sleep_until(leases);
    c.ok("FLUSHDB ASYNC");
    assert_eq!(c.space("big0").id, "0-0");
    assert_eq!(c.int("PRESENCE.ONLINE big0 back PX 400"), 1);
    while now_ms() < leases + 1000 {
        assert_eq!(other.int("PRESENCE.ONLINE beat heart EX 3600"), 0);
    }
    let mut worst = 0;
    let mut back = Vec::new();
    for e in sub.events(200 + 2, SOON) {
        if e.str("space") == "big0" {
            back.push(e.brief());
            continue;
        }
        assert_eq!((e.kind(), e.str("reason")), ("leave", "timeout"), "{e:?}");
        let lease = leases + 5 * e.user()[1..].parse::<i64>().unwrap();
        assert!(e.int("at") >= lease, "too early: {e:?}");
        worst = worst.max(e.int("at") - lease);
    }
    assert_eq!(back, ["join back", "leave back (timeout)"]);
    assert!(sub.events_so_far(&mut c).is_empty());
    println!("{spaces} spaces: leaves in the other database at most {worst} ms late");
    assert!(worst < 2000, "{worst} ms late: freeing held the server up");
    comes_back(&mut c, before, full);
    wait_until("INFO to count one", SOON, || (c.stat("users"), c.stat("sessions")) == (1, 1));
    assert!(c.stat("bytes_used") < empty + (full - before) / 20, "{} bytes", c.stat("bytes_used"));

    // Thrown away with everything else, while they are being swept themselves.
    drop(sub); // it would get a message for each
    let lease = now_ms() + took_to_fill + 1000;
    fill(&mut c, MILLION / 5, spaces, lease);
    let left = c.stat("leaves");
    sleep_until(lease);
    wait_until("the sweep to begin", SOON * 2, || c.stat("leaves") > left);
    c.ok("FLUSHALL ASYNC");
    let swept = c.stat("leaves") - left;
    println!("{spaces} spaces: {swept} had been swept");
    assert!(swept < MILLION as i64 / 10, "the sweep was over before the test came to it");
    let mut sub = server.psubscribe(&["presence:*"]);
    let lease = now_ms() + 300;
    online(&mut c, "big0", "back", lease);
    online(&mut other, "beat", "heart", lease + 3_600_000);
    let events = sub.events(3, SOON);
    let briefs: Vec<_> = events.iter().map(Event::brief).collect();
    assert_eq!(briefs, ["join back", "join heart", "leave back (timeout)"]);
    assert!(events[2].int("at") >= lease, "too early: {events:?}");
    comes_back(&mut c, before, full);
    wait_until("INFO to count one", SOON, || (c.stat("users"), c.stat("sessions")) == (1, 1));
    assert!(sub.events_so_far(&mut c).is_empty());
    c.ok("FLUSHALL");
    all_gone(&mut c);
    assert_eq!(c.stat("sweep_backlog"), 0);
}

#[test]
fn a_million_sessions_in_one_space_flushed_in_the_background() {
    a_million_flushed_in_the_background(1);
}

#[test]
fn a_million_sessions_in_many_spaces_flushed_in_the_background() {
    a_million_flushed_in_the_background(20_000);
}

// --- maxmemory -------------------------------------------------------------------------------------------------------

fn refused(reply: &Result<Value, String>) -> bool {
    reply.as_ref().is_err_and(|e| e.starts_with("OOM "))
}

/// Sets `maxmemory` so that `left` bytes are left.
fn leave(c: &mut Conn, left: i64) -> i64 {
    let limit = used_memory(c) + left;
    c.ok(args!["CONFIG", "SET", "maxmemory", limit]);
    limit
}

#[test]
fn without_memory_metadata_does_not_become_longer() {
    let server = Server::with(&[("maxmemory-policy", "noeviction")]);
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*"]);
    for space in ["few", "many"] {
        c.ok(["PRESENCE.ONLINE", space, "a", "META", "\"1234\"", "EX", "5000"]);
        c.ok(["PRESENCE.ONLINE", space, "plain", "EX", "5000"]);
    }
    for u in 0..50 {
        c.ok(args!["PRESENCE.ONLINE", "many", format!("u{u}"), "EX", 5000]);
    }
    sub.events_so_far(&mut c);
    c.ok("CONFIG SET maxmemory 1");
    for space in ["few", "many"] {
        let before = (c.digest(space), c.ok(["PRESENCE.SPACE", space, "WITHSESSIONS"]));
        for args in [
            args!["PRESENCE.ONLINE", space, "a", "META", "\"12345\""],
            args!["PRESENCE.ONLINE", space, "a", "META", "\"12345\"", "XX", "EX", 9000],
            args!["PRESENCE.ONLINE", space, "plain", "META", "1"],
        ] {
            assert!(refused(&c.try_cmd(args.clone())), "{}", show(&args));
        }
        let after = (c.digest(space), c.ok(["PRESENCE.SPACE", space, "WITHSESSIONS"]));
        assert_eq!(after, before, "a refused call changed something");
        assert!(sub.events_so_far(&mut c).is_empty());
        for args in [
            args!["PRESENCE.ONLINE", space, "a", "META", "\"1234\""],
            args!["PRESENCE.ONLINE", space, "a", "META", "\"4321\""],
            args!["PRESENCE.ONLINE", space, "a", "META", "1", "EX", 60],
            args!["PRESENCE.ONLINE", space, "a", "META", "null"],
            args!["PRESENCE.ONLINE", space, "a"],
            args!["PRESENCE.ONLINE", space, "a", "PX", 70_000],
            args!["PRESENCE.ONLINE", space, "plain", "META", "null"],
            args!["PRESENCE.ONLINE", space, "USERS", 2, "a", "plain"],
        ] {
            assert_eq!(c.ok(args.clone()), Value::Int(0), "{}", show(&args));
        }
        let told: Vec<String> = sub.events_so_far(&mut c).iter().map(Event::brief).collect();
        assert_eq!(told.len(), 3, "{told:?}");
    }
}

/// Updates of equal length, leaves, and a longer history: events take no memory that is not there. What goes for them
/// is told to the replica.
#[test]
fn without_memory_histories_do_not_grow() {
    let p_server = crate::replication::primary()
        .config("maxmemory-policy", "noeviction")
        .config("presence.history-length", "2")
        .config("presence.history-ttl-ms", "3600000")
        .config("repl-backlog-size", "16kb")
        .start();
    let r_server = crate::replication::replica_of(&p_server).start();
    let (mut p, mut r) = (p_server.connect(), r_server.connect());
    let meta = |n: usize| format!("\"{}{n}\"", "m".repeat(3000));
    for s in 0..200 {
        for user in ["a", "b", "c"] {
            p.ok(args!["PRESENCE.ONLINE", format!("s{s}"), user, "META", meta(0), "EX", 5000]);
        }
    }
    crate::replication::sync(&mut p, &mut r);
    let mut sub = p_server.psubscribe(&["presence:*"]);
    p.ok("CONFIG SET presence.history-length 1000");
    let limit = leave(&mut p, -1);
    let full = p.stat("bytes_used");
    for n in 1..9 {
        let updates =
            (0..200).map(|s| args!["PRESENCE.ONLINE", format!("s{s}"), "a", "META", meta(n)]);
        p.batch(updates).into_iter().for_each(|reply| assert_eq!(reply.unwrap(), Value::Int(0)));
    }
    let short = now_ms() + 300;
    p.batch((0..200).map(|s| args!["PRESENCE.ONLINE", format!("s{s}"), "b", "PXAT", short]));
    p.batch((0..200).map(|s| args!["PRESENCE.OFFLINE", format!("s{s}"), "a"]));
    wait_until("the short leases to end", SOON, || p.int("PRESENCE.COUNT s199") == 1);
    wait_until("the sweep", SOON, || p.stat("sweep_backlog") == 0);
    assert_eq!(sub.events_so_far(&mut p).len(), 200 * (8 + 1 + 1), "subscribers get every event");
    // Only when other memory of the server has been freed meanwhile may there be some more.
    let bytes = p.stat("bytes_used");
    assert!(bytes <= full + full / 20, "{bytes} of {full}");
    let used = used_memory(&mut p);
    assert!(used <= limit + limit / 20, "{used} of {limit}");
    crate::replication::same(&mut p, &mut r);
    // Whatever is kept is the end of the story, without a hole.
    for s in 0..200 {
        let told = crate::history::ask(&mut p, &format!("s{s}"));
        let seqs = told.seqs();
        let last = parse_id(&told.id).1;
        assert!(seqs.iter().copied().eq(last + 1 - seqs.len() as u64..=last), "{seqs:?}");
    }
    // With memory they grow again.
    p.ok("CONFIG SET maxmemory 0");
    for n in 1..9 {
        p.ok(args!["PRESENCE.ONLINE", "s0", "c", "META", meta(n)]);
    }
    assert!(crate::history::ask(&mut p, "s0").events.len() >= 8);
    crate::replication::same(&mut p, &mut r);
}

#[test]
fn a_call_that_needs_more_memory_than_is_left_is_refused_whole() {
    let server = Server::with(&[
        ("maxmemory-policy", "noeviction"),
        ("presence.max-message-bytes", "16mb"),
        ("presence.max-meta-bytes", "16mb"),
    ]);
    let mut c = server.connect();
    let list = |space: &str, n: usize| {
        let mut words = args!["PRESENCE.ONLINE", space, "USERS", n];
        words.extend((0..n).map(|u| format!("user-{u}").into_bytes()));
        words
    };
    let long = "\x02".repeat(4096);
    let text = |n: usize| "\x02".repeat(n);
    c.ok("PRESENCE.ONLINE small a");
    assert_eq!(c.int(list("known", 60_000)), 60_000);
    leave(&mut c, 3 << 20);
    let before = (c.digest("small"), c.int("DBSIZE"));
    for args in [
        list("new", 60_000),
        list(&long, 1000),
        list("small", 60_000),
        args!["PRESENCE.MESSAGE", "small", "a", text(1 << 20)],
        args!["PRESENCE.ONLINE", "small", "a", "META", format!("\"{}\"", "m".repeat(4 << 20))],
        args!["PRESENCE.ONLINE", "small", "new", "META", format!("\"{}\"", "m".repeat(4 << 20))],
    ] {
        assert!(refused(&c.try_cmd(args.clone())), "{:.100}", show(&args));
        assert_eq!((c.digest("small"), c.int("DBSIZE")), before, "{:.100}", show(&args));
    }
    // What is there is renewed, however long the list and however few of it are new. The arguments of a call take memory
    // as well.
    let limit = leave(&mut c, 30 << 20);
    assert_eq!(c.int(list("known", 60_000)), 0);
    assert_eq!(c.int(list("known", 60_001)), 1);
    assert_eq!(c.int(list("new", 3000)), 3000);
    assert!(refused(&c.try_cmd(list("new", 300_000))));
    c.ok(args!["PRESENCE.MESSAGE", "small", "a", text(10_000)]);
    let used = used_memory(&mut c);
    assert!(used <= limit + limit / 50, "{used} of {limit}");
    // With a policy that evicts the server makes room before the next command, as for any other.
    c.ok("CONFIG SET maxmemory-policy allkeys-lru");
    assert_eq!(c.int(list("newer", 60_000)), 60_000);
}

// --- the memory of one call ------------------------------------------------------------------------------------------

/// The peak of the server's resident memory during a call, above what there was before (bytes).
fn peak_of(server: &Server, c: &mut Conn, calls: Vec<Vec<Vec<u8>>>) -> (u64, Vec<Value>) {
    let proc = format!("/proc/{}", server.pid());
    let field = |name: &str| {
        let status = std::fs::read_to_string(format!("{proc}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
    };
    std::fs::write(format!("{proc}/clear_refs"), "5").unwrap();
    let before = field("VmRSS:");
    let replies = c.batch(calls).into_iter().map(Result::unwrap).collect();
    (field("VmHWM:").saturating_sub(before), replies)
}

/// The texts of a call's events are many times its arguments: each repeats the name of the space, six bytes for each
/// of these. They are published as the call goes on, all of them and in their order.
#[test]
fn a_call_publishes_its_events_as_it_goes() {
    const USERS: usize = 4000;
    let server = Server::with(&[("presence.history-length", "10")]);
    let mut c = server.connect();
    let name = "\x02".repeat(4096);
    let list = |command: &str| {
        let mut words = args![command, &name, "USERS", USERS];
        words.extend((0..USERS).map(|u| format!("user-{u}").into_bytes()));
        words
    };
    let sessions = |from: usize| {
        let mut words = args!["PRESENCE.ONLINE", &name, "SESSIONS", 500];
        words
            .extend((from..from + 500).flat_map(|s| [b"u".to_vec(), format!("s{s}").into_bytes()]));
        words
    };
    let mut last = 0;
    let mut check = |c: &mut Conn, calls: Vec<Vec<Vec<u8>>>, events: u64| {
        let what = format!("{:.60}", show(calls.last().unwrap()));
        let (peak, replies) = peak_of(&server, c, calls);
        println!("{} MB for {events} events, {what}", peak >> 20);
        assert!(peak < 32 << 20, "{} MB for {what}", peak >> 20);
        let id = parse_id(&c.space(&name).id).1;
        assert_eq!(id, last + events, "{what}");
        last = id;
        replies
    };
    assert_eq!(check(&mut c, vec![list("PRESENCE.ONLINE")], USERS as u64), [Value::Int(4000)]);
    assert_eq!(check(&mut c, vec![list("PRESENCE.OFFLINE")], USERS as u64), [Value::Int(4000)]);
    check(&mut c, vec![sessions(0), sessions(500)], 1000);
    check(&mut c, vec![args!["PRESENCE.OFFLINE", &name, "u"]], 1000);
    // Leases that end while the server is busy are told of by who closes the space.
    let mut brief = list("PRESENCE.ONLINE");
    brief.extend(args!["PX", 100]);
    let close = args!["PRESENCE.CLOSE", &name];
    check(&mut c, vec![brief, args!["DEBUG", "SLEEP", "0.2"], close], 2 * USERS as u64 + 1);
}

#[test]
fn subscribers_of_all_nodes_get_the_events_of_a_long_call_in_order() {
    const USERS: usize = 3000;
    let p_server = crate::replication::primary().start();
    let r_server = crate::replication::replica_of(&p_server).start();
    let (mut p, mut r) = (p_server.connect(), r_server.connect());
    crate::replication::sync(&mut p, &mut r);
    let (mut at_p, mut at_r) =
        (p_server.psubscribe(&["presence:*"]), r_server.psubscribe(&["presence:*"]));
    let name = "long".repeat(200);
    let mut seq = 0;
    for (command, kind) in [("PRESENCE.ONLINE", "join"), ("PRESENCE.OFFLINE", "leave")] {
        let mut words = args![command, &name, "USERS", USERS];
        words.extend((0..USERS).map(|u| format!("user-{u}").into_bytes()));
        assert_eq!(p.int(words), USERS as i64);
        for sub in [&mut at_p, &mut at_r] {
            let events = sub.events(USERS, SOON * 2);
            for (n, event) in events.iter().enumerate() {
                assert_eq!(event.id().1, seq + 1 + n as u64);
                assert_eq!((event.kind(), event.user()), (kind, &*format!("user-{n}")));
            }
        }
        seq += USERS as u64;
    }
    crate::replication::same(&mut p, &mut r);
    assert_eq!(p.stat("events_published"), 2 * USERS as i64);
    assert_eq!(r.stat("events_published"), 0);
}

/// Leases that are about to end take memory in the order by lease, and give it back when they are renewed.
/// INFO follows. (That readers and renewals report such a change at once is tested in the core:
/// `a_change_of_the_order_by_lease_is_reported`.)
#[test]
fn bytes_used_follows_leases_that_are_about_to_end() {
    let server = Server::with(&[("presence.lease-ttl-ms", "3600000")]);
    let mut c = server.connect();
    let names: Vec<String> = (0..3000).map(|n| format!("user{n}")).collect();
    let renew = |c: &mut Conn, step: usize, ms: i64| {
        for (n, name) in names.iter().enumerate().step_by(step) {
            // Each in a millisecond of its own.
            c.ok(args!["PRESENCE.ONLINE", "s", name, "PX", ms + n as i64 / 4]);
        }
    };
    // What INFO has beside the space is the expiry queue's, which stays as it is with one space.
    let beside = |c: &mut Conn| c.stat("bytes_used") - c.int("MEMORY USAGE s");
    renew(&mut c, 1, 100_000);
    let before = beside(&mut c);
    // The timer runs in a pause too, and ends nobody.
    c.ok("PRESENCE.ONLINE s stays");
    renew(&mut c, 1, 1500);
    c.ok("CLIENT PAUSE 60000 WRITE");
    let full = c.int("MEMORY USAGE s");
    wait_until("the timer to sort the leases", SOON, || c.int("MEMORY USAGE s") > full + 10_000);
    wait_until("all to expire", SOON * 2, || c.int("PRESENCE.COUNT s") == 1);
    within("beside the space, after reads", beside(&mut c), before - 16, before + 16);
    c.ok("CLIENT UNPAUSE");
    wait_until("all to leave", SOON, || c.stat("sessions") == 1);
    renew(&mut c, 1, 900);
    wait_until("the timer to sort the leases", SOON, || c.stat("sweeps") > 0);
    renew(&mut c, 1, 200_000);
    within("beside the space, after renewals", beside(&mut c), before - 16, before + 16);
}
