//! PRESENCE.OWNER: its subcommands, and where owners are kept.

use crate::harness::*;
use crate::replication::{primary, replica_of, sync};

/// An owner as LIST shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Owner {
    pub owner: String,
    pub sessions: i64,
    pub expires_at: i64,
    pub bound: bool,
}

pub fn owners(c: &mut Conn) -> Vec<Owner> {
    let reply = c.ok("PRESENCE.OWNER LIST");
    let one = |value: &Value| {
        let [owner, sessions, expires_at, bound] =
            fields(value, ["owner", "sessions", "expires_at", "bound"]);
        let number = |value: &Value| text(value).parse().unwrap();
        let bound = matches!(bound, Value::Boolean(true) | Value::Int(1));
        Owner {
            owner: text(owner),
            sessions: number(sessions),
            expires_at: number(expires_at),
            bound,
        }
    };
    items(&reply).iter().map(one).collect()
}

pub fn names(c: &mut Conn) -> Vec<String> {
    owners(c).into_iter().map(|owner| owner.owner).collect()
}

pub fn expires_at(c: &mut Conn, name: &str) -> Option<i64> {
    owners(c).into_iter().find(|owner| owner.owner == name).map(|owner| owner.expires_at)
}

#[test]
fn owners_are_made_renewed_and_ended() {
    let server = Server::start();
    for mut c in [server.connect(), server.connect3()] {
        let before = now_ms();
        assert_eq!(c.int("PRESENCE.OWNER RENEW gw"), 0);
        assert_eq!(c.int("presence.owner renew b PX 60000"), 0);
        let list = owners(&mut c);
        assert_eq!(list.iter().map(|o| o.owner.as_str()).collect::<Vec<_>>(), ["b", "gw"]);
        within("the default lease", list[1].expires_at, before + 30_000, now_ms() + 30_000);
        within("the lease given", list[0].expires_at, before + 60_000, now_ms() + 60_000);
        assert!(list.iter().all(|owner| !owner.bound && owner.sessions == 0));
        // The last writer decides, also for a shorter lease.
        c.ok("PRESENCE.OWNER RENEW b EX 5");
        within("a shorter lease", expires_at(&mut c, "b").unwrap(), before + 5000, now_ms() + 5000);
        assert_eq!(c.int("PRESENCE.OWNER END gw"), 0);
        assert_eq!(names(&mut c), ["b"]);
        assert_eq!(c.int("PRESENCE.OWNER END gw"), 0, "one that has ended");
        assert_eq!(c.int("PRESENCE.OWNER END never LINGER 5"), 0, "one that was never there");
        // A linger shortens the lease, never prolongs it; a renewal takes it back.
        c.ok("PRESENCE.OWNER END b LINGER 3600000");
        assert!(expires_at(&mut c, "b").unwrap() <= now_ms() + 5000);
        c.ok("PRESENCE.OWNER END b LINGER 1000");
        let soon = expires_at(&mut c, "b").unwrap();
        assert!(soon <= now_ms() + 1000);
        c.ok("PRESENCE.OWNER RENEW b PX 50000");
        assert!(expires_at(&mut c, "b").unwrap() > soon + 10_000);
        c.ok("PRESENCE.OWNER END b LINGER 0");
        assert!(names(&mut c).is_empty());
        let shows = |c: &mut Conn| c.stat("owners");
        c.ok("PRESENCE.OWNER RENEW short PX 20");
        wait_until("the lease to end", SOON, || names(&mut c).is_empty());
        assert!(shows(&mut c) <= 1);
    }
}

