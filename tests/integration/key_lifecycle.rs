//! A space as a key: whatever Redis does to keys, and what becomes of the leases, the channel and the ids.

use crate::harness::*;
use rand::Rng;
use rand::seq::IndexedRandom;
use std::collections::BTreeMap;

/// Added to upper bounds on time; lower bounds have no tolerance.
const LATE: i64 = 500;

/// A lease long enough to set up a scene and short enough to wait for.
const SHORT: i64 = 600;

#[track_caller]
pub fn online(c: &mut Conn, space: &str, user: &str, lease: i64) {
    c.ok(args!["PRESENCE.ONLINE", space, user, "PXAT", lease]);
}

#[track_caller]
fn last_id(c: &mut Conn, space: &str) -> (i64, u64) {
    parse_id(&c.space(space).id)
}

/// The next event is a timeout of `user`, on the channel and under the name of `space`, not before `lease`.
#[track_caller]
pub fn leaves(sub: &mut Subscriber, space: &str, user: &str, lease: i64) -> Event {
    let e = sub.event(SOON);
    assert_eq!(e.brief(), format!("leave {user} (timeout)"));
    assert_eq!(e.str("space"), space);
    assert_eq!(e.channel, format!("presence:{space}").into_bytes());
    assert!(e.arrived >= lease, "{} ms too early: {}", lease - e.arrived, e.raw);
    assert!(e.arrived <= lease + LATE.max(SHORT), "{} ms late: {}", e.arrived - lease, e.raw);
    e
}

/// Until all leases of the test are over, nothing more is published.
#[track_caller]
fn silence(sub: &mut Subscriber, c: &mut Conn, lease: i64) {
    sleep_until(lease + 150);
    let more = sub.events_so_far(c);
    assert!(more.is_empty(), "{more:?}");
}

/// INFO counts nothing any more. What is freed in the background counts until it is.
#[track_caller]
pub fn all_gone(c: &mut Conn) {
    wait_until("INFO to count nothing", SOON, || {
        (c.stat("spaces"), c.stat("users"), c.stat("sessions")) == (0, 0, 0)
    });
}

// --- the end of a key ------------------------------------------------------------------------------------------------

#[test]
fn deleting_a_space_is_silent_and_begins_a_new_epoch() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        let lease = now_ms() + SHORT;
        let ways: &[(&str, &[&str])] = &[
            ("DEL", &["DEL s"]),
            ("UNLINK", &["UNLINK s"]),
            ("PEXPIRE in the past", &["PEXPIRE s -1"]),
            ("PEXPIREAT in the past", &["PEXPIREAT s 1"]),
            ("SET", &["SET s x", "DEL s"]),
            ("SUNIONSTORE of nothing", &["SUNIONSTORE s nothing"]),
            ("RENAME over it", &["SET t x", "RENAME t s", "DEL s"]),
            ("COPY over it", &["SET t x", "COPY t s REPLACE", "DEL s", "DEL t"]),
            ("MOVE away and FLUSHDB there", &["MOVE s 1", "SELECT 1", "FLUSHDB", "SELECT 0"]),
            ("FLUSHDB", &["FLUSHDB"]),
            ("FLUSHDB ASYNC", &["FLUSHDB ASYNC"]),
            ("FLUSHALL", &["FLUSHALL SYNC"]),
            ("FLUSHALL ASYNC", &["FLUSHALL ASYNC"]),
        ];
        let mut last = 0;
        for (name, commands) in ways {
            online(&mut c, "s", "a", lease);
            online(&mut c, "s", "b", lease);
            let (epoch, seq) = last_id(&mut c, "s");
            assert!(epoch > last, "{name}: epoch {epoch} after {last}");
            assert_eq!(seq, 2, "{name}");
            last = epoch;
            for command in *commands {
                c.ok(*command);
            }
            assert_eq!(c.int("EXISTS s"), 0, "{name}");
            assert_eq!(c.int("PRESENCE.COUNT s"), 0, "{name}");
            assert_eq!(c.space("s").id, "0-0", "{name}");
            let events = sub.events_so_far(&mut c);
            assert_eq!(
                events.iter().map(Event::brief).collect::<Vec<_>>(),
                ["join a", "join b"],
                "{name}"
            );
        }
        silence(&mut sub, &mut c, lease);
        all_gone(&mut c);
    });
}

#[test]
fn ids_grow_even_when_a_space_is_made_again_within_the_same_millisecond() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*"]);
    let ways: [&[&str]; 7] = [
        &["SWAPDB 0 1", "SELECT 1", "DEL s", "SELECT 0"],
        &["DEL s"],
        &["UNLINK s"],
        &["RENAME s t", "DEL t"],
        &["MOVE s 1", "SELECT 1", "DEL s", "SELECT 0"],
        &["FLUSHDB"],
        &["SET s x", "DEL s"],
    ];
    let mut commands = Vec::new();
    for round in 0..300 {
        commands.push("PRESENCE.ONLINE s a");
        commands.push("PRESENCE.ONLINE s b");
        commands.extend(ways[round % ways.len()]);
    }
    // Once as they come, once all in one transaction, where the clock may stand still.
    for transaction in [false, true] {
        if transaction {
            c.ok("MULTI");
        }
        for reply in c.batch(commands.iter().copied()) {
            reply.unwrap();
        }
        if transaction {
            c.ok("EXEC");
        }
        let ids: Vec<_> = sub
            .events_so_far(&mut c)
            .iter()
            .filter(|e| e.str("space") == "s")
            .map(Event::id)
            .collect();
        assert_eq!(ids.len(), 600);
        for pair in ids.windows(2) {
            assert!(
                pair[0] < pair[1],
                "{:?} then {:?} (in a transaction: {transaction})",
                pair[0],
                pair[1]
            );
        }
        assert!(ids.iter().map(|(_, seq)| *seq).eq([1, 2].into_iter().cycle().take(600)));
    }
}

#[test]
fn expire_on_the_key_is_kept_by_writes_and_ends_the_space_silently() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        // Before, with and after the leases in it.
        let lease = now_ms() + 500;
        for (space, after) in [("before", 200), ("with", 500), ("later", 900)] {
            online(&mut c, space, "a", lease);
            c.ok(args!["PEXPIREAT", space, lease - 500 + after]);
            assert_eq!(c.int(["PEXPIRETIME", space]), lease - 500 + after);
            online(&mut c, space, "b", lease);
            online(&mut c, space, "b", lease);
            assert_eq!(
                c.int(["PEXPIRETIME", space]),
                lease - 500 + after,
                "a write took the time to live away"
            );
        }
        online(&mut c, "kept", "a", lease);
        c.ok("PEXPIRE kept 200");
        c.ok("PERSIST kept");
        assert_eq!(c.int("PTTL kept"), -1);
        sub.events_so_far(&mut c);
        sleep_until(lease - 500 + 210);
        assert_eq!(c.int("PRESENCE.COUNT before"), 0);
        assert_eq!(c.space("before").id, "0-0");
        assert_eq!(c.int("PRESENCE.COUNT kept"), 1);
        sleep_until(lease + 600);
        assert_eq!(c.int("EXISTS before with later kept"), 1);
        let mut left: Vec<_> = sub
            .events_so_far(&mut c)
            .iter()
            .map(|e| format!("{} {}", e.str("space"), e.brief()))
            .collect();
        left.sort();
        left.retain(|e| !e.starts_with("with "));
        assert_eq!(
            left,
            ["kept leave a (timeout)", "later leave a (timeout)", "later leave b (timeout)"]
        );
    });
}

