//! Digests and counts: what followers of large spaces receive.

use crate::harness::*;
use crate::history::ask;
use crate::replication::{primary, replica_of, sync};
use rand::Rng;
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};

type Id = (i64, u64);
/// joined_at and metadata, by user and session.
type Sessions = BTreeMap<(String, String), (i64, Json)>;

const DIGESTS: &str = "presence-digest:";
const COUNTS: &str = "presence-count:";

fn with_interval(interval: u64) -> Builder {
    Server::builder().config("presence.digest-interval-ms", &interval.to_string())
}

fn json(message: Message) -> Json {
    serde_json::from_slice(&message.payload).unwrap()
}

#[track_caller]
fn next(subscriber: &mut Subscriber) -> Json {
    json(subscriber.next(SOON))
}

#[track_caller]
fn id(digest: &Json, key: &str) -> Id {
    parse_id(digest[key].as_str().unwrap())
}

/// Whether these are the keys. Their order is tested in the core.
fn has_keys(value: &Json, keys: &[&str]) -> bool {
    let found: BTreeSet<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    found == keys.iter().copied().collect()
}

fn text_of(value: &Json, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_string()
}

fn users_of(digest: &Json, list: &str) -> Vec<String> {
    let entries = digest[list].as_array().cloned().unwrap_or_default();
    entries.iter().map(|entry| text_of(entry, "user")).collect()
}

fn sessions(c: &mut Conn, space: &str) -> (Id, Sessions) {
    let read = Space::parse(&c.ok(["PRESENCE.SPACE", space, "WITHSESSIONS"]));
    let mut sessions = Sessions::new();
    for (user, of_user) in &read.members {
        for session in of_user {
            let meta = session
                .meta
                .as_ref()
                .map_or(Json::Null, |meta| serde_json::from_str(meta).unwrap());
            sessions.insert((user.clone(), session.session.clone()), (session.joined_at, meta));
        }
    }
    (parse_id(&read.id), sessions)
}

/// Follows digests by the rules of the contract.
struct Follower {
    space: String,
    digests: Subscriber,
    id: Id,
    sessions: Sessions,
    snapshots: usize,
    applied: usize,
}

impl Follower {
    fn begin(server: &Server, c: &mut Conn, space: &str) -> Follower {
        let digests = server.subscribe(&[format!("{DIGESTS}{space}")]);
        let (id, sessions) = sessions(c, space);
        Follower { space: space.into(), digests, id, sessions, snapshots: 1, applied: 0 }
    }

    fn snapshot(&mut self, c: &mut Conn) {
        (self.id, self.sessions) = sessions(c, &self.space);
        self.snapshots += 1;
    }

    #[track_caller]
    fn follow(&mut self, digest: &Json, c: &mut Conn) {
        let (from, to) = (id(digest, "from"), id(digest, "to"));
        if to <= self.id {
            return;
        }
        if from > self.id || digest["more"] == true {
            return self.snapshot(c);
        }
        if from < self.id {
            let told = ask(c, &format!("{} AFTER {}-{}", self.space, self.id.0, self.id.1));
            if told.gap {
                return self.snapshot(c);
            }
            for event in told.events.iter().filter(|event| event.id() <= to) {
                let session = event.get("session").as_str().unwrap_or_default();
                let who = (event.user().to_string(), session.to_string());
                match event.kind() {
                    "join" | "add" | "update" => {
                        let entry = (event.int("joined_at"), event.get("meta").clone());
                        self.sessions.insert(who, entry);
                    }
                    "remove" | "leave" => drop(self.sessions.remove(&who)),
                    "close" => self.sessions.clear(),
                    _ => {}
                }
            }
            self.id = to;
            return;
        }
        let list = |key: &str| digest[key].as_array().cloned().unwrap_or_default();
        let who = |entry: &Json| (text_of(entry, "user"), text_of(entry, "session"));
        if digest["closed"] == true {
            self.sessions.clear();
        }
        for entry in list("left") {
            // A snapshot does not show who has expired, also before the leave.
            self.sessions.remove(&who(&entry));
        }
        for entry in list("joined") {
            let value = (entry["joined_at"].as_i64().unwrap(), entry["meta"].clone());
            self.sessions.insert(who(&entry), value);
        }
        for entry in list("updated") {
            self.sessions.get_mut(&who(&entry)).unwrap().1 = entry["meta"].clone();
        }
        (self.id, self.applied) = (to, self.applied + 1);
    }

