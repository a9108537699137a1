//! Servers, who replicates whom, and recorders of what is published at each.

use crate::generator::{DEFAULT_LEASE, Plan, SPACES};
use crate::harness::*;
use crate::history::{Event, Heard, Reading, SessionRead, SpaceRead, Stream, Who};

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// Longer than any link or server needs to come back on a busy machine.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

pub struct Node {
    pub server: Server,
    /// How replicas reach it.
    pub proxy: Proxy,
    pub recorders: Vec<Recorder>,
}

/// Hears what is published at one process, until it ends.
pub struct Recorder {
    pub stream: usize,
    heard: Arc<Mutex<Vec<Heard>>>,
    thread: Option<JoinHandle<()>>,
}

const MARK: &[u8] = b"torture:mark";

impl Recorder {
    pub fn start(port: u16, stream: usize) -> Recorder {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mut conn = Conn::dial(port).expect("a recorder connects");
        conn.ok("PSUBSCRIBE *");
        let into = heard.clone();
        let thread = thread::spawn(move || {
            while let Ok(Value::Array(words)) = conn.recv() {
                if let [_, _, Value::BulkString(channel), Value::BulkString(payload)] = &words[..] {
                    into.lock().unwrap().push(heard_as(channel, payload));
                }
            }
        });
        Recorder { stream, heard, thread: Some(thread) }
    }

    /// Waits for the last that a server had to say which has ended.
    pub fn finish(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    pub fn has_heard(&self, mark: usize) -> bool {
        self.heard.lock().unwrap().iter().rev().any(|h| matches!(h, Heard::Mark(m) if *m == mark))
    }

    pub fn take(&self, node: usize) -> Stream {
        Stream { node, heard: std::mem::take(&mut self.heard.lock().unwrap()) }
    }
}

fn heard_as(channel: &[u8], payload: &[u8]) -> Heard {
    let text = String::from_utf8_lossy(payload).into_owned();
    if channel == MARK {
        return text.parse().map_or(Heard::Noise(text), Heard::Mark);
    }
    match Event::parse(&text) {
        Some(event) if channel == event.channel().as_bytes() => {
            Heard::Event { arrived: now_ms(), event: Box::new(event) }
        }
        _ => Heard::Noise(format!("{}: {text}", channel.escape_ascii())),
    }
}

/// Publishes a mark: the recorders of this node, and of its replicas, hear it after all that was published before.
pub fn mark(c: &mut Conn, mark: usize) -> Result<Value, String> {
    c.try_cmd(args!["PUBLISH", MARK, mark])
}

impl Node {
    pub fn start(plan: &Plan, stream: usize) -> Node {
        let proxy = Proxy::start();
        let mut server = Server::builder()
            .config("presence.history-length", "1000000")
            .config("presence.history-ttl-ms", "3600000")
            .config("presence.lease-ttl-ms", &DEFAULT_LEASE.to_string())
            .config("presence.restart-grace-ms", &plan.grace.to_string())
            .config("replica-announce-port", &proxy.port.to_string())
            .config("repl-diskless-sync", plan.diskless)
            .line("client-output-buffer-limit pubsub 0 0 0")
            .config("shutdown-timeout", "2");
        if plan.aof {
            server = server.aof();
        }
        let server = server.start();
        proxy.lead_to(server.port);
        let recorders = vec![Recorder::start(server.port, stream)];
        Node { server, proxy, recorders }
    }

    pub fn dial(&self) -> Conn {
        Conn::dial(self.server.port).unwrap_or_else(|e| panic!("no connection to a server: {e}"))
    }

    pub fn recorder(&mut self) -> &mut Recorder {
        self.recorders.last_mut().unwrap()
    }

    pub fn signal(&self, which: Signal) {
        signal(self.server.pid(), which);
    }

    /// Says in the configuration of a server that is not running whom it replicates, if anybody.
    pub fn configure(&self, upstream: Option<u16>) {
        let file = self.server.dir().join("redis.conf");
        let conf = std::fs::read_to_string(&file).unwrap();
        let mut lines: Vec<_> = conf.lines().filter(|l| !l.starts_with("replicaof ")).collect();
        let line = upstream.map(|port| format!("replicaof 127.0.0.1 {port}"));
        lines.extend(line.as_deref());
        std::fs::write(file, lines.join("\n") + "\n").unwrap();
    }
}

/// One number or word of INFO replication; "" where there is none.
pub fn replication(c: &mut Conn, field: &str) -> String {
    c.info("replication").get(field).cloned().unwrap_or_default()
}

pub fn offset(c: &mut Conn, field: &str) -> i64 {
    replication(c, field).parse().unwrap_or(-1)
}

/// Polls a condition. An error after `PATIENCE`.
pub fn wait(what: &str, mut cond: impl FnMut() -> bool) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    while !cond() {
        if Instant::now() > end {
            return Err(format!("timed out after {PATIENCE:?}: {what}"));
        }
        thread::sleep(ms(3));
    }
    Ok(())
}

/// Where a space is: database and key. In the end it may be elsewhere than at its name.
#[derive(Clone, Debug)]
pub struct Place {
    pub db: i64,
    pub key: String,
}

impl Place {
    pub fn of(space: &str) -> Place {
        Place { db: 0, key: space.to_string() }
    }
}

/// Reads a space, members and events as of one moment.
pub fn read_space(c: &mut Conn, space: &str, place: &Place) -> Result<SpaceRead, String> {
    let sent = now_ms();
    c.try_cmd(args!["SELECT", place.db])?;
    c.try_cmd("MULTI")?;
    c.try_cmd(["PRESENCE.SPACE", &place.key, "WITHSESSIONS"])?;
    c.try_cmd(["PRESENCE.EVENTS", &place.key])?;
    let reply = c.try_cmd("EXEC")?;
    let Value::Array(replies) = reply else { return Err(format!("EXEC: {reply:?}")) };
    let received = now_ms();
    let shown = Space::parse(&replies[0]);
    let [_, _, events] = fields(&replies[1], ["id", "gap", "events"]);
    let events = texts(events);
    Ok(SpaceRead {
        space: space.to_string(),
        id: parse_id(&shown.id),
        users: shown.users,
        sessions: shown.sessions,
        members: shown.members.iter().flat_map(|(user, all)| sessions(user, all)).collect(),
        events: events.iter().map(|raw| Event::parse(raw).expect("an event")).collect(),
        sent,
        received,
    })
}

/// The sessions of a user, as they are recorded.
pub fn sessions(user: &str, all: &[Session]) -> BTreeMap<Who, SessionRead> {
    let read = |s: &Session| SessionRead { expires_at: s.expires_at, meta: s.meta.clone() };
    all.iter().map(|s| ((user.to_string(), s.session.clone()), read(s))).collect()
}

pub fn read_all(c: &mut Conn, places: &[Place]) -> Result<Reading, String> {
    let spaces = SPACES.iter().zip(places);
    spaces.map(|(space, at)| Ok((space.to_string(), read_space(c, space, at)?))).collect()
}
