//! Leases: what `expires_at` says, when a leave comes and when not, and that no read shows who lapsed.
//!
//! A leave must never arrive before its lease is over: those bounds are exact. How soon after is a matter of the
//! machine that runs the tests: those bounds only catch what hangs.

use crate::harness::*;
use rand::Rng;
use std::collections::BTreeMap;
use std::time::Instant;

/// The latest that an event may come after its lease, here, on two cores that run a dozen servers.
const LATE: i64 = 500;

fn secs(n: u64) -> std::time::Duration {
    ms(n * 1000)
}

/// Sends a command and says between which moments (unix ms) the server had it.
#[track_caller]
fn timed(c: &mut Conn, command: impl Args) -> (i64, i64, Value) {
    let before = now_ms();
    let reply = c.ok(command);
    (before, now_ms(), reply)
}

/// A leave or remove for a lease that ended between `from` and `to`: not before, and soon after.
#[track_caller]
fn on_time(e: &Event, from: i64, to: i64) {
    within(&format!("arrival of {}", e.raw), e.arrived, from, to + LATE);
    within(&format!("time of {}", e.raw), e.int("at"), from, e.arrived);
}

#[track_caller]
fn expires_at(c: &mut Conn, space: &str, user: &str, session: &str) -> i64 {
    c.user(space, user).expect("online").session(session).expires_at
}

fn briefs(events: &[Event]) -> Vec<String> {
    events.iter().map(Event::brief).collect()
}

// --- what expires_at says --------------------------------------------------------------------------------------------

#[test]
fn a_lease_ends_exactly_when_it_was_said_to() {
    let server = Server::start();
    let mut c = server.connect();
    for n in [250, 999, 1000, 29_999, 3_600_000, 86_400_000] {
        let (t0, t1, _) = timed(&mut c, args!["PRESENCE.ONLINE", "s", "a", "PX", n]);
        within("PX", expires_at(&mut c, "s", "a", ""), t0 + n, t1 + n);
    }
    for n in [1, 2, 60, 3600, 86_400] {
        let (t0, t1, _) = timed(&mut c, args!["PRESENCE.ONLINE", "s", "a", "EX", n]);
        within("EX", expires_at(&mut c, "s", "a", ""), t0 + n * 1000, t1 + n * 1000);
    }
    for n in [300, 12_345, 7_200_001, 86_399_000] {
        let at = now_ms() + n;
        c.ok(args!["PRESENCE.ONLINE", "s", "a", "PXAT", at]);
        assert_eq!(expires_at(&mut c, "s", "a", ""), at);
    }
    let at = now_ms() / 1000 + 5000;
    c.ok(args!["PRESENCE.ONLINE", "s", "a", "EXAT", at]);
    assert_eq!(expires_at(&mut c, "s", "a", ""), at * 1000);

    let (t0, t1, _) = timed(&mut c, "PRESENCE.ONLINE s a");
    within("the default", expires_at(&mut c, "s", "a", ""), t0 + 30_000, t1 + 30_000);
    c.ok("CONFIG SET presence.lease-ttl-ms 1234567");
    let (t0, t1, _) = timed(&mut c, "PRESENCE.ONLINE s a");
    within(
        "a default that was set",
        expires_at(&mut c, "s", "a", ""),
        t0 + 1_234_567,
        t1 + 1_234_567,
    );
    assert_eq!(c.space("s").id.split_once('-').unwrap().1, "1", "a renewal is no event");
}

#[test]
fn every_form_of_online_gives_the_lease_to_all_it_names() {
    let server = Server::start();
    let mut c = server.connect();
    let at = now_ms() + 7_000_000;
    assert_eq!(c.int(args!["PRESENCE.ONLINE", "s", "USERS", 3, "a", "b", "c", "PXAT", at]), 3);
    assert_eq!(
        c.int(args![
            "PRESENCE.ONLINE",
            "s",
            "SESSIONS",
            3,
            "a",
            "1",
            "b",
            "2",
            "d",
            "3",
            "PXAT",
            at + 1
        ]),
        1
    );
    for (user, session, lease) in [
        ("a", "", at),
        ("b", "", at),
        ("c", "", at),
        ("a", "1", at + 1),
        ("b", "2", at + 1),
        ("d", "3", at + 1),
    ] {
        assert_eq!(expires_at(&mut c, "s", user, session), lease, "{user}/{session}");
    }
    let (t0, t1, _) = timed(&mut c, "PRESENCE.ONLINE s USERS 2 a c EX 100");
    for user in ["a", "c"] {
        within(user, expires_at(&mut c, "s", user, ""), t0 + 100_000, t1 + 100_000);
    }
    assert_eq!(expires_at(&mut c, "s", "a", "1"), at + 1, "another session's lease is its own");
    assert_eq!(expires_at(&mut c, "s", "b", ""), at);
}

// --- when the leave comes --------------------------------------------------------------------------------------------