    /// Until it is where the space is.
    #[track_caller]
    fn catch_up(&mut self, c: &mut Conn) {
        let goal = parse_id(&c.space(&self.space).id);
        while self.id < goal {
            let digest = next(&mut self.digests);
            self.follow(&digest, c);
        }
        assert_eq!((self.id, &self.sessions), (goal, &sessions(c, &self.space).1));
    }
}

#[test]
fn digests_have_the_net_changes_of_an_interval() {
    let server = with_interval(300).start();
    let mut c = server.connect();
    let mut digests = server.subscribe(&[format!("{DIGESTS}room")]);
    let mut counts = server.subscribe(&[format!("{COUNTS}room")]);
    c.ok("PRESENCE.ONLINE room a META 1");
    let first = next(&mut digests);
    assert!(
        has_keys(&first, &["space", "type", "from", "to", "users", "sessions", "joined", "at"]),
        "{first}"
    );
    assert_eq!((first["space"].as_str(), first["type"].as_str()), (Some("room"), Some("digest")));
    assert_eq!((id(&first, "from"), id(&first, "to").1), ((0, 0), 1));
    let joined_at = c.user("room", "a").unwrap().session("").joined_at;
    assert_eq!(
        first["joined"],
        serde_json::json!([{"user": "a", "joined_at": joined_at, "meta": 1}])
    );
    let count = next(&mut counts);
    assert!(has_keys(&count, &["space", "users", "sessions", "id", "at"]), "{count}");
    assert_eq!((count["users"].as_i64(), count["sessions"].as_i64()), (Some(1), Some(1)));
    assert_eq!(count["id"], first["to"]);
    // What follows comes together. Who comes and goes in between is not in it, nor are messages.
    c.ok("PRESENCE.ONLINE room b SESSION phone");
    c.ok("PRESENCE.ONLINE room c");
    c.ok("PRESENCE.OFFLINE room c");
    c.ok("PRESENCE.ONLINE room a META {\"x\":2}");
    c.ok("PRESENCE.ONLINE room d");
    c.ok("PRESENCE.MESSAGE room d hello");
    let second = next(&mut digests);
    assert!(second["at"].as_i64().unwrap() - first["at"].as_i64().unwrap() >= 300);
    assert_eq!((&second["from"], id(&second, "to").1), (&first["to"], 7));
    assert_eq!(
        (second["users"].as_i64(), users_of(&second, "joined")),
        (Some(3), vec!["b".into(), "d".into()])
    );
    assert_eq!(second["joined"][0]["session"], "phone");
    assert_eq!(second["updated"], serde_json::json!([{"user": "a", "meta": {"x": 2}}]));
    assert!(second["left"].is_null() && second["more"].is_null());
    assert_eq!(next(&mut counts)["users"], 3);
    // Gone and back is a join, gone is a leave with its reason, and metadata that was cleared is absent.
    c.ok("PRESENCE.OFFLINE room b");
    c.ok("PRESENCE.ONLINE room b SESSION phone");
    c.ok("PRESENCE.ONLINE room a META null");
    c.ok("PRESENCE.ONLINE room d PX 1");
    let third = next(&mut digests);
    assert_eq!(users_of(&third, "joined"), ["b"]);
    assert_eq!(third["left"], serde_json::json!([{"user": "d", "reason": "timeout"}]));
    assert_eq!(third["updated"], serde_json::json!([{"user": "a"}]));
    assert_eq!((&third["from"], next(&mut counts)["users"].as_i64()), (&second["to"], Some(2)));
    // CLOSE is told at once, and who is there is gone with it.
    c.ok("PRESENCE.ONLINE room e");
    c.ok("PRESENCE.CLOSE room");
    let closed = digests.so_far(&mut c).into_iter().map(json).next_back().unwrap();
    assert_eq!((closed["closed"].as_bool(), closed["users"].as_i64()), (Some(true), Some(0)));
    assert!(
        has_keys(&closed, &["space", "type", "from", "to", "users", "sessions", "closed", "at"]),
        "{closed}"
    );
    let last = counts.so_far(&mut c).into_iter().map(json).next_back().unwrap();
    assert_eq!((last["sessions"].as_i64(), &last["id"]), (Some(0), &closed["to"]));
}