#[test]
fn a_key_whose_time_is_over_is_silent_also_before_the_server_finds_it() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        c.ok("DEBUG SET-ACTIVE-EXPIRE 0");
        let lease = now_ms() + 400;
        for space in ["s", "read", "written"] {
            online(&mut c, space, "a", lease);
            c.ok(args!["PEXPIREAT", space, lease - 200]);
        }
        let (epoch, _) = last_id(&mut c, "written");
        sub.events_so_far(&mut c);
        sleep_until(lease - 190);
        assert_eq!(c.space("read").id, "0-0");
        assert_eq!(c.ints("PRESENCE.STATUS read a"), [0]);
        assert_eq!(c.int("PRESENCE.OFFLINE s a"), 0);
        assert_eq!(c.int("PRESENCE.ONLINE written a PX 60000"), 1);
        let join = sub.event(SOON);
        assert!(join.id().0 > epoch && join.id().1 == 1, "{}", join.raw);
        assert_eq!(c.int("PTTL written"), -1);
        silence(&mut sub, &mut c, lease);
        wait_until("the sweep to have found them", SOON, || c.int("DBSIZE") == 1);
    });
}

#[test]
fn an_empty_space_keeps_its_ids_until_its_history_is_over() {
    steady(|| {
        let server = Server::with(&[("presence.history-ttl-ms", "1500")]);
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        c.ok("PRESENCE.ONLINE said a");
        c.ok("PRESENCE.ONLINE lapsed a PX 300");
        c.ok("PRESENCE.ONLINE back a");
        let before = now_ms();
        c.ok("PRESENCE.OFFLINE said a");
        let joins = sub.events(4, SOON);
        let timeout = sub.event(SOON);
        assert_eq!((timeout.str("space"), timeout.kind()), ("lapsed", "leave"));
        c.ok("PRESENCE.OFFLINE back a");
        assert_eq!(c.int("EXISTS said lapsed back"), 3);
        assert_eq!(c.space("said").id, format!("{}-2", joins[0].id().0));
        assert_eq!((c.space("said").users, c.int("PRESENCE.COUNT lapsed")), (0, 0));
        // Somebody comes back in time, and the ids go on.
        c.ok("PRESENCE.ONLINE back a");
        let events = sub.events_so_far(&mut c);
        assert_eq!(events.last().unwrap().brief(), "join a");
        assert_eq!(events.last().unwrap().id(), (joins[2].id().0, 3));
        wait_until("the keys to go", SOON, || c.int("EXISTS said lapsed") == 0);
        assert!(now_ms() >= before + 1500, "gone before history-ttl-ms was over");
        assert_eq!(c.int("EXISTS back"), 1);
        assert!(sub.events_so_far(&mut c).is_empty(), "the end of a key is silent");
        assert_eq!(c.space("said").id, "0-0");
        c.ok("PRESENCE.ONLINE said a");
        let (epoch, seq) = sub.event(SOON).id();
        assert!(epoch > joins[0].id().0 && seq == 1);
        c.ok("PRESENCE.OFFLINE back a");
        c.ok("PRESENCE.OFFLINE said a");
        wait_until("all keys to go", SOON, || c.int("DBSIZE") == 0);
        all_gone(&mut c);
    });
}

#[test]
fn without_history_an_empty_space_goes_soon() {
    let server = Server::with(&[("presence.history-length", "0")]);
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*"]);
    c.ok("PRESENCE.ONLINE s a");
    c.ok("PRESENCE.ONLINE s a SESSION x");
    c.ok("PRESENCE.OFFLINE s a");
    c.ok("PRESENCE.ONLINE t a PX 50");
    wait_until("the keys to go", SOON, || c.int("DBSIZE") == 0);
    let events = sub.events_so_far(&mut c);
    assert_eq!(
        events.iter().map(|e| (e.str("space"), e.kind())).collect::<Vec<_>>(),
        [
            ("s", "join"),
            ("s", "add"),
            ("s", "remove"),
            ("s", "leave"),
            ("t", "join"),
            ("t", "leave")
        ]
    );
    let first = events[0].id().0;
    c.ok("PRESENCE.ONLINE s a");
    let again = sub.event(SOON).id();
    assert!(again.0 > first && again.1 == 1);
}

#[test]
fn history_settings_changed_at_run_time_reach_spaces_that_are_empty_already() {
    let server = Server::start();
    let mut c = server.connect();
    for s in 0..50 {
        c.ok(args!["PRESENCE.ONLINE", format!("s{s}"), "a"]);
        c.ok(args!["PRESENCE.OFFLINE", format!("s{s}"), "a"]);
    }
    assert_eq!(c.int("DBSIZE"), 50);
    c.ok("CONFIG SET presence.history-ttl-ms 200");
    wait_until("the keys to go", SOON * 2, || c.int("DBSIZE") == 0);
}

// --- moved, renamed, copied ------------------------------------------------------------------------------------------

#[test]
fn a_renamed_space_lapses_under_its_new_name() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        let lease = now_ms() + SHORT;
        online(&mut c, "old", "a", lease);
        online(&mut c, "over", "gone", lease - 100); // replaced: these leases mean nothing any more
        online(&mut c, "nx", "b", lease + 50);
        let id = last_id(&mut c, "old");
        c.ok("RENAME old over");
        assert_eq!(c.int("RENAMENX nx over"), 0);
        assert_eq!(c.int("RENAMENX nx nx2"), 1);
        assert_eq!(c.int("EXISTS old nx"), 0);
        assert_eq!(last_id(&mut c, "over"), id);
        assert_eq!(c.space("over").names(), ["a"]);
        assert_eq!(sub.events_so_far(&mut c).len(), 3, "renaming is silent");
        online(&mut c, "over", "c", lease + 60_000);
        let join = sub.event(SOON);
        assert_eq!((join.str("space"), join.id()), ("over", (id.0, id.1 + 1)));
        assert_eq!(leaves(&mut sub, "over", "a", lease).id(), (id.0, id.1 + 2));
        leaves(&mut sub, "nx2", "b", lease + 50);
        // Onto itself, and there and back.
        let lease = now_ms() + SHORT;
        online(&mut c, "over", "d", lease);
        c.ok("RENAME over over");
        c.ok("RENAME over x");
        c.ok("RENAME x over");
        sub.event(SOON);
        leaves(&mut sub, "over", "d", lease);
        silence(&mut sub, &mut c, lease);
        assert_eq!(c.space("over").names(), ["c"]);
    });
}

