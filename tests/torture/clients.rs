//! Clients, each the only one that writes its users; and the reader, who looks at spaces on any node.

use crate::generator::{Act, Plan, SESSIONS, SPACES, Time, Verb};
use crate::harness::*;
use crate::history::{Glimpse, Lease, Op, Reply, What, Who};
use crate::nodes::{Place, read_space, sessions};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, RwLock};
use std::time::Duration;

/// What clients, reader and faults share.
pub struct Shared {
    pub over: AtomicBool,
    /// Who decides: the number of the era and the port.
    primary: Mutex<Option<(usize, u16)>>,
    changed: Condvar,
    /// The ports of all nodes, for the reader.
    pub ports: Mutex<Vec<u16>>,
    /// Held by who writes a space; as writer, by who does what nobody may do beside.
    pub spaces: Vec<RwLock<()>>,
    pub ops: Mutex<Vec<Op>>,
    pub glimpses: Mutex<Vec<Glimpse>>,
}

impl Shared {
    pub fn new() -> Shared {
        Shared {
            over: AtomicBool::new(false),
            primary: Mutex::new(None),
            changed: Condvar::new(),
            ports: Mutex::new(Vec::new()),
            spaces: SPACES.iter().map(|_| RwLock::new(())).collect(),
            ops: Mutex::new(Vec::new()),
            glimpses: Mutex::new(Vec::new()),
        }
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    pub fn publish_primary(&self, era: usize, port: u16) {
        *self.primary.lock().unwrap() = Some((era, port));
        self.changed.notify_all();
    }

    pub fn primary(&self) -> Option<(usize, u16)> {
        *self.primary.lock().unwrap()
    }

    /// Waits for the primary of an era from `least` on. A client that nobody tells of a new one asks the old one again.
    fn await_primary(&self, least: usize) -> Option<(usize, u16)> {
        let mut primary = self.primary.lock().unwrap();
        let mut patience = 100;
        while !self.is_over() {
            match *primary {
                Some((era, port)) if era >= least || patience == 0 => return Some((era, port)),
                _ => {}
            }
            patience -= 1;
            primary = self.changed.wait_timeout(primary, Duration::from_millis(50)).unwrap().0;
        }
        None
    }
}

struct Client<'a> {
    number: usize,
    skew: i64,
    shared: &'a Shared,
    era: usize,
    port: u16,
    conn: Conn,
    /// When the last write was sent that this connection had an answer to.
    wrote: Option<i64>,
}

/// Does what the plan says until all is over.
pub fn run(plan: &Plan, number: usize, shared: &Shared) {
    let mut acts = plan.acts(number);
    let mut least = 0;
    while let Some((era, port)) = shared.await_primary(least) {
        least = era + 1;
        let Ok(conn) = Conn::dial(port) else {
            std::thread::sleep(ms(10));
            continue;
        };
        let skew = plan.skews[number];
        let mut client = Client { number, skew, shared, era, port, conn, wrote: None };
        while !shared.is_over() {
            let act = acts.next().unwrap();
            std::thread::sleep(ms(act.pause));
            if !client.perform(&act) {
                break;
            }
        }
        // It may have gone on through reloads, each of which began an era.
        least = client.era + 1;
    }
}

/// A command and what it is recorded as.
struct Command {
    words: Vec<Vec<u8>>,
    what: What,
    who: Vec<Who>,
}

