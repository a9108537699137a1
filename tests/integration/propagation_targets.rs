//! A server to which nobody listens hands renewals on in a way that costs nothing. Whoever begins to listen while
//! renewals go on, a replica or the AOF, must end with the same leases all the same, and see effects only.

use crate::harness::*;
use crate::replication::{EndOnDrop, Over, digests, primary, replica_of, same, sync};
use rand::Rng;
use std::sync::atomic::AtomicBool;
use std::thread;

const SPACES: usize = 4;
const USERS: usize = 40;

fn space(rng: &mut impl Rng) -> String {
    format!("s{}", rng.random_range(0..SPACES))
}

/// A primary that looks often whether anybody listens, so that it is soon certain that nobody does.
fn alone() -> Builder {
    primary().config("hz", "100").config("presence.restart-grace-ms", "0")
}

/// Fills the spaces and waits until the server has looked several times.
fn furnish_all(c: &mut Conn) {
    for s in 0..SPACES {
        let mut words = args!["PRESENCE.ONLINE", format!("s{s}"), "USERS", USERS];
        words.extend((0..USERS).map(|u| format!("u{u}").into_bytes()));
        words.extend(args!["EX", 3600]);
        c.ok(words);
    }
    wait_until_unheard(c);
}

/// A hundred turns a second, a look each ten.
fn wait_until_unheard(c: &mut Conn) {
    let info = c.info("replication");
    assert_eq!((&*info["connected_slaves"], &*info["repl_backlog_active"]), ("0", "0"));
    sleep_until(now_ms() + 1000);
}

/// Renews leases in one of the ways there are, and now and then lets something else happen. Every lease is another and
/// at least ten minutes long: none ends during a test.
fn renew(c: &mut Conn, rng: &mut impl Rng) {
    let (space, ttl) = (space(rng), rng.random_range(600_000..3_600_000));

    let mut user = || format!("u{}", rng.random_range(0..USERS));
    let (u, v, w) = (user(), user(), user());
    let guest = format!("guest{}", rng.random_range(0..9));
    let one = |user: &str| args!["PRESENCE.ONLINE", &space, user, "PX", ttl];
    let at = now_ms() + ttl;
    match rng.random_range(0..100) {
        0..40 => drop(c.ok(one(&u))),
        40..55 => drop(c.ok(args!["PRESENCE.ONLINE", &space, &u, "PXAT", at])),
        55..65 => {
            c.ok(args!["PRESENCE.ONLINE", &space, "USERS", 3, &u, &v, &w, "PX", ttl]);
        }
        65..75 => {
            let commands = [one(&u), args!["SET", "plain", ttl], one(&v)];
            c.ok("MULTI");
            commands.into_iter().for_each(|command| drop(c.ok(command)));
            c.ok("EXEC");
        }
        75..85 => {
            let script = "for i = 0, 3 do redis.call('PRESENCE.ONLINE', KEYS[1], 'u' .. i, 'PX', ARGV[1] + i) end";
            c.ok(args!["EVAL", script, 1, &space, ttl]);
        }
        85..88 => drop(c.ok(args!["PRESENCE.OFFLINE", &space, &u, "LINGER", ttl])),
        // Renewals and a newcomer in one list.
        88..91 => {
            c.ok(args!["PRESENCE.ONLINE", &space, "SESSIONS", 2, &u, "", &guest, "tab", "PX", ttl]);
        }
        91..93 => {
            c.ok(args!["PRESENCE.OFFLINE", &space, guest]);
        }
        93..95 => drop(c.ok(args!["PRESENCE.ONLINE", &space, &u, "META", ttl, "PX", ttl])),
        95..97 => drop(c.ok(args!["PRESENCE.MESSAGE", &space, &u, ttl])),
        _ => drop(c.ok(args!["PRESENCE.ONLINE", &space, &u, "PX", ttl, "XX"])),
    }
}

/// Does something while two clients renew, and lets them go on for some hundreds of calls after it.
fn under_renewals<R>(server: &Server, something: impl FnOnce(&mut Conn) -> R) -> R {
    let over = Over(AtomicBool::new(false));
    thread::scope(|scope| {
        let _end = EndOnDrop(&over);
        for seed in [71, 72] {
            let over = &over;
            scope.spawn(move || {
                let (mut c, mut rng) = (server.connect(), rng(seed));
                while !over.yet() {
                    renew(&mut c, &mut rng);
                }
            });
        }
        let mut c = server.connect();
        some_renewals(&mut c);
        let done = something(&mut c);
        some_renewals(&mut c);
        done
    })
}

fn some_renewals(c: &mut Conn) {
    let before = c.stat("renewals");
    wait_until("renewals", SOON * 4, || c.stat("renewals") > before + 500);
}

