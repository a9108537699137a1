//! Sessions that live as long as their owner.

use crate::harness::*;
use crate::owner_commands::{expires_at, owners};
use crate::replication::{primary, replica_of, sync};

fn session_count(c: &mut Conn, owner: &str) -> i64 {
    owners(c).into_iter().find(|it| it.owner == owner).map_or(0, |it| it.sessions)
}

#[test]
fn owned_sessions_have_the_lease_of_their_owner() {
    let server = Server::start();
    for mut c in [server.connect(), server.connect3()] {
        c.ok("FLUSHALL");
        assert_eq!(c.int("PRESENCE.OWNER RENEW gw PX 60000"), 0);
        assert_eq!(c.int("PRESENCE.ONLINE room alice SESSION tab META 1 OWNER gw"), 1);
        assert_eq!(c.int("PRESENCE.ONLINE room alice SESSION phone PX 30000"), 0);
        let user = c.user("room", "alice").unwrap();
        let tab = user.session("tab").clone();
        assert_eq!(tab.owner.as_deref(), Some("gw"));
        assert_eq!(tab.meta.as_deref(), Some("1"));
        assert_eq!(Some(tab.expires_at), expires_at(&mut c, "gw"));
        assert_eq!(user.session("phone").owner, None);
        // One renewal prolongs all.
        assert_eq!(c.int("PRESENCE.OWNER RENEW gw PX 90000"), 1);
        let later = c.user("room", "alice").unwrap().session("tab").expires_at;
        assert!(later >= tab.expires_at + 20_000, "{later}");
        let json = c.text("PRESENCE.SPACE room WITHSESSIONS JSON");
        assert!(json.contains(r#""meta":1,"owner":"gw"}"#), "{json}");
        assert_eq!(json.matches("owner").count(), 1, "{json}");
        // A time of its own takes the session away, and so does a renewal without one; no event says so.
        let id = c.space("room").id;
        assert_eq!(c.int("PRESENCE.ONLINE room alice SESSION tab"), 0);
        assert_eq!(c.user("room", "alice").unwrap().session("tab").owner, None);
        assert_eq!(session_count(&mut c, "gw"), 0);
        assert_eq!(c.int("PRESENCE.ONLINE room SESSIONS 2 alice tab alice phone OWNER gw"), 0);
        assert_eq!(session_count(&mut c, "gw"), 2);
        c.ok("PRESENCE.OWNER RENEW other");
        assert_eq!(c.int("PRESENCE.ONLINE room alice SESSION tab XX OWNER other"), 0);
        assert_eq!(c.space("room").id, id);
        // The former owner's goodbye leaves it alone.
        assert_eq!(c.int("PRESENCE.OFFLINE room alice OWNER gw"), 0);
        assert_eq!(c.ints("PRESENCE.STATUS room alice"), [1]);
        assert_eq!(c.int("PRESENCE.OFFLINE room alice OWNER nobody"), 0);
        assert_eq!(c.int("PRESENCE.OWNER END gw"), 0);
        assert_eq!(c.ints("PRESENCE.STATUS room alice"), [1]);
        assert_eq!(c.int("PRESENCE.OFFLINE room alice SESSION tab LINGER 5000 OWNER other"), 0);
        let tab = c.user("room", "alice").unwrap().session("tab").clone();
        assert_eq!((tab.owner, session_count(&mut c, "other")), (None, 0));
        within("the linger", tab.expires_at, now_ms(), now_ms() + 5000);
        assert_eq!(c.int("PRESENCE.ONLINE room bob OWNER other"), 1);
        assert_eq!(c.int("PRESENCE.OFFLINE room USERS 2 bob alice OWNER other"), 1);
        assert_eq!(c.int("PRESENCE.COUNT room"), 1);
        c.ok("DEL room");
    }
}

#[test]
fn owned_sessions_need_an_owner_that_is_live() {
    let server = Server::start();
    let mut c = server.connect();
    let refused = "NOOWNER owner is not live on this node: PRESENCE.OWNER RENEW comes first";
    for options in ["OWNER gw", "OWNER gw NX", "OWNER gw XX"] {
        assert_eq!(c.err(&*format!("PRESENCE.ONLINE room alice {options}")), refused);
    }
    assert_eq!(c.err("PRESENCE.ONLINE room USERS 1 alice OWNER gw"), refused);
    assert_eq!(c.int("EXISTS room"), 0);
    c.ok("PRESENCE.OWNER RENEW gw");
    for time in ["EX 5", "PX 5", "EXAT 99999999999", "PXAT 9999999999999"] {
        let error = c.err(&*format!("PRESENCE.ONLINE room alice OWNER gw {time}"));
        assert!(error.starts_with("ERR"), "{error}");
    }
    assert!(c.err("PRESENCE.ONLINE room alice OWNER gw EX 5").contains("syntax error"));
    for (name, says) in [("", "owner is empty"), (&*"x".repeat(513), "owner is longer")] {
        assert!(c.err(["PRESENCE.ONLINE", "room", "alice", "OWNER", name]).contains(says));
        assert!(c.err(["PRESENCE.OFFLINE", "room", "alice", "OWNER", name]).contains(says));
    }
    assert!(c.err(args!["PRESENCE.ONLINE", "room", "a", "OWNER", b"\xff"]).contains("UTF-8"));
    assert!(c.err("PRESENCE.ONLINE room a OWNER gw OWNER gw").contains("given twice"));
    assert_eq!(c.int("EXISTS room"), 0);
    c.ok("SET text 1");
    assert!(c.err("PRESENCE.ONLINE text a OWNER gw").starts_with("WRONGTYPE"));
}

/// The end of an owner is the end of its sessions, in the moment in which it ends.
#[test]
fn owned_sessions_end_with_their_owner() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*"]);
    for (space, users) in [("few", 3), ("many", 300)] {
        c.ok("PRESENCE.OWNER RENEW gw EX 600");
        c.ok("PRESENCE.OWNER RENEW other EX 600");
        for n in 0..users {
            c.ok(&*format!("PRESENCE.ONLINE {space} user{n} OWNER gw"));
        }
        c.ok(&*format!("PRESENCE.ONLINE {space} user0 SESSION second OWNER other"));
        c.ok(&*format!("PRESENCE.ONLINE {space} stays EX 600"));
        let came = users + 2;
        (0..came).for_each(|_| drop(sub.event(SOON)));
        c.ok("MULTI");
        c.ok("PRESENCE.OWNER END gw");
        c.ok(&*format!("PRESENCE.COUNT {space}"));
        c.ok(&*format!("PRESENCE.COUNT {space} SESSIONS"));
        c.ok(&*format!("PRESENCE.SPACE {space}"));
        let replies = c.ok("EXEC");
        let replies = items(&replies);
        assert_eq!(replies[..3], [Value::Int(users), Value::Int(2), Value::Int(2)]);
        let mut kinds = std::collections::BTreeMap::new();
        for _ in 0..users {
            let event = sub.event(SOON);
            assert_eq!(event.str("reason"), "offline");
            *kinds.entry(event.kind().to_string()).or_insert(0) += 1;
        }
        assert_eq!(kinds["leave"], users - 1);
        assert_eq!(kinds["remove"], 1);
        // A lease that ends.
        c.ok("PRESENCE.OWNER RENEW other PX 30");
        let event = sub.event(SOON);
        assert_eq!((event.kind(), event.str("reason")), ("leave", "timeout"));
        assert!(c.is_null(&*format!("PRESENCE.USER {space} user0")));
        assert_eq!(c.int(&*format!("PRESENCE.COUNT {space}")), 1);
    }
    assert_eq!(c.stat("queue_repairs"), 0);
    wait_until("the owners to end", SOON, || c.stat("owners") == 0);
}

/// What moves a space takes its owners along, by name.
#[test]
fn owned_sessions_move_with_their_space() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.OWNER RENEW gw EX 600");
    for n in 0..20 {
        c.ok(&*format!("PRESENCE.ONLINE a user{n} OWNER gw"));
    }
    assert_eq!(session_count(&mut c, "gw"), 20);
    c.ok("RENAME a b");
    assert_eq!(session_count(&mut c, "gw"), 20);
    c.ok("COPY b c");
    assert_eq!((c.int("PRESENCE.COUNT c"), session_count(&mut c, "gw")), (20, 40));
    c.ok("UNLINK c");
    assert_eq!(session_count(&mut c, "gw"), 20);
    let dump = c.ok("DUMP b");
    let Value::BulkString(dump) = dump else { panic!("{dump:?}") };
    c.ok("DEL b");
    assert_eq!(session_count(&mut c, "gw"), 0);
    c.ok(args!["RESTORE", "b", "0", dump]);
    assert_eq!((c.int("PRESENCE.COUNT b"), session_count(&mut c, "gw")), (20, 20));
    // In another database there is another owner of that name, or none.
    c.ok("MOVE b 1");
    assert_eq!(session_count(&mut c, "gw"), 0);
    c.ok("SELECT 1");
    assert_eq!((c.int("PRESENCE.COUNT b"), session_count(&mut c, "gw")), (20, 20));
    c.ok("SWAPDB 1 2");
    c.ok("SELECT 2");
    assert_eq!((c.int("PRESENCE.COUNT b"), session_count(&mut c, "gw")), (20, 20));
    assert_eq!(c.int("PRESENCE.OWNER END gw"), 20);
    assert_eq!(c.int("PRESENCE.COUNT b"), 0);
    wait_until("the sessions to end", SOON, || c.stat("sessions") == 0);
    c.ok("SELECT 0");
    assert!(expires_at(&mut c, "gw").is_some());
    assert_eq!(c.stat("queue_repairs"), 0);
}