#[test]
fn leases_of_one_millisecond_to_seconds_end_once_and_never_early() {
    steady(|| {
        // However rarely the server looks after itself.
        let server = Server::with(&[("hz", "1"), ("dynamic-hz", "no")]);
        let mut c = server.connect();
        let mut sub = server.subscribe(&["presence:s"]);
        let mut ends = BTreeMap::new();
        for n in [1, 2, 3, 5, 8, 13, 20, 50, 100, 300, 500, 700, 1000, 1500, 2000] {
            let user = format!("u{n}");
            let (t0, t1, _) = timed(&mut c, args!["PRESENCE.ONLINE", "s", user, "PX", n]);
            ends.insert(user, (t0 + n, t1 + n));
        }
        let mut roster = Roster::new();
        let (mut seq, mut left) = (0, 0);
        while left < ends.len() {
            let e = sub.event(secs(4));
            e.fold(&mut roster);
            seq += 1;
            assert_eq!(e.id().1, seq);
            if e.kind() == "leave" {
                left += 1;
                assert_eq!(e.str("reason"), "timeout");
                let (from, to) = ends[e.user()];
                on_time(&e, from, to);
            }
        }
        assert!(roster.is_empty());
        sub.expect_none_for(ms(100));
    });
}

#[test]
fn heartbeats_keep_a_lease_and_the_last_one_ends_it() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.subscribe(&["presence:s"]);
        let (start, _, joined) = timed(&mut c, "PRESENCE.ONLINE s a PX 1000");
        assert_eq!(joined, Value::Int(1));
        let joined_at = sub.event(SOON).int("joined_at");
        sleep_until(start + 500);
        assert_eq!(c.int("PRESENCE.ONLINE s a PX 1000"), 0);
        sleep_until(start + 900);
        let (t0, t1, renewed) = timed(&mut c, "PRESENCE.ONLINE s a PX 1000");
        assert_eq!(renewed, Value::Int(0));
        assert_eq!(c.user("s", "a").unwrap().session("").joined_at, joined_at);
        let leave = sub.event(secs(5));
        assert_eq!(leave.brief(), "leave a (timeout)");
        assert_eq!(leave.int("joined_at"), joined_at);
        assert!(leave.arrived >= start + 1900, "too early: {}", leave.raw);
        on_time(&leave, t0 + 1000, t1 + 1000);
        sub.expect_none_for(ms(300));
    });
}

#[test]
fn the_last_writer_sets_the_lease_also_to_a_shorter_one() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        // Alone in a space, among few, and among many: the order by lease differs inside.
        for others in [0, 3, 200] {
            let space = format!("s{others}");
            for i in 0..others {
                c.ok(args!["PRESENCE.ONLINE", space, format!("other{i}"), "PX", 600_000 + i]);
            }
            c.ok(args!["PRESENCE.ONLINE", space, "a", "PX", 3_600_000]);
            c.ok(args!["PRESENCE.ONLINE", space, "a", "PX", 900_000]);
            sub.events_so_far(&mut c);
            let (t0, t1, _) = timed(&mut c, args!["PRESENCE.ONLINE", space, "a", "PX", 150]);
            let leave = sub.event(SOON);
            assert_eq!(leave.brief(), "leave a (timeout)");
            on_time(&leave, t0 + 150, t1 + 150);
            assert_eq!(c.int(args!["PRESENCE.COUNT", space]), others);
        }
        // And to a longer one: nobody leaves at the old end.
        let (t0, _, _) = timed(&mut c, "PRESENCE.ONLINE long a PX 200");
        c.ok("PRESENCE.ONLINE long a PX 60000");
        sub.events_so_far(&mut c);
        sleep_until(t0 + 200 + LATE);
        assert!(sub.events_so_far(&mut c).is_empty());
        assert_eq!(c.ints("PRESENCE.STATUS long a"), [1]);
    });
}

#[test]
fn a_lease_given_later_may_end_first_in_any_space_and_database() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        c.ok("PRESENCE.ONLINE far a PX 3600000");
        let mut ends = BTreeMap::new();
        for (i, db) in [(0, 0), (1, 9), (2, 3), (3, 0), (4, 15)] {
            c.ok(args!["SELECT", db]);
            let n = 1000 - i * 200; // each ends before the one before
            let space = format!("near{i}");
            let (t0, t1, _) = timed(&mut c, args!["PRESENCE.ONLINE", space, "a", "PX", n]);
            ends.insert(space, (t0 + n, t1 + n));
        }
        for _ in 0..6 {
            assert_eq!(sub.event(SOON).kind(), "join");
        }
        for i in (0..5).rev() {
            let leave = sub.event(SOON);
            assert_eq!(leave.str("space"), format!("near{i}"));
            let (from, to) = ends[leave.str("space")];
            on_time(&leave, from, to);
        }
        c.ok("SELECT 0");
        assert_eq!(c.int("PRESENCE.COUNT far"), 1);
    });
}

