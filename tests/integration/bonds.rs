//! Bonds: an owner ends with the connection that it is bound to, however that ends.

use crate::harness::*;
use crate::owner_commands::{expires_at, names, owners};
use crate::replication::{primary, replica_of, sync};
use std::io::Write;
use std::process::{Command, Stdio};

#[track_caller]
fn ends(c: &mut Conn, how: &str) {
    wait_until(&format!("the owner to end with its connection: {how}"), SOON, || {
        names(c).is_empty()
    });
}

/// A connection with a bound owner, and its number.
fn bound(server: &Server) -> (Conn, i64) {
    let mut gateway = server.connect();
    gateway.ok("PRESENCE.OWNER RENEW gw EX 600 BIND");
    let id = gateway.int("CLIENT ID");
    (gateway, id)
}

#[test]
fn bonds_break_with_the_connection() {
    let server = Server::start();
    let mut c = server.connect();
    let (gateway, _) = bound(&server);
    assert!(owners(&mut c)[0].bound);
    drop(gateway);
    ends(&mut c, "closed");

    let (gateway, id) = bound(&server);
    assert_eq!(c.int(args!["CLIENT", "KILL", "ID", id]), 1);
    ends(&mut c, "CLIENT KILL");
    drop(gateway);

    let (mut gateway, id) = bound(&server);
    let _ = gateway.try_cmd(args!["CLIENT", "KILL", "ID", id, "SKIPME", "no"]);
    ends(&mut c, "CLIENT KILL of itself");

    let (mut gateway, _) = bound(&server);
    let _ = gateway.try_cmd("QUIT");
    ends(&mut c, "QUIT");

    let (gateway, _) = bound(&server);
    c.ok("CONFIG SET timeout 1");
    wait_until("the timeout", SOON * 2, || names(&mut c).is_empty());
    c.ok("CONFIG SET timeout 0");
    drop(gateway);

    // A subscriber that reads nothing.
    let (mut gateway, _) = bound(&server);
    gateway.ok("SUBSCRIBE news");
    c.ok(["CONFIG", "SET", "client-output-buffer-limit", "pubsub 65536 0 0"]);
    let long = "x".repeat(1 << 20);
    for _ in 0..64 {
        c.ok(["PUBLISH", "news", &long]);
    }
    ends(&mut c, "the limit of the output buffer");
    drop(gateway);
}

/// The connection of a process that is killed.
#[test]
fn bonds_break_when_a_process_is_killed() {
    let server = Server::start();
    let mut c = server.connect();
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{}; printf 'PRESENCE.OWNER RENEW gw EX 600 BIND\\r\\n' >&3; while read -r line; do :; done <&3",
        server.port
    );
    let child = Command::new("bash").args(["-c", &script]).stdout(Stdio::null()).spawn();
    let mut child = child.unwrap();
    wait_until("the process to bind", SOON, || names(&mut c) == ["gw"]);
    assert!(owners(&mut c)[0].bound);
    child.kill().unwrap();
    let _ = child.wait();
    ends(&mut c, "kill -9");
}

#[test]
fn bonds_leave_the_owner_its_linger() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut gateway = server.connect();
        gateway.ok("PRESENCE.OWNER RENEW gw EX 600 BIND LINGER 9000");
        gateway.ok("PRESENCE.OWNER RENEW gw EX 600 BIND LINGER 800");
        let before = now_ms();
        drop(gateway);
        wait_until("the cut", SOON, || expires_at(&mut c, "gw").unwrap() < before + 100_000);
        within("the linger", expires_at(&mut c, "gw").unwrap(), before + 800, now_ms() + 800);
        assert!(!owners(&mut c)[0].bound);
        // Who comes back in time takes it back.
        c.ok("PRESENCE.OWNER RENEW gw EX 600");
        assert!(expires_at(&mut c, "gw").unwrap() > before + 500_000);
        // The lease is cut, never prolonged.
        let mut gateway = server.connect();
        gateway.ok("PRESENCE.OWNER RENEW gw PX 700 BIND LINGER 3600000");
        let lease = expires_at(&mut c, "gw").unwrap();
        drop(gateway);
        wait_until("the end of the lease", SOON, || names(&mut c).is_empty());
        assert!(now_ms() >= lease && now_ms() < lease + 3000);
    });
}

#[test]
fn bonds_move_and_stay() {
    let server = Server::start();
    let mut c = server.connect();
    let (mut first, mut second) = (server.connect(), server.connect());
    first.ok("PRESENCE.OWNER RENEW gw EX 600 BIND");
    first.ok("PRESENCE.OWNER RENEW other EX 600 BIND");
    first.ok("PRESENCE.OWNER RENEW third EX 600");
    // Without BIND the bond stays where it is.
    second.ok("PRESENCE.OWNER RENEW other EX 600");
    // With BIND it moves.
    second.ok("PRESENCE.OWNER RENEW gw EX 600 BIND");
    drop(first);
    wait_until("the end of the first connection", SOON, || names(&mut c) == ["gw", "third"]);
    drop(second);
    wait_until("the end of the second connection", SOON, || names(&mut c) == ["third"]);

    // END takes the bond, also with a linger: what closes after it says nothing more.
    let (mut gateway, id) = bound(&server);
    gateway.ok("PRESENCE.OWNER END gw LINGER 300000");
    let lease = expires_at(&mut c, "gw").unwrap();
    drop(gateway);
    let gone = |c: &mut Conn| !c.text("CLIENT LIST").contains(&format!("id={id} "));
    wait_until("the end of the connection", SOON, || gone(&mut c));
    fence(&mut c);
    assert_eq!(expires_at(&mut c, "gw"), Some(lease));
    c.ok("PRESENCE.OWNER END gw");
    // An owner that is made again has no bond.
    let (gateway, _) = bound(&server);
    c.ok("PRESENCE.OWNER END gw");
    c.ok("PRESENCE.OWNER RENEW gw EX 600");
    drop(gateway);
    fence(&mut c);
    assert_eq!(names(&mut c), ["gw", "third"]);
}

