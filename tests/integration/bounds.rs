//! Replicas and the AOF are told bounds of leases and not each renewal: no live session is hidden there, and no ghost
//! stays longer than the bound.

use crate::harness::*;
use crate::replication::{EndOnDrop, Over, primary, same, sync};
use std::sync::atomic::AtomicBool;
use std::thread;

/// Leases of so many ms, and a grace as long, with three heartbeats per lease.
const LEASE_MS: i64 = 3000;
const GRACE: (&str, &str) = ("presence.restart-grace-ms", "3000");
const USERS: usize = 1000;

fn user(n: usize) -> String {
    format!("user:{n:05}")
}

fn replica_by(port: u16) -> Builder {
    primary().config(GRACE.0, GRACE.1).line(&format!("replicaof 127.0.0.1 {port}"))
}

fn expires_at(c: &mut Conn, user: &str) -> i64 {
    c.user("s", user).unwrap().sessions[0].expires_at
}

/// All heartbeats of one round, one call per user or in lists of a hundred.
fn heartbeats(c: &mut Conn, as_lists: bool) {
    let calls: Vec<Vec<Vec<u8>>> = if as_lists {
        let list = |first: usize| {
            let mut list = args!["PRESENCE.ONLINE", "s", "USERS", 100];
            list.extend((first..first + 100).map(|n| user(n).into_bytes()));
            list.extend(args!["PX", LEASE_MS]);
            list
        };
        (0..USERS).step_by(100).map(list).collect()
    } else {
        (0..USERS).map(|n| args!["PRESENCE.ONLINE", "s", user(n), "PX", LEASE_MS]).collect()
    };
    c.batch(calls).into_iter().for_each(|reply| drop(reply.unwrap()));
}

/// Heartbeats every third of a lease, so often, while `look` is called again and again.
fn heartbeat_under(server: &Server, rounds: i64, as_lists: bool, mut look: impl FnMut()) {
    let over = Over(AtomicBool::new(false));
    thread::scope(|scope| {
        let beats = scope.spawn(|| {
            let _end = EndOnDrop(&over);
            let (mut c, begin) = (server.connect(), now_ms());
            for round in 0..rounds {
                sleep_until(begin + round * LEASE_MS / 3);
                heartbeats(&mut c, as_lists);
            }
        });
        while !over.yet() {
            look();
        }
        beats.join().unwrap();
    });
}

/// Everybody is shown at the replica, and nobody shorter than at the primary.
fn nobody_is_hidden(p: &mut Conn, r: &mut Conn, n: usize) {
    assert_eq!(r.int("PRESENCE.COUNT s"), USERS as i64, "at the replica");
    let user = user(n % USERS);
    let here = expires_at(p, &user);
    let mut there = 0;
    wait_until("the replica to know the lease", SOON, || {
        there = expires_at(r, &user);
        there >= here
    });
    let now = expires_at(p, &user);
    assert!(there <= now + LEASE_MS, "{user}: {there} at the replica, {now} at the primary");
}

#[test]
fn bounds_hide_nobody_and_cost_few_bytes() {
    let p_server =
        primary().config(GRACE.0, GRACE.1).config("repl-ping-replica-period", "3600").aof().start();
    let r_server = replica_by(p_server.port).start();
    let (mut p, mut r) = (p_server.connect(), r_server.connect());
    sync(&mut p, &mut r);
    let offset = |c: &mut Conn| c.info("replication")["master_repl_offset"].parse::<i64>().unwrap();
    for as_lists in [false, true] {
        heartbeats(&mut p, as_lists);
        sync(&mut p, &mut r);
        heartbeat_under(&p_server, 3, as_lists, || {});
        let (bytes, renewals) = (offset(&mut p), p.stat("renewals"));
        let mut looks = 0;
        heartbeat_under(&p_server, 7, as_lists, || {
            looks += 1;
            nobody_is_hidden(&mut p, &mut r, looks * 7);
        });
        let renewals = p.stat("renewals") - renewals;
        assert_eq!(renewals, 7 * USERS as i64);
        let bytes = (offset(&mut p) - bytes) as f64 / renewals as f64;
        assert!(bytes <= 15.0, "{bytes} bytes per renewal, as lists: {as_lists}");
        assert!(looks > 10);
    }
    same(&mut p, &mut r);
    assert_eq!(p.stat("timeouts"), 0);
    // The primary's word counts at once, whatever the bound.
    let left = user(7);
    assert!(expires_at(&mut r, &left) > now_ms() + 1000);
    p.ok(["PRESENCE.OFFLINE", "s", &left]);
    sync(&mut p, &mut r);
    assert_eq!(r.ints(["PRESENCE.STATUS", "s", &left]), [0]);
    let bound = expires_at(&mut r, &user(8)).max(expires_at(&mut r, &user(9)));
    wait_until("everybody to leave", SOON * 4, || p.stat("leaves") == USERS as i64);
    sync(&mut p, &mut r);
    assert_eq!(r.int("PRESENCE.COUNT s"), 0, "the bounds end at {bound}, it is {}", now_ms());
    same(&mut p, &mut r);
}

