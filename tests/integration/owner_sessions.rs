//! PRESENCE.OWNER with sessions: SESSIONS and its pages, what RENEW and END count, what ends with an owner.

use crate::harness::*;
use crate::owner_commands::{names, owners};
use crate::replication::{primary, replica_of, same, sync};
use std::collections::BTreeSet;

type Held = (String, String, String);

/// A page of SESSIONS, and its cursor.
#[track_caller]
fn page(c: &mut Conn, words: impl Args) -> (Vec<Held>, String) {
    let words = [vec!["PRESENCE.OWNER".into(), "SESSIONS".into()], words.args()].concat();
    let reply = c.ok(&words[..]);
    let [cursor, sessions] = fields(&reply, ["cursor", "sessions"]);
    let one = |value: &Value| {
        let [space, user, session] = fields(value, ["space", "user", "session"]);
        (text(space), text(user), text(session))
    };
    (items(sessions).iter().map(one).collect(), text(cursor))
}

/// All pages of so many sessions; how often each came is not looked at.
#[track_caller]
fn paged(c: &mut Conn, owner: &str, count: usize) -> (BTreeSet<Held>, usize) {
    let (mut all, mut cursor, mut pages) = (BTreeSet::new(), "0".to_string(), 0);
    loop {
        let (some, next) = page(c, args![owner, "CURSOR", cursor, "COUNT", count]);
        pages += 1;
        assert!(pages < 100_000, "the pages do not end");
        all.extend(some);
        if next == "0" {
            return (all, pages);
        }
        cursor = next;
    }
}

fn held(space: &str, user: &str, session: &str) -> Held {
    (space.into(), user.into(), session.into())
}

#[test]
fn owner_sessions_are_listed_and_counted() {
    let server = Server::start();
    for mut c in [server.connect(), server.connect3()] {
        c.ok("PRESENCE.OWNER RENEW gw EX 600");
        c.ok("PRESENCE.OWNER RENEW other EX 600");
        c.ok("PRESENCE.ONLINE s a OWNER gw");
        c.ok("PRESENCE.ONLINE s a SESSION 2 OWNER gw");
        c.ok("PRESENCE.ONLINE s b OWNER other");
        c.ok("PRESENCE.ONLINE s c EX 600");
        c.ok("PRESENCE.ONLINE t USERS 2 a b OWNER gw");
        let wanted: BTreeSet<Held> =
            [held("s", "a", ""), held("s", "a", "2"), held("t", "a", ""), held("t", "b", "")]
                .into();
        let (all, cursor) = page(&mut c, "gw");
        assert_eq!((all.len(), all.into_iter().collect(), cursor), (4, wanted.clone(), "0".into()));
        assert_eq!(paged(&mut c, "gw", 1).0, wanted);
        assert_eq!(page(&mut c, "nobody"), (Vec::new(), "0".into()));
        assert_eq!(page(&mut c, "nobody CURSOR 0 COUNT 5"), (Vec::new(), "0".into()));
        assert_eq!(c.int("PRESENCE.OWNER RENEW gw EX 600"), 4);
        assert_eq!(owners(&mut c).iter().map(|owner| owner.sessions).collect::<Vec<_>>(), [4, 1]);
        // A session that moves is no longer listed, nor one that has a lease of its own.
        c.ok("PRESENCE.ONLINE t a OWNER other");
        c.ok("PRESENCE.ONLINE t b");
        assert_eq!(c.int("PRESENCE.OWNER RENEW gw EX 600"), 2);
        assert_eq!(page(&mut c, "gw").0.len(), 2);
        c.ok("RENAME s u");
        assert!(page(&mut c, "gw").0.iter().all(|(space, ..)| space == "u"));
        assert_eq!(c.int("PRESENCE.OWNER END gw"), 2);
        assert_eq!(page(&mut c, "gw"), (Vec::new(), "0".into()));
        assert_eq!(c.ints("PRESENCE.STATUS u a b c"), [0, 1, 1]);
        for bad in [
            "",
            " gw CURSOR x",
            " gw COUNT 0",
            " gw COUNT x",
            " gw COUNT",
            " gw what",
            " gw CURSOR 1 CURSOR 1",
        ] {
            c.err(format!("PRESENCE.OWNER SESSIONS{bad}"));
        }
        c.ok("FLUSHALL");
    }
}