#[test]
fn owned_sessions_survive_a_restart_and_reach_replicas() {
    let p = primary().aof().config("presence.restart-grace-ms", "2000").start();
    let mut c = p.connect();
    c.ok("PRESENCE.OWNER RENEW gw EX 600");
    for n in 0..50 {
        c.ok(&*format!("PRESENCE.ONLINE room user{n} OWNER gw"));
    }
    c.ok("PRESENCE.ONLINE room user0 EX 600");
    let r = replica_of(&p).start();
    let mut rc = r.connect();
    sync(&mut c, &mut rc);
    for round in 0..3 {
        assert_eq!(session_count(&mut c, "gw"), 49, "{round}");
        assert_eq!(session_count(&mut rc, "gw"), 49, "{round}");
        assert_eq!(rc.int("PRESENCE.COUNT room"), 50);
        assert_eq!(c.digest("room"), rc.digest("room"));
        match round {
            0 => {
                c.ok("BGREWRITEAOF");
                wait_until("the rewrite", SOON, || {
                    c.info("persistence")["aof_rewrite_in_progress"] == "0"
                });
            }
            1 => {
                p.restart(Stop::Kill);
                c = p.connect();
                wait_until("the load", SOON * 5, || c.info("persistence")["loading"] == "0");
            }
            _ => {}
        }
        c.ok("PRESENCE.ONLINE room late OWNER gw");
        c.ok("PRESENCE.OFFLINE room late OWNER gw");
        wait_until("the replica", SOON * 10, || {
            rc.info("replication")["master_link_status"] == "up" && {
                sync(&mut c, &mut rc);
                rc.digest("room") == c.digest("room")
            }
        });
    }
    c.ok("PRESENCE.OWNER END gw");
    sync(&mut c, &mut rc);
    assert_eq!((c.int("PRESENCE.COUNT room"), rc.int("PRESENCE.COUNT room")), (1, 1));
    wait_until("the leaves", SOON, || c.stat("sessions") == 1);
    sync(&mut c, &mut rc);
    assert_eq!(c.digest("room"), rc.digest("room"));
}
