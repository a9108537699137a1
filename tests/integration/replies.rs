//! Every command gets exactly one reply, whatever the connection is and however a wait ends.
//!
//! The tests pipeline an `ECHO` with a number of its own behind each call. A call without a reply, or with two, shifts
//! the replies, and then an `ECHO` gets a reply that is not its own.

use crate::harness::*;
use crate::replication::{replica_of, sync};
use std::time::Instant;

/// A wait that does not end by itself during a test.
const LONG: &str = "BLOCK 60000";

/// Calls of each command: accepted ones, ones with bad arguments, and ones that wait where the connection can.
fn calls() -> Vec<Vec<Vec<u8>>> {
    let mut calls: Vec<Vec<Vec<u8>>> = Vec::new();
    for key in ["s", "none", "text", "shut"] {
        for rest in [
            "PRESENCE.ONLINE # a",
            "PRESENCE.ONLINE # a SESSION x META [1] EX 600 XX",
            "PRESENCE.ONLINE # USERS 2 a b PX 600000",
            "PRESENCE.ONLINE # SESSIONS 1 a x",
            "PRESENCE.ONLINE # USERS 2 a nobody XX",
            "PRESENCE.ONLINE # a EX 0",
            "PRESENCE.ONLINE # USERS 9 a",
            "PRESENCE.ONLINE #",
            "PRESENCE.OFFLINE # nobody",
            "PRESENCE.OFFLINE # b LINGER 1000",
            "PRESENCE.OFFLINE # b LINGER -1",
            "PRESENCE.STATUS # a nobody a",
            "PRESENCE.STATUS #",
            "PRESENCE.USER # a",
            "PRESENCE.USER # nobody",
            "PRESENCE.USER # a b",
            "PRESENCE.SPACE #",
            "PRESENCE.SPACE # WITHSESSIONS COUNT 1",
            "PRESENCE.SPACE # JSON",
            "PRESENCE.SPACE # COUNT 1 JSON WITHSESSIONS",
            "PRESENCE.SPACE # JSON JSON",
            "PRESENCE.SPACE # CURSOR x",
            "PRESENCE.SPACES",
            "PRESENCE.SPACES MATCH # COUNT 1",
            "PRESENCE.SPACES MIN -1",
            "PRESENCE.COUNT #",
            "PRESENCE.SEEN # a nobody b",
            "PRESENCE.SEEN #",
            "PRESENCE.COUNT # SESSIONS",
            "PRESENCE.COUNT # USERS",
            "PRESENCE.MESSAGE # a hello",
            "PRESENCE.MESSAGE # a",
            "PRESENCE.CLOSE other-# PX 1000",
            "PRESENCE.CLOSE # PX -1",
            "PRESENCE._SWEEP #",
            "PRESENCE._SWEEP",
            "PRESENCE._APPLY # x",
            "PRESENCE._UNLINK #",
            "PRESENCE._PUBLISH # x GLOBAL",
            "PRESENCE.EVENTS #",
            "PRESENCE.EVENTS # AFTER 1-1 COUNT 1",
            "PRESENCE.EVENTS # BLOCK 1",
            "PRESENCE.EVENTS # AFTER $ BLOCK 1",
            "PRESENCE.EVENTS # AFTER $ COUNT 1 BLOCK 20",
            "PRESENCE.EVENTS # AFTER 1-1 BLOCK 60000",
            "PRESENCE.EVENTS # AFTER $ BLOCK -1",
            "PRESENCE.EVENTS # AFTER $ BLOCK 1.5",
            "PRESENCE.EVENTS # AFTER $ BLOCK 9223372036854775807",
            "PRESENCE.EVENTS # AFTER $ BLOCK",
            "PRESENCE.EVENTS # AFTER x BLOCK 1",
            "PRESENCE.EVENTS # BLOCK 1 BLOCK 1",
            "PRESENCE.READ SPACES # 0",
            "PRESENCE.READ COUNT 1 SPACES # other 0 $",
            "PRESENCE.READ BLOCK 1 SPACES # other $ $",
            "PRESENCE.READ BLOCK 20 SPACES other # other # $ $ $ 0",
            "PRESENCE.READ SPACES # other 0",
            "PRESENCE.READ BLOCK -1 SPACES # 0",
            "PRESENCE.FEED MATCH #",
            "PRESENCE.FEED AFTER $ BLOCK 5 MATCH #",
            "PRESENCE.FEED COUNT 1 BLOCK 20",
            "PRESENCE.FEED AFTER #",
            "PRESENCE.FEED BLOCK -1",
        ] {
            let waits = rest.ends_with("BLOCK 60000") && key == "none";
            if !waits {
                calls.push(rest.replace('#', key).args());
            }
        }
    }
    calls.push("PRESENCE.NOSUCH s".args());
    calls
}

