//! A round as it is played, and the faults in it.

use crate::clients::{self, Shared};
use crate::followers::Follower;
use crate::generator::{Fault, Plan, SPACES, Topology, Trip};
use crate::harness::*;
use crate::history::{AWAY, Era, Loss, Op, Reading, Reply, Round, What};
use crate::nodes::{Node, Place, Recorder, mark, offset, read_all, replication, wait};
use std::sync::RwLockWriteGuard;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than any lease that clients ask for.
const LONGEST_LEASE: Duration = Duration::from_secs(10);

/// Plays a round and returns what was observed.
pub fn play(plan: &Plan, length: Duration) -> Round {
    let shared = Shared::new();
    let mut cluster = Cluster::start(plan, &shared);
    let end = Instant::now() + length;
    let result = thread::scope(|scope| {
        let shared = &shared;
        let clients: Vec<_> = (0..plan.skews.len())
            .map(|number| scope.spawn(move || clients::run(plan, number, shared)))
            .collect();
        let reader = scope.spawn(move || clients::read(plan, shared));
        let result = cluster.suffer(end);
        shared.end();
        for client in clients {
            client.join().expect("a client");
        }
        reader.join().expect("the reader");
        result
    });
    let result = result.and_then(|()| cluster.wind_down());
    if let Err(trouble) = result {
        cluster.round.troubles.push(trouble);
    }
    cluster.finish()
}

/// The servers of a round, and what is recorded of them.
struct Cluster<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    nodes: Vec<Node>,
    /// One for each node, until the spaces go away from their names.
    followers: Vec<Follower>,
    /// Whom each replicates.
    upstream: Vec<Option<usize>>,
    primary: usize,
    /// The id of the primary's history, when all had settled.
    history: String,
    /// Where each space is.
    places: Vec<Place>,
    streams: usize,
    marks: usize,
    round: Round,
}

type Done = Result<(), String>;

impl<'a> Cluster<'a> {
    fn start(plan: &'a Plan, shared: &'a Shared) -> Self {
        let upstream = match plan.topology {
            Topology::Single => vec![None],
            Topology::Star => vec![None, Some(0), Some(0)],
            Topology::Chain => vec![None, Some(0), Some(1)],
        };
        let nodes: Vec<_> = (0..upstream.len()).map(|node| Node::start(plan, node)).collect();
        *shared.ports.lock().unwrap() = nodes.iter().map(|node| node.server.port).collect();
        let round = Round { grace: plan.grace, ..Round::default() };
        let streams = nodes.len();
        let places = SPACES.iter().map(|space| Place::of(space)).collect();
        let mut cluster = Cluster {
            plan,
            shared,
            nodes,
            followers: Vec::new(),
            upstream,
            primary: 0,
            history: String::new(),
            places,
            streams,
            marks: 0,
            round,
        };
        let began = cluster
            .follow_all()
            .and_then(|()| cluster.settle())
            .and_then(|()| cluster.begin_era("start", (0, now_ms()), Loss::Nothing, None));
        let ports = cluster.nodes.iter().map(|node| node.server.port).enumerate();
        cluster.followers = ports.map(|(node, port)| Follower::start(node, port)).collect();
        began.unwrap_or_else(|e| panic!("{e}"));
        cluster
    }

    /// Faults until the time is over.
    fn suffer(&mut self, end: Instant) -> Done {
        for step in self.plan.steps() {
            thread::sleep(ms(step.after));
            if Instant::now() > end {
                break;
            }
            self.round.faults.push((now_ms(), format!("{:?}", step.fault)));
            self.perform(&step.fault).map_err(|e| format!("{:?}: {e}", step.fault))?;
            self.look_for_deaths()?;
        }
        Ok(())
    }

