//! Lines of history: no event id is given out twice, and a follower of a server that has lost events is told so.

use crate::harness::*;
use crate::history::{answer, aside, ask, waiter, waiting};

use crate::replication::{primary, replica_of, same, sync};

type Id = (i64, u64);

/// The id of the event that this MESSAGE makes.
#[track_caller]
fn event(c: &mut Conn, space: &str) -> Id {
    parse_id(&c.text(args!["PRESENCE.MESSAGE", space, "a", "x"]))
}

#[track_caller]
fn last_id(c: &mut Conn, space: &str) -> Id {
    let id = parse_id(&c.space(space).id);
    assert_eq!(parse_id(&ask(c, space).id), id);
    id
}

/// `AFTER id` goes on without a gap, with so many events.
#[track_caller]
fn goes_on(c: &mut Conn, space: &str, (epoch, seq): Id, events: usize) {
    let told = ask(c, &format!("{space} AFTER {epoch}-{seq}"));
    assert_eq!((told.gap, told.events.len()), (false, events), "AFTER {epoch}-{seq}: {told:?}");
}

#[track_caller]
fn has_gap(c: &mut Conn, space: &str, (epoch, seq): Id) {
    let told = ask(c, &format!("{space} AFTER {epoch}-{seq}"));
    assert!(told.gap, "AFTER {epoch}-{seq}: {told:?}");
}

/// A snapshot is written, c joins, the server is killed and comes back without c, and e joins before a follower is back.
#[test]
fn the_ids_of_lost_events_are_not_given_out_again() {
    for grace in ["30000", "0"] {
        let server = primary().config("presence.restart-grace-ms", grace).start();
        let mut c = server.connect();
        let mut joins = server.subscribe(&["presence:s"]);
        c.ok("PRESENCE.ONLINE s a EX 600");
        c.ok("PRESENCE.ONLINE s b EX 600");
        c.ok("SAVE");
        c.ok("PRESENCE.ONLINE s c EX 600");
        let [a, b, lost] = [0; 3].map(|_| joins.event(SOON).id());
        server.restart(Stop::Kill);
        let mut c = server.connect();
        // Before the first event the id is the old one, and the lost id has a gap, which is news for who waits.
        assert_eq!(last_id(&mut c, "s"), b);
        goes_on(&mut c, "s", a, 1);
        goes_on(&mut c, "s", b, 0);
        has_gap(&mut c, "s", lost);
        assert!(ask(&mut c, &format!("s AFTER {}-{} BLOCK 60000", lost.0, lost.1)).gap);
        c.ok("PRESENCE.ONLINE s e EX 600");
        let new = last_id(&mut c, "s");
        assert!(new.0 > lost.0 && new.1 == lost.1, "{new:?} after {lost:?}");
        let told = ask(&mut c, &format!("s AFTER {}-{}", lost.0, lost.1));
        assert_eq!((told.gap, told.briefs()), (true, vec!["join e".to_string()]));
        goes_on(&mut c, "s", a, 2);
        goes_on(&mut c, "s", b, 1);
        goes_on(&mut c, "s", new, 0);
        let told = ask(&mut c, "s AFTER 0-0");
        assert_eq!(
            (told.gap, told.briefs()),
            (false, ["join a", "join b", "join e"].map(String::from).into())
        );
        // What was never given out: below the first of a line, beyond the last, another epoch.
        for never in [
            (b.0, 0),
            (new.0, 0),
            (new.0, b.1),
            (new.0, new.1 + 1),
            (new.0 + 1, new.1),
            (b.0 - 1, b.1),
            ((b.0 + new.0) / 2, b.1),
        ] {
            if (b.0 + 1..new.0).contains(&never.0) || never.0 == b.0 || never.0 >= new.0 {
                has_gap(&mut c, "s", never);
            }
        }
        // The line goes on.
        assert_eq!(event(&mut c, "s"), (new.0, new.1 + 1));
        goes_on(&mut c, "s", b, 2);
    }
}