/// What the calls are about: a space with two users, one that is closed (with more
/// events, so that its last id differs), and a key of another type.
fn prepare(c: &mut Conn) {
    c.ok("FLUSHALL");
    c.ok("PRESENCE.ONLINE s USERS 2 a b EX 3600");
    c.ok("PRESENCE.ONLINE shut USERS 2 a b EX 3600");
    c.ok("PRESENCE.CLOSE shut EX 3600");
    c.ok("SET text x");
}

/// Whether a reply is that to `ECHO marker <n>`.
fn is_marker(reply: &Result<Value, String>, n: usize) -> bool {
    matches!(reply, Ok(Value::BulkString(b)) if *b == format!("marker {n}").as_bytes())
}

/// Sends each group of commands in one pipeline with a marker behind it. Each must get as many replies as it has
/// commands, which are returned.
#[track_caller]
fn in_step(
    c: &mut Conn,
    what: &str,
    groups: &[Vec<Vec<Vec<u8>>>],
) -> Vec<Vec<Result<Value, String>>> {
    for (n, group) in groups.iter().enumerate() {
        group.iter().for_each(|call| c.send(&call[..]).unwrap());
        c.send(args!["ECHO", format!("marker {n}")]).unwrap();
    }
    let mut all = Vec::new();
    for (n, group) in groups.iter().enumerate() {
        let shown = || group.iter().map(|call| show(call)).collect::<Vec<_>>().join(" | ");
        let replies: Vec<_> = group.iter().map(|_| c.recv()).collect();
        for reply in &replies {
            let early = (0..groups.len()).any(|n| is_marker(reply, n));
            let lost = matches!(reply, Err(e) if e.starts_with("lost"));
            assert!(!early && !lost, "{what}: {}: got {replies:?}", shown());
        }
        let marker = c.recv();
        assert!(is_marker(&marker, n), "{what}: {}: {replies:?}, then {marker:?}", shown());
        all.push(replies);
    }
    all
}

/// In groups of one command.
fn one_by_one(calls: Vec<Vec<Vec<u8>>>) -> Vec<Vec<Vec<Vec<u8>>>> {
    calls.into_iter().map(|call| vec![call]).collect()
}

/// A connection in RESP2 or RESP3 that is used as it is.
fn connections(server: &Server) -> Vec<(&'static str, Conn)> {
    let mut tracking = server.connect3();
    tracking.ok("CLIENT TRACKING ON");
    let mut no_evict = server.connect();
    no_evict.ok("CLIENT NO-EVICT ON");
    vec![
        ("RESP2", server.connect()),
        ("RESP3", server.connect3()),
        ("with tracking", tracking),
        ("without eviction", no_evict),
    ]
}

/// A connection in RESP3 that is subscribed.
fn subscribed(server: &Server, subscribe: &str) -> Conn {
    let mut c = server.connect3();
    c.send(subscribe).unwrap();
    c.ok("PING"); // what tells of the subscription is a push, and no reply
    c
}

const SUBSCRIPTIONS: [&str; 3] =
    ["SUBSCRIBE presence:other", "PSUBSCRIBE other:*", "SSUBSCRIBE presence:{other}"];

#[test]
fn every_call_gets_one_reply() {
    let server = Server::start();
    let mut admin = server.connect();
    for (what, mut c) in connections(&server) {
        prepare(&mut admin);
        in_step(&mut c, what, &one_by_one(calls()));
    }
    assert_eq!(admin.info("clients")["blocked_clients"], "0");
}