    fn perform(&mut self, fault: &Fault) -> Done {
        match *fault {
            Fault::KillAndPromote { chain } => self.kill_and_promote(chain),
            Fault::Usurp { stop, alone, both, chain } => self.usurp(stop, alone, both, chain),
            Fault::CutAndKill { replica, hold, chain } => {
                self.cut_off(self.replica(replica), Cut::Broken);
                thread::sleep(ms(hold));
                self.kill_and_promote(chain)
            }
            Fault::Failover { replica } => self.failover(replica),
            Fault::KillAndRestart => self.restart_primary(Stop::Kill),
            Fault::CleanRestart => self.restart_primary(Stop::NoSave),
            Fault::Reload => self.reload("DEBUG RELOAD"),
            Fault::LoadAof => self.reload("DEBUG LOADAOF"),
            Fault::RewriteAof => {
                // One may be going on already.
                let _ = self.dial(self.primary).try_cmd("BGREWRITEAOF");
                Ok(())
            }
            Fault::KillReplica { replica } => {
                let node = self.replica(replica);
                self.stop(node, Stop::Kill)?;
                self.start_again(node);
                self.settle()
            }
            Fault::ReloadReplica { replica } => {
                self.dial(self.replica(replica)).try_cmd("DEBUG RELOAD")?;
                self.settle()
            }
            Fault::Stop { node, hold } => {
                let (node, began) = (node % self.nodes.len(), now_ms());
                self.nodes[node].signal(Signal::STOP);
                thread::sleep(ms(hold));
                self.nodes[node].signal(Signal::CONT);
                self.held_up_since(began);
                Ok(())
            }
            Fault::Pause { all, hold } => {
                let (mode, began) = (if all { "ALL" } else { "WRITE" }, now_ms());
                self.dial(self.primary).try_cmd(args!["CLIENT", "PAUSE", hold, mode])?;
                thread::sleep(ms(hold));
                self.held_up_since(began);
                Ok(())
            }
            Fault::Cut { replica, silent, hold } => {
                let how = if silent { Cut::Silent } else { Cut::Broken };
                self.cut_off(self.replica(replica), how);
                thread::sleep(ms(hold));
                self.heal();
                self.settle()
            }
            Fault::Trip { space, by } => self.trip(SPACES[space], by),
            Fault::Wipe { space } => self.alone_in(space, What::Wipe, args!["DEL", SPACES[space]]),
            Fault::Close { space, hold } => {
                let words = args!["PRESENCE.CLOSE", SPACES[space], "PX", hold];
                self.alone_in(space, What::Close, words)
            }
            Fault::Compare => self.compare(),
        }
    }

    // ---- who decides -------------------------------------------------------------------------

    /// From now on the primary decides: reads what is there, and lets clients in.
    fn begin_era(
        &mut self,
        how: &str,
        began: (i64, i64),
        loss: Loss,
        inherited: Option<Reading>,
    ) -> Done {
        let mut c = self.dial(self.primary);
        self.marks += 1;
        mark(&mut c, self.marks)?;
        let start = read_all(&mut c, &self.places)?;
        if let Some(last) = self.round.eras.last_mut().filter(|last| last.ended == 0) {
            last.ended = began.0;
        }
        self.round.eras.push(Era {
            how: how.to_string(),
            decider: self.primary,
            began,
            start,
            inherited,
            loss,
            stream: self.nodes[self.primary].recorder().stream,
            from: self.marks,
            to: None,
            ended: 0,
        });
        let port = self.nodes[self.primary].server.port;
        self.shared.publish_primary(self.round.eras.len() - 1, port);
        Ok(())
    }

    fn kill_and_promote(&mut self, chain: bool) -> Done {
        let old = self.primary;
        let ended = now_ms();
        self.stop(old, Stop::Kill)?;
        self.await_links_down(old)?;
        self.heal();
        self.promote("kill -9 and promotion", old, ended, chain)?;
        self.start_again(old);
        self.settle()
    }