#[test]
fn owners_have_any_name_of_512_bytes() {
    let server = Server::start();
    let mut c = server.connect();
    let long = "x".repeat(512);
    let names_of = ["*", "a|b", "\0", "\r\n\"", "\u{1f600}", " ", "HELP", &long];
    for name in names_of {
        c.ok(args!["PRESENCE.OWNER", "RENEW", name]);
    }
    let mut wanted: Vec<String> = names_of.map(String::from).into();
    wanted.sort();
    assert_eq!(names(&mut c), wanted);
    for (name, error) in [
        (&b""[..], "owner is empty; it has 1 to 512 bytes"),
        (&[b'x'; 513][..], "owner is longer than 512 bytes"),
        (b"\xff", "owner is not UTF-8 text"),
    ] {
        for command in ["RENEW", "END"] {
            let got = c.err(args!["PRESENCE.OWNER", command, name]);
            assert_eq!(got, format!("ERR {error}"));
        }
    }
    for name in names_of {
        c.ok(args!["PRESENCE.OWNER", "END", name]);
    }
    assert!(names(&mut c).is_empty());
}

#[test]
fn owners_bad_arguments_change_nothing() {
    let server = Server::start();
    let mut c = server.connect();
    let invalid = "ERR invalid expire time in 'presence.owner|renew' command";
    for (line, error) in [
        ("PRESENCE.OWNER", "ERR wrong number of arguments for 'presence.owner' command"),
        (
            "PRESENCE.OWNER RENEW",
            "ERR wrong number of arguments for 'presence.owner|renew' command",
        ),
        ("PRESENCE.OWNER END", "ERR wrong number of arguments for 'presence.owner|end' command"),
        (
            "PRESENCE.OWNER LIST x",
            "ERR wrong number of arguments for 'presence.owner|list' command",
        ),
        (
            "PRESENCE.OWNER NONSENSE o",
            "ERR unknown subcommand 'NONSENSE'. Try PRESENCE.OWNER HELP.",
        ),
        ("PRESENCE.OWNER RENEW o EX 0", invalid),
        ("PRESENCE.OWNER RENEW o PX -5", invalid),
        ("PRESENCE.OWNER RENEW o EX 9223372036854775807", invalid),
        ("PRESENCE.OWNER RENEW o PX 86400001", invalid),
        ("PRESENCE.OWNER RENEW o EX x", "ERR value is not an integer or out of range"),
        ("PRESENCE.OWNER RENEW o EX 1 PX 1", "ERR syntax error"),
        ("PRESENCE.OWNER RENEW o EXAT 99999999999", "ERR syntax error"),
        ("PRESENCE.OWNER RENEW o EX", "ERR syntax error: EX needs a value"),
        ("PRESENCE.OWNER RENEW o LINGER 5", "ERR syntax error: LINGER belongs to BIND"),
        ("PRESENCE.OWNER RENEW o BIND BIND", "ERR syntax error: BIND is given twice"),
        (
            "PRESENCE.OWNER RENEW o BIND LINGER 1 LINGER 1",
            "ERR syntax error: LINGER is given twice",
        ),
        ("PRESENCE.OWNER RENEW o BIND LINGER -1", "ERR LINGER is negative"),
        ("PRESENCE.OWNER RENEW o BIND LINGER x", "ERR value is not an integer"),
        ("PRESENCE.OWNER RENEW o what", "ERR syntax error: unknown option 'what'"),
        ("PRESENCE.OWNER END o what", "ERR syntax error: unknown option 'what'"),
        ("PRESENCE.OWNER END o LINGER", "ERR syntax error: LINGER needs a value"),
        ("PRESENCE._OWNERS x", "ERR PRESENCE._OWNERS is for replication"),
    ] {
        let got = c.err(line);
        let same = got.to_lowercase().starts_with(&error.to_lowercase());
        assert!(same, "{line}: {got}, and not {error}");
    }
    assert!(names(&mut c).is_empty());
    // Options in any order and any case.
    c.ok("PRESENCE.OWNER RENEW o linger 5 px 1000 bind");
    assert!(owners(&mut c)[0].bound);
    c.ok("PRESENCE.OWNER RENEW o PX 9000 LINGER 9223372036854775807 BIND");
    let help = texts(&c.ok("PRESENCE.OWNER HELP"));
    assert!(
        help[0].starts_with("PRESENCE.OWNER <subcommand> [<arg> [value] [opt] ...]."),
        "{help:?}"
    );
    let renew = "RENEW <owner> [EX <seconds>|PX <milliseconds>] [BIND [LINGER <linger>]]";
    assert!(help.iter().any(|line| line == renew), "{help:?}");
    assert_eq!(help.last().unwrap(), "    Print this help.");
}