/// Valkey from 8.1 on does not block such a client. It is answered at once; elsewhere it waits.
#[test]
fn every_call_of_a_subscribed_connection_gets_one_reply() {
    let server = Server::start();
    let mut admin = server.connect();
    for subscribe in SUBSCRIPTIONS {
        prepare(&mut admin);
        let mut c = subscribed(&server, subscribe);
        in_step(&mut c, subscribe, &one_by_one(calls()));
        // What is said at once is right: the id, no gap and no events.
        prepare(&mut admin);
        let id = Value::BulkString(admin.space("s").id.into_bytes());
        let call = vec!["PRESENCE.EVENTS s AFTER $ BLOCK 50".args()];
        let replies = in_step(&mut c, subscribe, &[call]);
        let [told, gap, events] = fields(replies[0][0].as_ref().unwrap(), ["id", "gap", "events"]);
        assert_eq!((told, gap, items(events).len()), (&id, &Value::Boolean(false), 0));
    }

    // RESP2 takes only a few commands on such a connection, and says so for each.
    prepare(&mut admin);
    let mut c = server.connect();
    c.ok("SUBSCRIBE presence:other");
    for call in calls() {
        c.send(&call[..]).unwrap();
        c.send("PING marker").unwrap();
        let refused = c.recv();
        assert!(refused.is_err(), "{}: {refused:?}", show(&call));
        assert_eq!(texts(&c.recv().unwrap()), ["pong", "marker"], "{}", show(&call));
    }
}

#[test]
fn every_call_in_a_transaction_gets_one_reply() {
    let server = Server::start();
    let mut admin = server.connect();
    let mut subscribed = subscribed(&server, SUBSCRIPTIONS[0]);
    for (what, c) in connections(&server)
        .iter_mut()
        .map(|(what, c)| (*what, c))
        .chain([("subscribed", &mut subscribed)])
    {
        prepare(&mut admin);
        let groups: Vec<_> = calls()
            .into_iter()
            .map(|call| vec![args!["MULTI"], call.clone(), call, args!["EXEC"]])
            .collect();
        let replies = in_step(c, what, &groups);
        for (group, replies) in groups.iter().zip(replies) {
            // One that the server does not queue (an unknown command, a wrong arity) aborts the transaction.
            match (&replies[1], &replies[3]) {
                (Ok(_), Ok(Value::Array(replies))) => assert_eq!(replies.len(), 2),
                (Err(_), Err(e)) => assert!(e.starts_with("EXECABORT"), "{e}"),
                other => panic!("{what}: {}: {other:?}", show(&group[1])),
            }
        }
    }
}

#[test]
fn every_call_in_a_script_gets_one_reply() {
    let server = Server::start();
    let mut admin = server.connect();
    admin.ok(args![
        "FUNCTION",
        "LOAD",
        "#!lua name=lib\nredis.register_function('f', function(keys, args) return redis.pcall(unpack(args)) end)"
    ]);
    let mut subscribed = subscribed(&server, SUBSCRIPTIONS[0]);
    for (what, c) in connections(&server)
        .iter_mut()
        .map(|(what, c)| (*what, c))
        .chain([("subscribed", &mut subscribed)])
    {
        prepare(&mut admin);
        for head in [
            args!["EVAL", "return redis.pcall(unpack(ARGV))", 0],
            args!["EVAL", "redis.setresp(3) return redis.pcall(unpack(ARGV))", 0],
            args!["FCALL", "f", 0],
        ] {
            let scripts = calls().into_iter().map(|call| [head.clone(), call].concat()).collect();
            in_step(c, what, &one_by_one(scripts));
        }
    }
}

#[test]
fn every_call_on_a_replica_gets_one_reply() {
    let primary = Server::start();
    let replica = replica_of(&primary).start();
    let (mut p, mut r) = (primary.connect(), replica.connect());
    prepare(&mut p);
    sync(&mut p, &mut r);
    for (what, mut c) in connections(&replica) {
        in_step(&mut c, what, &one_by_one(calls()));
    }
    for subscribe in SUBSCRIPTIONS {
        in_step(&mut subscribed(&replica, subscribe), subscribe, &one_by_one(calls()));
    }
}

