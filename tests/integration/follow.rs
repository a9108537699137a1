//! Snapshot, then deltas, nothing missed: many clients at once that subscribe, read SPACE in pages and apply events.
//!
//! Each client is a small state machine over its own connections; a few threads drive them all, so that what happens
//! between two of a client's steps is left to the server and to chance.

use crate::harness::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

// ---------------------------------------------------------------------------------------------------------------------
// A connection that never waits

#[derive(Debug, Clone)]
enum Reply {
    Int(i64),
    Text(Vec<u8>),
    List(Vec<Reply>),
    Null,
    Error(String),
}

impl Reply {
    #[track_caller]
    fn text(&self) -> String {
        let Reply::Text(bytes) = self else { panic!("no text: {self:?}") };
        String::from_utf8(bytes.clone()).unwrap()
    }

    #[track_caller]
    fn list(&self) -> &[Reply] {
        let Reply::List(items) = self else { panic!("no list: {self:?}") };
        items
    }
}

struct Wire {
    stream: TcpStream,
    input: Vec<u8>,
    at: usize,
    output: Vec<u8>,
    ended: bool,
}

impl Wire {
    fn open(port: u16) -> Wire {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
        Wire { stream, input: Vec::new(), at: 0, output: Vec::new(), ended: false }
    }

    /// To be sent with the next `flush`.
    fn send(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        self.output.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for w in words {
            self.output.extend_from_slice(format!("${}\r\n{w}\r\n", w.len()).as_bytes());
        }
    }