#[test]
fn owner_sessions_come_in_pages() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.OWNER RENEW gw EX 600");
    let mut wanted = BTreeSet::new();
    // Many spaces with few, one with many, most of them not the owner's.
    for n in 0..400 {
        c.ok(args!["PRESENCE.ONLINE", format!("space{n}"), "u", "OWNER", "gw"]);
        wanted.insert(held(&format!("space{n}"), "u", ""));
    }
    for chunk in 0..30 {
        let users: Vec<String> = (0..100).map(|n| format!("u{}", chunk * 100 + n)).collect();
        let of: &[&str] = if chunk % 3 == 0 { &["OWNER", "gw"] } else { &["EX", "600"] };
        let mut line: Vec<String> =
            ["PRESENCE.ONLINE", "large", "USERS", "100"].map(String::from).into();
        line.extend(users.iter().cloned());
        line.extend(of.iter().map(|word| word.to_string()));
        c.ok(&line);
        if chunk % 3 == 0 {
            wanted.extend(users.iter().map(|user| held("large", user, "")));
        }
    }
    let all: BTreeSet<Held> = page(&mut c, "gw").0.into_iter().collect();
    assert_eq!(all, wanted);
    for count in [1, 7, 100, 1399, 1400, 100_000] {
        let (all, pages) = paged(&mut c, "gw", count);
        assert_eq!(all, wanted, "COUNT {count}");
        assert!(pages <= 3 * (3400 / count + 2), "COUNT {count}: {pages} pages");
        let (first, _) = page(&mut c, args!["gw", "COUNT", count]);
        assert!(first.len() <= count + 100, "COUNT {count}: {} in a page", first.len());
    }
    // Who is there throughout appears, while others come and go.
    let (mut seen, mut cursor, mut n) = (BTreeSet::new(), "0".to_string(), 0);
    loop {
        let (some, next) = page(&mut c, args!["gw", "CURSOR", cursor, "COUNT", 20]);
        seen.extend(some);
        n += 1;
        c.ok(args!["PRESENCE.ONLINE", format!("new{n}"), "x", "OWNER", "gw"]);
        c.ok(args!["PRESENCE.OFFLINE", format!("new{}", n / 2), "x"]);
        if next == "0" {
            break;
        }
        cursor = next;
    }
    assert!(seen.is_superset(&wanted));
}

#[test]
fn owner_sessions_leave_out_what_the_caller_may_not_read() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.OWNER RENEW gw EX 600");
    c.ok("PRESENCE.ONLINE open:1 a OWNER gw");
    c.ok("PRESENCE.ONLINE secret:1 a OWNER gw");
    c.ok("ACL SETUSER reader on >p %R~open:* +@all");
    c.ok("ACL SETUSER writer on >p %W~open:* +@all");
    for (user, wanted) in [("reader", 1), ("writer", 0)] {
        let mut other = server.connect();
        other.ok(["AUTH", user, "p"]);
        assert_eq!(page(&mut other, "gw").0.len(), wanted, "{user}");
        let script = "return #redis.call('PRESENCE.OWNER', 'SESSIONS', 'gw')[4]";
        assert_eq!(other.int(["EVAL", script, "0"]), wanted as i64, "{user} in a script");
    }
    assert_eq!(page(&mut c, "gw").0.len(), 2);
}

#[test]
fn owner_sessions_end_with_a_broken_bond() {
    let server = Server::start();
    let mut c = server.connect();
    let mut gateway = server.connect();
    gateway.ok("PRESENCE.OWNER RENEW gw EX 600 BIND");
    gateway.ok("PRESENCE.ONLINE s a OWNER gw");
    gateway.ok("PRESENCE.ONLINE s b OWNER gw");
    c.ok("PRESENCE.ONLINE s b EX 600");
    let mut sub = server.subscribe(&["presence:s"]);
    drop(gateway);
    assert_eq!(sub.event(SOON).brief(), "leave a (timeout)");
    assert_eq!(c.ints("PRESENCE.STATUS s a b"), [0, 1]);
    // END says offline.
    c.ok("PRESENCE.OWNER RENEW gw EX 600");
    c.ok("PRESENCE.ONLINE s c OWNER gw");
    assert_eq!(sub.event(SOON).brief(), "join c");
    assert_eq!(c.int("PRESENCE.OWNER END gw"), 1);
    assert_eq!(c.int("PRESENCE.COUNT s"), 1, "at once");
    assert_eq!(sub.event(SOON).brief(), "leave c (offline)");
    // With a linger too, when it is over.
    c.ok("PRESENCE.OWNER RENEW gw EX 600");
    c.ok("PRESENCE.ONLINE s c OWNER gw");
    assert_eq!(sub.event(SOON).brief(), "join c");
    assert_eq!(c.int("PRESENCE.OWNER END gw LINGER 50"), 1);
    assert_eq!(sub.event(SOON).brief(), "leave c (offline)");
    assert!(sub.events_so_far(&mut c).is_empty());
}