/// Whatever happens, and whatever is missed.
#[test]
fn digests_make_exactly_the_snapshot() {
    let server = with_interval(30).config("presence.digest-max-changes", "40").start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE room first EX 600");
    let mut followers: Vec<Follower> =
        (0..3).map(|_| Follower::begin(&server, &mut c, "room")).collect();
    let mut rng = rng(7);
    for round in 0..60 {
        for _ in 0..rng.random_range(1..30) {
            let (user, session) = (rng.random_range(0..12), rng.random_range(0..2));
            match rng.random_range(0..10) {
                0..5 => drop(c.ok(format!(
                    "PRESENCE.ONLINE room u{user} SESSION s{session} PX {}",
                    rng.random_range(5..500)
                ))),
                5 => drop(c.ok(format!(
                    "PRESENCE.ONLINE room u{user} META {} PX 300",
                    rng.random_range(0..3)
                ))),
                6 => drop(c.ok(format!("PRESENCE.OFFLINE room u{user}"))),
                7 => {
                    drop(c.ok(format!("PRESENCE.OFFLINE room u{user} SESSION s{session} LINGER 5")))
                }
                8 => drop(c.ok("PRESENCE.MESSAGE room first hello")),
                _ if round % 10 == 0 => {
                    let list: Vec<String> = (0..60).map(|n| format!("crowd{n}")).collect();
                    c.ok(format!("PRESENCE.ONLINE room USERS 60 {} PX 100", list.join(" ")));
                }
                _ => {}
            }
        }
        // One misses digests, one begins in the middle of an interval.
        if round % 7 == 0 {
            followers[1].digests.so_far(&mut c);
        }
        if round % 11 == 0 {
            followers[2] = Follower::begin(&server, &mut c, "room");
        }
        if round % 4 == 0 {
            // One more change, so that there is a digest to wait for.
            c.ok(format!("PRESENCE.ONLINE room first META {round} EX 600"));
            let digest = next(&mut followers[0].digests);
            followers[0].follow(&digest, &mut c);
        }
        for follower in &mut followers {
            while let Some(message) = follower.digests.try_next(ms(0)) {
                follower.follow(&json(message), &mut c);
            }
        }
    }
    c.ok("PRESENCE.OFFLINE room first");
    wait_until("all to leave", SOON, || c.stat("sessions") == 0);
    c.ok("PRESENCE.ONLINE room last");
    followers.iter_mut().for_each(|follower| follower.catch_up(&mut c));
    assert!(
        followers[0].applied > 5,
        "{} digests, {} snapshots",
        followers[0].applied,
        followers[0].snapshots
    );
}

#[test]
fn digests_of_a_crowd_say_that_there_is_more() {
    let server = with_interval(100).config("presence.digest-max-changes", "100").start();
    let mut c = server.connect();
    let mut digests = server.subscribe(&[format!("{DIGESTS}room")]);
    let crowd = |n: usize| (0..n).map(|n| format!("user{n}")).collect::<Vec<_>>().join(" ");
    c.ok(format!("PRESENCE.ONLINE room USERS 100 {} EX 600", crowd(100)));
    let first = next(&mut digests);
    assert_eq!(users_of(&first, "joined").len(), 100);
    c.ok(format!("PRESENCE.ONLINE room USERS 201 {} EX 600", crowd(201)));
    let second = next(&mut digests);
    assert!(
        has_keys(&second, &["space", "type", "from", "to", "users", "sessions", "more", "at"]),
        "{second}"
    );
    assert_eq!((second["more"].as_bool(), second["users"].as_i64()), (Some(true), Some(201)));
    assert_eq!(second["from"], first["to"]);
    // The chain goes on.
    c.ok("PRESENCE.OFFLINE room user7");
    let third = next(&mut digests);
    assert_eq!(
        (users_of(&third, "left"), &third["from"]),
        (vec!["user7".to_string()], &second["to"])
    );
    // A million leases that end do not make a million messages.
    c.ok(format!("PRESENCE.ONLINE room USERS 201 {} PX 1", crowd(201)));
    wait_until("all to leave", SOON, || c.stat("sessions") == 0);
    loop {
        let digest = next(&mut digests);
        if digest["users"] == 0 {
            break;
        }
    }
}