    fn flush(&mut self) {
        while !self.output.is_empty() && !self.ended {
            match self.stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(ms(1)),
                Err(_) => self.ended = true,
            }
        }
    }

    /// Takes in what has arrived. False if nothing had.
    fn fill(&mut self) -> bool {
        if self.at > 1 << 16 {
            self.input.drain(..self.at);
            self.at = 0;
        }
        let mut chunk = [0; 1 << 14];
        let mut any = false;
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.ended = true;
                    return any;
                }
                Ok(n) => {
                    self.input.extend_from_slice(&chunk[..n]);
                    any = true;
                    if n < chunk.len() {
                        return true;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return any,
                Err(_) => {
                    self.ended = true;
                    return any;
                }
            }
        }
    }

    // A reply is parsed when it is there, so one that comes in many pieces is tried as often: pages are not too large.
    fn line(&self, at: &mut usize) -> Option<(u8, i64, std::ops::Range<usize>)> {
        let from = *at;
        let rest = &self.input[from..];
        let end = rest.iter().position(|b| *b == b'\n')?.checked_sub(1)?;
        *at = from + end + 2;
        let body = &rest[1..end];
        let number = std::str::from_utf8(body).ok().and_then(|s| s.parse().ok()).unwrap_or(0);
        Some((rest[0], number, from + 1..from + end))
    }

    fn parse(&self, at: &mut usize) -> Option<Reply> {
        let (kind, n, body) = self.line(at)?;
        let list = |at: &mut usize, n: i64| {
            let items: Option<Vec<Reply>> = (0..n).map(|_| self.parse(at)).collect();
            items.map(Reply::List)
        };
        match kind {
            b'$' if n < 0 => Some(Reply::Null),
            b'$' => {
                let bytes = self.input.get(*at..*at + n as usize)?.to_vec();
                *at += n as usize + 2;
                (self.input.len() >= *at).then_some(Reply::Text(bytes))
            }
            b'*' if n < 0 => Some(Reply::Null),
            b'*' | b'>' => list(at, n),
            b'%' => list(at, n * 2),
            b':' => Some(Reply::Int(n)),
            b'#' => Some(Reply::Int((self.input[body] == *b"t") as i64)),
            b'_' => Some(Reply::Null),
            b'-' => Some(Reply::Error(String::from_utf8_lossy(&self.input[body]).into_owned())),
            b'+' => Some(Reply::Text(self.input[body].to_vec())),
            other => panic!("RESP type {:?}", other as char),
        }
    }

    /// The payload of a published message, if that is what comes next, whole. The short way for what comes most.
    fn next_published(&mut self) -> Option<(std::ops::Range<usize>, std::ops::Range<usize>)> {
        const HEAD: &[u8] = b"3\r\n$7\r\nmessage\r\n$";
        let from = self.at + 1;
        if self.input.get(from..from + HEAD.len())? != HEAD {
            return None;
        }
        let number = |mut at: usize| {
            let mut n = 0;
            loop {
                match *self.input.get(at)? {
                    b'\r' => return Some((n, at + 2)),
                    digit => n = n * 10 + (digit - b'0') as usize,
                }
                at += 1;
            }
        };
        let (n, channel) = number(from + HEAD.len())?;
        let (m, payload) = number(channel + n + 3)?;
        self.input.get(payload + m + 1)?;
        self.at = payload + m + 2;
        Some((channel..channel + n, payload..payload + m))
    }

    /// The next whole reply or message. A push of RESP3 is told by its `>`.
    fn next(&mut self) -> Option<(bool, Reply)> {
        if self.at == self.input.len() {
            return None;
        }
        let mut at = self.at;
        let push = self.input[at] == b'>';
        let reply = self.parse(&mut at)?;
        self.at = at;
        Some((push, reply))
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// A follower

/// What of an event a follower needs.
struct Fact {
    id: (i64, u64),
    kind: &'static str,
    user: String,
    session: String,
    raw: String,
}

/// Each event is read by everybody, but parsed once a thread.
#[derive(Default)]
struct Facts(HashMap<Vec<u8>, Arc<Fact>>);

impl Facts {
    fn of(&mut self, payload: &[u8]) -> Arc<Fact> {
        if let Some(fact) = self.0.get(payload) {
            return fact.clone();
        }
        let e = Event::parse(Message { channel: vec![], payload: payload.to_vec(), arrived: 0 });
        let kinds = ["join", "add", "update", "remove", "leave", "message", "close"];
        let fact = Arc::new(Fact {
            id: e.id(),
            kind: kinds.into_iter().find(|k| *k == e.kind()).unwrap(),
            user: e.user().into(),
            session: e.str("session").into(),
            raw: e.raw,
        });
        self.0.insert(payload.to_vec(), fact.clone());
        fact
    }
}

/// One client's picture of a space, built as the contract says and in no other way.
#[derive(Default)]
struct View {
    /// The id of the first page, then of the last event that was applied.
    last: Option<(i64, u64)>,
    roster: Roster,
    /// Events that came while the pages were read.
    waiting: Vec<Arc<Fact>>,
    /// All pages are read.
    whole: bool,
    /// How many events came while the pages were read.
    meanwhile: usize,
}

impl View {
    /// A page of SPACE … WITHSESSIONS; returns the cursor.
    fn page(&mut self, reply: &Reply) -> String {
        let [_, id, _, _, _, _, _, cursor, _, members] = reply.list() else { panic!("{reply:?}") };
        self.last.get_or_insert_with(|| parse_id(&id.text()));
        for member in members.list() {
            let [_, user, _, sessions] = member.list() else { panic!("{member:?}") };
            let names = sessions.list().iter().map(|s| s.list()[1].text());
            self.roster.entry(user.text()).or_default().extend(names);
        }
        let cursor = cursor.text();
        if cursor == "0" {
            self.whole = true;
            self.meanwhile = self.waiting.len();
            for fact in std::mem::take(&mut self.waiting) {
                assert!(self.apply(&fact), "a hole before {} after {:?}", fact.raw, self.last);
            }
        }
        cursor
    }

    /// An event that was published. False where one before it is missing.
    fn published(&mut self, fact: Arc<Fact>) -> bool {
        if self.whole {
            return self.apply(&fact);
        }
        self.waiting.push(fact);
        true
    }

    fn apply(&mut self, fact: &Fact) -> bool {
        let last = self.last.unwrap();
        if fact.id <= last {
            return true;
        }
        // From nothing, the first event names the epoch.
        let next = if last == (0, 0) { (fact.id.0, 1) } else { (last.0, last.1 + 1) };
        if fact.id != next {
            return false;
        }
        self.last = Some(fact.id);
        let (user, session) = (&fact.user, &fact.session);
        match fact.kind {
            "join" | "add" => {
                self.roster.entry(user.clone()).or_default().insert(session.clone());
            }
            // A lease that was over when the snapshot was read is in no page, but its end is an event.
            "remove" => {
                if let Some(sessions) = self.roster.get_mut(user) {
                    sessions.remove(session);
                }
            }
            "leave" => drop(self.roster.remove(user)),
            _ => {}
        }
        true
    }
}

/// What a client does of itself before it stays, one command after the other.
type Script = VecDeque<(Duration, String)>;

enum Step {
    /// Its own script goes on; the next command is due at the moment given.
    Idle,
    /// Waiting for so many replies to commands of the script.
    Acting(usize),
    Paging,
    CatchingUp,
}

struct Client {
    port: u16,
    rng: StdRng,
    space: String,
    page: usize,
    cmd: Wire,
    /// A second connection for the channel, or the same in RESP3.
    sub: Option<Wire>,
    resp3: bool,
    subscribed: bool,
    /// After which id it has asked for events.
    asked: (i64, u64),
    /// It has subscribed once; what comes after that is a reconnect.
    knows: bool,
    step: Step,
    script: Script,
    due: Instant,
    drops: usize,
    drop_at: Instant,
    view: View,
    reconnects: usize,
    resnapshots: usize,
}

impl Client {
    fn new(port: u16, seed: u64, resp3: bool) -> Client {
        let mut cmd = Wire::open(port);
        if resp3 {
            hello(&mut cmd);
        }
        Client {
            port,
            rng: StdRng::seed_from_u64(seed),
            space: String::new(),
            page: 20,
            cmd,
            sub: None,
            resp3,
            subscribed: false,
            asked: (0, 0),
            knows: false,
            step: Step::Idle,
            script: Script::new(),
            due: Instant::now(),
            drops: 0,
            drop_at: Instant::now(),
            view: View::default(),
            reconnects: 0,
            resnapshots: 0,
        }
    }

    /// A new round: another space, nothing known. Nothing of the last round is under way.
    fn begin(&mut self, space: &str, page: usize, script: Script, drops: usize) {
        if self.subscribed {
            let line = format!("UNSUBSCRIBE presence:{}", self.space);
            self.channel().send(&line);
        }
        self.space = space.into();
        self.page = page;
        self.script = script;
        self.due = Instant::now();
        self.drops = drops;
        self.view = View::default();
        (self.subscribed, self.knows) = (false, false);
        self.step = Step::Idle;
        self.subscribe();
    }

    fn channel(&mut self) -> &mut Wire {
        self.sub.as_mut().unwrap_or(&mut self.cmd)
    }

    fn subscribe(&mut self) {
        if !self.resp3 && self.sub.is_none() {
            self.sub = Some(Wire::open(self.port));
        }
        let line = format!("SUBSCRIBE presence:{}", self.space);
        self.channel().send(&line);
        self.drop_at = Instant::now() + ms(self.rng.random_range(1..60));
    }

    fn space_page(&mut self, cursor: &str) {
        self.step = Step::Paging;
        let line = format!(
            "PRESENCE.SPACE {} WITHSESSIONS CURSOR {cursor} COUNT {}",
            self.space, self.page
        );
        self.cmd.send(&line);
    }

    fn catch_up(&mut self) {
        self.step = Step::CatchingUp;
        self.asked = self.view.last.unwrap();
        let (epoch, seq) = self.asked;
        let line = format!("PRESENCE.EVENTS {} AFTER {epoch}-{seq}", self.space);
        self.cmd.send(&line);
    }

    /// Its snapshot is whole and its own script is at its end.
    fn is_settled(&self) -> bool {
        self.script.is_empty()
            && self.drops == 0
            && self.subscribed
            && self.view.whole
            && matches!(self.step, Step::Idle)
    }

    /// Does what can be done now. False if nothing could.
    fn turn(&mut self, facts: &mut Facts) -> bool {
        let mut any = self.cmd.fill();
        if let Some(sub) = &mut self.sub {
            any |= sub.fill();
        }
        loop {
            self.published(facts);
            let Some((push, reply)) = self.cmd.next() else { break };
            any = true;
            if push {
                self.message(&reply);
            } else {
                self.reply(reply, facts);
            }
        }
        while let Some((_, reply)) = self.sub.as_mut().and_then(Wire::next) {
            any = true;
            self.message(&reply);
            self.published(facts);
        }
        if matches!(self.step, Step::Idle) && self.subscribed {
            let now = Instant::now();
            if self.drops > 0 && self.view.whole && now >= self.drop_at {
                self.drops -= 1;
                self.reconnects += 1;
                self.disconnect();
                return true;
            }
            if now >= self.due {
                let mut sent = 0;
                while let Some((pause, line)) = self.script.pop_front() {
                    self.cmd.send(&line);
                    sent += 1;
                    if !pause.is_zero() {
                        self.due = now + pause;
                        break;
                    }
                }
                if sent > 0 {
                    self.step = Step::Acting(sent);
                    any = true;
                }
            }
        }
        assert!(
            !self.cmd.ended && self.sub.as_ref().is_none_or(|s| !s.ended),
            "the server hung up: {} events wait, last {:?}",
            self.view.waiting.len(),
            self.view.last
        );
        any
    }

    /// The connection breaks; whatever was on its way is lost.
    fn disconnect(&mut self) {
        self.subscribed = false;
        if self.resp3 {
            self.cmd = Wire::open(self.port);
            hello(&mut self.cmd);
        }
        self.sub = None;
        self.subscribe();
    }

    fn flush(&mut self) {
        self.cmd.flush();
        if let Some(sub) = &mut self.sub {
            sub.flush();
        }
    }

    fn is_ours(&self, channel: &[u8]) -> bool {
        channel.strip_prefix(b"presence:") == Some(self.space.as_bytes())
    }

    /// Takes in all published messages that come next on the connection for them.
    fn published(&mut self, facts: &mut Facts) {
        while let Some((channel, payload)) = self.channel().next_published() {
            let wire = self.sub.as_ref().unwrap_or(&self.cmd);
            if !self.is_ours(&wire.input[channel]) {
                continue;
            }
            let fact = facts.of(&wire.input[payload]);
            // After a reconnect there is a hole until EVENTS has filled it.
            if !self.view.published(fact.clone()) {
                assert!(
                    matches!(self.step, Step::CatchingUp),
                    "a hole before {} after {:?}, though nothing broke",
                    fact.raw,
                    self.view.last
                );
                self.view.waiting.push(fact);
            }
        }
    }

    /// A message that is no event: the confirmation that the channel is subscribed to.
    fn message(&mut self, reply: &Reply) {
        let [Reply::Text(kind), Reply::Text(channel), _] = reply.list() else {
            panic!("{reply:?}")
        };
        assert_ne!(kind, b"message");
        if kind != b"subscribe" || !self.is_ours(channel) {
            return;
        }
        self.subscribed = true;
        if self.knows && self.view.whole {
            self.catch_up();
        } else {
            self.knows = true;
            self.space_page("0");
        }
    }

    fn reply(&mut self, reply: Reply, facts: &mut Facts) {
        if let Reply::Error(e) = &reply {
            panic!("{}: {e}", self.space);
        }
        match std::mem::replace(&mut self.step, Step::Idle) {
            Step::Acting(n) if n > 1 => self.step = Step::Acting(n - 1),
            Step::Acting(_) | Step::Idle => {}
            Step::Paging => {
                let cursor = self.view.page(&reply);
                if cursor != "0" {
                    self.space_page(&cursor);
                }
            }
            Step::CatchingUp => {
                let [_, _, _, gap, _, events] = reply.list() else { panic!("{reply:?}") };
                let facts: Vec<_> = events
                    .list()
                    .iter()
                    .map(|e| match e {
                        Reply::Text(payload) => facts.of(payload),
                        other => panic!("{other:?}"),
                    })
                    .collect();
                let hole = matches!(gap, Reply::Int(1));
                if let (Some(first), true) = (facts.first(), self.asked != (0, 0)) {
                    let next = (self.asked.0, self.asked.1 + 1);
                    assert_eq!(hole, first.id != next, "gap after {:?}: {}", self.asked, first.raw);
                }
                if hole {
                    self.resnapshots += 1;
                    let waiting = std::mem::take(&mut self.view.waiting);
                    self.view = View { waiting, ..View::default() };
                    self.space_page("0");
                    return;
                }
                for fact in &facts {
                    assert!(self.view.apply(fact), "EVENTS has a hole before {}", fact.raw);
                }
                for fact in std::mem::take(&mut self.view.waiting) {
                    assert!(
                        self.view.apply(&fact),
                        "a hole before {} after EVENTS up to {:?}",
                        fact.raw,
                        self.view.last
                    );
                }
            }
        }
    }
}

fn hello(wire: &mut Wire) {
    wire.send("HELLO 3");
    wire.flush();
    let end = Instant::now() + SOON;
    while wire.next().is_none() {
        wire.fill();
        assert!(Instant::now() < end && !wire.ended, "no reply to HELLO");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The truth

/// Hears every event from the first on, and folds them by the strictest rules there are.
struct Log {
    conn: Conn,
    sub: Subscriber,
    last: (i64, u64),
    roster: Roster,
    events: usize,
}

impl Log {
    /// Of a space that does not exist yet, or in which nothing happens now.
    fn new(server: &Server, space: &str) -> Log {
        let mut conn = server.connect();
        let sub = server.subscribe(&[format!("presence:{space}")]);
        let s = conn.space(space);
        Log { conn, sub, last: parse_id(&s.id), roster: s.roster(), events: 0 }
    }

    fn read(&mut self) {
        for e in self.sub.events_so_far(&mut self.conn) {
            let next =
                if self.last == (0, 0) { (e.id().0, 1) } else { (self.last.0, self.last.1 + 1) };
            assert_eq!(e.id(), next, "a hole in the log");
            if e.kind() != "message" {
                e.fold(&mut self.roster);
            }
            self.last = e.id();
            self.events += 1;
        }
    }
}

/// What 150 clients do in one round: each comes and goes a little, then stays. Leases of some lapse.
fn script(rng: &mut StdRng, space: &str, user: usize) -> (Script, Vec<String>) {
    let mut script = Script::new();
    let mut act = |pause: u64, line: String| script.push_back((ms(pause), line));
    for _ in 0..[0, 0, 0, 1, 1][rng.random_range(0..5)] {
        let n = rng.random_range(1..8);
        match rng.random_range(0..6) {
            0 => {
                act(0, format!("PRESENCE.ONLINE {space} u{user}"));
                act(0, format!("PRESENCE.OFFLINE {space} u{user}"));
            }
            1 => act(n + 3, format!("PRESENCE.ONLINE {space} u{user} PX {n}")),
            2 => act(0, format!("PRESENCE.ONLINE {space} u{user} SESSION t PX {n}")),
            3 => act(0, format!("PRESENCE.ONLINE {space} ghost{user} PX {n}")),
            4 => {
                act(0, format!("PRESENCE.ONLINE {space} u{user} SESSION l META {n}"));
                act(0, format!("PRESENCE.OFFLINE {space} u{user} SESSION l LINGER {n}"));
            }
            _ => {
                act(0, format!("PRESENCE.ONLINE {space} ghost{user} SESSION g"));
                act(0, format!("PRESENCE.MESSAGE {space} ghost{user} boo"));
                act(0, format!("PRESENCE.OFFLINE {space} ghost{user}"));
            }
        }
    }
    let mut stays = vec![String::new()];
    act(0, format!("PRESENCE.ONLINE {space} u{user} EX 600"));
    if rng.random_range(0..10) == 0 {
        act(0, format!("PRESENCE.ONLINE {space} u{user} SESSION second EX 600"));
        stays.push("second".into());
    }
    (script, stays)
}

struct Sum {
    rounds: usize,
    events: usize,
    reconnects: usize,
    resnapshots: usize,
}

/// For so long, in seconds; PRESENCE_FOLLOW_TIMES=10 gives each test ten times that and as many rounds.
fn time(seconds: u64) -> Duration {
    Duration::from_secs(seconds * times())
}

fn times() -> u64 {
    std::env::var("PRESENCE_FOLLOW_TIMES").ok().and_then(|s| s.parse().ok()).unwrap_or(1)
}

const CLIENTS: usize = 150;
const THREADS: usize = 2;

/// Rounds until there were `rounds` or `time` is over. `drops`: how often each client loses its connection a round, at
/// most. Every client must end with exactly who is there, having seen no hole.
fn rounds(seed: u64, config: &[(&str, &str)], rounds: usize, time: Duration, drops: usize) -> Sum {
    let mut rng = rng(seed);
    let server = Server::with(config);
    let end = Instant::now() + time;
    let mut teams: Vec<Vec<Client>> = (0..THREADS)
        .map(|t| {
            (0..CLIENTS)
                .filter(|i| i % THREADS == t)
                .map(|i| Client::new(server.port, rng.random(), i % 3 == 0))
                .collect()
        })
        .collect();
    let mut sum = Sum { rounds: 0, events: 0, reconnects: 0, resnapshots: 0 };
    while sum.rounds < FEWEST || (sum.rounds < rounds * times() as usize && Instant::now() < end) {
        let round = sum.rounds;
        let space = format!("r{round}");
        let mut wanted = Roster::new();
        let mut log = Log::new(&server, &space);
        for (t, team) in teams.iter_mut().enumerate() {
            for (i, client) in team.iter_mut().enumerate() {
                let user = t + i * THREADS;
                let (script, stays) = script(&mut rng, &space, user);
                wanted.insert(format!("u{user}"), stays.into_iter().collect());
                let drops = if drops > 0 { rng.random_range(0..=drops) } else { 0 };
                let page = [20, 40, 60, 1000][rng.random_range(0..4)];
                client.begin(&space, page, script, drops);
            }
        }
        let (settled, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        // The id of the last event, once the log says that all that is to happen has.
        let last = Mutex::new(None);
        let failed = AtomicBool::new(false);
        let wanted = &wanted;
        let (settled, done, last, failed, log) = (&settled, &done, &last, &failed, &mut log);
        let deadline = Instant::now() + Duration::from_secs(60);
        std::thread::scope(|scope| {
            for team in &mut teams {
                scope.spawn(move || {
                    let guard = OnPanic(failed);
                    let mut facts = Facts::default();
                    let mut is_settled = vec![false; team.len()];
                    let mut is_done = vec![false; team.len()];
                    while is_done.contains(&false) {
                        let mut any = false;
                        let target = *last.lock().unwrap();
                        for (i, client) in team.iter_mut().enumerate() {
                            any |= client.turn(&mut facts);
                            if !is_settled[i] && client.is_settled() {
                                is_settled[i] = true;
                                settled.fetch_add(1, SeqCst);
                            }
                            if !is_done[i]
                                && target.is_some()
                                && client.is_settled()
                                && client.view.last == target
                            {
                                is_done[i] = true;
                                done.fetch_add(1, SeqCst);
                                compare(&client.view.roster, wanted, || {
                                    format!("round {round}, {}", client.space)
                                });
                            }
                        }
                        assert!(!failed.load(SeqCst), "another thread failed");
                        if Instant::now() > deadline {
                            let late: Vec<_> = team
                                .iter()
                                .zip(&is_done)
                                .filter(|(_, done)| !**done)
                                .map(|(c, _)| (c.view.last, c.is_settled(), c.resp3))
                                .collect();
                            panic!("round {round}: not at {target:?} in time: {late:?}");
                        }
                        // All at once: the server, too, does better with many commands at a time.
                        team.iter_mut().for_each(Client::flush);
                        std::thread::sleep(Duration::from_micros(if any { 100 } else { 500 }));
                    }
                    drop(guard);
                });
            }
            let guard = OnPanic(failed);
            wait_until("all clients to settle", Duration::from_secs(60), || {
                assert!(!failed.load(SeqCst), "a client failed");
                // In two rounds of three the server now and then looks away for a moment, and then finds many commands
                // at once: "at once" in earnest, and far less work for all.
                if !round.is_multiple_of(3) {
                    log.conn.ok("DEBUG SLEEP 0.006");
                }
                settled.load(SeqCst) == CLIENTS
            });
            wait_until("the ghosts to leave", SOON * 2, || {
                log.read();
                log.roster == *wanted
            });
            sum.events += log.events;
            *last.lock().unwrap() = Some(log.last);
            // Nothing more happens: the snapshot says the same.
            let s = log.conn.space(&space);
            assert_eq!(
                (parse_id(&s.id), s.users, s.roster() == *wanted),
                (log.last, CLIENTS as i64, true)
            );
            drop(guard);
        });
        assert_eq!(done.load(SeqCst), CLIENTS);
        server.connect().ok(["DEL", &space]);
        sum.rounds += 1;
    }
    let clients = || teams.iter().flatten();
    sum.reconnects = clients().map(|c| c.reconnects).sum();
    sum.resnapshots = clients().map(|c| c.resnapshots).sum();
    println!(
        "{} rounds, {} events, {} reconnects, {} snapshots read again",
        sum.rounds, sum.events, sum.reconnects, sum.resnapshots
    );
    sum
}

struct OnPanic<'a>(&'a AtomicBool);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, SeqCst);
        }
    }
}

