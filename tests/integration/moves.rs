//! A space is swept under whatever name and in whatever database it arrives.

use crate::harness::*;

type Way = (&'static str, fn(&mut Conn, &mut Conn, &str));

/// Runs commands in a transaction; `@` stands for the name of the space.
#[track_caller]
fn transaction(c: &mut Conn, name: &str, commands: &[&str]) {
    c.ok("MULTI");
    queue(c, name, commands);
    c.ok("EXEC");
}

#[track_caller]
fn queue(c: &mut Conn, name: &str, commands: &[&str]) {
    for command in commands {
        assert_eq!(text(&c.ok(command.replace('@', name).as_str())), "QUEUED", "{command}");
    }
}

/// Each begins with a space of that name in database 0, and ends with one space somewhere.
const WAYS: [Way; 15] = [
    ("MOVE", |c, _, name| {
        c.ok(["MOVE", name, "1"]);
    }),
    ("MOVE in MULTI", |c, _, name| transaction(c, name, &["MOVE @ 3"])),
    ("COPY to a database in MULTI", |c, _, name| {
        transaction(c, name, &["COPY @ @ DB 5", "DEL @"]);
    }),
    ("COPY over a space in MULTI", |c, _, name| {
        transaction(c, name, &["SELECT 6", "PRESENCE.ONLINE @ x", "SELECT 0"]);
        transaction(c, name, &["COPY @ @ DB 6 REPLACE", "DEL @"]);
    }),
    ("RENAME in MULTI", |c, _, name| transaction(c, name, &["RENAME @ @:new"])),
    ("RENAME over a space in MULTI", |c, _, name| {
        c.ok(["PRESENCE.ONLINE", &format!("{name}:new"), "x"]);
        transaction(c, name, &["RENAME @ @:new"]);
    }),
    ("RENAME twice in MULTI", |c, _, name| {
        transaction(c, name, &["RENAME @ @:a", "RENAMENX @:a @:b"])
    }),
    ("RENAME in another database", |c, _, name| {
        transaction(c, name, &["MOVE @ 4", "SELECT 4", "RENAME @ @:new", "SELECT 0"]);
    }),
    ("MOVE there and back", |c, _, name| {
        transaction(c, name, &["MOVE @ 7", "SELECT 7", "MOVE @ 0", "SELECT 0"]);
    }),
    ("MOVE in a script", |c, _, name| {
        c.ok(["EVAL", "return redis.call('MOVE', KEYS[1], 2)", "1", name]);
    }),
    ("RENAME and MOVE in a script in MULTI", |c, _, name| {
        let script =
            "redis.call('RENAME', KEYS[1], KEYS[1] .. ':s') redis.call('MOVE', KEYS[1] .. ':s', 2)";
        c.ok("MULTI");
        c.ok(["EVAL", script, "1", name]);
        c.ok("EXEC");
    }),
    ("RESTORE in MULTI", |c, _, name| {
        let Value::BulkString(dump) = c.ok(["DUMP", name]) else { panic!("no dump") };
        c.ok("MULTI");
        c.ok(["SELECT", "8"]);
        c.ok(args!["RESTORE", name, 0, &dump[..]]);
        c.ok(["SELECT", "0"]);
        c.ok(["DEL", name]);
        c.ok("EXEC");
    }),
    ("another client renames it there and back before EXEC", |c, other, name| {
        c.ok("MULTI");
        queue(c, name, &["RENAME @ @:new"]);
        other.ok(["RENAME", name, &format!("{name}:x")]);
        other.ok(["RENAME", &format!("{name}:x"), name]);
        c.ok("EXEC");
    }),
    ("another client queues the same and discards it", |c, other, name| {
        c.ok("MULTI");
        queue(c, name, &["MOVE @ 9"]);
        other.ok("MULTI");
        queue(other, name, &["RENAME @ @:y"]);
        other.ok("DISCARD");
        c.ok("EXEC");
    }),
    ("SWAPDB behind MOVE", |c, _, name| {
        transaction(c, name, &["MOVE @ 10", "SWAPDB 10 11"]);
    }),
];

fn keys(c: &mut Conn) -> Vec<String> {
    let mut keys = Vec::new();
    for db in 0..16 {
        c.ok(args!["SELECT", db]);
        keys.extend(texts(&c.ok("KEYS *")).into_iter().map(|key| format!("{key} in {db}")));
    }
    c.ok("SELECT 0");
    keys.sort();
    keys
}

/// Spaces that lasted, and have gone all these ways.
#[track_caller]
fn go_all_ways(c: &mut Conn, other: &mut Conn, lease_ms: i64) {
    for (number, (what, way)) in WAYS.iter().enumerate() {
        let name = format!("space-{number}");
        c.ok(args!["PRESENCE.ONLINE", &name, "USERS", 2, "a", "b", "PX", lease_ms]);
        way(c, other, &name);
        let there = keys(other);
        let of_it = |key: &&String| key.split([':', ' ']).next() == Some(&name);
        assert_eq!(there.iter().filter(of_it).count(), 1, "{what}: {there:?}");
    }
}

#[test]
fn spaces_are_swept_wherever_they_arrive() {
    let server = Server::with(&[("presence.history-ttl-ms", "200")]);
    let (mut c, mut other) = (server.connect(), server.connect());
    let mut sub = server.psubscribe(&["presence:*"]);
    go_all_ways(&mut c, &mut other, 1000);
    let mut left = Vec::new();
    while left.len() < WAYS.len() * 2 {
        let event = sub.event(SOON);
        if event.kind() == "leave" {
            left.push(event.str("space").to_string());
        }
    }
    wait_until("all keys to be gone", SOON, || keys(&mut c).is_empty());
    // They are found at once, and not only by the scan.
    assert_eq!(c.stat("queue_repairs"), 0, "{}", server.log());
}

#[test]
fn moved_spaces_are_swept_after_a_promotion() {
    let config = [("presence.history-ttl-ms", "200"), ("presence.restart-grace-ms", "0")];
    let (primary, replica) = (Server::with(&config), Server::with(&config));
    let (mut c, mut other, mut r) = (primary.connect(), primary.connect(), replica.connect());
    r.ok(args!["REPLICAOF", "127.0.0.1", primary.port.to_string()]);
    wait_until("the link", SOON, || r.info("replication")["master_link_status"] == "up");
    go_all_ways(&mut c, &mut other, 3000);
    wait_until("the replica to have all", SOON, || keys(&mut r) == keys(&mut c));
    r.ok("REPLICAOF NO ONE");
    wait_until("all keys to be gone", SOON * 2, || keys(&mut r).is_empty());
}

#[test]
fn moved_spaces_are_swept_after_an_aof_was_loaded() {
    let server = Server::builder()
        .aof()
        .config("presence.history-ttl-ms", "200")
        .config("presence.restart-grace-ms", "0")
        .start();
    let (mut c, mut other) = (server.connect(), server.connect());
    go_all_ways(&mut c, &mut other, 3000);
    let before = keys(&mut c);
    server.restart(Stop::Kill);
    let mut c = server.connect();
    assert_eq!(keys(&mut c), before);
    wait_until("all keys to be gone", SOON * 2, || keys(&mut c).is_empty());
}

/// A client can let the module forget what others have queued: then the scan finds the space.
#[test]
fn a_flood_of_renames_hides_no_space() {
    let server = Server::with(&[("presence.history-ttl-ms", "200")]);
    let (mut c, mut other) = (server.connect(), server.connect());
    c.ok("PRESENCE.ONLINE s USERS 2 a b PX 500");
    c.ok("MULTI");
    queue(&mut c, "s", &["RENAME @ @:new"]);
    let flood = (0..3000).map(|n| args!["RENAME", format!("none-{n}"), "s"]);
    assert!(other.batch(flood).iter().all(Result::is_err));
    c.ok("EXEC");
    wait_until("all keys to be gone", SOON, || keys(&mut other).is_empty());
}

/// Where the server tells of no RENAME, and the command has another name, only the scan finds the space.
#[test]
fn a_space_that_the_queue_lacks_is_found() {
    let server = Server::builder()
        .line("rename-command RENAME TAKE")
        .config("presence.history-ttl-ms", "200")
        .start();
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*"]);
    // Among many other keys, in several databases.
    for db in [0, 3, 15] {
        c.ok(args!["SELECT", db]);
        c.ok("DEBUG POPULATE 20000");
        c.ok("PRESENCE.ONLINE stays a");
        c.ok("PRESENCE.ONLINE s USERS 2 a b PX 500");
        c.ok("TAKE s new");
    }
    let mut left = 0;
    while left < 6 {
        left += usize::from(sub.event(SOON).kind() == "leave");
    }
    for db in [0, 3, 15] {
        c.ok(args!["SELECT", db]);
        wait_until("the key to be gone", SOON, || c.int("EXISTS new") == 0);
        assert_eq!(c.int("EXISTS stays"), 1);
    }
    let version = c.info("server").get("valkey_version").cloned().unwrap_or_default();
    let tells = !["8.1.", "9.0."].iter().any(|faulty| version.starts_with(faulty));
    assert_eq!(c.stat("queue_repairs"), if tells { 0 } else { 3 }, "{version}");
    assert_eq!(server.log().contains("missing from the expiry queue"), !tells);
}

/// What is being freed in another thread is not missed.
#[test]
fn deletions_repair_nothing() {
    let server = Server::start();
    let mut c = server.connect();
    let users: Vec<String> = (0..500).map(|n| format!("user-{n}")).collect();
    let end = now_ms() + 1500;
    while now_ms() < end {
        for n in 0..20 {
            let name = format!("s{n}");
            let head = args!["PRESENCE.ONLINE", name, "USERS", users.len()].to_vec();
            c.ok([head, users.iter().map(|user| user.clone().into_bytes()).collect()].concat());
        }
        c.ok("UNLINK s0 s1 s2 s3 s4 s5 s6 s7 s8 s9");
        c.ok("FLUSHDB ASYNC");
    }
    c.ok("PRESENCE.ONLINE s a");
    wait_until("all to be freed", SOON, || c.stat("spaces") == 1);
    assert_eq!(c.stat("queue_repairs"), 0);
}

/// What has just moved is not taken for lost, whenever the timers run.
#[test]
fn moves_repair_nothing() {
    let server = Server::start();
    let mut c = server.connect();
    let mut at = 0;
    let end = now_ms() + 3000;
    while now_ms() < end {
        c.ok(args!["PRESENCE.ONLINE", format!("s{at}"), "a"]);
        c.ok(args!["RENAME", format!("s{at}"), format!("s{}", at + 1)]);
        at = (at + 1) % 5;
        if at % 2 == 0 {
            c.ok(args!["COPY", format!("s{at}"), "copy", "REPLACE"]);
        }
        c.ok(["DEL", "s5"]);
    }
    assert_eq!(c.stat("queue_repairs"), 0, "{}", server.log());
}

/// One name can be the first of many spaces.
#[test]
fn a_name_has_any_number_of_destinations() {
    let server = Server::with(&[("presence.history-ttl-ms", "200")]);
    let (mut c, mut other) = (server.connect(), server.connect());
    for n in 0..100 {
        c.ok("PRESENCE.ONLINE draft a PX 500");
        c.ok(args!["RENAME", "draft", format!("room-{n}")]);
    }
    wait_until("all keys to be gone", SOON, || keys(&mut other).is_empty());
    assert_eq!(c.stat("queue_repairs"), 0, "{}", server.log());
}

/// Who waits on a replica for a space is told when a full copy brings it, and so where a file does.
#[test]
fn clients_hear_of_a_space_that_was_loaded() {
    let server = Server::start();
    let (mut c, mut waits) = (server.connect(), server.connect());
    c.ok("PRESENCE.ONLINE s a PX 3600000");
    c.ok("SAVE");
    c.ok("DEL s");
    waits.send("PRESENCE.EVENTS s BLOCK 0").unwrap();
    wait_until("a client to wait", SOON, || c.info("clients")["blocked_clients"] == "1");
    c.ok("DEBUG RELOAD NOSAVE");
    waits.recv().unwrap();
}

/// An entry of a space that is gone again does not stand in for that of another.
#[test]
fn a_space_that_came_and_went_hides_no_other() {
    let server = Server::start();
    let (mut c, mut waits) = (server.connect(), server.connect());
    c.ok("PRESENCE.ONLINE x a");
    let Value::BulkString(dump) = c.ok(["DUMP", "x"]) else { panic!("no dump") };
    c.ok("DEL x");
    c.ok("PRESENCE.ONLINE s a");
    waits.send("PRESENCE.EVENTS new AFTER 0 BLOCK 0").unwrap();
    wait_until("a client to wait", SOON, || c.info("clients")["blocked_clients"] == "1");
    c.ok("MULTI");
    c.ok(args!["RESTORE", "x", 0, &dump[..]]);
    queue(&mut c, "s", &["DEL x", "RENAME @ new"]);
    c.ok("EXEC");
    waits.recv().unwrap();
    assert_eq!(c.stat("queue_repairs"), 0, "{}", server.log());
}

/// Who waits for a space that only the scan finds is told then.
#[test]
fn clients_hear_of_a_space_that_the_queue_lacked() {
    let server = Server::builder().line("rename-command RENAME TAKE").start();
    let (mut c, mut waits) = (server.connect(), server.connect());
    c.ok("PRESENCE.ONLINE s a PX 3600000");
    waits.send("PRESENCE.EVENTS new AFTER 0 BLOCK 0").unwrap();
    wait_until("a client to wait", SOON, || c.info("clients")["blocked_clients"] == "1");
    c.ok("TAKE s new");
    waits.recv().unwrap();
}

/// Where a transaction selects databases, each command is in the one that is selected before it.
#[test]
fn a_transaction_may_select_another_database() {
    let server = Server::with(&[("presence.history-ttl-ms", "200")]);
    let (mut c, mut waits) = (server.connect(), server.connect());
    let mut sub = server.subscribe(&["presence:s"]);
    waits.ok("SELECT 4");
    waits.send("PRESENCE.EVENTS s AFTER 0 BLOCK 0").unwrap();
    wait_until("a client to wait", SOON, || c.info("clients")["blocked_clients"] == "1");
    c.ok("PRESENCE.ONLINE s x");
    c.ok("MULTI");
    queue(&mut c, "s", &["SELECT 4", "PRESENCE.ONLINE @ USERS 2 a b PX 300", "SELECT 0", "DEL @"]);
    c.ok("EXEC");
    waits.recv().unwrap();
    let events = sub.events(5, SOON);
    assert_eq!(events.iter().filter(|event| event.kind() == "leave").count(), 2, "{events:?}");
    wait_until("all keys to be gone", SOON, || keys(&mut c).is_empty());
    assert_eq!(c.stat("queue_repairs"), 0);
}

/// The server tells of each key that it loads, also where a client in another database lets it load.
#[test]
fn a_reload_in_a_transaction_files_all_spaces() {
    let server =
        Server::with(&[("presence.history-ttl-ms", "200"), ("presence.restart-grace-ms", "0")]);
    let mut c = server.connect();
    for db in [0, 5] {
        c.ok(args!["SELECT", db]);
        c.ok("PRESENCE.ONLINE s USERS 2 a b PX 1500");
    }
    c.ok("SELECT 3");
    transaction(&mut c, "s", &["DEBUG RELOAD"]);
    wait_until("all keys to be gone", SOON, || keys(&mut c).is_empty());
    assert_eq!(c.stat("queue_repairs"), 0);
}