#[test]
fn digests_follow_a_rename_and_end_with_the_key() {
    let server = with_interval(400).start();
    let mut c = server.connect();
    let mut all = server.psubscribe(&["presence-digest:*", "presence-count:*"]);
    let mut next_on = |channel: &str| loop {
        let message = all.next(SOON);
        if message.channel == channel.as_bytes() {
            break json(message);
        }
        assert!(!message.channel.starts_with(b"presence-digest:"), "{message:?}");
    };
    c.ok("PRESENCE.ONLINE old a");
    let first = next_on("presence-digest:old");
    c.ok("PRESENCE.ONLINE old b");
    c.ok("RENAME old new");
    let second = next_on("presence-digest:new");
    assert_eq!(
        (&second["from"], users_of(&second, "joined")),
        (&first["to"], vec!["b".to_string()])
    );
    assert_eq!(second["space"], "new");
    // In another database it goes on too.
    c.ok("PRESENCE.ONLINE new c");
    c.ok("MOVE new 2");
    let third = next_on("presence-digest:new");
    assert_eq!(
        (&third["from"], users_of(&third, "joined")),
        (&second["to"], vec!["c".to_string()])
    );
    c.ok("SELECT 2");
    // A copy has a chain of its own.
    c.ok("COPY new copy");
    c.ok("PRESENCE.ONLINE copy d");
    let copied = next_on("presence-digest:copy");
    assert_eq!(
        (&copied["from"], users_of(&copied, "joined")),
        (&third["to"], vec!["d".to_string()])
    );
    // What is pending goes with the key, and a space made again begins anew.
    for (delete, db) in [("DEL new", 2), ("FLUSHDB", 2), ("FLUSHALL ASYNC", 2), ("UNLINK new", 2)] {
        c.ok(["SELECT", &db.to_string()]);
        c.ok("PRESENCE.ONLINE new e");
        c.ok("PRESENCE.ONLINE new f");
        let lost = c.space("new").id;
        c.ok(delete);
        // Later than an interval would end, another space shows that nothing was published in between.
        let deleted = now_ms();
        sleep_until(deleted + 500);
        c.ok("PRESENCE.ONLINE new z");
        let mut digest = next_on("presence-digest:new");
        // What was published before the deletion.
        while users_of(&digest, "joined") != ["z"] {
            assert!(digest["at"].as_i64().unwrap() <= deleted, "{delete}: {digest}");
            digest = next_on("presence-digest:new");
        }
        assert_eq!(id(&digest, "from"), (0, 0), "{delete}");
        assert!(id(&digest, "to").0 > parse_id(&lost).0);
        c.ok("DEL new");
    }
}

/// Nobody who counts is left with somebody who is gone, also where nothing keeps the key.
#[test]
fn digests_are_published_before_an_empty_space_is_deleted() {
    let server = with_interval(60_000).config("presence.history-length", "0").start();
    let mut c = server.connect();
    let mut follower = Follower::begin(&server, &mut c, "room");
    let mut counts = server.subscribe(&[format!("{COUNTS}room")]);
    c.ok("PRESENCE.ONLINE room a");
    c.ok("PRESENCE.ONLINE room b");
    c.ok("PRESENCE.OFFLINE room USERS 2 a b");
    assert_eq!(c.int("EXISTS room"), 0);
    let [first, second] = [0; 2].map(|_| next(&mut follower.digests));
    follower.follow(&first, &mut c);
    follower.follow(&second, &mut c);
    assert_eq!((follower.sessions.len(), follower.applied), (0, 2));
    let told: Vec<_> =
        counts.so_far(&mut c).into_iter().map(|m| json(m)["users"].as_i64().unwrap()).collect();
    assert_eq!(told, [1, 0]);
}

