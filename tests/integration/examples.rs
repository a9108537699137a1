//! The programs in examples/, run as a user runs them, through restarts of the server and of themselves.
//!
//! `scripts/examples-setup` fetches what they need. Where a language is not there, its tests report that they
//! are not tested; of the Go program the syntax is checked then, where that can be.

use crate::harness::*;
use crate::history::{ask, waiting};

use crate::replication::{primary, replica_of, sync};
use rand::Rng;
use rand::rngs::StdRng;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// Python or Node may take a while to start on a busy machine.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// What the heartbeats are told to use: long enough that a busy machine does not miss two of three.
const LEASE_MS: i64 = 6000;

#[derive(Clone, Copy, Debug)]
pub enum Language {
    Python,
    Node,
}

impl Language {
    /// The interpreter and the program's file; None where the language is not set up, which is reported.
    fn program(self, name: &str) -> Option<(PathBuf, PathBuf)> {
        match self {
            Language::Python => self.script(&format!("python/{name}.py")),
            Language::Node => self.script(&format!("node/{name}.js")),
        }
    }

    /// The same for a file below examples/.
    pub fn script(self, file: &str) -> Option<(PathBuf, PathBuf)> {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        let (interpreter, list, installed) = match self {
            Language::Python => (
                examples.join("python/.venv/bin/python"),
                "python/requirements.txt",
                "python/.venv/installed",
            ),
            Language::Node => {
                ("node".into(), "node/package-lock.json", "node/node_modules/installed")
            }
        };
        let read = |file: &str| std::fs::read(examples.join(file)).ok();
        let runs =
            Command::new(&interpreter).arg("--version").output().is_ok_and(|o| o.status.success());
        if !runs || read(installed).is_none() || read(installed) != read(list) {
            not_tested(&format!("{self:?} is not set up (scripts/examples-setup)"));
            return None;
        }
        Some((interpreter, examples.join(file)))
    }
}

/// A running example; ended, by SIGKILL, when dropped.
struct Program {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    errors: PathBuf,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Program {
    fn run(program: &(PathBuf, PathBuf), server: &Server, args: &[&str]) -> Program {
        Program::run_with(program, server, args, &[])
    }

