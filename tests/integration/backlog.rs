//! Sessions that have expired and are not ended yet: no call of a client costs more for them.

use crate::harness::*;
use crate::replication::{primary, replica_of, sync};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Users with two sessions each, and as many of them in one call.
const USERS: usize = 30_000;
const IN_A_CALL: usize = 3000;

/// A read may take so many times what it takes in a space without a backlog, or of [`LEAST_US`] where that is
/// more.
const TIMES: f64 = 20.0;
const LEAST_US: f64 = 10.0;

const READS: [&[&str]; 8] = [
    &["PRESENCE.COUNT"],
    &["PRESENCE.COUNT", "SESSIONS"],
    &["PRESENCE.SPACE"],
    &["PRESENCE.SPACE", "WITHSESSIONS"],
    &["PRESENCE.SPACE", "COUNT", "25"],
    &["PRESENCE.STATUS", "stays-2", "u7"],
    &["PRESENCE.USER", "stays-1"],
    &["PRESENCE.EVENTS", "AFTER", "$"],
];

/// The processor time of the server's main thread so far (us). Other programs on the machine do not change it.
fn processor_us(server: &Server) -> f64 {
    let pid = server.pid();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat")).unwrap();
    stat.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok()).unwrap() / 1000.0
}

/// What these calls take of the server's processor time (us).
fn cost_us(server: &Server, c: &mut Conn, calls: &[Vec<Vec<u8>>]) -> f64 {
    let before = processor_us(server);
    for call in calls {
        c.ok(call);
    }
    processor_us(server) - before
}

/// What a read of the space takes (us).
fn read_us(server: &Server, c: &mut Conn, space: &str, read: &[&str]) -> f64 {
    const CALLS: usize = 40;
    let mut call = args![read[0], space];
    call.extend(read[1..].iter().map(|word| word.as_bytes().to_vec()));
    cost_us(server, c, &vec![call; CALLS]) / CALLS as f64
}

/// Three users who stay in `town` and in `village`, and a crowd in `town` whose leases all end in one moment.
/// Returns that moment.
fn fill(c: &mut Conn, users: usize) -> i64 {
    for space in ["town", "village"] {
        c.ok(args![
            "PRESENCE.ONLINE",
            space,
            "USERS",
            "3",
            "stays-1",
            "stays-2",
            "stays-3",
            "EX",
            "3600"
        ]);
    }
    let due = now_ms() + 1500 + users as i64 / 30;
    for first in (0..users).step_by(IN_A_CALL) {
        for session in ["phone", "desk"] {
            let mut call = args!["PRESENCE.ONLINE", "town", "SESSIONS", IN_A_CALL];
            for n in first..first + IN_A_CALL {
                call.extend(args![format!("u{n}"), session]);
            }
            call.extend(args!["PXAT", due]);
            c.ok(call);
        }
    }
    assert!(now_ms() < due, "the machine is too slow for this test");
    due
}

#[track_caller]
fn reads_cost_what_they_cost_without_a_backlog(server: &Server, c: &mut Conn) {
    assert_eq!(c.int("PRESENCE.COUNT town"), 3);
    assert_eq!(c.int("PRESENCE.COUNT town SESSIONS"), 3);
    assert_eq!(c.space("town").names(), ["stays-1", "stays-2", "stays-3"]);
    for read in READS {
        let without = read_us(server, c, "village", read);
        let with = read_us(server, c, "town", read);
        assert!(
            with <= TIMES * without.max(LEAST_US),
            "{}: {with} us with {} expired sessions, {without} us without",
            read.join(" "),
            2 * USERS
        );
    }
}

#[test]
fn reads_of_a_paused_primary_do_not_look_at_expired_sessions() {
    let server = Server::start();
    let mut c = server.connect();
    let due = fill(&mut c, USERS);
    c.ok("CLIENT PAUSE 60000 WRITE");
    sleep_until(due + 1);
    reads_cost_what_they_cost_without_a_backlog(&server, &mut c);
    assert_eq!(c.stat("sessions"), 2 * USERS as i64 + 6, "nothing was ended during the pause");
    c.ok("CLIENT UNPAUSE");
    wait_until("the sweep", SOON * 4, || c.stat("sessions") == 6);
}