#[test]
fn random_renewals_of_random_length_never_lose_or_hurry_a_leave() {
    steady(|| {
        let mut rng = rng(11);
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        const USERS: usize = 60;
        // (before, after, ttl) of each ONLINE of "space user"
        let mut calls: BTreeMap<String, Vec<(i64, i64, i64)>> = BTreeMap::new();
        let end = now_ms() + 3000;
        while now_ms() < end {
            let space = ["few", "many", "many", "many", "pair"][rng.random_range(0..5)];
            let users = if space == "many" { USERS } else { 5 };
            let user = format!("u{}", rng.random_range(0..users));
            let ttl = [1, 5, 20, 60, 150, 400, 900][rng.random_range(0..7)];
            let (t0, t1, _) = timed(&mut c, args!["PRESENCE.ONLINE", space, user, "PX", ttl]);
            calls.entry(format!("{space} {user}")).or_default().push((t0, t1, ttl));
            if rng.random_bool(0.3) {
                std::thread::sleep(ms(rng.random_range(0..4)));
            }
        }
        wait_until("all to leave", SOON, || {
            ["few", "many", "pair"].iter().all(|s| c.space(s).users == 0) && c.stat("users") == 0
        });
        let events = sub.events_so_far(&mut c);
        let mut rosters: BTreeMap<&str, Roster> = BTreeMap::new();
        let mut seqs: BTreeMap<&str, u64> = BTreeMap::new();
        for e in &events {
            e.fold(rosters.entry(e.str("space")).or_default());
            let seq = seqs.entry(e.str("space")).or_default();
            *seq += 1;
            assert_eq!(e.id().1, *seq, "{}", e.raw);
            if e.kind() != "leave" {
                continue;
            }
            assert_eq!(e.str("reason"), "timeout");
            let at = e.int("at");
            let calls = &calls[&format!("{} {}", e.str("space"), e.user())];
            if calls.iter().any(|(t0, t1, _)| (*t0..=*t1).contains(&at)) {
                continue; // whether that call came first, nobody knows
            }
            // The last call that the server had before it recorded this leave.
            let call = calls.iter().rev().find(|(_, t1, _)| *t1 < at);
            let (t0, t1, ttl) =
                call.unwrap_or_else(|| panic!("a leave before any call: {}", e.raw));
            assert!(at >= t0 + ttl, "{} ms too early: {}", t0 + ttl - at, e.raw);
            assert!(at <= t1 + ttl + LATE, "{} ms late: {}", at - t1 - ttl, e.raw);
            assert!(e.arrived >= at, "arrived before it happened: {}", e.raw);
        }
        assert!(rosters.values().all(Roster::is_empty), "{rosters:?}");
        let (joins, leaves): (Vec<_>, Vec<_>) = events.iter().partition(|e| e.kind() == "join");
        assert_eq!(joins.len(), leaves.len());
        assert!(leaves.len() > USERS);
    });
}

#[test]
fn one_of_two_sessions_lapses_then_the_other() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.subscribe(&["presence:s"]);
        c.ok("PRESENCE.ONLINE s a SESSION tab PX 700");
        let (t0, t1, _) = timed(&mut c, "PRESENCE.ONLINE s a SESSION phone PX 250");
        assert_eq!(briefs(&sub.events_so_far(&mut c)), ["join a/tab", "add a/phone"]);
        let remove = sub.event(SOON);
        assert_eq!(remove.brief(), "remove a/phone (timeout)");
        assert_eq!(remove.int("users"), 1);
        on_time(&remove, t0 + 250, t1 + 250);
        let leave = sub.event(SOON);
        assert_eq!(leave.brief(), "leave a/tab (timeout)");
        assert_eq!(leave.int("users"), 0);
        assert!(leave.arrived >= t0 + 250, "too early: {}", leave.raw);
    });
}

#[test]
fn an_explicit_offline_is_the_only_leave() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.subscribe(&["presence:s"]);
        let (t0, _, _) = timed(&mut c, "PRESENCE.ONLINE s a PX 300");
        assert_eq!(c.int("PRESENCE.OFFLINE s a"), 1);
        // Back at once: the old lease means nothing to the new session.
        let (t2, t3, _) = timed(&mut c, "PRESENCE.ONLINE s a PX 900");
        assert_eq!(briefs(&sub.events_so_far(&mut c)), ["join a", "leave a (offline)", "join a"]);
        sleep_until(t0 + 300 + 200);
        assert!(sub.events_so_far(&mut c).is_empty());
        let leave = sub.event(SOON);
        assert_eq!(leave.brief(), "leave a (timeout)");
        on_time(&leave, t2 + 900, t3 + 900);
    });
}

// --- LINGER ----------------------------------------------------------------------------------------------------------

#[test]
fn linger_ends_in_one_leave_with_reason_offline() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.subscribe(&["presence:s"]);
        let (start, _, _) = timed(&mut c, "PRESENCE.ONLINE s a PX 800");
        sub.event(SOON);
        let (t0, t1, reply) = timed(&mut c, "PRESENCE.OFFLINE s a LINGER 250");
        assert_eq!(reply, Value::Int(0), "nobody is offline yet");
        assert_eq!(c.ints("PRESENCE.STATUS s a"), [1]);
        within("the cut lease", expires_at(&mut c, "s", "a", ""), t0 + 250, t1 + 250);
        assert!(sub.events_so_far(&mut c).is_empty());
        let leave = sub.event(SOON);
        assert_eq!(leave.brief(), "leave a (offline)");
        on_time(&leave, t0 + 250, t1 + 250);
        sleep_until(start + 800 + 200);
        assert!(sub.events_so_far(&mut c).is_empty(), "a second leave");
    });
}

#[test]
fn who_comes_back_while_lingering_was_never_gone() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.subscribe(&["presence:s"]);
        c.ok("PRESENCE.ONLINE s a PX 60000 META 1");
        let joined_at = sub.event(SOON).int("joined_at");
        c.ok("PRESENCE.OFFLINE s a LINGER 250");
        let (t0, t1, reply) = timed(&mut c, "PRESENCE.ONLINE s a PX 700");
        assert_eq!(reply, Value::Int(0));
        let session = c.user("s", "a").unwrap().session("").clone();
        assert_eq!((session.joined_at, session.meta.as_deref()), (joined_at, Some("1")));
        let leave = sub.event(SOON);
        assert_eq!(
            leave.brief(),
            "leave a (timeout)",
            "the linger was taken back, so this is a timeout"
        );
        on_time(&leave, t0 + 700, t1 + 700);
        assert_eq!(leave.id().1, 2);
    });
}