impl Client<'_> {
    /// Returns whether the connection is still good, and to a primary.
    fn perform(&mut self, act: &Act) -> bool {
        let space = SPACES[act.space];
        let _writing = self.shared.spaces[act.space].read().unwrap();
        // A server that was reloaded has begun a new era, and the connection is as it was.
        if let Some((era, _)) = self.shared.primary().filter(|(_, port)| *port == self.port)
            && era != self.era
        {
            (self.era, self.wrote) = (era, None);
        }
        let acts = std::iter::once(act).chain(act.and.as_deref());
        let Some(commands): Option<Vec<Command>> =
            acts.map(|act| self.command(space, act)).collect()
        else {
            return true;
        };
        let sent = now_ms();
        let replies = match &commands[..] {
            [one] => vec![self.conn.try_cmd(&one.words)],
            all => self.transaction(all),
        };
        let received = now_ms();
        let (mut good, mut done) = (true, Vec::new());
        for (command, reply) in commands.into_iter().zip(replies) {
            let reply = match reply {
                Ok(value) => read_reply(&command, &value),
                Err(e) if e.starts_with("lost") => Reply::Lost,
                Err(e) => Reply::Refused(e),
            };
            good &= match &reply {
                Reply::Lost => false,
                Reply::Refused(e) => !e.starts_with("READONLY") && !e.starts_with("EXECABORT"),
                _ => true,
            };
            let writes = !matches!(command.what, What::Look | What::Wait { .. });
            if writes && !matches!(reply, Reply::Lost | Reply::Refused(_)) {
                self.wrote = Some(sent);
            }
            let received = (reply != Reply::Lost).then_some(received);
            let (client, era) = (self.number, self.era);
            let (who, what, space) = (command.who, command.what, space.to_string());
            let op = Op { client, era, space, who, what, sent, received, reply };
            done.push(op);
        }
        // Those of one MULTI stand together.
        self.shared.ops.lock().unwrap().extend(done);
        good
    }

    /// All in one MULTI.
    fn transaction(&mut self, commands: &[Command]) -> Vec<Result<Value, String>> {
        let mut result = self.conn.try_cmd("MULTI");
        for command in commands {
            // An error is told by EXEC as well.
            result = match self.conn.try_cmd(&command.words) {
                Err(e) if e.starts_with("lost") => Err(e),
                _ => result,
            };
        }
        if result.is_ok() {
            result = self.conn.try_cmd("EXEC");
        }
        match result {
            Ok(Value::Array(replies)) => replies
                .into_iter()
                .map(|reply| match reply {
                    Value::ServerError(e) => {
                        Err(format!("{} {}", e.code(), e.details().unwrap_or("")))
                    }
                    value => Ok(value),
                })
                .collect(),
            Ok(other) => panic!("EXEC: {other:?}"),
            Err(e) => commands.iter().map(|_| Err(e.clone())).collect(),
        }
    }

    /// None where there is nothing to do: no write to wait for.
    fn command(&self, space: &str, act: &Act) -> Option<Command> {
        let user = act.user.as_str();
        let who = |session: usize| (user.to_string(), SESSIONS[session].to_string());
        let all = || (0..SESSIONS.len()).map(who).collect::<Vec<_>>();
        let online = |lease, meta, conditional| What::Online { lease, meta, conditional };
        Some(match &act.verb {
            Verb::Online { session, time, meta, condition } => {
                let (lease, time) = self.time(*time);
                let mut words =
                    args!["PRESENCE.ONLINE", space, user, "SESSION", SESSIONS[*session]];
                words.extend(time);
                let meta = meta.map(|n| format!("{{\"n\":{n}}}"));
                if let Some(meta) = &meta {
                    words.extend(args!["META", meta]);
                }
                words.extend(condition.iter().map(|word| word.as_bytes().to_vec()));
                let what = online(lease, meta, condition.is_some());
                Command { words, what, who: vec![who(*session)] }
            }
            Verb::OnlineMany { users, time } => {
                let (lease, time) = self.time(*time);
                let mut words = args!["PRESENCE.ONLINE", space, "USERS", users.len()];
                words.extend(users.iter().map(|user| user.as_bytes().to_vec()));
                words.extend(time);
                let who = users.iter().map(|user| (user.clone(), String::new())).collect();
                Command { words, what: online(lease, None, false), who }
            }
            Verb::OnlineAll { time } => {
                let (lease, time) = self.time(*time);
                let mut words = args!["PRESENCE.ONLINE", space, "SESSIONS", SESSIONS.len()];
                SESSIONS.iter().for_each(|session| words.extend(args![user, session]));
                words.extend(time);
                Command { words, what: online(lease, None, false), who: all() }
            }
            Verb::Offline { session, linger } => {
                let mut words = args!["PRESENCE.OFFLINE", space, user];
                if let Some(session) = session {
                    words.extend(args!["SESSION", SESSIONS[*session]]);
                }
                if *linger > 0 {
                    words.extend(args!["LINGER", linger]);
                }
                let who = session.map_or_else(all, |session| vec![who(session)]);
                Command { words, what: What::Offline { linger: *linger }, who }
            }
            Verb::Message { text } => {
                let text = format!("m{text}");
                let words = args!["PRESENCE.MESSAGE", space, user, &text];
                Command { words, what: What::Message { text }, who: vec![who(0)] }
            }
            Verb::Look => {
                let words = args!["PRESENCE.USER", space, user];
                Command { words, what: What::Look, who: all() }
            }
            Verb::Wait => {
                let what = What::Wait { covers: self.wrote? };
                Command { words: args!["WAIT", 1, 150], what, who: Vec::new() }
            }
        })
    }

    /// A lease, and the words that ask for it. Moments are by this client's clock.
    fn time(&self, time: Time) -> (Lease, Vec<Vec<u8>>) {
        let clock = now_ms() + self.skew;
        match time {
            Time::Default => (Lease::For(crate::generator::DEFAULT_LEASE), Vec::new()),
            Time::Px(n) => (Lease::For(n), args!["PX", n]),
            Time::Ex(n) => (Lease::For(n * 1000), args!["EX", n]),
            Time::PxAt(n) => (Lease::Until(clock + n), args!["PXAT", clock + n]),
            Time::ExAt(n) => {
                let seconds = clock / 1000 + n;
                (Lease::Until(seconds * 1000), args!["EXAT", seconds])
            }
        }
    }
}

fn read_reply(command: &Command, value: &Value) -> Reply {
    match (&command.what, value) {
        (What::Look, Value::Nil) => Reply::Sessions(BTreeMap::new()),
        (What::Look, value) => {
            let user = User::parse(value).expect("a user");
            Reply::Sessions(sessions(&command.who[0].0, &user.sessions))
        }
        (_, Value::Nil) => Reply::Null,
        (_, Value::Int(n)) => Reply::Count(*n),
        (What::Message { .. }, value) => {
            let (epoch, seq) = parse_id(&text(value));
            Reply::Id(epoch, seq)
        }
        (what, value) => panic!("{what:?} was answered by {value:?}"),
    }
}

/// Looks at a space somewhere, again and again, until all is over.
pub fn read(plan: &Plan, shared: &Shared) {
    let mut conns: BTreeMap<u16, Conn> = BTreeMap::new();
    for (pause, space, node) in plan.glimpses() {
        std::thread::sleep(ms(pause));
        if shared.is_over() {
            return;
        }
        let ports = shared.ports.lock().unwrap().clone();
        let node = node % ports.len();
        let port = ports[node];
        let before = shared.primary();
        if let std::collections::btree_map::Entry::Vacant(entry) = conns.entry(port) {
            let Ok(conn) = Conn::dial(port) else { continue };
            entry.insert(conn);
        }
        let conn = conns.get_mut(&port).unwrap();
        match read_space(conn, SPACES[space], &Place::of(SPACES[space])) {
            Ok(read) => {
                let after = shared.primary();
                let era = before.filter(|(_, p)| before == after && *p == port).map(|(era, _)| era);
                shared.glimpses.lock().unwrap().push(Glimpse { era, read });
            }
            Err(_) => drop(conns.remove(&port)),
        }
    }
}
