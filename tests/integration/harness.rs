//! A real server for each test, connections to it, and a subscriber that forgets nothing.
//!
//! ```ignore
//! let server = Server::start();                                  // or Server::with(&[("presence.lease-ttl-ms", "500")])
//! let mut c = server.connect();                                  // RESP2; server.connect3() speaks RESP3
//! let mut sub = server.subscribe(&["presence:s"]);               // subscribed when this returns
//!
//! assert_eq!(c.int("PRESENCE.ONLINE s alice PX 500"), 1);        // a &str is split at white space …
//! assert_eq!(c.int(["PRESENCE.ONLINE", "s", "a b"]), 1);         // … arrays, slices and Vecs are taken as they are
//! c.ok(args!["PRESENCE.ONLINE", "s", &bytes[..], "PX", 500]);    // … and args! mixes text, bytes and numbers
//! assert!(c.err("PRESENCE.ONLINE s").starts_with("ERR wrong number"));
//!
//! let join = sub.event(SOON);                                    // the next one, within SOON, or the test fails
//! assert_eq!(join.keys(), ["id", "space", "type", "user", "joined_at", "users", "at"]);
//! assert!(sub.events_so_far(&mut c).is_empty());                 // a fence, no waiting: all that was published before
//! wait_until("bob to leave", SOON, || c.int("PRESENCE.COUNT s") == 0);
//! ```
//!
//! Rules: no sleep where a condition can be waited for; upper bounds on time are generous (two cores, many servers),
//! lower bounds are exact. Each test has its own server, port and directory, so tests run side by side. A server ends
//! with its `Server`; one that died by itself fails the test. What the servers of a failed test have to show is written
//! to a file in `target/test-failures`, whose path the test prints. Do not keep a `Server` in a
//! static: statics are never dropped.
//!
//! `PRESENCE_SERVER` names the server's binary (default `redis-server`), `PRESENCE_MODULE` the module (default
//! `target/release/presence.so` of this project).

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc;
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use presence_testkit::*;
pub use redis::Value;
use serde_json::Value as Json;

/// Long enough for anything that ought to happen at once, on a busy machine.
pub const SOON: Duration = Duration::from_secs(5);
/// No reply takes longer than this; a hung server fails the test instead of hanging it.
const REPLY_DEADLINE: Duration = Duration::from_secs(60);
const START_DEADLINE: Duration = Duration::from_secs(30);

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The clock that server and tests share, in unix milliseconds.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Sleeps until the clock shows `at` (unix ms) or later. For moments that a test names itself ("at 500 and 900 ms").
pub fn sleep_until(at: i64) {
    while now_ms() < at {
        thread::sleep(ms((at - now_ms()).clamp(1, 1000) as u64));
    }
}

/// A generator that gives the same numbers in each run; PRESENCE_SEED gives others. A failed test shows the seed.
pub fn rng(seed: u64) -> rand::rngs::StdRng {
    let seed = std::env::var("PRESENCE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(seed);
    println!("PRESENCE_SEED={seed}");
    rand::SeedableRng::seed_from_u64(seed)
}

/// Runs a test that has to do things at certain moments. If it fails and the machine itself stood still meanwhile (it
/// is shared, and does so for up to a second), it is run again. What no slow machine can cause is never forgiven: a
/// panic that says "too early", a connection that was lost, a server that died.
#[track_caller]
pub fn steady(test: impl Fn()) {
    longest_stall_since(Instant::now()); // the watch begins
    for attempt in 1.. {
        let began = Instant::now();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&test));
        let Err(panic) = result else { return };
        let text = panic.downcast_ref::<String>().map_or("", String::as_str);
        let fatal = ["too early", "lost", "died"].iter().any(|word| text.contains(word));
        let stall = longest_stall_since(began);
        if fatal || attempt == 6 || stall < ms(40) {
            std::panic::resume_unwind(panic);
        }
        println!("attempt {attempt} failed, but the machine stood still for {stall:?}: again");
    }
}

/// The longest time since `began` that a thread which wanted to run did not.
fn longest_stall_since(began: Instant) -> Duration {
    static STALLS: Mutex<Vec<(Instant, Duration)>> = Mutex::new(Vec::new());
    static WATCH: std::sync::Once = std::sync::Once::new();
    WATCH.call_once(|| {
        thread::spawn(|| {
            loop {
                let asleep = Instant::now();
                thread::sleep(ms(5));
                let stall = asleep.elapsed().saturating_sub(ms(5));
                if stall > ms(20) {
                    STALLS.lock().unwrap().push((Instant::now(), stall));
                }
            }
        });
    });
    let stalls = STALLS.lock().unwrap();
    stalls.iter().filter(|(end, _)| *end > began).map(|(_, stall)| *stall).max().unwrap_or_default()
}

/// A moment (unix ms) not before `from` and not after `to`.
#[track_caller]
pub fn within(what: &str, got: i64, from: i64, to: i64) {
    assert!(got >= from, "{} ms too early: {what}, {got} and not {from}", from - got);
    assert!(got <= to, "{} ms late: {what}, {got} and not {to}", got - to);
}