#[test]
fn a_linger_longer_than_the_lease_does_not_lengthen_it() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.subscribe(&["presence:s"]);
        let (t0, t1, _) = timed(&mut c, "PRESENCE.ONLINE s a PX 300");
        let before = expires_at(&mut c, "s", "a", "");
        c.ok("PRESENCE.OFFLINE s a LINGER 60000");
        assert_eq!(expires_at(&mut c, "s", "a", ""), before);
        sub.event(SOON);
        let leave = sub.event(SOON);
        assert_eq!(leave.brief(), "leave a (offline)");
        on_time(&leave, t0 + 300, t1 + 300);
    });
}

#[test]
fn linger_of_a_user_or_of_one_session() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.subscribe(&["presence:s"]);
        for session in ["1", "2", "3"] {
            c.ok(args!["PRESENCE.ONLINE", "s", "a", "SESSION", session, "PX", 60_000]);
        }
        sub.events_so_far(&mut c);
        let (t0, t1, _) = timed(&mut c, "PRESENCE.OFFLINE s a SESSION 2 LINGER 150");
        let remove = sub.event(SOON);
        assert_eq!(remove.brief(), "remove a/2 (offline)");
        on_time(&remove, t0 + 150, t1 + 150);
        let (t0, t1, reply) = timed(&mut c, "PRESENCE.OFFLINE s USERS 2 a nobody LINGER 150");
        assert_eq!(reply, Value::Int(0));
        assert_eq!(c.ints("PRESENCE.STATUS s a"), [2]);
        let ends = sub.events(2, SOON);
        assert_eq!((ends[0].kind(), ends[1].kind()), ("remove", "leave"));
        for e in &ends {
            assert_eq!(e.str("reason"), "offline");
            on_time(e, t0 + 150, t1 + 150);
        }
        // An OFFLINE without LINGER does not wait for one with it.
        c.ok("PRESENCE.ONLINE s b PX 60000");
        c.ok("PRESENCE.OFFLINE s b LINGER 300");
        assert_eq!(c.int("PRESENCE.OFFLINE s b"), 1);
        assert_eq!(briefs(&sub.events_so_far(&mut c)), ["join b", "leave b (offline)"]);
        sub.expect_none_for(ms(400));
        assert_eq!(c.int("PRESENCE.OFFLINE s nobody LINGER 100"), 0);
        assert_eq!(c.int("PRESENCE.OFFLINE nowhere nobody LINGER 100"), 0);
    });
}

#[test]
fn a_session_that_lingers_stays_when_another_joins() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.subscribe(&["presence:s"]);
        c.ok("PRESENCE.ONLINE s a SESSION old PX 60000");
        c.ok("PRESENCE.OFFLINE s a SESSION old LINGER 200");
        c.ok("PRESENCE.ONLINE s a SESSION new PX 60000");
        assert_eq!(briefs(&sub.events_so_far(&mut c)), ["join a/old", "add a/new"]);
        assert_eq!(sub.event(SOON).brief(), "remove a/old (offline)");
        assert_eq!(c.ints("PRESENCE.STATUS s a"), [1]);
    });
}

// --- live means live -------------------------------------------------------------------------------------------------

/// No command shows `user` in a space where `others` (users with one session each) remain.
#[track_caller]
fn shows_nobody_but(c: &mut Conn, space: &str, user: &str, others: &[&str]) {
    let n = others.len() as i64;
    assert_eq!(c.ints(["PRESENCE.STATUS", space, user, user]), [0, 0]);
    assert_eq!(c.int(["PRESENCE.COUNT", space]), n);
    assert_eq!(c.int(["PRESENCE.COUNT", space, "SESSIONS"]), n);
    let all = c.space(space);
    assert_eq!((all.users, all.sessions), (n, n));
    assert_eq!(all.names(), others);
    let names = Space::parse(&c.ok(["PRESENCE.SPACE", space]));
    assert_eq!(names.names(), others);
    let mut paged: Vec<String> = pages(c, space, 1, |_| {})
        .iter()
        .flat_map(|p| p.names().into_iter().map(String::from).collect::<Vec<_>>())
        .collect();
    paged.sort();
    assert_eq!(paged, others);
    if let Some(user) = c.user(space, user) {
        assert_eq!((user.status.as_str(), user.sessions.len()), ("offline", 0));
    }
}