/// A new line costs one epoch and nothing else, whatever the first event is, and whoever makes it.
#[test]
fn each_kind_of_event_begins_the_line() {
    let server = Server::builder()
        .config("presence.history-ttl-ms", "3600000")
        .config("presence.restart-grace-ms", "0")
        .start();
    let mut c = server.connect();
    let firsts = [
        "PRESENCE.ONLINE s new",
        "PRESENCE.ONLINE s a SESSION new",
        "PRESENCE.ONLINE s a SESSION 1 META 1",
        "PRESENCE.ONLINE s USERS 2 a new",
        "PRESENCE.ONLINE s SESSIONS 2 a new b new",
        "PRESENCE.OFFLINE s a SESSION 1",
        "PRESENCE.OFFLINE s a",
        "PRESENCE.MESSAGE s a x",
        "PRESENCE.CLOSE s",
        "", // the sweep
    ];
    for first in firsts {
        c.ok("DEL s");
        c.ok("PRESENCE.ONLINE s SESSIONS 3 a 1 a 2 b 1 EX 600");
        let ends = now_ms() + 1200;
        if first.is_empty() {
            c.ok(args!["PRESENCE.ONLINE", "s", "a", "SESSION", "1", "PXAT", ends]);
        }
        let mut published = server.subscribe(&["presence:s"]);
        let before = last_id(&mut c, "s");
        c.ok("DEBUG RELOAD");
        if !first.is_empty() {
            // A renewal and what changes nothing are no events.
            c.ok("PRESENCE.ONLINE s SESSIONS 2 a 1 b 1 EX 600");
            c.ok("PRESENCE.OFFLINE s nobody");
            c.ok("PRESENCE.ONLINE s nobody XX");
            assert_eq!(last_id(&mut c, "s"), before, "{first}");
            c.ok(first);
        }
        let event = published.event(SOON);
        let id = event.id();
        assert!(id.0 > before.0 && id.1 == before.1 + 1, "{first}: {id:?} after {before:?}");
        assert!(event.int("at") >= id.0, "{first}: {}", event.raw);
        assert_eq!(last_id(&mut c, "s").0, id.0, "{first}: one line");
        let told = ask(&mut c, &format!("s AFTER {}-{}", before.0, before.1));
        assert_eq!((told.gap, told.events[0].raw.as_str()), (false, event.raw.as_str()), "{first}");
    }
}

/// With the present one eight lines are known; a load after which nothing happens uses up none.
#[test]
fn eight_lines_are_remembered() {
    let server = Server::builder().aof().config("presence.history-ttl-ms", "3600000").start();
    let mut c = server.connect();
    // Of each line its first and its last id.
    let mut lines: Vec<(Id, Id)> = Vec::new();
    let loads: [&[&str]; 5] = [
        &["DEBUG RELOAD"],
        &["DEBUG LOADAOF"],
        &["DEBUG RELOAD", "DEBUG LOADAOF", "DEBUG RELOAD"],
        &["kill"],
        &["BGREWRITEAOF", "kill", "DEBUG RELOAD", "kill"],
    ];
    for n in 0..12 {
        for how in loads[n % loads.len()].iter().filter(|_| n > 0) {
            match *how {
                "kill" => {
                    server.restart(Stop::Kill);
                    c = server.connect();
                }
                "BGREWRITEAOF" => {
                    wait_until("the rewrite to begin", SOON * 4, || c.try_cmd(*how).is_ok());
                    wait_until("the rewrite", SOON * 4, || {
                        let info = c.info("persistence");
                        info["aof_rewrite_in_progress"] == "0"
                            && info["aof_rewrite_scheduled"] == "0"
                    });
                }
                how => drop(c.ok(how)),
            }
            assert_eq!(last_id(&mut c, "s"), lines.last().unwrap().1);
        }
        let first = event(&mut c, "s");
        let last = if n % 2 == 0 { first } else { event(&mut c, "s") };
        if let Some((_, before)) = lines.last() {
            assert!(first.0 > before.0 && first.1 == before.1 + 1, "{first:?} after {before:?}");
        }
        lines.push((first, last));
        // All that came after is kept, so only a line that is forgotten has a gap.
        for (age, line) in lines.iter().rev().enumerate() {
            for id in [line.0, line.1] {
                if age < 8 {
                    goes_on(&mut c, "s", id, (last.1 - id.1) as usize);
                } else {
                    has_gap(&mut c, "s", id);
                }
            }
            // Below the first of the line, and beyond its last.
            has_gap(&mut c, "s", (line.0.0, line.0.1 - 1));
            has_gap(&mut c, "s", (line.1.0, line.1.1 + 1));
        }
    }
}

