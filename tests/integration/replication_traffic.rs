//! What heartbeats add to the replication stream, and so to the AOF.

use crate::harness::*;

/// As docs/operations.md says: space and user of 10 bytes, sessions of 36.
const SPACE: &str = "room:00042";
const USERS: usize = 100;
/// A lease of 30 s that is renewed every 10 s: by absolute times, so that nobody waits for it.
const LEASE_MS: i64 = 30_000;
const HEARTBEAT_MS: i64 = 10_000;
/// The first rounds tell what the joins did not.
const WARM_UP: i64 = 6;
const ROUNDS: i64 = 30;

fn user(i: usize) -> String {
    format!("user:{i:05}")
}

fn session(i: usize) -> String {
    format!("5d9c68c6-c50e-4d3d-b0a5-{i:012}")
}

/// Renews in rounds. Returns the bytes that each renewal adds to the stream.
fn bytes(c: &mut Conn, round: impl Fn(i64) -> Vec<Vec<Vec<u8>>>) -> f64 {
    let offset = |c: &mut Conn| c.info("replication")["master_repl_offset"].parse::<u64>().unwrap();
    let begin = now_ms();
    let mut before = (0, 0);
    for n in 0..WARM_UP + ROUNDS {
        if n == WARM_UP {
            before = (offset(c), c.stat("renewals"));
        }
        // Never early, up to 40 ms late.
        let lease = begin + LEASE_MS + n * HEARTBEAT_MS + n * 7 % 40;
        c.batch(round(lease)).into_iter().for_each(|reply| drop(reply.unwrap()));
    }
    (offset(c) - before.0) as f64 / (c.stat("renewals") - before.1) as f64
}

/// The table in docs/operations.md is what is measured here. Run with --nocapture to see it.
#[test]
fn bytes_of_a_renewal() {
    // No PINGs in the stream.
    let primary = Server::builder().config("repl-ping-replica-period", "3600").aof().start();
    let replica = Server::builder().line(&format!("replicaof 127.0.0.1 {}", primary.port)).start();
    let (mut c, mut r) = (primary.connect(), replica.connect());
    let linked = |r: &mut Conn| r.info("replication")["master_link_status"] == "up";
    wait_until("the replica", SOON * 4, || linked(&mut r));

    let one = |space: &str, i: usize, lease: i64| {
        args!["PRESENCE.ONLINE", space, user(i), "SESSION", session(i), "PXAT", lease]
    };
    let unnamed =
        |space: &str, i: usize, lease: i64| args!["PRESENCE.ONLINE", space, user(i), "PXAT", lease];
    let list = |space: &str, lease: i64| {
        let mut all = args!["PRESENCE.ONLINE", space, "SESSIONS", USERS];
        all.extend((0..USERS).flat_map(|i| [user(i).into_bytes(), session(i).into_bytes()]));
        all.extend(args!["PXAT", lease]);
        vec![all]
    };
    let mut table = String::new();
    let mut least = |way: &str, c: &mut Conn, few: usize, round: &dyn Fn(usize, i64) -> Vec<_>| {
        let [alone, crowd] = [few, USERS].map(|users| {
            c.ok(["DEL", SPACE]);
            bytes(c, |lease| round(users, lease))
        });
        table += &format!("| {way} | {alone:.1} | {crowd:.1} |\n");
        crowd
    };
    let singles = least("one session per call", &mut c, 1, &|users, lease| {
        (0..users).map(|i| one(SPACE, i, lease)).collect()
    });
    least("one unnamed session per call", &mut c, 1, &|users, lease| {
        (0..users).map(|i| unnamed(SPACE, i, lease)).collect()
    });
    let lists = least("100 sessions per call", &mut c, USERS, &|_, lease| list(SPACE, lease));
    println!("{table}");
    assert!(linked(&mut r), "the replica has been lost meanwhile");
    assert!(singles <= 15.0 && lists <= 15.0, "{table}");
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");
    let text = std::fs::read_to_string(page).unwrap();
    assert!(text.contains(&table), "{page} says something else than:\n{table}");
}