#[test]
fn no_read_shows_a_lapsed_session_while_the_sweep_may_not_run() {
    steady(|| {
        let server = Server::start();
        let (mut c, mut other) = (server.connect(), server.connect());
        let mut sub = server.psubscribe(&["presence:*"]);
        // Few and many: what a read looks through differs inside.
        let crowd: Vec<String> = (0..40).map(|i| format!("z{i:02}")).collect();
        let crowd: Vec<&str> = crowd.iter().map(String::as_str).collect();
        c.ok("PRESENCE.ONLINE few z PX 3600000");
        c.ok(["PRESENCE.ONLINE", "many", "USERS", "40"]
            .iter()
            .chain(&crowd)
            .copied()
            .collect::<Vec<_>>());
        let (t0, t1, _) = timed(&mut c, "PRESENCE.ONLINE few a PX 300");
        c.ok("PRESENCE.ONLINE few a SESSION second PX 320");
        c.ok("PRESENCE.ONLINE many a PX 300");
        c.ok("PRESENCE.ONLINE alone a PX 300");
        c.ok("PRESENCE.ONLINE two b SESSION long PX 3600000");
        c.ok("PRESENCE.ONLINE two b SESSION short PX 300 META 1");
        assert_eq!(sub.events_so_far(&mut c).len(), 47);
        let (paused, _, _) = timed(&mut other, "CLIENT PAUSE 1500 WRITE");
        assert!(now_ms() < t0 + 300, "the machine was too slow for this test");
        sleep_until(t1 + 400);
        shows_nobody_but(&mut c, "few", "a", &["z"]);
        shows_nobody_but(&mut c, "many", "a", &crowd);
        shows_nobody_but(&mut c, "alone", "a", &[]);
        let b = c.user("two", "b").unwrap();
        assert_eq!(b.sessions.iter().map(|s| s.session.as_str()).collect::<Vec<_>>(), ["long"]);
        assert_eq!(c.ints("PRESENCE.STATUS two b"), [1]);
        assert_eq!((c.int("PRESENCE.COUNT two"), c.int("PRESENCE.COUNT two SESSIONS")), (1, 1));
        assert_eq!(c.space("two").roster()["b"].len(), 1);
        assert!(now_ms() < paused + 1500, "the machine was too slow for this test");
        // Then each leaves, once.
        let mut ends: Vec<_> = sub.events(5, SOON);
        for e in &ends {
            within("arrival after the pause", e.arrived, paused + 1500, paused + 1500 + 2 * LATE);
            assert!(e.int("at") >= t0 + 300);
            assert_eq!(e.str("reason"), "timeout");
        }
        ends.sort_by_key(|e| (e.str("space").to_string(), e.id()));
        let ends: Vec<_> =
            ends.iter().map(|e| format!("{} {}", e.str("space"), e.brief())).collect();
        assert_eq!(
            ends,
            [
                "alone leave a (timeout)",
                "few remove a (timeout)",
                "few leave a/second (timeout)",
                "many leave a (timeout)",
                "two remove b/short (timeout)"
            ]
        );
        sub.expect_none_for(ms(100));
    });
}

#[test]
fn no_read_shows_a_session_that_lapsed_inside_a_pipeline() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        c.ok("PRESENCE.ONLINE s z PX 3600000");
        // No timer comes between the commands of a pipeline.
        let replies = c.batch([
            "PRESENCE.ONLINE s a PX 60",
            "PRESENCE.STATUS s a",
            "DEBUG SLEEP 0.15",
            "PRESENCE.STATUS s a z",
            "PRESENCE.COUNT s",
            "PRESENCE.COUNT s SESSIONS",
            "PRESENCE.SPACE s WITHSESSIONS",
            "PRESENCE.USER s a",
        ]);
        let replies: Vec<Value> = replies.into_iter().map(Result::unwrap).collect();
        assert_eq!(replies[0], Value::Int(1));
        assert_eq!(replies[1], Value::Array(vec![Value::Int(1)]));
        assert_eq!(replies[3], Value::Array(vec![Value::Int(0), Value::Int(1)]));
        assert_eq!((&replies[4], &replies[5]), (&Value::Int(1), &Value::Int(1)));
        assert_eq!(Space::parse(&replies[6]).names(), ["z"]);
        assert!(User::parse(&replies[7]).is_none_or(|u| u.status == "offline"));
    });
}

#[test]
fn no_read_shows_a_session_that_lapsed_during_a_script() {
    let server = Server::start();
    let mut c = server.connect();
    let spin = "local t = redis.call('TIME'); local from = t[1] * 1000 + t[2] / 1000; \
                repeat t = redis.call('TIME') until t[1] * 1000 + t[2] / 1000 > from + ARGV[1]; ";
    // Inside the script. (Redis from 7.2 stops the clock for a script, like for its own expiry: both are right.)
    let inside = format!("{spin} return redis.call('PRESENCE.STATUS', KEYS[1], 'a')");
    c.ok("PRESENCE.ONLINE s a PX 100");
    c.ok(args!["EVAL", inside, 1, "s", 200]);
    assert_eq!(c.ints("PRESENCE.STATUS s a"), [0]);
    // Behind it: commands of the same pipeline follow the script at once, before any timer.
    for round in 0..10 {
        let space = format!("s{round}");
        let replies = c.batch([
            args!["PRESENCE.ONLINE", space, "a", "PX", 50],
            args!["EVAL", format!("{spin} return 1"), 0, 80],
            args!["PRESENCE.STATUS", space, "a"],
            args!["PRESENCE.COUNT", space],
        ]);
        assert_eq!(replies[2], Ok(Value::Array(vec![Value::Int(0)])), "round {round}");
        assert_eq!(replies[3], Ok(Value::Int(0)), "round {round}");
    }
}