#[test]
fn bounds_cover_a_link_that_lags() {
    let p_server = primary().config(GRACE.0, GRACE.1).start();
    let proxy = Proxy::to(p_server.port);
    let r_server = replica_by(proxy.port).start();
    let (mut p, mut r) = (p_server.connect(), r_server.connect());
    sync(&mut p, &mut r);
    heartbeats(&mut p, false);
    sync(&mut p, &mut r);
    let mut next = now_ms();
    let mut is_held = false;
    heartbeat_under(&p_server, 8, false, || {
        // Held for half a second, open for as long.
        if now_ms() >= next {
            if is_held {
                proxy.mend()
            } else {
                proxy.hold()
            }
            is_held = !is_held;
            next = now_ms() + 500;
        }
        assert_eq!(r.int("PRESENCE.COUNT s"), USERS as i64);
    });
    proxy.mend();
    sync(&mut p, &mut r);
    assert_eq!(p.stat("timeouts"), 0);
}

#[test]
fn bounds_end_ghosts_where_the_primary_is_not_heard() {
    let p_server = primary().config(GRACE.0, GRACE.1).start();
    let proxy = Proxy::to(p_server.port);
    let r_server = replica_by(proxy.port).start();
    let (mut p, mut r) = (p_server.connect(), r_server.connect());
    sync(&mut p, &mut r);
    heartbeats(&mut p, false);
    heartbeat_under(&p_server, 4, false, || {});
    sync(&mut p, &mut r);
    proxy.cut();
    let (mut first, mut last) = (i64::MAX, 0);
    for n in (0..USERS).step_by(13) {
        let (here, there) = (expires_at(&mut p, &user(n)), expires_at(&mut r, &user(n)));
        assert!(here <= there && there <= here + LEASE_MS, "{here} {there}");
        (first, last) = (first.min(there), last.max(there));
    }
    sleep_until(first - 50);
    let shown = r.int("PRESENCE.COUNT s");
    assert!(shown > 0 || now_ms() >= first, "hidden before the first bound");
    wait_until("the bounds to end", SOON * 4, || r.int("PRESENCE.COUNT s") == 0);
    assert!(now_ms() <= last + 1500, "hidden long after the last bound");
    // It has decided nothing: no event, and everybody is stored.
    assert_eq!(r.space("s").id.split_once('-').unwrap().1, USERS.to_string());
}

#[test]
fn bounds_are_cut_to_the_grace_by_a_promotion() {
    let p_server = primary().config(GRACE.0, GRACE.1).start();
    let r_server = replica_by(p_server.port).start();
    let r2_server = replica_by(r_server.port).start();
    let (mut p, mut r, mut r2) = (p_server.connect(), r_server.connect(), r2_server.connect());
    sync(&mut p, &mut r);
    sync(&mut r, &mut r2);
    heartbeats(&mut p, false);
    heartbeat_under(&p_server, 5, false, || {});
    sync(&mut p, &mut r);
    sync(&mut r, &mut r2);
    let leases: Vec<i64> = (0..USERS).map(|n| expires_at(&mut p, &user(n))).collect();
    let bounds: Vec<i64> = (0..USERS).map(|n| expires_at(&mut r, &user(n))).collect();
    assert!(bounds.iter().zip(&leases).any(|(bound, lease)| *bound > lease + LEASE_MS / 2));
    p_server.stop(Stop::Kill);
    let promoted = now_ms();
    r.ok("REPLICAOF NO ONE");
    let grace = now_ms() + LEASE_MS;
    assert_eq!(r.int("PRESENCE.COUNT s"), USERS as i64);
    for (n, before) in leases.into_iter().enumerate() {
        let lease = expires_at(&mut r, &user(n));
        assert!(lease >= before.min(promoted + LEASE_MS), "{lease} {before}");
        assert!(lease <= before.max(grace), "{lease} {before} {grace}");
    }
    assert_eq!(r2.int("PRESENCE.COUNT s"), USERS as i64);
    // Who renews stays, with leases and bounds as ever; the others leave with the grace.
    r.ok(["PRESENCE.ONLINE", "s", &user(3), "EX", "100"]);
    wait_until("the others to leave", SOON * 4, || r.int("PRESENCE.COUNT s") == 1);
    assert!(now_ms() <= grace + 1500, "ghosts");
    wait_until("their leaves", SOON, || r.stat("leaves") == USERS as i64 - 1);
    sync(&mut r, &mut r2);
    assert_eq!(r2.int("PRESENCE.COUNT s"), 1);
    same(&mut r, &mut r2);
}

