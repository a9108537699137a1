//! The network between a primary and its replicas fails: what is made up for, and what a replica does meanwhile.

use crate::harness::*;

use crate::replication::*;
use rand::Rng;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

const SPACES: [&str; 3] = ["s0", "s1", "s2"];
/// Longer than any lease of `churn`.
const CHURN_MS: i64 = 300;
/// A replica tries once a second to reach its primary.
const AGAIN: Duration = Duration::from_secs(30);

/// People come, come back, leave, lapse and talk.
fn churn(c: &mut Conn, rng: &mut impl Rng) {
    let space = SPACES[rng.random_range(0..SPACES.len())];
    let user = format!("u{}", rng.random_range(0..15));
    let ttl = rng.random_range(1..CHURN_MS);
    match rng.random_range(0..100) {
        0..60 => c.ok(args!["PRESENCE.ONLINE", space, user, "PX", ttl]),
        60..70 => {
            c.ok(args!["PRESENCE.ONLINE", space, user, "SESSION", "2", "META", ttl, "PX", ttl])
        }
        70..85 => c.ok(args!["PRESENCE.OFFLINE", space, user]),
        85..90 => c.ok(args!["PRESENCE.OFFLINE", space, user, "LINGER", ttl / 2]),
        _ => c.ok(args!["PRESENCE.MESSAGE", space, user, "hello"]),
    };
}

fn kept(builder: Builder) -> Builder {
    // A replica that hears nothing hides sessions at the bound: the lease and at most the grace.
    builder.config("presence.history-length", "100000").config("presence.restart-grace-ms", "1000")
}

fn channels() -> Vec<String> {
    SPACES.iter().map(|space| format!("presence:{space}")).collect()
}

/// One who stays in each space.
fn settle(p: &mut Conn) {
    for space in SPACES {
        p.ok(args!["PRESENCE.ONLINE", space, "stays", "EX", 1000]);
    }
}

#[track_caller]
fn more_events(p: &mut Conn, n: i64) {
    let before = p.stat("events_published");
    wait_until("more events", AGAIN, || p.stat("events_published") >= before + n);
}

fn link(r: &mut Conn) -> String {
    r.info("replication")["master_link_status"].clone()
}

/// The syncs that a primary has given so far: partial ones, full ones.
fn syncs(p: &mut Conn) -> (i64, i64) {
    let info = p.info("stats");
    let number = |name: &str| info[name].parse().unwrap();
    (number("sync_partial_ok"), number("sync_full"))
}

/// A replica that nothing reaches, while its primary goes on: sessions are hidden at their bounds, and that is all.
#[track_caller]
fn only_hides(p: &mut Conn, replicas: &mut [(&mut Conn, &mut Subscriber, &mut Vec<Message>)]) {
    let counters = [
        "joins",
        "leaves",
        "timeouts",
        "renewals",
        "events_published",
        "messages",
        "users",
        "sessions",
    ];
    let mut before = Vec::new();
    for (r, sub, heard) in replicas.iter_mut() {
        wait_until("all to lapse that was heard of", AGAIN, || {
            SPACES.iter().all(|space| r.int(["PRESENCE.COUNT", space]) == 1)
        });
        for space in SPACES {
            assert_eq!(r.space(space).names(), ["stays"]);
        }
        heard.extend(sub.so_far(r));
        before.push((digests(r), counters.map(|name| r.stat(name))));
    }
    more_events(p, 150);
    for ((r, sub, _), before) in replicas.iter_mut().zip(before) {
        assert_eq!((digests(r), counters.map(|name| r.stat(name))), before);
        let told = sub.so_far(r);
        assert!(told.is_empty(), "{told:?}");
    }
}

fn of_spaces(messages: Vec<Message>) -> Vec<Event> {
    let is_ours = |m: &Message| m.channel.starts_with(b"presence:");
    messages.into_iter().filter(is_ours).map(Event::parse).collect()
}

fn raws(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.raw.as_str()).collect()
}

/// Runs `act` while there is load on a primary; then all who came lapse.
#[track_caller]
fn under_load(server: &Server, seed: u64, act: impl FnOnce()) {
    let over = Over(AtomicBool::new(false));
    thread::scope(|scope| {
        let end = EndOnDrop(&over);
        scope.spawn(|| {
            let (mut c, mut rng) = (server.connect(), rng(seed));
            while !over.yet() {
                churn(&mut c, &mut rng);
                thread::sleep(ms(1));
            }
        });
        act();
        drop(end);
    });
    let mut p = server.connect();
    wait_until("all to lapse", AGAIN, || p.stat("sessions") == SPACES.len() as i64);
}