/// Waits until an end of a connection that is later than this call has been noticed.
fn fence(c: &mut Conn) {
    let port = c.int("CLIENT ID"); // any name that is not in use
    let name = format!("fence-{port}-{}", now_ms());
    let server_port = c.info("server")["tcp_port"].parse().unwrap();
    let mut other = Conn::dial(server_port).unwrap();
    other.ok(["PRESENCE.OWNER", "RENEW", &name, "BIND"]);
    drop(other);
    wait_until("the fence", SOON, || !names(c).contains(&name));
}

#[test]
fn bonds_in_transactions_are_of_the_client() {
    let server = Server::start();
    let mut c = server.connect();
    let mut gateway = server.connect();
    gateway.ok("MULTI");
    gateway.ok("PRESENCE.OWNER RENEW a EX 600 BIND");
    gateway.ok("PRESENCE.OWNER RENEW b EX 600 BIND LINGER 0");
    gateway.ok("EXEC");
    assert_eq!(names(&mut c), ["a", "b"]);
    drop(gateway);
    ends(&mut c, "closed");
    // The connection ends inside a transaction of another client, and inside a script.
    let (_gateway, id) = bound(&server);
    c.ok("MULTI");
    c.ok(args!["CLIENT", "KILL", "ID", id]);
    c.ok("PRESENCE.OWNER RENEW gw EX 600");
    c.ok("PING");
    c.ok("EXEC");
    // It was renewed after the end of the connection, in the same transaction.
    fence(&mut c);
    assert_eq!(names(&mut c), ["gw"]);
    let (_gateway, id) = bound(&server);
    let kill = format!("return redis.call('CLIENT', 'KILL', 'ID', '{id}')");
    if c.try_cmd(["EVAL", &kill, "0"]).is_err() {
        c.ok(args!["CLIENT", "KILL", "ID", id]);
    }
    ends(&mut c, "killed by a script");
}

#[test]
fn bonds_that_break_in_a_pause_count_from_its_end() {
    let server = Server::start();
    let mut c = server.connect();
    let mut gateway = server.connect();
    gateway.ok("PRESENCE.OWNER RENEW gw EX 600 BIND LINGER 700");
    let id = gateway.int("CLIENT ID");
    c.ok("CLIENT PAUSE 60000 WRITE");
    drop(gateway);
    let gone = |c: &mut Conn| !c.text("CLIENT LIST").contains(&format!("id={id} "));
    wait_until("the end of the connection", SOON, || gone(&mut c));
    sleep_until(now_ms() + 900);
    assert!(expires_at(&mut c, "gw").unwrap() > now_ms() + 500_000, "nothing is cut in a pause");
    let before = now_ms();
    c.ok("CLIENT UNPAUSE");
    wait_until("the cut", SOON, || expires_at(&mut c, "gw").is_none_or(|at| at < before + 100_000));
    if let Some(at) = expires_at(&mut c, "gw") {
        within("from the end of the pause", at, before + 700, now_ms() + 700);
    }
    ends(&mut c, "after the pause");
    assert!(now_ms() >= before + 700, "too early");
}

#[test]
fn bonds_break_on_replicas_too() {
    let p = primary().start();
    let r = replica_of(&p).start();
    let (mut c, mut rc) = (p.connect(), r.connect());
    let (gateway, _) = bound(&p);
    sync(&mut c, &mut rc);
    assert_eq!(names(&mut rc), ["gw"]);
    assert!(!owners(&mut rc)[0].bound, "a bond is of one process");
    drop(gateway);
    ends(&mut c, "closed");
    sync(&mut c, &mut rc);
    assert!(names(&mut rc).is_empty());
    // A server that becomes a replica forgets bonds.
    let (gateway, _) = bound(&p);
    c.ok(args!["REPLICAOF", "127.0.0.1", i64::from(r.port)]);
    drop(gateway);
    rc.ok("REPLICAOF NO ONE");
    wait_until("the new primary", SOON, || r.connect().info("replication")["role"] == "master");
    assert!(p.alive() && r.alive());
}

/// Other kinds of clients come and go: none of them is taken for a gateway.
#[test]
fn bonds_of_many_owners_break_together() {
    let server = Server::start();
    let mut c = server.connect();
    let mut gateway = server.connect();
    for n in 0..3000 {
        gateway.ok(format!("PRESENCE.OWNER RENEW o{n} EX 600 BIND"));
    }
    let mut garbage = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    garbage.write_all(b"*1\r\n$-5\r\n").unwrap();
    drop(garbage);
    drop(server.subscribe(&["x"]));
    assert_eq!(names(&mut c).len(), 3000);
    drop(gateway);
    ends(&mut c, "all 3000");
}