/// RESTORE, COPY, MOVE, RENAME and SWAPDB begin no line. What they carry goes on: the lines that are known, and that one
/// is due, because the lost ids are those of the original.
#[test]
fn a_space_that_is_copied_or_moved_begins_no_line_by_itself() {
    let server = Server::builder().config("presence.history-ttl-ms", "3600000").start();
    let mut c = server.connect();
    let arrive = |c: &mut Conn, from: &str| -> Vec<String> {
        let Value::BulkString(payload) = c.ok(args!["DUMP", from]) else { panic!() };
        c.ok(args!["RESTORE", "restored", 0, payload, "REPLACE"]);
        c.ok(args!["COPY", from, "copied", "REPLACE"]);
        c.ok(args!["COPY", from, "to rename", "REPLACE"]);
        c.ok(args!["RENAME", "to rename", "renamed"]);
        c.ok(args!["COPY", from, "moved", "REPLACE"]);
        c.ok(args!["SWAPDB", 0, 1]);
        for space in [from, "restored", "copied", "renamed", "moved"] {
            aside(&server, 1, &format!("MOVE {space} 0"));
        }
        ["restored", "copied", "renamed", "moved"].map(String::from).into()
    };
    event(&mut c, "s");
    let before = event(&mut c, "s");
    for name in arrive(&mut c, "s") {
        assert_eq!(event(&mut c, &name), (before.0, before.1 + 1), "{name}, nothing was loaded");
        goes_on(&mut c, &name, before, 1);
    }
    c.ok("DEBUG RELOAD");
    for name in arrive(&mut c, "s") {
        assert_eq!(c.digest(&name), c.digest("s"), "{name}");
        assert_eq!(last_id(&mut c, &name), before);
        let id = event(&mut c, &name);
        assert!(id.0 > before.0 && id.1 == before.1 + 1, "{name}: {id:?} after {before:?}");
        goes_on(&mut c, &name, before, 1);
        assert_eq!(event(&mut c, &name), (id.0, id.1 + 1), "{name}");
    }
    // With a line behind it, and none due.
    let new = event(&mut c, "s");
    for name in arrive(&mut c, "s") {
        assert_eq!(c.digest(&name), c.digest("s"), "{name}");
        assert_eq!(event(&mut c, &name), (new.0, new.1 + 1), "{name}");
        goes_on(&mut c, &name, before, 2);
    }
    // A space that is made after a load is of no line that could be lost.
    let made = event(&mut c, "made");
    assert_eq!(event(&mut c, "made"), (made.0, 2));
}

