//! Three primaries, three replicas: events reach every node once, slots move with people in them, failovers lose
//! nobody.

use crate::examples::Language;
use crate::harness::*;
use rand::Rng;
use rand::seq::IndexedRandom;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Leases of those who keep renewing. Longer than this machine ever stands still.
pub const FAITHFUL_MS: i64 = 2500;
/// For what a whole cluster has to agree about, on two busy cores.
pub const AGREED: Duration = Duration::from_secs(40);
/// Nothing else is awaited for so long.
pub const LATE: i64 = 5000;

// ---------------------------------------------------------------------------------------------------------------------
// The cluster

struct Cluster {
    nodes: Vec<Server>,
    ids: Vec<String>,
    /// Nodes that a test has killed: nobody is to connect there.
    dead: Vec<AtomicBool>,
    by_cli: bool,
}

/// `redis-cli` beside the server (PRESENCE_SERVER), or on PATH. None where there is none.
fn cli() -> Option<Command> {
    let beside = server_path();
    let beside = beside
        .parent()
        .filter(|dir| dir.components().count() > 0)
        .map(|dir| ["cli", "redis-cli", "valkey-cli"].map(|name| dir.join(name)));
    let on_path = ["redis-cli", "valkey-cli"].map(Into::into);
    let works = |path: &std::path::PathBuf| {
        let run = Command::new(path)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        run.is_ok_and(|status| status.success())
    };
    beside.into_iter().flatten().chain(on_path).find(works).map(Command::new)
}

/// Runs `redis-cli --cluster …` to its end. Its output where it failed.
fn run_cli(mut cli: Command, words: &[String]) -> Result<(), String> {
    let out = tempfile::NamedTempFile::new().unwrap();
    let file = out.reopen().unwrap();
    let mut child = cli
        .arg("--cluster")
        .args(words)
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let end = Instant::now() + AGREED;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        thread::sleep(ms(5));
    };
    match status {
        Some(status) if status.success() => Ok(()),
        status => {
            Err(format!("{words:?}: {status:?}\n{}", std::fs::read_to_string(out.path()).unwrap()))
        }
    }
}