    fn run_with(
        (interpreter, file): &(PathBuf, PathBuf),
        server: &Server,
        args: &[&str],
        environment: &[(&str, &str)],
    ) -> Program {
        let errors = server.dir().join("program-stderr");
        let to = std::fs::OpenOptions::new().create(true).append(true).open(&errors).unwrap();
        let mut child = Command::new(interpreter)
            .arg(file)
            .args(args)
            .arg(format!("redis://127.0.0.1:{}", server.port))
            .env("PRESENCE_LEASE_MS", LEASE_MS.to_string())
            .envs(environment.iter().copied())
            .stdin(Stdio::piped()) // open as long as the program is to run
            .stdout(Stdio::piped())
            .stderr(to)
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (out, to) = (BufReader::new(child.stdout.take().unwrap()), lines.clone());
        let reader = std::thread::spawn(move || {
            out.lines().map_while(Result::ok).for_each(|line| to.lock().unwrap().push(line));
        });
        Program { child, lines, errors, reader: Some(reader) }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// Waits until it has printed so many lines; they must be these.
    #[track_caller]
    fn says(&mut self, wanted: &[impl AsRef<str>]) {
        let wanted: Vec<&str> = wanted.iter().map(AsRef::as_ref).collect();
        let end = std::time::Instant::now() + PATIENCE;
        while self.lines().len() < wanted.len()
            && std::time::Instant::now() < end
            && self.is_running()
        {
            std::thread::sleep(ms(5));
        }
        // One that has ended has said all, but not all of it may have been read.
        if !self.is_running() {
            self.reader.take().into_iter().for_each(|reader| reader.join().unwrap());
        }
        assert_eq!(self.lines(), wanted, "stderr: {}", self.errors());
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn kill(mut self) {
        assert!(self.is_running(), "it ended by itself: {}", self.errors());
    }

    fn terminate(&mut self) {
        signal(self.child.id(), Signal::TERM);
    }

    fn end_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits until it has ended, as it should.
    #[track_caller]
    fn ended(mut self) {
        wait_until("the program's end", PATIENCE, || !self.is_running());
        assert!(self.child.wait().unwrap().success(), "stderr: {}", self.errors());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const LONG: &[(&str, &str)] =
    &[("presence.history-length", "100000"), ("presence.history-ttl-ms", "3600000")];

fn durable() -> Builder {
    LONG.iter().fold(Server::builder().aof(), |b, (name, value)| b.config(name, value))
}

// ---------------------------------------------------------------------------------------------------------------------

fn follow(language: Language) {
    let Some(program) = language.program("follow") else { return };
    let server = durable().start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE lobby alice EX 600");
    c.ok("PRESENCE.ONLINE lobby alice SESSION phone EX 600");
    c.ok("PRESENCE.ONLINE lobby zoe EX 600");
    c.ok("PRESENCE.OFFLINE lobby zoe");
    let mut follower = Program::run(&program, &server, &["lobby"]);
    let mut said = vec!["online alice"];
    follower.says(&said);
    // One call for each transition: not for sessions, heartbeats, metadata, messages.
    for line in [
        "PRESENCE.ONLINE lobby bob EX 600",
        "PRESENCE.ONLINE lobby bob EX 700",
        "PRESENCE.ONLINE lobby bob SESSION tab META 1 EX 600",
        "PRESENCE.ONLINE lobby bob SESSION tab META 2 EX 600",
        "PRESENCE.MESSAGE lobby carol hi",
        "PRESENCE.OFFLINE lobby alice SESSION phone",
        "PRESENCE.ONLINE elsewhere dave",
        "PRESENCE.OFFLINE lobby alice",
        "PRESENCE.ONLINE lobby alice EX 600",
        "PRESENCE.ONLINE lobby erin PX 100",
    ] {
        c.ok(line);
    }
    said.extend(["online bob", "offline alice", "online alice", "online erin", "offline erin"]);
    follower.says(&said);
    // The server ends, by crash and in order, and comes back; much happens at once.
    for stop in [Stop::Kill, Stop::NoSave] {
        c.ok("PRESENCE.OFFLINE lobby bob");
        server.restart(stop);
        c = server.connect();
        c.ok("PRESENCE.ONLINE lobby frank EX 600");
        c.ok("PRESENCE.OFFLINE lobby frank");
        c.ok("PRESENCE.ONLINE lobby USERS 2 frank bob EX 600");
        c.ok("PRESENCE.OFFLINE lobby frank");
        said.extend([
            "offline bob",
            "online frank",
            "offline frank",
            "online frank",
            "online bob",
            "offline frank",
        ]);
        follower.says(&said);
    }
    // Too much at once for the history: the difference is called. Who came and went meanwhile is not.
    waiting(&mut c, 1);
    c.ok("CONFIG SET presence.history-length 3");
    for line in [
        "MULTI",
        "PRESENCE.ONLINE lobby gone",
        "PRESENCE.OFFLINE lobby gone",
        "PRESENCE.OFFLINE lobby bob",
        "PRESENCE.ONLINE lobby grace EX 600",
        "PRESENCE.MESSAGE lobby x 1",
        "PRESENCE.MESSAGE lobby x 2",
        "PRESENCE.MESSAGE lobby x 3",
        "EXEC",
    ] {
        c.ok(line);
    }
    // One, for a snapshot has no order.
    said.extend(["offline bob", "online grace"]);
    follower.says(&said);
    c.ok("CONFIG SET presence.history-length 100000");
    c.ok("PRESENCE.ONLINE lobby heidi EX 600");
    said.push("online heidi");
    follower.says(&said);
    // Everybody is gone when the space is: deleted, closed, flushed.
    waiting(&mut c, 1);
    c.ok("DEL lobby");
    said.extend(["offline alice", "offline grace", "offline heidi"]);
    follower.says(&said);
    waiting(&mut c, 1);
    c.ok("PRESENCE.ONLINE lobby alice EX 600");
    c.ok("PRESENCE.CLOSE lobby");
    said.extend(["online alice", "offline alice"]);
    follower.says(&said);
    c.ok("DEL lobby");
    c.ok("PRESENCE.ONLINE lobby bob EX 600");
    said.push("online bob");
    follower.says(&said);
    // A server that comes back without its data.
    waiting(&mut c, 1);
    server.stop(Stop::Kill);
    std::fs::remove_dir_all(server.dir().join("appendonlydir")).unwrap();
    server.start_again();
    said.push("offline bob");
    follower.says(&said);
    server.connect().ok("PRESENCE.ONLINE lobby bob EX 600");
    said.push("online bob");
    follower.says(&said);
    follower.kill();
}

#[test]
fn follow_in_python() {
    follow(Language::Python);
}

#[test]
fn follow_in_node() {
    follow(Language::Node);
}

/// Something happens in the lobby.
fn happens(c: &mut Conn, rng: &mut StdRng, times: usize) {
    for _ in 0..times {
        let u = rng.random_range(0..15);
        let line = match rng.random_range(0..10) {
            0..4 => format!("PRESENCE.ONLINE lobby u{u} EX 600"),
            4 => format!("PRESENCE.ONLINE lobby u{u} PX {}", rng.random_range(1..60)),
            5 => format!(
                "PRESENCE.ONLINE lobby u{u} SESSION s{} PX {}",
                u % 3,
                rng.random_range(1..60)
            ),
            6 | 7 => format!("PRESENCE.OFFLINE lobby u{u}"),
            8 => format!("PRESENCE.OFFLINE lobby u{u} LINGER {}", rng.random_range(1..30)),
            // Larger than a pipe's buffer or a page, so that a kill can hit the middle of it.
            _ => format!("PRESENCE.MESSAGE lobby u{u} {}", "m".repeat(rng.random_range(0..30_000))),
        };
        c.ok(line);
    }
}

/// Much happens, the server ends again and again: the calls are the joins and leaves of the log, each once, in order.
fn follow_through_restarts(language: Language, seed: u64) {
    let Some(program) = language.program("follow") else { return };
    let mut rng = rng(seed);
    let server = durable().config("presence.restart-grace-ms", "50").start();
    let mut follower = Program::run(&program, &server, &["lobby"]);
    let mut c = server.connect();
    for round in 0..6 {
        if round == 0 || rng.random_bool(0.5) {
            waiting(&mut c, 1); // else it may be still away
        }
        happens(&mut c, &mut rng, 150);
        server.restart([Stop::Kill, Stop::NoSave][round % 2]);
        c = server.connect();
        happens(&mut c, &mut rng, 50);
    }
    c.ok("PRESENCE.ONLINE lobby keeper EX 600");
    (0..15).for_each(|u| drop(c.ok(format!("PRESENCE.OFFLINE lobby u{u}"))));
    let log = ask(&mut c, "lobby AFTER 0-0");
    assert!(!log.gap);
    let transitions: Vec<String> = log
        .events
        .iter()
        .filter_map(|e| match e.kind() {
            "join" => Some(format!("online {}", e.user())),
            "leave" => Some(format!("offline {}", e.user())),
            _ => None,
        })
        .collect();
    assert!(transitions.len() > 200, "this run says little");
    follower.says(&transitions);
    follower.kill();
}

#[test]
fn follow_through_restarts_in_python() {
    follow_through_restarts(Language::Python, 41);
}

#[test]
fn follow_through_restarts_in_node() {
    follow_through_restarts(Language::Node, 42);
}

// ---------------------------------------------------------------------------------------------------------------------

fn complete_lines(file: &Path) -> Vec<String> {
    let text = String::from_utf8(std::fs::read(file).unwrap_or_default()).unwrap();
    let mut lines: Vec<String> = text.split('\n').map(str::to_string).collect();
    lines.pop(); // what is behind the last newline
    lines
}

/// The server ends and the program is killed, again and again and at any moment: each event is in the file once.
fn log_through_kills(language: Language, seed: u64) {
    let Some(program) = language.program("log") else { return };
    let mut rng = rng(seed);
    let server = durable().config("presence.restart-grace-ms", "50").start();
    let file = server.dir().join("lobby.jsonl");
    let args = ["lobby", file.to_str().unwrap()];
    let mut c = server.connect();
    for round in 0..8 {
        // A line that was being written when the program ended: cut after some bytes of what comes next.
        if round % 2 == 1 {
            let torn = ["{", "{\"id\":\"1795", "{\"id\":\"1-99999999\",\"space\":\"lob", "garbage"]
                [rng.random_range(0..4)];
            std::fs::OpenOptions::new()
                .append(true)
                .open(&file)
                .unwrap()
                .write_all(torn.as_bytes())
                .unwrap();
        }
        let mut log = Program::run(&program, &server, &args);
        let before = complete_lines(&file).len();
        happens(&mut c, &mut rng, 120);
        if round % 3 == 1 {
            server.restart([Stop::Kill, Stop::NoSave][round % 2]);
            c = server.connect();
            happens(&mut c, &mut rng, 60);
        }
        // It is killed while it writes: after a few lines, or after some more.
        let few = rng.random_range(1..60);
        wait_until("lines", PATIENCE, || {
            assert!(log.is_running(), "it ended by itself: {}", log.errors());
            complete_lines(&file).len() >= before + few
        });
        log.kill();
        happens(&mut c, &mut rng, 30);
    }
    let mut log = Program::run(&program, &server, &args);
    c.ok("PRESENCE.ONLINE lobby keeper EX 600");
    (0..15).for_each(|u| drop(c.ok(format!("PRESENCE.OFFLINE lobby u{u}"))));
    let all = ask(&mut c, "lobby AFTER 0-0");
    assert!(!all.gap && all.events.len() > 500, "{} events", all.events.len());
    wait_until("the last event", PATIENCE, || {
        assert!(log.is_running(), "it ended by itself: {}", log.errors());
        complete_lines(&file).last().is_some_and(|line| line == all.raws().last().unwrap())
    });
    let lines = complete_lines(&file);
    let seqs: Vec<u64> = lines
        .iter()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .map(|v| parse_id(v["id"].as_str().unwrap()).1)
        .collect();
    assert_eq!(seqs, (1..=all.events.len() as u64).collect::<Vec<_>>(), "each once, in order");
    assert!(lines == all.raws(), "byte for byte");
    log.kill();
}

#[test]
fn log_through_kills_in_python() {
    log_through_kills(Language::Python, 43);
}

#[test]
fn log_through_kills_in_node() {
    log_through_kills(Language::Node, 44);
}

/// What cannot be had any more is said to be lost, and what can is logged, once.
fn log_with_a_gap(language: Language) {
    let Some(program) = language.program("log") else { return };
    let server =
        Server::with(&[("presence.history-length", "5"), ("presence.history-ttl-ms", "3600000")]);
    let file = server.dir().join("lobby.jsonl");
    let args = ["lobby", file.to_str().unwrap()];
    let mut c = server.connect();
    let lines = |n: usize| wait_until("lines", PATIENCE, || complete_lines(&file).len() >= n);
    let mut wanted: Vec<String> = Vec::new();
    // The file holds nothing but the beginning of a line.
    std::fs::write(&file, "{\"id\":\"17").unwrap();
    c.ok("PRESENCE.ONLINE lobby a EX 600");
    wanted.extend(ask(&mut c, "lobby").raws().iter().map(|s| s.to_string()));
    let log = Program::run(&program, &server, &args);
    lines(1);
    assert_eq!(complete_lines(&file), wanted);
    assert!(!log.errors().contains("lost"), "{}", log.errors());
    log.kill();
    // Away for too long.
    (0..20).for_each(|i| drop(c.ok(format!("PRESENCE.MESSAGE lobby a {i}"))));
    wanted.extend(ask(&mut c, "lobby").raws().iter().map(|s| s.to_string()));
    assert_eq!(wanted.len(), 6);
    let log = Program::run(&program, &server, &args);
    lines(6);
    assert_eq!(complete_lines(&file), wanted);
    assert!(log.errors().contains("lost"), "{}", log.errors());
    // Deleted while it waits, and made anew: another life, nothing of it missing.
    waiting(&mut c, 1);
    c.ok("DEL lobby");
    c.ok("PRESENCE.ONLINE lobby b EX 600");
    wanted.extend(ask(&mut c, "lobby").raws().iter().map(|s| s.to_string()));
    lines(7);
    log.kill();
    // A server that knows less than the file does: nothing is logged twice.
    waiting(&mut c, 0);
    let Value::BulkString(payload) = c.ok("DUMP lobby") else { panic!() };
    c.ok("PRESENCE.MESSAGE lobby b taken-back");
    wanted.extend(ask(&mut c, "lobby AFTER 0-0 COUNT 9").raws().last().map(|s| s.to_string()));
    let log = Program::run(&program, &server, &args);
    lines(8);
    log.kill();
    waiting(&mut c, 0);
    c.ok("DEL lobby");
    c.ok(args!["RESTORE", "lobby", 0, payload]);
    let log = Program::run(&program, &server, &args);
    waiting(&mut c, 1);
    c.ok("PRESENCE.MESSAGE lobby b instead");
    wanted.extend(ask(&mut c, "lobby").raws().last().map(|s| s.to_string()));
    lines(9);
    assert_eq!(complete_lines(&file), wanted);
    log.kill();
}

#[test]
fn log_with_a_gap_in_python() {
    log_with_a_gap(Language::Python);
}

#[test]
fn log_with_a_gap_in_node() {
    log_with_a_gap(Language::Node);
}

// ---------------------------------------------------------------------------------------------------------------------

/// It stays past its lease, through a restart, comes back where the server lost it, and says goodbye, or lingers.
fn heartbeat(program: Option<(PathBuf, PathBuf)>, end: fn(&mut Program)) {
    let Some(program) = program else { return };
    let server = durable().start();
    let mut c = server.connect();
    let args = ["lobby", "alice", "tab 1"];
    let mut beats = Program::run(&program, &server, &args);
    beats.says(&["online"]);
    let lease = |c: &mut Conn| c.user("lobby", "alice").expect("she stays").sessions[0].expires_at;
    let first = lease(&mut c);
    wait_until("a lease after the first", PATIENCE, || lease(&mut c) >= first + LEASE_MS);
    // Away for longer than a heartbeat.
    server.stop(Stop::Kill);
    wait_until("a vain heartbeat", PATIENCE, || beats.errors().contains("trying again"));
    server.start_again();
    c = server.connect();
    // The restart gave more than a heartbeat does.
    wait_until("a lease of its own", PATIENCE, || lease(&mut c) <= now_ms() + LEASE_MS);
    let story =
        |c: &mut Conn| -> Vec<String> { ask(c, "lobby").events.iter().map(Event::brief).collect() };
    assert_eq!(story(&mut c), ["join alice/tab 1"]);
    c.ok("FLUSHALL");
    beats.says(&["online", "online again"]);
    end(&mut beats);
    beats.says(&["online", "online again", "offline"]);
    beats.ended();
    let mut wanted = vec!["join alice/tab 1", "leave alice/tab 1 (offline)"];
    assert_eq!(story(&mut c), wanted);

    // One that lingers is there after its end, and nobody notices that another takes its place.
    let long = [("PRESENCE_LEASE_MS", "600000"), ("PRESENCE_LINGER_MS", "300000")];
    let mut lingers = Program::run_with(&program, &server, &args, &long);
    lingers.says(&["online"]);
    end(&mut lingers);
    lingers.says(&["online", "offline"]);
    lingers.ended();
    assert!(lease(&mut c) <= now_ms() + 300_000, "it did not say that it goes");
    let mut next = Program::run(&program, &server, &args);
    next.says(&["online"]);
    wanted.push("join alice/tab 1");
    assert_eq!(story(&mut c), wanted);
    end(&mut next);
    next.says(&["online", "offline"]);
    next.ended();
    wanted.push("leave alice/tab 1 (offline)");
    assert_eq!(story(&mut c), wanted);
}

#[test]
fn heartbeat_in_python() {
    heartbeat(Language::Python.program("heartbeat"), Program::terminate);
}

#[test]
fn heartbeat_in_node() {
    heartbeat(Language::Node.program("heartbeat"), Program::terminate);
}

#[test]
fn heartbeat_in_rust() {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--example", "heartbeat"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(built.unwrap().success());
    // Beside the folder of this test's own program.
    let own = std::env::current_exe().unwrap();
    let program = own.parent().unwrap().parent().unwrap().join("examples/heartbeat");
    heartbeat(Some(("/usr/bin/env".into(), program)), Program::end_input);
}

/// By the Go that is there, which fetches nothing.
fn go(args: &[&str]) -> std::io::Result<std::process::Output> {
    Command::new("go")
        .args(args)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/go"))
        .envs([("GOPROXY", "off"), ("GOFLAGS", "-mod=readonly"), ("GOTOOLCHAIN", "local")])
        .output()
}

/// What tells whether its input is Go: gofmt, or a parser in Python.
fn go_checker() -> Option<Command> {
    if Command::new("gofmt").stdin(Stdio::null()).output().is_ok() {
        return Some(Command::new("gofmt"));
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/go_syntax");
    let installed = std::fs::read(folder.join(".venv/installed")).ok()?;
    if installed != std::fs::read(folder.join("requirements.txt")).unwrap() {
        return None;
    }
    let mut checker = Command::new(folder.join(".venv/bin/python"));
    checker.arg(folder.join("check.py"));
    Some(checker)
}

/// What is wrong with this text, where something is.
fn go_faults(text: &str) -> Option<String> {
    let mut checker = go_checker()?;
    checker.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = checker.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn check_go_syntax() {
    if go_checker().is_none() {
        return not_tested("Go is not set up (scripts/examples-setup)");
    }
    not_tested("only its syntax is checked: there is no Go with go-redis (scripts/examples-setup)");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/go/heartbeat.go");
    let text = std::fs::read_to_string(file).unwrap();
    assert_eq!(go_faults(&text), None);
    // The check can fail.
    let broken = text.replacen("s.beat()", "s.beat(", 1);
    assert!(broken != text && go_faults(&broken).is_some());
}

#[test]
fn heartbeat_in_go() {
    // Are the modules at hand?
    if !go(&["mod", "download"]).is_ok_and(|o| o.status.success()) {
        return check_go_syntax();
    }
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("heartbeat-in-go");
    for args in [&["vet", "."][..], &["build", "-o", program.to_str().unwrap(), "."]] {
        let output = go(args).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    heartbeat(Some(("/usr/bin/env".into(), program)), Program::terminate);
}

/// A contact list is right at once, follows, and is right again after whatever it missed.
fn contacts(language: Language) {
    let Some(program) = language.program("contacts") else { return };
    let server = durable().start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE lobby alice EX 600");
    let mut contacts = Program::run(&program, &server, &["lobby", "alice", "bob"]);
    let mut said = vec!["alice online", "bob offline"];
    contacts.says(&said);
    for line in [
        "PRESENCE.ONLINE lobby bob EX 600",
        "PRESENCE.ONLINE lobby bob SESSION phone EX 600",
        "PRESENCE.ONLINE lobby carol EX 600",
        "PRESENCE.OFFLINE lobby alice",
        "PRESENCE.OFFLINE lobby bob SESSION phone",
        "PRESENCE.ONLINE lobby alice PX 50",
    ] {
        c.ok(line);
    }
    said.extend(["bob online", "alice offline", "alice online", "alice offline"]);
    contacts.says(&said);
    // While nobody listens.
    for line in [
        "MULTI",
        "CLIENT KILL TYPE pubsub",
        "PRESENCE.OFFLINE lobby bob",
        "PRESENCE.ONLINE lobby alice EX 600",
        "EXEC",
    ] {
        c.ok(line);
    }
    said.extend(["alice online", "bob offline"]);
    contacts.says(&said);
    server.restart(Stop::Kill);
    c = server.connect();
    c.ok("PRESENCE.ONLINE lobby bob EX 600");
    said.push("bob online");
    contacts.says(&said);
    // Another life of the space, whose first event has a small number: who is in it is asked.
    c.ok("DEL lobby");
    c.ok("PRESENCE.ONLINE lobby carol EX 600");
    said.extend(["alice offline", "bob offline"]);
    contacts.says(&said);
    c.ok("PRESENCE.ONLINE lobby USERS 2 bob alice EX 600");
    said.extend(["bob online", "alice online"]);
    contacts.says(&said);
    c.ok("PRESENCE.CLOSE lobby");
    said.extend(["alice offline", "bob offline"]);
    contacts.says(&said);
    contacts.kill();
}

#[test]
fn contacts_in_python() {
    contacts(Language::Python);
}

#[test]
fn contacts_in_node() {
    contacts(Language::Node);
}

/// A space where nothing happens is no dead server, also with the timeouts that clients have by default.
#[test]
fn the_worker_of_the_docs_waits_on_a_quiet_space() {
    let Some(program) = Language::Python.script("python/test/docs_worker.py") else { return };
    let server = Server::start();
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE lobby alice EX 600");
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/events.md");
    let mut worker = Program::run(&program, &server, &[page, "lobby"]);
    let asked = |c: &mut Conn| {
        let stats = c.info("commandstats");
        let calls = stats.get("cmdstat_presence.events").and_then(|s| s.split(['=', ',']).nth(1));
        calls.map_or(0, |n| n.parse().unwrap())
    };
    wait_until("four calls without an event", PATIENCE, || {
        assert!(worker.is_running(), "it ended by itself: {}", worker.errors());
        asked(&mut c) >= 4
    });
    c.ok("PRESENCE.ONLINE lobby bob EX 600");
    c.ok("PRESENCE.OFFLINE lobby alice");
    worker.says(&["join bob 2", "leave alice 1"]);
    worker.kill();
}

/// It has what is in the space, whether a digest fits, has too much, or is behind the snapshot.
#[test]
fn the_follower_of_digests_of_the_docs_has_the_snapshot() {
    let Some(program) = Language::Python.script("python/test/docs_digests.py") else { return };
    let server = Server::with(&[
        ("presence.digest-interval-ms", "200"),
        ("presence.digest-max-changes", "2"),
    ]);
    let mut c = server.connect();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/docs");
    c.ok("PRESENCE.ONLINE lobby alice META 1 EX 600");
    let mut follower = Program::run(&program, &server, &[folder, "lobby"]);
    follower.says(&["alice/ 1"]);
    c.ok("PRESENCE.ONLINE lobby bob SESSION tab EX 600");
    follower.says(&["alice/ 1", "alice/ 1, bob/tab null"]);
    c.ok("PRESENCE.ONLINE lobby USERS 4 c d e f EX 600");
    let crowd = "alice/ 1, bob/tab null, c/ null, d/ null, e/ null, f/ null";
    follower.says(&["alice/ 1", "alice/ 1, bob/tab null", crowd]);
    c.ok("PRESENCE.CLOSE lobby");
    follower.says(&["alice/ 1", "alice/ 1, bob/tab null", crowd, "nobody"]);
    follower.kill();
}

// ---------------------------------------------------------------------------------------------------------------------

/// Carol comes online and is lost with the server; Erin comes online with the seq that Carol had.
fn after_lost_events(language: Language) {
    let programs = ["follow", "contacts", "log"].map(|name| language.program(name));
    let [Some(follow), Some(contacts), Some(log)] = programs else { return };
    let server = Server::with(LONG);
    let file = server.dir().join("lobby.jsonl");
    let mut c = server.connect();
    c.ok("PRESENCE.ONLINE lobby alice EX 600");
    c.ok("SAVE");
    let mut followed = Program::run(&follow, &server, &["lobby"]);
    let mut listed = Program::run(&contacts, &server, &["lobby", "alice", "carol", "erin"]);
    let logged = Program::run(&log, &server, &["lobby", file.to_str().unwrap()]);
    waiting(&mut c, 2);
    listed.says(&["alice online", "carol offline", "erin offline"]);
    c.ok("PRESENCE.ONLINE lobby carol EX 600");
    listed.says(&["alice online", "carol offline", "erin offline", "carol online"]);
    followed.says(&["online alice", "online carol"]);
    wait_until("the log", PATIENCE, || complete_lines(&file).len() == 2);
    server.restart(Stop::Kill);
    c = server.connect();
    c.ok("PRESENCE.ONLINE lobby erin EX 600");
    let mut said = vec!["alice online", "carol offline", "erin offline", "carol online"];
    said.extend(["carol offline", "erin online"]);
    listed.says(&said);
    followed.says(&["online alice", "online carol", "offline carol", "online erin"]);
    // What was logged stays, what is lost is said to be, and nothing is logged twice.
    wait_until("the log", PATIENCE, || complete_lines(&file).len() >= 3);
    let brief = |line: &String| {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        format!("{} {}", event["user"], parse_id(event["id"].as_str().unwrap()).1)
    };
    let lines: Vec<String> = complete_lines(&file).iter().map(brief).collect();
    assert_eq!(lines, ["\"alice\" 1", "\"carol\" 2", "\"erin\" 2"]);
    assert!(logged.errors().contains("lost"), "{}", logged.errors());
    [followed, listed, logged].into_iter().for_each(Program::kill);
}

/// The contact list's server is a replica that is ahead of the one that is promoted. Its connection does not break, and
/// the first event that it receives has the next seq: the other epoch is all that tells it.
fn at_a_replica_that_was_ahead(language: Language) {
    let Some(contacts) = language.program("contacts") else { return };
    let a = primary().start();
    let proxy = Proxy::to(a.port);
    let heir = primary().line(&format!("replicaof 127.0.0.1 {}", proxy.port)).start();
    let ahead = replica_of(&a).start();
    let (mut ca, mut ch, mut cf) = (a.connect(), heir.connect(), ahead.connect());
    ca.ok("PRESENCE.ONLINE lobby alice EX 600");
    sync(&mut ca, &mut ch);
    sync(&mut ca, &mut cf);
    let mut listed = Program::run(&contacts, &ahead, &["lobby", "alice", "carol", "erin"]);
    let mut said = vec!["alice online", "carol offline", "erin offline"];
    listed.says(&said);
    proxy.cut();
    ca.ok("PRESENCE.ONLINE lobby carol EX 600");
    said.push("carol online");
    listed.says(&said);
    a.stop(Stop::Kill);
    ch.ok("REPLICAOF NO ONE");
    cf.ok(args!["REPLICAOF", "127.0.0.1", i64::from(heir.port)]);
    sync(&mut ch, &mut cf);
    ch.ok("PRESENCE.ONLINE lobby erin EX 600");
    said.extend(["carol offline", "erin online"]);
    listed.says(&said);
    listed.kill();
}

#[test]
fn after_lost_events_in_python() {
    after_lost_events(Language::Python);
}

#[test]
fn after_lost_events_in_node() {
    after_lost_events(Language::Node);
}

#[test]
fn at_a_replica_that_was_ahead_in_python() {
    at_a_replica_that_was_ahead(Language::Python);
}

#[test]
fn at_a_replica_that_was_ahead_in_node() {
    at_a_replica_that_was_ahead(Language::Node);
}
