//! A server of a test's own: its life.

use crate::launch::{launch, log_of, tail};
use crate::time::START_DEADLINE;
use crate::{Builder, Conn, Dump, Signal, Subscriber, Value, try_signal, wait_until};
use std::path::Path;
use std::process::Child;
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

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

pub(crate) struct Running {
    pub child: Child,
    /// The server's own pid. Differs from the child's where PRESENCE_SERVER is a script that does not exec.
    pub pid: u32,
}

impl Server {
    pub(crate) fn new(dir: tempfile::TempDir, port: u16, running: Running) -> Server {
        Server { dir, port, state: Mutex::new(Some(running)) }
    }

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

    /// False once the process has ended.
    pub fn alive(&self) -> bool {
        self.running().as_mut().is_some_and(|r| r.child.try_wait().unwrap().is_none())
    }

    /// True if the process has ended by itself.
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
            Ok(running) => *state = Some(running),
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