#[test]
fn a_write_to_a_lapsed_user_records_the_leave_first() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.subscribe(&["presence:s"]);
        // No timer comes between the commands of a pipeline: the write itself must do it.
        let mut pipeline = |c: &mut Conn, commands: &[&str]| {
            let replies = c.batch(commands.iter().copied());
            let replies: Vec<Value> = replies.into_iter().map(Result::unwrap).collect();
            let events = sub.events_so_far(c);
            let mut seq = events[0].id().1;
            for e in &events[1..] {
                seq += 1;
                assert_eq!(e.id().1, seq, "a hole before {}", e.raw);
            }
            (replies, events)
        };
        let (replies, events) = pipeline(
            &mut c,
            &[
                "PRESENCE.ONLINE s a PX 50 META 1",
                "DEBUG SLEEP 0.1",
                "PRESENCE.ONLINE s a PX 60000",
                "PRESENCE.USER s a",
            ],
        );
        assert_eq!((&replies[0], &replies[2]), (&Value::Int(1), &Value::Int(1)));
        assert_eq!(briefs(&events), ["join a", "leave a (timeout)", "join a"]);
        assert_eq!(events[1].int("joined_at"), events[0].int("joined_at"));
        assert_eq!((events[1].int("users"), events[2].int("users")), (0, 1));
        assert!(events[1].int("at") >= events[0].int("at") + 50);
        assert!(
            events[2].int("joined_at") >= events[0].int("joined_at") + 50,
            "a new session, not the old one"
        );
        let user = User::parse(&replies[3]).unwrap();
        assert_eq!(user.session("").meta, None, "metadata of the session that ended");

        // The lapsed session of a user who has another.
        let (replies, events) = pipeline(
            &mut c,
            &[
                "PRESENCE.ONLINE s a SESSION x PX 50",
                "DEBUG SLEEP 0.1",
                "PRESENCE.ONLINE s a SESSION x PX 60000",
                "PRESENCE.ONLINE s a SESSION y PX 50",
                "DEBUG SLEEP 0.1",
                "PRESENCE.OFFLINE s a SESSION y",
                "PRESENCE.OFFLINE s a",
            ],
        );
        assert_eq!(
            (&replies[2], &replies[5], &replies[6]),
            (&Value::Int(0), &Value::Int(0), &Value::Int(1))
        );
        assert_eq!(
            briefs(&events)[..5],
            ["add a/x", "remove a/x (timeout)", "add a/x", "add a/y", "remove a/y (timeout)"]
        );
        assert_eq!((events[5].kind(), events[6].kind(), events.len()), ("remove", "leave", 7));

        // NX finds nobody, XX finds nobody, OFFLINE finds nobody.
        let (replies, events) = pipeline(
            &mut c,
            &[
                "PRESENCE.ONLINE s b PX 50",
                "DEBUG SLEEP 0.1",
                "PRESENCE.ONLINE s b XX PX 60000",
                "PRESENCE.ONLINE s b NX PX 50",
                "DEBUG SLEEP 0.1",
                "PRESENCE.OFFLINE s b",
                "PRESENCE.OFFLINE s b LINGER 100",
                "PRESENCE.ONLINE s b PX 60000",
            ],
        );
        assert_eq!(replies[2], Value::Nil);
        assert_eq!(replies[3], Value::Int(1));
        assert_eq!(
            (&replies[5], &replies[6], &replies[7]),
            (&Value::Int(0), &Value::Int(0), &Value::Int(1))
        );
        assert_eq!(
            briefs(&events),
            ["join b", "leave b (timeout)", "join b", "leave b (timeout)", "join b"]
        );

        // A lingering session that lapsed leaves as offline.
        let (_, events) = pipeline(
            &mut c,
            &[
                "PRESENCE.ONLINE s c PX 60000",
                "PRESENCE.OFFLINE s c LINGER 50",
                "DEBUG SLEEP 0.1",
                "PRESENCE.ONLINE s c PX 60000",
            ],
        );
        assert_eq!(briefs(&events), ["join c", "leave c (offline)", "join c"]);

        // Lists: each user on its own.
        let (replies, events) = pipeline(
            &mut c,
            &[
                "PRESENCE.ONLINE s USERS 3 d e f PX 60000",
                "PRESENCE.ONLINE s USERS 2 d f PX 50",
                "DEBUG SLEEP 0.1",
                "PRESENCE.ONLINE s USERS 4 d e f d PX 60000",
            ],
        );
        assert_eq!(replies[3], Value::Int(2));
        let mut roster = Roster::from(["b", "c"].map(|u| (u.to_string(), [String::new()].into())));
        events.iter().for_each(|e| e.fold(&mut roster));
        assert_eq!(events.iter().filter(|e| e.brief().ends_with("(timeout)")).count(), 2);
        assert_eq!(roster, c.space("s").roster());
    });
}

#[test]
fn a_write_that_waited_for_the_end_of_a_pause_follows_the_leave() {
    steady(|| {
        let server = Server::start();
        let (mut c, mut other) = (server.connect(), server.connect());
        let mut sub = server.subscribe(&["presence:s"]);
        for round in 0..5 {
            let (_, t1, _) = timed(&mut c, "PRESENCE.ONLINE s a PX 100");
            // ALL pauses UNPAUSE, too, so that one ends by itself.
            let end_it = round % 2 == 0;
            other.ok(["CLIENT", "PAUSE", "300", ["WRITE", "ALL"][round % 2]]);
            c.send("PRESENCE.ONLINE s a PX 60000").unwrap();
            if end_it {
                sleep_until(t1 + 150);
                other.ok("CLIENT UNPAUSE");
            }
            assert_eq!(c.recv(), Ok(Value::Int(1)), "round {round}");
            assert_eq!(
                briefs(&sub.events_so_far(&mut c)),
                ["join a", "leave a (timeout)", "join a"]
            );
            c.ok("PRESENCE.OFFLINE s a");
            sub.events_so_far(&mut c);
        }
    });
}