#[test]
fn a_moved_space_lapses_in_its_new_database() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        let lease = now_ms() + SHORT;
        online(&mut c, "s", "a", lease);
        online(&mut c, "s", "stays", lease + 60_000);
        let id = last_id(&mut c, "s");
        assert_eq!(c.int("MOVE s 7"), 1);
        c.ok("SELECT 0"); // see `a_connection_stays_in_its_database`
        assert_eq!(c.int("EXISTS s"), 0);
        // A new space of the name takes its place.
        online(&mut c, "s", "new", lease + 100);
        assert!(last_id(&mut c, "s").0 > id.0);
        assert_eq!(c.int("MOVE s 7"), 0, "there is one");
        sub.events_so_far(&mut c);
        leaves(&mut sub, "s", "a", lease);
        leaves(&mut sub, "s", "new", lease + 100);
        c.ok("SELECT 7");
        assert_eq!(c.space("s").names(), ["stays"]);
        assert_eq!(last_id(&mut c, "s"), (id.0, id.1 + 1));
        silence(&mut sub, &mut c, lease);
    });
}

#[test]
fn both_of_a_copied_pair_lapse_each_on_its_own_channel() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        let lease = now_ms() + SHORT;
        for user in ["a", "b", "c"] {
            online(&mut c, "s", user, lease);
            c.ok(args![
                "PRESENCE.ONLINE",
                "s",
                user,
                "SESSION",
                "x",
                "PXAT",
                lease,
                "META",
                "{\"k\":[1,2]}"
            ]);
        }
        online(&mut c, "replaced", "gone", lease - 200);
        let id = last_id(&mut c, "s");
        assert_eq!(c.int("COPY s twin"), 1);
        assert_eq!(c.int("COPY s replaced"), 0);
        assert_eq!(c.int("COPY s replaced REPLACE"), 1);
        assert_eq!(c.int("COPY s far DB 4"), 1);
        c.ok("SELECT 0"); // see `a_connection_stays_in_its_database`
        assert_eq!(c.space("twin"), c.space("s"));
        assert_eq!(c.digest("twin"), c.digest("s"));
        assert_eq!(
            c.ok("PRESENCE.EVENTS twin"),
            c.ok("PRESENCE.EVENTS s"),
            "the history comes along"
        );
        assert_eq!(sub.events_so_far(&mut c).len(), 7, "copying is silent");
        // A change of one is none of the other.
        c.ok("PRESENCE.OFFLINE twin c");
        assert_eq!((c.int("PRESENCE.COUNT s"), c.int("PRESENCE.COUNT twin")), (3, 2));
        assert_eq!(sub.events_so_far(&mut c).len(), 2);

        let mut rosters: BTreeMap<String, Roster> = BTreeMap::new();
        let mut seqs: BTreeMap<String, u64> = BTreeMap::new();
        for space in ["s", "twin", "replaced", "far"] {
            for user in ["a", "b", "c"] {
                if (space, user) != ("twin", "c") {
                    let sessions = ["", "x"].map(String::from).into();
                    rosters.entry(space.into()).or_default().insert(user.into(), sessions);
                }
            }
            seqs.insert(space.into(), id.1 + if space == "twin" { 2 } else { 0 });
        }
        for e in sub.events(3 * 6 + 4, SOON) {
            assert!(e.arrived >= lease, "too early: {}", e.raw);
            assert_eq!(e.channel, format!("presence:{}", e.str("space")).into_bytes());
            assert_eq!(e.str("reason"), "timeout");
            let seq = seqs.get_mut(e.str("space")).unwrap();
            *seq += 1;
            assert_eq!(e.id(), (id.0, *seq));
            e.fold(rosters.get_mut(e.str("space")).unwrap());
        }
        assert!(rosters.values().all(Roster::is_empty));
        silence(&mut sub, &mut c, lease);
        assert_eq!(c.int("PRESENCE.COUNT twin"), 0);
        c.ok("SELECT 4");
        assert_eq!(last_id(&mut c, "far"), (id.0, id.1 + 6));
    });
}

#[test]
fn dump_and_restore_keep_everything_and_leases_are_absolute() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        let lease = now_ms() + SHORT;
        let expected = furnish(&mut c, "rich");
        online(&mut c, "rich", "lapses", lease);
        let expected_id = last_id(&mut c, "rich");
        let digest = c.digest("rich");
        let Value::BulkString(dump) = c.ok("DUMP rich") else { panic!("no dump") };
        sub.events_so_far(&mut c);

        assert_eq!(c.text(args!["RESTORE", "twin", 0, dump]), "OK");
        assert_eq!(c.digest("twin"), digest);
        assert_eq!(c.ok("PRESENCE.EVENTS twin"), c.ok("PRESENCE.EVENTS rich"));
        assert_eq!(sorted(c.space("twin")), sorted(c.space("rich")));
        assert!(c.err(args!["RESTORE", "twin", 0, dump]).starts_with("BUSYKEY"));
        c.ok("DEL rich");
        online(&mut c, "rich", "somebody else", lease + 60_000);
        c.ok(args!["RESTORE", "rich", 0, dump, "REPLACE"]);
        assert_eq!(last_id(&mut c, "rich"), expected_id);
        c.ok("SELECT 2");
        c.ok(args!["RESTORE", "mortal", 200, dump]);
        c.ok("SELECT 0");
        assert_eq!(sub.events_so_far(&mut c).len(), 1, "restoring is silent");
        let mut left: Vec<_> = sub.events(2, SOON);
        left.sort_by_key(|e| e.str("space").to_string());
        for (e, space) in left.iter().zip(["rich", "twin"]) {
            assert_eq!((e.str("space"), e.brief().as_str()), (space, "leave lapses (timeout)"));
            assert!(e.arrived >= lease, "too early: {}", e.raw);
            assert_eq!(e.id(), (expected_id.0, expected_id.1 + 1));
        }
        assert_eq!(c.space("twin").roster(), expected);
        assert_eq!(c.space("rich").roster(), expected);

        // Restored when a lease in it is over: nobody sees the session, and it leaves at once.
        c.ok("DEL rich twin");
        sleep_until(lease + 50);
        for command in ["MULTI", "PRESENCE.STATUS late lapses", "PRESENCE.COUNT late"] {
            if command.starts_with("PRESENCE.STATUS") {
                c.ok(args!["RESTORE", "late", 0, dump]);
            }
            c.ok(command);
        }
        let Value::Array(replies) = c.ok("EXEC") else { panic!("no array") };
        assert_eq!(
            replies[1..],
            [Value::Array(vec![Value::Int(0)]), Value::Int(expected.len() as i64)]
        );
        let leave = sub.event(SOON);
        assert_eq!(
            (leave.str("space"), leave.brief().as_str()),
            ("late", "leave lapses (timeout)")
        );
        assert_eq!(c.space("late").roster(), expected);
        sub.expect_none_for(ms(100));
    });
}