    /// The old primary does not know that there is a new one, and goes on with the clients it has.
    fn usurp(&mut self, stop: bool, alone: u64, both: u64, chain: bool) -> Done {
        let (old, era) = (self.primary, self.round.eras.len() - 1);
        let ended = now_ms();
        if stop {
            self.nodes[old].signal(Signal::STOP);
        }
        for node in self.replicas_of(old) {
            self.cut_off(node, Cut::Broken);
        }
        thread::sleep(ms(alone));
        let promoted = self
            .await_links_down(old)
            .and_then(|()| self.promote("promotion beside a living primary", old, ended, chain));
        if stop {
            self.nodes[old].signal(Signal::CONT);
            self.held_up_since(ended);
        }
        promoted?;
        thread::sleep(ms(both));
        self.heal();
        self.round.eras[era].ended = now_ms();
        // At once, so that nothing of the new primary can come before the mark.
        self.marks += 1;
        let upstream = self.upstream_port(old).unwrap();
        let mark = self.marks.to_string();
        let demote = args!["REPLICAOF", "127.0.0.1", upstream.to_string()];
        let replies = self.dial(old).batch([demote, args!["PUBLISH", "torture:mark", mark]]);
        for reply in replies {
            reply?;
        }
        self.round.eras[era].to = Some(self.marks);
        self.settle()
    }

    /// The replica that is furthest becomes primary, the others its replicas, or in a chain.
    fn promote(&mut self, how: &str, old: usize, ended: i64, chain: bool) -> Done {
        // Offsets can be compared within one history only.
        let furthest = |node: &usize| {
            let mut c = self.dial(*node);
            (
                replication(&mut c, "master_replid") == self.history,
                offset(&mut c, "slave_repl_offset"),
            )
        };
        let heir = self.others(old).max_by_key(furthest).unwrap();
        let mut c = self.dial(heir);
        let inherited = read_all(&mut c, &self.places)?;
        let began = now_ms();
        c.try_cmd("REPLICAOF NO ONE")?;
        let began = (began, now_ms());
        self.round.eras.last_mut().unwrap().ended = ended;
        self.primary = heir;
        self.upstream[heir] = None;
        self.begin_era(how, began, Loss::Tail, Some(inherited))?;
        let mut above = heir;
        let others: Vec<_> = self.others(heir).filter(|node| *node != old).chain([old]).collect();
        for node in others {
            self.upstream[node] = Some(above);
            if node != old {
                self.follow(node)?;
            }
            above = if chain { node } else { heir };
        }
        Ok(())
    }

    fn failover(&mut self, replica: usize) -> Done {
        let (old, replicas) = (self.primary, self.replicas_of(self.primary));
        let heir = replicas[replica % replicas.len()];
        let (mut c, mut h) = (self.dial(old), self.dial(heir));
        let began = now_ms();
        let port = self.nodes[heir].proxy.port.to_string();
        c.try_cmd(args!["FAILOVER", "TO", "127.0.0.1", port, "TIMEOUT", 5000])?;
        wait("the failover", || {
            replication(&mut h, "role") == "master"
                || replication(&mut c, "master_failover_state") == "no-failover"
                    && replication(&mut c, "role") == "master"
        })?;
        self.held_up_since(began);
        if replication(&mut h, "role") == "master" {
            self.primary = heir;
            (self.upstream[old], self.upstream[heir]) = (Some(heir), None);
            self.begin_era("FAILOVER", (began, now_ms()), Loss::Nothing, None)?;
        }
        self.settle()
    }

    fn restart_primary(&mut self, how: Stop) -> Done {
        let began = now_ms();
        self.stop(self.primary, how)?;
        self.start_again(self.primary);
        self.held_up_since(began);
        self.begin_era(&format!("restart ({how:?})"), (began, now_ms()), Loss::Nothing, None)?;
        self.settle()
    }

    fn reload(&mut self, command: &str) -> Done {
        let shared = self.shared;
        let _nobody_else: Vec<RwLockWriteGuard<'_, ()>> =
            shared.spaces.iter().map(|space| space.write().unwrap()).collect();
        let began = now_ms();
        self.dial(self.primary).try_cmd(command)?;
        self.held_up_since(began);
        self.begin_era(command, (began, now_ms()), Loss::Nothing, None)
    }

