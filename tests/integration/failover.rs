//! The primary is gone, or hands over: by Sentinel, by hand, by FAILOVER, by a shutdown.

use crate::cluster::{AGREED, FAITHFUL_MS, Given, LATE, Leases, folds_to_nobody, never_too_early};
use crate::harness::*;

use crate::replication::*;
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const SPACES: [&str; 3] = ["s0", "s1", "s2"];
/// Sentinels may stand still with the machine, and then take a pause of half a minute.
const ELECTED: Duration = Duration::from_secs(90);

fn channels() -> Vec<String> {
    SPACES.iter().map(|space| format!("presence:{space}")).collect()
}

fn by_space(events: Vec<Event>) -> BTreeMap<String, Vec<Event>> {
    let mut spaces: BTreeMap<String, Vec<Event>> = BTreeMap::new();
    for event in events {
        spaces.entry(event.str("space").to_string()).or_default().push(event);
    }
    spaces
}

fn of_spaces(messages: Vec<Message>) -> BTreeMap<String, Vec<Event>> {
    let is_ours = |m: &Message| m.channel.starts_with(b"presence:");
    by_space(messages.into_iter().filter(is_ours).map(Event::parse).collect())
}

fn raws(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.raw.as_str()).collect()
}

/// What a server says of its replication. It may end the connection over it: Sentinel makes it do so.
fn replication_of(port: u16) -> BTreeMap<String, String> {
    let reply = Conn::to(port).and_then(|mut c| c.try_cmd("INFO replication").ok());
    let reply = reply.map_or(String::new(), |reply| text(&reply));
    let pairs = reply.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn is_primary(port: u16) -> bool {
    replication_of(port).get("role").is_some_and(|role| role == "master")
}

// ---------------------------------------------------------------------------------------------------------------------
// Sentinels

struct Sentinel {
    dir: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl Sentinel {
    #[track_caller]
    fn start() -> Sentinel {
        let dir = tempfile::Builder::new().prefix("presence-test-").tempdir().unwrap();
        let port = free_port();
        let conf = dir.path().join("sentinel.conf");
        let place = dir.path().display();
        let text = format!("port {port}\nbind 127.0.0.1\ndir {place}\nlogfile {place}/log\n");
        std::fs::write(&conf, text).unwrap();
        let child = Sentinel::run(&conf);
        let sentinel = Sentinel { dir, port, child };
        wait_until("the sentinel", AGREED, || {
            Conn::to(port).is_some_and(|mut c| c.try_cmd("SENTINEL MYID").is_ok())
        });
        sentinel
    }

    fn run(conf: &Path) -> Child {
        Command::new(server_path())
            .arg(conf)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Where clients are to write, as this one sees it.
    fn primary(&self) -> Option<u16> {
        let mut c = Conn::to(self.port)?;
        let reply = c.try_cmd("SENTINEL GET-MASTER-ADDR-BY-NAME presence").ok()?;
        matches!(reply, Value::Array(_)).then(|| texts(&reply))?.get(1)?.parse().ok()
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let mut dump = Dump::new();
            dump.add(&format!("log of the sentinel on port {}", self.port), &log);
            eprintln!("the sentinel on port {}: its log: {}", self.port, dump.write());
        }
    }
}

/// Three that watch a primary, two of whom must agree. They know one another and the replicas when this returns.
#[track_caller]
fn sentinels(primary: u16, replicas: usize) -> Vec<Sentinel> {
    let sentinels: Vec<Sentinel> = (0..3).map(|_| Sentinel::start()).collect();
    for sentinel in &sentinels {
        let mut c = Conn::to(sentinel.port).unwrap();
        c.ok(args!["SENTINEL", "MONITOR", "presence", "127.0.0.1", i64::from(primary), 2]);
        for (name, value) in [("down-after-milliseconds", "1500"), ("failover-timeout", "6000")] {
            c.ok(["SENTINEL", "SET", "presence", name, value]);
        }
    }
    for sentinel in &sentinels {
        let mut c = Conn::to(sentinel.port).unwrap();
        wait_until("the sentinels to know all", AGREED, || {
            let reply = c.ok("SENTINEL MASTER presence");
            let field = |name: &str| {
                pairs(&reply).iter().find(|(key, _)| key == name).map(|(_, v)| text(v)).unwrap()
            };
            field("num-other-sentinels") == "2"
                && field("num-slaves") == replicas.to_string()
                && field("flags") == "master"
        });
    }
    sentinels
}

// ---------------------------------------------------------------------------------------------------------------------
// Clients that look for the primary

/// A client that asks who the primary is whenever it is lost or sent away.
struct Client<'a> {
    primary: &'a (dyn Fn() -> Option<u16> + Sync),
    conn: Option<Conn>,
    /// So often it had to ask again, by the first word of the error.
    retries: BTreeMap<String, usize>,
}

impl<'a> Client<'a> {
    fn new(primary: &'a (dyn Fn() -> Option<u16> + Sync)) -> Self {
        Client { primary, conn: None, retries: BTreeMap::new() }
    }

    #[track_caller]
    fn ask(&mut self, words: impl Args) -> Value {
        let words = words.args();
        let end = Instant::now() + ELECTED;
        loop {
            if self.conn.is_none() {
                self.conn = (self.primary)().and_then(Conn::to);
            }
            let reply = match &mut self.conn {
                Some(c) => c.try_cmd(&words[..]),
                None => Err("lost".into()),
            };
            let error = match reply {
                Ok(value) => return value,
                Err(error) => error,
            };
            let expected = ["lost", "READONLY", "LOADING", "MASTERDOWN", "UNBLOCKED"];
            assert!(
                expected.iter().any(|code| error.starts_with(code)),
                "{}: {error}",
                show(&words)
            );
            assert!(Instant::now() < end, "{}: {error}", show(&words));
            let kind = error.split([' ', ':']).next().unwrap_or("").to_string();
            *self.retries.entry(kind).or_default() += 1;
            self.conn = None;
            thread::sleep(ms(20));
        }
    }
}

/// One who keeps renewing in each space and, unless there are to be no others, some who come and go. The leases that
/// were given.
fn load(
    primary: &(dyn Fn() -> Option<u16> + Sync),
    over: &Over,
    name: &str,
    others: bool,
) -> Leases {
    let (mut client, mut rng, mut leases) = (Client::new(primary), rng(102), Leases::new());
    let faithful = format!("{name}:faithful");
    while !over.yet() {
        for space in SPACES {
            let mut online = |client: &mut Client, user: &str, ttl: i64| {
                let sent = now_ms();
                client.ask(args!["PRESENCE.ONLINE", space, user, "PX", ttl]);
                let given = Given { sent, done: now_ms(), ttl };
                leases.entry((space.to_string(), user.to_string())).or_default().push(given);
            };
            online(&mut client, &faithful, FAITHFUL_MS);
            if others {
                let user = format!("{name}:{}", rng.random_range(0..10));
                if rng.random_bool(0.8) {
                    online(&mut client, &user, rng.random_range(10..400));
                } else {
                    client.ask(args!["PRESENCE.OFFLINE", space, &user]);
                }
            }
        }
        thread::sleep(ms(2));
    }
    println!("{name} had to ask again: {:?}", client.retries);
    leases
}

// ---------------------------------------------------------------------------------------------------------------------
// Clients that follow

/// Follows the spaces at one server as docs/events.md says: subscribes, catches up by EVENTS AFTER, drops what it has. (When
/// Sentinel tells a server to follow another or nobody, it ends the connections of all its clients.)
struct Follower(Arc<Following>);

#[derive(Default)]
struct Following {
    heard: Mutex<BTreeMap<String, Vec<Event>>>,
    /// So often it began, and was told of a gap.
    begun: AtomicUsize,
    gaps: AtomicUsize,
    /// What was published to it twice.
    doubled: Mutex<Vec<Event>>,
    over: AtomicBool,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

impl Follower {
    fn of(server: &Server) -> Follower {
        let (port, following) = (server.port, Arc::new(Following::default()));
        let follower = Follower(following.clone());
        thread::spawn(move || {
            while !following.over.load(Ordering::SeqCst) {
                let _ = following.follow(port);
                thread::sleep(ms(20));
            }
        });
        wait_until("the follower", SOON, || follower.0.begun.load(Ordering::SeqCst) > 0);
        follower
    }
}

impl Following {
    /// Until the connection is lost.
    fn follow(&self, port: u16) -> Result<(), String> {
        let conn = || Conn::to(port).ok_or("lost".to_string());
        let mut sub = Subscriber::by(conn()?, "SUBSCRIBE", &channels())?;
        let mut c = conn()?;
        for space in SPACES {
            let mut words = args!["PRESENCE.EVENTS", space];
            words.extend(self.last(space).iter().flat_map(|last| args!["AFTER", last.str("id")]));
            let reply = c.try_cmd(words)?;
            let [_, gap, events] = fields(&reply, ["id", "gap", "events"]);
            self.gaps.fetch_add(usize::from(*gap != Value::Int(0)), Ordering::SeqCst);
            for payload in texts(events) {
                let payload = payload.into_bytes();
                self.add(Event::parse(Message { channel: Vec::new(), payload, arrived: now_ms() }));
            }
        }
        let caught_up = SPACES.map(|space| (space, self.last(space).map(|event| event.id())));
        self.begun.fetch_add(1, Ordering::SeqCst);
        while !self.over.load(Ordering::SeqCst) {
            let Some(message) = sub.poll(ms(20))? else { continue };
            let event = Event::parse(message);
            let (_, caught_up) =
                caught_up.iter().find(|(space, _)| *space == event.str("space")).unwrap();
            let known = caught_up.is_some_and(|id| event.id() <= id);
            if !known && !self.add(event.clone()) {
                self.doubled.lock().unwrap().push(event);
            }
        }
        Ok(())
    }

    fn last(&self, space: &str) -> Option<Event> {
        self.heard.lock().unwrap().get(space)?.last().cloned()
    }

    /// Whether it is new.
    fn add(&self, event: Event) -> bool {
        let mut heard = self.heard.lock().unwrap();
        let events = heard.entry(event.str("space").to_string()).or_default();
        let is_new = events.last().is_none_or(|last| last.id() < event.id());
        if is_new {
            events.push(event);
        }
        is_new
    }

    /// What it has heard, when it has come as far as a server is.
    #[track_caller]
    fn heard_all_of(&self, c: &mut Conn) -> BTreeMap<String, Vec<Event>> {
        for space in SPACES {
            let id = parse_id(&c.space(space).id);
            wait_until("the follower to come so far", SOON * 2, || {
                let heard = self.heard.lock().unwrap();
                heard.get(space).and_then(|events| events.last()).is_some_and(|e| e.id() >= id)
            });
        }
        let doubled = self.doubled.lock().unwrap();
        assert!(doubled.is_empty(), "published twice: {doubled:?}");
        self.heard.lock().unwrap().clone()
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// A primary is killed

/// Three servers, the first of them the primary.
struct Three {
    nodes: Vec<Server>,
    grace: i64,
}

impl Three {
    #[track_caller]
    fn start(grace: i64) -> Three {
        let with = |builder: Builder| {
            builder
                .config("presence.restart-grace-ms", &grace.to_string())
                .config("presence.history-length", "100000")
        };
        let first = with(primary()).aof().start();
        let others = [0; 2].map(|_| with(replica_of(&first)).aof().start());
        let mut nodes = vec![first];
        nodes.extend(others);
        let mut p = nodes[0].connect();
        nodes[1..].iter().for_each(|node| sync(&mut p, &mut node.connect()));
        Three { nodes, grace }
    }

    fn with_port(&self, port: u16) -> usize {
        self.nodes.iter().position(|node| node.port == port).unwrap()
    }

    /// Kills the primary under load. `primary` tells clients where it is, `promote` sees to it that there is a new one,
    /// `rejoin` that the old one follows it.
    #[track_caller]
    fn lose_the_primary(
        &self,
        primary: &(dyn Fn() -> Option<u16> + Sync),
        promote: impl FnOnce(usize),
        rejoin: impl FnOnce(usize, usize),
    ) {
        let followers: Vec<Follower> = self.nodes.iter().map(Follower::of).collect();
        let over = Over(AtomicBool::new(false));
        let others_over = Over(AtomicBool::new(false));
        let mut leases = Leases::new();
        // Who was killed and when, who came after it and when that was known.
        let (mut killed, mut killed_at, mut heir, mut known, mut over_at) = (0, 0, 0, 0, 0);
        let mut back = None;
        thread::scope(|scope| {
            let (end, end_others) = (EndOnDrop(&over), EndOnDrop(&others_over));
            let faithful = ["a", "b"].map(|name| {
                let over = &over;
                scope.spawn(move || load(primary, over, name, false))
            });
            let others = scope.spawn(|| load(primary, &others_over, "c", true));
            let mut client = Client::new(primary);
            wait_until("the load", SOON, || {
                SPACES.iter().all(|space| {
                    let is_there = args!["PRESENCE.STATUS", space, "a:faithful", "b:faithful"];
                    client.ask(is_there) == Value::Array(vec![Value::Int(1); 2])
                })
            });
            let loaded = Instant::now();
            wait_until("a little load", SOON, || loaded.elapsed() > ms(500));
            killed = self.with_port(primary().unwrap());
            let ghosts_end = now_ms() + 3000;
            for space in SPACES {
                let ghosts = args!["USERS", 3, "ghost1", "ghost2", "ghost3", "PXAT", ghosts_end];
                client.ask([args!["PRESENCE.ONLINE", space], ghosts].concat());
            }
            let mut p = self.nodes[killed].connect();
            for node in self.nodes.iter().filter(|node| node.port != self.nodes[killed].port) {
                sync(&mut p, &mut node.connect());
            }
            killed_at = now_ms();
            self.nodes[killed].stop(Stop::Kill);
            assert!(now_ms() < ghosts_end, "the machine stood still for too long");
            promote(killed);
            let old = self.nodes[killed].port;
            wait_until("a new primary", ELECTED, || {
                primary().is_some_and(|port| port != old && is_primary(port))
            });
            known = now_ms();
            heir = self.with_port(primary().unwrap());
            println!("a new primary {} ms after the kill", known - killed_at);
            let third = (0..3).find(|i| ![killed, heir].contains(i)).unwrap();
            let mut h = self.nodes[heir].connect();
            self.follows(third, heir);
            let info = h.info("stats");
            println!(
                "the other replica: {} partial, {} full syncs",
                info["sync_partial_ok"], info["sync_full"]
            );
            let partial = info["sync_full"] == "0";
            // The old one comes back with all it had, and for some time takes itself for the primary.
            self.nodes[killed].start_again();
            let at_old = self.nodes[killed].subscribe(&channels());
            rejoin(killed, heir);
            self.follows(killed, heir);
            println!("the old primary followed {} ms after the kill", now_ms() - killed_at);
            back = Some((at_old, third, partial));
            wait_until("the ghosts to leave", AGREED, || {
                let ghosts = ["ghost1", "ghost2", "ghost3"];
                SPACES.iter().all(|space| {
                    h.ints([&["PRESENCE.STATUS", space][..], &ghosts].concat()) == [0; 3]
                })
            });
            drop(end_others);
            leases.extend(others.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            wait_until("only the faithful to be left", SOON * 2, || h.stat("users") == 6);
            over_at = now_ms();
            drop(end);
            for worker in faithful {
                leases
                    .extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
        });
        let (mut at_old, third, partial) = back.unwrap();
        let mut h = self.nodes[heir].connect();
        wait_until("all to lapse", SOON * 2, || h.stat("users") == 0);
        for i in [third, killed] {
            sync(&mut h, &mut self.nodes[i].connect());
        }
        // What was heard at the heir, before and after it was promoted, is one log.
        let events = followers[heir].0.heard_all_of(&mut h);
        println!("the follower at the heir began {:?} times", followers[heir].0.begun);
        assert_eq!(followers[heir].0.gaps.load(Ordering::SeqCst), 0);
        assert_eq!(events.len(), SPACES.len());
        events.values().for_each(|events| without_holes(events));
        for events in events.values() {
            let epochs: BTreeSet<i64> = events.iter().map(|e| e.id().0).collect();
            assert_eq!(epochs.len(), 2, "one line of history for each who decided: {epochs:?}");
        }
        folds_to_nobody(&events);
        println!("{} timeouts checked", never_too_early(&events, &leases, self.grace));
        for event in events.values().flatten().filter(|e| e.kind() == "leave") {
            let (user, at) = (event.user(), event.int("at"));
            if ["a:faithful", "b:faithful"].contains(&user) {
                assert!(at > over_at, "a live user is gone: {event:?}");
            } else if user.contains("ghost") {
                within(&event.raw, at, killed_at + self.grace, known + self.grace + LATE);
                assert_eq!(event.str("reason"), "timeout");
            }
        }
        let ghosts = events.values().flatten().filter(|e| e.user().contains("ghost")).count();
        assert_eq!(ghosts, 2 * 3 * SPACES.len());
        // The other replica told the same, if it did not have to be copied anew.
        if partial {
            assert_eq!(followers[third].0.gaps.load(Ordering::SeqCst), 0);
            let told = followers[third].0.heard_all_of(&mut h);
            events.iter().for_each(|(space, events)| assert_eq!(raws(&told[space]), raws(events)));
        }
        // The old primary told nothing but what it was told.
        let told: BTreeSet<&str> = events.values().flat_map(|events| raws(events)).collect();
        while let Some(message) = at_old.try_next(Duration::ZERO) {
            let event = Event::parse(message);
            assert!(told.contains(event.raw.as_str()), "{event:?}");
        }
        let mut old = self.nodes[killed].connect();
        for name in ["joins", "leaves", "timeouts", "events_published"] {
            assert_eq!(old.stat(name), 0, "{name}");
        }
        for i in [third, killed] {
            same(&mut h, &mut self.nodes[i].connect());
        }
    }

    #[track_caller]
    fn follows(&self, replica: usize, primary: usize) {
        let port = self.nodes[primary].port.to_string();
        let wanted = [("role", "slave"), ("master_port", &port), ("master_link_status", "up")];
        wait_until("a replica to follow", ELECTED, || {
            let info = replication_of(self.nodes[replica].port);
            wanted.iter().all(|(name, value)| info.get(*name).is_some_and(|got| got == value))
        });
    }
}

#[test]
fn sentinel_replaces_a_killed_primary() {
    // Longer than Sentinel lets an old primary that comes back take itself for the primary.
    let three = Three::start(20_000);
    let sentinels = sentinels(three.nodes[0].port, 2);
    let primary = || sentinels.iter().find_map(Sentinel::primary);
    three.lose_the_primary(&primary, |_| (), |_, _| ());
}

#[test]
fn a_primary_is_replaced_by_hand() {
    let three = Three::start(3000);
    let leads = AtomicU16::new(three.nodes[0].port);
    let follow = |replica: usize, primary: usize| {
        let port = three.nodes[primary].port;
        three.nodes[replica].connect().ok(args!["REPLICAOF", "127.0.0.1", i64::from(port)]);
    };
    let promote = |_: usize| {
        // The one that has more.
        let offset = |i: usize| -> i64 {
            let info = three.nodes[i].connect().info("replication");
            info["slave_repl_offset"].parse().unwrap()
        };
        let (heir, other) = if offset(1) >= offset(2) { (1, 2) } else { (2, 1) };
        three.nodes[heir].connect().ok("REPLICAOF NO ONE");
        follow(other, heir);
        leads.store(three.nodes[heir].port, Ordering::SeqCst);
    };
    three.lose_the_primary(&|| Some(leads.load(Ordering::SeqCst)), promote, follow);
}

// ---------------------------------------------------------------------------------------------------------------------
// A primary hands over, or fails to

/// Runs `act` while people come, go and lapse at a server that stays, or comes to be, the primary.
#[track_caller]
fn while_people_come_and_go(ports: &[u16], act: impl FnOnce()) {
    let over = Over(AtomicBool::new(false));
    let primary = || ports.iter().copied().find(|port| is_primary(*port));
    thread::scope(|scope| {
        let end = EndOnDrop(&over);
        for name in ["a", "b"] {
            let (primary, over) = (&primary, &over);
            scope.spawn(move || load(primary, over, name, true));
        }
        act();
        drop(end);
    });
}

fn failover_state(c: &mut Conn) -> String {
    c.info("replication")["master_failover_state"].clone()
}

/// A replica that does not catch up: the time runs out, or somebody calls it off. The server is paused meanwhile.
#[test]
fn failovers_that_come_to_nothing() {
    let a = primary().start();
    let b = replica_of(&a).start();
    let (mut ca, mut cb) = (a.connect(), b.connect());
    sync(&mut ca, &mut cb);
    let [mut at_a, mut at_b] = [&a, &b].map(|node| node.subscribe(&channels()));
    while_people_come_and_go(&[a.port], || {
        for round in 0..6 {
            let before = ca.stat("timeouts");
            wait_until("a little load", SOON, || ca.stat("timeouts") > before + 20);
            signal(b.pid(), Signal::STOP);
            ca.ok("PRESENCE.ONLINE s0 unheard PX 100");
            if round % 2 == 0 {
                ca.ok(args!["FAILOVER", "TO", "127.0.0.1", i64::from(b.port), "TIMEOUT", 300]);
            } else {
                ca.ok("FAILOVER TIMEOUT 60000");
                assert_eq!(failover_state(&mut ca), "waiting-for-sync");
                let paused = Instant::now();
                wait_until("leases to end meanwhile", SOON, || paused.elapsed() > ms(300));
                ca.ok("FAILOVER ABORT");
            }
            wait_until("the failover to be over", SOON * 2, || {
                failover_state(&mut ca) == "no-failover"
            });
            signal(b.pid(), Signal::CONT);
            assert_eq!(ca.info("replication")["role"], "master");
        }
    });
    wait_until("all to lapse", SOON * 2, || ca.stat("users") == 0);
    sync(&mut ca, &mut cb);
    let events = of_spaces(at_a.so_far(&mut ca));
    events.values().for_each(|events| without_holes(events));
    folds_to_nobody(&events);
    let told = of_spaces(at_b.so_far(&mut cb));
    for (space, events) in &events {
        assert!(events.len() > 100, "only {} events", events.len());
        assert_eq!(raws(&told[space]), raws(events));
    }
    same(&mut ca, &mut cb);
}

/// FORCE hands over to a replica that lacks something: that is lost, as with a crash. What it had goes on without a hole.
#[test]
fn a_forced_failover_loses_what_the_replica_had_not() {
    let a = primary().config("presence.restart-grace-ms", "500").start();
    let proxy = Proxy::to(a.port);
    let b = primary()
        .config("presence.restart-grace-ms", "500")
        .line(&format!("replicaof 127.0.0.1 {}", proxy.port))
        .start();
    let (mut ca, mut cb) = (a.connect(), b.connect());
    sync(&mut ca, &mut cb);
    let [mut at_a, mut at_b] = [&a, &b].map(|node| node.subscribe(&channels()));
    ca.ok("PRESENCE.ONLINE s0 both EX 100");
    sync(&mut ca, &mut cb);
    let mut lost = 0;
    while_people_come_and_go(&[a.port, b.port], || {
        let before = ca.stat("timeouts");
        wait_until("a little load", SOON, || ca.stat("timeouts") > before + 20);
        proxy.hold();
        lost = ca.int("PRESENCE.ONLINE s0 lost EX 100");
        ca.ok(args!["FAILOVER", "TO", "127.0.0.1", i64::from(b.port), "TIMEOUT", 300, "FORCE"]);
        wait_until("the failover", SOON * 2, || {
            if ca.info("replication")["role"] == "slave" {
                proxy.cut();
            }
            cb.info("replication")["role"] == "master"
        });
        wait_until("the old one to follow", AGREED, || {
            let info = ca.info("replication");
            info["role"] == "slave" && info["master_link_status"] == "up"
        });
        let before = cb.stat("timeouts");
        wait_until("a little more load", AGREED, || cb.stat("timeouts") > before + 20);
    });
    assert_eq!(lost, 1);
    wait_until("all to lapse", SOON * 2, || cb.stat("users") == 1);
    sync(&mut cb, &mut ca);
    for c in [&mut ca, &mut cb] {
        assert_eq!(c.ints("PRESENCE.STATUS s0 both lost"), [1, 0]);
    }
    let heard_a: Vec<Event> = of_spaces(at_a.so_far(&mut ca)).into_values().flatten().collect();
    assert!(heard_a.iter().any(|event| event.brief() == "join lost"));
    assert_eq!(cb.int("PRESENCE.OFFLINE s0 both"), 1);
    let events = of_spaces(at_b.so_far(&mut cb));
    events.values().for_each(|events| without_holes(events));
    folds_to_nobody(&events);
    same(&mut cb, &mut ca);
}

/// A shutdown waits for a replica that lags; then nothing that was acknowledged is lost, and nothing is told twice.
#[test]
fn a_shutdown_waits_for_the_replica() {
    let a = primary().config("shutdown-timeout", "60").start();
    let proxy = Proxy::to(a.port);
    let b = primary()
        .config("presence.restart-grace-ms", "500")
        .line(&format!("replicaof 127.0.0.1 {}", proxy.port))
        .start();
    let (mut ca, mut cb) = (a.connect(), b.connect());
    sync(&mut ca, &mut cb);
    let mut at_b = b.subscribe(&channels());
    let acknowledged = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut c = a.connect();
            // Until the server is gone: those it has answered. Half of them soon lapse.
            (0..)
                .map_while(|i| {
                    let (space, ttl) = (SPACES[i % 3], if i % 2 == 0 { 100_000 } else { 50 });
                    let user = format!("u{i}");
                    let words = args!["PRESENCE.ONLINE", space, user, "PX", ttl];
                    c.try_cmd(words).ok().map(|_| (space, user))
                })
                .collect::<Vec<_>>()
        });
        wait_until("a little load", SOON, || ca.stat("timeouts") > 50);
        proxy.hold();
        let more = ca.stat("joins") + 100;
        wait_until("a little more", SOON, || ca.stat("joins") > more);
        let mut shutdown = a.connect();
        shutdown.send("SHUTDOWN NOSAVE").unwrap();
        wait_until("the shutdown to wait", SOON, || a.log().contains("before shutting down"));
        let paused = Instant::now();
        wait_until("leases to end meanwhile", SOON, || paused.elapsed() > ms(300));
        assert!(a.alive());
        proxy.mend();
        writer.join().unwrap()
    });
    a.stopped_by_itself();
    wait_until("the replica to notice", AGREED, || {
        cb.info("replication")["master_link_status"] == "down"
    });
    cb.ok("REPLICAOF NO ONE");
    wait_until("who does not come back to leave", SOON * 2, || {
        cb.stat("users") == acknowledged.iter().filter(|(_, user)| is_even(user)).count() as i64
    });
    for (space, user) in &acknowledged {
        assert_eq!(cb.ints(args!["PRESENCE.STATUS", space, user]), [i64::from(is_even(user))]);
    }
    let events = of_spaces(at_b.so_far(&mut cb));
    let joined: BTreeSet<&str> =
        events.values().flatten().filter(|e| e.kind() == "join").map(Event::user).collect();
    assert!(acknowledged.iter().all(|(_, user)| joined.contains(user.as_str())));
    for events in events.values() {
        without_holes(events);
        let mut roster = Roster::new();
        events.iter().for_each(|event| event.fold(&mut roster));
    }
    println!("{} acknowledged, {} joined", acknowledged.len(), joined.len());
}

fn is_even(user: &str) -> bool {
    user[1..].parse::<u64>().unwrap() % 2 == 0
}

/// min-replicas-to-write: who is cut off from its replicas takes nothing in, not even a renewal; leases end as ever.
#[test]
fn without_its_replicas_a_primary_takes_nothing_in() {
    let a =
        primary().config("min-replicas-to-write", "1").config("min-replicas-max-lag", "1").start();
    let proxy = Proxy::to(a.port);
    let b = primary().line(&format!("replicaof 127.0.0.1 {}", proxy.port)).start();
    let (mut ca, mut cb) = (a.connect(), b.connect());
    sync(&mut ca, &mut cb);
    wait_until("a good replica", AGREED, || {
        ca.info("replication").get("min_slaves_good_slaves").is_some_and(|n| n == "1")
    });
    let mut at_a = a.subscribe(&channels());
    assert_eq!(ca.int("PRESENCE.ONLINE s0 leaves PX 4000"), 1);
    assert_eq!(ca.int("PRESENCE.ONLINE s0 stays EX 100"), 1);
    sync(&mut ca, &mut cb);
    proxy.cut();
    wait_until("the refusal", AGREED, || {
        ca.try_cmd("PRESENCE.ONLINE s0 stays EX 100").is_err_and(|e| e.starts_with("NOREPLICAS"))
    });
    for command in ["OFFLINE s0 stays", "MESSAGE s0 stays hello", "CLOSE s0", "ONLINE s1 x"] {
        let error = ca.err(format!("PRESENCE.{command}"));
        assert!(error.starts_with("NOREPLICAS"), "{command}: {error}");
    }
    let told: Vec<String> = at_a.events(3, SOON * 2).iter().map(Event::brief).collect();
    assert_eq!(told, ["join leaves", "join stays", "leave leaves (timeout)"]);
    assert_eq!(ca.int("PRESENCE.COUNT s0"), 1);
    proxy.mend();
    wait_until("to be taken in again", AGREED, || {
        ca.try_cmd("PRESENCE.ONLINE s0 stays EX 100").is_ok()
    });
    sync(&mut ca, &mut cb);
    same(&mut ca, &mut cb);
}

/// The network parts a primary and its replica, the replica is promoted, and for a time both decide. When it is over the
/// old one takes over the other's state, and what it decided alone is gone; ids say nothing of that, `master_replid` does.
#[test]
fn of_two_primaries_one_is_overruled() {
    let with = |builder: Builder| builder.config("presence.restart-grace-ms", "4000");
    let a = with(primary()).start();
    let proxy = Proxy::to(a.port);
    let b = with(primary()).line(&format!("replicaof 127.0.0.1 {}", proxy.port)).start();
    let (mut ca, mut cb) = (a.connect(), b.connect());
    sync(&mut ca, &mut cb);
    let [mut at_a, mut at_b] = [&a, &b].map(|node| node.subscribe(&channels()));
    ca.ok("PRESENCE.ONLINE s0 both EX 100");
    ca.ok("PRESENCE.ONLINE s0 ghost PX 2500");
    sync(&mut ca, &mut cb);
    let replid = |c: &mut Conn| c.info("replication")["master_replid"].clone();
    let before = replid(&mut ca);
    assert_eq!(replid(&mut cb), before);
    proxy.cut();
    let leaves_at_b = now_ms() + 4000;
    cb.ok("REPLICAOF NO ONE");
    ca.ok("PRESENCE.ONLINE s0 only_a EX 100");
    ca.ok("PRESENCE.OFFLINE s0 both");
    cb.ok("PRESENCE.ONLINE s0 only_b EX 100");
    let briefs = |events: Vec<Event>| events.iter().map(Event::brief).collect::<Vec<_>>();
    let alone =
        ["join both", "join ghost", "join only_a", "leave both (offline)", "leave ghost (timeout)"];
    assert_eq!(briefs(at_a.events(5, SOON)), alone);
    // The ghost leaves at each of them.
    let at_heir = at_b.events(4, SOON);
    within("the leave", at_heir[3].int("at"), leaves_at_b, leaves_at_b + LATE);
    assert_eq!(
        briefs(at_heir),
        ["join both", "join ghost", "join only_b", "leave ghost (timeout)"]
    );
    let last_at_a = ca.space("s0").id;
    ca.ok(args!["REPLICAOF", "127.0.0.1", i64::from(b.port)]);
    sync(&mut cb, &mut ca);
    // Nothing is told of the change itself, and what it decided alone is gone.
    assert!(of_spaces(at_a.so_far(&mut ca)).is_empty());
    assert_eq!(ca.space("s0").names(), ["both", "only_b"]);
    assert_ne!(replid(&mut ca), before);
    assert_eq!(replid(&mut ca), replid(&mut cb));
    let reply = ca.ok(args!["PRESENCE.EVENTS", "s0", "AFTER", last_at_a]);
    let [_, gap, _] = fields(&reply, ["id", "gap", "events"]);
    assert_eq!(*gap, Value::Int(1), "it has seen further than the new primary is");
    cb.ok("PRESENCE.OFFLINE s0 only_b");
    sync(&mut cb, &mut ca);
    let (told_a, told_b) = (at_a.so_far(&mut ca), at_b.so_far(&mut cb));
    let (told_a, told_b) = (of_spaces(told_a), of_spaces(told_b));
    assert_eq!(raws(&told_a["s0"]), raws(&told_b["s0"]));
    assert_eq!(told_a["s0"][0].brief(), "leave only_b (offline)");
    same(&mut cb, &mut ca);
}

/// Promoted and told to follow again, before it has looked at its spaces: it decides no longer, so it grants nothing.
#[test]
fn a_promotion_that_is_taken_back_grants_nothing() {
    let a = primary().start();
    let proxy = Proxy::to(a.port);
    let b = primary().line(&format!("replicaof 127.0.0.1 {}", proxy.port)).start();
    let (mut ca, mut cb) = (a.connect(), b.connect());
    sync(&mut ca, &mut cb);
    let mut at_b = b.subscribe(&channels());
    let ends = now_ms() + 2000;
    ca.ok(args!["PRESENCE.ONLINE", "s0", "ghost", "PXAT", ends]);
    ca.ok("PRESENCE.ONLINE s0 stays EX 100");
    sync(&mut ca, &mut cb);
    proxy.cut();
    // In one go, so that no timer comes in between.
    let follow = args!["REPLICAOF", "127.0.0.1", i64::from(proxy.port)];
    let replies = cb.batch([args!["REPLICAOF", "NO", "ONE"], follow]);
    assert!(replies.iter().all(|reply| reply.is_ok()), "{replies:?}");
    sleep_until(ends);
    assert_eq!(cb.space("s0").names(), ["stays"]);
    assert_eq!(cb.int("PRESENCE.COUNT s0"), 1);
    assert_eq!(of_spaces(at_b.so_far(&mut cb))["s0"].len(), 2);
    assert_eq!((cb.stat("timeouts"), cb.stat("events_published")), (0, 0));
    proxy.mend();
    wait_until("the ghost to leave", SOON, || ca.stat("timeouts") == 1);
    sync(&mut ca, &mut cb);
    same(&mut ca, &mut cb);
}