/// The link is cut, or held up, for less than the backlog lasts: late, but once and in order.
#[test]
fn a_short_cut_is_made_up_for_by_the_backlog() {
    let p_server = kept(primary()).config("repl-backlog-size", "64mb").start();
    let (to_r, to_w) = (Proxy::to(p_server.port), Proxy::to(p_server.port));
    let by = |proxy: &Proxy| kept(primary()).line(&format!("replicaof 127.0.0.1 {}", proxy.port));
    let r_server = by(&to_r).start();
    let w_server = by(&to_w).config("replica-read-only", "no").start();
    let chained_server = kept(replica_of(&r_server)).start();
    let mut p = p_server.connect();
    let mut replicas = [&r_server, &w_server, &chained_server].map(Server::connect);
    settle(&mut p);
    for r in &mut replicas {
        sync(&mut p, r);
    }
    let nodes = [&p_server, &r_server, &w_server, &chained_server];
    let [mut at_p, mut at_r, mut at_w, mut at_chained] =
        nodes.map(|node| node.subscribe(&channels()));
    let mut heard: [Vec<Message>; 3] = Default::default();
    under_load(&p_server, 91, || {
        for held in [false, true, false, true, false] {
            more_events(&mut p, 50);
            let before = syncs(&mut p);
            for proxy in [&to_r, &to_w] {
                if held {
                    proxy.hold();
                } else {
                    proxy.cut();
                }
            }
            let [r, w, chained] = &mut replicas;
            if !held {
                wait_until("the cut", AGAIN, || [&mut *r, &mut *w].map(link) == ["down", "down"]);
            }
            let [heard_r, heard_w, heard_chained] = &mut heard;
            only_hides(
                &mut p,
                &mut [
                    (r, &mut at_r, heard_r),
                    (w, &mut at_w, heard_w),
                    (chained, &mut at_chained, heard_chained),
                ],
            );
            assert!(r.err("PRESENCE.ONLINE s0 x").starts_with("READONLY"));
            assert!(r.err("PRESENCE.OFFLINE s0 stays").starts_with("READONLY"));
            to_r.mend();
            to_w.mend();
            for r in &mut replicas[..2] {
                wait_until("the link", AGAIN, || link(r) == "up");
            }
            let after = syncs(&mut p);
            assert_eq!(after.1, before.1, "a full sync");
            assert_eq!(after.0 - before.0, if held { 0 } else { 2 }, "partial syncs");
        }
    });
    for r in &mut replicas {
        sync(&mut p, r);
    }
    let wanted = of_spaces(at_p.so_far(&mut p));
    assert!(wanted.len() > 800, "only {} events", wanted.len());
    without_holes(&wanted);
    for ((sub, heard), r) in [at_r, at_w, at_chained].iter_mut().zip(heard).zip(&mut replicas) {
        let mut heard = heard;
        heard.extend(sub.so_far(r));
        assert_eq!(raws(&of_spaces(heard)), raws(&wanted));
    }
    for r in &mut replicas {
        same(&mut p, r);
    }
}