/// Until when each session of the spaces is live.
fn leases(c: &mut Conn) -> Vec<(String, String, String, i64)> {
    let mut leases = Vec::new();
    for s in 0..SPACES {
        let space = Space::parse(&c.ok(args!["PRESENCE.SPACE", format!("s{s}"), "WITHSESSIONS"]));
        for (user, sessions) in space.members {
            let lease = |it: Session| (format!("s{s}"), user.clone(), it.session, it.expires_at);
            leases.extend(sessions.into_iter().map(lease));
        }
    }
    leases.sort();
    assert!(leases.len() >= SPACES * USERS);
    leases
}

/// How often a server has been asked for this command.
fn calls(c: &mut Conn, command: &str) -> u64 {
    let stats = c.info("commandstats");
    let Some(stat) = stats.get(&format!("cmdstat_{command}")) else { return 0 };
    let calls = stat.split([',', '=']).nth(1).unwrap();
    calls.parse().unwrap()
}

#[test]
fn a_replica_that_comes_after_a_grace_gets_the_leases_it_made() {
    let grace = 20_000;
    let p_server = primary()
        .config("hz", "100")
        .config("presence.restart-grace-ms", &grace.to_string())
        .start();
    p_server.connect().ok("PRESENCE.ONLINE s USERS 3 renews shortens waits PX 10000");
    p_server.restart(Stop::Save);
    let mut p = p_server.connect();
    let until = |c: &mut Conn, user: &str| c.user("s", user).unwrap().sessions[0].expires_at;
    let (granted, least) = (until(&mut p, "waits"), now_ms() + 10_000);
    assert!(granted > least, "no grace was granted: {granted}, {least}");
    wait_until_unheard(&mut p);
    // What nobody hears of leaves the others with their grace.
    let renewed = now_ms() + 100_000;
    assert_eq!(p.int(args!["PRESENCE.ONLINE", "s", "renews", "PXAT", renewed]), 0);
    assert_eq!(p.int("PRESENCE.ONLINE s shortens PX 3000"), 0);
    let r_server = replica_of(&p_server).start();
    let mut r = r_server.connect();
    sync(&mut p, &mut r);
    same(&mut p, &mut r);
    within("the bound of who renewed", until(&mut r, "renews"), renewed, renewed + grace);
    within("the bound of who waits", until(&mut r, "waits"), granted, granted + grace);
    wait_until("who shortened to leave", SOON, || r.int("PRESENCE.COUNT s") == 2);
    sync(&mut p, &mut r);
    same(&mut p, &mut r);
}

#[test]
fn a_replica_that_comes_under_renewals_gets_the_same_leases() {
    let ways: [&[(&str, &str)]; 5] = [
        &[("repl-diskless-sync", "no")],
        &[("repl-diskless-sync", "yes"), ("repl-diskless-sync-delay", "2")],
        &[("repl-diskless-sync", "yes"), ("repl-diskless-load", "swapdb")],
        &[("repl-diskless-sync", "yes"), ("dual-channel-replication-enabled", "yes")], // Valkey
        &[("repl-diskless-sync", "yes"), ("repl-rdb-channel", "yes")],                 // Redis 8
    ];
    let knows = |way: &[(&str, &str)]| {
        let server = Server::builder().bare().start();
        let mut c = server.connect();
        way.iter().all(|(name, _)| !texts(&c.ok(["CONFIG", "GET", name])).is_empty())
    };
    for way in ways.into_iter().filter(|way| knows(way)) {
        let with = |builder: Builder| {
            way.iter().fold(builder, |builder, (name, value)| builder.config(name, value))
        };
        let p_server = with(alone()).start();
        let mut p = p_server.connect();
        furnish_all(&mut p);
        let (first, second) = under_renewals(&p_server, |p| {
            let first = with(replica_of(&p_server)).start();
            sync(p, &mut first.connect());
            some_renewals(p);
            // Of the first, which has never been alone.
            let second = with(replica_of(&first)).start();
            sync(p, &mut second.connect());
            (first, second)
        });
        for server in [&first, &second] {
            let mut r = server.connect();
            sync(&mut p, &mut r);
            same(&mut p, &mut r);
            assert_eq!(leases(&mut p), leases(&mut r), "without a grace they are told as they are");
            assert_eq!(calls(&mut r, "presence.online"), 0, "{way:?}");
            assert!(calls(&mut r, "presence._apply") > 100, "{way:?}");
        }
    }
}

/// The commands in the AOF, as far as it is text.
fn appended(server: &Server) -> String {
    let files = std::fs::read_dir(server.dir().join("appendonlydir")).unwrap();
    let texts = files.map(|file| std::fs::read(file.unwrap().path()).unwrap());
    texts.map(|bytes| String::from_utf8_lossy(&bytes).to_uppercase()).collect()
}