/// `CLIENT REPLY OFF` and `SKIP` go for calls that wait as they do for others.
#[test]
fn a_connection_that_wants_no_replies_gets_none() {
    let server = Server::start();
    let mut admin = server.connect();
    for mut c in [server.connect(), server.connect3()] {
        for call in [
            "PRESENCE.EVENTS s AFTER $ BLOCK 10",
            "PRESENCE.EVENTS text BLOCK 10",
            "PRESENCE.COUNT s",
        ] {
            prepare(&mut admin);
            c.send("CLIENT REPLY OFF").unwrap();
            c.send(call).unwrap();
            assert_eq!(c.ok("CLIENT REPLY ON"), Value::Okay, "{call}");
            c.send("CLIENT REPLY SKIP").unwrap();
            c.send(call).unwrap();
            assert_eq!(c.text("ECHO behind"), "behind", "{call}");
        }
    }
}

/// Fails the test unless this is a reply to READ: null, or an array of maps.
#[track_caller]
fn read(reply: &Value) {
    if *reply != Value::Nil {
        for entry in items(reply) {
            fields(entry, ["space", "id", "gap", "events"]);
        }
    }
}

/// Fails the test unless this is a reply to EVENTS.
#[track_caller]
fn told(reply: &Value) {
    let [_id, _gap, events] = fields(reply, ["id", "gap", "events"]);
    items(events);
}

/// The clients that wait at present.
fn blocked(c: &mut Conn) -> String {
    c.info("clients")["blocked_clients"].clone()
}

/// A wait with a marker behind it, and how it is ended: `{id}` is the client that waits.
const ENDS: [&str; 26] = [
    "PRESENCE.MESSAGE s a hello",
    "PRESENCE.ONLINE s new",
    "PRESENCE.ONLINE s short PX 1",
    "PRESENCE.OFFLINE s a",
    "PRESENCE.CLOSE s",
    "DEL s",
    "UNLINK s",
    "EXPIRE s -1",
    "PEXPIRE s 1",
    "RENAME s t",
    "RENAME text s",
    "SET s text",
    "MOVE s 1",
    "COPY shut s REPLACE",
    "SWAPDB 0 1",
    "FLUSHDB",
    "FLUSHALL ASYNC",
    "DEBUG RELOAD | PRESENCE.MESSAGE s a hello",
    "MULTI | DEL s | PRESENCE.ONLINE s a | EXEC",
    "MULTI | PRESENCE.MESSAGE s a hello | CLIENT UNBLOCK {id} | EXEC",
    "CLIENT UNBLOCK {id}",
    "CLIENT UNBLOCK {id} TIMEOUT",
    "CLIENT UNBLOCK {id} ERROR",
    "CLIENT PAUSE 30 ALL | PRESENCE.MESSAGE s a hello",
    "CLIENT PAUSE 30 WRITE | PRESENCE.MESSAGE s a hello",
    "REPLICAOF NO ONE | PRESENCE.MESSAGE s a hello",
];

#[test]
fn every_wait_ends_with_one_reply() {
    let server = Server::start();
    let mut admin = server.connect();
    for end in ENDS {
        for (resp3, by_read) in [(false, false), (false, true), (true, false), (true, true)] {
            prepare(&mut admin);
            let mut c = if resp3 { server.connect3() } else { server.connect() };
            let id = c.int("CLIENT ID").to_string();
            if by_read {
                c.send(format!("PRESENCE.READ {LONG} SPACES none s none $ $ $")).unwrap();
            } else {
                c.send(format!("PRESENCE.EVENTS s AFTER $ {LONG}")).unwrap();
            }
            c.send("ECHO behind").unwrap();
            wait_until("the client to wait", SOON, || blocked(&mut admin) == "1");
            for step in end.replace("{id}", &id).split(" | ") {
                admin.ok(step);
            }
            let ended = Instant::now();
            let first = c.recv();
            assert!(ended.elapsed() < SOON, "{end}: the wait went on for {:?}", ended.elapsed());
            match &first {
                Ok(reply) if by_read => read(reply),
                Ok(reply) => told(reply),
                Err(e) => assert!(
                    e.starts_with("WRONGTYPE ")
                        || (end.ends_with("ERROR") && e.starts_with("UNBLOCKED ")),
                    "{end}: {e}"
                ),
            }
            assert_eq!(text(&c.recv().unwrap()), "behind", "{end}");
            assert_eq!(c.text("PING"), "PONG", "{end}");
            assert_eq!(blocked(&mut admin), "0", "{end}");
            // Nothing is left of the wait that a later event could answer.
            admin.ok("FLUSHALL");
            admin.ok("PRESENCE.ONLINE s a");
            assert_eq!(c.text("ECHO later"), "later", "{end}");
        }
    }
}