// --- many at once ----------------------------------------------------------------------------------------------------

/// `n` sessions of users in `spaces` spaces over four databases, all with this lease; users with even numbers have two.
fn crowd(c: &mut Conn, spaces: usize, users: usize, lease: i64) {
    for s in 0..spaces {
        c.ok(args!["SELECT", (s % 4) * 5]);
        let mut words = args!["PRESENCE.ONLINE", format!("room{s}"), "SESSIONS", users + users / 2];
        for u in 0..users {
            words.extend(args![format!("u{u}"), "one"]);
            if u % 2 == 0 {
                words.extend(args![format!("u{u}"), "two"]);
            }
        }
        words.extend(args!["PXAT", lease]);
        assert_eq!(c.int(words), users as i64);
    }
    c.ok("SELECT 0");
}

#[test]
fn thousands_abandoned_at_once_leave_once_each() {
    steady(|| {
        let server = Server::with(&[
            ("presence.sweep-budget-us", "500"),
            ("presence.history-ttl-ms", "600000"),
        ]);
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        const SPACES: usize = 60;
        const USERS: usize = 200;
        let lease = now_ms() + 4000;
        crowd(&mut c, SPACES, USERS, lease);
        // One who stays in each, and one whose lease was at that moment but is renewed.
        for s in 0..SPACES {
            c.ok(args!["SELECT", (s % 4) * 5]);
            c.ok(args!["PRESENCE.ONLINE", format!("room{s}"), "stays", "PX", 600_000]);
            c.ok(args![
                "PRESENCE.ONLINE",
                format!("room{s}"),
                "u1",
                "SESSION",
                "one",
                "PX",
                600_000
            ]);
        }
        assert!(now_ms() < lease, "the machine was too slow for this test");
        sub.events_so_far(&mut c);
        sleep_until(lease);
        // From now on every count is right, however far the sweep has come; and nobody waits long.
        let mut longest = ms(0);
        loop {
            let asked = Instant::now();
            c.ok("PING");
            longest = longest.max(asked.elapsed());
            for s in [0, 1, 2, 3, SPACES - 1] {
                c.ok(args!["SELECT", (s % 4) * 5]);
                let room = format!("room{s}");
                assert_eq!(c.int(args!["PRESENCE.COUNT", room]), 2);
                assert_eq!(c.int(args!["PRESENCE.COUNT", room, "SESSIONS"]), 2);
                assert_eq!(c.space(&room).names(), ["stays", "u1"]);
            }
            if c.stat("sessions") == 2 * SPACES as i64 {
                break;
            }
            assert!(now_ms() < lease + 20_000, "the sweep does not come to an end");
        }
        let mut rosters: BTreeMap<String, Roster> = BTreeMap::new();
        for s in 0..SPACES {
            let roster = rosters.entry(format!("room{s}")).or_default();
            for u in 0..USERS {
                let sessions = if u % 2 == 0 { vec!["one", "two"] } else { vec!["one"] };
                roster.insert(format!("u{u}"), sessions.into_iter().map(String::from).collect());
            }
            roster.insert("stays".into(), [String::new()].into());
        }
        let mut seqs: BTreeMap<String, u64> = BTreeMap::new();
        let ends = sub.events_so_far(&mut c);
        for e in &ends {
            assert!(e.arrived >= lease && e.int("at") >= lease, "too early: {}", e.raw);
            assert_eq!(e.str("reason"), "timeout");
            e.fold(rosters.get_mut(e.str("space")).unwrap());
            let seq = seqs.entry(e.str("space").into()).or_insert(e.id().1 - 1);
            *seq += 1;
            assert_eq!(e.id().1, *seq);
        }
        assert_eq!(ends.len(), SPACES * (USERS + USERS / 2 - 1));
        for (room, roster) in &rosters {
            assert_eq!(roster.keys().collect::<Vec<_>>(), ["stays", "u1"], "{room}");
        }
        let latest = ends.iter().map(|e| e.arrived - lease).max().unwrap();
        println!("latest leave {latest} ms after its lease, longest PING {longest:?}");
        assert!(latest < 10_000, "the last leave came {latest} ms late");
        assert!(longest < ms(500), "a PING waited {longest:?} while the sweep ran");
        sub.expect_none_for(ms(100));
    });
}

#[test]
fn the_sweep_works_in_slices_within_its_budget() {
    steady(|| {
        let server = Server::with(&[("presence.sweep-budget-us", "300")]);
        let mut c = server.connect();
        const USERS: usize = 8000;
        let lease = now_ms() + 1500;
        for portion in 0..8 {
            let mut words = args!["PRESENCE.ONLINE", "s", "USERS", USERS / 8];
            words.extend((0..USERS / 8).map(|u| format!("u{portion}-{u}").into_bytes()));
            words.extend(args!["PXAT", lease]);
            c.ok(words);
        }
        let before = c.stat("sweeps");
        wait_until("the sweep", secs(20), || now_ms() > lease && c.stat("users") == 0);
        assert_eq!(c.stat("timeouts"), USERS as i64);
        assert_eq!(c.stat("sweep_backlog"), 0);
        let sweeps = c.stat("sweeps") - before;
        assert!(sweeps > 3, "{USERS} leases in {sweeps} slices of 300 us");
        let longest = c.stat("sweep_longest_us");
        println!("{sweeps} slices, the longest took {longest} us");
        // The budget is 300; the rest is what a busy machine takes away in between.
        assert!(longest < 60_000, "a slice took {longest} us");
    });
}