#[test]
fn a_migrated_space_lapses_where_it_is() {
    steady(|| {
        let (from, to) = (Server::start(), Server::start());
        let (mut c, mut there) = (from.connect(), to.connect());
        let (mut sub, mut sub_there) =
            (from.psubscribe(&["presence:*"]), to.psubscribe(&["presence:*"]));
        let lease = now_ms() + 1000;
        let expected = furnish(&mut c, "s");
        online(&mut c, "s", "lapses", lease);
        online(&mut c, "copied", "lapses", lease);
        let (id, digest) = (last_id(&mut c, "s"), c.digest("s"));
        let port = to.port;
        c.ok(args!["MIGRATE", "127.0.0.1", i64::from(port), "s", 0, 5000]);
        c.ok(args!["MIGRATE", "127.0.0.1", i64::from(port), "copied", 0, 5000, "COPY"]);
        assert_eq!((c.int("EXISTS s copied"), there.int("EXISTS s copied")), (1, 2));
        assert_eq!(there.digest("s"), digest);
        sub.events_so_far(&mut c);
        leaves(&mut sub, "copied", "lapses", lease);
        let mut left = sub_there.events(2, SOON);
        left.sort_by_key(|e| e.str("space").to_string());
        for (e, space) in left.iter().zip(["copied", "s"]) {
            assert_eq!((e.str("space"), e.brief().as_str()), (space, "leave lapses (timeout)"));
            within(space, e.arrived, lease, lease + LATE);
        }
        assert_eq!(left[1].id(), (id.0, id.1 + 1));
        assert_eq!(there.space("s").roster(), expected);
        silence(&mut sub, &mut c, lease);
    });
}

#[test]
fn restore_sets_what_the_server_keeps_of_a_key() {
    let server = Server::start();
    let mut c = server.connect();
    furnish(&mut c, "s");
    let Value::BulkString(dump) = c.ok("DUMP s") else { panic!("no dump") };
    c.ok(args!["RESTORE", "idle", 0, dump, "IDLETIME", 500]);
    assert!(c.int("OBJECT IDLETIME idle") >= 500);
    c.ok("PRESENCE.COUNT idle");
    assert!(c.int("OBJECT IDLETIME idle") < 500, "a read uses the key");
    c.ok(args!["RESTORE", "idle", 0, dump, "REPLACE", "IDLETIME", 500]);
    c.ok("PRESENCE.ONLINE idle somebody");
    assert!(c.int("OBJECT IDLETIME idle") < 500, "a write uses the key");
    c.ok("CONFIG SET maxmemory-policy allkeys-lfu");
    c.ok(args!["RESTORE", "frequent", 0, dump, "FREQ", 77]);
    assert_eq!(c.int("OBJECT FREQ frequent"), 77);
    let at = now_ms() + 5_000_000;
    c.ok(args!["RESTORE", "mortal", at, dump, "ABSTTL"]);
    assert_eq!(c.int("PEXPIRETIME mortal"), at);
}

#[test]
fn swapped_databases_lapse_where_they_are_now() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        let lease = now_ms() + SHORT;
        // Some names are in both.
        online(&mut c, "only0", "a", lease);
        online(&mut c, "both", "a", lease + 50);
        online(&mut c, "both", "stays0", lease + 60_000);
        c.ok("SELECT 1");
        online(&mut c, "only1", "b", lease + 100);
        online(&mut c, "both", "b", lease + 150);
        online(&mut c, "both", "stays1", lease + 60_000);
        c.ok("SWAPDB 0 1");
        sub.events_so_far(&mut c);
        leaves(&mut sub, "only0", "a", lease);
        leaves(&mut sub, "both", "a", lease + 50);
        leaves(&mut sub, "only1", "b", lease + 100);
        leaves(&mut sub, "both", "b", lease + 150);
        // We are in 1, where 0 was.
        assert_eq!(c.space("both").names(), ["stays0"]);
        assert_eq!(c.int("EXISTS only0"), 1);
        c.ok("SELECT 0");
        assert_eq!(c.space("both").names(), ["stays1"]);
        assert_eq!(c.int("EXISTS only1"), 1);
        // What is flushed after a swap is what is there, and what is left is what was not.
        let lease = now_ms() + SHORT;
        online(&mut c, "x", "zero", lease);
        c.ok("SELECT 1");
        online(&mut c, "x", "one", lease);
        c.ok("SWAPDB 1 0");
        c.ok("FLUSHDB");
        c.ok("SWAPDB 1 1");
        sub.events_so_far(&mut c);
        leaves(&mut sub, "x", "one", lease);
        silence(&mut sub, &mut c, lease);
    });
}

/// Databases change places again and again while leases end in both: each session leaves once, in the space it is in.
#[test]
fn databases_swapped_while_leases_are_due() {
    const SPACES: usize = 20;
    const USERS: usize = 50;
    // A small budget, so that swaps come between the parts of a sweep.
    let settings = [("presence.sweep-budget-us", "50"), ("presence.history-ttl-ms", "3600000")];
    let server = Server::with(&settings);
    let replica = Server::builder().line(&format!("replicaof 127.0.0.1 {}", server.port)).start();
    let (mut c, mut other, mut r) = (server.connect(), server.connect(), replica.connect());
    let mut sub = server.psubscribe(&["presence:*"]);
    wait_until("the replica", SOON * 2, || r.info("replication")["master_link_status"] == "up");
    // Half of the names are in both, each life with an epoch of its own; the others only in one.
    let name =
        |db: usize, s: usize| if s < SPACES / 2 { format!("s{s}") } else { format!("s{s}of{db}") };
    let leases = now_ms() + 2000;
    for db in 0..2 {
        c.ok(args!["SELECT", db]);
        let epoch = now_ms();
        wait_until("the next millisecond", SOON, || now_ms() > epoch);
        for s in 0..SPACES {
            let mut commands = vec![args!["PRESENCE.ONLINE", name(db, s), "stays", "EX", 3600]];
            commands.extend((0..USERS).map(|u| {
                args![
                    "PRESENCE.ONLINE",
                    name(db, s),
                    format!("{db}:{u}"),
                    "PXAT",
                    leases + 10 * u as i64
                ]
            }));
            c.batch(commands)
                .into_iter()
                .for_each(|reply| assert_eq!(reply.unwrap(), Value::Int(1)));
        }
    }
    assert!(now_ms() < leases, "the machine was too slow for this test");
    let epochs: Vec<Vec<i64>> = (0..2)
        .map(|db| {
            c.ok(args!["SELECT", db]);
            (0..SPACES).map(|s| last_id(&mut c, &name(db, s)).0).collect()
        })
        .collect();
    let mut swaps = 0;
    let end = leases + 10 * USERS as i64 + 100;
    while now_ms() < end {
        c.ok(["SWAPDB 0 1", "SWAPDB 1 0"][swaps % 2]);
        // Somebody who is in both is never gone.
        assert_eq!(
            other.int(args!["PRESENCE.ONLINE", name(0, swaps % (SPACES / 2)), "stays", "EX", 3600]),
            0
        );
        swaps += 1;
    }
    println!("{swaps} swaps");

    let mut rosters: BTreeMap<(String, i64), (Roster, u64)> = BTreeMap::new();
    for e in sub.events(2 * SPACES * (1 + USERS + USERS), SOON) {
        let (epoch, seq) = e.id();
        let (roster, last) = rosters.entry((e.str("space").into(), epoch)).or_default();
        assert_eq!(seq, *last + 1, "{e:?}");
        *last = seq;
        e.fold(roster);
        if e.kind() == "leave" {
            let lease = leases + 10 * e.user()[2..].parse::<i64>().unwrap();
            assert!(e.int("at") >= lease && e.str("reason") == "timeout", "too early: {e:?}");
        }
    }
    assert_eq!(rosters.len(), 2 * SPACES);
    let stays = Roster::from([("stays".to_string(), [String::new()].into())]);
    assert!(rosters.values().all(|(roster, _)| *roster == stays));
    assert!(sub.events_so_far(&mut c).is_empty(), "somebody left twice");
    // Each space is where the swaps have brought it, on the replica as well.
    for db in 0..2 {
        c.ok(args!["SELECT", db]);
        r.ok(args!["SELECT", db]);
        assert_eq!(c.int("WAIT 1 20000"), 1);
        let was = (db + swaps) % 2;
        for (s, epoch) in epochs[was].iter().enumerate() {
            let name = name(was, s);
            assert_eq!((last_id(&mut c, &name).0, c.space(&name).names()), (*epoch, vec!["stays"]));
            assert_eq!(r.digest(&name), c.digest(&name));
        }
    }
    assert_eq!(c.stat("users"), 2 * SPACES as i64);
}