/// The time of a wait ends while the server is paused, with and without something to tell.
#[test]
fn a_wait_whose_time_ends_in_a_pause_gets_one_reply() {
    let server = Server::start();
    let mut admin = server.connect();
    for pause in ["ALL", "WRITE"] {
        prepare(&mut admin);
        let mut c = server.connect();
        admin.ok(format!("CLIENT PAUSE 200 {pause}"));
        // What comes in the pause waits for its end; what waits already goes on.
        let groups: Vec<_> = (0..5)
            .map(|n| vec![format!("PRESENCE.EVENTS s AFTER $ BLOCK {}", 1 + n * 10).args()])
            .collect();
        in_step(&mut c, pause, &groups);
        admin.ok("CLIENT UNPAUSE");
        let mut c = server.connect();
        c.send("PRESENCE.EVENTS s AFTER $ BLOCK 50").unwrap();
        c.send("ECHO behind").unwrap();
        wait_until("the client to wait", SOON, || blocked(&mut admin) == "1");
        admin.ok(format!("CLIENT PAUSE 100 {pause}"));
        told(&c.recv().unwrap());
        assert_eq!(text(&c.recv().unwrap()), "behind", "{pause}");
        admin.ok("CLIENT UNPAUSE");
    }
}

/// A server that becomes a replica sends its blocked clients an error and closes their connections. One that is killed
/// gets nothing. Neither leaves anything behind.
#[test]
fn a_demotion_and_a_kill_end_waits() {
    let primary = Server::start();
    let server = Server::start();
    let mut admin = server.connect();
    for end in ["demotion", "kill"] {
        prepare(&mut admin);
        let mut clients: Vec<Conn> = (0..3).map(|_| server.connect()).collect();
        for c in &mut clients {
            c.send(format!("PRESENCE.EVENTS s AFTER $ {LONG}")).unwrap();
            c.send("ECHO behind").unwrap();
        }
        wait_until("the clients to wait", SOON, || blocked(&mut admin) == "3");
        if end == "kill" {
            admin.ok("CLIENT KILL TYPE normal");
        } else {
            admin.ok(format!("REPLICAOF 127.0.0.1 {}", primary.port));
        }
        for c in &mut clients {
            let mut replies = std::iter::from_fn(|| Some(c.recv()));
            if end == "demotion" {
                let first = replies.next().unwrap().unwrap_err();
                assert!(first.starts_with("UNBLOCKED "), "{first}");
            }
            let last = replies.next().unwrap().unwrap_err();
            assert!(last.starts_with("lost"), "{end}: {last}");
        }
        assert_eq!(blocked(&mut admin), "0");
        admin.ok("REPLICAOF NO ONE");
        admin.ok("FLUSHALL");
        admin.ok("PRESENCE.ONLINE s a");
        assert_eq!(admin.text("ECHO later"), "later");
    }
}

/// Clients that wait on a replica hear of what the primary does, go on waiting through a promotion, and get an error
/// when the replica is given another primary's data.
#[test]
fn a_wait_on_a_replica_ends_with_one_reply() {
    let primary = Server::start();
    let replica = replica_of(&primary).start();
    let (mut p, mut r) = (primary.connect(), replica.connect());
    let mut c = replica.connect();
    let mut wait = |r: &mut Conn, end: &mut dyn FnMut(&mut Conn)| {
        let expected = c.int("CLIENT ID");
        c.send(format!("PRESENCE.EVENTS s AFTER $ {LONG}")).unwrap();
        c.send("ECHO behind").unwrap();
        wait_until("the client to wait", SOON, || blocked(r) == "1");
        end(r);
        told(&c.recv().unwrap());
        assert_eq!(text(&c.recv().unwrap()), "behind");
        assert_eq!(c.int("CLIENT ID"), expected);
    };
    prepare(&mut p);
    sync(&mut p, &mut r);
    for end in ["PRESENCE.MESSAGE s a hello", "PRESENCE.ONLINE s new PX 1", "DEL s", "FLUSHALL"] {
        prepare(&mut p);
        sync(&mut p, &mut r);
        wait(&mut r, &mut |_| drop(p.ok(end)));
    }
    prepare(&mut p);
    sync(&mut p, &mut r);
    wait(&mut r, &mut |r| {
        r.ok("REPLICAOF NO ONE");
        r.ok("PRESENCE.MESSAGE s a hello");
    });
}