#[test]
fn reads_of_a_replica_without_its_primary_do_not_look_at_expired_sessions() {
    let p = primary().config("presence.history-length", "0").start();
    let r = replica_of(&p).config("presence.history-length", "0").start();
    let (mut pc, mut rc) = (p.connect(), r.connect());
    sync(&mut pc, &mut rc);
    let due = fill(&mut pc, USERS);
    sync(&mut pc, &mut rc);
    p.stop(Stop::Kill);
    sleep_until(due + 1);
    reads_cost_what_they_cost_without_a_backlog(&r, &mut rc);
    assert_eq!(rc.stat("sessions"), 2 * USERS as i64 + 6, "a replica ends nothing");
}

/// What all calls of a command so far have taken in the server (us).
fn command_us(c: &mut Conn, command: &str) -> u64 {
    let stats = c.info("commandstats");
    let of_command = stats.get(&format!("cmdstat_{command}"));
    let us =
        of_command.and_then(|line| line.split_once("usec=")?.1.split(',').next()?.parse().ok());
    us.unwrap_or(0)
}

#[track_caller]
fn first_read_is_quick(c: &mut Conn, due: i64) {
    sleep_until(due + 1);
    let before = command_us(c, "presence.count");
    assert_eq!(c.int("PRESENCE.COUNT town"), 3);
    let us = command_us(c, "presence.count") - before;
    assert!(us < 1500, "the first read after {} leases have ended takes {us} us", 10 * USERS);
}

/// All leases that end are sorted before they end, so that the first read after that need not sort them.
#[test]
fn first_read_of_a_paused_primary_sorts_no_crowd() {
    let server = Server::start();
    let mut c = server.connect();
    let due = fill(&mut c, 5 * USERS);
    c.ok("CLIENT PAUSE 60000 WRITE");
    first_read_is_quick(&mut c, due);
    c.ok("CLIENT UNPAUSE");
}

#[test]
fn first_read_of_a_replica_sorts_no_crowd() {
    let p = primary().config("presence.history-length", "0").start();
    let r = replica_of(&p).config("presence.history-length", "0").start();
    let (mut pc, mut rc) = (p.connect(), r.connect());
    sync(&mut pc, &mut rc);
    let due = fill(&mut pc, 5 * USERS);
    sync(&mut pc, &mut rc);
    p.stop(Stop::Kill);
    first_read_is_quick(&mut rc, due);
}

#[test]
fn sweep_ends_a_crowd_while_clients_ask_all_the_time() {
    let server = Server::start();
    let mut c = server.connect();
    let due = fill(&mut c, 5 * USERS);
    let over = AtomicBool::new(false);
    thread::scope(|threads| {
        for _ in 0..50 {
            let mut asks = server.connect();
            let over = &over;
            threads.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    asks.ok("PRESENCE.COUNT town SESSIONS");
                }
            });
        }
        sleep_until(due);
        let until = due + 10_000;
        while c.stat("sessions") > 6 && now_ms() < until {
            thread::sleep(ms(20));
        }
        let left = c.stat("sessions");
        over.store(true, Ordering::Relaxed);
        assert_eq!(left, 6, "sessions that are not ended after 10 s");
    });
}

/// A space in which most sessions have expired lists a user of 8192 sessions as quickly as 16 users of 512,
/// also where the oldest sessions of each have expired.
#[test]
fn a_list_of_who_is_left_costs_no_more_for_users_with_many_sessions() {
    const SESSIONS: usize = 8192;
    let server = Server::builder().config("presence.max-sessions-per-user", "65536").start();
    let mut c = server.connect();
    let due = now_ms() + 4000;
    for (space, users) in [("few", 16), ("many", 1)] {
        let each = SESSIONS / users;
        for (from, to, lease) in [(0, each * 5 / 8, due), (each * 5 / 8, each, due + 3_600_000)] {
            for user in 0..users {
                let mut call = args!["PRESENCE.ONLINE", space, "SESSIONS", to - from];
                for n in from..to {
                    call.extend(args![format!("u{user}"), format!("tab{n}")]);
                }
                call.extend(args!["PXAT", lease]);
                c.ok(call);
            }
        }
    }
    assert!(now_ms() < due, "the machine is too slow for this test");
    c.ok("CLIENT PAUSE 60000 WRITE");
    sleep_until(due + 1);
    for read in [&["PRESENCE.SPACE"][..], &["PRESENCE.SPACE", "COUNT", "25"]] {
        for (space, users) in [("few", 16), ("many", 1)] {
            assert_eq!(c.int(format!("PRESENCE.COUNT {space}")), users);
            assert_eq!(c.int(format!("PRESENCE.COUNT {space} SESSIONS")), 3 * SESSIONS as i64 / 8);
        }
        let few = read_us(&server, &mut c, "few", read);
        let many = read_us(&server, &mut c, "many", read);
        let read = read.join(" ");
        assert!(
            many <= 3.0 * few.max(LEAST_US),
            "{read}: {few} us for a few each, {many} us for one"
        );
    }
    c.ok("CLIENT UNPAUSE");
}