#[test]
fn flushing_one_database_leaves_the_others() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        for mode in ["SYNC", "ASYNC"] {
            let lease = now_ms() + SHORT;
            for db in 0..4 {
                c.ok(args!["SELECT", db]);
                for s in 0..50 {
                    c.ok(args![
                        "PRESENCE.ONLINE",
                        format!("s{s}"),
                        format!("u{db}"),
                        "PXAT",
                        lease
                    ]);
                }
            }
            c.ok(args!["SELECT", 2]);
            c.ok(args!["FLUSHDB", mode]);
            wait_until("the users of one database to go", SOON, || c.stat("users") == 150);
            sub.events_so_far(&mut c);
            let left = sub.events(150, SOON);
            assert!(
                left.iter().all(|e| e.kind() == "leave" && e.user() != "u2" && e.arrived >= lease)
            );
            assert!(sub.events_so_far(&mut c).is_empty());
            c.ok(args!["FLUSHALL", mode]);
            all_gone(&mut c);
        }
        // While the sweep is at work, and while a flushed space comes back at once.
        let lease = now_ms() + SHORT;
        for s in 0..20 {
            let mut words = args!["PRESENCE.ONLINE", format!("s{s}"), "USERS", 300];
            words.extend((0..300).map(|u| format!("u{u}").into_bytes()));
            words.extend(args!["PXAT", lease]);
            c.ok(words);
        }
        sleep_until(lease + 3);
        c.batch([
            "FLUSHALL ASYNC",
            "PRESENCE.ONLINE s1 back PX 100",
            "FLUSHALL",
            "PRESENCE.ONLINE s1 again PX 100",
        ]);
        sub.so_far(&mut c);
        let leave = sub.event(SOON);
        assert_eq!(leave.brief(), "leave again (timeout)");
        assert_eq!(leave.id().1, 2);
        sub.expect_none_for(ms(100));
    });
}

// --- loading ---------------------------------------------------------------------------------------------------------

/// Ends a server and those who save for it: some send a snapshot to its end without their parent.
fn kill_with_children(server: &Server) {
    let pid = server.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    // A child may end before the signal arrives.
    for child in children.split_whitespace().map(|pid| pid.parse().unwrap()) {
        let _ = try_signal(child, Signal::KILL);
    }
    server.stop(Stop::Kill);
}

/// A replica takes a whole dataset in beside the one that it serves, and then becomes the primary: the leases of the
/// new one end, those of the old one mean nothing. Where the transfer breaks off, it is the other way round.
fn dataset_loaded_aside(breaks_off: bool) {
    let promoted_in_time = |lease_ms: i64| {
        let primary = Server::with(&[
            ("repl-diskless-sync", "yes"),
            ("repl-backlog-size", "16384"),
            ("rdbcompression", "no"),
        ]);
        let replica = Server::builder()
            .config("repl-diskless-load", "swapdb")
            .config("loading-process-events-interval-bytes", "1024")
            .config("presence.restart-grace-ms", "0")
            .line(&format!("replicaof 127.0.0.1 {}", primary.port))
            .start();
        let (mut p, mut r) = (primary.connect(), replica.connect());
        let lease = now_ms() + lease_ms;
        online(&mut p, "both", "was", lease);
        online(&mut p, "old", "a", lease);
        p.ok("SELECT 3");
        online(&mut p, "old3", "a", lease);
        p.ok("SELECT 0");
        wait_until("the replica", SOON * 2, || {
            r.info("replication")["master_link_status"] == "up" && r.int("EXISTS old") == 1
        });
        assert_eq!(p.int("WAIT 1 20000"), 1);

        // It misses more than the backlog holds, and has to take in everything anew: slowly.
        signal(replica.pid(), Signal::STOP);
        p.ok("CLIENT KILL TYPE replica");
        p.ok("FLUSHALL");
        online(&mut p, "both", "is", lease);
        online(&mut p, "new", "a", lease);
        p.ok("SELECT 4");
        online(&mut p, "new4", "a", lease);
        for key in 0..60 {
            p.ok(args!["SET", format!("k{key}"), "x".repeat(5000)]);
        }
        p.ok(args!["CONFIG", "SET", "rdb-key-save-delay", 2 * lease_ms]); // us, for each of 63 keys
        signal(replica.pid(), Signal::CONT);
        let loads = |r: &mut Conn| r.info("persistence")["async_loading"] == "1";
        wait_until("the load to begin", SOON * 4, || loads(&mut r) || r.int("EXISTS new") == 1);
        let served = r.space("both");
        if loads(&mut r) && now_ms() < lease {
            assert_eq!(served.names(), ["was"], "the old dataset is served meanwhile");
        }
        if breaks_off {
            kill_with_children(&primary);
        }
        wait_until("the load to end", SOON * 4, || !loads(&mut r));
        if !breaks_off {
            wait_until("the link", SOON * 4, || {
                r.info("replication")["master_link_status"] == "up"
            });
        }
        let mut sub = replica.psubscribe(&["presence:*"]);
        r.ok("REPLICAOF NO ONE");
        let was_too_late = breaks_off && r.int("EXISTS new") == 1;
        if was_too_late || now_ms() > lease - 300 {
            return false;
        }
        // What was given up is freed in the background.
        wait_until("the count", SOON, || (r.stat("spaces"), r.stat("users")) == (3, 3));
        let mut left: Vec<_> = sub.events(3, ms(lease_ms as u64) + SOON);
        left.sort_by_key(|e| e.str("space").to_string());
        let expected = match breaks_off {
            true => [("both", "was"), ("old", "a"), ("old3", "a")],
            false => [("both", "is"), ("new", "a"), ("new4", "a")],
        };
        for (e, (space, user)) in left.iter().zip(expected) {
            assert_eq!((e.str("space"), e.brief()), (space, format!("leave {user} (timeout)")));
            assert!(e.int("at") >= lease, "too early: {e:?}");
        }
        assert!(sub.events_so_far(&mut r).is_empty());
        assert_eq!((r.stat("users"), r.stat("sessions")), (0, 0));
        true
    };
    assert!(
        [5000, 20_000].into_iter().any(promoted_in_time),
        "the machine was too slow for this test"
    );
}

#[test]
fn a_dataset_loaded_aside_takes_the_place_of_the_old_one() {
    dataset_loaded_aside(false);
}

#[test]
fn a_dataset_whose_loading_aside_broke_off_leaves_no_trace() {
    dataset_loaded_aside(true);
}

// --- closed ----------------------------------------------------------------------------------------------------------