impl Cluster {
    /// Six nodes, set up by redis-cli where there is one.
    #[track_caller]
    fn start(config: &[(&str, &str)]) -> Cluster {
        let builder = [
            ("cluster-enabled", "yes"),
            ("cluster-node-timeout", "5000"),
            ("cluster-require-full-coverage", "no"),
            ("cluster-allow-replica-migration", "no"),
            ("cluster-replica-validity-factor", "0"),
            ("presence.history-ttl-ms", "3600000"),
            ("presence.history-length", "10000"),
        ]
        .iter()
        .chain(config)
        .fold(Server::builder(), |builder, (name, value)| builder.config(name, value));
        let nodes: Vec<Server> = (0..6).map(|_| builder.clone().start()).collect();
        let ids = nodes.iter().map(|node| node.connect().text("CLUSTER MYID")).collect();
        let dead = nodes.iter().map(|_| AtomicBool::new(false)).collect();
        let mut cluster = Cluster { nodes, ids, dead, by_cli: false };
        match cli() {
            Some(cli) => {
                let addresses = cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port));
                let words: Vec<String> = ["create".to_string()]
                    .into_iter()
                    .chain(addresses)
                    .chain(["--cluster-replicas", "1", "--cluster-yes"].map(String::from))
                    .collect();
                run_cli(cli, &words).unwrap_or_else(|e| panic!("the cluster was not set up: {e}"));
                cluster.by_cli = true;
            }
            None => {
                println!("no redis-cli here: the cluster is set up by commands");
                cluster.set_up_by_commands();
            }
        }
        wait_until("the cluster to be whole", AGREED, || cluster.is_whole());
        cluster.warm_up();
        cluster
    }

    /// Waits until each node hears what each other publishes. Links between nodes come up one by one, and Valkey drops
    /// one over which a PUBLISH comes before anything else.
    #[track_caller]
    fn warm_up(&self) {
        let mut conns: Vec<Conn> = self.nodes.iter().map(Server::connect).collect();
        let mut ears: Vec<_> =
            self.nodes.iter().map(|node| (node.subscribe(&["warm"]), BTreeSet::new())).collect();
        wait_until("messages from each node to each", AGREED, || {
            for (i, c) in conns.iter_mut().enumerate() {
                c.ok(args!["PUBLISH", "warm", i]);
            }
            for (sub, heard) in &mut ears {
                while let Some(message) = sub.try_next(ms(20)) {
                    heard.insert(message.payload);
                }
            }
            ears.iter().all(|(_, heard)| heard.len() == self.nodes.len())
        });
    }

    fn set_up_by_commands(&self) {
        let slots = [(0, 5460), (5461, 10922), (10923, 16383)];
        for (i, node) in self.nodes.iter().enumerate() {
            let mut c = node.connect();
            c.ok(args!["CLUSTER", "SET-CONFIG-EPOCH", i + 1]);
            if let Some((from, to)) = slots.get(i) {
                c.ok(args!["CLUSTER", "ADDSLOTSRANGE", *from as usize, *to as usize]);
            }
            c.ok(args!["CLUSTER", "MEET", "127.0.0.1", i64::from(self.nodes[0].port)]);
        }
        for i in 3..6 {
            let mut c = self.nodes[i].connect();
            wait_until("the primary to be known", AGREED, || {
                c.try_cmd(["CLUSTER", "REPLICATE", &self.ids[i - 3]]).is_ok()
            });
        }
    }

    /// Whether each node that is alive sees all slots served, and each replica has its link.
    fn is_whole(&self) -> bool {
        self.alive().into_iter().all(|i| {
            let mut c = self.nodes[i].connect();
            let text = c.text("CLUSTER INFO");
            let view = c.text("CLUSTER NODES");
            let replication = c.info("replication");
            let odd = ["handshake", "fail"];
            let lines = || view.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            let known = lines().filter(|words| !odd.iter().any(|odd| words[2].contains(odd)));
            let replicas = known.clone().filter(|words| words[2].contains("slave")).count();
            text.contains("cluster_state:ok")
                && text.contains("cluster_slots_ok:16384")
                && known.count() == self.alive().len()
                && replicas == self.alive().len() - 3
                && (replication["role"] == "master" || replication["master_link_status"] == "up")
        })
    }

    fn alive(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|i| !self.dead[*i].load(Ordering::SeqCst)).collect()
    }

    fn conn(&self, i: usize) -> Conn {
        self.nodes[i].connect()
    }

    fn role(&self, i: usize) -> String {
        self.conn(i).info("replication")["role"].clone()
    }

    fn primaries(&self) -> Vec<usize> {
        self.alive().into_iter().filter(|i| self.role(*i) == "master").collect()
    }

    /// The node that says of itself that it serves the slot; as each primary sees it, and all agree.
    #[track_caller]
    fn owner(&self, slot: u16) -> usize {
        let mut found = None;
        wait_until("the nodes to agree about a slot", AGREED, || {
            let views: BTreeSet<Option<u16>> =
                self.alive().into_iter().map(|i| self.view(i, slot)).collect();
            found = views.first().copied().flatten().filter(|_| views.len() == 1);
            found.is_some()
        });
        self.nodes.iter().position(|node| Some(node.port) == found).unwrap()
    }

    /// The port of who serves a slot, as node `i` sees it.
    fn view(&self, i: usize, slot: u16) -> Option<u16> {
        let slots = self.conn(i).ok("CLUSTER SLOTS");
        let range = items(&slots).iter().find(|range| {
            let range = items(range);
            let bound = |at: usize| text(&range[at]).parse::<u16>().unwrap();
            (bound(0)..=bound(1)).contains(&slot)
        })?;
        text(&items(&items(range)[2])[1]).parse().ok()
    }

    fn replica_of(&self, primary: usize) -> usize {
        let wanted = self.nodes[primary].port.to_string();
        let mut found = None;
        wait_until("the replica", AGREED, || {
            found = self.alive().into_iter().find(|i| {
                let info = self.conn(*i).info("replication");
                info["role"] == "slave"
                    && info["master_port"] == wanted
                    && info["master_link_status"] == "up"
            });
            found.is_some()
        });
        found.unwrap()
    }

    /// Waits until a replica has all that its primary had at the call, whoever wrote it. (WAIT asks for no more than
    /// what was written by its own connection: by a new one, for nothing.)
    #[track_caller]
    fn replicated(&self, primary: usize, replica: usize) {
        let offset = |i: usize, field: &str| -> i64 {
            let info = self.conn(i).info("replication");
            info.get(field).and_then(|n| n.parse().ok()).unwrap_or(-1)
        };
        let wanted = offset(primary, "master_repl_offset");
        wait_until("the replica to have it all", AGREED, || {
            offset(replica, "slave_repl_offset") >= wanted
        });
    }

    /// What each living node but those left out hears on all channels of spaces.
    fn listen(&self, but: &[usize]) -> Ears {
        let on = self.alive().into_iter().filter(|i| !but.contains(i));
        Ears {
            on: on.map(|i| (i, self.nodes[i].psubscribe(&["presence:*"]), Vec::new())).collect(),
        }
    }

    /// The classic way: the slot's keys go one by one, and clients are sent after them.
    #[track_caller]
    fn move_slot(&self, slot: u16, from: usize, to: usize, mut between: impl FnMut()) {
        let (mut source, mut target) = (self.conn(from), self.conn(to));
        let slot = i64::from(slot);
        target.ok(args!["CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[from]]);
        source.ok(args!["CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[to]]);
        between();
        loop {
            let keys = texts(&source.ok(args!["CLUSTER", "GETKEYSINSLOT", slot, 10]));
            if keys.is_empty() {
                break;
            }
            let port = i64::from(self.nodes[to].port);
            let mut words = args!["MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS"];
            words.extend(keys.iter().map(|key| key.clone().into_bytes()));
            source.ok(words);
        }
        between();
        self.end_move(slot, from, to);
    }

    fn end_move(&self, slot: i64, from: usize, to: usize) {
        for i in [to, from] {
            self.conn(i).ok(args!["CLUSTER", "SETSLOT", slot, "NODE", self.ids[to]]);
        }
        for i in self.primaries().into_iter().filter(|i| ![to, from].contains(i)) {
            // It may have heard already; and a primary is free to refuse what it knows better.
            let _ = self.conn(i).try_cmd(args!["CLUSTER", "SETSLOT", slot, "NODE", self.ids[to]]);
        }
    }

    /// CLUSTER FAILOVER to a replica, until it has become the primary and the old one follows it.
    #[track_caller]
    fn failover(&self, old: usize, new: usize, how: &str) {
        let mut c = self.conn(new);
        // A primary does not listen to a replica, and another has no vote for it, before they have heard that it is one.
        wait_until("all to know the replica", AGREED, || {
            self.alive().into_iter().all(|i| {
                let view = self.conn(i).text("CLUSTER NODES");
                let mut lines = view.lines().map(|line| line.split(' ').collect::<Vec<_>>());
                lines.any(|words| {
                    words[0] == self.ids[new]
                        && words[2].contains("slave")
                        && words[3] == self.ids[old]
                })
            })
        });
        let began = Instant::now();
        for _ in 0..4 {
            let asked = Instant::now();
            if let Err(e) = c.try_cmd(format!("CLUSTER FAILOVER {how}")) {
                println!("CLUSTER FAILOVER {how}: {e}");
            }
            // A manual failover gives up silently after five seconds, when a node stood still.
            while asked.elapsed() < ms(8000) && c.info("replication")["role"] != "master" {
                thread::sleep(ms(2));
            }
            if c.info("replication")["role"] == "master" {
                wait_until("the old primary to follow", AGREED, || {
                    let info = self.conn(old).info("replication");
                    info["role"] == "slave" && info["master_link_status"] == "up"
                });
                println!("CLUSTER FAILOVER {how} took {:?}", began.elapsed());
                return;
            }
            println!("CLUSTER FAILOVER {how} came to nothing; asked again");
        }
        panic!("no failover");
    }

    /// Waits until nobody is left in any space, and each primary has told so.
    #[track_caller]
    fn drain(&self) {
        for i in self.primaries() {
            let mut c = self.conn(i);
            wait_until("everybody to lapse and be swept", AGREED, || c.stat("users") == 0);
        }
    }

    /// The same spaces on each primary and its replica, when nothing changes.
    #[track_caller]
    fn replicas_are_equal(&self) {
        for i in self.primaries() {
            let (mut p, mut r) = (self.conn(i), self.conn(self.replica_of(i)));
            p.ok("CLIENT PAUSE 60000 WRITE");
            let offset = |c: &mut Conn, field: &str| -> i64 {
                c.info("replication")[field].parse().unwrap()
            };
            let wanted = offset(&mut p, "master_repl_offset");
            wait_until("the replica to catch up", AGREED, || {
                offset(&mut r, "slave_repl_offset") >= wanted
            });
            let digests = |c: &mut Conn| -> BTreeMap<String, String> {
                texts(&c.ok("KEYS *"))
                    .into_iter()
                    .map(|key| (key.clone(), c.digest(&key)))
                    .collect()
            };
            let (ours, theirs) = (digests(&mut p), digests(&mut r));
            p.ok("CLIENT UNPAUSE");
            assert_eq!(ours, theirs);
        }
    }

    /// Nothing of a space is left where it was.
    #[track_caller]
    fn no_ghost(&self, node: usize, spaces: &[String]) {
        for i in [node, self.replica_of(node)] {
            let mut c = self.conn(i);
            wait_until("the old owner to let go", SOON, || {
                spaces
                    .iter()
                    .all(|s| c.int(args!["CLUSTER", "COUNTKEYSINSLOT", i64::from(slot(s))]) == 0)
                    && ["spaces", "users", "sessions"].iter().all(|stat| c.stat(stat) == 0)
            });
        }
    }

    #[track_caller]
    fn all_alive(&self) {
        for i in self.alive() {
            assert!(
                self.nodes[i].alive(),
                "the server died by itself:\n{}",
                tail(&self.nodes[i].log())
            );
        }
    }
}

/// The slot of a name without a hash tag.
fn slot(space: &str) -> u16 {
    crc::Crc::<u16>::new(&crc::CRC_16_XMODEM).checksum(space.as_bytes()) % 16384
}

/// Names whose slots are in a range.
fn names_in(slots: std::ops::Range<u16>, n: usize) -> Vec<String> {
    (0..).map(|i| format!("room{i}")).filter(|name| slots.contains(&slot(name))).take(n).collect()
}

/// Names for the shard of a node.
fn names_of(cluster: &Cluster, node: usize, n: usize) -> Vec<String> {
    let port = Some(cluster.nodes[node].port);
    (0..)
        .map(|i| format!("room{i}"))
        .filter(|name| cluster.view(node, slot(name)) == port)
        .take(n)
        .collect()
}

// ---------------------------------------------------------------------------------------------------------------------
// Subscribers on many nodes

struct Ears {
    on: Vec<(usize, Subscriber, Vec<Event>)>,
}

impl Ears {
    /// Reads what has been published up to now by any node that lives.
    #[track_caller]
    fn catch_up(&mut self, cluster: &Cluster) {
        let mut conns: Vec<Conn> = cluster.alive().into_iter().map(|i| cluster.conn(i)).collect();
        for (_, sub, heard) in &mut self.on {
            // From one node to another everything goes one way, in order; between nodes there is no order.
            for c in &mut conns {
                heard.extend(
                    sub.events_so_far(c)
                        .into_iter()
                        .filter(|e| e.channel.starts_with(b"presence:")),
                );
            }
        }
    }

    /// By space, in order of ids: the same on each node, each once, without holes, a transition at a time.
    #[track_caller]
    fn agreed(&self) -> BTreeMap<String, Vec<Event>> {
        let sorted = |node: usize, heard: &[Event]| {
            let mut spaces: BTreeMap<String, Vec<Event>> = BTreeMap::new();
            for event in heard {
                spaces.entry(event.str("space").to_string()).or_default().push(event.clone());
            }
            for events in spaces.values_mut() {
                events.sort_by_key(Event::id);
                for pair in events.windows(2) {
                    assert_ne!(pair[0].id(), pair[1].id(), "twice at node {node}: {pair:?}");
                    let (before, after) = (pair[0].id(), pair[1].id());
                    // A later epoch is a new line of history, or another life.
                    let follows = after.1 == before.1 + 1 || before.0 < after.0 && after.1 == 1;
                    assert!(follows, "a hole at node {node}: {pair:?}");
                }
            }
            spaces
        };
        let mut all = self.on.iter().map(|(node, _, heard)| (node, sorted(*node, heard)));
        let (_, first) = all.next().unwrap();
        let raw = |spaces: &BTreeMap<String, Vec<Event>>| -> BTreeMap<String, Vec<String>> {
            let raw = |events: &Vec<Event>| events.iter().map(|e| e.raw.clone()).collect();
            spaces.iter().map(|(space, events)| (space.clone(), raw(events))).collect()
        };
        for (node, other) in all {
            let (ours, theirs) = (raw(&first), raw(&other));
            for space in ours.keys().chain(theirs.keys()) {
                assert_eq!(ours.get(space), theirs.get(space), "{space} at node {node}");
            }
        }
        first
    }
}

/// Nobody is left after all that was said.
#[track_caller]
pub fn folds_to_nobody(spaces: &BTreeMap<String, Vec<Event>>) {
    for events in spaces.values() {
        let mut roster = Roster::new();
        events.iter().filter(|e| e.kind() != "message").for_each(|e| e.fold(&mut roster));
        assert!(roster.is_empty(), "{roster:?}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// A client that goes where it is sent

struct Router<'a> {
    cluster: &'a Cluster,
    conns: BTreeMap<u16, Conn>,
    owners: BTreeMap<u16, u16>,
    /// So often it was sent elsewhere, by the first word of the error.
    redirects: BTreeMap<String, usize>,
}

impl<'a> Router<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Router {
            cluster,
            conns: BTreeMap::new(),
            owners: BTreeMap::new(),
            redirects: BTreeMap::new(),
        }
    }

    fn conn(&mut self, port: u16) -> Option<&mut Conn> {
        let node = self.cluster.nodes.iter().position(|node| node.port == port)?;
        if self.cluster.dead[node].load(Ordering::SeqCst) {
            self.conns.remove(&port);
            return None;
        }
        if !self.conns.contains_key(&port) {
            let conn =
                catch_unwind(AssertUnwindSafe(|| self.cluster.nodes[node].connect())).ok()?;
            self.conns.insert(port, conn);
        }
        self.conns.get_mut(&port)
    }

    /// Asks until a node answers with something else than that another should be asked, or later.
    #[track_caller]
    fn ask(&mut self, space: &str, words: impl Args) -> Value {
        let words = words.args();
        let end = Instant::now() + AGREED;
        let slot = slot(space);
        let mut after = None;
        loop {
            let some = self.cluster.alive().first().map_or(0, |i| self.cluster.nodes[*i].port);
            let port = after.take().or(self.owners.get(&slot).map(|port| (*port, false)));
            let (port, asking) = port.unwrap_or((some, false));
            let reply = match self.conn(port) {
                None => Err("lost".into()),
                Some(c) => {
                    if asking {
                        let _ = c.try_cmd("ASKING");
                    }
                    c.try_cmd(&words[..])
                }
            };
            let error = match reply {
                Ok(value) => return value,
                Err(error) => error,
            };
            assert!(Instant::now() < end, "{}: {error}", show(&words));
            let kind = error.split([' ', ':']).next().unwrap_or("").to_string();
            let address = error.rsplit(':').next().and_then(|port| port.parse().ok());
            *self.redirects.entry(kind.clone()).or_default() += 1;
            match (kind.as_str(), address) {
                ("MOVED", Some(port)) if self.owners.insert(slot, port) != Some(port) => {}
                ("ASK", Some(port)) => after = Some((port, true)),
                ("lost", _) => {
                    self.conns.remove(&port);
                    self.owners.remove(&slot);
                    thread::sleep(ms(5));
                }
                (
                    "MOVED" | "TRYAGAIN" | "CLUSTERDOWN" | "READONLY" | "UNBLOCKED" | "LOADING"
                    | "MASTERDOWN",
                    _,
                ) => {
                    self.owners.remove(&slot);
                    thread::sleep(ms(2));
                }
                _ => panic!("{}: {error}", show(&words)),
            }
        }
    }
}

/// A lease that was given: who, when the call began and ended, how long.
pub struct Given {
    pub sent: i64,
    pub done: i64,
    pub ttl: i64,
}

pub type Leases = BTreeMap<(String, String), Vec<Given>>;

/// A load on some spaces: people of its own who keep renewing and, unless `only_renewals`, others who come and go.
struct Load {
    over: AtomicBool,
    only_renewals: bool,
}

impl Load {
    fn new() -> Load {
        Load { over: AtomicBool::new(false), only_renewals: false }
    }

    fn run(&self, cluster: &Cluster, spaces: &[String], name: &str, seed: u64) -> Leases {
        let mut rng = rng(seed);
        let mut router = Router::new(cluster);
        let mut leases = Leases::new();
        let mut turn = 0;
        while !self.over.load(Ordering::Relaxed) {
            let space = &spaces[turn % spaces.len()];
            turn += 1;
            let faithful = format!("{name}:faithful");
            let mut online =
                |router: &mut Router, rng: &mut rand::rngs::StdRng, user: &str, ttl: i64| {
                    let mut words = args!["PRESENCE.ONLINE", space, user, "PX", ttl];
                    if ttl < FAITHFUL_MS && rng.random_bool(0.2) {
                        words.extend(args!["META", turn]);
                    }
                    let sent = now_ms();
                    router.ask(space, words);
                    let given = Given { sent, done: now_ms(), ttl };
                    leases.entry((space.clone(), user.to_string())).or_default().push(given);
                };
            online(&mut router, &mut rng, &faithful, FAITHFUL_MS);
            let user = format!("{name}:{}", rng.random_range(0..10));
            let ttl = rng.random_range(10..400);
            if !self.only_renewals {
                match rng.random_range(0..10) {
                    0..7 => online(&mut router, &mut rng, &user, ttl),
                    7..9 => drop(router.ask(space, args!["PRESENCE.OFFLINE", space, &user])),
                    _ => drop(router.ask(space, args!["PRESENCE.MESSAGE", space, &user, "hello"])),
                }
            }
            thread::sleep(ms(1));
        }
        println!("{name}: {turn} turns, sent elsewhere {:?}", router.redirects);
        leases
    }
}

struct EndOnDrop<'a>(&'a Load);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// No lease ended before its time: who left with a timeout had no lease, among those acknowledged by then, that went on.
/// A promotion may end leases earlier, by no more than the grace (ms): the new primary knows a bound of each lease.
#[track_caller]
pub fn never_too_early(
    spaces: &BTreeMap<String, Vec<Event>>,
    leases: &Leases,
    grace: i64,
) -> usize {
    let mut checked = 0;
    for (space, events) in spaces {
        for leave in events.iter().filter(|e| e.str("reason") == "timeout") {
            let Some(given) = leases.get(&(space.clone(), leave.user().to_string())) else {
                continue;
            };
            let at = leave.int("at");
            // One under way at that moment may have come before or after it.
            if given.iter().any(|g| g.sent <= at && at <= g.done) {
                continue;
            }
            let Some(last) = given.iter().filter(|g| g.done < at).max_by_key(|g| g.done) else {
                continue;
            };
            assert!(
                at >= last.sent + last.ttl - grace,
                "{} ms too early: {leave:?}",
                last.sent + last.ttl - at
            );
            checked += 1;
        }
    }
    checked
}

/// Runs two loads while `act` does something to the cluster; then all lapse, and everything is compared.
#[track_caller]
fn under_load(
    cluster: &Cluster,
    spaces: &[String],
    seed: u64,
    grace: i64,
    act: impl FnOnce(&mut Ears),
) {
    let load = Load::new();
    let mut ears = cluster.listen(&[]);
    let mut leases = Leases::new();
    thread::scope(|scope| {
        let end = EndOnDrop(&load);
        let workers = [("a", seed), ("b", seed + 1)].map(|(name, seed)| {
            let load = &load;
            scope.spawn(move || load.run(cluster, spaces, name, seed))
        });
        let mut router = Router::new(cluster);
        for space in spaces {
            wait_until(
                "the load",
                SOON,
                || matches!(router.ask(space, args!["PRESENCE.COUNT", space]), Value::Int(n) if n >= 2),
            );
        }
        act(&mut ears);
        let settled = Instant::now();
        wait_until("a little more load", SOON, || settled.elapsed() > ms(200));
        drop(end);
        for worker in workers {
            leases.extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    cluster.drain();
    cluster.all_alive();
    ears.catch_up(cluster);
    let events = ears.agreed();
    assert_eq!(events.len(), spaces.len());
    folds_to_nobody(&events);
    let checked = never_too_early(&events, &leases, grace);
    let count: usize = events.values().map(Vec::len).sum();
    println!("{count} events, {checked} timeouts checked");
    assert!(count > 300 && checked > 50, "too little went on: {count} events, {checked} timeouts");
    // What is kept is what was published.
    let mut router = Router::new(cluster);
    for (space, events) in &events {
        let reply = router.ask(space, args!["PRESENCE.EVENTS", space]);
        let [id, gap, kept] = fields(&reply, ["id", "gap", "events"]);
        assert_eq!(text(id), events.last().unwrap().str("id"));
        assert_eq!(*gap, Value::Int(0));
        assert_eq!(texts(kept), events.iter().map(|e| e.raw.clone()).collect::<Vec<_>>());
        // Those who kept renewing were there all the time, as far as the clients' machine did not stand still.
        for name in ["a:faithful", "b:faithful"] {
            let mine: Vec<_> =
                events.iter().filter(|e| e.user() == name).map(Event::brief).collect();
            if mine.len() != 2 {
                println!("{name} in {space} lapsed on the way: {mine:?}");
            }
        }
    }
    cluster.replicas_are_equal();
}

// ---------------------------------------------------------------------------------------------------------------------
// The tests

#[test]
fn commands_go_by_key_and_events_reach_every_node_once() {
    let cluster = Cluster::start(&[]);
    println!("set up by redis-cli: {}", cluster.by_cli);
    let primaries = cluster.primaries();
    assert_eq!(primaries.len(), 3);
    let mut ears = cluster.listen(&[]);
    let mut rooms = Vec::new();
    for primary in &primaries {
        let names = names_of(&cluster, *primary, 2);
        let (room, quiet) = (names[0].as_str(), names[1].as_str());
        let slot = slot(room);
        // Each other node, and the replica for writes, sends the client on.
        let moved = format!("MOVED {slot} 127.0.0.1:{}", cluster.nodes[*primary].port);
        let replica = cluster.replica_of(*primary);
        for i in 0..6 {
            let mut c = cluster.conn(i);
            for command in [
                "ONLINE room u",
                "OFFLINE room u",
                "STATUS room u",
                "USER room u",
                "SPACE room",
                "COUNT room",
                "EVENTS room BLOCK 0",
                "READ BLOCK 0 SPACES room 0",
                "MESSAGE room u m",
                "CLOSE room",
                "_SWEEP room",
            ] {
                let command = format!("PRESENCE.{}", command.replace("room", room));
                if i != *primary {
                    assert_eq!(c.err(&command), moved, "{command} at {i}");
                } else if command.contains("COUNT") {
                    assert_eq!(c.int(&command), 0);
                }
            }
        }
        let mut r = cluster.conn(replica);
        r.ok("READONLY");
        let mut p = cluster.conn(*primary);
        let ends = now_ms() + 300;
        assert_eq!(
            p.int(args!["PRESENCE.ONLINE", room, "USERS", 3, "a", "b", "c", "PXAT", ends]),
            3
        );
        p.ok(args!["PRESENCE.ONLINE", room, "d", "SESSION", "1", "META", "{\"x\":1}"]);
        p.ok(args!["PRESENCE.ONLINE", room, "d", "SESSION", "2", "PX", 100]);
        p.ok(args!["PRESENCE.ONLINE", room, "d", "SESSION", "1", "META", "2"]);
        p.ok(args!["PRESENCE.MESSAGE", room, "d", "hello"]);
        p.ok("MULTI");
        p.ok(args!["PRESENCE.ONLINE", room, "e"]);
        p.ok(args!["PRESENCE.OFFLINE", room, "e"]);
        p.ok("EXEC");
        p.ok(args![
            "EVAL",
            "return redis.call('PRESENCE.ONLINE', KEYS[1], 'f', 'PX', 200)",
            1,
            room
        ]);
        assert_eq!(p.int("WAIT 1 5000"), 1);
        // Another slot in one transaction is as with any command.
        let elsewhere = names_of(&cluster, primaries[(rooms.len() + 1) % 3], 1).remove(0);
        p.ok("MULTI");
        assert!(p.err(args!["PRESENCE.ONLINE", elsewhere, "x"]).starts_with("MOVED"));
        assert!(p.err("EXEC").starts_with("EXECABORT"));
        // Reads at the replica: what has ended is gone there when the primary says so.
        sleep_until(ends);
        wait_until("the ends at the replica", SOON, || {
            r.ints(args!["PRESENCE.STATUS", room, "a", "b", "c", "d"]) == [0, 0, 0, 1]
        });
        assert_eq!(r.err(args!["PRESENCE.ONLINE", room, "x"]), moved);
        wait_until("nobody in the quiet room", SOON, || r.int(args!["PRESENCE.COUNT", quiet]) == 0);
        rooms.push((*primary, room.to_string()));
    }
    for (primary, room) in &rooms {
        let mut p = cluster.conn(*primary);
        wait_until("the sweep", SOON, || p.stat("sessions") == 1);
        p.ok(args!["PRESENCE.CLOSE", room]);
    }
    ears.catch_up(&cluster);
    let events = ears.agreed();
    assert_eq!(events.len(), 3);
    for (primary, room) in &rooms {
        let briefs: Vec<String> = events[room].iter().map(Event::brief).collect();
        let (mut timeouts, mut told): (Vec<_>, Vec<_>) =
            briefs.into_iter().partition(|brief| brief.contains("(timeout)"));
        timeouts.sort();
        told.retain(|brief| brief != "join f");
        assert_eq!(
            timeouts,
            [
                "leave a (timeout)",
                "leave b (timeout)",
                "leave c (timeout)",
                "leave f (timeout)",
                "remove d/2 (timeout)"
            ]
        );
        assert_eq!(
            told,
            [
                "join a",
                "join b",
                "join c",
                "join d/1",
                "add d/2",
                "update d/1",
                "message d",
                "join e",
                "leave e (offline)",
                "close "
            ]
        );
        for i in [*primary, cluster.replica_of(*primary)] {
            let mut c = cluster.conn(i);
            c.ok("READONLY");
            let reply = c.ok(args!["PRESENCE.EVENTS", room]);
            let kept = texts(fields(&reply, ["id", "gap", "events"])[2]);
            assert_eq!(kept, events[room].iter().map(|e| e.raw.clone()).collect::<Vec<_>>());
        }
    }
    cluster.replicas_are_equal();
}

#[test]
fn sharded_channels_reach_the_shard_once() {
    let cluster = Cluster::start(&[("presence.channel-mode", "sharded")]);
    for primary in cluster.primaries() {
        let replica = cluster.replica_of(primary);
        let plain = names_of(&cluster, primary, 1).remove(0);
        let tagged = format!("{{{plain}}}:lobby");
        let inner = format!("a{{{plain}}}b{{c}}");
        let mut p = cluster.conn(primary);
        let mut deaf = cluster.nodes[replica].psubscribe(&["presence:*"]);
        for (space, channel) in [
            (&plain, format!("presence:{{{plain}}}")),
            (&tagged, format!("presence:{tagged}")),
            (&inner, format!("presence:{inner}")),
        ] {
            let of = |name: &str, c: &mut Conn| c.int(["CLUSTER", "KEYSLOT", name]);
            assert_eq!(of(space, &mut p), of(&channel, &mut p));
            let mut heard = [primary, replica].map(|i| cluster.nodes[i].ssubscribe(&[&channel]));
            for i in (0..6).filter(|i| ![primary, replica].contains(i)) {
                assert!(cluster.conn(i).err(["SSUBSCRIBE", &channel]).starts_with("MOVED"));
            }
            p.ok(args!["PRESENCE.ONLINE", space, "USERS", 2, "a", "b", "PX", 150]);
            p.ok(args!["PRESENCE.ONLINE", space, "c"]);
            p.ok(args!["PRESENCE.MESSAGE", space, "c", "hello"]);
            p.ok("MULTI");
            p.ok(args!["PRESENCE.OFFLINE", space, "c"]);
            p.ok("EXEC");
            let events = heard[0].events(7, SOON);
            let mut briefs: Vec<_> = events.iter().map(Event::brief).collect();
            briefs.sort();
            assert_eq!(
                briefs,
                [
                    "join a",
                    "join b",
                    "join c",
                    "leave a (timeout)",
                    "leave b (timeout)",
                    "leave c (offline)",
                    "message c"
                ]
            );
            assert!(events.iter().all(|e| e.channel == channel.as_bytes()));
            let seqs: Vec<u64> = events.iter().map(|e| e.id().1).collect();
            assert_eq!(seqs, [1, 2, 3, 4, 5, 6, 7]);
            let raw = |events: &[Event]| events.iter().map(|e| e.raw.clone()).collect::<Vec<_>>();
            assert_eq!(raw(&heard[1].events(7, SOON)), raw(&events));
            for sub in &mut heard {
                assert!(sub.so_far(&mut p).is_empty());
            }
            let reply = p.ok(args!["PRESENCE.EVENTS", space]);
            assert_eq!(texts(fields(&reply, ["id", "gap", "events"])[2]), raw(&events));
        }
        assert!(deaf.so_far(&mut p).is_empty());
    }
    // Names without a channel in their slot.
    for name in ["a}b", "{}x", "}", "{}", "x{}{y}", "", "{x}"] {
        let mut refusals = Vec::new();
        for i in cluster.primaries() {
            let mut c = cluster.conn(i);
            let error = c.err(["PRESENCE.ONLINE", name, "u"]);
            if !error.starts_with("MOVED") {
                refusals.push(error);
                assert_eq!(c.int(["EXISTS", name]), 0);
            }
        }
        assert_eq!(refusals.len(), 1, "{name:?}");
        assert!(refusals[0].starts_with("ERR ") && refusals[0].contains("sharded"), "{refusals:?}");
    }
}

/// redis-cli's reshard there, the same by hand back; both while people come, renew and go.
#[test]
fn slots_move_the_classic_way_under_load() {
    let cluster = Cluster::start(&[]);
    let slots = 0..192;
    let spaces = names_in(slots.clone(), 6);
    let a = cluster.owner(0);
    let b = cluster.primaries().into_iter().find(|i| *i != a).unwrap();
    under_load(&cluster, &spaces, 51, 0, |_| {
        match cli() {
            Some(cli) => {
                let words = [
                    "reshard".to_string(),
                    format!("127.0.0.1:{}", cluster.nodes[a].port),
                    "--cluster-from".into(),
                    cluster.ids[a].clone(),
                    "--cluster-to".into(),
                    cluster.ids[b].clone(),
                    "--cluster-slots".into(),
                    slots.end.to_string(),
                    "--cluster-yes".into(),
                ];
                run_cli(cli, &words).unwrap_or_else(|e| panic!("{e}"));
            }
            None => {
                println!("no redis-cli here: the slots are moved by commands");
                spaces.iter().for_each(|space| cluster.move_slot(slot(space), a, b, || {}));
            }
        }
        for space in &spaces {
            assert_eq!(cluster.owner(slot(space)), b);
        }
        cluster.no_ghost(a, &spaces);
        let pause = || {
            let began = Instant::now();
            wait_until("a little load", SOON, || began.elapsed() > ms(60));
        };
        spaces.iter().for_each(|space| cluster.move_slot(slot(space), b, a, pause));
        cluster.no_ghost(b, &spaces);
    });
}

/// What lapses while a slot is between two owners: no reader sees it, and its leave comes once, from the one or the other.
#[test]
fn a_lapse_between_two_owners_is_not_missed() {
    let cluster = Cluster::start(&[]);
    let primaries = cluster.primaries();
    let (a, b) = (primaries[0], primaries[1]);
    let names = names_of(&cluster, a, 2);
    let (space, empty) = (names[0].as_str(), names[1].as_str());
    let (mut ca, mut cb) = (cluster.conn(a), cluster.conn(b));
    let mut ears = cluster.listen(&[]);
    let slot = slot(space);
    ca.ok(args!["PRESENCE.ONLINE", space, "first", "PX", 100]);
    let second = now_ms() + 700;
    ca.ok(args!["PRESENCE.ONLINE", space, "second", "PXAT", second]);
    let third = now_ms() + 1500;
    ca.ok(args!["PRESENCE.ONLINE", space, "third", "PXAT", third]);
    ca.ok(args!["PRESENCE.ONLINE", space, "stays", "EX", 100]);
    ca.ok(args!["PRESENCE.ONLINE", empty, "x", "EX", 100]);
    ca.ok(args!["PRESENCE.OFFLINE", empty, "x"]);
    let before = ca.space(space);
    let mut step = 0;
    let timeouts_b = cb.stat("timeouts");
    cluster.move_slot(slot, a, b, || {
        step += 1;
        if step == 1 {
            // Still here: it goes on as ever.
            let (mut c, mut sub) =
                (cluster.conn(a), cluster.nodes[a].subscribe(&[format!("presence:{space}")]));
            if c.stat("timeouts") == 0 {
                assert_eq!(sub.event(SOON).brief(), "leave first (timeout)");
            }
            assert_eq!(c.int(args!["PRESENCE.ONLINE", space, "stays", "EX", 100]), 0);
            // What is not here is at the other.
            let elsewhere = c.ok(args!["PRESENCE.COUNT", space]);
            assert_ne!(elsewhere, Value::Int(0));
        } else {
            // Already there, but not yet the other's own.
            let error = ca.err(args!["PRESENCE.COUNT", space]);
            assert!(error.starts_with("ASK"), "{error}");
            sleep_until(second);
            let mut c = cluster.conn(b);
            assert!(c.err(args!["PRESENCE.COUNT", space]).starts_with("MOVED"));
            c.ok("ASKING");
            let there = c.ok(args!["PRESENCE.STATUS", space, "first", "second", "stays"]);
            assert_eq!(there, Value::Array([0, 0, 1].map(Value::Int).to_vec()));
            c.ok("ASKING");
            assert_eq!(c.int(args!["PRESENCE.ONLINE", space, "guest", "EX", 100]), 1);
        }
    });
    let owned = now_ms();
    wait_until("the third to leave", SOON, || cb.stat("timeouts") - timeouts_b >= 2);
    ears.catch_up(&cluster);
    let events = &ears.agreed()[space];
    let tail: Vec<String> = events.iter().map(Event::brief).collect();
    assert_eq!(tail.len(), 8, "{tail:?}");
    let leave = |user: &str| {
        let mut all = events.iter().filter(|e| e.kind() == "leave" && e.user() == user);
        let first = all.next().unwrap_or_else(|| panic!("no leave of {user}: {tail:?}"));
        assert!(all.next().is_none());
        assert_eq!(first.str("reason"), "timeout");
        first.int("at")
    };
    within("the leave between", leave("second"), second, second.max(owned) + LATE);
    within("the leave after", leave("third"), third, third.max(owned) + LATE);
    println!(
        "the leave between came {} ms after the slot was its own; the one after {} ms after its lease",
        leave("second") - owned,
        leave("third") - third
    );
    let after = cb.space(space);
    assert_eq!(after.names(), ["guest", "stays"]);
    assert_eq!(parse_id(&after.id).0, parse_id(&before.id).0, "another epoch");
    assert_eq!(ca.stat("timeouts"), 1);
    cluster.all_alive();
}

/// Valkey 9: the server moves slots as a whole, in the background.
#[test]
fn slots_move_atomically_under_load() {
    let probe = Server::with(&[("cluster-enabled", "yes")]);
    if probe.connect().try_cmd("CLUSTER GETSLOTMIGRATIONS").is_err() {
        return not_tested("this server has no CLUSTER MIGRATESLOTS");
    }
    drop(probe);
    let cluster = Cluster::start(&[]);
    let slots = 0..192;
    let spaces = names_in(slots.clone(), 6);
    let a = cluster.owner(0);
    let b = cluster.primaries().into_iter().find(|i| *i != a).unwrap();
    let migrate = |from: usize, to: usize| {
        let mut c = cluster.conn(from);
        let last = i64::from(slots.end - 1);
        for attempt in 1.. {
            c.ok(args!["CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", 0, last, "NODE", cluster.ids[to]]);
            let mut end = (String::new(), String::new());
            wait_until("the migration", AGREED, || {
                let all = c.ok("CLUSTER GETSLOTMIGRATIONS");
                let field = |name: &str| {
                    let newest = pairs(&items(&all)[0]);
                    newest
                        .iter()
                        .find(|(key, _)| key == name)
                        .map(|(_, value)| text(value))
                        .unwrap()
                };
                end = (field("state"), field("message"));
                ["success", "failed", "cancelled"].contains(&end.0.as_str())
            });
            if end.0 == "success" {
                break;
            }
            // A machine that stands still can make the server give up; the module must not.
            println!("attempt {attempt}: {end:?}");
            assert!(attempt < 4, "{end:?}\n{}", tail(&cluster.nodes[from].log()));
        }
        for space in &spaces {
            assert_eq!(cluster.owner(slot(space)), to);
        }
        cluster.no_ghost(from, &spaces);
    };
    under_load(&cluster, &spaces, 61, 0, |_| {
        for _ in 0..2 {
            migrate(a, b);
            migrate(b, a);
        }
    });
    // Many, and nothing else going on: all leave at the new owner, once, when their leases end.
    let space = &spaces[0];
    let (mut ca, mut cb) = (cluster.conn(a), cluster.conn(b));
    let mut ears = cluster.listen(&[]);
    let ends = now_ms() + 3000;
    for i in 0..20 {
        let mut words = args!["PRESENCE.ONLINE", space, "USERS", 250];
        words.extend((0..250).map(|j| format!("user{i}-{j}").into_bytes()));
        words.extend(args!["PXAT", ends + i]);
        ca.ok(words);
    }
    let (timeouts_a, timeouts_b) = (ca.stat("timeouts"), cb.stat("timeouts"));
    migrate(a, b);
    let moved = now_ms();
    assert_eq!(cb.int(args!["PRESENCE.COUNT", space]), if moved < ends { 5000 } else { 0 });
    cluster.drain();
    wait_until("the leaves", SOON, || cb.stat("timeouts") - timeouts_b == 5000);
    assert_eq!(ca.stat("timeouts"), timeouts_a);
    ears.catch_up(&cluster);
    let events = &ears.agreed()[space];
    let leaves: Vec<_> = events.iter().filter(|e| e.kind() == "leave").collect();
    assert_eq!(leaves.len(), 5000);
    let users: BTreeSet<_> = leaves.iter().map(|e| e.user()).collect();
    assert_eq!(users.len(), 5000);
    for leave in &leaves {
        assert_eq!(leave.str("reason"), "timeout");
        within("a leave", leave.int("at"), ends, ends.max(moved) + LATE);
    }
    println!(
        "the last leave came {} ms after the last lease",
        leaves.last().unwrap().int("at") - ends - 19
    );
    cluster.all_alive();
    cluster.replicas_are_equal();
}

#[test]
fn manual_failovers_under_load_lose_and_double_nothing() {
    let cluster = Cluster::start(&[("presence.restart-grace-ms", "300")]);
    let (a, c) = (cluster.primaries()[0], cluster.primaries()[1]);
    let (b, d) = (cluster.replica_of(a), cluster.replica_of(c));
    let mut spaces = names_of(&cluster, a, 3);
    spaces.extend(names_of(&cluster, c, 2));
    under_load(&cluster, &spaces, 71, 300, |_| {
        // Not twice to the same node: Redis lets it win at once by the votes of the last time, and soon lose again.
        for (old, new) in [(a, b), (c, d), (b, a), (d, c)] {
            let began = Instant::now();
            wait_until("a little load", SOON, || began.elapsed() > ms(250));
            cluster.failover(old, new, "");
        }
    });
}

/// A primary is killed, another is overthrown: who renews stays, who does not leaves after the grace.
#[test]
fn crashes_and_takeovers_cost_no_live_user() {
    let mut rng = rng(81);
    let grace = 2000;
    let cluster = Cluster::start(&[
        ("presence.restart-grace-ms", &grace.to_string()),
        ("cluster-node-timeout", "2000"),
        ("appendonly", "yes"),
    ]);
    let primaries = cluster.primaries();
    let (killed, overthrown) =
        (*primaries.choose(&mut rng).unwrap(), *primaries.choose(&mut rng).unwrap());
    let overthrown = if killed == overthrown {
        *primaries.iter().find(|i| **i != killed).unwrap()
    } else {
        overthrown
    };
    let (heir, usurper) = (cluster.replica_of(killed), cluster.replica_of(overthrown));
    let (of_killed, of_overthrown) =
        (names_of(&cluster, killed, 3), names_of(&cluster, overthrown, 3));
    let spaces: Vec<String> = of_killed.iter().chain(&of_overthrown).cloned().collect();
    let mut ears = cluster.listen(&[killed]);
    let load = Load { only_renewals: true, ..Load::new() };
    let mut leases = Leases::new();
    let mut bounds = BTreeMap::new();
    let mut ids: BTreeMap<String, (i64, u64)> = BTreeMap::new();
    let mut over_at = 0;
    thread::scope(|scope| {
        let end = EndOnDrop(&load);
        let workers = [("a", &of_killed), ("b", &of_overthrown)].map(|(name, spaces)| {
            // Each has a shard of its own, so that it is never held up by the other's.
            let (load, cluster) = (&load, &cluster);
            scope.spawn(move || load.run(cluster, spaces, name, 82))
        });
        let mut router = Router::new(&cluster);
        for space in &spaces {
            let ghosts = args![
                "PRESENCE.ONLINE",
                space,
                "USERS",
                3,
                "ghost1",
                "ghost2",
                "ghost3",
                "PX",
                1500
            ];
            router.ask(space, &ghosts);
            wait_until("the load", SOON, || {
                matches!(router.ask(space, args!["PRESENCE.COUNT", space]), Value::Int(4))
            });
            let reply = router.ask(space, args!["PRESENCE.SPACE", space]);
            ids.insert(
                space.clone(),
                parse_id(&text(
                    fields(&reply, ["id", "users", "sessions", "cursor", "members"])[0],
                )),
            );
        }
        cluster.replicated(killed, heir);
        cluster.replicated(overthrown, usurper);
        // The one is overthrown while it serves …
        let before = now_ms();
        cluster.failover(overthrown, usurper, "TAKEOVER");
        let known = now_ms();
        bounds.extend(of_overthrown.iter().map(|space| (space.clone(), (before, known))));
        // … the other is killed, and the cluster elects its replica.
        let before = now_ms();
        for space in &of_killed {
            // Those from before may have lapsed meanwhile.
            router.ask(
                space,
                args![
                    "PRESENCE.ONLINE",
                    space,
                    "USERS",
                    3,
                    "ghost4",
                    "ghost5",
                    "ghost6",
                    "PX",
                    900
                ],
            );
        }
        cluster.replicated(killed, heir);
        cluster.dead[killed].store(true, Ordering::SeqCst);
        cluster.nodes[killed].stop(Stop::Kill);
        wait_until("the election", AGREED, || cluster.role(heir) == "master");
        let elected = now_ms();
        println!("elected {} ms after the kill", elected - before);
        bounds.extend(of_killed.iter().map(|space| (space.clone(), (before, elected))));
        // It comes back with what its AOF says, and is a replica.
        cluster.nodes[killed].start_again();
        cluster.dead[killed].store(false, Ordering::SeqCst);
        wait_until("the killed one to follow", AGREED, || {
            let info = cluster.conn(killed).info("replication");
            info["role"] == "slave" && info["master_link_status"] == "up"
        });
        wait_until("the cluster to be whole", AGREED, || cluster.is_whole());
        for space in &spaces {
            wait_until("the ghosts to leave", AGREED, || {
                matches!(router.ask(space, args!["PRESENCE.COUNT", space]), Value::Int(1))
            });
        }
        for i in cluster.primaries() {
            let mut c = cluster.conn(i);
            wait_until("that to be told", SOON, || {
                c.stat("users") == if [heir, usurper].contains(&i) { 3 } else { 0 }
            });
        }
        over_at = now_ms();
        drop(end);
        for worker in workers {
            leases.extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    cluster.all_alive();
    cluster.drain();
    ears.catch_up(&cluster);
    let events = ears.agreed();
    assert_eq!(events.len(), 6);
    folds_to_nobody(&events);
    never_too_early(&events, &leases, grace);
    for (space, events) in &events {
        let (before, known) = bounds[space];
        let mut ghosts = 0;
        for leave in events.iter().filter(|e| e.kind() == "leave") {
            if leave.user().contains("ghost") {
                ghosts += 1;
                let early = of_killed.contains(space) && leave.int("at") < before;
                if !early {
                    within(&leave.raw, leave.int("at"), before + grace, known + grace + LATE);
                }
                assert!(leave.id() > ids[space], "{leave:?}");
            } else {
                assert!(leave.int("at") > over_at, "a live user is gone: {leave:?}");
            }
            assert_eq!(leave.str("reason"), "timeout");
        }
        assert_eq!(ghosts, if of_killed.contains(space) { 6 } else { 3 });
        let epochs: BTreeSet<i64> = events.iter().map(|e| e.id().0).collect();
        assert_eq!(epochs.len(), 2, "one line of history for each who decided: {epochs:?}");
    }
    cluster.replicas_are_equal();
}

/// While the cluster is down no space can be swept, whatever its slot. One space is tried from time to time.
#[test]
fn nothing_is_swept_while_the_cluster_is_down() {
    const SPACES: i64 = 2000;
    let server = Server::builder().config("cluster-enabled", "yes").start();
    let mut c = server.connect();
    let state =
        |c: &mut Conn| c.text("CLUSTER INFO").lines().next().unwrap_or_default().to_string();
    c.ok("CLUSTER ADDSLOTSRANGE 0 16383");
    wait_until("the cluster to be up", AGREED, || state(&mut c) == "cluster_state:ok");
    let online = |i: i64| args!["PRESENCE.ONLINE", format!("{{abc}}{i}"), "u", "PX", 2000];
    for reply in c.batch((0..SPACES).map(online)) {
        reply.unwrap();
    }
    // A slot without spaces is nobody's.
    c.ok("CLUSTER DELSLOTS 0");
    wait_until("the cluster to be down", AGREED, || state(&mut c) == "cluster_state:fail");
    wait_until("all leases to end", AGREED, || c.stat("sweep_backlog") == SPACES);
    let (began, sweeps) = (Instant::now(), c.stat("sweeps"));
    while began.elapsed() < ms(1000) {
        assert_eq!(c.stat("sweep_backlog"), SPACES);
    }
    // Five times per second, and some for the edges.
    let (tried, took) = (c.stat("sweeps") - sweeps, began.elapsed().as_millis() as i64);
    assert!(tried <= took / 200 + 2, "{tried} times in {took} ms");
    assert_eq!(c.stat("users"), SPACES);
    c.ok("CLUSTER ADDSLOTS 0");
    wait_until("everybody to leave", AGREED, || c.stat("users") == 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Client libraries

/// How often the nodes have answered MOVED.
fn redirections(cluster: &Cluster) -> u64 {
    let count = |node: &Server| {
        let stats = node.connect().info("errorstats");
        let moved = stats.get("errorstat_MOVED").and_then(|s| s.strip_prefix("count="));
        moved.map_or(0, |n| n.parse().unwrap())
    };
    cluster.nodes.iter().map(count).sum()
}

/// With what docs/guides.md says about each library, every command goes to the right node at once.
#[test]
fn node_libraries_find_the_node_of_a_space() {
    let Some((node, script)) = Language::Node.script("node/test/routing.cjs") else { return };
    let cluster = Cluster::start(&[]);
    let port = cluster.nodes[0].port.to_string();
    for words in [
        &["redis", &port][..],
        &["ioredis", &port],
        &["iovalkey", &port],
        &["ioredis", &port, "i:"],
        &["iovalkey", &port, "v:"],
    ] {
        cluster.nodes.iter().for_each(|node| drop(node.connect().try_cmd("FLUSHALL")));
        let before = redirections(&cluster);
        let output = Command::new(&node).arg(&script).args(words).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(said.trim(), "60", "{words:?}");
        assert_eq!(redirections(&cluster), before, "{words:?}");
        let space = words.get(2).unwrap_or(&"").to_string() + "room:7";
        let owner = cluster.owner(slot(&space));
        assert_eq!(cluster.conn(owner).int(["EXISTS", &space]), 1, "{words:?}");
    }
    cluster.all_alive();
}