/// The link is cut for longer than the backlog lasts: the state is whole again, and a subscriber of the replica has
/// missed what happened between the cut and the new copy, once, and nothing else. The history has it.
#[test]
fn a_long_cut_ends_in_a_full_sync() {
    for (diskless, load) in [("no", "disabled"), ("yes", "disabled"), ("yes", "swapdb")] {
        let p_server = kept(primary())
            .config("repl-backlog-size", "16kb")
            .config("repl-diskless-sync", diskless)
            .start();
        let proxy = Proxy::to(p_server.port);
        let r_server = kept(primary())
            .config("repl-diskless-load", load)
            .line(&format!("replicaof 127.0.0.1 {}", proxy.port))
            .start();
        let (mut p, mut r) = (p_server.connect(), r_server.connect());
        sync(&mut p, &mut r);
        settle(&mut p);
        sync(&mut p, &mut r);
        let [mut at_p, mut at_r] = [&p_server, &r_server].map(|node| node.subscribe(&channels()));
        let mut heard = Vec::new();
        p.ok("PRESENCE.MESSAGE quiet x before");
        sync(&mut p, &mut r);
        let mut waiting = r_server.connect();
        under_load(&p_server, 92, || {
            more_events(&mut p, 100);
            let before = syncs(&mut p);
            proxy.cut();
            wait_until("the cut", AGAIN, || {
                link(&mut r) == "down" && p.info("replication")["connected_slaves"] == "0"
            });
            only_hides(&mut p, &mut [(&mut r, &mut at_r, &mut heard)]);
            let last = r.space("quiet").id;
            waiting.send(args!["PRESENCE.EVENTS", "quiet", "AFTER", last, "BLOCK", 0]).unwrap();
            p.ok("PRESENCE.MESSAGE quiet x meanwhile");
            let last = parse_id(&last);
            for _ in 0..100 {
                p.ok(args!["SET", "filler", [b'x'; 1000]]);
            }
            proxy.mend();
            wait_until("the link", AGAIN, || link(&mut r) == "up");
            let after = syncs(&mut p);
            assert_eq!(
                (after.0, after.1 - before.1),
                (before.0, 1),
                "syncs: {before:?}, {after:?}"
            );
            // Who waited at the replica is told at once what it has missed.
            let reply = waiting.recv().unwrap();
            let [id, gap, events] = fields(&reply, ["id", "gap", "events"]);
            assert_eq!((parse_id(&text(id)), gap), ((last.0, last.1 + 1), &Value::Int(0)));
            assert!(texts(events)[0].contains("meanwhile") && texts(events).len() == 1);
            more_events(&mut p, 100);
        });
        sync(&mut p, &mut r);
        let published = by_space(of_spaces(at_p.so_far(&mut p)));
        heard.extend(at_r.so_far(&mut r));
        let heard = by_space(of_spaces(heard));
        assert_eq!(published.len(), SPACES.len());
        let mut missed = 0;
        for (space, published) in &published {
            without_holes(published);
            let (all, some) = (raws(published), raws(&heard[space]));
            let before = all.iter().zip(&some).take_while(|(a, b)| a == b).count();
            assert_eq!(some[before..], all[all.len() - (some.len() - before)..], "{space}");
            assert!(before > 0 && before < some.len(), "{space}: {before} of {}", some.len());
            missed += all.len() - some.len();
            // What the subscriber missed it can have from the replica.
            let last = published[before - 1].str("id");
            let reply = r.ok(args!["PRESENCE.EVENTS", space, "AFTER", last]);
            let [_, gap, events] = fields(&reply, ["id", "gap", "events"]);
            assert_eq!((gap, &texts(events)[..]), (&Value::Int(0), &owned(&all[before..])[..]));
        }
        println!("diskless {diskless}, load {load}: {missed} events missed on the channels");
        assert!(missed > 100, "only {missed} events missed");
        same(&mut p, &mut r);
    }
}

fn owned(raws: &[&str]) -> Vec<String> {
    raws.iter().map(|raw| raw.to_string()).collect()
}

fn by_space(events: Vec<Event>) -> BTreeMap<String, Vec<Event>> {
    let mut spaces: BTreeMap<String, Vec<Event>> = BTreeMap::new();
    for event in events {
        spaces.entry(event.str("space").to_string()).or_default().push(event);
    }
    spaces
}

/// What a client writes into a writable replica is its own affair until the primary's word comes: the server lives,
/// and a full sync makes it right.
#[test]
fn a_writable_replica_is_put_right_by_a_full_sync() {
    let p_server = kept(primary()).start();
    let w_server = kept(replica_of(&p_server)).config("replica-read-only", "no").start();
    let (mut p, mut w) = (p_server.connect(), w_server.connect());
    sync(&mut p, &mut w);
    settle(&mut p);
    sync(&mut p, &mut w);
    let mut at_p = p_server.subscribe(&channels());
    for space in SPACES {
        assert_eq!(w.int(args!["PRESENCE.ONLINE", space, "local", "PX", 100]), 1);
        assert_eq!(w.int(args!["PRESENCE.OFFLINE", space, "stays"]), 1);
    }
    under_load(&p_server, 93, || more_events(&mut p, 150));
    // It ends nothing by itself: the one whom only it knows lapses, and is hidden.
    wait_until("the local ones to lapse", AGAIN, || {
        SPACES.iter().all(|space| w.ints(["PRESENCE.STATUS", space, "local"]) == [0])
    });
    assert_eq!(w.stat("timeouts"), 0);
    without_holes(&of_spaces(at_p.so_far(&mut p)));
    w.ok("REPLICAOF NO ONE");
    w.ok(args!["REPLICAOF", "127.0.0.1", i64::from(p_server.port)]);
    sync(&mut p, &mut w);
    same(&mut p, &mut w);
}
