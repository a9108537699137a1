//! Memory: what is refused, evicted and given back when there is too little of it or too much to free.

use crate::harness::*;
use crate::keylife::{all_gone, leaves, online};
use rand::seq::IndexedRandom;
use rand::Rng;
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
    let server = Server::with(&[("maxmemory-policy", policy), ("presence.history-length", "4")]);
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