#[test]
fn an_aof_that_begins_under_renewals_has_the_same_leases() {
    for (preamble, busy) in [("yes", false), ("no", false), ("yes", true)] {
        let server = alone()
            .config("appendfsync", "always")
            .config("aof-use-rdb-preamble", preamble)
            .start();
        let mut c = server.connect();
        furnish_all(&mut c);
        under_renewals(&server, |c| {
            if busy {
                // The AOF has to wait until another child has done its work.
                c.ok("CONFIG SET rdb-key-save-delay 300000");
                c.ok("BGSAVE");
                some_renewals(c);
            }
            // In a transaction the server begins later than it is told to.
            c.ok("MULTI");
            c.ok("PRESENCE.ONLINE s0 u0 EX 1000");
            c.ok("CONFIG SET appendonly yes");
            c.ok("PRESENCE.ONLINE s0 u0 EX 2000");
            c.ok("EXEC");
            wait_until("the AOF", SOON * 4, || {
                let info = c.info("persistence");
                let idle = ["aof_rewrite_in_progress", "aof_rewrite_scheduled"];
                info["aof_enabled"] == "1" && idle.iter().all(|field| info[*field] == "0")
            });
        });
        c.ok("CONFIG REWRITE");
        let before = (digests(&mut c), leases(&mut c));
        assert!(before.0.len() > SPACES, "{before:?}");
        server.restart(Stop::Kill);
        let mut c = server.connect();
        assert_eq!((digests(&mut c), leases(&mut c)), before, "{preamble} {busy}");
        let text = appended(&server);
        assert!(text.matches("PRESENCE._APPLY").count() > 100, "{preamble} {busy}");
        assert_eq!(text.matches("PRESENCE.ONLINE").count(), 0, "{preamble} {busy}");
    }
}

/// Nobody listens, but a snapshot is due after so many changes, and renewals that replicas would be told are some.
#[test]
fn renewals_that_are_told_count_for_save_points() {
    let quiet = Server::start();
    let mut c = quiet.connect();
    c.ok("PRESENCE.ONLINE s u EX 100");
    c.ok("PRESENCE.ONLINE s u EX 101");
    let changes = |c: &mut Conn| c.info("persistence")["rdb_changes_since_last_save"].clone();
    let before = changes(&mut c);
    for _ in 0..50 {
        c.ok("PRESENCE.ONLINE s u EX 101");
        c.ok("PRESENCE.ONLINE s USERS 1 u EX 101");
    }
    assert_eq!(changes(&mut c), before, "the bound covers these");
    let server = alone().start();
    let mut c = server.connect();
    furnish_all(&mut c);
    let changes = |c: &mut Conn| -> i64 {
        c.info("persistence")["rdb_changes_since_last_save"].parse().unwrap()
    };
    let before = changes(&mut c);
    for _ in 0..50 {
        c.ok("PRESENCE.ONLINE s0 u1 EX 900");
        c.ok("PRESENCE.ONLINE s0 USERS 2 u1 u2 EX 1000");
    }
    assert_eq!(changes(&mut c), before + 100);
    // What is read, or not met, is none.
    c.ok("PRESENCE.STATUS s0 u1");
    assert!(c.is_null("PRESENCE.ONLINE s0 u1 NX"));
    assert_eq!(changes(&mut c), before + 100);

    c.ok(["CONFIG", "SET", "save", "1 1000"]);
    under_renewals(&server, |c| {
        wait_until("a snapshot", SOON * 4, || server.dir().join("dump.rdb").exists());
        c.ok(["CONFIG", "SET", "save", ""]);
        wait_until("the child to end", SOON * 4, || {
            c.info("persistence")["rdb_bgsave_in_progress"] == "0"
        });
    });
    // What it says is what was renewed.
    let lease = now_ms() + 3_000_000;
    c.ok(args!["PRESENCE.ONLINE", "s0", "u1", "PXAT", lease]);
    let before = digests(&mut c);
    server.restart(Stop::Save);
    let mut c = server.connect();
    assert_eq!(c.user("s0", "u1").unwrap().session("").expires_at, lease);
    assert_eq!(digests(&mut c), before);
}

/// A server that has followed another has what was said before, and may be asked for the rest of it: nobody gets a
/// fork then.
#[test]
fn who_followed_and_decides_again_tells_effects_at_once() {
    let a_server = alone().config("hz", "1").start();
    let b_server = primary().start();
    let (mut a, mut b) = (a_server.connect(), b_server.connect());
    b.ok("PRESENCE.ONLINE s u EX 3000");
    // Long enough for a look, at one turn a second.
    sleep_until(now_ms() + 11_000);
    a.ok(args!["REPLICAOF", "127.0.0.1", b_server.port as i64]);
    sync(&mut b, &mut a);
    a.ok("REPLICAOF NO ONE");
    for n in 0..100 {
        a.ok(args!["PRESENCE.ONLINE", "s", "u", "EX", 2000 + n]);
    }
    let full = |c: &mut Conn| c.info("stats")["sync_full"].clone();
    let before = full(&mut a);
    b.ok(args!["REPLICAOF", "127.0.0.1", a_server.port as i64]);
    sync(&mut a, &mut b);
    same(&mut a, &mut b);
    assert_eq!(
        (full(&mut a), calls(&mut b, "presence.online")),
        (before, 1),
        "partial, and effects"
    );
}