/// The cost of a session does not depend on how many others its user has: users of 1024 sessions beside one of
/// 8192.
#[test]
fn users_with_many_sessions_cost_no_more_for_each_session() {
    const FEW: usize = 1024;
    const MANY: usize = 8192;
    let server = Server::builder()
        .config("presence.max-sessions-per-user", "65536")
        .config("presence.lease-ttl-ms", "3600000")
        .start();
    let mut c = server.connect();
    let list =
        |command: &str, space: &str, users: usize, sessions: usize, prefix: &str, more: &[&str]| {
            let calls = (0..users).map(|user| {
                let mut call = args![format!("PRESENCE.{command}"), space, "SESSIONS", sessions];
                for n in 0..sessions {
                    call.extend(args![format!("u{user}"), format!("{prefix}{n}")]);
                }
                call.extend(more.iter().map(|word| word.as_bytes().to_vec()));
                call
            });
            calls.collect::<Vec<_>>()
        };
    let single = |space: &str, users: usize, sessions: usize| {
        let calls = (0..users).flat_map(|user| {
            (0..sessions).map(move |n| {
                args!["PRESENCE.ONLINE", space, format!("u{user}"), "SESSION", format!("one{n}")]
            })
        });
        calls.collect::<Vec<_>>()
    };
    let mut compare = |what: &str, few: Vec<Vec<Vec<u8>>>, many: Vec<Vec<Vec<u8>>>| {
        let few = cost_us(&server, &mut c, &few) / MANY as f64;
        let many = cost_us(&server, &mut c, &many) / MANY as f64;
        assert!(
            many <= 3.0 * few.max(0.3),
            "{what}: {few} us a session for users of {FEW}, {many} us for a user of {MANY}"
        );
    };
    for (what, command, prefix, more) in [
        ("new sessions", "ONLINE", "tab", &[][..]),
        ("renewals", "ONLINE", "tab", &["XX"]),
        ("a linger of all", "OFFLINE", "tab", &["LINGER", "3000000"]),
        ("a linger that is about to end", "OFFLINE", "tab", &["LINGER", "900"]),
        ("renewals of what is about to end", "ONLINE", "tab", &["XX"]),
        ("the end of sessions that are not there", "OFFLINE", "none", &[]),
        ("the end of all, one by one", "OFFLINE", "tab", &[]),
    ] {
        let of = |space, users, sessions| list(command, space, users, sessions, prefix, more);
        compare(what, of("few", MANY / FEW, FEW), of("many", 1, MANY));
    }
    compare("new sessions, one a call", single("few", MANY / FEW, FEW), single("many", 1, MANY));
    let status = |space: &str, users: usize| {
        let calls = (0..MANY).map(|n| args!["PRESENCE.STATUS", space, format!("u{}", n % users)]);
        calls.collect::<Vec<_>>()
    };
    compare("STATUS", status("few", MANY / FEW), status("many", 1));
    let all = |space: &str, users: usize| {
        let calls = (0..users).map(|user| args!["PRESENCE.OFFLINE", space, format!("u{user}")]);
        calls.collect::<Vec<_>>()
    };
    compare("the end of all", all("few", MANY / FEW), all("many", 1));
    let in_turns = |pairs: usize, sessions: usize, space: &str, c: &mut Conn| {
        for pair in 0..pairs {
            let mut call = args!["PRESENCE.ONLINE", space, "SESSIONS", 2 * sessions];
            for n in 0..sessions {
                let tab = format!("t{n}");
                call.extend(args![format!("left{pair}"), tab, format!("right{pair}"), tab]);
            }
            c.ok(call);
        }
        let calls = (0..pairs).map(|pair| args!["PRESENCE.OFFLINE", space, format!("left{pair}")]);
        cost_us(&server, c, &calls.collect::<Vec<_>>()) / MANY as f64
    };
    let few = in_turns(MANY / FEW, FEW, "pairs", &mut c);
    let many = in_turns(1, MANY, "pair", &mut c);
    assert!(many <= 3.0 * few.max(0.3), "sessions that came in turns: {few} us, {many} us");
}