#[test]
fn owners_have_subcommands_of_their_own() {
    let server = Server::start();
    let mut c = server.connect();
    let reply = c.ok("COMMAND INFO presence.owner");
    let info = items(&items(&reply)[0]);
    assert_eq!((text(&info[0]), text(&info[1])), ("presence.owner".into(), "-2".into()));
    let mut seen = Vec::new();
    for sub in items(&info[9]) {
        let sub = items(sub);
        let (name, flags) = (text(&sub[0]), texts(&sub[2]));
        let has = |flag: &str| flags.iter().any(|f| f == flag);
        let (arity, writes) = match name.as_str() {
            "presence.owner|renew" | "presence.owner|end" => ("-3", Some(true)),
            "presence.owner|sessions" => ("-3", Some(false)),
            "presence.owner|list" => ("2", Some(false)),
            "presence.owner|help" => ("2", None),
            other => panic!("{other}"),
        };
        assert_eq!(text(&sub[1]), arity, "{name}");
        let wanted = (writes == Some(true), writes == Some(false));
        assert_eq!((has("write"), has("readonly")), wanted, "{name}: {flags:?}");
        assert!(!has("denyoom"), "{name}: {flags:?}");
        assert_eq!([3, 4, 5].map(|i| text(&sub[i])), ["0", "0", "0"], "{name}: no key");
        let tips = texts(&sub[7]);
        if writes == Some(true) {
            assert_eq!(tips, ["request_policy:all_shards", "response_policy:agg_sum"], "{name}");
        }
        let categories = texts(&sub[6]);
        if !categories.is_empty() && writes.is_some() {
            let wanted = if writes == Some(true) { "@write" } else { "@read" };
            assert!(categories.iter().any(|c| c == wanted), "{name}: {categories:?}");
        }
        seen.push(name);
    }
    assert!(seen.len() >= 4, "{seen:?}");
    let docs = c.ok("COMMAND DOCS presence.owner");
    let container = fields_of(pairs(&docs)[0].1);
    assert!(text(&container["summary"]).len() > 10);
    let subcommands = fields_of(&container["subcommands"]);
    for name in &seen {
        let docs = fields_of(&subcommands[name]);
        assert!(text(&docs["summary"]).len() > 10, "{name}");
        assert!(text(&docs["complexity"]).starts_with("O("), "{name}");
        assert_eq!(text(&docs["since"]), "0.2.0", "{name}");
    }
    let arguments = &fields_of(&subcommands["presence.owner|renew"])["arguments"];
    let shown = format!("{arguments:?}");
    for word in ["owner", "EX", "PX", "BIND", "LINGER"] {
        assert!(
            shown.contains(word) || shown.contains(&format!("{:?}", word.as_bytes())),
            "{word}"
        );
    }
    // The ACL knows them one by one.
    c.ok("ACL SETUSER renews on >p -@all +presence.owner|renew");
    let mut renews = server.connect();
    renews.ok("AUTH renews p");
    renews.ok("PRESENCE.OWNER RENEW o");
    for denied in ["PRESENCE.OWNER END o", "PRESENCE.OWNER LIST", "PRESENCE._OWNERS x"] {
        assert!(renews.err(denied).starts_with("NOPERM"), "{denied}");
    }
}

fn fields_of(value: &Value) -> std::collections::BTreeMap<String, Value> {
    pairs(value).into_iter().map(|(name, value)| (name, value.clone())).collect()
}

