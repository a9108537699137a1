//! The harness itself, on a server without the module.
use crate::harness::*;

#[test]
fn harness_starts_talks_and_restarts_a_server() {
    let server = Server::builder().bare().aof().start();
    let mut c = server.connect();
    assert_eq!(c.text("SET k v"), "OK");
    assert_eq!(c.int(args!["APPEND", "k", &[0u8, 255][..]]), 3);
    assert!(c.err("LPUSH k x").starts_with("WRONGTYPE "), "{}", c.err("LPUSH k x"));
    assert!(c.err("NOSUCH k x").starts_with("ERR unknown command"));
    assert!(c.is_null("GET none"));
    let mut c3 = server.connect3();
    assert_eq!(texts(&c3.ok("CONFIG GET appendonly")), ["appendonly", "yes"]);
    assert!(matches!(c3.ok("CONFIG GET appendonly"), Value::Map(_)));

    let mut sub = server.subscribe(&["a", "b"]);
    c.ok(args!["PUBLISH", "a", b"\0\xff"]);
    c.ok("PUBLISH b 2");
    let got: Vec<_> = sub.so_far(&mut c).into_iter().map(|m| (m.channel, m.payload)).collect();
    assert_eq!(got, [(b"a".to_vec(), b"\0\xff".to_vec()), (b"b".to_vec(), b"2".to_vec())]);
    sub.expect_none_for(ms(20));

    for how in [Stop::NoSave, Stop::Kill, Stop::Save] {
        server.restart(how);
        assert!(server.alive() && !server.crashed());
        assert_eq!(server.connect().int("STRLEN k"), 3, "after {how:?}");
    }
}

#[test]
fn harness_notices_a_crash() {
    let server = Server::builder().bare().start();
    server.connect().try_cmd("DEBUG SEGFAULT").unwrap_err();
    wait_until("the crash", SOON, || server.crashed());
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(server)));
    assert!(dropped.is_err());
    // Its log is in a file, and there in full.
    let dump = std::fs::read_to_string(Dump::path()).unwrap();
    assert!(dump.contains("Ready to accept connections"), "{dump}");
    std::fs::remove_file(Dump::path()).unwrap();
}

/// A process that is stopped and goes on has the reads interrupted that it waits in.
#[test]
fn harness_gets_the_reply_after_an_interrupted_read() {
    let server = Server::builder().bare().start();
    let (mut waits, mut c) = (server.connect(), server.connect());
    waits.send("BLPOP list 0").unwrap();
    let reply = std::thread::spawn(move || texts(&waits.recv().unwrap()));
    wait_until("the read", SOON, || c.text("CLIENT LIST").contains("cmd=blpop"));
    // From another process, because a stopped one cannot continue itself. `kill` is a builtin of every sh.
    let script = "for i in 1 2 3 4 5; do kill -STOP $0; kill -CONT $0; done";
    let this = std::process::id().to_string();
    let ended = std::process::Command::new("sh").args(["-c", script, &this]).status().unwrap();
    assert!(ended.success());
    c.ok("RPUSH list x");
    assert_eq!(reply.join().unwrap(), ["list", "x"]);
}