    // ---- keys --------------------------------------------------------------------------------

    /// Does to a space what must not happen beside other commands, so that it is clear what came first.
    fn alone_in(&mut self, space: usize, what: What, words: Vec<Vec<u8>>) -> Done {
        let shared = self.shared;
        let _nobody_else = shared.spaces[space].write().unwrap();
        let mut c = self.dial(self.primary);
        let sent = now_ms();
        let reply = match c.try_cmd(words)? {
            Value::Int(n) => Reply::Count(n),
            other => return Err(format!("{what:?} was answered by {other:?}")),
        };
        self.shared.ops.lock().unwrap().push(Op {
            client: usize::MAX,
            era: self.round.eras.len() - 1,
            space: SPACES[space].to_string(),
            who: Vec::new(),
            what,
            sent,
            received: Some(now_ms()),
            reply,
        });
        Ok(())
    }

    fn trip(&mut self, space: &str, by: Trip) -> Done {
        let mut c = self.dial(self.primary);
        let all: Vec<Vec<Vec<u8>>> = match by {
            Trip::Rename => vec![args!["RENAME", space, "away"], args!["RENAME", "away", space]],
            Trip::Copy => vec![args!["COPY", space, "away"], args!["RENAME", "away", space]],
            Trip::Move => vec![
                args!["MOVE", space, 1],
                args!["SELECT", 1],
                args!["MOVE", space, 0],
                args!["SELECT", 0],
            ],
            Trip::Swap => vec![args!["SWAPDB", 0, 1], args!["SWAPDB", 1, 0]],
            Trip::Restore => {
                let script = "local dump = redis.call('DUMP', KEYS[1]) \
                              if dump then redis.call('RESTORE', KEYS[1], 0, dump, 'REPLACE') end";
                vec![args!["EVAL", script, 1, space]]
            }
        };
        c.try_cmd("MULTI")?;
        for words in &all {
            c.try_cmd(words)?;
        }
        // There may be no such space: then nothing happens.
        c.try_cmd("EXEC").map(drop)
    }

    /// All spaces go to other places, and stay there. Where there is no such space, nothing happens.
    fn go_away(&mut self) -> Done {
        let mut c = self.dial(self.primary);
        let trips = self.plan.last_trips.iter().copied();
        if self.plan.last_trips[0] == Trip::Swap {
            c.try_cmd("SWAPDB 0 1")?;
            self.places.iter_mut().for_each(|place| place.db = 1);
            return Ok(());
        }
        for ((space, place), trip) in SPACES.iter().zip(&mut self.places).zip(trips) {
            let away = format!("{AWAY}{space}");
            let script = match trip {
                Trip::Rename => "redis.call('RENAME', KEYS[1], KEYS[2])",
                Trip::Copy => "redis.call('COPY', KEYS[1], KEYS[2]) redis.call('DEL', KEYS[1])",
                Trip::Restore => {
                    "redis.call('RESTORE', KEYS[2], 0, redis.call('DUMP', KEYS[1])) redis.call('DEL', KEYS[1])"
                }
                Trip::Move | Trip::Swap => "redis.call('MOVE', KEYS[1], 1)",
            };
            let script =
                format!("if redis.call('EXISTS', KEYS[1]) == 1 then {script} end return 1");
            c.try_cmd(args!["EVAL", script, 2, space, &away])?;
            match trip {
                Trip::Move | Trip::Swap => place.db = 1,
                _ => place.key = away,
            }
        }
        Ok(())
    }

    // ---- comparing ---------------------------------------------------------------------------

