//! What heartbeats add to the replication stream, and so to the AOF.

use crate::harness::*;

/// As docs/operations.md says: space and user of 10 bytes, sessions of 36.
const SPACE: &str = "room:00042";
/// So many sessions, and so many calls in a MULTI.
const USERS: usize = 100;

fn user(i: usize) -> String {
    format!("user:{i:05}")
}

fn session(i: usize) -> String {
    format!("5d9c68c6-c50e-4d3d-b0a5-{i:012}")
}

/// What the commands add to the stream for each renewal in them.
fn bytes(c: &mut Conn, commands: &[Vec<Vec<u8>>]) -> f64 {
    let offset = |c: &mut Conn| c.info("replication")["master_repl_offset"].parse::<u64>().unwrap();
    let (before, renewals) = (offset(c), c.stat("renewals"));
    c.batch(commands.iter().cloned()).into_iter().for_each(|reply| drop(reply.unwrap()));
    let bytes = offset(c) - before;
    bytes as f64 / (c.stat("renewals") - renewals) as f64
}

/// The table in docs/operations.md is what is measured here. Run with --nocapture to see it.
#[test]
fn bytes_of_a_renewal() {
    // No PINGs in the stream.
    let primary = Server::with(&[("repl-ping-replica-period", "3600")]);
    let replica = Server::builder().line(&format!("replicaof 127.0.0.1 {}", primary.port)).start();
    let (mut c, mut r) = (primary.connect(), replica.connect());
    let linked = |r: &mut Conn| r.info("replication")["master_link_status"] == "up";
    wait_until("the replica", SOON * 4, || linked(&mut r));

    let one =
        |i: usize| args!["PRESENCE.ONLINE", SPACE, user(i), "SESSION", session(i), "EX", 3600];
    let unnamed = |i: usize| args!["PRESENCE.ONLINE", SPACE, user(i), "EX", 3600];
    let mut all = args!["PRESENCE.ONLINE", SPACE, "SESSIONS", USERS];
    all.extend((0..USERS).flat_map(|i| [user(i).into_bytes(), session(i).into_bytes()]));
    all.extend(args!["EX", 3600]);
    let ways = [
        ("one session per call", (0..USERS).map(one).collect::<Vec<_>>()),
        ("one unnamed session per call", (0..USERS).map(unnamed).collect()),
        ("100 sessions per call", vec![all; USERS]),
    ];

    for (_, joins) in &ways {
        c.batch(joins.iter().cloned()).into_iter().for_each(|reply| drop(reply.unwrap()));
    }
    let mut table = String::new();
    for (way, calls) in ways {
        let alone = bytes(&mut c, &calls);
        let together = [vec![args!["MULTI"]], calls, vec![args!["EXEC"]]].concat();
        table += &format!("| {way} | {alone:.1} | {:.1} |\n", bytes(&mut c, &together));
    }
    println!("{table}");
    assert!(linked(&mut r), "the replica has been lost meanwhile");
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");
    let text = std::fs::read_to_string(page).unwrap();
    assert!(text.contains(&table), "{page} says something else than:\n{table}");
}
