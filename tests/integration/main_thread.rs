//! What one client asks for does not hold the server up for the others.

use crate::harness::*;

/// Processor time of the server (s).
fn cpu(c: &mut Conn) -> f64 {
    let info = c.info("cpu");
    ["used_cpu_user", "used_cpu_sys"].iter().map(|name| info[*name].parse::<f64>().unwrap()).sum()
}

/// The least of several figures: what other processes of the machine add varies.
fn least(round: impl FnMut(i32) -> f64) -> f64 {
    (0..3).map(round).fold(f64::MAX, f64::min)
}

/// Makes spaces in the selected database.
fn spaces(c: &mut Conn, count: usize, lease_ms: usize) {
    for from in (0..count).step_by(5000) {
        let online = |n| args!["PRESENCE.ONLINE", format!("{{abc}}{n}"), "u", "PX", lease_ms];
        for reply in c.batch((from..count.min(from + 5000)).map(online)) {
            reply.unwrap();
        }
    }
}

/// Also where another database has spaces.
#[test]
fn flushing_a_database_takes_no_longer_for_many_spaces() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("SELECT 1");
    spaces(&mut c, 10, 60_000);
    c.ok("SELECT 0");
    let micros = least(|_| {
        spaces(&mut c, 20_000, 60_000);
        c.ok("CONFIG RESETSTAT");
        c.ok("FLUSHDB ASYNC");
        let stats = c.info("commandstats")["cmdstat_flushdb"].clone();
        let usec = stats.split(',').find_map(|field| field.strip_prefix("usec="));
        usec.unwrap().parse().unwrap()
    });
    assert!(micros < 1500.0, "{micros} us");
    wait_until("the memory to be freed", SOON, || c.stat("spaces") == 10);
    c.ok("SELECT 1");
    assert_eq!((c.int("DBSIZE"), c.int("PRESENCE.COUNT {abc}1")), (10, 1));
}

/// After SWAPDB the flush is of the database that has the number now.
#[test]
fn databases_are_flushed_by_the_numbers_that_they_have() {
    let server = Server::with(&[("presence.history-ttl-ms", "100")]);
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*"]);
    c.ok("PRESENCE.ONLINE zero u PX 600");
    c.ok("SELECT 1");
    c.ok("PRESENCE.ONLINE one u PX 600");
    c.ok("SWAPDB 0 1");
    c.ok("FLUSHDB");
    let left = sub.events(3, SOON).remove(2);
    assert_eq!((left.kind(), left.str("space")), ("leave", "one"));
    c.ok("SELECT 0");
    wait_until("the key to be gone", SOON, || c.int("DBSIZE") == 0);
    assert_eq!((c.stat("spaces"), c.stat("queue_repairs")), (0, 0));
}

/// In a space without history, a client that waits for events that are kept is told nothing.
#[test]
fn an_event_costs_the_same_however_many_clients_it_tells_nothing() {
    const EVENTS: usize = 2000;
    let server = Server::with(&[("presence.history-length", "0")]);
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s u EX 600");
    let cost = |c: &mut Conn| {
        least(|_| {
            let before = cpu(c);
            (0..EVENTS).for_each(|_| drop(c.ok("PRESENCE.MESSAGE s u hi")));
            (cpu(c) - before) * 1e6 / EVENTS as f64
        })
    };
    let mut waiting = Vec::new();
    let mut wait = |c: &mut Conn, count: usize| {
        while waiting.len() < count {
            let mut w = server.connect();
            w.send("PRESENCE.EVENTS s BLOCK 0").unwrap();
            waiting.push(w);
        }
        let count = count.to_string();
        wait_until("clients to wait", SOON, || c.info("clients")["blocked_clients"] == count);
    };
    wait(&mut c, 1);
    let with_one = cost(&mut c);
    wait(&mut c, 3000);
    let with_many = cost(&mut c);
    println!("{with_one} us per event with one client, {with_many} us with 3000");
    assert!(with_many < with_one * 2.0 + 10.0, "{with_one} us, then {with_many} us");
    // They are told when the space is gone, each once.
    c.ok("DEL s");
    for w in &mut waiting {
        w.recv().unwrap();
        assert_eq!(w.text("PING"), "PONG");
    }
}

/// Clients that wait for different things in one space: each gets what it waits for.
#[test]
fn clients_with_different_ids_are_told_apart() {
    let server = Server::start();
    let mut c = server.connect();
    let waits = |id: &str| {
        let mut w = server.connect();
        w.send(format!("PRESENCE.EVENTS s {id} BLOCK 0")).unwrap();
        w
    };
    let blocked = |c: &mut Conn, count: i64| {
        let count = count.to_string();
        wait_until("clients to wait", SOON, || c.info("clients")["blocked_clients"] == count);
    };
    let mut early = [waits(""), waits("AFTER 0"), waits("AFTER $"), waits("AFTER $ COUNT 1")];
    blocked(&mut c, 4);
    c.ok("MULTI");
    c.ok("PRESENCE.ONLINE s a");
    c.ok("PRESENCE.ONLINE s b");
    c.ok("EXEC");
    let told = |w: &mut Conn| items(pairs(&w.recv().unwrap())[2].1).len();
    assert_eq!(early.each_mut().map(told), [2, 2, 2, 1]);
    let mut late = [waits("AFTER $"), waits("AFTER $"), waits("AFTER $")];
    blocked(&mut c, 3);
    // One is gone, one is unblocked by the server.
    let [mut first, mut second, third] = late;
    drop(third);
    blocked(&mut c, 2);
    let id = c.text("CLIENT LIST");
    let id = id.lines().find(|line| line.contains("flags=b")).unwrap();
    let id = id.split([' ', '=']).nth(1).unwrap().to_string();
    assert_eq!(c.int(["CLIENT", "UNBLOCK", &id]), 1);
    blocked(&mut c, 1);
    c.ok("PRESENCE.ONLINE s c");
    let mut counts = [told(&mut first), told(&mut second)];
    counts.sort();
    assert_eq!(counts, [0, 1]);
    late = [waits("AFTER $"), waits("AFTER $"), waits("AFTER $")];
    blocked(&mut c, 3);
    c.ok("PRESENCE.MESSAGE s a hi");
    assert_eq!(late.each_mut().map(told), [1, 1, 1]);
}

/// While the cluster is down, what is due stays due.
#[test]
fn info_counts_a_backlog_up_to_a_limit() {
    let server = Server::builder().config("cluster-enabled", "yes").start();
    let mut c = server.connect();
    let is = |c: &mut Conn, state: &str| c.text("CLUSTER INFO").contains(state);
    c.ok("CLUSTER ADDSLOTSRANGE 0 16383");
    for (count, told) in [(9000, 9000), (12_000, 10_000)] {
        wait_until("the cluster to be up", SOON * 4, || is(&mut c, "cluster_state:ok"));
        spaces(&mut c, count, 5000);
        // None of the spaces is in that slot.
        c.ok("CLUSTER DELSLOTS 0");
        wait_until("the cluster to be down", SOON, || is(&mut c, "cluster_state:fail"));
        wait_until("the backlog", SOON * 4, || c.stat("sweep_backlog") == told);
        // Without the limit it would come to this, as all leases end.
        let end = now_ms() + 1000;
        while now_ms() < end {
            assert!(c.stat("sweep_backlog") == told && c.stat("users") == count as i64);
        }
        c.ok("CLUSTER ADDSLOTS 0");
        wait_until("all to leave", SOON * 4, || c.stat("users") == 0);
        wait_until("all to be swept", SOON, || c.stat("sweep_backlog") == 0);
    }
}