/// Polls `cond` until it holds; fails the test after `deadline`.
#[track_caller]
pub fn wait_until(what: &str, deadline: Duration, mut cond: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !cond() {
        assert!(Instant::now() < end, "waited {deadline:?} in vain for {what}");
        thread::sleep(ms(2));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The server

/// How a server starts: lines of its configuration file, and whether the module is loaded.
///
/// Everything goes through `redis.conf` in the server's own directory, so `CONFIG REWRITE` works and a restart reads
/// what it wrote.
#[derive(Clone)]
pub struct Builder {
    lines: Vec<String>,
    module: bool,
    module_args: String,
}

impl Builder {
    /// One directive; the value is put in quotes, so it may be empty or hold spaces.
    /// Module settings are directives as well: `config("presence.lease-ttl-ms", "500")`.
    pub fn config(self, name: &str, value: &str) -> Self {
        let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
        self.line(&format!("{name} \"{quoted}\""))
    }

    /// One line of the configuration as it is, for directives of several words: `line("replicaof 127.0.0.1 7001")`.
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_string());
        self
    }

    /// An append-only file, synced at each write, and nothing else on disk.
    pub fn aof(self) -> Self {
        self.config("appendonly", "yes").config("appendfsync", "always")
    }

    /// Words after the module's path in the `loadmodule` line.
    pub fn module_args(mut self, args: &str) -> Self {
        self.module_args = args.to_string();
        self
    }

    /// A server without the module.
    pub fn bare(mut self) -> Self {
        self.module = false;
        self
    }

    /// Starts it on a free loopback port, in a new directory. Fails the test if it does not answer.
    #[track_caller]
    pub fn start(self) -> Server {
        self.try_start()
            .unwrap_or_else(|log| panic!("the server did not start; the end of its log:\n{log}"))
    }

    /// As `start`, but a server that ends instead of answering is an error: the end of its log.
    pub fn try_start(self) -> Result<Server, String> {
        let dir = tempfile::Builder::new().prefix("presence-test-").tempdir().unwrap();
        for _ in 0..20 {
            let port = free_port();
            std::fs::write(dir.path().join("redis.conf"), self.conf(port, dir.path())).unwrap();
            match launch(dir.path(), port) {
                Ok((child, pid)) => {
                    let state = Mutex::new(Some(Running { child, pid }));
                    return Ok(Server { dir, port, state });
                }
                // Somebody else took the port between our look and the server's bind.
                Err(log) if log.contains("Address already in use") => continue,
                Err(log) => return Err(log),
            }
        }
        Err("no free port found".into())
    }

    fn conf(&self, port: u16, dir: &Path) -> String {
        let dir = dir.display();
        let mut conf = format!(
            "port {port}\nbind 127.0.0.1\ndir {dir}\nlogfile {dir}/log\nsave \"\"\nappendonly no\n\
             crash-log-enabled no\nenable-debug-command yes\nenable-module-command yes\nrepl-diskless-sync-delay 0\n"
        );
        if self.module {
            conf += &format!("loadmodule {} {}\n", module_path().display(), self.module_args);
        }
        for line in &self.lines {
            conf += line;
            conf += "\n";
        }
        conf
    }
}

/// How to end a server that is to come back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stop {
    /// `SHUTDOWN NOSAVE` (an AOF is still flushed)
    NoSave,
    /// `SHUTDOWN SAVE`: writes dump.rdb
    Save,
    /// SIGKILL, now
    Kill,
}

/// A running server of the test's own; ended when dropped.
pub struct Server {
    dir: tempfile::TempDir,
    pub port: u16,
    state: Mutex<Option<Running>>,
}

struct Running {
    child: Child,
    /// The server's own pid. Differs from the child's where PRESENCE_SERVER is a script that does not exec.
    pid: u32,
}

impl Server {
    pub fn builder() -> Builder {
        Builder { lines: Vec::new(), module: true, module_args: String::new() }
    }

    /// With the module and its defaults.
    #[track_caller]
    pub fn start() -> Server {
        Server::builder().start()
    }