#[test]
fn owner_sessions_are_the_same_on_replicas_and_after_restarts() {
    let p = primary().aof().start();
    let r = replica_of(&p).start();
    let (mut c, mut rc) = (p.connect(), r.connect());
    sync(&mut c, &mut rc);
    c.ok("PRESENCE.OWNER RENEW gw EX 600");
    c.ok("PRESENCE.OWNER RENEW spare EX 600");
    for n in 0..50 {
        c.ok(args!["PRESENCE.ONLINE", format!("s{}", n % 5), format!("u{n}"), "OWNER", "gw"]);
    }
    same(&mut c, &mut rc);
    let sorted = |c: &mut Conn| page(c, "gw").0.into_iter().collect::<BTreeSet<_>>();
    assert_eq!(sorted(&mut rc), sorted(&mut c));
    assert_eq!(owners(&mut rc)[0].sessions, 50);
    // A replica that comes later, by a full copy.
    let late = replica_of(&p).start();
    let mut lc = late.connect();
    sync(&mut c, &mut lc);
    assert_eq!(sorted(&mut lc), sorted(&mut c));
    same(&mut c, &mut lc);
    let before = sorted(&mut c);
    p.restart(Stop::Kill);
    let mut c = p.connect();
    assert_eq!(
        (sorted(&mut c), names(&mut c)),
        (before.clone(), vec!["gw".into(), "spare".into()])
    );
    c.ok("DEBUG RELOAD");
    assert_eq!(sorted(&mut c), before);
    assert_eq!(c.int("PRESENCE.OWNER RENEW gw EX 600"), 50);
    // The end reaches the replicas at once, with the leaves behind it.
    assert_eq!(c.int("PRESENCE.OWNER END gw"), 50);
    wait_until("the spaces to be empty", SOON, || {
        (0..5).all(|n| c.int(args!["PRESENCE.COUNT", format!("s{n}")]) == 0)
    });
    sync(&mut c, &mut rc);
    assert_eq!(names(&mut rc), ["spare"]);
    assert!((0..5).all(|n| rc.int(args!["PRESENCE.COUNT", format!("s{n}")]) == 0));
    same(&mut c, &mut rc);
}

/// The primary dies while the sessions of an owner that has ended are being ended: the promoted replica goes on.
#[test]
fn owner_sessions_that_were_ending_end_after_a_promotion() {
    for grace in ["0", "30000"] {
        let config = |builder: Builder| {
            builder
                .config("presence.restart-grace-ms", grace)
                .config("presence.sweep-budget-us", "100")
        };
        let p = config(primary()).start();
        let r = config(replica_of(&p)).start();
        let (mut c, mut rc) = (p.connect(), r.connect());
        sync(&mut c, &mut rc);
        c.ok("PRESENCE.OWNER RENEW gw EX 600");
        let mut line: Vec<String> =
            ["PRESENCE.ONLINE", "s", "USERS", "5000"].map(String::from).into();
        line.extend((0..5000).map(|n| format!("u{n}")));
        line.extend(["OWNER", "gw"].map(String::from));
        assert_eq!(c.int(&line), 5000);
        c.ok("PRESENCE.ONLINE s stays EX 600");
        sync(&mut c, &mut rc);
        assert_eq!(c.int("PRESENCE.OWNER END gw"), 5000);
        wait_until("the word of the end", SOON, || names(&mut rc).is_empty());
        p.stop(Stop::Kill);
        assert_eq!(rc.int("PRESENCE.COUNT s"), 1, "grace {grace}");
        rc.ok("REPLICAOF NO ONE");
        let left = |c: &mut Conn| c.stat("users");
        wait_until("the sessions to end", SOON * 4, || left(&mut rc) == 1);
        assert_eq!(rc.int("PRESENCE.COUNT s"), 1);
    }
}

/// A command without keys runs on the node that it is sent to, in a cluster too.
#[test]
fn owner_sessions_work_in_a_cluster() {
    let server = Server::builder().config("cluster-enabled", "yes").start();
    let mut c = server.connect();
    c.ok("PRESENCE.OWNER RENEW gw EX 600 BIND");
    assert_eq!(names(&mut c), ["gw"], "also while no slot is served");
    c.ok("CLUSTER ADDSLOTSRANGE 0 16383");
    wait_until("the cluster", SOON * 4, || c.text("CLUSTER INFO").contains("cluster_state:ok"));
    c.ok("PRESENCE.ONLINE s a OWNER gw");
    c.ok("PRESENCE.ONLINE t a OWNER gw");
    assert_eq!(c.int("PRESENCE.OWNER RENEW gw PX 60000"), 2);
    assert_eq!(page(&mut c, "gw").0.len(), 2);
    assert_eq!(c.int("PRESENCE.OWNER END gw"), 2);
    assert_eq!((c.int("PRESENCE.COUNT s"), c.int("PRESENCE.COUNT t")), (0, 0));
    wait_until("the leaves", SOON, || c.stat("sessions") == 0);
}