/// A primary whose last events no replica has is lost. The replica that follows it in office gives out other ids, and
/// each node tells each follower where it stands.
#[test]
fn a_promotion_begins_a_line_on_all_nodes() {
    let a = primary().start();
    let proxy = Proxy::to(a.port);
    let heir = primary().line(&format!("replicaof 127.0.0.1 {}", proxy.port)).start();
    // It follows the primary to its end, so it has what the heir lacks.
    let ahead = replica_of(&a).start();
    let (mut ca, mut ch, mut cf) = (a.connect(), heir.connect(), ahead.connect());
    sync(&mut ca, &mut ch);
    sync(&mut ca, &mut cf);
    ca.ok("PRESENCE.ONLINE s a EX 600");
    ca.ok("PRESENCE.ONLINE s b EX 600");
    sync(&mut ca, &mut ch);
    let known = last_id(&mut ch, "s");
    proxy.cut();
    ca.ok("PRESENCE.ONLINE s c EX 600");
    sync(&mut ca, &mut cf);
    let lost = last_id(&mut cf, "s");
    assert_eq!(lost, (known.0, known.1 + 1));
    let mut at_ahead = ahead.subscribe(&["presence:s"]);
    a.stop(Stop::Kill);
    ch.ok("REPLICAOF NO ONE");
    cf.ok(args!["REPLICAOF", "127.0.0.1", i64::from(heir.port)]);
    sync(&mut ch, &mut cf);
    // The full copy begins no line; it tells that c was never there.
    assert_eq!([last_id(&mut ch, "s"), last_id(&mut cf, "s")], [known, known]);
    let told = ask(&mut cf, &format!("s AFTER {}-{} BLOCK 60000", lost.0, lost.1));
    assert!(told.gap && parse_id(&told.id) == known, "{told:?}");
    same(&mut ch, &mut cf);
    let mut follower = waiter(&ahead, &mut cf, &format!("s AFTER {}-{} BLOCK 0", known.0, known.1));
    ch.ok("PRESENCE.ONLINE s e EX 600");
    sync(&mut ch, &mut cf);
    let new = at_ahead.event(SOON);
    assert!(new.id().0 > lost.0 && new.id().1 == lost.1, "{new:?} after {lost:?}");
    let told = answer(&mut follower);
    assert_eq!((told.gap, told.raws()), (false, vec![new.raw.as_str()]));
    same(&mut ch, &mut cf);
    for c in [&mut ch, &mut cf] {
        has_gap(c, "s", lost);
        goes_on(c, "s", known, 1);
    }
    // A replica that is copied to later knows the same, and begins nothing, also when it loads its own file.
    let late = replica_of(&heir).start();
    let mut cl = late.connect();
    sync(&mut ch, &mut cl);
    cl.ok("DEBUG RELOAD");
    sync(&mut ch, &mut cl);
    has_gap(&mut cl, "s", lost);
    goes_on(&mut cl, "s", known, 1);
    let id = event(&mut ch, "s");
    assert_eq!(id, (new.id().0, new.id().1 + 1));
    sync(&mut ch, &mut cl);
    assert_eq!(last_id(&mut cl, "s"), id);
    same(&mut ch, &mut cl);
    // Promotions after each other.
    let mut before = id;
    for _ in 0..3 {
        cl.ok("REPLICAOF NO ONE");
        let id = event(&mut cl, "s");
        assert!(id.0 > before.0 && id.1 == before.1 + 1, "{id:?} after {before:?}");
        cl.ok(args!["REPLICAOF", "127.0.0.1", i64::from(heir.port)]);
        sync(&mut ch, &mut cl);
        // It is overruled: its line is gone.
        has_gap(&mut cl, "s", id);
        assert_eq!(last_id(&mut cl, "s"), before);
        let next = event(&mut ch, "s");
        assert_eq!(next, (before.0, before.1 + 1), "the primary never changed");
        sync(&mut ch, &mut cl);
        same(&mut ch, &mut cl);
        before = next;
    }
}