    /// Stops the primary's decisions and compares all nodes.
    fn compare(&mut self) -> Done {
        // Replicas are told of a grace soon after it was granted, not at once.
        let told = self.round.eras.last().unwrap().began.1 + 1000;
        sleep_until(told);
        let mut c = self.dial(self.primary);
        let began = now_ms();
        c.try_cmd("CLIENT PAUSE 60000 WRITE")?;
        let compared = self.digests(&mut c);
        let mut followers = self.followers.iter().enumerate();
        let followed = followers.try_for_each(|(node, f)| f.compare(&mut self.dial(node)));
        c.try_cmd("CLIENT UNPAUSE")?;
        self.held_up_since(began);
        self.round.digests.push(compared?);
        followed?;
        Ok(())
    }

    fn digests(&self, c: &mut Conn) -> Result<Vec<(String, Vec<String>)>, String> {
        self.await_replicas(c)?;
        let nodes = [self.primary].into_iter().chain(self.others(self.primary));
        let digest = |n: &mut Conn, place: &Place| {
            n.ok(args!["SELECT", place.db]);
            n.digest(&place.key)
        };
        let of_node = |node: usize| {
            let mut n = self.dial(node);
            self.places.iter().map(|place| digest(&mut n, place)).collect()
        };
        Ok(nodes.map(|node| (format!("node {node}"), of_node(node))).collect())
    }

    /// Waits until all replicas have what the primary has now.
    fn await_replicas(&self, primary: &mut Conn) -> Done {
        let wanted = offset(primary, "master_repl_offset");
        for node in self.others(self.primary) {
            let mut n = self.dial(node);
            wait("a replica to catch up", || offset(&mut n, "slave_repl_offset") >= wanted)?;
        }
        Ok(())
    }

    fn end_followers(&mut self) {
        for follower in self.followers.drain(..) {
            let (misled, counts) = follower.end();
            self.round.misled.extend(misled);
            let sums = self.round.followed.iter_mut().zip(counts);
            sums.for_each(|(sum, count)| *sum += count);
        }
    }

    /// Waits until everybody has lapsed, and reads what there is in the end.
    fn wind_down(&mut self) -> Done {
        self.heal();
        self.settle()?;
        self.compare()?;
        self.end_followers();
        self.go_away()?;
        if self.plan.last_crash {
            self.await_replicas(&mut self.dial(self.primary))?;
            match self.plan.topology {
                Topology::Single => self.restart_primary(Stop::Kill)?,
                _ => self.kill_and_promote(false)?,
            }
            self.compare()?;
        }
        let mut c = self.dial(self.primary);
        let ghosts = |c: &mut Conn| -> i64 {
            let users = c.info("everything").get("presence_users").cloned();
            users.and_then(|n| n.parse().ok()).unwrap_or(-1)
        };
        let end = Instant::now() + LONGEST_LEASE;
        // Who is still there after that is a matter of the checker.
        while ghosts(&mut c) != 0 && Instant::now() < end {
            thread::sleep(ms(10));
        }
        self.marks += 1;
        mark(&mut c, self.marks)?;
        let last = self.marks;
        for node in &mut self.nodes {
            let recorder = node.recorder();
            wait("the last mark", || recorder.has_heard(last))?;
        }
        self.compare()?;
        let nodes: Vec<_> = [self.primary].into_iter().chain(self.others(self.primary)).collect();
        for node in nodes {
            let reading = read_all(&mut self.dial(node), &self.places)?;
            self.round.finals.push(reading);
        }
        self.look_for_deaths()
    }

    fn finish(mut self) -> Round {
        self.end_followers();
        let mut round = std::mem::take(&mut self.round);
        if let Some(era) = round.eras.last_mut() {
            era.ended = now_ms();
        }
        let ports: Vec<_> = self.nodes.iter().map(|node| node.proxy.port).collect();
        round.streams.resize_with(self.streams, Default::default);
        for (number, node) in self.nodes.iter().enumerate() {
            for recorder in &node.recorders {
                round.streams[recorder.stream] = recorder.take(number);
            }
            for (port, at) in node.proxy.full_syncs() {
                round.full_syncs.extend(ports.iter().position(|p| *p == port).map(|n| (n, at)));
            }
            round.troubles.extend(troubles_in_log(node));
        }
        round.ops = std::mem::take(&mut self.shared.ops.lock().unwrap());
        round.glimpses = std::mem::take(&mut self.shared.glimpses.lock().unwrap());
        round
    }