#[test]
fn a_closed_space_is_silent_and_goes_when_its_time_is_over() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        let lease = now_ms() + 300;
        online(&mut c, "s", "a", lease);
        online(&mut c, "s", "b", lease + 100);
        c.ok("PRESENCE.OFFLINE s b LINGER 50");
        let before = now_ms();
        assert_eq!(c.int("PRESENCE.CLOSE s PX 900"), 1);
        let id = last_id(&mut c, "s");
        assert_eq!(id.1, 3);
        assert_eq!((c.stat("users"), c.stat("sessions"), c.stat("spaces")), (0, 0, 1));
        let kinds: Vec<_> =
            sub.events_so_far(&mut c).iter().map(|e| e.kind().to_string()).collect();
        assert_eq!(kinds, ["join", "join", "close"]);
        for command in
            ["PRESENCE.ONLINE s a", "PRESENCE.ONLINE s USERS 1 a", "PRESENCE.ONLINE s x NX"]
        {
            assert!(c.err(command).starts_with("CLOSED "), "{command}");
        }
        silence(&mut sub, &mut c, lease + 100); // no lease of before means anything
        assert_eq!(last_id(&mut c, "s"), id);
        wait_until("the key to go", SOON, || c.int("EXISTS s") == 0);
        let gone = now_ms();
        within("the end of a closed space", gone, before + 900, before + 900 + 2 * LATE);
        c.ok("PRESENCE.ONLINE s a");
        let join = sub.event(SOON);
        assert!(join.id() > id && join.id().1 == 1, "{id:?} and then {}", join.raw);
        // DEL opens it at once.
        c.ok("PRESENCE.CLOSE s EX 100");
        c.ok("DEL s");
        assert_eq!(c.int("PRESENCE.ONLINE s a"), 1);
        let events = sub.events_so_far(&mut c);
        assert_eq!(events.iter().map(Event::kind).collect::<Vec<_>>(), ["close", "join"]);
        assert!(events[1].id() > events[0].id());
    });
}

#[test]
fn a_closed_space_stays_closed_wherever_it_goes() {
    steady(|| {
        let server = Server::start();
        let mut c = server.connect();
        let mut sub = server.psubscribe(&["presence:*"]);
        furnish(&mut c, "s");
        let before = now_ms();
        c.ok("PRESENCE.CLOSE s PX 1000");
        let events = c.ok("PRESENCE.EVENTS s");
        let Value::BulkString(dump) = c.ok("DUMP s") else { panic!("no dump") };
        c.ok("COPY s copied");
        c.ok(args!["RESTORE", "restored", 0, dump]);
        c.ok("COPY s moved");
        c.ok("MOVE moved 1");
        c.ok("SELECT 0"); // see `a_connection_stays_in_its_database`
        c.ok("RENAME s renamed");
        c.ok("DEBUG RELOAD");
        sub.so_far(&mut c);
        let rooms = [(0, "copied"), (0, "restored"), (0, "renamed"), (1, "moved")];
        for (db, room) in rooms {
            c.ok(args!["SELECT", db]);
            assert!(c.err(["PRESENCE.ONLINE", room, "x"]).starts_with("CLOSED "), "{room}");
            assert_eq!(c.ok(["PRESENCE.EVENTS", room]), events, "{room}");
        }
        assert!(now_ms() < before + 1000, "the machine was too slow for this test");
        for (db, room) in rooms {
            c.ok(args!["SELECT", db]);
            wait_until("the key to go", SOON, || c.int(["EXISTS", room]) == 0);
            within(room, now_ms(), before + 1000, before + 1000 + 2 * LATE);
        }
        sub.expect_none_for(ms(50));
    });
}

/// Valkey 8.1 and 9.0 leave a connection in the other database after MOVE and COPY … DB while a module listens to
/// keyspace events (valkey-io/valkey#4024).
#[test]
fn a_connection_stays_in_its_database() {
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE s a");
    c.ok("SET k x");
    let mut wrong = Vec::new();
    for command in [
        "COPY s s DB 3",
        "MOVE s 4",
        "COPY k k DB 3",
        "MOVE k 4",
        "MULTI | PRESENCE.ONLINE s a | MOVE s 5 | EXEC",
        "EVAL return{redis.call('PRESENCE.ONLINE','s','a'),redis.call('MOVE','s',6)} 0",
    ] {
        for command in command.split(" | ") {
            c.ok(command);
        }
        c.ok("SET here x");
        c.ok("SELECT 0");
        if c.int("DEL here") == 0 {
            wrong.push(command);
        }
    }
    assert!(wrong.is_empty(), "the connection was in another database after {wrong:?}");
}

// --- what tools ask of a key -----------------------------------------------------------------------------------------