#[track_caller]
fn compare(got: &Roster, wanted: &Roster, what: impl Fn() -> String) {
    if got != wanted {
        let wrong: BTreeMap<_, _> = got
            .keys()
            .chain(wanted.keys())
            .filter(|u| got.get(*u) != wanted.get(*u))
            .map(|u| (u, (got.get(u), wanted.get(u))))
            .take(20)
            .collect();
        panic!(
            "{}: {} users, {} expected; (got, expected): {wrong:?}",
            what(),
            got.len(),
            wanted.len()
        );
    }
}

const LONG: &[(&str, &str)] = &[
    ("presence.history-length", "100000"),
    ("presence.history-ttl-ms", "3600000"),
    ("maxclients", "2000"),
];

/// However busy the machine is, so many rounds there are: enough to say something.
const FEWEST: usize = 10;

#[test]
fn a_hundred_and_fifty_join_at_once_and_all_see_all() {
    let sum = rounds(31, LONG, 300, time(18), 0);
    assert!(sum.events > sum.rounds * CLIENTS, "this run says little");
    assert_eq!((sum.reconnects, sum.resnapshots), (0, 0));
}

#[test]
fn who_is_disconnected_catches_up_by_events() {
    let sum = rounds(32, LONG, 150, time(14), 4);
    assert!(sum.reconnects > sum.rounds * 50, "this run says little");
    assert_eq!(sum.resnapshots, 0, "nothing was forgotten, so nobody needs another snapshot");
}