    // ---- servers and links -------------------------------------------------------------------

    fn dial(&self, node: usize) -> Conn {
        self.nodes[node].dial()
    }

    fn others(&self, than: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(move |node| *node != than)
    }

    /// One of the replicas.
    fn replica(&self, number: usize) -> usize {
        let replicas: Vec<_> = self.others(self.primary).collect();
        replicas[number % replicas.len()]
    }

    fn replicas_of(&self, node: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| self.upstream[*n] == Some(node)).collect()
    }

    fn upstream_port(&self, node: usize) -> Option<u16> {
        self.upstream[node].map(|above| self.nodes[above].proxy.port)
    }

    fn follow(&self, node: usize) -> Done {
        let Some(port) = self.upstream_port(node) else { return Ok(()) };
        self.dial(node).try_cmd(args!["REPLICAOF", "127.0.0.1", port.to_string()]).map(drop)
    }

    fn follow_all(&self) -> Done {
        (0..self.nodes.len()).try_for_each(|node| self.follow(node))
    }

    fn cut_off(&self, node: usize, how: Cut) {
        if let Some(above) = self.upstream[node] {
            self.nodes[above].proxy.cut_replica(self.nodes[node].proxy.port, how);
        }
    }

    fn heal(&self) {
        self.nodes.iter().for_each(|node| node.proxy.mend());
    }

    /// Waits until all links are up, and all nodes have the history of the primary: a replica's own replica may be up
    /// while what it has is another's.
    fn settle(&mut self) -> Done {
        let mut p = self.dial(self.primary);
        for node in self.others(self.primary) {
            let mut c = self.dial(node);
            wait(&format!("the link of node {node}"), || {
                replication(&mut c, "master_link_status") == "up"
                    && replication(&mut c, "master_replid") == replication(&mut p, "master_replid")
            })?;
        }
        self.history = replication(&mut p, "master_replid");
        Ok(())
    }

    fn await_links_down(&self, old: usize) -> Done {
        for node in self.replicas_of(old) {
            let mut c = self.dial(node);
            wait("the link to go down", || replication(&mut c, "master_link_status") == "down")?;
        }
        Ok(())
    }

    fn held_up_since(&mut self, began: i64) {
        self.round.held_up.push((began, now_ms()));
    }

    fn look_for_deaths(&self) -> Done {
        let died = self.nodes.iter().position(|node| node.server.crashed());
        died.map_or(Ok(()), |node| Err(format!("node {node} died by itself")))
    }

    fn stop(&mut self, node: usize, how: Stop) -> Done {
        self.look_for_deaths()?;
        self.nodes[node].server.stop(how);
        self.nodes[node].recorder().finish();
        self.round.troubles.extend(troubles_in_log(&self.nodes[node]));
        Ok(())
    }

    /// Brings a stopped server back as the primary or replica that it is to be.
    fn start_again(&mut self, number: usize) {
        let upstream = self.upstream_port(number);
        let node = &mut self.nodes[number];
        node.configure(upstream);
        node.server.start_again();
        node.recorders.push(Recorder::start(node.server.port, self.streams));
        self.streams += 1;
    }
}

/// Lines of a log that no fault explains.
fn troubles_in_log(node: &Node) -> Vec<String> {
    const WORDS: [&str; 7] = [
        "BUG REPORT",
        "ASSERTION FAILED",
        "crashed by signal",
        "panicked at",
        "sending an error to its",
        "does not fit",
        "Bad file format",
    ];
    let log = node.server.log();
    let lines = log.lines().filter(|line| WORDS.iter().any(|word| line.contains(word)));
    lines.map(|line| format!("port {}: {line}", node.server.port)).collect()
}