/// A new line is not another space: who waits goes on waiting, and gets the first event without a gap.
#[test]
fn a_waiting_client_hears_of_the_new_line_as_of_any_event() {
    let a = primary().start();
    let b = replica_of(&a).start();
    let (mut ca, mut cb) = (a.connect(), b.connect());
    event(&mut ca, "s");
    ca.ok("PRESENCE.ONLINE s b EX 600");
    sync(&mut ca, &mut cb);
    let mut waits: Vec<Conn> =
        ["$", "0-0"].map(|id| waiter(&b, &mut cb, &format!("t AFTER {id} BLOCK 0"))).into();
    waits.push(waiter(&b, &mut cb, "s AFTER $ BLOCK 0"));
    waiting(&mut cb, 3);
    cb.ok("REPLICAOF NO ONE");
    cb.ok("PRESENCE.ONLINE s b EX 600");
    cb.ok("PRESENCE.OFFLINE s nobody");
    waiting(&mut cb, 3);
    let id = event(&mut cb, "s");
    let told = answer(&mut waits[2]);
    assert_eq!((told.gap, told.seqs(), parse_id(&told.id)), (false, vec![id.1], id));
    waiting(&mut cb, 2);
    let id = event(&mut cb, "t");
    for w in &mut waits[..2] {
        let told = answer(w);
        assert_eq!((told.gap, parse_id(&told.id)), (false, id));
    }
}

/// Made and deleted so quickly that the epochs run far ahead of the clock; whatever else happens to other names, and
/// whoever decides then.
#[test]
fn many_lives_of_one_name_share_no_id() {
    const LIVES: usize = 100_000;
    let a = primary().config("presence.history-length", "0").start();
    let b = replica_of(&a).config("presence.history-length", "0").start();
    let (mut ca, mut cb) = (a.connect(), b.connect());
    sync(&mut ca, &mut cb);
    let mut last: Id = (0, 0);
    let mut lives = |c: &mut Conn, n: usize, ends: &[&str]| {
        for some in (0..n).collect::<Vec<_>>().chunks(1000) {
            let commands = some.iter().flat_map(|i| {
                ["PRESENCE.MESSAGE s a x".to_string(), ends[i % ends.len()].to_string()]
            });
            for reply in c.batch(commands).into_iter().step_by(2) {
                let id = parse_id(&text(&reply.unwrap()));
                assert!(id > last, "{id:?} after {last:?}");
                last = id;
            }
        }
    };
    lives(&mut ca, LIVES, &["DEL s", "UNLINK s"]);
    // 3,000 other names whose lives are as short, which is more than are remembered one by one.
    for _ in 0..3 {
        let other = (0..3000).flat_map(|n| {
            let message = args!["PRESENCE.MESSAGE", format!("other:{n}"), "a", "x"];
            [message, args!["DEL", format!("other:{n}")]]
        });
        assert!(ca.batch(other).iter().all(Result::is_ok));
    }
    lives(&mut ca, 2000, &["DEL s", "FLUSHDB", "DEL s", "FLUSHALL"]);
    // There is none of that name in the other database either.
    lives(&mut ca, 2, &["SWAPDB 0 1", "SWAPDB 0 1"]);
    lives(&mut ca, 2000, &["DEL s", "RENAME s elsewhere"]);
    // The last one lives on. A replica that is promoted knows of it, although it is flushed without a name: one that
    // received all, one that was there when it began, one that was copied to later.
    let another = || replica_of(&a).config("presence.history-length", "0").start();
    let before = another();
    sync(&mut ca, &mut before.connect());
    ca.ok("PRESENCE.ONLINE s keeper EX 600");
    let kept = last_id(&mut ca, "s");
    let after = another();
    for replica in [&before, &after, &b] {
        let mut c = replica.connect();
        sync(&mut ca, &mut c);
        // In one go, so that the timer does not look at the space in between.
        let replies = c.batch(["REPLICAOF NO ONE", "FLUSHALL"]);
        assert!(replies.iter().all(Result::is_ok), "{replies:?}");
        let next = event(&mut c, "s");
        assert!(next > kept && kept.0 > now_ms(), "{next:?} after {kept:?}");
    }
    lives(&mut cb, 2000, &["DEL s", "UNLINK s"]);
    lives(&mut cb, 2, &["FLUSHALL"]);
}