/// The same with a history of a few events: who was away for longer must be told so, and reads the snapshot again.
#[test]
fn who_missed_too_much_is_told_and_reads_again() {
    let sum =
        rounds(33, &[("presence.history-length", "20"), ("maxclients", "2000")], 150, time(9), 4);
    assert!(sum.resnapshots > 0, "this run says little");
}

/// Pages of a space of 100,000, read while hundreds come and go each moment.
#[test]
fn pages_of_a_large_space_under_churn() {
    let seed = 34;
    let mut rng = rng(seed);
    // Followers that are slow readers, on a busy machine, are not what this is about.
    let unlimited = Server::builder().line("client-output-buffer-limit pubsub 0 0 0");
    let server = LONG.iter().fold(unlimited, |b, (name, value)| b.config(name, value)).start();
    let mut c = server.connect();
    for portion in 0..100 {
        let users = (0..1000).map(|i| format!("m{}", portion * 1000 + i));
        let call: Vec<String> = ["PRESENCE.ONLINE", "big", "USERS", "1000"]
            .map(String::from)
            .into_iter()
            .chain(users)
            .chain(["EX".into(), "3600".into()])
            .collect();
        assert_eq!(c.int(call), 1000);
    }
    let end = Instant::now() + time(10);
    let mut log = Log::new(&server, "big");
    let (mut waves, mut meanwhile) = (0, 0);
    while waves < 12 * times() && (waves < 2 || Instant::now() < end) {
        let mut followers: Vec<Client> =
            (0..3).map(|i| Client::new(server.port, rng.random(), i == 0)).collect();
        for (i, f) in followers.iter_mut().enumerate() {
            f.begin("big", [300, 700, 1500][i], Script::new(), 1);
        }
        let mut churn = server.connect();
        let mut churn_rng = StdRng::seed_from_u64(rng.random());
        let stop = AtomicBool::new(false);
        let stop = &stop;
        let mut facts = Facts::default();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while !stop.load(SeqCst) {
                    let lines: Vec<String> = (0..20).map(|_| churn_line(&mut churn_rng)).collect();
                    churn.batch(&lines).into_iter().for_each(|r| drop(r.unwrap()));
                    std::thread::sleep(ms(4));
                }
            });
            let guard = Stop(stop);
            let deadline = Instant::now() + Duration::from_secs(60);
            // A while longer than until the pages are read, so that deltas follow.
            let mut enough = None;
            loop {
                let mut any = false;
                for follower in followers.iter_mut() {
                    any |= follower.turn(&mut facts);
                }
                if enough.is_none() && followers.iter().all(|f| f.view.whole && f.is_settled()) {
                    enough = Some(Instant::now() + ms(100));
                }
                if enough.is_some_and(|enough| Instant::now() > enough) {
                    break;
                }
                assert!(Instant::now() < deadline, "the pages do not come to an end");
                followers.iter_mut().for_each(Client::flush);
                std::thread::sleep(Duration::from_micros(if any { 10 } else { 300 }));
            }
            drop(guard);
        });
        meanwhile += followers.iter().map(|f| f.view.meanwhile).sum::<usize>();
        // The short leases are at most 40 ms long: what is to lapse has lapsed when nothing comes any more.
        let mut calm = 0;
        wait_until("the log to come to rest", Duration::from_secs(20), || {
            let before = log.last;
            std::thread::sleep(ms(60));
            log.read();
            calm = if log.last == before { calm + 1 } else { 0 };
            calm == 3
        });
        let s = log.conn.space("big");
        compare(&s.roster(), &log.roster, || format!("wave {waves}, SPACE and the log"));
        assert_eq!((parse_id(&s.id), s.users), (log.last, log.roster.len() as i64));
        let truth = Some(log.last);
        let deadline = Instant::now() + Duration::from_secs(30);
        while followers.iter().any(|f| f.view.last != truth) {
            for f in &mut followers {
                f.turn(&mut facts);
                f.flush();
            }
            assert!(Instant::now() < deadline, "not at {truth:?} in time");
        }
        for (i, f) in followers.iter().enumerate() {
            compare(&f.view.roster, &log.roster, || format!("wave {waves}, follower {i}"));
        }
        waves += 1;
    }
    println!("{waves} waves, {} events, {meanwhile} of them while pages were read", log.events);
    assert!(meanwhile > 100, "this run says little");
}

/// Signals the end even if the thread that drives the followers fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn churn_line(rng: &mut StdRng) -> String {
    // Some of those who are there from the beginning, and as many who are not.
    let u = rng.random_range(0..2000) * 97;
    let n = rng.random_range(1..40);
    match rng.random_range(0..8) {
        0 | 1 => format!("PRESENCE.OFFLINE big m{u}"),
        2 | 3 => format!("PRESENCE.ONLINE big m{u} EX 3600"),
        4 => format!("PRESENCE.ONLINE big m{u} PX {n}"),
        5 => format!("PRESENCE.ONLINE big m{u} SESSION s{} PX {n}", n % 3),
        6 => format!("PRESENCE.ONLINE big m{u} SESSION t EX 3600"),
        _ => format!("PRESENCE.OFFLINE big m{u} SESSION t LINGER {n}"),
    }
}