#[test]
fn bounds_in_an_aof_are_cut_to_the_grace_by_a_load() {
    for preamble in ["yes", "no"] {
        let server = primary()
            .config(GRACE.0, GRACE.1)
            .config("appendfsync", "always")
            .config("aof-use-rdb-preamble", preamble)
            .aof()
            .start();
        let mut c = server.connect();
        heartbeats(&mut c, false);
        heartbeat_under(&server, 3, false, || {});
        c.ok("BGREWRITEAOF");
        wait_until("the AOF", SOON * 4, || {
            let info = c.info("persistence");
            info["aof_rewrite_in_progress"] == "0" && info["aof_rewrite_scheduled"] == "0"
        });
        heartbeat_under(&server, 3, false, || {});
        c.ok(["PRESENCE.ONLINE", "s", &user(3), "EX", "100"]);
        c.ok(["PRESENCE.OFFLINE", "s", &user(4)]);
        let far = expires_at(&mut c, &user(3));
        let before = c.digest("s");
        server.restart(Stop::Kill);
        let loaded = now_ms();
        let mut c = server.connect();
        assert_eq!(c.digest("s"), before);
        assert_eq!(c.int("PRESENCE.COUNT s"), USERS as i64 - 1);
        assert_eq!(expires_at(&mut c, &user(3)), far);
        let lease = expires_at(&mut c, &user(5));
        assert!(lease <= loaded + LEASE_MS + 500, "{lease} {loaded}");
        wait_until("the others to leave", SOON * 4, || c.int("PRESENCE.COUNT s") == 1);
    }
}

/// DUMP at either, RESTORE and COPY: the copies have leases and bounds as the originals.
#[test]
fn bounds_travel_with_a_space() {
    let p_server = primary().config(GRACE.0, GRACE.1).start();
    let r_server = replica_by(p_server.port).start();
    let (mut p, mut r) = (p_server.connect(), r_server.connect());
    sync(&mut p, &mut r);
    heartbeats(&mut p, false);
    heartbeat_under(&p_server, 2, true, || {});
    sync(&mut p, &mut r);
    let dump = |c: &mut Conn| match c.ok("DUMP s") {
        Value::BulkString(bytes) => bytes,
        other => panic!("{other:?}"),
    };
    let (ours, theirs) = (dump(&mut p), dump(&mut r));
    p.ok(args!["RESTORE", "ours", 0, ours]);
    p.ok(args!["RESTORE", "theirs", 0, theirs]);
    p.ok("COPY s copy");
    let until = |c: &mut Conn, space: &str| c.user(space, user(9)).unwrap().sessions[0].expires_at;
    let lease = until(&mut p, "s");
    sync(&mut p, &mut r);
    let bound = until(&mut r, "s");
    for space in ["ours", "copy"] {
        assert_eq!(until(&mut p, space), lease, "{space}");
        // What is left of a slack is rounded down by up to 1/128.
        within(space, until(&mut r, space), bound - LEASE_MS / 128, bound);
    }
    // The replica knows the lease that it was told, and no later one.
    let told = until(&mut p, "theirs");
    assert!(told <= lease && bound <= told + LEASE_MS, "{told} {lease} {bound}");
    assert_eq!(until(&mut r, "theirs"), bound);
    same(&mut p, &mut r);
}

/// With no grace, a promotion or a load gives nothing: every lease is told as it is.
#[test]
fn bounds_are_the_leases_without_a_grace() {
    let p_server = primary().config(GRACE.0, "0").start();
    let r_server = replica_by(p_server.port).start();
    let (mut p, mut r) = (p_server.connect(), r_server.connect());
    sync(&mut p, &mut r);
    for lease in [3000, 5000, 4000] {
        heartbeats(&mut p, lease == 5000);
        p.ok(args!["PRESENCE.ONLINE", "s", user(1), "PX", lease]);
        sync(&mut p, &mut r);
        for n in [0, 1, 999] {
            assert_eq!(expires_at(&mut p, &user(n)), expires_at(&mut r, &user(n)), "{lease}");
        }
    }
}