#[test]
fn digests_are_only_where_the_setting_says() {
    let server = Server::with(&[(
        "presence.rules",
        "big:* digest-interval-ms=50; tagged digest-interval-ms=60000",
    )]);
    let mut c = server.connect();
    let mut all = server.psubscribe(&["presence-*"]);
    c.ok("PRESENCE.ONLINE small a");
    c.ok("PRESENCE.ONLINE big:1 a");
    let [digest, count] = [0; 2].map(|_| all.next(SOON));
    assert_eq!(
        (&digest.channel[..], &count.channel[..]),
        (&b"presence-digest:big:1"[..], &b"presence-count:big:1"[..])
    );
    // A change of the interval holds at once for what is pending.
    c.ok("PRESENCE.ONLINE tagged a");
    c.ok("PRESENCE.ONLINE tagged b");
    assert_eq!(all.so_far(&mut c).len(), 2);
    c.ok(["CONFIG", "SET", "presence.rules", "tagged digest-interval-ms=20"]);
    assert_eq!(users_of(&next(&mut all), "joined"), ["b"]);
    assert_eq!(next(&mut all)["users"], 2);
    // Switched off and on again, the chain is another.
    c.ok(["CONFIG", "SET", "presence.rules", ""]);
    let before = c.space("tagged").id;
    c.ok("PRESENCE.ONLINE tagged c");
    c.ok(["CONFIG", "SET", "presence.digest-interval-ms", "20"]);
    let middle = c.space("tagged").id;
    assert_ne!(before, middle);
    c.ok("PRESENCE.ONLINE tagged d");
    let digest = next(&mut all);
    assert_eq!(
        (digest["from"].as_str(), users_of(&digest, "joined")),
        (Some(middle.as_str()), vec!["d".to_string()])
    );
    // In sharded mode both are made like the channel of events.
    c.ok("CONFIG SET presence.channel-mode sharded presence.digest-prefix d: presence.count-prefix c:");
    let mut sharded = server.ssubscribe(&["d:{s}", "c:{s}"]);
    c.ok("PRESENCE.ONLINE s a");
    let mut channels = [0; 2].map(|_| sharded.next(SOON).channel);
    channels.sort();
    assert_eq!(channels, [b"c:{s}", b"d:{s}"]);
}

#[test]
fn digests_wait_while_the_server_is_paused() {
    let server = with_interval(50).start();
    let (mut c, mut other) = (server.connect(), server.connect());
    let mut digests = server.subscribe(&[format!("{DIGESTS}room")]);
    c.ok("PRESENCE.ONLINE room a");
    c.ok("PRESENCE.ONLINE room b");
    let paused = now_ms();
    c.ok("CLIENT PAUSE 400 WRITE");
    assert_eq!(users_of(&next(&mut digests), "joined"), ["a"]);
    let second = digests.next(SOON);
    assert!(second.arrived >= paused + 350, "{} ms after the pause began", second.arrived - paused);
    assert_eq!(users_of(&json(second), "joined"), ["b"]);
    assert_eq!(other.int("PRESENCE.COUNT room"), 2);
    assert!(server.alive() && !server.crashed());
}

/// A replica publishes nothing of its own, and after a promotion the chain begins with the last event that is known.
#[test]
fn digests_begin_anew_after_a_promotion() {
    let first = primary().config("presence.digest-interval-ms", "60000").start();
    let second = replica_of(&first).config("presence.digest-interval-ms", "100").start();
    let (mut c, mut r) = (first.connect(), second.connect());
    c.ok("PRESENCE.ONLINE room start EX 600");
    sync(&mut c, &mut r);
    let mut follower = Follower::begin(&second, &mut r, "room");
    // Pending at the primary, for long.
    c.ok("PRESENCE.ONLINE room USERS 3 a b c EX 600");
    sync(&mut c, &mut r);
    assert!(follower.digests.so_far(&mut r).len() <= 1);
    first.stop(Stop::Kill);
    r.ok("REPLICAOF NO ONE");
    let known = parse_id(&r.space("room").id);
    r.ok("PRESENCE.ONLINE room d EX 600");
    let digest = next(&mut follower.digests);
    assert_eq!((id(&digest, "from"), users_of(&digest, "joined")), (known, vec!["d".to_string()]));
    follower.follow(&digest, &mut r);
    assert_eq!((follower.snapshots, follower.sessions.len()), (2, 5), "from is later than its id");
    r.ok("PRESENCE.OFFLINE room a");
    follower.catch_up(&mut r);
    assert_eq!((follower.snapshots, follower.applied), (2, 1));
    // And after a restart.
    second.restart(Stop::Save);
}