/// A cluster that goes down: Redis ends waits with an error, Valkey lets those of modules go on.
#[test]
fn a_cluster_that_is_down_ends_waits_with_one_reply() {
    let server = Server::with(&[("cluster-enabled", "yes"), ("cluster-node-timeout", "500")]);
    let mut admin = server.connect();
    let state = |c: &mut Conn, wanted: &str| c.text("CLUSTER INFO").contains(wanted);
    admin.ok("CLUSTER ADDSLOTSRANGE 0 16383");
    wait_until("a cluster of one", SOON, || state(&mut admin, "cluster_state:ok"));
    prepare(&mut admin);
    let mut c = server.connect();
    c.send("PRESENCE.EVENTS s AFTER $ BLOCK 2000").unwrap();
    c.send("ECHO behind").unwrap();
    wait_until("the client to wait", SOON, || blocked(&mut admin) == "1");
    admin.ok("CLUSTER DELSLOTSRANGE 0 16383");
    match c.recv() {
        Ok(reply) => told(&reply),
        Err(e) => assert!(e.starts_with("CLUSTERDOWN "), "{e}"),
    }
    assert_eq!(text(&c.recv().unwrap()), "behind");
    in_step(&mut c, "down", &one_by_one(calls()));
    admin.ok("CLUSTER ADDSLOTSRANGE 0 16383");
    wait_until("a cluster of one", SOON, || state(&mut admin, "cluster_state:ok"));
    prepare(&mut admin);
    in_step(&mut c, "up again", &one_by_one(calls()));
}

/// A shutdown ends the connections of those who wait, and the server does end.
#[test]
fn a_shutdown_ends_waits() {
    let server = Server::start();
    let mut admin = server.connect();
    prepare(&mut admin);
    let mut c = server.connect();
    c.send(format!("PRESENCE.EVENTS s AFTER $ {LONG}")).unwrap();
    wait_until("the client to wait", SOON, || blocked(&mut admin) == "1");
    server.stop(Stop::Save);
    let end = c.recv().unwrap_err();
    assert!(end.starts_with("lost"), "{end}");
    server.start_again();
    let mut admin = server.connect();
    in_step(&mut admin, "after a restart", &one_by_one(calls()));
}

/// Many clients of each kind at once, while events come: each call keeps its reply.
#[test]
fn replies_stay_in_step_while_events_come() {
    let server = Server::start();
    let mut admin = server.connect();
    prepare(&mut admin);
    let mut clients: Vec<Conn> = (0..4).map(|_| server.connect()).collect();
    clients.extend(SUBSCRIPTIONS.map(|subscribe| subscribed(&server, subscribe)));
    clients.extend((0..3).map(|_| subscribed(&server, "SUBSCRIBE presence:s")));
    for round in 0..100 {
        for (i, c) in clients.iter_mut().enumerate() {
            c.send(format!("PRESENCE.EVENTS s AFTER $ BLOCK {}", 1 + (i + round) % 4)).unwrap();
            c.send(format!("ECHO {round}:{i}")).unwrap();
        }
        for _ in 0..round % 5 {
            admin.ok("PRESENCE.MESSAGE s a hello");
        }
        for (i, c) in clients.iter_mut().enumerate() {
            told(&c.recv().unwrap());
            assert_eq!(text(&c.recv().unwrap()), format!("{round}:{i}"));
        }
    }
    wait_until("all waits to end", SOON, || blocked(&mut admin) == "0");
}