#[test]
fn owners_belong_to_a_database() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.OWNER RENEW zero EX 600");
    c.ok("SELECT 3");
    assert!(names(&mut c).is_empty());
    c.ok("PRESENCE.OWNER RENEW three EX 600 BIND");
    c.ok("SWAPDB 0 3");
    assert_eq!(names(&mut c), ["zero"]);
    c.ok("SELECT 0");
    assert_eq!((names(&mut c), owners(&mut c)[0].bound), (vec!["three".to_string()], true));
    c.ok("FLUSHDB");
    assert!(names(&mut c).is_empty());
    c.ok("SELECT 3");
    assert_eq!(names(&mut c), ["zero"], "FLUSHDB leaves other databases alone");
    c.ok("FLUSHALL ASYNC");
    assert!(names(&mut c).is_empty());
}

#[test]
fn owners_work_in_transactions_and_scripts() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("MULTI");
    for line in [
        "PRESENCE.OWNER RENEW o BIND LINGER 5",
        "PRESENCE.OWNER LIST",
        "PRESENCE.OWNER END o",
        "PRESENCE.OWNER LIST",
    ] {
        c.ok(line);
    }
    let replies = c.ok("EXEC");
    let lengths = [1, 3].map(|at| items(&items(&replies)[at]).len());
    assert_eq!(lengths, [1, 0]);
    c.ok(["EVAL", "return redis.call('PRESENCE.OWNER', 'RENEW', 'o')", "0"]);
    let bind = "return redis.call('PRESENCE.OWNER', 'RENEW', 'p', 'BIND')";
    assert!(c.err(["EVAL", bind, "0"]).contains("not allowed in scripts"));
    let library = format!("#!lua name=l\nredis.register_function('f', function() {bind} end)");
    c.ok(["FUNCTION", "LOAD", &library]);
    assert!(c.err("FCALL f 0").contains("not allowed in scripts"));
    assert_eq!(names(&mut c), ["o"]);
    assert!(server.alive());
}

#[test]
fn owners_past_maxmemory_are_renewed_but_not_made() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.OWNER RENEW known PX 60000");
    c.ok("CONFIG SET maxmemory 1");
    assert!(c.err("PRESENCE.OWNER RENEW new").starts_with("OOM"));
    assert_eq!(c.int("PRESENCE.OWNER RENEW known PX 70000"), 0);
    assert_eq!(names(&mut c), ["known"]);
    assert_eq!(c.int("PRESENCE.OWNER END known"), 0);
    assert!(names(&mut c).is_empty());
    c.ok("CONFIG SET maxmemory 0");
}

#[test]
fn owners_are_known_on_replicas() {
    let p = primary().start();
    let mut c = p.connect();
    c.ok("PRESENCE.OWNER RENEW before PX 60000");
    let r = replica_of(&p).start();
    let mut rc = r.connect();
    sync(&mut c, &mut rc);
    assert_eq!(names(&mut rc), ["before"], "by the full copy");
    c.ok("SELECT 5");
    c.ok("PRESENCE.OWNER RENEW five PX 20000");
    let lease = expires_at(&mut c, "five").unwrap();
    sync(&mut c, &mut rc);
    rc.ok("SELECT 5");
    let shown = expires_at(&mut rc, "five").unwrap();
    within("the bound on the replica", shown, lease, lease + 30_000 + 1000);
    for write in ["PRESENCE.OWNER RENEW x", "PRESENCE.OWNER END five"] {
        assert!(rc.err(write).starts_with("READONLY"), "{write}");
    }
    // Renewals within the bound are not sent.
    let offset = |c: &mut Conn| c.info("replication")["master_repl_offset"].clone();
    let steady = offset(&mut c);
    for _ in 0..50 {
        c.ok("PRESENCE.OWNER RENEW five PX 20000");
    }
    sync(&mut c, &mut rc);
    let sent = offset(&mut c).parse::<i64>().unwrap() - steady.parse::<i64>().unwrap();
    assert!(sent < 2000, "{sent} bytes for 50 renewals");
    // A longer or much shorter lease is.
    c.ok("PRESENCE.OWNER RENEW five EX 3600");
    let lease = expires_at(&mut c, "five").unwrap();
    sync(&mut c, &mut rc);
    assert!(expires_at(&mut rc, "five").unwrap() >= lease);
    c.ok("PRESENCE.OWNER RENEW five EX 60");
    let lease = expires_at(&mut c, "five").unwrap();
    sync(&mut c, &mut rc);
    within("the bound again", expires_at(&mut rc, "five").unwrap(), lease, lease + 60_000);
    // A linger is told exactly, and an end at once.
    c.ok("PRESENCE.OWNER END five LINGER 9000");
    sync(&mut c, &mut rc);
    assert_eq!(expires_at(&mut rc, "five"), expires_at(&mut c, "five"));
    c.ok("PRESENCE.OWNER END five");
    sync(&mut c, &mut rc);
    assert!(names(&mut rc).is_empty());
}