#[test]
fn a_pause_while_leases_end_neither_aborts_nor_loses() {
    steady(|| {
        let server = Server::start();
        let (mut c, mut other) = (server.connect(), server.connect());
        let mut sub = server.psubscribe(&["presence:*"]);
        for (round, mode) in ["WRITE", "ALL", "WRITE", "ALL"].into_iter().enumerate() {
            let users = 500;
            let lease = now_ms() + 600;
            for s in 0..4 {
                let mut words = args!["PRESENCE.ONLINE", format!("s{s}"), "USERS", users];
                words.extend((0..users).map(|u| format!("u{u}").into_bytes()));
                words.extend(args!["PXAT", lease]);
                c.ok(words);
            }
            assert_eq!(
                sub.events_so_far(&mut c).len(),
                4 * users,
                "the machine was too slow for this test"
            );
            // Once over the whole of it, once in the middle of the sweep.
            if round >= 2 {
                sleep_until(lease + 1);
            }
            let (paused, _, _) = timed(&mut other, args!["CLIENT", "PAUSE", 800, mode]);
            let ends = sub.events(4 * users, secs(10));
            for e in &ends {
                assert_eq!(e.brief(), format!("leave {} (timeout)", e.user()));
                assert!(e.int("at") >= lease);
            }
            if round < 2 {
                assert!(ends[0].arrived >= paused + 800, "published while paused");
            }
            assert!(sub.events_so_far(&mut c).is_empty());
        }
        assert!(server.alive());
    });
}

#[test]
fn a_pause_that_begins_inside_a_transaction() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.subscribe(&["presence:s"]);
        c.ok("MULTI");
        for queued in
            ["CLIENT PAUSE 400 WRITE", "PRESENCE.ONLINE s a PX 50", "PRESENCE.ONLINE s b PX 60000"]
        {
            c.ok(queued);
        }
        let before = now_ms();
        c.ok("EXEC");
        assert_eq!(briefs(&sub.events(2, SOON)), ["join a", "join b"]);
        let leave = sub.event(SOON);
        assert_eq!(leave.brief(), "leave a (timeout)");
        within("the leave", leave.arrived, before + 400, before + 400 + 2 * LATE);
        assert!(server.alive());
    });
}

#[test]
fn two_hundred_thousand_heartbeats_leave_memory_where_it_was() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*"]);
    let users = 1000;
    let beats = |c: &mut Conn, n: usize, space: &str| {
        for _ in 0..n / users {
            let replies = c.batch((0..users).map(|u| {
                args![
                    "PRESENCE.ONLINE",
                    space,
                    format!("user-{u}"),
                    "SESSION",
                    "tab",
                    "PX",
                    300_000
                ]
            }));
            assert!(replies.iter().all(|r| matches!(r, Ok(Value::Int(0 | 1)))), "{:?}", replies[0]);
        }
    };
    beats(&mut c, users, "s");
    beats(&mut c, 5000, "s"); // buffers of the connection reach their size
    c.ok("PRESENCE.ONLINE lonely a PX 300000");
    let memory = |c: &mut Conn| {
        let used: i64 = c.info("memory")["used_memory"].parse().unwrap();
        (
            used,
            c.int("MEMORY USAGE s SAMPLES 0"),
            c.int("MEMORY USAGE lonely"),
            c.stat("bytes_used"),
        )
    };
    let before = memory(&mut c);
    let renewals = c.stat("renewals");
    sub.events_so_far(&mut c);
    beats(&mut c, 200_000, "s");
    for _ in 0..10 {
        c.batch((0..1000).map(|_| "PRESENCE.ONLINE lonely a PX 300000"));
    }
    let after = memory(&mut c);
    assert_eq!(c.stat("renewals") - renewals, 210_000);
    assert!(sub.events_so_far(&mut c).is_empty(), "a heartbeat is no event");
    assert_eq!(
        (before.1, before.2, before.3),
        (after.1, after.2, after.3),
        "MEMORY USAGE and bytes"
    );
    assert!((after.0 - before.0).abs() < 200_000, "used_memory {} -> {}", before.0, after.0);
}

#[test]
fn memory_comes_back_when_everybody_has_left() {
    let server =
        Server::with(&[("presence.history-ttl-ms", "100"), ("presence.history-length", "10")]);
    let mut c = server.connect();
    let used = |c: &mut Conn| c.info("memory")["used_memory"].parse::<i64>().unwrap();
    let round = |c: &mut Conn| {
        for s in 0..10 {
            let mut words = args!["PRESENCE.ONLINE", format!("s{s}"), "USERS", 1000];
            words.extend((0..1000).map(|u| format!("user-{u}").into_bytes()));
            words.extend(args!["PX", 300]);
            c.ok(words);
        }
        wait_until("all spaces to go", secs(20), || c.int("DBSIZE") == 0);
    };
    round(&mut c);
    let before = used(&mut c);
    for _ in 0..5 {
        round(&mut c);
    }
    let after = used(&mut c);
    assert_eq!((c.stat("spaces"), c.stat("users"), c.stat("sessions")), (0, 0, 0));
    // A leak of one session in ten would be half a megabyte.
    assert!(after - before < 300_000, "used_memory {before} -> {after}");
}