    /// With directives of the server or the module: `Server::with(&[("presence.history-length", "0")])`.
    #[track_caller]
    pub fn with(config: &[(&str, &str)]) -> Server {
        config.iter().fold(Server::builder(), |b, (name, value)| b.config(name, value)).start()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn pid(&self) -> u32 {
        self.running().as_ref().expect("the server is not running").pid
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn log(&self) -> String {
        log_of(self.dir.path())
    }

    /// False once the process has ended, whoever ended it.
    pub fn alive(&self) -> bool {
        self.running().as_mut().is_some_and(|r| r.child.try_wait().unwrap().is_none())
    }

    /// True if the process has ended though nobody here asked it to.
    pub fn crashed(&self) -> bool {
        self.running().as_mut().is_some_and(|r| r.child.try_wait().unwrap().is_some())
    }

    /// A connection that speaks RESP2.
    #[track_caller]
    pub fn connect(&self) -> Conn {
        Conn::dial(self.port).expect("connect")
    }

    /// A connection that speaks RESP3.
    #[track_caller]
    pub fn connect3(&self) -> Conn {
        let mut conn = self.connect();
        conn.ok("HELLO 3");
        conn
    }

    /// Subscribes to channels. Each message published from now on arrives.
    #[track_caller]
    pub fn subscribe(&self, channels: &[impl AsRef<[u8]>]) -> Subscriber {
        Subscriber::new(self, "SUBSCRIBE", channels)
    }

    /// Subscribes to patterns.
    #[track_caller]
    pub fn psubscribe(&self, patterns: &[impl AsRef<[u8]>]) -> Subscriber {
        Subscriber::new(self, "PSUBSCRIBE", patterns)
    }

    /// Subscribes to sharded channels.
    #[track_caller]
    pub fn ssubscribe(&self, channels: &[impl AsRef<[u8]>]) -> Subscriber {
        Subscriber::new(self, "SSUBSCRIBE", channels)
    }

    /// Ends the process and waits for that. `start_again` brings it back: same port, directory and configuration file.
    #[track_caller]
    pub fn stop(&self, how: Stop) {
        assert!(self.alive(), "the server died by itself:\n{}", tail(&self.log()));
        match how {
            Stop::Kill => {}
            Stop::NoSave => drop(self.connect().try_cmd("SHUTDOWN NOSAVE")), // no reply: the connection ends
            Stop::Save => drop(self.connect().try_cmd("SHUTDOWN SAVE")),
        }
        let mut running = self.running().take().unwrap();
        if how != Stop::Kill {
            wait_until("the server to shut down", START_DEADLINE, || {
                running.child.try_wait().unwrap().is_some()
            });
        }
        running.kill();
    }

    /// Waits for the end of a process that was asked to end by other means than `stop`.
    #[track_caller]
    pub fn stopped_by_itself(&self) {
        wait_until("the server to end", START_DEADLINE, || !self.alive());
        if let Some(mut running) = self.running().take() {
            running.kill();
        }
    }

    /// Starts a stopped server. Its connections and subscribers are gone: make new ones.
    #[track_caller]
    pub fn start_again(&self) {
        let mut state = self.running();
        assert!(state.is_none(), "stop it first");
        let log = self.dir.path().join("log");
        let _ = std::fs::rename(&log, log.with_extension("before"));
        match launch(self.dir.path(), self.port) {
            Ok((child, pid)) => *state = Some(Running { child, pid }),
            Err(log) => panic!("the server did not come back; the end of its log:\n{log}"),
        }
    }

    #[track_caller]
    pub fn restart(&self, how: Stop) {
        self.stop(how);
        self.start_again();
    }
}

impl Running {
    fn kill(&mut self) {
        if self.pid != self.child.id() {
            let _ = try_signal(self.pid, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Of its clients and what they did, where it still answers.
    fn last_words(&self) -> String {
        const SHORT: Duration = Duration::from_secs(2);
        let Some(mut conn) = Conn::to(self.port) else { return "nothing".to_string() };
        let _ = conn.set_deadline(Some(SHORT));
        let mut asked = |what: &str| match conn.try_cmd(what) {
            Ok(Value::BulkString(text)) => String::from_utf8_lossy(&text).into_owned(),
            Ok(Value::VerbatimString { text, .. }) => text,
            other => format!("{what}: {other:?}"),
        };
        ["CLIENT LIST", "INFO clients", "INFO stats", "INFO commandstats"].map(&mut asked).concat()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let crashed = self.crashed();
        let failed = crashed || thread::panicking();
        let mut dump = Dump::new();
        if failed && !crashed {
            dump.add(&format!("clients and statistics of port {}", self.port), &self.last_words());
        }
        if let Some(mut running) = self.running().take() {
            running.kill();
        }
        if failed {
            dump.add(&format!("log of the server on port {}", self.port), &self.log());
            let what = if crashed { "crashed; its log" } else { "log, clients, statistics" };
            eprintln!("the server on port {}: {what}: {}", self.port, dump.write());
        }
        if crashed && !thread::panicking() {
            panic!("the server died by itself");
        }
    }
}

/// What to run: a name on PATH, or a path. Servers start in directories of their own, so a relative one is made
/// absolute; links are left, since a server's name tells it what to be.
pub fn server_path() -> PathBuf {
    let path = std::env::var_os("PRESENCE_SERVER").unwrap_or_else(|| "redis-server".into());
    match Path::new(&path).components().count() {
        1 => PathBuf::from(path),
        _ => std::path::absolute(path).unwrap(),
    }
}

pub fn module_path() -> PathBuf {
    let path = match std::env::var_os("PRESENCE_MODULE") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("target/release/presence.so"),
    };
    path.canonicalize()
        .unwrap_or_else(|e| panic!("no module at {}: {e}; `make build` first", path.display()))
}

/// A port below the range that the kernel hands to outgoing connections, and that nobody listens on right now.
/// (Cluster bus ports, 10000 higher, stay below 65536.)
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() as u16).wrapping_mul(37);
    loop {
        let port = 10_000 + (start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000);
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
}

/// Runs the server and waits until it answers as the one in `dir`; else the end of its log.
fn launch(dir: &Path, port: u16) -> Result<(Child, u32), String> {
    let output = std::fs::File::create(dir.join("output")).unwrap();
    let mut child = Command::new(server_path())
        .arg(dir.join("redis.conf"))
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run {}: {e}", server_path().display()));
    let end = Instant::now() + START_DEADLINE;
    loop {
        if child.try_wait().unwrap().is_some() {
            return Err(tail(&log_of(dir)));
        }
        if let Some(pid) = answers_from(port, dir) {
            return Ok((child, pid));
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("no answer in {START_DEADLINE:?}\n{}", tail(&log_of(dir))));
        }
        thread::sleep(ms(5));
    }
}

/// The pid of the server on `port`, if it has loaded its data and is the one that lives in `dir`.
fn answers_from(port: u16, dir: &Path) -> Option<u32> {
    let mut c = Conn::to(port)?;
    c.try_cmd("PING").ok()?;
    let there = texts(&c.try_cmd("CONFIG GET dir").ok()?);
    if there.get(1).map(Path::new).and_then(|d| d.canonicalize().ok()) != dir.canonicalize().ok() {
        return None;
    }
    c.info("server").get("process_id")?.parse().ok()
}

fn log_of(dir: &Path) -> String {
    let read = |name| {
        String::from_utf8_lossy(&std::fs::read(dir.join(name)).unwrap_or_default()).into_owned()
    };
    read("output") + &read("log")
}

pub fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

// ---------------------------------------------------------------------------------------------------------------------
// Connections

/// One connection. `ok` and its kin fail the test on an error reply; `err` fails it on anything else.
pub struct Conn {
    stream: Uninterrupted,
    parser: redis::Parser,
    /// What the server pushed on a RESP3 connection (invalidations and the like), in order.
    pub pushes: Vec<Value>,
}

/// A stream whose reads a signal does not end (a debugger's, a job control's). `redis::Connection`
/// takes such an end for a reply given up on, and drops the reply when it comes.
struct Uninterrupted(TcpStream);

impl Read for Uninterrupted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

fn lost(error: impl fmt::Display) -> String {
    format!("lost: {error}")
}

impl Conn {
    /// A connection in RESP2 to whoever listens on a loopback port, if anybody does.
    pub fn dial(port: u16) -> Result<Conn, String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect_timeout(&address, SOON).map_err(lost)?;
        stream.set_nodelay(true).map_err(lost)?;
        let (stream, parser) = (Uninterrupted(stream), redis::Parser::new());
        let conn = Conn { stream, parser, pushes: Vec::new() };
        conn.set_deadline(Some(REPLY_DEADLINE))?;
        Ok(conn)
    }

    /// The same, where nobody asks why there is none.
    pub fn to(port: u16) -> Option<Conn> {
        Conn::dial(port).ok()
    }

    /// How long a reply may take; None is for ever.
    fn set_deadline(&self, deadline: Option<Duration>) -> Result<(), String> {
        self.stream.0.set_read_timeout(deadline).map_err(lost)
    }

    /// The reply, or the error line ("ERR …", "WRONGTYPE …"). A lost connection is an error that starts with "lost".
    pub fn try_cmd(&mut self, args: impl Args) -> Result<Value, String> {
        self.send(args)?;
        self.recv()
    }

    /// Sends without waiting, for pipelines and for commands that block.
    pub fn send(&mut self, args: impl Args) -> Result<(), String> {
        let mut cmd = redis::Cmd::new();
        args.args().iter().for_each(|a| {
            cmd.arg(a);
        });
        self.stream.0.write_all(&cmd.get_packed_command()).map_err(lost)
    }

    /// The next reply to what was sent.
    pub fn recv(&mut self) -> Result<Value, String> {
        loop {
            match self.parser.parse_value(&mut self.stream) {
                Ok(push @ Value::Push { .. }) => self.pushes.push(push),
                Ok(Value::ServerError(e)) => {
                    return Err(format!("{} {}", e.code(), e.details().unwrap_or(""))
                        .trim_end()
                        .to_string());
                }
                Ok(value) => return Ok(value),
                Err(e) => return Err(lost(e)),
            }
        }
    }

    /// Sends many commands at once, then reads a reply for each. For hundreds of thousands, in portions.
    #[track_caller]
    pub fn batch(
        &mut self,
        commands: impl IntoIterator<Item = impl Args>,
    ) -> Vec<Result<Value, String>> {
        let (mut bytes, mut n) = (Vec::new(), 0);
        for command in commands {
            let mut cmd = redis::Cmd::new();
            command.args().iter().for_each(|a| {
                cmd.arg(a);
            });
            cmd.write_packed_command(&mut bytes);
            n += 1;
        }
        self.stream.0.write_all(&bytes).unwrap_or_else(|e| panic!("{}", lost(e)));
        (0..n).map(|_| self.recv()).collect()
    }

    #[track_caller]
    pub fn ok(&mut self, args: impl Args) -> Value {
        let args = args.args();
        self.try_cmd(&args[..]).unwrap_or_else(|e| panic!("{}: {e}", show(&args)))
    }

    /// The error line that the command gets.
    #[track_caller]
    pub fn err(&mut self, args: impl Args) -> String {
        let args = args.args();
        match self.try_cmd(&args[..]) {
            Err(e) if !e.starts_with("lost") => e,
            other => panic!("{}: wanted an error, got {other:?}", show(&args)),
        }
    }

    #[track_caller]
    pub fn int(&mut self, args: impl Args) -> i64 {
        let args = args.args();
        match self.ok(&args[..]) {
            Value::Int(n) => n,
            other => panic!("{}: wanted an integer, got {other:?}", show(&args)),
        }
    }

    #[track_caller]
    pub fn ints(&mut self, args: impl Args) -> Vec<i64> {
        let args = args.args();
        let Value::Array(items) = self.ok(&args[..]) else { panic!("{}: no array", show(&args)) };
        items
            .iter()
            .map(|v| if let Value::Int(n) = v { *n } else { panic!("{}: {v:?}", show(&args)) })
            .collect()
    }

    #[track_caller]
    pub fn text(&mut self, args: impl Args) -> String {
        text(&self.ok(args))
    }

    #[track_caller]
    pub fn is_null(&mut self, args: impl Args) -> bool {
        self.ok(args) == Value::Nil
    }

    /// `name:value` lines of an INFO section; empty where the server has no such section.
    pub fn info(&mut self, section: &str) -> BTreeMap<String, String> {
        let reply = text(&self.ok(["INFO", section]));
        let pairs = reply.lines().filter_map(|l| l.split_once(':'));
        pairs.map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    /// One number of the module's INFO section, named without the prefix: `stat("users")`.
    #[track_caller]
    pub fn stat(&mut self, name: &str) -> i64 {
        let info = self.info("everything");
        let value = info
            .get(&format!("presence_{name}"))
            .unwrap_or_else(|| panic!("INFO has no presence_{name}"));
        value.parse().unwrap_or_else(|_| panic!("presence_{name} is {value:?}"))
    }

    /// `PRESENCE.SPACE space`, all at once, with sessions, parsed and checked for shape.
    #[track_caller]
    pub fn space(&mut self, space: impl AsRef<[u8]>) -> Space {
        Space::parse(&self.ok(args!["PRESENCE.SPACE", space.as_ref(), "WITHSESSIONS"]))
    }

    /// `PRESENCE.USER space user`, parsed and checked for shape; None for an unknown user.
    #[track_caller]
    pub fn user(&mut self, space: impl AsRef<[u8]>, user: impl AsRef<[u8]>) -> Option<User> {
        User::parse(&self.ok(args!["PRESENCE.USER", space.as_ref(), user.as_ref()]))
    }

    /// `DEBUG DIGEST-VALUE`: equal digests, equal content.
    #[track_caller]
    pub fn digest(&mut self, key: impl AsRef<[u8]>) -> String {
        texts(&self.ok(args!["DEBUG", "DIGEST-VALUE", key.as_ref()])).remove(0)
    }
}

/// The words of a command: a `&str` is split at white space; lists are taken word by word.
pub trait Args {
    fn args(self) -> Vec<Vec<u8>>;
}

impl Args for &str {
    fn args(self) -> Vec<Vec<u8>> {
        self.split_whitespace().map(|w| w.into()).collect()
    }
}
impl Args for &String {
    fn args(self) -> Vec<Vec<u8>> {
        self.as_str().args()
    }
}
impl Args for String {
    fn args(self) -> Vec<Vec<u8>> {
        self.as_str().args()
    }
}
impl<T: AsRef<[u8]>> Args for &[T] {
    fn args(self) -> Vec<Vec<u8>> {
        self.iter().map(|w| w.as_ref().to_vec()).collect()
    }
}
impl<T: AsRef<[u8]>, const N: usize> Args for [T; N] {
    fn args(self) -> Vec<Vec<u8>> {
        self[..].args()
    }
}
impl<T: AsRef<[u8]>, const N: usize> Args for &[T; N] {
    fn args(self) -> Vec<Vec<u8>> {
        self[..].args()
    }
}
impl<T: AsRef<[u8]>> Args for Vec<T> {
    fn args(self) -> Vec<Vec<u8>> {
        self[..].args()
    }
}
impl<T: AsRef<[u8]>> Args for &Vec<T> {
    fn args(self) -> Vec<Vec<u8>> {
        self[..].args()
    }
}

/// A word of a command, for `args!`.
pub trait Arg {
    fn arg(&self) -> Vec<u8>;
}
macro_rules! arg_by {
    ($($ty:ty => $with:expr_2021),* $(,)?) => {
        $(impl Arg for $ty { fn arg(&self) -> Vec<u8> { #[allow(clippy::redundant_closure_call)] ($with)(self) } })*
    };
}
arg_by! {
    str => |s: &str| s.as_bytes().to_vec(),
    String => |s: &String| s.as_bytes().to_vec(),
    [u8] => |s: &[u8]| s.to_vec(),
    Vec<u8> => |s: &Vec<u8>| s.clone(),
    i64 => |n: &i64| n.to_string().into_bytes(),
    i32 => |n: &i32| n.to_string().into_bytes(),
    u64 => |n: &u64| n.to_string().into_bytes(),
    usize => |n: &usize| n.to_string().into_bytes(),
}
impl<const N: usize> Arg for [u8; N] {
    fn arg(&self) -> Vec<u8> {
        self.to_vec()
    }
}
impl<T: Arg + ?Sized> Arg for &T {
    fn arg(&self) -> Vec<u8> {
        (**self).arg()
    }
}

/// The words of a command, of mixed kinds: text, bytes, numbers. None is split.
macro_rules! args {
    ($($arg:expr_2021),* $(,)?) => { vec![$($crate::harness::Arg::arg(&$arg)),*] };
}
pub(crate) use args;

/// A command for a message: words escaped and cut.
pub fn show(args: &[Vec<u8>]) -> String {
    const SHOWN: usize = 30;
    let word = |w: &Vec<u8>| {
        let cut = if w.len() > 60 { format!("… ({} bytes)", w.len()) } else { String::new() };
        w[..w.len().min(60)].escape_ascii().to_string() + &cut
    };
    let more = args.len().saturating_sub(SHOWN);
    let more = (more > 0).then(|| format!("… ({more} more)"));
    args.iter().take(SHOWN).map(word).chain(more).collect::<Vec<_>>().join(" ")
}

// ---------------------------------------------------------------------------------------------------------------------
// Replies

/// Bulk, simple and verbatim strings, and integers, as text.
#[track_caller]
pub fn text(v: &Value) -> String {
    match v {
        Value::BulkString(b) => String::from_utf8(b.clone()).expect("UTF-8"),
        Value::SimpleString(s) | Value::VerbatimString { text: s, .. } => s.clone(),
        Value::Okay => "OK".into(),
        Value::Int(n) => n.to_string(),
        other => panic!("no text: {other:?}"),
    }
}

/// An array or set of texts, or a map, flat.
#[track_caller]
pub fn texts(v: &Value) -> Vec<String> {
    match v {
        Value::Array(items) | Value::Set(items) => items.iter().map(text).collect(),
        Value::Map(pairs) => pairs.iter().flat_map(|(k, v)| [text(k), text(v)]).collect(),
        other => panic!("no list: {other:?}"),
    }
}

#[track_caller]
pub fn items(v: &Value) -> &[Value] {
    match v {
        Value::Array(items) | Value::Set(items) => items,
        other => panic!("no array: {other:?}"),
    }
}

/// The pairs of a map, in order: a map in RESP3, a flat array in RESP2.
#[track_caller]
pub fn pairs(v: &Value) -> Vec<(String, &Value)> {
    match v {
        Value::Map(pairs) => pairs.iter().map(|(k, v)| (text(k), v)).collect(),
        Value::Array(flat) if flat.len() % 2 == 0 => {
            flat.chunks(2).map(|p| (text(&p[0]), &p[1])).collect()
        }
        other => panic!("no map: {other:?}"),
    }
}

/// The values of a map whose keys must be exactly these, in this order.
#[track_caller]
pub fn fields<'a, const N: usize>(v: &'a Value, names: [&str; N]) -> [&'a Value; N] {
    let pairs = pairs(v);
    let keys: Vec<_> = pairs.iter().map(|(k, _)| k.as_str()).collect();
    assert_eq!(keys, names, "keys of {v:?}");
    std::array::from_fn(|i| pairs[i].1)
}

#[track_caller]
fn int_of(v: &Value) -> i64 {
    match v {
        Value::Int(n) => *n,
        other => panic!("no integer: {other:?}"),
    }
}

/// A bulk string and nothing else.
#[track_caller]
fn bulk(v: &Value) -> String {
    match v {
        Value::BulkString(b) => String::from_utf8(b.clone()).expect("UTF-8"),
        other => panic!("no bulk string: {other:?}"),
    }
}

/// One session as PRESENCE.USER and PRESENCE.SPACE … WITHSESSIONS show it.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    pub session: String,
    pub joined_at: i64,
    pub expires_at: i64,
    pub meta: Option<String>,
}

impl Session {
    #[track_caller]
    pub fn parse(v: &Value) -> Session {
        let [session, joined_at, expires_at, meta] =
            fields(v, ["session", "joined_at", "expires_at", "meta"]);
        Session {
            session: bulk(session),
            joined_at: int_of(joined_at),
            expires_at: int_of(expires_at),
            meta: (*meta != Value::Nil).then(|| bulk(meta)),
        }
    }
}

/// What PRESENCE.USER says.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    pub status: String,
    pub joined_at: Value,
    pub sessions: Vec<Session>,
}

impl User {
    #[track_caller]
    pub fn parse(v: &Value) -> Option<User> {
        if *v == Value::Nil {
            return None;
        }
        let [status, joined_at, sessions] = fields(v, ["status", "joined_at", "sessions"]);
        let sessions = items(sessions).iter().map(Session::parse).collect();
        Some(User { status: bulk(status), joined_at: joined_at.clone(), sessions })
    }

    /// The session of this name; fails the test where there is none.
    #[track_caller]
    pub fn session(&self, name: &str) -> &Session {
        self.sessions
            .iter()
            .find(|s| s.session == name)
            .unwrap_or_else(|| panic!("no session {name:?} in {self:?}"))
    }
}

/// What PRESENCE.SPACE says. Without WITHSESSIONS each member has an empty list.
#[derive(Clone, Debug, PartialEq)]
pub struct Space {
    pub id: String,
    pub users: i64,
    pub sessions: i64,
    pub cursor: String,
    pub members: Vec<(String, Vec<Session>)>,
}

impl Space {
    #[track_caller]
    pub fn parse(v: &Value) -> Space {
        let [id, users, sessions, cursor, members] =
            fields(v, ["id", "users", "sessions", "cursor", "members"]);
        let member = |m: &Value| match m {
            Value::BulkString(_) => (bulk(m), Vec::new()),
            m => {
                let [user, sessions] = fields(m, ["user", "sessions"]);
                (bulk(user), items(sessions).iter().map(Session::parse).collect())
            }
        };
        Space {
            id: bulk(id),
            users: int_of(users),
            sessions: int_of(sessions),
            cursor: bulk(cursor),
            members: items(members).iter().map(member).collect(),
        }
    }

    /// Who is there, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.members.iter().map(|(name, _)| name.as_str()).collect();
        names.sort();
        names
    }

    /// user -> sorted names of sessions: what a fold of the events must give.
    pub fn roster(&self) -> Roster {
        let sorted = |sessions: &[Session]| sessions.iter().map(|s| s.session.clone()).collect();
        self.members.iter().map(|(user, sessions)| (user.clone(), sorted(sessions))).collect()
    }
}

/// Who is online with which sessions.
pub type Roster = BTreeMap<String, std::collections::BTreeSet<String>>;

/// The same with members and sessions in the order of their names: for comparing what two servers say.
pub fn sorted(mut space: Space) -> Space {
    space.members.sort_by(|a, b| a.0.cmp(&b.0));
    space
        .members
        .iter_mut()
        .for_each(|(_, sessions)| sessions.sort_by(|a, b| a.session.cmp(&b.session)));
    space
}

/// Fills a space with a little of everything that has to survive: odd names, metadata, several sessions, a session
/// that lingers, an event of each kind. All leases are about an hour away, each another. Returns who is there.
#[track_caller]
pub fn furnish(c: &mut Conn, space: &str) -> Roster {
    let lease = now_ms() + 3_600_000;
    let long = "x".repeat(512);
    let people = [
        ("alice", "", None),
        ("alice", "phone", Some(r#"{"device":"ios","n":[1,2.5,-3e9,null,true]}"#)),
        ("alice", "tab\r\n2", Some(r#""text""#)),
        ("bob \0 | *", "[a]", None),
        ("\u{1F600} émile", "\u{1F4F1}", Some("{\"é\":\"\u{1F600} \\\" \\\\ \\u0000\"}")),
        (&long, &long, Some("0")),
        ("was two", "first", None),
        ("was two", "second", Some("[]")),
        ("gone", "", Some("[1]")),
    ];
    for (i, (user, session, meta)) in people.iter().enumerate() {
        let mut words = args![
            "PRESENCE.ONLINE",
            space,
            user,
            "SESSION",
            session,
            "PXAT",
            lease + 1000 * i as i64
        ];
        if let Some(meta) = meta {
            words.extend(args!["META", meta]);
        }
        c.ok(words);
    }
    let update = r#"{"device":"android"}"#;
    c.ok(args![
        "PRESENCE.ONLINE",
        space,
        "alice",
        "SESSION",
        "phone",
        "PXAT",
        lease + 77,
        "META",
        update
    ]);
    c.ok(["PRESENCE.OFFLINE", space, "was two", "SESSION", "first"]);
    c.ok(["PRESENCE.OFFLINE", space, "gone"]);
    c.ok(["PRESENCE.OFFLINE", space, "bob \0 | *", "LINGER", "3000000"]);
    c.space(space).roster()
}

/// Reads a space page by page, `count` at a time, and calls `between` after each page but the last.
#[track_caller]
pub fn pages(
    c: &mut Conn,
    space: &str,
    count: usize,
    mut between: impl FnMut(&mut Conn),
) -> Vec<Space> {
    let (mut pages, mut cursor) = (Vec::new(), "0".to_string());
    loop {
        let page = Space::parse(&c.ok([
            "PRESENCE.SPACE",
            space,
            "CURSOR",
            &cursor,
            "COUNT",
            &count.to_string(),
        ]));
        cursor = page.cursor.clone();
        pages.push(page);
        assert!(pages.len() < 1_000_000, "paging does not end");
        if cursor == "0" {
            return pages;
        }
        between(c);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Subscribers and events

/// One published message.
#[derive(Clone, Debug)]
pub struct Message {
    pub channel: Vec<u8>,
    pub payload: Vec<u8>,
    /// When it arrived here, unix ms.
    pub arrived: i64,
}

/// Collects, on its own connection and thread, what is published on its channels.
pub struct Subscriber {
    messages: mpsc::Receiver<Message>,
    fence: String,
    fences: usize,
}

impl Subscriber {
    #[track_caller]
    fn new(server: &Server, verb: &str, channels: &[impl AsRef<[u8]>]) -> Subscriber {
        Subscriber::by(server.connect(), verb, channels).expect("subscribe")
    }

    /// By a connection that may be lost at any time.
    pub fn by(
        mut conn: Conn,
        verb: &str,
        channels: &[impl AsRef<[u8]>],
    ) -> Result<Subscriber, String> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let fence = format!("fence:{}", NEXT.fetch_add(1, Ordering::Relaxed));
        conn.try_cmd(["SUBSCRIBE", &fence])?;
        let words = [verb.as_bytes()].into_iter().chain(channels.iter().map(AsRef::as_ref));
        conn.send(words.collect::<Vec<_>>())?;
        for _ in channels {
            conn.recv()?;
        }
        conn.set_deadline(None)?;
        let (sender, messages) = mpsc::channel();
        // Ends with its server, or when nobody listens any more.
        thread::spawn(move || {
            while let Ok(Value::Array(words)) = conn.recv() {
                let bytes = |v: &Value| {
                    if let Value::BulkString(b) = v { b.clone() } else { Vec::new() }
                };
                let [.., channel, payload] = &words[..] else {
                    continue;
                };
                let kind = bytes(&words[0]);
                if !kind.ends_with(b"message") {
                    continue;
                }
                let message =
                    Message { channel: bytes(channel), payload: bytes(payload), arrived: now_ms() };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        Ok(Subscriber { messages, fence, fences: 0 })
    }

    /// The next message, None after `deadline`. An error where the connection is lost.
    pub fn poll(&mut self, deadline: Duration) -> Result<Option<Message>, String> {
        match self.messages.recv_timeout(deadline) {
            Ok(message) => Ok(Some(message)),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err("lost".into()),
        }
    }

    /// The next message, or None after `deadline`.
    pub fn try_next(&mut self, deadline: Duration) -> Option<Message> {
        self.messages.recv_timeout(deadline).ok()
    }

    /// The next message; fails the test after `deadline`.
    #[track_caller]
    pub fn next(&mut self, deadline: Duration) -> Message {
        self.try_next(deadline).unwrap_or_else(|| panic!("no message within {deadline:?}"))
    }

    /// The next message as an event; fails the test after `deadline`.
    #[track_caller]
    pub fn event(&mut self, deadline: Duration) -> Event {
        Event::parse(self.next(deadline))
    }

    /// The next `n` events, each within `deadline` of the one before.
    #[track_caller]
    pub fn events(&mut self, n: usize, deadline: Duration) -> Vec<Event> {
        (0..n).map(|_| self.event(deadline)).collect()
    }

    /// Fails the test if anything arrives during `quiet`. Where a command could have published, `so_far` needs no wait.
    #[track_caller]
    pub fn expect_none_for(&mut self, quiet: Duration) {
        if let Some(m) = self.try_next(quiet) {
            panic!("unexpected message: {}", m.payload.escape_ascii());
        }
    }

    /// Everything published up to now and not yet taken. Publishes a mark through `c` and reads up to it, so it waits
    /// for nothing else; `c` may be of the subscriber's server or, with replication, of its primary.
    #[track_caller]
    pub fn so_far(&mut self, c: &mut Conn) -> Vec<Message> {
        self.fences += 1;
        let mark = self.fences.to_string();
        c.ok(["PUBLISH", &self.fence, &mark]);
        let mut messages = Vec::new();
        loop {
            let m = self.next(SOON);
            if m.channel != self.fence.as_bytes() {
                messages.push(m);
            } else if m.payload == mark.as_bytes() {
                return messages;
            }
        }
    }

    /// `so_far`, as events.
    #[track_caller]
    pub fn events_so_far(&mut self, c: &mut Conn) -> Vec<Event> {
        self.so_far(c).into_iter().map(Event::parse).collect()
    }
}

/// One published event: its keys in order, each once, and the raw text.
#[derive(Clone)]
pub struct Event {
    pub raw: String,
    pub channel: Vec<u8>,
    pub arrived: i64,
    fields: Vec<(String, Json)>,
}

impl Event {
    #[track_caller]
    pub fn parse(m: Message) -> Event {
        let raw = String::from_utf8(m.payload).expect("an event is UTF-8");
        let Ordered(fields) = serde_json::from_str(&raw).unwrap_or_else(|e| panic!("{e} in {raw}"));
        Event { raw, channel: m.channel, arrived: m.arrived, fields }
    }

    pub fn keys(&self) -> Vec<&str> {
        self.fields.iter().map(|(k, _)| k.as_str()).collect()
    }

    /// The value of a key; null where absent.
    pub fn get(&self, key: &str) -> &Json {
        self.fields.iter().find(|(k, _)| k == key).map_or(&Json::Null, |(_, v)| v)
    }

    /// The text of a key; "" where absent.
    pub fn str(&self, key: &str) -> &str {
        self.get(key).as_str().unwrap_or("")
    }

    /// The number of a key; fails the test where absent.
    #[track_caller]
    pub fn int(&self, key: &str) -> i64 {
        self.get(key).as_i64().unwrap_or_else(|| panic!("no number {key} in {}", self.raw))
    }

    pub fn kind(&self) -> &str {
        self.str("type")
    }

    pub fn user(&self) -> &str {
        self.str("user")
    }

    /// (epoch, seq) of the id.
    #[track_caller]
    pub fn id(&self) -> (i64, u64) {
        parse_id(self.str("id"))
    }

    /// "join alice", "add alice/phone", "leave alice (timeout)": for comparing whole sequences at a glance.
    pub fn brief(&self) -> String {
        let mut brief = format!("{} {}", self.kind(), self.user());
        if !self.get("session").is_null() {
            brief += &format!("/{}", self.str("session"));
        }
        if !self.get("reason").is_null() {
            brief += &format!(" ({})", self.str("reason"));
        }
        brief
    }

    /// Applies it to a roster, and checks that it fits: a join only of who was away, a leave only of the last session …
    #[track_caller]
    pub fn fold(&self, roster: &mut Roster) {
        let (user, session) = (self.user().to_string(), self.str("session").to_string());
        let had = roster.get(&user).map_or(0, |s| s.len());
        let known = roster.get(&user).is_some_and(|s| s.contains(&session));
        let fits = match self.kind() {
            "join" => had == 0,
            "add" => had > 0 && !known,
            "update" => known,
            "remove" => had > 1 && known,
            "leave" => had == 1 && known,
            kind => panic!("no event of presence: {kind}"),
        };
        assert!(fits, "does not fit {:?}: {}", roster.get(&user), self.raw);
        match self.kind() {
            "join" | "add" => {
                roster.entry(user).or_default().insert(session);
            }
            "remove" => {
                roster.get_mut(&user).unwrap().remove(&session);
            }
            "leave" => {
                roster.remove(&user);
            }
            _ => {}
        }
        assert_eq!(self.int("users"), roster.len() as i64, "users after {}", self.raw);
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.raw)
    }
}

/// `<epoch>-<seq>` as numbers, written the one right way.
#[track_caller]
pub fn parse_id(id: &str) -> (i64, u64) {
    let parse = || {
        let (epoch, seq) = id.split_once('-')?;
        Some((epoch.parse().ok()?, seq.parse().ok()?))
    };
    let (epoch, seq): (i64, u64) = parse().unwrap_or_else(|| panic!("no event id: {id:?}"));
    assert_eq!(id, format!("{epoch}-{seq}"));
    (epoch, seq)
}

/// A JSON object whose keys keep their order; a key twice is an error.
struct Ordered(Vec<(String, Json)>);

impl<'de> serde::Deserialize<'de> for Ordered {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Ordered;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: serde::de::MapAccess<'de>>(
                self,
                mut map: M,
            ) -> Result<Ordered, M::Error> {
                let mut fields: Vec<(String, Json)> = Vec::new();
                while let Some((key, value)) = map.next_entry()? {
                    if fields.iter().any(|(k, _)| *k == key) {
                        return Err(serde::de::Error::custom(format!("{key} twice")));
                    }
                    fields.push((key, value));
                }
                Ok(Ordered(fields))
            }
        }
        d.deserialize_map(Visitor)
    }
}