#[test]
fn owners_get_the_grace_at_a_promotion() {
    for (grace, live) in [("30000", true), ("0", false)] {
        let p = primary().config("presence.restart-grace-ms", grace).start();
        let r = replica_of(&p).config("presence.restart-grace-ms", grace).start();
        let (mut c, mut rc) = (p.connect(), r.connect());
        sync(&mut c, &mut rc);
        c.ok("PRESENCE.OWNER RENEW o PX 4000");
        let lease = expires_at(&mut c, "o").unwrap();
        sync(&mut c, &mut rc);
        p.stop(Stop::Kill);
        assert!(now_ms() < lease, "the primary has ended the owner itself");
        sleep_until(lease + 1);
        let before = now_ms();
        rc.ok("REPLICAOF NO ONE");
        assert_eq!(names(&mut rc) == ["o"], live, "grace {grace}");
        if live {
            within(
                "the grace",
                expires_at(&mut rc, "o").unwrap(),
                before + 30_000,
                now_ms() + 30_000,
            );
        }
    }
}

#[test]
fn owners_survive_a_restart() {
    let rdb = Server::builder().start();
    let aof = Server::builder().aof().start();
    let plain = Server::builder().aof().config("aof-use-rdb-preamble", "no").start();
    for (server, stop) in [(&rdb, Stop::Save), (&aof, Stop::Kill), (&plain, Stop::Kill)] {
        let mut c = server.connect();
        c.ok("PRESENCE.OWNER RENEW o PX 600000 BIND");
        let lease = expires_at(&mut c, "o").unwrap();
        c.ok("SELECT 2");
        c.ok("PRESENCE.OWNER RENEW p PX 1000");
        c.ok("PRESENCE.OWNER RENEW gone");
        c.ok("PRESENCE.OWNER END gone");
        let p_lease = expires_at(&mut c, "p").unwrap();
        server.stop(stop);
        sleep_until(p_lease + 1);
        let before = now_ms();
        server.start_again();
        let mut c = server.connect();
        // The bond was of a connection of the server before.
        let o = owners(&mut c);
        assert_eq!((o.len(), o[0].bound), (1, false), "{stop:?}");
        assert_eq!(o[0].expires_at, lease, "{stop:?}");
        c.ok("SELECT 2");
        assert_eq!(names(&mut c), ["p"], "{stop:?}");
        within("the grace", expires_at(&mut c, "p").unwrap(), before + 30_000, now_ms() + 30_000);
    }
    // An AOF that was rewritten, with an RDB in front.
    let mut c = aof.connect();
    c.ok("BGREWRITEAOF");
    wait_until("the rewrite", SOON * 4, || c.info("persistence")["aof_rewrite_in_progress"] == "0");
    aof.restart(Stop::Kill);
    assert_eq!(names(&mut aof.connect()), ["o"]);
    // DEBUG RELOAD is a load: bonds are over, leases stay.
    let mut c = rdb.connect();
    c.ok("PRESENCE.OWNER RENEW o PX 600000 BIND");
    let lease = expires_at(&mut c, "o").unwrap();
    c.ok("DEBUG RELOAD");
    assert_eq!((owners(&mut c)[0].bound, owners(&mut c)[0].expires_at), (false, lease));
}