#[test]
fn object_type_scan_and_digest() {
    let server = Server::start();
    let mut c = server.connect();
    let lease = now_ms() + 3_600_000;
    online(&mut c, "s", "a", lease);
    c.ok("SET string x");
    c.ok("RPUSH list x");
    let name = c.text("TYPE s");
    assert_eq!(name.len(), 9, "{name}");
    for i in 0..200 {
        online(&mut c, &format!("s{i}"), "a", lease);
    }
    let (mut cursor, mut found) = ("0".to_string(), std::collections::BTreeSet::new());
    loop {
        let Value::Array(reply) = c.ok(["SCAN", &cursor, "COUNT", "20", "TYPE", &name]) else {
            panic!("no array")
        };
        cursor = text(&reply[0]);
        found.extend(texts(&reply[1]));
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(found.len(), 201);
    assert!(!found.contains("string") && !found.contains("list"));
    assert_eq!(c.text("OBJECT ENCODING s"), "raw");
    assert_eq!(c.int("OBJECT REFCOUNT s"), 1);
    assert!(c.int("OBJECT IDLETIME s") >= 0);
    assert!(c.text("DEBUG OBJECT s").contains("serializedlength:"));
    assert!(c.err("OBJECT FREQ s").contains("LFU"));
    assert!(c.err("GET s").starts_with("WRONGTYPE"));
    assert!(c.err("PRESENCE.COUNT string").starts_with("WRONGTYPE"));
    assert!(c.int("MEMORY USAGE s") > 0);
    assert!(
        c.err("MODULE UNLOAD presence").contains("type"),
        "{}",
        c.err("MODULE UNLOAD presence")
    );
    assert_eq!(c.int("PRESENCE.COUNT s"), 1);
}

#[test]
fn equal_spaces_have_equal_digests_and_others_have_not() {
    let server = Server::start();
    let mut c = server.connect();
    furnish(&mut c, "s");
    let first = c.digest("s");
    assert_ne!(first, "0".repeat(40));
    assert_eq!(c.digest("s"), first, "it does not depend on when it is asked");
    c.ok("COPY s t");
    assert_eq!(c.digest("t"), first);
    let Value::BulkString(dump) = c.ok("DUMP s") else { panic!("no dump") };
    c.ok(args!["RESTORE", "u", 0, dump]);
    assert_eq!(c.digest("u"), first, "nor on the order of members in memory");
    let lease = now_ms() + 7_200_000;
    let mut seen = vec![first];
    for change in [
        args!["PRESENCE.ONLINE", "t", "new", "PXAT", lease],
        args!["PRESENCE.ONLINE", "t", "new", "SESSION", "x", "PXAT", lease],
        args!["PRESENCE.ONLINE", "t", "new", "SESSION", "x", "PXAT", lease, "META", "1"],
        args!["PRESENCE.ONLINE", "t", "new", "SESSION", "x", "PXAT", lease, "META", "2"],
        args!["PRESENCE.OFFLINE", "t", "new", "SESSION", "x", "LINGER", 86_000_000],
        args!["PRESENCE.OFFLINE", "t", "new", "SESSION", "x"],
        args!["PRESENCE.OFFLINE", "t", "new"],
    ] {
        c.ok(&change);
        let digest = c.digest("t");
        assert!(!seen.contains(&digest), "the same digest after {}", show(&change));
        seen.push(digest);
    }
    // Leases are left out: a replica knows bounds.
    c.ok("PRESENCE.ONLINE t new");
    let before = c.digest("t");
    c.ok(args!["PRESENCE.ONLINE", "t", "new", "PXAT", lease + 1]);
    assert_eq!(c.digest("t"), before);
    c.ok("PRESENCE.OFFLINE t new");
    // The whole dataset has one, too.
    let all = c.text("DEBUG DIGEST");
    c.ok("PRESENCE.ONLINE t new");
    assert_ne!(c.text("DEBUG DIGEST"), all);
}

#[test]
fn watch_and_tracking_see_changes_and_not_heartbeats() {
    steady(|| {
        let server = Server::start();
        let (mut c, mut other) = (server.connect(), server.connect());
        c.ok("PRESENCE.ONLINE s a META 1");
        c.ok("PRESENCE.ONLINE s b SESSION x PX 60000");
        let mut breaks = |command: &str| {
            c.ok("WATCH s");
            other.ok(command);
            c.ok("MULTI");
            c.ok("PING");
            c.ok("EXEC") == Value::Nil
        };
        for command in [
            "PRESENCE.ONLINE s a",
            "PRESENCE.ONLINE s a PX 70000",
            "PRESENCE.ONLINE s a EX 5",
            "PRESENCE.ONLINE s SESSIONS 1 b x PX 70000",
            "PRESENCE.ONLINE s USERS 1 a",
            "PRESENCE.ONLINE s a NX",
            "PRESENCE.ONLINE s nobody XX",
            "PRESENCE.OFFLINE s nobody",
            "PRESENCE.OFFLINE s a SESSION nobody",
            "PRESENCE.SPACE s",
            "PRESENCE.COUNT s",
        ] {
            assert!(!breaks(command), "{command}");
        }
        for command in [
            "PRESENCE.ONLINE s c PX 60000",
            "PRESENCE.ONLINE s a SESSION y",
            "PRESENCE.ONLINE s a META 2",
            "PRESENCE.OFFLINE s a SESSION y",
            "PRESENCE.ONLINE s USERS 2 a d",
            "PRESENCE.OFFLINE s USERS 2 a d",
            "DEL s",
            "PRESENCE.ONLINE s a PX 200",
        ] {
            assert!(breaks(command), "{command}");
        }
        // The sweep's leave is a change, too.
        let mut sub = server.subscribe(&["presence:s"]);
        other.ok("PRESENCE.ONLINE s a PX 200");
        c.ok("WATCH s");
        assert_eq!(sub.event(SOON).kind(), "leave");
        c.ok("MULTI");
        c.ok("PING");
        assert_eq!(c.ok("EXEC"), Value::Nil);

        let mut reader = server.connect3();
        reader.ok("CLIENT TRACKING ON");
        let mut invalidated = |command: &str| {
            reader.ok("PRESENCE.COUNT s");
            reader.pushes.clear();
            other.ok(command);
            reader.ok("PING"); // an invalidation is sent before the writer gets its reply
            reader.ok("PING");
            !reader.pushes.is_empty()
        };
        assert!(invalidated("PRESENCE.ONLINE s a PX 60000"));
        assert!(!invalidated("PRESENCE.ONLINE s a PX 60000"));
        assert!(invalidated("PRESENCE.ONLINE s b PX 60000"));
        assert!(invalidated("PRESENCE.OFFLINE s b"));
    });
}

// --- transactions, scripts, neighbours -------------------------------------------------------------------------------

#[test]
fn transactions_and_scripts_publish_in_order_and_without_holes() {
    let server = Server::start();
    let mut c = server.connect();
    let mut sub = server.subscribe(&["presence:s"]);
    c.ok("MULTI");
    for queued in [
        "PRESENCE.ONLINE s USERS 3 a b c PX 60000",
        "PRESENCE.STATUS s a b nobody",
        "PRESENCE.ONLINE s a SESSION x PX 60000",
        "PRESENCE.OFFLINE s b",
        "PRESENCE.COUNT s",
        "PRESENCE.ONLINE s a PX bad",
        "PRESENCE.ONLINE s d PX 60000",
    ] {
        assert_eq!(c.text(queued), "QUEUED");
    }
    let Value::Array(replies) = c.ok("EXEC") else { panic!("no array") };
    assert_eq!(replies[0], Value::Int(3));
    assert_eq!(replies[1], Value::Array(vec![Value::Int(1), Value::Int(1), Value::Int(0)]));
    assert_eq!(replies[4], Value::Int(2));
    assert!(matches!(replies[5], Value::ServerError(_)));
    c.ok("MULTI");
    c.ok("PRESENCE.ONLINE s discarded");
    c.ok("DISCARD");
    c.ok("MULTI");
    c.ok("PRESENCE.ONLINE s discarded");
    c.err("PRESENCE.ONLINE s");
    assert!(c.err("EXEC").starts_with("EXECABORT"));

    let script = "
        local n = 0
        for i = 1, 100 do
            n = n + redis.call('PRESENCE.ONLINE', KEYS[1], 'lua' .. i, 'PX', 60000)
            if i % 3 == 0 then redis.call('PRESENCE.OFFLINE', KEYS[1], 'lua' .. i) end
        end
        local bad = redis.pcall('PRESENCE.ONLINE', KEYS[1], 'x', 'PX', 'bad')
        local space = redis.call('PRESENCE.SPACE', KEYS[1])
        return {n, redis.call('PRESENCE.COUNT', KEYS[1]), bad.err ~= nil, space[2]}";
    let Value::Array(replies) = c.ok(args!["EVAL", script, 1, "s"]) else { panic!("no array") };
    assert_eq!(replies[..3], [Value::Int(100), Value::Int(3 + 67), Value::Int(1)]);
    let id = text(&replies[3]);
    assert!(
        c.err(args!["EVAL", "redis.call('PRESENCE.ONLINE', KEYS[1], 'x'); error('stop')", 1, "s"])
            .contains("stop")
    );
    assert!(
        c.err(args!["EVAL_RO", "return redis.call('PRESENCE.ONLINE', KEYS[1], 'x')", 1, "s"])
            .contains("Write")
    );
    assert_eq!(c.int(args!["EVAL_RO", "return redis.call('PRESENCE.COUNT', KEYS[1])", 1, "s"]), 71);

    let events = sub.events_so_far(&mut c);
    let mut roster = Roster::new();
    for (i, e) in events.iter().enumerate() {
        assert_eq!(e.id(), (events[0].id().0, i as u64 + 1));
        e.fold(&mut roster);
    }
    assert_eq!(roster, c.space("s").roster());
    assert_eq!(events.len(), 6 + 100 + 33 + 1);
    assert_eq!(id, format!("{}-{}", events[0].id().0, 6 + 133));
    // Deleted and made again within a transaction, and a key that is a space only for a while.
    c.ok("MULTI");
    for queued in [
        "DEL s",
        "PRESENCE.ONLINE s a",
        "RENAME s t",
        "PRESENCE.ONLINE s b",
        "COPY s u",
        "DEL s",
        "SET s x",
    ] {
        c.ok(queued);
    }
    c.ok("EXEC");
    assert!(c.err("PRESENCE.COUNT s").starts_with("WRONGTYPE"));
    assert_eq!((c.space("t").names(), c.space("u").names()), (vec!["a"], vec!["b"]));
    let ids: Vec<_> = sub.events_so_far(&mut c).iter().map(Event::id).collect();
    assert!(ids[0] > events.last().unwrap().id() && ids[1] > ids[0]);
}

#[test]
fn foreign_keys_disturb_nothing() {
    let mut rng = rng(3);
    let server = Server::builder().config("notify-keyspace-events", "KEA").start();
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*"]);
    let name = c.text("TYPE none");
    assert_eq!(name, "none");
    let mut commands = Vec::new();
    for i in 0..2000 {
        let length = [1, 2, 7, 8, 9, 16, 64, 512, 5000][rng.random_range(0..9)];
        let mut key: Vec<u8> = (0..length).map(|_| rng.random_range(0..=255u8)).collect();
        if i % 10 == 0 {
            key = format!("presence:{}", ["s", "", "*", "presence:s"][rng.random_range(0..4)])
                .into_bytes();
        }
        commands.push(match rng.random_range(0..9) {
            0 => args!["SET", key, "x"],
            1 => args!["SET", key, "x", "PX", rng.random_range(1..300)],
            2 => args!["RPUSH", key, "x"],
            3 => args!["SADD", key, "x"],
            4 => args!["ZADD", key, 1, "x"],
            5 => args!["HSET", key, "f", "x"],
            6 => args!["XADD", key, "*", "f", "x"],
            7 => args!["PFADD", key, "x"],
            _ => args!["UNLINK", key],
        });
        if i % 50 == 0 {
            commands.push(args![
                "PRESENCE.ONLINE",
                "s",
                format!("u{i}"),
                "PX",
                rng.random_range(1..400)
            ]);
        }
    }
    c.batch(commands);
    wait_until("all to leave", SOON, || c.stat("users") == 0);
    let mut roster = Roster::new();
    for (i, e) in sub.events_so_far(&mut c).iter().enumerate() {
        assert_eq!((e.str("space"), e.id().1), ("s", i as u64 + 1));
        e.fold(&mut roster);
    }
    assert!(roster.is_empty());
    assert_eq!(last_id(&mut c, "s").1, 80);
}

// --- everything at once ----------------------------------------------------------------------------------------------

#[test]
fn whatever_happens_to_the_keys_no_lease_is_forgotten() {
    for seed in 0..4 {
        storm(seed);
    }
}

/// Random commands on a few spaces in a few databases; in the end all leases lapse. If the index of what is due had
/// lost one, its key would stay.
fn storm(seed: u64) {
    let mut rng = rng(1000 + seed);
    let server =
        Server::with(&[("presence.history-ttl-ms", "150"), ("presence.sweep-budget-us", "200")]);
    let mut c = server.connect();
    let mut sub = server.psubscribe(&["presence:*"]);
    let names: Vec<String> = (0..6).map(|i| format!("s{i}")).collect();
    let mut dumps: Vec<Vec<u8>> = Vec::new();
    let mut log = Vec::new();
    for _ in 0..2500 {
        let (a, b) = (names.choose(&mut rng).unwrap(), names.choose(&mut rng).unwrap());
        let user = format!("u{}", rng.random_range(0..12));
        let (db, other_db) = (rng.random_range(0..3), rng.random_range(0..3));
        let command = match rng.random_range(0..100) {
            0..40 => args!["PRESENCE.ONLINE", a, user, "PX", rng.random_range(1..250)],
            40..50 => {
                args![
                    "PRESENCE.ONLINE",
                    a,
                    user,
                    "SESSION",
                    format!("{}", rng.random_range(0..3)),
                    "PX",
                    rng.random_range(1..250)
                ]
            }
            50 if rng.random_bool(0.3) => {
                args!["PRESENCE.CLOSE", a, "PX", rng.random_range(1..100)]
            }
            50..58 => args!["PRESENCE.OFFLINE", a, user],
            58..62 => args!["PRESENCE.OFFLINE", a, user, "LINGER", rng.random_range(1..100)],
            62..70 => args!["SELECT", db],
            70..73 => args!["DEL", a],
            73..76 => args!["UNLINK", a],
            76..80 => args!["RENAME", a, b],
            80..84 => args!["COPY", a, b, "DB", db, "REPLACE"],
            84..87 => args!["MOVE", a, db],
            87..90 => args!["SWAPDB", db, other_db],
            90 => args!["FLUSHDB", ["SYNC", "ASYNC"][rng.random_range(0..2)]],
            91 => args!["PEXPIRE", a, rng.random_range(1..100)],
            92..95 => args!["DUMP", a],
            95..98 if !dumps.is_empty() => {
                args!["RESTORE", a, 0, dumps.choose(&mut rng).unwrap(), "REPLACE"]
            }
            98 if rng.random_bool(0.3) => args!["DEBUG", "RELOAD"],
            _ => args!["PRESENCE.COUNT", a],
        };
        // No server and no index stops for an error: no such key, same object …
        let reply = c.try_cmd(&command[..]);
        if let (b"DUMP", Ok(Value::BulkString(dump))) = (&command[0][..], &reply) {
            dumps.push(dump.clone());
        }
        if let Err(e) = &reply {
            assert!(!e.starts_with("lost"), "{}: {e}\n{}", show(&command), log.join("\n"));
        }
        log.push(show(&command));
    }
    println!("{}", log.join("\n"));
    // After DEBUG RELOAD leases have the grace of a restart, so give it none and end what has one.
    for db in 0..3 {
        c.ok(args!["SELECT", db]);
        for name in &names {
            let space = c.space(name);
            for (user, sessions) in &space.members {
                for s in sessions {
                    c.ok(args![
                        "PRESENCE.ONLINE",
                        name,
                        user,
                        "SESSION",
                        s.session,
                        "XX",
                        "PX",
                        100
                    ]);
                }
            }
        }
    }
    let keys = |c: &mut Conn| {
        (0..3)
            .map(|db| {
                c.ok(args!["SELECT", db]);
                c.int("DBSIZE")
            })
            .sum::<i64>()
    };
    wait_until("every space to lapse and go", SOON * 2, || keys(&mut c) == 0);
    assert_eq!(
        (c.stat("spaces"), c.stat("users"), c.stat("sessions"), c.stat("sweep_backlog")),
        (0, 0, 0, 0)
    );
    for e in sub.events_so_far(&mut c) {
        assert_eq!(e.channel, format!("presence:{}", e.str("space")).into_bytes());
        assert!(e.int("users") >= 0);
    }
}