/// An epoch ahead of the clock is not given out again after a restart, though its space is deleted.
#[test]
fn owners_are_saved_with_the_latest_epoch() {
    let server = Server::builder().config("presence.restart-grace-ms", "0").start();
    let mut c = server.connect();
    // A space whose epoch is ahead of the clock comes about by many deletions within a millisecond.
    let many = "for i = 1, 5000 do redis.call('PRESENCE.ONLINE', 's', 'a') redis.call('DEL', 's') end \
                redis.call('PRESENCE.ONLINE', 's', 'a') return redis.call('PRESENCE.SPACE', 's')";
    let reply = c.ok(["EVAL", many, "0"]);
    let id = parse_id(&text(&items(&reply)[1]));
    assert!(id.0 > now_ms() + 1000, "the epoch {} is ahead of the clock", id.0);
    c.ok("DEL s");
    server.restart(Stop::Save);
    let mut c = server.connect();
    assert!(now_ms() < id.0, "the clock has not reached the epoch");
    c.ok("PRESENCE.ONLINE s a");
    let after = parse_id(&c.space("s").id);
    assert!(after.0 > id.0, "{after:?} after {id:?}");
}

/// What a replica knows of an owner is a bound, until the owner ends: then it knows when and why.
#[test]
fn owners_that_ended_are_told_with_time_and_reason() {
    let seen = ("presence.seen-ttl-ms", "600000");
    let p = primary().config(seen.0, seen.1).start();
    let r = replica_of(&p).config(seen.0, seen.1).start();
    let (mut c, mut rc) = (p.connect(), r.connect());
    sync(&mut c, &mut rc);
    c.ok("PRESENCE.OWNER RENEW o EX 100");
    c.ok("PRESENCE.ONLINE s u OWNER o");
    // Nothing is swept, so only the end of the owner is told.
    c.ok("MULTI");
    c.ok("PRESENCE.OWNER END o");
    c.ok("CLIENT PAUSE 60000 WRITE");
    c.ok("EXEC");
    sync(&mut c, &mut rc);
    assert_eq!(c.stat("sessions"), 1);
    let told = c.ok("PRESENCE.SEEN s u");
    assert!(format!("{told:?}").contains("offline"), "{told:?}");
    assert_eq!(rc.ok("PRESENCE.SEEN s u"), told);
}

/// A renewal takes back a linger that others know of, also if its lease is shorter.
#[test]
fn owners_taken_back_from_a_linger_end_with_a_timeout() {
    let p = primary().config("presence.restart-grace-ms", "1000").start();
    let r = replica_of(&p).config("presence.restart-grace-ms", "1000").start();
    let (mut c, mut rc) = (p.connect(), r.connect());
    sync(&mut c, &mut rc);
    c.ok("PRESENCE.OWNER RENEW o PX 60000");
    c.ok("PRESENCE.ONLINE s u OWNER o");
    c.ok("PRESENCE.OWNER END o LINGER 5000");
    c.ok("PRESENCE.OWNER RENEW o PX 4000");
    sync(&mut c, &mut rc);
    p.stop(Stop::Kill);
    let mut sub = r.subscribe(&["presence:s"]);
    rc.ok("REPLICAOF NO ONE");
    assert_eq!(sub.events(1, SOON * 2)[0].brief(), "leave u (timeout)");
}
